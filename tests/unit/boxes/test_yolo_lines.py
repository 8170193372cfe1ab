"""YOLO lines: boxes, confidences, track ids, polygons, corners and key points are told apart."""

from pathlib import Path

import pytest

from regionqa.boxes.files import read_boxes
from regionqa.boxes.remarks import LeftOut
from regionqa.errors import BoxError, BoxFileError

BOX = "0.5 0.5 0.4 0.6"
BOX_IN_PIXELS = [(60.0, 20.0, 140.0, 80.0)]
CORNERS = "0.1 0.2 0.6 0.2 0.6 0.8 0.1 0.8"
CORNERS_IN_PIXELS = [(20.0, 20.0, 120.0, 80.0)]
TRIANGLE = "0.1 0.2 0.6 0.2 0.6 0.8"
KEYS_3D = " 0.4 0.4 2" * 17
KEYS_2D = " 0.4 0.4" * 17


def boxes_of(folder: Path, *lines: str, yaml: str | None = None) -> list[tuple[float, ...]]:
    """Read the lines as the labels of a.jpg, which is 200 x 100 pixels."""
    (folder / "a.txt").write_text("".join(f"0 {line}\n" for line in lines))
    if yaml is not None:
        (folder / "data.yaml").write_text(yaml)
    found = read_boxes(folder).boxes_for("a.jpg") or ()
    regions = [box.resolve(200, 100) for box in found]
    return [tuple(round(number, 6) for number in region.box.xyxy) for region in regions]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (BOX, BOX_IN_PIXELS),
        (f"{BOX} 0.91", BOX_IN_PIXELS),
        (f"{BOX} 1", BOX_IN_PIXELS),
        (f"{BOX} 7", BOX_IN_PIXELS),
        (f"{BOX} 0.91 7", BOX_IN_PIXELS),  # cannot be a point of a polygon
        (BOX + KEYS_3D, BOX_IN_PIXELS),  # a visibility of 2 cannot be in a polygon
        (CORNERS, CORNERS_IN_PIXELS),
        (f"{CORNERS} 0.91", CORNERS_IN_PIXELS),
        (f"{CORNERS} 0.91 7", CORNERS_IN_PIXELS),
    ],
)
def test_lines_that_mean_one_thing_need_no_yaml(
    tmp_path: Path, line: str, expected: list[tuple[float, ...]]
) -> None:
    assert boxes_of(tmp_path, line) == expected


@pytest.mark.parametrize(
    ("line", "meanings"),
    [
        (f"{BOX} 0.91 1", "6 numbers may be a box with confidence and track id or a polygon"),
        (TRIANGLE, "6 numbers may be a box with key points or a polygon"),
        (BOX + KEYS_2D, "38 numbers may be a box with key points or a polygon"),
        (f"{CORNERS} 0.91 1", "10 numbers may be .*polygon with confidence and track id"),
    ],
)
def test_lines_that_may_mean_two_boxes_are_refused(
    tmp_path: Path, line: str, meanings: str
) -> None:
    with pytest.raises(BoxError, match=f"line 1 of .*a.txt: {meanings}; state which in data.yaml"):
        boxes_of(tmp_path, line)


@pytest.mark.parametrize(
    ("yaml", "line", "expected"),
    [
        ("task: detect", f"{BOX} 0.91 1", BOX_IN_PIXELS),
        ("task: segment", TRIANGLE, CORNERS_IN_PIXELS),
        ("names: [cat]", TRIANGLE, CORNERS_IN_PIXELS),  # no key points without kpt_shape
        ("names: [cat]", f"{BOX} 0.4 0.4", [(80.0, 40.0, 100.0, 60.0)]),
        ("kpt_shape: [17, 2]", BOX + KEYS_2D, BOX_IN_PIXELS),
        ("kpt_shape: [17, 3]", f"{BOX}{KEYS_3D} 0.9 1", BOX_IN_PIXELS),
        ("kpt_shape: [2, 2]", f"{BOX} .1 .1 .2 .2", BOX_IN_PIXELS),
        ("task: obb", f"{CORNERS} 0.91 1", CORNERS_IN_PIXELS),
    ],
)
def test_data_yaml_says_what_a_line_means(
    tmp_path: Path, yaml: str, line: str, expected: list[tuple[float, ...]]
) -> None:
    assert boxes_of(tmp_path, line, yaml=yaml) == expected


def test_lines_of_several_lengths_are_polygons(tmp_path: Path) -> None:
    """The key points of a folder are equally many in every line, in all its files."""
    (tmp_path / "b.txt").write_text(f"0 {TRIANGLE} 0.3 0.9 0.4 0.8\n")
    assert boxes_of(tmp_path, TRIANGLE) == CORNERS_IN_PIXELS


def test_a_line_that_is_nothing_is_refused_alone(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text(f"0 {BOX}\n")
    with pytest.raises(BoxError, match="9 numbers are none of a box with 17 x 3 numbers of key"):
        boxes_of(tmp_path, f"{CORNERS} 0.5", yaml="kpt_shape: [17, 3]")
    (tmp_path / "a.txt").write_text("cat 1 2 3 4\n")
    found = read_boxes(tmp_path)
    assert len(found.boxes_for("b.jpg") or ()) == 1
    with pytest.raises(BoxError, match=r"line 1 of .*a.txt: begins with 'cat', not with a class"):
        found.boxes_for("a.jpg")


def test_polygons_without_area_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "data.yaml").write_text("task: segment\n")
    flat = "0.1 0.1 0.2 0.2 0.3 0.3 0.4 0.4"
    (tmp_path / "a.txt").write_text(f"0 {flat}\n0 {CORNERS}\n")
    found = read_boxes(tmp_path)
    assert len(found.boxes_for("a.jpg") or ()) == 1
    where = f"line 1 of {tmp_path / 'a.txt'}"
    assert found.left_out == (LeftOut(where, "polygons without area"),)
    assert found.remarks == (f"{tmp_path}: polygons without area left out: 1, at {where}",)


@pytest.mark.parametrize(
    ("yaml", "message"),
    [
        ("task: classify", "'task' is 'classify'; write one of detect, segment, pose, obb"),
        ("kpt_shape: 17", "'kpt_shape' is '17'; write it like"),
        ("kpt_shape: [17, 4]", "'kpt_shape' is .*; write it like"),
    ],
)
def test_a_malformed_task_is_refused(tmp_path: Path, yaml: str, message: str) -> None:
    with pytest.raises(BoxFileError, match=f"data.yaml: {message}"):
        boxes_of(tmp_path, BOX, yaml=yaml)


def test_cvats_export_is_read_beside_its_lists(tmp_path: Path) -> None:
    labels = tmp_path / "obj_train_data"
    labels.mkdir()
    (tmp_path / "obj.names").write_text("dog\ncat\n")
    (tmp_path / "train.txt").write_text("data/obj_train_data/a.jpg\n")
    (labels / "a.txt").write_text(f"1 {BOX}\n")
    found = read_boxes(tmp_path)
    assert found.images == ("obj_train_data/a",)
    assert [box.label for box in found.boxes_for("a.jpg") or ()] == ["cat"]


def test_a_file_called_train_may_be_labels(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text(f"0 {BOX}\n")
    assert len(read_boxes(tmp_path).boxes_for("train.jpg") or ()) == 1


def test_notes_beside_labels_are_no_boxes(tmp_path: Path) -> None:
    """Label Studio's YOLO export has a notes.json, published data sets have README and LICENSE."""
    for name in ("notes.json", "README.md.txt", "LICENSE.txt", "classes.txt"):
        (tmp_path / name).write_text("{}")
    assert boxes_of(tmp_path, BOX) == BOX_IN_PIXELS
