"""`export`: check a model, and write or publish it, or export its vision encoder."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from regionqa.cli.init import free_folder
from regionqa.cli.options import EXPORT, require, with_options
from regionqa.errors import BundleError, ExportError, UsageError
from regionqa.flags import Reads, Writes

if TYPE_CHECKING:
    from regionqa.vlm.card import VlmCard
    from regionqa.vlm.catalogue import FoundCheckpoint
    from regionqa.vlm.store import FoundVlm
    from regionqa.vlm.vision_exports import VisionExport


@with_options
def export(
    model: Annotated[
        str,
        typer.Argument(help="Name (regionqa models list), folder, or OWNER/NAME on the Hub."),
        Reads.model,
    ],
    push: Annotated[
        str | None,
        typer.Option(metavar="OWNER/NAME", help="Publish to this repository on the Hub."),
    ] = None,
    private: Annotated[
        bool, typer.Option("--private", help="With --push: make a new repository private.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Folder to write the model to, with a README."),
        Writes.folder,
    ] = None,
) -> None:
    """Check a model's files and graphs, then write it to a folder or publish it on the Hub.

    Of a vision-language model of the Hub, the vision encoder is exported to ONNX, compared with
    torch and kept beside the Hub's cache, so that it runs in ONNX Runtime (--vision-runtime).
    Of an object detector or a segmenter, the whole network is. `regionqa download` does this too.

    regionqa export my-model --push OWNER/NAME

    regionqa export qwen3-vl-2b
    """
    from regionqa.bundles.store import find_bundle

    if private and not push:
        raise UsageError("--private: needs --push OWNER/NAME")
    if out:
        free_folder(out)
    if found := find_checkpoint(model):
        print(export_checkpoint(model, found, elsewhere=bool(out or push)).folder)
        return
    bundle = find_bundle(model)
    require("export", "export", EXPORT)
    from regionqa.export.publish import check_bundle, publish, write_copy

    reports = check_bundle(bundle)
    for report in reports:
        print(report.summary, file=sys.stderr)
    if not reports:
        print("graphs were not compared: the model has no torch weights", file=sys.stderr)
    if out:
        print(write_copy(bundle, out))
    if push:
        print(publish(bundle, push, private=private))


def export_checkpoint(
    name: str, found: "FoundVlm | FoundCheckpoint", *, elsewhere: bool
) -> "VisionExport":
    """Export what runs in ONNX Runtime of a checkpoint.

    Args:
        name: The model as the user gave it.
        found: What was found.
        elsewhere: Whether it is to be written to a folder or published.

    Raises:
        UsageError: It is to be.
        BundleError: It is not downloaded.
    """
    from regionqa.vlm.catalogue import FoundCheckpoint
    from regionqa.vlm.store import download_command

    if elsewhere:
        what = "network" if isinstance(found, FoundCheckpoint) else "vision encoder"
        raise UsageError(
            f"--out, --push: {name} is a checkpoint of the Hub, of which the {what} alone is "
            "exported, to regionqa's folder in HF_HOME; leave them out"
        )
    if isinstance(found, FoundCheckpoint):
        if found.folder is None:
            raise BundleError(f"{name}: not downloaded yet; run: regionqa download {name}")
        return export_network(found, found.folder, again=True)
    if found.folder is None:
        raise BundleError(f"{name}: not downloaded yet; run: {download_command(found.card)}")
    return export_vision(found.card, found.folder, again=True)


def find_checkpoint(model: str) -> "FoundVlm | FoundCheckpoint | None":
    """Find a vision-language model, a detector or a segmenter; None for a bundle.

    Raises:
        UnknownFamilyError: It is a checkpoint of a family that is not known.
    """
    from regionqa.vlm.cards import UnknownFamilyError
    from regionqa.vlm.store import find_vlm

    if named := named_network(model):
        return named
    try:
        return find_vlm(model)
    except UnknownFamilyError:
        if network := find_network(model):
            return network
        raise


def named_network(name: str, revision: str | None = None) -> "FoundCheckpoint | None":
    """Return a detector or segmenter that has this name in the package."""
    from regionqa.detection.cards import detector_cards
    from regionqa.segmentation.base import segmenter_cards

    known = name in detector_cards() or name in segmenter_cards()
    return find_network(name, revision) if known else None


def find_network(name: str, revision: str | None = None) -> "FoundCheckpoint | None":
    """Find a detector or segmenter by name, in a folder or on the Hub; None for anything else."""
    from regionqa.detection.cards import detector_checkpoint
    from regionqa.segmentation.base import segmenter_cards, segmenter_checkpoint

    if name in segmenter_cards():
        return segmenter_checkpoint(name, revision)
    return detector_checkpoint(name, revision) or segmenter_checkpoint(name, revision)


# -- vision encoders, detectors, segmenters --------------------------------------------------------


def export_vision(card: "VlmCard", folder: Path, *, again: bool) -> "VisionExport":
    """Export a checkpoint's vision encoder to ONNX and report on stderr how it compares with torch.

    Args:
        card: The model's card.
        folder: The checkpoint.
        again: Replace an export that can be used.

    Raises:
        UsageError: The extra `export` is not installed, or the card says that the family's encoder
            is not exported.
        ExportError: It cannot be exported, or differs from torch.
    """
    require("exporting a vision encoder", "export", EXPORT)
    from regionqa.export.vlm.vision import export_vision_encoder

    print(f"exporting the vision encoder of {card.name} to ONNX", file=sys.stderr)
    export, new = export_vision_encoder(card, folder, again=again)
    report_export(f"vision encoder of {card.name}", export, "tokens", new=new)
    return export


def export_network(found: "FoundCheckpoint", folder: Path, *, again: bool) -> "VisionExport":
    """Export a detector or segmenter to ONNX and report on stderr how it compares with torch.

    Args:
        found: What was found.
        folder: Its files.
        again: Replace an export that can be used.

    Raises:
        UsageError: The extra `export` is not installed.
        ExportError: It cannot be exported, or differs from torch.
    """
    from regionqa.segmentation.base import FoundSegmenter

    is_segmenter = isinstance(found, FoundSegmenter)
    what, outputs = ("segmenter", "points") if is_segmenter else ("detector", "boxes")
    require(f"exporting a {what}", "export", EXPORT)
    from regionqa.export.detectors import export_detector
    from regionqa.export.segmenters import export_segmenter

    print(f"exporting the {what} {found.name} to ONNX", file=sys.stderr)
    write = export_segmenter if is_segmenter else export_detector
    export, new = write(found.name, folder, again=again)
    report_export(f"{what} {found.name}", export, outputs, new=new)
    return export


def report_export(what: str, export: "VisionExport", outputs: str, *, new: bool) -> None:
    """Report on stderr how an exported network compares with torch.

    Args:
        what: The network.
        export: Its export.
        outputs: What it puts out, such as `tokens`.
        new: Whether it was exported just now.
    """
    for check in export.manifest.checks:
        width, height = check.size
        print(
            f"{what}: differs from torch by {check.difference:.1e} "
            f"({width} x {height} pixels, {check.tokens} {outputs})",
            file=sys.stderr,
        )
    if not new:
        print("exported before; nothing was written", file=sys.stderr)


def prepare_network(found: "FoundCheckpoint", folder: Path) -> None:
    """Export a downloaded detector or segmenter; where that fails, say so and use torch."""
    try:
        export_network(found, folder, again=False)
    except (UsageError, ExportError) as error:
        print(f"{found.name} runs in torch: {error}", file=sys.stderr)


def prepare_vision(card: "VlmCard", folder: Path) -> None:
    """Export a downloaded checkpoint's vision encoder; where that fails, say so and use torch."""
    if not card.onnx_vision:
        return
    try:
        export_vision(card, folder, again=False)
    except (UsageError, ExportError) as error:
        print(f"the vision encoder of {card.name} runs in torch: {error}", file=sys.stderr)
