"""Checkpoints, and the saved settings that a resumed run is compared with.

A checkpoint is torch's distributed checkpoint, the same for one process or many, sharded or not. It
holds the weights that training has changed, the optimizers, and the progress. It is written to a
temporary name and renamed when it is complete.
"""

import errno
import json
import shutil
import tomllib
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import tomli_w
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.checkpoint.state_dict_loader import load as load_states
from torch.distributed.checkpoint.state_dict_saver import save as save_states

from regionqa.backends.vlm.backend import VlmModel
from regionqa.bundles.store import Bundle
from regionqa.errors import TrainingError, UsageError, message_of
from regionqa.files import write_whole
from regionqa.finetune.batches.dataset import RunData, Say
from regionqa.finetune.config import SETTINGS, FinetuneSettings
from regionqa.finetune.settings_files import read_saved, saved_settings
from regionqa.schema import without_none

PROGRESS = "progress.json"
RECORDS = "records.json"
"""Digests of the records that a run trains on, beside its settings."""
KEPT = 2
"""Checkpoints that are kept, so that there is another where the newest cannot be read."""


@dataclass(frozen=True)
class BestStep:
    """The step of a stage with the lowest held-out loss so far."""

    step: int
    loss: float


@dataclass(frozen=True)
class TrainingProgress:
    """The progress of a run at a checkpoint."""

    stage: str
    """Name of the stage."""
    step: int
    """Finished steps of that stage."""
    trained: tuple[str, ...]
    """Names of all weights that training has changed."""
    seconds: float
    """Training time, over all stages and resumptions."""
    best: BestStep | None = None
    """The best step of a planned stage. Its checkpoint is kept as long as the stage trains."""


def newest(folder: Path) -> tuple[Path, TrainingProgress] | None:
    """Find the newest complete checkpoint of a run; None where there is none yet."""
    for path in sorted(folder.glob("*-*"), key=_age, reverse=True):
        if path.suffix != ".partial" and (path / PROGRESS).is_file():
            return path, read_progress(path)
    return None


def read_progress(path: Path) -> TrainingProgress:
    """Read the progress at a checkpoint."""
    table = json.loads((path / PROGRESS).read_text(encoding="utf-8"))
    best = BestStep(**table["best"]) if table.get("best") else None
    return TrainingProgress(**{**table, "trained": tuple(table["trained"]), "best": best})


def path_of(folder: Path, number: int, step: int) -> Path:
    """Return the path of a checkpoint of stage `number`, counted from 1."""
    return folder / f"{number}-{step:06d}"


def _age(path: Path) -> tuple[int, int]:
    """Parse stage and step from a checkpoint's name, such as `2-000400`."""
    stage, _, step = path.stem.partition("-")
    return (int(stage), int(step)) if stage.isdigit() and step.isdigit() else (-1, -1)


def save_checkpoint(
    folder: Path,
    number: int,
    progress: TrainingProgress,
    model: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
) -> Path:
    """Write a checkpoint and remove all but the newest; a collective call.

    number: of the stage, from 1.

    Raises:
        TrainingError: It cannot be written, as where the disk is full; the older ones are kept.
    """
    target = path_of(folder, number, progress.step)
    partial = target.with_name(f"{target.name}.partial")
    first = not dist.is_initialized() or dist.get_rank() == 0
    problem: OSError | None = None
    try:
        if first:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
        _barrier()
        with _without_single_process_warning():
            save_states(_states(model, optimizers, progress), checkpoint_id=str(partial))
        torch.save(_random_states(), partial / f"random-{_rank()}.pt")
        _barrier()
        if first:
            (partial / PROGRESS).write_text(json.dumps(asdict(progress)), encoding="utf-8")
            shutil.rmtree(target, ignore_errors=True)
            partial.rename(target)
            _drop_old(folder)
    except OSError as error:
        problem = error
    except (RuntimeError, CheckpointException) as error:
        problem = _os_error(error)
    if problem:
        shutil.rmtree(partial, ignore_errors=True)
        last = newest(folder)
        kept = f"the checkpoint {last[0]} is kept" if last else "there is no checkpoint yet"
        raise TrainingError(
            f"{target}: cannot be written: {problem.strerror or problem}; {kept}; "
            "make room and continue with --resume"
        ) from problem
    return target


def load_checkpoint(
    path: Path,
    progress: TrainingProgress,
    model: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
) -> None:
    """Restore a checkpoint's state in place; a collective call."""
    states = _states(model, optimizers, progress)
    with _without_single_process_warning():
        load_states(states, checkpoint_id=str(path))
    options = StateDictOptions(strict=False)
    set_model_state_dict(model, states["model"], options=options)
    set_optimizer_state_dict(model, optimizers, states["optimizer"])
    random = path / f"random-{_rank()}.pt"
    if random.is_file():
        for kind, state in torch.load(random, weights_only=True).items():
            (torch.cuda if kind == "cuda" else torch).set_rng_state(state)


def load_weights(path: Path, trained: Sequence[str], model: nn.Module) -> None:
    """Restore the weights of a checkpoint in place, without its optimizers; a collective call."""
    states = {"model": _trained(model, trained)}
    with _without_single_process_warning():
        load_states(states, checkpoint_id=str(path))
    set_model_state_dict(model, states["model"], options=StateDictOptions(strict=False))


def _random_states() -> dict[str, torch.Tensor]:
    """Random states of the CPU and of this process's GPU, from which dropout draws."""
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


@contextmanager
def _without_single_process_warning() -> Iterator[None]:
    """Silence torch's warning that it saves for a single process."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield


def _states(
    model: nn.Module, optimizers: Sequence[torch.optim.Optimizer], progress: TrainingProgress
) -> dict[str, Any]:
    return {
        "model": _trained(model, progress.trained),
        "optimizer": get_optimizer_state_dict(model, optimizers),
    }


def _trained(model: nn.Module, names: Sequence[str]) -> dict[str, Any]:
    """Return the weights that training has changed, not copied."""
    weights: Mapping[str, Any] = get_model_state_dict(model)
    return {name: weights[name] for name in names}


def _os_error(error: BaseException) -> OSError:
    """Find the OSError that torch wrapped, or make one of torch's message where it is lost."""
    inner: BaseException | None = error
    if isinstance(error, CheckpointException):
        inner = next(iter(error.failures.values()))[0]
    while inner and not isinstance(inner, OSError):
        inner = inner.__cause__ or inner.__context__
    if isinstance(inner, OSError):
        return inner
    return OSError(errno.EIO, message_of(error)[-200:])


def _drop_old(folder: Path) -> None:
    """Remove all checkpoints but the newest, and the best of those that these know of."""
    whole = sorted((p for p in folder.glob("*-*") if p.suffix != ".partial"), key=_age)
    best = set()
    for path in whole[-KEPT:]:
        if (path / PROGRESS).is_file() and (found := read_progress(path).best):
            best.add(path_of(folder, _age(path)[0], found.step))
    for path in whole[:-KEPT]:
        if path not in best:
            remove(path)


def remove(folder: Path) -> None:
    """Remove a folder of checkpoints, or one of them, so that an interruption leaves no half."""
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    if folder.exists():
        folder.rename(partial)
    shutil.rmtree(partial, ignore_errors=True)


def _rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def _barrier() -> None:
    if dist.is_initialized():
        dist.barrier()


def base_identity(base: Bundle | VlmModel) -> dict[str, str]:
    """Name the base of a run, and its weights."""
    revision = base.revision if isinstance(base, VlmModel) else base.card.revision
    return {"name": base.card.name, "revision": revision}


def save_settings(
    folder: Path,
    settings: FinetuneSettings,
    base: Bundle | VlmModel,
    data: RunData,
    say: Say,
    *,
    resume: bool,
) -> None:
    """Save the settings of a new run, or compare them with those of the resumed one.

    Records that were bad when the run began may have been repaired since, and others removed; this
    is said, and the run goes on with those there are.

    Args:
        folder: The run's `training`.
        settings: Its settings.
        base: Its base.
        data: Its data.
        say: Called with a line about changed data.
        resume: Whether the run goes on.

    Raises:
        UsageError: A resumed run has other settings, base or data.
        TrainingError: The settings cannot be written.
    """
    path = folder / SETTINGS
    table: dict[str, Any] = {
        "settings": asdict(settings),
        "base": base_identity(base),
        "files": [dict(file) for file in data.files],
    }
    table = as_saved(table)
    if resume and path.is_file():
        # settings that are newer than the run have their defaults
        before = {**read_saved(path), **as_saved({"settings": asdict(saved_settings(path))})}
        changes = data_changes(folder, before, data)
        known = {"files": table["files"]} if changes is not None else {}
        table |= {"plan": before["plan"]} if "plan" in before else {}
        skip = {"skip_bad": settings.skip_bad}  # may be added to leave out what stopped the run
        difference = first_difference(
            {**before, **known, "settings": {**before["settings"], **skip}}, table
        )
        if difference:
            raise UsageError(
                f"{path}: the resumed run differs: {difference}; leave the option out, or start a "
                "new run in another folder"
            )
        for change in changes or ():
            say(change)
        if before == table:
            return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with write_whole(folder / RECORDS) as file:
            file.write(json.dumps(dict(data.digests)).encode())
        with write_whole(path) as file:
            file.write(tomli_w.dumps(table).encode())
    except OSError as error:
        raise TrainingError(f"{path}: cannot be written: {error.strerror}") from error


def as_saved(table: Mapping[str, Any]) -> dict[str, Any]:
    """Return what reading a table gives that was written to TOML."""
    return tomllib.loads(tomli_w.dumps(without_none(table)))


def data_changes(folder: Path, before: Mapping[str, Any], data: RunData) -> list[str] | None:
    """Describe how the usable records of a resumed run have changed.

    Returns:
        A line for each file with records removed, or bad ones repaired; None if other records have
        taken their place, or if it is not known.
    """
    path = folder / RECORDS
    if not path.is_file():
        return None
    saved = json.loads(path.read_text(encoding="utf-8"))
    left_out = {f"{file['use']}: {file['file']}": file["left_out"] for file in before["files"]}
    if saved.keys() != data.digests.keys():
        return None
    lines = []
    for name, digests in data.digests.items():
        old, new = Counter(saved[name]), Counter(digests)
        removed, added = (old - new).total(), (new - old).total()
        if added and (removed or added > left_out.get(name, 0)):
            return None
        if removed or added:
            what = f"{removed:,} removed" if removed else f"{added:,} repaired"
            lines.append(f"{name}: {what} since the run began; it goes on with what there is")
    return lines


def first_difference(before: Mapping[str, Any], now: Mapping[str, Any], where: str = "") -> str:
    """Describe the first key whose values differ, with both; empty where none does."""
    for key in dict.fromkeys((*before, *now)):
        old, new, name = before.get(key), now.get(key), f"{where}{key}"
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            found = first_difference(old, new, f"{name}.")
            if found:
                return found
        elif old != new:
            return f"{name} was {old!r} and is {new!r}"
    return ""
