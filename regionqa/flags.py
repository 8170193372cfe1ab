"""How options are declared: fields of dataclasses, with their flag, help text and range.

The command line derives from the fields (`regionqa.cli.options`); instances check their values.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import IntEnum, StrEnum
from math import inf
from pathlib import Path
from types import MappingProxyType, UnionType
from typing import Any, Self, TypeVar, get_args

from regionqa.errors import UsageError

Choice = TypeVar("Choice", bound=StrEnum)
FLAG = "regionqa flag"
"""Key of a field's metadata that holds its `Flag`."""


class Section(IntEnum):
    """Sections of `--help`, in order; within one, options are listed as they are declared."""

    subject = 0
    """Images, boxes, data."""
    model = 1
    method = 2
    """How questions are asked, answers judged, or a model trained."""
    result = 3
    """What is written, and where."""
    runtime = 4
    """Device, precision, sizes."""
    record = 5
    """What else is recorded."""
    answer = 6
    """How an answer is chosen."""
    general = 7


class Reads(StrEnum):
    """What an option or argument names that a command reads."""

    data = "data"
    """A file, or a folder of which every file may be read."""
    images = "images"
    """Images, folders of them, globs, or `-`."""
    request = "request"
    """Images, then a question."""
    model = "model"
    """A model: a shipped or published name, a folder, or OWNER/NAME on the Hub."""


class Writes(StrEnum):
    """What an option or argument names that a command writes."""

    results = "results"
    """A file of results."""
    plot = "plot"
    """A file of results that is an image."""
    cache = "cache"
    """A file that every run continues."""
    drawings = "drawings"
    """A drawing, or a folder that drawings are added to."""
    folder = "folder"
    """A folder of the command's own."""
    shared = "shared"
    """A folder that runs fill at the same time and continue."""


@dataclass(frozen=True)
class Flag:
    """How a field appears on the command line."""

    help: str
    names: tuple[str, ...] = ()
    """Flags; empty: `--` and the field's name."""
    section: Section = Section.subject
    metavar: str | None = None
    """Name of the value in the help text; None: its type."""
    min: float | None = None
    max: float | None = None
    """With `min` only."""
    parse: type | None = None
    """Type of the value on the command line, if it is not the field's."""
    needs: tuple[str, ...] = ()
    """Fields of which one must be given too, or the option has no effect. A command that lacks one
    of them gives the option another use."""
    excludes: tuple[str, ...] = ()
    """Fields that have no effect beside this option."""
    role: Reads | Writes | None = None
    """What becomes of the file or folder that the value names; every path has a role, by which
    `regionqa.pipeline.guard` protects inputs and earlier results."""
    unless: str | None = None
    """Name of an option with which nothing is written here."""


def flag(help: str, *names: str, **others: Any) -> Mapping[str, Flag]:
    """Return metadata that makes a field an option; `others` are further fields of `Flag`."""
    return MappingProxyType({FLAG: Flag(help, names, **others)})


def option(default: Any, help: str, *names: str, **others: Any) -> Any:
    """Declare a dataclass field that is an option, with a default (tuples, not lists).

    Args:
        default: The default.
        help: A noun phrase or an imperative.
        names: Flags, such as `"--model", "-m"`. None: `--` and the field's name.
        others: Further fields of `Flag`.
    """
    return field(default=default, metadata=flag(help, *names, **others))


def flags_of(kind: type) -> dict[str, Flag]:
    """Return the flags of a dataclass by field name."""
    return {item.name: item.metadata[FLAG] for item in fields(kind) if FLAG in item.metadata}


def flag_names(name: str, flag: Flag) -> tuple[str, ...]:
    """Return the flags of a field, as a user types them."""
    return flag.names or (f"--{name.replace('_', '-')}",)


def parse_choice(kind: type[Choice], value: str, name: str) -> Choice:
    """Return the enum member of this value; UsageError, naming the option, if there is none."""
    try:
        return kind(value)
    except ValueError:
        raise UsageError(f"{name} {value!r}: must be one of {', '.join(kind)}") from None


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class Options:
    """Base of the option groups: checks ranges, then what options mean together.

    `repr` and `==` are methods here: generating them for every group would take a fifth of the time
    of `regionqa --help`.
    """

    def __post_init__(self) -> None:
        for name, flag in flags_of(type(self)).items():
            value, low, high = getattr(self, name), flag.min, flag.max
            if value is None or low is None or low <= value <= (inf if high is None else high):
                continue
            allowed = f"{low:g} or more" if high is None else f"from {low:g} to {high:g}"
            raise UsageError(f"{flag_names(name, flag)[0]} {value:g}: must be {allowed}")
        self.check()

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and _values(other) == _values(self)

    def __hash__(self) -> int:
        return hash(_values(self))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in _values(self))})"

    def check(self) -> None:
        """Raise UsageError for options that contradict each other."""

    def replace(self, **values: Any) -> Self:
        """Return a copy with other values, given and checked as by `parse`."""
        return type(self).parse(**(dict(_values(self)) | values))

    @classmethod
    def parse(cls, **values: Any) -> Self:
        """Make an instance of plain values, as a Python caller or a JSON request gives them.

        Strings become members of enums and paths where the field is one.

        Raises:
            UsageError: An option is unknown, or its value is not possible.
        """
        known = {item.name: item for item in fields(cls)}
        unknown = sorted(set(values) - set(known))
        if unknown:
            raise UsageError(f"unknown option {unknown[0]!r}; known are {', '.join(known)}")
        return cls(**{name: _converted(known[name], value) for name, value in values.items()})


def _values(options: Options) -> tuple[tuple[str, Any], ...]:
    """Return names and values of all fields."""
    return tuple((item.name, getattr(options, item.name)) for item in fields(options))


def _converted(item: Any, value: Any) -> Any:
    """Convert a string to the enum or path that its field expects; return other values as given."""
    if not isinstance(value, str):
        return value
    for kind in get_args(item.type) if isinstance(item.type, UnionType) else (item.type,):
        if isinstance(kind, type) and issubclass(kind, StrEnum):
            return parse_choice(kind, value, item.name.replace("_", " "))
        if kind is Path:
            return Path(value)
    return value
