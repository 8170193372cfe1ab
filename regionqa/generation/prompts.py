"""What a language model is asked: system texts, few-shot examples and the annotations."""

import json
import random
import tomllib
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any

from regionqa.generation.annotations import AnnotatedImage, annotation_text
from regionqa.generation.options import GenerationKind
from regionqa.generation.tasks import GenerationTask

ChatMessage = Mapping[str, str]
"""A message of the protocol: role and content."""
Turns = Sequence[tuple[str, str]]
"""Questions and answers with references to the objects of an image."""
SHOWN = 4
"""Most examples in a prompt, drawn for each task."""
COMMON = (
    "You write training data for a model that looks at images. You do not see the image: all that "
    "you know are the annotations in the message, a list of objects with their boxes, and facts. "
    "Write as somebody who looks at the image. Never mention annotations, facts, lists, boxes or "
    "numbers of boxes in words, and never write coordinates. <region3> stands for the third object "
    "of the list; name an object in a question in this way only, and name only objects that are "
    "listed. Answers name no <region...>; they describe the object in words instead."
)
SURE = (
    "Ask only what the annotations settle, and answer nothing that they do not. The answer is a "
    "whole sentence or several, and gives the reason where there is one."
)
TASKS = {
    GenerationKind.small: (
        "Write one demanding question about one of the small objects that the message names, and "
        "its detailed answer. The question must need a look at that object, not just at the scene."
    ),
    GenerationKind.relations: (
        "Write one demanding question about how two or more objects stand to each other, in space "
        "or by what they do, and its detailed answer. The question names at least one of them by "
        "its <region...>."
    ),
    GenerationKind.text: (
        "Write one demanding question about text that can be read in the image, or about what "
        "follows from it, and its detailed answer. The question does not quote the text itself."
    ),
    GenerationKind.attributes: (
        "Write one demanding question about attributes of an object: colour, material, shape, "
        "state, pattern, action; and its detailed answer. The question does not give the attribute "
        "away."
    ),
    GenerationKind.category: (
        "Several objects of the image have the same name; the message lists them. Write one "
        "demanding question that singles out one of them or compares them, and its detailed "
        "answer, by which that object can be told from the others."
    ),
    GenerationKind.general: (
        "Write three different questions about the scene and their answers. Every question names "
        "at least one object by its <region...>. Vary what is asked: what things are, what they "
        "do, where they are, how many there are, how they belong together, what may come next."
    ),
}
"""What each kind with one request asks for."""
ASK_SEVERAL = (
    "Write a conversation's questions, at least three and at most five, in the order of asking. "
    "1. Every question names at least one object by its <region...>. 2. At least one is about how "
    "objects stand to each other. 3. Together they cover as many of the objects as they can. 4. "
    "They begin with different question words. 5. The first can be answered in at most 20 words, "
    "the last may need up to 100. 6. At least one of them has two parts."
)
ANSWER_SEVERAL = (
    "The message also holds numbered questions. Answer three or four of them in natural language, "
    "each by its number, from the annotations alone; leave out those that these do not settle. "
    "Prefer long answers that explain."
)
JUDGE = (
    "You check training data for a model that looks at images. The message holds all annotations "
    "of an image (objects with boxes, and facts) and numbered questions with answers. <region3> "
    "stands for the third object of the list. Decide for each answer whether it follows from the "
    "annotations, given common sense. It does not if it states a colour, an action, a number, a "
    "text or anything else that nothing there supports, if it is about another object than the "
    "question names, or if the question itself assumes what is not there. Judge every number "
    "once; give the reason first, in a few words."
)
FORMS = {
    "pair": '{"question": "...", "answer": "..."}',
    "pairs": '{"pairs": [{"question": "...", "answer": "..."}, ...]}',
    "questions": '{"questions": ["...", ...]}',
    "answers": '{"answers": [{"number": 1, "answer": "..."}, ...]}',
    "verdicts": '{"verdicts": [{"number": 1, "reason": "...", "follows": true}, ...]}',
}
"""Replies as a prompt shows them, by the names of `regionqa.generation.replies.FORMS`."""


@cache
def examples() -> dict[str, Any]:
    """Return the scenes and examples of examples.toml."""
    content = files("regionqa.generation").joinpath("examples.toml").read_text(encoding="utf-8")
    return tomllib.loads(content)


def scene_text(name: str) -> str:
    """Render the annotations of an example's scene."""
    scene = examples()["scenes"][name]
    objects = [(label, f"[{', '.join(map(str, box))}]") for label, box in scene["objects"]]
    return annotation_text(scene["size"], objects, scene["facts"])


def system_message(*texts: str, form: str) -> ChatMessage:
    """Return the system message of a request whose reply has a form of `FORMS`."""
    reply = f"Reply with JSON of this form and nothing else: {FORMS[form]}"
    return {"role": "system", "content": "\n\n".join([COMMON, *texts, reply])}


def single_messages(task: GenerationTask) -> list[ChatMessage]:
    """Return the messages of a kind that one request settles."""
    kind = task.kind
    is_general = kind is GenerationKind.general
    messages = [system_message(TASKS[kind], SURE, form="pairs" if is_general else "pair")]
    for example in _drawn(task):
        if is_general:
            pairs = [{"question": q, "answer": a} for q, a in example["pairs"]]
            reply: dict[str, Any] = {"pairs": pairs}
        else:
            reply = {"question": example["question"], "answer": example["answer"]}
        messages += _shown(scene_text(example["scene"]), reply)
    return [*messages, _user(task_text(task))]


def question_messages(task: GenerationTask) -> list[ChatMessage]:
    """Return the messages of the first request of a conversation, which writes its questions."""
    messages = [system_message(ASK_SEVERAL, form="questions")]
    for example in _drawn(task):
        messages += _shown(scene_text(example["scene"]), {"questions": example["questions"]})
    return [*messages, _user(task_text(task))]


def answer_messages(task: GenerationTask, questions: Sequence[str]) -> list[ChatMessage]:
    """Return the messages of the second request of a conversation, which answers questions."""
    messages = [system_message(ANSWER_SEVERAL, SURE, form="answers")]
    for example in _drawn(task):
        reply = [{"number": n, "answer": text} for n, text in enumerate(example["answers"], 1)]
        messages += _shown(
            f"{scene_text(example['scene'])}\n{_numbered(example['questions'])}", {"answers": reply}
        )
    return [*messages, _user(f"{task.image.text}\n{_numbered(questions)}")]


def judge_messages(image: AnnotatedImage, turns: Turns) -> list[ChatMessage]:
    """Return the messages that ask whether answers follow from the annotations."""
    lines = [f"{n}. Question: {q}\n   Answer: {a}" for n, (q, a) in enumerate(turns, 1)]
    reply = f"Reply with JSON of this form and nothing else: {FORMS['verdicts']}"
    return [
        {"role": "system", "content": f"{JUDGE}\n\n{reply}"},
        _user("\n".join([image.text, *lines])),
    ]


def task_text(task: GenerationTask) -> str:
    """Render the annotations of a task, and the objects it is about."""
    lines = [task.image.text]
    if task.targets:
        named = ", ".join(f"<region{number}>" for number in task.targets)
        lines.append(f"The question names at least one of these: {named}")
    return "\n".join(lines)


def _drawn(task: GenerationTask) -> list[Any]:
    """Examples of a kind: all if they are few, else some drawn by the task's seed."""
    known = examples()[task.kind]
    return random.Random(task.seed).sample(known, min(SHOWN, len(known)))


def _shown(text: str, reply: Mapping[str, Any]) -> list[ChatMessage]:
    """Return an example as two messages."""
    content = json.dumps(reply, ensure_ascii=False)
    return [_user(text), {"role": "assistant", "content": content}]


def _user(text: str) -> ChatMessage:
    return {"role": "user", "content": text}


def _numbered(questions: Sequence[str]) -> str:
    lines = [f"{number}. {question}" for number, question in enumerate(questions, 1)]
    return "\n".join(["Questions:", *lines])
