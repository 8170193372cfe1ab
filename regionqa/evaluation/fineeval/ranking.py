"""Counts of saved rankings: wins, ties and losses of each pair of systems, and mean places.

    score_rankings(read_fineeval(data), [read_ranking(path) for path in paths])

The questions and the saved files are enough; neither the page nor the answers are needed.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np

from regionqa.errors import DataError
from regionqa.evaluation.fineeval.page import FORMAT, blind_name
from regionqa.evaluation.fineeval.questions import FineEval
from regionqa.evaluation.metrics.statistics import Floats, Metric, weighted_mean
from regionqa.evaluation.report import Table
from regionqa.evaluation.results import EvalResult, MetricEstimate, TaskScores

OUTCOMES = ("win", "tie", "loss")


@dataclass(frozen=True)
class Ranking:
    """The saved ranking of one rater."""

    source: Path
    rater: str
    """The name given on the page, else the file's name."""
    seed: int
    systems: tuple[str, ...]
    """The systems on the page."""
    ranks: Mapping[str, Mapping[str, int]]
    """Ranks by question number, as text, and blind name; 1 is best."""


def read_ranking(path: Path) -> Ranking:
    """Read a file that the page has saved; DataError if it is missing or another kind of file."""
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
        if saved["format"] != FORMAT:
            raise ValueError(saved["format"])
        ranks = {
            str(number): {str(name): int(rank) for name, rank in each.items()}
            for number, each in saved["ranks"].items()
        }
        systems = tuple(map(str, saved["systems"]))
        rater = str(saved.get("rater") or path.stem)
        return Ranking(path, rater, int(saved["seed"]), systems, ranks)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; check the path") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}; name another file") from None
    except (ValueError, LookupError, TypeError, AttributeError):
        raise DataError(
            f"{path}: is not a saved ranking; save one on the page that eval fineeval writes"
        ) from None


def score_rankings(data: FineEval, rankings: Sequence[Ranking]) -> TaskScores:
    """Score rankings; an item is one rater's ranking of one question.

    The bootstrap draws all rankings of an image together.

    Raises:
        DataError: A rater appears twice, or no question has two ranked answers.
    """
    raters = [ranking.rater for ranking in rankings]
    for rater in raters:
        if raters.count(rater) > 1:
            raise DataError(f"{rater}: two files have this rater; rename one, or leave one out")
    named = {name for ranking in rankings for name in ranking.systems}
    systems = sorted(named, key=lambda name: (name in data.systems, name))  # new ones first
    items, images, rows = [], [], []
    for ranking in rankings:
        for item in data.items:
            given = ranking.ranks.get(str(item.number), {})
            row = [
                given.get(blind_name(ranking.seed, item, s)) if s in ranking.systems else None
                for s in systems
            ]
            if sum(rank is not None for rank in row) > 1:
                items.append(f"{ranking.rater} {item.number}")
                images.append(item.image)
                rows.append([np.nan if rank is None else float(rank) for rank in row])
    if not rows:
        raise DataError(
            f"{rankings[0].source}: has no two ranked answers to any question of {data.source}; "
            "name the questions that the page was made from"
        )
    ranks = np.array(rows)  # (N, S)
    groups = {outcome: tuple(_pair_metrics(ranks, systems, outcome)) for outcome in OUTCOMES}
    return TaskScores(
        task="fineeval",
        items=tuple(items),
        images=tuple(images),
        metrics=(*_mean_places(ranks, systems), *_agreement(items, ranks)),
        groups=groups,
        tables={
            "raters": [
                {"rater": r.rater, "questions": sum(map(bool, r.ranks.values()))} for r in rankings
            ]
        },
    )


def _mean_places(ranks: Floats, systems: Sequence[str]) -> list[Metric]:
    """Return the mean place of each system, the best one first."""
    places = np.apply_along_axis(_places, 1, ranks)  # (N, S)
    metrics = []
    for column, name in enumerate(systems):
        known = ~np.isnan(places[:, column])
        if known.any():
            statistic = weighted_mean(np.where(known, places[:, column], 0.0), known)
            count = int(known.sum())
            metrics.append(
                Metric(f"place_{name}", f"{name}, mean place", statistic, count, percent=False)
            )
    ones = np.ones((1, len(ranks)))
    return sorted(metrics, key=lambda metric: float(metric.statistic(ones)[0]))


def _places(row: Floats) -> Floats:
    """Return the places of ranks, ties sharing their mean place: 1, 1, 5 become 1.5, 1.5, 3."""
    above = (row[:, None] > row[None, :]).sum(1)
    equal = (row[:, None] == row[None, :]).sum(1)
    return np.where(np.isnan(row), np.nan, above + (equal + 1) / 2)


def _pair_metrics(ranks: Floats, systems: Sequence[str], outcome: str) -> list[Metric]:
    metrics = []
    for a, b in combinations(range(len(systems)), 2):
        known = ~np.isnan(ranks[:, a]) & ~np.isnan(ranks[:, b])
        if not known.any():
            continue
        gap = np.sign(ranks[:, b] - ranks[:, a])  # above zero where a is ranked better
        hit = gap == {"win": 1, "tie": 0, "loss": -1}[outcome]
        name = f"{systems[a]} : {systems[b]}"
        metrics.append(Metric(name, name, weighted_mean(hit & known, known), int(known.sum())))
    return metrics


def _agreement(items: Sequence[str], ranks: Floats) -> list[Metric]:
    """Count how often two raters order a pair of answers alike; empty if no pair has two raters."""
    by_question: dict[str, list[int]] = {}
    for row, item in enumerate(items):
        by_question.setdefault(item.rsplit(" ", 1)[1], []).append(row)
    same, count = np.zeros(len(items)), np.zeros(len(items))
    for rows in by_question.values():
        for one, other in combinations(rows, 2):
            for a, b in combinations(range(ranks.shape[1]), 2):
                first, second = (ranks[row, a] - ranks[row, b] for row in (one, other))
                if not (np.isnan(first) or np.isnan(second)):
                    count[one] += 1
                    same[one] += np.sign(first) == np.sign(second)
    if not count.any():
        return []

    def statistic(weights: Floats) -> Floats:
        total = weights @ count
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(total > 0, (weights @ same) / total, np.nan)

    return [Metric("agreement", "raters agree on a pair", statistic, int(count.sum()))]


def pair_table(result: EvalResult) -> Table:
    """Return wins, ties and losses of every pair of systems, each with its interval."""
    rows = []
    for win, tie, loss in zip(*(result.groups[outcome] for outcome in OUTCOMES), strict=True):
        cells = map(_percent_with_interval, (win, tie, loss))
        rows.append((win.metric.name, *cells, f"{win.metric.count:,}"))
    header = ("the first against the second", "wins %", "ties %", "losses %", "of")
    return Table("pairs of systems", header, tuple(rows))


def _percent_with_interval(each: MetricEstimate) -> str:
    value, low, high = (100 * end for end in dataclasses.astuple(each.estimate))
    return f"{value:.1f} ({low:.1f} to {high:.1f})"
