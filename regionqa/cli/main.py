"""The program: every command put together, and every error made one line and an exit status.

1 is fatal, 2 usage, 3 some items failed. Nothing is decided in this package that another module
could decide; heavy imports stand inside the commands.
"""

import os
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

import regionqa
from regionqa.cli import ask, chat, data, download, eval, export, finetune, init, models

INTERRUPTED = 130
PIPE_CLOSED = 141
"""The statuses that shells give to a program ended by Ctrl-C or by a reader that went away."""
(ParseError,) = typer.BadParameter.__bases__
"""What typer raises for a command line it cannot parse; it has no public name of its own."""

app = typer.Typer(
    name="regionqa",
    help="Answers questions about regions of images, on your own machine.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # help set by rich takes twice as long, and loses what is in brackets
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(ask.ask)
app.command()(ask.caption)
app.command()(chat.chat)
app.add_typer(models.models_app, name="models")
app.command()(finetune.finetune)
app.add_typer(data.data_app, name="data")
app.add_typer(eval.eval_app, name="eval")
app.command()(download.download)
app.command()(export.export)
app.command()(init.init)
app.command()(models.doctor)
app.command()(models.demo)


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
    """Answers questions about regions of images, on your own machine."""


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
    hint = "" if status != 1 or "--debug" in words or not message.startswith("unexpected") else (
        "; run again with --debug for the trace"
    )  # fmt: skip
    print(f"regionqa: error: {' '.join(message.split())}{hint}", file=sys.stderr)
    drop_unwritten()
    return status


if __name__ == "__main__":
    sys.exit(main())
