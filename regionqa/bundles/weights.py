"""Headers of a folder's safetensors files: names, types and shapes of tensors, without data."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from pathlib import Path

from safetensors import safe_open

from regionqa.errors import BundleError
from regionqa.files import LONGEST_NAME
from regionqa.schema import read_object

INDEX = "model.safetensors.index.json"
BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "U8": 1, "I8": 1, "BOOL": 1}
"""Bytes per number by safetensors' name of the type."""
IGNORED = "rotary_emb.inv_freq"
"""Suffix of buffers in old files, which every runtime computes itself."""


@dataclass(frozen=True)
class StoredTensor:
    """The entry of one tensor in a file's header."""

    name: str
    kind: str
    """safetensors' name of the type: F32, F16, BF16."""
    shape: tuple[int, ...]

    @property
    def count(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    @property
    def size(self) -> int:
        """Bytes."""
        return self.count * BYTES.get(self.kind, 4)


def read_index(path: Path) -> dict[str, str]:
    """Read an index of shards: the file of every tensor, beside the index.

    Raises:
        BundleError: It cannot be read, or names files elsewhere; it may come from a stranger.
    """
    listed = read_object(path).get("weight_map")
    if not isinstance(listed, dict) or not all(isinstance(name, str) for name in listed.values()):
        raise BundleError(f"{path}: has no weight_map of tensors and files; get it again")
    for name in listed.values():
        if Path(name).name != name or not name.isprintable() or len(name) > LONGEST_NAME:
            raise BundleError(f"{path}: lists the file {name!r}, which is not beside it")
    return listed


def weight_files(folder: Path) -> list[Path]:
    """Return the files that transformers reads; FileNotFoundError if there are none.

    Some checkpoints hold their weights in a second layout too, under other names.
    """
    whole, index = folder / "model.safetensors", folder / INDEX
    if whole.is_file():
        return [whole]
    if index.is_file():
        names = set(read_index(index).values())
        return sorted(folder / name for name in names)
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise FileNotFoundError(f"no .safetensors in {folder}")
    return files


def stored(folder: Path) -> list[StoredTensor]:
    """List the tensors of a model's folder. Raises OSError, KeyError or SafetensorError."""
    found = []
    for file in weight_files(folder):
        with safe_open(file, framework="numpy") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (not a dict)
                header = tensors.get_slice(name)
                if not name.endswith(IGNORED):
                    found.append(StoredTensor(name, header.get_dtype(), tuple(header.get_shape())))
    return found


def main_kind(tensors: Iterable[StoredTensor]) -> str:
    """Return the type of most numbers; F32 if there are none."""
    counts: Counter[str] = Counter()
    for tensor in tensors:
        counts[tensor.kind] += tensor.count
    return max(counts, key=lambda kind: counts[kind]) if counts else "F32"
