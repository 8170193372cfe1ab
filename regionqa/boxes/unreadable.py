"""Files that are often given as box files and are not read: what they are, and what to give."""

import re
from collections.abc import Set

from regionqa.images.kinds import READ, START, kind_of

_GIVE = "give the file of boxes itself"
_MASK = (
    "not a box file; if it is a segmentation mask, export boxes or polygons from the tool that "
    "made it, and give images before --boxes"
)
_WRITE = "write its boxes as COCO, CSV or JSON"
_PICKLE = f"a Python pickle, which is not opened; {_WRITE}"
_STARTS = {
    b"MATLAB 5.0": f"a MATLAB file; {_WRITE}",
    b"ARROW1": "an Arrow file; save it as Parquet",
    b"\xff\xff\xff\xff": "an Arrow stream; save it as Parquet",
    b"\x80\x02": _PICKLE,
    b"\x80\x03": _PICKLE,
    b"\x80\x04": _PICKLE,
    b"\x80\x05": _PICKLE,
    b"\xd0\xcf\x11\xe0": "an old Excel or Word file; save it as CSV",
    b"\x7fELF": f"a program; {_GIVE}",
}
"""First bytes of files that are given as boxes, and hardly ever as images."""
_ACTIONS = {
    "Office": f"unpack it, or save it as CSV, and {_GIVE}",
    "archive": f"unpack it and {_GIVE}",
    "database": _WRITE,
    "HDF5": _WRITE,
    "NumPy": _WRITE,
}
"""What to do with a kind of file, by a word of its name."""
_LFS = "a Git LFS pointer, not the file itself; fetch it with: git lfs pull"
_CONTROLS = re.compile(rb"[\0-\x08\x0e-\x1f]")
_WEB_PAGE = re.compile(rb"\s*<(!doctype html|html|head|body)\b", re.IGNORECASE)


def other_file(content: bytes) -> str | None:
    """Say what a file is that cannot hold boxes; None for text, Parquet and anything unknown."""
    start = content[:START]
    if start.startswith(b"version https://git-lfs"):
        return f"is {_LFS}"
    if _WEB_PAGE.match(start):
        return "is a web page, perhaps of a failed download; fetch the file itself"
    if _is_text(start) or start.startswith(b"PAR1"):
        return None
    own = next((text for mark, text in _STARTS.items() if start.startswith(mark)), None)
    if own is not None:
        return f"is {own}"
    kind = kind_of(start)
    if kind is None:
        return None
    action = next((text for word, text in _ACTIONS.items() if word in kind), _GIVE)
    return f"is {kind}, {_MASK}" if kind in READ else f"is {kind}; {action}"


def _is_text(start: bytes) -> bool:
    """Whether these are the first bytes of UTF-8 text, perhaps cut within a character."""
    try:
        start.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.end < len(start) - 3:
            return False
    return _CONTROLS.search(start) is None


_EXPORT = "which is not read; export COCO, Pascal VOC or YOLO from it"
_TOOLS = (
    ({"asset", "regions"}, f"VoTT's JSON, {_EXPORT}"),
    ({"assets", "tags"}, f"a project of VoTT, {_EXPORT}"),
    ({"item", "annotations"}, f"V7 Darwin's JSON, {_EXPORT}"),
    ({"items", "categories"}, f"Datumaro's JSON, {_EXPORT}"),
    ({"data_row"}, f"an export of Labelbox, {_EXPORT}"),
    ({"Labeled Data"}, f"an export of Labelbox, {_EXPORT}"),
    ({"objects", "size"}, f"Supervisely's JSON, {_EXPORT}"),
    ({"metadata", "file", "view"}, f"a project of VIA 3, {_EXPORT}"),
    ({"source-ref"}, "a manifest of SageMaker Ground Truth, which is not read; convert it to COCO"),
    ({"imageGcsUri"}, "JSON lines of Vertex AI, which are not read; convert them to COCO"),
    (
        {"Labels", "LabelModelVersion"},
        "an answer of Rekognition, which is not read; write its boxes as JSON, in fractions",
    ),
    ({"name", "labels"}, "JSON of Scalabel or BDD100K, which is not read; convert it to COCO"),
    ({"type", "features"}, "GeoJSON, whose coordinates are not pixels; convert it to COCO"),
)
"""Keys of files of other tools, and what is said of such a file."""


def other_tool(keys: Set[str]) -> str | None:
    """Say whose format a JSON file with these keys has, if it is one that is not read."""
    return next((f"is {text}" for known, text in _TOOLS if known <= keys), None)


def other_labels(words: list[str]) -> str | None:
    """Say what a line of labels is that is not YOLO's, and what to do; None if unknown."""
    first, count = words[0], len(words)
    if first.lower() == "class" or "," in first:
        return "this seems to be a table; call it .csv, with a header"
    if first.startswith(("imagesource", "gsd")) or (
        count in (9, 10) and not _is_number(words[8]) and all(map(_is_number, words[:8]))
    ):
        return "this seems to be DOTA, which is not read; convert it to YOLO's OBB"
    if count in (15, 16) and not _is_number(first) and all(map(_is_number, words[1:])):
        return "this seems to be KITTI, which is not read; convert it to YOLO, COCO or CSV"
    return None


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
