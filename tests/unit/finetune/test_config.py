"""Settings of a run: LoRA in the present format and that of version 0.1; changed data."""

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from regionqa.bundles.store import Bundle
from regionqa.cli.finetune import chosen_settings
from regionqa.errors import UsageError
from regionqa.finetune.batches.dataset import RunData
from regionqa.finetune.checkpoint import save_settings
from regionqa.finetune.config import DEFAULT, FinetuneSettings, RegionPart
from regionqa.finetune.settings_files import read_saved, saved_settings
from regionqa.schema import without_none

GIVEN = {"data": [Path("mine.jsonl")]}


def chosen(tmp_path: Path, text: str, **fields: Any) -> FinetuneSettings:
    """The settings of a command line with a settings file."""
    file = tmp_path / "mine.toml"
    file.write_text(text)
    return chosen_settings(None, None, file, GIVEN | fields, {})


def lora_of(settings: FinetuneSettings) -> tuple[int, int, float]:
    """Rank, alpha and dropout."""
    return settings.lora_rank, settings.lora_alpha, settings.lora_dropout


def test_lora_is_a_setting_of_the_run(tmp_path: Path) -> None:
    settings = chosen(tmp_path, "lora_rank = 4\nlora_dropout = 0.1\n[instruct]\nbatch = 2\n")
    assert lora_of(settings) == (4, 32, 0.1)
    assert lora_of(chosen(tmp_path, "lora_rank = 4\n", lora_rank=8)) == (8, 32, 0.0)
    assert lora_of(chosen(tmp_path, "")) == (0, 32, 0.0)


def test_lora_in_instruct_table_of_version_0_1(tmp_path: Path) -> None:
    text = "[instruct]\nlora_rank = 4\nlora_alpha = 8\n"
    assert lora_of(chosen(tmp_path, text)) == (4, 8, 0.0)
    assert lora_of(chosen(tmp_path, f"[align]\nlora_rank = 4\n{text}")) == (4, 8, 0.0)
    assert lora_of(chosen(tmp_path, text, lora_rank=2)) == (2, 8, 0.0), "flags come last"


@pytest.mark.parametrize("instruct", ["", "[instruct]\nlora_rank = 8\n"])
def test_lora_in_align_table_is_refused(tmp_path: Path, instruct: str) -> None:
    with pytest.raises(UsageError) as caught:
        chosen(tmp_path, f"[align]\nlora_rank = 4\n{instruct}")
    assert str(caught.value) == (
        f"{tmp_path / 'mine.toml'}: lora_rank in [align] differs from [instruct]; LoRA is a "
        "setting of the whole run, so write lora_rank = 4 above the tables"
    )


def saved_by_0_1(tmp_path: Path, **align: Any) -> Path:
    """The settings.toml of a run of version 0.1 with `[instruct] lora_rank = 4`."""
    table: Any = tomllib.loads(
        tomli_w.dumps(
            without_none(
                {
                    "model": "starter",
                    "data": ["mine.jsonl"],
                    "stages": {
                        "align": {"learning_rate": 1e-3, "language": False, "lora_rank": 0},
                        "instruct": {"learning_rate": 1e-3, "language": True, "lora_rank": 4},
                    },
                }
            )
        )
    )
    for stage in table["stages"].values():
        stage |= {"lora_alpha": 16, "lora_dropout": 0.0}
    table["stages"]["align"] |= align
    path = tmp_path / "settings.toml"
    path.write_text(tomli_w.dumps({"settings": table, "files": []}))
    return path


def test_resume_of_version_0_1_run_with_lora(tmp_path: Path) -> None:
    path = saved_by_0_1(tmp_path)
    settings = saved_settings(path)
    assert lora_of(settings) == (4, 16, 0.0)
    assert settings.stages.instruct.learning_rate == 1e-3
    table = read_saved(path)
    assert table["settings"]["lora_rank"] == 4
    assert not any("lora" in key for stage in table["settings"]["stages"].values() for key in stage)
    assert table["files"] == []


def test_region_value_of_version_0_1(tmp_path: Path) -> None:
    path = saved_by_0_1(tmp_path, region="carrier")
    assert saved_settings(path).stages.align.region is RegionPart.projector
    assert read_saved(path)["settings"]["stages"]["align"]["region"] == "projector"


def test_resume_of_version_0_1_run_with_lora_in_one_stage(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="write lora_rank = 0 above the tables"):
        saved_settings(saved_by_0_1(tmp_path, language=True))


def test_invalid_saved_settings(tmp_path: Path) -> None:
    path = tmp_path / "settings.toml"
    for text in ("[", "x = 1\n", "settings = 3\n", "[settings]\nstages = 3\n"):
        path.write_text(text)
        with pytest.raises(UsageError, match="start a new run in another folder"):
            saved_settings(path)
    path.unlink()
    with pytest.raises(UsageError, match="holds no run to resume; start one with --data"):
        saved_settings(path)


@pytest.mark.parametrize(
    ("field", "value"),
    [("lora_rank", -1), ("lora_alpha", 0), ("lora_dropout", 1.0), ("lora_dropout", -0.1)],
)
def test_lora_ranges(field: str, value: float) -> None:
    settings = FinetuneSettings(model="starter", data=("mine.jsonl",), stages=DEFAULT)
    with pytest.raises(UsageError, match=f"{field} is {value}"):
        replace(settings, **{field: value})  # type: ignore[arg-type]


# -- a resumed run ---------------------------------------------------------------------------------


NAME = "training: mine.jsonl"


def run_data(digests: Sequence[str], left_out: int, sha256: str) -> RunData:
    file: Mapping[str, Any] = {
        "file": "mine.jsonl", "sha256": sha256, "use": "training",
        "records": len(digests), "left_out": left_out,
    }  # fmt: skip
    return RunData((), (), (), (), files=(file,), digests={NAME: tuple(digests)})


@pytest.mark.parametrize(
    ("digests", "left_out", "said"),
    [
        ("abc", 0, []),  # the bad record was removed, which was left out anyway
        ("ab", 0, [f"{NAME}: 1 removed since the run began; it goes on with what there is"]),
        ("abcd", 0, [f"{NAME}: 1 repaired since the run began; it goes on with what there is"]),
        ("abd", 0, None),
        ("abcde", 0, None),
        ("aab", 0, None),
    ],
)
def test_records_may_be_repaired_or_taken_out(
    tmp_path: Path, starter: Bundle, digests: str, left_out: int, said: list[str] | None
) -> None:
    settings = FinetuneSettings(data=("mine.jsonl",), model="starter", stages=DEFAULT)
    lines: list[str] = []
    save_settings(tmp_path, settings, starter, run_data("abc", 1, "1"), pytest.fail, resume=False)
    changed = run_data(digests, left_out, "2")
    skipping = replace(settings, skip_bad=True)
    if said is None:
        with pytest.raises(UsageError, match="the resumed run differs: files was"):
            save_settings(tmp_path, skipping, starter, changed, lines.append, resume=True)
        return
    save_settings(tmp_path, skipping, starter, changed, lines.append, resume=True)
    assert lines == said
    save_settings(tmp_path, skipping, starter, changed, pytest.fail, resume=True)
    with pytest.raises(UsageError, match="seed was 0 and is 1"):
        other = replace(skipping, seed=1)
        save_settings(tmp_path, other, starter, changed, pytest.fail, resume=True)


def test_a_run_goes_on_though_settings_were_added_since(tmp_path: Path, starter: Bundle) -> None:
    settings = FinetuneSettings(data=("mine.jsonl",), model="starter", stages=DEFAULT)
    data = run_data("abc", 0, "1")
    save_settings(tmp_path, settings, starter, data, pytest.fail, resume=False)
    path = tmp_path / "settings.toml"
    table = tomllib.loads(path.read_text())
    del table["settings"]["stages"]["align"]["swapped_images"]
    path.write_text(tomli_w.dumps(table))
    save_settings(tmp_path, settings, starter, data, pytest.fail, resume=True)
    align = replace(DEFAULT.align, swapped_images=0.5)
    other = replace(settings, stages=replace(DEFAULT, align=align))
    with pytest.raises(UsageError, match=r"align\.swapped_images was 0\.0 and is 0\.5"):
        save_settings(tmp_path, other, starter, data, pytest.fail, resume=True)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('data = "mine.jsonl"', "data: expected a list, found 'mine.jsonl'"),
        ("data = 5", "data: expected a list, found 5"),
        ("data = [5]", "data: expected text, found 5"),
        ('data = ["a"]\nrun = 5', "run: expected a list, found 5"),
        ('data = ["a"]\nmodel = 5', "model: expected text, found 5"),
        ('data = ["a"]\nimages = ["a"]', "images: expected text, found ['a']"),
        ('data = ["a"]\nstages = 1', "unknown key 'stages'; write tables [align] and [instruct]"),
    ],
)
def test_values_of_another_type_are_refused(tmp_path: Path, line: str, expected: str) -> None:
    """None is taken apart: a text would be a list of its letters."""
    file = tmp_path / "mine.toml"
    file.write_text(line)
    with pytest.raises(UsageError) as caught:
        chosen_settings(None, None, file, {}, {})
    assert str(caught.value) == f"{file}: {expected}"


@pytest.mark.parametrize("model", ["a\0b", "x" * 300, "~nobody-of-this-name"])
def test_a_model_of_any_name_is_kept(tmp_path: Path, model: str) -> None:
    assert chosen(tmp_path, "", model=model).model == model
