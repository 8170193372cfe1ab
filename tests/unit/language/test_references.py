"""Regions in texts: PVIT's notation becomes numbers and boxes; other spellings are refused."""

import pytest

from helpers.golden_weights import GoldenSet
from regionqa.errors import QuestionError
from regionqa.language.references import (
    inline_regions,
    number_regions,
    question_text,
    reference_problems,
)
from regionqa.regions import Box, BoxUnits


def test_regions_are_numbered_as_they_appear() -> None:
    texts, boxes = number_regions(
        [
            "Is <Region><L1><L2><L33><L44></Region> like <Region> <L5> <L6>\n<L70><L80> </Region>?",
            "And <Region><L1><L2><L33><L44></Region>?",
        ]
    )
    assert texts == ["Is <region1> like <region2>?", "And <region1>?"]
    assert [box.values for box in boxes] == [(1, 2, 33, 44), (5, 6, 70, 80)]


def test_boxes_are_per_mille_of_the_image() -> None:
    _, (box,) = number_regions(["<Region><L100><L250><L500><L1000></Region>"])
    assert box.units is BoxUnits.permille
    assert box.resolve(640, 480).box == Box(64, 120, 320, 480)


@pytest.mark.parametrize(
    "text",
    [
        "what is this?",
        "<Region><L1><L2><L3></Region>",
        "<Region><L1><L2><L3><L4>",
        "<Region><L1><L2><L3><L12345></Region>",
        "<region><L1><L2><L3><L4></region>",
        "<Region><L-1><L2><L3><L4></Region>",
    ],
)
def test_what_only_resembles_a_region_stays(text: str) -> None:
    assert number_regions([text]) == ([text], [])


def test_the_boxes_of_pvit(pvit: GoldenSet) -> None:
    for case in pvit.json("text.json")["inference"]:
        _, boxes = number_regions([case["query"]])
        found = [[value / 1000 for value in box.values] for box in boxes]
        assert found == list(map(list, dict.fromkeys(map(tuple, case["boxes"]))))


@pytest.mark.parametrize(
    "spelling",
    ["<Region 1>", "<region>", "<region_1>", "<region-1>", "< region1 >", "</region1>", "<REGION1>",
     "[region1]", "{region 1}", "<bbox>", "<box1>", "<roi 2>", "<|box_start|>", "<L100>"],
)  # fmt: skip
def test_another_spelling_of_a_region_is_a_problem(spelling: str) -> None:
    [problem] = reference_problems(f"is {spelling} on <region1>?", 2)
    assert f"holds {spelling!r}, which names no region; write <region1>" in problem


@pytest.mark.parametrize(
    "text",
    [
        "is <region1> on <region2>?",
        "the region 1 of [1]",
        "(region 1)",
        "a < b > c",
        "<p>",
        "[box]",
    ],
)
def test_words_are_no_region(text: str) -> None:
    assert list(reference_problems(text, 2)) == []


def test_a_region_that_was_not_given_is_a_problem() -> None:
    assert list(reference_problems("<region0> <region3>", 2)) == [
        "names <region0>, but 2 regions were given",
        "names <region3>, but 2 regions were given",
    ]


def test_regions_are_given_one_way() -> None:
    inline = "what is <Region><L1><L2><L33><L44></Region>?"
    texts, boxes = inline_regions([inline], with_boxes=False)
    assert (texts, len(boxes)) == (["what is <region1>?"], 1)
    for text, with_boxes in ((inline, True), (f"{inline} <region1>", False)):
        with pytest.raises(QuestionError, match="both inline and by number or box"):
            inline_regions([text], with_boxes=with_boxes)


def test_the_mark_of_the_image_is_removed() -> None:
    assert question_text("<image>\nwhat is this?") == "what is this?"
    assert question_text(" what? ") == " what? "
