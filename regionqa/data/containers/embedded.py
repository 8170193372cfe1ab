"""Images that a dataset's files hold, written to a folder so that records can name them."""

import base64
import binascii
import hashlib
import tarfile
from collections.abc import Mapping
from pathlib import Path

from regionqa.data.containers.json_files import unreadable
from regionqa.errors import DataError, UsageError
from regionqa.files import output_error
from regionqa.images.kinds import START, kind_of

BASE64 = "data:"
"""Begins an image that is written as text, as in `data:base64,...`."""
SUFFIXES = {
    "a JPEG image": ".jpg", "a PNG image": ".png", "a WebP image": ".webp", "a GIF image": ".gif",
    "a TIFF image": ".tif", "a BMP image": ".bmp", "an AVIF image": ".avif",
    "a HEIC image": ".heic",
}  # fmt: skip
"""Suffixes of the files, by the kind of image."""
OPEN_ARCHIVES = 4
"""Archives whose contents are remembered at a time."""


class SavedImages:
    """A folder of images, each named by its content, so that one that is there stays."""

    def __init__(self, folder: Path | None) -> None:
        """Name the folder; it is created with the first image.

        folder: None: a dataset that holds images is refused.
        """
        self.folder = folder

    def save(self, content: bytes) -> str:
        """Write an image, and return its name in the folder.

        Raises:
            UsageError: There is no folder.
            DataError: The bytes are no image of a format that is read.
            OutputError: It cannot be written.
        """
        if self.folder is None:
            raise UsageError("FILE holds its images; add --save-images FOLDER to write them to")
        kind = kind_of(content[:START])
        if kind not in SUFFIXES:
            raise DataError(f"holds {kind or 'bytes that are no image'} as its image; correct it")
        name = f"{hashlib.sha256(content).hexdigest()[:20]}{SUFFIXES[kind]}"
        path = self.folder / name
        try:
            # a file that a killed run has begun is shorter
            if not path.is_file() or path.stat().st_size != len(content):
                self.folder.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
        except OSError as error:
            raise output_error(path, error) from error
        return name

    def name_of(self, image: object) -> str:
        """Return the name of a row's image, which is saved if the row holds it.

        Args:
            image: A path, text in base64, or `datasets`' struct of bytes and path.

        Raises:
            DataError: It is none of these; other errors as of `save`.
        """
        if isinstance(image, bytes):
            return self.save(image)
        if isinstance(image, Mapping):
            content = image.get("bytes")
            return self.save(content) if isinstance(content, bytes) else self.name_of(
                image.get("path")
            )  # fmt: skip
        if isinstance(image, str) and image.startswith(BASE64):
            try:
                return self.save(base64.b64decode(image.partition(",")[2], validate=True))
            except binascii.Error:
                raise DataError("holds an image that is not base64; download it again") from None
        if isinstance(image, str) and image:
            return image
        raise DataError("has no image; it has neither a path nor bytes")


class ImageArchives:
    """Tar archives of images, in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._places: dict[str, dict[str, tuple[int, int]]] = {}

    def read(self, archive: str, name: str) -> bytes:
        """Return an image of an archive, by the name of its file there.

        Raises:
            DataError: There is no such archive, or no such image in it.
        """
        path = self._folder / Path(archive).name
        try:
            place = self._contents(path).get(Path(name).name)
            if place is None:
                raise DataError(f"{path}: holds no {Path(name).name}; download it again")
            with path.open("rb") as file:
                file.seek(place[0])
                return file.read(place[1])
        except OSError as error:
            raise unreadable(path, error) from None

    def _contents(self, path: Path) -> dict[str, tuple[int, int]]:
        """Where the files of an archive begin, and their sizes, by name."""
        if path.name not in self._places:
            if len(self._places) >= OPEN_ARCHIVES:
                del self._places[next(iter(self._places))]
            found = {}
            try:
                with tarfile.open(path, "r:") as archive:
                    for member in archive:
                        if member.isreg():
                            found[Path(member.name).name] = (member.offset_data, member.size)
            except tarfile.TarError as error:
                raise DataError(f"{path}: is no tar archive: {error}; download it again") from None
            self._places[path.name] = found
        return self._places[path.name]
