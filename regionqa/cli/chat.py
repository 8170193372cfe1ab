"""`chat` and `serve`: questions from a terminal, a file or a pipe, and from a page and programs.

At a terminal, lines can be edited and answers appear while they are generated; elsewhere an answer
is one line. Answers go to stdout, everything else to stderr.
"""

import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from regionqa.cli.options import SERVE, only, require, with_options, without
from regionqa.errors import SOME_FAILED, BoxError, OutputError, UsageError
from regionqa.flags import Reads
from regionqa.options import BoxOptions, GenerationOptions, OutputOptions, RuntimeOptions
from regionqa.pipeline.console import Console, printable
from regionqa.serve.options import ServeOptions

if TYPE_CHECKING:
    from regionqa.pipeline.chat import Chat, SavedConversation


PROMPT = "> "


@with_options
def chat(
    image: Annotated[
        str, typer.Argument(metavar="IMAGE", help="Image to talk about."), Reads.images
    ],
    *,
    boxes: Annotated[BoxOptions, without("boxes", "scale_boxes", "masks")],
    turns: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", help="File of questions and commands, one a line; - is stdin."
        ),
        Reads.data,
    ] = None,
    runtime: Annotated[RuntimeOptions, without("batch_size", "server_concurrency")],
    generation: Annotated[GenerationOptions, without("choices", "schema")],
    output: Annotated[OutputOptions, only("quiet", "show_prompt")],
) -> int:
    """Talk about an image and add boxes as you go; /help lists the commands.

    regionqa chat cat.jpg --box 10,20,200,300
    """
    from regionqa.engine import Engine
    from regionqa.images.reading import open_image
    from regionqa.pipeline.chat import Chat, ChatSettings

    interactive = turns is None and sys.stdin.isatty()
    lines = lines_of_terminal() if interactive else lines_of_file(turns)
    open_image(image)  # fails before the model is loaded
    engine = Engine.load(options=runtime)
    console = ChatConsole(quiet=output.quiet)
    if engine.info.note:
        console.warn(engine.info.note)
    settings = ChatSettings(boxes, generation, output.show_prompt)
    conversation = Chat(engine, settings, console, write_conversations)
    conversation.open(image)
    try:
        for box in boxes.box:
            conversation.add_box(box)
    except BoxError as error:
        raise UsageError(f"--box: {error}") from None
    if interactive:
        console.note(f"{engine.info.name} is ready; /help lists the commands")
    converse(conversation, lines, interactive=interactive)
    return SOME_FAILED if conversation.failed and not interactive else 0


@with_options
def serve(
    images: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="FOLDER|IMAGE...", help="Images and folders to show. Default: none but uploads."
        ),
        Reads.images,
    ] = None,
    *,
    serving: ServeOptions,
    runtime: RuntimeOptions,
    generation: Annotated[GenerationOptions, without("choices", "schema")],
    output: Annotated[OutputOptions, only("quiet")],
) -> int:
    """Serve a page to draw regions on and ask about them, and a JSON API.

    regionqa serve photos
    """
    require("serve", "serve", SERVE)
    from regionqa.serve.server import ServeRun, serve_images

    run = ServeRun(tuple(images or ()), serving, runtime, generation)
    return serve_images(run, Console(quiet=output.quiet))


def converse(conversation: "Chat", lines: Iterator[str], *, interactive: bool) -> None:
    """Follow lines to their end. At a terminal, Ctrl-C stops an answer, not the program."""
    while True:
        try:
            line = next(lines, None)
            if line is None or not conversation.follow(line):
                return
        except KeyboardInterrupt:
            if not interactive:
                raise
            print("\ninterrupted; the question is dropped", file=sys.stderr, flush=True)


class ChatConsole(Console):
    """Answers on stdout, as they are generated if that is a terminal; messages on stderr."""

    def __init__(self, *, quiet: bool) -> None:
        super().__init__(quiet=quiet)
        self._live = sys.stdout.isatty()

    def part(self, text: str) -> None:
        """Print a part of an answer, at a terminal."""
        if self._live:
            write_stdout("\n".join(map(printable, text.split("\n"))))

    def answer(self, text: str) -> None:
        """End the line of an answer whose parts are printed, or print it as one line."""
        write_stdout("\n" if self._live else printable(text) + "\n")

    def note(self, text: str) -> None:
        """Print what a command did, unless quiet."""
        if not self._quiet:
            for line in text.split("\n"):
                print(printable(line), file=sys.stderr, flush=True)


def lines_of_terminal() -> Iterator[str]:
    """Read lines, edited, until the terminal's end of input."""
    with suppress(ImportError):
        import readline  # noqa: F401 (`input` edits lines and recalls them once it is imported)
    # with stdout in a file, `input` would write its prompt there
    read = input if sys.stdout.isatty() else input_with_prompt_on_stderr
    while True:
        try:
            line = read(PROMPT)
        except EOFError:
            print(file=sys.stderr, flush=True)
            return
        except KeyboardInterrupt:
            print(file=sys.stderr, flush=True)
            continue
        yield line


def input_with_prompt_on_stderr(prompt: str) -> str:
    """Read a line like `input`, with the prompt on stderr."""
    sys.stderr.write(prompt)
    sys.stderr.flush()
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line


def lines_of_file(turns: str | None) -> Iterator[str]:
    """Read the lines of a file, or of stdin for `-` and None; UsageError if that fails."""
    if turns in (None, "-"):
        if isinstance(sys.stdin, TextIOWrapper):
            sys.stdin.reconfigure(errors="surrogateescape")  # reported when the question is asked
        return iter(sys.stdin.readline, "")
    path = Path(str(turns))
    try:
        return iter(path.read_text(encoding="utf-8-sig").splitlines())
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"--turns: {path} cannot be read: {reason}") from None


def write_conversations(path: Path, conversations: "Sequence[SavedConversation]") -> None:
    """Write conversations as training data."""
    from regionqa.data.convert import write_training_data
    from regionqa.data.records import Record, Turn

    records = [
        Record(one.image, one.regions, tuple(Turn(*turn) for turn in one.turns), str(path))
        for one in conversations
    ]
    write_training_data(path, records)


def write_stdout(text: str) -> None:
    """Write and flush; OutputError if that fails, BrokenPipeError if the reader has gone."""
    from regionqa.pipeline.outputs import encode

    try:
        sys.stdout.flush()
        sys.stdout.buffer.write(encode(text))
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputError(f"stdout: cannot be written: {error.strerror}") from error
