"""The measured pace of a stage, and the time or the steps that are left."""

import math
from collections.abc import Callable
from statistics import fmean

Clock = Callable[[], float]
"""Returns seconds since any moment."""
RECENT = 5
"""Least number of steps that a pace is computed from."""
LEAST = 1e-9
"""Least seconds of a step, where a clock stands still."""


class Pace:
    """The time that steps and evaluations of a stage take.

    Collating a record is slow when its image is encoded, and fast when its features are cached. So
    the two parts of a step are measured apart.
    """

    def __init__(self, clock: Clock, first_pass: int | None, evaluate_every: int) -> None:
        """Begin without a measurement.

        Args:
            clock: Tells the time.
            first_pass: Steps after which every record has been read, and features are cached;
                None: they never are.
            evaluate_every: Steps between evaluations.
        """
        self._end = clock()
        self._first_pass = math.inf if first_pass is None else first_pass
        self._evaluate_every = evaluate_every
        self._steps: list[tuple[float, float]] = []
        self._evaluation = 0.0

    @property
    def measured(self) -> int:
        """Number of steps that were measured."""
        return len(self._steps)

    def add_step(self, started: float, collated: float, ended: float) -> None:
        """Add a step, with all that was done since the one before, such as saving.

        started, collated, ended: when it began, had its batches, and was over.
        """
        collating = collated - started
        self._steps.append((collating, ended - self._end - collating))
        self._end = ended

    def add_evaluation(self, started: float, ended: float) -> None:
        """Add an evaluation on held-out records; its time is no step's."""
        self._evaluation = ended - started
        self._end += self._evaluation

    def seconds_left(self, done: int, steps: int) -> float:
        """Estimate the seconds from step `done` to step `steps`."""
        collating, other = self._recent()
        slow = max(0.0, min(steps - done, self._first_pass - self.measured))
        return slow * collating + (steps - done) * other

    def steps_within(self, seconds: float, done: int) -> int:
        """Estimate how many steps there are in all if so many seconds are left."""
        collating, other = self._recent()
        slow = max(0.0, self._first_pass - self.measured)
        if seconds <= slow * (collating + other):
            return done + int(seconds / (collating + other))
        return done + int((seconds - slow * collating) / other)

    def _recent(self) -> tuple[float, float]:
        """Mean seconds of a step: to encode its records, and for all else."""
        recent = self._steps[-max(RECENT, self.measured // 2) :]
        computing = fmean(second for _, second in recent)
        computing += self._evaluation / self._evaluate_every
        if self.measured <= self._first_pass:
            return fmean(first for first, _ in recent), max(computing, LEAST)
        cached = self._steps[int(self._first_pass) :][-len(recent) :]
        return 0.0, max(computing + fmean(first for first, _ in cached), LEAST)


def about(seconds: float) -> str:
    """Say a time as a person would: "about 40 s", "about 3 min", "about 2.5 h"."""
    if seconds < 55:
        return f"about {max(5, 5 * round(seconds / 5))} s"
    if seconds < 90 * 60:
        return f"about {max(1, round(seconds / 60))} min"
    return f"about {seconds / 3600:.1f} h"
