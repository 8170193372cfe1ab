"""Run an evaluation task with one model, or with two to compare.

    evaluate_models(VqaTask(Path("questions.jsonl")), EvalSettings(), console)

A model is asked by the same path as in `regionqa ask`: `Engine.answer`, greedy decoding.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from regionqa.backends.base import Model, ModelInfo, configured_model
from regionqa.engine import Engine
from regionqa.errors import DataError
from regionqa.evaluation.cache import AnswerCache
from regionqa.evaluation.metrics.calibration import UncertaintyRule
from regionqa.evaluation.options import EvaluationOptions
from regionqa.evaluation.results import (
    Comparison,
    EvalResult,
    TaskScores,
    compare_results,
    estimate_metrics,
)
from regionqa.options import (
    DtypeChoice,
    GenerationOptions,
    OutputFormat,
    RuntimeOptions,
)
from regionqa.pipeline.console import Console
from regionqa.pipeline.draw_files import refuse_drawings
from regionqa.pipeline.outputs import OutputSettings, error_text
from regionqa.requests import Answer, Request


class EvalTask(ABC):
    """An evaluation task: what to ask, and how to score the answers."""

    settings: Mapping[str, object]
    """Options of asking and scoring, by name, to be written beside the results."""
    remarks: Sequence[str] = ()
    """What was left out of the data, a line each."""

    @abstractmethod
    def requests(self, model: ModelInfo) -> Sequence[Request]:
        """Return the requests for a model: at least one, as many for every model.

        Args:
            model: Properties of the model, with its questions for captions.
        """

    @abstractmethod
    def score(self, answers: Mapping[int, Answer], uncertainty: UncertaintyRule) -> TaskScores:
        """Score at least one answer.

        Args:
            answers: Answers in the order of their requests, by index; failed ones are left out.
            uncertainty: Which answers count as "not sure".
        """


@dataclass(frozen=True)
class EvalSettings:
    """How models are run."""

    runtime: RuntimeOptions = field(default_factory=RuntimeOptions)
    """The model, if none are compared, and how models are run."""
    generation: GenerationOptions = field(default_factory=GenerationOptions)
    """Of these, only the maximum length applies: decoding is greedy, and no answer is held back."""
    evaluation: EvaluationOptions = field(default_factory=EvaluationOptions)

    @property
    def models(self) -> tuple[str, ...]:
        """One model, or two to compare."""
        return self.evaluation.compare or (self.runtime.model,)

    @property
    def variant(self) -> str:
        """The precision if it was chosen; empty if not."""
        dtype = "" if self.runtime.dtype is DtypeChoice.auto else str(self.runtime.dtype)
        return " ".join(filter(None, (dtype, self.runtime.quantize)))


@dataclass(frozen=True)
class EvalRun:
    """The answers of one model."""

    answers: dict[int, Answer]
    """By index of the request."""
    failed: int
    """Requests without an answer."""
    model: str
    revision: str
    device: str
    uncertainty: UncertaintyRule

    def evaluate(self, task: EvalTask, included: set[int]) -> EvalResult:
        """Score the answers to the included requests."""
        answers = {index: answer for index, answer in self.answers.items() if index in included}
        return estimate_metrics(
            task.score(answers, self.uncertainty),
            model=self.model,
            revision=self.revision,
            device=self.device,
            failed=self.failed,
            settings=task.settings,
        )


def evaluate_models(
    task: EvalTask, settings: EvalSettings, console: Console
) -> EvalResult | Comparison:
    """Evaluate one model, or compare two on what both have answered.

    Raises:
        DataError: Nothing could be answered.
        RegionQAError: A model cannot be loaded.
    """
    models = [configured_model(name, settings.runtime) for name in settings.models]
    for line in (*(model.info.note for model in models if model.info.note), *task.remarks):
        console.warn(line)
    runs = [run_task(task.requests(model.info), settings, model, console) for model in models]
    answered = set.intersection(*(set(run.answers) for run in runs))
    if not answered:
        failed = max(run.failed for run in runs)
        raise DataError(f"no request was answered, {failed:,} failed; the reasons are above")
    results = [run.evaluate(task, answered) for run in runs]
    return results[0] if len(results) == 1 else compare_results(*results)


def run_task(
    requests: Sequence[Request],
    settings: EvalSettings,
    model: Model,
    console: Console,
    report: Callable[[str], None] | None = None,
) -> EvalRun:
    """Ask one model everything.

    Args:
        requests: What to ask.
        settings: How the model is run.
        model: The model.
        console: For progress, and for the errors of requests that fail.
        report: Called with these instead.
    """
    info, runtime, variant = model.info, settings.runtime, settings.variant
    output = OutputSettings(
        OutputFormat.jsonl, info.name, info.revision, runtime.device, runtime.dtype
    )

    @cache
    def load() -> Engine:
        return Engine.load(model, runtime)

    if settings.evaluation.plot:  # the data names images that the command line does not
        images = [each.source.source for each in requests if each.source]
        read = [image for image in images if isinstance(image, Path)]
        refuse_drawings("--plot", [settings.evaluation.plot], read, overwrite=True)
    cached = AnswerCache.open(settings.evaluation.answers, output, variant)
    answers = cached.answers(load, requests, settings.generation)
    answered: dict[int, Answer] = {}
    failed = 0
    for index, answer in enumerate(console.track(answers, info.name, len(requests))):
        if answer.error is None:
            answered[index] = answer
        else:
            failed += 1
            (report or console.error)(error_text(answer))
    device = "cached answers"
    if load.cache_info().currsize:
        device = str(load().device)
        for line in load().take_notes():
            console.note(line)
    device = f"{device}, {variant}" if variant else device
    uncertainty = UncertaintyRule(info.confidence, settings.evaluation.unsure_below)
    return EvalRun(answered, failed, info.name, info.revision, device, uncertainty)
