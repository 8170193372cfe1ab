"""docs/guide/data.md: the commands from annotations to a model, exactly as they stand there."""

import os
import re
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from helpers.datasets.sized import PER_IMAGE, convert_words
from helpers.vlm.chat_server import ChatServer, answer_lines
from helpers.vlm.instruction_server import instances, scripted

if TYPE_CHECKING:
    from conftest import Command

GUIDE = Path(__file__).parents[3] / "docs" / "guide" / "data.md"
ADDRESS = "http://localhost:8000"
"""Of the server in the guide; the test's own has another port."""


def blocks(section: str, language: str) -> str:
    """The only block of a language in a section of the guide."""
    text = GUIDE.read_text(encoding="utf-8").partition(f"\n## {section}\n")[2]
    (block,) = re.findall(rf"```{language}\n(.*?)```", text.partition("\n## ")[0], re.DOTALL)
    return str(block)


def commands(section: str = "From annotations to a model") -> list[str]:
    return [line.removeprefix("$ ") for line in blocks(section, "console").splitlines()]


@pytest.fixture
def path(tmp_path: Path, forked: str) -> str:
    """A value of PATH with `regionqa`, for shells and for programs that start it."""
    program = tmp_path / "bin" / "regionqa"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {forked} "$@"\n')
    program.chmod(0o755)
    return f"{program.parent}{os.pathsep}{os.environ['PATH']}"


def test_shards_convert_side_by_side(tmp_path: Path, path: str) -> None:
    words = convert_words("visual-genome-objects", tmp_path, 5 * PER_IMAGE)
    (tmp_path / "objects.json").rename(tmp_path / "whole.json")
    words[2] = str(tmp_path / "whole.json")
    environment = {**os.environ, "PATH": path}
    whole = tmp_path / "whole.jsonl"
    subprocess.run(["regionqa", *words, "--out", whole], env=environment, check=True)
    (tmp_path / "whole.json").rename(tmp_path / "objects.json")
    script = "\n".join(["set -eu", *commands("Several processes")])
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, env=environment)
    assert done.returncode == 0
    parts = (tmp_path / "objects.jsonl").read_text().splitlines()
    assert len(parts) == 10
    assert sorted(parts) == sorted(whole.read_text().splitlines())


def test_shards_of_a_job_array(
    regionqa: "Command", tmp_path: Path, path: str, server: ChatServer
) -> None:
    """Each task knows its number and theirs; one that is started again asks nothing anew."""
    server.answer, server.structured = scripted, False
    (tmp_path / "photos").mkdir()
    found = instances(tmp_path / "photos", 3).rename(tmp_path / "instances.json")
    head, script = blocks("Several processes", "bash").split("\n", 1)
    assert head.startswith("#SBATCH --array=1-")
    script = script.replace("http://gpu7:8000", server.url)
    assert server.url in script
    for task in ("1", "2", "2"):
        environment = {**os.environ, "PATH": path, "SLURM_ARRAY_TASK_ID": task,
                       "SLURM_ARRAY_TASK_COUNT": "2"}  # fmt: skip
        subprocess.run(["bash", "-euc", script], cwd=tmp_path, env=environment, check=True)
    asked, whole = len(server.asked), tmp_path / "whole.jsonl"
    words = ("--images", tmp_path / "photos", "--server", server.url, "--out", whole)
    assert regionqa("data", "generate", found, *words).status == 0
    assert len(server.asked) == 2 * asked
    parts = [(tmp_path / f"generated-{n}.jsonl").read_text() for n in (1, 2)]
    assert all(parts)
    assert sorted("".join(parts).splitlines()) == sorted(whole.read_text().splitlines())


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
