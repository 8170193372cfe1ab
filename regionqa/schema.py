"""TOML tables to frozen dataclasses, checked by msgspec: cards, settings and records.

Every key of a table must be a field of its dataclass, every value must have the field's type, and
dataclasses check themselves further in `__post_init__`. Errors name the origin, the key and what
was expected there.
"""

import json
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import msgspec
from msgspec import inspect

from regionqa.errors import BundleError

Table = TypeVar("Table")

AT = re.compile(r" - at `\$\.?(?P<path>[^`]*)`$")
"""msgspec's note of the place in a nested value, such as ``$.files[1].size``."""
NAMES = {"str": "text", "bool": "true or false", "array": "a list", "object": "a table",
         "int": "a whole number", "float": "a number", "null": "nothing"}  # fmt: skip
"""TOML's names for msgspec's types."""
MISSING = re.compile(r"Object missing required field `(?P<name>.*)`")
EXPECTED = re.compile(
    r"Expected `(?P<types>[^`]*)`(?: of length (?P<length>\d+))?, got (?P<got>.*)"
)


def read_toml(path: Path) -> dict[str, Any]:
    """Parse a TOML file.

    Raises:
        OSError: It cannot be read.
        ValueError: It is not UTF-8 or not TOML, is nested too deeply, or has a number of thousands
            of digits.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def read_object(path: Path) -> dict[str, Any]:
    """Parse a JSON object of a model's files.

    Raises:
        FileNotFoundError: There is none.
        BundleError: It cannot be read, or is something else.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise BundleError(f"{path}: cannot be read as JSON: {error}; get it again") from error
    if not isinstance(found, dict):
        raise BundleError(f"{path}: holds no JSON object; get it again")
    return found


def from_table(
    kind: type[Table],
    table: Mapping[str, Any],
    where: str,
    renamed: Mapping[str, str] = MappingProxyType({}),
) -> Table:
    """Convert a TOML table to a dataclass.

    Args:
        kind: The dataclass. Fields may be dataclasses, enums, tuples and mappings.
        table: The values by field. A whole number is accepted for a float.
        where: The origin of the table, put before every message: a file, or "options".
        renamed: Keys of older versions and their names today, accepted at any depth.

    Raises:
        BundleError: A key is unknown or missing, or a value does not have its field's type.
    """
    checked = _checked(inspect.type_info(kind), table, where, renamed)
    try:
        return msgspec.convert(checked, kind)
    except msgspec.ValidationError as error:
        raise BundleError(_describe(error, checked, where)) from error


def without_none(table: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out keys whose value is None, which TOML cannot hold."""
    return {
        key: without_none(value) if isinstance(value, Mapping) else value
        for key, value in table.items()
        if value is not None
    }


def _checked(info: inspect.Type, value: Any, where: str, renamed: Mapping[str, str]) -> Any:
    """Rename old keys of a value; BundleError for an unknown key, or an unknown name of an enum.

    msgspec ignores keys that a dataclass does not have, and does not list an enum's values.
    """
    if isinstance(info, inspect.UnionType):
        info = next(option for option in info.types if not isinstance(option, inspect.NoneType))
    if isinstance(info, inspect.EnumType) and isinstance(value, str):
        names = [str(member.value) for member in info.cls]
        if value not in names:
            raise BundleError(f"{where}: {value!r} is unknown; known are {', '.join(names)}")
    if isinstance(info, inspect.VarTupleType) and isinstance(value, list):
        return [_checked(info.item_type, entry, where, renamed) for entry in value]
    if not isinstance(info, inspect.DataclassType) or not isinstance(value, Mapping):
        return value
    fields = {field.name: field.type for field in info.fields}
    entries = {renamed.get(key, key): entry for key, entry in value.items()}
    if unknown := sorted(set(entries) - set(fields)):
        raise BundleError(f"{where}: unknown key {unknown[0]!r}; known are {', '.join(fields)}")
    return {
        key: _checked(fields[key], entry, f"{where}: {key}", renamed)
        for key, entry in entries.items()
    }


def _describe(error: msgspec.ValidationError, table: Any, where: str) -> str:
    """msgspec's message in the words of TOML, with the value that was found."""
    text = str(error)
    value, path = table, ""
    if match := AT.search(text):
        text, path = text[: match.start()], match["path"]
    for name, index in re.findall(r"([^.\[\]]+)|\[(\d+)\]", path):
        value = value[name] if name and not index else value[int(index)]
    place = ": ".join([where, *re.findall(r"[A-Za-z_]\w*", path)])
    if error.__cause__ is not None:  # raised by the dataclass itself
        own = str(error.__cause__)
        return own if own.startswith(where) else f"{place}: {own}"
    if match := MISSING.fullmatch(text):
        return f"{place}: the key {match['name']!r} is missing"
    if match := EXPECTED.fullmatch(text):
        if match["length"]:
            return f"{place}: expected {match['length']} values, found {match['got']}"
        options = [NAMES.get(name, name) for name in match["types"].split(" | ") if name != "null"]
        return f"{place}: expected {' or '.join(options)}, found {value!r}"
    return f"{place}: {text}"
