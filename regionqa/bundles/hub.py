"""Files of the Hugging Face Hub: fetched into the client's cache, and checked once they are there.

Every way in which that fails is one `DownloadError`. It knows repositories and files, not what a
bundle is. The Hub's client is imported by the functions, so that nothing offline waits for it.
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
"""What writing gives on a full disk, beyond a quota, and beyond the largest file allowed."""
SECONDS = 30
"""Longest wait for a list of files; the client has a limit of its own for the files."""


@dataclass(frozen=True)
class HubFile:
    """One file of a repository, as the Hub lists it."""

    path: str
    """Relative to the repository."""
    size: int
    """Bytes."""
    sha256: str | None
    """Digest of the content; None for small files, which git keeps."""
    blob_id: str | None
    """Git's digest of a small file."""

    @property
    def digest(self) -> str | None:
        """What the client calls the content by in its cache."""
        return self.sha256 or self.blob_id

    def is_intact(self, path: Path) -> bool:
        """Whether a file here has the content the Hub lists."""
        if self.digest is None:
            return path.stat().st_size == self.size
        with path.open("rb") as stream:
            if self.sha256:
                return hashlib.file_digest(stream, "sha256").hexdigest() == self.sha256
            git = hashlib.sha1(f"blob {self.size}\0".encode(), usedforsecurity=False)
            git.update(stream.read())
        return git.hexdigest() == self.blob_id


@dataclass(frozen=True)
class Listing:
    """What a repository holds at one revision."""

    repo: str
    revision: str
    """The commit."""
    files: tuple[HubFile, ...]
    licence: str | None
    """As the Hub gives it."""

    @property
    def missing(self) -> list[HubFile]:
        """Files that are not on this machine yet."""
        from huggingface_hub import try_to_load_from_cache
        from huggingface_hub.file_download import repo_folder_name

        blobs = hub_cache() / repo_folder_name(repo_id=self.repo, repo_type="model") / "blobs"

        def is_here(file: HubFile) -> bool:
            known = try_to_load_from_cache(self.repo, file.path, revision=self.revision)
            # another revision may have the same content
            return isinstance(known, str) or bool(file.digest and (blobs / file.digest).exists())

        return [file for file in self.files if not is_here(file)]


def looks_like_repo(name: str | Path) -> bool:
    """Whether a name is OWNER/NAME, and nothing on this machine is called so."""
    return isinstance(name, str) and bool(REPO.fullmatch(name)) and not os.path.lexists(name)


def local_or_hub(
    name: str, *, revision: str | None = None, files: Sequence[str] | None = None
) -> Path:
    """A folder on this machine as it is; a repository of the Hub as `fetch` gives it."""
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
    """What the Hub lists: everything, or what the patterns name. Asks the network.

    files: names, which must be there, and patterns such as *.json, of which one must match.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.utils import filter_repo_objects  # type: ignore[attr-defined]

    with one_line(repo, revision):
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
    )


def licence_of(info: "ModelInfo") -> str | None:
    """The licence that a repository states, with its name and address where the Hub has none."""
    card: Any = info.card_data or {}
    stated = card.get("license")
    named = card.get("license_name") if stated in (None, "other") else stated
    named = ", ".join(map(str, named)) if isinstance(named, list) else named
    parts = [str(part) for part in (named or stated, card.get("license_link")) if part]
    return ", ".join(parts) or None


def cached(
    repo: str, *, revision: str | None = None, files: Sequence[str] | None = None
) -> Path | None:
    """The folder of a repository that is already on this machine; None where it is not, or partly.

    Never asks the network.
    """
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
    """The folder on this machine with a repository's files; fetches those that are missing.

    files: as for `list_files`. announce: called before the first byte, if any is to come.
    Where the Hub cannot be reached, what is complete on this machine is used. Files that arrive are
    compared with the digests the Hub lists; a wrong one is removed again. Raises DownloadError.
    """
    from huggingface_hub import constants, snapshot_download

    try:
        listing = list_files(repo, revision=revision, files=files)
    except DownloadError as error:
        folder = cached(repo, revision=revision, files=files)
        if folder is None or error.__cause__ is None or not is_unreachable(error.__cause__):
            raise
        if not constants.HF_HUB_OFFLINE:
            log.warning("%s: the Hub cannot be reached; what is on this machine is used", repo)
        return folder
    missing = listing.missing
    if missing and announce:
        announce(listing)
    check_space(repo, missing)
    with one_line(repo, revision, missing):
        # by its branch's name, not by its commit, so that the cache knows the name when offline
        patterns = list(files) if files else None
        folder = Path(snapshot_download(repo, revision=revision, allow_patterns=patterns))
    if folder.name != listing.revision:  # somebody published meanwhile
        missing = list(list_files(repo, revision=folder.name, files=files).files)
    check_content(repo, folder, missing)
    return folder


def check_space(repo: str, missing: Sequence[HubFile]) -> None:
    """DownloadError where the disk does not hold what is to come."""
    needed, free = sum(file.size for file in missing), free_space()
    if needed > free:
        raise DownloadError(disk_full(repo, needed, free))


def check_content(repo: str, folder: Path, files: Iterable[HubFile]) -> None:
    """Remove files whose content is not what the Hub lists; DownloadError where there was one."""
    damaged = [file.path for file in files if not file.is_intact(folder / file.path)]
    for path in damaged:
        link = folder / path
        link.resolve().unlink()  # the blob, which would pass for complete the next time
        link.unlink(missing_ok=True)
    if damaged:
        raise DownloadError(
            f"{repo}: arrived damaged and was removed (its digest is not the Hub's): "
            f"{', '.join(damaged)}; run again to fetch it anew"
        )


def hub_cache() -> Path:
    """Where the client keeps files; HF_HOME moves it."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def hub_home() -> Path:
    """The folder of all that comes from the Hub; HF_HOME moves it."""
    from huggingface_hub import constants

    return Path(constants.HF_HOME)


def free_space() -> int:
    """Bytes that are free where the client keeps files."""
    cache = hub_cache().absolute()
    there = next(folder for folder in (cache, *cache.parents) if folder.exists())
    return shutil.disk_usage(there).free


def disk_full(repo: str, needed: int, free: int) -> str:
    """The line for a disk that is too small."""
    return (
        f"{repo}: the disk is full: {readable(needed)} are needed, {readable(free)} are free in "
        f"{hub_cache()}; free some, or have HF_HOME name a folder on a larger disk"
    )


def readable(size: int) -> str:
    """Bytes for people."""
    for unit, name in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if size >= unit:
            return f"{size / unit:.1f} {name}"
    return f"{size} bytes"


@contextmanager
def one_line(
    repo: str, revision: str | None, missing: Sequence[HubFile] | None = None
) -> Iterator[None]:
    """Run the client quietly; whatever it raises becomes one DownloadError.

    missing: the files being fetched; None while only the list is asked for.
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
    """The line for what the client raised."""
    from huggingface_hub.errors import OfflineModeIsEnabled

    cause = root_cause(error)
    if told := hub_problem(cause, repo, revision):
        return told
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
