"""Datasets that hold their images: DAM, Grasp Any Region, Hugging Face; and Visual7W's telling."""

import base64
import io
import json
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

from helpers.datasets.layouts import (
    boxes,
    opened,
    reasons,
    records,
    save_image,
    save_json,
    turns,
)
from regionqa.data.sources import wording
from regionqa.errors import DataError, UsageError

if TYPE_CHECKING:
    from conftest import Command

pyarrow = pytest.importorskip("pyarrow")
ipc = pytest.importorskip("pyarrow.ipc")
parquet_files = pytest.importorskip("pyarrow.parquet")

WIDTH, HEIGHT = 120, 80


def png(colour: int = 0) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (WIDTH, HEIGHT), (colour, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def mask(left: int, top: int, right: int, bottom: int) -> dict[str, Any]:
    """A run-length mask of a box, column by column."""
    rows = bottom - top
    runs = [left * HEIGHT + top, rows]
    for _ in range(right - left - 1):
        runs += [HEIGHT - rows, rows]
    return {"size": [HEIGHT, WIDTH], "counts": [*runs, WIDTH * HEIGHT - sum(runs)]}


def said(*texts: str) -> list[dict[str, str]]:
    return [{"from": ("human", "gpt")[n % 2], "value": text} for n, text in enumerate(texts)]


# -- DAM: nvidia/describe-anything-dataset on the Hub, a folder of annotations.json and images/*.tar
# for each of its sources


def dam_folder(folder: Path) -> Path:
    (folder / "images").mkdir(parents=True)
    with tarfile.open(folder / "images" / "000001.tar", "w") as archive:
        for number in range(2):
            member = tarfile.TarInfo(f"train/{number}.png")
            content = png(number)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    regions = [
        {"img_id": 7, "ann_id": n, "image": "train2017/0.png", "tar_file": "000001.tar",
         "mask_rle": mask(*box), "caption": f"A long text {n}. "}
        for n, box in enumerate([(10, 5, 60, 50), (30, 20, 31, 21), (0, 0, 120, 80)])
    ]  # fmt: skip
    other = [{**regions[0], "image": "train2017/1.png"}]
    return save_json(folder / "annotations.json", {"7": regions, "8": other})


def test_dam_describes_every_region(tmp_path: Path) -> None:
    path = dam_folder(tmp_path / "COCOStuff")
    conversion = opened(path, "dam", save_images=str(tmp_path / "saved"))
    made = records(conversion)
    assert [boxes(record) for record in made] == [
        [(10, 5, 60, 50), (0, 0, 120, 80)],
        [(10, 5, 60, 50)],
    ]
    assert [answer for _, answer in turns(made[0])] == ["A long text 0.", "A long text 2."]
    questions = {text.format(region="<region1>") for text in wording.DETAIL}
    assert turns(made[0])[0][0] in questions
    assert reasons(conversion) == {"boxes below 2 pixels of 224": 1}
    assert [record.image.read_bytes() for record in made] == [png(0), png(1)]
    again = records(opened(path, "dam", save_images=str(tmp_path / "saved")))
    assert again == made and len(list((tmp_path / "saved").iterdir())) == 2


def test_dam_finds_unpacked_images(tmp_path: Path) -> None:
    path = dam_folder(tmp_path / "LVIS")
    for number in range(2):
        save_image(path.parent / "images", f"train2017/{number}.png", WIDTH, HEIGHT)
    assert [record.image.name for record in records(opened(path, "dam"))] == ["0.png", "1.png"]


def test_a_missing_archive_is_named(tmp_path: Path) -> None:
    path = dam_folder(tmp_path / "LVIS")
    (path.parent / "images" / "000001.tar").unlink()
    with pytest.raises(DataError, match=r"000001\.tar: there is no such file"):
        records(opened(path, "dam", save_images=str(tmp_path / "saved")))
    (path.parent / "images" / "000001.tar").write_bytes(b"no archive" * 100)
    with pytest.raises(DataError, match=r"000001\.tar: is no tar archive"):
        records(opened(path, "dam", save_images=str(tmp_path / "saved")))


# -- Grasp Any Region: projects/grasp_any_region/datasets/GraspAnyRegion_Dataset.py of
# github.com/Haochen-Wang409/Grasp-Any-Region


def gar_folder(folder: Path, *rows: dict[str, Any]) -> Path:
    """Arrow streams of one row each, as `datasets` saves them to disk."""
    folder.mkdir(exist_ok=True)
    for number, row in enumerate(rows):
        table = pyarrow.Table.from_pylist([row])
        path = folder / f"data-{number:05}-of-{len(rows):05}.arrow"
        with ipc.new_stream(str(path), table.schema) as stream:
            stream.write_table(table)
    return folder


def test_gar_converses_and_describes(tmp_path: Path) -> None:
    image = f"data:base64,{base64.b64encode(png()).decode()}"
    first, second = mask(10, 5, 60, 50), mask(70, 10, 110, 70)
    asked = "How is <Prompt1> to <Prompt0>?\nA. left\nB. right"
    path = gar_folder(
        tmp_path / "Relation-Dataset",
        {"image": image, "mask_rle": [first, second], "conversations": said(asked, "B")},
        {"image": image, "mask_rle": first, "conversations": said("<image>", "A thing.")},
        {"image": image, "mask_rle": None, "conversations": said("What is it?", "A scene.")},
    )
    conversion = opened(path, "gar", save_images=str(tmp_path / "saved"))
    made = records(conversion)
    assert boxes(made[0]) == [(10, 5, 60, 50), (70, 10, 110, 70)]
    assert turns(made[0]) == [("How is <region2> to <region1>?\nA. left\nB. right", "B")]
    assert boxes(made[1]) == [(10, 5, 60, 50)] and turns(made[1])[0][1] == "A thing."
    assert boxes(made[2]) == [] and turns(made[2]) == [("What is it?", "A scene.")]
    assert len(list((tmp_path / "saved").iterdir())) == 1
    shards = [
        opened(path, "gar", save_images=str(tmp_path / "saved"), shard=f"{n}/2") for n in (1, 2)
    ]
    found = [records(each) for each in shards]
    assert [found[0][0], found[1][0], found[0][1]] == made


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"mask_rle": [mask(1, 1, 50, 50)], "conversations": said("<Prompt1>?", "A.")},
         "names region 2, but has 1"),
        ({"mask_rle": [mask(1, 1, 50, 50)], "conversations": said("?", "A.", "?", "B.")},
         "has 2 answers about 1 masks"),
        ({"mask_rle": [mask(1, 1, 50, 50)], "conversations": said("?")[:1]},
         "is not questions from human and answers from gpt in turn"),
        ({"image": "data:base64,%%%", "mask_rle": [mask(1, 1, 50, 50)],
          "conversations": said("?", "A.")}, "holds an image that is not base64"),
    ],
)  # fmt: skip
def test_malformed_rows_are_problems(tmp_path: Path, row: dict[str, Any], reason: str) -> None:
    image = f"data:base64,{base64.b64encode(png()).decode()}"
    path = gar_folder(tmp_path / "gar", {"image": image, **row})
    with pytest.raises(DataError, match=reason):
        records(opened(path, "gar", save_images=str(tmp_path / "saved")))


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "gar").mkdir()
    with pytest.raises(DataError, match=r"holds no \.parquet or \.arrow file; give a folder of"):
        records(opened(tmp_path / "gar", "gar"))
    (tmp_path / "gar" / "data-0.arrow").write_bytes(b"no table")
    with pytest.raises(DataError, match=r"data-0\.arrow: is not a folder of Grasp Any Region"):
        records(opened(tmp_path / "gar", "gar"))


# -- Hugging Face: https://huggingface.co/docs/datasets/object_detection, with the features Image (a
# struct of bytes and path) and a sequence of ClassLabel


def parquet(path: Path, rows: list[dict[str, Any]], names: list[str]) -> Path:
    label = {"names": names, "_type": "ClassLabel"}
    features = {"objects": {"feature": {"bbox": {}, "category": label}, "_type": "Sequence"}}
    table = pyarrow.Table.from_pylist(rows)
    table = table.replace_schema_metadata(
        {"huggingface": json.dumps({"info": {"features": features}})}
    )
    path.parent.mkdir(exist_ok=True)
    parquet_files.write_table(table, path)
    return path


def object_row(image: object, *labels: int, **others: Any) -> dict[str, Any]:
    found = [[10.0 * n, 5.0, 30.0, 40.0] for n in range(len(labels))]
    return {"image": image, "objects": {"bbox": found, "category": list(labels)}, **others}


def test_embedded_images_are_saved_and_named(regionqa: "Command", tmp_path: Path) -> None:
    struct = {"bytes": png(1), "path": None}
    folder = tmp_path / "data"
    parquet(folder / "train-00000-of-00002.parquet", [object_row(struct, 1, 0)], ["cat", "dog"])
    rows = [object_row({"bytes": png(2), "path": "b.png"}, 0), object_row(struct)]
    parquet(folder / "train-00001-of-00002.parquet", rows, ["cat", "dog"])
    out = tmp_path / "out.jsonl"
    line = ("data", "convert", folder, "--kind", "huggingface", "--out", out)
    ran = regionqa(*line, "--save-images", tmp_path / "images")
    assert (ran.status, ran.out) == (0, f"2 records with 3 regions written to {out}\n")
    assert (
        "images without annotations left out: 1, at train-00001-of-00002.parquet: row 2" in ran.err
    )
    made = [json.loads(line) for line in out.read_text().splitlines()]
    assert {each["image"].partition("/")[0] for each in made} == {"images"}
    assert [(tmp_path / each["image"]).read_bytes() for each in made] == [png(1), png(2)]
    answers = {tuple(each["regions"][n]["box"]): each["conversations"][2 * n + 1]["value"]
               for each in made[:1] for n in range(2)}  # fmt: skip
    assert answers == {(0, 5, 30, 45): "dog", (10, 5, 40, 45): "cat"}
    assert "cat, dog" in made[0]["conversations"][0]["value"]
    assert {each["kind"] for each in made} == {"huggingface"}
    ran = regionqa(*line, "--overwrite")
    assert ran.status == 2
    assert "FILE holds its images; add --save-images FOLDER" in ran.err


def test_images_beside_the_table_are_looked_up(tmp_path: Path) -> None:
    save_image(tmp_path, "a.png", WIDTH, HEIGHT)
    path = parquet(
        tmp_path / "a.parquet", [object_row({"bytes": None, "path": "a.png"}, 0)], ["cat"]
    )
    assert [record.image.name for record in records(opened(path, "huggingface"))] == ["a.png"]
    with pytest.raises(
        UsageError, match="--save-images: has no effect beside --kind coco, whose FILE"
    ):
        opened(path, "coco", save_images=str(tmp_path / "saved"))


def test_bytes_that_are_no_image_are_a_problem(tmp_path: Path) -> None:
    path = parquet(
        tmp_path / "a.parquet", [object_row({"bytes": b"%PDF-1", "path": ""}, 0)], ["cat"]
    )
    conversion = opened(path, "huggingface", save_images=str(tmp_path / "saved"))
    with pytest.raises(DataError, match=r"row 1: holds a PDF as its image"):
        records(conversion)


# -- Visual7W: readme.txt of dataset_v7w_telling.zip, and dataset_v7w_grounding_annotations.zip


def test_visual7w_tells_about_regions_and_images(tmp_path: Path) -> None:
    save_image(tmp_path / "images", "v7w_1.jpg", WIDTH, HEIGHT)
    pairs = [
        {"qa_id": n, "image_id": 1, "question": f"What is {n}?", "answer": f"A thing {n}.",
         "multiple_choices": ["No.", "Yes.", "Why."], "type": "what"}
        for n in range(4)
    ]  # fmt: skip
    images = [
        {"image_id": 1, "filename": "v7w_1.jpg", "split": "train", "qa_pairs": pairs},
        {"image_id": 2, "filename": "v7w_2.jpg", "split": "val", "qa_pairs": pairs},
    ]
    path = save_json(tmp_path / "dataset_v7w_telling.json", {"dataset": "v7w", "images": images})
    (whole,) = records(opened(path, "visual7w-telling"))
    assert (boxes(whole), len(turns(whole))) == ([], 4)
    assert turns(whole)[0] == ("What is 0?", "A thing 0.")
    found = [(1, 5, 30, 20), (1, 40, 40, 30), (2, 0, 1, 1)]
    grounded = [
        {"qa_id": qa, "box_id": n, "name": "thing", "x": x, "y": 5, "width": w, "height": h}
        for n, (qa, x, w, h) in enumerate(found)
    ]
    answers = save_json(tmp_path / "v7w_telling_answers.json", {"boxes": grounded})
    conversion = opened(path, "visual7w-telling", annotations=str(answers))
    about, rest = records(conversion)
    assert boxes(about) == [(5, 5, 35, 25), (40, 5, 80, 35)]
    endings = [text.format(regions="<region1> and <region2>") for text in wording.LOOK]
    assert turns(about)[0][0] in [f"What is 1? {ending}" for ending in endings]
    assert [question for question, _ in turns(rest)] == ["What is 0?", "What is 2?", "What is 3?"]
    assert reasons(conversion) == {"boxes below 2 pixels of 224": 1}
    with pytest.raises(DataError, match="has no split 'dev'; give --split train or val, or all"):
        records(opened(path, "visual7w-telling", split="dev"))
