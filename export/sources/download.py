"""The parts of a published model: which files are needed, fetching them, and the conversion.

Imports no torch, so that `download --dry-run` works without the `export` extra.
"""

import glob
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING

from regionqa.bundles.card import ModelCard, Source
from regionqa.bundles.hub import (
    Listing,
    cached,
    fetch,
    hub_cache,
    list_files,
    looks_like_repo,
    readable,
)
from regionqa.bundles.hub_errors import is_unreachable
from regionqa.errors import DownloadError, UsageError
from regionqa.files import file_status, with_home

if TYPE_CHECKING:
    from regionqa.export.sources.published import ConversionResult

CONVERSION_MEMORY = "5 GB"
"""Upper limit of the memory that converting a 7B model takes; benchmarks/conversion.py measures
it."""
ENCODER_DISK = 4_000_000_000
"""Upper limit of the bytes of disk that encoders and graphs take beside the language model."""


@dataclass(frozen=True)
class PublishedPart:
    """One part of a published model and its origin: a place on this machine or a repository."""

    name: str
    """The option that replaces it: delta, base, vision or region."""
    source: Source
    place: Path | None = None
    """A folder or file on this machine."""
    repo: str | None = None
    """OWNER/NAME on the Hub."""
    listing: Listing | None = None
    """The files that are needed of the repository; None where the Hub was not asked."""

    @property
    def origin(self) -> str:
        """The name of the origin in a card: never a path of this machine."""
        return self.repo or (self.place.resolve().name if self.place else "")

    @property
    def licence(self) -> str:
        """The licence stated by the repository, and by the card if it names the same repository."""
        stated = self.listing.licence if self.listing else None
        own = self.source.licence if self.repo in (self.source.repo, None) else None
        if own and stated and self.repo:
            return f"{own}; its page on the Hub states: {stated}"
        return own or stated or "not stated"

    @property
    def size(self) -> int:
        """Bytes of the files that are needed."""
        if self.listing:
            return sum(file.size for file in self.listing.files)
        if self.place is None:
            return self.source.size
        return size_of(self.place)

    @property
    def missing(self) -> int:
        """Bytes that are not on this machine yet."""
        if self.place:
            return 0
        return sum(file.size for file in self.listing.missing) if self.listing else self.size

    @property
    def is_estimate(self) -> bool:
        """Whether sizes come from the card alone, because the Hub was not reached."""
        return self.repo is not None and self.listing is None and self.place is None

    @property
    def where(self) -> str:
        """The origin for people: repository, path or page."""
        return self.repo or str(self.place or self.source.page)

    @property
    def revision(self) -> str | None:
        """The revision to fetch: the card's, if the repository is the card's."""
        return self.source.revision if self.repo == self.source.repo else None


def find_parts(
    card: ModelCard, given: Mapping[str, str], *, strict: bool = True
) -> list[PublishedPart]:
    """Find all parts of a published model, the delta first; lists repositories, fetches nothing.

    Args:
        card: A card with [sources].
        given: Places that replace the card's sources: folders, files or repositories by part.
        strict: Refuse a part that is not on the Hub and not given.

    Raises:
        UsageError: A given part does not belong to the model, or a part must be given.
        DownloadError: A repository refuses to be listed or lacks the weights, or, if `strict`, the
            Hub cannot be reached.
    """
    assert card.sources is not None
    sources = card.sources.named
    for name in given:
        if name not in sources:
            raise UsageError(f"{card.name} has no part for --{name}")
    for name, source in sources.items():
        if strict and source.repo is None and name not in given:
            raise UsageError(
                f"{card.name}: {source.what} is not on the Hub; get it at {source.page} and use "
                f"--{name} FILE"
            )
    return [find_part(name, source, given.get(name), strict) for name, source in sources.items()]


def parts_of_card(card: ModelCard) -> list[PublishedPart]:
    """All parts of a published model by its card alone; the Hub is not asked."""
    assert card.sources is not None
    return [PublishedPart(n, source, repo=source.repo) for n, source in card.sources.named.items()]


def find_part(name: str, source: Source, given: str | None, strict: bool) -> PublishedPart:
    """Find one part in the place given by the user, or in the card's repository."""
    if given is not None and file_status(place := with_home(Path(given))):
        return PublishedPart(name, source, place=place)
    if given is not None and not looks_like_repo(given):
        raise DownloadError(
            f"{given}: --{name} names neither a folder or file here nor a repository, OWNER/NAME"
        )
    repo = given or source.repo
    if repo is None:
        return PublishedPart(name, source)
    return with_listing(PublishedPart(name, source, repo=repo), strict)


def with_listing(part: PublishedPart, strict: bool) -> PublishedPart:
    """List the files that are needed of a part's repository: its weights in one format only.

    If the Hub cannot be reached, the part becomes what the cache holds of it; if that is nothing,
    it stays what the card says, or, if `strict`, raises the DownloadError.
    """
    assert part.repo is not None
    try:
        listing = list_files(part.repo, revision=part.revision)
    except DownloadError as error:
        if error.__cause__ is None or not is_unreachable(error.__cause__):
            raise DownloadError(f"{error}{other_places(part)}") from error.__cause__
        place = cached_weights(part)
        if place is None and strict:
            raise
        return replace(part, place=place)
    top = [file for file in listing.files if "/" not in file.path or part.name == "region"]
    for pattern in part.source.weights:
        if weights := [file for file in top if fnmatch(file.path, pattern)]:
            break
    else:
        raise DownloadError(
            f"{part.repo}: holds no weights for --{part.name}: none of "
            f"{', '.join(part.source.weights)}"
        )
    others = [
        file for file in top
        if file not in weights
        and any(fnmatch(file.path, pattern) for pattern in part.source.files)
    ]  # fmt: skip
    return replace(part, listing=replace(listing, files=(*others, *weights)))


def other_places(part: PublishedPart) -> str:
    """The end of a message about a part's repository: where else the card knows its weights."""
    if part.repo != part.source.repo or not part.source.mirrors:
        return ""
    return (
        f"; the same weights are in {' and '.join(part.source.mirrors)}: --{part.name} OWNER/NAME"
    )


def cached_weights(part: PublishedPart) -> Path | None:
    """Find the cached folder of a part's repository, if it holds weights (by their index, all)."""
    assert part.repo is not None
    for pattern in part.source.weights:
        found = cached(part.repo, revision=part.revision, files=[pattern])
        if found and any(found.rglob(pattern)):
            return found
    return None


def check_parts(card: ModelCard, parts: Sequence[PublishedPart], folder: Path) -> list[str]:
    """Check what can be checked before large files are fetched; fetches only a small region file.

    Parts on this machine are opened, repositories are asked whether this user may read their files,
    and the disk must have room for files and model.

    Returns:
        What is to be said about the parts.

    Raises:
        BundleError: A part on this machine is unreadable, incomplete or of another kind.
        DownloadError: A repository refuses its files, or the disk is too small.
    """
    from regionqa.export.sources.checkpoints import read_config
    from regionqa.export.sources.region_checkpoints import check_regionclip
    from regionqa.export.sources.shards import Shards

    missing = sum(missing_bytes(part) for part in parts)
    check_room(card, missing, parts[0].size + ENCODER_DISK - size_of(staging(folder)), folder)
    notes = []
    for part in parts:
        if part.name == "region":
            notes.append(check_regionclip(fetch_part(part)))
        elif part.place and part.name == "vision":
            read_config(part.place)
        elif part.place:
            Shards(part.place)
    return [note for note in notes if note]


def missing_bytes(part: PublishedPart) -> int:
    """Bytes to fetch of a part; DownloadError if its repository refuses its files."""
    try:
        return part.missing  # the client asks for every file, which a gated repository refuses
    except DownloadError as error:
        raise DownloadError(f"{error}{other_places(part)}") from error.__cause__


def check_room(card: ModelCard, fetched: int, made: int, folder: Path) -> None:
    """DownloadError if files to fetch and the model to write do not fit on the disk or disks."""
    cache, out = (next(p for p in (f, *f.parents) if p.exists())
                  for f in (hub_cache().absolute(), folder))  # fmt: skip
    together = cache.stat().st_dev == out.stat().st_dev
    for place, needed in ((cache, fetched + made if together else fetched), (out, made)):
        free = shutil.disk_usage(place).free
        if needed > free:
            raise DownloadError(
                f"{card.name}: the disk is too small: {readable(needed)} are needed, "
                f"{readable(free)} are free in {place}; free some, or have HF_HOME and --out name "
                "folders on a larger disk"
            )


def staging(out: Path) -> Path:
    """The folder of an unfinished conversion to `out`."""
    return out.with_name(f"{out.name}.converting")


def size_of(place: Path) -> int:
    """Bytes of a file, or of all files in a folder; 0 if there is none."""
    paths = place.rglob("*") if place.is_dir() else [place]
    return sum(path.stat().st_size for path in paths if path.is_file())


def fetch_part(part: PublishedPart) -> Path:
    """Fetch a part if necessary; its folder, or the file of the region encoder's weights."""
    place = part.place
    if place is None:
        assert part.repo is not None and part.listing is not None
        names = [glob.escape(file.path) for file in part.listing.files]
        place = fetch(part.repo, revision=part.revision, files=names)
    if part.name != "region" or place.is_file():
        return place
    found = [path for pattern in part.source.weights for path in sorted(place.rglob(pattern))]
    if not found:
        raise DownloadError(f"{place}: holds none of {', '.join(part.source.weights)}")
    return found[0]


def convert_parts(
    card: ModelCard,
    parts: Sequence[PublishedPart],
    places: Mapping[str, Path],
    folder: Path,
    *,
    dtype: str = "auto",
    any_base: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> "ConversionResult":
    """Convert the parts to a bundle in `folder`.

    Args:
        card: The published model's card.
        parts: From `find_parts`.
        places: Where each part lies on this machine, from `fetch_part`.
        folder: The new bundle's folder; its parents are created.
        dtype: Type of the language model's weights by torch's name; auto keeps the published one.
        any_base: Accept a base that does not look like the right one.
        progress: Called with the bytes converted so far and in all.
    """
    import torch

    from regionqa.export.sources.published import PublishedCheckpoints, convert_published

    folder.parent.mkdir(parents=True, exist_ok=True)
    return convert_published(
        card,
        PublishedCheckpoints(**places),
        folder,
        origins={part.name: part.origin for part in parts},
        dtype=None if dtype == "auto" else getattr(torch, dtype),
        any_base=any_base,
        progress=progress,
    )


def remove_from_cache(part: PublishedPart) -> int | None:
    """Remove a part from the Hub's cache; the bytes freed, None if it did not come from the Hub.

    All its revisions are removed: the repository may have got a new one since it was listed, or
    since an earlier run was interrupted.
    """
    from huggingface_hub import scan_cache_dir

    if part.listing is None:
        return None
    cache = scan_cache_dir(hub_cache())
    commits = [
        commit.commit_hash
        for repo in cache.repos
        if repo.repo_id == part.repo and repo.repo_type == "model"
        for commit in repo.revisions
    ]
    deletion = cache.delete_revisions(*commits)
    deletion.execute()
    return int(deletion.expected_freed_size)
