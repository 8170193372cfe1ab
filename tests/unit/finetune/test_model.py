"""Trainable parameters, optimizers, learning rates, LoRA."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from helpers.training import STAGE, parts_of, unfrozen
from regionqa.bundles.store import Bundle
from regionqa.data.records import Record
from regionqa.finetune.config import FinetuneSettings, Stages, StageSettings
from regionqa.finetune.model import (
    SinglePrecisionMuon,
    add_lora,
    lacks_bf16,
    learning_rate,
    make_optimizers,
    select_trainable,
)

Tiny = Callable[[str], Bundle]


def test_learning_rate_schedule() -> None:
    stage = StageSettings(learning_rate=2.0, warm_up=0.2)
    rates = [learning_rate(stage, step, 10) for step in range(10)]
    assert rates[:3] == pytest.approx([1, 2, 2])
    assert rates[6] == pytest.approx(1), "half of the way down is half of the rate"
    assert rates[9] == pytest.approx(1 + math.cos(math.pi * 7 / 8))
    assert rates[2:] == sorted(rates[2:], reverse=True)
    steady = replace(stage, schedule="constant")
    assert [learning_rate(steady, step, 10) for step in (0, 1, 2, 9)] == [1, 2, 2, 2]
    long = replace(stage, warm_up_steps=3000)
    assert learning_rate(long, 9, 10) == pytest.approx(2 * 10 / 3000), "steps go before the share"
    none = replace(stage, warm_up=0.0)
    assert learning_rate(none, 0, 10) == 2


def test_parameter_groups(
    tiny: Tiny,
) -> None:
    model, _ = parts_of(tiny("levels"))
    stage = replace(STAGE, weight_decay=0.1, region_rate=0.5, projector_rate=0.25)
    (optimizer,) = make_optimizers(unfrozen(model), stage)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    seen = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            seen[names[id(parameter)]] = (group["share"], group["weight_decay"])
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert seen.keys() == trained
    assert seen["projector.weight"] == (0.25, 0.1)
    assert seen["projector.bias"] == (0.25, 0)
    assert seen["region.roi_align.updims.weight"] == (0.5, 0.1)
    assert seen["region.mlvl_fuse.fuse_convs.0.gn.weight"] == (0.5, 0)
    assert seen["language.model.norm.weight"] == (1, 0)


def test_orthogonal_optimizer_has_decoder_matrices_only(tiny: Tiny) -> None:
    model, _ = parts_of(tiny("levels"))
    stage = replace(STAGE, language=True, learning_rate=0.01, orthogonal_rate=2.0)
    trained = dict(select_trainable(model, stage))
    adamw, muon = make_optimizers(model, stage)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    turned = {names[id(p)] for group in muon.param_groups for p in group["params"]}
    rest = {names[id(p)] for group in adamw.param_groups for p in group["params"]}
    assert turned == {name for name in trained if ".layers." in name and trained[name].ndim == 2}
    assert turned and rest == trained.keys() - turned
    layer = "language.model.layers.0.self_attn.q_proj.weight"
    before = trained[layer].detach().clone()
    for parameter in trained.values():
        parameter.grad = torch.ones_like(parameter)
    u, _, v = torch.linalg.svd(before)
    trained[layer].grad = u @ torch.diag(torch.linspace(0.1, 1, len(u))) @ v  # tenfold apart
    for group in muon.param_groups:
        group["lr"] = stage.learning_rate * group["share"]
    muon.step()
    change = torch.linalg.svdvals(trained[layer].detach() - before)
    assert float(change.min()) / 0.02 > 0.6 and float(change.max()) / 0.02 < 1.3


@pytest.mark.parametrize("shape", [(24, 24), (16, 40), (40, 16)])
def test_muon_in_single_precision_takes_the_steps_of_torch(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    start, gradients = torch.randn(shape), [torch.randn(shape) for _ in range(3)]
    moved = []
    kinds = (torch.optim.Muon, SinglePrecisionMuon)
    for kinds_of_steps in ((0, 0, 0), (1, 1, 1), (0, 1, 0)):  # either continues from the other
        weight, state = torch.nn.Parameter(start.clone()), None
        for kind, gradient in zip(kinds_of_steps, gradients, strict=True):
            optimizer = kinds[kind]([weight], lr=0.1, weight_decay=0.2)
            if state:
                optimizer.load_state_dict(state)
            weight.grad = gradient.clone()
            optimizer.step()  # type: ignore[no-untyped-call]
            state = optimizer.state_dict()
        moved.append(weight.detach() - start)
    for other in moved[1:]:
        assert float((other - moved[0]).norm() / moved[0].norm()) < 0.02
        assert not torch.equal(other, moved[0]), "one of them rounds to bf16"


@pytest.mark.parametrize("supported", [True, False])
def test_muon_runs_in_single_precision_where_bf16_is_emulated(
    supported: bool, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cpu._is_avx512_bf16_supported", lambda: supported)
    model, _ = parts_of(tiny("levels"))
    stage = replace(STAGE, language=True, orthogonal_rate=2.0)
    select_trainable(model, stage)
    _, muon = make_optimizers(model, stage)
    assert isinstance(muon, SinglePrecisionMuon) == (not supported)
    assert not lacks_bf16(torch.device("cuda"))


def test_lora_dropout_in_training_only(tiny: Tiny, records: tuple[Record, ...]) -> None:
    model, collator = parts_of(tiny("none"))
    stage = replace(STAGE, language=True)
    run = FinetuneSettings(
        model="base",
        data=("data.jsonl",),
        stages=Stages(stage, stage),
        lora_rank=2,
        lora_dropout=0.5,
    )
    add_lora(model.language, run)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    trains = {name for name, _ in select_trainable(model, stage)}
    assert trains and all("lora_" in name for name in trains)
    batch = collator.batch(records[:2])
    losses = {}
    for training in (True, False):
        model.language.train(training)
        losses[training] = {float(model(batch).loss.detach()) for _ in range(3)}
    assert (len(losses[True]), len(losses[False])) == (3, 1)
