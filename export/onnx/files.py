"""Graphs to files, one weight at a time: no copy of all weights is ever made.

A file is the graph without its weights, and before it every weight as a message of its own.
Protocol Buffers joins messages that follow each other, so whatever reads ONNX reads one graph. It
does not know what the graphs compute.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper

Array = npt.NDArray[np.generic]
GRAPH, NODE, INITIALIZER, RAW_DATA = 7, 1, 5, 9
"""Numbers of fields: ModelProto.graph, GraphProto.node and .initializer, TensorProto.raw_data."""
SMALLEST = 256
"""Fewer weights than this are not worth a cast."""
CHUNK = 1 << 24
"""Numbers that are compared at a time."""


def save_model(
    model: onnx.ModelProto, weights: Mapping[str, npt.NDArray[np.generic]], path: Path
) -> None:
    """Write a graph and the weights it lacks; those that float16 holds exactly become float16.

    A halved weight gets a cast back to float32, which ONNX Runtime folds away when it opens the
    file: it costs half the disk space, and no time. Nothing is rounded here: a bundle's weights are
    rounded once, before export (`halve`), so torch and ONNX compute with the same numbers.
    """
    checked = onnx.ModelProto()
    checked.CopyFrom(model)
    for name, values in weights.items():  # declared, so that the checker knows them
        kind = helper.np_dtype_to_tensor_dtype(values.dtype)
        checked.graph.input.append(helper.make_tensor_value_info(name, kind, values.shape))
    onnx.checker.check_model(checked)
    with path.open("wb") as file:
        for name, values in weights.items():
            half = halved(values)
            if half is None:
                _write_weight(file, name, values, b"")
                continue
            cast = helper.make_node("Cast", [f"{name}.half"], [name], to=TensorProto.FLOAT)
            node = cast.SerializeToString()
            _write_weight(file, f"{name}.half", half, _start(NODE, len(node)) + node)
        file.write(model.SerializeToString())


def halved(values: Array) -> npt.NDArray[np.float16] | None:
    """The values as float16; None where that would change one, or where it is not worth it."""
    if values.dtype != np.float32 or values.size < SMALLEST:
        return None
    given = np.ascontiguousarray(values).reshape(-1)
    half = np.empty(given.shape, np.float16)
    for start in range(0, len(given), CHUNK):
        part = given[start : start + CHUNK]
        with np.errstate(over="ignore"):
            half[start : start + CHUNK] = part
        if not np.array_equal(half[start : start + CHUNK].astype(np.float32), part):
            return None
    return half.reshape(values.shape)


def _write_weight(file: IO[bytes], name: str, values: Array, nodes: bytes) -> None:
    """A ModelProto of a graph with one initializer, and before it nodes as they are serialised."""
    kind = helper.np_dtype_to_tensor_dtype(values.dtype)
    head = TensorProto(name=name, dims=values.shape, data_type=kind).SerializeToString()
    head += _start(RAW_DATA, values.nbytes)
    size = len(head) + values.nbytes
    start = _start(INITIALIZER, size)
    file.write(_start(GRAPH, len(nodes) + len(start) + size) + nodes + start + head)
    file.write(np.ascontiguousarray(values).reshape(-1).view(np.uint8).data)


def _start(field: int, size: int) -> bytes:
    """What stands before the bytes of a field: its number, that it has a length, and the length."""
    number, found = size, bytearray([field << 3 | 2])
    while number > 0x7F:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    found.append(number)
    return bytes(found)
