"""`regionqa init` with parts on the Hub, fetched by the real client from a local server."""

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
)

from helpers.hub_server import Hub
from helpers.tiny_checkpoints import TEXT, VISION, write_llama_tokenizer, write_llava
from regionqa.export.sources.checkpoints import quiet_transformers

if TYPE_CHECKING:
    from conftest import Command


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders tower, words and llava, as `save_pretrained` writes them."""
    root = tmp_path_factory.mktemp("checkpoints")
    torch.manual_seed(5)
    sizes = {"height": 28, "width": 28}
    with quiet_transformers():
        CLIPVisionModel(CLIPVisionConfig(**VISION)).save_pretrained(root / "tower")
        write_llama_tokenizer(root / "words", "first", chat=None)
        ends = {"bos_token_id": None, "eos_token_id": 2}
        LlamaForCausalLM(LlamaConfig(**TEXT, **ends)).save_pretrained(root / "words")
    processor = CLIPImageProcessor(size={"shortest_edge": 28}, crop_size=sizes)
    processor.save_pretrained(root / "tower")
    write_llava(root / "llava", "llama", "clip")
    return root


def test_init_from_hub_parts(
    hub: Hub,
    regionqa: "Command",
    checkpoints: Path,
    cat: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    hub.add("somebody/tower", checkpoints / "tower")
    hub.add("somebody/words", checkpoints / "words")
    parts = ("--vision", "somebody/tower", "--llm", "somebody/words")
    made = regionqa("init", tmp_path / "mine", *parts)
    assert (made.status, made.out.strip()) == (0, str(tmp_path / "mine")), made.err
    assert "untrained: projector and region encoder" in made.err
    asked = regionqa("ask", cat, "--box", "30,0,405,288", "what?", "--model", tmp_path / "mine")
    assert asked.status == 0, asked.err
    assert "mine has an untrained projector and region encoder; train it first" in caplog.text


def test_llava_is_fetched_without_unused_files(
    hub: Hub, regionqa: "Command", checkpoints: Path, tmp_path: Path
) -> None:
    files = {path.name: path.read_bytes() for path in (checkpoints / "llava").iterdir()}
    hub.add("somebody/llava", files | {"pytorch_model.bin": b"the same once more", "art.png": b""})
    made = regionqa("init", tmp_path / "mine", "--from-llava", "somebody/llava")
    assert made.status == 0, made.err
    assert "untrained" not in made.err
    assert hub.fetched("model.safetensors")
    assert not hub.fetched("pytorch_model.bin")
    assert not hub.fetched("art.png")


def test_cached_parts_need_no_network(
    hub: Hub, regionqa: "Command", checkpoints: Path, tmp_path: Path
) -> None:
    hub.add("somebody/llava", checkpoints / "llava")
    assert regionqa("init", tmp_path / "one", "--from-llava", "somebody/llava").status == 0
    hub.down()
    again = regionqa("init", tmp_path / "two", "--from-llava", "somebody/llava")
    assert again.status == 0, again.err
    weights = [tmp_path / name / "llm" / "model.safetensors" for name in ("one", "two")]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_broken_download_leaves_no_model_and_resumes(
    hub: Hub, regionqa: "Command", checkpoints: Path, tmp_path: Path
) -> None:
    hub.add("somebody/llava", checkpoints / "llava")
    hub.break_after("somebody/llava", "model.safetensors", 5000, times=99)
    broken = regionqa("init", tmp_path / "mine", "--from-llava", "somebody/llava")
    assert broken.status == 1
    (line,) = broken.err.splitlines()
    assert line.startswith("regionqa: error: somebody/llava: ")
    assert "run again" in line
    assert not (tmp_path / "mine").exists()
    hub.mend("somebody/llava")
    assert regionqa("init", tmp_path / "mine", "--from-llava", "somebody/llava").status == 0


@pytest.mark.parametrize(
    ("fault", "pattern"),
    [
        ("gated", r"its owner asks everyone to accept terms first \(401\)"),
        ("missing", "no such repository on the Hub, and no folder here"),
        ("corrupt", "arrived damaged and was removed"),
    ],
)
def test_hub_errors_are_one_line(
    hub: Hub, regionqa: "Command", checkpoints: Path, tmp_path: Path, fault: str, pattern: str
) -> None:
    import re

    if fault != "missing":
        hub.add("somebody/llava", checkpoints / "llava", gated=fault == "gated")
    if fault == "corrupt":
        hub.corrupt("somebody/llava", "model.safetensors")
    ran = regionqa("init", tmp_path / "mine", "--from-llava", "somebody/llava")
    (line,) = ran.err.splitlines()
    assert ran.status == 1
    assert re.search(pattern, line)
    assert not (tmp_path / "mine").exists()
