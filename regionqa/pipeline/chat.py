"""A conversation about an image: questions with a history, and regions that join at any turn.

A line is a question, or a command that begins with `/`. Every question goes through
`Engine.answer`; what is kept between two of them is here. This module does not know a terminal.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from regionqa.data.fields import check_text
from regionqa.engine import Engine
from regionqa.errors import ItemError, OutputError, QuestionError
from regionqa.images.reading import InputImage, open_image
from regionqa.language.prompts import REFERENCE, introduce, renumber
from regionqa.pipeline.outputs import error_text
from regionqa.regions import BoxFormat, BoxUnits, Region, WrittenBox, clip_all, parse_box
from regionqa.requests import HistoryTurn, Request

HELP = """\
/box X0,Y0,X1,Y1   add a region; a question names it as <region1>, <region2> ...
/boxes             list the regions
/undo              take back the last question, or the last region where it came after
/new               begin anew with this image
/image PATH        begin anew with another image
/save FILE         write all that was said as training data, which finetune reads
/help              show this
/quit              end, as Ctrl-D does"""
SINGLE = (
    "this model knows one question at a time: each is asked on its own, about the regions it "
    "names, or those that are new, or those of the question before"
)


class ChatListener(Protocol):
    """Who hears the conversation."""

    def part(self, text: str) -> None:
        """A part of an answer, as soon as it is known."""

    def answer(self, text: str) -> None:
        """The whole answer, at its end."""

    def note(self, line: str) -> None:
        """What a command did."""

    def warn(self, line: str) -> None:
        """What the user may want to know."""

    def error(self, line: str) -> None:
        """Why a line could not be followed."""


@dataclass(frozen=True)
class ChatSettings:
    """What holds for the whole conversation."""

    box_format: BoxFormat = BoxFormat.xyxy
    """What four numbers mean."""
    box_units: BoxUnits = BoxUnits.pixel
    """What one unit is."""
    max_new_tokens: int | None = None
    """Longest answer; None: what the card says."""
    unsure_below: float | None = None
    """The probability below which the model is not sure; None: what the card says."""
    temperature: float | None = None
    """How random answers are; None: as the card says."""
    seed: int = 0
    """Of what is random."""


@dataclass(frozen=True)
class ChatTurn:
    """A question that was answered."""

    question: str
    answer: str
    regions: int
    """How many regions there were."""
    about: tuple[int, ...]
    """Numbers of the regions that it was asked about."""
    introduced: tuple[int, ...]
    """Those of them that it did not name, and that were told before it."""


@dataclass
class ChatState:
    """One conversation: about one image."""

    image: InputImage
    regions: list[Region] = field(default_factory=list)
    said: list[ChatTurn] = field(default_factory=list)

    @property
    def last_regions(self) -> int:
        """How many regions there were at the last question."""
        return self.said[-1].regions if self.said else 0


@dataclass(frozen=True)
class SavedConversation:
    """A conversation as it is saved: every region is named by the first question about it."""

    image: Path
    regions: tuple[Region, ...]
    turns: tuple[tuple[str, str], ...]
    """Questions and answers."""


Write = Callable[[Path, Sequence[SavedConversation]], None]


class Chat:
    """Follows lines, one at a time."""

    def __init__(
        self, engine: Engine, settings: ChatSettings, listener: ChatListener, write: Write
    ) -> None:
        """write: puts conversations into a file, in place of what is there."""
        self.failed = 0
        """How many lines could not be followed."""
        self._engine = engine
        self._rules = engine.bundle.card.prompt
        self._settings = settings
        self._listener = listener
        self._write = write
        self._talks: list[ChatState] = []
        self._saved: set[Path] = set()
        self._told_single = False
        self._commands: dict[str, Callable[[str], None]] = {
            "box": self.add_box,
            "boxes": self.list_boxes,
            "undo": self.undo,
            "new": lambda _: self._begin(self._talk.image),
            "image": self.open,
            "save": self.save,
            "help": lambda _: self._listener.note(HELP),
        }

    @property
    def _talk(self) -> ChatState:
        return self._talks[-1]

    def open(self, path: str) -> None:
        """Begin a conversation about an image; ImageError where it cannot be opened."""
        if not path:
            raise ItemError("/image: name an image, like /image cat.jpg")
        image = open_image(Path(path).expanduser())
        image.load()  # now, rather than at the first question
        self._begin(image)

    def follow(self, line: str) -> bool:
        """Do what a line says; whether the conversation goes on.

        What is wrong with a line is told to the listener, and counted in `failed`.
        """
        line = line.strip()
        word, _, rest = line.removeprefix("/").partition(" ")
        try:
            if not line.startswith("/"):
                self.ask(line) if line else None
            elif word == "quit":
                return False
            elif word in self._commands:
                self._commands[word](rest.strip())
            else:
                raise ItemError(f"/{word}: no such command; /help lists them")
        except ItemError as error:
            self.failed += 1
            self._listener.error(str(error))
        return True

    def add_box(self, text: str) -> None:
        """Add a region; BoxError where it is malformed or lies outside the image."""
        talk, settings = self._talk, self._settings
        written = WrittenBox(parse_box(text), settings.box_format, settings.box_units)
        size = (talk.image.width, talk.image.height)
        (region,), warnings = clip_all((written.resolve(*size),), *size)
        for warning in warnings:
            self._listener.warn(warning)
        if len(talk.regions) >= (most := self._engine.bundle.card.max_regions):
            raise ItemError(f"/box: the model takes {most} regions; /new begins anew")
        talk.regions.append(region)
        self._listener.note(self._shown(len(talk.regions)))

    def list_boxes(self, _: str = "") -> None:
        """Tell the regions."""
        numbers = range(1, len(self._talk.regions) + 1)
        for line in map(self._shown, numbers) if numbers else ["no regions; /box adds one"]:
            self._listener.note(line)

    def undo(self, _: str = "") -> None:
        """Take back the last question with its answer, or the last region where it is newer."""
        talk = self._talk
        if len(talk.regions) > talk.last_regions:
            talk.regions.pop()
            self._listener.note(f"region {len(talk.regions) + 1} is taken back")
        elif talk.said:
            question = talk.said.pop().question
            self._listener.note(f"taken back: {question}")
        else:
            raise ItemError("/undo: there is nothing to take back")

    def ask(self, question: str) -> None:
        """Ask, tell the answer, and keep both; QuestionError where it cannot be answered."""
        check_text(question, self._talk.image.name)
        request, said = self._request(question)
        settings, listener = self._settings, self._listener
        answers = self._engine.answer(
            [request],
            max_new_tokens=settings.max_new_tokens,
            unsure_below=settings.unsure_below,
            temperature=settings.temperature,
            seed=settings.seed,
            on_text=lambda _, part: listener.part(part),
        )
        answer = next(answers)
        if answer.error:
            again = "; /undo takes a question back, /new begins anew" if request.history else ""
            raise QuestionError(error_text(answer) + again)
        listener.answer(answer.text)
        talk = self._talk
        talk.said.append(ChatTurn(question, answer.text, len(talk.regions), *said))

    def save(self, text: str) -> None:
        """Write every conversation so far as a line of training data."""
        if not text:
            raise ItemError("/save: name a file, like /save mine.jsonl")
        path = Path(text).expanduser()
        talks = [talk for talk in self._talks if talk.said]
        if not talks:
            raise ItemError("/save: nothing has been said yet")
        if path.exists() and path.resolve() not in self._saved:
            raise ItemError(f"/save: {path} is there already; name another file")
        try:
            self._write(path, list(map(self._kept, talks)))
        except OutputError as error:  # what was said is still here, so it can go elsewhere
            raise ItemError(f"/save: {error}") from error
        self._saved.add(path.resolve())
        turns = sum(len(talk.said) for talk in talks)
        self._listener.note(f"{path}: {turns} {'question' if turns == 1 else 'questions'} saved")

    def _begin(self, image: InputImage) -> None:
        if self._talks and not self._talk.said:
            self._talks.pop()
        self._talks.append(ChatState(image))
        self._listener.note(f"{image.name}, {image.width} x {image.height} pixels")

    def _shown(self, number: int) -> str:
        return f"<region{number}> {self._talk.regions[number - 1].box}"

    def _request(self, question: str) -> tuple[Request, tuple[tuple[int, ...], tuple[int, ...]]]:
        """What is asked now; the numbers it is about, and those of them it does not name."""
        talk = self._talk
        image, regions = talk.image, tuple(talk.regions)
        new = tuple(range(talk.last_regions + 1, len(regions) + 1))
        mentioned = dict.fromkeys(REFERENCE.findall(question))
        known = {str(number): number for number in range(1, len(regions) + 1)}
        named = tuple(known[digits] for digits in mentioned if digits in known)
        if self._rules.turn is not None:
            history = tuple(HistoryTurn(s.question, s.answer, s.regions) for s in talk.said)
            unnamed = tuple(number for number in new if number not in named)
            request = Request(image.name, question, regions, image, history=history)
            return request, (named, unnamed)
        if talk.said and not self._told_single:
            self._told_single = True
            self._listener.warn(SINGLE)
        about = named or new or (talk.said[-1].about if talk.said else ())
        if len(named) == len(mentioned):  # else the engine will say which region is not there
            question = renumber(question, about)
            regions = tuple(regions[number - 1] for number in about)
        return Request(image.name, question, regions, image), (about, () if named else about)

    def _kept(self, talk: ChatState) -> SavedConversation:
        turns = (
            (introduce(self._rules, said.question, said.introduced), said.answer)
            for said in talk.said
        )
        source = talk.image.source
        image = source if isinstance(source, Path) else Path(talk.image.name)
        return SavedConversation(image, tuple(talk.regions), tuple(turns))
