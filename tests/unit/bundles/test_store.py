"""Finding and verifying bundles."""

import shutil
from pathlib import Path

import pytest

from helpers.hub_server import Hub
from regionqa.bundles.store import (
    CARD,
    Bundle,
    file_spec,
    find_bundle,
    open_bundle,
    published_cards,
    shipped_bundles,
    shipped_folder,
)
from regionqa.errors import BundleError

WEIGHTS = "llm/model.safetensors"


@pytest.fixture
def copy(tmp_path: Path, starter: Bundle) -> Path:
    """A copy of the starter, to be damaged."""
    return shutil.copytree(starter.root, tmp_path / "copy")


def test_find_shipped_model_by_name() -> None:
    bundle = find_bundle("starter")
    assert bundle.card.name == "starter"
    assert bundle.root == shipped_folder() / "starter"
    assert "starter" in shipped_bundles()


def test_find_model_by_folder(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_bundle(copy).root == copy
    assert find_bundle(str(copy)).card == find_bundle("starter").card
    monkeypatch.chdir(copy.parent)
    assert find_bundle("copy").root == Path("copy")
    monkeypatch.setenv("HOME", str(copy.parent))
    monkeypatch.setenv("USERPROFILE", str(copy.parent))
    assert find_bundle("~/copy").root == copy


def test_shipped_name_precedes_a_folder_of_that_name(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy.rename(copy.with_name("starter"))
    monkeypatch.chdir(copy.parent)
    assert find_bundle("starter").root == shipped_folder() / "starter"
    assert find_bundle("./starter").root == Path("starter")
    assert find_bundle(Path("starter")).root == Path("starter")


@pytest.mark.parametrize("name", ["gpt4roi-7b", "pvit-7b"])
def test_missing_published_model_says_how_to_download(name: str, hub: Hub) -> None:
    with pytest.raises(BundleError) as caught:
        find_bundle(name)
    assert str(caught.value) == f"{name}: not downloaded yet; run: regionqa download {name}"
    assert hub.requests == []
    assert name not in shipped_bundles()


@pytest.mark.parametrize("name", published_cards())
def test_published_cards_have_sources(name: str) -> None:
    card = published_cards()[name]
    assert card.name == name
    assert card.sources is not None
    assert card.sources.size == sum(source.size for source in card.sources.named.values())
    assert all(source.licence and source.what for source in card.sources.named.values())
    assert (card.sources.region is None) == bool(card.vision.levels)


@pytest.mark.parametrize("model", ["no-such-model", "~nobody-of-this-name/model", "a\0b", CARD])
def test_unknown_model_lists_the_shipped_ones(
    model: str, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(copy)
    with pytest.raises(BundleError) as caught:
        find_bundle(model)
    printed = model.replace("\0", " ")
    assert str(caught.value).startswith(f"{printed}: no such model; shipped are: ")
    assert "starter" in str(caught.value)
    assert "give a model's folder" in str(caught.value)


def test_folder_without_card(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"card\.toml: no such file"):
        find_bundle(tmp_path)


@pytest.mark.parametrize("name", ["vision.onnx", "region.onnx", WEIGHTS, "llm/tokenizer.json"])
def test_missing_file_is_named(copy: Path, name: str) -> None:
    (copy / name).unlink()
    with pytest.raises(BundleError) as caught:
        open_bundle(copy)
    assert str(caught.value) == f"{copy / name}: missing from the model 'starter'; get it again"


def test_truncated_file_is_named_with_both_sizes(copy: Path) -> None:
    whole = (copy / WEIGHTS).read_bytes()
    (copy / WEIGHTS).write_bytes(whole[:-1000])
    with pytest.raises(BundleError) as caught:
        open_bundle(copy)
    assert str(copy / WEIGHTS) in str(caught.value)
    assert f"has {len(whole) - 1000} bytes, the card says {len(whole)}" in str(caught.value)


def test_changed_byte_is_found(copy: Path) -> None:
    content = bytearray((copy / WEIGHTS).read_bytes())
    content[len(content) // 2] ^= 1
    (copy / WEIGHTS).write_bytes(content)
    assert open_bundle(copy).broken_files() == [WEIGHTS]


def test_files_removed_after_opening_are_broken(copy: Path) -> None:
    bundle = open_bundle(copy)
    (copy / "region.onnx").unlink()
    (copy / "vision.onnx").unlink()
    (copy / "vision.onnx").mkdir()
    assert bundle.broken_files() == ["region.onnx", "vision.onnx"]
    with pytest.raises(BundleError, match=r"region\.onnx: missing"):
        bundle.file("region.onnx")


@pytest.mark.parametrize("name", shipped_bundles())
def test_shipped_models_are_valid(name: str) -> None:
    bundle = find_bundle(name)
    assert bundle.broken_files() == []
    there = {
        path.relative_to(bundle.root).as_posix()
        for path in bundle.root.rglob("*")
        if path.is_file()
    }
    assert {spec.path for spec in bundle.card.files} == there - {CARD}
    assert bundle.size == sum((bundle.root / path).stat().st_size for path in there - {CARD})


def test_file_spec(tmp_path: Path) -> None:
    (tmp_path / "llm").mkdir()
    (tmp_path / "llm" / "a.json").write_bytes(b"abc")
    spec = file_spec(tmp_path, tmp_path / "llm" / "a.json")
    assert (spec.path, spec.size) == ("llm/a.json", 3)
    assert spec.sha256 == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
