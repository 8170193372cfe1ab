"""Everything between the command line's arguments and a stream of requests.

Two steps, both lazy: `find_images` makes items of files, folders, globs and stdin, and
`make_requests` opens their images, finds their boxes and words their questions. What is wrong
with one item becomes its request's error, and the stream goes on. No model is known or run here.
"""

import json

from regionqa.errors import ItemError
from regionqa.regions import WrittenBox, four_numbers


def parse_regions(regions: object) -> tuple[WrittenBox, ...] | None:
    """Pixel xyxy, each as a list or under "box" beside a "label"; ItemError for anything else."""
    if regions is None:
        return None
    if not isinstance(regions, list):
        raise ItemError(f"the regions are {regions!r}, not a list")
    return tuple(_parse_region(region) for region in regions)


def _parse_region(region: object) -> WrittenBox:
    fields = region if isinstance(region, dict) else {"box": region}
    values, label = fields.get("box"), fields.get("label")
    if not isinstance(label, str | None):
        raise ItemError(f"the label is {label!r}, not text")
    return WrittenBox(four_numbers(values, json.dumps(values)), label=label)


def check_text(question: str, image: str) -> None:
    """ItemError where a command line has stray bytes, or JSON half a character."""
    try:
        question.encode()
    except UnicodeEncodeError as error:
        raise ItemError(
            f"{image}: the question is no valid text at character {error.start + 1}; "
            "write it in UTF-8"
        ) from None
