"""Box files of every format: reading, look-up by image, new formats."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

import pytest

from helpers.documents.box_files import regions, save, values
from regionqa.boxes.entries import (
    BoxContents,
    BoxEntry,
    Convention,
    Files,
    ImageRegions,
)
from regionqa.boxes.fields import four, numbers_of
from regionqa.boxes.files import FORMATS, read_boxes, write_boxes
from regionqa.boxes.remarks import LeftOut
from regionqa.boxes.source import SourceFile
from regionqa.errors import BoxError, BoxFileError, UsageError
from regionqa.regions import Box, BoxFormat, BoxUnits, Region, WrittenBox

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


def one(name: str, *found: Region) -> ImageRegions:
    return ImageRegions(name, 200, 100, found)


CAT_REGION = Region(Box(10, 20, 110, 70), "cat")


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
