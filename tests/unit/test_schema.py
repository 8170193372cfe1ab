"""Conversion of TOML tables to dataclasses."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

import pytest

from regionqa.errors import BundleError
from regionqa.schema import from_table, read_toml


class Colour(StrEnum):
    red = "red"
    blue = "blue"


@dataclass(frozen=True)
class Part:
    path: str
    size: int = 1
    colours: tuple[Colour, ...] = ()
    place: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"size is {self.size}, below 1")


@dataclass(frozen=True)
class Whole:
    name: str
    part: Part | None = None
    parts: tuple[Part, ...] = ()
    notes: Mapping[str, Any] = field(default_factory=dict)


def test_table_to_dataclass() -> None:
    table = {
        "name": "a",
        "part": {"path": "b", "size": 2, "place": [1, 2.5]},
        "parts": [{"path": "c"}, {"path": "d", "colours": ["blue", "red"]}],
        "notes": {"anything": [1, {"at": "all"}]},
    }
    assert from_table(Whole, table, "here") == Whole(
        "a",
        Part("b", 2, (), (1.0, 2.5)),
        (Part("c"), Part("d", colours=(Colour.blue, Colour.red))),
        {"anything": [1, {"at": "all"}]},
    )


def test_old_keys_are_renamed_at_any_depth() -> None:
    table = {"name": "a", "piece": {"file": "b"}, "parts": [{"file": "c"}], "notes": {"file": 1}}
    renamed = {"piece": "part", "file": "path"}
    found = from_table(Whole, table, "here", renamed)
    assert found == Whole("a", Part("b"), (Part("c"),), {"file": 1})
    with pytest.raises(BundleError, match=r"^here: unknown key 'piece'; known are name, part, "):
        from_table(Whole, table, "here")


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({}, "here: the key 'name' is missing"),
        ({"name": "a", "b": 1}, "here: unknown key 'b'; known are name, part, parts, notes"),
        ({"name": "a", "part": {"size": 1}}, "here: part: the key 'path' is missing"),
        (
            {"name": "a", "parts": [{"path": "b"}, {"path": "c", "sizes": 1}]},
            "here: parts: unknown key 'sizes'; known are path, size, colours, place",
        ),
        (
            {"name": "a", "parts": [{"path": "b"}, {"path": 3}]},
            "here: parts: path: expected text, found 3",
        ),
        ({"name": "a", "part": {"path": "b", "size": 0}}, "here: part: size is 0, below 1"),
        (
            {"name": "a", "part": {"path": "b", "colours": ["red", "green"]}},
            "here: part: colours: 'green' is unknown; known are red, blue",
        ),
        (
            {"name": "a", "part": {"path": "b", "place": [1]}},
            "here: part: place: expected 2 values, found 1",
        ),
        (
            {"name": "a", "part": {"path": "b", "place": [1, "2"]}},
            "here: part: place: expected a number, found '2'",
        ),
        ({"name": True}, "here: name: expected text, found True"),
        ({"name": "a", "notes": []}, "here: notes: expected a table, found []"),
    ],
)
def test_errors_name_place_and_expectation(table: dict[str, Any], message: str) -> None:
    with pytest.raises(BundleError) as caught:
        from_table(Whole, table, "here")
    assert str(caught.value) == message


@pytest.mark.parametrize(
    "text",
    ["a = ", f"a = {'[' * 3000}", f"a = {'9' * 5000}", "a = '\udcff'"],
    ids=["cut", "deep", "long", "bytes"],
)
def test_whatever_is_no_toml_is_a_value_error(text: str, tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    file.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError):
        read_toml(file)
