"""`regionqa finetune`: records and a model in, a better model out, and all that is said of it."""

import hashlib
import io
import json
import re
import tomllib
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from helpers.tiny_models import (
    BLUE,
    QUESTION,
    RED,
    ROWS,
    a_record,
    copy_graphs,
    log_of,
    write_lines,
)
from regionqa.bundles.store import Bundle, open_bundle
from regionqa.cli import main
from regionqa.cli.finetune import chosen_settings
from regionqa.finetune import rehearsal
from regionqa.finetune.config import RegionPart, StageSettings

if TYPE_CHECKING:
    from conftest import Command

Tiny = Callable[[str], Bundle]
CPU = ("--device", "cpu")
SHORT = ("--steps", 2, "--batch", 2, *CPU)
"""Long enough to train, too short to learn."""
STEPS = 80
"""Of each stage, and it has learned, whatever the seed; after 50 it sometimes has not."""


@dataclass(frozen=True)
class Trained:
    """A finished run."""

    status: int
    out: str
    err: str
    root: Path

    @property
    def training(self) -> Path:
        """What the run tells of itself."""
        return self.root / "training"

    @property
    def provenance(self) -> Any:
        """What the card says of where the model comes from."""
        return open_bundle(self.root).card.provenance


@pytest.fixture(scope="module")
def trained(
    tiny: Tiny, things: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Trained]:
    """Every row of PVIT's table 1, trained until it has learned what it can; once each.

    Graphs are exported for `levels` alone; the others are not asked anything.
    """

    def train(row: str) -> Trained:
        out = tmp_path_factory.mktemp(row) / "mine"
        words = [
            "finetune", "--data", things, "--model", tiny(row).root, "--out", out, "--steps", STEPS,
            "--batch", 8, "--learning-rate", 0.01, "--evaluate-every", 25,
            "--held-out-share", 0.25, *CPU,
        ]  # fmt: skip
        stdout, stderr = io.StringIO(), io.StringIO()
        with (
            redirect_stdout(stdout),
            redirect_stderr(stderr),
            pytest.MonkeyPatch.context() as patch,
        ):
            if row != "levels":
                copy_graphs(tiny("levels"), tiny("pixels"), patch)
            status = main([str(word) for word in words])
        return Trained(status, stdout.getvalue(), stderr.getvalue(), out)

    return cache(train)


# -- a user trains, and asks -----------------------------------------------------------------------


def test_training_gives_back_a_model_that_answers(
    trained: Callable[[str], Trained], things: Path, regionqa: "Command"
) -> None:
    ran = trained("levels")
    assert ran.status == 0, ran.err
    assert ran.out == f"{ran.root}\n", "stdout is the folder and nothing else"
    record = json.loads(things.read_text().splitlines()[0])
    box = ",".join(str(number) for number in record["regions"][0])
    image = things.parent / record["image"]
    words = ("--box", box, "--model", ran.root, "--format", "jsonl", *CPU)
    asked = regionqa("ask", image, "what is this?", *words)
    assert asked.status == 0, asked.err
    answer = json.loads(asked.out)
    assert answer["model"] == "mine"
    assert answer["answer"] in (RED, BLUE), "it says what it was taught, not what it was before"


@pytest.mark.parametrize("row", ROWS)
def test_a_model_learns_to_tell_two_things_apart_where_it_is_told_of_regions(
    trained: Callable[[str], Trained], row: str
) -> None:
    """Every image has one of each, so without regions half of the answers is the most."""
    ran = trained(row)
    assert ran.status == 0, ran.err
    entries = [entry for entry in log_of(ran.root) if entry.get("held_out")]
    assert entries[0]["accuracy"] == 0
    least, most = {"none": (0.5, 0.5), "coordinates": (0, 1)}.get(row, (0.8, 1))
    assert least <= entries[-1]["accuracy"] <= most
    assert entries[-1]["loss"] < 0.1 * entries[0]["loss"]
    told_in_words = row in ("coordinates", "none")
    stages = {entry["stage"] for entry in entries}
    assert stages == ({"instruct"} if told_in_words else {"align", "instruct"})
    assert ("align is skipped: this model has no region features" in ran.err) == told_in_words


def test_what_is_said_while_it_trains(trained: Callable[[str], Trained], things: Path) -> None:
    lines = trained("levels").err.splitlines()
    assert lines[0] == f"{things}: 48 records of 24 images"
    said = "effective batch 8 = 8 x 1 accumulated x 1 process"
    assert lines[1] == f"align: 36 records, {STEPS} steps; {said}"
    assert f"instruct: 36 records, {STEPS} steps; {said}" in lines
    assert any(line.startswith(f"instruct {STEPS}/{STEPS}: held-out loss") for line in lines)
    assert lines[-1].endswith("% of 12 held-out answers word for word")


def test_the_card_says_where_the_model_comes_from(
    trained: Callable[[str], Trained], tiny: Tiny, things: Path
) -> None:
    ran = trained("levels")
    card = open_bundle(ran.root).card
    base = tiny("levels").card
    told = card.provenance
    assert told["base"] == {"name": "tiny-levels", "revision": base.revision}
    assert told["licence"] == base.provenance["licence"]
    assert told["data"] == [
        {
            "file": "things.jsonl",
            "sha256": hashlib.sha256(things.read_bytes()).hexdigest(),
            "use": "training",
            "records": 48,
            "left_out": 0,
        }
    ]
    align, instruct = told["stages"]
    assert (align["name"], instruct["name"]) == ("align", "instruct")
    for stage in (align, instruct):
        assert stage["steps"] == STEPS
        assert (stage["settings"]["learning_rate"], stage["settings"]["batch"]) == (0.01, 8)
    last = {entry["stage"]: entry for entry in log_of(ran.root) if not entry.get("held_out")}
    assert instruct["training_loss"] == round(last["instruct"]["loss"], 4)
    assert 0.8 <= instruct["held_out_answers_right"] <= 1
    assert instruct["held_out_loss"] < align["held_out_loss"]
    assert told["held_out_questions"] == 12
    assert told["held_out_accuracy"] >= 80
    assert told["measured"] == f"{told['held_out_accuracy']} % of 12 held-out answers word for word"
    assert told["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert {"regionqa", "transformers", "accelerate", "peft"} <= told["versions"].keys()
    assert card.name == "mine"
    assert card.revision != base.revision


def test_what_the_training_folder_holds(trained: Callable[[str], Trained]) -> None:
    ran = trained("levels")
    names = {path.name for path in ran.training.iterdir()}
    assert names == {"settings.toml", "log.jsonl", "curves.png", "tensorboard"}, "no checkpoints"
    settings = tomllib.loads((ran.training / "settings.toml").read_text())
    assert settings["settings"]["stages"]["instruct"]["learning_rate"] == 0.01
    with Image.open(ran.training / "curves.png") as image:
        image.load()
        assert image.width > image.height > 300, "two stages side by side"
        assert len(image.convert("RGB").getcolors(1 << 24) or []) > 10
    entries = log_of(ran.root)
    steps = [entry["step"] for entry in entries if not entry.get("held_out")]
    assert steps == [*range(1, STEPS + 1)] * 2
    held_out = [entry["step"] for entry in entries if entry.get("held_out")]
    assert held_out == [0, 25, 50, 75, STEPS] * 2
    assert sorted(path.name for path in ran.root.parent.iterdir()) == ["mine"]


def test_tensorboard_reads_the_curves(trained: Callable[[str], Trained]) -> None:
    ran = trained("levels")
    board = EventAccumulator(str(ran.training / "tensorboard"))
    board.Reload()
    for stage in ("align", "instruct"):
        for kind in ("training", "held-out"):
            own = [
                entry
                for entry in log_of(ran.root)
                if entry["stage"] == stage and entry.get("held_out", False) == (kind == "held-out")
            ]
            for figure in ("loss", "accuracy"):
                points = board.Scalars(f"{stage}/{kind} {figure}")
                assert [point.step for point in points] == [entry["step"] for entry in own]
                expected = [entry[figure] for entry in own]
                assert [point.value for point in points] == pytest.approx(expected, rel=1e-6)
        assert len(board.Scalars(f"{stage}/learning rate")) == STEPS


def test_a_model_trains_further_from_a_result(
    trained: Callable[[str], Trained], things: Path, regionqa: "Command", tmp_path: Path,
    quick_export: None,
) -> None:  # fmt: skip
    base = trained("levels")
    ran = regionqa(
        "finetune", "--data", things, "--model", base.root, "--out", tmp_path / "next",
        "--stage", "align", "--held-out-share", 0.25, *SHORT,
    )  # fmt: skip
    assert ran.status == 0, ran.err
    first = log_of(tmp_path / "next")[0]
    last = [entry for entry in log_of(base.root) if entry.get("held_out")][-1]
    assert first["loss"] == pytest.approx(last["loss"], rel=1e-3), "it starts where it stopped"
    told = open_bundle(tmp_path / "next").card.provenance
    assert told["base"] == {"name": "mine", "revision": open_bundle(base.root).card.revision}
    assert "of its answers are replayed against forgetting" in ran.err
    rehearsed = [
        json.loads(line)["conversations"][1]["value"]
        for line in (tmp_path / "next" / "training" / "rehearsal.jsonl").read_text().splitlines()
    ]
    assert len(rehearsed) == 4 * 18, "boxes of every image that is not held out"
    assert {RED, BLUE} >= set(rehearsed), "it knows nothing else to say"


def test_a_base_that_has_nothing_to_say_trains_without_rehearsal(
    trained: Callable[[str], Trained],
    things: Path,
    regionqa: "Command",
    tmp_path: Path,
    quick_export: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rehearsal, "rehearse", lambda *_: ())
    ran = regionqa(
        "finetune", "--data", things, "--model", trained("none").root, "--out", tmp_path / "next",
        *SHORT,
    )  # fmt: skip
    assert ran.status == 0, ran.err


def test_coco_trains_in_one_command(
    tiny: Tiny, things: Path, regionqa: "Command", tmp_path: Path, quick_export: None
) -> None:
    names = sorted(path.name for path in things.parent.glob("*.png"))[:6]
    coco = {
        "images": [{"id": number, "file_name": name} for number, name in enumerate(names)],
        "annotations": [
            {"id": number, "image_id": number // 2, "category_id": number % 2,
             "bbox": [4, 4, 20 + number, 20]}
            for number in range(12)
        ],
        "categories": [{"id": 0, "name": "red thing"}, {"id": 1, "name": "blue thing"}],
    }  # fmt: skip
    file = tmp_path / "instances.json"
    file.write_text(json.dumps(coco))
    out = tmp_path / "mine"
    words = ("--data", file, "--images", things.parent, "--model", tiny("levels").root, *SHORT)
    ran = regionqa("finetune", *words, "--out", out)
    assert ran.status == 0, ran.err
    assert f"{file}: 12 records of 6 images" in ran.err
    assert open_bundle(out).broken_files() == []


# -- which weights train ---------------------------------------------------------------------------


def test_align_changes_region_weights_and_nothing_else(
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
def test_pvit_trains_only_what_carries_regions(
    tiny: Tiny, things: Path, regionqa: "Command", tmp_path: Path, row: str, quick_export: None
) -> None:
    base, out = tiny(row).root, tmp_path / "mine"
    words = ("--data", things, "--model", base, "--out", out, "--preset", "pvit", *SHORT)
    ran = regionqa("finetune", *words)
    assert ran.status == 0, ran.err
    before, after = (load_file(root / "encoders.safetensors") for root in (base, out))
    changed = {
        name for name in before if not torch.equal(before[name].float(), after[name].float())
    }
    carrier = ("roi_align.updims",) if row == "levels" else ("prompt_projector", "bbox_fc")
    parts = {name.rpartition(".")[0] for name in changed}
    assert parts == {"vision.projector", *(f"region.{part}" for part in carrier)}
    language = [load_file(root / "llm" / "model.safetensors") for root in (base, out)]
    assert not torch.equal(*(weights["model.embed_tokens.weight"] for weights in language))


def test_instruct_alone_trains_the_language_model_too(
    tiny: Tiny, things: Path, regionqa: "Command", tmp_path: Path, quick_export: None
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
    tiny: Tiny, things: Path, regionqa: "Command", tmp_path: Path, quick_export: None
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


def test_more_data_for_the_first_stage_older_data_replayed_and_data_to_measure_on(
    tiny: Tiny, things: Path, regionqa: "Command", tmp_path: Path, quick_export: None
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
    told = open_bundle(out).card.provenance
    uses = {entry["use"]: entry["records"] for entry in told["data"]}
    assert uses == {"training": 20, "align": 10, "replay": 10, "held out": 8}
    assert told["held_out_questions"] == 8


# -- what stops it before it starts ----------------------------------------------------------------


def test_a_bad_record_stops_before_anything_is_written(
    tiny: Tiny, things: Path, regionqa: "Command", tmp_path: Path, quick_export: None
) -> None:
    lines = [json.loads(line) for line in things.read_text().splitlines()]
    lines[2] = a_record("00.png", [[9, 9, 5, 5]], (QUESTION, RED))
    lines[4] = a_record("00.png", [[1, 1, 9, 9]] * 5, (QUESTION, RED))
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
    (told,) = open_bundle(out).card.provenance["data"]
    assert (told["records"], told["left_out"]) == (46, 2)


def test_a_record_that_the_model_cannot_take_is_named(
    tiny: Tiny, things: Path, regionqa: "Command", tmp_path: Path
) -> None:
    for record, message in (
        (a_record("00.png", [[1, 1, 9, 9]] * 5, ("?", "x")), "5 regions in one record, the model"),
        (
            a_record("00.png", [], ("?", "word " * 99)),
            r"questions and answers take \d+ tokens, the",
        ),
    ):
        good = a_record("01.png", [], ("what?", "that."))
        file = write_lines(tmp_path / "mixed.jsonl", [good, record])
        words = ("--data", file, "--images", things.parent, "--model", tiny("none").root, *SHORT)
        ran = regionqa("finetune", *words, "--out", tmp_path / "mine")
        assert ran.status == 1
        assert re.search(rf"mixed\.jsonl:2: {message}", ran.err)


def test_what_cannot_start_says_why_in_one_line(
    tiny: Tiny, things: Path, regionqa: "Command", tmp_path: Path
) -> None:
    other = tmp_path / "holiday"
    other.mkdir()
    (other / "photo.jpg").write_bytes(b"")
    settings = tmp_path / "settings.toml"
    one = write_lines(tmp_path / "one.jsonl", [a_record("00.png", [], ("what?", "that."))])
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


def test_a_result_is_not_trained_over(
    tiny: Tiny, things: Path, regionqa: "Command", tmp_path: Path, quick_export: None
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


def test_a_settings_file_with_flags_on_top(
    tiny: Tiny, things: Path, regionqa: "Command", tmp_path: Path, quick_export: None
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
    told = open_bundle(out).card.provenance
    align, instruct = (stage["settings"] for stage in told["stages"])
    assert (align["steps"], align["batch"], align["region"]) == (1, 3, "carrier")
    assert (instruct["steps"], instruct["batch"], instruct["projector"]) == (2, 4, False)
    assert {align["learning_rate"], instruct["learning_rate"]} == {0.002}, "flags come last"
    assert told["seed"] == 9
    before, after = (
        load_file(root / "encoders.safetensors") for root in (tiny("levels").root, out)
    )
    assert torch.equal(before["vision.projector.weight"], after["vision.projector.weight"])


def preset(name: str) -> tuple[StageSettings, StageSettings]:
    """Both stages of a preset, as a command line gets them."""
    stages = chosen_settings(None, name, None, {"data": [Path("x")]}, {}).stages
    return stages.align, stages.instruct


def test_pvit_has_the_settings_of_the_paper() -> None:
    align, instruct = preset("pvit")
    assert (align.learning_rate, instruct.learning_rate) == (2e-3, 2e-5)
    assert (align.epochs, instruct.epochs) == (1, 3)
    for stage in (align, instruct):
        assert (stage.warm_up, stage.warm_up_steps, stage.schedule) == (0.03, None, "cosine")
        assert (stage.box_noise, stage.weight_decay) == (0.02, 0)
        assert stage.region is RegionPart.carrier
    assert [stage.batch * stage.accumulate * 8 for stage in (align, instruct)] == [128, 64]
    assert (align.projector, align.language) == (False, False)
    assert (instruct.projector, instruct.language) == (True, True)


def test_gpt4roi_has_the_settings_of_the_paper() -> None:
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


def test_help_names_every_option_of_a_long_run(regionqa: "Command") -> None:
    ran = regionqa("finetune", "--help")
    assert ran.status == 0
    for option in ("--resume", "--max-minutes", "--shard", "--lora", "--skip-bad", "--settings"):
        assert option in ran.out
