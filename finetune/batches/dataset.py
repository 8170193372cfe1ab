"""Training records as token ids with labels, and the records of a run.

Prompts are rendered as for asking. Only answers, and the stop that ends each, have labels.
"""

import hashlib
import shlex
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from regionqa.bundles.card import ModelCard
from regionqa.bundles.store import Bundle
from regionqa.data.files import read_training_data
from regionqa.data.mixtures.reading import MixtureSource, capped, read_mixture, weighted
from regionqa.data.records import Problem, Record
from regionqa.errors import DataError, QuestionError, UsageError
from regionqa.finetune.config import FinetuneSettings
from regionqa.finetune.schedule.plan import share_to_hold_out
from regionqa.language.prompts import render_conversation
from regionqa.language.references import REFERENCE, renumber
from regionqa.language.tokenization import BundleTokenizer, Preceding, answer_ids, tokenize
from regionqa.regions import Box

IGNORE_INDEX = -100
"""Label of positions without a loss."""


@dataclass(frozen=True)
class Sample:
    """One record as the language model reads it.

    Attributes:
        record: The record.
        boxes: In pixels of the image as displayed, after jitter.
        input_ids: Token ids; those in slots are placeholders.
        labels: As many, IGNORE_INDEX outside of answers.
        image_start: Position of the first image token.
        region_starts: (position, region index) of every region slot, in reading order.
        shared: Length of the prefix that all samples of an image share; see `Prompt.shared`.
    """

    record: Record
    boxes: tuple[Box, ...]
    input_ids: tuple[int, ...]
    labels: tuple[int, ...]
    image_start: int
    region_starts: tuple[tuple[int, int], ...]
    shared: int


@dataclass(frozen=True)
class SampleBuilder:
    """Build samples from records for one model."""

    card: ModelCard
    tokenizer: BundleTokenizer

    def sample(
        self, record: Record, size: tuple[int, int], boxes: Sequence[Box] | None = None
    ) -> Sample:
        """Encode a record as ids and labels.

        Args:
            record: The record.
            size: Width and height of its image.
            boxes: Jittered boxes in place of the record's own.

        Raises:
            QuestionError: The record has more regions or tokens than the model takes.
        """
        placed = tuple(boxes or (region.box for region in record.regions))
        width, height = size
        fractions = [(b.x0 / width, b.y0 / height, b.x1 / width, b.y1 / height) for b in placed]
        questions = [turn.question for turn in record.turns]
        special = self.tokenizer.special_tokens
        rendered = render_conversation(self.card.prompt, questions, fractions, special)
        region_tokens = self.card.region.tokens if self.card.region else 0
        stop_is_token = self.card.language.stop[0] in special
        following = Preceding.token if stop_is_token else Preceding.text
        ids: list[int] = []
        labels: list[int] = []
        image_start, shared = 0, 0
        region_starts: list[tuple[int, int]] = []
        for position, (pieces, turn) in enumerate(zip(rendered, record.turns, strict=True)):
            prompt = tokenize(
                pieces,
                self.tokenizer,
                self.card.vision.image_tokens,
                region_tokens,
                before=following if position else Preceding.nothing,
            )
            if position == 0:
                image_start, shared = prompt.image_start, prompt.shared
            region_starts += [(len(ids) + start, index) for start, index in prompt.region_starts]
            answer = self.answer_ids(turn.answer)
            labels += [IGNORE_INDEX] * len(prompt.input_ids) + answer
            ids += [*prompt.input_ids, *answer]
        self.check(record, len(ids))
        return Sample(
            record, placed, tuple(ids), tuple(labels), image_start, tuple(region_starts), shared
        )

    def answer_ids(self, answer: str) -> list[int]:
        """Encode an answer and the stop that ends it."""
        stop = self.card.language.stop[0]
        return answer_ids(self.card.prompt, answer, stop, self.tokenizer)

    def check(self, record: Record, length: int) -> None:
        """Raise QuestionError where a record has more regions or tokens than the model takes."""
        if len(record.regions) > self.card.max_regions:
            raise QuestionError(
                f"{len(record.regions)} regions in one record, the model {self.card.name} takes "
                f"{self.card.max_regions}; split the record"
            )
        if length > self.card.language.context:
            raise QuestionError(
                f"questions and answers take {length} tokens, the model {self.card.name} reads "
                f"{self.card.language.context}; split the record or shorten it"
            )

    def fitting(self, records: Iterable[Record]) -> tuple[list[Record], list[Problem]]:
        """Return the records that the model can take, and the problems of the others.

        Where its prompt has no further turns, every turn becomes a record of its own.
        """
        good: list[Record] = []
        problems: list[Problem] = []
        for record in records:
            parts = [record] if self.card.prompt.turn else single_turns(record)
            try:
                for part in parts:
                    # the size is not known yet; it hardly changes the number of ids
                    self.sample(part, (1000, 1000))
            except QuestionError as error:
                problems.append(Problem(record.where, str(error)))
            else:
                good += parts
        return good, problems


def single_turns(record: Record) -> list[Record]:
    """Split a record by turns, each with the regions that it names, or all if it names none."""
    if len(record.turns) == 1:
        return [record]
    return [_one_turn(record, position) for position in range(len(record.turns))]


def _one_turn(record: Record, position: int) -> Record:
    turn = record.turns[position]
    named = [int(number) for number in REFERENCE.findall(turn.question)]
    kept = sorted({n for n in named if 1 <= n <= len(record.regions)})
    if not kept:
        return replace(record, turns=(turn,))
    question, answer = (renumber(text, kept) for text in (turn.question, turn.answer))
    return replace(
        record,
        regions=tuple(record.regions[number - 1] for number in kept),
        turns=(replace(turn, question=question, answer=answer),),
    )


def jitter_box(
    box: Box, noise: float, width: float, height: float, rng: np.random.Generator
) -> Box:
    """Move each edge of a box by up to `noise` of its width or height, inside the image.

    PVIT's augmentation (arXiv 2308.13437, training scripts); noise below 0.5 keeps edges apart.
    """
    sides = np.array([box.width, box.height] * 2)
    moved = np.array(box.xyxy) + rng.uniform(-noise, noise, 4) * sides
    x0, y0, x1, y1 = np.clip(moved, 0, [width, height] * 2).tolist()
    return Box(x0, y0, x1, y1)


Say = Callable[[str], None]


@dataclass(frozen=True)
class RunData:
    """The records of a run, fitted to its model, and the description of their files."""

    align: tuple[Record, ...]
    instruct: tuple[Record, ...]
    replay: tuple[Record, ...]
    held_out: tuple[Record, ...]
    rehearsed: bool = False
    """Whether `replay` holds the base's own answers."""
    files: tuple[Mapping[str, Any], ...] = ()
    """For every file: name, sha256, use, records used and left out."""
    digests: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """For every use of a file: a digest of each record, with which a resumed run compares."""

    def records(self, stage: str) -> tuple[Record, ...]:
        """Return the records that a stage trains on."""
        return self.align if stage == "align" else self.instruct

    def boxes(self) -> dict[Path, tuple[Box, ...]]:
        """Return the boxes of all records by image, each once."""
        found: dict[Path, dict[Box, None]] = defaultdict(dict)
        for record in chain(self.align, self.instruct, self.replay, self.held_out):
            found[record.image].update((region.box, None) for region in record.regions)
        return {image: tuple(boxes) for image, boxes in found.items()}

    def checked(self) -> "RunData":
        """Return the data itself; DataError where nothing is left to train on."""
        if not self.align or not self.instruct:
            raise DataError(
                "every image of the training data is held out for evaluation; choose another "
                "--held-out, or lower --held-out-share"
            )
        return self


class FitsRecords(Protocol):
    """What knows which records a model can learn from."""

    def fitting(self, records: Iterable[Record]) -> tuple[list[Record], list[Problem]]:
        """Return the records that the model can take, and the problems of the others."""


def sample_builder(base: Bundle) -> SampleBuilder:
    """Make the sample builder of a bundle."""
    folder = base.card.language.folder
    return SampleBuilder(base.card, BundleTokenizer(base.file(f"{folder}/tokenizer.json")))


def read_run_data(settings: FinetuneSettings, builder: FitsRecords, say: Say) -> RunData:
    """Read all records of a run; DataError for the first file that cannot be used."""
    reader = _Reader(settings, builder, say)
    if settings.mixture is not None:
        return _read_mixture(settings, reader)
    main = reader.read(settings.data, "training")
    align = reader.read(settings.align_data, "align") or main
    replay = reader.read(settings.replay, "replay")
    if settings.held_out:
        held_out = reader.read((settings.held_out,), "held out")
        kept = {record.image for record in held_out}
        return RunData(
            _without(align, kept),
            _without(main, kept),
            replay,
            held_out,
            files=tuple(reader.files),
            digests=reader.digests,
        ).checked()
    held = held_out_images(main, settings)
    return RunData(
        _without(align, held),
        _without(main, held),
        replay,
        tuple(record for record in main if record.image in held),
        files=tuple(reader.files),
        digests=reader.digests,
    ).checked()


def _read_mixture(settings: FinetuneSettings, reader: "_Reader") -> RunData:
    """Read the sources of a mixture; whole images are held out of all of them."""
    path, seed = Path(str(settings.mixture)), settings.seed
    sources = read_mixture(path).source
    for stage in settings.run:
        if not any(source.trains(stage) for source in sources):
            raise UsageError(
                f"{path}: has no source for the stage {stage}; add one, or run the other with "
                "--stage"
            )
    found = [reader.read_source(n, source, seed) for n, source in enumerate(sources, 1)]
    replay = reader.read(settings.replay, "replay")
    every = tuple(record for records in found for record in records)
    if settings.held_out:
        held_out = reader.read((settings.held_out,), "held out")
        images = {record.image for record in held_out}
    else:
        images = held_out_images(every, settings)
        held_out = tuple(dict.fromkeys(record for record in every if record.image in images))

    def of_stage(stage: str) -> tuple[Record, ...]:
        used = [records for source, records in zip(sources, found, strict=True)
                if source.trains(stage)]  # fmt: skip
        return _without([record for records in used for record in records], images)

    align, instruct = of_stage("align"), of_stage("instruct")
    return RunData(
        align if "align" in settings.run else instruct,
        instruct if "instruct" in settings.run else align,
        replay,
        held_out,
        files=tuple(reader.files),
        digests=reader.digests,
    ).checked()


class _Reader:
    """Read files of records and describe them."""

    def __init__(self, settings: FinetuneSettings, builder: FitsRecords, say: Say) -> None:
        self._images = Path(settings.images) if settings.images else None
        self._skip_bad = settings.skip_bad
        model = f" --model {shlex.quote(settings.model)}" if settings.model != "starter" else ""
        folder = f" --images {shlex.quote(settings.images)}" if settings.images else ""
        self._check = folder + model
        self._builder = builder
        self._say = say
        self.files: list[dict[str, Any]] = []
        self.digests: dict[str, tuple[str, ...]] = {}

    def read(self, names: Sequence[str], use: str) -> tuple[Record, ...]:
        """Read the usable records of several files."""
        return tuple(record for name in names for record in self._read(Path(name), use))

    def read_source(self, number: int, source: MixtureSource, seed: int) -> list[Record]:
        """Read the records of a mixture's source, as often as its weight says."""
        images = Path(source.images) if source.images else self._images

        def select(records: Sequence[Record]) -> list[Record]:
            return weighted(capped(records, source, seed), source, seed)

        use = f"source {number} of the mixture, {source.stage}"
        return self._read(Path(source.file), use, images, select)

    def _read(
        self,
        path: Path,
        use: str,
        images: Path | None = None,
        select: Callable[[Sequence[Record]], list[Record]] = list,
    ) -> list[Record]:
        data = read_training_data(path, images or self._images)
        for warning in data.remarks:
            self._say(f"warning: {warning}")
        records, misfits = self._builder.fitting(data.records)
        data = replace(data, records=tuple(records), problems=(*data.problems, *misfits)).or_stop(
            skip_bad=self._skip_bad, check=self._check
        )
        usable = len(records)
        records = select(records)
        digests = tuple(map(record_digest, records))
        self.digests[f"{use}: {path.name}"] = digests
        left_out = f", {data.bad:,} left out" if data.bad else ""
        taken = "" if len(records) == usable else f", of {usable:,} in the file"
        self._say(
            f"{path}: {len(records):,} records of {len(data.images):,} images{taken}{left_out}"
        )
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


def record_digest(record: Record) -> str:
    """Digest of what a record teaches: 16 hexadecimal digits."""
    boxes = [region.box.xyxy for region in record.regions]
    content = repr((record.image.name, boxes, record.turns))
    return hashlib.blake2b(content.encode("utf-8", "backslashreplace"), digest_size=8).hexdigest()


def held_out_images(records: Sequence[Record], settings: FinetuneSettings) -> set[Path]:
    """Choose a share of the images by seed and file name, at least one of several.

    Whole images are held out, because boxes of one image are not independent questions.
    """
    images = sorted({record.image for record in records})
    share = share_to_hold_out(settings, len(images))
    if share <= 0 or len(images) < 2:
        return set()

    def rank(path: Path) -> str:
        return hashlib.sha256(f"{settings.seed} {path.name}".encode()).hexdigest()

    return set(sorted(images, key=rank)[: max(1, round(share * len(images)))])


def _without(records: Sequence[Record], images: set[Path]) -> tuple[Record, ...]:
    return tuple(record for record in records if record.image not in images)
