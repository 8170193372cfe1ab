"""`data generate --look-with`: a vision model's descriptions of regions as facts."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from helpers.vlm.chat_server import ChatServer, answer_lines
from helpers.vlm.instruction_server import instances, scripted

if TYPE_CHECKING:
    from conftest import Command

GENERATE = ("data", "generate")
SAYS = "- A vision model, which may be wrong, says of <region"


@pytest.fixture
def writer(server: ChatServer) -> ChatServer:
    """A server whose model writes faultless replies."""
    server.answer, server.structured = scripted, False
    return server


def facts(server: ChatServer) -> list[list[str]]:
    """What the requests say that the model saw."""
    lines = [asked.question.splitlines() for asked in server.asked]
    return [[line for line in each if line.startswith(SAYS)] for each in lines]


def test_what_a_model_sees_is_told_and_kept(
    regionqa: "Command", writer: ChatServer, toy: Path, tmp_path: Path
) -> None:
    found, out = instances(tmp_path, 2), tmp_path / "out.jsonl"
    words = (*GENERATE, found, "--server", writer.url, "--out", out, "--kinds", "attributes")
    blind = regionqa(*words)
    assert blind.status == 0
    assert "attributes        0          0          0        -              2" in blind.out
    ran = regionqa(*words, "--overwrite", "--look-with", toy)
    assert (ran.status, ran.err) == (0, "regionqa: toy-1 described 6 regions\n")
    assert len(answer_lines(out.read_text())) == 2
    told = facts(writer)
    assert [len(each) for each in told] == [3, 3]
    assert told[0][0].partition(": ")[2] and told[0][1].startswith(f"{SAYS}2>: ")
    writer.asked.clear()
    before = out.read_bytes()
    again = regionqa(*words, "--resume", "--look-with", toy)
    assert (again.status, again.err) == (0, "regionqa: toy-1 described 0 regions, 6 from before\n")
    assert (writer.asked, out.read_bytes()) == ([], before)
    kept = answer_lines((tmp_path / "out.replies.jsonl").read_text())
    assert sum(each["finish"] == "looked" for each in kept) == 6
    assert "tokens" in ran.out and "requests            2" in ran.out


def test_regions_that_cannot_be_looked_at_are_told(
    regionqa: "Command", writer: ChatServer, toy: Path, tmp_path: Path
) -> None:
    found, out = instances(tmp_path, 2, ["cup"] * 14), tmp_path / "out.jsonl"
    cut = tmp_path / "001.png"
    cut.write_bytes(cut.read_bytes()[:60])
    document = json.loads(found.read_text())
    boxes = [each for each in document["annotations"] if each["bbox"][0] < 80]
    found.write_text(json.dumps({**document, "annotations": boxes}))
    ran = regionqa(
        *GENERATE, found, "--server", writer.url, "--out", out, "--kinds", "small",
        "--look-with", toy,
    )  # fmt: skip
    assert ran.status == 0
    assert "described 8 regions" in ran.err
    assert "8 regions not looked at, the first: " in ran.err and "001.png" in ran.err
    assert sorted(len(each) for each in facts(writer)) == [0, 8]  # asked side by side


def test_an_unknown_model_is_an_error(
    regionqa: "Command", writer: ChatServer, tmp_path: Path
) -> None:
    found = instances(tmp_path, 1)
    ran = regionqa(*GENERATE, found, "--server", writer.url, "--out", tmp_path / "out.jsonl",
                   "--look-with", "stater")  # fmt: skip
    assert (ran.status, writer.asked) == (1, [])
    assert "stater: no such model; did you mean starter?" in ran.err
