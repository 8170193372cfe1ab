"""Visual Genome's region descriptions: `region_descriptions.json`."""

from collections.abc import Iterator
from pathlib import Path

import msgspec

from regionqa.boxes.remarks import LeftOut
from regionqa.data.boxes import BARE, Part
from regionqa.data.sources import wording
from regionqa.data.sources.json_files import document, element
from regionqa.data.sources.placement import RecordRules, chunks, reference
from regionqa.data.sources.units import DatasetUnit
from regionqa.errors import DataError
from regionqa.regions import BoxFormat, WrittenBox


class RegionDescription(msgspec.Struct, gc=False):
    """A region and its phrase; the box is in pixels."""

    x: float
    y: float
    width: float
    height: float
    phrase: str
    image_id: int | None = None


class DescribedImage(msgspec.Struct, gc=False):
    """The regions of an image, whose number is `id` or `image_id`, depending on the version."""

    regions: list[RegionDescription]
    id: int | None = None
    image_id: int | None = None

    @property
    def number(self) -> int:
        """The image's number, which its file is called by."""
        first = self.regions[0].image_id if self.regions else None
        for number in (self.image_id, first, self.id):
            if number is not None:
                return number
        raise DataError("has no 'id' and no 'image_id'; add the number of its image")


class VisualGenomeReader:
    """Reads region descriptions: every region is a turn, answered by its phrase."""

    def __init__(self, path: Path, rules: RecordRules) -> None:
        self._path = path
        self._rules = rules

    def units(self) -> Iterator[DatasetUnit]:
        """Iterate over the images, in file order."""
        layout = "Visual Genome's region_descriptions.json, an array of images with their regions"
        for index, content in enumerate(document(self._path, list[msgspec.Raw], layout)):
            yield DatasetUnit(f"{self._path.name}: record {index + 1}", str(index), content)

    def parts(self, unit: DatasetUnit) -> Iterator[Part]:
        """Read the records of an image, its regions in random order."""
        assert isinstance(unit.content, msgspec.Raw)
        image = element(unit.content, DescribedImage)
        if not image.regions:
            yield LeftOut(unit.where, BARE)
            return
        boxes = [
            WrittenBox((each.x, each.y, each.width, each.height), BoxFormat.xywh)
            for each in image.regions
        ]
        placed = self._rules.place(f"{image.number}.jpg", boxes, unit.where)
        yield from placed.left_out
        phrases = [each.phrase.strip() for each in image.regions]
        told = [index for index in placed.usable if phrases[index]]
        yield from [LeftOut(unit.where, "empty phrases")] * (len(placed.usable) - len(told))
        random = self._rules.random(image.number)
        random.shuffle(told)
        for kept in chunks(told, self._rules.max_regions):
            turns = [
                (random.choice(wording.DESCRIBE).format(region=reference(number)), phrases[index])
                for number, index in enumerate(kept, start=1)
            ]
            yield placed.record(kept, turns, unit.where)
