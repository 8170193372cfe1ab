"""Images that cannot be read, and images in memory: limits and errors."""

import os
import socket
import struct
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image

from helpers.image_files import complaint, loaded, noise, photo, png_chunks, png_header, ramp16
from regionqa.errors import ImageError
from regionqa.images.files import MAX_PIXELS
from regionqa.images.reading import image_from_memory, open_image

WHITE = (255, 255, 255)


# Files that do not open


def test_missing_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert complaint(lambda: open_image("cat.jpg")) == "cat.jpg: no such file"


def test_directory(tmp_path: Path) -> None:
    assert ": a directory, not an image;" in complaint(lambda: open_image(tmp_path))


def test_empty_file(tmp_path: Path) -> None:
    (tmp_path / "cat.jpg").touch()
    assert ": empty file;" in complaint(lambda: open_image(tmp_path / "cat.jpg"))


def test_impossible_file_name() -> None:
    assert ": cannot be read: " in complaint(lambda: open_image("x" * 5000))
    assert ": cannot be read: " in complaint(lambda: open_image("a\0b"))


def test_pipes_and_sockets_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    assert ": a pipe or device" in complaint(lambda: open_image(tmp_path / "pipe.png"))
    assert ": a pipe or device" in complaint(lambda: open_image("/dev/null"))
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.path.relpath(tmp_path / "socket.png"))
        assert ": a pipe or device" in complaint(lambda: open_image(tmp_path / "socket.png"))


def test_unreadable_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photo().save(tmp_path / "secret.png")

    def denied(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Image, "open", denied)  # root may read everything, so chmod shows nothing
    assert ": permission denied;" in complaint(lambda: open_image(tmp_path / "secret.png"))


@pytest.mark.parametrize(
    ("start", "kind"),
    [
        (
            b"shopping list: milk",
            "not an image (JPEG, PNG, WebP, BMP, TIFF, GIF, AVIF and HEIF are read)",
        ),
        (b"%PDF-1.7\n", "a PDF, which is not read; convert it (JPEG, "),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "a PostScript file, which is not read"),
        (b"<svg width='8'>", "an SVG drawing, which is not read"),
        (b"\x89PNG\r\n\x1a\n", "broken from the start"),
    ],
)
def test_files_other_than_images(tmp_path: Path, start: bytes, kind: str) -> None:
    path = tmp_path / "notes.jpg"
    path.write_bytes(start)
    assert complaint(lambda: open_image(path)).startswith(f"{path}: {kind}")


@pytest.mark.parametrize("format", ["ppm", "ico", "tga", "eps", "pdf"])
def test_unsupported_pillow_formats(tmp_path: Path, format: str) -> None:
    path = tmp_path / "photo.png"
    photo().save(path, format=format)
    assert "are read)" in complaint(lambda: open_image(path))


@pytest.mark.parametrize(
    ("suffix", "options"),
    [
        ("jpg", {}),
        ("jpg", {"progressive": True}),
        ("png", {}),
        ("webp", {}),
        ("bmp", {}),
        ("tif", {}),
        ("tif", {"compression": "tiff_lzw"}),
        ("gif", {}),
    ],
)
@pytest.mark.parametrize("kept", [0.3, 0.5, 0.95])
def test_truncated_file_is_an_error(
    tmp_path: Path, suffix: str, options: dict[str, object], kept: float
) -> None:
    path = tmp_path / f"photo.{suffix}"
    noise().save(path, **options)  # type: ignore[arg-type]
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    assert complaint(lambda: open_image(path).load()).startswith(f"{path}: ")


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "bmp", "tif", "gif"])
def test_damaged_bytes_give_an_image_or_an_image_error(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"photo.{suffix}"
    photo().save(path)
    content = np.frombuffer(path.read_bytes(), np.uint8)
    random = np.random.default_rng(1)
    refused = 0
    for _ in range(60):
        damaged = content.copy()
        places = random.integers(0, min(len(content), 200), 4)
        damaged[places] = random.integers(0, 256, 4)
        path.write_bytes(damaged.tobytes())
        try:
            image = open_image(path)
            assert image.load().size == (image.width, image.height)
        except ImageError as error:
            refused += 1
            assert str(error).startswith(f"{path}: ") and "\n" not in str(error)
    assert refused


def test_too_many_pixels(tmp_path: Path) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(png_chunks(png_header(100_000, 100_000), (b"IDAT", b"")))
    message = complaint(lambda: open_image(path))
    assert "10000000000 pixels" in message and message.endswith("; make it smaller first")


def test_pillow_warning_limit_is_readable(tmp_path: Path) -> None:
    path = tmp_path / "large.png"
    path.write_bytes(png_chunks(png_header(10_000, 10_000), (b"IDAT", b"")))
    with warnings.catch_warnings(record=True) as warned:
        assert open_image(path).width == 10_000
    assert not warned


def test_own_limit_without_pillow_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    path = tmp_path / "bomb.png"
    path.write_bytes(png_chunks(png_header(20_000, 10_000), (b"IDAT", b"")))
    message = complaint(lambda: open_image(path))
    assert "200,000,000 pixels" in message and f"{MAX_PIXELS:,}" in message


def test_pixel_limit_is_inclusive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "photo.png"
    photo(40, 24).save(path)
    monkeypatch.setattr("regionqa.images.files.MAX_PIXELS", 40 * 24)
    assert open_image(path).width == 40
    monkeypatch.setattr("regionqa.images.files.MAX_PIXELS", 40 * 24 - 1)
    assert "more than the 959 that are read" in complaint(lambda: open_image(path))


def test_image_without_pixels(tmp_path: Path) -> None:
    path = tmp_path / "nothing.gif"
    path.write_bytes(b"GIF89a" + struct.pack("<HH", 0, 0) + b"\0\0\0;")
    assert complaint(lambda: open_image(path)).startswith(f"{path}: ")


def test_file_changed_between_open_and_load(tmp_path: Path) -> None:
    path = tmp_path / "photo.png"
    photo(40, 24).save(path)
    image = open_image(path)
    photo(30, 20).save(path)
    assert "changed while in use, from 40 x 24 to 30 x 20" in complaint(image.load)
    path.unlink()
    assert complaint(image.load) == f"{path}: no such file"


# Images in memory


def test_numpy_arrays() -> None:
    colour = np.asarray(photo())
    assert np.array_equal(np.asarray(image_from_memory(colour).load()), colour)
    grey = image_from_memory(colour[..., 0], name="grey")
    assert (grey.name, grey.width, grey.height) == ("grey", 40, 24)
    assert np.array_equal(np.asarray(grey.load())[..., 2], colour[..., 0])


def test_pillow_modes() -> None:
    assert (
        image_from_memory(Image.new("RGBA", (3, 3), (0, 0, 0, 0))).load().getpixel((0, 0)) == WHITE
    )
    assert image_from_memory(Image.fromarray(ramp16())).load().getpixel((15, 15)) == WHITE


def test_pillow_image_is_rotated_by_exif(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    for suffix in ("jpg", "tif"):
        path = tmp_path / f"photo.{suffix}"
        photo().save(path, exif=exif)
        with Image.open(path) as image:
            source = image_from_memory(image)
        assert (source.width, source.height) == (24, 40)
        assert np.array_equal(np.asarray(source.load()), loaded(path))


def test_pixels_are_copied() -> None:
    array = np.zeros((4, 4, 3), np.uint8)
    image = image_from_memory(array)
    array[:] = 255
    image.load().paste(WHITE, (0, 0, 4, 4))
    assert not np.asarray(image.load()).any()


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 4), np.float32),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((3, 4, 4, 3), np.uint8),
        np.zeros(4, np.uint8),
    ],
)
def test_invalid_arrays(array: np.ndarray) -> None:
    message = complaint(lambda: image_from_memory(array, name="frame"))
    assert message.startswith("frame: ")
    assert str(array.shape) in message and str(array.dtype) in message


def test_in_memory_image_size_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "nothing to see" in complaint(lambda: image_from_memory(np.zeros((0, 4), np.uint8)))
    assert "nothing to see" in complaint(lambda: image_from_memory(Image.new("RGB", (4, 0))))
    monkeypatch.setattr("regionqa.images.files.MAX_PIXELS", 15)
    assert "16 pixels, more than the 15" in complaint(
        lambda: image_from_memory(Image.new("L", (4, 4)))
    )
