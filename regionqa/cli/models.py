"""`models`, `doctor` and `demo`: show what is installed and whether it works."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import regionqa
from regionqa.cli.options import only, with_options, without
from regionqa.errors import UsageError
from regionqa.flags import Reads, Writes
from regionqa.options import OutputOptions, RuntimeOptions

if TYPE_CHECKING:
    from regionqa.bundles.card import ModelCard

models_app = typer.Typer(help="List and show models.", no_args_is_help=True)


@models_app.command("list")
@with_options
def list_models() -> None:
    """List shipped models, and published models that can be downloaded by name."""
    from regionqa.bundles.hub import readable
    from regionqa.bundles.store import (
        CARD,
        open_bundle,
        published_cards,
        published_folder,
        shipped_bundles,
    )

    for folder in shipped_bundles().values():
        bundle = open_bundle(folder)
        print(f"{bundle.card.name}\t{bundle.size / 1e6:.1f} MB\t{bundle.card.summary}")
    for name, card in published_cards().items():
        if (published_folder(name) / CARD).is_file():
            size = open_bundle(published_folder(name)).size
            print(f"{name}\t{readable(size)}\t{card.summary}; downloaded")
        elif card.sources:
            print(
                f"{name}\t{readable(card.sources.size)} to fetch\t{card.summary}; not downloaded: "
                f"regionqa download {name}"
            )


@models_app.command("show")
@with_options
def show_model(
    model: Annotated[
        str,
        typer.Argument(
            help="Name of a shipped model, folder of a bundle, or OWNER/NAME on the Hub."
        ),
        Reads.model,
    ] = "starter",
) -> None:
    """Print a model's card: description, training data, results, licence.

    For a published model that is not downloaded yet, also its parts with their terms, the disk and
    memory that it takes, and the steps, by the card and without network access.
    """
    from regionqa.bundles.store import (
        CARD,
        find_bundle,
        published_cards,
        published_folder,
        shipped_folder,
    )

    published = published_cards()
    if model in published and not (published_folder(model) / CARD).is_file():
        show_published(published[model], shipped_folder() / model / CARD)
        return
    bundle = find_bundle(model)
    print(f"# {bundle.root / CARD}")
    print((bundle.root / CARD).read_text(encoding="utf-8"), end="")


def show_published(card: "ModelCard", path: Path) -> None:
    """Print terms, needs and steps of a model that is not downloaded, as comments, and its card."""
    from regionqa.bundles.store import published_folder
    from regionqa.cli.published import plan, terms
    from regionqa.export.sources.download import parts_of_card

    parts = parts_of_card(card)
    lines = [f"{path}", "not downloaded; by its card:", *terms(parts)]
    for line in (*lines, *plan(card, parts, published_folder(card.name))):
        print(f"# {line}".rstrip())
    print(path.read_text(encoding="utf-8"), end="")


@with_options
def doctor(
    *,
    probe: Annotated[
        bool,
        typer.Option(
            "--probe",
            help="Ask the model about made-up images, box by box, in every way it has, and report "
            "whether it looks where it is told.",
        ),
    ] = False,
    runtime: Annotated[RuntimeOptions, without("batch_size")],
) -> int:
    """Report what is installed, what runs where, and how much memory the model needs."""
    if probe:
        return probe_model(runtime)
    for name in ("device", "dtype", "quantize", "way"):
        if getattr(runtime, name) != getattr(RuntimeOptions(), name):
            raise UsageError(f"--{name}: has no effect without --probe; add it, or drop --{name}")
    from regionqa.runtime.diagnostics import diagnose, memory_needed

    findings = diagnose(runtime.model)
    width = max(len(finding.topic) for finding in findings)
    for finding in findings:
        mark = " " if finding.good else "!"
        print(f"{mark} {finding.topic:{width}}  {finding.text}")
    print()
    for line in memory_needed(runtime.model):
        print(f"  {line}")
    return 0 if all(finding.good for finding in findings) else 1


def probe_model(runtime: RuntimeOptions) -> int:
    """Probe a model and print a table; the exit status is 1 if a way looks wrong."""
    from regionqa.cli.eval_report import show
    from regionqa.evaluation.probe.report import probe_table
    from regionqa.evaluation.probe.run import run_probe

    engine = regionqa.load(runtime.model, runtime)
    outcomes = run_probe(engine, (runtime.way,) if runtime.way else ())
    show([probe_table(engine.info.name, outcomes)])
    for outcome in outcomes:
        print(f"{outcome.way or 'its own way'}: {outcome.verdict}")
    return 0 if all(outcome.sound for outcome in outcomes) else 1


@with_options
def demo(
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder of the drawings."), Writes.drawings
    ] = Path("demo-images"),
    *,
    runtime: Annotated[RuntimeOptions, only("model", "device")],
    output: Annotated[OutputOptions, only("overwrite")],
) -> None:
    """Ask about a few real photos and draw the answers."""
    from regionqa.pipeline.demo import check_demo, run_demo

    check_demo(out, overwrite=output.overwrite)
    run_demo(regionqa.load(runtime.model, runtime), out, print)
