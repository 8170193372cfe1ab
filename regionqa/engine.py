"""The engine: a stream of requests in, a stream of answers out.

Keeps order, windows, batches, errors, confidence and timing. Everything that depends on the kind
of model is behind `Backend`.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from regionqa.backends.base import (
    Backend,
    ChosenAnswer,
    Completion,
    Model,
    ModelInfo,
    TakesNotes,
    configured_model,
)
from regionqa.backends.structured import check_schema, structured
from regionqa.bundles.card import ConfidenceCard
from regionqa.bundles.store import Bundle
from regionqa.errors import ImageError, ItemError, QuestionError, UsageError
from regionqa.flags import parse_choice
from regionqa.images.reading import image_from_memory, open_image
from regionqa.language.answer_schemas import AnswerSchema
from regionqa.language.number_words import is_number
from regionqa.language.references import inline_regions, question_text
from regionqa.language.streaming import AnswerStream
from regionqa.options import GenerationOptions, RuntimeOptions
from regionqa.regions import BoxFormat, BoxUnits, WrittenBox, clip_all, four_numbers
from regionqa.requests import Answer, Request, Sampling, request_seed, windows

if TYPE_CHECKING:
    import numpy.typing as npt
    from PIL.Image import Image


OnText = Callable[[Request, str], None]
"""Called with a request and the next part of its answer."""
OnPrompt = Callable[[Request, Sequence[str]], None]
"""Called with a request and the lines that describe what the model is given."""


@dataclass(frozen=True)
class DecodingSettings:
    """`GenerationOptions` with the model's defaults filled in."""

    max_new_tokens: int
    """Limit on the tokens of an answer."""
    sampling: Sampling
    """How tokens are chosen."""
    seed: int
    """Random seed of the call."""
    confidence: ConfidenceCard
    """When an answer is held back."""
    choices: tuple[str, ...] = ()
    """Allowed answers of requests without their own."""
    schema: AnswerSchema | None = None
    """What every answer satisfies."""
    on_prompt: OnPrompt | None = None
    """Receives a description of each prompt."""
    on_text: OnText | None = None
    """Receives the parts of an answer once it can no longer be held back."""

    def may_hold_back(self, tokens: int) -> bool:
        """Return whether an answer of this many tokens so far may still be held back."""
        return self.confidence.may_hold_back(tokens)

    def holds_back(self, completion: Completion) -> bool:
        """Return whether a finished answer is held back as unsure."""
        return completion.confidence is not None and self.confidence.holds_back(
            completion.confidence, completion.tokens, number=is_number(completion.text)
        )


class Engine:
    """A loaded model that answers questions about regions of images."""

    def __init__(self, backend: Backend[Any, Any], batch_size: int = 16) -> None:
        """Create an engine over a loaded model.

        Args:
            backend: The model.
            batch_size: Number of questions generated together.
        """
        if batch_size < 1:
            raise UsageError(f"batch size {batch_size}: must be 1 or more")
        self.backend = backend
        self._batch_size = batch_size

    @classmethod
    def load(
        cls,
        model: str | Path | Bundle | Model | None = None,
        options: RuntimeOptions | None = None,
        **values: Any,
    ) -> "Engine":
        """Find a model and load it.

        Args:
            model: As for `regionqa.load`, or a model that was found. Default: the options' model.
            options: How the model is run.
            values: Fields of `RuntimeOptions`; they replace those of `options`.

        Raises:
            UsageError: An option is unknown or out of range.
            RegionQAError: As for `regionqa.load`.
        """
        chosen = (options or RuntimeOptions()).replace(**values)
        found = configured_model(chosen.model if model is None else model, chosen)
        return cls(found.load(chosen), chosen.batch_size)

    @property
    def info(self) -> ModelInfo:
        """The model's properties."""
        return self.backend.info

    @property
    def device(self) -> str:
        """Where the model runs."""
        return self.backend.device

    @property
    def precision(self) -> str:
        """Precision the model runs in."""
        return self.backend.precision

    def take_notes(self) -> list[str]:
        """Return what a user should know of the run since the last call, a line each."""
        return list(self.backend.take_notes()) if isinstance(self.backend, TakesNotes) else []

    def ask(
        self,
        image: "str | Path | Image | npt.NDArray[np.generic]",
        question: str,
        boxes: Sequence[Sequence[float]] = (),
        options: GenerationOptions | None = None,
        *,
        box_format: str = "xyxy",
        box_units: str = "pixel",
        **values: Any,
    ) -> Answer:
        """Ask one question.

        Args:
            image: A path, a Pillow image, or a uint8 array (height, width, 3) or (height, width).
            question: The question; `<region1>` refers to the first box. Without boxes, it may hold
                regions inline, as PVIT writes them.
            boxes: Four numbers each.
            options: How the answer is generated.
            box_format: "xyxy", "xywh" or "cxcywh".
            box_units: "pixel", "fraction" or "permille".
            values: Fields of `GenerationOptions`; they replace those of `options`.

        Raises:
            ItemError: The question cannot be answered.
            UsageError: An option is unknown or out of range.
        """
        form = parse_choice(BoxFormat, box_format, "box format")
        units = parse_choice(BoxUnits, box_units, "box units")
        source = open_image(image) if isinstance(image, (str, Path)) else image_from_memory(image)
        written = [WrittenBox(four_numbers(list(box), str(box)), form, units) for box in boxes]
        (question,), inline = inline_regions([question_text(question)], with_boxes=bool(written))
        written += inline
        regions = tuple(box.resolve(source.width, source.height) for box in written)
        clipped, _ = clip_all(regions, source.width, source.height)
        request = Request(source.name, question, clipped, source)
        answer = next(self.answer([request], options, **values))
        if answer.error:
            raise answer.error
        return answer

    def answer(
        self,
        requests: Iterable[Request],
        options: GenerationOptions | None = None,
        *,
        on_text: OnText | None = None,
        on_prompt: OnPrompt | None = None,
        together: bool = False,
        **values: Any,
    ) -> Iterator[Answer]:
        """Answer requests in order, in bounded memory.

        An image is encoded once for consecutive requests about it, and their regions in one call.
        A request that cannot be answered becomes an answer with an error.

        Args:
            requests: Read lazily, at most one window ahead (see `windows`).
            options: How answers are generated. The same seed and request give the same answer in
                any batch.
            on_text: Called with the parts of each answer as they are generated; joined, they are
                its text.
            on_prompt: Called with each request that is asked, and what the model is given.
            together: Answer all requests as one window, as those of several users who wait at the
                same time; the caller bounds their number.
            values: Fields of `GenerationOptions`, such as `max_new_tokens=20`; they replace those
                of `options`.

        Returns:
            One answer per request.

        Raises:
            UsageError: An option is unknown or out of range.
        """
        chosen = (options or GenerationOptions()).replace(**values)
        settings = replace(self._settings(chosen, on_text), on_prompt=on_prompt)
        batches = [list(requests)] if together else windows(requests, self._batch_size)
        return (answer for window in batches for answer in self._answer_window(window, settings))

    def _settings(self, options: GenerationOptions, on_text: OnText | None) -> DecodingSettings:
        info = self.info
        confidence, temperature = info.confidence, options.temperature
        if options.threshold is not None:
            confidence = confidence.with_threshold(options.threshold)
        return DecodingSettings(
            options.max_new_tokens or info.max_new_tokens,
            Sampling(info.temperature if temperature is None else temperature, info.top_k),
            options.seed,
            confidence,
            options.allowed,
            check_schema(options.schema, info),
            on_text=on_text,
        )

    def _answer_window(
        self, window: Sequence[Request], settings: DecodingSettings
    ) -> Iterator[Answer]:
        """Yield the answers to one window; each reports an equal share of the elapsed time."""
        started = time.perf_counter()
        prompts = [(request, self._render(request, settings)) for request in window]
        encoded: list[Any] = []  # an encoded prompt or an ItemError per request
        for _, group in groupby(prompts, key=lambda pair: id(pair[0].source)):
            encoded += self._encode(list(group))
        if settings.on_prompt:
            for request, prompt in zip(window, encoded, strict=True):
                if not isinstance(prompt, ItemError):
                    settings.on_prompt(request, self.backend.describe(request, prompt))
        answers = self._answer_encoded(window, encoded, settings)
        seconds = (time.perf_counter() - started) / len(window)
        for answer in answers:
            yield replace(answer, seconds=seconds)

    def _render(self, request: Request, settings: DecodingSettings) -> Any:
        """Return the prompt of a request, or the ItemError why it has none."""
        if request.error or request.source is None:
            return request.error or ImageError(f"{request.image}: no image")
        info = self.info
        if len(request.regions) > info.max_regions:
            return QuestionError(
                f"{request.image}: {len(request.regions)} regions in one question, the model "
                f"{info.name} takes {info.max_regions}; ask about fewer, or about each (--each)"
            )
        if request.way is not None and request.way not in info.ways:
            return QuestionError(
                f"{request.image}: {info.name} is not told regions by {request.way}"
            )
        try:
            return self.backend.render(request, settings.max_new_tokens)
        except (QuestionError, ImageError) as error:
            return type(error)(f"{request.image}: {error}")

    def _encode(self, group: Sequence[tuple[Request, Any]]) -> list[Any]:
        """Encode the image of consecutive requests about it, with all their regions.

        Args:
            group: Requests about one image, each with its prompt or ItemError.

        Returns:
            An encoded prompt or an ItemError each, in order.
        """
        prompts = [prompt for _, prompt in group if not isinstance(prompt, ItemError)]
        if not prompts:
            return [error for _, error in group]
        source = group[0][0].source
        assert source is not None
        try:
            encoded = iter(self.backend.encode(source, prompts))
        except ItemError as error:
            return [prompt if isinstance(prompt, ItemError) else error for _, prompt in group]
        return [prompt if isinstance(prompt, ItemError) else next(encoded) for _, prompt in group]

    def _answer_encoded(
        self, window: Sequence[Request], encoded: Sequence[Any], settings: DecodingSettings
    ) -> list[Answer]:
        """Answer encoded prompts in order; those without choices are generated in batches."""
        answers: dict[int, Answer] = {}
        scored: dict[int, Any] = {}
        open_ended = []
        for row, (request, prompt) in enumerate(zip(window, encoded, strict=True)):
            if isinstance(prompt, ItemError):
                answers[row] = Answer(request, error=prompt)
            elif choices := request.choices or settings.choices:
                scored[row] = self._score(prompt, choices)
            else:
                open_ended.append(row)
        for start in range(0, len(open_ended), self._batch_size):
            rows = open_ended[start : start + self._batch_size]
            batch = [(window[row], encoded[row]) for row in rows]
            answers |= zip(rows, self._generate(batch, settings), strict=True)
        for row, scores in scored.items():
            answers[row] = _choose(window[row], scores, window[row].choices or settings.choices)
        return [answers[row] for row in range(len(window))]

    def _generate(
        self, batch: Sequence[tuple[Request, Any]], settings: DecodingSettings
    ) -> list[Answer]:
        """Return the answers to one batch of requests with their encoded prompts."""
        on_text, rule = settings.on_text, settings.confidence
        streams = [AnswerStream(partial(on_text, request)) for request, _ in batch if on_text]

        def on_progress(row: int, tokens: int, text: str) -> None:
            if not settings.may_hold_back(tokens) and not rule.may_become_unsure(text):
                streams[row].update(text)

        completions = self.backend.generate(
            [prompt for _, prompt in batch],
            settings.max_new_tokens,
            settings.sampling,
            [request_seed(request, settings.seed) for request, _ in batch],
            on_progress if streams else None,
            settings.schema,
        )
        answers = []
        for row, ((request, _), completion) in enumerate(zip(batch, completions, strict=True)):
            if isinstance(completion, ItemError):
                answers.append(Answer(request, error=completion))
                continue
            held_back = settings.holds_back(completion)
            is_unsure = held_back or rule.is_unsure(completion.text)
            text = rule.unsure if is_unsure else completion.text
            answer = Answer(request, text, completion.tokens, confidence=completion.confidence)
            if settings.schema is not None and not held_back:
                answer = structured(answer, settings.schema)
            answers.append(answer)
            if streams:
                streams[row].finish(text)
        return answers

    def _score(self, prompt: Any, choices: Sequence[str]) -> Any:
        """Score choices; what `Backend.score` returns, or the ItemError why it cannot."""
        try:
            return self.backend.score(prompt, choices)
        except ItemError as error:
            return error


def _choose(request: Request, scored: Any, choices: Sequence[str]) -> Answer:
    """Return the likeliest choice; its confidence is its share of the choices' probability."""
    if isinstance(scored, Future):
        try:
            scored = scored.result()
        except ItemError as error:
            scored = error
    if isinstance(scored, ItemError):
        return Answer(request, error=scored)
    if isinstance(scored, ChosenAnswer):
        return Answer(request, choices[scored.index], confidence=scored.confidence)
    scores = np.array(scored)  # (C,)
    shares = np.exp(scores - scores.max())
    best = int(scores.argmax())
    return Answer(request, choices[best], confidence=float(shares[best] / shares.sum()))
