"""Which annotation belongs to which image: by file name, where no folder contradicts."""

import json
import tempfile
import unicodedata
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from regionqa.boxes.files import BoxFile, read_boxes
from regionqa.boxes.lookup import is_file, is_same_file
from regionqa.boxes.matching import IMAGE_FOLDERS, ImageName, Root, places_contradict
from regionqa.errors import BoxError
from regionqa.images.kinds import SUFFIXES

VOC = (
    "<annotation><filename>{}</filename><object><bndbox><xmin>{}</xmin><ymin>1</ymin>"
    "<xmax>99</xmax><ymax>99</ymax></bndbox></object></annotation>"
)


def save(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def file_of(folder: Path, *names: str) -> BoxFile:
    """A file whose n-th entry has a box with left edge n."""
    document = {name: [[n, 0, 9, 9]] for n, name in enumerate(names)}
    return read_boxes(save(folder / "names.json", json.dumps(document)))


def found(file: BoxFile, image: str) -> int | None:
    boxes = file.boxes_for(image)
    return None if boxes is None else int(boxes[0].values[0])


@pytest.mark.parametrize(
    ("names", "image", "expected"),
    [
        (["a.jpg", "x/a.jpg"], "x/a.jpg", 1),  # the same text
        (["x/a.jpg", "a.jpg"], "a.jpg", 1),
        (["x/a.jpg", "y/a.jpg"], "data/y/a.jpg", 1),  # a prefix more
        (["p/x/a.jpg", "y/a.jpg"], "x/a.jpg", 0),  # a prefix less
        (["x/a.jpg", "a.jpg"], "y/a.jpg", 1),  # no folder that contradicts
        (["q/x/a.jpg", "x/a.jpg"], "p/x/a.jpg", 1),
        (["train2017/a.jpg"], "a.jpg", 0),
        (["train/a.jpg"], "ds/images/train/a.jpg", 0),
        (["ds/train/a.jpg"], "ds/images/train/a.jpg", 0),  # `images` is passed over
        (["train/a.jpg"], "ds/train/images/a.jpg", 0),
        (["x/a.jpg", "y/a.jpg"], "./x/../y/a.jpg", 1),
        (["..\\photos\\a.jpg"], "photos/a.jpg", 0),  # Windows
        (["C:/x/a.jpg", "C:/y/a.jpg"], "y\\a.jpg", 1),
        (["C:\\imgs\\a.jpg"], "photos/a.jpg", 0),
        (
            ["C:\\set\\train\\a.jpg", "C:\\set\\val\\b.jpg"],
            "q/train/a.jpg",
            0,
        ),
        (["/data/upload/3/0a1b2c3d-a.jpg"], "photos/a.jpg", 0),  # Label Studio
        (["/data/upload/3/0a1b2c3d-a.jpg", "/data/upload/3/9a1b2c3d-a.jpg"], "9a1b2c3d-a.jpg", 1),
        (["/data/local-files/?d=set/train/a.jpg"], "train/a.jpg", 0),
        (["http://host:80/data/local-files/?x=1&d=set%5Ctrain%5Ca.jpg"], "train/a.jpg", 0),
        (["http://host/data/upload/3/0a1b2c3d-a.jpg"], "photos/a.jpg", 0),
        (["images/0a1b2c3d-a.jpg"], "a.jpg", 0),
        (["0a1b2c3d-a.jpg", "a.jpg"], "a.jpg", 1),
        (["file:///C:/imgs/a.jpg"], "photos/a.jpg", 0),
        (["https://host/photos/a%20b.jpg?size=9#x"], "mine/a b.jpg", 0),  # URLs
        (["s3://bucket/x/a.jpg", "s3://bucket/y/a.jpg"], "y/a.jpg", 1),
        (["/photos/a.jpg?size=9"], "photos/a.jpg", 0),
        (["my%20cat.jpg"], "my cat.jpg", 0),
        (["my%20cat.jpg", "my cat.jpg"], "my%20cat.jpg", 0),
        (["caf\u00e9/\u00e9.jpg"], "cafe\u0301/e\u0301.jpg", 0),  # composed letters
        (["A.JPG"], "a.jpg", 0),  # case, where nothing is equal
        (["A.JPG", "a.jpg"], "a.jpg", 1),
        (["Train/a.jpg"], "train/a.jpg", 0),
        (["cam.0001"], "cam.0001.jpg", 0),  # a name without suffix
        (["a.png"], "a.jpg", None),
        (["dogs/1.jpg"], "not_dogs/1.jpg", None),
        (["dogs/1.jpg"], "root/not_dogs/1.jpg", None),
        (["images/train/1.jpg"], "images/val/1.jpg", None),
        (["images/1.jpg"], "photos/1.jpg", None),
        (["dogs/1.jpg"], "images/1.jpg", None),
        (["/home/ann/dogs/1.jpg"], "cats/1.jpg", None),
    ],
)
def test_an_image_finds_its_entry(
    tmp_path: Path, names: list[str], image: str, expected: int | None
) -> None:
    assert found(file_of(tmp_path, *names), image) == expected


@pytest.mark.parametrize(
    ("names", "image", "message"),
    [
        (["x/a.jpg", "y/a.jpg"], "a.jpg", r"2 entries .*\(x/a.jpg, y/a.jpg\); name .* its folder"),
        (["A.JPG", "a.JPG"], "a.jpg", r"\(A.JPG, a.JPG\); keep one of them"),
        (
            ["/data/upload/3/0a1b2c3d-a.jpg", "/data/upload/3/9a1b2c3d-a.jpg"],
            "a.jpg",
            "0a1b2c3d-a.jpg, .*9a1b2c3d-a.jpg.; keep one of them",
        ),
        (["w/a.jpg", "x/a.jpg", "y/a.jpg", "z/a.jpg"], "a.jpg", r"4 entries .*y/a.jpg and 1 more"),
    ],
)
def test_several_candidates_are_listed(
    tmp_path: Path, names: list[str], image: str, message: str
) -> None:
    with pytest.raises(BoxError, match=message):
        file_of(tmp_path, *names).boxes_for(image)


def test_the_same_text_is_preferred_to_the_same_name(tmp_path: Path) -> None:
    file = file_of(tmp_path, "a.jpg", "./a.jpg")
    assert [found(file, name) for name in ("a.jpg", "./a.jpg")] == [0, 1]
    with pytest.raises(BoxError, match="2 entries"):
        file.boxes_for("x/../a.jpg")


def test_the_image_at_the_very_place_that_an_entry_names(tmp_path: Path) -> None:
    image = save(tmp_path / "x" / "a.jpg", "")
    file = file_of(tmp_path, "x/a.jpg", "x\\a.jpg", "a.jpg", "a" * 5000)
    assert [file.own_image(entry) for entry in file.entries] == [image, image, None, None]
    save(tmp_path / "labels" / "b.txt", "0 0.5 0.5 0.5 0.5\n")
    (tmp_path / "labels" / "b").touch()
    (nameless,) = read_boxes(tmp_path / "labels").entries
    assert file.own_image(nameless) is None, "it names no image, but a file without a suffix"


def test_what_is_not_found_is_explained(tmp_path: Path) -> None:
    reason = file_of(tmp_path, "dogs/1.jpg").why_not("cats/1.jpg")
    assert "has no boxes for this image, but for dogs/1.jpg in another folder" in reason
    assert "run the command in the image's folder" in reason
    reason = file_of(tmp_path, *(f"{number}.jpg" for number in range(5))).why_not("a.jpg")
    assert reason.endswith("has no boxes for this image; it has 0.jpg, 1.jpg, 2.jpg and 2 more")
    assert file_of(tmp_path, "0.jpg", "1.jpg", "2.jpg").why_not("a.jpg").endswith("1.jpg, 2.jpg")
    for stem, name in (("sub/b", "b.png"), ("c", "photos/c.png"), ("d", "e.png")):
        save(tmp_path / f"xml/{stem}.xml", VOC.format(name, 1))
    reason = read_boxes(tmp_path / "xml").why_not("a.jpg")
    assert set(reason.partition("it has ")[2].split(", ")) == {"sub/b.png", "photos/c.png", "e.png"}
    for name in ("sub/b.png", "photos/c.png", "e.png"):
        told = read_boxes(tmp_path / "xml").why_not(f"elsewhere/{name.rpartition('/')[2]}")
        assert f"but for {'d: ' if name == 'e.png' else ''}{name} in another folder" in told


def test_where_the_command_runs_tells_entries_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = file_of(tmp_path, "dogs/1.jpg", "cats/1.jpg")
    for number, name in enumerate(("dogs", "cats")):
        save(tmp_path / name / "1.jpg", name)
        monkeypatch.chdir(tmp_path / name)
        assert found(file, "1.jpg") == number


def test_an_entry_whose_own_image_is_there_is_not_for_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = file_of(tmp_path, "dogs/1.jpg")
    save(tmp_path / "dogs/1.jpg", "a dog")
    image = save(tmp_path / "cats/1.jpg", "a cat")
    monkeypatch.chdir(image.parent)
    assert found(file, "1.jpg") is None
    save(image, "a dog")  # a copy of the dog
    assert found(file, "1.jpg") == 0
    served = file_of(tmp_path, "https://host/set/dogs/1.jpg")
    assert found(served, str(save(image, "a cat"))) is None


def test_a_prefix_that_belongs_to_the_name_stays(tmp_path: Path) -> None:
    file = file_of(tmp_path, "deadbeef-a.jpg")
    image = str(save(tmp_path / "a.jpg", "a"))
    assert found(file, image) == 0
    save(tmp_path / "deadbeef-a.jpg", "another")
    assert found(file, image) is None


# ---- a file per image ----


@pytest.mark.parametrize(
    ("labels", "image", "expected"),
    [
        ("ds/labels/train/1.txt", "ds/images/train/1.jpg", True),
        ("ds/labels/train/1.txt", "ds/images/val/1.jpg", False),
        ("ds/train/labels/1.txt", "ds/train/images/1.jpg", True),
        ("ds/train/labels/1.txt", "ds/valid/images/1.jpg", False),
        ("ds/labels/dogs/1.txt", "ds/images/cats/1.jpg", False),
        ("mine/1.txt", "photos/1.jpg", True),
        ("export/labels/1.txt", "coco/images/1.jpg", True),
        ("export/labels/train/1.txt", "coco/images/train/1.jpg", True),
    ],
)
def test_labels_are_for_the_images_beside_them(
    tmp_path: Path, labels: str, image: str, expected: bool
) -> None:
    path = save(tmp_path / labels, "0 .5 .5 .1 .1")
    assert places_contradict(path, tmp_path / image) is not expected
    for source in (path, path.parent):
        boxes = read_boxes(source).boxes_for(str(tmp_path / image))
        assert bool(boxes) is expected


def test_an_image_without_a_yolo_file_has_no_boxes(tmp_path: Path) -> None:
    path = save(tmp_path / "labels/a.txt", "0 .5 .5 .1 .1")
    assert read_boxes(tmp_path).boxes_for("images/b.jpg") == ()
    assert read_boxes(path).boxes_for("images/b.jpg") is None


def test_the_files_own_stem_helps_where_the_name_in_it_is_stale(tmp_path: Path) -> None:
    names = {"a": "IMG_1.jpg", "b": "b.png", "cam.0001": "cam.0001", "c": "b.jpg"}
    for number, (stem, name) in enumerate(names.items()):
        save(tmp_path / f"xml/{stem}.xml", VOC.format(name, number))
    file = read_boxes(tmp_path / "xml")
    assert found(file, "photos/a.jpg") == found(file, "photos/IMG_1.jpg") == 0
    assert found(file, "cam.0001.jpg") == 2
    with pytest.raises(BoxError, match=r"2 entries of .*xml could mean it \(c: b.jpg, b.png\)"):
        file.boxes_for("b.jpg")  # c.xml names it, and b.xml is called so
    assert "; it has IMG_1.jpg, b.png, b.jpg and 1 more" in file.why_not("z.jpg")


# ---- entries of one image ----


def coco(folder: Path, *boxes: list[list[int]], sizes: tuple[int, ...] = ()) -> BoxFile:
    """A COCO file that lists a.jpg once for each list of boxes."""
    images = [{"id": n, "file_name": "a.jpg"} for n, _ in enumerate(boxes)]
    for image, size in zip(images, sizes, strict=False):
        image |= {"width": size, "height": size}
    annotations = [
        {"image_id": number, "bbox": box} for number, own in enumerate(boxes) for box in own
    ]
    document = {"images": images, "annotations": annotations}
    return read_boxes(save(folder / "coco.json", json.dumps(document)))


def test_an_image_listed_twice_has_the_boxes_of_both(tmp_path: Path) -> None:
    first, second = [1, 2, 3, 4], [5, 6, 7, 8]
    for lists, expected, merged in (
        (([first], [first]), [first], ()),
        (([first], []), [first], ()),
        (([], []), [], ()),
        (([first], [first, second]), [first, second], ("a.jpg",)),
    ):
        file = coco(tmp_path, *lists)
        assert [list(box.values) for box in file.boxes_for("a.jpg") or ()] == expected
        assert file.images == ("a.jpg",)
        assert tuple(each.where for each in file.adjusted) == merged


def test_an_image_listed_with_two_sizes_is_refused(tmp_path: Path) -> None:
    file = coco(tmp_path, [[1, 2, 3, 4]], [], sizes=(10, 20))
    with pytest.raises(BoxError, match="listed with two sizes, 10 x 10 and 20 x 20"):
        file.boxes_for("a.jpg")


def test_a_size_that_is_listed_once_is_kept(tmp_path: Path) -> None:
    for sizes in ((10, 0), (0, 10), (10, 10)):
        (entry,) = coco(tmp_path, [[1, 2, 3, 4]], [[5, 6, 2, 1]], sizes=sizes).entries
        assert entry.size == (10, 10)
        assert len(entry.checked_boxes()) == 2


def test_same_file(tmp_path: Path) -> None:
    one, same, other = (save(tmp_path / name, name[0]) for name in ("a1", "a2", "b"))
    assert is_same_file(one, one) and is_same_file(one, same)
    impossible = Path("a" * 5000)
    for unlike in (other, tmp_path / "c", impossible, object()):
        assert not is_same_file(one, unlike)
    assert is_same_file(impossible, impossible) is is_file(impossible) is False
    thing = object()
    assert is_same_file(thing, thing) and not is_same_file(thing, object())


# ---- properties ----

FOLDER = st.sampled_from(["a", "b", "c", "A", "train", "val", "images", "\u00e9", "e\u0301"])
PATHS = st.lists(FOLDER, max_size=3).map(lambda parts: "/".join([*parts, "1.jpg"]))


def composed(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def plain(text: str) -> list[str]:
    """The folders of a name, innermost first, without those that only hold images."""
    name = composed(text).casefold()
    return [each for each in PurePosixPath(name).parts[-2::-1] if each not in IMAGE_FOLDERS]


@settings(max_examples=300, deadline=None)
@given(names=st.lists(PATHS, min_size=1, max_size=5, unique=True), image=PATHS)
def test_no_entry_is_used_for_an_image_whose_folders_contradict(
    names: list[str], image: str
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = file_of(Path(folder), *names)
    try:
        number = found(file, image)
    except BoxError:
        return
    if number is None:
        assert image not in names
    else:
        pairs = zip(plain(names[number]), plain(image), strict=False)
        assert all(one == other for one, other in pairs)
    if image in names:
        assert number == names.index(image)


@settings(max_examples=100, deadline=None)
@given(names=st.lists(PATHS, min_size=1, max_size=4, unique_by=composed))
def test_every_entry_is_found_by_its_own_name(names: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = file_of(Path(folder), *names)
    for number, name in enumerate(names):
        for spelling in (name, name.replace("/", "\\"), f"./{name}"):
            assert found(file, spelling) == number


@pytest.mark.parametrize(
    ("text", "folders", "file", "root"),
    [
        ("a b.jpg", "", "a b.jpg", Root.none),
        ("one/two/a.jpg", "one/two", "a.jpg", Root.none),
        ("../../one/a.jpg", "one", "a.jpg", Root.none),
        ("/a.jpg", "", "a.jpg", Root.machine),
        ("/", "", "/", Root.machine),
        ("C:\\one\\a.jpg", "one", "a.jpg", Root.machine),
        ("C:/x:/a.jpg", "x:", "a.jpg", Root.machine),
        ("file:///one/a%20b.jpg", "one", "a b.jpg", Root.machine),
        ("FILE:///C:/one/a.jpg", "one", "a.jpg", Root.machine),
        ("https://host/one/a.jpg?x=1#2?3", "one", "a.jpg", Root.server),
        ("s3://bucket/one/a.jpg", "one", "a.jpg", Root.server),
        ("/data/upload/12/0a1b2c3d-a.jpg", "", "0a1b2c3d-a.jpg", Root.upload),
        ("/data/local-files/?x=1&d=one/a%20b.jpg&y=2", "one", "a b.jpg", Root.none),
    ],
)
def test_parts_of_a_name(text: str, folders: str, file: str, root: Root) -> None:
    parts = tuple(folders.split("/")) if folders else ()
    assert ImageName.parse(text) == ImageName(parts, file, root)


@given(st.text(max_size=30))
def test_any_text_is_a_name(text: str) -> None:
    name = ImageName.parse(text)
    assert name.loosened().folded().root in Root
    assert name.text or not text


@pytest.mark.parametrize("suffix", sorted(SUFFIXES))
def test_every_image_that_is_read_has_a_suffix(suffix: str) -> None:
    assert ImageName.parse(f"photos/cat{suffix}").stem == "cat"
