"""Structured output: answers by a schema, and a choice with its share of the probability.

The server is given a JSON schema that allows the choices only. At each token, the probability of
those in its place that continue the chosen answer is compared with that of those that continue
another; the product over the tokens is the probability of the choice under the constraint. It does
not matter whether the server reports probabilities before or after it applies the schema.
"""

import json
import math
from collections.abc import Sequence
from typing import Any

from regionqa.backends.base import ChosenAnswer
from regionqa.backends.server.replies import Reply, ReplyToken
from regionqa.errors import ItemError

FIELD = "answer"
"""Name of the JSON field that holds the choice."""
ALTERNATIVES = 20
"""Number of tokens whose probabilities are asked for at each place; what servers give at most."""
TOKENS_AROUND = 32
"""Room for the JSON around a choice, in tokens."""


def choice_request(choices: Sequence[str]) -> dict[str, Any]:
    """Return what a request adds to allow some answers only."""
    schema = {
        "type": "object",
        "properties": {FIELD: {"type": "string", "enum": list(choices)}},
        "required": [FIELD],
        "additionalProperties": False,
    }
    return {
        "response_format": response_format("choice", schema),
        "max_tokens": TOKENS_AROUND + max(len(choice.encode()) for choice in choices),
        "temperature": 0.0,
        "logprobs": True,
        "top_logprobs": ALTERNATIVES,
    }


def response_format(name: str, schema: Any) -> dict[str, Any]:
    """Return the part of a request that lets answers satisfy a JSON schema."""
    form = {"name": name, "strict": True, "schema": schema}
    return {"type": "json_schema", "json_schema": form}


def check_json(reply: Reply) -> None:
    """ItemError if a whole reply is not JSON: the server does not follow a schema."""
    try:
        json.loads(reply.answer, strict=False)
    except (ValueError, RecursionError):
        if reply.finish != "length":  # else it is the limit that cut it
            raise ItemError(
                f"the server does not follow the schema, it says {reply.answer[:80]!r}: it needs "
                "structured output (a JSON schema as response_format); update or configure it"
            ) from None


def read_choice(reply: Reply, choices: Sequence[str]) -> ChosenAnswer:
    """Read which choice a reply is.

    Raises:
        ItemError: It is none: the server does not follow the schema.
    """
    text = reply.answer
    try:
        told = json.loads(text)
    except (ValueError, RecursionError):
        told = text
    answer = told.get(FIELD) if isinstance(told, dict) else told
    if not isinstance(answer, str) or answer not in choices:
        raise ItemError(
            f"the server does not keep to the choices, it says {text[:80]!r}: it needs structured "
            "output (a JSON schema as response_format); update or configure it, or ask without "
            "choices"
        )
    index = list(choices).index(answer)
    if not isinstance(told, dict) or not reply.tokens or reply.thinks:
        return ChosenAnswer(index)
    return ChosenAnswer(index, _share(reply.tokens, answer, choices))


def _share(tokens: Sequence[ReplyToken], answer: str, choices: Sequence[str]) -> float | None:
    """Probability of the chosen answer among the choices; None where the tokens do not show it."""
    whole = "".join(token.text for token in tokens)
    before, found, after = whole.rpartition(_quoted(answer))
    if not found or not any(token.others for token in tokens):
        return None
    wholes = [f"{before}{_quoted(choice)}{after}" for choice in choices]
    share, begun = 1.0, ""
    for token in tokens:
        same = math.exp(token.log)
        other = 0.0
        for text, log in token.others.items():
            if text == token.text or _continues(begun + text, whole):
                same += 0.0 if text == token.text else math.exp(log)
            elif any(_continues(begun + text, each) for each in wholes):
                other += math.exp(log)
        share *= same / (same + other) if same + other > 0 else 1.0
        begun += token.text
    return share


def _quoted(choice: str) -> str:
    return json.dumps(choice, ensure_ascii=False)


def _continues(begun: str, whole: str) -> bool:
    """Whether a text is on the way to another."""
    return whole.startswith(begun)
