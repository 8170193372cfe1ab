"""Vision encoders in ONNX Runtime, in the places of torch's modules.

transformers' `get_image_features` prepares a family's inputs, calls the encoder and the projector,
and arranges what they return. It stays as it is: only the two modules compute by graphs. Whatever
depends on the image's size and has no ONNX operator is computed before the graph, by transformers.
"""

import inspect
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.dlpack import from_dlpack

from regionqa.backends.vlm.features import only_features, place, pooled
from regionqa.backends.vlm.networks import image_errors
from regionqa.errors import BundleError
from regionqa.runtime.devices import Device, open_session
from regionqa.vlm.vision_exports import GraphPart, VisionExport

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

PROJECTORS = ("multi_modal_projector", "connector", "embed_vision")
"""Attributes of models that hold a projector outside the vision encoder."""


def vision_modules(model: Any) -> dict[str, nn.Module]:
    """Return the modules that compute an image's features: `encoder`, and maybe `projector`."""
    modules: dict[str, nn.Module] = {"encoder": model.get_encoder(modality="image")}
    for name in PROJECTORS:
        if (module := getattr(model.base_model, name, None)) is not None:
            modules["projector"] = module
    return modules


def named_arguments(
    signature: inspect.Signature, arguments: Sequence[Any], named: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the arguments of a call by name."""
    bound = signature.bind(*arguments, **named)
    found: dict[str, Any] = {}
    for name, value in bound.arguments.items():
        if signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD:
            found |= value
        else:
            found[name] = value
    return found


class GraphForward:
    """The `forward` of a module, computed by a session."""

    def __init__(
        self,
        module: nn.Module,
        session: "InferenceSession",
        part: GraphPart,
    ) -> None:
        """Prepare the calls.

        Args:
            module: The module; only its settings and signature are used.
            session: Its graph.
            part: What the graph is.
        """
        self._module, self._session, self._part = module, session, part
        self._signature = inspect.signature(module.forward)
        self._inputs = {value.name: value.type for value in session.get_inputs()}
        self._outputs = [value.name for value in session.get_outputs()]

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        """Compute the module's output; its tensors are float32."""
        from transformers.exporters.utils import precompute_export_inputs

        given = named_arguments(self._signature, arguments, named)
        precompute_export_inputs(self._module, given)
        self._check(given)
        feeds = {name: self._feed(name, given[name]) for name in self._inputs}
        with image_errors(self._part.name):
            tensors = dict(zip(self._outputs, self._run(feeds), strict=True))
        return from_flat(tensors, self._part.lengths)

    def _check(self, given: Mapping[str, Any]) -> None:
        """BundleError if the call is not one that the graph was made for."""
        missing = [name for name in self._inputs if not isinstance(given.get(name), Tensor)]
        changed = [name for name, value in self._part.constants.items() if given.get(name) != value]
        if missing or changed:
            raise BundleError(
                f"{self._part.name}: the graph was made for another call of the module "
                f"({', '.join(missing + changed)}); use --vision-runtime torch"
            )

    def _feed(self, name: str, value: Tensor) -> Tensor:
        if not value.is_floating_point():
            return value.cpu().contiguous()  # sizes and indices are read on the CPU
        return value.float().contiguous()

    def _run(self, feeds: Mapping[str, Tensor]) -> list[Tensor]:
        """Run the graph on tensors where they are, and return tensors on the session's device."""
        binding = self._session.io_binding()
        on_cuda = self._session.get_providers()[0] == "CUDAExecutionProvider"
        kind = "cuda" if on_cuda else "cpu"
        held = []  # until the run has ended
        for name, value in feeds.items():
            where = value.to(kind) if value.is_floating_point() else value
            held.append(where)
            element = np.dtype(str(where.dtype).removeprefix("torch.")).type
            place_of = (where.device.type, where.device.index or 0)
            binding.bind_input(name, *place_of, element, list(where.shape), where.data_ptr())
        for name in self._outputs:
            binding.bind_output(name, kind)
        if on_cuda:
            torch.cuda.current_stream().synchronize()  # ONNX Runtime has a stream of its own
        self._session.run_with_iobinding(binding)
        if on_cuda:
            binding.synchronize_outputs()
        return [from_dlpack(value) for value in binding.get_outputs()]


def from_flat(tensors: Mapping[str, Tensor], lengths: Mapping[str, int]) -> Any:
    """Make a module's output of a graph's outputs, which are named by their paths in it.

    Args:
        tensors: By `output` for a single tensor, else by `field` or `field.number`.
        lengths: Number of places in fields with numbers; those without a tensor are None.
    """
    from transformers.modeling_outputs import BaseModelOutputWithPooling

    if list(tensors) == ["output"]:
        return tensors["output"]
    output = BaseModelOutputWithPooling()
    for path, tensor in tensors.items():
        name, _, number = path.partition(".")
        if number:
            if name not in output:
                output[name] = [None] * lengths[name]
            output[name][int(number)] = tensor
        else:
            output[name] = tensor
    return output


class OnnxTower:
    """The vision encoder in ONNX Runtime."""

    def __init__(
        self, model: Any, export: VisionExport, device: Device, *, half: bool = False
    ) -> None:
        """Open the sessions and put them into the places of the model's modules.

        The modules' weights are dropped from memory.

        Args:
            model: A loaded checkpoint.
            export: Its exported vision encoder.
            device: Where the sessions run.
            half: Compute in float16.

        Raises:
            DeviceError: ONNX Runtime does not run there.
            BundleError: A graph cannot be opened.
        """
        modules = vision_modules(model)
        sessions = {
            part.name: open_session(export.graph(part), device, half=half)
            for part in export.manifest.parts
        }
        for part in export.manifest.parts:
            module = modules[part.name]
            module.forward = GraphForward(module, sessions[part.name], part)
        drop_weights(model, [modules[part.name] for part in export.manifest.parts])
        self._encode = model.base_model.get_image_features
        self._known = inspect.signature(self._encode).parameters
        self._model = model
        self._half = half
        self.runtime = f"onnx {device}{' float16' if half else ''}"

    @torch.inference_mode()
    def encode(self, inputs: Mapping[str, Tensor]) -> Any:
        """See `VisionTower.encode`.

        Raises:
            ImageError: The graph cannot take an image of this size.
            BundleError: A value overflows float16.
        """
        device, dtype = self._model.device, self._model.dtype
        known = {
            name: place(value, device, dtype) for name, value in inputs.items()
            if name in self._known
        }  # fmt: skip
        features = only_features(self._encode(**known, return_dict=True), device, dtype)
        if self._half and not all(part.isfinite().all() for part in pooled(features)):
            raise BundleError(
                "the vision encoder's values are too large for float16; use --vision-runtime torch"
            )
        return features


def drop_weights(model: nn.Module, modules: Sequence[nn.Module]) -> None:
    """Free the weights of modules whose `forward` does not use them; dtype and device are kept.

    Weights that other modules of the model share stay.
    """
    own = {id(weight): weight for module in modules for weight in module.parameters()}
    inside = {id(each) for module in modules for each in module.modules()}
    for module in model.modules():
        if id(module) not in inside:
            for weight in module.parameters(recurse=False):
                own.pop(id(weight), None)
    for weight in own.values():
        weight.data = torch.empty(0, dtype=weight.dtype, device=weight.device)
