"""INPUT of `regionqa batch`: recognised, and read as a stream of requests."""

import fnmatch
import json
import re
import sqlite3
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from regionqa.batch.archives import count_samples
from regionqa.batch.parts import RequestLine, StoredRows
from regionqa.batch.reading import image_name
from regionqa.batch.storage import Location, StoredFile, quoted, unreadable
from regionqa.batch.tables import coco_lines, csv_lines, parquet_entries
from regionqa.data.english import counted
from regionqa.errors import DataError, UsageError
from regionqa.images.kinds import is_read
from regionqa.pipeline.items import find_images, listed

Entry = RequestLine | StoredRows
LINES, CSV, PARQUET, COCO, ARCHIVES = (
    (".jsonl", ".ndjson"), (".csv",), (".parquet",), (".json",), (".tar",),
)  # fmt: skip
"""Suffixes of files of requests, by kind."""
DATA = (*LINES, *CSV, *PARQUET, *COCO, *ARCHIVES)
ADVICE = (
    "give a folder or glob of images, JSON lines (.jsonl), CSV or Parquet of requests, COCO "
    "(.json) or webdataset (.tar)"
)
_MARKS = re.compile(r"[*?\[]")


@dataclass(frozen=True)
class InputSettings:
    """How INPUT is read."""

    images: str | None = None
    """Folder or URL that names of images are relative to; None: that of the file."""
    each: bool = True
    """Whether images of COCO without boxes are left out."""
    part_size: int = 256
    limit: int | None = None
    """Number of requests to read; None: all."""
    sort_by_image: bool = False


class BatchInput:
    """What INPUT names: images, or files of requests."""

    def __init__(self, name: str, settings: InputSettings, note: Callable[[str], None]) -> None:
        """Recognise an input.

        Args:
            name: A path, URL or glob.
            settings: How it is read.
            note: Called with a line about what is left out.

        Raises:
            UsageError: There is nothing there, or nothing that is read.
        """
        self.name = name
        self._settings = settings
        self._note = note
        self.files = self._found()
        self.is_images = is_read(self.files[0].location.name) if self.files else True

    def entries(self) -> Iterator[Entry]:
        """Iterate over the requests in order, or sorted by their images.

        Raises:
            DataError: A file cannot be read, or is not what its suffix says.
            UsageError: Its columns are not those of requests, or it cannot be sorted.
        """
        entries = self._entries()
        if self._settings.sort_by_image:
            entries = _sorted_by_image(entries, self.name)
        return _limited(entries, self._settings.limit)

    # -- what there is -----------------------------------------------------------------------------

    def _found(self) -> list[StoredFile]:
        """The files that are read; empty for images on local disk, which `find_images` lists."""
        place = Location(self.name)
        try:
            if self._is_pattern(place):
                files = _matching(place)
            elif place.kind() == "folder":
                files = list(place.files())
            else:
                files = [place.stored()]
        except FileNotFoundError:
            raise UsageError(f"{self.name}: there is no such file or folder; {ADVICE}") from None
        except OSError as error:
            raise unreadable(place, error) from None
        images = [file for file in files if is_read(file.location.name)]
        data = [file for file in files if file.location.suffix in DATA]
        if images:
            if data:
                self._note(
                    f"{self.name}: holds images, so {counted(len(data), 'file')} of requests are "
                    f"not read: {listed([file.location.name for file in data])}"
                )
            return [] if place.is_local else images
        suffixes = {file.location.suffix for file in data}
        if not data:
            raise UsageError(f"{self.name}: holds nothing that is read; {ADVICE}")
        if len(suffixes) > 1:
            raise UsageError(
                f"{self.name}: holds files of several kinds ({', '.join(sorted(suffixes))}); name "
                "one kind with a glob"
            )
        return data

    @staticmethod
    def _is_pattern(place: Location) -> bool:
        if place.is_local:
            return bool(_MARKS.search(place.name)) and not Path(place.name).exists()
        return bool(re.search(r"[*\[]", place.name.partition("?")[0]))

    # -- requests ----------------------------------------------------------------------------------

    def _entries(self) -> Iterator[Entry]:
        if not self.files:
            here = str(Path.cwd())
            for item in find_images([self.name], sys.stdin, self._note):
                yield RequestLine(item.image, item.image, here, image=item.image)
            return
        for file in self.files:
            try:
                yield from self._of_file(file)
            except OSError as error:
                if isinstance(error, DataError | UsageError):
                    raise
                raise unreadable(file.location, error) from None

    def _of_file(self, file: StoredFile) -> Iterator[Entry]:
        place, images = file.location, self._settings.images
        base = place.folder.name if images is None else images
        base = Location(base).absolute
        if is_read(place.name):
            return iter([RequestLine(place.name, place.name, base, image=place.name)])
        if place.suffix in LINES:
            return _json_lines(place, base)
        if place.suffix in CSV:
            return csv_lines(place, base, self._note)
        if place.suffix in PARQUET:
            return parquet_entries(file, base, self._settings.part_size, self._note)
        if place.suffix in COCO:
            return coco_lines(place, images, self._note, each=self._settings.each)
        return iter([StoredRows(place.name, file.version, weight=max(1, file.size))])


def _matching(pattern: Location) -> list[StoredFile]:
    """List the files that a glob matches; in storage, `*` also matches `/`."""
    if pattern.is_local:
        import glob

        found = sorted(glob.glob(pattern.name, recursive=True))  # noqa: PTH207
        return [Location(name).stored() for name in found if Path(name).is_file()]
    plain, mark, options = pattern.name.partition("?")
    top = plain[: plain.index(next(each for each in plain if each in "*["))].rpartition("/")[0]
    return [
        file
        for file in Location(top + mark + options).files()
        if fnmatch.fnmatchcase(file.location.name.partition("?")[0], quoted(plain))
    ]


def _json_lines(place: Location, base: str) -> Iterator[RequestLine]:
    for number, line in enumerate(place.lines(), start=1):
        text = line.decode("utf-8-sig" if number == 1 else "utf-8", "surrogateescape").strip()
        if text:
            yield RequestLine(f"line {number} of {place.name}", text, base)


def _limited(entries: Iterable[Entry], limit: int | None) -> Iterator[Entry]:
    """Return the first requests; archives are counted only where there is a limit."""
    left = limit
    for entry in entries:
        if left is None:
            yield entry
            continue
        if left <= 0:
            return
        if isinstance(entry, StoredRows):
            stop = entry.stop
            if stop is None:
                stop = count_samples(Location(entry.file), left)
            stop = min(stop, entry.start + left)
            left -= stop - entry.start
            yield replace(entry, stop=stop, weight=float(max(1, stop - entry.start)))
        else:
            left -= 1
            yield entry


def _sorted_by_image(entries: Iterable[Entry], name: str) -> Iterator[RequestLine]:
    """Sort requests by image and then by place, in a temporary file.

    Raises:
        UsageError: The requests hold their images.
    """
    database = sqlite3.connect("", isolation_level=None)
    try:
        for statement in (
            "PRAGMA synchronous = OFF",
            "PRAGMA journal_mode = OFF",
            "CREATE TABLE kept (image BLOB, number INTEGER, line TEXT)",
        ):
            database.execute(statement)
        for number, entry in enumerate(entries):
            if isinstance(entry, StoredRows):
                raise UsageError(
                    f"--sort-by-image: {name} holds its images, which stay with their rows; drop it"
                )
            key = f"{entry.base}\n{entry.image or image_name(entry.text)}"
            line = json.dumps([entry.where, entry.text, entry.base, entry.error])
            row = (key.encode("utf-8", "surrogateescape"), number, line)
            database.execute("INSERT INTO kept VALUES (?, ?, ?)", row)
        for (line,) in database.execute("SELECT line FROM kept ORDER BY image, number"):
            yield RequestLine(*json.loads(line))
    except sqlite3.Error as error:
        raise DataError(
            f"--sort-by-image: a temporary file cannot be written: {error}; free space, or name "
            "another folder with TMPDIR"
        ) from None
    finally:
        database.close()
