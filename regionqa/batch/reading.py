"""The CPU stage: requests of a part, with their images fetched and decoded.

An image travels to the stage that answers as its pixels, or as its file where the pixels are too
many to be copied between processes. A fault of one image is told there, as `caption` tells it.
"""

import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from regionqa.batch.archives import read_samples
from regionqa.batch.parts import BatchPart
from regionqa.batch.storage import HTTP, Location
from regionqa.batch.tables import stored_rows
from regionqa.boxes.fields import parse_json
from regionqa.errors import ImageError, message_of
from regionqa.images.reading import (
    InputImage,
    image_from_bytes,
    image_from_pixels,
    open_image,
)

DECODED = 60_000_000
"""Most bytes of pixels that travel decoded: 20 megapixels. Larger images travel as their files and
are decoded where they are used, which keeps a GPU waiting."""
FETCHED = 16
"""Images of storage that are fetched at the same time, and ahead of the one in hand."""
IMAGELESS = "-"


@dataclass
class ImageRequests:
    """Consecutive requests of a part about one image, with that image."""

    part: str
    """Key of the part."""
    start: int
    """Number of the first request in its part."""
    requests: list[tuple[str, str, str | None]]
    """Place, text and error of each request."""
    name: str = IMAGELESS
    """Name of the image."""
    width: int = 0
    """As displayed, in pixels."""
    height: int = 0
    pixels: bytes | None = None
    """RGB (height, width, 3), if it travels decoded."""
    content: bytes | None = None
    """The image's file, if not."""
    error: str | None = None
    """Why the image cannot be opened."""
    warnings: list[str] = field(default_factory=list)
    last: bool = False
    """Whether these are the last requests of the part."""
    notes: list[str] = field(default_factory=list)
    """What was left out of the part's file."""

    @property
    def stop(self) -> int:
        """Number of the request after the last of these."""
        return self.start + len(self.requests)

    def image(self) -> InputImage:
        """Return the image; ImageError if it cannot be opened."""
        if self.error is not None:
            raise ImageError(self.error)
        if self.pixels is not None:
            pixels = Image.frombytes("RGB", (self.width, self.height), self.pixels)
            image = image_from_pixels(pixels, self.name)
        else:
            image = image_from_bytes(self.content or b"", self.name)
            image.warnings.clear()
        image.warnings += self.warnings
        return image

    def as_row(self) -> dict[str, Any]:
        """Return a row of Ray Data; text that need not be valid UTF-8 is JSON in ASCII."""
        head = [self.part, self.start, self.requests, self.name, self.width, self.height]
        tail = [self.error, self.warnings, self.last, self.notes]
        return {
            "head": json.dumps([*head, *tail]),
            "pixels": self.pixels,
            "content": self.content,
        }

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> "ImageRequests":
        """Read what `as_row` returned."""
        part, start, requests, name, width, height, error, warnings, last, notes = json.loads(
            row["head"]
        )
        texts = [(where, text, why) for where, text, why in requests]
        pixels, content = row["pixels"], row["content"]
        return cls(
            part, start, texts, name, width, height, pixels, content, error, warnings, last, notes
        )


@dataclass
class _Group:
    """Requests about one image that is still to be fetched."""

    start: int
    requests: list[tuple[str, str, str | None]]
    name: str
    place: Location | None = None
    """Where the image is; None: there is none, or `content` is it."""
    content: bytes | None = None


def read_part(part: BatchPart) -> Iterator[ImageRequests]:
    """Read the requests of a part in order, those about one image together.

    Raises:
        DataError: The file of the part cannot be read.
    """
    notes: list[str] = []
    previous: ImageRequests | None = None
    for group, content in _fetched(_groups(part, notes.append)):
        if previous is not None:
            yield previous
        previous = _opened(ImageRequests(part.key, group.start, group.requests), group, content)
    last = previous or ImageRequests(part.key, 0, [])
    last.last, last.notes = True, notes
    yield last


def _groups(part: BatchPart, note: Callable[[str], None]) -> Iterator[_Group]:
    if part.file:
        yield from _stored_groups(part, note)
        return
    group: _Group | None = None
    for number, (where, text, error) in enumerate(part.lines):
        name = IMAGELESS if error is not None else image_name(text)
        if group is not None and group.name == name != IMAGELESS:
            group.requests.append((where, text, error))
            continue
        if group is not None:
            yield group
        place = None if name == IMAGELESS else Location(part.base).join(name)
        group = _Group(number, [(where, text, error)], name, place)
    if group is not None:
        yield group


def _stored_groups(part: BatchPart, note: Callable[[str], None]) -> Iterator[_Group]:
    place = Location(part.file)
    if place.suffix == ".parquet":
        rows = stored_rows(place, part.start, part.stop or 0)
        for number, (where, document, content) in enumerate(rows):
            name = str(document["image"])
            text = json.dumps(document, default=str)
            yield _Group(number, [(where, text, None)], name, None, content or b"")
        return
    for number, sample in enumerate(read_samples(place, part.start, part.stop, note)):
        name = f"{place.name}/{sample.image or sample.key}"
        error = sample.error
        if error is None and sample.content is None:
            error = f"{name}: this sample has no image"
        text = json.dumps({"image": name} | sample.document)
        yield _Group(number, [(name, text, error)], name, None, sample.content or b"")


def image_name(text: str) -> str:
    """Return the name of a request's image; `-` for one without or a damaged one."""
    if not text.startswith("{"):
        return text
    try:
        document = parse_json(text)
    except ValueError:
        return IMAGELESS
    name = document.get("image") if isinstance(document, dict) else None
    return name if isinstance(name, str) and name else IMAGELESS


# -- images ----------------------------------------------------------------------------------------


def _fetched(groups: Iterable[_Group]) -> Iterator[tuple[_Group, "Future[bytes] | bytes | None"]]:
    """Fetch the images of storage, a few ahead of the one in hand."""
    waiting: deque[tuple[_Group, Future[bytes] | bytes | None]] = deque()
    with ThreadPoolExecutor(FETCHED) as pool:
        for group in groups:
            content: Future[bytes] | bytes | None = group.content
            if group.place is not None and not group.place.is_local:
                content = pool.submit(group.place.read)
            waiting.append((group, content))
            if len(waiting) > FETCHED:
                yield waiting.popleft()
        yield from waiting


def _opened(
    found: ImageRequests, group: _Group, content: "Future[bytes] | bytes | None"
) -> ImageRequests:
    """Open and decode the image of requests."""
    found.name = group.name
    if group.place is None and group.content is None:
        return found
    try:
        if isinstance(content, Future):
            content = _content(content, group)
        if content is None:
            assert group.place is not None
            path = Path(group.place.name)
            image = open_image(path, group.name)
        else:
            image = image_from_bytes(content, group.name)
    except ImageError as error:
        found.error = str(error)
        return found
    found.width, found.height = image.width, image.height
    if image.width * image.height * 3 <= DECODED:
        try:
            found.pixels = image.load().tobytes()
        except ImageError:  # raised again where the image is used
            found.pixels = None
    if found.pixels is None:
        found.content = image.source if isinstance(image.source, bytes) else _file(image)
        if found.content is None:
            found.error = f"{group.name}: cannot be read; make the file readable"
    found.warnings = image.warnings
    return found


def _file(image: InputImage) -> bytes | None:
    assert isinstance(image.source, Path)
    try:
        return image.source.read_bytes()
    except OSError:
        return None


def _content(future: "Future[bytes]", group: _Group) -> bytes:
    try:
        return future.result()
    except FileNotFoundError:
        raise ImageError(f"{group.name}: no such file") from None
    except (OSError, ValueError) as error:  # ValueError: a name that is no URL
        scheme = group.place.scheme if group.place else ""
        what = "cannot be fetched" if scheme in HTTP else "cannot be read"
        raise ImageError(f"{group.name}: {what}: {message_of(error)}") from None
