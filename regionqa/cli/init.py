"""`init`: a bundle of one's own from published parts."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from regionqa.bundles.prompt_rules import RegionInput
from regionqa.cli.options import EXPORT, require, with_options

if TYPE_CHECKING:
    from regionqa.export.init import InitResult


BESIDE_WEIGHTS = ("*.json", "*.model", "*.txt", "*.jinja")
"""What a checkpoint in transformers' format holds beside its weights."""


class SourceChoice(StrEnum):
    """Values of --region-source, the same as `export.init.RegionSource`."""

    levels = "levels"
    pixels = "pixels"


class FitChoice(StrEnum):
    """Values of --fit, the same as those of `placement.Fit` that make squares."""

    squash = "squash"
    pad = "pad"
    crop = "crop"


@with_options
def init(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The new bundle's folder.")],
    vision: Annotated[
        str | None, typer.Option(metavar="ID", help="A vision tower: CLIP or SigLIP.")
    ] = None,
    llm: Annotated[
        str | None, typer.Option(metavar="ID", help="A causal language model with its tokenizer.")
    ] = None,
    from_llava: Annotated[
        str | None,
        typer.Option(
            metavar="ID", help="A LLaVA in transformers' format, of which all parts are taken."
        ),
    ] = None,
    region_input: Annotated[
        RegionInput | None,
        typer.Option(
            help="What the language model is told of a region; features for new parts, "
            "coordinates for a LLaVA, if not said."
        ),
    ] = None,
    region_source: Annotated[
        SourceChoice, typer.Option(help="With features: what the region encoder looks at.")
    ] = SourceChoice.levels,
    fit: Annotated[
        FitChoice | None,
        typer.Option(
            help="How an image becomes a square; squash for new parts, a LLaVA's own way, if not "
            "said."
        ),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="What the model is called; the folder's name, if not said.")
    ] = None,
) -> None:
    """Put a model together from published parts, each a folder or a repository of the Hub.

    regionqa init my-model --vision openai/clip-vit-large-patch14 --llm Qwen/Qwen2-0.5B-Instruct

    regionqa init my-llava --from-llava llava-hf/llava-1.5-7b-hf
    """
    import sys

    from regionqa.errors import UsageError

    if not (from_llava and not vision and not llm) and not (vision and llm and not from_llava):
        raise UsageError("say either --vision and --llm, or --from-llava alone")
    folder = free_folder(out)
    require("init", "export", EXPORT)
    made = make(folder, vision, llm, from_llava, region_input, region_source, fit, name)
    for line in told(made):
        print(line, file=sys.stderr)
    print(out)


def make(
    folder: Path,
    vision: str | None,
    llm: str | None,
    from_llava: str | None,
    region_input: RegionInput | None,
    region_source: SourceChoice,
    fit: FitChoice | None,
    name: str | None,
) -> "InitResult":
    """Fetch what is not here, and write the bundle."""
    from regionqa.export.init import RegionSource, init_bundle
    from regionqa.export.sources.llava import llava_bundle
    from regionqa.images.preprocessing import Fit

    source = RegionSource(region_source)
    if from_llava:
        return llava_bundle(
            checkpoint(from_llava),
            folder,
            name=name,
            region_input=region_input or RegionInput.coordinates,
            region_source=source,
            fit=Fit(fit) if fit else None,
            origin=display_name(from_llava),
        )
    assert vision and llm
    return init_bundle(
        checkpoint(vision),
        checkpoint(llm),
        folder,
        name=name,
        region_input=region_input or RegionInput.features,
        region_source=source,
        fit=Fit(fit or "squash"),
        origins=(display_name(vision), display_name(llm)),
    )


def checkpoint(name: str) -> Path:
    """The folder of a checkpoint in transformers' format; of a repository, what is needed of it.

    Many repositories hold their weights twice, and the old form only where there is no other.
    """
    from regionqa.bundles.hub import local_or_hub

    folder = local_or_hub(name, files=(*BESIDE_WEIGHTS, "*.safetensors"))
    if any(folder.glob("*.safetensors")):
        return folder
    return local_or_hub(name, files=(*BESIDE_WEIGHTS, "*.bin"))


def display_name(name: str) -> str:
    """What a card calls a checkpoint: no path of this machine."""
    return Path(name).resolve().name if Path(name).is_dir() else name


def free_folder(out: Path) -> Path:
    """The whole path of a folder that is not there, or empty; UsageError where it is taken."""
    from regionqa.errors import UsageError

    folder = out.absolute()
    if folder.is_dir() and not any(folder.iterdir()):
        return folder
    if folder.exists() or folder.is_symlink():
        raise UsageError(f"{out}: is there already; give a new folder, or an empty one")
    return folder


def told(made: "InitResult") -> list[str]:
    """What was put together, line by line."""
    counts = (f"{part} {number / 1e6:,.1f} M" for part, number in made.parameters.items())
    prompt = made.bundle.card.prompt
    lines = [f"weights: {', '.join(counts)}", f"regions: {prompt.region_input}"]
    lines += [
        f"{report.graph}: differs from torch by {report.difference:.1e} over "
        f"{', '.join(report.cases)}"
        for report in made.reports
    ]
    lines += [f"note: {note}" for note in made.notes]
    if made.untrained:
        parts = " and ".join(made.untrained)
        lines.append(f"untrained: {parts}; train it with regionqa finetune")
    return lines
