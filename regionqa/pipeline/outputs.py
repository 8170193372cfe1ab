"""Everything between answers and bytes: one line each, as text, JSON, JSON lines or CSV.

It does not know how an answer came about, nor what an earlier run has written (`resume` does).
"""

import csv
import io
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Literal, Self

from regionqa.errors import OutputError
from regionqa.options import RESUMABLE, OutputFormat
from regionqa.pipeline.console import printable
from regionqa.regions import Region
from regionqa.requests import Answer

CSV_HEADER = (
    "image,width,height,boxes,labels,question,answer,model,revision,device,dtype,ms,error\n"
)
COLUMNS = tuple(CSV_HEADER.strip().split(","))
CONFIDENCE = "confidence"
WHOLE_IMAGE = "-"
"""Stands for the boxes in a text line without any: an empty column would confuse `read` and awk."""


@dataclass(frozen=True)
class OutputSettings:
    """How answers are written, and what is said of the model that gave them."""

    format: OutputFormat
    """One of the four."""
    model: str
    """The model's name."""
    revision: str
    """The model's revision."""
    device: str
    """Where the model ran."""
    dtype: str
    """The precision it ran in."""
    timing: bool = False
    """Whether `ms` is filled in; without it the same command gives the same bytes."""
    bare: bool = False
    """Whether a line of text is the answer alone, for a command that asks a single thing."""
    confidence: bool = False
    """Whether JSON and CSV say how sure the model is, after all else. Off, nothing tells of it, for
    the keys of a record are an interface."""

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of CSV."""
        return (*COLUMNS, CONFIDENCE) if self.confidence else COLUMNS

    @property
    def csv_header(self) -> str:
        """The first line of CSV."""
        return ",".join(self.columns) + "\n"

    @property
    def layout(self) -> "Layout":
        """What stands around records."""
        if self.format is OutputFormat.csv:
            return Layout(start=self.csv_header, empty=self.csv_header)
        return LAYOUTS[self.format]


@dataclass(frozen=True)
class Layout:
    """What a format puts around its records."""

    start: str = ""
    """Before the first record."""
    between: str = ""
    """Between two records."""
    end: str = ""
    """After the last record."""
    empty: str = ""
    """Instead of all that, where there are no records."""


LAYOUTS = {
    OutputFormat.text: Layout(),
    OutputFormat.json: Layout(start="[\n", between=",\n", end="\n]\n", empty="[]\n"),
    OutputFormat.jsonl: Layout(),
}


def encode(text: str) -> bytes:
    r"""UTF-8; what that cannot hold (a file name's stray byte) becomes `\udcff`, as in JSON."""
    return text.encode("utf-8", "backslashreplace")


def rounded(number: float) -> int | float:
    """A coordinate as it is written: two decimals at most, none when whole."""
    near = round(float(number), 2)
    return int(near) if near.is_integer() else near


def boxes_text(boxes: Iterable[Sequence[float]]) -> str:
    """Boxes on one line: `10,20,200,300;5,5,20,20.5`; empty for none."""
    return ";".join(",".join(str(rounded(number)) for number in box) for box in boxes)


def request_boxes(regions: Iterable[Region]) -> str:
    """The boxes of regions on one line."""
    return boxes_text(region.box.xyxy for region in regions)


def as_record(answer: Answer, settings: OutputSettings) -> dict[str, object]:
    """The JSON object of one answer; its keys and their order are part of the interface."""
    request, error = answer.request, answer.error
    image = request.source
    sureness = answer.confidence
    told = {CONFIDENCE: None if sureness is None else round(sureness, 3)}
    return {
        "image": request.image,
        "width": image.width if image else None,
        "height": image.height if image else None,
        "regions": [
            {"id": number, "box": [rounded(n) for n in region.box.xyxy], "label": region.label}
            for number, region in enumerate(request.regions, start=1)
        ],
        "question": request.question,
        "answer": answer.text if error is None else None,
        "model": settings.model,
        "revision": settings.revision,
        "device": settings.device,
        "dtype": settings.dtype,
        "ms": round(answer.seconds * 1000, 1) if settings.timing and error is None else None,
        "error": str(error) if error is not None else None,
        **(told if settings.confidence else {}),
    }


def as_json(answer: Answer, settings: OutputSettings) -> str:
    """One answer as a JSON object on one line, without a line end."""
    return json.dumps(as_record(answer, settings), ensure_ascii=False)


def as_csv(answer: Answer, settings: OutputSettings) -> str:
    """One answer as a CSV record under the settings' columns.

    As RFC 4180 has it, but lines end in a bare newline.

    What JSON writes as null is empty here. Labels are joined by `;` in the order of the boxes, and
    a `;` inside one becomes a comma.
    """
    regions = answer.request.regions
    labels = ";".join((region.label or "").replace(";", ",") for region in regions)
    cells = as_record(answer, settings) | {
        "boxes": request_boxes(regions),
        "labels": labels if any(region.label for region in regions) else "",
    }
    line = io.StringIO()
    # with "\r\n" as its line end, every version of the csv module quotes a lone \r or \n
    csv.writer(line, lineterminator="\r\n").writerow([cells[column] for column in settings.columns])
    return line.getvalue().removesuffix("\r\n") + "\n"


def as_text(answer: Answer, *, bare: bool) -> str:
    """One answer as a line for people and pipes: image, boxes and answer with tabs between.

    Control characters, tabs and line ends among them, become spaces. bare: only the answer.
    """
    request = answer.request
    boxes = request_boxes(request.regions) or WHOLE_IMAGE
    fields = [answer.text] if bare else [request.image, boxes, answer.text]
    return "\t".join(map(printable, fields)) + "\n"


def error_text(answer: Answer) -> str:
    """Why there is no answer, as one line that names the image."""
    image, message = answer.request.image, str(answer.error)
    named = message if message.startswith(f"{image}:") else f"{image}: {message}"
    return printable(named)


class AnswerWriter:
    """Writes answers to stdout or a file, each in one write and one flush.

    So the first is seen at once, and a killed run loses no more than the line it was writing.
    Use it in a `with` statement; its end closes the JSON array, and the file.
    """

    failed: int
    """Answers so far that were errors."""

    def __init__(
        self,
        settings: OutputSettings,
        report_error: Callable[[str], None],
        out: Path | None = None,
        *,
        append: bool = False,
    ) -> None:
        """Prepare; nothing is opened yet.

        report_error: takes the line for an answer that failed, in the text format; in the other
            formats such an answer is a record like any other.
        out: the file; None: stdout. append: go on after what the file holds, rather than anew.
        """
        self.failed = 0
        self._settings = settings
        self._layout = settings.layout
        self._report_error = report_error
        self._out = out
        self._append = append
        self._started = False
        self._broken = False
        self._stream: BinaryIO

    def __enter__(self) -> Self:
        """Open the file; OutputError where that fails."""
        if self._out is None:
            self._stream = sys.stdout.buffer
        else:
            self._stream = _open(self._out, "ab" if self._append else "wb")
            self._started = self._append and self._stream.tell() > 0
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Complete and close; quiet where a write has already failed."""
        try:
            if not self._broken and (self._started or kind is None):
                self._put(self._layout.end if self._started else self._layout.empty)
        finally:
            if self._out is not None:
                self._close()

    def write(self, answer: Answer) -> None:
        """Write one answer.

        Raises OutputError where that fails, and BrokenPipeError where nobody reads any more.
        """
        if answer.error is not None:
            self.failed += 1
        if self._settings.format is not OutputFormat.text:
            self._put_record(self._render(answer))
        elif answer.error is not None:
            self._report_error(error_text(answer))
        else:
            self._put_record(as_text(answer, bare=self._settings.bare))

    def _render(self, answer: Answer) -> str:
        match self._settings.format:
            case OutputFormat.csv:
                return as_csv(answer, self._settings)
            case OutputFormat.jsonl:
                return as_json(answer, self._settings) + "\n"
            case _:
                return as_json(answer, self._settings)

    def _put_record(self, record: str) -> None:
        self._put((self._layout.between if self._started else self._layout.start) + record)
        self._started = True

    def _put(self, text: str) -> None:
        try:
            self._stream.write(encode(text))
            self._stream.flush()
        except OSError as error:
            self._broken = True
            if isinstance(error, BrokenPipeError):
                raise
            raise self._cannot_go_on(error) from error

    def _close(self) -> None:
        try:
            self._stream.close()
        except OSError as error:
            # closing tries once more what a failed write has left over
            if not self._broken:
                raise self._cannot_go_on(error) from error

    def _cannot_go_on(self, error: OSError) -> OutputError:
        resumable = self._out is not None and self._settings.format in RESUMABLE
        again = "run again with --resume" if resumable else "run again"
        return OutputError(
            f"{self._out or 'stdout'}: cannot be written: {error.strerror}; "
            f"the answers before are kept; put that right, then {again}"
        )


def _open(path: Path, mode: Literal["ab", "wb"]) -> BinaryIO:
    try:
        return path.open(mode)
    except FileNotFoundError:
        raise OutputError(f"{path}: there is no folder {path.parent}; make it first") from None
    except IsADirectoryError:
        raise OutputError(f"{path}: is a folder; name a file") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = getattr(error, "strerror", None) or str(error)
        raise OutputError(f"{path}: cannot be opened: {reason}; name another file") from error
