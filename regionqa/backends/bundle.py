"""Backend of bundles: ONNX Runtime encoders and a language model in torch.

Image and region tokens are spliced into the embedded prompt of the language model.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from regionqa.backends.base import Completion, ModelInfo, OnProgress
from regionqa.bundles.card import ConfidenceCard
from regionqa.bundles.store import Bundle, open_bundle
from regionqa.errors import BundleError, DeviceError, ItemError, UsageError
from regionqa.images.reading import InputImage
from regionqa.language.answer_schemas import AnswerSchema
from regionqa.language.prompts import read_answer, render_dialogue
from regionqa.language.streaming import stable_answer
from regionqa.language.tokenization import Prompt, answer_ids, prompt_text, tokenize
from regionqa.options import DeviceChoice, RuntimeOptions, VisionRuntime
from regionqa.regions import Region
from regionqa.requests import Request, Sampling
from regionqa.runtime.devices import Device, choose_device
from regionqa.runtime.encoders import EncodedImage, Floats, RegionEncoder, VisionEncoder
from regionqa.runtime.precision import SINGLE, Precision, choose_precision

if TYPE_CHECKING:
    from regionqa.language.generation import LanguageModel, SplicedPrompt

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BundleModel:
    """A bundle whose files are not loaded yet."""

    bundle: Bundle

    @cached_property
    def info(self) -> ModelInfo:
        """The model's properties, from its card."""
        card = self.bundle.card
        return ModelInfo(
            name=card.name,
            revision=card.revision,
            max_regions=card.max_regions,
            max_new_tokens=card.language.max_new_tokens,
            image_question=card.prompt.image_question,
            region_question=card.prompt.region_question,
            temperature=card.language.temperature,
            top_k=card.language.top_k,
            confidence=card.confidence or ConfidenceCard(threshold=0.0),
            region_input=card.prompt.region_input,
            multi_turn=card.prompt.turn is not None,
            introduction=card.prompt.introduction if card.prompt.region else "",
            separator=card.prompt.separator,
        )

    def configured(self, options: RuntimeOptions) -> "BundleModel":
        """See `Model.configured`."""
        if options.way is not None:
            raise UsageError(
                f"--way {options.way}: the model {self.bundle.card.name} was trained with one way "
                "of reading regions; leave it out, or choose a vision-language model of the Hub"
            )
        own = (options.vision_runtime is not VisionRuntime.auto, options.cache is not None)
        for given, flag in zip(own, ("--vision-runtime", "--cache"), strict=True):
            if given:
                raise UsageError(
                    f"{flag}: has no effect with the model {self.bundle.card.name}; leave it out, "
                    "or choose a vision-language model of the Hub"
                )
        return self

    def load(self, options: RuntimeOptions) -> "BundleBackend":
        """Open the ONNX sessions and load the language model.

        With the device "auto", falls back to the CPU if a session cannot be opened on CUDA, and
        logs the reason.
        """
        from regionqa.language.generation import LanguageModel

        bundle = self.bundle
        if bundle.card.untrained:
            parts = " and ".join(bundle.card.untrained)
            log.warning("%s has an untrained %s; train it first", bundle.card.name, parts)
        chosen = choose_device(options.device)
        weights = bundle.language_folder
        precision = choose_precision(weights, chosen, options.dtype, options.quantize)
        try:
            vision = VisionEncoder(bundle, chosen, half=precision.half_encoders)
        except DeviceError as error:
            if options.device is not DeviceChoice.auto:
                raise
            log.warning("falling back to the CPU: %s", error)
            chosen = Device.cpu
            precision = choose_precision(weights, chosen, options.dtype, options.quantize)
            vision = VisionEncoder(bundle, chosen, half=precision.half_encoders)
        half = precision.half_encoders
        region = RegionEncoder(bundle, chosen, half=half) if bundle.card.region else None
        language = LanguageModel(bundle, chosen, precision)
        return BundleBackend(self, vision, region, language, chosen, precision)


def open_model(folder: Path) -> BundleModel:
    """Open the bundle in a folder; BundleError where it is not sound."""
    return BundleModel(open_bundle(folder))


@dataclass(frozen=True)
class BundlePrompt:
    """A tokenized prompt and the regions that fill its slots."""

    tokens: Prompt
    regions: tuple[Region, ...]


@dataclass
class ImageEncoding:
    """Encoder inputs and outputs of one image, kept for further requests about it."""

    image: InputImage
    encoded: EncodedImage
    region_pixels: Floats | None
    """Input (1, 3, h, w) of a region encoder that reads pixels; None until a region needs it."""


class BundleBackend:
    """A loaded bundle."""

    def __init__(
        self,
        model: BundleModel,
        vision: VisionEncoder,
        region: RegionEncoder | None,
        language: "LanguageModel",
        device: Device,
        precision: Precision = SINGLE,
    ) -> None:
        """Combine the parts; BundleError where their hidden sizes differ."""
        bundle = model.bundle
        encoders: list[VisionEncoder | RegionEncoder] = [vision, *([region] if region else [])]
        for encoder in encoders:
            if encoder.hidden_size != language.hidden_size:
                raise BundleError(
                    f"{bundle.root}: {type(encoder).__name__} gives tokens "
                    f"{encoder.hidden_size} wide, the language model reads {language.hidden_size}"
                )
        self.bundle = bundle
        self.info = model.info
        self.vision = vision
        self.region = region
        self.language = language
        self._device = device
        self._precision = precision
        self._last: ImageEncoding | None = None
        self._image_numbers = count()

    @property
    def device(self) -> Device:
        """Device of encoders and language model."""
        return self._device

    @property
    def precision(self) -> str:
        """Precision of the language model, as in "bfloat16" or "4bit+float16"."""
        return str(self._precision)

    def render(self, request: Request, max_new_tokens: int) -> BundlePrompt:
        """See `Backend.render`."""
        assert request.source is not None
        card, tokenizer = self.bundle.card, self.language.tokenizer
        width, height = request.source.width, request.source.height
        boxes = [region.box for region in request.regions]
        pieces = render_dialogue(
            card.prompt,
            [*(earlier.question for earlier in request.history), request.question],
            [earlier.answer for earlier in request.history],
            [(b.x0 / width, b.y0 / height, b.x1 / width, b.y1 / height) for b in boxes],
            card.language.stop[0],
            tokenizer.special_tokens,
            [*(earlier.regions for earlier in request.history), len(boxes)],
        )
        region_tokens = card.region.tokens if card.region else 0
        tokens = tokenize(pieces, tokenizer, card.vision.image_tokens, region_tokens)
        self.language.check_length(tokens, max_new_tokens)
        return BundlePrompt(tokens, request.regions)

    def encode(self, image: InputImage, prompts: Sequence[BundlePrompt]) -> "list[SplicedPrompt]":
        """See `Backend.encode`; all regions go through the region encoder in one call."""
        from regionqa.language.generation import SplicedPrompt

        regions = [region for prompt in prompts for region in prompt.regions]
        encoding = self._encode_image(image, with_regions=bool(regions))
        tokens = self._encode_regions(encoding, regions)  # (N, K, H)
        number = next(self._image_numbers)
        encoded = []
        start = 0
        for prompt in prompts:
            end = start + len(prompt.regions)
            encoded.append(
                SplicedPrompt(
                    prompt.tokens, number, encoding.encoded.image_tokens, tokens[start:end]
                )
            )
            start = end
        return encoded

    def generate(
        self,
        prompts: "Sequence[SplicedPrompt]",
        max_new_tokens: int,
        sampling: Sampling,
        seeds: Sequence[int],
        on_progress: OnProgress | None = None,
        schema: AnswerSchema | None = None,
    ) -> list[Completion | ItemError]:
        """See `Backend.generate`; the prompt up to the end of an image is read once per image."""
        rules, stops = self.bundle.card.prompt, self.bundle.card.language.stop

        def on_tokens(row: int, tokens: int, text: str) -> None:
            assert on_progress is not None
            on_progress(row, tokens, stable_answer(rules, text, stops))

        seeded = [replace(prompt, seed=seed) for prompt, seed in zip(prompts, seeds, strict=True)]
        generated = self.language.generate(
            seeded, max_new_tokens, sampling, on_tokens if on_progress else None
        )
        return [
            Completion(read_answer(rules, each.text), len(each.ids), each.confidence)
            for each in generated
        ]

    def describe(self, request: Request, prompt: "SplicedPrompt") -> list[str]:
        """See `Backend.describe`."""
        image, card = request.source, self.bundle.card
        assert image is not None
        side = card.image.size
        tokens = prompt.image_tokens.shape[0]
        lines = [
            f"regions are given as {card.prompt.region_input}",
            f"image: {image.width} x {image.height} pixels, seen as {side} x {side}, "
            f"{tokens} tokens",
        ]
        boxes = [region.box for region in request.regions]
        seen = card.preprocessing.boxes(boxes, image.width, image.height)
        for number, (box, own) in enumerate(zip(boxes, seen, strict=True), start=1):
            numbers = ", ".join(f"{value:.2f}" for value in own)
            lines.append(
                f"region {number}: {box} in pixels of the image, {numbers} in the encoder's input"
            )
        return [*lines, "prompt:", *prompt_text(prompt.prompt, self.language.tokenizer).split("\n")]

    def score(self, prompt: "SplicedPrompt", choices: Sequence[str]) -> list[float]:
        """See `Backend.score`."""
        card, tokenizer = self.bundle.card, self.language.tokenizer
        stop = card.language.stop[0]
        ids = [answer_ids(card.prompt, choice, stop, tokenizer) for choice in choices]
        return self.language.score(prompt, ids)

    def _encode_image(self, image: InputImage, *, with_regions: bool) -> ImageEncoding:
        """Encode an image, decoding it once for both encoders, or return the last encoding."""
        preprocessing = self.bundle.card.preprocessing
        last = self._last if self._last is not None and self._last.image is image else None
        wants_pixels = with_regions and self._takes_features and preprocessing.region is not None
        if last is not None and (last.region_pixels is not None or not wants_pixels):
            return last
        pixels = image.load()
        if last is None:
            encoded = self.vision.encode(preprocessing.pixel_values(pixels))[0]
            last = self._last = ImageEncoding(image, encoded, None)
        if wants_pixels:
            last.region_pixels = preprocessing.region_pixels(pixels)
        return last

    @property
    def _takes_features(self) -> bool:
        return self.region is not None and self.bundle.card.prompt.takes_features

    def _encode_regions(self, encoding: ImageEncoding, regions: Sequence[Region]) -> Floats:
        """Region tokens (N, K, H) of regions of one image, in one call."""
        if self.region is None or not self._takes_features or not regions:
            return np.zeros((len(regions), 0, self.language.hidden_size), np.float32)
        image = encoding.image
        boxes = self.bundle.card.preprocessing.boxes(
            [region.box for region in regions], image.width, image.height
        )
        sources: Sequence[Floats] = encoding.encoded.levels
        if encoding.region_pixels is not None:
            sources = [encoding.region_pixels]
        return self.region.encode(sources, np.array(boxes, np.float32))  # boxes (N, 4)
