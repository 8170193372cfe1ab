"""How answers are made: how long, how sure, how random, and who hears them as they are made.

Plain values and text; nothing here runs a model.
"""

from collections.abc import Callable, Sequence

from regionqa.bundles.prompt_rules import PromptRules
from regionqa.language.prompts import may_be_lead, read_answer

INCOMPLETE_CHARACTER = "\ufffd"
"""What a tokenizer writes for the beginning of a character whose end is still to come."""


class AnswerStream:
    """Tells one answer in parts that together are the answer."""

    def __init__(
        self, rules: PromptRules, stops: Sequence[str], tell: Callable[[str], None]
    ) -> None:
        """rules: what stands around an answer; stops: texts that may end it. Neither is told."""
        self._rules = rules
        self._stops = stops
        self._tell = tell
        self._told = ""

    def hear(self, written: str) -> None:
        """Tell what is certain of all that was generated so far."""
        certain = settled(written, self._stops)
        meant = read_answer(self._rules, certain)
        if not may_be_lead(self._rules, certain) and meant.startswith(self._told):
            self._tell_rest(meant)

    def finish(self, answer: str) -> None:
        """Tell the rest of the answer."""
        if not answer.startswith(self._told):  # never seen: a tokenizer that changes its words
            self._tell("\n")
            self._told = ""
        self._tell_rest(answer)

    def _tell_rest(self, text: str) -> None:
        if rest := text[len(self._told) :]:
            self._tell(rest)
            self._told = text


def settled(text: str, stops: Sequence[str]) -> str:
    """The part of a growing text that is no half of a character and no beginning of a stop."""
    text = text.rstrip(INCOMPLETE_CHARACTER)
    begun = [
        length
        for stop in stops
        for length in range(1, min(len(stop), len(text) + 1))
        if text.endswith(stop[:length])
    ]
    return text[: len(text) - max(begun, default=0)]
