"""Object detectors found by name, in a folder or on the Hub, and the conventions of families.

Any model that transformers loads as an object detector is one. What differs between families is in
`models/detectors/families`; a family without a file there has the default conventions.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from enum import StrEnum
from functools import cache
from pathlib import Path

from regionqa.bundles.hub import cached, list_files, looks_like_repo, readable
from regionqa.bundles.store import CARD, CONFIG, shipped_cards, shipped_folder, shipped_vlm_names
from regionqa.errors import BundleError
from regionqa.files import is_folder, with_home
from regionqa.schema import from_table, read_toml
from regionqa.vlm.card import CheckpointSource
from regionqa.vlm.cards import model_type
from regionqa.vlm.checkpoints import find_checkpoint
from regionqa.vlm.store import remote_model_type, repo_of_snapshot


class Vocabulary(StrEnum):
    """What a detector can find."""

    fixed = "fixed"
    """The classes that it was trained on."""
    open = "open"
    """What is described in words."""


class PhraseText(StrEnum):
    """How phrases are put to an open-vocabulary detector."""

    rows = "rows"
    """Each phrase is a text of its own."""
    text = "text"
    """All are one text, in which each ends in a full stop."""


@dataclass(frozen=True)
class DetectorFamily:
    """Conventions of the detectors of one `model_type`."""

    vocabulary: Vocabulary = Vocabulary.fixed
    phrases: PhraseText = PhraseText.rows
    min_score: float = 0.5
    """Score that a box must exceed, where the user says nothing."""
    nms: float = 1.0
    """Intersection over union above which the lower of two boxes of a class is left out; 1: none
    is, as where training has each object found once."""
    onnx: bool = True
    """Whether its network is exported; otherwise it runs in torch."""


@dataclass(frozen=True)
class DetectorCard:
    """A detector that has a name in the package."""

    name: str
    family: str
    """Its `model_type`."""
    summary: str
    source: CheckpointSource
    rank: int
    """Its place among the detectors of its vocabulary; the first that is downloaded is the default,
    and the very first is recommended."""


@dataclass(frozen=True)
class FoundDetector:
    """A detector that was found."""

    name: str
    """Its name in the package, its repository, or its folder's name."""
    folder: Path | None
    """Its files; None: they are not, or not all, on this machine."""
    source: CheckpointSource | None
    """Where it is published; None: it is a folder."""
    kind: str
    """Which module opens it (`regionqa.detection.base`)."""


CHECKPOINT, BUNDLE = "checkpoint", "bundle"
"""Kinds of detectors: a checkpoint of transformers, and a model with a detector's graph."""


# -- families --------------------------------------------------------------------------------------


@cache
def family_of(kind: str) -> DetectorFamily | None:
    """Return the conventions of a `model_type`; None if transformers has no detector of it."""
    path = shipped_folder() / "detectors" / "families" / f"{kind}.toml"
    if path.is_file():
        return from_table(DetectorFamily, read_toml(path), str(path))
    return DetectorFamily() if kind in fixed_families() else None


def fixed_families() -> Mapping[str, str]:
    """Return the `model_type`s of transformers' object detectors with a fixed list of classes."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES

    names: Mapping[str, str] = MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES
    return names


def checkpoint_family(folder: Path) -> DetectorFamily:
    """Return the conventions of a checkpoint; BundleError if it is no detector that is known."""
    kind = model_type(folder)
    family = None if kind is None else family_of(kind)
    if family is None:
        said = f"says model_type {kind!r}" if kind else "names no model_type, or is missing"
        raise BundleError(
            f"{folder}: its {CONFIG} {said}, which is no object detector that is known; known are "
            f"{', '.join(sorted({*fixed_families(), *_own_families()}))}"
        )
    return family


def _own_families() -> list[str]:
    return [path.stem for path in (shipped_folder() / "detectors" / "families").glob("*.toml")]


# -- detectors -------------------------------------------------------------------------------------


@cache
def detector_cards() -> dict[str, DetectorCard]:
    """Return the detectors that have a name in the package, by vocabulary and rank."""
    paths = sorted((shipped_folder() / "detectors").glob("*.toml"))
    cards = [from_table(DetectorCard, read_toml(path), str(path)) for path in paths]
    cards.sort(key=lambda card: (_vocabulary(card), card.rank, card.name))
    return {card.name: card for card in cards}


def cards_of(vocabulary: Vocabulary) -> list[DetectorCard]:
    """Return the named detectors of a vocabulary, the recommended one first."""
    cards = detector_cards().values()
    return [card for card in cards if _vocabulary(card) is vocabulary]


def _vocabulary(card: DetectorCard) -> Vocabulary:
    path = shipped_folder() / "detectors" / "families" / f"{card.family}.toml"
    return Vocabulary(read_toml(path)["vocabulary"]) if path.is_file() else Vocabulary.fixed


def find_detector(name: str, *, open_vocabulary: bool = False) -> FoundDetector:
    """Find a detector; nothing but a config is fetched.

    Args:
        name: A name in the package, a folder, or OWNER/NAME on the Hub; empty: the first of the
            named ones that is downloaded.
        open_vocabulary: Whether the default one finds what is described in words.

    Raises:
        BundleError: There is none, or it is no detector.
        DownloadError: It is not on this machine, and the Hub cannot be asked.
    """
    if not name:
        return default_detector(Vocabulary.open if open_vocabulary else Vocabulary.fixed)
    if found := detector_checkpoint(name):
        return found
    folder = with_home(Path(name))
    if is_folder(folder):
        if (folder / CARD).is_file():
            return FoundDetector(folder.resolve().name, folder, None, BUNDLE)
        checkpoint_family(folder)  # says what is wrong with it
    if name in shipped_cards() or name in shipped_vlm_names():
        return FoundDetector(name, shipped_folder() / name, None, BUNDLE)
    if looks_like_repo(name):
        raise BundleError(f"{name}: holds no object detector of transformers; name another")
    near = get_close_matches(name.lower(), detector_cards(), n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    raise BundleError(
        f"{name}: no such detector; {hint}known are {', '.join(detector_cards())}; or give a "
        "folder, or OWNER/NAME on the Hub"
    )


def detector_checkpoint(name: str, revision: str | None = None) -> FoundDetector | None:
    """Find a detector that is a checkpoint of transformers; None for anything else.

    Args:
        name: A name in the package, a folder, or OWNER/NAME on the Hub.
        revision: A branch, tag or commit; None: main.

    Raises:
        DownloadError: It is a repository of which nothing is known, and the Hub cannot be asked.
    """
    if card := detector_cards().get(name):
        source = replace(card.source, revision=revision or card.source.revision)
        return FoundDetector(name, find_checkpoint(source), source, CHECKPOINT)
    folder = with_home(Path(name))
    if is_folder(folder):
        kind = model_type(folder)
        if kind is None or (folder / CARD).is_file() or family_of(kind) is None:
            return None
        own = repo_of_snapshot(folder) or folder.resolve().name
        return FoundDetector(own, folder, None, CHECKPOINT)
    return _on_hub(name, revision) if looks_like_repo(name) else None


def _on_hub(repo: str, revision: str | None) -> FoundDetector | None:
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
    if kind is None or family_of(kind) is None:
        return None
    return FoundDetector(repo, folder, source, CHECKPOINT)


def default_detector(vocabulary: Vocabulary) -> FoundDetector:
    """Return the first named detector that is downloaded; BundleError, saying how, if none is."""
    cards = cards_of(vocabulary)
    for card in cards:
        if (folder := find_checkpoint(card.source)) is not None:
            return FoundDetector(card.name, folder, card.source, CHECKPOINT)
    first = cards[0]
    what = "open-vocabulary detector" if vocabulary is Vocabulary.open else "object detector"
    raise BundleError(
        f"no {what} is on this machine; run: regionqa download {first.name} "
        f"({readable(first.source.size)}, {first.source.licence}), or name one of your own: a "
        "folder, or OWNER/NAME on the Hub"
    )
