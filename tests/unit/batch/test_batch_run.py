"""Collecting answers, progress, and the names of parts."""

import json
from pathlib import Path

import pytest

from regionqa.batch.answering import AnsweredRequests
from regionqa.batch.options import BatchFormat, BatchOptions
from regionqa.batch.outputs import PartFolder
from regionqa.batch.progress import FIRST, REASONS, BatchProgress, duration
from regionqa.batch.reading import image_name
from regionqa.batch.run import PartCollector
from regionqa.batch.storage import Location, retried
from regionqa.batch.tables import document_of
from regionqa.errors import OutputError
from regionqa.pipeline.console import Console


def answered(part: str, start: int, stop: int, *, last: bool = False) -> AnsweredRequests:
    records = [json.dumps({"image": f"{n}"}) for n in range(start, stop)]
    return AnsweredRequests(part, start, stop, last, records)


def test_answers_are_collected_in_any_order_and_once() -> None:
    collector = PartCollector()
    assert collector.add(answered("a", 4, 6, last=True)) is None
    assert collector.add(answered("b", 0, 0, last=True)) is not None  # a part without requests
    assert collector.add(answered("a", 0, 3)) is None
    assert collector.add(answered("a", 0, 3)) is None  # a stage that ran twice
    assert collector.incomplete == 1
    found = collector.add(answered("a", 3, 4))
    assert found is not None
    assert [record for each in found for record in each.records] == [
        json.dumps({"image": f"{n}"}) for n in range(6)
    ]
    assert collector.incomplete == 0


def test_of_two_parts_with_one_key_the_better_is_kept(tmp_path: Path) -> None:
    for name in (f"part-{'a' * 24}.jsonl", f"part-{'a' * 24}.2-errors.jsonl"):
        (tmp_path / name).write_text("{}\n")
    folder = PartFolder(Location(str(tmp_path)), BatchFormat.jsonl, {})
    folder.read()
    assert (folder.errors, len(list(tmp_path.iterdir()))) == (0, 2)  # as in a dry run
    folder.begin(["a" * 24], overwrite=False)
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == ["_regionqa.json", f"part-{'a' * 24}.jsonl"]


def test_other_formats_are_other_parts(tmp_path: Path) -> None:
    (tmp_path / f"part-{'a' * 24}.parquet").write_text("x")
    folder = PartFolder(Location(str(tmp_path)), BatchFormat.jsonl, {})
    folder.read()
    with pytest.raises(OutputError, match="holds 1 part of another run"):
        folder.begin(["a" * 24], overwrite=False)
    folder.begin(["a" * 24], overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["_regionqa.json"]


def test_progress_counts_and_estimates(capsys: pytest.CaptureFixture[str]) -> None:
    now = 0.0
    progress = BatchProgress(Console(), total=100, parts=4, clock=lambda: now)
    for seconds in (10.0, 40.0):
        now = seconds
        progress.part(25, 20, ["no such file"])
    told = capsys.readouterr().err
    assert told == (
        "regionqa: 2 of 4 parts, 40 requests, 1.0 a second, 2 errors, 40 s left\n"
    )  # fmt: skip
    progress.warn([f"w{n}" for n in range(FIRST + 3)])
    progress.part(50, 0, [f"reason {n}" for n in range(REASONS + 5)])
    progress.finish()
    told = capsys.readouterr().err
    assert "3 further warnings not shown" in told
    assert "regionqa: 2 errors: no such file" in told
    assert "6 errors for other reasons" in told


def test_durations_are_for_people() -> None:
    assert list(map(duration, (8, 700, 12_000, 180_000))) == [
        "8 s", "12 min", "3 h 20 min", "2 days 2 h",
    ]  # fmt: skip


def test_what_fails_for_a_while_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("regionqa.batch.storage.time.sleep", lambda seconds: None)
    calls: list[OSError] = []

    def fails(times: int, error: OSError) -> str:
        if len(calls) < times:
            calls.append(error)
            raise error
        return "read"

    assert retried(lambda: fails(4, OSError("HTTP status 503"))) == "read"
    for final in (FileNotFoundError("x"), OSError("AWS Error ACCESS_DENIED"), OSError(28, "full")):
        calls.clear()
        with pytest.raises(OSError, match=str(final.args[-1])):
            retried(lambda error=final: fails(9, error))  # type: ignore[misc]
        assert len(calls) == 1
    calls.clear()
    with pytest.raises(OSError, match="500"):
        retried(lambda: fails(99, OSError("HTTP status 500")))
    assert len(calls) > 4


def test_json_that_is_nested_too_deep_is_no_request() -> None:
    deep = "[" * 200_000
    assert image_name(f'{{"image": {deep}') == "-"
    assert document_of({"image": "a.png", "regions": deep})["regions"] == deep


def test_names_are_joined_to_folders_and_urls() -> None:
    folder = Location("s3://bucket/a b?region=x")
    assert folder.join("c%d.jpg").name == "s3://bucket/a b/c%25d.jpg?region=x"
    assert folder.join("https://host/x.jpg").name == "https://host/x.jpg"
    assert folder.join("x.jpg").folder == folder
    assert Location("here").join("/abs.jpg").name == "/abs.jpg"
    assert Location("s3://b/x.JSONL?region=y").suffix == ".jsonl"
    assert BatchOptions(actors="2:8").actor_range == (2, 8)
