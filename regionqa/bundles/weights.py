"""What a folder of safetensors holds, by its headers: names, types and sizes, no weights.

It knows the files' format and transformers' names for them. It does not know any architecture.
"""

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from pathlib import Path

from safetensors import safe_open

INDEX = "model.safetensors.index.json"
BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "U8": 1, "I8": 1, "BOOL": 1}
"""Width of a number by safetensors' name of its type."""
IGNORED = "rotary_emb.inv_freq"
"""End of the names of buffers that old files hold, and that every runtime computes anew."""


@dataclass(frozen=True)
class StoredTensor:
    """One tensor as a file's header describes it."""

    name: str
    kind: str
    """safetensors' name of the type: F32, F16, BF16."""
    shape: tuple[int, ...]

    @property
    def count(self) -> int:
        """How many numbers it has."""
        return prod(self.shape)

    @property
    def size(self) -> int:
        """Bytes it takes in its file."""
        return self.count * BYTES.get(self.kind, 4)


def weight_files(folder: Path) -> list[Path]:
    """The files transformers would read; FileNotFoundError where there are none.

    Some checkpoints hold their weights in another layout too, under other names.
    """
    whole, index = folder / "model.safetensors", folder / INDEX
    if whole.is_file():
        return [whole]
    if index.is_file():
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        return sorted(folder / name for name in names)
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise FileNotFoundError(f"no .safetensors in {folder}")
    return files


def stored(folder: Path) -> list[StoredTensor]:
    """All tensors of a model's folder. Raises OSError, KeyError or SafetensorError."""
    found = []
    for file in weight_files(folder):
        with safe_open(file, framework="numpy") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (not a dict)
                header = tensors.get_slice(name)
                if not name.endswith(IGNORED):
                    found.append(StoredTensor(name, header.get_dtype(), tuple(header.get_shape())))
    return found


def main_kind(tensors: Iterable[StoredTensor]) -> str:
    """The type that most numbers have; F32 where there are none."""
    counts: Counter[str] = Counter()
    for tensor in tensors:
        counts[tensor.kind] += tensor.count
    return max(counts, key=lambda kind: counts[kind]) if counts else "F32"
