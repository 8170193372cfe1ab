"""Made-up images of which is known what is where: colours, digits and shapes.

They are square, wide, tall, large, and rotated by an EXIF tag, since a mistake in a model's
convention for coordinates may show in some of these only.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import ExifTags, Image, ImageDraw, ImageFont

from regionqa.images.reading import open_image
from regionqa.regions import Box, Region
from regionqa.requests import Request

SIZES = {
    "square": (480, 480),
    "wide": (960, 320),
    "tall": (320, 960),
    "rotated": (640, 400),
    "large": (2400, 1800),
}
"""Width and height as displayed, by the kind of image."""
ROTATED = "rotated"
"""The kind that is stored turned, with an EXIF orientation."""
TURNED_RIGHT = 6
"""EXIF orientation of an image that is turned clockwise to be displayed."""
COLORS = ("red", "green", "blue", "yellow")
FILLS = {"red": "#e00000", "green": "#00a000", "blue": "#0030e0", "yellow": "#f0e000"}
DIGITS = ("7", "2", "5", "8", "4", "9")
SUBJECTS = ("color", "digit", "shape")
SHAPES = ("circle", "square", "triangle", "star")
SYNONYMS: Mapping[str, str] = {
    "two": "2", "four": "4", "five": "5", "seven": "7", "eight": "8", "nine": "9",
    "round": "circle", "disc": "circle", "disk": "circle", "rectangle": "square",
}  # fmt: skip
"""Other words for the things in the images."""


@dataclass(frozen=True)
class Cell:
    """A part of an image with one thing in it."""

    box: Box
    """The whole part, in pixels of the image as displayed."""
    thing: str
    """What is in it: a colour, digit or shape."""

    @property
    def asked(self) -> Box:
        """The box that is asked about: the inner part of the cell, which the thing fills."""
        across, down = self.box.width * 0.2, self.box.height * 0.2
        x0, y0, x1, y1 = self.box.xyxy
        return Box(x0 + across, y0 + down, x1 - across, y1 - down)


@dataclass(frozen=True)
class ProbeLayout:
    """What is where in one image."""

    kind: str
    """A key of `SIZES`."""
    subject: str
    """`color`, `digit` or `shape`."""
    cells: tuple[Cell, ...]

    @property
    def name(self) -> str:
        """File name of the image."""
        return f"{self.kind}-{self.subject}.{'jpg' if self.kind == ROTATED else 'png'}"

    @property
    def size(self) -> tuple[int, int]:
        """Width and height as displayed."""
        return SIZES[self.kind]

    @property
    def question(self) -> str:
        """The question about each cell."""
        return f"What {self.subject} is <region1>? Answer with one word."

    @property
    def things(self) -> tuple[str, ...]:
        """Everything that may be the answer."""
        return {"color": COLORS, "digit": DIGITS, "shape": SHAPES}[self.subject]

    def thing_at(self, x: float, y: float) -> str | None:
        """Return the thing at a point of the image; None outside of it."""
        for cell in self.cells:
            if cell.box.x0 <= x < cell.box.x1 and cell.box.y0 <= y < cell.box.y1:
                return cell.thing
        return None

    def read(self, answer: str) -> str | None:
        """Return the one thing that an answer names; None if it names none or several."""
        words = re.findall(r"[a-z]+|\d+", answer.lower())
        named = {SYNONYMS.get(word, word) for word in words} & set(self.things)
        return named.pop() if len(named) == 1 else None

    def draw(self) -> Image.Image:
        """Draw the image, RGB, as displayed."""
        image = Image.new("RGB", self.size, "white")
        pen = ImageDraw.Draw(image)
        for cell in self.cells:
            if self.subject == "color":
                x0, y0, x1, y1 = cell.box.xyxy
                pen.rectangle((x0, y0, x1 - 1, y1 - 1), fill=FILLS[cell.thing])
            elif self.subject == "digit":
                _draw_digit(pen, cell)
            else:
                _draw_shape(pen, cell)
        return image


@dataclass(frozen=True)
class ProbeItem:
    """One question of the probe."""

    layout: ProbeLayout
    cell: Cell
    request: Request


def probe_layouts() -> list[ProbeLayout]:
    """Return all layouts; things stand in other places in each kind of image."""
    layouts = []
    for turn, kind in enumerate(SIZES):
        layouts.append(_layout(kind, "color", COLORS, turn, 2))
        # three across the shorter side: where a padded square is meant, the outer two move inwards
        layouts.append(_layout(kind, "digit", DIGITS, turn, 2 if kind == "wide" else 3))
        layouts.append(_layout(kind, "shape", SHAPES, turn, 2))
    return layouts


def write_images(folder: Path) -> dict[str, ProbeLayout]:
    """Write the images into a folder -> layouts by the name of the image's file."""
    written = {}
    for layout in probe_layouts():
        image = layout.draw()
        if layout.kind == ROTATED:
            exif = Image.Exif()
            exif[ExifTags.Base.Orientation] = TURNED_RIGHT
            stored = image.transpose(Image.Transpose.ROTATE_90)
            stored.save(folder / layout.name, quality=95, subsampling=0, exif=exif)
        else:
            image.save(folder / layout.name)
        written[layout.name] = layout
    return written


def probe_items(folder: Path) -> Iterator[ProbeItem]:
    """Write the images, and yield a question about every cell of each."""
    for name, layout in write_images(folder).items():
        source = open_image(folder / name)
        for cell in layout.cells:
            request = Request(name, layout.question, (Region(cell.asked),), source)
            yield ProbeItem(layout, cell, request)


def _layout(kind: str, subject: str, things: Sequence[str], turn: int, columns: int) -> ProbeLayout:
    """Lay things out in rows, beginning at another one in each kind of image."""
    width, height = SIZES[kind]
    rows = len(things) // columns
    order = [*things[turn % len(things) :], *things[: turn % len(things)]]
    cells = []
    for place, thing in enumerate(order):
        row, column = divmod(place, columns)
        box = Box(
            column * width / columns,
            row * height / rows,
            (column + 1) * width / columns,
            (row + 1) * height / rows,
        )
        cells.append(Cell(box, thing))
    return ProbeLayout(kind, subject, tuple(cells))


def _draw_digit(pen: ImageDraw.ImageDraw, cell: Cell) -> None:
    box = cell.asked
    font = ImageFont.load_default(min(box.width, box.height))
    center = ((box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2)
    pen.text(center, cell.thing, fill="black", font=font, anchor="mm")


def _draw_shape(pen: ImageDraw.ImageDraw, cell: Cell) -> None:
    box = cell.asked
    x, y = (box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2
    half = min(box.width, box.height) / 2
    edges = (x - half, y - half, x + half, y + half)
    match cell.thing:
        case "circle":
            pen.ellipse(edges, fill="black")
        case "square":
            pen.rectangle(edges, fill="black")
        case "triangle":
            pen.polygon([(x, y - half), (x + half, y + half), (x - half, y + half)], fill="black")
        case _:
            pen.regular_polygon((x, y, half), 3, fill="black")
            pen.regular_polygon((x, y, half), 3, rotation=60, fill="black")
