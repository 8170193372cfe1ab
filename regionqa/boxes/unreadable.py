"""Files that are often given as box files and are not read: what they are, and what to give."""

import re
from collections.abc import Set

_GIVE = "give the file of boxes itself"
_IMAGE = (
    "is {}, not a box file; if it is a segmentation mask, export boxes or polygons from the tool "
    "that made it, and give images before --boxes"
)
_SIGNATURES = (
    (b"SQLite format 3\0", "is a SQLite database; export its boxes as COCO, CSV or JSON"),
    (b"\x89PNG", _IMAGE.format("a PNG image")),
    (b"\xff\xd8\xff", _IMAGE.format("a JPEG image")),
    (b"GIF87a", _IMAGE.format("a GIF image")),
    (b"GIF89a", _IMAGE.format("a GIF image")),
    (b"II*\0", _IMAGE.format("a TIFF image")),
    (b"MM\0*", _IMAGE.format("a TIFF image")),
    (
        b"PK\x03\x04",
        f"is a zip archive, or a spreadsheet; unpack it, or save it as CSV, and {_GIVE}",
    ),
    (b"PK\x05\x06", f"is an empty zip archive; {_GIVE}"),
    (b"\x1f\x8b", f"is compressed with gzip; unpack it and {_GIVE}"),
    (b"BZh91AY", f"is compressed with bzip2; unpack it and {_GIVE}"),
    (b"\xfd7zXZ\0", f"is compressed with xz; unpack it and {_GIVE}"),
    (b"\x28\xb5\x2f\xfd", f"is compressed with zstd; unpack it and {_GIVE}"),
    (b"7z\xbc\xaf", f"is a 7z archive; unpack it and {_GIVE}"),
    (b"Rar!\x1a", f"is a RAR archive; unpack it and {_GIVE}"),
    (b"%PDF", f"is a PDF document; {_GIVE}"),
    (b"\xd0\xcf\x11\xe0", "is an old Excel or Word file; save it as CSV"),
    (b"\x89HDF", "is an HDF5 file; export its boxes as COCO, CSV or JSON"),
    (b"\x93NUMPY", "is a NumPy array; write its boxes as CSV or JSON"),
    (b"MATLAB 5.0", "is a MATLAB file; write its boxes as CSV or JSON"),
    (b"ARROW1", "is an Arrow file; save it as Parquet"),
    (b"\xff\xff\xff\xff", "is an Arrow stream; save it as Parquet"),
    (b"\x80\x02", "is a Python pickle, which is not opened; write its boxes as CSV or JSON"),
    (b"\x80\x03", "is a Python pickle, which is not opened; write its boxes as CSV or JSON"),
    (b"\x80\x04", "is a Python pickle, which is not opened; write its boxes as CSV or JSON"),
    (b"\x80\x05", "is a Python pickle, which is not opened; write its boxes as CSV or JSON"),
    (b"\x7fELF", f"is a program; {_GIVE}"),
    (
        b"version https://git-lfs",
        "is a Git LFS pointer, not the file itself; fetch it with: git lfs pull",
    ),
)
"""What a file begins with, and what is said of it."""
_WEB_PAGE = re.compile(rb"\s*<(!doctype html|html|head|body)\b", re.IGNORECASE)


def other_file(content: bytes) -> str | None:
    """Say what a file is that cannot hold boxes; None for text and for anything unknown."""
    for signature, description in _SIGNATURES:
        if content.startswith(signature):
            return description
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return _IMAGE.format("a WebP image")
    if content[:2] == b"BM" and content[6:10] == b"\0\0\0\0":
        return _IMAGE.format("a BMP image")
    if content[4:8] == b"ftyp":
        return _IMAGE.format("an AVIF or HEIC image, or a video")
    if _WEB_PAGE.match(content[:1024]):
        return "is a web page, perhaps of a failed download; fetch the file itself"
    return None


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
