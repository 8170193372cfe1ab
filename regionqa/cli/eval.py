"""`eval`: evaluate models on your own data, and compare two."""

from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from regionqa.cli.eval_report import (
    MeasuredWays,
    report_rankings,
    run_eval,
    run_ways,
    show,
)
from regionqa.cli.options import DETECTION, EVAL, DetectorName, only, require, with_options, without
from regionqa.errors import SOME_FAILED, UsageError
from regionqa.evaluation.options import EvaluationOptions
from regionqa.flags import Options, Reads, Section, Writes, flag, option
from regionqa.options import (
    BoxOptions,
    GenerationOptions,
    OutputOptions,
    RuntimeOptions,
)

eval_app = typer.Typer(
    help="Evaluate models on your own data, with confidence intervals.", no_args_is_help=True
)
WithoutThreshold = Annotated[EvaluationOptions, without("unsure_below")]
ScaleBoxes = Annotated[BoxOptions, only("scale_boxes")]
MaxNewTokens = Annotated[GenerationOptions, only("max_new_tokens")]
Output = Annotated[OutputOptions, only("quiet", "overwrite")]


ASKING = (
    *("out", "seed", "model", "compare", "answers", "limit", "device", "dtype", "quantize"),
    *("batch_size", "max_new_tokens"),
)
"""Options of `eval fineeval` that say how and what models are asked."""


class ClassMatcher(StrEnum):
    """How an answer is matched to a class."""

    words = "words"
    sentence_encoder = "sentence-encoder"


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class RecognitionOptions(Options):
    """Options of `eval recognition` alone."""

    boxes: Path = field(
        metadata=flag(
            "Boxes with labels: COCO, or any other format that `ask --boxes` reads.",
            role=Reads.data,
        )
    )
    min_side: float = option(
        32, "Minimum length of a box's shorter side, in pixels.", section=Section.method, min=0
    )
    question: str = option(
        "what is this?", "Question to ask about each box.", section=Section.method
    )
    by: ClassMatcher = option(
        ClassMatcher.words,
        "How answers are matched to classes: by their words, or by a sentence encoder.",
        section=Section.method,
    )
    encoder: str | None = option(
        None,
        "With --by sentence-encoder: a folder, or OWNER/NAME on the Hub. Default: MiniLM.",
        section=Section.method,
        role=Reads.model,
    )
    classes: Path | None = option(
        None,
        "TOML file of further names and synonyms; see docs/guide/evaluation.md.",
        section=Section.method,
        role=Reads.data,
    )

    def check(self) -> None:
        """Refuse an encoder that would not be used."""
        if self.encoder and self.by is not ClassMatcher.sentence_encoder:
            raise UsageError("--encoder: needs --by sentence-encoder")


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class VqaOptions(Options):
    """Options of `eval vqa` alone."""

    likelihood: bool = option(
        True,
        "For questions with choices, also report the choice of highest likelihood.",
        "--likelihood/--no-likelihood",
        section=Section.method,
    )


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class CaptionOptions(Options):
    """Options of `eval caption` alone."""

    boxes: Path | None = option(
        None,
        "Labelled boxes of the images, to count objects in captions that are not there (CHAIR).",
        section=Section.method,
        role=Reads.data,
    )
    meteor: bool = option(
        False,
        "Also compute METEOR, with its authors' program; needs Java and the extra `meteor`.",
        section=Section.method,
    )


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class FineEvalOptions(Options):
    """Options of `eval fineeval` alone."""

    out: Path = option(
        Path("fineeval.html"),
        "HTML page to write, on which people rank the answers.",
        "--out",
        "-o",
        section=Section.method,
        role=Writes.results,
        unless="ranking",
    )
    ranking: tuple[Path, ...] = option(
        (),
        "Report this saved ranking instead of asking; repeat for several raters.",
        section=Section.method,
        excludes=ASKING,
        role=Reads.data,
    )
    seed: int = option(0, "Random seed for the order of the answers.", section=Section.method)


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class WaysOptions(Options):
    """Comparison of ways of telling regions."""

    ways: str | None = option(
        None,
        "Compare ways of telling a vision-language model the regions: all, or several of its own.",
        metavar="A,B,...",
        section=Section.model,
        excludes=("way",),
    )
    write_card: Path | None = option(
        None,
        "Write the model's card with the best way as its default: a card.toml.",
        section=Section.result,
        needs=("ways",),
        role=Writes.results,
    )


@eval_app.command()
@with_options
def recognition(
    *,
    task: RecognitionOptions,
    boxes: ScaleBoxes,
    ways: WaysOptions,
    runtime: RuntimeOptions,
    evaluation: EvaluationOptions,
    generation: MaxNewTokens,
    output: Output,
) -> int:
    """Ask what each labelled box is, and count how often the answer names its class.

    regionqa eval recognition --boxes instances.json --images photos --plot bars.png
    """
    with_encoder = task.by is ClassMatcher.sentence_encoder
    if with_encoder:
        require("eval --by sentence-encoder", "eval", EVAL)
    from regionqa.evaluation.metrics.classes import ENCODER
    from regionqa.evaluation.tasks.recognition import RecognitionTask

    built = RecognitionTask(
        task.boxes,
        evaluation.images,
        min_side=task.min_side,
        question=task.question,
        classes=task.classes,
        encoder=(task.encoder or ENCODER) if with_encoder else None,
        limit=evaluation.limit,
        scale_boxes=boxes.scale_boxes,
    )
    if ways.ways:
        measured = MeasuredWays(ways.ways, ways.write_card, task.boxes)
        return run_ways(built, measured, runtime, generation, evaluation, output)
    return run_eval(built, runtime, generation, evaluation, output)


@eval_app.command()
@with_options
def detection(
    model: DetectorName = None,
    *,
    task: Annotated[RecognitionOptions, only("boxes")],
    boxes: ScaleBoxes,
    runtime: Annotated[RuntimeOptions, only("device", "vision_runtime")],
    evaluation: Annotated[EvaluationOptions, only("images", "json", "limit")],
    output: Output,
) -> int:
    """Detect objects, and compare their boxes with labelled ones by average precision.

    regionqa eval detection --boxes instances.json --images photos --model rtdetrv2-r18
    """
    require("eval detection", "detect", DETECTION)
    from regionqa.evaluation.detection import evaluate_detector
    from regionqa.evaluation.report import write_json
    from regionqa.pipeline.console import Console

    with Console(quiet=output.quiet) as console:
        result = evaluate_detector(
            model or "",
            task.boxes,
            evaluation.images,
            runtime=runtime,
            limit=evaluation.limit,
            scale_boxes=boxes.scale_boxes,
            track=lambda images: console.track(images, "images"),
        )
        for line in result.failed:
            console.error(line)
        for line in result.remarks:
            console.warn(line)
    show(result.tables())
    if evaluation.json:
        write_json(evaluation.json, result.document())
    return SOME_FAILED if result.failed else 0


@eval_app.command()
@with_options
def vqa(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="JSON lines: training records, or requests with an answer and optional choices.",
        ),
        Reads.data,
    ],
    *,
    task: VqaOptions,
    ways: WaysOptions,
    runtime: RuntimeOptions,
    evaluation: EvaluationOptions,
    generation: MaxNewTokens,
    output: Output,
) -> int:
    """Ask questions with known answers: yes or no, counts, choices, or free text.

    regionqa eval vqa questions.jsonl --compare starter my-model
    """
    from regionqa.evaluation.tasks.vqa import VqaTask

    built = VqaTask(file, evaluation.images, limit=evaluation.limit, likelihood=task.likelihood)
    if ways.ways:
        measured = MeasuredWays(ways.ways, ways.write_card, file)
        return run_ways(built, measured, runtime, generation, evaluation, output)
    return run_eval(built, runtime, generation, evaluation, output)


@eval_app.command()
@with_options
def caption(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="JSON lines of image, captions and optional regions; COCO captions; or a JSON "
            "object of captions by image.",
        ),
        Reads.data,
    ],
    *,
    task: CaptionOptions,
    runtime: RuntimeOptions,
    evaluation: WithoutThreshold,
    generation: MaxNewTokens,
    output: Output,
) -> int:
    """Describe images or regions, and compare the captions with reference captions.

    regionqa eval caption captions.json --images photos
    """
    from regionqa.evaluation.tasks.captions import CaptionTask

    built = CaptionTask(
        file,
        evaluation.images,
        limit=evaluation.limit,
        with_meteor=task.meteor,
        boxes=task.boxes,
    )
    return run_eval(built, runtime, generation, evaluation, output)


@eval_app.command()
@with_options
def fineeval(
    data: Annotated[
        Path,
        typer.Argument(metavar="DATA", help="Folder of FineEval, or its fineeval.jsonl."),
        Reads.data,
    ],
    *,
    task: FineEvalOptions,
    runtime: RuntimeOptions,
    evaluation: WithoutThreshold,
    generation: MaxNewTokens,
    output: Output,
) -> int:
    """Put a model's answers beside those of PVIT, LLaVA, Shikra and GPT4RoI for people to rank.

    regionqa eval fineeval DATA --out page.html

    regionqa eval fineeval DATA --ranking saved.json
    """
    from regionqa.evaluation.fineeval.questions import read_fineeval

    if task.ranking:
        questions = read_fineeval(data, evaluation.images)
        return report_rankings(questions, task.ranking, evaluation)
    if evaluation.json or evaluation.plot:
        raise UsageError("--json and --plot: need rankings to report; add --ranking FILE")
    from regionqa.evaluation.fineeval.page import make_page
    from regionqa.evaluation.runner import EvalSettings
    from regionqa.pipeline.console import Console

    questions = read_fineeval(data, evaluation.images, evaluation.limit)
    settings = EvalSettings(runtime, generation, evaluation)
    with Console(quiet=output.quiet) as console:
        failed = make_page(task.out, questions, settings, console, task.seed)
    print(task.out)
    return SOME_FAILED if failed else 0
