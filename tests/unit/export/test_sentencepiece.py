"""LLaMA's `tokenizer.model` converted to `tokenizer.json`, with the same ids.

The ids of the golden sets are those of the slow LlamaTokenizer that the published models were
trained with. Everything else is held against SentencePiece's own rule, written out in `joined`.
"""

import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sentencepiece import SentencePieceProcessor
from tokenizers import Tokenizer

from helpers.golden_weights import GoldenSet
from regionqa.errors import BundleError
from regionqa.export.sources.sentencepiece import (
    Kind,
    Piece,
    legacy_llama_tokenizer,
    merges,
    read_added_tokens,
    read_pieces,
)

IMAGE = "<image>"


@dataclass(frozen=True)
class Toy:
    """A golden set's small SentencePiece file, and the reference's ids of texts."""

    model: Path
    ids: Any

    @property
    def added(self) -> list[str]:
        """The added tokens by id."""
        ids: dict[str, int] = self.ids["added"]
        return sorted(ids, key=ids.__getitem__)

    @property
    def tokenizer(self) -> Tokenizer:
        return legacy_llama_tokenizer(self.model, self.added)


@pytest.fixture(scope="session")
def llama(gpt4roi: GoldenSet) -> Toy:
    return Toy(gpt4roi.folder / "toy_llama.model", gpt4roi.json("toy_tokenize.json"))


@pytest.fixture(scope="session")
def vicuna(pvit: GoldenSet) -> Toy:
    return Toy(pvit.folder / "toy_spm.model", pvit.json("text.json"))


def expanded(text: str, patches: int) -> str:
    return text.replace(IMAGE, "<im_start>" + "<im_patch>" * patches + "<im_end>")


def tokens(tokenizer: Tokenizer, text: str) -> list[str | None]:
    """Names of the ids; `Encoding.tokens` would show white space that a token has taken."""
    return [tokenizer.id_to_token(index) for index in tokenizer.encode(text).ids]


# -- the golden sets -------------------------------------------------------------------------------


def test_pvit_prompts(vicuna: Toy) -> None:
    for case in vicuna.ids["inference"]:
        assert vicuna.tokenizer.encode(case["expanded"]).ids == case["ids"]
        assert tokens(vicuna.tokenizer, case["expanded"]) == case["tokens"]


def test_gpt4roi_conversations(llama: Toy, gpt4roi: GoldenSet) -> None:
    asked = gpt4roi.json("prompts.json")["prompts"]
    header, _, _ = next(iter(asked.values()))[0]["prompt"].partition("### ")
    roles = {"human": "Human", "gpt": "Assistant"}
    for name, case in llama.ids["cases"].items():
        turns = [f"### {roles[role]}: {text}\n" for role, text in case["conversation"]]
        text = expanded(header + "".join(turns) + "### ", 256)
        expected = [index for index, count in case["ids_rle"] for _ in range(count)]
        assert llama.tokenizer.encode(text).ids == expected, name


def test_added_tokens_have_the_published_ids(llama: Toy, vicuna: Toy) -> None:
    for toy in (llama, vicuna):
        found = {token: toy.tokenizer.token_to_id(token) for token in toy.ids["added"]}
        assert found == toy.ids["added"]


def test_answers_decode_to_text(vicuna: Toy) -> None:
    text = "A red car,  naïve 猫\nand\ttwo"
    assert vicuna.tokenizer.decode(vicuna.tokenizer.encode(text).ids) == text


# -- white space -----------------------------------------------------------------------------------


@pytest.mark.parametrize("space", ["", " ", "  ", "\n", " \t\r\n\u00a0\u2003"])
def test_added_tokens_absorb_white_space(space: str, llama: Toy) -> None:
    near = f"a{space}<bbox>{space}<im_end>{space}b"
    assert tokens(llama.tokenizer, near) == ["<s>", "▁a", "<bbox>", "<im_end>", "▁b"]


def test_white_space_at_the_end_of_a_text_is_kept(vicuna: Toy) -> None:
    assert tokens(vicuna.tokenizer, "a </s> a") == ["<s>", "▁a", "▁", "</s>", "▁▁", "a"]


# -- pair encoding ---------------------------------------------------------------------------------


def joined(text: str, scores: dict[str, float]) -> list[str]:
    """SentencePiece's rule: join the pair of the highest score, the leftmost of equals first."""
    parts = list(text)
    while True:
        pairs = [(scores.get(a + b), at) for at, (a, b) in enumerate(pairwise(parts))]
        best = min(((-score, at) for score, at in pairs if score is not None), default=None)
        if best is None:
            return parts
        at = best[1]
        parts[at : at + 2] = [parts[at] + parts[at + 1]]


def encoder(pieces: Sequence[Piece], folder: Path) -> Tokenizer:
    """A tokenizer of these pieces and the letters a and b."""
    file = folder / "tokenizer.model"
    letters = [Piece(letter, -1000.0 - ord(letter), Kind.normal) for letter in "ab▁"]
    head = [Piece("<unk>", 0, Kind.unknown), Piece("<s>", 0, Kind.control)]
    write_model(file, [*head, Piece("<0x00>", 0, Kind.byte), *pieces, *letters])
    return legacy_llama_tokenizer(file, [])


@given(
    words=st.lists(st.text("ab", min_size=2, max_size=7), unique=True, max_size=25),
    text=st.text("ab", min_size=1, max_size=40),
)
def test_merges_equal_sentencepiece(
    words: list[str], text: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    pieces = [Piece(word, float(-rank), Kind.normal) for rank, word in enumerate(words)]
    tokenizer = encoder(pieces, tmp_path_factory.mktemp("pairs"))
    scores = {piece.text: piece.score for piece in pieces}
    assert tokenizer.encode(text, add_special_tokens=False).tokens == joined("▁" + text, scores)


def test_text_never_encodes_to_special_tokens(tmp_path: Path) -> None:
    pieces = [Piece(text, -float(len(text)), Kind.normal) for text in ("<", "s", ">", "s>", "<s")]
    assert ("<", "s>") not in merges([Piece("<s>", 0, Kind.control), *pieces])
    tokenizer = encoder(pieces, tmp_path)
    tokenizer.encode_special_tokens = True
    assert "<s>" not in tokenizer.encode("<s>", add_special_tokens=False).tokens


def test_vocabulary_equals_the_sentencepiece_library(vicuna: Toy, llama: Toy) -> None:
    for toy in (vicuna, llama):
        library: Any = SentencePieceProcessor(model_file=str(toy.model))
        theirs = [
            (library.id_to_piece(index), library.get_score(index))
            for index in range(library.get_piece_size())
        ]
        assert [(piece.text, piece.score) for piece in read_pieces(toy.model)] == theirs


# -- files -----------------------------------------------------------------------------------------


def varint(number: int) -> bytes:
    low, rest = number & 127, number >> 7
    return bytes([low | 128]) + varint(rest) if rest else bytes([low])


def entry(number: int, value: bytes | int) -> bytes:
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def write_model(
    file: Path,
    pieces: Sequence[Piece],
    trained: dict[int, int] | None = None,
    normalized: dict[int, int | bytes] | None = None,
) -> None:
    """A SentencePiece file; the numbers of settings are those of sentencepiece_model.proto."""
    settings: list[dict[int, int | bytes]] = [
        {3: 2, 35: 1, **(trained or {})},
        {3: 1, 4: 0, **(normalized or {})},
    ]
    body = []
    for piece in pieces:
        score = b"\x15" + struct.pack("<f", piece.score)
        body.append(entry(1, entry(1, piece.text.encode()) + score + entry(3, piece.kind)))
    body += [
        entry(number, b"".join(entry(key, value) for key, value in table.items()))
        for number, table in enumerate(settings, start=2)
    ]
    file.write_bytes(b"".join(body))


@pytest.mark.parametrize(
    ("trained", "normalized", "reason"),
    [
        ({3: 1}, {}, "is not a byte pair encoding"),
        ({35: 0}, {}, "does not fall back to bytes"),
        ({}, {2: b"a map"}, "normalises texts"),
        ({}, {3: 0}, "puts no space before a text"),
        ({}, {4: 1}, "removes spaces"),
        ({}, {5: 0}, "does not escape spaces"),
    ],
)
def test_other_models_are_refused(
    trained: dict[int, int],
    normalized: dict[int, int | bytes],
    reason: str,
    vicuna: Toy,
    tmp_path: Path,
) -> None:
    file = tmp_path / "tokenizer.model"
    write_model(file, read_pieces(vicuna.model), trained, normalized)
    with pytest.raises(BundleError, match=reason):
        read_pieces(file)


def test_tokenizer_round_trip(vicuna: Toy, tmp_path: Path) -> None:
    pieces = read_pieces(vicuna.model)
    write_model(tmp_path / "tokenizer.model", pieces)
    assert read_pieces(tmp_path / "tokenizer.model") == pieces


NO_TEXT = b"\x0a\x03\x0a\x01\xff"  # a piece that is not UTF-8


@pytest.mark.parametrize("content", [b"no model", b"", b"\x0a\xff", b"{}", b"\x80" * 20, NO_TEXT])
def test_damaged_file_is_a_one_line_error(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "tokenizer.model"
    file.write_bytes(content)
    with pytest.raises(BundleError, match=str(file)):
        read_pieces(file)


def test_truncated_files_are_refused(vicuna: Toy, tmp_path: Path) -> None:
    whole = vicuna.model.read_bytes()
    file = tmp_path / "tokenizer.model"
    for length in range(0, len(whole), 611):
        file.write_bytes(whole[:length])
        with pytest.raises(BundleError):
            read_pieces(file)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no such file"):
        legacy_llama_tokenizer(tmp_path / "tokenizer.model", [])


# -- added tokens ----------------------------------------------------------------------------------


def released(folder: Path, toy: Toy, added: object) -> Path:
    (folder / "tokenizer.model").write_bytes(toy.model.read_bytes())
    (folder / "added_tokens.json").write_text(json.dumps(added), encoding="utf-8")
    return folder


def test_added_tokens_and_ids(vicuna: Toy, tmp_path: Path) -> None:
    shuffled = dict(sorted(vicuna.ids["added"].items())) | {"</s>": 2}
    folder = released(tmp_path, vicuna, shuffled)
    assert list(read_added_tokens(folder)) == vicuna.added
    tokenizer = legacy_llama_tokenizer(folder / "tokenizer.model", read_added_tokens(folder))
    assert {token: tokenizer.token_to_id(token) for token in shuffled} == shuffled


@pytest.mark.parametrize(
    ("ids", "reason"),
    [
        ({"<bbox>": 1}, "'<bbox>' is {1}, but {0} is the next id"),
        ({"<a>": 0, "<b>": 2}, "'<b>' is {2}, but {1} is the next id"),
        ({"</s>": 0}, "is added, but is there already"),
        ({"<a>": "b"}, "cannot be read"),
        (["<a>"], "cannot be read"),
    ],
)
def test_invalid_added_tokens(ids: object, reason: str, vicuna: Toy, tmp_path: Path) -> None:
    size = len(read_pieces(vicuna.model))
    if isinstance(ids, dict):
        ids = {name: size + at if isinstance(at, int) else at for name, at in ids.items()}
    folder = released(tmp_path, vicuna, ids)
    with pytest.raises(BundleError, match=reason.format(*range(size, size + 3))):
        legacy_llama_tokenizer(folder / "tokenizer.model", read_added_tokens(folder))
