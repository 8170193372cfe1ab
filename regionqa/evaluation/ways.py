"""Ways of telling regions compared on a user's data, and the best one written into a card."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from regionqa.backends.base import HasVlmCard, configured_model
from regionqa.errors import DataError, UsageError
from regionqa.evaluation.report import Table, metric_value, result_document
from regionqa.evaluation.results import EvalResult
from regionqa.evaluation.runner import EvalSettings, EvalTask, run_task
from regionqa.files import write_whole
from regionqa.options import RegionWay
from regionqa.pipeline.console import Console
from regionqa.vlm.card import VlmCard

SHOWN = 3
"""Number of metrics in the table; JSON holds all."""
ALL = "all"
"""The value of --ways for every way of the model."""


@dataclass(frozen=True)
class WaysComparison:
    """One model in several ways, on the items that it answered in all of them."""

    card: VlmCard
    results: Mapping[RegionWay, EvalResult]

    @property
    def best(self) -> RegionWay:
        """The way with the highest main metric; of equal ones, the card's earlier one."""
        return max(self.results, key=lambda way: self.results[way].metrics[0].estimate.value)

    @property
    def equally_good(self) -> list[RegionWay]:
        """Further ways with the main metric of the best one."""
        values = {way: each.metrics[0].estimate.value for way, each in self.results.items()}
        return [way for way in values if way != self.best and values[way] == values[self.best]]

    @property
    def failed(self) -> int:
        """Items without an answer, over all ways."""
        return sum(result.failed for result in self.results.values())

    def measured(self, data: str) -> str:
        """Return what the card says of this measurement.

        Args:
            data: The file that was evaluated on.
        """
        main = next(iter(self.results.values())).metrics[0].metric
        values = ", ".join(
            f"{way} {metric_value(result.metrics[0])}" for way, result in self.results.items()
        )
        return f"{main.name} on {main.count:,} items of {data}: {values}"


def parse_ways(text: str, known: Sequence[RegionWay], model: str) -> list[RegionWay]:
    """Read the ways of --ways.

    Args:
        text: "all", or names separated by commas.
        known: Ways of the model.
        model: Its name.

    Raises:
        UsageError: A name is not a way of the model, or there are fewer than two.
    """
    if len(known) < 2:
        way = known[0] if known else "its own"
        raise UsageError(f"--ways: the model {model} has one way, {way}; drop the option")
    names = list(dict.fromkeys(part.strip() for part in text.split(",")))
    if names == [ALL]:
        return list(known)
    for name in names:
        if name not in known:
            raise UsageError(f"--ways {name}: {model} has {', '.join(known)}; or say all")
    if len(names) < 2:
        raise UsageError("--ways: name at least two, separated by commas, or say all")
    return [RegionWay(name) for name in names]


def compare_ways(
    task: EvalTask, settings: EvalSettings, text: str, console: Console
) -> WaysComparison:
    """Evaluate one model in several ways.

    Args:
        task: What to ask, and how to score.
        settings: How the model is run.
        text: The value of --ways.
        console: For warnings and errors.

    Raises:
        UsageError: The model does not have a way.
        DataError: Nothing was answered in all ways.
    """
    found = configured_model(settings.runtime.model, settings.runtime)
    ways = parse_ways(text, found.info.ways, found.info.name)
    assert isinstance(found, HasVlmCard)  # it has ways
    for line in task.remarks:
        console.warn(line)
    runs = {}
    failures: dict[tuple[str, int], list[str]] = {}
    for way in ways:
        told = replace(settings, runtime=settings.runtime.replace(way=way))
        model = found.configured(told.runtime)
        errors: list[str] = []
        runs[way] = run_task(task.requests(model.info), told, model, console, errors.append)
        for place, line in enumerate(errors):  # several items may fail alike
            failures.setdefault((line, errors[:place].count(line)), []).append(str(way))
    for (line, _), failed in failures.items():
        told_in = "every way" if len(failed) == len(ways) else ", ".join(failed)
        console.error(f"{line} (in {told_in})")
    answered = set.intersection(*(set(run.answers) for run in runs.values()))
    if not answered:
        raise DataError("no request was answered in every way; the reasons are above")
    return WaysComparison(
        found.card, {way: run.evaluate(task, answered) for way, run in runs.items()}
    )


def ways_table(comparison: WaysComparison) -> Table:
    """Return the table to print: a row per way, the best first."""
    first, *_ = comparison.results.values()
    header = ("way", *(each.metric.name for each in first.metrics[:SHOWN]), "of")
    ranked = sorted(comparison.results.items(), key=lambda pair: -pair[1].metrics[0].estimate.value)
    rows = tuple(
        (
            str(way),
            *map(metric_value, result.metrics[:SHOWN]),
            f"{result.metrics[0].metric.count:,}",
        )
        for way, result in ranked
    )
    return Table(f"{first.scores.task}: {first.model} by way of telling regions", header, rows)


def ways_document(comparison: WaysComparison) -> dict[str, object]:
    """Return everything that was computed, as JSON holds it."""
    results = {str(way): result_document(result) for way, result in comparison.results.items()}
    return {"best": str(comparison.best), "ways": results}


def write_user_card(path: Path, comparison: WaysComparison, data: str) -> None:
    """Write a card of the user's own, whose default is the best way.

    Args:
        path: The card: card.toml in the checkpoint's folder, or in a folder of its own for a
            checkpoint of the Hub.
        comparison: The measurement.
        data: The file that was evaluated on.

    Raises:
        UsageError: The card would not be found, or not find its checkpoint.
    """
    card, best = comparison.card, str(comparison.best)
    if not card.family:
        raise UsageError(
            f"--write-card {path}: a card belongs to a family; name one of the server's model with "
            "--model"
        )
    text = [
        f"kind = {quoted(card.kind)}",
        f"name = {quoted(card.name)}",
        f"family = {quoted(card.family)}",
        f"summary = {quoted(card.summary)}",
        "",
    ]
    if card.source is not None:
        text += [
            "[source]",
            f"repo = {quoted(card.source.repo)}",
            f"revision = {quoted(card.source.revision)}",
            f"licence = {quoted(card.source.licence)}",
            "",
        ]
    text += [
        "[regions]",
        f"default = {quoted(best)}",
        f"measured = {quoted(comparison.measured(data))}",
        f"small = {{ below = 0.0, way = {quoted(best)} }} # the measurement is of all sizes",
        "",
    ]
    with write_whole(path) as file:
        file.write("\n".join(text).encode())


def check_card_path(path: Path, model: str) -> None:
    """UsageError if a card written to a path would not be found by `--model`."""
    if path.name != "card.toml":
        raise UsageError(f"--write-card {path}: is not named card.toml; name it so")
    folder = Path(model)
    if folder.is_dir() and path.resolve().parent != folder.resolve():
        raise UsageError(
            f"--write-card {path}: the card of a folder lies in it; write it to "
            f"{folder / 'card.toml'}"
        )


def quoted(text: str) -> str:
    """Quote a text for TOML; JSON's quoting is a part of it."""
    return json.dumps(text, ensure_ascii=False)
