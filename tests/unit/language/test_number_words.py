"""Answers that are a number."""

import pytest

from regionqa.language.number_words import is_number


@pytest.mark.parametrize(
    "answer", ["three.", "3", " None. ", "more than ten.", "Twenty", "about 40"]
)
def test_numbers(answer: str) -> None:
    assert is_number(answer)


@pytest.mark.parametrize(
    "answer", ["", "no.", "a.", "three cats.", "two or three.", "12:30", "someone.", "one of them."]
)
def test_other_answers(answer: str) -> None:
    assert not is_number(answer)
