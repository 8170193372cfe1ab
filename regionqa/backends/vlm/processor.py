"""A checkpoint's own processor: chat template, tokenizer and image processor.

An image is processed once, on its own, however many prompts it is part of. Prompt text and pixel
values are those that the processor gives for the whole prompt.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from regionqa.errors import BundleError, ImageError, QuestionError, message_of
from regionqa.vlm.card import VlmCard
from regionqa.vlm.coordinates import Size
from regionqa.vlm.messages import Message
from regionqa.vlm.region_images import pad_to_square

if TYPE_CHECKING:
    from torch import Tensor

TEXT_KEYS = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids", "labels",
             "text_replacement_offsets")  # fmt: skip
"""Outputs of a processor that belong to the text."""
BLANKS = " \t\n\r\u2581"
"""White space, and the character by which SentencePiece writes a space."""
LOAD_ERRORS = (OSError, ValueError, RuntimeError, ImportError, KeyError, TypeError, AttributeError)
"""What transformers raises for the files of a checkpoint that it cannot use."""


@dataclass(frozen=True)
class PreparedImage:
    """One image as the vision encoder's input."""

    inputs: Mapping[str, "Tensor"]
    """Arguments of the encoder by name: `pixel_values`, and what the family gives beside them."""
    text: str
    """Text that stands for the image in a prompt, placeholder tokens included."""
    size: Size
    """Width and height before processing."""
    seen: str
    """Size after processing, in words."""


@dataclass(frozen=True)
class PromptTokens:
    """A tokenized prompt."""

    ids: tuple[int, ...]
    """Token ids; the placeholders of images are in their places."""
    text: str
    """The prompt with all special tokens, images as one placeholder each."""


class VlmProcessor:
    """Wraps transformers' processor of one checkpoint."""

    def __init__(self, folder: Path, card: VlmCard, *, cuda: bool = False) -> None:
        """Open the processor files of a checkpoint.

        Args:
            folder: The checkpoint.
            card: Its card.
            cuda: Whether images have the size for CUDA.

        Raises:
            BundleError: A file is missing or cannot be used.
        """
        from transformers import AutoProcessor

        try:
            self.processor = AutoProcessor.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
        except LOAD_ERRORS as error:
            reason = message_of(error)
            raise BundleError(
                f"{folder}: transformers cannot load its processor: {reason}"
            ) from error
        self._card = card
        self._folder = folder
        self._budget = dict(card.images.cuda if cuda else card.images.cpu)
        self.tokenizer = self.processor.tokenizer
        self._mark = self._own_mark()
        special = {*map(str, self.tokenizer.all_special_tokens), self.image_token}
        added = {token.content for token in self.tokenizer.added_tokens_decoder.values()}
        self._special, self._controls = one_of(special), one_of(special | added)

    @property
    def counts_images(self) -> bool:
        """Whether an image is processed in another way beside further images of its prompt."""
        return "batch_num_images" in self.processor.image_processor.model_input_names

    @property
    def image_token_id(self) -> int:
        """Id of the placeholder of which an image has as many as features."""
        token_id = getattr(self.processor, "image_token_id", None)
        return int(self.tokenizer.convert_tokens_to_ids(self.image_token) if token_id is None
                   else token_id)  # fmt: skip

    @property
    def image_token(self) -> str:
        """The placeholder."""
        return str(self.processor.image_token)

    def check_text(self, text: str, what: str = "the question") -> None:
        """QuestionError if a user's text holds a control token of the model.

        Args:
            text: The text.
            what: What it is, as the subject of the error's sentence.
        """
        if found := self._controls.search(text):
            raise QuestionError(
                f"{what} holds {found[0]!r}, which is a control token of the model "
                f"{self._card.name}; leave it out"
            )

    def check_answer(self, text: str) -> None:
        """QuestionError if an earlier answer holds a token that decoded answers never hold.

        Other control tokens may be what the model answered.
        """
        if found := self._special.search(text):
            raise QuestionError(
                f"an earlier answer holds {found[0]!r}, which is a control token of the model "
                f"{self._card.name}; leave it out"
            )

    def prepare(self, image: Image.Image, *, alone: bool = True) -> PreparedImage:
        """Process one image.

        Args:
            image: RGB.
            alone: Whether it is the only image of its prompt; see `counts_images`.

        Raises:
            ImageError: The image processor does not take it, such as one that is 200 times as wide
                as high.
            BundleError: The image processor does not have a setting of the card.
        """
        size = image.size
        if self._card.images.square:
            mean = self.processor.image_processor.image_mean
            red, green, blue = (int(255 * channel) for channel in mean)
            image = pad_to_square(image, (red, green, blue))
        copies = 1 if alone else 2
        try:
            output = self.processor(
                text=[self._mark * copies],
                images=[[image] * copies],
                images_kwargs=self._budget,
                return_text_replacement_offsets=True,
                return_tensors="pt",
            )
        except (ValueError, RuntimeError) as error:  # LFM2-VL's tiles do not fit every shape
            raise self._refused(size, error) from error
        except TypeError as error:
            raise BundleError(
                f"the card of {self._card.name}: its [images] do not fit the image processor of "
                f"{self._folder}: {error}"
            ) from error
        replacement, *_ = output["text_replacement_offsets"][0]
        inputs = {key: value for key, value in output.items() if key not in TEXT_KEYS}
        if not alone:  # of both, one is kept; the number of images stays
            inputs |= {key: inputs[key][:1] for key in inputs if len(inputs[key]) == copies}
        seen = seen_size(inputs, getattr(self.processor.image_processor, "patch_size", None))
        return PreparedImage(inputs, replacement["replacement"], size, seen)

    def render(self, messages: Sequence[Message]) -> str:
        """Render messages by the checkpoint's chat template; images are one placeholder each."""
        if self._card.chat.plain is not None or self._card.chat.tasks:
            return self._plain(messages)
        return self._templated(messages, add_generation_prompt=True)

    def _templated(self, messages: Sequence[Message], *, add_generation_prompt: bool) -> str:
        conversation = [
            {
                "role": message.role,
                "content": [
                    {"type": "text", "text": part} if isinstance(part, str) else {"type": "image"}
                    for part in message.parts
                ],
            }
            for message in messages
        ]
        from jinja2 import TemplateError

        try:
            text: str = self.processor.apply_chat_template(
                conversation,
                add_generation_prompt=add_generation_prompt,
                **self._card.chat.template_options,
            )
        except (ValueError, TypeError, TemplateError) as error:
            raise BundleError(
                f"{self._folder}: its chat template cannot be used: {error}"
            ) from error
        return text

    def tokenize(self, text: str, images: Sequence[PreparedImage]) -> PromptTokens:
        """Tokenize a rendered prompt, with the placeholders of its images.

        Args:
            text: As `render` returns it.
            images: One per placeholder, in order.
        """
        (expanded,), _ = self.processor.get_text_with_replacements(
            [text], [image.text for image in images]
        )
        start = self.tokenizer.bos_token
        special = not (start is not None and text.startswith(start))
        if self._card.chat.plain is not None or self._card.chat.tasks:
            special = False  # the processor has put them
        ids = self.tokenizer(expanded, add_special_tokens=special, verbose=False)["input_ids"]
        return PromptTokens(tuple(ids), text)

    def token_types(self, ids: Sequence[int], name: str) -> list[int]:
        """Return the type of each token, as the model's argument `name` wants it.

        That is 1 for each token of an image and 0 for others (`mm_token_type_ids`), or 0 for the
        whole prompt, which is attended both ways (`token_type_ids`).
        """
        if name == "token_type_ids":
            return [0] * len(ids)
        types: list[int] = self.processor.create_mm_token_type_ids([list(ids)])[0]
        return types

    def answer_ids(
        self, answer: str, stop: int, prompt: str, images: Sequence[PreparedImage]
    ) -> list[int]:
        """Tokenize a whole answer as it follows a prompt, with the token that ends it.

        Args:
            answer: The answer.
            stop: Id of the token that ends it.
            prompt: The rendered prompt.
            images: Its images.
        """
        text = self.answer_start + answer.strip()
        before = self.tokenize(prompt, images).ids
        whole = self.tokenize(prompt + text, images).ids
        if whole[: len(before)] == before:
            return [*whole[len(before) :], stop]
        ids: list[int] = self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return [*ids, stop]

    @cached_property
    def answer_start(self) -> str:
        """The space that the chat template puts before an answer, which the model generates."""
        if self._card.chat.plain is not None or self._card.chat.tasks:
            return ""
        answer = "answer"
        turns = [Message("user", ("?",)), Message("assistant", (answer,))]
        prompt = self._templated(turns[:1], add_generation_prompt=True)
        whole = self._templated(turns, add_generation_prompt=False)
        between = whole.removeprefix(prompt).partition(answer)[0]
        return between if between.isspace() else ""

    @cached_property
    def answer_end(self) -> int | None:
        """The special token that the chat template puts after an answer; None: it puts none."""
        if self._card.chat.plain is not None or self._card.chat.tasks:
            return None
        answer = "answer"
        turns = [Message("user", ("?",)), Message("assistant", (answer,))]
        after = self._templated(turns, add_generation_prompt=False).rpartition(answer)[2].lstrip()
        ids: list[int] = self.tokenizer(after, add_special_tokens=False, verbose=False)["input_ids"]
        return ids[0] if ids and ids[0] in self.tokenizer.all_special_ids else None

    def decode(self, ids: Sequence[int]) -> str:
        """Decode generated tokens, without special tokens."""
        text: str = self.tokenizer.decode(list(ids), skip_special_tokens=True)
        return text

    def resized(self, size: Size) -> Size:
        """Return the size to which the image processor resizes an image.

        Raises:
            BundleError: This processor does not resize by the rule of Qwen2-VL.
            ImageError: It does not take an image of this shape.
        """
        from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

        settings = self.processor.image_processor
        limits = {**dict(settings.size), **self._budget.get("size", {})}
        if not {"shortest_edge", "longest_edge"} <= limits.keys():
            raise BundleError(
                f"the card of {self._card.name}: coordinates in pixels of the resized image need "
                "an image processor that resizes to a number of pixels"
            )
        try:
            height, width = smart_resize(
                size[1],
                size[0],
                settings.patch_size * settings.merge_size,
                limits["shortest_edge"],
                limits["longest_edge"],
            )
        except ValueError as error:
            raise self._refused(size, error) from error
        return width, height

    def _refused(self, size: Size, error: Exception) -> ImageError:
        """The error of an image that the image processor does not take."""
        return ImageError(
            f"the model {self._card.name} cannot be given an image of {size[0]} x {size[1]} "
            f"pixels: {error}; crop it"
        )

    def _own_mark(self) -> str:
        """The placeholder; empty if the processor itself puts it before the text."""
        _, (text,), *_ = self.processor.prepare_inputs_layout(
            images=[[Image.new("RGB", (8, 8))]], text=[self.image_token]
        )
        return self.image_token if text.count(self.image_token) == 1 else ""

    def _plain(self, messages: Sequence[Message]) -> str:
        """Lay out the last question for a model without a chat template, by its processor."""
        parts = messages[-1].parts
        question = "\n".join(part for part in parts if isinstance(part, str))
        if self._card.chat.plain is not None:
            question = self._card.chat.plain.format(question=question)
        images = [Image.new("RGB", (8, 8)) for part in parts if not isinstance(part, str)]
        _, (text,), *_ = self.processor.prepare_inputs_layout(
            images=[images], text=[self._mark * len(images) + question]
        )
        return str(text)


def one_of(tokens: Iterable[str]) -> re.Pattern[str]:
    """Return a pattern that finds control tokens, the longest first.

    Those of white space are left out: Gemma has tokens of its own for line breaks and runs of
    spaces, which are mere text.
    """
    found = sorted((token for token in tokens if token.strip(BLANKS)), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, found)))


def seen_size(inputs: Mapping[str, "Tensor"], patch: int | None) -> str:
    """Return in words how large a vision encoder sees an image.

    Args:
        inputs: The encoder's inputs for one image.
        patch: Side of a patch in pixels, of processors that give patches instead of images.
    """
    grid = inputs.get("image_grid_thw")
    if grid is not None and patch is not None:
        _, down, across = grid[0].tolist()
        return f"{across * patch} x {down * patch} pixels"
    pixels = inputs["pixel_values"]
    if pixels.ndim < 4:
        places = inputs.get("image_position_ids")  # (1, patches, 2); -1 is padding
        count = pixels.shape[-2] if places is None else int((places[..., 0] >= 0).sum())
        return f"{count} patches"
    height, width = pixels.shape[-2:]
    tiles = pixels.shape[:-3].numel()
    return (
        f"{tiles} tiles of {width} x {height} pixels" if tiles > 1 else f"{width} x {height} pixels"
    )
