"""Saved rankings of the page counted: who wins, ties and loses against whom, and mean ranks.

    tally(read_fineeval(data), [read_ranking(path) for path in paths])

It needs the questions and the rankings, not the page, nor the answers.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np

from regionqa.errors import DataError
from regionqa.evaluation.fineeval.page import FORMAT, blind_name
from regionqa.evaluation.fineeval.questions import FineEval
from regionqa.evaluation.metrics.statistics import Figure, Floats, mean_of
from regionqa.evaluation.report import Table
from regionqa.evaluation.results import EvalResult, JudgedAnswers

OUTCOMES = ("win", "tie", "loss")


@dataclass(frozen=True)
class Ranking:
    """What one rater saved."""

    source: Path
    rater: str
    """As the rater gave it; the file's name where not."""
    seed: int
    systems: tuple[str, ...]
    """All that were on the page."""
    ranks: Mapping[str, Mapping[str, int]]
    """By question number, as text, and blind name; 1 is best."""


def read_ranking(path: Path) -> Ranking:
    """A file that the page has saved; DataError where it is missing or something else."""
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
        raise DataError(f"{path}: there is no such file; check the path") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}; name a file") from None
    except (ValueError, LookupError, TypeError, AttributeError):
        raise DataError(
            f"{path}: is no saved ranking; save one with the page that eval fineeval writes"
        ) from None


def tally(data: FineEval, rankings: Sequence[Ranking]) -> JudgedAnswers:
    """Every judgement, one rater on one question, as an item: who stands above whom.

    Judgements of several raters on one image are drawn together when intervals are made.
    Raises DataError where a rater is given twice, or where nothing was ranked by two systems.
    """
    raters = [ranking.rater for ranking in rankings]
    for rater in raters:
        if raters.count(rater) > 1:
            raise DataError(f"{rater}: two files are of this rater; rename one, or leave one out")
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
            f"{rankings[0].source}: ranks no two answers to a question of {data.source}; "
            "are these the questions of that page?"
        )
    ranks = np.array(rows)  # (N, S)
    groups = {outcome: tuple(_pair_figures(ranks, systems, outcome)) for outcome in OUTCOMES}
    return JudgedAnswers(
        task="fineeval",
        items=tuple(items),
        images=tuple(images),
        figures=(*_mean_ranks(ranks, systems), *_agreement(items, ranks)),
        groups=groups,
        listings={
            "raters": [
                {"rater": r.rater, "questions": sum(map(bool, r.ranks.values()))} for r in rankings
            ]
        },
    )


def _mean_ranks(ranks: Floats, systems: Sequence[str]) -> list[Figure]:
    """The mean place of each system, the best first; equals share the mean of their places."""
    places = np.apply_along_axis(_places, 1, ranks)  # (N, S)
    figures = []
    for column, name in enumerate(systems):
        known = ~np.isnan(places[:, column])
        if known.any():
            measure = mean_of(np.where(known, places[:, column], 0.0), known)
            figures.append(Figure(f"place_{name}", f"{name}, mean place", measure,
                                  int(known.sum()), percent=False))  # fmt: skip
    whole = np.ones((1, len(ranks)))
    return sorted(figures, key=lambda figure: float(figure.measure(whole)[0]))


def _places(row: Floats) -> Floats:
    """Places from ranks: 1, 1, 5 become 1.5, 1.5, 3."""
    above = (row[:, None] > row[None, :]).sum(1)
    equal = (row[:, None] == row[None, :]).sum(1)
    return np.where(np.isnan(row), np.nan, above + (equal + 1) / 2)


def _pair_figures(ranks: Floats, systems: Sequence[str], outcome: str) -> list[Figure]:
    figures = []
    for a, b in combinations(range(len(systems)), 2):
        known = ~np.isnan(ranks[:, a]) & ~np.isnan(ranks[:, b])
        if not known.any():
            continue
        gap = np.sign(ranks[:, b] - ranks[:, a])  # above zero where a is ranked better
        hit = gap == {"win": 1, "tie": 0, "loss": -1}[outcome]
        name = f"{systems[a]} : {systems[b]}"
        figures.append(Figure(name, name, mean_of(hit & known, known), int(known.sum())))
    return figures


def _agreement(items: Sequence[str], ranks: Floats) -> list[Figure]:
    """How often two raters say the same of a pair of answers; nothing for a single rater."""
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

    def measure(weights: Floats) -> Floats:
        total = weights @ count
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(total > 0, (weights @ same) / total, np.nan)

    return [Figure("agreement", "raters agree on a pair", measure, int(count.sum()))]


def pair_table(result: EvalResult) -> Table:
    """Wins, ties and losses of every pair, each with its interval."""
    rows = []
    for win, tie, loss in zip(*(result.groups[outcome] for outcome in OUTCOMES), strict=True):
        cells = [
            f"{100 * told.estimate.value:.1f} "
            f"({100 * told.estimate.low:.1f} to {100 * told.estimate.high:.1f})"
            for told in (win, tie, loss)
        ]
        rows.append((win.figure.name, *cells, f"{win.figure.count:,}"))
    header = ("the first against the second", "wins %", "ties %", "losses %", "of")
    return Table("answers ranked", header, tuple(rows))
