"""`regionqa eval vqa`: question files, matching of answers, choices by likelihood."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from helpers.evaluation_files import answered, grey, metric_values
from regionqa.bundles.store import Bundle
from regionqa.data.questions import read_questions
from regionqa.engine import Engine
from regionqa.errors import DataError

if TYPE_CHECKING:
    from conftest import Command

LEFT, RIGHT = [0, 0, 100, 100], [200, 100, 300, 200]


def lines(path: Path, records: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def turns(*texts: str) -> list[dict[str, str]]:
    return [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)]


RECORDS: list[dict[str, Any]] = [
    {"image": "a.jpg", "regions": [LEFT, RIGHT], "kind": "left",
     "conversations": turns("<image>\nis <region1> left of <region2>?", "yes.")},
    {"image": "a.jpg", "kind": "presence", "question": "is there a dog?", "answer": "no."},
    {"image": "a.jpg", "kind": "presence", "question": "is there a cat?", "answer": "yes."},
    {"image": "b.jpg", "kind": "presence", "question": "is there a cup?", "answer": "yes."},
    {"image": "b.jpg", "kind": "count", "question": "how many cups are there?", "answer": "two."},
    {"image": "b.jpg", "kind": "count", "question": "how many dogs are there?", "answer": "none"},
    {"image": "b.jpg", "regions": [RIGHT], "kind": "colour",
     "question": "what colour is <region1>?", "answers": ["grey", "gray"]},
]  # fmt: skip
REPLIES = ["Yes, it is.", "no.", "no, there is none.", "yes", "there are three.", "no dogs.",
           "It is gray."]  # fmt: skip
BOXES: list[list[list[int]]] = [[LEFT, RIGHT], [], [], [], [], [], [RIGHT]]


@pytest.fixture
def folder(tmp_path: Path, starter: Bundle) -> Path:
    grey(tmp_path, "a.jpg", "b.jpg")
    lines(tmp_path / "q.jsonl", RECORDS)
    asked = [read_questions(tmp_path / "q.jsonl")[n].request.question for n in range(len(RECORDS))]
    rows = zip([r["image"] for r in RECORDS], BOXES, asked, REPLIES, strict=True)
    answered(tmp_path / "kept.jsonl", starter, list(rows))
    return tmp_path


def test_metrics_of_every_kind_of_question(regionqa: "Command", folder: Path) -> None:
    out = folder / "out.json"
    ran = regionqa(
        "eval", "vqa", folder / "q.jsonl", "--answers", folder / "kept.jsonl", "--json", out
    )
    assert (ran.status, ran.err) == (0, "")
    assert "all questions" in ran.lines[2]
    document = json.loads(out.read_text())
    found = metric_values(document)
    assert found["accuracy"] == pytest.approx(500 / 7, abs=1e-3)
    assert found["exact"] == pytest.approx(100 / 7, abs=1e-3)  # "no."
    assert found["normalised"] == pytest.approx(300 / 7, abs=1e-3)  # and "yes", and "gray"
    assert found["yes_no"] == 75
    assert found["yes_no_balanced"] == pytest.approx(100 * (1 + 2 / 3) / 2, abs=1e-3)
    assert found["yes_no_yes"] == 50
    assert (found["count"], found["count_within_one"]) == (50, 100)
    assert metric_values(document, "kind") == {
        "colour": 100, "count": 50, "left": 100, "presence": pytest.approx(200 / 3, abs=1e-3)
    }  # fmt: skip
    assert metric_values(document, "kind, balanced")["presence"] == 75
    assert metric_values(document, "kind, within one") == {"count": 100}
    assert metric_values(document, "kind, within one, balanced") == {"count": 100}
    assert {"answer": "yes.", "reply": "no, there is none.", "count": 1} in document["listings"][
        "wrong"
    ]


def test_constant_count_is_reported_as_baseline(
    regionqa: "Command", tmp_path: Path, starter: Bundle
) -> None:
    """With counts 1, 1, 1 and 4, always answering "one" is right for one of two numbers."""
    grey(tmp_path, "a.jpg")
    asked = ["how many cups?", "how many cats?", "how many dogs?", "how many men?"]
    due = ["one", "one", "one", "four"]
    lines(tmp_path / "q.jsonl", [
        {"image": "a.jpg", "question": question, "answer": answer, "kind": "count"}
        for question, answer in zip(asked, due, strict=True)
    ])  # fmt: skip
    answered(tmp_path / "kept.jsonl", starter, [("a.jpg", [], each, "one.") for each in asked])
    out = tmp_path / "out.json"
    words = ("eval", "vqa", tmp_path / "q.jsonl", "--answers", tmp_path / "kept.jsonl")
    assert regionqa(*words, "--json", out).status == 0
    document = json.loads(out.read_text())
    found = metric_values(document)
    assert (found["count_within_one"], found["count_within_one_balanced"]) == (75, 50)
    assert found["count_within_one_always"] == 75
    assert "counts, always 1, within one" in out.read_text()
    assert metric_values(document, "kind, within one, balanced") == {"count": 50}


def test_choices_by_text_and_by_likelihood(
    regionqa: "Command", photos: Path, shared_engine: Engine
) -> None:
    box = [20, 10, 120, 100]
    generated = shared_engine.ask(photos / "cat.jpg", "what is this?", [box], unsure_below=0).text
    record = {
        "image": "cat.jpg",
        "regions": [box],
        "question": "what is this?",
        "answer": generated,
    }
    lines(photos / "q.jsonl", [{**record, "choices": ["nine of them.", generated]}])
    out = photos / "out.json"
    words = (
        *("eval", "vqa", photos / "q.jsonl", "--device", "cpu"),
        *("--json", out, "--overwrite", "--answers"),
    )
    assert regionqa(*words, photos / "kept.jsonl").status == 0
    found = metric_values(json.loads(out.read_text()))
    assert (found["choice"], found["choice_likelihood"], found["choice_chance"]) == (100, 100, 50)
    kept = [json.loads(line) for line in (photos / "kept.jsonl").read_text().splitlines()]
    assert [each.get("choices") for each in kept] == [None, ["nine of them.", generated]]
    before = (photos / "kept.jsonl").read_text()
    assert regionqa(*words, photos / "kept.jsonl").status == 0
    assert (photos / "kept.jsonl").read_text() == before
    assert regionqa(*words[:-1], "--no-likelihood").status == 0
    assert "choice_likelihood" not in metric_values(json.loads(out.read_text()))


def test_limit_option_takes_the_first(regionqa: "Command", folder: Path) -> None:
    ran = regionqa(
        "eval", "vqa", folder / "q.jsonl", "--answers", folder / "kept.jsonl", "--limit", 2
    )
    assert ran.lines[2].split()[:3] == ["all", "questions", "100.0"]
    assert ran.lines[2].split()[-1] == "2"


def test_box_outside_the_image_fails_alone(
    regionqa: "Command", folder: Path, shared_engine: Engine
) -> None:
    more = [{**RECORDS[1], "regions": [[500, 500, 600, 600]]}, {**RECORDS[1], "image": "gone.jpg"}]
    lines(folder / "q.jsonl", [*RECORDS, *more])
    ran = regionqa(
        "eval", "vqa", folder / "q.jsonl", "--answers", folder / "kept.jsonl", "--device", "cpu"
    )
    assert ran.status == 3
    assert [line.split(": ")[1] for line in ran.err.splitlines()] == ["a.jpg", "gone.jpg"]
    assert ran.lines[2].split()[-1] == "7"


def test_no_answers_is_an_error(regionqa: "Command", tmp_path: Path, shared_engine: Engine) -> None:
    lines(tmp_path / "q.jsonl", [{"image": "gone.jpg", "question": "what?", "answer": "it."}])
    ran = regionqa("eval", "vqa", tmp_path / "q.jsonl", "--device", "cpu")
    assert (ran.status, ran.out) == (1, "")
    assert "no request was answered, 1 failed" in ran.err.splitlines()[-1]


# -- files -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"q\.jsonl: is empty; write"),
        ("[]", "holds no questions"),
        ("{", r"q\.jsonl:1: is not JSON"),
        ("3", r"q\.jsonl:1: is 3, not an object"),
        ('{"image": "a.jpg", "answer": "yes"}', "has no question"),
        ('{"image": "a.jpg", "question": "what?"}', "a question without an answer"),
        (
            '{"image": "a.jpg", "question": "what?", "answers": "x"}',
            "'answers' is 'x'; write a list",
        ),
        ('{"question": "what?", "answer": "x"}', "has no image"),
        (
            '{"image": "a.jpg", "question": "what?", "answer": "x", "kind": 3}',
            "'kind' is 3; write text",
        ),
        (
            '{"image": "a.jpg", "question": "a?", "answer": "x", "choices": ["y"]}',
            "is not among its choices",
        ),
        ('{"image": "a.jpg", "question": "a?", "answer": "x", "regions": [[1, 2]]}', "1, 2"),
        ('{"image": "a.jpg", "conversations": [{"from": "human", "value": "a"}]}', "in turn"),
        ('[{"image": "a.jpg", "conversations": []}]', "record 1: its conversations are not a list"),
    ],
)
def test_malformed_file_error_names_the_line(tmp_path: Path, text: str, message: str) -> None:
    grey(tmp_path, "a.jpg")
    (tmp_path / "q.jsonl").write_text(text)
    with pytest.raises(DataError, match=message):
        read_questions(tmp_path / "q.jsonl")


def test_turn_has_the_regions_it_names(tmp_path: Path) -> None:
    """Turns are split as in training of single-turn models."""
    grey(tmp_path, "a.jpg")
    conversation = turns("what is <region2>?", "<region2> is a cup.",
                         "and what are these?", "two things.")  # fmt: skip
    record = {"image": "a.jpg", "regions": [LEFT, RIGHT], "conversations": conversation}
    first, second = read_questions(lines(tmp_path / "q.jsonl", [record]))
    assert first.request.question == "what is <region1>?"
    assert [list(region.box.xyxy) for region in first.request.regions] == [RIGHT]
    assert first.answers == ("<region1> is a cup.",)
    assert len(second.request.regions) == 2
    assert first.request.source is second.request.source


def test_inline_regions_in_pvit_format(tmp_path: Path) -> None:
    grey(tmp_path, "a.jpg")
    inline = "<Region><L0><L0><L250><L500></Region>"
    record = {"image": "a.jpg", "question": f"what is {inline}?", "answer": "a cup."}
    [found] = read_questions(lines(tmp_path / "q.jsonl", [record]))
    assert found.request.question == "what is <region1>?"
    assert found.request.regions[0].box.xyxy == (0, 0, 100, 150)
    lines(tmp_path / "q.jsonl", [{**record, "regions": [LEFT]}])
    with pytest.raises(DataError, match="both inline and by number or box"):
        read_questions(tmp_path / "q.jsonl")
