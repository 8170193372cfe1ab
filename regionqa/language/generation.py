"""The language model: batched generation and scoring in torch, with shared prefixes."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from regionqa.bundles.card import LanguageRuntime
from regionqa.bundles.store import Bundle
from regionqa.errors import QuestionError
from regionqa.language.decoders import Decoder, LlamaDecoder, TransformersDecoder
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


OnTokens = Callable[[int, int, str], None]
"""Called after each token of an unfinished answer with its row, number of tokens, and text."""


@dataclass(frozen=True)
class Generated:
    """One generated answer."""

    ids: tuple[int, ...]
    """Token ids, without the stop token."""
    text: str
    """The decoded answer."""
    confidence: float = field(default=1.0, compare=False)
    """Probability of all tokens including the stop, at the card's temperature. Not compared: its
    last digits depend on the rest of the batch."""


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
        self._stop_ids = {self.tokenizer.token_id(stop) for stop in card.stop if stop in special}
        self._stop_texts = tuple(stop for stop in card.stop if stop not in special)
        confidence = bundle.card.confidence
        self._confidence_temperature = confidence.temperature if confidence else 1.0

    @property
    def hidden_size(self) -> int:
        """Width of the embeddings."""
        return self._decoder.hidden_size

    def check_length(self, prompt: Prompt, max_new_tokens: int) -> None:
        """Raise QuestionError if prompt and answer do not fit the model's context."""
        room = self.context - max_new_tokens
        if len(prompt.input_ids) > room:
            raise QuestionError(
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
    ) -> list[Generated]:
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
        longest = max(map(len, answers))
        mask = torch.ones(count, length + longest, dtype=torch.bool, device=self._device)
        positions = torch.arange(length + longest, device=self._device)[None]
        logits, cache = self._decoder.step(embedded, mask[:1, :length], positions[:, :length], None)
        rows = torch.zeros(count, dtype=torch.long, device=self._device)
        cache, logits = self._decoder.select(cache, rows), logits[rows]  # (A, V)
        ids = torch.tensor(
            [[*each, *[0] * (longest - len(each))] for each in answers], device=self._device
        )  # (A, T), padded; padding is not counted
        lengths = torch.tensor(list(map(len, answers)), device=self._device)
        total = torch.zeros(count, dtype=torch.float64, device=self._device)
        for at in range(longest):
            logs = logits.double().log_softmax(-1).gather(1, ids[:, at : at + 1])[:, 0]  # (A,)
            total += torch.where(at < lengths, logs, 0.0)
            if at + 1 < longest:
                logits, cache = self._decoder.step(
                    self._decoder.embed(ids[:, at : at + 1]),
                    mask[:, : length + at + 1],
                    positions[:, length + at : length + at + 1].expand(count, -1),
                    cache,
                )
        return [float(each) for each in total]

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
    ) -> list[Generated]:
        """Run left-padded suffixes, then decode token by token until every answer has ended."""
        count, longest = len(suffixes), max(len(rows) for rows in suffixes)
        embeds = suffixes[0].new_zeros(count, longest, self.hidden_size)  # (Q, S, H)
        mask = torch.ones(count, shared + longest, dtype=torch.bool, device=self._device)
        for row, rows in enumerate(suffixes):
            embeds[row, longest - len(rows) :] = rows
            mask[row, shared : shared + longest - len(rows)] = False
        positions = (mask.cumsum(1)[:, shared:] - 1).clamp(min=0)  # (Q, S)
        answers: list[list[int]] = [[] for _ in suffixes]
        log_probabilities = [0.0] * count
        unfinished = set(range(count))
        for _ in range(max_new_tokens):
            logits, cache = self._decoder.step(embeds, mask, positions, cache)
            tokens = sampler(logits)  # (Q,)
            logs = self._log_probabilities(logits, tokens)
            for row, token in enumerate(tokens.tolist()):
                if row not in unfinished:
                    continue
                log_probabilities[row] += logs[row]
                if self._ends(answers[row], token):
                    unfinished.discard(row)
                elif on_tokens:
                    on_tokens(row, len(answers[row]), self.tokenizer.decode(answers[row]))
            if not unfinished:
                break
            embeds = self._decoder.embed(tokens).unsqueeze(1)  # (Q, 1, H)
            mask = torch.cat([mask, mask.new_ones(count, 1)], dim=1)
            positions = positions[:, -1:] + 1
        return [self._finished(*each) for each in zip(answers, log_probabilities, strict=True)]

    def _log_probabilities(self, logits: Tensor, tokens: Tensor) -> list[float]:
        """Return the log-probabilities of tokens (Q,) given logits (Q, V)."""
        logs = (logits.float() / self._confidence_temperature).log_softmax(-1)  # (Q, V)
        chosen: list[float] = logs.gather(1, tokens.unsqueeze(1)).squeeze(1).tolist()
        return chosen

    def _ends(self, ids: list[int], token: int) -> bool:
        """Append a token to an answer unless it ends it; return whether the answer has ended."""
        if token in self._stop_ids:
            return True
        ids.append(token)
        return bool(self._stop_texts) and any(
            stop in self.tokenizer.decode(ids) for stop in self._stop_texts
        )

    def _finished(self, ids: list[int], log_probability: float) -> Generated:
        text = self.tokenizer.decode(ids)
        for stop in self._stop_texts:
            text = text.split(stop, 1)[0]
        return Generated(tuple(ids), text.strip(), math.exp(log_probability))


def open_decoder(bundle: Bundle, device: torch.device, precision: Precision) -> Decoder:
    """Open the decoder that the card names, or transformers' where it must be quantized."""
    folder = bundle.file(bundle.card.language.folder)
    dtype: torch.dtype = getattr(torch, precision.dtype)
    if bundle.card.language.runtime is LanguageRuntime.native and precision.quantize is None:
        return LlamaDecoder.read(folder, dtype, device)
    return TransformersDecoder(folder, dtype, device, precision.quantize)
