"""Small files in the layouts of public datasets, and what they are converted to."""

import json
import pickle
from pathlib import Path
from typing import Any

from PIL import Image

from regionqa.data.datasets import DatasetConversion, open_dataset
from regionqa.data.records import Record
from regionqa.data.sources.kinds import DatasetOptions

Turns = list[tuple[str, str]]


def save_image(folder: Path, name: str, width: int = 224, height: int = 224) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (width, height)).save(path)


def save_json(path: Path, document: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document))
    return path


def opened(
    path: Path, kind: str, images: Path | None = None, **options: object
) -> DatasetConversion:
    return open_dataset(path, DatasetOptions.parse(kind=kind, **options), images)


def records(conversion: DatasetConversion, *, skip_bad: bool = False) -> list[Record]:
    return list(conversion.usable(skip_bad=skip_bad))


def boxes(record: Record) -> list[tuple[float, ...]]:
    return [region.box.xyxy for region in record.regions]


def turns(record: Record) -> Turns:
    return [(turn.question, turn.answer) for turn in record.turns]


def reasons(conversion: DatasetConversion) -> dict[str, int]:
    return {reason: count for reason, (count, _) in conversion.left_out.items()}


def reference(ann: int, image: int, split: str, *sentences: str) -> dict[str, Any]:
    texts = [
        {"tokens": each.split(), "raw": each, "sent_id": n, "sent": each}
        for n, each in enumerate(sentences)
    ]
    return {
        "ref_id": ann, "ann_id": ann, "image_id": image, "category_id": 1, "split": split,
        "file_name": f"COCO_train2014_{image:012}_{ann}.jpg",
        "sent_ids": [*range(len(sentences))], "sentences": texts,
    }  # fmt: skip


def save_refcoco(folder: Path) -> Path:
    """Save images, `instances.json` and `refs(unc).p`, and return the path of the last."""
    for number in (7, 8):
        save_image(folder / "train2014", f"COCO_train2014_{number:012}.png")
    listed = [
        reference(1, 7, "train", "the man on the left", "left guy", "man in blue"),
        reference(2, 8, "testA", "a dog that sleeps"),
        reference(3, 7, "train", "woman with an umbrella"),
    ]
    names = {n: f"COCO_train2014_{n:012}.png" for n in (7, 8)}
    document = {
        "images": [
            {"id": n, "file_name": name, "width": 224, "height": 224} for n, name in names.items()
        ],
        "annotations": [
            {"id": 1, "image_id": 7, "bbox": [0, 0, 50, 60], "category_id": 1, "iscrowd": 0},
            {"id": 2, "image_id": 8, "bbox": [5, 5, 50, 60], "category_id": 1, "iscrowd": 0},
            {"id": 3, "image_id": 7, "bbox": [90, 0, 20, 30], "category_id": 1, "iscrowd": 0},
        ],
        "categories": [{"id": 1, "name": "person"}],
    }
    save_json(folder / "refcoco" / "instances.json", document)
    path = folder / "refcoco" / "refs(unc).p"
    path.write_bytes(pickle.dumps(listed, protocol=2))
    return path


def vcr_sample(**changes: Any) -> dict[str, Any]:
    return {
        "movie": "3015_X", "objects": ["person", "dog", "person", "car"],
        "img_fn": "lsmdc_3015/3015_X@0.jpg", "metadata_fn": "lsmdc_3015/3015_X@0.json",
        "question_orig": "Why does 3 look at 2 ?", "answer_orig": "3 likes 2 .",
        "question": ["Why", "does", [2], "look", "at", [1], "?"],
        "answer_choices": [["No", "."], [[2], "likes", [1], "'", "s", "tail", "."]],
        "rationale_choices": [[[2, 1], "do", "n't", "move", "."], ["So", "."]],
        "answer_label": 1, "rationale_label": 0, "img_id": "train-0", "annot_id": "train-0",
    } | changes  # fmt: skip


def save_movie(folder: Path) -> Path:
    """Save an image of VCR and its metadata, and return where its samples belong."""
    save_image(folder / "vcr1images", "lsmdc_3015/3015_X@0.jpg", 400, 300)
    metadata = {
        "boxes": [[10.0 * n, 5.0, 10.0 * n + 50, 60.0, 0.99] for n in range(4)],
        "segms": [[], [], [], []], "names": ["person", "dog", "person", "car"],
        "width": 400, "height": 300,
    }  # fmt: skip
    save_json(folder / "vcr1images" / "lsmdc_3015" / "3015_X@0.json", metadata)
    return folder / "train.jsonl"


def save_lines(path: Path, *documents: object) -> Path:
    path.write_text("".join(json.dumps(each) + "\n" for each in documents))
    return path
