"""Files to read boxes from: read once, decoded, and told apart by their content."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import msgspec

from regionqa.boxes.fields import check_utf8, decode, excerpt, parse_json
from regionqa.boxes.unreadable import other_file
from regionqa.errors import BoxFileError

_SUFFIXES = {
    ".csv": ".csv",
    ".tsv": ".csv",
    ".json": ".json",
    ".jsonl": ".jsonl",
    ".ndjson": ".jsonl",
    ".xml": ".xml",
    ".txt": ".txt",
    ".parquet": ".parquet",
}
_FIRST_CHARACTERS = {"{": ".json", "[": ".json", "`": ".json", "<": ".xml"}
_PARQUET = b"PAR1"
_FENCE = "```"
_HEAD = 4096  # bytes in which the first character is looked for
_STREAMS = ("/dev", "/dev/fd")


@dataclass(frozen=True)
class SourceFile:
    """A file to read, and the folder the user named it from.

    path: the file, which may be a pipe. top: the folder given by the user, or the file's own
    folder.
    """

    path: Path
    top: Path

    @property
    def folder(self) -> Path:
        """The file's folder, relative to `top`."""
        return self.path.parent.relative_to(self.top)

    @functools.cached_property
    def is_stream(self) -> bool:
        """Whether this is a pipe or a standard stream, whose path says nothing about an image."""
        folder = self.path.absolute().parent.as_posix()
        return folder in _STREAMS or folder.startswith("/proc/") or not self.path.is_file()

    @functools.cached_property
    def content(self) -> bytes:
        """All bytes, read once; BoxFileError if they are known not to hold boxes."""
        content = self.path.read_bytes()
        if (found := other_file(content)) is not None:
            raise BoxFileError(f"{self.path}: {found}")
        return content

    @functools.cached_property
    def text(self) -> str:
        """The whole text, UTF-8, or UTF-16 with a byte order mark; BoxFileError if it is neither.

        Line ends are line feeds.
        """
        return decode(self.content, self.path)

    @functools.cached_property
    def kind(self) -> str:
        """A suffix: `.json`, `.jsonl`, `.xml`, `.csv`, `.txt`, `.parquet`, or empty.

        By content where that is clear, else by the file's own suffix.
        """
        content = self.content
        suffix = _SUFFIXES.get(self.path.suffix.lower(), "")
        if content.startswith(_PARQUET):
            return ".parquet"
        head = content[:_HEAD]
        if head[:2] in (b"\xff\xfe", b"\xfe\xff"):
            first = self.text.lstrip()[:1]
        else:
            first = head.removeprefix(b"\xef\xbb\xbf").lstrip()[:1].decode("ascii", "replace")
        found = _FIRST_CHARACTERS.get(first)
        if found is None and not first and not suffix:
            return _FIRST_CHARACTERS.get(self.text.lstrip()[:1], "")
        if found != ".json":
            return found or suffix
        return ".jsonl" if suffix == ".jsonl" or self._is_lines else ".json"

    # ---- JSON ----

    @functools.cached_property
    def json(self) -> bytes | str:
        """The JSON text; without the fence that language models put around it.

        Checked to be UTF-8 as a whole, since msgspec does not look into what it passes over.
        """
        if self.content[:1] in (b"{", b"["):
            check_utf8(self.content, self.path)
            return self.content
        text = self.text.strip()
        if text.startswith(_FENCE) and text.endswith(_FENCE):
            return text.removesuffix(_FENCE).partition("\n")[2]
        return text

    @functools.cached_property
    def document(self) -> object:
        """The parsed JSON document; BoxFileError if it is not JSON."""
        text = self.json if isinstance(self.json, str) else self.text
        if not text.strip():
            raise BoxFileError(f"{self.path}: is empty; write at least {{}}")
        try:
            return parse_json(text)
        except ValueError as error:
            raise BoxFileError(f"{self.path}: is not valid JSON: {error}") from None

    @functools.cached_property
    def _outline(self) -> tuple[frozenset[str], bool, object]:
        """`keys`, `is_array` and `first`, without parsing the whole of a large document."""
        parts: Any
        try:
            parts = msgspec.json.decode(self.json, type=dict[str, msgspec.Raw] | list[msgspec.Raw])
            values = list(parts.values() if isinstance(parts, dict) else parts)[:1]
            first = msgspec.json.decode(values[0]) if values else None
        except (msgspec.DecodeError, UnicodeError, RecursionError):
            parts = self.document
            items = parts.values() if isinstance(parts, dict) else parts
            first = next(iter(items), None) if isinstance(parts, (dict, list)) else None
        own = parts if isinstance(parts, dict) else first
        keys = frozenset(own) if isinstance(own, dict) else frozenset[str]()
        return keys, isinstance(parts, list), first

    @property
    def keys(self) -> frozenset[str]:
        """Keys of a JSON object, or of the first object of an array or of JSON lines."""
        if self.kind == ".jsonl":
            return frozenset(self.first) if isinstance(self.first, dict) else frozenset()
        return self._outline[0]

    @property
    def is_array(self) -> bool:
        """Whether the JSON document is an array."""
        return self._outline[1]

    @property
    def first(self) -> object:
        """The first element of a JSON array or of JSON lines, or first value of an object."""
        if self.kind == ".jsonl":
            return self._first_line
        return self._outline[2]

    @functools.cached_property
    def _first_line(self) -> object:
        """The first JSON line; None if there is none, or it is not JSON."""
        content = self.content.removeprefix(b"\xef\xbb\xbf").lstrip()
        head = content[: content.find(b"\n") + 1] or content
        if content[:1] not in (b"{", b"["):
            head = self.text.lstrip().partition("\n")[0].encode("utf-8", "surrogatepass")
        try:
            return parse_json(head.decode())
        except ValueError:
            return None

    @functools.cached_property
    def _is_lines(self) -> bool:
        """Whether the file is several JSON objects, one in a line."""
        start = self.content[:3].removeprefix(b"\xef\xbb\xbf").lstrip()
        content = self.content if start[:1] in (b"{", b"[") else self.text.encode()
        end = content.find(b"\n")
        head = content[: max(end, 0)].strip()
        if not head.endswith((b"}", b"]")) or not content[end:].strip():
            return False
        try:
            msgspec.json.decode(head.removeprefix(b"\xef\xbb\xbf"))
        except (msgspec.DecodeError, RecursionError, UnicodeError):
            return False
        return True

    def lines(self) -> Sequence[tuple[int, object]]:
        """Parse JSON lines; BoxFileError, with its number, for a line that is not JSON."""
        found = []
        for number, line in enumerate(self.text.split("\n"), 1):
            if line.strip():
                try:
                    found.append((number, parse_json(line)))
                except ValueError as error:
                    raise BoxFileError(
                        f"line {number} of {self.path}: is not JSON: {error}"
                    ) from None
        return found

    # ---- XML ----

    @functools.cached_property
    def xml(self) -> ElementTree.Element:
        """The root element; BoxFileError if the file is not XML, or declares a document type."""
        parser = ElementTree.XMLParser(target=_TreeWithoutDoctype())
        try:
            return ElementTree.fromstring(self.content, parser)
        except (ElementTree.ParseError, ValueError, LookupError) as error:
            raise BoxFileError(f"{self.path}: is not valid XML: {error}") from None


class _TreeWithoutDoctype(ElementTree.TreeBuilder):
    """A tree builder that refuses document types, whose entities can expand to any size."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        raise ElementTree.ParseError(
            f"it declares a document type, {excerpt(name)}; remove the <!DOCTYPE>"
        )
