"""`models`, `doctor` and `demo`; help texts and shell completion."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
import typer.main

from helpers.hub_server import Hub
from regionqa import __version__
from regionqa.bundles.store import Bundle
from regionqa.cli import app
from regionqa.cli.main import COMMANDS

if TYPE_CHECKING:
    from conftest import Command

SERVER = ("--server", "--server-model", "--server-timeout")
VISION = ("--vision-runtime", "--cache", "--cache-size")
DETECTING = ("--find", "--min-score", "--max-boxes", "--only", "--nms")
MARKING = ("--point", "--mask", "--segmenter", "--fade")
ASKING = (
    *SERVER, "--server-concurrency", *DETECTING, *MARKING,
    "--null", "--box", "--boxes", "--box-format", "--box-units", "--scale-boxes", "--masks",
    "--model", "--format", "--out", "--resume", "--retry-errors", "--draw", "--overwrite",
    "--device", "--dtype", "--quantize", "--way", *VISION, "--batch-size", "--max-new-tokens",
    "--temperature", "--seed",
    "--timing", "--confidence", "--guess", "--unsure-below", "--choices", "--schema",
    "--show-prompt", "--quiet", "--debug", "--help",
)  # fmt: skip
MEASURING = (
    *SERVER, "--server-concurrency",
    "--model", "--compare", "--answers", "--json", "--plot", "--limit", "--unsure-below",
    "--device", "--dtype", "--quantize", "--way", *VISION, "--batch-size", "--max-new-tokens",
    "--quiet", "--debug", "--overwrite", "--help",
)  # fmt: skip
OPTIONS = {
    (): ("--version", "--help"),
    ("ask",): (*ASKING, "--each"),
    ("caption",): ASKING,
    ("detect",): (
        *DETECTING,
        "--null", "--model", "--format", "--out", "--resume", "--retry-errors", "--draw",
        "--overwrite", "--device", "--vision-runtime", "--quiet", "--debug", "--help",
    ),
    ("chat",): (
        *SERVER,
        "--box", "--box-format", "--box-units", "--turns", "--model", "--device", "--dtype",
        "--quantize", "--way", *VISION, "--max-new-tokens", "--guess", "--unsure-below",
        "--temperature", "--seed", "--show-prompt", "--quiet", "--debug", "--help",
    ),
    ("serve",): (
        *SERVER, "--server-concurrency",
        "--port", "--host", "--token", "--no-browser", "--segmenter", "--detector",
        "--model", "--device", "--dtype", "--quantize", "--way", *VISION, "--batch-size",
        "--max-new-tokens", "--guess", "--unsure-below", "--temperature", "--seed", "--quiet",
        "--debug", "--help",
    ),
    ("batch",): (
        *SERVER, "--server-concurrency",
        "--images", "--limit", "--sort-by-image", "--box", "--box-format", "--box-units",
        "--model", "--question", "--each", "--format", "--part-size", "--overwrite",
        "--retry-errors", "--dry-run", "--actors", "--num-gpus", "--num-cpus", "--ray-address",
        "--device", "--dtype", "--quantize", "--way", "--vision-runtime", "--batch-size",
        "--max-new-tokens", "--timing", "--confidence", "--guess", "--unsure-below",
        "--temperature", "--seed", "--choices", "--quiet", "--debug", "--help",
    ),
    ("models",): ("--help",),
    ("models", "list"): ("--format", "--debug", "--help"),
    ("models", "recommend"): ("--debug", "--help"),
    ("models", "show"): ("--debug", "--help"),
    ("finetune",): (
        "--data", "--mixture", "--model", "--out", "--images", "--align-data", "--replay",
        "--rehearse", "--rehearse-on", "--held-out", "--held-out-share", "--stage", "--preset",
        "--settings",
        "--epochs", "--steps", "--batch", "--accumulate", "--learning-rate", "--replay-share",
        "--box-noise", "--way", "--lora", "--keep-adapter", "--precision",
        "--gradient-checkpointing", "--skip-bad", "--evaluate-every", "--save-every", "--seed",
        "--resume", "--max-minutes", "--device", "--shard", "--quiet", "--debug", "--help",
    ),
    ("data",): ("--help",),
    ("data", "check"): (
        "--images", "--model", "--fast", "--box-format", "--box-units", "--scale-boxes", "--show",
        "--draw", "--out", "--overwrite", "--debug", "--help",
    ),
    ("data", "convert"): (
        "--out", "--kind", "--annotations", "--split", "--max-regions", "--seed", "--shard",
        "--save-images",
        "--images", "--box-format", "--box-units", "--scale-boxes",
        "--skip-bad", "--overwrite", "--debug", "--help",
    ),
    ("data", "stats"): (
        "--images", "--box-format", "--box-units", "--scale-boxes", "--json", "--overwrite",
        "--quiet", "--debug", "--help",
    ),
    ("data", "look"): (
        "--out", "--images", "--box-format", "--box-units", "--scale-boxes", "--count", "--seed",
        "--overwrite", "--quiet", "--debug", "--help",
    ),
    ("data", "mixtures"): ("--debug", "--help"),
    ("data", "kinds"): ("--debug", "--help"),
    ("data", "generate"): (
        *SERVER, "--server-concurrency",
        "--out", "--rejected", "--resume", "--kinds", "--per-image", "--seed", "--temperature",
        "--max-new-tokens", "--judge", "--max-words", "--near-duplicates", "--max-requests",
        "--max-tokens", "--shard", "--images", "--box-format", "--box-units", "--scale-boxes",
        "--text-model", "--look-with", "--device", "--dtype", "--skip-bad", "--overwrite",
        "--quiet", "--debug", "--help",
    ),
    ("eval",): ("--help",),
    ("eval", "recognition"): (
        "--boxes", "--scale-boxes",
        "--images", "--min-side", "--question", "--by", "--encoder", "--classes", "--ways",
        "--write-card", *MEASURING,
    ),
    ("eval", "detection"): (
        "--boxes", "--scale-boxes", "--images", "--model", "--json", "--limit", "--device",
        "--vision-runtime", "--quiet", "--overwrite", "--debug", "--help",
    ),
    ("eval", "vqa"): ("--images", "--likelihood", "--ways", "--write-card", *MEASURING),
    ("eval", "caption"): (
        "--images", "--boxes", "--meteor", *(set(MEASURING) - {"--unsure-below"}),
    ),
    ("eval", "fineeval"): (
        *SERVER, "--server-concurrency",
        "--images", "--model", "--compare", "--out", "--ranking", "--seed", "--answers", "--json",
        "--plot", "--limit", "--device", "--dtype", "--quantize", "--way", *VISION, "--batch-size",
        "--max-new-tokens", "--overwrite", "--quiet", "--debug", "--help",
    ),
    ("download",): (
        "--revision", "--dry-run", "--delta", "--base", "--vision", "--region", "--out", "--dtype",
        "--keep-delta", "--any-base", "--debug", "--help",
    ),
    ("export",): ("--push", "--private", "--out", "--debug", "--help"),
    ("init",): (
        "--vision", "--vision-weights", "--llm", "--from-llava", "--region-input",
        "--region-source", "--fit", "--name", "--debug", "--help",
    ),
    ("doctor",): (
        *SERVER, "--server-concurrency",
        "--probe", "--model", "--device", "--dtype", "--quantize", "--way", "--vision-runtime",
        "--debug", "--help",
    ),
    ("demo",): ("--out", "--overwrite", "--model", "--device", "--debug", "--help"),
}  # fmt: skip


def test_models_list_and_show(regionqa: "Command", starter: Bundle, hub: Hub) -> None:
    rows = [line.split("\t") for line in regionqa("models", "list").lines]
    assert rows[0][:2] == ["starter", "39.9 MB"]
    assert {"gpt4roi-7b", "pvit-7b", "qwen3-vl-2b"} <= {row[0] for row in rows}
    assert {row[-1] for row in rows[1:]} == {"not downloaded"}
    shown = regionqa("models", "show", "starter")
    assert (starter.root / "card.toml").read_text() in shown.out
    unknown = regionqa("models", "show", "stater")
    assert (unknown.status, unknown.out) == (1, "")
    assert unknown.err.startswith("regionqa: error: stater: no such model; did you mean starter?")


def test_doctor_reports_devices(regionqa: "Command") -> None:
    ran = regionqa("doctor")
    listed = {line[2:].split("  ")[0]: line for line in ran.lines}
    assert (ran.status, ran.err) == (0, "")
    assert torch.__version__.split("+")[0] in listed["torch"]
    assert "CPUExecutionProvider" in listed["cpu"]
    assert {"python", "system", "gpu", "cuda", "--device auto", "hub cache"} <= listed.keys()
    assert "sound" in listed["model starter"]


def test_doctor_finds_a_damaged_model(regionqa: "Command", starter: Bundle, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(starter.root, damaged)
    weights = bytearray((damaged / "llm" / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (damaged / "llm" / "model.safetensors").write_bytes(weights)
    ran = regionqa("doctor", "--model", damaged)
    assert ran.status == 1
    assert [line for line in ran.lines if line.startswith("!")] == [
        f"! model {damaged}  {damaged}: differs from its card in llm/model.safetensors; "
        "get the model again"
    ]


def test_demo_asks_and_draws(regionqa: "Command", tmp_path: Path) -> None:
    ran = regionqa("demo", "--out", tmp_path / "images", "--device", "cpu")
    assert (ran.status, ran.err) == (0, "")
    assert len([line for line in ran.lines if line.endswith("?")]) == 5
    assert len(list((tmp_path / "images").glob("*.png"))) == 4


# -- help ------------------------------------------------------------------------------------------


def test_version_option(regionqa: "Command") -> None:
    assert regionqa("--version").out == f"regionqa {__version__}\n"


@pytest.mark.parametrize("words", OPTIONS, ids=" ".join)
def test_help_names_every_option(
    regionqa: "Command", monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    ran = regionqa(*words, "--help")
    assert (ran.status, ran.err) == (0, "")
    shown = set(ran.out.replace("│", " ").split())
    assert set(OPTIONS[words]) <= shown


def test_help_is_tested_for_every_command() -> None:
    group: Any = typer.main.get_command(app)
    commands: dict[tuple[str, ...], Any] = {(): group}
    for name, command in group.commands.items():
        commands[name,] = command
        commands |= {(name, inner): it for inner, it in getattr(command, "commands", {}).items()}
    assert commands.keys() == OPTIONS.keys()
    for words, command in commands.items():
        named = {option for parameter in command.params for option in parameter.opts}
        long = {option for option in named if option.startswith("--")}
        completion = {"--install-completion", "--show-completion"}
        assert long - completion == set(OPTIONS[words]) - {"--help"}
        assert all(getattr(parameter, "help", None) for parameter in command.params)


def test_the_list_of_commands_has_the_first_line_of_each_help() -> None:
    group: Any = typer.main.get_command(app)
    helps = {
        name: " ".join(group.commands[name].help.split("\n\n")[0].split()) for name in COMMANDS
    }
    assert helps == {name: entry.summary for name, entry in COMMANDS.items()}


def test_no_arguments_print_help(regionqa: "Command") -> None:
    ran = regionqa()
    assert "Usage: regionqa" in ran.out + ran.err
    assert ran.status == 2


def test_shell_completion(
    regionqa: "Command", monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("_REGIONQA_COMPLETE", "complete_bash")
    for typed, expected in (("regionqa cap", "caption"), ("regionqa ask --max-n", "--max-new-tok")):
        monkeypatch.setenv("COMP_WORDS", typed)
        monkeypatch.setenv("COMP_CWORD", str(typed.count(" ")))
        with pytest.raises(SystemExit):
            regionqa()
        assert capsys.readouterr().out.startswith(expected)
