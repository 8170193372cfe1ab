"""What training is made of: order, samples, batches, the model, and what asking has in common."""

import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor
from transformers.models.llama.modeling_llama import LlamaAttention

from helpers.tiny_models import QUESTION, RED, ROWS, a_record, log_of, write_lines
from regionqa.bundles.store import Bundle
from regionqa.data.files import read_training_data
from regionqa.data.records import Record, Turn
from regionqa.engine import Engine
from regionqa.finetune import checkpoint as checkpoints
from regionqa.finetune.checkpoint import TrainingProgress
from regionqa.finetune.collate import Collator, FrozenEncoders
from regionqa.finetune.config import FinetuneSettings, RegionPart, Stages, StageSettings
from regionqa.finetune.dataset import (
    IGNORE_INDEX,
    SampleBuilder,
    held_out_images,
    jitter_box,
    sample_builder,
    single_turns,
)
from regionqa.finetune.distributed import ProcessGroup
from regionqa.finetune.finish import read_modules
from regionqa.finetune.model import (
    RegionLanguageModel,
    add_lora,
    learning_rate,
    make_optimizers,
    select_trainable,
)
from regionqa.finetune.sampler import RecordStream, StepSampler, grouped_order
from regionqa.finetune.tracking import LogEntry, TrainingLog, read_log, truncate_log
from regionqa.finetune.trainer import StageRun, evaluate_held_out, own_batches
from regionqa.images.reading import open_image
from regionqa.language.decoders import LlamaDecoder
from regionqa.language.generation import LanguageModel, SplicedPrompt
from regionqa.regions import Box, Region
from regionqa.requests import Request

if TYPE_CHECKING:
    from conftest import Command

Tiny = Callable[[str], Bundle]
CPU = torch.device("cpu")
STAGE = StageSettings(learning_rate=1e-3, batch=4, region=RegionPart.all)


def a_stage_run(
    records: Sequence[Record], collator: Any, stage: StageSettings = STAGE, seed: int = 0
) -> StageRun:
    """A stage over some records, which are held out too."""
    effective = stage.batch * stage.accumulate
    stream = RecordStream(records, stage.group, (seed, 1, 0))
    order = StepSampler(stream, None, effective, 0.5, seed)
    return StageRun("align", 1, stage, order, records, collator, 10, 10, Path("nowhere"))


def plain_record(number: int, image: int, *turns: tuple[str, str]) -> Record:
    """A record about one region."""
    said = tuple(Turn(*turn) for turn in turns or ((QUESTION, RED),))
    region = Region(Box(number % 7, 2, 30, 40))
    return Record(Path(f"{image}.png"), (region,), said, f"mine.jsonl:{number}")


def parts_of(
    bundle: Bundle, part: RegionPart = RegionPart.all
) -> tuple[RegionLanguageModel, Collator]:
    """The model that trains, and what makes its batches."""
    parts = read_modules(bundle)
    encoders = FrozenEncoders(bundle.card, parts.vision, parts.region, CPU)
    frozen = part is RegionPart.carrier
    model = RegionLanguageModel(parts.vision, parts.region, parts.language)
    return model, Collator(sample_builder(bundle), encoders, frozen)


@pytest.fixture
def records(things: Path) -> tuple[Record, ...]:
    """Of red squares and blue discs, with a record about two regions and one about none."""
    read = read_training_data(things).records
    both = replace(
        read[2],
        regions=(read[2].regions[0], read[3].regions[0]),
        turns=(Turn("is <region2> right of <region1>?", "no, it is not."),),
    )
    none = replace(read[4], regions=(), turns=(Turn("describe this picture.", "two things."),))
    return (read[0], both, none, read[1], read[5], read[6])


# -- order -----------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 5), min_size=1, max_size=40), st.integers(1, 5), st.integers(0, 99))
def test_an_order_takes_every_record_once_and_keeps_images_together(
    images: list[int], group: int, seed: int
) -> None:
    numbers = np.array(images, np.int64)
    order = grouped_order(numbers, group, np.random.default_rng(seed))
    assert sorted(order.tolist()) == list(range(len(images)))
    runs = Counter(image for image, _ in groupby(numbers[order].tolist()))
    for image, count in Counter(images).items():
        assert runs[image] <= math.ceil(count / group)
    again = grouped_order(numbers, group, np.random.default_rng(seed))
    assert again.tolist() == order.tolist()


@given(
    st.integers(1, 9), st.integers(0, 4), st.integers(1, 8), st.sampled_from([0.0, 0.25, 0.5]),
    st.lists(st.integers(0, 20), min_size=1, max_size=6),
)  # fmt: skip
def test_a_step_depends_on_its_number_alone(
    fresh: int, older: int, batch: int, share: float, steps: list[int]
) -> None:
    def order() -> StepSampler:
        new = [plain_record(number, number // 2) for number in range(fresh)]
        old = [plain_record(number, 100 + number) for number in range(older)]
        replay = RecordStream(old, 2, (1, 1, 1)) if old else None
        return StepSampler(RecordStream(new, 2, (1, 1, 0)), replay, batch, share, seed=1)

    one = order()
    for step in steps:
        taken = one.step(step)
        assert taken == order().step(step)
        assert len(taken) == batch
        assert [int(drawn.record.image.stem) >= 100 for drawn in taken] == [
            drawn.replayed for drawn in taken
        ]
        assert sum(drawn.replayed for drawn in taken) == one.replayed
        assert len({drawn.seed for drawn in taken}) == batch


def test_every_pass_takes_every_record_once_in_an_order_of_its_own() -> None:
    records = [plain_record(number, number // 3) for number in range(12)]
    stream = RecordStream(records, 2, (0,))
    passes = [[record.where for record in stream.take(start, 12)] for start in (0, 12, 24)]
    assert all(sorted(each) == sorted(record.where for record in records) for each in passes)
    assert len({tuple(each) for each in passes}) == 3
    order = StepSampler(stream, None, 5, 0.5)
    assert [order.steps(epochs) for epochs in (1, 2.5, 0.01)] == [2, 6, 1]
    half = StepSampler(stream, RecordStream(records, 2, (1,)), 6, 0.5)
    assert half.steps(1) == 4, "an epoch is a pass over the records that are new"


@dataclass(frozen=True)
class Seen:
    """In place of a batch: what it would be made of."""

    drawn: list[tuple[Record, Sequence[int]]]
    distilled: Any = None


def test_processes_take_together_what_one_takes() -> None:
    records = [plain_record(number, number // 2) for number in range(20)]

    def batch(records: Any, noise: float, seeds: Any) -> Seen:
        return Seen(list(zip(records, seeds, strict=True)))

    stage = replace(STAGE, batch=8, accumulate=4)
    alone = a_stage_run(records, SimpleNamespace(batch=batch), stage)
    together = replace(alone, settings=replace(stage, batch=4))

    def taken(run: StageRun, step: int, count: int, rank: int) -> list[Seen]:
        processes = cast(ProcessGroup, SimpleNamespace(count=count, rank=rank))
        return cast(list[Seen], own_batches(run, step, processes))

    for step in range(5):
        two = [seen for rank in (0, 1) for seen in taken(together, step, 2, rank)]
        assert [len(seen.drawn) for seen in two] == [4] * 8
        one = taken(alone, step, 1, 0)
        assert [each for seen in one for each in seen.drawn] == [
            each for seen in two for each in seen.drawn
        ]


@given(st.lists(st.integers(0, 30), min_size=1, max_size=30), st.randoms(), st.integers(0, 3))
def test_the_same_images_are_held_out_in_whatever_order_records_come(
    images: list[int], random: Any, seed: int
) -> None:
    records = [plain_record(number, image) for number, image in enumerate(images)]
    held = held_out_images(records, 0.25, seed)
    random.shuffle(records)
    assert held_out_images(records, 0.25, seed) == held
    distinct = len(set(images))
    assert len(held) == (0 if distinct < 2 else max(1, round(0.25 * distinct)))
    assert held < {record.image for record in records}
    assert held_out_images(records, 0, seed) == set()


# -- samples ---------------------------------------------------------------------------------------


@given(
    st.floats(0, 500), st.floats(0, 500), st.floats(0.5, 140), st.floats(0.5, 140),
    st.floats(0, 0.499), st.integers(0, 999),
)  # fmt: skip
def test_a_shifted_box_stays_inside_and_keeps_an_area(
    x0: float, y0: float, width: float, height: float, noise: float, seed: int
) -> None:
    box = Box(x0, y0, x0 + width, y0 + height)
    moved = jitter_box(box, noise, x0 + width, 640, np.random.default_rng(seed))
    assert 0 <= moved.x0 < moved.x1 <= x0 + width
    assert 0 <= moved.y0 < moved.y1 <= 640 + 1e-9
    for before, after, side in zip(box.xyxy, moved.xyxy, [box.width, box.height] * 2, strict=True):
        assert abs(before - after) <= noise * side + 1e-9


@pytest.fixture(scope="module")
def maker(tiny: Tiny) -> SampleBuilder:
    """Of a model with region features."""
    return sample_builder(tiny("levels"))


def with_rules(maker: SampleBuilder, **changes: Any) -> SampleBuilder:
    """The maker under other prompt rules."""
    rules = replace(maker.card.prompt, **changes)
    return replace(maker, card=replace(maker.card, prompt=rules))


WORDS = st.text("ab <>region12é", min_size=1, max_size=8).filter(lambda text: text.strip() != "")
REFERENCES = st.sampled_from(["", " <region1>", " <region2> and <region1>"])
TURNS = st.lists(st.tuples(WORDS, REFERENCES, WORDS), min_size=1, max_size=3)


@settings(deadline=None, max_examples=60)
@given(TURNS, st.sampled_from([None, "it again"]), st.sampled_from(["{region}", "({x0} {y1})", ""]))
def test_labels_stand_on_answers_and_their_stops_and_nowhere_else(
    maker: SampleBuilder, turns: list[tuple[str, str, str]], again: str | None, region: str
) -> None:
    card = replace(maker.card, language=replace(maker.card.language, context=4096))
    maker = with_rules(replace(maker, card=card), turn=" {question}<answer>", again=again,
                       region=region)  # fmt: skip
    said = tuple(
        Turn("q" + question.replace("<", "") + reference, answer.replace("<", "") + "a")
        for question, reference, answer in turns
    )
    regions = (Region(Box(1, 2, 30, 40)), Region(Box(5, 6, 70, 80)))
    record = Record(Path("x.png"), regions, said, "x:1")
    sample = maker.sample(record, (100, 100))
    assert len(sample.labels) == len(sample.input_ids)
    learned = [pair for pair in zip(sample.labels, sample.input_ids, strict=True)
               if pair[0] != IGNORE_INDEX]  # fmt: skip
    assert all(label == id for label, id in learned)
    stop = maker.tokenizer.token_id("</s>")
    runs = [
        [sample.labels[at] for at in run]
        for wanted, group in groupby(range(len(sample.labels)),
                                     key=lambda at: sample.labels[at] != IGNORE_INDEX)
        if wanted
        for run in [list(group)]
    ]  # fmt: skip
    assert [run[-1] for run in runs] == [stop] * len(said)
    assert runs == [maker.answer_ids(turn.answer) for turn in said]
    words = [maker.tokenizer.decode(run[:-1]).strip() for run in runs]
    assert words == [turn.answer.strip() for turn in said]
    answer = maker.tokenizer.token_id("<answer>")
    for run_start, id in enumerate(sample.input_ids[:-1]):
        if (
            sample.labels[run_start] == IGNORE_INDEX
            and sample.labels[run_start + 1] != IGNORE_INDEX
        ):
            assert id == answer, "every answer follows the mark that asking ends with"


def test_a_region_named_again_is_told_as_the_rules_say(maker: SampleBuilder) -> None:
    told = "[{x0}, {y0}, {x1}, {y1}]"
    many = with_rules(maker, region=told, turn=" {question}<answer>", again="it")
    record = plain_record(1, 0, ("what is <region1>?", "a."), ("is <region1> red?", "yes."))
    sample = many.sample(record, (100, 100))
    text = many.tokenizer.decode([id for id in sample.input_ids if id])
    assert "what is [0.010, 0.020, 0.300, 0.400]?" in text
    assert "is it red?" in text


def test_every_turn_becomes_a_record_where_one_question_is_all_a_model_knows() -> None:
    regions = tuple(Region(Box(x, 0, x + 9, 9)) for x in (0, 10, 20))
    turns = (
        Turn("is <region3> like <region2>?", "no, <region3> is red, <region1> is not."),
        Turn("how many?", "three: <region1>, <region2>, <region3>."),
        Turn("and <region2>, <region2>?", "blue."),
    )
    record = Record(Path("x.png"), regions, turns, "x:1")
    first, second, third = single_turns(record)
    assert first.regions == (regions[1], regions[2])
    (turn,) = first.turns
    assert turn == Turn("is <region2> like <region1>?", "no, <region2> is red, region 1 is not.")
    assert (second.regions, second.turns) == (regions, turns[1:2])
    assert third.regions == (regions[1],)
    assert third.turns[0].question == "and <region1>, <region1>?"
    assert {each.where for each in (first, second, third)} == {"x:1"}
    one = replace(record, turns=turns[:1])
    assert single_turns(one) == [one]


def test_noise_shifts_boxes_in_words_too(tiny: Tiny, records: tuple[Record, ...]) -> None:
    _, collator = parts_of(tiny("coordinates"))
    record = records[0]
    tokenizer = collator.maker.tokenizer

    def written(*noise: Any) -> list[str]:
        ids = collator.batch([record], *noise).input_ids[0].tolist()
        return (
            tokenizer.decode([id for id in ids if id]).partition("]")[0].split("[")[1].split(", ")
        )

    exact, moved = written(), written(0.2, [(0, 1, 2)])
    image = open_image(record.image)
    box = record.regions[0].box
    sides = [image.width, image.height] * 2
    assert exact == [f"{v / s:.3f}" for v, s in zip(box.xyxy, sides, strict=True)]
    new = jitter_box(box, 0.2, image.width, image.height, np.random.default_rng([0, 1, 2]))
    assert moved == [f"{v / s:.3f}" for v, s in zip(new.xyxy, sides, strict=True)]
    assert moved != exact
    assert moved == written(0.2, [(0, 1, 2)])
    assert moved != written(0.2, [(0, 1, 3)])


# -- training sees what asking sees ----------------------------------------------------------------


@pytest.mark.parametrize("part", [RegionPart.all, RegionPart.carrier])
@pytest.mark.parametrize("row", ROWS)
def test_training_and_asking_see_the_same(
    row: str, part: RegionPart, tiny: Tiny, records: tuple[Record, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Ids of the prompt, embeddings of image and regions, and the logits of the first token."""
    asked: list[SplicedPrompt] = []
    logits: list[Tensor] = []
    step, generate = LlamaDecoder.step, LanguageModel.generate

    def stepping(self: LlamaDecoder, *inputs: Any) -> Any:
        result = step(self, *inputs)
        logits.append(result[0])
        return result

    def generating(self: LanguageModel, prompts: Sequence[SplicedPrompt], *how: Any) -> Any:
        asked.extend(prompts)
        return generate(self, prompts, *how)

    monkeypatch.setattr(LlamaDecoder, "step", stepping)
    monkeypatch.setattr(LanguageModel, "generate", generating)
    bundle = tiny(row)
    engine = Engine.load(bundle, device="cpu")
    answers = []
    theirs = []
    for record in records:
        request = Request("x", record.turns[0].question, record.regions, open_image(record.image))
        answers.append(next(engine.answer([request], max_new_tokens=1)))
        theirs.append(logits[-1][0])
    assert not any(answer.error for answer in answers)

    model, collator = parts_of(bundle, part)
    batch = collator.batch(records)
    with torch.no_grad():
        embeds = model._spliced(batch)
        out = model.language(inputs_embeds=embeds, attention_mask=batch.mask).logits
    for row_number, prompt in enumerate(asked):
        ids = prompt.prompt.input_ids
        assert tuple(batch.input_ids[row_number, : len(ids)].tolist()) == ids
        labels = batch.labels[row_number]
        assert (labels[: len(ids)] == IGNORE_INDEX).all()
        assert labels[len(ids)] != IGNORE_INDEX
        image = embeds[row_number, prompt.prompt.image_start :][: len(prompt.image_tokens)]
        assert np.allclose(image, prompt.image_tokens, atol=1e-4)
        for start, index in prompt.prompt.region_starts:
            assert np.allclose(embeds[row_number, start], prompt.region_tokens[index][0], atol=1e-3)
        ours = out[row_number, len(ids) - 1]
        assert torch.allclose(ours, theirs[row_number], atol=1e-3)
        assert int(ours.argmax()) == int(theirs[row_number].argmax())
    slots = sum(len(prompt.prompt.region_starts) for prompt in asked)
    assert slots == len(batch.region_slots)
    assert (slots > 0) == (row in ("levels", "pixels"))


def by_hand(
    model: RegionLanguageModel, collator: Collator, records: Sequence[Record]
) -> tuple[float, float]:
    """Mean loss a token and share of answers right, record by record, by transformers' loss."""
    total, tokens, right = 0.0, 0, 0
    for record in records:
        batch = collator.batch([record])
        with torch.no_grad():
            out = model.language(inputs_embeds=model._spliced(batch), labels=batch.labels)
        count = int((batch.labels != IGNORE_INDEX).sum())
        total += float(out.loss) * count
        tokens += count
        said = out.logits[:, :-1].argmax(-1)
        wanted = batch.labels[:, 1:]
        right += bool(((said == wanted) | (wanted == IGNORE_INDEX)).all())
    return total / tokens, right / len(records)


@pytest.mark.parametrize("row", ["levels", "none"])
def test_what_is_measured_on_held_out_records_equals_a_computation_one_by_one(
    tiny: Tiny, records: tuple[Record, ...], row: str
) -> None:
    model, collator = parts_of(tiny(row))
    run = a_stage_run(records, collator)
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


def unfrozen(model: RegionLanguageModel) -> RegionLanguageModel:
    """The model with everything trainable that the second stage trains."""
    stage = replace(STAGE, projector=True, language=True)
    assert len(list(select_trainable(model, stage))) > 10
    return model


# -- one step --------------------------------------------------------------------------------------


def test_accumulated_batches_train_like_one_batch(
    tiny: Tiny, things: Path, regionqa: "Command", tmp_path: Path, quick_export: None
) -> None:
    curves = []
    for name, words in (("one", ("--batch", 8)), ("two", ("--batch", 4, "--accumulate", 2))):
        ran = regionqa(
            "finetune", "--data", things, "--model", tiny("levels").root, "--out", tmp_path / name,
            "--stage", "instruct", "--steps", 8, "--learning-rate", 0.001, *words,
            "--device", "cpu",
        )  # fmt: skip
        assert ran.status == 0, ran.err
        curves.append([entry["loss"] for entry in log_of(tmp_path / name)])
    assert "effective batch 8 = 4 x 2 accumulated x 1 process" in ran.err
    assert curves[0] == pytest.approx(curves[1], rel=1e-6)
    assert curves[0][-1] < curves[0][0] - 0.1


def test_records_without_regions_train_a_model_with_region_features(
    tiny: Tiny, things: Path, regionqa: "Command", tmp_path: Path, quick_export: None
) -> None:
    lines = [a_record(f"{number:02}.png", [], ("what?", RED)) for number in range(6)]
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
def test_gradient_checkpointing_computes_activations_again(
    saving: bool, tiny: Tiny, things: Path, regionqa: "Command", tmp_path: Path,
    quick_export: None, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
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


def test_the_learning_rate_rises_and_falls() -> None:
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


def test_weight_decay_spares_biases_and_norms_and_regions_have_a_rate_of_their_own(
    tiny: Tiny,
) -> None:
    model, _ = parts_of(tiny("levels"))
    stage = replace(STAGE, weight_decay=0.1, region_rate=0.5)
    (optimizer,) = make_optimizers(unfrozen(model), stage)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    seen = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            seen[names[id(parameter)]] = (group["share"], group["weight_decay"])
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert seen.keys() == trained
    assert seen["projector.weight"] == (1, 0.1)
    assert seen["projector.bias"] == (1, 0)
    assert seen["region.roi_align.updims.weight"] == (0.5, 0.1)
    assert seen["region.mlvl_fuse.fuse_convs.0.gn.weight"] == (0.5, 0)
    assert seen["language.model.norm.weight"] == (1, 0)


def test_orthogonal_steps_are_for_the_matrices_of_the_decoders_layers(tiny: Tiny) -> None:
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


def test_lora_drops_out_in_training_only(tiny: Tiny, records: tuple[Record, ...]) -> None:
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


# -- what a run keeps ------------------------------------------------------------------------------


def test_a_resumed_run_forgets_what_it_does_again(tmp_path: Path) -> None:
    entries = [
        LogEntry("align", 1, 3.0, 0.0, 0.1, 5, 0.5),
        LogEntry("align", 2, 2.0, 0.0, 0.1, 5, 0.9),
        LogEntry("instruct", 0, 2.0, 0.0, held_out=True),
        LogEntry("instruct", 1, 1.0, 0.5, 0.1, 5, 1.2),
        LogEntry("instruct", 2, 0.5, 1.0, 0.1, 5, 1.5),
    ]
    processes = ProcessGroup("cpu")
    try:
        with TrainingLog(tmp_path, processes, quiet=True) as log:
            for entry in entries:
                log.add(entry, 2)
    finally:
        processes.close()
    assert read_log(tmp_path) == entries
    file = tmp_path / "log.jsonl"
    file.write_text(file.read_text()[:-20])
    assert read_log(tmp_path) == entries[:-1], "a line that was cut short is left out"
    truncate_log(tmp_path, ("align",), "instruct", 0)
    assert read_log(tmp_path) == entries[:3]
    truncate_log(tmp_path, (), "align", 1)
    assert read_log(tmp_path) == entries[:1]
    assert file.read_text().endswith("}\n")
    truncate_log(tmp_path, (), "align", -1)
    assert file.read_text() == ""
    assert read_log(tmp_path / "nowhere") == []


def test_the_newest_whole_checkpoint_is_found(tmp_path: Path) -> None:
    assert checkpoints.newest(tmp_path) is None
    for name, whole in (
        ("1-000900", True), ("2-000004", True), ("2-000010", True), ("2-000011", False),
        ("2-000012.partial", True), ("3-x", True), ("notes", True),
    ):  # fmt: skip
        (tmp_path / name).mkdir()
        if whole:
            table = {"stage": "instruct", "step": 1, "trained": ["a"], "seconds": 2.0}
            (tmp_path / name / "progress.json").write_text(json.dumps(table))
    found = checkpoints.newest(tmp_path)
    assert found == (tmp_path / "2-000010", TrainingProgress("instruct", 1, ("a",), 2.0))
