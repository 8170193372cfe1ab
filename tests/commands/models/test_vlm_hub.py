"""Vision-language models from the Hub as a user has them: downloaded, asked, and used offline.

The Hub is a stand-in on loopback; the checkpoints have random weights in the released layout.
"""

import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from huggingface_hub import constants

from helpers.hub_server import Hub
from helpers.vlm.checkpoints import WRITERS
from regionqa.bundles.hub import cached, readable
from regionqa.vlm.cards import shipped_vlm_cards

if TYPE_CHECKING:
    from conftest import Command

ERROR = "regionqa: error: "
NAME, REPO = "qwen3-vl-2b", "Qwen/Qwen3-VL-2B-Instruct"
OTHER = "ann/my-vlm"
WEIGHTS = "model.safetensors"
SHORT = ("--device", "cpu", "--max-new-tokens", "4")
Checkpoint = Callable[[str], Path]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """Tiny checkpoints by family, written once."""
    root = tmp_path_factory.mktemp("checkpoints")
    return cache(lambda family: WRITERS[family](root / family))


@pytest.fixture
def tiny(checkpoint: Checkpoint) -> Path:
    return checkpoint("qwen3_vl")


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def go_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


def failing(regionqa: "Command", *words: object) -> str:
    """Run a command that must fail with one line, after that of a licence; the line."""
    ran = regionqa(*words)
    assert (ran.status, ran.out) in ((1, ""), (2, ""))
    err = ran.err.removeprefix(f"licence of {REPO}: Apache-2.0\n")
    assert err.startswith(ERROR) and err.count("\n") == 1, err
    return err.removeprefix(ERROR).strip()


def use(regionqa: "Command", model: str, photo: Path, folder: Path) -> list[str]:
    """Ask, caption, chat and evaluate with a model; the outputs."""
    labels = folder / "labels.csv"
    labels.write_text(f"image,x0,y0,x1,y1,label\n{photo},10,20,200,280,cat\n")
    turns = folder / "turns.txt"
    turns.write_text("what is this?\n/box 50,50,90,90\nand this?\n")
    box = ("--box", "10,20,200,280")
    commands: list[tuple[object, ...]] = [
        ("caption", photo, *box),
        ("eval", "recognition", "--boxes", labels),
    ]
    if not shipped_or_family_tasks(model):
        commands += [
            ("ask", photo, "is <region1> a cat?", *box),
            ("chat", photo, *box, "--turns", turns),
        ]
    outputs = []
    for words in commands:
        ran = regionqa(*words, "--model", model, *SHORT)
        assert ran.status == 0, ran.err
        assert ran.out  # of random weights, so it may be white space
        assert "error" not in ran.err
        outputs.append(ran.out)
    return outputs


def shipped_or_family_tasks(model: str) -> bool:
    """Whether a model takes fixed tasks instead of questions."""
    return bool(shipped_vlm_cards()[model].chat.tasks)


def cards_by_family() -> dict[str, str]:
    """The name of one card of each family that has a tiny checkpoint."""
    named = {card.family: name for name, card in sorted(shipped_vlm_cards().items(), reverse=True)}
    return {family: named[family] for family in WRITERS if family in named}


# -- what works ------------------------------------------------------------------------------------


def test_download_ask_and_use_offline(
    regionqa: "Command", hub: Hub, tiny: Path, cat: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    further = {"onnx/model.onnx": b"x", "consolidated.safetensors": b"x", "q4.gguf": b"x"}
    hub.add(REPO, {**files(tiny), **further, "README.md": b""}, licence="apache-2.0")
    line = failing(regionqa, "ask", cat, "what is this?", "--model", NAME)
    assert line == f"{NAME}: not downloaded yet; run: regionqa download {NAME}"
    ran = regionqa("download", NAME)
    licence, exporting, *compared = ran.err.splitlines()
    assert (ran.status, licence) == (0, f"licence of {REPO}: apache-2.0")
    assert exporting == f"exporting the vision encoder of {NAME} to ONNX"
    assert [line.partition(":")[0] for line in compared] == [f"vision encoder of {NAME}"] * 3
    (folder,) = ran.lines
    assert files(Path(folder)) == files(tiny)
    asked = len(hub.requests)
    outputs = use(regionqa, NAME, cat, tmp_path)
    assert len(hub.requests) == asked
    go_offline(monkeypatch)
    repeated = regionqa("download", NAME)
    assert repeated.out == ran.out and "exported before" in repeated.err
    assert any(
        line[2:].startswith("vision encoder") and " in onnx: " in line
        for line in regionqa("doctor", "--model", NAME).lines
    )
    question = ("ask", cat, "is <region1> a cat?", "--box", "10,20,200,280", *SHORT)
    for model in (NAME, REPO, folder):  # the folder, too, has the card of its repository
        again = regionqa(*question, "--model", model)
        assert (again.out, again.err) == (outputs[2], "")
    assert f"# downloaded: {folder}" in regionqa("models", "show", NAME).out
    (listed,) = [line for line in regionqa("models", "list").lines if line.startswith(f"{NAME}\t")]
    assert listed.endswith("\tdownloaded")
    assert len(hub.requests) == asked


@pytest.mark.slow
@pytest.mark.parametrize("family", cards_by_family())
def test_every_family_is_downloaded_and_used(
    regionqa: "Command", hub: Hub, checkpoint: Checkpoint, cat: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, family: str,
) -> None:  # fmt: skip
    name = cards_by_family()[family]
    source = shipped_vlm_cards()[name].source
    assert source is not None
    hub.add(source.repo, checkpoint(family))
    (folder,) = regionqa("download", name).lines
    assert files(Path(folder)) == files(checkpoint(family))
    go_offline(monkeypatch)
    asked = len(hub.requests)
    use(regionqa, name, cat, tmp_path)
    assert regionqa("doctor", "--model", name).status == 0
    assert len(hub.requests) == asked


def test_repository_without_a_card(
    regionqa: "Command", hub: Hub, tiny: Path, cat: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add(OTHER, {**files(tiny), "train.bin": b"x"}, licence="mit")
    question = ("ask", cat, "what is this?", "--box", "10,20,200,280", "--model", OTHER, *SHORT)
    first = regionqa(*question, "--format", "jsonl")
    assert first.status == 0
    assert json.loads(first.out)["model"] == OTHER
    assert hub.fetched("train.bin") == []
    note = (
        f"regionqa: warning: {OTHER}: has no card, so regions are told as for its family, "
        "qwen3_vl; it was not measured how well this checkpoint reads the way coordinates\n"
    )
    assert first.err == note
    asked = len(hub.requests)
    go_offline(monkeypatch)
    assert regionqa(*question, "--format", "jsonl", "--quiet").err == ""
    assert len(hub.requests) == asked


def test_implicit_fetch_tells_size_and_licence(
    regionqa: "Command", hub: Hub, tiny: Path, cat: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A model is fetched where it is used, as bundles are, but not silently."""
    hub.add(OTHER, tiny, licence="mit")
    hub.repos[OTHER].tells_config = False  # then its config is read
    size = readable(sum(map(len, files(tiny).values())))
    assert regionqa("ask", cat, "what is this?", "--model", OTHER, *SHORT).status == 0
    assert f"fetching {OTHER}: {size}, licence mit" in caplog.messages


def test_card_of_a_user(
    regionqa: "Command", hub: Hub, tiny: Path, cat: Path, tmp_path: Path
) -> None:
    hub.add(OTHER, tiny)
    folder = tmp_path / "mine"
    folder.mkdir()
    card = 'kind = "vlm"\nname = "mine"\nfamily = "qwen3_vl"\nsummary = "s"\n'
    (folder / "card.toml").write_text(card)
    question = ("ask", cat, "what is this?", "--box", "10,20,200,280", "--model", folder, *SHORT)
    assert failing(regionqa, *question).startswith(f"{folder / 'card.toml'}: has no [source]")
    card += f'[source]\nrepo = "{OTHER}"\nlicence = "mit"\n[regions]\ndefault = "drawn"\n'
    (folder / "card.toml").write_text(card)
    assert failing(regionqa, *question) == (
        f"mine: not downloaded yet; run: regionqa download {OTHER}"
    )
    regionqa("download", OTHER)
    ran = regionqa(*question, "--format", "jsonl")
    assert (ran.status, ran.err) == (0, "")
    assert json.loads(ran.out)["model"] == "mine"
    drawn = regionqa(*question, "--way", "drawn")
    assert drawn.out != regionqa(*question, "--way", "coordinates").out
    assert json.loads(ran.out)["answer"] == drawn.out.strip()


def test_card_in_a_repository(regionqa: "Command", hub: Hub, tiny: Path, cat: Path) -> None:
    card = b'kind = "vlm"\nname = "carded"\nfamily = "qwen3_vl"\nsummary = "s"\n'
    hub.add(OTHER, {**files(tiny), "card.toml": card})
    ran = regionqa("ask", cat, "what?", "--model", OTHER, "--format", "jsonl", *SHORT)
    assert (ran.status, ran.err) == (0, "")
    assert json.loads(ran.out)["model"] == "carded"
    (folder,) = regionqa("download", OTHER).lines
    assert files(Path(folder)) == {**files(tiny), "card.toml": card}


def test_revision(regionqa: "Command", hub: Hub, tiny: Path, cat: Path) -> None:
    old = hub.add(REPO, tiny)
    hub.add(REPO, {**files(tiny), "chat_template.jinja": b"new"})
    (folder,) = regionqa("download", NAME, "--revision", old).lines
    assert files(Path(folder)) == files(tiny)
    assert regionqa("ask", cat, "what?", "--model", folder, *SHORT).err == ""
    line = failing(regionqa, "ask", cat, "what?", "--model", NAME)
    assert line == f"{NAME}: not downloaded yet; run: regionqa download {NAME}"


# -- before the download ---------------------------------------------------------------------------


def test_dry_run(regionqa: "Command", hub: Hub, tiny: Path) -> None:
    hub.add(REPO, {**files(tiny), "onnx/model.onnx": b"x"}, licence="apache-2.0")
    ran = regionqa("download", NAME, "--dry-run")
    assert (ran.status, ran.err) == (0, f"licence of {REPO}: apache-2.0\n")
    whole = readable(sum(map(len, files(tiny).values())))
    assert f"{whole:>12}  in total; {whole} to fetch" in ran.lines
    assert not any("onnx" in line for line in ran.lines)
    assert any("--device cpu --dtype bfloat16" in line for line in ran.lines)
    assert f"next: regionqa download {NAME}" in ran.lines
    assert cached(REPO) is None


def test_dry_run_without_the_hub(regionqa: "Command", hub: Hub) -> None:
    hub.down()
    ran = regionqa("download", NAME, "--dry-run")
    assert ran.status == 0
    assert ran.err == (
        "the Hub cannot be reached: what follows is by the model's card\n"
        f"licence of {REPO}: Apache-2.0\n"
    )
    assert ran.lines[0].endswith("GB  in total")


def test_doctor_and_show_before_the_download(regionqa: "Command", hub: Hub) -> None:
    ran = regionqa("doctor", "--model", NAME)
    assert ran.status == 0
    assert f"model {NAME}" in ran.out and f"run: regionqa download {NAME}" in ran.out
    assert f"memory for {NAME}, by its card, before it is downloaded:" in ran.out
    shown = regionqa("models", "show", NAME).out
    assert f"# checkpoint: {REPO} at main" in shown and 'unit = "thousand"' in shown
    assert hub.requests == []


# -- what fails ------------------------------------------------------------------------------------


def test_gated(regionqa: "Command", hub: Hub, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add(REPO, tiny, gated=True)
    assert failing(regionqa, "download", NAME) == (
        f"{REPO}: its owner asks everyone to accept terms first (401); accept them at "
        f"{hub.url}/{REPO}, then log in: hf auth login"
    )
    monkeypatch.setenv("HF_TOKEN", "hf_ann")
    hub.repos[REPO].readers.add("hf_ann")
    assert regionqa("download", NAME).status == 0


def test_broken_download_is_continued(regionqa: "Command", hub: Hub, tiny: Path, cat: Path) -> None:
    hub.add(REPO, tiny)
    hub.break_after(REPO, WEIGHTS, 100, times=20)
    line = failing(regionqa, "download", NAME)
    assert line.startswith(f"{REPO}: the connection broke (")
    assert line.endswith("); run again: files that are complete are kept")
    line = failing(regionqa, "ask", cat, "what?", "--model", NAME)
    assert line == f"{NAME}: not downloaded yet; run: regionqa download {NAME}"
    hub.mend(REPO)
    (folder,) = regionqa("download", NAME).lines
    assert files(Path(folder)) == files(tiny)
    assert len(hub.fetched("tokenizer.json")) == 1


def test_damaged_download(regionqa: "Command", hub: Hub, tiny: Path) -> None:
    hub.add(REPO, tiny)
    hub.corrupt(REPO, WEIGHTS)
    assert "arrived damaged and was removed" in failing(regionqa, "download", NAME)


def test_repository_without_all_weights(regionqa: "Command", hub: Hub, tiny: Path) -> None:
    shards = ("model-1.safetensors", "model-2.safetensors")
    index = json.dumps({"weight_map": dict(zip("ab", shards, strict=True))}).encode()
    rest = {name: data for name, data in files(tiny).items() if name != WEIGHTS}
    first = {shards[0]: files(tiny)[WEIGHTS], "model.safetensors.index.json": index}
    hub.add(REPO, {**rest, **first})
    assert "lacks weights that its model.safetensors.index.json lists" in failing(
        regionqa, "download", NAME
    )
    hub.add(REPO, rest)
    assert "so it is no checkpoint" in failing(regionqa, "download", NAME)


def test_disk_too_small(
    regionqa: "Command", hub: Hub, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add(REPO, tiny)
    monkeypatch.setattr("shutil.disk_usage", lambda path: shutil._ntuple_diskusage(9, 8, 1234))
    assert failing(regionqa, "download", NAME).startswith(f"{REPO}: the disk is full: ")
    assert hub.fetched(WEIGHTS) == []


@pytest.mark.parametrize(
    "words",
    [
        ("init", "new", "--vision", NAME, "--llm", NAME),
        ("init", "new", "--from-llava", NAME),
    ],
)
def test_commands_for_bundles_say_so(
    regionqa: "Command", tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert failing(regionqa, *words).startswith(f"{NAME}: is a vision-language model ")


def test_training_needs_the_download(regionqa: "Command", hub: Hub, tmp_path: Path) -> None:
    data = tmp_path / "x.jsonl"
    data.write_text("")
    command = ("--data", data, "--out", tmp_path / "new")
    line = failing(regionqa, "finetune", "--model", NAME, *command)
    assert line == f"{NAME}: not downloaded yet; run: regionqa download {NAME}"
    (tmp_path / "card.toml").write_text(
        'kind = "vlm"\nname = "mine"\nfamily = "qwen3_vl"\nsummary = "mine"\n'
        '[source]\nrepo = "someone/tuned"\nlicence = "mit"\n'
    )
    line = failing(regionqa, "finetune", "--model", tmp_path, *command)
    assert line == "mine: not downloaded yet; run: regionqa download someone/tuned"


def test_folder_given_to_commands_for_bundles(
    regionqa: "Command", tiny: Path, tmp_path: Path
) -> None:
    line = failing(regionqa, "init", tmp_path / "new", "--vision", tiny, "--llm", tiny)
    assert "a model of type 'qwen3_vl' is no causal language model" in line
    assert not (tmp_path / "new").exists()


def test_unknown_family_in_a_folder(regionqa: "Command", tmp_path: Path, cat: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    line = failing(regionqa, "ask", cat, "what?", "--model", tmp_path)
    assert line.startswith(f"{tmp_path}: its config.json says model_type 'bert', which no card")


def test_misspelt_name(regionqa: "Command", cat: Path) -> None:
    line = failing(regionqa, "ask", cat, "what?", "--model", "qwen3-vl2b")
    assert line.startswith(f"qwen3-vl2b: no such model; did you mean {NAME}")
    assert failing(regionqa, "download", "qwen3-vl2b").startswith("qwen3-vl2b: no such model; did")
