"""Box files of other tools: read, or refused with what they are."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from regionqa.boxes.entries import Convention
from regionqa.boxes.files import BoxFile, read_boxes
from regionqa.boxes.objects import read_box
from regionqa.errors import BoxError, BoxFileError
from regionqa.regions import BoxFormat, BoxUnits

BLOB = {"name": "rect", "x": 10, "y": 10, "width": 140, "height": 110}
VIA_IMAGE: dict[str, Any] = {
    "filename": "a.jpg",
    "size": 9431,
    "regions": [{"shape_attributes": BLOB, "region_attributes": {"name": "blob"}}],
}
PERCENT = {"x": 5, "y": 10, "width": 70, "height": 110, "rectanglelabels": ["blob"]}
RECTANGLE = {"x": 5, "y": 10, "width": 70, "height": 110}
TASK = {"type": "rectanglelabels", "value": PERCENT}
COLUMNS = "filename,file_size,file_attributes,region_count,region_id"
VIA_ROW = (
    f"{COLUMNS},region_shape_attributes,region_attributes\n"
    'a.jpg,9,"{}",1,0,"{""name"":""rect"",""x"":10,""y"":10,""width"":140,""height"":110}",'
    '"{""name"":""blob""}"\n'
)
OPEN_IMAGES = "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsGroupOf\n"
VOC_BOX = """<annotation><object><bndbox><xmin>10</xmin><ymin>10</ymin><xmax>150</xmax>
    <ymax>120</ymax></bndbox></object></annotation>"""
CVAT_BOX = '<box label="blob" xtl="10" ytl="10" xbr="150" ybr="120"/>'
FILES: dict[str, object] = {
    "qwen.json": [{"bbox_2d": [10, 10, 150, 120], "label": "blob"}],
    "fenced.txt": '```json\n[{"bbox_2d": [10, 10, 150, 120], "label": "blob"}]\n```\n',
    "gemini.json": [{"box_2d": [100, 50, 1200, 750], "label": "blob"}],
    "moondream.json": {
        "objects": [{"x_min": 0.05, "y_min": 0.1, "x_max": 0.75, "y_max": 1.2, "label": "blob"}]
    },
    "roboflow.json": {
        "image": {"width": 200, "height": 100},
        "predictions": [{"x": 80, "y": 65, "width": 140, "height": 110, "class": "blob"}],
    },
    "bbox.json": {"a.jpg": [{"bbox": [10, 10, 150, 120], "label": "blob"}]},
    "ultralytics.json": [
        {"name": "blob", "class": 0, "box": {"x1": 10, "y1": 10, "x2": 150, "y2": 120}}
    ],
    "florence.json": {"<OD>": {"bboxes": [[10, 10, 150, 120]], "labels": ["blob"]}},
    "detector.json": {"boxes": [[10, 10, 150, 120]], "labels": ["blob"], "scores": [0.9]},
    "ls.csv": "image,id,label,annotator,annotation_id\n"
    'a.jpg,1,"[{""x"": 5, ""y"": 10, ""width"": 70, ""height"": 110, '
    '""rectanglelabels"": [""blob""], ""original_width"": 200}]",1,1\n',
    "named.json": {"a.jpg": [{"x1": 10, "y1": 10, "x2": 150, "y2": 120, "class": "blob"}]},
    "min.json": [{"image": "a.jpg", "id": 1, "label": [{**PERCENT, "original_width": 200}]}],
    "ocr.json": [{"data": {"ocr": "a.jpg", "n": "x"}, "annotations": [{"result": [TASK]}]}],
    "labels.json": [
        {
            "data": {"image": "a.jpg"},
            "annotations": [
                {
                    "result": [
                        {"id": "1", "type": "rectangle", "value": RECTANGLE},
                        {"id": "1", "type": "labels", "value": {**RECTANGLE, "labels": ["blob"]}},
                    ]
                }
            ],
        }
    ],
    "createml.json": [
        {
            "image": "a.jpg",
            "annotations": [
                {
                    "label": "blob",
                    "coordinates": {"x": 80, "y": 65, "width": 140, "height": 110},
                }
            ],
        }
    ],
    "via.json": {"a.jpg9431": VIA_IMAGE},
    "via_project.json": {"_via_settings": {}, "_via_img_metadata": {"a.jpg9431": VIA_IMAGE}},
    "via_1.json": {"a.jpg9431": {**VIA_IMAGE, "regions": {"0": VIA_IMAGE["regions"][0]}}},
    "via.csv": VIA_ROW,
    "open_images.csv": f"{OPEN_IMAGES}a,x,blob,1,0.05,0.75,0.1,1.2,0\n",
    "columns.csv": "image,x_min,y_min,x_max,y_max,class_id,label\na.jpg,10,10,150,120,0,blob\n",
    "sep.csv": "sep=;\r\nimage;x0;y0;x1;y1;label\r\na.jpg;10;10;150;120;blob\r\n",
    "comma.csv": "image;x0;y0;x1;y1;label\na.jpg;10,0;10,0;150,0;120,0;blob\n",
    "table.txt": "image\tx0\ty0\tx1\ty1\tlabel\na.jpg\t10\t10\t150\t120\tblob\n",
    "cvat.xml": f'<annotations><image name="a.jpg" width="200">{CVAT_BOX}</image></annotations>',
    "own.jsonl": '{"image": "a.jpg", "regions": [{"box": [10, 10, 150, 120], "label": "blob"}]}\n',
    "lines.json": '{"image": "a.jpg", "regions": [{"box": [10, 10, 150, 120], "label": "blob"}]}\n'
    '{"image": "b.jpg", "regions": []}\n',
    "answers.json": [
        {"image": "a.jpg", "regions": [{"id": 1, "box": [10, 10, 150, 120], "label": "blob"}]},
        {"image": "a.jpg", "regions": [{"id": 1, "box": [10, 10, 150, 120], "label": "blob"}]},
    ],
    "metadata.jsonl": '{"file_name": "a.jpg", "objects": {"bbox": [[10, 10, 140, 110]], '
    '"categories": ["blob"]}}\n',
}


def save(path: Path, content: object) -> Path:
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        text = content if isinstance(content, str) else json.dumps(content)
        path.write_text(text, encoding="utf-8", newline="")
    return path


def boxes(found: BoxFile, image: str = "a.jpg") -> list[tuple[float, ...]]:
    read = found.boxes_for(image)
    assert read is not None
    return [tuple(map(round, box.resolve(200, 100).box.xyxy)) for box in read]


@pytest.mark.parametrize("name", FILES)
def test_the_blob_is_read_from_every_tool(tmp_path: Path, name: str) -> None:
    found = read_boxes(save(tmp_path / name, FILES[name]))
    assert boxes(found) == [(10, 10, 150, 120)]
    assert [box.label for box in found.boxes_for("a.jpg") or ()] == ["blob"]


PIPED: list[object] = [
    *(FILES[name] for name in ("columns.csv", "sep.csv", "via.csv", "own.jsonl", "via.json")),
    "0 0.4 0.65 0.7 1.1\n",  # a file about one image has no name in a pipe
    VOC_BOX,
    {"shapes": [{"points": [[10, 10], [150, 120]]}]},
]


@pytest.mark.parametrize("content", PIPED)
def test_boxes_are_read_from_a_pipe(content: object) -> None:
    text = content if isinstance(content, str) else json.dumps(content)
    read, write = os.pipe()
    os.write(write, text.encode())
    os.close(write)
    try:
        assert boxes(read_boxes(Path(f"/dev/fd/{read}"))) == [(10, 10, 150, 120)]
    finally:
        os.close(read)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig"])
@pytest.mark.parametrize("name", ["columns.csv", "own.jsonl", "cvat.xml", "bbox.json", "table.txt"])
def test_files_may_have_a_byte_order_mark(tmp_path: Path, name: str, encoding: str) -> None:
    text = FILES[name] if isinstance(FILES[name], str) else json.dumps(FILES[name])
    assert isinstance(text, str)
    found = read_boxes(save(tmp_path / name, text.encode(encoding)))
    assert boxes(found) == [(10, 10, 150, 120)]


def test_results_belong_to_the_image_of_their_number(tmp_path: Path) -> None:
    results = [
        {"image_id": number, "category_id": 17, "bbox": [10, 10, 140, 110], "score": 0.9}
        for number in (1, "a")
    ]
    found = read_boxes(save(tmp_path / "results.json", results))
    assert boxes(found, "1.jpg") == boxes(found, "a.jpg") == [(10, 10, 150, 120)]
    assert boxes(found, "000000000001.jpg") == boxes(found, "COCO_val2014_000000000001.jpg")
    assert found.boxes_for("b.jpg") is found.boxes_for("b1.jpg") is None
    assert found.for_one_image() is found


def test_results_about_one_image_are_about_the_one_that_is_asked_about(tmp_path: Path) -> None:
    path = save(tmp_path / "r.json", [{"image_id": 5, "category_id": 1, "bbox": [1, 2, 3, 4]}])
    found = read_boxes(path).for_one_image()
    assert boxes(found) == [(1, 2, 4, 6)]
    assert "called only by its number" in found.remarks[0]
    path = save(tmp_path / "r.json", [{"image_id": "b", "bbox": [1, 2, 3, 4]}])
    assert read_boxes(path).for_one_image().boxes_for("a.jpg") is None


def test_frames_of_a_video_are_images(tmp_path: Path) -> None:
    corners = 'xtl="10" ytl="10" xbr="150" ybr="120"'
    track = "".join(
        f'<box frame="{frame}" outside="{outside}" {corners}/>'
        for frame, outside in ((0, 0), (3, 0), (4, 1))
    )
    text = f'<annotations><track id="0" label="car">{track}</track></annotations>'
    found = read_boxes(save(tmp_path / "video.xml", text))
    assert found.images == ("frame_000000", "frame_000003", "frame_000004")
    assert boxes(found, "frame_000003.png") == [(10, 10, 150, 120)]
    assert boxes(found, "frame_000004.png") == []


def test_a_class_description_names_open_images_codes(tmp_path: Path) -> None:
    path = save(tmp_path / "oi.csv", f"{OPEN_IMAGES}a,x,/m/01yrx,1,0.1,0.2,0.1,0.2,1\n")
    found = read_boxes(path)
    assert len(found.remarks) == 1
    save(tmp_path / "oidv7-class-descriptions-boxable.csv", "/m/01yrx,Cat\n")
    (box,) = read_boxes(path).boxes_for("a.jpg") or ()
    assert (box.label, box.is_crowd) == ("Cat", True)
    assert read_boxes(path).remarks == ()


# ---- what is refused, and how ----


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.db", b"SQLite format 3\0...", "is a SQLite database"),
        ("mask.png", b"\x89PNG\r\n\x1a\n", "is a PNG image.* segmentation mask"),
        (
            "a.json",
            b"PK\x03\x04",
            "is a ZIP archive or Office document; unpack it, or save it as CSV",
        ),
        ("a.csv", b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer.*git lfs pull"),
        ("a.json", b"<!DOCTYPE html><html>", "is a web page"),
        ("a.csv", "image;x0\na\n".encode("utf-16-le"), "is UTF-16 without a byte order mark"),
        ("a.json", {"image": "a.jpg", "boxes": [[1, 2, 3, 4]]}, "'boxes'; did you mean 'regions'"),
        ("a.json", {"image": "a.jpg", "regoins": []}, "'regoins'; did you mean 'regions'"),
        ("a.json", {"boxes": [[1, 2, 3, 4]], "imgae": "a"}, "'imgae'; did you mean 'image'"),
        ("a.jsonl", '{"image": "a.jpg", "regions": []}\n{"image', "line 2 of .*: is not JSON"),
        ("a.json", {"asset": {}, "regions": []}, "is VoTT's JSON, which is not read; export COCO"),
        ("a.json", [{"name": "a.jpg", "labels": []}], "is JSON of Scalabel"),
        ("a.jsonl", '{"source-ref": "s3://a"}\n', "is a manifest of SageMaker Ground Truth"),
        ("a.txt", "imagesource:GoogleEarth\n", "seems to be DOTA"),
        ("a.txt", "1.5 2 3 4 5 6 7 8 plane 0\n", "seems to be DOTA"),
        ("a.txt", "1,1,912,484,97,109,0,7,1\n", "seems to be a table"),
        ("a.txt", "Car 0 0 0 1 2 3 4 0 0 0 0 0 0 0\n", "seems to be KITTI"),
        ("v.csv", VIA_ROW[:-30], "is not JSON; the file seems cut"),
    ],
)
def test_what_is_no_box_file_is_called_what_it_is(
    tmp_path: Path, name: str, content: object, message: str
) -> None:
    with pytest.raises(BoxFileError, match=message):
        read_boxes(save(tmp_path / name, content))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", {"a.jpg": [{"bbox": [1, 2, 3, 4], "lable": "x"}]}, "'lable'; did you mean 'la"),
        ("a.json", {"a.jpg": [{"box": [1, 2, 3, 4], "zzz": 1}]}, "'zzz'; what is to be kept goes"),
        ("a.csv", 'image,bbox\na.jpg,"[1, 2, 3, 4]"\n', "may be corners.*--box-format xyxy or"),
        ("a.csv", "image,x0,y0,x1,y1\na.jpg,1,2,3,4,5\n", "has 6 cells under 5 columns"),
    ],
)
def test_a_box_that_may_mean_two_things_fails_its_image(
    tmp_path: Path, name: str, content: object, message: str
) -> None:
    found = read_boxes(save(tmp_path / name, content))
    with pytest.raises(BoxError, match=message):
        found.boxes_for("a.jpg")


def test_a_misspelt_key_of_the_numbers_is_named() -> None:
    for item, hint in (({"bxox": [1, 2, 3, 4]}, "its key 'bxox' is perhaps meant; "), ({}, "")):
        with pytest.raises(BoxError, match=f"^box in x: has no 'box'; {hint}write "):
            read_box(item, "x", Convention())


def test_keys_with_an_underscore_and_meta_are_allowed(tmp_path: Path) -> None:
    box = {"box": [10, 10, 150, 120], "_by": "me", "id": 3, "meta": {"x": 1}, "score": 0.5}
    assert boxes(read_boxes(save(tmp_path / "a.json", {"a.jpg": [box]}))) == [(10, 10, 150, 120)]


def test_the_user_says_what_the_numbers_mean(tmp_path: Path) -> None:
    path = save(tmp_path / "a.csv", 'image,bbox\na.jpg,"[1, 2, 30, 40]"\n')
    assert boxes(read_boxes(path, format=BoxFormat.xywh)) == [(1, 2, 31, 42)]
    path = save(tmp_path / "q.json", [{"bbox_2d": [100, 100, 500, 500]}])
    found = read_boxes(path, units=BoxUnits.permille)
    assert (boxes(found), found.remarks) == ([(20, 10, 100, 50)], ())


def test_a_box_of_objects_that_cannot_be_a_size_is_refused(tmp_path: Path) -> None:
    row: dict[str, object] = {"file_name": "a.jpg", "width": 200, "height": 100}
    row["objects"] = {"bbox": [[150, 60, 190, 90]], "categories": ["x"]}
    path = save(tmp_path / "metadata.jsonl", json.dumps(row) + "\n")
    with pytest.raises(BoxError, match="reaches outside the image; use --box-format xyxy"):
        read_boxes(path).boxes_for("a.jpg")
    assert boxes(read_boxes(path, format=BoxFormat.xyxy)) == [(150, 60, 190, 90)]


# ---- Parquet ----


def test_parquet_of_the_hub(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = {
        "image": [{"bytes": b"...", "path": "a.jpg"}, {"bytes": b"", "path": "b.jpg"}],
        "objects": [
            {"bbox": [[10.0, 10.0, 140.0, 110.0]], "category": [1]},
            {"bbox": [], "category": []},
        ],
    }
    names = {"_type": "Sequence", "feature": {"_type": "ClassLabel", "names": ["x", "blob"]}}
    features = {"info": {"features": {"objects": {"category": names}}}}
    table = pyarrow.table(rows).replace_schema_metadata({"huggingface": json.dumps(features)})
    parquet.write_table(table, tmp_path / "a.parquet")
    found = read_boxes(tmp_path / "a.parquet")
    assert boxes(found) == [(10, 10, 150, 120)]
    assert [box.label for box in found.boxes_for("a.jpg") or ()] == ["blob"]
    assert found.boxes_for("b.jpg") == ()


def test_parquet_without_its_extra_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import builtins

    real: Callable[..., object] = builtins.__import__

    def refuse(name: str, *args: object, **kwargs: object) -> object:
        if name.startswith("pyarrow"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(BoxFileError, match=r"needs the extra 'parquet'; pip install"):
        read_boxes(save(tmp_path / "a.parquet", b"PAR1...."))
