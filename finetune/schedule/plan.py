"""Plans: steps, evaluations and held-out images, where settings do not say them.

A stage whose settings name neither steps nor epochs gets a plan from the number of its records. The
plans of a run, what changed them, and how stages ended are the table [plan] of its settings file,
so that a resumed run follows them.
"""

import math
import time
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import tomli_w

from regionqa.data.english import counted
from regionqa.data.records import Record
from regionqa.errors import BundleError, TrainingError, UsageError
from regionqa.files import write_whole
from regionqa.finetune.config import SETTINGS, FinetuneSettings
from regionqa.finetune.distributed import ProcessGroup
from regionqa.finetune.schedule.pace import Clock
from regionqa.finetune.settings_files import read_saved
from regionqa.schema import from_table, without_none

DRAWS = 160
"""Records that a stage draws, times the square root of their number: 20 passes over 64 records, 2
passes over 6,400."""
FEWEST, MOST = 100, 4000
"""Bounds of planned steps."""
FEWEST_DRAWS = 1200
"""Least number of records that a stage draws."""
ALIGN_SHARE = 0.25
"""Share of the planned steps of a run that its first stage takes where there are two."""
EVALUATIONS, CLOSEST = 20, 10
"""Evaluations of a planned stage, and least steps between two of them."""
EVALUATE_EVERY = 100
"""Steps between evaluations of a stage without a plan."""
PATIENCE = 5
"""Evaluations without a lower held-out loss after which a planned stage ends."""
HELD_OUT, FEWEST_HELD_OUT, MOST_HELD_OUT = 0.1, 4, 500
"""Share of the images to hold out, and, for planned runs, bounds of their number. Fewer say little
about a model and are missed in training, so none are held out."""
MOST_EVALUATED = 250
"""Most held-out records that an evaluation of a planned stage uses."""
RESERVE = 0.1
"""Share of --max-minutes that is kept for writing and asking the result."""


@dataclass(frozen=True)
class PlannedChange:
    """A change of a stage's steps, by the time that was left."""

    step: int
    """Finished steps when it was decided."""
    steps: int


@dataclass(frozen=True, kw_only=True)
class StagePlan:
    """The plan of a stage, and how the stage ended."""

    steps: int
    evaluate_every: int
    patience: int
    """Evaluations without a lower held-out loss after which the stage ends; 0: nothing is held
    out, so it does not end early and its last step is the result."""
    changes: tuple[PlannedChange, ...] = ()
    taken: int | None = None
    """Steps that were taken; None while the stage is not finished."""
    kept: int | None = None
    """Step whose weights are the result."""
    stopped: str | None = None
    """Why it ended."""

    def steps_at(self, done: int) -> int:
        """Return the steps of the stage as planned when `done` of them are finished."""
        known = [change.steps for change in self.changes if change.step <= done]
        return known[-1] if known else self.steps


@dataclass(frozen=True, kw_only=True)
class RunPlan:
    """The plans of a run."""

    max_minutes: float | None = None
    """Time limit that the plans keep to."""
    seconds: float | None = None
    """Training time that it leaves."""
    stages: Mapping[str, StagePlan] = field(default_factory=dict)


def planned_steps(records: int, per_step: int) -> int:
    """Plan the steps of a stage that draws `per_step` of so many records in each."""
    draws = max(DRAWS * math.sqrt(records), FEWEST_DRAWS)
    return min(max(math.ceil(draws / max(1, per_step)), FEWEST), MOST)


def evaluated(held_out: tuple[Record, ...]) -> tuple[Record, ...]:
    """Return the held-out records that the evaluations of a planned stage use."""
    return held_out[:: math.ceil(len(held_out) / MOST_EVALUATED) or 1]


def share_to_hold_out(settings: FinetuneSettings, images: int) -> float:
    """Return the share of so many images to hold out."""
    if settings.held_out_share is not None:
        return settings.held_out_share
    if not settings.plans:
        return HELD_OUT
    return 0.0 if HELD_OUT * images < FEWEST_HELD_OUT else min(HELD_OUT, MOST_HELD_OUT / images)


class Planner:
    """The plans of a run and the file that holds them; the same in every process."""

    def __init__(
        self,
        training: Path,
        settings: FinetuneSettings,
        processes: ProcessGroup,
        max_minutes: float | None = None,
        clock: Clock = time.monotonic,
        started: float | None = None,
    ) -> None:
        """Read the plans of a resumed run, or begin with none.

        Args:
            training: Folder of the run's own files, with its settings.
            settings: The settings of the run.
            processes: The processes of the run.
            max_minutes: Time limit, if there is one.
            clock: Tells the seconds by which time is measured.
            started: What it told when the run started, from which time is limited; None: now.

        Raises:
            UsageError: A resumed run was planned for another time limit.
        """
        self._path = training / SETTINGS
        self._settings = settings
        self._processes = processes
        self.clock = clock
        saved = read_saved(self._path).get("plan")
        if saved is None:
            seconds = None
            if max_minutes is not None and settings.plans:
                reserved = 60 * max_minutes * (1 - RESERVE)
                elapsed = 0.0 if started is None else clock() - started
                seconds = processes.agreed(max(1.0, reserved - elapsed))
            self.plan = RunPlan(max_minutes=max_minutes if seconds else None, seconds=seconds)
            return
        try:
            self.plan = from_table(RunPlan, saved, f"{self._path}: plan")
        except BundleError as error:
            raise UsageError(f"{error}; start a new run in another folder") from error
        if settings.plans and max_minutes not in (None, self.plan.max_minutes):
            known = self.plan.max_minutes
            raise UsageError(
                f"--max-minutes {max_minutes:g}: this run was planned "
                + (f"for {known:g} minutes" if known else "without a time limit")
                + "; leave it out, or start a new run in another folder"
            )

    def stage(self, name: str, records: int, per_step: int, held_out: int) -> StagePlan:
        """Return the plan of a stage, made from the number of its records where it has none.

        Args:
            name: Of the stage.
            records: Records that it trains on.
            per_step: How many of them a step draws.
            held_out: Held-out records.
        """
        if name not in self.plan.stages:
            steps = planned_steps(records, per_step)
            if name == "align" and len(self._settings.run) > 1:
                steps = math.ceil(steps * ALIGN_SHARE)
            every = self._settings.evaluate_every
            self.update(
                name,
                StagePlan(
                    steps=steps,
                    evaluate_every=every or max(CLOSEST, round(steps / EVALUATIONS)),
                    patience=PATIENCE if held_out else 0,
                ),
            )
        return self.plan.stages[name]

    def update(self, name: str, plan: StagePlan) -> None:
        """Replace the plan of a stage, and write the file from the first process.

        Raises:
            TrainingError: It cannot be written.
        """
        self.plan = replace(self.plan, stages={**self.plan.stages, name: plan})
        if not self._processes.is_first:
            return
        table: dict[str, Any] = tomllib.loads(self._path.read_text(encoding="utf-8"))
        table["plan"] = without_none(asdict(self.plan))
        try:
            with write_whole(self._path) as file:
                file.write(tomli_w.dumps(table).encode())
        except OSError as error:
            raise TrainingError(
                f"{self._path}: cannot be written: {error.strerror}; make room and continue with "
                "--resume"
            ) from error

    def seconds_of(self, name: str) -> float | None:
        """Return the training time after which a stage ends, earlier stages included."""
        seconds = self.plan.seconds
        first = name == "align" and len(self._settings.run) > 1
        return seconds * ALIGN_SHARE if seconds and first else seconds


def describe_plan(plan: StagePlan, records: int, per_step: int, held_out: int) -> str:
    """Describe a plan in one line, for the start of its stage."""
    passes = plan.steps * per_step / records
    text = f"planned from {counted(records, 'record')}: {passes:.3g} passes"
    if plan.steps == MOST:
        text += f", the most steps that are planned; for more say --epochs {max(1, round(passes))}"
    if not plan.patience:
        return f"{text}; too few images to hold some out, so the last step is kept"
    return (
        f"{text}; every {plan.evaluate_every} steps the loss on {counted(held_out, 'record')} "
        f"that {'is' if held_out == 1 else 'are'} held out; the step with the lowest is kept, and "
        f"{plan.patience} evaluations without a lower one end the stage"
    )
