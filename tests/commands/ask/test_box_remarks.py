"""What a box file holds beside boxes is told on stderr, once, and never asked about."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from PIL import Image

if TYPE_CHECKING:
    from conftest import Command

SHAPES = [
    {"label": "tip", "shape_type": "point", "points": [[6, 6]]},
    {"label": "blob", "shape_type": "rectangle", "points": [[10, 10], [90, 90]]},
]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with a.jpg."""
    Image.linear_gradient("L").resize((100, 100)).save(tmp_path / "a.jpg")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "l.json").write_text(json.dumps({"imagePath": "a.jpg", "shapes": SHAPES}))
    return tmp_path


TOLD = "regionqa: warning: l.json: points left out: 1, at shapes[0] (point) of l.json\n"


def test_caption_tells_what_it_leaves_out(regionqa: "Command", folder: Path) -> None:
    words = ("caption", "a.jpg", "--boxes", "l.json", "--max-new-tokens", 2, "--device", "cpu")
    ran = regionqa(*words)
    assert (ran.status, ran.err, len(ran.lines)) == (0, TOLD, 1)
    assert regionqa(*words, "--quiet").err == ""


def test_data_commands_tell_what_they_leave_out(regionqa: "Command", folder: Path) -> None:
    ran = regionqa("data", "convert", "l.json", "--out", "mine.jsonl")
    assert (ran.status, ran.err) == (0, TOLD)
    ran = regionqa("data", "check", "l.json")
    assert (ran.status, ran.err) == (0, TOLD)
    assert ["annotations", "left", "out", "1"] in [line.split() for line in ran.lines]
