"""What a reader of boxes left out or changed, and how it is told."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from regionqa.errors import brief


@dataclass(frozen=True, slots=True)
class LeftOut:
    """An annotation that was recognised but not read."""

    where: str
    """Its place, like `annotations[3] of labels.json`."""
    reason: str
    """What it is, as a plural noun, like `crowds`."""


@dataclass(frozen=True, slots=True)
class Adjusted:
    """An annotation that was read as something simpler, or under an assumption."""

    where: str
    """Its place, like `annotations[3] of labels.json`."""
    change: str
    """What was done, like `rotated boxes read as the upright boxes around them`."""


Remark = LeftOut | Adjusted


def summarise_remarks(remarks: Iterable[Remark]) -> Iterator[str]:
    """Render a line per reason or change, with its count and its first place."""
    groups: dict[tuple[type, str], list[str]] = {}
    for remark in remarks:
        text = remark.reason if isinstance(remark, LeftOut) else remark.change
        groups.setdefault((type(remark), text), []).append(remark.where)
    for (kind, text), places in groups.items():
        what = f"{text} left out" if kind is LeftOut else text
        first = "the first at " if len(places) > 1 else "at "
        yield brief(f"{what}: {len(places):,}, {first}{places[0]}")
