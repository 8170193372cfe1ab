"""What `download` does for a published model that is converted: fetch its parts, and put together.

It decides which files of a repository are needed and what is said; `export.seeds` converts.
"""

import glob
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import StrEnum
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING

from regionqa.cli.options import EXPORT, require
from regionqa.errors import DownloadError, UsageError

if TYPE_CHECKING:
    from regionqa.bundles.card import ModelCard, Source
    from regionqa.bundles.hub import Listing


MEMORY = "4 GB"
"""Memory that the conversion of a 7B takes at most; benchmarks/conversion.py measures it."""


BESIDE = 4_000_000_000
"""Bytes of disk that encoders and graphs take beside the language model, at most."""


class StoredDtypeChoice(StrEnum):
    """Values of download's --dtype."""

    auto = "auto"
    float16 = "float16"
    bfloat16 = "bfloat16"
    float32 = "float32"


@dataclass(frozen=True)
class ConversionOptions:
    """What the user says beside the name."""

    parts: dict[str, str]
    """Folders, files or repositories by part: delta, base, vision, region."""
    out: Path | None = None
    """The bundle's folder; None is the one in which it is found by name."""
    dtype: StoredDtypeChoice = StoredDtypeChoice.auto
    """Of the language model's weights; auto: as published."""
    keep_delta: bool = False
    """Whether the differences stay in the Hub's cache after the conversion."""
    any_base: bool = False
    """Whether a base is added that does not look like the right one."""


@dataclass(frozen=True)
class PublishedPart:
    """One part, and where it comes from."""

    name: str
    source: "Source"
    place: Path | None = None
    """A folder or file on this machine."""
    repo: str | None = None
    """OWNER/NAME, where it comes from the Hub."""
    listing: "Listing | None" = None
    """The files that are needed of the repository; None where the Hub could not be asked."""

    @property
    def origin(self) -> str:
        """What a card calls it: no path of this machine."""
        return self.repo or (self.place.resolve().name if self.place else "")

    @property
    def licence(self) -> str:
        """Its terms: as the repository says, and as the card says of the one that it names."""
        stated = self.listing.licence if self.listing else None
        own = self.source.licence if self.repo in (self.source.repo, None) else None
        return "; ".join(dict.fromkeys(text for text in (stated, own) if text)) or "not stated"

    @property
    def size(self) -> int:
        """Bytes of the files that are needed."""
        if self.listing:
            return sum(file.size for file in self.listing.files)
        if self.place is None:
            return self.source.size
        paths = self.place.rglob("*") if self.place.is_dir() else [self.place]
        return sum(path.stat().st_size for path in paths if path.is_file())

    @property
    def missing(self) -> int:
        """Bytes that are not on this machine yet."""
        if self.place:
            return 0
        return sum(file.size for file in self.listing.missing) if self.listing else self.size

    @property
    def where(self) -> str:
        """Where it is, for people."""
        return self.repo or str(self.place or self.source.page)


def download_seed(name: str, card: "ModelCard", options: ConversionOptions, dry_run: bool) -> None:
    """Fetch and convert a published model; prints the folder it lies in."""
    from regionqa.bundles.store import CARD, open_bundle, published_folder

    folder = options.out.absolute() if options.out else published_folder(name)
    if dry_run:
        return show_plan(find_parts(card, options, strict=False), folder)
    if (folder / CARD).is_file():
        open_bundle(folder)
        print(f"{name}: is there already; remove the folder to convert it anew", file=sys.stderr)
        print(folder)
        return None
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise UsageError(f"{folder}: is there already, and is no model; give another --out")
    require("download", "export", EXPORT)
    parts = find_parts(card, options)
    show_licences(parts)
    places = {part.name: fetched(part) for part in parts}
    convert_parts(card, places, {part.name: part.origin for part in parts}, folder, options)
    if not options.keep_delta:
        forget_delta(parts[0])
    print(folder)
    return None


def find_parts(
    card: "ModelCard", options: ConversionOptions, strict: bool = True
) -> list[PublishedPart]:
    """Every part with its files, the delta first; asks the Hub for lists, and fetches nothing.

    strict: UsageError for a part that is not on the Hub and that the user does not name.
    """
    assert card.sources is not None
    sources = card.sources.named
    for name in options.parts:
        if name not in sources:
            raise UsageError(f"{card.name} has no part for --{name}")
    for name, source in sources.items():
        if strict and source.repo is None and name not in options.parts:
            raise UsageError(
                f"{card.name}: {source.what} is not on the Hub; get it at {source.page} and say "
                f"--{name} FILE"
            )
    return [find_part(name, source, options.parts.get(name)) for name, source in sources.items()]


def find_part(name: str, source: "Source", given: str | None) -> PublishedPart:
    """A part in a folder or file that the user names, or in a repository of the Hub."""
    from regionqa.bundles.hub import looks_like_repo

    if given is not None and (place := Path(given).expanduser()).exists():
        return PublishedPart(name, source, place=place)
    if given is not None and not looks_like_repo(given):
        raise DownloadError(
            f"{given}: --{name} names neither a folder or file here nor a repository, OWNER/NAME"
        )
    repo = given or source.repo
    if repo is None:
        return PublishedPart(name, source)
    return needed(PublishedPart(name, source, repo=repo))


def revision(part: PublishedPart) -> str | None:
    """The revision of a part's repository: the card's, where the repository is the card's."""
    return part.source.revision if part.repo == part.source.repo else None


def needed(part: PublishedPart) -> PublishedPart:
    """The part with the files that it needs of its repository: of its weights one form only.

    Where the Hub cannot be reached, what is on this machine.
    """
    from regionqa.bundles.hub import cached, list_files
    from regionqa.bundles.hub_errors import is_unreachable

    assert part.repo is not None
    source = part.source
    try:
        listing = list_files(part.repo, revision=revision(part))
    except DownloadError as error:
        # the form of the weights that was fetched; whether all is there, their index says
        place = next(
            (
                found
                for pattern in source.weights
                if (found := cached(part.repo, revision=revision(part), files=[pattern]))
                and any(found.rglob(pattern))
            ),
            None,
        )
        if place is None or error.__cause__ is None or not is_unreachable(error.__cause__):
            raise
        return replace(part, place=place)
    top = [file for file in listing.files if "/" not in file.path or part.name == "region"]
    for pattern in source.weights:
        if weights := [file for file in top if fnmatch(file.path, pattern)]:
            break
    else:
        raise DownloadError(
            f"{part.repo}: holds no weights for --{part.name}: none of {', '.join(source.weights)}"
        )
    beside = [
        file for file in top
        if file not in weights and any(fnmatch(file.path, pattern) for pattern in source.files)
    ]  # fmt: skip
    return replace(part, listing=replace(listing, files=(*beside, *weights)))


def fetched(part: PublishedPart) -> Path:
    """The folder of a part on this machine, of the region encoder its file; fetches it."""
    from regionqa.bundles.hub import fetch

    place = part.place
    if place is None:
        assert part.repo is not None and part.listing is not None
        names = [glob.escape(file.path) for file in part.listing.files]
        place = fetch(part.repo, revision=revision(part), files=names)
    if part.name != "region" or place.is_file():
        return place
    found = [path for pattern in part.source.weights for path in sorted(place.rglob(pattern))]
    if not found:
        raise DownloadError(f"{place}: holds none of {', '.join(part.source.weights)}")
    return found[0]


def convert_parts(
    card: "ModelCard",
    places: dict[str, Path],
    origins: dict[str, str],
    folder: Path,
    options: ConversionOptions,
) -> None:
    """Put the parts together, and say what came of it."""
    import torch

    from regionqa.export.sources.published import PublishedCheckpoints, convert_published

    folder.parent.mkdir(parents=True, exist_ok=True)
    dtype = None if options.dtype == "auto" else getattr(torch, options.dtype)
    with progress_bar() as progress:
        converted = convert_published(
            card,
            PublishedCheckpoints(**places),
            folder,
            origins=origins,
            dtype=dtype,
            any_base=options.any_base,
            progress=progress,
        )
    for report in converted.reports:
        cases = ", ".join(report.cases)
        said = f"{report.graph}: differs from torch by {report.difference:.1e} ({cases})"
        print(said, file=sys.stderr)
    for note in converted.notes:
        print(f"note: {note}", file=sys.stderr)


def forget_delta(part: PublishedPart) -> None:
    """Remove the differences from the Hub's cache: nothing needs them any more."""
    from huggingface_hub import scan_cache_dir

    from regionqa.bundles.hub import hub_cache, readable

    if part.listing is None:
        return
    commits = [
        commit.commit_hash
        for repo in scan_cache_dir(hub_cache()).repos
        if repo.repo_id == part.repo
        for commit in repo.revisions
        if commit.commit_hash == part.listing.revision
    ]
    freed = scan_cache_dir(hub_cache()).delete_revisions(*commits)
    freed.execute()
    print(
        f"{part.repo}: removed from the cache, {readable(freed.expected_freed_size)}; "
        "--keep-delta keeps it",
        file=sys.stderr,
    )


def show_licences(parts: list[PublishedPart]) -> None:
    """The terms of every part, before the first byte arrives."""
    for part in parts:
        said = f"licence of {part.source.what} ({part.where}): {part.licence}"
        print(said, file=sys.stderr)


def show_plan(parts: list[PublishedPart], folder: Path) -> None:
    """What would be fetched, and what the conversion would need."""
    from regionqa.bundles.hub import readable

    show_licences(parts)
    for part in parts:
        print(f"{readable(part.size):>12}  {part.name}: {part.where}")
        for file in part.listing.files if part.listing else ():
            print(f"{readable(file.size):>16}  {file.path}")
    missing, bundle = sum(part.missing for part in parts), parts[0].size + BESIDE
    print(f"{readable(missing):>12}  to fetch")
    print(f"{readable(bundle):>12}  at most, for the model in {folder}")
    print(f"{readable(missing + bundle):>12}  of disk in all until the delta is removed")
    print(f"{MEMORY:>12}  of memory for the conversion")


@contextmanager
def progress_bar() -> Iterator[Callable[[int, int], None]]:
    """A bar on a terminal: bytes and the time that is left."""
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
