"""Replies matched to known answers."""

import pytest

from regionqa.data.questions import QuestionRecord
from regionqa.evaluation.metrics.matching import (
    chosen_index,
    is_count,
    mentions,
    normalise_text,
    number_in,
    yes_or_no,
)
from regionqa.evaluation.tasks.vqa import AnswerKind, answer_kind, is_correct
from regionqa.requests import Request


@pytest.mark.parametrize(
    ("text", "expected"),
    [("It's a red CUP.", "red cup"), ("the", "the"), ("three dogs", "3 dogs"), ("No.", "no"),
     ("the colour is dark-blue", "dark blue"), ("this is it", "it"),
     ("<region2>.", "region 2"), ("Region1 is", "region 1 is")],
)  # fmt: skip
def test_normalised_texts(text: str, expected: str) -> None:
    assert normalise_text(text) == expected


@pytest.mark.parametrize(
    ("text", "number"),
    [("there are three.", 3), ("3", 3), ("No dogs.", 0), ("none", 0), ("a single one", 1),
     ("many", None), ("a pair of them", 1), ("there is a cup", 1), ("it is 12 or 13", 12),
     ("more than ten", 10)],
)  # fmt: skip
def test_numbers_in_replies(text: str, number: int | None) -> None:
    assert number_in(text) == number


def test_yes_or_no() -> None:
    assert yes_or_no("Yes, it is no dog") is True
    assert yes_or_no("it is not") is False
    assert yes_or_no("perhaps") is None


def test_chosen_index() -> None:
    choices = ("a dog", "a hot dog", "two cats")
    assert chosen_index("hot dog.", choices) == 1
    assert chosen_index("I see a dog there", choices) == 0
    assert chosen_index("B", choices) == 1
    assert chosen_index("z", choices) is None
    assert chosen_index("a bird", choices) is None
    assert chosen_index("b", ("a", "b", "c")) == 1


def test_mentions_are_whole_words_in_order() -> None:
    assert mentions("it is red and white", "red")
    assert not mentions("it is reddish", "red")
    assert not mentions("white and red", "red and white")


def question(ask: str, *answers: str, choices: tuple[str, ...] = ()) -> QuestionRecord:
    return QuestionRecord(Request("a.jpg", ask), answers, choices)


@pytest.mark.parametrize(
    ("asked", "kind"),
    [
        (question("is it?", "no."), AnswerKind.yes_no),
        (question("is it?", "yes, it is a dog."), AnswerKind.yes_no),
        (question("how many dogs?", "no dogs."), AnswerKind.number),
        (question("how many dogs?", "three."), AnswerKind.number),
        (question("which number?", "3"), AnswerKind.number),
        (question("what?", "red", choices=("red", "blue")), AnswerKind.choice),
        (question("what?", "a dog."), AnswerKind.words),
    ],
)
def test_answer_kind(asked: QuestionRecord, kind: AnswerKind) -> None:
    assert answer_kind(asked) is kind


def test_unsure_reply_is_never_correct() -> None:
    assert is_correct(question("is it?", "no."), "no.")
    assert not is_correct(question("is it?", "no."), "no idea.")
    assert not is_correct(question("what?", "a dog."), "a dog, but I am not sure")


def test_letter_of_a_missing_choice() -> None:
    three = ("a dog", "a cat", "a cow")
    assert [chosen_index(letter, three) for letter in "abcd"] == [0, 1, 2, None]
    assert chosen_index("C.", three) == 2
    assert chosen_index("ab", three) is None
    assert chosen_index("a", ("red", "blue")) == 0
    assert chosen_index("the a", three) is None  # only a letter alone is one


def test_first_of_several_choices_counts() -> None:
    assert chosen_index("blue rather than red", ("red", "blue")) == 1
    assert chosen_index("I see 3 of them", ("two", "three")) == 1


def test_openings_are_removed_unless_nothing_remains() -> None:
    assert normalise_text("I think it is red") == "red"
    assert normalise_text("I see") == "i see"
    assert normalise_text("The answer is twenty.") == "20"


def test_mentions_need_the_whole_answer() -> None:
    assert mentions("a red and white cup", "red and white")
    assert mentions("red", "red")
    assert not mentions("red", "red cup")
    assert not mentions("", "")


def test_the_first_yes_or_no_counts() -> None:
    assert yes_or_no("no, yes") is False
    assert yes_or_no("That is correct") is True
    assert yes_or_no("It isn't") is False


@pytest.mark.parametrize(
    ("answer", "expected"),
    [("three", True), ("12", True), ("no", True), ("none", True), ("three dogs", False),
     ("a", False), ("1234567", False)],
)  # fmt: skip
def test_is_count(answer: str, expected: bool) -> None:
    assert is_count(answer) is expected


def test_replies_are_correct_by_kind() -> None:
    assert is_correct(question("is it?", "yes, it is a dog."), "yes")
    assert not is_correct(question("is it?", "yes"), "perhaps")
    assert is_correct(question("how many?", "two", "three"), "there are 3")
    assert not is_correct(question("how many?", "two"), "four")
    chosen = question("what?", "red", choices=("red", "blue"))
    assert is_correct(chosen, "A")
    assert not is_correct(chosen, "B")
    assert is_correct(question("what?", "a dog"), "It is the dog.")
    assert not is_correct(question("what?", "a dog"), "a dog and a cat")
