"""Results for people and for programs: tables of text, and one JSON document.

It does not print, nor does it know how a figure came about.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from regionqa.errors import OutputError
from regionqa.evaluation.metrics.statistics import Difference, Estimate, Figure
from regionqa.evaluation.results import Comparison, EvalResult, FigureEstimate

SHOWN = 12
"""Rows of a long group that are printed; JSON holds all."""
UNPRINTED = ("confidence", "coverage")
"""Listings that JSON holds alone, as an image tells them better."""


@dataclass(frozen=True)
class Table:
    """Rows under a header; the first column is text, the others are mostly numbers."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def tables(result: EvalResult) -> list[Table]:
    """What is printed of one model's evaluation."""
    where = f"on {result.device}" if result.device else ""
    about = f"{result.judged.task}: {result.model} {result.revision} {where}"
    found = [Table(" ".join(about.split()), _HEADER, tuple(map(_row, result.figures)))]
    for name, group in result.groups.items():
        rows = tuple(map(_row, group[:SHOWN]))
        more = f" (the first {SHOWN} of {len(group)})" if len(group) > SHOWN else ""
        found.append(Table(f"by {name}{more}", _HEADER, rows))
    for name, listing in result.judged.listings.items():
        if listing and name not in UNPRINTED:
            header = tuple(listing[0])
            rows = tuple(tuple(map(_cell, row.values())) for row in listing)
            found.append(Table(name, header, rows))
    return found


def comparison_tables(result: Comparison) -> list[Table]:
    """What is printed of two models side by side."""
    first, second = result.first, result.second
    header = ("", first.model, second.model, "difference", "95 % interval", "p", "of")
    if first.model == second.model:
        header = ("", "first", "second", *header[3:])
    pairs = _pairs(result)
    found = [Table(f"{first.judged.task}: {first.model} and {second.model}", header, pairs)]
    for name, group in result.groups.items():
        rows = zip(first.groups[name], second.groups[name], group, strict=True)
        lines = tuple(_pair(*row) for row in rows)
        more = f" (the first {SHOWN} of {len(lines)})" if len(lines) > SHOWN else ""
        found.append(Table(f"by {name}{more}", header, lines[:SHOWN]))
    if result.mcnemar:
        only_first, only_second, p = result.mcnemar
        rows_of = (("McNemar, exact", str(only_first), str(only_second), _p(p)),)
        found.append(Table("right where the other is wrong", ("", *header[1:3], "p"), rows_of))
    return found


def lines(table: Table) -> list[str]:
    """A table as aligned text: columns of numbers to the right, others to the left."""
    cells = [table.header, *table.rows]
    widths = [max(len(row[column]) for row in cells) for column in range(len(table.header))]
    numbers = [is_number_column(table, column) for column in range(len(table.header))]
    rendered = [table.title]
    for row in cells:
        parts = zip(row, widths, numbers, strict=True)
        padded = (cell.rjust(width) if right else cell.ljust(width) for cell, width, right in parts)
        rendered.append("  ".join(padded).rstrip())
    return [line for line in rendered if line.strip()]


def is_number_column(table: Table, column: int) -> bool:
    """Whether the cells under a header begin like numbers, or say that there is none."""
    cells = [row[column] for row in table.rows]
    return column > 0 and all(cell[:1] in "-+<0123456789" for cell in cells)


def document(result: EvalResult) -> dict[str, object]:
    """Everything that was found, as JSON holds it; shares are in percent."""
    judged = result.judged
    return {
        "task": judged.task,
        "model": result.model,
        "revision": result.revision,
        "device": result.device,
        "settings": dict(result.settings),
        "items": len(judged.items),
        "images": len(set(judged.images)),
        "failed": result.failed,
        "figures": list(map(_figure, result.figures)),
        "groups": {name: list(map(_figure, group)) for name, group in result.groups.items()},
        "listings": {name: list(map(_plain, rows)) for name, rows in judged.listings.items()},
    }


def comparison_document(result: Comparison) -> dict[str, object]:
    """Both models' documents, and their differences (the second less the first)."""
    pairs = zip(_shared(result)[0], result.differences, strict=True)
    groups = {
        name: [_difference(told.figure, each) for told, each in zip(result.first.groups[name],
                                                                   group, strict=True)]
        for name, group in result.groups.items()
    }  # fmt: skip
    only = result.mcnemar
    return {
        "first": document(result.first),
        "second": document(result.second),
        "differences": [_difference(told.figure, each) for told, each in pairs],
        "groups": groups,
        "mcnemar": only
        and {"only_first_right": only[0], "only_second_right": only[1], "p": only[2]},
    }


def write_json(path: Path, content: Mapping[str, object]) -> None:
    """The document as a file; OutputError where it cannot be written."""
    text = json.dumps(content, ensure_ascii=False, indent=1, allow_nan=False) + "\n"
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise OutputError(
            f"{path}: cannot be written: {error.strerror}; name another file"
        ) from error


_HEADER = ("", "value", "95 % interval", "of")


def _row(told: FigureEstimate) -> tuple[str, ...]:
    figure, estimate = told.figure, told.estimate
    return figure.name, _value(estimate.value, figure), _interval(estimate, figure), _n(figure)


def _pairs(result: Comparison) -> tuple[tuple[str, ...], ...]:
    rows = zip(*_shared(result), result.differences, strict=True)
    return tuple(_pair(*row) for row in rows)


def _shared(result: Comparison) -> tuple[list[FigureEstimate], list[FigureEstimate]]:
    """The figures that both models have, in the order of each."""
    keys = [{told.figure.key for told in each.figures} for each in (result.first, result.second)]
    both = keys[0] & keys[1]
    first, second = (
        [told for told in each.figures if told.figure.key in both]
        for each in (result.first, result.second)
    )
    return first, second


def _pair(first: FigureEstimate, second: FigureEstimate, difference: Difference) -> tuple[str, ...]:
    figure = first.figure
    return (
        figure.name,
        _value(first.estimate.value, figure),
        _value(second.estimate.value, figure),
        _value(difference.estimate.value, figure, sign="+"),
        _interval(difference.estimate, figure, sign="+"),
        _p(difference.p),
        _n(figure),
    )


def _scaled(value: float, figure: Figure) -> float:
    return 100 * value if figure.percent else value


def _value(value: float, figure: Figure, sign: str = "") -> str:
    if math.isnan(value):
        return "-"
    scaled = _scaled(value, figure)
    return f"{scaled:{sign}.1f} %" if figure.percent else f"{scaled:{sign}.2f}"


def _interval(estimate: Estimate, figure: Figure, sign: str = "") -> str:
    if math.isnan(estimate.low):
        return "-"
    digits = 1 if figure.percent else 2
    ends = (f"{_scaled(end, figure):{sign}.{digits}f}" for end in (estimate.low, estimate.high))
    return " to ".join(ends)


def _p(p: float) -> str:
    return "-" if math.isnan(p) else "< 0.01" if p < 0.01 else f"{p:.2f}"


def _n(figure: Figure) -> str:
    return f"{figure.count:,}"


def _figure(told: FigureEstimate) -> dict[str, object]:
    figure = told.figure
    ends = told.estimate
    return {
        "key": figure.key,
        "name": figure.name,
        "value": _number(_scaled(ends.value, figure)),
        "low": _number(_scaled(ends.low, figure)),
        "high": _number(_scaled(ends.high, figure)),
        "unit": "%" if figure.percent else "",
        "of": figure.count,
    }


def _difference(figure: Figure, difference: Difference) -> dict[str, object]:
    return _figure(FigureEstimate(figure, difference.estimate)) | {"p": _number(difference.p)}


def _plain(row: Mapping[str, object]) -> dict[str, object]:
    return {
        key: _number(value) if isinstance(value, float) else value for key, value in row.items()
    }


def _number(value: float) -> float | None:
    """JSON knows no NaN."""
    return None if math.isnan(value) else round(value, 4)


def _cell(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else " ".join(str(value).split())[:60]


def rows_of(group: Sequence[FigureEstimate]) -> list[tuple[str, float, float, float]]:
    """Name, value and interval of figures, for an image; shares in percent."""
    rows = []
    for told in group:
        ends = (told.estimate.value, told.estimate.low, told.estimate.high)
        value, low, high = (_scaled(end, told.figure) for end in ends)
        rows.append((told.figure.name, value, low, high))
    return rows
