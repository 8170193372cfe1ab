"""Read and write sharded checkpoints one tensor at a time.

Shards are memory-mapped and released, and safetensors are written tensor by tensor after the
header, so a checkpoint of 13 GB is converted on a machine with 4 GB. Invalid checkpoints are
BundleErrors.
"""

import codecs
import hashlib
import json
import os
import pickle
import re
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from regionqa.bundles.weights import read_index
from regionqa.errors import BundleError, message_of

SINGLE = ("model.safetensors", "pytorch_model.bin")
"""Names of weights in one file, in order of preference; shards have an `.index.json`."""
DTYPES: Mapping[torch.dtype, str] = {
    torch.float16: "F16", torch.bfloat16: "BF16", torch.float32: "F32", torch.float64: "F64",
    torch.int64: "I64", torch.int32: "I32", torch.uint8: "U8",
}  # fmt: skip
"""safetensors' names of types."""
Shape = tuple[int, ...]


@dataclass(frozen=True)
class TensorEntry:
    """Shape and type of a tensor."""

    shape: Shape
    dtype: torch.dtype

    @property
    def size(self) -> int:
        """Bytes."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


class Shards:
    """The weights in a checkpoint's folder. Tensors are views of mapped files until `release`."""

    def __init__(self, folder: Path) -> None:
        """Find the files and read their headers, not their weights. Raises BundleError."""
        self.folder = folder
        self.files, listed = find_shards(folder)
        self.entries: dict[str, TensorEntry] = {}
        """Shape and type of every tensor, in the files' order."""
        self._places: dict[str, Path] = {}
        self._open: dict[Path, Any] = {}
        for path in self.files:
            self._read_entries(path)
            self.release()
        for name, path in listed.items():
            if self._places.get(name) != path:
                raise BundleError(
                    f"{path}: holds no {name}, which its index lists; get the checkpoint again"
                )

    def tensor(self, name: str) -> Tensor:
        """Return a tensor in the file's type."""
        path = self._places[name]
        held = self._opened(path)
        found: Tensor = held[name] if isinstance(held, dict) else held.get_tensor(name)
        return found

    def release(self) -> None:
        """Close the files, which frees the memory of their pages."""
        self._open.clear()

    def _read_entries(self, path: Path) -> None:
        held = self._opened(path)
        if isinstance(held, dict):
            found = {name: TensorEntry(tuple(t.shape), t.dtype) for name, t in held.items()}
        else:
            types = {name: dtype for dtype, name in DTYPES.items()}
            found = {}
            for name in held.keys():  # noqa: SIM118 (not a dict)
                piece = held.get_slice(name)
                if piece.get_dtype() not in types:
                    raise BundleError(f"{path}: {name} is of type {piece.get_dtype()}, not a float")
                found[name] = TensorEntry(tuple(piece.get_shape()), types[piece.get_dtype()])
        self.entries |= found
        self._places |= dict.fromkeys(found, path)

    def _opened(self, path: Path) -> Any:
        """Return the mapped file, opened if necessary; see `open_file`."""
        if path not in self._open:
            self._open[path] = open_file(path)
        return self._open[path]


def find_shards(folder: Path) -> tuple[list[Path], dict[str, Path]]:
    """Find the weights files of a folder, and the file of every tensor if there is an index."""
    for single in SINGLE:
        index = folder / f"{single}.index.json"
        if not index.is_file():
            if (folder / single).is_file():
                return [folder / single], {}
            continue
        listed = read_index(index)
        for name in sorted(set(listed.values())):
            if not (folder / name).is_file():
                raise BundleError(
                    f"{folder}: the shard {name} is missing, which {index.name} lists; get the "
                    "checkpoint again"
                )
        files = [folder / name for name in dict.fromkeys(listed.values())]
        return files, {name: folder / file for name, file in listed.items()}
    raise BundleError(
        f"{folder}: has no weights in transformers' format: neither {' nor '.join(SINGLE)}, "
        "nor an index of several"
    )


def open_file(path: Path) -> Any:
    """Map a weights file: a dictionary of tensors (.bin) or a safetensors file."""
    try:
        if path.suffix == ".safetensors":
            return safe_open(path, framework="pt")
        held = load_pickle(path, mmap=True)
    except BundleError:  # of an object that would have to be run
        raise
    except Exception as error:  # torch raises nearly every kind on damaged data
        why = message_of(error)[:160]
        if "mmap can only be used" in why:
            why = "it is in torch's form of before 1.6, which cannot be read piece by piece"
        raise BundleError(f"{path}: cannot be read, is it cut short? ({why})") from error
    if not isinstance(held, dict):
        raise BundleError(f"{path}: holds a {type(held).__name__}, not names and tensors")
    for name, value in held.items():
        if not isinstance(value, Tensor):
            raise BundleError(
                f"{path}: {name} is a {type(value).__name__}, not a tensor; is this a training "
                "checkpoint in place of a model's weights?"
            )
    return held


def load_pickle(path: Path, *, mmap: bool = False) -> Any:
    """Read a file that `torch.save` wrote, without running code from it.

    Besides tensors and Python's plain types, it may hold scalars and arrays of NumPy, as training
    frameworks save them.

    Raises:
        BundleError: It holds other objects, whose code would have to be run.
        Exception: Of nearly any kind: it is damaged.
    """
    try:
        with torch.serialization.safe_globals(numpy_globals()):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL ([\w.]+)|but got <class '([\w.]+)'>", str(error))
        if not found:
            raise
        raise BundleError(
            f"{path}: holds a Python object ({found[1] or found[2]}), whose code would have to be "
            "run to read it; save only names and tensors, best as safetensors"
        ) from error


def numpy_globals() -> list[Any]:
    """What a pickle of NumPy's scalars and arrays names, by the names of NumPy 1 and 2."""
    builders: list[Any] = [np.float64(0).__reduce__()[0], np.zeros(1).__reduce__()[0]]
    named: list[Any] = [
        (function, f"numpy.{package}.multiarray.{function.__name__}")
        for function in builders
        for package in ("core", "_core")
    ]
    kinds = {type(np.dtype(letter)) for letter in "?bBhHiIlLqQefdgSU"}
    return [*named, np.ndarray, np.dtype, *kinds, codecs.encode]


def write_safetensors(
    path: Path, entries: Mapping[str, TensorEntry], tensors: Iterable[tuple[str, Tensor]]
) -> str:
    """Write a safetensors file one tensor at a time; the file appears whole or not at all.

    Args:
        path: The file.
        entries: Shapes and types by name.
        tensors: Names and tensors in the order of `entries`.

    Returns:
        The file's sha256.

    Raises:
        OSError: The file cannot be written.
    """
    table: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, entry in entries.items():
        offsets = [end, end + entry.size]
        table[name] = {"dtype": DTYPES[entry.dtype], "shape": entry.shape, "data_offsets": offsets}
        end += entry.size
    head = json.dumps(table, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    part = path.with_name(f"{path.name}.part")
    digest = hashlib.sha256()
    with part.open("wb") as file:
        for chunk in (struct.pack("<Q", len(head)), head):
            digest.update(chunk)
            file.write(chunk)
        for (name, entry), (given, tensor) in zip(entries.items(), tensors, strict=True):
            if (given, tuple(tensor.shape), tensor.dtype) != (name, entry.shape, entry.dtype):
                raise ValueError(
                    f"{given} {tuple(tensor.shape)} was given, expected {name} {entry}"
                )
            data = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data
            digest.update(data)
            file.write(data)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
    return digest.hexdigest()


def join(paths: Iterable[Path], out: Path) -> None:
    """Merge safetensors files into one, and remove them."""
    held = {path: open_file(path) for path in paths}
    places = {name: file for file in held.values() for name in file.keys()}  # noqa: SIM118
    types = {name: dtype for dtype, name in DTYPES.items()}
    entries = {
        name: TensorEntry(
            tuple(file.get_slice(name).get_shape()), types[file.get_slice(name).get_dtype()]
        )
        for name, file in places.items()
    }
    write_safetensors(out, entries, ((name, places[name].get_tensor(name)) for name in entries))
    for path in held:
        path.unlink()
