"""`data generate`: faults of a server, interrupted and continued runs, and budgets."""

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from helpers.vlm.chat_server import (
    ChatServer,
    answer_lines,
    cut,
    garbage,
    hang,
    status,
    unfinished,
)
from helpers.vlm.instruction_server import Spoil, instances, replacing, scripted

if TYPE_CHECKING:
    from conftest import Command

GENERATE = ("data", "generate")
KINDS = ("small", "relations", "multi-turn", "general")


@pytest.fixture
def writer(server: ChatServer) -> ChatServer:
    """A server whose model writes faultless replies."""
    server.answer, server.structured = scripted, False
    return server


def ids(path: Path) -> list[str]:
    return [record["id"] for record in answer_lines(path.read_text())]


def keys(server: ChatServer) -> list[str]:
    """The requests, each as text."""
    return [json.dumps(dict(asked.body), sort_keys=True) for asked in server.asked]


def words(found: Path, server: ChatServer, out: Path, *others: object) -> tuple[object, ...]:
    return (*GENERATE, found, "--server", server.url, "--out", out, "--kinds", ",".join(KINDS),
            *others)  # fmt: skip


# -- faults ----------------------------------------------------------------------------------------


def wrong_form(reply: Any) -> str:
    return json.dumps({"text": str(reply)})


def cut_json(reply: Any) -> str:
    return json.dumps(reply)[:-4]


def absent_boxes(reply: Any) -> str:
    return json.dumps(reply).replace("<region", "<region7")


def test_every_annotation_is_delivered_once_or_listed(
    regionqa: "Command", writer: ChatServer, tmp_path: Path, waits: list[float]
) -> None:
    """Three in ten requests meet a fault: of the way, of the server, or of the model."""
    found, out = instances(tmp_path, 20), tmp_path / "out.jsonl"
    spoils = (cut_json, wrong_form, absent_boxes)
    spoiled: dict[str, Spoil] = {
        f"{100 + n} {KINDS[n % 2]}": spoils[n % 3] for n in range(0, 20, 2)
    }
    spoiled["119 questions"], spoiled["118 answers"] = cut_json, wrong_form
    writer.answer = replacing(spoiled)
    passing = (status(429), status(500), cut, unfinished, garbage)
    writer.faults = {
        f"is {100 + n} x": [passing[n % 5]] * (2 if n % 2 else 1) for n in range(0, 16)
    }
    writer.faults["is 117 x"] = [status(500)] * 99
    ran = regionqa(*words(found, writer, out))
    assert ran.status == 3
    kept, rejected = ids(out), ids(tmp_path / "out.rejected.jsonl")
    listed = answer_lines((tmp_path / "out.rejected.jsonl").read_text())
    wanted = {f"{n:03}.png#{kind}" for n in range(20) for kind in KINDS}
    assert Counter([*kept, *rejected]) == Counter(dict.fromkeys(wanted, 1))
    reasons = {each["id"]: each["rejected"][0]["reason"] for each in listed}
    assert {reasons[f"017.png#{kind}"] for kind in KINDS} == {"no reply"}
    assert reasons["019.png#multi-turn"] == "not JSON"
    assert reasons["018.png#multi-turn"] == "JSON of another form"
    assert Counter(reasons.values()) == {
        "not JSON": 5, "JSON of another form": 4, "names a box that was not given": 3,
        "no reply": 4,
    }  # fmt: skip
    assert "4 tasks without a reply; ask again with --resume" in ran.err
    writer.faults = {}
    writer.asked.clear()
    again = regionqa(*words(found, writer, out, "--resume"))
    assert again.status == 0
    assert {asked.question.split()[3] for asked in writer.asked} == {"117"}
    assert Counter([*ids(out), *ids(tmp_path / "out.rejected.jsonl")]).keys() == wanted


def test_a_reply_that_does_not_come_is_asked_for_again(
    regionqa: "Command", writer: ChatServer, tmp_path: Path, waits: list[float]
) -> None:
    found, out = instances(tmp_path, 1), tmp_path / "out.jsonl"
    writer.faults = {"is 100 x": [hang]}
    ran = regionqa(*words(found, writer, out, "--server-timeout", "3"))
    assert ran.status == 0, ran.err
    assert sorted(ids(out)) == sorted(f"000.png#{kind}" for kind in KINDS)
    assert waits


# -- continued -------------------------------------------------------------------------------------


def test_killed_run_asks_nothing_again_that_was_finished(
    regionqa: "Command", writer: ChatServer, tmp_path: Path
) -> None:
    found, whole, out = instances(tmp_path, 4), tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    assert regionqa(*words(found, writer, whole, "--judge")).status == 0
    everything = sorted(keys(writer))
    writer.asked.clear()
    writer.answered, writer.stop_after = 0, 17
    line = map(str, words(found, writer, out, "--judge", "--server-concurrency", "3"))
    run = subprocess.Popen([sys.executable, "-m", "regionqa", *line], env=dict(os.environ))
    assert writer.waiting.wait(600)
    run.kill()
    assert run.wait() == -signal.SIGKILL
    replies = tmp_path / "out.replies.jsonl"
    finished = replies.read_text().count("\n")
    assert 17 - 3 <= finished <= 17
    first = keys(writer)
    replies.write_bytes(replies.read_bytes() + b'{"key": "half')
    writer.release()
    writer.asked.clear()
    ran = regionqa(*words(found, writer, out, "--judge", "--resume"))
    assert ran.status == 0
    assert f"; {finished} replies kept from before" in ran.out
    assert len(writer.asked) == len(everything) - finished
    unanswered = Counter(first) & Counter(keys(writer))
    assert unanswered.total() == len(first) - finished
    assert sorted({*first, *keys(writer)}) == everything
    assert out.read_text() == whole.read_text()


def test_finished_run_asks_nothing_and_follows_new_filters(
    regionqa: "Command", writer: ChatServer, tmp_path: Path
) -> None:
    found, out = instances(tmp_path, 3), tmp_path / "out.jsonl"
    assert regionqa(*words(found, writer, out)).status == 0
    before = out.read_text()
    writer.asked.clear()
    assert regionqa(*words(found, writer, out, "--resume")).status == 0
    assert out.read_text() == before
    ran = regionqa(*words(found, writer, out, "--resume", "--max-words", "6"))
    assert (ran.status, writer.asked) == (0, [])
    assert "answer too long" in ran.out
    assert 0 < len(ids(out)) < 12


def test_existing_results_are_not_replaced(
    regionqa: "Command", writer: ChatServer, tmp_path: Path
) -> None:
    found = instances(tmp_path, 1)
    for name in ("out.jsonl", "out.rejected.jsonl", "out.replies.jsonl"):
        (tmp_path / name).write_text("earlier")
        ran = regionqa(*words(found, writer, tmp_path / "out.jsonl"))
        assert (ran.status, writer.asked) == (2, [])
        assert f"{name}: already exists; continue it with --resume, replace it with" in ran.err
        (tmp_path / name).unlink()
    (tmp_path / "out.replies.jsonl").write_text("earlier\n")
    ran = regionqa(*words(found, writer, tmp_path / "out.jsonl", "--resume"))
    assert (ran.status, writer.asked) == (1, [])
    assert "out.replies.jsonl: holds a line that is no reply; name another --out" in ran.err
    assert (tmp_path / "out.replies.jsonl").read_text() == "earlier\n"


def test_continuing_with_other_options_tells_what_is_left_out(
    regionqa: "Command", writer: ChatServer, tmp_path: Path
) -> None:
    found, out = instances(tmp_path, 2), tmp_path / "out.jsonl"
    line = (*GENERATE, found, "--server", writer.url, "--out", out, "--resume", "--kinds")
    assert "left out" not in regionqa(*line, "small,relations").err
    whole = out.read_text()
    ran = regionqa(*line, "small")
    assert (ran.status, len(ids(out))) == (0, 2)
    assert "2 records of the earlier run left out" in ran.err
    writer.asked.clear()
    ran = regionqa(*line, "small,relations")
    assert (ran.err, out.read_text(), writer.asked) == ("", whole, [])


def test_results_without_their_replies_are_not_continued(
    regionqa: "Command", writer: ChatServer, tmp_path: Path
) -> None:
    found, out = instances(tmp_path, 1), tmp_path / "out.jsonl"
    assert regionqa(*words(found, writer, out)).status == 0
    before = out.read_text()
    (tmp_path / "out.replies.jsonl").unlink()
    ran = regionqa(*words(found, writer, out, "--resume"))
    assert (ran.status, out.read_text()) == (2, before)
    assert "out.replies.jsonl: is missing or empty, and holds the replies of" in ran.err
    out.write_text('{"image": "a.png"}\n')
    (tmp_path / "out.replies.jsonl").write_text(
        json.dumps({"key": "a", "text": "", "finish": "stop", "prompt_tokens": 1, "tokens": 1})
        + "\n"
    )
    ran = regionqa(*words(found, writer, out, "--resume"))
    assert (ran.status, out.read_text()) == (1, '{"image": "a.png"}\n')
    assert "out.jsonl: is not written by data generate" in ran.err


# -- budgets ---------------------------------------------------------------------------------------


def test_requests_stop_at_their_limit_and_go_on(
    regionqa: "Command", writer: ChatServer, tmp_path: Path
) -> None:
    found, whole, out = instances(tmp_path, 4), tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    assert regionqa(*words(found, writer, whole)).status == 0
    everything = sorted(keys(writer))
    writer.asked.clear()
    ran = regionqa(*words(found, writer, out, "--max-requests", "7", "--server-concurrency", "2"))
    assert (ran.status, len(writer.asked)) == (0, 7)
    done = out.read_text()
    finished = done.count("\n")
    assert 4 <= finished <= 7
    assert set(done.splitlines()) <= set(whole.read_text().splitlines())
    assert f"the budget is spent; {16 - finished} tasks left, go on with --resume" in ran.err
    ran = regionqa(*words(found, writer, out, "--resume"))
    assert ran.status == 0
    assert sorted(keys(writer)) == everything
    assert out.read_text() == whole.read_text()


def test_tokens_stop_at_their_limit(
    regionqa: "Command", writer: ChatServer, tmp_path: Path
) -> None:
    found, out = instances(tmp_path, 4), tmp_path / "out.jsonl"
    limits = ("--max-tokens", "1500", "--server-concurrency", "1")
    ran = regionqa(*words(found, writer, out, *limits))
    assert ran.status == 0
    kept = answer_lines((tmp_path / "out.replies.jsonl").read_text())
    used = [each["prompt_tokens"] + each["tokens"] for each in kept]
    assert len(writer.asked) == len(used) < 20
    assert sum(used[:-1]) < 1500 <= sum(used)
    assert f"tokens     {sum(used):>10,}" in ran.out
    assert "the budget is spent" in ran.err


# -- usage -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (("--kinds", "poems"), "--kinds 'poems': must be one of small, relations, text"),
        (("--kinds", ","), "--kinds: name some of small, relations"),
        (("--shard", "0/3"), "--shard '0/3': write part and number of parts, as 1/8"),
        (("--shard", "4/3"), "--shard '4/3': write part and number of parts, as 1/8"),
        (("--shard", "x"), "--shard 'x': write part and number of parts, as 1/8"),
        (("--shard", "1/2", "--near-duplicates", "file"), "--near-duplicates file: needs all"),
        (("--rejected", "out.replies.jsonl"), "--rejected out.replies.jsonl: holds the replies"),
        ((), "data generate: name a server of a language model with --server URL"),
    ],
)
def test_usage(
    regionqa: "Command", tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: tuple[str, ...],
    reason: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    ran = regionqa(*GENERATE, instances(tmp_path, 1), "--out", "out.jsonl", *given)
    assert ran.status == 2
    assert reason in ran.err
    assert not Path("out.jsonl").exists()
