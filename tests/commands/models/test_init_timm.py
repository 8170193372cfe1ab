"""`regionqa init --vision timm:NAME`: a bundle on a timm backbone, trained and asked."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from helpers.hub_server import Hub
from helpers.tiny_checkpoints import TEXT, write_llama_tokenizer
from regionqa.bundles.store import open_bundle
from regionqa.export.bundle import read_encoders
from regionqa.export.modules.roi import RoIRegionEncoder
from regionqa.export.modules.timm_vision import TimmVision
from regionqa.export.sources.checkpoints import quiet_transformers

if TYPE_CHECKING:
    from conftest import Command

NAME = "test_efficientnet"
REPO = "timm/test_efficientnet.r160_in1k"
CPU = ("--device", "cpu")


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as timm writes it."""
    folder = tmp_path_factory.mktemp("backbone")
    torch.manual_seed(4)
    model = timm.create_model(NAME, pretrained=False)
    save_file(model.state_dict(), folder / "model.safetensors")
    own = {"mean": [0.25, 0.5, 0.75], "input_size": [3, 96, 96], "license": "apache-2.0"}
    config = {"architecture": NAME, "num_classes": 1000, "pretrained_cfg": own}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llm")
    with quiet_transformers():
        write_llama_tokenizer(folder, "first", chat=None)
        ends = {"bos_token_id": None, "eos_token_id": 2}
        LlamaForCausalLM(LlamaConfig(**TEXT, **ends)).save_pretrained(folder)
    return folder


def test_backbone_of_the_hub_is_trained_and_asked(
    hub: Hub,
    regionqa: "Command",
    backbone: Path,
    llm: Path,
    things: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    hub.add(REPO, backbone)
    out, mine = tmp_path / "new", tmp_path / "mine"
    made = regionqa("init", out, "--vision", f"timm:{NAME}", "--llm", llm)
    assert (made.status, made.lines) == (0, [str(out)]), made.err
    assert "vision.onnx: differs from torch by" in made.err
    assert "region.onnx: differs from torch by" in made.err
    assert "untrained: projector and region encoder; train it" in made.err

    bundle = open_bundle(out)
    card = bundle.card
    assert card.summary.startswith(f"{REPO} and {llm.name}; untrained")
    assert card.provenance["vision"] == REPO
    assert card.provenance["vision_licence"] == "apache-2.0"
    assert (card.image.size, tuple(card.image.mean)) == (96, (0.25, 0.5, 0.75))
    vision, region = read_encoders(bundle)
    assert isinstance(vision, TimmVision)
    assert isinstance(region, RoIRegionEncoder)
    assert vision.config.top and vision.config.levels == (2, 3, 4)
    assert region.config.pixels
    stored = vision.backbone.model.state_dict()["blocks.3.0.bn1.weight"]
    assert torch.equal(stored, load_file(backbone / "model.safetensors")["blocks.3.0.bn1.weight"])

    trained = regionqa(
        "finetune", "--data", things, "--model", out, "--out", mine, "--steps", 2, "--batch", 2,
        *CPU,
    )  # fmt: skip
    assert trained.status == 0, trained.err
    record = json.loads(things.read_text().splitlines()[0])
    box = ",".join(str(number) for number in record["regions"][0])
    words = ("what is this?", "--box", box, "--format", "jsonl", *CPU)
    caplog.clear()
    asked = regionqa("ask", things.parent / record["image"], *words, "--model", mine)
    assert asked.status == 0, asked.err
    assert json.loads(asked.out)["model"] == "mine"
    assert "untrained" not in caplog.text
    after, _ = read_encoders(open_bundle(mine))
    assert isinstance(after, TimmVision)
    assert all(
        torch.equal(value, after.backbone.state_dict()[name])
        for name, value in vision.backbone.state_dict().items()
        if not name.endswith("num_batches_tracked")
    ), "the backbone is frozen"


def test_local_weights(regionqa: "Command", backbone: Path, llm: Path, tmp_path: Path) -> None:
    file, out = tmp_path / "mine.pth", tmp_path / "new"
    weights = load_file(backbone / "model.safetensors")
    del weights["classifier.weight"], weights["classifier.bias"]
    torch.save({"state_dict": {f"module.{name}": value for name, value in weights.items()}}, file)
    made = regionqa(
        "init", out, "--vision", f"timm:{NAME}", "--vision-weights", file, "--llm", llm,
        "--region-input", "none",
    )  # fmt: skip
    assert made.status == 0, made.err
    assert "untrained: projector; train" in made.err
    card = open_bundle(out).card
    assert card.provenance["vision"] == f"mine.pth (timm's {NAME})"
    assert "vision_licence" not in card.provenance
    assert (card.region, card.vision.levels, card.image.size) == (None, (), 160)
    vision, _ = read_encoders(open_bundle(out))
    assert isinstance(vision, TimmVision)
    stored = vision.backbone.model.state_dict()["conv_head.weight"]
    assert torch.equal(stored, weights["conv_head.weight"])


def test_weights_that_cannot_be_fetched(
    hub: Hub, regionqa: "Command", llm: Path, tmp_path: Path
) -> None:
    words = ("init", tmp_path / "new", "--vision", f"timm:{NAME}", "--llm", llm)
    for change in (lambda: None, hub.down):
        change()  # type: ignore[no-untyped-call]
        made = regionqa(*words)
        assert (made.status, made.out, made.err.count("\n")) == (1, "", 1)
        assert REPO in made.err
    assert not (tmp_path / "new").exists()


def test_what_is_refused(regionqa: "Command", backbone: Path, llm: Path, tmp_path: Path) -> None:
    out, empty, two, other = (tmp_path / name for name in ("new", "empty", "two", "other"))
    weights = load_file(backbone / "model.safetensors")
    for folder in (empty, two, other):
        folder.mkdir()
    for name in ("a.pth", "b.pt"):
        torch.save(weights, two / name)
    (other / "config.json").write_text(json.dumps({"architecture": "test_resnet"}))
    torch.save(torch.nn.Linear(2, 2), tmp_path / "code.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    (tmp_path / "text.safetensors").write_text("no weights")
    torch.save({**weights, "bn1.bias": torch.zeros(3)}, tmp_path / "shape.pth")
    part = {name: value for name, value in weights.items() if not name.startswith("blocks.4")}
    torch.save(part, tmp_path / "part.pth")
    for vision, given, status, line in (
        ("timm:nonesuch", None, 2, "has no such architecture; python -c 'import timm"),
        (f"timm:{NAME}.nonesuch", None, 2, f"no such weights of {NAME}; it has r160_in1k"),
        ("timm:test_maxvit", None, 2, "no weights of it in its own format on the Hub"),
        ("someone/clip", "part.pth", 2, "--vision-weights: has no effect without --vision timm:"),
        (f"timm:{NAME}", "gone.pth", 1, "gone.pth: neither a file nor a folder of weights"),
        (f"timm:{NAME}", "empty", 1, "empty: holds no weights"),
        (f"timm:{NAME}", "two", 1, "two: holds several files of weights (a.pth, b.pt); name one"),
        (f"timm:{NAME}", "other", 1, "the architecture is 'test_resnet', not 'test_efficientnet'"),
        (f"timm:{NAME}", "code.pth", 1, "code.pth: cannot be read as weights"),
        (f"timm:{NAME}", "list.pth", 1, "list.pth: "),
        (f"timm:{NAME}", "text.safetensors", 1, "text.safetensors: cannot be read as weights"),
        (f"timm:{NAME}", "shape.pth", 1, "shape.pth: timm's test_efficientnet: "),
        (f"timm:{NAME}", "part.pth", 1, "part.pth: timm's test_efficientnet: "),
    ):
        extra = ("--vision-weights", tmp_path / given) if given else ()
        ran = regionqa("init", out, "--vision", vision, *extra, "--llm", llm)
        assert (ran.status, ran.out, ran.err.count("\n")) == (status, "", 1), ran.err
        assert line in ran.err
    assert not out.exists()
