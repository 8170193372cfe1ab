"""`regionqa batch` as a user types it, with the stages in this process instead of on Ray."""

import csv
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from helpers.batch.commands import Batch, answers, batch_of, file_of, stay_in_this_process, written

if TYPE_CHECKING:
    from conftest import Command


pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")


@pytest.fixture
def batch(regionqa: "Command", toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Batch:
    """The command with the toy."""
    stay_in_this_process(monkeypatch)
    return batch_of(regionqa, toy, tmp_path)


# -- answers are those of caption and ask ----------------------------------------------------------


def test_a_folder_gives_the_lines_of_caption(
    batch: Batch, regionqa: "Command", colours: Path, toy: Path, tmp_path: Path
) -> None:
    (colours / "broken.png").write_bytes((colours / "red.png").read_bytes()[:60])
    (colours / "text.jpg").write_text("no image")
    box = ("--box", "1,1,5,5", "--box", "0,0,20,20")
    one = regionqa("caption", colours, *box, "--model", toy, "--format", "jsonl")
    ran = batch(colours, *box, "--part-size", 2)
    assert (one.status, ran.status) == (3, 3)
    assert written(tmp_path / "out") == sorted(one.lines)
    assert len(list((tmp_path / "out").glob("part-*"))) > 1


def test_a_question_gives_the_lines_of_ask(
    batch: Batch, regionqa: "Command", colours: Path, toy: Path, tmp_path: Path
) -> None:
    asked = ("--box", "1,1,5,5", "--box", "2,2,6,6")
    one = regionqa("ask", colours, "what?", *asked, "--model", toy, "--format", "jsonl")
    assert batch(colours, "--question", "what?", *asked).status == 0
    assert written(tmp_path / "out") == sorted(one.lines)
    each = regionqa("ask", colours, "what?", "--each", *asked, "--model", toy, "--format", "jsonl")
    assert batch(colours, "--question", "what?", "--each", *asked, out="each").status == 0
    assert written(tmp_path / "each") == sorted(each.lines)


def test_json_lines_give_the_lines_of_stdin(
    batch: Batch,
    regionqa: "Command",
    colours: Path,
    toy: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    requests = [
        {"image": "red.png", "regions": [[1, 1, 4, 4], {"box": [2, 2, 5, 5], "label": "x"}]},
        {"image": "red.png", "question": "why?", "id": "a-1", "meta": {"k": [1, None]}},
        {"image": "blue.png", "regions": [[1, 1, 0, 0]]},
        {"image": "missing.png"},
        {"image": "lime.png", "bbox": [1, 2, 3, 4]},
        {"question": "of what?"},
    ]
    text = "".join(json.dumps(each) + "\n" for each in requests) + "blue.png\n"
    (colours / "requests.jsonl").write_text(text)
    monkeypatch.chdir(colours)
    one = regionqa("caption", "-", "--model", toy, "--format", "jsonl", stdin=text)
    assert batch("requests.jsonl", "--part-size", 2).status == 3
    told = [line.replace("of requests.jsonl", "of stdin") for line in written(tmp_path / "out")]
    assert sorted(told) == sorted(one.lines)


# -- inputs ----------------------------------------------------------------------------------------


def rows() -> list[dict[str, Any]]:
    return [
        {"image": "red.png", "question": "a, b?", "id": "1"},
        {"image": "blue.png", "question": None, "id": "2"},
    ]


def test_csv_and_parquet_of_names(batch: Batch, colours: Path, tmp_path: Path) -> None:
    with (colours / "requests.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["image", "question", "id", "boxes"])
        writer.writeheader()
        writer.writerows(row | {"boxes": "1,1,4,4;2,2,5,5"} for row in rows())
    assert batch(colours / "requests.csv", out="csv").status == 0
    found = list(map(json.loads, written(tmp_path / "csv")))
    assert sorted((row["id"], row["question"]) for row in found) == [
        ("1", "a, b?"), ("1", "a, b?"),
        *[("2", "what colour is <region1>?")] * 2,
    ]  # fmt: skip
    table = pyarrow.Table.from_pylist([row | {"extra": 1} for row in rows()])
    parquet.write_table(table, colours / "requests.parquet")
    ran = batch(colours / "requests.parquet", out="parquet")
    assert ran.status == 0
    assert "columns that are not used: extra" in ran.err
    assert {key: text.partition(":")[0] for key, text in answers(tmp_path / "parquet").items()} == {
        "red.png": "red", "blue.png": "blue",
    }  # fmt: skip


def test_parquet_with_images(batch: Batch, colours: Path, tmp_path: Path) -> None:
    files = [path.read_bytes() for path in sorted(colours.glob("*.png"))]
    table = pyarrow.table({"image": [{"bytes": each, "path": "same.png"} for each in files]})
    parquet.write_table(table, tmp_path / "a.parquet", row_group_size=2)
    assert batch(tmp_path / "a.parquet", "--part-size", 2).status == 0
    found = [json.loads(line) for line in written(tmp_path / "out")]
    assert {row["answer"] for row in found} == {f"{c}: all of it" for c in ("blue", "green", "red")}
    parquet.write_table(pyarrow.table({"image": [*files, None]}), tmp_path / "b.parquet")
    assert batch(tmp_path / "b.parquet", out="b").status == 3
    names = {row["image"]: row["error"] for row in map(json.loads, written(tmp_path / "b"))}
    place = tmp_path / "b.parquet"
    assert names == {f"{place}:{n}": None for n in (1, 2, 3)} | {
        f"{place}:4": f"{place}:4: empty file; copy it again"
    }


def add_file(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def test_webdataset(batch: Batch, colours: Path, tmp_path: Path) -> None:
    place = tmp_path / "photos.tar"
    with tarfile.open(place, "w") as archive:
        for number, colour in enumerate(("red", "lime", "blue")):
            add_file(archive, f"x/{number}.png", (colours / f"{colour}.png").read_bytes())
            asked = {"question": f"which {number}?", "regions": [[1, 1, 4, 4]], "url": "http://x"}
            add_file(archive, f"x/{number}.json", json.dumps(asked).encode())
            add_file(archive, f"x/{number}.cls", b"3")
        add_file(archive, "x/3.json", b"{}")
    ran = batch(place)
    assert ran.status == 3
    assert "files that are not used: .cls (3)" in ran.err
    assert "keys of .json that are not used: url (3)" in ran.err
    found = {row["image"]: row for row in map(json.loads, written(tmp_path / "out"))}
    assert found[f"{place}/x/1.png"]["question"] == "which 1?"
    assert found[f"{place}/x/1.png"]["answer"].startswith("green: ")
    assert found[f"{place}/x/3"]["error"] == f"{place}/x/3: this sample has no image"
    assert batch(place, "--limit", 2, out="two").status == 0
    assert len(written(tmp_path / "two")) == 2


def test_coco(batch: Batch, regionqa: "Command", colours: Path, toy: Path, tmp_path: Path) -> None:
    images = [
        {"id": n, "file_name": f"{name}.png", "width": 8, "height": 8}
        for n, name in enumerate(("red", "lime", "blue"))
    ]
    boxes = [
        {"id": n, "image_id": n % 2, "bbox": [1, 1, 2 + n, 3], "category_id": 1} for n in range(4)
    ]
    document = {
        "images": images,
        "annotations": boxes,
        "categories": [{"id": 1, "name": "thing"}],
    }
    place = tmp_path / "boxes.json"
    place.write_text(json.dumps(document))
    one = regionqa("caption", colours, "--boxes", place, "--model", toy, "--format", "jsonl")
    ran = batch(place, "--images", colours)
    assert ran.status == 0
    assert "has no boxes for 1 image" in ran.err
    expected = [line.replace(f"{colours}/", "") for line in one.lines]
    assert written(tmp_path / "out") == sorted(expected)


def test_questions_on_one_image_meet(batch: Batch, colours: Path, tmp_path: Path) -> None:
    names = ["red.png", "blue.png"] * 3
    lines = [json.dumps({"image": name, "id": n}) for n, name in enumerate(names)]
    (colours / "r.jsonl").write_text("\n".join(lines))
    assert batch(colours / "r.jsonl", "--sort-by-image").status == 0
    (part,) = (tmp_path / "out").glob("part-*")
    found = [json.loads(line) for line in part.read_text().splitlines()]
    assert [row["id"] for row in found] == [1, 3, 5, 0, 2, 4]


def test_a_glob_of_files(batch: Batch, colours: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (colours / f"{name}.jsonl").write_text('{"image": "red.png"}\n')
    assert batch(f"{colours}/*.jsonl").status == 0
    assert len(written(tmp_path / "out")) == 2  # equal lines are two requests


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: folder / "none.jsonl", "there is no such file or folder"),
        (lambda folder: folder, "holds nothing that is read"),
        (lambda folder: two_kinds(folder), "holds files of several kinds (.csv, .jsonl)"),
        (lambda folder: file_of(folder / "a.csv", "image,bbox\n"), "a column 'bbox', which looks"),
        (lambda folder: file_of(folder / "a.csv", "a,b\n"), "has no column 'image'"),
        (lambda folder: file_of(folder / "a.parquet", "PAR"), "is not Parquet"),
        (lambda folder: file_of(folder / "a.tar", "no"), "is no tar archive"),
        (lambda folder: file_of(folder / "a.json", "{}"), "a.json"),
        (lambda folder: file_of(folder / "a.jsonl", "\n"), "holds no requests"),
        (lambda folder: "nothing://x/y", "cannot be opened"),
    ],
)
def test_what_is_no_input_is_one_line(
    batch: Batch, tmp_path: Path, make: Callable[[Path], object], message: str
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    ran = batch(make(folder))
    assert ran.status in (1, 2)
    assert message in ran.err.splitlines()[-1]
    assert ran.err.splitlines()[-1].startswith("regionqa: error: ")


def two_kinds(folder: Path) -> Path:
    file_of(folder / "a.csv", "image\nx.png\n")
    file_of(folder / "b.jsonl", '{"image": "x.png"}\n')
    return folder
