"""Batches of conversations with a vision-language model.

An image is prepared, and encoded by the frozen vision encoder, once per run as long as there is
room to keep it. Where the vision encoder trains, batches hold its inputs instead of features.
"""

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from regionqa.backends.vlm.backend import (
    EncodedVlmPrompt,
    ImageKey,
    RenderedVlmPrompt,
    VlmBackend,
    VlmModel,
)
from regionqa.backends.vlm.features import VisionTower
from regionqa.backends.vlm.language import EncodedPart, VlmLanguage, VlmPrompt
from regionqa.backends.vlm.processor import PreparedImage, VlmProcessor
from regionqa.data.records import Record
from regionqa.errors import ImageError, ItemError, TrainingError
from regionqa.finetune.batches.collate import LabelledBatch, padded_rows
from regionqa.finetune.batches.dataset import IGNORE_INDEX, jitter_box
from regionqa.finetune.batches.frozen import CACHE_BYTES
from regionqa.finetune.vlm.samples import AnsweredTurn, ConversationBuilder, label_turns
from regionqa.images.reading import InputImage, open_image
from regionqa.runtime.devices import Device
from regionqa.runtime.precision import SINGLE
from regionqa.vlm.region_images import WholeImage

CAUSAL_TYPES = "token_type_ids"
"""Name of token types that are 0 for a prompt, which is attended both ways, and 1 after it."""


@dataclass(frozen=True, kw_only=True)
class ConversationBatch(LabelledBatch):
    """Q conversations with their images.

    Attributes:
        positions: (Q, L), or (N, Q, L) with N dimensions of M-RoPE.
        types: (Q, L) types of tokens, of models that want them.
        images: Features of each image by the frozen vision encoder, or inputs of the one that
            trains; in the order of their placeholders in all rows.
    """

    positions: Tensor
    types: Tensor | None
    images: tuple[Any, ...]


class FrozenTower:
    """A vision encoder without gradients, whose features can be used in training."""

    def __init__(self, tower: VisionTower) -> None:
        """Wrap the vision encoder of asking."""
        self._tower = tower
        self.runtime = tower.runtime

    def encode(self, inputs: Mapping[str, Tensor]) -> Any:
        """See `VisionTower.encode`."""
        output = self._tower.encode(inputs)
        features = type(output)()
        for name, value in output.items():
            features[name] = normal(value)
        return features


class TrainedTower:
    """Stands for a vision encoder that runs within the model that trains."""

    runtime = "torch"

    def encode(self, inputs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return the inputs themselves."""
        return dict(inputs)


def normal(value: Any) -> Any:
    """Copy the tensors of a nested value that were computed in inference mode."""
    if isinstance(value, Tensor):
        return value.clone() if value.is_inference() else value
    return [normal(each) for each in value]


def tensors(value: Any) -> Iterator[Tensor]:
    """Yield the tensors of a nested value."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from tensors(each)
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from tensors(each)


class TrainingLanguage(VlmLanguage):
    """The language model of asking, as batches need it: nothing is shared between prompts."""

    def shared_length(self, ids: Sequence[int], image: EncodedPart) -> int:
        """Return 0."""
        return 0

    @torch.no_grad()
    def positions(self, prompt: VlmPrompt) -> Tensor:
        """Positions of a whole conversation, (L,), or (N, L) with M-RoPE."""
        return self._positions(prompt)[..., 0, :]


class TrainingBackend(VlmBackend):
    """The backend of asking, which keeps the encoded images of a whole run."""

    language: TrainingLanguage

    def __init__(
        self,
        model: VlmModel,
        processor: VlmProcessor,
        tower: VisionTower,
        language: TrainingLanguage,
        device: Device,
    ) -> None:
        """Combine the parts; see `VlmBackend`."""
        super().__init__(model, processor, tower, language, device, SINGLE)
        self._room = CACHE_BYTES
        self._known: dict[Path, dict[ImageKey, tuple[PreparedImage, EncodedPart]]] = {}

    def encode_turns(
        self,
        path: Path,
        image: InputImage,
        prompts: Sequence[RenderedVlmPrompt],
        *,
        recurs: bool = True,
    ) -> list[EncodedVlmPrompt | ItemError]:
        """Encode prompts about an image whose parts may be known; see `Backend.encode`.

        recurs: whether crops and drawings will occur again, which those of jittered boxes do not.
        """
        known = self._known.setdefault(path, {})
        self._last = image
        self._encoded = OrderedDict(known)
        encoded = self.encode(image, prompts)
        for part in self._encoded.keys() - known.keys():
            prepared, features = self._encoded[part]
            if not recurs and not isinstance(part[0], WholeImage):
                continue
            size = sum(each.nbytes for each in tensors((features.features, features.inputs)))
            if size <= self._room:
                known[part] = prepared, features
                self._room -= size
        return encoded


class ConversationCollator:
    """Collates records into batches."""

    def __init__(self, builder: ConversationBuilder, backend: TrainingBackend) -> None:
        """Use the prompts of `builder`, encoded by `backend`."""
        self._builder = builder
        self._backend = backend

    def batch(
        self, records: Sequence[Record], noise: float = 0.0, seeds: Sequence[Sequence[int]] = ()
    ) -> ConversationBatch:
        """Collate records, with box jitter of size `noise` drawn from the seed of each."""
        language = self._backend.language
        rows = [
            self._row(record, noise, seeds[row] if noise else ())
            for row, record in enumerate(records)
        ]
        prompts = [prompt for prompt, _ in rows]
        longest = max(len(prompt.ids) for prompt in prompts)
        lengths = torch.tensor([len(prompt.ids) for prompt in prompts])
        each = [language.positions(prompt) for prompt in prompts]  # (..., l)
        padded = [pad(positions, (0, longest - positions.shape[-1])) for positions in each]
        types = [prompt.types for prompt in prompts if prompt.types is not None]
        return ConversationBatch(
            input_ids=padded_rows([prompt.ids for prompt in prompts], longest, 0),
            labels=padded_rows([labels for _, labels in rows], longest, IGNORE_INDEX),
            mask=(torch.arange(longest) < lengths.unsqueeze(1)).long(),
            distilled=torch.zeros(len(rows), dtype=torch.bool),
            positions=torch.stack(padded, dim=-2),
            types=padded_rows(types, longest, 0) if types else None,
            images=tuple(image.features for prompt in prompts for image in prompt.images),
        )

    def _row(
        self, record: Record, noise: float, seed: Sequence[int]
    ) -> tuple[VlmPrompt, tuple[int, ...]]:
        """The whole conversation of a record, and its labels."""
        image = open_image(record.image)
        boxes = [region.box for region in record.regions]
        if noise:
            rng = np.random.default_rng(list(seed))
            boxes = [jitter_box(box, noise, image.width, image.height, rng) for box in boxes]
        rendered = self._builder.prompts(record, image, boxes)
        prompts = self._backend.encode_turns(record.image, image, rendered, recurs=not noise)
        turns = []
        for prompt, turn in zip(prompts, record.turns, strict=True):
            if isinstance(prompt, ImageError):
                raise prompt  # which may be left out
            if isinstance(prompt, ItemError):
                raise TrainingError(f"{record.where}: {prompt}; or split the record")
            last = prompt.prompt
            text, images = prompt.rendered.text, prompt.images
            answer = self._builder.answer_ids(turn.answer, text, images)
            turns.append(AnsweredTurn(last.ids, prompt.rendered.told.images, answer))
        labelled = label_turns(turns)
        types = last.types
        if types is not None:
            after = int(self._backend.language.type_name == CAUSAL_TYPES)
            types = (*types, *[after] * len(turns[-1].answer))
        return replace(last, ids=labelled.ids, types=types), labelled.labels
