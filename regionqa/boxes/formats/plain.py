"""Plain JSON: `{"image.jpg": [[x0, y0, x1, y1], ...]}`, read and written.

Also what vision-language models and detection services answer about one image: boxes without the
name of an image.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import PurePosixPath

from regionqa.boxes.entries import (
    BoxContents,
    BoxEntry,
    Convention,
    Files,
    ImageRegions,
    mask_field,
    score_field,
)
from regionqa.boxes.fields import excerpt, json_text, plain_number
from regionqa.boxes.objects import is_box, misspelt, read_box, refuse_unknown, with_mask
from regionqa.boxes.remarks import Adjusted, LeftOut
from regionqa.boxes.source import SourceFile
from regionqa.errors import BoxFileError
from regionqa.regions import BoxFormat, BoxUnits, Region, WrittenBox

TITLE = 'JSON like {"image.jpg": [[x0, y0, x1, y1]]}'
IMAGE_SUFFIX = None
OWN_CONVENTION = False
ABSENT_IS_EMPTY = False
_BOXES = ("boxes", "bboxes", "detections")
"""Keys of a list of boxes for any image."""
_LISTS = ("labels", "scores")
"""Keys of lists beside such a list, of equal length."""
_TASK = re.compile(r"<[A-Z_]+>")
_MOONDREAM = "objects"
_ROBOFLOW = "predictions"
_MODEL_KEYS = ("bbox_2d", "box_2d", "point_2d")
_QWEN = (
    "bbox_2d read as pixels of the image; if the model wrote per mille, as Qwen3-VL does, use "
    "--box-units permille"
)


def recognise(file: SourceFile) -> bool:
    """Whether the file is JSON in which some value looks like a list of boxes, or empty."""
    if file.kind == ".jsonl":
        return isinstance(file.first, (list, dict)) and (
            is_box(file.first) or isinstance(file.first, list)
        )
    if file.kind != ".json":
        return False
    document = file.document
    if is_box(document):
        return True
    if isinstance(document, dict):
        document = _unwrapped(document)
    values = document.values() if isinstance(document, dict) else [document]
    return document == {} or any(map(_holds_boxes, values))


def _holds_boxes(value: object) -> bool:
    return value == [] or (
        isinstance(value, list) and any(isinstance(item, (list, dict)) for item in value)
    )


def read(files: Iterable[SourceFile], convention: Convention) -> BoxContents:
    """Read boxes by image, in the convention stated by the user.

    A box may also be `{"box": [...], "label": "..."}`, with `bbox` or named corners in place of
    `box`. A bare list of boxes, or a list under the only key `boxes`, applies to any image, as do
    answers of Qwen (`bbox_2d`), Gemini (`box_2d`), Florence (`bboxes` and `labels`), moondream
    (`objects`) and Roboflow (`predictions`).
    """
    contents = [_contents(file, convention) for file in files]
    return BoxContents(
        tuple(entry for each in contents for entry in each.entries),
        tuple(each for found in contents for each in found.left_out),
        adjusted=tuple(each for found in contents for each in found.adjusted),
    )


def _contents(file: SourceFile, convention: Convention) -> BoxContents:
    document = file.document if file.kind == ".json" else [value for _, value in file.lines()]
    if is_box(document):
        document = [document]
    if isinstance(document, list):
        return _any_image(document, file, convention)
    assert isinstance(document, dict)
    document = _joined(_unwrapped(document), file)
    given = [key for key in (*_BOXES, _MOONDREAM, _ROBOFLOW) if key in document]
    if len(given) == 1 and not any(
        _holds_boxes(value) and isinstance(value, list)
        for key, value in document.items()
        if key not in given
    ):
        (key,) = given
        return _any_image(document[key], file, convention, key, document)
    return BoxContents(
        tuple(
            BoxEntry.of(name, _boxes(items, repr(name), file, convention))
            for name, items in document.items()
        )
    )


def _unwrapped(document: dict[str, object]) -> dict[str, object]:
    """Return what stands under Florence's task, such as `<OD>`."""
    ((key, value), *others) = document.items() or [("", None)]
    is_task = not others and _TASK.fullmatch(key) is not None
    return value if is_task and isinstance(value, dict) else document


def _joined(document: dict[str, object], file: SourceFile) -> dict[str, object]:
    """Join lists of boxes, labels and scores of equal length, as detectors answer."""
    key = next((key for key in _BOXES if isinstance(document.get(key), list)), None)
    boxes, labels = document.get(key or ""), document.get("labels")
    if key is None or not isinstance(boxes, list) or not isinstance(labels, list):
        return document
    if len(boxes) != len(labels):
        raise BoxFileError(
            f"{file.path}: has {len(boxes)} boxes and {len(labels)} labels; give each box its label"
        )
    joined = [
        {"box": box, "label": label if isinstance(label, str) else None}
        for box, label in zip(boxes, labels, strict=True)
    ]
    others = {name: value for name, value in document.items() if name not in (*_LISTS, key)}
    return {**others, key: joined}


def _any_image(
    items: object,
    file: SourceFile,
    convention: Convention,
    key: str = "",
    document: dict[str, object] | None = None,
) -> BoxContents:
    """Read boxes that apply to any image."""
    if key in _BOXES:
        for other in document or {}:
            if other != key and not other.startswith("_") and other not in ("id", "meta"):
                near = next(misspelt([other], ["image", "regions"]), None)
                hint = (
                    f"; did you mean {near[1]!r}?" if near else f"; remove it, or keep {key!r} only"
                )
                raise BoxFileError(f"{file.path}: unknown key {excerpt(other)}{hint}")
    if key == _MOONDREAM and convention.units is None:
        convention = Convention(convention.format, BoxUnits.fraction)
    if key == _ROBOFLOW and convention.format is None and _are_centred(items):
        convention = Convention(BoxFormat.cxcywh, convention.units)
    left_out: list[LeftOut] = []
    adjusted: list[Adjusted] = []
    points: list[int] = []
    if isinstance(items, list):
        own = [item for item in items if isinstance(item, dict)]
        if convention.units is None and any("bbox_2d" in item for item in own):
            adjusted.append(Adjusted(str(file.path), _QWEN))
        points = [index for index, item in enumerate(items) if _is_point(item)]
        left_out += (LeftOut(f"[{index}] of {file.path}", "points") for index in points)
    strict = not key or key in _BOXES
    boxes = _boxes(items, key and repr(key), file, convention, strict=strict, points=points)
    return BoxContents((BoxEntry.of(None, boxes),), tuple(left_out), adjusted=tuple(adjusted))


def _are_centred(items: object) -> bool:
    """Whether all objects have the numbers of Roboflow, whose x and y are the centre."""
    numbers = {"x", "y", "width", "height"}
    return isinstance(items, list) and all(
        isinstance(item, dict) and numbers <= item.keys() for item in items
    )


def _is_point(item: object) -> bool:
    return (
        isinstance(item, dict)
        and not is_box(item)
        and ("point_2d" in item or "point" in item or {"x", "y"} <= item.keys())
    )


def _boxes(
    items: object,
    name: str,
    file: SourceFile,
    convention: Convention,
    *,
    strict: bool = True,
    points: Sequence[int] = (),
) -> Iterator[WrittenBox]:
    if not isinstance(items, list):
        raise BoxFileError(
            f"{name or 'boxes'} of {file.path}: is {excerpt(items)}; "
            "write a list of boxes, like [[10, 20, 200, 300]]"
        )
    for index, item in enumerate(items):
        where = f"{name}[{index}] of {file.path}"
        if index in points:
            continue
        if strict and isinstance(item, dict) and not item.keys() & set(_MODEL_KEYS):
            refuse_unknown(item, where)
        box = read_box(item, where, convention)
        yield with_mask(box, item, where) if convention.masks else box


def write(images: Sequence[ImageRegions]) -> Files:
    """Render boxes by image, xyxy in pixels; a labelled box as an object."""
    document = {image.name: [_box(region) for region in image.regions] for image in images}
    return {PurePosixPath(): json_text(document)}


def _box(region: Region) -> object:
    values = [plain_number(value) for value in region.box.xyxy]
    label = {"label": region.label} if region.label else {}
    fields = label | mask_field(region) | score_field(region)
    return {"box": values, **fields} if fields else values
