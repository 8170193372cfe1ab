"""`eval`: models measured on the user's own data, alone or two against each other."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from regionqa.cli.eval_report import (
    SOME_FAILED,
    Answers,
    AsJson,
    Compare,
    Images,
    Limit,
    Plot,
    UnsureBelow,
    count,
    run_eval,
    screen,
)
from regionqa.cli.options import (
    EVAL,
    BatchSize,
    Debug,
    Device,
    DeviceChoice,
    Dtype,
    DtypeChoice,
    Longest,
    Model,
    Quantize,
    Quiet,
    require,
)

eval_app = typer.Typer(
    help="Measure models on your own data: how often they are right, with intervals.",
    no_args_is_help=True,
)


class ClassMatcher(StrEnum):
    """Values of --by."""

    words = "words"
    sentence_encoder = "sentence-encoder"


@eval_app.command()
def recognition(
    boxes: Annotated[
        Path,
        typer.Option("--boxes", help="Boxes with labels: COCO or any format that --boxes reads."),
    ],
    images: Images = None,
    model: Model = "starter",
    compare: Compare = None,
    min_side: Annotated[
        float, typer.Option("--min-side", min=0, help="Leave out boxes whose shorter side is less.")
    ] = 32,
    question: Annotated[str, typer.Option(help="What each box is asked.")] = "what is this?",
    by: Annotated[
        ClassMatcher,
        typer.Option(help="What takes replies for classes: their words, or a sentence encoder."),
    ] = ClassMatcher.words,
    encoder: Annotated[
        str | None,
        typer.Option(
            help="With --by sentence-encoder: a folder or OWNER/NAME; MiniLM if not said."
        ),
    ] = None,
    classes: Annotated[
        Path | None,
        typer.Option(help="TOML of further names and synonyms; see docs/guide/evaluation.md."),
    ] = None,
    answers: Answers = None,
    json: AsJson = None,
    plot: Plot = None,
    limit: Limit = None,
    unsure_below: UnsureBelow = None,
    device: Device = DeviceChoice.auto,
    dtype: Dtype = DtypeChoice.auto,
    quantize: Quantize = None,
    batch_size: BatchSize = 16,
    max_new_tokens: Longest = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> int:
    """Ask of every labelled box what it is, and count how often its class is named.

    regionqa eval recognition --boxes instances.json --images photos --plot bars.png
    """
    from regionqa.errors import UsageError

    if encoder and by is not ClassMatcher.sentence_encoder:
        raise UsageError(
            "--encoder: says what takes replies for classes; add --by sentence-encoder"
        )
    if by is ClassMatcher.sentence_encoder:
        require("eval --by sentence-encoder", "eval", EVAL)
    from regionqa.evaluation.metrics.sentence_encoder import ENCODER
    from regionqa.evaluation.tasks.build import recognition_task

    task = recognition_task(
        boxes,
        images or (boxes if boxes.is_dir() else boxes.parent),
        min_side=min_side,
        question=question,
        classes=classes,
        encoder=(encoder or ENCODER) if by is ClassMatcher.sentence_encoder else None,
        limit=limit,
    )
    return run_eval(
        task, model=model, compare=compare, answers=answers, json=json, plot=plot,
        unsure_below=unsure_below, device=device, dtype=dtype, quantize=quantize,
        batch_size=batch_size, max_new_tokens=max_new_tokens, quiet=quiet,
    )  # fmt: skip


@eval_app.command()
def vqa(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="JSON lines: training records, or requests with an answer, and perhaps choices.",
        ),
    ],
    images: Images = None,
    model: Model = "starter",
    compare: Compare = None,
    likelihood: Annotated[
        bool,
        typer.Option(
            "--likelihood/--no-likelihood",
            help="Where there are choices, also say which the model finds likeliest.",
        ),
    ] = True,
    answers: Answers = None,
    json: AsJson = None,
    plot: Plot = None,
    limit: Limit = None,
    unsure_below: UnsureBelow = None,
    device: Device = DeviceChoice.auto,
    dtype: Dtype = DtypeChoice.auto,
    quantize: Quantize = None,
    batch_size: BatchSize = 16,
    max_new_tokens: Longest = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> int:
    """Ask questions whose answers are known: yes or no, counts, choices, or any words.

    regionqa eval vqa questions.jsonl --compare starter my-model
    """
    from regionqa.evaluation.tasks.build import vqa_task

    task = vqa_task(file, images, limit=limit, likelihood=likelihood)
    return run_eval(
        task, model=model, compare=compare, answers=answers, json=json, plot=plot,
        unsure_below=unsure_below, device=device, dtype=dtype, quantize=quantize,
        batch_size=batch_size, max_new_tokens=max_new_tokens, quiet=quiet,
    )  # fmt: skip


@eval_app.command()
def caption(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="JSON lines of image, captions and perhaps regions; COCO's captions; or captions "
            "by image.",
        ),
    ],
    images: Images = None,
    model: Model = "starter",
    compare: Compare = None,
    meteor: Annotated[
        bool,
        typer.Option("--meteor", help="METEOR too, by its authors' program: Java, extra `meteor`."),
    ] = False,
    answers: Answers = None,
    json: AsJson = None,
    plot: Plot = None,
    limit: Limit = None,
    device: Device = DeviceChoice.auto,
    dtype: Dtype = DtypeChoice.auto,
    quantize: Quantize = None,
    batch_size: BatchSize = 16,
    max_new_tokens: Longest = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> int:
    """Let pictures or regions be described, and compare that with what people wrote.

    regionqa eval caption captions.json --images photos
    """
    from regionqa.evaluation.tasks.build import caption_task

    task = caption_task(file, images, limit=limit, with_meteor=meteor)
    return run_eval(
        task, model=model, compare=compare, answers=answers, json=json, plot=plot,
        unsure_below=None, device=device, dtype=dtype, quantize=quantize, batch_size=batch_size,
        max_new_tokens=max_new_tokens, quiet=quiet,
    )  # fmt: skip


@eval_app.command()
def fineeval(
    data: Annotated[
        Path, typer.Argument(metavar="DATA", help="FineEval's folder, or its fineeval.jsonl.")
    ],
    images: Images = None,
    model: Model = "starter",
    compare: Compare = None,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="The page to write, on which people rank answers.")
    ] = Path("fineeval.html"),
    ranking: Annotated[
        list[Path] | None,
        typer.Option(help="Ask nothing: count this saved ranking; repeat for more raters."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the order in which answers stand.")] = 0,
    answers: Answers = None,
    json: AsJson = None,
    plot: Plot = None,
    limit: Limit = None,
    device: Device = DeviceChoice.auto,
    dtype: Dtype = DtypeChoice.auto,
    quantize: Quantize = None,
    batch_size: BatchSize = 16,
    max_new_tokens: Longest = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> int:
    """Put a model's answers beside those of PVIT, LLaVA, Shikra and GPT4RoI, for people to rank.

    regionqa eval fineeval DATA --out page.html

    regionqa eval fineeval DATA --ranking saved.json
    """
    from regionqa.errors import UsageError
    from regionqa.evaluation.fineeval.questions import read_fineeval

    if ranking:
        return count(read_fineeval(data, images), ranking, json, plot)
    if json or plot:
        raise UsageError("--json and --plot tell what rankings come to; add --ranking FILE")
    from regionqa.evaluation.fineeval.page import make_page
    from regionqa.evaluation.runner import EvalSettings

    how = EvalSettings(
        compare or (model,), str(device), str(dtype), quantize and str(quantize), batch_size,
        max_new_tokens, answers=answers,
    )  # fmt: skip
    failed = make_page(out, read_fineeval(data, images, limit), how, screen(quiet), seed)
    print(out)
    return SOME_FAILED if failed else 0
