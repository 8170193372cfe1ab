"""Options of `regionqa serve`, and the limits of what a client may send."""

import re
from dataclasses import dataclass
from ipaddress import ip_address

from regionqa.errors import UsageError
from regionqa.flags import Options, Reads, Section, option

MEGABYTE = 1 << 20
SHORTEST_TOKEN = 16
"""Characters of the shortest token that is accepted."""
_TOKEN = re.compile(r"[A-Za-z0-9._~-]+")


@dataclass(frozen=True)
class ServeLimits:
    """Limits on what clients send and on what waits; a request beyond one is refused."""

    body: int = 4 * MEGABYTE
    """Bytes of a JSON request."""
    box_files: int = 48 * MEGABYTE
    """Bytes of a request that holds box files, as Base64."""
    box_file_count: int = 5000
    """Box files in one request."""
    upload: int = 32 * MEGABYTE
    """Bytes of an uploaded image."""
    upload_pixels: int = 50_000_000
    """Pixels of an uploaded image."""
    uploads: int = 200
    """Uploaded images that are kept."""
    upload_total: int = 512 * MEGABYTE
    """Bytes of the uploaded images that are kept."""
    uploads_at_once: int = 8
    """Uploads that are received at the same time."""
    seconds: float = 60.0
    """Time in which the body of a request must arrive."""
    requests: int = 256
    """Questions in one request."""
    waiting: int = 1024
    """Questions that wait to be answered, of all clients."""
    new_tokens: int = 4096
    """Largest `max_new_tokens`."""
    drawn_text: int = 20_000
    """Characters of questions and answers in one drawing."""
    connections: int = 512
    """Open connections."""


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class ServeOptions(Options):
    """Where the page is served, and to whom."""

    port: int = option(8000, "Port; 0 takes a free one.", section=Section.result, min=0, max=65535)
    host: str = option(
        "127.0.0.1",
        "Address to listen on; any but this machine's own needs --token.",
        section=Section.result,
        metavar="ADDRESS",
    )
    token: str | None = option(
        None,
        "What clients must know, at least 16 characters. Default: a new random one.",
        section=Section.result,
        metavar="TEXT",
    )
    segmenter: str | None = option(
        None,
        "Model that finds what is clicked on: a name (docs/guide/masks.md), folder, or OWNER/NAME "
        "on the Hub; auto is the first that is downloaded.",
        metavar="MODEL",
        section=Section.model,
        role=Reads.model,
    )
    detector: str | None = option(
        None,
        "Object detector that proposes regions: a name (docs/guide/detect.md), folder, or "
        "OWNER/NAME on the Hub; auto is the model's own, or the first that is downloaded.",
        metavar="MODEL",
        section=Section.model,
        role=Reads.model,
    )
    no_browser: bool = option(False, "Do not open the page.", section=Section.result)

    def check(self) -> None:
        """Refuse an address that others reach without a token of the user's, and a weak token."""
        if self.token is not None:
            if len(self.token) < SHORTEST_TOKEN or not _TOKEN.fullmatch(self.token):
                raise UsageError(
                    f"--token: needs at least {SHORTEST_TOKEN} characters, of letters, digits and "
                    "'.', '_', '~', '-'; make one with: openssl rand -hex 16"
                )
        elif not is_loopback(self.host):
            raise UsageError(
                f"--host {self.host}: can be reached from other machines; give --token too, which "
                "they must know"
            )


def is_loopback(host: str) -> bool:
    """Return whether only this machine reaches an address; False for a name but localhost."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
