"""Names within a class: which of ImageNet's 1,000 names are kinds of which COCO class."""

from collections.abc import Mapping, Sequence
from functools import cache

import torch
from timm.data import ImageNetInfo
from torch import Tensor

LEAST = 0.4
"""Least probability of a name among those of its class."""
WHOLE = 0.15
"""Least probability of all names of the class together."""
KINDS: Mapping[str, Sequence[int]] = {
    "airplane": (404, 895), "bear": range(294, 298), "bicycle": (444, 671),
    "bird": [*range(7, 25), *range(80, 101), *range(127, 147)],
    "boat": (472, 484, 510, 554, 576, 625, 628, 724, 780, 814, 871, 914),
    "bottle": (440, 720, 737, 898, 907), "bowl": (659, 809), "bus": (654, 779, 874),
    "car": (407, 436, 468, 511, 609, 627, 656, 661, 751, 817), "cat": range(281, 286),
    "chair": (423, 559, 765, 857), "clock": (409, 530, 892), "couch": (831,),
    "cup": (504, 967, 968), "dog": range(151, 269), "elephant": (385, 386),
    "horse": (339,), "laptop": (620, 681), "sheep": (348, 349),
    "train": (466, 547, 820, 829), "truck": (555, 569, 675, 717, 864, 867),
}  # fmt: skip
"""Numbers of ImageNet's classes that are kinds of a class."""


@cache
def imagenet() -> ImageNetInfo:
    """timm's names of ImageNet's classes, whose files are read once."""
    return ImageNetInfo()


def fine_names(logits: Tensor, classes: Sequence[str]) -> tuple[str | None, ...]:
    """Name boxes within their classes, from logits (N, 1000); None where nothing is likely."""
    info = imagenet()
    found: list[str | None] = []
    for probabilities, name in zip(logits.softmax(1), classes, strict=True):
        kinds = torch.tensor(list(KINDS.get(name, ())), dtype=torch.long)
        own = probabilities[kinds]
        if not len(kinds) or own.sum() < WHOLE or own.max() < LEAST * own.sum():
            found.append(None)
            continue
        description = info.index_to_description(int(kinds[own.argmax()]))
        found.append(description.partition(",")[0].lower())
    return tuple(found)
