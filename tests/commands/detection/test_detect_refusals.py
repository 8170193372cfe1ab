"""What `detect` and `--boxes auto` refuse, with one line that says what to do."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from helpers.hub_server import Hub
from regionqa.bundles.store import Bundle
from regionqa.detection import cards

if TYPE_CHECKING:
    from conftest import Command

Detector = Callable[[str], Path]
Tiny = Callable[[str], Bundle]


def refused(regionqa: "Command", *words: object) -> str:
    ran = regionqa(*words)
    assert (ran.status, ran.out) in ((1, ""), (2, ""))
    assert ran.err.startswith("regionqa: error: ") and ran.err.count("\n") == 1, ran.err
    return ran.err.removeprefix("regionqa: error: ").strip()


def test_without_a_detector_the_download_is_named(
    regionqa: "Command", hub: Hub, cat: Path, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = ("--model", tiny("levels").root)  # which has no detection head
    line = refused(regionqa, "caption", cat, *model, "--boxes", "auto")
    assert line.startswith("no object detector is on this machine; run: regionqa download rtdetr")
    with monkeypatch.context() as patch:
        patch.setattr(cards, "own_detector", lambda model: None)  # as if the starter had none
        assert refused(regionqa, "detect", cat) == line
    words = refused(regionqa, "ask", cat, "--find", "red cup", "what is this?")
    assert "regionqa download owlv2-base (620.0 MB, Apache-2.0)" in words
    named = refused(regionqa, "detect", cat, "--model", "yolos-tiny")
    assert named == "yolos-tiny: not downloaded yet; run: regionqa download yolos-tiny"
    assert hub.requests == []


def test_models_that_are_no_detectors(
    regionqa: "Command", hub: Hub, cat: Path, tiny_checkpoint: Callable[[str], Path], tiny: Tiny
) -> None:
    line = refused(regionqa, "detect", cat, "--model", tiny("levels").root)
    assert line.startswith("levels: is a model without a detector; known are rtdetrv2-r18")
    for name in ("gpt4roi-7b", "qwen3-vl-2b"):
        assert f"{name}: is a model without" in refused(regionqa, "detect", cat, "--model", name)
    line = refused(regionqa, "detect", cat, "--model", "yolo-tiny")
    assert line.startswith("yolo-tiny: no such detector; did you mean yolos-tiny?")
    line = refused(regionqa, "detect", cat, "--model", tiny_checkpoint("llava"))
    assert "says model_type 'llava', which is no object detector that is known" in line


def test_what_a_detector_does_not_know(
    regionqa: "Command", tiny_detector: Detector, cat: Path
) -> None:
    fixed = ("detect", cat, "--model", tiny_detector("yolos"))
    line = refused(regionqa, *fixed, "--only", "cats")
    assert line == "--only cats: did you mean cat? yolos knows person, cat, dog, cup, car"
    line = refused(regionqa, *fixed, "--find", "red cup")
    assert line.startswith("--find: yolos knows 5 classes and no others")
    opened = ("detect", cat, "--model", tiny_detector("owlv2"))
    assert "finds what is described in words; add --find" in refused(regionqa, *opened)
    long = refused(regionqa, *opened, "--find", "a cup that is much too long")
    assert "tokens, and this detector reads 16; say it in fewer words" in long
    text = ("detect", cat, "--model", tiny_detector("grounding-dino"))
    assert "a full stop" in refused(regionqa, *text, "--find", "a cup. a cat")
    many = refused(regionqa, *text, "--find", "a cup on the table", "--find", "a blue car")
    assert "this detector reads 24 in all" in many


def test_options_that_have_no_effect(
    regionqa: "Command", tiny_detector: Detector, cat: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    auto = ("caption", cat, "--boxes", f"auto:{tiny_detector('yolos')}")
    assert "--scale-boxes: has no effect on detected" in refused(regionqa, *auto, "--scale-boxes")
    assert "--box-units" in refused(regionqa, *auto, "--box-units", "fraction")
    box = ("caption", cat, "--box", "0,0,9,9")
    assert "--find: has no effect on boxes that are" in refused(regionqa, *box, "--find", "cup")
    assert refused(regionqa, "caption", cat, "--min-score", "0.5").startswith("--min-score: has no")
    for words in (("--find", "cup", "--only", "cat"), ("--format", "yolo"), ("--min-score", "2")):
        refused(regionqa, "detect", cat, *words)
    coco = ("--format", "coco", "--out", tmp_path / "x.json", "--resume")
    assert "use --format jsonl, which --boxes reads too" in refused(regionqa, "detect", cat, *coco)
    monkeypatch.chdir(tmp_path)
    Path("auto").write_text("{}")
    line = refused(regionqa, "caption", cat, "--boxes", "auto")
    assert "there is a file of this name; to read it, give its absolute path" in line


def test_a_detector_is_not_replaced(
    regionqa: "Command", tiny_detector: Detector, cat: Path
) -> None:
    config = tiny_detector("yolos") / "config.json"
    before = config.read_bytes()
    out = ("--out", config, "--overwrite")
    for words in (
        ("detect", cat, "--model", config.parent),
        ("caption", cat, "--boxes", f"auto:{config.parent}"),
    ):
        assert "is also read" in refused(regionqa, *words, *out)
    assert config.read_bytes() == before
