"""Answers questions about regions of images.

    import regionqa

    engine = regionqa.load("starter")
    print(engine.ask("cat.jpg", "what is this?", boxes=[(10, 20, 200, 300)]).text)

Importing the package is quick: the heavy libraries are imported by `load`.
"""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from regionqa.engine import Engine

__version__ = "0.2.0"
__all__ = ["__version__", "load"]


def load(
    model: str | Path = "starter",
    *,
    device: str = "auto",
    batch_size: int = 16,
    dtype: str = "auto",
    quantize: str | None = None,
) -> "Engine":
    """An engine that answers with a model.

    model: the name of a model that ships with the package, the folder of a bundle, or OWNER/NAME,
        a repository of the Hub that holds one.
    device: "auto", "cpu" or "cuda"; "cuda" raises DeviceError where CUDA cannot be used.
    batch_size: questions decoded together.
    dtype: "auto", "float32", "float16" or "bfloat16". "auto" is float32 for small models, and for
        large ones what their weights are stored in (docs/guide/precision.md).
    quantize: "8bit" or "4bit" keeps the language model in fewer bits; on CUDA, with the extra
        `quantize`.
    Raises BundleError when there is no such model, or its folder is not sound; DownloadError when
    it cannot be fetched.
    """
    from regionqa.bundles.store import find_bundle
    from regionqa.engine import Engine

    bundle = find_bundle(model)
    return Engine.load(bundle, device=device, batch_size=batch_size, dtype=dtype, quantize=quantize)
