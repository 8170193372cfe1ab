"""The rules of the codebase on names and sizes; CONTRIBUTING.md explains them."""

import ast
import re
import tomllib
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

TREE = Path(__file__).parents[2]
PRODUCT = ("regionqa", "export", "finetune")
ALL = (*PRODUCT, "recipes", "tests", "benchmarks")
MAX_FILES = 13
"""Python files in a folder, without `__init__.py`."""
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60

LONG_FILES: dict[str, str] = {
    "tests/commands/ask/test_chat.py": "all turns and commands of a chat",
    "tests/commands/models/test_download.py": "every way in which a download can fail",
    "tests/commands/models/test_init.py": "one written bundle per published layout",
    "tests/golden/test_golden_encoders.py": "one parity test per published layer",
    "tests/helpers/hub_server.py": "a whole stand-in for the Hub, used as one",
    "tests/unit/language/test_prompts.py": "tables of prompts and their tokens",
    "tests/unit/pipeline/test_inputs.py": "tables of input lines and their requests",
}
"""Files that may be longer, each with the reason."""
LONG_FUNCTIONS: dict[str, str] = {
    "tests/recipes/test_starter_training.py:test_the_recipe_makes_a_bundle_that_answers": (
        "one run of the recipe, which is too slow to repeat"
    ),
}
"""Functions that may be longer, as `path:name`, each with the reason."""
FULL_FOLDERS: dict[str, str] = {"benchmarks": "a script for each thing that is measured"}
"""Folders that may hold more files, each with the reason."""
SHARED_NAMES: dict[str, str] = {}
"""Public class names that may occur twice, each with the reason."""


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def python_files(*folders: str) -> Iterator[Path]:
    """The Python files of the checkout, once each: links inside regionqa/ are left out."""
    for folder in folders:
        for path in sorted((TREE / folder).rglob("*.py")):
            parts = path.relative_to(TREE).parents
            if not any((TREE / parent).is_symlink() for parent in parts):
                yield path


def functions(node: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """The functions and methods under a module, class or function; none inside other statements."""
    for child in getattr(node, "body", []):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield child
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield from functions(child)


def name(path: Path) -> str:
    return path.relative_to(TREE).as_posix()


def test_checkout_is_found() -> None:
    """The other tests would pass on an empty list."""
    found = {name(path) for path in python_files(*ALL)}
    assert {"regionqa/engine.py", "finetune/run.py", "export/bundle.py"} <= found
    assert not any(each.startswith(("regionqa/finetune/", "regionqa/export/")) for each in found)


def test_public_class_names_are_unique() -> None:
    places = defaultdict(list)
    for path in python_files(*PRODUCT, "recipes"):
        for node in parsed(path).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append(name(path))
    repeated = {each: where for each, where in places.items() if len(where) > 1}
    assert {each: where for each, where in repeated.items() if each not in SHARED_NAMES} == {}


def test_folders_hold_few_files() -> None:
    folders = defaultdict(list)
    for path in python_files(*ALL):
        if path.name != "__init__.py":
            folders[name(path.parent)].append(path.name)
    full = {folder: len(files) for folder, files in folders.items() if len(files) > MAX_FILES}
    assert {folder: count for folder, count in full.items() if folder not in FULL_FOLDERS} == {}


def test_files_are_short() -> None:
    lengths = {
        name(path): len(path.read_text(encoding="utf-8").splitlines())
        for path in python_files(*PRODUCT, "tests", "benchmarks")
    }
    long = {path: count for path, count in lengths.items() if count > MAX_FILE_LINES}
    assert {path: count for path, count in long.items() if path not in LONG_FILES} == {}


def test_functions_are_short() -> None:
    """From the first line of `def` to the last, docstring included."""
    long = {}
    for path in python_files(*PRODUCT, "tests", "benchmarks"):
        for node in functions(parsed(path)):
            count = (node.end_lineno or 0) - node.lineno + 1
            if count > MAX_FUNCTION_LINES:
                long[f"{name(path)}:{node.name}"] = count
    assert {each: count for each, count in long.items() if each not in LONG_FUNCTIONS} == {}


@pytest.mark.parametrize("reasons", [LONG_FILES, LONG_FUNCTIONS, FULL_FOLDERS, SHARED_NAMES])
def test_exceptions_have_reasons(reasons: dict[str, str]) -> None:
    assert all(len(reason.split()) > 2 for reason in reasons.values())


def test_test_files_have_names_of_their_own() -> None:
    """mypy takes test modules by their file's name alone."""
    names: dict[str, list[Path]] = defaultdict(list)
    for path in python_files("tests"):
        if path.name not in ("__init__.py", "__main__.py"):
            names[path.name].append(path)
    assert not [paths for paths in names.values() if len(paths) > 1]


def test_mutation_tests_are_there() -> None:
    """Every file, every word of `-k` and every equivalent mutant of benchmarks/mutants.toml."""
    table = tomllib.loads((TREE / "benchmarks/mutants.toml").read_text(encoding="utf-8"))
    gone = []
    for module, arguments in table["tests"].items():
        paths = [TREE / each.partition("::")[0] for each in arguments if each[:2] != "-k"]
        gone += [name(path) for path in (TREE / module, *paths) if not path.exists()]
        files = [file for path in paths for file in ([path] if path.suffix else path.rglob("*.py"))]
        text = "".join(str(file) + file.read_text(encoding="utf-8") for file in files)
        words = " ".join(
            each[3:] if each[:2] == "-k" else each.partition("::")[2] for each in arguments
        )
        for word in set(re.findall(r"\w+", words)) - {"and", "or", "not"}:
            gone += [] if word in text else [f"{module}: {word}"]
    for module, mutants in table["equivalent"].items():
        lines = (TREE / module).read_text(encoding="utf-8").splitlines()
        text = " ".join(line.strip() for line in lines)
        gone += [f"{module}: {m}" for m in mutants if m.partition("  ->  ")[0] not in text]
    assert gone == []
