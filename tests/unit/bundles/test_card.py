"""Model cards: parsing, validation, errors."""

import tomllib
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from regionqa.bundles.card import (
    FileSpec,
    LanguageRuntime,
    ModelCard,
    check_inside,
    read_card,
)
from regionqa.bundles.prompt_rules import RegionInput
from regionqa.bundles.store import CARD, Bundle
from regionqa.errors import BundleError
from regionqa.images.preprocessing import Fit
from regionqa.images.resampling import Resample

Table = dict[str, Any]
ABSENT = object()
OUTSIDE = ["../other", "/etc", "llm/../../x", "a\\..\\b", "C:x", "a\0b", ""]


@pytest.fixture
def table(starter: Bundle) -> Table:
    """The starter's card as TOML has it, without a detection head and with two levels."""
    table = tomllib.loads((starter.root / CARD).read_text(encoding="utf-8"))
    del table["detector"]
    table["vision"]["levels"] = ["level0", "level1"]
    return table


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / CARD


def written(path: Path, table: Table, key: str = "", value: object = ABSENT) -> Path:
    """A card file in which one key, such as `vision.levels`, has another value or is absent."""
    table = deepcopy(table)
    *outer, last = key.split(".")
    inner = table
    for name in outer:
        inner = inner[name]
    inner.pop(last, None)
    if value is not ABSENT:
        inner[last] = value
    path.write_text(tomli_w.dumps(table), encoding="utf-8")
    return path


def refused(path: Path) -> str:
    with pytest.raises(BundleError) as caught:
        read_card(path)
    assert str(caught.value).startswith(str(path)), "the file is named first"
    assert "\n" not in str(caught.value)
    return str(caught.value).removeprefix(str(path))


def test_starter_card(starter: Bundle) -> None:
    table = tomllib.loads((starter.root / CARD).read_text(encoding="utf-8"))
    card = read_card(starter.root / CARD)
    assert card.name == "starter"
    assert card.image.size == table["image"]["size"]
    assert card.image.fit is Fit(table["image"]["fit"])
    assert card.image.resample is Resample(table["image"]["resample"])
    assert card.vision.levels == tuple(table["vision"].get("levels", ()))
    assert card.region is not None
    assert card.region.tokens == table["region"]["tokens"]
    assert card.language.stop == tuple(table["language"]["stop"])
    assert card.language.runtime is LanguageRuntime.native
    assert card.prompt.region_input is RegionInput.features
    assert card.architecture == table["architecture"]
    assert {spec.path for spec in card.files} == {file["path"] for file in table["files"]}
    assert all(isinstance(spec, FileSpec) for spec in card.files)


def test_card_of_version_0_1(path: Path, table: Table) -> None:
    table["vision"]["levels"] = []
    table["region"]["image"] = deepcopy(table["image"])
    today = read_card(written(path, table))
    table["picture"] = table.pop("image")
    table["region"]["picture"] = table["region"].pop("image")
    table["prompt"]["picture_question"] = table["prompt"].pop("image_question")
    path.write_text(tomli_w.dumps(table), encoding="utf-8")
    assert read_card(path) == today


def test_defaults(path: Path, table: Table) -> None:
    del table["max_regions"], table["provenance"], table["architecture"], table["files"]
    del table["language"]["runtime"]
    card = read_card(written(path, table))
    assert (card.max_regions, card.files, card.architecture) == (32, (), {})
    assert card.language.runtime is LanguageRuntime.transformers


def test_integer_is_accepted_for_float(path: Path, table: Table) -> None:
    mean = read_card(written(path, table, "image.mean", [0, 0.5, 1])).image.mean
    assert mean == (0, 0.5, 1)
    assert [type(value) for value in mean] == [float] * 3


def test_coordinates_need_no_region_encoder(path: Path, table: Table) -> None:
    del table["region"]
    table["vision"]["levels"] = []
    table["prompt"]["region"] = "[{x0},{y0},{x1},{y1}]"
    card = read_card(written(path, table))
    assert card.region is None
    assert card.prompt.region_input is RegionInput.coordinates


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("sizes", ": unknown key 'sizes'; known are name, revision, summary, image"),
        ("vision.tokens", ": vision: unknown key 'tokens'; known are graph, image_tokens, levels"),
        ("prompt.templat", ": prompt: unknown key 'templat'"),
    ],
)
def test_unknown_key(path: Path, table: Table, key: str, message: str) -> None:
    assert refused(written(path, table, key, 1)).startswith(message)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("name", ": the key 'name' is missing"),
        ("image", ": the key 'image' is missing"),
        ("vision.image_tokens", ": vision: the key 'image_tokens' is missing"),
        ("prompt.template", ": prompt: the key 'template' is missing"),
    ],
)
def test_missing_key(path: Path, table: Table, key: str, message: str) -> None:
    assert refused(written(path, table, key)) == message


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("name", 7, ": name: expected text, found 7"),
        ("vision", "vision.onnx", ": vision: expected a table, found 'vision.onnx'"),
        (
            "vision.image_tokens",
            "16",
            ": vision: image_tokens: expected a whole number, found '16'",
        ),
        (
            "vision.image_tokens",
            16.0,
            ": vision: image_tokens: expected a whole number, found 16.0",
        ),
        (
            "vision.image_tokens",
            True,
            ": vision: image_tokens: expected a whole number, found True",
        ),
        ("vision.levels", "level0", ": vision: levels: expected a list, found 'level0'"),
        ("vision.levels", ["level0", 1], ": vision: levels: expected text, found 1"),
        (
            "image.fit",
            "stretch",
            ": image: fit: 'stretch' is unknown; known are squash, pad, crop, shortest",
        ),
        ("image.fit", ["pad"], ": image: fit: expected text, found ['pad']"),
        ("image.mean", [0.5, "0.5", 0.5], ": image: mean: expected a number, found '0.5'"),
        ("image.mean", [True, 0.5, 0.5], ": image: mean: expected a number, found True"),
        (
            "language.runtime",
            "llama.cpp",
            ": language: runtime: 'llama.cpp' is unknown; known are native, tr",
        ),
        ("prompt.again", 1, ": prompt: again: expected text, found 1"),
        ("provenance", "COCO", ": provenance: expected a table, found 'COCO'"),
        (
            "files",
            [{"path": "a", "sha256": "b", "size": "c"}],
            ": files: size: expected a whole number, found 'c'",
        ),
    ],
)
def test_wrong_type(path: Path, table: Table, key: str, value: object, message: str) -> None:
    assert refused(written(path, table, key, value)).startswith(message)


@pytest.mark.parametrize("values", [[], [0.5, 0.5], [0.5] * 4])
def test_wrong_list_length(path: Path, table: Table, values: list[float]) -> None:
    message = refused(written(path, table, "image.mean", values))
    assert message == f": image: mean: expected 3 values, found {len(values)}"


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("prompt.template", "{question}", "{image} is missing"),
        ("prompt.template", "{image}{question", "prompt template"),
        ("max_regions", 0, "max_regions is 0, not above 0"),
        ("region", ABSENT, "so [region] must be given, and either vision.levels or "),
        ("vision.levels", [], "so [region] must be given, and either vision.levels or "),
        ("vision.levels", ABSENT, "so [region] must be given, and either vision.levels or "),
    ],
)
def test_inconsistent_cards(
    path: Path, table: Table, key: str, value: object, message: str
) -> None:
    assert message in refused(written(path, table, key, value))


def own_pixels(table: Table, **changes: object) -> Table:
    """The card of a region encoder with pixels of its own, at PVIT's size."""
    table = deepcopy(table)
    table["vision"]["levels"] = []
    table["region"]["image"] = {
        **table["image"], "size": 800, "fit": "shortest", "longest": 1333, **changes,
    }  # fmt: skip
    return table


def test_region_encoder_with_its_own_pixels(path: Path, table: Table) -> None:
    card = read_card(written(path, own_pixels(table)))
    assert card.region is not None
    assert card.region.image is not None
    assert card.region.image.fit is Fit.shortest
    assert (card.region.image.size, card.region.image.longest) == (800, 1333)
    assert card.image.longest is None
    squash = own_pixels(table, size=384, fit="squash")
    del squash["region"]["image"]["longest"]
    squashed = read_card(written(path, squash)).region
    assert squashed and squashed.image and squashed.image.fit is Fit.squash


def test_region_encoder_has_one_source(path: Path, table: Table) -> None:
    both = own_pixels(table)
    both["vision"]["levels"] = ["level0"]
    assert "both vision.levels and [region.image] are given" in refused(written(path, both))


def test_vision_encoder_needs_a_square_fit(path: Path, table: Table) -> None:
    table["image"] |= {"fit": "shortest", "longest": 600}
    assert "only [region.image] can be so" in refused(written(path, table))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"fit": "squash"},
            "fit is squash and longest is 1333; longest is given with fit shortest",
        ),
        ({"longest": 799}, "longest is 799, below size, 800"),
        ({"longest": 1333.5}, ": longest: expected a whole number, found 1333.5"),
        ({"shortest": 800}, ": unknown key 'shortest'"),
    ],
)
def test_invalid_region_image_size(path: Path, table: Table, changes: Table, message: str) -> None:
    error = refused(written(path, own_pixels(table, **changes)))
    assert error.startswith(": region: image: ")
    assert message in error


HEAD = {"graph": "detector.onnx", "classes": ["cat", "dog"], "min_score": 0.3, "nms": 0.6}


def test_detection_head(path: Path, table: Table) -> None:
    table["detector"] = HEAD
    detector = read_card(written(path, table)).detector
    assert detector and detector.classes == ("cat", "dog")
    assert (detector.graph, detector.min_score, detector.nms) == ("detector.onnx", 0.3, 0.6)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("classes", [], "classes: at least one name is expected, and each once"),
        ("classes", ["cat", ""], "at least one name"),
        ("classes", ["cat", "cat"], "each once"),
        ("min_score", 1.0, "min_score is 1.0 and nms 0.6; both are between 0 and 1"),
        ("nms", 0.0, "nms 0.0"),
        ("nms", "high", "nms: expected a number"),
        ("graph", "../x.onnx", "is not a path inside the model's folder"),
        ("graph", ABSENT, "the key 'graph' is missing"),
        ("threshold", 0.5, "unknown key 'threshold'"),
    ],
)
def test_invalid_detection_head(
    path: Path, table: Table, key: str, value: object, message: str
) -> None:
    table["detector"] = HEAD
    error = refused(written(path, table, f"detector.{key}", value))
    assert error.startswith(": detector: ") and message in error


def test_detection_head_reads_maps(path: Path, table: Table) -> None:
    table["detector"] = HEAD
    table["vision"]["levels"] = []
    table["prompt"]["region"] = "[{x0}, {y0}]"
    table.pop("region")
    assert "[detector] reads the vision encoder's maps" in refused(written(path, table))


@pytest.mark.parametrize("content", [b"name = ", b"not toml at all", b"\xff\xfe\x00", b"{}"])
def test_invalid_toml(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    assert refused(path).startswith(": cannot be read as a card: ")


def test_empty_card(path: Path) -> None:
    path.write_text("")
    assert refused(path) == ": the key 'name' is missing"


def test_missing_card(path: Path) -> None:
    assert refused(path).startswith(": no such file; a model's folder has a card.toml, or ")


def test_folder_instead_of_card(path: Path) -> None:
    path.mkdir()
    assert refused(path).startswith(": cannot be read as a card: ")


def test_cards_are_validated_on_construction(starter: Bundle) -> None:
    card = starter.card
    with pytest.raises(BundleError, match=r"card of mine: the prompt has region slots"):
        ModelCard("mine", "1", "", card.image, card.vision, card.language, card.prompt, region=None)


@pytest.mark.parametrize("key", ["vision.graph", "region.graph", "language.folder"])
@pytest.mark.parametrize("value", OUTSIDE)
def test_paths_outside_the_folder_are_refused(
    path: Path, table: Table, key: str, value: str
) -> None:
    line = refused(written(path, table, key, value))
    outer = key.partition(".")[0]
    assert line == f": {outer}: {value!r} is not a path inside the model's folder"


@pytest.mark.parametrize("value", ["../other", "/etc/passwd", "llm/../../x", "."])
def test_listed_files_outside_the_folder_are_refused(path: Path, table: Table, value: str) -> None:
    table["files"][0]["path"] = value
    line = refused(written(path, table))
    assert line == f": files: {value!r} is not a path inside the model's folder"


@pytest.mark.parametrize("value", ["vision..v2.onnx", "a/b/c.onnx", "ümlaut.onnx"])
def test_unusual_file_names_are_accepted(path: Path, table: Table, value: str) -> None:
    assert read_card(written(path, table, "vision.graph", value)).vision.graph == value


@pytest.mark.parametrize("path", ["x" * 300, f"a/{'x' * 300}/b", "../a", "/a", "a\0b", ""])
def test_a_path_that_no_folder_can_hold_is_refused(path: str) -> None:
    with pytest.raises(ValueError, match="inside the model's folder"):
        check_inside(path)
