"""What transformers itself finds in an image."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from helpers.detection.detectors import OPEN

Found = tuple[tuple[float, ...], str | None, float]
"""Box, label and score; the label is None where transformers returns a part of a phrase."""


def transformers_objects(
    folder: Path, image: Image.Image, phrases: Sequence[str] = (), threshold: float = 0.0
) -> list[Found]:
    """Run a checkpoint as transformers' documentation does; boxes are clipped to the image.

    Returns:
        What has an area, of highest score first.
    """
    from transformers import (
        AutoImageProcessor,
        AutoModelForObjectDetection,
        AutoModelForZeroShotObjectDetection,
        AutoProcessor,
    )

    size = [(image.height, image.width)]
    if folder.name not in OPEN:
        images = AutoImageProcessor.from_pretrained(folder)
        model = AutoModelForObjectDetection.from_pretrained(folder).eval()
        with torch.inference_mode():
            outputs = model(**images(images=image, return_tensors="pt"))
        (found,) = images.post_process_object_detection(
            outputs, threshold=threshold, target_sizes=size
        )
        labels = [model.config.id2label[int(number)] for number in found["labels"]]
        return ordered(found, labels, image)
    processor = AutoProcessor.from_pretrained(folder)
    model = AutoModelForZeroShotObjectDetection.from_pretrained(folder).eval()
    inputs = processor(images=image, text=[list(phrases)], return_tensors="pt")
    with torch.inference_mode():
        outputs = model(**inputs)
    if folder.name == "owlv2":
        (found,) = processor.post_process_grounded_object_detection(
            outputs, threshold=threshold, target_sizes=size, text_labels=[list(phrases)]
        )
        return ordered(found, found["text_labels"], image)
    (found,) = processor.post_process_grounded_object_detection(
        outputs, inputs["input_ids"], threshold=threshold, target_sizes=size
    )
    return ordered(found, [None] * len(found["scores"]), image)


def ordered(found: Any, labels: Sequence[str | None], image: Image.Image) -> list[Found]:
    """Clip boxes, leave out those without area, and order by score."""
    ends = (image.width, image.height) * 2
    rows = []
    for box, label, score in zip(found["boxes"], labels, found["scores"], strict=True):
        clipped = tuple(
            round(min(max(value, 0.0), end), 2)
            for value, end in zip(box.tolist(), ends, strict=True)
        )
        if clipped[2] > clipped[0] and clipped[3] > clipped[1]:
            rows.append((clipped, label, score.item()))
    return sorted(rows, key=lambda row: -row[2])
