"""What many tests share: photos, the starter, and the command line as a function.

`skimage_photos` are real photos that no model of ours was trained on.
"""

import io
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

from regionqa.bundles import Bundle, find_bundle
from regionqa.cli import main
from regionqa.engine import Engine


@dataclass(frozen=True)
class Ran:
    """What a command did."""

    status: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        """Lines of stdout."""
        return self.out.splitlines()


Command = Callable[..., Ran]


@pytest.fixture
def regionqa(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """The command line in this process: `regionqa("ask", path, "what is this?", stdin="...")`."""

    def run(*words: object, stdin: str = "") -> Ran:
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        capsys.readouterr()
        status = main([str(word) for word in words])
        captured = capsys.readouterr()
        return Ran(status, captured.out, captured.err)

    return run


@pytest.fixture(scope="session")
def starter() -> Bundle:
    """The bundle that ships."""
    return find_bundle("starter")


@pytest.fixture(scope="session")
def engine(starter: Bundle) -> Engine:
    """The starter on the CPU."""
    return Engine.load(starter, device="cpu")


@pytest.fixture(scope="session")
def skimage_photos() -> Path:
    """The folder of scikit-image's photos: chelsea.png (a cat), coffee.png, astronaut.png, ..."""
    return Path(pytest.importorskip("skimage").__file__).parent / "data"


@pytest.fixture
def cat(skimage_photos: Path) -> Path:
    """A photo of a cat, 451 x 300 pixels."""
    return skimage_photos / "chelsea.png"


@pytest.fixture
def photos(tmp_path: Path, skimage_photos: Path) -> Iterator[Path]:
    """A folder with three small real photos: astronaut.jpg, cat.jpg, cup.jpg."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for name, source in (("cat", "chelsea"), ("cup", "coffee"), ("astronaut", "astronaut")):
        with Image.open(skimage_photos / f"{source}.png") as image:
            image.convert("RGB").reduce(2).save(folder / f"{name}.jpg")
    yield folder
