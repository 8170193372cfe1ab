"""Tasks: which kinds of conversations an image's annotations allow, and which are asked for."""

import hashlib
import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from regionqa.data.streams.shards import Shard
from regionqa.generation.annotations import AnnotatedImage, references
from regionqa.generation.options import GenerationKind

SMALL_SHARE = 0.02
"""Objects below this share of the image's area are small."""
MOST_TARGETS = 6
"""Objects that a prompt proposes to ask about."""
TEXT_LABEL = re.compile(r"text\b", re.IGNORECASE)
"""Label of a box that holds text, like `text: STOP`."""
TEXT_FACT = re.compile(
    r"[\"“”]|(?<!\w)'[^']+'(?!\w)|\b(?:says|written|letters?|text|logo|number plate)\b",
    re.IGNORECASE,
)
"""A fact about text in the image; no question that `data convert` asks matches."""


@dataclass(frozen=True)
class GenerationTask:
    """One conversation to generate."""

    image: AnnotatedImage
    kind: GenerationKind
    targets: tuple[int, ...]
    """Numbers of the objects of which a question must name one; empty: any."""
    seed: int
    """Of examples and sampling; the same wherever the annotations lie and in every shard."""

    @property
    def id(self) -> str:
        """Names the task; unique in a file."""
        return f"{self.image.name}#{self.kind}"


@dataclass
class TaskPlan:
    """The tasks of a shard, planned as they are taken, and what was not made a task."""

    found: Iterable[AnnotatedImage]
    """All images, of every shard."""
    kinds: Sequence[GenerationKind]
    """The kinds wanted."""
    per_image: int | None
    """Number of kinds per image; None: all that are possible."""
    seed: int
    """Of what is drawn; each image has a generator of its own."""
    shard: Shard
    """The part of the images."""
    look: Callable[[Iterable[AnnotatedImage]], Iterable[AnnotatedImage]] = iter
    """Passes the images of the shard on, as a vision model that adds facts does."""
    unsupported: Counter[GenerationKind] = field(default_factory=Counter)
    """Images whose annotations do not allow a kind."""
    without_objects: int = 0
    """Images without a box, about which nothing is asked."""
    left_out: int = 0
    """Objects and facts that exceed what a prompt holds."""
    images: int = 0

    def tasks(self) -> Iterator[GenerationTask]:
        """Iterate over the tasks, and count."""
        for image in self.look(self.shard.take(self.found)):
            self.images += 1
            self.left_out += image.left_out
            yield from self._of_image(image)

    def _of_image(self, image: AnnotatedImage) -> Iterator[GenerationTask]:
        if not image.objects:
            self.without_objects += 1
            return
        possible = []
        for kind in self.kinds:
            targets = targets_of(image, kind)
            if targets is None:
                self.unsupported[kind] += 1
            else:
                possible.append((kind, targets))
        if self.per_image is not None and self.per_image < len(possible):
            generator = random.Random(seed_of(self.seed, image.name))
            drawn = generator.sample(range(len(possible)), self.per_image)
            possible = [possible[index] for index in sorted(drawn)]
        for kind, targets in possible:
            yield GenerationTask(image, kind, targets, seed_of(self.seed, image.name, kind))


def seed_of(*parts: object) -> int:
    """Return a seed of 31 bits, the same in every process."""
    text = "\0".join(map(str, parts)).encode("utf-8", "surrogateescape")
    return int.from_bytes(hashlib.sha256(text).digest()[:4], "big") >> 1


def targets_of(image: AnnotatedImage, kind: GenerationKind) -> tuple[int, ...] | None:
    """Return the objects to ask about, empty for any; None if the annotations allow no question.

    Names and boxes alone allow questions about small objects, places, and objects of one name;
    those about attributes and text need facts or labels that tell them.
    """
    numbers = range(1, len(image.objects) + 1)
    match kind:
        case GenerationKind.small:
            small = [number for number in numbers if image.share(number) < SMALL_SHARE]
            return tuple(sorted(small, key=image.share)[:MOST_TARGETS]) or None
        case GenerationKind.category:
            return _most_frequent(image)
        case GenerationKind.text:
            return tuple(_with_text(image)) or None
        case GenerationKind.attributes:
            told = [number for fact in image.facts for number in references(fact)]
            return tuple(dict.fromkeys(told))[:MOST_TARGETS] or None
        case GenerationKind.relations | GenerationKind.multi_turn:
            return () if len(image.objects) > 1 else None
        case GenerationKind.general:
            return ()


def _most_frequent(image: AnnotatedImage) -> tuple[int, ...] | None:
    """The objects of the name that most have; None if each has its own."""
    counts = Counter(name.lower() for name, each in zip(image.names, image.objects, strict=True)
                     if each.label)  # fmt: skip
    name, count = next(iter(counts.most_common(1)), ("", 0))
    if count < 2:
        return None
    found = (number for number, each in enumerate(image.names, 1) if each.lower() == name)
    return tuple(found)[: 2 * MOST_TARGETS]


def _with_text(image: AnnotatedImage) -> Iterator[int]:
    """The objects that hold text, by their label or by a fact."""
    labelled = [number for number, name in enumerate(image.names, 1) if TEXT_LABEL.match(name)]
    told = [n for fact in image.facts if TEXT_FACT.search(fact) for n in references(fact)]
    yield from list(dict.fromkeys([*labelled, *told]))[:MOST_TARGETS]
