"""The language model of a checkpoint: prompts about one image share everything up to its end.

The beginning of a prompt, up to the end of its first image, is run once per image; its cache, with
any recurrent and convolutional states, is copied for every question. Questions are then decoded as
one batch.
"""

import inspect
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from regionqa.backends.vlm.caches import can_be_joined, can_be_padded, join_caches, select_rows
from regionqa.backends.vlm.features import join, token_count
from regionqa.language.decoding import (
    AnswerRows,
    Constraint,
    DecodedAnswer,
    OnTokens,
    Stops,
    decode_answers,
    score_answers,
)
from regionqa.language.sampling import TokenSampler
from regionqa.requests import Sampling

GREEDY = Sampling()
MakeConstraint = Callable[[int], Constraint]
TYPE_NAMES = ("mm_token_type_ids", "token_type_ids")
"""Arguments by which models are told the types of tokens."""


@dataclass(eq=False)
class EncodedPart:
    """An image as the language model gets it; equal only to itself."""

    features: Any
    """Output of the vision encoder."""
    inputs: Mapping[str, Tensor]
    """What the image processor gave beside the pixels, such as the grid."""


@dataclass(frozen=True)
class VlmPrompt:
    """A tokenized prompt with the features of its images."""

    ids: tuple[int, ...]
    """Token ids, L of them."""
    types: tuple[int, ...] | None
    """Type of each token; None: the model does not want them."""
    images: tuple[EncodedPart, ...]
    """In the order of their placeholders."""
    shared: int
    """Number of ids up to the end of the first image; 0: nothing is shared."""
    seed: int = 0
    """Random seed of this prompt's answer."""

    @property
    def token_counts(self) -> list[int]:
        """Number of tokens of each image."""
        return [token_count(image.features) for image in self.images]


@dataclass
class _Prefix:
    """The state after the beginning of a prompt."""

    cache: Any
    length: int


@dataclass
class _State:
    """A batch in the middle of decoding."""

    cache: Any
    mask: Tensor
    """(Q, P) int64; 0 is padding."""
    positions: Tensor
    """(..., Q, 1) position of the last token; the first dimension is that of M-RoPE."""


class CheckpointLanguage:
    """What the language models of all checkpoints have in common."""

    def __init__(self, model: Any, decode: Callable[[list[int]], str]) -> None:
        """Wrap a model.

        Args:
            model: A loaded `...ForConditionalGeneration`, in evaluation mode.
            decode: Decodes token ids.
        """
        self.model = model
        self._decode = decode
        self._stops = Stops(frozenset(stop_ids(model)))

    @property
    def stops(self) -> Sequence[int]:
        """Tokens that end an answer."""
        return sorted(self._stops.ids)

    @property
    def context(self) -> int | None:
        """Number of positions of the language model, if its config says so."""
        found = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        return int(found) if found else None


class VlmLanguage(CheckpointLanguage):
    """Generates and scores answers with a loaded model."""

    def __init__(
        self,
        model: Any,
        image_token: int,
        decode: Callable[[list[int]], str],
        *,
        prefixes: int = 4,
    ) -> None:
        """Wrap a model.

        Args:
            model: A loaded `...ForConditionalGeneration`, in evaluation mode.
            image_token: Id of the placeholder.
            decode: Decodes token ids.
            prefixes: Number of images whose prefix is kept.
        """
        super().__init__(model, decode)
        known = inspect.signature(model.forward).parameters
        self.type_name = next((name for name in TYPE_NAMES if name in known), None)
        self.image_token = image_token
        self._kept: dict[tuple[int, tuple[int, ...]], tuple[EncodedPart, _Prefix]] = {}
        self._limit = prefixes

    def shared_length(self, ids: Sequence[int], image: EncodedPart) -> int:
        """Return the number of ids up to the last placeholder of a prompt's first image."""
        left = token_count(image.features)
        for place_of, token in enumerate(ids):
            if token == self.image_token:
                left -= 1
                if left == 0:
                    return place_of + 1
        return 0

    @torch.inference_mode()
    def generate(
        self,
        prompts: Sequence[VlmPrompt],
        max_new_tokens: int,
        sampling: Sampling = GREEDY,
        on_tokens: OnTokens | None = None,
        constrain: MakeConstraint | None = None,
    ) -> list[DecodedAnswer]:
        """Generate answers to prompts about one or several images.

        Args:
            prompts: In any order.
            max_new_tokens: Limit on the tokens of each answer.
            sampling: How tokens are chosen.
            on_tokens: Called as answers grow.
            constrain: Makes what limits the tokens of a batch, given its number of answers.
        """
        answers: dict[int, DecodedAnswer] = {}
        for rows, logits, state in self._prefilled(prompts):
            emit = _of_rows(on_tokens, rows)
            decoded = decode_answers(
                logits,
                lambda tokens, state=state: self._advance(state, tokens),  # type: ignore[misc]
                AnswerRows(len(rows), self._decode, self._stops, on_tokens=emit),
                TokenSampler(sampling, [prompts[row].seed for row in rows]),
                max_new_tokens,
                constrain(len(rows)) if constrain else None,
            )
            answers |= zip(rows, decoded, strict=True)
        return [answers[row] for row in range(len(prompts))]

    @torch.inference_mode()
    def score(self, prompt: VlmPrompt, answers: Sequence[Sequence[int]]) -> list[float]:
        """Compute the log-probability of each answer, given as token ids, after a prompt."""
        logits, state = self._prefill([prompt])
        rows = torch.zeros(len(answers), dtype=torch.long, device=logits.device)
        state.cache = select_rows(state.cache, rows)
        state.mask = state.mask[rows]
        state.positions = state.positions[..., rows, :]
        return score_answers(logits[rows], lambda tokens: self._advance(state, tokens), answers)

    def _prefilled(self, prompts: Sequence[VlmPrompt]) -> list[tuple[list[int], Tensor, _State]]:
        """Run prompts -> batches to decode: rows, logits (Q, V) after them, and states."""
        batches = []
        for rows in self._batches(prompts):
            batches.append((rows, *self._prefill([prompts[row] for row in rows])))
        if len(batches) < 2 or not all(can_be_joined(state.cache) for *_, state in batches):
            return batches
        together = [row for rows, *_ in batches for row in rows]
        states = [state for *_, state in batches]
        return [(together, torch.cat([logits for _, logits, _ in batches]), _joined(states))]

    def _batches(self, prompts: Sequence[VlmPrompt]) -> list[list[int]]:
        """Rows that are run together: all, or those of one length if padding is no option."""
        if not prompts:
            return []
        if self._can_pad:
            return [list(range(len(prompts)))]
        alike: dict[tuple[int, int], list[int]] = defaultdict(list)
        for row, prompt in enumerate(prompts):
            alike[prompt.shared, len(prompt.ids)].append(row)
        return list(alike.values())

    @cached_property
    def _can_pad(self) -> bool:
        from transformers import DynamicCache

        return can_be_padded(DynamicCache(config=self.model.config.get_text_config(decoder=True)))

    def _prefix(self, prompt: VlmPrompt) -> _Prefix:
        """Run the beginning of a prompt, or return what was kept of an equal one."""
        image, ids = prompt.images[0], prompt.ids[: prompt.shared]
        key = (id(image), ids)
        if key in self._kept:
            return self._kept[key][1]
        output = self._run(
            [list(ids)],
            self._positions(prompt)[..., : prompt.shared],
            torch.ones(1, prompt.shared, dtype=torch.long),
            None,
            [image],
            [prompt.types[: prompt.shared]] if prompt.types is not None else None,
        )
        while len(self._kept) >= self._limit:
            del self._kept[next(iter(self._kept))]
        # the image is kept too, so that its id stays its own
        self._kept[key] = image, _Prefix(output.cache, prompt.shared)
        return self._kept[key][1]

    def _prefill(self, prompts: Sequence[VlmPrompt]) -> tuple[Tensor, _State]:
        """Run the prompts -> logits (Q, V) after each, and the state to go on from."""
        cache, lengths = self._prefixes(prompts)
        longest_prefix = max(lengths)
        suffixes = [prompt.ids[prompt.shared :] for prompt in prompts]
        longest = max(map(len, suffixes))
        positions = [self._positions(prompt) for prompt in prompts]
        ids = [[0] * (longest - len(each)) + list(each) for each in suffixes]
        mask = torch.ones(len(prompts), longest_prefix + longest, dtype=torch.long)
        padded = positions[0].new_zeros(*positions[0].shape[:-2], len(prompts), longest)
        types: list[Sequence[int]] = []
        for row, prompt in enumerate(prompts):
            gap = longest - len(suffixes[row])
            mask[row, : longest_prefix - lengths[row]] = 0
            mask[row, longest_prefix : longest_prefix + gap] = 0
            padded[..., row, gap:] = positions[row][..., 0, prompt.shared :]
            # those of the prefix too: masks are looked up by position
            types.append(
                [0] * (longest_prefix - lengths[row])
                + list((prompt.types or ())[: prompt.shared])
                + [0] * gap
                + list((prompt.types or ())[prompt.shared :])
            )
        images = [image for each in prompts for image in each.images[1 if each.shared else 0 :]]
        typed = types if prompts[0].types is not None else None
        output = self._run(ids, padded, mask, cache, images, typed)
        return output.logits[:, -1], _State(output.cache, mask, padded[..., -1:])

    def _prefixes(self, prompts: Sequence[VlmPrompt]) -> tuple[Any, list[int]]:
        """Return a cache with the prefix of each prompt, and their lengths."""
        if not prompts[0].shared:
            return None, [0] * len(prompts)
        found = [self._prefix(prompt) for prompt in prompts]
        distinct = list({id(prefix): prefix for prefix in found}.values())
        owners = [distinct.index(prefix) for prefix in found]
        cache = join_caches([prefix.cache for prefix in distinct])
        rows = torch.tensor(owners, device=self.model.device)
        return select_rows(cache, rows), [prefix.length for prefix in found]

    def _positions(self, prompt: VlmPrompt) -> Tensor:
        """Positions of a whole prompt, (1, L), or (4, 1, L) with M-RoPE."""
        ids = torch.tensor([prompt.ids], device=self.model.device)
        arguments: dict[str, Any] = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        for name in {name for image in prompt.images for name in image.inputs}:
            rows = [image.inputs[name] for image in prompt.images]
            if all(isinstance(row, Tensor) for row in rows) and name.endswith("grid_thw"):
                arguments[name] = torch.cat(rows).to(ids.device)
        if prompt.types is not None and self.type_name is not None:
            arguments[self.type_name] = torch.tensor([prompt.types], device=ids.device)
        positions = self.model._prepare_position_ids_for_generation(ids, arguments)
        # PaliGemma counts from 1
        prepared = self.model.prepare_inputs_for_generation(
            **arguments, position_ids=positions, is_first_iteration=True, use_cache=True
        )
        shifted: Tensor = prepared["position_ids"]
        return shifted

    def _run(
        self,
        ids: Sequence[Sequence[int]],
        positions: Tensor,
        mask: Tensor,
        cache: Any,
        images: Sequence[EncodedPart],
        types: Sequence[Sequence[int]] | None,
    ) -> Any:
        """One call of the model; the images are those whose placeholders are among the ids."""
        device = self.model.device
        arguments: dict[str, Any] = {}
        if images:
            arguments["mm_encoder_outputs"] = {"image": join([image.features for image in images])}
        if types is not None and self.type_name is not None:
            arguments[self.type_name] = torch.tensor(types, device=device)
        return self.model(
            input_ids=torch.tensor(ids, device=device),
            attention_mask=mask.to(device),
            position_ids=positions.to(device),
            cache=cache,
            use_cache=True,
            logits_to_keep=1,
            **arguments,
        )

    def _advance(self, state: _State, tokens: Tensor) -> Tensor:
        """Append one token id per row, (Q,) -> logits (Q, V)."""
        state.mask = torch.cat([state.mask, state.mask.new_ones(len(tokens), 1)], dim=1)
        state.positions = state.positions + 1
        ids = tokens.unsqueeze(1).tolist()
        output = self._run(ids, state.positions, state.mask, state.cache, (), None)
        state.cache = output.cache
        logits: Tensor = output.logits[:, -1]
        return logits


def _joined(states: Sequence[_State]) -> _State:
    """Join batches, the shorter ones padded on the left; see `can_be_joined`."""
    longest = max(state.mask.shape[1] for state in states)
    masks = [pad(state.mask, (longest - state.mask.shape[1], 0)) for state in states]
    return _State(
        join_caches([state.cache for state in states]),
        torch.cat(masks),
        torch.cat([state.positions for state in states], dim=-2),
    )


def _of_rows(on_tokens: OnTokens | None, rows: Sequence[int]) -> OnTokens | None:
    """Report rows of a batch by their numbers in the call."""
    if on_tokens is None:
        return None
    return lambda row, count, text: on_tokens(rows[row], count, text)


def stop_ids(model: Any) -> set[int]:
    """Return the ids that end an answer, by the checkpoint's generation config."""
    found = model.generation_config.eos_token_id
    if found is None:
        found = model.config.get_text_config().eos_token_id
    return set(found) if isinstance(found, list) else {found} - {None}
