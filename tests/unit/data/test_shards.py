"""--shard of `data convert`: shards together are the whole, for every kind and number."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from helpers.datasets.sized import DATASETS, PER_IMAGE, convert_words
from regionqa.data.streams.shards import Shard
from regionqa.errors import UsageError

if TYPE_CHECKING:
    from conftest import Command

IMAGES = 3
COUNT = 2 * PER_IMAGE + 3
"""Annotations of the datasets below, the last image with fewer."""


@pytest.mark.parametrize(
    ("kind", "count"),
    [*((kind, count) for kind in DATASETS for count in (2, 5)), ("lines", 50), ("vcr", 50)],
)
def test_shards_together_are_the_whole(
    regionqa: "Command", tmp_path: Path, kind: str, count: int
) -> None:
    """Line by line, also where most shards are empty."""
    words, out = convert_words(kind, tmp_path, COUNT), tmp_path / "out.jsonl"
    assert regionqa(*words, "--out", out).status == 0
    whole, parts = out.read_text().splitlines(), []
    for number in range(1, count + 1):
        shard = f"{number}/{count}"
        ran = regionqa(*words, "--out", out, "--overwrite", "--shard", shard)
        assert (ran.status, "error" in ran.err) == (0, False)
        lines = out.read_text().splitlines()
        assert lines == sorted(lines, key=whole.index)
        records = f"{len(lines)} record{'' if len(lines) == 1 else 's'}"
        assert ran.out.startswith(records)
        assert f" of shard {shard} written to" in ran.out
        parts.append(lines)
    assert len(whole) == len({*whole}) >= IMAGES
    assert sorted(line for lines in parts for line in lines) == sorted(whole)
    if count == 2:
        assert all(parts)


def test_shards_of_lines_interleave(regionqa: "Command", tmp_path: Path) -> None:
    """Line i belongs to shard i modulo N; blank lines are not counted."""
    words, out = convert_words("lines", tmp_path, 7), tmp_path / "out.jsonl"
    path = tmp_path / "mine.jsonl"
    path.write_text("\n\n" + path.read_text().replace("\n", "\n\n"))
    assert regionqa(*words, "--out", out, "--shard", "2/3").status == 0
    asked = [json.loads(line)["conversations"][0]["value"] for line in out.read_text().splitlines()]
    assert asked == ["What is thing number 1?", "What is thing number 4?"]


@pytest.mark.parametrize("kind", ["lines", "vcr"])
def test_bad_records_stop_their_own_shard(regionqa: "Command", tmp_path: Path, kind: str) -> None:
    words, out = convert_words(kind, tmp_path, 3), tmp_path / "out.jsonl"
    path = Path(words[2])
    first, _, third = path.read_text().splitlines()
    path.write_text("\n".join([first, "{}", third]))
    assert regionqa(*words, "--out", out, "--shard", "1/3").status == 0
    ran = regionqa(*words, "--out", out, "--overwrite", "--shard", "2/3")
    assert ran.status == 1
    assert f"{path.name}:2" in ran.err
    ran = regionqa(*words, "--out", out, "--overwrite", "--shard", "2/3", "--skip-bad")
    assert (ran.status, out.read_text()) == (0, "")
    assert "1 bad record left out" in ran.err
    assert ran.out.startswith("0 records")


def test_all_problems_of_a_record_are_in_one_shard(regionqa: "Command", tmp_path: Path) -> None:
    """A JSON array, which is read whole, is shared like lines; a record is counted once."""
    words, out = convert_words("lines", tmp_path, 4), tmp_path / "out.jsonl"
    documents = [json.loads(line) for line in Path(words[2]).read_text().splitlines()]
    documents[1] |= {"regions": [[5, 5, 1, 1], [9, 9, 2, 2]]}
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(documents))
    words[2] = str(path)
    told = []
    for shard in ("1/2", "2/2"):
        line = (*words, "--out", out, "--overwrite", "--skip-bad", "--shard", shard)
        ran = regionqa(*line)
        assert ran.status == 0
        told.append((ran.out.split(" record")[0], "1 bad record left out" in ran.err))
    assert sorted(told) == [("1", True), ("2", False)]


@pytest.mark.parametrize(
    "text", ["0/3", "4/3", "0/0", "x", "1", "1/", "-1/3", "1/3/5", "1.5/3", ""]
)
def test_what_is_no_shard_is_one_line(regionqa: "Command", tmp_path: Path, text: str) -> None:
    with pytest.raises(UsageError):
        Shard.parse(text)
    words = convert_words("lines", tmp_path, 2)
    ran = regionqa(*words, "--out", tmp_path / "out.jsonl", f"--shard={text}")
    assert (ran.status, ran.out) == (2, "")
    advice = "write part and number of parts, as 1/8"
    assert ran.err == f"regionqa: error: --shard {text!r}: {advice}\n"
    assert not (tmp_path / "out.jsonl").exists()
