"""Pipes held open or closed early, signals, terminals and encodings, in processes of their own.

A new interpreter costs seconds, so only tests of signals and of its encodings start one.
"""

import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from conftest import Command

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals and terminals")

REGIONQA = (sys.executable, "-m", "regionqa")
QUICK = ("--max-new-tokens", "2", "--device", "cpu")
PATIENCE = 900
"""Seconds after which a process that hangs is killed; a busy machine needs a tenth of it."""


def environment(**changes: str) -> dict[str, str]:
    """The user's environment, with Python's default buffering."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    return kept | changes


def finished(
    *words: str | Path,
    stdin: bytes = b"",
    stdout: int | IO[bytes] = subprocess.PIPE,
    env: Mapping[str, str] | None = None,
    before: tuple[str, ...] = (),
    program: Sequence[str] = REGIONQA,
) -> "subprocess.CompletedProcess[bytes]":
    """Run a command of a program to its end; `before` precedes it on the command line."""
    return subprocess.run(
        [*before, *program, *words],
        input=stdin,
        stdout=stdout,
        stderr=subprocess.PIPE,
        env=env or environment(),
        timeout=PATIENCE,
        check=False,
    )


@contextmanager
def running(
    *words: str | Path, program: Sequence[str] = REGIONQA, **options: Any
) -> "Iterator[subprocess.Popen[bytes]]":
    """Run a command with pipes; kill it when the block ends."""
    pipes: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    process = subprocess.Popen([*program, *words], env=environment(), **pipes | options)
    watchdog = threading.Timer(PATIENCE, process.kill)
    watchdog.start()
    try:
        with process:
            try:
                yield process
            finally:
                process.kill()
    finally:
        watchdog.cancel()


def send(stream: IO[bytes] | None, *lines: str | Path) -> None:
    """Write lines without closing the pipe."""
    assert stream is not None
    stream.write("".join(f"{line}\n" for line in lines).encode())
    stream.flush()


def receive(stream: IO[bytes] | None) -> str:
    """Wait for the next line; empty if the other side has closed."""
    assert stream is not None
    return stream.readline().decode()


def rest(stream: IO[bytes] | None) -> str:
    """Wait for the rest."""
    assert stream is not None
    return stream.read().decode()


@pytest.fixture
def quick(forked: str) -> list[str]:
    """`regionqa` in a process that starts at once."""
    return shlex.split(forked)


@pytest.fixture
def paths(photos: Path) -> list[Path]:
    """Three images, sorted by name."""
    return sorted(photos.iterdir())


# -- stdout is for answers -------------------------------------------------------------------------


def test_stdout_has_the_answer_only(regionqa: "Command", quick: list[str], cat: Path) -> None:
    words = ("ask", cat, "--box", "120,20,345,240", "what is this?", *QUICK)
    ran = finished(*map(str, words), program=quick)
    assert (ran.returncode, ran.stderr) == (0, b"")
    assert ran.stdout.decode() == regionqa(*words).out
    assert ran.stdout.count(b"\n") == 1


def test_progress_is_shown_on_a_terminal_only(
    regionqa: "Command", quick: list[str], photos: Path
) -> None:
    import pty

    terminal, side = pty.openpty()
    words = ("caption", str(photos), "--format", "jsonl", *QUICK)
    with running(*words, program=quick, stderr=side) as process:
        os.close(side)
        seen = b""
        while part := read_terminal(terminal):
            seen += part
        out = rest(process.stdout)
        assert process.wait() == 0
    os.close(terminal)
    assert out == regionqa(*words).out
    assert b"images" in seen
    assert b"/3" in seen
    assert b"\x1b" in seen


def read_terminal(terminal: int) -> bytes:
    """Read a program's output from its terminal; empty once it has exited."""
    try:
        return os.read(terminal, 65536)
    except OSError:  # Linux says so, where others return nothing
        return b""


# -- pipes -----------------------------------------------------------------------------------------


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Restore SIGINT, which background jobs of scripts and their children ignore."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c")
def test_first_answer_is_streamed_and_ctrl_c_ends_the_run(
    paths: list[Path],
) -> None:
    with running("caption", "-", "--format", "jsonl", *QUICK) as process:
        send(process.stdin, *paths[:2])
        first = json.loads(receive(process.stdout))
        assert first["image"] == str(paths[0])
        process.send_signal(signal.SIGINT)
        assert process.wait() == 130
        assert rest(process.stderr) == "regionqa: error: interrupted; the output so far is kept\n"


def test_batch_size_1_answers_each_line_at_once(paths: list[Path], quick: list[str]) -> None:
    words = ("ask", "-", "--batch-size", "1", "--format", "jsonl", *QUICK)
    with running(*words, program=quick) as process:
        for question in ("what is <region1>?", "is it a cat?"):
            for path in (*paths, "gone.jpg"):
                request = {"image": str(path), "regions": [[5, 5, 90, 90]], "question": question}
                send(process.stdin, json.dumps(request))
                answer = json.loads(receive(process.stdout))
                assert (answer["image"], answer["question"]) == (str(path), question)
                assert bool(answer["error"]) == (path == "gone.jpg")
        assert process.communicate() == (b"", b"")
        assert process.returncode == 3


def test_closed_stdout_ends_the_run_quietly(paths: list[Path], quick: list[str]) -> None:
    words = ("caption", "-", "--batch-size", "1", "--format", "jsonl", *QUICK)
    with running(*words, program=quick) as process:
        head = subprocess.Popen(["head", "-1"], stdin=process.stdout, stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.close()
        send(process.stdin, paths[0])
        out, _ = head.communicate(timeout=PATIENCE)
        assert json.loads(out)["image"] == str(paths[0])
        send(process.stdin, paths[1])
        assert process.wait() == 141
        assert rest(process.stderr) == ""


@pytest.mark.parametrize("words", [("--help",), ("models", "show")], ids=" ".join)
def test_stdout_closed_from_the_start(words: tuple[str, ...]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    ran = finished(*words, stdout=writing)
    os.close(writing)
    assert (ran.returncode, ran.stderr) == (141, b"")


# -- what stops a run ------------------------------------------------------------------------------


def test_killed_run_resumes_to_the_same_bytes(
    regionqa: "Command", paths: list[Path], tmp_path: Path
) -> None:
    boxes = tmp_path / "boxes.json"
    entries = {path.name: [[5, 5, 90, 90], [20, 30, 100, 140]] for path in paths}
    boxes.write_text(json.dumps(entries))
    words = ("caption", "-", "--boxes", str(boxes), "--format", "jsonl", *QUICK)
    lines = "".join(f"{path}\n" for path in paths * 2)
    whole, out = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    assert regionqa(*words, "--out", whole, stdin=lines).status == 0
    with running(*words, "--out", str(out), "--batch-size", "1") as process:
        send(process.stdin, *paths[:2])
        while not out.exists() or out.read_bytes().count(b"\n") < 3:
            assert process.poll() is None
            time.sleep(0.02)
        process.kill()
        assert process.wait() == -signal.SIGKILL
    kept = out.read_bytes()
    assert whole.read_bytes().startswith(kept)
    assert 3 <= kept.count(b"\n") <= 4
    ran = regionqa(*words, "--out", out, "--resume", stdin=lines)
    assert (ran.status, ran.err) == (0, "")
    assert out.read_bytes() == whole.read_bytes()
    assert whole.read_bytes().count(b"\n") == 12


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_full_disk_is_a_one_line_error(cat: Path, quick: list[str]) -> None:
    with Path("/dev/full").open("wb") as full:
        asked = finished("ask", cat, "what is this?", *QUICK, stdout=full, program=quick)
        listed = finished("models", "list", stdout=full, program=quick)
    for ran in (asked, listed):
        assert (ran.returncode, ran.stderr.count(b"\n")) == (1, 1)
        assert b"No space left on device" in ran.stderr


def test_closed_stderr_is_not_an_error() -> None:
    for words, status in ((("models", "list"), 0), (("no-such-command",), 2)):
        ran = finished(*words, before=("sh", "-c", 'exec "$@" 2>&-', "sh"))
        assert ran.returncode == status
        assert bool(ran.stdout) == (status == 0), "an error must not end up among the answers"


# -- encodings -------------------------------------------------------------------------------------


def test_file_names_outside_the_locale(cat: Path, tmp_path: Path) -> None:
    named, piped = tmp_path / "kätzchen.png", os.fsencode(tmp_path) + b"/caf\xe9.png"
    try:
        for path in (os.fsencode(named), piped):
            Path(os.fsdecode(path)).write_bytes(cat.read_bytes())
    except OSError:
        pytest.skip("this file system takes only valid text")
    words = ("ask", named, "-", "was ist das für ein Tier?", "--format", "jsonl", *QUICK)
    ran = finished(*words, stdin=piped + b"\n", env=environment(LC_ALL="C", LANG="C"))
    first, second = map(json.loads, ran.stdout.decode("utf-8").splitlines())
    assert (ran.returncode, ran.stderr) == (0, b"")
    assert first["image"] == str(named)
    assert os.fsencode(second["image"]) == piped
    assert first["question"] == second["question"] == "was ist das für ein Tier?"
    assert first["answer"] == second["answer"]
