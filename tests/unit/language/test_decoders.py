"""LlamaDecoder against transformers: logits, cache, checkpoints, errors.

Weights are random and written by transformers itself; the reference always reads one question at a
time, without padding and without a cache.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from regionqa.errors import BundleError
from regionqa.language.decoders import (
    SPARE_POSITIONS,
    Decoder,
    KeyValueCache,
    LlamaDecoder,
    TransformersDecoder,
    rotary_base,
    visible_positions,
)

CPU = torch.device("cpu")
WORDS = 97
TOLERANCE = 1e-4
SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "grouped key heads": {"num_key_value_heads": 2},
    "one key head": {"num_key_value_heads": 1},
    "tied embeddings": {"tie_word_embeddings": True},
    "wide heads": {"head_dim": 16},
    "another rotary base": {"rope_parameters": {"rope_type": "default", "rope_theta": 200.0}},
    "another epsilon": {"rms_norm_eps": 0.1},
}
Open = Callable[[Path], Decoder]


def native(folder: Path) -> LlamaDecoder:
    return LlamaDecoder.read(folder, torch.float32, CPU)


def through_transformers(folder: Path) -> TransformersDecoder:
    return TransformersDecoder(folder, torch.float32, CPU)


both = pytest.mark.parametrize("open_decoder", [native, through_transformers])


def write(folder: Path, shard: str = "1GB", **settings: Any) -> Any:
    """A random LLaMA in transformers' format; returns it, to compare with."""
    torch.manual_seed(0)
    config = {
        "vocab_size": WORDS,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": 128,
        "initializer_range": 0.3,
        "eos_token_id": None,
    }
    model = LlamaForCausalLM(LlamaConfig(**(config | settings))).eval()
    for name, weight in model.named_parameters():
        if "norm" in name:
            torch.nn.init.uniform_(weight, 0.5, 1.5)
    model.save_pretrained(folder, max_shard_size=shard)
    return model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "llm"


def questions(*lengths: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(WORDS, (length,), generator=generator) for length in lengths]


@torch.inference_mode()
def reference(model: Any, ids: Tensor) -> Tensor:
    """Logits (V,) after the last of ids (L,)."""
    logits: Tensor = model(ids[None]).logits
    return logits[0, -1]


def padded(rows: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, mask and positions (Q, S) of rows padded on the left, as `LanguageModel` does it."""
    longest = max(len(row) for row in rows)
    ids = torch.stack([torch.cat([row.new_zeros(longest - len(row)), row]) for row in rows])
    mask = torch.stack([torch.arange(longest) >= longest - len(row) for row in rows])
    return ids, mask, (mask.cumsum(1) - 1).clamp(min=0)


@torch.inference_mode()
def greedy(decoder: Decoder, ids: Tensor, count: int) -> list[int]:
    """Greedy tokens, one step at a time with the cache."""
    mask = torch.ones(1, len(ids), dtype=torch.bool)
    positions = torch.arange(len(ids))[None]
    logits, cache = decoder.step(decoder.embed(ids[None]), mask, positions, None)
    tokens = [int(logits.argmax())]
    while len(tokens) < count:
        mask = torch.cat([mask, mask.new_ones(1, 1)], dim=1)
        embeds = decoder.embed(torch.tensor([tokens[-1:]]))
        positions = positions[:, -1:] + 1
        logits, cache = decoder.step(embeds, mask, positions, cache)
        tokens.append(int(logits.argmax()))
    return tokens


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=TOLERANCE, atol=TOLERANCE)


# -- the same numbers ------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@torch.inference_mode()
def test_padded_logits_equal_transformers(
    folder: Path, open_decoder: Open, settings: dict[str, Any]
) -> None:
    model = write(folder, **settings)
    decoder = open_decoder(folder)
    rows = questions(9, 1, 5)
    ids, mask, positions = padded(rows)
    logits, _ = decoder.step(decoder.embed(ids), mask, positions, None)
    assert decoder.hidden_size == 32
    assert logits.shape == (3, WORDS)
    close(logits, torch.stack([reference(model, row) for row in rows]))


@both
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@torch.inference_mode()
def test_cached_steps_equal_one_step(
    folder: Path, open_decoder: Open, settings: dict[str, Any]
) -> None:
    model = write(folder, **settings)
    decoder = open_decoder(folder)
    images, rows = questions(6, 6), questions(4, 2, 7)
    shared = torch.stack(images)
    start = torch.arange(6).expand(2, -1)
    _, cache = decoder.step(decoder.embed(shared), torch.ones(2, 6, dtype=torch.bool), start, None)
    owner = torch.tensor([1, 0, 1])
    cache = decoder.select(cache, owner)
    ids, mask, positions = padded(rows)
    mask = torch.cat([mask.new_ones(3, 6), mask], dim=1)
    positions = (mask.cumsum(1)[:, 6:] - 1).clamp(min=0)
    logits, cache = decoder.step(decoder.embed(ids), mask, positions, cache)
    whole = [torch.cat([images[at], row]) for at, row in zip(owner.tolist(), rows, strict=True)]
    close(logits, torch.stack([reference(model, row) for row in whole]))
    more = questions(3)[0]
    mask = torch.cat([mask, mask.new_ones(3, 1)], dim=1)
    logits, _ = decoder.step(decoder.embed(more[:, None]), mask, positions[:, -1:] + 1, cache)
    whole = [torch.cat([row, more[at : at + 1]]) for at, row in enumerate(whole)]
    close(logits, torch.stack([reference(model, row) for row in whole]))


@both
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_greedy_tokens_equal_generate(
    folder: Path, open_decoder: Open, settings: dict[str, Any]
) -> None:
    model = write(folder, **settings)
    [ids] = questions(8)
    with torch.inference_mode():
        all_ids = model.generate(
            ids[None],
            attention_mask=torch.ones(1, 8, dtype=torch.long),
            max_new_tokens=20,
            do_sample=False,
            pad_token_id=0,
        )
    assert greedy(open_decoder(folder), ids, 20) == all_ids[0, 8:].tolist()


@both
def test_answers_longer_than_the_spare_positions(folder: Path, open_decoder: Open) -> None:
    """The buffers are reallocated once and keep every position."""
    model = write(folder)
    [ids] = questions(8)
    with torch.inference_mode():
        all_ids = model.generate(
            ids[None],
            attention_mask=torch.ones(1, 8, dtype=torch.long),
            max_new_tokens=SPARE_POSITIONS + 30,
            do_sample=False,
            pad_token_id=0,
        )
    assert greedy(open_decoder(folder), ids, SPARE_POSITIONS + 30) == all_ids[0, 8:].tolist()


@pytest.mark.parametrize("width", [2, 3 * SPARE_POSITIONS])
def test_cache_returns_everything_that_was_appended(width: int) -> None:
    """Heads narrower and wider than the buffers are long."""
    pieces = (5, 1, SPARE_POSITIONS - 1, 1, 1, SPARE_POSITIONS + 9, 2)
    keys, values = torch.randn(2, 3, 2, sum(pieces), width)
    cache, end = KeyValueCache(2), 0
    for piece in pieces:
        start, end = end, end + piece
        for layer, sign in ((0, 1), (1, -1)):
            new = (each[:, :, start:end] * sign for each in (keys, values))
            found = cache.extend(layer, *new)
            assert torch.equal(found[0], keys[:, :, :end] * sign)
            assert torch.equal(found[1], values[:, :, :end] * sign)
        cache.advance(piece)
    chosen = cache.select(torch.tensor([2, 0, 2]))
    found = chosen.extend(1, keys[:, :, :1], values[:, :, :1])
    assert torch.equal(found[0][:, :, :end], -keys[[2, 0, 2]])
    assert torch.equal(found[1][:, :, end], values[:, :, 0])


@torch.inference_mode()
def test_all_padding_gives_no_nan() -> None:
    visible = visible_positions(torch.tensor([[False, False, True]]), 3)
    assert visible[0, 0].tolist() == [
        [True, False, False],
        [False, True, False],
        [False, False, True],
    ]


# -- files -----------------------------------------------------------------------------------------


@both
def test_sharded_weights(folder: Path, open_decoder: Open) -> None:
    model = write(folder, shard="20KB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    [ids] = questions(8)
    assert greedy(open_decoder(folder), ids, 1) == [int(reference(model, ids).argmax())]


@both
def test_weights_are_converted_to_the_dtype(folder: Path, open_decoder: Open) -> None:
    write(folder).half().save_pretrained(folder)
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    decoder = open_decoder(folder)
    ids, mask, positions = padded(questions(7))
    with torch.inference_mode():
        logits, _ = decoder.step(decoder.embed(ids), mask, positions, None)
    assert logits.dtype == torch.float32
    close(logits[0], reference(model, ids[0]))


@both
def test_rotary_buffers_are_ignored(folder: Path, open_decoder: Open) -> None:
    write(folder)
    before = greedy(open_decoder(folder), questions(6)[0], 5)
    edit_weights(folder, lambda weights: weights | {
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.full((4,), 7.0)
    })  # fmt: skip
    assert greedy(open_decoder(folder), questions(6)[0], 5) == before


@pytest.mark.parametrize("base", [200.0, None])
def test_rotary_base_and_head_width_of_old_configs(folder: Path, base: float | None) -> None:
    model = write(folder, rope_parameters={"rope_type": "default", "rope_theta": base or 10000.0})
    edit_config(folder, rope_parameters=None, rope_theta=base, head_dim=None)
    if base is None:
        assert rotary_base({}) == 10000.0
    expected = reference(model, ids := questions(9)[0])
    decoder = native(folder)
    with torch.inference_mode():
        ids, mask, positions = padded([ids])
        logits, _ = decoder.step(decoder.embed(ids), mask, positions, None)
    close(logits[0], expected)


def edit_weights(folder: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    path = folder / "model.safetensors"
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    save_file(change(load_file(path)), path, metadata=metadata)


def edit_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def refused(open_decoder: Open, folder: Path) -> str:
    with pytest.raises(BundleError) as caught:
        open_decoder(folder)
    message = str(caught.value)
    assert message.startswith(f"{folder}: ")
    assert "\n" not in message
    return message


@both
def test_missing_weight(folder: Path, open_decoder: Open) -> None:
    write(folder)
    edit_weights(folder, lambda weights: without(weights, "model.layers.1.mlp.up_proj.weight"))
    message = refused(open_decoder, folder)
    assert "layers.1.mlp.up_proj.weight is missing" in message


def without(weights: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {key: value for key, value in weights.items() if key != name}


def test_missing_embeddings(folder: Path) -> None:
    write(folder, tie_word_embeddings=True)
    edit_weights(folder, lambda weights: without(weights, "model.embed_tokens.weight"))
    assert "embed_tokens.weight" in refused(native, folder)


def test_unknown_weight(folder: Path) -> None:
    write(folder)
    edit_weights(folder, lambda weights: weights | {"model.projector.weight": torch.ones(2, 3)})
    assert "projector.weight is (2, 3), the config says unknown" in refused(native, folder)


@both
def test_wrong_weight_shape(folder: Path, open_decoder: Open) -> None:
    write(folder)
    edit_weights(folder, lambda weights: weights | {"model.norm.weight": torch.ones(31)})
    message = refused(open_decoder, folder)
    if open_decoder is native:
        assert "norm.weight is (31,), the config says (32,)" in message


def test_biases_are_refused(folder: Path) -> None:
    write(folder, attention_bias=True)
    assert "_proj.bias is (32,), the config says unknown" in refused(native, folder)


@pytest.mark.parametrize(
    "parameters",
    [
        {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0},
        {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0},
    ],
)
def test_scaled_rotary_positions_are_refused(folder: Path, parameters: dict[str, object]) -> None:
    model = write(folder, rope_parameters=parameters)
    message = refused(native, folder)
    assert f"scaled rotary positions ({parameters['rope_type']})" in message
    assert "use runtime = 'transformers'" in message
    decoder = through_transformers(folder)
    ids, mask, positions = padded(questions(9))
    with torch.inference_mode():
        logits, _ = decoder.step(decoder.embed(ids), mask, positions, None)
    close(logits[0], reference(model, ids[0]))


def test_scaled_rotary_positions_of_old_configs(folder: Path) -> None:
    write(folder)
    edit_config(folder, rope_parameters=None, rope_scaling={"type": "linear", "factor": 2.0})
    assert "scaled rotary positions (linear)" in refused(native, folder)


@pytest.mark.parametrize(("key", "value"), [("hidden_act", "gelu"), ("model_type", "gemma")])
def test_other_architecture_with_the_same_names(folder: Path, key: str, value: str) -> None:
    write(folder)
    edit_config(folder, **{key: value})
    assert f"{key} is '{value}'; use runtime = 'transformers'" in refused(native, folder)


@both
@pytest.mark.parametrize("content", ["", "{", "[]", '{"model_type": "llama"'])
def test_invalid_config(folder: Path, open_decoder: Open, content: str) -> None:
    write(folder)
    (folder / "config.json").write_text(content)
    refused(open_decoder, folder)


def test_config_without_required_key(folder: Path) -> None:
    write(folder)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    assert "'hidden_size'" in refused(native, folder)


@both
def test_truncated_or_missing_weights(folder: Path, open_decoder: Open) -> None:
    write(folder)
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    refused(open_decoder, folder)
    path.unlink()
    assert "safetensors" in refused(open_decoder, folder)
    refused(open_decoder, folder / "nowhere")
