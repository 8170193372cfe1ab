"""Vision-language models found by name, in a folder or on the Hub, with their cards.

Nothing but cards and configs is fetched here; `fetch_checkpoint` fetches the weights.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from regionqa.bundles.hub import cached, client_errors, fetch, list_files, looks_like_repo
from regionqa.bundles.store import CARD, CONFIG, holds_vlm, shipped_cards, shipped_vlm_names
from regionqa.errors import BundleError
from regionqa.files import is_folder, with_home
from regionqa.vlm.card import CheckpointSource, VlmCard
from regionqa.vlm.cards import (
    card_of_checkpoint,
    card_of_repo,
    check_family,
    family_card,
    model_type,
    read_vlm_card,
    shipped_card_path,
    shipped_vlm_card,
)
from regionqa.vlm.checkpoints import find_checkpoint

SNAPSHOTS = "snapshots"
"""Folder of the revisions of a repository in the client's cache."""


@dataclass(frozen=True)
class FoundVlm:
    """A model whose card was found."""

    card: VlmCard
    folder: Path | None
    """The checkpoint's files; None: they are not, or not all, on this machine."""
    path: Path | None
    """The card's file; None: the model has none, and the card is its family's conventions."""


def find_vlm(model: str) -> FoundVlm | None:
    """Find a model; see `vlm_in_folder` and `vlm_on_hub` for the errors.

    Args:
        model: Name of a card in the package, a folder, or OWNER/NAME on the Hub.

    Returns:
        None if it is no vision-language model.
    """
    if model in shipped_vlm_names():
        return shipped_vlm(model)
    if model in shipped_cards():
        return None
    folder = with_home(Path(model))
    if is_folder(folder):
        return vlm_in_folder(folder) if holds_vlm(folder) else None
    return vlm_on_hub(model) if looks_like_repo(model) else None


def shipped_vlm(name: str) -> FoundVlm:
    """Find a model by the name of a card in the package."""
    card = shipped_vlm_card(name)
    folder = find_checkpoint(card.source) if card.source else None
    return FoundVlm(card, folder, shipped_card_path(name))


def vlm_in_folder(folder: Path) -> FoundVlm:
    """Find the model of a folder: a checkpoint, or a card that names one on the Hub.

    The folder of a downloaded model, which `regionqa download` prints, has that model's card.

    Raises:
        BundleError: The card is invalid, names no checkpoint or one of another family, or the
            family is unknown.
    """
    if (folder / CARD).is_file():
        card = read_vlm_card(folder / CARD)
        checkpoint: Path | None = folder
        if not (folder / CONFIG).is_file():
            if card.source is None:
                raise BundleError(
                    f"{folder / CARD}: has no [source] with the repo of its checkpoint, and beside "
                    f"it is no {CONFIG}; add one of the two"
                )
            checkpoint = find_checkpoint(card.source)
        if checkpoint is not None:
            check_family(card, folder / CARD, checkpoint)
        return FoundVlm(card, checkpoint, folder / CARD)
    repo = repo_of_snapshot(folder)
    if repo and (own := card_of_repo(repo)):
        return FoundVlm(own, folder, shipped_card_path(own.name))
    return FoundVlm(card_of_checkpoint(folder, repo or folder.resolve().name), folder, None)


def vlm_on_hub(repo: str, revision: str | None = None) -> FoundVlm | None:
    """Find the model of a repository; only its card or config is fetched, if it is not cached.

    Args:
        repo: OWNER/NAME.
        revision: A branch, tag or commit; None: the card's, else main.

    Returns:
        None if it holds a bundle, or neither a card nor a config.

    Raises:
        UnknownFamilyError: It is a checkpoint of a family that no card covers.
        DownloadError: It is not on this machine, and the Hub cannot be asked.
    """
    own = card_of_repo(repo)
    if own is not None and own.source is not None:
        source = replace(own.source, revision=revision or own.source.revision)
        path = shipped_card_path(own.name)
        return FoundVlm(replace(own, source=source), find_checkpoint(source), path)
    source = CheckpointSource(repo, "", revision or "main")
    published = cached(repo, revision=revision, files=[CARD])
    folder = find_checkpoint(source)
    family = model_type(folder) if folder else None
    if published is None and folder is None:
        listing = list_files(repo, revision=revision)
        names = {file.path for file in listing.files}
        if CARD in names:
            published = fetch(repo, revision=revision, files=[CARD])
        elif CONFIG not in names:
            return None
        else:
            family = listing.model_type or remote_model_type(repo, revision)
    if published is not None:
        if not holds_vlm(published):
            return None
        own = read_vlm_card(published / CARD)
        return FoundVlm(replace(own, source=source), folder, published / CARD)
    return FoundVlm(replace(family_card(family, repo, repo), source=source), folder, None)


def remote_model_type(repo: str, revision: str | None) -> str | None:
    """Return the `model_type` of a repository's config; the cache is left as it is.

    Raises:
        DownloadError: The config cannot be fetched.
    """
    from huggingface_hub import hf_hub_download

    with TemporaryDirectory() as folder:
        with client_errors(repo, revision):
            hf_hub_download(repo, CONFIG, revision=revision, local_dir=folder)
        return model_type(Path(folder))


def repo_of_snapshot(folder: Path) -> str | None:
    """Return the repository of a folder in the client's cache; None for any other folder."""
    parents = folder.absolute().parents
    if len(parents) < 2 or parents[0].name != SNAPSHOTS:
        return None
    kind, _, name = parents[1].name.partition("--")
    return name.replace("--", "/", 1) if kind == "models" else None


def download_command(card: VlmCard) -> str:
    """Return the command that downloads a card's checkpoint."""
    if card.name in shipped_vlm_names() and card.source == shipped_vlm_card(card.name).source:
        return f"regionqa download {card.name}"
    if card.source is None:
        return "regionqa download OWNER/NAME"
    at = "" if card.source.revision == "main" else f" --revision {card.source.revision}"
    return f"regionqa download {card.source.repo}{at}"
