"""The thread that owns the engine: turns, cancelled jobs, switches, the end."""

import queue
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from helpers.serve.apps import PATIENCE, Served, served
from regionqa.errors import UsageError
from regionqa.options import GenerationOptions
from regionqa.requests import Answer, Request
from regionqa.serve.scheduler import (
    Job,
    JobListener,
    ModelChangedError,
    NotAnsweringError,
    QueueFullError,
    ServedModel,
)


class Client:
    """A job and what became of it."""

    def __init__(
        self, app: Served, *questions: str, image: str = "red.png", **options: Any
    ) -> None:
        self.app = app
        self.news: queue.Queue[tuple[str, Any]] = queue.Queue()
        source = app.gallery.open(image)
        requests = [Request(image, question, (), source) for question in questions]

        def answered(number: int, answer: Answer, warnings: Sequence[str]) -> None:
            self.news.put(("answer", number))

        listener = JobListener(
            lambda number, text: self.news.put(("text", number)),
            answered,
            lambda error: self.news.put(("failed", error)),
        )
        model: ServedModel = app.scheduler.model
        self.job = Job(requests, GenerationOptions(**options), model, listener)

    def submit(self) -> "Client":
        self.app.scheduler.submit(self.job)
        return self

    def answers(self, count: int) -> list[int]:
        """The numbers of the next answers."""
        found: list[int] = []
        while len(found) < count:
            kind, value = self.news.get(timeout=PATIENCE)
            assert kind != "failed", value
            if kind == "answer":
                found.append(value)
        return found


def running(app: Served) -> Client:
    """A job that is being answered until the backend goes on."""
    client = Client(app, "first").submit()
    assert app.backend.started.wait(PATIENCE)
    return client


def questions(app: Served) -> list[list[str]]:
    """Questions of every batch, recorded from now on."""
    found: list[list[str]] = []
    generate = app.backend.generate

    def recorded(prompts: Any, *others: Any) -> Any:
        found.append([prompt.request.question for prompt in prompts])
        return generate(prompts, *others)

    app.backend.generate = recorded  # type: ignore[method-assign, assignment]
    return found


def test_a_long_job_delays_no_short_one(colours: Path) -> None:
    with served(colours, batch_size=4) as app:
        asked = questions(app)
        with app.backend.paused():
            first = running(app)
            long = Client(app, *(f"long {n}" for n in range(6))).submit()
            short = Client(app, "short").submit()
        first.answers(1)
        short.answers(1)
        assert sorted(long.answers(6)) == list(range(6))
        assert [sorted(batch) for batch in asked[1:]] == [
            ["long 0", "long 1", "long 2", "short"],
            ["long 3", "long 4", "long 5"],
        ]


def test_a_batch_begins_with_the_image_that_was_encoded_last(colours: Path) -> None:
    """A backend need not encode it again."""
    with served(colours) as app:
        for _ in range(2):
            with app.backend.paused():
                running(app)
                red, blue = Client(app, "?"), Client(app, "?", image="blue.png")
                red.submit(), blue.submit()
            red.answers(1), blue.answers(1)
        images = [image for image, _ in app.backend.encoded]
        assert images == ["red.png", "red.png", "blue.png", "red.png", "red.png", "blue.png"]
        with app.backend.paused():
            Client(app, "?", image="blue.png").submit()
            assert app.backend.started.wait(PATIENCE)
            red, blue = Client(app, "?"), Client(app, "?", image="blue.png")
            red.submit(), blue.submit()
        red.answers(1), blue.answers(1)
        assert [image for image, _ in app.backend.encoded][-2:] == ["blue.png", "red.png"]


def test_jobs_with_other_options_are_answered_apart(colours: Path) -> None:
    with served(colours) as app:
        asked = questions(app)
        with app.backend.paused():
            running(app)
            warm = Client(app, "warm", temperature=0.5).submit()
            cold = Client(app, "cold").submit()
            also_warm = Client(app, "also warm", temperature=0.5).submit()
        for client in (warm, cold, also_warm):
            client.answers(1)
        assert asked[1:] == [["warm", "also warm"], ["cold"]]


def test_a_client_that_goes_frees_its_place(colours: Path) -> None:
    with served(colours) as app:
        asked = questions(app)
        with app.backend.paused():
            running(app)
            gone = Client(app, *["gone"] * 1024).submit()
            assert app.scheduler.waiting == 1024
            with pytest.raises(QueueFullError):
                Client(app, "late").submit()
            app.scheduler.cancel(gone.job)
            assert app.scheduler.waiting == 0
            late = Client(app, "late").submit()
        late.answers(1)
        assert asked == [["first"], ["late"]]
        assert gone.news.empty()


def test_a_batch_that_nobody_waits_for_is_abandoned(colours: Path) -> None:
    with served(colours) as app:
        with app.backend.paused():
            gone = running(app)
            app.scheduler.cancel(gone.job)
        assert Client(app, "next").submit().answers(1) == [0]
        assert gone.news.empty()


def test_those_who_stay_get_the_answers_of_a_shared_batch(colours: Path) -> None:
    with served(colours) as app:
        with app.backend.paused():
            running(app)
            gone, stays = Client(app, "gone").submit(), Client(app, "stays").submit()
            app.backend.started.clear()
            app.backend.go_on.set()
            assert app.backend.started.wait(PATIENCE)
            app.scheduler.cancel(gone.job)
        assert stays.answers(1) == [0]


def test_what_waits_is_refused_at_the_end_and_what_runs_is_finished(colours: Path) -> None:
    with served(colours) as app:
        with app.backend.paused():
            first = running(app)
            waits = Client(app, "waits").submit()
            switch = app.scheduler.switch("toy")
            app.scheduler.close()
            kind, error = waits.news.get(timeout=PATIENCE)
            assert (kind, type(error)) == ("failed", NotAnsweringError)
            assert isinstance(switch.exception(PATIENCE), NotAnsweringError)
            with pytest.raises(NotAnsweringError):
                Client(app, "late").submit()
            with pytest.raises(NotAnsweringError):
                app.scheduler.switch("toy")
        assert first.answers(1) == [0]
        app.scheduler.join(PATIENCE)
        assert "engine" not in {thread.name for thread in threading.enumerate()}


# -- switches --------------------------------------------------------------------------------------


def test_a_switch_waits_for_the_questions_before_it(colours: Path, toy: Path) -> None:
    with served(colours, models={"other": str(toy)}) as app:
        with app.backend.paused():
            first = running(app)
            before = Client(app, "before").submit()
            switched = app.scheduler.switch("other")
            with pytest.raises(ModelChangedError):
                Client(app, "between").submit()
            assert app.scheduler.next_name == "other"
        model = switched.result(PATIENCE)
        first.answers(1), before.answers(1)
        assert (model.name, model.info.name, app.scheduler.next_name) == ("other", "toy-1", "other")
        with pytest.raises(ModelChangedError):
            app.scheduler.submit(before.job)
        Client(app, "after").submit().answers(1)
        assert len(app.backend.batches) == 2, "the old one is asked no more"


def test_a_model_that_cannot_be_loaded_leaves_the_one_before(colours: Path) -> None:
    with served(colours, models={"gone": "/nowhere/at/all"}) as app:
        with pytest.raises(Exception, match="nowhere"):
            app.scheduler.switch("gone").result(PATIENCE)
        assert (app.scheduler.model.name, app.scheduler.next_name) == ("toy", "toy")
        Client(app, "after").submit().answers(1)


def test_a_model_that_fails_after_the_old_one_went(
    colours: Path, toy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from helpers.backends import ToyModel

    with served(colours, models={"toy": str(toy), "broken": str(toy)}) as app:
        load, failing = ToyModel.load, [True]

        def fails_once(self: ToyModel, options: Any) -> Any:
            if failing.pop() if failing else False:
                raise MemoryError("too large")
            return load(self, options)

        monkeypatch.setattr(ToyModel, "load", fails_once)
        with pytest.raises(MemoryError):
            app.scheduler.switch("broken").result(PATIENCE)
        assert app.reported == ["unexpected MemoryError: too large"]
        assert app.scheduler.model.name == "toy"
        Client(app, "after").submit().answers(1)
        assert app.backend.batches == [], "the model before was loaded again"


def test_only_models_of_the_list_are_loaded(colours: Path, toy: Path) -> None:
    with served(colours) as app:
        for name in (str(toy), "/etc", "owner/name", ""):
            with pytest.raises(UsageError, match="is not a model here; choose toy"):
                app.scheduler.switch(name)


def test_the_api_switches(colours: Path, toy: Path) -> None:
    with served(colours, models={"other": str(toy), "gone": "/nowhere"}) as app:
        client = app.client()
        assert client.get("/v1/status").json()["models"] == ["toy", "other", "gone"]
        switched = client.post("/v1/model", json={"name": "other"})
        assert (switched.status_code, switched.json()["model"]["title"]) == (200, "toy-1")
        failed = client.post("/v1/model", json={"name": "gone"})
        assert failed.status_code == 409
        assert client.post("/v1/model", json={"name": "../x"}).status_code == 422
        assert client.post("/v1/model", json={"nme": "x"}).json()["error"] == (
            "unknown key 'nme'; did you mean 'name'?"
        )
        asked = client.post("/v1/answers", json={"image": "red.png", "question": "?"})
        assert asked.json()["answers"][0]["model"] == "toy-1"
