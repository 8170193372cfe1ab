"""`download NAME`: fetch and convert a published model, with its plan, licences and progress."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from regionqa.cli.options import EXPORT, require
from regionqa.errors import UsageError
from regionqa.flags import Options, Reads, Writes, option
from regionqa.options import DtypeChoice

if TYPE_CHECKING:
    from regionqa.bundles.card import ModelCard
    from regionqa.export.sources.download import PublishedPart


PART = "Published models: folder, file or OWNER/NAME of this part."


@dataclass(frozen=True, kw_only=True)
class ConversionOptions(Options):
    """Options of `download` that only published models have."""

    delta: str | None = option(None, PART, metavar="PLACE", role=Reads.model)
    base: str | None = option(None, PART, metavar="PLACE", role=Reads.model)
    vision: str | None = option(None, PART, metavar="PLACE", role=Reads.model)
    region: str | None = option(None, PART, metavar="PLACE", role=Reads.model)
    out: Path | None = option(
        None,
        "Published models: folder of the converted model.",
        "--out",
        "-o",
        role=Writes.folder,
    )
    dtype: DtypeChoice = option(
        DtypeChoice.auto, "Published models: type of the weights; auto is the published one."
    )
    keep_delta: bool = option(
        False, "Published models: keep the delta in the Hub's cache.", "--keep-delta"
    )
    any_base: bool = option(
        False, "Published models: accept a base that looks like the wrong one.", "--any-base"
    )

    @property
    def parts(self) -> dict[str, str]:
        """The parts that are given, by name."""
        given = {
            "delta": self.delta, "base": self.base, "vision": self.vision, "region": self.region,
        }  # fmt: skip
        return {name: place for name, place in given.items() if place}


def download_published(
    name: str, card: "ModelCard", options: ConversionOptions, dry_run: bool
) -> None:
    """Fetch and convert a published model; prints its folder."""
    from regionqa.bundles.store import CARD, open_bundle, published_folder
    from regionqa.export.sources.download import check_parts, convert_parts, fetch_part, find_parts

    folder = options.out.absolute() if options.out else published_folder(name)
    if dry_run:
        parts = find_parts(card, options.parts, strict=False)
        if any(part.is_estimate for part in parts):
            print("the Hub cannot be reached: what follows is by the model's card", file=sys.stderr)
        show_licences(parts)
        print("\n".join(plan(card, parts, folder)))
        return None
    if (folder / CARD).is_file():
        open_bundle(folder)
        print(f"{name}: is there already; remove the folder to convert it anew", file=sys.stderr)
        print(folder)
        return None
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise UsageError(f"{folder}: is there already, and is no model; give another --out")
    require("download", "export", EXPORT)
    parts = find_parts(card, options.parts)
    show_licences(parts)
    notes = check_parts(card, parts, folder)
    in_order = sorted(parts, key=lambda part: part.size)  # what is wrong shows after few bytes
    places = {part.name: fetch_part(part) for part in in_order}
    with progress_bar() as progress:
        converted = convert_parts(
            card, parts, places, folder,
            dtype=str(options.dtype), any_base=options.any_base, progress=progress,
        )  # fmt: skip
    for report in converted.reports:
        print(report.summary, file=sys.stderr)
    for note in (*notes, *converted.notes):
        print(f"note: {note}", file=sys.stderr)
    if not options.keep_delta:
        remove_delta(parts[0])
    print(folder)
    return None


def remove_delta(part: "PublishedPart") -> None:
    """Remove the delta from the Hub's cache, now that the model is converted, and say so."""
    from regionqa.bundles.hub import readable
    from regionqa.export.sources.download import remove_from_cache

    freed = remove_from_cache(part)
    if freed is not None:
        print(
            f"{part.repo}: removed from the cache, {readable(freed)}; --keep-delta keeps it",
            file=sys.stderr,
        )


def show_licences(parts: "Sequence[PublishedPart]") -> None:
    """Print the licence of every part, before anything is fetched."""
    for line in terms(parts):
        print(line, file=sys.stderr)


def terms(parts: "Sequence[PublishedPart]") -> list[str]:
    """The licence of every part, a line each."""
    return [f"licence of {part.source.what} ({part.where}): {part.licence}" for part in parts]


def plan(card: "ModelCard", parts: "Sequence[PublishedPart]", folder: Path) -> list[str]:
    """What a published model takes: files, disk, memory and steps, as lines."""
    from regionqa.bundles.hub import readable
    from regionqa.export.sources.download import CONVERSION_MEMORY, ENCODER_DISK
    from regionqa.runtime.memory import needs_of_published, table

    lines = []
    for part in parts:
        mirrors = part.source.mirrors if part.repo == part.source.repo else ()
        also = f" (the same weights: {', '.join(mirrors)})" if mirrors else ""
        lines.append(f"{readable(part.size):>12}  {part.name}: {part.where}{also}")
        listed = part.listing.files if part.listing else ()
        lines += [f"{readable(file.size):>16}  {file.path}" for file in listed]
    missing, bundle = sum(part.missing for part in parts), parts[0].size + ENCODER_DISK
    lines += [
        f"{readable(missing):>12}  to fetch",
        f"{readable(bundle):>12}  at most, for the model in {folder}",
        f"{readable(missing + bundle):>12}  of disk in all until the delta is removed",
        f"{CONVERSION_MEMORY:>12}  of memory for the conversion",
        "memory to ask it:",
        *(f"  {line}" for line in table(needs_of_published(card))),
    ]
    steps = [f"regionqa ask IMAGE --model {card.name} --box X0,Y0,X1,Y1"]
    words = ""
    for part in parts:
        if part.repo is None:
            words += f" --{part.name} {part.place or 'FILE'}"
        elif part.repo != part.source.repo:
            words += f" --{part.name} {part.repo}"
        if part.repo is None and part.place is None:
            steps.insert(0, f"get {part.source.what} at {part.source.page}")
    steps.insert(-1, f"regionqa download {card.name}{words}")
    steps.insert(0, "agree to the terms of all parts")
    return [*lines, "steps:", *(f"  {n}. {step}" for n, step in enumerate(steps, start=1))]


@contextmanager
def progress_bar() -> Iterator[Callable[[int, int], None]]:
    """Show a progress bar on a terminal; yields a function of the bytes done and in total."""
    if not sys.stderr.isatty():
        yield lambda done, total: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(),
               TransferSpeedColumn(), TimeRemainingColumn())  # fmt: skip
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("adding", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
