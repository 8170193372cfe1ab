"""Scripted replies for `data generate`, and annotations to generate from."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from helpers.vlm.chat_server import AskedChat
from regionqa.generation.prompts import TASKS

Spoil = Callable[[Any], str]
"""Makes a reply faulty."""
NUMBERED = re.compile(r"^(\d+)\. ", re.MULTILINE)


def form_of(asked: AskedChat) -> str:
    """The form of the reply that a request wants."""
    return str(asked.body["response_format"]["json_schema"]["name"])


def size_of(asked: AskedChat) -> str:
    """The size of the image that a request is about, which tells images apart."""
    found = re.search(r"The image is (\d+ x \d+)", asked.question)
    assert found
    return found[1]


def kind_of(asked: AskedChat) -> str:
    """The kind of a request, by its system text."""
    system = asked.body["messages"][0]["content"]
    found = [str(kind) for kind, text in TASKS.items() if text in system]
    return found[0] if found else form_of(asked)


def write_reply(asked: AskedChat) -> Any:
    """A faultless reply of the form that a request wants."""
    target = re.search(r"names at least one of these: <region(\d+)>", asked.question)
    number = target[1] if target else "1"
    about = f"{kind_of(asked)} of {size_of(asked)}"
    match form_of(asked):
        case "pair":
            return {"question": f"What is <region{number}> here, for {about}?",
                    "answer": f"It shows {about}."}  # fmt: skip
        case "pairs":
            names = ("Where", "Why", "How")
            return {"pairs": [{"question": f"{word} is <region1>?", "answer": f"{word} {about}."}
                              for word in names]}  # fmt: skip
        case "questions":
            return {"questions": ["What is <region1> up to?", "And why does <region2> look so?",
                                  "Which of <region2> and <region1> is left?"]}  # fmt: skip
        case "answers":
            answers = {3: "The second one is further left.", 1: "It is doing nothing at all."}
            return {"answers": [{"number": n, "answer": text} for n, text in answers.items()]}
    verdicts = [{"number": int(number), "reason": "it is known", "follows": True}
                for number in NUMBERED.findall(asked.question)]  # fmt: skip
    return {"verdicts": verdicts}


def scripted(asked: AskedChat) -> str:
    """`write_reply` as text."""
    return json.dumps(write_reply(asked))


def instances(folder: Path, count: int, names: Sequence[str] = ("dog", "dog", "ball")) -> Path:
    """COCO instances: images of different sizes, each with a box per name."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    categories = {name: number for number, name in enumerate(dict.fromkeys(names), 1)}
    for number in range(count):
        name = f"{number:03}.png"
        Image.new("RGB", (100 + number, 50)).save(folder / name)
        images.append({"id": number, "file_name": name})
        for place, label in enumerate(names):
            box = [10 * place, 5, 8 + place, 9 + place]
            annotations.append({"id": len(annotations), "image_id": number, "bbox": box,
                                "category_id": categories[label]})  # fmt: skip
    known = [{"id": number, "name": name} for name, number in categories.items()]
    document = {"images": images, "annotations": annotations, "categories": known}
    path = folder / "instances.json"
    path.write_text(json.dumps(document))
    return path


def replacing(faulty: Mapping[str, Spoil]) -> Callable[[AskedChat], str]:
    """Replies that are spoiled by the image's width and the kind, like `"103 small"`."""

    def answer(asked: AskedChat) -> str:
        reply = write_reply(asked)
        spoil = faulty.get(f"{size_of(asked).split()[0]} {kind_of(asked)}")
        return json.dumps(reply) if spoil is None else spoil(reply)

    return answer
