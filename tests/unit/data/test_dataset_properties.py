"""Public datasets: what holds of every record, whatever the boxes; shards and seeds."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from regionqa.data.convert import write_training_data
from regionqa.data.datasets import open_dataset
from regionqa.data.files import read_training_data
from regionqa.data.records import Record
from regionqa.data.sources import wording
from regionqa.data.sources.kinds import DatasetOptions
from regionqa.data.sources.placement import MIN_SIDE, SIDE, listed

WIDTH, HEIGHT = 320, 200
NUMBER = st.integers(-50, 400) | st.floats(-50, 400, width=32)
BOX = st.tuples(NUMBER, NUMBER, NUMBER, NUMBER)
BOXES = st.lists(BOX, min_size=1, max_size=24)
SLOW_DISK = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("1.jpg", "2.jpg", "m/3.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / name)
    return tmp_path


def converted(path: Path, kind: str, images: Path | None = None, **options: Any) -> list[Record]:
    parsed = DatasetOptions.parse(kind=kind, **options)
    conversion = open_dataset(path, parsed, images or path.parent)
    found = []
    try:
        found = [*conversion.usable(skip_bad=True)]
    except ValueError as error:  # every box was left out
        assert "gave no records" in str(error)
        assert conversion.left_out
    assert conversion.records == len(found)
    assert conversion.regions == sum(len(record.regions) for record in found)
    return found


def check(records: list[Record], boxes: list[Any], limit: int, path: Path) -> None:
    """Boxes are inside the image, large enough and the dataset's own; references exist."""
    own = {tuple(map(float, box)) for box in boxes}
    for record in records:
        assert 1 <= len(record.regions) <= limit
        for region in record.regions:
            box = region.box
            assert box.inside(WIDTH, HEIGHT)
            assert min(box.width * SIDE / WIDTH, box.height * SIDE / HEIGHT) >= MIN_SIDE
            clipped = {
                (max(x, 0), max(y, 0), min(x + w, WIDTH), min(y + h, HEIGHT)) for x, y, w, h in own
            }
            assert box.xyxy in clipped
        for turn in record.turns:
            for number in re.findall(r"<region(\d+)>", turn.question + turn.answer):
                assert 1 <= int(number) <= len(record.regions)
    if records:
        out = path.with_name("out.jsonl")
        write_training_data(out, records)
        again = read_training_data(out)
        assert not again.problems
        assert [r.regions for r in again.records] == [r.regions for r in records]
        assert [r.turns for r in again.records] == [r.turns for r in records]


@settings(suppress_health_check=SLOW_DISK)
@given(boxes=BOXES, limit=st.integers(1, 15), seed=st.integers(0, 3))
def test_visual_genome_records(folder: Path, boxes: list[Any], limit: int, seed: int) -> None:
    regions = [
        {"region_id": n, "x": x, "y": y, "width": w, "height": h, "phrase": f"thing {n}"}
        for n, (x, y, w, h) in enumerate(boxes)
    ]
    path = folder / "region_descriptions.json"
    path.write_text(json.dumps([{"id": 1, "regions": regions}]))
    records = converted(path, "visual-genome", max_regions=limit, seed=seed)
    check(records, boxes, limit, path)
    for record in records:
        for region, turn in zip(record.regions, record.turns, strict=True):
            x, y, _, _ = boxes[int(turn.answer.split()[1])]
            assert (region.box.x0, region.box.y0) == (max(x, 0), max(y, 0))


@settings(suppress_health_check=SLOW_DISK)
@given(boxes=BOXES, limit=st.integers(1, 15), data=st.data())
def test_gqa_records(folder: Path, boxes: list[Any], limit: int, data: st.DataObject) -> None:
    objects = {
        str(n): {"name": "x", "x": x, "y": y, "w": w, "h": h}
        for n, (x, y, w, h) in enumerate(boxes)
    }
    known = st.sampled_from([*objects])
    place = st.sampled_from(["0", "1", "1:3", "4"])
    questions = {
        str(n): {
            "imageId": "1",
            "question": "where is a dog, then?",
            "fullAnswer": f"answer {n}",
            "annotations": {"question": data.draw(st.dictionaries(place, known, max_size=3))},
        }
        for n in range(data.draw(st.integers(1, 25)))
    }
    path = folder / "questions.json"
    path.write_text(json.dumps(questions))
    graphs = folder / "graphs.json"
    graphs.write_text(json.dumps({"1": {"objects": objects}}))
    records = converted(path, "gqa", annotations=str(graphs), max_regions=limit)
    check(records, boxes, limit, path)
    answers = [turn.answer for record in records for turn in record.turns]
    assert len({*answers}) == len(answers)


@settings(suppress_health_check=SLOW_DISK)
@given(boxes=BOXES, limit=st.integers(1, 15), data=st.data())
def test_vcr_records(folder: Path, boxes: list[Any], limit: int, data: st.DataObject) -> None:
    tag = st.lists(st.integers(0, len(boxes) - 1), min_size=1, max_size=3)
    text = st.lists(tag | st.sampled_from(["is", "on", "'", "s", "?"]), min_size=1, max_size=5)
    sample = {
        "objects": [f"thing{n}" for n in range(len(boxes))],
        "img_fn": "m/3.jpg", "metadata_fn": "m/3.json",
        "question": data.draw(text), "answer_choices": [data.draw(text)],
        "rationale_choices": [data.draw(text)], "answer_label": 0, "rationale_label": 0,
    }  # fmt: skip
    path = folder / "train.jsonl"
    path.write_text(json.dumps(sample))
    corners = [[x, y, x + w, y + h, 0.9] for x, y, w, h in boxes]
    (folder / "m" / "3.json").write_text(json.dumps({"boxes": corners}))
    for kind in ("vcr", "vcr-named"):
        records = converted(path, kind, max_regions=limit)
        written = [(x0, y0, x1 - x0, y1 - y0) for x0, y0, x1, y1, _ in corners]
        exact = [
            box for box, (x0, y0, x1, y1, _) in zip(written, corners, strict=True)
            if (box[0] + box[2], box[1] + box[3]) == (x1, y1)
        ]  # fmt: skip
        if len(exact) == len(written):  # else the sum is rounded, and cannot be compared
            check(records, written, limit, path)
        for record in records:
            for name, number in re.findall(
                r"thing(\d+) at <region(\d+)>",
                " ".join(t.question + t.answer for t in record.turns),
            ):
                x, y, _, _, _ = corners[int(name)]
                box = record.regions[int(number) - 1].box
                assert (box.x0, box.y0) == (max(x, 0), max(y, 0))


def write_coco(folder: Path, boxes: list[Any]) -> Path:
    document = {
        "images": [{"id": 1, "file_name": "1.jpg"}],
        "annotations": [
            {"id": n, "image_id": 1, "category_id": 1, "bbox": box} for n, box in enumerate(boxes)
        ],
        "categories": [{"id": 1, "name": "thing"}],
    }
    return write(folder / "instances.json", document)


def write_mdetr(folder: Path, boxes: list[Any]) -> Path:
    numbers = range(len(boxes))
    document = {
        "images": [
            {"id": n, "file_name": "1.jpg", "original_id": 1, "caption": f"it is {n}"}
            for n in numbers
        ],
        "annotations": [{"image_id": n, "bbox": boxes[n]} for n in numbers],
    }
    return write(folder / "finetune_refcoco_train.json", document)


def write_objects(folder: Path, boxes: list[Any]) -> Path:
    things = [{"x": x, "y": y, "w": w, "h": h, "names": ["thing"]} for x, y, w, h in boxes]
    return write(folder / "objects.json", [{"image_id": 1, "objects": things}])


def write_pointing(folder: Path, boxes: list[Any]) -> Path:
    keys = ("x", "y", "width", "height")
    questions = [
        {"question": "Which?", "answer": n, "multiple_choices": [*range(max(0, n - 3), n)]}
        for n in range(len(boxes))
    ]
    document = {
        "boxes": [
            {"box_id": n, **dict(zip(keys, box, strict=True))} for n, box in enumerate(boxes)
        ],
        "images": [{"filename": "1.jpg", "split": "train", "qa_pairs": questions}],
    }
    return write(folder / "dataset_v7w_pointing.json", document)


def write_osprey(folder: Path, boxes: list[Any]) -> Path:
    common = {"file_name": "1.jpg", "annotation": [{"bbox": box} for box in boxes]}
    said = [
        {"from": "human", "value": f"is <region{len(boxes)}> in <region1>?"},
        {"from": "gpt", "value": "<region1> is."},
    ]
    told = [f"<region{n}>: thing" for n in range(1, len(boxes) + 1)]
    return write(
        folder / "osprey.json", [{**common, "conversations": said}, {**common, "description": told}]
    )


def write_flickr(folder: Path, boxes: list[Any]) -> Path:
    items = "".join(
        f"<object><name>{n}</name><bndbox><xmin>{x + 1}</xmin><ymin>{y + 1}</ymin>"
        f"<xmax>{x + w + 1}</xmax><ymax>{y + h + 1}</ymax></bndbox></object>"
        for n, (x, y, w, h) in enumerate(boxes)
    )
    phrases = " ".join(f"[/EN#{n}/other thing {n}]" for n in range(len(boxes)))
    for name, text in (
        ("Annotations/1.xml", f"<annotation>{items}</annotation>"),
        ("Sentences/1.txt", phrases),
        ("train.txt", "1"),
    ):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    return folder


def write(path: Path, document: object) -> Path:
    path.write_text(json.dumps(document))
    return path


WRITERS: dict[str, Callable[[Path, list[Any]], Path]] = {
    "coco": write_coco,
    "refcoco": write_mdetr,
    "refcocog": write_mdetr,
    "visual-genome-objects": write_objects,
    "visual7w": write_pointing,
    "osprey": write_osprey,
    "flickr30k-entities": write_flickr,
}
WHOLE = st.integers(-50, 400)
"""Whole numbers, of which sums are exact."""


@pytest.mark.parametrize("kind", [*WRITERS])
@settings(max_examples=25, deadline=None, suppress_health_check=SLOW_DISK)
@given(
    boxes=st.lists(st.tuples(WHOLE, WHOLE, WHOLE, WHOLE), min_size=1, max_size=24),
    limit=st.integers(1, 15),
)
def test_records_of_every_kind(folder: Path, kind: str, boxes: list[Any], limit: int) -> None:
    path = WRITERS[kind](folder, boxes)
    records = converted(path, kind, folder, max_regions=limit)
    check(records, boxes, limit, folder / "any")


@settings(max_examples=15, deadline=None, suppress_health_check=SLOW_DISK)
@given(count=st.integers(1, 9), units=st.integers(1, 12), seed=st.integers(0, 9))
def test_shards_together_are_the_whole(folder: Path, count: int, units: int, seed: int) -> None:
    region = {"x": 1, "y": 1, "width": 50, "height": 50, "phrase": "a thing"}
    described = [{"id": 1 + n % 2, "regions": [region] * (n + 1)} for n in range(units)]
    path = folder / "region_descriptions.json"
    path.write_text(json.dumps(described))
    whole = converted(path, "visual-genome", seed=seed, max_regions=4)
    parts = [
        record
        for number in range(1, count + 1)
        for record in converted(
            path, "visual-genome", seed=seed, max_regions=4, shard=f"{number}/{count}"
        )
    ]
    assert sorted(map(repr, parts)) == sorted(map(repr, whole))


WORD = st.text("ab", min_size=1, max_size=3)


@given(st.lists(WORD | st.sampled_from([".", ",", "(", ")", "'s", "n't"]), max_size=8))
def test_sentences_keep_every_word(words: list[str]) -> None:
    text = wording.sentence(words)
    assert text.replace(" ", "") == "".join(words)
    assert not re.search(r" [.,)]|\( |  ", text)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("She is n't here , is she ?", "She isn't here, is she?"),
        ("the man ' s ( red ) hat", "the man's (red) hat"),
        ("he said ' no ' loudly", "he said ' no ' loudly"),
        ("", ""),
    ],
)
def test_sentence(words: str, text: str) -> None:
    assert wording.sentence(words.split()) == text


def test_listed() -> None:
    assert [listed(["a"]), listed(["a", "b"]), listed([*"abc"])] == ["a", "a and b", "a, b and c"]
