"""`models list`, `models recommend`, and the page with the table of models."""

import json
import re
import runpy
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from helpers.hub_server import Hub
from helpers.vlm.checkpoints import WRITERS
from regionqa.backends import chooser
from regionqa.backends.chooser import (
    FALLBACK,
    LARGEST_ON_CPU,
    Memories,
    fit,
    known_models,
    recommend,
)
from regionqa.bundles.store import published_cards, shipped_bundles, shipped_vlm_names
from regionqa.cli import models as command
from regionqa.runtime.devices import Device
from regionqa.vlm.cards import read_vlm_card, shipped_vlm_card
from regionqa.vlm.memory import needs_of_card, needs_of_checkpoint

if TYPE_CHECKING:
    from conftest import Command

GB = 10**9
DOCS = Path(__file__).parents[3] / "docs"


def machine(cpu: float | None, cuda: float | None = None) -> Memories:
    return {
        Device.cpu: None if cpu is None else int(cpu * GB),
        Device.cuda: None if cuda is None else int(cuda * GB),
    }


@pytest.fixture
def laptop(monkeypatch: pytest.MonkeyPatch) -> Memories:
    """A machine with 16 GB and no GPU, whatever this one is."""
    memories = machine(16)
    monkeypatch.setattr(chooser, "this_machine", lambda: memories)
    return memories


# -- the list --------------------------------------------------------------------------------------


def test_list_has_a_line_per_model(regionqa: "Command", hub: Hub, laptop: Memories) -> None:
    ran = regionqa("models", "list")
    assert (ran.status, ran.err) == (0, "")
    rows = {line.split("\t")[0]: line.split("\t") for line in ran.lines}
    assert list(rows) == [each.name for each in known_models(laptop)]
    assert set(rows) == {*shipped_bundles(), *published_cards(), *shipped_vlm_names()}
    assert {len(row) for row in rows.values()} == {9}
    assert rows["starter"][1:2] + rows["starter"][-2:] == ["39.9 MB", "measured", "ships"]
    assert rows["qwen3-vl-2b"][1::3] == ["4.3 GB", "fits", "not measured"]
    assert rows["qwen3-vl-2b"][5:7] == ["Apache-2.0", "coordinates, crop, crop-only, drawn"]
    assert rows["qwen3-vl-32b"][4] == "too large"
    assert hub.requests == []


def test_list_as_json_lines(regionqa: "Command", hub: Hub, laptop: Memories) -> None:
    records = [json.loads(line) for line in regionqa("models", "list", "-f", "jsonl").lines]
    by_name = {record["name"]: record for record in records}
    two = by_name["qwen3-vl-2b"]
    source = shipped_vlm_card("qwen3-vl-2b").source
    assert source is not None
    assert (two["download_bytes"], two["parameters"]) == (source.size, source.parameters)
    assert (two["default_way"], two["measured"], two["fits"]) == ("coordinates", None, True)
    assert two["setting"] == "--device cpu --dtype bfloat16"
    assert 2 * source.parameters * GB < two["memory_bytes"] < 16 * GB
    assert by_name["starter"]["measured"]
    assert {record["state"] for record in records} == {"ships", "not downloaded"}


@pytest.mark.parametrize(("columns", "headings"), [(80, 6), (160, 9)])
def test_table_at_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, hub: Hub,
    laptop: Memories, columns: int, headings: int,
) -> None:  # fmt: skip
    monkeypatch.setenv("COLUMNS", str(columns))
    choices = known_models(laptop)
    command.show_table(choices)
    heading, _, *lines = capsys.readouterr().out.splitlines()
    assert len(re.split(r"  +", heading.strip())) == headings
    assert all(len(line) <= columns for line in lines)
    assert {line.split()[0] for line in lines if line[0] != " "} >= {each.name for each in choices}
    licence = any("Apache-2.0" in line for line in lines)
    assert licence == (headings == 9)


# -- memory ----------------------------------------------------------------------------------------


def test_what_does_not_fit_is_offered_with_options_that_help() -> None:
    needs = needs_of_card(shipped_vlm_card("qwen3-vl-8b"))
    assert needs is not None
    assert fit(needs, machine(64, 24)).text == "fits"
    assert fit(needs, machine(64, 16)).text == "fits with --device cuda --quantize 8bit"
    assert fit(needs, machine(64, 6)).text == "fits with --device cpu --dtype bfloat16"
    assert fit(needs, machine(16)).text == "too large"
    assert fit(needs, machine(None)).text == "unknown"


@pytest.mark.parametrize("name", ["qwen3-vl-2b", "qwen3-vl-32b", "smolvlm2-500m"])
def test_estimate_by_the_card_counts_all_weights(name: str) -> None:
    card = shipped_vlm_card(name)
    needs = needs_of_card(card)
    assert needs is not None and card.source is not None
    counted = needs.matrices + needs.others + needs.encoders.weights
    assert counted == pytest.approx(card.source.parameters * 1e9, rel=1e-6)
    assert needs_of_card(replace(card, source=replace(card.source, parameters=0.0))) is None


def test_estimate_by_files_counts_all_weights(tmp_path: Path) -> None:
    """By the family's own module names, the encoder's share included."""
    from transformers import AutoModelForImageTextToText

    folder = WRITERS["qwen3_vl"](tmp_path / "tiny")
    model = AutoModelForImageTextToText.from_pretrained(folder)
    needs = needs_of_checkpoint(folder)
    vision = sum(weight.numel() for weight in model.model.visual.parameters())
    assert needs.encoders.weights == vision
    assert needs.matrices + needs.others + vision == model.num_parameters()
    assert (needs.text.layers, needs.text.key_width, needs.context) == (3, 16, 4096)


# -- the recommendation ----------------------------------------------------------------------------


def recommended(here: Memories) -> str:
    return recommend(known_models(here), here).name


@pytest.mark.parametrize(
    ("here", "name"),
    [
        (machine(4), FALLBACK),
        (machine(6), "smolvlm2-500m"),
        (machine(16), "qwen3-vl-2b"),
        (machine(64), "qwen3-vl-2b"),
        (machine(16, 8), "qwen3-vl-2b"),
        (machine(16, 16), "qwen3-vl-4b"),
        (machine(64, 24), "qwen3-vl-8b"),
        (machine(256, 140), "qwen3.5-35b-a3b"),
        (machine(64, 2), FALLBACK),
        (machine(None), FALLBACK),
    ],
)
def test_largest_recommended_model_that_fits(hub: Hub, here: Memories, name: str) -> None:
    assert recommended(here) == name


def test_recommendation_follows_the_documented_rule(hub: Hub) -> None:
    for gigabytes in range(4, 200, 7):
        for here in (machine(gigabytes), machine(32, gigabytes)):
            choices = known_models(here)
            chosen = recommend(choices, here)
            assert recommend(reversed(choices), here) == chosen
            if chosen.name == FALLBACK:
                continue
            assert chosen.recommended and chosen.memory and chosen.memory.fits
            assert here[Device.cuda] or (chosen.active or 0) <= LARGEST_ON_CPU
            for each in choices:
                if each.recommended and (each.parameters or 0) > (chosen.parameters or 0):
                    slow = not here[Device.cuda] and (each.active or 0) > LARGEST_ON_CPU
                    assert slow or (each.memory and not each.memory.fits)


def test_recommend_prints_the_name_and_the_next_commands(
    regionqa: "Command", hub: Hub, laptop: Memories
) -> None:
    ran = regionqa("models", "recommend")
    assert (ran.status, ran.out) == (0, "qwen3-vl-2b\n")
    reason, licence, *commands = ran.err.splitlines()
    assert reason.startswith("reason: the largest recommended model that fits: about 7.6 GB with ")
    assert reason.endswith("; nothing was measured on its weights")
    assert licence == "licence: Apache-2.0"
    assert commands == [
        "next: regionqa download qwen3-vl-2b",
        'next: regionqa ask IMAGE --model qwen3-vl-2b --box X0,Y0,X1,Y1 "what is this?"',
    ]


# -- the page --------------------------------------------------------------------------------------


def test_page_is_that_of_the_cards() -> None:
    """If this fails, run `make guide` and commit docs/guide/models.md."""
    page = (DOCS / "guide" / "models.md").read_text(encoding="utf-8")
    assert runpy.run_path(str(DOCS / "models_table.py"))["written"](page) == page


def test_example_of_a_card_is_valid(tmp_path: Path) -> None:
    page = (DOCS / "guide" / "models.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    path = tmp_path / "card.toml"
    path.write_text(example, encoding="utf-8")
    card = read_vlm_card(path)
    assert (card.name, card.regions.default, card.max_regions) == ("my-qwen", "drawn", 2)


def test_card_of_a_user_is_put_over_that_of_its_repository(tmp_path: Path) -> None:
    """LFM2.5-VL 3B reads thousandths, its family fractions; a new default must not change that."""
    own = shipped_vlm_card("lfm2.5-vl-3b")
    assert own.source is not None
    path = tmp_path / "card.toml"
    path.write_text(
        'kind = "vlm"\nname = "mine"\nfamily = "lfm2_vl"\nsummary = "s"\n'
        f'[source]\nrepo = "{own.source.repo}"\nlicence = "lfm1.0"\n'
        '[regions]\ndefault = "crop"\n'
    )
    card = read_vlm_card(path)
    assert (card.name, card.regions.default) == ("mine", "crop")
    assert card.regions.coordinates == own.regions.coordinates
