"""Add a published delta to its base model, tensor by tensor, and write safetensors shards.

An interrupted run continues with the shard it was writing. docs/adr/16-delta-conversion.md
describes how a wrong base is detected.
"""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from regionqa.bundles.hub import readable
from regionqa.bundles.store import file_spec
from regionqa.errors import BundleError
from regionqa.export.sources.shards import Shards, TensorEntry, write_safetensors

RECOMPUTED = ("rotary_emb.inv_freq",)
"""Suffixes of buffers that old transformers versions stored and that are recomputed."""
LONGER = ("model.embed_tokens.weight", "lm_head.weight")
"""Weights that may have more rows than the base's: those of added tokens, which are no sums."""
SHARD_BYTES = 500_000_000
"""Size limit of a shard in bytes, unless one tensor is larger; also the loss by interruption."""
RELEASE = 10_000_000
"""Size in bytes of a tensor after which the files are released, to free their pages."""
JOURNAL = "conversion.json"
PROBES, PROBE_ROWS = 8, 256
"""Numbers of matrices, and of rows of each, in the check of the base."""
LARGE, CANCELS = 0.5, -0.1
"""Relative size from which a delta is large, and the largest cosine that it may then have with the
base; see `check_base`."""
Progress = Callable[[int, int], None]
"""Called with the bytes done and in all."""


@dataclass(frozen=True)
class MergePlan:
    """The destination of every tensor of a delta."""

    language: Mapping[str, TensorEntry]
    """Shapes and types of the sums by transformers' names, which are the published ones."""
    parts: Mapping[str, str]
    """Encoder weights: published names and names in the torch encoders."""

    @property
    def size(self) -> int:
        """Bytes of the language model's weights."""
        return sum(entry.size for entry in self.language.values())

    def shards(self, limit: int | None = None) -> list[dict[str, TensorEntry]]:
        """Group the tensors into shards of at most `limit` bytes."""
        groups: list[dict[str, TensorEntry]] = []
        filled = 0
        for name, entry in self.language.items():
            if not groups or filled + entry.size > (limit or SHARD_BYTES):
                groups.append({})
                filled = 0
            groups[-1][name] = entry
            filled += entry.size
        return groups


def make_plan(
    delta: Shards, base: Shards, parts: Mapping[str, str], dtype: torch.dtype | None
) -> MergePlan:
    """Assign every tensor of both checkpoints.

    Args:
        delta: The differences.
        base: The model they were taken from.
        parts: Published prefixes of encoder weights, which are not differences, and their prefixes
            in the torch encoders.
        dtype: Type of the sums; None: the delta's.

    Raises:
        BundleError: A tensor is unknown, missing, or does not have the base's shape.
    """
    language: dict[str, TensorEntry] = {}
    found: dict[str, str] = {}
    for name, entry in delta.entries.items():
        prefix = next((prefix for prefix in parts if name.startswith(prefix)), None)
        if name.endswith(RECOMPUTED):
            continue
        if name in base.entries:
            check_sizes(name, entry.shape, base.entries[name].shape, base.folder)
            language[name] = TensorEntry(entry.shape, dtype or entry.dtype)
        elif prefix is not None:
            found[name] = parts[prefix] + name.removeprefix(prefix)
        else:
            raise BundleError(
                f"{delta.folder}: {name} is unknown: neither the base {base.folder} has it, nor "
                f"is it one of {', '.join(f'{each}*' for each in parts)}"
            )
    lost = [n for n in base.entries if n not in language and not n.endswith(RECOMPUTED)]
    if lost:
        raise BundleError(
            f"{delta.folder}: {lost[0]} is missing, which the base {base.folder} has; is this "
            "the right base?"
        )
    for prefix in parts:
        if not any(name.startswith(prefix) for name in found):
            raise BundleError(f"{delta.folder}: {prefix}* is missing; get the checkpoint again")
    return MergePlan(language, found)


def check_sizes(name: str, delta: tuple[int, ...], base: tuple[int, ...], folder: Path) -> None:
    """BundleError if the base's shape is not that of the delta, or of its first rows."""
    more_rows = name in LONGER and delta[1:] == base[1:] and delta[0] > base[0]
    if delta != base and not more_rows:
        raise BundleError(
            f"{folder}: {name} is {list(base)}, the delta has {list(delta)}; is this the right "
            "base?"
        )


def add(delta: Tensor, base: Tensor) -> Tensor:
    """Add in the wider of both types; rows that the base does not have are the delta's."""
    if delta.shape == base.shape:
        return delta + base
    total = delta.to(torch.promote_types(delta.dtype, base.dtype), copy=True)
    total[: len(base)] += base
    return total


def check_base(delta: Shards, base: Shards, plan: MergePlan) -> None:
    """BundleError if the delta was apparently not taken from this base.

    A delta is the model minus the base. It is small if the model was trained from the base, and if
    it is large, it contains the negated base, so their cosine is negative. A large delta of another
    direction was taken from another model, and one of the base's direction holds whole weights.
    """
    names = [name for name, entry in plan.language.items() if len(entry.shape) == 2]
    step = max(1, len(names) // PROBES)
    square = {"delta": 0.0, "base": 0.0, "both": 0.0}
    for name in names[::step]:
        # scaled by the base's magnitude, so that no matrix dominates
        rows = min(PROBE_ROWS, base.entries[name].shape[0])
        ours, difference = base.tensor(name)[:rows].float(), delta.tensor(name)[:rows].float()
        scale = float(ours.square().mean().sqrt()) or 1.0
        square["delta"] += float((difference / scale).square().sum())
        square["base"] += float((ours / scale).square().sum())
        square["both"] += float((difference / scale * (ours / scale)).sum())
    base.release()
    delta.release()
    if not square["delta"] or not square["base"]:
        return
    size = (square["delta"] / square["base"]) ** 0.5
    along = square["both"] / (square["delta"] * square["base"]) ** 0.5
    if size > LARGE and along > CANCELS:
        what = "holds whole weights, no differences" if along > LARGE else "was not taken from it"
        raise BundleError(
            f"{base.folder}: is the wrong base: the sums do not fit; {delta.folder} {what} "
            f"(its size is {size:.2f} of the base's, their cosine {along:+.2f}); give another "
            "--base, or --any-base to add them all the same"
        )


@dataclass
class ConversionLog:
    """The finished shards of a conversion and its inputs, as a file."""

    path: Path
    inputs: str
    finished: dict[str, str] = field(default_factory=dict)
    """Name and sha256 of every finished shard."""

    @classmethod
    def open(cls, path: Path, inputs: str) -> "ConversionLog":
        """Read the log of an earlier run; empty if there is none, or it had other inputs."""
        try:
            table = json.loads(path.read_text(encoding="utf-8"))
            same = table["inputs"] == inputs
            return cls(path, inputs, dict(table["finished"]) if same else {})
        except (OSError, ValueError, KeyError, TypeError):
            return cls(path, inputs)

    def is_whole(self, shard: Path) -> bool:
        """Return whether a shard was finished and is unchanged; reads its content."""
        return (
            shard.name in self.finished
            and shard.is_file()
            and file_spec(shard.parent, shard).sha256 == self.finished[shard.name]
        )

    def add(self, shard: Path, sha256: str) -> None:
        """Add a finished shard; an interruption leaves the old log or the new one."""
        self.finished[shard.name] = sha256
        part = self.path.with_name(f"{self.path.name}.part")
        table = {"inputs": self.inputs, "finished": self.finished}
        part.write_text(json.dumps(table, indent=1), encoding="utf-8")
        part.replace(self.path)


def fingerprint(*checkpoints: Shards, dtype: torch.dtype | None) -> str:
    """Return an identifier of a run's inputs: files with sizes and times, and the type."""
    files = []
    for checkpoint in checkpoints:
        for path in checkpoint.files:
            real = path.resolve()  # in the Hub's cache the name is the digest
            status = real.stat()
            files.append([str(real), status.st_size, status.st_mtime_ns])
    return json.dumps([files, str(dtype)])


def stream(
    delta: Shards,
    base: Shards,
    plan: MergePlan,
    folder: Path,
    journal: ConversionLog,
    progress: Progress,
) -> None:
    """Write the sums to `folder` as shards with an index; finished shards are kept.

    Raises:
        BundleError: A sum is not finite, or the disk is too small.
    """
    folder.mkdir(parents=True, exist_ok=True)
    groups = plan.shards()
    names = [f"model-{n:05}-of-{len(groups):05}.safetensors" for n in range(1, len(groups) + 1)]
    for path in folder.glob("model-*"):
        if path.name not in names or not journal.is_whole(path):
            path.unlink()
    remaining = sum(sum(entry.size for entry in group.values()) for name, group in
                  zip(names, groups, strict=True) if not (folder / name).exists())  # fmt: skip
    check_disk(folder, remaining)
    done = plan.size - remaining
    progress(done, plan.size)
    for name, group in zip(names, groups, strict=True):
        if (folder / name).exists():
            continue

        def sums(
            group: dict[str, TensorEntry] = group, before: int = done
        ) -> Iterator[tuple[str, Tensor]]:
            for key, entry in group.items():
                yield key, one_sum(delta, base, key, entry)
                before += entry.size
                progress(before, plan.size)

        try:
            digest = write_safetensors(folder / name, group, sums())
        except OSError as error:
            raise BundleError(f"{folder / name}: cannot be written: {error}; run again") from error
        journal.add(folder / name, digest)
        delta.release()
        base.release()
        done += sum(entry.size for entry in group.values())
    places = {key: name for name, group in zip(names, groups, strict=True) for key in group}
    index = {"metadata": {"total_size": plan.size}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(
        json.dumps(index, indent=1), encoding="utf-8"
    )
    written = Shards(folder).entries
    if written != plan.language:
        raise BundleError(f"{folder}: what was written is not what was planned; run again")


def one_sum(delta: Shards, base: Shards, name: str, entry: TensorEntry) -> Tensor:
    """Return one tensor of the language model in its type; BundleError if it is not finite."""
    total = add(delta.tensor(name), base.tensor(name))
    if not torch.isfinite(total).all():
        raise BundleError(
            f"{base.folder}: is the wrong base, or damaged: {name} added to {delta.folder} is not "
            "finite"
        )
    return total.to(entry.dtype)


def check_disk(folder: Path, needed: int) -> None:
    """BundleError if the disk has less free space than needed."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise BundleError(
            f"{folder}: the disk is too small: {readable(needed)} are needed, {readable(free)} are "
            "free; free some, or use --out with a folder on a larger disk"
        )


def read_encoder_weights(delta: Shards, plan: MergePlan, prefix: str) -> dict[str, Tensor]:
    """Read the delta's weights of one torch encoder by its names, as float32 in memory."""
    found: dict[str, Tensor] = {}
    for name, own in plan.parts.items():
        if own.startswith(prefix):
            found[own.removeprefix(prefix)] = delta.tensor(name).to(torch.float32, copy=True)
            if delta.entries[name].size > RELEASE:
                delta.release()
    delta.release()
    return found
