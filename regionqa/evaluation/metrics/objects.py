"""Objects that captions name: CHAIR, the share that is not in the image.

Rohrbach et al. 2018, "Object Hallucination in Image Captioning" (arXiv 1809.02156). An object is in
the image if it is annotated there, or if a reference caption names it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from regionqa.evaluation.metrics.classes import ClassNames
from regionqa.evaluation.metrics.statistics import Bools, Floats, Metric, Statistic, weighted_mean
from regionqa.evaluation.results import TableRows


@dataclass(frozen=True)
class NamedObjects:
    """The classes that a caption names, beside those that are known to be in its image."""

    said: tuple[str, ...]
    """Classes in the caption, each once."""
    annotated: frozenset[str]
    """Classes of the image's boxes."""
    told: frozenset[str]
    """Classes in the reference captions."""

    @classmethod
    def of(
        cls, names: ClassNames, caption: str, references: Sequence[str], annotated: frozenset[str]
    ) -> "NamedObjects":
        """Find the classes in a caption and its references."""
        told = frozenset(name for text in references for name in names.all_named(text))
        return cls(names.all_named(caption), annotated, told)

    @property
    def unannotated(self) -> tuple[str, ...]:
        """Classes that are said and not annotated."""
        return tuple(name for name in self.said if name not in self.annotated)

    @property
    def invented(self) -> tuple[str, ...]:
        """Classes that are said and neither annotated nor in a reference caption."""
        return tuple(name for name in self.unannotated if name not in self.told)


def chair_metrics(items: Sequence[NamedObjects | None]) -> tuple[Metric, ...]:
    """Return CHAIR per caption and per object, and the share of captions beside the annotations.

    A class counts once in a caption, however often it is named there.

    Args:
        items: The objects of each caption (N,); None: not known, so the caption does not count.
    """
    known = np.array([each is not None for each in items], bool)
    if not known.any():
        return ()
    count = int(known.sum())
    said = np.array([len(each.said) if each else 0 for each in items], np.float64)
    invented = np.array([len(each.invented) if each else 0 for each in items], np.float64)
    unannotated: Bools = np.array([bool(each and each.unannotated) for each in items], bool)
    return (
        Metric("chair_s", "captions naming an object that is not there (CHAIRs)",
               weighted_mean(invented > 0, known), count),
        Metric("chair_i", "objects named that are not there (CHAIRi)",
               _ratio(invented, said), int(said.sum())),
        Metric("unannotated", "captions naming an object that is not annotated",
               weighted_mean(unannotated, known), count),
    )  # fmt: skip


def _ratio(above: Floats, below: Floats) -> Statistic:
    """Return the ratio of two weighted sums of values (N,)."""

    def statistic(weights: Floats) -> Floats:
        total = weights @ below
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(total > 0, (weights @ above) / total, np.nan)

    return statistic


def unannotated_rows(
    images: Sequence[str], captions: Sequence[str], items: Sequence[NamedObjects | None]
) -> TableRows:
    """List captions that name an object which is not annotated, for a person to judge."""
    return [
        {
            "image": image,
            "not annotated": ", ".join(each.unannotated),
            "nor in references": ", ".join(each.invented) or "-",
            "said": caption,
        }
        for image, caption, each in zip(images, captions, items, strict=True)
        if each and each.unannotated
    ]
