"""What a user asks: which answers come, in which form, and what is said where none can come.

Boxes have their own file (test_cli_boxes.py), and so have images (test_cli_images.py), the
commands that do not ask (test_cli_commands.py) and what needs a process (test_pipelines.py).
"""

import csv
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from PIL import Image

from regionqa.bundles.store import Bundle
from regionqa.engine import Engine

if TYPE_CHECKING:
    from conftest import Command

pytestmark = pytest.mark.usefixtures("shared_engine")

HEAD = "120,20,345,240"
QUICK = ("--max-new-tokens", 2, "--device", "cpu")
RECORD = (
    "image", "width", "height", "regions", "question", "answer", "model", "revision", "device",
    "dtype", "ms", "error",
)  # fmt: skip


def records(text: str) -> list[dict[str, Any]]:
    """The objects of JSON lines."""
    return [json.loads(line) for line in text.splitlines()]


# -- an answer -------------------------------------------------------------------------------------


def test_answer_is_one_line_on_stdout(regionqa: "Command", cat: Path) -> None:
    ran = regionqa("ask", cat, "--box", HEAD, "what is this?")
    assert (ran.status, len(ran.lines), ran.err) == (0, 1, "")
    assert ran.out.endswith("\n")


@pytest.mark.parametrize("boxes", [(), (HEAD,), (HEAD, "0,0,100,100")])
def test_python_gives_the_same_answer(
    regionqa: "Command", engine: Engine, cat: Path, boxes: tuple[str, ...]
) -> None:
    words = [word for box in boxes for word in ("--box", box)]
    ran = regionqa("ask", cat, *words, "what is this?", "--device", "cpu")
    numbers = [tuple(map(float, box.split(","))) for box in boxes]
    assert ran.out == engine.ask(cat, "what is this?", numbers).text + "\n"


def test_max_new_tokens_option(regionqa: "Command", engine: Engine, cat: Path) -> None:
    for longest in (1, 3):
        ran = regionqa("ask", cat, "what is this?", "--max-new-tokens", longest, "--device", "cpu")
        assert ran.out == engine.ask(cat, "what is this?", max_new_tokens=longest).text + "\n"


def test_model_option_takes_a_bundle_folder(
    regionqa: "Command", cat: Path, starter: Bundle
) -> None:
    by_name = regionqa("ask", cat, "what is this?", *QUICK)
    by_folder = regionqa("ask", cat, "what is this?", "--model", starter.root, *QUICK)
    assert by_folder == by_name


# -- forms of answers ------------------------------------------------------------------------------


def test_text_output_names_the_image_if_several(regionqa: "Command", photos: Path) -> None:
    ran = regionqa("ask", photos, "--box", "10,10,90,90", "what is this?", *QUICK)
    assert [line.split("\t")[:2] for line in ran.lines] == [
        [f"{photos / name}", "10,10,90,90"] for name in ("astronaut.jpg", "cat.jpg", "cup.jpg")
    ]


@pytest.mark.parametrize("format", ["json", "jsonl"])
def test_json_keys_and_their_order(
    regionqa: "Command", starter: Bundle, photos: Path, format: str
) -> None:
    good, bad = photos / "cat.jpg", photos / "gone.jpg"
    ran = regionqa("ask", good, bad, "--box", "10,20,30.5,40", "what?", "-f", format, *QUICK)
    answer, error = json.loads(ran.out) if format == "json" else records(ran.out)
    assert (ran.status, ran.err) == (3, "")
    assert tuple(answer) == tuple(error) == RECORD
    assert answer | {"answer": None} == {
        "image": str(good), "width": 226, "height": 150,
        "regions": [{"id": 1, "box": [10, 20, 30.5, 40], "label": None}],
        "question": "what?", "answer": None, "model": "starter", "ms": None, "error": None,
        "revision": starter.card.revision, "device": "cpu", "dtype": "float32",
    }  # fmt: skip
    assert isinstance(answer["answer"], str)
    assert error["error"] == f"{bad}: no such file"
    assert (error["answer"], error["width"], error["regions"]) == (None, None, [])


def test_csv_output(regionqa: "Command", photos: Path) -> None:
    ran = regionqa("ask", photos, "--box", "1,2,30,40", "what, then?", "-f", "csv", *QUICK)
    header, *rows = csv.reader(ran.lines)
    assert header == [*RECORD[:3], "boxes", "labels", *RECORD[4:]]
    assert [(row[0], row[3], row[5]) for row in rows] == [
        (str(path), "1,2,30,40", "what, then?") for path in sorted(photos.iterdir())
    ]


def test_timing_option(regionqa: "Command", cat: Path) -> None:
    (plain,) = records(regionqa("ask", cat, "what?", "-f", "jsonl", *QUICK).out)
    (timed,) = records(regionqa("ask", cat, "what?", "-f", "jsonl", "--timing", *QUICK).out)
    assert plain["ms"] is None
    assert timed["ms"] > 0


def test_out_option(regionqa: "Command", photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "answers.jsonl"
    seen = regionqa("caption", photos, "--format", "jsonl", *QUICK)
    kept = regionqa("caption", photos, "--format", "jsonl", "--out", out, *QUICK)
    assert (kept.status, kept.out, kept.err) == (0, "", "")
    assert out.read_text() == seen.out


def test_unwritable_output_is_a_one_line_error(
    regionqa: "Command", cat: Path, tmp_path: Path
) -> None:
    ran = regionqa("ask", cat, "what?", "--out", tmp_path / "no" / "a.txt")
    assert (ran.status, ran.out, len(ran.err.splitlines())) == (1, "", 1)
    assert f"there is no folder {tmp_path / 'no'}" in ran.err


# -- going on --------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["jsonl", "csv"])
def test_resume_after_a_truncated_line(
    regionqa: "Command", photos: Path, tmp_path: Path, format: str
) -> None:
    out = tmp_path / "answers"
    words = ("caption", photos, "--format", format, "--out", out, *QUICK)
    assert regionqa(*words).status == 0
    whole = out.read_bytes()
    out.write_bytes(whole[: -len(whole) // 2])
    ran = regionqa(*words, "--resume")
    assert (ran.status, ran.err) == (0, "")
    assert out.read_bytes() == whole


def test_retry_errors_option(regionqa: "Command", photos: Path, tmp_path: Path) -> None:
    out, late = tmp_path / "answers.jsonl", photos / "late.jpg"
    words = ("caption", *sorted(photos.iterdir()), late, "-f", "jsonl", "--out", out, *QUICK)
    assert regionqa(*words).status == 3
    shutil.copy(photos / "cat.jpg", late)
    assert regionqa(*words, "--resume").status == 3, "the file still holds an error"
    assert regionqa(*words, "--resume", "--retry-errors").status == 0
    assert [record["error"] for record in records(out.read_text())] == [None] * 4


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--resume"], "--resume: needs the file to continue; add --out FILE"),
        (["--resume", "--out", "a.txt"], "--resume: text cannot be resumed; use --format jsonl"),
    ],
)
def test_resume_of_unsupported_output_is_a_usage_error(
    regionqa: "Command", cat: Path, words: list[str], reason: str
) -> None:
    ran = regionqa("caption", cat, *words)
    assert (ran.status, ran.out, ran.err) == (2, "", f"regionqa: error: {reason}\n")


# -- drawings --------------------------------------------------------------------------------------


def test_draw_option(regionqa: "Command", cat: Path, tmp_path: Path) -> None:
    drawing = tmp_path / "cat.webp"
    ran = regionqa("ask", cat, "--box", HEAD, "what is this?", "--draw", drawing, *QUICK)
    assert (ran.status, len(ran.lines), ran.err) == (0, 1, "")
    with Image.open(drawing) as image:
        assert image.width / image.height < 451 / 300, "the answer stands below the image"


def test_draw_option_for_several_images(regionqa: "Command", photos: Path, tmp_path: Path) -> None:
    (photos / "broken.jpg").write_bytes((photos / "cat.jpg").read_bytes()[:2000])
    ran = regionqa("caption", photos, "--draw", tmp_path / "drawn", *QUICK)
    assert (ran.status, len(ran.lines)) == (3, 3)
    drawn = sorted(path.name for path in (tmp_path / "drawn").iterdir())
    assert drawn == ["astronaut.png", "cat.png", "cup.png"]


def test_impossible_drawing_is_refused_before_loading(
    regionqa: "Command", photos: Path, tmp_path: Path
) -> None:
    for words in ((photos, "--draw", tmp_path / "a.png"), (photos / "cat.jpg", "--draw", "a.txt")):
        ran = regionqa("caption", *words)
        assert (ran.status, ran.out, len(ran.err.splitlines())) == (2, "", 1)


# -- devices ---------------------------------------------------------------------------------------


def test_cuda_without_a_gpu_is_refused(
    regionqa: "Command", cat: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    ran = regionqa("ask", cat, "what?", "--device", "cuda")
    assert (ran.status, ran.out, len(ran.err.splitlines())) == (1, "", 1)
    assert "--device cuda: CUDA cannot be used: " in ran.err
    auto = regionqa("ask", cat, "what?", "--format", "jsonl", "--max-new-tokens", 2)
    assert [record["device"] for record in records(auto.out)] == ["cpu"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA works here")
def test_session_that_falls_back_to_cpu_is_refused(
    regionqa: "Command", cat: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("regionqa.runtime.devices.why_not_cuda", lambda: None)
    ran = regionqa("ask", cat, "what?", "--device", "cuda")
    assert (ran.status, ran.out, len(ran.err.splitlines())) == (1, "", 1)
    assert "ONNX Runtime's CUDA provider does not load" in ran.err


# -- commands put together wrongly -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["ask"], "Missing argument"),
        (["asc"], "No such command"),
        (["ask", "CAT"], "the question is missing; add it last"),
        (["ask", "CAT", "CAT"], "the question is missing; add it last"),
        (["ask", "CAT", "what?", "--device", "tpu"], "--device"),
        (["ask", "CAT", "what?", "--format", "xml"], "--format"),
        (["ask", "CAT", "what?", "--max-new-tokens", "0"], "--max-new-tokens"),
        (["ask", "CAT", "what?", "--batch-size", "none"], "--batch-size"),
        (["caption", "CAT", "--boxs", "a.json"], "--boxes"),
        (["caption", "-", "-"], "stdin can be read only once"),
    ],
)
def test_usage_error_is_one_line(
    regionqa: "Command", cat: Path, words: list[str], reason: str
) -> None:
    ran = regionqa(*(cat if word == "CAT" else word for word in words))
    assert (ran.status, ran.out, len(ran.err.splitlines())) == (2, "", 1)
    assert reason in ran.err


def test_question_longer_than_a_file_name(regionqa: "Command", cat: Path) -> None:
    assert regionqa("ask", cat, "what is this? " * 24, *QUICK).status == 0
    ran = regionqa("ask", cat, "what is this? " * 500, *QUICK)
    assert (ran.status, ran.out, len(ran.err.splitlines())) == (3, "", 1)
    assert "there is room for" in ran.err


@pytest.mark.parametrize(
    ("question", "reason"), [("  ", "question is empty"), ("caf\udce9?", "is not valid text")]
)
def test_empty_question_fails(regionqa: "Command", cat: Path, question: str, reason: str) -> None:
    ran = regionqa("ask", cat, question)
    assert (ran.status, ran.out, len(ran.err.splitlines())) == (3, "", 1)
    assert reason in ran.err


def test_debug_shows_the_traceback(regionqa: "Command", cat: Path) -> None:
    words = ("ask", cat, "what?", "--model", "no-such-model")
    plain, traced = regionqa(*words), regionqa(*words, "--debug")
    assert plain.status == traced.status == 1
    assert len(plain.err.splitlines()) == 1
    assert traced.err.startswith("Traceback")
    assert traced.err.endswith(plain.err)


def test_unexpected_error_is_one_line(
    regionqa: "Command", cat: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> Engine:
        raise MemoryError("more than\nthere is")

    monkeypatch.setattr(Engine, "load", fail)
    ran = regionqa("ask", cat, "what?")
    assert (ran.status, ran.out) == (1, "")
    assert ran.err == (
        "regionqa: error: unexpected MemoryError: more than there is; run again with --debug for "
        "the traceback\n"
    )
