"""Errors of the Hub's client as one-line messages, and the client without its own output.

huggingface_hub is imported inside the functions, so that offline commands do not wait for it.
"""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import unquote

LOG_IN = "hf auth login"
"""The command that stores a token."""


def page(repo: str) -> str:
    """Return the address of a repository's page."""
    from huggingface_hub import constants

    return f"{constants.ENDPOINT}/{repo}"


def root_cause(error: BaseException) -> BaseException:
    """Return the client's original error below the general ones that wrap it."""
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    while (
        isinstance(error, (LocalEntryNotFoundError, RuntimeError))
        and not isinstance(error, HfHubHTTPError)
        and isinstance(error.__cause__, Exception)
    ):
        error = error.__cause__
    return error


def is_broken_connection(error: BaseException) -> bool:
    """Return whether the Hub was not reached, or its response was incomplete."""
    from huggingface_hub.errors import HfHubHTTPError

    # the client's HTTP library depends on its version; this is the base class of its errors
    http_error = HfHubHTTPError.__bases__[0]
    return isinstance(error, http_error) and not isinstance(error, HfHubHTTPError)


def is_unreachable(error: BaseException) -> bool:
    """Return whether only the cache is available: offline, no connection, or a server error."""
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    error = root_cause(error)
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code >= 500
    local_only = (OfflineModeIsEnabled, LocalEntryNotFoundError)
    return is_broken_connection(error) or isinstance(error, local_only)


def hub_problem(error: BaseException, repo: str, revision: str | None = None) -> str | None:
    """Return the message for an error response of the Hub; None if the error is of another kind."""
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    error = root_cause(error)
    if isinstance(error, HFValidationError):
        return f"{repo}: not a repository's name; it is written OWNER/NAME"
    if not isinstance(error, HfHubHTTPError):
        return None
    status = error.response.status_code
    if isinstance(error, GatedRepoError):
        return gated(repo, status)
    if isinstance(error, RepositoryNotFoundError):
        return (
            f"{repo}: no such repository on the Hub, and no folder here; check the spelling, or, "
            f"if it is private, log in first: {LOG_IN}"
        )
    if isinstance(error, RevisionNotFoundError):
        return f"{repo}: has no revision {revision!r}; its page lists them: {page(repo)}"
    if isinstance(error, EntryNotFoundError):
        return (
            f"{repo}: the Hub lists {requested_file(error)} but does not have it; tell its owner, "
            "or name another --revision"
        )
    if status == 401:
        return f"{repo}: the Hub does not accept the token (401); log in again: {LOG_IN}"
    if status == 403:
        return (
            f"{repo}: the token gives no access (403); ask for it at {page(repo)}, or log in with "
            f"another: {LOG_IN}"
        )
    if status == 429:
        return f"{repo}: the Hub asks for a pause (429, too many requests); run again in minutes"
    if status >= 500:
        return f"{repo}: the Hub is out of order ({status}); run again later"
    reason = error.server_message or error.response.reason_phrase
    return f"{repo}: the Hub refuses ({status}): {reason}"


def gated(repo: str, status: int) -> str:
    """Return the message for a gated repository; 401: not logged in, 403: terms not accepted."""
    if status == 401:
        then = f"accept them at {page(repo)}, then log in: {LOG_IN}"
    else:
        then = f"your token is known but has not; accept them at {page(repo)}, then run again"
    return f"{repo}: its owner asks everyone to accept terms first ({status}); {then}"


def requested_file(error: BaseException) -> str:
    """Return the path of the requested file, from the URL of the response."""
    address = str(error.response.url)  # type: ignore[attr-defined]
    _, _, rest = address.partition("/resolve/")  # REVISION/PATH
    return unquote(rest.partition("/")[2]) or "a file"


@contextmanager
def quiet_client() -> Iterator[None]:
    """Run the client without its warnings, and with progress bars on a terminal only."""
    from huggingface_hub import constants
    from huggingface_hub.utils import (  # type: ignore[attr-defined]
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )
    from huggingface_hub.utils import logging as client_log

    chosen_by_user = constants.HF_HUB_DISABLE_PROGRESS_BARS is not None
    hide = not (chosen_by_user or are_progress_bars_disabled() or sys.stderr.isatty())
    verbosity = client_log.get_verbosity()
    client_log.set_verbosity(logging.ERROR)
    if hide:
        disable_progress_bars()
    try:
        yield
    finally:
        client_log.set_verbosity(verbosity)
        if hide:
            enable_progress_bars()
