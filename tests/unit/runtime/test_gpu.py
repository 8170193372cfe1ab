"""Models of the published size on a GPU; run with -m gpu.

`-m gpu` runs it where there is one. What can be asked of a CPU too is asked of a small model there,
by the same functions, with the slow tests: test_float16.py and test_precision.py ask it of tiny
models in every run.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from helpers.backends import bundle_backend
from helpers.shaped_models import MIDDLE, SEVEN, SMALL, Shape, shaped_bundle
from regionqa.bundles.store import Bundle
from regionqa.engine import Engine
from regionqa.export.bundle import read_encoders
from regionqa.export.onnx.verify import region_case, relative_difference, rng_normal
from regionqa.images.reading import open_image
from regionqa.language.decoders import LlamaDecoder, TransformersDecoder
from regionqa.regions import Box, Region
from regionqa.requests import Answer, Request
from regionqa.runtime.devices import PROVIDERS, Device, operator_providers
from regionqa.runtime.encoders import RegionEncoder, VisionEncoder
from regionqa.runtime.memory import estimate, needs_of
from regionqa.runtime.precision import Dtype, Precision

Made = Callable[[Shape], Bundle]
GB = 10**9
on_gpu = (
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here"),
)
both = pytest.mark.parametrize(
    "device",
    [pytest.param("cpu", marks=pytest.mark.slow), pytest.param("cuda", marks=on_gpu)],
)
halves = pytest.mark.parametrize("dtype", ["float16", "bfloat16"])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Bundles by shape, each written once."""
    written: dict[Shape, Bundle] = {}

    def make(shape: Shape) -> Bundle:
        if shape not in written:
            written[shape] = shaped_bundle(shape, tmp_path_factory.mktemp("shaped"))
        return written[shape]

    return make


def questions(photos: Path) -> list[Request]:
    """Several about each image, of one region, of two and of none."""
    return [
        Request(image.name, question, tuple(Region(Box(*box)) for box in boxes), image)
        for image in map(open_image, sorted(photos.iterdir()))
        for question, boxes in (
            ("what is this?", [(5, 5, 90, 100)]),
            ("is <region1> left of <region2>?", [(5, 5, 90, 100), (40, 30, 140, 120)]),
            ("describe this picture.", []),
        )
    ]


def answers(engine: Engine, photos: Path) -> list[Answer]:
    """Answers of eight tokens; none may fail."""
    found = list(engine.answer(questions(photos)))
    assert [answer.error for answer in found] == [None] * len(found)
    return found


def language_bytes(engine: Engine) -> int:
    """Bytes of the language model's weights."""
    decoder = bundle_backend(engine).language._decoder
    if isinstance(decoder, LlamaDecoder):
        return sum(weight.nbytes for weight in decoder._weights.values())
    assert isinstance(decoder, TransformersDecoder)
    return int(decoder._model.get_memory_footprint())


def gpu_bytes() -> int:
    """Bytes of the GPU's memory in use."""
    free, total = torch.cuda.mem_get_info()
    return total - free


# -- the published size ----------------------------------------------------------------------------


def check_answers(bundle: Bundle, shape: Shape, device: str, dtype: str, photos: Path) -> Engine:
    """Check that a model of this shape answers, and holds its weights once."""
    engine = Engine.load(bundle, device=device, dtype=dtype, batch_size=1)
    assert str(engine.precision) == dtype
    assert bundle_backend(engine)._precision.half_encoders == (device == "cuda")
    found = answers(engine, photos)
    assert all(0 < answer.tokens <= 8 for answer in found)
    assert language_bytes(engine) == 2 * shape.language_weights
    return engine


@pytest.mark.slow
@halves
def test_reduced_model_answers_in_half_precision(made: Made, photos: Path, dtype: str) -> None:
    check_answers(made(SMALL), SMALL, "cpu", dtype, photos)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@halves
def test_published_size_answers_within_memory(made: Made, photos: Path, dtype: str) -> None:
    """Memory in use stays within 2 GB of the weights, for torch, ONNX Runtime and CUDA together."""
    bundle = made(SEVEN)
    torch.cuda.empty_cache()
    before = gpu_bytes()
    engine = check_answers(bundle, SEVEN, "cuda", dtype, photos)
    taken = gpu_bytes() - before
    needs = needs_of(bundle)
    weights = 2 * (SEVEN.language_weights + needs.encoders.weights)
    print(f"{dtype}: {taken / GB:.2f} GB taken, weights {weights / GB:.2f} GB")  # noqa: T201
    assert taken <= weights + 2 * GB
    estimated = estimate(needs, Device.cuda, Precision(Dtype(dtype), None, True)).total
    assert taken <= 1.2 * estimated
    del engine


def test_shapes_equal_the_paper() -> None:
    """6.74 billion weights, by LLaMA's paper (32,000 words; GPT4RoI adds six)."""
    assert pytest.approx(6.738e9, rel=1e-3) == SEVEN.language_weights


# -- what runs where -------------------------------------------------------------------------------


def check_placement(bundle: Bundle, device: Device, *, half: bool) -> None:
    """The operators that cost time ran on the device."""
    side = bundle.card.image.size
    own = {PROVIDERS[device]}
    vision = operator_providers(
        bundle.file("vision.onnx"), device, {"pixel_values": rng_normal((1, 3, side, side), 0)},
        half=half,
    )  # fmt: skip
    assert vision["Conv"] == own
    assert any(ran == own for name, ran in vision.items() if "MatMul" in name or name == "Gemm")
    _, region = read_encoders(bundle)
    assert region is not None
    cut = operator_providers(
        bundle.file("region.onnx"), device, region_case(region, 1, 3, seed=0), half=half
    )
    assert cut["RoiAlign"] == cut["Conv"] == own


@both
@pytest.mark.parametrize("half", [False, True])
def test_operators_run_on_the_device(made: Made, device: str, half: bool) -> None:
    check_placement(made(SMALL), Device(device), half=half)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_operators_of_the_published_size_run_on_cuda(made: Made) -> None:
    check_placement(made(SEVEN), Device.cuda, half=True)


# -- the same answers ------------------------------------------------------------------------------


@both
def test_float32_answers_equal_cpu(made: Made, photos: Path, device: str) -> None:
    """The CPU answers one at a time, the GPU in a batch."""
    bundle = made(SMALL)
    expected = answers(Engine.load(bundle, device="cpu", dtype="float32", batch_size=1), photos)
    found = answers(Engine.load(bundle, device=device, dtype="float32"), photos)
    assert [answer.text for answer in found] == [answer.text for answer in expected]
    assert len({answer.text for answer in expected}) > 1, "they depend on what is asked"


@both
def test_half_encoders_are_close_to_float32(made: Made, device: str) -> None:
    bundle = made(SMALL)
    boxes = np.array([[0.1, 0.2, 0.5, 0.9], [0.0, 0.0, 1.0, 1.0]], np.float32)
    found = []
    for where, half in ((Device.cpu, False), (Device(device), True)):
        [encoded] = VisionEncoder(bundle, where, half=half).encode(rng_normal((1, 3, 56, 56), 0))
        region = RegionEncoder(bundle, where, half=half).encode(encoded.levels, boxes)
        found.append((encoded.image_tokens, region))
    for single, halved in zip(*found, strict=True):
        assert relative_difference(single, halved) < 1e-2


# -- fewer bits ------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize(("way", "share"), [("8bit", 0.65), ("4bit", 0.45)])
def test_quantized_model_answers_and_is_smaller(
    made: Made, photos: Path, way: str, share: float
) -> None:
    pytest.importorskip("bitsandbytes")
    engine = Engine.load(made(MIDDLE), device="cuda", quantize=way)
    assert str(engine.precision).startswith(f"{way}+")
    answers(engine, photos)
    assert language_bytes(engine) < share * 2 * MIDDLE.language_weights
