"""A conversation about an image, with regions added at any turn.

A line is a question, or a command that begins with `/`. Questions go through `Engine.answer`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from regionqa.backends.base import ModelInfo
from regionqa.data.fields import check_text
from regionqa.engine import Engine
from regionqa.errors import ItemError, LengthError, OutputError, QuestionError
from regionqa.files import file_status, with_home
from regionqa.images.reading import InputImage, open_image
from regionqa.language.references import REFERENCE, inline_regions, question_text, renumber
from regionqa.options import BoxOptions, GenerationOptions
from regionqa.pipeline.outputs import error_text, prompt_heading
from regionqa.regions import Region, WrittenBox, clip_all
from regionqa.requests import HistoryTurn, Request

HELP = """\
/box X0,Y0,X1,Y1   add a region; questions name it as <region1>, <region2> ...
/boxes             list the regions
/undo              remove the last question, or the last region if that is newer
/new               start again with this image
/image PATH        start again with another image
/save FILE         save all conversations as training data for regionqa finetune
/help              show this help
/quit              quit; so does Ctrl-D"""
SINGLE = (
    "this model answers one question at a time, without the conversation before it: each question "
    "is about the regions it names, else about new regions, else about those of the question before"
)


class ChatListener(Protocol):
    """Shows a conversation."""

    def part(self, text: str) -> None:
        """Show part of an answer, as soon as it is generated."""

    def answer(self, text: str) -> None:
        """Show a complete answer."""

    def note(self, line: str) -> None:
        """Show what a command did."""

    def show(self, heading: str, lines: Sequence[str]) -> None:
        """Show what the model is given."""

    def warn(self, line: str) -> None:
        """Show a warning."""

    def error(self, line: str) -> None:
        """Show why a line failed."""


@dataclass(frozen=True)
class ChatSettings:
    """Options that hold for the whole conversation."""

    boxes: BoxOptions = field(default_factory=BoxOptions)
    """Convention of the boxes that are typed."""
    generation: GenerationOptions = field(default_factory=GenerationOptions)
    show_prompt: bool = False
    """Print what the model is given."""


@dataclass(frozen=True)
class ChatTurn:
    """A question and its answer."""

    question: str
    answer: str
    regions: int
    """Number of regions at that time."""
    subjects: tuple[int, ...]
    """Numbers of the regions that the question was about."""
    introduced: tuple[int, ...]
    """Those of them that the question did not name, and that its prompt introduces."""


@dataclass
class Conversation:
    """The conversation about one image."""

    image: InputImage
    regions: list[Region] = field(default_factory=list)
    turns: list[ChatTurn] = field(default_factory=list)

    @property
    def last_regions(self) -> int:
        """Number of regions at the last question."""
        return self.turns[-1].regions if self.turns else 0


@dataclass(frozen=True)
class SavedConversation:
    """A conversation as it is saved: the first question about a region names it."""

    image: Path
    regions: tuple[Region, ...]
    turns: tuple[tuple[str, str], ...]
    """Questions and answers."""


Write = Callable[[Path, Sequence[SavedConversation]], None]


def chat_turn(model: ModelInfo, said: HistoryTurn, earlier: Sequence[ChatTurn]) -> ChatTurn:
    """Return a turn with the regions that its question was about.

    Args:
        model: The model that answered.
        said: Question, answer, and number of the conversation's regions at that time.
        earlier: The turns before it.
    """
    new = tuple(range((earlier[-1].regions if earlier else 0) + 1, said.regions + 1))
    named = named_regions(said.question, said.regions)
    if model.multi_turn:
        subjects, introduced = named, tuple(number for number in new if number not in named)
    else:
        subjects = named or new or (earlier[-1].subjects if earlier else ())
        introduced = () if named else subjects
    return ChatTurn(said.question, said.answer, said.regions, subjects, introduced)


def named_regions(question: str, regions: int) -> tuple[int, ...]:
    """Return the numbers that a question names, of so many regions, in order of appearance."""
    known = {str(number): number for number in range(1, regions + 1)}
    mentioned = dict.fromkeys(REFERENCE.findall(question))
    return tuple(known[digits] for digits in mentioned if digits in known)


def follow_up(model: ModelInfo, request: Request, turns: Sequence[ChatTurn]) -> Request:
    """Return a conversation's next request, as its model takes it.

    A model that answers one question at a time gets the regions that the question is about, and no
    history.

    Args:
        model: The model.
        request: The question, with all regions of the conversation.
        turns: The turns before it.
    """
    if model.multi_turn:
        history = tuple(HistoryTurn(t.question, t.answer, t.regions) for t in turns)
        return replace(request, history=history)
    question, regions = request.question, request.regions
    asked = HistoryTurn(question, "", len(regions))
    subjects = sorted(chat_turn(model, asked, turns).subjects)  # as `ask` numbers them
    if len(named_regions(question, len(regions))) < len(set(REFERENCE.findall(question))):
        return request  # the engine reports the unknown region
    kept = tuple(regions[number - 1] for number in subjects)
    return replace(request, question=renumber(question, subjects), regions=kept)


class Chat:
    """Conversations with one model, led line by line."""

    def __init__(
        self, engine: Engine, settings: ChatSettings, listener: ChatListener, write: Write
    ) -> None:
        """Start without an image; `open` sets it.

        Args:
            engine: The model.
            settings: Options of all turns.
            listener: Receives answers and messages.
            write: Writes conversations to a file, replacing it.
        """
        self.failed = 0
        """Number of lines that failed."""
        self._engine = engine
        self._model = engine.info
        self._settings = settings
        self._listener = listener
        self._write = write
        self._conversations: list[Conversation] = []
        self._saved: set[Path] = set()
        self._warned_single = False
        self._commands: dict[str, Callable[[str], None]] = {
            "box": self.add_box,
            "boxes": self.list_boxes,
            "undo": self.undo,
            "new": lambda _: self._begin(self._current.image),
            "image": self.open,
            "save": self.save,
            "help": lambda _: self._listener.note(HELP),
        }

    @property
    def _current(self) -> Conversation:
        return self._conversations[-1]

    def open(self, path: str) -> None:
        """Begin a conversation about an image; ImageError if it cannot be opened."""
        if not path:
            raise ItemError("/image: name an image, like /image cat.jpg")
        image = open_image(with_home(Path(path)))
        image.load()  # so that a broken image fails here, not at the first question
        for warning in image.take_warnings():
            self._listener.warn(warning)
        self._begin(image)

    def follow(self, line: str) -> bool:
        """Execute a line; what is wrong with it goes to the listener and counts in `failed`.

        Returns:
            Whether the conversation continues.
        """
        line = line.strip()
        command, _, argument = line.removeprefix("/").partition(" ")
        try:
            if not line.startswith("/"):
                self.ask(line) if line else None
            elif command == "quit":
                return False
            elif command in self._commands:
                self._commands[command](argument.strip())
            else:
                raise ItemError(f"/{command}: no such command; /help lists them")
        except ItemError as error:
            self.failed += 1
            self._listener.error(str(error))
        return True

    def add_box(self, text: str) -> None:
        """Add a region; BoxError if it is malformed or outside the image."""
        self._add(self._settings.boxes.parse_box(text))

    def _add(self, written: WrittenBox) -> None:
        conversation = self._current
        size = (conversation.image.width, conversation.image.height)
        (region,), warnings = clip_all((written.resolve(*size),), *size)
        for warning in warnings:
            self._listener.warn(warning)
        if len(conversation.regions) >= (limit := self._model.max_regions):
            raise ItemError(f"/box: the model takes {limit} regions; start again with /new")
        conversation.regions.append(region)
        self._listener.note(self._label(len(conversation.regions)))

    def list_boxes(self, _: str = "") -> None:
        """List the regions."""
        numbers = range(1, len(self._current.regions) + 1)
        for line in map(self._label, numbers) if numbers else ["no regions; /box adds one"]:
            self._listener.note(line)

    def undo(self, _: str = "") -> None:
        """Remove the last question with its answer, or the last region if that is newer."""
        conversation = self._current
        if len(conversation.regions) > conversation.last_regions:
            conversation.regions.pop()
            self._listener.note(f"removed region {len(conversation.regions) + 1}")
        elif conversation.turns:
            self._listener.note(f"removed: {conversation.turns.pop().question}")
        else:
            raise ItemError("/undo: there is nothing to undo")

    def ask(self, question: str) -> None:
        """Answer a question and remember both; QuestionError if it cannot be answered."""
        check_text(question, self._current.image.name)
        question = self._with_inline(question_text(question))
        request = self._request(question)
        listener = self._listener
        options = self._settings.generation
        show = self._show_prompt if self._settings.show_prompt else None
        [answer] = self._engine.answer(
            [request], options, on_text=lambda _, part: listener.part(part), on_prompt=show
        )
        if answer.error:
            too_long = isinstance(answer.error, LengthError) and request.history
            hint = "; or remove a question with /undo, or start again with /new"
            raise QuestionError(error_text(answer) + (hint if too_long else ""))
        listener.answer(answer.text)
        now = self._current
        said = HistoryTurn(question, answer.text, len(now.regions))
        now.turns.append(chat_turn(self._model, said, now.turns))

    def _show_prompt(self, request: Request, lines: Sequence[str]) -> None:
        self._listener.show(prompt_heading(request), lines)

    def save(self, text: str) -> None:
        """Write all conversations so far as training data, one a line."""
        if not text:
            raise ItemError("/save: name a file, like /save mine.jsonl")
        path = with_home(Path(text))
        try:
            same = path.resolve()
        except (OSError, RuntimeError, ValueError):  # a NUL, or links in a circle
            raise ItemError(f"/save: {path} cannot be a file; name another") from None
        conversations = [one for one in self._conversations if one.turns]
        if not conversations:
            raise ItemError("/save: there is no answer to save yet")
        if file_status(path) is not None and same not in self._saved:
            raise ItemError(f"/save: {path} already exists; name another file")
        try:
            self._write(path, list(map(self._as_saved, conversations)))
        except OutputError as error:  # nothing is lost: the user can save to another file
            raise ItemError(f"/save: {error}") from error
        self._saved.add(same)
        turns = sum(len(one.turns) for one in conversations)
        self._listener.note(f"saved {turns} {'question' if turns == 1 else 'questions'} to {path}")

    def _begin(self, image: InputImage) -> None:
        if self._conversations and not self._current.turns:
            self._conversations.pop()
        self._conversations.append(Conversation(image))
        self._listener.note(f"{image.name}, {image.width} x {image.height} pixels")

    def _with_inline(self, question: str) -> str:
        """Add the regions that a question holds inline, and name them by their numbers."""
        now = self._current
        (numbered,), inline = inline_regions([question], with_boxes=False)
        numbers = []
        for written in inline:
            box = written.resolve(now.image.width, now.image.height).box
            same = [n for n, region in enumerate(now.regions, start=1) if region.box == box]
            if not same:
                self._add(written)
            numbers.append(same[0] if same else len(now.regions))
        if not inline:
            return question
        return REFERENCE.sub(lambda found: f"<region{numbers[int(found[1]) - 1]}>", numbered)

    def _label(self, number: int) -> str:
        return f"<region{number}> {self._current.regions[number - 1].box}"

    def _request(self, question: str) -> Request:
        now = self._current
        if now.turns and not self._model.multi_turn and not self._warned_single:
            self._warned_single = True
            self._listener.warn(SINGLE)
        request = Request(now.image.name, question, tuple(now.regions), now.image)
        return follow_up(self._model, request, now.turns)

    def _as_saved(self, conversation: Conversation) -> SavedConversation:
        turns = (
            (self._model.introduce(turn.question, turn.introduced), turn.answer)
            for turn in conversation.turns
        )
        source = conversation.image.source
        image = source if isinstance(source, Path) else Path(conversation.image.name)
        return SavedConversation(image, tuple(conversation.regions), tuple(turns))
