"""Bundles on disk: folders with a card, graphs, torch weights and a language model.

Bundles are found by name, path or Hub repository, and their files are verified, not loaded.
"""

import glob
import hashlib
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import resources
from pathlib import Path

from regionqa.bundles.card import FileSpec, ModelCard, read_card
from regionqa.bundles.hub import cached, fetch, hub_home, looks_like_repo
from regionqa.errors import BundleError
from regionqa.files import is_folder, with_home
from regionqa.schema import read_toml

CARD = "card.toml"
CONFIG = "config.json"
"""The file of a transformers checkpoint that names its `model_type`."""
VLM = "vlm"
"""Kind of the cards of vision-language models, which are no bundles."""


@dataclass(frozen=True)
class Bundle:
    """A card and the folder of its files."""

    card: ModelCard
    root: Path

    def file(self, relative: str) -> Path:
        """Return the path of a file of the bundle; BundleError if it is missing."""
        path = self.root / relative
        if not path.exists():
            raise BundleError(f"{path}: missing from the model {self.card.name!r}; get it again")
        return path

    @property
    def language_folder(self) -> Path:
        """Folder of the language model; BundleError if it is missing."""
        return self.file(self.card.language.folder)

    @property
    def size(self) -> int:
        """Bytes of all files listed on the card."""
        return sum(spec.size for spec in self.card.files)

    def check_sizes(self) -> None:
        """BundleError if a listed file is missing or has another size; reads no content."""
        for spec in self.card.files:
            actual = self.file(spec.path).stat().st_size
            if actual != spec.size:
                raise BundleError(
                    f"{self.root / spec.path}: has {actual} bytes, the card says {spec.size}; "
                    "get the model again"
                )

    def broken_files(self) -> list[str]:
        """Return the listed files that are missing or have another digest; reads all content."""
        return [
            spec.path
            for spec in self.card.files
            if not (path := self.root / spec.path).is_file()
            or file_spec(self.root, path).sha256 != spec.sha256
        ]


def file_spec(root: Path, path: Path) -> FileSpec:
    """Return the card's entry of a file: its path relative to `root`, digest and size."""
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return FileSpec(path.relative_to(root).as_posix(), digest, path.stat().st_size)


def open_bundle(root: Path) -> Bundle:
    """Open the bundle in a folder; BundleError if its card or files are invalid."""
    bundle = Bundle(read_card(root / CARD), root)
    bundle.check_sizes()
    return bundle


def shipped_folder() -> Path:
    """Return the folder of the models in the package."""
    return Path(str(resources.files("regionqa.models")))


def shipped_bundles() -> dict[str, Path]:
    """Folders of the models in the package, by name."""
    cards = shipped_cards()
    return {name: shipped_folder() / name for name, card in cards.items() if card.is_converted}


def shipped_cards() -> dict[str, ModelCard]:
    """Cards in the package by name: models that are shipped, and published models."""
    paths = sorted(shipped_folder().glob(f"*/{CARD}"))
    return {path.parent.name: read_card(path) for path in paths}


def published_cards() -> dict[str, ModelCard]:
    """Cards of the published models, which `regionqa download NAME` converts, by name."""
    return {name: card for name, card in shipped_cards().items() if not card.is_converted}


def shipped_vlm_names() -> list[str]:
    """Return the names of the vision-language models whose cards are in the package."""
    return sorted(path.stem for path in (shipped_folder() / "hub").glob("*.toml"))


def published_folder(name: str) -> Path:
    """Return the folder of a converted published model: HF_HOME/regionqa/NAME."""
    return hub_home() / "regionqa" / name


def find_bundle(model: str | Path) -> Bundle:
    """Find a bundle and open it; see `find_folder` for the argument and errors.

    Raises:
        BundleError: There is no such model, its files are invalid, or it is no bundle.
    """
    folder = None if model in shipped_vlm_names() else find_folder(model)
    if folder is None or holds_vlm(folder):
        raise BundleError(
            f"{model}: is a vision-language model of the Hub; this needs a bundle, such as those "
            "that ship or that regionqa init, finetune and download of a published model write"
        )
    return open_bundle(folder)


def holds_vlm(folder: Path) -> bool:
    """Return whether a folder holds a transformers checkpoint, or a vision-language model's card.

    A card that cannot be read is a bundle's, whose reader reports what is wrong.
    """
    try:
        return read_toml(folder / CARD).get("kind") == VLM
    except FileNotFoundError:
        return (folder / CONFIG).is_file()
    except (OSError, ValueError):
        return False


def find_folder(model: str | Path) -> Path:
    """Find the folder of a model.

    A repository, OWNER/NAME, is fetched once and used from the cache afterwards, without network
    access; `regionqa download` updates it.

    Args:
        model: The name of a model that ships with the package, a folder, or OWNER/NAME on the Hub.

    Raises:
        BundleError: There is no such model.
        DownloadError: It is on the Hub and cannot be fetched.
    """
    known = shipped_cards() if isinstance(model, str) else {}
    if isinstance(model, str) and model in known:
        if known[model].is_converted:
            return shipped_folder() / model
        if (published_folder(model) / CARD).is_file():
            return published_folder(model)
        raise BundleError(f"{model}: not downloaded yet; run: regionqa download {model}")
    folder = with_home(Path(model))
    if is_folder(folder):
        return folder
    if isinstance(model, str) and looks_like_repo(model):
        return hub_folder(model)
    raise BundleError(no_such_model(str(model)))


def no_such_model(name: str) -> str:
    """The message for a name that is no model's, with those that were probably meant."""
    further = [*published_cards(), *shipped_vlm_names()]
    near = get_close_matches(Path(name).name.lower(), [*shipped_bundles(), *further], n=3)
    listed = (
        f"shipped are: {', '.join(shipped_bundles()) or 'none'}; {len(further)} others can be "
        "downloaded: regionqa models list; or give a model's folder"
    )
    if near:
        listed = f"did you mean {' or '.join(near)}? S{listed[1:]}"
    return f"{name}: no such model; {listed}"


def hub_folder(repo: str) -> Path:
    """Fetch a repository's card and the files listed on it; their folder.

    The card is fetched first: a repository without one is not a bundle, and may be very large.
    """
    root = cached(repo, files=[CARD]) or fetch(repo, files=[CARD])
    if holds_vlm(root):
        return root
    listed = [spec.path for spec in read_card(root / CARD).files]
    if all((root / path).exists() for path in listed):
        return root
    # a snapshot's folder is named after its commit: card and files must be of the same one
    return fetch(repo, revision=root.name, files=[CARD, *map(glob.escape, listed)])
