"""Drawings replace neither inputs nor earlier drawings, and are those of a run never stopped."""

import json
from itertools import product
from pathlib import Path
from shutil import copyfile, rmtree
from typing import TYPE_CHECKING

import pytest
from PIL import Image

from regionqa.pipeline.draw_files import DrawingNames

if TYPE_CHECKING:
    from conftest import Command


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()} if folder.exists() else {}


# -- names -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("images", "drawings"),
    [
        (["a/x.jpg", "b/x.jpg", "b/x.png"], ["x.png", "x-2.png", "x-3.png"]),
        (["a/x.jpg", "x-2.jpg", "b/x.jpg"], ["x.png", "x-2.png", "x-3.png"]),
        (["x.jpg", "x.jpg", "y.jpg", "x.jpg"], ["x.png", "x.png", "y.png", "x-2.png"]),
        (["x.jpg", "X.jpg"], ["x.png", "X-2.png"]),
        (["e\N{COMBINING ACUTE ACCENT}.jpg", "\N{LATIN SMALL LETTER E WITH ACUTE}.jpg"],
         ["e\N{COMBINING ACUTE ACCENT}.png", "\N{LATIN SMALL LETTER E WITH ACUTE}-2.png"]),
    ],
)  # fmt: skip
def test_images_of_one_name_have_drawings_of_their_own(
    images: list[str], drawings: list[str]
) -> None:
    names = DrawingNames(Path("drawn"), one=False)
    assert [names.place(image).name for image in images] == drawings


def test_each_image_of_one_name_is_drawn(regionqa: "Command", toy: Path, tmp_path: Path) -> None:
    for folder, colour in (("a", "red"), ("b", "blue")):
        (tmp_path / folder).mkdir()
        Image.new("RGB", (8, 8), colour).save(tmp_path / folder / "x.png")
    drawn = tmp_path / "drawn"
    ran = regionqa("caption", tmp_path / "a", tmp_path / "b", "--model", toy, "--draw", drawn)
    assert ran.status == 0
    for name, drawn_in in (("x.png", (255, 0, 0)), ("x-2.png", (0, 0, 255))):
        with Image.open(drawn / name) as image:
            assert image.getpixel((0, 0)) == drawn_in


# -- what exists -----------------------------------------------------------------------------------


def test_a_drawing_that_exists_needs_leave_to_be_replaced(
    regionqa: "Command", toy: Path, colours: Path, tmp_path: Path
) -> None:
    drawn = tmp_path / "drawn"
    drawn.mkdir()
    (drawn / "lime.png").write_text("precious")
    words = ("caption", colours, "--model", toy, "--draw", drawn)
    refused = regionqa(*words)
    assert (refused.status, refused.out) == (2, "")
    assert f"{drawn / 'lime.png'} already exists; replace with --overwrite" in refused.err
    assert files(drawn) == {"lime.png": b"precious"}
    assert regionqa(*words, "--overwrite").status == 0
    assert files(drawn).keys() == {"blue.png", "lime.png", "red.png"}
    assert files(drawn)["lime.png"] != b"precious"


def test_one_drawing_that_exists(
    regionqa: "Command", toy: Path, colours: Path, tmp_path: Path
) -> None:
    drawing = tmp_path / "drawing.png"
    drawing.write_text("precious")
    words = ("ask", colours / "red.png", "what?", "--model", toy, "--draw", drawing)
    refused = regionqa(*words)
    assert (refused.status, refused.out) == (2, "")
    assert "already exists; replace it with --overwrite" in refused.err
    assert drawing.read_text() == "precious"
    assert regionqa(*words, "--overwrite").status == 0
    assert drawing.read_bytes().startswith(b"\x89PNG")


def test_a_drawing_never_replaces_an_image(
    regionqa: "Command", toy: Path, colours: Path, tmp_path: Path
) -> None:
    """`red.jpg` would be drawn over `red.png`, which is an image of the same run."""
    Image.new("RGB", (8, 8), "red").save(colours / "red.jpg")
    before = files(colours)
    images = (colours / "red.jpg", colours / "red.png")
    ran = regionqa("caption", *images, "--model", toy, "--draw", colours, "--overwrite")
    assert (ran.status, ran.out) == (2, "")
    assert "is also read" in ran.err
    assert files(colours) == before


def test_images_named_by_stdin_are_not_replaced_either(
    regionqa: "Command", toy: Path, colours: Path
) -> None:
    """A line that names an image may come after the drawing that would replace it."""
    copyfile(colours / "red.png", colours / "a.jpg")
    copyfile(colours / "lime.png", colours / "a.png")
    copyfile(colours / "lime.png", colours / "lime.jpg")
    lines = f"{colours / 'a.jpg'}\n{colours / 'lime.jpg'}\n{colours / 'a.png'}\n"
    before = files(colours)
    words = ("caption", "-", "--model", toy, "--draw", colours)

    refused = regionqa(*words, stdin=lines)
    assert (refused.status, len(refused.lines)) == (3, 3), "the answers are written"
    assert refused.err.count("already exists; replace it with --overwrite") == 2
    assert files(colours) == {**before, "a-2.png": files(colours)["a-2.png"]}

    (colours / "a-2.png").unlink()
    replaced = regionqa(*words, "--overwrite", stdin=lines)
    assert (replaced.status, len(replaced.lines)) == (3, 3)
    assert f"{colours / 'a.png'}: is also read, so no drawing replaces it" in replaced.err
    after = files(colours)
    assert {name for name in after if after[name] != before.get(name)} == {"a-2.png", "lime.png"}


# -- killed and resumed ----------------------------------------------------------------------------


def test_a_run_that_was_stopped_draws_what_is_missing(
    regionqa: "Command", toy: Path, colours: Path, tmp_path: Path
) -> None:
    """However many answers were written, and drawings, and whether the last image failed."""
    (colours / "broken.png").write_bytes((colours / "red.png").read_bytes()[:40])
    out, drawn = tmp_path / "out.jsonl", tmp_path / "drawn"
    words = (
        "caption", colours, "-b", "1,1,5,5", "-b", "0,0,8,8", "--model", toy,
        "--format", "jsonl", "--out", out, "--draw", drawn, "--resume",
    )  # fmt: skip
    assert regionqa(*words).status == 3
    lines, drawings = out.read_bytes().splitlines(keepends=True), files(drawn)
    images = [Path(json.loads(line)["image"]).name for line in lines]
    assert len(lines) == 7 and drawings.keys() == {"blue.png", "lime.png", "red.png"}
    for cut, last_is_drawn in product(range(len(lines) + 1), (False, True)):
        whole = [name for name in drawings if name not in images[cut:] and name in images]
        out.write_bytes(b"".join(lines[:cut]) + b'{"image": "unfin')
        rmtree(drawn)
        drawn.mkdir()
        for name in whole if last_is_drawn else whole[:-1]:
            (drawn / name).write_bytes(drawings[name])
        assert regionqa(*words).status == 3
        assert out.read_bytes() == b"".join(lines)
        assert files(drawn) == drawings, (cut, last_is_drawn)
