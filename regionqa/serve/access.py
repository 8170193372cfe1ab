"""Who may use the server: token, Host and Origin of every request, and headers of every response.

docs/adr/35-serving-safely.md gives the reasons.
"""

import hmac
import re
import secrets
import socket
from collections.abc import Callable
from http.cookies import CookieError, SimpleCookie
from ipaddress import ip_address
from urllib.parse import urlsplit

from starlette.requests import Request as HttpRequest
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from regionqa.errors import RegionQAError, UsageError
from regionqa.serve.bodies import HttpError, failure
from regionqa.serve.options import is_loopback

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
    "connect-src 'self'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
)
"""Content security policy: nothing inline, nothing from elsewhere."""
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
}
"""Headers of every response."""
FORM_TYPES = ("application/x-www-form-urlencoded", "multipart/form-data", "text/plain")
"""Content types that a page of another site can send without being asked about it first."""
SAFE = ("GET", "HEAD")
_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[^:\[\]]+)(?::\d{1,5})?", re.IGNORECASE)


def new_token() -> str:
    """Return a random token of 256 bits."""
    return secrets.token_urlsafe(32)


class Guard:
    """ASGI middleware that lets through what has the token and comes from the page or a program.

    `GET /?token=...` exchanges the token for a cookie. Programs send it as
    `Authorization: Bearer TOKEN`. What `app` raises becomes a response with one line.
    """

    def __init__(self, app: ASGIApp, token: str, host: str, report: Callable[[str], None]) -> None:
        """Guard an application.

        Args:
            app: The application.
            token: What clients must know.
            host: The address that is listened on.
            report: Called with a line for each fault of the server's own.
        """
        self._app = app
        self._token = token.encode()
        self._host = host.strip("[]").lower()
        self._report = report

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or refuse it."""
        if scope["type"] != "http":
            return
        started = False

        async def send_guarded(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                given = {name for name, _ in message.setdefault("headers", [])}
                own = {name.encode(): value.encode() for name, value in HEADERS.items()}
                own.setdefault(b"cache-control", b"no-store")
                message["headers"] = [
                    *message["headers"],
                    *((name, value) for name, value in own.items() if name not in given),
                ]
            await send(message)

        request = HttpRequest(scope, receive)
        try:
            response = self._entry(request)
            if response is None:
                await self._app(scope, receive, send_guarded)
                return
        except HttpError as error:
            response = error.response()
        except UsageError as error:
            response = failure(422, str(error))
        except RegionQAError as error:
            response = failure(500, str(error))
        except Exception as error:
            line = " ".join(f"unexpected {type(error).__name__}: {error}".split())
            self._report(f"{scope['method']} {scope['path']}: {line}")
            response = failure(500, line)
        if not started:
            await response(scope, receive, send_guarded)

    def _entry(self, request: HttpRequest) -> Response | None:
        """Check a request; a response where it ends here.

        Raises:
            HttpError: It is refused.
        """
        self._check_host(request)
        self._check_origin(request)
        path, query = request.url.path, request.query_params
        if path == "/" and request.method in SAFE and "token" in query:
            if not self._is_token(query["token"]):
                raise HttpError(403, "this token is not the server's; open the address it printed")
            response = RedirectResponse("/", status_code=303)
            response.set_cookie(
                cookie_name(request), query["token"], httponly=True, samesite="strict"
            )
            return response
        if not self._has_token(request):
            raise HttpError(
                401,
                "the token is missing; open the address that regionqa serve printed, or send "
                "the header Authorization: Bearer TOKEN",
            )
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if request.method not in SAFE and kind in FORM_TYPES:
            raise HttpError(415, f"content type {kind}: send application/json, or an image's type")
        return None

    def _check_host(self, request: HttpRequest) -> None:
        """Refuse a name that another site may have made mean this machine (DNS rebinding)."""
        names = request.headers.getlist("host")
        found = _HOST.fullmatch(names[0]) if len(names) == 1 else None
        name = found[1].strip("[]").lower() if found else ""
        if not self._is_own_name(name):
            raise HttpError(
                421, "this server is not known by that Host; use the address that it printed"
            )

    def _is_own_name(self, name: str) -> bool:
        if is_loopback(self._host):
            return is_loopback(name)
        if name == self._host or name == socket.gethostname().lower():
            return True
        try:
            ip_address(name)
        except ValueError:
            return name == "localhost"
        return True  # no DNS, so nothing to rebind

    def _check_origin(self, request: HttpRequest) -> None:
        """Refuse what a page of another site sends."""
        headers = request.headers
        origin = headers.get("origin")
        if origin is not None:
            parts = urlsplit(origin) if origin.isprintable() else urlsplit("")
            own = (request.url.scheme, headers["host"].lower())
            if (parts.scheme, parts.netloc.lower()) != own:
                raise HttpError(403, "requests from pages of other origins are refused")
        site = headers.get("sec-fetch-site", "none")
        opens_page = request.method == "GET" and headers.get("sec-fetch-mode") == "navigate"
        if site not in ("same-origin", "none") and not (opens_page and request.url.path == "/"):
            raise HttpError(403, "requests from pages of other sites are refused")

    def _has_token(self, request: HttpRequest) -> bool:
        header = request.headers.get("authorization")
        if header is not None:
            scheme, _, value = header.partition(" ")
            return scheme.lower() == "bearer" and self._is_token(value.strip())
        try:
            cookies = SimpleCookie(request.headers.get("cookie", ""))
        except CookieError:
            return False
        morsel = cookies.get(cookie_name(request))
        return morsel is not None and self._is_token(morsel.value)

    def _is_token(self, text: str) -> bool:
        """Compare in a time that does not depend on the text."""
        return hmac.compare_digest(text.encode("utf-8", "replace"), self._token)


def cookie_name(request: HttpRequest) -> str:
    """Return the name of the cookie, which tells servers on several ports apart."""
    return f"regionqa-{request.url.port or 80}"
