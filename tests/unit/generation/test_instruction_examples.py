"""Few-shot examples, forms of replies, filters, and what annotations say."""

import json
from contextlib import closing
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from regionqa.data.sources import wording
from regionqa.data.streams.disk_index import RecordsByImage
from regionqa.data.streams.shards import Shard
from regionqa.data.streams.training import UsableRecords, open_training_stream
from regionqa.generation.annotations import (
    AnnotatedImage,
    annotated_images,
    as_conversation,
    references,
)
from regionqa.generation.filters import NearDuplicates, RejectReason, minhash, turn_fault
from regionqa.generation.options import DuplicateScope, GenerationKind
from regionqa.generation.prompts import examples
from regionqa.generation.replies import (
    AnswersReply,
    PairReply,
    PairsReply,
    QuestionsReply,
    ReplyFormError,
    VerdictsReply,
    json_schema,
    read_reply,
)
from regionqa.generation.tasks import TEXT_FACT, TaskPlan, targets_of
from regionqa.regions import Box, Region

FORMS: dict[type[msgspec.Struct], Any] = {
    PairReply: {"question": "q", "answer": "a"},
    PairsReply: {"pairs": [{"question": "q", "answer": "a"}]},
    QuestionsReply: {"questions": ["q"]},
    AnswersReply: {"answers": [{"number": 1, "answer": "a"}]},
    VerdictsReply: {"verdicts": [{"number": 1, "reason": "r", "follows": True}]},
}


def scene(name: str) -> AnnotatedImage:
    """An example's scene as annotations of an image."""
    found = examples()["scenes"][name]
    width, height = found["size"]
    objects = []
    for label, (x0, y0, x1, y1) in found["objects"]:
        assert 0 <= x0 < x1 <= 1000
        assert 0 <= y0 < y1 <= 1000
        sides = (x0 * width, y0 * height, x1 * width, y1 * height)
        objects.append(Region(Box(*(side / 1000 for side in sides)), label))
    return AnnotatedImage(Path(name), name, width, height, tuple(objects), tuple(found["facts"]))


# -- examples --------------------------------------------------------------------------------------


def test_there_are_as_many_examples_as_the_paper_has() -> None:
    counts = {str(kind): len(examples()[kind]) for kind in GenerationKind}
    singles = dict.fromkeys(("small", "relations", "text", "attributes", "category"), 4)
    assert counts == {**singles, "multi-turn": 2, "general": 10}


@pytest.mark.parametrize("kind", GenerationKind)
def test_examples_pass_the_filters(kind: GenerationKind) -> None:
    for example in examples()[kind]:
        image = scene(example["scene"])
        targets = targets_of(image, kind)
        assert targets is not None, example
        pairs = example.get("pairs") or [(example.get("question"), example.get("answer"))]
        if kind is GenerationKind.multi_turn:
            pairs = list(zip(example["questions"], example["answers"], strict=True))
            assert len(pairs) >= 3
        for question, answer in pairs:
            fault = turn_fault(question, answer, objects=len(image.objects), targets=targets,
                               max_words=100)  # fmt: skip
            assert fault is None, (question, fault)


def test_facts_of_examples_name_objects_that_there_are() -> None:
    for name, found in examples()["scenes"].items():
        numbers = [number for fact in found["facts"] for number in references(fact)]
        assert numbers, name
        assert set(numbers) <= {*range(1, len(found["objects"]) + 1)}, name


# -- forms -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
def test_schema_and_reading_agree(form: type[msgspec.Struct]) -> None:
    schema, valid = json_schema(form), FORMS[form]
    assert "$ref" not in json.dumps(schema)
    assert schema["additionalProperties"] is False
    jsonschema.validate(valid, schema)
    assert msgspec.to_builtins(read_reply(json.dumps(valid), form)) == valid
    for wrong in ({}, [], valid | {"further": 1}, dict.fromkeys(valid, 7), [valid]):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong, schema)
        with pytest.raises(ReplyFormError) as error:
            read_reply(json.dumps(wrong), form)
        assert error.value.is_json


@pytest.mark.parametrize(
    ("text", "is_json"),
    [
        ('{"question": "q", "answer": ', False),
        ("Sure! Here it is.", False),
        ('Sure:\n```json\n{"question": "q", "answer": "a"}\n```', False),
        ('{"question": "q", "answer": "a"} and more', False),
        ('{"question": "\\ud800", "answer": "a"}', False),
        ('"text"', True),
    ],
)
def test_other_replies_are_refused(text: str, is_json: bool) -> None:
    with pytest.raises(ReplyFormError) as error:
        read_reply(text, PairReply)
    assert error.value.is_json is is_json


@given(st.text())
def test_any_text_is_read_or_refused(text: str) -> None:
    with pytest.raises(ReplyFormError):
        read_reply(text, PairReply)


def test_a_block_of_markdown_is_read() -> None:
    for text in ('```json\n{"question": "q", "answer": "a"}\n```', '```\n{"question":"q","answer":"a"}\n```\n'):  # fmt: skip # noqa: E501
        assert read_reply(text, PairReply) == PairReply("q", "a")


# -- filters ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("question", "answer", "reason"),
    [
        ("what is <region2>?", "a cup.", None),
        ("what is <region1>, <region2>?", "words " * 10, None),
        ("what is <region4>?", "a cup.", RejectReason.absent),
        ("what is <region0>?", "a cup.", RejectReason.absent),
        ("what is <region2>?", "<region12> is.", RejectReason.absent),
        ("what is [region 2]?", "a cup.", RejectReason.absent),
        ("what is <Region><L1><L2><L3></Region>?", "a cup.", RejectReason.absent),
        ("what is <region2> at [0.1, 0.2, 0.3, 0.45]?", "a cup.", RejectReason.coordinates),
        ("what is <region2>?", "it is at (10, 20, 30, 40).", RejectReason.coordinates),
        ("what is the cup?", "a cup.", RejectReason.no_region),
        ("what is <region1>?", "a cup.", RejectReason.off_target),
        ("what is <region2>?", "it is <region2>.", RejectReason.region_in_answer),
        ("what is <region2>?", "words " * 11, RejectReason.long_answer),
        ("<region2> " + "word " * 80, "a cup.", RejectReason.long_question),
        (" ", "a cup.", RejectReason.empty),
        ("what is <region2>?", "\n", RejectReason.empty),
    ],
)
def test_faults(question: str, answer: str, reason: RejectReason | None) -> None:
    fault = turn_fault(question, answer, objects=3, targets=(2, 3), max_words=10)
    assert (fault and fault.reason) == reason
    if fault is not None:
        assert (fault.question, fault.answer) == (question, answer)


def test_near_duplicates_within_an_image_depend_on_the_region() -> None:
    found = NearDuplicates(DuplicateScope.image)
    assert found.add("a", "What is <region1>?", "A cup.") is None
    assert found.add("a", "What is <region2>?", "A cup.") is None
    assert found.add("a", "what is <region1>?", "a cup") == "What is <region1>?"
    assert found.add("b", "What is <region1>?", "A cup.") is None


def test_near_duplicates_within_a_file_do_not() -> None:
    found = NearDuplicates(DuplicateScope.file)
    assert found.add("a", "What is <region1>?", "A cup.") is None
    assert found.add("b", "What is <region2>?", "A cup.") == "What is <region1>?"
    assert found.add("b", "What is <region2>?", "A large bowl of soup.") is None


def test_similarity_is_that_of_shingles() -> None:
    words = [f"w{number}" for number in range(60)]
    text, part = " ".join(words), " ".join(words[:31])
    assert minhash(text).jaccard(minhash(text.upper())) == 1
    assert abs(minhash(text).jaccard(minhash(part)) - 29 / 58) < 0.15
    assert minhash(text).jaccard(minhash(" ".join(reversed(words)))) < 0.05


# -- annotations and tasks -------------------------------------------------------------------------


def written(folder: Path, *records: dict[str, Any]) -> list[AnnotatedImage]:
    Image.new("RGB", (100, 50)).save(folder / "a.png")
    path = folder / "a.jsonl"
    path.write_text("".join(json.dumps({"image": "a.png", **each}) + "\n" for each in records))
    stream = open_training_stream(path)
    with closing(RecordsByImage(stream)) as images:
        for key, record in UsableRecords(stream).or_stop(skip_bad=False):
            images.add(key, record.image)
        return list(annotated_images(images, path))


def turns(*texts: str) -> list[dict[str, str]]:
    return [{"from": ("human", "gpt")[n % 2], "value": text} for n, text in enumerate(texts)]


def test_a_box_without_a_label_has_the_answer_as_its_name(tmp_path: Path) -> None:
    (image,) = written(
        tmp_path,
        {"regions": [[1, 2, 30, 40]], "conversations": turns("what is this?", "an old cup.")},
        {"regions": [[1, 2, 30, 40]], "conversations": turns("is <region1> full?", "yes.")},
        {"regions": [[50, 2, 60, 40]], "conversations": turns("why?", "it fell.")},
    )
    assert image.names == ("old cup", "object")
    assert image.facts == (
        "is <region1> full? yes.", "About <region2>: why? it fell.",
    )  # fmt: skip


def test_each_box_and_fact_is_listed_once_and_the_rest_is_counted(tmp_path: Path) -> None:
    boxes = [{"box": [n, 0, n + 1, 9], "label": f"thing {n}"} for n in range(70)]
    records = [
        {"regions": [box], "conversations": turns("what is this?", f"{box['label']}.")}
        for box in [*boxes, *boxes]
    ]
    fact = {"regions": [boxes[69], boxes[3]], "conversations": turns("is <region1> it?", "no.")}
    near = {"regions": [boxes[5], boxes[3]], "conversations": turns("is <region2> it?", "no.")}
    (image,) = written(tmp_path, *records, fact, near, near)
    assert (len(image.objects), image.left_out) == (60, 10 + 1)
    assert image.facts == ("is <region4> it? no.",)


@pytest.mark.parametrize(
    ("fact", "told"),
    [
        ("a sign that says 'stop'", True),
        ('"EXIT" above the door', True),
        ("what is written on <region1>? 42.", True),
        ("<region2> shows a logo", True),
        ("the man's dog isn't his wife's", False),
        ("what would you say? a dog.", False),
    ],
)
def test_facts_about_text_are_known(fact: str, told: bool) -> None:
    assert bool(TEXT_FACT.search(fact)) is told


def test_questions_of_converters_are_no_text_in_the_image() -> None:
    texts = [
        text
        for value in vars(wording).values()
        if isinstance(value, str | tuple)
        for text in ([value] if isinstance(value, str) else value)
        if isinstance(text, str) and "{" in text
    ]
    assert len(texts) > 50
    assert [text for text in texts if TEXT_FACT.search(text)] == []


def test_conversations_number_regions_in_order_of_appearance() -> None:
    image = scene("kitchen")
    regions, made = as_conversation([("a <region6>, b <region2>?", "c <region6>")], image.objects)
    assert regions == (image.objects[5], image.objects[1])
    assert (made[0].question, made[0].answer) == ("a <region1>, b <region2>?", "c <region1>")


@given(st.integers(1, 5), st.integers(1, 9), st.integers(0, 3) | st.none(), st.integers(0, 99))
def test_shards_divide_the_tasks(parts: int, count: int, per_image: int | None, seed: int) -> None:
    names = list(examples()["scenes"])
    images = [scene(names[n]) for n in range(count)]
    kinds = tuple(GenerationKind)
    per_image = per_image or None
    whole = TaskPlan(images, kinds, per_image, seed, Shard(1, 1))
    shards = [TaskPlan(images, kinds, per_image, seed, Shard(n + 1, parts)) for n in range(parts)]
    divided = sorted((task.id, task.seed) for shard in shards for task in shard.tasks())
    tasks = list(whole.tasks())
    assert divided == sorted((task.id, task.seed) for task in tasks)
    assert sum(shard.images for shard in shards) == whole.images == count
    if per_image is not None:
        assert len(tasks) == count * per_image
