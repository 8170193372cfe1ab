"""Answer questions about regions of images.

    import regionqa

    engine = regionqa.load("starter")
    print(engine.ask("cat.jpg", "what is this?", boxes=[(10, 20, 200, 300)]).text)

Importing the package is quick: names are imported when they are first used.
"""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from regionqa.detection.detector import ObjectDetector, load_detector
    from regionqa.engine import Engine
    from regionqa.options import RuntimeOptions
    from regionqa.regions import Region
    from regionqa.requests import Answer, Request
    from regionqa.segmentation.marks import PointSegmenter, load_segmenter

__version__ = "0.2.0"
__all__ = [
    "Answer",
    "Engine",
    "ObjectDetector",
    "PointSegmenter",
    "Region",
    "Request",
    "__version__",
    "load",
    "load_detector",
    "load_segmenter",
]

_MODULES = {
    "Answer": "regionqa.requests",
    "Engine": "regionqa.engine",
    "ObjectDetector": "regionqa.detection.detector",
    "PointSegmenter": "regionqa.segmentation.marks",
    "Region": "regionqa.regions",
    "Request": "regionqa.requests",
    "load_detector": "regionqa.detection.detector",
    "load_segmenter": "regionqa.segmentation.marks",
}

if not TYPE_CHECKING:  # a type checker would take any name for defined

    def __getattr__(name: str) -> object:
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(_MODULES[name]), name)


def load(
    model: str | Path = "starter",
    options: "RuntimeOptions | None" = None,
    **values: Any,
) -> "Engine":
    """Load a model.

    Args:
        model: The name of a model that ships with the package, a model's folder, or OWNER/NAME on
            the Hub.
        options: How the model is run.
        values: Fields of `RuntimeOptions` (regionqa/options.py); they replace those of `options`.
            `device`: "auto", "cpu" or "cuda". `batch_size`: number of questions decoded together.
            `dtype`: "auto", "float32", "float16" or "bfloat16". `quantize`: "8bit" or "4bit"; CUDA
            only, with the extra `quantize`. docs/guide/precision.md describes the last two.

    Raises:
        UsageError: An option is unknown or out of range.
        BundleError: There is no such model, or its files are not sound.
        DeviceError: `device` is "cuda" and CUDA cannot be used.
        DownloadError: The model is on the Hub and cannot be fetched.
    """
    from regionqa.engine import Engine

    return Engine.load(model, options, **values)
