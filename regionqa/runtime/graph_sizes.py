"""Memory of an ONNX graph at run time, computed from the graph without running it.

An activation counts from the node that computes it to the last node that reads it. Dynamic axes
count as one image with one region; values whose shape is known only at run time are not counted.
"""

from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from regionqa.errors import BundleError, message_of
from regionqa.runtime.float16 import graph_without_weights

if TYPE_CHECKING:
    from onnx import ModelProto


DYNAMIC_SIDE = 1000
"""Pixels assumed for a dynamic side of an image."""


@dataclass(frozen=True)
class GraphSizes:
    """Counts of numbers; their width in bytes depends on the precision."""

    weights: int
    values: int
    """Peak of the activations."""

    def __add__(self, other: "GraphSizes") -> "GraphSizes":
        """Return the sizes of two graphs that are both loaded."""
        return GraphSizes(self.weights + other.weights, self.values + other.values)


def graph_sizes(path: Path) -> GraphSizes:
    """Read the sizes of an ONNX file; BundleError if it is not one."""
    import onnx

    try:
        model = onnx.load(path, load_external_data=False)
        weights = sum(prod(weight.dims) for weight in model.graph.initializer)
        return GraphSizes(weights, peak_activations(model))
    except Exception as error:  # onnx's and protobuf's errors share no public base class
        reason = message_of(error)
        raise BundleError(f"{path}: its size cannot be read: {reason}") from error


def peak_activations(model: "ModelProto") -> int:
    """Return the peak number of activations in a run with one image and one region."""
    fix_dynamic_axes(model)
    counts = value_counts(model)
    last: dict[str, int] = {}
    for place, node in enumerate(model.graph.node):
        last |= dict.fromkeys(node.input, place)
    kept = {value.name for value in model.graph.output}
    alive = most = 0
    for place, node in enumerate(model.graph.node):
        alive += sum(counts.get(name, 0) for name in node.output)
        most = max(most, alive)
        done = {name for name in (*node.input, *node.output) if last.get(name, place) == place}
        alive -= sum(counts.get(name, 0) for name in done - kept)
    return most


def fix_dynamic_axes(model: "ModelProto") -> None:
    """Set dynamic axes to one image and one region, and dynamic sides to `DYNAMIC_SIDE`."""
    for value in model.graph.input:
        for axis, side in enumerate(value.type.tensor_type.shape.dim):
            if not side.HasField("dim_value"):
                side.dim_value = DYNAMIC_SIDE if axis > 1 else 1
    for value in model.graph.output:
        value.type.tensor_type.ClearField("shape")


def value_counts(model: "ModelProto") -> dict[str, int]:
    """Count the values of activations of known shape, by name, except those of weights alone."""
    import onnx

    made = {name for node in model.graph.node if node.op_type != "Constant" for name in node.output}
    weights = {weight.name for weight in model.graph.initializer}
    moved = {
        node.output[0]
        for node in model.graph.node
        if node.input and all(name in weights for name in node.input)
    }  # casts of weights stored in half precision, which are folded away
    typed = onnx.shape_inference.infer_shapes(graph_without_weights(model), data_prop=True).graph
    counts = {}
    for value in (*typed.value_info, *typed.output):
        sides = [side.dim_value for side in value.type.tensor_type.shape.dim]
        if value.name in made - moved and all(sides):
            counts[value.name] = prod(sides)
    return counts
