"""Questions about regions as chat messages of text and images, in one of a card's ways."""

from collections.abc import Sequence
from dataclasses import dataclass

from regionqa.errors import QuestionError, UsageError
from regionqa.language.references import REFERENCE, reference_problems
from regionqa.options import RegionWay
from regionqa.regions import Region
from regionqa.requests import Request
from regionqa.vlm.card import RegionText, Task, VlmCard
from regionqa.vlm.coordinates import ResizedSize, write_box
from regionqa.vlm.region_images import (
    CroppedImage,
    DrawnImage,
    ImagePart,
    WholeImage,
    crop_of,
)

Part = str | WholeImage | CroppedImage | DrawnImage
"""A piece of a message: text, or an image."""


@dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: str
    """One of "system", "user" and "assistant"."""
    parts: tuple[Part, ...]
    """Text and images in order; no two texts beside each other."""


@dataclass(frozen=True)
class Told:
    """A request as messages, and how its regions are told."""

    messages: tuple[Message, ...]
    """The conversation; its last message is the question."""
    way: RegionWay | None
    """How regions are told; None: there are none."""
    reason: str
    """Why this way, for --show-prompt."""
    coordinates: tuple[str, ...] = ()
    """Text of each region's numbers, with the way `coordinates`."""
    task: Task | None = None
    """The fixed task that was chosen, of a model that has only those."""

    @property
    def images(self) -> tuple[ImagePart, ...]:
        """The images of all messages, in order."""
        return tuple(
            part for message in self.messages for part in message.parts if not isinstance(part, str)
        )


def describe_way(told: Told) -> str:
    """Describe how regions are told, and why, in a line for people."""
    return f"regions are told by {told.way}: {told.reason}" if told.way else told.reason


def describe_regions(request: Request, told: Told) -> list[str]:
    """Describe the regions of a request and what is written for them, in lines for people."""
    lines = []
    for number, region in enumerate(request.regions, 1):
        written = f", written as {told.coordinates[number - 1]}" if told.coordinates else ""
        lines.append(f"region {number}: {region.box} in pixels of the image{written}")
    return lines


def check_way(card: VlmCard, way: RegionWay) -> None:
    """UsageError if a model cannot be told regions in a way."""
    if way not in card.regions.ways:
        raise UsageError(
            f"--way {way}: the model {card.name} is told regions by "
            f"{' or '.join(card.regions.ways)}; choose one of these, or another model"
        )


def choose_way(
    card: VlmCard, regions: Sequence[Region], size: tuple[int, int], asked: RegionWay | None
) -> tuple[RegionWay | None, str]:
    """Choose how the regions of one question are told; all of them in the same way.

    Returns:
        The way, and the reason for it. No way without regions.
    """
    if not regions:
        return None, "no region"
    if asked is not None:
        return asked, "--way"
    small = card.regions.small
    if small is not None:
        area = size[0] * size[1]
        shares = [region.box.width * region.box.height / area for region in regions]
        if min(shares) < small.below:
            percent = 100 * min(shares)
            return small.way, (
                f"a region takes {percent:.2g} % of the image, below {100 * small.below:g} %"
            )
    measured = card.regions.measured
    return card.regions.default, f"the card's default, {measured or 'which was not measured'}"


def tell(card: VlmCard, request: Request, asked: RegionWay | None, resized: ResizedSize) -> Told:
    """Turn a request into messages.

    Args:
        card: The model's card.
        request: A request with an opened image.
        asked: The way of --way, for requests without their own; None: the card chooses.
        resized: Size of the image as the model sees it.

    Raises:
        QuestionError: The question is empty, names a region that was not given, or is none of the
            model's tasks; or its regions would take more images than the model does.
    """
    assert request.source is not None
    size = request.source.width, request.source.height
    way, reason = choose_way(card, request.regions, size, request.way or asked)
    telling = _Telling(card, request, way, resized)
    if card.chat.tasks:
        return telling.task_messages(reason)
    told = Told(telling.messages(), way, reason, telling.coordinates)
    if len(told.images) > 1 and not card.chat.multi_image:
        raise QuestionError(
            f"{len(told.images)} regions told by {way} are as many images, and the model "
            f"{card.name} takes one at a time; ask about each (--each), or choose another --way"
        )
    return told


class _Telling:
    """The conversation of one request in one way."""

    def __init__(
        self, card: VlmCard, request: Request, way: RegionWay | None, resized: ResizedSize
    ) -> None:
        assert request.source is not None
        self._card = card
        self._way = way
        self._questions = [*(turn.question for turn in request.history), request.question]
        self._answers = [turn.answer for turn in request.history]
        self._given = [*(turn.regions for turn in request.history), len(request.regions)]
        self._regions, self._fade = request.regions, request.fade
        self._boxes = [region.box for region in request.regions]
        self._size = request.source.width, request.source.height
        self.coordinates: tuple[str, ...] = ()
        coordinates = card.regions.coordinates
        if way is RegionWay.coordinates and coordinates is not None:
            self.coordinates = tuple(
                write_box(coordinates, box, self._size, resized) for box in self._boxes
            )

    def messages(self) -> tuple[Message, ...]:
        """Return the whole conversation."""
        system = self._system()
        messages = [Message("system", (system,))] if system else []
        seen: set[int] = set()
        for turn, question in enumerate(self._questions):
            for problem in _problems(question, self._given[turn]):
                raise QuestionError(f"the question {problem}")
            old = self._given[turn - 1] if turn else 0
            new = range(old + 1, self._given[turn] + 1)
            parts: list[Part] = [self._first_image()] if turn == 0 else []
            parts += self._crops(new)
            parts.append(self._text(question, new, seen))
            messages.append(Message("user", _joined(parts)))
            if turn < len(self._answers):
                messages.append(Message("assistant", (_answer(self._answers[turn]),)))
        return tuple(messages)

    def task_messages(self, reason: str) -> Told:
        """Return the one message of a fixed task."""
        task = find_task(self._card, self._questions[-1], len(self._boxes))
        region = self._region(1, again=False) if task.about_region else ""
        text = task.prompt.format(region=region)
        message = Message("user", (WholeImage(), text))
        return Told((message,), self._way, reason, self.coordinates, task)

    def _system(self) -> str:
        coordinates = self._card.regions.coordinates
        if self._way is RegionWay.coordinates and coordinates is not None and coordinates.system:
            return coordinates.system
        return self._card.chat.system

    def _first_image(self) -> ImagePart:
        """The image of the first message. Boxes of the whole conversation are drawn on it."""
        drawn = self._card.regions.drawn
        if self._way is RegionWay.drawn and drawn is not None:
            colors = tuple(self._color(number) for number in range(1, len(self._boxes) + 1))
            return DrawnImage(tuple(self._boxes), colors, drawn.line)
        if self._way is RegionWay.crop_only:
            return self._crop(1)
        return WholeImage()

    def _crops(self, new: Sequence[int]) -> list[Part]:
        """The crops of new regions, each after its caption."""
        crop = self._card.regions.crop
        if crop is None or self._way not in (RegionWay.crop, RegionWay.crop_only):
            return []
        parts: list[Part] = []
        for number in new:
            if self._way is RegionWay.crop_only and number == 1:
                continue  # it is the first image
            parts += [crop.caption.format(number=number), self._crop(number)]
        return parts

    def _crop(self, number: int) -> CroppedImage:
        assert self._card.regions.crop is not None
        region = self._regions[number - 1]
        return crop_of(self._card.regions.crop, region, self._size, self._fade)

    def _text(self, question: str, new: Sequence[int], seen: set[int]) -> str:
        """A question with its regions in words; `seen` collects those that were mentioned."""
        words = self._words
        named = {int(digits) for digits in REFERENCE.findall(question)}
        unnamed = [number for number in new if number not in named]
        text = ""
        if unnamed and words is not None and words.introduction:
            regions = words.separator.join(self._region(n, again=False) for n in unnamed)
            text = words.introduction.format(regions=regions)
            seen.update(unnamed)
        for position, part in enumerate(REFERENCE.split(question.strip())):
            if position % 2 == 0:
                text += part
                continue
            number = int(part)
            text += self._region(number, again=number in seen)
            seen.add(number)
        return text

    @property
    def _words(self) -> RegionText | None:
        regions = self._card.regions
        match self._way:
            case RegionWay.coordinates if regions.coordinates is not None:
                return regions.coordinates.text
            case RegionWay.crop | RegionWay.crop_only if regions.crop is not None:
                return regions.crop.text
            case RegionWay.drawn if regions.drawn is not None:
                return regions.drawn.text
        return None

    def _region(self, number: int, *, again: bool) -> str:
        words = self._words
        assert words is not None  # a region was given, so there is a way
        pattern = words.again if again and words.again is not None else words.region
        box = self.coordinates[number - 1] if self.coordinates else ""
        color = self._color(number) if self._way is RegionWay.drawn else ""
        return pattern.format(number=number, box=box, color=color)

    def _color(self, number: int) -> str:
        assert self._card.regions.drawn is not None
        colors = self._card.regions.drawn.colors
        return colors[(number - 1) % len(colors)]


def find_task(card: VlmCard, question: str, regions: int) -> Task:
    """Find the task that a question asks for.

    Raises:
        QuestionError: It is none of the model's tasks, or the number of regions is wrong for it.
    """
    wanted = _plain(question)
    for task in card.chat.tasks:
        names = (task.name, *task.questions)
        if wanted not in map(_plain, names) or task.about_region != (regions > 0):
            continue
        if regions > 1:
            raise QuestionError(
                f"{regions} regions in one question: the model {card.name} is told one at a time; "
                "ask about each (--each)"
            )
        return task
    kind = "a region" if regions else "an image"
    known = " or ".join(
        repr(task.name) for task in card.chat.tasks if task.about_region == (regions > 0)
    )
    raise QuestionError(
        f"the model {card.name} takes no free questions; about {kind} it can be asked {known}. "
        "For questions choose another model: regionqa models list"
    )


def _plain(question: str) -> str:
    """A question for comparison: without references, case and final punctuation."""
    words = REFERENCE.sub("this", question).lower().split()
    return " ".join(words).rstrip("?.! ")


def _problems(question: str, given: int) -> list[str]:
    if not question.strip():
        return ["is empty"]
    return list(reference_problems(question, given))


def _answer(answer: str) -> str:
    return REFERENCE.sub(lambda reference: f"region {reference[1]}", answer.strip())


def _joined(parts: Sequence[Part]) -> tuple[Part, ...]:
    """Join texts that stand beside each other by a line break."""
    joined: list[Part] = []
    for part in parts:
        if isinstance(part, str) and joined and isinstance(joined[-1], str):
            joined[-1] = f"{joined[-1]}\n{part}"
        else:
            joined.append(part)
    return tuple(joined)
