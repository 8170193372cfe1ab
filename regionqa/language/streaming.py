"""Streaming: parts of an answer that can be shown while the rest is still being generated."""

from collections.abc import Callable, Sequence

from regionqa.bundles.prompt_rules import PromptRules
from regionqa.language.prompts import may_be_lead, read_answer

INCOMPLETE_CHARACTER = "\ufffd"
"""Tokenizers decode the first bytes of an unfinished character to this."""


class AnswerStream:
    """Emits one answer in parts; joined, the parts are the answer."""

    def __init__(self, emit: Callable[[str], None]) -> None:
        self._emit = emit
        self._sent = ""

    def update(self, text: str) -> None:
        """Emit what is new in a stable part of the answer."""
        if text.startswith(self._sent):
            self._send_rest(text)

    def finish(self, answer: str) -> None:
        """Emit the rest of the complete answer."""
        if not answer.startswith(self._sent):  # the tokenizer rewrote text that it had decoded
            self._emit("\n")
            self._sent = ""
        self._send_rest(answer)

    def _send_rest(self, text: str) -> None:
        if rest := text[len(self._sent) :]:
            self._emit(rest)
            self._sent = text


def stable_answer(rules: PromptRules, text: str, stops: Sequence[str]) -> str:
    """The part of an answer that further tokens cannot change.

    Args:
        rules: Prompt rules; the words they put around an answer are removed.
        text: The decoded tokens so far.
        stops: Texts that end an answer.
    """
    stable = stable_text(text, stops)
    return "" if may_be_lead(rules, stable) else read_answer(rules, stable)


def stable_text(text: str, stops: Sequence[str]) -> str:
    """The text without an unfinished character or the beginning of a stop text at its end."""
    text = text.rstrip(INCOMPLETE_CHARACTER)
    begun = [
        length
        for stop in stops
        for length in range(1, min(len(stop), len(text) + 1))
        if text.endswith(stop[:length])
    ]
    return text[: len(text) - max(begun, default=0)]
