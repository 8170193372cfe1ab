"""The backend protocol, and the registry of backends by kind of card.

The engine reaches every model through `Backend`. A further kind of model is one module with a
function `open_model(folder)` and one line in `KINDS`; its cards name it with `kind = "..."`.
"""

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

from regionqa.bundles.card import ConfidenceCard
from regionqa.bundles.hub import Listing, looks_like_repo, readable
from regionqa.bundles.prompt_rules import RegionInput
from regionqa.bundles.store import CARD, VLM, Bundle, find_folder
from regionqa.errors import BundleError, ItemError
from regionqa.images.reading import InputImage
from regionqa.language.answer_schemas import AnswerSchema
from regionqa.options import RegionWay, RuntimeOptions
from regionqa.requests import Request, Sampling
from regionqa.schema import read_toml
from regionqa.vlm.card import VlmCard
from regionqa.vlm.cards import model_type
from regionqa.vlm.checkpoints import fetch_checkpoint
from regionqa.vlm.coordinates import Size
from regionqa.vlm.store import find_vlm

log = logging.getLogger(__name__)
PromptT = TypeVar("PromptT")
"""A rendered prompt; only its backend knows what it holds."""
EncodedT = TypeVar("EncodedT")
"""A rendered prompt together with its encoded image and regions."""

OnProgress = Callable[[int, int, str], None]
"""Called after each token of an unfinished answer with its row in the batch, the number of tokens
so far, and the part of the answer that further tokens cannot change."""


@dataclass(frozen=True)
class ModelInfo:
    """Properties of a model that are known before its weights are loaded."""

    name: str
    """Name shown to the user."""
    revision: str
    """Identifies weights and settings; changes whenever an answer could."""
    max_regions: int
    """Largest number of regions in one question."""
    max_new_tokens: int
    """Default limit on the tokens of an answer."""
    image_question: str
    """Question that `caption` asks about a whole image."""
    region_question: str
    """Question that `caption` asks about a region."""
    temperature: float = 0.0
    """Default sampling temperature; 0 is greedy."""
    top_k: int = 0
    """Sample from this many of the likeliest tokens; 0: from all."""
    confidence: ConfidenceCard = field(default_factory=lambda: ConfidenceCard(threshold=0.0))
    """When an answer is held back as unsure."""
    region_input: RegionInput = RegionInput.features
    """How the language model receives a region."""
    ways: tuple[RegionWay, ...] = ()
    """Ways of telling regions that a request may choose from; empty: the model has its own."""
    free_questions: bool = True
    """Whether it answers any question, and not only fixed tasks."""
    structured: bool = False
    """Whether answers can be made to satisfy a JSON schema."""
    multi_turn: bool = False
    """Whether a request may have a history."""
    introduction: str = "{regions} "
    """Text put before a question that does not name its regions; empty: none is put."""
    separator: str = " "
    """Text between the regions of an introduction."""
    note: str = ""
    """A remark on the model that users are told once; empty: none."""

    def introduce(self, question: str, numbers: Sequence[int]) -> str:
        """Put references to regions before a question that does not name them.

        Gives the prompt that the backend renders when the same regions are new and unnamed.

        Args:
            question: The question.
            numbers: Region numbers, from 1, that the question does not name.
        """
        if not numbers or not self.introduction:
            return question
        regions = self.separator.join(f"<region{number}>" for number in numbers)
        return self.introduction.format(regions=regions) + question.strip()


@dataclass(frozen=True)
class Completion:
    """A generated answer."""

    text: str
    """The answer without the words and stop tokens around it."""
    tokens: int
    """Number of generated tokens, without the stop token."""
    confidence: float | None = None
    """Probability of the answer and its end, from 0 to 1; None where the model gives none."""


@dataclass(frozen=True)
class ChosenAnswer:
    """The choice of a backend that cannot score all choices."""

    index: int
    """Place of the chosen answer among the choices."""
    confidence: float | None = None
    """Its share of the choices' probability, from 0 to 1; None where that is not known."""


class Backend(Protocol[PromptT, EncodedT]):
    """A loaded model, as the engine uses it: `render`, then `encode`, then `generate` or `score`.

    What a prompt is, how a region enters it (feature tokens, coordinates, a crop, a drawn box) and
    what questions about one image share (its encoding, a cached prefix) is the backend's choice.
    The engine passes prompts on unchanged and keeps none of them beyond one window of requests.
    """

    @property
    def info(self) -> ModelInfo:
        """The model's properties."""

    @property
    def device(self) -> str:
        """Where the model runs, as answers report it."""

    @property
    def precision(self) -> str:
        """Precision the model runs in, as answers report it."""

    def render(self, request: Request, max_new_tokens: int) -> PromptT:
        """Render the prompt of a request, without looking at the image's pixels.

        Raises:
            QuestionError: The question names a region that was not given, or does not fit the
                model beside an answer of `max_new_tokens`.
        """

    def encode(self, image: InputImage, prompts: Sequence[PromptT]) -> Sequence[EncodedT]:
        """Encode an image and the regions of all prompts about it.

        Args:
            image: The image of every prompt. A backend that is given the image it encoded last
                should use that encoding again.
            prompts: At least one.

        Returns:
            One encoded prompt each, in order.

        Raises:
            ItemError: The image cannot be decoded, so no prompt can be answered.
        """

    def generate(
        self,
        prompts: Sequence[EncodedT],
        max_new_tokens: int,
        sampling: Sampling,
        seeds: Sequence[int],
        on_progress: OnProgress | None = None,
        schema: AnswerSchema | None = None,
    ) -> Sequence[Completion | ItemError]:
        """Generate answers to prompts about one or several images, as one batch.

        Args:
            prompts: At least one.
            max_new_tokens: Limit on the tokens of each answer.
            sampling: How tokens are chosen.
            seeds: One random seed per prompt, so that no answer depends on the rest of the batch.
            on_progress: Called as answers grow. A backend that does not stream never calls it.
            schema: What every answer satisfies; given to models that are `structured` only.

        Returns:
            One answer each, in order; an error where a single prompt failed.
        """

    def describe(self, request: Request, prompt: EncodedT) -> Sequence[str]:
        """Describe what the model is given, exactly, in lines for people.

        The text of the prompt with its special tokens, the sizes of images, how regions are told
        and why, and their coordinates as written.
        """

    def score(
        self, prompt: EncodedT, choices: Sequence[str]
    ) -> "Sequence[float] | ChosenAnswer | Future[ChosenAnswer]":
        """Return the log-probability of each choice as the whole answer to a prompt.

        A backend that only learns which one its model takes returns that one; if it has to wait
        for that, a future, so that several prompts are waited for together.

        Raises:
            ItemError: The model gives no probabilities; also by the future.
        """


@runtime_checkable
class TakesNotes(Protocol):
    """A backend that has something to say about a run, such as what its cache did."""

    def take_notes(self) -> Sequence[str]:
        """Return what a user should know since the last call, a line each."""


@runtime_checkable
class HasVlmCard(Protocol):
    """A model or backend that is told regions in the ways of a card."""

    @property
    def card(self) -> VlmCard:
        """The card."""


@runtime_checkable
class ResizesImages(Protocol):
    """A backend that knows how large its model sees an image."""

    def resized(self, size: Size) -> Size:
        """Return the width and height to which an image of this size is resized."""


class Model(Protocol):
    """A model that was found and whose card was read; its weights are not loaded."""

    @property
    def info(self) -> ModelInfo:
        """The model's properties."""

    def configured(self, options: RuntimeOptions) -> "Model":
        """Return the model as these options run it; its `info` is that of its answers.

        Raises:
            UsageError: The model does not have an option.
        """

    def load(self, options: RuntimeOptions) -> Backend[Any, Any]:
        """Load the weights; see `regionqa.load` for the errors.

        Args:
            options: Device and precision. The engine follows `batch_size`; `model` does not apply.
        """


OpenModel = Callable[[Path], Model]
"""Reads the card in a folder; BundleError where it is not sound."""

DEFAULT_KIND = "bundle"
"""Kind of a card that names none."""
KINDS: dict[str, OpenModel | str] = {
    "bundle": "regionqa.backends.bundle",
    "vlm": "regionqa.backends.vlm.backend",
}
"""Kind of card -> module with a function `open_model`, or such a function."""


def register(kind: str, open_model: OpenModel) -> None:
    """Add a kind of model from outside the package."""
    KINDS[kind] = open_model


def configured_model(model: str | Path | Bundle | Model, options: RuntimeOptions) -> Model:
    """Find a model as the options of a run have it: on this machine, or on a server.

    Args:
        model: As for `find_model`. With `options.server`, a name only selects the card: nothing is
            fetched, and no weights are looked for.
        options: How the model is run.

    Raises:
        RegionQAError: As for `find_model`; the model does not have an option; or the server cannot
            be used.
    """
    if options.server is not None:
        from regionqa.backends.server.model import find_server_model

        return find_server_model(model, options)
    return find_model(model).configured(options)


def find_model(model: str | Path | Bundle | Model) -> Model:
    """Find a model on this machine and read its card.

    Args:
        model: The name of a model that ships with the package, a model's folder, or OWNER/NAME on
            the Hub, which is fetched if it is not on this machine. A bundle or model that is
            already open is passed through.

    Raises:
        BundleError: There is no such model, or its card is not sound.
        DownloadError: It is on the Hub and cannot be fetched.
    """
    if isinstance(model, Bundle):
        from regionqa.backends.bundle import BundleModel

        return BundleModel(model)
    if not isinstance(model, (str, Path)):
        return model
    if isinstance(model, str) and (found := find_vlm(model)):
        from regionqa.backends.vlm.backend import VlmModel

        folder, source = found.folder, found.card.source
        if folder is None and source is not None and looks_like_repo(model):
            folder = fetch_checkpoint(source, announce_fetch)
        return VlmModel(found.card, folder, has_card=found.path is not None)
    folder = find_folder(model)
    kind = card_kind(folder)
    if kind not in KINDS:
        raise BundleError(
            f"{folder / CARD}: kind is {kind!r}; known are: {', '.join(KINDS)}. "
            "Update regionqa, or choose another model"
        )
    opener = KINDS[kind]
    if isinstance(opener, str):
        opener = import_module(opener).open_model
    return opener(folder)


def announce_fetch(listing: Listing) -> None:
    """Log the licence and size of what is fetched without a command to download it."""
    size = readable(sum(file.size for file in listing.missing))
    log.warning("fetching %s: %s, licence %s", listing.repo, size, listing.licence or "not stated")


def card_kind(folder: Path) -> str:
    """Return the kind of the model in a folder: its card's, or a checkpoint's of transformers.

    The kind's own reader reports what is wrong with a card.
    """
    try:
        table = read_toml(folder / CARD)
    except FileNotFoundError:
        return VLM if model_type(folder) is not None else DEFAULT_KIND
    except (OSError, ValueError):
        return DEFAULT_KIND
    return str(table.get("kind", DEFAULT_KIND))
