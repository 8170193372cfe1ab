"""`regionqa serve`: the process, its address, its end, and clients that come and go."""

import contextlib
import json
import signal
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from helpers.serve.apps import PATIENCE, TOKEN, Served, events, image_bytes, served
from helpers.serve.server_process import HEADERS, post, process
from regionqa.cli import options as cli_options
from regionqa.options import RuntimeOptions
from regionqa.serve.options import ServeLimits
from regionqa.serve.server import PageServer, address, listening, switchable_models

if TYPE_CHECKING:
    from conftest import Command

QUESTION = {"image": "red.png", "question": "what colour?"}


# -- the command -----------------------------------------------------------------------------------


def test_a_folder_is_served_until_ctrl_c(photos: Path) -> None:
    with process(photos) as (running, port, token):
        body = {"image": "cat.jpg", "regions": [[20, 10, 200, 140]], "caption": True}
        status, reply = post(port, token, "/v1/answers", body)
        (record,) = reply["answers"]
        assert (status, record["model"], record["error"]) == (200, "starter", None)
        assert record["answer"]
        assert post(port, "x" * 43, "/v1/answers", body)[0] == 401
        running.send_signal(signal.SIGINT)
        out, err = running.communicate(timeout=PATIENCE)
        assert (running.returncode, out, err) == (0, "", "")


def test_a_port_in_use_is_told_in_one_line(regionqa: "Command", photos: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ran = regionqa("serve", photos, "--port", port, "--no-browser")
    assert (ran.status, ran.out) == (2, "")
    assert ran.err == (
        f"regionqa: error: --port {port}: is in use on 127.0.0.1; choose another, or 0 for any "
        "free one\n"
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--host", "0.0.0.0"), "--host 0.0.0.0: can be reached from other machines"),
        (("--token", "short"), "--token: needs at least 16 characters"),
        (("--host", "192.0.2.1", "--token", TOKEN), "--host 192.0.2.1: cannot be listened on"),
        (("gone.png",), "gone.png: no such file"),
        (("-",), "-: names cannot be read from stdin here"),
        (("--port", "70000"), "'--port'"),
    ],
)
def test_what_cannot_be_served(regionqa: "Command", words: tuple[str, ...], message: str) -> None:
    port = () if "--port" in words else ("--port", "0")
    ran = regionqa("serve", "--no-browser", *port, *words)
    assert (ran.status, ran.out) == (2, "")
    assert message in ran.err
    assert ran.err.count("\n") == 1


def test_the_missing_extra_is_named(regionqa: "Command", monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli_options, "find_spec", lambda name: None)
    ran = regionqa("serve")
    assert (ran.status, ran.err) == (
        2,
        "regionqa: error: serve needs starlette, which is not installed: "
        "pip install 'regionqa[serve]'\n",
    )


def test_addresses() -> None:
    with listening("127.0.0.1", 0) as bound:
        port = bound.getsockname()[1]
        assert address("127.0.0.1", bound) == f"http://127.0.0.1:{port}"
        assert address("::1", bound) == f"http://[::1]:{port}"
        assert address("0.0.0.0", bound) == f"http://{socket.gethostname()}:{port}"


def test_models_to_switch_to(toy: Path) -> None:
    assert switchable_models(RuntimeOptions(), "starter") == ("starter", {"starter": "starter"})
    name, models = switchable_models(RuntimeOptions(model=str(toy)), "toy-1")
    assert (name, models) == ("toy-1", {"toy-1": str(toy), "starter": "starter"})
    remote = RuntimeOptions(model="qwen3-vl-2b", server="http://127.0.0.1:1/v1")
    assert switchable_models(remote, "x") == ("qwen3-vl-2b", {"qwen3-vl-2b": "qwen3-vl-2b"})


# -- a real server in a thread ---------------------------------------------------------------------


@dataclass
class RealServer:
    """uvicorn in a thread, and the connections to it."""

    port: int
    server: PageServer
    connections: contextlib.ExitStack

    def request(
        self, path: str, body: object, kind: str = "application/json", method: str = "POST"
    ) -> HTTPConnection:
        """Send a request; its response is not read yet."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        self.connections.callback(connection.close)
        content = body if isinstance(body, bytes) else json.dumps(body)
        connection.request(method, path, content, HEADERS | {"content-type": kind})
        return connection

    def reply(self, path: str, body: object, kind: str = "application/json") -> HTTPResponse:
        """Send a request and return its response."""
        reply = self.request(path, body, kind).getresponse()
        self.connections.callback(reply.close)
        return reply

    def slow_upload(self) -> socket.socket:
        """Begin an upload that does not end."""
        slow = socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE)
        self.connections.callback(slow.close)
        slow.sendall(
            f"POST /v1/images?name=a.png HTTP/1.1\r\nHost: 127.0.0.1:{self.port}\r\n"
            f"Authorization: Bearer {TOKEN}\r\nContent-Type: image/png\r\n"
            "Content-Length: 1000\r\n\r\nx".encode()
        )
        return slow


@contextlib.contextmanager
def real_server(app: Served) -> Iterator[RealServer]:
    """Run an application's server."""
    with listening("127.0.0.1", 0) as bound, contextlib.ExitStack() as connections:
        server = PageServer(app.app, ServeLimits(), app.scheduler.close)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
        thread.start()
        try:
            yield RealServer(bound.getsockname()[1], server, connections)
        finally:
            app.backend.go_on.set()
            connections.close()
            server.should_exit = True
            thread.join(PATIENCE)
            assert not thread.is_alive()


def until(condition: Any) -> None:
    """Wait for a condition that another thread brings about."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_events_come_while_the_answer_grows(colours: Path) -> None:
    with served(colours) as app, real_server(app) as real:
        reply = real.reply("/v1/answers", QUESTION | {"stream": True})
        assert reply.headers["transfer-encoding"] == "chunked"
        assert events(reply.read().decode())[-1] == ("done", {"answers": 1, "failed": 0})


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_away_frees_its_place(colours: Path, stream: bool) -> None:
    with served(colours) as app, real_server(app) as real:
        with app.backend.paused():
            first = real.request("/v1/answers", QUESTION)
            assert app.backend.started.wait(PATIENCE)
            gone = real.request("/v1/answers", {"requests": [QUESTION] * 100, "stream": stream})
            until(lambda: app.scheduler.waiting == 100)
            gone.sock.shutdown(socket.SHUT_RDWR)
            gone.close()
            until(lambda: app.scheduler.waiting == 0)
        with first.getresponse() as reply:
            assert reply.status == 200
        assert app.backend.batches == [1]


def test_answers_of_twenty_clients_are_not_mixed_up(colours: Path) -> None:
    with served(colours) as app, real_server(app) as real:
        found: dict[int, list[str]] = {}

        def user(number: int) -> None:
            colour = ("red", "lime", "blue")[number % 3]
            for turn in range(3):
                body = {"image": f"{colour}.png", "question": "?", "regions": [[0, 0, turn + 1, 8]]}
                (record,) = json.loads(real.reply("/v1/answers", body).read())["answers"]
                found.setdefault(number, []).append(record["answer"])

        users = [threading.Thread(target=user, args=(number,)) for number in range(20)]
        for each in users:
            each.start()
        for each in users:
            each.join()
        names = ("red", "green", "blue")
        assert found == {
            number: [f"{names[number % 3]}: 0,0,{turn + 1},8" for turn in range(3)]
            for number in range(20)
        }
        assert sum(app.backend.batches) == 60


def test_a_slow_upload_is_ended(colours: Path) -> None:
    limits = ServeLimits(seconds=0.05, uploads_at_once=1)
    with served(colours, limits=limits) as app, real_server(app) as real:
        connection, reply = real.slow_upload(), ""
        while "seconds" not in reply and (part := connection.recv(65536)):
            reply += part.decode()  # headers and body may arrive apart
        assert reply.startswith("HTTP/1.1 408 ")
        assert "the body did not arrive within 0.05 seconds" in reply


def test_too_many_uploads_at_once(colours: Path) -> None:
    limits = ServeLimits(uploads_at_once=1)
    with served(colours, limits=limits) as app, real_server(app) as real:
        slow = real.slow_upload()
        statuses: list[int] = []

        def refused() -> bool:
            reply = real.reply("/v1/images?name=b.png", image_bytes(), "image/png")
            statuses.append(reply.status)
            return reply.status == 429 and reply.headers["retry-after"] == "1"

        until(refused)
        slow.close()
        until(lambda: not refused())
        assert set(statuses) == {201, 429} or statuses[0] == 429
        assert statuses[-1] == 201, "a place is free again"


def test_the_end_finishes_what_runs_and_refuses_what_waits(colours: Path) -> None:
    with served(colours) as app, real_server(app) as real:
        with app.backend.paused():
            runs = real.request("/v1/answers", QUESTION)
            assert app.backend.started.wait(PATIENCE)
            waits = real.request("/v1/answers", QUESTION | {"question": "and?"})
            until(lambda: app.scheduler.waiting == 1)
            real.server.handle_exit(signal.SIGTERM, None)
            with waits.getresponse() as refused:
                assert refused.status == 503
                assert json.loads(refused.read()) == {
                    "error": "the server is shutting down; ask again later"
                }
        with runs.getresponse() as finished:
            assert json.loads(finished.read())["answers"][0]["error"] is None


def test_no_line_of_the_server_holds_the_token(
    colours: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with served(colours) as app, real_server(app) as real:
        for path in (f"/?token={TOKEN}", f"/x?token={TOKEN}"):
            with real.request(path, b"", method="GET").getresponse() as reply:
                reply.read()
        with socket.create_connection(("127.0.0.1", real.port)) as broken:
            broken.sendall(b"nonsense\r\n\r\n")
            broken.recv(1000)
    out, err = capfd.readouterr()
    assert TOKEN not in out + err
