"""Box files that cannot be read: one line names the file, the place and what is wrong."""

import re
from pathlib import Path

import pytest

from helpers.documents.box_files import save
from regionqa.boxes.fields import excerpt
from regionqa.boxes.files import read_boxes
from regionqa.errors import BoxError, BoxFileError


def task(image: str, *results: object) -> object:
    return [{"data": {"image": image}, "annotations": [{"result": list(results)}]}]


# ---- files that cannot be read: one line that names the file, the place and what is wrong ----

BOMB = '<!DOCTYPE a [<!ENTITY b "bbbbbbbb">]><annotation><filename>&b;</filename></annotation>'
IMAGES = [{"id": 1, "file_name": "a.jpg"}]


def coco_of(annotation: object) -> object:
    return {"images": IMAGES, "annotations": [annotation]}


NO_FORMAT = "is not a box file of a known format; give COCO, LabelMe"
NOT_JSON = "is not valid JSON: "
NOT_XML = "is not valid XML: "
HEADER = "image,x0,y0,x1,y1\n"
NO_CORNERS = {"rectanglelabels": [], "x": 1}
MALFORMED_JSON: list[tuple[object, str]] = [
    ("", "a.json: is empty"),
    (" \r\n", "a.json: is empty"),
    ("{", NOT_JSON),
    ("[" * 100_000, NOT_JSON),
    ('{"a.jpg": [], "a.jpg": []}', "the key 'a.jpg' appears twice"),
    ("7", NO_FORMAT),
    ([10, 20, 30, 40], NO_FORMAT),
    ({"7": ["a caption", "another"]}, NO_FORMAT),
    ({"version": 1, "items": {}}, NO_FORMAT),
    ({"a.jpg": [{"box": [1, 2, 3, 4], "label": [1]}]}, "'label' is [1]; write text"),
    ({"images": 7, "annotations": []}, "a.json: 'images' is 7; write a list"),
    ({"images": [{"id": 1}], "annotations": []}, "images[0] of * has no 'file_name'"),
    ({"images": IMAGES * 2, "annotations": []}, "images[1] of * the id 1 appears twice"),
    (coco_of({"image_id": 2}), "annotations[0] of * no image has the id 2"),
    (coco_of({"image_id": 1, "caption": "x"}), "is COCO's file of captions, which has no boxes"),
    (coco_of({"image_id": 1, "segments_info": []}), "is COCO's file of panoptic segments"),
    ({"shapes": [], "imagePath": {}}, "a.json: 'imagePath' is {}; write text"),
    ([{"data": {"img": "x"}, "annotations": []}], "data of [0] of * has no 'image', and none of"),
]
MALFORMED_OTHERS: list[tuple[str, object, str]] = [
    ("a.bin", "what is this?", NO_FORMAT),
    ("a.bin", "", NO_FORMAT),
    ("a.xml", "", NOT_XML + "no element found"),
    ("a.xml", "<annotation>", NOT_XML),
    ("a.xml", '<?xml version="1.0" encoding="klingon"?><annotation/>', NOT_XML),
    ("a.xml", BOMB, NOT_XML + "it declares a document type"),
    ("a.xml", "<html/>", "a.xml: is a web page, perhaps of a failed download"),
    ("a.xml", "<dataset/>", "begins with <dataset>, not with VOC's <annotation>"),
    ("a.txt", "\nhello 1 2 3 4", "line 2 of * begins with 'hello', not with a class number"),
    ("a.csv", "", "is empty; write at least the header image,x0,y0,x1,y1,label"),
    ("a.csv", "foo,bar\n1,2\n", "line 1 of * 'foo,bar' is not a known header; write image,x0"),
    ("a.csv", "image,x0,y0,x1,label\n", "line 1 of * is not a known header"),
    ("a.csv", "a.jpg,1,2,3,cat\n", "line 1 of * is not a known header"),
    ("a.csv", HEADER + "a.jpg,1,2,3,4\n,1,2,3,4\n", "line 3 of * names no image"),
    ("a.csv", HEADER + "a" * 200_000, "line 2 of * is not CSV: "),
]
MALFORMED = [("a.json", *case) for case in MALFORMED_JSON] + MALFORMED_OTHERS


def has_line(error: pytest.ExceptionInfo[Exception], pattern: str) -> bool:
    """Whether the message is one line and holds the pattern, where `*` stands for anything."""
    expression = ".*".join(map(re.escape, pattern.split("*")))
    return re.fullmatch(f".*{expression}.*", str(error.value)) is not None


@pytest.mark.parametrize(("name", "content", "message"), MALFORMED)
def test_malformed_file_is_refused(
    tmp_path: Path, name: str, content: object, message: str
) -> None:
    with pytest.raises(BoxFileError) as error:
        read_boxes(save(tmp_path / name, content))
    assert has_line(error, name)
    assert has_line(error, message), str(error.value)


def test_undecodable_bytes_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"image,x0,y0,x1,y1\nb\xe9.jpg,1,2,3,4\n")
    with pytest.raises(BoxFileError, match=r"a.csv: is not UTF-8 text \(byte 19\)"):
        read_boxes(tmp_path / "a.csv")


def test_missing_file_is_refused(tmp_path: Path) -> None:
    for name in ("gone.json", "gone.xml", "gone"):
        with pytest.raises(BoxFileError, match=f"{name}: there is no such file"):
            read_boxes(tmp_path / name)


def test_unreadable_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> bytes:
        raise PermissionError(13, "Permission denied")

    path = save(tmp_path / "a.json", {})
    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(BoxFileError, match=r"a.json: cannot be read: Permission denied"):
        read_boxes(path)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "holds no box files; give a folder of labels"),
        ({"classes.txt": "cat", "README.roboflow.txt": "", "a.jpg": ""}, "holds no box files"),
        ({"a.txt": "", "b.xml": "<annotation/>"}, "holds .txt and .xml box files"),
        (
            {"a.json": {"images": IMAGES, "annotations": []}},
            "a.json: has no 'shapes', so it is not a LabelMe file",
        ),
        (
            {"a.txt": "2 .1 .1 .1 .1", "classes.txt": "a\nb\n"},
            "line 1 of *a.txt: the class 2 has no",
        ),
    ],
)
def test_malformed_folder_is_refused(
    tmp_path: Path, files: dict[str, object], message: str
) -> None:
    for name, content in files.items():
        save(tmp_path / "boxes" / name, content)
    (tmp_path / "boxes").mkdir(exist_ok=True)
    with pytest.raises(BoxFileError) as error:
        read_boxes(tmp_path / "boxes")
    assert has_line(error, message), str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("names: 5\n", "data.yaml: 'names' is '5'; write a list of class names"),
        ("names:\nnc: 2\n", "data.yaml: 'names' is ''; write a list"),
        ("names: [[a], b]\n", "data.yaml: 'names' is [['a'], 'b']; write a list"),
        ("names: {a: dog}\n", "data.yaml: 'names' is {'a': 'dog'}; write a list"),
        ("names: {-1: dog}\n", "data.yaml: 'names' is {'-1': 'dog'}; write a list"),
        ("names: {9999999999: dog}\n", "data.yaml: 'names' is {'9999999999': 'dog'}; write"),
        ("nc: 1\nnames: [a\n", "line 3 of *data.yaml: is not valid YAML: expected ',' or ']'"),
        ("nc: 1\nnames: *x\n", "line 2 of *data.yaml: is not valid YAML: found undefined alias"),
        ("names: [a]\nx: \x00", "data.yaml: is not valid YAML: unacceptable character"),
        ("[" * 500, "data.yaml: is not valid YAML: maximum recursion depth"),
    ],
)
def test_malformed_class_names_are_refused(tmp_path: Path, text: str, message: str) -> None:
    save(tmp_path / "data.yaml", text)
    with pytest.raises(BoxFileError) as error:
        read_boxes(save(tmp_path / "a.txt", "0 .1 .1 .1 .1"))
    assert has_line(error, message), str(error.value)


def test_class_names_are_text(tmp_path: Path) -> None:
    save(tmp_path / "data.yaml", "names: [no, 1, 2026-01-02, ~, 'a: b', 0x1F]\n")
    labels = "".join(f"{number} .1 .1 .1 .1\n" for number in range(6))
    boxes = read_boxes(save(tmp_path / "a.txt", labels)).boxes_for("a.jpg") or ()
    assert [box.label for box in boxes] == ["no", "1", "2026-01-02", "~", "a: b", "0x1F"]


def test_data_yaml_without_names(tmp_path: Path) -> None:
    save(tmp_path / "data.yaml", "train: images\n")
    (box,) = read_boxes(save(tmp_path / "a.txt", "4 .1 .1 .1 .1")).boxes_for("a.jpg") or ()
    assert box.label is None


def voc_of(*corners: str) -> str:
    names = ("xmin", "ymin", "xmax", "ymax")
    box = "".join(f"<{n}>{c}</{n}>" for n, c in zip(names, corners, strict=False))
    return f"<annotation><object><bndbox>{box}</bndbox></object></annotation>"


def shape_of(kind: str, *points: object) -> object:
    return {"shapes": [{"shape_type": kind, "points": list(points)}], "imagePath": "a.jpg"}


def rectangle_of(**changes: object) -> object:
    value = {"x": 1, "y": 2, "width": 3, "height": 4, **changes}
    return task("a.jpg", {"type": "rectangle", "value": value})


NAN = float("nan")
BAD_BOXES: list[tuple[str, object, str]] = [
    ("a.json", {"a.jpg": [["1", 2, 3, 4], []]}, "'a.jpg'[0] of * four numbers are expected"),
    ("a.json", {"a.jpg": [[10**400, 2, 3, 4]]}, "'a.jpg'[0] of * a coordinate is too large"),
    ("a.json", {"a.jpg": [None, [1, 2, 3, 4]]}, "'a.jpg'[0] of * four numbers are expected"),
    ("a.json", coco_of({"image_id": 1, "segmentation": [[1, 10**400]]}), "is not a finite number"),
    ("a.json", coco_of({"image_id": 1, "bbox": [1]}), "annotations[0] of * 1 values found"),
    ("a.json", {"a.jpg": [{"label": "x"}]}, "'a.jpg'[0] of * has no 'box'"),
    ("a.json", {"a.jpg": [{"bx": [1, 2, 3, 4]}]}, "'a.jpg'[0] of * key 'bx'; did you mean 'box'?"),
    ("a.json", coco_of({"image_id": 1}), "annotations[0] of * has no 'bbox' and no 'segmentation'"),
    ("a.json", {"shapes": [{"label": "x"}], "imagePath": "a.jpg"}, "(polygon) of * no 'points'"),
    ("a.json", task("a.jpg", {"type": "rectanglelabels", "value": NO_CORNERS}), "* has no 'y'"),
    ("a.xml", "<annotation><object/></annotation>", "object 1 of * has no <bndbox>"),
    ("a.json", shape_of("polygon", [1, 2], [3]), "(polygon) of * the point [3] is not two finite"),
    (
        "a.json",
        shape_of("polygon", [1, 2], [3, "x" * 99]),
        "the point [3, 'xxx*... is not two finite",
    ),
    ("a.json", shape_of("polygon", [1, 2], [3, NAN]), "the point [3, nan] is not two finite"),
    ("a.json", shape_of("polygon", [1, 2], [3, 10**400]), "is not two finite numbers"),
    ("a.json", shape_of("polygon", [1, 2], [3, True]), "is not two finite numbers"),
    ("a.json", rectangle_of(x="1"), "annotations[0].result[0] of [0] of * four numbers"),
    ("a.json", rectangle_of(rotation=10**400), "its rotation is *; write degrees"),
    ("a.json", rectangle_of(rotation=30), "annotations[0].result[0] of [0] of * is rotated"),
    ("a.xml", voc_of("1", "2", "x", "4"), "object 1 of * 'x' is not a finite number"),
    ("a.xml", voc_of("1", "2", "3"), "object 1 of * '' is not a finite number"),
    ("a.txt", "0 .1 .1 .1", "line 1 of * 3 values found"),
    ("a.txt", "0 .1 .1 .1 .1\n0 .1 .1 .1 nan", "line 2 of * 'nan' is not a finite number"),
    ("a.csv", HEADER + "a.jpg,1,2,3\n", "line 2 of * '' is not a finite number"),
    ("a.csv", "a.jpg,1,2,3,nan\n", "line 1 of * 'nan' is not a finite number"),
]


@pytest.mark.parametrize(("name", "content", "message"), BAD_BOXES)
def test_malformed_box_fails_its_image(
    tmp_path: Path, name: str, content: object, message: str
) -> None:
    found = read_boxes(save(tmp_path / name, content))
    for _ in range(2):
        with pytest.raises(BoxError) as error:
            found.boxes_for("a.jpg")
        assert has_line(error, name)
        assert has_line(error, f"box in *{message}"), str(error.value)


def test_values_in_messages_are_truncated() -> None:
    assert excerpt("x" * 38) == repr("x" * 38)
    assert excerpt("x" * 39) == "'" + "x" * 36 + "..."
