"""Training records -> token ids with labels, through the prompt renderer that asking uses.

Labels stand only on answers and on the stop that ends each. Nothing here opens a picture.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from regionqa.cards import ModelCard
from regionqa.errors import QuestionError
from regionqa.finetune.records import Problem, Record
from regionqa.promptids import Before, answer_ids, tokenize
from regionqa.prompts import REFERENCE, render_conversation
from regionqa.regions import Box
from regionqa.tokenizer import BundleTokenizer
from regionqa.wording import renumber

IGNORED = -100
"""Label of positions that are not learned."""


@dataclass(frozen=True)
class Sample:
    """One record as the language model reads it.

    input_ids: all ids; those in slots mean nothing. labels: as many, IGNORED where not learned.
    region_starts: (position, region index) of every region slot, in reading order.
    boxes: in pixels of the picture as displayed, noise included.
    """

    record: Record
    boxes: tuple[Box, ...]
    input_ids: tuple[int, ...]
    labels: tuple[int, ...]
    image_start: int
    region_starts: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class SampleMaker:
    """What turns records into samples for one model."""

    card: ModelCard
    tokenizer: BundleTokenizer

    def sample(
        self, record: Record, size: tuple[int, int], boxes: Sequence[Box] | None = None
    ) -> Sample:
        """The record as ids and labels; QuestionError where the model cannot take it.

        size: the picture's width and height. boxes: shifted boxes in place of the record's own.
        """
        placed = tuple(boxes or (region.box for region in record.regions))
        width, height = size
        fractions = [(b.x0 / width, b.y0 / height, b.x1 / width, b.y1 / height) for b in placed]
        questions = [turn.question for turn in record.turns]
        special = self.tokenizer.special_tokens
        rendered = render_conversation(self.card.prompt, questions, fractions, special)
        region_tokens = self.card.region.tokens if self.card.region else 0
        stop_is_token = self.card.language.stop[0] in special
        following = Before.token if stop_is_token else Before.text
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
                before=following if position else Before.nothing,
            )
            if position == 0:
                image_start = prompt.image_start
            region_starts += [(len(ids) + start, index) for start, index in prompt.region_starts]
            answer = self.answer_ids(turn.answer)
            labels += [IGNORED] * len(prompt.input_ids) + answer
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


def shifted(box: Box, noise: float, width: float, height: float, rng: np.random.Generator) -> Box:
    """The box with each edge moved by up to `noise` of its width or height, inside the picture.

    PVIT's augmentation (arXiv 2308.13437, training scripts); noise below 0.5 keeps edges apart.
    """
    sides = np.array([box.width, box.height] * 2)
    moved = np.array(box.xyxy) + rng.uniform(-noise, noise, 4) * sides
    x0, y0, x1, y1 = np.clip(moved, 0, [width, height] * 2).tolist()
    return Box(x0, y0, x1, y1)
