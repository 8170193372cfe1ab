"""PVIT's inline notation of regions."""

import pytest

from helpers.golden_weights import GoldenSet
from regionqa.data.conversations import number_regions
from regionqa.regions import Box, BoxUnits


def test_regions_are_numbered_in_order() -> None:
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
def test_similar_texts_are_kept(text: str) -> None:
    assert number_regions([text]) == ([text], [])


def test_pvit_boxes(pvit: GoldenSet) -> None:
    for case in pvit.json("text.json")["inference"]:
        _, boxes = number_regions([case["query"]])
        found = [[value / 1000 for value in box.values] for box in boxes]
        assert found == list(map(list, dict.fromkeys(map(tuple, case["boxes"]))))
