"""Webdataset archives: tar files in which files of one name, but for the suffix, are a sample."""

import tarfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from regionqa.batch.storage import Location, unreadable
from regionqa.batch.tables import KNOWN, SIZE
from regionqa.boxes.fields import parse_json
from regionqa.errors import DataError
from regionqa.images.kinds import is_read
from regionqa.pipeline.items import listed


@dataclass
class ArchiveSample:
    """A sample: the image and the request of files that share a name."""

    key: str
    """Path of the sample in the archive, without suffix."""
    image: str | None = None
    """Name of the image's file in the archive."""
    content: bytes | None = None
    """The image's file."""
    document: dict[str, Any] = field(default_factory=dict)
    """What the sample's `.json` says of a request."""
    error: str | None = None
    """Why there can be no request."""


def read_samples(
    place: Location, start: int, stop: int | None, warn: Callable[[str], None]
) -> Iterator[ArchiveSample]:
    """Read samples one after the other, in memory of one.

    Args:
        place: The archive.
        start: The first sample.
        stop: The sample after the last; None: all.
        warn: Called with lines that name the files and keys that are not used.

    Raises:
        DataError: It cannot be read, or is no tar archive.
    """
    unused: Counter[str] = Counter()
    keys: Counter[str] = Counter()
    for number, sample in enumerate(_samples(place, unused, keys)):
        if stop is not None and number >= stop:
            break
        if number >= start:
            yield sample
    if unused:
        warn(f"{place.name}: files that are not used: {_counts(unused)}")
    if keys:
        warn(f"{place.name}: keys of .json that are not used: {_counts(keys)}")


def count_samples(place: Location, most: int) -> int:
    """Count the samples of an archive, up to a number; errors as of `read_samples`."""
    count = 0
    for _ in _samples(place, Counter(), Counter()):
        count += 1
        if count >= most:
            break
    return count


def _counts(counter: Counter[str]) -> str:
    return listed([f"{name} ({count:,})" for name, count in counter.most_common()])


def _samples(place: Location, unused: Counter[str], keys: Counter[str]) -> Iterator[ArchiveSample]:
    sample: ArchiveSample | None = None
    try:
        with place.open() as stream, tarfile.open(fileobj=stream, mode="r:") as archive:
            for member in archive:
                if not member.isreg() or member.name.rpartition("/")[2].startswith("."):
                    continue
                folder, slash, file = member.name.rpartition("/")
                stem, _, suffix = file.partition(".")
                key = f"{folder}{slash}{stem}"
                if sample is None or sample.key != key:
                    if sample is not None:
                        yield sample
                    sample = ArchiveSample(key)
                taken = archive.extractfile(member)
                assert taken is not None  # it is a regular file
                _add(sample, member.name, suffix, taken.read, (unused, keys))
    except tarfile.TarError as error:
        raise DataError(
            f"{place.name}: is no tar archive: {error}; a compressed one must be unpacked first"
        ) from None
    except OSError as error:
        raise unreadable(place, error) from None
    if sample is not None:
        yield sample


def _add(
    sample: ArchiveSample,
    name: str,
    suffix: str,
    read: Callable[[], bytes],
    counts: tuple[Counter[str], Counter[str]],
) -> None:
    unused, keys = counts
    if is_read(name) and sample.content is None:
        sample.image, sample.content = name, read()
    elif suffix.lower() == "json":
        try:
            document = parse_json(read().decode("utf-8-sig"))
        except ValueError as error:
            sample.error = f"{name}: is not JSON: {error}"
            return
        if not isinstance(document, dict):
            sample.error = f"{name}: is no JSON object"
            return
        known = {key for key in KNOWN if key != "image"} | {*SIZE}
        keys.update(key for key in document if key not in known)
        sample.document = {key: value for key, value in document.items() if key in known}
    else:
        unused[f".{suffix}"] += 1
