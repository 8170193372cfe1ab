"""SAM 2 of transformers, its networks in torch or in ONNX Runtime.

Preparation of image and points, and masks of the network's outputs, are the checkpoint's own
processor's, so that they are those of transformers.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from regionqa.backends.vlm.networks import GraphNetwork, load_network
from regionqa.backends.vlm.processor import LOAD_ERRORS
from regionqa.errors import BundleError, ImageError, message_of
from regionqa.options import VisionRuntime
from regionqa.runtime.devices import Device
from regionqa.segmentation.base import SegmentedMask, SegmenterInfo, segmenter_cards
from regionqa.segmentation.options import Points
from regionqa.vlm.checkpoints import checkpoint_digest
from regionqa.vlm.vision_exports import VisionExport, choose_network

if TYPE_CHECKING:
    from torch import Tensor

    Tensors = Mapping[str, Tensor]

FEATURES = ("features_0", "features_1", "features_2")
"""What the encoder computes: feature maps (1, C, H, W), the finest first."""
OUTPUTS = ("masks", "scores")
"""What the decoder computes: masks (1, 1, M, h, w) before the sigmoid, and expected intersections
over union (1, 1, M). The first is for several points, the others for one that may mean several
things."""
ENCODER, DECODER = "encoder", "decoder"
"""Names of the graphs in an export."""


class SegmenterProcessor:
    """A checkpoint's processor: an image and points to inputs, and outputs to masks."""

    def __init__(self, folder: Path) -> None:
        """Open the processor files of a checkpoint; BundleError if one cannot be used."""
        from transformers import Sam2Processor

        try:
            self._processor = Sam2Processor.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
        except LOAD_ERRORS as error:
            raise BundleError(
                f"{folder}: transformers cannot load its processor: {message_of(error)}"
            ) from error

    def prepare(self, image: Image.Image) -> "dict[str, Tensor]":
        """Return the encoder's inputs for one image; ImageError if its size cannot be used."""
        try:
            inputs = self._processor(images=image, return_tensors="pt")
        except (ValueError, RuntimeError, ZeroDivisionError) as error:
            raise ImageError(
                f"the segmenter cannot use an image of {image.width} x {image.height} pixels: "
                f"{message_of(error)}"
            ) from error
        return {"pixel_values": inputs["pixel_values"]}

    def place(self, points: Points, size: tuple[int, int]) -> "dict[str, Tensor]":
        """Return the decoder's inputs for the points of one region in an image of this size."""
        inputs = self._processor(
            original_sizes=[list(size[::-1])],
            input_points=[[[[point.x, point.y] for point in points]]],
            input_labels=[[[int(point.inside) for point in points]]],
            return_tensors="pt",
        )
        return {"points": inputs["input_points"], "point_labels": inputs["input_labels"]}

    def mask(self, mask: "Tensor", size: tuple[int, int]) -> Any:
        """Return a mask (h, w) before the sigmoid as an array (height, width) of the image."""
        (found,) = self._processor.post_process_masks([mask[None, None]], [list(size[::-1])])
        return found[0, 0].numpy()


@dataclass(frozen=True)
class MaskChoice:
    """Which of the masks for a region is its mask, as transformers chooses."""

    dynamic: bool
    """Whether an unstable mask for several points is replaced by the best for one."""
    delta: float
    """Distance from the edge, in the network's outputs, at which stability is judged."""
    threshold: float
    """Stability below which a mask is replaced."""

    @classmethod
    def of(cls, config: Any) -> "MaskChoice":
        """Read the choice from a model's config."""
        decoder = config.mask_decoder_config
        return cls(
            decoder.dynamic_multimask_via_stability,
            decoder.dynamic_multimask_stability_delta,
            decoder.dynamic_multimask_stability_thresh,
        )

    def best(self, masks: "Tensor", scores: "Tensor", *, several: bool) -> int:
        """Return the place of the chosen mask.

        Args:
            masks: (M, h, w) before the sigmoid.
            scores: (M,) expected intersections over union.
            several: Whether several points were given. One alone may mean a part or the whole, so
                that the best of the masks for one point is taken.
        """
        if several:
            stable = (masks[0] > self.delta).sum().item()
            area = (masks[0] > -self.delta).sum().item()
            if not self.dynamic or area == 0 or stable / area >= self.threshold:
                return 0
        return 1 + int(scores[1:].argmax())


class TorchSegmenter:
    """The networks of a segmenter in torch, float32."""

    def __init__(self, folder: Path, device: Device) -> None:
        """Load the weights; BundleError if that fails, or one is missing."""
        self.model = load_segmenter_network(folder).to(device.value)
        self._device = device.value

    def encode(self, inputs: "Tensors") -> "dict[str, Tensor]":
        """Compute `FEATURES`, which stay on the device."""
        import torch

        with torch.inference_mode():
            return encode_image(self.model, inputs["pixel_values"].to(self._device))

    def decode(self, features: "Tensors", points: "Tensors") -> "dict[str, Tensor]":
        """Compute `OUTPUTS`, on the CPU."""
        import torch

        placed = {name: value.to(self._device) for name, value in points.items()}
        with torch.inference_mode():
            outputs = decode_points(self.model, features, **placed)
        return {name: value.float().cpu() for name, value in outputs.items()}


class OnnxSegmenter:
    """The networks of a segmenter in ONNX Runtime."""

    def __init__(self, export: VisionExport, device: Device) -> None:
        """Open the sessions; BundleError or DeviceError if that fails."""
        self._encoder, self._decoder = (
            GraphNetwork(export.graph(part), device, "segmenter")
            for name in (ENCODER, DECODER)
            for part in export.manifest.parts
            if part.name == name
        )

    def encode(self, inputs: "Tensors") -> "dict[str, Tensor]":
        """Compute `FEATURES`."""
        return self._encoder(inputs, FEATURES)

    def decode(self, features: "Tensors", points: "Tensors") -> "dict[str, Tensor]":
        """Compute `OUTPUTS`."""
        return self._decoder({**features, **points}, OUTPUTS)


class CheckpointSegmenter:
    """A segmenter that is a checkpoint of transformers."""

    def __init__(self, name: str, folder: Path, device: Device, runtime: VisionRuntime) -> None:
        """Load the checkpoint; see `regionqa.segmentation.base.open_segmenter` for the errors."""
        self._processor = SegmenterProcessor(folder)
        self._choice = MaskChoice.of(segmenter_config(folder))
        export, reason = choose_network(
            name, folder, runtime, "the segmenter", named=name in segmenter_cards()
        )
        self._networks = OnnxSegmenter(export, device) if export else TorchSegmenter(folder, device)
        self.info = SegmenterInfo(
            name,
            checkpoint_digest(folder),
            device.value,
            f"{'onnx' if export else 'torch'}: {reason}",
        )

    def encode(self, image: Image.Image) -> "Tensors":
        """See `Segmenter.encode`."""
        return self._networks.encode(self._processor.prepare(image))

    def segment(self, encoded: "Tensors", size: tuple[int, int], points: Points) -> SegmentedMask:
        """See `Segmenter.segment`."""
        outputs = self._networks.decode(encoded, self._processor.place(points, size))
        masks, scores = (outputs[name][0, 0] for name in OUTPUTS)
        best = self._choice.best(masks, scores, several=len(points) > 1)
        return SegmentedMask(self._processor.mask(masks[best], size), float(scores[best]))


# -- networks --------------------------------------------------------------------------------------


def segmenter_config(folder: Path) -> Any:
    """Read the config of a checkpoint; that of a video model has what the image model needs."""
    from transformers import Sam2Config
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()  # released checkpoints are of the video model, as is known
    try:
        return Sam2Config.from_pretrained(folder, local_files_only=True)
    except LOAD_ERRORS as error:
        raise BundleError(
            f"{folder}: transformers cannot read its config: {message_of(error)}"
        ) from error
    finally:
        logging.set_verbosity(before)


def load_segmenter_network(folder: Path) -> Any:
    """Load a segmenter so that it computes all of its masks; the errors are `load_network`'s."""
    from transformers import Sam2Model

    model = load_network(Sam2Model, folder, config=segmenter_config(folder))
    decoder = model.mask_decoder
    # transformers calls this with all masks where one is wanted, to choose it; `MaskChoice` does
    decoder.dynamic_multimask_via_stability = True
    decoder._dynamic_multimask_via_stability = lambda masks, scores: (masks, scores)
    return model


def encode_image(model: Any, pixel_values: "Tensor") -> "dict[str, Tensor]":
    """Compute `FEATURES` of a prepared image (1, 3, H, W)."""
    return dict(zip(FEATURES, model.get_image_embeddings(pixel_values), strict=True))


def decode_points(
    model: Any, features: "Tensors", points: "Tensor", point_labels: "Tensor"
) -> "dict[str, Tensor]":
    """Compute `OUTPUTS` of an image's features and the points of one region.

    Args:
        model: That of `load_segmenter_network`.
        features: Those of `encode_image`.
        points: (1, 1, P, 2) float32, in pixels of the prepared image.
        point_labels: (1, 1, P) int64, 1 inside and 0 outside.
    """
    output = model(
        image_embeddings=[features[name] for name in FEATURES],
        input_points=points,
        input_labels=point_labels,
        multimask_output=False,
        return_dict=True,
    )
    return {"masks": output.pred_masks, "scores": output.iou_scores}
