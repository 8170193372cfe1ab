"""What is promised about the starter: figures of starter.py, and what they should be."""

from collections.abc import Iterator
from dataclasses import dataclass

Figures = dict[str, float]
"""Values by the text of their aim."""
OTHER_KINDS = {
    "which": "which of several regions", "side": "on which of two sides",
    "place": "where, of nine places", "same": "the same kind of thing?, balanced",
}  # fmt: skip
"""Further kinds of questions that the starter is taught, for which no figure was promised."""
CHOICES = ("colour", "relation", "ordering", "shape", "material")


@dataclass(frozen=True)
class Aim:
    """A figure, and what it should be."""

    part: str
    text: str
    """The figure in words; its key in --json."""
    bound: float | None
    """None: there is no number to reach."""
    at_least: bool = True
    """Whether the bound is the smallest value, else the largest."""
    unit: str = "%"

    def reached(self, value: float) -> str:
        """Return whether a value is good enough, in a word."""
        if self.bound is None:
            return "-"
        return "yes" if (value >= self.bound) == self.at_least or value == self.bound else "no"

    @property
    def goal(self) -> str:
        """The bound in words."""
        if self.bound is None:
            return "-"
        return f"{'at least' if self.at_least else 'at most'} {self.bound:g} {self.unit}"


AIMS = (
    Aim("names", "names, always answering: all boxes", 78),
    Aim("names", "names, always answering: not a person", 66),
    Aim("names", "names, always answering: mean over classes", 64),
    Aim("names", "names, always answering: 96 x 96 px and more", 86),
    Aim("names", "names, by default: answered", 80),
    Aim("names", "names, by default: right of those answered", 87),
    Aim("names", "expected calibration error", 5, at_least=False),
    Aim("questions", "relations as yes or no", 97),
    *(Aim("questions", text, None) for text in OTHER_KINDS.values()),
    Aim("questions", "presence, balanced", 85),
    Aim("questions", "is this a ...?, balanced", 92),
    Aim("questions", "colour of 100 labelled boxes", 80),
    Aim("questions", "counts within one, mean over one to five", 75),
    *(Aim("questions", f"four choices above chance: {kind}", 15, unit="points")
      for kind in CHOICES),
    Aim("questions", "not taught: refused", 85),
    Aim("questions", "taught: refused", 15, at_least=False),
    Aim("captions", "captions of photos: CIDEr-D", 50, unit=""),
    Aim("captions", "captions naming an object that is not there (CHAIRs)", None),
    Aim("captions", "captions naming an object that is not annotated", None),
    Aim("regions", "captions of regions naming the class", 75),
    *(Aim("steadiness", f"shifted boxes: {label}", 95)
      for label in ("cat", "cup", "person", "motorcycle")),
    Aim("steadiness", '"is this a dog?" of the cat: no', 1, unit="answer"),
    Aim("speed", "one region, one thread", 60, at_least=False, unit="ms of CPU"),
    Aim("speed", "32 regions of a photo", 3, at_least=False, unit="times one"),
    Aim("speed", "folder with 8 boxes a photo", 100, unit="answers/s"),
    Aim("speed", "cold ask", 1.3, at_least=False, unit="times importing its libraries"),
    Aim("size", "size of the model", 40, at_least=False, unit="MB"),
)  # fmt: skip


def aim_rows(figures: Figures) -> Iterator[tuple[str, ...]]:
    """Yield a row per figure that was measured."""
    for aim in AIMS:
        if aim.text in figures:
            value = figures[aim.text]
            yield aim.text, f"{value:.1f} {aim.unit}".strip(), aim.goal, aim.reached(value)
