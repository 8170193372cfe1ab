"""Visual Genome: `region_descriptions.json` and `objects.json`."""

from collections.abc import Iterator
from pathlib import Path

import msgspec

from regionqa.boxes.remarks import LeftOut
from regionqa.data.boxes import BARE, Part
from regionqa.data.containers.json_files import document, element
from regionqa.data.sources import wording
from regionqa.data.sources.placement import DatasetUnit, RecordRules, chunks, reference
from regionqa.errors import DataError
from regionqa.regions import BoxFormat, WrittenBox


class RegionDescription(msgspec.Struct, gc=False):
    """A region and its phrase; the box is in pixels."""

    x: float
    y: float
    width: float
    height: float
    phrase: str

    @property
    def box(self) -> WrittenBox:
        """The box."""
        return WrittenBox((self.x, self.y, self.width, self.height), BoxFormat.xywh)

    @property
    def text(self) -> str:
        """The phrase."""
        return self.phrase.strip()


class NamedObject(msgspec.Struct, gc=False):
    """An object and its names, the preferred one first; the box is in pixels."""

    x: float
    y: float
    w: float
    h: float
    names: list[str] = []

    @property
    def box(self) -> WrittenBox:
        """The box."""
        return WrittenBox((self.x, self.y, self.w, self.h), BoxFormat.xywh)

    @property
    def text(self) -> str:
        """The preferred name."""
        return self.names[0].strip() if self.names else ""


class DescribedImage(msgspec.Struct, gc=False):
    """An image of either file; its number is `id` or `image_id`, depending on the version."""

    regions: list[RegionDescription] = []
    objects: list[NamedObject] = []
    id: int | None = None
    image_id: int | None = None

    @property
    def number(self) -> int:
        """The image's number, which its file is called by."""
        for number in (self.image_id, self.id):
            if number is not None:
                return number
        raise DataError("has no 'id' and no 'image_id'; add the number of its image")


class VisualGenomeReader:
    """Reads regions or objects: every one is a turn, answered by its phrase or name."""

    def __init__(self, path: Path, rules: RecordRules, *, objects: bool = False) -> None:
        """Create a reader.

        Args:
            path: `region_descriptions.json`, or `objects.json`.
            rules: What to make of images and boxes.
            objects: Whether the names of objects are asked for, instead of descriptions.
        """
        self._path = path
        self._rules = rules
        self._objects = objects

    def units(self) -> Iterator[DatasetUnit]:
        """Iterate over the images, in file order."""
        name = "objects.json" if self._objects else "region_descriptions.json"
        layout = f"Visual Genome's {name}, an array of images"
        for index, content in enumerate(document(self._path, list[msgspec.Raw], layout)):
            yield DatasetUnit(f"{self._path.name}: record {index + 1}", str(index), content)

    def parts(self, unit: DatasetUnit) -> Iterator[Part]:
        """Read the records of an image, its regions in random order."""
        assert isinstance(unit.content, msgspec.Raw)
        image = element(unit.content, DescribedImage)
        things = image.objects if self._objects else image.regions
        if not things:
            yield LeftOut(unit.where, BARE)
            return
        boxes = [each.box for each in things]
        placed = self._rules.place(f"{image.number}.jpg", boxes, unit.where)
        yield from placed.left_out
        told = [index for index in placed.usable if things[index].text]
        untold = "objects without a name" if self._objects else "empty phrases"
        yield from [LeftOut(unit.where, untold)] * (len(placed.usable) - len(told))
        random = self._rules.random(image.number)
        random.shuffle(told)
        for kept in chunks(told, self._rules.max_regions):
            turns = []
            for number, index in enumerate(kept, start=1):
                question = random.choice(wording.DESCRIBE)
                if self._objects:
                    question = wording.NAME_ANYTHING if number == 1 else "{region}"
                turns.append((question.format(region=reference(number)), things[index].text))
            yield placed.record(kept, turns, unit.where)
