"""Run an evaluation and report its results."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from regionqa.cli.options import PLOT, require
from regionqa.errors import SOME_FAILED, UsageError
from regionqa.evaluation.options import EvaluationOptions
from regionqa.options import GenerationOptions, OutputOptions, RuntimeOptions

if TYPE_CHECKING:
    from regionqa.evaluation.fineeval.questions import FineEval
    from regionqa.evaluation.report import Table
    from regionqa.evaluation.results import Comparison, EvalResult
    from regionqa.evaluation.runner import EvalTask


def report_rankings(
    data: "FineEval", rankings: Sequence[Path], evaluation: EvaluationOptions
) -> int:
    """Report saved rankings."""
    if evaluation.plot:
        require("--plot", "eval", PLOT)
    from regionqa.evaluation import report
    from regionqa.evaluation.fineeval.ranking import pair_table, read_ranking, score_rankings
    from regionqa.evaluation.results import estimate_metrics

    scores = score_rankings(data, [read_ranking(path) for path in rankings])
    result = estimate_metrics(scores, model="rankings")
    first, *_, raters = report.result_tables(result)
    show([first, pair_table(result), raters])
    write_results(result, evaluation)
    return 0


def run_eval(
    task: "EvalTask",
    runtime: RuntimeOptions,
    generation: GenerationOptions,
    evaluation: EvaluationOptions,
    output: OutputOptions,
) -> int:
    """Evaluate one model or compare two, and report the results.

    Returns:
        The exit status: 0, or `SOME_FAILED` if some items failed.
    """
    if evaluation.plot:
        require("--plot", "eval", PLOT)
    from regionqa.evaluation import report
    from regionqa.evaluation.results import EvalResult
    from regionqa.evaluation.runner import EvalSettings, evaluate_models
    from regionqa.pipeline.console import Console

    with Console(quiet=output.quiet) as console:
        result = evaluate_models(task, EvalSettings(runtime, generation, evaluation), console)
    if isinstance(result, EvalResult):
        show(report.result_tables(result))
        failed = result.failed
    else:
        show(report.comparison_tables(result))
        failed = result.first.failed + result.second.failed
    write_results(result, evaluation)
    return SOME_FAILED if failed else 0


@dataclass(frozen=True)
class MeasuredWays:
    """What ways are compared, and where the result goes."""

    ways: str
    """The value of --ways."""
    card: Path | None
    """The card to write, or None."""
    data: Path
    """The file that is evaluated on."""


def run_ways(
    task: "EvalTask",
    measured: MeasuredWays,
    runtime: RuntimeOptions,
    generation: GenerationOptions,
    evaluation: EvaluationOptions,
    output: OutputOptions,
) -> int:
    """Evaluate one model in several ways of telling regions, and report the results.

    Returns:
        The exit status: 0, or `SOME_FAILED` if some items failed.
    """
    from regionqa.evaluation import report
    from regionqa.evaluation.runner import EvalSettings
    from regionqa.evaluation.ways import (
        check_card_path,
        compare_ways,
        ways_document,
        ways_table,
        write_user_card,
    )
    from regionqa.pipeline.console import Console

    if evaluation.compare:
        raise UsageError("--compare: has no effect beside --ways; drop one of the two")
    if evaluation.plot:
        raise UsageError("--plot: has no effect beside --ways; drop one of the two")
    if measured.card:
        check_card_path(measured.card, runtime.model)
    settings = EvalSettings(runtime, generation, evaluation)
    with Console(quiet=output.quiet) as console:
        result = compare_ways(task, settings, measured.ways, console)
    show([ways_table(result)])
    if evaluation.json:
        report.write_json(evaluation.json, ways_document(result))
    if measured.card:
        write_user_card(measured.card, result, measured.data.name)
        equal = f"; equally good: {', '.join(others)}" if (others := result.equally_good) else ""
        print(f"{result.best} is the default of {measured.card}{equal}", file=sys.stderr)
    return SOME_FAILED if result.failed else 0


def write_results(result: "EvalResult | Comparison", evaluation: EvaluationOptions) -> None:
    """Write the files of --json and --plot."""
    from regionqa.evaluation import report
    from regionqa.evaluation.results import EvalResult

    if evaluation.json:
        if isinstance(result, EvalResult):
            report.write_json(evaluation.json, report.result_document(result))
        else:
            report.write_json(evaluation.json, report.comparison_document(result))
    if evaluation.plot:
        from regionqa.evaluation.plots import plot_results

        plot_results(result, evaluation.plot)


def show(tables: "Sequence[Table]") -> None:
    """Print tables: with rules at a terminal, else as aligned plain text."""
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
    from regionqa.evaluation.report import format_table

    for number, table in enumerate(tables):
        print("\n".join([""] * bool(number) + format_table(table)))
