"""Datasets that describe single regions: COCO, RefCOCO, Visual Genome."""

import json
import pickle
from pathlib import Path
from typing import Any

import pytest

from helpers.datasets.layouts import (
    boxes,
    opened,
    reasons,
    records,
    save_image,
    save_json,
    save_refcoco,
    turns,
)
from regionqa.data.containers.pickles import load_plain
from regionqa.data.images import ImageFinder
from regionqa.data.sources import wording
from regionqa.errors import DataError

# -- COCO: https://cocodataset.org/#format-data ------------------------------------------------


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    save_image(tmp_path, "a.png")
    save_image(tmp_path, "b.png", 448, 224)
    document = {
        "images": [
            {"id": 7, "file_name": "a.png", "width": 224, "height": 224},
            {"id": 8, "file_name": "b.png", "width": 448, "height": 224},
        ],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 3, "bbox": [10, 20, 30, 40], "iscrowd": 0},
            {"id": 2, "image_id": 7, "category_id": 5, "bbox": [0, 0, 2, 2], "iscrowd": 0},
            {"id": 3, "image_id": 7, "category_id": 5, "bbox": [9, 9, 1.9, 50], "iscrowd": 0},
            {"id": 4, "image_id": 7, "category_id": 5, "bbox": [1, 1, 99, 99], "iscrowd": 1},
            {"id": 5, "image_id": 8, "category_id": 5, "bbox": [9, 9, 3.9, 50], "iscrowd": 0},
            {"id": 6, "image_id": 8, "category_id": 5, "bbox": [440, 9, 20, 50], "iscrowd": 0},
            {"id": 7, "image_id": 8, "category_id": 5, "bbox": [500, 9, 20, 50], "iscrowd": 0},
        ],
        "categories": [{"id": 3, "name": "cat"}, {"id": 5, "name": "cup"}],
    }
    return save_json(tmp_path / "instances.json", document)


def test_coco_asks_for_the_class_of_every_region(coco: Path) -> None:
    conversion = opened(coco, "coco")
    first, second = records(conversion)
    labels: dict[tuple[float, ...], str] = {(10, 20, 40, 60): "cat", (0, 0, 2, 2): "cup"}
    assert [answer for _, answer in turns(first)] == [labels[box] for box in boxes(first)]
    question = wording.NAME_REGION.format(names="cat, cup", region="<region1>")
    assert [question for question, _ in turns(first)] == [question, "<region2>"]
    assert boxes(second) == [(440, 9, 448, 59)]
    assert reasons(conversion) == {
        "boxes below 2 pixels of 224": 2,
        "crowds": 1,
        "boxes without area or outside their image": 1,
    }
    assert conversion.summary() == [
        "boxes below 2 pixels of 224 left out: 2, the first at instances.json: a.png",
        "crowds left out: 1, at instances.json: a.png",
        "boxes without area or outside their image left out: 1, at instances.json: b.png",
        "1 region clipped to the image",
    ]


@pytest.mark.parametrize(
    ("size", "box", "kept"),
    [
        ((448, 224), [0, 0, 4, 2], True),
        ((448, 224), [0, 0, 3.9, 2], False),
        ((448, 224), [0, 0, 4, 1.9], False),
        ((112, 448), [0, 0, 1, 4], True),
        ((112, 448), [0, 0, 0.9, 4], False),
        ((112, 448), [0, 0, 1, 3.9], False),
    ],
)
def test_boxes_are_measured_in_the_square_image(
    tmp_path: Path, size: tuple[int, int], box: list[float], kept: bool
) -> None:
    save_image(tmp_path, "a.png", *size)
    whole = {"box": [0, 0, *size], "label": "all"}
    path = save_json(tmp_path / "boxes.json", {"a.png": [whole, {"box": box, "label": "dot"}]})
    (record,) = records(opened(path, "coco"))
    assert len(record.regions) == 1 + kept


def test_text_that_would_name_no_region_is_a_problem(tmp_path: Path) -> None:
    save_image(tmp_path, "1.jpg")
    path = save_json(
        tmp_path / "region_descriptions.json", [described(1, "see [region 3]"), described(1, "ok")]
    )
    conversion = opened(path, "visual-genome")
    assert [turns(each)[0][1] for each in records(conversion, skip_bad=True)] == ["ok"]
    assert "which names no region" in str(conversion.problems[0])
    assert conversion.bad == 1


def test_lookup_of_images_forgets_the_oldest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("regionqa.data.images.KEPT", 1)
    for name in ("a.png", "b.png"):
        save_image(tmp_path, name)
    finder = ImageFinder(tmp_path / "x.json", [tmp_path])
    first = finder.find("a.png")
    assert finder.find("a.png") is first
    finder.find("b.png")
    assert finder.find("a.png") is not first
    assert finder.find("a.png") == first


def test_more_regions_than_a_record_has_make_further_records(tmp_path: Path) -> None:
    save_image(tmp_path, "a.png")
    many = [{"box": [n, n, n + 9, n + 9], "label": str(n)} for n in range(40)]
    path = save_json(tmp_path / "boxes.json", {"a.png": many})
    found = records(opened(path, "coco"))
    assert [len(record.regions) for record in found] == [15, 15, 10]
    assert sorted(int(a) for record in found for _, a in turns(record)) == [*range(40)]
    assert all(
        int(a) == r.box.x0 for x in found for r, (_, a) in zip(x.regions, turns(x), strict=True)
    )
    assert {len(each.regions) for each in records(opened(path, "coco", max_regions=1))} == {1}
    other = [turns(each) for each in records(opened(path, "coco", seed=1))]
    assert other != [turns(each) for each in found]
    assert [turns(each) for each in records(opened(path, "coco", seed=1))] == other


@pytest.fixture
def refs(tmp_path: Path) -> Path:
    return save_refcoco(tmp_path)


# -- RefCOCO: refer.py of github.com/lichengunc/refer; scripts/fine-tuning/refexp_coco_format.py
#    of github.com/ashkamath/mdetr ---------------------------------------------------------------


def test_refcoco_pickle_gives_a_record_per_round_of_expressions(refs: Path) -> None:
    conversion = opened(refs, "refcoco", refs.parents[1] / "train2014")
    first, second = records(conversion)
    opening = wording.REFER.format(region="<region1>")
    assert turns(first) == [
        (opening, "the man on the left"),
        ("<region2>", "woman with an umbrella"),
    ]
    assert boxes(first) == [(0, 0, 50, 60), (90, 0, 110, 30)]
    assert turns(second) == [(opening, "man in blue")]
    assert boxes(second) == [(0, 0, 50, 60)]
    assert reasons(conversion) == {"expressions of fewer than 3 words": 1}


def test_refcoco_plus_and_refcocog_ask_differently(refs: Path) -> None:
    images = refs.parents[1] / "train2014"
    plus = records(opened(refs, "refcoco+", images))
    assert plus[0].turns[0].question == wording.REFER_WITHOUT_PLACE.format(region="<region1>")
    long = opened(refs, "refcocog", images)
    answers = [answer for record in records(long) for _, answer in turns(record)]
    assert "left guy" in answers
    asked = {text.format(region=f"<region{n}>") for text in wording.DESCRIBE for n in (1, 2)}
    assert {q for record in records(long) for q, _ in turns(record)} <= asked


def test_refcoco_reads_one_split(refs: Path) -> None:
    images = refs.parents[1] / "train2014"
    (only,) = records(opened(refs, "refcoco", images, split="testA"))
    assert only.turns[0].answer == "a dog that sleeps"
    assert len(records(opened(refs, "refcoco", images, split="all"))) == 3
    with pytest.raises(DataError, match="no split 'valid'; give --split testA or train, or all"):
        records(opened(refs, "refcoco", images, split="valid"))


def test_mdetr_json_gives_the_records_of_the_pickle(refs: Path, tmp_path: Path) -> None:
    images: list[object] = []
    annotations: list[object] = []
    listed = load_plain(refs)
    known = json.loads((refs.parent / "instances.json").read_text())
    bbox = {each["id"]: each["bbox"] for each in known["annotations"]}
    for each in listed:
        for text in each["sentences"] if each["split"] == "train" else ():
            number = len(images)
            name = f"COCO_train2014_{each['image_id']:012}.png"
            images.append({
                "file_name": name, "height": 224, "width": 224, "id": number,
                "original_id": each["image_id"], "caption": text["sent"],
                "dataset_name": "refcoco", "tokens_negative": [[0, 4]],
            })  # fmt: skip
            annotations.append({
                "area": 9, "iscrowd": 0, "image_id": number, "category_id": 1, "id": number,
                "bbox": bbox[each["ann_id"]], "original_id": each["ann_id"],
                "tokens_positive": [[0, 3]],
            })  # fmt: skip
    document = {
        "info": {}, "licenses": [], "images": images, "annotations": annotations, "categories": [],
    }  # fmt: skip
    path = save_json(tmp_path / "finetune_refcoco_train.json", document)
    folder = tmp_path / "train2014"
    expected = [(boxes(each), turns(each)) for each in records(opened(refs, "refcoco", folder))]
    found = [(boxes(each), turns(each)) for each in records(opened(path, "refcoco", folder))]
    assert found == expected


class _Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("ran",))


def test_pickle_with_a_function_is_not_opened(
    refs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refs.write_bytes(pickle.dumps([{"ann_id": _Evil()}]))
    with pytest.raises(DataError, match=r"would import builtins\.print, .* it is not opened"):
        records(opened(refs, "refcoco"))
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_plain_pickles_of_every_protocol_are_read(tmp_path: Path, protocol: int) -> None:
    plain = [{"a": (1, 2.5, None, True, "é", b"\xff", {3}, frozenset({4}), 1 << 80)}]
    path = tmp_path / "a.p"
    path.write_bytes(pickle.dumps(plain, protocol=protocol))
    if protocol < 3:  # bytes need _codecs.encode there, which Python 2 never wrote
        with pytest.raises(DataError, match=r"_codecs\.encode"):
            load_plain(path)
    else:
        assert load_plain(path) == plain


def test_pickle_of_python_2_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.p"
    path.write_bytes(b"\x80\x02]q\x00}q\x01(U\x05splitq\x02U\x05trainq\x03u\x61.")
    assert load_plain(path) == [{"split": "train"}]


@pytest.mark.parametrize("content", [b"", b"\x80\x04", b"\x80\x04]", b"not a pickle", b"\xff" * 9])
def test_broken_pickle_is_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "refs(unc).p"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"refs\(unc\)\.p: is not a whole pickle: .+; download"):
        load_plain(path)


# -- Ref-L4: the dataset card of JierunChen/Ref-L4 ------------------------------------------------


def test_ref_l4_rows_are_grouped_by_image(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")

    def row(caption: str, bbox: list[float], name: str = "COCO_train2014_1.png") -> dict[str, Any]:
        return {
            "id": 1, "caption": caption, "bbox": bbox, "bbox_area": bbox[2] * bbox[3],
            "bbox_id": "coco_1", "ori_category_id": "refcoco_1", "image_id": "coco_1",
            "height": 224, "width": 224, "file_name": name, "is_rewrite": False, "split": "val",
        }  # fmt: skip

    save_image(tmp_path / "images", "COCO_train2014_1.png")
    rows = [
        row("A camera.", [10.5, 20, 30, 40]),
        row("A man.", [0, 0, 50, 60]),
        row("It stands within the frame.", [10.5, 20, 30, 40]),
    ]
    path = tmp_path / "ref-l4-val.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    first, second = records(opened(path, "ref-l4"))
    assert boxes(first) == [(10.5, 20, 40.5, 60), (0, 0, 50, 60)]
    assert [answer for _, answer in turns(first)] == ["A camera.", "A man."]
    assert [answer for _, answer in turns(second)] == ["It stands within the frame."]
    parquet.write_table(pyarrow.Table.from_pylist([{"caption": "A man."}]), path)
    with pytest.raises(DataError, match=r"is not a Parquet file of captions, .*; download it"):
        records(opened(path, "ref-l4"))
    path.write_bytes(b"PAR1" + b"\0" * 50)
    with pytest.raises(DataError, match=r"is not a Parquet file of captions, .*; download it"):
        records(opened(path, "ref-l4"))


# -- Visual Genome: visualgenome.org/static/data/dataset/region_descriptions.json, as in the readme
#    of github.com/ranjaykrishna/visual_genome_python_driver --------------------------------------


def described(image_id: int, *phrases: str) -> dict[str, Any]:
    regions = [
        {
            "region_id": 1000 + n, "image_id": image_id, "x": 10 * n, "y": 5, "width": 20,
            "height": 30, "phrase": phrase,
        }
        for n, phrase in enumerate(phrases)
    ]  # fmt: skip
    return {"id": image_id, "regions": regions}


def test_visual_genome_describes_regions_in_random_order(tmp_path: Path) -> None:
    save_image(tmp_path / "vg" / "VG_100K", "1.jpg")
    save_image(tmp_path / "vg" / "VG_100K_2", "2.jpg")
    phrases = [f"thing number {n}" for n in range(17)]
    path = save_json(
        tmp_path / "region_descriptions.json",
        [described(1, *phrases), described(2, "a cat ", ""), described(2)],
    )
    conversion = opened(path, "visual-genome", tmp_path / "vg")
    first, second, third = records(conversion)
    assert (len(first.regions), len(second.regions)) == (15, 2)
    answers = [answer for record in (first, second) for _, answer in turns(record)]
    assert sorted(answers) == sorted(phrases)
    assert answers != phrases
    for record in (first, second):
        for region, (_, answer) in zip(record.regions, turns(record), strict=True):
            assert region.box.x0 == 10 * int(answer.split()[-1])
    assert [answer for _, answer in turns(third)] == ["a cat"]
    assert third.image.parent.name == "VG_100K_2"
    assert reasons(conversion) == {"empty phrases": 1, "images without annotations": 1}


def test_visual_genome_objects_have_their_preferred_name(tmp_path: Path) -> None:
    save_image(tmp_path, "1.jpg")

    def named(number: int, *names: str) -> dict[str, Any]:
        return {
            "synsets": ["tree.n.01"], "object_id": number, "merged_object_ids": [],
            "names": [*names], "x": 10 * number, "y": 5, "w": 20, "h": 30,
        }  # fmt: skip

    things = [named(1, "tree"), named(2, "street lamp", "lamp"), named(3)]
    document = [{"image_id": 1, "image_url": "https://x/1.jpg", "objects": things}]
    conversion = opened(save_json(tmp_path / "objects.json", document), "visual-genome-objects")
    (record,) = records(conversion)
    names = {(10, 5, 30, 35): "tree", (20, 5, 40, 35): "street lamp"}
    assert dict(zip(boxes(record), [a for _, a in turns(record)], strict=True)) == names
    opening = wording.NAME_ANYTHING.format(region="<region1>")
    assert [question for question, _ in turns(record)] == [opening, "<region2>"]
    assert reasons(conversion) == {"objects without a name": 1}
