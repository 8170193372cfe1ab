"""Conventions of Florence-2, PaliGemma 2, Gemma 4 and LLaVA: prompts, coordinates, pixels."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from helpers.vlm.photos import blank, noise
from regionqa.backends.vlm.backend import EncodedVlmPrompt, VlmBackend
from regionqa.backends.vlm.processor import VlmProcessor
from regionqa.engine import Engine
from regionqa.errors import QuestionError
from regionqa.options import RegionWay
from regionqa.regions import Box, Region
from regionqa.requests import Request
from regionqa.vlm.cards import card_of_checkpoint, family_tables, shipped_vlm_card
from regionqa.vlm.messages import tell
from regionqa.vlm.region_images import make_image

SIZE, BOX = (500, 1000), Box(50, 200, 150, 400)
REGION_TOKENS = "<loc_100><loc_200><loc_300><loc_400>"
GEMMA_TURN = "<bos><|turn>user\n{question}<turn|>\n<|turn>model\n"
NO_THOUGHT = "<|channel>thought\n<channel|>"
DOCUMENTED = {
    # transformers, models/florence2/processing_florence2.py
    ("florence2", "What is this?"): f"<image><s>What is the region {REGION_TOKENS}?</s>",
    ("florence2", "<REGION_TO_DESCRIPTION>"):
        f"<image><s>What does the region {REGION_TOKENS} describe?</s>",
    ("florence2", "text"): f"<image><s>What text is in the region {REGION_TOKENS}?</s>",
    # the syntax of ai.google.dev/gemma/docs/paligemma; 1024 bins, y first
    ("paligemma", "What is <region1>?"):
        "<image><bos>answer en What is <loc0204><loc0102><loc0409><loc0307>?\n",
    # the example of the Gemma 4 post of the Hugging Face blog, turned into a question; y first
    ("gemma4", "What is inside <region1>?"): GEMMA_TURN.format(
        question='<|image|>What is inside the region {"box_2d": [200, 100, 400, 300]}?'),
    ("gemma4_unified", "What is inside <region1>?"): GEMMA_TURN.format(
        question='<|image|>What is inside the region {"box_2d": [200, 100, 400, 300]}?')
        + NO_THOUGHT,
    # fractions of the padded square: 250 pixels are added at the left
    ("llava", "Please provide a short description for this region: <region1>"):
        "USER: <image>\nPlease provide a short description for this region: "
        "[0.30, 0.20, 0.40, 0.40] ASSISTANT:",
    ("llava_onevision", "Please provide a short description for this region: <region1>"):
        "<|im_start|>user <image>\nPlease provide a short description for this region: "
        "[0.30, 0.20, 0.40, 0.40]<|im_end|><|im_start|>assistant\n",
}  # fmt: skip
"""Prompt about one box, told as coordinates, by family and question."""


@pytest.mark.parametrize(("family", "question"), DOCUMENTED)
def test_one_box_is_told_as_documented(
    family: str, question: str, tiny_checkpoint: Callable[[str], Path]
) -> None:
    folder = tiny_checkpoint(family)
    card = card_of_checkpoint(folder, family)
    processor = VlmProcessor(folder, card)
    request = Request("image", question, (Region(BOX),), blank(*SIZE))
    told = tell(card, request, RegionWay.coordinates, processor.resized)
    assert processor.render(told.messages) == DOCUMENTED[family, question]


def test_default_questions_of_florence_2_are_tasks(tiny_checkpoint: Callable[[str], Path]) -> None:
    card = card_of_checkpoint(tiny_checkpoint("florence2"), "florence")
    for question, regions, prompt in (
        (card.chat.image_question, (), "What does the image describe?"),
        (card.chat.region_question, (Region(BOX),),
         f"What does the region {REGION_TOKENS} describe?"),
    ):  # fmt: skip
        told = tell(card, Request("image", question, regions, blank(*SIZE)), None, lambda _: SIZE)
        assert told.messages[-1].parts[-1] == prompt


def test_tasks_of_florence_2_are_those_of_its_processor(
    tiny_checkpoint: Callable[[str], Path],
) -> None:
    folder = tiny_checkpoint("florence2")
    card = card_of_checkpoint(folder, "florence")
    processor = VlmProcessor(folder, card).processor
    known = processor.task_prompts_without_inputs | processor.task_prompts_with_input
    for task in card.chat.tasks:
        name = task.questions[0]
        assert known[name].replace("{input}", "{region}") == task.prompt
        assert processor.tasks_answer_post_processing_type[name] == "pure_text"


def test_what_florence_2_cannot_be_asked() -> None:
    card = shipped_vlm_card("florence-2-base-ft")
    region = Region(BOX)
    for regions, wanted in (
        ((region,), "about a region it can be asked 'category' or 'description' or 'text'"),
        ((), "about an image it can be asked 'caption' or 'detailed caption' or 'paragraph' or "
             "'text'"),
    ):  # fmt: skip
        request = Request("image", "is it for sale?", regions, blank(*SIZE))
        with pytest.raises(QuestionError) as caught:
            tell(card, request, None, lambda size: size)
        message = str(caught.value)
        assert "the model florence-2-base-ft takes no free questions" in message
        assert wanted in message
        assert message.endswith("choose another model: regionqa models list")
    request = Request("image", "what is this?", (region, region), blank(*SIZE))
    with pytest.raises(QuestionError, match=r"one at a time; ask about each \(--each\)"):
        tell(card, request, None, lambda size: size)


@pytest.mark.parametrize("name", ["llava-1.5-7b", "paligemma2-3b"])
def test_models_of_one_image_refuse_two_crops(name: str) -> None:
    card = shipped_vlm_card(name)
    two = (Region(BOX), Region(Box(0, 0, 20, 20)))
    request = Request("image", "what are they?", two, blank(*SIZE))
    with pytest.raises(
        QuestionError, match=f"the model {name} takes one at a time; ask about each"
    ):
        tell(card, request, RegionWay.crop_only, lambda size: size)
    assert len(tell(card, request, RegionWay.drawn, lambda size: size).images) == 1


NUMBERS = {
    "florence-2-base-ft": r"<loc_(\d+)><loc_(\d+)><loc_(\d+)><loc_(\d+)>",
    "paligemma2-3b": r"<loc(\d{4})><loc(\d{4})><loc(\d{4})><loc(\d{4})>",
    "gemma-4-e2b": r"\[(\d+), (\d+), (\d+), (\d+)\]",
    "llava-1.5-7b": r"\[([\d.]+), ([\d.]+), ([\d.]+), ([\d.]+)\]",
}


def written(name: str, size: tuple[int, int], box: Box) -> str:
    """The text of one box, told as coordinates."""
    card = shipped_vlm_card(name)
    question = card.chat.region_question
    request = Request("image", question, (Region(box),), blank(*size))
    text = tell(card, request, RegionWay.coordinates, lambda size: size).messages[-1].parts[-1]
    found = re.search(NUMBERS[name], str(text))
    assert found is not None
    return found[0]


@pytest.mark.parametrize(("name", "whole", "corner"), [
    ("florence-2-base-ft", "<loc_0><loc_0><loc_999><loc_999>",
     "<loc_998><loc_995><loc_999><loc_999>"),
    ("paligemma2-3b", "<loc0000><loc0000><loc1023><loc1023>",
     "<loc1018><loc1021><loc1023><loc1023>"),
    ("gemma-4-e2b", "[0, 0, 1000, 1000]", "[995, 998, 1000, 1000]"),
    ("llava-1.5-7b", "[0.00, 0.30, 1.00, 0.70]", "[0.99, 0.70, 1.00, 0.71]"),
])  # fmt: skip
def test_boxes_at_the_edges(name: str, whole: str, corner: str) -> None:
    assert written(name, (500, 200), Box(0, 0, 500, 200)) == whole
    assert written(name, (500, 200), Box(499, 199, 500, 200)) == corner


@st.composite
def images_and_boxes(draw: st.DrawFn) -> tuple[tuple[int, int], Box]:
    width, height = draw(st.integers(60, 900)), draw(st.integers(60, 900))
    x0, y0 = draw(st.integers(0, width - 2)), draw(st.integers(0, height - 2))
    box = Box(x0, y0, draw(st.integers(x0 + 1, width)), draw(st.integers(y0 + 1, height)))
    return (width, height), box


@given(images_and_boxes())
def test_bins_round_trip_through_independent_parsers(image: tuple[tuple[int, int], Box]) -> None:
    parser = pytest.importorskip("supervision.detection.vlm", reason="supervision is missing")
    size, box = image
    florence = written("florence-2-base-ft", size, box)
    (from_florence,), *_ = parser.from_florence_2({"<REGION_TO_CATEGORY>": f"it{florence}"}, size)
    (from_paligemma,), *_ = parser.from_paligemma(written("paligemma2-3b", size, box) + " it", size)
    gemma = [{"box_2d": json.loads(written("gemma-4-e2b", size, box)), "label": "it"}]
    (from_gemma,), *_ = parser.from_google_gemini_2_0(f"```json\n{json.dumps(gemma)}\n```", size)
    for got, bins in ((from_florence, 1000), (from_paligemma, 1024), (from_gemma, 1000)):
        for axis in range(4):  # rounded down to a bin, or to the nearest thousandth
            assert abs(got[axis] - box.xyxy[axis]) <= size[axis % 2] / bins + 1e-3


@given(images_and_boxes())
def test_bins_are_those_of_florence_2s_own_processor(image: tuple[tuple[int, int], Box]) -> None:
    from transformers.models.florence2.processing_florence2 import Florence2PostProcessor

    size, box = image
    own = Florence2PostProcessor.__new__(Florence2PostProcessor)
    own.quantize_bins = (1000, 1000)
    bins = own.quantize(torch.tensor([box.xyxy], dtype=torch.float64), size)[0].tolist()
    got = re.findall(r"\d+", written("florence-2-base-ft", size, box))
    for ours, theirs, axis in zip(map(int, got), bins, range(4), strict=True):
        exact = box.xyxy[axis] * 1000 / size[axis % 2]
        # theirs divides by a rounded number, which may fall just below a whole one
        assert ours == theirs or (exact == ours == theirs + 1)


def load(folder: Path, way: RegionWay | None = None) -> VlmBackend:
    backend = Engine.load(folder, device="cpu", way=way).backend
    assert isinstance(backend, VlmBackend)
    return backend


@pytest.mark.parametrize("shape", [(230, 140), (140, 230), (64, 64)])
@pytest.mark.parametrize(("family", "ways"), [
    ("florence2", (None,)), ("paligemma", (None, RegionWay.drawn)), ("llava", (None,)),
    ("llava_onevision", (RegionWay.coordinates, RegionWay.crop)), ("gemma4", (RegionWay.crop,)),
])  # fmt: skip
def test_pixels_are_those_of_the_processor_for_the_whole_prompt(
    family: str,
    ways: tuple[RegionWay | None, ...],
    shape: tuple[int, int],
    tiny_checkpoint: Callable[[str], Path],
) -> None:
    for way in ways:
        folder = tiny_checkpoint(family)
        card = card_of_checkpoint(folder, family)
        processor = VlmProcessor(folder, card)
        source = noise(*shape, 3)
        request = Request("image", "what is this?", (Region(Box(20, 30, 60, 50)),), source)
        told = tell(card, request, way, processor.resized)
        images = [make_image(part, source.load()) for part in told.images]
        alone = len(images) == 1 or not processor.counts_images
        ours = [processor.prepare(image, alone=alone).inputs for image in images]
        if card.images.square:  # the family's own image processor can pad by itself
            from transformers import LlavaImageProcessor

            settings = processor.processor.image_processor
            whole = LlavaImageProcessor(
                size=dict(settings.size), crop_size=dict(settings.crop_size), do_pad=True
            )([images], return_tensors="pt")
        else:
            whole = processor.processor.image_processor(
                [images], return_tensors="pt", **card.images.cpu
            )
        assert "pixel_values" in whole
        for name in whole.keys() & ours[0].keys() - {"batch_num_images"}:
            parts = torch.cat([each[name].flatten() for each in ours])
            assert torch.equal(parts, whole[name].flatten()), name


def test_region_at_the_side_of_a_wide_image_is_seen_by_llava(
    tiny_checkpoint: Callable[[str], Path],
) -> None:
    """The released processor would cut it off."""
    folder = tiny_checkpoint("llava")
    processor = VlmProcessor(folder, card_of_checkpoint(folder, "llava"))
    pixels = np.zeros((100, 400, 3), np.uint8)
    plain = processor.prepare(Image.fromarray(pixels)).inputs["pixel_values"]
    pixels[:, :60] = 255
    marked = processor.prepare(Image.fromarray(pixels)).inputs["pixel_values"]
    changed = (marked != plain).any(dim=1)[0]
    down, across = (torch.nonzero(changed)[:, axis] for axis in (0, 1))
    side = changed.shape[0]
    # 0 to 0.15 across and 0.375 to 0.625 down, as its coordinates say
    assert written("llava-1.5-7b", (400, 100), Box(0, 0, 60, 100)) == "[0.00, 0.38, 0.15, 0.62]"
    assert int(across.max()) <= 0.15 * side + 2
    assert 0.375 * side - 2 <= int(down.min()) <= int(down.max()) <= 0.625 * side + 2


@pytest.mark.parametrize("family", ["florence2", "paligemma"])
def test_batches_of_models_without_prefix_equal_single_prompts(
    family: str, tiny_checkpoint: Callable[[str], Path]
) -> None:
    backend = load(tiny_checkpoint(family))
    prompts = []
    for seed, shape in ((1, (200, 120)), (2, (90, 170))):
        source = noise(*shape, seed)
        for question, box in (("what is this?", Box(0, 0, 80, 80)), ("text", Box(1, 2, 30, 40))):
            request = Request("image", question, (Region(box),), source)
            (encoded,) = backend.encode(source, [backend.render(request, 6)])
            assert isinstance(encoded, EncodedVlmPrompt)
            prompts.append(encoded.prompt)
    assert {prompt.shared for prompt in prompts} == {0}
    assert len({len(prompt.ids) for prompt in prompts}) > 1
    together = backend.language.generate(prompts, 5)
    for prompt, answer in zip(prompts, together, strict=True):
        (single,) = backend.language.generate([prompt], 5)
        assert answer == single
        assert answer.confidence == pytest.approx(single.confidence, rel=1e-4)
    assert len({answer.ids for answer in together}) > 1


def test_choices_of_florence_2_are_scored_as_its_decoder_gives_them(
    tiny_checkpoint: Callable[[str], Path],
) -> None:
    backend = load(tiny_checkpoint("florence2"))
    source = noise(200, 120, 1)
    request = Request("image", "what is this?", (Region(Box(10, 20, 100, 110)),), source)
    (encoded,) = backend.encode(source, [backend.render(request, 6)])
    assert isinstance(encoded, EncodedVlmPrompt)
    choices = ["a cup", "a dog"]
    scores = backend.score(encoded, choices)
    processor, model = backend.processor.processor, backend.language.model
    text = processor.get_text_with_replacements(
        ["<image><s>What is the region <loc_50><loc_166><loc_500><loc_916>?</s>"],
        [encoded.images[0].text],
    )[0]
    inputs = processor.tokenizer(text, add_special_tokens=False, return_tensors="pt")
    for choice, score in zip(choices, scores, strict=True):
        answer = processor.tokenizer(f"</s><s>{choice}</s>", add_special_tokens=False)["input_ids"]
        ids = torch.tensor([answer])
        with torch.inference_mode():
            logits = model(
                input_ids=inputs["input_ids"],
                attention_mask=inputs["attention_mask"],
                pixel_values=backend.processor.prepare(source.load()).inputs["pixel_values"],
                decoder_input_ids=ids[:, :-1],
            ).logits
        logs = logits.double().log_softmax(-1).gather(2, ids[:, 1:, None])[0, :, 0]
        assert score == pytest.approx(float(logs[1:].sum()), rel=1e-4)  # <s> is forced


def test_thinking_is_off_where_templates_have_it() -> None:
    for family in ("gemma4", "gemma4_unified"):
        assert family_tables()[family]["chat"]["template_options"] == {"enable_thinking": False}
    assert family_tables()["gemma4_unified"]["onnx_vision"] is False
    assert shipped_vlm_card("gemma-4-e2b").regions.default is RegionWay.crop
