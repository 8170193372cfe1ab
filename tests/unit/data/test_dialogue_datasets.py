"""Datasets that are conversations already: LLaVA-Instruct, Osprey-724K, PVIT."""

from pathlib import Path
from typing import Any

import pytest

from helpers.datasets.layouts import (
    boxes,
    opened,
    reasons,
    records,
    save_image,
    save_json,
    turns,
)
from regionqa.data.sources import wording
from regionqa.errors import DataError

# -- LLaVA: docs/Data.md of github.com/haotian-liu/LLaVA -----------------------------------------


def test_llava_begins_half_of_the_conversations_with_boxes(tmp_path: Path) -> None:
    save_image(tmp_path / "train2017", "000000000001.png")
    said = [
        {"from": "human", "value": "<image>\nWhat is this?"},
        {"from": "gpt", "value": "A kitchen."},
        {"from": "human", "value": "Why?"},
        {"from": "gpt", "value": "There is an oven."},
    ]
    document: list[object] = [
        {"id": str(n), "image": "000000000001.png", "conversations": said} for n in range(40)
    ]
    path = save_json(tmp_path / "llava_instruct_150k.json", [*document, {"conversations": said}])
    found = {
        "000000000001.png": [
            {"box": [0, 0, 90, 90], "label": "oven"},
            {"box": [5, 5, 6, 6], "label": "dot"},
            {"box": [1, 1, 70, 70]},
            {"box": [9, 9, 60, 70], "label": "cup"},
        ]
    }
    boxes_file = save_json(tmp_path / "detections.json", found)
    conversion = opened(path, "llava-instruct", annotations=str(boxes_file))
    made = records(conversion)
    told = [record for record in made if record.regions]
    assert 8 < len(told) < 32
    assert len(made) == 40
    assert turns(told[0]) == [
        (
            "Some regions of the image, with what they may be: <region1> may be an oven and "
            "<region2> may be a cup. What is this?",
            "A kitchen.",
        ),
        ("Why?", "There is an oven."),
    ]
    assert reasons(conversion) == {
        "boxes below 2 pixels of 224": len(told), "conversations without an image": 1,
    }  # fmt: skip
    assert not any(record.regions for record in records(opened(path, "llava-instruct")))


# -- Osprey-724K: osprey/datasets/osprey_724k.py of github.com/CircleRadon/Osprey -----------------


def osprey(**fields: Any) -> dict[str, Any]:
    mask = [[10.0, 20.0, 40.0, 20.0, 40.0, 60.0, 10.0, 60.0]]
    return {
        "id": 1, "file_name": "COCO_train2014_000000000005.png", "height": 224, "width": 224,
        "annotation": [
            {"bbox": [0, 0, 50, 60], "segmentation": mask, "area": 9},
            {"bbox": [5, 5, 1, 1], "segmentation": mask, "area": 9},
            {"segmentation": mask},
        ],
    } | fields  # fmt: skip


def said(*texts: str) -> list[dict[str, str]]:
    roles = ("human", "gpt")
    return [{"from": roles[n % 2], "value": text} for n, text in enumerate(texts)]


def test_osprey_regions_are_numbered_anew_where_one_is_left_out(tmp_path: Path) -> None:
    save_image(tmp_path / "train2017", "000000000005.png")
    samples = [
        osprey(conversations=said("What is <region3> to <region1>?", "<region3> is its lid.")),
        osprey(conversations=said("What is <region2>?", "A dot.")),
        osprey(conversations=said("What goes on?", "Not much.")),
    ]
    path = save_json(tmp_path / "osprey_conversation.json", samples)
    conversion = opened(path, "osprey")
    first, second = records(conversion)
    assert turns(first) == [("What is <region2> to <region1>?", "<region2> is its lid.")]
    assert boxes(first) == boxes(second) == [(0, 0, 50, 60), (10, 20, 40, 60)]
    assert reasons(conversion) == {
        "boxes below 2 pixels of 224": 3, "conversations about a region that has no usable box": 1,
    }  # fmt: skip
    short = save_json(tmp_path / "osprey_short_form.json", samples[2:])
    assert turns(records(opened(short, "osprey"))[0])[0][0] == (
        "What goes on? Answer in a word or a short phrase."
    )
    limited = opened(path, "osprey", max_regions=1)
    (only,) = records(limited)
    assert boxes(only) == [(0, 0, 50, 60)]
    assert reasons(limited)["conversations about more regions than a record has"] == 1


def test_osprey_descriptions_belong_to_their_regions(tmp_path: Path) -> None:
    save_image(tmp_path, "000000000005.png")
    texts = ["<region1>: A cup: red.", "<region2>: A dot.", "A lid."]
    path = save_json(tmp_path / "osprey_detail_description.json", [osprey(description=texts)])
    (record,) = records(opened(path, "osprey"))
    assert [answer for _, answer in turns(record)] == ["A cup: red.", "A lid."]
    asked = [{text.format(region=f"<region{n}>") for text in wording.DETAIL} for n in (1, 2)]
    assert all(q in known for (q, _), known in zip(turns(record), asked, strict=True))
    assert [len(r.regions) for r in records(opened(path, "osprey", max_regions=1))] == [1, 1]


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"conversations": said("What is <region4>?", "No.")}, "names region 4, but has 3"),
        ({"conversations": said("What?")}, "is not questions from human and answers from gpt"),
        ({"description": ["one"]}, "has 1 descriptions of 3 regions"),
        ({"annotation": 3}, "is not laid out as the dataset documents it: expected `array`"),
    ],
)
def test_malformed_osprey_samples(tmp_path: Path, fields: dict[str, Any], reason: str) -> None:
    save_image(tmp_path, "000000000005.png")
    path = save_json(tmp_path / "osprey.json", [osprey(**fields)])
    with pytest.raises(DataError, match=f"osprey.json: record 1: {reason}"):
        records(opened(path, "osprey"))


# -- PVIT: the released data's mapping.yaml, as github.com/PVIT-official/PVIT reads it ------------


@pytest.fixture
def released(tmp_path: Path) -> Path:
    save_image(tmp_path / "images" / "train2017", "5.png", 1000, 500)
    inline = "<Region><L100><L120><L480><L600></Region>"
    one = said(f"<image>\nWhat is {inline}?", f"{inline} is a cat.")
    two = said(f"{inline} and <Region><L0><L0><L9><L90></Region>?", "Two things.")
    folder = tmp_path / "pvit"
    save_json(folder / "1_small_objects.json", [{"image": "5.png", "conversations": one}])
    save_json(folder / "5_multi_objects.json", [{"image": "5.png", "conversations": two}])
    (folder / "mapping.yaml").write_text(
        "image_paths: {coco: images/train2017}\n"
        "mapping: {1_small_objects: coco, 5_multi_objects: coco}\n"
        "count: {1_small_objects: 1, 5_multi_objects: 1}\n"
    )
    return folder


def test_pvit_mapping_names_files_and_images(released: Path) -> None:
    first, second = records(opened(released, "pvit", released.parent))
    assert turns(first) == [("What is <region1>?", "<region1> is a cat.")]
    assert boxes(first) == [(100, 60, 480, 300)]
    assert len(second.regions) == 2
    limited = opened(released, "pvit", released.parent, max_regions=1)
    assert len(records(limited)) == 1
    assert reasons(limited) == {"conversations about more regions than a record has": 1}
    with pytest.raises(DataError, match=r"images/train2017/5\.png: no such file"):
        records(opened(released, "pvit"))


@pytest.mark.parametrize(
    ("mapping", "reason"),
    [
        (None, "there is no such file"),
        ("image_paths: [", "is not PVIT's mapping of image_paths and files"),
        ("image_paths: {}", "missing required field `mapping`"),
        ("image_paths: {}\nmapping: {5_multi_objects: coco}", "names no folder of images 'coco'"),
        ("image_paths: {a: b}\nmapping: {absent: a}", r"absent\.json: there is no such file"),
    ],
)
def test_malformed_pvit_mapping(released: Path, mapping: str | None, reason: str) -> None:
    path = released / "mapping.yaml"
    path.unlink()
    if mapping is not None:
        path.write_text(mapping)
    with pytest.raises(DataError, match=reason) as caught:
        records(opened(released, "pvit", released.parent))
    assert "\n" not in str(caught.value)
