"""`POST /v1/answers`: requests, options, conversations, events."""

import json
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from helpers.serve.apps import PATIENCE, answers, ask, asked_by, events, records, served
from regionqa.backends.base import Completion
from regionqa.errors import BundleError, QuestionError
from regionqa.requests import Request
from regionqa.serve.options import ServeLimits

if TYPE_CHECKING:
    from conftest import Command

BOX = [1, 2, 5, 7]


# -- records ---------------------------------------------------------------------------------------


def test_answers_are_records_of_ask(
    regionqa: "Command", toy: Path, colours: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(colours)
    ran = regionqa("ask", "red.png", "--box", "1,2,5,7", "what is <region1>?", "--format", "json",
                   "--model", toy, "--confidence", "--device", "cpu")  # fmt: skip
    (record,) = json.loads(ran.out)
    with served(colours) as app:
        (sent,) = records(app, question="what is <region1>?", regions=[BOX])
    assert list(sent) == list(record)
    own = {"model": "toy", "revision": "1", "device": "toy", "dtype": "none", "ms": sent["ms"]}
    assert sent == record | own
    assert sent["answer"] == "red: 1,2,5,7"
    assert sent["ms"] >= 0


def test_several_requests_with_their_own_names(colours: Path) -> None:
    with served(colours) as app:
        sent = app.client().post(
            "/v1/answers",
            json={
                "requests": [
                    {"image": "red.png", "question": "a", "id": 1, "meta": {"k": [1]}},
                    {"image": "gone.png", "question": "b", "id": "two"},
                    {"image": "blue.png", "question": "c", "regions": [{"box": BOX, "label": "x"}]},
                ]
            },
        )
        first, second, third = sent.json()["answers"]
        assert sent.status_code == 200
        assert (first["answer"], first["id"], first["meta"]) == ("red: all of it", 1, {"k": [1]})
        assert (second["answer"], second["id"]) == (None, "two")
        assert second["error"] == "gone.png: no such image here; GET /v1/images lists them"
        assert third["regions"] == [{"id": 1, "box": BOX, "label": "x"}]


def test_captions_of_all_regions_and_of_the_image(colours: Path) -> None:
    with served(colours) as app:
        body = {"image": "red.png", "caption": True}
        sent = app.client().post("/v1/answers", json=body | {"regions": [BOX, [0, 0, 4, 4]]}).json()
        assert [r["answer"] for r in sent["answers"]] == ["red: 1,2,5,7", "red: 0,0,4,4"]
        assert {r["question"] for r in sent["answers"]} == {"what colour is <region1>?"}
        (whole,) = app.client().post("/v1/answers", json=body).json()["answers"]
        assert whole["question"] == "what colour is the image?"
        assert answers(app, each=True, regions=[BOX, BOX]) == ["red: 1,2,5,7"] * 2


def test_boxes_in_every_convention(colours: Path) -> None:
    with served(colours) as app:
        fraction = {"regions": [[0.25, 0.25, 0.5, 0.5]], "box_units": "fraction"}
        assert answers(app, **fraction) == ["red: 2,2,4,4"]
        assert answers(app, **fraction, box_format="xywh") == ["red: 2,2,6,6"]
        inline = "what is <Region><L250><L250><L500><L500></Region>?"
        assert answers(app, question=inline) == ["red: 2,2,4,4"]


def test_clipped_boxes_are_told(colours: Path) -> None:
    with served(colours) as app:
        sent = ask(app, regions=[[4, 4, 80, 8]])
        assert sent["warnings"] == [
            "red.png: box 4,4,80,8 reaches outside 8 x 8: clipped to 4,4,8,8"
        ]


def test_choices(colours: Path) -> None:
    with served(colours) as app:
        app.backend.scores = {"yes": -3.0, "no": -1.0}
        assert answers(app, choices=["yes", "no"]) == ["no"]


def test_generation_options(colours: Path) -> None:
    with served(colours) as app:
        assert answers(app, max_new_tokens=1, temperature=0.5, seed=3) == ["red:"]
        assert app.backend.samplings[-1].temperature == 0.5
        assert answers(app, unsure_below=0.9) == ["I am not sure."]
        assert answers(app, unsure_below=0.9, guess=False) == ["I am not sure."]
        assert answers(app, guess=True) == ["red: all of it"]


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({"image": "gone.png"}, 404, "gone.png: no such image here"),
        ({"image": 3}, 422, "'image' is 3; write a name"),
        ({"question": ""}, 422, "no question"),
        ({"question": ["a"]}, 422, "'question' is ['a']; write text"),
        ({"question": "\ud800"}, 422, "the question is not valid text"),
        ({"regions": [[1, 2, 3]]}, 422, "four numbers are expected, 3 values found"),
        ({"regions": [[1, 2, 1, 9]]}, 422, "has no area"),
        ({"regions": [[90, 90, 99, 99]]}, 422, "lies outside the image"),
        ({"regions": "all"}, 422, "'regions' is 'all'; write a list"),
        ({"prompt": "what?"}, 422, "unknown key 'prompt'; did you mean 'question'?"),
        ({"choices": ["one"]}, 422, "'choices' are at least two texts"),
        ({"max_new_tokens": 0}, 422, "--max-new-tokens 0: must be 1 or more"),
        ({"max_new_tokens": 10**9}, 422, "must be 4096 or less"),
        ({"max_new_tokens": "9"}, 422, "Expected `int | null`, got `str` - at `$.max_new_tokens`"),
        ({"temperature": -1}, 422, "--temperature -1: must be 0 or more"),
        ({"guess": True, "unsure_below": 0.5}, 422, "drop one"),
        ({"way": "nowhere"}, 422, "Invalid enum value 'nowhere' - at `$.way`"),
        ({"model": "other"}, 409, "other: is not loaded, toy is"),
        ({"stream": "yes"}, 422, "Expected `bool`, got `str`"),
        ({"requests": []}, 422, "stands beside 'requests'"),
        ({"schema": "/etc/passwd"}, 422, "unknown key 'schema'"),
        ({"history": [{"question": "a"}]}, 422, "history: Object missing required field `answer`"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told(
    colours: Path, body: dict[str, object], status: int, message: str
) -> None:
    with served(colours) as app:
        for stream in ({}, {"stream": True}):
            content = json.dumps({"image": "red.png", "question": "what?"} | stream | body)
            sent = app.client(content_type="application/json").post("/v1/answers", content=content)
            assert sent.status_code == status
            assert message in sent.json()["error"]
            assert "\n" not in sent.json()["error"]


@pytest.mark.parametrize(
    ("content", "kind", "status"),
    [
        (b"", "application/json", 400),
        (b"{", "application/json", 400),
        (b"[]", "application/json", 400),
        (b'"a"', "application/json", 400),
        (b"\xff{}", "application/json", 400),
        (b'{"image": "a", "image": "b"}', "application/json", 400),
        (b"[" * 100_000, "application/json", 400),
        (b'{"requests": []}', "application/json", 422),
        (b'{"requests": [3]}', "application/json", 422),
        (b'{"requests": {"image": "a"}}', "application/json", 422),
        (
            b'{"image": "red.png", "question": "?", "temperature": Infinity}',
            "application/json",
            422,
        ),
        (b'{"image": "red.png", "question": "?", "meta": NaN}', "application/json", 422),
        (b"{}", "application/xml", 415),
        (b"{}", "", 415),
    ],
)
def test_what_is_no_request(colours: Path, content: bytes, kind: str, status: int) -> None:
    with served(colours) as app:
        sent = app.client(content_type=kind).post("/v1/answers", content=content)
        assert sent.status_code == status
        assert sent.json()["error"]


def test_bodies_are_bounded(colours: Path) -> None:
    with served(colours, limits=ServeLimits(body=1000, requests=3)) as app:
        post = app.client().post
        assert post("/v1/answers", json={"question": "x" * 1000}).status_code == 413
        one = {"image": "red.png", "question": "?"}
        assert post("/v1/answers", json={"requests": [one] * 3}).status_code == 200
        assert post("/v1/answers", json={"requests": [one] * 4}).status_code == 422
        each = one | {"each": True, "regions": [BOX] * 4}
        assert post("/v1/answers", json=each).status_code == 422


def test_ways_that_the_model_has_not(colours: Path) -> None:
    with served(colours) as app:
        body = {"image": "red.png", "question": "?", "way": "crop"}
        sent = app.client().post("/v1/answers", json=body)
        assert sent.json()["error"] == "red.png: toy is not told regions by crop"
        stream = app.client().post("/v1/answers", json=body | {"stream": True})
        assert events(stream.text)[-1] == ("done", {"answers": 1, "failed": 1})
    with served(colours, ways=("crop", "drawn")) as app:
        found = asked_by(app)
        ask(app, way="crop")
        assert found[0].way == "crop"


# -- events ----------------------------------------------------------------------------------------


def test_answers_as_events(colours: Path) -> None:
    with served(colours) as app:
        body = {"image": "red.png", "question": "?", "stream": True, "regions": [[4, 4, 80, 8]]}
        sent = app.client().post("/v1/answers", json=body)
        assert sent.headers["content-type"].startswith("text/event-stream")
        found = events(sent.text)
        assert [kind for kind, _ in found] == ["warning", "text", "text", "answer", "done"]
        texts = "".join(each["text"] for kind, each in found if kind == "text")
        assert texts == found[3][1]["answer"]["answer"] == "red: 4,4,8,8"
        assert found[-1][1] == {"answers": 1, "failed": 0}


def test_events_tell_requests_apart(colours: Path) -> None:
    with served(colours) as app:
        requests = [
            {"image": f"{colour}.png", "question": "?"} for colour in ("red", "none", "blue", "red")
        ]
        sent = app.client().post("/v1/answers", json={"requests": requests, "stream": True})
        found = events(sent.text)
        answers = {e["request"]: e["answer"] for kind, e in found if kind == "answer"}
        assert {n: each["answer"] for n, each in answers.items()} == {
            0: "red: all of it", 1: None, 2: "blue: all of it", 3: "red: all of it"
        }  # fmt: skip
        assert found[-1] == ("done", {"answers": 4, "failed": 1})
        for number, answer in answers.items():
            texts = [e["text"] for kind, e in found if kind == "text" and e["request"] == number]
            assert "".join(texts) == (answer["answer"] or "")


def test_a_fault_of_the_model_ends_the_stream_and_not_the_server(colours: Path) -> None:
    with served(colours) as app:

        def broken(request: Request) -> Completion:
            raise MemoryError("no\nroom") if request.question == "big" else BundleError("gone")

        app.backend.script = broken
        body = {"image": "red.png", "question": "big"}
        plain = app.client().post("/v1/answers", json=body)
        assert (plain.status_code, plain.json()) == (
            500, {"error": "unexpected MemoryError: no room"}
        )  # fmt: skip
        stream = app.client().post("/v1/answers", json=body | {"question": "?", "stream": True})
        assert events(stream.text) == [("error", {"error": "gone", "status": 502})]
        assert app.reported == ["unexpected MemoryError: no room"]
        app.backend.script = lambda request: QuestionError("not this one")
        assert app.client().post("/v1/answers", json=body).status_code == 422
        app.backend.script = None
        assert answers(app) == ["red: all of it"]


# -- many clients ----------------------------------------------------------------------------------


def test_questions_of_several_users_are_batched_by_image(colours: Path) -> None:
    """While one batch runs, the others gather; no answer is mixed up."""
    with served(colours) as app:
        found: dict[int, list[object]] = {}

        def user(number: int) -> None:
            colour = ("red", "lime", "blue")[number % 3]
            found[number] = answers(
                app, image=f"{colour}.png", question="?", regions=[[0, 0, 1, number + 1]]
            )

        with app.backend.paused():
            first = threading.Thread(target=user, args=(0,))
            first.start()
            assert app.backend.started.wait(PATIENCE)
            others = [threading.Thread(target=user, args=(n,)) for n in range(1, 8)]
            for each in others:
                each.start()
            while app.scheduler.waiting < 7:
                pass
        for each in (first, *others):
            each.join()
        assert app.backend.batches == [1, 7]
        images = app.backend.asked[1]
        assert images == sorted(images, key=images.index), "equal images stand together"
        assert len(app.backend.encoded) == 4, "each image is encoded once a batch"
        names = {0: "red", 1: "green", 2: "blue"}
        assert found == {n: [f"{names[n % 3]}: 0,0,1,{n + 1}"] for n in range(8)}


def test_a_full_queue_answers_429(colours: Path) -> None:
    with served(colours, limits=ServeLimits(waiting=2)) as app:
        two = {"requests": [{"image": "red.png", "question": "?"}] * 2}
        threads = [
            threading.Thread(target=app.client().post, args=("/v1/answers",), kwargs={"json": two})
            for _ in range(2)
        ]
        with app.backend.paused():
            threads[0].start()
            assert app.backend.started.wait(PATIENCE)
            threads[1].start()
            while app.scheduler.waiting < 2:
                pass
            for stream in (False, True):
                body = {"image": "red.png", "question": "?", "stream": stream}
                refused = app.client().post("/v1/answers", json=body)
                assert refused.status_code == 429
                seconds = int(refused.headers["retry-after"])
                assert seconds >= 1
                assert refused.json()["error"].endswith(f"ask again in {seconds} seconds")
        for each in threads:
            each.join()
        assert answers(app) == ["red: all of it"]
