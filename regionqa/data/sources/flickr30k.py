"""Flickr30k Entities: captions whose phrases have boxes, in `Sentences` and `Annotations`."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from regionqa.boxes.entries import Size
from regionqa.boxes.fields import size_of
from regionqa.boxes.remarks import LeftOut
from regionqa.boxes.source import SourceFile
from regionqa.data.boxes import Part
from regionqa.data.containers.json_files import unreadable
from regionqa.data.sources import wording
from regionqa.data.sources.placement import (
    TOO_MANY,
    DatasetUnit,
    PlacedBoxes,
    RecordRules,
    listed,
    reference,
)
from regionqa.data.sources.refcoco import ALL_SPLITS
from regionqa.errors import BoxFileError, DataError
from regionqa.regions import WrittenBox

SENTENCES, ANNOTATIONS = "Sentences", "Annotations"
UNGROUNDED = "captions without boxes"
_PHRASE = re.compile(r"\[/EN#(\d+)(?:/\S*)?\s+([^\]]*)\]")


@dataclass(frozen=True)
class GroundedPhrase:
    """A phrase of a caption."""

    entity: str
    """Number of what it names; boxes have the numbers of all that they show."""
    text: str


@dataclass(frozen=True)
class GroundedCaption:
    """A caption and its phrases, in order."""

    text: str
    phrases: tuple[GroundedPhrase, ...]

    @classmethod
    def of(cls, line: str) -> "GroundedCaption":
        """Parse a line like `[/EN#12/people A man] sleeps .`."""
        phrases = tuple(
            GroundedPhrase(entity, wording.sentence(text.split()))
            for entity, text in _PHRASE.findall(line)
        )
        return cls(wording.sentence(_PHRASE.sub(r"\2", line).split()), phrases)


class Flickr30kReader:
    """Reads captions: all regions are asked for the caption, then each for its phrase."""

    def __init__(self, folder: Path, rules: RecordRules, *, split: str = "train") -> None:
        """Create a reader.

        Args:
            folder: The dataset's folder.
            rules: What to make of images and boxes.
            split: Name of the list of images to read, as `train` for `train.txt`; or `all`.
        """
        self._folder = folder
        self._rules = rules
        self._split = split

    def units(self) -> Iterator[DatasetUnit]:
        """Iterate over the images in order of their names."""
        sentences = self._folder / SENTENCES
        for folder in (sentences, self._folder / ANNOTATIONS):
            if not folder.is_dir():
                raise DataError(
                    f"{folder}: there is no such folder; give the folder of Flickr30k Entities, "
                    f"which holds {SENTENCES} and {ANNOTATIONS}"
                )
        listed_images = self._listed()
        for path in sorted(sentences.glob("*.txt")):
            if listed_images is None or path.stem in listed_images:
                yield DatasetUnit(f"{SENTENCES}/{path.name}", path.stem, path)

    def parts(self, unit: DatasetUnit) -> Iterator[Part]:
        """Read a record from every caption of an image."""
        assert isinstance(unit.content, Path)
        try:
            text = unit.content.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise unreadable(unit.content, error) from None
        entities, boxes, stated = _annotations(self._folder / ANNOTATIONS / f"{unit.key}.xml")
        placed = self._rules.place(f"{unit.key}.jpg", boxes, unit.where, stated)
        yield from placed.left_out
        captions = [line for line in text.split("\n") if line.strip()]
        for number, line in enumerate(captions, start=1):
            where = f"{unit.where}:{number}"
            yield from self._of_caption(GroundedCaption.of(line), placed, entities, where)

    def _of_caption(
        self,
        caption: GroundedCaption,
        placed: PlacedBoxes,
        entities: Sequence[frozenset[str]],
        where: str,
    ) -> Iterator[Part]:
        usable = placed.usable
        phrases: dict[int, str] = {}  # of each box the first that names it, in order of mention
        for phrase in caption.phrases:
            for index in usable:
                if phrase.entity in entities[index] and phrase.text:
                    phrases.setdefault(index, phrase.text)
        kept = list(phrases)[: self._rules.max_regions]
        yield from [LeftOut(where, TOO_MANY)] * (len(phrases) - len(kept))
        if not kept:
            yield LeftOut(where, UNGROUNDED)
            return
        random = self._rules.random(where)
        names = listed([reference(number) for number in range(1, len(kept) + 1)])
        turns = [(random.choice(wording.DESCRIBE_ALL).format(regions=names), caption.text)]
        for number, index in enumerate(kept, start=1):
            question = random.choice(wording.WHICH_PART).format(number=number)
            turns.append((question, phrases[index]))
        yield placed.record(kept, turns, where)

    def _listed(self) -> frozenset[str] | None:
        """The images of the split; None: all."""
        if self._split == ALL_SPLITS:
            return None
        path = self._folder / f"{self._split}.txt"
        try:
            return frozenset(path.read_text(encoding="utf-8").split())
        except (OSError, ValueError):
            raise DataError(
                f"{path}: cannot be read, so the split {self._split!r} is unknown; give another "
                f"--split, or {ALL_SPLITS} for every image"
            ) from None


def _annotations(path: Path) -> tuple[list[frozenset[str]], list[WrittenBox], Size | None]:
    """Read what each box shows, the boxes, and the size of the image.

    Coordinates count pixels from 1, as the dataset's own reader takes them.
    """
    try:
        root = SourceFile(path, path.parent).xml
    except OSError as error:
        raise unreadable(path, error) from None
    except BoxFileError as error:
        raise DataError(str(error)) from None
    entities: list[frozenset[str]] = []
    boxes: list[WrittenBox] = []
    for item in root.findall("object"):
        box = item.find("bndbox")
        if box is None:
            continue
        try:
            x0, y0, x1, y1 = (
                float(box.findtext(side) or "") - 1 for side in ("xmin", "ymin", "xmax", "ymax")
            )
        except ValueError:
            raise DataError(f"{path}: a box lacks one of its four numbers; add it") from None
        entities.append(frozenset((name.text or "").strip() for name in item.findall("name")))
        boxes.append(WrittenBox((x0, y0, x1, y1)))
    return entities, boxes, size_of(root.findtext("size/width"), root.findtext("size/height"))
