"""Boxes belong to the image they were drawn on; options that would have no effect are refused."""

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

if TYPE_CHECKING:
    from conftest import Command

QUICK = ("--max-new-tokens", 2, "--device", "cpu")
BOX = [20, 30, 110, 120]


def save(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def copy(photo: Path, target: Path) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    return Path(shutil.copy(photo, target))


def asked(out: str) -> dict[str, bool]:
    """Whether each image was answered, by its name."""
    records = map(json.loads, out.splitlines())
    return {Path(each["image"]).parent.name: each["error"] is None for each in records}


def test_image_in_another_folder_gets_no_boxes(
    regionqa: "Command", photos: Path, tmp_path: Path
) -> None:
    copy(photos / "cat.jpg", tmp_path / "set/cats/1.jpg")
    copy(photos / "cup.jpg", tmp_path / "set/cups/1.jpg")
    file = save(tmp_path / "boxes.json", {"cats/1.jpg": [BOX]})
    ran = regionqa("caption", tmp_path / "set", "--boxes", file, "--format", "jsonl", *QUICK)
    assert ran.status == 3
    assert asked(ran.out) == {"cats": True, "cups": False}
    assert "has no boxes for this image, but for cats/1.jpg in another folder" in ran.out


def test_boxes_without_a_folder_are_not_used_twice(
    regionqa: "Command", photos: Path, tmp_path: Path
) -> None:
    copy(photos / "cat.jpg", tmp_path / "set/cats/1.jpg")
    copy(photos / "cup.jpg", tmp_path / "set/cups/1.jpg")
    file = save(tmp_path / "boxes.json", {"1.jpg": [BOX]})
    ran = regionqa("caption", tmp_path / "set", "--boxes", file, "--format", "jsonl", *QUICK)
    assert ran.status == 3
    assert asked(ran.out) == {"cats": True, "cups": False}
    assert "has the same boxes (1.jpg) for this image and " in ran.out


@pytest.mark.parametrize("orientation", [1, 6])
def test_stated_size_is_compared_with_the_image(
    regionqa: "Command", photos: Path, tmp_path: Path, orientation: int
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    with Image.open(photos / "cat.jpg") as cat:
        size = cat.size
        cat.save(tmp_path / "cat.jpg", exif=exif)
    stated = size if orientation == 6 else (2 * size[0], 2 * size[1])
    image = {"id": 1, "file_name": "cat.jpg", "width": stated[0], "height": stated[1]}
    annotation = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [20, 20, 100, 100]}
    names = [{"id": 1, "name": "cat"}]
    document = {"images": [image], "annotations": [annotation], "categories": names}
    file = save(tmp_path / "coco.json", document)
    expected = f"states {stated[0]} x {stated[1]} for "
    ran = regionqa("caption", tmp_path / "cat.jpg", "--boxes", file, *QUICK)
    assert ran.status == 0
    assert expected in ran.err
    assert ("EXIF" if orientation == 6 else "--scale-boxes") in ran.err
    checked = regionqa("data", "check", file)
    assert checked.status == 0
    assert expected in checked.err
    scaled = regionqa("data", "convert", file, "--scale-boxes", "--out", tmp_path / "out.jsonl")
    assert scaled.status == (1 if orientation == 6 else 0)
    if orientation == 1:
        assert scaled.err == ""
        record = json.loads((tmp_path / "out.jsonl").read_text())
        assert record["regions"][0]["box"] == [10, 10, 60, 60]


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("--boxes", "coco.json", "--box-format", "xyxy"), "--box-format: coco.json is COCO"),
        (("--boxes", "coco.json", "--box-units", "pixel"), "--box-units: coco.json is COCO"),
        (("--box-format", "xywh"), "--box-format: has no effect without --box or --boxes"),
        (("--box", "1,2,30,40", "--scale-boxes"), "--scale-boxes: has no effect without --boxes"),
        (("--timing",), "--timing: is not written as text"),
        (("--confidence",), "--confidence: is not written as text"),
    ],
)
def test_option_without_effect_is_refused(
    regionqa: "Command",
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, ...],
    reason: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    images = [{"id": 1, "file_name": "cat.jpg"}]
    save(Path("coco.json"), {"images": images, "annotations": [{"image_id": 1, "bbox": BOX}]})
    ran = regionqa("caption", photos / "cat.jpg", *words)
    assert (ran.status, ran.out) == (2, "")
    assert ran.err.startswith(f"regionqa: error: {reason}")


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("ask", "cat.jpg", "what?", "--each"), "--each: has no effect without boxes"),
        (("data", "check", "mine.jsonl", "--scale-boxes"), "--scale-boxes: mine.jsonl states no"),
        (("data", "check", "mine.jsonl", "--box-units", "pixel"), "--box-units: is for plain JSON"),
        (("eval", "vqa", "x", "--model", "a", "--compare", "a", "b"), "--model: has no effect"),
        (("eval", "fineeval", "x", "--ranking", "y", "--limit", "2"), "--limit: has no effect"),
        (
            ("finetune", "--data", "x", "--out", "y", "--keep-adapter"),
            "--keep-adapter: has no effect without --lora",
        ),
        (
            ("finetune", "--data", "x", "--out", "y", "--held-out", "z", "--held-out-share", "0.2"),
            "--held-out-share: has no effect beside --held-out",
        ),
        (
            ("finetune", "--data", "x", "--out", "y", "--replay", "z", "--rehearse", "2"),
            "--rehearse: has no effect beside --replay",
        ),
        (
            ("finetune", "--data", "x", "--out", "y", "--steps", "2", "--epochs", "2"),
            "--epochs: has no effect beside --steps",
        ),
        (
            ("finetune", "--data", "x", "--out", "y", "--rehearse", "0", "--replay-share", "0.2"),
            "--replay-share: has no effect without --replay or --rehearse",
        ),
        (
            ("finetune", "--data", "x", "--out", "y", "--shard"),
            "--shard: has no effect in one process; start several with torchrun",
        ),
        (
            ("init", "y", "--from-llava", "x", "--region-source", "pixels"),
            "--region-source: has no effect without --region-input features",
        ),
    ],
)
def test_option_without_effect_is_refused_by_every_command(
    regionqa: "Command",
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, ...],
    reason: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    turns = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
    save(Path("mine.jsonl"), {"image": "a.jpg", "conversations": turns})
    ran = regionqa(*words)
    assert (ran.status, ran.out) == (2, "")
    assert ran.err.startswith(f"regionqa: error: {reason}")
