"""The stage that answers: requests with their images to the records of `caption`."""

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from regionqa.batch.reading import ImageRequests
from regionqa.engine import Engine
from regionqa.errors import ItemError
from regionqa.options import GenerationOptions, OutputFormat, RuntimeOptions
from regionqa.pipeline.inputs import AskSettings, make_requests
from regionqa.pipeline.items import item_of_line
from regionqa.pipeline.outputs import OutputSettings, as_json, encode
from regionqa.requests import Answer, Request


@dataclass(frozen=True)
class AnswerSettings:
    """All that an answer depends on besides its request, and how it is written."""

    ask: AskSettings
    generation: GenerationOptions
    runtime: RuntimeOptions
    model: str
    """Name of the model, as records hold it."""
    revision: str
    """Revision of the model, with what limits its answers."""
    timing: bool = False
    confidence: bool = False

    @property
    def described(self) -> dict[str, Any]:
        """What parts of one output have in common, by names that a user knows."""
        generation = self.generation
        return {
            "model": self.model,
            "revision": self.revision,
            "question": self.ask.question,
            "region question": self.ask.region_question,
            "each": self.ask.each,
            "boxes": [[*box.values, box.format, box.units] for box in self.ask.boxes],
            "way": self.runtime.way,
            "dtype": self.runtime.dtype,
            "quantize": self.runtime.quantize,
            "server": self.runtime.server is not None,
            "max-new-tokens": generation.max_new_tokens,
            "unsure-below": generation.threshold,
            "temperature": generation.temperature,
            "seed": generation.seed,
            "choices": list(generation.allowed),
            "timing": self.timing,
            "confidence": self.confidence,
        }

    @property
    def digest(self) -> str:
        """Digest of `described`."""
        return hashlib.sha256(json.dumps(self.described, sort_keys=True).encode()).hexdigest()

    def output(self, engine: Engine) -> OutputSettings:
        """Return how records are written, with the facts about a loaded model."""
        return OutputSettings(
            format=OutputFormat.jsonl,
            model=self.model,
            revision=self.revision,
            device=str(engine.device),
            dtype=str(engine.precision),
            timing=self.timing,
            confidence=self.confidence,
        )


@dataclass
class AnsweredRequests:
    """The records of the requests of one `ImageRequests`."""

    part: str
    start: int
    stop: int
    last: bool
    records: list[str] = field(default_factory=list)
    """JSON lines without line ends."""
    errors: list[str] = field(default_factory=list)
    """Reasons of those that are errors, without the names of images."""
    warnings: list[str] = field(default_factory=list)

    def as_row(self) -> dict[str, Any]:
        """Return a row of Ray Data."""
        return {"answered": json.dumps(vars(self))}

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> "AnsweredRequests":
        """Read what `as_row` returned."""
        return cls(**json.loads(row["answered"]))


class PartAnswerer:
    """A loaded model that answers requests with their images."""

    def __init__(self, settings: AnswerSettings) -> None:
        """Load the model; errors as of `Engine.load`."""
        self.settings = settings
        self.engine = Engine.load(options=settings.runtime)
        self._output = settings.output(self.engine)

    def answer(self, groups: Iterable[ImageRequests]) -> Iterator[AnsweredRequests]:
        """Answer requests in order; those of consecutive images share batches.

        Args:
            groups: Requests by image, in order.

        Returns:
            The records of each group.
        """
        waiting: list[AnsweredRequests] = []
        owners: list[AnsweredRequests] = []

        def requests() -> Iterator[Request]:
            for group in groups:
                found = AnsweredRequests(group.part, group.start, group.stop, group.last)
                found.warnings += group.notes
                waiting.append(found)
                for request in self._requests(group, found):
                    owners.append(found)
                    yield request

        answers = self.engine.answer(requests(), self.settings.generation)
        # `owners` grows while answers are taken, so it must come second
        for answer, owner in zip(answers, owners, strict=False):
            while waiting and waiting[0] is not owner:
                yield waiting.pop(0)
            self._add(answer, owner)
        if waiting:
            waiting[-1].warnings += self.engine.take_notes()
        yield from waiting

    def _requests(self, group: ImageRequests, found: AnsweredRequests) -> Iterator[Request]:
        items = (
            item_of_line(text, where)
            if error is None
            else replace(item_of_line(text, where), error=ItemError(error))
            for where, text, error in group.requests
        )
        # one call for each image: two images of a table may have the same name
        return make_requests(
            items, self.settings.ask, found.warnings.append, lambda name: group.image()
        )

    def _add(self, answer: Answer, found: AnsweredRequests) -> None:
        found.records.append(encode(as_json(answer, self._output)).decode())
        if answer.error is not None:
            found.errors.append(reason_of(answer))
        source = answer.request.source
        found.warnings += source.take_warnings() if source else ()


def reason_of(answer: Answer) -> str:
    """Return why there is no answer, without the name of the image and what to do."""
    text = str(answer.error)
    text = text.removeprefix(f"{answer.request.image}: ")
    return text.partition("; ")[0]
