"""A fake Hugging Face Hub in memory: repositories over HTTP on the loopback interface.

Implements the requests of the real client: a model's record and tree, files with digests and
ranges, and a push with LFS. Faults are set per repository.
"""

import base64
import fnmatch
import hashlib
import json
import re
import socket
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

LARGE = ("*.safetensors", "*.onnx", "*.bin", "*.pth", "*.model")
"""Patterns of files in LFS, which are listed with their sha256."""
MODEL = re.compile(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree|preupload|commit)/([^/]+))?(/.*)?")
RESOLVE = re.compile(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)")
BATCH = re.compile(r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch")
Files = dict[str, bytes]


@dataclass
class Repo:
    """A repository and its injected faults."""

    name: str
    commits: dict[str, Files] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    card: dict[str, Any] = field(default_factory=dict)
    """The metadata of its README."""
    private: bool = False
    gated: bool = False
    readers: set[str] = field(default_factory=set)
    """Tokens with access to it, if it is private or gated."""
    breaks: dict[str, list[int]] = field(default_factory=dict)
    """By file: number of bytes after which the next responses break off."""
    wrong: Files = field(default_factory=dict)
    """By file: content served in its place, with the right digest."""
    lost: set[str] = field(default_factory=set)
    tells_config: bool = True
    """Whether its record has parts of its config.json."""

    def commit(self, files: Files, branch: str = "main") -> str:
        """Add a commit to a branch."""
        told = "".join(f"{path} {git_digest(data)}" for path, data in sorted(files.items()))
        sha = hashlib.sha1(f"{self.branches.get(branch)} {told}".encode()).hexdigest()
        self.commits[sha], self.branches[branch] = files, sha
        return sha

    def at(self, revision: str) -> tuple[str, Files] | None:
        """The commit and files of a branch or commit."""
        sha = self.branches.get(revision, revision)
        return (sha, self.commits[sha]) if sha in self.commits else None


@dataclass(frozen=True)
class Asked:
    """A request and its response."""

    method: str
    path: str
    headers: Mapping[str, str]
    status: int
    sent: int
    """Number of bytes of the response's body that were sent."""


class Hub:
    """A local server in place of the Hub: `url` is its endpoint, `requests` its log."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.requests: list[Asked] = []
        self.writers: dict[str, str] = {}
        """Token -> the owner it may write as."""
        self.uploads: Files = {}
        self.status: int | None = None
        """Status of every response, if set; 503 simulates an outage."""
        self.page: bytes | None = None
        """Body of every response, if set, with status 200, as from a captive proxy."""
        self.sockets: set[socket.socket] = set()
        hub = self

        class Bound(Handler):
            """The handler of this hub."""

            owner = hub

        self._server = Server(("127.0.0.1", 0), Bound)
        self._server.daemon_threads = False  # so that closing waits for them
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def add(
        self,
        repo: str,
        source: Path | Mapping[str, bytes],
        *,
        branch: str = "main",
        licence: str | None = None,
        private: bool = False,
        gated: bool = False,
    ) -> str:
        """Create a repository with a folder's files, or add a commit; return the commit."""
        if isinstance(source, Path):
            paths = [path for path in source.rglob("*") if path.is_file()]
            files = {path.relative_to(source).as_posix(): path.read_bytes() for path in paths}
        else:
            files = dict(source)
        record = self.repos.setdefault(repo, Repo(repo))
        record.card = {"license": licence} if licence else {}
        record.private, record.gated = private, gated
        return record.commit(files, branch)

    def files(self, repo: str, branch: str = "main") -> Files:
        """Return the files of a branch."""
        return self.repos[repo].commits[self.repos[repo].branches[branch]]

    def break_after(self, repo: str, path: str, count: int, times: int = 1) -> None:
        """Break off the next responses with a file after so many bytes."""
        self.repos[repo].breaks[path] = [count] * times

    def corrupt(self, repo: str, path: str) -> None:
        """Serve a file with its last byte changed, under the right digest."""
        data = self.files(repo)[path]
        self.repos[repo].wrong[path] = data[:-1] + bytes([data[-1] ^ 1])

    def shorten(self, repo: str, path: str) -> None:
        """Serve a file without its last byte, as if it were complete."""
        self.repos[repo].wrong[path] = self.files(repo)[path][:-1]

    def mend(self, repo: str) -> None:
        """Remove all faults of a repository."""
        record = self.repos[repo]
        record.breaks, record.wrong, record.lost = {}, {}, set()

    def lose(self, repo: str, path: str) -> None:
        """List a file, and answer 404 for it."""
        self.repos[repo].lost.add(path)

    def fetched(self, path: str) -> list[Asked]:
        """Return the requests for the content of a file."""
        asked = [one for one in self.requests if one.path.endswith(f"/{path}")]
        return [one for one in asked if one.method == "GET" and "/resolve/" in one.path]

    def down(self) -> None:
        """Stop: connections are refused from now on.

        The port stays bound, or another test's server might get it and answer in this one's place.
        """
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
            for connection in list(self.sockets):
                with suppress(OSError):  # it has just ended by itself
                    connection.shutdown(socket.SHUT_RDWR)
            self._port = socket.socket()
            self._port.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            self._port.bind(self._server.server_address)  # without listening
            self._server.server_close()

    def close(self) -> None:
        """Stop and release the port."""
        self.down()
        self._port.close()


class Server(ThreadingHTTPServer):
    """A server whose port a second socket may hold."""

    allow_reuse_port = True


class Handler(BaseHTTPRequestHandler):
    """Handles the requests of one connection."""

    owner: Hub
    protocol_version = "HTTP/1.1"
    timeout = 300  # a client that forgets to close must not hang the tests

    def setup(self) -> None:
        super().setup()
        self.owner.sockets.add(self.connection)

    def finish(self) -> None:
        self.owner.sockets.discard(self.connection)
        super().finish()

    def log_message(self, *_: object) -> None:
        """Log nothing."""

    def do_GET(self) -> None:
        self.answer()

    def do_HEAD(self) -> None:
        self.answer()

    def do_POST(self) -> None:
        self.answer()

    def do_PUT(self) -> None:
        self.answer()

    @property
    def token(self) -> str | None:
        """The token that the client sent."""
        return (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None

    def answer(self) -> None:
        """Dispatch a request."""
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(urlsplit(self.path).path)
        if self.owner.status:
            return self.refuse(self.owner.status)
        if self.owner.page is not None:
            return self.send(self.owner.page)
        if match := RESOLVE.fullmatch(path):
            return self.resolve(*match.groups())
        if match := BATCH.fullmatch(path):
            return self.batch(match[1])
        if path == "/api/repos/create":
            return self.create(json.loads(self.body))
        if path == "/api/validate-yaml":
            return self.tell({"warnings": [], "errors": []})
        if match := re.fullmatch(r"/upload/(\w+)", path):
            self.owner.uploads[match[1]] = self.body
            return self.send(b"")
        if match := MODEL.fullmatch(path):
            repo, what, revision, _ = match.groups()
            if what in ("preupload", "commit"):
                return self.push(repo, what, revision)
            return self.describe(repo, what, revision or "main")
        return self.refuse(404)

    # -- reading -----------------------------------------------------------------------------------

    def visible(self, name: str) -> Repo | None:
        """Return the repository; respond with an error if the token has no access."""
        repo = self.owner.repos.get(name)
        if repo is None or (repo.private and self.token not in repo.readers):
            self.refuse(404 if self.token else 401, "RepoNotFound", "Repository not found")
            return None
        return repo

    def describe(self, name: str, what: str | None, revision: str) -> None:
        """Respond with a model's record or its tree."""
        if not (repo := self.visible(name)):
            return
        if not (found := repo.at(revision)):
            self.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return
        sha, files = found
        if what == "tree":
            self.tell([tree_entry(path, data) for path, data in files.items()])
            return
        blobs = "blobs" in parse_qs(urlsplit(self.path).query)
        config = config_record(files) if repo.tells_config else {}
        self.tell(
            {
                "id": name, "sha": sha, "private": repo.private,
                "gated": "auto" if repo.gated else False,
                "cardData": repo.card,
                **config,
                "siblings": [
                    sibling(path, data) if blobs else {"rfilename": path}
                    for path, data in files.items()
                ],
            }
        )  # fmt: skip

    def resolve(self, name: str, revision: str, path: str) -> None:
        """Respond with a file's content or its headers."""
        if not (repo := self.visible(name)):
            return
        if repo.gated and self.token not in repo.readers:
            status = 403 if self.token else 401
            self.refuse(status, "GatedRepo", f"Access to model {name} is restricted")
            return
        found = repo.at(revision)
        if not found or path not in found[1] or path in repo.lost:
            code = "EntryNotFound" if found else "RevisionNotFound"
            self.refuse(404, code, "Entry not found", {"X-Repo-Commit": found[0] if found else ""})
            return
        sha, data = found[0], found[1][path]
        headers = {
            "X-Repo-Commit": sha,
            "ETag": f'"{digest(path, data)}"',
            "Accept-Ranges": "bytes",
        }
        if is_large(path):
            headers |= {"X-Linked-Etag": headers["ETag"], "X-Linked-Size": str(len(data))}
        if self.command == "GET":
            data = repo.wrong.get(path, data)
        status, whole = 200, len(data)
        if match := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or ""):
            status, data = 206, data[int(match[1]) :]
            headers["Content-Range"] = f"bytes {match[1]}-{whole - 1}/{whole}"
        breaks = repo.breaks.get(path) if self.command == "GET" else None
        self.send(data, status, headers, stop=breaks.pop() if breaks else None)

    # -- writing -----------------------------------------------------------------------------------

    def may_write(self, owner: str) -> bool:
        """Return whether the token may write; respond with an error if not."""
        allowed = self.token is not None and self.owner.writers.get(self.token) == owner
        if not allowed:
            known = self.token in self.owner.writers
            self.refuse(403 if known else 401, message="You don't have the rights to do this")
        return allowed

    def create(self, wish: Mapping[str, Any]) -> None:
        """Create a repository."""
        name = f"{wish['organization']}/{wish['name']}"
        if not self.may_write(wish["organization"]):
            return
        there = name in self.owner.repos
        if not there:
            private = wish.get("visibility") == "private" or bool(wish.get("private"))
            self.owner.repos[name] = Repo(name, private=private, readers={str(self.token)})
            self.owner.repos[name].commit({})
        self.tell({"url": f"{self.owner.url}/{name}"}, 409 if there else 200)

    def batch(self, name: str) -> None:
        """Respond with the upload addresses of LFS files."""
        if not self.may_write(name.partition("/")[0]):
            return
        objects = [
            {**one, "actions": {"upload": {"href": f"{self.owner.url}/upload/{one['oid']}"}}}
            for one in json.loads(self.body)["objects"]
        ]
        self.tell({"transfer": "basic", "objects": objects})

    def push(self, name: str, what: str, branch: str) -> None:
        """Respond with upload modes, or create a commit."""
        if not self.may_write(name.partition("/")[0]):
            return
        repo = self.owner.repos[name]
        if what == "preupload":
            paths = [file["path"] for file in json.loads(self.body)["files"]]
            ways = {path: "lfs" if is_large(path) else "regular" for path in paths}
            told = [
                {"path": p, "uploadMode": way, "shouldIgnore": False} for p, way in ways.items()
            ]
            self.tell({"files": told})
            return
        files = dict(self.owner.files(name, branch))
        for entry in map(json.loads, self.body.splitlines()):
            value = entry["value"]
            if entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                files[value["path"]] = self.owner.uploads[value["oid"]]
        sha = repo.commit(files, branch)
        self.tell({"commitUrl": f"{self.owner.url}/{name}/commit/{sha}", "commitOid": sha})

    # -- answers -----------------------------------------------------------------------------------

    def tell(self, told: object, status: int = 200) -> None:
        """Respond with JSON."""
        self.send(json.dumps(told).encode(), status, {"Content-Type": "application/json"})

    def refuse(
        self,
        status: int,
        code: str = "",
        message: str = "",
        headers: Mapping[str, str] = {},
    ) -> None:
        """Respond with an error in the Hub's format."""
        reason = message or HTTPStatus(status).phrase
        codes = {"X-Error-Code": code} if code else {}
        body = json.dumps({"error": reason}).encode()
        kind = {"Content-Type": "application/json", "X-Error-Message": reason}
        self.send(body, status, {**kind, **codes, **headers})

    def send(
        self,
        data: bytes,
        status: int = 200,
        headers: Mapping[str, str] | None = None,
        stop: int | None = None,
    ) -> None:
        """Respond; `stop`: break the connection after so many bytes."""
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        body = b"" if self.command == "HEAD" else data[:stop]
        asked = Asked(self.command, self.path, dict(self.headers), status, len(body))
        self.owner.requests.append(asked)
        try:
            self.wfile.write(body)
        except (BrokenPipeError, ConnectionResetError):  # the client has gone
            self.close_connection = True
        if stop is not None:
            self.close_connection = True


def is_large(path: str) -> bool:
    """Return whether a file is stored in LFS."""
    return any(fnmatch.fnmatch(path, pattern) for pattern in LARGE)


def git_digest(data: bytes) -> str:
    """Return git's digest of a content."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def digest(path: str, data: bytes) -> str:
    """Return the ETag of a file: its sha256 in LFS, else git's digest."""
    return hashlib.sha256(data).hexdigest() if is_large(path) else git_digest(data)


def config_record(files: Files) -> dict[str, Any]:
    """Return what a model's record has of its config.json."""
    try:
        config = json.loads(files["config.json"])
        told = {name: config[name] for name in ("architectures", "model_type") if name in config}
    except (KeyError, TypeError, ValueError):
        return {}
    return {"config": told}


def sibling(path: str, data: bytes) -> dict[str, Any]:
    """Return a file's entry in a model's record."""
    entry: dict[str, Any] = {"rfilename": path, "size": len(data), "blobId": git_digest(data)}
    if is_large(path):
        entry["lfs"] = {"sha256": digest(path, data), "size": len(data), "pointerSize": 134}
    return entry


def tree_entry(path: str, data: bytes) -> dict[str, Any]:
    """Return a file's entry in a tree."""
    entry: dict[str, Any] = {"type": "file", "path": path, "size": len(data)}
    entry["oid"] = git_digest(data)
    if is_large(path):
        entry["lfs"] = {"oid": digest(path, data), "size": len(data), "pointerSize": 134}
    return entry
