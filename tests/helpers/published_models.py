"""The published files of GPT4RoI and PVIT that `regionqa download NAME` reads.

At any size, with the generated weights of a golden set (see golden_weights.py).
"""

import json
import shutil
import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from helpers.golden_checkpoints import (
    GPT4ROI_CONFIG,
    PVIT_CONFIG,
    regionclip_state,
    write_base,
    write_clip,
    write_delta,
    write_regionclip,
)
from helpers.golden_weights import (
    PUBLISHED_ROWS,
    ClipSizes,
    GoldenSet,
    LlamaSizes,
    RegionClipSizes,
    gpt4roi_maker,
    gpt4roi_shapes,
    pvit_maker,
    pvit_shapes,
)
from helpers.hub_server import Hub

REPOS = {
    "gpt4roi-7b": "shilongz/GPT4RoI-7B-delta-V0",
    "pvit-7b": "PVIT/pvit",
    "base": "huggyllama/llama-7b",
    "vision": "openai/clip-vit-large-patch14",
}
"""The repositories that the cards name."""
ADDED = {
    "gpt4roi-7b": ("[PAD]", "<im_patch>", "<bbox>", "<point>", "<im_start>", "<im_end>"),
    "pvit-7b": ("<im_patch>", "<im_start>", "<im_end>", "<Region>", "</Region>"),
}
"""Tokens that the published tokenizers add to LLaMA's, by id."""
BROKEN = "pytorch_model-00002-of-00003.bin"
"""A shard of the delta that `publish` puts on the Hub, for a connection to break in."""


@dataclass(frozen=True)
class Published:
    """Folders of the parts, and RegionCLIP's file if the system has one."""

    name: str
    delta: Path
    base: Path
    vision: Path
    region: Path | None = None

    @property
    def options(self) -> list[object]:
        """The command's options for the parts."""
        places = {"--delta": self.delta, "--base": self.base, "--vision": self.vision,
                  "--region": self.region}  # fmt: skip
        return [word for option, place in places.items() if place for word in (option, place)]


def write_gpt4roi(
    root: Path,
    golden: GoldenSet,
    llama: LlamaSizes,
    clip: ClipSizes,
    *,
    width: int = 1024,
    roi: int = 14,
    dtype: torch.dtype = torch.float16,
    shard_bytes: int = 1 << 29,
) -> Published:
    """Write delta, base and CLIP of a GPT4RoI."""
    make = gpt4roi_maker(golden.salt)
    shards: Any = {"dtype": dtype, "shard_bytes": shard_bytes}
    shapes = gpt4roi_shapes(llama, clip, width=width, roi=roi)
    delta = write_delta(root / "delta", llama, shapes, make, GPT4ROI_CONFIG, **shards)
    base = write_base(root / "base", llama, make, **shards)
    write_tokenizer(delta, golden.folder / "toy_llama.model", ADDED["gpt4roi-7b"])
    return Published("gpt4roi-7b", delta, base, write_clip(root / "vision", clip, make))


def write_pvit(
    root: Path,
    golden: GoldenSet,
    llama: LlamaSizes,
    clip: ClipSizes,
    region: RegionClipSizes,
    *,
    dtype: torch.dtype = torch.float16,
    shard_bytes: int = 1 << 29,
) -> Published:
    """Write delta, base, CLIP and RegionCLIP of a PVIT."""
    make = pvit_maker(golden.salt)
    shards: Any = {"dtype": dtype, "shard_bytes": shard_bytes}
    shapes = pvit_shapes(llama, clip, region)
    delta = write_delta(root / "delta", llama, shapes, make, PVIT_CONFIG, **shards)
    base = write_base(root / "base", llama, make, safetensors=True, **shards)
    write_tokenizer(delta, golden.folder / "toy_spm.model", ADDED["pvit-7b"])
    vision = write_clip(root / "vision", clip, make, safetensors=False)
    file = root / "regionclip_pretrained-cc_rn50x4.pth"
    return Published(
        "pvit-7b", delta, base, vision, write_regionclip(file, regionclip_state(region, make))
    )


LLAMA = LlamaSizes(hidden=32, inner=48, layers=2, heads=4)
CLIP = ClipSizes(width=32, inner=48, layers=12, heads=2, side=28)
REGION = RegionClipSizes(stem=8, planes=(4, 4, 8, 32), depths=(1, 1, 2, 1), cells=4, out=12)
"""Those of `TINY_CLIP`, whose graph is then traced once for both."""
SHARD = 3_000_000


def tiny_gpt4roi(root: Path, golden: GoldenSet) -> Published:
    """Write a tiny GPT4RoI in fp16 shards."""
    return write_gpt4roi(root, golden, LLAMA, CLIP, width=64, roi=4, shard_bytes=SHARD)


def tiny_pvit(root: Path, golden: GoldenSet) -> Published:
    """Write a tiny PVIT in fp16 shards."""
    clip = replace(CLIP, layers=3)  # it reads the last but one only
    return write_pvit(root, golden, LLAMA, clip, REGION, shard_bytes=SHARD)


def write_tokenizer(folder: Path, toy: Path, added: Sequence[str]) -> None:
    """Write a golden set's small SentencePiece file, padded to LLaMA's size, and added tokens.

    The padding is pieces that occur in no text. Concatenated protobuf messages are merged.
    """
    from regionqa.export.sources.sentencepiece import read_pieces

    file = folder / "tokenizer.model"
    shutil.copyfile(toy, file)
    with file.open("ab") as stream:
        for number in range(len(read_pieces(toy)), PUBLISHED_ROWS):
            text = f"\ue000{number}".encode()
            entry = b"\x0a" + bytes([len(text)]) + text + b"\x15" + struct.pack("<f", -1e9 - number)
            stream.write(b"\x0a" + bytes([len(entry)]) + entry)
    ids = {token: PUBLISHED_ROWS + index for index, token in enumerate(added)}
    (folder / "added_tokens.json").write_text(json.dumps(ids), encoding="utf-8")


def publish(hub: Hub, files: Published) -> None:
    """Put a system's parts where its card says they are, with what else repositories hold."""
    others = {"README.md": b"words", "training_log.txt": b"more words"}
    for part, licence in (("delta", None), ("base", "other"), ("vision", None)):
        repo = REPOS[files.name] if part == "delta" else REPOS[part]
        folder: Path = getattr(files, part)
        content = {path.name: path.read_bytes() for path in folder.iterdir()}
        hub.add(repo, content | others, licence=licence)
