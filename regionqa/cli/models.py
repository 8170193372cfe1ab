"""`models`, `doctor` and `demo`: show what is installed and whether it works."""

import json
import sys
from collections.abc import Iterable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import regionqa
from regionqa.cli.options import only, with_options, without
from regionqa.errors import RegionQAError, UsageError
from regionqa.flags import Reads, Writes
from regionqa.options import OutputOptions, RuntimeOptions

if TYPE_CHECKING:
    from regionqa.backends.chooser import ModelChoice
    from regionqa.backends.diagnostics import Finding
    from regionqa.bundles.card import ModelCard
    from regionqa.vlm.store import FoundVlm

WIDE = 110
"""Columns of a terminal from which the table is shown whole."""
models_app = typer.Typer(help="Choose, list and show models.", no_args_is_help=True)


class ListFormat(StrEnum):
    """Formats of the list of models."""

    text = "text"
    """A table at a terminal, else one line per model with tabs between columns."""
    jsonl = "jsonl"


@models_app.command("list")
@with_options
def list_models(
    format: Annotated[
        ListFormat, typer.Option("--format", "-f", help="Output format; jsonl has all fields.")
    ] = ListFormat.text,
) -> None:
    """List models that ship or can be downloaded by name, with what they need here.

    Memory is estimated for this machine's GPU, or its CPU where there is none. The first of the
    ways of telling a region is the default. Columns without a terminal: name, size, summary,
    memory, whether it fits, licence, ways, measured or not, and state.
    """
    from regionqa.backends.chooser import known_models, this_machine

    choices = known_models(this_machine())
    if format is ListFormat.jsonl:
        for each in choices:
            print(json.dumps(choice_record(each), ensure_ascii=False))
    elif sys.stdout.isatty():
        show_table(choices)
    else:
        for each in choices:
            print("\t".join(choice_columns(each)))


@models_app.command("recommend")
@with_options
def recommend_model() -> None:
    """Print the name of a model for this machine; its reason and what to run next on stderr.

    It is the largest of the recommended models whose estimated memory fits the GPU, or the CPU
    where there is none: then of those with at most 3 billion weights per token.

    regionqa download $(regionqa models recommend)
    """
    from regionqa.backends.chooser import known_models, recommend, this_machine

    here = this_machine()
    choice = recommend(known_models(here), here)
    print(choice.name)
    for line in reasons(choice):
        print(line, file=sys.stderr)


def reasons(choice: "ModelChoice") -> list[str]:
    """Return why a model is recommended, and the commands to run next, as lines."""
    from regionqa.backends.chooser import ModelState
    from regionqa.runtime.memory import gigabytes

    need = choice.memory
    if choice.recommended and need:
        why = (
            f"the largest recommended model that fits: about {gigabytes(need.bytes)} with "
            f"{need.setting}; {choice.recommended}"
        )
    else:
        why = f"no recommended model fits this machine; {choice.summary}"
    if not choice.measured:
        why += "; nothing was measured on its weights"
    commands = [f'regionqa ask IMAGE --model {choice.name} --box X0,Y0,X1,Y1 "what is this?"']
    if choice.state is ModelState.absent:
        commands.insert(0, f"regionqa download {choice.name}")
    return [f"reason: {why}", f"licence: {choice.licence}", *(f"next: {each}" for each in commands)]


def choice_columns(choice: "ModelChoice") -> list[str]:
    """Return the columns of a model's line."""
    from regionqa.bundles.hub import readable
    from regionqa.runtime.memory import gigabytes

    need = choice.memory
    return [
        choice.name,
        readable(choice.download),
        choice.summary,
        gigabytes(need.bytes) if need else "unknown",
        need.text if need else "unknown",
        choice.licence,
        ", ".join(choice.ways),
        "measured" if choice.measured else "not measured",
        str(choice.state),
    ]


def choice_record(choice: "ModelChoice") -> dict[str, object]:
    """Return all that is known of a model, for JSON."""
    need = choice.memory
    return {
        "name": choice.name, "summary": choice.summary, "good_at": choice.good_at,
        "state": choice.state, "download_bytes": choice.download,
        "memory_bytes": need and need.bytes, "setting": need and need.setting,
        "fits": need and need.fits, "fits_with": (need and need.instead) or None,
        "licence": choice.licence, "parameters": choice.parameters,
        "active_parameters": choice.active, "default_way": choice.ways[0],
        "ways": list(choice.ways), "measured": choice.measured or None,
        "recommended": choice.recommended or None,
    }  # fmt: skip


def show_table(choices: Sequence["ModelChoice"]) -> None:
    """Print the table for a terminal."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    from regionqa.runtime.memory import gigabytes

    console = Console(markup=False, highlight=False)
    wide = console.width >= WIDE
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("model", no_wrap=True)
    for heading in ("size", "memory"):
        table.add_column(heading, justify="right", no_wrap=True)
    for heading in ("fits", "good at", "here", *(("way", "licence", "measured") if wide else ())):
        table.add_column(heading)
    for each in choices:
        size, need = choice_columns(each)[1], each.memory
        default, *others = each.ways
        further = [
            f"{default} (or {', '.join(others)})" if others else default,
            each.short_licence,
            "yes" if each.measured else "no",
        ]
        table.add_row(
            each.name, size, gigabytes(need.bytes) if need else "unknown",
            need.text if need else "unknown", each.good_at, str(each.state),
            *(further if wide else ()),
        )  # fmt: skip
    console.print(table)
    if not wide:
        console.print(f"With {WIDE} columns: ways, licence, measured or not.")


@models_app.command("show")
@with_options
def show_model(
    model: Annotated[
        str,
        typer.Argument(help="Name (regionqa models list), folder, or OWNER/NAME on the Hub."),
        Reads.model,
    ] = "starter",
) -> None:
    """Print a model's card: description, training data, results, licence.

    For a model that is not downloaded yet, also its terms, the disk and memory that it takes, and
    the steps, by the card and without network access.
    """
    from regionqa.bundles.store import (
        CARD,
        find_bundle,
        published_cards,
        published_folder,
        shipped_folder,
    )
    from regionqa.vlm.store import find_vlm

    published = published_cards()
    if model in published and not (published_folder(model) / CARD).is_file():
        show_published(published[model], shipped_folder() / model / CARD)
    elif found := find_vlm(model):
        show_vlm(found)
    else:
        root = find_bundle(model).root
        show_files([root / CARD])


def show_files(paths: Iterable[Path]) -> None:
    """Print files, each after its path as a comment."""
    for path in paths:
        print(f"# {path}")
        print(path.read_text(encoding="utf-8"), end="")


def show_vlm(found: "FoundVlm") -> None:
    """Print terms, needs and steps of a vision-language model, as comments, and its tables."""
    from regionqa.bundles.hub import readable
    from regionqa.runtime.memory import table
    from regionqa.vlm.cards import family_paths
    from regionqa.vlm.memory import needs_of_vlm
    from regionqa.vlm.store import download_command

    card, source = found.card, found.card.source
    lines = [f"{card.name}: {card.summary}"]
    if source:
        size = f", {readable(source.size)}" if source.size else ""
        lines.append(f"checkpoint: {source.repo} at {source.revision}{size}")
        lines.append(f"licence: {source.licence or 'not stated by the card'}")
    if found.folder:
        lines.append(f"downloaded: {found.folder}")
    else:
        lines.append(f"not downloaded yet; run: {download_command(card)}")
    if found.path is None:
        lines.append("it has no card of its own: what follows are its family's conventions")
    lines.append(f"default way: {card.regions.default}; {card.regions.measured or 'not measured'}")
    needs = needs_of_vlm(card, found.folder)
    lines += ["memory to ask it:", *(f"  {line}" for line in table(needs))] if needs else []
    for line in lines:
        print(f"# {line}")
    show_files([*([found.path] if found.path else []), *family_paths(card.family)])


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
    runtime: Annotated[RuntimeOptions, without("batch_size", "cache", "cache_size")],
) -> int:
    """Report what is installed, what runs where, and how much memory the model needs."""
    if probe:
        return probe_model(runtime)
    for name in ("device", "dtype", "quantize", "way", "server"):
        if getattr(runtime, name) != getattr(RuntimeOptions(), name):
            raise UsageError(f"--{name}: has no effect without --probe; add it, or drop --{name}")
    from regionqa.backends.diagnostics import diagnose, memory_needed

    findings = [*diagnose(runtime.model), *vision_findings(runtime)]
    width = max(len(finding.topic) for finding in findings)
    for finding in findings:
        mark = " " if finding.good else "!"
        print(f"{mark} {finding.topic:{width}}  {finding.text}")
    print()
    for line in memory_needed(runtime.model):
        print(f"  {line}")
    return 0 if all(finding.good for finding in findings) else 1


def vision_findings(runtime: RuntimeOptions) -> "list[Finding]":
    """Return where a vision-language model's vision encoder runs, and why; nothing for others."""
    from regionqa.backends.diagnostics import Finding
    from regionqa.vlm.store import find_vlm
    from regionqa.vlm.vision_exports import choose_vision

    try:
        found = find_vlm(runtime.model)
    except RegionQAError:  # reported already
        return []
    if found is None or found.folder is None:
        return []
    try:
        choice = choose_vision(found.card, found.folder, runtime.vision_runtime)
    except RegionQAError as error:
        return [Finding("vision encoder", str(error), False)]
    return [Finding("vision encoder", f"in {choice.runtime}: {choice.reason}")]


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
) -> int:
    """Ask about a few real photos and draw the answers."""
    from regionqa.pipeline.demo import check_demo, run_demo

    check_demo(out, overwrite=output.overwrite)
    return run_demo(regionqa.load(runtime.model, runtime), out, print)
