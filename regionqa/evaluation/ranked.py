"""From FineEval and models to the page: asks every model, and puts its answers beside the others.

Puts the parts together; it does not parse a command line, nor print.
"""

from pathlib import Path

from regionqa.bundles import find_bundle
from regionqa.evaluation.fineeval import FineEval, fineeval_requests, with_answers
from regionqa.evaluation.page import write_page
from regionqa.evaluation.running import How, Screen, run


def make_page(out: Path, data: FineEval, how: How, screen: Screen, seed: int) -> int:
    """Write the page; how many questions a model has failed to answer, which stand without it.

    Raises DataError where two systems have one name, and the errors of loading and writing.
    """
    bundles = [find_bundle(model) for model in how.models]
    with_answers(data, [(bundle.card.name, [None] * len(data.items)) for bundle in bundles])
    answers, failed = [], 0
    for bundle in bundles:
        requests = fineeval_requests(data, bundle.card.prompt.region_input)
        done = run(requests, how, bundle, screen)
        failed += done.failed
        texts = [
            done.answered[row].text if row in done.answered else None
            for row in range(len(requests))
        ]
        answers.append((bundle.card.name, texts))
    write_page(out, data, with_answers(data, answers), seed)
    return failed
