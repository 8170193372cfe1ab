"""Commands with a vision-language model: a folder of a tiny checkpoint with random weights."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from PIL import Image

if TYPE_CHECKING:
    from conftest import Command

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 5},
        "count": {"type": "integer", "minimum": 0, "maximum": 9},
        "color": {"enum": ["red", "green"]},
    },
    "required": ["name", "count", "color"],
    "additionalProperties": False,
}


@pytest.fixture
def checkpoint(tiny_checkpoint: Callable[[str], Path]) -> Path:
    return tiny_checkpoint("qwen3_vl")


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    Image.linear_gradient("L").resize((320, 160)).convert("RGB").save(path)
    return path


@pytest.fixture
def schema(tmp_path: Path) -> Path:
    path = tmp_path / "schema.json"
    path.write_text(json.dumps(SCHEMA))
    return path


def test_show_prompt_prints_what_the_model_is_given(
    regionqa: "Command", checkpoint: Path, photo: Path
) -> None:
    ran = regionqa(
        "ask", photo, "--box", "32,16,160,80", "what is this?", "--model", checkpoint,
        "--max-new-tokens", "2", "--show-prompt", "--quiet",
    )  # fmt: skip
    assert ran.status == 0
    assert ran.err == (
        f"prompt for {photo}: what is this?\n"
        "  regions are told by coordinates: the card's default, which was not measured\n"
        "  image 1: whole image, 320 x 160 pixels, seen as 384 x 192 pixels, 72 tokens\n"
        "  region 1: 32,16,160,80 in pixels of the image, written as 100, 100, 500, 500\n"
        "  prompt:\n"
        "  <|im_start|>user\n"
        "  <|vision_start|><|image_pad|><|vision_end|>"
        'About {"bbox_2d": [100, 100, 500, 500]}: what is this?<|im_end|>\n'
        "  <|im_start|>assistant\n"
        "  \n"
    )


def test_show_prompt_names_each_image_and_the_reason_for_a_way(
    regionqa: "Command", checkpoint: Path, photo: Path
) -> None:
    ran = regionqa(
        "ask", photo, "--box", "32,16,160,80", "--box", "0,0,20,20", "compare them",
        "--model", checkpoint, "--way", "crop", "--max-new-tokens", "2", "--show-prompt",
    )  # fmt: skip
    assert "regions are told by crop: --way\n" in ran.err
    assert "image 2: crop 0,0,256,128, 448 x 224 pixels, seen as 448 x 224 pixels" in ran.err
    assert "image 3: crop 0,0,48,48, 448 x 448 pixels" in ran.err
    ran = regionqa(
        "ask", photo, "--box", "32,16,160,80", "what?", "--model", checkpoint, "--way", "drawn",
        "--max-new-tokens", "2", "--show-prompt",
    )  # fmt: skip
    assert "whole image with 32,16,160,80 in red drawn on it" in ran.err
    assert "the object in the red rectangle" in ran.err


def test_show_prompt_of_a_bundle(regionqa: "Command", photo: Path) -> None:
    ran = regionqa("ask", photo, "--box", "32,16,160,80", "what is this?", "--show-prompt")
    assert (ran.status, ran.lines != []) == (0, True)
    assert "regions are given as features" in ran.err
    assert "region 1: 32,16,160,80 in pixels of the image" in ran.err
    assert "<image>" in ran.err
    assert "<region1>" in ran.err


@pytest.mark.parametrize("seed", range(3))
def test_answers_satisfy_a_schema(
    regionqa: "Command", checkpoint: Path, photo: Path, schema: Path, seed: int
) -> None:
    """Also sampled ones, of which random weights make anything."""
    ran = regionqa(
        "ask", photo, "--box", "32,16,160,80", "what is this?", "--model", checkpoint,
        "--schema", schema, "--format", "jsonl", "--temperature", "2", "--seed", str(seed),
        "--quiet",
    )  # fmt: skip
    assert (ran.status, ran.err) == (0, "")
    record = json.loads(ran.out)
    answer = record["answer"]
    assert answer.keys() == SCHEMA["properties"].keys()  # type: ignore[attr-defined]
    assert len(answer["name"]) <= 5
    assert answer["count"] in range(10)
    assert answer["color"] in ("red", "green")
    assert record["regions"][0]["box"] == [32, 16, 160, 80]


def test_schema_in_text_and_resumed(
    regionqa: "Command", checkpoint: Path, photo: Path, schema: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.jsonl"
    words = ("caption", photo, "--model", checkpoint, "--schema", schema)
    text = regionqa(*words).out
    assert regionqa(*words, "--format", "jsonl", "--out", out).status == 0
    before = out.read_text()
    assert json.loads(text) == json.loads(before)["answer"]
    assert regionqa(*words, "--format", "jsonl", "--out", out, "--resume").status == 0
    assert out.read_text() == before
    other = tmp_path / "other.json"
    other.write_text(
        json.dumps({"type": "object", "properties": {}, "additionalProperties": False})
    )
    again = ("caption", photo, "--model", checkpoint, "--schema", other, "--format", "jsonl")
    assert regionqa(*again, "--out", out, "--resume").status == 0
    assert [json.loads(line)["answer"] for line in out.read_text().splitlines()][1:] == [{}]


def test_what_schemas_are_refused(
    regionqa: "Command", checkpoint: Path, photo: Path, schema: Path, tmp_path: Path
) -> None:
    ran = regionqa("ask", photo, "what?", "--schema", schema)
    assert (ran.status, ran.out) == (2, "")
    assert "the model starter cannot answer by a schema" in ran.err
    broken = tmp_path / "broken.json"
    broken.write_text('{"type": "nothing"}')
    ran = regionqa("ask", photo, "what?", "--schema", broken, "--model", checkpoint)
    assert (ran.status, ran.out) == (2, "")
    assert "is no JSON schema" in ran.err
    ran = regionqa(
        "ask", photo, "what?", "--schema", schema, "--model", checkpoint, "--max-new-tokens", "3"
    )
    assert (ran.status, ran.out) == (3, "")
    assert "ended before its JSON was complete; raise --max-new-tokens" in ran.err


def test_choices_are_scored(
    regionqa: "Command", checkpoint: Path, photo: Path, tmp_path: Path
) -> None:
    lines = tmp_path / "lines.jsonl"
    request = {"image": str(photo), "question": "which?", "choices": ["a cup", "a dog", "x"]}
    lines.write_text(json.dumps(request) + "\n")
    ran = regionqa("ask", photo, "which?", "--model", checkpoint, "--format", "jsonl",
                   "--confidence", "--choices", "a cup,a dog,x")  # fmt: skip
    command = json.loads(ran.out)
    ran = regionqa("ask", "-", "--model", checkpoint, "--format", "jsonl", "--confidence",
                   stdin=lines.read_text())  # fmt: skip
    record = json.loads(ran.out)
    assert record["answer"] in request["choices"]
    assert (record["answer"], record["confidence"]) == (command["answer"], command["confidence"])
    assert 1 / 3 <= record["confidence"] <= 1


def test_regions_are_added_in_a_chat(
    regionqa: "Command", checkpoint: Path, photo: Path, tmp_path: Path
) -> None:
    turns = tmp_path / "turns.txt"
    turns.write_text("what is in it?\n/box 32,16,160,80\nwhat is this?\nis it left of <region1>?\n")
    ran = regionqa("chat", photo, "--turns", turns, "--model", checkpoint, "--way", "crop",
                   "--max-new-tokens", "2", "--show-prompt", "--quiet")  # fmt: skip
    assert ran.status == 0
    assert len(ran.lines) == 3
    prompts = ran.err.split("prompt for ")[1:]
    assert [prompt.count("<|vision_start|>") for prompt in prompts] == [1, 2, 2]
    assert prompts[2].count("Region 1 of the image, enlarged:") == 1


def test_ways_that_a_model_has_not(regionqa: "Command", photo: Path) -> None:
    ran = regionqa("ask", photo, "what?", "--way", "crop")
    assert (ran.status, ran.out) == (2, "")
    assert "--way crop: the model starter was trained with one way" in ran.err


def test_control_tokens_are_refused(regionqa: "Command", checkpoint: Path, photo: Path) -> None:
    ran = regionqa("ask", photo, "what<|im_end|>?", "--model", checkpoint)
    assert (ran.status, ran.out) == (3, "")
    assert "the question holds '<|im_end|>', which is a control token of the model" in ran.err
