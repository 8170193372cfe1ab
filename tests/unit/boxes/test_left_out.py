"""What box files hold beside upright boxes: left out, or read as the upright boxes around it."""

import cmath
import json
import math
from pathlib import Path

import pytest

from regionqa.boxes.fields import Point
from regionqa.boxes.files import BoxFile, read_boxes
from regionqa.boxes.shapes import bounding, centre_of, has_area, is_upright, mask_bounds, turned_box
from regionqa.errors import BoxError, BoxFileError

CVAT_BOX = '<box label="blob" xtl="10" ytl="10" xbr="150" ybr="120"/>'
TURNED_BOX = CVAT_BOX.replace("label", 'rotation="90" label')


def save(path: Path, content: object) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def boxes(found: BoxFile) -> list[tuple[float, ...]]:
    return [
        tuple(map(round, box.resolve(200, 100).box.xyxy)) for box in found.boxes_for("a.jpg") or ()
    ]


@pytest.mark.parametrize(
    ("name", "content", "remarks"),
    [
        (
            "labelme.json",
            {
                "imagePath": "a.jpg",
                "shapes": [
                    {"shape_type": "point", "points": [[6, 6]]},
                    {"shape_type": "line", "points": [[6, 6], [7, 8]]},
                    {"shape_type": "point", "points": [[7, 6]]},
                    {"shape_type": "rotation", "points": [[50, 10], [90, 50], [50, 90], [10, 50]]},
                    {"points": [[1, 1], [2, 2], [3, 3]]},
                    {"shape_type": "rectangle", "points": [[10, 10], [150, 120]]},
                ],
            },
            (
                "points left out: 2, the first at shapes[0]",
                "lines left out: 1, at shapes[1]",
                "polygons without area left out: 1, at shapes[4]",
                "rotated boxes read as the upright boxes around them: 1, at shapes[3]",
            ),
        ),
        (
            "cvat.xml",
            f'<annotations><image name="a.jpg">{CVAT_BOX}<ellipse label="x" cx="1"/>{TURNED_BOX}'
            '<polygon points="1,1;2,2;3,3"/><heart/><tag label="x"/></image></annotations>',
            (
                "ellipses left out: 1, at <ellipse> 2",
                "polygons without area left out: 1",
                "shapes of kind heart left out: 1",
                "rotated boxes read as the upright boxes around them: 1, at <box> 3",
            ),
        ),
        (
            "via.json",
            {
                "a.jpg": {
                    "filename": "a.jpg",
                    "regions": [
                        {"shape_attributes": {"name": kind}, "region_attributes": {}}
                        for kind in ("ellipse", "point", "polyline")
                    ],
                }
            },
            ("ellipses left out: 1", "points left out: 1", "lines left out: 1"),
        ),
        (
            "labelstudio.json",
            [
                {
                    "data": {"image": "a.jpg"},
                    "annotations": [
                        {"was_cancelled": True, "result": []},
                        {
                            "result": [
                                {"type": "ellipselabels", "value": {}},
                                {"type": "keypointlabels", "value": {}},
                                {"type": "choices", "value": {}},
                            ]
                        },
                    ],
                }
            ],
            (
                "cancelled annotations left out: 1",
                "ellipses left out: 1",
                "points left out: 1",
                "results of type choices left out: 1",
            ),
        ),
        (
            "voc.xml",
            "<annotation><filename>a.jpg</filename><object><point/></object></annotation>",
            ("points left out: 1, at object 1",),
        ),
        ("qwen.json", [{"bbox_2d": [1, 2, 3, 4]}], ("bbox_2d read as pixels",)),
        ("points.json", [{"point_2d": [1, 2]}, [1, 2, 3, 4]], ("points left out: 1, at [0]",)),
    ],
)
def test_what_is_left_out_or_changed_is_told(
    tmp_path: Path, name: str, content: object, remarks: tuple[str, ...]
) -> None:
    path = save(tmp_path / name, content)
    found = read_boxes(path)
    assert found.boxes_for("a.jpg") is not None
    assert len(found.remarks) == len(remarks)
    for line, expected in zip(found.remarks, remarks, strict=True):
        assert line.startswith(f"{path}: {expected}")


# ---- turned boxes and masks ----


def turned(kind: str) -> tuple[str, object]:
    """A box of 40 x 20 pixels, turned by a quarter."""
    if kind == "voc":
        numbers = "<cx>50</cx><cy>50</cy><w>40</w><h>20</h><angle>1.5707963267948966</angle>"
        text = f"<object><name>x</name><robndbox>{numbers}</robndbox></object>"
        return "a.xml", f"<annotation><filename>a.jpg</filename>{text}</annotation>"
    if kind == "cvat":
        box = '<box label="x" rotation="90" xtl="30" ytl="40" xbr="70" ybr="60"/>'
        return "a.xml", f'<annotations><image name="a.jpg">{box}</image></annotations>'
    value = {"x": 30, "y": 30, "width": 20, "height": 20, "rotation": 90}
    size = {"original_width": 200, "original_height": 100}
    result = {"type": "rectangle", "value": value, **size}
    return "a.json", [{"data": {"image": "a.jpg"}, "annotations": [{"result": [result]}]}]


@pytest.mark.parametrize("kind", ["voc", "cvat", "labelstudio"])
def test_a_turned_box_becomes_the_upright_box_around_it(tmp_path: Path, kind: str) -> None:
    name, content = turned(kind)
    found = read_boxes(save(tmp_path / name, content))
    # Label Studio turns about the upper left corner, the others about the centre
    assert boxes(found) == [(40, 30, 60, 70)]
    assert len(found.adjusted) == 1


@pytest.mark.parametrize(
    ("points", "area", "upright"),
    [
        ([(0, 0), (4, 3)], False, True),
        ([(5, 5)] * 3, False, True),
        ([(0, 0), (4, 3), (8, 6)], False, False),
        ([(4, 3), (0, 0), (8, 6), (0, 0)], False, False),
        ([(1, 0), (5, 0), (5, 3)], True, True),
        ([(1, 0), (5, 0), (3, 3)], True, False),
        ([(5, 2), (5, 6), (2, 4)], True, False),
        ([(0, 0), (1000, 0), (1000, 1e-3)], True, True),
        ([(0, 0), (1000, 0), (1000, 1e-7)], False, True),
        ([(0, 0), (1000, 5e-4), (1000, 800), (5e-4, 800)], True, True),
        ([(0, 0), (1000, 2e-3), (1000, 800), (0, 800)], True, False),
        ([(0, 0), (800, 0), (800, 1000), (2e-3, 1000)], True, False),
        ([(0, 5000), (10, 5000), (10, 5010), (2e-3, 5010)], True, False),
        ([(5000, 0), (5000, 10), (5010, 10), (5010, 2e-3)], True, False),
    ],
)
def test_area_and_sides_of_points(points: list[Point], area: bool, upright: bool) -> None:
    assert has_area(points) is area
    assert is_upright(points) is upright


@pytest.mark.parametrize("pivot", [(0, 0), (3, 5), (10, 4)])
@pytest.mark.parametrize("degrees", [0, 30, 90, -200])
def test_a_box_turned_about_a_point(pivot: Point, degrees: float) -> None:
    """By complex numbers, whose product with a unit number turns them."""
    turn = cmath.rect(1, math.radians(degrees))
    centre = complex(*pivot)
    corners = [complex(x, y) for x in (2, 12) for y in (1, 5)]
    turned = [centre + (corner - centre) * turn for corner in corners]
    xs, ys = [each.real for each in turned], [each.imag for each in turned]
    found = turned_box((2, 1, 12, 5), degrees, pivot)
    assert found == pytest.approx((min(xs), min(ys), max(xs), max(ys)))
    assert centre_of((2, 1, 12, 5)) == (7, 3)


@pytest.mark.parametrize(
    ("counts", "size", "expected"),
    [
        ([5, 3, 12], [10, 2], (0, 5, 1, 8)),
        ([5, 8, 7], [10, 2], (0, 0, 2, 10)),
        ([0, 20], [10, 2], (0, 0, 2, 10)),
        ([20], [10, 2], None),
        ([1, 1, 9, 1, 8], [10, 2], (0, 1, 2, 2)),
        ([19, 1], [10, 2], (1, 9, 2, 10)),
        ([0, 1, 19], [10, 2], (0, 0, 1, 1)),
        ([12, 3, 1, 2, 11, 1], [10, 3], (1, 2, 3, 10)),
        ([8, 2, 3, 1, 6], [10, 2], (0, 3, 2, 10)),
        ([8, 3, 9], [10, 2], (0, 0, 2, 10)),
        ([20, 0], [10, 2], None),
        ([1], [1, 1], None),
        ([0, 1], [1, 1], (0, 0, 1, 1)),
        ("53<", [10, 2], (0, 5, 1, 8)),
        ("1190O", [10, 2], (0, 1, 2, 2)),
    ],
)
def test_the_bounds_of_a_mask(
    counts: object, size: object, expected: tuple[float, ...] | None
) -> None:
    assert mask_bounds(counts, size, "x") == expected


@pytest.mark.parametrize(
    ("counts", "size", "message"),
    [
        ([5, 3], [10, 2], "the runs of its mask are 8 pixels, but it is 2 x 10"),
        ([5, -3], [10, 2], "its mask is not run lengths"),
        ([5, -1, 16], [10, 2], "its mask is not run lengths"),
        ([5, True, 14], [10, 2], "its mask is not run lengths"),
        ("5/", [10, 2], "its mask is not COCO's text"),
        ("5p", [10, 2], "its mask is not COCO's text"),
        ([20], [10, 2, 1], "the size of its mask is not"),
        ([20], [10], "the size of its mask is not"),
        ([20], [1 << 20, 1], "the size of its mask is not"),
        ([20], [10, 2.0], "the size of its mask is not"),
        ("5\x7f", [10, 2], "its mask is not COCO's text"),
        ("5P", [10, 2], "the text of its mask is cut off"),
        ([5, 3], [0, 2], "the size of its mask is not"),
        (None, None, "the size of its mask is not"),
    ],
)
def test_a_malformed_mask_is_refused(counts: object, size: object, message: str) -> None:
    with pytest.raises(BoxError, match=message):
        mask_bounds(counts, size, "x")


def test_coco_annotations_without_a_box_have_the_bounds_of_their_shape(tmp_path: Path) -> None:
    shapes: list[object] = [
        [[10, 10, 50, 10, 50, 40], [60, 60, 70, 60, 70, 65]],
        {"counts": [5, 3, 92], "size": [10, 10]},
        [[1, 1, 2, 2, 3, 3]],
    ]
    annotations: list[object] = [{"image_id": 1, "segmentation": shape} for shape in shapes]
    images = [{"id": 1, "file_name": "a.jpg"}, {"id": 2, "file_name": "b.jpg"}]
    document = {"images": images, "annotations": [*annotations, {"image_id": 2}]}
    found = read_boxes(save(tmp_path / "c.json", document))
    assert boxes(found) == [(10, 10, 70, 65), (0, 5, 1, 8)]
    assert [each.reason for each in found.left_out] == ["polygons without area"]
    with pytest.raises(BoxError, match=r"annotations\[3\] of .* has no 'bbox' and no 'segment"):
        found.boxes_for("b.jpg")


def test_boxes_that_are_none_fail_their_own_image(tmp_path: Path) -> None:
    found = read_boxes(save(tmp_path / "p.json", {"a.jpg": [[1, 2, 3, 4]], "b.jpg": 7}))
    assert boxes(found) == [(1, 2, 3, 4)]
    with pytest.raises(BoxError, match=r"'b.jpg' of .*p.json: is 7; write a list of boxes"):
        found.boxes_for("b.jpg")


def test_annotations_that_belong_to_no_image_are_left_out(tmp_path: Path) -> None:
    images = [{"id": 1, "file_name": "a.jpg"}]
    places: list[dict[str, int]] = [{"image_id": 1}, {"image_id": 9}, {}]
    annotations: list[object] = [{**each, "bbox": [1, 2, 3, 4]} for each in places]
    document = {"images": images, "annotations": [*annotations, "junk"]}
    found = read_boxes(save(tmp_path / "c.json", document))
    assert boxes(found) == [(1, 2, 4, 6)]
    assert [each.reason for each in found.left_out] == 3 * [
        "annotations of images that are not listed"
    ]


def test_an_unknown_category_fails_its_image(tmp_path: Path) -> None:
    images = [{"id": 1, "file_name": "a.jpg"}, {"id": 2, "file_name": "b.jpg"}]
    annotations = [
        {"image_id": number, "category_id": number, "bbox": [1, 2, 3, 4]} for number in (1, 2)
    ]
    categories = [{"id": 1, "name": "cat"}]
    document = {"images": images, "annotations": annotations, "categories": categories}
    found = read_boxes(save(tmp_path / "c.json", document))
    assert len(boxes(found)) == 1
    with pytest.raises(BoxError, match=r"annotations\[1\] of .*: no category has the id 2"):
        found.boxes_for("b.jpg")


@pytest.mark.parametrize(
    ("suffix", "good", "broken", "message"),
    [
        (".json", '{"shapes": []}', '{"shapes": [', "b.json: is not valid JSON"),
        (".json", '{"shapes": []}', "[]", "b.json: has no 'shapes'"),
        (".xml", "<annotation/>", "<annotation>", "b.xml: is not valid XML"),
        (".txt", "", "cat 1 2 3 4", "line 1 of .*b.txt: begins with 'cat'"),
    ],
)
def test_a_broken_file_of_a_folder_fails_its_own_image(
    tmp_path: Path, suffix: str, good: str, broken: str, message: str
) -> None:
    for name, text in (("a", good), ("b", broken), ("c", good)):
        save(tmp_path / f"{name}{suffix}", text)
    found = read_boxes(tmp_path)
    assert found.boxes_for("a.jpg") == found.boxes_for("c.jpg") == ()
    with pytest.raises(BoxError, match=message):
        found.boxes_for("b.jpg")
    for name in "ac":
        (tmp_path / f"{name}{suffix}").unlink()
    save(tmp_path / f"d{suffix}", broken)
    with pytest.raises(BoxFileError, match=message):  # of the first of them
        read_boxes(tmp_path)


def test_a_key_given_twice_in_coco_is_refused(tmp_path: Path) -> None:
    """Also where the quick reader would take the last one."""
    text = '{"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": [%s]}'
    for annotation in (
        '{"image_id": 1, "bbox": [1, 2, 3, 4], "bbox": [5, 6, 7, 8]}',
        '{"image_id": 1, "image_id": 1, "bbox": [1, 2, 3, 4]}',
    ):
        path = save(tmp_path / "c.json", text % annotation)
        with pytest.raises(BoxFileError, match="appears twice"):
            read_boxes(path)


def test_a_folder_without_box_files_names_what_it_holds(tmp_path: Path) -> None:
    for name in ("README", "LICENSE"):
        save(tmp_path / name, "")
    (tmp_path / "v1.0").mkdir()
    with pytest.raises(BoxFileError, match=r"holds no box files; give a folder of labels"):
        read_boxes(tmp_path)
    save(tmp_path / "notes.md", "")
    with pytest.raises(BoxFileError, match=r"holds no box files, but \.md files, which are not"):
        read_boxes(tmp_path)


def test_one_point_spans_no_box() -> None:
    assert bounding([(3, 1), (1, 2)], "x") == (1, 1, 3, 2)
    with pytest.raises(BoxError, match="box in x: 1 points span no box"):
        bounding([(3, 1)], "x")
