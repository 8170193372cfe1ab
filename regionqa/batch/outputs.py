"""OUTPUT of `regionqa batch`: a folder of finished parts, and what they have in common.

A part is written whole under a name made of its key, so a name that is there is a finished part.
The name also says how many of its rows are errors, so that nothing is read to resume.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from regionqa.batch.options import BatchFormat
from regionqa.batch.parts import KEY_LENGTH
from regionqa.batch.storage import Location
from regionqa.batch.tables import rows_as_parquet
from regionqa.data.english import counted
from regionqa.errors import OutputError
from regionqa.pipeline.items import listed

ABOUT = "_regionqa.json"
"""File with the settings of all parts; readers of tables skip names that begin with `_`."""
_NAME = re.compile(rf"part-([0-9a-f]{{{KEY_LENGTH}}})(?:\.(\d+)-errors)?\.(parquet|jsonl)")


@dataclass(frozen=True)
class FinishedPart:
    """A part that is there."""

    key: str
    errors: int
    """Number of its rows that are errors."""
    location: Location


class PartFolder:
    """The folder of the parts of one run, resumed or not."""

    def __init__(self, location: Location, format: BatchFormat, about: Mapping[str, Any]) -> None:
        """Name a folder, which need not exist.

        Args:
            location: A path or URL.
            format: Format of the parts.
            about: What parts of one output have in common, by names that a user knows.
        """
        self.location = location
        self.format = format
        self._about = json.loads(json.dumps(dict(about) | {"format": format}))
        self.finished: dict[str, FinishedPart] = {}
        self._others: list[Location] = []
        self._repeated: dict[str, FinishedPart] = {}
        self._replaced: list[Location] = []
        """Parts with more errors than another one of their key."""

    @property
    def errors(self) -> int:
        """Rows of finished parts that are errors."""
        return sum(part.errors for part in self.finished.values())

    def read(self) -> None:
        """List the finished parts.

        Of two with one key, which a run that repeats errors leaves if it is killed, the one with
        fewer errors counts; `begin` removes the other.

        Raises:
            OutputError: The folder cannot be listed, or holds what is not ours.
        """
        unknown = []
        try:
            files = list(self.location.files())
        except OSError as error:
            raise OutputError(f"{self.location.name}: cannot be listed: {error}") from error
        for file in files:
            name = file.location.name.partition("?")[0].rpartition("/")[2]
            match = _NAME.fullmatch(name)
            if match is None:
                if name != ABOUT and not name.endswith(".unfinished"):
                    unknown.append(name)
                continue
            part = FinishedPart(match[1], int(match[2] or 0), file.location)
            known = self.finished.get(part.key)
            if match[3] != self.format:
                self._others.append(file.location)
            elif known is None:
                self.finished[part.key] = part
            else:
                fewer, more = sorted((known, part), key=lambda each: each.errors)
                self.finished[part.key] = fewer
                self._replaced.append(more.location)
        if unknown:
            raise OutputError(
                f"{self.location.name}: holds {counted(len(unknown), 'file')} that regionqa batch "
                f"has not written ({listed(unknown)}); name another folder"
            )

    def forget_errors(self) -> None:
        """Treat parts with errors as not finished; each is replaced when it is written again."""
        self._repeated = {key: part for key, part in self.finished.items() if part.errors}
        self.finished = {key: p for key, p in self.finished.items() if key not in self._repeated}

    def begin(self, planned: Iterable[str], *, overwrite: bool) -> None:
        """Compare the folder with what this run will write, and record its settings.

        Args:
            planned: Keys of all parts of this run.
            overwrite: Whether other parts are removed.

        Raises:
            OutputError: There are other parts, and they are not to be removed.
        """
        keys = set(planned)
        stale = [part.location for key, part in self.finished.items() if key not in keys]
        stale += [part.location for key, part in self._repeated.items() if key not in keys]
        stale += self._others
        if stale and not overwrite:
            raise OutputError(
                f"{self.location.name}: holds {counted(len(stale), 'part')} of {self._why()}; "
                "remove them with --overwrite, or name another folder"
            )
        for location in stale + self._replaced:
            location.delete()
        self.finished = {key: part for key, part in self.finished.items() if key in keys}
        self.describe({"complete": False})

    def describe(self, more: Mapping[str, Any]) -> None:
        """Write the file of settings, with what is known of the run."""
        text = json.dumps(self._about | dict(more), indent=1, ensure_ascii=False)
        self.location.join(ABOUT).write(f"{text}\n".encode("utf-8", "backslashreplace"))

    def _why(self) -> str:
        """Say how the parts that are there differ from those of this run."""
        try:
            before = json.loads(self.location.join(ABOUT).read())
        except (OSError, ValueError):
            return "another run"
        if not isinstance(before, dict):
            return "another run"
        changed = [key for key, value in self._about.items() if before.get(key) != value]
        if not changed:
            return "other requests (input that has changed, or another --limit or --part-size)"
        return f"another run, with another {' and '.join(changed)}"

    def write(self, key: str, records: Sequence[str], errors: int) -> None:
        """Write a part.

        Args:
            key: Its key.
            records: JSON lines without line ends, in order.
            errors: How many of them are errors.

        Raises:
            OutputError: It cannot be written.
        """
        if self.format is BatchFormat.jsonl:
            content = "".join(f"{record}\n" for record in records).encode()
        else:
            rows = [json.loads(record) for record in records]
            content = rows_as_parquet(rows, confidence=bool(self._about.get("confidence")))
        note = f".{errors}-errors" if errors else ""
        location = self.location.join(f"part-{key}{note}.{self.format}")
        location.write(content)
        self.finished[key] = FinishedPart(key, errors, location)
        before = self._repeated.get(key)
        if before is not None and before.location != location:
            before.location.delete()
