"""From a task and models to results: asks, keeps answers, judges, measures, compares.

    evaluate(recognition_task(...), How(models=("starter",)), ...)

Puts the parts together. It does not parse a command line, nor print.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

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
from regionqa.pipeline.outputs import OutputFormat, OutputSettings, error_text
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

    models: tuple[str, ...] = ("starter",)
    """One, or two to be compared: shipped names or bundles' folders."""
    device: str = "auto"
    """auto, cpu or cuda."""
    dtype: str = "auto"
    """auto, float32, float16 or bfloat16."""
    quantize: str | None = None
    """8bit or 4bit; None: every weight in `dtype`."""
    batch_size: int = 16
    """Questions decoded together."""
    max_new_tokens: int | None = None
    """Longest answer; None: what each card says."""
    unsure_below: float | None = None
    """The probability below which a model is not sure; None: what each card says."""
    answers: Path | None = None
    """A file in which answers are kept, and from which they are taken; None: none."""

    @property
    def variant(self) -> str:
        """The precision, where it was chosen; empty where it was not."""
        dtype = "" if self.dtype == "auto" else self.dtype
        return " ".join(filter(None, (dtype, self.quantize)))


@dataclass(frozen=True)
class EvalProgress:
    """What the user sees meanwhile."""

    error: Callable[[str], None]
    """Takes the line for an item that failed."""
    follow: Callable[[Iterator[Answer], int, str], Iterable[Answer]]
    """Passes the answers on, of which there will be so many, by the model of this name."""


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
    task: EvalTask, how: EvalSettings, screen: EvalProgress
) -> EvalResult | Comparison:
    """One model measured, or two compared on what both have answered.

    Raises DataError where nothing could be answered, and the errors of loading models.
    """
    bundles = map(find_bundle, how.models)
    runs = [run_task(task.requests(b.card.prompt), how, b, screen) for b in bundles]
    among = set.intersection(*(set(run.answered) for run in runs))
    if not among:
        failed = max(run.failed for run in runs)
        raise DataError(f"nothing could be answered, {failed:,} failed; see above why")
    results = [run.measure(task, among) for run in runs]
    return results[0] if len(results) == 1 else compare_results(*results)


def run_task(
    requests: Sequence[Request], how: EvalSettings, bundle: Bundle, screen: EvalProgress
) -> EvalRun:
    """Ask one model everything; what cannot be answered is said on the screen."""
    card = bundle.card
    settings = OutputSettings(OutputFormat.jsonl, card.name, card.revision, how.device, how.dtype)

    @cache
    def load() -> Engine:
        return Engine.load(
            bundle,
            device=how.device,
            batch_size=how.batch_size,
            dtype=how.dtype,
            quantize=how.quantize,
        )

    kept = AnswerCache.open(how.answers, settings, how.variant)
    answers = kept.answers(load, requests, how.max_new_tokens)
    answered: dict[int, Answer] = {}
    failed = 0
    for number, answer in enumerate(screen.follow(answers, len(requests), card.name)):
        if answer.error is None:
            answered[number] = answer
        else:
            failed += 1
            screen.error(error_text(answer))
    device = str(load().device) if load.cache_info().currsize else "kept answers"
    device = f"{device}, {how.variant}" if how.variant else device
    sureness = UncertaintyRule(card.confidence, how.unsure_below)
    return EvalRun(answered, failed, card.name, card.revision, device, sureness)
