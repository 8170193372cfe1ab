"""`regionqa finetune` with --data and --out alone: planned steps, early stopping, time limits."""

import io
import json
import os
import re
import signal
import tomllib
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from helpers.tiny_models import BLUE, RED, log_of, two_things, write_lines
from helpers.training import Ticks, call_at_step
from regionqa.bundles.store import Bundle, open_bundle
from regionqa.cli import main
from regionqa.cli.finetune import chosen_settings
from regionqa.finetune.config import FinetuneSettings
from regionqa.finetune.run import finetune
from regionqa.finetune.schedule.signals import StoppedError

if TYPE_CHECKING:
    from conftest import Command

Tiny = Callable[[str], Bundle]
CPU = ("--device", "cpu")
EVERY = 4
"""Steps between evaluations."""
FILES = ("encoders.safetensors", "llm/model.safetensors")


@pytest.fixture(scope="module")
def swapped(things: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Records that say blue of what is red: the loss on them falls, and then it rises."""
    lines = [json.loads(line) for line in things.read_text().splitlines()[:12]]
    other = {RED: BLUE, BLUE: RED}
    for line in lines:
        line["image"] = str(things.parent / line["image"])
        line["conversations"][1]["value"] = other[line["conversations"][1]["value"]]
    return write_lines(tmp_path_factory.mktemp("swapped") / "swapped.jsonl", lines)


@pytest.fixture(scope="module")
def command(tiny: Tiny, things: Path, swapped: Path) -> list[str]:
    """A command without steps, which learns fast; ends with `--out`."""
    words = (
        "finetune", "--data", things, "--model", tiny("levels").root, "--held-out", swapped,
        "--learning-rate", 0.01, "--evaluate-every", EVERY, "--save-every", 3, *CPU, "--out",
    )  # fmt: skip
    return [str(word) for word in words]


@pytest.fixture(scope="module")
def stopped_early(command: list[str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A finished run, and what it printed on stderr."""
    out = tmp_path_factory.mktemp("planned") / "mine"
    stderr = io.StringIO()
    with redirect_stdout(io.StringIO()), redirect_stderr(stderr):
        assert main([*command, str(out)]) == 0, stderr.getvalue()
    return out, stderr.getvalue()


def plan_of(out: Path) -> dict[str, Any]:
    """The table [plan] of a run's settings."""
    table = tomllib.loads((out / "training" / "settings.toml").read_text())
    plan: dict[str, Any] = table["plan"]
    return plan


def held_out_losses(out: Path, stage: str) -> dict[int, float]:
    """Held-out losses of a stage by step."""
    own = [each for each in log_of(out) if each.get("held_out") and each["stage"] == stage]
    return {each["step"]: each["loss"] for each in own}


def test_a_run_says_its_plan_stops_early_and_keeps_the_best(
    stopped_early: tuple[Path, str],
) -> None:
    out, told = stopped_early
    plan = plan_of(out)["stages"]["instruct"]
    assert (
        f"instruct: planned from 36 records: {plan['steps'] * 16 / 36:.3g} passes; every {EVERY} "
        "steps the loss on 12 records that are held out; the step with the lowest is kept, and 5 "
        "evaluations without a lower one end the stage"
    ) in told.splitlines()
    assert re.search(r"^align: about \d+ (s|min) left$", told, re.MULTILINE)
    assert re.search(r"^instruct: about \d+ (s|min) left$", told, re.MULTILINE)
    losses = held_out_losses(out, "instruct")
    del losses[0]
    best = min(losses, key=losses.__getitem__)
    assert best + 5 * EVERY == max(losses) < plan["steps"], "five evaluations later"
    assert (
        f"instruct: ends at step {max(losses)} of {plan['steps']}: the held-out loss had not "
        f"fallen for some time; step {best} is kept with a held-out loss of {losses[best]:.3g}"
    ) in told.splitlines()
    assert (plan["taken"], plan["kept"]) == (max(losses), best)


def test_the_result_has_the_weights_of_the_best_step(
    stopped_early: tuple[Path, str], things: Path, swapped: Path, tmp_path: Path,
    regionqa: "Command",
) -> None:  # fmt: skip
    out, _ = stopped_early
    ran = regionqa(
        "finetune", "--data", things, "--model", out, "--held-out", swapped, "--stage", "instruct",
        "--steps", 1, "--rehearse", 0, "--out", tmp_path / "next", *CPU,
    )  # fmt: skip
    assert ran.status == 0, ran.err
    losses = held_out_losses(out, "instruct")
    del losses[0]
    before = held_out_losses(tmp_path / "next", "instruct")[0]
    assert before == pytest.approx(min(losses.values()), rel=1e-3)
    assert before < 0.98 * list(losses.values())[-1], "the last step is another"


def test_the_card_says_what_was_planned_and_kept(stopped_early: tuple[Path, str]) -> None:
    out, _ = stopped_early
    for stage in open_bundle(out).card.provenance["stages"]:
        plan = plan_of(out)["stages"][stage["name"]]
        assert stage["plan"] == plan
        losses = held_out_losses(out, stage["name"])
        assert stage["steps"] == plan["kept"]
        assert stage["held_out_loss"] == round(losses[plan["kept"]], 4)
        assert plan["stopped"] in (
            "all steps were taken", "the held-out loss had not fallen for some time",
        )  # fmt: skip


@pytest.mark.parametrize(("stage", "step"), [("align", 5), ("instruct", 10)])
def test_a_resumed_run_keeps_the_same_step(
    command: list[str], stopped_early: tuple[Path, str], tmp_path: Path, stage: str, step: int,
    regionqa: "Command",
) -> None:  # fmt: skip
    out, whole = tmp_path / "mine", stopped_early[0]
    with pytest.MonkeyPatch.context() as patch:
        call_at_step(stage, step, lambda: os.kill(os.getpid(), signal.SIGTERM), patch)
        assert regionqa(*command, out).status == 143
    ran = regionqa("finetune", "--out", out, "--resume", *CPU)
    assert ran.status == 0, ran.err
    assert f"{stage}: resumes after step {step}" in ran.err
    assert log_of(out) == log_of(whole)
    assert plan_of(out) == plan_of(whole)
    for name in FILES:
        assert (out / name).read_bytes() == (whole / name).read_bytes(), name


def test_few_images_are_all_trained_on(
    tiny: Tiny, things: Path, regionqa: "Command", tmp_path: Path
) -> None:
    out = tmp_path / "mine"
    with pytest.MonkeyPatch.context() as patch:
        call_at_step("align", 2, lambda: os.kill(os.getpid(), signal.SIGTERM), patch)
        ran = regionqa("finetune", "--data", things, "--model", tiny("levels").root, "--out", out,
                       *CPU)  # fmt: skip
    assert ran.status == 143
    assert "align: 48 records, " in ran.err
    assert "too few images to hold some out, so the last step is kept" in ran.err
    assert plan_of(out)["stages"]["instruct"]["patience"] == 0


def test_more_images_are_held_out(tiny: Tiny, regionqa: "Command", tmp_path: Path) -> None:
    data, out = two_things(tmp_path / "many", images=40), tmp_path / "mine"
    with pytest.MonkeyPatch.context() as patch:
        call_at_step("align", 2, lambda: os.kill(os.getpid(), signal.SIGTERM), patch)
        ran = regionqa("finetune", "--data", data, "--model", tiny("levels").root, "--out", out,
                       *CPU)  # fmt: skip
    assert "align: 72 records, " in ran.err
    assert "the loss on 8 records that are held out" in ran.err


# -- time limits -----------------------------------------------------------------------------------


@pytest.fixture
def planned(tiny: Tiny, things: Path) -> FinetuneSettings:
    """Settings of a run without steps."""
    run = {"data": [things], "model": str(tiny("levels").root), "evaluate_every": 5}
    return chosen_settings(None, None, None, run, {"batch": 2, "learning_rate": 0.01})


def test_a_run_ends_within_max_minutes(
    planned: FinetuneSettings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, clock = tmp_path / "mine", Ticks(0.25)
    assert finetune(planned, out, device="cpu", max_minutes=1.0, clock=clock) is not None
    told = capsys.readouterr().err
    assert 40 < clock.now <= 60
    plan = plan_of(out)
    assert plan["max_minutes"] == 1
    for stage in ("align", "instruct"):
        own = plan["stages"][stage]
        first = own["changes"][0]
        assert first["step"] == 5
        line = f"{stage}: {first['steps']:,} steps instead of {own['steps']:,}, for the time limit"
        assert line in told.splitlines()
        assert 5 < own["taken"] < own["steps"]
    assert "time limit reached" not in told
    rates = [each["rate"] for each in log_of(out) if each["stage"] == "instruct"]
    assert rates[-1] < 0.1 * max(rates), "the schedule ends, too"


def test_a_resumed_run_follows_its_plan_on_a_slower_machine(
    planned: FinetuneSettings, tmp_path: Path
) -> None:
    out = tmp_path / "mine"
    with pytest.MonkeyPatch.context() as patch:
        call_at_step("align", 7, lambda: os.kill(os.getpid(), signal.SIGTERM), patch)
        with pytest.raises(StoppedError, match="terminated by SIGTERM at step 7 of"):
            finetune(planned, out, device="cpu", max_minutes=1.0, clock=Ticks(0.25), quiet=True)
    changes = plan_of(out)["stages"]["align"]["changes"]
    assert len(changes) == 1
    slower = Ticks(0.5)
    finetune(planned, out, device="cpu", resume=True, clock=slower, quiet=True)
    assert plan_of(out)["stages"]["align"]["changes"][:1] == changes
    assert slower.now <= 60


def test_a_run_whose_time_is_up_is_finished(planned: FinetuneSettings, tmp_path: Path) -> None:
    """The machine is so slow that a step takes longer than the limit."""
    out = tmp_path / "mine"
    assert finetune(planned, out, device="cpu", max_minutes=1.0, clock=Ticks(50.0), quiet=True)
    for stage in plan_of(out)["stages"].values():
        assert (stage["taken"], stage["kept"], stage["stopped"]) == (1, 1, "its time was up")


def test_steps_that_are_named_are_not_planned(planned: FinetuneSettings, tmp_path: Path) -> None:
    out = tmp_path / "mine"
    stages = replace(
        planned.stages,
        align=replace(planned.stages.align, steps=2),
        instruct=replace(planned.stages.instruct, epochs=0.1),
    )
    finetune(replace(planned, stages=stages), out, device="cpu", quiet=True)
    table = tomllib.loads((out / "training" / "settings.toml").read_text())
    assert "plan" not in table
    assert "plan" not in open_bundle(out).card.provenance["stages"][0]
    steps = {each["stage"]: each["step"] for each in log_of(out)}
    assert steps == {"align": 2, "instruct": 2}, "a tenth of 44 records in batches of 2"
