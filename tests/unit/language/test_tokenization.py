"""The starter's tokenizer: round trips, special tokens, errors."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from regionqa.bundles.store import Bundle
from regionqa.errors import BundleError
from regionqa.language.tokenization import BundleTokenizer

FILE = "llm/tokenizer.json"
SPECIAL = ("<s>", "</s>", "<answer>")


@pytest.fixture(scope="module")
def tokenizer(starter: Bundle) -> BundleTokenizer:
    return BundleTokenizer(starter.file(FILE))


@pytest.mark.parametrize(
    "text", ["what is this?", "a cat (left) and 2 dogs: red, green & blue!", "x" * 500]
)
def test_words_round_trip(tokenizer: BundleTokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)).strip() == text


@given(text=st.text(st.characters(codec="ascii")))
def test_ascii_round_trips_in_lower_case(tokenizer: BundleTokenizer, text: str) -> None:
    decoded = tokenizer.decode(tokenizer.encode(text))
    assert decoded in (text.lower(), " " + text.lower())


@given(text=st.text(st.characters(), min_size=1))
def test_any_text_has_ids(tokenizer: BundleTokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert ids
    assert all(0 <= index < tokenizer.size for index in ids)
    assert not {tokenizer.token_id(token) for token in SPECIAL} & set(ids)


@pytest.mark.parametrize("text", ["naïve café", "漢字かな", "🐈🐕", "привет", "עברית"])
def test_other_scripts_round_trip(tokenizer: BundleTokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)).strip() == text


def test_lone_surrogate_is_a_question_mark(tokenizer: BundleTokenizer) -> None:
    assert tokenizer.encode("a \ud83d cat") == tokenizer.encode("a ? cat")


def test_empty_text_has_no_ids(tokenizer: BundleTokenizer) -> None:
    assert tokenizer.encode("") == []
    assert tokenizer.decode([]) == ""


def test_special_token_ids(tokenizer: BundleTokenizer) -> None:
    assert set(SPECIAL) <= set(tokenizer.special_tokens)
    ids = [tokenizer.token_id(token) for token in SPECIAL]
    assert len(set(ids)) == 3
    with pytest.raises(BundleError, match="no special token '<image>'"):
        tokenizer.token_id("<image>")
    with pytest.raises(BundleError, match="no special token 'what'"):
        tokenizer.token_id("what")


@given(parts=st.lists(st.sampled_from(SPECIAL) | st.text(st.characters(codec="ascii"), max_size=3)))
def test_special_tokens_in_text_are_text(tokenizer: BundleTokenizer, parts: list[str]) -> None:
    ids = tokenizer.encode("".join(parts))
    assert not {tokenizer.token_id(token) for token in SPECIAL} & set(ids)


def test_decoding_skips_special_tokens(tokenizer: BundleTokenizer) -> None:
    start, stop, answer = (tokenizer.token_id(token) for token in SPECIAL)
    words = tokenizer.encode("a red cup")
    assert tokenizer.decode([start, *words, answer, stop]).strip() == "a red cup"


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"version": "1.0"}', "\0"])
def test_invalid_tokenizer(tmp_path: Path, content: str) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(content)
    with pytest.raises(BundleError) as caught:
        BundleTokenizer(path)
    assert str(caught.value).startswith(f"{path}: cannot be read as a tokenizer: ")


def test_missing_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"gone\.json: cannot be read as a tokenizer"):
        BundleTokenizer(tmp_path / "gone.json")


def test_truncated_tokenizer(tmp_path: Path, starter: Bundle) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(starter.file(FILE).read_text(encoding="utf-8")[:-500], encoding="utf-8")
    with pytest.raises(BundleError, match="cannot be read as a tokenizer"):
        BundleTokenizer(path)


def test_start_token_is_not_added(starter: Bundle, tmp_path: Path) -> None:
    """Published tokenizers add `<s>`; here the prompt's template contains it."""
    content = json.loads(starter.file(FILE).read_text(encoding="utf-8"))
    start = {"SpecialToken": {"id": "<s>", "type_id": 0}}
    content["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [start, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}},
    }
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    plain = BundleTokenizer(starter.file(FILE))
    assert BundleTokenizer(path).encode("a red cup") == plain.encode("a red cup")
