"""`chat`: lines from a terminal, a file or a pipe in, answers out.

On a terminal lines are edited and answers appear as they are generated; elsewhere every answer is
one line. Answers go to stdout, and all that is said about them to stderr.
"""

import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from regionqa.cli.options import (
    Boxes,
    BoxForm,
    BoxUnit,
    Debug,
    Device,
    DeviceChoice,
    Dtype,
    DtypeChoice,
    Guess,
    Longest,
    Model,
    Quantize,
    Quiet,
    Seed,
    Temperature,
    UnsureBelow,
)

if TYPE_CHECKING:
    from regionqa.pipeline.chat import Chat, SavedConversation


SOME_FAILED = 3
PROMPT = "> "


def chat(
    image: Annotated[str, typer.Argument(metavar="IMAGE", help="The image to talk about.")],
    boxes: Boxes = None,
    box_format: BoxForm = None,
    box_units: BoxUnit = None,
    turns: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Questions and commands, one a line; - is stdin."),
    ] = None,
    model: Model = "starter",
    device: Device = DeviceChoice.auto,
    dtype: Dtype = DtypeChoice.auto,
    quantize: Quantize = None,
    max_new_tokens: Longest = None,
    guess: Guess = False,
    unsure_below: UnsureBelow = None,
    temperature: Temperature = None,
    seed: Seed = 0,
    quiet: Quiet = False,
    debug: Debug = False,
) -> int:
    """Talk about an image, adding boxes as you go; /help lists the commands.

    regionqa chat cat.jpg --box 10,20,200,300
    """
    from regionqa.bundles.store import find_bundle
    from regionqa.engine import Engine
    from regionqa.errors import BoxError, UsageError
    from regionqa.images.reading import open_image
    from regionqa.pipeline.chat import Chat, ChatSettings
    from regionqa.regions import BoxFormat, BoxUnits

    if guess and unsure_below is not None:
        raise UsageError("--guess: holds no answer back, so --unsure-below means nothing; drop one")
    by_hand = turns is None and sys.stdin.isatty()
    lines = typed() if by_hand else written(turns)
    open_image(image)  # what can be refused is refused before the model is loaded
    settings = ChatSettings(
        box_format=box_format or BoxFormat.xyxy,
        box_units=box_units or BoxUnits.pixel,
        max_new_tokens=max_new_tokens,
        unsure_below=0.0 if guess else unsure_below,
        temperature=temperature,
        seed=seed,
    )
    engine = Engine.load(
        find_bundle(model), device=device, batch_size=1, dtype=dtype, quantize=quantize
    )
    talk = Chat(engine, settings, ChatConsole(quiet), write)
    talk.open(image)
    try:
        for box in boxes or ():
            talk.add_box(box)
    except BoxError as error:
        raise UsageError(f"--box: {error}") from None
    if by_hand and not quiet:
        say(f"{engine.bundle.card.name} listens; /help lists the commands")
    converse(talk, lines, by_hand=by_hand)
    return SOME_FAILED if talk.failed and not by_hand else 0


def converse(talk: "Chat", lines: Iterator[str], *, by_hand: bool) -> None:
    """Follow lines to their end. By hand, Ctrl-C stops an answer rather than the program."""
    while True:
        try:
            line = next(lines, None)
            if line is None or not talk.follow(line):
                return
        except KeyboardInterrupt:
            if not by_hand:
                raise
            say("\ninterrupted; nothing of it is kept")


class ChatConsole:
    """Answers on stdout; notes, warnings and errors on stderr."""

    def __init__(self, quiet: bool) -> None:
        self._quiet = quiet
        self._live = sys.stdout.isatty()

    def part(self, text: str) -> None:
        """Show a part of an answer, on a terminal."""
        if self._live:
            put(printable(text, lines=True))

    def answer(self, text: str) -> None:
        """End the line of an answer; where it is no terminal, write it as one."""
        put("\n" if self._live else printable(text, lines=False) + "\n")

    def note(self, line: str) -> None:
        """Say what a command did."""
        if not self._quiet:
            say(printable(line, lines=True))

    def warn(self, line: str) -> None:
        """Say what the user may want to know."""
        self.note(f"regionqa: warning: {line}")

    def error(self, line: str) -> None:
        """Say why a line could not be followed."""
        say(f"regionqa: {printable(line, lines=False)}")


def typed() -> Iterator[str]:
    """Lines of a terminal, edited; until its end."""
    with suppress(ImportError):
        import readline  # noqa: F401 (gives `input` its editing and its memory of lines)
    # `input` would write its prompt into a file that takes the answers
    ask = input if sys.stdout.isatty() else asked_aside
    while True:
        try:
            line = ask(PROMPT)
        except EOFError:
            say("")
            return
        except KeyboardInterrupt:
            say("")
            continue
        yield line


def asked_aside(prompt: str) -> str:
    """As `input`, with the prompt on stderr."""
    sys.stderr.write(prompt)
    sys.stderr.flush()
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line


def written(turns: str | None) -> Iterator[str]:
    """Lines of a file, or of stdin for `-` and for nothing; UsageError where it cannot be read."""
    from regionqa.errors import UsageError

    if turns in (None, "-"):
        if isinstance(sys.stdin, TextIOWrapper):
            sys.stdin.reconfigure(errors="surrogateescape")  # the question will say so
        return iter(sys.stdin.readline, "")
    path = Path(str(turns))
    try:
        return iter(path.read_text(encoding="utf-8-sig").splitlines())
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"--turns: {path} cannot be read: {reason}") from None


def write(path: Path, conversations: "Sequence[SavedConversation]") -> None:
    """Put conversations into a file of training data."""
    from regionqa.data.convert import write_training_data
    from regionqa.data.records import Record, Turn

    records = [
        Record(kept.image, kept.regions, tuple(Turn(*turn) for turn in kept.turns), str(path))
        for kept in conversations
    ]
    write_training_data(path, records)


def printable(text: str, *, lines: bool) -> str:
    """The text without what would steer a terminal; with its line ends, or all on one line."""
    from regionqa.pipeline.outputs import CONTROLS

    rows = text.split("\n") if lines else [text]
    return "\n".join(CONTROLS.sub(" ", row) for row in rows)


def put(text: str) -> None:
    """Write to stdout, at once; OutputError where that fails, but for a reader that has gone."""
    from regionqa.errors import OutputError
    from regionqa.pipeline.outputs import encode

    try:
        sys.stdout.flush()
        sys.stdout.buffer.write(encode(text))
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputError(f"stdout: cannot be written: {error.strerror}") from error


def say(line: str) -> None:
    """Write a line to stderr."""
    print(line, file=sys.stderr, flush=True)
