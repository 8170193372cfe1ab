"""Tokenization of rendered prompts into ids with slots for image and region tokens."""

import json
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
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

REMEMBERED = 4096
"""Texts whose ids a tokenizer remembers."""


class Preceding(Enum):
    """What precedes a text; some tokenizers add a space to a text depending on this."""

    nothing = "nothing"
    """The text starts the prompt."""
    token = "token"
    """A special token or a slot."""
    text = "text"
    """Other text, which it continues."""


class Tokenizer(Protocol):
    """A tokenizer, as prompts need it."""

    @property
    def special_tokens(self) -> Sequence[str]:
        """Special tokens; in a template, each is one token."""

    def token_id(self, token: str) -> int:
        """Return the id of a special token."""

    def strips_space(self, token: str) -> tuple[bool, bool]:
        """Return whether a special token absorbs white space before and after it."""

    def encode(self, text: str, before: Preceding = Preceding.nothing) -> list[int]:
        """Encode plain text, in which special tokens have no meaning."""


@dataclass(frozen=True)
class Prompt:
    """Token ids with slots. The ids in a slot are placeholders for embeddings."""

    input_ids: tuple[int, ...]
    image_start: int
    """Position of the first image token."""
    region_starts: tuple[tuple[int, int], ...]
    """(position, region index) of every region slot, in order of position."""
    shared: int
    """Length of the prefix that all questions about an image share."""
    region_tokens: int = 0
    """Positions of a region slot."""


def tokenize(
    pieces: Sequence[Piece],
    tokenizer: Tokenizer,
    image_tokens: int,
    region_tokens: int,
    before: Preceding = Preceding.nothing,
) -> Prompt:
    """Tokenize a rendered prompt.

    White space that a special token absorbs is left out, also beside a slot that replaces such a
    token.

    Args:
        pieces: The rendered prompt.
        tokenizer: The model's tokenizer.
        image_tokens: Positions of an image slot.
        region_tokens: Positions of a region slot.
        before: What precedes the pieces, where they are a later turn.
    """
    ids: list[int] = []
    image_start, shared = 0, 0
    region_starts: list[tuple[int, int]] = []
    for position, piece in enumerate(pieces):
        match piece:
            case Text(text):
                text = _strip_absorbed(text, pieces, position, tokenizer)
                ids += tokenizer.encode(text, before) if text else []
            case Special(token):
                ids.append(tokenizer.token_id(token))
            case ImageSlot(token):
                image_start, shared = len(ids), len(ids) + image_tokens
                ids += [tokenizer.token_id(token) if token else 0] * image_tokens
            case RegionSlot(index, token):
                region_starts.append((len(ids), index))
                ids += [tokenizer.token_id(token) if token else 0] * region_tokens
        # leading special tokens are those that the tokenizer would add itself
        if before is not Preceding.nothing or not isinstance(piece, Special):
            before = Preceding.text if isinstance(piece, Text) else Preceding.token
    return Prompt(tuple(ids), image_start, tuple(region_starts), shared, region_tokens)


def prompt_text(prompt: Prompt, tokenizer: "BundleTokenizer") -> str:
    """Return a prompt as text with its special tokens; slots are `<image>` and `<regionK>`."""
    starts = [(prompt.image_start, "<image>")]
    starts += [(start, f"<region{index + 1}>") for start, index in prompt.region_starts]
    ends = {prompt.image_start: prompt.shared}
    text, at = "", 0
    for start, name in sorted(starts):
        text += tokenizer.decode(prompt.input_ids[at:start], special=True) + name
        at = ends.get(start, start + prompt.region_tokens)
    return text + tokenizer.decode(prompt.input_ids[at:], special=True)


def answer_ids(rules: PromptRules, answer: str, stop: str, tokenizer: Tokenizer) -> list[int]:
    """Encode an answer as it continues its prompt, with the stop that ends it."""
    before = _before_answer(rules, tuple(tokenizer.special_tokens))
    ids = tokenizer.encode(render_answer(rules, answer), before)
    if stop in tokenizer.special_tokens:
        return [*ids, tokenizer.token_id(stop)]
    return [*ids, *tokenizer.encode(stop, Preceding.text)]


@lru_cache(maxsize=16)
def _before_answer(rules: PromptRules, special: tuple[str, ...]) -> Preceding:
    *_, last = render(rules, "?", (), special)
    return Preceding.text if isinstance(last, Text) else Preceding.token


def _strip_absorbed(text: str, pieces: Sequence[Piece], position: int, tokenizer: Tokenizer) -> str:
    """Strip white space that the tokens beside a text absorb."""
    if position and _strips_space(pieces[position - 1], tokenizer)[1]:
        text = text.lstrip()
    if position + 1 < len(pieces) and _strips_space(pieces[position + 1], tokenizer)[0]:
        text = text.rstrip()
    return text


def _strips_space(piece: Piece, tokenizer: Tokenizer) -> tuple[bool, bool]:
    match piece:
        case Special(token) | ImageSlot(str(token)) | RegionSlot(_, str(token)):
            return tokenizer.strips_space(token)
        case _:
            return False, False


class BundleTokenizer:
    """A bundle's `tokenizer.json`. Special tokens are never recognised inside text."""

    def __init__(self, file: Path) -> None:
        """Read the file; BundleError if it is not a tokenizer."""
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(file))
        except Exception as error:  # the library raises bare Exception
            raise BundleError(f"{file}: cannot be read as a tokenizer: {error}") from error
        content = json.loads(self._tokenizer.to_str())
        self._encoders = {
            before: without_added_space(self._tokenizer, content, before) for before in Preceding
        }
        for tokenizer in (self._tokenizer, *self._encoders.values()):
            tokenizer.encode_special_tokens = True  # what a user types is never a special token
        added = self._tokenizer.get_added_tokens_decoder()
        self._special = {token.content: index for index, token in added.items()}
        self._special_tokens = tuple(self._special)
        # training data and box files repeat their questions
        self._encode = lru_cache(maxsize=REMEMBERED)(self._encode_anew)
        self._strips = {token.content: (token.lstrip, token.rstrip) for token in added.values()}

    @property
    def special_tokens(self) -> Sequence[str]:
        """Special tokens; in a template, each is one token."""
        return self._special_tokens

    @property
    def size(self) -> int:
        """Number of ids, special tokens included."""
        return int(self._tokenizer.get_vocab_size(with_added_tokens=True))

    def token_id(self, token: str) -> int:
        """Return the id of a special token; BundleError if there is none."""
        if token not in self._special:
            raise BundleError(f"the tokenizer has no special token {token!r}")
        return self._special[token]

    def strips_space(self, token: str) -> tuple[bool, bool]:
        """Return whether a special token absorbs white space before and after it."""
        return self._strips.get(token, (False, False))

    def encode(self, text: str, before: Preceding = Preceding.nothing) -> list[int]:
        """Encode plain text; a lone surrogate is encoded as `?`.

        Args:
            text: The text.
            before: What precedes it; some tokenizers add a space to a text that follows no other.
        """
        return list(self._encode(text, before))

    def _encode_anew(self, text: str, before: Preceding) -> tuple[int, ...]:
        readable = text.encode("utf-8", "replace").decode("utf-8")
        return tuple(self._encoders[before].encode(readable, add_special_tokens=False).ids)

    def decode(self, ids: Sequence[int], *, special: bool = False) -> str:
        """Decode ids, with or without special tokens."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=not special))


def without_added_space(
    tokenizer: tokenizers.Tokenizer, content: dict[str, Any], before: Preceding
) -> tokenizers.Tokenizer:
    """Return a tokenizer that does not add a space where text follows `before`.

    A tokenizer adds a space to the first text of a prompt (`prepend_scheme` "first"), or to every
    text that follows no other ("always", or a `Prepend` normalizer).

    Args:
        tokenizer: The tokenizer; returned itself where nothing changes, as is usual.
        content: The tokenizer's JSON.
        before: What precedes the text.
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
    """Return the steps of a pre-tokenizer's JSON, which is a single step or a sequence."""
    return list(pre_tokenizer.get("pretokenizers", [pre_tokenizer]))
