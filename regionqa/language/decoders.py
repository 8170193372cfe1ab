"""Causal decoders: embeddings in, next-token logits out, with a cache.

`LlamaDecoder` implements LLaMA (pre-norm RMSNorm, rotary position embeddings, gated MLP) in plain
torch: importing transformers' modelling code costs seconds and 250 MB, and most of its time per
step on a small model is Python overhead. `TransformersDecoder` runs every other architecture. The
card names the decoder; a test compares the two.
"""

import json
from importlib.util import find_spec
from inspect import signature
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.nn import functional as F

from regionqa.bundles.weights import IGNORED, weight_files
from regionqa.errors import BundleError, message_of

SPARE_POSITIONS = 64
"""Spare positions of a newly allocated cache buffer, so that it is not copied at every step."""


class Decoder(Protocol):
    """A causal decoder. The type of `cache` is the decoder's own."""

    @property
    def hidden_size(self) -> int:
        """Width of the embeddings."""

    def embed(self, ids: Tensor) -> Tensor:
        """Embed token ids: int64 (...) -> (..., H)."""

    def step(
        self, embeds: Tensor, mask: Tensor, positions: Tensor, cache: Any
    ) -> tuple[Tensor, Any]:
        """Run the decoder on S further positions of Q sequences, after P cached ones.

        Args:
            embeds: (Q, S, H) embeddings.
            mask: (Q, P + S) bool; False is padding.
            positions: (Q, S) int64 position ids.
            cache: The cache of the previous step, which may be changed in place; None at the start.

        Returns:
            Logits (Q, V) after the last position, and the cache of P + S positions.
        """

    def select(self, cache: Any, rows: Tensor) -> Any:
        """Index the batch dimension of a cache; rows, int64 (Q,), may repeat. Consumes `cache`."""


class KeyValueCache:
    """Keys and values of every layer, in buffers with spare positions."""

    def __init__(self, layers: int) -> None:
        """Create an empty cache for so many layers."""
        self.length = 0
        """Number of positions that all layers hold."""
        self._buffers: list[Tensor | None] = [None] * layers  # (2, Q, heads, P + spare, D) each

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Append S positions to a layer; call `advance` once all layers have them.

        Args:
            layer: Index of the layer.
            keys: (Q, heads, S, D).
            values: (Q, heads, S, D).

        Returns:
            All keys and all values of the layer, (Q, heads, P + S, D) each.
        """
        start, end = self.length, self.length + keys.shape[2]
        buffer = self._buffers[layer]
        if buffer is None or buffer.shape[3] < end:
            queries, heads, _, width = keys.shape
            larger = keys.new_empty(2, queries, heads, end + SPARE_POSITIONS, width)
            if buffer is not None:
                larger[:, :, :, :start] = buffer[:, :, :, :start]
            buffer = self._buffers[layer] = larger
        buffer[0, :, :, start:end] = keys
        buffer[1, :, :, start:end] = values
        return buffer[0, :, :, :end], buffer[1, :, :, :end]

    def advance(self, count: int) -> None:
        """Count positions that every layer was extended by."""
        self.length += count

    def select(self, rows: Tensor) -> "KeyValueCache":
        """Return a copy indexed along the batch dimension by rows, int64 (Q,)."""
        chosen = KeyValueCache(len(self._buffers))
        chosen.length = self.length
        chosen._buffers = [None if buffer is None else buffer[:, rows] for buffer in self._buffers]
        return chosen


class LlamaDecoder:
    """The LLaMA architecture, with weights by their published names.

    Layers are functions of the weights rather than modules: creating torch modules on the meta
    device would import torch's compiler.
    """

    def __init__(self, config: dict[str, Any], weights: dict[str, Tensor]) -> None:
        """Check weights against a config.json; ValueError if they differ or it is not LLaMA's."""
        for key, known in (("model_type", "llama"), ("hidden_act", "silu")):
            if config.get(key, known) != known:  # the same names and shapes may mean another model
                raise ValueError(f"{key} is {config[key]!r}; use runtime = 'transformers'")
        self.hidden_size: int = config["hidden_size"]
        self._layers: int = config["num_hidden_layers"]
        self._heads: int = config["num_attention_heads"]
        self._key_heads: int = config.get("num_key_value_heads") or self._heads
        self._head_width: int = config.get("head_dim") or self.hidden_size // self._heads
        self._eps: float = config["rms_norm_eps"]
        self._theta = rotary_base(config)
        if config.get("tie_word_embeddings"):
            weights.setdefault("lm_head.weight", weights["embed_tokens.weight"])
        check_shapes(weights, self._expected_shapes(config))
        self._weights = weights

    @classmethod
    def read(cls, folder: Path, dtype: torch.dtype, device: torch.device) -> "LlamaDecoder":
        """Load a folder in transformers' format.

        Raises:
            BundleError: The folder does not hold a LLaMA checkpoint, or cannot be read.
        """
        try:
            config = dict(json.loads((folder / "config.json").read_text(encoding="utf-8")))
            return cls(config, read_weights(folder, dtype, device))
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            reason = message_of(error)
            raise BundleError(
                f"{folder}: not a LLaMA checkpoint that can be read: {reason}"
            ) from error

    def embed(self, ids: Tensor) -> Tensor:
        """Embed token ids: int64 (...) -> (..., H)."""
        return F.embedding(ids, self._weights["embed_tokens.weight"])

    def step(
        self, embeds: Tensor, mask: Tensor, positions: Tensor, cache: KeyValueCache | None
    ) -> tuple[Tensor, KeyValueCache]:
        """See `Decoder.step`."""
        visible = visible_positions(mask, embeds.shape[1])  # (Q, 1, S, P + S)
        rotary = rotary_embedding(positions, self._head_width, self._theta, embeds.dtype)
        cache = cache or KeyValueCache(self._layers)
        x = embeds
        for index in range(self._layers):
            layer = f"layers.{index}"
            x = x + self._attend(
                index, self._norm(f"{layer}.input_layernorm", x), rotary, visible, cache
            )
            x = x + self._mlp(f"{layer}.mlp", self._norm(f"{layer}.post_attention_layernorm", x))
        cache.advance(embeds.shape[1])
        return self._linear("lm_head", self._norm("norm", x[:, -1])), cache  # (Q, V)

    def select(self, cache: KeyValueCache, rows: Tensor) -> KeyValueCache:
        """See `Decoder.select`."""
        return cache.select(rows)

    def _attend(
        self,
        index: int,
        x: Tensor,
        rotary: tuple[Tensor, Tensor],
        visible: Tensor,
        cache: KeyValueCache,
    ) -> Tensor:
        """Attention of a layer over x (Q, S, H) and the cached positions -> (Q, S, H)."""
        name = f"layers.{index}.self_attn"
        shape = (*x.shape[:2], -1, self._head_width)
        q, k, v = (
            self._linear(f"{name}.{part}_proj", x).view(shape).transpose(1, 2) for part in "qkv"
        )  # (Q, heads, S, D)
        q = rotate(q, rotary)
        k, v = cache.extend(index, rotate(k, rotary), v)  # (Q, key heads, P + S, D)
        groups = self._heads // self._key_heads
        keys, values = (t.repeat_interleave(groups, dim=1) if groups > 1 else t for t in (k, v))
        mixed = F.scaled_dot_product_attention(q, keys, values, attn_mask=visible)
        return self._linear(f"{name}.o_proj", mixed.transpose(1, 2).flatten(2))

    def _mlp(self, name: str, x: Tensor) -> Tensor:
        gate = F.silu(self._linear(f"{name}.gate_proj", x))
        return self._linear(f"{name}.down_proj", gate * self._linear(f"{name}.up_proj", x))

    def _norm(self, name: str, x: Tensor) -> Tensor:
        return F.rms_norm(x, (self.hidden_size,), self._weights[f"{name}.weight"], self._eps)

    def _linear(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, self._weights[f"{name}.weight"])

    def _expected_shapes(self, config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
        width, inner, vocabulary = (
            self.hidden_size,
            config["intermediate_size"],
            config["vocab_size"],
        )
        heads, key_heads = self._heads * self._head_width, self._key_heads * self._head_width
        shapes: dict[str, tuple[int, ...]] = {
            "embed_tokens": (vocabulary, width),
            "norm": (width,),
            "lm_head": (vocabulary, width),
        }
        for index in range(self._layers):
            layer = f"layers.{index}"
            shapes |= {
                f"{layer}.input_layernorm": (width,),
                f"{layer}.post_attention_layernorm": (width,),
                f"{layer}.self_attn.q_proj": (heads, width),
                f"{layer}.self_attn.k_proj": (key_heads, width),
                f"{layer}.self_attn.v_proj": (key_heads, width),
                f"{layer}.self_attn.o_proj": (width, heads),
                f"{layer}.mlp.gate_proj": (inner, width),
                f"{layer}.mlp.up_proj": (inner, width),
                f"{layer}.mlp.down_proj": (width, inner),
            }
        return {f"{name}.weight": shape for name, shape in shapes.items()}


class TransformersDecoder:
    """Any causal language model that transformers can load."""

    def __init__(
        self,
        folder: Path,
        dtype: torch.dtype,
        device: torch.device,
        quantize: str | None = None,
    ) -> None:
        """Load a folder in transformers' format.

        Args:
            folder: The folder.
            dtype: Type of weights and arithmetic.
            device: Where to load the weights.
            quantize: "8bit" or "4bit" quantizes the matrices with bitsandbytes; CUDA only.

        Raises:
            BundleError: transformers cannot load the folder, or weights are missing.
        """
        from transformers import AutoModelForCausalLM
        from transformers.utils import logging

        logging.disable_progress_bar()
        options: dict[str, Any] = {
            "dtype": dtype, "local_files_only": True, "trust_remote_code": False,
        }  # fmt: skip
        if quantize:
            options["quantization_config"] = quantization(quantize, dtype)
        if quantize or (device.type == "cuda" and find_spec("accelerate")):
            options["device_map"] = {"": device}  # loads without a copy in main memory
        try:
            model, report = AutoModelForCausalLM.from_pretrained(
                folder, output_loading_info=True, **options
            )
        except (OSError, ValueError, RuntimeError, ImportError, SafetensorError) as error:
            reason = message_of(error)
            raise BundleError(f"{folder}: transformers cannot load it: {reason}") from error
        if report["missing_keys"]:  # transformers would initialize them
            raise BundleError(f"{folder}: {min(report['missing_keys'])} is missing")
        self._model = (model if "device_map" in options else model.to(device)).eval()
        # renamed in transformers 5.24
        known = signature(self._model.forward).parameters
        self._cache = "cache" if "cache" in known else "past_key_values"
        self.embed = self._model.get_input_embeddings()
        self.hidden_size = int(self.embed.embedding_dim)

    def step(
        self, embeds: Tensor, mask: Tensor, positions: Tensor, cache: Any
    ) -> tuple[Tensor, Any]:
        """See `Decoder.step`."""
        output = self._model(
            inputs_embeds=embeds,
            attention_mask=mask.long(),
            position_ids=positions,
            use_cache=True,
            logits_to_keep=1,
            **{self._cache: cache},
        )
        return output.logits[:, -1], output[self._cache]

    def select(self, cache: Any, rows: Tensor) -> Any:
        """See `Decoder.select`."""
        cache.batch_select_indices(rows)
        return cache


def quantization(quantize: str, dtype: torch.dtype) -> Any:
    """Return bitsandbytes' config for "8bit" (LLM.int8) or "4bit" (NF4, double quantization)."""
    from transformers import BitsAndBytesConfig

    if quantize == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


def check_shapes(weights: dict[str, Tensor], expected: dict[str, tuple[int, ...]]) -> None:
    """Raise ValueError for the first weight that is missing, unknown or of another shape."""
    for name in (*expected, *weights):
        found = tuple(weights[name].shape) if name in weights else "missing"
        wanted = expected.get(name, "unknown")
        if found != wanted:
            raise ValueError(f"{name} is {found}, the config says {wanted}")


def visible_positions(mask: Tensor, count: int) -> Tensor:
    """Make the attention mask of the last `count` positions.

    A padded position attends to itself: softmax over no position would be NaN.

    Args:
        mask: (Q, P) bool; False is padding.
        count: Number of query positions.

    Returns:
        (Q, 1, count, P) bool; True where a position may attend.
    """
    total = mask.shape[1]
    causal = torch.ones(count, total, dtype=torch.bool, device=mask.device).tril(total - count)
    own = torch.eye(total, dtype=torch.bool, device=mask.device)[total - count :]
    return (mask[:, None, None, :] & causal) | own


def rotary_base(config: dict[str, Any]) -> float:
    """Return the base of the rotary frequencies; ValueError if the config scales them."""
    parameters = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = parameters.get("rope_type") or parameters.get("type") or "default"
    if kind != "default":
        raise ValueError(f"scaled rotary positions ({kind}); use runtime = 'transformers'")
    return float(parameters.get("rope_theta") or config.get("rope_theta") or 10000.0)


def rotary_embedding(
    positions: Tensor, head_width: int, theta: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Compute cosines and sines of the rotary angles (Su et al. 2021).

    Args:
        positions: (Q, S) int64.
        head_width: D, width of an attention head.
        theta: Base of the frequencies.
        dtype: Type of the result.

    Returns:
        Cosines and sines, (Q, 1, S, D) each.
    """
    exponent = torch.arange(0, head_width, 2, device=positions.device).float() / head_width
    angles = positions[..., None].float() * theta**-exponent  # (Q, S, D / 2)
    angles = torch.cat([angles, angles], dim=-1).unsqueeze(1)  # (Q, 1, S, D)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(x: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate the pairs (i, i + D / 2) of each head of x (Q, heads, S, D).

    This is the pairing of transformers' checkpoints.
    """
    low, high = x.chunk(2, dim=-1)
    return x * rotary[0] + torch.cat([-high, low], dim=-1) * rotary[1]


def read_weights(folder: Path, dtype: torch.dtype, device: torch.device) -> dict[str, Tensor]:
    """Read all tensors of a folder's safetensors, without the prefix `model.` of their names.

    A file is reopened for every tensor, because pages that were read count as this process's memory
    until the file is closed. Peak memory is that of the converted weights and one stored tensor.
    """
    weights = {}
    for file in weight_files(folder):
        with safe_open(file, framework="pt") as tensors:
            names = list(tensors.keys())
        for name in names:
            if name.endswith(IGNORED):
                continue
            with safe_open(file, framework="pt") as tensors:
                weights[name.removeprefix("model.")] = tensors.get_tensor(name).to(device, dtype)
    return weights
