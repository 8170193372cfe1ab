"""The measured pace of a stage."""

import pytest

from regionqa.finetune.schedule.pace import Pace, about


def paced(first_pass: int | None, *steps: tuple[float, float], evaluation: float = 0.0) -> Pace:
    """A pace after steps of so many seconds of collation and of computation."""
    now = 7.0
    pace = Pace(lambda: now, first_pass, 10)
    for collating, computing in steps:
        pace.add_step(now, now + collating, now + collating + computing)
        now += collating + computing
    pace.add_evaluation(now, now + evaluation)
    return pace


def test_what_is_done_between_steps_counts() -> None:
    pace = Pace(lambda: 0.0, None, 10)
    pace.add_evaluation(0.0, 30.0)
    for number in range(5):
        began = 30.0 + 4 * number
        pace.add_step(began + 1, began + 3, began + 4)
    assert pace.seconds_left(5, 15) == pytest.approx(10 * (4 + 30 / 10))


def test_steps_are_slow_until_every_record_was_read() -> None:
    pace = paced(20, *[(3.0, 1.0)] * 5)
    assert pace.seconds_left(5, 105) == pytest.approx(15 * 3 + 100 * 1)
    assert pace.seconds_left(5, 15) == pytest.approx(10 * 4)
    assert pace.steps_within(15 * 3 + 100, 5) == 105
    assert pace.steps_within(8, 5) == 7
    never_cached = paced(None, *[(3.0, 1.0)] * 5)
    assert never_cached.seconds_left(5, 105) == pytest.approx(400)
    assert never_cached.steps_within(400, 5) == 105


def test_collation_of_cached_features_counts_after_the_first_pass() -> None:
    pace = paced(5, *[(3.0, 1.0)] * 5, *[(0.5, 1.0)] * 2)
    assert pace.seconds_left(7, 107) == pytest.approx(150)
    assert pace.steps_within(150, 7) == 107


def test_a_resumed_stage_reads_its_records_again() -> None:
    """What was measured before is not known, and features are not kept on disk."""
    pace = paced(20, *[(3.0, 1.0)] * 5)
    assert pace.seconds_left(505, 605) == pytest.approx(15 * 3 + 100)


def test_later_steps_count_more_than_the_first() -> None:
    pace = paced(None, *[(0.0, 9.0)] * 10, *[(0.0, 1.0)] * 10)
    assert pace.seconds_left(20, 120) == pytest.approx(100)
    assert pace.measured == 20


def test_evaluations_take_their_share() -> None:
    pace = paced(0, *[(0.0, 1.0)] * 5, evaluation=5.0)
    assert pace.seconds_left(5, 105) == pytest.approx(150)
    assert pace.steps_within(150, 5) == 105


def test_a_clock_that_stands_still() -> None:
    pace = paced(None, *[(0.0, 0.0)] * 5)
    assert pace.seconds_left(5, 105) == pytest.approx(0, abs=1e-6)
    assert pace.steps_within(1.0, 5) > 1000


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "5 s"), (11, "10 s"), (52, "50 s"), (58, "1 min"), (130, "2 min"), (3500, "58 min"),
     (5430, "1.5 h"), (36_100, "10.0 h")],
)  # fmt: skip
def test_times_are_said_roughly(seconds: float, text: str) -> None:
    assert about(seconds) == f"about {text}"
