"""`history` of requests: turns of a conversation, as `regionqa chat` asks them."""

from pathlib import Path

import pytest

from helpers.serve.apps import answers, ask, asked_by, served
from regionqa.errors import LengthError

BOX = [1, 2, 5, 7]

HISTORY = [
    {"question": "what is it?", "answer": "a cat", "regions": 1},
    {"question": "and <region2>?", "answer": "a dog", "regions": 2},
]


def test_follow_up_turns_of_a_model_with_memory(colours: Path) -> None:
    with served(colours, multi_turn=True) as app:
        found = asked_by(app)
        ask(app, regions=[BOX] * 3, history=HISTORY)
        (request,) = found
        assert [(t.question, t.answer, t.regions) for t in request.history] == [
            ("what is it?", "a cat", 1),
            ("and <region2>?", "a dog", 2),
        ]
        assert len(request.regions) == 3


@pytest.mark.parametrize(
    ("regions", "question", "sent", "kept"),
    [
        (2, "and now?", "and now?", [2]),  # about that of the turn before
        (3, "and now?", "and now?", [3]),  # about the new one
        (3, "is <region1> on <region3>?", "is <region1> on <region2>?", [1, 3]),
    ],
)
def test_follow_up_turns_of_a_model_without_memory(
    colours: Path, regions: int, question: str, sent: str, kept: list[int]
) -> None:
    """Each question is about the regions it names, as in `regionqa chat`."""
    boxes = [[n, n, n + 2, n + 2] for n in (1, 2, 3)]
    with served(colours, multi_turn=False) as app:
        found = asked_by(app)
        ask(app, regions=boxes[:regions], question=question, history=HISTORY)
        (request,) = found
        assert (request.question, request.history) == (sent, ())
        assert [region.box.x0 for region in request.regions] == kept


def test_the_first_turn_of_a_model_without_memory_is_about_the_regions_it_names(
    colours: Path,
) -> None:
    boxes = [[n, n, n + 2, n + 2] for n in range(5)]
    body = {"regions": boxes, "question": "what is <region4>?"}
    with served(colours, multi_turn=False, max_regions=3) as app:
        assert answers(app, **body, history=[]) == ["red: 3,3,5,5"]
        alone = app.client().post("/v1/answers", json={"image": "red.png"} | body)
        assert "5 regions in one question" in alone.json()["error"]


def test_histories_that_do_not_fit(colours: Path) -> None:
    with served(colours) as app:
        client = app.client()
        body = {"image": "red.png", "question": "?", "history": HISTORY}
        few = client.post("/v1/answers", json=body | {"regions": [BOX]})
        assert few.status_code == 422
        assert "the history has 2 regions, and the request 1" in few.json()["error"]
        turned = client.post("/v1/answers", json=body | {"history": HISTORY[::-1]})
        assert "'regions' never decreases" in turned.json()["error"]


def test_a_conversation_that_is_too_long(colours: Path) -> None:
    with served(colours) as app:
        app.backend.script = lambda request: LengthError("too long")
        sent = app.client().post("/v1/answers", json={
            "image": "red.png", "question": "?", "regions": [BOX] * 2, "history": HISTORY,
        })  # fmt: skip
        assert sent.json()["error"] == "too long; or begin a new conversation"
