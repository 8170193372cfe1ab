"""`regionqa doctor --probe`."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import Command, CommandResult


def check(ran: "CommandResult", ways: list[str]) -> None:
    """A table with a row per way, then a verdict per way."""
    title, header, *rows = ran.lines
    assert title.endswith("percent right of 70 questions in each way")
    assert header.split() == ["way", "all", "square", "wide", "tall", "rotated", "large", "failed"]
    count = len(rows) // 2
    assert [row.split("  ")[0] for row in rows[:count]] == ways
    assert [row.split(":")[0] for row in rows[count:]] == [
        "its own way" if way == "its own" else way for way in ways
    ]
    assert {row.split()[-1] for row in rows[:count]} == {"0"}
    assert all("weak: " in row or "looks wrong" in row or "sound" in row for row in rows[count:])


def test_a_bundle_is_probed_in_its_own_way(regionqa: "Command") -> None:
    ran = regionqa("doctor", "--probe", "--device", "cpu")
    assert (ran.status, ran.err) == (1, "")
    check(ran, ["its own"])


@pytest.mark.slow
def test_a_checkpoint_is_probed_in_every_way(
    regionqa: "Command", tiny_checkpoint: Callable[[str], Path]
) -> None:
    ran = regionqa("doctor", "--probe", "--model", tiny_checkpoint("qwen3_vl"), "--device", "cpu")
    assert (ran.status, ran.err) == (1, "")
    check(ran, ["coordinates", "crop", "crop-only", "drawn"])


def test_options_of_the_probe_need_it(regionqa: "Command") -> None:
    ran = regionqa("doctor", "--device", "cpu")
    assert (ran.status, ran.out) == (2, "")
    assert "--device: has no effect without --probe" in ran.err
