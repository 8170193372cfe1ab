"""Tokenization of rendered prompts: token ids, with slots for image and region tokens."""

import json
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Protocol

import tokenizers

from regionqa.bundles.prompt_rules import PromptRules
from regionqa.errors import BundleError
from regionqa.language.prompts import (
    ImageSlot,
    Piece,
    RegionSlot,
    Special,
    Text,
    render,
    render_answer,
)


class Preceding(Enum):
    """What stands before a text; some tokenizers put a space there."""

    nothing = "nothing"
    """It opens the prompt."""
    token = "token"
    """A special token or a slot."""
    text = "text"
    """Text that it goes on from."""


class Tokenizer(Protocol):
    """What is needed of a tokenizer."""

    @property
    def special_tokens(self) -> Sequence[str]:
        """Texts that are one token each when they stand in a template."""

    def token_id(self, token: str) -> int:
        """The id of a special token."""

    def takes_space(self, token: str) -> tuple[bool, bool]:
        """Whether white space before a special token belongs to it, and that after it."""

    def encode(self, text: str, before: Preceding = Preceding.nothing) -> list[int]:
        """Ids of plain words; special tokens in them are plain words too."""


@dataclass(frozen=True)
class Prompt:
    """Token ids with slots. Ids in a slot mean nothing: embeddings are put there."""

    input_ids: tuple[int, ...]
    image_start: int
    """Position of the first image token."""
    region_starts: tuple[tuple[int, int], ...]
    """(position, region index) of every region slot, in reading order."""
    shared: int
    """Positions at the start that depend on the image alone, the same for all its questions."""


def tokenize(
    pieces: Sequence[Piece],
    tokenizer: Tokenizer,
    image_tokens: int,
    region_tokens: int,
    before: Preceding = Preceding.nothing,
) -> Prompt:
    """Ids and slots of rendered pieces; a slot takes as many positions as the card says.

    White space beside a token that takes it is left out, as is that beside a slot which stands in
    the place of such a token. before: what the pieces follow, where they are a later turn.
    """
    ids: list[int] = []
    image_start, shared = 0, 0
    region_starts: list[tuple[int, int]] = []
    for position, piece in enumerate(pieces):
        match piece:
            case Text(text):
                text = _without_taken(text, pieces, position, tokenizer)
                ids += tokenizer.encode(text, before) if text else []
            case Special(token):
                ids.append(tokenizer.token_id(token))
            case ImageSlot(token):
                image_start, shared = len(ids), len(ids) + image_tokens
                ids += [tokenizer.token_id(token) if token else 0] * image_tokens
            case RegionSlot(index, token):
                region_starts.append((len(ids), index))
                ids += [tokenizer.token_id(token) if token else 0] * region_tokens
        # special tokens that stand first are those that a tokenizer would add by itself
        if before is not Preceding.nothing or not isinstance(piece, Special):
            before = Preceding.text if isinstance(piece, Text) else Preceding.token
    return Prompt(tuple(ids), image_start, tuple(region_starts), shared)


def answer_ids(rules: PromptRules, answer: str, stop: str, tokenizer: Tokenizer) -> list[int]:
    """Ids of an answer as it stands after its prompt, and of the stop that ends it."""
    *_, last = render(rules, "?", (), tokenizer.special_tokens)
    before = Preceding.text if isinstance(last, Text) else Preceding.token
    words = tokenizer.encode(render_answer(rules, answer), before)
    if stop in tokenizer.special_tokens:
        return [*words, tokenizer.token_id(stop)]
    return [*words, *tokenizer.encode(stop, Preceding.text)]


def _without_taken(text: str, pieces: Sequence[Piece], position: int, tokenizer: Tokenizer) -> str:
    """The text without the white space that belongs to the tokens beside it."""
    if position and _takes_space(pieces[position - 1], tokenizer)[1]:
        text = text.lstrip()
    if position + 1 < len(pieces) and _takes_space(pieces[position + 1], tokenizer)[0]:
        text = text.rstrip()
    return text


def _takes_space(piece: Piece, tokenizer: Tokenizer) -> tuple[bool, bool]:
    match piece:
        case Special(token) | ImageSlot(str(token)) | RegionSlot(_, str(token)):
            return tokenizer.takes_space(token)
        case _:
            return False, False


class BundleTokenizer:
    """A bundle's `tokenizer.json`; special tokens are found only by name, never inside text."""

    def __init__(self, file: Path) -> None:
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(file))
        except Exception as error:  # the library raises bare Exception
            raise BundleError(f"{file}: cannot be read as a tokenizer: {error}") from error
        content = json.loads(self._tokenizer.to_str())
        self._encoders = {before: opened(self._tokenizer, content, before) for before in Preceding}
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

    def encode(self, text: str, before: Preceding = Preceding.nothing) -> list[int]:
        """Ids of plain words; what is no character (half of a surrogate pair) reads as `?`.

        before: what they follow; some tokenizers put a space before words that follow no others.
        """
        readable = text.encode("utf-8", "replace").decode("utf-8")
        return list(self._encoders[before].encode(readable, add_special_tokens=False).ids)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids; special tokens are left out."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))


def opened(
    tokenizer: tokenizers.Tokenizer, content: dict[str, Any], before: Preceding
) -> tokenizers.Tokenizer:
    """The same tokenizer for words that follow something: without the space it would put there.

    content: its file's. It is the same object where nothing changes, as is usual. Tokenizers say
    that they put a space before the first words ("first"), or before all that follow no others
    ("always", or a step that prepends).
    """
    unwanted = {
        Preceding.nothing: (),
        Preceding.token: ("first",),
        Preceding.text: ("first", "always"),
    }
    pre, normal = deepcopy(content["pre_tokenizer"]) or {}, content["normalizer"] or {}
    spaced = [stage for stage in stages(pre) if stage.get("prepend_scheme") in unwanted[before]]
    for stage in spaced:
        stage["prepend_scheme"] = "never"
    steps = normal.get("normalizers", [normal])
    kept = [step for step in steps if step.get("type") != "Prepend"]
    if before is Preceding.text and len(kept) < len(steps):
        normal = {"type": "Sequence", "normalizers": kept}
    elif not spaced:
        return tokenizer
    changed = {"pre_tokenizer": pre or None, "normalizer": normal or None}
    return tokenizers.Tokenizer.from_str(json.dumps(content | changed))


def stages(pre_tokenizer: dict[str, Any]) -> list[dict[str, Any]]:
    """The steps of a pre-tokenizer as JSON has them, whether it is one or a sequence."""
    return list(pre_tokenizer.get("pretokenizers", [pre_tokenizer]))
