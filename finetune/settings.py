"""The settings of a run on disk: kept when it starts, compared when it goes on."""

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import tomli_w

from regionqa.bundles.card import from_table
from regionqa.bundles.store import Bundle
from regionqa.errors import BundleError, TrainingError, UsageError
from regionqa.finetune.config import (
    PRESETS,
    FinetuneSettings,
    StageOverrides,
    override_stages,
    read_settings_file,
    without_none,
)

SETTINGS = "settings.toml"


def keep_settings(
    path: Path,
    settings: FinetuneSettings,
    base: Bundle,
    files: Sequence[Mapping[str, Any]],
    *,
    resume: bool,
) -> None:
    """Write the settings of a new run; UsageError where they differ from those of a resumed one."""
    table: dict[str, Any] = {
        "settings": without_none(asdict(settings)),
        "base": {"name": base.card.name, "revision": base.card.revision},
        "files": [dict(file) for file in files],
    }
    # through TOML and back, so that both sides hold what a file can hold
    table = tomllib.loads(tomli_w.dumps(table))
    if resume and path.is_file():
        difference = first_difference(read_table(path), table)
        if difference:
            raise UsageError(
                f"{path}: the run that is to go on differs: {difference}; leave the option out, "
                "or start anew in another folder"
            )
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(tomli_w.dumps(table), encoding="utf-8")
    except OSError as error:
        raise TrainingError(f"{path}: cannot be written: {error.strerror}") from error


def chosen_settings(
    resumed: Path | None,
    preset: str | None,
    file: Path | None,
    fields: Mapping[str, Any],
    stage_fields: Mapping[str, Any],
) -> FinetuneSettings:
    """What a command line asks for: preset, then the settings file, then flags; None is not said.

    resumed: the folder of a run to go on with, whose own settings hold where no data is named.
    Paths become absolute, so that a run can go on from another folder.
    """
    path = resumed / "training" / SETTINGS if resumed else None
    given = {name: value for name, value in fields.items() if value is not None}
    stage_given = {name: value for name, value in stage_fields.items() if value is not None}
    if path and path.is_file() and file is None and not given.get("data"):
        if given or stage_given or preset:
            one = next(iter((*given, *stage_given, "preset")))
            raise UsageError(
                f"--resume without --data goes on with the run's own settings; leave {one} out, or "
                "give the whole command again"
            )
        return saved_settings(path)
    table: dict[str, Any] = {}
    stages = PRESETS[preset or "default"]
    if file is not None:
        table, changes = read_settings_file(file)
        stages = override_stages(stages, changes, str(file))
    table |= given
    stages = override_stages(stages, StageOverrides(stage_given, stage_given), "options")
    for name in ("data", "align_data", "replay"):
        table[name] = [str(Path(entry).absolute()) for entry in table.get(name) or ()]
    for name in ("images", "held_out", "rehearse_on"):
        if table.get(name) is not None:
            table[name] = str(Path(table[name]).absolute())
    table["model"] = absolute_model(table.get("model", "starter"))
    table["stages"] = asdict(stages)
    table["run"] = list(table.get("run", ("align", "instruct")))
    try:
        return from_table(FinetuneSettings, without_none(table), str(file or "options"))
    except BundleError as error:
        raise UsageError(str(error)) from error


def absolute_model(model: str) -> str:
    """A bundle's folder as an absolute path; a shipped name or a Hub id as it is."""
    return str(Path(model).absolute()) if Path(model).is_dir() else model


def saved_settings(path: Path) -> FinetuneSettings:
    """The settings of a run that was started; UsageError where there is none."""
    if not path.is_file():
        raise UsageError(f"{path.parent.parent}: holds no run to go on with; start one with --data")
    return from_table(FinetuneSettings, read_table(path)["settings"], str(path))


def read_table(path: Path) -> dict[str, Any]:
    """A settings file of a run, which a program wrote."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"{path}: cannot be read: {error}; start anew elsewhere") from error


def first_difference(before: Mapping[str, Any], now: Mapping[str, Any], where: str = "") -> str:
    """The first key whose values differ, with both; empty where there is none."""
    for key in dict.fromkeys((*before, *now)):
        old, new, name = before.get(key), now.get(key), f"{where}{key}"
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            found = first_difference(old, new, f"{name}.")
            if found:
                return found
        elif old != new:
            return f"{name} was {old!r} and is {new!r}"
    return ""
