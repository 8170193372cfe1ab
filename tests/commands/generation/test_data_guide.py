"""docs/guide/data.md: the commands from annotations to a model, exactly as they stand there."""

import re
import subprocess
from pathlib import Path

import pytest

from helpers.vlm.chat_server import ChatServer, answer_lines
from helpers.vlm.instruction_server import instances, scripted

GUIDE = Path(__file__).parents[3] / "docs" / "guide" / "data.md"
ADDRESS = "http://localhost:8000"
"""Of the server in the guide; the test's own has another port."""


def commands() -> list[str]:
    section = GUIDE.read_text(encoding="utf-8").partition("\n## From annotations to a model\n")[2]
    (block,) = re.findall(r"```console\n(.*?)```", section.partition("\n## ")[0], re.DOTALL)
    return [line.removeprefix("$ ") for line in block.splitlines()]


@pytest.mark.slow
def test_commands_lead_from_annotations_to_answers(
    tmp_path: Path, forked: str, server: ChatServer
) -> None:
    """One shell runs them all, as each reads what those before have written."""
    server.answer, server.structured = scripted, False
    (tmp_path / "photos").mkdir()
    instances(tmp_path / "photos", 3).rename(tmp_path / "instances.json")
    lines = commands()
    words = " ".join(line.removeprefix("regionqa ").removeprefix("data ") for line in lines)
    steps = ("convert", "generate", "check", "stats", "look", "finetune", "eval", "ask")
    assert [word for word in words.split() if word in steps] == [*steps]
    assert sum(ADDRESS in line for line in lines) == 1
    script = ["set -eu", f'regionqa() {{ {forked} "$@"; }}']
    for number, line in enumerate(lines):
        script += [f"echo '=== {number}' >&2", f"echo '=== {number}'"]
        script.append(line.replace(ADDRESS, server.url))
    done = subprocess.run(
        ["bash", "-c", "\n".join(script)], cwd=tmp_path, capture_output=True, text=True
    )
    reached = lines[done.stderr.count("===") - 1]
    assert done.returncode == 0, f"{reached}\n{done.stderr[-2000:]}"
    assert "error" not in done.stderr
    names, generated = (
        answer_lines((tmp_path / f"{name}.jsonl").read_text()) for name in ("names", "generated")
    )
    assert len(names) == 9 and len(generated) == 3 * 5
    assert {each["kind"] for each in generated} == {
        "small", "relations", "category", "multi-turn", "general",
    }  # fmt: skip
    parts = re.split(r"=== \d+\n", done.stdout)[1:]
    assert "15 records shown in look.html" in parts[4]
    assert re.search(r"^  records +24$", parts[3], re.MULTILINE)
    assert (tmp_path / "my-model" / "card.toml").exists()
    assert parts[-1].strip()
