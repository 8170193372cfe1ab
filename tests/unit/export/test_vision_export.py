"""Vision encoders in ONNX Runtime against torch, and exports that are refused."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from helpers.vlm.checkpoints import WRITERS
from helpers.vlm.exports import ExportedCheckpoint, exported_checkpoint, use_home
from helpers.vlm.photos import noise
from regionqa.backends.vlm.backend import VlmBackend
from regionqa.backends.vlm.graphs import OnnxTower, vision_modules
from regionqa.engine import Engine
from regionqa.errors import BundleError, ExportError
from regionqa.export.vlm import vision
from regionqa.options import VisionRuntime
from regionqa.regions import Box, Region
from regionqa.requests import Request
from regionqa.runtime.devices import Device
from regionqa.vlm.cards import card_of_checkpoint, family_tables
from regionqa.vlm.vision_exports import export_folder, open_export

SIZES = ((200, 120), (90, 170), (600, 500), (40, 40))
EXPORTED = [family for family in WRITERS if family_tables()[family].get("onnx_vision", True)]


def load(checkpoint: ExportedCheckpoint, runtime: str, dtype: str = "float32") -> VlmBackend:
    backend = Engine.load(
        checkpoint.folder, device="cpu", vision_runtime=VisionRuntime(runtime), dtype=dtype
    ).backend
    assert isinstance(backend, VlmBackend)
    return backend


def check_features(checkpoint: ExportedCheckpoint) -> None:
    """Compare the features of both runtimes for images of several sizes."""
    torch_backend, onnx_backend = load(checkpoint, "torch"), load(checkpoint, "onnx")
    assert isinstance(onnx_backend.tower, OnnxTower)
    assert (torch_backend.tower.runtime, onnx_backend.tower.runtime) == ("torch", "onnx cpu")
    for number, size in enumerate(SIZES):
        inputs = torch_backend.processor.prepare(noise(*size, number).load()).inputs
        expected, found = (each.tower.encode(inputs) for each in (torch_backend, onnx_backend))
        assert list(found) == list(expected)
        difference, tokens = vision.compare(expected, found)
        assert tokens > 0 and difference <= 1e-4, size


def answers(checkpoint: ExportedCheckpoint, runtime: str) -> list[str | None]:
    regions = (Region(Box(10, 20, 60, 70)), Region(Box(50, 60, 70, 80)))
    card = card_of_checkpoint(checkpoint.folder, "tiny")
    questions = [task.name for task in card.chat.tasks if task.about_region] or ["what is this?"]
    requests = [
        Request(str(size), questions[0], regions[:1], noise(*size, number))
        for number, size in enumerate(SIZES[:3])
    ]
    engine = Engine(load(checkpoint, runtime))
    found = list(engine.answer(requests, max_new_tokens=6, guess=True))
    assert [answer.error for answer in found] == [None] * len(found)
    return [answer.text for answer in found]


def test_features_equal_those_of_torch(
    exported_qwen: ExportedCheckpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_home(monkeypatch, exported_qwen.home)
    check_features(exported_qwen)


def test_weights_of_the_exported_encoder_are_dropped(
    exported_qwen: ExportedCheckpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_home(monkeypatch, exported_qwen.home)
    model = load(exported_qwen, "onnx", "bfloat16").language.model
    encoder = vision_modules(model)["encoder"]
    assert sum(weight.numel() for weight in encoder.parameters()) == 0
    assert {weight.dtype for weight in encoder.parameters()} == {torch.bfloat16}
    assert sum(weight.numel() for weight in model.get_decoder().parameters()) > 0
    inputs = load(exported_qwen, "torch").processor.prepare(noise(90, 90, 1).load()).inputs
    features = load(exported_qwen, "onnx", "bfloat16").tower.encode(inputs)
    assert {each.dtype for each in features["pooler_output"]} == {torch.bfloat16}


def test_half_precision_is_close_and_overflow_is_an_error(
    exported_qwen: ExportedCheckpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_home(monkeypatch, exported_qwen.home)
    inputs = load(exported_qwen, "torch").processor.prepare(noise(90, 90, 1).load()).inputs
    expected = load(exported_qwen, "torch").tower.encode(inputs)
    export = open_export(exported_qwen.folder)
    half = OnnxTower(load(exported_qwen, "torch").language.model, export, Device.cpu, half=True)
    assert half.runtime == "onnx cpu float16"
    difference, _ = vision.compare(expected, half.encode(inputs))
    assert 1e-6 < difference < 2e-2
    large = {**inputs, "pixel_values": inputs["pixel_values"] * 1e6}
    with pytest.raises(BundleError, match="too large for float16; use --vision-runtime torch"):
        half.encode(large)


@pytest.mark.slow
@pytest.mark.parametrize("family", EXPORTED)
def test_every_family_is_exported_and_answers_as_in_torch(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = exported_checkpoint(family, tmp_path)
    assert checkpoint.status == 0, checkpoint.err
    use_home(monkeypatch, checkpoint.home)
    check_features(checkpoint)
    assert answers(checkpoint, "onnx") == answers(checkpoint, "torch")


# -- exports that are refused ----------------------------------------------------------------------


@pytest.fixture
def replayed(
    exported_qwen: ExportedCheckpoint, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[[], None]:
    """Let exports copy the graph that was made once, instead of tracing, into another HF_HOME."""
    use_home(monkeypatch, exported_qwen.home)
    made = open_export(exported_qwen.folder)
    use_home(monkeypatch, tmp_path / "home")

    def write(call: object, path: Path) -> dict[str, object]:
        for file in made.folder.glob(f"{path.name}*"):
            shutil.copy(file, path.parent)
        return dict(made.manifest.parts[0].constants)

    monkeypatch.setattr(vision, "write_module", write)

    def damage() -> None:
        def write_damaged(call: object, path: Path) -> dict[str, object]:
            constants = write(call, path)
            data = path.with_name(f"{path.name}.data")
            content = bytearray(data.read_bytes())
            content[1000:1400] = bytes(400)
            data.write_bytes(content)
            return constants

        monkeypatch.setattr(vision, "write_module", write_damaged)

    return damage


def test_an_export_that_differs_from_torch_is_not_kept(
    replayed: Callable[[], None], exported_qwen: ExportedCheckpoint
) -> None:
    replayed()
    card = card_of_checkpoint(exported_qwen.folder, "tiny")
    with pytest.raises(ExportError, match=r"differs from torch by .* it is not kept"):
        vision.export_vision_encoder(card, exported_qwen.folder)
    assert list(export_folder(exported_qwen.folder).parent.iterdir()) == []


def test_what_a_killed_export_left_does_no_harm(
    replayed: Callable[[], None], exported_qwen: ExportedCheckpoint
) -> None:
    target = export_folder(exported_qwen.folder)
    left = target.with_name(f".{target.name}.part")
    left.mkdir(parents=True)
    (left / "encoder.onnx").write_text("half a graph")
    card = card_of_checkpoint(exported_qwen.folder, "tiny")
    export, new = vision.export_vision_encoder(card, exported_qwen.folder)
    assert new and export.manifest.difference <= 1e-4
    assert [path.name for path in target.parent.iterdir()] == [target.name]
    assert vision.export_vision_encoder(card, exported_qwen.folder)[1] is False


def test_another_checkpoint_has_another_export(
    exported_qwen: ExportedCheckpoint, tmp_path: Path
) -> None:
    changed = tmp_path / "changed"
    shutil.copytree(exported_qwen.folder, changed)
    assert export_folder(changed) == export_folder(exported_qwen.folder)
    weights = changed / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-3] ^= 1
    weights.write_bytes(content)
    assert export_folder(changed) != export_folder(exported_qwen.folder)
