"""Answers as text, JSON, JSON lines or CSV."""

import csv
import io
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

from regionqa.errors import ItemError, OutputError
from regionqa.files import open_output
from regionqa.options import RESUMABLE, OutputFormat
from regionqa.pipeline.console import printable
from regionqa.regions import Region
from regionqa.requests import Answer, Request

CSV_HEADER = (
    "image,width,height,boxes,labels,question,answer,model,revision,device,dtype,ms,error\n"
)
COLUMNS = tuple(CSV_HEADER.strip().split(","))
CONFIDENCE = "confidence"
CARRIED = ("id", "meta")
"""Keys of a request that come back with its answer."""
WHOLE_IMAGE = "-"
"""Boxes column of a text line about the whole image; `read` and awk would skip an empty one."""


@dataclass(frozen=True)
class OutputSettings:
    """Format of answers, and the facts about the model that records hold."""

    format: OutputFormat
    model: str
    """Name of the model."""
    revision: str
    """Revision of the model."""
    device: str
    """Device the model runs on."""
    dtype: str
    """Precision the model runs in."""
    timing: bool = False
    """Write `ms`. Without it, the same command writes the same bytes."""
    bare: bool = False
    """Write only the answer in a line of text, for a command with a single request."""
    confidence: bool = False
    """Write the confidence, as the last key of a record. It is absent by default because the keys
    of records are an interface."""
    carried: bool = False
    """Write the columns `id` and `meta` of CSV; JSON has the keys where a request has them."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of CSV."""
        confidence = (CONFIDENCE,) if self.confidence else ()
        return (*COLUMNS, *confidence, *(CARRIED if self.carried else ()))

    @property
    def csv_header(self) -> str:
        """First line of CSV."""
        return ",".join(self.columns) + "\n"

    @property
    def layout(self) -> "Layout":
        """Text around the records."""
        if self.format is OutputFormat.csv:
            return Layout(start=self.csv_header, empty=self.csv_header)
        return LAYOUTS[self.format]


@dataclass(frozen=True)
class Layout:
    """Text around the records of a format."""

    start: str = ""
    """Before the first record."""
    between: str = ""
    """Between two records."""
    end: str = ""
    """After the last record."""
    empty: str = ""
    """The whole output, if there are no records."""


LAYOUTS = {
    OutputFormat.text: Layout(),
    OutputFormat.json: Layout(start="[\n", between=",\n", end="\n]\n", empty="[]\n"),
    OutputFormat.jsonl: Layout(),
}


def encode(text: str) -> bytes:
    r"""Encode as UTF-8; undecodable bytes of file names are escaped as `\udcff`, as in JSON."""
    return text.encode("utf-8", "backslashreplace")


def rounded(number: float) -> int | float:
    """Round a coordinate to at most two decimals; an int if it is whole."""
    near = round(float(number), 2)
    return int(near) if near.is_integer() else near


def boxes_text(boxes: Iterable[Sequence[float]]) -> str:
    """Format boxes on one line: `10,20,200,300;5,5,20,20.5`; empty for none."""
    return ";".join(",".join(str(rounded(number)) for number in box) for box in boxes)


def request_boxes(regions: Iterable[Region]) -> str:
    """Format the boxes of regions on one line."""
    return boxes_text(region.box.xyxy for region in regions)


def region_fields(region: Region) -> dict[str, object]:
    """Return a region as JSON: its box, label, and mask if it has one, in run lengths."""
    mask = {} if region.mask is None else {"mask": region.mask.as_rle()}
    return {"box": [rounded(n) for n in region.box.xyxy], "label": region.label, **mask}


def as_record(answer: Answer, settings: OutputSettings) -> dict[str, object]:
    """Return the JSON object of an answer. Its keys and their order are an interface."""
    request, error = answer.request, answer.error
    image = request.source
    record: dict[str, object] = {
        "image": request.image,
        "width": image.width if image else None,
        "height": image.height if image else None,
        "regions": [
            {"id": number, **region_fields(region)}
            for number, region in enumerate(request.regions, start=1)
        ],
        "question": request.question,
        "answer": _answer_value(answer),
        "model": settings.model,
        "revision": settings.revision,
        "device": settings.device,
        "dtype": settings.dtype,
        "ms": round(answer.seconds * 1000, 1) if settings.timing and error is None else None,
        "error": str(error) if error is not None else None,
    }
    if settings.confidence:
        confidence = answer.confidence
        record[CONFIDENCE] = None if confidence is None else round(confidence, 3)
    return record | request.carried


def _answer_value(answer: Answer) -> Any:
    """Return the answer of a record: its value by a schema, else its text; None for an error."""
    if answer.error is not None:
        return None
    return answer.text if answer.value is None else answer.value


def carried_text(carried: Mapping[str, object]) -> tuple[str, str]:
    """Format the `id` and `meta` of a request or record as cells; meta is JSON, empty for none."""
    id, meta = (carried.get(key) for key in CARRIED)
    return (
        "" if id is None else str(id),
        "" if meta is None else json.dumps(meta, ensure_ascii=False),
    )


def as_json(answer: Answer, settings: OutputSettings) -> str:
    """Format an answer as a JSON object on one line, without a line end."""
    return json.dumps(as_record(answer, settings), ensure_ascii=False)


def as_csv(answer: Answer, settings: OutputSettings) -> str:
    """Format an answer as a CSV record (RFC 4180, but lines end in a bare newline).

    A null of JSON is an empty cell. Labels are joined by `;` in the order of the boxes; a `;` in a
    label becomes a comma.
    """
    regions = answer.request.regions
    labels = ";".join((region.label or "").replace(";", ",") for region in regions)
    cells = as_record(answer, settings) | {
        "boxes": request_boxes(regions),
        "labels": labels if any(region.label for region in regions) else "",
    }
    if answer.value is not None:
        cells["answer"] = answer.text
    cells |= zip(CARRIED, carried_text(answer.request.carried), strict=True)
    line = io.StringIO()
    # with "\r\n" as line terminator, every version of csv quotes a lone \r or \n
    csv.writer(line, lineterminator="\r\n").writerow([cells[column] for column in settings.columns])
    return line.getvalue().removesuffix("\r\n") + "\n"


def as_text(answer: Answer, *, bare: bool) -> str:
    """Format an answer as a line of text: image, boxes and answer, separated by tabs.

    `id` and `meta` follow where the request has them. Control characters become spaces. With
    `bare`, the line is the answer alone.
    """
    request = answer.request
    boxes = request_boxes(request.regions) or WHOLE_IMAGE
    fields = [answer.text] if bare else [request.image, boxes, answer.text]
    if request.carried:
        id, meta = carried_text(request.carried)
        fields += [id, meta] if meta else [id]
    return "\t".join(map(printable, fields)) + "\n"


def prompt_heading(request: Request) -> str:
    """Format the line above what the model is given for a request."""
    return f"prompt for {request.image}: {request.question}"


def error_text(answer: Answer) -> str:
    """Format the error of an answer as one line that names the image."""
    image, message = answer.request.image, str(answer.error)
    named = message if message.startswith(f"{image}:") else f"{image}: {message}"
    return printable(named)


class RecordWriter:
    """Write records to stdout or a file, each in one write and one flush.

    Readers see every record at once, and a run that is killed loses at most the line that it was
    writing. Use it in a `with` statement, which writes what ends the output and closes the file.
    """

    failed: int
    """Number of errors so far."""

    def __init__(
        self,
        layout: Layout,
        out: Path | None = None,
        *,
        append: bool = False,
        resumable: bool = False,
    ) -> None:
        """Prepare to write; the file is opened by `with`.

        Args:
            layout: Text around the records.
            out: The file; None: stdout.
            append: Append to the file instead of replacing it; the caller has checked what it is.
            resumable: Whether a later run can continue the file.
        """
        self.failed = 0
        self._layout = layout
        self._out = out
        self._append = append
        self._resumable = resumable and out is not None
        self._started = False
        self._broken = False
        self._stream: BinaryIO

    def __enter__(self) -> Self:
        """Open the file; OutputError if that fails."""
        if self._out is None:
            self._stream = sys.stdout.buffer
        else:
            self._stream = open_output(self._out, "ab" if self._append else "wb")
            self._started = self._append and self._stream.tell() > 0
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Write the end of the output and close the file, unless a write has failed."""
        try:
            if not self._broken and (self._started or kind is None):
                self._put(self._layout.end if self._started else self._layout.empty)
        finally:
            if self._out is not None:
                self._close()

    def put_record(self, record: str) -> None:
        """Write the text of a record.

        Raises:
            OutputError: It cannot be written.
            BrokenPipeError: The reader has gone.
        """
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
            raise self._write_error(error) from error

    def _close(self) -> None:
        try:
            self._stream.close()
        except OSError as error:
            # closing writes again what a failed write left in the buffer
            if not self._broken:
                raise self._write_error(error) from error

    def _write_error(self, error: OSError) -> OutputError:
        again = "run again with --resume" if self._resumable else "run again"
        return OutputError(
            f"{self._out or 'stdout'}: cannot be written: {error.strerror}; the answers so far are "
            f"saved; fix this, then {again}"
        )


class AnswerWriter(RecordWriter):
    """Write answers; see `RecordWriter`."""

    def __init__(
        self,
        settings: OutputSettings,
        report_error: Callable[[str], None],
        out: Path | None = None,
        *,
        append: bool = False,
    ) -> None:
        """Prepare to write; the file is opened by `with`.

        Args:
            settings: Format, and facts about the model.
            report_error: Called with a line for each error, in the text format; the other formats
                have a record for it.
            out: The file; None: stdout.
            append: Append to the file instead of replacing it; the caller has checked what it is.
        """
        resumable = settings.format in RESUMABLE
        super().__init__(settings.layout, out, append=append, resumable=resumable)
        self._settings = settings
        self._report_error = report_error
        self.masks_left_out = 0
        """Masks of regions in CSV, which holds boxes only."""

    def write(self, answer: Answer) -> None:
        """Write an answer.

        The first one decides whether a new CSV file has columns for `id` and `meta`; without them,
        a later answer that has one of the two is written as an error.

        Raises:
            OutputError: The answer cannot be written.
            BrokenPipeError: The reader has gone.
        """
        if self._settings.format is OutputFormat.csv and answer.request.carried:
            answer = self._with_columns(answer)
        if self._settings.format is OutputFormat.csv:
            self.masks_left_out += sum(each.mask is not None for each in answer.request.regions)
        if answer.error is not None:
            self.failed += 1
        if self._settings.format is not OutputFormat.text:
            self.put_record(self._render(answer))
        elif answer.error is not None:
            self._report_error(error_text(answer))
        else:
            self.put_record(as_text(answer, bare=self._settings.bare))

    def _with_columns(self, answer: Answer) -> Answer:
        """Begin a file with columns for `id` and `meta`, or say why they cannot be written."""
        if not self._started:
            self._settings = replace(self._settings, carried=True)
            self._layout = self._settings.layout
        if self._settings.carried or answer.error is not None:
            return answer
        keys = " and ".join(answer.request.carried)
        error = (
            f"{answer.request.image}: has {keys}, for which this CSV file has no column because "
            "its first request had none; put such a request first, or use --format jsonl"
        )
        return replace(answer, text="", confidence=None, error=ItemError(error))

    def _render(self, answer: Answer) -> str:
        match self._settings.format:
            case OutputFormat.csv:
                return as_csv(answer, self._settings)
            case OutputFormat.jsonl:
                return as_json(answer, self._settings) + "\n"
            case _:
                return as_json(answer, self._settings)
