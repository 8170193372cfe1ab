"""Replies of a language model: their schemas, and the strict reading of their JSON."""

import re
from typing import Any, TypeVar

import msgspec

Form = TypeVar("Form", bound=msgspec.Struct)
FENCED = re.compile(r"```(?:json)?\s*\n(.*)\n\s*```", re.DOTALL)
"""JSON in a block of Markdown, as models write it that no schema binds."""


class PairReply(msgspec.Struct, forbid_unknown_fields=True):
    """A question and its answer."""

    question: str
    answer: str


class PairsReply(msgspec.Struct, forbid_unknown_fields=True):
    """Several questions with answers."""

    pairs: list[PairReply]


class QuestionsReply(msgspec.Struct, forbid_unknown_fields=True):
    """The questions of a conversation."""

    questions: list[str]


class NumberedAnswer(msgspec.Struct, forbid_unknown_fields=True):
    """The answer to a question of a list."""

    number: int
    answer: str


class AnswersReply(msgspec.Struct, forbid_unknown_fields=True):
    """Answers to some questions of a list."""

    answers: list[NumberedAnswer]


class Verdict(msgspec.Struct, forbid_unknown_fields=True):
    """Whether an answer follows from the annotations."""

    number: int
    reason: str
    follows: bool


class VerdictsReply(msgspec.Struct, forbid_unknown_fields=True):
    """A verdict on each answer."""

    verdicts: list[Verdict]


class ReplyFormError(ValueError):
    """A reply does not have the form that was asked for."""

    def __init__(self, text: str, *, is_json: bool) -> None:
        super().__init__(text)
        self.is_json = is_json
        """Whether it is JSON at all."""


def read_reply(text: str, form: type[Form]) -> Form:
    """Read a reply; a single block of Markdown around it is allowed.

    Raises:
        ReplyFormError: It is not JSON, or has missing, further or wrong fields.
    """
    if fenced := FENCED.fullmatch(text.strip()):
        text = fenced[1]
    try:
        return msgspec.json.decode(text, type=form)
    except msgspec.ValidationError as error:
        raise ReplyFormError(str(error), is_json=True) from None
    except (ValueError, RecursionError) as error:  # the former also for half a surrogate
        raise ReplyFormError(str(error), is_json=False) from None


def json_schema(form: type[msgspec.Struct]) -> dict[str, Any]:
    """Return the JSON schema of a form, without references, which not all servers follow."""
    (root,), components = msgspec.json.schema_components([form])
    whole: dict[str, Any] = _resolved(root, components)
    return whole


def _resolved(node: Any, components: dict[str, Any]) -> Any:
    """Replace references, and leave out what only describes: titles and docstrings."""
    if isinstance(node, list):
        return [_resolved(each, components) for each in node]
    if not isinstance(node, dict):
        return node
    if reference := node.get("$ref"):
        return _resolved(components[reference.rpartition("/")[2]], components)
    kept = {name: each for name, each in node.items() if name not in ("title", "description")}
    if "properties" in kept:  # fields may have these names
        fields = kept.pop("properties")
        properties = {name: _resolved(each, components) for name, each in fields.items()}
        return _resolved(kept, components) | {"properties": properties}
    return {name: _resolved(each, components) for name, each in kept.items()}
