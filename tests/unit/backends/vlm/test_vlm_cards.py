"""Cards and family tables that ship with the package."""

import pytest

from helpers.vlm.checkpoints import WRITERS
from regionqa.errors import BundleError
from regionqa.vlm.cards import (
    card_of_repo,
    family_tables,
    make_card,
    shipped_vlm_card,
    shipped_vlm_names,
)

NAMES = shipped_vlm_names()


@pytest.mark.parametrize("name", NAMES)
def test_shipped_card_says_where_its_checkpoint_is_and_what_it_takes(name: str) -> None:
    card = shipped_vlm_card(name)
    source = card.source
    assert source is not None
    assert card.name == name
    assert source.licence
    assert card.good_at
    assert card_of_repo(source.repo.upper()) == card  # one card per repository
    per_weight = source.size / source.parameters / 1e9
    assert min(abs(per_weight - 2), abs(per_weight - 4)) < 0.6  # bytes


def test_families_have_checkpoints_to_be_tested_with() -> None:
    assert set(family_tables()) == set(WRITERS)
    assert {shipped_vlm_card(name).family for name in NAMES} <= set(WRITERS)


@pytest.mark.parametrize("family", family_tables())
def test_checkpoints_of_known_families_need_no_card(family: str) -> None:
    card = make_card({"name": "mine", "family": family, "summary": "mine"}, "here")
    assert card.regions.default in card.regions.ways
    assert card.regions.measured == ""


def test_unknown_families_are_refused() -> None:
    with pytest.raises(BundleError, match=r"family is 'blip9'; known are .*qwen3_vl"):
        make_card({"name": "mine", "family": "blip9", "summary": "mine"}, "here")
