"""Write ONNX files one weight at a time, without a copy of all weights in memory.

A file is a sequence of messages, one per weight and then the graph without weights. Protocol
Buffers merges concatenated messages, so every reader of ONNX reads one graph.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

Array = npt.NDArray[np.generic]
GRAPH, NODE, INITIALIZER, RAW_DATA = 7, 1, 5, 9
"""Field numbers of ModelProto.graph, GraphProto.node and .initializer, TensorProto.raw_data."""
SMALLEST = 256
"""Smaller weights are not stored as float16, which would need a Cast node."""
CHUNK = 1 << 24
"""Values compared at a time."""


def save_model(
    model: onnx.ModelProto, weights: Mapping[str, npt.NDArray[np.generic]], path: Path
) -> None:
    """Write a graph with its weights; those that float16 represents exactly become float16.

    A float16 weight gets a Cast to float32, which ONNX Runtime folds when it opens the file: half
    the disk space at no cost in time. Nothing is rounded here. Weights are rounded once before the
    export (`round_to_float16`), so that torch and ONNX compute with the same values.

    Args:
        model: A graph without initializers.
        weights: The initializers by name.
        path: The file.
    """
    checked = onnx.ModelProto()
    checked.CopyFrom(model)
    for name, values in weights.items():  # declared for the checker
        kind = helper.np_dtype_to_tensor_dtype(values.dtype)
        checked.graph.input.append(helper.make_tensor_value_info(name, kind, values.shape))
    onnx.checker.check_model(checked)
    with path.open("wb") as file:
        for name, values in weights.items():
            half = exact_float16(values)
            if half is None:
                _write_weight(file, name, values, b"")
                continue
            cast = helper.make_node("Cast", [f"{name}.half"], [name], to=TensorProto.FLOAT)
            node = cast.SerializeToString()
            _write_weight(file, f"{name}.half", half, _start(NODE, len(node)) + node)
        file.write(model.SerializeToString())


def read_model(path: Path) -> tuple[onnx.ModelProto, dict[str, Array]]:
    """Read a file of `save_model`: the graph without initializers, and these by name.

    Weights stored as float16 are float32 again, without their Cast nodes.
    """
    model = onnx.load(path)
    weights: dict[str, Array] = {
        value.name: numpy_helper.to_array(value) for value in model.graph.initializer
    }
    nodes = []
    for node in model.graph.node:
        half = f"{node.output[0]}.half"
        if node.op_type == "Cast" and list(node.input) == [half] and half in weights:
            weights[node.output[0]] = weights.pop(half).astype(np.float32)
        else:
            nodes.append(node)
    del model.graph.initializer[:], model.graph.node[:]
    model.graph.node.extend(nodes)
    return model, weights


def exact_float16(values: Array) -> npt.NDArray[np.float16] | None:
    """Return the values as float16; None if that changes a value, or if there are few of them."""
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
    """Write a ModelProto with one initializer and serialized nodes."""
    kind = helper.np_dtype_to_tensor_dtype(values.dtype)
    head = TensorProto(name=name, dims=values.shape, data_type=kind).SerializeToString()
    head += _start(RAW_DATA, values.nbytes)
    size = len(head) + values.nbytes
    start = _start(INITIALIZER, size)
    file.write(_start(GRAPH, len(nodes) + len(start) + size) + nodes + start + head)
    file.write(np.ascontiguousarray(values).reshape(-1).view(np.uint8).data)


def _start(field: int, size: int) -> bytes:
    """Return the tag and length prefix of a length-delimited field."""
    number, found = size, bytearray([field << 3 | 2])
    while number > 0x7F:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    found.append(number)
    return bytes(found)
