"""Mixtures: what a TOML of sources says, how often their records are trained on, what ships."""

import shlex
from pathlib import Path

import pytest

from helpers.documents.training_data import good, save
from regionqa.data.mixtures.reading import (
    MixtureSource,
    capped,
    read_mixture,
    shipped_mixtures,
    weighted,
)
from regionqa.data.records import Record, Turn
from regionqa.data.sources.kinds import DatasetOptions
from regionqa.errors import DataError, UsageError

RECORDS = [Record(Path("a.png"), (), (Turn(f"{n}?", "a."),), f"a:{n}") for n in range(20)]


def source(**values: object) -> MixtureSource:
    return MixtureSource(**{"file": "a.jsonl", **values})  # type: ignore[arg-type]


def numbers(records: list[Record]) -> list[int]:
    return [RECORDS.index(record) for record in records]


@pytest.mark.parametrize(
    ("weight", "least", "most"), [(1.0, 1, 1), (0.25, 0, 1), (2.0, 2, 2), (2.5, 2, 3)]
)
def test_records_are_seen_as_often_as_the_weight_says(weight: float, least: int, most: int) -> None:
    found = numbers(weighted(RECORDS, source(weight=weight), 0))
    assert len(found) == round(weight * len(RECORDS))
    assert {found.count(number) for number in range(20)} == {least, most}
    elsewhere = source(weight=weight, file="folder/a.jsonl")
    assert numbers(weighted(RECORDS, elsewhere, 0)) == found


def test_what_is_drawn_depends_on_the_seed() -> None:
    found = [numbers(capped(RECORDS, source(cap=8), seed)) for seed in (0, 0, 1)]
    assert found[0] == found[1] == sorted(set(found[0]))
    assert found[0] != found[2] and {len(each) for each in found} == {8}
    assert capped(RECORDS, source(cap=99), 0) == capped(RECORDS, source(), 0) == RECORDS


def test_names_are_relative_to_the_mixture(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    save(tmp_path / "a.jsonl", good())
    text = '[[source]]\nfile = "a.jsonl"\nimages = "photos"\nweight = 2\nstage = "align"\n'
    (tmp_path / "mine.toml").write_text(text)
    (found,) = read_mixture(tmp_path / "mine.toml").source
    assert found.file == str(tmp_path / "a.jsonl") and found.images == str(tmp_path / "photos")
    assert (found.weight, found.trains("align"), found.trains("instruct")) == (2, True, False)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("source = []", "names no source; add a table [[source]] with a file"),
        ('[[source]]\nfile = "a.jsonl"\nwieght = 2', "wieght"),
        ('[[source]]\nfile = "a.jsonl"\nweight = 0', "weight is 0.0; it must be above 0"),
        ('[[source]]\nfile = "a.jsonl"\nweight = "2"', "weight"),
        ('[[source]]\nfile = "a.jsonl"\ncap = 0', "cap is 0; it must be 1 or more"),
        ('[[source]]\nfile = "a.jsonl"\nstage = "third"', "stage"),
        ("[[source]", "cannot be read as a mixture"),
    ],
)
def test_wrong_mixtures_are_refused(tmp_path: Path, text: str, reason: str) -> None:
    save(tmp_path / "a.jsonl", good())
    (tmp_path / "mine.toml").write_text(text)
    with pytest.raises(UsageError) as caught:
        read_mixture(tmp_path / "mine.toml")
    assert str(caught.value).startswith(f"{tmp_path / 'mine.toml'}: ")
    assert reason in str(caught.value)


def test_missing_files_are_named_with_what_makes_them(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text('[[source]]\nfile = "a.jsonl"\ncommand = "make a"\n')
    with pytest.raises(DataError, match=r"a\.jsonl does not exist; make it with: make a"):
        read_mixture(tmp_path / "mine.toml")
    with pytest.raises(UsageError, match="regionqa data mixtures NAME"):
        read_mixture(tmp_path / "other.toml")


@pytest.mark.parametrize("name", ["gpt4roi", "pvit"])
def test_shipped_mixtures_name_commands_that_exist(name: str, tmp_path: Path) -> None:
    (tmp_path / "mixture.toml").write_text(shipped_mixtures()[name])
    for line in shipped_mixtures()[name].splitlines():
        if line.startswith("file = "):
            (tmp_path / line.split('"')[1]).touch()
    for each in read_mixture(tmp_path / "mixture.toml").source:
        words = shlex.split(each.command)
        assert words[words.index("--out") + 1] == Path(each.file).name
        if words[2] == "convert":
            given = {
                word[2:]: words[place + 1] for place, word in enumerate(words) if word[:2] == "--"
            }
            DatasetOptions.parse(kind=given["kind"], annotations=given.get("annotations"))
