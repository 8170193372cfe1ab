"""`--server`: faults of a server and of the way to it, and runs that are stopped and continued."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from helpers.vlm.chat_server import (
    ChatServer,
    Fault,
    answer_lines,
    cut,
    garbage,
    hang,
    misshapen,
    page,
    request_lines,
    status,
    unfinished,
)

if TYPE_CHECKING:
    from conftest import Command

ASK = ("ask", "-", "--format", "jsonl")
CARD = ("--model", "qwen3-vl-2b")


# -- failures --------------------------------------------------------------------------------------

FAULTS: dict[str, Fault] = {
    "too many": status(429, "slow down", Retry_After="7"),
    "error": status(500, "out of memory"),
    "loading": status(503, "loading the model"),
    "cut": cut,
    "unfinished": unfinished,
    "garbage": garbage,
    "misshapen": misshapen,
    "page": page,
}


@pytest.mark.parametrize("name", FAULTS)
def test_passing_fault_is_asked_again(
    regionqa: "Command", server: ChatServer, colours: Path, waits: list[float], name: str
) -> None:
    lines = request_lines(colours, "what is", "where is")
    words = (*ASK, "--server", server.url, *CARD)
    whole = regionqa(*words, stdin=lines)
    server.asked.clear()
    server.faults = {"where": [FAULTS[name]] * 2}
    ran = regionqa(*words, stdin=lines)
    assert (ran.status, ran.err, ran.out) == (0, "", whole.out)
    assert len(server.asked) == 6 + 2
    assert len(waits) == 2
    assert all(7 <= wait < 8 for wait in waits) == (name == "too many")


@pytest.mark.parametrize("name", FAULTS)
def test_lasting_fault_is_told_with_its_item(
    regionqa: "Command", server: ChatServer, colours: Path, waits: list[float], name: str
) -> None:
    server.faults = {"where": [FAULTS[name]] * 99}
    ran = regionqa(
        *ASK, "--server", server.url, *CARD, stdin=request_lines(colours, "what", "where")
    )
    assert ran.status == 3
    failed = [bool(record["error"]) for record in answer_lines(ran.out)]
    assert failed == [False, True] * 3
    for record in answer_lines(ran.out)[1::2]:
        assert record["error"].count(server.url) == 1
        assert ("log" in record["error"]) or ("--server-concurrency" in record["error"])
        assert "\n" not in record["error"]
    assert len(waits) == 3 * 5


def test_refusals_are_not_repeated(
    regionqa: "Command", server: ChatServer, colours: Path, waits: list[float]
) -> None:
    server.faults = {"what": [status(400, "the prompt is too long"), status(404, "no model")] * 9}
    ran = regionqa(*ASK, "--server", server.url, *CARD, stdin=request_lines(colours, "what"))
    errors = {record["error"].split(": ", 1)[-1] for record in answer_lines(ran.out)}
    assert "400: the prompt is too long; see the log of the server" in errors
    assert "404: no model; check the address, and the name of --server-model" in errors
    assert (ran.status, len(server.asked), waits) == (3, 3, [])


def test_long_wait_is_not_waited(
    regionqa: "Command", server: ChatServer, colours: Path, waits: list[float]
) -> None:
    server.faults = {"what": [status(429, "quota", Retry_After="3600")]}
    ran = regionqa("ask", colours / "red.png", "what?", "--server", server.url, *CARD)
    assert (ran.status, waits) == (3, [])
    assert "asks to wait 3600 s; continue later with --resume --retry-errors" in ran.err


def test_reply_that_takes_too_long(
    regionqa: "Command", server: ChatServer, colours: Path, waits: list[float]
) -> None:
    server.faults = {"what": [hang] * 9}
    words = ("ask", colours / "red.png", "what?", "--server", server.url, *CARD)
    ran = regionqa(*words, "--server-model", "tiny-vl", "--server-timeout", "0.2")
    assert ran.status == 3
    assert "no reply in time; raise --server-timeout" in ran.err
    assert len(waits) == 1


def test_parts_that_a_server_refuses_are_left_out(
    regionqa: "Command", server: ChatServer, colours: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server.refused = ("logprobs", "seed", "stream_options")
    lines = request_lines(colours, "what is")
    ran = regionqa(*ASK, "--server", server.url, *CARD, "--batch-size", "1", stdin=lines)
    assert ran.status == 0
    assert [record["error"] for record in answer_lines(ran.out)] == [None] * 3
    assert len(server.asked) == 3 + 3
    told = [line.getMessage() for line in caplog.records]
    assert sorted(line.split("take ")[-1] for line in told if "does not take" in line) == [
        "logprobs; asked without it", "seed; asked without it", "stream_options; asked without it",
    ]  # fmt: skip


# -- stopped and continued -------------------------------------------------------------------------


def test_killed_run_resumes_and_asks_nothing_twice(
    regionqa: "Command", server: ChatServer, colours: Path, tmp_path: Path
) -> None:
    lines = request_lines(colours, "what is", "where is", repeat=2)
    words = (*ASK, "--server", server.url, *CARD, "--batch-size", "2", "--server-concurrency", "2")
    whole, out, given = tmp_path / "whole.jsonl", tmp_path / "out.jsonl", tmp_path / "requests"
    assert regionqa(*words, "--out", whole, stdin=lines).status == 0
    server.asked.clear()
    server.answered, server.stop_after = 0, 5
    given.write_text(lines)
    with given.open("rb") as stdin:
        command = [sys.executable, "-m", "regionqa", *words, "--out", str(out)]
        run = subprocess.Popen(command, stdin=stdin, env=dict(os.environ))
        assert server.waiting.wait(600)
        run.kill()
        assert run.wait() == -signal.SIGKILL
    written = answer_lines(out.read_text())
    assert 2 <= len(written) <= 5
    server.release()
    server.asked.clear()
    ran = regionqa(*words, "--out", out, "--resume", stdin=lines)
    assert (ran.status, ran.err) == (0, "")
    assert out.read_bytes() == whole.read_bytes()
    assert len(server.asked) == 12 - len(written)


def test_failed_items_are_asked_again_on_request(
    regionqa: "Command", server: ChatServer, colours: Path, tmp_path: Path, waits: list[float]
) -> None:
    out, lines = tmp_path / "out.jsonl", request_lines(colours, "what is", "where is")
    words = (*ASK, "--server", server.url, *CARD, "--out", out)
    server.faults = {"where": [status(500)] * 18}
    assert regionqa(*words, stdin=lines).status == 3
    asked = len(server.asked)
    assert regionqa(*words, "--resume", stdin=lines).status == 3
    assert len(server.asked) == asked
    ran = regionqa(*words, "--resume", "--retry-errors", stdin=lines)
    assert (ran.status, len(server.asked)) == (0, asked + 3)
    # another model of the server does not count as the same
    ran = regionqa(*words, "--resume", "--server-model", "other", stdin=lines)
    assert len(server.asked) == asked + 3 + 6
