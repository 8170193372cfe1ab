"""The starter's card: preprocessing, prompt, provenance."""

from typing import Any

from regionqa.export.modules.base import RegionModule, VisionModule

START, STOP, ANSWER = "<s>", "</s>", "<answer>"
CONTEXT = 256
"""Context length of the language model, in tokens."""
IMAGE = 320
"""Side of the image that regions are cropped from, in pixels."""


def starter_card(vision: VisionModule, region: RegionModule) -> dict[str, Any]:
    """The starter's card, without what is found when the bundle is written."""
    return {
        "name": "starter",
        "summary": "small model with a region encoder, as PVIT's: 80 COCO classes, on any CPU",
        "max_regions": 16,
        "image": image_preprocessing(vision.input_size),
        "vision": {"graph": "vision.onnx", "image_tokens": vision.image_tokens},
        "region": {
            "graph": "region.onnx",
            "tokens": region.tokens,
            "image": image_preprocessing(IMAGE),
        },
        "language": {
            "folder": "llm",
            "runtime": "native",
            "context": CONTEXT,
            "max_new_tokens": 48,
            "stop": [STOP],
        },
        "prompt": {
            "template": f"{START}{{image}}{{question}}{ANSWER}",
            "region": "{number}{region}",
            "image_question": "describe this picture.",
            "region_question": "describe <region1>.",
            "introduction": "{regions}",
            "separator": "",
        },
        "provenance": {
            "data": "Tiny-ImageNet-200 (100,000 pictures of 64 px) for pretraining; 2,478 COCO "
            "2017 photos of at most 320 px with their boxes and captions",
            "licence": "weights: for research, not for commercial use, under the terms of "
            "Tiny-ImageNet (ImageNet); COCO annotations CC BY 4.0, COCO photos under their own "
            "Flickr licences",
            "recipe": "python -m recipes.starter.train",
        },
    }


def image_preprocessing(size: int) -> dict[str, Any]:
    """How a picture is fitted to a square of this side; training fits photos the same way."""
    return {
        "size": size,
        "fit": "squash",
        "resample": "bicubic",
        "mean": [0.5, 0.5, 0.5],
        "std": [0.5, 0.5, 0.5],
    }
