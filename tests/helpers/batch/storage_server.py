"""Object storage on this machine: moto's S3 behind a proxy that fails now and then."""

import http.client
import os
import random
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

FAULTS = (500, 503)
HOP = ("connection", "transfer-encoding", "content-length", "server", "date")
"""Headers of a connection, which the proxy sets itself."""
REFRAMED = {"transfer-encoding", "Transfer-Encoding", "content-length", "Content-Length", "Expect"}
"""Headers of a request that are not passed on."""


def storage_program() -> str | None:
    """The program `moto_server`: of the variable MOTO_SERVER, or of this environment, else None.

    One that is somewhere on the path may be too old for pyarrow's uploads.
    """
    here = Path(sys.executable).parent
    return os.environ.get("MOTO_SERVER") or shutil.which("moto_server", path=str(here))


@dataclass
class FaultyProxy:
    """Passes requests on to a server, and answers a share of them with 500 or 503 instead."""

    port: int
    """Of the server."""
    share: float
    rng: random.Random
    faults: Counter[int] = field(default_factory=Counter)
    """Faults so far, by status."""
    passed: int = 0

    def handler(self) -> type[BaseHTTPRequestHandler]:
        """A handler of `http.server` that does this."""
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None:
                """Say nothing."""

            def _serve(self) -> None:
                body = body_of(self)
                if proxy.rng.random() < proxy.share:
                    status = proxy.rng.choice(FAULTS)
                    proxy.faults[status] += 1
                    self._reply(status, {"Content-Type": "text/plain"}, b"injected")
                    return
                proxy.passed += 1
                upstream = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=600)
                try:
                    headers = dict(self.headers)
                    for name in REFRAMED & {*headers}:
                        del headers[name]
                    upstream.request(self.command, self.path, body, headers)
                    found = upstream.getresponse()
                    content = found.read()
                    length = found.getheader("Content-Length")
                    self._reply(found.status, dict(found.getheaders()), content, length)
                finally:
                    upstream.close()

            def _reply(
                self,
                status: int,
                headers: Mapping[str, str],
                content: bytes,
                length: str | None = None,
            ) -> None:
                self.send_response(status)
                for name, value in headers.items():
                    if name.lower() not in HOP:
                        self.send_header(name, value)
                head = self.command == "HEAD"
                self.send_header("Content-Length", (length or "0") if head else str(len(content)))
                self.end_headers()
                if not head:
                    self.wfile.write(content)

            do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _serve  # noqa: N815

        return Handler


def body_of(request: BaseHTTPRequestHandler) -> bytes:
    """The body of a request, also one in chunks."""
    if request.headers.get("Transfer-Encoding", "").lower() != "chunked":
        return request.rfile.read(int(request.headers.get("Content-Length") or 0))
    chunks = []
    while size := int(request.rfile.readline().partition(b";")[0], 16):
        chunks.append(request.rfile.read(size))
        request.rfile.readline()
    while request.rfile.readline().strip():  # trailers
        continue
    return b"".join(chunks)


@contextmanager
def object_storage(program: str, share: float, seed: int = 0) -> Iterator[tuple[str, FaultyProxy]]:
    """S3 on this machine that fails for this share of requests: its address, and the proxy."""
    port = free_port()
    server = subprocess.Popen(
        [program, "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    proxy = FaultyProxy(port, share, random.Random(seed))
    front = ThreadingHTTPServer(("127.0.0.1", 0), proxy.handler())
    thread = threading.Thread(target=front.serve_forever, daemon=True)
    try:
        wait_for(port, server)
        thread.start()
        yield f"http://127.0.0.1:{front.server_address[1]}", proxy
    finally:
        if thread.is_alive():
            front.shutdown()
        front.server_close()
        server.terminate()
        server.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(port: int, server: "subprocess.Popen[bytes]") -> None:
    while True:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        if server.poll() is not None:
            raise RuntimeError("the storage server has ended")
        time.sleep(0.1)
