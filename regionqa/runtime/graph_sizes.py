"""How much memory an ONNX graph takes when it runs, read off the graph without running it.

Weights are counted as the numbers they are. Values in between are counted while they are needed:
each from the node that makes it to the last that reads it. Sides that are free count as one image
with one region; what only the run decides counts as nothing.
"""

from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from regionqa.errors import BundleError
from regionqa.runtime.float16 import graph_without_weights

if TYPE_CHECKING:
    from onnx import ModelProto


FREE_SIDE = 1000
"""Pixels taken for a side of an image that may vary."""


@dataclass(frozen=True)
class GraphSizes:
    """Numbers, not bytes: their width is a matter of precision."""

    weights: int
    values: int
    """The most that there is at one time between the weights."""

    def __add__(self, other: "GraphSizes") -> "GraphSizes":
        """Of two graphs that both stay loaded."""
        return GraphSizes(self.weights + other.weights, self.values + other.values)


def graph_sizes(path: Path) -> GraphSizes:
    """Sizes of an ONNX file; BundleError where it is none."""
    import onnx

    try:
        model = onnx.load(path, load_external_data=False)
        weights = sum(prod(weight.dims) for weight in model.graph.initializer)
        return GraphSizes(weights, most_at_once(model))
    except Exception as error:  # onnx's and protobuf's errors share no public base class
        reason = " ".join(str(error).split())
        raise BundleError(f"{path}: its size cannot be read: {reason}") from error


def most_at_once(model: "ModelProto") -> int:
    """The most numbers that a run over one image and one region holds at one time."""
    fix_sides(model)
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


def fix_sides(model: "ModelProto") -> None:
    """One image, one region, and for free sides of images a common size."""
    for value in model.graph.input:
        for axis, side in enumerate(value.type.tensor_type.shape.dim):
            if not side.HasField("dim_value"):
                side.dim_value = FREE_SIDE if axis > 1 else 1
    for value in model.graph.output:
        value.type.tensor_type.ClearField("shape")


def value_counts(model: "ModelProto") -> dict[str, int]:
    """Numbers in every value that a node makes from others than weights, as far as is known."""
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
