"""The golden sets end to end: generated weights in the published layout, converted by the command.

Then pixels, boxes and ids go through ONNX Runtime and the language model, and what comes out is
held against what the reference computes on the same weights. All of it is float32.
"""

import gc
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from helpers.golden_weights import (
    ClipSizes,
    GoldenSet,
    LlamaSizes,
    RegionClipSizes,
    gpt4roi_maker,
    pvit_image,
    pvit_maker,
)
from helpers.published_models import Published, write_gpt4roi, write_pvit
from regionqa.backends.bundle import BundleModel
from regionqa.bundles.store import find_bundle
from regionqa.cli import main
from regionqa.language.generation import LanguageModel, SplicedPrompt
from regionqa.language.tokenization import Prompt
from regionqa.options import RuntimeOptions
from regionqa.regions import Box

PATCHES = 256
TOLERANCE = 1e-3
"""Largest difference as a share of the largest value, as both specifications suggest."""
Floats = np.typing.NDArray[np.float32]


def difference(got: Any, want: Any) -> float:
    """Largest difference, as a share of the largest wanted value; shown with `-s`."""
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    assert got.shape == want.shape
    found = float(np.abs(got - want).max() / np.abs(want).max())
    sys.stderr.write(f"{got.shape}: {found:.1e}\n")
    return found


@dataclass(frozen=True)
class Case:
    """Ids of a prompt, and the tokens for its slots."""

    ids: Sequence[int]
    image_tokens: Floats
    region_tokens: Floats
    """(N, 1, H)."""
    region_positions: Sequence[int]
    start: int
    """Position of the first image token."""

    @property
    def spliced(self) -> SplicedPrompt:
        regions = tuple((int(position), k) for k, position in enumerate(self.region_positions))
        prompt = Prompt(tuple(map(int, self.ids)), self.start, regions, self.start + PATCHES)
        return SplicedPrompt(prompt, 0, self.image_tokens, self.region_tokens)


class Converted:
    """A converted system, opened."""

    def __init__(self, published: Published, out: Path) -> None:
        words = [published.name, *published.options, "--out", out, "--dtype", "float32"]
        assert main(["download", *map(str, words)]) == 0
        self.bundle = find_bundle(out)
        self.backend = BundleModel(self.bundle).load(RuntimeOptions.parse(device="cpu"))

    @property
    def language(self) -> LanguageModel:
        return self.backend.language

    def id(self, token: str) -> int:
        return self.language.tokenizer.token_id(token)

    def encoded(self, pixel_values: Floats) -> list[Any]:
        return self.backend.vision.encode(np.ascontiguousarray(pixel_values))

    def regions(self, sources: Sequence[Floats], boxes: Any) -> Floats:
        """(N, 1, H) of boxes in [0, 1]."""
        assert self.backend.region is not None
        return self.backend.region.encode(sources, np.asarray(boxes, np.float32).reshape(-1, 4))

    @torch.inference_mode()
    def embeds(self, case: Case) -> Tensor:
        """The language model's input (L, H)."""
        return self.language.embed(case.spliced)

    @torch.inference_mode()
    def logits(self, embeds: Tensor) -> Tensor:
        """Logits (L, V) at every position, computed one after the other."""
        decoder, cache, rows = self.language._decoder, None, []
        for position in range(len(embeds)):
            mask = torch.ones(1, position + 1, dtype=torch.bool)
            at = torch.tensor([[position]])
            found, cache = decoder.step(embeds[None, position : position + 1], mask, at, cache)
            rows.append(found[0].float())
        return torch.stack(rows)

    @torch.inference_mode()
    def last(self, embeds: Tensor) -> Tensor:
        """Logits (V,) after the last position, in one step."""
        mask = torch.ones(1, len(embeds), dtype=torch.bool)
        found, _ = self.language._decoder.step(
            embeds[None], mask, torch.arange(len(embeds))[None], None
        )
        return found[0].float()

    def greedy(self, cases: Sequence[Case], count: int) -> list[tuple[int, ...]]:
        """Generated ids, with the cases in one batch."""
        spliced = [
            SplicedPrompt(each.prompt, image, each.image_tokens, each.region_tokens)
            for image, each in enumerate(case.spliced for case in cases)
        ]
        return [found.ids for found in self.language.generate(spliced, count)]


def check_top(logits: Tensor, ids: Any, values: Any) -> None:
    """The largest logits are those of the reference, and stand at the same ids."""
    wanted = torch.from_numpy(np.asarray(values))
    top = logits.topk(len(wanted)).values
    assert difference(logits[torch.from_numpy(np.asarray(ids)).long()], wanted) < TOLERANCE
    assert difference(top, wanted) < TOLERANCE


# -- GPT4RoI ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def roi_model(gpt4roi: GoldenSet, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Converted]:
    """GPT4RoI at full width with a language model of two layers."""
    root = tmp_path_factory.mktemp("gpt4roi")
    llama = LlamaSizes(layers=gpt4roi.meta["llm_config"]["num_hidden_layers"])
    published = write_gpt4roi(root, gpt4roi, llama, ClipSizes(), dtype=torch.float32)
    yield Converted(published, root / "model")
    gc.collect()


@pytest.mark.slow
def test_gpt4roi_answers_equal_the_reference(roi_model: Converted, gpt4roi: GoldenSet) -> None:
    make = gpt4roi_maker(gpt4roi.salt)
    want, prefix = gpt4roi.arrays("c_end_to_end.npz"), gpt4roi.arrays("b_visual_prefix.npz")
    (image,) = roi_model.encoded(make("input:pixel_values", (1, 3, 224, 224)))
    regions = roi_model.regions(image.levels, want["boxes"])
    assert difference(image.image_tokens[:8], prefix["projector_first8"]) < TOLERANCE
    norms = np.linalg.norm(image.image_tokens, axis=1)
    assert difference(norms, prefix["projector_token_norms"]) < TOLERANCE
    assert difference(regions[:, 0], prefix["region_embeddings"]) < TOLERANCE

    ids = want["input_ids"].tolist()
    positions = [at for at, index in enumerate(ids) if index == roi_model.id("<bbox>")]
    assert positions == want["bbox_positions"].tolist()
    start = ids.index(roi_model.id("<im_start>")) + 1
    case = Case(ids, image.image_tokens, regions, positions, start)
    embeds = roi_model.embeds(case)
    assert difference(embeds.norm(dim=1), want["dbg_embeds_norms"]) < TOLERANCE
    rows = embeds[torch.from_numpy(want["dbg_embeds_first16_at"])][:, :16]
    assert difference(rows, want["dbg_embeds_first16"]) < TOLERANCE

    logits = roi_model.logits(embeds)
    check_top(logits[-1], want["last_top_ids"], want["last_top_logits"])
    assert difference(logits[-1, :256], want["last_logits_first256"]) < TOLERANCE
    assert difference(logits[-1, 32000:], want["last_logits_added_tokens"]) < TOLERANCE
    assert difference(logits.logsumexp(1), want["dbg_logits_logsumexp"]) < TOLERANCE
    for k, position in enumerate(positions):
        check_top(logits[position], want[f"bbox{k}_top_ids"], want[f"bbox{k}_top_logits"])
    assert roi_model.greedy([case], 8) == [tuple(want["greedy_next8"].tolist())]


@pytest.mark.slow
def test_gpt4roi_padded_batch_equals_the_reference(
    roi_model: Converted, gpt4roi: GoldenSet
) -> None:
    make = gpt4roi_maker(gpt4roi.salt)
    want = gpt4roi.arrays("c_end_to_end.npz")
    images = roi_model.encoded(make("input:pixel_values_batch2", (2, 3, 224, 224)))
    cases = []
    for number, image in enumerate(images):
        ids = want["batch2_input_ids"][number].tolist()
        while ids[-1] == roi_model.id("[PAD]"):
            ids.pop()
        positions = [at for at, index in enumerate(ids) if index == roi_model.id("<bbox>")]
        regions = roi_model.regions(image.levels, want[f"batch2_boxes{number}"])
        start = ids.index(roi_model.id("<im_start>")) + 1
        cases.append(Case(ids, image.image_tokens, regions, positions, start))
    first = roi_model.greedy(cases, 1)
    for number, case in enumerate(cases):
        logits = roi_model.last(roi_model.embeds(case))
        top = want[f"batch2_s{number}_last_top_ids"]
        check_top(logits, top, want[f"batch2_s{number}_last_top_logits"])
        assert first[number] == (top[0],)


# -- PVIT ------------------------------------------------------------------------------------------


def pvit_model(golden: GoldenSet, size: str, root: Path) -> Converted:
    """PVIT with a language model and a tower of the size that the set names."""
    sizes = golden.meta["sizes"][size]
    llama = LlamaSizes(sizes["hidden"], sizes["inter"], sizes["layers"], sizes["heads"])
    clip = ClipSizes(inner=sizes["clip_inter"], layers=sizes["clip_layers"])
    published = write_pvit(root, golden, llama, clip, RegionClipSizes(), dtype=torch.float32)
    return Converted(published, root / "model")


@pytest.fixture(scope="module", params=["small", "full"])
def pvit_case(
    request: pytest.FixtureRequest, pvit: GoldenSet, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Converted, dict[str, Any]]]:
    """A converted PVIT and what the reference gives at its size."""
    file = {"small": "small.npz", "full": "e2e.npz"}[request.param]
    root = tmp_path_factory.mktemp(request.param)
    yield pvit_model(pvit, request.param, root), pvit.arrays(file)
    gc.collect()


@pytest.mark.slow
def test_pvit_answers_equal_the_reference(
    pvit_case: tuple[Converted, dict[str, Any]], pvit: GoldenSet
) -> None:
    model, want = pvit_case
    image = Image.fromarray(pvit_image("main", 480, 640, pvit.salt))
    card = model.bundle.card
    pixel_values = card.image.pixel_values(image)[None]
    assert card.region is not None
    assert card.region.image is not None
    assert difference(pixel_values[0, :, ::8, ::8], want["clip_sample"]) < TOLERANCE
    (source,) = model.encoded(pixel_values)
    sizes = np.array([image.width, image.height] * 2)
    boxes = [Box(*(permille / 1000 * sizes)) for permille in want["boxes_permille"]]
    placement = card.region.image.placement(*image.size)
    own = card.region.image.pixel_values(image)[None]
    regions = model.regions([own], [placement.to_model(box) for box in boxes])

    ids = want["ids"].tolist()
    start = ids.index(model.id("<im_start>")) + 1
    tags = [at + 1 for at, index in enumerate(ids) if index == model.id("<Region>")]
    assert tags == want["region_positions"].tolist()
    case = Case(ids, source.image_tokens, regions, tags, start)
    embeds = model.embeds(case)
    probe = torch.from_numpy(pvit_maker(pvit.salt)("probe.weight", (4, embeds.shape[1])))
    assert difference(embeds.norm(dim=1), want["embed_norm"]) < TOLERANCE
    assert difference(embeds @ probe.T, want["embed_probe"]) < TOLERANCE
    rows = embeds[torch.from_numpy(want["embed_positions"])]
    assert difference(rows, want["embed_rows"]) < TOLERANCE

    logits = model.logits(embeds)
    check_top(logits[-1], want["logits_top100_ids"], want["logits_top100"])
    assert difference(logits[-1], want["logits_last"]) < TOLERANCE
    assert difference(logits[tags], want["logits_region_positions"]) < TOLERANCE
    assert difference(logits.max(1).values, want["max_all"]) < TOLERANCE
    assert difference(logits.logsumexp(1), want["logsumexp_all"]) < TOLERANCE
    assert model.greedy([case], 8) == [tuple(want["greedy_ids"].tolist())]

    plain = want["noregion_ids"].tolist()
    start = plain.index(model.id("<im_start>")) + 1
    without = Case(plain, source.image_tokens, regions[:0], [], start)
    last = model.last(model.embeds(without))
    assert difference(last, want["noregion_logits_last"]) < TOLERANCE
