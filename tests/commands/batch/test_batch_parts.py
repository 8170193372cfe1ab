"""Parts of `regionqa batch`: kept, refused, repeated, in Parquet; dry runs, storage, servers."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from PIL import Image

from helpers.batch.commands import Batch, answers, batch_of, file_of, stay_in_this_process, written
from regionqa.batch.outputs import ABOUT
from regionqa.cli import batch as batch_command

if TYPE_CHECKING:
    from conftest import Command

    from helpers.vlm.chat_server import ChatServer

parquet = pytest.importorskip("pyarrow.parquet")


@pytest.fixture
def batch(regionqa: "Command", toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Batch:
    """The command with the toy."""
    stay_in_this_process(monkeypatch)
    return batch_of(regionqa, toy, tmp_path)


def test_finished_parts_are_not_asked_again(batch: Batch, colours: Path, tmp_path: Path) -> None:
    assert batch(colours, "--part-size", 1).status == 0
    out = tmp_path / "out"
    first, *others = sorted(out.glob("part-*"))
    before = {path: path.read_bytes() for path in (first, *others)}
    first.unlink()
    others[0].write_text("kept as it is\n")
    ran = batch(colours, "--part-size", 1)
    assert (ran.status, first.read_bytes()) == (0, before[first])
    assert others[0].read_text() == "kept as it is\n"
    assert f"{len(others)} parts of {len(before)} finished before" in ran.err
    assert json.loads((out / ABOUT).read_text())["complete"] is True


def test_other_parts_are_refused_or_removed(batch: Batch, colours: Path, tmp_path: Path) -> None:
    assert batch(colours, "--part-size", 1).status == 0
    ran = batch(colours, "--part-size", 1, "--box", "1,1,3,3")
    assert (ran.status, "with another boxes" in ran.err) == (1, True)
    (colours / "blue.png").unlink()
    ran = batch(colours, "--part-size", 1)
    assert ran.status == 1
    assert "of other requests" in ran.err
    assert batch(colours, "--part-size", 1, "--overwrite").status == 0
    assert set(answers(tmp_path / "out")) == {"red.png", "lime.png"}


def test_errors_are_rows_that_can_be_repeated(batch: Batch, colours: Path, tmp_path: Path) -> None:
    good = (colours / "red.png").read_bytes()
    (colours / "red.png").write_bytes(b"")
    ran = batch(colours)
    assert ran.status == 3
    assert "1 error: empty file" in ran.err
    (part,) = (tmp_path / "out").glob("part-*")
    assert ".1-errors." in part.name
    (colours / "red.png").write_bytes(good)
    assert batch(colours).status == 3
    assert batch(colours, "--retry-errors").status == 0
    assert answers(tmp_path / "out")["red.png"] == "red: all of it"
    assert len(list((tmp_path / "out").glob("part-*"))) == 1


def test_a_folder_of_other_files_is_refused(batch: Batch, colours: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("x")
    ran = batch(colours)
    assert (ran.status, "has not written (mine.txt)" in ran.err) == (1, True)


def test_parquet_parts_are_one_table(batch: Batch, colours: Path, tmp_path: Path) -> None:
    mask = {"size": [8, 8], "counts": "9260W1"}
    lines = [
        {"image": "red.png", "id": 7, "meta": {"a": 1}, "regions": [{"box": [1, 1, 3, 3]}]},
        {
            "image": "blue.png",
            "meta": {"half \ud800": 1},
            "regions": [{"box": [1, 1, 3, 3], "mask": mask}],
        },
        {"image": "none.png"},
    ]
    place = file_of(colours / "r.jsonl", "".join(json.dumps(each) + "\n" for each in lines))
    ran = batch(place, "--format", "parquet", "--part-size", 1, "--confidence")
    assert ran.status == 3
    table = parquet.read_table(tmp_path / "out")
    found = {row["image"]: row for row in table.to_pylist()}
    row = found["red.png"]
    assert (row["id"], json.loads(row["meta"]), row["confidence"]) == ("7", {"a": 1}, 0.5)
    assert row["regions"] == [{"id": 1, "box": [1, 1, 3, 3], "label": None, "mask": None}]
    assert found["blue.png"]["regions"][0]["mask"] == mask
    assert json.loads(found["blue.png"]["meta"]) == {"half \ud800": 1}
    assert found["none.png"]["error"].startswith("none.png: no such file")
    parquet.write_table(table, tmp_path / "again.parquet")
    assert batch(tmp_path / "again.parquet", "--images", colours, out="again").status == 3
    again = {row["image"]: row for row in map(json.loads, written(tmp_path / "again"))}
    assert again["blue.png"]["regions"][0]["mask"] == mask


def test_an_image_name_that_is_no_url_fails_alone(batch: Batch, colours: Path) -> None:
    names = ["nothing://x/y.png", "http://[x/y.png", "red.png"]
    ran = batch(file_of(colours / "r.jsonl", "".join(f"{name}\n" for name in names)))
    assert ran.status == 3
    assert "1 error: cannot be read: nothing://x: cannot be opened" in ran.err
    assert "1 error: cannot be fetched: " in ran.err
    assert "3 requests" in ran.err
    for name, message in (("s3://x]/y", "is not a URL"), ("s3://x//y", "lacks a name before or")):
        ran = batch(name)
        assert (ran.status, ran.err.count("\n"), message in ran.err) == (2, 1, True)


def test_a_dry_run_writes_nothing(batch: Batch, colours: Path, tmp_path: Path) -> None:
    ran = batch(colours, "--dry-run", "--actors", "1:4")
    assert ran.status == 0
    assert ran.lines[:2] == ["3 requests, in 1 part", "0 parts finished, 1 to do"]
    assert ran.lines[2].startswith("sample of 3 requests (3 rows) on toy: ")
    assert "with 4 actors" in ran.lines[3]
    assert not (tmp_path / "out").exists()


def test_large_images_travel_as_files(
    batch: Batch, regionqa: "Command", toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("regionqa.batch.reading.DECODED", 100)
    folder = tmp_path / "in"
    folder.mkdir()
    frames = [Image.new("RGB", (40, 30), colour) for colour in ("red", "blue")]
    frames[0].save(folder / "two.gif", save_all=True, append_images=frames[1:])
    one = regionqa("caption", folder, "--model", toy, "--format", "jsonl")
    ran = batch(folder)
    assert written(tmp_path / "out") == one.lines
    assert ran.err.count("holds several pages or frames") == 1 == one.err.count("several pages")


def test_storage_by_url(batch: Batch, colours: Path, toy: Path, regionqa: "Command") -> None:
    fsspec = pytest.importorskip("fsspec")
    memory = fsspec.filesystem("memory")
    for path in colours.glob("*.png"):
        memory.pipe(f"/bucket/in/{path.name}", path.read_bytes())
    memory.pipe("/bucket/requests.jsonl", b'{"image": "in/red.png"}\n{"image": "in/no.png"}\n')
    words = ("--model", toy, "--format", "jsonl")
    assert regionqa("batch", "memory://bucket/in", "memory://bucket/out", *words).status == 0
    (part,) = memory.glob("/bucket/out/part-*")
    found = [json.loads(line) for line in memory.cat(part).splitlines()]
    assert {row["image"]: row["answer"].partition(":")[0] for row in found} == {
        "memory://bucket/in/blue.png": "blue",
        "memory://bucket/in/lime.png": "green",
        "memory://bucket/in/red.png": "red",
    }
    ran = regionqa("batch", "memory://bucket/*.jsonl", "memory://bucket/two", *words)
    assert (ran.status, "1 error: no such file" in ran.err) == (3, True)


def test_a_server_answers_as_it_does_for_caption(
    regionqa: "Command",
    server: "ChatServer",
    colours: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stay_in_this_process(monkeypatch)
    asked = ("--box", "1,2,6,7", "--server", server.url, "--model", "qwen3-vl-2b")
    jsonl = ("--format", "jsonl")
    one = regionqa("caption", colours, *asked, *jsonl)
    many = regionqa("batch", colours, tmp_path / "out", *asked, *jsonl, "--server-concurrency", 3)
    assert (one.status, many.status) == (0, 0)
    assert written(tmp_path / "out") == sorted(one.lines)


def test_actors_are_a_number_or_a_range(batch: Batch, colours: Path) -> None:
    for wrong in ("0", "3:2", "many", "1:"):
        ran = batch(colours, "--actors", wrong)
        assert (ran.status, "must be N or MIN:MAX" in ran.err) == (2, True)


def test_ray_that_is_not_installed_is_one_line(
    regionqa: "Command", colours: Path, toy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_command, "BATCH", ("no_such_package",))
    ran = regionqa("batch", colours, "out", "--model", toy)
    assert ran.status == 2
    assert ran.err.splitlines() == [
        "regionqa: error: regionqa batch needs no_such_package, which is not installed: "
        "pip install 'regionqa[batch]'"
    ]
