"""Options are declared once: flags, checks and values derive from their dataclasses."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer
from typer.testing import CliRunner

from regionqa.cli.options import Overrides, only, with_options, without
from regionqa.errors import UsageError
from regionqa.evaluation.options import EvaluationOptions
from regionqa.flags import Options, Section, flags_of, option
from regionqa.options import (
    BoxOptions,
    DeviceChoice,
    GenerationOptions,
    OutputFormat,
    OutputOptions,
    RuntimeOptions,
)

# -- checks, for commands and Python callers alike -------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "values", "reason"),
    [
        (GenerationOptions, {"guess": True, "unsure_below": 0.5}, "--unsure-below has no effect"),
        (GenerationOptions, {"unsure_below": 1.01}, "--unsure-below 1.01: must be from 0 to 1"),
        (GenerationOptions, {"unsure_below": -0.1}, "--unsure-below -0.1: must be from 0 to 1"),
        (GenerationOptions, {"choices": ("a,,b",)}, "--choices a,,b: has an empty answer"),
        (GenerationOptions, {"choices": ("a",)}, "--choices: give at least two"),
        (GenerationOptions, {"temperature": -1.0}, "--temperature -1: must be 0 or more"),
        (GenerationOptions, {"temperature": float("nan")}, "--temperature nan: must be 0 or more"),
        (GenerationOptions, {"max_new_tokens": 0}, "--max-new-tokens 0: must be 1 or more"),
        (RuntimeOptions, {"batch_size": 0}, "--batch-size 0: must be 1 or more"),
        (EvaluationOptions, {"limit": 0}, "--limit 0: must be 1 or more"),
        (OutputOptions, {"retry_errors": True}, "add --resume"),
        (OutputOptions, {"resume": True}, "add --out FILE"),
        (
            OutputOptions,
            {"resume": True, "out": Path("a.txt")},
            "text cannot be resumed; use --format jsonl",
        ),
        (
            OutputOptions,
            {"resume": True, "out": Path("a.json"), "format": OutputFormat.json},
            "json cannot be resumed; use --format jsonl",
        ),
        (OutputOptions, {"timing": True}, "--timing: is not written as text; add --format jsonl"),
        (OutputOptions, {"confidence": True}, "--confidence: is not written as text"),
        (BoxOptions, {"box": ("1,2,3,4",), "boxes": Path("b.json")}, "--box and --boxes"),
        (BoxOptions, {"box": ("1,2,3",)}, "--box: box '1,2,3'"),
    ],
)
def test_invalid_options_are_a_usage_error(
    kind: type[Options], values: dict[str, Any], reason: str
) -> None:
    with pytest.raises(UsageError, match=reason.replace("(", r"\(")):
        kind(**values)


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (GenerationOptions, {"unsure_below": 0.0, "temperature": 0.0, "max_new_tokens": 1}),
        (GenerationOptions, {"unsure_below": 1.0}),
        (RuntimeOptions, {"batch_size": 1}),
        (OutputOptions, {"resume": True, "out": Path("a"), "format": OutputFormat.csv}),
        (OutputOptions, {"resume": True, "out": Path("a"), "format": OutputFormat.jsonl}),
    ],
)
def test_range_limits_are_inclusive(kind: type[Options], values: dict[str, Any]) -> None:
    options = kind(**values)
    assert {name: getattr(options, name) for name in values} == values


def test_guess_is_a_threshold_of_zero() -> None:
    assert GenerationOptions(guess=True).threshold == 0.0
    assert GenerationOptions(unsure_below=0.3).threshold == 0.3
    assert GenerationOptions().threshold is None


def test_parse_converts_plain_values() -> None:
    options = RuntimeOptions.parse(device="cpu", batch_size=2, quantize=None)
    assert options == RuntimeOptions(device=DeviceChoice.cpu, batch_size=2)
    assert options.device is DeviceChoice.cpu
    assert OutputOptions.parse(out="a.csv", format="csv").out == Path("a.csv")


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"device": "tpu"}, "device 'tpu': must be one of auto, cpu, cuda"),
        ({"quantize": "2bit"}, "quantize '2bit': must be one of 8bit, 4bit"),
        ({"devise": "cpu"}, "unknown option 'devise'; known are model, device"),
        ({"batch_size": 0}, "--batch-size 0"),
    ],
)
def test_parse_refuses_invalid_values(values: dict[str, Any], reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        RuntimeOptions.parse(**values)


GROUPS = (BoxOptions, RuntimeOptions, GenerationOptions, OutputOptions, EvaluationOptions)


# -- the command line ------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Later(Options):
    late: bool = option(False, "Last.", section=Section.general)
    early: int | None = option(None, "First.", "--early", "-e", min=1)
    many: tuple[Path, ...] = option((), "Several.", section=Section.model)


def run(command: Any, *words: str) -> Any:
    app = typer.Typer()
    app.command()(command)
    return CliRunner().invoke(app, words)


def test_command_receives_instances() -> None:
    received: list[object] = []

    @with_options
    def command(
        name: Annotated[str, typer.Argument()],
        *,
        later: Later,
        runtime: Annotated[RuntimeOptions, only("device")],
        generation: Annotated[GenerationOptions, without("seed")],
    ) -> None:
        received.extend((name, later, runtime, generation))

    result = run(command, "a", "-e", "2", "--many", "x", "--many", "y", "--device", "cpu")
    assert result.exit_code == 0, result.output
    assert received == [
        "a",
        Later(early=2, many=(Path("x"), Path("y"))),
        RuntimeOptions(device=DeviceChoice.cpu),
        GenerationOptions(),
    ]
    assert run(command, "a", "--model", "x").exit_code == 2
    assert run(command, "a", "--seed", "1").exit_code == 2
    assert run(command, "a", "--early", "0").exit_code == 2


@dataclass(frozen=True, kw_only=True)
class Linked(Options):
    colour: str = option("red", "Colour.", needs=("line", "fill"))
    line: bool = option(False, "Line.")
    fill: bool = option(False, "Fill.")
    width: int = option(1, "Width.")
    hidden: bool = option(False, "Nothing is drawn.", excludes=("width", "line"))


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ("--colour red", "--colour: has no effect without --line or --fill"),
        ("--hidden --width 1", "--width: has no effect beside --hidden"),
        ("--colour red --fill", None),
        ("--hidden", None),
        ("--width 1 --line", None),
    ],
)
def test_an_option_without_effect_is_refused(words: str, reason: str | None) -> None:
    @with_options
    def command(*, linked: Linked) -> None: ...

    error = run(command, *words.split()).exception
    assert (reason is None) == (error is None)
    assert reason is None or (isinstance(error, UsageError) and str(error).startswith(reason))


def test_a_command_without_the_other_option_gives_it_another_use() -> None:
    @with_options
    def command(*, linked: Annotated[Linked, without("fill")]) -> None: ...

    assert run(command, "--colour", "blue").exit_code == 0


def test_options_name_options_that_exist() -> None:
    known = {name for kind in GROUPS for name in flags_of(kind)}
    for kind in GROUPS:
        for name, flag in flags_of(kind).items():
            assert {*flag.needs, *flag.excludes} <= known - {name}


def test_options_are_sorted_by_section() -> None:
    @with_options
    def command(*, later: Later, plain: Annotated[int, typer.Option()] = 1) -> None: ...

    shown = run(command, "--help").output
    places = [shown.index(flag) for flag in ("--early", "--plain", "--many", "--late", "--debug")]
    assert places == sorted(places)


def test_overrides_hold_given_options_only() -> None:
    received: list[object] = []

    @with_options
    def command(*, later: Overrides[Later], generation: Overrides[GenerationOptions]) -> None:
        received.extend((dict(later), dict(generation)))

    assert run(command).exit_code == 0
    result = run(command, "--late", "--many", "x", "--seed", "0", "--temperature", "0")
    assert result.exit_code == 0
    assert received == [
        {},
        {},
        {"late": True, "many": (Path("x"),)},
        {"seed": 0, "temperature": 0.0},
    ]


def test_duplicate_flags_are_refused() -> None:
    def command(*, later: Later, early: int) -> None: ...

    with pytest.raises(TypeError, match="command: two options are named 'early'"):
        with_options(command)


def test_new_field_is_an_option_of_every_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """As CONTRIBUTING.md says: one field reaches ask, caption and chat."""

    @dataclass(frozen=True, kw_only=True)
    class Extended(GenerationOptions):
        top_k: int | None = option(
            None, "Tokens to sample from. Default: the model's.", section=Section.answer, min=1
        )

    from regionqa.cli import ask, chat

    for command in (ask.ask, ask.caption, chat.chat):
        original = command.undecorated  # type: ignore[attr-defined]
        monkeypatch.setitem(original.__annotations__, "generation", Extended)
        shown = run(with_options(original), "--help").output
        assert "--top-k" in shown
        assert shown.index("--top-k") > shown.index("--seed")


@pytest.mark.parametrize(
    "kind", [BoxOptions, RuntimeOptions, GenerationOptions, OutputOptions, EvaluationOptions]
)
def test_help_texts_are_sentences(kind: type[Options]) -> None:
    for name, flag in flags_of(kind).items():
        assert flag.help[0].isupper(), name
        assert flag.help.endswith("."), name
