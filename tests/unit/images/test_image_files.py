"""Images as they occur: not quite sound, or not images at all."""

import io
import os
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import ExifTags, Image, ImageFile, ImageOps, PngImagePlugin

from helpers.image_files import complaint, loaded, noise, photo
from regionqa.images.reading import open_image


def jpeg(image: Image.Image, **options: bool) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "JPEG", **options)
    return stream.getvalue()


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("missing", [1, 2])
@pytest.mark.parametrize("make", [photo, noise])
def test_a_jpeg_without_its_end_marker_is_read_with_a_warning(
    tmp_path: Path, progressive: bool, missing: int, make: Callable[[], Image.Image]
) -> None:
    whole = jpeg(make(), progressive=progressive)
    (tmp_path / "whole.jpg").write_bytes(whole)
    (tmp_path / "cut.jpg").write_bytes(whole[:-missing])
    image = open_image(tmp_path / "cut.jpg")
    assert np.array_equal(np.asarray(image.load()), loaded(tmp_path / "whole.jpg"))
    [warning] = image.take_warnings()
    assert "cut.jpg: lacks the end marker of a JPEG" in warning
    assert image.take_warnings() == []
    trailing = open_image(tmp_path / "whole.jpg")
    (tmp_path / "whole.jpg").write_bytes(whole + b"\0" * 100)  # as some cameras write
    trailing.load()
    assert trailing.take_warnings() == []


@pytest.mark.parametrize("progressive", [False, True])
@given(data=st.data())
def test_a_jpeg_that_lacks_pixels_is_broken(progressive: bool, data: st.DataObject) -> None:
    whole = jpeg(noise(), progressive=progressive)
    size = data.draw(st.integers(700, len(whole) - 40))
    with TemporaryDirectory() as folder:
        path = Path(folder, "cut.jpg")
        path.write_bytes(whole[:size])
        assert "cannot be decoded" in complaint(lambda: open_image(path).load())


@pytest.mark.parametrize("kind", ["text", "compressed", "profile", "international"])
def test_a_png_with_much_text_is_read(tmp_path: Path, kind: str) -> None:
    info = PngImagePlugin.PngInfo()
    options: dict[str, Any] = {}
    if kind == "profile":
        options["icc_profile"] = b"\0" * 3_000_000
    elif kind == "international":
        for number in range(70):
            info.add_itxt(f"key {number}", "x" * 1_000_000, zip=True)
    else:
        info.add_text("key", "x" * 3_000_000, zip=kind == "compressed")
    path = tmp_path / "text.png"
    photo().save(path, pnginfo=info, **options)
    assert np.array_equal(loaded(path), np.asarray(photo()))


OTHERS = {
    b"version https://git-lfs.github.com/spec/v1\noid sha256:abc\n": "a Git LFS pointer",
    b"/annex/objects/SHA256E-s12--ab.jpg\n": "a git-annex pointer",
    b"<!DOCTYPE html><html><title>403</title>": "a web page (HTML)",
    b"\xef\xbb\xbf\r\n<HTML>": "a web page (HTML)",
    b'<?xml version="1.0"?><Error><Code>AccessDenied</Code>': "an XML document",
    b'<?xml version="1.0"?><svg>': "an SVG drawing",
    b'{"message": "not found"}': "JSON text",
    b"data:image/jpeg;base64,/9j/4AAQ": "an image as Base64 text",
    b"/9j/4AAQSkZJRgABAQ": "an image as Base64 text",
    b"https://example.org/a.jpg\n": "text with a URL",
    b"\0" * 2000: "nothing but zero bytes",
    b"%PDF-1.7\n": "a PDF, which is not read; convert it",
    b"\x1f\x8b\x08\0": "a gzip archive, which is not read; unpack it",
    b"PK\3\4": "a ZIP archive or Office document, which is not read; unpack it",
    b"\0\0\0\x18ftypisom\0\0\0\0isommp42": "a video (MP4 or QuickTime)",
    b"\0\0\0\x14ftypqt  \0\0\0\0qt  ": "a video (MP4 or QuickTime)",
    b"RIFF\0\0\0\0AVI LIST": "a video (AVI), which is not read; extract its frames",
    b"\0\0\0\x0cjP  \r\n": "a JPEG 2000 image",
    b"\0" * 128 + b"DICM": "a DICOM image",
    b"P5\n4 4\n255\n": "a PNM image",
    b"8BPS\0\1": "a Photoshop file",
    b"no image": "not an image",
}


@pytest.mark.parametrize("content", OTHERS)
def test_what_is_no_image_is_called_what_it_is(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(content)
    assert complaint(lambda: open_image(path)).startswith(f"{path}: {OTHERS[content]}")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("https://example.org/a.jpg", "a URL, which is not fetched; download the image"),
        ("https:/example.org/a.jpg", "a URL"),
        ("s3://bucket/a.jpg", "a URL"),
        ("file:///home/a.jpg", "a URL; give the path of the file instead"),
        ("C:/photos/a.jpg", "no such file"),
    ],
)
def test_a_url_is_called_one(name: str, reason: str) -> None:
    assert complaint(lambda: open_image(name)).startswith(f"{name}: {reason}")


def test_a_link_to_nothing_says_where_it_leads(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").symlink_to(".git/annex/objects/ab/a.jpg")
    message = complaint(lambda: open_image(tmp_path / "a.jpg"))
    assert "a link to .git/annex/objects/ab/a.jpg, which is not there" in message
    assert message.endswith("git annex get")


@pytest.mark.parametrize("suffix", ["gif", "png", "webp", "tif", "avif"])
def test_several_pages_or_frames_are_said(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"two.{suffix}"
    photo().save(path, save_all=True, append_images=[noise(40, 24)])
    assert "holds several pages or frames; the first" in "".join(open_image(path).take_warnings())
    photo().save(path)
    assert open_image(path).take_warnings() == []


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_avif_is_read_as_displayed(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    path = tmp_path / "a.avif"
    photo().save(path, exif=exif, quality=90)
    turned = np.asarray(ImageOps.exif_transpose(Image.open(path)).convert("RGB"))
    assert np.array_equal(loaded(path), turned)


HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"


def test_heic_without_the_extra_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.heic").write_bytes(HEIC)
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    message = complaint(lambda: open_image(tmp_path / "a.heic"))
    assert "a HEIC image" in message and "pip install 'regionqa[heif]'" in message


def test_heic_is_read_by_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a stand-in for pillow-heif, which need not be installed."""

    class Heif(ImageFile.ImageFile):
        format = "HEIF"

        def _open(self) -> None:
            self._size, self._mode = (40, 24), "RGB"

        def load(self) -> Any:
            self.im = photo().im
            return super().load()

    def register() -> None:
        Image.register_open("HEIF", Heif, lambda start: start[4:12] == b"ftypheic")

    monkeypatch.setitem(Image.OPEN, "HEIF", None)
    monkeypatch.setitem(
        sys.modules,
        "pillow_heif",
        SimpleNamespace(register_heif_opener=register),
    )
    (tmp_path / "a.jpg").write_bytes(HEIC)
    assert np.array_equal(loaded(tmp_path / "a.jpg"), np.asarray(photo()))


def test_an_image_through_a_pipe_is_read_once() -> None:
    read, write = os.pipe()
    os.write(write, jpeg(photo()))
    os.close(write)
    try:
        for _ in range(2):
            image = open_image(f"/dev/fd/{read}")
            assert image.load().size == (40, 24)
    finally:
        os.close(read)
