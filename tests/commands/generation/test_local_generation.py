"""`data generate --text-model`: a language model of transformers on this machine."""

import gc
import json
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from helpers.tiny_checkpoints import TEXT, write_qwen_tokenizer
from helpers.vlm.chat_server import answer_lines
from helpers.vlm.instruction_server import instances
from regionqa.export.sources.checkpoints import quiet_transformers
from regionqa.generation.local import LocalSource
from regionqa.generation.replies import PairReply, json_schema, read_reply
from regionqa.generation.sources import TextReply, TextRequest

if TYPE_CHECKING:
    from conftest import Command

CHAT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "<|im_start|>assistant\n"
)
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"


class Choice(msgspec.Struct, forbid_unknown_fields=True):
    """A reply that a model without training ends."""

    follows: bool
    other: bool


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny language model without training."""
    place = tmp_path_factory.mktemp("language")
    tokenizer = write_qwen_tokenizer(place, CHAT)
    torch.manual_seed(1)
    settings = {**TEXT, "max_position_embeddings": 32768, "vocab_size": 384}
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    model = LlamaForCausalLM(LlamaConfig(**settings, eos_token_id=end, bos_token_id=None))
    with quiet_transformers():
        model.save_pretrained(place)
    return place


def request(text: str, seed: int, **others: Any) -> TextRequest:
    messages = [{"role": "system", "content": "Judge."}, {"role": "user", "content": text}]
    values: dict[str, Any] = {"temperature": 9.0, "max_tokens": 40, **others}
    return TextRequest(messages, "choice", json_schema(Choice), seed, **values)


def replies(source: LocalSource, *requests: TextRequest) -> list[TextReply]:
    async def ask(each: TextRequest) -> TextReply:
        return await source.reply(each)

    return [future.result() for future in [source.start(ask(each)) for each in requests]]


def test_replies_satisfy_the_schema_and_depend_on_their_request_alone(folder: Path) -> None:
    source = LocalSource("tiny", folder, "cpu", "auto")
    try:
        asked = [request(f"number {seed}", seed) for seed in range(8)]
        found = replies(source, *asked)
        assert replies(source, *reversed(asked)) == found[::-1]
        assert source.attempts == 16
    finally:
        source.close()
    assert len({reply.text for reply in found}) > 1
    for reply in found:
        read_reply(reply.text, Choice)
        assert (reply.finish, reply.prompt_tokens > 10, 0 < reply.tokens < 40) == (
            "stop", True, True
        )  # fmt: skip


def test_closed_source_ends_the_reply_that_it_writes(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gc.freeze()  # what other tests have left is not reported here
    source = LocalSource("tiny", folder, "cpu", "auto")
    schema = json_schema(PairReply)
    asked = TextRequest(request("a", 1).messages, "pair", schema, 1, 9.0, 30_000)
    started = threading.Event()
    encode = source._encoded

    def hold(messages: Any) -> list[int]:
        started.set()
        assert source._closed.wait(600)
        return encode(messages)

    monkeypatch.setattr(source, "_encoded", hold)
    waiting = [source.start(source.reply(asked)) for _ in range(3)]
    assert started.wait(600)
    source.close()
    assert all(each.cancelled() for each in waiting)
    gc.collect()  # reports what was never awaited


def test_system_text_joins_the_question_of_a_model_without_that_role(
    folder: Path, tmp_path: Path
) -> None:
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "chat_template.jinja").write_text(NO_SYSTEM + CHAT)
    whole, joined = (LocalSource("tiny", each, "cpu", "auto") for each in (folder, tmp_path))
    asked = request("what?", 1, temperature=0.0)
    user = {"role": "user", "content": "Judge.\n\nwhat?"}
    try:
        (found,) = replies(joined, asked)
        alone = TextRequest([user], asked.schema_name, asked.schema, 1, 0.0, 40)
        assert [found] == replies(whole, alone)
    finally:
        whole.close()
        joined.close()


def test_command_asks_the_model_and_continues(
    regionqa: "Command", folder: Path, tmp_path: Path
) -> None:
    """A model without training writes JSON that does not end, or text that says nothing."""
    out, found = tmp_path / "out.jsonl", instances(tmp_path, 2)
    words = ("data", "generate", found, "--text-model", folder, "--out", out, "--device", "cpu",
             "--kinds", "relations,category", "--max-new-tokens", "12")  # fmt: skip
    ran = regionqa(*words, "--max-requests", "3")
    assert (ran.status, "1 task left" in ran.err) == (0, True)
    before = (tmp_path / "out.replies.jsonl").read_text()
    assert before.count("\n") == 3
    ran = regionqa(*words, "--resume")
    assert (ran.status, "3 replies kept from before" in ran.out) == (0, True)
    kept = answer_lines((tmp_path / "out.replies.jsonl").read_text())
    assert [json.dumps(each) for each in kept[:3]] == before.splitlines()
    assert all(each["text"].startswith('{"question"') for each in kept)
    rejected = answer_lines((tmp_path / "out.rejected.jsonl").read_text())
    assert [each["rejected"][0]["reason"] for each in rejected] == [
        "cut at the limit of tokens"
    ] * 4
    ran = regionqa(*words, "--resume", "--max-new-tokens", "32768")
    assert ran.status == 3
    assert "4 tasks without a reply" in ran.err


def test_model_without_a_chat_template(regionqa: "Command", folder: Path, tmp_path: Path) -> None:
    place = tmp_path / "model"
    place.mkdir()
    for path in folder.iterdir():
        if path.name != "chat_template.jinja":
            (place / path.name).write_bytes(path.read_bytes())
    words = ("data", "generate", instances(tmp_path, 1), "--out", tmp_path / "out.jsonl")
    ran = regionqa(*words, "--text-model", place)
    assert ran.status == 2
    assert f"--text-model {place}: has no chat template; name a model that was trained" in ran.err
    both = regionqa(*words, "--text-model", place, "--server", "http://localhost:1")
    assert (both.status, "has no effect beside --text-model" in both.err) == (2, True)
