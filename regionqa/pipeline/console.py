"""Messages and progress on stderr."""

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypeVar

from regionqa.errors import CONTROLS

if TYPE_CHECKING:
    from rich.progress import Progress

Item = TypeVar("Item")


def printable(text: str) -> str:
    """Replace control characters, line ends among them, by spaces."""
    return CONTROLS.sub(" ", text)


class Console:
    """Warnings and errors on stderr, and a progress bar where that is a terminal.

    Use it in a `with` statement, which removes the bar at its end.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet
        self._progress: Progress | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._progress is not None:
            self._progress.stop()

    def error(self, line: str) -> None:
        """Print why an item failed."""
        self._print(f"regionqa: {printable(line)}")

    def note(self, line: str) -> None:
        """Print a remark, unless quiet."""
        if not self._quiet:
            self._print(f"regionqa: {printable(line)}")

    def warn(self, line: str) -> None:
        """Print a warning, unless quiet."""
        if not self._quiet:
            self._print(f"regionqa: warning: {printable(line)}")

    def show(self, heading: str, lines: Iterable[str]) -> None:
        """Print a heading and lines below it, indented, also when quiet."""
        self._print("\n  ".join(map(printable, [heading, *lines])))

    def track(
        self, items: Iterable[Item], description: str, total: int | None = None
    ) -> Iterable[Item]:
        """Pass items on, counted by the progress bar if there is one."""
        if self._quiet or not sys.stderr.isatty():
            return items
        if self._progress is None:
            self._progress = _progress_bar()
            self._progress.start()
        return self._progress.track(items, total=total, description=description)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Remove the bar while something else writes to what may be the same terminal."""
        if self._progress is None:
            yield
            return
        self._progress.stop()
        try:
            yield
        finally:
            self._progress.start()

    def _print(self, line: str) -> None:
        with self.paused():
            print(line, file=sys.stderr, flush=True)


def _progress_bar() -> "Progress":
    from rich.console import Console as Terminal
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=Terminal(stderr=True),
        transient=True,
    )
