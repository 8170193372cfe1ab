"""JSON schemas that answers satisfy."""

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from regionqa.errors import ItemError, UsageError

PACKAGES = ("jsonschema", "xgrammar")
"""Packages of the extra `schema`."""


@dataclass(frozen=True)
class AnswerSchema:
    """A JSON schema."""

    text: str
    """The schema as JSON."""

    @cached_property
    def digest(self) -> str:
        """8 hex digits that identify the schema."""
        return short_digest(self.text)

    @cached_property
    def content(self) -> dict[str, Any]:
        """The schema as an object."""
        content: dict[str, Any] = json.loads(self.text)
        return content

    def read(self, answer: str) -> Any:
        """Parse an answer.

        Raises:
            ItemError: It is not JSON, or does not satisfy the schema.
        """
        import jsonschema

        try:
            value = json.loads(answer, strict=False)  # control characters may stand in texts
        except ValueError:
            raise ItemError(
                "the answer ended before its JSON was complete; raise --max-new-tokens, or bound "
                "texts and lists in the schema (maxLength, maxItems)"
            ) from None
        try:
            jsonschema.validate(value, self.content)
        except jsonschema.ValidationError as error:
            where = "/".join(map(str, error.absolute_path)) or "the answer"
            raise ItemError(f"the answer breaks the schema: {where}: {error.message}") from None
        return value


def short_digest(text: str) -> str:
    """Return 8 hex digits that identify a text."""
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:8]


def read_schema(path: Path) -> AnswerSchema:
    """Read the file of a JSON schema.

    Raises:
        UsageError: The file cannot be read or is no JSON schema, or a package is not installed.
    """
    missing = [package for package in PACKAGES if find_spec(package) is None]
    if missing:
        raise UsageError(
            f"--schema needs {missing[0]}, which is not installed: pip install 'regionqa[schema]'"
        )
    import jsonschema

    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("it is no JSON object")
        jsonschema.validators.validator_for(content).check_schema(content)
    except jsonschema.SchemaError as error:
        raise UsageError(f"--schema {path}: is no JSON schema: {error.message}") from None
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"--schema {path}: cannot be read as a JSON schema: {reason}") from None
    return AnswerSchema(json.dumps(content))
