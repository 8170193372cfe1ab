"""The prompt format of a card: templates, their fields and checks.

language/prompts.py renders prompts from it, for asking and training alike.
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
    """The format of prompts; the card's [prompt] table."""

    template: str
    """The whole prompt, with `{image}` for the image tokens and `{question}` for the question. The
    image must come before the question and once: questions about one image share this prefix."""
    region: str
    """Replacement of `<regionK>`, with optional fields: `{region}` (the region's tokens),
    `{number}` (K), `{x0} {y0} {x1} {y1}` (fractions of the image's sides, 3 decimals)."""
    image_question: str
    """`caption`'s question about a whole image."""
    region_question: str
    """`caption`'s question about a region."""
    again: str | None = None
    """Replacement of further mentions of `<regionK>`; None: the same as the first."""
    introduction: str = "{regions} "
    """Prefix of a question that does not mention all its regions; `{regions}` are the others."""
    separator: str = " "
    """Separator of regions in the introduction."""
    answer: str = "{answer}"
    """The text between prompt and stop; some tokenizers need a space before the answer."""
    turn: str | None = None
    """The text between an answer's stop and the next answer, with `{question}`. None: the model has
    no dialogues."""
    image_token: str | None = None
    """The special token that stood for the image in training. If the tokenizer strips the white
    space beside this token, it is stripped beside the image too. None: nothing is stripped."""
    region_token: str | None = None
    """The same for regions."""

    def __post_init__(self) -> None:
        check_pattern(
            self.template, "template", {"image", "question"}, required={"image", "question"}
        )
        names = [name for _, name in parse_pattern(self.template) if name]
        if names.index("image") > names.index("question") or names.count("image") > 1:
            raise ValueError("prompt template: {image} must stand once, and before {question}")
        check_pattern(self.answer, "answer", {"answer"}, required={"answer"})
        if sum(name is not None for _, name in parse_pattern(self.answer)) != 1:
            raise ValueError("prompt answer: {answer} must stand once")
        if self.turn is not None:
            check_pattern(self.turn, "turn", {"question"}, required={"question"})
        known = {"region", "number", "x0", "y0", "x1", "y1"}
        check_pattern(self.region, "region", known)
        check_pattern(self.again or "", "again", known)
        check_pattern(self.introduction, "introduction", {"regions"}, required={"regions"})

    @property
    def region_input(self) -> RegionInput:
        """How the language model gets a region."""
        names = _fields(self.region)
        if "region" in names:
            return RegionInput.features
        return RegionInput.coordinates if "x0" in names else RegionInput.none

    @property
    def takes_features(self) -> bool:
        """Whether prompts have region slots."""
        return self.region_input is RegionInput.features


def parse_pattern(pattern: str) -> list[tuple[str, str | None]]:
    """Split a pattern into literal texts, each with the name of the field after it, or None."""
    return [(literal, name) for literal, name, _, _ in Formatter().parse(pattern)]


def _fields(pattern: str) -> set[str]:
    return {name for _, name in parse_pattern(pattern) if name is not None}


def check_pattern(
    pattern: str, key: str, known: set[str], required: frozenset[str] | set[str] = frozenset()
) -> None:
    """Check the fields of a pattern; ValueError if one is unknown, missing or has a format."""
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
