"""Answers by a JSON schema, for every kind of model."""

import json
from dataclasses import replace
from pathlib import Path

from regionqa.backends.base import ModelInfo
from regionqa.errors import ItemError, UsageError
from regionqa.language.answer_schemas import AnswerSchema, read_schema
from regionqa.requests import Answer


def check_schema(path: Path | None, model: ModelInfo) -> AnswerSchema | None:
    """Read the schema of --schema, if one is given.

    Raises:
        UsageError: It cannot be read, or the model cannot follow one.
    """
    if path is None:
        return None
    if not model.structured:
        raise UsageError(
            f"--schema: the model {model.name} cannot answer by a schema; choose a "
            "vision-language model of the Hub (regionqa models list)"
        )
    return read_schema(path)


def structured(answer: Answer, schema: AnswerSchema) -> Answer:
    """Return an answer with its value, or with the error why it has none."""
    try:
        value = schema.read(answer.text)
    except ItemError as error:
        return Answer(answer.request, error=error)
    return replace(answer, text=json.dumps(value, ensure_ascii=False), value=value)
