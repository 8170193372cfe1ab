"""Packed rows: every token is computed as in a row of its own."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from itertools import pairwise
from math import inf
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForCausalLM

from helpers.tiny_models import ROWS
from helpers.training import STAGE, make_stage_run, parts_of, unfrozen
from regionqa.bundles.store import Bundle
from regionqa.data.records import Record, Turn
from regionqa.finetune.batches import collate
from regionqa.finetune.batches.collate import Batch, Collator
from regionqa.finetune.config import FinetuneSettings, RegionPart, Stages
from regionqa.finetune.distributed import ProcessGroup
from regionqa.finetune.model import RegionLanguageModel, add_lora, select_trainable
from regionqa.finetune.trainer import (
    enable_gradient_checkpointing,
    evaluate_held_out,
    forward_and_backward,
    own_batches,
)
from regionqa.language.packing import (
    PackedRows,
    arrange,
    fill_rows,
    longest_packed_prompt,
    pack_prompts,
    row_width,
    split_images,
)

Tiny = Callable[[str], Bundle]


# -- the rows --------------------------------------------------------------------------------------


@st.composite
def prompts(draw: st.DrawFn) -> tuple[list[int], list[int], int]:
    """Images, lengths and the length of the shared prefix of some prompts."""
    shared = draw(st.integers(0, 6))
    each = st.tuples(st.integers(0, 3), st.integers(max(1, shared), shared + 9))
    drawn = draw(st.lists(each, min_size=1, max_size=9))
    return [image for image, _ in drawn], [length for _, length in drawn], shared


@settings(max_examples=30)
@given(prompts(), st.integers(1, 9), st.integers(1, 9))
def test_every_token_sees_its_own_prompt_up_to_itself(
    drawn: tuple[list[int], list[int], int], most: int, count: int
) -> None:
    images, lengths, shared = drawn
    length = max(lengths) + 2
    groups = split_images(images, most)
    plan = fill_rows(groups, lengths, shared, min(count, len(groups)))
    width = row_width(plan, lengths, shared)
    rows = arrange(plan, width, lengths, shared, length)
    count = len(plan) * width  # G * W
    owner, sources, positions = (t.flatten() for t in (rows.owners, rows.sources, rows.positions))
    blocks = list(rows.visible()[:, 0].float())
    visible = torch.block_diag(*blocks).bool()  # type: ignore[no-untyped-call]  # (G * W, G * W)
    assert visible.shape == (count, count)
    assert visible.any(dim=1).all(), "padding too"
    used = set()
    for prompt, image in enumerate(images):
        places = rows.places[prompt, : lengths[prompt]]
        for at, place in enumerate(places.tolist()):
            holder, token = divmod(int(sources[place]), length)
            assert (holder == prompt or at < shared) and images[holder] == image and token == at
            assert int(positions[place]) == at
            assert visible[place].nonzero().flatten().tolist() == places[: at + 1].tolist()
            used.add(place)
    assert {place for place in range(count) if owner[place] >= 0} == used


def test_rows_that_save_the_most_are_chosen() -> None:
    one_image = pack_prompts([0] * 4, [40, 38, 45, 45], 30, 45)
    assert one_image is not None
    assert one_image.sources.shape == (1, 30 + 10 + 8 + 15 + 15)
    own = pack_prompts([0, 1, 2], [40, 38, 45], 30, 45)
    assert own is None, "as many rows, no shorter"
    short = pack_prompts([0, 1, 2], [20, 20, 45], 10, 45)
    assert short is not None and short.sources.shape == (1, 85), "images may share a row"
    uneven = pack_prompts([0] * 4 + [1] * 4 + [2, 3, 4, 5], [45] * 12, 17, 45)
    assert uneven is not None and uneven.sources.shape == (2, 129 + 2 * 45)
    assert pack_prompts([0], [5], 4, 5) is None
    assert split_images([0, 1, 0, 0, 0, 0], 4) == [(0, 2), (3, 4, 5), (1,)]


# -- language models -------------------------------------------------------------------------------

WIDTH = 32
SIZES = {
    "vocab_size": 50, "hidden_size": WIDTH, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2, "initializer_range": 0.2,
}  # fmt: skip


def language_model(kind: str, attention: str | None = None, **changed: Any) -> Any:
    """Make an untrained model of transformers in float64."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **{**SIZES, **changed})
    options = {"attn_implementation": attention} if attention else {}
    return AutoModelForCausalLM.from_config(config, **options).double().eval()


def outputs(model: Any, images: list[int], lengths: list[int], shared: int) -> list[Tensor]:
    """Compute the logits (A, V) of packed and of single prompts."""
    length = max(lengths)
    mask = (torch.arange(length) < torch.tensor(lengths)[:, None]).long()
    tokens = torch.randn(len(lengths), length, WIDTH).double()
    for prompt, image in enumerate(images):
        tokens[prompt, :shared] = tokens[images.index(image), :shared]
    packed = pack_prompts(images, lengths, shared, length)
    assert packed is not None
    chosen = mask.bool()
    with torch.no_grad():
        single = model(inputs_embeds=tokens, attention_mask=mask, use_cache=False).logits[chosen]
        inputs = packed.inputs(tokens, model.config._attn_implementation)
        together = packed.unpack(model(**inputs, use_cache=False).logits, chosen)
    return [single, together]


@pytest.mark.parametrize(
    ("kind", "attention"),
    [
        ("llama", "sdpa"),
        ("llama", "eager"),
        ("qwen3", "sdpa"),
        ("gemma2", "eager"),
        ("gemma3_text", "sdpa"),
        ("smollm3", "sdpa"),
    ],
)
def test_packed_prompts_are_computed_as_single_ones(kind: str, attention: str) -> None:
    model = language_model(kind, attention)
    lengths = [12, 15, 9, 10, 14, 13]
    assert longest_packed_prompt(model) >= max(lengths)
    single, together = outputs(model, [0, 0, 1, 0, 1, 2], lengths, 7)
    assert torch.allclose(single, together, atol=1e-9 if attention == "sdpa" else 1e-4)
    assert not torch.allclose(single, single.roll(1, 0), atol=1e-2), "tokens differ"


def test_prompts_longer_than_a_sliding_window_keep_rows_of_their_own() -> None:
    lengths = [12, 15, 9, 10]
    for window, packs in ((15, True), (14, False)):
        types = ["sliding_attention", "full_attention"]
        model = language_model("gemma3_text", sliding_window=window, layer_types=types)
        assert longest_packed_prompt(model) == window
        single, together = outputs(model, [0, 0, 1, 1], lengths, 7)
        assert torch.allclose(single, together, atol=1e-9) == packs == (max(lengths) <= window)


@pytest.mark.parametrize(
    ("kind", "changed"),
    [
        ("gpt2", {}),
        ("bloom", {}),
        ("mamba", {}),
        ("lfm2", {"layer_types": ["conv", "full_attention"]}),
    ],
)
def test_models_that_place_tokens_otherwise_keep_rows_of_their_own(
    kind: str, changed: dict[str, Any]
) -> None:
    assert longest_packed_prompt(language_model(kind, **changed)) == 0
    assert longest_packed_prompt(language_model("llama")) == inf


# -- training --------------------------------------------------------------------------------------


def many_questions(records: Sequence[Record]) -> list[Record]:
    """Questions about three images: without regions, with one or two, of one turn or two."""
    same = [replace(record, image=records[0].image) for record in records[:4]]
    more = Turn("what is beside it?", "a blue disc, and nothing else.")
    talk = replace(records[4], turns=(*records[4].turns, more))
    other = [replace(record, image=talk.image) for record in (records[1], records[2])]
    return [same[0], talk, *other, *same[1:], replace(records[5], turns=(more,))]


def gradients(model: RegionLanguageModel, batch: Batch, *teacher: Tensor) -> dict[str, Tensor]:
    """Compute metrics and the gradients of all trained weights, by name."""
    model.zero_grad()
    metrics = model(batch, *teacher)
    metrics.loss.backward()
    named = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {name: grad.clone() for name, grad in named.items()} | {"": metrics.detached()}


def compare(model: RegionLanguageModel, batch: Batch, *teacher: Tensor, atol: float = 1e-4) -> None:
    """Compare packed rows with rows of one question each."""
    assert batch.packed is not None
    packed = gradients(model, batch, *teacher)
    single = gradients(model, replace(batch, packed=None), *teacher)
    assert packed.keys() == single.keys() and len(packed) > 5
    for name, value in packed.items():
        assert torch.allclose(value, single[name], rtol=1e-3, atol=atol), name


def talking(collator: Collator) -> Collator:
    """The collator of a model with further turns."""
    card = collator.builder.card
    prompt = replace(card.prompt, turn="{question}<answer>")
    return replace(collator, builder=replace(collator.builder, card=replace(card, prompt=prompt)))


@pytest.mark.parametrize("part", [RegionPart.all, RegionPart.projector])
@pytest.mark.parametrize("row", ROWS)
def test_packing_changes_neither_loss_nor_gradients(
    row: str, part: RegionPart, tiny: Tiny, records: tuple[Record, ...]
) -> None:
    model, collator = parts_of(tiny(row), part)
    batch = talking(collator).batch(many_questions(records))
    assert batch.packed is not None
    assert batch.packed.sources.numel() < 0.8 * batch.input_ids.numel()
    compare(unfrozen(model), batch)
    half = torch.arange(len(batch.labels)) % 2 == 0
    with torch.no_grad():
        teacher = model.logits(batch)
        assert torch.allclose(teacher, model.logits(replace(batch, packed=None)), atol=1e-4)
    compare(model, replace(batch, distilled=half), teacher.flip(1))


@pytest.mark.parametrize("bf16", [False, True])
def test_packing_with_lora_checkpointing_and_bf16(
    bf16: bool, tiny: Tiny, records: tuple[Record, ...]
) -> None:
    model, collator = parts_of(tiny("levels"))
    stage = replace(STAGE, projector=True, language=True)
    run = FinetuneSettings(model="base", data=("x",), stages=Stages(stage, stage), lora_rank=4)
    add_lora(model.language, run)
    select_trainable(model, stage)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:  # zero at first, and so would be the gradients of A
            torch.nn.init.normal_(parameter, std=0.1)
    enable_gradient_checkpointing(model.language)
    model.language.train()
    batch = talking(collator).batch(many_questions(records)[:4] * 2)
    with torch.autocast("cpu", torch.bfloat16) if bf16 else nullcontext():
        if not bf16:
            compare(model, batch)
            return
        packed, single = (model.logits(each) for each in (batch, replace(batch, packed=None)))
        assert F.mse_loss(packed, single) < 1e-3 * single.var()


def test_steps_and_evaluation_use_packed_rows(
    tiny: Tiny, records: tuple[Record, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, collator = parts_of(tiny("pixels"))
    run = make_stage_run(many_questions(records), talking(collator))
    visible, used = PackedRows.visible, []

    def counted(rows: PackedRows) -> Tensor:
        used.append(rows)
        return visible(rows)

    monkeypatch.setattr(PackedRows, "visible", counted)
    processes = ProcessGroup("cpu")
    try:
        totals, held_out = [], []
        for packs in (True, False):
            if not packs:
                monkeypatch.setattr(collate, "pack_prompts", lambda *_: None)
            batches = own_batches(run, 0, processes)
            totals.append(
                forward_and_backward(run, unfrozen(model), batches, processes, bf16=False)
            )
            held_out.append(evaluate_held_out(run, model, processes, bf16=False))
            assert bool(used) == packs
            used.clear()
    finally:
        processes.close()
    first, second = totals
    assert torch.allclose(first, second, rtol=1e-5, atol=1e-6)
    for with_packing, without in pairwise(held_out):
        assert with_packing == pytest.approx(without, rel=1e-5)
