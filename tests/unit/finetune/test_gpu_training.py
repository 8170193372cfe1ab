"""Training on a CUDA device; run with -m gpu where there is one."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from helpers.tiny_models import log_of
from regionqa.bundles.store import Bundle

if TYPE_CHECKING:
    from conftest import Command

Tiny = Callable[[str], Bundle]
STEPS = 6


@pytest.mark.gpu
@pytest.mark.parametrize("row", ["levels", "pixels", "coordinates"])
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-3), ("bf16", 0.2)])
def test_gpu_losses_equal_cpu(
    regionqa: "Command",
    tiny: Tiny,
    things: Path,
    tmp_path: Path,
    row: str,
    precision: str,
    tolerance: float,
) -> None:
    losses = {}
    for device, computes in (("cpu", "fp32"), ("cuda", precision)):
        out = tmp_path / device
        ran = regionqa(
            "finetune", "--data", things, "--model", tiny(row).root, "--out", out, "--steps", STEPS,
            "--batch", 4, "--device", device, "--precision", computes,
        )  # fmt: skip
        assert ran.status == 0, ran.err
        losses[device] = [entry["loss"] for entry in log_of(out)]
    assert losses["cuda"] == pytest.approx(losses["cpu"], rel=tolerance)


@pytest.mark.gpu
def test_gpu_out_of_memory_suggests_options(
    regionqa: "Command", tiny: Tiny, things: Path, tmp_path: Path
) -> None:
    import torch

    torch.cuda.set_per_process_memory_fraction(1e-5)
    try:
        ran = regionqa(
            "finetune", "--data", things, "--model", tiny("levels").root, "--out",
            tmp_path / "mine", "--steps", 1, "--device", "cuda",
        )  # fmt: skip
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert ran.status == 1
    assert "lower --batch" in ran.err
