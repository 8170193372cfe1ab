"""The probe's table: right answers by way and kind of image."""

from collections.abc import Sequence

from regionqa.evaluation.probe.images import SIZES
from regionqa.evaluation.probe.run import ProbeOutcome
from regionqa.evaluation.report import Table


def probe_table(model: str, outcomes: Sequence[ProbeOutcome]) -> Table:
    """Return the table of a probe; cells are percent of right answers."""
    questions = len(outcomes[0].items)
    rows = tuple(
        (
            str(outcome.way or "its own"),
            f"{100 * outcome.right:.0f}",
            *(f"{100 * outcome.right_in(kind):.0f}" for kind in SIZES),
            str(outcome.failed),
        )
        for outcome in outcomes
    )
    title = f"probe of {model}: percent right of {questions} questions in each way"
    return Table(title, ("way", "all", *SIZES, "failed"), rows)
