"""Answers drawn onto their image: numbered boxes, and under them what was said of each.

It is given pixels and answers. It does not know where either comes from, and opens no image.
"""

import os
import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from math import ceil, floor, hypot, sqrt
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from regionqa.errors import OutputError, UsageError
from regionqa.language.prompts import REFERENCE
from regionqa.regions import Box
from regionqa.requests import Answer

Colour = tuple[int, int, int]
Edges = tuple[int, int, int, int]
"""Left, top, right, bottom in pixels of the drawing; half-open."""

SMALLEST, LARGEST = 640, 2000
"""Pixels of the longer side that smaller images are enlarged to, and larger ones reduced to."""

COLOURS: tuple[Colour, ...] = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (0, 114, 178),
    (213, 94, 0),
    (204, 121, 167),
)
"""Okabe and Ito's palette, which the colour-blind can tell apart; box 8 looks as box 1 does."""

BLACK: Colour = (0, 0, 0)
WHITE: Colour = (255, 255, 255)
PAPER: Colour = (250, 250, 250)
INK: Colour = (20, 20, 20)
ALARM: Colour = (170, 0, 0)

TAGS_A_ROW = 4
"""Numbers that stand side by side in the legend before the next row."""

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
"""What a drawing's name may end in; it says how the drawing is written."""


def draw_answers(
    image: Image.Image, answers: Sequence[Answer], *, questions: bool = False
) -> Image.Image:
    """The image with its boxes numbered, and a legend of the answers below it.

    image: RGB as displayed, to which the boxes of `answers` refer. questions: whether each answer
    has its question before it, even where the box tells what was asked. Returns a new RGB image,
    in which the given one is enlarged or reduced where that makes it easier to read.
    """
    numbers = _numbered(answers)
    shown = _resized(image)
    style = _Style(sqrt(shown.width * shown.height))
    outlines = [_outline(box, image.size, shown.size, style) for box in numbers]
    _draw_boxes(shown, outlines, style)
    legend = _legend(_entries(answers, numbers, questions), max(shown.width, SMALLEST), style)
    drawing = Image.new("RGB", (legend.width, shown.height + legend.height), PAPER)
    drawing.paste(shown, (0, 0))
    drawing.paste(legend, (0, shown.height))
    return drawing


def check_drawing(path: Path, *, several: bool) -> None:
    """UsageError where drawings could not be saved there, to be found out before any is made.

    several: whether more than one image may be drawn, for which `path` must be a folder.
    """
    if several and path.suffix and not path.is_dir():
        raise UsageError(f"--draw {path}: there may be several images; name a folder for them")
    if not several and path.suffix.lower() not in SUFFIXES:
        raise UsageError(f"{path}: a drawing's name must end in one of {', '.join(SUFFIXES)}")


def save_drawing(image: Image.Image, path: Path) -> None:
    """Write a drawing as its suffix says; what stood there before stays until it is complete.

    Raises UsageError for a suffix that is not written, OutputError where nothing can be written.
    """
    check_drawing(path, several=False)
    part = path.with_name(f".{os.getpid()}-{path.name}")  # keeps the suffix that Pillow goes by
    try:
        try:
            image.save(part, quality=92)  # of JPEG and WebP
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
    except (OSError, ValueError) as error:  # ValueError: more pixels than the format can hold
        reason = getattr(error, "strerror", None) or error
        raise OutputError(f"{path}: cannot be written: {reason}; choose another place") from None


@dataclass(frozen=True)
class _Style:
    """Sizes in pixels. All follow from the side of a square with as many pixels as the image."""

    side: float

    @cached_property
    def font(self) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
        return ImageFont.load_default(self.text)

    @property
    def text(self) -> int:
        return max(16, round(self.side / 44))

    @property
    def line(self) -> int:
        return round(self.text * 1.5)

    @property
    def margin(self) -> int:
        return self.text

    @property
    def tag(self) -> tuple[int, int]:
        """Width and height of the tag around a number."""
        return round(self.text * 1.7), round(self.text * 1.3)

    @property
    def casing(self) -> int:
        """How thick each of the two casings of an outline is."""
        return max(1, round(self.side / 800))

    @property
    def stroke(self) -> int:
        """How thick the coloured line between them is."""
        return max(3, round(self.side / 220))


# -- boxes -----------------------------------------------------------------------------------------


def _numbered(answers: Sequence[Answer]) -> dict[Box, int]:
    """The number of every box, from 1 in the order in which they are first asked about."""
    boxes = dict.fromkeys(region.box for answer in answers for region in answer.request.regions)
    return {box: number for number, box in enumerate(boxes, start=1)}


def _resized(image: Image.Image) -> Image.Image:
    """A copy whose longer side is neither below SMALLEST nor above LARGEST."""
    longer = max(image.size)
    scale = min(max(longer, SMALLEST), LARGEST) / longer
    if scale == 1:
        return image.copy()
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    # a tiny image keeps its pixels as squares: what is shown is all that the model saw
    resample = Image.Resampling.LANCZOS if scale < 4 else Image.Resampling.NEAREST
    return image.resize(size, resample)


def _outline(box: Box, size: tuple[int, int], shown: tuple[int, int], style: _Style) -> Edges:
    """The outer edges of a box's outline, which lies around the box wherever there is room."""
    across, down = shown[0] / size[0], shown[1] / size[1]
    room = style.stroke + 2 * style.casing
    return (
        max(0, floor(box.x0 * across) - room),
        max(0, floor(box.y0 * down) - room),
        min(shown[0], ceil(box.x1 * across) + room),
        min(shown[1], ceil(box.y1 * down) + room),
    )


def _draw_boxes(shown: Image.Image, outlines: Sequence[Edges], style: _Style) -> None:
    """Outlines, large ones first, then tags: no box hides what tells of another."""
    draw = ImageDraw.Draw(shown)
    numbered = list(enumerate(outlines, start=1))
    for number, outline in sorted(numbered, key=lambda pair: _area(pair[1]), reverse=True):
        _draw_outline(draw, outline, _colour(number), style)
    tags: list[Edges] = []
    for number, outline in numbered:
        tags.append(_free_place(outline, tags, shown.size, style))
        _draw_tag(draw, tags[-1], number, style)


def _draw_outline(draw: ImageDraw.ImageDraw, outline: Edges, colour: Colour, style: _Style) -> None:
    """A line between a black and a white casing: whatever is beneath, two of the three differ."""
    left, top, right, bottom = outline
    for band, width in ((BLACK, style.casing), (colour, style.stroke), (WHITE, style.casing)):
        for _ in range(width):
            if left < right and top < bottom:
                draw.rectangle((left, top, right - 1, bottom - 1), outline=band)
            left, top, right, bottom = left + 1, top + 1, right - 1, bottom - 1


def _area(edges: Edges) -> int:
    return (edges[2] - edges[0]) * (edges[3] - edges[1])


def _free_place(
    outline: Edges, taken: Sequence[Edges], shown: tuple[int, int], style: _Style
) -> Edges:
    """The place for a box's tag: the first that hides no other tag, or the first of all."""
    places = [*_corners(outline, shown, style)]
    free = (
        place
        for place in (*places, *_nearby(outline, shown, style))
        if not any(_overlap(place, other) for other in taken)
    )
    return next(free, places[0])


def _corners(outline: Edges, shown: tuple[int, int], style: _Style) -> Iterator[Edges]:
    """Places for a tag at the corners of a box, outside before inside, all within the image."""
    left, top, right, bottom = outline
    width, height = style.tag
    outside = product((top - height, bottom), (left, right - width))
    beside = product((top, bottom - height), (left - width, right))
    inside = product((top, bottom - height), (left, right - width))
    for y, x in (*outside, *beside, *inside):
        yield _tag_at(x, y, shown, style)


def _nearby(outline: Edges, shown: tuple[int, int], style: _Style) -> list[Edges]:
    """Places for a tag all over the image, the nearest to a box's top left corner first."""
    width, height = style.tag
    left, top = outline[:2]
    columns, rows = range(left % width, shown[0], width), range(top % height, shown[1], height)
    cells = sorted(product(columns, rows), key=lambda cell: hypot(cell[0] - left, cell[1] - top))
    return [_tag_at(x, y, shown, style) for x, y in cells]


def _tag_at(x: int, y: int, shown: tuple[int, int], style: _Style) -> Edges:
    """A tag as near to this place as the image allows."""
    width, height = style.tag
    x, y = max(0, min(x, shown[0] - width)), max(0, min(y, shown[1] - height))
    return x, y, x + width, y + height


def _overlap(one: Edges, other: Edges) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _draw_tag(draw: ImageDraw.ImageDraw, place: Edges, number: int, style: _Style) -> None:
    left, top, right, bottom = place
    colour = _colour(number)
    luminance = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]
    draw.rounded_rectangle(
        (left, top, right - 1, bottom - 1), style.text // 4, fill=colour, outline=BLACK
    )
    draw.text(
        ((left + right) / 2, (top + bottom) / 2),
        str(number),
        fill=BLACK if luminance > 100 else WHITE,
        font=style.font,
        anchor="mm",
    )


def _colour(number: int) -> Colour:
    return COLOURS[(number - 1) % len(COLOURS)]


# -- legend ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Entry:
    """What the legend says of one answer, and of which boxes."""

    numbers: tuple[int, ...]
    text: str
    colour: Colour


def _entries(
    answers: Sequence[Answer], numbers: dict[Box, int], all_questions: bool
) -> list[_Entry]:
    """One entry an answer, with the question where the box alone would not tell what was asked."""
    boxes = [tuple(numbers[r.box] for r in answer.request.regions) for answer in answers]
    questions: dict[tuple[int, ...], set[str]] = defaultdict(set)
    for own, answer in zip(boxes, answers, strict=True):
        questions[own].add(answer.request.question)
    entries = []
    for own, answer in zip(boxes, answers, strict=True):
        text = _worded(answer.text, own) or "(no answer)"
        said = f"error: {answer.error}" if answer.error else text
        if all_questions or len(own) != 1 or len(questions[own]) > 1:
            said = f"{_worded(answer.request.question, own)} -> {said}"
        colour = ALARM if answer.error else INK
        entries.append(_Entry(tuple(dict.fromkeys(own)), _drawable(said), colour))
    return entries


def _worded(text: str, numbers: tuple[int, ...]) -> str:
    """The text with the drawing's numbers in the place of `<region1>` and the like."""
    names = {f"<region{place}>": f"[{number}]" for place, number in enumerate(numbers, start=1)}
    return REFERENCE.sub(lambda match: names.get(match[0], match[0]), text)


def _drawable(text: str) -> str:
    """The text in one line, in letters that Pillow's font has where there is a near one."""
    letters = []
    for letter in " ".join(text.split()).encode(errors="replace").decode():
        plain = "".join(c for c in unicodedata.normalize("NFKD", letter) if c.isascii())
        letters.append(plain or letter)
    return "".join(letters)


def _legend(entries: Sequence[_Entry], width: int, style: _Style) -> Image.Image:
    """The answers as an image of this width, as high as they need."""
    column = style.tag[0] + style.margin // 2
    least = int(any(entry.numbers for entry in entries))  # so that all texts stand in line
    blocks, height = [], style.margin
    for entry in entries:
        left = style.margin + column * min(max(len(entry.numbers), least), TAGS_A_ROW)
        lines = _wrapped(entry.text, width - left - style.margin, style)
        blocks.append((entry, left, height, lines))
        rows = max(len(lines), ceil(len(entry.numbers) / TAGS_A_ROW))
        height += rows * style.line + style.margin // 2
    legend = Image.new("RGB", (width, height + style.margin // 2 if entries else 0), PAPER)
    draw = ImageDraw.Draw(legend)
    for entry, left, top, lines in blocks:
        for place, number in enumerate(entry.numbers):
            x = style.margin + place % TAGS_A_ROW * column
            y = top + place // TAGS_A_ROW * style.line
            _draw_tag(draw, (x, y, x + style.tag[0], y + style.tag[1]), number, style)
        for row, line in enumerate(lines):
            middle = top + row * style.line + style.tag[1] / 2
            draw.text((left, middle), line, fill=entry.colour, font=style.font, anchor="lm")
    return legend


def _wrapped(text: str, width: int, style: _Style) -> list[str]:
    """The text in lines of at most this width, broken between words where a word fits a line."""
    lines = [""]
    for word in text.split():
        joined = f"{lines[-1]} {word}" if lines[-1] else word
        if style.font.getlength(joined) <= width:
            lines[-1] = joined
            continue
        if lines[-1]:
            lines.append("")
        for letter in word:
            if lines[-1] and style.font.getlength(lines[-1] + letter) > width:
                lines.append("")
            lines[-1] += letter
    return lines
