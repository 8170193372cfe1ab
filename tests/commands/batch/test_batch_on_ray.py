"""`regionqa batch` on a local Ray, in a process of its own."""

import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from PIL import Image

from helpers.tiny_models import tiny_bundle

if TYPE_CHECKING:
    from conftest import Command

pytest.importorskip("ray.data", exc_type=ImportError)
pytestmark = pytest.mark.slow


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    """A command line that describes 60 images with a tiny model on two actors."""
    tiny_bundle("levels", tmp_path)
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(60):
        Image.new("RGB", (40 + number, 50), (4 * number, 90, 20)).save(folder / f"{number}.png")
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    return [
        *(sys.executable, "-m", "regionqa", "batch", str(folder), str(tmp_path / "out")),
        *("--model", str(tmp_path / "levels"), "--device", "cpu", "--format", "jsonl"),
        *("--part-size", "8", "--box", "5,5,30,30", "--actors", "2"),
    ]


def written(folder: Path) -> list[str]:
    return sorted(line for path in folder.glob("part-*") for line in path.read_text().splitlines())


def test_answers_of_ray_are_those_of_caption(
    words: list[str], regionqa: "Command", tmp_path: Path
) -> None:
    ran = subprocess.run(words, capture_output=True, text=True, check=False)
    assert ran.returncode == 3, ran.stderr
    assert "1 error: " in ran.stderr
    one = regionqa(
        *("caption", tmp_path / "in", "--box", "5,5,30,30", "--device", "cpu"),
        *("--model", tmp_path / "levels", "--format", "jsonl"),
    )
    assert written(tmp_path / "out") == sorted(one.lines)
    first = min((tmp_path / "out").glob("part-*"))
    first.unlink()
    again = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (again.returncode, first.exists()) == (3, True)
    assert written(tmp_path / "out") == sorted(one.lines)


def test_a_killed_driver_leaves_whole_parts(words: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    child = subprocess.Popen(words, start_new_session=True, stderr=subprocess.DEVNULL)
    while child.poll() is None and not list(out.glob("part-*")):
        time.sleep(0.1)
    with suppress(ProcessLookupError):  # it has ended by itself
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    before = {path.name: path.read_bytes() for path in out.glob("part-*")}
    assert before
    ran = subprocess.run(words, capture_output=True, text=True, check=False)
    assert ran.returncode == 3, ran.stderr
    assert len(written(out)) == 61
    assert all((out / name).read_bytes() == content for name, content in before.items())


def test_a_model_that_cannot_be_loaded_is_one_line(words: list[str], tmp_path: Path) -> None:
    (weights,) = (tmp_path / "levels" / "llm").glob("*.safetensors")
    shutil.copy(tmp_path / "levels" / "card.toml", weights)
    ran = subprocess.run(words, capture_output=True, text=True, check=False)
    assert ran.returncode == 1
    assert ran.stderr.splitlines()[-1].startswith("regionqa: error: ")
    assert "Traceback" not in ran.stderr
    assert not list((tmp_path / "out").glob("part-*"))
