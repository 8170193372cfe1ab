"""The whole path, image and question in, answer out. The file to read first.

It does not know about files of boxes, output formats or training, nor any model by name: what
differs between models stands in the card.
"""

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from regionqa.bundles.card import ConfidenceCard
from regionqa.bundles.store import Bundle
from regionqa.errors import (
    BundleError,
    DeviceError,
    ImageError,
    ItemError,
    QuestionError,
    UsageError,
)
from regionqa.images.reading import InputImage, image_from_memory, open_image
from regionqa.language.prompts import read_answer, render_dialogue
from regionqa.language.sampling import Sampling
from regionqa.language.streaming import AnswerStream
from regionqa.language.tokenization import Prompt, answer_ids, tokenize
from regionqa.regions import BoxFormat, BoxUnits, Region, WrittenBox, clip_all, four_numbers
from regionqa.requests import Answer, Request, windows
from regionqa.runtime.devices import Device, choose_device
from regionqa.runtime.encoders import EncodedImage, Floats, RegionEncoder, VisionEncoder
from regionqa.runtime.precision import SINGLE, Precision, choose_precision

if TYPE_CHECKING:
    import numpy.typing as npt
    from PIL.Image import Image

    from regionqa.language.generation import LanguageModel, SplicedPrompt


OnText = Callable[[Request, str], None]


@dataclass(frozen=True)
class AnswerSettings:
    """How all answers of one call are made."""

    max_new_tokens: int
    """Longest answer."""
    sampling: Sampling = field(default_factory=Sampling)
    """How tokens are chosen."""
    unsure_below: float = 0.0
    """Answers less probable than this are held back."""
    described: int | None = None
    """Answers of more tokens than this are never held back; None: any may be."""
    on_text: OnText | None = None
    """Told each part of an answer as soon as nothing can take it back."""

    def holds_back(self, tokens: int) -> bool:
        """Whether an answer that is so long by now may yet be held back."""
        return self.unsure_below > 0 and not (
            self.described is not None and tokens > self.described
        )


log = logging.getLogger(__name__)


class Engine:
    """A loaded model. `answer` is the only way to an answer; `ask` is its form for one question."""

    def __init__(
        self,
        bundle: Bundle,
        vision: VisionEncoder,
        region: RegionEncoder | None,
        language: "LanguageModel",
        device: Device,
        batch_size: int = 16,
        precision: Precision = SINGLE,
    ) -> None:
        """Put the parts together; BundleError where they do not fit each other."""
        if batch_size < 1:
            raise UsageError(f"batch size {batch_size}: must be 1 or more")
        encoders: list[VisionEncoder | RegionEncoder] = [vision, *([region] if region else [])]
        for part in encoders:
            if part.hidden_size != language.hidden_size:
                raise BundleError(
                    f"{bundle.root}: {type(part).__name__} gives tokens {part.hidden_size} wide, "
                    f"the language model reads {language.hidden_size}"
                )
        self.bundle = bundle
        self.device = device
        self.precision = precision
        self._vision = vision
        self._region = region
        self._language = language
        self._batch_size = batch_size
        self._last: tuple[InputImage, EncodedImage] | None = None

    @classmethod
    def load(
        cls,
        bundle: Bundle,
        *,
        device: str = "auto",
        batch_size: int = 16,
        dtype: str = "auto",
        quantize: str | None = None,
    ) -> "Engine":
        """Open a bundle's sessions and language model on "auto", "cpu" or "cuda".

        "auto" takes CUDA where it works, and says in the log why it does not where it seemed to.
        dtype and quantize: see `choose_precision`.
        """
        from regionqa.language.generation import LanguageModel

        if bundle.card.untrained:
            parts = " and ".join(bundle.card.untrained)
            log.warning("%s has an untrained %s; train it first", bundle.card.name, parts)
        chosen = choose_device(device)
        precision = choose_precision(bundle, chosen, dtype, quantize)
        try:
            vision = VisionEncoder(bundle, chosen, half=precision.half_encoders)
        except DeviceError as error:
            if device != "auto":
                raise
            log.warning("the CPU is used: %s", error)
            chosen = Device.cpu
            precision = choose_precision(bundle, chosen, dtype, quantize)
            vision = VisionEncoder(bundle, chosen, half=precision.half_encoders)
        half = precision.half_encoders
        region = RegionEncoder(bundle, chosen, half=half) if bundle.card.region else None
        language = LanguageModel(bundle, chosen, precision)
        return cls(bundle, vision, region, language, chosen, batch_size, precision)

    def ask(
        self,
        image: "str | Path | Image | npt.NDArray[np.generic]",
        question: str,
        boxes: Sequence[Sequence[float]] = (),
        *,
        box_format: str = "xyxy",
        box_units: str = "pixel",
        max_new_tokens: int | None = None,
        unsure_below: float | None = None,
        temperature: float | None = None,
        seed: int = 0,
    ) -> Answer:
        """Ask one question; raises the ItemError that `answer` would have put into the Answer."""
        source = open_image(image) if isinstance(image, (str, Path)) else image_from_memory(image)
        written = [
            WrittenBox(
                four_numbers(list(box), str(box)), BoxFormat(box_format), BoxUnits(box_units)
            )
            for box in boxes
        ]
        regions = tuple(box.resolve(source.width, source.height) for box in written)
        clipped, _ = clip_all(regions, source.width, source.height)
        request = Request(source.name, question, clipped, source)
        answer = next(
            self.answer(
                [request],
                max_new_tokens=max_new_tokens,
                unsure_below=unsure_below,
                temperature=temperature,
                seed=seed,
            )
        )
        if answer.error:
            raise answer.error
        return answer

    def answer(
        self,
        requests: Iterable[Request],
        *,
        max_new_tokens: int | None = None,
        unsure_below: float | None = None,
        temperature: float | None = None,
        seed: int = 0,
        on_text: OnText | None = None,
    ) -> Iterator[Answer]:
        """Answer requests as they come, one Answer each, in order, in bounded memory.

        An image is encoded once for all requests about it that follow each other, its regions go
        through the region encoder in one call, and questions are decoded in batches. What cannot
        be answered becomes an Answer with its error.

        unsure_below: answers less probable than this are held back; None: than the card says; 0:
            none is.
        temperature: how random answers are; None: as the card says; 0: not at all. The same seed
            and request give the same answer, whatever is asked beside it.
        on_text: told the parts of each answer as they are generated; together they are its text.
        """
        card = self.bundle.card
        sure = card.confidence or ConfidenceCard(threshold=0.0)
        if unsure_below is not None and not 0 <= unsure_below <= 1:
            raise UsageError(f"unsure below {unsure_below}: a probability from 0 to 1 is due")
        heat = card.language.temperature if temperature is None else temperature
        manner = AnswerSettings(
            max_new_tokens or card.language.max_new_tokens,
            Sampling(heat, card.language.top_k, seed),
            sure.threshold if unsure_below is None else unsure_below,
            sure.longest,
            on_text,
        )
        for window in windows(requests, self._batch_size):
            yield from self._answer_window(window, manner)

    def _answer_window(self, window: Sequence[Request], manner: AnswerSettings) -> Iterator[Answer]:
        started = time.perf_counter()
        results: list[tuple[Request, Prompt | ItemError]] = [
            (request, self._prompt(request, manner.max_new_tokens)) for request in window
        ]
        ready: list[SplicedPrompt] = []
        problems: list[ItemError | None] = []
        for _, group in groupby(results, key=lambda result: id(result[0].source)):
            spliced = self._splice(list(group), image=len(problems))
            ready += [item for item in spliced if not isinstance(item, ItemError)]
            problems += [item if isinstance(item, ItemError) else None for item in spliced]
        asked = [r for r, problem in zip(window, problems, strict=True) if problem is None]
        replies = iter(self._replies(asked, ready, manner))
        seconds = (time.perf_counter() - started) / len(window)
        for request, problem in zip(window, problems, strict=True):
            answer = Answer(request, error=problem) if problem else next(replies)
            yield replace(answer, seconds=seconds)

    def _replies(
        self, asked: Sequence[Request], prompts: "Sequence[SplicedPrompt]", manner: AnswerSettings
    ) -> list[Answer]:
        """The answers to requests and their prompts, those without choices decoded together."""
        pairs = list(zip(asked, prompts, strict=True))
        open_ended = [pair for pair in pairs if not pair[0].choices]
        generated = iter(
            [
                answer
                for start in range(0, len(open_ended), self._batch_size)
                for answer in self._generate(open_ended[start : start + self._batch_size], manner)
            ]
        )
        return [self._choose(*pair) if pair[0].choices else next(generated) for pair in pairs]

    def _generate(
        self, batch: "Sequence[tuple[Request, SplicedPrompt]]", manner: AnswerSettings
    ) -> list[Answer]:
        """The answers to requests that are decoded together, told as they come where asked for."""
        card, on_text = self.bundle.card, manner.on_text
        tellers = [
            AnswerStream(card.prompt, card.language.stop, partial(on_text, request))
            for request, _ in batch
            if on_text
        ]

        def watch(row: int, tokens: int, written: str) -> None:
            if not manner.holds_back(tokens):
                tellers[row].hear(written)

        prompts = [replace(p, seed=manner.sampling.seed_of(request)) for request, p in batch]
        generated = self._language.generate(
            prompts, manner.max_new_tokens, manner.sampling, watch if tellers else None
        )
        answers = []
        for row, ((request, _), made) in enumerate(zip(batch, generated, strict=True)):
            held = manner.holds_back(len(made.ids)) and made.confidence < manner.unsure_below
            unsure = (card.confidence or ConfidenceCard(threshold=0.0)).unsure
            text = unsure if held else read_answer(card.prompt, made.text)
            answers.append(Answer(request, text, len(made.ids), confidence=made.confidence))
            if tellers:
                tellers[row].finish(text)
        return answers

    def _choose(self, request: Request, prompt: "SplicedPrompt") -> Answer:
        """The likeliest choice; its confidence is its share of the probability of all of them."""
        card, tokenizer = self.bundle.card, self._language.tokenizer
        stop = card.language.stop[0]
        ids = [answer_ids(card.prompt, each, stop, tokenizer) for each in request.choices]
        scores = np.array(self._language.score(prompt, ids))  # (C,)
        shares = np.exp(scores - scores.max())
        best = int(scores.argmax())
        return Answer(request, request.choices[best], confidence=float(shares[best] / shares.sum()))

    def _prompt(self, request: Request, max_new_tokens: int) -> Prompt | ItemError:
        """The request as ids with slots, or why it cannot be asked."""
        card = self.bundle.card
        if request.error or request.source is None:
            return request.error or ImageError(f"{request.image}: no image")
        if len(request.regions) > card.max_regions:
            return QuestionError(
                f"{request.image}: {len(request.regions)} regions in one question, the model "
                f"{card.name} takes {card.max_regions}; ask about fewer, or about each (--each)"
            )
        width, height = request.source.width, request.source.height
        fractions = [
            (box.x0 / width, box.y0 / height, box.x1 / width, box.y1 / height)
            for box in (region.box for region in request.regions)
        ]
        tokenizer = self._language.tokenizer
        try:
            pieces = render_dialogue(
                card.prompt,
                [*(earlier.question for earlier in request.history), request.question],
                [earlier.answer for earlier in request.history],
                fractions,
                card.language.stop[0],
                tokenizer.special_tokens,
                [*(earlier.regions for earlier in request.history), len(fractions)],
            )
            region_tokens = card.region.tokens if card.region else 0
            prompt = tokenize(pieces, tokenizer, card.vision.image_tokens, region_tokens)
            self._language.check_length(prompt, max_new_tokens)
        except QuestionError as error:
            return QuestionError(f"{request.image}: {error}")
        return prompt

    def _splice(
        self, group: Sequence[tuple[Request, Prompt | ItemError]], image: int
    ) -> "list[SplicedPrompt | ItemError]":
        """Encode the one image of a group of requests and all its regions, and hand them out."""
        from regionqa.language.generation import SplicedPrompt

        asked = [(request, prompt) for request, prompt in group if isinstance(prompt, Prompt)]
        if not asked:
            return [prompt for _, prompt in group if isinstance(prompt, ItemError)]
        try:
            encoded = self._encode(asked[0][0].source)
            regions = [region for request, _ in asked for region in request.regions]
            tokens = self._encode_regions(asked[0][0].source, encoded, regions)  # (N, K, H)
        except ImageError as error:
            return [prompt if isinstance(prompt, ItemError) else error for _, prompt in group]
        spliced: list[SplicedPrompt | ItemError] = []
        start = 0
        for request, prompt in group:
            if isinstance(prompt, ItemError):
                spliced.append(prompt)
                continue
            end = start + len(request.regions)
            spliced.append(SplicedPrompt(prompt, image, encoded.image_tokens, tokens[start:end]))
            start = end
        return spliced

    def _encode(self, image: InputImage | None) -> EncodedImage:
        """The image through the vision encoder, unless it is the one encoded last."""
        assert image is not None
        if self._last is None or self._last[0] is not image:
            pixels = self.bundle.card.image.pixel_values(image.load())  # (3, S, S)
            self._last = (image, self._vision.encode(pixels[np.newaxis])[0])
        return self._last[1]

    def _encode_regions(
        self, image: InputImage | None, encoded: EncodedImage, regions: Sequence[Region]
    ) -> Floats:
        """Region tokens (N, K, H) of all regions of one image, in one call."""
        card = self.bundle.card
        if self._region is None or not card.prompt.takes_features or not regions:
            return np.zeros((len(regions), 0, self._language.hidden_size), np.float32)
        assert image is not None
        own_pixels = card.region.image if card.region else None
        placement = (own_pixels or card.image).placement(image.width, image.height)
        boxes = np.array([placement.to_model(region.box) for region in regions], np.float32)
        sources: Sequence[Floats] = encoded.levels
        if own_pixels:
            sources = [own_pixels.pixel_values(image.load())[np.newaxis]]  # (1, 3, h, w)
        return self._region.encode(sources, boxes)  # boxes (N, 4)
