"""The image of an entry, as evaluation and training look it up."""

from pathlib import Path

import pytest

from regionqa.boxes.entries import BoxEntry
from regionqa.boxes.files import BoxFile
from regionqa.boxes.images import ImageFolders
from regionqa.errors import ImageError


def make(top: Path, *names: str) -> None:
    for name in names:
        path = top / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)


@pytest.mark.parametrize(
    ("entry", "images", "expected"),
    [
        (BoxEntry("a.jpg"), ["a.jpg", "x/a.jpg"], "a.jpg"),
        (BoxEntry("a.jpg"), ["x/a.jpg", "b.jpg"], "x/a.jpg"),
        (BoxEntry("x\\a.jpg"), ["x/a.jpg", "y/a.jpg"], "x/a.jpg"),
        (BoxEntry("../x/a.jpg"), ["x/a.jpg", "y/a.jpg"], "x/a.jpg"),
        (BoxEntry("C:\\set\\x\\a.jpg"), ["x/a.jpg", "y/a.jpg"], "x/a.jpg"),
        (BoxEntry("/data/upload/3/0a1b2c3d-a.jpg"), ["a.jpg"], "a.jpg"),
        (BoxEntry("https://host/x/a%20b.jpg?size=9"), ["a b.jpg"], "a b.jpg"),
        (BoxEntry("caf\u00e9.jpg"), ["cafe\u0301.jpg"], "cafe\u0301.jpg"),
        (BoxEntry("A.JPG"), ["a.jpg"], "a.jpg"),
        (BoxEntry("train/a", own_stem="train/a"), ["images/train/a.png"], "images/train/a.png"),
        (BoxEntry("labels/train/a", own_stem="labels/train/a"), ["images/train/a.png"], 0),
        (BoxEntry("IMG_1.jpg", own_stem="a"), ["a.jpg", "b.jpg"], "a.jpg"),
        (BoxEntry("x/a.jpg"), ["y/a.jpg"], None),
        (BoxEntry("a.png"), ["a.jpg"], None),
    ],
)
def test_an_entry_finds_its_image(
    tmp_path: Path, entry: BoxEntry, images: list[str], expected: str | int | None
) -> None:
    make(tmp_path / "set", *images)
    folders = ImageFolders(tmp_path / "set/boxes.json", [tmp_path / "set"], deep=True)
    if expected is None:
        with pytest.raises(ImageError, match=r"no such file; give the folder of the images"):
            folders.find(entry)
        return
    expected = images[expected] if isinstance(expected, int) else expected
    path = folders.find(entry)
    assert path == tmp_path / "set" / expected
    # asking about the image finds the entry
    assert BoxFile(tmp_path / "set/boxes.json", "plain", (entry,)).entry_for(str(path)) is entry


def test_several_images_are_listed(tmp_path: Path) -> None:
    make(tmp_path, "x/a.jpg", "y/a.jpg", ".hidden/a.jpg")
    folders = ImageFolders(tmp_path, [tmp_path], deep=True)
    with pytest.raises(ImageError, match=r"a.jpg: 2 images could be it .*x/a.jpg, .*y/a.jpg\)"):
        folders.find(BoxEntry("a.jpg"))


def test_records_name_the_folders_of_their_images(tmp_path: Path) -> None:
    make(tmp_path, "set/x/a.jpg", "set/B.JPG")
    folders = ImageFolders(tmp_path / "mine.jsonl", [tmp_path / "set"])
    assert folders.find(BoxEntry("set\\x\\a.jpg")) == tmp_path / "set/x/a.jpg"
    assert folders.find(BoxEntry("b.jpg")) == tmp_path / "set/B.JPG"
    with pytest.raises(ImageError, match="no such file"):
        folders.find(BoxEntry("a.jpg"))


def test_a_name_that_is_not_possible_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="no such file"):
        ImageFolders(tmp_path, [tmp_path]).find(BoxEntry("a" * 5000))
