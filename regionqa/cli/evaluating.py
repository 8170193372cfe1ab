"""`eval`: models measured on the user's own data, alone or two against each other."""

import sys
from collections.abc import Iterable, Iterator, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from regionqa.cli.extras import EVAL, PLOT, require
from regionqa.cli.options import BatchSize, Debug, Device, DeviceChoice, Longest, Model, Quiet

if TYPE_CHECKING:
    from regionqa.evaluation.report import Table
    from regionqa.evaluation.running import Screen, Task
    from regionqa.requests import Answer

SOME_FAILED = 3

eval_app = typer.Typer(
    help="Measure models on your own data: how often they are right, with intervals.",
    no_args_is_help=True,
)


class By(StrEnum):
    """Values of --by."""

    words = "words"
    sentence_encoder = "sentence-encoder"


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
Pictures = Annotated[
    Path | None,
    typer.Option("--images", help="The folder that names of pictures start from; else the file's."),
]


@eval_app.command()
def recognition(
    boxes: Annotated[
        Path,
        typer.Option("--boxes", help="Boxes with labels: COCO or any format that --boxes reads."),
    ],
    images: Pictures = None,
    model: Model = "starter",
    compare: Compare = None,
    min_side: Annotated[
        float, typer.Option("--min-side", min=0, help="Leave out boxes whose shorter side is less.")
    ] = 32,
    question: Annotated[str, typer.Option(help="What each box is asked.")] = "what is this?",
    by: Annotated[
        By,
        typer.Option(help="What takes replies for classes: their words, or a sentence encoder."),
    ] = By.words,
    encoder: Annotated[
        str | None,
        typer.Option(
            help="With --by sentence-encoder: a folder or OWNER/NAME; MiniLM if not said."
        ),
    ] = None,
    classes: Annotated[
        Path | None,
        typer.Option(help="TOML of further names and synonyms; see docs/evaluation.md."),
    ] = None,
    answers: Answers = None,
    json: AsJson = None,
    plot: Plot = None,
    limit: Limit = None,
    unsure_below: UnsureBelow = None,
    device: Device = DeviceChoice.auto,
    batch_size: BatchSize = 16,
    max_new_tokens: Longest = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> int:
    """Ask of every labelled box what it is, and count how often its class is named.

    regionqa eval recognition --boxes instances.json --images photos --plot bars.png
    """
    from regionqa.errors import UsageError

    if encoder and by is not By.sentence_encoder:
        raise UsageError(
            "--encoder: says what takes replies for classes; add --by sentence-encoder"
        )
    if by is By.sentence_encoder:
        require("eval --by sentence-encoder", "eval", EVAL)
    from regionqa.evaluation.encoder import ENCODER
    from regionqa.evaluation.tasks import recognition_task

    task = recognition_task(
        boxes,
        images or (boxes if boxes.is_dir() else boxes.parent),
        min_side=min_side,
        question=question,
        classes=classes,
        encoder=(encoder or ENCODER) if by is By.sentence_encoder else None,
        limit=limit,
    )
    return measure(
        task, model=model, compare=compare, answers=answers, json=json, plot=plot,
        unsure_below=unsure_below, device=device, batch_size=batch_size,
        max_new_tokens=max_new_tokens, quiet=quiet,
    )  # fmt: skip


@eval_app.command()
def vqa(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="JSON lines: training records, or requests with an answer, and perhaps choices.",
        ),
    ],
    images: Pictures = None,
    model: Model = "starter",
    compare: Compare = None,
    likelihood: Annotated[
        bool,
        typer.Option(
            "--likelihood/--no-likelihood",
            help="Where there are choices, also say which the model finds likeliest.",
        ),
    ] = True,
    answers: Answers = None,
    json: AsJson = None,
    plot: Plot = None,
    limit: Limit = None,
    unsure_below: UnsureBelow = None,
    device: Device = DeviceChoice.auto,
    batch_size: BatchSize = 16,
    max_new_tokens: Longest = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> int:
    """Ask questions whose answers are known: yes or no, counts, choices, or any words.

    regionqa eval vqa questions.jsonl --compare starter my-model
    """
    from regionqa.evaluation.tasks import vqa_task

    task = vqa_task(file, images, limit=limit, likelihood=likelihood)
    return measure(
        task, model=model, compare=compare, answers=answers, json=json, plot=plot,
        unsure_below=unsure_below, device=device, batch_size=batch_size,
        max_new_tokens=max_new_tokens, quiet=quiet,
    )  # fmt: skip


def measure(
    task: "Task",
    *,
    model: str,
    compare: tuple[str, str] | None,
    answers: Path | None,
    json: Path | None,
    plot: Path | None,
    unsure_below: float | None,
    device: DeviceChoice,
    batch_size: int,
    max_new_tokens: int | None,
    quiet: bool,
) -> int:
    """Run a task, and tell what came of it; 3 where some items failed."""
    if plot:
        require("--plot", "eval", PLOT)
    from regionqa.evaluation import report
    from regionqa.evaluation.results import Measured
    from regionqa.evaluation.running import How, evaluate

    how = How(
        models=compare or (model,),
        device=str(device),
        batch_size=batch_size,
        max_new_tokens=max_new_tokens,
        unsure_below=unsure_below,
        answers=answers,
    )
    result = evaluate(task, how, screen(quiet))
    if isinstance(result, Measured):
        show(report.tables(result))
        content, failed = report.document(result), result.failed
    else:
        show(report.comparison_tables(result))
        content = report.comparison_document(result)
        failed = result.first.failed + result.second.failed
    if json:
        report.write_json(json, content)
    if plot:
        from regionqa.evaluation.plots import draw

        draw(result, plot)
    return SOME_FAILED if failed else 0


def screen(quiet: bool) -> "Screen":
    """Errors of items on stderr, and a bar where that is a terminal."""
    from regionqa.evaluation.running import Screen

    def follow(answers: "Iterator[Answer]", total: int, model: str) -> "Iterable[Answer]":
        if quiet or not sys.stderr.isatty():
            return answers
        from rich.console import Console
        from rich.progress import track

        return track(
            answers, description=model, total=total, console=Console(stderr=True), transient=True
        )

    return Screen(lambda line: print(f"regionqa: {line}", file=sys.stderr), follow)


def show(tables: "Sequence[Table]") -> None:
    """Tables on stdout: with lines around them on a terminal, else as plain aligned text."""
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.table import Table as Drawn
        from rich.text import Text

        console = Console()
        for table in tables:
            drawn = Drawn(title=Text(table.title), title_justify="left", header_style="bold")
            for number, name in enumerate(table.header):
                drawn.add_column(Text(name), justify="left" if number == 0 else "right")
            for row in table.rows:
                drawn.add_row(*map(Text, row))
            console.print(drawn)
        return
    from regionqa.evaluation.report import lines

    for number, table in enumerate(tables):
        print("\n".join([""] * bool(number) + lines(table)))
