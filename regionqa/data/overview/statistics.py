"""Statistics of training data, counted a record at a time.

Memory grows by 16 bytes per record, for duplicates and images, and with the number of different
words.
"""

import hashlib
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from regionqa.data.english import BYTES_PER_TOKEN, FUNCTION_WORDS, WORD, counted
from regionqa.data.overview.histograms import LENGTHS, SIZES, Bar, bars_of, bin_of, histogram
from regionqa.data.records import ProblemCounts, Record, one_line
from regionqa.data.streams.training import TrainingStream, UsableRecords
from regionqa.language.references import REFERENCE

AREAS = (32**2, 96**2)
"""Least areas of medium and large regions, in pixels, as COCO counts them."""
AREA_NAMES = ("small, below 32 x 32", "medium", "large, from 96 x 96")
NUMBERS = (1, 2, 3, 5, 9, 16)
"""Bin edges of numbers of regions and turns in a record."""
UNTOLD = "(not told)"
"""Kind of a record that has none."""
REGION_ALONE = "(the region alone)"
"""First word of a question that has no words."""
MOST_COMMON = 20
"""Kinds, first words and words listed."""
PROBLEMS_SHOWN = 3


@dataclass
class DataStatistics:
    """What one or several files hold."""

    sources: list[str] = field(default_factory=list)
    """The files, each with its format."""
    records: int = 0
    regions: int = 0
    labelled: int = 0
    """Regions with a label."""
    clipped: int = 0
    turns: int = 0
    without_regions: int = 0
    text_bytes: Counter[str] = field(default_factory=Counter)
    """UTF-8 bytes of questions and of answers."""
    problems: list[ProblemCounts] = field(default_factory=list)
    missing_images: int = 0
    broken_images: int = 0
    sides: Counter[int] = field(default_factory=Counter)
    """Regions by bin of their shorter side."""
    areas: Counter[int] = field(default_factory=Counter)
    per_record: Counter[int] = field(default_factory=Counter)
    """Records by bin of their number of regions."""
    turns_per_record: Counter[int] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    first_words: Counter[str] = field(default_factory=Counter)
    """Of questions."""
    question_lengths: Counter[int] = field(default_factory=Counter)
    answer_lengths: Counter[int] = field(default_factory=Counter)
    words: Counter[str] = field(default_factory=Counter)
    """Of answers, without function words."""
    _digests: "array[int]" = field(default_factory=lambda: array("Q"))
    """Of the records, in order."""
    _images: "array[int]" = field(default_factory=lambda: array("Q"))
    """Digests of the records' images."""
    _begins: list[tuple[int, str]] = field(default_factory=list)
    """Number of records before each file, and its name."""

    def add_file(self, stream: TrainingStream) -> None:
        """Read a file and count its records."""
        self.sources.append(f"{stream.source}: {stream.title}")
        self._begins.append((self.records, str(stream.source)))
        usable = UsableRecords(stream)
        for _, record in usable.keyed():
            self.add(record)
        self.problems.append(usable.counts)
        missing, broken = stream.unusable_images
        self.missing_images += missing
        self.broken_images += broken

    def add(self, record: Record) -> None:
        """Count a record."""
        self.records += 1
        self.clipped += record.clipped
        self.without_regions += not record.regions
        self.kinds[record.kind or UNTOLD] += 1
        self.per_record[bin_of(len(record.regions), NUMBERS)] += 1
        self.turns_per_record[bin_of(len(record.turns), NUMBERS)] += 1
        for region in record.regions:
            self.regions += 1
            self.labelled += bool(region.label)
            self.sides[bin_of(min(region.box.width, region.box.height), SIZES)] += 1
            self.areas[bin_of(region.box.width * region.box.height, AREAS)] += 1
        for turn in record.turns:
            self.turns += 1
            self._add_texts(turn.question, turn.answer)
        image = str(record.image)
        content = (image, [region.box.xyxy for region in record.regions],
                   [(turn.question, turn.answer) for turn in record.turns])  # fmt: skip
        self._images.append(_digest(image))
        self._digests.append(_digest(repr(content)))

    def _add_texts(self, question: str, answer: str) -> None:
        for name, text in (("questions", question), ("answers", answer)):
            self.text_bytes[name] += len(text.encode("utf-8", "surrogateescape"))
        asked = WORD.findall(REFERENCE.sub(" ", question))
        self.first_words[asked[0].lower() if asked else REGION_ALONE] += 1
        self.question_lengths[bin_of(len(question.split()), LENGTHS)] += 1
        self.answer_lengths[bin_of(len(answer.split()), LENGTHS)] += 1
        words = (word.lower() for word in WORD.findall(REFERENCE.sub(" ", answer)))
        self.words.update(word for word in words if word not in FUNCTION_WORDS)

    @property
    def images(self) -> int:
        """Number of different images."""
        return len(np.unique(np.frombuffer(self._images, np.uint64))) if self._images else 0

    @property
    def bad(self) -> int:
        """Number of records that cannot be used."""
        return sum(each.bad for each in self.problems)

    def duplicates(self) -> tuple[int, str]:
        """Count records that are equal to an earlier one, and name the first of them."""
        if not self._digests:
            return 0, ""
        digests = np.frombuffer(self._digests, np.uint64)
        order = np.argsort(digests, kind="stable")
        again = order[1:][digests[order[1:]] == digests[order[:-1]]]
        if not len(again):
            return 0, ""
        first = int(again.min())
        begin, name = max(each for each in self._begins if each[0] <= first)
        return len(again), f"usable record {first - begin + 1:,} of {name}"

    def tokens(self) -> dict[str, int]:
        """Estimate the tokens of questions and answers."""
        return {name: size // BYTES_PER_TOKEN for name, size in sorted(self.text_bytes.items())}

    def counts(self) -> dict[str, int]:
        """Return the numbers of records, images and so on, by name."""
        return {
            "records": self.records,
            "bad records": self.bad,
            "duplicate records": self.duplicates()[0],
            "images": self.images,
            "missing images": self.missing_images,
            "broken images": self.broken_images,
            "regions": self.regions,
            "labelled regions": self.labelled,
            "clipped regions": self.clipped,
            "turns": self.turns,
            "records without regions": self.without_regions,
            **{f"tokens of {name}, about": n for name, n in self.tokens().items()},
        }

    def histograms(self) -> Iterator[tuple[str, tuple[Bar, ...], int]]:
        """Iterate over titles, bars and numbers of all values."""
        areas = tuple(Bar(name, self.areas[n]) for n, name in enumerate(AREA_NAMES))
        yield "records by kind", _most(self.kinds), self.records
        yield "records by number of regions", _numbers(self.per_record), self.records
        yield "records by number of turns", _numbers(self.turns_per_record), self.records
        yield "regions by shorter side, in pixels", bars_of(self.sides, SIZES), self.regions
        yield "regions by area, in pixels", areas, self.regions
        yield "questions by first word", _most(self.first_words), self.turns
        lengths = bars_of(self.question_lengths, LENGTHS, whole=True)
        yield "questions by length, in words", lengths, self.turns
        lengths = bars_of(self.answer_lengths, LENGTHS, whole=True)
        yield "answers by length, in words", lengths, self.turns
        yield "most frequent words of answers", _most(self.words), self.words.total()

    def lines(self) -> Iterator[str]:
        """Render the statistics as lines of text."""
        yield from self.sources
        counts = self.counts()
        width = max(map(len, counts))
        yield from (f"  {name:{width}}  {count:>12,}" for name, count in counts.items())
        for title, bars, total in self.histograms():
            yield from histogram(title, bars, total)

    def remarks(self) -> Iterator[str]:
        """What is wrong with the files, a line each."""
        for source, counts in zip(self.sources, self.problems, strict=True):
            if counts.problems:
                yield (
                    f"{source.rpartition(': ')[0]}: {counted(counts.bad, 'bad record')}, the first "
                    f"{counts.first[0]}; see all with: regionqa data check"
                )
        number, first = self.duplicates()
        if number:
            yield f"{counted(number, 'duplicate record')}, the first is {first}"

    def document(self) -> dict[str, Any]:
        """Return everything as a JSON document."""
        return {
            "files": self.sources,
            "counts": {_key(name): count for name, count in self.counts().items()},
            "first_duplicate": self.duplicates()[1] or None,
            **{
                _key(title): {bar.name: bar.count for bar in bars}
                for title, bars, _ in self.histograms()
            },
        }


def _numbers(counts: Mapping[int, int]) -> tuple[Bar, ...]:
    """Name bins of `NUMBERS`, the first of which is none."""
    bars = bars_of({max(0, place - 1): n for place, n in counts.items() if place}, NUMBERS[1:],
                   whole=True)  # fmt: skip
    return (Bar("none", counts.get(0, 0)), *bars) if 0 in counts else bars


def _most(counts: Counter[str]) -> tuple[Bar, ...]:
    """Return the most frequent, then in alphabetical order, and the sum of the others."""
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    bars = [Bar(one_line(name), count) for name, count in ranked[:MOST_COMMON]]
    rest = sum(count for _, count in ranked[MOST_COMMON:])
    return (*bars, *([Bar(f"({len(ranked) - MOST_COMMON:,} others)", rest)] if rest else ()))


def _key(title: str) -> str:
    """Return the name of a figure in JSON: `regions_by_area` for `regions by area, in pixels`."""
    return title.partition(",")[0].replace(" ", "_")


def _digest(text: str) -> int:
    content = text.encode("utf-8", "surrogateescape")
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")
