"""`regionqa batch` with its stages in this process, and what it has written."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import regionqa.cli.batch
from regionqa.batch.run import answered_here

if TYPE_CHECKING:
    from conftest import Command, CommandResult

Batch = Callable[..., "CommandResult"]


def stay_in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the command answer here instead of on Ray, which need not be installed."""
    cli: Any = regionqa.cli.batch
    monkeypatch.setattr(cli, "BATCH", ())
    monkeypatch.setattr(cli, "_on_ray", lambda options: answered_here)


def batch_of(regionqa: "Command", model: Path, folder: Path) -> Batch:
    """`batch(INPUT, *words)`: answers of a model as JSON lines in `out` of a folder."""

    def run(input: object, *words: object, out: str = "out") -> "CommandResult":
        kind = () if "--format" in words else ("--format", "jsonl")
        return regionqa("batch", input, folder / out, "--model", model, *kind, *words)

    return run


def written(folder: Path) -> list[str]:
    """All lines of all parts, sorted."""
    return sorted(
        line for path in folder.glob("part-*.jsonl") for line in path.read_text().splitlines()
    )


def answers(folder: Path) -> dict[str, Any]:
    """Answers, or errors, by image."""
    rows = map(json.loads, written(folder))
    return {Path(row["image"]).name: row["answer"] or row["error"] for row in rows}


def file_of(path: Path, content: str) -> Path:
    """Write a file, and return its path."""
    path.write_text(content)
    return path
