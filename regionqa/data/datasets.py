"""Public datasets converted to training records, a unit at a time.

for part in convert_dataset(Path("train.jsonl"), DatasetOptions(kind="vcr"), images):
    ...
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from regionqa.boxes.entries import Convention
from regionqa.boxes.files import BoxFile, read_boxes
from regionqa.boxes.remarks import LeftOut
from regionqa.boxes.sizes import SizeCheck
from regionqa.data.boxes import Part, image_folders
from regionqa.data.containers.embedded import SavedImages
from regionqa.data.conversations import text_problems
from regionqa.data.english import counted
from regionqa.data.images import ImageFinder
from regionqa.data.records import Problem, Record
from regionqa.data.sources import wording
from regionqa.data.sources.coco import CocoReader
from regionqa.data.sources.dialogues import LlavaReader, OspreyReader, PvitReader
from regionqa.data.sources.flickr30k import Flickr30kReader
from regionqa.data.sources.gqa import GqaReader
from regionqa.data.sources.huggingface import HuggingFaceReader
from regionqa.data.sources.kinds import KINDS, DatasetKind, DatasetOptions
from regionqa.data.sources.masks import DamReader, GarReader
from regionqa.data.sources.placement import DatasetReader, RecordRules
from regionqa.data.sources.refcoco import RefcocoReader
from regionqa.data.sources.vcr import VcrReader
from regionqa.data.sources.visual7w import TellingReader, Visual7wReader
from regionqa.data.sources.visual_genome import VisualGenomeReader
from regionqa.data.streams.shards import WHOLE, Shard
from regionqa.errors import BoxError, BoxFileError, DataError, ImageError, UsageError, brief
from regionqa.files import is_folder

SKIP = "or leave bad records out with --skip-bad"
NO_CONVENTION = Convention()
SHOWN = 3
"""Problems that are listed where bad records are left out."""


@dataclass
class DatasetConversion:
    """A dataset that is being converted, and counts of what was read so far."""

    path: Path
    reader: DatasetReader
    sizes: SizeCheck
    kind: str = ""
    """Of the records."""
    remarks: tuple[str, ...] = ()
    """What reading box files left out or adjusted."""
    shard: Shard = WHOLE
    """The part of the units to convert."""
    records: int = 0
    regions: int = 0
    clipped: int = 0
    """Regions that reached outside their image."""
    bad: int = 0
    """Records that cannot be used."""
    problems: list[Problem] = field(default_factory=list)
    """The first of them."""
    left_out: dict[str, tuple[int, str]] = field(default_factory=dict)
    """Number and first place by reason."""

    def parts(self) -> Iterator[Part]:
        """Iterate over the parts of this shard, in the dataset's order.

        Raises:
            DataError: If a file of the dataset cannot be read as a whole.
        """
        for unit in self.shard.take(self.reader.units()):
            try:
                parts = list(self.reader.parts(unit))
            except (BoxError, BoxFileError, DataError, ImageError) as error:
                yield Problem(unit.where, str(error))
                continue
            for part in parts:
                yield from _checked(part) if isinstance(part, Record) else [part]

    def usable(self, *, skip_bad: bool) -> Iterator[Record]:
        """Iterate over the usable records, and count everything.

        Raises:
            DataError: With the first problem, unless bad records may be left out; or if there are
                no usable records at all.
        """
        for part in self.parts():
            if isinstance(part, Record):
                self.records += 1
                self.regions += len(part.regions)
                self.clipped += part.clipped
                yield replace(part, kind=self.kind)
            elif isinstance(part, LeftOut):
                count, first = self.left_out.get(part.reason, (0, part.where))
                self.left_out[part.reason] = (count + 1, first)
            elif not skip_bad:
                raise DataError(f"{part}; {SKIP}")
            else:
                self.bad += 1
                self.problems += [part] if len(self.problems) < SHOWN else []
        if not self.records and self.shard.whole:
            why = "; ".join([*map(str, self.problems[:1]), *self.summary()[:1]])
            raise DataError(f"{self.path}: gave no records{f': {why}' if why else ''}")

    def summary(self) -> list[str]:
        """Return a line per reason for what was left out or changed, with count and first place."""
        lines = []
        for reason, (count, first) in self.left_out.items():
            place = f"the first at {first}" if count > 1 else f"at {first}"
            lines.append(brief(f"{reason} left out: {count:,}, {place}"))
        if self.clipped:
            lines.append(f"{counted(self.clipped, 'region')} clipped to the image")
        return lines


def open_dataset(
    path: Path,
    options: DatasetOptions,
    images: Path | None = None,
    *,
    convention: Convention = NO_CONVENTION,
    scale_boxes: bool = False,
) -> DatasetConversion:
    """Open a dataset to convert it.

    Args:
        path: Its file, or folder.
        options: Its kind, and how records are made.
        images: Folder of its images; None: where published layouts have them.
        convention: Meaning of the numbers of plain JSON and CSV, for `coco`.
        scale_boxes: Whether boxes are scaled from the sizes that the dataset states.

    Raises:
        UsageError: If the options lack a kind, or name a folder of images that is none.
        DataError: If its files cannot be read.
    """
    kind = options.kind
    if kind is None:
        raise UsageError("--kind: is missing; name the dataset")
    saved = SavedImages(options.save_images)
    folders = _folders(path, images, KINDS[kind].folders)
    if saved.folder is not None:
        folders = [saved.folder]
    given = convention.format or convention.units
    if given and kind not in (DatasetKind.coco, DatasetKind.huggingface):
        raise UsageError(
            f"--box-format and --box-units: --kind {kind} defines itself what its numbers mean; "
            "drop them"
        )
    sizes = SizeCheck(path, scale_boxes)
    rules = RecordRules(
        ImageFinder(path, folders, deep=True), sizes, options.seed, options.max_regions
    )
    boxes = None
    if kind is DatasetKind.coco:
        boxes = _boxes(path, convention)
    elif kind is DatasetKind.llava_instruct and options.annotations is not None:
        boxes = _boxes(options.annotations, convention)
    if KINDS[kind].holds_images:
        reader = _reader_of_images(path, kind, rules, saved, convention)
    else:
        reader = _reader(path, kind, options, rules, boxes)
    remarks = boxes.remarks if boxes else ()
    return DatasetConversion(path, reader, sizes, str(kind), remarks, options.part)


def _reader(
    path: Path,
    kind: DatasetKind,
    options: DatasetOptions,
    rules: RecordRules,
    boxes: BoxFile | None,
) -> DatasetReader:
    split, second = options.split or "train", options.annotations
    match kind:
        case DatasetKind.coco if boxes is not None:
            return CocoReader(boxes, rules)
        case DatasetKind.visual_genome | DatasetKind.visual_genome_objects:
            objects = kind is DatasetKind.visual_genome_objects
            return VisualGenomeReader(path, rules, objects=objects)
        case DatasetKind.flickr30k_entities:
            return Flickr30kReader(path, rules, split=split)
        case DatasetKind.gqa if second is not None:
            return GqaReader(path, rules, scene_graphs=second)
        case DatasetKind.vcr | DatasetKind.vcr_named:
            return VcrReader(path, rules, only_named=kind is DatasetKind.vcr_named)
        case DatasetKind.visual7w:
            return Visual7wReader(path, rules, split=split)
        case DatasetKind.visual7w_telling:
            return TellingReader(path, rules, answers=second, split=split)
        case DatasetKind.llava_instruct:
            return LlavaReader(path, rules, detections=boxes)
        case DatasetKind.osprey:
            return OspreyReader(path, rules)
        case DatasetKind.pvit:
            return PvitReader(path, rules)
    question = {
        DatasetKind.refcoco: wording.REFER,
        DatasetKind.refcoco_plus: wording.REFER_WITHOUT_PLACE,
        DatasetKind.refcocog: "",
        DatasetKind.ref_l4: "",
    }[kind]
    words = 3 if question else 1
    return RefcocoReader(
        path, rules, instances=second, split=split, question=question, min_words=words
    )


def _reader_of_images(
    path: Path, kind: DatasetKind, rules: RecordRules, saved: SavedImages, convention: Convention
) -> DatasetReader:
    """Make the reader of a kind that may hold its images."""
    match kind:
        case DatasetKind.dam:
            return DamReader(path, rules, saved)
        case DatasetKind.gar:
            return GarReader(path, rules, saved)
    return HuggingFaceReader(path, rules, saved, convention)


def _boxes(path: Path, convention: Convention) -> BoxFile:
    try:
        return read_boxes(path, format=convention.format, units=convention.units)
    except BoxFileError as error:
        raise DataError(str(error)) from None


def _folders(path: Path, images: Path | None, published: Sequence[str]) -> list[Path]:
    """The folders in which images are looked for."""
    if images is not None and not is_folder(images):
        raise UsageError(f"--images: there is no folder {images}; name that of the images")
    tops: Iterable[Path] = image_folders(path, images)
    return [
        folder
        for top in tops
        for folder in (top, *(top / name for name in published))
        if folder == top or is_folder(folder)
    ]


def _checked(record: Record) -> Iterator[Part]:
    """Return a record, or the problems of its texts."""
    texts = [text for turn in record.turns for text in (turn.question, turn.answer)]
    wrong = [Problem(record.where, text) for text in text_problems(texts, len(record.regions))]
    if wrong:
        yield from wrong
    else:
        yield record
