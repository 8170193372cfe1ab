"""`regionqa eval caption`: caption files, and metrics against published and worked values."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from helpers.evaluation_files import answered, coco, grey, metric_values
from regionqa.bundles.store import Bundle
from regionqa.engine import Engine
from regionqa.errors import DataError
from regionqa.evaluation.tasks.captions import read_captions

if TYPE_CHECKING:
    from conftest import Command

CAPTIONS = ("a man is speaking", "rain falls")
REFERENCES = (
    ("a man speaks.", "someone speaks.",
     "a man is speaking while a bird is chirping in the background"),
    ("rain is falling hard on a surface",),
)  # fmt: skip
"""The example of aac-metrics' README, which publishes what the COCO evaluation gives for it."""


@pytest.fixture
def folder(tmp_path: Path, starter: Bundle) -> Path:
    grey(tmp_path, "a.jpg", "b.jpg")
    records = [
        {"image": "a.jpg", "captions": list(REFERENCES[0]), "question": "what is heard?"},
        {"image": "b.jpg", "regions": [[0, 0, 50, 50]], "captions": REFERENCES[1][0]},
    ]
    (tmp_path / "c.jsonl").write_text("".join(json.dumps(each) + "\n" for each in records))
    asked = ("what is heard?", starter.card.prompt.region_question)
    boxes: list[list[list[float]]] = [[], [[0, 0, 50, 50]]]
    rows = zip(("a.jpg", "b.jpg"), boxes, asked, CAPTIONS, strict=True)
    answered(tmp_path / "kept.jsonl", starter, list(rows))
    return tmp_path


def test_captions_are_scored_against_references(regionqa: "Command", folder: Path) -> None:
    out = folder / "out.json"
    ran = regionqa(
        "eval", "caption", folder / "c.jsonl", "--answers", folder / "kept.jsonl", "--json", out
    )
    assert (ran.status, ran.err) == (0, "")
    assert ran.lines[2].split() == ["CIDEr-D", "96.14", "55.87", "to", "136.41", "2"]
    document = json.loads(out.read_text())
    found = metric_values(document)
    assert found["bleu_1"] == pytest.approx(42.78, abs=0.01)
    assert found["rouge_l"] == pytest.approx(48.71, abs=0.01)
    assert found["words"] == 3
    assert metric_values(document, "kind, CIDEr-D") == pytest.approx(
        {"image": 136.41, "region": 55.87}, abs=0.01
    )
    assert "meteor" not in found


def test_objects_that_are_not_in_the_image(
    regionqa: "Command", tmp_path: Path, starter: Bundle
) -> None:
    """A cat that is annotated, a man in a reference, a dog in neither; b.jpg has no entry."""
    grey(tmp_path, "a.jpg", "b.jpg", "c.jpg")
    boxes = coco(tmp_path / "boxes.json", [("a.jpg", (0, 0, 50, 50), "cat")], ["dog", "person"])
    table = json.loads(boxes.read_text())
    table["images"].append({"id": 9, "file_name": "c.jpg"})
    boxes.write_text(json.dumps(table))
    references = {"a.jpg": ["a man with a pet."], "b.jpg": ["a dog."], "c.jpg": ["a wall."]}
    (tmp_path / "c.json").write_text(json.dumps(references))
    replies = {"a.jpg": "a man with a kitten.", "b.jpg": "a cat.", "c.jpg": "two dogs and a dog."}
    question = starter.card.prompt.image_question
    rows = [(image, list[list[float]](), question, reply) for image, reply in replies.items()]
    answered(tmp_path / "kept.jsonl", starter, rows)
    ran = regionqa(
        "eval", "caption", tmp_path / "c.json", "--boxes", boxes, "--answers",
        tmp_path / "kept.jsonl", "--json", tmp_path / "out.json",
    )  # fmt: skip
    assert ran.status == 0
    assert f"{boxes}: captions of images without an entry left out: 1, at b.jpg" in ran.err
    document = json.loads((tmp_path / "out.json").read_text())
    found = metric_values(document)
    assert (found["chair_s"], found["unannotated"]) == (50, 100)
    assert found["chair_i"] == pytest.approx(100 / 3, abs=1e-3)
    assert document["listings"]["not annotated"] == [
        {"image": "a.jpg", "not annotated": "person", "nor in references": "-",
         "said": "a man with a kitten."},
        {"image": "c.jpg", "not annotated": "dog", "nor in references": "dog",
         "said": "two dogs and a dog."},
    ]  # fmt: skip
    assert "captions that name an object which is not annotated" in ran.lines


def test_questions_are_those_of_the_card(
    regionqa: "Command", photos: Path, starter: Bundle, shared_engine: Engine
) -> None:
    (photos / "c.json").write_text(json.dumps({"cat.jpg": ["a cat.", "the cat"], "7": ["x"]}))
    ran = regionqa(
        "eval", "caption", photos / "c.json", "--answers", photos / "kept.jsonl", "--device", "cpu"
    )
    assert ran.status == 3
    assert "000000000007.jpg: no such file" in ran.err.replace(str(photos) + "/", "")
    kept = json.loads((photos / "kept.jsonl").read_text().splitlines()[0])
    assert kept["question"] == starter.card.prompt.image_question


def test_coco_captions_are_grouped_by_image(tmp_path: Path) -> None:
    table = {
        "images": [{"id": 1, "file_name": "a.jpg"}, {"id": 2, "file_name": "b.jpg"}],
        "annotations": [
            {"image_id": 2, "caption": "one."},
            {"image_id": 1, "caption": "two."},
            {"image_id": 2, "caption": "three."},
        ],
    }
    (tmp_path / "c.json").write_text(json.dumps(table))
    found = read_captions(tmp_path / "c.json", tmp_path)
    assert [(each.image, each.captions) for each in found] == [
        ("b.jpg", ("one.", "three.")), ("a.jpg", ("two.",)),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "has no captions"),
        ('{"image": 3}', "'image' is 3; write a name"),
        ('{"image": "a.jpg"}', "its captions are None, not a list of strings"),
        ('{"image": "a.jpg", "captions": ["..."]}', r"caption '\.\.\.' has no words"),
        ('{"image": "a.jpg", "captions": ["a"], "kind": 3}', "'kind' is 3; write text"),
        ("[1]", "record 1: is 1, not an object"),
        ("[1", "is not valid JSON"),
        ('{"images": [], "annotations": [{"image_id": 3, "caption": "a"}]}', "no image has the id"),
    ],
)
def test_malformed_file_error_names_the_place(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "c.json").write_text(text)
    with pytest.raises(DataError, match=message):
        read_captions(tmp_path / "c.json", tmp_path)


def test_missing_meteor_says_what_to_install(
    regionqa: "Command", folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    ran = regionqa(
        "eval", "caption", folder / "c.jsonl", "--answers", folder / "kept.jsonl", "--meteor"
    )
    assert ran.status == 2
    assert "--meteor needs Java, which is not installed: pip install 'regionqa[meteor]'" in ran.err
