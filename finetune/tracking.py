"""What a run tells while it goes on: a live line, a log, curves for TensorBoard and as an image.

Only the first process has a journal that writes. It does not decide anything.
"""

import json
import os
import shutil
import socket
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from regionqa.errors import TrainingError

LOG = "log.jsonl"
CURVES = "curves.png"
BOARD = "tensorboard"
LINE_EVERY = 10.0
"""Seconds between progress lines where stderr is no terminal."""


@dataclass(frozen=True)
class LogEntry:
    """One line of the log: a step, or a measurement on held-out records."""

    stage: str
    step: int
    """Counted from 1 in each stage."""
    loss: float
    """Mean over learned tokens."""
    accuracy: float
    """Share of answers with every token right, each given the right ones before it."""
    rate: float | None = None
    """Learning rate; None for a measurement."""
    tokens: int = 0
    """Tokens that were learned from."""
    seconds: float = 0.0
    """Training time so far."""
    held_out: bool = False
    """Whether it was measured on held-out records."""


class TrainingLog:
    """Writes entries as they come. A context manager: it closes its files and its bar."""

    def __init__(
        self,
        folder: Path,
        *,
        writes: bool = True,
        quiet: bool = False,
        stream: TextIO | None = None,
    ) -> None:
        self._folder = folder
        self._writes = writes
        self._stream = stream or sys.stderr
        self._quiet = quiet or not writes
        self._bar: Any = None
        self._task: Any = None
        self._board: TensorBoardWriter | None = None
        self._last_line = 0.0
        self._file: TextIO | None = None

    def __enter__(self) -> Self:
        if self._writes:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._file = (self._folder / LOG).open("a", encoding="utf-8")
            # anew from the log: a resumed run does some steps again, and forgets the first time
            shutil.rmtree(self._folder / BOARD, ignore_errors=True)
            self._board = TensorBoardWriter(self._folder / BOARD)
            for entry in read_log(self._folder):
                show_on_board(self._board, entry)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop_bar()
        if self._file and self._board:
            with suppress(OSError):  # what is on the disk is whole lines; the rest was told before
                self._file.close()
                self._board.close()
                draw_curves(read_log(self._folder), self._folder / CURVES)

    def say(self, text: str) -> None:
        """One plain line on stderr, unless quiet."""
        if self._quiet:
            return
        if self._bar:
            self._bar.console.print(text, markup=False, highlight=False)
        else:
            print(text, file=self._stream, flush=True)

    def start_stage(self, stage: str, first: int, steps: int) -> None:
        """A stage begins, or goes on, at step `first` of `steps`."""
        self._last_line = 0.0
        if self._quiet or not self._stream.isatty():
            return
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
        )

        self.stop_bar()
        self._bar = Progress(
            TextColumn(stage),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[state]}"),
            console=Console(file=self._stream),
            transient=True,
        )
        self._bar.start()
        self._task = self._bar.add_task(stage, total=steps, completed=first, state="")

    def stop_bar(self) -> None:
        """Take the live bar away."""
        if self._bar:
            self._bar.stop()
            self._bar = None

    def add(self, entry: LogEntry, steps: int) -> None:
        """Write an entry; `steps`: how many the stage has. TrainingError where the disk is full."""
        if self._file is None or self._board is None:
            return
        try:
            self._file.write(json.dumps(without_defaults(entry)) + "\n")
            self._file.flush()
            show_on_board(self._board, entry)
        except OSError as error:
            raise TrainingError(
                f"{self._folder}: cannot be written: {error.strerror}; make room and go on from "
                "the last checkpoint with --resume"
            ) from error
        self._show(entry, steps)

    def _show(self, entry: LogEntry, steps: int) -> None:
        state = f"loss {entry.loss:.3f} accuracy {100 * entry.accuracy:.1f} %"
        if entry.held_out:
            self.say(f"{entry.stage} {entry.step}/{steps}: held-out {state}")
        elif self._bar:
            self._bar.update(self._task, completed=entry.step, state=state)
        elif time.monotonic() - self._last_line > LINE_EVERY or entry.step == steps:
            self._last_line = time.monotonic()
            pace = f"{entry.seconds:.0f} s"
            self.say(f"{entry.stage} {entry.step}/{steps}: {state} rate {entry.rate:.1e} {pace}")


def show_on_board(board: "TensorBoardWriter", entry: LogEntry) -> None:
    """An entry as points of TensorBoard's curves."""
    kind = "held-out" if entry.held_out else "training"
    board.scalar(f"{entry.stage}/{kind} loss", entry.loss, entry.step)
    board.scalar(f"{entry.stage}/{kind} accuracy", entry.accuracy, entry.step)
    if entry.rate is not None:
        board.scalar(f"{entry.stage}/learning rate", entry.rate, entry.step)


def without_defaults(entry: LogEntry) -> dict[str, Any]:
    """The entry as a line of the log."""
    return {
        name: value
        for name, value in vars(entry).items()
        if value is not None and value is not False
    }


def read_log(folder: Path) -> list[LogEntry]:
    """All entries of a run's log; a last line that a kill cut short is left out."""
    path = folder / LOG
    return list(_entries(path.read_text(encoding="utf-8"))) if path.is_file() else []


def _entries(text: str) -> Iterator[LogEntry]:
    for line in text.splitlines():
        try:
            table: Mapping[str, Any] = json.loads(line)
        except json.JSONDecodeError:
            return
        yield LogEntry(**table)


def forget_after(folder: Path, done: Sequence[str], stage: str, step: int) -> None:
    """Drop what the log says of steps that a resumed run does again.

    done: stages that are finished; stage, step: where the run goes on.
    """
    kept = [
        entry
        for entry in read_log(folder)
        if entry.stage in done or (entry.stage == stage and entry.step <= step)
    ]
    if (folder / LOG).is_file():
        partial = folder / f"{LOG}.partial"
        lines = (json.dumps(without_defaults(entry)) + "\n" for entry in kept)
        partial.write_text("".join(lines), encoding="utf-8")
        partial.replace(folder / LOG)


def draw_curves(entries: Sequence[LogEntry], path: Path) -> None:
    """Loss above, accuracy below, one column a stage; dots are held-out records."""
    if not entries:
        return
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    stages = list(dict.fromkeys(entry.stage for entry in entries))
    figure, axes = pyplot.subplots(
        2, len(stages), figsize=(5 * len(stages), 6), squeeze=False, sharex="col"
    )
    for column, stage in enumerate(stages):
        own = [entry for entry in entries if entry.stage == stage]
        for row, (name, scale) in enumerate((("loss", 1.0), ("accuracy", 100.0))):
            axis = axes[row][column]
            for held_out, style in ((False, "-"), (True, "o-")):
                points = [entry for entry in own if entry.held_out is held_out]
                steps = [entry.step for entry in points]
                values = [scale * getattr(entry, name) for entry in points]
                label = "held-out" if held_out else "training"
                axis.plot(steps, values, style, label=label, markersize=3, linewidth=1)
            axis.set_ylabel("loss a token" if name == "loss" else "answers right, %")
            axis.grid(alpha=0.3)
            axis.legend()
        axes[0][column].set_title(stage)
        axes[1][column].set_xlabel("step")
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


class TensorBoardWriter:
    """One file of events in a folder that TensorBoard can be pointed at."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        # TensorBoard reads a folder's files in the order of their names
        name = f"events.out.tfevents.{time.time_ns()}.{socket.gethostname()}.{os.getpid()}"
        self._file = (folder / name).open("wb")
        self._records = RecordWriter(self._file)
        self._write(Event(wall_time=time.time(), file_version="brain.Event:2"))

    def scalar(self, name: str, value: float, step: int) -> None:
        """One point of the curve `name`."""
        summary = Summary(value=[Summary.Value(tag=name, simple_value=value)])
        self._write(Event(wall_time=time.time(), step=step, summary=summary))

    def close(self) -> None:
        """No more points."""
        self._file.close()

    def _write(self, event: Event) -> None:
        self._records.write(event.SerializeToString())
        self._file.flush()
