"""Rewrite an ONNX graph to float16 arithmetic for everything that depends on the image.

Inputs, outputs and values computed from boxes or weights alone stay float32: in float16 a
coordinate would be off by up to an eighth of a pixel. RoIAlign and InstanceNormalization stay
float32 too.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from regionqa.errors import BundleError, message_of

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto


SINGLE = frozenset({"RoiAlign", "InstanceNormalization", "Range", "CumSum"})
"""Operators that stay float32: their kernels lack float16, or sum too many values for it."""
FIRST_INPUT_ONLY = frozenset({"Resize"})
"""Operators whose inputs after the first are float32 by definition (scales)."""
LAYOUT = frozenset({"Transpose", "Reshape", "Squeeze", "Unsqueeze", "Identity"})
"""Operators that only rearrange values; applied to weights, they are repeated in float16."""
LARGEST = float(np.finfo(np.float16).max)
PLACEHOLDER = 64
"""Weights with more values than this are replaced by inputs for type inference."""


def float16_graph(path: Path) -> bytes:
    """Read an ONNX file and rewrite it to float16; the serialized graph.

    Raises:
        BundleError: The file is not a graph, or one that cannot be rewritten.
    """
    import onnx

    try:
        model = onnx.load(path)
        rewrite_float16(model)
        return bytes(model.SerializeToString())
    except Exception as error:  # onnx's and protobuf's errors share no public base class
        reason = message_of(error)
        raise BundleError(
            f"{path}: cannot be computed in half precision: {reason}; use --dtype float32"
        ) from error


def rewrite_float16(model: "ModelProto") -> None:
    """Rewrite a graph in place; ValueError if it contains functions or branches."""
    if model.functions or any(a.HasField("g") for n in model.graph.node for a in n.attribute):
        raise ValueError("it has functions, branches or loops")
    Float16Rewriter(model).rewrite()


@dataclass
class Float16Rewriter:
    """Rewrites one graph."""

    model: "ModelProto"
    floats: set[str] = field(init=False)
    """Names of the values that were float32."""
    half_of: dict[str, str] = field(default_factory=dict)
    """Names of float16 versions by the name of the float32 value."""
    nodes: "list[NodeProto]" = field(default_factory=list)
    """Nodes of the new graph."""

    def __post_init__(self) -> None:
        self.floats = float_values(self.model)
        self._weights = {weight.name: weight for weight in self.model.graph.initializer}
        self._moved: dict[
            str, NodeProto
        ] = {}  # by output: layout nodes that do not depend on the image

    def rewrite(self) -> None:
        """Replace the nodes, and drop unused weights."""
        graph = self.model.graph
        # names of values that depend on the image
        dependent = {v.name for v in graph.input if v.name not in ("boxes", "image_index")}
        dependent -= self._weights.keys()  # old files list weights among the inputs
        for node in graph.node:
            self._note_stored(node)
            depends = any(name in dependent and name in self.floats for name in node.input)
            if depends:
                dependent.update(node.output)
            if depends and node.op_type not in SINGLE:
                self._add_half(node)
                continue
            self.nodes.append(node)  # all its inputs have kept their float32 names
            if not depends and node.op_type in LAYOUT:
                self._moved[node.output[0]] = node
        self._redirect_shapes()
        del graph.node[:]
        graph.node.extend(self.nodes)
        del graph.value_info[:]  # their types are no longer these
        remove_unused(self.model)

    def _note_stored(self, node: "NodeProto") -> None:
        """Register a weight that is stored in float16 and cast to float32 in the graph."""
        from onnx import TensorProto

        stored = self._weights.get(node.input[0]) if node.op_type == "Cast" else None
        if stored is not None and stored.data_type == TensorProto.FLOAT16:
            self.half_of[node.output[0]] = stored.name

    def _redirect_shapes(self) -> None:
        """Let Shape nodes read a weight's float16 version, so that the float32 one is unused."""
        stored = {weight.name for weight in self.model.graph.initializer}
        for node in self.nodes:
            if node.op_type == "Shape" and self.half_of.get(node.input[0]) in stored:
                node.input[0] = self.half_of[node.input[0]]

    def _add_half(self, node: "NodeProto") -> None:
        """Add a node in float16, and casts to the float32 results, which may be unused."""
        from onnx import TensorProto, helper

        for place, name in enumerate(node.input):
            if name in self.floats and not (place and node.op_type in FIRST_INPUT_ONLY):
                node.input[place] = self._half(name)
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.i == TensorProto.FLOAT:
                attribute.i = TensorProto.FLOAT16
        self.nodes.append(node)
        for place, name in enumerate(node.output):
            if name in self.floats:
                self.half_of[name] = node.output[place] = f"{name}.half"
                back = helper.make_node("Cast", [f"{name}.half"], [name], to=TensorProto.FLOAT)
                self.nodes.append(back)

    def _half(self, name: str) -> str:
        """Return the name of the float16 version of a value; adds it if there is none."""
        import onnx
        from onnx import TensorProto, helper, numpy_helper

        if name not in self.half_of:
            half = self.half_of[name] = f"{name}.half"
            if name in self._weights:
                values = numpy_helper.to_array(self._weights[name])
                self.model.graph.initializer.append(
                    numpy_helper.from_array(to_float16(values), half)
                )
            elif name in self._moved:
                copy = onnx.NodeProto()
                copy.CopyFrom(self._moved[name])
                copy.name, copy.input[0], copy.output[0] = "", self._half(copy.input[0]), half
                self.nodes.append(copy)
            else:
                self.nodes.append(helper.make_node("Cast", [name], [half], to=TensorProto.FLOAT16))
        return self.half_of[name]


def to_float16(
    values: "np.ndarray[tuple[int, ...], np.dtype[np.float32]]",
) -> "np.ndarray[tuple[int, ...], np.dtype[np.float16]]":
    """Convert float32 to float16; finite values stay finite, on which masks rely."""
    finite = np.isfinite(values)
    return np.where(finite, values.clip(-LARGEST, LARGEST), values).astype(np.float16)


def float_values(model: "ModelProto") -> set[str]:
    """Find all float32 values of a graph, by type inference without the weights' contents."""
    import onnx
    from onnx import TensorProto

    typed = onnx.shape_inference.infer_shapes(graph_without_weights(model)).graph
    known: Iterable[onnx.ValueInfoProto] = (*typed.input, *typed.output, *typed.value_info)
    types = {value.name: value.type.tensor_type.elem_type for value in known}
    types |= {weight.name: weight.data_type for weight in typed.initializer}
    unknown = [out for node in model.graph.node for out in node.output if out not in ("", *types)]
    if unknown:
        raise ValueError(f"the type of {unknown[0]} is unknown")
    return {name for name, kind in types.items() if kind == TensorProto.FLOAT}


def graph_without_weights(model: "ModelProto") -> "ModelProto":
    """Return the graph with its larger weights replaced by inputs of the same type and shape."""
    from onnx import helper

    graph = model.graph
    inputs, small = list(graph.input), []
    for weight in graph.initializer:
        if np.prod(weight.dims) > PLACEHOLDER:
            inputs.append(helper.make_tensor_value_info(weight.name, weight.data_type, weight.dims))
        else:
            small.append(weight)
    made = helper.make_graph(list(graph.node), "outline", inputs, list(graph.output), small)
    return helper.make_model(made, opset_imports=model.opset_import, ir_version=model.ir_version)


def remove_unused(model: "ModelProto") -> None:
    """Remove nodes and weights whose results are not used."""
    graph = model.graph
    read = {value.name for value in graph.output}
    kept: list[NodeProto] = []
    for node in reversed(graph.node):
        if read.intersection(node.output):
            read.update(node.input)
            kept.append(node)
    del graph.node[:]
    graph.node.extend(reversed(kept))
    for place in reversed(range(len(graph.initializer))):  # in place: they may be large
        if graph.initializer[place].name not in read:
            del graph.initializer[place]
