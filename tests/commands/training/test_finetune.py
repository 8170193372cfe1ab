"""`regionqa finetune`: from records and a model to a trained model and its files."""

import hashlib
import io
import json
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
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from helpers.tiny_models import BLUE, RED, ROWS, log_of
from regionqa.bundles.store import Bundle, open_bundle
from regionqa.cli import main
from regionqa.finetune import rehearsal

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
        """The folder of the run's log and settings."""
        return self.root / "training"

    @property
    def provenance(self) -> Any:
        """The card's [provenance] table."""
        return open_bundle(self.root).card.provenance


@pytest.fixture(scope="module")
def trained(
    tiny: Tiny, things: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Trained]:
    """Every row of PVIT's table 1, trained to convergence once."""

    def train(row: str) -> Trained:
        out = tmp_path_factory.mktemp(row) / "mine"
        words = [
            "finetune", "--data", things, "--model", tiny(row).root, "--out", out, "--steps", STEPS,
            "--batch", 8, "--learning-rate", 0.01, "--evaluate-every", 25,
            "--held-out-share", 0.25, *CPU,
        ]  # fmt: skip
        stdout, stderr = io.StringIO(), io.StringIO()
        with redirect_stdout(stdout), redirect_stderr(stderr):
            status = main([str(word) for word in words])
        return Trained(status, stdout.getvalue(), stderr.getvalue(), out)

    return cache(train)


def test_finetuned_model_answers(
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
def test_models_with_regions_learn_to_distinguish_objects(
    trained: Callable[[str], Trained], row: str
) -> None:
    """Each image has one of both, so a model without regions gets at most half right."""
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


def test_progress_output(trained: Callable[[str], Trained], things: Path) -> None:
    lines = trained("levels").err.splitlines()
    assert lines[0] == f"{things}: 48 records of 24 images"
    batch_line = "effective batch 8 = 8 x 1 accumulated x 1 process"
    assert lines[1] == f"align: 36 records, {STEPS} steps; {batch_line}"
    assert f"instruct: 36 records, {STEPS} steps; {batch_line}" in lines
    assert any(line.startswith(f"instruct {STEPS}/{STEPS}: held-out loss") for line in lines)
    assert lines[-1].endswith("% of 12 held-out answers word for word")


def test_card_records_provenance(
    trained: Callable[[str], Trained], tiny: Tiny, things: Path
) -> None:
    ran = trained("levels")
    card = open_bundle(ran.root).card
    base = tiny("levels").card
    provenance = card.provenance
    assert provenance["base"] == {"name": "tiny-levels", "revision": base.revision}
    assert provenance["licence"] == base.provenance["licence"]
    assert provenance["data"] == [
        {
            "file": "things.jsonl",
            "sha256": hashlib.sha256(things.read_bytes()).hexdigest(),
            "use": "training",
            "records": 48,
            "left_out": 0,
        }
    ]
    align, instruct = provenance["stages"]
    assert (align["name"], instruct["name"]) == ("align", "instruct")
    for stage in (align, instruct):
        assert stage["steps"] == STEPS
        assert (stage["settings"]["learning_rate"], stage["settings"]["batch"]) == (0.01, 8)
    last = {entry["stage"]: entry for entry in log_of(ran.root) if not entry.get("held_out")}
    assert instruct["training_loss"] == round(last["instruct"]["loss"], 4)
    assert 0.8 <= instruct["held_out_answers_right"] <= 1
    assert instruct["held_out_loss"] < align["held_out_loss"]
    assert provenance["held_out_questions"] == 12
    assert provenance["held_out_accuracy"] >= 80
    assert (
        provenance["measured"]
        == f"{provenance['held_out_accuracy']} % of 12 held-out answers word for word"
    )
    assert provenance["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert {"regionqa", "transformers", "accelerate", "peft"} <= provenance["versions"].keys()
    assert card.name == "mine"
    assert card.revision != base.revision


def test_training_folder_contents(trained: Callable[[str], Trained]) -> None:
    ran = trained("levels")
    names = {path.name for path in ran.training.iterdir()}
    files = {"settings.toml", "log.jsonl", "records.json", "curves.png", "tensorboard"}
    assert names == files, "no checkpoints"
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


def test_tensorboard_curves(trained: Callable[[str], Trained]) -> None:
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


def test_finetune_a_finetuned_model(
    trained: Callable[[str], Trained], things: Path, regionqa: "Command", tmp_path: Path,
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
    provenance = open_bundle(tmp_path / "next").card.provenance
    assert provenance["base"] == {"name": "mine", "revision": open_bundle(base.root).card.revision}
    assert "of its answers are replayed against forgetting" in ran.err
    rehearsed = [
        json.loads(line)["conversations"][1]["value"]
        for line in (tmp_path / "next" / "training" / "rehearsal.jsonl").read_text().splitlines()
    ]
    assert len(rehearsed) == 4 * 18, "boxes of every image that is not held out"
    assert {RED, BLUE} >= set(rehearsed), "it knows nothing else to say"


def test_untrained_base_is_not_rehearsed(
    trained: Callable[[str], Trained],
    things: Path,
    regionqa: "Command",
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rehearsal, "rehearse", lambda *_: ())
    ran = regionqa(
        "finetune", "--data", things, "--model", trained("none").root, "--out", tmp_path / "next",
        *SHORT,
    )  # fmt: skip
    assert ran.status == 0, ran.err


def test_finetune_on_coco(tiny: Tiny, things: Path, regionqa: "Command", tmp_path: Path) -> None:
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
