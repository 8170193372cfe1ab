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
    from regionqa.detection.cards import FoundDetector
    from regionqa.vlm.card import VlmCard
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
    Of an object detector, the whole network is. `regionqa download` does this too.

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
    name: str, found: "FoundVlm | FoundDetector", *, elsewhere: bool
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
    from regionqa.detection.cards import FoundDetector
    from regionqa.vlm.store import download_command

    if elsewhere:
        what = "network" if isinstance(found, FoundDetector) else "vision encoder"
        raise UsageError(
            f"--out, --push: {name} is a checkpoint of the Hub, of which the {what} alone is "
            "exported, to regionqa's folder in HF_HOME; leave them out"
        )
    if isinstance(found, FoundDetector):
        if found.folder is None:
            raise BundleError(f"{name}: not downloaded yet; run: regionqa download {name}")
        return export_detector(found.name, found.folder, again=True)
    if found.folder is None:
        raise BundleError(f"{name}: not downloaded yet; run: {download_command(found.card)}")
    return export_vision(found.card, found.folder, again=True)


def find_checkpoint(model: str) -> "FoundVlm | FoundDetector | None":
    """Find a vision-language model or a detector; None for a bundle.

    Raises:
        UnknownFamilyError: It is a checkpoint of a family that is not known.
    """
    from regionqa.detection.cards import detector_cards, detector_checkpoint
    from regionqa.vlm.cards import UnknownFamilyError
    from regionqa.vlm.store import find_vlm

    if model in detector_cards():
        return detector_checkpoint(model)
    try:
        return find_vlm(model)
    except UnknownFamilyError:
        if detector := detector_checkpoint(model):
            return detector
        raise


# -- vision encoders and detectors -----------------------------------------------------------------


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


def export_detector(name: str, folder: Path, *, again: bool) -> "VisionExport":
    """Export a detector to ONNX and report on stderr how it compares with torch.

    Raises:
        UsageError: The extra `export` is not installed.
        ExportError: It cannot be exported, or differs from torch.
    """
    require("exporting a detector", "export", EXPORT)
    from regionqa.export.detectors import export_detector as write_export

    print(f"exporting the detector {name} to ONNX", file=sys.stderr)
    export, new = write_export(name, folder, again=again)
    report_export(f"detector {name}", export, "boxes", new=new)
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


def prepare_detector(name: str, folder: Path) -> None:
    """Export a downloaded detector; where that fails, say so and use torch."""
    try:
        export_detector(name, folder, again=False)
    except (UsageError, ExportError) as error:
        print(f"the detector {name} runs in torch: {error}", file=sys.stderr)


def prepare_vision(card: "VlmCard", folder: Path) -> None:
    """Export a downloaded checkpoint's vision encoder; where that fails, say so and use torch."""
    if not card.onnx_vision:
        return
    try:
        export_vision(card, folder, again=False)
    except (UsageError, ExportError) as error:
        print(f"the vision encoder of {card.name} runs in torch: {error}", file=sys.stderr)
