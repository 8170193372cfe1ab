"""Replies of a server: thoughts, confidence, choices, problems and delays."""

import math
import time
from email.utils import formatdate
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.vlm.chat_server import ChatHandler, ChatServer, cut, cut_connection
from regionqa.backends.server import retries
from regionqa.backends.server.choices import read_choice
from regionqa.backends.server.client import ChatClient, read_address
from regionqa.backends.server.model import GENERIC, ServerModel
from regionqa.backends.server.replies import Reply, ReplyToken
from regionqa.backends.server.retries import ATTEMPTS, Fault, ServerProblem, retry_after
from regionqa.engine import Engine
from regionqa.errors import ItemError, UsageError
from regionqa.images.reading import image_from_memory
from regionqa.options import RuntimeOptions
from regionqa.requests import Answer, Request


def asked(server: ChatServer, *requests: Request, **values: Any) -> list[Answer]:
    model = ServerModel(GENERIC, read_address(server.url), "tiny-vl")
    return list(Engine(model.load(RuntimeOptions(server=server.url))).answer(requests, **values))


def request(question: str, *choices: str) -> Request:
    from PIL import Image

    source = image_from_memory(Image.new("RGB", (8, 8)))
    return Request("a", question, (), source, choices=choices)


# -- answers ---------------------------------------------------------------------------------------


def test_confidence_is_the_probability_of_all_tokens(server: ChatServer) -> None:
    assert [each.confidence for each in asked(server, request("what?"))] == [None]
    server.logprob = math.log(0.5)
    server.answer = lambda _: "a red cat"
    (answer,) = asked(server, request("what?"))
    assert (answer.text, answer.tokens) == ("a red cat", 4)  # as the server counts
    assert answer.confidence == pytest.approx(0.5**3)
    server.counts = False
    assert [each.tokens for each in asked(server, request("what?"))] == [3]


def test_broken_reply_is_asked_again_whatever_others_met(
    server: ChatServer, waits: list[float]
) -> None:
    """While a reply arrives, another request gives up because the server cannot be reached."""

    def cut_after_a_word(handler: ChatHandler) -> None:
        handler.begin_stream()
        handler.chunk(b'data: {"choices": [{"index": 0, "delta": {"content": "wrong"}}]}\n\n')
        cut_connection(handler)

    server.faults = {"what": [cut_after_a_word]}
    server.answer = lambda _: "a cat"
    timeout = RuntimeOptions().server_timeout
    client = ChatClient(read_address(server.url), timeout, concurrency=1)

    def while_it_grows(reply: Reply) -> None:
        client._down = not waits

    messages = [{"role": "user", "content": [{"type": "text", "text": "what?"}]}]
    body = {"model": "tiny-vl", "messages": messages, "max_tokens": 9}
    assert client.run(client.reply(body, while_it_grows)).content == "a cat"
    assert len(waits) == 1


def test_answer_is_streamed_and_begins_anew_after_a_cut(
    server: ChatServer, waits: list[float]
) -> None:
    server.answer = lambda _: "a red cat"
    parts: list[str] = []
    asked(server, request("what?"), on_text=lambda _, part: parts.append(part))
    assert (parts[0], "".join(parts)) == ("a", "a red cat")
    assert len(parts) > 1
    server.faults = {"what": [cut]}
    parts.clear()
    (answer,) = asked(server, request("what?"), on_text=lambda _, part: parts.append(part))
    assert (answer.text, "".join(parts)) == ("a red cat", "a red cat")
    assert len(waits) == 1


def test_error_of_the_listener_ends_the_call(server: ChatServer) -> None:
    def listen(_: Request, part: str) -> None:
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        asked(server, *(request(f"what {n}?") for n in range(4)), on_text=listen)


def test_thoughts_are_no_part_of_the_answer(server: ChatServer) -> None:
    server.logprob = -0.1
    server.answer = lambda _: "<think> is it a cat? </think> a cat"
    parts: list[str] = []
    (answer,) = asked(server, request("what?"), on_text=lambda _, part: parts.append(part))
    assert (answer.text, "".join(parts), answer.confidence) == ("a cat", "a cat", None)
    (answer,) = asked(server, request("what?"), max_new_tokens=3)
    assert "thought for all of its 3 tokens" in str(answer.error)


@given(st.text(alphabet="<think>/ ab", max_size=30))
def test_stable_text_only_grows(text: str) -> None:
    reply, shown = Reply(), ""
    for character in text:
        reply.content += character
        assert reply.stable.startswith(shown.rstrip()) or shown.startswith(reply.stable)
        shown = reply.stable
    assert reply.answer.startswith(reply.stable.strip()) or reply.stable == ""


# -- choices ---------------------------------------------------------------------------------------


def test_choice_is_made_by_the_servers_structured_output(server: ChatServer) -> None:
    server.answer = lambda _: "green"
    choices = ("red", "green", 'say "no"', "grün")
    (answer,) = asked(server, request("which?", *choices))
    assert (answer.text, answer.confidence) == ("green", None)
    schema = server.asked[0].body["response_format"]["json_schema"]["schema"]
    assert schema["properties"]["answer"]["enum"] == list(choices)
    for choice in choices:
        server.answer = lambda _, choice=choice: choice  # type: ignore[misc]
        assert [each.text for each in asked(server, request("which?", *choices))] == [choice]


def test_server_without_structured_output_is_a_clear_error(server: ChatServer) -> None:
    server.structured = False
    (answer,) = asked(server, request("which?", "red", "green"))
    assert "needs structured output" in str(answer.error)
    server.answer = lambda _: "green"  # it keeps to the choices all the same
    assert [each.text for each in asked(server, request("which?", "red", "green"))] == ["green"]


def choice_reply(*tokens: tuple[str, float, dict[str, float]]) -> Reply:
    made = [
        ReplyToken(text, math.log(p), {t: math.log(q) for t, q in {**others, text: p}.items()})
        for text, p, others in tokens
    ]
    return Reply("".join(token.text for token in made), made, "stop")


def test_confidence_is_the_share_among_the_choices() -> None:
    reply = choice_reply(
        ('{"answer": "', 0.01, {"The": 0.9}),  # the rest is no way to any choice
        ("red", 0.2, {"re": 0.1, "blue": 0.1, "green": 0.3}),
        (" car", 0.5, {" bus": 0.25, " cat": 0.2}),
        ('"}', 1.0, {}),
    )
    chosen = read_choice(reply, ["red bus", "red car", "blue"])
    assert chosen.index == 1
    # "re" leads to both, so it speaks for none of the others
    assert chosen.confidence == pytest.approx((0.3 / 0.4) * (0.5 / 0.75))
    none = Reply(reply.content, [ReplyToken(t.text, t.log, {}) for t in reply.tokens], "stop")
    assert read_choice(none, ["red bus", "red car"]).confidence is None


def test_choice_that_is_the_fields_name() -> None:
    reply = choice_reply(
        ('{"answer": ', 1.0, {}), ('"answer"', 0.6, {'"other"': 0.2}), ("}", 1.0, {})
    )
    chosen = read_choice(reply, ["other", "answer"])
    assert chosen.index == 1
    assert chosen.confidence == pytest.approx(0.75)


@pytest.mark.parametrize("text", ["", "7", "[]", '{"answer": 7}', '{"other": "red"}', '"gray"'])
def test_other_text_is_no_choice(text: str) -> None:
    with pytest.raises(ItemError, match="does not keep to the choices"):
        read_choice(Reply(text, [], "stop"), ["red", "7x"])


# -- delays ----------------------------------------------------------------------------------------


def test_delays_double_and_end() -> None:
    busy = ServerProblem(Fault.busy, "busy")
    for attempt in range(1, ATTEMPTS[Fault.busy]):
        full = retries.FIRST_DELAY * 2 ** (attempt - 1)
        delays = [busy.delay(attempt) or 0.0 for _ in range(50)]
        assert full / 2 <= min(delays) < max(delays) <= full
    assert busy.delay(ATTEMPTS[Fault.busy]) is None
    assert ServerProblem(Fault.refused, "").delay(1) is None
    assert (ServerProblem(Fault.busy, "", 20.0).delay(1) or 0) >= 20
    assert ServerProblem(Fault.busy, "", retries.LONGEST_WAIT + 1).delay(1) is None


def test_retry_after_is_a_number_or_a_date() -> None:
    assert retry_after({}) is None
    assert retry_after({"retry-after": "1.5"}) == 1.5
    assert retry_after({"retry-after": "-3"}) == 0
    date = formatdate(time.time() + 100, usegmt=True)
    assert retry_after({"retry-after": date}) == pytest.approx(100, abs=60)
    for broken in ("soon", "nan", "Mon, 99 Jan 2026 00:00:00 GMT"):
        assert retry_after({"retry-after": broken}) is None


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("http://localhost:8000", "http://localhost:8000/v1"),
        ("http://localhost:8000/", "http://localhost:8000/v1"),
        ("https://host/api/openai/v1/", "https://host/api/openai/v1"),
        ("http://[::1]:9/v1", "http://[::1]:9/v1"),
    ],
)
def test_addresses(text: str, url: str) -> None:
    assert read_address(text).url == url


@pytest.mark.parametrize(
    "text", ["", "localhost", "ftp://x", "http://", "http://a?k=1", "http://["]
)
def test_malformed_addresses(text: str) -> None:
    with pytest.raises(UsageError, match="--server"):
        read_address(text)


def test_key_of_openai_goes_to_openai_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REGIONQA_SERVER_KEY", raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", " of-openai\n")
    assert read_address("https://api.openai.com/v1").key == "of-openai"
    assert read_address("https://api.openai.com.example.org/v1").key is None
    monkeypatch.setenv("REGIONQA_SERVER_KEY", "own")
    assert read_address("https://api.openai.com").key == "own"
    monkeypatch.setenv("REGIONQA_SERVER_KEY", "ü")
    with pytest.raises(UsageError, match="REGIONQA_SERVER_KEY: holds characters"):
        _ = read_address("http://a").key
