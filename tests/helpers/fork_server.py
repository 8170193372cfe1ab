"""Run `regionqa` in new processes that do not import torch again.

Importing what a model runs on takes seconds of CPU time. A server imports it once; each command is
a fork of the server with the caller's arguments, working folder, environment and standard streams,
so that it starts as fresh as a new interpreter. Tests that look at the start of the interpreter
itself, such as its encodings and signals, run `python -m regionqa` instead.
"""

import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

CLIENT = """
import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as server:
    server.connect(sys.argv[1])
    command = {"words": sys.argv[2:], "folder": os.getcwd(), "environment": dict(os.environ)}
    socket.send_fds(server, [json.dumps(command).encode() + b"\\n"], [0, 1, 2])
    sys.exit(int(server.makefile().readline()))
"""
LIBRARIES = (
    "numpy", "onnxruntime", "PIL.Image", "tokenizers", "torch", "transformers",
    "regionqa.cli.ask", "regionqa.backends.bundle",
)  # fmt: skip
"""What every command imports. Variables that are read at import, as those of the Hub's client are,
have the server's values."""


@contextmanager
def fork_server(folder: Path) -> Iterator[str]:
    """Start a server; yield a shell command that behaves as `regionqa`.

    Args:
        folder: An empty folder for the server's socket; its path must be short.
    """
    client, address = folder / "client.py", folder / "s"
    client.write_text(CLIENT)
    server = subprocess.Popen(
        [sys.executable, "-m", "helpers.fork_server", str(address)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        stdout=subprocess.PIPE,
    )
    try:
        assert server.stdout is not None
        assert server.stdout.readline() == b"ready\n"
        yield f'"{sys.executable}" -I -S "{client}" "{address}"'
    finally:
        server.kill()
        server.wait()
        if server.stdout is not None:
            server.stdout.close()


def serve(address: str) -> None:
    """Import the libraries, then fork for every command until killed."""
    for library in LIBRARIES:
        importlib.import_module(library)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those that answer
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(address)
        listening.listen()
        os.write(1, b"ready\n")
        while True:
            client, _ = listening.accept()
            if os.fork() == 0:
                listening.close()
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                answer(client)
            client.close()


def answer(client: socket.socket) -> None:
    """Run a client's command in a child, tell the client its exit status, and exit.

    The command does not outlive its client, which a test may kill.
    """
    text, streams, _, _ = socket.recv_fds(client, 1 << 20, 3)
    while not text.endswith(b"\n"):
        text += client.recv(1 << 20)
    ends, running = os.pipe()
    child = os.fork()
    if child == 0:
        client.close()
        os._exit(run(json.loads(text), streams))
    os.close(running)
    for stream in streams:
        os.close(stream)
    readable, _, _ = select.select([client.fileno(), ends], [], [])
    if client.fileno() in readable:
        os.kill(child, signal.SIGKILL)
    _, ended = os.waitpid(child, 0)
    status = os.waitstatus_to_exitcode(ended)
    with suppress(OSError):
        client.sendall(f"{status if status >= 0 else 128 - status}\n".encode())
    os._exit(0)


def run(command: dict[str, Any], streams: list[int]) -> int:
    """Run a command in this process, which is a fresh fork; return its exit status."""
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.chdir(command["folder"])
    os.environ.clear()
    os.environ.update(command["environment"])
    sys.argv = ["regionqa", *command["words"]]
    try:
        return int(importlib.import_module("regionqa.cli").main(command["words"]))
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


if __name__ == "__main__":
    serve(sys.argv[1])
