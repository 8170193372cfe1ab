"""What the commands of `eval` share: their options, running a task, and telling what came of it."""

import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from regionqa.cli.options import PLOT, DeviceChoice, DtypeChoice, QuantizeChoice, require

if TYPE_CHECKING:
    from regionqa.evaluation.fineeval.questions import FineEval
    from regionqa.evaluation.report import Table
    from regionqa.evaluation.results import Comparison, EvalResult
    from regionqa.evaluation.runner import EvalProgress, EvalTask
    from regionqa.requests import Answer


SOME_FAILED = 3

Compare = Annotated[
    tuple[str, str] | None,
    typer.Option(
        metavar="A B", help="Two models in place of --model: both, and whether B differs from A."
    ),
]
Answers = Annotated[
    Path | None,
    typer.Option(help="Keep answers in this file of JSON lines; what it holds is not asked again."),
]
AsJson = Annotated[Path | None, typer.Option("--json", help="Write all that was found as JSON.")]
Plot = Annotated[Path | None, typer.Option(help="Draw the figures: a .png, .svg or .pdf.")]
Limit = Annotated[int | None, typer.Option(min=1, help="Ask only about the first so many.")]
UnsureBelow = Annotated[
    float | None,
    typer.Option(
        "--unsure-below",
        min=0,
        max=1,
        help="Count answers less probable than this as not sure; what the card says if not said.",
    ),
]
Images = Annotated[
    Path | None,
    typer.Option("--images", help="The folder that names of images start from; else the file's."),
]


def count(data: "FineEval", saved: Sequence[Path], json: Path | None, plot: Path | None) -> int:
    """What rankings come to."""
    if plot:
        require("--plot", "eval", PLOT)
    from regionqa.evaluation import report
    from regionqa.evaluation.fineeval.ranking import pair_table, read_ranking, tally
    from regionqa.evaluation.results import estimate_figures

    result = estimate_figures(tally(data, [read_ranking(path) for path in saved]), model="rankings")
    first, *_, raters = report.tables(result)
    show([first, pair_table(result), raters])
    write_results(result, json, plot)
    return 0


def run_eval(
    task: "EvalTask",
    *,
    model: str,
    compare: tuple[str, str] | None,
    answers: Path | None,
    json: Path | None,
    plot: Path | None,
    unsure_below: float | None,
    device: DeviceChoice,
    dtype: DtypeChoice,
    quantize: QuantizeChoice | None,
    batch_size: int,
    max_new_tokens: int | None,
    quiet: bool,
) -> int:
    """Run a task, and tell what came of it; 3 where some items failed."""
    if plot:
        require("--plot", "eval", PLOT)
    from regionqa.evaluation import report
    from regionqa.evaluation.results import EvalResult
    from regionqa.evaluation.runner import EvalSettings, evaluate_models

    how = EvalSettings(
        models=compare or (model,),
        device=str(device),
        dtype=str(dtype),
        quantize=quantize and str(quantize),
        batch_size=batch_size,
        max_new_tokens=max_new_tokens,
        unsure_below=unsure_below,
        answers=answers,
    )
    result = evaluate_models(task, how, screen(quiet))
    if isinstance(result, EvalResult):
        show(report.tables(result))
        failed = result.failed
    else:
        show(report.comparison_tables(result))
        failed = result.first.failed + result.second.failed
    write_results(result, json, plot)
    return SOME_FAILED if failed else 0


def write_results(result: "EvalResult | Comparison", json: Path | None, plot: Path | None) -> None:
    """Write what was asked to be written."""
    from regionqa.evaluation import report
    from regionqa.evaluation.results import EvalResult

    if json:
        if isinstance(result, EvalResult):
            report.write_json(json, report.document(result))
        else:
            report.write_json(json, report.comparison_document(result))
    if plot:
        from regionqa.evaluation.plots import plot_figures

        plot_figures(result, plot)


def screen(quiet: bool) -> "EvalProgress":
    """Errors of items on stderr, and a bar where that is a terminal."""
    from regionqa.evaluation.runner import EvalProgress

    def follow(answers: "Iterator[Answer]", total: int, model: str) -> "Iterable[Answer]":
        if quiet or not sys.stderr.isatty():
            return answers
        from rich.console import Console
        from rich.progress import track

        return track(
            answers, description=model, total=total, console=Console(stderr=True), transient=True
        )

    return EvalProgress(lambda line: print(f"regionqa: {line}", file=sys.stderr), follow)


def show(tables: "Sequence[Table]") -> None:
    """Tables on stdout: with lines around them on a terminal, else as plain aligned text."""
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.table import Table as Drawn
        from rich.text import Text

        from regionqa.evaluation.report import is_number_column

        console = Console()
        for table in tables:
            drawn = Drawn(title=Text(table.title), title_justify="left", header_style="bold")
            for number, name in enumerate(table.header):
                right = is_number_column(table, number)
                drawn.add_column(Text(name), justify="right" if right else "left")
            for row in table.rows:
                drawn.add_row(*map(Text, row))
            console.print(drawn)
        return
    from regionqa.evaluation.report import lines

    for number, table in enumerate(tables):
        print("\n".join([""] * bool(number) + lines(table)))
