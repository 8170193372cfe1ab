"""Documentation and lock file against the tree: links, paths, make targets, records, versions."""

import re
import tomllib
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from regionqa import __version__

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    chain(
        ROOT.glob("*.md"),
        (ROOT / "docs").rglob("*.md"),
        (ROOT / "recipes").rglob("README.md"),
    )
)
RECORDS = sorted((ROOT / "docs" / "adr").glob("[0-9]*.md"))
HEADINGS = ["## Context", "## Decision", "## Consequences"]
PLACEHOLDER = re.compile(r"NAME|OUT|DATA|FILE|[*<>{]")
"""Marks a path in a page as a pattern, not as a file of the repository."""
PATH = r"`((?:regionqa|export|finetune|recipes|models|benchmarks|docs|tests)/[^`\s]+)`"


def text(name: str) -> str:
    """Content of a file of the repository."""
    return (ROOT / name).read_text(encoding="utf-8")


def make_targets(content: str) -> list[str]:
    """Targets of the lines `make TARGET` and `run: make TARGET`, in order."""
    return re.findall(r"^\s*(?:- run: )?make ([a-z-]+)$", content, re.MULTILINE)


def found(pattern: str) -> Iterator[tuple[Path, str]]:
    """Matches of a pattern in all pages, with their page."""
    for page in PAGES:
        for match in re.findall(pattern, page.read_text(encoding="utf-8"), re.MULTILINE):
            yield page, match


def test_links_exist() -> None:
    links = [(page, link) for page, link in found(r"\]\(([^)#\s]+)") if "://" not in link]
    assert links
    broken = [f"{page}: {link}" for page, link in links if not (page.parent / link).exists()]
    assert not broken


def test_paths_in_pages_exist() -> None:
    paths = [(page, path) for page, path in found(PATH) if not PLACEHOLDER.search(path)]
    assert paths
    missing = [f"{page}: {path}" for page, path in paths if not (ROOT / path).exists()]
    assert not missing


def test_make_targets_in_pages_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", text("Makefile"), re.MULTILINE))
    named = {target for _, target in found(r"(?:`|\$ |^)make ([a-z-]+)")}
    assert {"demo", "test", "lint"} <= named <= targets


def test_workflow_runs_the_ci_targets() -> None:
    expected = ["lint", "test", "wheel-check"]
    assert make_targets(text(".ci/run")) == expected
    assert make_targets(text(".github/workflows/checks.yml")) == expected


def test_decision_records_have_one_form_and_are_indexed() -> None:
    index = re.findall(r"^- \[(\d+)\. (.+)\]\((.+)\)$", text("docs/adr/README.md"), re.MULTILINE)
    assert sorted(file for _, _, file in index) == [record.name for record in RECORDS]
    titles = {file: f"# {number}. {title}" for number, title, file in index}
    for number, record in enumerate(RECORDS, start=1):
        lines = record.read_text(encoding="utf-8").splitlines()
        assert record.name.startswith(f"{number:02}-")
        assert lines[0] == titles[record.name]
        assert lines[2].startswith("Status: ")
        assert [line for line in lines if line.startswith("## ")] == HEADINGS


def test_version_has_a_changelog_section() -> None:
    assert tomllib.loads(text("pyproject.toml"))["project"]["version"] == __version__
    sections = re.findall(r"^## \[([^]]+)\]", text("CHANGELOG.md"), re.MULTILINE)
    assert sections[0] in (__version__, "Unreleased")
    assert __version__ in sections


def test_lock_file_satisfies_pyproject() -> None:
    """If this fails, run `make lock` and commit requirements-dev.lock."""
    project = tomllib.loads(text("pyproject.toml"))["project"]
    extras = project["optional-dependencies"]
    names = ("export", "finetune", "eval", "demo", "parquet", "dev")  # what `make` installs
    platform = {"sys_platform": "linux", "platform_machine": "x86_64", "python_version": "3.11"}
    lines = [line for line in text("requirements-dev.lock").splitlines() if "==" in line]
    locked = {canonicalize_name(name): version for name, version in (x.split("==") for x in lines)}
    assert len(locked) == len(lines)
    for requirement in map(Requirement, chain(project["dependencies"], *map(extras.get, names))):
        name = canonicalize_name(requirement.name)
        applies = requirement.marker is None or requirement.marker.evaluate(platform)
        if name != "regionqa" and applies:
            assert locked[name] in requirement.specifier, name
