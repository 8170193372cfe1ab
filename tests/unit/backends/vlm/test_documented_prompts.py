"""Prompts as the makers of each family document them, with one region."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.vlm.photos import blank
from regionqa.backends.vlm.processor import VlmProcessor
from regionqa.options import RegionWay
from regionqa.regions import Box, Region
from regionqa.requests import Request
from regionqa.vlm.card import VlmCard
from regionqa.vlm.cards import card_of_checkpoint, family_tables, make_card, shipped_vlm_card
from regionqa.vlm.coordinates import Size
from regionqa.vlm.messages import tell

THINKING_OFF = "<think>\n\n</think>\n\n"
GROUNDING = """When asked for bounding boxes for objects, return a valid JSON array.
Each array item must be an object with:
- image_id: the 0-based index of the image
- bbox_2d: [xmin, ymin, xmax, ymax] normalized integer coordinates in [0, 1000]
- label: a concise label you choose for the predicted object or region

Return one item per visible matching object or region. Return [] if none are visible."""


def rendered(folder: Path, card: VlmCard, size: Size, box: Box, question: str) -> str:
    """The prompt for a question about one box, in the card's default way."""
    processor = VlmProcessor(folder, card)
    request = Request("image", question, (Region(box),), blank(*size))
    return processor.render(tell(card, request, None, processor.resized).messages)


def chatml(*parts: str, answer: str = "") -> str:
    """A question and the beginning of an answer in ChatML."""
    return f"<|im_start|>user\n{''.join(parts)}<|im_end|>\n<|im_start|>assistant\n{answer}"


QWEN = "<|vision_start|><|image_pad|><|vision_end|>"
DOCUMENTED = {
    # the question of QwenLM/Qwen3-VL#1927; thousandths, on an image twice as high as wide
    "qwen3_vl": (
        (500, 1000), Box(37, 361, 162, 808), "What is inside <region1>?",
        chatml(QWEN, 'What is inside {"bbox_2d": [74, 361, 324, 808]}?'),
    ),
    "qwen3_5": (
        (500, 1000), Box(37, 361, 162, 808), "What is inside <region1>?",
        chatml(QWEN, 'What is inside {"bbox_2d": [74, 361, 324, 808]}?', answer=THINKING_OFF),
    ),
    # 1400 x 700 pixels are the largest within 1280 tokens of 28 x 28
    "qwen2_5_vl": (
        (2240, 1120), Box(160, 320, 480, 640), "What is inside <region1>?",
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        + chatml(QWEN, 'What is inside {"bbox_2d": [100, 200, 300, 400]}?'),
    ),
    # the sentence of OpenGVLab/InternVL#915
    "internvl": (
        (500, 1000), Box(50, 200, 150, 400), "What is it?",
        chatml("<IMG_CONTEXT>\n", "Answer the question according to the <ref>region</ref>"
               "<box>[[100, 200, 300, 400]]</box>. What is it?"),
    ),
    # two images in one message, as on the cards of SmolVLM2's checkpoints
    "smolvlm": (
        (500, 1000), Box(50, 200, 150, 400), "What is <region1>?",
        "<|im_start|>User:<image>Region 1 of the image, enlarged:<image>What is region 1?"
        "<end_of_utterance>\nAssistant:",
    ),
    # the native format of Liquid4All/leap-finetune's visual-grounding cookbook
    "lfm2_vl": (
        (500, 1000), Box(50, 200, 150, 400), "What is <region1>?",
        "<|startoftext|>" + chatml("<image>", 'What is {"bbox": [0.10, 0.20, 0.30, 0.40]}?'),
    ),
}  # fmt: skip
"""Size of the image, box, question and prompt by family."""


@pytest.mark.parametrize("family", DOCUMENTED)
def test_one_region_is_told_as_documented(
    family: str, tiny_checkpoint: Callable[[str], Path]
) -> None:
    size, box, question, prompt = DOCUMENTED[family]
    folder = tiny_checkpoint(family)
    assert rendered(folder, card_of_checkpoint(folder, family), size, box, question) == prompt


def test_3b_of_lfm2_5_vl_gets_thousandths_and_its_grounding_prompt(
    tiny_checkpoint: Callable[[str], Path],
) -> None:
    card = shipped_vlm_card("lfm2.5-vl-3b")
    box, question = Box(50, 200, 150, 400), "What is <region1>?"
    text = 'What is {"image_id": 0, "bbox_2d": [100, 200, 300, 400]}?'
    assert rendered(tiny_checkpoint("lfm2_vl"), card, (500, 1000), box, question) == (
        f"<|startoftext|><|im_start|>system\n{GROUNDING}<|im_end|>\n" + chatml("<image>", text)
    )


@pytest.mark.parametrize(("more", "less"), [
    ("qwen3_vl_moe", "qwen3_vl"), ("qwen3_5_moe", "qwen3_5"),
])  # fmt: skip
def test_mixtures_of_experts_have_the_conventions_of_their_family(more: str, less: str) -> None:
    assert family_tables()[more] == family_tables()[less]


def test_templates_that_can_think_are_told_not_to() -> None:
    off = {"enable_thinking": False}
    told = {family for family, table in family_tables().items()
            if table.get("chat", {}).get("template_options") == off}  # fmt: skip
    assert {"qwen3_5", "qwen3_5_moe"} <= told
    assert not {"qwen3_vl", "qwen2_5_vl"} & told


JSON_BOX = re.compile(r'\{[^{}]*"bbox(?:_2d)?": \[[^]]*\]\}')
TAGGED_BOX = re.compile(r"<box>\[(\[[^]]*\])\]</box>")
UNITS = {
    "qwen3-vl-2b": (1000, 1000), "qwen3.5-0.8b": (1000, 1000), "internvl3.5-1b": (1000, 1000),
    "lfm2.5-vl-450m": (1, 1), "lfm2.5-vl-3b": (1000, 1000), "qwen2.5-vl-7b": None,
}  # fmt: skip
"""What a whole image is in the numbers of each card; None: the resized image."""


@st.composite
def images_and_boxes(draw: st.DrawFn) -> tuple[Size, Box]:
    width, height = draw(st.integers(60, 900)), draw(st.integers(60, 900))
    x0, y0 = draw(st.integers(0, width - 2)), draw(st.integers(0, height - 2))
    box = Box(x0, y0, draw(st.integers(x0 + 1, width)), draw(st.integers(y0 + 1, height)))
    return (width, height), box


@pytest.mark.parametrize("name", UNITS)
@given(images_and_boxes())
def test_coordinates_round_trip_through_an_independent_parser(
    name: str, image: tuple[Size, Box]
) -> None:
    parser = pytest.importorskip("supervision.detection.vlm", reason="supervision is missing")
    size, box = image
    resized = (size[0] * 2, size[1] // 2)  # stands in for an image processor
    request = Request("image", "<region1>", (Region(box),), blank(*size))
    told = tell(shipped_vlm_card(name), request, RegionWay.coordinates, lambda _: resized)
    text = told.messages[-1].parts[-1]
    assert isinstance(text, str)
    if tagged := TAGGED_BOX.search(text):
        item = {"bbox_2d": json.loads(tagged[1])}
    else:
        (found,) = JSON_BOX.findall(text)
        item = json.loads(found)
        item["bbox_2d"] = item.pop("bbox", None) or item["bbox_2d"]
    whole = UNITS[name] or resized
    answer = json.dumps([{**item, "label": "it"}])
    (xyxy,), *_ = parser.from_qwen_2_5_vl(answer, whole, size)
    step = 0.01 if whole == (1, 1) else 1
    for axis, (got, wanted) in enumerate(zip(xyxy, box.xyxy, strict=True)):
        unit = step * size[axis % 2] / whole[axis % 2]
        small = (box.width, box.height)[axis % 2] < unit  # then it is written a step wide
        assert abs(got - wanted) <= (1.5 if small else 0.5) * unit + 1e-6


@pytest.mark.parametrize("size", [(200, 120), (90, 1000), (2240, 1120), (57, 57)])
def test_resized_size_is_that_of_the_processed_image(
    size: Size, tiny_checkpoint: Callable[[str], Path]
) -> None:
    folder = tiny_checkpoint("qwen2_5_vl")
    processor = VlmProcessor(folder, card_of_checkpoint(folder, "qwen2_5_vl"))
    _, down, across = processor.prepare(blank(*size).load()).inputs["image_grid_thw"][0].tolist()
    assert processor.resized(size) == (14 * across, 14 * down)


def test_models_that_read_no_coordinates_refuse_them() -> None:
    card = make_card({"name": "x", "family": "smolvlm", "summary": "x"}, "x")
    assert card.regions.default is RegionWay.crop
    assert RegionWay.coordinates not in card.regions.ways
