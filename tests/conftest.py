"""Fixtures of the whole suite: photos, the starter, tiny models, the command line as a function.

Whatever needs torch is imported inside the fixture that needs it, so that the tests of one folder
start in a second where they need no model.
"""

import gc
import io
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest
from hypothesis import Phase, settings
from PIL import Image

# Before anything loads OpenMP: threads that wait for each other take ten times as long.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from helpers.golden_weights import COMMITTED, GoldenSet
from helpers.hub_server import Hub
from regionqa.cli import main

if TYPE_CHECKING:
    from helpers.graph_cache import GraphCache
    from helpers.published_models import Published
    from helpers.vlm.chat_server import ChatServer
    from helpers.vlm.exports import ExportedCheckpoint
    from regionqa.backends.bundle import BundleBackend
    from regionqa.bundles.store import Bundle
    from regionqa.data.records import Record
    from regionqa.engine import Engine
    from regionqa.options import RuntimeOptions

# An example has no deadline: how long it takes depends on the machine. The default profile draws
# the same examples in every run, so that a run fails for a change and not for its luck;
# `make slow` draws sixteen times as many, each time others.
settings.register_profile("default", deadline=None, derandomize=True, max_examples=25)
settings.register_profile(
    "mutants",
    deadline=None,
    derandomize=True,
    max_examples=15,
    phases=[Phase.explicit, Phase.generate],  # a failure need not be made smaller
)
settings.register_profile("slow", deadline=None, max_examples=400)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


@dataclass(frozen=True)
class CommandResult:
    """Exit status and output of a command."""

    status: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        """Lines of stdout."""
        return self.out.splitlines()


Command = Callable[..., CommandResult]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--golden DIR`: a golden set other than the committed one, with gpt4roi/ and pvit/."""
    parser.addoption("--golden", type=Path, default=COMMITTED, help="folder of a golden set")


@pytest.fixture(scope="session")
def gpt4roi(pytestconfig: pytest.Config) -> GoldenSet:
    """Outputs of GPT4RoI on generated weights."""
    return GoldenSet(pytestconfig.getoption("golden") / "gpt4roi")


@pytest.fixture(scope="session")
def pvit(pytestconfig: pytest.Config) -> GoldenSet:
    """Outputs of PVIT on generated weights."""
    return GoldenSet(pytestconfig.getoption("golden") / "pvit")


@pytest.fixture
def regionqa(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """The command line in this process: `regionqa("ask", path, "what is this?", stdin="...")`."""

    def run(*words: object, stdin: str = "") -> CommandResult:
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        capsys.readouterr()
        status = main([str(word) for word in words])
        captured = capsys.readouterr()
        return CommandResult(status, captured.out, captured.err)

    return run


@pytest.fixture(scope="session")
def forked() -> Iterator[str]:
    """A shell command that behaves as `regionqa`, in processes that start at once.

    Tests of the start of the interpreter, of signals and of the Hub use `python -m regionqa`.
    """
    from helpers.fork_server import fork_server

    with tempfile.TemporaryDirectory() as folder, fork_server(Path(folder)) as command:
        yield command


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a card of kind "toy", which is registered during the test."""
    from helpers.backends import open_toy
    from regionqa.backends import base

    monkeypatch.setattr(base, "KINDS", dict(base.KINDS))
    base.register("toy", open_toy)
    folder = tmp_path / "toy"
    folder.mkdir()
    (folder / "card.toml").write_text('kind = "toy"\nname = "toy-1"\n')
    return folder


@pytest.fixture
def colours(tmp_path: Path) -> Path:
    """A folder with red.png, green.png and blue.png, 8 x 8 pixels."""
    folder = tmp_path / "colours"
    folder.mkdir()
    for colour in ("red", "lime", "blue"):
        Image.new("RGB", (8, 8), colour).save(folder / f"{colour}.png")
    return folder


@pytest.fixture(scope="session")
def starter() -> "Bundle":
    """The shipped starter."""
    from regionqa.bundles.store import find_bundle

    return find_bundle("starter")


@pytest.fixture(scope="session")
def engine(starter: "Bundle") -> "Engine":
    """The starter on the CPU."""
    from regionqa.engine import Engine

    return Engine.load(starter, device="cpu")


@pytest.fixture(scope="session")
def loaded() -> "dict[str, BundleBackend]":
    """The starter as it was loaded, by options."""
    return {}


@pytest.fixture
def shared_engine(
    engine: "Engine", starter: "Bundle", loaded: "dict[str, BundleBackend]",
    monkeypatch: pytest.MonkeyPatch,
) -> "Engine":  # fmt: skip
    """Load the starter once for all commands with equal runtime options; return it on the CPU."""
    from regionqa.backends.bundle import BundleModel

    load = BundleModel.load

    def once(self: BundleModel, options: "RuntimeOptions") -> "BundleBackend":
        if self.bundle.root != starter.root:
            return load(self, options)
        key = str(sorted(vars(options).items()))
        if key not in loaded:
            loaded[key] = load(self, options)
        return loaded[key]

    monkeypatch.setattr(BundleModel, "load", once)
    return engine


@pytest.fixture(scope="session")
def skimage_photos() -> Path:
    """The folder of scikit-image's photos: chelsea.png (a cat), coffee.png, astronaut.png, ...

    No model of ours was trained on them.
    """
    import skimage

    return Path(skimage.__file__).parent / "data"


@pytest.fixture
def cat(skimage_photos: Path) -> Path:
    """A photo of a cat, 451 x 300 pixels."""
    return skimage_photos / "chelsea.png"


@pytest.fixture
def photos(tmp_path: Path, skimage_photos: Path) -> Path:
    """A folder with three small real photos: astronaut.jpg, cat.jpg, cup.jpg."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for name, source in (("cat", "chelsea"), ("cup", "coffee"), ("astronaut", "astronaut")):
        with Image.open(skimage_photos / f"{source}.png") as image:
            image.convert("RGB").reduce(2).save(folder / f"{name}.jpg")
    return folder


EXPORTING = {"models", "training", "golden", "finetune", "export", "recipes"}
"""Folders whose tests write bundles."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let bundles be written with cached graphs in the folders whose tests write many."""
    here = Path(__file__).parent
    for item in items:
        folders = set(item.path.relative_to(here).parts)
        if isinstance(item, pytest.Function) and EXPORTING & folders:
            item.fixturenames.insert(0, "graphs")


def pytest_collection_finish() -> None:
    """Let garbage collections leave out the millions of objects that were made so far."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> Iterator["GraphCache"]:
    """Exports whose graphs all processes of the run share; bundles are written with them."""
    from helpers.graph_cache import GraphCache, shared_folder

    kept = os.environ.get("REGIONQA_TEST_GRAPHS")  # benchmarks/mutants.py runs the tests many times
    folder = Path(kept) if kept else shared_folder(tmp_path_factory.getbasetemp()) / "graphs"
    cache = GraphCache(folder)
    with pytest.MonkeyPatch.context() as monkeypatch:
        cache.patch(monkeypatch)
        yield cache


@pytest.fixture(scope="session")
def tiny(
    tmp_path_factory: pytest.TempPathFactory, graphs: "GraphCache"
) -> Callable[[str], "Bundle"]:
    """Tiny untrained models by row of PVIT's table 1: `tiny("levels")`; see tiny_models.py."""
    from helpers.tiny_models import tiny_bundle

    root = tmp_path_factory.mktemp("tiny")
    return cache(lambda row: tiny_bundle(row, root))


@pytest.fixture(scope="session")
def things(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Training records about red squares and blue discs."""
    from helpers.tiny_models import two_things

    return two_things(tmp_path_factory.mktemp("things"))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A local server in place of the Hub, used by the real client with an empty cache.

    In this process the client read its settings when it was imported, so they are replaced one by
    one; a subprocess reads them from its environment, as a user's does.
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
    values = {
        "ENDPOINT": server.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": server.url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HOME": str(home),
        "HF_HUB_CACHE": str(home / "hub"),
        "HF_TOKEN_PATH": str(home / "token"),
        "HF_STORED_TOKENS_PATH": str(home / "stored_tokens"),
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": True,
    }
    for name, replacement in values.items():
        monkeypatch.setattr(constants, name, replacement)
    # the client waits for seconds before it tries again
    hurried = SimpleNamespace(**{**vars(time), "sleep": lambda seconds: None})
    for module in ("file_download", "utils._http"):
        monkeypatch.setattr(f"huggingface_hub.{module}.time", hurried)
    huggingface_hub.close_session()  # an older one may go through a proxy
    yield server
    huggingface_hub.close_session()
    server.close()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> "Iterator[ChatServer]":
    """A stand-in for a server of OpenAI's chat protocol, and an environment without keys."""
    from helpers.vlm.chat_server import ChatServer

    for name in ("REGIONQA_SERVER_KEY", "OPENAI_API_KEY", "HTTP_PROXY", "http_proxy", "HTTPS_PROXY",
                 "https_proxy", "ALL_PROXY", "all_proxy"):  # fmt: skip
        monkeypatch.delenv(name, raising=False)
    started = ChatServer()
    yield started
    started.close()


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that the client of a server would have waited before it asked again."""
    from regionqa.backends.server import retries

    asked: list[float] = []

    async def sleep(seconds: float) -> None:
        asked.append(seconds)

    monkeypatch.setattr(retries, "sleep", sleep)
    return asked


@pytest.fixture
def records(things: Path) -> "tuple[Record, ...]":
    """Records about red squares and blue discs, one with two regions, one with none."""
    from regionqa.data.files import read_training_data
    from regionqa.data.records import Turn

    read = read_training_data(things).records
    both = replace(
        read[2],
        regions=(read[2].regions[0], read[3].regions[0]),
        turns=(Turn("is <region2> right of <region1>?", "no, it is not."),),
    )
    none = replace(read[4], regions=(), turns=(Turn("describe this picture.", "two things."),))
    return (read[0], both, none, read[1], read[5], read[6])


@pytest.fixture(scope="session")
def gpt4roi_files(tmp_path_factory: pytest.TempPathFactory, gpt4roi: GoldenSet) -> "Published":
    """The published files of a tiny GPT4RoI."""
    from helpers.published_models import tiny_gpt4roi

    return tiny_gpt4roi(tmp_path_factory.mktemp("gpt4roi"), gpt4roi)


@pytest.fixture(scope="session")
def pvit_files(tmp_path_factory: pytest.TempPathFactory, pvit: GoldenSet) -> "Published":
    """The published files of a tiny PVIT."""
    from helpers.published_models import tiny_pvit

    return tiny_pvit(tmp_path_factory.mktemp("pvit"), pvit)


@pytest.fixture(scope="session")
def exported_qwen(
    tmp_path_factory: pytest.TempPathFactory, graphs: "GraphCache"
) -> "ExportedCheckpoint":
    """A tiny Qwen3-VL whose vision encoder is exported, once for all processes of the run."""
    from helpers.graph_cache import shared_folder
    from helpers.vlm.exports import exported_checkpoint

    return exported_checkpoint("qwen3_vl", shared_folder(tmp_path_factory.getbasetemp()) / "vision")


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Returns the folder of a family's tiny checkpoint, which no test changes."""
    from helpers.vlm.checkpoints import WRITERS

    root = tmp_path_factory.mktemp("checkpoints")
    return cache(lambda family: WRITERS[family](root / family))


@pytest.fixture(scope="session")
def tiny_segmenter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny SAM 2, which no test changes."""
    from helpers.segmentation.segmenters import write_sam2

    return write_sam2(tmp_path_factory.mktemp("segmenters") / "sam2")


@pytest.fixture(scope="session")
def tiny_detector(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Returns the folder of a family's tiny object detector, which no test changes."""
    from helpers.detection.detectors import write_detector

    root = tmp_path_factory.mktemp("detectors")
    return cache(lambda family: write_detector(family, root / family))
