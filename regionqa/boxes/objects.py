"""Boxes with named numbers: JSON objects, and columns of tables.

The only place that knows what `xmin`, `bbox` or `cx` mean.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches

import msgspec

from regionqa.boxes.entries import Convention
from regionqa.boxes.fields import excerpt, four, optional_text
from regionqa.boxes.shapes import segmentation_mask
from regionqa.errors import BoxError
from regionqa.regions import BoxFormat, BoxUnits, WrittenBox

NUMBERS = {  # corners first: beside them, `width` and `height` are the image's
    ("x0", "y0", "x1", "y1"): BoxFormat.xyxy,
    ("xmin", "ymin", "xmax", "ymax"): BoxFormat.xyxy,
    ("x1", "y1", "x2", "y2"): BoxFormat.xyxy,
    ("left", "top", "right", "bottom"): BoxFormat.xyxy,
    ("xtl", "ytl", "xbr", "ybr"): BoxFormat.xyxy,
    ("cx", "cy", "w", "h"): BoxFormat.cxcywh,
    ("cx", "cy", "width", "height"): BoxFormat.cxcywh,
    ("xcenter", "ycenter", "width", "height"): BoxFormat.cxcywh,
    ("xcenter", "ycenter", "w", "h"): BoxFormat.cxcywh,
    ("centerx", "centery", "width", "height"): BoxFormat.cxcywh,
    ("x", "y", "w", "h"): BoxFormat.xywh,
    ("x", "y", "width", "height"): BoxFormat.xywh,
    ("left", "top", "width", "height"): BoxFormat.xywh,
    ("xmin", "ymin", "width", "height"): BoxFormat.xywh,
}
"""Names of four numbers, as `bare_name` returns them."""
LISTS = ("box", "bbox", "bbox_2d", "box_2d", "bounding_box", "boundingBox", "box2d")
"""Keys of a list of four numbers, or of an object with them."""
LABELS = ("label", "class", "class_name", "category", "category_name", "name")
"""Keys and columns of a label, in order of preference."""
_GEMINI = "box_2d"
"""Gemini's top, left, bottom, right in per mille."""
_CARRIED = (
    *("id", "meta", "score", "confidence", "conf", "class_id", "category_id", "area"),
    *("track_id", "tracker_id", "keypoints", "segments", "segmentation", "mask"),
)
"""Keys of a box that are allowed and not used; masks are if they are asked for."""


@dataclass(frozen=True)
class NamedNumbers:
    """Where the four numbers of a box stand."""

    keys: tuple[str, str, str, str]
    """In the order of `format`."""
    format: BoxFormat


def bare_name(name: str) -> str:
    """Reduce a name to letters and digits: `bbox_x_min` and `XMin` are `xmin`."""
    bare = re.sub(r"[^a-z0-9]", "", name.lower().replace("centre", "center"))
    return re.sub(r"^b?box(?=.)", "", bare)


def find_numbers(names: Iterable[str]) -> NamedNumbers | None:
    """Find the names of a box's four numbers; None if they are not among these names."""
    known: dict[str, str] = {}
    for name in names:
        known.setdefault(bare_name(name), name)
    for wanted, format in NUMBERS.items():
        if all(name in known for name in wanted):
            a, b, c, d = (known[name] for name in wanted)
            return NamedNumbers((a, b, c, d), format)
    return None


def is_box(item: object) -> bool:
    """Whether a JSON value is an object with the numbers of a box."""
    return isinstance(item, dict) and (
        any(key in item for key in LISTS) or find_numbers(item) is not None
    )


def label_of(item: Mapping[str, object], where: str) -> str | None:
    """Return the label of an object, a text rather than a number; None if it has none."""
    keys = [key for key in LABELS if item.get(key) is not None]
    keys.sort(key=lambda key: not isinstance(item[key], str))
    return (optional_text(item, keys[0], where) or None) if keys else None


def read_box(
    item: object, where: str, convention: Convention, default: BoxFormat = BoxFormat.xyxy
) -> WrittenBox:
    """Read a box from a list of four numbers, or from an object with its numbers and its label.

    Args:
        item: The JSON value.
        where: Its place, for messages.
        convention: What the user says of the numbers.
        default: The format of a list, if the user says nothing.

    Raises:
        BoxError: If there are no four numbers.
    """
    if not isinstance(item, dict):
        return WrittenBox(four(item, where), convention.format or default, convention.box_units)
    label = label_of(item, where)
    if isinstance(item.get(_GEMINI), list):
        top, left, bottom, right = four(item[_GEMINI], where)
        return WrittenBox((left, top, right, bottom), units=BoxUnits.permille, label=label)
    key = next((key for key in LISTS if key in item), None)
    inner = item[key] if key is not None else item
    if key is not None and not isinstance(inner, dict):
        values = four(inner, where)
        return WrittenBox(values, convention.format or default, convention.box_units, label)
    named = find_numbers(inner)
    if named is None:
        near = next(misspelt(item, LISTS), None)
        hint = f"; its key {near[0]!r} is perhaps meant" if near else ""
        raise BoxError(f"box in {where}: has no 'box'{hint}; write {{\"box\": [10, 20, 200, 300]}}")
    values = four([inner[each] for each in named.keys], where)
    return WrittenBox(values, convention.format or named.format, convention.box_units, label)


def with_mask(box: WrittenBox, item: object, where: str) -> WrittenBox:
    """Return a box with the mask of its JSON object, under `mask` or `segmentation`.

    Raises:
        BoxError: If it is malformed, or covers nothing.
    """
    fields = item if isinstance(item, dict) else {}
    given = fields.get("mask") or fields.get("segmentation")
    if not given:
        return box
    mask = segmentation_mask(given, where)
    if mask is None:
        raise BoxError(f"mask in {where}: has no area; remove it, or read without --masks")
    return msgspec.structs.replace(box, mask=mask)


def refuse_unknown(item: object, where: str) -> None:
    """Refuse keys of a box that have no meaning, unless they begin with `_`.

    Raises:
        BoxError: For the first one, with the key that is likely meant.
    """
    if not isinstance(item, dict):
        return
    numbers = find_numbers(item)
    known = {*LISTS, *LABELS, *_CARRIED, *(numbers.keys if numbers else ())}
    for key in item:
        if key not in known and not key.startswith("_"):
            near = get_close_matches(key.lower(), sorted(known), n=1)
            meant = f"did you mean {near[0]!r}?" if near else "what is to be kept goes into 'meta'"
            raise BoxError(f"box in {where}: unknown key {excerpt(key)}; {meant}")


def misspelt(keys: Iterable[str], known: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Pair keys that are not known with the known key each resembles."""
    known = tuple(known)
    for key in keys:
        near = get_close_matches(key.lower(), known, n=1)
        if key not in known and near:
            yield key, near[0]
