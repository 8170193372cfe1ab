"""The language model: batched generation and scoring in torch, with shared prefixes."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from regionqa.bundles.card import LanguageRuntime
from regionqa.bundles.store import Bundle
from regionqa.errors import LengthError
from regionqa.language.decoders import Decoder, LlamaDecoder, TransformersDecoder
from regionqa.language.decoding import (
    Advance,
    AnswerRows,
    DecodedAnswer,
    OnTokens,
    Stops,
    decode_answers,
    score_answers,
)
from regionqa.language.sampling import TokenSampler
from regionqa.language.splicing import splice_tokens
from regionqa.language.tokenization import BundleTokenizer, Prompt
from regionqa.requests import Sampling
from regionqa.runtime.devices import Device
from regionqa.runtime.precision import SINGLE, Precision

Floats = npt.NDArray[np.float32]
GREEDY = Sampling()


@dataclass(frozen=True)
class SplicedPrompt:
    """A prompt with the tokens for its slots."""

    prompt: Prompt
    """Token ids and slots."""
    image: int
    """Number of the image. Prompts about one image share their prefix up to its last token."""
    image_tokens: Floats
    """(T, H) float32."""
    region_tokens: Floats
    """(N, K, H) float32, by index of the region."""
    seed: int = 0
    """Random seed of this prompt's answer."""


class LanguageModel:
    """A tokenizer and a decoder."""

    def __init__(self, bundle: Bundle, device: Device, precision: Precision = SINGLE) -> None:
        """Load weights and tokenizer; BundleError if they cannot be read."""
        card = bundle.card.language
        self.context = card.context
        self.tokenizer = BundleTokenizer(bundle.file(f"{card.folder}/tokenizer.json"))
        self._device = torch.device(device.value)
        self._decoder = open_decoder(bundle, self._device, precision)
        special = self.tokenizer.special_tokens
        self._stops = Stops(
            frozenset(self.tokenizer.token_id(stop) for stop in card.stop if stop in special),
            tuple(stop for stop in card.stop if stop not in special),
        )
        confidence = bundle.card.confidence
        self._confidence_temperature = confidence.temperature if confidence else 1.0

    @property
    def hidden_size(self) -> int:
        """Width of the embeddings."""
        return self._decoder.hidden_size

    def check_length(self, prompt: Prompt, max_new_tokens: int) -> None:
        """Raise LengthError if prompt and answer do not fit the model's context."""
        room = max(self.context - max_new_tokens, 0)
        if len(prompt.input_ids) > room:
            raise LengthError(
                f"question and regions take {len(prompt.input_ids)} tokens, there is room for "
                f"{room} beside an answer of {max_new_tokens}; ask a shorter question or lower "
                "--max-new-tokens"
            )

    @torch.inference_mode()
    def generate(
        self,
        prompts: Sequence[SplicedPrompt],
        max_new_tokens: int,
        sampling: Sampling = GREEDY,
        on_tokens: OnTokens | None = None,
    ) -> list[DecodedAnswer]:
        """Generate answers to prompts, decoded as one batch.

        The prefix that questions about one image share is computed once per image.

        Args:
            prompts: Prompts about one or several images, in any order.
            max_new_tokens: Limit on the tokens of each answer.
            sampling: How tokens are chosen.
            on_tokens: Called as answers grow.
        """
        if not prompts:
            return []
        embedded = [self.embed(prompt) for prompt in prompts]  # (L, H) each
        shared = prompts[0].prompt.shared
        first_of = {prompt.image: row for row, prompt in reversed(list(enumerate(prompts)))}
        images = list(first_of)
        prefixes = torch.stack([embedded[first_of[image]][:shared] for image in images])
        mask = torch.ones(len(images), shared, dtype=torch.bool, device=self._device)
        positions = torch.arange(shared, device=self._device).expand(len(images), -1)
        _, cache = self._decoder.step(prefixes, mask, positions, None)
        owner = torch.tensor([images.index(prompt.image) for prompt in prompts])
        cache = self._decoder.select(cache, owner.to(self._device))
        sampler = TokenSampler(sampling, [prompt.seed for prompt in prompts])
        suffixes = [rows[shared:] for rows in embedded]
        return self._decode(cache, suffixes, shared, max_new_tokens, sampler, on_tokens)

    @torch.inference_mode()
    def score(self, prompt: SplicedPrompt, answers: Sequence[Sequence[int]]) -> list[float]:
        """Compute the log-probability of each answer after a prompt.

        The prompt is computed once, and the answers as one batch.

        Args:
            prompt: The prompt.
            answers: Token ids of each answer; at least one answer, each of at least one id.

        Returns:
            One natural logarithm per answer.
        """
        embedded = self.embed(prompt)[None]  # (1, L, H)
        length, count = embedded.shape[1], len(answers)
        mask = torch.ones(count, length, dtype=torch.bool, device=self._device)
        positions = torch.arange(length, device=self._device)[None]
        logits, cache = self._decoder.step(embedded, mask[:1], positions, None)
        rows = torch.zeros(count, dtype=torch.long, device=self._device)
        cache, logits = self._decoder.select(cache, rows), logits[rows]  # (A, V)
        advance = self._advance(cache, mask, positions[:, -1:].expand(count, -1))
        return score_answers(logits, advance, answers)

    def embed(self, spliced: SplicedPrompt) -> Tensor:
        """Embed a prompt, with image and region tokens in their slots -> (L, H)."""
        prompt = spliced.prompt
        ids = torch.tensor([prompt.input_ids], device=self._device)  # (1, L)
        embeds = self._decoder.embed(ids)  # (1, L, H)
        starts = [start for start, _ in prompt.region_starts]
        regions = spliced.region_tokens[[index for _, index in prompt.region_starts]]  # (M, K, H)
        slots = torch.tensor(starts, dtype=torch.long, device=self._device)  # (M,)
        return splice_tokens(
            embeds,
            torch.from_numpy(spliced.image_tokens[np.newaxis]).to(embeds),  # (1, T, H)
            torch.tensor([prompt.image_start], device=self._device),
            torch.from_numpy(regions).to(embeds),
            torch.zeros_like(slots),
            slots,
        )[0]

    def _decode(
        self,
        cache: object,
        suffixes: list[Tensor],
        shared: int,
        max_new_tokens: int,
        sampler: TokenSampler,
        on_tokens: OnTokens | None,
    ) -> list[DecodedAnswer]:
        """Run left-padded suffixes, then decode token by token until every answer has ended."""
        count, longest = len(suffixes), max(len(rows) for rows in suffixes)
        embeds = suffixes[0].new_zeros(count, longest, self.hidden_size)  # (Q, S, H)
        mask = torch.ones(count, shared + longest, dtype=torch.bool, device=self._device)
        for row, rows in enumerate(suffixes):
            embeds[row, longest - len(rows) :] = rows
            mask[row, shared : shared + longest - len(rows)] = False
        positions = (mask.cumsum(1)[:, shared:] - 1).clamp(min=0)  # (Q, S)
        logits, cache = self._decoder.step(embeds, mask, positions, cache)
        return decode_answers(
            logits,
            self._advance(cache, mask, positions[:, -1:]),
            AnswerRows(
                count, self.tokenizer.decode, self._stops, self._confidence_temperature, on_tokens
            ),
            sampler,
            max_new_tokens,
        )

    def _advance(self, cache: object, mask: Tensor, last: Tensor) -> Advance:
        """Return a function that runs one token per row after what is cached.

        Args:
            cache: The state of Q rows.
            mask: (Q, P) bool; False is padding.
            last: (Q, 1) position of each row's last token.
        """
        state = cache, mask, last

        def advance(tokens: Tensor) -> Tensor:
            nonlocal state
            cache, mask, last = state
            mask = torch.cat([mask, mask.new_ones(len(tokens), 1)], dim=1)
            embeds = self._decoder.embed(tokens).unsqueeze(1)  # (Q, 1, H)
            logits, cache = self._decoder.step(embeds, mask, last + 1, cache)
            state = cache, mask, last + 1
            return logits

        return advance


def open_decoder(bundle: Bundle, device: torch.device, precision: Precision) -> Decoder:
    """Open the decoder that the card names, or transformers' where it must be quantized."""
    folder = bundle.file(bundle.card.language.folder)
    dtype: torch.dtype = getattr(torch, precision.dtype)
    if bundle.card.language.runtime is LanguageRuntime.native and precision.quantize is None:
        return LlamaDecoder.read(folder, dtype, device)
    return TransformersDecoder(folder, dtype, device, precision.quantize)
