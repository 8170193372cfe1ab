"""What is checked before 27 GB of a published model are fetched, and what is left in the cache.

The Hub is a stand-in on loopback; the client is the real one.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest
import torch
from huggingface_hub import constants

from helpers.hub_server import Hub
from helpers.published_models import BROKEN, REPOS, Published, publish
from regionqa.bundles.store import open_bundle

if TYPE_CHECKING:
    from conftest import Command


def fetched_weights(hub: Hub) -> list[str]:
    """Paths of the weights whose content was asked for."""
    asked = [one.path for one in hub.requests if one.method == "GET" and "/resolve/" in one.path]
    return [path for path in asked if path.endswith((".bin", ".safetensors", ".model"))]


def test_a_closed_base_refuses_before_the_first_byte_and_names_its_mirror(
    hub: Hub, regionqa: "Command", gpt4roi_files: Published
) -> None:
    publish(hub, gpt4roi_files)
    hub.repos[REPOS["base"]].gated = True
    ran = regionqa("download", "gpt4roi-7b")
    assert ran.status == 1
    assert f"{REPOS['base']}: its owner asks everyone to accept terms first (401)" in ran.err
    del hub.repos[REPOS["base"]]
    gone = regionqa("download", "gpt4roi-7b")
    assert gone.status == 1
    for each in (ran, gone):
        assert each.err.splitlines()[-1].endswith(
            "; the same weights are in baffo32/decapoda-research-llama-7B-hf: --base OWNER/NAME"
        )
    assert fetched_weights(hub) == []


def saved_page(file: Path) -> None:
    file.write_bytes(b"<!DOCTYPE html>")


def lose_projection(file: Path) -> None:
    content = torch.load(file, weights_only=True)
    del content["model"]["backbone.attnpool.c_proj.bias"]
    torch.save(content, file)


def other_network(file: Path) -> None:
    torch.save({"model": {"visual.conv1.weight": torch.zeros(3)}}, file)


def training_state(file: Path) -> None:
    torch.save({"model": {}, "args": Path("an object")}, file)


UNFIT: dict[Callable[[Path], None], str] = {
    saved_page: "cannot be read as a checkpoint of torch",
    lose_projection: "backbone.attnpool.c_proj.bias is missing",
    other_network: "holds no backbone.* but visual.*",
    training_state: "holds a Python object (pathlib.",
}


@pytest.mark.parametrize("change", UNFIT, ids=lambda change: change.__name__)
def test_a_wrong_file_of_regionclip_is_told_before_the_first_byte(
    hub: Hub,
    regionqa: "Command",
    pvit_files: Published,
    tmp_path: Path,
    change: Callable[[Path], None],
) -> None:
    publish(hub, pvit_files)
    assert pvit_files.region is not None
    file = Path(shutil.copy(pvit_files.region, tmp_path / "mine.pth"))
    change(file)
    ran = regionqa("download", "pvit-7b", "--region", file)
    assert ran.status == 1
    assert ran.err.splitlines()[-1].startswith(f"regionqa: error: {file}: {UNFIT[change]}")
    assert fetched_weights(hub) == []


def test_a_part_of_the_wrong_kind_on_this_machine_is_told_before_the_first_byte(
    hub: Hub, regionqa: "Command", gpt4roi_files: Published, tmp_path: Path
) -> None:
    publish(hub, gpt4roi_files)
    for option, message in (("--vision", "no config.json"), ("--base", "has no weights")):
        ran = regionqa("download", "gpt4roi-7b", option, tmp_path)
        assert ran.status == 1
        assert message in ran.err.splitlines()[-1]
    assert fetched_weights(hub) == []


def test_a_disk_too_small_for_all_parts_is_told_before_the_first_byte(
    hub: Hub, regionqa: "Command", gpt4roi_files: Published, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(hub, gpt4roi_files)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=4 * 10**9))
    ran = regionqa("download", "gpt4roi-7b")
    assert ran.status == 1
    assert "gpt4roi-7b: the disk is too small: 4.0 GB are needed, 4.0 GB are free in " in ran.err
    assert fetched_weights(hub) == []


def test_the_cache_is_cleaned_of_every_revision_of_the_delta(
    hub: Hub, regionqa: "Command", gpt4roi_files: Published
) -> None:
    publish(hub, gpt4roi_files)
    delta = REPOS["gpt4roi-7b"]
    hub.break_after(delta, BROKEN, 5_000, times=99)
    assert regionqa("download", "gpt4roi-7b").status == 1
    hub.mend(delta)
    hub.add(delta, hub.files(delta) | {"generation_config.json": b"{}"})
    assert regionqa("download", "gpt4roi-7b").status == 0
    assert not list(Path(constants.HF_HUB_CACHE).glob("models--shilongz--*"))


@pytest.mark.parametrize("name", ["gpt4roi", "GPT4RoI-7b", "gpt4roi_7b"])
def test_a_misspelt_name_suggests_the_right_one(hub: Hub, regionqa: "Command", name: str) -> None:
    for words in (
        ("download", name),
        ("models", "show", name),
        ("caption", "x.png", "--model", name),
    ):
        ran = regionqa(*words)
        assert ran.status == 1
        line = f"regionqa: error: {name}: no such model; did you mean gpt4roi-7b? Shipped are: "
        assert ran.err.startswith(line)
        assert ran.err.count("\n") == 1
    assert not hub.requests


def test_what_ships_with_the_package_needs_no_download(hub: Hub, regionqa: "Command") -> None:
    ran = regionqa("download", "starter")
    assert ran.status == 0
    assert open_bundle(Path(ran.out.strip())).card.name == "starter"
    assert ran.err == "starter: ships with regionqa; there is nothing to download\n"
    assert not hub.requests
