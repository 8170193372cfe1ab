"""Training data in JSON lines: complete records, and problems by line."""

import hashlib
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image

from helpers.documents.training_data import coco, good, problems, save, turns
from regionqa.data.files import read_training_data
from regionqa.data.records import DataFormat, Record, TrainingData, Turn
from regionqa.errors import DataError
from regionqa.regions import Box, Region

if TYPE_CHECKING:
    from conftest import Command
SHARED_FOLDER = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


# -- our JSON lines --------------------------------------------------------------------------------


def test_complete_record(photos: Path) -> None:
    document = {
        "id": 5, "_note": ["mine"], "image": "cat.jpg",
        "regions": [[10, 20, 90.5, 80], {"box": [-5, 100, 300, 400], "label": " tail "}],
        "conversations": turns(
            "<image>\nwhat is <region1>? <image> now", " a cat, with <region2>. ", "sure?", "yes."
        ),
    }  # fmt: skip
    file = save(photos / "mine.jsonl", "", document)
    data = read_training_data(file)
    assert data == TrainingData(
        source=file,
        format=DataFormat.lines,
        records=(
            Record(
                photos / "cat.jpg",
                (Region(Box(10, 20, 90.5, 80)), Region(Box(0, 100, 226, 150), "tail")),
                (Turn("what is <region1>? now", "a cat, with <region2>."), Turn("sure?", "yes.")),
                "mine.jsonl:2",
            ),
        ),
        problems=(),
        sha256=hashlib.sha256(file.read_bytes()).hexdigest(),
    )
    assert data.records[0].clipped == 1
    assert data.or_stop(skip_bad=False) is data


BAD = [
    ('{"image": "cat.jpg",', "is not JSON: Expecting property name enclosed in double quotes"),
    ('{"id": 1, "image": "a", "image": "b"}', "is not JSON: the key 'image' appears twice"),
    ("[" * 100_000, "is not JSON: "),
    ([1, 2], "is [1, 2]; write an object with image and conversations"),
    (good(region=[]), "unknown key 'region'; did you mean 'regions'?"),
    (good(colour=1), "unknown key 'colour'; known are image, regions, conversations, id, meta"),
    (good(regions={"a": 1}), "'regions' is {'a': 1}; write a list, like [[10, 20, 90, 80]]"),
    (good(regions=[[1, 2, 3]]), "region 1: box [1, 2, 3]: four numbers are expected, 3 values"),
    (good(regions=[{"label": "a"}]), "region 1: has no box; write four numbers, like [10, 20"),
    (good(regions=[{"box": [1, 2, 9, 9], "lable": "a"}]), "region 1: unknown key 'lable'; did you"),
    (good(regions=[{"box": [1, 2, 9, 9], "label": []}]), "region 1: 'label' is []; write text"),
    (good(regions=[[1, 2, float("nan"), 4]]), "every coordinate must be a finite number"),
    (good(regions=[[1, 2, 10**400, 4]]), "a coordinate is too large"),
    (good(regions=[[90, 2, 9, 9]]), "bottom exceed top; write left, top, right"),
    (good(regions=[[9, 2, 9, 9]]), "region 1: box 9,2,9,9: has no area"),
    (good(regions=[[300, 2, 400, 9]]), "outside the image, which is 226 x 150 pixels; write"),
    (good(regions=[[0.1, 0.1, 0.5, 0.5]]), "is smaller than one pixel; write left, top, right"),
    (good(regions=[]), "the question of turn 1 names <region1>, but 0 regions were given"),
    (good(image=None), 'has no image; write a name, like "a.jpg"'),
    (good(image=["cat.jpg"]), "'image' is ['cat.jpg']; write a name, like"),
    (good(image="gone.jpg"), "gone.jpg: no such file; give the folder of the images with --images"),
    (good(image="notes.txt"), "notes.txt: not an image"),
    (good(image="."), "a directory, not an image"),
    (good(image="x" * 300), "no such file"),
    (good(image="a\0b"), "no such file"),
    (good(image="\ud800"), "the name of the image is not valid text at character 1"),
    (good(conversations=[]), "'conversations' is []; write [{"),
    (good(conversations=None), 'has no conversations; write [{"from": "human"'),
    (good(conversations="hi"), "'conversations' is 'hi'; write [{"),
    (good(conversations=["hi", "ho"]), "conversations[0]: is 'hi'; write {\"from\""),
    (good(conversations=turns("a", "b")[::-1]), "is from 'gpt'; write human"),
    (good(conversations=[{"from": "user", "value": "a"}]), "is from 'user'; write human"),
    (good(conversations=turns("what?")), "the last question has no answer"),
    (good(conversations=turns("<image>\n", "b")), "the question of turn 1 is empty"),
    (good(conversations=turns("a", "b", "c", " ")), "the answer of turn 2 is empty"),
    (good(conversations=turns("a", "<image>")), "the answer of turn 1 holds <image>"),
    (good(conversations=turns("a", "\udcff")), "the answer of turn 1 is not valid text at"),
    (good(conversations=turns("a", "<region2>")), "names <region2>, but 1 region was given"),
    (good(conversations=turns("a", "<region0>")), "names <region0>, but 1 region was given"),
    (good(conversations=turns("a", f"<region{'9' * 5000}>")), "names <region999999999>, but"),
    (good(conversations=turns("a <Region 1>", "b")), "holds '<Region 1>', which names no region"),
    (good(conversations=turns("<region>?", "b")), "holds '<region>', which names no region"),
    (good(conversations=turns("<Region><L1><L2></Region>", "b")), "holds '<Region>', which names"),
]  # fmt: skip


def test_bad_lines_are_named_and_skipped(photos: Path) -> None:
    (photos / "notes.txt").write_text("no image")
    lines = [line for bad, _ in BAD for line in (bad, good())]
    data = read_training_data(save(photos / "mine.jsonl", *lines))
    assert len(data.records) == data.bad == len(BAD)
    assert [record.where for record in data.records] == [
        f"mine.jsonl:{2 * number}" for number in range(1, len(BAD) + 1)
    ]
    for number, (_, reason) in enumerate(BAD):
        own = [text for text in problems(data) if text.startswith(f"mine.jsonl:{2 * number + 1}: ")]
        assert any(reason in text for text in own), (reason, own)
        assert not any("--box" in text or "\n" in text for text in own)


def test_all_problems_of_a_record_are_listed(photos: Path) -> None:
    texts = turns("<region3>?", "")
    bad = good(image="gone.jpg", regions=[[1, 2]], conversations=texts, boxes=1)
    data = read_training_data(save(photos / "mine.jsonl", bad, good()))
    assert len(data.problems) == 5
    assert data.bad == 1
    with pytest.raises(
        DataError, match=r"1 of 2 records .*mine.jsonl:1: .* \(and 4 more problems\)"
    ):
        data.or_stop(skip_bad=False)
    assert data.or_stop(skip_bad=True) is data


def test_no_valid_record(photos: Path) -> None:
    with pytest.raises(DataError, match="1 of 1 records cannot be used"):
        read_training_data(save(photos / "a.jsonl", "{}")).or_stop(skip_bad=True)
    with pytest.raises(DataError, match="holds no records"):
        read_training_data(save(photos / "a.json", [])).or_stop(skip_bad=False)


def test_undecodable_bytes_affect_their_line_only(photos: Path) -> None:
    file = photos / "mine.jsonl"
    lines = [json.dumps(good()).encode(), json.dumps(good()).encode().replace(b"a cat", b"\xffcat")]
    file.write_bytes(b"\xef\xbb\xbf" + b"\r\n".join([*lines, lines[0]]))
    data = read_training_data(file)
    assert [record.where for record in data.records] == ["mine.jsonl:1", "mine.jsonl:3"]
    assert problems(data) == [
        "mine.jsonl:2: the answer of turn 1 is not valid text at character 1; "
        "save the file as UTF-8"
    ]


def test_image_size_is_as_displayed(photos: Path) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    with Image.open(photos / "cat.jpg") as image:
        image.save(photos / "turned.jpg", exif=exif)
    low = good(image="turned.jpg", regions=[[10, 160, 140, 220]])
    (record,) = read_training_data(save(photos / "mine.jsonl", low)).records
    assert record.clipped == 0


def test_images_option(photos: Path) -> None:
    elsewhere = photos.parent / "data"
    elsewhere.mkdir()
    file = save(elsewhere / "mine.jsonl", good())
    assert read_training_data(file).bad == 1
    assert read_training_data(file, photos).records[0].image == photos / "cat.jpg"
    boxes = save(elsewhere / "coco.json", coco({"bbox": [1, 2, 30, 40]}))
    assert read_training_data(boxes).bad == 1
    (elsewhere / "images").symlink_to(photos)
    assert read_training_data(boxes).records[0].image == elsewhere / "images" / "cat.jpg"


UNREADABLE = [
    ("a.json", "", "is empty"),
    ("a.json", '[{"image": 1},', "is not valid JSON"),
    ("a.json", '{"images": [\n], "annotations"', "is not valid JSON"),
    ("a.json", '{"version": [1, 2]}', "is not training data of a known format"),
    ("a.json", '{"images": [{}], "annotations": []}', "images[0] of * has no 'id'"),
    ("a.json", '{"images": [], "annotations": 5}', "'annotations' is 5; write a list"),
]


@pytest.mark.parametrize(("name", "content", "reason"), UNREADABLE)
def test_other_files_are_refused(
    regionqa: "Command", tmp_path: Path, name: str, content: str, reason: str
) -> None:
    file = save(tmp_path / name, content)
    ran = regionqa("data", "check", file)
    assert (ran.status, ran.out, len(ran.err.splitlines())) == (1, "", 1)
    assert re.search(".*".join(map(re.escape, reason.split("*"))), ran.err)


def test_unreadable_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no such file"):
        read_training_data(tmp_path / "gone")
    with pytest.raises(DataError, match="holds no box files"):
        read_training_data(tmp_path)
    (tmp_path / "wide.json").write_text("[]", encoding="utf-16")
    with pytest.raises(DataError, match="UTF-16"):
        read_training_data(tmp_path / "wide.json")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)
TEXT = st.lists(
    st.sampled_from(
        ["<region1>", "<region2>", "<Region>", "</Region>", "<L10>", "<L99>", "<image>", " ", "a"]
    )
    | st.text(max_size=3),
    max_size=8,
).map("".join)
TURN = st.fixed_dictionaries(
    {"from": st.sampled_from(["human", "gpt"]) | JSON, "value": TEXT | JSON}
)
JUNK = st.fixed_dictionaries(
    {},
    optional={
        "image": st.sampled_from(["cat.jpg", "gone.jpg"]) | JSON,
        "regions": st.lists(st.lists(st.integers(-9, 300) | st.floats(), max_size=5) | JSON) | JSON,
        "conversations": st.lists(TURN, max_size=3) | JSON,
        "other": JSON,
    },
)


@SHARED_FOLDER
@given(junk=st.lists(JUNK | JSON | st.text(), max_size=4))
def test_any_content_reads_without_error(photos: Path, junk: list[object]) -> None:
    lines = [each.replace("\n", " ") if isinstance(each, str) else each for each in junk]
    texts = [each if isinstance(each, str) else json.dumps(each) for each in lines]
    (photos / "junk.jsonl").write_bytes(
        "\n".join([json.dumps(good()), *texts]).encode("utf-8", "surrogatepass")
    )
    data = read_training_data(photos / "junk.jsonl")
    blank = sum(not text.strip() for text in texts)
    assert len(data.records) + data.bad == 1 + len(texts) - blank
    assert data.records[0].where == "junk.jsonl:1"
    assert all(len(str(problem).splitlines()) == 1 for problem in data.problems)
