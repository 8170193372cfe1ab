"""GPT4RoI and PVIT by name: downloaded, converted, asked; tiny, in the layout that was published.

The Hub is a stand-in on loopback; the client is the real one.
"""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest
import torch
from huggingface_hub import constants

from helpers.evaluation_files import grey
from helpers.hub_server import Hub
from helpers.published_models import BROKEN, REPOS, Published, publish
from regionqa.bundles.hub import cached, readable
from regionqa.bundles.store import CARD, open_bundle, published_folder
from regionqa.export.sources.download import staging

if TYPE_CHECKING:
    from conftest import Command

BOX = "30,0,405,288"


# -- what works ------------------------------------------------------------------------------------


def test_gpt4roi_after_a_broken_download(
    hub: Hub,
    regionqa: "Command",
    gpt4roi_files: Published,
    cat: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 10_000)  # it keeps whole pieces
    publish(hub, gpt4roi_files)
    delta = REPOS["gpt4roi-7b"]
    hub.break_after(delta, BROKEN, 5_000, times=99)
    broken = regionqa("download", "gpt4roi-7b")
    *licences, line = broken.err.splitlines()
    assert broken.status == 1
    assert line.startswith(f"regionqa: error: {delta}: ")
    assert "run again" in line
    assert [each.partition(" (")[0] for each in licences] == [
        "licence of GPT4RoI's differences to LLaMA-7B, its projector and its region encoder",
        "licence of LLaMA-7B in transformers' format",
        "licence of CLIP ViT-L/14",
    ]
    assert not published_folder("gpt4roi-7b").exists()

    hub.mend(delta)
    hub.break_after(delta, BROKEN, 50_000)
    made = regionqa("download", "gpt4roi-7b")
    folder = published_folder("gpt4roi-7b")
    assert (made.status, made.out) == (0, f"{folder}\n"), made.err
    assert "Range" not in hub.fetched(BROKEN)[0].headers
    assert hub.fetched(BROKEN)[-1].headers["Range"] == "bytes=50000-"
    assert not hub.fetched("README.md")
    assert f"{delta}: removed from the cache" in made.err
    assert cached(delta, files=["config.json"]) is None
    assert cached(REPOS["base"], files=["config.json"]) is not None

    asked = len(hub.requests)
    again = regionqa("download", "gpt4roi-7b")
    assert (again.status, again.out) == (0, made.out)
    assert again.err == "gpt4roi-7b: is there already; remove the folder to convert it anew\n"
    words = ("--model", "gpt4roi-7b", "--max-new-tokens", 3, "--format", "json")
    answer = regionqa("ask", cat, "--box", BOX, "what is <region1>?", *words)
    assert answer.status == 0, answer.err
    (record,) = json.loads(answer.out)
    assert (record["model"], record["error"]) == ("gpt4roi-7b", None)
    assert len(hub.requests) == asked
    assert "gpt4roi-7b\t" in regionqa("models", "list").out


def test_pvit_with_a_regionclip_file(
    hub: Hub, regionqa: "Command", pvit_files: Published, cat: Path, tmp_path: Path
) -> None:
    publish(hub, pvit_files)
    without = regionqa("download", "pvit-7b")
    assert without.status == 2
    assert without.err.endswith(
        "is not on the Hub; get it at https://github.com/microsoft/RegionCLIP/blob/main/docs/"
        "MODEL_ZOO.md and use --region FILE\n"
    )
    assert not hub.requests
    out = tmp_path / "mine"
    made = regionqa(
        "download", "pvit-7b", "--region", pvit_files.region, "--out", out, "--keep-delta"
    )
    assert (made.status, made.out) == (0, f"{out}\n"), made.err
    assert cached(REPOS["pvit-7b"], files=["config.json"]) is not None
    config = json.loads((out / "llm" / "config.json").read_text())
    assert [config[f"{name}_token_id"] for name in ("bos", "eos", "pad")] == [1, 2, 0]
    assert config["vocab_size"] == 32005
    bundle = open_bundle(out)
    assert bundle.broken_files() == []
    assert bundle.card.provenance["base"] == REPOS["base"]
    assert bundle.card.provenance["region"] == "regionclip_pretrained-cc_rn50x4.pth"
    assert str(tmp_path) not in (out / CARD).read_text()
    answer = regionqa(
        "ask", cat, "--box", BOX, "what is <region1>?", "--model", out, "--max-new-tokens", 3
    )
    assert answer.status == 0, answer.err


def test_regionclip_from_a_repository(hub: Hub, regionqa: "Command", pvit_files: Published) -> None:
    publish(hub, pvit_files)
    assert pvit_files.region is not None
    hub.add("somebody/regionclip", {"weights/regionclip_pretrained-cc_rn50x4.pth":
                                    pvit_files.region.read_bytes()}, licence="mit")  # fmt: skip
    plan = regionqa("download", "pvit-7b", "--region", "somebody/regionclip", "--dry-run")
    assert plan.status == 0
    assert "(somebody/regionclip): mit\n" in plan.err
    assert "  2. regionqa download pvit-7b --region somebody/regionclip" in plan.lines
    assert "weights/regionclip_pretrained-cc_rn50x4.pth" in plan.out


def test_fineeval_page_with_both_models(
    regionqa: "Command", gpt4roi_files: Published, pvit_files: Published, tmp_path: Path
) -> None:
    models = [tmp_path / files.name for files in (gpt4roi_files, pvit_files)]
    for files, out in zip((gpt4roi_files, pvit_files), models, strict=True):
        assert regionqa("download", files.name, *files.options, "--out", out).status == 0
    data = tmp_path / "fineeval"
    grey(data / "images", "a.jpg")
    cup = "<Region><L0><L0><L250><L500></Region>"
    asked = [f"What is in {cup}?", f"Is {cup} left of <Region><L500><L250><L1000><L1000></Region>?"]
    records = [
        {"image": "a.jpg", "instruction": question, "instruction_no_region": "What is there?",
         "recorded": {"llava": "A cup."}} for question in asked
    ]  # fmt: skip
    (data / "fineeval.jsonl").write_text("".join(json.dumps(each) + "\n" for each in records))
    page = tmp_path / "page.html"
    ran = regionqa(
        "eval", "fineeval", data, "--compare", *models, "--max-new-tokens", 3, "--out", page
    )
    assert (ran.status, ran.out) == (0, f"{page}\n"), ran.err
    found = re.search(r'id="data" type="application/json">(.*?)</script>', page.read_text(), re.S)
    assert found
    message = json.loads(found[1])
    assert message["systems"] == ["gpt4roi-7b", "llava", "pvit-7b"]
    assert [len(item["answers"]) for item in message["items"]] == [3, 3]


def test_dry_run_lists_parts_and_fetches_nothing(
    hub: Hub, regionqa: "Command", gpt4roi_files: Published
) -> None:
    publish(hub, gpt4roi_files)
    plan = regionqa("download", "gpt4roi-7b", "--dry-run")
    assert plan.status == 0
    assert len(plan.err.splitlines()) == 3
    listed = {line.split("  ")[-1] for line in plan.lines}
    weights = {path.name for path in gpt4roi_files.delta.iterdir()}
    assert weights <= listed
    assert "README.md" not in listed
    folders = (gpt4roi_files.delta, gpt4roi_files.base, gpt4roi_files.vision)
    needed = [path for folder in folders for path in folder.iterdir()]
    total = readable(sum(path.stat().st_size for path in needed))
    assert f"{total:>12}  to fetch" in plan.lines
    assert any(line.endswith("of memory for the conversion") for line in plan.lines)
    assert "  2. regionqa download gpt4roi-7b" in plan.lines
    assert not any(asked.method == "GET" and "/resolve/" in asked.path for asked in hub.requests)
    assert not staging(published_folder("gpt4roi-7b")).exists()


def test_dry_run_of_pvit_links_regionclip(
    hub: Hub, regionqa: "Command", pvit_files: Published
) -> None:
    publish(hub, pvit_files)
    plan = regionqa("download", "pvit-7b", "--dry-run")
    assert plan.status == 0
    assert "region: https://github.com/microsoft/RegionCLIP" in plan.out
    assert "  3. regionqa download pvit-7b --region FILE" in plan.lines


TERMS = {
    "gpt4roi-7b": "CC BY-NC 4.0, as GPT4RoI's repository says: not for commercial use; LLaMA's",
    "pvit-7b": "for research only and under the terms of LLaMA, Vicuna and GPT-4, as PVIT's",
}


@pytest.mark.parametrize("name", TERMS)
def test_terms_needs_and_steps_are_shown_offline_and_before_the_download(
    hub: Hub, regionqa: "Command", monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    hub.down()
    plan = regionqa("download", name, "--dry-run")
    assert plan.status == 0, plan.err
    assert plan.err.startswith("the Hub cannot be reached: what follows is by the model's card\n")
    assert f"({REPOS[name]}): {TERMS[name]}" in plan.err
    shown = regionqa("models", "show", name)
    assert (shown.status, shown.err) == (0, "")
    assert f"({REPOS[name]}): {TERMS[name]}" in shown.out
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert regionqa("download", name, "--dry-run").out == plan.out
    for line in plan.lines:
        assert f"# {line}" in shown.lines
    for said in ("13.5 GB  base: ", "baffo32/decapoda-research-llama-7B-hf", "to fetch",
                 "of disk in all", "of memory for the conversion", "--dtype bfloat16"):  # fmt: skip
        assert said in plan.out
    assert f'name = "{name}"' in shown.lines


# -- what is refused -------------------------------------------------------------------------------


def other_config(files: Published) -> None:
    file = files.base / "config.json"
    table = json.loads(file.read_text())
    file.write_text(json.dumps({**table, "rms_norm_eps": 1e-5}))


def lose_tokenizer(files: Published) -> None:
    (files.delta / "tokenizer.model").unlink()


def wrong_base(files: Published) -> None:
    for path in files.base.glob("*.bin"):
        tensors = torch.load(path, weights_only=True)
        torch.save({name: value.flip(-1) for name, value in tensors.items()}, path)


def lose_projector(files: Published) -> None:
    for path in files.delta.glob("*.bin"):
        tensors = torch.load(path, weights_only=True)
        kept = {name: value for name, value in tensors.items() if "mm_projector.b" not in name}
        torch.save(kept, path)
    index = files.delta / "pytorch_model.bin.index.json"
    table = json.loads(index.read_text())
    del table["weight_map"]["model.mm_projector.bias"]
    index.write_text(json.dumps(table))


def no_tower(files: Published) -> None:
    (files.vision / "model.safetensors").unlink()


REFUSED: dict[Callable[[Published], None], str] = {
    other_config: "is the wrong base: its rms_norm_eps is 1e-05, that of ",
    wrong_base: "is the wrong base: the sums do not fit; ",
    lose_tokenizer: "has no tokenizer.model, nor has the base ",
    lose_projector: "the delta's projector: missing ['projector.bias'], unknown []",
    no_tower: "transformers cannot load it",
}


@pytest.mark.parametrize("change", REFUSED, ids=lambda change: change.__name__)
def test_mismatched_parts_are_a_one_line_error(
    regionqa: "Command",
    gpt4roi_files: Published,
    tmp_path: Path,
    change: Callable[[Published], None],
) -> None:
    root = shutil.copytree(gpt4roi_files.delta.parent, tmp_path / "parts")
    copy = Published("gpt4roi-7b", root / "delta", root / "base", root / "vision")
    change(copy)
    ran = regionqa("download", "gpt4roi-7b", *copy.options, "--out", tmp_path / "out")
    line = ran.err.splitlines()[-1]
    assert ran.status == 1
    assert line.startswith("regionqa: error: ")
    assert REFUSED[change] in line
    assert not (tmp_path / "out").exists()


def test_disk_too_small_is_reported_first(
    regionqa: "Command",
    gpt4roi_files: Published,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=10**9))
    ran = regionqa("download", "gpt4roi-7b", *gpt4roi_files.options, "--out", tmp_path / "out")
    assert ran.status == 1
    assert "the disk is too small: 4.0 GB are needed, 1.0 GB are free" in ran.err
    assert not list(staging(tmp_path / "out").rglob("*.safetensors"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("starter-of-mine/x", "--base", "a/b"), "belong to gpt4roi-7b, pvit-7b"),
        (("gpt4roi-7b", "--region", "x.pth"), "gpt4roi-7b has no part for --region"),
        (("gpt4roi-7b", "--revision", "v1"), "leave --revision out"),
    ],
)
def test_options_of_other_models_are_refused(
    hub: Hub, regionqa: "Command", words: tuple[str, ...], message: str
) -> None:
    ran = regionqa("download", *words)
    assert ran.status == 2
    assert message in ran.err
    assert not hub.requests


def test_invalid_sources_are_reported(hub: Hub, regionqa: "Command") -> None:
    ran = regionqa("download", "gpt4roi-7b", "--delta", "./nowhere")
    assert ran.status == 1
    assert "./nowhere: --delta names neither a folder or file here nor a repository" in ran.err
    assert not hub.requests


def test_other_folders_are_not_overwritten(
    regionqa: "Command", gpt4roi_files: Published, tmp_path: Path
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear reader")
    ran = regionqa("download", "gpt4roi-7b", *gpt4roi_files.options, "--out", tmp_path / "mine")
    assert ran.status == 2
    assert "is there already, and is no model" in ran.err
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["letter.txt"]
