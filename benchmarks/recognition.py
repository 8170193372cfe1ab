"""How often a model names a box rightly: "what is this?" over the boxes of a COCO file.

    python benchmarks/recognition.py INSTANCES.json PICTURES [MODEL]

Boxes count whose shorter side is at least 32 px. Prints accuracy over all boxes, over boxes that
are no person, the mean over classes, and what always saying the most frequent class would reach.
"""

import sys
from pathlib import Path

import regionqa
from regionqa.boxfiles import read_boxes
from regionqa.evaluate import recognise

PERSON = "person"


def main(instances: str, folder: str, model: str = "starter") -> None:
    """Ask, count, print."""
    engine = regionqa.load(model)
    result = recognise(engine, read_boxes(Path(instances)), Path(folder))
    accuracy = result.accuracy(without=PERSON)
    name, always = result.most_frequent(without=PERSON)
    print(f"model {engine.bundle.card.name} {engine.bundle.card.revision}, on {engine.device}")
    print(f"all boxes          {result.accuracy():5.1f} %  of {result.count()}")
    print(f"no person          {accuracy:5.1f} %  of {result.count(without=PERSON)}")
    print(f"mean over classes  {result.class_mean:5.1f} %  of {len(result.outcomes)}")
    print(f"always {name!r} would name {always:.1f} % of the boxes that are no person; ", end="")
    print(f"the model names {accuracy / always:.1f} times as many")


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4):
        sys.exit("usage: python benchmarks/recognition.py INSTANCES.json PICTURES [MODEL]")
    main(*sys.argv[1:])
