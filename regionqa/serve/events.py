"""Answers on their way to a client: a queued job's news, as one JSON reply or as events."""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any, Literal

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from regionqa.errors import LengthError, RegionQAError
from regionqa.options import GenerationOptions, OutputFormat
from regionqa.pipeline.outputs import OutputSettings, as_record, encode
from regionqa.requests import Answer, Request
from regionqa.serve.bodies import HttpError, reply
from regionqa.serve.gallery import NotServedError
from regionqa.serve.scheduler import (
    Job,
    JobListener,
    ModelChangedError,
    NotAnsweringError,
    QueueFullError,
    Scheduler,
    ServedModel,
)

SECONDS_OF_SILENCE = 15.0
"""Time after which a stream without news sends a comment, by which a lost client is noticed."""


@dataclass(frozen=True)
class MadeRequests:
    """Requests of a body, and warnings about their boxes."""

    requests: list[Request]
    warnings: list[str]


class Asking:
    """Requests that are being answered, as events for their client."""

    def __init__(
        self,
        made: MadeRequests,
        model: ServedModel,
        options: GenerationOptions,
        scheduler: Scheduler,
    ) -> None:
        """Prepare; requests with an error are answered by it at once."""
        self._made = made
        self._scheduler = scheduler
        self._answers: dict[int, Answer] = {}
        self._events: asyncio.Queue[tuple[str, Any]] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()
        numbered = list(enumerate(made.requests))
        self._numbers = [number for number, request in numbered if request.error is None]
        for number, request in numbered:
            if request.error is not None:
                self._answers[number] = Answer(request, error=request.error)
        sound = [made.requests[number] for number in self._numbers]
        listener = JobListener(self._on_text, self._on_answer, self._on_failure)
        self._job = Job(sound, options, model, listener)
        self._settings = OutputSettings(
            OutputFormat.json,
            model.info.name,
            model.info.revision,
            model.device,
            model.precision,
            timing=True,
            confidence=True,
        )

    def submit(self) -> None:
        """Queue the requests; HttpError if they are not taken."""
        try:
            self._scheduler.submit(self._job)
        except QueueFullError as error:
            raise HttpError(
                429,
                f"too many questions wait; ask again in {error.retry_after} seconds",
                retry_after=str(error.retry_after),
            ) from None
        except ModelChangedError:
            raise HttpError(
                409, "the model is being switched; ask again", retry_after="2"
            ) from None
        except NotAnsweringError as error:
            raise HttpError(503, str(error)) from None

    # -- called from the engine's thread -----------------------------------------------------------

    def _put(self, kind: str, value: Any) -> None:
        self._loop.call_soon_threadsafe(self._events.put_nowait, (kind, value))

    def _on_text(self, number: int, text: str) -> None:
        self._put("text", (self._numbers[number], text))

    def _on_answer(self, number: int, answer: Answer, warnings: Sequence[str]) -> None:
        self._put("answer", (self._numbers[number], answer, list(warnings)))

    def _on_failure(self, error: Exception) -> None:
        self._put("failed", error)

    # -- called from the event loop ----------------------------------------------------------------

    async def finish(self, receive: Receive) -> None:
        """Wait for all answers; HttpError if there will be none, or the client has gone."""
        async for _ in self._news(receive):
            pass

    async def events(self, receive: Receive) -> AsyncGenerator[bytes]:
        """Yield server-sent events up to the last answer; none once the client has gone."""
        for number, answer in sorted(self._answers.items()):
            yield self._event(number, answer)
        for line in self._made.warnings:
            yield event("warning", {"warning": line})
        try:
            async for kind, value in self._news(receive):
                if kind == "text":
                    yield event("text", {"request": value[0], "text": value[1]})
                elif kind == "answer":
                    number, answer, warnings = value
                    for line in warnings:
                        yield event("warning", {"warning": line})
                    yield self._event(number, answer)
                else:
                    yield b": waiting\n\n"
        except HttpError as error:
            yield event("error", {"error": str(error), "status": error.status})
            return
        failed = sum(answer.error is not None for answer in self._answers.values())
        yield event("done", {"answers": len(self._answers), "failed": failed})

    async def _news(self, receive: Receive) -> AsyncIterator[tuple[str, Any]]:
        """Yield parts and answers as they come; the place in the queue is freed in any case."""
        gone = asyncio.create_task(disconnected(receive))
        try:
            while len(self._answers) < len(self._made.requests):
                news = asyncio.create_task(self._events.get())
                done, _ = await asyncio.wait(
                    (gone, news), timeout=SECONDS_OF_SILENCE, return_when=asyncio.FIRST_COMPLETED
                )
                if news not in done:
                    news.cancel()
                    if gone in done:
                        raise HttpError(499, "the client has gone")
                    yield "silence", None
                    continue
                kind, value = news.result()
                if kind == "failed":
                    raise failed_job(value)
                if kind == "answer":
                    self._answers[value[0]] = hinted(value[1])
                    self._made.warnings.extend(value[2])
                yield kind, value
        finally:
            gone.cancel()
            self.close()

    def close(self) -> None:
        """Free the place in the queue."""
        self._scheduler.cancel(self._job)

    def _event(self, number: int, answer: Answer) -> bytes:
        record = as_record(hinted(answer), self._settings)
        return event("answer", {"request": number, "answer": record})

    def reply(self) -> Response:
        """Return the answers; a status of their error if none was given."""
        answers = [self._answers[number] for number in range(len(self._made.requests))]
        document: dict[str, object] = {
            "answers": [as_record(answer, self._settings) for answer in answers],
            "warnings": self._made.warnings,
        }
        status = 200
        if all(answer.error is not None for answer in answers) and answers:
            error = answers[0].error
            status = 404 if isinstance(error, NotServedError) else 422
            document["error"] = str(error)
        return reply(document, status)


class EventStream(Response):
    """A response of server-sent events."""

    def __init__(self, asking: Asking) -> None:
        """Stream what becomes of requests that are queued."""
        super().__init__(media_type="text/event-stream")
        self._asking = asking
        del self.headers["content-length"]
        self.headers["x-accel-buffering"] = "no"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events as they come."""
        start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        try:
            await send(start)
            async with aclosing(self._asking.events(receive)) as events:
                async for part in events:
                    await send({"type": "http.response.body", "body": part, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            self._asking.close()


async def disconnected(receive: Receive) -> Literal[True]:
    """Wait until the client has gone."""
    while (await receive())["type"] != "http.disconnect":
        pass
    return True


def hinted(answer: Answer) -> Answer:
    """Say what helps where a conversation has become too long."""
    if isinstance(answer.error, LengthError) and answer.request.history:
        error = LengthError(f"{answer.error}; or begin a new conversation")
        return replace(answer, error=error)
    return answer


def failed_job(error: Exception) -> HttpError:
    """Return the response to requests that the engine could not answer."""
    if isinstance(error, NotAnsweringError):
        return HttpError(503, str(error))
    if isinstance(error, RegionQAError):
        return HttpError(502, str(error))
    return HttpError(500, f"unexpected {type(error).__name__}: {error}")


def event(kind: str, document: object) -> bytes:
    """Format a server-sent event with a JSON document, which has no line ends."""
    return encode(f"event: {kind}\ndata: {json.dumps(document, ensure_ascii=False)}\n\n")
