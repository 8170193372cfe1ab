"""Models to the Hub: checked, given a README, published, and every way in which that fails.

The Hub is a stand-in on loopback; the client is the real one.
"""

import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx
import pytest
import tomli_w
from huggingface_hub import ModelCard, constants
from onnx import numpy_helper

from helpers.hub_server import Hub
from regionqa.bundles.store import CARD, Bundle, file_spec, find_bundle, open_bundle
from regionqa.export.publish import README, check_bundle, model_page

if TYPE_CHECKING:
    from conftest import Command

REPO = "ann/cats"
GRAPHS = ["vision.onnx", "region.onnx", "detector.onnx"]
"""Of the starter, in the order in which they are compared."""
ERROR = "regionqa: error: "
Fails = Callable[..., str]


@pytest.fixture
def ann(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """The Hub server, with a token of ann, who may write to her own namespace."""
    hub.writers["hf_ann"] = "ann"
    monkeypatch.setenv("HF_TOKEN", "hf_ann")
    return hub


@pytest.fixture
def copy(tmp_path: Path, starter: Bundle) -> Path:
    """A copy of the starter, to be damaged."""
    return shutil.copytree(starter.root, tmp_path / "copy")


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip the comparison with torch, which takes a second and is tested separately."""
    monkeypatch.setattr("regionqa.export.publish.check_bundle", lambda bundle: [])


@pytest.fixture
def fails(regionqa: "Command", unchecked: None) -> Fails:
    """Push the starter, which must fail; return the error line."""

    def run(repo: str = REPO, *words: str) -> str:
        ran = regionqa("export", "starter", "--push", repo, *words)
        assert (ran.status, ran.out) == (1, "")
        _, line = ran.err.splitlines()  # the first says that nothing was compared
        assert line.startswith(ERROR)
        return line.removeprefix(ERROR)

    return run


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder."""
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def rewritten(root: Path, change: Callable[[dict[str, Any]], None]) -> Bundle:
    """Change the card's tables; digests stay valid."""
    table = tomllib.loads((root / CARD).read_text())
    change(table)
    paths = [root / file["path"] for file in table["files"]]
    table["files"] = [vars(file_spec(root, path)) for path in paths]
    (root / CARD).write_text(tomli_w.dumps(table))
    return open_bundle(root)


# -- what works ------------------------------------------------------------------------------------


def test_published_model_answers(regionqa: "Command", ann: Hub, starter: Bundle, cat: Path) -> None:
    before = contents(starter.root)
    ran = regionqa("export", "starter", "--push", REPO)
    assert (ran.status, ran.out) == (0, f"{ann.url}/{REPO}\n")
    compared = [line.partition(":")[0] for line in ran.err.splitlines()]
    assert compared == GRAPHS
    assert contents(starter.root) == before
    there = ann.files(REPO)
    page = there.pop(README).decode()
    assert there == before
    assert page == model_page(starter, REPO)
    assert find_bundle(REPO).broken_files() == []
    words = ("ask", cat, "what is this?", "--box", "120,20,400,290", "--device", "cpu")
    assert regionqa(*words, "--model", REPO).out == regionqa(*words).out


@pytest.mark.slow
def test_publish_in_a_subprocess(ann: Hub, starter: Bundle) -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "regionqa", "export", "starter", "--push", REPO, "--private"],
        capture_output=True, text=True, timeout=900, check=False, env=os.environ,
    )  # fmt: skip
    assert (ran.returncode, ran.stdout) == (0, f"{ann.url}/{REPO}\n"), ran.stderr
    assert len(ran.stderr.splitlines()) == 2
    assert set(ann.files(REPO)) == {*contents(starter.root), README}
    assert ann.repos[REPO].private


def test_only_listed_files_are_published(
    regionqa: "Command", ann: Hub, unchecked: None, copy: Path
) -> None:
    (copy / "notes.txt").write_text("not for others")
    ran = regionqa("export", copy, "--push", REPO, "--private")
    assert (ran.status, ran.out) == (0, f"{ann.url}/{REPO}\n")
    assert set(ann.files(REPO)) == {*contents(copy), README} - {"notes.txt"}
    assert ann.repos[REPO].private


def test_publishing_again_uploads_changes_only(
    regionqa: "Command", ann: Hub, unchecked: None, copy: Path
) -> None:
    assert regionqa("export", copy, "--push", REPO).status == 0
    first = ann.repos[REPO].branches["main"]

    def rename(table: dict[str, Any]) -> None:
        table["summary"] = "a better one"

    rewritten(copy, rename)
    assert regionqa("export", copy, "--push", REPO).status == 0
    assert ann.repos[REPO].branches["main"] != first
    assert b"a better one" in ann.files(REPO)[README]


def test_export_to_a_folder(regionqa: "Command", starter: Bundle, tmp_path: Path) -> None:
    out = tmp_path / "out"
    ran = regionqa("export", "starter", "--out", out)
    assert (ran.status, ran.out) == (0, f"{out}\n")
    assert set(contents(out)) == {*contents(starter.root), README}
    assert open_bundle(out).broken_files() == []
    again = regionqa("export", "starter", "--out", out)
    assert (again.status, again.out) == (2, "")
    assert again.err == f"{ERROR}{out}: already exists; name a new or empty folder\n"


def test_export_without_target_compares_only(regionqa: "Command") -> None:
    ran = regionqa("export", "starter")
    assert (ran.status, ran.out) == (0, "")
    for graph, line in zip(GRAPHS, ran.err.splitlines(), strict=True):
        assert line.startswith(f"{graph}: differs from torch by ")


# -- the README ------------------------------------------------------------------------------------


def test_readme_shows_the_card(starter: Bundle, tmp_path: Path) -> None:
    (tmp_path / README).write_text(model_page(starter, REPO))
    page = ModelCard.load(tmp_path / README)
    assert page.data.library_name == "regionqa"
    assert page.data.pipeline_tag == "image-text-to-text"
    assert (page.data.license, page.data.license_name) == ("other", "see-provenance")
    provenance = starter.card.provenance
    assert starter.card.summary in page.text
    for key in ("data", "licence", "recipe"):
        assert f"| {key} | {provenance[key]} |" in page.text
    measured = page.text.partition("## Measured")[2]
    assert provenance["measured"] in measured and provenance["measured_by"] in measured
    assert f"--model {REPO}" in page.text
    assert starter.card.revision in page.text


@pytest.mark.parametrize(
    ("provenance", "licence", "name"),
    [
        ({"licence": "Apache-2.0"}, "apache-2.0", None),
        ({"licence": "as you like"}, "other", "see-provenance"),
        ({}, None, None),
    ],
)
def test_readme_licence(
    starter: Bundle,
    tmp_path: Path,
    provenance: Mapping[str, str],
    licence: str | None,
    name: str | None,
) -> None:
    bundle = replace(starter, card=replace(starter.card, provenance=provenance))
    (tmp_path / README).write_text(model_page(bundle, REPO))
    data = ModelCard.load(tmp_path / README).data
    assert (data.license, data.license_name) == (licence, name)
    assert "Nothing was measured." in model_page(bundle, REPO)


def test_card_values_are_escaped_in_the_readme(starter: Bundle) -> None:
    card = replace(starter.card, provenance={"data": "a | b\n\n# c"}, summary="one\n---\ntwo")
    page = model_page(replace(starter, card=card), REPO)
    assert "| data | a \\| b # c |" in page.splitlines()
    assert "one --- two" in page.splitlines()


# -- what is not published -------------------------------------------------------------------------


def test_damaged_model_is_not_published(regionqa: "Command", ann: Hub, copy: Path) -> None:
    weights = bytearray((copy / "encoders.safetensors").read_bytes())
    weights[-1] ^= 1
    (copy / "encoders.safetensors").write_bytes(weights)
    ran = regionqa("export", copy, "--push", REPO)
    assert (ran.status, ran.out, ran.err) == (
        1,
        "",
        f"{ERROR}{copy}: differs from its card in encoders.safetensors; get the model again\n",
    )
    assert ann.requests == []


def test_graphs_that_differ_from_torch_are_not_published(
    regionqa: "Command", ann: Hub, copy: Path
) -> None:
    graph = onnx.load(copy / "region.onnx")
    largest = max(graph.graph.initializer, key=lambda value: len(value.raw_data))
    values = numpy_helper.to_array(largest) * 1.5
    largest.CopyFrom(numpy_helper.from_array(values.astype("float16"), largest.name))
    onnx.save(graph, copy / "region.onnx")
    rewritten(copy, lambda table: None)
    ran = regionqa("export", copy, "--push", REPO)
    assert (ran.status, ran.out) == (1, "")
    assert ran.err.startswith(f"{ERROR}region.onnx: differs from torch by ")
    assert ann.requests == []


def test_without_torch_weights_files_are_compared(regionqa: "Command", copy: Path) -> None:
    def without(table: dict[str, Any]) -> None:
        table["files"] = [one for one in table["files"] if "encoders" not in one["path"]]

    (copy / "encoders.safetensors").unlink()
    bundle = rewritten(copy, without)
    assert check_bundle(bundle) == []
    ran = regionqa("export", copy)
    assert (ran.status, ran.out) == (0, "")
    assert ran.err == "graphs were not compared: the model has no torch weights\n"


def test_publishing_needs_a_token(fails: Fails, hub: Hub) -> None:
    assert fails() == (
        f"{REPO}: publishing needs a token; log in with: hf auth login, or set HF_TOKEN"
    )
    assert hub.requests == []


@pytest.mark.parametrize(
    ("repo", "token", "status"), [("bob/cats", "hf_ann", 403), (REPO, "hf_old", 401)]
)
def test_token_without_write_permission(
    fails: Fails, ann: Hub, monkeypatch: pytest.MonkeyPatch, repo: str, token: str, status: int
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    assert fails(repo) == (
        f"{repo}: your token may not write there ({status}); log in with one that may: hf auth "
        "login, or publish under a name of your own"
    )
    assert repo not in ann.repos


def test_private_refuses_a_public_repository(fails: Fails, ann: Hub) -> None:
    ann.add(REPO, {"old.txt": b"old"})
    assert fails(REPO, "--private") == (
        f"{REPO}: is there already and public, so --private cannot hold; make it private at "
        f"{ann.url}/{REPO}/settings, or name a new one"
    )
    assert ann.files(REPO) == {"old.txt": b"old"}


def test_private_without_push_is_refused(regionqa: "Command") -> None:
    ran = regionqa("export", "starter", "--private")
    assert (ran.status, ran.err) == (
        2,
        f"{ERROR}--private: needs --push OWNER/NAME\n",
    )


@pytest.mark.parametrize("repo", ["cats/", "ann/cats/x", "an n/cats"])
def test_invalid_repository_names(fails: Fails, ann: Hub, repo: str) -> None:
    assert fails(repo) == f"{repo}: not a repository's name; it is written OWNER/NAME"


def test_publishing_offline(fails: Fails, ann: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert fails() == f"{REPO}: HF_HUB_OFFLINE forbids to publish; run again without it"


def test_publishing_without_a_connection(fails: Fails, ann: Hub) -> None:
    ann.down()
    line = fails()
    assert line.startswith(f"{REPO}: the Hub cannot be reached (ConnectError: ")
    assert line.endswith("); nothing was published; run again")


def test_publishing_during_a_hub_failure(fails: Fails, ann: Hub) -> None:
    ann.status = 503
    assert fails() == f"{REPO}: the Hub is out of order (503); run again later"


@pytest.mark.parametrize(
    ("words", "package", "extra"),
    [
        (("export", "starter"), "tomli_w", "export"),
        (("init", "out", "--vision", "a/b", "--llm", "c/d"), "onnxscript", "export"),
        (("finetune", "--data", "mine.jsonl", "--out", "out"), "peft", "finetune"),
    ],
)
def test_missing_extras_are_named(
    regionqa: "Command",
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, ...],
    package: str,
    extra: str,
) -> None:
    def found(name: str) -> object | None:
        return None if name == package else object()

    monkeypatch.setattr("regionqa.cli.options.find_spec", found)
    ran = regionqa(*words)
    assert (ran.status, ran.out) == (2, "")
    assert f"{words[0]} needs {package}, which is not installed: " in ran.err
    assert f"pip install 'regionqa[{extra}]'" in ran.err
