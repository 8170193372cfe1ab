"""Options of `regionqa batch`."""

import re
from dataclasses import dataclass
from enum import StrEnum

from regionqa.errors import UsageError
from regionqa.flags import Options, Reads, Section, option

_ACTORS = re.compile(r"(\d+)(?::(\d+))?")


class BatchFormat(StrEnum):
    """Formats of parts."""

    parquet = "parquet"
    jsonl = "jsonl"


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class BatchOptions(Options):
    """What is asked, in which parts, and on which actors."""

    images: str | None = option(
        None,
        "Folder or URL that image names are relative to. Default: that of their file.",
        metavar="FOLDER",
        role=Reads.images,
    )
    limit: int | None = option(None, "Read this many requests only.", min=1)
    sort_by_image: bool = option(
        False, "Ask all questions about an image together, wherever they stand."
    )
    question: str | None = option(
        None,
        "Question of requests without their own, about all boxes together. Default: caption each.",
        section=Section.method,
        metavar="TEXT",
    )
    each: bool = option(
        False,
        "With --question: ask about each box separately.",
        section=Section.method,
        needs=("question",),
    )
    format: BatchFormat = option(
        BatchFormat.parquet, "Format of the parts.", "--format", "-f", section=Section.result
    )
    part_size: int = option(
        256, "Requests in a part, on average.", section=Section.result, min=1, max=100_000
    )
    overwrite: bool = option(
        False,
        "Remove parts of other input or options from OUTPUT; those that match are kept.",
        section=Section.result,
    )
    retry_errors: bool = option(False, "Ask parts that hold errors again.", section=Section.result)
    dry_run: bool = option(
        False,
        "Count requests and parts, answer a few, and say how long all would take.",
        section=Section.result,
    )
    actors: str = option(
        "1",
        "Number of loaded models, as N or MIN:MAX.",
        section=Section.runtime,
        metavar="MIN:MAX",
    )
    num_gpus: float | None = option(
        None,
        "GPUs of an actor, also a fraction. Default: 1 where the cluster has GPUs.",
        section=Section.runtime,
        min=0,
    )
    num_cpus: float = option(
        1.0, "CPUs of an actor; decoding takes others.", section=Section.runtime, min=0
    )
    ray_address: str | None = option(
        None,
        "Address of a Ray cluster, or auto. Default: start one on this machine.",
        section=Section.runtime,
        metavar="ADDRESS",
    )
    timing: bool = option(False, "Write the time per answer (`ms`).", section=Section.record)
    confidence: bool = option(False, "Write the confidence, 0 to 1.", section=Section.record)
    quiet: bool = option(
        False, "No warnings, no progress.", "--quiet", "-q", section=Section.general
    )

    def check(self) -> None:
        """Refuse a malformed number of actors."""
        _ = self.actor_range

    @property
    def actor_range(self) -> tuple[int, int]:
        """Smallest and largest number of actors."""
        match = _ACTORS.fullmatch(self.actors)
        least, most = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
        if not 1 <= least <= most:
            raise UsageError(f"--actors {self.actors}: must be N or MIN:MAX, from 1 on, like 2:8")
        return least, most
