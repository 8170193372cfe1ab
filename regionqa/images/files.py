"""Image files: finding and opening them, and why one cannot be used.

What a viewer shows is read although the file is not quite sound: a PNG with more text than Pillow
takes, a JPEG without its end marker.
"""

import hashlib
import io
import re
import stat
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

from PIL import Image, UnidentifiedImageError, features

from regionqa.errors import ImageError, message_of
from regionqa.images.kinds import AVIF, FORMATS, HEIC, READ, START, kind_of, text_instead

Result = TypeVar("Result")

MAX_PIXELS = 178_956_970
"""Limit on the pixels of an image: half a gigabyte as RGB, however small the file is."""

MAX_PIPED = 1 << 30
"""Limit on the bytes that are read from a pipe."""

JPEG, JPEG_END = b"\xff\xd8", b"\xff\xd9"
NO_END = "lacks the end marker of a JPEG, but none of its pixels; it may be an incomplete copy"

_STREAMS = re.compile(r"/dev/(stdin|fd/\d+)|/proc/(self|\d+)/fd/\d+")
"""Names of the streams that a shell gives a process, which are read although they are pipes."""

ACTIONS = {"archive": "unpack it", "video": "extract its frames"}
"""What to do with kinds that are not read, by a word of their name; others are converted."""

URL = re.compile(r"([a-z][a-z0-9+.-]+):/", re.IGNORECASE)
"""Beginning of a URL, also where a path has joined its slashes; not a drive of Windows."""

_TOO_MUCH_TEXT = re.compile("MAX_TEXT|text chunk")
"""In errors of Pillow about a PNG."""

_PNG_TEXT = (b"tEXt", b"zTXt", b"iTXt", b"iCCP")
"""Chunks of a PNG that say nothing about its pixels, and that Pillow limits in size."""


def use_image(
    source: Path | bytes,
    name: str,
    use: Callable[[Image.Image], Result],
    warn: Callable[[str], None] | None = None,
) -> Result:
    """Open an image and use it, with every error as an ImageError.

    What fails is tried again without the text of a PNG, or with the end marker that a JPEG lacks
    and viewers do without.

    Args:
        source: The file, or its content.
        name: Its name in errors.
        use: Called with the open image, twice if it fails at first.
        warn: Called with a line if a JPEG lacks its end marker; None: not looked for.
    """
    with pillow_errors(name):
        if isinstance(source, Path):
            find_source(source, name)  # it may have changed since it was opened
        try:
            result = _use(source, name, use)
            if warn and _lacks_end(source):
                warn(NO_END)
            return result
        except UnidentifiedImageError:
            raise ImageError(f"{name}: {_what_it_is(_start(source))}") from None
        except (OSError, ValueError) as error:
            if isinstance(error, (ImageError, PermissionError)):
                raise
            content = source if isinstance(source, bytes) else source.read_bytes()
            if content.startswith(b"\x89PNG") and _TOO_MUCH_TEXT.search(str(error)):
                return _use(_without_text(content), name, use)
            if content.startswith(JPEG) and (whole := _with_end(content, name)):
                if warn:
                    warn(NO_END)
                return _use(whole, name, use)
            raise


def _use(source: Path | bytes, name: str, use: Callable[[Image.Image], Result]) -> Result:
    """Open an image and use it."""
    opened = io.BytesIO(source) if isinstance(source, bytes) else source
    with Image.open(opened, formats=_formats(kind_of(_start(source)), name)) as image:
        check_size(*image.size, name)
        return use(image)


def _formats(kind: str | None, name: str) -> tuple[str, ...]:
    """Formats to try; the last two of `FORMATS` are not in every Pillow, so only where needed."""
    if kind == HEIC:
        _register_heif(name)
        return ("HEIF",)
    if kind == AVIF and features.check("avif"):
        return ("AVIF",)
    return FORMATS[:-2]


def _register_heif(name: str) -> None:
    """Teach Pillow to read HEIC; ImageError where the extra is not installed."""
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        raise ImageError(
            f"{name}: a HEIC image, for which pillow-heif is not installed: "
            "pip install 'regionqa[heif]', or convert it"
        ) from None
    register_heif_opener()


def _without_text(content: bytes) -> bytes:
    """A PNG without its text and its colour profile, which is not applied."""
    kept, at = [content[:8]], 8
    while at < len(content):
        end = at + 12 + int.from_bytes(content[at : at + 4])
        if content[at + 4 : at + 8] not in _PNG_TEXT:
            kept.append(content[at:end])
        at = end
    return b"".join(kept)


def _lacks_end(source: Path | bytes) -> bool:
    """Whether a file is a JPEG without an end marker; other data may follow that marker."""
    if isinstance(source, bytes):
        content = source
    else:
        with source.open("rb") as file:
            if file.read(2) != JPEG:
                return False
            file.seek(-2, io.SEEK_END)
            if file.read() == JPEG_END:
                return False
            file.seek(0)
            content = file.read()
    if not content.startswith(JPEG):
        return False
    at = 2  # segments before the pixels may hold a thumbnail with an end of its own
    while content[at : at + 1] == b"\xff" and content[at + 1 : at + 2] not in (b"\xda", b""):
        at += 2 + int.from_bytes(content[at + 2 : at + 4])
    return JPEG_END not in content[at:]


def _with_end(content: bytes, name: str) -> bytes | None:
    """A JPEG with the end marker that it lacks; None if pixels are missing too.

    A decoder reads to the end of the file for pixels that are missing, so these depend on what
    stands there.
    """
    content = content.removesuffix(b"\xff")
    filler = bytes(range(1, 255)) * 16
    try:
        found = {_use(content + tail + JPEG_END, name, _pixel_digest) for tail in (b"", filler)}
    except Exception:  # the first error is the one to report
        return None
    return content + JPEG_END if len(found) == 1 else None


def _pixel_digest(image: Image.Image) -> bytes:
    digest = hashlib.sha256()
    for top in range(0, image.height, 256):
        rows = (0, top, image.width, min(top + 256, image.height))
        digest.update(image.crop(rows).tobytes())
    return digest.digest()


def find_source(path: Path, name: str) -> Path | bytes:
    """The file to open, or the content of a pipe; ImageError if there is none."""
    try:
        status = path.stat()
    except FileNotFoundError:
        raise ImageError(f"{name}: {_why_missing(path, name)}") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = getattr(error, "strerror", None) or str(error)
        raise ImageError(f"{name}: cannot be read: {reason}") from None
    if stat.S_ISDIR(status.st_mode):
        raise ImageError(f"{name}: a directory, not an image; name the images in it")
    if stat.S_ISFIFO(status.st_mode) and _STREAMS.fullmatch(name):
        return _piped(path, status.st_ino)
    if not stat.S_ISREG(status.st_mode):  # opening a pipe could wait for ever
        raise ImageError(f"{name}: a pipe or device, not a file; save the image first")
    if status.st_size == 0:
        raise ImageError(f"{name}: empty file; copy it again")
    return path


@lru_cache(maxsize=1)
def _piped(path: Path, inode: int) -> bytes:
    """The content of a pipe, which can be read only once."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_PIPED + 1)
    except OSError as error:
        raise ImageError(f"{path}: cannot be read: {error.strerror}") from None
    if not content:
        raise ImageError(f"{path}: nothing came through this pipe")
    if len(content) > MAX_PIPED:
        raise ImageError(f"{path}: more than {MAX_PIPED:,} bytes; save the image first")
    return content


def _why_missing(path: Path, name: str) -> str:
    if found := URL.match(name):
        if found[1].lower() == "file":
            return "a URL; give the path of the file instead, without file://"
        return "a URL, which is not fetched; download the image and name the file"
    if path.is_symlink():
        target = str(path.readlink())
        fetch = "; fetch it: git annex get" if ".git/annex" in target else ""
        return f"no such file: a link to {target}, which is not there{fetch}"
    return "no such file"


def check_size(width: int, height: int, name: str) -> None:
    """Raise ImageError for an image without pixels, or with too many."""
    if width * height == 0:
        raise ImageError(f"{name}: {width} x {height} pixels, so there is nothing to see")
    if width * height > MAX_PIXELS:
        raise ImageError(
            f"{name}: {width} x {height} is {width * height:,} pixels, more than the "
            f"{MAX_PIXELS:,} that are read; make it smaller first"
        )


@contextmanager
def pillow_errors(name: str) -> Iterator[None]:
    """Turn whatever Pillow raises into an ImageError, and silence its warnings.

    Its decoders raise nearly every kind of error on damaged data, hence `Exception`. Its warnings
    name no image, and the one about sizes repeats `check_size` with a lower limit.
    """
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"PIL\.")
            yield
    except ImageError:
        raise
    except PermissionError:
        raise ImageError(f"{name}: permission denied; make the file readable") from None
    except Image.DecompressionBombError as error:
        # the application may have set Pillow's limit below ours; the message has both numbers
        numbers = str(error).partition(", could be")[0]
        raise ImageError(f"{name}: {numbers}; make it smaller first") from None
    except Exception as error:
        reason = message_of(error)
        raise ImageError(
            f"{name}: cannot be decoded: {reason}; copy it again, or save it as PNG"
        ) from None


def _start(source: Path | bytes) -> bytes:
    """The first bytes of a file."""
    if isinstance(source, bytes):
        return source[:START]
    with source.open("rb") as file:
        return file.read(START)


def _what_it_is(start: bytes) -> str:
    """Why a file is not read, from its first bytes."""
    kind = kind_of(start)
    if kind in READ and not (kind == AVIF and not features.check("avif")):
        return "broken from the start, or of a rare kind; copy it again, or save it as PNG"
    do = next((do for word, do in ACTIONS.items() if word in (kind or "")), "convert it")
    what = f"{kind}, which is not read; {do}" if kind else text_instead(start)
    if what and not kind:
        return what
    what = what or "not an image"
    return f"{what} ({', '.join(FORMATS[:-1])} and {FORMATS[-1]} are read)"
