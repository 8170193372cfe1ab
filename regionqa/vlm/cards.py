"""Cards of vision-language models: found by name, by repository or in a folder.

A card's tables are put over those of its family, so that a card says only what its checkpoint does
differently, and a checkpoint of a known family works without a card.
"""

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from regionqa.bundles.store import CONFIG, shipped_folder
from regionqa.bundles.store import shipped_vlm_names as shipped_vlm_names
from regionqa.errors import BundleError
from regionqa.schema import from_table, read_toml
from regionqa.vlm.card import VlmCard


class UnknownFamilyError(BundleError):
    """A checkpoint is of a family whose conventions are not known."""


@cache
def family_tables() -> dict[str, dict[str, Any]]:
    """Return the conventions of known families, by `model_type`.

    A table with `like` names the family over whose table it is put.
    """
    tables = {path.stem: read_toml(path) for path in sorted(_folder("families").glob("*.toml"))}

    def complete(name: str) -> dict[str, Any]:
        table = dict(tables[name])
        under = table.pop("like", None)
        return table if under is None else merged(complete(under), table)

    return {name: complete(name) for name in tables}


@cache
def shipped_vlm_cards() -> dict[str, VlmCard]:
    """Read the cards that ship with the package, by name."""
    return {name: shipped_vlm_card(name) for name in shipped_vlm_names()}


@cache
def shipped_vlm_card(name: str) -> VlmCard:
    """Read one card that ships with the package."""
    path = shipped_card_path(name)
    return make_card(_table(path), str(path))


def family_paths(family: str) -> list[Path]:
    """Return the file of a family's conventions, and those of the families that it is like."""
    path = _folder("families") / f"{family}.toml"
    under = read_toml(path).get("like")
    return [path, *(family_paths(under) if under else [])]


def shipped_card_path(name: str) -> Path:
    """Return the file of a card in the package."""
    return _folder("hub") / f"{name}.toml"


def card_of_repo(repo: str) -> VlmCard | None:
    """Return the shipped card of a repository on the Hub, or None."""
    for card in shipped_vlm_cards().values():
        if card.source and card.source.repo.lower() == repo.lower():
            return card
    return None


def read_vlm_card(path: Path) -> VlmCard:
    """Read a card of a user's own.

    It is put over the card in the package of the same repository, whose conventions may differ from
    its family's, else over its family's table.

    Raises:
        BundleError: The card is invalid, or its family is unknown.
    """
    table = _table(path)
    source = table.get("source")
    repo = source.get("repo") if isinstance(source, Mapping) else None
    shipped = card_of_repo(repo) if isinstance(repo, str) else None
    if shipped is not None and shipped.family == table.get("family"):
        table = merged(_table(shipped_card_path(shipped.name)), table)
    return make_card(table, str(path))


def _table(path: Path) -> dict[str, Any]:
    """Parse a card; BundleError if that fails."""
    try:
        return dict(read_toml(path))
    except (OSError, ValueError) as error:
        raise BundleError(f"{path}: cannot be read as a card: {error}") from error


def make_card(table: Mapping[str, Any], where: str) -> VlmCard:
    """Make a card of a table with at least `name` and `family`; see `read_vlm_card`."""
    family = table.get("family")
    tables = family_tables()
    if not isinstance(family, str) or family not in tables:
        raise BundleError(
            f"{where}: family is {family!r}; known are {', '.join(tables)}. A checkpoint of "
            "another family cannot be run; a server can run it (--server)"
        )
    return from_table(VlmCard, merged(tables[family], table), where)


def merged(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Put one nested table over another; lists are replaced, tables are merged."""
    result = dict(under)
    for key, value in over.items():
        below = result.get(key)
        both = isinstance(value, Mapping) and isinstance(below, Mapping)
        result[key] = merged(below, value) if both else value  # type: ignore[arg-type]
    return result


def family_card(family: str | None, name: str, where: str) -> VlmCard:
    """Make the card of a checkpoint that has none, of its family's conventions.

    Args:
        family: Its `model_type`; None: unknown.
        name: Name of the model.
        where: Its folder or repository, for the message.

    Raises:
        UnknownFamilyError: No card covers the family.
    """
    tables = family_tables()
    if family not in tables:
        said = (
            f"its {CONFIG} says model_type {family!r}, which no card covers"
            if family
            else f"its {CONFIG} names no model_type, or is no JSON"
        )
        raise UnknownFamilyError(
            f"{where}: {said}; known are {', '.join(tables)}. A server can run others (--server)"
        )
    table = {
        "name": name,
        "family": family,
        "summary": f"a checkpoint of the family {family}, with the family's conventions",
    }
    return make_card(table, where)


def card_of_checkpoint(folder: Path, name: str) -> VlmCard:
    """Make the card of a folder's checkpoint, of its family's conventions; see `family_card`."""
    return family_card(model_type(folder), name, str(folder))


def check_family(card: VlmCard, where: Path, folder: Path) -> None:
    """BundleError if a checkpoint is of another known family than its card says.

    Args:
        card: The card.
        where: Its file.
        folder: The checkpoint.
    """
    found = model_type(folder)
    if found != card.family and found in family_tables():
        raise BundleError(
            f"{where}: says family {card.family!r}, but the {CONFIG} of its checkpoint says "
            f"model_type {found!r}; correct the card"
        )


def model_type(folder: Path) -> str | None:
    """Return the `model_type` of a checkpoint's folder; None if it has no readable config."""
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    kind = config.get("model_type") if isinstance(config, dict) else None
    return kind if isinstance(kind, str) else None


def _folder(name: str) -> Path:
    return shipped_folder() / name
