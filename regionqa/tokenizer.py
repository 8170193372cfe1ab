"""A bundle's tokenizer: words to ids and back.

Thin over the `tokenizers` library, which loads in a blink where transformers takes seconds. It does
not know about templates or slots.
"""

from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer

from regionqa.errors import BundleError


class BundleTokenizer:
    """A bundle's `tokenizer.json`; special tokens are found only by name, never inside text."""

    def __init__(self, file: Path) -> None:
        try:
            self._tokenizer = Tokenizer.from_file(str(file))
        except Exception as error:  # the library raises bare Exception
            raise BundleError(f"{file}: cannot be read as a tokenizer: {error}") from error
        self._tokenizer.encode_special_tokens = True  # what a user types is never a special token
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

    def encode(self, text: str) -> list[int]:
        """Ids of plain words; what is no character (half of a surrogate pair) reads as `?`."""
        readable = text.encode("utf-8", "replace").decode("utf-8")
        return list(self._tokenizer.encode(readable, add_special_tokens=False).ids)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids; special tokens are left out."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))
