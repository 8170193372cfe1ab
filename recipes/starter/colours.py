"""What colour a box is, in a word, from its pixels.

Pixels are named by their lightness, chroma and hue in CIELAB, where equal distances look equally
different. A box has the name that many pixels of its middle have and few just outside of it: what
is behind a thing shows in its box too.
"""

import numpy as np
import numpy.typing as npt
from PIL import Image

UInt8 = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]

COLOURS = (
    "black", "white", "grey", "beige", "brown", "red", "orange", "yellow", "green", "blue",
    "purple", "pink",
)  # fmt: skip
MIDDLE = 0.8
"""The share of a box's sides that the ellipse spans in which pixels count."""
AROUND = 0.25
"""How far outside pixels count against a name, as a share of the box's sides."""
DOUBT = 0.15
"""What a name's share outside is raised by: a name that is rare inside must not win by being absent
outside."""
WEIGHTS = (1.0, 1.0, 1.0, 1.0, 1.35, 1.5, 1.5, 1.5, 1.5, 1.5, 1.5, 1.5)
"""What each name counts: shadows and highlights have no hue whatever they lie on, and skin is
brown."""
SIDE = 24
"""Rows and columns that a box is reduced to."""
ANY, ROUND = (0, 999), (0, 360)
RULES: tuple[tuple[str, tuple[float, float], tuple[float, float], tuple[float, float]], ...] = (
    ("black", (0, 16), ANY, ROUND),
    ("black", (0, 29), (0, 10), ROUND),
    ("white", (68, 999), (0, 11), ROUND),
    ("grey", ANY, (0, 9), ROUND),
    ("grey", ANY, (0, 13), (110, 340)),
    ("grey", ANY, (0, 17), (98, 210)),
    ("beige", (72, 999), (0, 36), (345, 100)),
    ("brown", (0, 72), (0, 34), (345, 95)),
    ("pink", (58, 999), ANY, (330, 30)),
    ("purple", ANY, ANY, (298, 330)),
    ("purple", (0, 40), (0, 36), (330, 348)),
    ("pink", ANY, ANY, (330, 348)),
    ("brown", (0, 46), (0, 50), (42, 84)),
    ("brown", (0, 60), (0, 46), (55, 84)),
    ("red", ANY, ANY, (348, 44)),
    ("orange", ANY, ANY, (44, 72)),
    ("yellow", (45, 999), ANY, (72, 107)),
    ("brown", ANY, ANY, (72, 95)),
    ("green", ANY, ANY, (95, 190)),
    ("blue", ANY, ANY, (190, 298)),
)
"""A name for colours of this lightness, chroma and hue (degrees; the last may lie past 360)."""
XYZ = np.array(
    [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]], np.float32
)
"""Linear sRGB to CIE XYZ (IEC 61966-2-1)."""
WHITE = XYZ.sum(axis=1)
"""Of daylight (D65)."""


def colour_of(pixels: UInt8, box: Floats) -> str | None:
    """The colour of a box (4,) xyxy in [0, 1] of a picture (H, W, 3); None of less than a pixel."""
    height, width = pixels.shape[:2]
    sides = np.array([width, height, width, height], np.float32)
    x0, y0, x1, y1 = (box.clip(0, 1) * sides).tolist()
    if x1 - x0 < 1 or y1 - y0 < 1:
        return None
    image = Image.fromarray(pixels)
    line = (np.arange(SIDE) + 0.5) / SIDE * 2 - 1  # -1 to 1 over the box
    middle = line[:, None] ** 2 + line[None, :] ** 2 <= MIDDLE**2  # (SIDE, SIDE)
    inside = shares(reduced(image, (x0, y0, x1, y1))[middle])
    reach = np.array([x1 - x0, y1 - y0] * 2) * AROUND * (-1, -1, 1, 1)
    wider = np.clip(np.array([x0, y0, x1, y1]) + reach, 0, sides)  # (4,)
    beside = [
        ((start + (np.arange(SIDE) + 0.5) / SIDE * (end - start)) < low)
        | ((start + (np.arange(SIDE) + 0.5) / SIDE * (end - start)) > high)
        for start, end, low, high in ((wider[0], wider[2], x0, x1), (wider[1], wider[3], y0, y1))
    ]  # columns and rows outside the box, (SIDE,) each
    around = beside[1][:, None] | beside[0][None, :]  # (SIDE, SIDE)
    outside = shares(reduced(image, tuple(wider.tolist()))[around])
    score = inside * inside / (inside + outside + DOUBT) * WEIGHTS
    return COLOURS[int(score.argmax())]


def reduced(image: Image.Image, box: tuple[float, float, float, float]) -> UInt8:
    """A rectangle of an image as (SIDE, SIDE, 3)."""
    return np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BOX, box=box))


def shares(rgb: UInt8) -> Floats:
    """How much of the pixels (P, 3) has each name of `COLOURS`; nothing where there are none."""
    counts = np.bincount(named(to_lab(rgb)), minlength=len(COLOURS))
    found: Floats = (counts / max(1, len(rgb))).astype(np.float32)
    return found


def to_lab(rgb: UInt8) -> Floats:
    """sRGB (P, 3) -> CIELAB (P, 3): lightness 0 to 100, green to red, blue to yellow."""
    share = rgb.astype(np.float32) / 255
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    xyz = linear @ XYZ.T / WHITE
    root = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
    x, y, z = root.T
    lab: Floats = np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=1).astype(np.float32)
    return lab


def named(lab: Floats) -> npt.NDArray[np.int64]:
    """The place in `COLOURS` of every colour (P, 3): that of the first rule that it meets."""
    light, a, b = lab.T
    chroma, hue = np.hypot(a, b), np.degrees(np.arctan2(b, a)) % 360
    names = np.full(len(lab), -1)
    for name, (dark, bright), (dull, vivid), (first, last) in RULES:
        within = (hue >= first) & (hue < last) if first < last else (hue >= first) | (hue < last)
        within &= (light >= dark) & (light < bright) & (chroma >= dull) & (chroma < vivid)
        names[within & (names < 0)] = COLOURS.index(name)
    return names
