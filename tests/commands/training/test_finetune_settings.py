"""`regionqa finetune`: presets, settings files, flags, and errors before a run starts."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file

from helpers.tiny_models import QUESTION, RED, record_json, write_lines
from regionqa.bundles.store import Bundle, open_bundle
from regionqa.cli.finetune import chosen_settings
from regionqa.finetune.config import RegionPart, StageSettings

if TYPE_CHECKING:
    from conftest import Command

Tiny = Callable[[str], Bundle]
CPU = ("--device", "cpu")
SHORT = ("--steps", 2, "--batch", 2, *CPU)
"""Long enough to train, too short to learn."""


def test_bad_record_stops_before_writing(
    tiny: Tiny, things: Path, regionqa: "Command", tmp_path: Path
) -> None:
    lines = [json.loads(line) for line in things.read_text().splitlines()]
    lines[2] = record_json("00.png", [[9, 9, 5, 5]], (QUESTION, RED))
    lines[4] = record_json("00.png", [[1, 1, 9, 9]] * 5, (QUESTION, RED))
    file = write_lines(tmp_path / "mixed.jsonl", lines)
    out = tmp_path / "mine"
    words = ("--data", file, "--images", things.parent, "--model", tiny("none").root, *SHORT)
    ran = regionqa("finetune", *words, "--out", out)
    assert (ran.status, ran.out) == (1, "")
    assert len(ran.err.splitlines()) == 1
    assert "2 of 48 records cannot be used: mixed.jsonl:3:" in ran.err
    assert "--skip-bad" in ran.err
    assert not out.exists()
    ran = regionqa("finetune", *words, "--out", out, "--skip-bad")
    assert ran.status == 0, ran.err
    assert f"{file}: 46 records of 24 images, 2 left out" in ran.err
    (provenance,) = open_bundle(out).card.provenance["data"]
    assert (provenance["records"], provenance["left_out"]) == (46, 2)


def test_record_that_exceeds_the_model_is_named(
    tiny: Tiny, things: Path, regionqa: "Command", tmp_path: Path
) -> None:
    for record, message in (
        (
            record_json("00.png", [[1, 1, 9, 9]] * 5, ("?", "x")),
            "5 regions in one record, the model",
        ),
        (
            record_json("00.png", [], ("?", "word " * 99)),
            r"questions and answers take \d+ tokens, the",
        ),
    ):
        good = record_json("01.png", [], ("what?", "that."))
        file = write_lines(tmp_path / "mixed.jsonl", [good, record])
        words = ("--data", file, "--images", things.parent, "--model", tiny("none").root, *SHORT)
        ran = regionqa("finetune", *words, "--out", tmp_path / "mine")
        assert ran.status == 1
        assert re.search(rf"mixed\.jsonl:2: {message}", ran.err)


def test_startup_errors_are_one_line(
    tiny: Tiny, things: Path, regionqa: "Command", tmp_path: Path
) -> None:
    other = tmp_path / "holiday"
    other.mkdir()
    (other / "photo.jpg").write_bytes(b"")
    settings = tmp_path / "settings.toml"
    one = write_lines(tmp_path / "one.jsonl", [record_json("00.png", [], ("what?", "that."))])
    model, out = ("--model", tiny("none").root), ("--out", tmp_path / "mine")
    data = ("--data", things)
    cases: list[tuple[tuple[object, ...], str, int, str]] = [
        ((*model, *out), "", 2, "no training data; name a file with --data"),
        (("--data", tmp_path / "none.jsonl", *model, *out), "", 1, "there is no such file"),
        ((*data, *model, "--out", other), "", 2, "exists and holds no training run"),
        ((*data, "--model", tmp_path / "no", *out), "", 1, "no"),
        ((*data, *model, *out, "--resume", "--batch", 0), "", 2, "--batch"),
        ((*data, *model, *out, "--box-noise", 0.5), "", 2, "box_noise is 0.5"),
        ((*data, *model, *out, "--learning-rate", 0), "", 2, "learning_rate is 0.0"),
        ((*data, *model, *out, "--precision", "fp8"), "", 2, "fp8"),
        ((*data, *model, *out, "--settings", settings), "sede = 3", 2, "sede"),
        ((*data, *model, *out, "--settings", settings), "[align]\nlr = 3", 2, "lr"),
        ((*data, *model, *out, "--settings", settings), "align = 3", 2, "must be a table [align]"),
        ((*data, *model, *out, "--settings", settings), "[align]\nbatch = 'x'", 2, "batch"),
        ((*data, *model, *out, "--settings", settings), "[align]\nfeature_mixing = 1.0", 2,
         "feature_mixing is 1.0; it must be from 0 to below 1"),
        ((*data, *model, *out, "--settings", settings), "[align]\nswapped_images = 1.0", 2,
         "swapped_images is 1.0; it must be from 0 to below 1"),
        ((*data, *model, *out, "--settings", settings), "[instruct]\nfeature_noise = -0.1", 2,
         "feature_noise is -0.1; it must be 0 or more"),
        ((*data, *model, *out, "--settings", settings), "[", 2, "cannot be read as settings"),
        (
            ("--data", one, "--held-out", one, "--images", things.parent, *model, *out), "", 1,
            "every image of the training data is held out",
        ),
        ((*data, *model, *out, "--stage", "align"), "", 2, "there is nothing to align"),
    ]  # fmt: skip
    for words, text, status, message in cases:
        settings.write_text(text)
        ran = regionqa("finetune", *words, *CPU)
        assert (ran.status, ran.out) == (status, ""), (words, ran.err)
        assert message in ran.err.splitlines()[-1], words
        assert ran.err.splitlines()[-1].startswith("regionqa: error: ")
    assert not (tmp_path / "mine").exists()
    assert [path.name for path in other.iterdir()] == ["photo.jpg"]


def test_result_is_not_overwritten(
    tiny: Tiny, things: Path, regionqa: "Command", tmp_path: Path
) -> None:
    out = tmp_path / "mine"
    words = ("finetune", "--data", things, "--model", tiny("none").root, "--out", out, *SHORT)
    assert regionqa(*words).status == 0
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    ran = regionqa(*words)
    assert ran.status == 2
    assert "holds a finished run; continue with --resume, or choose another folder" in ran.err
    assert before == {path: path.stat().st_mtime_ns for path in out.rglob("*")}


# -- settings: preset, file, flags -----------------------------------------------------------------


def test_flags_override_the_settings_file(
    tiny: Tiny, things: Path, regionqa: "Command", tmp_path: Path
) -> None:
    file = tmp_path / "settings.toml"
    file.write_text(
        f"""
        model = "{tiny("levels").root}"
        data = ["{things}"]
        seed = 7
        [align]
        steps = 1
        batch = 3
        region = "carrier"
        [instruct]
        steps = 2
        batch = 4
        learning_rate = 0.5
        projector = false
        """
    )
    out = tmp_path / "mine"
    words = ("--settings", file, "--out", out, "--learning-rate", 0.002, "--seed", 9, *CPU)
    ran = regionqa("finetune", *words)
    assert ran.status == 0, ran.err
    provenance = open_bundle(out).card.provenance
    align, instruct = (stage["settings"] for stage in provenance["stages"])
    assert (align["steps"], align["batch"], align["region"]) == (1, 3, "projector")
    assert (instruct["steps"], instruct["batch"], instruct["projector"]) == (2, 4, False)
    assert {align["learning_rate"], instruct["learning_rate"]} == {0.002}, "flags come last"
    assert provenance["seed"] == 9
    before, after = (
        load_file(root / "encoders.safetensors") for root in (tiny("levels").root, out)
    )
    assert torch.equal(before["vision.projector.weight"], after["vision.projector.weight"])


def preset(name: str) -> tuple[StageSettings, StageSettings]:
    """Both stages of a preset, as a command line gets them."""
    stages = chosen_settings(None, name, None, {"data": [Path("x")]}, {}).stages
    return stages.align, stages.instruct


def test_pvit_preset_equals_the_paper() -> None:
    align, instruct = preset("pvit")
    assert (align.learning_rate, instruct.learning_rate) == (2e-3, 2e-5)
    assert (align.epochs, instruct.epochs) == (1, 3)
    for stage in (align, instruct):
        assert (stage.warm_up, stage.warm_up_steps, stage.schedule) == (0.03, None, "cosine")
        assert (stage.box_noise, stage.weight_decay) == (0.02, 0)
        assert stage.region is RegionPart.projector
    assert [stage.batch * stage.accumulate * 8 for stage in (align, instruct)] == [128, 64]
    assert (align.projector, align.language) == (False, False)
    assert (instruct.projector, instruct.language) == (True, True)


def test_gpt4roi_preset_equals_the_paper() -> None:
    align, instruct = preset("gpt4roi")
    assert (align.learning_rate, instruct.learning_rate) == (2e-5, 2e-5)
    assert (align.epochs, instruct.epochs) == (2, 2)
    assert (align.warm_up, align.warm_up_steps, align.weight_decay) == (0.003, None, 0.01)
    assert (instruct.warm_up_steps, instruct.weight_decay) == (3000, 0)
    assert [stage.box_noise for stage in (align, instruct)] == [0, 0]
    assert [stage.region for stage in (align, instruct)] == [RegionPart.all] * 2
    assert (align.batch * align.accumulate * 4, instruct.batch * instruct.accumulate * 8) == (4, 16)
    assert (align.projector, align.language) == (False, False)
    assert (instruct.projector, instruct.language) == (True, True)


def test_help_lists_options_of_long_runs(regionqa: "Command") -> None:
    ran = regionqa("finetune", "--help")
    assert ran.status == 0
    for option in ("--resume", "--max-minutes", "--shard", "--lora", "--skip-bad", "--settings"):
        assert option in ran.out
