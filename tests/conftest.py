"""What many tests share: photos, the starter, and the command line as a function.

`skimage_photos` are real photos that no model of ours was trained on.
"""

import io
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from helpers.golden_weights import COMMITTED, GoldenSet
from helpers.hub_server import Hub
from helpers.tiny_models import copy_graphs, tiny_bundle, two_things
from regionqa.bundles.store import Bundle, find_bundle
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


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--golden DIR`: another golden set, a folder with gpt4roi/ and pvit/."""
    parser.addoption("--golden", type=Path, default=COMMITTED, help="folder of a golden set")


@pytest.fixture(scope="session")
def gpt4roi(pytestconfig: pytest.Config) -> GoldenSet:
    """What GPT4RoI computes on generated weights."""
    return GoldenSet(pytestconfig.getoption("golden") / "gpt4roi")


@pytest.fixture(scope="session")
def pvit(pytestconfig: pytest.Config) -> GoldenSet:
    """What PVIT computes on generated weights."""
    return GoldenSet(pytestconfig.getoption("golden") / "pvit")


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


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Bundle]:
    """Tiny untrained models by row of PVIT's table 1: `tiny("levels")`; see tinymodel.py."""
    root = tmp_path_factory.mktemp("tiny")
    return cache(lambda row: tiny_bundle(row, root))


@pytest.fixture(scope="session")
def things(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Training records about red squares and blue discs."""
    return two_things(tmp_path_factory.mktemp("things"))


@pytest.fixture
def quick_export(tiny: Callable[[str], Bundle], monkeypatch: pytest.MonkeyPatch) -> None:
    """Graphs are not made anew but copied, seconds faster; they know nothing of the training."""
    copy_graphs(tiny("levels"), tiny("pixels"), monkeypatch)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A stand-in for the Hub, with the real client pointed at it and an empty cache.

    In this process the client has read its settings long ago, so they are put in their places; a
    subprocess reads them from its environment, as a user's does.
    """
    import huggingface_hub
    from huggingface_hub import constants

    server = Hub()
    home = tmp_path / "hf-home"
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE",
                 "HF_HUB_CACHE", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):  # fmt: skip
        monkeypatch.delenv(name, raising=False)
    # Xet, the Hub's newer way to store files, needs servers of its own
    for name, value in (("HF_ENDPOINT", server.url), ("HF_HOME", home), ("HF_HUB_DISABLE_XET", 1)):
        monkeypatch.setenv(name, str(value))
    settings = {
        "ENDPOINT": server.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": server.url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HOME": str(home),
        "HF_HUB_CACHE": str(home / "hub"),
        "HF_TOKEN_PATH": str(home / "token"),
        "HF_STORED_TOKENS_PATH": str(home / "stored_tokens"),
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": True,
    }
    for name, setting in settings.items():
        monkeypatch.setattr(constants, name, setting)
    # it waits seconds before it tries again
    hurried = SimpleNamespace(**{**vars(time), "sleep": lambda seconds: None})
    for module in ("file_download", "utils._http"):
        monkeypatch.setattr(f"huggingface_hub.{module}.time", hurried)
    huggingface_hub.close_session()  # an older one may go through a proxy
    yield server
    huggingface_hub.close_session()
    server.down()
