"""Caption metrics, against published values, other implementations and values by hand."""

import math
import shutil
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from regionqa.errors import UsageError
from regionqa.evaluation.metrics.captions import (
    METEOR_PACKAGE,
    CaptionPair,
    bleu,
    caption_words,
    cider_d,
    common_length,
    meteor,
    rouge_l,
)

CAPTIONS = ("a man is speaking", "rain falls")
REFERENCES = (
    ("a man speaks.", "someone speaks.",
     "a man is speaking while a bird is chirping in the background"),
    ("rain is falling hard on a surface",),
)  # fmt: skip
"""The example of aac-metrics' README, which publishes what the COCO evaluation gives for it."""


def caption_pair(caption: str, *references: str) -> CaptionPair:
    return CaptionPair(caption_words(caption), tuple(map(caption_words, references)))


EXAMPLE = [
    caption_pair(caption, *references)
    for caption, references in zip(CAPTIONS, REFERENCES, strict=True)
]
WHOLE = np.ones((1, 2))


def test_values_of_publications() -> None:
    """CIDEr-D 0.9614 (1.3641 and 0.5587) and BLEU-1 0.4278: aac-metrics, README and docs/usage."""
    assert cider_d(EXAMPLE).tolist() == pytest.approx([1.3641, 0.5587], abs=5e-5)
    assert cider_d(EXAMPLE).mean() == pytest.approx(0.9614, abs=5e-5)
    assert bleu(EXAMPLE, 1)(WHOLE)[0] == pytest.approx(0.4278, abs=5e-5)


def test_values_of_the_original_implementation() -> None:
    """What pycocoevalcap 1.2 gives for the same sentences (BLEU-4 smoothed there by 1e-9)."""
    captions = ["a man is speaking loudly to a crowd", "rain falls hard on a surface"]
    items = [
        caption_pair(text, *references)
        for text, references in zip(captions, REFERENCES, strict=True)
    ]
    assert rouge_l(EXAMPLE)(WHOLE)[0] == pytest.approx(0.487069, abs=1e-6)
    assert bleu(EXAMPLE, 2)(WHOLE)[0] == pytest.approx(0.405892, abs=1e-6)
    assert bleu(EXAMPLE, 4)(WHOLE)[0] == pytest.approx(0.4564995, abs=1e-6)
    assert bleu(items, 4)(WHOLE)[0] == pytest.approx(0.3041623, abs=1e-6)
    assert cider_d(items).tolist() == pytest.approx([1.054509, 5.137181], abs=1e-6)


def test_cider_d_by_hand() -> None:
    """Two items of one word each; that word is in one item's references: weight log 2, cosine 1.

    Only unigrams exist, so a quarter of 10 is reached. Said twice, the word is clipped, and the
    caption is longer by one: lengths are those in pairs of words, as in the original.
    """
    same = cider_d([caption_pair("cat", "cat"), caption_pair("dog", "cow")])
    assert same.tolist() == pytest.approx([2.5, 0])
    # (2 log 2 clipped to log 2) * log 2 / (2 log 2 * log 2), at one pair of words more
    twice = cider_d([caption_pair("cat cat", "cat"), caption_pair("dog", "cow")])[0]
    assert twice == pytest.approx(2.5 / 2 * math.exp(-1 / 72))
    assert cider_d([caption_pair("cat", "cat")])[0] == 0  # alone, no word tells anything


def test_bleu_agrees_with_sacrebleu() -> None:
    import sacrebleu

    rng = np.random.default_rng(0)
    words = np.array("a the cat dog sits stands on mat red big".split())  # noqa: SIM905
    captions = [" ".join(rng.choice(words, rng.integers(4, 12))) for _ in range(40)]
    references = [
        [" ".join(rng.choice(words, rng.integers(4, 12))) for _ in range(3)] for _ in captions
    ]
    items = [caption_pair(text, *each) for text, each in zip(captions, references, strict=True)]
    for order in (1, 2, 3):
        metric = sacrebleu.metrics.BLEU(
            tokenize="none", smooth_method="none", max_ngram_order=order
        )
        expected = metric.corpus_score(
            captions, [list(each) for each in zip(*references, strict=True)]
        )
        assert 100 * bleu(items, order)(np.ones((1, 40)))[0] == pytest.approx(expected.score)


def test_repeated_corpus_has_the_same_bleu() -> None:
    measure = bleu(EXAMPLE, 2)
    once, twice, first = measure(np.array([[1.0, 1], [2, 2], [1, 0]]))
    assert once == pytest.approx(twice)
    assert first == pytest.approx(bleu(EXAMPLE[:1], 2)(np.ones((1, 1)))[0])


def test_longest_common_subsequence() -> None:
    assert common_length(tuple("abcde"), tuple("xacye")) == 3
    assert common_length((), ("a",)) == 0
    perfect = [caption_pair("a cat sits", "a cat sits")]
    assert rouge_l(perfect)(np.ones((1, 1)))[0] == pytest.approx(1)
    assert rouge_l([caption_pair("", "a cat")])(np.ones((1, 1)))[0] == 0


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("A man's dog, isn't it?", "a man 's dog is n't it"),
        ("T-shirts (red/blue) -- on sale...", "t-shirts red/blue on sale"),
        ("It\u2019s \u201cfine\u201d.", "it 's fine"),
        ("  ", ""),
    ],
)
def test_caption_words(text: str, words: str) -> None:
    assert " ".join(caption_words(text.replace("\u201c", '"').replace("\u201d", '"'))) == words


def test_cider_d_counts_documents() -> None:
    """A word in two references of one item counts as one document: its weight is log 2."""
    repeated = [caption_pair("cat", "cat", "cat"), caption_pair("dog", "cow")]
    assert cider_d(repeated).tolist() == pytest.approx([2.5, 0])
    everywhere = [caption_pair("cat", "cat"), caption_pair("dog", "cat")]
    assert cider_d(everywhere).tolist() == [0, 0]  # log(2 / 2): a word of all items tells nothing


def test_bleu_reference_length() -> None:
    ones = np.ones((1, 1))
    two_words = [caption_pair("a cat", "a cat sits here now", "a cat sits")]
    assert bleu(two_words, 1)(ones)[0] == pytest.approx(math.exp(1 - 3 / 2))
    tie = [caption_pair("a cat sits", "a cat", "a cat sits there")]
    assert bleu(tie, 1)(ones)[0] == pytest.approx(1)  # 2 and 4 are as near; 2 has no penalty
    assert np.isnan(bleu(two_words, 1)(np.zeros((1, 1)))[0])
    assert bleu([caption_pair("dog", "cat")], 1)(ones)[0] == 0


def test_bleu_clipping() -> None:
    items = [caption_pair("the the the", "the cat the", "the dog and")]
    assert bleu(items, 1)(np.ones((1, 1)))[0] == pytest.approx(2 / 3)


def test_rouge_l_uses_best_precision_and_recall() -> None:
    """Of the first reference 2 of 3 words are common, of the second all of its one."""
    precision, recall = 2 / 3, 1.0
    expected = (1 + 1.2**2) * precision * recall / (recall + 1.2**2 * precision)
    items = [caption_pair("a cat sits", "a cat was here too", "sits")]
    assert rouge_l(items)(np.ones((1, 1)))[0] == pytest.approx(expected)


# -- METEOR ----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_meteor_equals_the_original_program() -> None:
    """Scores of the original program for the example, if it is installed."""
    pytest.importorskip("pycocoevalcap")
    if shutil.which("java") is None:
        pytest.skip("needs Java")
    assert meteor(EXAMPLE).tolist() == pytest.approx([0.824156, 0.128090, 0.263381], abs=1e-6)


FAKE_METEOR = """
import sys
lines = sys.stdin.read().splitlines()
with open("requests.txt", "a") as log:
    print(*sys.argv[1:], file=log)
    print(*lines, sep="\\n", file=log)
if lines[0].startswith("SCORE"):
    print(*(f"counts {number}" for number in range(len(lines))), sep="\\n")
else:
    print(*{scores}, sep="\\n")
"""


@pytest.fixture
def fake_meteor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Install a program in place of METEOR; returns the log of what it is sent."""

    def install(body: str) -> Path:
        java = tmp_path / "java"
        java.write_text(f"#!{sys.executable}\n{body}")
        java.chmod(0o755)
        (tmp_path / "meteor").mkdir()
        (tmp_path / "meteor" / "meteor-1.5.jar").touch()
        spec = ModuleSpec(METEOR_PACKAGE, None, is_package=True)
        spec.submodule_search_locations = [str(tmp_path)]
        module = ModuleType(METEOR_PACKAGE)
        module.__spec__ = spec
        monkeypatch.setitem(sys.modules, METEOR_PACKAGE, module)
        monkeypatch.setattr("shutil.which", lambda name: str(java))
        return tmp_path / "meteor" / "requests.txt"

    return install


def test_meteor_protocol(fake_meteor: Callable[[str], Path]) -> None:
    log = fake_meteor(FAKE_METEOR.replace("{scores}", "(0.25, 0.5, 0.375)"))
    assert meteor(EXAMPLE).tolist() == [0.25, 0.5, 0.375]
    command, first, second, again, evaluation = log.read_text().splitlines()
    assert command == again == "-jar -Xmx2G meteor-1.5.jar - - -stdio -l en -norm"
    assert first.startswith("SCORE ||| a man speaks ||| someone speaks ||| ")
    assert first.endswith(" ||| a man is speaking")
    assert second == "SCORE ||| rain is falling hard on a surface ||| rain falls"
    assert evaluation == "EVAL ||| counts 0 ||| counts 1"


def test_a_failing_meteor_is_an_error(fake_meteor: Callable[[str], Path]) -> None:
    fake_meteor("import sys; sys.exit('no heap')")
    with pytest.raises(UsageError, match="--meteor: the program failed: no heap"):
        meteor(EXAMPLE)


def test_too_few_scores_of_meteor_are_an_error(fake_meteor: Callable[[str], Path]) -> None:
    fake_meteor(FAKE_METEOR.replace("{scores}", "(0.25, 0.5)"))
    with pytest.raises(UsageError, match="too few scores"):
        meteor(EXAMPLE)
