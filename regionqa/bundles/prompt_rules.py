"""The one prompt renderer: questions, answers and regions -> pieces; `promptids` makes ids of them.

Asking and training both go through here, so a model meets in use exactly what it was trained on.
It does not know about images, tokenizers or which model the rules belong to.
"""

from dataclasses import dataclass
from enum import StrEnum
from string import Formatter


class RegionInput(StrEnum):
    """How the language model gets a region."""

    features = "features"
    """As tokens of the region encoder (GPT4RoI, PVIT)."""
    coordinates = "coordinates"
    """As text: the box's coordinates (Shikra)."""
    none = "none"
    """Not at all (LLaVA)."""


@dataclass(frozen=True)
class PromptRules:
    """How one question becomes a prompt; the card's [prompt] table."""

    template: str
    """The whole prompt; `{image}` stands for the image tokens, `{question}` for the question. The
    image comes first and once: what stands before and in it is shared by an image's questions."""
    region: str
    """What `<regionK>` becomes: may hold `{region}` (the region's tokens), `{number}` (K), and
    `{x0} {y0} {x1} {y1}` (fractions of the image's width and height, 3 decimals)."""
    image_question: str
    """What `caption` asks about a whole image."""
    region_question: str
    """What `caption` asks about a region."""
    again: str | None = None
    """What `<regionK>` becomes when it is named again; None: the same as the first time."""
    introduction: str = "{regions} "
    """Put before a question that does not name all its regions; `{regions}` are the unnamed."""
    separator: str = " "
    """Stands between regions in the introduction."""
    answer: str = "{answer}"
    """How an answer stands between its prompt and the stop that ends it; a tokenizer may want a
    space before it."""
    turn: str | None = None
    """What follows a finished answer and its stop, up to the next answer; holds `{question}`. None:
    the model knows one question at a time."""
    image_token: str | None = None
    """The special token that held the image's place in training. A token may take the white space
    beside it, and then so does the place. None: nothing is taken."""
    region_token: str | None = None
    """The same for a region's place."""

    def __post_init__(self) -> None:
        _check(self.template, "template", {"image", "question"}, required={"image", "question"})
        names = [name for _, name in parse_pattern(self.template) if name]
        if names.index("image") > names.index("question") or names.count("image") > 1:
            raise ValueError("prompt template: {image} must stand once, and before {question}")
        _check(self.answer, "answer", {"answer"}, required={"answer"})
        if sum(name is not None for _, name in parse_pattern(self.answer)) != 1:
            raise ValueError("prompt answer: {answer} must stand once")
        if self.turn is not None:
            _check(self.turn, "turn", {"question"}, required={"question"})
        known = {"region", "number", "x0", "y0", "x1", "y1"}
        _check(self.region, "region", known)
        _check(self.again or "", "again", known)
        _check(self.introduction, "introduction", {"regions"}, required={"regions"})

    @property
    def region_input(self) -> RegionInput:
        """What the rules tell the language model of a region."""
        names = _fields(self.region)
        if "region" in names:
            return RegionInput.features
        return RegionInput.coordinates if "x0" in names else RegionInput.none

    @property
    def takes_features(self) -> bool:
        """Whether prompts have region slots."""
        return self.region_input is RegionInput.features


def parse_pattern(pattern: str) -> list[tuple[str, str | None]]:
    """A pattern as literal texts, each with the name of the field after it, or None at the end."""
    return [(literal, name) for literal, name, _, _ in Formatter().parse(pattern)]


def _fields(pattern: str) -> set[str]:
    return {name for _, name in parse_pattern(pattern) if name is not None}


def _check(
    pattern: str, key: str, known: set[str], required: frozenset[str] | set[str] = frozenset()
) -> None:
    try:
        found = _fields(pattern)
    except ValueError as error:
        raise ValueError(f"prompt {key} {pattern!r}: {error}") from error
    if any(spec or conversion for _, _, spec, conversion in Formatter().parse(pattern)):
        raise ValueError(f"prompt {key} {pattern!r}: a field is a name alone, like {{number}}")
    if found - known:
        raise ValueError(
            f"prompt {key}: {{{min(found - known)}}} is unknown; known: {sorted(known)}"
        )
    if required - found:
        raise ValueError(f"prompt {key}: {{{min(required - found)}}} is missing")
