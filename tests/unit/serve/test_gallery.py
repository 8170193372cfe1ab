"""Images that are served: no path outside, no upload beyond a limit."""

import os
import zlib
from io import BytesIO
from pathlib import Path
from urllib.parse import quote

import pytest
from PIL import Image
from starlette.testclient import TestClient

from helpers.serve.apps import image_bytes, served
from regionqa.errors import UsageError
from regionqa.serve.gallery import Gallery, NotServedError, plain_name
from regionqa.serve.options import ServeLimits


def names(client: TestClient) -> list[str]:
    return [each["name"] for each in client.get("/v1/images").json()["images"]]


def upload(client: TestClient, content: bytes, name: str = "new.png") -> tuple[int, dict[str, str]]:
    sent = client.post(
        "/v1/images", params={"name": name}, content=content, headers={"content-type": "image/png"}
    )
    return sent.status_code, sent.json()


# -- names -----------------------------------------------------------------------------------------


def test_names_are_those_within_the_folder(colours: Path) -> None:
    (colours / "more").mkdir()
    Image.new("RGB", (4, 6), "red").save(colours / "more/red.png")
    with served(colours) as app:
        client = app.client()
        assert names(client) == ["blue.png", "lime.png", "red.png", "more/red.png"]
        size = client.get("/v1/images/more/red.png").json()
        assert size == {"name": "more/red.png", "width": 4, "height": 6}
        Image.new("RGB", (4, 6), "red").save(colours / "later.png")
        assert "later.png" in names(client)


def test_names_of_several_folders_and_files(colours: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    Image.new("RGB", (4, 6), "red").save(other / "red.png")
    with served(colours, other / "red.png") as app:
        assert names(app.client())[-2:] == ["colours/red.png", "red.png"]
    with served(colours / "red.png", other / "red.png") as app:
        assert names(app.client()) == [str(colours / "red.png"), str(other / "red.png")]


def test_a_folder_without_images_and_a_missing_file(tmp_path: Path) -> None:
    for argument, message in ((tmp_path, "holds no images"), ("gone.png", "no such file"),
                              ("-", "cannot be read from stdin")):  # fmt: skip
        with pytest.raises(UsageError, match=message):
            Gallery([str(argument)], ServeLimits(), pytest.fail)


def test_without_arguments_there_are_uploads_only() -> None:
    with served() as app:
        client = app.client()
        assert names(client) == []
        assert upload(client, image_bytes())[0] == 201
        assert names(client) == ["new.png"]


SECRET = "secret.png"
OUTSIDE = [
    "../secret.png", "%2e%2e/secret.png", "..%2fsecret.png", "%2e%2e%2fsecret.png",
    "..%5csecret.png", "more/../../secret.png", "red.png/", "//etc/passwd",
    "%252e%252e%252fsecret.png", "red.png%00", "red.png%00.jpg", "~/secret.png", "",
]  # fmt: skip


@pytest.mark.parametrize("name", OUTSIDE)
def test_no_path_leads_out_of_the_folder(colours: Path, name: str) -> None:
    Image.new("RGB", (5, 5)).save(colours.parent / SECRET)
    with served(colours) as app:
        client = app.client()
        for path in ("/v1/pixels", "/v1/images"):
            assert client.get(f"{path}/{name}").status_code in (404, 405)
        for raw in (name, str(colours.parent / SECRET), str(colours / "red.png")):
            asked = client.post("/v1/answers", json={"image": raw, "question": "what?"})
            assert asked.status_code in (404, 422)
        assert client.get(f"/v1/pixels/{quote(str(colours.parent / SECRET))}").status_code == 404
        assert app.backend.encoded == []


def test_links_out_of_the_folder_are_left_out_and_told(colours: Path, tmp_path: Path) -> None:
    Image.new("RGB", (5, 5)).save(tmp_path / SECRET)
    (tmp_path / "elsewhere").mkdir()
    Image.new("RGB", (5, 5)).save(tmp_path / "elsewhere/deep.png")
    (colours / "link.png").symlink_to(tmp_path / SECRET)
    (colours / "folder").symlink_to(tmp_path / "elsewhere")
    (colours / "within.png").symlink_to(colours / "red.png")
    with served(colours) as app:
        client = app.client()
        assert names(client) == ["blue.png", "lime.png", "red.png", "within.png"]
        assert client.get("/v1/images").json()["left_out"] == 1
        assert client.get("/v1/pixels/link.png").status_code == 404
        assert client.get("/v1/pixels/folder/deep.png").status_code == 404
        assert client.get("/v1/pixels/within.png").status_code == 200
        (line,) = app.reported
        assert "1 image left out, which a link leads to outside of the folder" in line


def test_a_file_that_becomes_a_link_is_refused(colours: Path, tmp_path: Path) -> None:
    Image.new("RGB", (5, 5)).save(tmp_path / SECRET)
    gallery = Gallery([str(colours)], ServeLimits(), pytest.fail)
    assert gallery.open("red.png").width == 8
    (colours / "red.png").unlink()
    (colours / "red.png").symlink_to(tmp_path / SECRET)
    with pytest.raises(NotServedError, match="lies outside of the folder"):
        gallery.open("red.png")


def test_pipes_and_other_files_are_not_served(colours: Path) -> None:
    os.mkfifo(colours / "pipe.png")
    (colours / "notes.txt").write_text("secret")
    with served(colours) as app:
        client = app.client()
        assert "notes.txt" not in names(client)
        assert client.get("/v1/pixels/notes.txt").status_code == 404
        assert client.get("/v1/pixels/pipe.png").status_code == 422


def test_the_image_stays_the_same_object_until_its_file_changes(colours: Path) -> None:
    """The engine then encodes it once for several questions."""
    gallery = Gallery([str(colours)], ServeLimits(), pytest.fail)
    first = gallery.open("red.png")
    assert gallery.open("red.png") is first
    Image.new("RGB", (9, 7)).save(colours / "red.png")
    assert (gallery.open("red.png").width, first.width) == (9, 8)


# -- uploads ---------------------------------------------------------------------------------------


def test_uploads_are_asked_about_and_removed(colours: Path) -> None:
    with served(colours) as app:
        client = app.client()
        assert upload(client, image_bytes("blue"), "red.png") == (
            201,
            {"name": "red (2).png", "width": 8, "height": 8},
        )
        asked = client.post("/v1/answers", json={"image": "red (2).png", "question": "?"})
        assert asked.json()["answers"][0]["answer"].startswith("blue")
        assert client.delete("/v1/images/red (2).png").status_code == 200
        assert client.delete("/v1/images/red (2).png").status_code == 404
        kept = client.delete("/v1/images/red.png")
        assert (kept.status_code, (colours / "red.png").exists()) == (404, True)


def test_uploads_are_bounded_in_bytes() -> None:
    with served(limits=ServeLimits(upload=100)) as app:
        status, body = upload(app.client(), b"x" * 101)
        assert (status, body["error"]) == (413, "the body is larger than 100 bytes; send less")
        without_length = app.client(content_type="image/png").post(
            "/v1/images", content=iter([b"x" * 60, b"x" * 60])
        )
        assert without_length.status_code == 413


def test_uploads_are_bounded_in_number() -> None:
    """As ten thousand tiny ones are."""
    with served(limits=ServeLimits(uploads=3)) as app:
        client = app.client()
        statuses = [upload(client, image_bytes())[0] for _ in range(5)]
        assert statuses == [201, 201, 201, 507, 507]
        assert len(names(client)) == 3
        client.delete("/v1/images/new.png")
        assert upload(client, image_bytes())[0] == 201


def test_uploads_are_bounded_in_bytes_together() -> None:
    content = image_bytes()
    with served(limits=ServeLimits(upload_total=2 * len(content))) as app:
        assert [upload(app.client(), content)[0] for _ in range(3)] == [201, 201, 507]


def bomb(side: int) -> bytes:
    """A PNG that states a size, with the compressed pixels of a single row."""
    file = BytesIO()
    Image.new("L", (4, 4)).save(file, "PNG")
    content = bytearray(file.getvalue())
    content[16:24] = side.to_bytes(4) * 2
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4)
    return bytes(content)


@pytest.mark.parametrize("side", [8_000, 20_000, 2**31 - 1])
def test_decompression_bombs_are_refused_by_their_header(side: int) -> None:
    with served() as app:
        status, body = upload(app.client(), bomb(side))
        assert status == 422
        assert "pixels" in body["error"]
        assert names(app.client()) == []


@pytest.mark.parametrize("content", [b"", b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"GIF89a",
                                     b"%PDF-1.4", image_bytes()[:-30]])  # fmt: skip
def test_what_is_no_sound_image_is_refused(content: bytes) -> None:
    with served() as app:
        assert upload(app.client(), content)[0] == 422
        assert names(app.client()) == []


def test_names_of_uploads() -> None:
    assert plain_name("../../etc/cat.png") == "cat.png"
    assert plain_name("C:\\photos\\cat.png") == "cat.png"
    assert plain_name("a\r\nb\0.png") == "a  b .png"
    assert [plain_name(name) for name in ("", "..", "/", " . ")] == ["image"] * 4
    assert plain_name("x" * 500 + ".jpeg") == "x" * 195 + ".jpeg"
    assert plain_name("\udcff.png") == "?.png"


# -- pixels ----------------------------------------------------------------------------------------


def test_pixels_for_a_browser(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    wide = Image.new("RGB", (200, 100), "red")
    wide.save(tmp_path / "a.jpg", exif=exif)
    wide.save(tmp_path / "b.png", exif=exif)
    wide.save(tmp_path / "c.png")
    wide.save(tmp_path / "d.tif")
    with served(tmp_path) as app:
        client = app.client()
        kinds = {}
        for name in names(client):
            sent = client.get(f"/v1/pixels/{name}")
            kinds[name] = sent.headers["content-type"]
            assert (sent.content == (tmp_path / name).read_bytes()) == (name in ("a.jpg", "c.png"))
        assert kinds == {"a.jpg": "image/jpeg", "b.png": "image/jpeg", "c.png": "image/png",
                         "d.tif": "image/jpeg"}  # fmt: skip
        assert client.get("/v1/images/b.png").json()["height"] == 200
        with Image.open(BytesIO(client.get("/v1/pixels/b.png").content)) as turned:
            assert turned.size == (100, 200)
        with Image.open(BytesIO(client.get("/v1/pixels/a.jpg?side=64").content)) as small:
            assert small.size == (32, 64)


def test_pixels_are_not_sent_again() -> None:
    with served() as app:
        client = app.client()
        upload(client, image_bytes())
        tag = client.get("/v1/pixels/new.png").headers["etag"]
        again = client.get("/v1/pixels/new.png", headers={"if-none-match": tag})
        assert (again.status_code, again.content) == (304, b"")
        assert client.get("/v1/pixels/new.png?side=64").headers["etag"] != tag


@pytest.mark.parametrize("side", ["1", "63", "2049", "-1", "x", "1" * 5000, "٣٠٠"])
def test_sides_of_smaller_images(colours: Path, side: str) -> None:
    with served(colours) as app:
        assert app.client().get("/v1/pixels/red.png", params={"side": side}).status_code == 422
