"""The server process: socket, signals, and the lines on stderr."""

import asyncio
import errno
import signal
import socket
import threading
import webbrowser
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn

from regionqa.backends.chooser import ModelState, known_models, this_machine
from regionqa.data.english import counted
from regionqa.engine import Engine
from regionqa.errors import RegionQAError, UsageError
from regionqa.options import GenerationOptions, RuntimeOptions
from regionqa.pipeline.console import Console
from regionqa.serve.access import new_token
from regionqa.serve.app import make_app
from regionqa.serve.gallery import Gallery
from regionqa.serve.options import ServeLimits, ServeOptions
from regionqa.serve.proposals import Proposers
from regionqa.serve.scheduler import Scheduler

WILDCARDS = ("0.0.0.0", "::", "")
"""Addresses that stand for all of this machine's."""


@dataclass(frozen=True)
class ServeRun:
    """What one run of `serve` does."""

    images: Sequence[str] = ()
    """Files, folders and globs."""
    serve: ServeOptions = field(default_factory=ServeOptions)
    runtime: RuntimeOptions = field(default_factory=RuntimeOptions)
    generation: GenerationOptions = field(default_factory=GenerationOptions)
    limits: ServeLimits = field(default_factory=ServeLimits)


def serve_images(run: ServeRun, console: Console) -> int:
    """Serve until a signal ends it; return the exit status.

    Raises:
        UsageError: There are no images in a folder, or the port cannot be used.
        RegionQAError: The model cannot be loaded.
    """
    with listening(run.serve.host, run.serve.port) as bound:
        gallery = Gallery(run.images, run.limits, console.warn)
        engine = Engine.load(options=run.runtime)
        if engine.info.note:
            console.warn(engine.info.note)
        proposers = Proposers.load(run.serve, run.runtime)
        name, models = switchable_models(run.runtime, engine.info.name)
        scheduler = Scheduler(
            engine, run.runtime, models, console.error, name=name, capacity=run.limits.waiting
        )
        token = run.serve.token or new_token()
        app = make_app(
            gallery,
            scheduler,
            token=token,
            report=console.error,
            host=run.serve.host,
            defaults=run.generation,
            limits=run.limits,
            proposers=proposers,
        )
        url = f"{address(run.serve.host, bound)}/?token={token}"
        served = counted(len(gallery.names()), "image")
        opened = None if run.serve.no_browser else url
        server = PageServer(app, run.limits, scheduler.close, opened)
        console.show(f"regionqa: {engine.info.name}, {served}, until Ctrl-C: {url}", ())
        try:
            asyncio.run(server.serve(sockets=[bound]))
        finally:
            scheduler.close()
            if not server.force_exit:
                scheduler.join()
    return 0


@contextmanager
def listening(host: str, port: int) -> Iterator[socket.socket]:
    """Listen on an address; UsageError if it cannot be used."""
    try:
        found = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        family, _, _, _, place = found[0]
        bound = socket.create_server(place[:2], family=family)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise UsageError(
                f"--port {port}: is in use on {host}; choose another, or 0 for any free one"
            ) from None
        if error.errno == errno.EACCES:
            raise UsageError(f"--port {port}: is reserved; choose one above 1023") from None
        raise UsageError(
            f"--host {host}: cannot be listened on: {error.strerror}; "
            "give an address of this machine"
        ) from None
    with bound:
        yield bound


def address(host: str, bound: socket.socket) -> str:
    """Return the URL by which this machine, or others, reach a socket."""
    name = host
    if host in WILDCARDS:
        name = socket.gethostname()
    port = bound.getsockname()[1]
    return f"http://[{name}]:{port}" if ":" in name else f"http://{name}:{port}"


def switchable_models(runtime: RuntimeOptions, title: str) -> tuple[str, dict[str, str]]:
    """Return the name of the loaded model, and the models on this machine by name.

    Args:
        runtime: How models are run; a server's model cannot be switched.
        title: Name of the loaded model where its own is a path.
    """
    name = title if Path(runtime.model).is_dir() else runtime.model
    models = {name: runtime.model}
    if runtime.server is None:
        for choice in known_models(this_machine()):
            if choice.state is not ModelState.absent:
                models.setdefault(choice.name, choice.name)
    return name, models


class PageServer(uvicorn.Server):
    """uvicorn that finishes what runs on the first signal, and does not raise it again."""

    def __init__(
        self,
        app: Any,
        limits: ServeLimits,
        on_exit: Callable[[], None],
        opened: str | None = None,
    ) -> None:
        """Configure a server.

        Args:
            app: The ASGI application.
            limits: Number of connections.
            on_exit: Called at the first signal.
            opened: URL that is opened in a browser once the server runs.
        """
        super().__init__(
            uvicorn.Config(
                app,
                http="h11",
                ws="none",
                loop="asyncio",
                lifespan="off",
                log_config=None,
                access_log=False,  # its lines would hold the token
                server_header=False,
                proxy_headers=False,
                limit_concurrency=limits.connections,
                timeout_keep_alive=10,
            )
        )
        self._on_exit = on_exit
        self._opened = opened

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to serve, then open the page."""
        await super().startup(sockets)
        if self._opened:
            # a browser that runs in the terminal would not return
            threading.Thread(target=open_page, args=(self._opened,), daemon=True).start()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle SIGINT and SIGTERM; elsewhere than in the main thread, none arrive."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        handled = (signal.SIGINT, signal.SIGTERM)
        previous = {each: signal.signal(each, self.handle_exit) for each in handled}
        try:
            yield
        finally:
            for each, handler in previous.items():
                signal.signal(each, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """End at the first signal what waits, at the second also what runs."""
        super().handle_exit(sig, frame)
        # not in the signal's handler: the interrupted thread may hold the scheduler's lock
        threading.Thread(target=self._on_exit, daemon=True).start()


def open_page(url: str) -> None:
    """Open a page in the browser; without one, the address stands on stderr."""
    try:
        webbrowser.open(url)
    except (webbrowser.Error, RegionQAError, OSError):
        return
