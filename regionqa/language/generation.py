"""The language model: tokenizer, splice, shared prefixes and batched decoding, in torch.

It gets prompts as ids with slots and embeddings to put there. It does not know about images,
boxes or templates.
"""

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
from regionqa.language.sampling import Sampling, TokenSampler
from regionqa.language.tokenization import BundleTokenizer, Prompt
from regionqa.runtime.devices import Device
from regionqa.runtime.precision import SINGLE, Precision

Floats = npt.NDArray[np.float32]
GREEDY = Sampling()
"""The likeliest token, always."""


@dataclass(frozen=True)
class SplicedPrompt:
    """A prompt with everything that goes into its slots.

    image: questions with an equal number share the image, so also the prompt's first part.
    image_tokens: (T, H) float32. region_tokens: (N, K, H) float32, row = region index. seed: of
    what is drawn for this prompt, where tokens are drawn.
    """

    prompt: Prompt
    image: int
    image_tokens: Floats
    region_tokens: Floats
    seed: int = 0


Watch = Callable[[int, int, str], None]
"""Told after each token of an unfinished answer: its row, its number of tokens and its text."""


@dataclass(frozen=True)
class Generated:
    """Answer tokens (without the stop token) and their text."""

    ids: tuple[int, ...]
    text: str
    confidence: float = field(default=1.0, compare=False)
    """Probability of the tokens and the stop together, at the card's temperature. Batches of
    another composition change its last digits, so it does not count in comparisons."""


class LanguageModel:
    """A tokenizer and a decoder that reads spliced embeddings."""

    def __init__(self, bundle: Bundle, device: Device, precision: Precision = SINGLE) -> None:
        """Load weights and tokenizer; BundleError where they are not sound."""
        card = bundle.card.language
        self.context = card.context
        self.tokenizer = BundleTokenizer(bundle.file(f"{card.folder}/tokenizer.json"))
        self._device = torch.device(device.value)
        self._decoder = open_decoder(bundle, self._device, precision)
        special = self.tokenizer.special_tokens
        self._stop_ids = {self.tokenizer.token_id(stop) for stop in card.stop if stop in special}
        self._stop_texts = tuple(stop for stop in card.stop if stop not in special)
        sureness = bundle.card.confidence
        self._temperature = sureness.temperature if sureness else 1.0

    @property
    def hidden_size(self) -> int:
        """Width of the embeddings."""
        return self._decoder.hidden_size

    def check_length(self, prompt: Prompt, max_new_tokens: int) -> None:
        """QuestionError where prompt and answer do not fit the model's context."""
        room = self.context - max_new_tokens
        if len(prompt.input_ids) > room:
            raise QuestionError(
                f"question and regions take {len(prompt.input_ids)} tokens, there is room for "
                f"{room} beside an answer of {max_new_tokens}; ask shorter or lower "
                "--max-new-tokens"
            )

    @torch.inference_mode()
    def generate(
        self,
        prompts: Sequence[SplicedPrompt],
        max_new_tokens: int,
        sampling: Sampling = GREEDY,
        watch: Watch | None = None,
    ) -> list[Generated]:
        """Answers to several prompts, decoded together.

        The part that questions share with others of their image is read once per image.
        """
        if not prompts:
            return []
        embedded = [self._splice(prompt) for prompt in prompts]
        shared = prompts[0].prompt.shared
        first_of = {prompt.image: row for row, prompt in reversed(list(enumerate(prompts)))}
        images = list(first_of)
        prefixes = torch.stack([embedded[first_of[image]][:shared] for image in images])
        mask = torch.ones(len(images), shared, dtype=torch.bool, device=self._device)
        positions = torch.arange(shared, device=self._device).expand(len(images), -1)
        _, cache = self._decoder.step(prefixes, mask, positions, None)
        owner = torch.tensor([images.index(prompt.image) for prompt in prompts])
        cache = self._decoder.select(cache, owner.to(self._device))
        choose = TokenSampler(sampling, [prompt.seed for prompt in prompts])
        suffixes = [rows[shared:] for rows in embedded]
        return self._decode(cache, suffixes, shared, max_new_tokens, choose, watch)

    @torch.inference_mode()
    def score(self, prompt: SplicedPrompt, answers: Sequence[Sequence[int]]) -> list[float]:
        """The natural logarithm of the probability of each answer's ids after a prompt.

        The prompt is read once, the answers side by side. At least one answer of one id or more.
        """
        embedded = self._splice(prompt)[None]  # (1, L, H)
        length, count = embedded.shape[1], len(answers)
        longest = max(map(len, answers))
        mask = torch.ones(count, length + longest, dtype=torch.bool, device=self._device)
        positions = torch.arange(length + longest, device=self._device)[None]
        logits, cache = self._decoder.step(embedded, mask[:1, :length], positions[:, :length], None)
        rows = torch.zeros(count, dtype=torch.long, device=self._device)
        cache, logits = self._decoder.select(cache, rows), logits[rows]  # (A, V)
        ids = torch.tensor(
            [[*each, *[0] * (longest - len(each))] for each in answers], device=self._device
        )  # (A, T), padded with what is read but not counted
        lengths = torch.tensor(list(map(len, answers)), device=self._device)
        total = torch.zeros(count, dtype=torch.float64, device=self._device)
        for at in range(longest):
            said = logits.double().log_softmax(-1).gather(1, ids[:, at : at + 1])[:, 0]  # (A,)
            total += torch.where(at < lengths, said, 0.0)
            if at + 1 < longest:
                logits, cache = self._decoder.step(
                    self._decoder.embed(ids[:, at : at + 1]),
                    mask[:, : length + at + 1],
                    positions[:, length + at : length + at + 1].expand(count, -1),
                    cache,
                )
        return [float(each) for each in total]

    def _splice(self, spliced: SplicedPrompt) -> Tensor:
        """Embeddings (L, H) of the ids, slots overwritten."""
        prompt = spliced.prompt
        rows = self._decoder.embed(torch.tensor(prompt.input_ids, device=self._device))  # (L, H)
        image = torch.from_numpy(spliced.image_tokens).to(rows)
        rows[prompt.image_start : prompt.image_start + len(image)] = image
        for start, index in prompt.region_starts:
            region = torch.from_numpy(spliced.region_tokens[index]).to(rows)  # (K, H)
            rows[start : start + len(region)] = region
        return rows

    def _decode(
        self,
        cache: object,
        suffixes: list[Tensor],
        shared: int,
        max_new_tokens: int,
        choose: TokenSampler,
        watch: Watch | None,
    ) -> list[Generated]:
        """Feed the suffixes, padded on the left, then one token at a time until all have ended."""
        count, longest = len(suffixes), max(len(rows) for rows in suffixes)
        embeds = suffixes[0].new_zeros(count, longest, self.hidden_size)  # (Q, S, H)
        mask = torch.ones(count, shared + longest, dtype=torch.bool, device=self._device)
        for row, rows in enumerate(suffixes):
            embeds[row, longest - len(rows) :] = rows
            mask[row, shared : shared + longest - len(rows)] = False
        positions = (mask.cumsum(1)[:, shared:] - 1).clamp(min=0)  # (Q, S)
        answers: list[list[int]] = [[] for _ in suffixes]
        certainty = [0.0] * count  # log of the probability so far
        unfinished = set(range(count))
        for _ in range(max_new_tokens):
            logits, cache = self._decoder.step(embeds, mask, positions, cache)
            tokens = choose(logits)  # (Q,)
            logs = self._log_probabilities(logits, tokens)
            for row, token in enumerate(tokens.tolist()):
                if row not in unfinished:
                    continue
                certainty[row] += logs[row]
                if self._ends(answers[row], token):
                    unfinished.discard(row)
                elif watch:
                    watch(row, len(answers[row]), self.tokenizer.decode(answers[row]))
            if not unfinished:
                break
            embeds = self._decoder.embed(tokens).unsqueeze(1)  # (Q, 1, H)
            mask = torch.cat([mask, mask.new_ones(count, 1)], dim=1)
            positions = positions[:, -1:] + 1
        return [self._finished(*each) for each in zip(answers, certainty, strict=True)]

    def _log_probabilities(self, logits: Tensor, tokens: Tensor) -> list[float]:
        """Log of the probability of each of tokens (Q,) by logits (Q, V)."""
        logs = (logits.float() / self._temperature).log_softmax(-1)  # (Q, V)
        chosen: list[float] = logs.gather(1, tokens.unsqueeze(1)).squeeze(1).tolist()
        return chosen

    def _ends(self, ids: list[int], token: int) -> bool:
        """Add the token to the answer unless it stops it; whether the answer has ended."""
        if token in self._stop_ids:
            return True
        ids.append(token)
        return bool(self._stop_texts) and any(
            stop in self.tokenizer.decode(ids) for stop in self._stop_texts
        )

    def _finished(self, ids: list[int], certainty: float) -> Generated:
        text = self.tokenizer.decode(ids)
        for stop in self._stop_texts:
            text = text.split(stop, 1)[0]
        return Generated(tuple(ids), text.strip(), math.exp(certainty))


def open_decoder(bundle: Bundle, device: torch.device, precision: Precision) -> Decoder:
    """The decoder the card asks for; transformers', which alone can, where it is quantized."""
    folder = bundle.file(bundle.card.language.folder)
    dtype: torch.dtype = getattr(torch, precision.dtype)
    if bundle.card.language.runtime is LanguageRuntime.native and precision.quantize is None:
        return LlamaDecoder.read(folder, dtype, device)
    return TransformersDecoder(folder, dtype, device, precision.quantize)
