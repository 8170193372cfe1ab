"""Object detectors found by name, in a folder or on the Hub, and the conventions of families.

Any model that transformers loads as an object detector is one. What differs between families is in
`models/detectors/families`; a family without a file there has the default conventions.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from pathlib import Path

from regionqa.bundles.card import read_card
from regionqa.bundles.hub import cached, looks_like_repo
from regionqa.bundles.store import (
    CARD,
    CONFIG,
    find_folder,
    holds_vlm,
    shipped_cards,
    shipped_folder,
    shipped_vlm_names,
)
from regionqa.errors import BundleError
from regionqa.files import is_folder, with_home
from regionqa.options import RuntimeOptions
from regionqa.schema import from_table, read_toml
from regionqa.vlm.cards import model_type
from regionqa.vlm.catalogue import (
    FoundCheckpoint,
    NamedCheckpoint,
    find_published,
    first_downloaded,
    read_cards,
    unknown_name,
)


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
class FoundDetector(FoundCheckpoint):
    """A detector that was found."""

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
def detector_cards() -> dict[str, NamedCheckpoint]:
    """Return the detectors that have a name in the package, by vocabulary and rank."""
    cards = read_cards("detectors")
    cards.sort(key=lambda card: (_vocabulary(card), card.rank, card.name))
    return {card.name: card for card in cards}


def cards_of(vocabulary: Vocabulary) -> list[NamedCheckpoint]:
    """Return the named detectors of a vocabulary, the recommended one first."""
    cards = detector_cards().values()
    return [card for card in cards if _vocabulary(card) is vocabulary]


def _vocabulary(card: NamedCheckpoint) -> Vocabulary:
    path = shipped_folder() / "detectors" / "families" / f"{card.family}.toml"
    return Vocabulary(read_toml(path)["vocabulary"]) if path.is_file() else Vocabulary.fixed


def find_detector(
    name: str, *, open_vocabulary: bool = False, asked: str | None = None
) -> FoundDetector:
    """Find a detector; nothing but a config is fetched.

    Args:
        name: A name in the package, a folder, or OWNER/NAME on the Hub; empty: the detection head
            of `asked`, or the first of the named ones that is downloaded.
        open_vocabulary: Whether the default one finds what is described in words.
        asked: The model whose own detection head is the default; None: the default model's, empty:
            none.

    Raises:
        BundleError: There is none, or it is no detector.
        DownloadError: It is not on this machine, and the Hub cannot be asked.
    """
    if not name:
        model = RuntimeOptions().model if asked is None else asked
        own = own_detector(model) if model and not open_vocabulary else None
        return own or default_detector(Vocabulary.open if open_vocabulary else Vocabulary.fixed)
    folder = with_home(Path(name))
    if looks_like_repo(name) and not is_folder(folder) and cached(name, files=[CARD]):
        return FoundDetector(name, find_folder(name), None, BUNDLE)
    if found := detector_checkpoint(name):
        return found
    if is_folder(folder):
        if (folder / CARD).is_file():
            return FoundDetector(folder.resolve().name, folder, None, BUNDLE)
        checkpoint_family(folder)  # says what is wrong with it
    if name in shipped_cards() or name in shipped_vlm_names():
        return FoundDetector(name, shipped_folder() / name, None, BUNDLE)
    raise unknown_name(name, "detector", detector_cards())


def detector_checkpoint(name: str, revision: str | None = None) -> FoundDetector | None:
    """Find a detector that is a checkpoint of transformers; None for anything else.

    The arguments and errors are those of `find_published`.
    """
    found = find_published(
        name, detector_cards(), lambda kind: family_of(kind) is not None, revision
    )
    return None if found is None else _as_detector(found)


def own_detector(model: str) -> FoundDetector | None:
    """Find a model's own detection head; None if it has none.

    The arguments and errors are those of `find_folder`.
    """
    if model in shipped_vlm_names():
        return None
    folder = find_folder(model)
    if holds_vlm(folder) or read_card(folder / CARD).detector is None:
        return None
    return FoundDetector(model, folder, None, BUNDLE)


def default_detector(vocabulary: Vocabulary) -> FoundDetector:
    """Return the first named detector that is downloaded; BundleError, saying how, if none is."""
    is_open = vocabulary is Vocabulary.open
    what = "open-vocabulary detector" if is_open else "object detector"
    return _as_detector(first_downloaded(cards_of(vocabulary), what))


def _as_detector(found: FoundCheckpoint) -> FoundDetector:
    return FoundDetector(found.name, found.folder, found.source, CHECKPOINT)
