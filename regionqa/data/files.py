"""Training data files: JSON lines, arrays of LLaVA or PVIT, and COCO instances.

    data = read_training_data(Path("mine.jsonl"))

A bad record becomes a `Problem` and reading goes on; a file without any record that could be read
is a DataError.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

from regionqa.boxes.entries import LeftOut
from regionqa.boxes.formats.coco import is_coco
from regionqa.data.coco import coco_records
from regionqa.data.conversations import read_record
from regionqa.data.images import ImageFinder
from regionqa.data.jsonl import LINES_SUFFIXES, JsonFile, JsonLayout
from regionqa.data.records import DataFormat, Problem, Record, TrainingData
from regionqa.errors import BoxFileError, DataError

ADVICE = (
    "give JSON lines of image, regions and conversations, a JSON array of LLaVA or PVIT, "
    "or COCO instances; see docs/guide/data.md"
)
Parts = Iterable[Record | Problem | LeftOut]


def read_training_data(path: Path, images: Path | None = None) -> TrainingData:
    """Read every record of a file, and every problem of those that cannot be used.

    Only the headers of images are read.

    Args:
        path: The file.
        images: Folder that image names are relative to. By default the file's own, and for COCO
            also the folder `images` in it.

    Raises:
        DataError: If the file cannot be read or has no known format.
    """
    # stray bytes spoil one record only
    file = JsonFile.read(path, ADVICE, strict=False)
    folders = [path.parent, path.parent / "images"] if images is None else [images]
    format, found = _recognised(file, folders)
    try:
        parts = list(found)
    except BoxFileError as error:
        raise DataError(str(error)) from None
    return TrainingData(
        source=path,
        format=format,
        records=tuple(part for part in parts if isinstance(part, Record)),
        problems=tuple(part for part in parts if isinstance(part, Problem)),
        sha256=file.sha256,
        left_out=tuple(part for part in parts if isinstance(part, LeftOut)),
    )


def _recognised(file: JsonFile, folders: list[Path]) -> tuple[DataFormat, Parts]:
    """Return the format of a file and an iterator over its contents."""
    document, path = file.document, file.path
    if is_coco(document):
        return DataFormat.coco, coco_records(document, path, ImageFinder(folders))
    if file.is_document and file.layout is not JsonLayout.array:
        keys = document.keys() if isinstance(document, dict) else set()
        if not keys & {"image", "conversations"} and path.suffix.lower() not in LINES_SUFFIXES:
            raise DataError(f"{path}: is not training data of a known format; {ADVICE}")
    images = ImageFinder(folders[:1])
    format = DataFormat.lines if file.layout is JsonLayout.lines else DataFormat.array
    return format, _records(file, images, strict=format is DataFormat.lines)


def _records(file: JsonFile, images: ImageFinder, *, strict: bool) -> Iterator[Record | Problem]:
    """Read conversations; `strict` as in `read_record`, since LLaVA's files have keys of theirs."""
    for record in file.records(file.path.name):
        if record.error is None:
            yield from read_record(record.document, record.where, images, strict=strict)
        else:
            yield Problem(
                record.where, f"is not JSON: {record.error}; write one record in one line"
            )
