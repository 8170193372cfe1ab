"""Regions written into a text in PVIT's own notation.

    What is in <Region><L100><L50><L400><L999></Region>?   ->   What is in <region1>?

It is read where data of that kind comes in (`finetune`, FineEval), and never in what a user asks.
This module does not know what a text is for.
"""

import re
from collections.abc import Sequence

from regionqa.regions import BoxUnits, WrittenBox

INLINE = re.compile(r"<Region>\s*" + r"<L([0-9]{1,4})>\s*" * 4 + "</Region>")
"""PVIT's region: left, top, right, bottom in per mille of the picture's width and height."""


def number_regions(texts: Sequence[str]) -> tuple[list[str], list[WrittenBox]]:
    """The texts with `<regionK>` in place of regions, and the box of each K, from 1 on.

    Numbers run through all texts in order of appearance; the same four numbers are the same region.
    Boxes are as written, in per mille and unchecked: `WrittenBox.resolve` makes pixels of them, and
    raises BoxError for one without an area. What only resembles a region is left as it is.
    """
    numbers: dict[tuple[int, int, int, int], int] = {}

    def numbered(found: re.Match[str]) -> str:
        x0, y0, x1, y1 = map(int, found.groups())
        return f"<region{numbers.setdefault((x0, y0, x1, y1), len(numbers) + 1)}>"

    replaced = [INLINE.sub(numbered, text) for text in texts]
    return replaced, [WrittenBox(box, units=BoxUnits.permille) for box in numbers]
