"""Results as text tables and as one JSON document."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from regionqa.evaluation.metrics.statistics import Estimate, Metric, PairedDifference
from regionqa.evaluation.results import Comparison, EvalResult, MetricEstimate, TableRows
from regionqa.files import write_whole

MAX_ROWS = 12
"""Rows of a group that are printed; JSON holds all."""
MAX_LISTED = 30
"""Rows of another table that are printed; JSON holds all."""
MAX_CELL = 60
"""Characters of a cell that are printed."""
JSON_ONLY = ("confidence", "coverage")
"""Tables that are not printed: they are curves."""
TITLES = {
    "always answering the same": "always answering the most frequent class",
    "confusions": "most frequent confusions",
    "wrong": "most frequent wrong answers",
    "least like": "captions of lowest CIDEr-D",
    "not annotated": "captions that name an object which is not annotated",
}
HEADERS = {"taken for": "predicted", "said": "caption", "people": "reference"}
"""Printed titles and headers, where they differ from the keys in JSON."""
_HEADER = ("", "value", "95 % interval", "of")


@dataclass(frozen=True)
class Table:
    """Rows under a header; the first column is text, the others are mostly numbers."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


# -- tables ----------------------------------------------------------------------------------------


def result_tables(result: EvalResult) -> list[Table]:
    """Return the tables to print for one model."""
    device = f"on {result.device}" if result.device else ""
    title = f"{result.scores.task}: {result.model} {result.revision} {device}"
    tables = [Table(" ".join(title.split()), _HEADER, tuple(map(_row, result.metrics)))]
    for name, group in result.groups.items():
        tables.append(_group_table(name, _HEADER, tuple(map(_row, group))))
    for name, rows in result.scores.tables.items():
        if rows and name not in JSON_ONLY:
            tables.append(_rows_table(TITLES.get(name, name), rows))
    return tables


def comparison_tables(result: Comparison) -> list[Table]:
    """Return the tables to print for two models side by side."""
    first, second = result.first, result.second
    header = ("", first.model, second.model, "difference", "95 % interval", "p", "of")
    if first.model == second.model:
        header = ("", "first", "second", *header[3:])
    title = f"{first.scores.task}: {first.model} and {second.model}"
    tables = [Table(title, header, tuple(_pair(*each) for each in result.shared()))]
    for name, group in result.groups.items():
        pairs = zip(first.groups[name], second.groups[name], group, strict=True)
        tables.append(_group_table(name, header, tuple(_pair(*pair) for pair in pairs)))
    if result.mcnemar:
        only_first, only_second, p = result.mcnemar
        row = ("McNemar, exact", str(only_first), str(only_second), _p(p))
        tables.append(Table("items that only one model has right", ("", *header[1:3], "p"), (row,)))
    return tables


def _group_table(name: str, header: tuple[str, ...], rows: tuple[tuple[str, ...], ...]) -> Table:
    more = f" (the first {MAX_ROWS} of {len(rows)})" if len(rows) > MAX_ROWS else ""
    return Table(f"by {name}{more}", header, rows[:MAX_ROWS])


def _rows_table(title: str, rows: TableRows) -> Table:
    header = tuple(HEADERS.get(key, key) for key in rows[0])
    more = f" (the first {MAX_LISTED} of {len(rows)})" if len(rows) > MAX_LISTED else ""
    cells = tuple(tuple(map(_cell, row.values())) for row in rows[:MAX_LISTED])
    return Table(f"{title}{more}", header, cells)


def format_table(table: Table) -> list[str]:
    """Return a table as lines of aligned text: columns of numbers to the right, others left."""
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
    """Return whether all cells under a header start like a number or are "-"."""
    cells = [row[column] for row in table.rows]
    return column > 0 and all(cell[:1] in "-+<0123456789" for cell in cells)


# -- JSON ------------------------------------------------------------------------------------------


def result_document(result: EvalResult) -> dict[str, object]:
    """Return everything that was computed for one model, as JSON holds it; shares in percent."""
    scores = result.scores
    return {
        "task": scores.task,
        "model": result.model,
        "revision": result.revision,
        "device": result.device,
        "settings": dict(result.settings),
        "items": len(scores.items),
        "images": len(set(scores.images)),
        "failed": result.failed,
        "figures": list(map(_metric_record, result.metrics)),
        "groups": {name: list(map(_metric_record, group)) for name, group in result.groups.items()},
        "listings": {name: list(map(_json_row, rows)) for name, rows in scores.tables.items()},
    }


def comparison_document(result: Comparison) -> dict[str, object]:
    """Return both models' documents and their differences (the second minus the first)."""
    groups = {
        name: [
            _difference_record(estimate.metric, each)
            for estimate, each in zip(result.first.groups[name], group, strict=True)
        ]
        for name, group in result.groups.items()
    }
    test = result.mcnemar
    return {
        "first": result_document(result.first),
        "second": result_document(result.second),
        "differences": [_difference_record(one.metric, each) for one, _, each in result.shared()],
        "groups": groups,
        "mcnemar": test
        and {"only_first_right": test.only_first, "only_second_right": test.only_second,
             "p": test.p},
    }  # fmt: skip


def write_json(path: Path, content: Mapping[str, object]) -> None:
    """Write a document; OutputError if the file cannot be written."""
    text = json.dumps(content, ensure_ascii=False, indent=1, allow_nan=False) + "\n"
    with write_whole(path) as file:
        file.write(text.encode())


# -- values ----------------------------------------------------------------------------------------


def scaled(value: float, metric: Metric) -> float:
    """Return a value of the metric as it is reported: shares in percent."""
    return 100 * value if metric.percent else value


def metric_value(each: MetricEstimate) -> str:
    """Return the value of a metric as it is printed."""
    return _value(each.estimate.value, each.metric)


def _row(each: MetricEstimate) -> tuple[str, ...]:
    metric, estimate = each.metric, each.estimate
    value, interval = _value(estimate.value, metric), _interval(estimate, metric)
    return metric.name, value, interval, f"{metric.count:,}"


def _pair(
    first: MetricEstimate, second: MetricEstimate, difference: PairedDifference
) -> tuple[str, ...]:
    metric = first.metric
    return (
        metric.name,
        _value(first.estimate.value, metric),
        _value(second.estimate.value, metric),
        _value(difference.estimate.value, metric, sign="+"),
        _interval(difference.estimate, metric, sign="+"),
        _p(difference.p),
        f"{metric.count:,}",
    )


def _value(value: float, metric: Metric, sign: str = "") -> str:
    if math.isnan(value):
        return "-"
    number = scaled(value, metric)
    return f"{number:{sign}.1f} %" if metric.percent else f"{number:{sign}.2f}"


def _interval(estimate: Estimate, metric: Metric, sign: str = "") -> str:
    if math.isnan(estimate.low):
        return "-"
    digits = 1 if metric.percent else 2
    ends = (f"{scaled(end, metric):{sign}.{digits}f}" for end in (estimate.low, estimate.high))
    return " to ".join(ends)


def _p(p: float) -> str:
    return "-" if math.isnan(p) else "< 0.01" if p < 0.01 else f"{p:.2f}"


def _cell(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else " ".join(str(value).split())[:MAX_CELL]


def _metric_record(each: MetricEstimate) -> dict[str, object]:
    metric, estimate = each.metric, each.estimate
    return {
        "key": metric.key,
        "name": metric.name,
        "value": _json_number(scaled(estimate.value, metric)),
        "low": _json_number(scaled(estimate.low, metric)),
        "high": _json_number(scaled(estimate.high, metric)),
        "unit": "%" if metric.percent else "",
        "of": metric.count,
    }


def _difference_record(metric: Metric, difference: PairedDifference) -> dict[str, object]:
    record = _metric_record(MetricEstimate(metric, difference.estimate))
    return record | {"p": _json_number(difference.p)}


def _json_row(row: Mapping[str, object]) -> dict[str, object]:
    return {
        key: _json_number(value) if isinstance(value, float) else value
        for key, value in row.items()
    }


def _json_number(value: float) -> float | None:
    """Return the value with four decimals; None for NaN, which JSON does not have."""
    return None if math.isnan(value) else round(value, 4)
