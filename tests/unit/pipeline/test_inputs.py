"""Command-line arguments to requests: images, boxes, questions."""

import io
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from regionqa.boxes.files import BoxFile, read_boxes
from regionqa.errors import BoxError, ImageError, ItemError, UsageError
from regionqa.images.reading import InputImage, open_image
from regionqa.options import OutputFormat
from regionqa.pipeline.inputs import AskSettings, make_requests
from regionqa.pipeline.items import InputItem, find_images, is_one_image
from regionqa.pipeline.outputs import OutputSettings, as_json
from regionqa.regions import BoxFormat, BoxUnits, Region, WrittenBox
from regionqa.requests import Answer, Request

MakeImage = Callable[[str], str]
WHAT = AskSettings("what is this?")
CAPTION = AskSettings("describe the image", "describe <region1>", each=True)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def image() -> MakeImage:
    """Makes an image of 64 x 48 pixels, and the folders above it."""

    def make(name: str) -> str:
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (64, 48)).save(path, format="PNG")
        return name

    return make


def found(*arguments: str, stdin: str = "") -> list[str]:
    return [item.image for item in find_images(arguments, io.StringIO(stdin), pytest.fail)]


def asked(
    asking: AskSettings, *arguments: str, stdin: str = "", warn: Callable[[str], None] = pytest.fail
) -> list[Request]:
    return list(
        make_requests(find_images(arguments, io.StringIO(stdin), pytest.fail), asking, warn)
    )


def line(**fields: object) -> str:
    return json.dumps(fields) + "\n"


def corners(request: Request) -> list[tuple[float, ...]]:
    return [region.box.xyxy for region in request.regions]


def box(*values: float, label: str | None = None) -> WrittenBox:
    x, y, third, fourth = values
    return WrittenBox((x, y, third, fourth), label=label)


def boxfile(**boxes: list[list[float]]) -> BoxFile:
    """A file with the boxes of `name.png` for each `name`."""
    path = Path("boxes.json")
    path.write_text(json.dumps({f"{name}.png": value for name, value in boxes.items()}))
    return read_boxes(path)


# -- what a user names -----------------------------------------------------------------------------


def test_ask_one_image(image: MakeImage) -> None:
    [request] = asked(WHAT, image("a.png"))
    assert request.source is not None
    assert (request.source.width, request.source.height) == (64, 48)
    assert request == Request("a.png", "what is this?", (), request.source)


def test_ask_with_two_boxes_is_one_question_about_both(image: MakeImage) -> None:
    asking = AskSettings("what are they?", boxes=(box(1, 2, 3, 4), box(5, 6, 7, 8)))
    [request] = asked(asking, image("a.png"))
    assert corners(request) == [(1, 2, 3, 4), (5, 6, 7, 8)]


def test_ask_each_makes_a_request_per_box(image: MakeImage) -> None:
    asking = AskSettings("what is it?", boxes=(box(1, 2, 3, 4), box(5, 6, 7, 8)), each=True)
    requests = asked(asking, image("a.png"))
    assert [corners(request) for request in requests] == [[(1, 2, 3, 4)], [(5, 6, 7, 8)]]
    assert {request.question for request in requests} == {"what is it?"}
    assert requests[0].source is requests[1].source, "encoded once"


def test_caption_questions_for_regions_and_images(image: MakeImage) -> None:
    boxes = boxfile(a=[[1, 2, 3, 4]])
    regions = AskSettings("describe the image", "describe <region1>", boxfile=boxes, each=True)
    assert [r.question for r in asked(regions, image("a.png"))] == ["describe <region1>"]
    assert [r.question for r in asked(CAPTION, "a.png")] == ["describe the image"]


def test_paths_piped_into_caption(image: MakeImage) -> None:
    names = [image("b.png"), image("with space .png"), image("{odd}/[1].png")]
    stdin = "b.png\r\n\n  \nwith space .png\n./{odd}/[1].png"
    requests = asked(CAPTION, "-", stdin=stdin)
    assert [request.image for request in requests] == [*names[:2], "./{odd}/[1].png"]
    assert not any(request.error for request in requests)


def test_folder_is_walked_in_order(image: MakeImage) -> None:
    for name in ("b.PNG", "a.jpeg", "sub/c.tiff", "early/d.webp", ".hidden/e.png", ".f.png"):
        image(f"photos/{name}")
    Path("photos/notes.txt").write_text("not an image")
    names = ["a.jpeg", "b.PNG", "early/d.webp", "sub/c.tiff"]
    assert found("photos") == [str(Path("photos", name)) for name in names]
    assert found("photos/") == found("photos")
    assert [Path(name).name for name in found(".")] == [Path(name).name for name in names]


def test_glob_is_expanded(image: MakeImage) -> None:
    for name in ("p/b.png", "p/a.png", "p/sub/c.png", "p/d.PNG", "p/.h.png", "p/x.png/y.jpg"):
        image(name)
    Path("p/e.txt").write_text("")
    assert found("p/*.png") == ["p/a.png", "p/b.png"]
    assert found("p/[ab].*") == ["p/a.png", "p/b.png"]
    assert found("p/?.PNG") == ["p/d.PNG"]
    everything = ["p/a.png", "p/b.png", "p/d.PNG", "p/sub/c.png", "p/x.png/y.jpg"]
    assert found("p/**") == everything
    assert found(str(Path("p/**").absolute())) == [str(Path(n).absolute()) for n in everything]


def test_existing_name_is_not_a_glob(image: MakeImage) -> None:
    image("a1.png")
    assert found(image("a[1].png")) == ["a[1].png"]
    image("set*/b.png")
    assert found("set*") == ["set*/b.png"]


def test_arguments_keep_their_order_and_repeats(image: MakeImage) -> None:
    image("p/c.png")
    assert found("b.png", "p", "-", "*/c.png", "b.png", stdin="x.png\n") == [
        *("b.png", "p/c.png", "x.png", "p/c.png", "b.png")
    ]


def test_named_file_needs_no_image_suffix(image: MakeImage) -> None:
    [request] = asked(WHAT, image("download"))
    assert request.error is None


@pytest.mark.parametrize(
    ("arguments", "one"),
    [
        (["a.png"], True),
        (["missing.png"], True),
        (["x" * 5000], True),
        (["*" * 5000], False),
        (["[a].png"], False),
        (["a.png", "a.png"], False),
        (["p"], False),
        (["-"], False),
        ([], False),
    ],
)
def test_is_one_image(image: MakeImage, arguments: list[str], one: bool) -> None:
    image("a.png")
    image("p/a.png")
    assert is_one_image(arguments) is one


# -- lines of requests -----------------------------------------------------------------------------


def test_json_request_has_its_own_boxes_and_question(image: MakeImage) -> None:
    image("a.png")
    asking = AskSettings("what?", boxes=(box(0, 0, 9, 9),))
    stdin = (
        line(image="a.png", regions=[[1, 2, 3, 4]], question="who?", id=7)
        + line(image="a.png", regions=[{"box": [5, 6, 7, 8], "label": "tom"}])
        + line(image="a.png", regions=[])
        + line(image="a.png", regions=None, question=None)
    )
    requests = asked(asking, "-", stdin=stdin)
    assert [(r.question, corners(r)) for r in requests] == [
        ("who?", [(1, 2, 3, 4)]),
        ("what?", [(5, 6, 7, 8)]),
        ("what?", []),
        ("what?", [(0, 0, 9, 9)]),
    ]
    assert requests[1].regions[0].label == "tom"
    assert len({id(request.source) for request in requests}) == 1, "encoded once"


def test_json_request_precedes_the_box_file(image: MakeImage) -> None:
    stdin = line(image=image("a.png"), regions=[[1, 2, 3, 4]]) + line(image="a.png", regions=[])
    asking = AskSettings("what?", boxfile=boxfile(other=[]), each=True)
    assert [corners(r) for r in asked(asking, "-", stdin=stdin)] == [[(1, 2, 3, 4)], []]


@pytest.mark.parametrize("asking", [WHAT, CAPTION])
def test_output_records_are_valid_requests(image: MakeImage, asking: AskSettings) -> None:
    settings = OutputSettings(OutputFormat.jsonl, "starter", "r1", "cpu", "float32")
    boxes = (box(1, 2, 3.25, 4, label="tom"), box(5, 6, 7, 8))
    first = AskSettings(asking.question, asking.region_question, boxes, each=asking.each)
    before = asked(first, image("a.png"))
    written = "".join(as_json(Answer(request, "x"), settings) + "\n" for request in before)
    after = asked(AskSettings(each=asking.each), "-", stdin=written)
    assert [(r.image, r.question, r.regions) for r in after] == [
        (r.image, r.question, r.regions) for r in before
    ]


@pytest.mark.parametrize(
    ("text", "name", "reason"),
    [
        ('{"image": "a.png"', "-", "not a JSON request"),
        ("{'image': 'a.png'}", "-", "not a JSON request"),
        ('{"file": "a.png"}', "-", "unknown key 'file'; did you mean 'image'?"),
        ('{"question": "what?"}', "-", "has no image; write a name"),
        ('{"image": 3}', "-", "'image' is 3; write a name"),
        ('{"image": "a.png", "question": 3}', "a.png", "'question' is 3; write text"),
        ('{"image": "a.png", "regions": 3}', "a.png", "'regions' is 3; write a list"),
        ('{"image": "a.png", "regions": [1, 2, 3, 4]}', "a.png", "four numbers"),
        ('{"image": "a.png", "regions": [[1, 2, 3]]}', "a.png", "3 values found"),
        ('{"image": "a.png", "regions": [[1, 2, 3, NaN]]}', "a.png", "finite"),
        ('{"image": "a.png", "regions": [{"box": null}]}', "a.png", "four numbers"),
        (
            '{"image": "a.png", "regions": [{"box": [1,2,3,4], "label": 5}]}',
            "a.png",
            "'label' is 5",
        ),
        ('{"image": "a.png", "regions": [[1, 2, 3, 1' + "0" * 400 + "]]}", "a.png", "too large"),
        ('{"image": "a.png", "regions": [{"bbox": [1, 2, 3, 4]}]}', "a.png", "did you mean 'box'?"),
        ('{"image": "a.png", "id": [1]}', "a.png", "'id' is [1]; write text or a number"),
        ('{"image": "a.png", "meta": [NaN]}', "a.png", "'meta' holds NaN"),
        ('{"image": ' + "[" * 100_000, "-", "recursion"),
    ],
)
def test_malformed_line_fails_alone(image: MakeImage, text: str, name: str, reason: str) -> None:
    image("a.png")
    requests = asked(WHAT, "-", stdin=f"a.png\n{text}\na.png\n")
    assert [request.image for request in requests] == ["a.png", name, "a.png"]
    error = requests[1].error
    assert isinstance(error, ItemError)
    assert str(error).startswith("line 2 of stdin: ")
    assert reason in str(error)
    assert requests[0].error is requests[2].error is None
    assert requests[0].source is requests[2].source


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("boxes", "regions"),
        ("bbox", "regions"),
        ("bbox_2d", "regions"),
        ("region", "regions"),
        ("regoins", "regions"),
        ("Regions", "regions"),
        ("file_name", "image"),
        ("prompt", "question"),
        ("metadata", "meta"),
    ],
)
def test_unknown_key_suggests_a_known_one(image: MakeImage, key: str, meant: str) -> None:
    own = {"image": image("a.png"), "question": "what?"}
    whole = line(**(own | {key: [[1, 2, 3, 4]]}))
    beside = line(**(own | {"regions": [], "meta": 1, key: [[1, 2, 3, 4]]}))
    for text in (whole, beside):
        [request] = asked(WHAT, "-", stdin=text)
        assert f"unknown key {key!r}" in str(request.error)
        assert repr(meant) in str(request.error)


def test_id_and_meta_stay_with_a_request_even_if_it_fails(image: MakeImage) -> None:
    own = {"id": "a-1", "meta": {"page": 3}}
    stdin = line(image=image("a.png"), **own) + line(image="gone.png", **own)
    stdin += line(image="a.png", regions=[[0]], **own) + line(image="a.png", box=[1], **own)
    requests = asked(WHAT, "-", stdin=stdin)
    assert [request.carried for request in requests] == [own] * 4
    assert [request.error is None for request in requests] == [True, False, False, False]


@given(
    st.text()
    | st.recursive(
        st.none() | st.integers() | st.floats() | st.text(),
        lambda inner: (
            st.lists(inner)
            | st.dictionaries(
                st.sampled_from(["image", "regions", "question", "box", "label", "id", "meta"]),
                inner,
            )
        ),
    ).map(json.dumps)
)
def test_any_line_gives_at_most_one_item(text: str) -> None:
    text = text.replace("\n", " ").replace("\r", " ")
    stdin = io.StringIO("first.png\n{" + text + "\nlast.png\n")
    items = list(find_images(["-"], stdin, pytest.fail))
    assert [item.image for item in items[::2]] == ["first.png", "last.png"]


def test_boxes_for_an_image_of_another_size_are_refused(image: MakeImage) -> None:
    name, boxes = image("a.png"), [[1, 2, 3, 4]]
    stated = [
        (64, 48, boxes),
        (None, None, boxes),
        (128, 96, []),
        (48, 64, boxes),
        (128, 96, boxes),
    ]
    lines = [line(image=name, width=w, height=h, regions=regions) for w, h, regions in stated]
    errors = [request.error for request in asked(WHAT, "-", stdin="".join(lines))]
    assert [error is None for error in errors] == [True, True, True, False, False]
    assert "is 64 x 48 pixels, but its line gives boxes for 128 x 96" in str(errors[-1])


INLINE = "what is <Region><L100><L250><L500><L1000></Region>?"


def test_a_question_may_hold_its_regions(image: MakeImage) -> None:
    name = image("a.png")
    stdin = line(image=name, question=INLINE) + line(image=name, question=f"<image>\n{INLINE}")
    for request in (*asked(AskSettings(INLINE), name), *asked(WHAT, "-", stdin=stdin)):
        assert (request.question, request.error) == ("what is <region1>?", None)
        assert corners(request) == [(6.4, 12, 32, 48)]


@pytest.mark.parametrize(
    ("asking", "reason"),
    [
        (AskSettings(INLINE, boxes=(box(1, 2, 3, 4),)), "both inline and by number or box"),
        (AskSettings(f"{INLINE} <region1>"), "both inline and by number or box"),
        (AskSettings(INLINE, each=True), "leave out --each"),
        (AskSettings(INLINE.replace("L500", "L100")), "has no area"),
    ],
)
def test_regions_are_given_in_one_way(image: MakeImage, asking: AskSettings, reason: str) -> None:
    [request] = asked(asking, image("a.png"))
    assert reason in str(request.error)


def test_names_of_undecodable_bytes(image: MakeImage) -> None:
    name = os.fsdecode(b"caf\xe9.png")
    try:
        image(name)
    except OSError:
        pytest.skip("this file system has no such names")
    stdin = io.TextIOWrapper(io.BytesIO(b"caf\xe9.png\n"), "utf-8")
    [request] = make_requests(find_images(["-"], stdin, pytest.fail), WHAT, pytest.fail)
    assert request.error is None


def test_windows_line_ends(image: MakeImage) -> None:
    [request] = asked(WHAT, "-", stdin=f"\ufeff{image('a.png')}\r\n")
    assert request.error is None


# -- one request at a time -------------------------------------------------------------------------


class Typist(io.StringIO):
    """A stream that notes how many of its lines have been read."""

    lines_read = 0

    def readline(self, size: int = -1, /) -> str:  # type: ignore[override]
        self.lines_read += 1
        return super().readline(size)


def test_lines_are_read_lazily(image: MakeImage) -> None:
    image("a.png")
    stdin = Typist("a.png\n{broken\n" + line(image="a.png") + "missing.png\na.png\n")
    requests = make_requests(find_images(["-"], stdin, pytest.fail), WHAT, pytest.fail)
    assert stdin.lines_read == 0
    for count, _ in enumerate(requests, start=1):
        assert stdin.lines_read == count


def test_pipe_is_read_while_it_is_written(image: MakeImage) -> None:
    reading, writing = os.pipe()
    with os.fdopen(reading) as stdin, os.fdopen(writing, "w") as sender:
        requests = make_requests(find_images(["-"], stdin, pytest.fail), WHAT, pytest.fail)
        for name in (image("a.png"), image("b.png")):
            print(name, file=sender, flush=True)
            assert next(requests).image == name


def test_consecutive_images_are_opened_once_and_lazily(
    image: MakeImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []

    def note(name: str) -> InputImage:
        opened.append(name)
        return open_image(name)

    monkeypatch.setattr("regionqa.pipeline.inputs.open_image", note)
    image("a.png"), image("b.png")
    requests = make_requests(
        map(InputItem, ["a.png", "a.png", "b.png", "a.png"]), WHAT, pytest.fail
    )
    seen: Iterator[list[str]] = ([*opened] for _ in requests)
    assert list(seen) == [["a.png"], ["a.png"], ["a.png", "b.png"], ["a.png", "b.png", "a.png"]]


# -- boxes -----------------------------------------------------------------------------------------


def test_boxes_are_resolved_by_image_size(image: MakeImage) -> None:
    half = WrittenBox((0, 0, 0.5, 0.5), BoxFormat.xywh, BoxUnits.fraction)
    [request] = asked(AskSettings("what?", boxes=(half,)), image("a.png"))
    assert corners(request) == [(0, 0, 32, 24)]


@pytest.mark.parametrize("each", [False, True])
def test_partly_outside_box_is_clipped_with_a_warning(image: MakeImage, each: bool) -> None:
    warnings: list[str] = []
    asking = AskSettings("what?", boxes=(box(50, 40, 70, 48), box(1, 2, 3, 4)), each=each)
    requests = asked(asking, image("a.png"), warn=warnings.append)
    assert requests[0].regions[0].box.xyxy == (50, 40, 64, 48)
    assert warnings == ["a.png: box 50,40,70,48 reaches outside 64 x 48: clipped to 50,40,64,48"]


def test_with_each_only_the_bad_box_fails(image: MakeImage) -> None:
    asking = AskSettings(
        "what?", boxes=(box(1, 2, 3, 4), box(90, 90, 99, 99), box(5, 6, 7, 8)), each=True
    )
    requests = asked(asking, image("a.png"))
    assert [type(request.error) for request in requests] == [type(None), BoxError, type(None)]
    assert "outside the image" in str(requests[1].error)
    assert (requests[1].image, requests[1].question, requests[1].regions) == ("a.png", "what?", ())
    assert requests[1].source is requests[0].source


def test_one_bad_box_fails_a_joint_question(
    image: MakeImage,
) -> None:
    asking = AskSettings("what?", boxes=(box(1, 2, 3, 4), box(4, 4, 4, 9)))
    [request] = asked(asking, image("a.png"))
    assert isinstance(request.error, BoxError)
    assert "no area" in str(request.error)


def test_image_missing_from_box_file_fails(image: MakeImage) -> None:
    asking = AskSettings("what?", boxfile=boxfile(a=[[1, 2, 3, 4]]))
    requests = asked(asking, image("b.png"), image("a.png"))
    assert str(requests[0].error) == "b.png: boxes.json has no boxes for this image; it has a.png"
    assert requests[0].source is not None
    assert corners(requests[1]) == [(1, 2, 3, 4)]


def test_image_without_boxes_is_not_captioned(
    image: MakeImage,
) -> None:
    boxes = boxfile(a=[])
    warned: list[str] = []
    asking = AskSettings("what?", boxfile=boxes, each=True)
    assert asked(asking, image("a.png"), warn=warned.append) == []
    start = "boxes.json: has no boxes for 1 image, so nothing was asked about them"
    assert warned == [f"{start}; the first is a.png"]
    [request] = asked(AskSettings("what?", boxfile=boxes), "a.png")
    assert (request.regions, request.error) == ((), None)


def test_boxes_are_for_one_image_only(image: MakeImage) -> None:
    """An entry without a folder fits both images, which differ."""
    asking = AskSettings("what?", boxfile=boxfile(a=[[1, 2, 3, 4]]))
    first, second = image("dogs/a.png"), image("cats/a.png")
    Image.new("RGB", (64, 48), "red").save(second)
    requests = asked(asking, first, second, first)
    assert [request.error is None for request in requests] == [True, False, True]
    assert "has the same boxes (a.png) for this image and dogs/a.png" in str(requests[1].error)
    Image.open(first).save(second)
    assert all(request.error is None for request in asked(asking, first, second))


def test_another_image_beside_the_file_is_told(image: MakeImage) -> None:
    asking = AskSettings("what?", boxfile=boxfile(a=[[1, 2, 3, 4]], b=[[1, 2, 3, 4]]))
    for name in ("a.png", "b.png"):
        image(name)
        Image.new("RGB", (64, 48), "red").save(image(f"other/{name}"))
    assert asked(asking, "a.png", "b.png")  # without a warning
    warned: list[str] = []
    requests = asked(asking, "other", warn=warned.append)
    assert all(request.error is None for request in requests)
    first, total = warned
    assert first.startswith("boxes.json: its boxes of a.png are taken for other/a.png, but beside ")
    assert total == "boxes.json: 2 images in all are others than those beside the file"


def test_images_of_another_size_than_the_file_states_are_counted() -> None:
    document: dict[str, list[object]] = {"images": [], "annotations": []}
    for number, name in enumerate(("a", "b", "c")):
        document["images"].append(
            {"id": number, "file_name": f"{name}.png", "width": 128, "height": 96}
        )
        document["annotations"].append({"image_id": number, "bbox": [10, 20, 40, 60]})
        Image.new("RGB", (48, 64) if name == "c" else (64, 48)).save(f"{name}.png")
    Path("coco.json").write_text(json.dumps(document))
    warned: list[str] = []
    asking = AskSettings("what?", boxfile=read_boxes(Path("coco.json")))
    requests = asked(asking, "a.png", "b.png", warn=warned.append)
    assert [corners(request) for request in requests] == [[(10, 20, 50, 48)]] * 2
    first, *_, total = [line for line in warned if "clipped" not in line]
    assert "coco.json: states 128 x 96 for a.png, which is 64 x 48: the sizes differ" in first
    assert "--scale-boxes scales them" in first
    assert total == "coco.json: 2 images in all differ in size from what it states"
    scaled = asked(replace(asking, scale_boxes=True), "a.png", "b.png", "c.png", warn=pytest.fail)
    assert [corners(request) for request in scaled[:2]] == [[(5, 10, 25, 40)]] * 2
    assert "another aspect ratio, so its boxes cannot be scaled" in str(scaled[2].error)


@pytest.mark.parametrize("each", [False, True])
def test_malformed_box_entry_fails_its_image(image: MakeImage, each: bool) -> None:
    asking = AskSettings("what?", boxfile=boxfile(a=[[1, 2, 3]], b=[[1, 2, 3, 4]]), each=each)
    requests = asked(asking, image("a.png"), image("b.png"))
    assert [type(request.error) for request in requests] == [BoxError, type(None)]


def test_labels_are_kept(image: MakeImage) -> None:
    [request] = asked(AskSettings("what?", boxes=(box(1, 2, 3, 4, label="tom"),)), image("a.png"))
    assert [region.label for region in request.regions] == ["tom"]
    assert isinstance(request.regions[0], Region)


# -- what goes wrong -------------------------------------------------------------------------------


@pytest.mark.parametrize("each", [False, True])
def test_unreadable_image_fails_once(image: MakeImage, each: bool) -> None:
    Path("broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    asking = AskSettings("what?", boxes=(box(1, 2, 3, 4), box(5, 6, 7, 8)), each=each)
    requests = asked(asking, "missing.png", "broken.png", image("a.png"))
    assert [type(r.error) for r in requests[:2]] == [ImageError, ImageError]
    assert str(requests[0].error) == "missing.png: no such file"
    assert (requests[0].question, requests[0].source) == ("what?", None)
    assert all(request.error is None for request in requests[2:])


def test_missing_question_fails_its_line(image: MakeImage) -> None:
    stdin = line(image=image("a.png")) + line(image="a.png", question="who?")
    requests = asked(AskSettings(), "-", stdin=stdin)
    assert "no question" in str(requests[0].error)
    assert requests[0].source is not None
    assert (requests[1].question, requests[1].error) == ("who?", None)


def test_unreadable_folder_is_reported(image: MakeImage, monkeypatch: pytest.MonkeyPatch) -> None:
    image("p/a.png"), image("p/shut/b.png")
    really_scan = os.scandir

    def scan(path: str) -> object:
        if Path(path).name == "shut":
            raise PermissionError(13, "Permission denied", path)
        return really_scan(path)

    monkeypatch.setattr(os, "scandir", scan)
    requests = asked(WHAT, "p")
    assert [str(request.error or "") for request in requests] == [
        "",
        "p/shut: this folder cannot be read: Permission denied",
    ]


def test_empty_glob_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match=r"x\*\.png: this pattern matches no images"):
        found("x*.png")


def test_empty_folder_is_a_usage_error() -> None:
    Path("empty").mkdir()
    Path("empty/notes.txt").write_text("")
    with pytest.raises(UsageError, match="empty: this folder holds no images"):
        find_images(["a.png", "empty"], io.StringIO(), pytest.fail)


def test_stdin_can_be_named_once() -> None:
    with pytest.raises(UsageError, match="stdin can be read only once"):
        find_images(["-", "-"], io.StringIO(), pytest.fail)


def test_no_arguments_are_a_usage_error() -> None:
    with pytest.raises(UsageError, match="name files, folders"):
        find_images([], io.StringIO(), pytest.fail)
