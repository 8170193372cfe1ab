"""`regionqa data stats` and `data look`: figures, and a page of records with their boxes."""

import base64
import io
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

from helpers.documents.training_data import coco, good, save, turns
from regionqa.data.overview.samples import RecordSample, sample_records
from regionqa.data.streams.training import LinesStream, LoadedStream, open_training_stream

if TYPE_CHECKING:
    from conftest import Command


def record(image: str, *texts: str, boxes: int = 1, **others: Any) -> dict[str, Any]:
    regions = [[10 * n, 20, 10 * n + 40, 40 + 20 * n] for n in range(boxes)]
    return {"image": image, "regions": regions, "conversations": turns(*texts), **others}


@pytest.fixture
def mine(photos: Path) -> Path:
    """Three usable records, one of them twice, and two bad ones."""
    return save(
        photos / "mine.jsonl",
        record("cat.jpg", "what is <region1>?", "a grey cat.", kind="names"),
        record("cup.jpg", "is <region1> on <region2>?", "yes, the cup is.", "<region2>", "a table.",
               boxes=2, kind="relations"),
        "",
        record("cat.jpg", "what is <region1>?", "a grey cat.", kind="names"),
        record("gone.jpg", "what is <region1>?", "a dog."),
        record("cat.jpg", "what?", "a grey cat, asleep.", boxes=0),
        '{"image": "cat.jpg", "regions": [',
    )  # fmt: skip


# -- stats -----------------------------------------------------------------------------------------


def test_figures_of_a_file(regionqa: "Command", mine: Path, tmp_path: Path) -> None:
    ran = regionqa("data", "stats", mine, "--json", tmp_path / "figures.json")
    assert ran.status == 3
    assert "2 bad records, the first mine.jsonl:5: " in ran.err and "gone.jpg" in ran.err
    assert f"1 duplicate record, the first is usable record 3 of {mine}" in ran.err
    assert ran.lines[0] == f"{mine}: JSON lines"
    found = json.loads((tmp_path / "figures.json").read_text())
    answers = "a grey cat." * 2 + "yes, the cup is." + "a table." + "a grey cat, asleep."
    questions = "what is <region1>?" * 2 + "is <region1> on <region2>?" + "<region2>" + "what?"
    assert found["counts"] == {
        "records": 4, "bad_records": 2, "duplicate_records": 1, "images": 2, "missing_images": 1,
        "broken_images": 0, "regions": 4, "labelled_regions": 0, "clipped_regions": 0, "turns": 5,
        "records_without_regions": 1, "tokens_of_answers": len(answers) // 4,
        "tokens_of_questions": len(questions) // 4,
    }  # fmt: skip
    assert found["records_by_kind"] == {"names": 2, "(not told)": 1, "relations": 1}
    assert found["records_by_number_of_regions"] == {"none": 1, "1": 2, "2": 1}
    assert found["records_by_number_of_turns"] == {"1": 3, "2": 1}
    assert found["regions_by_shorter_side"] == {"below 16": 0, "16 to 32": 3, "32 to 64": 1}
    assert list(found["regions_by_area"].values()) == [3, 1, 0]
    assert found["questions_by_first_word"] == {"what": 3, "(the region alone)": 1, "is": 1}
    assert found["questions_by_length"] == {"1": 2, "2": 0, "3 to 5": 3}
    assert found["answers_by_length"] == {"1": 0, "2": 1, "3 to 5": 4}
    assert found["most_frequent_words_of_answers"] == {
        "cat": 3, "grey": 3, "asleep": 1, "cup": 1, "table": 1, "yes": 1,
    }  # fmt: skip
    assert "  relations            1   25.0 %  ####################" in ran.lines


def test_several_files_are_counted_together(
    regionqa: "Command", mine: Path, photos: Path, tmp_path: Path
) -> None:
    boxes = photos / "instances.json"
    boxes.write_text(json.dumps(coco({"id": 1, "bbox": [1, 2, 30, 40]})))
    twice = save(photos / "twice.jsonl", json.loads(mine.read_text().splitlines()[0]))
    out = tmp_path / "figures.json"
    ran = regionqa("data", "stats", twice, boxes, mine, "--json", out, "--images", photos)
    assert ran.status == 3
    found = json.loads(out.read_text())
    assert [line.partition(": ")[2] for line in found["files"]] == [
        "JSON lines", "COCO", "JSON lines",
    ]  # fmt: skip
    assert (found["counts"]["records"], found["counts"]["duplicate_records"]) == (6, 2)
    assert found["counts"]["labelled_regions"] == 1
    assert found["first_duplicate"] == f"usable record 1 of {mine}"
    assert "images without annotations left out: 1" in ran.err


def test_a_file_without_records_is_an_error(regionqa: "Command", tmp_path: Path) -> None:
    lines = save(tmp_path / "mine.jsonl", good(), good())
    ran = regionqa("data", "stats", lines)
    assert (ran.status, ran.out) == (1, "")
    assert "mine.jsonl: 2 of 2 records cannot be used: mine.jsonl:1: " in ran.err
    assert regionqa("data", "stats", tmp_path / "none.jsonl").status == 1


# -- look ------------------------------------------------------------------------------------------


def images_on(page: str) -> list[Image.Image]:
    found = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', page)
    return [Image.open(io.BytesIO(base64.b64decode(each))) for each in found]


def test_page_shows_records_of_every_kind(
    regionqa: "Command", photos: Path, tmp_path: Path
) -> None:
    many = [record("cat.jpg", f"<b>{n}</b> <region1>?", "a cat.", kind="many") for n in range(30)]
    few = record("cup.jpg", "is <region2> left of <region1>?", "no & yes.", boxes=2, kind="few")
    few["regions"][1] = {"box": few["regions"][1], "label": "spoon"}
    path, out = save(photos / "mine.jsonl", *many, few), tmp_path / "look.html"
    ran = regionqa("data", "look", path, "--out", out, "--count", 5)
    assert (ran.status, ran.err, ran.out) == (0, "", f"5 records shown in {out}\n")
    page = out.read_text()
    assert "<h2>many: 4 of 30 records</h2>" in page and "<h2>few: 1 of 1 record</h2>" in page
    assert "mine.jsonl:31" in page and "no &amp; yes." in page and "<b>" not in page
    assert re.search(r"is <span [^>]+>2</span> left of <span [^>]+>1</span>\?", page)
    assert re.search(r"<span [^>]+>2</span> spoon", page)
    assert not re.search(r"""(?:src|href)=["'](?!data:)""", page)
    shown = images_on(page)
    assert len(shown) == 5
    with Image.open(photos / "cup.jpg") as photo:
        plain, scale = photo.convert("RGB").resize(shown[4].size), shown[4].width / photo.width
    strip = (0, round(20 * scale), 40, round(20 * scale) + 6)
    assert shown[4].crop(strip).tobytes() != plain.crop(strip).tobytes()


def test_page_depends_on_the_seed_alone(regionqa: "Command", photos: Path, tmp_path: Path) -> None:
    many = [record("cat.jpg", f"{n} <region1>?", "a cat.") for n in range(40)]
    path, pages = save(photos / "mine.jsonl", *many), []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        line = ("data", "look", path, "--out", tmp_path / name, "--count", 3, "--seed", seed)
        assert regionqa(*line).status == 0
        pages.append((tmp_path / name).read_text())
    assert pages[0] == pages[1] != pages[2]


def test_images_that_cannot_be_decoded_are_named(
    regionqa: "Command", photos: Path, tmp_path: Path
) -> None:
    (photos / "cut.jpg").write_bytes((photos / "cat.jpg").read_bytes()[:1500])
    path = save(photos / "mine.jsonl", good(image="cut.jpg"), good(), good(image="gone.jpg"))
    ran = regionqa("data", "look", path, "--out", tmp_path / "look.html")
    assert (ran.status, ran.out) == (3, f"1 record shown in {tmp_path / 'look.html'}\n")
    assert "mine.jsonl:1: " in ran.err and "cut.jpg" in ran.err
    assert "1 bad record left out, the first mine.jsonl:3: " in ran.err


# -- streams and samples ---------------------------------------------------------------------------


def keys_of(sample: RecordSample) -> dict[str, list[str]]:
    return {kind.kind: [each.where for each in sample.records(kind)] for kind in sample.kinds}


def test_lines_and_documents_give_the_same_records(photos: Path) -> None:
    documents = [good(kind=f"k{n % 3}", id=n) for n in range(7)]
    lines = open_training_stream(save(photos / "a.jsonl", *documents))
    (photos / "b.json").write_text(json.dumps(documents))
    array = open_training_stream(photos / "b.json")
    assert isinstance(lines, LinesStream) and isinstance(array, LoadedStream)
    for key, part in lines.keyed():
        assert lines.record(key) == part or lines.record(key).where == "a.jsonl:0"
    found = keys_of(sample_records(lines, 4, 0))
    assert {kind: len(wheres) for kind, wheres in found.items()} == {"k0": 2, "k1": 1, "k2": 1}
    assert len(keys_of(sample_records(array, 100, 0))["k0"]) == 3


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_converted_lines_are_the_same(
    regionqa: "Command", photos: Path, tmp_path: Path, ending: str
) -> None:
    """Also after a byte order mark, blank lines and Windows line ends."""
    path = photos / "mine.jsonl"
    lines = ["", *(json.dumps(good(kind="names")) for _ in range(3)), ""]
    path.write_bytes(b"\xef\xbb\xbf" + ending.join(lines[1:]).encode())
    out = photos / "out.jsonl"
    assert regionqa("data", "convert", path, "--out", out).status == 0
    found = [json.loads(line) for line in out.read_text().splitlines()]
    assert found == [{**good(kind="names")}] * 3
