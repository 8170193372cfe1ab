"""Every kind of dataset: missing files, options, the command."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from helpers.datasets.layouts import (
    opened,
    records,
    save_lines,
    save_movie,
    save_refcoco,
    vcr_sample,
)
from regionqa.data.sources import wording
from regionqa.data.sources.kinds import KINDS, DatasetKind, DatasetOptions
from regionqa.errors import DataError, UsageError

if TYPE_CHECKING:
    from conftest import Command


@pytest.fixture
def refs(tmp_path: Path) -> Path:
    return save_refcoco(tmp_path)


@pytest.fixture
def movies(tmp_path: Path) -> Path:
    return save_movie(tmp_path)


# -- every kind ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [*DatasetKind])
def test_missing_and_truncated_files_are_one_line(tmp_path: Path, kind: DatasetKind) -> None:
    second: dict[str, Any] = {}
    if KINDS[kind].needs_annotations:
        second["annotations"] = str(tmp_path / "graphs.json")
    path = tmp_path / "missing.json"
    cut = tmp_path / "cut.json"
    cut.write_text('[{"id": 1, "regions": [{"x": 1')
    for each in (path, cut):
        with pytest.raises((DataError, UsageError)) as caught:
            records(opened(each, kind, **second))
        assert str(each) in str(caught.value) or "cut.json" in str(caught.value)
        assert "\n" not in str(caught.value)
        assert ";" in str(caught.value) or kind is DatasetKind.coco
    with pytest.raises(UsageError, match=r"there is no folder .*nowhere; name that of the images"):
        opened(cut, kind, tmp_path / "nowhere", **second)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (
            {"kind": "vcr", "annotations": "a.json"},
            "--annotations: has no effect beside --kind vcr",
        ),
        ({"kind": "vcr", "split": "val"}, "--split: FILE of --kind vcr is one split"),
        ({"kind": "vcr", "shard": "0/2"}, "--shard '0/2': write part and number of parts"),
        ({"kind": "vcr", "shard": "3/2"}, "--shard '3/2'"),
        ({"kind": "vcr", "shard": "half"}, "--shard 'half'"),
        ({"kind": "vcr", "max_regions": 0}, "--max-regions 0: must be 1 or more"),
        ({"kind": "imagenet"}, "kind 'imagenet': must be one of coco, refcoco"),
    ],
)
def test_options_without_sense_are_usage_errors(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(UsageError) as caught:
        DatasetOptions.parse(**options)
    assert str(caught.value).startswith(reason)


def test_numbers_of_wordings() -> None:
    counts = {
        "DESCRIBE": 20,
        "DETAIL": 30,
        "DESCRIBE_ALL": 30,
        "WHICH_PART": 10,
        "GIVEN": 6,
        "WHY": 39,
    }
    for name, count in counts.items():
        assert len({*getattr(wording, name)}) == count


def lines_of(path: Path) -> Iterator[dict[str, Any]]:
    for line in path.read_text().splitlines():
        yield json.loads(line)


def test_convert_command_writes_a_dataset(regionqa: "Command", refs: Path, tmp_path: Path) -> None:
    out = tmp_path / "refcoco.jsonl"
    words = ("data", "convert", refs, "--kind", "refcoco", "--images", tmp_path / "train2014")
    ran = regionqa(*words, "--out", out)
    assert (ran.status, ran.out) == (0, f"2 records with 3 regions written to {out}\n")
    assert ran.err.splitlines() == [
        f"regionqa: warning: {refs}: expressions of fewer than 3 words left out: 1, at "
        "refs(unc).p: image 7"
    ]
    assert next(lines_of(out)) == {
        "image": "train2014/COCO_train2014_000000000007.png",
        "regions": [[0, 0, 50, 60], [90, 0, 110, 30]],
        "conversations": [
            {"from": "human", "value": wording.REFER.format(region="<region1>")},
            {"from": "gpt", "value": "the man on the left"},
            {"from": "human", "value": "<region2>"},
            {"from": "gpt", "value": "woman with an umbrella"},
        ],
        "kind": "refcoco",
    }
    before = out.read_bytes()
    refs.write_bytes(refs.read_bytes()[:-9])
    broken = regionqa(*words, "--out", out, "--overwrite")
    assert (broken.status, broken.out) == (1, "")
    assert "is not a whole pickle" in broken.err
    assert out.read_bytes() == before


def test_convert_command_leaves_bad_records_out(
    regionqa: "Command", movies: Path, tmp_path: Path
) -> None:
    out = tmp_path / "vcr.jsonl"
    words = ("data", "convert", save_lines(movies, vcr_sample(), {}), "--kind", "vcr", "--out", out)
    stopped = regionqa(*words)
    assert (stopped.status, out.exists()) == (1, False)
    assert "train.jsonl:2: is not laid out as the dataset documents it" in stopped.err
    ran = regionqa(*words, "--skip-bad")
    assert (ran.status, ran.out) == (0, f"1 record with 4 regions written to {out}\n")
    assert ran.err.splitlines()[-1] == f"regionqa: {movies}: 1 bad record left out"


def test_kinds_are_listed_with_their_files(regionqa: "Command") -> None:
    out = regionqa("data", "kinds").out
    assert all(
        f"{kind}: {entry.help}\n  FILE: {entry.file}\n" in out for kind, entry in KINDS.items()
    )


def test_guide_has_a_row_for_every_kind() -> None:
    page = (Path(__file__).parents[3] / "docs/guide/data.md").read_text()
    guide = page.partition("\n## Public datasets\n")[2].partition("\n### ")[0]
    named = [
        re.findall(r"`([^`]+)`", row.split("|")[1]) for row in guide.splitlines() if "|" in row
    ]
    assert [kind for row in named for kind in row if kind != "--kind"] == [*KINDS] == [*DatasetKind]
