"""The starter's region encoder with the classifiers it learns by.

A linear classifier over what is found in a box's two cuts stands where the language model will; a
second one says of the wide cut alone which things it shows, and how often; a third one names tiles,
which teach the trunk more names than photos have.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from regionqa.export.modules.crops import CropConfig, CropRegionEncoder

AT_LEAST = (1, 2, 4)
"""Numbers of things of a class that the second classifier tells apart."""


class CropClassifier(nn.Module):
    """A region encoder and the three classifiers."""

    def __init__(self, config: CropConfig, classes: int, tile_names: int) -> None:
        super().__init__()
        self.region = CropRegionEncoder(config)
        self.classifier = nn.Linear(config.region_width, classes)
        self.around = nn.Linear(config.trunk_width, len(AT_LEAST) * classes)
        self.tile = nn.Linear(config.trunk_width, tile_names)

    def forward(
        self, close: Tensor, wide: Tensor, places: Tensor, tiles: Tensor, dropout: float = 0.0
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Logits of boxes (N, classes), of what wide cuts show (N, 3 classes), of tiles (M, names).

        close, wide: (N, 4, side, side). places: (N, PLACES), zeros where it shall not count.
        tiles: (M, 4, side, side).
        """
        seen = self.region.trunk(torch.cat([close, wide, tiles]))  # (2 N + M, trunk_width)
        first, second, third = seen.split([len(close), len(wide), len(tiles)])
        found = self.region.found(first, second, places)
        named = self.classifier(F.dropout(found, dropout, self.training))
        return named, self.around(second), self.tile(third)

    def logits(self, vectors: Tensor) -> Tensor:
        """Logits (N, classes) of what `region.region_vectors` gave."""
        named: Tensor = self.classifier(vectors[:, : self.region.config.region_width])
        return named


@dataclass(frozen=True)
class TrainedClassifier:
    """A trained namer, what its classes are called, and how often it met each."""

    namer: CropClassifier
    names: tuple[str, ...]
    counts: Tensor
    """Boxes of each class among the photos it learned from (classes,)."""


def read_classifier(path: Path, config: CropConfig | None = None) -> TrainedClassifier:
    """What training left at `path`, in evaluation mode."""
    state = torch.load(path, weights_only=True)
    tile_names = len(state["namer"]["tile.bias"])
    namer = CropClassifier(config or CropConfig(), len(state["names"]), tile_names)
    namer.load_state_dict(state["namer"])
    return TrainedClassifier(namer.eval(), tuple(state["names"]), state["counts"])
