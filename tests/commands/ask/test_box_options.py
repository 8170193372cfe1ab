"""Boxes on the command line: options, references in questions, errors."""

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from regionqa.bundles.store import Bundle
from regionqa.engine import Engine

if TYPE_CHECKING:
    from conftest import Command

pytestmark = pytest.mark.usefixtures("shared_engine")

QUICK = ("--max-new-tokens", 2, "--device", "cpu")
JSONL = ("--format", "jsonl", *QUICK)
LEFT, RIGHT = (20.0, 30.0, 110.0, 120.0), (113.0, 15.0, 226.0, 135.0)
"""Two boxes of cat.jpg, which is 226 x 150 pixels."""

FILES: dict[str, Any] = {
    "plain.json": {"cat.jpg": [LEFT, RIGHT]},
    "labelled.json": {"photos/cat.jpg": [{"box": LEFT, "label": "a"}, {"box": RIGHT}]},
    "coco.json": {
        "images": [{"id": 5, "file_name": "cat.jpg", "width": 226, "height": 150}],
        "annotations": [
            {"id": 1, "image_id": 5, "category_id": 1, "bbox": [20, 30, 90, 90]},
            {"id": 2, "image_id": 5, "category_id": 1, "bbox": [113, 15, 113, 120]},
        ],
        "categories": [{"id": 1, "name": "cat"}],
    },
    "voc/cat.xml": """<annotation><filename>cat.jpg</filename>
        <object><name>cat</name><bndbox><xmin>20</xmin><ymin>30</ymin>
        <xmax>110</xmax><ymax>120</ymax></bndbox></object>
        <object><name>cat</name><bndbox><xmin>113</xmin><ymin>15</ymin>
        <xmax>226</xmax><ymax>135</ymax></bndbox></object></annotation>""",
    "yolo/cat.txt": "0 0.287610619 0.5 0.398230089 0.6\n0 0.75 0.5 0.5 0.8\n",
    "labelme.json": {
        "imagePath": "cat.jpg",
        "shapes": [
            {"label": "cat", "shape_type": "rectangle", "points": [[20, 30], [110, 120]]},
            {"label": "cat", "shape_type": "rectangle", "points": [[226, 135], [113, 15]]},
        ],
    },
    "boxes.csv": "image,x0,y0,x1,y1\ncat.jpg,20,30,110,120\ncat.jpg,113,15,226,135\n",
}


@pytest.fixture
def small_cat(photos: Path) -> Path:
    """A cat on 226 x 150 pixels."""
    return photos / "cat.jpg"


def save(path: Path, content: object) -> Path:
    """Write text as it is, or another value as JSON; return the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def numbers(box: tuple[float, ...]) -> str:
    """The box as a command-line argument."""
    return ",".join(f"{number:g}" for number in box)


def boxes(line: str) -> list[list[float]]:
    """The boxes of a JSON line."""
    return [region["box"] for region in json.loads(line)["regions"]]


# -- boxes and questions ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "question",
    [
        "is <region1> beside <region2>?",
        "<region2> or <region1>, is <region1> the larger?",
        "what is <region2>?",
        "what are these?",
    ],
)
def test_question_about_two_boxes(
    regionqa: "Command", engine: Engine, small_cat: Path, question: str
) -> None:
    words = ("ask", small_cat, "--box", numbers(LEFT), "-b", numbers(RIGHT), question)
    ran = regionqa(*words, "--device", "cpu")
    assert (ran.status, ran.err) == (0, "")
    assert ran.out == engine.ask(small_cat, question, [LEFT, RIGHT]).text + "\n"
    (line,) = regionqa(*words, *JSONL).lines
    assert boxes(line) == [list(LEFT), list(RIGHT)]
    assert [region["id"] for region in json.loads(line)["regions"]] == [1, 2]


def test_reference_to_missing_region_fails(regionqa: "Command", small_cat: Path) -> None:
    ran = regionqa("ask", small_cat, "--box", numbers(LEFT), "is <region2> a cat?")
    assert (ran.status, ran.out) == (3, "")
    assert len(ran.err.splitlines()) == 1
    assert f"{small_cat}: the question names <region2>, but 1 region " in ran.err


def test_each_asks_about_every_box_separately(
    regionqa: "Command", engine: Engine, small_cat: Path
) -> None:
    given = ("--box", numbers(LEFT), "--box", numbers(RIGHT))
    ran = regionqa("ask", small_cat, *given, "--each", "what is <region1>?", "--device", "cpu")
    assert ran.lines == [
        f"{small_cat}\t{numbers(box)}\t{engine.ask(small_cat, 'what is <region1>?', [box]).text}"
        for box in (LEFT, RIGHT)
    ]


def test_caption_asks_the_card_questions(
    regionqa: "Command", starter: Bundle, small_cat: Path
) -> None:
    prompt = starter.card.prompt
    (whole,) = regionqa("caption", small_cat, *JSONL).lines
    assert (boxes(whole), json.loads(whole)["question"]) == ([], prompt.image_question)
    given = ("--box", numbers(LEFT), "--box", numbers(RIGHT))
    lines = regionqa("caption", small_cat, *given, *JSONL).lines
    assert [boxes(line) for line in lines] == [[list(LEFT)], [list(RIGHT)]]
    assert {json.loads(line)["question"] for line in lines} == {prompt.region_question}


# -- the ways to write a box -----------------------------------------------------------------------


@pytest.mark.parametrize("name", FILES)
def test_boxes_option_reads_any_format(
    regionqa: "Command", small_cat: Path, tmp_path: Path, name: str
) -> None:
    file = save(tmp_path / name, FILES[name])
    for path in {file, file.parent} if file.parent != tmp_path else {file}:
        ran = regionqa("ask", small_cat, "--boxes", path, "what are these?", *JSONL)
        assert (ran.status, ran.err, len(ran.lines)) == (0, "", 1)
        assert boxes(ran.lines[0]) == [list(LEFT), list(RIGHT)]


@pytest.mark.parametrize(
    ("written", "format", "units"),
    [
        ("113,15,226,135", "xyxy", "pixel"),
        ("[113, 15, 226, 135]", "xyxy", "pixel"),
        ("113 15 113 120", "xywh", "pixel"),
        ("169.5,75,113,120", "cxcywh", "pixel"),
        ("0.5,0.1,1,0.9", "xyxy", "fraction"),
        ("0.75,0.5,0.5,0.8", "cxcywh", "fraction"),
        ("500,100,500,800", "xywh", "permille"),
    ],
)
def test_box_format_and_units(
    regionqa: "Command", small_cat: Path, tmp_path: Path, written: str, format: str, units: str
) -> None:
    convention = ("--box-format", format, "--box-units", units)
    values = [float(part) for part in written.strip("[]").replace(",", " ").split()]
    file = save(tmp_path / "boxes.json", {"cat.jpg": [values]})
    for given in (("--box", written), ("--boxes", file)):
        ran = regionqa("ask", small_cat, *given, *convention, "what is this?", *JSONL)
        assert (ran.status, ran.err) == (0, "")
        assert boxes(ran.out) == [list(RIGHT)]


def test_box_file_for_several_images(regionqa: "Command", photos: Path, tmp_path: Path) -> None:
    entries = {"cup.jpg": [LEFT], "cat.jpg": [LEFT, RIGHT], "astronaut.jpg": []}
    ran = regionqa("caption", photos, "--boxes", save(tmp_path / "b.json", entries), *JSONL)
    asked = [(Path(json.loads(line)["image"]).name, boxes(line)) for line in ran.lines]
    assert ran.status == 0
    assert re.fullmatch(r".*: has no boxes for 1 image, .*astronaut\.jpg\n", ran.err)
    assert asked == [
        ("cat.jpg", [list(LEFT)]), ("cat.jpg", [list(RIGHT)]), ("cup.jpg", [list(LEFT)])
    ]  # fmt: skip


def test_image_missing_from_box_file_fails_alone(
    regionqa: "Command", photos: Path, tmp_path: Path
) -> None:
    file = save(tmp_path / "boxes.json", {"cup.jpg": [LEFT], "astronaut.jpg": [[1, 2, 3]]})
    ran = regionqa("caption", photos, "--boxes", file, *QUICK)
    assert ran.status == 3
    assert [line.split("\t")[0] for line in ran.lines] == [str(photos / "cup.jpg")]
    malformed, missing = ran.err.splitlines()
    assert "astronaut.jpg: " in malformed
    assert "four numbers are expected, 3 values found" in malformed
    start = f"regionqa: {photos / 'cat.jpg'}: {file} has no boxes for this image; it has "
    assert missing == f"{start}cup.jpg, astronaut.jpg"


# -- bad boxes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("box", "reason"),
    [
        ("1,2,3", "four numbers are expected, 3 values found"),
        ("1,2,3,4,5", "four numbers are expected, 5 values found"),
        ("left,2,3,4", "is not four numbers, like 10,20,200,300"),
        ("", "four numbers are expected, 0 values found"),
        ("nan,2,30,40", "every coordinate must be a finite number"),
        ("0,0,inf,40", "every coordinate must be a finite number"),
    ],
)
def test_malformed_box_option_is_a_usage_error(
    regionqa: "Command", photos: Path, box: str, reason: str
) -> None:
    ran = regionqa("ask", photos, "--box", "10,20,30,40", f"--box={box}", "what is this?")
    assert (ran.status, ran.out, len(ran.err.splitlines())) == (2, "", 1)
    assert ran.err.startswith("regionqa: error: --box: ")
    assert reason in ran.err


BAD_BOXES = [
    ("110,30,20,120", "right must exceed left"),
    ("20,120,110,30", "bottom exceed top"),
    ("20,30,20,120", "has no area"),
    ("226,0,300,150", "lies outside the image, which is 226 x 150 pixels"),
    ("-50,-50,-1,-1", "lies outside the image"),
    ("0.1,0.2,0.9,0.8", "use --box-units fraction"),
]


def test_bad_box_fails_its_item_only(regionqa: "Command", small_cat: Path) -> None:
    given = [word for box, _ in BAD_BOXES for word in ("--box", numbers(LEFT), f"--box={box}")]
    ran = regionqa("caption", small_cat, *given, "--box", numbers(RIGHT), *QUICK)
    assert ran.status == 3
    for line, (box, reason) in zip(ran.err.splitlines(), BAD_BOXES, strict=True):
        assert line.startswith(f"regionqa: {small_cat}: box {box}: ")
        assert reason in line
    asked = [line.split("\t")[1] for line in ran.lines]
    assert asked == [*[numbers(LEFT)] * len(BAD_BOXES), numbers(RIGHT)]


def test_one_bad_box_fails_a_question_about_several(regionqa: "Command", small_cat: Path) -> None:
    given = ("--box", numbers(LEFT), "--box", "110,30,20,120")
    ran = regionqa("ask", small_cat, *given, "what are these?")
    assert (ran.status, ran.out, len(ran.err.splitlines())) == (3, "", 1)


def test_partly_outside_box_is_clipped_with_a_warning(
    regionqa: "Command", engine: Engine, small_cat: Path
) -> None:
    words = ("ask", small_cat, "--box", "-10,-5.5,110,200", "what is this?", "--device", "cpu")
    ran = regionqa(*words)
    assert ran.status == 0
    assert ran.out == engine.ask(small_cat, "what is this?", [(0, 0, 110, 150)]).text + "\n"
    assert ran.err == (
        f"regionqa: warning: {small_cat}: box -10,-5.5,110,200 reaches outside 226 x 150: "
        "clipped to 0,0,110,150\n"
    )
    quiet = regionqa(*words, "--quiet", "--format", "jsonl")
    assert (quiet.status, quiet.err) == (0, "")
    assert boxes(quiet.out) == [[0, 0, 110, 150]]


def test_quiet_does_not_hide_errors(regionqa: "Command", small_cat: Path) -> None:
    ran = regionqa("ask", small_cat, "--box", "5,5,1,1", "what is this?", "--quiet")
    assert (ran.status, ran.out, len(ran.err.splitlines())) == (3, "", 1)


def test_too_many_boxes(regionqa: "Command", starter: Bundle, small_cat: Path) -> None:
    most = starter.card.max_regions
    given = ("--box", numbers(LEFT)) * most
    assert regionqa("ask", small_cat, *given, "what are these?", *QUICK).status == 0
    words = ("ask", small_cat, *given, "--box", numbers(RIGHT), "what are these?", *QUICK)
    ran = regionqa(*words)
    assert (ran.status, ran.out, len(ran.err.splitlines())) == (3, "", 1)
    assert f"{most + 1} regions in one question, the model starter takes {most}" in ran.err
    assert len(regionqa(*words, "--each").lines) == most + 1, "what the message proposes works"


def test_box_and_boxes_are_mutually_exclusive(
    regionqa: "Command", small_cat: Path, tmp_path: Path
) -> None:
    file = save(tmp_path / "boxes.json", {"cat.jpg": [LEFT]})
    ran = regionqa("ask", small_cat, "--box", "1,2,3,4", "--boxes", file, "what is this?")
    assert (ran.status, ran.out) == (2, "")
    assert ran.err == "regionqa: error: --box and --boxes: give one of the two, not both\n"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "there is no such file"),
        ("", "boxes.json"),
        ('{"cat.jpg": [[1, 2, 3, 4]', "boxes.json"),
        ('{"answer": 42}', "is not a box file of a known format"),
    ],
)
def test_unreadable_box_file_is_a_one_line_error(
    regionqa: "Command", small_cat: Path, tmp_path: Path, content: str | None, reason: str
) -> None:
    file = tmp_path / "boxes.json"
    if content is not None:
        file.write_text(content)
    ran = regionqa("caption", small_cat, "--boxes", file)
    assert (ran.status, ran.out, len(ran.err.splitlines())) == (1, "", 1)
    assert reason in ran.err
