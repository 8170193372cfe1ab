"""The records of a run: read, checked against the model, and divided.

Nothing is computed before every record of every file is known to be usable.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from regionqa.bundles import Bundle
from regionqa.errors import DataError
from regionqa.finetune.datafiles import read_training_data
from regionqa.finetune.records import Record
from regionqa.finetune.samples import SampleMaker
from regionqa.finetune.stages import FinetuneSettings
from regionqa.tokenizer import BundleTokenizer

Say = Callable[[str], None]


@dataclass(frozen=True)
class RunData:
    """The records of a run, fitted to its model, and what is noted of their files."""

    align: tuple[Record, ...]
    instruct: tuple[Record, ...]
    replay: tuple[Record, ...]
    held_out: tuple[Record, ...]
    rehearsed: bool = False
    """Whether `replay` holds the base's own answers."""
    files: tuple[Mapping[str, Any], ...] = ()
    """Of every file: name, sha256, what it is for, records used, records left out."""

    def records(self, stage: str) -> tuple[Record, ...]:
        """What a stage trains on."""
        return self.align if stage == "align" else self.instruct

    def checked(self) -> "RunData":
        """The data itself; DataError where nothing is left to train on."""
        if not self.align or not self.instruct:
            raise DataError(
                "every picture of the training data is held out for measuring; name another "
                "--held-out, or lower --held-out-share"
            )
        return self


def sample_maker(base: Bundle) -> SampleMaker:
    """What turns records into samples for a bundle's model."""
    folder = base.card.language.folder
    return SampleMaker(base.card, BundleTokenizer(base.file(f"{folder}/tokenizer.json")))


def read_run_data(settings: FinetuneSettings, base: Bundle, say: Say) -> RunData:
    """All records of a run. DataError for the first file that cannot be used as it is."""
    reader = _Reader(settings, sample_maker(base), say)
    main = reader.read(settings.data, "training")
    align = reader.read(settings.align_data, "align") or main
    replay = reader.read(settings.replay, "replay")
    if settings.held_out:
        held_out = reader.read((settings.held_out,), "held out")
        kept = {record.image for record in held_out}
        return RunData(
            _without(align, kept), _without(main, kept), replay, held_out, files=tuple(reader.files)
        ).checked()
    held = held_out_pictures(main, settings.held_out_share, settings.seed)
    return RunData(
        _without(align, held),
        _without(main, held),
        replay,
        tuple(record for record in main if record.image in held),
        files=tuple(reader.files),
    ).checked()


class _Reader:
    """Reads files once each, and keeps account of them."""

    def __init__(self, settings: FinetuneSettings, maker: SampleMaker, say: Say) -> None:
        self._images = Path(settings.images) if settings.images else None
        self._skip_bad = settings.skip_bad
        self._maker = maker
        self._say = say
        self.files: list[dict[str, Any]] = []

    def read(self, names: Sequence[str], use: str) -> tuple[Record, ...]:
        """The usable records of some files, one after the other."""
        return tuple(record for name in names for record in self._read(Path(name), use))

    def _read(self, path: Path, use: str) -> list[Record]:
        data = read_training_data(path, self._images)
        records, misfits = self._maker.fitting(data.records)
        data = replace(data, records=tuple(records), problems=(*data.problems, *misfits)).or_stop(
            skip_bad=self._skip_bad
        )
        left_out = f", {data.bad:,} left out" if data.bad else ""
        self._say(f"{path}: {len(records):,} records of {len(data.pictures):,} pictures{left_out}")
        self.files.append(
            {
                "file": path.name,
                "sha256": data.sha256,
                "use": use,
                "records": len(records),
                "left_out": data.bad,
            }
        )
        return records


def held_out_pictures(records: Sequence[Record], share: float, seed: int) -> set[Path]:
    """A share of the pictures, the same ones for the same seed and names; at least one of many.

    Whole pictures are held out: two boxes of one photo are no independent question.
    """
    pictures = sorted({record.image for record in records})
    if share <= 0 or len(pictures) < 2:
        return set()

    def place(path: Path) -> str:
        return hashlib.sha256(f"{seed} {path.name}".encode()).hexdigest()

    return set(sorted(pictures, key=place)[: max(1, round(share * len(pictures)))])


def _without(records: Sequence[Record], pictures: set[Path]) -> tuple[Record, ...]:
    return tuple(record for record in records if record.image not in pictures)
