"""Rendered prompts -> token ids with slots, each stretch of text encoded whole.

It does not know rules, pictures or embeddings, nor whose tokenizer it is given.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from regionqa.prompts import (
    ImageSlot,
    Piece,
    PromptRules,
    RegionSlot,
    Special,
    Text,
    render,
    render_answer,
)


class Before(Enum):
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

    def encode(self, text: str, before: Before = Before.nothing) -> list[int]:
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
    """Positions at the start that depend on the picture alone, the same for all its questions."""


def tokenize(
    pieces: Sequence[Piece],
    tokenizer: Tokenizer,
    image_tokens: int,
    region_tokens: int,
    before: Before = Before.nothing,
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
        if before is not Before.nothing or not isinstance(piece, Special):
            before = Before.text if isinstance(piece, Text) else Before.token
    return Prompt(tuple(ids), image_start, tuple(region_starts), shared)


def answer_ids(rules: PromptRules, answer: str, stop: str, tokenizer: Tokenizer) -> list[int]:
    """Ids of an answer as it stands after its prompt, and of the stop that ends it."""
    *_, last = render(rules, "?", (), tokenizer.special_tokens)
    before = Before.text if isinstance(last, Text) else Before.token
    words = tokenizer.encode(render_answer(rules, answer), before)
    if stop in tokenizer.special_tokens:
        return [*words, tokenizer.token_id(stop)]
    return [*words, *tokenizer.encode(stop, Before.text)]


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
