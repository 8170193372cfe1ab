"""Streaming: emit the parts of an answer that further tokens cannot change."""

from collections.abc import Callable, Sequence

from regionqa.bundles.prompt_rules import PromptRules
from regionqa.language.prompts import may_be_lead, read_answer

INCOMPLETE_CHARACTER = "\ufffd"
"""What tokenizers decode an incomplete character to."""


class AnswerStream:
    """Emits one answer in parts; joined, the parts are the answer."""

    def __init__(self, emit: Callable[[str], None]) -> None:
        """Create a stream that passes the parts to `emit`."""
        self._emit = emit
        self._sent = ""

    def update(self, text: str) -> None:
        """Emit the new text of a longer stable part; see `stable_answer`."""
        if text.startswith(self._sent):
            self._send_rest(text)

    def finish(self, answer: str) -> None:
        """Emit the rest of the complete answer."""
        if not answer.startswith(self._sent):  # decoding changed text that was already emitted
            self._emit("\n")
            self._sent = ""
        self._send_rest(answer)

    def _send_rest(self, text: str) -> None:
        if rest := text[len(self._sent) :]:
            self._emit(rest)
            self._sent = text


def stable_answer(rules: PromptRules, text: str, stops: Sequence[str]) -> str:
    """Return the part of an answer that further tokens cannot change.

    Args:
        rules: Prompt rules; the text they put around an answer is removed.
        text: The decoded tokens so far.
        stops: Texts that end an answer.
    """
    stable = stable_text(text, stops)
    return "" if may_be_lead(rules, stable) else read_answer(rules, stable)


def stable_text(text: str, stops: Sequence[str]) -> str:
    """Cut an incomplete character or the beginning of a stop text off the end of a text."""
    text = text.rstrip(INCOMPLETE_CHARACTER)
    begun = [
        length
        for stop in stops
        for length in range(1, min(len(stop), len(text) + 1))
        if text.endswith(stop[:length])
    ]
    return text[: len(text) - max(begun, default=0)]
