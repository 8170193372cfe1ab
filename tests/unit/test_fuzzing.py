"""The fuzz campaign itself: it finds planted faults, and none in valid inputs."""

import random
from pathlib import Path

import pytest

from campaigns.fuzzing import LONGEST, Trial, mutated
from campaigns.mutations import smaller
from campaigns.targets import TARGETS, Heard
from regionqa.errors import BoxError


@pytest.mark.parametrize("name", ["boxes", "cards", "chat", "images", "requests", "settings"])
def test_seeds_and_a_few_damaged_inputs_show_nothing(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, work = tmp_path / "in", tmp_path / "seeds"
    folder.mkdir()
    work.mkdir()
    monkeypatch.chdir(folder)
    given = list(TARGETS[name].seeds(work))
    trial = Trial(name, TARGETS[name].make(folder), work, tmp_path / "out", limited=False)
    rng = random.Random(0)
    for data in [*given, *(mutated(name, data, rng, given, 2000) for data in given)]:
        trial.run(data)
    assert trial.found == set()
    assert trial.counts["read"] >= len(given) / 2


def broken(data: bytes, heard: Heard) -> None:
    if b"A" in data:
        raise KeyError("A")
    if b"B" in data:
        raise BoxError("a number is missing")
    if b"C" in data:
        heard("two\nlines")
    if b"D" in data:
        heard("x" * (LONGEST + 1))


def test_a_finding_is_made_smaller_and_kept_once(tmp_path: Path) -> None:
    trial = Trial("boxes", broken, tmp_path, tmp_path / "out", limited=False)
    for data in (b"012A345", b"A", b"B", b"01C2", b"D333", b""):
        trial.run(data)
    kept = {path.read_bytes() for path in (tmp_path / "out").glob("*.input")}
    assert kept == {b"A", b"C", b"D"}
    assert (trial.inputs, trial.counts["BoxError"]) == (6, 1)


def test_smaller_keeps_what_shows_the_fault() -> None:
    assert smaller(b"0123456789", lambda data: b"3" in data and b"7" in data) == b"37"
