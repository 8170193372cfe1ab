"""Records of a step: epochs, replay, augmentation seeds, rounding, broken images."""

import math
from collections import Counter
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.training import plain_record
from regionqa.data.records import Record, Turn
from regionqa.errors import ImageError, TrainingError
from regionqa.finetune.batches.sampler import BrokenImages, RecordStream, StepSampler, grouped_order
from regionqa.regions import Box, Region


def record(number: int, name: str) -> Record:
    """A record about one region of an image of its own."""
    turns = (Turn("what is <region1>?", "a thing."),)
    region = Region(Box(1, 2, 30, 40))
    return Record(Path(f"{name}{number}.png"), (region,), turns, f"{name}.jsonl:{number}")


def stream(count: int, name: str = "new", seed: tuple[int, ...] = (0,)) -> RecordStream:
    """A stream of records of one image each."""
    return RecordStream([record(number, name) for number in range(count)], 1, seed)


def taken(sampler: StepSampler, steps: int, replayed: bool) -> list[str]:
    """Where the fresh or the replayed records of the first steps come from, in order."""
    drawn = [one for step in range(steps) for one in sampler.step(step)]
    return [one.record.where for one in drawn if one.replayed is replayed]


def test_each_record_is_drawn_once_per_epoch() -> None:
    sampler = StepSampler(stream(12), None, 4, 0.0)
    first, second = taken(sampler, 6, False)[:12], taken(sampler, 6, False)[12:]
    assert sorted(first) == sorted(second) == sorted(r.where for r in sampler.fresh.records)
    assert first != second


def test_each_old_record_is_replayed_once_per_pass() -> None:
    sampler = StepSampler(stream(9), stream(6, "old"), 8, 0.25)
    assert sampler.replayed == 2
    old = taken(sampler, 6, True)
    assert Counter(old) == {f"old.jsonl:{number}": 2 for number in range(6)}
    assert len(set(old[:6])) == len(set(old[6:])) == 6
    fresh = taken(sampler, 3, False)
    assert set(Counter(fresh).values()) == {2}, "18 records in three steps of six"


def test_step_is_independent_of_earlier_steps() -> None:
    in_a_row = StepSampler(stream(5), stream(3, "old"), 4, 0.5, seed=7)
    drawn = [in_a_row.step(step) for step in range(9)]
    for step in (8, 0, 3):
        alone = StepSampler(stream(5), stream(3, "old"), 4, 0.5, seed=7).step(step)
        assert alone == drawn[step]


def test_augmentation_seeds_differ() -> None:
    samplers = [StepSampler(stream(4), stream(4, "old"), 4, 0.5, seed=seed) for seed in (0, 1)]
    seeds = [one.seed for sampler in samplers for step in (0, 1, 2) for one in sampler.step(step)]
    assert len(set(seeds)) == 2 * 3 * 4
    numbers = {np.random.default_rng(seed).integers(2**60) for seed in seeds}
    assert len(numbers) == len(seeds)


@pytest.mark.parametrize(
    ("records", "batch", "share", "epochs", "steps"),
    [
        (12, 5, 0.0, 1, 2),  # 2.4 is rounded down
        (12, 5, 0.0, 1.2, 3),  # 2.88 is rounded up
        (12, 4, 0.0, 1, 3),
        (12, 4, 0.5, 1, 6),  # an epoch is a pass over the fresh records
        (3, 8, 0.0, 0.1, 1),
        (7, 1, 1.0, 1, 7),  # a step of replay alone still counts as one fresh record
    ],
)
def test_epochs_to_steps(records: int, batch: int, share: float, epochs: float, steps: int) -> None:
    replay = stream(4, "old") if share else None
    assert StepSampler(stream(records), replay, batch, share).steps(epochs) == steps


def test_no_replay_without_older_records() -> None:
    sampler = StepSampler(stream(4), None, 4, 0.5)
    assert sampler.replayed == 0
    assert [one.replayed for one in sampler.step(0)] == [False] * 4


def test_groups_of_one_image_have_the_given_size() -> None:
    images = np.repeat(np.arange(5), 6)
    for seed in range(5):
        order = images[grouped_order(images, 3, np.random.default_rng(seed))]
        groups = order.reshape(-1, 3)
        assert (groups == groups[:, :1]).all()
        assert Counter(groups[:, 0].tolist()) == dict.fromkeys(range(5), 2)
    orders = [grouped_order(images, 3, np.random.default_rng(seed)).tolist() for seed in range(5)]
    assert len({tuple(images[order]) for order in orders}) == 5, "groups are shuffled"
    assert len({tuple(sorted(order[:3])) for order in orders}) > 1


def test_order_is_pinned() -> None:
    """A run that is resumed by a later version must draw the records of the version it began in."""
    images = np.array([0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 3, 3])
    order = grouped_order(images, 3, np.random.default_rng(0))
    assert order.tolist() == [9, 3, 1, 2, 4, 0, 7, 5, 6, 11, 10, 8]
    order = grouped_order(images, 3, np.random.default_rng(1))
    assert order.tolist() == [2, 3, 4, 0, 1, 11, 10, 8, 7, 5, 9, 6]
    drawn = StepSampler(stream(4), None, 2, 0.0).step(3)
    assert [one.seed for one in drawn] == [(0, 3, 0), (0, 3, 1)]
    numbers = [one.where.partition(":")[2] for one in stream(4).take(2, 8)]
    assert numbers == ["1", "0", "3", "0", "2", "1", "2", "0"]


def test_order_depends_on_the_seed() -> None:
    orders = {
        tuple(one.where for one in stream(8, seed=seed).take(0, 8)) for seed in ((0,), (1,), (0, 1))
    }
    assert len(orders) == 3


# -- properties ------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 5), min_size=1, max_size=40), st.integers(1, 5), st.integers(0, 99))
def test_order_is_a_permutation_grouped_by_image(images: list[int], group: int, seed: int) -> None:
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
def test_step_depends_on_its_number_only(
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


def test_each_pass_is_another_permutation() -> None:
    records = [plain_record(number, number // 3) for number in range(12)]
    stream = RecordStream(records, 2, (0,))
    passes = [[record.where for record in stream.take(start, 12)] for start in (0, 12, 24)]
    assert all(sorted(each) == sorted(record.where for record in records) for each in passes)
    assert len({tuple(each) for each in passes}) == 3
    order = StepSampler(stream, None, 5, 0.5)
    assert [order.steps(epochs) for epochs in (1, 2.5, 0.01)] == [2, 6, 1]
    half = StepSampler(stream, RecordStream(records, 2, (1,)), 6, 0.5)
    assert half.steps(1) == 4, "an epoch is a pass over the records that are new"


# -- broken images -------------------------------------------------------------------------------


SOUND, BROKEN, OTHER = (
    Record(Path(name), (), (Turn("what?", "a cup."),), f"mine.jsonl:{number}")
    for number, name in enumerate(("a.jpg", "broken.jpg", "b.jpg"), start=1)
)


class Names:
    """Collates the images of records to their names."""

    def __init__(self, *broken: Record) -> None:
        self.broken = {record.image for record in broken}
        self.augmented: list[tuple[float, Sequence[Sequence[int]]]] = []
        """Noise and seeds of every batch."""

    def batch(
        self, records: Sequence[Record], noise: float = 0.0, seeds: Sequence[Sequence[int]] = ()
    ) -> list[str]:
        self.augmented.append((noise, seeds))
        for record in records:
            if record.image in self.broken:
                raise ImageError(f"{record.image}: cannot be decoded: it is torn; copy it again")
        return [record.image.name for record in records]


def test_another_record_takes_the_place_and_the_image_is_named_once() -> None:
    said: list[str] = []
    images = BrokenImages(skip=True, say=said.append)
    for _ in range(2):
        batch = images.batch(Names(BROKEN), [SOUND, BROKEN, OTHER, BROKEN], [SOUND])
        assert batch == ["a.jpg", "b.jpg", "b.jpg", "b.jpg"]
    assert images.batch(Names(BROKEN), [BROKEN, BROKEN], [BROKEN, SOUND]) == ["a.jpg", "a.jpg"]
    message = "broken.jpg: cannot be decoded: it is torn; copy it again"
    assert said == [f"left out: mine.jsonl:2: {message}"]
    assert images.without([SOUND, BROKEN]) == [SOUND]
    images.summarise()
    assert said[-1] == "1 broken image left out: broken.jpg"


def test_without_skip_bad_the_record_is_named_and_what_to_do() -> None:
    with pytest.raises(TrainingError) as caught:
        BrokenImages().batch(Names(BROKEN), [SOUND, BROKEN], [SOUND])
    assert str(caught.value).startswith("mine.jsonl:2: broken.jpg: cannot be decoded")
    assert "--skip-bad; then continue with --resume" in str(caught.value)


def test_noise_and_seeds_are_passed_on() -> None:
    names = Names()
    for more in ((), (0.2, [(0, 1, 2)])):
        assert BrokenImages().batch(names, [SOUND], [SOUND], *more) == ["a.jpg"]
    assert names.augmented == [(0.0, ()), (0.2, [(0, 1, 2)])]


def test_nothing_is_left() -> None:
    images = BrokenImages(skip=True)
    with pytest.raises(TrainingError, match="no image of the data can be decoded"):
        images.batch(Names(BROKEN), [BROKEN], [BROKEN])


class Raises(Names):
    """Fails with an error that names no image."""

    def batch(
        self, records: Sequence[Record], noise: float = 0.0, seeds: Sequence[Sequence[int]] = ()
    ) -> list[str]:
        raise ImageError("another.jpg: no such file")


def test_an_error_about_no_image_of_the_batch_is_passed_on() -> None:
    with pytest.raises(ImageError, match=r"another\.jpg"):
        BrokenImages(skip=True).batch(Raises(), [SOUND], [SOUND])
