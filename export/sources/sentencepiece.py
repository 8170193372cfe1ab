"""A LLaMA `tokenizer.model` and the tokens added to it -> the `tokenizer.json` of a bundle.

What comes out gives the ids of transformers' slow LlamaTokenizer in its legacy mode, in which the
published models were trained (up to transformers 4.33; docs/adr/13-legacy-tokenizer.md). The
SentencePiece file is read here, so that no library has to be installed for it. It does not know
which tokens a model adds, nor about templates.
"""

import json
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors

from regionqa.errors import BundleError

SPACE = "\u2581"
"""What SentencePiece writes for a space."""
MODEL_FILE, ADDED_FILE = "tokenizer.model", "added_tokens.json"
Value = int | bytes


class Kind(IntEnum):
    """What a piece is, as SentencePiece numbers it (sentencepiece_model.proto)."""

    normal = 1
    unknown = 2
    control = 3
    user_defined = 4
    unused = 5
    byte = 6


@dataclass(frozen=True)
class Piece:
    """One entry of the vocabulary; its id is its place."""

    text: str
    score: float
    """The higher, the earlier it is put together."""
    kind: Kind


def read_legacy_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer in a published model's folder: `tokenizer.model` and `added_tokens.json`.

    Raises BundleError as of `read_added_tokens` and `legacy_llama_tokenizer`.
    """
    return legacy_llama_tokenizer(folder / MODEL_FILE, read_added_tokens(folder))


def read_added_tokens(folder: Path) -> tuple[str, ...]:
    """Tokens beyond the SentencePiece file's, by id; BundleError where their ids have gaps.

    Their names and ids are the published `added_tokens.json`; a folder without it has none.
    """
    file = folder / ADDED_FILE
    if not file.exists():
        return ()
    try:
        ids = {str(name): int(index) for name, index in json.loads(file.read_bytes()).items()}
    except (OSError, ValueError, TypeError, AttributeError) as error:
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
    """The tokenizer of a SentencePiece file, with tokens added after its last id, in this order.

    It begins a text with `<s>` and ends it with nothing. A text is cut at special tokens, each
    stretch between them is encoded on its own with a space before it, and the added tokens take
    the white space on both sides with them, which `<s>`, `</s>` and `<unk>` do not.
    Raises BundleError where the file is damaged, or not of LLaMA's kind: pair encoding with bytes
    for what it does not know, and nothing normalised.
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
    """All pairs of pieces that make a piece, in the order in which SentencePiece joins them.

    It takes the pair that makes the piece of the highest score, and of equal ones the leftmost.
    Here every way to make one piece has a place of its own in the order; that has made no
    difference on any text tried (tests/test_sentencepiece.py).
    """
    joined = {piece.text: piece.score for piece in pieces if piece.kind is Kind.normal}
    return [
        (text[:cut], text[cut:])
        for text in sorted(joined, key=joined.__getitem__, reverse=True)
        for cut in range(1, len(text))
        if text[:cut] in joined and text[cut:] in joined
    ]


def read_pieces(model_file: Path) -> list[Piece]:
    """The vocabulary of a SentencePiece file; BundleError where it is not of LLaMA's kind."""
    try:
        message = list(fields(model_file.read_bytes()))
        pieces = [_piece(value) for number, value in message if number == 1]
        settings = {number: dict(fields(_bytes(value))) for number, value in message if number > 1}
    except FileNotFoundError:
        raise BundleError(f"{model_file}: no such file; LLaMA's tokenizer is needed") from None
    except (OSError, ValueError, IndexError, KeyError, struct.error) as error:
        raise BundleError(f"{model_file}: is no SentencePiece model: {error}") from error
    trained, normalized = settings.get(2, {}), settings.get(3, {})
    kinds = {piece.kind for piece in pieces}
    refusals = (
        (trained.get(3, 1) == 2, "is of another kind than pair encoding"),
        (trained.get(35, 0) == 1 and Kind.byte in kinds, "does not fall back to bytes"),
        (not normalized.get(2), "normalises texts"),
        (normalized.get(3, 1) == 1, "puts no space before a text"),
        (normalized.get(4, 1) == 0, "removes spaces"),
        (normalized.get(5, 1) == 1, "keeps spaces as they are"),
        (not kinds & {Kind.user_defined, Kind.unused}, "has pieces of a user's own"),
        (sum(p.kind is Kind.unknown for p in pieces) == 1, "has no single unknown piece"),
    )
    for fine, what in refusals:
        if not fine:
            raise BundleError(f"{model_file}: {what}, unlike LLaMA's; this cannot be converted")
    return pieces


def _piece(value: Value) -> Piece:
    entry = dict(fields(_bytes(value)))
    (score,) = struct.unpack("<f", _bytes(entry.get(2, bytes(4))))
    return Piece(_bytes(entry[1]).decode("utf-8"), score, Kind(_number(entry.get(3, 1))))


def _number(value: Value) -> int:
    if not isinstance(value, int):
        raise ValueError("a message stands where a number is due")
    return value


def _bytes(value: Value) -> bytes:
    if not isinstance(value, bytes):
        raise ValueError("a number stands where a message is due")
    return value


def fields(message: bytes) -> Iterator[tuple[int, Value]]:
    """Numbers and values of a protobuf message's fields (protobuf.dev, "Encoding").

    Raises ValueError, or IndexError at a sudden end, where it is none.
    """
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        number, wire = key >> 3, key & 7
        value: Value
        if wire == 0:
            value, at = _varint(message, at)
            yield number, value
            continue
        size = {1: 8, 5: 4}.get(wire)
        if wire == 2:
            size, at = _varint(message, at)
        if size is None or at + size > len(message):
            raise ValueError(f"field {number} at byte {at} is damaged")
        yield number, message[at : at + size]
        at += size


def _varint(message: bytes, at: int) -> tuple[int, int]:
    """The number at a position, low bits first and 7 to a byte, and the position after it."""
    value = 0
    for place in range(10):
        byte = message[at + place]
        value |= (byte & 127) << 7 * place
        if byte < 128:
            return value, at + place + 1
    raise ValueError(f"the number at byte {at} has no end")
