"""Object detectors of transformers, their network in torch or in ONNX Runtime.

Preparation of the image, and boxes and scores of the network's outputs, are the checkpoint's own
processor's, so that they are those of transformers.
"""

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from PIL import Image

from regionqa.backends.vlm.networks import GraphNetwork, load_network
from regionqa.backends.vlm.processor import LOAD_ERRORS
from regionqa.detection.base import DetectorInfo, ScoredBoxes
from regionqa.detection.cards import (
    DetectorFamily,
    FoundDetector,
    PhraseText,
    Vocabulary,
    checkpoint_family,
    detector_cards,
)
from regionqa.errors import BundleError, ImageError, UsageError, message_of
from regionqa.options import VisionRuntime
from regionqa.runtime.devices import Device
from regionqa.vlm.checkpoints import checkpoint_digest
from regionqa.vlm.vision_exports import VisionExport, choose_network

if TYPE_CHECKING:
    from torch import Tensor

OUTPUTS = ("logits", "pred_boxes")
"""What a detector's network computes: scores before the sigmoid or softmax, and boxes as fractions
of its input."""
PART = "detector"
"""Name of the graph in an export."""
STOP = "."
"""Ends a phrase of `PhraseText.text`."""


def open_detector(
    found: FoundDetector, device: Device, runtime: VisionRuntime
) -> "CheckpointDetector":
    """Load a checkpoint; see `regionqa.detection.base.open_found`."""
    assert found.folder is not None
    return CheckpointDetector(found.name, found.folder, device, runtime)


class DetectorProcessor:
    """A checkpoint's processor: an image and phrases to inputs, and outputs to boxes."""

    def __init__(self, folder: Path, family: DetectorFamily) -> None:
        """Open the processor files of a checkpoint.

        Raises:
            BundleError: A file is missing or cannot be used.
        """
        from transformers import AutoConfig, AutoImageProcessor, AutoProcessor

        self.family = family
        is_open = family.vocabulary is Vocabulary.open
        kind = AutoProcessor if is_open else AutoImageProcessor
        options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        try:
            self.config = AutoConfig.from_pretrained(folder, **options)
            self._processor = kind.from_pretrained(folder, **options)
            self._boxes = (
                self._processor.post_process_grounded_object_detection
                if is_open
                else self._processor.post_process_object_detection
            )
        except LOAD_ERRORS as error:
            reason = message_of(error)
            raise BundleError(
                f"{folder}: transformers cannot load its processor: {reason}"
            ) from error

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes of a fixed vocabulary, by their numbers."""
        if self.family.vocabulary is Vocabulary.open:
            return ()
        names: Mapping[int, str] = self.config.id2label
        return tuple(names.get(number, str(number)) for number in range(max(names) + 1))

    def prepare(self, image: Image.Image, phrases: Sequence[str]) -> "dict[str, Tensor]":
        """Return the network's inputs for one image, as a batch of one.

        Images are never padded to the size of others, so that boxes do not depend on them.

        Raises:
            ImageError: The processor cannot use an image of this size.
        """
        text = {"text": [list(phrases)]} if phrases else {}
        try:
            inputs = self._processor(images=image, return_tensors="pt", **text)
        except (ValueError, RuntimeError, ZeroDivisionError) as error:
            reason = message_of(error)
            raise ImageError(
                f"the detector cannot use an image of {image.width} x {image.height} pixels: "
                f"{reason}"
            ) from error
        return dict(inputs)

    def check(self, phrases: Sequence[str]) -> None:
        """Raise UsageError for phrases that are too long, or cannot be told apart."""
        tokenizer = self._processor.tokenizer
        if self.family.phrases is PhraseText.rows:
            most = min(tokenizer.model_max_length, self.config.text_config.max_position_embeddings)
            for phrase in phrases:
                if (count := len(tokenizer(phrase, verbose=False)["input_ids"])) > most:
                    raise UsageError(
                        f"--find {phrase!r}: has {count} tokens, and this detector reads {most}; "
                        "say it in fewer words"
                    )
            return
        for phrase in phrases:
            if STOP in phrase:
                raise UsageError(
                    f"--find {phrase!r}: this detector takes a full stop for the end of a phrase; "
                    "leave it out, and repeat --find for several"
                )
        most = min(self.config.max_text_len, self.config.text_config.max_position_embeddings)
        ids = tokenizer(f"{STOP} ".join(phrases) + STOP, verbose=False)["input_ids"]
        if len(ids) > most:
            raise UsageError(
                f"--find: all phrases have {len(ids)} tokens, and this detector reads {most} in "
                "all; look for fewer at a time"
            )

    def boxes(
        self,
        outputs: "Mapping[str, Tensor]",
        inputs: "Mapping[str, Tensor]",
        size: tuple[int, int],
        phrases: Sequence[str],
        min_score: float,
    ) -> ScoredBoxes:
        """Return the boxes that the network's outputs mean.

        Args:
            outputs: Those of `OUTPUTS`, for one image.
            inputs: What they were computed of.
            size: Width and height of the image, in pixels.
            phrases: What was looked for.
            min_score: Boxes of this score and below are left out.
        """
        options: dict[str, Any] = {"threshold": min_score, "target_sizes": [size[::-1]]}
        known = inspect.signature(self._boxes).parameters
        if "use_focal_loss" in known:  # whether scores are a sigmoid's or a softmax's
            options["use_focal_loss"] = getattr(self.config, "use_focal_loss", True)
        if "top_k" in known:
            options["top_k"] = outputs["logits"].shape[1]
        if "input_ids" in known:
            options["input_ids"] = inputs["input_ids"]
        (found,) = self._boxes(SimpleNamespace(**outputs), **options)
        if self.family.phrases is PhraseText.text and phrases:
            numbers = self._phrase_of(outputs["logits"][0], inputs["input_ids"][0], min_score)
        else:
            numbers = [int(number) for number in found["labels"]]
        names = phrases or self.classes
        return ScoredBoxes(
            found["boxes"].double().numpy().reshape(-1, 4),
            found["scores"].double().numpy(),
            tuple(numbers),
            tuple(names[number] for number in numbers),
        )

    def _phrase_of(self, logits: "Tensor", ids: "Tensor", min_score: float) -> list[int]:
        """Return the phrase of each box: the one with the token of the highest score.

        logits: (N, tokens), also beyond the text. ids: (T,) token ids of the text.
        """
        stop = self._processor.tokenizer.convert_tokens_to_ids(STOP)
        scores = logits.sigmoid()
        ends = (ids == stop).long()
        phrase = ends.cumsum(0) - ends  # full stops before each token
        found = scores[scores.max(-1).values > min_score, : len(ids)].argmax(-1)
        last = int(ends.sum()) - 1
        return [min(int(phrase[token]), last) for token in found]


class TorchNetwork:
    """A detector's network in torch, float32."""

    def __init__(self, folder: Path, family: DetectorFamily, device: Device) -> None:
        """Load the weights; BundleError if that fails, or one is missing."""
        self.model = load_detector_network(folder, family).to(device.value)
        self._device = device.value

    def __call__(self, inputs: "Mapping[str, Tensor]") -> "dict[str, Tensor]":
        """Compute `OUTPUTS`, on the CPU."""
        import torch

        placed = {name: value.to(self._device) for name, value in inputs.items()}
        with torch.inference_mode():
            output = self.model(**placed, return_dict=True)
        return {name: output[name].float().cpu() for name in OUTPUTS}


class OnnxNetwork:
    """A detector's network in ONNX Runtime."""

    def __init__(self, export: VisionExport, device: Device) -> None:
        """Open the session; BundleError or DeviceError if that fails."""
        (part,) = export.manifest.parts
        self._graph = GraphNetwork(export.graph(part), device, "detector")

    def __call__(self, inputs: "Mapping[str, Tensor]") -> "dict[str, Tensor]":
        """Compute `OUTPUTS`; ImageError if the graph cannot take an image of this size."""
        return self._graph(inputs, OUTPUTS)


class CheckpointDetector:
    """A detector that is a checkpoint of transformers."""

    def __init__(self, name: str, folder: Path, device: Device, runtime: VisionRuntime) -> None:
        """Load the checkpoint; see `regionqa.detection.base.open_found` for the errors."""
        family = checkpoint_family(folder)
        self._processor = DetectorProcessor(folder, family)
        export, reason = choose_network(
            name, folder, runtime, "the detector", named=name in detector_cards()
        )
        self._network = OnnxNetwork(export, device) if export else TorchNetwork(
            folder, family, device
        )  # fmt: skip
        self.info = DetectorInfo(
            name,
            checkpoint_digest(folder),
            family.vocabulary,
            self._processor.classes,
            family.min_score,
            family.nms,
            device.value,
            f"{'onnx' if export else 'torch'}: {reason}",
        )

    def check_phrases(self, phrases: Sequence[str]) -> None:
        """See `Detector.check_phrases`."""
        if phrases:
            self._processor.check(phrases)

    def detect(self, image: Image.Image, phrases: Sequence[str], min_score: float) -> ScoredBoxes:
        """See `Detector.detect`."""
        inputs = self._processor.prepare(image, phrases)
        outputs = self._network(inputs)
        return self._processor.boxes(outputs, inputs, image.size, phrases, min_score)


def load_detector_network(folder: Path, family: DetectorFamily) -> Any:
    """Load a detector's network; the errors are those of `load_network`."""
    from transformers import AutoModelForObjectDetection, AutoModelForZeroShotObjectDetection

    is_open = family.vocabulary is Vocabulary.open
    kind = AutoModelForZeroShotObjectDetection if is_open else AutoModelForObjectDetection
    return load_network(kind, folder)
