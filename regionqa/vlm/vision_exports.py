"""ONNX graphs of vision encoders, detectors and segmenters: where they lie, which can be used.

`regionqa.export` writes them, once per checkpoint. A graph belongs to the weights it was made
of, so its folder is named after them and not after the model.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from regionqa.bundles.hub import hub_home
from regionqa.bundles.store import CONFIG
from regionqa.errors import BundleError, UsageError
from regionqa.options import VisionRuntime
from regionqa.schema import from_table, read_object
from regionqa.vlm.card import VlmCard
from regionqa.vlm.checkpoints import checkpoint_digest

FORMAT = 1
"""Changes when the graphs or the manifest do; exports of other formats are not used."""
MANIFEST = "export.json"
"""File of an export that is written last."""


@dataclass(frozen=True)
class GraphPart:
    """One module as a graph."""

    name: str
    """Such as `encoder`, `projector`, `detector` or `decoder`."""
    graph: str
    """Name of its file."""
    constants: Mapping[str, Any] = field(default_factory=dict)
    """Arguments that are no tensors, and fixed in the graph."""
    lengths: Mapping[str, int] = field(default_factory=dict)
    """Number of places in those fields of the output that are sequences; a graph computes some."""


@dataclass(frozen=True)
class VisionCheck:
    """The comparison with torch at one size of image."""

    size: tuple[int, int]
    """Width and height of the image, in pixels."""
    tokens: int
    """Its number of image tokens, of boxes, or of points."""
    difference: float
    """Largest |ONNX - torch| over the features, relative to their largest value; of a detector,
    over scores and boxes in fractions of the image; of a segmenter, over its masks and scores,
    relative to the largest of each."""


@dataclass(frozen=True)
class VisionManifest:
    """What an export is."""

    format: int
    model: str
    """Name of the model that was exported, for people."""
    family: str
    """Its `model_type`."""
    packages: Mapping[str, str]
    """Versions of what wrote the graphs."""
    parts: tuple[GraphPart, ...]
    checks: tuple[VisionCheck, ...]
    files: Mapping[str, int]
    """Sizes of the files in bytes."""

    @property
    def difference(self) -> float:
        """The largest difference from torch."""
        return max(check.difference for check in self.checks)


@dataclass(frozen=True)
class VisionExport:
    """An export that can be used."""

    folder: Path
    manifest: VisionManifest

    def graph(self, part: GraphPart) -> Path:
        """Return the file of a part."""
        return self.folder / part.graph


@dataclass(frozen=True)
class VisionChoice:
    """Where a model's vision encoder runs."""

    export: VisionExport | None
    """None: in torch."""
    reason: str
    """Why, for people."""

    @property
    def runtime(self) -> VisionRuntime:
        """The runtime."""
        return VisionRuntime.onnx if self.export else VisionRuntime.torch


def exports_folder() -> Path:
    """Return the folder of all exports: HF_HOME/regionqa/vision."""
    return hub_home() / "regionqa" / "vision"


def export_folder(checkpoint: Path) -> Path:
    """Return the folder of a checkpoint's export, which need not exist."""
    return exports_folder() / vision_identity(checkpoint)


def vision_identity(checkpoint: Path) -> str:
    """Return 24 hex digits that identify the vision encoder of a checkpoint.

    Besides samples of the weights, the time of their last change counts: a training run may change
    few of the numbers.
    """
    digest = hashlib.sha256(checkpoint_digest(checkpoint).encode())
    digest.update((checkpoint / CONFIG).read_bytes())
    for path in sorted(checkpoint.glob("*.safetensors")):
        digest.update(f"{path.name} {path.stat().st_mtime_ns} ".encode())
    return digest.hexdigest()[:24]


def choose_vision(
    card: VlmCard, checkpoint: Path, asked: VisionRuntime = VisionRuntime.auto
) -> VisionChoice:
    """Choose where a checkpoint's vision encoder runs.

    Raises:
        UsageError: ONNX Runtime is asked for, and the card says that the family has no export.
        BundleError: It is asked for, and there is no export that can be used.
    """
    if asked is VisionRuntime.torch:
        return VisionChoice(None, "--vision-runtime torch")
    if not card.onnx_vision:
        reason = "by its card, the vision encoder of this family is not exported"
        if asked is VisionRuntime.onnx:
            raise UsageError(f"--vision-runtime onnx: {card.name}: {reason}; leave it out")
        return VisionChoice(None, reason)
    try:
        export = open_export(checkpoint)
    except BundleError as error:
        what = f"{error}; run: regionqa export {checkpoint if card.source is None else card.name}"
        if asked is VisionRuntime.onnx:
            raise BundleError(f"--vision-runtime onnx: {card.name}: {what}") from None
        return VisionChoice(None, what)
    return VisionChoice(
        export,
        f"differs from torch by {export.manifest.difference:.0e} of the features' scale, "
        f"{export.folder}",
    )


def choose_network(
    name: str, folder: Path, asked: VisionRuntime, what: str, *, named: bool
) -> tuple[VisionExport | None, str]:
    """Choose where the network of a detector or segmenter runs.

    Args:
        name: Its name, for messages.
        folder: The checkpoint.
        asked: What the user asks for.
        what: What it is, such as `the detector`.
        named: Whether it has this name in the package.

    Returns:
        The export, None for torch; and why, for people.

    Raises:
        BundleError: ONNX Runtime is asked for, and there is no export that can be used.
    """
    if asked is VisionRuntime.torch:
        return None, "--vision-runtime torch"
    try:
        export = open_export(folder, what)
    except BundleError as error:
        given = name if named or "/" in name else folder
        reason = f"{error}; run: regionqa export {given}"
        if asked is VisionRuntime.onnx:
            raise BundleError(f"--vision-runtime onnx: {name}: {reason}") from None
        return None, reason
    return export, f"differs from torch by {export.manifest.difference:.0e}"


def open_export(checkpoint: Path, what: str = "the vision encoder") -> VisionExport:
    """Open the export of a checkpoint; BundleError, naming `what`, if none can be used."""
    folder = export_folder(checkpoint)
    try:
        table = read_object(folder / MANIFEST)
    except FileNotFoundError:
        raise BundleError(f"{what} was not exported to ONNX yet") from None
    if table.get("format") != FORMAT:
        raise BundleError(f"{what} was exported by another version of regionqa")
    manifest = from_table(VisionManifest, table, str(folder / MANIFEST))
    # transformers computes what enters the graphs
    made, installed = manifest.packages.get("transformers"), version("transformers")
    if made != installed:
        raise BundleError(f"{what} was exported with transformers {made}, {installed} is installed")
    for name, size in manifest.files.items():
        if not (folder / name).is_file() or (folder / name).stat().st_size != size:
            raise BundleError(f"{folder / name} is missing or damaged")
    return VisionExport(folder, manifest)


def manifest_text(manifest: VisionManifest) -> str:
    """Return a manifest as JSON."""
    import msgspec

    return json.dumps(msgspec.to_builtins(manifest), indent=2) + "\n"
