"""`init`: assemble a bundle from published parts."""

import sys
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from regionqa.bundles.prompt_rules import RegionInput
from regionqa.cli.options import EXPORT, require, with_options
from regionqa.errors import UsageError
from regionqa.files import is_folder
from regionqa.flags import Options, Reads, Writes, option
from regionqa.options import RegionSource

if TYPE_CHECKING:
    from regionqa.export.init import InitResult
    from regionqa.export.sources.timm_checkpoints import TimmCheckpoint

TIMM = "timm:"
"""Beginning of a vision encoder's name that is an architecture of timm."""

BESIDE_WEIGHTS = ("*.json", "*.model", "*.txt", "*.jinja")
"""Files of a transformers checkpoint beside its weights."""


class FitChoice(StrEnum):
    """Ways to make an image square: those of `regionqa.images.preprocessing.Fit`."""

    squash = "squash"
    pad = "pad"
    crop = "crop"


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class InitOptions(Options):
    """Parts of a new bundle, and how they are connected."""

    vision: str | None = option(
        None,
        "Vision encoder: a CLIP or SigLIP, or timm:NAME, a backbone of timm.",
        metavar="ID",
        role=Reads.model,
    )
    vision_weights: Path | None = option(
        None,
        "With timm:NAME: a .safetensors or .pth file of its weights, or a folder. Default: timm's, "
        "on the Hub.",
        metavar="PATH",
        role=Reads.data,
        needs=("vision",),
    )
    llm: str | None = option(
        None, "Causal language model, with its tokenizer.", metavar="ID", role=Reads.model
    )
    from_llava: str | None = option(
        None,
        "LLaVA in transformers' format, to take all parts from.",
        metavar="ID",
        role=Reads.model,
    )
    region_input: RegionInput | None = option(
        None,
        "Input of the language model for a region. Default: features for new parts, coordinates "
        "for a LLaVA.",
    )
    region_source: RegionSource = option(
        RegionSource.levels, "With features: input of the region encoder."
    )
    fit: FitChoice | None = option(
        None,
        "How an image is made square. Default: squash for new parts, the LLaVA's own way for a "
        "LLaVA.",
    )
    name: str | None = option(None, "Name of the model. Default: the folder's.")

    def check(self) -> None:
        """Require either two parts or a LLaVA."""
        parts = self.vision and self.llm and not self.from_llava
        llava = self.from_llava and not self.vision and not self.llm
        if not parts and not llava:
            raise UsageError("give either --vision and --llm, or --from-llava alone")
        if self.vision_weights and timm_name(self.vision) is None:
            raise UsageError("--vision-weights: has no effect without --vision timm:NAME")
        chosen = self.region_input or (RegionInput.coordinates if llava else RegionInput.features)
        if self.region_source is RegionSource.pixels and chosen is not RegionInput.features:
            raise UsageError("--region-source: has no effect without --region-input features")


@with_options
def init(
    out: Annotated[
        Path, typer.Argument(metavar="OUT", help="Folder of the new bundle."), Writes.folder
    ],
    *,
    parts: InitOptions,
) -> None:
    """Assemble a model from published parts, each a folder or a repository on the Hub.

    regionqa init my-model --vision openai/clip-vit-large-patch14 --llm Qwen/Qwen2-0.5B-Instruct

    regionqa init my-model --vision timm:convnext_tiny --llm Qwen/Qwen2-0.5B-Instruct

    regionqa init my-llava --from-llava llava-hf/llava-1.5-7b-hf
    """
    folder = free_folder(out)
    require("init", "export", EXPORT)
    for line in summary(assemble(folder, parts)):
        print(line, file=sys.stderr)
    print(out)


def assemble(folder: Path, parts: InitOptions) -> "InitResult":
    """Download what is missing, and write the bundle."""
    from regionqa.export.init import init_bundle
    from regionqa.export.sources.llava import llava_bundle
    from regionqa.images.preprocessing import Fit

    if parts.from_llava:
        return llava_bundle(
            checkpoint(parts.from_llava),
            folder,
            name=parts.name,
            region_input=parts.region_input or RegionInput.coordinates,
            region_source=parts.region_source,
            fit=Fit(parts.fit) if parts.fit else None,
            origin=display_name(parts.from_llava),
        )
    assert parts.vision and parts.llm
    vision, origin = vision_checkpoint(parts.vision, parts.vision_weights)
    return init_bundle(
        vision,
        checkpoint(parts.llm),
        folder,
        name=parts.name,
        region_input=parts.region_input or RegionInput.features,
        region_source=parts.region_source,
        fit=Fit(parts.fit or FitChoice.squash),
        origins=(origin, display_name(parts.llm)),
    )


def timm_name(vision: str | None) -> str | None:
    """Return NAME of timm:NAME; None for anything else."""
    return vision.removeprefix(TIMM) if vision and vision.startswith(TIMM) else None


def vision_checkpoint(vision: str, weights: Path | None) -> "tuple[Path | TimmCheckpoint, str]":
    """Return the folder of a tower, or a timm backbone; and its name for a card."""
    name = timm_name(vision)
    if name is None:
        return checkpoint(vision), display_name(vision)
    from regionqa.export.sources.timm_checkpoints import find_timm

    found = find_timm(name, weights)
    return found, found.origin


def checkpoint(name: str) -> Path:
    """Return the folder of a transformers checkpoint, downloading what is needed of a repository.

    Many repositories hold their weights twice; pickled ones are the last resort.
    """
    from regionqa.bundles.hub import local_or_hub
    from regionqa.bundles.store import shipped_vlm_names

    if name in shipped_vlm_names():
        raise UsageError(
            f"{name}: is a vision-language model that is asked as it is (--model {name}); init "
            "takes parts, each a folder or OWNER/NAME on the Hub"
        )
    folder = local_or_hub(name, files=(*BESIDE_WEIGHTS, "*.safetensors"))
    if any(folder.glob("*.safetensors")):
        return folder
    return local_or_hub(name, files=(*BESIDE_WEIGHTS, "*.bin"))


def display_name(name: str) -> str:
    """Return the name of a checkpoint for a card, without a path of this machine."""
    return Path(name).resolve().name if is_folder(Path(name)) else name


def free_folder(out: Path) -> Path:
    """Return the absolute path of a new or empty folder; UsageError if there is anything in it."""
    folder = out.absolute()
    if folder.is_dir() and not any(folder.iterdir()):
        return folder
    if folder.exists() or folder.is_symlink():
        raise UsageError(f"{out}: already exists; name a new or empty folder")
    return folder


def summary(result: "InitResult") -> list[str]:
    """Summarise a new bundle in lines."""
    counts = (f"{part} {number / 1e6:,.1f} M" for part, number in result.parameters.items())
    prompt = result.bundle.card.prompt
    lines = [f"weights: {', '.join(counts)}", f"regions: {prompt.region_input}"]
    lines += [report.summary for report in result.reports]
    lines += [f"note: {note}" for note in result.notes]
    if result.untrained:
        parts = " and ".join(result.untrained)
        lines.append(f"untrained: {parts}; train it with regionqa finetune")
    return lines
