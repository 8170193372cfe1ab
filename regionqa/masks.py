"""Masks: which pixels of an image belong to a region, as runs in COCO's order.

Runs are lengths of zeros and ones in turn, column by column, the first of zeros. COCO's text of
runs and its polygons are read and written here alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Self

from regionqa.errors import BoxError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Bools = npt.NDArray[np.bool_]

LONGEST_SIDE = 1 << 20
"""Pixels of the longest side of a mask, exclusive."""
Bounds = tuple[int, int, int, int]
"""Left, top, right, bottom in pixels; half-open."""


@dataclass(frozen=True)
class Mask:
    """Pixels of an image as displayed that belong to a region."""

    width: int
    """Width of the image in pixels."""
    height: int
    """Height of the image in pixels."""
    runs: tuple[int, ...]
    """Lengths of runs outside and inside in turn, column by column; they add up to the image."""

    @classmethod
    def of_array(cls, inside: "npt.NDArray[Any]") -> Self:
        """Make a mask of an array (height, width), in which what is not zero is inside."""
        import numpy as np

        height, width = inside.shape
        flat = np.concatenate([[False], inside.T.ravel() != 0])  # so that the first run is outside
        edges = np.flatnonzero(flat[1:] != flat[:-1])
        ends = [0, *edges.tolist(), height * width]
        return cls(width, height, tuple(end - start for start, end in pairwise(ends)))

    @classmethod
    def parse(cls, document: object, where: str) -> Self:
        """Read a run-length mask of JSON: `{"size": [height, width], "counts": ...}`.

        Args:
            document: The JSON value; `counts` are runs, or COCO's text of them.
            where: Its place, for messages.

        Raises:
            BoxError: It is malformed.
        """
        fields = document if isinstance(document, dict) else {}
        height, width = mask_size(fields.get("size"), where)
        runs = mask_runs(fields.get("counts"), where)
        check_runs(runs, width, height, where)
        return cls(width, height, tuple(runs))

    @property
    def area(self) -> int:
        """Number of pixels inside."""
        return sum(self.runs[1::2])

    @property
    def bounds(self) -> Bounds | None:
        """The upright box around the pixels inside; None if there are none."""
        return runs_bounds(self.runs, self.width, self.height)

    def resolve(self, width: int, height: int) -> Self:
        """Return the mask; BoxError unless it is of an image of this size."""
        if (self.width, self.height) != (width, height):
            raise BoxError(
                f"the mask is {self.width} x {self.height} pixels, but the image is {width} x "
                f"{height}; give the mask of this image in its size"
            )
        return self

    def array(self) -> "Bools":
        """Return the mask as an array (height, width)."""
        import numpy as np

        inside = np.zeros(len(self.runs), bool)
        inside[1::2] = True
        return np.repeat(inside, self.runs).reshape(self.width, self.height).T

    def as_rle(self) -> dict[str, object]:
        """Return the mask as JSON that COCO's tools and `parse` read."""
        return {"size": [self.height, self.width], "counts": runs_text(self.runs)}


@dataclass(frozen=True)
class Polygons:
    """A mask as polygons, before the size of its image is known."""

    corners: tuple[tuple[tuple[float, float], ...], ...]
    """Corners of each polygon, in pixels; three at least."""

    def resolve(self, width: int, height: int) -> Mask:
        """Return the pixels whose centres a polygon encloses, of an image of this size."""
        import numpy as np

        inside = np.zeros((height, width), bool)
        for polygon in self.corners:
            inside |= filled(polygon, width, height)
        return Mask.of_array(inside)


WrittenMask = Mask | Polygons
"""A mask as a file or user gives it."""


def filled(corners: Sequence[tuple[float, float]], width: int, height: int) -> "Bools":
    """Return the pixels (height, width) whose centres a polygon encloses, by the even-odd rule."""
    import numpy as np

    # whether an odd number of sides lies between the centres of the pixel before and of this one
    crossed = np.zeros((height, width + 1), bool)
    centres = np.arange(height) + 0.5
    for (x0, y0), (x1, y1) in zip(corners, (*corners[1:], corners[0]), strict=True):
        rows = np.flatnonzero((centres < y0) != (centres < y1))
        if len(rows):
            at = x0 + (centres[rows] - y0) * ((x1 - x0) / (y1 - y0))
            crossed[rows, np.clip(np.ceil(at - 0.5), 0, width).astype(np.int64)] ^= True
    inside: Bools = np.logical_xor.accumulate(crossed[:, :width], axis=1)
    return inside


# -- runs ------------------------------------------------------------------------------------------


def runs_bounds(runs: Sequence[int], width: int, height: int) -> Bounds | None:
    """Return the upright box around the pixels inside; None if there are none."""
    left, top, right, bottom = width, height, 0, 0
    start = 0
    for index, run in enumerate(runs):
        end = start + run
        if index % 2 and run:
            first, last = start // height, (end - 1) // height
            left, right = min(left, first), max(right, last + 1)
            if first == last:
                top, bottom = min(top, start % height), max(bottom, (end - 1) % height + 1)
            else:  # a run that leaves its column reaches the bottom of one and the top of the next
                top, bottom = 0, height
        start = end
    return (left, top, right, bottom) if right else None


def mask_size(size: object, where: str) -> tuple[int, int]:
    """Return height and width of a run-length mask; BoxError if they are malformed."""
    if (
        not isinstance(size, list)
        or len(size) != 2
        or not all(type(length) is int and 0 < length < LONGEST_SIDE for length in size)
    ):
        raise BoxError(f"box in {where}: the size of its mask is not [height, width] in pixels")
    return size[0], size[1]


def mask_runs(counts: object, where: str) -> list[int]:
    """Return the runs of a mask, given as a list or as COCO's text; BoxError if malformed."""
    if isinstance(counts, str):
        counts = text_runs(counts, where)
    if not isinstance(counts, list) or not all(type(run) is int and run >= 0 for run in counts):
        raise BoxError(f"box in {where}: its mask is not run lengths; export it again")
    return counts


def check_runs(runs: Sequence[int], width: int, height: int, where: str) -> None:
    """Raise BoxError unless runs add up to the size of their mask."""
    if sum(runs) != height * width:
        raise BoxError(
            f"box in {where}: the runs of its mask are {sum(runs)} pixels, "
            f"but it is {width} x {height}; export it again"
        )


def text_runs(text: str, where: str) -> list[int]:
    """Decode COCO's text: numbers of 5 bits a character, the lowest first, from the fourth on as
    differences to the one two before."""
    runs: list[int] = []
    value = shift = 0
    for character in text:
        code = ord(character) - 48
        if not 0 <= code < 64 or shift > 60:
            raise BoxError(f"box in {where}: its mask is not COCO's text of run lengths")
        value |= (code & 31) << shift
        shift += 5
        if not code & 32:
            if code & 16:
                value -= 1 << shift
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    if shift:
        raise BoxError(f"box in {where}: the text of its mask is cut off")
    return runs


def runs_text(runs: Sequence[int]) -> str:
    """Encode runs as COCO's text, the reverse of `text_runs`."""
    letters: list[str] = []
    for place, run in enumerate(runs):
        value = run - runs[place - 2] if place > 2 else run
        more = True
        while more:
            bits, value = value & 31, value >> 5
            more = value != (-1 if bits & 16 else 0)
            letters.append(chr((bits | 32 if more else bits) + 48))
    return "".join(letters)
