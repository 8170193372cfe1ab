"""Sizes of images as box files state them, and as the images are."""

import json
from pathlib import Path

import pytest

from regionqa.boxes.files import read_boxes

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
