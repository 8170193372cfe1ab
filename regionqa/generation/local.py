"""A language model of transformers on this machine as a source of replies."""

import asyncio
import threading
from collections.abc import Coroutine, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from regionqa.errors import BundleError, ItemError, UsageError, message_of
from regionqa.generation.sources import TextReply, TextRequest
from regionqa.runtime.event_loop import EventLoopThread

if TYPE_CHECKING:
    from torch import Tensor

    from regionqa.backends.vlm.constraints import SchemaDecoding

Result = TypeVar("Result")
THINKING_OFF = {"enable_thinking": False}
"""Variables of chat templates; those that a template does not know have no effect."""


class _ClosedError(Exception):
    """The source was closed while it wrote a reply."""


class LocalSource:
    """A language model of transformers, which answers one request after another.

    Each request is decoded by itself with its own random generator, so that a reply does not depend
    on those before it. Replies are bound to their schema, token by token.
    """

    def __init__(self, name: str, folder: Path, device: str, dtype: str) -> None:
        """Load a model.

        Args:
            name: What the user calls it.
            folder: Its weights, tokenizer and chat template.
            device: "auto", "cpu" or "cuda".
            dtype: "auto" or a precision, as for other models.

        Raises:
            BundleError: The folder cannot be loaded.
            UsageError: The model has no chat template.
            DeviceError: The device cannot be used.
        """
        import torch
        from transformers import AutoTokenizer, GenerationConfig

        from regionqa.language.decoders import TransformersDecoder
        from regionqa.runtime.devices import choose_device
        from regionqa.runtime.precision import choose_precision

        self.name = name
        self.attempts = 0
        where = choose_device(device)
        precision = choose_precision(folder, where, dtype)
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
        except (OSError, ValueError, ImportError) as error:
            reason = message_of(error)
            raise BundleError(f"{folder}: transformers cannot load its tokenizer: {reason}") from (
                error
            )
        if not self._tokenizer.chat_template:
            raise UsageError(
                f"--text-model {name}: has no chat template; name a model that was trained to "
                "follow instructions"
            )
        self._device = torch.device(where.value)
        self._decoder = TransformersDecoder(folder, getattr(torch, precision.dtype), self._device)
        stops: Any = self._tokenizer.eos_token_id
        if (folder / "generation_config.json").is_file():
            stops = GenerationConfig.from_pretrained(folder).eos_token_id or stops
        self._stops = frozenset(stops if isinstance(stops, list) else [stops])
        self._schemas: dict[str, SchemaDecoding] = {}
        self._context = context_of(folder)
        self._closed = threading.Event()
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="language model")
        self._thread = EventLoopThread("replies", self._end_worker)

    async def reply(self, request: TextRequest) -> TextReply:
        """See `ReplySource.reply`."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._worker, self._written, request)

    def start(self, work: Coroutine[Any, Any, Result]) -> "Future[Result]":
        """See `ReplySource.start`."""
        return self._thread.start(work)

    def close(self) -> None:
        """See `ReplySource.close`; a reply that is being written ends at its next token."""
        self._closed.set()
        self._thread.close(seconds=None)

    async def _end_worker(self) -> None:
        # the worker reports to the loop, so it ends first
        self._worker.shutdown(cancel_futures=True)

    def _written(self, request: TextRequest) -> TextReply:
        """Write a reply, in the worker's thread."""
        import torch

        from regionqa.language.decoding import AnswerRows, Stops, decode_answers
        from regionqa.language.sampling import TokenSampler
        from regionqa.requests import Sampling

        self.attempts += 1
        ids = self._encoded(request.messages)
        room = request.max_tokens
        if self._context is not None and len(ids) + room > self._context:
            raise ItemError(
                f"the prompt has {len(ids):,} tokens and the reply up to {room:,}, but the model "
                f"reads {self._context:,}; lower --max-new-tokens, or choose another model"
            )
        with torch.inference_mode():
            run = _Decoding(self, ids)
            rows = AnswerRows(1, self._decoded, Stops(self._stops))
            sampler = TokenSampler(Sampling(request.temperature), [request.seed])
            constraint = self._constraint(request, run.logits.shape[-1])
            (answer,) = decode_answers(run.logits, run.advance, rows, sampler, room, constraint)
        finish = "length" if rows.unfinished else "stop"
        return TextReply(answer.text, finish, len(ids), len(answer.ids))

    def _encoded(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Render messages by the chat template, which may have no role for the system's text."""
        from jinja2.exceptions import TemplateError

        try:
            return self._rendered(messages)
        except TemplateError:
            system, first, *others = messages
            joined = {"role": "user", "content": f"{system['content']}\n\n{first['content']}"}
            return self._rendered([joined, *others])

    def _rendered(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        text = self._tokenizer.apply_chat_template(
            list(map(dict, messages)), tokenize=False, add_generation_prompt=True, **THINKING_OFF
        )
        ids: list[int] = self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return ids

    def _decoded(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=True))

    def _constraint(self, request: TextRequest, vocabulary: int) -> "SchemaDecoding":
        """Return what binds a reply to its schema; each schema is compiled once."""
        import json

        from regionqa.backends.vlm.constraints import SchemaDecoding
        from regionqa.language.answer_schemas import AnswerSchema

        name = request.schema_name
        if name not in self._schemas:
            schema = AnswerSchema(json.dumps(request.schema))
            stops = sorted(self._stops)
            self._schemas[name] = SchemaDecoding(schema, self._tokenizer, stops, vocabulary, 1)
        return self._schemas[name].renewed(1)


class _Decoding:
    """The decoder's state after a prompt, token by token."""

    def __init__(self, source: LocalSource, ids: Sequence[int]) -> None:
        import torch

        self._source = source
        self._cache: Any = None
        self._length = 0
        self.logits = self.run(torch.tensor([ids]))
        """After the prompt, (1, V)."""

    def advance(self, tokens: "Tensor") -> "Tensor":
        """Append a token, (1,), and return the logits after it, (1, V)."""
        return self.run(tokens.unsqueeze(1))

    def run(self, ids: "Tensor") -> "Tensor":
        """Run the decoder on ids (1, S); return the logits after them."""
        import torch

        if self._source._closed.is_set():
            raise _ClosedError
        decoder, device = self._source._decoder, self._source._device
        begin, self._length = self._length, self._length + ids.shape[1]
        positions = torch.arange(begin, self._length, device=device).unsqueeze(0)
        mask = torch.ones(1, self._length, dtype=torch.bool, device=device)
        embeds = decoder.embed(ids.to(device))
        logits, self._cache = decoder.step(embeds, mask, positions, self._cache)
        return logits


def context_of(folder: Path) -> int | None:
    """Return the number of tokens that a model reads; None if its config does not say."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    found = getattr(config.get_text_config(), "max_position_embeddings", None)
    return int(found) if found else None
