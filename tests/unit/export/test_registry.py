"""Adding a region encoder: a module, its config, and a line of the registry."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from helpers.graph_cache import GraphCache
from helpers.tiny_models import tiny_card, tiny_vision
from regionqa.bundles.store import Bundle
from regionqa.engine import Engine
from regionqa.errors import BundleError
from regionqa.export.bundle import read_encoders, write_bundle
from regionqa.export.modules import registry
from regionqa.export.modules.base import RegionModule


@dataclass(frozen=True)
class ToyConfig:
    """Shape of a `ToyEncoder`."""

    hidden_size: int
    sides: tuple[int, ...]
    channels: tuple[int, ...]
    width: int = 8
    note: str | None = None


class ToyEncoder(RegionModule):
    """The means of all levels, and the box: regions of equal boxes are equal."""

    config: ToyConfig
    projector_parts: ClassVar[tuple[str, ...]] = ("outer",)

    def __init__(self, config: ToyConfig) -> None:
        super().__init__()
        self.config = config
        self.inner = nn.Linear(sum(config.channels), config.width)
        self.outer = nn.Linear(config.width + 4, config.hidden_size)

    @property
    def source_shapes(self) -> tuple[tuple[int, int | None, int | None], ...]:
        """(C, h, w) of the levels."""
        shapes = zip(self.config.channels, self.config.sides, strict=True)
        return tuple((channels, side, side) for channels, side in shapes)

    @property
    def tokens(self) -> int:
        """One token per region."""
        return 1

    def region_vectors(
        self, sources: Sequence[Tensor], boxes: Tensor, image_index: Tensor
    ) -> Tensor:
        """(N, width)."""
        means = torch.cat([level.mean((2, 3)) for level in sources], 1)  # (B, sum of C)
        return torch.tanh(self.inner(means))[image_index]

    def project(self, vectors: Tensor, boxes: Tensor) -> Tensor:
        """(N, 1, hidden_size)."""
        tokens: Tensor = self.outer(torch.cat([vectors, boxes], 1))
        return tokens.unsqueeze(1)


def toy() -> ToyEncoder:
    torch.manual_seed(0)
    channels, sides, _ = zip(*tiny_vision().level_shapes, strict=True)
    return ToyEncoder(ToyConfig(32, sides, channels)).eval()


def test_unregistered_encoder_is_refused() -> None:
    with pytest.raises(BundleError, match=r"ToyEncoder has no kind in modules/registry\.py"):
        registry.architecture_table(toy())


def test_registered_encoder_exports_and_trains(
    tiny: Callable[[str], Bundle],
    graphs: GraphCache,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(registry.REGION, "toy", (ToyConfig, ToyEncoder))
    encoder, llm = toy(), tiny("levels").root / "llm"
    bundle, [vision, region] = write_bundle(
        tmp_path / "toy", tiny_card("levels"), tiny_vision(), encoder, llm, llm / "tokenizer.json"
    )
    assert "1 images with 0 regions" in region.cases and vision.graph == "vision.onnx"
    assert bundle.card.architecture["region"]["kind"] == "toy"
    _, back = read_encoders(bundle)
    assert isinstance(back, ToyEncoder)
    assert back.config == encoder.config
    weights = encoder.state_dict()
    assert back.state_dict().keys() == weights.keys()
    assert all(torch.equal(value, weights[name]) for name, value in back.state_dict().items())
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    answer = Engine.load(bundle, device="cpu").ask(image, "what is this?", [(4, 4, 40, 40)])
    assert answer.error is None
