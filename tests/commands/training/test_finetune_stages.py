"""`regionqa finetune`: which weights each stage trains, LoRA, and data of its own for a stage."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import load_file

from helpers.tiny_models import log_of, write_lines
from regionqa.bundles.store import Bundle, open_bundle

if TYPE_CHECKING:
    from conftest import Command

Tiny = Callable[[str], Bundle]
CPU = ("--device", "cpu")
SHORT = ("--steps", 2, "--batch", 2, *CPU)
"""Long enough to train, too short to learn."""


def test_align_trains_the_region_encoder_only(
    tiny: Tiny, things: Path, regionqa: "Command", tmp_path: Path
) -> None:
    base, out = tiny("levels").root, tmp_path / "mine"
    words = ("--data", things, "--model", base, "--out", out, "--stage", "align", *SHORT)
    ran = regionqa("finetune", *words)
    assert ran.status == 0, ran.err
    for name in ("llm/model.safetensors", "llm/tokenizer.json", "vision.onnx"):
        assert (out / name).read_bytes() == (base / name).read_bytes(), name
    assert (out / "region.onnx").read_bytes() != (base / "region.onnx").read_bytes()
    before, after = (load_file(root / "encoders.safetensors") for root in (base, out))
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert {name.partition(".")[0] for name in changed} == {"region"}
    assert {"region.roi_align.updims.weight", "region.mlvl_fuse.input_conv.0.weight"} <= changed


@pytest.mark.parametrize("row", ["levels", "pixels"])
def test_pvit_preset_trains_the_region_projector_only(
    tiny: Tiny, things: Path, regionqa: "Command", tmp_path: Path, row: str
) -> None:
    base, out = tiny(row).root, tmp_path / "mine"
    words = ("--data", things, "--model", base, "--out", out, "--preset", "pvit", *SHORT)
    ran = regionqa("finetune", *words)
    assert ran.status == 0, ran.err
    before, after = (load_file(root / "encoders.safetensors") for root in (base, out))
    changed = {
        name for name in before if not torch.equal(before[name].float(), after[name].float())
    }
    projector = ("roi_align.updims",) if row == "levels" else ("prompt_projector", "bbox_fc")
    parts = {name.rpartition(".")[0] for name in changed}
    assert parts == {"vision.projector", *(f"region.{part}" for part in projector)}
    language = [load_file(root / "llm" / "model.safetensors") for root in (base, out)]
    assert not torch.equal(*(weights["model.embed_tokens.weight"] for weights in language))


def test_instruct_trains_the_language_model(
    tiny: Tiny, things: Path, regionqa: "Command", tmp_path: Path
) -> None:
    base, out = tiny("levels").root, tmp_path / "mine"
    words = ("--data", things, "--model", base, "--out", out, "--stage", "instruct", *SHORT)
    assert regionqa("finetune", *words).status == 0
    assert {entry["stage"] for entry in log_of(out)} == {"instruct"}
    for file, name in (
        ("encoders.safetensors", "vision.projector.weight"),
        ("encoders.safetensors", "region.roi_align.updims.weight"),
        ("encoders.safetensors", "region.mlvl_fuse.input_conv.0.weight"),
        ("llm/model.safetensors", "model.layers.1.mlp.up_proj.weight"),
    ):
        before, after = (load_file(root / file) for root in (base, out))
        assert not torch.equal(before[name], after[name]), name
    before, after = (load_file(root / "encoders.safetensors") for root in (base, out))
    frozen = [name for name in before if name.startswith("vision.") and "projector" not in name]
    assert frozen
    assert all(torch.equal(before[name], after[name]) for name in frozen)


def test_lora_is_merged_into_plain_weights(
    tiny: Tiny, things: Path, regionqa: "Command", tmp_path: Path
) -> None:
    base, out = tiny("coordinates").root, tmp_path / "mine"
    words = ("--data", things, "--model", base, "--lora", 4, "--learning-rate", 0.01, *SHORT)
    ran = regionqa("finetune", *words, "--out", out, "--keep-adapter")
    assert ran.status == 0, ran.err
    before, after = (load_file(root / "llm" / "model.safetensors") for root in (base, out))
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    linear = {name for name in before if "_proj." in name}
    assert linear and changed == linear, "all linear layers, and nothing else"
    weights = [path for path in out.rglob("*.safetensors") if "checkpoints" not in path.parts]
    assert {path.stat().st_mode for path in weights} == {(out / "card.toml").stat().st_mode}
    adapter = load_file(out / "adapter" / "adapter_model.safetensors")
    assert json.loads((out / "adapter" / "adapter_config.json").read_text())["r"] == 4
    for name in linear:
        a, b = (
            adapter[f"base_model.model.{name.replace('.weight', f'.lora_{part}.weight')}"]
            for part in "AB"
        )
        assert torch.allclose(before[name] + 32 / 4 * b @ a, after[name], atol=1e-6), name
    image = next(things.parent.glob("*.png"))
    assert regionqa("ask", image, "what?", "--model", out, *CPU).status == 0
    again = regionqa("finetune", *words, "--out", tmp_path / "plain")
    assert again.status == 0, again.err
    assert not (tmp_path / "plain" / "adapter").exists()


def test_align_data_replay_and_held_out_options(
    tiny: Tiny, things: Path, regionqa: "Command", tmp_path: Path
) -> None:
    lines = [json.loads(line) for line in things.read_text().splitlines()]
    parts = {"align": lines[:10], "main": lines[10:30], "old": lines[30:40], "held": lines[40:]}
    files = {
        name: write_lines(things.parent / f"part-{name}.jsonl", part)
        for name, part in parts.items()
    }
    out = tmp_path / "mine"
    ran = regionqa(
        "finetune", "--data", files["main"], "--align-data", files["align"], "--replay",
        files["old"], "--held-out", files["held"], "--replay-share", 0.25, "--steps", 1,
        "--batch", 8, "--model", tiny("levels").root, "--out", out, *CPU,
    )  # fmt: skip
    for file in files.values():
        file.unlink()
    assert ran.status == 0, ran.err
    assert "align: 10 records, 1 steps" in ran.err
    assert "instruct: 20 records, 1 steps" in ran.err
    assert ran.err.count("1 process, 2 of them replayed") == 2
    provenance = open_bundle(out).card.provenance
    uses = {entry["use"]: entry["records"] for entry in provenance["data"]}
    assert uses == {"training": 20, "align": 10, "replay": 10, "held out": 8}
    assert provenance["held_out_questions"] == 8
