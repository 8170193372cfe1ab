"""Image reading and preprocessing: formats, orientation, errors, placement."""

import os
import socket
import struct
import warnings
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import ExifTags, Image, ImageOps

from helpers.image_files import complaint, loaded, noise, photo
from regionqa.errors import BoxError, BundleError, ImageError
from regionqa.images import reading
from regionqa.images.files import MAX_PIXELS
from regionqa.images.preprocessing import EncoderPreprocessing, Fit, Placement, Preprocessing
from regionqa.images.reading import InputImage, as_rgb, image_from_memory, open_image
from regionqa.images.resampling import Resample
from regionqa.regions import Box

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def png_chunks(*chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG with these chunks."""
    body = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + body


def png_header(width: int, height: int, depth: int = 8, colour: int = 2) -> tuple[bytes, bytes]:
    return b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)


# Images that open


@pytest.mark.parametrize(
    ("suffix", "options"),
    [
        ("jpg", {"quality": 95}),
        ("png", {}),
        ("webp", {"lossless": True}),
        ("bmp", {}),
        ("tif", {}),
        ("tif", {"compression": "tiff_lzw"}),
    ],
)
def test_formats_round_trip(tmp_path: Path, suffix: str, options: dict[str, object]) -> None:
    path = tmp_path / f"photo.{suffix}"
    photo().save(path, **options)  # type: ignore[arg-type]
    assert np.abs(loaded(path).astype(int) - np.asarray(photo())).mean() < 3


def test_suffix_is_ignored(tmp_path: Path) -> None:
    path = tmp_path / "photo.jpg"
    photo().save(path, format="PNG")
    assert np.array_equal(loaded(path), np.asarray(photo()))


def test_name_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photo().save(tmp_path / "photo.png")
    monkeypatch.chdir(tmp_path)
    image = open_image("./photo.png")
    assert (image.name, image.width, image.height) == ("./photo.png", 40, 24)


def test_images_are_hashable_by_identity(tmp_path: Path) -> None:
    photo().save(tmp_path / "photo.png")
    first, second = open_image(tmp_path / "photo.png"), open_image(tmp_path / "photo.png")
    assert len({first, second, first}) == 2


def test_open_image_reads_the_header_only(tmp_path: Path) -> None:
    path = tmp_path / "photo.png"
    path.write_bytes(png_chunks(png_header(3000, 2000), (b"IDAT", b"nothing of use")))
    image = open_image(path)
    assert (image.width, image.height) == (3000, 2000)
    assert complaint(image.load).startswith(f"{path}: cannot be decoded")


@pytest.mark.parametrize("suffix", ["jpg", "tif"])
def test_cmyk(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"cmyk.{suffix}"
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(path)  # magenta and yellow ink: red
    red, green, blue = loaded(path)[8, 8]
    assert red > 230 and green < 30 and blue < 30


def test_grey_and_one_bit(tmp_path: Path) -> None:
    Image.new("L", (4, 4), 77).save(tmp_path / "grey.png")
    Image.new("1", (4, 4), 1).save(tmp_path / "bit.png")
    assert np.all(loaded(tmp_path / "grey.png") == 77)
    assert np.all(loaded(tmp_path / "bit.png") == 255)


def test_palette(tmp_path: Path) -> None:
    image = Image.new("P", (4, 4), 1)
    image.putpalette([*GREEN, *RED])
    image.save(tmp_path / "palette.png")
    assert np.all(loaded(tmp_path / "palette.png") == RED)


@pytest.mark.parametrize("transparency", [1, bytes([255, 0])])
def test_transparent_palette_entry_is_white(tmp_path: Path, transparency: int | bytes) -> None:
    image = Image.new("P", (4, 4), 0)
    image.putpalette([*GREEN, *RED])
    image.putpixel((3, 0), 1)
    image.save(tmp_path / "palette.png", transparency=transparency)
    pixels = loaded(tmp_path / "palette.png")
    assert tuple(pixels[0, 0]) == GREEN
    assert tuple(pixels[0, 3]) == WHITE


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
@pytest.mark.parametrize("suffix", ["png", "webp", "tif"])
def test_alpha_is_composited_on_white(tmp_path: Path, mode: str, suffix: str) -> None:
    image = Image.new("RGBA", (8, 8), (0, 0, 0, 0)).convert(mode)
    image.paste(Image.new("RGBA", (4, 8), (0, 0, 0, 128)).convert(mode), (4, 0))
    image.save(tmp_path / f"alpha.{suffix}", lossless=True)  # which only WebP looks at
    pixels = loaded(tmp_path / f"alpha.{suffix}")
    assert tuple(pixels[0, 0]) == WHITE
    assert np.allclose(pixels[0, 6], 127, atol=1)


def test_transparent_colour_is_white(tmp_path: Path) -> None:
    image = Image.new("RGB", (4, 4), RED)
    image.putpixel((1, 1), BLUE)
    image.save(tmp_path / "key.png", transparency=RED)
    pixels = loaded(tmp_path / "key.png")
    assert tuple(pixels[0, 0]) == WHITE
    assert tuple(pixels[1, 1]) == BLUE


def ramp16() -> np.ndarray:
    return np.linspace(0, 65535, 256, dtype=np.uint16).reshape(16, 16)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bit_grey_is_scaled_not_clipped(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"deep.{suffix}"
    Image.fromarray(ramp16()).save(path)
    assert np.array_equal(loaded(path)[..., 0].ravel(), np.arange(256))


def test_big_endian_sixteen_bit_tiff(tmp_path: Path) -> None:
    image = Image.frombytes("I;16B", (16, 16), ramp16().astype(">u2").tobytes())
    image.save(tmp_path / "deep.tif")
    assert np.array_equal(loaded(tmp_path / "deep.tif")[..., 0].ravel(), np.arange(256))


@pytest.mark.parametrize(
    "values",
    [
        ramp16().astype(np.int32),
        ramp16().astype(np.float32) / 65535,
        np.arange(256, dtype=np.int32).reshape(16, 16),
        np.arange(256, dtype=np.float32).reshape(16, 16) * 1e9,  # beyond every usual white
    ],
)
def test_thirty_two_bit_grey_scaling(tmp_path: Path, values: np.ndarray) -> None:
    Image.fromarray(values).save(tmp_path / "deep.tif")
    assert np.abs(loaded(tmp_path / "deep.tif")[..., 0].ravel().astype(int) - range(256)).max() <= 1


def test_not_a_number_and_negative_are_black(tmp_path: Path) -> None:
    values = np.array([[np.nan, -3.0], [0.5, 1.0]], np.float32)
    Image.fromarray(values).save(tmp_path / "float.tif")
    assert loaded(tmp_path / "float.tif")[..., 0].tolist() == [[0, 0], [128, 255]]


@pytest.mark.parametrize("suffix", ["tif", "gif", "webp", "png"])
def test_first_page_or_frame_is_read(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"several.{suffix}"
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, GREEN, BLUE)]
    frames[0].save(path, save_all=True, append_images=frames[1:], lossless=True)
    assert np.all(loaded(path) == RED)


# As displayed


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize(
    ("orientation", "size", "corner"),
    [
        # where the stored image's top left pixel is displayed (EXIF 2.3, orientation)
        (1, (40, 24), (0, 0)),
        (2, (40, 24), (39, 0)),
        (3, (40, 24), (39, 23)),
        (4, (40, 24), (0, 23)),
        (5, (24, 40), (0, 0)),
        (6, (24, 40), (23, 0)),
        (7, (24, 40), (23, 39)),
        (8, (24, 40), (0, 39)),
    ],
)
def test_exif_rotation(
    tmp_path: Path, suffix: str, orientation: int, size: tuple[int, int], corner: tuple[int, int]
) -> None:
    stored = Image.new("RGB", (40, 24), "black")
    stored.paste(WHITE, (0, 0, 8, 8))  # one JPEG block
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    path = tmp_path / f"turned.{suffix}"
    stored.save(path, exif=exif)

    source = open_image(path)
    image = source.load()

    assert (source.width, source.height) == size == image.size
    pixels = np.asarray(image)
    assert pixels[corner[::-1]].min() > 200
    assert pixels[::-1, ::-1][corner[::-1]].max() < 50
    assert ImageOps.exif_transpose(image).size == size  # nothing left that would turn it again


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
@pytest.mark.parametrize("exif", [b"nonsense", b"II*\0\x08\0\0\0\xff\xff", b""])
def test_damaged_exif_is_ignored(tmp_path: Path, exif: bytes, suffix: str) -> None:
    path = tmp_path / f"photo.{suffix}"
    photo().save(path, exif=b"Exif\0\0" + exif)
    assert loaded(path).shape == (24, 40, 3)


def test_invalid_orientation_is_ignored(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 99
    photo().save(tmp_path / "photo.png", exif=exif)
    assert np.array_equal(loaded(tmp_path / "photo.png"), np.asarray(photo()))


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


# Placement

SIDES = st.integers(1, 5000)
UNCUT = [fit for fit in Fit if fit is not Fit.crop]
"""Ways in which the whole image is seen."""


@st.composite
def placements(draw: st.DrawFn, fits: Sequence[Fit] = tuple(Fit)) -> Placement:
    """A placement of any image."""
    size, fit = draw(st.integers(1, 1024)), draw(st.sampled_from(fits))
    longest = size + draw(st.integers(0, 2000)) if fit is Fit.shortest else None
    return Placement(draw(SIDES), draw(SIDES), size, fit, longest)


@st.composite
def placed_boxes(draw: st.DrawFn, fits: Sequence[Fit] = tuple(Fit)) -> tuple[Placement, Box]:
    """A placement and a box inside its image."""
    placement = draw(placements(fits))
    corners: list[tuple[float, float]] = []
    for side in (placement.width, placement.height):
        start = draw(st.floats(0, side - 0.5))
        corners.append((start, draw(st.floats(start + 0.25, side))))
    (x0, x1), (y0, y1) = corners
    return placement, Box(x0, y0, x1, y1)


@given(placed_boxes(UNCUT))
def test_placement_round_trip(case: tuple[Placement, Box]) -> None:
    placement, box = case
    there = placement.to_model(box)
    assert all(0 <= value <= 1 for value in there)
    assert there[0] < there[2] and there[1] < there[3]
    assert placement.to_image(there).xyxy == pytest.approx(box.xyxy, rel=1e-6, abs=1e-6)


@given(placed_boxes([Fit.crop]))
def test_crop_placement_round_trip_of_visible_part(case: tuple[Placement, Box]) -> None:
    placement, box = case
    there = placement.to_model(box)
    assert all(0 <= value <= 1 for value in there)
    window = placement.to_image((0, 0, 1, 1))
    x0, y0 = max(box.x0, window.x0), max(box.y0, window.y0)
    x1, y1 = min(box.x1, window.x1), min(box.y1, window.y1)
    if x1 - x0 > 1e-3 and y1 - y0 > 1e-3:
        back = placement.to_image(there).xyxy
        assert back == pytest.approx((x0, y0, x1, y1), rel=1e-6, abs=1e-6)
    elif x1 < x0 - 1e-3 or y1 < y0 - 1e-3:  # wholly outside
        assert there[0] == there[2] in (0, 1) or there[1] == there[3] in (0, 1)
        with pytest.raises(BoxError, match="has no area"):
            placement.to_image(there)


@given(placed_boxes(), st.floats(0.01, 1))
def test_placement_is_monotonic(case: tuple[Placement, Box], part: float) -> None:
    placement, box = case
    smaller = Box(
        box.x0, box.y0, box.x0 + max(part * box.width, 0.01), box.y0 + max(part * box.height, 0.01)
    )
    outer, inner = placement.to_model(box), placement.to_model(smaller)
    assert inner[:2] == outer[:2]
    assert inner[2] <= outer[2] and inner[3] <= outer[3]


@given(placements())
def test_placement_of_the_whole_image(placement: Placement) -> None:
    across, down = placement.resized
    wide, high = placement.input_size
    whole = placement.to_model(Box(0, 0, placement.width, placement.height))
    if placement.fit is Fit.pad:
        assert whole == (0, 0, across / placement.size, down / placement.size)
        assert max(across, down) == placement.size
    else:
        assert whole == (0, 0, 1, 1)
    if placement.fit is Fit.shortest:
        assert (wide, high) == (across, down)
        assert placement.longest and max(wide, high) <= placement.longest
        assert min(wide, high) <= placement.size
        assert placement.size == min(wide, high) or placement.longest == max(wide, high)
    else:
        assert wide == high == placement.size


def test_padding_is_right_and_below() -> None:
    assert Placement(200, 100, 50, Fit.pad).to_model(Box(100, 50, 200, 100)) == (0.5, 0.25, 1, 0.5)
    assert Placement(100, 200, 50, Fit.pad).to_model(Box(50, 100, 100, 200)) == (0.25, 0.5, 0.5, 1)


def test_crop_is_centred() -> None:
    wide, high = Placement(200, 100, 50, Fit.crop), Placement(100, 200, 50, Fit.crop)
    assert wide.to_model(Box(50, 0, 100, 100)) == (0, 0, 0.5, 1)
    assert high.to_model(Box(0, 100, 50, 200)) == (0, 0.5, 0.5, 1), "cut where the model is blind"
    assert wide.to_model(Box(0, 10, 40, 60)) == (0, 0.1, 0, 0.6), "no width, at the left border"
    assert wide.to_model(Box(160, 10, 190, 60)) == (1, 0.1, 1, 0.6)
    # the other side is rounded down, and so is the crop's corner
    odd = Placement(640, 481, 224, Fit.crop)
    assert (odd.resized, odd.offset) == ((298, 224), (37, 0))
    assert Placement(100, 103, 100, Fit.crop).offset == (0, 1)


@pytest.mark.parametrize(
    ("height", "width", "down", "across"),
    [
        # shorter side 800, longer at most 1333: what PVIT's own resizing gave
        (480, 640, 800, 1067),
        (640, 480, 1067, 800),
        (427, 640, 800, 1199),
        (333, 500, 800, 1201),
        (224, 224, 800, 800),
        (200, 900, 296, 1333),
        (900, 200, 1333, 296),
        (3000, 4000, 800, 1067),
        (800, 1333, 800, 1333),
        (801, 1335, 800, 1333),
        (100, 167, 798, 1333),
        (64, 49, 1045, 800),
        # half a pixel is rounded up, as in detectron2: 832.5
        (320, 333, 800, 833),
    ],
)
def test_shortest_fit_is_limited_by_longest(
    height: int, width: int, down: int, across: int
) -> None:
    placement = Placement(width, height, 800, Fit.shortest, 1333)
    assert placement.resized == placement.input_size == (across, down)


def test_shortest_rounds_half_a_pixel_up() -> None:
    """10 x 40 at most 10 long: 2.5 x 10."""
    assert Placement(16, 4, 10, Fit.shortest, 10).resized == (10, 3)


# Preprocessing

MEAN, STD = (0.5, 0.25, 0.125), (0.5, 0.2, 0.1)


def preprocessing(size: int, fit: Fit, resample: Resample = Resample.bilinear) -> Preprocessing:
    longest = 2 * size if fit is Fit.shortest else None
    return Preprocessing(size, fit, resample, MEAN, STD, longest)


def test_pixel_values_by_hand() -> None:
    image = Image.new("RGB", (2, 2), (255, 0, 51))
    image.putpixel((1, 0), (0, 255, 0))
    values = preprocessing(2, Fit.squash).pixel_values(image)
    assert values.shape == (3, 2, 2)
    assert values.dtype == np.float32
    assert values[:, 0, 0] == pytest.approx([(1 - 0.5) / 0.5, -0.25 / 0.2, (0.2 - 0.125) / 0.1])
    assert values[:, 0, 1] == pytest.approx([-0.5 / 0.5, (1 - 0.25) / 0.2, -0.125 / 0.1])


@pytest.mark.parametrize("resample", [Resample.bicubic, Resample.bilinear])
@pytest.mark.parametrize(
    ("size", "covered"), [((80, 20), (32, 8)), ((20, 80), (8, 32)), ((5000, 1), (32, 1))]
)
def test_pad_pixel_values(
    size: tuple[int, int], covered: tuple[int, int], resample: Resample
) -> None:
    image = photo(*size)
    values = preprocessing(32, Fit.pad, resample).pixel_values(image)
    across, down = covered
    resized = image.resize(covered, Image.Resampling[resample.name.upper()])
    expected = (np.asarray(resized) / 255 - MEAN) / STD
    assert np.allclose(values[:, :down, :across], expected.transpose(2, 0, 1), atol=1e-5)
    assert not values[:, down:].any() and not values[:, :, across:].any()


def test_squash_pixel_values() -> None:
    values = preprocessing(16, Fit.squash).pixel_values(Image.new("RGB", (80, 20), WHITE))
    assert np.allclose(values, np.reshape((1 - np.array(MEAN)) / STD, (3, 1, 1)))


@pytest.mark.parametrize("resample", [Resample.bicubic, Resample.bilinear])
@pytest.mark.parametrize("size", [(40, 24), (24, 40), (30, 30), (5000, 1), (3, 400)])
def test_shortest_pixel_values(size: tuple[int, int], resample: Resample) -> None:
    model = preprocessing(32, Fit.shortest, resample)
    image = photo(*size)
    values = model.pixel_values(image)
    across, down = model.placement(*size).input_size
    assert values.shape == (3, down, across)
    resized = image.resize((across, down), Image.Resampling[resample.name.upper()])
    expected = (np.asarray(resized) / 255 - MEAN) / STD
    assert np.allclose(values, expected.transpose(2, 0, 1), atol=1e-5)


@pytest.mark.parametrize("size", [(97, 61), (61, 97), (40, 40), (200, 13), (20, 31)])
def test_crop_equals_clip_processor(size: tuple[int, int]) -> None:
    from transformers.image_processing_backends import PilBackend

    image = noise(*size)
    values = preprocessing(32, Fit.crop, Resample.bicubic).pixel_values(image)
    expected = PilBackend(
        do_resize=True, size={"shortest_edge": 32}, default_to_square=False,
        resample=Image.Resampling.BICUBIC, do_center_crop=True, crop_size=32,
        do_rescale=True, rescale_factor=1 / 255, do_normalize=True,
        image_mean=MEAN, image_std=STD,
    )(image)["pixel_values"][0]  # fmt: skip
    assert np.allclose(values, expected, atol=1e-4)


def test_long_strip_is_never_resized_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("regionqa.images.preprocessing.resize")
    strip = np.zeros((2, 5000, 3), np.uint8)
    strip[:, 2500:] = 255
    values = preprocessing(32, Fit.crop).pixel_values(Image.fromarray(strip))
    black, white = (np.reshape((level - np.array(MEAN)) / STD, (3, 1)) for level in (0, 1))
    assert np.allclose(values[:, :, 0], black)
    assert np.allclose(values[:, :, -1], white)


def test_placement_maps_boxes_as_pixels() -> None:
    box = Box(40, 20, 80, 60)
    image = Image.new("RGB", (160, 80), "black")
    image.paste(WHITE, (40, 20, 80, 60))
    for fit in Fit:
        model = preprocessing(40, fit)
        placement = model.placement(*image.size)
        across, down = placement.input_size
        sides = (across, down, across, down)
        placed = zip(placement.to_model(box), sides, strict=True)
        x0, y0, x1, y1 = (round(value * side) for value, side in placed)
        values = model.pixel_values(image)[0]
        assert values[y0:y1, x0:x1].mean() > 0.8
        values[max(0, y0 - 1) : y1 + 1, max(0, x0 - 1) : x1 + 1] = -1
        assert values.max() <= 0  # black is -1, and the padding 0


@pytest.mark.parametrize(
    ("size", "mean", "std"),
    [(0, MEAN, STD), (8, (0.5,), STD), (8, MEAN, (0.5, 0.5)), (8, MEAN, (0.5, 0.0, 0.5))],
)
def test_invalid_preprocessing(size: int, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    with pytest.raises(BundleError, match=r"^\[image\] "):
        Preprocessing(size, Fit.pad, Resample.bicubic, mean, std)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fit", "longest", "message"),
    [
        (Fit.shortest, None, "fit is shortest and longest is None"),
        (Fit.pad, 64, "fit is pad and longest is 64; longest is given with fit shortest"),
        (Fit.shortest, 31, "longest is 31, below size, 32"),
    ],
)
def test_longest_requires_shortest(fit: Fit, longest: int | None, message: str) -> None:
    with pytest.raises(BundleError, match=message):
        Preprocessing(32, fit, Resample.bicubic, MEAN, STD, longest)


def test_longest_may_equal_size() -> None:
    model = Preprocessing(32, Fit.shortest, Resample.bicubic, MEAN, STD, 32)
    assert model.pixel_values(photo(64, 32)).shape == (3, 16, 32)
    assert model.placement(64, 32) == Placement(64, 32, 32, Fit.shortest, 32)


def test_region_encoder_preprocessing() -> None:
    """Its own, by its own rule, where it reads pixels; else those of the vision encoder."""
    image, box = photo(80, 40), Box(20, 0, 60, 40)
    vision = preprocessing(16, Fit.crop)
    own = EncoderPreprocessing(vision, preprocessing(8, Fit.shortest))
    shared = EncoderPreprocessing(vision)
    for encoders in (own, shared):
        assert np.array_equal(encoders.pixel_values(image), vision.pixel_values(image)[None])
    pixels = own.region_pixels(image)
    assert pixels is not None and pixels.shape == (1, 3, 8, 16)
    assert shared.region_pixels(image) is None
    assert own.boxes([box, Box(0, 0, 8, 4)], 80, 40) == [(0.25, 0, 0.75, 1), (0, 0, 0.1, 0.1)]
    assert shared.boxes([box], 80, 40) == [(0, 0, 1, 1)]


def test_image_from_pixels() -> None:
    image = photo()
    assert InputImage("photo", *image.size, image).load().size == (40, 24)


@pytest.mark.parametrize("mode", ["LA", "RGBA", "P", "I;16", "I", "F"])
def test_conversion_in_strips_changes_no_pixel(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Large images are converted a strip at a time, which bounds the memory."""
    if mode in ("I;16", "I", "F"):
        image = Image.fromarray(np.arange(35 * 20, dtype=np.int32).reshape(35, 20) * 90)
        image = image.convert(mode)
    else:
        image = noise(20, 35).convert("RGB").convert(mode)
        image.putalpha(Image.linear_gradient("L").resize(image.size))
        image = image.convert(mode)
    whole = as_rgb(image)
    monkeypatch.setattr(reading, "STRIP", 50)
    assert np.array_equal(np.asarray(as_rgb(image)), np.asarray(whole))
