"""Collation: training inputs equal inference inputs."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from helpers.tiny_models import ROWS
from helpers.training import CPU, parts_of
from regionqa.bundles.store import Bundle
from regionqa.data.records import Record, Turn
from regionqa.engine import Engine
from regionqa.export.modules.multilevel import MultiLevelRegionEncoder
from regionqa.finetune.batches.dataset import IGNORE_INDEX, jitter_box
from regionqa.finetune.batches.frozen import FrozenEncoders
from regionqa.finetune.batches.noise import noisy_rows, swapped_rows
from regionqa.finetune.config import DEFAULT, RegionPart
from regionqa.finetune.finish import read_modules
from regionqa.images.preprocessing import Fit
from regionqa.images.reading import open_image
from regionqa.language.decoders import LlamaDecoder
from regionqa.language.generation import LanguageModel, SplicedPrompt
from regionqa.regions import Box, Region
from regionqa.requests import Request

Tiny = Callable[[str], Bundle]


def test_box_noise_changes_coordinates_in_text(tiny: Tiny, records: tuple[Record, ...]) -> None:
    _, collator = parts_of(tiny("coordinates"))
    record = replace(records[4], regions=(Region(Box(60, 10, 96, 30)),))
    tokenizer = collator.builder.tokenizer

    def written(*noise: Any) -> list[str]:
        ids = collator.batch([record], *noise).input_ids[0].tolist()
        return (
            tokenizer.decode([id for id in ids if id]).partition("]")[0].split("[")[1].split(", ")
        )

    exact, moved = written(), written(0.2, [(0, 1, 2)])
    image = open_image(record.image)
    box = record.regions[0].box
    assert image.width != image.height and box.x1 == image.width, "noise is clipped there"
    sides = [image.width, image.height] * 2
    assert exact == [f"{v / s:.3f}" for v, s in zip(box.xyxy, sides, strict=True)]
    new = jitter_box(box, 0.2, image.width, image.height, np.random.default_rng([0, 1, 2]))
    assert moved == [f"{v / s:.3f}" for v, s in zip(new.xyxy, sides, strict=True)]
    assert moved != exact
    assert moved == written(0.2, [(0, 1, 2)])
    assert moved != written(0.2, [(0, 1, 3)])
    seeds = [(0, 1, 2), (0, 1, 3)]
    both = collator.batch([record, record], 0.2, seeds).input_ids
    for row, seed in zip(both, seeds, strict=True):
        alone = collator.batch([record], 0.2, [seed]).input_ids[0].tolist()
        assert [id for id in row.tolist() if id] == [id for id in alone if id]
    turn = replace(record.turns[0], question="is <region1> like <region2>?")
    twice = replace(record, regions=record.regions * 2, turns=(turn,))
    ids = collator.batch([twice], 0.2, [(0, 1, 2)]).input_ids[0].tolist()
    _, one, other = tokenizer.decode([id for id in ids if id]).split("[")
    assert one.partition("]")[0] != other.partition("]")[0], "every box has noise of its own"


def test_noise_changes_features_and_no_positions(tiny: Tiny, records: tuple[Record, ...]) -> None:
    _, collator = parts_of(tiny("pixels"), RegionPart.projector)
    plain = collator.batch(records)
    assert plain.vectors is not None
    assert plain.feature_width is None, "all of a region's vector"
    width = plain.vectors.shape[1] - 2
    batch = replace(plain, feature_width=width)
    strong = replace(DEFAULT.instruct, feature_mixing=0.5, feature_noise=0.3)
    everything = plain.with_changed_features(strong, (0, 1, 2)).vectors
    assert everything is not None
    assert not torch.equal(everything[:, width:], plain.vectors[:, width:])
    calm = DEFAULT.instruct
    for stage in (replace(calm, feature_mixing=0.5), replace(calm, feature_noise=0.3)):
        noisy, again = (batch.with_changed_features(stage, (0, 1, 2)) for _ in range(2))
        other = batch.with_changed_features(stage, (0, 1, 3))
        assert noisy.vectors is not None
        assert again.vectors is not None
        assert torch.equal(noisy.vectors, again.vectors)
        assert torch.equal(noisy.features, again.features)
        assert not torch.equal(noisy.features, other.features)
        assert not torch.equal(noisy.features, batch.features)
        assert not torch.equal(noisy.vectors[:, :width], plain.vectors[:, :width])
        assert torch.equal(noisy.vectors[:, width:], plain.vectors[:, width:])
        assert torch.equal(noisy.boxes, batch.boxes)


def test_images_are_swapped_where_all_questions_name_regions(
    tiny: Tiny, records: tuple[Record, ...]
) -> None:
    """Those about the whole image keep it, and so does what a region shows."""
    _, collator = parts_of(tiny("pixels"), RegionPart.projector)
    turn = Turn("describe this picture.", "a street.")
    whole = replace(records[0], regions=(), turns=(turn,))
    named = [record for record in records if record.regions]
    batch = collator.batch([*named, whole])
    stage = replace(DEFAULT.instruct, swapped_images=0.99)
    swapped = batch.with_changed_features(stage, (0, 1, 2))
    assert swapped.vectors is not None
    assert batch.vectors is not None
    assert torch.equal(swapped.vectors, batch.vectors)
    kept = int(batch.image_rows[-1])
    assert batch.asked_by_regions_alone.tolist() == [
        row != kept for row in range(len(batch.features))
    ]
    assert torch.equal(swapped.features[kept], batch.features[kept])
    assert not torch.equal(swapped.features, batch.features)
    for row in swapped.features:
        assert any(torch.equal(row, own) for own in batch.features), "one of the batch"


def test_as_many_images_are_swapped_as_it_says() -> None:
    rows, generator = torch.arange(400.0).unsqueeze(1), torch.Generator().manual_seed(0)
    may = torch.arange(400) < 200
    moved = (swapped_rows(rows, 0.6, may, generator) != rows).squeeze(1)
    assert not moved[200:].any()
    assert 0.5 < float(moved[:200].float().mean()) < 0.7


def test_noise_is_as_large_as_it_says() -> None:
    rows = torch.randn(400, 3, 5, generator=torch.Generator().manual_seed(0)) * 2
    mixed = noisy_rows(rows, 0.6, 0.0, torch.Generator().manual_seed(1))
    moved = (mixed - rows).flatten(1).norm(dim=1) / rows.flatten(1).norm(dim=1)  # (R,)
    assert (moved > 0).float().mean() > 0.95, "nearly all have another partner"
    assert mixed.std() < rows.std(), "means are less extreme"
    noisy = noisy_rows(rows, 0.0, 0.7, torch.Generator().manual_seed(1))
    assert float((noisy - rows).std()) == pytest.approx(0.7 * 2, rel=0.1)
    alone = noisy_rows(rows[:1], 0.6, 0.7, torch.Generator().manual_seed(1))
    torch.testing.assert_close(alone, rows[:1])


@pytest.mark.parametrize("part", [RegionPart.all, RegionPart.projector])
@pytest.mark.parametrize("row", ROWS)
def test_training_inputs_equal_inference_inputs(
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
        embeds = model.embed(batch)
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
        logits_of_batch = out[row_number, len(ids) - 1]
        assert torch.allclose(logits_of_batch, theirs[row_number], atol=1e-3)
        assert int(logits_of_batch.argmax()) == int(theirs[row_number].argmax())
    slots = sum(len(prompt.prompt.region_starts) for prompt in asked)
    assert slots == len(batch.region_slots)
    assert (slots > 0) == (row in ("levels", "pixels"))


def test_padding(tiny: Tiny, records: tuple[Record, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    _, collator = parts_of(tiny("pixels"))
    batch = collator.batch(records)
    alone = [collator.batch([record]) for record in records]
    lengths = [each.input_ids.shape[1] for each in alone]
    assert max(lengths) == batch.input_ids.shape[1] > min(lengths)
    for row, (each, length) in enumerate(zip(alone, lengths, strict=True)):
        assert torch.equal(batch.input_ids[row, :length], each.input_ids[0])
        assert torch.equal(batch.labels[row, :length], each.labels[0])
        assert (batch.labels[row, length:] == IGNORE_INDEX).all()
        assert batch.mask[row].tolist() == [at < length for at in range(max(lengths))]
        assert batch.image_rows[row] == list(dict.fromkeys(r.image for r in records)).index(
            records[row].image
        )
    assert batch.answer_tokens == sum(each.answer_tokens for each in alone)
    assert batch.answer_tokens == int((batch.labels != IGNORE_INDEX).sum())
    assert torch.equal(batch.learned, (batch.labels != IGNORE_INDEX)[:, 1:])
    moved = batch.to(CPU)
    assert len(moved.sources) == len(batch.sources) == 2, "images of two shapes"
    for group, same in zip(batch.sources, moved.sources, strict=True):
        assert all(map(torch.equal, group, same))
    copied: list[int] = []

    def copy(self: Tensor, *to: object, **how: object) -> Tensor:
        copied.append(id(self))
        return self

    monkeypatch.setattr(Tensor, "to", copy)
    batch.to(CPU)
    packed = vars(batch.packed).values() if batch.packed else ()
    levels = (level for group in batch.sources for level in group)
    everything = [*vars(batch).values(), *levels, *packed]
    assert sorted(copied) == sorted(id(each) for each in everything if isinstance(each, Tensor))


# -- frozen encoders -------------------------------------------------------------------------------


def test_frozen_regions_are_cached_by_image_and_box(
    tiny: Tiny, records: tuple[Record, ...]
) -> None:
    """Vectors are cached by image and box; the second call is answered from the cache."""
    first = records[0]
    image = next(each.image for each in records if each.image != first.image)
    other = replace(first, image=image)
    _, collator = parts_of(tiny("levels"), RegionPart.projector)
    alone = []
    for record in (first, other):
        _, fresh = parts_of(tiny("levels"), RegionPart.projector)
        alone.append(fresh.batch([record]).vectors)
    for _ in range(2):
        both = collator.batch([first, other])
        assert both.sources == [], "which only the region encoder reads"
        together = both.vectors
        assert together is not None
        for row, expected in enumerate(alone):
            assert expected is not None
            assert torch.allclose(together[row], expected[0], atol=1e-5)
        assert not torch.allclose(together[0], together[1], atol=1e-2)
        again = collator.batch([other]).vectors
        assert again is not None and torch.allclose(again[0], together[1], atol=1e-5)


def test_cached_vectors_belong_to_their_boxes(
    tiny: Tiny, records: tuple[Record, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = tiny("levels")  # exported before `counting`, whose `len` would fix the number of boxes
    computed: list[int] = []
    region_vectors = MultiLevelRegionEncoder.region_vectors

    def counting(self: Any, sources: Any, boxes: Tensor, index: Tensor) -> Tensor:
        computed.append(len(boxes))
        return region_vectors(self, sources, boxes, index)

    monkeypatch.setattr(MultiLevelRegionEncoder, "region_vectors", counting)

    def encoders() -> FrozenEncoders:
        found = parts_of(bundle, RegionPart.projector)[1].encoders
        assert isinstance(found, FrozenEncoders)
        return found

    path = records[0].image
    first, second = Box(4, 4, 30, 30), Box(40, 10, 60, 60)
    image = encoders().image(path)
    alone = {box: encoders().vectors(path, image, [box])[0] for box in (first, second)}
    for room, expected in ((1000, [1, 1]), (0, [1, 2, 1, 2])):
        monkeypatch.setattr("regionqa.finetune.batches.frozen.MAX_VECTORS", room)
        cached = encoders()
        computed.clear()
        for boxes in ([first], [first, second, first], [second], [second, first]):
            found = cached.vectors(path, image, boxes)
            assert len(found) == len(boxes)
            for box, vector in zip(boxes, found, strict=True):
                assert torch.allclose(vector, alone[box], atol=1e-5)
                own = vector.untyped_storage().nbytes()
                assert own == vector.nbytes, "a view would keep the others in memory"
        assert computed == expected


def test_vectors_take_the_place_of_levels_where_all_boxes_are_known(
    tiny: Tiny, records: tuple[Record, ...]
) -> None:
    bundle = tiny("levels")
    parts = read_modules(bundle)
    path, boxes = records[0].image, [Box(4, 4, 30, 30), Box(40, 10, 60, 60)]
    usual = FrozenEncoders(bundle.card, parts.vision, parts.region, CPU)
    knowing = FrozenEncoders(
        bundle.card, parts.vision, parts.region, CPU, boxes={path: tuple(boxes)}
    )
    image, known = usual.image(path), knowing.image(path)
    assert known.sources == () and known.size < image.size
    assert torch.equal(known.features, image.features)
    wanted = usual.vectors(path, image, boxes[::-1])
    assert all(map(torch.equal, knowing.vectors(path, known, boxes[::-1]), wanted))


def test_cached_vectors_are_of_fitted_boxes(
    tiny: Tiny, records: tuple[Record, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = tiny("levels")
    parts = read_modules(bundle)
    seen: list[Tensor] = []

    def kept(self: Any, sources: Any, boxes: Tensor, index: Tensor) -> Tensor:
        seen.append(boxes)
        return torch.zeros(len(boxes), 4)

    monkeypatch.setattr(MultiLevelRegionEncoder, "region_vectors", kept)
    card = replace(bundle.card, image=replace(bundle.card.image, fit=Fit.pad))
    encoders = FrozenEncoders(card, parts.vision, parts.region, CPU)
    encoders.vectors(records[1].image, encoders.image(records[1].image), [Box(0, 0, 96, 64)])
    assert torch.allclose(seen[0], torch.tensor([[0, 0, 1, 43 / 64]]), atol=1e-6)


def test_images_with_equal_file_names(tiny: Tiny, tmp_path: Path) -> None:
    _, collator = parts_of(tiny("levels"))
    for folder, colour in (("one", "red"), ("two", "blue")):
        (tmp_path / folder).mkdir()
        Image.new("RGB", (64, 48), colour).save(tmp_path / folder / "a.png")
    one, two = (collator.encoders.image(tmp_path / folder / "a.png") for folder in ("one", "two"))
    assert (one.width, one.height) == (64, 48)
    assert not torch.allclose(one.features, two.features, atol=1e-2)


def test_cache_size_limit(
    tiny: Tiny, records: tuple[Record, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = tiny("levels")
    parts = read_modules(bundle)
    calls = []
    features = type(parts.vision).features

    def counting(self: Any, pixels: Tensor) -> Any:
        calls.append(1)
        return features(self, pixels)

    monkeypatch.setattr(type(parts.vision), "features", counting)
    paths = list(dict.fromkeys(record.image for record in records))[:2]
    measure = FrozenEncoders(bundle.card, parts.vision, parts.region, CPU).image(paths[0])
    assert measure.size == sum(4 * t.numel() for t in (measure.features, *measure.sources))
    for room, encoded in ((measure.size, 3), (measure.size - 1, 4), (2 * measure.size, 2)):
        encoders = FrozenEncoders(bundle.card, parts.vision, parts.region, CPU, room)
        calls.clear()
        for path in (*paths, *paths):
            encoders.image(path)
        assert len(calls) == encoded, "what has no room is encoded again"
