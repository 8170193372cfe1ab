"""The `regionqa` program: its commands, and one line and an exit status for every error.

Exit statuses are 1 for fatal errors, 2 for wrong usage, and 3 if some items failed. A command's
module is imported when the command is run, and heavy libraries in its function, so that `--help` is
fast.
"""

import os
import sys
from collections.abc import Iterator, MutableMapping, Sequence
from importlib import import_module
from typing import Annotated, Any, NamedTuple

import typer
from typer.core import TyperCommand, TyperGroup

import regionqa

INTERRUPTED = 130
PIPE_CLOSED = 141
"""Exit statuses of shells for SIGINT and SIGPIPE."""
(ParseError,) = typer.BadParameter.__bases__
"""Error of typer for command lines that cannot be parsed; it has no public name."""


class CommandEntry(NamedTuple):
    """Where a command is defined, and its line in the list of commands."""

    module: str
    """Module of regionqa.cli with a function, or a group `<name>_app`, of the command's name."""
    summary: str
    """First line of the command's help."""


COMMANDS = {
    "ask": CommandEntry("ask", "Ask a question about an image, or about boxes in it."),
    "caption": CommandEntry(
        "ask", "Describe each box of an image, or the whole image if there is none."
    ),
    "detect": CommandEntry("ask", "Find objects and write their boxes, with labels and scores."),
    "chat": CommandEntry(
        "chat", "Talk about an image and add boxes as you go; /help lists the commands."
    ),
    "serve": CommandEntry(
        "chat", "Serve a page to draw regions on and ask about them, and a JSON API."
    ),
    "batch": CommandEntry(
        "batch",
        "Answer millions of requests on one machine or a Ray cluster, and resume where it stopped.",
    ),
    "finetune": CommandEntry("finetune", "Train a model on your own regions."),
    "models": CommandEntry("models", "Choose, list and show models."),
    "data": CommandEntry("data", "Check, look at, convert and generate training data."),
    "eval": CommandEntry("eval", "Evaluate models on your own data, with confidence intervals."),
    "download": CommandEntry(
        "download", "Download a model from the Hub, or its changed files, and print its folder."
    ),
    "export": CommandEntry(
        "export",
        "Check a model's files and graphs, then write it to a folder or publish it on the Hub.",
    ),
    "init": CommandEntry(
        "init", "Assemble a model from published parts, each a folder or a repository on the Hub."
    ),
    "doctor": CommandEntry(
        "models", "Report what is installed, what runs where, and how much memory the model needs."
    ),
    "demo": CommandEntry("models", "Ask about a few real photos and draw the answers."),
}
"""Commands by name, in the order of the help. Importing all of their modules takes longer than
importing typer, so this list, not the modules, makes `regionqa --help`."""


class LazyCommands(MutableMapping[str, Any]):
    """The commands of `COMMANDS`, each imported when it is looked up."""

    def __init__(self) -> None:
        self._loaded: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._loaded:
            self._loaded[name] = load_command(name, COMMANDS[name].module)
        return self._loaded[name]

    def __setitem__(self, name: str, command: Any) -> None:
        self._loaded[name] = command

    def __delitem__(self, name: str) -> None:
        raise TypeError(f"{name}: a command cannot be removed")

    def __iter__(self) -> Iterator[str]:
        return iter(COMMANDS)

    def __len__(self) -> int:
        return len(COMMANDS)


def load_command(name: str, module: str) -> Any:
    """Import the module of a command and build the command."""
    found = import_module(f"regionqa.cli.{module}")
    parent = typer.Typer(rich_markup_mode=None)
    group = getattr(found, f"{name}_app", None)
    if group is None:
        parent.command(name)(getattr(found, name))
    else:
        parent.add_typer(group, name=name)
    return typer.main.get_group(parent).commands[name]


class CommandGroup(TyperGroup):
    """All commands, of which only the one that is run is imported."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands = LazyCommands()

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """List the commands without importing them."""
        limit = formatter.width - 6 - max(map(len, COMMANDS))
        command = TyperCommand("")
        rows = []
        for name, entry in COMMANDS.items():
            command.help = entry.summary
            rows.append((name, command.get_short_help_str(limit)))
        with formatter.section("Commands"):
            formatter.write_dl(rows)


app = typer.Typer(
    name="regionqa",
    cls=CommandGroup,
    help="Answer questions about regions of images, on your own machine.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # with rich, help takes twice as long and drops text in brackets
    context_settings={"help_option_names": ["-h", "--help"]},
)


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
