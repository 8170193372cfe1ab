"""A server's model as a backend of the engine.

Prompts are the messages of `regionqa.vlm.messages.tell`, as for the same model on this machine;
the server applies the chat template. Images are sent as data URLs.
"""

import asyncio
import base64
import io
import math
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import count
from typing import Any

from PIL import Image

from regionqa.backends.base import ChosenAnswer, Completion, OnProgress
from regionqa.backends.server.choices import (
    check_json,
    choice_request,
    read_choice,
    response_format,
)
from regionqa.backends.server.client import ChatClient, OnReply
from regionqa.backends.server.model import ServerModel
from regionqa.errors import ItemError, QuestionError
from regionqa.images.reading import InputImage
from regionqa.language.answer_schemas import AnswerSchema
from regionqa.requests import Request, Sampling
from regionqa.vlm.coordinates import Size
from regionqa.vlm.messages import Message, Told, describe_regions, describe_way, tell
from regionqa.vlm.region_images import ImagePart, describe_image, make_image

LOSSLESS_PIXELS = 512 * 512
"""Images of at most this many pixels are sent as PNG, larger ones as JPEG."""
JPEG_QUALITY = 95
"""Without subsampling of colours, which would blur text and the lines of drawn boxes."""
CONTROL = re.compile(r"<\|[^|<>\s]+\|>")
"""Control tokens of chat templates, which servers recognise in a user's text too."""
SEEDS = 1 << 31
"""Seeds are taken modulo this: servers read them as signed or as 32 bits."""


@dataclass(frozen=True)
class SentImage:
    """An image as it is sent."""

    url: str
    """A data URL."""
    size: Size
    """Width and height before it was reduced."""
    sent: Size
    """Width and height as sent."""


@dataclass(frozen=True)
class ServerPrompt:
    """A prompt with its images."""

    told: Told
    """What is said, and why in this way."""
    images: tuple[SentImage, ...]
    """The images of all messages, in order."""

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The messages in the form of the protocol."""
        images = iter(self.images)
        return [
            {"role": message.role, "content": _content(message, images)}
            for message in self.told.messages
        ]


class ServerBackend:
    """A model of a server."""

    device = "server"
    precision = "unknown"

    def __init__(self, model: ServerModel, client: ChatClient) -> None:
        """Combine the parts.

        Args:
            model: The model that was found.
            client: Asks its server.
        """
        self.info = model.info
        self.card = model.card
        self.client = client
        self._model = model
        self._last: InputImage | None = None
        self._sent: dict[ImagePart, SentImage] = {}

    def render(self, request: Request, max_new_tokens: int) -> Told:
        """See `Backend.render`."""
        for text in (request.question, *(turn.question for turn in request.history)):
            if found := CONTROL.search(text):
                raise QuestionError(
                    f"the question holds {found[0]!r}, which a server may take for a control token "
                    "of the model; leave it out"
                )
        return tell(self.card, request, self._model.way, _resized)

    def encode(self, image: InputImage, prompts: Sequence[Told]) -> list[ServerPrompt]:
        """See `Backend.encode`; each image that a prompt holds is made and encoded once."""
        if self._last is not image:
            self._sent, self._last = {}, image
        wanted = {part for prompt in prompts for part in prompt.images}
        if missing := wanted - self._sent.keys():
            pixels = image.load()
            for part in missing:
                made = make_image(part, pixels)
                small = reduced(made, self.card.images.server_pixels)
                self._sent[part] = SentImage(data_url(small), made.size, small.size)
        self._sent = {part: self._sent[part] for part in wanted}
        return [
            ServerPrompt(prompt, tuple(self._sent[part] for part in prompt.images))
            for prompt in prompts
        ]

    def generate(
        self,
        prompts: Sequence[ServerPrompt],
        max_new_tokens: int,
        sampling: Sampling,
        seeds: Sequence[int],
        on_progress: OnProgress | None = None,
        schema: AnswerSchema | None = None,
    ) -> list[Completion | ItemError]:
        """See `Backend.generate`; several prompts are asked at the same time."""

        async def ask(row: int) -> Completion | ItemError:
            body = self._body(prompts[row])
            body |= {"max_tokens": max_new_tokens, "temperature": sampling.temperature,
                     "seed": seeds[row] % SEEDS, "logprobs": True}  # fmt: skip
            if sampling.top_k:
                body["top_k"] = sampling.top_k
            if schema is not None:
                body["response_format"] = response_format("answer", schema.content)
            on_reply: OnReply | None = None
            if on_progress is not None:
                progress = on_progress

                def on_reply(reply: Any) -> None:
                    progress(row, reply.count, reply.stable)

            try:
                reply = await self.client.reply(body, on_reply)
                reply.check(max_new_tokens)
                if schema is not None:
                    check_json(reply)
            except ItemError as error:
                return error
            return Completion(reply.answer, reply.count, reply.confidence)

        async def ask_all() -> list[Completion | ItemError]:
            tasks = [asyncio.create_task(ask(row)) for row in range(len(prompts))]
            try:
                return list(await asyncio.gather(*tasks))
            finally:
                for task in tasks:
                    task.cancel()

        return self.client.run(ask_all())

    def describe(self, request: Request, prompt: ServerPrompt) -> list[str]:
        """See `Backend.describe`; the server turns the messages into text by its chat template."""
        told = prompt.told
        lines = [describe_way(told)]
        for number, (part, image) in enumerate(zip(told.images, prompt.images, strict=True), 1):
            size = f"{image.sent[0]} x {image.sent[1]}"
            lines.append(
                f"image {number}: {describe_image(part, image.size)}, sent as {size}, which the "
                "server may resize"
            )
        lines += describe_regions(request, told)
        lines.append("messages, to which the server applies its chat template:")
        numbers = count(1)
        for message in told.messages:
            for piece in message.parts:
                text = piece if isinstance(piece, str) else f"[image {next(numbers)}]"
                lines += [f"{message.role}: {line}" for line in text.split("\n")]
        return lines

    def score(self, prompt: ServerPrompt, choices: Sequence[str]) -> "Future[ChosenAnswer]":
        """See `Backend.score`; the server's structured output allows the choices only."""

        async def choose() -> ChosenAnswer:
            body = self._body(prompt) | choice_request(choices)
            reply = await self.client.reply(body)
            reply.check(body["max_tokens"])
            return read_choice(reply, choices)

        return self.client.start(choose())

    def _body(self, prompt: ServerPrompt) -> dict[str, Any]:
        """The part of a request that does not depend on how it is answered."""
        body: dict[str, Any] = {
            "model": self._model.served,
            "messages": prompt.messages,
            "stream_options": {"include_usage": True},
        }
        if self.card.chat.template_options:
            body["chat_template_kwargs"] = dict(self.card.chat.template_options)
        return body


def _content(message: Message, images: Iterator[SentImage]) -> str | list[dict[str, Any]]:
    """The content of a message in the form of the protocol: text alone is a string."""
    if all(isinstance(part, str) for part in message.parts):
        return "\n".join(map(str, message.parts))
    return [
        {"type": "text", "text": part}
        if isinstance(part, str)
        else {"type": "image_url", "image_url": {"url": next(images).url}}
        for part in message.parts
    ]


def reduced(image: Image.Image, most: int) -> Image.Image:
    """Reduce an image to a number of pixels; its sides keep their ratio, rounded down."""
    if image.width * image.height <= most:
        return image
    scale = math.sqrt(most / (image.width * image.height))
    size = max(1, int(image.width * scale)), max(1, int(image.height * scale))
    return image.resize(size, Image.Resampling.BICUBIC)


def data_url(image: Image.Image) -> str:
    """Encode an image as a data URL."""
    buffer = io.BytesIO()
    if image.width * image.height <= LOSSLESS_PIXELS:
        kind = "png"
        image.save(buffer, "PNG")
    else:
        kind = "jpeg"
        image.save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def _resized(size: Size) -> Size:
    """Never called: a card that needs it has lost the way `coordinates`."""
    raise AssertionError("the size to which a server resizes is not known")
