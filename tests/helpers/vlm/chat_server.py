"""A stand-in for a server of OpenAI's chat protocol: scripted answers, faults and a log.

An answer is a function of the request alone, so that it is the same in any order, after any number
of attempts and in another run.
"""

import base64
import io
import json
import socket
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from PIL import Image

Fault = Callable[["ChatHandler"], None]
"""Answers one request wrongly."""


@dataclass(frozen=True)
class AskedChat:
    """A request."""

    body: Mapping[str, Any]
    headers: Mapping[str, str]
    """By names in lower case."""

    @property
    def parts(self) -> list[str | Image.Image]:
        """Text and decoded images of all messages but the system's, in order."""
        found: list[str | Image.Image] = []
        for message in self.body["messages"]:
            content: Any = message["content"]
            if message["role"] == "system":
                continue
            if isinstance(content, str):
                content = [{"type": "text", "text": content}]
            for part in content:
                is_text = part["type"] == "text"
                found.append(part["text"] if is_text else decoded(part["image_url"]["url"]))
        return found

    @property
    def question(self) -> str:
        """The text of the last message."""
        return [part for part in self.parts if isinstance(part, str)][-1]

    @property
    def images(self) -> list[Image.Image]:
        """The decoded images."""
        return [part for part in self.parts if not isinstance(part, str)]


def decoded(url: str) -> Image.Image:
    """Decode a data URL."""
    kind, _, data = url.partition(";base64,")
    image = Image.open(io.BytesIO(base64.b64decode(data, validate=True)))
    assert kind == f"data:image/{str(image.format).lower()}"
    image.load()
    return image


def sizes(asked: AskedChat) -> str:
    """The default answer: the question, and the images' sizes."""
    return " ".join([asked.question, *(f"{i.width}x{i.height}" for i in asked.images)])


@dataclass
class ChatServer:
    """A server on the loopback interface; `url` is its address."""

    answer: Callable[[AskedChat], str] = sizes
    models: Sequence[str] = ("tiny-vl",)
    logprob: float | None = None
    """Log-probability of every token; None: probabilities are not given."""
    alternatives: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Log-probabilities of further tokens in the place of a token."""
    key: str | None = None
    """The key it wants."""
    faults: dict[str, list[Fault]] = field(default_factory=dict)
    """By a part of the question: faults of the next requests with it."""
    refused: Sequence[str] = ()
    """Names of parts of a request that it does not take."""
    structured: bool = True
    """Whether it keeps to a schema."""
    counts: bool = True
    """Whether it counts tokens."""
    stop_after: int | None = None
    """Number of answers after which it leaves requests unanswered, until `release`."""
    log: Path | None = None
    """A file that gets a line of JSON for each request."""
    asked: list[AskedChat] = field(default_factory=list)
    """The requests, in the order of their arrival."""
    sockets: set[socket.socket] = field(default_factory=set)

    def __post_init__(self) -> None:
        owner = self
        self.lock = threading.Lock()
        self.released = threading.Event()
        self.waiting = threading.Event()
        """Set once a request is left unanswered."""
        self.most_at_once = self.at_once = self.answered = 0

        class Bound(ChatHandler):
            """The handler of this server."""

            server_state = owner

        self._server = QuietServer(("127.0.0.1", 0), Bound)
        self._server.daemon_threads = False  # so that closing waits for them
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def release(self) -> None:
        """Answer again; requests that wait are dropped."""
        self.stop_after = None
        self.released.set()

    def close(self) -> None:
        """Stop, and end all connections."""
        self.release()
        self._server.shutdown()
        self._thread.join()
        for connection in list(self.sockets):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self._server.server_close()

    def next_fault(self, question: str) -> Fault | None:
        """Take the next fault of a question."""
        for part, faults in self.faults.items():
            if part in question and faults:
                return faults.pop(0)
        return None


class QuietServer(ThreadingHTTPServer):
    """A server that does not mind clients that are killed."""

    def handle_error(self, request: object, client_address: object) -> None:
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


class ChatHandler(BaseHTTPRequestHandler):
    """Handles the requests of one connection."""

    server_state: ChatServer
    protocol_version = "HTTP/1.1"
    timeout = 300

    def setup(self) -> None:
        super().setup()
        self.server_state.sockets.add(self.connection)

    def finish(self) -> None:
        self.server_state.sockets.discard(self.connection)
        with suppress(OSError):  # the client has gone
            super().finish()

    def log_message(self, *_: object) -> None:
        """Log nothing."""

    def do_GET(self) -> None:
        names = [{"id": name, "object": "model"} for name in self.server_state.models]
        if self.is_allowed():
            self.send(200, {"object": "list", "data": names})

    def do_POST(self) -> None:
        state = self.server_state
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        asked = AskedChat(body, {name.lower(): value for name, value in self.headers.items()})
        with state.lock:
            state.asked.append(asked)
            state.at_once += 1
            state.most_at_once = max(state.most_at_once, state.at_once)
            if state.log:
                with state.log.open("a") as log:
                    log.write(json.dumps(asked.question) + "\n")
        try:
            with suppress(ConnectionError):  # the client has gone
                self.reply(asked)
        finally:
            with state.lock:
                state.at_once -= 1

    def reply(self, asked: AskedChat) -> None:
        """Answer a request, or fail as the script says."""
        state = self.server_state
        with state.lock:
            fault = state.next_fault(asked.question)
            stopped = state.stop_after is not None and state.answered >= state.stop_after
            state.answered += not stopped and fault is None
        if stopped:
            state.waiting.set()
            state.released.wait()
            self.close_connection = True
            return
        for name in state.refused:
            if name in asked.body:
                message = f"unknown field `{name}`"
                return self.send(400, {"error": {"message": message, "type": "invalid_request"}})
        if not self.is_allowed():
            return
        if fault is not None:
            return fault(self)
        self.stream(self.text(asked), asked.body)

    def text(self, asked: AskedChat) -> str:
        """The answer; one that keeps to the choices if there are any."""
        answer = self.server_state.answer(asked)
        form = asked.body.get("response_format")
        if form is None or not self.server_state.structured:
            return answer
        ((name, schema),) = form["json_schema"]["schema"]["properties"].items()
        if "enum" not in schema:
            return json.dumps({name: answer})
        return json.dumps({name: answer if answer in schema["enum"] else schema["enum"][0]})

    def is_allowed(self) -> bool:
        """Whether the key is right; if not, that is said."""
        key = self.server_state.key
        given = str(self.headers["Authorization"]).removeprefix("Bearer ")
        if key is None or given == key:
            return True
        self.send(401, {"error": {"message": f"wrong key {given}"}})
        return False

    def send(self, status: int, content: object, **headers: str) -> None:
        """Send JSON."""
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(data)

    def stream(self, text: str, body: Mapping[str, Any], finish: str | None = "stop") -> None:
        """Stream an answer, a word at a time; finish: None leaves the end out."""
        state = self.server_state
        self.begin_stream()
        words = text.split(" ")
        pieces = [words[0], *(f" {word}" for word in words[1:])]
        limit = int(body["max_tokens"])
        for piece in pieces[:limit]:
            choice: dict[str, Any] = {
                "index": 0,
                "delta": {"content": piece},
                "finish_reason": None,
            }
            if state.logprob is not None and body.get("logprobs"):
                choice["logprobs"] = {"content": [self.token(piece, state.logprob)]}
            self.event({"choices": [choice]})
        if finish is not None:
            finish = finish if len(pieces) <= limit else "length"
            self.event({"choices": [{"index": 0, "delta": {}, "finish_reason": finish}]})
            if state.counts:
                count = len(pieces[:limit]) + 1
                prompt = len(str(body.get("messages", "")).split())
                usage = {"completion_tokens": count, "prompt_tokens": prompt}
                self.event({"choices": [], "usage": usage})
            self.chunk(b"data: [DONE]\n\n")
        self.chunk(b"")

    def token(self, piece: str, log: float) -> dict[str, Any]:
        """A token with its probability and those of others."""
        others = {**self.server_state.alternatives.get(piece, {}), piece: log}
        tops = [{"token": text, "logprob": each} for text, each in others.items()]
        return {"token": piece, "logprob": log, "top_logprobs": tops}

    def begin_stream(self) -> None:
        """Send the head of a stream of events."""
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

    def event(self, content: Mapping[str, Any]) -> None:
        """Send an event."""
        whole = {"id": "1", "object": "chat.completion.chunk", "created": 0, "model": "m"}
        self.chunk(f"data: {json.dumps(whole | dict(content))}\n\n".encode())

    def chunk(self, data: bytes) -> None:
        """Send a piece of a body; an empty one ends it."""
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        self.wfile.flush()


# -- faults ----------------------------------------------------------------------------------------


def status(code: int, message: str = "scripted", **headers: str) -> Fault:
    """A response with an error."""
    return lambda handler: handler.send(code, {"error": {"message": message}}, **headers)


def hang(handler: ChatHandler) -> None:
    """No response until the server closes."""
    handler.server_state.released.wait()
    handler.close_connection = True


def cut(handler: ChatHandler) -> None:
    """A stream whose connection ends within an event."""
    handler.begin_stream()
    handler.chunk(b'data: {"choices": [{"index": 0, "delta": {"content": "wrong"')
    cut_connection(handler)


def cut_connection(handler: ChatHandler) -> None:
    """End the connection within a stream."""
    handler.close_connection = True
    handler.wfile.flush()
    handler.connection.shutdown(socket.SHUT_WR)


def unfinished(handler: ChatHandler) -> None:
    """A stream that is whole to HTTP but lacks the end of the answer."""
    handler.stream("wrong answer", {"max_tokens": 9}, finish=None)


def garbage(handler: ChatHandler) -> None:
    """An event that is not JSON."""
    handler.begin_stream()
    handler.chunk(b"data: {not json}\n\n")
    handler.chunk(b"")


def misshapen(handler: ChatHandler) -> None:
    """An event that is JSON of another shape."""
    handler.begin_stream()
    handler.chunk(b'data: {"choices": [{"delta": 7}]}\n\ndata: {"choices": 3}\n\n')
    handler.chunk(b"")


def page(handler: ChatHandler) -> None:
    """A web page with status 200, as from a proxy."""
    data = b"<html>log in</html>"
    handler.send_response(200)
    handler.send_header("Content-Type", "text/html")
    handler.send_header("Content-Length", str(len(data)))
    handler.end_headers()
    handler.wfile.write(data)


# -- lines of requests and answers ----------------------------------------------------------------


def request_lines(folder: Path, *questions: str, repeat: int = 1) -> str:
    """Lines of requests: every question about every image."""
    images = sorted(folder.iterdir())
    lines = [
        {"image": str(image), "regions": [[1, 2, 6, 7]], "question": f"{question} {number}"}
        for number in range(repeat)
        for image in images
        for question in questions
    ]
    return "".join(json.dumps(line) + "\n" for line in lines)


def answer_lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]
