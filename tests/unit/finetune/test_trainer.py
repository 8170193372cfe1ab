"""The training loop: batches, loss, clipping, evaluation."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest
import torch
from safetensors.torch import load_file
from transformers.models.llama.modeling_llama import LlamaAttention

from helpers.tiny_models import RED, record_json, write_lines
from regionqa.bundles.store import Bundle
from regionqa.data.records import Record
from regionqa.finetune.batches.collate import Collator
from regionqa.finetune.batches.dataset import IGNORE_INDEX
from regionqa.finetune.batches.sampler import DrawnRecord
from regionqa.finetune.distributed import ProcessGroup, deterministic_kernels
from regionqa.finetune.model import RegionLanguageModel, make_optimizers, parameters_of
from regionqa.finetune.schedule.signals import StopReason, StopSignal
from regionqa.finetune.tracking import TrainingLog
from regionqa.finetune.trainer import (
    StageRun,
    evaluate_held_out,
    forward_and_backward,
    loss_and_accuracy,
    own_batches,
    train_stages,
)

if TYPE_CHECKING:
    from conftest import Command


from torch import Tensor

from helpers.training import STAGE, make_stage_run, parts_of, plain_record, unfrozen

Tiny = Callable[[str], Bundle]


@dataclass(frozen=True)
class Seen:
    """The arguments of `batch`, in place of a batch."""

    drawn: list[tuple[Record, Sequence[int]]]
    noise: float
    distilled: Any = None


def recording_collator() -> Any:
    def batch(records: Any, noise: float, seeds: Any) -> Seen:
        return Seen(list(zip(records, seeds, strict=True)), noise)

    return SimpleNamespace(batch=batch)


def process(rank: int, count: int, **more: Any) -> ProcessGroup:
    """One of several processes, which does not talk to the others."""
    device = torch.device("cpu")
    return cast(ProcessGroup, SimpleNamespace(rank=rank, count=count, device=device, **more))


def test_processes_split_a_step() -> None:
    records = [plain_record(number, number // 2) for number in range(20)]

    stage = replace(STAGE, batch=8, accumulate=4, box_noise=0.2)
    alone = make_stage_run(records, recording_collator(), stage)
    together = replace(alone, settings=replace(stage, batch=4))

    def taken(run: StageRun, step: int, count: int, rank: int) -> list[Seen]:
        return cast(list[Seen], own_batches(run, step, process(rank, count)))

    for step in range(5):
        each = [taken(together, step, 2, rank) for rank in (0, 1)]
        assert [[len(seen.drawn) for seen in own] for own in each] == [[4] * 4] * 2
        two = [seen for own in each for seen in own]
        assert {seen.noise for seen in two} == {0.2}
        one = taken(alone, step, 1, 0)
        assert [each for seen in one for each in seen.drawn] == [
            each for seen in two for each in seen.drawn
        ]


def test_time_limit_in_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr("regionqa.finetune.schedule.signals.time.monotonic", lambda: now[0])
    stop, endless = StopSignal(0.5), StopSignal(None)
    for after, reason in ((30, StopReason.none), (30.1, StopReason.time)):
        now[0] = 1000 + after
        assert (stop.reason(process(0, 1)), endless.reason(process(0, 1))) == (reason, 0)


def test_replayed_records_are_distilled_from_a_teacher() -> None:
    records = [plain_record(number, number) for number in range(4)]
    drawn = [DrawnRecord(record, (0, row), row >= 2) for row, record in enumerate(records)]
    run = replace(
        make_stage_run(records, recording_collator()),
        sampler=SimpleNamespace(step=lambda _: drawn),
    )
    teacher = cast(RegionLanguageModel, object())
    taught = replace(run, teacher=teacher)
    for other, distilled in ((run, [False] * 4), (taught, [False, False, True, True])):
        (seen,) = own_batches(other, 0, process(0, 1))
        assert seen.distilled.tolist() == distilled


def by_hand(
    model: RegionLanguageModel, collator: Collator, records: Sequence[Record]
) -> tuple[float, float]:
    """Mean loss per token and share of right answers, by transformers' loss of single records."""
    total, tokens, right = 0.0, 0, 0
    for record in records:
        batch = collator.batch([record])
        with torch.no_grad():
            out = model.language(inputs_embeds=model.embed(batch), labels=batch.labels)
        count = int((batch.labels != IGNORE_INDEX).sum())
        total += float(out.loss) * count
        tokens += count
        predicted = out.logits[:, :-1].argmax(-1)
        wanted = batch.labels[:, 1:]
        right += bool(((predicted == wanted) | (wanted == IGNORE_INDEX)).all())
    return total / tokens, right / len(records)


@pytest.mark.parametrize("row", ["levels", "none"])
def test_held_out_metrics_equal_single_records(
    tiny: Tiny, records: tuple[Record, ...], row: str
) -> None:
    model, collator = parts_of(tiny(row))
    run = make_stage_run(records, collator)
    processes = ProcessGroup("cpu")
    try:
        loss, accuracy = evaluate_held_out(run, model, processes, bf16=False)
        assert (loss, accuracy) == pytest.approx(by_hand(model, collator, records), abs=1e-5)
        assert accuracy == 0
        (optimizer,) = make_optimizers(unfrozen(model), replace(STAGE, learning_rate=0.01))
        for _ in range(60):
            tally = model(collator.batch(records))
            (tally.loss / tally.tokens).backward()
            optimizer.step()
            optimizer.zero_grad()
        loss, accuracy = evaluate_held_out(run, model, processes, bf16=False)
    finally:
        processes.close()
    assert (loss, accuracy) == pytest.approx(by_hand(model, collator, records), abs=1e-5)
    assert accuracy > 0, "or a count of right answers would say nothing"


def test_processes_share_the_held_out_records(tiny: Tiny, records: tuple[Record, ...]) -> None:
    """A process without records adds nothing."""
    model, collator = parts_of(tiny("none"))
    run = replace(make_stage_run(records[:5], collator), settings=replace(STAGE, batch=2))
    measured: list[Tensor] = []

    def kept(totals: Tensor) -> Tensor:
        measured.append(totals)
        return torch.ones(5)

    def measure(held_out: Sequence[Record], count: int) -> list[Tensor]:
        measured.clear()
        for rank in range(count):
            held = replace(run, held_out=held_out)
            evaluate_held_out(held, model, process(rank, count, sum=kept), bf16=False)
        return list(measured)

    (whole,) = measure(records[:5], 1)
    assert whole[3] == 5
    both = measure(records[:5], 2)
    assert [float(each[3]) for each in both] == [3, 2]
    assert torch.allclose(both[0] + both[1], whole, atol=1e-5)
    assert [float(each[3]) for each in measure(records[:2], 2)] == [2, 0]


# -- gradients of one step -------------------------------------------------------------------------

LONG = "the red thing is left of the blue thing."


def uneven(records: Sequence[Record]) -> list[DrawnRecord]:
    """The records as one step's, the first of them with a longer answer."""
    longer = replace(records[0], turns=(replace(records[0].turns[0], answer=LONG),))
    return [
        DrawnRecord(record, (0, 0, row), False) for row, record in enumerate((longer, *records[1:]))
    ]


def step_gradients(
    bundle: Bundle, drawn: list[DrawnRecord], batch: int
) -> tuple[dict[str, Tensor], tuple[float, float]]:
    """Gradients of one step in forward passes of `batch` records, and its loss and accuracy."""
    model, collator = parts_of(bundle)
    run = replace(
        make_stage_run([each.record for each in drawn], collator),
        settings=replace(STAGE, batch=batch, accumulate=len(drawn) // batch),
        sampler=SimpleNamespace(step=lambda _: drawn),
    )
    processes = ProcessGroup("cpu")
    try:
        batches = own_batches(run, 0, processes)
        totals = forward_and_backward(run, unfrozen(model), batches, processes, bf16=False)
    finally:
        processes.close()
    named = model.named_parameters()
    gradients = {name: p.grad for name, p in named if p.grad is not None}
    return gradients, loss_and_accuracy(totals)


def test_loss_does_not_depend_on_accumulation(tiny: Tiny, records: tuple[Record, ...]) -> None:
    """A mean of the batches' means would weigh the tokens of the longer answer less."""
    drawn = uneven((records[0], *records[3:6]))
    model, collator = parts_of(tiny("levels"))
    counts = [collator.batch([each.record]).answer_tokens for each in drawn]
    assert counts[0] > 2 * counts[1]
    whole, metrics = step_gradients(tiny("levels"), drawn, batch=4)
    assert metrics == pytest.approx(by_hand(model, collator, [d.record for d in drawn]), abs=1e-5)
    for batch in (1, 2):
        split, same = step_gradients(tiny("levels"), drawn, batch)
        assert same == pytest.approx(metrics, abs=1e-6)
        assert split.keys() == whole.keys()
        for name, gradient in whole.items():
            assert torch.allclose(split[name], gradient, rtol=1e-3, atol=1e-6), name
    # against autograd over the whole batch
    unfrozen(model)
    batch_of_all = collator.batch([each.record for each in drawn])
    (model(batch_of_all).loss / sum(counts)).backward()
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            assert torch.allclose(whole[name], parameter.grad, rtol=1e-3, atol=1e-6), name


def test_loss_is_divided_by_tokens_of_all_processes(
    tiny: Tiny, records: tuple[Record, ...]
) -> None:
    """Two processes with equal records, with averaged gradients, compute what one does."""
    drawn = uneven((records[0], *records[3:6]))
    alone, metrics = step_gradients(tiny("none"), drawn, batch=2)
    model, collator = parts_of(tiny("none"))
    run = replace(
        make_stage_run([each.record for each in drawn], collator),
        settings=replace(STAGE, batch=2, accumulate=2),
        sampler=SimpleNamespace(step=lambda _: drawn * 2),
    )
    delayed: list[bool] = []

    def delay_sync(model: object, delay: bool) -> Any:
        delayed.append(delay)
        return nullcontext()

    one_of_two = process(1, 2, sum=lambda each: 2 * each, delay_sync=delay_sync)
    batches = own_batches(run, 0, one_of_two)
    totals = forward_and_backward(run, unfrozen(model), batches, one_of_two, bf16=False)
    assert delayed == [True, False], "gradients are exchanged after the last batch"
    assert loss_and_accuracy(totals) == pytest.approx(metrics, abs=1e-5)
    assert totals[3] == 2 * len(drawn)
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            assert torch.allclose(parameter.grad, alone[name], rtol=1e-3, atol=1e-6), name


@pytest.mark.parametrize(("clip", "clipped"), [(0.05, True), (1e9, False)])
def test_gradient_clipping(
    clip: float,
    clipped: bool,
    tiny: Tiny,
    records: tuple[Record, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    norms: list[float] = []
    step = torch.optim.AdamW.step

    def stepping(self: torch.optim.AdamW, *inputs: Any) -> Any:
        gradients = [p.grad for p in parameters_of(self) if p.grad is not None]
        norms.append(float(torch.stack([each.norm() for each in gradients]).norm()))
        return step(self, *inputs)

    monkeypatch.setattr(torch.optim.AdamW, "step", stepping)
    model, collator = parts_of(tiny("levels"))
    settings = replace(STAGE, steps=2, clip=clip, projector=True, language=True)
    run = replace(make_stage_run(records, collator, settings), folder=tmp_path / "checkpoints")
    processes = ProcessGroup("cpu")
    try:
        with StopSignal(None) as stop, TrainingLog(tmp_path, processes, quiet=True) as log:
            train_stages([run], model, processes, log, stop)
    finally:
        processes.close()
    assert len(norms) == 2
    if clipped:
        assert norms == pytest.approx([clip, clip], rel=1e-3)
    else:
        assert min(norms) > 0.5, "clipping at 0.05 would change them"


# -- the same bits in every run --------------------------------------------------------------------


@pytest.fixture
def two_threads() -> Iterator[None]:
    """As a user runs it; the suite itself has one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_gradients_of_one_image_with_many_questions_are_the_same_in_every_run(
    two_threads: None,
) -> None:
    """They are sums over its questions, whichever thread comes first."""
    torch.manual_seed(0)
    tokens = torch.randn(3, 64, 16, requires_grad=True)  # (B, T, H), as the projector gives them
    image_rows = torch.tensor([0] * 30 + [1] * 9 + [2])
    weights = torch.randn(40, 64, 16)  # torch uses one thread for less
    found: list[Tensor] = []
    with deterministic_kernels(torch.device("cpu")):
        for _ in range(50):
            tokens.grad = None
            total: Any = (tokens[image_rows] * weights).sum()
            total.backward()
            assert tokens.grad is not None
            found.append(tokens.grad)
    assert all(torch.equal(found[0], other) for other in found[1:])


def test_training_uses_deterministic_kernels_and_restores_what_was_set(
    tiny: Tiny, records: tuple[Record, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used = []
    step = torch.optim.AdamW.step

    def stepping(self: torch.optim.AdamW, *inputs: Any) -> Any:
        used.append(torch.are_deterministic_algorithms_enabled())
        return step(self, *inputs)

    monkeypatch.setattr(torch.optim.AdamW, "step", stepping)
    model, collator = parts_of(tiny("levels"))
    run = make_stage_run(records, collator, replace(STAGE, steps=2))
    processes = ProcessGroup("cpu")
    try:
        with StopSignal(None) as stop, TrainingLog(tmp_path, processes, quiet=True) as log:
            started = time.monotonic()
            saved = replace(run, folder=tmp_path / "saved")
            result = train_stages([saved], model, processes, log, stop)
            assert 0 < result.seconds <= time.monotonic() - started
    finally:
        processes.close()
    assert used == [True, True]
    assert not torch.are_deterministic_algorithms_enabled()


# -- from the command line -------------------------------------------------------------------------


def test_records_without_regions_can_be_trained(
    tiny: Tiny, things: Path, regionqa: "Command", tmp_path: Path
) -> None:
    lines = [record_json(f"{number:02}.png", [], ("what?", RED)) for number in range(6)]
    file = write_lines(tmp_path / "whole.jsonl", lines)
    base = tiny("levels").root
    ran = regionqa(
        "finetune", "--data", file, "--images", things.parent, "--model", base, "--steps", 3,
        "--batch", 2, "--out", tmp_path / "mine", "--device", "cpu",
    )  # fmt: skip
    assert ran.status == 0, ran.err
    before, after = (load_file(r / "encoders.safetensors") for r in (base, tmp_path / "mine"))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert {name.partition(".")[2].partition(".")[0] for name in changed} == {"projector"}


@pytest.mark.parametrize("saving", [False, True])
def test_gradient_checkpointing(
    saving: bool,
    tiny: Tiny,
    things: Path,
    regionqa: "Command",
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    forward, calls = LlamaAttention.forward, [0]

    def counting(self: LlamaAttention, *inputs: Any, **named: Any) -> Any:
        calls[0] += 1
        return forward(self, *inputs, **named)

    monkeypatch.setattr(LlamaAttention, "forward", counting)
    ran = regionqa(
        "finetune", "--data", things, "--model", tiny("none").root, "--steps", 3, "--batch", 2,
        "--held-out-share", 0, "--out", tmp_path / "mine", "--device", "cpu",
        *(["--gradient-checkpointing"] if saving else []),
    )  # fmt: skip
    assert ran.status == 0, ran.err
    assert calls[0] == 3 * 2 * (2 if saving else 1), "steps x layers, twice where it saves memory"
    assert "held_out_accuracy" not in (tmp_path / "mine" / "card.toml").read_text()
