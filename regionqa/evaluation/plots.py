"""Results as an image: a panel of bars with intervals for every group of figures.

Groups named by sizes become a line, as they are in order. Needs matplotlib, of the extra `eval`.
It does not know what figures mean.
"""

from pathlib import Path
from typing import Any

from regionqa.errors import OutputError
from regionqa.evaluation.report import rows_of
from regionqa.evaluation.results import Comparison, EvalResult, FigureEstimate

ORDERED = ("size",)
"""Groups that a line connects."""
MOST = 80
"""Bars of one panel."""
COLOURS = ("#2f6f9f", "#d08b2c")


def plot_figures(result: EvalResult | Comparison, path: Path) -> None:
    """Write the image, in the format of the path's suffix; OutputError where that fails."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    models = [result] if isinstance(result, EvalResult) else [result.first, result.second]
    names = [name for name in models[0].groups if all(name in model.groups for model in models)]
    panels: list[tuple[str, list[tuple[FigureEstimate, ...]]]] = [
        ("all", [model.figures for model in models]),
        *((f"by {name}", [model.groups[name] for model in models]) for name in names),
    ]
    heights = [1.2 + 0.24 * len(models) * min(MOST, len(groups[0])) for _, groups in panels]
    heights = [3.5 if name == "by size" else height for height, (name, _) in
               zip(heights, panels, strict=True)]  # fmt: skip
    figure = Figure(figsize=(8, sum(heights)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(panels), 1, height_ratios=heights, squeeze=False)[:, 0]
    for axis, (name, groups) in zip(axes, panels, strict=True):
        labels = [model.model for model in models]
        if name.removeprefix("by ") in ORDERED:
            _line(axis, groups, labels)
        else:
            _bars(axis, groups, labels)
        axis.set_title(name, loc="left", fontsize=10)
    if len(models) > 1:
        axes[0].legend(fontsize=8)
    figure.suptitle(f"{models[0].judged.task}: {', '.join(model.model for model in models)}")
    try:
        figure.savefig(path, dpi=120)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OutputError(f"{path}: cannot be written: {reason}; name a .png or .svg") from error


def _bars(axis: Any, groups: list[tuple[FigureEstimate, ...]], labels: list[str]) -> None:
    """Bars side by side, the first figure on top; shares only where there are any."""
    shares = [told for told in groups[0] if told.figure.percent]
    keys = [told.figure.key for told in shares or groups[0]][:MOST]
    width = 0.8 / len(groups)
    for index, group in enumerate(groups):
        by_key = {told.figure.key: told for told in group}
        kept = [by_key[key] for key in keys if key in by_key]
        rows = rows_of(kept)
        places = [keys.index(told.figure.key) + index * width for told in kept]
        values = [value for _, value, _, _ in rows]
        axis.barh(places, values, width, color=COLOURS[index], label=labels[index])
        for place, (_, _, low, high) in zip(places, rows, strict=True):
            axis.plot([low, high], [place, place], color="black", linewidth=0.8)
    shown = {told.figure.key: told.figure for told in groups[0]}
    ticks = [f"{shown[key].name} ({shown[key].count})" for key in keys]
    axis.set_yticks([place + width * (len(groups) - 1) / 2 for place in range(len(keys))], ticks)
    axis.tick_params(labelsize=8)
    axis.set_ylim(len(keys) - 0.4, -0.6)
    if shares:
        axis.set_xlim(0, 100)
        axis.set_xlabel("%", fontsize=8)


def _line(axis: Any, groups: list[tuple[FigureEstimate, ...]], labels: list[str]) -> None:
    """A line with its interval as a band."""
    for index, group in enumerate(groups):
        rows = rows_of(group)
        places = range(len(rows))
        axis.plot(places, [value for _, value, _, _ in rows], "o-", color=COLOURS[index],
                  label=labels[index])  # fmt: skip
        axis.fill_between(
            places,
            [low for _, _, low, _ in rows],
            [high for _, _, _, high in rows],
            color=COLOURS[index],
            alpha=0.2,
        )
    ticks = [f"{told.figure.name}\n({told.figure.count})" for told in groups[0]]
    axis.set_xticks(range(len(ticks)), ticks)
    axis.tick_params(labelsize=8)
    axis.set_ylim(0, 100)
    axis.set_ylabel("%", fontsize=8)
