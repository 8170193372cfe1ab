"""Filters: which questions and answers are rejected, and why."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from regionqa.generation.annotations import references
from regionqa.generation.options import DuplicateScope
from regionqa.language.references import REFERENCE, reference_problems

COORDINATES = re.compile(r"[\[(]\s*\d+(?:\.\d+)?(?:\s*,\s*\d+(?:\.\d+)?){3}\s*[\])]")
"""A box in numbers."""
MOST_QUESTION_WORDS = 80
"""Longest question, in words."""
SIMILARITY = 0.8
"""Estimated Jaccard similarity of two texts' shingles from which they are near-duplicates."""
SHINGLE = 3
"""Words of a shingle."""
PERMUTATIONS = 128
"""Hash functions of a MinHash; the standard error of a similarity is below 0.05."""


class RejectReason(StrEnum):
    """Why a reply, or a question with its answer, is rejected."""

    no_reply = "no reply"
    control = "a control token in the annotations"
    withheld = "withheld by the server's filter"
    empty = "empty"
    cut = "cut at the limit of tokens"
    not_json = "not JSON"
    wrong_form = "JSON of another form"
    few = "too few questions"
    absent = "names a box that was not given"
    coordinates = "coordinates in the text"
    no_region = "names no region"
    off_target = "names none of the objects asked about"
    region_in_answer = "a region in the answer"
    long_question = "question too long"
    long_answer = "answer too long"
    unverified = "no verdict"
    unfounded = "does not follow from the annotations"
    duplicate = "near-duplicate"


@dataclass(frozen=True)
class RejectedTurn:
    """What is rejected of a reply."""

    reason: RejectReason
    question: str = ""
    answer: str = ""
    detail: str = ""
    """What exactly is wrong, such as what the judge says."""


def turn_fault(
    question: str, answer: str, *, objects: int, targets: Sequence[int], max_words: int
) -> RejectedTurn | None:
    """Find the first fault of a question and its answer.

    Args:
        question: The question.
        answer: The answer.
        objects: Number of objects that may be named.
        targets: Objects of which the question must name one; empty: any.
        max_words: Words of the longest answer.
    """

    def fault(reason: RejectReason, detail: str = "") -> RejectedTurn:
        return RejectedTurn(reason, question, answer, detail)

    if not question.strip() or not answer.strip():
        return fault(RejectReason.empty)
    for text in (question, answer):
        for problem in reference_problems(text, objects):
            return fault(RejectReason.absent, problem)
        if found := COORDINATES.search(text):
            return fault(RejectReason.coordinates, found[0])
    named = references(question)
    if not named:
        return fault(RejectReason.no_region)
    if targets and not set(targets) & set(named):
        return fault(RejectReason.off_target)
    if REFERENCE.search(answer):
        return fault(RejectReason.region_in_answer)
    if (words := len(question.split())) > MOST_QUESTION_WORDS:
        return fault(RejectReason.long_question, f"{words} words")
    if (words := len(answer.split())) > max_words:
        return fault(RejectReason.long_answer, f"{words} words")
    return None


class NearDuplicates:
    """Finds texts like earlier ones, by MinHash.

    Within an image, regions are part of the text, so that one question about two objects is two
    questions. Across images their numbers mean nothing and are left out.
    """

    def __init__(self, scope: DuplicateScope) -> None:
        """Start with no texts.

        Args:
            scope: Where near-duplicates are looked for.
        """
        self._scope = scope
        self._image: str | None = None
        self._begin()

    def _begin(self) -> None:
        if self._scope is DuplicateScope.none:
            return
        from datasketch import MinHashLSH

        # half of the pairs at its threshold are missed, so that of the index is lower
        self._index: Any = MinHashLSH(threshold=SIMILARITY - 0.2, num_perm=PERMUTATIONS)
        self._hashes: dict[int, tuple[Any, str]] = {}

    def add(self, image: str, question: str, answer: str) -> str | None:
        """Add a question with its answer, unless an earlier one is like it; that is returned.

        Args:
            image: The image; those of one image come together.
            question: The question.
            answer: The answer.
        """
        if self._scope is DuplicateScope.none:
            return None
        text = f"{question} {answer}"
        if self._scope is DuplicateScope.image and image != self._image:
            self._image = image
            self._begin()
        if self._scope is DuplicateScope.file:
            text = REFERENCE.sub(" region ", text)
        made = minhash(text)
        for key in sorted(self._index.query(made)):
            earlier, asked = self._hashes[key]
            if made.jaccard(earlier) >= SIMILARITY:
                return asked
        key = len(self._hashes)
        self._index.insert(key, made)
        self._hashes[key] = made, question
        return None


def minhash(text: str) -> Any:
    """Return the MinHash of a text's shingles; equal in every process."""
    from datasketch import MinHash

    words = re.findall(r"\w+", text.lower())
    shingles = {" ".join(words[n : n + SHINGLE]) for n in range(max(1, len(words) - SHINGLE + 1))}
    made = MinHash(num_perm=PERMUTATIONS)
    made.update_batch([shingle.encode() for shingle in sorted(shingles)])
    return made
