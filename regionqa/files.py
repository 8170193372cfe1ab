"""Output files: written whole, replaced instead of truncated, and locked against a second run."""

import errno
import os
import re
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from tempfile import gettempdir
from types import ModuleType
from typing import BinaryIO, Literal

from regionqa.errors import OutputError

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # Windows, where a file that is being prepared is not locked
    fcntl = None

Identity = tuple[int, int]
"""Device and inode of a file, the same by every path and link."""
KINDS = (stat.S_IFREG, stat.S_IFDIR, stat.S_IFIFO)
"""Kinds of files that have an identity; a terminal may be input and output."""
OWN_DESCRIPTOR = re.compile(r"/dev/fd/(\d+)|/proc/self/fd/(\d+)")
LONGEST_NAME = 200
"""Characters of a name of a file of a model, which every file system can hold."""
STREAMS = {"/dev/stdin": 0, "/dev/stdout": 1, "/dev/stderr": 2}
NO_ROOM_BESIDE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.EBUSY, errno.ENAMETOOLONG)
"""A file that can be written in a folder that cannot, such as one mounted into a container."""


def descriptor(path: Path) -> int | None:
    """Return the number of the open file that a path like `/dev/stdout` names; None for others."""
    text = os.path.normpath(path)
    if text in STREAMS:
        return STREAMS[text]
    match = OWN_DESCRIPTOR.fullmatch(text)
    return int(match[1] or match[2]) if match else None


def file_status(path: Path | int) -> os.stat_result | None:
    """Return the status of what is at a path; None if there is nothing, or no such path can be."""
    try:
        return os.stat(path)  # noqa: PTH116 (takes a descriptor)
    except (OSError, ValueError):
        return None


def is_folder(path: Path) -> bool:
    """Return whether there is a folder; unlike `Path.is_dir`, for any text."""
    status = file_status(path)
    return status is not None and stat.S_ISDIR(status.st_mode)


def with_home(path: Path) -> Path:
    """Replace `~` by the home folder; it is kept where it names nobody's, as shells do."""
    try:
        return path.expanduser()
    except RuntimeError:
        return path


def is_filled(path: Path) -> bool:
    """Return whether there is a regular file that is not empty."""
    status = file_status(path)
    return status is not None and stat.S_ISREG(status.st_mode) and status.st_size > 0


def identity(path: Path | int) -> Identity | None:
    """Return the identity of an existing file, folder or FIFO; None for devices and no file."""
    status = file_status(path)
    if status is None or stat.S_IFMT(status.st_mode) not in KINDS:
        return None
    return status.st_dev, status.st_ino


def is_special(path: Path) -> bool:
    """Return whether a path names a device, FIFO or open file, which is written to as it is."""
    status = file_status(path)
    plain = status is None or stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)
    return descriptor(path) is not None or not plain


def resolved(path: Path) -> Path:
    """Return the absolute path behind all links; that of a link in a loop as it is."""
    try:
        return path.resolve()
    except (OSError, RuntimeError, ValueError):
        return path.absolute()


def open_output(path: Path, mode: Literal["ab", "wb"] = "wb") -> BinaryIO:
    """Open a file to write to it bit by bit.

    An existing file is replaced, not truncated: what else links to it keeps its content. Devices,
    FIFOs and open files such as `/dev/stdout` are written to as they are.

    Raises:
        OutputError: The file cannot be opened.
    """
    try:
        number = descriptor(path)
        if number is not None:
            return os.fdopen(os.dup(number), "wb")
        target = resolved(path)
        if mode == "ab" or not target.is_file():
            return path.open(mode)
        return _replaced(target)
    except (OSError, ValueError) as error:
        raise output_error(path, error) from error


def _replaced(target: Path) -> BinaryIO:
    """Put an empty file in the place of another, and return it open."""
    part = _beside(target)
    try:
        file = _open_part(part)
        try:
            shutil.copymode(target, part)
            part.replace(target)
        except OSError:
            file.close()
            part.unlink(missing_ok=True)
            raise
    except OSError as error:
        if error.errno not in NO_ROOM_BESIDE:
            raise
        return target.open("wb")
    return file


@contextmanager
def write_whole(path: Path, *, overwrite: bool = True) -> Iterator[BinaryIO]:
    """Write a file beside its place, and move it there when it is complete.

    An interrupted program leaves the old file, or none. Links stay links to the file. Devices,
    FIFOs and open files such as `/dev/stdout` are written to as they are.

    Args:
        path: The file.
        overwrite: Replace an existing file.

    Raises:
        OutputError: The file cannot be written, is being written by another run, or exists and
            must not be replaced.
    """
    try:
        if is_special(path):
            with open_output(path) as file:
                yield file
            return
        target = resolved(path)
        part = _beside(target)
        if overwrite and target.is_file() and not os.access(target.parent, os.W_OK):
            with target.open("wb") as file:
                yield file
            return
        with _open_part(part) as file:
            own = identity(file.fileno())
            try:
                yield file
                file.flush()
                os.fsync(file.fileno())
                if fcntl is None:
                    file.close()  # Windows moves no open file
                _move(part, target, overwrite)
            finally:
                if identity(part) == own:
                    part.unlink()
    except (OSError, UnicodeEncodeError) as error:
        if isinstance(error, OutputError | BrokenPipeError):
            raise
        raise output_error(path, error) from error


def _open_part(part: Path) -> BinaryIO:
    """Open the file in which another is prepared, empty and locked.

    Its name does not change, so that what a killed run left is not left for ever.
    """
    while True:
        number = os.open(part, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666)
        file = os.fdopen(number, "w+b")
        try:
            if fcntl is not None:
                fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            raise OutputError(f"{part}: another run is writing here; name another file") from None
        except OSError:  # a file system without locks
            pass
        if identity(number) == identity(part):  # else another run has just moved it away
            file.truncate()
            return file
        file.close()


def _move(part: Path, target: Path, overwrite: bool) -> None:
    if not overwrite:
        try:
            os.link(part, target)  # unlike renaming, never replaces a file
        except FileExistsError:
            raise OutputError(
                f"{target}: already exists; replace it with --overwrite, or name another"
            ) from None
        except OSError:  # a file system without hard links
            if target.exists():
                raise
            part.replace(target)
        return
    try:
        if target.exists():
            shutil.copymode(target, part)
        part.replace(target)
    except OSError as error:
        if error.errno not in NO_ROOM_BESIDE:
            raise
        shutil.copyfile(part, target)


def _beside(target: Path) -> Path:
    """The name of the file beside another in which that is prepared."""
    return target.with_name(f".regionqa-{sha256(os.fsencode(target.name)).hexdigest()[:16]}")


def set_default_permissions(folder: Path) -> None:
    """Give the weights in a folder the permissions of any new file.

    safetensors writes them for their owner alone, so that nobody else could run the model.
    """
    probe = folder / ".regionqa-new"
    with open_output(probe) as file:
        usual = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
    probe.unlink()
    for path in folder.glob("*.safetensors"):
        if not path.is_symlink():
            path.chmod(usual)


def output_error(path: Path, error: Exception) -> OutputError:
    """Return the error of an output that cannot be opened or written, with what to do next."""
    if isinstance(error, FileNotFoundError) and not path.parent.exists():
        return OutputError(f"{path}: there is no folder {path.parent}; create it first")
    if isinstance(error, IsADirectoryError):
        return OutputError(f"{path}: is a folder; name a file")
    reason = getattr(error, "strerror", None) or str(error)
    return OutputError(f"{path}: cannot be written: {reason}; name another file")


# -- locks -----------------------------------------------------------------------------------------


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of an output, a file or folder, which need not exist yet.

    The lock is the operating system's and ends with the process, however that ends.

    Raises:
        OutputError: Another run holds it.
    """
    from filelock import FileLock, Timeout

    target = resolved(path)
    digest = sha256(os.fsencode(target)).hexdigest()[:24]
    beside = target.with_name(f".{target.name}.lock")
    elsewhere = Path(gettempdir(), f"regionqa-{digest}.lock")
    # filelock would make the folder
    for place in (beside, elsewhere) if beside.parent.is_dir() else (elsewhere,):
        lock = FileLock(place, timeout=0)
        try:
            lock.acquire()
        except Timeout:
            raise OutputError(
                f"{path}: another run is writing here; wait until it has ended, or name another"
            ) from None
        except OSError:  # a folder that cannot be written, or a name that is too long
            continue
        try:
            yield
        finally:
            place.unlink(missing_ok=True)  # before the release: nobody else can hold it
            lock.release()
        return
    yield
