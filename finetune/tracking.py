"""Progress of a run: a live line, log.jsonl, and curves for TensorBoard and as an image.

The log is the source: curves are drawn from it, again from the start where a run is resumed.
"""

import json
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

from regionqa.errors import TrainingError
from regionqa.finetune.config import StageSettings
from regionqa.finetune.distributed import ProcessGroup
from regionqa.finetune.schedule.plan import StagePlan
from regionqa.schema import without_none

LOG = "log.jsonl"
CURVES = "curves.png"
BOARD = "tensorboard"
LINE_EVERY = 10.0
"""Seconds between progress lines where stderr is no terminal."""


@dataclass(frozen=True)
class LogEntry:
    """One line of the log: a training step, or an evaluation on held-out records."""

    stage: str
    step: int
    """Counted from 1 in each stage."""
    loss: float
    """Mean over the answer tokens."""
    accuracy: float
    """Share of the answers whose every token is predicted from the right ones before it."""
    rate: float | None = None
    """Learning rate; None for an evaluation."""
    tokens: int = 0
    """Answer tokens of the step."""
    seconds: float = 0.0
    """Training time so far."""
    held_out: bool = False
    """Whether this is an evaluation on held-out records."""


class TrainingLog:
    """Write a run's progress to stderr and into a folder, from the first process only.

    A context manager: it opens and closes its files, and draws the curves at the end.
    """

    def __init__(
        self,
        folder: Path,
        processes: ProcessGroup,
        *,
        quiet: bool = False,
        stream: TextIO | None = None,
    ) -> None:
        self._folder = folder
        self._processes = processes
        self._stream = stream or sys.stderr
        self._quiet = quiet or not processes.is_first
        self._bar: Any = None
        self._task: Any = None
        self._tracker: Any = None
        self._last_line = 0.0
        self._file: TextIO | None = None

    def __enter__(self) -> Self:
        if self._processes.is_first:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._file = (self._folder / LOG).open("a", encoding="utf-8")
            # a resumed run repeats steps, which TensorBoard would show twice: start from the log
            shutil.rmtree(self._folder / BOARD, ignore_errors=True)
            self._tracker = self._processes.tensorboard(BOARD, self._folder)
            for entry in read_log(self._folder):
                self._tracker.log(curve_points(entry), step=entry.step)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop_bar()
        if self._file:
            with suppress(OSError):  # a full disk: `add` has reported it, and whole lines are kept
                self._file.close()
                self._tracker.finish()
                draw_curves(read_log(self._folder), self._folder / CURVES)

    def say(self, text: str) -> None:
        """Print a line on stderr, unless quiet."""
        if self._quiet:
            return
        if self._bar:
            self._bar.console.print(text, markup=False, highlight=False)
        else:
            print(text, file=self._stream, flush=True)

    def start_stage(self, stage: str, first: int, steps: int) -> None:
        """Show the progress of a stage that starts, or continues, at step `first` of `steps`."""
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
        """Remove the live bar."""
        if self._bar:
            self._bar.stop()
            self._bar = None

    def add(self, entry: LogEntry, steps: int) -> None:
        """Write an entry of a stage of so many steps; TrainingError where the disk is full."""
        if self._file is None:
            return
        try:
            self._file.write(json.dumps(without_defaults(entry)) + "\n")
            self._file.flush()
            self._tracker.log(curve_points(entry), step=entry.step)
        except OSError as error:
            raise TrainingError(
                f"{self._folder}: cannot be written: {error.strerror}; make room and continue from "
                "the last checkpoint with --resume"
            ) from error
        self._show(entry, steps)

    def _show(self, entry: LogEntry, steps: int) -> None:
        state = f"loss {entry.loss:.3f} accuracy {100 * entry.accuracy:.1f} %"
        if entry.held_out:
            self.say(f"{entry.stage} {entry.step}/{steps}: held-out {state}")
        elif self._bar:
            self._bar.update(self._task, completed=entry.step, total=steps, state=state)
        elif time.monotonic() - self._last_line > LINE_EVERY or entry.step == steps:
            self._last_line = time.monotonic()
            pace = f"{entry.seconds:.0f} s"
            self.say(f"{entry.stage} {entry.step}/{steps}: {state} rate {entry.rate:.1e} {pace}")


def curve_points(entry: LogEntry) -> dict[str, float]:
    """Return an entry as points of TensorBoard's curves, by their names."""
    kind = "held-out" if entry.held_out else "training"
    points = {
        f"{entry.stage}/{kind} loss": entry.loss,
        f"{entry.stage}/{kind} accuracy": entry.accuracy,
    }
    return points if entry.rate is None else {**points, f"{entry.stage}/learning rate": entry.rate}


def without_defaults(entry: LogEntry) -> dict[str, Any]:
    """Return the entry as a JSON object of the log."""
    return {
        name: value
        for name, value in vars(entry).items()
        if value is not None and value is not False
    }


def read_log(folder: Path) -> list[LogEntry]:
    """Read all entries of a run's log, without a last line that a kill cut short."""
    path = folder / LOG
    return list(_entries(path.read_text(encoding="utf-8"))) if path.is_file() else []


def _entries(text: str) -> Iterator[LogEntry]:
    for line in text.splitlines():
        try:
            table: Mapping[str, Any] = json.loads(line)
        except json.JSONDecodeError:
            return
        yield LogEntry(**table)


def truncate_log(folder: Path, done: Sequence[str], stage: str, step: int) -> None:
    """Drop the entries of steps that a resumed run repeats.

    done: finished stages. stage, step: where the run continues.
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


def describe_stage(
    name: str, settings: StageSettings, entries: list[LogEntry], plan: StagePlan | None = None
) -> dict[str, Any]:
    """Describe a stage for the card: settings, plan, and figures of the step that is kept."""
    own = [entry for entry in entries if entry.stage == name]
    if plan and plan.kept:
        own = [entry for entry in own if entry.step <= plan.kept]
    figures: dict[str, Any] = {}
    for held_out, key in ((False, "training"), (True, "held_out")):
        last = next((entry for entry in reversed(own) if entry.held_out is held_out), None)
        if last:
            figures[f"{key}_loss"] = round(last.loss, 4)
            figures[f"{key}_answers_right"] = round(last.accuracy, 4)
            figures["steps"] = last.step
    planned = {"plan": without_none(asdict(plan))} if plan else {}
    return {"name": name, **figures, **planned, "settings": without_none(asdict(settings))}


def draw_curves(entries: Sequence[LogEntry], path: Path) -> None:
    """Plot loss above accuracy, one column for each stage; dots are held-out evaluations."""
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
            axis.set_ylabel("loss per token" if name == "loss" else "right answers, %")
            axis.grid(alpha=0.3)
            axis.legend()
        axes[0][column].set_title(stage)
        axes[1][column].set_xlabel("step")
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    pyplot.close(figure)
