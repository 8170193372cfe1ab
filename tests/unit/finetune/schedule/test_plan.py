"""Plans from the number of records, and the file that holds them."""

import os
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from helpers.training import plain_record
from regionqa.errors import TrainingError, UsageError
from regionqa.finetune.config import DEFAULT, PVIT, FinetuneSettings, Stages
from regionqa.finetune.distributed import ProcessGroup
from regionqa.finetune.schedule.plan import (
    FEWEST,
    MOST,
    MOST_EVALUATED,
    PATIENCE,
    PlannedChange,
    Planner,
    StagePlan,
    describe_plan,
    evaluated,
    planned_steps,
    share_to_hold_out,
)
from regionqa.finetune.settings_files import read_saved

SETTINGS = FinetuneSettings(data=("mine.jsonl",), model="starter", stages=DEFAULT)


def alone(**more: object) -> ProcessGroup:
    values = {"is_first": True, "agreed": lambda value: value, **more}
    return cast(ProcessGroup, SimpleNamespace(**values))


@pytest.fixture
def training(tmp_path: Path) -> Path:
    """A run's folder with saved settings."""
    (tmp_path / "settings.toml").write_text(
        '[settings]\ndata = ["mine.jsonl"]\n[settings.stages.align]\n[settings.stages.instruct]\n'
    )
    return tmp_path


def test_more_records_get_more_steps_and_fewer_passes() -> None:
    counts = (1, 10, 60, 300, 1000, 10_000, 1_000_000)
    for per_step in (4, 16):
        steps = [planned_steps(count, per_step) for count in counts]
        assert steps == sorted(steps)
        passes = [s * per_step / count for s, count in zip(steps, counts, strict=True)]
        assert passes == sorted(passes, reverse=True)
        assert passes[2] > 15, "a few records are seen often"
        assert min(steps) >= FEWEST and max(steps) == MOST
    assert planned_steps(60, 0) >= planned_steps(60, 1), "all of a step may be replayed"


@pytest.mark.parametrize(
    ("images", "share", "expected"),
    [(39, None, 0.0), (40, None, 0.1), (5000, None, 0.1), (50_000, None, 0.01), (2, 0.5, 0.5),
     (50_000, 0.2, 0.2)],
)  # fmt: skip
def test_few_images_are_all_trained_on(images: int, share: float | None, expected: float) -> None:
    assert share_to_hold_out(replace(SETTINGS, held_out_share=share), images) == expected


def test_without_a_plan_a_tenth_is_held_out() -> None:
    for stages in (PVIT, Stages(DEFAULT.align, replace(DEFAULT.instruct, steps=3))):
        assert share_to_hold_out(replace(SETTINGS, stages=stages), 2) == 0.1
    only = replace(SETTINGS, stages=Stages(PVIT.align, DEFAULT.instruct), run=("instruct",))
    assert share_to_hold_out(only, 2) == 0


def test_evaluations_use_a_sample_of_many_held_out_records() -> None:
    records = tuple(plain_record(number, number) for number in range(MOST_EVALUATED * 2 + 1))
    assert evaluated(records) == records[::3]
    assert evaluated(records[:MOST_EVALUATED]) == records[:MOST_EVALUATED]
    assert evaluated(()) == ()


def test_plans_are_made_once_and_kept_with_the_settings(training: Path) -> None:
    planner = Planner(training, SETTINGS, alone())
    align = planner.stage("align", 54, 4, held_out=6)
    instruct = planner.stage("instruct", 54, 4, held_out=0)
    assert align.steps < instruct.steps == planned_steps(54, 4)
    assert (align.patience, instruct.patience) == (PATIENCE, 0)
    assert 10 <= instruct.evaluate_every <= instruct.steps // 10
    again = Planner(training, SETTINGS, alone())
    assert again.plan == planner.plan
    assert again.stage("instruct", 999, 4, held_out=6) == instruct, "its records were counted once"
    done = replace(instruct, taken=9, kept=5, stopped="why", changes=(PlannedChange(5, 9),))
    again.update("instruct", done)
    assert Planner(training, SETTINGS, alone()).plan.stages["instruct"] == done
    assert read_saved(training / "settings.toml")["settings"]["data"] == ["mine.jsonl"]


def test_one_stage_takes_all_steps(training: Path) -> None:
    planner = Planner(training, replace(SETTINGS, run=("align",), evaluate_every=7), alone())
    plan = planner.stage("align", 54, 4, held_out=6)
    assert (plan.steps, plan.evaluate_every) == (planned_steps(54, 4), 7)


def test_other_processes_write_nothing(training: Path) -> None:
    before = (training / "settings.toml").read_bytes()
    planner = Planner(training, SETTINGS, alone(is_first=False))
    assert planner.stage("instruct", 54, 4, held_out=6).steps == planned_steps(54, 4)
    assert (training / "settings.toml").read_bytes() == before


def test_a_time_limit_is_shared_by_the_stages(training: Path) -> None:
    now = iter([130.0])
    planner = Planner(training, SETTINGS, alone(), 10.0, lambda: next(now), 100.0)
    assert planner.plan.seconds == 600 * 0.9 - 30, "a tenth is kept for the result"
    assert planner.seconds_of("instruct") == 510
    assert planner.seconds_of("align") == 510 / 4
    planner.stage("instruct", 54, 4, held_out=6)
    for given in (None, 10.0):
        assert Planner(training, SETTINGS, alone(), given).plan == planner.plan
    message = "--max-minutes 5: this run was planned for 10 minutes; leave it out, or start a new"
    with pytest.raises(UsageError, match=re.escape(message)):
        Planner(training, SETTINGS, alone(), 5.0)


def test_a_time_limit_of_stages_with_steps_is_none_of_the_plan(training: Path) -> None:
    settings = replace(SETTINGS, stages=PVIT)
    planner = Planner(training, settings, alone(), 10.0)
    assert (planner.plan.seconds, planner.seconds_of("align")) == (None, None)


def test_a_limit_that_a_run_was_not_planned_with(training: Path) -> None:
    Planner(training, SETTINGS, alone()).stage("instruct", 54, 4, held_out=6)
    with pytest.raises(UsageError, match="this run was planned without a time limit; leave it out"):
        Planner(training, SETTINGS, alone(), 5.0)


def test_a_damaged_plan_is_refused(training: Path) -> None:
    with (training / "settings.toml").open("a") as file:
        file.write("[plan]\nstages = 3\n")
    with pytest.raises(UsageError, match=r"plan: stages: .*start a new run in another folder"):
        Planner(training, SETTINGS, alone())


def test_a_full_disk(training: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, os.strerror(28))

    planner = Planner(training, SETTINGS, alone())
    monkeypatch.setattr("regionqa.finetune.schedule.plan.write_whole", full)
    with pytest.raises(TrainingError, match="cannot be written: No space left on device; make"):
        planner.stage("instruct", 54, 4, held_out=6)


def test_changes_hold_from_their_step_on() -> None:
    plan = StagePlan(
        steps=300, evaluate_every=15, patience=5,
        changes=(PlannedChange(5, 100), PlannedChange(20, 250)),
    )  # fmt: skip
    assert [plan.steps_at(done) for done in (0, 4, 5, 19, 20, 250)] == [
        300,
        300,
        100,
        100,
        250,
        250,
    ]


def test_descriptions() -> None:
    plan = StagePlan(steps=300, evaluate_every=15, patience=5)
    assert describe_plan(plan, 60, 4, 6) == (
        "planned from 60 records: 20 passes; every 15 steps the loss on 6 records that are held "
        "out; the step with the lowest is kept, and 5 evaluations without a lower one end the stage"
    )
    assert describe_plan(replace(plan, patience=0), 60, 4, 0).endswith(
        "20 passes; too few images to hold some out, so the last step is kept"
    )
    text = describe_plan(replace(plan, steps=MOST), 100_000, 4, 100)
    assert f": {MOST * 4 / 100_000:.3g} passes, the most steps that are planned; " in text
