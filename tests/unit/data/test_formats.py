"""Training data in PVIT's, COCO's and our format: records, round trips."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from helpers.documents.training_data import coco, good, problems, save, turns
from regionqa.data.convert import write_training_data
from regionqa.data.files import read_training_data
from regionqa.data.records import DataFormat, Record, TrainingData, Turn
from regionqa.errors import OutputError
from regionqa.language.references import INLINE
from regionqa.regions import Box, Region

if TYPE_CHECKING:
    from conftest import Command

DOCS = Path(__file__).parents[3] / "docs" / "guide" / "data.md"
SIZES = {"cat.jpg": (226, 150), "cup.jpg": (300, 200), "astronaut.jpg": (256, 256)}
SHARED_FOLDER = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


# -- a user has data, and sees it read -------------------------------------------------------------


def test_formats_give_equal_records(regionqa: "Command", photos: Path) -> None:
    box, permille = [22.6, 15, 113, 75], "<Region> <L100><L100> <L500>\n<L500></Region>"
    texts = turns("what is this?", "a cat.")
    pvit = {"image": "cat.jpg", "conversations": turns(f"what is {permille}?", "a cat.")}
    files = (
        save(photos / "o.jsonl", good(regions=[box], conversations=texts)),
        save(photos / "p.json", [pvit]),
        save(photos / "c.json", coco({"id": 1, "bbox": [22.6, 15, 90.4, 60]})),
    )
    boxes = []
    for file in files:
        assert regionqa("data", "check", file).status == 0
        (record,) = read_training_data(file).records
        assert record.image == photos / "cat.jpg"
        assert [turn.answer for turn in record.turns] == ["a cat."]
        boxes.append(record.regions[0].box.xyxy)
    assert boxes == [pytest.approx(box)] * 3


def test_documented_examples_are_read(photos: Path) -> None:
    blocks = re.findall(r"```json\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 3
    formats = []
    for block in blocks:
        data = read_training_data(save(photos / "page.json", block))
        assert data.records
        assert not problems(data)
        formats.append(data.format)
    assert formats == [DataFormat.lines, DataFormat.array, DataFormat.coco]


def test_convert_command(regionqa: "Command", photos: Path) -> None:
    file = save(photos / "c.json", coco({"bbox": [1, 2, 30, 40]}, {"bbox": [1, 2, 0, 40]}))
    out = photos.parent / "mine.jsonl"
    stopped = regionqa("data", "convert", file, "--out", out)
    assert (stopped.status, stopped.out, out.exists()) == (1, "", False)
    assert "--skip-bad" in stopped.err
    ran = regionqa("data", "convert", file, "--out", out, "--skip-bad")
    assert (ran.status, ran.out) == (0, f"1 record written to {out}\n")
    bare = "images without annotations left out: 1, at c.json: gone.jpg"
    assert ran.err.splitlines() == [
        f"regionqa: warning: {file}: {bare}",
        f"regionqa: {file}: 1 bad record left out",
    ]
    assert json.loads(out.read_text()) == {
        "image": "photos/cat.jpg",
        "regions": [{"box": [1, 2, 31, 42], "label": "cat"}],
        "conversations": turns("what is this?", "a cat."),
    }
    clash = regionqa("data", "convert", out, "--out", out)
    assert (clash.status, clash.out) == (2, "")
    assert json.loads(out.read_text())["image"] == "photos/cat.jpg"


def test_reading_imports_no_torch() -> None:
    code = (
        "import sys, regionqa.data.files, regionqa.data.convert; "
        "import regionqa.data.check; "
        "print({'torch', 'transformers', 'onnxruntime'} & {*sys.modules})"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "set()\n"


TEXT = st.lists(
    st.sampled_from(
        ["<region1>", "<region2>", "<Region>", "</Region>", "<L10>", "<L99>", "<image>", " ", "a"]
    )
    | st.text(max_size=3),
    max_size=8,
).map("".join)


# -- PVIT and LLaVA --------------------------------------------------------------------------------


def test_inline_regions_are_numbered_in_order(photos: Path) -> None:
    first, second = "<Region><L0><L100><L500><L1000></Region>", "<Region><L1><L2><L3><L9></Region>"
    texts = turns(f"<image>\nis {first} like {second}?", f"{second} is", f"and {first}?", "no")
    document = {"image": "cup.jpg", "id": "1", "source": "coco", "conversations": texts}
    data = read_training_data(save(photos / "pvit.json", [document, {"image": "cat.jpg"}]))
    (record,) = data.records
    assert record.turns == (
        Turn("is <region1> like <region2>?", "<region2> is"),
        Turn("and <region1>?", "no"),
    )
    assert [region.box.xyxy for region in record.regions] == [
        pytest.approx((0, 20, 150, 200)),
        pytest.approx((0.3, 0.4, 0.9, 1.8)),
    ]
    assert record.where == "pvit.json: record 1"
    assert problems(data) == [
        'pvit.json: record 2: has no conversations; write [{"from": "human", "value": "..."}, ...]'
    ]
    assert read_training_data(save(photos / "p.jsonl", {**document, "source": 1})).bad == 1
    del document["source"]
    assert read_training_data(save(photos / "p.jsonl", document)).records[0].turns == record.turns


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("<Region><L1><L2><L3></Region>", "holds '<Region>', which names no region"),
        ("<Region><L1><L2><L3><L4><L5></Region>", "holds '<Region>', which names no region"),
        ("<Region><L-1><L2><L3><L4></Region>", "holds '<Region>', which names no region"),
        ("<L1><L2><L3><L4>", "holds '<L1>', which names no region"),
        ("<Region><L5><L5><L5><L90></Region>", "region <L5><L5><L5><L90>: box 1.13,0.75,1.13,13.5"),
        ("<Region><L9><L5><L5><L9></Region>", "top; write left, top, right, bottom in per mille"),
        ("<Region><L1100><L5><L1200><L9></Region>", "lies outside the image"),
        ("<Region><L1><L2><L9><L9></Region> <region1>", "both inline and by number"),
    ],
)
def test_malformed_inline_region_is_a_problem(photos: Path, text: str, reason: str) -> None:
    document = {"image": "cat.jpg", "conversations": turns(text, "yes.")}
    data = read_training_data(save(photos / "pvit.json", [document]))
    assert not data.records
    assert reason in problems(data)[0]


def test_misspelt_key_in_an_array_is_a_problem(photos: Path) -> None:
    documents = [good(Regions=[]), good(model="gpt-4", idx=3)]
    data = read_training_data(save(photos / "llava.json", documents))
    assert problems(data) == [
        "llava.json: record 1: unknown key 'Regions'; did you mean 'regions'?"
    ]


def test_record_over_several_lines(photos: Path) -> None:
    data = read_training_data(save(photos / "one.json", json.dumps(good(), indent=2)))
    assert [record.where for record in data.records] == ["one.json: record 1"]


@given(
    st.lists(st.tuples(*[st.integers(0, 9999)] * 4), min_size=1),
    st.text("<L1>Region/ \n"),
    st.sampled_from(["", " ", "\n\t"]),
)
def test_inline_region_notation(boxes: list[tuple[int, ...]], between: str, space: str) -> None:
    written = [
        f"<Region>{space}{space.join(f'<L{number}>' for number in box)}{space}</Region>"
        for box in boxes
    ]
    found = INLINE.findall(between.join(written))
    assert [tuple(map(int, groups)) for groups in found] == boxes


# -- COCO ------------------------------------------------------------------------------------------


def test_coco_boxes_become_questions(photos: Path) -> None:
    document = coco(
        {"id": 1, "bbox": [10, 20, 30, 40], "iscrowd": 0},
        {"id": 2, "bbox": [0, 0, 9, 9], "iscrowd": 1},
        {"id": 3, "bbox": [200, 100, 99, 99], "category_id": 4},
    )
    data = read_training_data(save(photos / "coco.json", json.dumps(document, indent=1)))
    assert (data.format, problems(data)) == (DataFormat.coco, [])
    assert [left.reason for left in data.left_out] == ["crowds", "images without annotations"]
    assert data.records == (
        Record(
            photos / "cat.jpg",
            (Region(Box(10, 20, 40, 60), "cat"),),
            (Turn("what is this?", "a cat."),),
            "coco.json: annotation 1",
        ),
        Record(
            photos / "cat.jpg",
            (Region(Box(200, 100, 226, 150), "Orange"),),
            (Turn("what is this?", "an Orange."),),
            "coco.json: annotation 3",
        ),
    )


def test_bad_coco_annotations_are_named_by_id(photos: Path) -> None:
    bad: list[tuple[dict[str, Any], str]] = [
        ({"bbox": [10, 20, 0, 40]}, "box 10,20,0,40: width and height must be above zero"),
        ({"bbox": [500, 20, 9, 9]}, "lies outside the image, which is 226 x 150 pixels; COCO"),
        ({"bbox": [1, 2, 3]}, "box: four numbers are expected, 3 values found"),
        ({}, "has no 'bbox' and no 'segmentation'; add"),
        ({"bbox": [1, 2, 3, 4], "image_id": 99}, "no image has the id 99"),
        ({"bbox": [1, 2, 3, 4], "image_id": 8}, "gone.jpg: no such file"),
        ({"bbox": [1, 2, 3, 4], "category_id": 99}, "no category has the id 99"),
        ({"bbox": [1, 2, 3, 4], "category_id": None}, "has no category"),
        ({"bbox": [1, 2, 3, 4], "category_id": 5}, "holds '<region>', which names no region"),
    ]
    good_one = {"id": 100, "bbox": [1, 2, 30, 40]}
    document = coco(
        *({"id": number, **each} for number, (each, _) in enumerate(bad)),
        good_one,
        categories=[{"id": 3, "name": "cat"}, {"id": 5, "name": "<region>"}],
    )
    document["annotations"].append("junk")
    data = read_training_data(save(photos / "coco.json", document))
    assert [record.where for record in data.records] == ["coco.json: annotation 100"]
    assert len(data.problems) == len(bad) + 1
    for number, (problem, (_, reason)) in enumerate(zip(problems(data), bad, strict=False)):
        assert problem.startswith(f"coco.json: annotation {number}: ")
        assert reason in problem
        assert problem.count("coco.json") == 1
    assert problems(data)[-1].startswith("coco.json: annotations[10]: box: has no ")


# -- there and back --------------------------------------------------------------------------------

NUMBER = st.floats(-50, 350) | st.integers(-50, 350)
WORDS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)
RECORD = st.builds(
    lambda image, boxes, label, texts: {
        "image": image,
        "regions": [{"box": box, "label": label} if label else box for box in boxes],
        "conversations": turns(*texts, *texts),
    },
    st.sampled_from(sorted(SIZES)),
    st.lists(st.lists(NUMBER, min_size=4, max_size=4).map(sorted), max_size=3),
    st.none() | WORDS,
    st.lists(WORDS | TEXT, min_size=1, max_size=2),
)


def read_back(data: TrainingData, path: Path) -> list[Record]:
    write_training_data(path, data.records)
    again = read_training_data(path)
    assert not problems(again)
    return [
        replace(record, where=first.where)
        for record, first in zip(again.records, data.records, strict=True)
    ]


@SHARED_FOLDER
@given(documents=st.lists(RECORD, min_size=1, max_size=4))
def test_records_round_trip(photos: Path, documents: list[object]) -> None:
    data = read_training_data(save(photos / "mine.json", documents))
    if data.records:
        assert read_back(data, photos / "below.jsonl") == list(data.records)
        assert read_back(data, photos.parent / "above.jsonl") == list(data.records)


@SHARED_FOLDER
@given(boxes=st.lists(st.lists(st.floats(-9, 300, width=32), min_size=4, max_size=4), max_size=5))
def test_coco_round_trips(photos: Path, boxes: list[list[float]]) -> None:
    data = read_training_data(save(photos / "coco.json", coco(*({"bbox": box} for box in boxes))))
    if data.records:
        assert read_back(data, photos / "mine.jsonl") == list(data.records)


def test_other_images_have_absolute_paths(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "out").mkdir()
    data = read_training_data(save(photos / "mine.jsonl", good()))
    assert read_back(data, tmp_path / "out" / "mine.jsonl") == list(data.records)
    monkeypatch.chdir(tmp_path)
    relative = read_training_data(Path("photos/mine.jsonl"))
    assert read_back(relative, Path("here.jsonl")) == list(relative.records)
    with pytest.raises(OutputError, match="there is no folder"):
        write_training_data(tmp_path / "gone" / "mine.jsonl", data.records)
