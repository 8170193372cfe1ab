"""The training log and the newest checkpoint."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from regionqa.bundles.store import Bundle
from regionqa.errors import UsageError
from regionqa.finetune import checkpoint as checkpoints
from regionqa.finetune.checkpoint import TrainingProgress
from regionqa.finetune.distributed import ProcessGroup
from regionqa.finetune.run import check_out
from regionqa.finetune.tracking import LogEntry, TrainingLog, read_log, truncate_log

Tiny = Callable[[str], Bundle]


def test_log_is_truncated_on_resume(tmp_path: Path) -> None:
    entries = [
        LogEntry("align", 1, 3.0, 0.0, 0.1, 5, 0.5),
        LogEntry("align", 2, 2.0, 0.0, 0.1, 5, 0.9),
        LogEntry("instruct", 0, 2.0, 0.0, held_out=True),
        LogEntry("instruct", 1, 1.0, 0.5, 0.1, 5, 1.2),
        LogEntry("instruct", 2, 0.5, 1.0, 0.1, 5, 1.5),
    ]
    processes = ProcessGroup("cpu")
    try:
        with TrainingLog(tmp_path, processes, quiet=True) as log:
            for entry in entries:
                log.add(entry, 2)
    finally:
        processes.close()
    assert read_log(tmp_path) == entries
    file = tmp_path / "log.jsonl"
    file.write_text(file.read_text()[:-20])
    assert read_log(tmp_path) == entries[:-1], "a line that was cut short is left out"
    truncate_log(tmp_path, ("align",), "instruct", 0)
    assert read_log(tmp_path) == entries[:3]
    truncate_log(tmp_path, (), "align", 1)
    assert read_log(tmp_path) == entries[:1]
    assert file.read_text().endswith("}\n")
    truncate_log(tmp_path, (), "align", -1)
    assert file.read_text() == ""
    assert read_log(tmp_path / "nowhere") == []


def test_newest_complete_checkpoint(tmp_path: Path) -> None:
    assert checkpoints.newest(tmp_path) is None
    for name, whole in (
        ("1-000900", True), ("2-000004", True), ("2-000010", True), ("2-000011", False),
        ("2-000012.partial", True), ("3-x", True), ("notes", True),
    ):  # fmt: skip
        (tmp_path / name).mkdir()
        if whole:
            table = {"stage": "instruct", "step": 1, "trained": ["a"], "seconds": 2.0}
            (tmp_path / name / "progress.json").write_text(json.dumps(table))
    found = checkpoints.newest(tmp_path)
    assert found == (tmp_path / "2-000010", TrainingProgress("instruct", 1, ("a",), 2.0))


def test_a_checkpoint_that_is_half_removed_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "checkpoints" / "1-000004"
    folder.mkdir(parents=True)
    table = {"stage": "align", "step": 4, "trained": [], "seconds": 2.0}
    (folder / "progress.json").write_text(json.dumps(table))

    def killed(path: Path, **_: object) -> None:
        if path.exists():
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(shutil, "rmtree", killed)
        checkpoints.remove(folder)
    assert checkpoints.newest(folder.parent) is None
    checkpoints.remove(folder.parent)
    assert not folder.parent.exists()


@pytest.mark.parametrize("resume", [False, True])
def test_a_run_that_was_killed_at_once_can_be_started_again(tmp_path: Path, resume: bool) -> None:
    """It has made its folders, and perhaps a part of its settings."""
    (tmp_path / "training").mkdir()
    (tmp_path / "training" / ".regionqa-0123456789abcdef").write_text("[settings]\nda")
    check_out(tmp_path, resume=resume)
    (tmp_path / "training" / "notes.txt").touch()
    with pytest.raises(UsageError, match="exists and holds no training run"):
        check_out(tmp_path, resume=resume)
