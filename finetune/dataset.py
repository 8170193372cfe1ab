"""Training records -> token ids with labels, through the prompt renderer that asking uses.

Labels stand only on answers and on the stop that ends each. Nothing here opens an image.
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from regionqa.bundles.card import ModelCard
from regionqa.bundles.store import Bundle
from regionqa.data.files import read_training_data
from regionqa.data.records import Problem, Record
from regionqa.errors import DataError, QuestionError
from regionqa.finetune.config import FinetuneSettings
from regionqa.language.prompts import REFERENCE, render_conversation, renumber
from regionqa.language.tokenization import BundleTokenizer, Preceding, answer_ids, tokenize
from regionqa.regions import Box

IGNORE_INDEX = -100
"""Label of positions that are not learned."""


@dataclass(frozen=True)
class Sample:
    """One record as the language model reads it.

    input_ids: all ids; those in slots mean nothing. labels: as many, IGNORED where not learned.
    region_starts: (position, region index) of every region slot, in reading order.
    boxes: in pixels of the image as displayed, noise included.
    """

    record: Record
    boxes: tuple[Box, ...]
    input_ids: tuple[int, ...]
    labels: tuple[int, ...]
    image_start: int
    region_starts: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class SampleBuilder:
    """What turns records into samples for one model."""

    card: ModelCard
    tokenizer: BundleTokenizer

    def sample(
        self, record: Record, size: tuple[int, int], boxes: Sequence[Box] | None = None
    ) -> Sample:
        """The record as ids and labels; QuestionError where the model cannot take it.

        size: the image's width and height. boxes: shifted boxes in place of the record's own.
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
        image_start = 0
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
                image_start = prompt.image_start
            region_starts += [(len(ids) + start, index) for start, index in prompt.region_starts]
            answer = self.answer_ids(turn.answer)
            labels += [IGNORE_INDEX] * len(prompt.input_ids) + answer
            ids += [*prompt.input_ids, *answer]
        self.check(record, len(ids))
        return Sample(record, placed, tuple(ids), tuple(labels), image_start, tuple(region_starts))

    def answer_ids(self, answer: str) -> list[int]:
        """Ids of an answer and of the first stop of the card, which ends it."""
        stop = self.card.language.stop[0]
        return answer_ids(self.card.prompt, answer, stop, self.tokenizer)

    def check(self, record: Record, length: int) -> None:
        """QuestionError where the record has more regions or tokens than the model takes."""
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
        """The records as the model can take them, and what is wrong with those it cannot.

        Where the model knows one question at a time, every turn becomes a record of its own.
        """
        good: list[Record] = []
        problems: list[Problem] = []
        for record in records:
            parts = [record] if self.card.prompt.turn else single_turns(record)
            try:
                for part in parts:
                    # fractions do not change how many ids there are by much; size is not known yet
                    self.sample(part, (1000, 1000))
            except QuestionError as error:
                problems.append(Problem(record.where, str(error)))
            else:
                good += parts
        return good, problems


def single_turns(record: Record) -> list[Record]:
    """Every turn as a record of its own, with the regions it names (all where it names none)."""
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
    """The box with each edge moved by up to `noise` of its width or height, inside the image.

    PVIT's augmentation (arXiv 2308.13437, training scripts); noise below 0.5 keeps edges apart.
    """
    sides = np.array([box.width, box.height] * 2)
    moved = np.array(box.xyxy) + rng.uniform(-noise, noise, 4) * sides
    x0, y0, x1, y1 = np.clip(moved, 0, [width, height] * 2).tolist()
    return Box(x0, y0, x1, y1)


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
                "every image of the training data is held out for measuring; name another "
                "--held-out, or lower --held-out-share"
            )
        return self


def sample_builder(base: Bundle) -> SampleBuilder:
    """What turns records into samples for a bundle's model."""
    folder = base.card.language.folder
    return SampleBuilder(base.card, BundleTokenizer(base.file(f"{folder}/tokenizer.json")))


def read_run_data(settings: FinetuneSettings, base: Bundle, say: Say) -> RunData:
    """All records of a run. DataError for the first file that cannot be used as it is."""
    reader = _Reader(settings, sample_builder(base), say)
    main = reader.read(settings.data, "training")
    align = reader.read(settings.align_data, "align") or main
    replay = reader.read(settings.replay, "replay")
    if settings.held_out:
        held_out = reader.read((settings.held_out,), "held out")
        kept = {record.image for record in held_out}
        return RunData(
            _without(align, kept), _without(main, kept), replay, held_out, files=tuple(reader.files)
        ).checked()
    held = held_out_images(main, settings.held_out_share, settings.seed)
    return RunData(
        _without(align, held),
        _without(main, held),
        replay,
        tuple(record for record in main if record.image in held),
        files=tuple(reader.files),
    ).checked()


class _Reader:
    """Reads files once each, and keeps account of them."""

    def __init__(self, settings: FinetuneSettings, maker: SampleBuilder, say: Say) -> None:
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
        self._say(f"{path}: {len(records):,} records of {len(data.images):,} images{left_out}")
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


def held_out_images(records: Sequence[Record], share: float, seed: int) -> set[Path]:
    """A share of the images, the same ones for the same seed and names; at least one of many.

    Whole images are held out: two boxes of one photo are no independent question.
    """
    images = sorted({record.image for record in records})
    if share <= 0 or len(images) < 2:
        return set()

    def place(path: Path) -> str:
        return hashlib.sha256(f"{seed} {path.name}".encode()).hexdigest()

    return set(sorted(images, key=place)[: max(1, round(share * len(images)))])


def _without(records: Sequence[Record], images: set[Path]) -> tuple[Record, ...]:
    return tuple(record for record in records if record.image not in images)
