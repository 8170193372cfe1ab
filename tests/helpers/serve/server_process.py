"""`regionqa serve` in a process of its own, and requests to it."""

import contextlib
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

from helpers.serve.apps import PATIENCE, TOKEN

HEADERS = {"authorization": f"Bearer {TOKEN}", "content-type": "application/json"}


@contextlib.contextmanager
def process(*words: str | Path) -> Iterator[tuple["subprocess.Popen[str]", str, str]]:
    """Run `regionqa serve`; yields the process, its port and its token."""
    running = subprocess.Popen(
        [sys.executable, "-m", "regionqa", "serve", *map(str, words), "--no-browser", "--port", "0",
         "--device", "cpu"],
        stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert running.stderr is not None
        before = list[str]()  # warnings
        for line in running.stderr:
            if found := re.search(r"http://127\.0\.0\.1:(\d+)/\?token=(\S+)", line):
                break
            before.append(line)
        else:
            raise AssertionError("".join(before))
        yield running, found[1], found[2]
    finally:
        running.kill()
        running.communicate()


def post(port: str, token: str, path: str, body: object) -> tuple[int, Any]:
    """Send JSON; returns the status and the reply's JSON."""
    with contextlib.closing(HTTPConnection("127.0.0.1", int(port), timeout=PATIENCE)) as connection:
        headers = HEADERS | {"authorization": f"Bearer {token}"}
        connection.request("POST", path, json.dumps(body), headers)
        with connection.getresponse() as reply:
            return reply.status, json.loads(reply.read())
