"""Bundles: a folder with a card, graphs, torch weights and a language model.

Finds them by name, path or Hub repository and checks that their files are there. It does not load
any of them.
"""

import glob
import hashlib
from contextlib import suppress
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from regionqa.bundles.card import FileSpec, ModelCard, read_card
from regionqa.bundles.hub import cached, fetch, hub_home, looks_like_repo
from regionqa.errors import BundleError

CARD = "card.toml"


@dataclass(frozen=True)
class Bundle:
    """A card and the folder its files lie in."""

    card: ModelCard
    root: Path

    def file(self, relative: str) -> Path:
        """A file of the bundle; BundleError where it is missing."""
        path = self.root / relative
        if not path.exists():
            raise BundleError(f"{path}: missing from the model {self.card.name!r}; get it again")
        return path

    @property
    def size(self) -> int:
        """Bytes of all files the card lists."""
        return sum(spec.size for spec in self.card.files)

    def check_sizes(self) -> None:
        """BundleError where a listed file is missing or cut short; reads no content."""
        for spec in self.card.files:
            actual = self.file(spec.path).stat().st_size
            if actual != spec.size:
                raise BundleError(
                    f"{self.root / spec.path}: has {actual} bytes, the card says {spec.size}; "
                    "get the model again"
                )

    def broken_files(self) -> list[str]:
        """Paths of listed files whose content is not what the card says; reads everything."""
        return [
            spec.path
            for spec in self.card.files
            if not (path := self.root / spec.path).is_file()
            or file_spec(self.root, path).sha256 != spec.sha256
        ]


def file_spec(root: Path, path: Path) -> FileSpec:
    """What the card says of a file: its path under `root`, digest and size."""
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return FileSpec(path.relative_to(root).as_posix(), digest, path.stat().st_size)


def open_bundle(root: Path) -> Bundle:
    """The bundle in a folder; BundleError where it is not sound."""
    bundle = Bundle(read_card(root / CARD), root)
    bundle.check_sizes()
    return bundle


def shipped_folder() -> Path:
    """The folder of the models that come with the package."""
    return Path(str(resources.files("regionqa.models")))


def shipped_bundles() -> dict[str, Path]:
    """Name and folder of every model that comes with the package."""
    cards = shipped_cards()
    return {name: shipped_folder() / name for name, card in cards.items() if card.is_converted}


def shipped_cards() -> dict[str, ModelCard]:
    """Name and card of every model that is known by name: shipped, or to be downloaded."""
    paths = sorted(shipped_folder().glob(f"*/{CARD}"))
    return {path.parent.name: read_card(path) for path in paths}


def published_cards() -> dict[str, ModelCard]:
    """Name and card of the published models that `regionqa download NAME` converts."""
    return {name: card for name, card in shipped_cards().items() if not card.is_converted}


def published_folder(name: str) -> Path:
    """Where a converted model lies on this machine: beside the Hub's cache; HF_HOME moves it."""
    return hub_home() / "regionqa" / name


def find_bundle(model: str | Path) -> Bundle:
    """The bundle of a known name, a folder or a Hub repository; BundleError where there is none.

    A repository, OWNER/NAME, is fetched once; then it is found on this machine, and the network is
    not asked (`regionqa download` looks for a newer one). Raises DownloadError where that fails.
    """
    known = shipped_cards() if isinstance(model, str) else {}
    if isinstance(model, str) and model in known:
        if known[model].is_converted:
            return open_bundle(shipped_folder() / model)
        if (published_folder(model) / CARD).is_file():
            return open_bundle(published_folder(model))
        raise BundleError(f"{model}: not downloaded yet; say: regionqa download {model}")
    folder = Path(model)
    with suppress(RuntimeError):  # ~somebody who is unknown here
        folder = folder.expanduser()
    if folder.is_dir():
        return open_bundle(folder)
    if isinstance(model, str) and looks_like_repo(model):
        return open_bundle(hub_folder(model))
    shipped = [name for name, card in known.items() if card.is_converted]
    further = [name for name in known if name not in shipped]
    raise BundleError(
        f"{model}: no such model; shipped are: {', '.join(shipped) or 'none'}; to be downloaded: "
        f"{', '.join(further) or 'none'}; or give a model's folder"
    )


def hub_folder(repo: str) -> Path:
    """The folder of a published bundle: its card, and the files that the card lists.

    The card comes first: a repository without one is no model of ours, and may be very large.
    """
    root = cached(repo, files=[CARD]) or fetch(repo, files=[CARD])
    listed = [spec.path for spec in read_card(root / CARD).files]
    if all((root / path).exists() for path in listed):
        return root
    # a snapshot's folder is named after its commit: card and files must be of the same one
    return fetch(repo, revision=root.name, files=[CARD, *map(glob.escape, listed)])
