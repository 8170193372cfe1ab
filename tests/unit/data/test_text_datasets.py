"""Datasets of texts that name regions: Flickr30k Entities, GQA, VCR, LLaVA."""

import json
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
    save_lines,
    save_movie,
    turns,
    vcr_sample,
)
from regionqa.data.sources import gqa, vcr, wording
from regionqa.errors import DataError, UsageError

# -- Flickr30k Entities: flickr30k_entities_utils.py of github.com/BryanPlummer/flickr30k_entities


ANNOTATION = """<annotation>
  <filename>36979.jpg</filename>
  <size><width>300</width><height>200</height><depth>3</depth></size>
  <object><name>11</name><bndbox><xmin>101</xmin><ymin>11</ymin><xmax>151</xmax><ymax>61</ymax>
    </bndbox></object>
  <object><name>12</name><name>13</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>41</xmax>
    <ymax>51</ymax></bndbox></object>
  <object><name>14</name><scene>1</scene><nobndbox>0</nobndbox></object>
</annotation>
"""
CAPTIONS = """[/EN#12/people A man] in [/EN#11/clothing a blue shirt] stands , [/EN#14/scene out] .
[/EN#14/scene The street] is empty .
[/EN#11/clothing The shirt] of [/EN#13/people a guy] 's [/EN#0/notvisual friend] .
"""


@pytest.fixture
def flickr(tmp_path: Path) -> Path:
    folder = tmp_path / "flickr30k"
    for part in ("Annotations", "Sentences"):
        (folder / part).mkdir(parents=True)
    for name in ("36979", "5"):
        (folder / "Annotations" / f"{name}.xml").write_text(ANNOTATION)
        (folder / "Sentences" / f"{name}.txt").write_text(CAPTIONS)
    save_image(folder / "flickr30k-images", "36979.jpg", 300, 200)
    (folder / "train.txt").write_text("36979\n")
    return folder


def test_flickr30k_phrases_belong_to_their_boxes(flickr: Path) -> None:
    conversion = opened(flickr, "flickr30k-entities")
    first, second = records(conversion)
    assert boxes(first) == [(0, 0, 40, 50), (100, 10, 150, 60)]
    assert [answer for _, answer in turns(first)] == [
        "A man in a blue shirt stands, out.", "A man", "a blue shirt",
    ]  # fmt: skip
    assert boxes(second) == [(100, 10, 150, 60), (0, 0, 40, 50)]
    assert [answer for _, answer in turns(second)] == [
        "The shirt of a guy's friend.", "The shirt", "a guy",
    ]  # fmt: skip
    question, *following = [question for question, _ in turns(first)]
    asked = {text.format(regions="<region1> and <region2>") for text in wording.DESCRIBE_ALL}
    assert question in asked
    assert [n for n, text in enumerate(following, 1) if f"region {n}" in text] == [1, 2]
    assert reasons(conversion) == {"captions without boxes": 1}


def test_flickr30k_asks_for_the_first_phrase_of_a_box(flickr: Path) -> None:
    caption = "[/EN#11/clothing A shirt] hangs beside [/EN#11/clothing another shirt] ."
    (flickr / "Sentences" / "36979.txt").write_text(caption)
    (record,) = records(opened(flickr, "flickr30k-entities"))
    assert [answer for _, answer in turns(record)] == [
        "A shirt hangs beside another shirt.", "A shirt",
    ]  # fmt: skip


def test_flickr30k_split_and_limits(flickr: Path) -> None:
    with pytest.raises(DataError, match=r"5\.jpg: no such file"):
        records(opened(flickr, "flickr30k-entities", split="all"))
    with pytest.raises(DataError, match="the split 'val' is unknown"):
        records(opened(flickr, "flickr30k-entities", split="val"))
    limited = opened(flickr, "flickr30k-entities", max_regions=1)
    assert [boxes(record) for record in records(limited)] == [
        [(0, 0, 40, 50)],
        [(100, 10, 150, 60)],
    ]
    assert reasons(limited)["boxes above the limit of a record"] == 2
    with pytest.raises(DataError, match="Sentences: there is no such folder"):
        records(opened(flickr.parent, "flickr30k-entities"))


# -- GQA: cs.stanford.edu/people/dorarad/gqa/download.html; spans as in gqa_coco_format.py of
#    github.com/ashkamath/mdetr -------------------------------------------------------------------


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    save_image(tmp_path / "images", "24.jpg", 400, 300)
    graph = {
        "24": {
            "width": 400, "height": 300, "location": "street",
            "objects": {
                "101": {"name": "chair", "x": 10, "y": 20, "w": 30, "h": 40, "attributes": [],
                        "relations": []},
                "102": {"name": "traffic light", "x": 100, "y": 0, "w": 50, "h": 60,
                        "attributes": ["red"], "relations": [{"name": "on", "object": "101"}]},
                "103": {"name": "dot", "x": 1, "y": 1, "w": 1, "h": 1, "attributes": [],
                        "relations": []},
            },
        }
    }  # fmt: skip
    save_json(tmp_path / "train_sceneGraphs.json", graph)

    def asked(text: str, answer: str, mentions: dict[str, str]) -> dict[str, Any]:
        return {
            "imageId": "24", "question": text, "answer": answer.split()[0] if answer else "",
            "fullAnswer": answer, "isBalanced": True, "semantic": [], "types": {},
            "annotations": {"answer": {}, "fullAnswer": {"0": "101"}, "question": mentions},
        }  # fmt: skip

    document = {
        "1": asked("Is the chair near the traffic light?", "Yes, it is.",
                   {"2": "101", "5:7": "102"}),
        "2": asked("What is the dot?", "The dot.", {"3": "103"}),
        "3": asked("What color is the light, red or blue?", "The light is red.", {"4": "102"}),
        "4": asked("Is it day?", "", {"2": "101"}),
    }  # fmt: skip
    return save_json(tmp_path / "train_balanced_questions.json", document)


def test_gqa_names_regions_after_their_words(questions: Path) -> None:
    graphs = questions.with_name("train_sceneGraphs.json")
    conversion = opened(questions, "gqa", annotations=str(graphs))
    (record,) = records(conversion)
    assert turns(record) == [
        ("Is the chair <region1> near the traffic light <region2>?", "Yes, it is."),
        ("What color is the light <region2>, red or blue?", "The light is red."),
    ]
    assert boxes(record) == [(10, 20, 40, 60), (100, 0, 150, 60)]
    assert reasons(conversion) == {
        "boxes below 2 pixels of 224": 1,
        "questions about no object that has a usable box": 1,
        "questions without an answer": 1,
    }
    (alone,) = records(opened(questions, "gqa", annotations=str(graphs), max_regions=1))
    assert turns(alone)[0][0] == "What color is the light <region1>, red or blue?"
    with pytest.raises(UsageError, match="--kind gqa: add --annotations FILE"):
        opened(questions, "gqa")


def test_gqa_records_have_at_most_ten_questions(questions: Path) -> None:
    asked = json.loads(questions.read_text())
    save_json(questions, {str(n): asked["1"] for n in range(23)})
    graphs = str(questions.with_name("train_sceneGraphs.json"))
    found = records(opened(questions, "gqa", annotations=graphs))
    assert [len(record.turns) for record in found] == [10, 10, 3]
    assert {len(record.regions) for record in found} == {2}


@pytest.mark.parametrize("place", ["6", "2:9", "-1", "x", "0:0"])
def test_gqa_words_that_are_not_there(place: str) -> None:
    with pytest.raises(DataError, match=f"marks word '{place}'"):
        gqa.with_regions("is it a cat here?", {place: "<region1>"})


@pytest.fixture
def movies(tmp_path: Path) -> Path:
    return save_movie(tmp_path)


# -- VCR: dataloaders/vcr.py of github.com/rowanz/r2c --------------------------------------------


def test_vcr_tags_name_the_objects_that_they_count_from_0(movies: Path) -> None:
    (record,) = records(opened(save_lines(movies, vcr_sample()), "vcr"))
    (question, answer), (why, rationale) = turns(record)
    opening, _, asked = question.partition("Why")
    assert f"Why{asked}" == "Why does person at <region3> look at dog at <region2>?"
    listed = "<region1>, <region2>, <region3> and <region4>"
    assert opening.strip() in {text.format(regions=listed) for text in wording.GIVEN}
    assert answer == "person at <region3> likes dog at <region2>'s tail."
    assert why in wording.WHY
    assert rationale == "person at <region3> and dog at <region2> don't move."
    assert [box[0] for box in boxes(record)] == [0, 10, 20, 30]


def test_vcr_named_numbers_regions_in_the_order_of_the_question(movies: Path) -> None:
    path = save_lines(
        movies,
        vcr_sample(),
        vcr_sample(rationale_choices=[[[0], "said", "so", "."]]),
        vcr_sample(answer_choices=[[], [[0], "did", "."]]),
        vcr_sample(question=["Why", "?"]),
        vcr_sample(answer_label=None),
    )
    conversion = opened(path, "vcr-named")
    first, second = records(conversion)
    assert [box[0] for box in boxes(first)] == [20, 10]
    assert turns(first)[0] == (
        "Why does person at <region1> look at dog at <region2>?",
        "person at <region1> likes dog at <region2>'s tail.",
    )
    assert (len(first.turns), len(second.turns)) == (2, 1)
    assert reasons(conversion) == {
        vcr.ELSEWHERE_WHY: 1, vcr.ELSEWHERE: 1, vcr.UNTAGGED: 1, vcr.UNANSWERED: 1,
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["vcr", "vcr-named"])
def test_vcr_texts_about_a_box_that_was_left_out(movies: Path, kind: str) -> None:
    path = movies.parent / "vcr1images" / "lsmdc_3015" / "3015_X@0.json"
    metadata = json.loads(path.read_text())
    metadata["boxes"][1] = [10, 5, 10, 5, 0.9]
    path.write_text(json.dumps(metadata))
    other = [["It", "is", [2], "."]]
    good = vcr_sample(
        question=["Who", "is", [2], "?"], answer_choices=other, rationale_choices=other,
        answer_label=0,
    )  # fmt: skip
    conversion = opened(save_lines(movies, vcr_sample(), good), kind)
    (record,) = records(conversion)
    name = "<region2>" if kind == "vcr" else "<region1>"
    assert turns(record)[0][1] == f"It is person at {name}."
    assert record.regions[int(name[7]) - 1].box.x0 == 20
    assert reasons(conversion)[vcr.UNBOXED] == 1


def test_vcr_limit_keeps_the_objects_that_texts_name(movies: Path) -> None:
    path = save_lines(movies, vcr_sample())
    limited = opened(path, "vcr", max_regions=3)
    (record,) = records(limited)
    assert [box[0] for box in boxes(record)] == [0, 10, 20]
    assert reasons(limited) == {"boxes above the limit of a record": 1}
    crowded = opened(path, "vcr", max_regions=1)
    with pytest.raises(DataError, match="gave no records: questions or answers that name"):
        records(crowded)


def test_vcr_lines_are_read_one_at_a_time(movies: Path) -> None:
    """The first record is there although the file ends in the middle of the second."""
    path = save_lines(movies, vcr_sample(), vcr_sample(question=[[9], "?"]))
    path.write_text(path.read_text() + json.dumps(vcr_sample())[:99])
    found = opened(path, "vcr").usable(skip_bad=False)
    assert next(found).where == "train.jsonl:1"
    with pytest.raises(DataError, match=r"train\.jsonl:2: names object 9, but has objects 0 to 3"):
        next(found)
    conversion = opened(path, "vcr")
    assert len(records(conversion, skip_bad=True)) == 1
    assert [str(each).partition(": ")[0] for each in conversion.problems] == [
        "train.jsonl:2", "train.jsonl:3",
    ]  # fmt: skip


# -- Visual7W: common/data_provider.py of github.com/yukezhu/visual7w-toolkit ---------------------


@pytest.fixture
def pointing(tmp_path: Path) -> Path:
    def asked(number: int, answer: int, *wrong: int) -> dict[str, Any]:
        return {
            "qa_id": number, "image_id": 9, "question": "Which pillow is red?", "answer": answer,
            "type": "which", "multiple_choices": [*wrong],
        }  # fmt: skip

    save_image(tmp_path / "images", "v7w_9.jpg")
    document = {
        "dataset": "visual7w-pointing",
        "boxes": [
            {"box_id": n, "name": "pillow", "x": 10 * n, "y": 5, "width": 1 if n == 7 else 30,
             "height": 40}
            for n in range(9)
        ],
        "images": [
            {"image_id": 9, "filename": "v7w_9.jpg", "split": "train",
             "qa_pairs": [asked(1, 4, 1, 2, 3), asked(2, 4, 1, 2, 7)]},
            {"image_id": 8, "filename": "v7w_8.jpg", "split": "test",
             "qa_pairs": [asked(3, 99, 1, 2, 3)]},
        ],
    }  # fmt: skip
    return save_json(tmp_path / "dataset_v7w_pointing.json", document)


def test_visual7w_answers_with_the_region_that_is_right(pointing: Path) -> None:
    conversion = opened(pointing, "visual7w")
    (record,) = records(conversion)
    ((question, answer),) = turns(record)
    names = "<region1>, <region2>, <region3> or <region4>"
    asked = {f"Which pillow is red? {text.format(regions=names)}" for text in wording.CHOOSE}
    assert question in asked
    assert boxes(record)[int(answer.strip("<region>")) - 1] == (40, 5, 70, 45)
    assert sorted(box[0] for box in boxes(record)) == [10, 20, 30, 40]
    assert reasons(conversion) == {
        "boxes below 2 pixels of 224": 1, "questions with a choice that has no usable box": 1,
    }  # fmt: skip
    seeds = {repr(records(opened(pointing, "visual7w", seed=n))) for n in range(8)}
    assert len(seeds) > 2
    with pytest.raises(DataError, match="names box 99, which 'boxes' lacks"):
        records(opened(pointing, "visual7w", split="test"))
    with pytest.raises(DataError, match="no split 'val'; give --split test or train, or all"):
        records(opened(pointing, "visual7w", split="val"))
