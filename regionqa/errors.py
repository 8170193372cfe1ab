"""Errors shown to users: one line that says what, where and what to do next.

An `ItemError` concerns one item (an image, a box, a question): a run reports it and continues. All
others end the run.
"""

import re

SOME_FAILED = 3
"""Exit status of a command in which some items failed."""
CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
"""Characters that end lines and columns early or steer a terminal, as names and answers may."""
LONGEST, BEGINNING = 600, 400
"""Characters of the longest message, and of its beginning where the middle is left out."""


def brief(text: str) -> str:
    """Render a message as one line, without its middle if that is very long.

    Messages quote names and values from files, of any length. The end says what to do.
    """
    if len(text) > LONGEST:
        end = len(text) - (LONGEST - BEGINNING - len(" ... "))
        text = f"{text[:BEGINNING]} ... {text[end:]}"
    return CONTROLS.sub(" ", text)


def message_of(error: BaseException) -> str:
    """Return an error's message on one line; the name of its class if it has none."""
    return " ".join(str(error).split()) or type(error).__name__


class RegionQAError(Exception):
    """Base class of the errors of this package; its text is one line that is not very long."""

    exit_status = 1
    """Exit status of a command that ends with this error."""

    def __str__(self) -> str:
        return brief(super().__str__())


class UsageError(RegionQAError, ValueError):
    """An option or argument is invalid."""

    exit_status = 2


class DeviceError(RegionQAError, RuntimeError):
    """The requested device cannot be used."""


class BundleError(RegionQAError, ValueError):
    """A model's folder or card is missing, incomplete or inconsistent."""


class DownloadError(RegionQAError, OSError):
    """Files of the Hub are not cached and cannot be fetched."""


class ServerError(RegionQAError, OSError):
    """A server cannot be reached, or does not say which model it has."""


class PublishError(RegionQAError, OSError):
    """A model cannot be uploaded to the Hub."""


class BoxFileError(RegionQAError, ValueError):
    """A box file cannot be read."""


class OutputError(RegionQAError, OSError):
    """Answers cannot be written."""


class ExportError(RegionQAError, RuntimeError):
    """An ONNX graph differs from its torch definition, so nothing was written."""


class DataError(RegionQAError, ValueError):
    """Training data is missing or malformed."""


class TrainingError(RegionQAError, RuntimeError):
    """A training run cannot continue; saved checkpoints are kept."""


class ItemError(RegionQAError, ValueError):
    """One item cannot be answered; the others can."""


class ImageError(ItemError):
    """An image is missing, broken or too large."""


class BoxError(ItemError):
    """A box is malformed or lies outside its image."""


class QuestionError(ItemError):
    """A question names a region that was not given, or does not fit the model."""


class LengthError(QuestionError):
    """A question and what was said before it leave no room for an answer."""
