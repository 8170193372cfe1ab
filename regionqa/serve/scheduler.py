"""The one thread that owns the engine: requests of all clients, answered together in batches.

A `Job` holds the requests of one client. Waiting requests are taken in turns from all jobs with the
same options, so that a long job delays no short one, and are grouped by image for the engine.
"""

import gc
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from regionqa.backends.base import ModelInfo, configured_model
from regionqa.engine import Engine
from regionqa.errors import RegionQAError, UsageError, brief
from regionqa.images.reading import InputImage
from regionqa.options import GenerationOptions, RuntimeOptions
from regionqa.requests import Answer, Request

LONGEST_WAIT = 120
"""Seconds of the longest Retry-After."""


class QueueFullError(Exception):
    """As many questions wait as may."""

    def __init__(self, retry_after: int) -> None:
        """retry_after: seconds after which there may be room."""
        super().__init__(f"{retry_after} s")
        self.retry_after = retry_after


class ModelChangedError(Exception):
    """The model was switched since the requests were made for it."""


class NotAnsweringError(Exception):
    """The server is shutting down, or has no model."""


class _AbandonedError(Exception):
    """Nobody waits for the answers of the batch any more."""


@dataclass(frozen=True)
class ServedModel:
    """The model that answers."""

    name: str
    """Name by which it is chosen."""
    info: ModelInfo
    device: str
    precision: str

    @classmethod
    def of(cls, name: str, engine: Engine) -> "ServedModel":
        """Describe a loaded model."""
        return cls(name, engine.info, str(engine.device), str(engine.precision))


@dataclass(frozen=True)
class JobListener:
    """Called from the engine's thread with what becomes of a job's requests."""

    text: Callable[[int, str], None]
    """The next part of the answer to the request of this number."""
    answer: Callable[[int, Answer, Sequence[str]], None]
    """The answer to the request of this number, and warnings about its image."""
    failed: Callable[[Exception], None]
    """There will be no further answers; RegionQAError, NotAnsweringError or a fault."""


@dataclass(eq=False)
class Job:
    """Requests of one client, which share their options."""

    requests: Sequence[Request]
    options: GenerationOptions
    model: ServedModel
    """The model that the requests were made for."""
    listener: JobListener
    taken: int = 0
    """Number of requests that were given to the engine."""
    ended: bool = False
    """Whether the client has gone, or the job has failed."""

    @property
    def left(self) -> int:
        """Number of requests that wait."""
        return 0 if self.ended else len(self.requests) - self.taken


@dataclass(eq=False)
class _Switch:
    """A change of the model, in its place among the jobs."""

    name: str
    done: "Future[ServedModel]" = field(default_factory=Future)


Place = tuple[Job, int]
"""A job, and the number of one of its requests."""


class Scheduler:
    """Batches the requests of all clients for one engine."""

    def __init__(
        self,
        engine: Engine,
        options: RuntimeOptions,
        models: Mapping[str, str],
        report: Callable[[str], None],
        *,
        name: str = "",
        capacity: int = 1024,
    ) -> None:
        """Start the thread.

        Args:
            engine: The loaded model.
            options: How models are run.
            models: Models that may be switched to: their name, and what `--model` is for them.
            report: Called with a line for each fault, and for what the model has to say.
            name: Name of the loaded model among `models`.
            capacity: Largest number of requests that wait.
        """
        self._engine: Engine | None = engine
        self._options = options
        self._report = report
        self._capacity = capacity
        self._changed = threading.Condition()
        self._entries: deque[Job | _Switch] = deque()
        self._closed = False
        self._pace = 1.0  # seconds per question, of recent batches
        self._last_image: InputImage | None = None
        self.models = dict(models)
        self.model = ServedModel.of(name or engine.info.name, engine)
        """The model that is loaded."""
        self.next_name = self.model.name
        """The model that is loaded after all switches that wait."""
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Number of requests that wait."""
        with self._changed:
            return self._count()

    def _count(self) -> int:
        return sum(entry.left for entry in self._entries if isinstance(entry, Job))

    def submit(self, job: Job) -> None:
        """Queue a job.

        Raises:
            QueueFullError: There is no room for its requests.
            ModelChangedError: It was made for another model.
            NotAnsweringError: Nothing is answered any more.
        """
        with self._changed:
            if self._closed:
                raise NotAnsweringError("the server is shutting down")
            if job.model is not self.model or self.next_name != self.model.name:
                raise ModelChangedError
            waiting = self._count()
            if waiting + len(job.requests) > self._capacity:
                seconds = math.ceil(max(1, waiting) * self._pace)
                raise QueueFullError(min(LONGEST_WAIT, max(1, seconds)))
            self._entries.append(job)
            self._changed.notify()

    def cancel(self, job: Job) -> None:
        """Drop what waits of a job, and its answers; a batch that nobody waits for is abandoned."""
        with self._changed:
            job.ended = True
            if job in self._entries:
                self._entries.remove(job)

    def switch(self, name: str) -> "Future[ServedModel]":
        """Load another model once the requests that wait are answered.

        Returns:
            The model, or the RegionQAError why it was not loaded; the one before it then remains.

        Raises:
            UsageError: It is not among `models`.
            NotAnsweringError: The server is shutting down.
        """
        if name not in self.models:
            raise UsageError(f"{name}: is not a model here; choose {', '.join(self.models)}")
        with self._changed:
            if self._closed:
                raise NotAnsweringError("the server is shutting down")
            entry = _Switch(name)
            self._entries.append(entry)
            self.next_name = name
            self._changed.notify()
        return entry.done

    def close(self) -> None:
        """Refuse what waits; what runs is finished. `join` waits for it."""
        with self._changed:
            self._closed = True
            entries = list(self._entries)
            self._entries.clear()
            self._changed.notify()
        for entry in entries:
            self._fail(entry, NotAnsweringError("the server is shutting down; ask again later"))

    def join(self, seconds: float | None = None) -> None:
        """Wait for the thread to end, after `close`."""
        self._thread.join(seconds)

    # -- the engine's thread -----------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._entries and not self._closed:
                    self._changed.wait()
                if not self._entries:
                    self._engine = None
                    return
                entry = self._entries[0]
                batch = [] if isinstance(entry, _Switch) else self._take(entry.options)
                if isinstance(entry, _Switch):
                    self._entries.popleft()
            if isinstance(entry, _Switch):
                self._load(entry)
            else:
                self._answer(batch, entry.options)

    def _take(self, options: GenerationOptions) -> list[Place]:
        """Take requests in turns from the jobs with these options, up to a batch, by image."""
        jobs = []
        for entry in self._entries:
            if isinstance(entry, _Switch):
                break  # what comes after it is for another model
            if entry.options == options:
                jobs.append(entry)
        taken: list[Place] = []
        while len(taken) < self._options.batch_size and (jobs := [job for job in jobs if job.left]):
            for job in jobs[: self._options.batch_size - len(taken)]:
                taken.append((job, job.taken))
                job.taken += 1
        self._entries = deque(e for e in self._entries if isinstance(e, _Switch) or e.left)
        by_image: dict[InputImage | None, list[Place]] = {}
        for job, number in taken:
            by_image.setdefault(job.requests[number].source, []).append((job, number))
        # the image that was encoded last is still encoded, so it comes first
        images = sorted(by_image, key=lambda image: image is not self._last_image)
        self._last_image = images[-1]
        return [place for image in images for place in by_image[image]]

    def _answer(self, batch: Sequence[Place], options: GenerationOptions) -> None:
        engine = self._engine
        if engine is None:
            error = NotAnsweringError("no model is loaded; switch to one")
            for job in dict.fromkeys(job for job, _ in batch):
                self._fail(job, error)
            return
        requests = [job.requests[number] for job, number in batch]
        places = {id(request): place for request, place in zip(requests, batch, strict=True)}

        def on_text(request: Request, text: str) -> None:
            if all(job.ended for job, _ in batch):
                raise _AbandonedError
            job, number = places[id(request)]
            if not job.ended:
                job.listener.text(number, text)

        started = time.monotonic()
        try:
            answers = engine.answer(requests, options, on_text=on_text, together=True)
            for (job, number), answer in zip(batch, answers, strict=True):
                image = answer.request.source
                warnings = image.take_warnings() if image else []
                if not job.ended:
                    job.listener.answer(number, answer, warnings)
            for note in engine.take_notes():
                self._report(note)
        except _AbandonedError:
            return
        except Exception as error:  # the next batch may fare better
            if not isinstance(error, RegionQAError):
                self._report(brief(f"unexpected {type(error).__name__}: {error}"))
            for job in dict.fromkeys(job for job, _ in batch):
                self._fail(job, error)
            return
        pace = (time.monotonic() - started) / len(batch)
        self._pace = 0.7 * self._pace + 0.3 * pace

    def _fail(self, entry: Job | _Switch, error: Exception) -> None:
        """End a job or a switch that cannot be carried out."""
        if isinstance(entry, _Switch):
            if entry.done.set_running_or_notify_cancel():
                entry.done.set_exception(error)
            return
        was_ended = entry.ended
        self.cancel(entry)
        if not was_ended:
            entry.listener.failed(error)

    def _load(self, switch: _Switch) -> None:
        """Replace the model; the old one goes first, so that both need not fit into memory."""
        old = self.model.name
        try:
            if switch.name != old or self._engine is None:
                model = self.models[switch.name]
                found = configured_model(model, self._options.replace(model=model))
                self._engine = None
                gc.collect()
                options = self._options.replace(model=model)
                self._use(switch.name, Engine.load(found, options))
        except Exception as error:
            if not isinstance(error, RegionQAError):
                self._report(brief(f"unexpected {type(error).__name__}: {error}"))
            self._restore(old)
            self._fail(switch, error)
        else:
            if switch.done.set_running_or_notify_cancel():
                switch.done.set_result(self.model)

    def _use(self, name: str, engine: Engine) -> None:
        with self._changed:
            self._engine = engine
            self.model = ServedModel.of(name, engine)

    def _restore(self, name: str) -> None:
        """Load the model again that was dropped for one that cannot be loaded."""
        try:
            if self._engine is None:
                options = self._options.replace(model=self.models[name])
                self._use(name, Engine.load(options=options))
        except Exception as error:
            self._report(brief(f"{name}: cannot be loaded again: {error}"))
        with self._changed:
            if not any(isinstance(entry, _Switch) for entry in self._entries):
                self.next_name = name
