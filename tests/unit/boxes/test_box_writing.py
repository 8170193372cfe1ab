"""Regions written as box files of every format."""

import json
import re
import tempfile
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.documents.box_files import regions, save, values
from regionqa.boxes.entries import (
    ImageRegions,
)
from regionqa.boxes.files import FORMATS, read_boxes, write_boxes
from regionqa.boxes.formats.coco import CocoDocument
from regionqa.errors import BoxFileError, OutputError
from regionqa.regions import Box, Region

FOLDERS = ("voc", "yolo", "labelme")
SUFFIXES = {"csv": ".csv", "cvat": ".xml", "requests": ".jsonl", "huggingface": ".jsonl"}


IMAGES = [{"id": 1, "file_name": "a.jpg"}]


# ---- writing ----

NAMES = st.lists(
    st.text("ab é,;'\"%#?&=+", min_size=1).map(str.strip).filter(bool), min_size=1, max_size=3
).map(lambda parts: "/".join(parts) + ".jpg")
LABELS = st.none() | st.text(
    st.characters(blacklist_categories=["C", "Z"]) | st.just(" "), min_size=1
).map(str.strip).filter(bool)

SCORES = st.none() | st.floats(0, 1).map(lambda score: round(score, 4))


@st.composite
def images_with_regions(draw: st.DrawFn) -> ImageRegions:
    width, height = draw(st.integers(4, 5000)), draw(st.integers(4, 5000))

    def span(length: int) -> tuple[float, float]:
        start = draw(st.floats(0, length - 3))
        return start, start + draw(st.floats(2, length - start))

    found = []
    for _ in range(draw(st.integers(0, 3))):
        (x0, x1), (y0, y1) = span(width), span(height)
        found.append(Region(Box(x0, y0, x1, y1), draw(LABELS), draw(SCORES)))
    return ImageRegions(draw(NAMES), width, height, tuple(found))


SOME_IMAGES = st.lists(
    images_with_regions(), min_size=1, max_size=3, unique_by=lambda image: image.name
)


@pytest.mark.parametrize("format", FORMATS)
@settings(max_examples=30, deadline=None)
@given(images=SOME_IMAGES)
def test_formats_round_trip(format: str, images: list[ImageRegions]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        suffix = SUFFIXES.get(format, ".json")
        path = Path(folder) / ("boxes" if format in FOLDERS else f"boxes{suffix}")
        write_boxes(path, images, format)
        found = read_boxes(path)
    assert found.format == format
    assert len(found.images) == len(images)
    for image in images:
        again = regions(found.boxes_for(image.name), image.width, image.height)
        assert [region.label for region in again] == [r.label for r in image.regions]
        for region, original in zip(again, image.regions, strict=True):
            assert region.box.xyxy == pytest.approx(original.box.xyxy, abs=1e-4)


def one(name: str, *found: Region) -> ImageRegions:
    return ImageRegions(name, 200, 100, found)


CAT_REGION = Region(Box(10, 20, 110, 70), "cat")


@pytest.mark.parametrize(
    ("format", "file", "text"),
    [
        ("plain", "", '{"x/a.jpg": [{"box": [10, 20, 110, 70], "label": "cat"}]}\n'),
        ("csv", "", "image,x0,y0,x1,y1,label\nx/a.jpg,10,20,110,70,cat\n"),
        ("yolo", "x/a.txt", "0 0.300000000 0.450000000 0.500000000 0.500000000\n"),
        ("yolo", "classes.txt", "cat\n"),
    ],
)
def test_written_text_is_pinned(tmp_path: Path, format: str, file: str, text: str) -> None:
    write_boxes(tmp_path / "out", [one("x/a.jpg", CAT_REGION)], format)
    assert (tmp_path / "out" / file).read_text() == text


def test_coco_is_written_with_sizes_and_categories(tmp_path: Path) -> None:
    images = [one("a.jpg", Region(Box(0, 0, 5, 5)), CAT_REGION), one("b.jpg", CAT_REGION)]
    write_boxes(tmp_path / "coco.json", images, "coco")
    document = json.loads((tmp_path / "coco.json").read_text())
    assert document["images"][1] == {"id": 2, "file_name": "b.jpg", "width": 200, "height": 100}
    assert document["categories"] == [{"id": 1, "name": "cat"}]
    assert [a["id"] for a in document["annotations"]] == [1, 2, 3]
    assert document["annotations"][2] == {
        "id": 3,
        "image_id": 2,
        "category_id": 1,
        "bbox": [10, 20, 100, 50],
        "area": 5000,
        "iscrowd": 0,
    }
    assert "category_id" not in document["annotations"][0]


def test_coco_states_sizes_and_captions(tmp_path: Path) -> None:
    images = [{"id": 1, "file_name": "a.jpg", "width": 20, "height": 10}, {**IMAGES[0], "id": 2}]
    fields = {"id": 9, "image_id": 1, "caption": "a cat", "iscrowd": 0}
    document = CocoDocument.load(
        save(tmp_path / "c.json", {"images": images, "annotations": [fields, 5]})
    )
    assert document.images["1"].size == (20, 10)
    with pytest.raises(BoxFileError, match="image 2: has no 'width' and 'height'"):
        _ = document.images["2"].size
    first, second = document.annotations()
    assert (first.id, first.caption, first.is_crowd) == (9, "a cat", False)
    assert (first.image.name, first.category_id) == ("a.jpg", None)
    assert (second.id, second.is_crowd, second.index) == (None, False, 1)
    with pytest.raises(BoxFileError, match=r"annotations\[1\] of .*c.json: has no 'caption'"):
        _ = second.caption


@pytest.mark.parametrize(
    ("format", "file", "expected"),
    [
        (
            "labelstudio",
            "",
            [
                {
                    "id": 1,
                    "data": {"image": "x/a%20b.jpg"},
                    "annotations": [
                        {
                            "result": [
                                {
                                    "id": f"1-{number}",
                                    "type": "rectanglelabels",
                                    "from_name": "label",
                                    "to_name": "image",
                                    "original_width": 200,
                                    "original_height": 100,
                                    "image_rotation": 0,
                                    "value": {
                                        "x": 5.0,
                                        "y": 20.0,
                                        "width": 50.0,
                                        "height": 50.0,
                                        "rotation": 0,
                                        "rectanglelabels": ["cat"],
                                    },
                                }
                                for number in (1, 2)
                            ]
                        }
                    ],
                }
            ],
        ),
        (
            "labelme",
            "x/a b.json",
            {
                "version": "5.0.1",
                "flags": {},
                "shapes": [
                    {
                        "label": "cat",
                        "points": [[10, 20], [110, 70]],
                        "group_id": None,
                        "shape_type": "rectangle",
                        "flags": {},
                    }
                ]
                * 2,
                "imagePath": "a b.jpg",
                "imageData": None,
                "imageHeight": 100,
                "imageWidth": 200,
            },
        ),
    ],
)
def test_written_document_follows_the_format(
    tmp_path: Path, format: str, file: str, expected: object
) -> None:
    write_boxes(tmp_path / "out", [one("x/a b.jpg", CAT_REGION, CAT_REGION)], format)
    assert json.loads((tmp_path / "out" / file).read_text()) == expected


def test_written_voc_states_the_size(tmp_path: Path) -> None:
    write_boxes(tmp_path / "out", [one("x/a.jpg", CAT_REGION)], "voc")
    root = ElementTree.parse(tmp_path / "out/x/a.xml").getroot()
    assert [(e.tag, e.text) for e in root.findall("size/*")] == [
        ("width", "200"),
        ("height", "100"),
        ("depth", "3"),
    ]
    assert [e.text for e in root.findall("object/bndbox/*")] == ["10", "20", "110", "70"]


@pytest.mark.parametrize("name", ["/abs/a.jpg", "../../abs/a.jpg", "C:\\abs\\a.jpg"])
@pytest.mark.parametrize("format", FOLDERS)
def test_files_stay_inside_their_folder(tmp_path: Path, format: str, name: str) -> None:
    write_boxes(tmp_path / "out", [one(name, CAT_REGION)], format)
    written = {path.stem for path in (tmp_path / "out/abs").iterdir()}
    assert written == {"a"}
    assert len(values(read_boxes(tmp_path / "out").boxes_for(name))) == 1


def test_class_names_at_the_top_of_a_folder(tmp_path: Path) -> None:
    write_boxes(tmp_path, [one("a/b/c/d/e.jpg", CAT_REGION)], "yolo")
    (box,) = read_boxes(tmp_path).boxes_for("e.jpg") or ()
    assert box.label == "cat"


@pytest.mark.parametrize(
    ("format", "images", "message"),
    [
        ("plain", [one("a.jpg"), one("a.jpg")], "a.jpg: is given 2 times"),
        ("plain", [one("./")], "'./': is not the name of an image"),
        ("voc", [one("a\x00.jpg")], "holds a line break or control character"),
        ("yolo", [one("a.jpg", Region(Box(0, 0, 1, 1), "a\nb"))], "'a\\nb': holds a line break"),
        ("voc", [one("a.jpg"), one("a.png")], "a.png: its file a.xml is already taken"),
        ("yolo", [one("classes.jpg")], "classes.jpg: its file classes.txt is already taken"),
    ],
)
def test_unsupported_content_is_refused_before_writing(
    tmp_path: Path, format: str, images: list[ImageRegions], message: str
) -> None:
    with pytest.raises(OutputError, match=re.escape(message)) as error:
        write_boxes(tmp_path / "out", images, format)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_unwritable_path_is_refused(tmp_path: Path) -> None:
    save(tmp_path / "file", "")
    with pytest.raises(OutputError, match=r"out\.json: cannot be written: "):
        write_boxes(tmp_path / "file/out.json", [one("a.jpg")], "plain")
