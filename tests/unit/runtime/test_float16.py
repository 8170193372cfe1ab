"""Graphs rewritten to float16: precision, boxes in float32, errors.

The reference evaluator rounds after every operator, as a GPU does; ONNX Runtime's CPU kernels keep
more digits, and are asked only whether they run the graph.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from regionqa.bundles.store import Bundle
from regionqa.errors import BundleError
from regionqa.export.bundle import read_encoders
from regionqa.export.onnx.verify import region_case, relative_difference, rng_normal
from regionqa.runtime.devices import Device, open_session
from regionqa.runtime.encoders import RegionEncoder, VisionEncoder
from regionqa.runtime.float16 import float16_graph, rewrite_float16, to_float16

Tiny = Callable[[str], Bundle]
Floats = npt.NDArray[np.float32]
TOLERANCE = 5e-3
"""Of float16 encoders against float32, as a share of the largest value: ten bits, many layers."""


def of_type(model: onnx.ModelProto, operator: str) -> list[onnx.NodeProto]:
    return [node for node in model.graph.node if node.op_type == operator]


def types(model: onnx.ModelProto) -> dict[str, int]:
    """The element type of every value, by onnx's own inference."""
    typed = onnx.shape_inference.infer_shapes(model).graph
    known = (*typed.input, *typed.output, *typed.value_info)
    return {value.name: value.type.tensor_type.elem_type for value in known} | {
        weight.name: weight.data_type for weight in typed.initializer
    }


def differences(
    single: Path, cases: Sequence[Mapping[str, npt.NDArray[np.generic]]]
) -> list[float]:
    """Largest expected difference of float16 and float32 after rounding at every operator."""
    half = ReferenceEvaluator(onnx.load_from_string(float16_graph(single)))
    session = onnxruntime.InferenceSession(str(single), providers=["CPUExecutionProvider"])
    return [
        relative_difference(want, got)
        for case in cases
        for want, got in zip(session.run(None, dict(case)), half.run(None, dict(case)), strict=True)
    ]


@pytest.mark.parametrize("row", ["levels", "pixels"])
def test_vision_in_float16_is_close_to_float32(tiny: Tiny, row: str) -> None:
    case = {"pixel_values": rng_normal((2, 3, 64, 64), 0)}
    found = differences(tiny(row).file("vision.onnx"), [case])
    assert max(found) < TOLERANCE
    assert found[0] > 1e-6, "something was rounded"


@pytest.mark.parametrize("row", ["levels", "pixels"])
def test_regions_in_float16_are_close_to_float32(tiny: Tiny, row: str) -> None:
    bundle = tiny(row)
    _, region = read_encoders(bundle)
    assert region is not None
    cases = [region_case(region, 1, count, seed=count) for count in (1, 5)]
    assert max(differences(bundle.file("region.onnx"), cases)) < TOLERANCE


@pytest.mark.parametrize("row", ["levels", "pixels"])
def test_inputs_and_outputs_stay_float32(tiny: Tiny, row: str) -> None:
    for name in ("vision.onnx", "region.onnx"):
        path = tiny(row).file(name)
        model = onnx.load_from_string(float16_graph(path))
        onnx.checker.check_model(model, full_check=True)
        before = onnx.load(path)
        assert list(model.graph.input) == list(before.graph.input)
        assert list(model.graph.output) == list(before.graph.output)
        convolutions = of_type(model, "Conv")
        assert convolutions and {types(model)[node.output[0]] for node in convolutions} == {
            TensorProto.FLOAT16
        }
        assert half_size(model) <= path.stat().st_size * 1.01 + 2000, "weights are there once"


def half_size(model: onnx.ModelProto) -> int:
    return sum(len(weight.raw_data) for weight in model.graph.initializer)


@pytest.mark.parametrize("row", ["levels", "pixels"])
def test_boxes_are_never_rounded(tiny: Tiny, row: str) -> None:
    """From `boxes` to RoIAlign every value is float32, though it may pass through many nodes."""
    model = onnx.load_from_string(float16_graph(tiny(row).file("region.onnx")))
    kinds = types(model)
    maker = {output: node for node in model.graph.node for output in node.output}
    aligned = of_type(model, "RoiAlign")
    assert aligned
    found = set()
    for node in aligned:
        assert {kinds[node.input[0]], kinds[node.input[1]]} == {TensorProto.FLOAT}
        waiting = [node.input[1]]
        while waiting:
            name = waiting.pop()
            found.add(name)
            made_by = maker.get(name)
            if made_by is None or made_by.op_type == "Shape":  # the image's size, whole numbers
                continue
            assert kinds[name] != TensorProto.FLOAT16
            waiting += made_by.input
    assert "boxes" in found


def test_boxes_keep_float32_precision(tiny: Tiny) -> None:
    """A shift below float16's resolution must change the region tokens."""
    path = tiny("levels").file("region.onnx")
    half = onnxruntime.InferenceSession(float16_graph(path), providers=["CPUExecutionProvider"])
    levels = {v.name: rng_normal((1, *v.shape[1:]), 3) * 4 for v in half.get_inputs()[:-2]}
    box = np.array([[0.7, 0.7, 0.9001, 0.9001], [0.7, 0.7, 0.9, 0.9]], np.float32)
    assert np.float16(0.9001) == np.float16(0.9)
    index = np.zeros(2, np.int64)
    tokens = half.run(None, {**levels, "boxes": box, "image_index": index})[0]
    assert not np.array_equal(tokens[0], tokens[1])


def test_half_encoders_return_float32(tiny: Tiny) -> None:
    """With the classes that the engine uses."""
    bundle = tiny("levels")
    pixels = rng_normal((1, 3, 64, 64), 0)
    boxes = np.array([[0.1, 0.1, 0.6, 0.9]], np.float32)
    tokens = []
    for half in (False, True):
        [encoded] = VisionEncoder(bundle, Device.cpu, half=half).encode(pixels)
        region = RegionEncoder(bundle, Device.cpu, half=half).encode(encoded.levels, boxes)
        assert encoded.image_tokens.dtype == region.dtype == np.float32
        assert {level.dtype for level in encoded.levels} == {np.dtype(np.float32)}
        tokens.append((encoded.image_tokens, region))
    for single, halved in zip(*tokens, strict=True):
        assert relative_difference(single, halved) < TOLERANCE


# -- rewriting -------------------------------------------------------------------------------------


def graph(nodes: list[onnx.NodeProto], **weights: npt.NDArray[np.generic]) -> onnx.ModelProto:
    """A graph from `pixel_values` (2, 3) and `boxes` (2, 3) to `out`."""
    ports = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 3])
        for name in ("pixel_values", "boxes", "out")
    ]
    stored = [numpy_helper.from_array(values, name) for name, values in weights.items()]
    made = helper.make_graph(nodes, "test", ports[:2], ports[2:], stored)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)])


def ran(model: onnx.ModelProto, pixels: Floats, boxes: Floats) -> Floats:
    onnx.checker.check_model(model, full_check=True)
    out: Floats = ReferenceEvaluator(model).run(None, {"pixel_values": pixels, "boxes": boxes})[0]
    return out


def test_values_without_the_image_stay_float32() -> None:
    add = helper.make_node("Add", ["boxes", "one"], ["moved"])
    model = graph([add, helper.make_node("Add", ["moved", "pixel_values"], ["out"])],
                  one=np.ones(1, np.float32))  # fmt: skip
    rewrite_float16(model)
    kinds = types(model)
    assert kinds["moved"] == TensorProto.FLOAT and kinds["out.half"] == TensorProto.FLOAT16
    zero = np.zeros((2, 3), np.float32)
    assert ran(model, zero, zero + 1).tolist() == (zero + 2).tolist()


def test_shared_weight_is_kept_in_both_types() -> None:
    nodes = [
        helper.make_node("Mul", ["boxes", "w"], ["a"]),
        helper.make_node("Mul", ["pixel_values", "w"], ["b"]),
        helper.make_node("Add", ["a", "b"], ["out"]),
    ]
    model = graph(nodes, w=np.array([[3, 1, 2]], np.float32))
    rewrite_float16(model)
    kept = {weight.name: weight.data_type for weight in model.graph.initializer}
    assert kept == {"w": TensorProto.FLOAT, "w.half": TensorProto.FLOAT16}
    ones = np.ones((2, 3), np.float32)
    assert ran(model, ones, ones).tolist() == [[6, 2, 4]] * 2


def test_casts_of_image_values_become_float16() -> None:
    nodes = [
        helper.make_node("Cast", ["pixel_values"], ["same"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["same", "pixel_values"], ["out"]),
    ]
    model = graph(nodes)
    rewrite_float16(model)
    twos = np.full((2, 3), 2, np.float32)
    assert ran(model, twos, twos).tolist() == [[4, 4, 4]] * 2


def test_output_that_is_also_an_input_stays_float32() -> None:
    nodes = [helper.make_node("Relu", ["pixel_values"], ["out"]),
             helper.make_node("Neg", ["out"], ["unread"])]  # fmt: skip
    model = graph(nodes)
    rewrite_float16(model)
    assert not of_type(model, "Neg"), "nobody reads it"
    assert ran(model, -np.ones((2, 3), np.float32), np.ones((2, 3), np.float32)).max() == 0


def test_masks_stay_infinite_and_large_weights_finite() -> None:
    values = np.array([1e9, -np.finfo(np.float32).max, -np.inf, 0.1], np.float32)
    half = to_float16(values)
    assert half.dtype == np.float16
    assert half[:2].tolist() == [65504, -65504] and half[2] == -np.inf


@pytest.mark.parametrize("content", [b"not a graph", b""])
def test_invalid_graph_is_a_one_line_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "vision.onnx"
    path.write_bytes(content)
    with pytest.raises(BundleError) as caught:
        open_session(path, Device.cpu, half=True)
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


def test_branches_are_refused(tmp_path: Path) -> None:
    negative = helper.make_node("Neg", ["pixel_values"], ["n"])
    port = helper.make_tensor_value_info("n", TensorProto.FLOAT, [2, 3])
    body = helper.make_graph([negative], "b", [], [port])
    node = helper.make_node("If", ["yes"], ["out"], then_branch=body, else_branch=body)
    path = tmp_path / "vision.onnx"
    onnx.save(graph([node], yes=np.array(True)), path)
    with pytest.raises(BundleError, match=r"branches or loops; use --dtype float32"):
        float16_graph(path)
