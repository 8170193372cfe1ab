"""Signals and time limits that stop a run before its end, with a checkpoint to resume from."""

import signal
import time
from enum import IntEnum
from types import FrameType, TracebackType
from typing import Any, Self

import torch

from regionqa.errors import RegionQAError
from regionqa.finetune.distributed import ProcessGroup


class StopReason(IntEnum):
    """Why a run stops before its end; the largest wins where processes differ."""

    none = 0
    time = 1
    interrupt = 2
    terminate = 3


STOPS = {
    StopReason.time: ("time limit reached", 3),
    StopReason.interrupt: ("interrupted", 130),
    StopReason.terminate: ("terminated by SIGTERM", 143),
}
"""Message and exit status: 3 for an unfinished run, the shell's own for signals."""


class StoppedError(RegionQAError):
    """A run stopped before its end, after saving a checkpoint."""

    def __init__(self, reason: StopReason, text: str) -> None:
        message, self.exit_status = STOPS[reason]
        super().__init__(f"{message} {text}")


class StopSignal:
    """Record signals and the time limit, for the loop to check between steps.

    A context manager that handles SIGINT and SIGTERM. A second SIGINT ends the program at once.
    """

    def __init__(self, max_minutes: float | None) -> None:
        self._deadline = time.monotonic() + 60 * max_minutes if max_minutes else None
        self._reason = StopReason.none
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> Self:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._handlers[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._reason is StopReason.interrupt and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._reason = StopReason.interrupt if number == signal.SIGINT else StopReason.terminate

    def reason(self, processes: ProcessGroup) -> StopReason:
        """Return why to stop now, the same in every process; a collective call."""
        own = self._reason
        if own is StopReason.none and self._deadline and time.monotonic() > self._deadline:
            own = StopReason.time
        if processes.count == 1:
            return own
        counts = torch.zeros(len(StopReason), device=processes.device)
        counts[own] = 1
        counts = processes.sum(counts)
        return StopReason(int(counts.nonzero().max()))
