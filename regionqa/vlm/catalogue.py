"""Checkpoints of transformers that have a name in the package, or are found in a folder or the Hub.

Detectors and segmenters are found here; the conventions of their families are their own.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path

from regionqa.bundles.hub import cached, list_files, looks_like_repo, readable
from regionqa.bundles.store import CARD, CONFIG, shipped_folder
from regionqa.errors import BundleError
from regionqa.files import is_folder, with_home
from regionqa.schema import from_table, read_toml
from regionqa.vlm.card import CheckpointSource
from regionqa.vlm.cards import model_type
from regionqa.vlm.checkpoints import find_checkpoint
from regionqa.vlm.store import remote_model_type, repo_of_snapshot


@dataclass(frozen=True)
class NamedCheckpoint:
    """A checkpoint that has a name in the package."""

    name: str
    family: str
    """Its `model_type`."""
    summary: str
    source: CheckpointSource
    rank: int
    """Its place among those that can stand for it; the first that is downloaded is the default, and
    the very first is recommended."""


@dataclass(frozen=True)
class FoundCheckpoint:
    """A checkpoint that was found."""

    name: str
    """Its name in the package, its repository, or its folder's name."""
    folder: Path | None
    """Its files; None: they are not, or not all, on this machine."""
    source: CheckpointSource | None
    """Where it is published; None: it is a folder."""


def read_cards(folder: str) -> list[NamedCheckpoint]:
    """Read the cards of a folder of `models/`, by file name."""
    paths = sorted((shipped_folder() / folder).glob("*.toml"))
    return [from_table(NamedCheckpoint, read_toml(path), str(path)) for path in paths]


def find_published(
    name: str,
    cards: Mapping[str, NamedCheckpoint],
    is_known: Callable[[str], bool],
    revision: str | None = None,
) -> FoundCheckpoint | None:
    """Find a checkpoint of known families; None for anything else.

    Args:
        name: A name in the package, a folder, or OWNER/NAME on the Hub.
        cards: Those with a name in the package.
        is_known: Whether a `model_type` is of a known family.
        revision: A branch, tag or commit; None: main, or what the card says.

    Raises:
        DownloadError: It is a repository of which nothing is known, and the Hub cannot be asked.
    """
    if card := cards.get(name):
        source = replace(card.source, revision=revision or card.source.revision)
        return FoundCheckpoint(name, find_checkpoint(source), source)
    folder = with_home(Path(name))
    if is_folder(folder):
        kind = model_type(folder)
        if kind is None or (folder / CARD).is_file() or not is_known(kind):
            return None
        return FoundCheckpoint(repo_of_snapshot(folder) or folder.resolve().name, folder, None)
    return _on_hub(name, is_known, revision) if looks_like_repo(name) else None


def _on_hub(
    repo: str, is_known: Callable[[str], bool], revision: str | None
) -> FoundCheckpoint | None:
    source = CheckpointSource(repo, "", revision or "main")
    folder = find_checkpoint(source)
    config = folder or cached(repo, revision=revision, files=[CONFIG])
    kind = model_type(config) if config else None
    if config is None:
        listing = list_files(repo, revision=revision)
        names = {file.path for file in listing.files}
        if CARD in names or CONFIG not in names:
            return None
        kind = listing.model_type or remote_model_type(repo, revision)
    return FoundCheckpoint(repo, folder, source) if kind is not None and is_known(kind) else None


def first_downloaded(cards: Sequence[NamedCheckpoint], what: str) -> FoundCheckpoint:
    """Return the first of the named checkpoints that is downloaded.

    Args:
        cards: The named ones, the recommended one first.
        what: What they are, for messages, such as `object detector`.

    Raises:
        BundleError: None is; the message says how to get one.
    """
    for card in cards:
        if (folder := find_checkpoint(card.source)) is not None:
            return FoundCheckpoint(card.name, folder, card.source)
    first = cards[0]
    raise BundleError(
        f"no {what} is on this machine; run: regionqa download {first.name} "
        f"({readable(first.source.size)}, {first.source.licence}), or name one of your own: a "
        "folder, or OWNER/NAME on the Hub"
    )


def unknown_name(name: str, what: str, cards: Mapping[str, NamedCheckpoint]) -> BundleError:
    """Return the error of a name that stands for nothing.

    Args:
        name: What the user gave.
        what: What was looked for, such as `detector`.
        cards: Those with a name in the package.
    """
    if looks_like_repo(name):
        return BundleError(f"{name}: holds no {what} of transformers; name another")
    near = get_close_matches(name.lower(), cards, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    return BundleError(
        f"{name}: no such {what}; {hint}known are {', '.join(cards)}; or give a folder, or "
        "OWNER/NAME on the Hub"
    )
