"""Which of a detector's boxes are kept, and in which order."""

from collections.abc import Sequence
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from regionqa.detection.base import ScoredBoxes
from regionqa.detection.detector import FoundObjects, select
from regionqa.errors import BundleError

SIZE = (100, 50)
Row = tuple[tuple[float, float, float, float], float, int]
NAMES = ("cat", "cup", "dog")


def scored(rows: Sequence[Row]) -> ScoredBoxes:
    return ScoredBoxes(
        np.array([box for box, *_ in rows], np.float64).reshape(-1, 4),
        np.array([score for _, score, _ in rows], np.float64),
        tuple(number for *_, number in rows),
        tuple(NAMES[number] for *_, number in rows),
    )


def kept(found: FoundObjects) -> list[tuple[tuple[float, ...], float, str]]:
    rows = zip(found.boxes.tolist(), found.scores.tolist(), found.labels, strict=True)
    return [(tuple(box), score, label) for box, score, label in rows]


def test_boxes_are_clipped_rounded_and_ordered() -> None:
    rows: list[Row] = [((-5, -5, 10.006, 20), 0.25, 1), ((90, 40, 130, 70), 0.87654321, 0)]
    assert kept(select(scored(rows), SIZE)) == [
        ((90, 40, 100, 50), 0.8765, "cat"),
        ((0, 0, 10.01, 20), 0.25, "cup"),
    ]


def test_boxes_without_area_are_counted() -> None:
    rows: list[Row] = [
        ((120, 0, 140, 10), 0.9, 0),  # outside
        ((10, 10, 10.001, 20), 0.8, 0),  # less than the last decimal
        ((30, 20, 20, 30), 0.7, 1),  # its sides are swapped
        ((0, 0, 1, 1), 0.6, 1),
    ]
    found = select(scored(rows), SIZE)
    assert (len(found.scores), found.empty) == (1, 3)
    assert select(scored(rows), SIZE, classes=["cup"]).empty == 1
    assert kept(select(scored([]), SIZE, nms=0.5)) == []


def test_overlapping_boxes_of_a_class_are_left_out() -> None:
    rows: list[Row] = [
        ((0, 0, 10, 10), 0.5, 0),
        ((0, 0, 10, 8), 0.9, 0),  # 0.8 of the union
        ((0, 0, 10, 10), 0.4, 1),  # of another class
        ((50, 0, 60, 10), 0.3, 0),
    ]
    assert [score for _, score, _ in kept(select(scored(rows), SIZE, nms=0.7))] == [0.9, 0.4, 0.3]
    assert len(select(scored(rows), SIZE, nms=0.81).scores) == 4
    assert len(select(scored(rows), SIZE, nms=1).scores) == 4


def test_the_best_boxes_of_the_classes_remain() -> None:
    rows: list[Row] = [((0, 0, 9, 9), 0.1 * number, number % 3) for number in range(1, 7)]
    found = select(scored(rows), SIZE, classes=["cat", "dog"], most=2)
    assert kept(found) == [((0, 0, 9, 9), 0.6, "cat"), ((0, 0, 9, 9), 0.5, "dog")]
    assert found.classes == (0, 2)
    assert [region.score for region in found.regions] == [0.6, 0.5]
    assert [region.label for region in found.regions] == ["cat", "dog"]


def test_values_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(BundleError, match="no numbers"):
        select(scored([((0, 0, float("nan"), 1), 0.5, 0)]), SIZE)


BOXES = st.tuples(*[st.integers(-20, 120).map(float)] * 4)
ROWS = st.lists(st.tuples(BOXES, st.sampled_from([0.2, 0.5, 0.75]), st.integers(0, 2)), max_size=12)


@given(rows=ROWS, seed=st.randoms(use_true_random=False), nms=st.sampled_from([0.0, 0.4, 1.0]))
def test_the_order_of_the_boxes_does_not_matter(rows: list[Row], seed: Random, nms: float) -> None:
    shuffled = list(rows)
    seed.shuffle(shuffled)
    found = kept(select(scored(rows), SIZE, nms=nms, most=6))
    assert found == kept(select(scored(shuffled), SIZE, nms=nms, most=6))
    for box, *_ in found:
        assert 0 <= box[0] < box[2] <= SIZE[0] and 0 <= box[1] < box[3] <= SIZE[1]
