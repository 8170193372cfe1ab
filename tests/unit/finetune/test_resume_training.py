"""Interrupt training in every way and resume it: the result equals an uninterrupted run."""

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from helpers.tiny_models import log_of
from helpers.training import call_at_step
from regionqa.bundles.store import Bundle, open_bundle
from regionqa.cli import main
from regionqa.finetune import checkpoint as checkpoints
from regionqa.finetune import run
from regionqa.finetune.model import RegionLanguageModel

if TYPE_CHECKING:
    from conftest import Command

Tiny = Callable[[str], Bundle]
CPU = ("--device", "cpu")
STEPS = 12
"""Steps of each of the two stages."""
FILES = ("encoders.safetensors", "llm/model.safetensors", "llm/config.json")
FILE_SIZE = resource.RLIMIT_FSIZE
KILLED_AT_STEP = """
import os, signal, sys
from helpers.training import call_at_step
from regionqa.cli import main
call_at_step("instruct", 8, lambda: os.kill(os.getpid(), signal.SIGKILL))
main(sys.argv[1:])
"""
"""Program that runs a command until it is killed in the middle of the second stage."""


@pytest.fixture(scope="module")
def command(tiny: Tiny, things: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A training command with two stages, random numbers of every kind and all state; ends with
    `--out`."""
    settings = tmp_path_factory.mktemp("settings") / "settings.toml"
    settings.write_text("lora_rank = 4\nlora_dropout = 0.1\n[instruct]\northogonal_rate = 0.2\n")
    words = (
        "finetune", "--data", things, "--model", tiny("levels").root, "--settings", settings,
        "--steps", STEPS, "--batch", 4, "--learning-rate", 0.01, "--box-noise", 0.1,
        "--evaluate-every", 6, "--save-every", 5, *CPU, "--out",
    )  # fmt: skip
    return [str(word) for word in words]


@pytest.fixture(scope="module")
def uninterrupted(command: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of a run that was never interrupted."""
    out = tmp_path_factory.mktemp("uninterrupted") / "mine"
    assert main([*command, str(out), "--quiet"]) == 0
    return out


@pytest.fixture(scope="module")
def stopped_run(command: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of a run that SIGTERM ended after its third step."""
    out = tmp_path_factory.mktemp("stopped") / "mine"
    with pytest.MonkeyPatch.context() as patch:
        call_at_step("align", 3, lambda: os.kill(os.getpid(), signal.SIGTERM), patch)
        assert main([*command, str(out), "--quiet"]) == 143
    return out


@pytest.fixture
def stopped(stopped_run: Path, tmp_path: Path) -> Path:
    """A copy of `stopped_run` that a test may change."""
    return shutil.copytree(stopped_run, tmp_path / "mine")


def assert_same_result(out: Path, expected: Path) -> None:
    """Assert that two runs logged the same figures and wrote the same bytes."""
    assert log_of(out) == log_of(expected)
    for name in FILES:
        assert (out / name).read_bytes() == (expected / name).read_bytes(), name
    assert open_bundle(out).card.provenance == open_bundle(expected).card.provenance
    assert not (out / "training" / "checkpoints").exists()
    assert "nan" not in (out / "training" / "log.jsonl").read_text().lower()


# -- signals and time limits -----------------------------------------------------------------------


def test_resume_after_sigkill(
    command: list[str], uninterrupted: Path, tmp_path: Path,
    regionqa: "Command",
) -> None:  # fmt: skip
    out = tmp_path / "mine"
    path = os.pathsep.join(filter(None, sys.path))
    killed = subprocess.run(
        [sys.executable, "-c", KILLED_AT_STEP, *command, str(out)],
        env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (out / "card.toml").exists()
    resumed = regionqa(*command, out, "--resume")
    assert (resumed.status, resumed.out) == (0, f"{out}\n"), resumed.err
    assert "instruct: resumes after step 5" in resumed.err, "the last checkpoint"
    assert_same_result(out, uninterrupted)


def test_resume_after_sigterm(
    command: list[str],
    uninterrupted: Path,
    tmp_path: Path,
    regionqa: "Command",
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "mine"
    with monkeypatch.context() as patch:
        call_at_step("align", 2, lambda: os.kill(os.getpid(), signal.SIGTERM), patch)
        ran = regionqa(*command, out)
    assert (ran.status, ran.out) == (143, "")
    message = re.fullmatch(
        rf"regionqa: error: terminated by SIGTERM at step 2 of {STEPS} of align; saved in (.+); "
        r"continue with the same command and --resume",
        ran.err.splitlines()[-1],
    )
    assert message, ran.err
    assert Path(message[1]).is_dir()
    resumed = regionqa("finetune", "--out", out, "--resume", *CPU)
    assert "align: resumes after step 2" in resumed.err
    assert_same_result(out, uninterrupted)


def test_resume_after_ctrl_c(
    command: list[str],
    uninterrupted: Path,
    tmp_path: Path,
    regionqa: "Command",
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "mine"
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with monkeypatch.context() as patch:
        call_at_step("instruct", 8, lambda: os.kill(os.getpid(), signal.SIGINT), patch)
        ran = regionqa(*command, out)
    assert (ran.status, ran.out) == (130, "")
    assert f"interrupted at step 8 of {STEPS} of instruct; saved in " in ran.err.splitlines()[-1]
    assert handlers == [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    assert regionqa(*command, out, "--resume").status == 0
    assert_same_result(out, uninterrupted)


def test_second_ctrl_c_exits_without_saving(
    command: list[str],
    uninterrupted: Path,
    tmp_path: Path,
    regionqa: "Command",
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def twice() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    out = tmp_path / "mine"
    with monkeypatch.context() as patch:
        call_at_step("align", 2, twice, patch)
        ran = regionqa(*command, out)
    assert ran.status == 130
    assert not (out / "training" / "checkpoints").exists()
    assert len(log_of(out)) > 1
    assert regionqa(*command, out, "--resume").status == 0
    assert_same_result(out, uninterrupted)


def test_resume_after_time_limit(
    command: list[str], uninterrupted: Path, tmp_path: Path, regionqa: "Command",
) -> None:  # fmt: skip
    out = tmp_path / "mine"
    for part in range(2):
        ran = regionqa(*command, out, "--max-minutes", 0.0001, *(["--resume"] if part else []))
        assert (ran.status, ran.out) == (3, "")
        message = f"time limit reached at step {part + 1} of {STEPS} of align; saved in "
        assert message in ran.err.splitlines()[-1]
    assert regionqa(*command, out, "--resume").status == 0
    assert_same_result(out, uninterrupted)


def test_resume_after_ctrl_c_while_measuring_result(
    command: list[str],
    uninterrupted: Path,
    tmp_path: Path,
    regionqa: "Command",
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "mine"

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(run, "measure_result", interrupt)
        assert regionqa(*command, out).status == 130
    assert regionqa(*command, out, "--resume").status == 0
    assert_same_result(out, uninterrupted)


# -- failures --------------------------------------------------------------------------------------


def test_full_disk_keeps_last_checkpoint(
    command: list[str],
    uninterrupted: Path,
    tmp_path: Path,
    regionqa: "Command",
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A limit of 20 kB per file fails as a full disk does."""
    out = tmp_path / "mine"
    before = resource.getrlimit(FILE_SIZE)
    try:
        with monkeypatch.context() as patch:
            limit = (20_000, before[1])
            call_at_step("align", 7, lambda: resource.setrlimit(FILE_SIZE, limit), patch)
            ran = regionqa(*command, out)
    finally:
        resource.setrlimit(FILE_SIZE, before)
    assert (ran.status, ran.out) == (1, "")
    last = ran.err.splitlines()[-1]
    kept = out / "training" / "checkpoints" / "1-000005"
    assert "1-000010: cannot be written: " in last
    assert "File too large" in last
    assert f"the checkpoint {kept} is kept; make room and continue with --resume" in last
    assert [path.name for path in kept.parent.iterdir()] == ["1-000005"]
    resumed = regionqa(*command, out, "--resume")
    assert "align: resumes after step 5" in resumed.err
    assert_same_result(out, uninterrupted)


def test_full_disk_at_first_checkpoint(
    command: list[str], tmp_path: Path, regionqa: "Command", monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints, "save_states", full)
    ran = regionqa(*command, tmp_path / "mine")
    assert ran.status == 1
    message = "1-000005: cannot be written: No space left on device; there is no checkpoint yet; "
    assert message in ran.err.splitlines()[-1]


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory.")])
def test_out_of_memory_suggests_options(
    error: BaseException, command: list[str], tmp_path: Path, regionqa: "Command",
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def exhausted(*_: object) -> None:
        raise error

    monkeypatch.setattr(RegionLanguageModel, "forward", exhausted)
    ran = regionqa(*command, tmp_path / "mine")
    assert (ran.status, ran.out) == (1, "")
    assert "error: out of memory; lower --batch" in ran.err.splitlines()[-1]
    assert "--resume" in ran.err.splitlines()[-1]


def test_non_finite_loss_stops_and_keeps_checkpoint(
    things: Path, tiny: Tiny, tmp_path: Path, regionqa: "Command"
) -> None:
    settings = tmp_path / "settings.toml"
    settings.write_text("[instruct]\nclip = 1e30\nlearning_rate = 1e30\nwarm_up = 0.0\n")
    out = tmp_path / "mine"
    ran = regionqa(
        "finetune", "--data", things, "--model", tiny("none").root, "--settings", settings,
        "--out", out, "--steps", 9, "--batch", 2, "--save-every", 1, *CPU,
    )  # fmt: skip
    assert (ran.status, ran.out) == (1, "")
    last = ran.err.splitlines()[-1]
    assert re.search(r"is not finite at step [23] of instruct; the last good checkpoint", last)
    assert "lower --learning-rate" in last
    kept = checkpoints.newest(out / "training" / "checkpoints")
    assert kept and str(kept[0]) in last
    assert not (out / "card.toml").exists()


# -- what can be resumed ---------------------------------------------------------------------------


def test_resume_refuses_changed_settings(
    stopped: Path, command: list[str], tiny: Tiny, things: Path, regionqa: "Command"
) -> None:
    log = (stopped / "training" / "log.jsonl").read_bytes()
    bare = ("finetune", "--out", stopped, "--resume", *CPU)
    resume = (*command, stopped, "--resume")
    for options, message in (
        ((*resume, "--batch", 2), "settings.stages.align.batch was 4 and is 2"),
        ((*resume, "--seed", 3), "settings.seed was 0 and is 3"),
        ((*resume, "--model", tiny("none").root), "settings.model was "),
        ((*bare, "--batch", 2), "leave batch out, or repeat the whole command"),
        ((*bare, "--preset", "pvit"), "leave preset out, or repeat the whole command"),
        ((*command, stopped), "holds a run that was stopped; continue with --resume, or"),
    ):
        ran = regionqa(*options)
        assert (ran.status, ran.out) == (2, ""), ran.err
        assert message in ran.err.splitlines()[-1]
    content = things.read_text()
    try:
        things.write_text(content.replace("blue", "azure"))
        ran = regionqa(*bare)
    finally:
        things.write_text(content)
    assert (ran.status, ran.out) == (2, "")
    assert "the resumed run differs: files was" in ran.err
    assert (stopped / "training" / "log.jsonl").read_bytes() == log


def test_resume_ignores_incomplete_checkpoints(
    stopped: Path, command: list[str], uninterrupted: Path, regionqa: "Command",
) -> None:  # fmt: skip
    (whole,) = (stopped / "training" / "checkpoints").iterdir()
    partial = whole.with_name("1-000004.partial")
    shutil.copytree(whole, partial)
    (partial / "__0_0.distcp").write_bytes(b"")
    empty = whole.with_name("1-000009")
    empty.mkdir()
    resumed = regionqa(*command, stopped, "--resume")
    assert "align: resumes after step 3" in resumed.err
    assert_same_result(stopped, uninterrupted)


def test_resume_of_finished_run_does_nothing(
    command: list[str], uninterrupted: Path, regionqa: "Command",
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def fail(*_: object) -> None:
        raise AssertionError("data was read")

    monkeypatch.setattr(run, "read_run_data", fail)
    out = uninterrupted
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    for words in ((*command, out, "--resume"), ("finetune", "--out", out, "--resume")):
        ran = regionqa(*words)
        assert (ran.status, ran.out, ran.err) == (0, f"{out}\n", "")
    assert before == {path: path.stat().st_mtime_ns for path in out.rglob("*")}


def test_resume_of_nothing_starts_a_run(
    command: list[str], tmp_path: Path, regionqa: "Command"
) -> None:
    ran = regionqa("finetune", "--out", tmp_path / "mine", "--resume", *CPU)
    assert ran.status == 2
    assert "no training data; name a file with --data" in ran.err
    ran = regionqa(*command, tmp_path / "mine", "--resume", "--max-minutes", 0.0001)
    assert ran.status == 3, ran.err
    assert [entry["step"] for entry in log_of(tmp_path / "mine")] == [0, 1]


def test_process_group_is_released_after_run(
    command: list[str], tmp_path: Path, regionqa: "Command"
) -> None:
    """A second run in the same process sets up its own group."""
    from accelerate.state import PartialState

    for name in ("first", "second"):
        ran = regionqa(*command, tmp_path / name, "--max-minutes", 0.0001)
        assert ran.status == 3
        assert PartialState._shared_state == {}
        progress = tmp_path / name / "training/checkpoints/1-000001/progress.json"
        assert json.loads(progress.read_text())["step"] == 1
