"""Caption metrics: CIDEr-D, BLEU and ROUGE-L as the COCO caption evaluation defines them, METEOR.

All but METEOR are statistics of weighted items, so that they can be bootstrapped.
"""

import math
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from regionqa.errors import UsageError
from regionqa.evaluation.metrics.statistics import Floats, Statistic, weighted_mean

Words = tuple[str, ...]
MAX_N = 4
"""Longest n-grams, in words."""
SIGMA = 6.0
"""Width of CIDEr-D's Gaussian length penalty, in words."""
BETA = 1.2
"""Weight of recall against precision in ROUGE-L."""
CLITICS = re.compile(r"^(.+?)(n't|'(?:s|re|ve|ll|d|m))$")
METEOR_PACKAGE = "pycocoevalcap"
"""Carries METEOR's program and its English paraphrases."""
METEOR_OPTIONS = ("-", "-", "-stdio", "-l", "en", "-norm")


@dataclass(frozen=True)
class CaptionPair:
    """A caption and its references, as words."""

    caption: Words
    references: tuple[Words, ...]
    """At least one."""


def caption_words(text: str) -> Words:
    """Split a caption into lower-case words without punctuation, as the Penn Treebank does.

    "it's" becomes it and 's.
    """
    plain = text.lower().replace("\u2019", "'")
    found: list[str] = []
    for part in re.split(r"[\s,;:!?()\[\]{}\"`]+|--+|\.\.+", plain):
        word = part.strip(".-'*_~/")
        split = CLITICS.match(word)
        found += [piece for piece in (split.groups() if split else (word,)) if piece]
    return tuple(found)


def ngrams(words: Words) -> list[Counter[Words]]:
    """Return the count of each n-gram, for n from 1 to `MAX_N`."""
    return [
        Counter(words[at : at + n] for at in range(len(words) - n + 1)) for n in range(1, MAX_N + 1)
    ]


# -- CIDEr-D ---------------------------------------------------------------------------------------


def cider_d(items: Sequence[CaptionPair]) -> Floats:
    """Return CIDEr-D of every item (N,), 0 to 10 (Vedantam et al. 2015, arXiv 1411.5726).

    N-grams are weighted by how few of the items have them in their references, so a score depends
    on the set that it is computed in; in a set of one it is 0.
    """
    references = [[ngrams(words) for words in item.references] for item in items]
    document_count: Counter[Words] = Counter()
    for each in references:
        document_count.update({gram for counts in each for by_n in counts for gram in by_n})
    weight = {gram: math.log(len(items) / count) for gram, count in document_count.items()}
    unknown = math.log(max(1, len(items)))
    scores = []
    for item, each in zip(items, references, strict=True):
        caption = [_tf_idf(counts, weight, unknown) for counts in ngrams(item.caption)]
        total = 0.0
        for words, counts in zip(item.references, each, strict=True):
            reference = [_tf_idf(by_n, weight, unknown) for by_n in counts]
            # as in the original, lengths are counted in bigrams
            gap = max(0, len(item.caption) - 1) - max(0, len(words) - 1)
            penalty = math.exp(-(gap**2) / (2 * SIGMA**2))
            total += penalty * sum(map(_clipped_cosine, caption, reference)) / MAX_N
        scores.append(10 * total / len(each))
    return np.array(scores)


def _tf_idf(
    counts: Mapping[Words, int], weight: Mapping[Words, float], unknown: float
) -> dict[Words, float]:
    return {gram: count * weight.get(gram, unknown) for gram, count in counts.items()}


def _clipped_cosine(caption: Mapping[Words, float], reference: Mapping[Words, float]) -> float:
    """Cosine of two vectors; an n-gram counts at most as often as the reference has it."""
    length = math.hypot(*caption.values()) * math.hypot(*reference.values())
    if not length:
        return 0.0
    shared = (gram for gram in caption if gram in reference)
    return sum(min(caption[gram], reference[gram]) * reference[gram] for gram in shared) / length


# -- BLEU ------------------------------------------------------------------------------------------


def bleu(items: Sequence[CaptionPair], order: int) -> Statistic:
    """Return corpus BLEU, 0 to 1, with n-grams up to `order` (Papineni et al. 2002).

    The brevity penalty uses the reference nearest in length. There is no smoothing.
    """
    counts = np.array([_bleu_counts(item) for item in items], np.float64)  # (N, 2 * MAX_N + 2)

    def statistic(weights: Floats) -> Floats:
        totals = weights @ counts  # (R, 2 * MAX_N + 2)
        with np.errstate(divide="ignore", invalid="ignore"):
            matched, possible = totals[:, :order], totals[:, MAX_N : MAX_N + order]
            logs = np.log(matched / possible).mean(1)
            brevity = np.minimum(0.0, 1 - totals[:, -1] / totals[:, -2])
            score = np.exp(logs + brevity)
        return np.where(totals[:, -2] > 0, np.nan_to_num(score), np.nan)

    return statistic


def _bleu_counts(item: CaptionPair) -> list[float]:
    """Matched n-grams by n, possible ones by n, the caption's words, the nearest reference's."""
    references = [ngrams(words) for words in item.references]
    matched, possible = [], []
    for n, counts in enumerate(ngrams(item.caption)):
        allowed: Counter[Words] = Counter()
        for each in references:
            allowed |= each[n]
        matched.append(float((counts & allowed).total()))
        possible.append(float(counts.total()))
    length = len(item.caption)
    nearest = min((abs(len(words) - length), len(words)) for words in item.references)[1]
    return [*matched, *possible, float(length), float(nearest)]


# -- ROUGE-L ---------------------------------------------------------------------------------------


def rouge_l(items: Sequence[CaptionPair]) -> Statistic:
    """Return the mean ROUGE-L of items, 0 to 1: F-measure of the longest common subsequence.

    Lin 2004. Precision and recall are each taken from the reference that is best for it.
    """
    return weighted_mean([_rouge_l(item) for item in items])


def _rouge_l(item: CaptionPair) -> float:
    common = [common_length(item.caption, words) for words in item.references]
    if not any(common):
        return 0.0
    precision = max(common) / len(item.caption)
    recall = max(
        length / len(words) for length, words in zip(common, item.references, strict=True) if words
    )
    return (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision)


def common_length(first: Words, second: Words) -> int:
    """Return the length of the longest common subsequence, in words."""
    row = [0] * (len(second) + 1)
    for word in first:
        before = 0
        for at, other in enumerate(second, start=1):
            before, row[at] = row[at], before + 1 if word == other else max(row[at], row[at - 1])
    return row[-1]


# -- METEOR ----------------------------------------------------------------------------------------


def meteor(items: Sequence[CaptionPair]) -> Floats:
    """Return METEOR of every item, 0 to 1, and last that of all together (N + 1,).

    Runs the authors' own program (Denkowski and Lavie 2014), which needs Java and the extra
    `meteor`. Reimplementations give other scores: one in common use 0.68 where this one gives 0.42.

    Raises:
        UsageError: Java or the program is missing, or the program fails.
    """
    java, program = shutil.which("java"), _meteor_program()
    if java is None or program is None:
        missing = "Java" if java is None else f"the package {METEOR_PACKAGE}"
        raise UsageError(
            f"--meteor needs {missing}, which is not installed: pip install 'regionqa[meteor]', "
            "and a Java runtime"
        )
    command = [java, "-jar", "-Xmx2G", program.name, *METEOR_OPTIONS]
    # the program's protocol: references, then the caption
    lines = [
        " ||| ".join(" ".join(words) for words in (*item.references, item.caption))
        for item in items
    ]
    counts = _run_meteor(command, program.parent, [f"SCORE ||| {line}" for line in lines])
    request = "EVAL ||| " + " ||| ".join(counts[: len(items)])
    scores = _run_meteor(command, program.parent, [request])
    if len(counts) < len(items) or len(scores) < len(items) + 1:
        raise UsageError("--meteor: the program returned too few scores; run without --meteor")
    return np.array(list(map(float, scores[: len(items) + 1])))


def _meteor_program() -> Path | None:
    found = find_spec(METEOR_PACKAGE)
    for folder in (found.submodule_search_locations or ()) if found else ():
        jars = sorted((Path(folder) / "meteor").glob("meteor-*.jar"))
        if jars:
            return jars[0].absolute()
    return None


def _run_meteor(command: Sequence[str], folder: Path, lines: Sequence[str]) -> list[str]:
    text = "".join(f"{line}\n" for line in lines)
    done = subprocess.run(command, input=text, capture_output=True, text=True, cwd=folder)
    if done.returncode:
        reason = " ".join(done.stderr.split())[-200:]
        raise UsageError(f"--meteor: the program failed: {reason}; check your Java runtime")
    return done.stdout.splitlines()
