"""The end of a planned stage: all steps taken, early stopping, or a time limit."""

from collections.abc import Callable
from dataclasses import replace
from enum import StrEnum

from regionqa.finetune.distributed import ProcessGroup
from regionqa.finetune.schedule.pace import RECENT, Pace
from regionqa.finetune.schedule.plan import PlannedChange, Planner, StagePlan

TOLERANCE = 0.05
"""Change of the number of steps, as a share, that is not worth a change of the plan."""


class StageEnding(StrEnum):
    """Why a stage ends."""

    steps = "all steps were taken"
    loss = "the held-out loss had not fallen for some time"
    time = "its time was up"


class StageControl:
    """Let a stage follow its plan, and its plan follow the time that is left."""

    def __init__(self, planner: Planner, name: str, say: Callable[[str], None]) -> None:
        self._planner = planner
        self._name = name
        self._say = say
        self._time_is_up = False

    @property
    def plan(self) -> StagePlan:
        """The plan as it stands."""
        return self._planner.plan.stages[self._name]

    def ending(self, done: int, best: int | None) -> StageEnding | None:
        """Return why the stage ends; None where it goes on.

        Args:
            done: Finished steps.
            best: The step with the lowest held-out loss, if there was an evaluation.
        """
        plan = self.plan
        if done >= plan.steps_at(done):
            return StageEnding.steps
        if self._time_is_up:
            return StageEnding.time
        if plan.patience and best is not None:
            waited = done - best >= plan.patience * plan.evaluate_every
            return StageEnding.loss if waited else None
        return None

    def review(self, done: int, seconds: float, pace: Pace, processes: ProcessGroup) -> None:
        """Shorten the stage, or lengthen it again, so that it ends within its time.

        This is decided when 5, 10, 20, 40, ... steps are finished, by the first process and for
        all; a collective call where there is a time limit. A resumed run follows the changes that
        were made before it was stopped.

        Args:
            done: Finished steps.
            seconds: Training time so far, earlier stages included.
            pace: The pace of this stage.
            processes: The processes of the run.
        """
        limit = self._planner.seconds_of(self._name)
        if limit is None:
            return
        left = processes.agreed(limit - seconds)
        self._time_is_up = left <= 0
        plan = self.plan
        if any(change.step >= done for change in plan.changes) or self._time_is_up:
            return
        if processes.agreed(pace.measured) < RECENT or not is_doubled(done):
            return
        within = int(processes.agreed(pace.steps_within(left, done)))
        steps, before = max(done, min(plan.steps, within)), plan.steps_at(done)
        if abs(steps - before) > TOLERANCE * before:
            changes = (*plan.changes, PlannedChange(done, steps))
            self._planner.update(self._name, replace(plan, changes=changes))
            self._say(f"{self._name}: {steps:,} steps instead of {before:,}, for the time limit")

    def finish(self, taken: int, kept: int, ending: StageEnding) -> None:
        """Note how the stage ended."""
        plan = replace(self.plan, taken=taken, kept=kept, stopped=str(ending))
        self._planner.update(self._name, plan)

    def describe_end(self, loss: float | None) -> str:
        """Describe the end of the stage in one line.

        loss: the held-out loss of the step that is kept.
        """
        plan = self.plan
        steps = f"step {plan.taken:,} of {plan.steps_at(plan.taken or 0):,}"
        held_out = "" if loss is None else f" with a held-out loss of {loss:.3g}"
        return f"ends at {steps}: {plan.stopped}; step {plan.kept:,} is kept{held_out}"


def is_doubled(done: int) -> bool:
    """Return whether a number of steps is 5, 10, 20, 40, ..."""
    times, rest = divmod(done, RECENT)
    return rest == 0 and times > 0 and times & (times - 1) == 0
