"""A run of `data generate`: tasks to training records, rejected replies and a summary."""

import json
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from regionqa.data.convert import as_document
from regionqa.data.english import counted
from regionqa.data.records import Record
from regionqa.data.streams.disk_index import DiskIndex
from regionqa.errors import OutputError
from regionqa.files import open_output, output_error
from regionqa.generation.annotations import as_conversation
from regionqa.generation.conversations import ConversationWriter, WrittenConversation
from regionqa.generation.filters import NearDuplicates, RejectedTurn, RejectReason
from regionqa.generation.options import DataGenerationOptions, GenerationKind
from regionqa.generation.sources import KeptReplies, ReplyJournal, ReplySource, RequestBudget
from regionqa.generation.tasks import GenerationTask, TaskPlan

AHEAD = 4
"""Tasks in progress for each request at a time, so that a slow one does not hold up the others."""


@dataclass
class GenerationSummary:
    """What a run did."""

    plan: TaskPlan
    asked: Counter[GenerationKind] = field(default_factory=Counter)
    """Finished tasks by kind."""
    records: Counter[GenerationKind] = field(default_factory=Counter)
    turns: Counter[GenerationKind] = field(default_factory=Counter)
    rejected: Counter[RejectReason] = field(default_factory=Counter)
    failed: int = 0
    """Tasks with a request that had no reply."""
    unasked: int = 0
    """Tasks that the budget did not allow."""
    budget: RequestBudget = field(default_factory=RequestBudget)
    attempts: int = 0
    kept: int = 0
    """Replies of an earlier run."""
    gone: int = 0
    """Records that the output held before and holds no more."""

    def add(self, made: WrittenConversation) -> None:
        """Count a task."""
        if made.unasked:
            self.unasked += 1
            return
        kind = made.task.kind
        self.asked[kind] += 1
        self.records[kind] += bool(made.turns)
        self.turns[kind] += len(made.turns)
        self.rejected.update(each.reason for each in made.rejected)
        self.failed += made.failed

    def lines(self, options: DataGenerationOptions) -> Iterator[str]:
        """Render the summary as lines of text."""
        told = f"{counted(self.records.total(), 'record')}{options.part.suffix}"
        yield f"{told} written to {options.out}"
        yield f"  images     {self.plan.images:>10,}"
        repeated = self.attempts - self.budget.requests
        again = f", and {repeated:,} again after a failure" if repeated else ""
        kept = f"; {self.kept:,} replies kept from before" if self.kept else ""
        yield f"  requests   {self.budget.requests:>10,}{again}{kept}"
        tokens = self.budget.prompt_tokens + self.budget.tokens
        yield (
            f"  tokens     {tokens:>10,} ({self.budget.prompt_tokens:,} of prompts, "
            f"{self.budget.tokens:,} of replies)"
        )
        yield from ("", "kind          tasks    records      turns    yield   not possible")
        for kind in options.chosen_kinds:
            tasks, records = self.asked[kind], self.records[kind]
            share = f"{100 * records / tasks:.0f} %" if tasks else "-"
            yield (
                f"{kind:<12}{tasks:>7,}{records:>11,}{self.turns[kind]:>11,}{share:>9}"
                f"{self.plan.unsupported[kind]:>15,}"
            )
        if self.rejected:
            yield from ("", f"rejected (in {options.rejected_file})")
            yield from (f"  {reason:<40}{n:>8,}" for reason, n in self.rejected.most_common())

    def remarks(self) -> Iterator[str]:
        """What was left out or not finished, and what to do."""
        plan = self.plan
        if plan.without_objects:
            yield f"{counted(plan.without_objects, 'image')} without boxes left out"
        if plan.left_out:
            yield (
                f"{plan.left_out:,} boxes and facts left out of prompts, beyond "
                "the first 60 of an image"
            )
        if self.gone:
            yield (
                f"{counted(self.gone, 'record')} of the earlier run left out, by other options or "
                "what is not asked yet; their replies are kept"
            )
        if self.unasked:
            yield (
                f"the budget is spent; {counted(self.unasked, 'task')} left, go on with --resume"
            )
        if self.failed:
            yield f"{counted(self.failed, 'task')} without a reply; ask again with --resume"


def generate_data(
    plan: TaskPlan,
    source: ReplySource,
    options: DataGenerationOptions,
    journal: ReplyJournal,
    track: Callable[[Iterable[WrittenConversation]], Iterable[WrittenConversation]] = iter,
) -> GenerationSummary:
    """Carry out tasks, several at a time, and write their results in order.

    Args:
        plan: The tasks.
        source: Answers requests.
        options: Limits, filters and outputs.
        journal: Keeps replies.
        track: Passes finished tasks on, as a progress bar does.

    Raises:
        OutputError: A file cannot be written.
    """
    budget = RequestBudget(options.max_requests, options.max_tokens)
    replies = KeptReplies(source, journal, budget, options.server_concurrency)
    summary = GenerationSummary(plan, budget=budget)
    duplicates = NearDuplicates(options.near_duplicates)
    writer = ConversationWriter(replies, options)
    folder = options.out.parent.absolute()
    window = AHEAD * options.server_concurrency
    with (
        closing(record_ids(options.out) if options.resume else DiskIndex()) as before,
        open_output(options.out) as records,
        open_output(options.rejected_file) as rejected,
    ):
        for made in track(in_order(source, writer, plan.tasks(), window)):
            reject_duplicates(made, duplicates)  # there are no turns if it is not finished
            summary.add(made)
            if made.turns:
                _write(records, options.out, record_document(made, source.name, folder))
                before.discard(made.task.id)
            if made.rejected:
                _write(rejected, options.rejected_file, rejected_document(made))
        summary.gone = len(before)
    summary.attempts, summary.kept = source.attempts, replies.found
    return summary


def record_ids(path: Path) -> DiskIndex:
    """Return the ids of the records in a file; a last line that is incomplete has none.

    Raises:
        OutputError: The file cannot be read, or holds something else.
    """
    found = DiskIndex()
    try:
        if path.exists():
            with path.open("rb") as file:
                for line in file:
                    if line.endswith(b"\n"):
                        found[str(json.loads(line)["id"])] = 1
    except OSError as error:
        raise output_error(path, error) from error
    except (ValueError, LookupError, TypeError):
        raise OutputError(
            f"{path}: is not written by data generate, so it is not continued; name another file"
        ) from None
    return found


def in_order(
    source: ReplySource,
    writer: ConversationWriter,
    tasks: Iterable[GenerationTask],
    window: int,
) -> Iterator[WrittenConversation]:
    """Write conversations, so many at the same time, and yield them in the order of the tasks."""
    waiting: deque[Future[WrittenConversation]] = deque()
    try:
        for task in tasks:
            waiting.append(source.start(writer.write(task)))
            if len(waiting) >= window:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


def reject_duplicates(made: WrittenConversation, duplicates: NearDuplicates) -> None:
    """Reject the turns that are like earlier ones."""
    kept = []
    for question, answer in made.turns:
        earlier = duplicates.add(made.task.image.name, question, answer)
        if earlier is None:
            kept.append((question, answer))
        else:
            reason = RejectReason.duplicate
            made.rejected.append(RejectedTurn(reason, question, answer, f"of: {earlier}"))
    made.turns = kept


def record_document(made: WrittenConversation, model: str, folder: Path) -> dict[str, Any]:
    """Return a conversation as a training record for a file in a folder."""
    task = made.task
    regions, turns = as_conversation(made.turns, task.image.objects)
    document = as_document(Record(task.image.path, regions, turns, task.id), folder)
    return {"id": task.id, **document, "kind": str(task.kind), "meta": {"model": model}}


def rejected_document(made: WrittenConversation) -> dict[str, Any]:
    """Return what was rejected of a conversation, with the reasons and the replies."""
    return {
        "id": made.task.id,
        "image": made.task.image.name,
        "kind": str(made.task.kind),
        "kept": len(made.turns),
        "rejected": [_fields(each) for each in made.rejected],
        "replies": made.replies,
    }


def _fields(turn: RejectedTurn) -> dict[str, str]:
    found = {"reason": str(turn.reason), "detail": turn.detail, "question": turn.question,
             "answer": turn.answer}  # fmt: skip
    return {name: value for name, value in found.items() if value}


def _write(file: BinaryIO, path: Path, document: dict[str, Any]) -> None:
    """Write a line; a text that cannot be encoded is escaped."""
    try:
        file.write((json.dumps(document, ensure_ascii=False) + "\n").encode())
        file.flush()
    except UnicodeEncodeError:
        file.write((json.dumps(document) + "\n").encode())
    except OSError as error:
        raise output_error(path, error) from error
