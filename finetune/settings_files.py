"""Settings from files: a settings file of the user, and the settings that a run has saved.

A settings file (TOML) and flags change single fields of a preset.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from regionqa.errors import BundleError, UsageError
from regionqa.finetune.config import FinetuneSettings, RegionPart, Stages, StageSettings


@dataclass(frozen=True)
class StageOverrides:
    """Fields of the stages that a settings file or flags change in the preset."""

    align: Mapping[str, Any] = field(default_factory=dict)
    instruct: Mapping[str, Any] = field(default_factory=dict)


def override_stages(stages: Stages, changes: StageOverrides, where: str) -> Stages:
    """Change fields of the stages; UsageError, naming field and source, for a wrong one."""
    return Stages(
        **{
            name: _changed_stage(getattr(stages, name), getattr(changes, name), f"{where}: {name}")
            for name in ("align", "instruct")
        }
    )


def _changed_stage(stage: StageSettings, values: Mapping[str, Any], where: str) -> StageSettings:
    """Change fields of a stage to the values of a TOML table, each checked against its type."""
    from regionqa.schema import from_table  # imports msgspec, which `--help` does without

    table = {key: value for key, value in {**vars(stage), **values}.items() if value is not None}
    try:
        return from_table(StageSettings, table, where)
    except (BundleError, UsageError) as error:
        raise UsageError(str(error)) from error


def read_settings_file(path: Path) -> tuple[dict[str, Any], StageOverrides]:
    """Read a settings file: keys of `FinetuneSettings`, and tables [align] and [instruct]."""
    from regionqa.schema import read_toml  # imports msgspec, which `--help` does without

    try:
        table = read_toml(path)
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: cannot be read as settings: {error}") from error
    tables = {name: table.pop(name, {}) for name in ("align", "instruct")}
    for name, value in tables.items():
        if not isinstance(value, dict):
            raise UsageError(f"{path}: {name} is {value!r}, but it must be a table [{name}]")
    return _read_old_stages(tables, str(path), unused_align=False) | table, StageOverrides(**tables)


LORA_KEYS = ("lora_rank", "lora_alpha", "lora_dropout")
"""Keys that version 0.1 kept in each stage, and that are settings of the run today."""


def _read_old_stages(
    stages: Mapping[str, dict[str, Any]], where: str, *, unused_align: bool
) -> dict[str, Any]:
    """Rename values of version 0.1 in stages, and take out LoRA's keys, which it kept there.

    Args:
        stages: The tables `align` and `instruct`; changed in place.
        where: The file, for the error.
        unused_align: Whether `align` may hold other values as long as it does not train the
            language model. Saved settings of version 0.1 name every field of both stages.

    Raises:
        UsageError: The stages differ, so no value holds for the whole run.
    """
    lora = {}
    align, instruct = stages["align"], stages["instruct"]
    for stage in (align, instruct):
        if stage.get("region") == "carrier":
            stage["region"] = RegionPart.projector.value
    for key in LORA_KEYS:
        first, second = align.pop(key, None), instruct.pop(key, None)
        if first not in (None, second) and (align.get("language") or not unused_align):
            raise UsageError(
                f"{where}: {key} in [align] differs from [instruct]; LoRA is a setting of the "
                f"whole run, so write {key} = {first} above the tables"
            )
        if second is not None:
            lora[key] = second
    return lora


def saved_settings(path: Path) -> FinetuneSettings:
    """Read the settings of a run that was started; UsageError where there is none."""
    from regionqa.schema import from_table  # imports msgspec, which `--help` does without

    if not path.is_file():
        raise UsageError(f"{path.parent.parent}: holds no run to resume; start one with --data")
    return from_table(FinetuneSettings, read_saved(path)["settings"], str(path))


def read_saved(path: Path) -> dict[str, Any]:
    """Read a run's saved settings as tables, those of version 0.1 in today's form.

    Raises:
        UsageError: The file cannot be read or holds no settings.
    """
    from regionqa.schema import read_toml

    try:
        table = read_toml(path)
        settings = table["settings"]
        lora = _read_old_stages(settings["stages"], str(path), unused_align=True)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"{path}: cannot be read as the settings of a run: {error}; start a new run in "
            "another folder"
        ) from error
    return {**table, "settings": lora | settings}
