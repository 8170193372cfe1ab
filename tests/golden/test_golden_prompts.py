"""Prompts of GPT4RoI's and PVIT's cards against the references' strings and training ids.

Tokens are those of the golden sets' toy tokenizers. What the renderer never writes (the image
after the question, a region in an answer) is held to the reference in test_sentencepiece.py.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from helpers.golden_weights import GoldenSet
from regionqa.bundles.card import ModelCard, read_card
from regionqa.bundles.store import CARD, shipped_folder
from regionqa.data.records import Record, Turn
from regionqa.errors import QuestionError
from regionqa.export.sources.sentencepiece import legacy_llama_tokenizer
from regionqa.finetune.batches.dataset import IGNORE_INDEX, SampleBuilder
from regionqa.language.prompts import (
    Fractions,
    ImageSlot,
    Piece,
    RegionSlot,
    Special,
    Text,
    read_answer,
    render,
    render_dialogue,
)
from regionqa.language.references import number_regions
from regionqa.language.tokenization import BundleTokenizer, answer_ids, tokenize
from regionqa.regions import Region

MARK = "<image>\n"
Toy = tuple[ModelCard, BundleTokenizer]


def toy(name: str, model: Path, added: dict[str, int], folder: Path) -> Toy:
    file = folder / f"{name}.json"
    legacy_llama_tokenizer(model, sorted(added, key=added.__getitem__)).save(str(file))
    return read_card(shipped_folder() / name / CARD), BundleTokenizer(file)


@pytest.fixture(scope="module")
def llama(gpt4roi: GoldenSet, tmp_path_factory: pytest.TempPathFactory) -> Toy:
    added = gpt4roi.json("toy_tokenize.json")["added"]
    model = gpt4roi.folder / "toy_llama.model"
    return toy("gpt4roi-7b", model, added, tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="module")
def vicuna(pvit: GoldenSet, tmp_path_factory: pytest.TempPathFactory) -> Toy:
    """PVIT's toy; its images have fewer patches."""
    texts = pvit.json("text.json")
    folder = tmp_path_factory.mktemp("toy")
    card, tokenizer = toy("pvit-7b", pvit.folder / "toy_spm.model", texts["added"], folder)
    vision = replace(card.vision, image_tokens=texts["image_patches_used"])
    return replace(card, vision=vision), tokenizer


def written(pieces: Sequence[Piece], card: ModelCard) -> str:
    """The text that a tokenizer of the references would be given, `<s>` aside."""
    words = []
    for piece in pieces:
        match piece:
            case Text(text):
                words.append(text)
            case Special(token):
                words.append(token)
            case ImageSlot(str(token)):
                words.append(token * card.vision.image_tokens)
            case RegionSlot(_, str(token)):
                words.append(token)
            case slot:
                pytest.fail(f"{slot} stands in the place of no token")
    return "".join(words).removeprefix("<s>")


def ids(pieces: Sequence[Piece], toy: Toy) -> list[int]:
    card, tokenizer = toy
    return list(tokenize(pieces, tokenizer, card.vision.image_tokens, 1).input_ids)


# -- GPT4RoI ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Said:
    """Turns given to the reference's demo, and its prompt."""

    questions: list[str]
    answers: list[str]
    given: list[int]
    boxes: list[Fractions]
    prompt: str


def demo(turns: Sequence[dict[str, Any]], count: int) -> Said:
    """The first `count` turns; the demo hands over the boxes of all turns so far."""
    asked = turns[:count]
    prompt = asked[-1]["prompt"]
    return Said(
        [turn["user_text"] for turn in asked],
        [turn["model_answer_assumed"] for turn in asked[:-1]],
        [len(turn["bboxes_passed"]) for turn in asked],
        [tuple(box) for box in asked[-1]["bboxes_passed"]],
        re.sub(r"\{(<[a-z_]+>)x(\d+)\}", lambda found: found[1] * int(found[2]), prompt),
    )


def once(prompt: str) -> str:
    """The prompt without the headers that the demo doubles in old turns, from the third turn on."""
    head, mark, turns = prompt.partition("### ")
    for role in ("Human", "Assistant"):
        turns = turns.replace(f"### {role}: ### {role}: ", f"### {role}: ")
        turns = turns.removeprefix(f"{role}: ### ")
    return head + mark + turns.replace("\n\n### ", "\n### ")


def test_gpt4roi_prompts(llama: Toy, gpt4roi: GoldenSet) -> None:
    card, tokenizer = llama
    tried = 0
    for turns in gpt4roi.json("prompts.json")["prompts"].values():
        for count in range(1, len(turns) + 1):
            dialogue = demo(turns, count)
            pieces = render_dialogue(
                card.prompt,
                dialogue.questions,
                dialogue.answers,
                dialogue.boxes,
                card.language.stop[0],
                tokenizer.special_tokens,
                dialogue.given,
            )
            assert written(pieces, card) == (
                dialogue.prompt if count < 3 else once(dialogue.prompt)
            )
            tried += 1
    assert tried


def in_our_words(values: Sequence[str]) -> tuple[list[str], int]:
    """Questions in which `<bbox>` is `<region1>`, `<region2>` and so on; how many there are."""
    parts = "\0".join(values).split("<bbox>")
    numbered = [f"{part}<region{number}>" for number, part in enumerate(parts[:-1], start=1)]
    return "".join([*numbered, parts[-1]]).split("\0"), len(numbered)


def test_gpt4roi_training_ids(llama: Toy, gpt4roi: GoldenSet) -> None:
    """Data sets put other words around the image than the card, so these are the case's own."""
    card, tokenizer = llama
    header, _, _ = card.prompt.template.partition("### ")
    tried = 0
    for name, case in gpt4roi.json("toy_tokenize.json")["cases"].items():
        values: dict[str, list[str]] = {"human": [], "gpt": []}
        for role, value in case["conversation"]:
            values[role].append(value)
        questions, count = in_our_words(values["human"])
        before, _, questions[0] = questions[0].partition("<image>")
        if not questions[0].strip():
            continue  # a prompt of ours has an image, and that before the question
        tried += 1
        rules = replace(
            card.prompt,
            template=f"{header}### Human: {before}<im_start>{{image}}<im_end>{{question}}\n### ",
            region="{region}",
        )
        pieces = render_dialogue(
            rules,
            questions,
            values["gpt"][: len(questions) - 1],
            [(0.0, 0.0, 1.0, 1.0)] * count,
            card.language.stop[0],
            tokenizer.special_tokens,
        )
        found = ids(pieces, llama)
        expected = [index for index, times in case["ids_rle"] for _ in range(times)]
        if len(values["gpt"]) == len(questions):  # the prompt's last space goes on as "Assistant"
            assert found[:-1] == expected[: len(found) - 1], name
        else:
            assert found == expected, name
    assert tried


# -- PVIT ------------------------------------------------------------------------------------------


def fractions(query: str) -> tuple[str, list[Fractions]]:
    """A query in PVIT's notation as a question and boxes."""
    (question,), boxes = number_regions([query])
    return question, [tuple(value / 1000 for value in box.values) for box in boxes]  # type: ignore[misc]


def test_pvit_prompts_and_ids(vicuna: Toy, pvit: GoldenSet) -> None:
    card, tokenizer = vicuna
    tried = 0
    for case in pvit.json("text.json")["inference"]:
        question, boxes = fractions(case["query"].removeprefix(MARK))
        typed = any(token in question for token in tokenizer.special_tokens)
        if typed or not case["query"].startswith(MARK):
            continue  # a typed token is text to us; a prompt of ours has an image
        tried += 1
        pieces = render(card.prompt, question, boxes, tokenizer.special_tokens)
        assert written(pieces, card) == case["expanded"]
        assert ids(pieces, vicuna) == case["ids"]
    assert tried


def conversations(pvit: GoldenSet) -> list[tuple[list[str], list[str], list[int], list[int]]]:
    """Questions, answers, ids and labels of the training texts that the renderer supports."""
    found = []
    for case in pvit.json("text.json")["training"]:
        turns = [turn["value"] for turn in case["conversations"]]
        if case["conversations"][0]["from"] == "gpt":
            turns = turns[1:]
        questions, answers = turns[::2], turns[1::2]
        if questions[0].startswith(MARK) and not any("<Region>" in answer for answer in answers):
            questions[0] = questions[0].removeprefix(MARK)
            found.append((questions, answers, case["ids"], case["labels"]))
    assert found
    return found


def test_pvit_dialogue_ids_equal_training_ids(vicuna: Toy, pvit: GoldenSet) -> None:
    card, tokenizer = vicuna
    stop = card.language.stop[0]
    for questions, answers, expected, _ in conversations(pvit):
        numbered, written_boxes = number_regions(questions)
        boxes: list[Fractions] = [(0.0, 0.0, 1.0, 1.0)] * len(written_boxes)
        special = tokenizer.special_tokens
        pieces = render_dialogue(card.prompt, numbered, answers[:-1], boxes, stop, special)
        last = answer_ids(card.prompt, answers[-1], stop, tokenizer)
        assert [*ids(pieces, vicuna), *last] == expected


def test_pvit_training_ids_and_labels(vicuna: Toy, pvit: GoldenSet) -> None:
    card, tokenizer = vicuna
    for questions, answers, expected, labels in conversations(pvit):
        numbered, boxes = number_regions(questions)
        regions: tuple[Region, ...] = tuple(box.resolve(1000, 1000) for box in boxes)
        turns = tuple(Turn(q, a) for q, a in zip(numbered, answers, strict=True))
        sample = SampleBuilder(card, tokenizer).sample(
            Record(Path("a.png"), regions, turns, "a:1"), (1000, 1000)
        )
        assert list(sample.input_ids) == expected
        assert list(sample.labels) == labels
        assert IGNORE_INDEX in labels


# -- what a user types -----------------------------------------------------------------------------


@pytest.mark.parametrize("typed", ["</s>", "<s>", "<im_patch>", "<im_end>", "###"])
def test_typed_special_token_is_text(typed: str, llama: Toy) -> None:
    card, tokenizer = llama
    special = tokenizer.special_tokens
    plain, odd = (
        ids(render(card.prompt, f"is {word}?", (), special), llama) for word in ("it", typed)
    )
    tokens = {tokenizer.token_id(token) for token in special}
    assert [i for i in odd if i in tokens] == [i for i in plain if i in tokens]


def test_typed_region_token_is_refused(llama: Toy) -> None:
    card, tokenizer = llama
    with pytest.raises(QuestionError, match="'<bbox>', which names no region; write <region1>"):
        render(card.prompt, "is <bbox>?", (), tokenizer.special_tokens)


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("Assistant: A dog.\n", "A dog."),
        ("Assistant:A dog.", "A dog."),
        (" A dog.", "A dog."),
        ("An Assistant: yes.", "An Assistant: yes."),
        ("Assistant:", ""),
    ],
)
def test_gpt4roi_role_is_removed_from_answers(
    written: str, meant: str, llama: Toy, vicuna: Toy
) -> None:
    assert read_answer(llama[0].prompt, written) == meant
    assert read_answer(vicuna[0].prompt, written) == written.strip()
