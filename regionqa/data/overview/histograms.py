"""Histograms as lines of text."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

SIZES = (16, 32, 64, 128, 256)
"""Bin edges of the histogram of regions: their shorter side in pixels."""
LENGTHS = (2, 3, 6, 11, 21, 51)
"""Bin edges of the histogram of texts: their number of words."""
BAR_LENGTH = 40
"""Characters of the longest bar."""


@dataclass(frozen=True)
class Bar:
    """One bar of a histogram, or one line of a list."""

    name: str
    count: int


def bin_of(value: float, edges: Sequence[int]) -> int:
    """Return the number of the bin that a value is in, from 0."""
    return sum(value >= edge for edge in edges)


def bars_of(
    counts: Mapping[int, int], edges: Sequence[int], *, whole: bool = False
) -> tuple[Bar, ...]:
    """Name the bins between the edges, up to the last that is not empty.

    Args:
        counts: Number of values by bin.
        edges: Least values of all bins but the first.
        whole: Whether values are whole numbers from 1.
    """
    names = [_range_name(low, high, whole) for low, high in pairwise((0, *edges))]
    names.append(f"{edges[-1]} and more")
    highest = max(counts, default=-1)
    return tuple(Bar(name, counts.get(n, 0)) for n, name in enumerate(names[: highest + 1]))


def binned(
    values: Sequence[float], edges: Sequence[int], *, whole: bool = False
) -> tuple[Bar, ...]:
    """Count values in the bins between the edges; `whole` as in `bars_of`."""
    return bars_of(Counter(bin_of(value, edges) for value in values), edges, whole=whole)


def histogram(title: str, bars: Sequence[Bar], total: int) -> Iterator[str]:
    """Render a line per bar, its length relative to the longest bar."""
    if not total:
        return
    yield from ("", title)
    names = [
        bar.name if len(bar.name) <= BAR_LENGTH else f"{bar.name[: BAR_LENGTH - 3]}..."
        for bar in bars
    ]
    width, longest = max(map(len, names)), max(bar.count for bar in bars)
    for name, bar in zip(names, bars, strict=True):
        share, length = 100 * bar.count / total, -(-bar.count * BAR_LENGTH // longest)
        yield f"  {name:{width}}  {bar.count:>10,}  {share:5.1f} %  {'#' * length}".rstrip()


def _range_name(low: int, high: int, whole: bool) -> str:
    if whole:
        return f"{max(1, low)}" if high - max(1, low) == 1 else f"{low} to {high - 1}"
    return f"{low} to {high}" if low else f"below {high}"
