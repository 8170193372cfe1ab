"""What a fuzz campaign puts around a reader: a guard of files, and the input it works on."""

import mmap
import os
import struct
import sys
from pathlib import Path
from typing import Any

from campaigns.targets import ROOT, Target

LARGEST = 16 << 20
"""Most bytes of an input."""
READABLE = (str(ROOT), sys.prefix, sys.base_prefix, "/proc/", "/dev/", "/usr/", "/lib", "/etc/",
            "/sys/", os.path.realpath(sys.base_prefix))  # fmt: skip
"""Where the interpreter and libraries read files of their own."""
WRITES = ("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.link", "os.symlink",
          "os.truncate", "os.chmod", "shutil.rmtree")  # fmt: skip
"""Audit events of changes to files, besides `open`."""


class Outside(BaseException):
    """A file outside the input's folder was touched; not to be caught by the reader."""


class Guard:
    """An audit hook that raises `Outside` where a reader touches other files."""

    active = False

    def __init__(self, folder: Path, target: Target) -> None:
        self._folder = str(folder)
        self._readable = READABLE
        self._opens = target.opens
        sys.addaudithook(self._heard)

    def _heard(self, event: str, values: tuple[Any, ...]) -> None:
        if not Guard.active or (event != "open" and event not in WRITES):
            return
        path = values[0]
        if isinstance(path, int) or path is None:
            return
        text = os.path.abspath(os.fsdecode(path))  # noqa: PTH100 (a reader may have odd names)
        if text.startswith(self._folder):
            return
        writes = event != "open" or (values[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if writes and text != "/dev/null" and not text.endswith(".pyc"):
            raise Outside(f"{event} of {text}")
        if not writes and not self._opens and not text.startswith(self._readable):
            raise Outside(f"reading {text}")


class Current:
    """The input that a process works on, shared with its parent by a mapped file."""

    def __init__(self, path: Path) -> None:
        if not path.exists():
            path.write_bytes(bytes(LARGEST + 16))
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), LARGEST + 16)

    def set(self, data: bytes) -> None:
        self._map[16 : 16 + len(data)] = data
        self._map[:16] = struct.pack("<QQ", self.number + 1, len(data))

    @property
    def number(self) -> int:
        """How many inputs there were."""
        return int(struct.unpack("<Q", self._map[:8])[0])

    @property
    def data(self) -> bytes:
        return self._map[16 : 16 + struct.unpack("<Q", self._map[8:16])[0]]
