"""Training data files: JSON lines, arrays of LLaVA or PVIT, and boxes with labels in any format.

    data = read_training_data(Path("mine.jsonl"))

A bad record becomes a `Problem` and reading goes on; a file without any record that could be read
is a DataError.
"""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path

from regionqa.boxes.entries import Convention
from regionqa.boxes.files import FORMATS, format_of, read_boxes
from regionqa.boxes.formats.coco import is_coco
from regionqa.boxes.objects import is_box
from regionqa.boxes.remarks import LeftOut, summarise_remarks
from regionqa.boxes.sizes import SizeCheck
from regionqa.boxes.source import SourceFile
from regionqa.data.boxes import Part, box_records, coco_records, image_folders
from regionqa.data.conversations import read_record
from regionqa.data.images import ImageFinder
from regionqa.data.jsonl import LINES_SUFFIXES, JsonFile, JsonLayout, JsonRecord
from regionqa.data.records import DataFormat, Problem, Record, TrainingData
from regionqa.errors import BoxFileError, DataError, UsageError
from regionqa.files import is_folder
from regionqa.regions import BoxFormat, BoxUnits

ADVICE = (
    "give JSON lines of image, regions and conversations, a JSON array of LLaVA or PVIT, "
    "COCO instances, or boxes with labels in another format; see docs/guide/data.md"
)
ADVICE_ON_SIZES = "regionqa data convert --scale-boxes scales them to the image"
_TURNS = "conversations"


def read_training_data(
    path: Path,
    images: Path | None = None,
    *,
    format: BoxFormat | None = None,
    units: BoxUnits | None = None,
    scale_boxes: bool = False,
) -> TrainingData:
    """Read every record of a file, and every problem of those that cannot be used.

    Only the headers of images are read.

    Args:
        path: The file, or a folder of box files.
        images: Folder that image names are relative to. By default the file's own, and for boxes
            also the folder `images` in it and those of published layouts.
        format: Meaning of the numbers of plain JSON and CSV, as for `read_boxes`.
        units: Their units.
        scale_boxes: Whether boxes are scaled from the sizes that the file states to the images'.

    Raises:
        DataError: If the file cannot be read or has no known format.
    """
    source = SourceFile(path, path.parent)  # kept, because a pipe can be read only once
    if _holds_boxes(source):
        return _box_data(source, images, Convention(format, units), scale_boxes)
    # stray bytes spoil one record only
    content = source.content if source.is_stream and path.exists() else None
    del source
    file = JsonFile.read(path, ADVICE, strict=False, content=content)
    folders = [path.parent, path.parent / "images"] if images is None else [images]
    given = "--box-format" if format else "--box-units" if units else None
    if given:
        raise UsageError(
            f"{given}: is for plain JSON and CSV; {path} defines itself what its numbers mean; "
            f"leave {given} out"
        )
    sizes = SizeCheck(path, scale_boxes, advice=ADVICE_ON_SIZES)
    images_of, (kind, found) = _recognised(file, folders, sizes)
    if scale_boxes and kind is not DataFormat.coco:
        raise UsageError(f"--scale-boxes: {path} states no sizes of images; leave it out")
    try:
        parts = list(found)
    except BoxFileError as error:
        raise DataError(str(error)) from None
    return _data(path, kind, parts, file.sha256, sizes, images_of)


def _data(
    path: Path,
    format: DataFormat,
    parts: Iterable[Part],
    sha256: str,
    sizes: SizeCheck,
    images: ImageFinder,
) -> TrainingData:
    parts = list(parts)
    left_out = tuple(part for part in parts if isinstance(part, LeftOut))
    return TrainingData(
        source=path,
        format=format,
        records=tuple(part for part in parts if isinstance(part, Record)),
        problems=tuple(part for part in parts if isinstance(part, Problem)),
        sha256=sha256,
        left_out=left_out,
        remarks=(*(f"{path}: {line}" for line in summarise_remarks(left_out)), *sizes.summary),
        missing_images=images.missing,
        broken_images=images.broken,
    )


# ---- boxes ----


def _holds_boxes(file: SourceFile) -> bool:
    """Whether a file holds boxes, in a format other than COCO's instances, and no conversations.

    A file that cannot be told is not: the reader of conversations says what is wrong with it.
    """
    if is_folder(file.path):
        return True
    try:
        if file.kind not in (".json", ".jsonl"):
            return format_of(file) is not None
        if get_close_matches(_TURNS, file.keys, n=1, cutoff=0.7):
            return False
        name = format_of(file)
    except (BoxFileError, OSError, ValueError):
        return False
    if name == "plain" and (file.kind == ".jsonl" or file.is_array):
        return is_box(file.first) and "image" not in file.keys  # else records without turns
    if name == "requests":  # records without conversations are faulty, unless they have labels
        return "answer" in file.keys or b'"label"' in file.content
    return name is not None and not (name == "coco" and not file.is_array) and bool(file.keys)


def _box_data(
    source: SourceFile, images: Path | None, convention: Convention, scale_boxes: bool
) -> TrainingData:
    path, sizes = source.path, SizeCheck(source.path, scale_boxes, advice=ADVICE_ON_SIZES)
    try:
        file = read_boxes(path, format=convention.format, units=convention.units, source=source)
    except BoxFileError as error:
        raise DataError(str(error)) from None
    finder = ImageFinder(path, image_folders(path, images), deep=True)
    parts = box_records(file, finder, sizes)
    data = _data(path, DataFormat.boxes, parts, _digest(source), sizes, finder)
    return replace(
        data,
        left_out=(*file.left_out, *data.left_out),
        remarks=(*file.remarks, *data.remarks),
        title=FORMATS[file.format].TITLE,
    )


def _digest(source: SourceFile) -> str:
    """Return the digest of a file, or of the names and contents of a folder's box files."""
    path = source.path
    if not path.is_dir():
        return hashlib.sha256(source.content).hexdigest()
    digest = hashlib.sha256()
    suffixes = {format.IMAGE_SUFFIX for format in FORMATS.values()}
    for each in sorted(path.rglob("*")):
        if each.suffix.lower() in suffixes and each.is_file():
            name = each.relative_to(path).as_posix()
            digest.update(name.encode("utf-8", "surrogateescape") + b"\0")
            digest.update(hashlib.sha256(each.read_bytes()).digest())
    return digest.hexdigest()


# ---- conversations, and COCO's instances ----


def _recognised(
    file: JsonFile, folders: list[Path], sizes: SizeCheck
) -> tuple[ImageFinder, tuple[DataFormat, Iterable[Part]]]:
    """Return the lookup of a file's images, its format and an iterator over its contents."""
    document, path = file.document, file.path
    if is_coco(document):
        finder = ImageFinder(path, folders, deep=True)
        return finder, (DataFormat.coco, coco_records(document, path, finder, sizes))
    if file.is_document and file.layout is not JsonLayout.array:
        keys = document.keys() if isinstance(document, dict) else set()
        if not keys & {"image", "conversations"} and path.suffix.lower() not in LINES_SUFFIXES:
            raise DataError(f"{path}: is not training data of a known format; {ADVICE}")
    finder = ImageFinder(path, folders[:1])
    format = DataFormat.lines if file.layout is JsonLayout.lines else DataFormat.array
    parts = records_of(file.records(path.name), finder, strict=format is DataFormat.lines)
    return finder, (format, parts)


def records_of(
    lines: Iterable[JsonRecord], images: ImageFinder, *, strict: bool
) -> Iterator[Record | Problem]:
    """Read conversations; `strict` as in `read_record`, since LLaVA's files have keys of theirs."""
    for line in lines:
        if line.error is None:
            yield from read_record(line.document, line.where, images, strict=strict)
        else:
            yield Problem(line.where, f"is not JSON: {line.error}; write one record in one line")
