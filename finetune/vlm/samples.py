"""Training records as conversations with a vision-language model, with labels on answers.

A record is asked turn by turn, as `regionqa chat` asks: a region is known from the turn that first
names it. Every prompt is rendered, tokenized and given its images by the code of asking. Turns that
continue each other's tokens share one row; where the chat template rewrites earlier answers, or
boxes are drawn anew, a further record holds the later turns with the earlier ones as history.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from PIL import Image

from regionqa.backends.vlm.backend import RenderedVlmPrompt, VlmModel
from regionqa.backends.vlm.processor import PreparedImage, VlmProcessor
from regionqa.data.records import Problem, Record
from regionqa.errors import ImageError, QuestionError
from regionqa.finetune.batches.dataset import IGNORE_INDEX, single_turns
from regionqa.images.reading import InputImage, open_image
from regionqa.language.references import REFERENCE
from regionqa.regions import Box, Region
from regionqa.requests import HistoryTurn, Request
from regionqa.vlm.messages import Told, tell
from regionqa.vlm.region_images import ImagePart


@dataclass(frozen=True)
class AnsweredTurn:
    """The prompt of one turn, and its answer."""

    ids: tuple[int, ...]
    """Token ids of the whole prompt, earlier turns included."""
    images: tuple[ImagePart, ...]
    """The prompt's images."""
    answer: tuple[int, ...]
    """Token ids of the answer and of the stop that ends it."""

    def continues_in(self, later: "AnsweredTurn") -> bool:
        """Return whether a later prompt begins with this one and its answer."""
        own = self.ids + self.answer
        return later.ids[: len(own)] == own and later.images[: len(self.images)] == self.images


@dataclass(frozen=True)
class LabelledTurns:
    """The ids of a conversation, and labels on the answers of its last turns."""

    ids: tuple[int, ...]
    labels: tuple[int, ...]
    """As many, IGNORE_INDEX outside of answers."""
    first: int
    """Index of the first turn whose answer has labels."""


def label_turns(turns: Sequence[AnsweredTurn]) -> LabelledTurns:
    """Label the last answer, and those before it whose turns continue in the last prompt."""
    last = turns[-1]
    labels = [*[IGNORE_INDEX] * len(last.ids), *last.answer]
    first = len(turns) - 1
    for place in reversed(range(first)):
        turn = turns[place]
        if not turn.continues_in(last):
            break
        labels[len(turn.ids) : len(turn.ids) + len(turn.answer)] = turn.answer
        first = place
    return LabelledTurns(last.ids + last.answer, tuple(labels), first)


def known_regions(record: Record) -> list[int]:
    """Return the number of regions that are known at each turn.

    Those that no turn names are known from the first on.
    """
    named = [{int(digits) for digits in REFERENCE.findall(t.question)} for t in record.turns]
    unnamed = set(range(1, len(record.regions) + 1)).difference(*named)
    known, counts = max(unnamed, default=0), []
    for numbers in named:
        known = max([known, *numbers])
        counts.append(known)
    return counts


def answer_text(answer: str) -> str:
    """Return an answer as the model writes it: `<region1>` as "region 1"."""
    return REFERENCE.sub(lambda reference: f"region {reference[1]}", answer).strip()


class ConversationBuilder:
    """Makes the prompts and answers of records for one checkpoint."""

    def __init__(
        self, base: VlmModel, processor: VlmProcessor, stop: int, context: int | None
    ) -> None:
        """Use a checkpoint's processor.

        Args:
            base: The checkpoint, with the way of telling regions.
            processor: Its processor.
            stop: Id of the token that ends an answer.
            context: Number of positions of its language model; None: not known.
        """
        self.card = base.card
        self.processor = processor
        self._way = base.way
        self._stop = stop
        self._context = context

    def prompts(
        self, record: Record, image: InputImage, boxes: Sequence[Box] | None = None
    ) -> list[RenderedVlmPrompt]:
        """Render the prompt of every turn; room is left for its answer.

        Args:
            record: The record.
            image: Its image; only the size is read.
            boxes: Jittered boxes in place of the record's own.

        Raises:
            QuestionError: A question or an answer cannot be given to the model.
        """
        regions = tuple(map(Region, boxes)) if boxes else record.regions
        counts = known_regions(record)
        if len(regions) > self.card.max_regions:
            raise QuestionError(
                f"{len(regions)} regions in one record, the model {self.card.name} takes "
                f"{self.card.max_regions}; split the record"
            )
        history: list[HistoryTurn] = []
        prompts = []
        for turn, known in zip(record.turns, counts, strict=True):
            self.processor.check_text(turn.question)
            self.processor.check_text(turn.answer, "the answer")
            request = Request(
                image.name, turn.question, regions[:known], image, history=tuple(history)
            )
            told = tell(self.card, request, self._way, self.processor.resized)
            text = self.processor.render(told.messages)
            length = len(self.answer_ids(turn.answer, text, self._small(told)))
            prompts.append(RenderedVlmPrompt(told, text, length))
            history.append(HistoryTurn(turn.question, turn.answer, known))
        return prompts

    def answer_ids(
        self, answer: str, prompt: str, images: Sequence[PreparedImage]
    ) -> tuple[int, ...]:
        """Encode an answer and the stop that ends it; see `VlmProcessor.answer_ids`."""
        return tuple(self.processor.answer_ids(answer_text(answer), self._stop, prompt, images))

    def fitting(self, records: Iterable[Record]) -> tuple[list[Record], list[Problem]]:
        """Return the records that the model can take, and the problems of the others.

        A record whose turns do not continue each other's tokens becomes several.
        """
        good: list[Record] = []
        problems: list[Problem] = []
        for record in records:
            parts = [record] if self.card.chat.multi_turn else single_turns(record)
            try:
                good += [each for part in parts for each in self._rows(part)]
            except (QuestionError, ImageError) as error:
                problems.append(Problem(record.where, str(error)))
        return good, problems

    def _rows(self, record: Record) -> list[Record]:
        """Split a record so that every answer has labels in exactly one row."""
        prompts = self.prompts(record, open_image(record.image))
        turns = [
            AnsweredTurn(
                self._ids(prompt),
                prompt.told.images,
                self.answer_ids(turn.answer, prompt.text, self._small(prompt.told)),
            )
            for prompt, turn in zip(prompts, record.turns, strict=True)
        ]
        rows: list[Record] = []
        end = len(turns)
        while end:
            rows.append(
                replace(
                    record,
                    turns=record.turns[:end],
                    regions=record.regions[: known_regions(record)[end - 1]],
                )
            )
            end = label_turns(turns[:end]).first
        return rows[::-1]

    def _ids(self, prompt: RenderedVlmPrompt) -> tuple[int, ...]:
        """Tokenize a prompt whose images are not processed yet: all are as long as a small one."""
        ids = self.processor.tokenize(prompt.text, self._small(prompt.told)).ids
        if self._context is not None and len(ids) + prompt.max_new_tokens > self._context:
            raise QuestionError(
                f"questions and answers take over {len(ids)} tokens, the model {self.card.name} "
                f"reads {self._context}; split the record or shorten it"
            )
        return ids

    def _small(self, told: Told) -> list[PreparedImage]:
        return [self._small_image] * len(told.images)

    @cached_property
    def _small_image(self) -> PreparedImage:
        return self.processor.prepare(Image.new("RGB", (256, 256)))
