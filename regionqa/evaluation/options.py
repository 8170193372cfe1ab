"""Options that the commands of `eval` share."""

from dataclasses import dataclass
from pathlib import Path

from regionqa.flags import Reads, Section, Writes, option
from regionqa.options import ImageFolderOptions


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class EvaluationOptions(ImageFolderOptions):
    """What the commands of `eval` share."""

    compare: tuple[str, str] | None = option(
        None,
        "Compare two models instead of --model: results of both, and the difference.",
        metavar="A B",
        section=Section.model,
        excludes=("model",),
        role=Reads.model,
    )
    answers: Path | None = option(
        None,
        "Cache answers in this JSON-lines file; answers it holds are not generated again.",
        section=Section.result,
        role=Writes.cache,
    )
    json: Path | None = option(
        None, "Write the results as JSON.", section=Section.result, role=Writes.results
    )
    plot: Path | None = option(
        None,
        "Plot the results: a .png, .svg or .pdf.",
        section=Section.result,
        role=Writes.plot,
    )
    limit: int | None = option(
        None,
        "Number of items to evaluate; the first ones are taken.",
        section=Section.result,
        min=1,
    )
    unsure_below: float | None = option(
        None,
        "Confidence below which an answer counts as not sure. Default: the model's.",
        section=Section.result,
        min=0,
        max=1,
    )
