"""`regionqa eval caption`: files of captions, and metrics against published and worked values."""

import json
import math
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from helpers.evaluation_files import answered, grey, metric_values
from regionqa.bundles.store import Bundle
from regionqa.errors import DataError
from regionqa.evaluation.metrics.captions import (
    CaptionPair,
    bleu,
    caption_words,
    cider_d,
    common_length,
    meteor,
    rouge_l,
)
from regionqa.evaluation.tasks.captions import read_captions

if TYPE_CHECKING:
    from conftest import Command

SAID = ("a man is speaking", "rain falls")
MEANT = (
    ("a man speaks.", "someone speaks.",
     "a man is speaking while a bird is chirping in the background"),
    ("rain is falling hard on a surface",),
)  # fmt: skip
"""The example of aac-metrics' README, which publishes what the COCO evaluation gives for it."""


def captioned(said: str, *meant: str) -> CaptionPair:
    return CaptionPair(caption_words(said), tuple(map(caption_words, meant)))


EXAMPLE = [captioned(said, *meant) for said, meant in zip(SAID, MEANT, strict=True)]
WHOLE = np.ones((1, 2))


@pytest.fixture
def folder(tmp_path: Path, starter: Bundle) -> Path:
    grey(tmp_path, "a.jpg", "b.jpg")
    records = [
        {"image": "a.jpg", "captions": list(MEANT[0]), "question": "what is heard?"},
        {"image": "b.jpg", "regions": [[0, 0, 50, 50]], "captions": MEANT[1][0]},
    ]
    (tmp_path / "c.jsonl").write_text("".join(json.dumps(each) + "\n" for each in records))
    asked = ("what is heard?", starter.card.prompt.region_question)
    boxes: list[list[list[float]]] = [[], [[0, 0, 50, 50]]]
    rows = zip(("a.jpg", "b.jpg"), boxes, asked, SAID, strict=True)
    answered(tmp_path / "kept.jsonl", starter, list(rows))
    return tmp_path


def test_captions_are_compared_with_what_people_wrote(regionqa: "Command", folder: Path) -> None:
    out = folder / "out.json"
    ran = regionqa(
        "eval", "caption", folder / "c.jsonl", "--answers", folder / "kept.jsonl", "--json", out
    )
    assert (ran.status, ran.err) == (0, "")
    assert ran.lines[2].split() == ["CIDEr-D", "96.14", "55.87", "to", "136.41", "2"]
    document = json.loads(out.read_text())
    told = metric_values(document)
    assert told["bleu_1"] == pytest.approx(42.78, abs=0.01)
    assert told["rouge_l"] == pytest.approx(48.71, abs=0.01)
    assert told["words"] == 3
    assert metric_values(document, "kind, CIDEr-D") == pytest.approx(
        {"image": 136.41, "region": 55.87}, abs=0.01
    )
    assert "meteor" not in told


def test_the_card_says_what_is_asked(regionqa: "Command", photos: Path, starter: Bundle) -> None:
    (photos / "c.json").write_text(json.dumps({"cat.jpg": ["a cat.", "the cat"], "7": ["x"]}))
    ran = regionqa(
        "eval", "caption", photos / "c.json", "--answers", photos / "kept.jsonl", "--device", "cpu"
    )
    assert ran.status == 3
    assert "000000000007.jpg: no such file" in ran.err.replace(str(photos) + "/", "")
    kept = json.loads((photos / "kept.jsonl").read_text().splitlines()[0])
    assert kept["question"] == starter.card.prompt.image_question


def test_coco_captions_of_one_image_are_together(tmp_path: Path) -> None:
    table = {
        "images": [{"id": 1, "file_name": "a.jpg"}, {"id": 2, "file_name": "b.jpg"}],
        "annotations": [
            {"image_id": 2, "caption": "one."},
            {"image_id": 1, "caption": "two."},
            {"image_id": 2, "caption": "three."},
        ],
    }
    (tmp_path / "c.json").write_text(json.dumps(table))
    found = read_captions(tmp_path / "c.json", tmp_path)
    assert [(each.image, each.captions) for each in found] == [
        ("b.jpg", ("one.", "three.")), ("a.jpg", ("two.",)),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "has no captions"),
        ('{"image": 3}', "'image' is 3; write a name"),
        ('{"image": "a.jpg"}', "its captions are None, not a list of strings"),
        ('{"image": "a.jpg", "captions": ["..."]}', r"caption '\.\.\.' has no words"),
        ('{"image": "a.jpg", "captions": ["a"], "kind": 3}', "'kind' is 3; write text"),
        ("[1]", "record 1: is 1, not an object"),
        ("[1", "is not valid JSON"),
        ('{"images": [], "annotations": [{"image_id": 3, "caption": "a"}]}', "no image has the id"),
    ],
)
def test_a_malformed_file_says_where(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "c.json").write_text(text)
    with pytest.raises(DataError, match=message):
        read_captions(tmp_path / "c.json", tmp_path)


# -- metrics ---------------------------------------------------------------------------------------


def test_published_values() -> None:
    """CIDEr-D 0.9614 (1.3641 and 0.5587) and BLEU-1 0.4278: aac-metrics, README and docs/usage."""
    assert cider_d(EXAMPLE).tolist() == pytest.approx([1.3641, 0.5587], abs=5e-5)
    assert cider_d(EXAMPLE).mean() == pytest.approx(0.9614, abs=5e-5)
    assert bleu(EXAMPLE, 1)(WHOLE)[0] == pytest.approx(0.4278, abs=5e-5)


def test_values_of_the_original_implementation() -> None:
    """What pycocoevalcap 1.2 gives for the same sentences (BLEU-4 smoothed there by 1e-9)."""
    said = ["a man is speaking loudly to a crowd", "rain falls hard on a surface"]
    items = [captioned(text, *meant) for text, meant in zip(said, MEANT, strict=True)]
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
    same = cider_d([captioned("cat", "cat"), captioned("dog", "cow")])
    assert same.tolist() == pytest.approx([2.5, 0])
    # (2 log 2 clipped to log 2) * log 2 / (2 log 2 * log 2), at one pair of words more
    twice = cider_d([captioned("cat cat", "cat"), captioned("dog", "cow")])[0]
    assert twice == pytest.approx(2.5 / 2 * math.exp(-1 / 72))
    assert cider_d([captioned("cat", "cat")])[0] == 0  # alone, no word tells anything


def test_bleu_agrees_with_sacrebleu() -> None:
    import sacrebleu

    rng = np.random.default_rng(0)
    words = np.array("a the cat dog sits stands on mat red big".split())  # noqa: SIM905
    said = [" ".join(rng.choice(words, rng.integers(4, 12))) for _ in range(40)]
    meant = [[" ".join(rng.choice(words, rng.integers(4, 12))) for _ in range(3)] for _ in said]
    items = [captioned(text, *each) for text, each in zip(said, meant, strict=True)]
    for order in (1, 2, 3):
        metric = sacrebleu.metrics.BLEU(
            tokenize="none", smooth_method="none", max_ngram_order=order
        )
        expected = metric.corpus_score(said, [list(each) for each in zip(*meant, strict=True)])
        assert 100 * bleu(items, order)(np.ones((1, 40)))[0] == pytest.approx(expected.score)


def test_a_corpus_drawn_twice_has_the_same_bleu() -> None:
    measure = bleu(EXAMPLE, 2)
    once, twice, first = measure(np.array([[1.0, 1], [2, 2], [1, 0]]))
    assert once == pytest.approx(twice)
    assert first == pytest.approx(bleu(EXAMPLE[:1], 2)(np.ones((1, 1)))[0])


def test_the_longest_common_subsequence() -> None:
    assert common_length(tuple("abcde"), tuple("xacye")) == 3
    assert common_length((), ("a",)) == 0
    perfect = [captioned("a cat sits", "a cat sits")]
    assert rouge_l(perfect)(np.ones((1, 1)))[0] == pytest.approx(1)
    assert rouge_l([captioned("", "a cat")])(np.ones((1, 1)))[0] == 0


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("A man's dog, isn't it?", "a man 's dog is n't it"),
        ("T-shirts (red/blue) -- on sale...", "t-shirts red/blue on sale"),
        ("It\u2019s \u201cfine\u201d.", "it 's fine"),
        ("  ", ""),
    ],
)
def test_captions_become_words(text: str, words: str) -> None:
    assert " ".join(caption_words(text.replace("\u201c", '"').replace("\u201d", '"'))) == words


@pytest.mark.slow
def test_meteor_is_its_authors_own(regionqa: "Command", folder: Path) -> None:
    """Scores of the original program for the example, where it is installed."""
    pytest.importorskip("pycocoevalcap")
    if shutil.which("java") is None:
        pytest.skip("needs Java")
    assert meteor(EXAMPLE).tolist() == pytest.approx([0.824156, 0.128090, 0.263381], abs=1e-6)


def test_without_meteor_it_is_said_what_to_install(
    regionqa: "Command", folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    ran = regionqa(
        "eval", "caption", folder / "c.jsonl", "--answers", folder / "kept.jsonl", "--meteor"
    )
    assert ran.status == 2
    assert "--meteor needs Java, which is not installed: pip install 'regionqa[meteor]'" in ran.err
