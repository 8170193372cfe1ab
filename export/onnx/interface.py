"""Names of the graphs' inputs and outputs, and the region encoder with flat inputs."""

from torch import Tensor, nn

from regionqa.export.modules.base import RegionModule


class RegionGraph(nn.Module):
    """A region encoder with its levels as separate inputs, as in the ONNX graph."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, *inputs: Tensor) -> Tensor:
        """Levels, then boxes (N, 4) and image_index (N,) -> region tokens (N, K, H)."""
        *levels, boxes, image_index = inputs
        tokens: Tensor = self.encoder(levels, boxes, image_index)
        return tokens


def source_names(region: RegionModule) -> list[str]:
    """Return the names of a region graph's first inputs."""
    return ["pixel_values"] if region.reads_pixels else level_names(len(region.source_shapes))


def level_names(count: int) -> list[str]:
    """Return the names of the feature maps in both graphs."""
    return [f"level{index}" for index in range(count)]
