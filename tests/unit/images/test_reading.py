"""Image reading: formats, modes, orientation."""

from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageOps

from helpers.image_files import complaint, loaded, noise, photo, png_chunks, png_header, ramp16
from regionqa.images import reading
from regionqa.images.reading import InputImage, as_rgb, open_image

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


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
