"""How texts name regions: `<region1>`, PVIT's inline regions, and spellings that name nothing.

Asking, chat, evaluation and training all read questions through this module.
"""

import re
from collections.abc import Iterator, Sequence

from regionqa.errors import QuestionError
from regionqa.regions import BoxUnits, WrittenBox

REFERENCE = re.compile(r"<region(\d+)>")
LONGEST_NUMBER = 9
"""Digits of a reference; Python refuses to read numbers of thousands of digits."""
IMAGE = "<image>"
"""LLaVA's mark for the image. The image always comes first here, so the mark is removed."""
INLINE = re.compile(r"<Region>\s*" + r"<L([0-9]{1,4})>\s*" * 4 + "</Region>")
"""PVIT's region: left, top, right, bottom in per mille of the image's width and height."""
NEARLY = re.compile(
    r"<\s*/?\s*(?:regions?|bbox|box|roi)[\s_#:-]*[0-9]*\s*/?\s*>"
    r"|[\[{]\s*regions?[\s_#:-]*[0-9]+\s*[\]}]"
    r"|<\|(?:box|region)[a-z_]*\|>"
    r"|<L-?[0-9.]*>",
    re.IGNORECASE,
)
"""Text that resembles a region reference, in this or another tool's spelling."""


def question_text(text: str) -> str:
    """Remove the marks of the image from a question, and the white space around them."""
    if IMAGE not in text:
        return text
    return " ".join(part.strip() for part in text.split(IMAGE)).strip()


def number_regions(texts: Sequence[str]) -> tuple[list[str], list[WrittenBox]]:
    """Replace PVIT's inline regions by `<region1>` and so on.

    Numbers run through all texts in order of appearance; the same four numbers are the same region.
    Text that only resembles a region is left as it is.

    Returns:
        The texts, and the boxes in order of their numbers: xyxy in per mille, not checked yet
        (`WrittenBox.resolve` raises BoxError for one without area).
    """
    numbers: dict[tuple[int, int, int, int], int] = {}

    def numbered(found: re.Match[str]) -> str:
        x0, y0, x1, y1 = map(int, found.groups())
        return f"<region{numbers.setdefault((x0, y0, x1, y1), len(numbers) + 1)}>"

    replaced = [INLINE.sub(numbered, text) for text in texts]
    return replaced, [WrittenBox(box, units=BoxUnits.permille) for box in numbers]


def inline_regions(
    texts: Sequence[str], *, with_boxes: bool
) -> tuple[list[str], tuple[WrittenBox, ...]]:
    """Replace inline regions as `number_regions` does, where they are the only ones.

    Args:
        texts: Questions, or questions and answers.
        with_boxes: Whether boxes are given beside the texts.

    Raises:
        QuestionError: Regions are given both inline and otherwise.
    """
    replaced, boxes = number_regions(texts)
    if boxes and (with_boxes or any(map(REFERENCE.search, texts))):
        raise QuestionError(
            "gives regions both inline and by number or box; write all of them one way"
        )
    return replaced, tuple(boxes)


def reference_problems(text: str, given: int) -> Iterator[str]:
    """Find what is wrong with the references of a text about so many regions."""
    for digits in REFERENCE.findall(text):
        if len(digits) > LONGEST_NUMBER or not 1 <= int(digits) <= given:
            regions = "1 region was" if given == 1 else f"{given:,} regions were"
            yield f"names <region{digits[:LONGEST_NUMBER]}>, but {regions} given"
    for nearly in NEARLY.findall(REFERENCE.sub("", text))[:1]:
        yield (
            f"holds {nearly[:40]!r}, which names no region; write <region1>, "
            "or <Region><L10><L20><L300><L400></Region>"
        )


def renumber(text: str, kept: Sequence[int]) -> str:
    """The text for a question that has only some of the regions: `kept[0]` becomes `<region1>`.

    Mentions of others become words.
    """
    places = {number: place for place, number in enumerate(kept, start=1)}

    def renamed(found: re.Match[str]) -> str:
        place = places.get(int(found[1])) if len(found[1]) <= LONGEST_NUMBER else None
        return f"<region{place}>" if place else f"region {found[1]}"

    return REFERENCE.sub(renamed, text)
