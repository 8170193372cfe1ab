"""What is wrong with an exchange with a server, what to do about it, and whether to ask again.

A busy or broken server is asked again after a delay that doubles each time and is drawn at random
from its upper half, so that waiting clients do not return together.
"""

import asyncio
import os
import random
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from enum import StrEnum
from time import time
from typing import Any

from regionqa.errors import message_of

FIRST_DELAY, LONGEST_DELAY = 0.5, 30.0
"""Seconds of the first delay and of the longest."""
LONGEST_WAIT = 300.0
"""Seconds that a server may ask to wait; beyond them, an item fails."""
LONGEST_QUOTE = 200
"""Characters of a server's message that an error shows."""
sleep = asyncio.sleep
"""Waits between attempts; tests replace it."""


class Fault(StrEnum):
    """Kind of a failure."""

    refused = "refused"
    """The server would refuse the request again."""
    slow = "slow"
    """The reply took too long; the server may still be working on it."""
    busy = "busy"
    """Too many requests, or an error of the server."""
    lost = "lost"
    """There is no connection, or it broke off."""
    garbled = "garbled"
    """The reply was cut, or is malformed."""


ATTEMPTS = {Fault.refused: 1, Fault.slow: 2, Fault.busy: 6, Fault.lost: 6, Fault.garbled: 6}
"""How often a request is sent in all, by its last failure."""


@dataclass(frozen=True)
class ServerProblem:
    """Why an exchange failed."""

    fault: Fault
    """Its kind, which decides whether there is another attempt."""
    text: str
    """What is wrong, and what to do."""
    wait: float | None = None
    """Seconds that the server asks to wait."""

    def delay(self, attempt: int) -> float | None:
        """Return the seconds to wait after an attempt, from 1; None: do not try again."""
        if attempt >= ATTEMPTS[self.fault] or (self.wait or 0.0) > LONGEST_WAIT:
            return None
        backoff = min(FIRST_DELAY * 2.0 ** (attempt - 1), LONGEST_DELAY)
        backoff *= random.uniform(0.5, 1.0)
        return backoff if self.wait is None else self.wait + backoff / 2


def problem_of(error: Exception, url: str, key: str | None) -> ServerProblem:
    """Say what an error of the client means.

    Args:
        error: One of openai's errors, or what parsing a malformed reply raises.
        url: The server's address.
        key: The key, which is not to be shown.
    """
    import openai

    if isinstance(error, openai.APITimeoutError):
        return ServerProblem(
            Fault.slow,
            f"{url}: no reply in time; raise --server-timeout or lower --server-concurrency",
        )
    if isinstance(error, openai.APIConnectionError):
        cause = error.__cause__
        reason = hidden(root_reason(error), key)
        if type(cause).__name__ == "ConnectError":
            hint = "check the address and the server's certificate"
            hint = hint if "CERTIFICATE" in reason else "is the server running?"
            return ServerProblem(Fault.lost, f"{url}: cannot be reached ({reason}); {hint}")
        return ServerProblem(Fault.lost, f"{url}: the connection broke off ({reason}); see its log")
    if isinstance(error, openai.APIStatusError):
        return _status_problem(error, url, key)
    if isinstance(error, openai.APIError):  # sent within a reply
        return ServerProblem(
            Fault.busy, f"{url}: the server failed: {quoted(error, key)}; see its log"
        )
    reason = hidden(message_of(error), key)[:LONGEST_QUOTE]
    return ServerProblem(
        Fault.garbled,
        f"{url}: the reply is cut or malformed ({reason}); see the server's log, or ask again",
    )


def _status_problem(error: Any, url: str, key: str | None) -> ServerProblem:
    """Say what a response's status means."""
    status = int(error.status_code)
    said = f"{url}: {status}: {quoted(error, key)}"
    wait = retry_after(error.response.headers)
    if status == 429 or status in (408, 409) or status >= 500:
        if wait is not None and wait > LONGEST_WAIT:
            hint = f"it asks to wait {wait:.0f} s; continue later with --resume --retry-errors"
        else:
            hint = "lower --server-concurrency, or see the server's log"
        return ServerProblem(Fault.busy, f"{said}; {hint}", wait)
    hints = {
        401: "set the environment variable REGIONQA_SERVER_KEY to the server's key",
        403: "set the environment variable REGIONQA_SERVER_KEY to a key with access",
        404: "check the address, and the name of --server-model",
        413: "the images are too large for the server; raise its limit, or lower `server_pixels` "
        "in the card",
    }
    return ServerProblem(Fault.refused, f"{said}; {hints.get(status, 'see the log of the server')}")


def root_reason(error: BaseException) -> str:
    """Return what the operating system said, or else what the client says."""
    reason, seen = "", set[int]()
    each: BaseException | None = error
    while each is not None and id(each) not in seen:
        seen.add(id(each))
        if isinstance(each, BaseExceptionGroup):  # one for each address of a name
            each = each.exceptions[0]
        number = getattr(each, "errno", None)
        known = os.strerror(number) if isinstance(number, int) and number > 0 else ""
        reason = known or " ".join(str(each).split()) or reason
        each = each.__cause__ or each.__context__
    return reason or type(error).__name__


def quoted(error: Any, key: str | None) -> str:
    """Return what a server says about an error, in one line and without the key."""
    body = error.body
    if isinstance(body, dict):
        body = body.get("message") or body.get("detail") or body.get("error")
    text = body if isinstance(body, str) and body.strip() else str(error.message)
    text = hidden(" ".join(text.split()), key)
    return text if len(text) <= LONGEST_QUOTE else f"{text[:LONGEST_QUOTE]} ..."


def hidden(text: str, key: str | None) -> str:
    """Replace a key, which a server may repeat in its messages."""
    return text.replace(key, "***") if key else text


def retry_after(headers: Any) -> float | None:
    """Return the seconds that a response asks to wait, given as a number or a date; None: none."""
    text = headers.get("retry-after")
    if text is None:
        return None
    try:
        seconds = float(text)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(text).timestamp() - time()
        except (TypeError, ValueError, OverflowError):
            return None
    return max(seconds, 0.0) if seconds == seconds else None
