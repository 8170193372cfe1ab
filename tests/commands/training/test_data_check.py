"""`regionqa data check` and `data draw`: summary, problems, drawings."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

from regionqa.data.check import summarise
from regionqa.data.files import read_training_data
from regionqa.data.records import Problem
from regionqa.errors import OutputError
from regionqa.pipeline.draw_records import DRAWN_TURNS, draw_examples

if TYPE_CHECKING:
    from conftest import Command

NAMES = ("cat.jpg", "cup.jpg", "astronaut.jpg")


def record(image: str, *boxes: list[float], answer: str = "a cat.") -> dict[str, Any]:
    texts = [{"from": "human", "value": "what?"}, {"from": "gpt", "value": answer}]
    return {"image": image, "regions": list(boxes), "conversations": texts}


def save(path: Path, *documents: object) -> Path:
    path.write_text("".join(json.dumps(each) + "\n" for each in documents))
    return path


@pytest.fixture
def mine(photos: Path) -> Path:
    """Five good records of three photos."""
    return save(
        photos / "mine.jsonl",
        record("cat.jpg", [10, 20, 20, 80]),
        record("cup.jpg", [0, 0, 16, 99], [0, 0, 400, 150], answer="a cup of hot black coffee."),
        record("cat.jpg", answer="a cat sitting."),
        record("astronaut.jpg", [0, 0, 256, 256]),
        record("cat.jpg", [10, 20, 42, 180]),
    )


def test_summary_of_valid_data(regionqa: "Command", mine: Path) -> None:
    ran = regionqa("data", "check", mine)
    assert (ran.status, ran.err) == (0, "")
    assert (
        ran.out
        == f"""{mine}: JSON lines
  records                           5
  bad records                       0
  images                            3
  regions                           5
  clipped regions                   2
  turns                             5
  records without regions           1

regions by shorter side, in pixels
  below 16               1   20.0 %  ########################################
  16 to 32               1   20.0 %  ########################################
  32 to 64               1   20.0 %  ########################################
  64 to 128              0    0.0 %
  128 to 256             1   20.0 %  ########################################
  256 and more           1   20.0 %  ########################################

answers by length, in words
  1                 0    0.0 %
  2                 3   60.0 %  ########################################
  3 to 5            1   20.0 %  ##############
  6 to 10           1   20.0 %  ##############

most frequent answers
  a cat.                               3   60.0 %  ########################################
  a cup of hot black coffee.           1   20.0 %  ##############
  a cat sitting.                       1   20.0 %  ##############
"""
    )


def test_problems_are_listed_with_lines(regionqa: "Command", photos: Path) -> None:
    file = save(photos / "mine.jsonl", *[record("gone.jpg")] * 30, record("cat.jpg"))
    ran = regionqa("data", "check", file)
    assert ran.status == 3
    listed = ran.lines[ran.lines.index("30 problems") + 1 :]
    gone = f"{photos / 'gone.jpg'}: no such file; give the folder of the images with --images"
    assert listed == [
        *(f"  mine.jsonl:{number}: {gone}" for number in range(1, 21)),
        "  and 10 more; --show 0 lists all",
    ]
    assert len(regionqa("data", "check", file, "--show", 0).lines) == len(ran.lines) + 9
    two = regionqa("data", "check", file, "--show", 2).lines
    assert two[-1] == "  and 28 more; --show 0 lists all"
    assert regionqa("data", "check", file, "--images", photos.parent).status == 1


def test_no_usable_record_is_fatal_after_the_report(regionqa: "Command", photos: Path) -> None:
    ran = regionqa("data", "check", save(photos / "mine.jsonl", {}, record("cat.jpg", [5])))
    assert ran.status == 1
    assert "mine.jsonl:2: region 1: box [5]" in ran.out
    assert "2 of 2 records cannot be used" in ran.err
    assert len(ran.err.splitlines()) == 1


def test_draw_examples(regionqa: "Command", mine: Path, tmp_path: Path) -> None:
    out = tmp_path / "drawn"
    ran = regionqa("data", "check", mine, "--draw", 9, "--out", out)
    assert (ran.status, ran.lines[-1]) == (0, f"3 images drawn in {out}")
    assert sorted(path.name for path in out.iterdir()) == [
        "001-cat.jpg", "002-cup.jpg", "003-astronaut.jpg",
    ]  # fmt: skip
    for path in out.iterdir():
        with Image.open(path) as image:
            assert image.width == 640
            assert image.height > 400
    for words in (("--draw", 3), ("--out", out)):
        assert regionqa("data", "check", mine, *words).status == 2


def test_truncated_image_is_found(regionqa: "Command", mine: Path, tmp_path: Path) -> None:
    cat = mine.parent / "cat.jpg"
    cat.write_bytes(cat.read_bytes()[:2000])
    ran = regionqa("data", "check", mine)
    assert (ran.status, ran.lines[-4]) == (3, "3 problems")
    for line, number in zip(ran.lines[-3:], (1, 3, 5), strict=True):
        assert line.startswith(f"  mine.jsonl:{number}: {cat}: cannot be decoded: image file is")
    assert regionqa("data", "check", mine, "--fast").status == 0
    ran = regionqa("data", "check", mine, "--fast", "--draw", 3, "--out", tmp_path / "drawn")
    assert (ran.status, ran.lines[-1].split()[0]) == (3, "2")
    assert ran.err.startswith(f"regionqa: {cat}: cannot be decoded")


def test_an_image_without_its_end_marker_is_good_with_a_warning(
    regionqa: "Command", mine: Path
) -> None:
    cat = mine.parent / "cat.jpg"
    cat.write_bytes(cat.read_bytes()[:-2])
    ran = regionqa("data", "check", mine)
    assert ran.status == 0
    assert ran.err.startswith(f"regionqa: warning: {cat}: lacks the end marker of a JPEG")


def test_the_limits_of_the_model_hold(regionqa: "Command", photos: Path) -> None:
    boxes = [[10.0 + n, 10, 60 + n, 60] for n in range(17)]
    documents = (record("cat.jpg", answer="long " * 300), record("cat.jpg"))
    file = save(photos / "mine.jsonl", *documents, record("cat.jpg", *boxes))
    ran = regionqa("data", "check", file)
    assert (ran.status, ran.lines[-3]) == (3, "2 problems")
    assert "mine.jsonl:1: questions and answers take" in ran.lines[-2]
    assert "mine.jsonl:3: 17 regions in one record, the model starter takes 16" in ran.lines[-1]
    assert regionqa("data", "check", file, "--model", "no-such-model").status == 1


def test_id_and_meta_are_allowed_and_other_keys_are_problems(
    regionqa: "Command", photos: Path
) -> None:
    good = {**record("cat.jpg"), "id": 3, "meta": {"source": "me"}}
    keys = ("boxes", "bbox", "bbox_2d", "region", "regoins", "Regions")
    bad = [{**record("cat.jpg"), key: [[1, 2, 30, 40]]} for key in keys]
    ran = regionqa("data", "check", save(photos / "mine.jsonl", good, *bad))
    assert ran.status == 3
    assert ran.lines[-len(keys) :] == [
        f"  mine.jsonl:{number}: unknown key {key!r}; did you mean 'regions'?"
        for number, key in enumerate(keys, start=2)
    ]


# -- units -----------------------------------------------------------------------------------------


def test_examples_are_spread_and_reproducible(photos: Path, tmp_path: Path) -> None:
    for number in range(20):
        (photos / f"{number:02}.jpg").write_bytes((photos / "cat.jpg").read_bytes())
    documents = [record(f"{number:02}.jpg", [5, 5, 50, 50]) for number in range(20)]
    data = read_training_data(save(photos / "mine.jsonl", *documents))
    drawn = draw_examples(data, 4, tmp_path / "a", print)
    again = draw_examples(data, 4, tmp_path / "b", print)
    assert [path.name for path in drawn] == [path.name for path in again]
    stretches = [int(path.stem.split("-")[1]) // 5 for path in drawn]
    assert stretches == [0, 1, 2, 3]
    with pytest.raises(OutputError, match="cannot be created"):
        draw_examples(data, 1, photos / "cat.jpg", print)


def test_drawing_limits_turns(photos: Path, tmp_path: Path) -> None:
    heights = []
    for count in (DRAWN_TURNS, 4 * DRAWN_TURNS):
        documents = [record("cat.jpg", [5, 5, 50, 50])] * count
        data = read_training_data(save(photos / "mine.jsonl", *documents))
        (path,) = draw_examples(data, 1, tmp_path / str(count), print)
        with Image.open(path) as image:
            heights.append(image.height)
    assert heights[0] == heights[1]


def test_control_characters_are_escaped(photos: Path) -> None:
    answer = "a\x1b[31m cat\nand\u2028more " + "x" * 99
    data = read_training_data(save(photos / "mine.jsonl", record("cat.jpg", answer=answer)))
    lines = list(summarise(data).lines())
    assert not any(set(line) & set("\x1b\n\u2028") for line in lines)
    assert lines[-1].split("  ")[1].endswith("...")
    assert str(Problem("a:1", "b\x1b\ud800c")) == "a:1: b c"


def test_report_of_empty_data(photos: Path) -> None:
    (photos / "a.json").write_text("[]")
    title, *counts = summarise(read_training_data(photos / "a.json")).lines()
    assert title.endswith("a.json: a JSON array of conversations")
    assert {line.split()[-1] for line in counts} == {"0"}
