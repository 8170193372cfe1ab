"""`--vision-runtime`, `--cache` and `export` with a checkpoint of random weights."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from helpers.vlm.exports import ExportedCheckpoint, use_home
from helpers.vlm.photos import noise
from regionqa.backends.vlm.features import TorchTower
from regionqa.backends.vlm.graphs import OnnxTower

if TYPE_CHECKING:
    from conftest import Command

ASK = ("--box", "20,30,90,100", "--max-new-tokens", "4", "what is this?")


@pytest.fixture
def exported(
    exported_qwen: ExportedCheckpoint, monkeypatch: pytest.MonkeyPatch
) -> ExportedCheckpoint:
    """A checkpoint with an export, which is found by this test."""
    use_home(monkeypatch, exported_qwen.home)
    return exported_qwen


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with three images of different sizes."""
    place = tmp_path / "images"
    place.mkdir()
    for number, size in enumerate(((200, 120), (120, 200), (150, 150))):
        noise(*size, number).load().save(place / f"{number}.png")
    return place


def forbid(monkeypatch: pytest.MonkeyPatch, *towers: type) -> None:
    """Fail the test where one of these encoders is used."""

    def encode(self: object, inputs: object) -> None:
        raise AssertionError("this encoder must not run")

    for tower in towers:
        monkeypatch.setattr(tower, "encode", encode)


def test_export_compares_with_torch_at_three_sizes(exported: ExportedCheckpoint) -> None:
    assert exported.status == 0
    place = Path(exported.out.strip())
    assert place.parent == exported.home / "regionqa" / "vision"
    lines = [line for line in exported.err.splitlines() if "differs from torch by" in line]
    differences = [float(line.split("differs from torch by ")[1].split()[0]) for line in lines]
    assert len(lines) == 3 and all(0 < difference <= 1e-4 for difference in differences)
    assert {path.name for path in place.iterdir()} == {
        "encoder.onnx", "encoder.onnx.data", "export.json",
    }  # fmt: skip
    assert [path.name for path in place.parent.iterdir()] == [place.name]


def test_answers_are_those_of_torch_and_auto_uses_the_export(
    regionqa: "Command",
    exported: ExportedCheckpoint,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = ("ask", folder, *ASK, "--model", exported.folder, "--format", "jsonl")
    torch = regionqa(*asked, "--vision-runtime", "torch")
    assert torch.status == 0 and len(torch.lines) == 3
    forbid(monkeypatch, TorchTower)
    for runtime in ("onnx", "auto"):
        assert regionqa(*asked, "--vision-runtime", runtime).out == torch.out


def test_a_damaged_export_is_not_used(
    regionqa: "Command",
    exported: ExportedCheckpoint,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    home = tmp_path / "home"
    shutil.copytree(exported.home, home)
    use_home(monkeypatch, home)
    graph = next(home.glob("regionqa/vision/*/encoder.onnx.data"))
    graph.write_bytes(graph.read_bytes()[:-1])
    asked = ("ask", folder / "0.png", *ASK, "--model", exported.folder)
    ran = regionqa(*asked, "--vision-runtime", "onnx")
    assert (ran.status, ran.out) == (1, "")
    assert "encoder.onnx.data is missing or damaged; run: regionqa export" in ran.err
    forbid(monkeypatch, OnnxTower)
    assert regionqa(*asked).status == 0


def test_onnx_without_an_export_says_what_to_run(
    regionqa: "Command",
    exported: ExportedCheckpoint,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    use_home(monkeypatch, tmp_path)
    ran = regionqa(
        "ask", folder / "0.png", *ASK, "--model", exported.folder, "--vision-runtime", "onnx"
    )
    assert (ran.status, ran.out) == (1, "")
    assert "was not exported to ONNX yet; run: regionqa export" in ran.err


def test_a_family_without_an_export_is_refused(
    regionqa: "Command",
    folder: Path,
    tmp_path: Path,
    tiny_checkpoint: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    use_home(monkeypatch, tmp_path / "home")
    checkpoint = tiny_checkpoint("qwen2_5_vl")
    for command in (
        ("ask", folder / "0.png", *ASK, "--vision-runtime", "onnx", "--model", checkpoint),
        ("export", checkpoint),
    ):
        ran = regionqa(*command)
        assert (ran.status, ran.out) == (2, "")
        assert "by its card, the vision encoder of this family is not exported" in ran.err


def test_a_checkpoint_of_the_hub_is_not_written_or_published(
    regionqa: "Command", exported: ExportedCheckpoint, tmp_path: Path
) -> None:
    ran = regionqa("export", exported.folder, "--out", tmp_path / "out")
    assert (ran.status, ran.out) == (2, "")
    assert "the vision encoder alone is exported" in ran.err


@pytest.mark.parametrize("option", [("--vision-runtime", "torch"), ("--cache", "kept")])
def test_models_that_are_bundles_have_no_such_options(
    regionqa: "Command", folder: Path, option: tuple[str, str]
) -> None:
    ran = regionqa("ask", folder / "0.png", "what is this?", *option)
    assert (ran.status, ran.out) == (2, "")
    assert f"{option[0]}: has no effect with the model starter" in ran.err


# -- the cache -------------------------------------------------------------------------------------


def test_a_second_run_skips_the_encoder(
    regionqa: "Command",
    exported: ExportedCheckpoint,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kept = tmp_path / "kept"
    asked = ("ask", folder, *ASK, "--way", "crop", "--model", exported.folder, "--cache", kept)
    first = regionqa(*asked)
    # whole images and crops
    assert f"{kept}: encoded images: 0 from the cache, 6 new" in first.err
    forbid(monkeypatch, TorchTower, OnnxTower)
    second = regionqa(*asked)
    assert f"{kept}: encoded images: 6 from the cache, 0 new" in second.err
    assert second.out == first.out and second.status == 0
    quiet = regionqa(*asked, "--quiet")
    assert (quiet.out, quiet.err) == (first.out, "")


def test_runtimes_share_no_encoded_images(
    regionqa: "Command", exported: ExportedCheckpoint, folder: Path, tmp_path: Path
) -> None:
    asked = (
        "ask", folder / "0.png", *ASK, "--model", exported.folder, "--cache", tmp_path / "kept",
        "--vision-runtime",
    )  # fmt: skip
    for runtime in ("onnx", "torch"):
        assert "encoded images: 0 from the cache, 1 new" in regionqa(
            *asked, runtime
        ).err  # fmt: skip


def test_a_damaged_entry_is_named_and_encoded_again(
    regionqa: "Command", exported: ExportedCheckpoint, folder: Path, tmp_path: Path
) -> None:
    kept = tmp_path / "kept"
    asked = ("ask", folder / "0.png", *ASK, "--model", exported.folder, "--cache", kept)
    first = regionqa(*asked)
    (entry,) = kept.iterdir()
    content = bytearray(entry.read_bytes())
    content[-5] ^= 1
    entry.write_bytes(content)
    second = regionqa(*asked)
    assert second.out == first.out
    assert f"{entry}: is damaged; the image was encoded again" in second.err
    assert "encoded images: 0 from the cache, 1 new" in second.err
    assert "encoded images: 1 from the cache" in regionqa(*asked).err


def test_a_cache_that_is_a_file_is_refused(
    regionqa: "Command", exported: ExportedCheckpoint, folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "kept").write_text("precious")
    ran = regionqa(
        "ask", folder / "0.png", *ASK, "--model", exported.folder, "--cache", tmp_path / "kept"
    )
    assert (ran.status, ran.out) == (2, "")
    assert "--cache" in ran.err and (tmp_path / "kept").read_text() == "precious"


# -- doctor ----------------------------------------------------------------------------------------


def vision_line(regionqa: "Command", *words: object) -> str:
    (line,) = [
        line for line in regionqa("doctor", *words).lines if line[2:].startswith("vision encoder")
    ]
    return line


def test_doctor_says_where_the_vision_encoder_runs_and_why(
    regionqa: "Command",
    exported: ExportedCheckpoint,
    tiny_checkpoint: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = ("--model", exported.folder)
    assert "in onnx: differs from torch by" in vision_line(regionqa, *asked)
    torch = vision_line(regionqa, *asked, "--vision-runtime", "torch")
    assert torch.startswith(" ") and "in torch: --vision-runtime torch" in torch
    use_home(monkeypatch, tmp_path)
    assert f"run: regionqa export {exported.folder}" in vision_line(regionqa, *asked)
    assert vision_line(regionqa, *asked, "--vision-runtime", "onnx").startswith("!")
    line = vision_line(regionqa, "--model", tiny_checkpoint("qwen2_5_vl"))
    assert "in torch: by its card, the vision encoder of this family is not exported" in line


@pytest.mark.parametrize("option", [("--vision-runtime", "torch"), ("--cache", "kept")])
def test_a_server_encodes_images_itself(
    regionqa: "Command", folder: Path, option: tuple[str, str]
) -> None:
    ran = regionqa("ask", folder / "0.png", "what?", "--server", "http://localhost:9", *option)
    assert (ran.status, ran.out) == (2, "")
    assert "encodes images itself" in ran.err
