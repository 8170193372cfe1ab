"""`regionqa batch`: INPUT to parts, parts to answers, answers to OUTPUT."""

import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TextIO

from regionqa.backends.base import ModelInfo, configured_model
from regionqa.batch.answering import AnsweredRequests, AnswerSettings, PartAnswerer
from regionqa.batch.inputs import BatchInput, InputSettings
from regionqa.batch.options import BatchOptions
from regionqa.batch.outputs import PartFolder
from regionqa.batch.parts import BatchPart, make_parts
from regionqa.batch.progress import BatchProgress, duration
from regionqa.batch.reading import read_part
from regionqa.batch.storage import Location
from regionqa.data.english import counted
from regionqa.errors import SOME_FAILED, OutputError, UsageError
from regionqa.language.answer_schemas import short_digest
from regionqa.options import BoxOptions, GenerationOptions, RuntimeOptions
from regionqa.pipeline.console import Console
from regionqa.pipeline.inputs import AskSettings

Stages = Callable[[AnswerSettings, Console, Iterable[BatchPart]], Iterator[AnsweredRequests]]
"""Answers parts; the requests of a part may come in any order."""
SAMPLE = 32
"""Requests that a dry run answers."""
WRITERS = 16
"""Parts that are written at the same time; object storage takes a while for each."""


@dataclass(frozen=True)
class BatchRun:
    """What one run of `batch` does."""

    input: str
    output: str
    boxes: BoxOptions = field(default_factory=BoxOptions)
    generation: GenerationOptions = field(default_factory=GenerationOptions)
    runtime: RuntimeOptions = field(default_factory=RuntimeOptions)
    options: BatchOptions = field(default_factory=BatchOptions)


def run_batch(run: BatchRun, stages: Stages, tell: Callable[[str], None]) -> int:
    """Answer all requests that have no finished part yet.

    Args:
        run: What is asked.
        stages: Answers parts.
        tell: Called with each line of the report of a dry run.

    Returns:
        The exit status: 0, or `SOME_FAILED` if there are errors, also of earlier runs.
    """
    options = run.options
    console = Console(quiet=options.quiet)
    runtime = _with_absolute_model(run.runtime)
    model = configured_model(runtime.model, runtime).info
    if model.note:
        console.warn(model.note)
    settings = answer_settings(run, runtime, model)
    source = BatchInput(run.input, _input_settings(run, settings), console.note)
    about = {"input": Location(run.input).absolute, **settings.described}
    folder = PartFolder(Location(run.output), options.format, about)
    folder.read()
    if options.retry_errors:
        folder.forget_errors()
    with tempfile.TemporaryFile("w+") as file:
        plan = BatchPlan.of(make_parts(source.entries(), settings.digest, options.part_size),
                            folder, file)  # fmt: skip
        if plan.parts == 0:
            raise UsageError(f"{run.input}: holds no requests; add some")
        if options.dry_run:
            report(plan, settings, options, tell)
            return 0
        folder.begin(plan.keys, overwrite=options.overwrite)
        if plan.parts > plan.missing:
            console.note(
                f"{counted(plan.parts - plan.missing, 'part')} of {plan.parts:,} finished before"
            )
        progress = BatchProgress(console, plan.weight, plan.missing)
        if plan.missing:
            answered = stages(settings, console, plan.unfinished())
            write_parts(answered, folder, progress, plan.weights)
        progress.finish()
    folder.describe({"complete": True, "parts": plan.parts, "errors": folder.errors})
    if folder.errors:
        console.error(
            f"{run.output}: holds {counted(folder.errors, 'error')}; ask their parts again with "
            "--retry-errors"
        )
    return SOME_FAILED if folder.errors else 0


def answer_settings(run: BatchRun, runtime: RuntimeOptions, model: ModelInfo) -> AnswerSettings:
    """Return what answers depend on, as `ask` and `caption` set it."""
    options, caption = run.options, run.options.question is None
    allowed = run.generation.allowed
    limits = [short_digest("\n".join(allowed))] if allowed else []
    return AnswerSettings(
        ask=AskSettings(
            question=model.image_question if caption else options.question,
            region_question=model.region_question if caption else None,
            boxes=run.boxes.written(),
            each=caption or options.each,
        ),
        generation=run.generation,
        runtime=runtime,
        model=model.name,
        revision="+".join([model.revision, *limits]),
        timing=options.timing,
        confidence=options.confidence,
    )


def _input_settings(run: BatchRun, settings: AnswerSettings) -> InputSettings:
    options = run.options
    return InputSettings(
        images=options.images,
        each=settings.ask.each,
        part_size=options.part_size,
        limit=options.limit,
        sort_by_image=options.sort_by_image,
    )


def _with_absolute_model(runtime: RuntimeOptions) -> RuntimeOptions:
    """Name a model's folder so that processes with another working folder find it."""
    folder = Path(runtime.model)
    return runtime.replace(model=str(folder.absolute())) if folder.is_dir() else runtime


# -- the plan --------------------------------------------------------------------------------------


@dataclass
class BatchPlan:
    """The parts of a run: the keys of all, and the unfinished ones in a temporary file."""

    keys: set[str] = field(default_factory=set)
    weights: dict[str, float] = field(default_factory=dict)
    """Of the unfinished parts, by key."""
    requests: int = 0
    """Requests of all parts that need not be read to be counted."""
    uncounted: int = 0
    """Parts that must be read to be counted."""
    file: TextIO | None = None

    @property
    def parts(self) -> int:
        """Number of parts."""
        return len(self.keys)

    @property
    def missing(self) -> int:
        """Number of parts that are not finished."""
        return len(self.weights)

    @property
    def weight(self) -> float:
        """Sum of the weights of the unfinished parts."""
        return sum(self.weights.values())

    @classmethod
    def of(
        cls,
        parts: Iterable[BatchPart],
        folder: PartFolder,
        file: TextIO,
    ) -> "BatchPlan":
        """Go through all parts once.

        Args:
            parts: All parts.
            folder: Says which are finished.
            file: Where the others are kept.
        """
        plan = cls(file=file)
        for part in parts:
            plan.keys.add(part.key)
            count = part.count
            plan.requests += count or 0
            plan.uncounted += count is None
            if part.key not in folder.finished:
                plan.weights[part.key] = part.weight
                file.write(part.as_json() + "\n")
        return plan

    def unfinished(self) -> Iterator[BatchPart]:
        """Iterate over the unfinished parts, in order."""
        assert self.file is not None
        self.file.seek(0)
        for line in self.file:
            yield BatchPart.from_json(line)


# -- answering -------------------------------------------------------------------------------------


def answered_here(
    settings: AnswerSettings, console: Console, parts: Iterable[BatchPart]
) -> Iterator[AnsweredRequests]:
    """Answer parts one after the other in this process."""
    answerer = PartAnswerer(settings)
    for part in parts:
        yield from answerer.answer(read_part(part))


class PartCollector:
    """Puts the answers of parts together, which come in any order."""

    def __init__(self) -> None:
        self._open: dict[str, dict[int, AnsweredRequests]] = {}

    def add(self, answered: AnsweredRequests) -> list[AnsweredRequests] | None:
        """Add answers; all of their part in order if these were the last to come."""
        found = self._open.setdefault(answered.part, {})
        found[answered.start] = answered
        end = next((each.stop for each in found.values() if each.last), None)
        if end is None or sum(each.stop - each.start for each in found.values()) < end:
            return None
        del self._open[answered.part]
        return [found[start] for start in sorted(found)]

    @property
    def incomplete(self) -> int:
        """Number of parts of which answers are missing."""
        return len(self._open)


def write_parts(
    answered: Iterable[AnsweredRequests],
    folder: PartFolder,
    progress: BatchProgress,
    weights: dict[str, float],
) -> None:
    """Write every part once all of its requests are answered.

    Raises:
        OutputError: A part cannot be written, or lacks answers.
    """
    collector = PartCollector()
    writing: deque[Future[None]] = deque()

    def write(key: str, found: list[AnsweredRequests]) -> None:
        records = [record for each in found for record in each.records]
        folder.write(key, records, sum(len(each.errors) for each in found))

    with ThreadPoolExecutor(WRITERS) as pool:
        for each in answered:
            progress.warn(each.warnings)
            found = collector.add(each)
            if found is None:
                continue
            writing.append(pool.submit(write, each.part, found))
            errors = [reason for part in found for reason in part.errors]
            records = sum(len(part.records) for part in found)
            progress.part(weights.get(each.part, 0.0), records, errors)
            while writing and (len(writing) > 2 * WRITERS or writing[0].done()):
                writing.popleft().result()
        while writing:
            writing.popleft().result()
    if collector.incomplete:
        raise OutputError(
            f"{counted(collector.incomplete, 'part')} not written, since answers are missing; run "
            "again"
        )


# -- dry run ---------------------------------------------------------------------------------------


def report(
    plan: BatchPlan, settings: AnswerSettings, options: BatchOptions, tell: Callable[[str], None]
) -> None:
    """Count parts and requests, answer a few, and say how long all would take.

    Args:
        plan: The parts.
        settings: How requests are answered.
        options: Number of actors.
        tell: Called with each line.
    """
    more = f", and {counted(plan.uncounted, 'archive')} not counted" if plan.uncounted else ""
    tell(f"{counted(plan.requests, 'request')}{more}, in {counted(plan.parts, 'part')}")
    tell(f"{counted(plan.parts - plan.missing, 'part')} finished, {plan.missing:,} to do")
    if not plan.missing:
        return
    answerer = PartAnswerer(settings)
    begun = time.perf_counter()
    part = next(iter(plan.unfinished()))
    whole = part.count
    if part.lines:
        part = replace(part, lines=part.lines[:SAMPLE])
    else:
        part = replace(part, stop=min(part.start + SAMPLE, part.stop or 1 << 60))
    groups = list(read_part(part))
    asked = groups[-1].stop
    read = (time.perf_counter() - begun) / max(1, asked)
    list(answerer.answer(groups[:1]))  # the first call is slow
    begun = time.perf_counter()
    records = sum(len(each.records) for each in answerer.answer(groups))
    answer = (time.perf_counter() - begun) / max(1, asked)
    tell(
        f"sample of {counted(asked, 'request')} ({counted(records, 'row')}) on "
        f"{answerer.engine.device}: {1000 * read:,.1f} ms to read and decode one, "
        f"{1000 * answer:,.1f} ms to answer it"
    )
    if whole is None:
        tell("how many requests archives hold is known once they are read; add --limit to count")
        return
    left = plan.requests * plan.missing / plan.parts
    _, most = options.actor_range
    tell(f"about {duration(left * answer)} of one actor, {duration(left * answer / most)} with "
         f"{counted(most, 'actor')}")  # fmt: skip
    tell(f"CPUs that keep one actor busy with images: {read / answer:.2f}")
