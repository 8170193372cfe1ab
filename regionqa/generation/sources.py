"""Sources of replies: a server, what a run may cost, and the replies that are kept on disk.

A source of another kind, such as a text model on this machine, implements `ReplySource`.
"""

import asyncio
import hashlib
import json
from collections.abc import Coroutine, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any, BinaryIO, Protocol, TypeVar

from regionqa.backends.server.choices import response_format
from regionqa.backends.server.client import OPTIONAL, ChatClient, ServerAddress
from regionqa.data.english import BYTES_PER_TOKEN
from regionqa.data.streams.disk_index import DiskIndex
from regionqa.errors import OutputError
from regionqa.files import output_error

Result = TypeVar("Result")


@dataclass(frozen=True)
class TextRequest:
    """A request to a language model."""

    messages: Sequence[Mapping[str, str]]
    schema_name: str
    schema: Mapping[str, Any]
    """JSON schema of the reply."""
    seed: int
    temperature: float
    max_tokens: int
    """Limit on the reply."""

    def key(self, model: str) -> str:
        """Name the request and the model it is sent to, by a digest."""
        content = [model, list(map(dict, self.messages)), self.schema, self.seed, self.temperature,
                   self.max_tokens]  # fmt: skip
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:32]


@dataclass(frozen=True)
class TextReply:
    """A reply of a language model."""

    text: str
    """Without thoughts."""
    finish: str
    """Why it ended: `stop`, `length`, `content_filter`."""
    prompt_tokens: int
    tokens: int
    """Of the reply."""


class ReplySource(Protocol):
    """What answers requests."""

    name: str
    """The model's name, which is kept with what it writes."""

    async def reply(self, request: TextRequest) -> TextReply:
        """Answer a request; ItemError if that fails."""

    def start(self, work: Coroutine[Any, Any, Result]) -> "Future[Result]":
        """Start a coroutine that awaits replies."""

    @property
    def attempts(self) -> int:
        """Number of requests that were sent, repeated ones included."""

    def close(self) -> None:
        """End what is in progress."""


class ServerSource:
    """A language model behind a server of OpenAI's chat protocol."""

    def __init__(
        self, address: ServerAddress, model: str, timeout: float, concurrency: int
    ) -> None:
        """Open a client; nothing is sent.

        Args:
            address: Where the server is.
            model: The server's name of its model.
            timeout: Seconds to wait for a reply to begin or to continue.
            concurrency: Number of requests at a time.
        """
        self.name = model
        # a server without structured output is asked without it; replies are checked anyway
        optional = (*OPTIONAL, "response_format")
        self._client = ChatClient(address, timeout, concurrency, optional)

    async def reply(self, request: TextRequest) -> TextReply:
        """See `ReplySource.reply`."""
        body = {
            "model": self.name,
            "messages": list(request.messages),
            "response_format": response_format(request.schema_name, request.schema),
            "seed": request.seed,
            "temperature": request.temperature,
            "max_tokens": request.max_tokens,
            "stream_options": {"include_usage": True},
        }
        reply = await self._client.reply(body)
        size = sum(len(message["content"].encode()) for message in request.messages)
        return TextReply(
            reply.answer, str(reply.finish), reply.prompt_count or size // BYTES_PER_TOKEN,
            reply.count,
        )  # fmt: skip

    def start(self, work: Coroutine[Any, Any, Result]) -> "Future[Result]":
        """See `ReplySource.start`."""
        return self._client.start(work)

    @property
    def attempts(self) -> int:
        """See `ReplySource.attempts`."""
        return self._client.attempts

    def close(self) -> None:
        """See `ReplySource.close`."""
        self._client.close()


# -- what a run may cost ---------------------------------------------------------------------------


class BudgetSpentError(Exception):
    """No more requests may be sent."""


@dataclass
class RequestBudget:
    """Requests and tokens of a run, and their limits."""

    max_requests: int | None = None
    max_tokens: int | None = None
    requests: int = 0
    prompt_tokens: int = 0
    tokens: int = 0
    """Of replies."""

    def take(self) -> None:
        """Count a request that is about to be sent; BudgetSpentError if it must not be."""
        used = self.prompt_tokens + self.tokens
        if (self.max_requests is not None and self.requests >= self.max_requests) or (
            self.max_tokens is not None and used >= self.max_tokens
        ):
            raise BudgetSpentError
        self.requests += 1

    def count(self, reply: TextReply) -> None:
        """Count the tokens of a reply."""
        self.prompt_tokens += reply.prompt_tokens
        self.tokens += reply.tokens


# -- replies that are kept -------------------------------------------------------------------------


class ReplyJournal:
    """A file of replies by request, in the order of their arrival.

    A reply is written before anything is made of it, so a run that is continued makes the same of
    it again, in order, and asks for the others only.
    """

    def __init__(self, path: Path, *, resume: bool) -> None:
        """Open the file; a last line that is incomplete is cut off.

        Args:
            path: The file.
            resume: Whether replies that it holds are used; otherwise it is emptied.

        Raises:
            OutputError: It cannot be opened, or holds something else.
        """
        self._path = path
        self._lock = Lock()  # a vision model's answers are kept while replies arrive
        try:
            if not (resume and path.exists()):
                path.write_bytes(b"")
            self._file: BinaryIO = path.open("r+b")
        except OSError as error:
            raise output_error(path, error) from error
        self._places = DiskIndex()
        try:
            self._read()
        except BaseException:
            self.close()
            raise

    def _read(self) -> None:
        """Find the replies in the file, and cut off a last line that is incomplete."""
        end = 0
        for line in self._file:
            if not line.endswith(b"\n"):
                break
            self._places[_kept_reply(line, self._path)["key"]] = end
            end += len(line)
        self._file.truncate(end)

    def __len__(self) -> int:
        return len(self._places)

    def find(self, key: str) -> TextReply | None:
        """Return the reply that is kept for a request."""
        with self._lock:
            place = self._places.get(key)
            if place is None:
                return None
            self._file.seek(place)
            kept = _kept_reply(self._file.readline(), self._path)
        del kept["key"]
        return TextReply(**kept)

    def add(self, key: str, reply: TextReply) -> None:
        """Keep a reply."""
        line = json.dumps({"key": key, **vars(reply)}) + "\n"
        with self._lock:
            try:
                place = self._file.seek(0, 2)
                self._file.write(line.encode())
                self._file.flush()
            except OSError as error:
                raise output_error(self._path, error) from error
            self._places[key] = place

    def close(self) -> None:
        """Close the file."""
        self._file.close()
        self._places.close()


def _kept_reply(line: bytes, path: Path) -> dict[str, Any]:
    try:
        kept: dict[str, Any] = json.loads(line)
        if kept.keys() == {"key", *TextReply.__dataclass_fields__}:
            return kept
    except (ValueError, AttributeError):
        pass
    raise OutputError(f"{path}: holds a line that is no reply; name another --out, or delete it")


class KeptReplies:
    """Replies of a source within a budget; those that are kept are not asked for again."""

    def __init__(
        self, source: ReplySource, journal: ReplyJournal, budget: RequestBudget, concurrency: int
    ) -> None:
        """Combine the parts.

        Args:
            source: Answers what is not kept.
            journal: Keeps replies.
            budget: Limits what is sent.
            concurrency: Number of requests at a time; each is counted when it is sent.
        """
        self.source = source
        self.budget = budget
        self.found = 0
        """Number of replies that were kept from an earlier run."""
        self._journal = journal
        self._places = asyncio.Semaphore(concurrency)

    async def reply(self, request: TextRequest) -> TextReply:
        """Return a kept reply, or ask for it.

        Raises:
            BudgetSpentError: It would have to be asked for, and the budget is spent.
            ItemError: The source cannot answer.
        """
        key = request.key(self.source.name)
        if (kept := self._journal.find(key)) is not None:
            self.found += 1
            return kept
        async with self._places:
            self.budget.take()
            reply = await self.source.reply(request)
            self.budget.count(reply)
            self._journal.add(key, reply)
            return reply
