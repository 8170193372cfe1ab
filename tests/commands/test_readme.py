"""README: every command of the tour and the Python example run."""

import re
import subprocess
from pathlib import Path

import pytest

from regionqa.pipeline.demo import copy_photos

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SETUP = ("make ", ". .venv/bin/activate", "cd demo-images/photos")


def tour() -> list[str]:
    """The commands of all console blocks, without those that set up."""
    blocks = re.findall(r"```console\n(.*?)```", README, re.DOTALL)
    lines = [line.removeprefix("$ ") for block in blocks for line in block.splitlines()]
    return [line for line in lines if not line.startswith(SETUP)]


def test_readme_starts_with_the_setup_commands() -> None:
    first = re.findall(r"^\$ (\S+ \S+)", README, re.MULTILINE)[:2]
    assert first == ["make demo", "make test"]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert re.search(r"^demo:", makefile, re.MULTILINE)
    assert re.search(r"^test:", makefile, re.MULTILINE)


def test_tour_commands_work(tmp_path: Path, forked: str) -> None:
    """One shell runs them all, as the tour's files build on each other."""
    copy_photos(tmp_path)
    commands = tour()
    assert len(commands) >= 15
    script = ["set -eu", f'regionqa() {{ {forked} "$@"; }}']
    for number, command in enumerate(commands):
        script += [f"echo '=== {number}' >&2", f"echo '=== {number}'", command]
    done = subprocess.run(
        ["bash", "-c", "\n".join(script)], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{commands[done.stderr.count('===') - 1]}\n{done.stderr[-2000:]}"
    assert "error" not in done.stderr
    for number, part in enumerate(re.split(r"=== \d+\n", done.stdout)[1:]):
        command = commands[number]
        answers_to_file = "--out" in command and not command.startswith("regionqa finetune")
        silent = " > " in command or " >> " in command or answers_to_file
        assert bool(part.strip()) != silent, commands[number]
    assert (tmp_path / "cup-answered.png").stat().st_size > 10_000
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 3
    assert len((tmp_path / "captions.jsonl").read_text().splitlines()) == 5


def test_python_example_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    copy_photos(tmp_path)
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    exec(compile(code, "README.md", "exec"), {})
    assert capsys.readouterr().out.strip()
