"""What arguments and stdin hold: names of images, and what is no name."""

import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from regionqa.errors import UsageError
from regionqa.pipeline.items import InputItem, find_images


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def touch(name: str) -> str:
    """Make an empty file, and the folders above it."""
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).touch()
    return name


def as_bytes(format: str) -> bytes:
    """An image file of this format."""
    stream = io.BytesIO()
    Image.effect_noise((64, 48), 50).convert("RGB").save(stream, format)
    return stream.getvalue()


# -- what stdin holds ------------------------------------------------------------------------------


def piped(content: bytes, *, null: bool = False) -> list[InputItem]:
    stdin = io.TextIOWrapper(io.BufferedReader(io.BytesIO(content)), "utf-8")
    return list(find_images(["-"], stdin, pytest.fail, null=null))


def test_names_of_find_print0() -> None:
    names = [touch("a b.png"), touch("new\nline.png"), touch("\u00e9.png")]
    content = "".join(f"{name}\0" for name in names).encode()
    assert [item.image for item in piped(content, null=True)] == names
    assert [item.image for item in piped(content[:-1], null=True)] == names
    with pytest.raises(UsageError, match=r"stdin: names that end in NUL, .*add --null"):
        piped(content)
    with pytest.raises(UsageError, match="--null: says how names on stdin end"):
        find_images(["a b.png"], io.StringIO(), pytest.fail, null=True)


IMAGE_BYTES = {"JPEG": "a JPEG image", "PNG": "a PNG image", "GIF": "a GIF image",
               "WEBP": "a WebP image", "BMP": "a BMP image", "TIFF": "a TIFF image",
               "AVIF": "an AVIF image"}  # fmt: skip


@pytest.mark.parametrize("format", IMAGE_BYTES)
@pytest.mark.parametrize("null", [False, True])
def test_an_image_through_a_pipe_is_one_message(format: str, null: bool) -> None:
    with pytest.raises(UsageError) as caught:
        piped(as_bytes(format), null=null)
    assert str(caught.value).startswith(f"stdin: {IMAGE_BYTES[format]}, where names of images")
    assert "/dev/stdin" in str(caught.value) and str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b'[{"image": "a.png"}]', "a JSON array; write each request in a line of its own"),
        (b'[\n  {"image": "a.png"}\n]', "a JSON array"),
        (b'{\n  "image": "a.png"\n}', "JSON over several lines"),
        ("a.png\nb.png\n".encode("utf-16"), "UTF-16 text"),
        ("a.png\nb.png\n".encode("utf-16-le"), "UTF-16 text"),
        (b"<!DOCTYPE html>\n<html>", "HTML or XML"),
        (b"%PDF-1.7\n%\xe2\xe3\n", "a PDF"),
        (b"\x01\x02\0\x03\n", "binary data"),
    ],
)
def test_what_is_no_list_of_names_is_one_message(content: bytes, reason: str) -> None:
    with pytest.raises(UsageError) as caught:
        piped(content)
    assert str(caught.value).startswith(f"stdin: {reason}")


def test_binary_data_after_names_is_one_error() -> None:
    content = as_bytes("PNG")
    first, second = piped(b"a.png\n" + content)
    assert (first.image, first.error) == ("a.png", None)
    assert "line 2 of stdin: a PNG image" in str(second.error)
    assert "nothing after it is read" in str(second.error)


@given(st.binary(max_size=300), st.booleans())
def test_any_bytes_are_items_or_one_message(content: bytes, null: bool) -> None:
    try:
        items = piped(content, null=null)
    except UsageError as error:
        assert str(error).isprintable()
    else:
        assert all("\0" not in item.image for item in items)


# -- files of folders and globs --------------------------------------------------------------------


def test_images_are_found_by_every_suffix_that_is_read() -> None:
    names = [touch(f"photos/{name}") for name in ("a.jpg", "b.jfif", "c.JPE", "d.avif", "e.heic")]
    assert [item.image for item in find_images(["photos"], io.StringIO(), pytest.fail)] == names


def test_what_is_left_out_of_a_folder_or_glob_is_said() -> None:
    touch("photos/a.jpg")
    Path(touch("photos/no_suffix")).write_bytes(as_bytes("JPEG"))
    for name in ("f.psd", "g.jpg.gz", "h.jpg~", "i.mp4", "a.jpg.json", "labels.txt", ".j.psd"):
        Path("photos", name).write_text("")
    warned: list[str] = []
    images = list(find_images(["photos", "photos/[af]*"], io.StringIO(), warned.append))
    assert [item.image for item in images] == ["photos/a.jpg", "photos/a.jpg"]
    kind = "of a kind that is not read, and left out"
    assert warned == [
        f"photos: 5 files look like images but are {kind}: f.psd, g.jpg.gz, h.jpg~ and 2 more",
        f"photos/[af]*: 1 file looks like an image but is {kind}: photos/f.psd",
    ]
    with pytest.raises(UsageError, match=r"matches no images .*; 1 file looks like .*: photos/f"):
        find_images(["photos/*.psd"], io.StringIO(), pytest.fail)


def test_a_url_is_no_pattern() -> None:
    url = "https://example.org/a.jpg?size=*"
    assert list(find_images([url], io.StringIO(), pytest.fail)) == [InputItem(url)]
