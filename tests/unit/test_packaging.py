"""Contents of the wheel, and what commands import.

benchmarks/startup.py measures what the imports cost.
"""

import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from regionqa import __version__

TREE = Path(__file__).parents[2]
ROOTS = {
    "regionqa": "regionqa",
    "export": "regionqa/export",
    "finetune": "regionqa/finetune",
    "models": "regionqa/models",
}
"""Folders at the top of the tree, and where they are installed."""
DATA = {
    "regionqa/data/mixtures": ("*.toml",),
    "regionqa/evaluation/metrics": ("*.toml",),
    "regionqa/generation": ("*.toml",),
    "regionqa/evaluation/fineeval": ("page.html", "page.css", "page.js"),
    "regionqa/serve": ("page/*.html", "page/*.css", "page/*.js", "page/*.svg"),
}
"""Files beside modules that must be installed, by folder."""
HEAVY = (
    "torch", "torchvision", "transformers", "tokenizers", "onnxruntime", "onnx", "huggingface_hub",
    "optimum", "numpy", "PIL",
)  # fmt: skip
UNNEEDED = ("torchvision", "transformers", "onnx", "onnxscript", "huggingface_hub", "optimum")
"""Packages that an answer of the starter does not import."""


def run(*words: str | Path, folder: Path = TREE) -> str:
    """Run Python in a folder, require that it succeeds, and return its stdout."""
    ran = subprocess.run(
        [sys.executable, *words],
        capture_output=True, text=True, timeout=900, check=False, cwd=folder,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def imported(code: str, names: tuple[str, ...]) -> list[str]:
    """Return which of these modules are imported after the code has run."""
    report = f"import sys; print('imported:', *(name for name in {names} if name in sys.modules))"
    return run("-c", f"{code}\n{report}").splitlines()[-1].split()[1:]


# -- the wheel -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy of the tree, so that no old build/ folder gets into it."""
    copy, out = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("dist")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(TREE / name, copy)
    for name in ROOTS:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(TREE / name, copy / name, symlinks=True, ignore=ignored)
    run("-m", "build", "--wheel", "--no-isolation", "--outdir", out, copy)
    (built,) = out.glob("*.whl")
    return built


def packages() -> dict[str, str]:
    """Folders of the tree that are Python packages, and where they are installed."""
    found = {}
    for root, installed in ROOTS.items():
        for path in (TREE / root).rglob("__init__.py"):
            folder = path.parent.relative_to(TREE)
            if not any((TREE / parent).is_symlink() for parent in (folder, *folder.parents)):
                found[folder.as_posix()] = installed + folder.as_posix().removeprefix(root)
    return found


def sources() -> set[str]:
    """Every file of the tree that must be installed, by its installed path."""
    found = {"regionqa/py.typed"}
    for folder, package in packages().items():
        for pattern in ("*.py", *DATA.get(folder, ())):
            matches = list((TREE / folder).glob(pattern))
            assert matches, f"{folder}/{pattern}"
            inside = (path.relative_to(TREE / folder).as_posix() for path in matches)
            found |= {f"{package}/{name}" for name in inside}
    models = TREE / "models"
    found |= {
        f"regionqa/models/{path.relative_to(models).as_posix()}"
        for path in models.glob("*/**/*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    return found


def test_wheel_holds_exactly_the_packages(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if not name.endswith("/")}
    about = f"regionqa-{__version__}.dist-info/"
    assert {name for name in names if not name.startswith(about)} == sources()
    assert {f"{about}METADATA", f"{about}RECORD", f"{about}licenses/LICENSE"} <= names


def test_every_package_is_listed() -> None:
    settings = tomllib.loads((TREE / "pyproject.toml").read_text(encoding="utf-8"))
    listed = {name.replace(".", "/") for name in settings["tool"]["setuptools"]["packages"]}
    assert listed == set(packages().values())


def test_wheel_has_the_entry_point(wheel: Path) -> None:
    about = f"regionqa-{__version__}.dist-info"
    with zipfile.ZipFile(wheel) as archive:
        commands = archive.read(f"{about}/entry_points.txt").decode()
        metadata = archive.read(f"{about}/METADATA").decode()
    assert "regionqa = regionqa.cli:main" in commands
    assert f"\nVersion: {__version__}\n" in metadata
    assert "\nLicense-Expression: Apache-2.0\n" in metadata


def test_wheel_works_without_the_checkout(wheel: Path, cat: Path, tmp_path: Path) -> None:
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


def test_package_import_is_light() -> None:
    assert imported("import regionqa", (*HEAVY, "typer", "rich")) == []


def test_help_and_lists_import_no_torch() -> None:
    code = """
from regionqa.cli import main
commands = ("", "ask", "caption", "chat", "serve", "models list", "models recommend", "models show",
    "finetune", "data check", "data convert", "eval recognition", "eval vqa", "eval caption",
    "eval fineeval", "download", "export", "init", "doctor", "demo")
for words in commands:
    assert main([*words.split(), "--help"]) == 0
assert main(["--version"]) == 0
"""
    assert imported(code, HEAVY) == []
    listing = "from regionqa.cli import main\nassert main(['models', 'list']) == 0"
    # of the Hub's client only the settings: they say where converted models lie
    light = ("numpy", "PIL", "huggingface_hub")
    heavier = tuple(name for name in HEAVY if name not in light)
    assert imported(listing, heavier) == []


def test_answers_import_no_transformers(cat: Path) -> None:
    code = f"""
from regionqa.cli import main
words = ["ask", {str(cat)!r}, "--box", "120,20,345,240", "what is this?", "--device", "cpu"]
assert main([*words, "--max-new-tokens", "2"]) == 0
"""
    # config declares the options of the command `finetune`, and is light
    training = {path.stem for path in (TREE / "finetune").glob("*.py")} - {"__init__", "config"}
    assert "trainer" in training
    modules = (f"regionqa.finetune.{name}" for name in sorted(training))
    exporting = ("regionqa.export", *modules, "torch", "onnxruntime")
    assert imported(code, (*UNNEEDED, *exporting)) == ["torch", "onnxruntime"]
