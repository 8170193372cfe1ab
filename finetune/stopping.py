"""When a run has to stop before its end: Ctrl-C, SIGTERM or its time is up."""

import signal
import time
from enum import IntEnum
from types import FrameType, TracebackType
from typing import Any, Self

import torch

from regionqa.errors import RegionQAError
from regionqa.finetune.processes import Processes


class Reason(IntEnum):
    """Why a run stops; a larger one wins where processes differ."""

    none = 0
    time = 1
    interrupt = 2
    terminate = 3


TOLD = {
    Reason.time: ("the time is up", 3),
    Reason.interrupt: ("interrupted", 130),
    Reason.terminate: ("told to stop (SIGTERM)", 143),
}
"""What the user is told, and the exit status: the shell's own for signals, 3 for not finished."""


class StoppedError(RegionQAError):
    """A run stopped before its end, after it had saved where it stood."""

    def __init__(self, reason: Reason, text: str) -> None:
        words, self.exit_status = TOLD[reason]
        super().__init__(f"{words} {text}")


class StopWatch:
    """Notes signals and the time, for the loop to ask between steps. A context manager.

    A second Ctrl-C ends the program at once.
    """

    def __init__(self, max_minutes: float | None) -> None:
        self._deadline = time.monotonic() + 60 * max_minutes if max_minutes else None
        self._reason = Reason.none
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._reason is Reason.interrupt and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._reason = Reason.interrupt if number == signal.SIGINT else Reason.terminate

    def reason(self, processes: Processes) -> Reason:
        """Why to stop now, the same in every process; all must ask."""
        own = self._reason
        if own is Reason.none and self._deadline and time.monotonic() > self._deadline:
            own = Reason.time
        if processes.count == 1:
            return own
        counts = torch.zeros(len(Reason), device=processes.device)
        counts[own] = 1
        counts = processes.sum(counts)
        return Reason(int(counts.nonzero().max()))
