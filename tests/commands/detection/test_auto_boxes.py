"""`--boxes auto` in ask and caption, and the walk from detect to caption."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from regionqa.engine import Engine

if TYPE_CHECKING:
    from conftest import Command

Detector = Callable[[str], Path]
FEW = ("--min-score", "0.1", "--max-boxes", "2")


def regions(line: str) -> list[tuple[list[float], str]]:
    return [(each["box"], each["label"]) for each in json.loads(line)["regions"]]


def test_boxes_are_detected_for_captions(
    regionqa: "Command", tiny_detector: Detector, photos: Path, tmp_path: Path,
    shared_engine: Engine,
) -> None:  # fmt: skip
    model = tiny_detector("yolos")
    found = regionqa("detect", photos, "--model", model, *FEW, "--format", "jsonl")
    auto = ("--boxes", f"auto:{model}", *FEW, "--format", "jsonl")
    captions = regionqa("caption", photos, *auto)
    assert (captions.status, len(captions.lines)) == (0, 6), captions.err
    assert [regions(line)[0] for line in captions.lines] == [
        region for line in found.lines for region in regions(line)
    ]
    piped = regionqa("caption", "-", "--format", "jsonl", stdin=found.out)
    assert (piped.status, piped.lines) == (0, captions.lines)
    (tmp_path / "boxes.jsonl").write_text(found.out)
    read = regionqa("caption", photos, "--boxes", tmp_path / "boxes.jsonl", "--format", "jsonl")
    assert read.lines == captions.lines


def test_questions_are_about_all_detected_boxes(
    regionqa: "Command", tiny_detector: Detector, cat: Path, shared_engine: Engine
) -> None:
    auto = ("--boxes", f"auto:{tiny_detector('yolos')}", *FEW)
    both = regionqa("ask", cat, "is <region1> larger than <region2>?", *auto, "--format", "jsonl")
    assert both.status == 0, both.err
    assert len(regions(both.lines[0])) == 2
    each = regionqa("ask", cat, "what is this?", "--each", *auto)
    assert (each.status, len(each.lines)) == (0, 2)
    assert each.lines[0].split("\t")[0] == str(cat)
    phrase = ("--find", "cup", "--boxes", f"auto:{tiny_detector('owlv2')}", "--max-boxes", "1")
    (line,) = regionqa("ask", cat, "what is this?", *phrase, "--format", "jsonl").lines
    assert [label for _, label in regions(line)] == ["cup"]


def test_images_without_boxes(
    regionqa: "Command", tiny_detector: Detector, photos: Path, shared_engine: Engine
) -> None:
    auto = ("--boxes", f"auto:{tiny_detector('yolos')}", "--min-score", "1")
    captions = regionqa("caption", photos, *auto)
    assert (captions.status, captions.out) == (0, "")
    assert "found nothing in 3 images, so nothing was asked about them" in captions.err
    asked = regionqa("ask", photos, "what is this?", *auto)
    assert (asked.status, asked.out) == (3, "")
    assert asked.err.count("found nothing to ask about; lower --min-score") == 3


def test_a_run_with_detected_boxes_is_resumed(
    regionqa: "Command", tiny_detector: Detector, photos: Path, tmp_path: Path,
    shared_engine: Engine,
) -> None:  # fmt: skip
    out = tmp_path / "out.jsonl"
    auto = ("--boxes", f"auto:{tiny_detector('yolos')}", *FEW)
    words = ("caption", photos, *auto, "--format", "jsonl", "--out", out)
    assert regionqa(*words).status == 0
    whole = out.read_bytes()
    out.write_bytes(b"".join(whole.splitlines(keepends=True)[:4]))
    assert regionqa(*words, "--resume").status == 0
    assert out.read_bytes() == whole
