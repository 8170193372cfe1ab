"""The images that are served: those of the command line, and uploads kept in memory.

A client names an image by a name from the list; no path is ever made of what a client sends.
"""

import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path, PurePosixPath

from PIL import Image

from regionqa.data.english import counted
from regionqa.errors import CONTROLS, ImageError, UsageError
from regionqa.images.kinds import START, kind_of
from regionqa.images.reading import InputImage, image_from_bytes, open_image
from regionqa.pipeline.items import find_images, listed
from regionqa.serve.bodies import HttpError
from regionqa.serve.options import ServeLimits

LONGEST_NAME = 200
"""Characters of an upload's name."""
SENT_AS_IT_IS = 64 << 20
"""Bytes of the largest file that is sent as it is; a larger one is compressed again."""
KEPT_THUMBNAILS = 512
KEPT_OPEN = 4096
"""Numbers of thumbnails, and of opened images, that are kept."""


class NotServedError(ImageError):
    """There is no image of this name."""


@dataclass(frozen=True)
class ServedFile:
    """A file of the command line."""

    path: Path
    root: Path | None
    """The folder that was named, which it must lie in; None: the file was named itself."""

    def resolved(self, name: str) -> Path:
        """Return the real path; NotServedError if it is outside of the folder, as by a link."""
        try:
            path = self.path.resolve(strict=True)
        except (OSError, RuntimeError):
            raise NotServedError(f"{name}: no such image any more; reload the list") from None
        if self.root is not None and not path.is_relative_to(self.root):
            raise NotServedError(f"{name}: lies outside of the folder that is served")
        return path


Stamp = tuple[int, ...]
"""What changes whenever an image does."""


class Gallery:
    """Images by name; may be used from several threads."""

    def __init__(
        self, arguments: Sequence[str], limits: ServeLimits, warn: Callable[[str], None]
    ) -> None:
        """Find the images.

        Args:
            arguments: Files, folders and globs.
            limits: Limits on uploads.
            warn: Called with a line about what is left out.

        Raises:
            UsageError: A folder or glob has no images, or stdin is named.
        """
        if "-" in arguments:
            raise UsageError("-: names cannot be read from stdin here; name a folder or images")
        self._arguments = tuple(arguments)
        self._limits = limits
        self._lock = threading.RLock()
        self._opened: OrderedDict[str, tuple[Stamp, InputImage]] = OrderedDict()
        self._thumbnails: OrderedDict[tuple[str, Stamp, int], bytes] = OrderedDict()
        self._uploads: dict[str, InputImage] = {}
        self._uploaded_bytes = 0
        self._files: dict[str, ServedFile] = {}
        self.left_out = 0
        """Number of images that links lead to, outside of their folder."""
        if arguments:
            self._scan(warn)

    # -- names -------------------------------------------------------------------------------------

    def names(self) -> list[str]:
        """Look for new files, and return the names of all images, uploads last."""
        if self._arguments:
            try:
                self._scan(lambda line: None)
            except UsageError:  # the last image of a folder has gone
                with self._lock:
                    self._files = {}
        with self._lock:
            return [*self._files, *self._uploads]

    def is_upload(self, name: str) -> bool:
        """Return whether an image was uploaded."""
        return name in self._uploads

    def _scan(self, warn: Callable[[str], None]) -> None:
        found: list[tuple[str, ServedFile]] = []
        outside: list[str] = []
        for argument in self._arguments:
            found += self._found(argument, outside, warn)
        if len({name for name, _ in found}) < len(found):  # of several folders
            found = [(str(file.path), file) for _, file in found]
        if outside:
            warn(
                f"{counted(len(outside), 'image')} left out, which a link leads to outside of the "
                f"folder: {listed(outside)}"
            )
        with self._lock:
            self._files = dict(found)
            self.left_out = len(outside)

    def _found(
        self, argument: str, outside: list[str], warn: Callable[[str], None]
    ) -> Iterator[tuple[str, ServedFile]]:
        root = Path(argument).resolve() if Path(argument).is_dir() else None
        for item in find_images([argument], sys.stdin, warn):
            if item.error is not None:
                warn(str(item.error))
                continue
            path = Path(item.image)
            file = ServedFile(path.absolute(), root)
            try:
                file.resolved(item.image)
            except NotServedError:
                if root is None:
                    raise UsageError(f"{item.image}: no such file") from None
                outside.append(item.image)
                continue
            name = path.relative_to(argument).as_posix() if root else path.name
            if root and len(self._arguments) > 1:
                name = f"{root.name}/{name}"
            yield name, file

    # -- images ------------------------------------------------------------------------------------

    def open(self, name: str) -> InputImage:
        """Return the image of a name, the same object as long as its file does not change.

        Raises:
            NotServedError: There is none.
            ImageError: It cannot be read.
        """
        return self._open(name)[1]

    def _open(self, name: str) -> tuple[Stamp, InputImage]:
        with self._lock:
            if upload := self._uploads.get(name):
                return (id(upload),), upload
            file = self._files.get(name)
        if file is None:
            raise NotServedError(f"{name}: no such image here; GET /v1/images lists them")
        path = file.resolved(name)
        try:
            status = path.stat()
        except OSError as error:
            raise ImageError(f"{name}: cannot be read: {error.strerror}") from None
        stamp = (status.st_ino, status.st_mtime_ns, status.st_size)
        with self._lock:
            known = self._opened.get(name)
            if known is None or known[0] != stamp:
                known = (stamp, open_image(path, name))
                self._opened[name] = known
            self._opened.move_to_end(name)
            while len(self._opened) > KEPT_OPEN:
                self._opened.popitem(last=False)
        return known

    def add(self, name: str, content: bytes) -> InputImage:
        """Keep an uploaded image, under a name that no other has.

        Raises:
            HttpError: There is no room for it.
            ImageError: It is not an image that is read, is broken, or has too many pixels.
        """
        limits = self._limits
        with self._lock:
            if len(self._uploads) >= limits.uploads:
                raise HttpError(
                    507, f"{limits.uploads} uploaded images are kept at most; remove some first"
                )
            if self._uploaded_bytes + len(content) > limits.upload_total:
                raise HttpError(
                    507,
                    f"uploaded images may take {limits.upload_total:,} bytes together; remove "
                    "some first",
                )
        name = plain_name(name)
        image = image_from_bytes(content, name)
        if image.width * image.height > limits.upload_pixels:
            raise ImageError(
                f"{name}: {image.width} x {image.height} is more than the "
                f"{limits.upload_pixels:,} pixels that are taken; make it smaller first"
            )
        image.load()  # a broken image fails here, not at its first question
        with self._lock:
            if len(self._uploads) >= limits.uploads:  # others came meanwhile
                raise HttpError(507, "too many uploaded images are kept; remove some first")
            image.name = self._free_name(name)
            self._uploads[image.name] = image
            self._uploaded_bytes += len(content)
        return image

    def remove(self, name: str) -> None:
        """Forget an uploaded image; HttpError if there is none of this name."""
        with self._lock:
            image = self._uploads.pop(name, None)
            if image is None:
                what = "is a file, which stays" if name in self._files else "no such image here"
                raise HttpError(404, f"{name}: {what}; only uploaded images are removed")
            assert isinstance(image.source, bytes)
            self._uploaded_bytes -= len(image.source)

    def _free_name(self, name: str) -> str:
        stem, suffix, number = PurePosixPath(name).stem, PurePosixPath(name).suffix, 1
        while name in self._files or name in self._uploads:
            number += 1
            name = f"{stem} ({number}){suffix}"
        return name

    # -- pixels ------------------------------------------------------------------------------------

    def etag(self, name: str, side: int) -> str:
        """Return a tag of an image's pixels in one size; the errors are those of `open`."""
        stamp = "-".join(f"{number:x}" for number in self._open(name)[0])
        return f'"{stamp}-{side}"'

    def pixels(self, name: str, side: int = 0) -> tuple[bytes, str]:
        """Return an image for a browser, as displayed, and its media type.

        Args:
            name: Its name.
            side: Longest side in pixels, of a JPEG; 0: full size.

        Raises:
            ImageError: As for `open`, or it cannot be decoded.
        """
        stamp, image = self._open(name)
        if not side:
            return sent_as_it_is(image) or (jpeg(image.load()), "image/jpeg")
        key = (name, stamp, side)
        with self._lock:
            if key in self._thumbnails:
                self._thumbnails.move_to_end(key)
                return self._thumbnails[key], "image/jpeg"
        small = image.load()
        small.thumbnail((side, side))
        content = jpeg(small)
        with self._lock:
            self._thumbnails[key] = content
            while len(self._thumbnails) > KEPT_THUMBNAILS:
                self._thumbnails.popitem(last=False)
        return content, "image/jpeg"


def sent_as_it_is(image: InputImage) -> tuple[bytes, str] | None:
    """Return an image's own bytes if every browser shows them as they are read here."""
    source = image.source
    if isinstance(source, Path):
        if source.stat().st_size > SENT_AS_IT_IS:
            return None
        source = source.read_bytes()
    if not isinstance(source, bytes):
        return None
    kind = kind_of(source[:START])
    if kind == "a JPEG image":
        return source, "image/jpeg"
    # rotated or animated ones are shown in several ways
    if kind == "a PNG image" and b"eXIf" not in source and b"acTL" not in source:
        return source, "image/png"
    return None


def jpeg(image: Image.Image) -> bytes:
    """Compress an RGB image."""
    file = BytesIO()
    image.save(file, "JPEG", quality=90)
    return file.getvalue()


def plain_name(name: str) -> str:
    """Return the file name of an upload without folders and control characters."""
    last = name.replace("\\", "/").rpartition("/")[2]
    last = CONTROLS.sub(" ", last).encode("utf-8", "replace").decode().strip(" .")
    if len(last) > LONGEST_NAME:
        suffix = PurePosixPath(last).suffix[:16]
        last = last[: LONGEST_NAME - len(suffix)] + suffix
    return last or "image"
