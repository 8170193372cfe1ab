"""The command line: parse, call one function, print. Heavy imports stand inside the commands.

Nothing is decided here that another module could decide. Everything a user can do wrong becomes one
line on stderr and an exit status: 1 fatal, 2 usage, 3 some items failed.
"""

import os
import sys
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

import regionqa
from regionqa.regions import BoxFormat, BoxUnits

INTERRUPTED = 130
PIPE_CLOSED = 141
"""The statuses that shells give to a program ended by Ctrl-C or by a reader that went away."""
(ParseError,) = typer.BadParameter.__bases__
"""What typer raises for a command line it cannot parse; it has no public name of its own."""

app = typer.Typer(
    name="regionqa",
    help="Answers questions about regions of pictures, on your own machine.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # help set by rich takes twice as long, and loses what is in brackets
    context_settings={"help_option_names": ["-h", "--help"]},
)
models_app = typer.Typer(help="The models at hand.", no_args_is_help=True)
app.add_typer(models_app, name="models")


class DeviceChoice(StrEnum):
    """Values of --device."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class Format(StrEnum):
    """Values of --format, the same as `outputs.OutputFormat`."""

    text = "text"
    json = "json"
    jsonl = "jsonl"
    csv = "csv"


Model = Annotated[str, typer.Option("--model", "-m", help="A shipped model, or a bundle's folder.")]
Boxes = Annotated[
    list[str] | None,
    typer.Option("--box", "-b", metavar="X0,Y0,X1,Y1", help="A box; repeat for more."),
]
BoxesFile = Annotated[
    Path | None,
    typer.Option(
        "--boxes",
        help="Boxes of many pictures: COCO, Pascal VOC, YOLO, LabelMe, Label Studio, CSV or plain "
        "JSON; a file, or a folder of files.",
    ),
]
BoxForm = Annotated[
    BoxFormat | None, typer.Option("--box-format", help="What four numbers mean; xyxy if not said.")
]
BoxUnit = Annotated[
    BoxUnits | None, typer.Option("--box-units", help="What one unit is; pixel if not said.")
]
OutFormat = Annotated[Format, typer.Option("--format", "-f", help="How answers are written.")]
Out = Annotated[Path | None, typer.Option("--out", "-o", help="Write to this file, not stdout.")]
Resume = Annotated[
    bool, typer.Option("--resume", help="Go on with --out where an earlier run ended.")
]
RetryErrors = Annotated[
    bool, typer.Option("--retry-errors", help="With --resume: ask again what failed.")
]
Draw = Annotated[
    Path | None,
    typer.Option(help="Draw boxes and answers: a .png, .jpg or .webp; a folder for many pictures."),
]
Device = Annotated[DeviceChoice, typer.Option(help="Where to run; cuda never falls back.")]
BatchSize = Annotated[
    int,
    typer.Option(min=1, help="Questions decoded together; 1 answers each line of stdin at once."),
]
Longest = Annotated[
    int | None, typer.Option("--max-new-tokens", min=1, help="Longest answer, in tokens.")
]
Timing = Annotated[bool, typer.Option("--timing", help="Fill in `ms` in JSON and CSV.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No warnings, no progress.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the trace of an error.")]


def show_version(asked: bool) -> None:
    """Print the version and stop."""
    if asked:
        print(f"regionqa {regionqa.__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=show_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Answers questions about regions of pictures, on your own machine."""


@app.command()
def ask(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGE... QUESTION",
            help="Pictures, folders, globs or - (stdin: paths, or JSON lines with their own "
            "questions); then the question, in which <region1> names the first box.",
        ),
    ],
    boxes: Boxes = None,
    boxfile: BoxesFile = None,
    box_format: BoxForm = None,
    box_units: BoxUnit = None,
    each: Annotated[bool, typer.Option("--each", help="Ask about every box on its own.")] = False,
    model: Model = "starter",
    format: OutFormat = Format.text,
    out: Out = None,
    resume: Resume = False,
    retry_errors: RetryErrors = False,
    draw: Draw = None,
    device: Device = DeviceChoice.auto,
    batch_size: BatchSize = 16,
    max_new_tokens: Longest = None,
    timing: Timing = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> int:
    """Ask a question about a picture, or about boxes in it.

    regionqa ask cat.jpg --box 10,20,200,300 "what is this?"
    """
    pictures, question = split_words(words)
    return answer(
        pictures=pictures, question=question, caption=False, each=each, model=model, boxes=boxes,
        boxfile=boxfile, box_format=box_format, box_units=box_units, format=format, out=out,
        resume=resume, retry_errors=retry_errors, draw=draw, device=device, batch_size=batch_size,
        max_new_tokens=max_new_tokens, timing=timing, quiet=quiet,
    )  # fmt: skip


@app.command()
def caption(
    images: Annotated[
        list[str],
        typer.Argument(metavar="IMAGE...", help="Pictures, folders, globs or - (stdin)."),
    ],
    boxes: Boxes = None,
    boxfile: BoxesFile = None,
    box_format: BoxForm = None,
    box_units: BoxUnit = None,
    model: Model = "starter",
    format: OutFormat = Format.text,
    out: Out = None,
    resume: Resume = False,
    retry_errors: RetryErrors = False,
    draw: Draw = None,
    device: Device = DeviceChoice.auto,
    batch_size: BatchSize = 16,
    max_new_tokens: Longest = None,
    timing: Timing = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> int:
    """Describe every box of a picture, or the whole picture where there is none.

    find photos -name '*.jpg' | regionqa caption - --boxes regions.json --format jsonl
    """
    return answer(
        pictures=images, question=None, caption=True, each=True, model=model, boxes=boxes,
        boxfile=boxfile, box_format=box_format, box_units=box_units, format=format, out=out,
        resume=resume, retry_errors=retry_errors, draw=draw, device=device, batch_size=batch_size,
        max_new_tokens=max_new_tokens, timing=timing, quiet=quiet,
    )  # fmt: skip


def answer(
    *,
    pictures: Sequence[str],
    boxes: Sequence[str] | None,
    format: Format,
    device: DeviceChoice,
    **others: Any,
) -> int:
    """Turn what was parsed into `Options`, and run."""
    from regionqa.answering import Options, run
    from regionqa.outputs import OutputFormat

    return run(
        Options(
            pictures=tuple(pictures),
            boxes=tuple(boxes or ()),
            format=OutputFormat(format),
            device=str(device),
            **others,
        )
    )


def split_words(words: Sequence[str]) -> tuple[list[str], str | None]:
    """Pictures and question; only lines of stdin may go without a question."""
    from regionqa.errors import UsageError

    if list(words) == ["-"]:
        return ["-"], None
    *pictures, question = words
    if not pictures or os.path.lexists(question):  # unlike Path.exists it takes any text
        raise UsageError(
            f'the question is missing; add it last: regionqa ask {words[0]} "what is this?"'
        )
    return pictures, question


@models_app.command("list")
def list_models(debug: Debug = False) -> None:
    """List the models that come with the package."""
    from regionqa.bundles import open_bundle, shipped_bundles

    for folder in shipped_bundles().values():
        bundle = open_bundle(folder)
        print(f"{bundle.card.name}\t{bundle.size / 1e6:.1f} MB\t{bundle.card.summary}")


@models_app.command("show")
def show_model(
    model: Annotated[
        str, typer.Argument(help="A shipped model, or a bundle's folder.")
    ] = "starter",
    debug: Debug = False,
) -> None:
    """Show a model's card: what it is, what it learned from, how well it does, its licence."""
    from regionqa.bundles import CARD, find_bundle

    bundle = find_bundle(model)
    print(f"# {bundle.root / CARD}")
    print((bundle.root / CARD).read_text(encoding="utf-8"), end="")


@app.command()
def doctor(model: Model = "starter", debug: Debug = False) -> int:
    """Say what is installed, what runs where, and why CUDA is not used when it is not."""
    from regionqa.doctor import examine

    findings = examine(model)
    width = max(len(finding.topic) for finding in findings)
    for finding in findings:
        mark = " " if finding.good else "!"
        print(f"{mark} {finding.topic:{width}}  {finding.text}")
    return 0 if all(finding.good for finding in findings) else 1


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder of the drawn pictures.")] = Path(
        "demo-pictures"
    ),
    model: Model = "starter",
    device: Device = DeviceChoice.auto,
    debug: Debug = False,
) -> None:
    """Ask about a few real photos and draw the answers."""
    from regionqa.demo import demonstrate

    demonstrate(regionqa.load(model, device=str(device)), out, print)


def replace_closed_streams() -> None:
    """Open what the shell closed (`2>&-`), for which Python leaves None."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), mode, encoding="utf-8"))


def drop_unwritten() -> None:
    """Keep Python from failing once more, as it ends, to write what stdout has not taken."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line; the exit status. Errors become one line, or a trace with --debug."""
    from regionqa.errors import RegionQAError

    words = list(sys.argv[1:] if arguments is None else arguments)
    replace_closed_streams()
    try:
        status = app(words, prog_name="regionqa", standalone_mode=False)
        sys.stdout.flush()
        if status == INTERRUPTED:  # typer's own answer to Ctrl-C
            raise KeyboardInterrupt
        return int(status or 0)
    except SystemExit as ended:
        # typer ends so when the reader has gone, and when it has completed a word for a shell
        if isinstance(ended.__context__, BrokenPipeError):
            return PIPE_CLOSED
        raise
    except RegionQAError as error:
        return fail(str(error), error.exit_status, error, words)
    except ParseError as error:  # type: ignore[misc]
        message = getattr(error, "format_message", error.__str__)()
        return fail(f"{message} Try: regionqa --help", 2, error, words) if message else 2
    except BrokenPipeError:  # the reader has gone (| head -1)
        drop_unwritten()
        return PIPE_CLOSED
    except (KeyboardInterrupt, typer.Abort):
        return fail("interrupted; what was written is kept", INTERRUPTED, None, words)
    except Exception as error:
        return fail(f"unexpected {type(error).__name__}: {error}", 1, error, words)


def fail(message: str, status: int, error: BaseException | None, words: Sequence[str]) -> int:
    """One line on stderr, after the trace where --debug asked for it."""
    if error is not None and "--debug" in words:
        import traceback

        traceback.print_exception(error)
    hint = "" if status != 1 or "--debug" in words or "unexpected" not in message else (
        "; run again with --debug for the trace"
    )  # fmt: skip
    print(f"regionqa: error: {' '.join(message.split())}{hint}", file=sys.stderr)
    drop_unwritten()
    return status


if __name__ == "__main__":
    sys.exit(main())
