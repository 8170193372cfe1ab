"""Masks of box files: polygons and run lengths of COCO, and those that this program writes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from regionqa.boxes.files import MASKED, ImageRegions, read_boxes, write_boxes
from regionqa.errors import BoxError, UsageError
from regionqa.masks import Mask
from regionqa.regions import Box, Region

SIZE = (40, 30)


def coco(path: Path, *annotations: dict[str, Any]) -> Path:
    images = [{"id": 1, "file_name": "a.jpg", "width": SIZE[0], "height": SIZE[1]}]
    rows = [{"id": n, "image_id": 1, **each} for n, each in enumerate(annotations, 1)]
    path.write_text(json.dumps({"images": images, "annotations": rows}))
    return path


def ellipse() -> Mask:
    rows, columns = np.mgrid[: SIZE[1], : SIZE[0]]
    return Mask.of_array(((columns - 20) / 9) ** 2 + ((rows - 12) / 7) ** 2 < 1)


def test_polygons_and_run_lengths_of_coco(tmp_path: Path) -> None:
    box = {"bbox": [3, 4, 10, 12]}
    polygons = [[5, 5, 15, 5, 15, 12, 5, 12], [20, 20, 30, 20, 30, 25, 20, 25], [1, 1, 2, 2]]
    path = coco(
        tmp_path / "a.json",
        box,
        {**box, "segmentation": polygons},
        {"segmentation": polygons[0]},
        {**box, "segmentation": ellipse().as_rle(), "iscrowd": 1},
        {**box, "segmentation": {"size": [30, 40], "counts": [*ellipse().runs]}},
        {**box, "segmentation": []},
        {**box, "segmentation": [[1, 1, 5, 5, 9, 9]]},
    )
    file = read_boxes(path, masks=True)
    assert [line.partition(": ")[2] for line in file.remarks] == [
        "masks without area, not their boxes, left out: 1, at annotations[6] of " + str(path)
    ]
    written = file.boxes_for("a.jpg") or ()
    regions = [each.resolve(*SIZE) for each in written]
    without = [each.resolve(*SIZE) for each in read_boxes(path).boxes_for("a.jpg") or ()]
    assert [region.box for region in regions] == [region.box for region in without]
    assert all(region.mask is None for region in without)
    masks = [region.mask for region in regions]
    assert masks[0] is masks[5] is masks[6] is None
    assert masks[1] is not None and masks[1].area == 10 * 7 + 10 * 5
    assert masks[2] is not None and masks[2].bounds == regions[2].box.xyxy == (5, 5, 15, 12)
    assert masks[3] == masks[4] == ellipse()


def test_malformed_masks_fail_their_image(tmp_path: Path) -> None:
    path = coco(tmp_path / "a.json", {"bbox": [3, 4, 10, 12], "segmentation": {"size": [30, 40]}})
    assert read_boxes(path).boxes_for("a.jpg")
    with pytest.raises(BoxError, match=r"annotations\[0\] of .*: its mask is not run lengths"):
        read_boxes(path, masks=True).boxes_for("a.jpg")


def test_a_mask_without_area_beside_a_box_is_refused(tmp_path: Path) -> None:
    """In COCO, where datasets hold many, such masks are counted instead."""
    path, empty = tmp_path / "a.json", Mask.of_array(np.zeros((30, 40))).as_rle()
    path.write_text(json.dumps([{"box": [1, 2, 3, 4], "mask": empty}]))
    assert len(read_boxes(path).boxes_for("a.jpg") or ()) == 1
    with pytest.raises(BoxError, match=r"mask in \[0\] of .*: has no area; remove it, or read"):
        read_boxes(path, masks=True).boxes_for("a.jpg")


@pytest.mark.parametrize("format", MASKED)
def test_masks_are_read_back_equal(format: str, tmp_path: Path) -> None:
    path = tmp_path / ("a.jsonl" if format == "requests" else "a.json")
    shape = ellipse()
    assert shape.bounds is not None
    regions = (
        Region(Box(*map(float, shape.bounds)), "cup", mask=shape),
        Region(Box(1, 2, 3, 4)),
        Region(Box(1, 2, 30, 14), mask=Mask.of_array(np.eye(30, 40))),
    )
    write_boxes(path, [ImageRegions("a.jpg", *SIZE, regions)], format)
    read = read_boxes(path, masks=True)
    assert read.format == format
    assert tuple(each.resolve(*SIZE) for each in read.boxes_for("a.jpg") or ()) == regions
    boxes = read_boxes(path).boxes_for("a.jpg") or ()
    assert [each.resolve(*SIZE).mask for each in boxes] == [None] * 3


def test_masks_are_refused_where_there_are_none(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--masks: .*a\.json holds no masks; leave --masks out"):
        read_boxes(coco(tmp_path / "a.json", {"bbox": [3, 4, 10, 12]}), masks=True)
    (tmp_path / "a.csv").write_text("image,x0,y0,x1,y1\na.jpg,1,2,3,4\n")
    with pytest.raises(UsageError, match="of which no masks are read; leave --masks out"):
        read_boxes(tmp_path / "a.csv", masks=True)
