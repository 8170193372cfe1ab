"""How often a model names a box rightly: "what is this?" over the boxes of a COCO file.

    python benchmarks/recognition.py INSTANCES.json PICTURES [MODEL]

Every box whose shorter side is at least 32 px is asked about through `Engine.answer`. A reply
counts as the longest class name that stands in it as whole words; one that names no class is wrong.
Prints accuracy over all boxes, over boxes that are no person, the mean over classes, and what
always saying the most frequent class would reach.
"""

import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import regionqa
from regionqa.boxfiles import BoxFile, read_boxes
from regionqa.images import open_picture
from regionqa.regions import clip_all
from regionqa.requests import Request

SMALLEST = 32
PERSON = "person"


def requests(boxfile: BoxFile, folder: Path) -> Iterator[Request]:
    """One request per box that is large enough."""
    for name in boxfile.pictures:
        picture = open_picture(folder / name)
        size = (picture.width, picture.height)
        for written in boxfile.boxes_for(name) or ():
            region = written.resolve(*size)
            if min(region.box.width, region.box.height) >= SMALLEST:
                yield Request(name, "what is this?", clip_all((region,), *size)[0], picture)


def named_class(reply: str, names: Sequence[str]) -> str | None:
    """The longest class name in a reply."""
    longest_first = sorted(names, key=len, reverse=True)
    found = (name for name in longest_first if re.search(rf"\b{re.escape(name)}\b", reply.lower()))
    return next(found, None)


def share(outcomes: Sequence[bool]) -> float:
    """Percent that are true."""
    return 100 * sum(outcomes) / max(1, len(outcomes))


def main(instances: str, folder: str, model: str = "starter") -> None:
    """Ask, count, print."""
    boxfile = read_boxes(Path(instances))
    names = sorted(
        {box.label or "" for name in boxfile.pictures for box in boxfile.boxes_for(name) or ()}
    )
    engine = regionqa.load(model)
    by_class: defaultdict[str, list[bool]] = defaultdict(list)
    for answer in engine.answer(requests(boxfile, Path(folder))):
        label = answer.request.regions[0].label or ""
        by_class[label].append(named_class(answer.text, names) == label)
    every = [right for outcomes in by_class.values() for right in outcomes]
    others = {label: outcomes for label, outcomes in by_class.items() if label != PERSON}
    not_person = [right for outcomes in others.values() for right in outcomes]
    most, count = Counter({k: len(v) for k, v in others.items()}).most_common(1)[0]
    always = 100 * count / len(not_person)
    print(f"model {engine.bundle.card.name} {engine.bundle.card.revision}, on {engine.device}")
    print(f"all boxes          {share(every):5.1f} %  of {len(every)}")
    print(f"no person          {share(not_person):5.1f} %  of {len(not_person)}")
    print(f"mean over classes  {sum(map(share, by_class.values())) / len(by_class):5.1f} %")
    print(f"always {most!r}: {always:.1f} % of the boxes that are no person, ", end="")
    print(f"so the model is {share(not_person) / always:.1f} times that")


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4):
        sys.exit("usage: python benchmarks/recognition.py INSTANCES.json PICTURES [MODEL]")
    main(*sys.argv[1:])
