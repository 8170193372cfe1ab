"""Every error a user can meet, as one line that says what, where and what to do next.

It knows nothing of the rest. Errors that belong to one item (an image, a box, a question) are
`ItemError`s: a run reports them and goes on. All others end the run.
"""


class RegionQAError(Exception):
    """Base of all errors raised on purpose; `exit_status` is the shell's."""

    exit_status = 1


class UsageError(RegionQAError, ValueError):
    """The command or call was put together wrongly."""

    exit_status = 2


class DeviceError(RegionQAError, RuntimeError):
    """The device that was asked for cannot be used."""


class BundleError(RegionQAError, ValueError):
    """A model's folder or card is missing, incomplete or contradicts itself."""


class DownloadError(RegionQAError, OSError):
    """Files of the Hub cannot be fetched, and are not on this machine."""


class PublishError(RegionQAError, OSError):
    """A model cannot be put on the Hub."""


class BoxFileError(RegionQAError, ValueError):
    """A file of boxes cannot be read."""


class OutputError(RegionQAError, OSError):
    """Answers cannot be written where they were asked to go."""


class ExportError(RegionQAError, RuntimeError):
    """An ONNX graph differs from its torch definition, so nothing was written."""


class DataError(RegionQAError, ValueError):
    """Training data is missing or malformed."""


class TrainingError(RegionQAError, RuntimeError):
    """A training run cannot go on; what it had saved is kept."""


class ItemError(RegionQAError, ValueError):
    """One item cannot be answered; the others can."""


class ImageError(ItemError):
    """An image is missing, broken or too large."""


class BoxError(ItemError):
    """A box is malformed or lies outside its image."""


class QuestionError(ItemError):
    """A question names a region that was not given, or does not fit the model."""
