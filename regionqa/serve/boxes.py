"""Box files of clients to regions of the served images and back, and drawings of answers."""

import base64
import binascii
import tempfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, NamedTuple

import msgspec
from msgspec import Meta
from PIL import Image

from regionqa.boxes.files import FORMATS, MASKED, ImageRegions, read_boxes, render_boxes
from regionqa.data.english import counted
from regionqa.data.fields import parse_regions
from regionqa.errors import BoxFileError, ItemError, OutputError, UsageError
from regionqa.images.reading import InputImage
from regionqa.pipeline.drawing import draw_answers
from regionqa.pipeline.inputs import FileBoxes
from regionqa.pipeline.outputs import encode, region_fields
from regionqa.regions import BoxFormat, BoxUnits, Region, clip_all
from regionqa.requests import Answer, Request
from regionqa.serve.bodies import HttpError
from regionqa.serve.gallery import Gallery
from regionqa.serve.options import ServeLimits

SUFFIXES = {"csv": ".csv", "cvat": ".xml", "requests": ".jsonl", "huggingface": ".jsonl"}
"""Suffixes of formats of one file that is not JSON."""
MEDIA_TYPES = {".csv": "text/csv", ".xml": "application/xml", ".jsonl": "application/jsonl"}
LISTED = 10
"""Number of names without an image that are sent."""


LEFT_OUT = "x-left-out"
"""Header of a response with a file that does not hold everything."""


class Exported(NamedTuple):
    """A file to save."""

    content: bytes
    media_type: str
    name: str
    left_out: str = ""
    """What the file does not hold, for people."""


class SentFile(msgspec.Struct):
    """A box file."""

    name: Annotated[str, Meta(description="Its name, with folders where it lies in some.")]
    content: Annotated[str, Meta(description="Its bytes, as Base64.")]


class BoxFileBody(msgspec.Struct):
    """Box files to read: one, or those of a folder."""

    files: list[SentFile]
    box_format: BoxFormat | None = None
    box_units: BoxUnits | None = None
    scale_boxes: bool = False
    masks: Annotated[bool, Meta(description="Read masks too.")] = False


class DrawnRegions(msgspec.Struct):
    """An image and its regions."""

    image: str
    regions: Annotated[list[Any], Meta(description="As in a request.")] = []


class ExportBody(msgspec.Struct):
    """Regions to write as a box file."""

    images: list[DrawnRegions]
    format: Annotated[str, Meta(description=f"One of {', '.join(FORMATS)}.")] = "plain"


class DrawnAnswer(msgspec.Struct):
    """A question and its answer, to be drawn; further keys of an answer are not used."""

    question: str
    answer: str
    regions: Annotated[list[Any], Meta(description="As in an answer.")] = []


class DrawingBody(msgspec.Struct):
    """Answers about one image, to be drawn on it."""

    image: str
    answers: list[DrawnAnswer]


@dataclass(frozen=True)
class BoxService:
    """Reads and writes box files about the images of a gallery."""

    gallery: Gallery
    limits: ServeLimits

    # -- import ------------------------------------------------------------------------------------

    def read(self, body: BoxFileBody) -> dict[str, object]:
        """Read box files and return the regions of each served image that they are about.

        Raises:
            HttpError: There are no files, or too many, or a name or Base64 is malformed.
            BoxFileError: A file is not a box file.
            UsageError: The options do not fit the format.
        """
        if body.masks and body.scale_boxes:
            raise HttpError(422, "scale_boxes, masks: masks are not scaled; send one of the two")
        if not 1 <= len(body.files) <= self.limits.box_file_count:
            raise HttpError(
                422, f"{len(body.files):,} files; send 1 to {self.limits.box_file_count:,}"
            )
        with tempfile.TemporaryDirectory(prefix="regionqa-") as folder:
            top = Path(folder) / "boxes"
            paths = [save_file(file, top) for file in body.files]
            path = paths[0] if len(paths) == 1 else top
            try:
                return self._regions(path, body, lambda line: without_folder(line, top))
            except (BoxFileError, UsageError, ItemError) as error:
                raise HttpError(422, without_folder(str(error), top)) from None

    def _regions(
        self, path: Path, body: BoxFileBody, shown: Callable[[str], str]
    ) -> dict[str, object]:
        names = self.gallery.names()
        file = read_boxes(path, format=body.box_format, units=body.box_units, masks=body.masks)
        if len(names) == 1:
            file = file.for_one_image()
        warnings = list(file.remarks)
        boxes_of = FileBoxes(file, warnings.append, scale=body.scale_boxes)
        images: list[dict[str, object]] = []
        errors: list[dict[str, str]] = []
        used: set[str | None] = set()
        listed = set(map(id, file.entries))
        for name in names:
            try:
                entry = file.entry_for(name)
                if entry is None or id(entry) not in listed:  # absent, though it may be empty
                    continue
                used.add(entry.name)
                image = self.gallery.open(name)
                size = (image.width, image.height)
                placed = tuple(box.resolve(*size) for box in boxes_of.of(image))
                regions, clipped = clip_all(placed, *size)
            except ItemError as error:
                errors.append({"image": name, "error": shown(str(error))})
                continue
            warnings += (f"{name}: {line}" for line in clipped)
            images.append({"image": name, "regions": list(map(region_fields, regions))})
        boxes_of.finish(each=False)
        unmatched = [name for name in file.images if name not in used]
        return {
            "format": file.format,
            "images": images,
            "errors": errors,
            "warnings": [shown(line) for line in warnings],
            "unmatched": {"count": len(unmatched), "first": unmatched[:LISTED]},
        }

    # -- export ------------------------------------------------------------------------------------

    def write(self, body: ExportBody) -> Exported:
        """Write regions as a box file; a ZIP archive for formats of several files.

        Raises:
            HttpError: The format is unknown, or a region, name or label does not fit.
            ItemError: There is no such image.
        """
        if body.format not in FORMATS:
            raise HttpError(422, f"format {body.format!r}: must be one of {', '.join(FORMATS)}")
        images = []
        for one in body.images:
            image = self.gallery.open(one.image)
            regions = regions_of(one.regions, image)
            images.append(ImageRegions(one.image, image.width, image.height, regions))
        if not images:
            raise HttpError(422, "no images; send at least one")
        try:
            files = render_boxes(images, body.format)
        except OutputError as error:
            raise HttpError(422, str(error)) from None
        lost = masks_left_out(images, body.format)
        text = files.get(PurePosixPath())
        if text is not None and len(files) == 1:
            suffix = SUFFIXES.get(body.format, ".json")
            kind = MEDIA_TYPES.get(suffix, "application/json")
            return Exported(encode(text), kind, f"boxes{suffix}", lost)
        return Exported(zipped(files), "application/zip", "boxes.zip", lost)

    def draw(self, body: DrawingBody) -> Exported:
        """Draw answers on their image, as `ask --draw` does.

        Raises:
            HttpError: There are no answers, or too many to be drawn.
            ItemError: There is no such image, or it cannot be decoded; or a region is malformed.
        """
        image = self.gallery.open(body.image)
        length = sum(len(one.question) + len(one.answer) for one in body.answers)
        if not body.answers or len(body.answers) > self.limits.requests:
            raise HttpError(422, f"send 1 to {self.limits.requests} answers to draw")
        if length > self.limits.drawn_text:
            raise HttpError(
                422, f"{length:,} characters to draw; send at most {self.limits.drawn_text:,}"
            )
        answers = [
            Answer(
                Request(body.image, one.question, regions_of(one.regions, image), image), one.answer
            )
            for one in body.answers
        ]
        return Exported(png(draw_answers(image.load(), answers)), "image/png", "answers.png")


def regions_of(documents: list[Any], image: InputImage) -> tuple[Region, ...]:
    """Read the regions that a client sends; ItemError, naming the image, if one is malformed."""
    size = (image.width, image.height)
    try:
        boxes = parse_regions(documents) or ()
        return clip_all(tuple(box.resolve(*size) for box in boxes), *size)[0]
    except ItemError as error:
        raise ItemError(f"{image.name}: {error}") from None


def save_file(file: SentFile, top: Path) -> Path:
    """Write a client's file below a folder of our own; HttpError if its name leads elsewhere."""
    parts = PurePosixPath(file.name.replace("\\", "/")).parts
    sound = bool(parts) and all(
        part not in ("/", "..") and part.isprintable() and len(part.encode()) <= 200
        for part in parts
    )
    if not sound or len(parts) > 8 or ":" in file.name[:2]:
        raise HttpError(422, f"{file.name[:80]!r}: is not the name of a file in a folder")
    try:
        content = base64.b64decode(file.content, validate=True)
    except (binascii.Error, ValueError):
        raise HttpError(422, f"{file.name}: 'content' is not Base64") from None
    path = top.joinpath(*parts)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("xb") as out:
            out.write(content)
    except (FileExistsError, NotADirectoryError, IsADirectoryError):
        raise HttpError(422, f"{file.name}: is given twice, as a file or a folder") from None
    return path


def without_folder(line: str, top: Path) -> str:
    """Name files as the client did, not by the folder that they were written to."""
    return line.replace(f"{top}/", "").replace(str(top), "the box files")


def masks_left_out(images: Sequence[ImageRegions], format: str) -> str:
    """Say how many masks a format does not hold; empty if it holds them, or there are none."""
    masks = sum(region.mask is not None for image in images for region in image.regions)
    if not masks or format in MASKED:
        return ""
    return f"{counted(masks, 'mask')} left out: {format} holds boxes only; {MASKED[0]} holds both"


def zipped(files: Mapping[PurePosixPath, str]) -> bytes:
    """Pack texts into a ZIP archive."""
    file = BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, text in files.items():
            name = "boxes" if path == PurePosixPath() else path.as_posix()
            archive.writestr(zipfile.ZipInfo(name), encode(text))
    return file.getvalue()


def png(image: Image.Image) -> bytes:
    """Compress an image without loss."""
    file = BytesIO()
    image.save(file, "PNG")
    return file.getvalue()
