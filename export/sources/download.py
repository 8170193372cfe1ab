"""The parts of a published model: which files are needed, fetching them, and the conversion.

Imports no torch, so that `download --dry-run` works without the `export` extra.
"""

import glob
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING

from regionqa.bundles.card import ModelCard, Source
from regionqa.bundles.hub import Listing, cached, fetch, hub_cache, list_files, looks_like_repo
from regionqa.bundles.hub_errors import is_unreachable
from regionqa.errors import DownloadError, UsageError

if TYPE_CHECKING:
    from regionqa.export.sources.published import ConversionResult

CONVERSION_MEMORY = "4 GB"
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
        DownloadError: The Hub cannot be asked, or a repository lacks the weights.
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
    return [find_part(name, source, given.get(name)) for name, source in sources.items()]


def find_part(name: str, source: Source, given: str | None) -> PublishedPart:
    """Find one part in the place given by the user, or in the card's repository."""
    if given is not None and (place := Path(given).expanduser()).exists():
        return PublishedPart(name, source, place=place)
    if given is not None and not looks_like_repo(given):
        raise DownloadError(
            f"{given}: --{name} names neither a folder or file here nor a repository, OWNER/NAME"
        )
    repo = given or source.repo
    if repo is None:
        return PublishedPart(name, source)
    return with_listing(PublishedPart(name, source, repo=repo))


def with_listing(part: PublishedPart) -> PublishedPart:
    """List the files that are needed of a part's repository: its weights in one format only.

    If the Hub cannot be reached, the part becomes what the cache holds of it.
    """
    assert part.repo is not None
    try:
        listing = list_files(part.repo, revision=part.revision)
    except DownloadError as error:
        place = cached_weights(part)
        if place is None or error.__cause__ is None or not is_unreachable(error.__cause__):
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


def cached_weights(part: PublishedPart) -> Path | None:
    """Find the cached folder of a part's repository, if it holds weights (by their index, all)."""
    assert part.repo is not None
    for pattern in part.source.weights:
        found = cached(part.repo, revision=part.revision, files=[pattern])
        if found and any(found.rglob(pattern)):
            return found
    return None


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
    """Remove a part from the Hub's cache; the bytes freed, None if it did not come from the Hub."""
    from huggingface_hub import scan_cache_dir

    if part.listing is None:
        return None
    cache = scan_cache_dir(hub_cache())
    commits = [
        commit.commit_hash
        for repo in cache.repos
        if repo.repo_id == part.repo
        for commit in repo.revisions
        if commit.commit_hash == part.listing.revision
    ]
    deletion = cache.delete_revisions(*commits)
    deletion.execute()
    return int(deletion.expected_freed_size)
