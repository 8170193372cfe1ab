"""CIDEr-D, BLEU and ROUGE-L of captions against references, as COCO's evaluation has them.

Each is a measure of weighted items, so that intervals can be made of all three alike. It reads
words; it knows no images. METEOR is meteor.py's.
"""

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from regionqa.evaluation.metrics.statistics import Floats, Measure, mean_of

Words = tuple[str, ...]
LONGEST = 4
"""Words of the longest n-grams that count."""
SIGMA = 6.0
"""CIDEr-D's tolerance of other lengths, in words."""
BETA = 1.2
"""How much more recall counts than precision in ROUGE-L."""
CLITICS = re.compile(r"^(.+?)(n't|'(?:s|re|ve|ll|d|m))$")


@dataclass(frozen=True)
class CaptionPair:
    """What was said, and what people say, as words."""

    said: Words
    references: tuple[Words, ...]
    """At least one."""


def caption_words(text: str) -> Words:
    """Lower-case words without marks, as the Penn Treebank splits them: "it's" is it and 's."""
    plain = text.lower().replace("\u2019", "'")
    found: list[str] = []
    for part in re.split(r"[\s,;:!?()\[\]{}\"`]+|--+|\.\.+", plain):
        word = part.strip(".-'*_~/")
        split = CLITICS.match(word)
        found += [piece for piece in (split.groups() if split else (word,)) if piece]
    return tuple(found)


def ngrams(words: Words) -> list[Counter[Words]]:
    """How often each n-gram stands in a text, by n from 1 to 4."""
    return [
        Counter(words[at : at + n] for at in range(len(words) - n + 1))
        for n in range(1, LONGEST + 1)
    ]


# -- CIDEr-D ---------------------------------------------------------------------------------------


def cider_d(items: Sequence[CaptionPair]) -> Floats:
    """CIDEr-D of every item (N,), 0 to 10 (Vedantam, Zitnick and Parikh 2015, arXiv 1411.5726).

    N-grams weigh by how few items have them in their references, so the figure depends on what it
    is measured among; of a single item it is 0.
    """
    references = [[ngrams(words) for words in item.references] for item in items]
    seen: Counter[Words] = Counter()
    for each in references:
        seen.update({gram for counts in each for by_n in counts for gram in by_n})
    weight = {gram: math.log(len(items) / count) for gram, count in seen.items()}
    unseen = math.log(max(1, len(items)))
    scores = []
    for item, each in zip(items, references, strict=True):
        said = [_vector(counts, weight, unseen) for counts in ngrams(item.said)]
        total = 0.0
        for words, counts in zip(item.references, each, strict=True):
            meant = [_vector(by_n, weight, unseen) for by_n in counts]
            apart = max(0, len(item.said) - 1) - max(0, len(words) - 1)
            tolerance = math.exp(-(apart**2) / (2 * SIGMA**2))
            likeness = sum(map(_clipped_cosine, said, meant)) / LONGEST
            total += likeness * tolerance
        scores.append(10 * total / len(each))
    return np.array(scores)


def _vector(
    counts: Mapping[Words, int], weight: Mapping[Words, float], unseen: float
) -> dict[Words, float]:
    return {gram: count * weight.get(gram, unseen) for gram, count in counts.items()}


def _clipped_cosine(said: Mapping[Words, float], meant: Mapping[Words, float]) -> float:
    """The cosine of two vectors; saying a thing more often than it is meant gains nothing."""
    length = math.hypot(*said.values()) * math.hypot(*meant.values())
    if not length:
        return 0.0
    return sum(min(v, meant[gram]) * meant[gram] for gram, v in said.items() if gram in meant) / (
        length
    )


# -- BLEU ------------------------------------------------------------------------------------------


def bleu(items: Sequence[CaptionPair], order: int) -> Measure:
    """BLEU of all items together, 0 to 1, n-grams up to `order` (Papineni et al. 2002).

    Of several references the one nearest in length counts for brevity. Nothing is smoothed.
    """
    counts = np.array([_bleu_counts(item) for item in items], np.float64)  # (N, 2 * LONGEST + 2)

    def measure(weights: Floats) -> Floats:
        totals = weights @ counts  # (R, 2 * LONGEST + 2)
        with np.errstate(divide="ignore", invalid="ignore"):
            matched, possible = totals[:, :order], totals[:, LONGEST : LONGEST + order]
            logs = np.log(matched / possible).mean(1)
            brevity = np.minimum(0.0, 1 - totals[:, -1] / totals[:, -2])
            score = np.exp(logs + brevity)
        return np.where(totals[:, -2] > 0, np.nan_to_num(score), np.nan)

    return measure


def _bleu_counts(item: CaptionPair) -> list[float]:
    """Matched n-grams by n, possible ones by n, words said, words of the nearest reference."""
    said = ngrams(item.said)
    references = [ngrams(words) for words in item.references]
    matched = []
    for n, counts in enumerate(said):
        allowed: Counter[Words] = Counter()
        for each in references:
            allowed |= each[n]
        matched.append(sum((counts & allowed).values()))
    possible = [sum(counts.values()) for counts in said]
    length = len(item.said)
    nearest = min((abs(len(words) - length), len(words)) for words in item.references)[1]
    return [*map(float, matched), *map(float, possible), float(length), float(nearest)]


# -- ROUGE-L ---------------------------------------------------------------------------------------


def rouge_l(items: Sequence[CaptionPair]) -> Measure:
    """The mean ROUGE-L of items, 0 to 1 (Lin 2004): of their longest common subsequence.

    Precision and recall are each of the reference that suits it best.
    """
    return mean_of([_rouge_l(item) for item in items])


def _rouge_l(item: CaptionPair) -> float:
    common = [common_length(item.said, words) for words in item.references]
    if not any(common):
        return 0.0
    precision = max(common) / len(item.said)
    recall = max(
        length / len(words) for length, words in zip(common, item.references, strict=True) if words
    )
    return (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision)


def common_length(first: Words, second: Words) -> int:
    """Words of the longest common subsequence."""
    row = [0] * (len(second) + 1)
    for word in first:
        before = 0
        for at, other in enumerate(second, start=1):
            before, row[at] = row[at], before + 1 if word == other else max(row[at], row[at - 1])
    return row[-1]
