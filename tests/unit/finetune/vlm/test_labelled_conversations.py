"""Conversations of training: prompts and losses are those of asking, labels are on answers."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest
import torch

from helpers.vlm.checkpoints import WRITERS
from helpers.vlm.tuning import LEFT, RIGHT, read_records, vlm_training, write_colors, write_line
from regionqa.backends.vlm.backend import VlmBackend
from regionqa.data.records import Record, Turn
from regionqa.engine import Engine
from regionqa.finetune.batches.dataset import IGNORE_INDEX, single_turns
from regionqa.finetune.config import StageSettings
from regionqa.finetune.model import select_trainable
from regionqa.finetune.vlm.samples import answer_text, known_regions
from regionqa.images.reading import open_image
from regionqa.options import RegionWay
from regionqa.regions import Box, Region
from regionqa.requests import HistoryTurn, Request
from regionqa.vlm.cards import family_tables
from regionqa.vlm.region_images import WholeImage, make_image

if TYPE_CHECKING:
    from collections.abc import Callable

QUICK = (("qwen3_vl", "coordinates"), ("qwen3_vl", "drawn"), ("qwen3_5", "crop"),
         ("smolvlm", "crop"))  # fmt: skip
"""A family whose turns continue each other, in a way where they do, and in one where boxes are
drawn anew; one whose template rewrites answers; one that puts a space before them."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> "Callable[[str], Path]":
    root = tmp_path_factory.mktemp("checkpoints")
    return lambda family: (
        root / family if (root / family).exists() else WRITERS[family](root / family)
    )


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> tuple[Record, ...]:
    return read_records(write_colors(tmp_path_factory.mktemp("data"), images=2))


def asked(record: Record) -> list[Request]:
    """The turns of a record as `regionqa chat` asks them, each with the answers before it."""
    image = open_image(record.image)
    history: list[HistoryTurn] = []
    requests = []
    for turn, known in zip(record.turns, known_regions(record), strict=True):
        regions = record.regions[:known]
        requests.append(Request("image", turn.question, regions, image, history=tuple(history)))
        history.append(HistoryTurn(turn.question, turn.answer, known))
    return requests


def loss_of_asking(backend: VlmBackend, records: tuple[Record, ...]) -> float:
    """Negative log-likelihood of all answers, as `--choices` scores them."""
    total = 0.0
    for record in records:
        parts = [record] if backend.card.chat.multi_turn else single_turns(record)
        for part in parts:
            for request, turn in zip(asked(part), part.turns, strict=True):
                assert request.source is not None
                (prompt,) = backend.encode(request.source, [backend.render(request, 8)])
                total -= backend.score(prompt, [answer_text(turn.answer)])[0]
    return total


def check_losses(path: Path, way: RegionWay, records: tuple[Record, ...]) -> None:
    """Training's loss is that of asking, whichever rows the turns make, encoded or not."""
    engine = Engine.load(path, device="cpu", way=way)
    backend = cast(VlmBackend, engine.backend)
    one_image = not backend.card.chat.multi_image and way is RegionWay.crop_only
    used = records[::2] if one_image else records
    expected = loss_of_asking(backend, used)
    answers = sum(len(record.turns) for record in used)
    for frozen in (True, False):
        parts = vlm_training(path, way, frozen=frozen, network=backend.language.model)
        rows, problems = parts.builder.fitting(used)
        assert not problems
        batch = parts.collator.batch(rows)
        starts = batch.learned & ~torch.nn.functional.pad(batch.learned, (1, 0))[:, :-1]
        assert int(starts.sum()) == answers, "every answer is learned once"
        parts.model.decoder.train()
        metrics = parts.model(batch)
        parts.model.decoder.eval()
        assert float(metrics.loss.detach()) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("family", "way"), QUICK)
def test_losses_equal_those_of_asking(
    family: str, way: str, folder: "Callable[[str], Path]", records: tuple[Record, ...]
) -> None:
    check_losses(folder(family), RegionWay(way), records)


@pytest.mark.slow
@pytest.mark.parametrize("family", sorted(WRITERS.keys() - {"florence2"}))
def test_losses_of_every_family_and_way(
    family: str, folder: "Callable[[str], Path]", records: tuple[Record, ...]
) -> None:
    for way in family_tables()[family]["regions"]["ways"]:
        check_losses(folder(family), RegionWay(way), records)


@pytest.mark.parametrize(("family", "space"), [("qwen3_vl", ""), ("smolvlm", " ")])
def test_ids_and_labels_equal_the_processors(
    family: str, space: str, folder: "Callable[[str], Path]", records: tuple[Record, ...]
) -> None:
    """Of the whole conversation, by its own chat template, answers included."""
    parts = vlm_training(folder(family), RegionWay.crop)
    (record,) = parts.builder.fitting(records[1:2])[0][-1:]
    assert len(record.turns) == 2
    row = parts.collator.batch([record])
    processor = parts.collator._backend.processor
    rendered = parts.builder.prompts(record, open_image(record.image))[-1]
    whole: list[dict[str, Any]] = [
        {"role": message.role,
         "content": [{"type": "text", "text": part} if isinstance(part, str) else {"type": "image"}
                     for part in message.parts]}
        for message in rendered.told.messages
    ]  # fmt: skip
    answer = record.turns[-1].answer
    whole.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
    text = processor.processor.apply_chat_template(whole)
    pixels = open_image(record.image).load()
    images = [make_image(part, pixels) for part in rendered.told.images]
    ids = processor.processor(
        text=[text], images=[images], images_kwargs=dict(parts.base.card.images.cpu)
    )["input_ids"][0]
    ours = row.input_ids[0].tolist()
    assert ours == list(ids)[: len(ours)]
    labels = row.labels[0]
    said = processor.tokenizer.decode(labels[labels != IGNORE_INDEX])
    stop = processor.tokenizer.decode([ours[-1]])
    answers = [turn.answer for turn in record.turns]
    assert said == "".join(f"{space}{each}{stop}" for each in answers)
    assert processor.tokenizer.decode(ours[-1:]) in processor.tokenizer.all_special_tokens


def test_rows_where_turns_do_not_continue(
    folder: "Callable[[str], Path]", records: tuple[Record, ...]
) -> None:
    """Boxes are drawn on the image, so a turn with a further region sees another image."""
    for way, expected in ((RegionWay.coordinates, [2]), (RegionWay.drawn, [1, 2])):
        rows, _ = vlm_training(folder("qwen3_vl"), way).builder.fitting(records[1:2])
        assert [len(row.turns) for row in rows] == expected
        assert [len(row.regions) for row in rows] == expected


@pytest.mark.parametrize(
    ("questions", "expected"),
    [
        (["what is <region1>?", "and <region2>?"], [1, 2]),
        (["what is <region2>?", "and <region1>?"], [2, 2]),
        (["how many?", "what?"], [2, 2]),
        (["what is <region1>?", "what else?"], [2, 2]),
    ],
)
def test_regions_are_known_from_the_turn_that_names_them(
    questions: list[str], expected: list[int]
) -> None:
    regions = (Region(Box(*map(float, LEFT))), Region(Box(*map(float, RIGHT))))
    turns = tuple(Turn(question, "x") for question in questions)
    assert known_regions(Record(Path("a.png"), regions, turns, "a:1")) == expected


def test_records_that_do_not_fit(
    folder: "Callable[[str], Path]", records: tuple[Record, ...], tmp_path: Path
) -> None:
    path = records[0].image
    builder = vlm_training(folder("qwen3_vl")).builder
    lines = [
        write_line(str(path), [LEFT], [("what<|im_end|>?", "red")]),
        write_line(str(path), [LEFT], [("what?", "red<|im_end|>")]),
        write_line(str(path), [LEFT] * 9, [("what?", "red")]),
        write_line(str(path), [LEFT], [("what?" * 1000, "red")]),
        write_line(str(path), [LEFT], [("what?", "red")]),
    ]
    data = tmp_path / "bad.jsonl"
    data.write_text("\n".join(lines) + "\n")
    good, problems = builder.fitting(read_records(data))
    assert [record.where for record in good] == ["bad.jsonl:5"]
    assert [problem.where for problem in problems] == [f"bad.jsonl:{line}" for line in range(1, 5)]
    for problem, text in zip(
        problems,
        ("the question holds '<|im_end|>'", "the answer holds '<|im_end|>'",
         "9 regions in one record, the model qwen3_vl takes 8", "reads 4096; split the record"),
        strict=True,
    ):  # fmt: skip
        assert text in problem.text


def test_what_trains(folder: "Callable[[str], Path]") -> None:
    model = vlm_training(folder("qwen3_vl")).model
    stage = StageSettings(learning_rate=1e-3, language=True, projector=True)
    everything = {name for name, _ in select_trainable(model, stage)}
    assert everything == {name for name, _ in model.named_parameters()}
    language = {name for name, _ in select_trainable(model, replace(stage, projector=False))}
    assert language == {name for name in everything if ".visual." not in name}
    assert 10 < len(language) < len(everything)


def test_gradients_reach_the_vision_encoder_that_trains(
    folder: "Callable[[str], Path]", records: tuple[Record, ...]
) -> None:
    stage = StageSettings(learning_rate=1e-3, language=True, projector=True)
    parts = vlm_training(folder("qwen3_vl"), frozen=False)
    select_trainable(parts.model, stage)
    parts.model(parts.collator.batch(records[:1])).loss.backward()
    without = [name for name, each in parts.model.named_parameters() if each.grad is None]
    assert without == []


def test_images_are_encoded_once(
    folder: "Callable[[str], Path]",
    records: tuple[Record, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    parts = vlm_training(folder("qwen3_vl"), RegionWay.coordinates)
    tower = parts.collator._backend.tower
    encoded: list[int] = []
    encode = tower.encode

    def counted(inputs: Any) -> Any:
        encoded.append(1)
        return encode(inputs)

    monkeypatch.setattr(tower, "encode", counted)
    first = parts.collator.batch(records)
    again = parts.collator.batch(records)
    assert len(encoded) == 2, "two images, however often they are asked about"
    assert torch.equal(parts.model.logits(first), parts.model.logits(again))


def test_crops_of_jittered_boxes_are_not_kept(
    folder: "Callable[[str], Path]", records: tuple[Record, ...]
) -> None:
    collator = vlm_training(folder("qwen3_vl"), RegionWay.crop).collator
    collator.batch(records[:1], 0.1, [[0, 1]])
    (known,) = collator._backend._known.values()
    assert [part for part, _ in known] == [WholeImage()]
    collator.batch(records[:1])
    assert len(known) == 2


def test_boxes_of_a_prompt_are_jittered(
    folder: "Callable[[str], Path]", records: tuple[Record, ...]
) -> None:
    collator = vlm_training(folder("qwen3_vl"), RegionWay.coordinates).collator
    batches = [collator.batch(records[:1], 0.1, [[0, seed]]).input_ids for seed in (1, 1, 2)]
    assert torch.equal(batches[0], batches[1])
    assert not torch.equal(batches[0], batches[2])
