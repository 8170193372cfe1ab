"""Mixtures of data files with weights, limits and stages.

[[source]]
file = "refcoco.jsonl"
weight = 0.5
stage = "align"
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from importlib.resources import files
from pathlib import Path
from typing import Any

from regionqa.data.records import Record
from regionqa.errors import BundleError, DataError, UsageError
from regionqa.files import is_folder
from regionqa.schema import from_table, read_toml

SUFFIX = ".toml"


class MixtureStage(StrEnum):
    """The stages that a source is trained on in."""

    align = "align"
    instruct = "instruct"
    both = "both"


@dataclass(frozen=True, kw_only=True)
class MixtureSource:
    """A data file of a mixture."""

    file: str
    """Relative to the mixture's folder."""
    stage: MixtureStage = MixtureStage.both
    weight: float = 1.0
    """How often each record is seen in a pass over the mixture; 0.5: half of the records are."""
    cap: int | None = None
    """Most records that are taken from the file, drawn at random."""
    images: str | None = None
    """Folder of its images, relative to the mixture's; None: as without a mixture."""
    command: str = ""
    """The command that makes the file, which is told where it is missing."""

    def __post_init__(self) -> None:
        if not self.file:
            raise UsageError("file is empty; name a data file")
        if not 0 < self.weight < float("inf"):
            raise UsageError(f"weight is {self.weight}; it must be above 0")
        if self.cap is not None and self.cap < 1:
            raise UsageError(f"cap is {self.cap}; it must be 1 or more")

    def trains(self, stage: str) -> bool:
        """Whether a stage trains on it."""
        return self.stage in (MixtureStage.both, stage)


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """The sources of a mixture, in order."""

    source: tuple[MixtureSource, ...]

    def __post_init__(self) -> None:
        if not self.source:
            raise UsageError("names no source; add a table [[source]] with a file")


def read_mixture(path: Path) -> Mixture:
    """Read a mixture, whose files must exist.

    Args:
        path: The TOML file. Relative names in it become relative to the current folder.

    Raises:
        UsageError: It cannot be read, or a key or value is wrong.
        DataError: A file or folder of images does not exist.
    """
    try:
        table = read_toml(path)
    except FileNotFoundError:
        raise UsageError(
            f"{path}: there is no such file; those of the papers are written by: "
            "regionqa data mixtures NAME"
        ) from None
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: cannot be read as a mixture: {error}") from error
    try:
        mixture = from_table(Mixture, table, str(path))
    except (BundleError, UsageError) as error:
        text = str(error)
        raise UsageError(text if text.startswith(str(path)) else f"{path}: {text}") from error
    return Mixture(source=tuple(_placed(source, path) for source in mixture.source))


def _placed(source: MixtureSource, path: Path) -> MixtureSource:
    file = path.parent / source.file
    if not file.exists():
        how = f"; make it with: {source.command}" if source.command else "; correct its name"
        raise DataError(f"{path}: its source {file} does not exist{how}")
    images = path.parent / source.images if source.images else None
    if images is not None and not is_folder(images):
        raise DataError(f"{path}: there is no folder {images} of images; correct its name")
    return MixtureSource(
        file=str(file), stage=source.stage, weight=source.weight, cap=source.cap,
        images=str(images) if images else None, command=source.command,
    )  # fmt: skip


def capped(records: Sequence[Record], source: MixtureSource, seed: int) -> list[Record]:
    """Draw at most `cap` records of a source, in file order."""
    return _drawn(records, len(records) if source.cap is None else source.cap, source, seed)


def weighted(records: Sequence[Record], source: MixtureSource, seed: int) -> list[Record]:
    """Return records as often as a source's weight says, in file order; a fraction is drawn."""
    whole, part = divmod(source.weight, 1)
    drawn = _drawn(records, round(part * len(records)), source, seed)
    return [*records] * int(whole) + drawn


def _drawn(records: Sequence[Record], count: int, source: MixtureSource, seed: int) -> list[Record]:
    """Draw records; the same wherever the file lies."""
    if count >= len(records):
        return [*records]
    chosen = random.Random(f"{seed}:{Path(source.file).name}").sample(range(len(records)), count)
    return [records[index] for index in sorted(chosen)]


# -- the mixtures that ship ------------------------------------------------------------------------


def shipped_mixtures() -> dict[str, str]:
    """Return the text of the papers' mixtures by name."""
    found: dict[str, Any] = {
        each.name: each for each in files("regionqa.data.mixtures").iterdir()
        if each.name.endswith(SUFFIX)
    }  # fmt: skip
    return {name.removesuffix(SUFFIX): found[name].read_text("utf-8") for name in sorted(found)}
