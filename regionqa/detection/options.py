"""Options of detectors, and which detector a run uses."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from regionqa.errors import UsageError
from regionqa.flags import Options, Section, option
from regionqa.options import BoxOptions, OutputOptions

AUTO = "auto"
"""Value of --boxes for the default detector; `auto:MODEL` names another."""


class DetectionFormat(StrEnum):
    """Formats of detected boxes; those from `coco` on are `regionqa.boxes.files.FORMATS`."""

    text = "text"
    jsonl = "jsonl"
    """A line per image, which `--boxes` and `ask -` read."""
    coco = "coco"
    labelme = "labelme"
    via = "via"
    labelstudio = "labelstudio"
    createml = "createml"
    huggingface = "huggingface"
    cvat = "cvat"
    voc = "voc"
    csv = "csv"
    yolo = "yolo"
    plain = "plain"


FOLDERS = (DetectionFormat.labelme, DetectionFormat.voc, DetectionFormat.yolo)
"""Formats with a file per image."""


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class DetectionOptions(Options):
    """What a detector looks for, and which of its boxes are kept."""

    find: tuple[str, ...] = option(
        (),
        "What to find, in words, with an open-vocabulary detector; repeat for several.",
        metavar="TEXT",
    )
    min_score: float | None = option(
        None,
        "Score that a detected box must exceed. Default: the detector's.",
        needs=("boxes", "find"),
        min=0,
        max=1,
    )
    max_boxes: int | None = option(
        None,
        "Maximum number of detected boxes per image; those of the highest score are kept.",
        needs=("boxes", "find"),
        min=1,
    )
    only: tuple[str, ...] = option(
        (),
        "Classes of the detector to keep, separated by commas.",
        metavar="A,B,...",
        needs=("boxes",),
        excludes=("find",),
    )
    nms: float | None = option(
        None,
        "Intersection over union above which the box of lower score is left out, of two of one "
        "class; 1 keeps all. Default: the detector's.",
        needs=("boxes", "find"),
        min=0,
        max=1,
    )

    @property
    def phrases(self) -> tuple[str, ...]:
        """What to find, each phrase once, without white space around it."""
        return tuple(dict.fromkeys(filter(None, (" ".join(text.split()) for text in self.find))))

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes to keep, each once; empty: all."""
        parts = (part.strip() for text in self.only for part in text.split(","))
        return tuple(dict.fromkeys(filter(None, parts)))

    def check(self) -> None:
        """Refuse phrases and classes without any text."""
        if self.find and not self.phrases:
            raise UsageError('--find: is empty; say what to find, like --find "red cup"')
        if self.only and not self.classes:
            raise UsageError("--only: names no class; give some, like --only person,cat")

    def given(self) -> list[str]:
        """Return the flags of the options that are not as they are by default."""
        default = DetectionOptions()
        names = ("find", "min_score", "max_boxes", "only", "nms")
        given = [name for name in names if getattr(self, name) != getattr(default, name)]
        return [f"--{name.replace('_', '-')}" for name in given]


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class DetectionOutputOptions(OutputOptions):
    """What is written of detected boxes, where and how."""

    format: DetectionFormat = option(  # type: ignore[assignment]
        DetectionFormat.text,
        "Output format: lines of text, JSON lines, or a box file; yolo, voc and labelme write a "
        "folder, which --out names.",
        "--format",
        "-f",
        section=Section.result,
    )

    def check(self) -> None:
        """Refuse to resume what cannot be resumed, and a folder that has no name."""
        if self.resume and self.overwrite:
            raise UsageError("--resume and --overwrite: contradict each other; drop one")
        if self.retry_errors and not self.resume:
            raise UsageError("--retry-errors: applies to --resume only; add --resume")
        if self.resume and self.out is None:
            raise UsageError("--resume: needs the file to continue; add --out FILE")
        if self.resume and self.format is not DetectionFormat.jsonl:
            raise UsageError(
                f"--resume: {self.format} cannot be resumed; use --format jsonl, which --boxes "
                "reads too"
            )
        if self.is_folder and self.out is None:
            raise UsageError(f"--format {self.format}: writes a file per image; add --out FOLDER")

    @property
    def is_folder(self) -> bool:
        """Whether the format has a file per image."""
        return self.format in FOLDERS


def detector_of(boxes: BoxOptions, detection: DetectionOptions) -> str | None:
    """Return the name of the detector that proposes a run's boxes; empty: the default one.

    Args:
        boxes: Where boxes come from. `--find` alone asks for a detector too.
        detection: What is detected.

    Returns:
        None if boxes are given, read from a file, or none are wanted.

    Raises:
        UsageError: Options contradict each other, or there is a file of the name.
    """
    text = "" if boxes.boxes is None else str(boxes.boxes)
    word, _, name = text.partition(":")
    if word != AUTO and (boxes.box or text or not detection.find):
        if given := detection.given():
            raise UsageError(
                f"{given[0]}: has no effect on boxes that are given; use --boxes auto, or drop it"
            )
        return None
    if text and os.path.lexists(text):
        raise UsageError(
            f"--boxes {text}: asks for a detector, but there is a file of this name; to read it, "
            "give its absolute path"
        )
    for flag, used in (
        ("--box-format", boxes.box_format),
        ("--box-units", boxes.box_units),
        ("--scale-boxes", boxes.scale_boxes),
        ("--masks", boxes.masks),
    ):
        if used:
            raise UsageError(f"{flag}: has no effect on detected boxes; drop it")
    return name


def listed(names: Sequence[str], most: int = 8) -> str:
    """Return names for a message, the first few of many."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more:,} others" if more > 0 else "")
