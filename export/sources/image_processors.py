"""Convert a checkpoint's image processor to a card's [image] table.

Settings without an exact equivalent are refused, or approximated with a note.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import AutoImageProcessor

from regionqa.errors import BundleError, message_of
from regionqa.images.preprocessing import Fit
from regionqa.images.resampling import Resample

PIXEL = 1 / 255
FILES = ("preprocessor_config.json", "processor_config.json")
RESAMPLE: Mapping[int, Resample] = {2: Resample.bilinear, 3: Resample.bicubic}
"""Resampling by Pillow's numbers, which the files use."""


def image_table(
    folder: Path, side: int, fit: Fit | None = None
) -> tuple[dict[str, Any], list[str]]:
    """Build the [image] table for a tower that reads squares of `side` pixels.

    Args:
        folder: The checkpoint.
        side: Side of the tower's input, in pixels.
        fit: How an image becomes a square; None: as the processor does.

    Returns:
        The table, and notes about approximations.

    Raises:
        BundleError: The processor's settings are not supported, or give another size.
    """
    processor = read_processor(folder)
    try:
        return _table_of(folder, processor, side, fit)
    except BundleError:
        raise
    except (TypeError, ValueError, AttributeError, OverflowError) as error:
        # the file may hold values of any kind, and transformers checks few of them
        raise BundleError(f"{folder}: its image processor has a wrong value: {error}") from error


def _table_of(
    folder: Path, processor: Any, side: int, fit: Fit | None
) -> tuple[dict[str, Any], list[str]]:
    if not processor.do_rescale or abs(processor.rescale_factor - PIXEL) > PIXEL / 1000:
        raise BundleError(f"{folder}: its image processor does not divide pixels by 255")
    notes = []
    if fit is None:
        fit, found = own_fit(folder, processor)
        if found != side:
            raise BundleError(
                f"{folder}: its image processor gives {found} pixels, its vision tower reads {side}"
            )
        if fit is Fit.pad:
            notes.append("images are padded at the right and below; its own way is all around")
    resample = RESAMPLE.get(int(processor.resample))
    if resample is None:
        notes.append("images are resized bicubically; its own way is another")
    plain = not processor.do_normalize
    table = {
        "size": side,
        "fit": str(fit),
        "resample": str(resample or Resample.bicubic),
        "mean": [0.0] * 3 if plain else [float(value) for value in processor.image_mean],
        "std": [1.0] * 3 if plain else [float(value) for value in processor.image_std],
    }
    return table, notes


def read_processor(folder: Path) -> Any:
    """Load the image processor in a folder; BundleError if there is none."""
    if not any((folder / name).is_file() for name in FILES):
        raise BundleError(f"{folder}: has no image processor; {FILES[0]} is missing")
    try:
        return AutoImageProcessor.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # many kinds
        reason = message_of(error)
        raise BundleError(f"{folder}: its image processor cannot be read: {reason}") from error


def own_fit(folder: Path, processor: Any) -> tuple[Fit, int]:
    """Return the processor's own fit, and the side of its squares in pixels."""
    size, crop = processor.size or {}, getattr(processor, "crop_size", None) or {}
    sides = {int(size[name]) for name in ("height", "width") if size.get(name)}
    short = int(size.get("shortest_edge") or 0)
    cropped = {int(crop[name]) for name in ("height", "width") if crop.get(name)}
    cuts = getattr(processor, "do_center_crop", False)
    if processor.do_resize and getattr(processor, "do_pad", False) and short:
        return Fit.pad, short
    if processor.do_resize and len(sides) == 1 and (not cuts or cropped == sides):
        return Fit.squash, sides.pop()
    if processor.do_resize and cuts and short and cropped == {short}:
        return Fit.crop, short
    raise BundleError(
        f"{folder}: its image processor (size {dict(size)}, crop {dict(crop) if cuts else None}) "
        "makes squares in an unknown way; use --fit squash, pad or crop"
    )
