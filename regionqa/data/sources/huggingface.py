"""Hugging Face data sets in Parquet with labelled `objects`, whose images the files may hold."""

from collections.abc import Iterator
from pathlib import Path

from regionqa.boxes.entries import Convention
from regionqa.boxes.formats.huggingface import class_names, row_entry
from regionqa.data.boxes import Part
from regionqa.data.containers.embedded import SavedImages
from regionqa.data.containers.tables import TableRow, table_metadata, table_rows
from regionqa.data.sources.coco import named_parts
from regionqa.data.sources.placement import DatasetUnit, RecordRules

LAYOUT = "Parquet with a column 'objects' of boxes, as Hugging Face's datasets write it"


class HuggingFaceReader:
    """Reads rows of images with labelled objects, as `CocoReader` reads box files."""

    def __init__(
        self, path: Path, rules: RecordRules, saved: SavedImages, convention: Convention
    ) -> None:
        """Create a reader.

        Args:
            path: A Parquet file, or a folder of them.
            rules: What to make of images and boxes.
            saved: Where images that the rows hold are written.
            convention: Meaning of a box's numbers; by default left, top, width, height in pixels.
        """
        self._path = path
        self._rules = rules
        self._saved = saved
        self._convention = convention
        self._names = class_names(table_metadata(path, LAYOUT))

    def units(self) -> Iterator[DatasetUnit]:
        """Iterate over the rows, in file order."""
        for where, row in table_rows(self._path, LAYOUT):
            yield DatasetUnit(where, where, row)

    def parts(self, unit: DatasetUnit) -> Iterator[Part]:
        """Read the records of a row, its regions in random order."""
        assert isinstance(unit.content, TableRow)
        row = unit.content.values()
        image = row.get("image")
        if isinstance(image, dict) and image.get("bytes"):
            row |= {"file_name": self._saved.name_of(image)}
        entry = row_entry(row, unit.where, self._names, self._convention)
        yield from named_parts(entry, tuple(self._names or ()), unit, self._rules)
