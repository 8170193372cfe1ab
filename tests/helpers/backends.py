"""Backends for tests: a scripted model without torch, and access to the parts of a bundle's."""

import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from regionqa.backends.base import Backend, Completion, ModelInfo, OnProgress
from regionqa.backends.bundle import BundleBackend
from regionqa.bundles.card import ConfidenceCard
from regionqa.engine import Engine
from regionqa.errors import ImageError, ItemError, QuestionError
from regionqa.images.reading import InputImage
from regionqa.language.answer_schemas import AnswerSchema
from regionqa.options import RuntimeOptions
from regionqa.requests import Request, Sampling

Script = Callable[[Request], Completion | ItemError]


def bundle_backend(engine: Engine) -> BundleBackend:
    """The backend of an engine over a bundle, with its parts."""
    assert isinstance(engine.backend, BundleBackend)
    return engine.backend


@dataclass(frozen=True)
class ToyPrompt:
    """A request, and after `encode` the colour of its image."""

    request: Request
    colour: str = ""


def describe(prompt: ToyPrompt) -> str:
    """The toy's answer: the image's colour and the boxes it was asked about."""
    boxes = " and ".join(str(region.box) for region in prompt.request.regions) or "all of it"
    return f"{prompt.colour}: {boxes}"


@dataclass
class ToyBackend:
    """Answers by a script, in one token a word; records how it was called."""

    info: ModelInfo
    device: str = "toy"
    precision: str = "none"
    script: Script | None = None
    scores: dict[str, float] = field(default_factory=dict)
    encoded: list[tuple[str, int]] = field(default_factory=list)
    """(image, number of prompts) of every call of `encode`."""
    batches: list[int] = field(default_factory=list)
    """Number of prompts of every call of `generate`."""
    seeds: list[int] = field(default_factory=list)
    samplings: list[Sampling] = field(default_factory=list)
    limits: list[int] = field(default_factory=list)
    """Limits on tokens that prompts were rendered for."""

    def render(self, request: Request, max_new_tokens: int) -> ToyPrompt:
        self.limits.append(max_new_tokens)
        if "<region9>" in request.question:
            raise QuestionError("no region 9")
        return ToyPrompt(request)

    def encode(self, image: InputImage, prompts: Sequence[ToyPrompt]) -> list[ToyPrompt]:
        self.encoded.append((image.name, len(prompts)))
        red, green, blue = image.load().getpixel((0, 0))  # type: ignore[misc]
        colour = max((red, "red"), (green, "green"), (blue, "blue"))[1]
        return [ToyPrompt(prompt.request, colour) for prompt in prompts]

    def generate(
        self,
        prompts: Sequence[ToyPrompt],
        max_new_tokens: int,
        sampling: Sampling,
        seeds: Sequence[int],
        on_progress: OnProgress | None = None,
        schema: AnswerSchema | None = None,
    ) -> list[Completion | ItemError]:
        self.batches.append(len(prompts))
        self.seeds += seeds
        self.samplings.append(sampling)
        completions: list[Completion | ItemError] = []
        for row, prompt in enumerate(prompts):
            words = describe(prompt).split()[:max_new_tokens]
            made: Completion | ItemError = Completion(" ".join(words), len(words), 0.5)
            if self.script:
                made = self.script(prompt.request)
            if on_progress and isinstance(made, Completion):
                parts = made.text.split()
                for count in range(1, len(parts) + 1):
                    on_progress(row, count, " ".join(parts[:count]))
            completions.append(made)
        return completions

    def describe(self, request: Request, prompt: ToyPrompt) -> list[str]:
        return [describe(prompt)]

    def score(self, prompt: ToyPrompt, choices: Sequence[str]) -> list[float]:
        if not self.scores:
            raise ImageError(f"{prompt.request.image}: the toy gives no probabilities")
        return [self.scores[choice] for choice in choices]


@dataclass(frozen=True)
class ToyModel:
    """A card of kind "toy"."""

    info: ModelInfo

    def configured(self, options: RuntimeOptions) -> Self:
        return self

    def load(self, options: RuntimeOptions) -> Backend[ToyPrompt, ToyPrompt]:
        return ToyBackend(self.info)


def toy_info(**changes: object) -> ModelInfo:
    """Properties of the toy."""
    settings: dict[str, object] = {
        "name": "toy",
        "revision": "1",
        "max_regions": 3,
        "max_new_tokens": 8,
        "image_question": "what colour is the image?",
        "region_question": "what colour is <region1>?",
    }
    return ModelInfo(**(settings | changes))  # type: ignore[arg-type]


def open_toy(folder: Path) -> ToyModel:
    """Read a toy's card."""
    card = tomllib.loads((folder / "card.toml").read_text(encoding="utf-8"))
    confidence = ConfidenceCard(threshold=card.get("threshold", 0.0))
    return ToyModel(toy_info(name=card["name"], confidence=confidence))
