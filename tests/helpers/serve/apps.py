"""The application of `regionqa serve` over a scripted model, and clients for it."""

import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image
from starlette.testclient import TestClient

from helpers.backends import ToyBackend, ToyPrompt, toy_info
from regionqa.backends.base import Completion, OnProgress
from regionqa.engine import Engine
from regionqa.errors import ItemError
from regionqa.language.answer_schemas import AnswerSchema
from regionqa.options import RuntimeOptions
from regionqa.requests import Request, Sampling
from regionqa.serve.access import Guard
from regionqa.serve.app import make_app
from regionqa.serve.gallery import Gallery
from regionqa.serve.options import ServeLimits
from regionqa.serve.proposals import Proposers
from regionqa.serve.scheduler import Scheduler

TOKEN = "0123456789abcdef-token"
BASE = "http://127.0.0.1:8000"
PATIENCE = 600
"""Seconds after which a wait has failed; a busy machine needs a tenth of it."""


class GatedBackend(ToyBackend):
    """A toy that, once told so, waits before and inside `generate` until it may go on."""

    def __init__(self, **changes: object) -> None:
        super().__init__(toy_info(**({"multi_turn": True} | changes)))
        self.go_on = threading.Event()
        self.go_on.set()
        self.started = threading.Event()
        self.asked: list[list[str]] = []
        """Images of every batch."""

    def generate(
        self,
        prompts: Sequence[ToyPrompt],
        max_new_tokens: int,
        sampling: Sampling,
        seeds: Sequence[int],
        on_progress: OnProgress | None = None,
        schema: AnswerSchema | None = None,
    ) -> list[Completion | ItemError]:
        self.asked.append([prompt.request.image for prompt in prompts])
        self.started.set()
        assert self.go_on.wait(PATIENCE)
        return super().generate(prompts, max_new_tokens, sampling, seeds, on_progress, schema)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Keep the batch that is taken next, and what comes after it, waiting."""
        self.started.clear()
        self.go_on.clear()
        try:
            yield
        finally:
            self.go_on.set()


@dataclass
class Served:
    """An application with its parts."""

    app: Guard
    backend: GatedBackend
    scheduler: Scheduler
    gallery: Gallery
    reported: list[str] = field(default_factory=list)
    """Lines for the person who runs the server."""

    def client(self, **headers: str) -> TestClient:
        """A program with the token; headers have `_` for `-`."""
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        return TestClient(
            self.app,
            BASE,
            headers={"authorization": f"Bearer {TOKEN}", **given},
            raise_server_exceptions=False,
            follow_redirects=False,
        )


@contextmanager
def served(
    *images: Path | str,
    limits: ServeLimits | None = None,
    host: str = "127.0.0.1",
    models: dict[str, str] | None = None,
    batch_size: int = 16,
    proposers: Proposers | None = None,
    **changes: object,
) -> Iterator[Served]:
    """Serve images with a toy.

    Args:
        images: As on the command line.
        limits: Limits on clients.
        host: The address that the server believes to listen on.
        models: Models to switch to.
        batch_size: Of the engine.
        proposers: What proposes regions.
        changes: Properties of the toy.
    """
    limits = limits or ServeLimits()
    reported: list[str] = []
    backend = GatedBackend(**changes)
    scheduler = Scheduler(
        Engine(backend, batch_size),
        RuntimeOptions(batch_size=batch_size),
        {"toy": "toy"} | (models or {}),
        reported.append,
        name="toy",
        capacity=limits.waiting,
    )
    try:
        gallery = Gallery(tuple(map(str, images)), limits, reported.append)
        app = make_app(
            gallery, scheduler, token=TOKEN, report=reported.append, host=host, limits=limits,
            proposers=proposers,
        )  # fmt: skip
        yield Served(app, backend, scheduler, gallery, reported)
    finally:
        backend.go_on.set()
        scheduler.close()
        scheduler.join()


def events(text: str) -> list[tuple[str, dict[str, Any]]]:
    """Parse server-sent events, each with a JSON document."""
    found = []
    for block in text.split("\n\n"):
        lines = [line for line in block.split("\n") if line and not line.startswith(":")]
        if lines:
            kind, data = lines
            assert kind.startswith("event: ") and data.startswith("data: ")
            found.append((kind[7:], json.loads(data[6:])))
    return found


def image_bytes(colour: str = "red", size: tuple[int, int] = (8, 8), kind: str = "PNG") -> bytes:
    """The content of an image file of one colour."""
    file = BytesIO()
    Image.new("RGB", size, colour).save(file, kind)
    return file.getvalue()


# -- questions about red.png -----------------------------------------------------------------------


def ask(app: Served, **body: object) -> dict[str, object]:
    """The reply to a question that is answered."""
    sent = app.client().post("/v1/answers", json={"image": "red.png", "question": "what?"} | body)
    assert sent.status_code == 200, sent.text
    document: dict[str, object] = sent.json()
    return document


def records(app: Served, **body: object) -> list[dict[str, Any]]:
    """Its answers."""
    found = ask(app, **body)["answers"]
    assert isinstance(found, list)
    return found


def answers(app: Served, **body: object) -> list[object]:
    """Their texts."""
    return [record["answer"] for record in records(app, **body)]


def asked_by(app: Served) -> list[Request]:
    """Requests as the model gets them from now on."""
    found: list[Request] = []

    def script(request: Request) -> Completion:
        found.append(request)
        return Completion("so", 1)

    app.backend.script = script
    return found
