"""Commands with models that take fixed tasks, no chat template, or one image only."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from PIL import Image

if TYPE_CHECKING:
    from conftest import Command

FEW = ("--max-new-tokens", "3", "--quiet")


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    Image.linear_gradient("L").resize((320, 160)).convert("RGB").save(path)
    return path


def test_florence_2_names_and_captions(
    regionqa: "Command", tiny_checkpoint: Callable[[str], Path], photo: Path
) -> None:
    model = ("--model", tiny_checkpoint("florence2"), "--show-prompt", *FEW)
    box = ("--box", "32,16,160,80")
    told = "<loc_100><loc_100><loc_500><loc_500>"
    for words, prompt in (
        (("ask", photo, *box, "what is this?"), f"What is the region {told}?"),
        (("caption", photo, *box), f"What does the region {told} describe?"),
        (("ask", photo, "<OCR>"), "What is the text in the image?"),
        (("caption", photo), "What does the image describe?"),
    ):
        ran = regionqa(*words, *model)
        assert (ran.status, len(ran.lines)) == (0, 1)
        assert f"  <image><s>{prompt}</s>\n" in ran.err


def test_florence_2_takes_no_free_questions(
    regionqa: "Command", tiny_checkpoint: Callable[[str], Path], photo: Path
) -> None:
    model = ("--model", tiny_checkpoint("florence2"), *FEW)
    boxes = ("--box", "32,16,160,80", "--box", "0,0,20,20")
    ran = regionqa("ask", photo, *boxes[:2], "is it for sale?", *model)
    assert (ran.status, ran.out) == (3, "")
    (line,) = ran.err.splitlines()
    assert "takes no free questions; about a region it can be asked 'category' or" in line
    assert "regionqa models list" in line
    ran = regionqa("ask", photo, *boxes, "what is this?", *model)
    assert (ran.status, ran.out) == (3, "")
    (line,) = ran.err.splitlines()
    assert "ask about fewer, or about each (--each)" in line
    ran = regionqa("ask", photo, *boxes, "what is this?", "--each", *model)
    assert (ran.status, len(ran.lines)) == (0, 2)
    ran = regionqa("ask", photo, *boxes[:2], "what is this?", "--way", "crop", *model)
    assert (ran.status, ran.out) == (2, "")
    assert "is told regions by coordinates; choose one of these, or another model" in ran.err


def test_florence_2_chooses_among_answers(
    regionqa: "Command", tiny_checkpoint: Callable[[str], Path], photo: Path
) -> None:
    ran = regionqa("ask", photo, "--box", "32,16,160,80", "what is this?", "--choices", "cup,dog",
                   "--format", "jsonl", "--model", tiny_checkpoint("florence2"))  # fmt: skip
    assert ran.status == 0
    assert json.loads(ran.out)["answer"] in ("cup", "dog")


def test_paligemma_is_asked_without_a_chat_template(
    regionqa: "Command", tiny_checkpoint: Callable[[str], Path], photo: Path
) -> None:
    model = ("--model", tiny_checkpoint("paligemma"), *FEW)
    ran = regionqa("ask", photo, "--box", "32,16,160,80", "what is this?", "--show-prompt", *model)
    assert ran.status == 0
    told = "<loc0102><loc0102><loc0512><loc0512>"
    assert f"  <image><bos>answer en {told} what is this?\n" in ran.err
    ran = regionqa("ask", photo, "what is at <loc0100>?", *model)
    assert (ran.status, ran.out) == (3, "")
    assert "'<loc0100>', which is a control token of the model" in ran.err


def test_models_of_one_image_are_told_two_regions_by_coordinates_only(
    regionqa: "Command", tiny_checkpoint: Callable[[str], Path], photo: Path
) -> None:
    words = ("ask", photo, "--box", "0,0,64,160", "--box", "160,0,320,160",
             "is <region1> brighter than <region2>?",
             "--model", tiny_checkpoint("llava"), *FEW)  # fmt: skip
    ran = regionqa(*words, "--show-prompt")
    assert ran.status == 0
    assert "is [0.00, 0.25, 0.20, 0.75] brighter than [0.50, 0.25, 1.00, 0.75]?" in ran.err
    ran = regionqa(*words, "--way", "crop-only")
    assert (ran.status, ran.out) == (3, "")
    assert "2 regions told by crop-only are as many images" in ran.err


def test_the_demo_says_that_questions_failed(
    regionqa: "Command", tiny_checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    ran = regionqa("demo", "--model", tiny_checkpoint("florence2"), "--out", tmp_path / "demo")
    assert ran.status == 3
    assert "takes no free questions" in ran.out
