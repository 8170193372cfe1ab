"""`regionqa eval fineeval`: the ranking page, and scores of saved rankings."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import regionqa.evaluation.fineeval
from helpers.evaluation_files import answered, grey, metric_values
from regionqa.bundles.prompt_rules import RegionInput
from regionqa.bundles.store import Bundle
from regionqa.errors import DataError
from regionqa.evaluation.fineeval.page import blind_name
from regionqa.evaluation.fineeval.questions import (
    answers_by_system,
    fineeval_requests,
    read_fineeval,
)

if TYPE_CHECKING:
    from conftest import Command

LEFT = "<Region><L0><L0><L250><L500></Region>"
RIGHT = "<Region><L500><L250><L1000><L1000></Region>"
SAID = {"pvit": "A cup.", "llava": "</script><b>bold</b> & more"}
RECORDS: list[dict[str, Any]] = [
    {"image": "a.jpg", "instruction": f"What is in {LEFT}?",
     "instruction_no_region": "What is on the left?", "recorded": SAID},
    {"image": "a.jpg", "instruction": f"Is {LEFT} left of {RIGHT}?",
     "instruction_no_region": "Is the cup left of the plate?", "recorded": SAID},
    {"image": "b.jpg", "instruction": "What risks are there?",
     "instruction_no_region": "What risks are there?", "recorded": SAID},
]  # fmt: skip
BOXES: list[list[list[float]]] = [
    [[0, 0, 100, 150]], [[0, 0, 100, 150], [200, 75, 400, 300]], []
]  # fmt: skip


@pytest.fixture
def data(tmp_path: Path, starter: Bundle) -> Path:
    """A folder like FineEval's, and the starter's answers to its questions."""
    folder = tmp_path / "fineeval"
    grey(folder / "images", "a.jpg", "b.jpg")
    text = "".join(json.dumps(record) + "\n" for record in RECORDS)
    (folder / "fineeval.jsonl").write_text(text)
    asked = [item.question for item in read_fineeval(folder).items]
    images = [record["image"] for record in RECORDS]
    rows = zip(images, BOXES, asked, ["one.", "two.", "three."], strict=True)
    answered(tmp_path / "kept.jsonl", starter, list(rows))
    return folder


@pytest.fixture
def page(regionqa: "Command", data: Path, tmp_path: Path) -> Path:
    """The ranking page of the folder."""
    out = tmp_path / "page.html"
    ran = regionqa("eval", "fineeval", data, "--out", out, "--answers", tmp_path / "kept.jsonl")
    assert (ran.status, ran.err, ran.out) == (0, "", f"{out}\n")
    return out


def content(page: Path) -> dict[str, Any]:
    """The data embedded in the page."""
    text = page.read_text(encoding="utf-8")
    (data,) = re.findall(r'<script id="data" type="application/json">(.*?)</script>', text, re.S)
    return dict(json.loads(data))


def test_page_is_self_contained_and_blind(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert not re.findall(r'(?:src|href)="(?!data:)', text)
    assert not re.findall(r"https?://(?!www\.w3\.org/2000/svg)", text)
    found = content(page)
    assert found["images"]["a.jpg"]["data"].startswith("data:image/jpeg;base64,")
    assert found["systems"] == ["llava", "pvit", "starter"]
    first = found["items"][0]
    assert first["question"] == "What is in <region1>?"
    assert first["boxes"] == [[0, 0, 0.25, 0.5]]
    assert {answer["text"] for answer in first["answers"]} == {*SAID.values(), "one."}
    assert not {"starter", "pvit", "llava"} & {answer["name"] for answer in first["answers"]}


def test_answer_order_depends_on_question_and_seed(
    regionqa: "Command", data: Path, page: Path, tmp_path: Path
) -> None:
    def orders(path: Path) -> list[list[str]]:
        known = ["pvit", "llava", "starter"]
        items = read_fineeval(data).items
        seed = content(path)["seed"]
        return [
            [next(s for s in known if blind_name(seed, item, s) == answer["name"])
             for answer in shown["answers"]]
            for item, shown in zip(items, content(path)["items"], strict=True)
        ]  # fmt: skip

    found = {tuple(order) for order in orders(page)}
    for seed in range(1, 4):
        other = tmp_path / f"{seed}.html"
        words = ("--answers", tmp_path / "kept.jsonl", "--seed", seed)
        assert regionqa("eval", "fineeval", data, "--out", other, *words).status == 0
        found |= {tuple(order) for order in orders(other)}
        assert content(other)["id"] != content(page)["id"]
    assert len(found) > 2


def ranks(page: Path, data: Path, by_item: list[dict[str, int]], rater: str) -> Path:
    """A ranking as the page saves it."""
    found = content(page)
    saved = {key: found[key] for key in ("format", "id", "seed", "systems")}
    items = read_fineeval(data).items
    saved["ranks"] = {
        str(item.number): {
            blind_name(found["seed"], item, name): rank for name, rank in each.items()
        }
        for item, each in zip(items, by_item, strict=True)
    }
    path = page.with_name(f"{rater}.json")
    path.write_text(json.dumps({**saved, "rater": rater, "place": 0}))
    return path


def test_rankings_are_scored_as_wins_ties_and_losses(
    regionqa: "Command", data: Path, page: Path
) -> None:
    ann = ranks(page, data, [{"pvit": 1, "llava": 2, "starter": 3}, {"pvit": 1, "llava": 1}, {}],
                "ann")  # fmt: skip
    bob = ranks(page, data, [{"pvit": 2, "llava": 1, "starter": 5}] * 3, "bob")
    out = page.with_name("out.json")
    ran = regionqa("eval", "fineeval", data, "--ranking", ann, "--ranking", bob, "--json", out)
    assert (ran.status, ran.err) == (0, "")
    document = json.loads(out.read_text())
    # llava : pvit in 5 judgements: ann loses 1 and ties 1, bob wins 3
    shares = [metric_values(document, each)["llava : pvit"] for each in ("win", "tie", "loss")]
    assert shares == [60, 20, 20]
    assert metric_values(document, "loss")["starter : llava"] == 100
    found = metric_values(document)
    assert found["place_llava"] == pytest.approx((2 + 1.5 + 1 + 1 + 1) / 5)
    assert found["place_starter"] == 3
    # of the 3 pairs of question 1 they agree on 2, on the one of question 2 not
    assert found["agreement"] == 50
    row = next(line.split() for line in ran.lines if line.startswith("llava : pvit"))
    assert (row[3], row[-1]) == ("60.0", "5")
    assert ran.lines[0] == "fineeval: rankings"
    assert ["ann", "2"] in [line.split() for line in ran.lines]
    assert ["bob", "3"] in [line.split() for line in ran.lines]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "is not a saved ranking; save one on the page"),
        (
            '{"format": "regionqa-fineeval-1", "seed": 0, "systems": [], "ranks": {}}',
            "has no two ranked",
        ),
        ("[", "is not a saved ranking"),
    ],
)
def test_other_files_are_refused(
    regionqa: "Command", data: Path, tmp_path: Path, text: str, message: str
) -> None:
    (tmp_path / "saved.json").write_text(text)
    ran = regionqa("eval", "fineeval", data, "--ranking", tmp_path / "saved.json")
    assert (ran.status, ran.out) == (1, "")
    assert message in ran.err
    twice = ("--ranking", tmp_path / "saved.json") * 2
    assert regionqa("eval", "fineeval", data, *twice).status == 1


def test_json_option_without_rankings_is_a_usage_error(regionqa: "Command", data: Path) -> None:
    ran = regionqa("eval", "fineeval", data, "--json", "x.json")
    assert (ran.status, ran.out) == (2, "")
    assert "add --ranking FILE" in ran.err


def test_model_without_regions_is_asked_in_words(data: Path) -> None:
    found = fineeval_requests(read_fineeval(data), RegionInput.coordinates)
    assert [len(request.regions) for request in found] == [1, 2, 0]
    assert found[0].regions[0].box.xyxy == (0, 0, 100, 150)
    words = fineeval_requests(read_fineeval(data), RegionInput.none)
    assert [request.question for request in words] == [
        record["instruction_no_region"] for record in RECORDS
    ]
    assert not any(request.regions for request in words)


def test_failed_answers_are_left_out(data: Path) -> None:
    read = read_fineeval(data, limit=2)
    given = answers_by_system(read, [("mine", ["x", None])])
    assert [list(each) for each in given] == [["pvit", "llava", "mine"], ["pvit", "llava"]]
    with pytest.raises(DataError, match="pvit: two systems have this name"):
        answers_by_system(read, [("pvit", ["x", "y"])])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"fineeval\.jsonl: is empty; write"),
        ("[]", "has no questions"),
        ("{", r"fineeval\.jsonl:1: is not JSON"),
        ("4", "is 4, not an object"),
        ('{"image": "a.jpg"}', "'instruction' is None, not a string"),
        (
            json.dumps({**RECORDS[0], "recorded": [1]}),
            "'recorded' is not an object of answers by system",
        ),
    ],
)
def test_malformed_file_error_names_the_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "fineeval.jsonl").write_text(text)
    with pytest.raises(DataError, match=message):
        read_fineeval(tmp_path)


# -- the page in a browser -------------------------------------------------------------------------


@pytest.mark.slow
def test_page_script_parses() -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("needs node")
    script = Path(regionqa.evaluation.fineeval.__file__).parent / "page.js"
    subprocess.run([node, "--check", script], check=True)


@pytest.mark.slow
def test_rater_can_rank_save_and_continue(page: Path, data: Path, tmp_path: Path) -> None:
    """With mouse and keyboard in a real browser, if one is installed."""
    playwright = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("needs chromium")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        shown = browser.new_page(accept_downloads=True)
        problems: list[str] = []
        shown.on("pageerror", lambda error: problems.append(str(error)))
        shown.goto(page.as_uri())
        assert shown.text_content("#question") == "What is in region 1?"
        shown.click("#answers li:nth-child(2) .ranks button:nth-child(1)")
        for key in ("2", "2", "Enter"):  # the first answer, then the third: a tie
            shown.keyboard.press(key)
        assert shown.text_content("#place") == "question 2 of 3"
        shown.keyboard.press("c")
        shown.keyboard.press("3")
        shown.fill("#rater", "ann")
        with shown.expect_download() as download:
            shown.click("#save")
        download.value.save_as(tmp_path / "ann.json")
        shown.reload()
        assert shown.text_content("#done") == "1 ranked"
        elsewhere = browser.new_context().new_page()
        elsewhere.goto(page.as_uri())
        assert elsewhere.text_content("#done") == "0 ranked"
        elsewhere.set_input_files("#open", tmp_path / "ann.json")
        elsewhere.wait_for_function("document.getElementById('message').textContent !== ''")
        assert elsewhere.text_content("#done") == "1 ranked"
        assert elsewhere.text_content("#place") == "question 2 of 3"
        browser.close()
    assert problems == []
    saved = json.loads((tmp_path / "ann.json").read_text())
    names = [answer["name"] for answer in content(page)["items"][0]["answers"]]
    assert saved["ranks"]["1"] == dict(zip(names, (2, 1, 2), strict=True))
    third = content(page)["items"][1]["answers"][2]["name"]
    assert saved["ranks"]["2"] == {third: 3}
