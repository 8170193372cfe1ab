"""Protection of inputs and earlier results from what a command writes.

The roles of a command's options (`Reads`, `Writes`) say which of their values are inputs and which
are outputs. An output that names an input by any path, link or stream is refused before anything is
read or written; existing results need --resume or --overwrite; and every output is locked for the
run.
"""

import glob
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from regionqa.detection.options import AUTO
from regionqa.errors import UsageError
from regionqa.files import (
    Identity,
    descriptor,
    file_status,
    identity,
    is_filled,
    is_folder,
    is_special,
    locked,
    resolved,
    with_home,
)
from regionqa.flags import Reads, Writes
from regionqa.images.kinds import SUFFIXES

NEVER_READ = (".jsonl", ".html", ".svg", ".pdf")
"""Suffixes of results that may lie in a folder of annotations, since none is read from there."""
DECIDED_LATER = (Writes.cache, Writes.folder, Writes.shared)
"""Outputs whose command decides itself what to do with what is there."""
SHARED = (Writes.drawings, Writes.shared)
"""Outputs that several runs may write to at the same time."""


@dataclass(frozen=True)
class NamedFiles:
    """What one option or argument names."""

    label: str
    """The option as it is typed, or the argument's name."""
    role: Reads | Writes
    values: tuple[str, ...]

    @property
    def paths(self) -> list[Path]:
        """The values as paths."""
        return [Path(value) for value in self.values]


@contextmanager
def guarded(
    named: Iterable[NamedFiles], *, resume: bool | None = None, overwrite: bool | None = None
) -> Iterator[None]:
    """Check what a command reads and writes, and hold the locks of its outputs.

    Args:
        named: The options and arguments that name files.
        resume: Whether existing results are continued; None: the command cannot.
        overwrite: Whether existing results are replaced; None: the command cannot.

    Raises:
        UsageError: An output is an input or another output, or there are results already.
        OutputError: Another run writes to an output.
    """
    files = list(named)
    inputs = [each for each in files if isinstance(each.role, Reads)]
    outputs = [each for each in files if isinstance(each.role, Writes)]
    refuse_inputs(inputs, outputs, resume=bool(resume))
    for output in outputs:
        for path in output.paths:
            refuse_results(output, path, resume=resume, overwrite=overwrite)
    with ExitStack() as locks:
        for output in outputs:
            for path in output.paths:
                if output.role not in SHARED and not is_special(path) and is_first():
                    locks.enter_context(locked(path))
        yield


def is_first() -> bool:
    """Return whether this is the only process of the run, or the first that torchrun started."""
    return os.environ.get("RANK", "0") == "0"


# -- an output is not an input ---------------------------------------------------------------------


def refuse_inputs(
    inputs: Sequence[NamedFiles], outputs: Sequence[NamedFiles], *, resume: bool = False
) -> None:
    """Raise UsageError for an output that is an input, holds one, or is another output.

    resume: whether results are continued, which `regionqa.pipeline.resume` recognises.
    """
    taken: dict[Identity | Path, str] = {}
    for stream, name in ((1, "stdout"), (2, "stderr")):
        if (known := identity(stream)) is not None:
            taken[known] = name
    standard = NamedFiles("stdin", Reads.data, ("/dev/stdin",))
    for output in (*outputs, NamedFiles("stdout", Writes.results, ("/dev/stdout",))):
        for path in output.paths:
            for source in (*inputs, standard):
                if clash(output, path, source, resume=resume):
                    raise UsageError(
                        f"{_typed(output, path)}: is also read ({source.label}); name another"
                    )
            if descriptor(path) is not None:
                continue
            keys = {key for key in (identity(path), resolved(path)) if key is not None}
            if not is_special(path) and (other := next((taken[k] for k in keys & {*taken}), None)):
                raise UsageError(f"{_typed(output, path)}: is also {other}; name two files")
            taken |= dict.fromkeys(keys, output.label)


def _typed(output: NamedFiles, path: Path) -> str:
    return output.label if output.label == "stdout" else f"{output.label} {path}"


def clash(output: NamedFiles, path: Path, source: NamedFiles, *, resume: bool = False) -> bool:
    """Return whether writing to a path would change what an option or argument reads."""
    known, place = identity(path), resolved(path)
    continued = output.role is Writes.cache or (resume and output.role is Writes.results)
    changes = is_filled(path) and not continued
    is_new = known is None and descriptor(path) is None and file_status(path) is None

    def meets(read: Path) -> bool:
        if known is None:
            return is_new and resolved(read) == place
        if output.role is Writes.folder and place in resolved(read).parents:
            return True
        holds = changes and is_folder(read) and _holds(read, known, source.role)
        return holds or identity(read) == known

    asks = source.role is Reads.request and len(source.values) > 1
    named = source.values[:-1] if asks else source.values
    return any(meets(read) for each in named for read in _read_paths(each, source.role))


def _read_paths(value: str, role: Reads | Writes) -> Iterator[Path]:
    """Paths that a value may stand for."""
    path = Path(value)
    if role is Reads.model:
        yield with_home(path)
        yield from _model_folders(value)
    elif role is Reads.data or value != "-":
        yield path
        if role is Reads.data and value.startswith(f"{AUTO}:"):  # --boxes auto:MODEL
            yield from _read_paths(value.removeprefix(f"{AUTO}:"), Reads.model)
        if (
            role is not Reads.data
            and any(mark in value for mark in "*?[")
            and file_status(path) is None
        ):
            yield from map(Path, glob.iglob(value, recursive=True))  # noqa: PTH207


def _model_folders(name: str) -> Iterator[Path]:
    """Folders of a model that ships, is converted, or is in the Hub's cache."""
    from regionqa.bundles.store import published_folder, shipped_folder

    if name and "/" not in name:
        yield from (shipped_folder() / name, published_folder(name))
    elif name.count("/") == 1:
        from huggingface_hub.constants import HF_HUB_CACHE

        yield Path(HF_HUB_CACHE, f"models--{name.replace('/', '--')}")


def _holds(folder: Path, known: Identity, role: Reads | Writes) -> bool:
    """Return whether a folder holds the file, itself or by a link, among those that are read."""
    for parent, _, names in os.walk(folder):
        for name in names:
            suffix = Path(name).suffix.lower()
            if role in (Reads.images, Reads.request):
                is_read = suffix in SUFFIXES
            else:
                is_read = role is Reads.model or suffix not in NEVER_READ
            if is_read and identity(Path(parent, name)) == known:
                return True
    return False


# -- results are not replaced by accident ----------------------------------------------------------


def refuse_results(
    output: NamedFiles,
    path: Path,
    *,
    resume: bool | None = None,
    overwrite: bool | None = None,
) -> None:
    """Raise UsageError for results that exist, unless they are to be continued or replaced."""
    if output.role in DECIDED_LATER or is_special(path):
        return
    if is_folder(path):
        if output.role is not Writes.drawings:
            raise UsageError(f"{_typed(output, path)}: is a folder; name a file")
        return
    if not is_filled(path):
        return
    if output.role is Writes.results and path.suffix.lower() in SUFFIXES:
        raise UsageError(f"{_typed(output, path)}: is an image, which results never replace")
    can_resume = resume is not None and output.role is Writes.results
    if overwrite or (resume and can_resume):
        return
    ways = ["continue it with --resume"] * can_resume
    ways += ["replace it with --overwrite"] * (overwrite is not None)
    ways.append("or name another file")
    raise UsageError(f"{_typed(output, path)}: already exists; {', '.join(ways)}")
