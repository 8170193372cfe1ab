"""Parquet files and Arrow streams of datasets, read a few rows at a time."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from regionqa.data.containers.json_files import unreadable
from regionqa.errors import DataError
from regionqa.files import is_folder

PARQUET, ARROW = ".parquet", ".arrow"
ROWS = 64
"""Rows in memory at a time; each may hold an image."""


class TableRow:
    """A row that becomes Python values when it is asked for."""

    def __init__(self, batch: Any, index: int) -> None:
        self._batch = batch
        self._index = index

    def values(self) -> dict[str, Any]:
        """Return the row's values by column."""
        found: dict[str, Any] = self._batch.slice(self._index, 1).to_pylist()[0]
        return found


def table_files(path: Path, layout: str) -> list[Path]:
    """Return the files of a dataset in order: the file itself, or those of a folder.

    Raises:
        DataError: A folder has none.
    """
    if not is_folder(path):
        return [path]
    found = sorted(p for p in path.rglob("*") if p.suffix in (PARQUET, ARROW) and p.is_file())
    if not found:
        raise DataError(f"{path}: holds no .parquet or .arrow file; give {layout}")
    return found


def table_rows(
    path: Path, layout: str, columns: Sequence[str] | None = None
) -> Iterator[tuple[str, TableRow]]:
    """Iterate over the rows of a dataset's files with their places.

    Args:
        path: A Parquet file, an Arrow stream as `datasets` saves it, or a folder of such files.
        layout: What is expected, for messages.
        columns: The columns that are needed; None: all.

    Raises:
        DataError: A file cannot be read, is another, or lacks a column.
    """
    for file in table_files(path, layout):
        number = 0
        with _readable(file, layout):
            for batch in _batches(file, columns):
                for index in range(batch.num_rows):
                    number += 1
                    yield f"{file.name}: row {number}", TableRow(batch, index)


def table_metadata(path: Path, layout: str) -> Mapping[bytes, bytes]:
    """Return what the first file of a dataset says about its columns; errors as of `table_rows`."""
    file = table_files(path, layout)[0]
    with _readable(file, layout):
        import pyarrow.ipc
        import pyarrow.parquet

        if file.suffix == ARROW:
            with pyarrow.memory_map(str(file)) as source:
                schema = pyarrow.ipc.open_stream(source).schema
        else:
            schema = pyarrow.parquet.read_schema(file)
        found: Mapping[bytes, bytes] = schema.metadata or {}
        return found


@contextmanager
def _readable(file: Path, layout: str) -> Iterator[None]:
    """Turn the errors of a file into those of a dataset."""
    try:
        import pyarrow
    except ImportError:
        raise DataError(
            f"{file}: is a table, which needs pyarrow: pip install 'regionqa[parquet]'"
        ) from None
    try:
        yield
    except (FileNotFoundError, PermissionError, IsADirectoryError) as error:
        raise unreadable(file, error) from None
    except (pyarrow.ArrowException, KeyError, OSError) as error:
        reason = str(error).strip("'").partition("\n")[0]
        raise DataError(f"{file}: is not {layout}: {reason}; download it again") from None


def _batches(file: Path, columns: Sequence[str] | None) -> Iterator[Any]:
    import pyarrow.ipc
    import pyarrow.parquet

    names = None if columns is None else list(columns)
    if file.suffix == ARROW:
        with pyarrow.memory_map(str(file)) as source:
            for batch in pyarrow.ipc.open_stream(source):
                wanted = batch if names is None else batch.select(names)
                yield from (wanted.slice(n, ROWS) for n in range(0, wanted.num_rows, ROWS))
        return
    with pyarrow.parquet.ParquetFile(file) as parquet:
        missing = [name for name in names or () if name not in parquet.schema_arrow.names]
        if missing:
            raise KeyError(f"it has no column {missing[0]}")
        yield from parquet.iter_batches(ROWS, columns=names)
