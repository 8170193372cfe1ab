"""Asking the probe's questions in each way, and what the answers say about a model's card."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory

from regionqa.backends.base import HasVlmCard, ResizesImages
from regionqa.engine import Engine
from regionqa.evaluation.probe.images import SIZES, SUBJECTS, ProbeItem, probe_items
from regionqa.evaluation.probe.readings import Reading, other_readings
from regionqa.options import RegionWay
from regionqa.vlm.coordinates import Size

MAX_NEW_TOKENS = 24
"""Length of an answer; one word is asked for."""
FAIR = 0.5
"""Share of right answers below which a model does not follow a way."""
FEW = 4
"""Number of questions below which nothing is concluded from their answers."""
CLEARLY = 0.4
"""Difference of two shares that is reported."""


@dataclass(frozen=True)
class ProbeOutcome:
    """The answers in one way."""

    way: RegionWay | None
    """How regions were told; None: the model has one way of its own."""
    items: tuple[ProbeItem, ...]
    named: tuple[str | None, ...]
    """The thing that each answer names; None: none, or several."""
    failed: int
    """Questions without an answer; they count as wrong."""
    readings: tuple[Reading, ...]
    """Other readings of the regions."""

    @cached_property
    def right(self) -> float:
        """Share of right answers, 0 to 1."""
        return _mean(self._agrees(item.cell.thing, name) for item, name in self._pairs())

    def right_in(self, kind: str) -> float:
        """Share of right answers about one kind of image."""
        return _mean(self._agrees(item.cell.thing, name) for item, name in self._pairs(kind))

    def compare(
        self, reading: Reading, kind: str | None = None, subject: str | None = None
    ) -> tuple[float, float]:
        """Return the shares of answers that fit a reading and that are right.

        Only questions count in which the reading looks inside the image; if they are few, nothing
        fits.

        Args:
            reading: The reading.
            kind: Kind of images; None: all.
            subject: Subject of the questions; None: all.
        """
        pairs = [pair for pair in self._pairs(kind) if subject in (None, pair[0].layout.subject)]
        seen = [(reading.thing(item), item, name) for item, name in pairs]
        inside = [(thing, item, name) for thing, item, name in seen if thing is not None]
        if len(inside) < FEW:
            return 0.0, self.right
        return (
            _mean(self._agrees(thing, name) for thing, _, name in inside),
            _mean(self._agrees(item.cell.thing, name) for _, item, name in inside),
        )

    @cached_property
    def better_reading(self) -> Reading | None:
        """The reading that fits clearly more answers than the card's; None if none does."""
        found = []
        for reading in self.readings:
            fit, right = self.compare(reading)
            parts = [self.compare(reading, *part) for part in product(SIZES, SUBJECTS)]
            if fit >= FAIR and fit > right and any(own >= r + CLEARLY for own, r in parts):
                found.append((fit, reading))
        return max(found, key=lambda pair: pair[0], default=(0.0, None))[1]

    @property
    def worst_kind(self) -> str | None:
        """The kind of image with clearly fewer right answers than another; None if none has."""
        shares = {kind: self.right_in(kind) for kind in SIZES}
        worst = min(SIZES, key=shares.__getitem__)
        return worst if shares[worst] <= max(shares.values()) - CLEARLY else None

    @property
    def sound(self) -> bool:
        """Whether the model follows this way in all images, and no other reading fits better."""
        return self.right >= FAIR and self.better_reading is None and self.worst_kind is None

    @property
    def verdict(self) -> str:
        """What the answers say, in a sentence."""
        better = self.better_reading
        if better is not None:
            fit, right = self.compare(better)
            return (
                f"looks wrong: {_percent(fit)} of the answers fit {better.name}, and "
                f"{_percent(right)} the card"
            )
        if self.right < FAIR:
            return (
                f"weak: {_percent(self.right)} of the answers are right; the model does not look "
                "where it is told, or does not know colours, digits and shapes"
            )
        if (kind := self.worst_kind) is not None:
            return (
                f"looks wrong in {kind} images: {_percent(self.right_in(kind))} right there, "
                f"{_percent(self.right)} in all"
            )
        return "sound"

    def _pairs(self, kind: str | None = None) -> Iterator[tuple[ProbeItem, str | None]]:
        for item, name in zip(self.items, self.named, strict=True):
            if kind is None or item.layout.kind == kind:
                yield item, name

    @staticmethod
    def _agrees(thing: str | None, name: str | None) -> bool:
        return name is not None and name == thing


def run_probe(
    engine: Engine,
    ways: Sequence[RegionWay] = (),
) -> list[ProbeOutcome]:
    """Ask a model about made-up images, box by box.

    Args:
        engine: The model.
        ways: How regions are told; none: in each way that the model has.
    """
    with TemporaryDirectory() as folder:
        items = tuple(probe_items(Path(folder)))
        return [ask_items(engine, items, way) for way in ways or engine.info.ways or (None,)]


def ask_items(engine: Engine, items: tuple[ProbeItem, ...], way: RegionWay | None) -> ProbeOutcome:
    """Ask the questions of a probe in one way; None: the model's own."""
    own = None if engine.info.free_questions else engine.info.region_question
    requests = [
        replace(item.request, way=way, question=own or item.request.question) for item in items
    ]
    named, failed = [], 0
    for item, answer in zip(
        items, engine.answer(requests, max_new_tokens=MAX_NEW_TOKENS, guess=True), strict=True
    ):
        failed += answer.error is not None
        named.append(item.layout.read(answer.text))
    backend = engine.backend
    coordinates = None
    if way is RegionWay.coordinates and isinstance(backend, HasVlmCard):
        coordinates = backend.card.regions.coordinates
    resized = backend.resized if isinstance(backend, ResizesImages) else _as_given
    readings = tuple(other_readings(coordinates, resized))
    return ProbeOutcome(way, items, tuple(named), failed, readings)


def _mean(values: Iterable[bool]) -> float:
    listed = list(values)
    return sum(listed) / len(listed)


def _as_given(size: Size) -> Size:
    return size


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
