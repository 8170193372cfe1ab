"""What is installed, and what is imported when: the wheel against the tree, and heavy libraries.

The imports decide how fast `--help` answers and how much memory an answer takes; what that comes
to is measured by benchmarks/startup.py.
"""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from regionqa import __version__

TREE = Path(__file__).parents[2]
PACKAGES = {
    "regionqa": "regionqa",
    "export": "regionqa/export",
    "finetune": "regionqa/finetune",
    "models": "regionqa/models",
}
"""Folders of the tree, and what they install as."""
SUBPACKAGES = {
    "regionqa/cli": "regionqa/cli",
    "regionqa/evaluation": "regionqa/evaluation",
}
"""Folders inside those."""
HEAVY = (
    "torch", "torchvision", "transformers", "tokenizers", "onnxruntime", "onnx", "huggingface_hub",
    "optimum", "numpy", "PIL",
)  # fmt: skip
UNNEEDED = ("torchvision", "transformers", "onnx", "onnxscript", "huggingface_hub", "optimum")
"""What an answer of the starter does without."""


def run(*words: str | Path, folder: Path = TREE) -> str:
    """Stdout of a Python that must end well, started in a folder that it imports from first."""
    ran = subprocess.run(
        [sys.executable, *words],
        capture_output=True, text=True, timeout=900, check=False, cwd=folder,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def imported(code: str, names: tuple[str, ...]) -> list[str]:
    """Which of these modules are imported once the code has run."""
    report = f"import sys; print('imported:', *(name for name in {names} if name in sys.modules))"
    return run("-c", f"{code}\n{report}").splitlines()[-1].split()[1:]


# -- the wheel -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy of the tree: an old build/ folder would end up in it."""
    copy, out = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("dist")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(TREE / name, copy)
    for name in PACKAGES:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(TREE / name, copy / name, symlinks=True, ignore=ignored)
    run("-m", "build", "--wheel", "--no-isolation", "--outdir", out, copy)
    (built,) = out.glob("*.whl")
    return built


def sources() -> set[str]:
    """Every file of the tree that must be installed, by its path there."""
    found = {"regionqa/py.typed"}
    for folder, package in (PACKAGES | SUBPACKAGES).items():
        found |= {f"{package}/{path.name}" for path in (TREE / folder).glob("*.py")}
    data = ("synonyms.toml", "page.html", "page.css", "page.js")
    found |= {f"regionqa/evaluation/{name}" for name in data}
    models = TREE / "models"
    found |= {
        f"regionqa/models/{path.relative_to(models).as_posix()}"
        for path in models.glob("*/**/*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    return found


def test_the_wheel_holds_the_tree_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if not name.endswith("/")}
    about = f"regionqa-{__version__}.dist-info/"
    assert {name for name in names if not name.startswith(about)} == sources()
    assert {f"{about}METADATA", f"{about}RECORD", f"{about}licenses/LICENSE"} <= names


def test_the_tree_has_no_package_that_the_list_leaves_out() -> None:
    folders = {
        path.parent.relative_to(TREE).as_posix()
        for name in PACKAGES
        for path in (TREE / name).rglob("__init__.py")
    }
    links = {"regionqa/export", "regionqa/finetune", "regionqa/models"}
    assert folders - links == set(PACKAGES | SUBPACKAGES)


def test_the_wheel_names_the_command(wheel: Path) -> None:
    about = f"regionqa-{__version__}.dist-info"
    with zipfile.ZipFile(wheel) as archive:
        commands = archive.read(f"{about}/entry_points.txt").decode()
        metadata = archive.read(f"{about}/METADATA").decode()
    assert "regionqa = regionqa.cli:main" in commands
    assert f"\nVersion: {__version__}\n" in metadata
    assert "\nLicense-Expression: Apache-2.0\n" in metadata


def test_the_wheel_answers_without_the_tree(wheel: Path, cat: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    code = f"""
import sys
from regionqa.cli import main
words = ["ask", {str(cat)!r}, "what is this?", "--device", "cpu"]
assert main([*words, "--max-new-tokens", "2"]) == 0
print(*(module.__file__ for name, module in sys.modules.items() if name.startswith("regionqa")))
"""
    answer, files = run("-c", code, folder=tmp_path).splitlines()
    assert answer
    assert all(Path(file).is_relative_to(tmp_path) for file in files.split())
    assert str(tmp_path / "regionqa" / "models" / "__init__.py") in files


# -- imports ---------------------------------------------------------------------------------------


def test_importing_the_package_is_light() -> None:
    assert imported("import regionqa", (*HEAVY, "typer", "rich")) == []


def test_help_and_lists_are_light() -> None:
    code = """
from regionqa.cli import main
for words in ([], ["ask"], ["caption"], ["models"], ["doctor"], ["demo"]):
    assert main([*words, "--help"]) == 0
assert main(["--version"]) == 0
"""
    assert imported(code, HEAVY) == []
    listing = "from regionqa.cli import main\nassert main(['models', 'list']) == 0"
    # of the Hub's client only the settings: they say where converted models lie
    light = ("numpy", "PIL", "huggingface_hub")
    heavier = tuple(name for name in HEAVY if name not in light)
    assert imported(listing, heavier) == []


def test_an_answer_needs_no_transformers(cat: Path) -> None:
    code = f"""
from regionqa.cli import main
words = ["ask", {str(cat)!r}, "--box", "120,20,345,240", "what is this?", "--device", "cpu"]
assert main([*words, "--max-new-tokens", "2"]) == 0
"""
    ours = ("regionqa.export", "regionqa.finetune", "torch", "onnxruntime")
    assert imported(code, (*UNNEEDED, *ours)) == ["torch", "onnxruntime"]
