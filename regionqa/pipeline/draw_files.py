"""Files of drawings: one for each image, which replace neither inputs nor earlier drawings."""

import unicodedata
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Self

from PIL import Image

from regionqa.errors import OutputError, UsageError
from regionqa.files import Identity, identity, write_whole
from regionqa.pipeline.items import STDIN, InputItem

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
"""Suffixes of drawings; they set the file format."""


def check_drawing(path: Path, *, several: bool) -> None:
    """Raise UsageError if drawings cannot be saved to a path.

    several: whether there may be several images, so that `path` must be a folder.
    """
    if several and path.suffix and not path.is_dir():
        raise UsageError(f"--draw {path}: there may be several images; name a folder")
    if not several and path.suffix.lower() not in SUFFIXES:
        raise UsageError(f"{path}: a drawing's name must end in one of {', '.join(SUFFIXES)}")


def save_drawing(image: Image.Image, path: Path, *, overwrite: bool = False) -> None:
    """Write a drawing in the format of its suffix, complete or not at all.

    Raises:
        UsageError: The suffix is not supported.
        OutputError: The file cannot be written, or exists and must not be replaced.
    """
    check_drawing(path, several=False)
    kind = Image.registered_extensions()[path.suffix.lower()]
    try:
        with write_whole(path, overwrite=overwrite) as file:
            image.save(file, kind, quality=92)  # for JPEG and WebP
    except ValueError as error:  # too many pixels for the format
        raise OutputError(f"{path}: cannot be written: {error}; name another file") from None


def refuse_drawings(
    label: str, paths: Iterable[Path], inputs: Iterable[Path], *, overwrite: bool
) -> None:
    """Raise UsageError if drawings would replace an input, or files without --overwrite.

    Args:
        label: The option that names the drawings.
        paths: Files to be written.
        inputs: Images that are read.
        overwrite: Whether files may be replaced.
    """
    existing = [path for path in paths if path.exists()]
    if not existing:
        return
    read = {identity(path) for path in inputs}
    for path in existing:
        if identity(path) in read:
            raise UsageError(f"{label}: {path} is also read; name another folder")
    if not overwrite:
        more = f" and {len(existing) - 1} others" if len(existing) > 1 else ""
        raise UsageError(
            f"{label}: {existing[0]}{more} already exist{'' if more else 's'}; replace with "
            "--overwrite, or name another folder"
        )


class DrawingNames:
    """Names of drawings in a folder, the same for the same images in the same order."""

    def __init__(self, target: Path, *, one: bool) -> None:
        """`target` is a folder or, if there is `one` image, the drawing itself."""
        self._target = target
        self._one = one
        self._used: set[str] = set()
        self._last: tuple[str, Path] | None = None

    def place(self, image: str) -> Path:
        """Return the drawing of the next image; consecutive ones of the same name share it."""
        if self._one:
            return self._target
        if self._last is None or self._last[0] != image:
            self._last = (image, self._free(Path(image).stem))
        return self._last[1]

    def _free(self, stem: str) -> Path:
        """`folder/stem.png`, numbered if another image has that name, on any file system."""
        name, number = stem, 2
        while (key := unicodedata.normalize("NFC", name).casefold()) in self._used:
            name, number = f"{stem}-{number}", number + 1
        self._used.add(key)
        return self._target / f"{name}.png"


class DrawingFolder:
    """The drawings of a run. Use it in a `with` statement.

    Lines of stdin may name any file at any time. So where they name the images, existing files are
    replaced at the end of the run, unless they have turned out to be images.
    """

    failed: int
    """Number of drawings that were not written."""

    def __init__(
        self,
        target: Path,
        report_error: Callable[[str], None],
        *,
        one: bool = False,
        overwrite: bool = False,
        from_stdin: bool = False,
    ) -> None:
        """Prepare to write.

        Args:
            target: A folder or, if there is one image, the drawing itself.
            report_error: Called with a line for each drawing that is not written.
            one: Whether there is one image.
            overwrite: Whether existing files may be replaced.
            from_stdin: Whether images are not known before the run.
        """
        self.failed = 0
        self._target = target
        self._report_error = report_error
        self._one = one
        self._overwrite = overwrite
        self._names = DrawingNames(target, one=one)
        self._path = target
        self._from_stdin = from_stdin
        self._inputs: set[Identity | None] = set()
        self._waiting: TemporaryDirectory[str] | None = None

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Replace existing files, now that all images are known."""
        if self._waiting is None:
            return
        with self._waiting as folder:
            for part in sorted(Path(folder).iterdir()):
                path = self._target / part.name
                if identity(path) in self._inputs:
                    self._fail(f"{path}: is also read, so no drawing replaces it")
                else:
                    part.replace(path)

    def refuse_existing(self, items: Iterable[InputItem]) -> None:
        """Raise UsageError if a drawing of these would replace a file that it must not."""
        names = DrawingNames(self._target, one=self._one)
        images = [item.image for item in items]
        refuse_drawings(
            f"--draw {self._target}",
            map(names.place, images),
            map(Path, images),
            overwrite=self._overwrite,
        )

    def named(self, items: Iterable[InputItem]) -> Iterator[InputItem]:
        """Pass items on, and name the drawing of each."""
        for item in items:
            if item.image != STDIN:
                self._path = self._names.place(item.image)
            if self._from_stdin:
                self._inputs.add(identity(Path(item.image)))
            yield item

    @property
    def path(self) -> Path:
        """The drawing of the item that was passed on last."""
        return self._path

    def save(self, drawing: Image.Image, path: Path) -> None:
        """Write a drawing, now or at the end; report one that must not be written.

        Raises:
            OutputError: The file cannot be written.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            save_drawing(drawing, path)
        elif not self._overwrite:
            self._fail(f"{path}: already exists; replace it with --overwrite")
        elif self._from_stdin:
            if self._waiting is None:
                self._waiting = TemporaryDirectory(prefix=".regionqa-", dir=self._target)
            save_drawing(drawing, Path(self._waiting.name, path.name))
        else:
            save_drawing(drawing, path, overwrite=True)

    def _fail(self, message: str) -> None:
        self.failed += 1
        self._report_error(message)
