"""`regionqa eval --ways`: ways of telling regions compared on a user's data."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from PIL import Image

from regionqa.vlm.cards import read_vlm_card

if TYPE_CHECKING:
    from conftest import Command


@pytest.fixture
def model(tiny_checkpoint: Callable[[str], Path], tmp_path: Path) -> Path:
    """A checkpoint that a test may write to."""
    return shutil.copytree(tiny_checkpoint("qwen3_vl"), tmp_path / "model")


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    Image.linear_gradient("L").resize((160, 120)).convert("RGB").save(tmp_path / "a.png")
    path = tmp_path / "questions.jsonl"
    choices = ["a cup", "a dog", "x"]
    lines = [
        {"image": "a.png", "regions": [[5 * n, 5, 60 + 5 * n, 90]],
         "question": "what is <region1>?", "choices": choices, "answer": choices[n % 3]}
        for n in range(6)
    ]  # fmt: skip
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_ways_are_compared_and_the_best_is_the_default_of_a_card(
    regionqa: "Command", model: Path, questions: Path, tmp_path: Path
) -> None:
    out, card = tmp_path / "ways.json", model / "card.toml"
    ran = regionqa(
        "eval", "vqa", questions, "--model", model, "--likelihood", "--ways", "drawn,crop",
        "--max-new-tokens", "2", "--json", out, "--write-card", card,
    )  # fmt: skip
    assert ran.status == 0
    title, _, *rows = ran.lines
    assert title == "vqa: model by way of telling regions"
    assert {row.split()[0] for row in rows} == {"drawn", "crop"}
    document = json.loads(out.read_text())
    main = {way: one["figures"][0]["value"] for way, one in document["ways"].items()}
    assert main.keys() == {"drawn", "crop"}
    assert document["best"] == max(main, key=main.__getitem__) == rows[0].split()[0]
    tied = [way for way in main if way != document["best"] and len(set(main.values())) == 1]
    equal = f"; equally good: {tied[0]}" if tied else ""
    assert ran.err == f"{document['best']} is the default of {card}{equal}\n"
    written = read_vlm_card(card)
    assert written.regions.default == document["best"]
    assert "on 6 items of questions.jsonl: drawn " in written.regions.measured
    shown = regionqa("ask", tmp_path / "a.png", "--box", "1,1,4,4", "what?", "--model", model,
                     "--max-new-tokens", "1", "--show-prompt")  # fmt: skip
    assert f"regions are told by {document['best']}: the card's default, " in shown.err
    again = regionqa("eval", "vqa", questions, "--model", model, "--ways", "all",
                     "--write-card", card)  # fmt: skip
    assert (again.status, again.out) == (2, "")
    assert f"--write-card {card}: is also read (--model)" in again.err


@pytest.mark.parametrize(
    ("ways", "message"),
    [
        ("crop", "--ways: name at least two, separated by commas, or say all"),
        ("crop,words", "--ways words: model has coordinates, crop, crop-only, drawn; or say all"),
    ],
)
def test_wrong_ways_are_refused(
    regionqa: "Command", model: Path, questions: Path, ways: str, message: str
) -> None:
    ran = regionqa("eval", "vqa", questions, "--model", model, "--ways", ways)
    assert (ran.status, ran.out, ran.err) == (2, "", f"regionqa: error: {message}\n")


def test_one_way_is_not_compared(
    regionqa: "Command", tiny_checkpoint: Callable[[str], Path], questions: Path
) -> None:
    ran = regionqa("eval", "vqa", questions, "--model", tiny_checkpoint("florence2"), "--ways",
                   "all")  # fmt: skip
    assert (ran.status, ran.out) == (2, "")
    assert ran.err.endswith(
        "--ways: the model florence2 has one way, coordinates; drop the option\n"
    )


def test_what_ways_do_not_go_with(
    regionqa: "Command", model: Path, questions: Path, tmp_path: Path
) -> None:
    command = ("eval", "vqa", questions)
    ran = regionqa(*command, "--ways", "all")
    assert "--ways: the model starter has one way, its own; drop the option" in ran.err
    ran = regionqa(*command, "--model", model, "--ways", "all", "--way", "crop")
    assert "--way: has no effect beside --ways" in ran.err
    ran = regionqa(*command, "--model", model, "--write-card", model / "card.toml")
    assert "--write-card: has no effect without --ways" in ran.err
    ran = regionqa(*command, "--model", model, "--ways", "all", "--write-card", tmp_path / "c.toml")
    assert "c.toml: is not named card.toml; name it so" in ran.err
    ran = regionqa(*command, "--model", model, "--ways", "all", "--write-card",
                   tmp_path / "card.toml")  # fmt: skip
    assert f"the card of a folder lies in it; write it to {model / 'card.toml'}" in ran.err


def test_an_item_that_fails_in_every_way_is_reported_once(
    regionqa: "Command", model: Path, questions: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "b.png"
    Image.linear_gradient("L").save(broken)
    broken.write_bytes(broken.read_bytes()[:200])
    line = {"image": "b.png", "question": "what is this?", "answer": "a cup"}
    questions.write_text(f"{questions.read_text()}{json.dumps(line)}\n")
    ran = regionqa("eval", "vqa", questions, "--model", model, "--ways", "drawn,crop",
                   "--max-new-tokens", "1")  # fmt: skip
    assert ran.status == 3
    (told,) = [line for line in ran.err.splitlines() if "b.png" in line]
    assert told.endswith(" (in every way)")
