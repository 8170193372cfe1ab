"""Progress of a batch on stderr: parts, requests, rate, time left, and errors by reason."""

import sys
import time
from collections import Counter
from collections.abc import Callable

from regionqa.data.english import counted
from regionqa.pipeline.console import Console

EVERY = 30.0
"""Seconds between lines of progress where stderr is no terminal; there, one."""
REASONS = 20
"""Reasons of errors that are printed one by one."""
FIRST = 10
"""Warnings that are printed as they come."""


class BatchProgress:
    """Counts what is done, and reports it at intervals."""

    def __init__(
        self,
        console: Console,
        total: float,
        parts: int,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Start counting.

        Args:
            console: Where it is reported.
            total: Sum of the weights of the parts that are to be answered.
            parts: Their number.
            clock: Seconds.
        """
        self._console = console
        self._total, self._parts = total, parts
        self._clock = clock
        self._begun = self._told = clock()
        self._every = 1.0 if sys.stderr.isatty() else EVERY
        self._done = 0.0
        self._finished = 0
        self.requests = 0
        """Requests that are answered or failed."""
        self.errors: Counter[str] = Counter()
        """Errors by reason."""
        self._warnings = 0

    def warn(self, lines: list[str]) -> None:
        """Print the first warnings, and count the others."""
        for line in lines:
            self._warnings += 1
            if self._warnings <= FIRST:
                self._console.warn(line)

    def part(self, weight: float, requests: int, errors: list[str]) -> None:
        """Count a written part, and report progress at most once in an interval."""
        self._done += weight
        self._finished += 1
        self.requests += requests
        self.errors.update(errors)
        now = self._clock()
        if now - self._told >= self._every and self._finished < self._parts:
            self._told = now
            self._console.note(self.line())

    def line(self) -> str:
        """Return a line about what is done and how long the rest takes."""
        seconds = self._clock() - self._begun
        text = (
            f"{self._finished:,} of {counted(self._parts, 'part')}, "
            f"{counted(self.requests, 'request')}, {self.requests / max(seconds, 1e-9):,.1f} a "
            f"second, {counted(self.errors.total(), 'error')}"
        )
        if 0 < self._done < self._total:
            left = seconds * (self._total - self._done) / self._done
            text += f", {duration(left)} left"
        return text

    def finish(self) -> None:
        """Report what was done, and how often each error occurred."""
        if self._parts:
            seconds = duration(self._clock() - self._begun)
            self._console.note(f"{self.line()}; took {seconds}")
        if self._warnings > FIRST:
            more = counted(self._warnings - FIRST, "further warning")
            self._console.warn(f"{more} not shown")
        for reason, count in self.errors.most_common(REASONS):
            self._console.error(f"{counted(count, 'error')}: {reason}")
        if len(self.errors) > REASONS:
            rest = self.errors.total() - sum(n for _, n in self.errors.most_common(REASONS))
            self._console.error(f"{counted(rest, 'error')} for other reasons; see the rows")


def duration(seconds: float) -> str:
    """Write a time for people: `8 s`, `12 min`, `3 h 20 min`, `4 days 2 h`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 100:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min"
    days, hours = divmod(hours, 24)
    return f"{days} days {hours} h"
