"""A run against a server that is killed and resumed: nothing that was written is asked again."""

import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import Pipe
from pathlib import Path

from campaigns.kills import Campaign, Files, in_child, lines_are_a_beginning

NUMBER_OF_QUESTIONS = 60
NUMBER_OF_IMAGES = 8
"""Images that data is generated about."""
REQUESTS_OF_IMAGE = 9
"""Two for each kind, of which the second judges, and one more for the conversation's answers."""
LOG = "asked"
"""Name of the server's log, which has a line for each request."""


def asking(material: Path, url: str) -> Campaign:
    """Answers of a server as JSON lines; each question is asked once in a run."""
    boxes, log = material / "boxes.json", material / LOG
    images = sorted((material / "images").iterdir())
    count = NUMBER_OF_QUESTIONS // len(images)
    boxes.write_text(json.dumps(
        {path.name: [[5 + n, 5, 60 + n, 60] for n in range(count)] for path in images}
    ))  # fmt: skip
    written: set[str] = set()

    def check_killed(out: Path, whole: Files) -> str | None:
        path = out / "out.jsonl"
        lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
        written.clear()
        written.update(json.loads(line)["answer"] for line in lines)
        log.unlink(missing_ok=True)
        return lines_are_a_beginning(out, whole)

    def check_resumed() -> str | None:
        asked = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
        again = [question for question in asked if question in written]
        if again:
            return f"{len(again)} questions that were answered are asked again"
        missing = NUMBER_OF_QUESTIONS - len(written)
        return (
            None if len(asked) == missing else f"asked {len(asked)} times, {missing} were missing"
        )

    return Campaign(
        "server",
        ("caption", str(material / "images"), "--boxes", str(boxes), "--format", "jsonl",
         "--out", "OUT/out.jsonl", "--server", url, "--model", "qwen3-vl-2b", "--batch-size", "4",
         "--way", "coordinates"),
        ("--resume",),
        check_killed=check_killed,
        check_resumed=check_resumed,
    )  # fmt: skip


def generating(material: Path, url: str) -> Campaign:
    """Data from annotations, with a judge; each request is sent once until it has a reply."""
    from helpers.vlm.instruction_server import instances

    folder, log = material / "annotated", material / LOG
    folder.mkdir(exist_ok=True)
    annotations = instances(folder, NUMBER_OF_IMAGES)
    kept = 0

    def check_killed(out: Path, whole: Files) -> str | None:
        nonlocal kept
        path = out / "out.replies.jsonl"
        kept = path.read_bytes().count(b"\n") if path.exists() else 0
        log.unlink(missing_ok=True)
        return lines_are_a_beginning(out, whole)

    def check_resumed() -> str | None:
        asked = len(log.read_text().splitlines()) if log.exists() else 0
        missing = NUMBER_OF_IMAGES * REQUESTS_OF_IMAGE - kept
        return None if asked == missing else f"asked {asked} times, {missing} were missing"

    return Campaign(
        "data generate",
        ("data", "generate", str(annotations), "--server", url, "--judge", "--kinds",
         "small,relations,multi-turn,general", "--server-concurrency", "4",
         "--out", "OUT/out.jsonl"),
        ("--resume",),
        ignored=("replies.jsonl",),  # in the order of their arrival
        check_killed=check_killed,
        check_resumed=check_resumed,
    )  # fmt: skip


@contextmanager
def chat_process(material: Path) -> Iterator[str]:
    """The stand-in for a server in a process of its own, which has threads; its address."""
    ours, theirs = Pipe()

    def serve() -> int:
        from helpers.vlm.chat_server import AskedChat, ChatServer
        from helpers.vlm.instruction_server import scripted

        def answer(asked: AskedChat) -> str:
            return scripted(asked) if "response_format" in asked.body else asked.question

        ours.close()
        server = ChatServer(answer=answer, structured=False, log=material / LOG)
        theirs.send(server.url)
        theirs.poll(None)
        os._exit(0)

    child = in_child(serve, material / "chat.log")
    theirs.close()
    try:
        yield str(ours.recv())
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
