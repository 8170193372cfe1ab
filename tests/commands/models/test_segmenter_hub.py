"""Segmenters of the Hub as a user has them: downloaded, exported, and used offline."""

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from huggingface_hub import constants

from helpers.hub_server import Hub

if TYPE_CHECKING:
    from conftest import Command

NAME, REPO = "sam2.1-tiny", "facebook/sam2.1-hiera-tiny"


def test_download_and_point_offline(
    regionqa: "Command", hub: Hub, tiny_segmenter: Path, toy: Path, cat: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    for repo in (REPO, "ann/mine"):
        hub.add(repo, tiny_segmenter, licence="apache-2.0")
    point = ("ask", cat, "what is this?", "--model", toy, "--point", "90,80", "--format", "jsonl")
    early = regionqa(*point, "--segmenter", NAME)
    assert early.status == 1 and f"not downloaded yet; run: regionqa download {NAME}" in early.err
    planned = regionqa("download", NAME, "--dry-run")
    assert planned.status == 0
    assert planned.lines[-1].endswith(f"ask IMAGE --point X,Y --segmenter {NAME} QUESTION")
    ran = regionqa("download", NAME)
    licence, exporting, *compared = ran.err.splitlines()
    assert (ran.status, licence) == (0, f"licence of {REPO}: apache-2.0")
    assert exporting == f"exporting the segmenter {NAME} to ONNX"
    assert [line.partition(":")[0] for line in compared] == [f"segmenter {NAME}"] * 3
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    asked = len(hub.requests)
    found = regionqa(*point)  # the default: it is the only one that is here
    assert found.status == 0 and '"mask"' in found.out, found.err
    for segmenter in (NAME, REPO, ran.lines[0]):
        assert regionqa(*point, "--segmenter", segmenter).out == found.out
    assert len(hub.requests) == asked
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    fetched = regionqa(*point, "--segmenter", "ann/mine")
    assert fetched.out == found.out  # fetched on first use, as other models are
