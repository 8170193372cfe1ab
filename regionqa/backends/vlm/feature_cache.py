"""Encoded images on disk, so that another run over the same images skips the vision encoder.

An entry's name is a digest of everything that its features depend on: the encoder's inputs, which
follow from the image, the part of it that is shown and the pixel budget; the weights; the card; and
where and in which type the encoder runs. Entries are written whole and hold a digest of their
content. Several runs may use one folder at the same time.
"""

import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from regionqa.backends.vlm.features import VisionTower, only_features
from regionqa.errors import OutputError, UsageError
from regionqa.files import write_whole

SUFFIX = ".safetensors"
PART = ".regionqa-*"
"""Files that are being written, and those that a killed run left."""
STALE = 3600
"""Age in seconds from which a file that is being written belongs to a run that was killed."""


class FeatureCache:
    """A folder of encoded images, bounded in size."""

    def __init__(self, folder: Path, limit: int) -> None:
        """Open or make the folder.

        Args:
            folder: The folder. Only its entries are read, written and removed.
            limit: Largest sum of the entries' sizes in bytes.

        Raises:
            UsageError: It cannot be used as a folder.
        """
        self.folder, self.limit = folder, limit
        self._read = self._written = self._removed = 0
        self._remarks: list[str] = []
        self._closed = False
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._size = sum(size for _, size, _ in self._entries())
            for part in folder.glob(PART):
                if time.time() - part.stat().st_mtime > STALE:
                    part.unlink(missing_ok=True)
        except OSError as error:
            reason = error.strerror or error
            raise UsageError(
                f"--cache {folder}: cannot be used as a folder: {reason}; name another"
            ) from error

    def find(self, key: str) -> Any | None:
        """Return the features of an entry; None if there is none or it is damaged."""
        path = self._path(key)
        try:
            content = path.read_bytes()
        except OSError:
            return None
        try:
            features = unpack(content)
        except (ValueError, KeyError, SafetensorError) as error:
            self._remarks.append(f"{path}: {error}; the image was encoded again")
            return None
        self._read += 1
        with suppress(OSError):  # removed meanwhile, or a folder that cannot be written
            os.utime(path)  # the time of its last use
        return features

    def store(self, key: str, features: Any) -> None:
        """Write an entry, and remove the least recently used ones above the limit."""
        self._written += 1
        content = pack(features)
        if self._closed:
            return
        if len(content) > self.limit:
            self._closed = True
            self._remarks.append(
                f"--cache {self.folder}: an encoded image takes {len(content) / 1e9:.3f} GB, more "
                "than --cache-size; images of this size are not kept"
            )
            return
        try:
            with write_whole(self._path(key)) as file:
                file.write(content)
        except OutputError as error:
            if self._path(key).exists() or "another run" in str(error):
                return  # another run encodes the same image
            self._closed = True
            self._remarks.append(f"--cache {self.folder}: {error}; nothing more is kept")
            return
        self._size += len(content)
        if self._size > self.limit:
            self._shrink()

    def take_notes(self) -> list[str]:
        """Return what was read, written, damaged and removed since the last call, as lines."""
        lines, self._remarks = self._remarks, []
        if self._read or self._written:
            line = (
                f"{self.folder}: encoded images: {self._read} from the cache, {self._written} new"
            )
            if self._removed:
                line += f"; {self._removed} older ones were removed, see --cache-size"
            lines.append(line)
        self._read = self._written = self._removed = 0
        return lines

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}{SUFFIX}"

    def _entries(self) -> list[tuple[int, int, Path]]:
        """Time of the last use, size and path of every entry, the oldest first."""
        found = []
        with os.scandir(self.folder) as files:
            for file in files:
                if len(file.name) == 64 + len(SUFFIX) and file.name.endswith(SUFFIX):
                    try:
                        status = file.stat()
                    except FileNotFoundError:  # removed by another run
                        continue
                    found.append((status.st_mtime_ns, status.st_size, Path(file.path)))
        return sorted(found)

    def _shrink(self) -> None:
        """Remove the entries that were not used for longest."""
        entries = self._entries()
        self._size = sum(size for _, size, _ in entries)
        for _, size, path in entries:
            if self._size <= self.limit:
                break
            path.unlink(missing_ok=True)
            self._size -= size
            self._removed += 1


class CachedTower:
    """A vision encoder whose features are looked up first."""

    def __init__(
        self,
        tower: VisionTower,
        cache: FeatureCache,
        identity: Sequence[str],
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        """Combine an encoder and a cache.

        Args:
            tower: The encoder.
            cache: The cache.
            identity: What identifies the weights, and versions that change their features.
            device: Where features are needed.
            dtype: Their type.
        """
        self.tower, self.cache = tower, cache
        self._device, self._dtype = device, dtype
        self._identity = "\n".join([*identity, tower.runtime, str(dtype)])

    @property
    def runtime(self) -> str:
        """Where the encoder runs."""
        return self.tower.runtime

    def encode(self, inputs: Mapping[str, Tensor]) -> Any:
        """See `VisionTower.encode`."""
        key = inputs_key(self._identity, inputs)
        features = self.cache.find(key)
        if features is None:
            features = self.tower.encode(inputs)
            self.cache.store(key, features)
            return features
        return only_features(features, self._device, self._dtype)


def inputs_key(identity: str, inputs: Mapping[str, Any]) -> str:
    """Return the name of an entry: 64 hex digits."""
    digest = hashlib.sha256(identity.encode())
    for name in sorted(inputs):
        value = inputs[name]
        if isinstance(value, Tensor):
            digest.update(f"\n{name} {value.dtype} {list(value.shape)} ".encode())
            digest.update(value.contiguous().cpu().reshape(-1).view(torch.uint8).numpy().data)
        else:
            digest.update(f"\n{name} {value!r}".encode())
    return digest.hexdigest()


def pack(features: Any) -> bytes:
    """Return features as a safetensors file, with a digest of the tensors."""
    tensors = {path: tensor.cpu().clone() for path, tensor in leaves(features)}
    return bytes(safetensors.torch.save(tensors, {"digest": tensors_digest(tensors)}))


def unpack(content: bytes) -> Any:
    """Return the features in a file of `pack`.

    Raises:
        ValueError: The content is damaged.
    """
    from transformers.modeling_outputs import BaseModelOutputWithPooling

    tensors = safetensors.torch.load(content)
    length = int.from_bytes(content[:8], "little")
    stated = json.loads(content[8 : 8 + length]).get("__metadata__", {}).get("digest")
    if stated != tensors_digest(tensors) or not tensors:
        raise ValueError("is damaged")
    features = BaseModelOutputWithPooling()
    for name, value in nested(tensors).items():
        features[name] = value
    return features


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of features, each with its path, such as `deepstack_features.0.0`."""
    if isinstance(value, Tensor):
        yield path, value
        return
    parts = value.items() if isinstance(value, Mapping) else enumerate(value)
    for name, part in parts:
        yield from leaves(part, f"{path}.{name}" if path else str(name))


def nested(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return what `leaves` was given, with lists for sequences."""
    groups: dict[str, dict[str, Tensor]] = {}
    for path, tensor in tensors.items():
        name, _, rest = path.partition(".")
        groups.setdefault(name, {})[rest] = tensor
    found: dict[str, Any] = {}
    for name, group in groups.items():
        if "" in group:
            found[name] = group[""]
        else:
            parts = nested(group)
            found[name] = [parts[number] for number in sorted(parts, key=int)]
    return found


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """Return a digest of names, types, shapes and values."""
    return inputs_key("", tensors)
