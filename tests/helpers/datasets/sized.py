"""Datasets of any size in the layouts of several kinds, written as a stream."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from PIL import Image

SIDE = 512
"""Width and height of every image, in pixels."""
ORIGINALS = 200
"""Images that are files of their own; the others are links to them."""
PER_IMAGE = 20
"""Regions, or questions, of an image."""
CAPTIONS = 5
"""Captions of an image of Flickr30k."""
Box = list[int]


def save_images(folder: Path, count: int) -> None:
    """Save `0.jpg`, `1.jpg` and so on, unless they are there."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        path = folder / f"{number}.jpg"
        if path.exists():
            continue
        if number < ORIGINALS:
            Image.new("RGB", (SIDE, SIDE), (number, 90, 60)).save(path)
        else:
            path.hardlink_to(folder / f"{number % ORIGINALS}.jpg")


def box(number: int) -> Box:
    """Left, top, width and height of a box inside the image."""
    return [number * 7 % 400, number * 3 % 300, 20 + number % 60, 50]


def corners(number: int) -> Box:
    """Left, top, right and bottom of the same box."""
    left, top, width, height = box(number)
    return [left, top, left + width, top + height]


def turns(number: int) -> list[dict[str, str]]:
    """A question and an answer that differ by their number."""
    texts = (f"What is thing number {number}?", f"A thing of kind {number % 997}.")
    return [{"from": ("human", "gpt")[n], "value": text} for n, text in enumerate(texts)]


def image_of(number: int) -> str:
    """Name of the image of an annotation."""
    return f"{number // PER_IMAGE}.jpg"


def save_array(path: Path, items: Iterable[object]) -> Path:
    """Write a JSON array without building it."""
    with path.open("w") as file:
        file.writelines(_array(items))
    return path


def save_object(path: Path, **arrays: Iterable[object] | Mapping[str, object]) -> Path:
    """Write a JSON object of arrays without building them."""
    with path.open("w") as file:
        for place, (key, items) in enumerate(arrays.items()):
            file.write(f"{',' if place else '{'}{json.dumps(key)}:")
            file.writelines(_array(items))
        file.write("}")
    return path


def save_pairs(path: Path, pairs: Iterable[tuple[str, object]]) -> Path:
    """Write a JSON object of many keys without building it."""
    with path.open("w") as file:
        for place, (key, value) in enumerate(pairs):
            file.write(f"{',' if place else '{'}{json.dumps(key)}:{json.dumps(value)}")
        file.write("}")
    return path


def _array(items: Iterable[object]) -> Iterator[str]:
    yield "["
    for place, item in enumerate(items):
        yield f"{',' if place else ''}{json.dumps(item)}"
    yield "]"


# -- kinds: each writes so many regions or questions, and returns FILE and --annotations -----------

Files = tuple[Path, Path | None]


def save_lines(folder: Path, count: int) -> Files:
    """Training records, in JSON lines."""
    path = folder / "mine.jsonl"
    with path.open("w") as file:
        for n in range(count):
            region = {"box": corners(n), "label": f"thing {n % 50}"}
            record = {"image": image_of(n), "regions": [region], "conversations": turns(n)}
            file.write(json.dumps(record) + "\n")
    return path, None


def save_coco(folder: Path, count: int) -> Files:
    """COCO instances."""
    images: Iterator[Any] = ({"id": n, "file_name": f"{n}.jpg"} for n in range(_images(count)))
    found: Iterator[Any] = (
        {"id": n, "image_id": n // PER_IMAGE, "category_id": n % 50, "bbox": box(n), "iscrowd": 0}
        for n in range(count)
    )
    names: Iterator[Any] = ({"id": n, "name": f"thing {n}"} for n in range(50))
    path = folder / "instances.json"
    return save_object(path, images=images, annotations=found, categories=names), None


def save_refcoco(folder: Path, count: int) -> Files:
    """MDETR's JSON of referring expressions."""
    images: Iterator[Any] = (
        {"id": n, "file_name": image_of(n), "original_id": n // PER_IMAGE,
         "caption": f"the thing number {n}"}
        for n in range(count)
    )  # fmt: skip
    found: Iterator[Any] = ({"image_id": n, "bbox": box(n)} for n in range(count))
    path = folder / "finetune_refcoco_train.json"
    return save_object(path, images=images, annotations=found), None


def save_visual_genome(folder: Path, count: int) -> Files:
    """Visual Genome's region descriptions."""
    keys = ("x", "y", "width", "height")
    images = (
        {"id": image, "regions": [
            {**dict(zip(keys, box(n), strict=True)), "phrase": f"thing {n}"} for n in numbers]}
        for image, numbers in _by_image(count)
    )  # fmt: skip
    return save_array(folder / "region_descriptions.json", images), None


def save_objects(folder: Path, count: int) -> Files:
    """Visual Genome's objects."""
    images = (
        {"image_id": image, "objects": [
            {**dict(zip("xywh", box(n), strict=True)), "names": [f"thing {n}"]} for n in numbers]}
        for image, numbers in _by_image(count)
    )  # fmt: skip
    return save_array(folder / "objects.json", images), None


def save_gqa(folder: Path, count: int) -> Files:
    """GQA's questions and scene graphs."""
    questions = (
        (str(n), {"imageId": str(n // PER_IMAGE), "question": f"where is thing number {n}?",
                  "fullAnswer": f"It is at {n}.", "annotations": {"question": {"2": str(n)}}})
        for n in range(count)
    )  # fmt: skip
    graphs = (
        (str(image), {"width": SIDE, "height": SIDE, "objects": {
            str(n): {"name": "thing", **dict(zip("xywh", box(n), strict=True))} for n in numbers}})
        for image, numbers in _by_image(count)
    )  # fmt: skip
    second = save_pairs(folder / "train_sceneGraphs.json", graphs)
    return save_pairs(folder / "train_balanced_questions.json", questions), second


def save_vcr(folder: Path, count: int) -> Files:
    """VCR's samples, and the metadata of their images."""
    for image, numbers in _by_image(count):
        metadata = {"boxes": [[*corners(n), 0.9] for n in numbers[:4]]}
        (folder / f"{image}.json").write_text(json.dumps(metadata))
    path = folder / "train.jsonl"
    with path.open("w") as file:
        for n in range(count):
            image = n // PER_IMAGE
            known = len(range(image * PER_IMAGE, min(count, image * PER_IMAGE + 4)))
            sample = {
                "objects": ["person"] * known, "img_fn": f"{image}.jpg",
                "metadata_fn": f"{image}.json", "question": ["Why", "is", [n % known], str(n), "?"],
                "answer_choices": [["It", "is", [n % known], str(n), "."]], "answer_label": 0,
                "rationale_choices": [["It", "looks", "so", "."]], "rationale_label": 0,
            }  # fmt: skip
            file.write(json.dumps(sample) + "\n")
    return path, None


def save_pointing(folder: Path, count: int) -> Files:
    """Visual7W's pointing questions, each with two boxes of its own."""
    boxes: Iterator[Any] = (
        {"box_id": n, **dict(zip(("x", "y", "width", "height"), box(n), strict=True))}
        for n in range(2 * count)
    )
    images: Iterator[Any] = (
        {"filename": f"{image}.jpg", "split": "train", "qa_pairs": [
            {"question": f"Which is {n}?", "answer": 2 * n, "multiple_choices": [2 * n + 1]}
            for n in numbers]}
        for image, numbers in _by_image(count)
    )  # fmt: skip
    return save_object(folder / "dataset_v7w_pointing.json", boxes=boxes, images=images), None


def save_llava(folder: Path, count: int) -> Files:
    """LLaVA's conversations, and boxes of a detector in COCO's format."""
    said = ({"id": str(n), "image": image_of(n), "conversations": turns(n)} for n in range(count))
    path = save_array(folder / "llava_instruct_150k.json", said)
    return path, save_coco(folder, count)[0]


def save_osprey(folder: Path, count: int) -> Files:
    """Osprey-724K's conversations about a region."""
    samples = (
        {"file_name": image_of(n), "annotation": [{"bbox": box(n)}], "conversations": [
            {"from": "human", "value": f"What is <region1>, number {n}?"}, turns(n)[1]]}
        for n in range(count)
    )  # fmt: skip
    return save_array(folder / "osprey_conversation.json", samples), None


def save_flickr(folder: Path, count: int) -> Files:
    """Flickr30k's captions, each of a phrase with a box."""
    for part in ("Sentences", "Annotations"):
        (folder / part).mkdir(exist_ok=True)
        for old in (folder / part).iterdir():
            old.unlink()
    names = []
    for image in range(-(-count // CAPTIONS)):
        numbers = range(image * CAPTIONS, min(count, (image + 1) * CAPTIONS))
        captions = (f"[/EN#{n}/other The thing {n}] is here ." for n in numbers)
        objects = (_flickr_object(n) for n in numbers)
        (folder / "Sentences" / f"{image}.txt").write_text("\n".join(captions))
        (folder / "Annotations" / f"{image}.xml").write_text(
            f"<annotation>{''.join(objects)}</annotation>"
        )
        names.append(str(image))
    (folder / "train.txt").write_text("\n".join(names))
    return folder, None


def _flickr_object(number: int) -> str:
    sides = zip(("xmin", "ymin", "xmax", "ymax"), corners(number), strict=True)
    numbers = "".join(f"<{side}>{value + 1}</{side}>" for side, value in sides)
    return f"<object><name>{number}</name><bndbox>{numbers}</bndbox></object>"


def _images(count: int) -> int:
    return -(-count // PER_IMAGE)


def _by_image(count: int) -> Iterator[tuple[int, range]]:
    """Iterate over the images and the numbers of their annotations."""
    for image in range(_images(count)):
        yield image, range(image * PER_IMAGE, min(count, (image + 1) * PER_IMAGE))


DATASETS: dict[str, Callable[[Path, int], Files]] = {
    "lines": save_lines,
    "coco": save_coco,
    "refcoco": save_refcoco,
    "visual-genome": save_visual_genome,
    "visual-genome-objects": save_objects,
    "gqa": save_gqa,
    "vcr": save_vcr,
    "vcr-named": save_vcr,
    "visual7w": save_pointing,
    "llava-instruct": save_llava,
    "osprey": save_osprey,
    "flickr30k-entities": save_flickr,
}
"""By kind; `lines` is converted without --kind."""


def convert_words(kind: str, folder: Path, count: int) -> list[str]:
    """Write a dataset and its images; return the words of `data convert`, but for --out."""
    save_images(folder, -(-count // (CAPTIONS if kind == "flickr30k-entities" else PER_IMAGE)))
    file, second = DATASETS[kind](folder, count)
    words = ["data", "convert", str(file), "--images", str(folder)]
    words += [] if kind == "lines" else ["--kind", kind]
    return words + ([] if second is None else ["--annotations", str(second)])
