"""Questions and answers put into other words by a model's prompt rules; the prompt stays the same.

Questions that have fewer regions, or name all that they have; answers without what stands around
them. It does not know tokens.
"""

import re
from collections.abc import Sequence

from regionqa.prompts import LONGEST_NUMBER, REFERENCE, PromptRules, parse_pattern


def renumber(text: str, kept: Sequence[int]) -> str:
    """The text for a question that has only some of the regions: `kept[0]` becomes `<region1>`.

    Mentions of others become words.
    """
    places = {number: place for place, number in enumerate(kept, start=1)}

    def renamed(found: re.Match[str]) -> str:
        place = places.get(int(found[1])) if len(found[1]) <= LONGEST_NUMBER else None
        return f"<region{place}>" if place else f"region {found[1]}"

    return REFERENCE.sub(renamed, text)


def introduce(rules: PromptRules, question: str, numbers: Sequence[int]) -> str:
    """The question with the regions that it does not name put before it, by number.

    Asked so, it becomes the same prompt as when these regions are new and the rules put them there.
    """
    if not numbers or not rules.region:
        return question
    regions = rules.separator.join(f"<region{number}>" for number in numbers)
    return rules.introduction.format(regions=regions) + question.strip()


def read_answer(rules: PromptRules, text: str) -> str:
    """What the model meant of what it wrote: without the words the rules put around an answer.

    The opposite of `render_answer`; a model asked as GPT4RoI is begins with "Assistant: ".
    """
    lead, tail = _around_answer(rules)
    return text.strip().removeprefix(lead).removesuffix(tail).strip()


def may_be_lead(rules: PromptRules, text: str) -> bool:
    """Whether what was written so far may yet turn out to be only words before an answer."""
    lead, _ = _around_answer(rules)
    return lead.startswith(text.strip())


def _around_answer(rules: PromptRules) -> tuple[str, str]:
    (lead, _), *rest = parse_pattern(rules.answer)
    return lead.strip(), "".join(literal for literal, _ in rest).strip()
