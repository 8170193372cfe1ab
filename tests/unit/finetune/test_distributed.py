"""Training with torchrun on the CPU equals one process, with and without --shard."""

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from helpers.tiny_models import log_of, write_lines
from regionqa.bundles.store import Bundle, open_bundle
from regionqa.cli import main

Tiny = Callable[[str], Bundle]
SETTINGS = """
[align]
clip = 0.05
[instruct]
clip = 0.5
"""
"""Gradients are longer than that, so that clipping counts."""
STEPS = 20


def together(
    *words: object, program: Sequence[str] = ("-m", "regionqa")
) -> subprocess.CompletedProcess[str]:
    """The command in two processes of a module or another program."""
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
    return subprocess.run(
        [*torchrun, *program, *map(str, words)],
        capture_output=True, text=True, timeout=900, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def words_with(text: str, things: Path, folder: Path) -> list[object]:
    """The command without model, batch and folder, with a settings file of this text."""
    settings = folder / "settings.toml"
    settings.write_text(text)
    return [
        "finetune", "--data", things, "--settings", settings, "--steps", STEPS,
        "--learning-rate", 0.003, "--box-noise", 0.1, "--evaluate-every", 10, "--save-every", 7,
        "--device", "cpu", "--seed", 2,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def uneven(things: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The records of `things`, every third with a longer answer.

    Processes and forward passes then learn from different numbers of tokens.
    """
    records = [json.loads(line) for line in things.read_text().splitlines()]
    for record in records[::3]:
        record["conversations"][1]["value"] = "the red thing is left of the blue thing."
    for record in records:
        record["image"] = str(things.parent / record["image"])
    return write_lines(tmp_path_factory.mktemp("uneven") / "things.jsonl", records)


@pytest.fixture(scope="module")
def words(uneven: Path, tmp_path_factory: pytest.TempPathFactory) -> list[object]:
    """The command with gradients clipped."""
    return words_with(SETTINGS, uneven, tmp_path_factory.mktemp("settings"))


def alone(words: list[object], out: Path, *more: object) -> Path:
    """The result of one process with a batch of 8."""
    assert main([str(word) for word in (*words, "--batch", 8, *more, "--out", out, "-q")]) == 0
    return out


@pytest.fixture(scope="module")
def one(words: list[object], tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One process, on the model with region features."""
    out = tmp_path_factory.mktemp("one") / "mine"
    return alone(words, out, "--model", tiny("levels").root)


def check_close(many: Path, one: Path) -> None:
    """Compare losses at every step and the final weights."""
    distributed, single = log_of(many), log_of(one)
    assert len(distributed) == len(single)
    for left, right in zip(distributed, single, strict=True):
        assert left["loss"] == pytest.approx(right["loss"], abs=1e-5)
        assert {**left, "loss": 0} == {**right, "loss": 0}
    assert distributed[-1]["loss"] < distributed[0]["loss"] - 1
    for name in ("encoders.safetensors", "llm/model.safetensors"):
        left, right = load_file(many / name), load_file(one / name)
        assert left.keys() == right.keys()
        for key in left:  # stored in half: what differs by 1e-8 may be rounded to neighbours
            two, single = left[key].float(), right[key].float()
            assert torch.allclose(two, single, rtol=1e-3, atol=1e-5), key


def test_two_processes_equal_one(
    words: list[object], tiny: Tiny, one: Path, forked: str, tmp_path: Path
) -> None:
    """The processes start at once here, with `python -m regionqa` in the slow tests below."""
    out = tmp_path / "mine"
    command = (*words, "--model", tiny("levels").root, "--batch", 2, "--accumulate", 2)
    quick = ("--no-python", *shlex.split(forked))
    ran = together(*command, "--out", out, program=quick)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout == f"{out}\n", "one process writes, and says so"
    line = "instruct: 44 records, 20 steps; effective batch 8 = 2 x 2 accumulated x 2 processes"
    assert ran.stderr.splitlines().count(line) == 1
    check_close(out, one)
    assert open_bundle(out).broken_files() == []


@pytest.mark.slow
def test_sharded_training_equals_one_process_and_resumes(
    words: list[object], tiny: Tiny, one: Path, tmp_path: Path
) -> None:
    out = tmp_path / "mine"
    model = ("--model", tiny("levels").root)
    command = (*words, *model, "--batch", 4, "--shard", "--out", out)
    stopped = together(*command, "--max-minutes", 0.001)
    assert stopped.returncode != 0
    assert "error: time limit reached at step " in stopped.stderr
    assert stopped.stdout == ""
    resumed = together(*command, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert "align: resumes after step " in resumed.stderr
    assert resumed.stdout == f"{out}\n"
    check_close(out, one)


@pytest.mark.slow
@pytest.mark.parametrize("options", [("--preset", "pvit"), ("--lora", 4)])
@pytest.mark.parametrize("shard", [(), ("--shard",)])
def test_sharding_with_frozen_encoder_and_lora(
    options: tuple[object, ...], shard: tuple[str, ...], words: list[object], tiny: Tiny,
    tmp_path: Path,
) -> None:  # fmt: skip
    model = ("--model", tiny("pixels").root, "--accumulate", 1, *options)
    single = alone(words, tmp_path / "one", *model)
    ran = together(*words, *model, "--batch", 4, *shard, "--out", tmp_path / "two")
    assert ran.returncode == 0, ran.stderr
    check_close(tmp_path / "two", single)


@pytest.mark.slow
@pytest.mark.parametrize("shard", [(), ("--shard",)])
def test_sharding_with_orthogonal_optimizer(
    shard: tuple[str, ...], things: Path, tiny: Tiny, tmp_path: Path
) -> None:
    """They are computed in bf16, which makes much of what gradients differ by: not weight for
    weight, then, but the losses are."""
    words = words_with(f"{SETTINGS}orthogonal_rate = 3.0\n", things, tmp_path)
    model = ("--model", tiny("levels").root)
    single = log_of(alone(words, tmp_path / "one", *model))
    ran = together(*words, *model, "--batch", 4, *shard, "--out", tmp_path / "two")
    assert ran.returncode == 0, ran.stderr
    for left, right in zip(log_of(tmp_path / "two"), single, strict=True):
        assert left["loss"] == pytest.approx(right["loss"], abs=0.02)
    assert single[-1]["loss"] < single[0]["loss"] - 1
