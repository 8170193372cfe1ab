"""LLaMA's `tokenizer.model` and a model's added tokens to the `tokenizer.json` of a bundle.

The result gives the ids of transformers' slow LlamaTokenizer in legacy mode, with which the
published models were trained (up to transformers 4.33; see the decision "Legacy tokenizer" in
docs). The file is parsed with the message definitions of the sentencepiece package.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any

import msgspec
from google.protobuf.message import DecodeError
from sentencepiece import sentencepiece_model_pb2
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors

from regionqa.errors import BundleError

SPACE = "\u2581"
"""SentencePiece's symbol for a space."""
MODEL_FILE, ADDED_FILE = "tokenizer.model", "added_tokens.json"
MESSAGES: Any = sentencepiece_model_pb2


class Kind(IntEnum):
    """SentencePiece's types of pieces."""

    normal = MESSAGES.ModelProto.SentencePiece.NORMAL
    unknown = MESSAGES.ModelProto.SentencePiece.UNKNOWN
    control = MESSAGES.ModelProto.SentencePiece.CONTROL
    user_defined = MESSAGES.ModelProto.SentencePiece.USER_DEFINED
    unused = MESSAGES.ModelProto.SentencePiece.UNUSED
    byte = MESSAGES.ModelProto.SentencePiece.BYTE


@dataclass(frozen=True)
class Piece:
    """One entry of the vocabulary; its position is its id."""

    text: str
    score: float
    """Merge priority: pieces of higher score are merged first."""
    kind: Kind


def read_added_tokens(folder: Path) -> tuple[str, ...]:
    """Read the tokens that `added_tokens.json` adds to `tokenizer.model`, ordered by id.

    A folder without the file adds none.

    Raises:
        BundleError: The ids do not follow those of the SentencePiece file, or have gaps.
    """
    file = folder / ADDED_FILE
    if not file.exists():
        return ()
    try:
        ids = msgspec.json.decode(file.read_bytes(), type=dict[str, int])
    except (OSError, ValueError, RecursionError) as error:
        raise BundleError(f"{file}: cannot be read as names and ids: {error}") from error
    pieces = read_pieces(folder / MODEL_FILE)
    base = {piece.text: index for index, piece in enumerate(pieces)}
    added = {name: index for name, index in ids.items() if base.get(name) != index}
    by_id = sorted(added, key=added.__getitem__)
    for index, name in enumerate(by_id, start=len(pieces)):
        if added[name] != index:
            raise BundleError(
                f"{file}: {name!r} is {added[name]}, but {index} is the next id after "
                f"{folder / MODEL_FILE}; the two files are not of one model"
            )
    return tuple(by_id)


def legacy_llama_tokenizer(model_file: Path, added: Sequence[str]) -> Tokenizer:
    """Build the tokenizer of a SentencePiece file with added tokens.

    A text begins with `<s>` and has no end token. It is split at special tokens, and every stretch
    between them is encoded on its own with a space before it. Added tokens consume the white space
    on both sides; `<s>`, `</s>` and `<unk>` do not.

    Args:
        model_file: LLaMA's `tokenizer.model`.
        added: Texts of the added tokens, which get the ids after the last piece, in this order.

    Raises:
        BundleError: The file cannot be read or is not like LLaMA's (see `read_pieces`), or an added
            token is in the vocabulary already.
    """
    pieces = read_pieces(model_file)
    ids = {piece.text: index for index, piece in enumerate(pieces)}
    if len(ids) != len(pieces):
        raise BundleError(f"{model_file}: has two pieces of one text")
    (unknown,) = (piece.text for piece in pieces if piece.kind is Kind.unknown)
    tokenizer = Tokenizer(
        models.BPE(
            vocab=ids,
            merges=merges(pieces),
            unk_token=unknown,
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace(SPACE, " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    own = [piece.text for piece in pieces if piece.kind in (Kind.unknown, Kind.control)]
    tokenizer.add_special_tokens(
        [AddedToken(token, normalized=False, special=True) for token in own]
        + [
            AddedToken(token, normalized=False, special=True, lstrip=True, rstrip=True)
            for token in added
        ]
    )
    if wrong := [t for i, t in enumerate(added) if tokenizer.token_to_id(t) != len(pieces) + i]:
        raise BundleError(f"{model_file}: the token {wrong[0]!r} is added, but is there already")
    if "<s>" not in ids:
        raise BundleError(f"{model_file}: has no <s>, which begins LLaMA's texts")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", ids["<s>"])]
    )
    return tokenizer


def merges(pieces: Sequence[Piece]) -> list[tuple[str, str]]:
    """List all pairs of pieces that form a piece, in SentencePiece's order of merging.

    SentencePiece merges the pair that forms the piece of the highest score, the leftmost of equal
    ones. Here every split of one piece has a rank of its own; no text has been found for which that
    makes a difference (tests/unit/export/test_sentencepiece.py).
    """
    joined = {piece.text: piece.score for piece in pieces if piece.kind is Kind.normal}
    return [
        (text[:cut], text[cut:])
        for text in sorted(joined, key=joined.__getitem__, reverse=True)
        for cut in range(1, len(text))
        if text[:cut] in joined and text[cut:] in joined
    ]


def read_pieces(model_file: Path) -> list[Piece]:
    """Read the vocabulary of a SentencePiece file.

    Raises:
        BundleError: The file is missing, damaged, or not a byte-fallback BPE like LLaMA's.
    """
    model = MESSAGES.ModelProto()
    try:
        model.ParseFromString(model_file.read_bytes())
        pieces = [Piece(each.piece, each.score, Kind(each.type)) for each in model.pieces]
        if not all(isinstance(piece.text, str) for piece in pieces):
            raise ValueError("a piece is not UTF-8")  # protobuf gives its bytes
    except FileNotFoundError:
        raise BundleError(f"{model_file}: no such file; LLaMA's tokenizer is needed") from None
    except (OSError, ValueError, DecodeError) as error:
        raise BundleError(f"{model_file}: not a SentencePiece model: {error}") from error
    trainer, normalizer = model.trainer_spec, model.normalizer_spec
    kinds = {piece.kind for piece in pieces}
    requirements = (
        (trainer.model_type == MESSAGES.TrainerSpec.BPE, "is not a byte pair encoding"),
        (trainer.byte_fallback and Kind.byte in kinds, "does not fall back to bytes"),
        (not normalizer.precompiled_charsmap, "normalises texts"),
        (normalizer.add_dummy_prefix, "puts no space before a text"),
        (not normalizer.remove_extra_whitespaces, "removes spaces"),
        (normalizer.escape_whitespaces, "does not escape spaces"),
        (not kinds & {Kind.user_defined, Kind.unused}, "has user-defined or unused pieces"),
        (sum(piece.kind is Kind.unknown for piece in pieces) == 1, "has no single unknown piece"),
    )
    for met, what in requirements:
        if not met:
            raise BundleError(f"{model_file}: {what}, unlike LLaMA's; this cannot be converted")
    return pieces
