"""Samples of records: labels, turns, box jitter, held-out images."""

from collections.abc import Callable
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

from helpers.training import plain_record
from regionqa.bundles.store import Bundle
from regionqa.data.records import Record, Turn
from regionqa.errors import QuestionError
from regionqa.finetune.batches.dataset import (
    IGNORE_INDEX,
    SampleBuilder,
    held_out_images,
    jitter_box,
    sample_builder,
    single_turns,
)
from regionqa.finetune.config import DEFAULT, FinetuneSettings
from regionqa.language.prompts import render_dialogue
from regionqa.language.tokenization import BundleTokenizer, tokenize
from regionqa.regions import Box, Region

Tiny = Callable[[str], Bundle]


@given(st.lists(st.integers(0, 30), min_size=1, max_size=30), st.randoms(), st.integers(0, 3))
def test_held_out_images_do_not_depend_on_order(images: list[int], random: Any, seed: int) -> None:
    records = [plain_record(number, image) for number, image in enumerate(images)]
    run = FinetuneSettings(
        data=("mine.jsonl",), model="starter", stages=DEFAULT, held_out_share=0.25, seed=seed
    )
    held = held_out_images(records, run)
    random.shuffle(records)
    assert held_out_images(records, run) == held
    distinct = len(set(images))
    assert len(held) == (0 if distinct < 2 else max(1, round(0.25 * distinct)))
    assert held < {record.image for record in records}
    assert held_out_images(records, replace(run, held_out_share=0.0)) == set()


@given(
    st.floats(0, 500), st.floats(0, 500), st.floats(0.5, 140), st.floats(0.5, 140),
    st.floats(0, 0.499), st.integers(0, 999),
)  # fmt: skip
def test_jittered_box_stays_valid(
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
    """The sample builder of a model with region features."""
    return sample_builder(tiny("levels"))


def with_rules(maker: SampleBuilder, **changes: Any) -> SampleBuilder:
    """Change the sample builder's prompt rules."""
    rules = replace(maker.card.prompt, **changes)
    return replace(maker, card=replace(maker.card, prompt=rules))


WORDS = st.text("ab <>region12é", min_size=1, max_size=8).filter(lambda text: text.strip() != "")
REFERENCES = st.sampled_from(["", " <region1>", " <region2> and <region1>"])
TURNS = st.lists(st.tuples(WORDS, REFERENCES, WORDS), min_size=1, max_size=3)


@given(TURNS, st.sampled_from([None, "it again"]), st.sampled_from(["{region}", "({x0} {y1})", ""]))
def test_labels_cover_answers_and_stops_only(
    maker: SampleBuilder, turns: list[tuple[str, str, str]], again: str | None, region: str
) -> None:
    card = replace(maker.card, language=replace(maker.card.language, context=4096))
    maker = with_rules(replace(maker, card=card), turn=" {question}<answer>", again=again,
                       region=region)  # fmt: skip
    conversation = tuple(
        Turn("q" + question.replace("<", "") + reference, answer.replace("<", "") + "a")
        for question, reference, answer in turns
    )
    regions = (Region(Box(1, 2, 30, 40)), Region(Box(5, 6, 70, 80)))
    record = Record(Path("x.png"), regions, conversation, "x:1")
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
    assert [run[-1] for run in runs] == [stop] * len(conversation)
    assert runs == [maker.answer_ids(turn.answer) for turn in conversation]
    words = [maker.tokenizer.decode(run[:-1]).strip() for run in runs]
    assert words == [turn.answer.strip() for turn in conversation]
    answer = maker.tokenizer.token_id("<answer>")
    for run_start, id in enumerate(sample.input_ids[:-1]):
        if (
            sample.labels[run_start] == IGNORE_INDEX
            and sample.labels[run_start + 1] != IGNORE_INDEX
        ):
            assert id == answer, "every answer follows the mark that asking ends with"


def test_repeated_region_follows_the_rules(maker: SampleBuilder) -> None:
    pattern = "[{x0}, {y0}, {x1}, {y1}]"
    many = with_rules(maker, region=pattern, turn=" {question}<answer>", again="it")
    record = plain_record(1, 0, ("what is <region1>?", "a."), ("is <region1> red?", "yes."))
    sample = many.sample(record, (100, 100))
    text = many.tokenizer.decode([id for id in sample.input_ids if id])
    assert "what is [0.010, 0.020, 0.300, 0.400]?" in text
    assert "is it red?" in text


def test_single_turn_model_gets_a_sample_per_turn() -> None:
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


# -- turns as a dialogue ---------------------------------------------------------------------------


def spaced_tokenizer(path: Path) -> BundleTokenizer:
    """One token per character, with a space before the first text, as LLaMA's tokenizer adds it."""
    characters = sorted({*"abcdefghijklmnopqrstuvwxyz?.#,", "\u2581"})
    model = models.BPE({each: id for id, each in enumerate(characters)}, [])
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.add_special_tokens(["<s>", "<answer>"])
    tokenizer.save(str(path))
    return BundleTokenizer(path)


@pytest.mark.parametrize("turn", ["{question}<answer>", " {question}<answer>"])
@pytest.mark.parametrize("region", ["{region}", ""])
def test_ids_of_turns_equal_inference(
    turn: str, region: str, maker: SampleBuilder, tmp_path: Path
) -> None:
    """The stop is a text that the next turn continues, so no space is added before it."""
    tokenizer = spaced_tokenizer(tmp_path / "tokenizer.json")
    language = replace(maker.card.language, stop=("###",), context=4096)
    builder = with_rules(
        SampleBuilder(replace(maker.card, language=language), tokenizer), turn=turn, region=region
    )
    record = plain_record(
        1, 0, ("what is <region1>?", "a cat."), ("is it big?", "no."), ("why?", "so.")
    )
    sample = builder.sample(record, (100, 100))
    rules = builder.card.prompt
    fractions = [(b.x0 / 100, b.y0 / 100, b.x1 / 100, b.y1 / 100) for b in sample.boxes]
    for turns in (1, 2, 3):
        questions = [each.question for each in record.turns[:turns]]
        answers = [each.answer for each in record.turns[: turns - 1]]
        pieces = render_dialogue(
            rules, questions, answers, fractions, "###", tokenizer.special_tokens
        )
        asked = tokenize(pieces, tokenizer, builder.card.vision.image_tokens, 1)
        ids = asked.input_ids
        assert sample.input_ids[: len(ids)] == ids
        assert sample.labels[len(ids) - 1] == IGNORE_INDEX != sample.labels[len(ids)]
        assert sample.image_start == asked.image_start
        assert sample.region_starts[: len(asked.region_starts)] == asked.region_starts


def test_record_may_fill_the_context(maker: SampleBuilder) -> None:
    record = plain_record(1, 0)
    length = len(maker.sample(record, (100, 100)).input_ids)

    def with_context(context: int) -> SampleBuilder:
        language = replace(maker.card.language, context=context)
        return replace(maker, card=replace(maker.card, language=language))

    assert with_context(length).sample(record, (100, 100))
    with pytest.raises(QuestionError, match=f"take {length} tokens, .* reads {length - 1};"):
        with_context(length - 1).sample(record, (100, 100))


def test_record_may_have_max_regions(maker: SampleBuilder) -> None:
    most = maker.card.max_regions
    region = plain_record(1, 0).regions[0]
    for count in (most, most + 1):
        record = replace(plain_record(1, 0), regions=(region,) * count)
        good, problems = maker.fitting([record])
        assert (len(good), len(problems)) == ((1, 0) if count == most else (0, 1))
    assert problems[0].text.startswith(f"{most + 1} regions in one record, the model tiny-levels")
