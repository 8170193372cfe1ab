"""Resumed runs: what is skipped, repeated, refused."""

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from regionqa.errors import ItemError, OutputError
from regionqa.options import OutputFormat
from regionqa.pipeline.outputs import CSV_HEADER, AnswerWriter, OutputSettings
from regionqa.pipeline.resume import FinishedRequests, answer_missing, resume
from regionqa.regions import Box, Region
from regionqa.requests import Answer, Request

JSONL = OutputSettings(OutputFormat.jsonl, "starter", "r1", "cpu", "float32")
CSV = OutputSettings(OutputFormat.csv, "starter", "r1", "cpu", "float32")
BOTH = pytest.mark.parametrize("style", [JSONL, CSV], ids=["jsonl", "csv"])

STRAY_BYTES = st.characters(min_codepoint=0xDC80, max_codepoint=0xDCFF)
TEXTS = st.text(st.sampled_from('ab",;\n\r{}é\u2028\0') | STRAY_BYTES, max_size=6)
COORDINATES = st.floats(0, 100)
REGIONS = st.builds(
    lambda x, y, label: Region(Box(x, y, x + 1.005, y + 2), label),
    COORDINATES,
    COORDINATES,
    st.none() | TEXTS,
)
ANSWERS = st.builds(
    lambda image, question, regions, text, error, id, meta: Answer(
        Request(image, question, tuple(regions), id=id, meta=meta), text, error=error
    ),
    TEXTS,
    TEXTS,
    st.lists(REGIONS, max_size=2),
    TEXTS,
    st.none() | st.builds(ItemError, TEXTS.filter(bool)),
    st.none() | st.integers() | TEXTS,
    st.none() | st.dictionaries(TEXTS, st.integers() | TEXTS, max_size=2),
)


def answer(image: str, text: str = "x", error: str | None = None) -> Answer:
    failure = None if error is None else ItemError(error)
    return Answer(Request(image, "what?", (Region(Box(1, 2, 3.456, 4)),)), text, error=failure)


def write(
    out: Path,
    style: OutputSettings,
    answers: list[Answer],
    finished: FinishedRequests | None = None,
) -> None:
    """A run that answers these, but for those that an earlier run has answered."""
    append = finished is not None
    style = finished.settings if finished else style
    with AnswerWriter(style, pytest.fail, out, append=append) as writer:
        for one in answers:
            if finished is None or finished.find(one.request) is None:
                writer.write(one)


# -- what a user does ------------------------------------------------------------------------------


@BOTH
@given(answers=st.lists(ANSWERS, max_size=5), data=st.data())
@example(answers=[answer('"\n"')] * 2, data=None)
def test_run_cut_at_any_byte_resumes_to_the_same_file(
    style: OutputSettings, answers: list[Answer], data: st.DataObject | None
) -> None:
    with TemporaryDirectory() as folder:
        out = Path(folder, "out")
        write(out, style, answers)
        whole = out.read_bytes()
        every = range(len(whole) + 1)
        for cut in every if data is None else [data.draw(st.sampled_from(every))]:
            out.write_bytes(whole[:cut])
            write(out, style, answers, resume(out, style))
            assert out.read_bytes() == whole


@pytest.mark.parametrize("known", ["", "a", "f", "bcf", "abcdef"])
@pytest.mark.parametrize("window", [1, 2, 6])
def test_missing_answers_come_in_order(known: str, window: int) -> None:
    """However many requests are read before the first is answered."""
    asked: list[str] = []

    def find(request: Request) -> Answer | None:
        return Answer(request, "known") if request.image in known else None

    def ask(missing: Iterator[Request]) -> Iterator[Answer]:
        while read := list(islice(missing, window)):
            asked.extend(request.image for request in read)
            yield from (Answer(request, "new") for request in read)

    found = list(answer_missing([Request(image, "what?") for image in "abcdef"], find, ask))
    assert [(each.request.image, each.text, new) for each, new in found] == [
        (image, "known", False) if image in known else (image, "new", True) for image in "abcdef"
    ]
    assert asked == [image for image in "abcdef" if image not in known]


@BOTH
def test_missing_file_starts_a_run(tmp_path: Path, style: OutputSettings) -> None:
    out = tmp_path / "out"
    finished = resume(out, style)
    assert not out.exists()
    write(out, style, [answer("a.png")], finished)
    assert out.read_text().count("a.png") == 1


def test_each_record_skips_one_request(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    write(out, JSONL, [answer("a.png"), answer("a.png")])
    finished = resume(out, JSONL)
    same = answer("a.png").request
    assert [finished.find(same) is not None for _ in range(3)] == [True, True, False]


@pytest.mark.parametrize(
    "other",
    [
        Request("b.png", "what?", (Region(Box(1, 2, 3.456, 4)),)),
        Request("a.png", "who?", (Region(Box(1, 2, 3.456, 4)),)),
        Request("a.png", "what?", (Region(Box(1, 2, 3.5, 4)),)),
        Request("a.png", "what?"),
    ],
)
@BOTH
def test_other_image_question_or_box_is_asked(
    tmp_path: Path, style: OutputSettings, other: Request
) -> None:
    out = tmp_path / "out"
    write(out, style, [answer("a.png")])
    assert resume(out, style).find(other) is None


@BOTH
def test_other_id_or_meta_is_asked(tmp_path: Path, style: OutputSettings) -> None:
    out = tmp_path / "out"
    first = Request("a.png", "what?", id="1", meta={"page": 2})
    write(out, style, [Answer(first, "x")])
    for other in ({"id": "2"}, {"meta": {"page": 3}}, {"id": None, "meta": None}):
        assert resume(out, style).find(replace(first, **other)) is None
    assert resume(out, style).find(first) is not None


@pytest.mark.parametrize(
    "other",
    [
        OutputSettings(OutputFormat.jsonl, "larger", "r1", "cpu", "float32"),
        OutputSettings(OutputFormat.jsonl, "starter", "r2", "cpu", "float32"),
    ],
)
def test_other_model_or_revision_is_asked(tmp_path: Path, other: OutputSettings) -> None:
    out = tmp_path / "out.jsonl"
    write(out, JSONL, [answer("a.png")])
    assert resume(out, other).find(answer("a.png").request) is None


def test_other_device_is_not_asked_again(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    write(out, JSONL, [answer("a.png")])
    on_gpu = OutputSettings(OutputFormat.jsonl, "starter", "r1", "cuda", "float32")
    assert resume(out, on_gpu).find(answer("a.png").request) is not None


@BOTH
def test_failed_requests_are_skipped(tmp_path: Path, style: OutputSettings) -> None:
    out = tmp_path / "out"
    failed = answer("b.png", error="no such file")
    write(out, style, [answer("a.png"), failed])
    finished = resume(out, style)
    assert finished.failed == 1
    assert finished.find(failed.request) is not None


@BOTH
def test_retry_errors_repeats_failed_requests(tmp_path: Path, style: OutputSettings) -> None:
    out = tmp_path / "out"
    sound, failed = [answer("a.png"), answer("c.png")], answer("b.png", error="gone")
    write(out, style, [sound[0], failed, sound[1]])
    os.chmod(out, 0o640)  # noqa: PTH101
    with out.open("ab") as file:
        file.write(b"unfinish")

    finished = resume(out, style, retry_errors=True)
    assert finished.failed == 0
    assert out.stat().st_mode & 0o777 == 0o640
    assert list(tmp_path.iterdir()) == [out], "no temporary file is left"
    assert [finished.find(one.request) is not None for one in [sound[0], failed, sound[1]]] == [
        True,
        False,
        True,
    ]
    undisturbed = tmp_path / "undisturbed"
    write(undisturbed, style, sound)
    assert out.read_bytes() == undisturbed.read_bytes()


def test_retry_errors_keeps_symlinks(tmp_path: Path) -> None:
    out, link = tmp_path / "out.jsonl", tmp_path / "link.jsonl"
    write(out, JSONL, [answer("a.png"), answer("b.png", error="gone")])
    link.symlink_to(out)
    resume(link, JSONL, retry_errors=True)
    assert link.is_symlink()
    assert out.read_text().count("\n") == 1


def test_interrupted_removal_keeps_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out.jsonl"
    write(out, JSONL, [answer("a.png"), answer("b.png", error="gone")])
    before = out.read_bytes()

    def no_room(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("shutil.copymode", no_room)
    with pytest.raises(OutputError, match="cannot be written: No space left on device"):
        resume(out, JSONL, retry_errors=True)
    assert out.read_bytes() == before
    assert list(tmp_path.iterdir()) == [out]


# -- what cannot be resumed ------------------------------------------------------------------------


def test_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="is not a file"):
        resume(tmp_path, JSONL)


def test_impossible_file_name(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"(?i)cannot be resumed: file name too long"):
        resume(tmp_path / ("x" * 300), JSONL)


@pytest.mark.parametrize("damaged", ["{nonsense}", "", "\0\0\0", '{"image": "\x80'])
def test_incomplete_last_line_is_dropped(tmp_path: Path, damaged: str) -> None:
    out = tmp_path / "out.jsonl"
    write(out, JSONL, [answer("a.png")])
    before = out.read_bytes()
    out.write_bytes(before + damaged.encode("latin-1") + b"\n")
    assert resume(out, JSONL).find(answer("a.png").request) is not None
    assert out.read_bytes() == before


@pytest.mark.parametrize("damaged", ["a.png,64", '"a"b,x', ""])
def test_incomplete_last_csv_record_is_dropped(tmp_path: Path, damaged: str) -> None:
    out = tmp_path / "out.csv"
    write(out, CSV, [answer("a.png")])
    before = out.read_bytes()
    out.write_bytes(before + damaged.encode() + b"\n")
    resume(out, CSV)
    assert out.read_bytes() == before


@BOTH
def test_damaged_line_is_named_and_file_unchanged(tmp_path: Path, style: OutputSettings) -> None:
    out = tmp_path / "out"
    write(out, style, [answer("a\nb.png"), answer("c.png")])
    *start, last = out.read_bytes().splitlines(keepends=True)
    broken = b"".join([*start, b"damaged\n", last])
    out.write_bytes(broken)
    with pytest.raises(OutputError, match=f"line {len(start) + 1} is damaged.*run again$"):
        resume(out, style)
    assert out.read_bytes() == broken


@pytest.mark.parametrize(
    ("style", "content"),
    [
        (JSONL, "my diary\n"),
        (JSONL, '{"id": 1}'),
        (JSONL, '{"image": "a.png", "caption": "a cat"}\n'),
        (JSONL, '{"image": 1, "regions": [], "question": "", "model": "", "revision": ""}\n'),
        (JSONL, '{"image": "a.png", "regions": [1]}\n'),
        (JSONL, '{"image": "a.png", "regions": [{"box": [1e999]}]}\n'.replace("1e999", "9" * 400)),
        (JSONL, '{"image": ' + "[" * 100_000 + "\n"),
        (JSONL, CSV_HEADER),
        (CSV, "name,price\nbread,2\n"),
        (CSV, "\ufeff" + CSV_HEADER),
    ],
)
def test_other_files_are_refused(tmp_path: Path, style: OutputSettings, content: str) -> None:
    out = tmp_path / "out"
    out.write_text(content)
    before = out.read_bytes()
    with pytest.raises(OutputError, match="name another file"):
        resume(out, style)
    assert out.read_bytes() == before


def test_file_rewritten_by_jq_is_resumed(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    write(out, JSONL, [answer("a.png")])
    record = json.loads(out.read_text())
    record["regions"][0]["box"] = [float(number) for number in record["regions"][0]["box"]]
    out.write_text(json.dumps(record, separators=(",", ":")) + "\n")
    assert resume(out, JSONL).find(answer("a.png").request) is not None
