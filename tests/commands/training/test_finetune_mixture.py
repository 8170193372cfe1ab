"""`regionqa finetune --mixture` and `regionqa data mixtures`."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from helpers.tiny_models import log_of
from regionqa.bundles.store import Bundle
from regionqa.data.mixtures.reading import shipped_mixtures

if TYPE_CHECKING:
    from conftest import Command

SHORT = ("--steps", 2, "--batch", 2, "--device", "cpu", "--rehearse", 0)


def test_a_mixture_is_trained_on_and_continued(
    tiny: Callable[[str], Bundle], things: Path, regionqa: "Command", tmp_path: Path
) -> None:
    lines = things.read_text().splitlines(keepends=True)
    for name, part in (("first", lines[:6]), ("second", lines[2:])):
        (things.parent / f"{name}.jsonl").write_text("".join(part))
    mixture, out = things.parent / "mine.toml", tmp_path / "mine"
    text = (
        '[[source]]\nfile = "first.jsonl"\nstage = "align"\n'
        '[[source]]\nfile = "second.jsonl"\nstage = "instruct"\nweight = 1.5\ncap = 6\n'
    )
    mixture.write_text(text)
    words = ("finetune", "--mixture", mixture, "--model", tiny("levels").root, "--out", out)
    ran = regionqa(*words, *SHORT, "--held-out-share", 0.1)
    assert ran.status == 0, ran.err
    second = f"{things.parent / 'second.jsonl'}: 9 records of "
    assert second in ran.err and f", of {len(lines) - 2} in the file" in ran.err
    assert {entry["stage"] for entry in log_of(out)} == {"align", "instruct"}
    card = (out / "card.toml").read_text()
    assert "source 1 of the mixture, align" in card and "source 2 of the mixture" in card
    assert regionqa(*words, *SHORT, "--held-out-share", 0.1, "--resume").status == 0


def test_mixtures_that_cannot_be_trained_on(
    tiny: Callable[[str], Bundle], things: Path, regionqa: "Command", tmp_path: Path
) -> None:
    mixture = things.parent / "mine.toml"
    mixture.write_text(f'[[source]]\nfile = {json.dumps(things.name)}\nstage = "instruct"\n')
    words = ("finetune", "--model", tiny("levels").root, "--out", tmp_path / "mine", *SHORT)
    ran = regionqa(*words, "--mixture", mixture)
    assert ran.status == 2
    assert "mine.toml: has no source for the stage align; add one, or run the other" in ran.err
    ran = regionqa(*words, "--mixture", mixture, "--data", things)
    assert ran.status == 2
    assert "--data: has no effect beside --mixture; drop one of the two" in ran.err
    assert "no training data; name a file with --data, or a --mixture" in regionqa(*words).err


def test_shipped_mixtures_are_printed(regionqa: "Command") -> None:
    assert [line.split("\t")[0] for line in regionqa("data", "mixtures").lines] == [
        "gpt4roi", "pvit",
    ]  # fmt: skip
    assert regionqa("data", "mixtures", "pvit").out == shipped_mixtures()["pvit"]
    ran = regionqa("data", "mixtures", "osprey")
    assert (ran.status, ran.out) == (2, "")
    assert "must be one of gpt4roi, pvit" in ran.err
