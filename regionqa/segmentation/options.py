"""Options of regions that are marked by points and masks, and the points that they hold."""

import math
import re
from dataclasses import dataclass
from pathlib import Path

from regionqa.errors import BoxError, UsageError
from regionqa.flags import Options, Reads, Section, option

OUTSIDE = "-"
"""Begins a point that does not belong to its region."""
EXAMPLE = 'like --point 120,80 or --point "120,80 200,90 -150,40"'


@dataclass(frozen=True)
class ClickedPoint:
    """A point in an image."""

    x: float
    y: float
    """In pixels of the image as displayed."""
    inside: bool = True
    """Whether it belongs to the region; otherwise it shows what does not."""

    def __str__(self) -> str:
        return f"{'' if self.inside else OUTSIDE}{self.x:g},{self.y:g}"


Points = tuple[ClickedPoint, ...]
"""The points of one region; one of them at least is inside."""


def points_text(points: Points) -> str:
    """Return points as they are typed."""
    return " ".join(map(str, points))


def parse_points(text: str) -> Points:
    """Parse points such as `120,80 200,90 -150,40`, separated by spaces or semicolons.

    Raises:
        BoxError: One is not two numbers, or there is none.
    """
    points = []
    for part in re.split(r"[;\s]+", text.strip()):
        inside = not part.startswith(OUTSIDE)
        try:
            x, y = map(float, part.removeprefix(OUTSIDE).split(","))
        except ValueError:
            raise BoxError(f"point {part!r}: is not two numbers, {EXAMPLE}") from None
        if not (math.isfinite(x) and math.isfinite(y)):
            raise BoxError(f"point {part!r}: both coordinates must be finite numbers")
        points.append(ClickedPoint(x, y, inside))
    return tuple(points)


def group_points(texts: tuple[str, ...]) -> tuple[Points, ...]:
    """Return the points of each region; those of a text without any inside join the one before.

    Raises:
        BoxError: A text is malformed, or the first has no point inside.
    """
    regions: list[Points] = []
    for text in texts:
        points = parse_points(text)
        if any(point.inside for point in points):
            regions.append(points)
        elif regions:
            regions[-1] += points
        else:
            raise BoxError(
                f"point {points[0]}: lies outside of a region, as its - says; give a point inside "
                f"first, {EXAMPLE}"
            )
    return tuple(regions)


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class MarkOptions(Options):
    """Regions marked by points and masks, the same for every image."""

    point: tuple[str, ...] = option(
        (),
        "Point on a region; repeat for several regions. Further points of one region follow after "
        'spaces, those outside of it with a -: "120,80 200,90 -150,40".',
        metavar="X,Y",
        excludes=("boxes", "find"),
    )
    mask: tuple[Path, ...] = option(
        (),
        "Image of a region's mask, black outside of it (PNG); repeat for several regions.",
        metavar="FILE",
        role=Reads.images,
        excludes=("boxes", "find"),
    )
    segmenter: str | None = option(
        None,
        "Model that finds what points lie on (docs/guide/masks.md), folder, or OWNER/NAME on the "
        "Hub. Default: the first of the named ones that is downloaded.",
        metavar="MODEL",
        section=Section.model,
        role=Reads.model,
        needs=("point",),
    )

    fade: float = option(
        0.0,
        "With --way crop or crop-only: share by which what is outside of a region's mask is grey, "
        "0 to 1.",
        section=Section.runtime,
        needs=("way",),
        min=0,
        max=1,
    )

    @property
    def given(self) -> int:
        """Number of regions that are marked."""
        return len(self.points) + len(self.mask)

    @property
    def points(self) -> tuple[Points, ...]:
        """The points of each region of `--point`."""
        return group_points(self.point)

    def check(self) -> None:
        """Refuse malformed points."""
        try:
            group_points(self.point)
        except BoxError as error:  # wrong for every image, so it ends the command
            raise UsageError(f"--point: {error}") from None
