"""A graph in half precision: what depends on the image is computed in float16, the rest is not.

Inputs and outputs stay float32, and so does all that is computed from boxes or weights alone: in
float16 a coordinate would be off by up to an eighth of a pixel. RoIAlign and InstanceNormalization
read the image and stay float32 too. It does not know what a graph computes, nor where it runs.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from regionqa.errors import BundleError

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto


SINGLE = frozenset({"RoiAlign", "InstanceNormalization", "Range", "CumSum"})
"""Operators that stay in float32: their kernels lack float16, or sum up too much for it."""
FIRST_INPUT_ONLY = frozenset({"Resize"})
"""Operators whose further inputs are float32 by definition (scales)."""
LAYOUT = frozenset({"Transpose", "Reshape", "Squeeze", "Unsqueeze", "Identity"})
"""Operators that only move numbers; those of weights are repeated on the float16 weight."""
LARGEST = float(np.finfo(np.float16).max)
PLACEHOLDER = 64
"""Weights above this many values are replaced by inputs while types are inferred."""


def float16_graph(path: Path) -> bytes:
    """The graph of an ONNX file, with float16 arithmetic, as the bytes of another ONNX file.

    Raises BundleError where the file is no graph, or one that cannot be rewritten.
    """
    import onnx

    try:
        model = onnx.load(path)
        rewrite_float16(model)
        return bytes(model.SerializeToString())
    except Exception as error:  # onnx's and protobuf's errors share no public base class
        reason = " ".join(str(error).split())
        raise BundleError(
            f"{path}: cannot be computed in half precision: {reason}; use --dtype float32"
        ) from error


def rewrite_float16(model: "ModelProto") -> None:
    """Rewrite a graph in place; ValueError where it holds functions or branches."""
    if model.functions or any(a.HasField("g") for n in model.graph.node for a in n.attribute):
        raise ValueError("it has functions, branches or loops")
    Float16Rewriter(model).rewrite()


@dataclass
class Float16Rewriter:
    """The state of one rewriting."""

    model: "ModelProto"
    floats: set[str] = field(init=False)
    """Values that were float32."""
    half_of: dict[str, str] = field(default_factory=dict)
    """The float16 name of values that have one."""
    nodes: "list[NodeProto]" = field(default_factory=list)
    """The new graph's."""

    def __post_init__(self) -> None:
        self.floats = float_values(self.model)
        self._weights = {weight.name: weight for weight in self.model.graph.initializer}
        self._moved: dict[str, NodeProto] = {}  # by result: layout nodes that see no image

    def rewrite(self) -> None:
        """Replace the nodes, and drop the weights that nothing reads any more."""
        graph = self.model.graph
        seen = {v.name for v in graph.input if v.name not in ("boxes", "image_index")}
        seen -= self._weights.keys()  # old files list weights among the inputs
        for node in graph.node:
            self._note_stored(node)
            sees = any(name in seen and name in self.floats for name in node.input)
            if sees:
                seen.update(node.output)
            if sees and node.op_type not in SINGLE:
                self._add_half(node)
                continue
            self.nodes.append(node)  # every value it reads has kept its float32 name
            if not sees and node.op_type in LAYOUT:
                self._moved[node.output[0]] = node
        self._measure_halves()
        del graph.node[:]
        graph.node.extend(self.nodes)
        del graph.value_info[:]  # their types are no longer these
        drop_unread(self.model)

    def _note_stored(self, node: "NodeProto") -> None:
        """A weight that is stored in half precision and cast when the graph loads."""
        from onnx import TensorProto

        stored = self._weights.get(node.input[0]) if node.op_type == "Cast" else None
        if stored is not None and stored.data_type == TensorProto.FLOAT16:
            self.half_of[node.output[0]] = stored.name

    def _measure_halves(self) -> None:
        """Let nodes that ask for a weight's shape ask its float16 twin, so that it can go."""
        stored = {weight.name for weight in self.model.graph.initializer}
        for node in self.nodes:
            if node.op_type == "Shape" and self.half_of.get(node.input[0]) in stored:
                node.input[0] = self.half_of[node.input[0]]

    def _add_half(self, node: "NodeProto") -> None:
        """A node in float16; its float32 results can still be had, by a cast that may be unread."""
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
        """The name of a float32 value's float16 twin, which is made where there is none."""
        import onnx
        from onnx import TensorProto, helper, numpy_helper

        if name not in self.half_of:
            half = self.half_of[name] = f"{name}.half"
            if name in self._weights:
                values = numpy_helper.to_array(self._weights[name])
                self.model.graph.initializer.append(numpy_helper.from_array(in_half(values), half))
            elif name in self._moved:
                twin = onnx.NodeProto()
                twin.CopyFrom(self._moved[name])
                twin.name, twin.input[0], twin.output[0] = "", self._half(twin.input[0]), half
                self.nodes.append(twin)
            else:
                self.nodes.append(helper.make_node("Cast", [name], [half], to=TensorProto.FLOAT16))
        return self.half_of[name]


def in_half(
    values: "np.ndarray[tuple[int, ...], np.dtype[np.float32]]",
) -> "np.ndarray[tuple[int, ...], np.dtype[np.float16]]":
    """float32 values as float16; finite ones stay finite, as masks rely on."""
    finite = np.isfinite(values)
    return np.where(finite, values.clip(-LARGEST, LARGEST), values).astype(np.float16)


def float_values(model: "ModelProto") -> set[str]:
    """Names of all float32 values of a graph; the weights' contents are not looked at."""
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
    """The graph with inputs in place of its larger weights: types and shapes follow as well."""
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


def drop_unread(model: "ModelProto") -> None:
    """Remove nodes and weights whose results nobody reads."""
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
