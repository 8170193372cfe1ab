"""Checkpoints of the Hub on this machine: which files they need, found in the cache, or fetched."""

import glob
import hashlib
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path, PurePosixPath

from regionqa.bundles.hub import Listing, cached, fetch, instead_of_hub, list_files
from regionqa.bundles.store import CARD, CONFIG
from regionqa.bundles.weights import INDEX, read_index
from regionqa.errors import DownloadError
from regionqa.vlm.card import CheckpointSource

SUFFIXES = (".json", ".jinja", ".model", ".txt", ".safetensors")
"""Suffixes of files that transformers reads."""
WEIGHTS = "model.safetensors"
SAMPLES = 32
SAMPLE = 1 << 14
"""Number and bytes of the samples by which a file of weights is identified."""


def checkpoint_files(paths: Iterable[str]) -> list[str]:
    """Return those files of a repository that transformers reads: the ones in its top folder.

    Copies in other formats (ONNX, GGUF, original checkpoints) are left out. If weights are listed
    in an index, so are single-file copies of them. A card of ours is taken too.
    """
    top = [path for path in paths if len(PurePosixPath(path).parts) == 1]
    chosen = [path for path in top if path.endswith(SUFFIXES) or path == CARD]
    if INDEX in chosen:
        return [path for path in chosen if path != WEIGHTS and not path.startswith("consolidated")]
    return [path for path in chosen if not path.endswith(".safetensors") or path == WEIGHTS]


def find_checkpoint(source: CheckpointSource) -> Path | None:
    """Find the folder of a checkpoint in the cache, without network access; None if incomplete."""
    folder = cached(source.repo, revision=source.revision, files=[CONFIG])
    return folder if folder is not None and is_complete(folder) else None


def is_complete(folder: Path) -> bool:
    """Return whether a folder holds a config and all weights."""
    if not (folder / CONFIG).is_file():
        return False
    if (folder / INDEX).is_file():
        return all((folder / name).is_file() for name in set(read_index(folder / INDEX).values()))
    return (folder / WEIGHTS).is_file()


def checkpoint_digest(folder: Path) -> str:
    """Return 12 hex digits that identify the weights in a folder.

    Weights take gigabytes, so samples of every file are digested, spread over its length: two
    checkpoints of one architecture differ in nearly all of their numbers.
    """
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        size = path.stat().st_size
        digest.update(f"{path.name} {size} ".encode())
        with path.open("rb") as stream:
            for place in range(SAMPLES):
                stream.seek(place * max(size - SAMPLE, 0) // (SAMPLES - 1))
                digest.update(stream.read(SAMPLE))
    return digest.hexdigest()[:12]


def list_checkpoint(source: CheckpointSource) -> Listing:
    """List the files of a checkpoint; DownloadError as `list_files`."""
    listing = list_files(source.repo, revision=source.revision)
    names = checkpoint_files(file.path for file in listing.files)
    if not any(name.endswith(".safetensors") for name in names):
        raise DownloadError(
            f"{source.repo}: holds no {WEIGHTS} and no {INDEX}, so it is no checkpoint that "
            "transformers reads"
        )
    files = tuple(file for file in listing.files if file.path in names)
    return replace(listing, files=files)


def fetch_checkpoint(
    source: CheckpointSource, announce: Callable[[Listing], None] | None = None
) -> Path:
    """Fetch a checkpoint's missing files; its folder.

    Args:
        source: Where it is published.
        announce: Called with the listing before files are fetched.

    Raises:
        DownloadError: Files cannot be fetched and are not in the cache.
    """
    try:
        names = [glob.escape(file.path) for file in list_checkpoint(source).files]
    except DownloadError as error:
        return instead_of_hub(error, source.repo, find_checkpoint(source))
    folder = fetch(source.repo, revision=source.revision, files=names, announce=announce)
    if not is_complete(folder):
        raise DownloadError(f"{source.repo}: lacks weights that its {INDEX} lists; tell its owner")
    return folder
