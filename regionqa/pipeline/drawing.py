"""Drawings of answers: the image with numbered boxes and masks, above a legend of the answers."""

import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from math import ceil, floor, hypot, sqrt

from PIL import Image, ImageDraw, ImageFont

from regionqa.language.references import REFERENCE
from regionqa.masks import Mask
from regionqa.regions import Box, Region
from regionqa.requests import Answer

Colour = tuple[int, int, int]
Shape = tuple[Box, Mask | None]
"""Box and mask of a region."""
Edges = tuple[int, int, int, int]
"""Left, top, right, bottom, in pixels of the drawing; half-open."""

SMALLEST, LARGEST = 640, 2000
"""Range of a drawing's longer side in pixels; other images are resized to it."""

COLOURS: tuple[Colour, ...] = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (0, 114, 178),
    (213, 94, 0),
    (204, 121, 167),
)
"""Palette of Okabe and Ito, distinct for colour-blind readers; repeats from box 8."""

BLACK: Colour = (0, 0, 0)
WHITE: Colour = (255, 255, 255)
PAPER: Colour = (250, 250, 250)
INK: Colour = (20, 20, 20)
ALARM: Colour = (170, 0, 0)

TINT = 110
"""Opacity of a mask, from 0 to 255."""
TAGS_A_ROW = 4
"""Number tags per row of the legend."""


def draw_answers(
    image: Image.Image, answers: Sequence[Answer], *, questions: bool = False
) -> Image.Image:
    """Draw numbered boxes on the image, and a legend of the answers below it.

    Args:
        image: RGB, as displayed; the boxes of `answers` are in its pixels.
        answers: Answers about this image.
        questions: Show every question, even if the box identifies it.

    Returns:
        A new RGB image. Small and large images are resized so that the drawing is legible.
    """
    numbers = _numbered(answers)
    shown = _resized(image, SMALLEST, LARGEST)
    for (_, mask), number in numbers.items():
        if mask is not None:
            _tint(shown, mask, colour_of(number))
    style = _draw_boxes(shown, [box for box, _ in numbers], image.size)
    legend = _legend(_entries(answers, numbers, questions), max(shown.width, SMALLEST), style)
    drawing = Image.new("RGB", (legend.width, shown.height + legend.height), PAPER)
    drawing.paste(shown, (0, 0))
    drawing.paste(legend, (0, shown.height))
    return drawing


def draw_boxes(
    image: Image.Image, boxes: Sequence[Box], sides: tuple[int, int] = (SMALLEST, LARGEST)
) -> Image.Image:
    """Draw boxes on the image, numbered from 1 in order.

    Args:
        image: RGB, as displayed.
        boxes: In its pixels.
        sides: Range of the drawing's longer side in pixels.

    Returns:
        A new RGB image.
    """
    shown = _resized(image, *sides)
    _draw_boxes(shown, boxes, image.size)
    return shown


def colour_of(number: int) -> Colour:
    """Return the colour of a box by its number, from 1."""
    return COLOURS[(number - 1) % len(COLOURS)]


def text_colour(colour: Colour) -> Colour:
    """Return black or white, whichever is legible on a colour."""
    luminance = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]
    return BLACK if luminance > 100 else WHITE


@dataclass(frozen=True)
class _Style:
    """Sizes in pixels, derived from the side of a square of the image's area."""

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
        """Width and height of a number tag."""
        return round(self.text * 1.7), round(self.text * 1.3)

    @property
    def casing(self) -> int:
        """Width of the inner and of the outer casing of an outline."""
        return max(1, round(self.side / 800))

    @property
    def stroke(self) -> int:
        """Width of the coloured line between the casings."""
        return max(3, round(self.side / 220))


# -- boxes -----------------------------------------------------------------------------------------


def _numbered(answers: Sequence[Answer]) -> dict[Shape, int]:
    """Number boxes from 1, in the order of the questions; equal ones with other masks differ."""
    regions = [region for answer in answers for region in answer.request.regions]
    shapes = dict.fromkeys(map(_shape, regions))
    return {shape: number for number, shape in enumerate(shapes, start=1)}


def _shape(region: Region) -> Shape:
    return region.box, region.mask


def _tint(shown: Image.Image, mask: Mask, colour: Colour) -> None:
    """Paint a mask over the image, through which the image can be seen."""
    inside = Image.fromarray(mask.array().astype("uint8") * TINT)
    shown.paste(colour, mask=inside.resize(shown.size, Image.Resampling.BILINEAR))


def _resized(image: Image.Image, smallest: int, largest: int) -> Image.Image:
    """Return a copy whose longer side is in this range, in pixels."""
    longer = max(image.size)
    scale = min(max(longer, smallest), largest) / longer
    if scale == 1:
        return image.copy()
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    # pixels of tiny images stay squares, which shows how little the model gets
    resample = Image.Resampling.LANCZOS if scale < 4 else Image.Resampling.NEAREST
    return image.resize(size, resample)


def _outline(box: Box, size: tuple[int, int], shown: tuple[int, int], style: _Style) -> Edges:
    """Outer edges of a box's outline, which surrounds the box if there is room."""
    across, down = shown[0] / size[0], shown[1] / size[1]
    room = style.stroke + 2 * style.casing
    return (
        max(0, floor(box.x0 * across) - room),
        max(0, floor(box.y0 * down) - room),
        min(shown[0], ceil(box.x1 * across) + room),
        min(shown[1], ceil(box.y1 * down) + room),
    )


def _draw_boxes(shown: Image.Image, boxes: Sequence[Box], size: tuple[int, int]) -> _Style:
    """Draw outlines, large boxes first, then tags, so that no box hides another or its tag.

    size: of the image that the boxes are on; `shown` is that image resized.
    """
    style = _Style(sqrt(shown.width * shown.height))
    outlines = [_outline(box, size, shown.size, style) for box in boxes]
    draw = ImageDraw.Draw(shown)
    numbered = list(enumerate(outlines, start=1))
    for number, outline in sorted(numbered, key=lambda pair: _area(pair[1]), reverse=True):
        _draw_outline(draw, outline, colour_of(number), style)
    tags: list[Edges] = []
    for number, outline in numbered:
        tags.append(_tag_place(outline, tags, shown.size, style))
        _draw_tag(draw, tags[-1], number, style)
    return style


def _draw_outline(draw: ImageDraw.ImageDraw, outline: Edges, colour: Colour, style: _Style) -> None:
    """Draw a line between a black and a white casing, visible on any background."""
    left, top, right, bottom = outline
    for band, width in ((BLACK, style.casing), (colour, style.stroke), (WHITE, style.casing)):
        for _ in range(width):
            if left < right and top < bottom:
                draw.rectangle((left, top, right - 1, bottom - 1), outline=band)
            left, top, right, bottom = left + 1, top + 1, right - 1, bottom - 1


def _area(edges: Edges) -> int:
    return (edges[2] - edges[0]) * (edges[3] - edges[1])


def _tag_place(
    outline: Edges, others: Sequence[Edges], shown: tuple[int, int], style: _Style
) -> Edges:
    """Place of a box's tag: the first that overlaps no other tag, else the first of all."""
    places = [*_corners(outline, shown, style)]
    free = (
        place
        for place in (*places, *_nearby(outline, shown, style))
        if not any(_overlap(place, other) for other in others)
    )
    return next(free, places[0])


def _corners(outline: Edges, shown: tuple[int, int], style: _Style) -> Iterator[Edges]:
    """Places for a tag at the corners of a box, outside it before inside, all in the image."""
    left, top, right, bottom = outline
    width, height = style.tag
    outside = product((top - height, bottom), (left, right - width))
    beside = product((top, bottom - height), (left - width, right))
    inside = product((top, bottom - height), (left, right - width))
    for y, x in (*outside, *beside, *inside):
        yield _tag_at(x, y, shown, style)


def _nearby(outline: Edges, shown: tuple[int, int], style: _Style) -> list[Edges]:
    """Places for a tag all over the image, sorted by distance to the box's top left corner."""
    width, height = style.tag
    left, top = outline[:2]
    columns, rows = range(left % width, shown[0], width), range(top % height, shown[1], height)
    cells = sorted(product(columns, rows), key=lambda cell: hypot(cell[0] - left, cell[1] - top))
    return [_tag_at(x, y, shown, style) for x, y in cells]


def _tag_at(x: int, y: int, shown: tuple[int, int], style: _Style) -> Edges:
    """Edges of a tag at this place, moved into the image."""
    width, height = style.tag
    x, y = max(0, min(x, shown[0] - width)), max(0, min(y, shown[1] - height))
    return x, y, x + width, y + height


def _overlap(one: Edges, other: Edges) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _draw_tag(draw: ImageDraw.ImageDraw, place: Edges, number: int, style: _Style) -> None:
    left, top, right, bottom = place
    colour = colour_of(number)
    draw.rounded_rectangle(
        (left, top, right - 1, bottom - 1), style.text // 4, fill=colour, outline=BLACK
    )
    draw.text(
        ((left + right) / 2, (top + bottom) / 2),
        str(number),
        fill=text_colour(colour),
        font=style.font,
        anchor="mm",
    )


# -- legend ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Entry:
    """An entry of the legend: box numbers and text."""

    numbers: tuple[int, ...]
    text: str
    colour: Colour


def _entries(
    answers: Sequence[Answer], numbers: dict[Shape, int], all_questions: bool
) -> list[_Entry]:
    """Return one entry per answer, with the question unless a single box identifies it."""
    boxes = [tuple(numbers[_shape(r)] for r in answer.request.regions) for answer in answers]
    questions: dict[tuple[int, ...], set[str]] = defaultdict(set)
    for own, answer in zip(boxes, answers, strict=True):
        questions[own].add(answer.request.question)
    entries = []
    for own, answer in zip(boxes, answers, strict=True):
        text = _renumbered(answer.text, own) or "(no answer)"
        line = f"error: {answer.error}" if answer.error else text
        if all_questions or len(own) != 1 or len(questions[own]) > 1:
            line = f"{_renumbered(answer.request.question, own)} -> {line}"
        colour = ALARM if answer.error else INK
        entries.append(_Entry(tuple(dict.fromkeys(own)), _drawable(line), colour))
    return entries


def _renumbered(text: str, numbers: tuple[int, ...]) -> str:
    """Replace `<region1>` and the like by the drawing's box numbers."""
    names = {f"<region{place}>": f"[{number}]" for place, number in enumerate(numbers, start=1)}
    return REFERENCE.sub(lambda match: names.get(match[0], match[0]), text)


def _drawable(text: str) -> str:
    """Put the text on one line, with the nearest ASCII letters that Pillow's font has."""
    letters = []
    for letter in " ".join(text.split()).encode(errors="replace").decode():
        plain = "".join(c for c in unicodedata.normalize("NFKD", letter) if c.isascii())
        letters.append(plain or letter)
    return "".join(letters)


def _legend(entries: Sequence[_Entry], width: int, style: _Style) -> Image.Image:
    """Draw the legend as an image of this width."""
    column = style.tag[0] + style.margin // 2
    least = int(any(entry.numbers for entry in entries))  # so that all texts are aligned
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
    """Wrap text to this width in pixels, between words if they fit on a line."""
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
