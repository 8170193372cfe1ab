"""Class names found in replies by words, synonyms and plurals."""

from pathlib import Path

import pytest

from regionqa.data.english import plural
from regionqa.errors import DataError
from regionqa.evaluation.metrics.classes import (
    ClassNames,
    common_synonyms,
    is_unsure,
    read_synonyms,
    words_of,
)

NAMES = ("bear", "dog", "hot dog", "person", "teddy bear", "tv", "cell phone", "skis", "knife")


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ("a dog.", "dog"),
        ("A hot dog.", "hot dog"),
        ("two hot-dogs and a dog", "hot dog"),
        ("a dog with a hot dog", "dog"),
        ("it is a teddy bear", "teddy bear"),
        ("a doghouse.", None),
        ("two dogs.", "dog"),
        ("the dog's ear", "dog"),
        ("", None),
        ("TV", "tv"),
        ("a mobile phone", "cell phone"),
        ("POLICEMEN", "person"),
        ("several people on skis", "person"),
        ("a ski", "skis"),
        ("knives", "knife"),
        ("puppies", "dog"),
        ("I am not sure, perhaps a dog.", None),
        ("I don\u2019t know.", None),
    ],
)
def test_class_names_are_whole_words(reply: str, expected: str | None) -> None:
    assert ClassNames(NAMES, common_synonyms()).named(reply) == expected


def test_names_precede_synonyms() -> None:
    assert ClassNames(["person", "woman"], common_synonyms()).named("a woman") == "woman"
    assert ClassNames(["person"], common_synonyms()).named("a woman") == "person"


def test_ambiguous_synonym_is_refused() -> None:
    with pytest.raises(DataError, match="'pet' is a synonym of both 'cat' and 'dog'"):
        ClassNames(["cat", "dog"], {"cat": ["pet"], "dog": ["pet"]})


def test_common_synonyms_are_unambiguous() -> None:
    table = common_synonyms()
    assert len(table) == 80
    names = ClassNames(list(table), table)
    for name, synonyms in table.items():
        for text in (name, plural(name), *synonyms, *map(plural, synonyms)):
            assert names.named(f"there: {text}!") == name, text


@pytest.mark.parametrize(
    ("one", "many"),
    [("box", "boxes"), ("fire truck", "fire trucks"), ("berry", "berries"), ("boy", "boys"),
     ("snowman", "snowmen"), ("tooth", "teeth"), ("human", "humans")],
)  # fmt: skip
def test_plurals(one: str, many: str) -> None:
    assert plural(one) == many


@pytest.mark.parametrize(
    "reply",
    ["I am not sure.", "i'm not quite sure", "It is uncertain", "I cannot tell", "No idea."],
)
def test_is_unsure(reply: str) -> None:
    assert is_unsure(reply)
    assert not is_unsure("a dog, for sure.")


def test_words_have_no_punctuation() -> None:
    assert words_of("  The dog's\u00a0hot-dog_stand, №1!") == (
        "the", "dog", "s", "hot", "dog", "stand", "no1",
    )  # fmt: skip


def test_invalid_synonyms_file(tmp_path: Path) -> None:
    (tmp_path / "names.toml").write_text("cell phone = x")
    with pytest.raises(DataError, match=r"names\.toml: is not valid TOML"):
        read_synonyms(tmp_path / "names.toml")
    (tmp_path / "names.toml").write_text('dog = ["..."]')
    with pytest.raises(DataError, match=r"'\.\.\.' of 'dog' has no letters"):
        read_synonyms(tmp_path / "names.toml")
