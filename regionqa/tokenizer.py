"""A bundle's tokenizer: words to ids and back.

Thin over the `tokenizers` library, which loads in a blink where transformers takes seconds. It does
not know about templates or slots.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from regionqa.errors import BundleError


class BundleTokenizer:
    """A bundle's `tokenizer.json`; special tokens are found only by name, never inside text."""

    def __init__(self, file: Path) -> None:
        try:
            self._tokenizer = Tokenizer.from_file(str(file))
        except Exception as error:  # the library raises bare Exception
            raise BundleError(f"{file}: cannot be read as a tokenizer: {error}") from error
        self._further = not_at_the_start(self._tokenizer)
        for tokenizer in (self._tokenizer, self._further):
            tokenizer.encode_special_tokens = True  # what a user types is never a special token
        self._special = {
            token.content: index
            for index, token in self._tokenizer.get_added_tokens_decoder().items()
        }

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

    def encode(self, text: str, start: bool = True) -> list[int]:
        """Ids of plain words; what is no character (half of a surrogate pair) reads as `?`.

        start: whether the words open the prompt; some tokenizers put a space before those alone.
        """
        readable = text.encode("utf-8", "replace").decode("utf-8")
        tokenizer = self._tokenizer if start else self._further
        return list(tokenizer.encode(readable, add_special_tokens=False).ids)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids; special tokens are left out."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))


def not_at_the_start(tokenizer: Tokenizer) -> Tokenizer:
    """The same tokenizer for words that do not open the text: without the space it puts there.

    It is the same object where the tokenizer makes no difference; that is nearly always so.
    """
    state = tokenizer.pre_tokenizer.__getstate__() if tokenizer.pre_tokenizer else b"{}"
    if not any(stage.get("prepend_scheme") == "first" for stage in stages(json.loads(state))):
        return tokenizer
    content = json.loads(tokenizer.to_str())
    for stage in stages(content["pre_tokenizer"]):
        if stage.get("prepend_scheme") == "first":
            stage["prepend_scheme"] = "never"
    return Tokenizer.from_str(json.dumps(content))


def stages(pre_tokenizer: dict[str, Any]) -> list[dict[str, Any]]:
    """The steps of a pre-tokenizer as JSON has them, whether it is one or a sequence."""
    return list(pre_tokenizer.get("pretokenizers", [pre_tokenizer]))
