"""Networks of detectors and segmenters: weights in torch, or a graph in ONNX Runtime."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from regionqa.backends.vlm.checkpoint import load_pretrained
from regionqa.errors import ImageError
from regionqa.runtime.devices import Device, open_session

if TYPE_CHECKING:
    from torch import Tensor


def load_network(kind: Any, folder: Path, **options: Any) -> Any:
    """Load a network in float32 and in evaluation mode.

    Args:
        kind: Its class in transformers.
        folder: The checkpoint.
        options: Further arguments of `from_pretrained`.

    Raises:
        BundleError: A file is missing or cannot be used, or a weight is missing.
    """
    import torch

    return load_pretrained(kind, folder, dtype=torch.float32, **options)


@contextmanager
def image_errors(what: str) -> Iterator[None]:
    """Raise ImageError where a graph cannot take an image of its size.

    Args:
        what: What was exported, for the message.
    """
    try:
        yield
    except RuntimeError as error:  # onnxruntime's own errors are of this class
        reason = str(error).splitlines()[0]
        raise ImageError(
            f"the exported {what} cannot take an image of this size ({reason}); use "
            "--vision-runtime torch"
        ) from error


class GraphNetwork:
    """A network, or a part of one, in ONNX Runtime."""

    def __init__(self, graph: Path, device: Device, what: str) -> None:
        """Open the session; BundleError or DeviceError if that fails.

        Args:
            graph: The file.
            device: Where it runs.
            what: What it is, for messages, such as `detector`.
        """
        self._session = open_session(graph, device)
        self._inputs = [value.name for value in self._session.get_inputs()]
        self._what = what

    def __call__(
        self, inputs: "Mapping[str, Tensor]", outputs: Sequence[str]
    ) -> "dict[str, Tensor]":
        """Compute outputs, on the CPU; ImageError if the graph cannot take an image of this size.

        Args:
            inputs: By name; those that the graph does not know are not used.
            outputs: Names of what is computed.
        """
        import torch

        feeds = {name: np.ascontiguousarray(inputs[name].numpy()) for name in self._inputs}
        with image_errors(self._what):
            found = self._session.run(list(outputs), feeds)
        return {name: torch.from_numpy(value) for name, value in zip(outputs, found, strict=True)}
