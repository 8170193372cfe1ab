"""What a file is: by the suffix of its name, and by its first bytes.

People give much that is not an image of a kind that is read: pointers of Git LFS, error pages saved
as `.jpg`, videos, raw photos. The message for such a file says what it is.
"""

import re
from pathlib import PurePath

FORMATS = ("JPEG", "PNG", "WebP", "BMP", "TIFF", "GIF", "AVIF", "HEIF")
"""Formats that are read. Pillow opens more, some by running other programs (EPS)."""


def _suffixes(names: str) -> frozenset[str]:
    return frozenset(f".{name}" for name in names.split())


SUFFIXES = _suffixes(
    "jpg jpeg jpe jfif jif jfi mpo png apng webp bmp dib tif tiff gif "
    "avif avifs heic heif heics heifs hif"
)
"""Suffixes of the files found in folders and by globs; a file given by name may have any."""

LIKE_IMAGES = _suffixes(
    "jp2 j2k jpf jpx jxl jxr svg svgz eps ai psd psb xcf ico cur icns tga dds pcx ppm pgm pbm pnm "
    "pfm exr hdr dcm dicom fits fit nii raw cr2 cr3 crw nef nrw arw srf sr2 dng orf rw2 raf pef "
    "srw x3f 3fr iiq djvu wmf emf pdf mp4 m4v mov avi mkv webm wmv flv mpg mpeg 3gp svs ndpi czi"
)
"""Suffixes of images, and of what holds images, that are not read."""

SIDECARS = _suffixes("json jsonl txt xml csv tsv md yaml yml html xmp npy npz pt pkl")
"""Suffixes of files about an image, which may carry its whole name, as `a.jpg.json` does."""

START = 1024
"""Number of first bytes that `kind_of` needs."""

AVIF, HEIC, WEBP, BMP = "an AVIF image", "a HEIC image", "a WebP image", "a BMP image"
READ_STARTS = {
    b"\xff\xd8\xff": "a JPEG image",
    b"\x89PNG": "a PNG image",
    b"GIF8": "a GIF image",
    b"II*\0": "a TIFF image",
    b"MM\0*": "a TIFF image",
    b"II+\0": "a TIFF image",
    b"MM\0+": "a TIFF image",
}
"""First bytes of formats that are read."""
READ = frozenset({*READ_STARTS.values(), AVIF, HEIC, WEBP, BMP})
"""Kinds that are read; a file of such a kind that fails is damaged."""

STARTS = {
    b"%PDF": "a PDF",
    b"%!PS": "a PostScript file",
    b"\xc5\xd0\xd3\xc6": "a PostScript file",
    b"8BPS": "a Photoshop file",
    b"gimp xcf": "a GIMP file",
    b"\0\0\0\x0cjP  ": "a JPEG 2000 image",
    b"\xff\x4f\xff\x51": "a JPEG 2000 image",
    b"\xff\x0a": "a JPEG XL image",
    b"\0\0\0\x0cJXL ": "a JPEG XL image",
    b"II\xbc": "a JPEG XR image",
    b"\0\0\1\0": "an icon (ICO)",
    b"icns": "an icon (ICNS)",
    b"DDS ": "a DirectDraw texture",
    b"v/1\x01": "an OpenEXR image",
    b"#?R": "a Radiance image",
    b"SIMPLE  =": "a FITS image",
    b"FUJIFILMCCD-RAW": "a raw photo (RAF)",
    b"IIRO": "a raw photo (ORF)",
    b"IIU\0": "a raw photo (RW2)",
    b"AT&TFORM": "a DjVu document",
    b"\xd7\xcd\xc6\x9a": "a Windows metafile",
    b"\x1f\x8b": "a gzip archive",
    b"PK\3\4": "a ZIP archive or Office document",
    b"7z\xbc\xaf": "a 7z archive",
    b"Rar!": "a RAR archive",
    b"BZh": "a bzip2 archive",
    b"\xfd7zXZ": "an xz archive",
    b"\x28\xb5\x2f\xfd": "a zstd archive",
    b"\x1aE\xdf\xa3": "a video (Matroska or WebM)",
    b"FLV": "a video (FLV)",
    b"\0\0\1\xba": "a video (MPEG)",
    b"\x30\x26\xb2\x75": "a video (WMV)",
    b"OggS": "a video (Ogg)",
    b"ID3": "a sound file",
    b"\x93NUMPY": "a NumPy array",
    b"\x89HDF": "an HDF5 file",
    b"SQLite format": "a SQLite database",
    b"PAR1": "a Parquet file",
    b"\0\5\x16\7": "a macOS resource file, not the image itself",
    b"bplist": "a macOS property list",
}
"""Other kinds of files by their first bytes."""

HEIF_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}
AGAIN = "download the image again, or copy it from its source"
BASE64_IMAGES = (b"/9j/", b"iVBORw0KGgo", b"R0lGOD", b"UklGR")
"""First characters of JPEG, PNG, GIF and WebP in Base64."""


def kind_of(start: bytes) -> str | None:
    """Name the kind of a file by its first `START` bytes; None for text and the unknown."""
    for table in (READ_STARTS, STARTS):
        for mark, kind in table.items():
            if start.startswith(mark):
                return kind
    if start[:4] == b"RIFF":
        forms = {b"WEBP": WEBP, b"AVI ": "a video (AVI)", b"WAVE": "a sound file"}
        return forms.get(start[8:12])
    if start[:2] == b"BM" and start[6:10] == b"\0\0\0\0":
        return BMP
    if re.match(rb"P[1-7]\s", start):
        return "a PNM image"
    if start[128:132] == b"DICM":
        return "a DICOM image"
    if start[257:262] == b"ustar":
        return "a tar archive"
    return _media_kind(start) if start[4:8] == b"ftyp" else None


def _media_kind(start: bytes) -> str:
    """The kind of a file in the ISO base media format, which HEIC, AVIF and MP4 share."""
    end = min(int.from_bytes(start[:4]), len(start))
    brands = {start[8:12], *(start[at : at + 4] for at in range(16, end, 4))}
    if brands & {b"avif", b"avis"}:
        return AVIF
    if brands & HEIF_BRANDS:
        return HEIC
    return "a raw photo (CR3)" if b"crx " in brands else "a video (MP4 or QuickTime)"


def text_instead(start: bytes) -> str | None:
    """Say which text stands where an image should, and what to do; None for any other file."""
    if not start.strip(b"\0"):
        return "nothing but zero bytes, as an interrupted copy leaves them; copy it again"
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip()
    low = text.lower()
    if low.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer, not the image itself; fetch it: git lfs pull"
    if b"/annex/objects/" in low:
        return "a git-annex pointer, not the image itself; fetch it: git annex get"
    if low.startswith((b"<!doctype html", b"<html", b"<head", b"<body", b"<script")):
        return f"a web page (HTML), such as an error or a login; {AGAIN}"
    if b"<svg" in low:
        return "an SVG drawing, which is not read; convert it to PNG"
    if low.startswith((b"<?xml", b"<error", b"<rdf")):
        return f"an XML document, such as a server's error message; {AGAIN}"
    if low.startswith(b"data:image/") or text.startswith(BASE64_IMAGES):
        return "an image as Base64 text; decode it first: base64 -d"
    if low.startswith((b"http://", b"https://")):
        return "text with a URL, not the image itself; download that"
    if low.startswith((b"{", b"[")) and _is_text(start):
        return f"JSON text, such as a server's error message; {AGAIN}"
    return None


def _is_text(start: bytes) -> bool:
    return b"\0" not in start and bool(start.decode("utf-8", "ignore"))


def is_read(name: str) -> bool:
    """Whether a file of this name in a folder is an image that is read, by its suffix."""
    return PurePath(name).suffix.lower() in SUFFIXES


def looks_like_image(name: str) -> bool:
    """Whether a file that is not read looks like an image: its suffix, or one before it.

    Such are `a.psd`, and also `a.jpg.gz`, `a.jpg.1` and `a.jpg~`, but not `a.jpg.json`.
    """
    parts = [f".{part.lower().rstrip('~')}" for part in name.split(".")[1:]]
    if not parts or parts[-1] in SIDECARS:
        return False
    return parts[-1] in LIKE_IMAGES or any(part in SUFFIXES for part in parts)
