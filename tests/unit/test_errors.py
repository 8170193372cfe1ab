"""What all errors have in common."""

import pytest

from regionqa.errors import LONGEST, BoxError, OutputError, brief


@pytest.mark.parametrize("kind", [BoxError, OutputError])
def test_a_message_is_one_line_of_limited_length(kind: type[Exception]) -> None:
    """Names and values in it come from files; the place and the advice stay."""
    text = str(kind(f"a.json:\n{'x' * 9000}\r; write a number"))
    assert text.startswith("a.json: xxx") and text.endswith("xxx ; write a number")
    assert len(text) == LONGEST


def test_a_message_of_usual_length_is_kept() -> None:
    for text in ("a.png: no such file", "y" * LONGEST, ""):
        assert brief(text) == text
