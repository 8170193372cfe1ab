"""A long run that can be trusted: killed, stopped or out of room, it goes on as if it never was."""

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from helpers.tiny_models import copy_graphs, log_of
from regionqa.bundles.store import Bundle, open_bundle
from regionqa.cli import main
from regionqa.finetune import checkpoint as checkpoints
from regionqa.finetune import run
from regionqa.finetune.model import RegionLanguageModel
from regionqa.finetune.tracking import LogEntry, TrainingLog

if TYPE_CHECKING:
    from conftest import Command

Tiny = Callable[[str], Bundle]
CPU = ("--device", "cpu")
STEPS = 12
"""Of either stage."""
FILES = ("encoders.safetensors", "llm/model.safetensors", "llm/config.json")


@pytest.fixture(scope="module")
def words(tiny: Tiny, things: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A command of two stages with all that draws numbers, and all that keeps state."""
    settings = tmp_path_factory.mktemp("settings") / "settings.toml"
    settings.write_text("lora_rank = 4\nlora_dropout = 0.1\n[instruct]\northogonal_rate = 0.2\n")
    words = (
        "finetune", "--data", things, "--model", tiny("levels").root, "--settings", settings,
        "--steps", STEPS, "--batch", 4, "--learning-rate", 0.01, "--box-noise", 0.1,
        "--evaluate-every", 6, "--save-every", 5, *CPU, "--out",
    )  # fmt: skip
    return [str(word) for word in words]


@pytest.fixture(scope="module")
def reference(
    words: list[str], tiny: Tiny, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """What the command makes of an undisturbed run."""
    out = tmp_path_factory.mktemp("reference") / "mine"
    with pytest.MonkeyPatch.context() as patch:
        copy_graphs(tiny("levels"), tiny("pixels"), patch)
        assert main([*words, str(out), "--quiet"]) == 0
    return out, out.parent


def start(words: Sequence[str], out: Path) -> subprocess.Popen[str]:
    """The command in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "regionqa", *words, str(out)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def wait_for(process: subprocess.Popen[str], out: Path, stage: str, step: int) -> None:
    """Until the log tells of a step."""
    log = out / "training" / "log.jsonl"
    wanted = f'"stage": "{stage}", "step": {step},'
    deadline = time.monotonic() + 900
    while not (log.is_file() and wanted in log.read_text()):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.005)


def at_step(patch: pytest.MonkeyPatch, stage: str, step: int, act: Callable[[], object]) -> None:
    """Let something happen as soon as a step is in the log."""
    add = TrainingLog.add

    def adding(self: TrainingLog, entry: LogEntry, steps: int) -> None:
        add(self, entry, steps)
        if (entry.stage, entry.step, entry.held_out) == (stage, step, False):
            act()

    patch.setattr(TrainingLog, "add", adding)


def check_equal(out: Path, reference: Path) -> None:
    """Two runs that came to the very same."""
    assert log_of(out) == log_of(reference)
    for name in FILES:
        assert (out / name).read_bytes() == (reference / name).read_bytes(), name
    told, expected = (open_bundle(root).card.provenance for root in (out, reference))
    assert told == expected
    assert not (out / "training" / "checkpoints").exists()
    assert "nan" not in (out / "training" / "log.jsonl").read_text().lower()


# -- killed, stopped, out of time ------------------------------------------------------------------


def test_a_killed_run_continues_as_if_it_had_not_been(
    words: list[str], reference: tuple[Path, Path], tmp_path: Path,
    regionqa: "Command", quick_export: None,
) -> None:  # fmt: skip
    out = tmp_path / "mine"
    process = start(words, out)
    wait_for(process, out, "instruct", 8)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not (out / "card.toml").exists(), "it was killed before its end"
    resumed = regionqa(*words, out, "--resume")
    assert resumed.status == 0, resumed.err
    assert resumed.out == f"{out}\n"
    going_on = re.search(r"(\w+): resumes after step (\d+)", resumed.err)
    assert going_on
    assert going_on[1] == "instruct"
    assert int(going_on[2]) >= 5, "only what follows the last checkpoint is lost"
    check_equal(out, reference[0])


def test_sigterm_saves_says_how_to_go_on_and_ends_with_143(
    words: list[str], reference: tuple[Path, Path], tmp_path: Path, regionqa: "Command",
    quick_export: None,
) -> None:  # fmt: skip
    out = tmp_path / "mine"
    process = start(words, out)
    wait_for(process, out, "align", 2)
    process.terminate()
    stdout, stderr = process.communicate()
    assert (process.returncode, stdout) == (143, "")
    last = stderr.splitlines()[-1]
    told = re.fullmatch(
        rf"regionqa: error: terminated by SIGTERM at step (\d+) of {STEPS} of (\w+); saved in "
        r"(.+); continue with the same command and --resume",
        last,
    )
    assert told, last
    assert Path(told[3]).is_dir()
    resumed = regionqa("finetune", "--out", out, "--resume", *CPU)
    assert f"{told[2]}: resumes after step {told[1]}" in resumed.err
    check_equal(out, reference[0])


def test_ctrl_c_saves_and_ends_with_130(
    words: list[str], reference: tuple[Path, Path], tmp_path: Path, regionqa: "Command",
    quick_export: None, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    out = tmp_path / "mine"
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with monkeypatch.context() as patch:
        at_step(patch, "instruct", 8, lambda: os.kill(os.getpid(), signal.SIGINT))
        ran = regionqa(*words, out)
    assert (ran.status, ran.out) == (130, "")
    assert f"interrupted at step 8 of {STEPS} of instruct; saved in " in ran.err.splitlines()[-1]
    assert handlers == [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    assert regionqa(*words, out, "--resume").status == 0
    check_equal(out, reference[0])


def test_a_second_ctrl_c_ends_it_at_once_and_it_begins_anew(
    words: list[str], reference: tuple[Path, Path], tmp_path: Path, regionqa: "Command",
    quick_export: None, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def twice() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    out = tmp_path / "mine"
    with monkeypatch.context() as patch:
        at_step(patch, "align", 2, twice)
        ran = regionqa(*words, out)
    assert ran.status == 130
    assert not (out / "training" / "checkpoints").exists()
    assert len(log_of(out)) > 1
    assert regionqa(*words, out, "--resume").status == 0
    check_equal(out, reference[0])


def test_a_run_in_pieces_of_a_moment_each_comes_to_the_same(
    words: list[str], reference: tuple[Path, Path], tmp_path: Path, regionqa: "Command",
    quick_export: None,
) -> None:  # fmt: skip
    out = tmp_path / "mine"
    for piece in range(2):
        ran = regionqa(*words, out, "--max-minutes", 0.0001, *(["--resume"] if piece else []))
        assert (ran.status, ran.out) == (3, "")
        said = f"time limit reached at step {piece + 1} of {STEPS} of align; saved in "
        assert said in ran.err.splitlines()[-1]
    assert regionqa(*words, out, "--resume").status == 0
    check_equal(out, reference[0])


def test_killed_while_the_result_is_measured(
    words: list[str], reference: tuple[Path, Path], tmp_path: Path, regionqa: "Command",
    quick_export: None, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    out = tmp_path / "mine"

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(run, "measure_result", killed)
        assert regionqa(*words, out).status == 130
    assert regionqa(*words, out, "--resume").status == 0
    check_equal(out, reference[0])


# -- what breaks a run -----------------------------------------------------------------------------


def test_a_full_disk_leaves_the_last_good_checkpoint(
    words: list[str], reference: tuple[Path, Path], tmp_path: Path, regionqa: "Command",
    quick_export: None, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """No file may grow beyond 20 kB, which the disk says just as it says that it is full."""
    out = tmp_path / "mine"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with monkeypatch.context() as patch:
            limit = (20_000, before[1])
            at_step(patch, "align", 7, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit))
            ran = regionqa(*words, out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (ran.status, ran.out) == (1, "")
    last = ran.err.splitlines()[-1]
    kept = out / "training" / "checkpoints" / "1-000005"
    assert "1-000010: cannot be written: " in last
    assert "File too large" in last
    assert f"the checkpoint {kept} is kept; make room and continue with --resume" in last
    assert [path.name for path in kept.parent.iterdir()] == ["1-000005"]
    resumed = regionqa(*words, out, "--resume")
    assert "align: resumes after step 5" in resumed.err
    check_equal(out, reference[0])


def test_a_full_disk_at_the_first_checkpoint(
    words: list[str], tmp_path: Path, regionqa: "Command", monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints, "save_states", full)
    ran = regionqa(*words, tmp_path / "mine")
    assert ran.status == 1
    said = "1-000005: cannot be written: No space left on device; there is no checkpoint yet; "
    assert said in ran.err.splitlines()[-1]


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory.")])
def test_out_of_memory_names_what_would_help(
    error: BaseException, words: list[str], tmp_path: Path, regionqa: "Command",
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def exhausted(*_: object) -> None:
        raise error

    monkeypatch.setattr(RegionLanguageModel, "forward", exhausted)
    ran = regionqa(*words, tmp_path / "mine")
    assert (ran.status, ran.out) == (1, "")
    assert "error: out of memory; lower --batch" in ran.err.splitlines()[-1]
    assert "--resume" in ran.err.splitlines()[-1]


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_checkpoint(
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


# -- what --resume takes, and what it does not -----------------------------------------------------


@pytest.fixture
def stopped(
    words: list[str], tmp_path: Path, regionqa: "Command", monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A run that was stopped after its third step."""
    out = tmp_path / "mine"
    with monkeypatch.context() as patch:
        at_step(patch, "align", 3, lambda: os.kill(os.getpid(), signal.SIGTERM))
        assert regionqa(*words, out).status == 143
    return out


def test_a_run_does_not_go_on_with_other_settings(
    stopped: Path, words: list[str], tiny: Tiny, things: Path, regionqa: "Command"
) -> None:
    log = (stopped / "training" / "log.jsonl").read_bytes()
    bare = ("finetune", "--out", stopped, "--resume", *CPU)
    for options, message in (
        ((*words, stopped, "--resume", "--batch", 2), "settings.stages.align.batch was 4 and is 2"),
        ((*words, stopped, "--resume", "--seed", 3), "settings.seed was 0 and is 3"),
        ((*words, stopped, "--resume", "--model", tiny("none").root), "settings.model was "),
        ((*bare, "--batch", 2), "leave batch out, or repeat the whole command"),
        ((*bare, "--preset", "pvit"), "leave preset out, or repeat the whole command"),
        ((*words, stopped), "holds a run that was stopped; continue with --resume, or"),
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


def test_a_checkpoint_that_was_left_half_written_is_passed_over(
    stopped: Path, words: list[str], reference: tuple[Path, Path], regionqa: "Command",
    quick_export: None,
) -> None:  # fmt: skip
    (whole,) = (stopped / "training" / "checkpoints").iterdir()
    half = whole.with_name("1-000004.partial")
    shutil.copytree(whole, half)
    (half / "__0_0.distcp").write_bytes(b"")
    unnamed = whole.with_name("1-000009")
    unnamed.mkdir()
    resumed = regionqa(*words, stopped, "--resume")
    assert "align: resumes after step 3" in resumed.err
    check_equal(stopped, reference[0])


def test_resume_of_a_finished_run_gives_the_folder_at_once(
    words: list[str], reference: tuple[Path, Path], regionqa: "Command",
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def never(*_: object) -> None:
        raise AssertionError("nothing is to be done")

    monkeypatch.setattr(run, "read_run_data", never)
    out = reference[0]
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    for command in ((*words, out, "--resume"), ("finetune", "--out", out, "--resume")):
        ran = regionqa(*command)
        assert (ran.status, ran.out, ran.err) == (0, f"{out}\n", "")
    assert before == {path: path.stat().st_mtime_ns for path in out.rglob("*")}


def test_resume_where_nothing_is_yet_starts(
    words: list[str], tmp_path: Path, regionqa: "Command"
) -> None:
    ran = regionqa("finetune", "--out", tmp_path / "mine", "--resume", *CPU)
    assert ran.status == 2
    assert "no training data; name a file with --data" in ran.err
    ran = regionqa(*words, tmp_path / "mine", "--resume", "--max-minutes", 0.0001)
    assert ran.status == 3, ran.err
    assert [entry["step"] for entry in log_of(tmp_path / "mine")] == [0, 1]


def test_no_process_is_left_in_a_group_after_a_run(
    stopped: Path, words: list[str], tmp_path: Path, regionqa: "Command"
) -> None:
    """A second run in the same program joins anew, on what it asks for itself."""
    from accelerate.state import PartialState

    assert PartialState._shared_state == {}
    ran = regionqa(*words, tmp_path / "other", "--max-minutes", 0.0001)
    assert ran.status == 3
    assert (
        json.loads((tmp_path / "other/training/checkpoints/1-000001/progress.json").read_text())[
            "step"
        ]
        == 1
    )
