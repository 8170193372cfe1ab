"""From a task and models to results: asks, keeps answers, judges, measures, compares.

    evaluate(recognition_task(...), How(models=("starter",)), ...)

Puts the parts together. It does not parse a command line, nor print.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache

from regionqa.bundles.prompt_rules import PromptRules
from regionqa.bundles.store import Bundle, find_bundle
from regionqa.engine import Engine
from regionqa.errors import DataError
from regionqa.evaluation.cache import AnswerCache
from regionqa.evaluation.metrics.calibration import UncertaintyRule
from regionqa.evaluation.results import (
    Comparison,
    EvalResult,
    JudgedAnswers,
    compare_results,
    estimate_figures,
)
from regionqa.options import (
    DtypeChoice,
    EvaluationOptions,
    GenerationOptions,
    OutputFormat,
    RuntimeOptions,
)
from regionqa.pipeline.console import Console
from regionqa.pipeline.outputs import OutputSettings, error_text
from regionqa.requests import Answer, Request

Answered = Mapping[int, Answer]
"""Answers by the number of their request, those that failed left out; in order."""


@dataclass(frozen=True)
class EvalTask:
    """What is asked, and how the answers are judged."""

    requests: Callable[[PromptRules], Sequence[Request]]
    """At least one, the same number for every model; a card says how it wants to be asked."""
    judge: Callable[[Answered, UncertaintyRule], JudgedAnswers]
    """Makes figures of at least one answer."""
    settings: Mapping[str, object] = field(default_factory=dict)
    """What was chosen of asking and judging, by option, for whoever reads the figures later."""


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
    """What one model answered."""

    answered: dict[int, Answer]
    """By the number of the request."""
    failed: int
    """Requests without an answer."""
    model: str
    revision: str
    device: str
    sureness: UncertaintyRule
    """When an answer counts as not sure."""

    def measure(self, task: EvalTask, among: set[int]) -> EvalResult:
        """The figures of those answers."""
        kept = {number: answer for number, answer in self.answered.items() if number in among}
        return estimate_figures(
            task.judge(kept, self.sureness),
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
    bundles = map(find_bundle, settings.models)
    runs = [run_task(task.requests(b.card.prompt), settings, b, console) for b in bundles]
    among = set.intersection(*(set(run.answered) for run in runs))
    if not among:
        failed = max(run.failed for run in runs)
        raise DataError(f"nothing could be answered, {failed:,} failed; see above why")
    results = [run.measure(task, among) for run in runs]
    return results[0] if len(results) == 1 else compare_results(*results)


def run_task(
    requests: Sequence[Request], settings: EvalSettings, bundle: Bundle, console: Console
) -> EvalRun:
    """Ask one model everything; requests that fail are reported on the console."""
    card, runtime, variant = bundle.card, settings.runtime, settings.variant
    output = OutputSettings(
        OutputFormat.jsonl, card.name, card.revision, runtime.device, runtime.dtype
    )

    @cache
    def load() -> Engine:
        return Engine.load(
            bundle,
            device=runtime.device,
            batch_size=runtime.batch_size,
            dtype=runtime.dtype,
            quantize=runtime.quantize,
        )

    kept = AnswerCache.open(settings.evaluation.answers, output, variant)
    answers = kept.answers(load, requests, settings.generation.max_new_tokens)
    answered: dict[int, Answer] = {}
    failed = 0
    for number, answer in enumerate(console.track(answers, card.name, len(requests))):
        if answer.error is None:
            answered[number] = answer
        else:
            failed += 1
            console.error(error_text(answer))
    device = str(load().device) if load.cache_info().currsize else "kept answers"
    device = f"{device}, {variant}" if variant else device
    sureness = UncertaintyRule(card.confidence, settings.evaluation.unsure_below)
    return EvalRun(answered, failed, card.name, card.revision, device, sureness)
