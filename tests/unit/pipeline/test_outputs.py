"""Answers on stdout and in files: formats, flushing, errors."""

import csv
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from regionqa.errors import BoxError, ImageError, OutputError
from regionqa.images.reading import InputImage, image_from_memory, open_image
from regionqa.options import OutputFormat
from regionqa.pipeline.outputs import (
    COLUMNS,
    CSV_HEADER,
    AnswerWriter,
    OutputSettings,
    as_csv,
    as_json,
    as_text,
    boxes_text,
    encode,
    rounded,
)
from regionqa.regions import Box, Region
from regionqa.requests import Answer, Request

# names of files can hold bytes that are no UTF-8; Python shows those as these characters
STRAY_BYTES = st.characters(min_codepoint=0xDC80, max_codepoint=0xDCFF)
TEXTS = st.text(st.characters(codec="utf-8") | STRAY_BYTES)


def settings_for(format: str, *, timing: bool = False, bare: bool = False) -> OutputSettings:
    return OutputSettings(OutputFormat(format), "starter", "r1", "cpu", "float32", timing, bare)


@pytest.fixture
def image(tmp_path: Path) -> InputImage:
    Image.new("RGB", (64, 48)).save(tmp_path / "a.png")
    return open_image(tmp_path / "a.png")


@pytest.fixture
def two_cats(image: InputImage) -> Answer:
    regions = (Region(Box(10, 20, 40.5, 48)), Region(Box(0, 0, 12.3456, 7), "tom; jr"))
    request = Request("a.png", "which is <region1>, and <region2>?", regions, image)
    return Answer(request, "two cats", tokens=2, seconds=0.0124)


@pytest.fixture
def lost() -> Answer:
    error = ImageError("b.png: no such file")
    return Answer(Request("b.png", "what is this?", error=error), error=error)


@pytest.fixture
def errors() -> list[str]:
    return []


def written(
    capsysbinary: pytest.CaptureFixture[bytes], settings: OutputSettings, *answers: Answer
) -> str:
    with AnswerWriter(settings, pytest.fail) as writer:
        for answer in answers:
            writer.write(answer)
    return capsysbinary.readouterr().out.decode()


# -- what a user sees ------------------------------------------------------------------------------


def test_single_question_prints_the_answer_only(
    capsysbinary: pytest.CaptureFixture[bytes], two_cats: Answer
) -> None:
    assert written(capsysbinary, settings_for("text", bare=True), two_cats) == "two cats\n"


def test_several_questions_print_three_columns(
    capsysbinary: pytest.CaptureFixture[bytes], two_cats: Answer
) -> None:
    whole = Answer(Request("c.png", "what is this?"), "a garden")
    assert written(capsysbinary, settings_for("text"), two_cats, whole) == (
        "a.png\t10,20,40.5,48;0,0,12.35,7\ttwo cats\nc.png\t-\ta garden\n"
    )


def test_text_output_has_one_line_of_three_columns(
    capsysbinary: pytest.CaptureFixture[bytes],
) -> None:
    nasty = Answer(Request("a\tb\n.png", "?"), "one\r\ntwo\u2028three\x1b[31m")
    assert written(capsysbinary, settings_for("text"), nasty) == (
        "a b .png\t-\tone  two three [31m\n"
    )


def test_text_errors_go_to_stderr(
    capsysbinary: pytest.CaptureFixture[bytes], lost: Answer, errors: list[str]
) -> None:
    unnamed = Answer(Request("c.png", "?"), error=BoxError("box 1,2,1,2: has no\narea"))
    with AnswerWriter(settings_for("text"), errors.append) as writer:
        writer.write(lost)
        writer.write(unnamed)
    assert writer.failed == 2
    assert errors == ["b.png: no such file", "c.png: box 1,2,1,2: has no area"]
    assert capsysbinary.readouterr().out == b""


def test_json_keys_and_their_order(
    capsysbinary: pytest.CaptureFixture[bytes], two_cats: Answer
) -> None:
    line = written(capsysbinary, settings_for("jsonl"), two_cats)
    assert line == (
        '{"image": "a.png", "width": 64, "height": 48, "regions": ['
        '{"id": 1, "box": [10, 20, 40.5, 48], "label": null}, '
        '{"id": 2, "box": [0, 0, 12.35, 7], "label": "tom; jr"}], '
        '"question": "which is <region1>, and <region2>?", "answer": "two cats", '
        '"model": "starter", "revision": "r1", "device": "cpu", "dtype": "float32", '
        '"ms": null, "error": null}\n'
    )


def test_error_record_has_no_answer(
    capsysbinary: pytest.CaptureFixture[bytes], lost: Answer
) -> None:
    settings = settings_for("jsonl", timing=True)
    record = json.loads(written(capsysbinary, settings, lost))
    assert record["error"] == "b.png: no such file"
    assert [record[key] for key in ("answer", "width", "height", "ms")] == [None] * 4
    with AnswerWriter(settings, pytest.fail) as writer:
        writer.write(lost)
    assert writer.failed == 1


def test_timing_is_written_on_request_only(
    capsysbinary: pytest.CaptureFixture[bytes], two_cats: Answer
) -> None:
    timed = json.loads(written(capsysbinary, settings_for("jsonl", timing=True), two_cats))
    assert timed["ms"] == 12.4


@pytest.mark.parametrize("count", [0, 1, 3])
def test_json_output_is_an_array(
    capsysbinary: pytest.CaptureFixture[bytes], two_cats: Answer, count: int
) -> None:
    text = written(capsysbinary, settings_for("json"), *[two_cats] * count)
    assert text.endswith("]\n")
    assert [record["answer"] for record in json.loads(text)] == ["two cats"] * count


def test_csv_has_a_header_and_a_row_per_answer(
    capsysbinary: pytest.CaptureFixture[bytes], two_cats: Answer, lost: Answer
) -> None:
    text = written(capsysbinary, settings_for("csv"), two_cats, lost)
    assert text == (
        "image,width,height,boxes,labels,question,answer,model,revision,device,dtype,ms,error\n"
        'a.png,64,48,"10,20,40.5,48;0,0,12.35,7",";tom, jr",'
        '"which is <region1>, and <region2>?",two cats,starter,r1,cpu,float32,,\n'
        "b.png,,,,,what is this?,,starter,r1,cpu,float32,,b.png: no such file\n"
    )


def test_empty_csv_has_the_header(capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    assert written(capsysbinary, settings_for("csv")) == CSV_HEADER


# -- for any text ----------------------------------------------------------------------------------


@given(TEXTS, TEXTS, TEXTS)
def test_any_text_round_trips_in_json_lines(image: str, question: str, text: str) -> None:
    answer = Answer(Request(image, question), text)
    line = encode(as_json(answer, settings_for("jsonl")))
    assert b"\n" not in line
    record = json.loads(line)
    assert (record["image"], record["question"], record["answer"]) == (image, question, text)


@given(TEXTS, st.lists(st.text(), max_size=3), st.text())
def test_any_text_round_trips_in_csv(image: str, labels: list[str], text: str) -> None:
    regions = tuple(Region(Box(0, 0, 1, 1), label) for label in labels)
    line = as_csv(Answer(Request(image, "?", regions), text), settings_for("csv"))
    [row] = csv.reader(io.StringIO(line, newline=""), strict=True)
    cells = dict(zip(COLUMNS, row, strict=True))
    assert (cells["image"], cells["answer"]) == (image, text)
    joined = ";".join(label.replace(";", ",") for label in labels)
    assert cells["labels"] == (joined if any(labels) else "")


@given(st.floats(0, 1e6))
def test_coordinates_have_two_decimals_at_most(number: float) -> None:
    text = boxes_text([[number]])
    assert abs(float(text) - number) <= 0.005 + 1e-9
    assert len(text.partition(".")[2]) <= 2
    assert text == str(rounded(rounded(number))), "written the same when read and written again"


@pytest.mark.parametrize(("number", "text"), [(5.0, "5"), (-0.001, "0"), (2.5, "2.5"), (7, "7")])
def test_integer_coordinates_have_no_decimals(number: float, text: str) -> None:
    assert str(rounded(number)) == text


def test_undecodable_names_can_be_written(
    capsysbinary: pytest.CaptureFixture[bytes],
) -> None:
    answer = Answer(Request("a\udcff.png", "?"), "x")
    for format in OutputFormat:
        assert "a\\udcff.png" in written(capsysbinary, settings_for(format), answer)


# -- when it is written ----------------------------------------------------------------------------


@contextmanager
def stdout_into_a_pipe(monkeypatch: pytest.MonkeyPatch) -> Iterator[BinaryIO]:
    """The reading end of stdout; not a fixture, as pytest puts its own stdout back after those."""
    reading, writing = os.pipe()
    with (
        os.fdopen(reading, "rb", buffering=0) as reader,
        suppress(BrokenPipeError),
        io.TextIOWrapper(os.fdopen(writing, "wb")) as stdout,
    ):
        monkeypatch.setattr(sys, "stdout", stdout)
        yield reader


@pytest.mark.parametrize("format", list(OutputFormat))
def test_answers_are_flushed_one_by_one(
    monkeypatch: pytest.MonkeyPatch, two_cats: Answer, format: OutputFormat
) -> None:
    with (
        stdout_into_a_pipe(monkeypatch) as reader,
        AnswerWriter(settings_for(format), pytest.fail) as writer,
    ):
        for _ in range(2):
            writer.write(two_cats)
            os.set_blocking(reader.fileno(), False)
            assert b"two cats" in (reader.read() or b"")


def test_closed_pipe_is_reported_once(monkeypatch: pytest.MonkeyPatch, two_cats: Answer) -> None:
    with (
        stdout_into_a_pipe(monkeypatch) as reader,
        pytest.raises(BrokenPipeError),
        AnswerWriter(settings_for("json"), pytest.fail) as writer,
    ):
        writer.write(two_cats)
        reader.close()
        writer.write(two_cats)


def test_interrupted_run_leaves_a_valid_array(tmp_path: Path, two_cats: Answer) -> None:
    out = tmp_path / "out.json"
    with (
        pytest.raises(KeyboardInterrupt),
        AnswerWriter(settings_for("json"), pytest.fail, out) as w,
    ):
        w.write(two_cats)
        raise KeyboardInterrupt
    assert len(json.loads(out.read_text())) == 1


def test_run_without_answers_writes_nothing(
    capsysbinary: pytest.CaptureFixture[bytes],
) -> None:
    with pytest.raises(ValueError, match="stop"), AnswerWriter(settings_for("csv"), pytest.fail):
        raise ValueError("stop")
    assert capsysbinary.readouterr().out == b""


KILLED = """
import os, signal, sys
from pathlib import Path
from regionqa.options import OutputFormat
from regionqa.pipeline.outputs import AnswerWriter, OutputSettings
from regionqa.requests import Answer, Request

settings = OutputSettings(OutputFormat.jsonl, "starter", "r1", "cpu", "float32")
with AnswerWriter(settings, print, Path(sys.argv[1])) as writer:
    for number in range(3):
        writer.write(Answer(Request(f"{number}.png", "?"), "x"))
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_killed_run_has_written_its_answers(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    done = subprocess.run([sys.executable, "-c", KILLED, str(out)], check=False)
    assert done.returncode == -signal.SIGKILL
    records = [json.loads(line) for line in out.read_text().splitlines()]
    assert [record["image"] for record in records] == ["0.png", "1.png", "2.png"]


# -- files -----------------------------------------------------------------------------------------


def write_to(out: Path, *answers: Answer, format: str = "jsonl", **options: Any) -> None:
    with AnswerWriter(settings_for(format), pytest.fail, out, **options) as writer:
        for answer in answers:
            writer.write(answer)


def test_file_is_overwritten_or_appended(tmp_path: Path, two_cats: Answer) -> None:
    out = tmp_path / "out.csv"
    write_to(out, two_cats, format="csv")
    write_to(out, two_cats, format="csv")
    assert len(out.read_text().splitlines()) == 2
    write_to(out, two_cats, format="csv", append=True)
    assert len(out.read_text().splitlines()) == 3
    assert out.read_text().count(CSV_HEADER) == 1


def test_appending_to_an_empty_file(tmp_path: Path, two_cats: Answer) -> None:
    write_to(tmp_path / "out.csv", two_cats, format="csv", append=True)
    assert (tmp_path / "out.csv").read_text().startswith(CSV_HEADER)


def test_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"there is no folder .*missing; create it first"):
        write_to(tmp_path / "missing" / "out.jsonl")


def test_folder_instead_of_file(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="is a folder; name a file"):
        write_to(tmp_path)


@pytest.mark.parametrize(
    ("name", "reason"), [("x" * 300, "file name too long"), ("a\0b", "embedded null")]
)
def test_impossible_file_name(tmp_path: Path, name: str, reason: str) -> None:
    with pytest.raises(OutputError, match=f"(?i)cannot be written: {reason}"):
        write_to(tmp_path / name)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is full")
@pytest.mark.parametrize(
    ("format", "again"), [("jsonl", "run again with --resume"), ("json", "run again")]
)
def test_full_disk_says_how_to_continue(two_cats: Answer, format: str, again: str) -> None:
    with pytest.raises(OutputError, match=f"the answers so far are saved; fix this, then {again}$"):
        write_to(Path("/dev/full"), two_cats, format=format)


class Unclosable(io.BytesIO):
    """As a file on a network share, which says only at the end that it could not be stored."""

    def close(self) -> None:
        super().close()
        raise OSError(5, "Input/output error")


def test_failed_close_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, two_cats: Answer
) -> None:
    monkeypatch.setattr(Path, "open", lambda *_: Unclosable())
    with pytest.raises(OutputError, match="cannot be written: Input/output error"):
        write_to(tmp_path / "out.jsonl", two_cats)


def test_text_lines_end_in_id_and_meta() -> None:
    own: list[dict[str, Any]] = [
        {"id": "a-1"},
        {"id": 2, "meta": {"page": 3}},
        {"meta": ["\t"]},
        {},
    ]
    lines = [as_text(Answer(Request("a.png", "?", **each), "x"), bare=False) for each in own]
    assert [line[len("a.png\t-\tx") :] for line in lines] == [
        "\ta-1\n", '\t2\t{"page": 3}\n', '\t\t["\\t"]\n', "\n"
    ]  # fmt: skip


def test_in_memory_images_are_written() -> None:
    shown = image_from_memory(Image.new("L", (3, 2)), "array")
    record = json.loads(
        as_json(Answer(Request("array", "?", (), shown), "x"), settings_for("json"))
    )
    assert (record["width"], record["height"]) == (3, 2)
