"""Sizes of images as box files state them, and as the images are."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from regionqa.boxes.entries import BoxEntry
from regionqa.boxes.files import read_boxes
from regionqa.boxes.sizes import SizeChange, SizeCheck, scaled_box, size_change
from regionqa.errors import BoxError
from regionqa.regions import BoxFormat, BoxUnits, WrittenBox

RESULT = {"type": "choices", "original_width": 200, "original_height": 100, "value": {}}
STATED = {
    "coco.json": {
        "images": [{"id": 1, "file_name": "a.jpg", "width": 200, "height": 100}],
        "annotations": [],
    },
    "a.xml": "<annotation><filename>a.jpg</filename><size><width>200</width><height>100</height>"
    "</size></annotation>",
    "labelme.json": {"imagePath": "a.jpg", "shapes": [], "imageWidth": 200, "imageHeight": 100},
    "studio.json": [{"data": {"image": "a.jpg"}, "annotations": [{"result": [RESULT]}]}],
    "rows.csv": "filename,width,height,class,xmin,ymin,xmax,ymax\na.jpg,200,100,c,1,2,3,4\n",
    "wide.csv": "file,x,y,width,height,img_width,img_height\na.jpg,1,2,3,4,200.0,100\n",
}
UNSTATED = {
    "coco.json": {
        "images": [{"id": 1, "file_name": "a.jpg", "width": 0, "height": None}],
        "annotations": [],
    },
    "a.xml": "<annotation><filename>a.jpg</filename><size><width>0</width><height>0</height>"
    "</size></annotation>",
    "rows.csv": "file,x,y,width,height\na.jpg,1,2,3,4\n",
    "plain.json": {"a.jpg": [[1, 2, 3, 4]]},
}


def save(path: Path, content: object) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


@pytest.mark.parametrize("name", STATED)
def test_stated_size_is_read(tmp_path: Path, name: str) -> None:
    (entry,) = read_boxes(save(tmp_path / name, STATED[name])).entries
    assert entry.size == (200, 100)


@pytest.mark.parametrize("name", UNSTATED)
def test_zero_and_missing_sizes_are_no_sizes(tmp_path: Path, name: str) -> None:
    (entry,) = read_boxes(save(tmp_path / name, UNSTATED[name])).entries
    assert entry.size is None


@pytest.mark.parametrize(
    ("stated", "actual", "change"),
    [
        ((200, 133), (200, 133), SizeChange.none),
        ((1600, 1064), (200, 133), SizeChange.scaled),
        ((200, 133), (1600, 1064), SizeChange.scaled),
        ((4032, 3024), (640, 480), SizeChange.scaled),
        ((1919, 1079), (640, 359), SizeChange.scaled),  # 359.85, cut off
        ((300, 1), (100, 1), SizeChange.scaled),  # a third of a pixel is one at least
        ((100, 1), (300, 1), SizeChange.scaled),
        ((200, 133), (133, 200), SizeChange.turned),
        ((1600, 1064), (133, 200), SizeChange.turned),
        ((200, 133), (200, 134), SizeChange.other),
        ((1600, 1064), (640, 640), SizeChange.other),
    ],
)
def test_sizes_are_compared(
    stated: tuple[int, int], actual: tuple[int, int], change: SizeChange
) -> None:
    assert size_change(stated, actual) is change


@given(width=st.integers(50, 5000), height=st.integers(50, 5000), factor=st.floats(0.05, 4))
def test_a_resized_image_has_the_same_shape(width: int, height: int, factor: float) -> None:
    actual = (max(1, int(width * factor)), max(1, int(height * factor)))
    assert size_change((width, height), actual) in (SizeChange.scaled, SizeChange.none)


@pytest.mark.parametrize("format", BoxFormat)
def test_scaled_boxes_cover_the_same_part_of_the_image(format: BoxFormat) -> None:
    box = WrittenBox((20, 30, 40, 50), format)
    before = box.resolve(200, 100).box
    after = scaled_box(box, (200, 100), (100, 25)).resolve(100, 25).box
    assert after.xyxy == (before.x0 / 2, before.y0 / 4, before.x1 / 2, before.y1 / 4)
    fraction = WrittenBox((0.1, 0.1, 0.2, 0.2), format, BoxUnits.fraction)
    assert scaled_box(fraction, (200, 100), (100, 25)) == fraction


def entry(size: tuple[int, int] | None, units: BoxUnits = BoxUnits.pixel) -> BoxEntry:
    return BoxEntry("a.jpg", (WrittenBox((1, 2, 3, 4), units=units),), size=size)


def test_a_warning_says_how_sizes_differ() -> None:
    for size, units, expected in (
        ((20, 10), BoxUnits.pixel, None),
        (None, BoxUnits.pixel, None),
        ((40, 20), BoxUnits.pixel, "so boxes may be misplaced; --scale-boxes scales them"),
        ((40, 20), BoxUnits.fraction, None),
        ((10, 20), BoxUnits.fraction, "width and height are exchanged, as by an EXIF rotation"),
        ((10, 10), BoxUnits.pixel, "and so do the aspect ratios"),
    ):
        check = SizeCheck(Path("b.json"))
        assert check.fit(entry(size, units), "a.jpg", (20, 10)) == entry(None, units).boxes
        check.finish()
        summary = "".join(check.summary)
        assert bool(summary) is (expected is not None)
        assert (expected or "") in summary


def test_images_that_differ_are_counted_once_each() -> None:
    lines: list[str] = []
    loud, quiet = SizeCheck(Path("b.json"), warn=lines.append), SizeCheck(Path("b.json"))
    many = "b.json: 2 images in all differ in size from what it states"
    first = "b.json: states 40 x 20 for a.jpg, which is 20 x 10: the sizes differ, "
    summaries: list[str] = []
    for image, end in (("a.jpg", []), ("a.jpg", []), ("b.jpg", [many])):
        lines_before = list(lines)
        for check in (loud, quiet):
            check.fit(entry((40, 20)), image, (20, 10))
            check.finish()
        assert lines[len(lines_before) :] == [*([] if lines_before else [loud.first]), *end]
        assert loud.summary == quiet.summary
        summaries += loud.summary
    assert loud.first.startswith(first)
    assert summaries == [loud.first, loud.first, f"{loud.first} (2 such images)"]


def test_boxes_without_a_size_cannot_be_scaled() -> None:
    check = SizeCheck(Path("b.json"), scale=True)
    with pytest.raises(BoxError, match=r"b\.json states no size for it, so"):
        check.fit(entry(None), "a.jpg", (20, 10))
    assert check.fit(entry(None, BoxUnits.permille), "a.jpg", (20, 10))
