"""`data generate`: records from scripted replies, filters, the judge, and shards."""

import json
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from helpers.vlm.chat_server import ChatServer, answer_lines
from helpers.vlm.instruction_server import form_of, instances, kind_of, replacing, scripted
from regionqa.data.files import read_training_data

if TYPE_CHECKING:
    from conftest import Command

GENERATE = ("data", "generate")


@pytest.fixture
def writer(server: ChatServer) -> ChatServer:
    """A server whose model writes faultless replies."""
    server.answer, server.structured = scripted, False
    return server


@pytest.fixture
def told(tmp_path: Path) -> Path:
    """Records of one image: two boxes with names, a fact about each, and a text."""
    instances(tmp_path, 1)

    def record(regions: list[Any], question: str, answer: str) -> str:
        texts = [("human", question), ("gpt", answer)]
        turns = [{"from": who, "value": value} for who, value in texts]
        return json.dumps({"image": "000.png", "regions": regions, "conversations": turns})

    cup, sign = {"box": [10, 5, 60, 45], "label": "cup"}, {"box": [70, 5, 90, 15], "label": "sign"}
    path = tmp_path / "told.jsonl"
    lines = [
        record([cup], "what is this?", "a cup."),
        record([sign, cup], "where is <region1>?", "right of <region2>, and says OPEN."),
        record([cup], "describe it.", "it is blue."),
        record([], "describe the image.", "a cup beside a sign."),
    ]
    path.write_text("\n".join(lines))
    return path


# -- records ---------------------------------------------------------------------------------------


def test_records_are_exactly_what_was_replied(
    regionqa: "Command", writer: ChatServer, told: Path
) -> None:
    out = told.parent / "out.jsonl"
    ran = regionqa(*GENERATE, told, "--server", writer.url, "--out", out, "--kinds", "text,general")
    assert (ran.status, ran.err) == (0, "")
    sign = {"box": [70, 5, 90, 15], "label": "sign"}
    cup = {"box": [10, 5, 60, 45], "label": "cup"}

    def turns(*texts: str) -> list[dict[str, str]]:
        return [{"from": ("human", "gpt")[n % 2], "value": text} for n, text in enumerate(texts)]

    assert answer_lines(out.read_text()) == [
        {
            "id": "000.png#text", "image": "000.png", "regions": [sign], "kind": "text",
            "conversations": turns("What is <region1> here, for text of 100 x 50?",
                                   "It shows text of 100 x 50."),
            "meta": {"model": "tiny-vl"},
        },
        {
            "id": "000.png#general", "image": "000.png", "regions": [cup], "kind": "general",
            "conversations": turns(
                "Where is <region1>?", "Where general of 100 x 50.",
                "Why is <region1>?", "Why general of 100 x 50.",
                "How is <region1>?", "How general of 100 x 50."),
            "meta": {"model": "tiny-vl"},
        },
    ]  # fmt: skip
    assert (out.parent / "out.rejected.jsonl").read_text() == ""
    assert ran.lines[:3] == [
        f"2 records written to {out}", "  images              1", "  requests            2",
    ]  # fmt: skip
    assert ran.lines[-2].split() == ["text", "1", "1", "1", "100", "%", "0"]
    assert ran.lines[-1].split() == ["general", "1", "1", "3", "100", "%", "0"]


def test_prompt_holds_annotations_examples_and_the_schema(
    regionqa: "Command", writer: ChatServer, told: Path
) -> None:
    out = told.parent / "out.jsonl"
    words = ("--server", writer.url, "--out", out, "--kinds", "text", "--temperature", "0.3")
    assert regionqa(*GENERATE, told, *words, "--max-new-tokens", "99").status == 0
    (asked,) = writer.asked
    roles = [message["role"] for message in asked.body["messages"]]
    assert roles == ["system", *["user", "assistant"] * 4, "user"]
    assert asked.question == (
        "The image is 100 x 50 pixels.\n"
        "Objects, each with its box as [left, top, right, bottom in thousandths of the image's "
        "width and height]:\n"
        "<region1> cup [100, 100, 600, 900]\n"
        "<region2> sign [700, 100, 900, 300]\n"
        "Known facts:\n"
        "- where is <region2>? right of <region1>, and says OPEN.\n"
        "- About <region1>: describe it. it is blue.\n"
        "- describe the image. a cup beside a sign.\n"
        "The question names at least one of these: <region2>, <region1>"
    )
    assert (asked.body["temperature"], asked.body["max_tokens"]) == (0.3, 99)
    form = asked.body["response_format"]["json_schema"]
    assert form["strict"] is True
    assert form["schema"] == {
        "type": "object", "required": ["question", "answer"], "additionalProperties": False,
        "properties": {"question": {"type": "string"}, "answer": {"type": "string"}},
    }  # fmt: skip


def test_conversation_takes_two_requests(
    regionqa: "Command", writer: ChatServer, told: Path
) -> None:
    out = told.parent / "out.jsonl"
    words = ("--server", writer.url, "--out", out, "--kinds", "multi-turn")
    assert regionqa(*GENERATE, told, *words).status == 0
    assert [form_of(asked) for asked in writer.asked] == ["questions", "answers"]
    assert writer.asked[1].question.endswith(
        "Questions:\n1. What is <region1> up to?\n2. And why does <region2> look so?\n"
        "3. Which of <region2> and <region1> is left?"
    )
    (record,) = answer_lines(out.read_text())
    assert [turn["value"] for turn in record["conversations"]] == [
        "What is <region1> up to?", "It is doing nothing at all.",
        "Which of <region2> and <region1> is left?", "The second one is further left.",
    ]  # fmt: skip
    assert [region["label"] for region in record["regions"]] == ["cup", "sign"]


def test_kinds_are_those_that_annotations_allow(
    regionqa: "Command", writer: ChatServer, told: Path, tmp_path: Path
) -> None:
    names = instances(tmp_path, 2)
    out = tmp_path / "out.jsonl"
    ran = regionqa(*GENERATE, names, "--server", writer.url, "--out", out)
    kinds = [record["kind"] for record in answer_lines(out.read_text())]
    assert kinds == ["small", "relations", "category", "multi-turn", "general"] * 2
    rows = {line.split()[0]: line.split()[-1] for line in ran.lines if line}
    assert (rows["text"], rows["attributes"], rows["small"]) == ("2", "2", "0")
    ran = regionqa(*GENERATE, told, "--server", writer.url, "--out", out, "--overwrite")
    kinds = [record["kind"] for record in answer_lines(out.read_text())]
    assert kinds == ["relations", "text", "attributes", "multi-turn", "general"]


def test_output_is_training_data(regionqa: "Command", writer: ChatServer, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    words = ("--server", writer.url, "--out", out, "--per-image", "2", "--quiet")
    assert regionqa(*GENERATE, instances(tmp_path, 6), *words).status == 0
    data = read_training_data(out)
    assert (len(data.records), data.problems) == (12, ())
    assert len({record["kind"] for record in answer_lines(out.read_text())}) > 2
    assert regionqa("data", "check", out, "--fast").status == 0


def test_seed_draws_kinds_and_is_passed_on(
    regionqa: "Command", writer: ChatServer, tmp_path: Path
) -> None:
    found = instances(tmp_path, 6)
    outs: list[str] = []
    for seed in ("1", "1", "2"):
        out = tmp_path / f"{len(outs)}.jsonl"
        words = ("--server", writer.url, "--out", out, "--per-image", "1", "--seed", seed)
        assert regionqa(*GENERATE, found, *words).status == 0
        outs.append(out.read_text())
    assert outs[0] == outs[1] != outs[2]
    seeds = [asked.body["seed"] for asked in writer.asked]
    assert sorted(seeds[:6]) != sorted(seeds[-6:])
    assert len(set(seeds)) > 6
    assert all(0 <= seed < 2**31 for seed in seeds)


# -- filters ---------------------------------------------------------------------------------------


def test_rejected_turns_are_kept_with_their_reasons(
    regionqa: "Command", writer: ChatServer, tmp_path: Path
) -> None:
    def absent(reply: Any) -> str:
        reply["pairs"][1]["question"] = "Who is behind <region9>?"
        reply["pairs"][2]["answer"] = "long " * 200
        return json.dumps(reply)

    writer.answer = replacing({"101 general": absent, "102 general": lambda reply: "I can't."})
    out, rejected = tmp_path / "out.jsonl", tmp_path / "no.jsonl"
    words = ("--server", writer.url, "--out", out, "--kinds", "general", "--rejected", rejected)
    ran = regionqa(*GENERATE, instances(tmp_path, 3), *words)
    assert ran.status == 0
    assert [len(each["conversations"]) for each in answer_lines(out.read_text())] == [6, 2]
    several, none = answer_lines(rejected.read_text())
    assert (several["id"], several["kept"], none["id"], none["kept"]) == (
        "001.png#general", 1, "002.png#general", 0
    )  # fmt: skip
    assert [each["reason"] for each in several["rejected"]] == [
        "names a box that was not given", "answer too long",
    ]  # fmt: skip
    assert several["rejected"][0]["question"] == "Who is behind <region9>?"
    assert several["rejected"][0]["detail"] == "names <region9>, but 3 regions were given"
    assert [each["reason"] for each in none["rejected"]] == ["not JSON"]
    assert none["replies"] == ["I can't."]
    assert [line.split("  ")[1] for line in ran.lines[-3:]] == [
        "names a box that was not given", "answer too long", "not JSON",
    ]  # fmt: skip


def test_control_tokens_in_annotations_are_not_sent(
    regionqa: "Command", writer: ChatServer, tmp_path: Path
) -> None:
    found, out = instances(tmp_path, 1, ("dog", "<|im_end|>")), tmp_path / "out.jsonl"
    ran = regionqa(*GENERATE, found, "--server", writer.url, "--out", out, "--kinds", "general")
    assert (ran.status, writer.asked, out.read_text()) == (0, [], "")
    (rejected,) = answer_lines((tmp_path / "out.rejected.jsonl").read_text())
    (only,) = rejected["rejected"]
    assert only == {"reason": "a control token in the annotations", "detail": "<|im_end|>"}


@pytest.mark.parametrize(
    ("scope", "turns"), [("image", [1, 1]), ("file", [1]), ("none", [1, 2, 1, 2])]
)
def test_near_duplicates_are_rejected(
    regionqa: "Command", writer: ChatServer, tmp_path: Path, scope: str, turns: list[int]
) -> None:
    question = "What is <region1> doing in the middle of this wide and rather empty image today?"
    words = " ".join(f"word{number}" for number in range(40))
    pair = {"question": question, "answer": words}
    similar = {**pair, "question": question.replace("What", "what").replace("today?", "today, eh?")}

    def alike(reply: Any) -> str:
        return json.dumps({"pairs": [similar, pair]} if "pairs" in reply else pair)

    kinds = ("relations", "general")
    writer.answer = replacing({f"{width} {k}": alike for width in (100, 101) for k in kinds})
    out = tmp_path / "out.jsonl"
    line = ("--server", writer.url, "--out", out, "--kinds", ",".join(kinds))
    ran = regionqa(*GENERATE, instances(tmp_path, 2), *line, "--near-duplicates", scope)
    assert ran.status == 0
    assert [len(each["conversations"]) // 2 for each in answer_lines(out.read_text())] == turns
    listed = answer_lines((tmp_path / "out.rejected.jsonl").read_text())
    rejected = [turn for each in listed for turn in each["rejected"]]
    assert len(rejected) == 6 - sum(turns)
    assert {each["reason"] for each in rejected} <= {"near-duplicate"}
    assert {each["detail"] for each in rejected} <= {f"of: {question}"}


def test_judge_rejects_what_does_not_follow(
    regionqa: "Command", writer: ChatServer, tmp_path: Path
) -> None:
    def doubt(reply: Any) -> str:
        reply["verdicts"][1] |= {"follows": False, "reason": "nothing says why"}
        return json.dumps(reply)

    spoiled = {"100 verdicts": doubt, "101 verdicts": lambda reply: '{"verdicts": []}',
               "102 verdicts": lambda reply: "yes"}  # fmt: skip
    writer.answer = replacing(spoiled)
    out = tmp_path / "out.jsonl"
    words = ("--server", writer.url, "--out", out, "--kinds", "general", "--judge")
    ran = regionqa(*GENERATE, instances(tmp_path, 4), *words)
    assert ran.status == 0
    turns = {each["image"]: len(each["conversations"]) // 2
             for each in answer_lines(out.read_text())}  # fmt: skip
    assert turns == {"000.png": 2, "003.png": 3}
    judged = [asked for asked in writer.asked if kind_of(asked) == "verdicts"]
    assert len(judged) == 4
    assert {asked.body["temperature"] for asked in judged} == {0.0}
    assert "<region1> dog" in judged[0].question
    assert "2. Question: Why is <region1>?\n   Answer: Why general of" in judged[0].question
    first, second, third = answer_lines((tmp_path / "out.rejected.jsonl").read_text())
    (only,) = first["rejected"]
    assert (only["reason"], only["detail"]) == (
        "does not follow from the annotations", "nothing says why"
    )  # fmt: skip
    assert [each["reason"] for each in second["rejected"] + third["rejected"]] == ["no verdict"] * 6


def test_server_without_structured_output_is_asked_without_it(
    regionqa: "Command", server: ChatServer, tmp_path: Path
) -> None:
    server.refused, server.structured = ("response_format", "seed"), False
    server.answer = lambda asked: (
        '```json\n{"question": "Where is <region1>?", "answer": "On the left."}\n```'
    )
    out = tmp_path / "out.jsonl"
    words = ("--server", server.url, "--out", out, "--kinds", "relations")
    ran = regionqa(*GENERATE, instances(tmp_path, 3), *words, "--server-concurrency", "1")
    assert ran.status == 0
    assert len(answer_lines(out.read_text())) == 3
    assert len(server.asked) == 3 + 2
    assert "requests            3, and 2 again after a failure" in ran.out


# -- shards ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [2, 3, 7])
def test_shards_together_are_the_whole(
    regionqa: "Command", writer: ChatServer, tmp_path: Path, count: int
) -> None:
    """Records, rejected replies and requests, with examples and seeds; two of 7 shards are empty.

    Every shard spends a budget of its own first, and goes on with its own replies.
    """
    found = instances(tmp_path, 5)
    words = (*GENERATE, found, "--server", writer.url, "--per-image", "3", "--max-words", "6")
    assert regionqa(*words, "--out", tmp_path / "0.jsonl").status == 0
    asked = [requests_of(writer)]
    for number in range(1, count + 1):
        shard = (*words, "--out", tmp_path / f"{number}.jsonl", "--shard", f"{number}/{count}")
        assert regionqa(*shard, "--max-requests", "1").status == 0
        assert len(writer.asked) == (number <= 5)
        ran = regionqa(*shard, "--resume")
        images = len(range(number - 1, 5, count))
        assert (ran.status, f"images     {images:>10}\n" in ran.out) == (0, True)
        assert f" of shard {number}/{count} written to" in ran.out
        asked.append(requests_of(writer))
    for end in ("jsonl", "rejected.jsonl"):
        whole, *parts = ((tmp_path / f"{n}.{end}").read_text() for n in range(count + 1))
        assert whole.count("\n") > 3
        assert sum(map(bool, parts)) > 1
        assert sorted("".join(parts).splitlines()) == sorted(whole.splitlines())
    assert sorted(chain.from_iterable(asked[1:])) == sorted(asked[0])


def requests_of(server: ChatServer) -> list[str]:
    """What a server was asked so far, each once; it forgets that."""
    asked = [json.dumps(each.body, sort_keys=True) for each in server.asked]
    server.asked.clear()
    assert len(asked) == len({*asked})
    return asked
