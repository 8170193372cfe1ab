"""Plots of results: one panel per group of metrics, with confidence intervals.

Groups are drawn as bars, except groups by size, which are ordered and drawn as a line. Needs
matplotlib, from the extra `eval`.
"""

from pathlib import Path
from typing import Any

from regionqa.errors import OutputError
from regionqa.evaluation.report import scaled
from regionqa.evaluation.results import Comparison, EvalResult, MetricEstimate
from regionqa.files import write_whole

LINE_GROUPS = ("size",)
"""Groups that are drawn as a line."""
MAX_BARS = 80
"""Bars of one panel and model."""
COLOURS = ("#2f6f9f", "#d08b2c")
LINE_HEIGHT, PANEL_HEIGHT, BAR_HEIGHT = 3.5, 1.2, 0.24
"""In inches: a panel with a line; a panel without bars, and each of its bars."""

Group = tuple[MetricEstimate, ...]


def plot_results(result: EvalResult | Comparison, path: Path) -> None:
    """Write the plot, in the format of the path's suffix; OutputError if that fails."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    models = [result] if isinstance(result, EvalResult) else [result.first, result.second]
    panels: list[tuple[str, list[Group]]] = [("all", [model.metrics for model in models])]
    for name in models[0].groups:
        if all(name in model.groups for model in models):
            panels.append((name, [model.groups[name] for model in models]))
    heights = [_height(name, groups) for name, groups in panels]
    figure = Figure(figsize=(8, sum(heights)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(panels), 1, height_ratios=heights, squeeze=False)[:, 0]
    labels = [model.model for model in models]
    for number, (axis, (name, groups)) in enumerate(zip(axes, panels, strict=True)):
        draw = _line if name in LINE_GROUPS else _bars
        draw(axis, groups, labels)
        axis.set_title(f"by {name}" if number else name, loc="left", fontsize=10)
    if len(models) > 1:
        axes[0].legend(fontsize=8)
    figure.suptitle(f"{models[0].scores.task}: {', '.join(labels)}")
    try:
        with write_whole(path) as file:
            figure.savefig(file, dpi=120, format=path.suffix.removeprefix(".") or "png")
    except ValueError as error:
        raise OutputError(f"{path}: cannot be written: {error}; name a .png or .svg") from error


def _height(name: str, groups: list[Group]) -> float:
    if name in LINE_GROUPS:
        return LINE_HEIGHT
    return PANEL_HEIGHT + BAR_HEIGHT * len(groups) * min(MAX_BARS, len(groups[0]))


def _bars(axis: Any, groups: list[Group], labels: list[str]) -> None:
    """Draw the models' bars side by side; only the metrics that are shares, if there are any."""
    shares = [each.metric for each in groups[0] if each.metric.percent]
    metrics = (shares or [each.metric for each in groups[0]])[:MAX_BARS]
    rows = {metric.key: row for row, metric in enumerate(metrics)}
    width = 0.8 / len(groups)
    for index, group in enumerate(groups):
        shown = [each for each in group if each.metric.key in rows]
        places = [rows[each.metric.key] + index * width for each in shown]
        values = [scaled(each.estimate.value, each.metric) for each in shown]
        axis.barh(places, values, width, color=COLOURS[index], label=labels[index])
        for place, each in zip(places, shown, strict=True):
            axis.plot(_ends(each), [place, place], color="black", linewidth=0.8)
    ticks = [f"{metric.name} ({metric.count})" for metric in metrics]
    axis.set_yticks([row + width * (len(groups) - 1) / 2 for row in rows.values()], ticks)
    axis.tick_params(labelsize=8)
    axis.set_ylim(len(metrics) - 0.4, -0.6)
    if shares:
        axis.set_xlim(0, 100)
        axis.set_xlabel("%", fontsize=8)


def _line(axis: Any, groups: list[Group], labels: list[str]) -> None:
    """Draw a line per model, with its intervals as a band."""
    for index, group in enumerate(groups):
        places = range(len(group))
        values = [scaled(each.estimate.value, each.metric) for each in group]
        low, high = zip(*map(_ends, group), strict=True)
        axis.plot(places, values, "o-", color=COLOURS[index], label=labels[index])
        axis.fill_between(places, low, high, color=COLOURS[index], alpha=0.2)
    ticks = [f"{each.metric.name}\n({each.metric.count})" for each in groups[0]]
    axis.set_xticks(range(len(ticks)), ticks)
    axis.tick_params(labelsize=8)
    axis.set_ylim(0, 100)
    axis.set_ylabel("%", fontsize=8)


def _ends(each: MetricEstimate) -> tuple[float, float]:
    return scaled(each.estimate.low, each.metric), scaled(each.estimate.high, each.metric)
