"""Box files: reading, look-up by image, writing."""

import json
import re
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from regionqa.boxes.entries import (
    BoxContents,
    BoxEntry,
    Convention,
    Files,
    ImageRegions,
)
from regionqa.boxes.fields import excerpt, four, numbers_of
from regionqa.boxes.files import FORMATS, read_boxes, write_boxes
from regionqa.boxes.formats.coco import CocoDocument
from regionqa.boxes.remarks import LeftOut
from regionqa.boxes.source import SourceFile
from regionqa.errors import BoxError, BoxFileError, OutputError, UsageError
from regionqa.regions import Box, BoxFormat, BoxUnits, Region, WrittenBox

FOLDERS = ("voc", "yolo", "labelme")
SUFFIXES = {"csv": ".csv", "cvat": ".xml", "requests": ".jsonl", "huggingface": ".jsonl"}

VOC = """<annotation>
  <filename>cat.jpg</filename>
  <object>
    <name>cat</name>
    <part><name>head</name><bndbox><xmin>1</xmin></bndbox></part>
    <bndbox><xmin>10</xmin><ymin>20</ymin><xmax>110.5</xmax><ymax>70</ymax></bndbox>
  </object>
</annotation>"""
COCO = {
    "images": [{"id": 7, "file_name": "cat.jpg"}, {"id": 8, "file_name": "empty.jpg"}],
    "annotations": [
        {"id": 1, "image_id": 7, "category_id": 3, "bbox": [10, 20, 100.5, 50], "iscrowd": 1}
    ],
    "categories": [{"id": 3, "name": "cat"}],
}
LABELME = {
    "imagePath": "..\\photos\\cat.jpg",
    "shapes": [{"label": "cat", "shape_type": "rectangle", "points": [[110.5, 70], [10, 20]]}],
}
LABELSTUDIO = [
    {
        "data": {"image": "/data/upload/1/0a1b2c3d-cat.jpg"},
        "annotations": [
            {
                "result": [
                    {
                        "type": "rectanglelabels",
                        "value": {
                            "x": 5,
                            "y": 20,
                            "width": 50.25,
                            "height": 50,
                            "rotation": 0,
                            "rectanglelabels": ["cat"],
                        },
                    },
                    {"type": "choices", "value": {"choices": ["indoors"]}},
                ]
            },
            {
                "was_cancelled": True,
                "result": [
                    {"type": "rectangle", "value": {"x": 1, "y": 1, "width": 2, "height": 2}}
                ],
            },
        ],
    }
]


def save(path: Path, content: object) -> Path:
    """Writes text as it is and anything else as JSON, in folders made for it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = content if isinstance(content, str) else json.dumps(content)
    path.write_text(text, encoding="utf-8", newline="")
    return path


def values(boxes: Sequence[WrittenBox] | None) -> list[tuple[float, ...]]:
    assert boxes is not None
    return [box.values for box in boxes]


def regions(boxes: Sequence[WrittenBox] | None, width: int, height: int) -> list[Region]:
    assert boxes is not None
    return [box.resolve(width, height) for box in boxes]


# ---- a user has a file in some format, and asks about cat.jpg, 200 x 100 pixels ----

CAT = {
    "plain.json": {"cat.jpg": [{"box": [10, 20, 110.5, 70], "label": "cat"}]},
    "coco.json": COCO,
    "cat.xml": VOC,
    "labelme.json": LABELME,
    "labelstudio.json": LABELSTUDIO,
    "boxes.csv": "image,x0,y0,x1,y1,label\ncat.jpg,10,20,110.5,70,cat\n",
    "tensorflow.csv": "filename,width,height,class,xmin,ymin,xmax,ymax\n"
    "cat.jpg,200,100,cat,10,20,110.5,70\n",
    "sizes.csv": "File;Label;X;Y;W;H\ncat.jpg;cat;10;20;100.5;50\n",
    "tabs.tsv": "path\tclass\tcx\tcy\twidth\theight\ncat.jpg\tcat\t60.25\t45\t100.5\t50\n",
    "headerless.csv": "cat.jpg,10,20,110.5,70,cat\n",
    "unsuffixed": json.dumps(COCO),
    "annotation.voc": VOC,
}


@pytest.mark.parametrize("name", CAT)
def test_every_format_is_read(tmp_path: Path, name: str) -> None:
    found = read_boxes(save(tmp_path / name, CAT[name]))
    (region,) = regions(found.boxes_for("photos/cat.jpg"), 200, 100)
    assert region.box.xyxy == pytest.approx((10, 20, 110.5, 70))
    assert region.label == "cat"
    assert found.boxes_for("dog.jpg") is None


@pytest.mark.parametrize(
    ("names_file", "names"),
    [
        ("classes.txt", "dog\r\ncat \r\n"),
        ("../classes.txt", "dog\ncat"),
        ("../../data.yaml", "nc: 2\nnames: ['dog', \"cat\"]  # two\ntrain: x\n"),
        ("data.yaml", "names:\n# ours\n- dog\n\n- 'cat' # meow\nnc: 2\n"),
        ("data.yaml", "train: x\nnames:\n  0: dog\n  1: cat\n"),
        ("data.yaml", "names: [dog,\n  cat]\n"),
        ("data.yaml", "names: &n {1: cat, 0: dog}\nval: *n\n"),
        ("data.yaml", "names:\n- dog\n- &pet cat\ndownload: |\n  names: x\n"),
    ],
)
def test_yolo_with_class_names_is_read(tmp_path: Path, names_file: str, names: str) -> None:
    labels = save(
        tmp_path / "data/labels/train/cat.txt", "1 0.30125 0.45 0.5025 0.5\r\n\r\n"
    ).parent
    save(labels / names_file, names)
    for path in (labels, labels / "cat.txt"):
        found = read_boxes(path)
        assert found.format == "yolo"
        (region,) = regions(found.boxes_for("images/train/cat.jpg"), 200, 100)
        assert region.box.xyxy == pytest.approx((10, 20, 110.5, 70))
        assert region.label == "cat"


def test_folder_of_files(tmp_path: Path) -> None:
    save(tmp_path / "a.json", {**LABELME, "imagePath": "a.jpg"})
    save(tmp_path / "sub/b.json", {**LABELME, "imagePath": None})
    save(tmp_path / "a.jpg", "not looked at")
    save(tmp_path / "._a.json", "left by another system")
    found = read_boxes(tmp_path)
    assert found.format == "labelme"
    assert found.images == ("a.jpg", "sub/b")
    assert values(found.boxes_for("a.jpg")) == values(found.boxes_for("b.png"))


def test_bare_list_applies_to_any_image(tmp_path: Path) -> None:
    for content in ([[1, 2, 3, 4]], {"boxes": [[1, 2, 3, 4]]}):
        found = read_boxes(save(tmp_path / "any.json", content))
        assert found.images == ()
        assert values(found.boxes_for("this.jpg")) == values(found.boxes_for("that.jpg"))
        assert values(found.boxes_for("this.jpg")) == [(1, 2, 3, 4)]


def test_one_bad_box_fails_its_own_image_only(tmp_path: Path) -> None:
    good, short, nan = [1, 2, 3, 4], [1, 2, 3], [float("nan"), 2, 3, 4]
    content = {"bad.jpg": [good, short], "nan.jpg": [nan], "good.jpg": [good]}
    found = read_boxes(save(tmp_path / "b.json", content))
    assert values(found.boxes_for("good.jpg")) == [(1, 2, 3, 4)]
    with pytest.raises(BoxError, match=r"box in 'bad.jpg'\[1\] of .*b.json: .* 3 values found"):
        found.boxes_for("bad.jpg")
    with pytest.raises(BoxError, match=r"'nan.jpg'\[0\] of .*b.json: .* finite"):
        found.boxes_for("nan.jpg")
    assert found.images == ("bad.jpg", "nan.jpg", "good.jpg")


def test_box_format_and_units_apply_to_plain_and_csv_only(tmp_path: Path) -> None:
    for name, content in {
        "a.json": {"a.jpg": [[1, 2, 3, 4]]},
        "a.csv": "image,x,y,w,h\na.jpg,1,2,3,4\n",
    }.items():
        found = read_boxes(
            save(tmp_path / name, content), format=BoxFormat.cxcywh, units=BoxUnits.permille
        )
        assert found.boxes_for("a.jpg") == (
            WrittenBox((1, 2, 3, 4), BoxFormat.cxcywh, BoxUnits.permille),
        )
    path = save(tmp_path / "coco.json", COCO)
    for stated, flag in (
        ({"format": BoxFormat.xywh}, "--box-format"),
        ({"units": BoxUnits.pixel}, "--box-units"),
    ):
        with pytest.raises(UsageError, match=rf"{flag}: .*coco.json is COCO, which defines what"):
            read_boxes(path, **stated)


def test_files_without_an_image_match_by_stem_and_folder(tmp_path: Path) -> None:
    save(tmp_path / "train/a.v2.txt", "0 .1 .1 .1 .1")
    save(tmp_path / "val/a.v2.txt", "")
    found = read_boxes(tmp_path)
    assert found.images == ("train/a.v2", "val/a.v2")
    assert len(values(found.boxes_for("images/train/a.v2.png"))) == 1
    assert found.boxes_for("images/val/a.v2.jpg") == ()
    assert found.boxes_for("a.jpg") == ()
    with pytest.raises(BoxError, match="2 entries"):
        found.boxes_for("a.v2.jpg")


def test_voc_files_of_the_same_image_name_keep_to_their_folders(tmp_path: Path) -> None:
    save(tmp_path / "train/a.xml", VOC)
    save(tmp_path / "val/a.xml", "<annotation><filename>cat.jpg</filename></annotation>")
    found = read_boxes(tmp_path)
    assert len(values(found.boxes_for("train/cat.jpg"))) == 1
    assert found.boxes_for("val/cat.jpg") == ()


# ---- the formats' corners ----


@pytest.mark.parametrize("content", ["{}", "[]", '{"a.jpg": []}', '\ufeff{"a.jpg": []}\r\n'])
def test_empty_plain_file(tmp_path: Path, content: str) -> None:
    found = read_boxes(save(tmp_path / "a.json", content))
    assert found.format == "plain"
    assert not found.boxes_for("a.jpg")


def test_coco_keeps_crowds_images_without_boxes_and_boxes_without_names(tmp_path: Path) -> None:
    found = read_boxes(save(tmp_path / "coco.json", COCO))
    assert found.boxes_for("cat.jpg") == (
        WrittenBox((10, 20, 100.5, 50), BoxFormat.xywh, label="cat", is_crowd=True),
    )
    assert found.classes == ("cat",)
    assert found.images == ("cat.jpg", "empty.jpg")
    assert found.boxes_for("empty.jpg") == ()
    annotation = {"image_id": "7", "bbox": [1, 2, 3, 4]}
    nameless = {"images": COCO["images"], "annotations": [annotation]}
    assert read_boxes(save(tmp_path / "n.json", nameless)).boxes_for("cat.jpg") == (
        WrittenBox((1, 2, 3, 4), BoxFormat.xywh),
    )


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


def test_label_studio_left_out_is_listed(tmp_path: Path) -> None:
    path = save(tmp_path / "a.json", [LABELSTUDIO[0], LABELSTUDIO[0]])
    found = read_boxes(path)
    assert len(found.entries) == 1
    assert found.left_out == tuple(
        LeftOut(where.format(task=task, path=path), reason)
        for task in (0, 1)
        for where, reason in (
            ("annotations[0].result[1] of [{task}] of {path}", "results of type choices"),
            ("annotations[1] of [{task}] of {path}", "cancelled annotations"),
        )
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
        ({"a.txt": "", "b.xml": VOC}, "holds .txt and .xml box files"),
        ({"a.json": COCO}, "a.json: has no 'shapes', so it is not a LabelMe file"),
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


# ---- writing ----

NAMES = st.lists(
    st.text("ab é,;'\"%#?&=+", min_size=1).map(str.strip).filter(bool), min_size=1, max_size=3
).map(lambda parts: "/".join(parts) + ".jpg")
LABELS = st.none() | st.text(
    st.characters(blacklist_categories=["C", "Z"]) | st.just(" "), min_size=1
).map(str.strip).filter(bool)


@st.composite
def images_with_regions(draw: st.DrawFn) -> ImageRegions:
    width, height = draw(st.integers(4, 5000)), draw(st.integers(4, 5000))

    def span(length: int) -> tuple[float, float]:
        start = draw(st.floats(0, length - 3))
        return start, start + draw(st.floats(2, length - start))

    found = []
    for _ in range(draw(st.integers(0, 3))):
        (x0, x1), (y0, y1) = span(width), span(height)
        found.append(Region(Box(x0, y0, x1, y1), draw(LABELS)))
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


def test_values_in_messages_are_truncated() -> None:
    assert excerpt("x" * 38) == repr("x" * 38)
    assert excerpt("x" * 39) == "'" + "x" * 36 + "..."


@pytest.mark.parametrize(
    ("name", "text", "format"),
    [
        ("a", " " * 1000 + "[[1, 2, 3, 4]]", "plain"),
        ("a.bin", "\ufeff\n{}", "plain"),
        ("a.TSV", "image\tx0\ty0\tx1\ty1\na.jpg\t1\t2\t3\t4", "csv"),
        ("a.XML", VOC, "voc"),
        ("a.Txt", "", "yolo"),
    ],
)
def test_formats_are_recognised_by_suffix_or_first_character(
    tmp_path: Path, name: str, text: str, format: str
) -> None:
    assert read_boxes(save(tmp_path / name, text)).format == format


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
    with pytest.raises(OutputError) as error:
        write_boxes(tmp_path / "out", images, format)
    assert has_line(error, message), str(error.value)
    assert not (tmp_path / "out").exists()


def test_unwritable_path_is_refused(tmp_path: Path) -> None:
    save(tmp_path / "file", "")
    with pytest.raises(OutputError, match=r"out\.json: cannot be written: "):
        write_boxes(tmp_path / "file/out.json", [one("a.jpg")], "plain")


# ---- a format is a module and a line in FORMATS ----


class Marks:
    """A made-up format: a line per box, `image left top right bottom`."""

    TITLE = "marks"
    IMAGE_SUFFIX = None
    OWN_CONVENTION = True
    ABSENT_IS_EMPTY = False

    def recognise(self, file: SourceFile) -> bool:
        return file.path.suffix == ".marks"

    def read(self, files: Iterable[SourceFile], convention: Convention) -> BoxContents:
        entries = []
        for file in files:
            for line in file.text.splitlines():
                image, *numbers = line.split()
                values = four(numbers_of(numbers, file.path.name), file.path.name)
                entries.append(BoxEntry.of(image, [WrittenBox(values)]))
        return BoxContents(tuple(entries), (LeftOut("line 9", "comment"),), ("cat",))

    def write(self, images: Sequence[ImageRegions]) -> Files:
        lines = (
            " ".join([image.name, *(f"{number:g}" for number in region.box.xyxy)]) + "\n"
            for image in images
            for region in image.regions
        )
        return {PurePosixPath(): "".join(lines)}


def test_registered_format_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "boxes.marks"
    with pytest.raises(BoxFileError, match=r"boxes\.marks: is not a box file of a known format"):
        read_boxes(save(path, "a.jpg 1 2 3 4\n"))
    monkeypatch.setitem(FORMATS, "marks", Marks())
    write_boxes(path, [one("a.jpg", CAT_REGION)], "marks")
    assert path.read_text() == "a.jpg 10 20 110 70\n"
    found = read_boxes(path)
    assert (found.format, found.images) == ("marks", ("a.jpg",))
    assert found.boxes_for("a.jpg") == (WrittenBox((10, 20, 110, 70)),)
    assert (found.left_out, found.classes) == ((LeftOut("line 9", "comment"),), ("cat",))
    with pytest.raises(BoxFileError, match=r"known format; give COCO, .*\]\]} or marks$"):
        read_boxes(save(tmp_path / "a.bin", "?"))


def test_registered_format_with_a_file_per_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Marks, "IMAGE_SUFFIX", ".marks")
    monkeypatch.setitem(FORMATS, "marks", Marks())
    save(tmp_path / "a.marks", "a.jpg 1 2 3 4\n")
    save(tmp_path / "sub/b.MARKS", "b.jpg 5 6 7 8\n")
    found = read_boxes(tmp_path)
    assert (found.format, found.images) == ("marks", ("a.jpg", "b.jpg"))
    save(tmp_path / "c.xml", VOC)
    with pytest.raises(
        BoxFileError,
        match=r"holds .marks and .xml box files; .*, .json \(LabelMe\), .xml \(Pascal VOC\), "
        r".txt \(YOLO\) or .marks \(marks\), or the file itself",
    ):
        read_boxes(tmp_path)
