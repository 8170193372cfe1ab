"""Records of every step: epochs, replay, the seeds of augmentation, rounding."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from regionqa.data.records import Record, Turn
from regionqa.finetune.sampler import RecordStream, StepSampler, grouped_order
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


def test_consecutive_steps_take_every_record_once_an_epoch() -> None:
    sampler = StepSampler(stream(12), None, 4, 0.0)
    first, second = taken(sampler, 6, False)[:12], taken(sampler, 6, False)[12:]
    assert sorted(first) == sorted(second) == sorted(r.where for r in sampler.fresh.records)
    assert first != second


def test_replay_takes_every_old_record_once_a_pass() -> None:
    sampler = StepSampler(stream(9), stream(6, "old"), 8, 0.25)
    assert sampler.replayed == 2
    old = taken(sampler, 6, True)
    assert Counter(old) == {f"old.jsonl:{number}": 2 for number in range(6)}
    assert len(set(old[:6])) == len(set(old[6:])) == 6
    fresh = taken(sampler, 3, False)
    assert set(Counter(fresh).values()) == {2}, "18 records in three steps of six"


def test_a_step_is_drawn_alone_as_in_a_row() -> None:
    in_a_row = StepSampler(stream(5), stream(3, "old"), 4, 0.5, seed=7)
    drawn = [in_a_row.step(step) for step in range(9)]
    for step in (8, 0, 3):
        alone = StepSampler(stream(5), stream(3, "old"), 4, 0.5, seed=7).step(step)
        assert alone == drawn[step]


def test_augmentation_differs_between_steps_rows_and_seeds() -> None:
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
def test_steps_of_epochs(records: int, batch: int, share: float, epochs: float, steps: int) -> None:
    replay = stream(4, "old") if share else None
    assert StepSampler(stream(records), replay, batch, share).steps(epochs) == steps


def test_without_older_records_nothing_is_replayed() -> None:
    sampler = StepSampler(stream(4), None, 4, 0.5)
    assert sampler.replayed == 0
    assert [one.replayed for one in sampler.step(0)] == [False] * 4


def test_records_of_one_image_stand_together_in_groups_of_exactly_the_given_size() -> None:
    images = np.repeat(np.arange(5), 6)
    for seed in range(5):
        order = images[grouped_order(images, 3, np.random.default_rng(seed))]
        groups = order.reshape(-1, 3)
        assert (groups == groups[:, :1]).all()
        assert Counter(groups[:, 0].tolist()) == dict.fromkeys(range(5), 2)
    orders = [grouped_order(images, 3, np.random.default_rng(seed)).tolist() for seed in range(5)]
    assert len({tuple(images[order]) for order in orders}) == 5, "groups are shuffled"
    assert len({tuple(sorted(order[:3])) for order in orders}) > 1


def test_streams_of_other_seeds_have_other_orders() -> None:
    orders = {
        tuple(one.where for one in stream(8, seed=seed).take(0, 8)) for seed in ((0,), (1,), (0, 1))
    }
    assert len(orders) == 3
