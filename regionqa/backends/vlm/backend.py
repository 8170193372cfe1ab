"""Vision-language models of the Hub as a backend of the engine."""

import logging
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

from PIL import Image

from regionqa.backends.base import Completion, ModelInfo, OnProgress
from regionqa.backends.vlm.constraints import SchemaDecoding, logits_width
from regionqa.backends.vlm.encoder_decoder import EncoderDecoderLanguage
from regionqa.backends.vlm.feature_cache import CachedTower
from regionqa.backends.vlm.features import VisionTower
from regionqa.backends.vlm.language import EncodedPart, VlmLanguage, VlmPrompt
from regionqa.backends.vlm.processor import PreparedImage, VlmProcessor
from regionqa.backends.vlm.towers import load_tower
from regionqa.bundles.prompt_rules import RegionInput
from regionqa.errors import BundleError, ImageError, ItemError, LengthError
from regionqa.images.reading import InputImage
from regionqa.language.answer_schemas import AnswerSchema
from regionqa.language.streaming import stable_text
from regionqa.options import RegionWay, RuntimeOptions
from regionqa.requests import Request, Sampling
from regionqa.runtime.devices import Device, choose_device
from regionqa.runtime.precision import Precision, choose_precision
from regionqa.vlm.card import PrefixSharing, VlmCard
from regionqa.vlm.checkpoints import checkpoint_digest
from regionqa.vlm.coordinates import Size
from regionqa.vlm.messages import Told, check_way, describe_regions, describe_way, tell
from regionqa.vlm.region_images import ImagePart, describe_image, make_image
from regionqa.vlm.store import download_command, vlm_in_folder

log = logging.getLogger(__name__)
ImageKey = tuple[ImagePart, bool]
"""An image of a prompt, and whether it is processed as the only one."""
IMAGES_KEPT = 64
"""Number of encoded images (whole ones, crops, drawings) that are kept of one input image."""


@dataclass(frozen=True)
class VlmModel:
    """A checkpoint whose weights are not loaded yet."""

    card: VlmCard
    folder: Path | None
    """The checkpoint's files; None: they are not on this machine."""
    way: RegionWay | None = None
    """How regions are told; None: the card chooses."""
    has_card: bool = True
    """Whether the card is the model's own, not made of its family's conventions."""

    @cached_property
    def info(self) -> ModelInfo:
        """The model's properties, from its card."""
        card = self.card
        return ModelInfo(
            name=card.name,
            revision=self.revision,
            max_regions=card.max_regions,
            max_new_tokens=card.answers.max_new_tokens,
            image_question=card.chat.image_question,
            region_question=card.chat.region_question,
            temperature=card.answers.temperature,
            top_k=card.answers.top_k,
            region_input=RegionInput.coordinates,
            ways=card.regions.ways,
            free_questions=not card.chat.tasks,
            structured=not card.chat.tasks,
            multi_turn=card.chat.multi_turn,
            note="" if self.has_card else self._unmeasured,
        )

    @property
    def _unmeasured(self) -> str:
        """The remark on a model without a card."""
        way = self.way or self.card.regions.default
        return (
            f"{self.card.name}: has no card, so regions are told as for its family, "
            f"{self.card.family}; it was not measured how well this checkpoint reads the way {way}"
        )

    @property
    def revision(self) -> str:
        """Identity of the card and of the weights, and the way if it was chosen."""
        weights = checkpoint_digest(self.folder) if self.folder else "none"
        return "-".join([self.card.identity, weights, *([self.way] if self.way else [])])

    def configured(self, options: RuntimeOptions) -> "VlmModel":
        """See `Model.configured`."""
        if options.way is not None:
            check_way(self.card, options.way)
        return replace(self, way=options.way)

    def load(self, options: RuntimeOptions) -> "VlmBackend":
        """Load the checkpoint; see `Model.load`."""
        from regionqa.backends.vlm.checkpoint import load_checkpoint

        if self.folder is None:
            raise BundleError(
                f"{self.card.name}: not downloaded yet; run: {download_command(self.card)}"
            )
        device = choose_device(options.device)
        precision = choose_precision(self.folder, device, options.dtype, options.quantize)
        processor = VlmProcessor(self.folder, self.card, cuda=device is Device.cuda)
        model = load_checkpoint(self.folder, device, precision)
        language: VlmLanguage | EncoderDecoderLanguage
        if model.config.is_encoder_decoder:
            language = EncoderDecoderLanguage(model, processor.decode)
        else:
            language = VlmLanguage(model, processor.image_token_id, processor.decode)
        tower = load_tower(self.card, self.folder, model, options, device, precision)
        return VlmBackend(self, processor, tower, language, device, precision)


@dataclass(frozen=True)
class RenderedVlmPrompt:
    """A request as messages, and the prompt's text."""

    told: Told
    text: str
    """With special tokens; images are one placeholder each."""
    max_new_tokens: int


@dataclass(frozen=True)
class EncodedVlmPrompt:
    """A prompt with the features of its images."""

    rendered: RenderedVlmPrompt
    prompt: VlmPrompt
    images: tuple[PreparedImage, ...]
    """The images of the prompt, in order."""


class VlmBackend:
    """A loaded vision-language model."""

    def __init__(
        self,
        model: VlmModel,
        processor: VlmProcessor,
        tower: VisionTower,
        language: VlmLanguage | EncoderDecoderLanguage,
        device: Device,
        precision: Precision,
    ) -> None:
        """Combine the parts.

        Args:
            model: The model that was found.
            processor: Its processor.
            tower: Its vision encoder.
            language: Its language model.
            device: Where it runs.
            precision: Precision of the language model.
        """
        self.info = model.info
        self.card = model.card
        self.processor = processor
        self.tower = tower
        self.language = language
        self._device = device
        self._precision = precision
        self._way = model.way
        self._last: InputImage | None = None
        self._encoded: OrderedDict[ImageKey, tuple[PreparedImage, EncodedPart]] = OrderedDict()

    @property
    def device(self) -> Device:
        """Device of the language model."""
        return self._device

    @property
    def precision(self) -> str:
        """Precision of the language model."""
        return str(self._precision)

    def resized(self, size: Size) -> Size:
        """Return the size of an image as the model sees it; see `VlmProcessor.resized`."""
        return self.processor.resized(size)

    def render(self, request: Request, max_new_tokens: int) -> RenderedVlmPrompt:
        """See `Backend.render`."""
        for text in (request.question, *(turn.question for turn in request.history)):
            self.processor.check_text(text)
        for turn in request.history:
            self.processor.check_answer(turn.answer)
        told = tell(self.card, request, self._way, self.processor.resized)
        return RenderedVlmPrompt(told, self.processor.render(told.messages), max_new_tokens)

    def encode(
        self, image: InputImage, prompts: Sequence[RenderedVlmPrompt]
    ) -> list[EncodedVlmPrompt | ItemError]:
        """See `Backend.encode`.

        A prompt that is too long, or that needs an image of a shape which the model does not take,
        becomes an error of its own.
        """
        if self._last is not image:
            self._encoded.clear()
            self._last = image
        wanted = {key for prompt in prompts for key in self._keys(prompt)}
        refused: dict[ImageKey, ImageError] = {}
        if missing := wanted - self._encoded.keys():
            pixels = image.load()
            for key in sorted(missing, key=repr):
                try:
                    self._encoded[key] = self._encode_part(key, pixels)
                except ImageError as error:
                    refused[key] = ImageError(f"{image.name}: {error}")
        encoded = [
            next((refused[key] for key in self._keys(prompt) if key in refused), None)
            or self._tokenize(prompt)
            for prompt in prompts
        ]
        # the whole image, which may be part of every prompt, stays
        for key in sorted(wanted & self._encoded.keys(), key=repr):
            self._encoded.move_to_end(key)
        while len(self._encoded) > IMAGES_KEPT:
            self._encoded.popitem(last=False)
        return encoded

    def _encode_part(self, key: ImageKey, pixels: Image.Image) -> tuple[PreparedImage, EncodedPart]:
        """Encode one image of prompts; its pixels are not kept, which are much larger."""
        part, alone = key
        prepared = self.processor.prepare(make_image(part, pixels), alone=alone)
        features = self.tower.encode(prepared.inputs)
        beside = {
            name: value for name, value in prepared.inputs.items() if not name.startswith("pixel")
        }
        return replace(prepared, inputs=beside), EncodedPart(features, beside)

    def generate(
        self,
        prompts: Sequence[EncodedVlmPrompt | ItemError],
        max_new_tokens: int,
        sampling: Sampling,
        seeds: Sequence[int],
        on_progress: OnProgress | None = None,
        schema: AnswerSchema | None = None,
    ) -> list[Completion | ItemError]:
        """See `Backend.generate`."""
        sound = {
            row: replace(prompt.prompt, seed=seeds[row])
            for row, prompt in enumerate(prompts)
            if isinstance(prompt, EncodedVlmPrompt)
        }
        rows = list(sound)

        def on_tokens(row: int, tokens: int, text: str) -> None:
            if on_progress:
                on_progress(rows[row], tokens, stable_text(text, ()).lstrip())

        decoded = self.language.generate(
            list(sound.values()),
            max_new_tokens,
            sampling,
            on_tokens if on_progress else None,
            partial(self._constraint, schema) if schema else None,
        )
        completions: dict[int, Completion | ItemError] = {
            row: Completion(answer.text, len(answer.ids), answer.confidence)
            for row, answer in zip(rows, decoded, strict=True)
        }
        return [
            prompt if isinstance(prompt, ItemError) else completions[row]
            for row, prompt in enumerate(prompts)
        ]

    def describe(self, request: Request, prompt: EncodedVlmPrompt) -> list[str]:
        """See `Backend.describe`."""
        told = prompt.rendered.told
        lines = [describe_way(told)]
        tokens = prompt.prompt.token_counts
        for number, (part, image) in enumerate(zip(told.images, prompt.images, strict=True), 1):
            lines.append(
                f"image {number}: {describe_image(part, image.size)}, seen as {image.seen}, "
                f"{tokens[number - 1]} tokens"
            )
        lines += describe_regions(request, told)
        return [*lines, "prompt:", *prompt.rendered.text.split("\n")]

    def score(self, prompt: EncodedVlmPrompt | ItemError, choices: Sequence[str]) -> list[float]:
        """See `Backend.score`; an answer ends as in the chat template."""
        if isinstance(prompt, ItemError):
            raise prompt
        for choice in choices:
            self.processor.check_text(choice, "a choice")
        end = self.processor.answer_end
        stop = self.language.stops[0] if end is None else end
        text, images = prompt.rendered.text, prompt.images
        answers = [self.processor.answer_ids(each, stop, text, images) for each in choices]
        return self.language.score(prompt.prompt, answers)

    def take_notes(self) -> list[str]:
        """See `TakesNotes`: what the cache of encoded images did."""
        return self.tower.cache.take_notes() if isinstance(self.tower, CachedTower) else []

    def _constraint(self, schema: AnswerSchema, rows: int) -> SchemaDecoding:
        model, tokenizer = self.language.model, self.processor.tokenizer
        return SchemaDecoding(schema, tokenizer, self.language.stops, logits_width(model), rows)

    def _keys(self, prompt: RenderedVlmPrompt) -> list[ImageKey]:
        """The images of a prompt, and whether each is processed as the only one."""
        parts = prompt.told.images
        alone = len(parts) == 1 or not self.processor.counts_images
        return [(part, alone) for part in parts]

    def _tokenize(self, prompt: RenderedVlmPrompt) -> EncodedVlmPrompt | ItemError:
        """Tokenize a prompt whose images are encoded."""
        keys = self._keys(prompt)
        prepared = [self._encoded[key][0] for key in keys]
        images = tuple(self._encoded[key][1] for key in keys)
        ids = self.processor.tokenize(prompt.text, prepared).ids
        context = self.language.context
        if context is not None and len(ids) + prompt.max_new_tokens > context:
            return LengthError(
                f"question and images take {len(ids)} tokens, there is room for "
                f"{max(context - prompt.max_new_tokens, 0)} beside an answer of "
                f"{prompt.max_new_tokens}; ask a shorter question or lower --max-new-tokens"
            )
        name = self.language.type_name
        types = tuple(self.processor.token_types(ids, name)) if name else None
        causal = self.card.prefix is PrefixSharing.causal
        shared = self.language.shared_length(ids, images[0]) if causal else 0
        encoded = VlmPrompt(ids, types, images, shared)
        return EncodedVlmPrompt(prompt, encoded, tuple(prepared))


def open_model(folder: Path) -> VlmModel:
    """Open a checkpoint's folder, or a card's; BundleError where neither names a known model."""
    found = vlm_in_folder(folder)
    return VlmModel(found.card, found.folder, has_card=found.path is not None)
