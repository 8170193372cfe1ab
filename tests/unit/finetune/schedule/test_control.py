"""How a planned stage ends, and how its plan follows the time that is left."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from regionqa.finetune.config import DEFAULT, FinetuneSettings
from regionqa.finetune.distributed import ProcessGroup
from regionqa.finetune.schedule.control import StageControl, StageEnding, is_doubled
from regionqa.finetune.schedule.pace import Pace
from regionqa.finetune.schedule.plan import PlannedChange, Planner

NAME = "instruct"


def group(first: Any = lambda value: value) -> ProcessGroup:
    """A process; `first` gives the first process's value in place of its own."""
    return cast(ProcessGroup, SimpleNamespace(is_first=True, agreed=first))


def controlled(
    folder: Path, minutes: float | None, held_out: int = 6
) -> tuple[StageControl, list[str]]:
    """The control of a stage of 300 steps, and what it says."""
    path = folder / "settings.toml"
    if not path.is_file():
        path.write_text("[settings.stages.align]\n[settings.stages.instruct]\n")
    settings = FinetuneSettings(
        data=("mine.jsonl",), model="starter", stages=DEFAULT, run=(NAME,), evaluate_every=10
    )
    planner = Planner(folder, settings, group(), minutes)
    assert planner.stage(NAME, 50, 4, held_out).steps == 300
    lines: list[str] = []
    return StageControl(planner, NAME, lines.append), lines


def pace_of(seconds: float, steps: int) -> Pace:
    """The pace of so many steps that take so many seconds each."""
    pace = Pace(lambda: 0.0, 0, 10)
    for number in range(steps):
        pace.add_step(number * seconds, number * seconds, (number + 1) * seconds)
    return pace


@pytest.mark.parametrize(
    ("done", "best", "ending"),
    [
        (299, 299, None),
        (300, 299, StageEnding.steps),
        (149, 100, None),
        (150, 100, StageEnding.loss),
        (150, 101, None),
        (299, None, None),
    ],
)
def test_endings(tmp_path: Path, done: int, best: int | None, ending: StageEnding | None) -> None:
    control, _ = controlled(tmp_path, None)
    assert control.ending(done, best) is ending


def test_without_held_out_records_all_steps_are_taken(tmp_path: Path) -> None:
    control, _ = controlled(tmp_path, None, held_out=0)
    assert control.ending(299, None) is None
    control.finish(300, 300, StageEnding.steps)
    assert control.describe_end(None) == (
        "ends at step 300 of 300: all steps were taken; step 300 is kept"
    )


def test_the_end_is_noted_and_said(tmp_path: Path) -> None:
    control, _ = controlled(tmp_path, None)
    control.finish(150, 100, StageEnding.loss)
    again, _ = controlled(tmp_path, None)
    assert (again.plan.taken, again.plan.kept) == (150, 100)
    assert again.describe_end(0.12345) == (
        "ends at step 150 of 300: the held-out loss had not fallen for some time; step 100 is "
        "kept with a held-out loss of 0.123"
    )


def test_a_slow_stage_is_shortened_and_a_faster_one_lengthened_again(tmp_path: Path) -> None:
    control, lines = controlled(tmp_path, 2.0)  # 108 s of training
    control.review(4, 8.0, pace_of(2.0, 5), group())
    assert control.plan.steps_at(4) == 300, "5, 10, 20, ..."
    control.review(5, 8.0, pace_of(2.0, 5), group())
    assert control.plan.steps_at(5) == 5 + 50
    control.review(10, 18.0, pace_of(2.0, 10), group())
    assert len(control.plan.changes) == 1, "as it was planned"
    control.review(20, 28.0, pace_of(1.0, 20), group())
    assert control.plan.steps_at(20) == 20 + 80
    control.review(40, 30.0, pace_of(0.01, 40), group())
    assert control.plan.steps_at(40) == 300, "never more than without a limit"
    assert lines == [
        "instruct: 55 steps instead of 300, for the time limit",
        "instruct: 100 steps instead of 55, for the time limit",
        "instruct: 300 steps instead of 100, for the time limit",
    ]
    assert control.ending(41, None) is None


def test_a_stage_ends_when_its_time_is_up(tmp_path: Path) -> None:
    control, _ = controlled(tmp_path, 2.0)
    control.review(3, 107.9, pace_of(2.0, 3), group())
    assert control.ending(3, None) is None
    control.review(4, 108.0, pace_of(2.0, 4), group())
    assert control.ending(4, None) is StageEnding.time
    assert control.plan.changes == ()


def test_a_resumed_stage_follows_the_changes_that_were_made(tmp_path: Path) -> None:
    control, _ = controlled(tmp_path, 2.0)
    control.review(5, 8.0, pace_of(2.0, 5), group())
    control.review(20, 28.0, pace_of(1.0, 20), group())
    changes = control.plan.changes
    assert changes == (PlannedChange(5, 55), PlannedChange(20, 100))
    resumed, lines = controlled(tmp_path, None)
    for done in (5, 10, 20):
        resumed.review(done, 8.0, pace_of(7.0, 5), group())
    assert (resumed.plan.changes, lines) == (changes, [])
    resumed.review(40, 48.0, pace_of(2.0, 3), group())
    assert resumed.plan.changes == changes, "too few steps were measured in this process"
    resumed.review(40, 48.0, pace_of(2.0, 5), group())
    assert resumed.plan.steps_at(40) == 40 + 30


def test_the_first_process_decides(tmp_path: Path) -> None:
    """Another process has another clock, and is behind."""
    control, _ = controlled(tmp_path, 2.0)
    told = iter([100.0, 5.0, 70.0])  # seconds that are left, measured steps, steps in all
    control.review(5, 500.0, pace_of(9.0, 4), group(lambda _: next(told)))
    assert control.plan.steps_at(5) == 70
    assert control.ending(5, None) is None


def test_without_a_limit_nothing_is_reviewed(tmp_path: Path) -> None:
    control, _ = controlled(tmp_path, None)
    control.review(5, 1e9, pace_of(1e9, 5), group())
    assert control.plan.changes == ()
    assert control.ending(5, None) is None


def test_doubled_numbers() -> None:
    assert [n for n in range(200) if is_doubled(n)] == [5, 10, 20, 40, 80, 160]
