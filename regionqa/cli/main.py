"""The `regionqa` program: its commands, and one line and an exit status for every error.

Exit statuses are 1 for fatal errors, 2 for wrong usage, and 3 if some items failed. Commands import
heavy libraries in their functions, so that `--help` is fast.
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
"""Exit statuses of shells for SIGINT and SIGPIPE."""
(ParseError,) = typer.BadParameter.__bases__
"""Error of typer for command lines that cannot be parsed; it has no public name."""

app = typer.Typer(
    name="regionqa",
    help="Answer questions about regions of images, on your own machine.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # with rich, help takes twice as long and drops text in brackets
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


def show_version(version: bool) -> None:
    """Print the version and exit."""
    if version:
        print(f"regionqa {regionqa.__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=show_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Answer questions about regions of images, on your own machine."""


def replace_closed_streams() -> None:
    """Open streams that the shell closed (`2>&-`), which are None in Python."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), mode, encoding="utf-8"))


def discard_stdout() -> None:
    """Discard what stdout cannot take, on which Python would fail again at exit."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line and return the exit status. --debug adds tracebacks to errors."""
    from regionqa.errors import RegionQAError

    words = list(sys.argv[1:] if arguments is None else arguments)
    replace_closed_streams()
    try:
        status = app(words, prog_name="regionqa", standalone_mode=False)
        sys.stdout.flush()
        if status == INTERRUPTED:  # typer's exit status for Ctrl-C
            raise KeyboardInterrupt
        return int(status or 0)
    except SystemExit as error:
        # raised by typer if the reader has gone, and after shell completion
        if isinstance(error.__context__, BrokenPipeError):
            return PIPE_CLOSED
        raise
    except RegionQAError as error:
        return fail(str(error), error.exit_status, error, words)
    except ParseError as error:  # type: ignore[misc]
        message = getattr(error, "format_message", error.__str__)()
        return fail(f"{message} Try: regionqa --help", 2, error, words) if message else 2
    except BrokenPipeError:  # the reader has gone (| head -1)
        discard_stdout()
        return PIPE_CLOSED
    except (KeyboardInterrupt, typer.Abort):
        return fail("interrupted; the output so far is kept", INTERRUPTED, None, words)
    except Exception as error:
        return fail(f"unexpected {type(error).__name__}: {error}", 1, error, words)


def fail(message: str, status: int, error: BaseException | None, words: Sequence[str]) -> int:
    """Print an error on one line, after its traceback with --debug, and return the status."""
    if error is not None and "--debug" in words:
        import traceback

        traceback.print_exception(error)
    hint = "" if status != 1 or "--debug" in words or not message.startswith("unexpected") else (
        "; run again with --debug for the traceback"
    )  # fmt: skip
    print(f"regionqa: error: {' '.join(message.split())}{hint}", file=sys.stderr)
    discard_stdout()
    return status


if __name__ == "__main__":
    sys.exit(main())
