"""`regionqa finetune` of a vision-language model: a folder of a tiny checkpoint."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tomllib
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

from helpers.hub_server import Hub
from helpers.tiny_models import log_of
from helpers.training import Ticks, call_at_step
from helpers.vlm.checkpoints import WRITERS
from helpers.vlm.tuning import COLORS, write_colors
from regionqa.cli import main
from regionqa.cli.finetune import chosen_settings
from regionqa.finetune.run import ProcessSettings
from regionqa.finetune.vlm import finish, run
from regionqa.vlm.cards import read_vlm_card

if TYPE_CHECKING:
    from conftest import Command

CPU = ("--device", "cpu")
SHORT = ("--steps", 2, "--batch", 2, "--accumulate", 1, *CPU)
"""Long enough to train, too short to learn."""
COPIED = ("chat_template.jinja", "processor_config.json", "tokenizer.json",
          "tokenizer_config.json", "generation_config.json")  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return WRITERS["qwen3_vl"](tmp_path_factory.mktemp("base") / "tiny-qwen")


@pytest.fixture(scope="module")
def colors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_colors(tmp_path_factory.mktemp("colors"))


@pytest.fixture(scope="module")
def trained(
    base: Path, colors: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, str, str]:
    """The folder of a finished run, and what it printed."""
    out = tmp_path_factory.mktemp("trained") / "mine"
    words = (
        "finetune", "--model", base, "--data", colors, "--out", out, "--steps", 20, "--batch", 3,
        "--accumulate", 1, "--learning-rate", 0.01, "--way", "crop", "--keep-adapter",
        "--held-out-share", 0.25, *CPU,
    )  # fmt: skip
    stdout, stderr = io.StringIO(), io.StringIO()
    with redirect_stdout(stdout), redirect_stderr(stderr):
        assert main([str(word) for word in words]) == 0, stderr.getvalue()
    return out, stdout.getvalue(), stderr.getvalue()


def test_training_lowers_the_loss_and_changes_answers(
    trained: tuple[Path, str, str], base: Path, colors: Path, regionqa: "Command"
) -> None:
    out, printed, told = trained
    assert printed == f"{out}\n", "stdout is the folder and nothing else"
    losses = [entry["loss"] for entry in log_of(out) if not entry.get("held_out")]
    assert losses[-1] < 0.4 * losses[0]
    assert "weights of 200,272 train; the vision encoder is frozen and encodes each" in told
    assert told.splitlines()[-1].endswith("% of 3 held-out answers word for word")
    words = ("--box", "8,8,40,56", "what is <region1>?", *CPU, "--max-new-tokens", 6)
    before = regionqa("ask", colors.parent / "0.png", *words, "--model", base, "--way", "crop")
    after = regionqa("ask", colors.parent / "0.png", *words, "--model", out, "--show-prompt")
    assert before.lines != after.lines
    assert after.lines[0].strip() in COLORS, "it says what it was taught"
    assert "regions are told by crop: the card's default, in which it was trained" in after.err


def test_the_result_is_a_checkpoint_with_a_card(trained: tuple[Path, str, str], base: Path) -> None:
    out = trained[0]
    for name in COPIED:
        assert (out / name).read_bytes() == (base / name).read_bytes()
    modes = {path.stat().st_mode for path in out.rglob("*.safetensors")}
    assert modes == {(out / "card.toml").stat().st_mode}, "others may read the weights"
    card = read_vlm_card(out / "card.toml")
    assert (card.name, card.family, card.kind) == ("mine", "qwen3_vl", "vlm")
    assert (card.regions.default, card.source) == ("crop", None)
    assert card.regions.small is not None
    assert card.regions.small.below == 0, "small regions too were told in the trained way"
    provenance = card.provenance
    assert provenance["base"]["name"] == "tiny-qwen"
    assert provenance["data"][0]["records"] == 8
    assert provenance["way"] == "crop"
    assert (provenance["lora"]["rank"], provenance["stages"][0]["name"]) == (16, "instruct")
    assert provenance["held_out_questions"] == 3
    assert {path.name for path in (out / "training").iterdir()} == {
        "settings.toml", "log.jsonl", "records.json", "curves.png", "tensorboard",
    }  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")
def test_weights_are_the_base_with_the_adapter(trained: tuple[Path, str, str], base: Path) -> None:
    out = trained[0]
    merged = AutoModelForImageTextToText.from_pretrained(out).state_dict()
    network: Any = AutoModelForImageTextToText.from_pretrained(base)
    plain = {name: weight.clone() for name, weight in network.state_dict().items()}
    adapted = PeftModel.from_pretrained(network, str(out / "adapter")).merge_and_unload()
    for name, weight in adapted.state_dict().items():
        assert torch.allclose(weight, merged[name], atol=1e-6)
    changed = {name for name in plain if not torch.equal(plain[name], merged[name])}
    assert changed
    assert all(".language_model.layers." in name for name in changed)


def test_a_resumed_run_equals_an_uninterrupted_one(
    base: Path, colors: Path, tmp_path: Path, regionqa: "Command"
) -> None:
    """With dropout, jitter, crops of jittered boxes, and accumulation."""
    settings = tmp_path / "settings.toml"
    settings.write_text("lora_dropout = 0.1\nlora_rank = 4\n")
    command = (
        "finetune", "--model", base, "--data", colors, "--settings", settings, "--steps", 4,
        "--batch", 1, "--accumulate", 2, "--box-noise", 0.1, "--evaluate-every", 3, "--way",
        "crop-only", "--quiet", *CPU, "--out",
    )  # fmt: skip
    whole, stopped = tmp_path / "whole", tmp_path / "mine"
    assert regionqa(*command, whole).status == 0
    with pytest.MonkeyPatch.context() as patch:
        call_at_step("instruct", 2, lambda: os.kill(os.getpid(), signal.SIGTERM), patch)
        assert main([*map(str, command), str(stopped)]) == 143
    other = regionqa(*command, stopped, "--resume", "--seed", 1)
    assert (other.status, other.out) == (2, "")
    assert "settings.seed was 0 and is 1" in other.err
    ran = regionqa("finetune", "--out", stopped, "--resume", *CPU)
    assert ran.status == 0, ran.err
    assert "instruct: resumes after step 2" in ran.err
    name = "model.safetensors"
    assert (stopped / name).read_bytes() == (whole / name).read_bytes()
    untimed = [[{**entry, "seconds": 0} for entry in log_of(each)] for each in (whole, stopped)]
    assert untimed[0] == untimed[1]
    shutil.move(base, base.with_suffix(".moved"))
    try:  # a finished run needs its base no more
        again = regionqa("finetune", "--out", stopped, "--resume", *CPU)
    finally:
        shutil.move(base.with_suffix(".moved"), base)
    assert (again.status, again.out) == (0, f"{stopped}\n")


def test_planned_steps_end_in_time(base: Path, colors: Path, tmp_path: Path) -> None:
    values = {"data": [colors], "model": str(base)}
    settings = chosen_settings(None, None, None, values, {"batch": 1, "accumulate": 1})
    out, clock = tmp_path / "mine", Ticks(0.5)
    options = ProcessSettings(device="cpu", max_minutes=1.0, quiet=True, clock=clock)
    assert run.finetune_checkpoint(settings, out, options) is not None
    assert 40 < clock.now <= 60
    plan = tomllib.loads((out / "training" / "settings.toml").read_text())["plan"]
    assert plan["max_minutes"] == 1
    (own,) = plan["stages"].values()
    assert 5 < own["taken"] == own["kept"] < own["steps"]
    (stage,) = read_vlm_card(out / "card.toml").provenance["stages"]
    assert (stage["name"], stage["plan"]) == ("instruct", own)


@pytest.mark.parametrize("vision", [True, False])
def test_all_weights(
    base: Path,
    colors: Path,
    tmp_path: Path,
    regionqa: "Command",
    monkeypatch: pytest.MonkeyPatch,
    vision: bool,
) -> None:
    monkeypatch.setattr(run, "memory", lambda _: 2_000_000)
    settings = tmp_path / "settings.toml"
    settings.write_text(f"[instruct]\nprojector = {str(vision).lower()}\n")
    out = tmp_path / "mine"
    ran = regionqa("finetune", "--model", base, "--data", colors, "--out", out, "--lora", 0,
                   "--settings", settings, "--learning-rate", 1e-3, *SHORT)  # fmt: skip
    assert ran.status == 0, ran.err
    assert f"the vision encoder {'trains too' if vision else 'is frozen'}" in ran.err
    assert "warning: the weights and what training them needs take 0.00 GB, and there" in ran.err
    before, after = (load_file(folder / "model.safetensors") for folder in (base, out))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert any(".language_model." in name for name in changed)
    assert any(".visual." in name for name in changed) == vision
    words = ("--box", "8,8,40,56", "what?", *CPU, "--max-new-tokens", 2)
    assert regionqa("ask", colors.parent / "0.png", *words, "--model", out).status == 0


def test_defaults_of_vision_language_models(base: Path, tmp_path: Path) -> None:
    def chosen(**values: object) -> Any:
        stage = {name: values.pop(name) for name in ("learning_rate",) if name in values}
        run = {"data": ["a.jsonl"], "model": str(base), **values}
        return chosen_settings(None, None, None, run, stage)

    lora = chosen()
    assert (lora.lora_rank, lora.rehearse, lora.stages.instruct.learning_rate) == (16, 0, 1e-4)
    assert chosen(lora_rank=0).stages.instruct.learning_rate == 1e-5
    assert chosen(lora_rank=0, learning_rate=1e-3).stages.instruct.learning_rate == 1e-3
    bundle = chosen(model="starter")
    assert (bundle.lora_rank, bundle.rehearse) == (0, 4)


def test_options_without_effect_are_refused(
    base: Path, colors: Path, tmp_path: Path, regionqa: "Command"
) -> None:
    noise = tmp_path / "noise.toml"
    noise.write_text("[instruct]\nfeature_noise = 0.5\n")
    swap = tmp_path / "swap.toml"
    swap.write_text("[instruct]\nswapped_images = 0.5\n")
    rate = tmp_path / "rate.toml"
    rate.write_text("[instruct]\nprojector_rate = 0.1\n")
    for words, message in (
        (("--settings", noise), "feature_noise: has no effect on tiny-qwen: no encoder's features"),
        (("--settings", swap), "swapped_images: has no effect on tiny-qwen: no encoder's features"),
        (("--settings", rate), "projector_rate: has no effect on tiny-qwen: one rate is for all"),
        (("--stage", "align"), "tiny-qwen has no region encoder to align; use --stage instruct"),
        (("--align-data", colors), "--align-data: has no effect on tiny-qwen"),
        (("--rehearse", 3), "--rehearse: has no effect on tiny-qwen: rehearsal is for bundles"),
        (("--rehearse", 3, "--rehearse-on", colors.parent), "--rehearse: has no effect"),
        (("--lora", 0, "--keep-adapter"), "--keep-adapter: has no effect without --lora"),
        (("--preset", "pvit"), "region: has no effect on tiny-qwen: there is no region encoder"),
        (("--way", "nothing"), "nothing"),
    ):
        command = ("finetune", "--model", base, "--data", colors, "--out", tmp_path / "mine")
        ran = regionqa(*command, *words, *CPU)
        assert (ran.status, ran.out) == (2, ""), ran.err
        assert message in ran.err
        assert not (tmp_path / "mine").exists()


def test_models_that_cannot_be_trained(colors: Path, tmp_path: Path, regionqa: "Command") -> None:
    command = ("finetune", "--data", colors, "--out", tmp_path / "mine", *CPU)
    florence = WRITERS["florence2"](tmp_path / "florence")
    for words, message in (
        (("--model", florence), "florence takes fixed tasks instead of questions and cannot be"),
        (("--model", "qwen3-vl-2b"), "not downloaded yet; run: regionqa download qwen3-vl-2b"),
        (("--way", "crop"), "--way crop: the model starter was trained with one way"),
        (("--model", "qwen3-vl-9b"), "qwen3-vl-9b: no such model"),
    ):
        ran = regionqa(*command, *words)
        assert (ran.status, ran.out) == (2 if words[-1] != "qwen3-vl-9b" else 1, ""), ran.err
        assert message in ran.err


def test_a_full_disk_at_the_end(
    base: Path, colors: Path, tmp_path: Path, regionqa: "Command", monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    out = tmp_path / "mine"
    command = ("finetune", "--model", base, "--data", colors, "--out", out, "--held-out-share", 0,
               *SHORT)  # fmt: skip
    with monkeypatch.context() as patch:
        patch.setattr(finish, "save", full)
        ran = regionqa(*command)
    assert (ran.status, ran.out) == (1, "")
    assert ran.err.splitlines()[-1].endswith("make room and continue with --resume")
    ran = regionqa(*command, "--resume")
    assert (ran.status, ran.out) == (0, f"{out}\n"), ran.err
    assert not (out / "training" / "checkpoints").exists()


def test_a_model_of_the_hub(
    hub: Hub, base: Path, colors: Path, tmp_path: Path, regionqa: "Command"
) -> None:
    """It is fetched for the run; the result needs it no more."""
    hub.add("somebody/tiny-qwen", base, licence="mit")
    out = tmp_path / "mine"
    ran = regionqa("finetune", "--model", "somebody/tiny-qwen", "--data", colors, "--out", out,
                   *SHORT, "--steps", 1, "--held-out-share", 0)  # fmt: skip
    assert (ran.status, ran.out) == (0, f"{out}\n"), ran.err
    card = read_vlm_card(out / "card.toml")
    assert card.provenance["base"]["repo"] == "somebody/tiny-qwen"
    hub.requests.clear()
    words = ("--box", "8,8,40,56", "what?", *CPU, "--max-new-tokens", 2)
    assert regionqa("ask", colors.parent / "0.png", *words, "--model", out).status == 0
    assert not hub.requests


def test_bad_records_and_broken_images(
    base: Path, colors: Path, tmp_path: Path, regionqa: "Command"
) -> None:
    folder = tmp_path / "data"
    shutil.copytree(colors.parent, folder)
    lines = (folder / colors.name).read_text().splitlines()
    bad = json.loads(lines[0])
    bad["conversations"][1]["value"] = "red<|im_end|>"
    (folder / colors.name).write_text("\n".join([*lines, json.dumps(bad)]) + "\n")
    whole = (folder / "1.png").read_bytes()
    (folder / "1.png").write_bytes(whole[: len(whole) - 40])
    command = ("finetune", "--model", base, "--data", folder / colors.name, "--held-out-share", 0,
               "--out", tmp_path / "mine", *SHORT)  # fmt: skip
    ran = regionqa(*command)
    assert (ran.status, ran.out) == (1, "")
    assert "the answer holds '<|im_end|>', which is a control token" in ran.err
    checked = regionqa("data", "check", folder / colors.name, "--model", base, "--fast")
    assert (checked.status, checked.out.count("control token")) == (3, 1)
    ran = regionqa(*command, "--skip-bad", "--steps", 4)
    assert ran.status == 0, ran.err
    assert "8 records of 4 images, 1 left out" in ran.err
    assert "1 broken image left out: " in ran.err
    table = tomllib.loads((tmp_path / "mine" / "card.toml").read_text())
    assert table["provenance"]["data"][0]["left_out"] == 1


@pytest.mark.slow
@pytest.mark.parametrize("lora", [16, 0])
def test_two_processes_equal_one(
    base: Path, colors: Path, tmp_path: Path, regionqa: "Command", lora: int
) -> None:
    words = ("finetune", "--model", base, "--data", colors, "--lora", lora, "--learning-rate",
             0.003, "--steps", 4, "--accumulate", 1, "--evaluate-every", 2, *CPU)  # fmt: skip
    ran = regionqa(*words, "--batch", 4, "--out", tmp_path / "one")
    assert ran.status == 0, ran.err
    expected = [entry["loss"] for entry in log_of(tmp_path / "one")]
    for options in ((), ("--shard",)):
        out = tmp_path / f"two{len(options)}"
        program = (sys.executable, "-m", "torch.distributed.run", "--standalone")
        done = subprocess.run(
            [*program, "--nproc_per_node=2", "-m", "regionqa", *map(str, words), "--batch", "2",
             *options, "--out", str(out)],
            capture_output=True, text=True, timeout=600, env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert [entry["loss"] for entry in log_of(out)] == pytest.approx(expected, rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("family", sorted(WRITERS.keys() - {"florence2", "qwen3_vl"}))
@pytest.mark.parametrize("lora", [16, 0])
def test_every_family_trains_and_answers(
    family: str, lora: int, colors: Path, tmp_path: Path, regionqa: "Command"
) -> None:
    base, out = WRITERS[family](tmp_path / family), tmp_path / "mine"
    rate = 0.01 if lora else 0.003
    ran = regionqa(
        "finetune", "--model", base, "--data", colors, "--out", out, "--lora", lora, "--steps", 12,
        "--batch", 2, "--accumulate", 1, "--learning-rate", rate, "--held-out-share", 0, *CPU,
    )  # fmt: skip
    assert ran.status == 0, ran.err
    losses = [entry["loss"] for entry in log_of(out)]
    assert sum(losses[-2:]) < 0.8 * sum(losses[:2])
    words = ("--box", "8,8,40,56", "what is <region1>?", *CPU, "--max-new-tokens", 4)
    image = colors.parent / "0.png"
    before, after = (regionqa("ask", image, *words, "--model", each) for each in (base, out))
    assert (before.status, after.status) == (0, 0), after.err
    assert before.out != after.out
