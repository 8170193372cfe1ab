"""Writing the trained bundle: merge LoRA, export graphs, evaluate, and complete the card."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging

from regionqa.bundles.card import ConfidenceCard
from regionqa.bundles.store import Bundle, open_bundle
from regionqa.bundles.weights import main_kind, stored
from regionqa.data.records import Record
from regionqa.engine import Engine
from regionqa.export.bundle import (
    DETECTOR_GRAPH,
    REGION_GRAPH,
    VISION_GRAPH,
    WEIGHTS,
    given_tables,
    read_detector,
    read_encoders,
    write_bundle,
    write_card,
)
from regionqa.export.modules.base import RegionModule, VisionModule
from regionqa.export.modules.detection import DetectionHead
from regionqa.export.onnx.export import round_to_float16
from regionqa.export.onnx.verify import ParityReport
from regionqa.files import set_default_permissions
from regionqa.finetune.batches.dataset import Say, single_turns
from regionqa.finetune.calibrate import ENOUGH, TEMPERATURES, ScoredAnswers, calibrate
from regionqa.finetune.config import FinetuneSettings
from regionqa.finetune.model import AnswerModel, RegionLanguageModel, add_lora
from regionqa.images.reading import open_image
from regionqa.language.number_words import is_number
from regionqa.language.prompts import render_answer
from regionqa.requests import Request

ASKED = 500
"""Most held-out questions that the finished bundle is asked."""
DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""Types by safetensors' names for them."""
PACKAGES = ("regionqa", "torch", "transformers", "accelerate", "peft", "onnxruntime-gpu")


@dataclass(frozen=True)
class BundleModules:
    """The torch modules of a bundle, on the CPU in float32."""

    vision: VisionModule
    region: RegionModule | None
    language: PreTrainedModel
    detector: DetectionHead | None = None
    """Reads the vision encoder's levels, which no training changes, so it stays as it is."""


def read_modules(bundle: Bundle) -> BundleModules:
    """Load all torch modules of a bundle."""
    vision, region = read_encoders(bundle)
    vision.requires_grad_(False)
    folder = bundle.file(bundle.card.language.folder)
    logging.disable_progress_bar()
    language = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, local_files_only=True, trust_remote_code=False
    )
    return BundleModules(vision, region, language, read_detector(bundle))


def changed_weights(model: AnswerModel, trained: Sequence[str]) -> dict[str, Tensor]:
    """Gather the weights that training has changed, unsharded, on the CPU; a collective call."""
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    weights = get_model_state_dict(model, options=options)
    return {name: cast(Tensor, weights[name]) for name in trained if name in weights}


def merge_weights(
    base: Bundle, weights: Mapping[str, Tensor], settings: FinetuneSettings, adapter: Path | None
) -> BundleModules:
    """Load the base's modules with the changed weights, LoRA merged.

    adapter: a folder that keeps the LoRA adapter, if there is one, in peft's format.
    """
    parts = read_modules(base)
    model = RegionLanguageModel(parts.vision, parts.region, parts.language)
    wrapped = add_lora(parts.language, settings)
    _, unknown = model.load_state_dict(weights, strict=False)
    assert not unknown, unknown
    if wrapped is None:
        return parts
    if adapter:
        wrapped.save_pretrained(adapter)
        set_default_permissions(adapter)
    return replace(parts, language=wrapped.merge_and_unload())


def write_result(
    out: Path,
    base: Bundle,
    parts: BundleModules,
    trained: Sequence[str],
    provenance: Mapping[str, Any],
) -> tuple[Bundle, list[ParityReport]]:
    """Write the bundle; only graphs whose weights changed are exported and compared with torch."""
    graphs = {VISION_GRAPH: base.file(base.card.vision.graph)}
    if base.card.region:
        graphs[REGION_GRAPH] = base.file(base.card.region.graph)
    prefixes = {VISION_GRAPH: "projector.", REGION_GRAPH: "region."}
    unchanged = {
        name: graph
        for name, graph in graphs.items()
        if not any(weight.startswith(prefixes[name]) for weight in trained)
    }
    if base.card.detector:
        unchanged[DETECTOR_GRAPH] = base.file(base.card.detector.graph)
    if stored_in_half(base):
        for module in (parts.vision, parts.region):
            if module is not None:
                round_to_float16(module)
    folder = base.file(base.card.language.folder)
    parts.language.to(DTYPES[main_kind(stored(folder))])
    return write_bundle(
        out,
        finetuned_card(base, out.resolve().name, provenance),
        parts.vision,
        parts.region,
        parts.language,
        folder / "tokenizer.json",
        unchanged,
        like=graphs,
        detector=parts.detector,
    )


def finetuned_card(base: Bundle, name: str, provenance: Mapping[str, Any]) -> dict[str, Any]:
    """Make the result's card of the base's, without the keys that writing the bundle fills in."""
    table = given_tables(base)
    table.pop("untrained", None)
    table["name"] = name
    table["summary"] = f"{base.card.name}, trained further"
    table["language"]["folder"] = "llm"
    table["provenance"] = dict(provenance)
    return table


def stored_in_half(base: Bundle) -> bool:
    """Return whether the base stores its encoders in half precision; then the result does too."""
    with safe_open(base.file(WEIGHTS), framework="pt") as tensors:
        kinds = {tensors.get_slice(name).get_dtype() for name in tensors.keys()}  # noqa: SIM118
    return "F32" not in kinds


def describe_run(
    base: Mapping[str, Any],
    licence: object,
    settings: FinetuneSettings,
    files: Sequence[Mapping[str, Any]],
    stages: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """Describe in the card's [provenance] what a model was made from, and how.

    Args:
        base: Name and revision of the base.
        licence: Its licence; None: not known.
        settings: The settings of the run.
        files: The files of records.
        stages: The stages with their figures.
    """
    lora = {
        "rank": settings.lora_rank,
        "alpha": settings.lora_alpha,
        "dropout": settings.lora_dropout,
    }
    return {
        **({"licence": licence} if licence is not None else {}),
        "base": dict(base),
        "data": [dict(file) for file in files],
        "stages": [dict(stage) for stage in stages],
        **({"lora": lora} if settings.lora_rank else {}),
        "seed": settings.seed,
        "recipe": "regionqa finetune; training/settings.toml holds all settings",
        "versions": {name: _version(name) for name in PACKAGES if _version(name)},
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except ModuleNotFoundError:
        return ""


def held_out_questions(held_out: Sequence[Record]) -> list[Record]:
    """Split held-out records into questions for the finished bundle, ASKED at most."""
    return [part for record in held_out for part in single_turns(record)][:ASKED]


def ask_held_out(
    bundle: Bundle, records: Sequence[Record], temperature: float | None = None
) -> ScoredAnswers:
    """Ask the questions of held-out records as `regionqa ask` does.

    Args:
        bundle: The finished bundle.
        records: One question each.
        temperature: Calibration temperature of the confidences; default: the card's.

    Returns:
        Answers in the order of the records. One is right if it is the record's word for word, but
        for case, spaces and full stops.
    """
    rules, card = bundle.card.prompt, bundle.card
    if temperature is not None:
        card = replace(card, confidence=ConfidenceCard(threshold=0.0, temperature=temperature))
    engine = Engine.load(replace(bundle, card=card), device="cpu")
    return ask_engine(engine, records, lambda answer: render_answer(rules, answer))


def ask_engine(
    engine: Engine, records: Sequence[Record], written: Callable[[str], str]
) -> ScoredAnswers:
    """Ask a loaded model the questions of held-out records; see `ask_held_out`.

    written: turns a record's answer into what the model should write.
    """
    images = {path: open_image(path) for path in {record.image for record in records}}
    requests = (
        Request(str(r.image), r.turns[0].question, r.regions, images[r.image]) for r in records
    )
    wanted = [plain_words(written(record.turns[0].answer)) for record in records]
    answers = list(engine.answer(requests, unsure_below=0))
    return ScoredAnswers(
        np.array([answer.confidence or 0.0 for answer in answers]),
        np.array([plain_words(a.text) == text for a, text in zip(answers, wanted, strict=True)]),
        np.array([answer.tokens for answer in answers]),
        np.array([is_number(answer.text) for answer in answers]),
    )


def accuracy_facts(answers: ScoredAnswers) -> dict[str, Any]:
    """Summarise for the card how many held-out answers are right."""
    share, count = 100 * float(answers.right.mean()), len(answers.right)
    return {
        "held_out_questions": count,
        "held_out_accuracy": round(share, 1),
        "measured": f"{share:.1f} % of {count} held-out answers word for word",
    }


def recalibrate(
    bundle: Bundle,
    rule: ConfidenceCard,
    records: Sequence[Record],
    answers: ScoredAnswers,
    log: Callable[[str], None],
) -> tuple[dict[str, Any] | None, str]:
    """Compute the [confidence] table of a finished bundle, where held-out answers suffice.

    Args:
        bundle: The finished bundle.
        rule: The base's table.
        records: Held-out questions.
        answers: The bundle's answers to them.
        log: Receives a line for each temperature.

    Returns:
        The new table, or None where the base's stays, and a line about it for card and log.
    """
    count = int(answers.short(rule.longest).sum())
    if count < ENOUGH:
        return None, (
            f"the base's; {count} short held-out answers are too few to compute it again, which "
            f"takes {ENOUGH}"
        )
    scored = {t: ask_held_out(bundle, records, t) for t in TEMPERATURES}
    table = calibrate(scored, log, longest=rule.longest)
    if rule.number_threshold is not None:  # the base's, where there are too few numbers
        table.setdefault("number_threshold", rule.number_threshold)
    return {**table, "unsure": rule.unsure}, f"computed on {count} short held-out answers"


def plain_words(text: str) -> str:
    """Lower-case a text, with single spaces and no full stop at the end."""
    return re.sub(r"\s+", " ", text).strip().rstrip(".").casefold()


def update_card(
    bundle: Bundle,
    parts: BundleModules,
    facts: Mapping[str, Any],
    confidence: Mapping[str, Any] | None = None,
) -> Bundle:
    """Add facts to a written bundle's provenance, and replace its [confidence] table."""
    table = given_tables(bundle)
    table["provenance"] |= facts
    if confidence is not None:
        table["confidence"] = dict(confidence)
    write_card(bundle.root, table, parts.vision, parts.region, parts.detector)
    return open_bundle(bundle.root)


def measure_result(
    bundle: Bundle, parts: BundleModules, held_out: Sequence[Record], say: Say
) -> Bundle:
    """Ask the bundle its held-out questions, and write accuracy and confidence into its card."""
    questions = held_out_questions(held_out)
    facts: dict[str, Any] = {}
    confidence = None
    if questions:
        answers = ask_held_out(bundle, questions)
        facts = accuracy_facts(answers)
    if rule := bundle.card.confidence:
        if questions:
            confidence, note = recalibrate(bundle, rule, questions, answers, say)
        else:
            note = "the base's; there are no held-out answers to compute it again"
        facts["confidence"] = note
        say(f"confidence table: {note}")
    if facts:
        bundle = update_card(bundle, parts, facts, confidence)
    if questions:
        say(str(facts["measured"]))
    return bundle
