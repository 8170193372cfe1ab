"""The client of a server: where it is, which models it has, and one streamed reply at a time.

openai's client runs in an event loop in a thread of its own, so that questions are asked at the
same time, that an interrupted run ends at once, and that a caller may have an event loop too.
"""

import asyncio
import logging
import os
import re
import weakref
from collections.abc import AsyncGenerator, Callable, Collection, Coroutine, Mapping, Set
from concurrent.futures import Future
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from regionqa.backends.server import retries
from regionqa.backends.server.replies import MalformedReplyError, Reply
from regionqa.backends.server.retries import Fault, ServerProblem, problem_of, quoted
from regionqa.errors import ItemError, ServerError, UsageError
from regionqa.runtime.event_loop import EventLoopThread

if TYPE_CHECKING:
    pass

log = logging.getLogger(__name__)
Result = TypeVar("Result")
OnReply = Callable[[Reply], None]
"""Called as a reply grows."""
KEY = "REGIONQA_SERVER_KEY"
"""Environment variable of the server's key."""
OPENAI_HOST = "api.openai.com"
"""The only server that is given OPENAI_API_KEY."""
NO_KEY = "none"
"""Sent where there is no key, since the client wants one."""
OPTIONAL = ("logprobs", "top_logprobs", "seed", "top_k", "stream_options", "chat_template_kwargs")
"""Parts of a request that a server may refuse, and is then asked without."""
MALFORMED = (ValueError, TypeError, LookupError, AttributeError, RecursionError)
"""What the client raises for replies that are not what the protocol says."""


@dataclass(frozen=True)
class ServerAddress:
    """Where a server is."""

    url: str
    """The root of its API, without credentials."""

    @property
    def key(self) -> str | None:
        """The key from the environment; None: there is none.

        OPENAI_API_KEY belongs to OpenAI and is not sent elsewhere.
        """
        names = [KEY, *(["OPENAI_API_KEY"] if urlsplit(self.url).hostname == OPENAI_HOST else [])]
        key = next((value for name in names if (value := os.environ.get(name, "").strip())), None)
        if key is not None and not (key.isascii() and key.isprintable()):
            raise UsageError(f"{KEY}: holds characters that a key cannot have; set it again")
        return key


def read_address(text: str) -> ServerAddress:
    """Read the value of --server; without a path, the API is at /v1.

    Raises:
        UsageError: It is no address of a server.
    """
    try:
        parts = urlsplit(text.strip())
        found = parts.scheme in ("http", "https") and bool(parts.hostname)
        _ = parts.port  # ValueError if it is no number
    except ValueError:
        found = False
    if not found:
        raise UsageError(
            "--server: give an address such as http://localhost:8000 (docs/guide/servers.md)"
        )
    if parts.username is not None or parts.query or parts.fragment:
        raise UsageError(
            f"--server: give the address only; the key goes into the environment variable {KEY}"
        )
    path = parts.path.rstrip("/") or "/v1"
    return ServerAddress(f"{parts.scheme}://{parts.netloc}{path}")


def only_model(address: ServerAddress, timeout: float) -> str:
    """Ask a server for its models and return the name of the only one.

    Raises:
        ServerError: It cannot be asked, or has no model.
        UsageError: It has several.
    """
    names = ChatClient(address, timeout, 1).models()
    if not names:
        raise ServerError(f"{address.url}: has no model; load one, or name it with --server-model")
    if len(names) > 1:
        shown = ", ".join(names[:20]) + (f" and {len(names) - 20} more" if names[20:] else "")
        raise UsageError(
            f"--server {address.url}: has {len(names)} models; choose one with --server-model: "
            f"{shown}"
        )
    return names[0]


class ChatClient:
    """Asks one server, again where that can help."""

    attempts = 0
    """Number of requests that were sent, repeated ones included."""

    def __init__(
        self,
        address: ServerAddress,
        timeout: float,
        concurrency: int,
        optional: Collection[str] = OPTIONAL,
    ) -> None:
        """Open a client; nothing is sent.

        Args:
            address: Where the server is.
            timeout: Seconds to wait for a connection, and for a reply to begin or to continue.
            concurrency: Number of requests at a time.
            optional: Parts of a request that the server may refuse, and is then asked without.
        """
        import openai

        self.address = address
        self._optional = optional
        self._places = asyncio.Semaphore(concurrency)
        self._key = address.key
        self._client = openai.AsyncOpenAI(
            base_url=address.url, api_key=self._key or NO_KEY, timeout=timeout, max_retries=0
        )
        # read from the environment, but meant for OpenAI
        self._client.organization = self._client.project = None
        self._dropped: set[str] = set()
        self._down = False
        self._thread = EventLoopThread("server client", self._client.close)
        self.close = weakref.finalize(self, self._thread.close)
        """Closes the connections; so does the end of the client's life."""

    def start(self, work: Coroutine[Any, Any, Result]) -> "Future[Result]":
        """Start a coroutine."""
        return self._thread.start(work)

    def run(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Run a coroutine to its end; it is cancelled if this call is interrupted."""
        return self._thread.run(work)

    def models(self) -> list[str]:
        """Return the names of the server's models.

        Raises:
            ServerError: It cannot be asked.
        """

        async def listed() -> list[str]:
            try:
                page = await self._client.models.list()
                return [str(model.id) for model in page.data]
            except MALFORMED as error:
                raise MalformedReplyError(f"the list of models is malformed: {error}") from error

        import openai

        try:
            return self.run(listed())
        except (openai.OpenAIError, MalformedReplyError) as error:
            problem = problem_of(error, self.address.url, self._key)
            raise ServerError(problem.text) from None

    async def reply(self, body: Mapping[str, Any], on_reply: OnReply | None = None) -> Reply:
        """Send a request until it is answered, after a place among those at a time is free.

        Args:
            body: The request, by the names of the protocol.
            on_reply: Called as the reply grows; after a failure it grows anew.

        Raises:
            ItemError: There is no answer, or no further attempt would help.
        """
        async with self._places:
            return await self._reply(body, on_reply)

    async def _reply(self, body: Mapping[str, Any], on_reply: OnReply | None) -> Reply:
        attempt = 0
        while True:
            reply = Reply()
            try:
                async with aclosing(self._parts(body, reply)) as parts:
                    async for _ in parts:
                        if on_reply is not None:
                            on_reply(reply)
            except _FailedError as failure:
                if self._drop(failure):
                    continue
                attempt += 1
                delay = failure.problem.delay(attempt)
                unreachable = failure.problem.fault is Fault.lost and not failure.begun
                if unreachable and self._down:
                    delay = None  # it was waited for once; the other items need not do so again
                if delay is None:
                    self._down = unreachable
                    raise ItemError(failure.problem.text) from None
                await retries.sleep(delay)
            else:
                return reply

    async def _parts(self, body: Mapping[str, Any], reply: Reply) -> AsyncGenerator[None]:
        """Send a request once and add what arrives to a reply; yields whenever it has grown."""
        import openai

        wanted = {name: value for name, value in body.items() if name not in self._dropped}
        extra = {name: wanted.pop(name) for name in ("top_k", "chat_template_kwargs")
                 if name in wanted}  # fmt: skip
        sent, begun = wanted.keys() | extra.keys(), False
        self.attempts += 1
        try:
            completions = self._client.chat.completions
            stream: Any = await completions.create(**wanted, stream=True, extra_body=extra or None)
            self._down, begun = False, True
            async with stream:
                async for chunk in stream:
                    if reply.add(chunk):
                        yield
            if reply.finish is None:
                raise MalformedReplyError("it stops before its end")
        except (openai.OpenAIError, *MALFORMED) as error:
            if isinstance(error, openai.APIStatusError):
                self._down = False
            problem = problem_of(error, self.address.url, self._key)
            raise _FailedError(error, problem, sent, begun=begun) from None

    def _drop(self, failure: "_FailedError") -> bool:
        """Leave out from now on what the server says it does not take; whether it said so."""
        if getattr(failure.error, "status_code", None) not in (400, 422):
            return False
        said = quoted(failure.error, self._key)
        named = {name for name in self._optional if re.search(rf"\b{name}\b", said)}
        if "logprobs" in named:
            named.add("top_logprobs")
        named &= failure.sent
        for name in sorted(named - self._dropped):
            log.warning("%s: does not take %s; asked without it", self.address.url, name)
        self._dropped |= named
        return bool(named)


class _FailedError(Exception):
    """One attempt has failed."""

    def __init__(
        self, error: Exception, problem: ServerProblem, sent: Set[str], *, begun: bool
    ) -> None:
        super().__init__(problem.text)
        self.error = error
        self.problem = problem
        self.sent = sent
        """Names of what was sent."""
        self.begun = begun
        """Whether the server had accepted the request: it can be reached."""
