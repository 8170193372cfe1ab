"""What box file formats allow beyond plain boxes."""

from pathlib import Path

import pytest

from helpers.documents.box_files import regions, save
from regionqa.boxes.files import read_boxes
from regionqa.errors import BoxError, BoxFileError
from regionqa.regions import BoxFormat, BoxUnits, WrittenBox

# ---- the formats' corners ----


@pytest.mark.parametrize("content", ["{}", "[]", '{"a.jpg": []}', '\ufeff{"a.jpg": []}\r\n'])
def test_empty_plain_file(tmp_path: Path, content: str) -> None:
    found = read_boxes(save(tmp_path / "a.json", content))
    assert found.format == "plain"
    assert not found.boxes_for("a.jpg")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("0 0.5 0.5 0.25 0.5", (75, 25, 125, 75)),
        ("0.0 0.5 0.5 0.25 0.5 0.93", (75, 25, 125, 75)),
        ("0 0.1 0.2 0.5 0.9 0.3 0.1", (20, 10, 100, 90)),
        ("0 0.1 0.2 0.5 0.9 0.3 0.1 0.93", (20, 10, 100, 90)),
    ],
)
def test_yolo_tolerates_confidences_and_polygons(
    tmp_path: Path, line: str, expected: tuple[float, ...]
) -> None:
    save(tmp_path / "data.yaml", "nc: 1\n")
    (region,) = regions(read_boxes(save(tmp_path / "a.txt", line)).boxes_for("a.jpg"), 200, 100)
    assert region.box.xyxy == pytest.approx(expected)
    assert region.label is None


@pytest.mark.parametrize(
    ("kind", "points", "expected"),
    [
        ("polygon", [[5, 9], [1, 7], [3, 2]], (1, 2, 5, 9)),
        ("circle", [[10, 10], [13, 14]], (5, 5, 15, 15)),
        (None, [[1, 2], [3, 4]], (1, 2, 3, 4)),
    ],
)
def test_labelme_shapes_become_bounding_boxes(
    tmp_path: Path, kind: str | None, points: list[list[float]], expected: tuple[float, ...]
) -> None:
    shape = {"label": 5, "shape_type": kind, "points": points}
    found = read_boxes(save(tmp_path / "a.json", {"shapes": [shape], "imagePath": "a.jpg"}))
    assert found.boxes_for("a.jpg") == (WrittenBox((*expected,), label="5"),)  # type: ignore[arg-type]


def task(image: str, *results: object) -> object:
    return [{"data": {"image": image}, "annotations": [{"result": list(results)}]}]


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("/data/local-files/?d=photos/my%20cat.jpg", "photos/my cat.jpg"),
        ("/data/upload/3/0a1b2c3d-cat.jpg", "/data/upload/3/0a1b2c3d-cat.jpg"),
        ("https://host/photos/cat.jpg?size=9", "https://host/photos/cat.jpg"),
        ("cat.jpg", "cat.jpg"),
    ],
)
def test_label_studio_images_are_named_by_urls(tmp_path: Path, url: str, name: str) -> None:
    assert read_boxes(save(tmp_path / "a.json", task(url))).images == (name,)


def test_label_studio_polygons_and_unlabelled_rectangles(tmp_path: Path) -> None:
    polygon = {"points": [[10, 20], [30, 5], [20, 40]], "polygonlabels": ["cat", "pet"]}
    rectangle = {"x": 1, "y": 2, "width": 3, "height": 4}
    content = task(
        "a.jpg",
        {"type": "polygonlabels", "value": polygon},
        {"type": "rectangle", "value": rectangle},
    )
    assert read_boxes(save(tmp_path / "a.json", content)).boxes_for("a.jpg") == (
        WrittenBox((0.1, 0.05, 0.3, 0.4), units=BoxUnits.fraction, label="cat, pet"),
        WrittenBox((0.01, 0.02, 0.03, 0.04), BoxFormat.xywh, BoxUnits.fraction),
    )


def test_rotated_label_studio_image_is_refused(tmp_path: Path) -> None:
    value = {"x": 1, "y": 2, "width": 3, "height": 4}
    result = {"type": "rectangle", "image_rotation": 90, "value": value}
    with pytest.raises(BoxError, match="is rotated, but boxes are upright"):
        read_boxes(save(tmp_path / "a.json", task("a.jpg", result))).boxes_for("a.jpg")


def test_csv_rows_are_grouped_by_image(tmp_path: Path) -> None:
    lines = (
        "\ufeffImage, xmin, ymin, xmax, ymax, class",
        '"a,b.jpg",1,2,3,4,"the ""big"" cat, left"',
        "b.jpg,,,,,",
        "",
        ",,,",
        '"a,b.jpg", 5, 6, 7, 8',
    )
    found = read_boxes(save(tmp_path / "a.csv", "\r\n".join(lines)))
    assert found.images == ("a,b.jpg", "b.jpg")
    assert found.boxes_for("a,b.jpg") == (
        WrittenBox((1, 2, 3, 4), label='the "big" cat, left'),
        WrittenBox((5, 6, 7, 8)),
    )
    assert found.boxes_for("b.jpg") == ()


def test_headerless_csv_with_an_image_without_boxes(tmp_path: Path) -> None:
    found = read_boxes(save(tmp_path / "a.csv", "a.jpg,,,,,\nb.jpg,1,2,3,4,cat\n"))
    assert found.boxes_for("a.jpg") == ()
    assert found.boxes_for("b.jpg") == (WrittenBox((1, 2, 3, 4), label="cat"),)


def test_class_names_are_found_two_folders_above(tmp_path: Path) -> None:
    labels = save(tmp_path / "a/b/c/sub/cat.txt", "0 .1 .1 .1 .1").parent
    names = save(tmp_path / "a/classes.txt", "cat\n")
    for top, found in ((labels.parent, "cat"), (labels, None)):
        (box,) = read_boxes(top).boxes_for("cat.jpg") or ()
        assert box.label == found
    save(names.parent / "b/c/classes.txt", "dog")
    (box,) = read_boxes(labels).boxes_for("cat.jpg") or ()
    assert box.label == "dog"


def test_class_number_limit(tmp_path: Path) -> None:
    path = save(tmp_path / "a.txt", "999999999. .1 .1 .1 .1")
    assert len(read_boxes(path).boxes_for("a.jpg") or ()) == 1
    with pytest.raises(BoxFileError, match="begins with '1000000000', not with a class number"):
        read_boxes(save(path, "1000000000 .1 .1 .1 .1"))
