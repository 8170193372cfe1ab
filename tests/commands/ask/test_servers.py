"""`--server`: questions to a server of OpenAI's chat protocol, which may fail in many ways."""

import json
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from helpers.vlm.chat_server import AskedChat, ChatServer, answer_lines, request_lines, sizes
from regionqa.backends.server import retries

if TYPE_CHECKING:
    from conftest import Command

ASK = ("ask", "-", "--format", "jsonl")
CARD = ("--model", "qwen3-vl-2b")


# -- asking ----------------------------------------------------------------------------------------


def test_answer_comes_from_the_server(
    regionqa: "Command", server: ChatServer, colours: Path
) -> None:
    words = ("ask", colours / "red.png", "what is <region1>?", "--box", "1,2,6,7")
    ran = regionqa(*words, "--server", server.url, *CARD, "--way", "coordinates", "--seed", "3")
    assert (ran.status, ran.err) == (0, "")
    assert ran.out.startswith("what is ")
    assert ran.out.endswith("? 8x8\n")
    assert "[125, 250, 750, 875]" in ran.out
    body = server.asked[0].body
    assert (body["model"], body["temperature"], body["stream"]) == ("tiny-vl", 0, True)
    assert body["max_tokens"] == 128
    assert 0 <= body["seed"] < 2**31


def test_limits_and_sampling_are_passed_on(
    regionqa: "Command", server: ChatServer, colours: Path
) -> None:
    words = ("ask", colours / "red.png", "say it in many words.", "--server", server.url, *CARD)
    ran = regionqa(*words, "--max-new-tokens", "2", "--temperature", "0.5")
    assert (ran.status, ran.out) == (0, "say it\n")
    body = server.asked[0].body
    assert (body["max_tokens"], body["temperature"]) == (2, 0.5)


def test_model_and_revision_name_the_servers_model(
    regionqa: "Command", server: ChatServer, colours: Path
) -> None:
    words = ("ask", colours / "red.png", "what?", "--server", server.url, "--format", "json")
    (known,) = json.loads(regionqa(*words, *CARD).out)
    (other,) = json.loads(regionqa(*words, *CARD, "--server-model", "larger").out)
    (generic,) = json.loads(regionqa(*words).out)
    assert (known["model"], other["model"], generic["model"]) == (CARD[1], CARD[1], "tiny-vl")
    assert known["revision"].endswith("-server:tiny-vl")
    assert other["revision"].endswith("-server:larger")
    assert known["device"] == "server"
    assert [asked.body["model"] for asked in server.asked] == ["tiny-vl", "larger", "tiny-vl"]


def test_without_a_card_regions_are_shown_as_crops(
    regionqa: "Command", server: ChatServer, colours: Path
) -> None:
    words = ("caption", colours / "red.png", "--box", "1,2,6,7", "--server", server.url)
    ran = regionqa(*words)
    assert ran.status == 0
    assert "region 1" in ran.out
    assert len(server.asked[0].images) == 2
    assert ran.err == (
        "regionqa: warning: tiny-vl: --model names no card, so regions are told by crop; name the "
        "card of the server's model for its own way (regionqa models list)\n"
    )
    assert regionqa(*words, "--quiet").err == ""


def test_prompt_and_the_reason_of_the_way_are_shown(
    regionqa: "Command", server: ChatServer, colours: Path
) -> None:
    words = ("ask", colours / "red.png", "what is <region1>?", "--box", "1,2,6,7", "--show-prompt")
    ran = regionqa(*words, "--server", server.url, "--model", "qwen2.5-vl-7b")
    assert ran.status == 0
    assert "told by crop: the card's default, in place of coordinates" in ran.err
    lines = [line.strip() for line in ran.err.splitlines()]
    said = [line.removeprefix("user: ") for line in lines if line.startswith("user: ")]
    texts = [part for part in server.asked[0].parts if isinstance(part, str)]
    assert [line for line in said if not line.startswith("[image ")] == "\n".join(texts).split("\n")
    assert said.count("[image 1]") == said.count("[image 2]") == 1
    assert "image 1: whole image, 8 x 8 pixels, sent as 8 x 8, which the server may resize" in lines


def test_schema_and_choices_are_the_servers_structured_output(
    regionqa: "Command", server: ChatServer, colours: Path, tmp_path: Path
) -> None:
    content = {"type": "object", "properties": {"what": {"type": "string"}}, "required": ["what"]}
    schema = tmp_path / "schema.json"
    schema.write_text(json.dumps(content))
    words = ("ask", colours / "red.png", "what?", "--server", server.url, *CARD, "--format", "json")
    (record,) = json.loads(regionqa(*words, "--schema", schema).out)
    assert record["answer"] == {"what": "what? 8x8"}
    assert server.asked[0].body["response_format"]["json_schema"]["schema"] == content
    (record,) = json.loads(regionqa(*words, "--choices", "yes,no").out)
    assert record["answer"] == "yes"
    server.structured = False
    ran = regionqa(*words, "--schema", schema)
    assert ran.status == 3
    assert "does not follow the schema, it says 'what? 8x8': it needs structured output" in ran.out


def test_chat_holds_the_conversation(
    regionqa: "Command", server: ChatServer, colours: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("regionqa.cli.chat.ChatConsole.__init__", live_console)
    words = ("chat", colours / "red.png", "--server", server.url, *CARD, "--way", "coordinates")
    ran = regionqa(*words, stdin="what is it?\n/box 1,2,6,7\nand <region1>?\n")
    assert ran.status == 0
    first, second = ran.lines
    assert first == "what is it? 8x8"
    assert "[125, 250, 750, 875]" in second
    roles = [message["role"] for message in server.asked[1].body["messages"]]
    assert roles == ["user", "assistant", "user"]
    assert server.asked[1].body["messages"][1]["content"] == "what is it? 8x8"
    assert second == f"{server.asked[1].question} 8x8"


def live_console(console: Any, *, quiet: bool) -> None:
    """A console that shows the parts of an answer as they come."""
    console._quiet, console._progress, console._live = quiet, None, True


def test_evaluation_asks_the_server(
    regionqa: "Command", server: ChatServer, colours: Path, tmp_path: Path
) -> None:
    data, answers = tmp_path / "q.jsonl", tmp_path / "answers.jsonl"
    turns = [{"from": "human", "value": "what?"}, {"from": "gpt", "value": "what? 8x8"}]
    lines = [{"image": path.name, "conversations": turns} for path in sorted(colours.iterdir())]
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    words = ("eval", "vqa", data, "--images", colours, "--server", server.url, *CARD)
    first = regionqa(*words, "--answers", answers, "--json", tmp_path / "a.json")
    assert (first.status, first.err, len(server.asked)) == (0, "", 3)
    again = regionqa(*words, "--answers", answers, "--json", tmp_path / "b.json")
    assert (again.status, len(server.asked)) == (0, 3)
    assert json.loads((tmp_path / "a.json").read_text())["model"] == CARD[1]


def test_probe_asks_the_server(regionqa: "Command", server: ChatServer) -> None:
    server.answer = lambda _: "nothing"
    ran = regionqa("doctor", "--probe", "--server", server.url, *CARD, "--way", "crop-only")
    assert ran.status == 1  # it sees nothing
    assert "crop-only" in [line.partition(":")[0] for line in ran.lines]
    assert len(server.asked) > 10
    idle = regionqa("doctor", "--server", server.url, *CARD)
    assert (idle.status, idle.out) == (2, "")
    assert "--server: has no effect without --probe" in idle.err


@pytest.mark.parametrize("more", [(), ("--choices", "yes,no")], ids=["open", "choices"])
def test_questions_are_asked_together_up_to_the_limit(
    regionqa: "Command", server: ChatServer, colours: Path, more: tuple[str, ...]
) -> None:
    pairs = threading.Barrier(2, timeout=300)

    def answer(asked: AskedChat) -> str:
        pairs.wait()  # until another request is there
        return sizes(asked)

    server.answer = answer
    lines = request_lines(colours, "what is", "where is", repeat=2)
    words = (*ASK, "--server", server.url, *CARD, "--server-concurrency", "2", *more)
    # the first image is a window of its own, of two questions; the others are one of batches
    ran = regionqa(*words, "--batch-size", "8", stdin=lines)
    assert (ran.status, server.most_at_once) == (0, 2)
    asked = [json.loads(line)["question"] for line in lines.splitlines()]
    assert [record["question"] for record in answer_lines(ran.out)] == asked


# -- which server and model ------------------------------------------------------------------------


def test_several_models_are_listed(regionqa: "Command", server: ChatServer, colours: Path) -> None:
    words = ("ask", colours / "red.png", "what?", "--server", server.url, *CARD)
    server.models = ["small-vl", "large-vl"]
    ran = regionqa(*words)
    assert (ran.status, ran.out) == (2, "")
    assert "has 2 models; choose one with --server-model: small-vl, large-vl" in ran.err
    server.models = []
    assert "has no model; load one" in regionqa(*words).err
    assert regionqa(*words, "--server-model", "any").status == 0


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("--server", "localhost:8000"), "give an address such as http://localhost:8000"),
        (("--server", "http://me:secret@localhost"), "variable REGIONQA_SERVER_KEY"),
        (("--server", "http://localhost:x"), "give an address"),
        (("--server-model", "x"), "--server-model: has no effect without --server"),
        (("--server-concurrency", "2"), "--server-concurrency: has no effect without --server"),
        (("--server", "http://localhost", "--device", "cpu"), "have no effect; drop them"),
        (("--server", "http://localhost", "--server-concurrency", "99"), "raise --batch-size too"),
        (("--server", "http://localhost", "--model", "gpt4roi-7b"), "no card of a server's model"),
        (("--server", "http://localhost", "--model", "a/b"), "no card of a server's model"),
        (("--server", "http://localhost", "--way", "coordinates"), "by crop or crop-only or drawn"),
    ],
    ids=lambda each: each if isinstance(each, str) else " ".join(each),
)
def test_what_cannot_be_asked_is_refused_first(
    regionqa: "Command", colours: Path, words: tuple[str, ...], reason: str
) -> None:
    ran = regionqa("ask", colours / "red.png", "what?", *words)
    assert (ran.status in (1, 2), ran.out) == (True, "")
    assert reason in ran.err
    assert "secret" not in ran.err


def test_server_that_is_not_running(
    regionqa: "Command", server: ChatServer, colours: Path, waits: list[float]
) -> None:
    server.close()
    words = ("ask", colours, "what?", "--server", server.url, *CARD, "--format", "jsonl")
    first = regionqa(*words)
    assert (first.status, first.out) == (1, "")
    assert "cannot be reached (Connection refused); is the server running?" in first.err
    every = regionqa(*words, "--server-model", "tiny-vl")
    assert every.status == 3
    errors = [record["error"] for record in answer_lines(every.out)]
    assert len(errors) == 3
    assert all("is the server running?" in error for error in errors)
    # once it was waited for in vain, the remaining items are not
    assert len(waits) == retries.ATTEMPTS[retries.Fault.lost] - 1


def test_key_is_sent_and_never_shown(
    regionqa: "Command",
    server: ChatServer,
    colours: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("DEBUG")
    words = ("ask", colours / "red.png", "what?", "--server", server.url, *CARD, "--debug")
    server.key = "right-key"
    monkeypatch.setenv("OPENAI_API_KEY", "key-of-openai")
    monkeypatch.setenv("OPENAI_ORG_ID", "my-organization")
    assert "401" in regionqa(*words).err
    monkeypatch.setenv("REGIONQA_SERVER_KEY", "wrong-key")
    failed = regionqa(*words, "--server-model", "tiny-vl")
    assert failed.status == 3
    assert "401: wrong key ***; set the environment variable REGIONQA_SERVER_KEY" in failed.err
    monkeypatch.setenv("REGIONQA_SERVER_KEY", "right-key")
    ran = regionqa(*words)
    assert ran.status == 0
    sent = [dict(asked.headers) for asked in server.asked]
    assert sent[-1]["authorization"] == "Bearer right-key"
    assert "key-of-openai" not in str(sent)
    assert "my-organization" not in str(sent)
    shown = f"{failed.out}{failed.err}{ran.out}{ran.err}{caplog.text}"
    assert not any(key in shown for key in ("wrong-key", "right-key", "key-of-openai"))
