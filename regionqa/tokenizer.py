"""A bundle's tokenizer: words to ids and back.

Thin over the `tokenizers` library, which loads in a blink where transformers takes seconds. It does
not know about templates or slots.
"""

import json
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from regionqa.errors import BundleError
from regionqa.promptids import Before


class BundleTokenizer:
    """A bundle's `tokenizer.json`; special tokens are found only by name, never inside text."""

    def __init__(self, file: Path) -> None:
        try:
            self._tokenizer = Tokenizer.from_file(str(file))
        except Exception as error:  # the library raises bare Exception
            raise BundleError(f"{file}: cannot be read as a tokenizer: {error}") from error
        content = json.loads(self._tokenizer.to_str())
        self._encoders = {before: opened(self._tokenizer, content, before) for before in Before}
        for tokenizer in (self._tokenizer, *self._encoders.values()):
            tokenizer.encode_special_tokens = True  # what a user types is never a special token
        added = self._tokenizer.get_added_tokens_decoder()
        self._special = {token.content: index for index, token in added.items()}
        self._takes = {token.content: (token.lstrip, token.rstrip) for token in added.values()}

    @property
    def special_tokens(self) -> Sequence[str]:
        """Texts that are one token each when they stand in a template."""
        return tuple(self._special)

    @property
    def size(self) -> int:
        """Number of ids, special tokens included."""
        return int(self._tokenizer.get_vocab_size(with_added_tokens=True))

    def token_id(self, token: str) -> int:
        """The id of a special token; BundleError where there is none."""
        if token not in self._special:
            raise BundleError(f"the tokenizer has no special token {token!r}")
        return self._special[token]

    def takes_space(self, token: str) -> tuple[bool, bool]:
        """Whether white space before a special token belongs to it, and that after it."""
        return self._takes.get(token, (False, False))

    def encode(self, text: str, before: Before = Before.nothing) -> list[int]:
        """Ids of plain words; what is no character (half of a surrogate pair) reads as `?`.

        before: what they follow; some tokenizers put a space before words that follow no others.
        """
        readable = text.encode("utf-8", "replace").decode("utf-8")
        return list(self._encoders[before].encode(readable, add_special_tokens=False).ids)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids; special tokens are left out."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))


def opened(tokenizer: Tokenizer, content: dict[str, Any], before: Before) -> Tokenizer:
    """The same tokenizer for words that follow something: without the space it would put there.

    content: its file's. It is the same object where nothing changes, as is usual. Tokenizers say
    that they put a space before the first words ("first"), or before all that follow no others
    ("always", or a step that prepends).
    """
    unwanted = {Before.nothing: (), Before.token: ("first",), Before.text: ("first", "always")}
    pre, normal = deepcopy(content["pre_tokenizer"]) or {}, content["normalizer"] or {}
    spaced = [stage for stage in stages(pre) if stage.get("prepend_scheme") in unwanted[before]]
    for stage in spaced:
        stage["prepend_scheme"] = "never"
    steps = normal.get("normalizers", [normal])
    kept = [step for step in steps if step.get("type") != "Prepend"]
    if before is Before.text and len(kept) < len(steps):
        normal = {"type": "Sequence", "normalizers": kept}
    elif not spaced:
        return tokenizer
    changed = {"pre_tokenizer": pre or None, "normalizer": normal or None}
    return Tokenizer.from_str(json.dumps(content | changed))


def stages(pre_tokenizer: dict[str, Any]) -> list[dict[str, Any]]:
    """The steps of a pre-tokenizer as JSON has them, whether it is one or a sequence."""
    return list(pre_tokenizer.get("pretokenizers", [pre_tokenizer]))
