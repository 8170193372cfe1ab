"""Files and folders on local disk or in storage: listed, read, and written whole.

S3 and Google Cloud Storage go through pyarrow, every other scheme through fsspec. What fails for a
while, as object storage does with 500 and 503, is tried again.
"""

import io
import os
import random
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar
from urllib.parse import parse_qs, quote, unquote, urlsplit

from regionqa.errors import DataError, OutputError, UsageError, message_of
from regionqa.files import output_error, write_whole

Result = TypeVar("Result")
PAUSES = (0.2, 0.5, 1.0, 2.0, 4.0, 8.0)
"""Seconds between attempts, each varied by half."""
SDK_ATTEMPTS = 5
"""Attempts of the S3 client itself within one of ours."""
WHOLE_WRITES = ("s3", "gcs", "abfs")
"""Storage in which an object appears whole or not at all."""
FINAL = re.compile(
    r"ACCESS_DENIED|NO_SUCH_BUCKET|INVALID_|HTTP status (400|401|403|404)"
    r"|resolve host|Unauthenticated|PermissionDenied"
)
"""In messages of errors that another attempt does not change."""
READ_AHEAD = 4 << 20
"""Bytes that are read at a time, since every read of object storage is a request."""
BUCKETS = ("s3", "gs", "gcs")
"""Schemes of pyarrow's own, in which a path begins with a bucket."""
HTTP = ("http", "https")
HTTP_SECONDS = 60.0
"""Time to wait for a web server to begin or continue."""
HTTP_LIMIT = 256 << 20
"""Most bytes of an image that a web server sends."""
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]+)://", re.IGNORECASE)


@dataclass(frozen=True)
class StoredFile:
    """A file that a folder lists."""

    location: "Location"
    size: int
    """In bytes."""
    version: str
    """Changes with the content: its size and time of change."""


@dataclass(frozen=True)
class Location:
    """A file or folder by its path or URL; options of the storage may follow `?`."""

    name: str

    @property
    def scheme(self) -> str:
        """Scheme of a URL; empty for a path."""
        match = _SCHEME.match(self.name)
        return match[1].lower() if match else ""

    @property
    def is_local(self) -> bool:
        """Whether it is a path."""
        return not self.scheme

    @property
    def absolute(self) -> str:
        """The path from the root, which holds in every working folder; a URL as it is."""
        return str(Path(self.name).absolute()) if self.is_local else self.name

    @property
    def suffix(self) -> str:
        """Suffix in lower case, such as `.jsonl`."""
        return PurePosixPath(self._plain).suffix.lower()

    @property
    def folder(self) -> "Location":
        """The folder that it is in."""
        if self.is_local:
            return Location(str(Path(self.name).parent))
        return Location(self._plain.rpartition("/")[0] + self._options)

    def join(self, name: str) -> "Location":
        """Return the file of this name in the folder; a URL or an absolute path as it is."""
        if _SCHEME.match(name):
            return Location(name)
        if self.is_local:
            return Location(str(Path(self.name) / name))
        if name.startswith("/"):
            return Location(name)
        return Location(f"{self._plain.rstrip('/')}/{quoted(name)}{self._options}")

    @property
    def _plain(self) -> str:
        return self.name if self.is_local else self.name.partition("?")[0]

    @property
    def _options(self) -> str:
        return "".join(self.name.partition("?")[1:])

    # -- reading -----------------------------------------------------------------------------------

    def read(self) -> bytes:
        """Return the content; OSError if it cannot be read, also not later."""
        if self.scheme in HTTP:
            return retried(lambda: _from_web(self.name))
        with self.open() as file:
            return file.read()

    def open(self) -> io.BufferedReader:
        """Open a file for reading and seeking; OSError if it cannot be opened."""
        filesystem, path = self._opened()
        return io.BufferedReader(RetriedFile(lambda: filesystem.open_input_file(path)), READ_AHEAD)

    def lines(self) -> Iterator[bytes]:
        """Iterate over the lines of a file, with their line ends."""
        with self.open() as file:
            yield from file

    def kind(self) -> str:
        """Return `file`, `folder`, or nothing if there is neither."""
        filesystem, path = self._opened()
        info = retried(lambda: filesystem.get_file_info(path))
        return {"Directory": "folder", "File": "file"}.get(info.type.name, "")

    def stored(self) -> StoredFile:
        """Return the size and version of a file; FileNotFoundError if there is none."""
        filesystem, path = self._opened()
        info = retried(lambda: filesystem.get_file_info(path))
        if info.type.name != "File":
            raise FileNotFoundError(f"{self.name}: no such file")
        return _stored(self, info)

    def files(self) -> Iterator[StoredFile]:
        """Iterate over the files of a folder and its subfolders, sorted, without hidden ones."""
        from pyarrow.fs import FileSelector

        filesystem, top = self._opened()
        selector = FileSelector(top, recursive=True, allow_not_found=True)
        found = retried(lambda: filesystem.get_file_info(selector))
        for info in sorted(found, key=lambda info: str(info.path)):
            # fsspec may add a slash at the front
            inner = info.path.lstrip("/").removeprefix(top.lstrip("/")).lstrip("/")
            if info.type.name == "File" and not any(p.startswith(".") for p in inner.split("/")):
                yield _stored(self.join(inner), info)

    # -- writing -----------------------------------------------------------------------------------

    def write(self, content: bytes) -> None:
        """Write a file, which appears whole or not at all; an existing one is replaced.

        Raises:
            OutputError: It cannot be written, also not later.
        """
        if self.is_local:
            _write_local(Path(self.name), content)
            return
        filesystem, path = self._opened()
        try:
            retried(lambda: _put(filesystem, path, content))
        except OSError as error:
            raise OutputError(
                f"{self.name}: cannot be written: {message_of(error)}; fix this, then run again to "
                "continue"
            ) from error

    def delete(self) -> None:
        """Delete a file, if it is there."""
        filesystem, path = self._opened()
        try:
            retried(lambda: filesystem.delete_file(path))
        except FileNotFoundError:
            return
        except OSError as error:
            raise OutputError(
                f"{self.name}: cannot be removed: {message_of(error)}; remove it"
            ) from error

    def _opened(self) -> tuple[Any, str]:
        if self.is_local:
            return _local(), str(Path(self.name).absolute())
        try:
            parts = urlsplit(self._plain)
        except ValueError as error:
            raise UsageError(f"{self.name}: is not a URL: {error}; correct it") from None
        path = unquote(f"{parts.netloc}{parts.path}".rstrip("/"))
        if self.scheme in BUCKETS and "" in path.split("/"):
            raise UsageError(f"{self.name}: lacks a name before or between its /; correct it")
        filesystem = _filesystem(self.scheme, parts.netloc, self._options)
        return filesystem, path if self.scheme in BUCKETS else path or "/"


class RetriedFile(io.RawIOBase):
    """A file in storage that is opened again where it was, if reading fails for a while."""

    def __init__(self, opened: Callable[[], Any]) -> None:
        self._open = opened
        self._file = retried(opened)
        self._at = 0

    def close(self) -> None:
        """Close the file."""
        self._file.close()
        super().close()

    def readable(self) -> bool:
        """It is open for reading."""
        return True

    def seekable(self) -> bool:
        """It can be read from anywhere."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to a place; see `io.IOBase.seek`."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at}.get(whence)
        self._at = offset + (int(self._file.size()) if base is None else base)
        return self._at

    def tell(self) -> int:
        """Return the place."""
        return self._at

    def readinto(self, buffer: Any) -> int:
        """Read as many bytes as fit, and return their number; 0 at the end."""

        def attempt() -> bytes:
            if self._file.closed:
                self._file = self._open()
            try:
                self._file.seek(self._at)
                return bytes(self._file.read(len(buffer)))
            except OSError:
                self._file.close()
                raise

        content = retried(attempt)
        buffer[: len(content)] = content
        self._at += len(content)
        return len(content)


def retried(action: Callable[[], Result]) -> Result:
    """Call an action, again after a while if storage fails; its last error otherwise."""
    for pause in PAUSES:
        try:
            return action()
        except (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError):
            raise
        except OSError as error:
            if error.errno is not None or FINAL.search(str(error)):
                raise
            time.sleep(pause * random.uniform(0.5, 1.5))
    return action()


def quoted(name: str) -> str:
    """Escape what a URL gives another meaning in the name of a file."""
    return quote(name, safe="/:@!$&'()*+,;=~ ")


def unreadable(location: Location, error: Exception) -> DataError:
    """Return the error of an input that cannot be read."""
    if isinstance(error, FileNotFoundError):
        return DataError(f"{location.name}: there is no such file; check the path")
    reason = getattr(error, "strerror", None) or message_of(error)
    return DataError(f"{location.name}: cannot be read: {reason}; run again to continue")


def _stored(location: Location, info: Any) -> StoredFile:
    return StoredFile(location, int(info.size), f"{info.size}:{info.mtime_ns}")


def _write_local(path: Path, content: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise output_error(path.parent, error) from error
    with write_whole(path) as file:
        file.write(content)


def _put(filesystem: Any, path: str, content: bytes) -> None:
    whole = filesystem.type_name in WHOLE_WRITES
    target = path if whole else f"{path}.unfinished"
    if not whole:
        filesystem.create_dir(path.rpartition("/")[0], recursive=True)
    with filesystem.open_output_stream(target) as file:
        file.write(content)
    if not whole:
        filesystem.move(target, path)


@lru_cache
def _local() -> Any:
    from pyarrow.fs import LocalFileSystem

    return LocalFileSystem()


@lru_cache
def _filesystem(scheme: str, host: str, options: str) -> Any:
    """Open the storage of a URL; UsageError if its scheme or options are not known."""
    from pyarrow import fs

    given = {key: values[-1] for key, values in parse_qs(options.lstrip("?")).items()}
    try:
        if scheme == "s3":
            return _s3(host, given)
        if scheme in BUCKETS:
            return fs.GcsFileSystem(**given)
        import fsspec

        return fs.PyFileSystem(fs.FSSpecHandler(fsspec.filesystem(scheme, **given)))
    except (ValueError, TypeError, ImportError, OSError) as error:
        raise UsageError(f"{scheme}://{host}: cannot be opened: {message_of(error)}") from None


def _s3(bucket: str, given: dict[str, str]) -> Any:
    """Open S3 or a storage that speaks its protocol, with the credentials of the AWS chain."""
    from pyarrow import fs

    environ = os.environ
    endpoint = environ.get("AWS_ENDPOINT_URL_S3") or environ.get("AWS_ENDPOINT_URL")
    if endpoint:
        given.setdefault("endpoint_override", endpoint)
    region = environ.get("AWS_REGION") or environ.get("AWS_DEFAULT_REGION")
    if region:
        given.setdefault("region", region)
    elif "region" not in given and "endpoint_override" not in given:
        given["region"] = fs.resolve_s3_region(bucket)
    values: dict[str, Any] = dict(given)
    if "anonymous" in values:
        values["anonymous"] = values["anonymous"].lower() in ("1", "true")
    retry = fs.AwsStandardS3RetryStrategy(max_attempts=SDK_ATTEMPTS)
    return fs.S3FileSystem(**values, retry_strategy=retry)


def _from_web(url: str) -> bytes:
    """Fetch a file from a web server.

    Raises:
        OSError: It cannot be fetched; 429, 500 and above, and lost connections are tried again.
        ValueError: This is no URL.
    """
    import requests

    try:
        with requests.get(url, timeout=HTTP_SECONDS, stream=True) as reply:
            if reply.status_code in (404, 410):
                raise FileNotFoundError(f"HTTP status {reply.status_code}")
            if reply.status_code != 429 and 400 <= reply.status_code < 500:
                raise PermissionError(f"HTTP status {reply.status_code}")
            if reply.status_code >= 300:
                raise OSError(f"HTTP status {reply.status_code}")
            content = bytearray()
            for chunk in reply.iter_content(1 << 20):
                content += chunk
                if len(content) > HTTP_LIMIT:
                    raise PermissionError(f"more than {HTTP_LIMIT:,} bytes")
            return bytes(content)
    except requests.RequestException as error:
        if isinstance(error, ValueError):
            raise ValueError(message_of(error)) from None
        raise OSError(f"{type(error).__name__} from {url.split('/')[2]}") from None
