"""Files of the Hugging Face Hub: listed, fetched into the client's cache, and verified.

Every failure is a `DownloadError`. huggingface_hub is imported inside the functions, so that
offline commands do not wait for it.
"""

import errno
import glob
import hashlib
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regionqa.bundles.hub_errors import (
    hub_problem,
    is_broken_connection,
    is_unreachable,
    page,
    quiet_client,
    root_cause,
)
from regionqa.errors import DownloadError

if TYPE_CHECKING:
    from huggingface_hub import ModelInfo


log = logging.getLogger(__name__)
REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""errno of a full disk, an exceeded quota, and a file over the size limit."""
SECONDS = 30
"""Timeout of listing a repository, in seconds; the client has its own for files."""


@dataclass(frozen=True)
class HubFile:
    """One file of a repository, as the Hub lists it."""

    path: str
    """Relative to the repository."""
    size: int
    """Bytes."""
    sha256: str | None
    """Digest of the content; None for small files, which are stored in git."""
    blob_id: str | None
    """Git's digest of a small file."""

    def is_intact(self, path: Path) -> bool:
        """Return whether a local file has the content listed by the Hub."""
        if self.sha256 is None and self.blob_id is None:
            return path.stat().st_size == self.size
        with path.open("rb") as stream:
            if self.sha256:
                return hashlib.file_digest(stream, "sha256").hexdigest() == self.sha256
            git = hashlib.sha1(f"blob {self.size}\0".encode(), usedforsecurity=False)
            git.update(stream.read())
        return git.hexdigest() == self.blob_id


@dataclass(frozen=True)
class Listing:
    """The files of a repository at one revision."""

    repo: str
    revision: str
    """The commit."""
    files: tuple[HubFile, ...]
    licence: str | None
    """The licence stated by the repository."""
    model_type: str | None = None
    """The `model_type` of its config.json, where the Hub tells it."""

    @property
    def missing(self) -> list[HubFile]:
        """Files that are not in the cache, by the client's dry run; DownloadError if that fails."""
        from huggingface_hub import snapshot_download

        names = [glob.escape(file.path) for file in self.files]
        with client_errors(self.repo, self.revision):
            plan = snapshot_download(
                self.repo, revision=self.revision, allow_patterns=names, dry_run=True
            )
        absent = {entry.filename for entry in plan if entry.will_download}
        return [file for file in self.files if file.path in absent]


def looks_like_repo(name: str | Path) -> bool:
    """Return whether a name has the form OWNER/NAME and is not a path on this machine."""
    return isinstance(name, str) and bool(REPO.fullmatch(name)) and not os.path.lexists(name)


def local_or_hub(
    name: str, *, revision: str | None = None, files: Sequence[str] | None = None
) -> Path:
    """Return the path of a local folder, or of a repository's fetched files."""
    folder = Path(name)
    if folder.is_dir():
        return folder
    if looks_like_repo(name):
        return fetch(name, revision=revision, files=files)
    raise DownloadError(
        f"{name}: neither a folder here nor a repository's name, which is written OWNER/NAME"
    )


def list_files(
    repo: str, *, revision: str | None = None, files: Sequence[str] | None = None
) -> Listing:
    """List the files of a repository.

    Args:
        repo: OWNER/NAME.
        revision: A branch, tag or commit; None: main.
        files: File names, all of which must exist, and patterns such as *.json, one of which must
            match; None: all files.

    Raises:
        DownloadError: The Hub cannot be reached, or lacks the repository or a file.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.utils import filter_repo_objects  # type: ignore[attr-defined]

    with client_errors(repo, revision):
        info = HfApi().model_info(repo, revision=revision, files_metadata=True, timeout=SECONDS)
    siblings = {sibling.rfilename: sibling for sibling in info.siblings or ()}
    wanted = list(filter_repo_objects(siblings, allow_patterns=list(files) if files else None))
    for name in files or ():
        absent = name not in siblings if not glob.has_magic(name) else not wanted
        if absent:
            raise DownloadError(
                f"{repo}: holds no file {name} at revision {revision or 'main'}; what it holds is "
                f"listed at {page(repo)}"
            )
    return Listing(
        repo,
        info.sha or "",
        tuple(
            HubFile(
                path,
                siblings[path].size or 0,
                lfs.sha256 if (lfs := siblings[path].lfs) else None,
                siblings[path].blob_id,
            )
            for path in wanted
        ),
        licence_of(info),
        model_type
        if isinstance(model_type := (info.config or {}).get("model_type"), str)
        else None,
    )


def licence_of(info: "ModelInfo") -> str | None:
    """Read the licence a repository states, with name and link if it is not one of the Hub's."""
    card: Any = info.card_data or {}
    stated = card.get("license")
    named = card.get("license_name") if stated in (None, "other") else stated
    named = ", ".join(map(str, named)) if isinstance(named, list) else named
    parts = [str(part) for part in (named or stated, card.get("license_link")) if part]
    return ", ".join(parts) or None


def cached(
    repo: str, *, revision: str | None = None, files: Sequence[str] | None = None
) -> Path | None:
    """Find the folder of a cached repository, without network access; None if files are missing."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    patterns = list(files) if files else None
    try:
        with quiet_client():
            folder = Path(
                snapshot_download(
                    repo, revision=revision, allow_patterns=patterns, local_files_only=True
                )
            )
    except (LocalEntryNotFoundError, ValueError):
        return None
    names = (name for name in patterns or () if not glob.has_magic(name))
    return folder if all((folder / name).exists() for name in names) else None


def fetch(
    repo: str,
    *,
    revision: str | None = None,
    files: Sequence[str] | None = None,
    announce: Callable[[Listing], None] | None = None,
) -> Path:
    """Fetch a repository's missing files; the folder that holds its files.

    Fetched files are compared with the Hub's digests; a damaged one is removed. If the Hub cannot
    be reached, a complete cached copy is used.

    Args:
        repo: OWNER/NAME.
        revision: A branch, tag or commit; None: main.
        files: As for `list_files`.
        announce: Called with the listing before files are fetched.

    Raises:
        DownloadError: Files cannot be fetched and are not in the cache.
    """
    from huggingface_hub import snapshot_download

    try:
        listing = list_files(repo, revision=revision, files=files)
    except DownloadError as error:
        return instead_of_hub(error, repo, cached(repo, revision=revision, files=files))
    missing = listing.missing
    if missing and announce:
        announce(listing)
    check_space(repo, missing)
    with client_errors(repo, revision, missing):
        # by its branch's name, not by its commit, so that the cache knows the name when offline
        patterns = list(files) if files else None
        folder = Path(snapshot_download(repo, revision=revision, allow_patterns=patterns))
    if folder.name != listing.revision:  # a newer revision was published meanwhile
        missing = list(list_files(repo, revision=folder.name, files=files).files)
    check_content(repo, folder, missing)
    remove_leftovers(folder, listing.files)
    return folder


def instead_of_hub(error: DownloadError, repo: str, folder: Path | None) -> Path:
    """Return the complete cached folder where the Hub cannot be reached; else raise the error."""
    from huggingface_hub import constants

    if folder is None or error.__cause__ is None or not is_unreachable(error.__cause__):
        raise error
    if not constants.HF_HUB_OFFLINE:
        log.warning("%s: the Hub cannot be reached; what is on this machine is used", repo)
    return folder


def check_space(repo: str, missing: Sequence[HubFile]) -> None:
    """DownloadError if the missing files do not fit on the disk."""
    needed, free = sum(file.size for file in missing), free_space()
    if needed > free:
        raise DownloadError(disk_full(repo, needed, free))


def check_content(repo: str, folder: Path, files: Iterable[HubFile]) -> None:
    """Remove files that differ from the Hub's listing; DownloadError if there are any."""
    damaged = [file.path for file in files if not file.is_intact(folder / file.path)]
    for path in damaged:
        link = folder / path
        link.resolve().unlink()  # the blob, which would count as complete next time
        link.unlink(missing_ok=True)
    if damaged:
        raise DownloadError(
            f"{repo}: arrived damaged and was removed (its digest is not the Hub's): "
            f"{', '.join(damaged)}; run again to fetch it anew"
        )


def remove_leftovers(folder: Path, files: Iterable[HubFile]) -> None:
    """Remove what killed downloads left of files that have been fetched since."""
    for file in files:
        blob = (folder / file.path).resolve()
        for part in blob.parent.glob(f"{glob.escape(blob.name)}.*incomplete"):
            part.unlink(missing_ok=True)


def hub_cache() -> Path:
    """Return the folder of the client's cache, below HF_HOME by default."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def hub_home() -> Path:
    """Return the value of HF_HOME."""
    from huggingface_hub import constants

    return Path(constants.HF_HOME)


def free_space() -> int:
    """Free bytes on the disk of the client's cache."""
    cache = hub_cache().absolute()
    there = next(folder for folder in (cache, *cache.parents) if folder.exists())
    return shutil.disk_usage(there).free


def disk_full(repo: str, needed: int, free: int) -> str:
    """Return the message for a disk that is too small."""
    return (
        f"{repo}: the disk is full: {readable(needed)} are needed, {readable(free)} are free in "
        f"{hub_cache()}; free some, or have HF_HOME name a folder on a larger disk"
    )


def readable(size: int) -> str:
    """Bytes in a readable unit."""
    for unit, name in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if size >= unit:
            return f"{size / unit:.1f} {name}"
    return f"{size} bytes"


@contextmanager
def client_errors(
    repo: str, revision: str | None, missing: Sequence[HubFile] | None = None
) -> Iterator[None]:
    """Run the client quietly, and turn its errors into a DownloadError.

    Args:
        repo: OWNER/NAME, for the message.
        revision: For the message.
        missing: The files being fetched; None while the repository is listed.
    """
    try:
        with quiet_client():
            yield
    except (OSError, RuntimeError, ValueError) as error:
        raise DownloadError(describe_error(error, repo, revision, missing)) from error
    except Exception as error:
        if not is_broken_connection(error):
            raise
        raise DownloadError(describe_error(error, repo, revision, missing)) from error


def describe_error(
    error: Exception, repo: str, revision: str | None, missing: Sequence[HubFile] | None
) -> str:
    """Return the message for an error of the client."""
    from huggingface_hub.errors import OfflineModeIsEnabled

    cause = root_cause(error)
    if message := hub_problem(cause, repo, revision):
        return message
    why = " ".join(f"{type(cause).__name__}: {cause}".split())
    if isinstance(cause, OfflineModeIsEnabled):
        return (
            f"{repo}: not, or not wholly, on this machine, and HF_HUB_OFFLINE forbids to fetch it; "
            "connect once without it, or give a local folder"
        )
    if is_broken_connection(cause) and missing is None:
        return (
            f"{repo}: not, or not wholly, on this machine, and the Hub cannot be reached ({why}); "
            "connect once, or give a local folder"
        )
    if is_broken_connection(cause):
        return f"{repo}: the connection broke ({why}); run again: files that are complete are kept"
    number = getattr(cause, "errno", None)
    if missing is not None and number in FULL:
        return disk_full(repo, sum(file.size for file in missing), free_space())
    if number is not None:
        return f"{repo}: cannot be kept in {hub_cache()}: {cause}; HF_HOME names another folder"
    if missing is None:
        return f"{repo}: the Hub's answer makes no sense ({why}); is there a proxy in between?"
    return f"{repo}: did not arrive whole ({why}); run again: files that are complete are kept"
