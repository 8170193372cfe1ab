"""Indexes in temporary files, so that memory does not grow with their length.

A database with an empty name is SQLite's temporary database: a file without a name that ends with
the process, of which a few megabytes are in memory.
"""

import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from regionqa.data.records import Record
from regionqa.data.streams.training import Key, TrainingStream
from regionqa.errors import DataError


def _database(*statements: str) -> sqlite3.Connection:
    # several threads use one, but never at the same time
    connection = sqlite3.connect("", isolation_level=None, check_same_thread=False)
    for statement in ("PRAGMA synchronous = OFF", "PRAGMA journal_mode = OFF", *statements):
        connection.execute(statement)
    return connection


class DiskIndex:
    """Numbers by text."""

    def __init__(self) -> None:
        self._database = _database(
            "CREATE TABLE kept (key BLOB PRIMARY KEY, value INTEGER) WITHOUT ROWID"
        )
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def __setitem__(self, key: str, value: int) -> None:
        known = self.get(key) is not None
        self._run("INSERT OR REPLACE INTO kept VALUES (?, ?)", os.fsencode(key), value)
        self._length += not known

    def get(self, key: str) -> int | None:
        """Return the number of a text; None if there is none."""
        found = self._run("SELECT value FROM kept WHERE key = ?", os.fsencode(key)).fetchone()
        return None if found is None else int(found[0])

    def discard(self, key: str) -> None:
        """Remove a text, if it is there."""
        self._length -= self._run("DELETE FROM kept WHERE key = ?", os.fsencode(key)).rowcount

    def close(self) -> None:
        """Remove the file."""
        self._database.close()

    def _run(self, statement: str, *values: object) -> Any:
        return _run(self._database, statement, *values)


class RecordsByImage:
    """The records of a stream by image, in order of the images' first appearance."""

    def __init__(self, stream: TrainingStream) -> None:
        """Begin without records.

        stream: Where records are read again by their keys.
        """
        self._stream = stream
        self._database = _database(
            "CREATE TABLE images (path BLOB PRIMARY KEY, number INTEGER) WITHOUT ROWID",
            "CREATE TABLE records (image INTEGER, place INTEGER, key INTEGER, "
            "PRIMARY KEY (image, place)) WITHOUT ROWID",
        )
        self._last: tuple[Path | None, int] = (None, 0)
        self._records = 0
        self.images = 0
        """Number of images."""

    def add(self, key: Key, image: Path) -> None:
        """Add a record by its key and image."""
        if image != self._last[0]:
            self._last = (image, self._number(os.fsencode(image)))
        values = (self._last[1], self._records, key)
        _run(self._database, "INSERT INTO records VALUES (?, ?, ?)", *values)
        self._records += 1

    def __iter__(self) -> Iterator[list[Record]]:
        """Iterate over the images' records, each image's in file order."""
        found: list[Record] = []
        before = None
        rows = _run(self._database, "SELECT image, key FROM records ORDER BY image, place")
        for image, key in rows:
            if found and image != before:
                yield found
                found = []
            before = image
            found.append(self._stream.record(key))
        if found:
            yield found

    def close(self) -> None:
        """Remove the file."""
        self._database.close()

    def _number(self, path: bytes) -> int:
        rows = _run(self._database, "SELECT number FROM images WHERE path = ?", path)
        found = rows.fetchone()
        if found is not None:
            return int(found[0])
        _run(self._database, "INSERT INTO images VALUES (?, ?)", path, self.images)
        self.images += 1
        return self.images - 1


def _run(database: sqlite3.Connection, statement: str, *values: object) -> Any:
    try:
        return database.execute(statement, values)
    except sqlite3.Error as error:
        raise DataError(
            f"a temporary index cannot be written: {error}; free space in the folder for temporary "
            "files, or name another with TMPDIR"
        ) from None
