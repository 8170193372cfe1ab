"""Images on the command line: files, folders, globs, pipes, and broken images."""

import csv
import io
import json
import shutil
import struct
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from PIL import ExifTags, Image

from regionqa.engine import Engine

if TYPE_CHECKING:
    from conftest import Command

pytestmark = pytest.mark.usefixtures("shared_engine")

QUICK = ("--max-new-tokens", 2, "--device", "cpu")
JSONL = ("--format", "jsonl", *QUICK)
NAMES = ["astronaut.jpg", "cat.jpg", "cup.jpg"]


def records(text: str) -> list[dict[str, Any]]:
    """The objects of JSON lines."""
    return [json.loads(line) for line in text.splitlines()]


def png(width: int, height: int) -> bytes:
    """A PNG whose header claims this size."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + check

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(b"")), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


# -- where images come from ----------------------------------------------------------------------


def test_images_from_arguments_folders_and_pipes(
    regionqa: "Command", photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(photos.parent)
    shutil.copy(photos / "cat.jpg", photos / ".hidden.jpg")
    (photos / "notes.txt").write_text("not an image")
    named = regionqa("caption", *(f"photos/{name}" for name in NAMES), *JSONL)
    assert [record["image"] for record in records(named.out)] == [f"photos/{x}" for x in NAMES]
    assert regionqa("caption", "photos", *JSONL) == named
    assert regionqa("caption", "photos/*.jpg", *JSONL) == named
    lines = "".join(f"photos/{name}\n" for name in NAMES)
    assert regionqa("caption", "-", *JSONL, stdin=lines) == named
    mixed = regionqa("caption", "-", "photos/cup.jpg", *JSONL, stdin="\n".join(lines.split()[:2]))
    assert mixed == named


@pytest.mark.parametrize(
    ("suffix", "format"),
    [("jpg", "JPEG"), ("png", "PNG"), ("webp", "WEBP"), ("bmp", "BMP"), ("tif", "TIFF"),
     ("gif", "GIF"), ("upload", "PNG")],
)  # fmt: skip
def test_image_formats(
    regionqa: "Command", cat: Path, tmp_path: Path, suffix: str, format: str
) -> None:
    path = tmp_path / f"cat.{suffix}"
    with Image.open(cat) as image:
        image.save(path, format)
    (record,) = records(regionqa("ask", path, "what is this?", *JSONL).out)
    assert (record["width"], record["height"], record["error"]) == (451, 300, None)


def test_boxes_refer_to_the_image_as_displayed(
    regionqa: "Command", engine: Engine, photos: Path
) -> None:
    upright, turned = photos / "upright.png", photos / "turned.png"
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    with Image.open(photos / "cat.jpg") as image:
        image.transpose(Image.Transpose.ROTATE_270).save(upright)
        image.save(turned, exif=exif)
    words = ("--box", "10,20,140,200", "what is this?", "--device", "cpu")
    first, second = (regionqa("ask", path, *words) for path in (upright, turned))
    assert first == second
    assert first.out == engine.ask(upright, "what is this?", [(10, 20, 140, 200)]).text + "\n"


# -- requests, line by line ------------------------------------------------------------------------


def test_json_requests_are_answered_in_order(
    regionqa: "Command", engine: Engine, photos: Path
) -> None:
    box, other = [10, 20, 100, 120], [60, 30, 140, 130]
    requests: list[dict[str, Any]] = [
        {"image": "cup.jpg", "regions": [box], "question": "what is this?"},
        {"image": "cat.jpg", "regions": [box, other], "question": "what is <region2>?"},
        {"image": "cat.jpg", "question": "what is in the picture?"},
        {"image": "cup.jpg", "regions": [], "question": "what is this?"},
        {"image": "cat.jpg", "regions": [other], "question": "what is this?"},
    ] * 2
    for request in requests:
        request["image"] = str(photos / Path(request["image"]).name)
    stdin = "".join(json.dumps(request) + "\n" for request in requests)
    ran = regionqa("ask", "-", *JSONL, stdin=stdin)
    assert (ran.status, ran.err) == (0, "")
    asked = [
        {
            "image": record["image"],
            "regions": [region["box"] for region in record["regions"]],
            "question": record["question"],
        }
        for record in records(ran.out)
    ]
    assert asked == [{"regions": [], **request} for request in requests]
    assert [record["answer"] for record in records(ran.out)] == [
        engine.ask(
            request["image"], request["question"], request.get("regions", []), max_new_tokens=2
        ).text
        for request in requests
    ]


def test_question_argument_is_the_default_of_requests(regionqa: "Command", photos: Path) -> None:
    cat = str(photos / "cat.jpg")
    lines = [
        json.dumps({"image": cat, "question": "is it a dog?"}),
        json.dumps({"image": cat, "regions": [[1, 2, 30, 40]]}),
        cat,
    ]
    ran = regionqa("ask", "-", "what?", "-b", "5,5,50,50", *JSONL, stdin="\n".join(lines))
    assert [
        (record["question"], [region["box"] for region in record["regions"]])
        for record in records(ran.out)
    ] == [
        ("is it a dog?", [[5, 5, 50, 50]]),
        ("what?", [[1, 2, 30, 40]]),
        ("what?", [[5, 5, 50, 50]]),
    ]


def test_id_and_meta_come_back_with_the_answer(regionqa: "Command", photos: Path) -> None:
    asking = {"image": str(photos / "cat.jpg"), "question": "what is this?"}
    lines: list[dict[str, Any]] = [
        {**asking, "id": "a-1", "meta": {"page": 3, "note": 'say "é", twice'}},
        asking,
        {**asking, "bbox": [1, 2, 30, 40], "id": 7},
    ]
    stdin = "".join(json.dumps(each) + "\n" for each in lines)
    own = [{key: each[key] for key in ("id", "meta") if key in each} for each in lines]
    for format in ("jsonl", "json"):
        ran = regionqa("ask", "-", "--format", format, "--max-new-tokens", 1, stdin=stdin)
        assert ran.status == 3
        answers = records(ran.out) if format == "jsonl" else json.loads(ran.out)
        found = [{key: each[key] for key in ("id", "meta") if key in each} for each in answers]
        assert found == own
        assert [each["answer"] is None for each in answers] == [False, False, True]
    ran = regionqa("ask", "-", "--format", "csv", "--max-new-tokens", 1, stdin=stdin)
    rows = list(csv.DictReader(io.StringIO(ran.out)))
    assert [row["id"] for row in rows] == ["a-1", "", "7"]
    assert [json.loads(row["meta"] or "null") for row in rows] == [lines[0]["meta"], None, None]


def test_csv_that_began_without_an_id_says_so(regionqa: "Command", photos: Path) -> None:
    asking = {"image": str(photos / "cat.jpg"), "question": "what is this?"}
    stdin = json.dumps(asking) + "\n" + json.dumps({**asking, "id": 7}) + "\n"
    ran = regionqa("ask", "-", "--format", "csv", "--max-new-tokens", 1, stdin=stdin)
    first, second = csv.DictReader(io.StringIO(ran.out))
    assert (ran.status, first["error"]) == (3, "")
    assert "has id, for which this CSV file has no column" in second["error"]


BAD_LINES = [
    ("{", "line 2 of stdin: is not a JSON request"),
    ('{"file": "a.jpg"}', "line 4 of stdin: unknown key 'file'; did you mean 'image'?"),
    ('{"image": "CAT", "regions": [[1, 2, 3]]}', "four numbers are expected, 3 values found"),
    ('{"image": "CAT", "regions": [[NaN, 2, 3, 4]]}', "must be a finite number"),
    ('{"image": "CAT", "regions": [[9, 9, 1, 1]], "question": "what?"}', "right must exceed left"),
    ('{"image": "CAT", "question": 5}', "line 12 of stdin: 'question' is 5; write text"),
    ('{"image": "CAT", "question": "\\ud800"}', "the question is not valid text at character 1"),
    ('{"image": "CAT"}', "CAT: no question"),
    ("CAT", "CAT: no question"),
    ('{"image": "gone.jpg", "question": "what?"}', "gone.jpg: no such file"),
]


def test_bad_line_fails_in_its_place(regionqa: "Command", photos: Path) -> None:
    cat = str(photos / "cat.jpg")
    good = json.dumps({"image": cat, "question": "what is this?"})
    lines = [text for line, _ in BAD_LINES for text in (good, line.replace("CAT", cat))]
    ran = regionqa("ask", "-", *JSONL, stdin="\n".join([*lines, good]))
    assert (ran.status, ran.err) == (3, "")
    answers = records(ran.out)
    assert all(answer == answers[0] for answer in answers[::2])
    assert answers[0]["error"] is None
    for answer, (_, reason) in zip(answers[1::2], BAD_LINES, strict=True):
        assert answer["answer"] is None
        assert reason.replace("CAT", cat) in answer["error"]


# -- broken images -------------------------------------------------------------------------------


BROKEN = {
    "missing": "no such file",
    "empty": "empty file",
    "text": "not an image (JPEG, PNG, WebP, BMP, TIFF, GIF, AVIF and HEIF are read)",
    "torn": "cannot be decoded",
    "bomb": "2500000000 pixels",
    "pdf": "a PDF, which is not read; convert it",
}


def break_image(kind: str, path: Path) -> None:
    """Turn a valid JPEG into one of `BROKEN`."""
    sound = path.read_bytes()
    path.unlink()
    contents = {
        "empty": b"", "text": b"no image at all", "torn": sound[:2000], "bomb": png(50000, 50000),
        "pdf": b"%PDF-1.7\n",
    }  # fmt: skip
    if kind in contents:
        path.write_bytes(contents[kind])


def test_broken_image_fails_in_its_place(regionqa: "Command", photos: Path, tmp_path: Path) -> None:
    good, broken = photos / "cat.jpg", {}
    for kind in BROKEN:
        broken[kind] = tmp_path / f"{kind}.jpg"
        shutil.copy(good, broken[kind])
        break_image(kind, broken[kind])
    words = ("caption", *(path for bad in broken.values() for path in (good, bad)), good)
    ran = regionqa(*words, "--box", "5,5,90,90", *QUICK)
    assert (ran.status, len(ran.lines), len(set(ran.lines))) == (3, len(BROKEN) + 1, 1)
    for line, (kind, path) in zip(ran.err.splitlines(), broken.items(), strict=True):
        assert line.startswith(f"regionqa: {path}: ")
        assert BROKEN[kind] in line
    ran = regionqa(*words, "--box", "5,5,90,90", *JSONL)
    assert (ran.status, ran.err) == (3, "")
    for record, (kind, path) in zip(records(ran.out)[1::2], broken.items(), strict=True):
        assert (record["image"], record["answer"]) == (str(path), None)
        assert BROKEN[kind] in record["error"]


def test_folder_without_images_is_refused(regionqa: "Command", photos: Path) -> None:
    empty = photos / "empty.jpg"
    empty.mkdir()
    for words in ((empty,), (photos / "*.jpeg",), (photos, empty)):
        ran = regionqa("caption", *words)
        assert (ran.status, ran.out, len(ran.err.splitlines())) == (2, "", 1)
        assert "no images" in ran.err


def test_directory_in_a_pipe_fails_alone(regionqa: "Command", photos: Path) -> None:
    lines = f"{photos / 'cat.jpg'}\n{photos}\n{photos / 'cup.jpg'}\n"
    ran = regionqa("caption", "-", *QUICK, stdin=lines)
    assert (ran.status, len(ran.lines), len(ran.err.splitlines())) == (3, 2, 1)
    assert f"{photos}: a directory, not an image" in ran.err


def test_five_broken_files_of_fifty(regionqa: "Command", photos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "fifty"
    folder.mkdir()
    for number in range(50):
        shutil.copy(photos / NAMES[number % 3], folder / f"{number:02}.jpg")
    broken = {4: "empty", 5: "text", 16: "torn", 33: "bomb", 49: "pdf"}
    for number, kind in broken.items():
        break_image(kind, folder / f"{number:02}.jpg")
    ran = regionqa("caption", folder, "--max-new-tokens", 1, "--device", "cpu")
    assert (ran.status, len(ran.lines), len(ran.err.splitlines())) == (3, 45, 5)
    for (number, kind), line in zip(broken.items(), ran.err.splitlines(), strict=True):
        assert line.startswith(f"regionqa: {folder}/{number:02}.jpg: ")
        assert BROKEN[kind] in line
