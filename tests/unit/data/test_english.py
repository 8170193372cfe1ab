"""Articles, plurals and counts."""

import pytest

from regionqa.data.english import counted, with_article


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 records"), (1, "1 record"), (2, "2 records"), (2478, "2,478 records")],
)
def test_counts(count: int, text: str) -> None:
    assert counted(count, "record") == text


def test_counts_of_irregular_nouns() -> None:
    assert counted(3, "bad box") == "3 bad boxes"
    assert counted(2, "person") == "2 people"


@pytest.mark.parametrize(
    ("noun", "text"),
    [
        ("dog", "a dog"),
        ("orange", "an orange"),
        ("Orange", "an Orange"),
        ("scissors", "scissors"),
        ("food", "food"),
    ],
)
def test_articles(noun: str, text: str) -> None:
    assert with_article(noun) == text
