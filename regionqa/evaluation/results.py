"""What an evaluation found: figures, groups of figures, listings; and two of them compared.

A task turns answers into `JudgedAnswers`; `estimate_figures` adds confidence intervals and
`compare_results` compares two models. report.py and plots.py render the results.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from regionqa.errors import DataError
from regionqa.evaluation.metrics.statistics import (
    Bools,
    Difference,
    Estimate,
    Figure,
    bootstrap_estimates,
    differences,
    mcnemar,
)


@dataclass(frozen=True)
class JudgedAnswers:
    """The answers of one model, judged."""

    task: str
    """`recognition`, `vqa` or `caption`."""
    items: tuple[str, ...]
    """What was asked, one text per item (N,): two models' answers are paired by it."""
    images: tuple[str, ...]
    """The image of each item (N,)."""
    figures: tuple[Figure, ...]
    """The figures that sum it up, the first one first."""
    groups: Mapping[str, tuple[Figure, ...]] = field(default_factory=dict)
    """More figures, by what they divide the items by, like `class` or `size`."""
    listings: Mapping[str, Sequence[Mapping[str, object]]] = field(default_factory=dict)
    """Tables without intervals, like the worst confusions, by name; the rows have equal keys."""
    right: Bools | None = None
    """Whether each item is right (N,), where that is a matter of yes or no."""


@dataclass(frozen=True)
class FigureEstimate:
    """A figure with its estimate."""

    figure: Figure
    estimate: Estimate


@dataclass(frozen=True)
class EvalResult:
    """One model's evaluation, with intervals."""

    judged: JudgedAnswers
    model: str
    revision: str
    device: str
    failed: int
    """Items without an answer; they are in no figure."""
    figures: tuple[FigureEstimate, ...]
    groups: Mapping[str, tuple[FigureEstimate, ...]]
    settings: Mapping[str, object]
    """What was chosen of asking and judging, by option."""


@dataclass(frozen=True)
class Comparison:
    """Two models on the same items; differences are the second's figures less the first's."""

    first: EvalResult
    second: EvalResult
    differences: tuple[Difference, ...]
    """By figure."""
    groups: Mapping[str, tuple[Difference, ...]]
    """By group and figure."""
    mcnemar: tuple[int, int, float] | None
    """Items that only the first has right, only the second, and p; None where nothing is right."""


def estimate_figures(
    judged: JudgedAnswers,
    *,
    model: str,
    revision: str = "",
    device: str = "",
    failed: int = 0,
    settings: Mapping[str, object] | None = None,
) -> EvalResult:
    """The estimates of every figure."""
    return EvalResult(
        judged=judged,
        model=model,
        revision=revision,
        device=device,
        failed=failed,
        figures=_told(judged.figures, judged.images),
        groups={name: _told(group, judged.images) for name, group in judged.groups.items()},
        settings=settings or {},
    )


def compare_results(first: EvalResult, second: EvalResult) -> Comparison:
    """Both on the items that both answered; DataError where they were not asked the same."""
    a, b = first.judged, second.judged
    if a.items != b.items:
        raise DataError(
            f"{first.model} and {second.model} did not answer the same items; ask again what failed"
        )
    groups = {}
    for name in a.groups:
        if [f.key for f in a.groups[name]] == [f.key for f in b.groups.get(name, ())]:
            groups[name] = tuple(differences(a.groups[name], b.groups[name], a.images))
    shared = {figure.key for figure in a.figures} & {figure.key for figure in b.figures}
    columns = [[f for f in each.figures if f.key in shared] for each in (a, b)]
    both_right = a.right is not None and b.right is not None
    return Comparison(
        first=first,
        second=second,
        differences=tuple(differences(columns[0], columns[1], a.images)),
        groups=groups,
        mcnemar=mcnemar(a.right, b.right) if both_right else None,  # type: ignore[arg-type]
    )


def _told(figures: Sequence[Figure], images: Sequence[str]) -> tuple[FigureEstimate, ...]:
    return tuple(map(FigureEstimate, figures, bootstrap_estimates(figures, images)))
