"""The stages on Ray Data: parts are read by tasks on CPUs and answered by actors.

The only module that imports Ray. Ray Data bounds what waits between the stages, runs a task again
whose worker or node is lost, and starts an actor again that has died.
"""

import logging
import math
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from regionqa.batch.answering import AnsweredRequests, AnswerSettings, PartAnswerer
from regionqa.batch.options import BatchOptions
from regionqa.batch.parts import BatchPart
from regionqa.batch.reading import ImageRequests, read_part
from regionqa.errors import RegionQAError, UsageError, message_of
from regionqa.options import DeviceChoice
from regionqa.pipeline.console import Console
from regionqa.runtime.devices import allowed_cores

BLOCK = 32 << 20
"""Bytes of images that one task of an actor answers."""
READ_CPUS = 1.0
"""CPUs that are reserved for a task that reads."""
READ_MEMORY = 256 << 20
"""Bytes that are reserved for a task that reads. Ray Data runs stages with equal reservations in
one process, where reading would wait for the model."""
CAUSES = 20
"""Errors of Ray that wrap each other, at most."""


class ClusterError(RegionQAError, RuntimeError):
    """Ray could not start, or has given up."""


@dataclass(frozen=True)
class RayStages:
    """Answers parts on a Ray cluster."""

    settings: AnswerSettings
    options: BatchOptions
    console: Console

    def answered(self, parts: Iterable[BatchPart]) -> Iterator[AnsweredRequests]:
        """Answer parts; the requests of one come in any order.

        Args:
            parts: Put into the cluster's store, which spills to disk.

        Raises:
            UsageError: The machine has not what the actors need.
            RegionQAError: As of `read_part` and `PartAnswerer`, if a stage ends with it.
            ClusterError: Ray failed.
        """
        with _cluster(self.options), _ray_errors():
            import ray

            gpus = self._gpus(ray.cluster_resources().get("GPU", 0))
            self._check(ray.cluster_resources(), gpus)
            least, most = self.options.actor_range
            data = ray.data.from_arrow_refs([ray.put(_table("part", p.as_json())) for p in parts])
            self._set_up_data()
            folder = str(Path.cwd())
            read = data.map_batches(
                _read_rows,
                batch_size=1,
                batch_format="pyarrow",
                num_cpus=READ_CPUS,
                memory=READ_MEMORY,
                fn_kwargs={"folder": folder},
            )
            answered = read.map_batches(
                _AnswerActor,
                batch_size=None,
                batch_format="pyarrow",
                compute=ray.data.ActorPoolStrategy(min_size=least, max_size=most),
                num_cpus=self.options.num_cpus,
                num_gpus=gpus,
                fn_constructor_kwargs={"settings": self.settings, "folder": folder},
            )
            for batch in answered.iter_batches(batch_size=None, batch_format="pyarrow"):
                for row in batch.to_pylist():
                    yield AnsweredRequests.from_row(row)

    def _gpus(self, there: float) -> float:
        if self.options.num_gpus is not None:
            return self.options.num_gpus
        runtime = self.settings.runtime
        own = runtime.server is None and runtime.device is not DeviceChoice.cpu
        return 1.0 if there and own else 0.0

    def _check(self, there: dict[str, float], gpus: float) -> None:
        """Refuse actors for which this machine has no room; wait for those of a cluster."""
        least, _ = self.options.actor_range
        for what, needed, has in (
            ("GPUs", least * gpus, there.get("GPU", 0)),
            ("CPUs", least * self.options.num_cpus + READ_CPUS, there.get("CPU", 0)),
        ):
            if needed <= has:
                continue
            text = f"--actors {self.options.actors}: needs {needed:g} {what}, of which there are"
            if self.options.ray_address is None:
                raise UsageError(f"{text} {has:g}; ask for fewer, or for a smaller share of each")
            self.console.warn(f"{text} {has:g} in the cluster now; waits until it has more")

    def _set_up_data(self) -> None:
        from ray.data import DataContext

        context: Any = DataContext.get_current()
        context.target_max_block_size = BLOCK
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        logger = logging.getLogger("ray.data")
        logger.setLevel(logging.ERROR)
        for handler in logger.handlers:
            handler.setLevel(logging.ERROR)


def _read_rows(batch: Any, folder: str) -> Iterator[Any]:
    """Read the part of a table with one row; a row for each image."""
    with suppress(OSError):  # another machine, where paths are absolute
        os.chdir(folder)
    for text in batch["part"].to_pylist():
        for group in read_part(BatchPart.from_json(text)):
            yield _table_of(group.as_row())


class _AnswerActor:
    """Answers the rows of `_read_rows` with a model that is loaded once."""

    def __init__(self, settings: AnswerSettings, folder: str) -> None:
        with suppress(OSError):
            os.chdir(folder)
        self._answerer = PartAnswerer(settings)

    def __call__(self, batch: Any) -> Any:
        groups = (
            ImageRequests.from_row(row.to_pylist()[0])
            for row in (batch.slice(n, 1) for n in range(batch.num_rows))
        )
        rows = [answered.as_row()["answered"] for answered in self._answerer.answer(groups)]
        return _table("answered", *rows)


def _table(column: str, *values: str) -> Any:
    import pyarrow

    return pyarrow.table({column: pyarrow.array(values, pyarrow.large_string())})


def _table_of(row: dict[str, Any]) -> Any:
    import pyarrow

    kinds = {"head": pyarrow.large_string()}
    return pyarrow.table(
        {
            name: pyarrow.array([value], kinds.get(name, pyarrow.large_binary()))
            for name, value in row.items()
        }
    )


@contextmanager
def _cluster(options: BatchOptions) -> Iterator[None]:
    """Join a cluster, or start one on this machine and stop it at the end."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # Ray runs workers as background work, which a busy machine hardly gives any time
    os.environ.setdefault("RAY_worker_niceness", "0")
    # Ray's own log files keep what it says
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    import ray

    common: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        if options.ray_address is not None:
            ray.init(address=options.ray_address, **common)
        else:
            _, most = options.actor_range
            # reading may use all cores beside the actors, which mostly wait for a GPU
            cpus = allowed_cores() + math.ceil(most * options.num_cpus)
            ray.init(address="local", num_cpus=cpus, include_dashboard=False, **common)
    except (OSError, ValueError, RuntimeError) as error:
        reason = message_of(error)
        if options.ray_address is None:
            raise ClusterError(f"Ray: cannot start on this machine: {reason}") from error
        raise ClusterError(
            f"--ray-address {options.ray_address}: Ray cannot be reached: {reason}; check the "
            "address, or leave it out"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def _ray_errors() -> Iterator[None]:
    """Turn what Ray raises into the error that caused it."""
    from ray.exceptions import RayError

    try:
        yield
    except Exception as error:
        # Ray's copy of an error of ours is of both classes
        if isinstance(error, RegionQAError) and not isinstance(error, RayError):
            raise
        raise _cause_of(error) from error


def _cause_of(error: BaseException) -> RegionQAError:
    """Return the error of ours behind one of Ray's, or one that says what Ray says."""
    found: BaseException | None = error
    for _ in range(CAUSES):
        if found is None:
            break
        if isinstance(found, RegionQAError):
            return found
        found = getattr(found, "cause", None) or found.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    own = [line for line in lines if line.startswith("regionqa.errors.")]
    text = own[-1].partition(": ")[2] if own else (lines[-1] if lines else type(error).__name__)
    return ClusterError(f"{text}; the finished parts are kept; run again to continue")
