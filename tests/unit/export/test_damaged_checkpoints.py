"""Files of checkpoints with values of any kind: every reader refuses them in one line."""

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from regionqa.errors import BundleError
from regionqa.export.sources.chat_templates import processor_template
from regionqa.export.sources.checkpoints import end_ids, read_config
from regionqa.export.sources.image_processors import image_table
from regionqa.export.sources.region_checkpoints import check_regionclip
from regionqa.export.sources.sentencepiece import read_added_tokens
from regionqa.export.sources.shards import Shards

DEEP = "[" * 3000
TEXTS = ["", "{", "[1]", "5", '"text"', "null", DEEP, '{"a": ' + DEEP]
READERS: dict[str, Any] = {
    "config.json": read_config,
    "generation_config.json": lambda folder: end_ids(folder, None),
    "chat_template.json": processor_template,
    "preprocessor_config.json": lambda folder: image_table(folder, 32),
    "model.safetensors.index.json": Shards,
    "added_tokens.json": read_added_tokens,
}


def refusal(name: str, text: str, folder: Path) -> str:
    (folder / name).write_text(text)
    with pytest.raises(BundleError) as caught:
        READERS[name](folder)
    return str(caught.value)


@pytest.mark.parametrize("text", TEXTS, ids=lambda text: text[:8] or "empty")
@pytest.mark.parametrize("name", READERS)
def test_what_is_no_json_object_is_refused(name: str, text: str, tmp_path: Path) -> None:
    assert str(tmp_path) in refusal(name, text, tmp_path)


@pytest.mark.parametrize(
    ("name", "table"),
    [
        ("generation_config.json", {"eos_token_id": "</s>"}),
        ("generation_config.json", {"eos_token_id": [2, None]}),
        ("model.safetensors.index.json", {}),
        ("model.safetensors.index.json", {"weight_map": {"a": 1}}),
        ("model.safetensors.index.json", {"weight_map": {"a": ["a.safetensors"]}}),
        ("model.safetensors.index.json", {"weight_map": {"a": "../a.safetensors"}}),
        ("model.safetensors.index.json", {"weight_map": {"a": "/a.safetensors"}}),
        ("model.safetensors.index.json", {"weight_map": {"a": ""}}),
        ("model.safetensors.index.json", {"weight_map": {"a": "x" * 300}}),
        ("added_tokens.json", {"<image>": "x"}),
        ("added_tokens.json", {"<image>": None}),
        ("preprocessor_config.json", {"image_processor_type": 1}),
    ],
)
def test_a_value_of_another_kind_is_refused(
    name: str, table: dict[str, Any], tmp_path: Path
) -> None:
    assert str(tmp_path) in refusal(name, json.dumps(table), tmp_path)


def test_a_config_that_names_code_is_refused_without_asking(tmp_path: Path) -> None:
    """transformers would ask at the terminal whether to run it."""
    config = {"model_type": "own", "auto_map": {"AutoConfig": "own.Own"}}
    (tmp_path / "own.py").write_text("raise SystemExit('was run')")
    assert "config" in refusal("config.json", json.dumps(config), tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"PK\3\4" + bytes(60),
        pickle.dumps({"backbone.a": 1}, protocol=2),
        b"\x80\x02}q\x00(X\x05\x00\x00\x00modelq\x01h\x09u.",  # an object that was never stored
        b"\x80\x02K\x01K\x02\x85q\x00R.",  # a number that is called
    ],
    ids=["empty", "zip", "number", "memo", "call"],
)
def test_a_damaged_pickle_is_refused(content: bytes, tmp_path: Path) -> None:
    trunk, weights = tmp_path / "trunk.pth", tmp_path / "pytorch_model.bin"
    trunk.write_bytes(content)
    weights.write_bytes(content)
    for read in (lambda: check_regionclip(trunk), lambda: Shards(tmp_path)):
        with pytest.raises(BundleError, match=str(tmp_path)):
            read()


def test_weights_without_dimensions_are_refused(tmp_path: Path) -> None:
    names = [f"backbone.layer{stage}.0.conv1.weight" for stage in (1, 2, 3, 4)]
    names += ["backbone.conv3.weight", "backbone.attnpool.c_proj.weight"]
    tensors = dict.fromkeys([*names, "backbone.attnpool.positional_embedding"], torch.ones(()))
    torch.save(tensors, tmp_path / "trunk.pth")
    with pytest.raises(BundleError, match="RegionCLIP"):
        check_regionclip(tmp_path / "trunk.pth")
