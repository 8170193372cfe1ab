"""The tasks of `regionqa eval`: requests made of files, and their answers handed to be judged.

It joins what each kind of evaluation reads with how it judges; it does not ask anything itself.
"""

from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from regionqa.boxes.files import read_boxes
from regionqa.data.questions import QuestionRecord, read_questions
from regionqa.evaluation.metrics.calibration import UncertaintyRule
from regionqa.evaluation.metrics.classes import ClassNames, common_synonyms, read_synonyms
from regionqa.evaluation.metrics.meteor import meteor
from regionqa.evaluation.results import JudgedAnswers
from regionqa.evaluation.runner import Answered, EvalTask
from regionqa.evaluation.tasks import captions, recognition, vqa
from regionqa.requests import NAMING_QUESTION


def recognition_task(
    boxes: Path,
    images: Path,
    *,
    min_side: float = recognition.SMALLEST,
    question: str = NAMING_QUESTION,
    classes: Path | None = None,
    encoder: str | None = None,
    limit: int | None = None,
) -> EvalTask:
    """Every labelled box of a file, asked what it is.

    classes: a TOML file of further names and synonyms. encoder: the sentence encoder that takes
    replies for classes; None: their words do. Raises DataError where there is no box to ask about.
    """
    boxfile = read_boxes(boxes)
    asked = tuple(islice(recognition.requests(boxfile, images, min_side, question), limit))
    recognition.expect_some(asked, boxfile, min_side)
    own = read_synonyms(classes) if classes else {}
    names = list(dict.fromkeys([*recognition.class_list(boxfile), *own]))
    if encoder is None:
        mapper = recognition.by_words(ClassNames(names, common_synonyms(), own))
    else:
        from regionqa.evaluation.metrics.sentence_encoder import by_encoder

        mapper = by_encoder(names, encoder)

    def judge(answered: Answered, sureness: UncertaintyRule) -> JudgedAnswers:
        found = recognition.recognition_result(list(answered.values()), mapper, sureness)
        return recognition.judge_recognition(found)

    settings = {"boxes": str(boxes), "min_side": min_side, "question": question,
                "classes": len(names), "by": "sentence-encoder" if encoder else "words",
                "encoder": encoder, "limit": limit}  # fmt: skip
    return EvalTask(lambda rules: asked, judge, settings)


def vqa_task(
    file: Path, images: Path | None = None, *, limit: int | None = None, likelihood: bool = True
) -> EvalTask:
    """Every question of a file, and, where it has choices, once more by their likelihood."""
    questions: Sequence[QuestionRecord] = read_questions(file, images)[:limit]
    scored = [number for number, each in enumerate(questions) if each.choices] * likelihood
    asked = [each.request for each in questions]
    asked += vqa.likelihood_requests([questions[number] for number in scored])
    place = {number: len(questions) + index for index, number in enumerate(scored)}

    def judge(answered: Answered, sureness: UncertaintyRule) -> JudgedAnswers:
        return vqa.judge_vqa(
            [
                vqa.AnsweredQuestion(each, answered[number], answered.get(place.get(number, -1)))
                for number, each in enumerate(questions)
                if number in answered
            ],
            sureness,
        )

    settings = {"file": str(file), "likelihood": likelihood, "limit": limit}
    return EvalTask(lambda rules: asked, judge, settings)


def caption_task(
    file: Path, images: Path | None = None, *, limit: int | None = None, with_meteor: bool = False
) -> EvalTask:
    """Every picture or region of a file of captions, described in the words of each card."""
    folder = images or file.parent
    references = captions.read_captions(file, folder, limit)

    def judge(answered: Answered, sureness: UncertaintyRule) -> JudgedAnswers:
        known = [references[number] for number in answered]
        answers = list(answered.values())
        scores = meteor(captions.as_words(known, answers)) if with_meteor else None
        return captions.judge_captions(known, answers, scores)

    settings = {"file": str(file), "meteor": with_meteor, "limit": limit}
    return EvalTask(
        lambda rules: captions.caption_requests(references, folder, rules), judge, settings
    )
