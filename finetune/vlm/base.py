"""Checkpoints that can be trained, and the builder of their conversations.

Weights are not read, so that records are checked in seconds.
"""

from pathlib import Path
from typing import Any

from transformers import AutoConfig, GenerationConfig

from regionqa.backends.base import find_model
from regionqa.backends.vlm.backend import VlmModel
from regionqa.backends.vlm.processor import VlmProcessor
from regionqa.errors import UsageError
from regionqa.finetune.vlm.samples import ConversationBuilder
from regionqa.options import RegionWay, RuntimeOptions
from regionqa.vlm.store import download_command


def find_checkpoint(way: RegionWay | None, model: str) -> VlmModel:
    """Find a checkpoint that can be trained; UsageError where it cannot."""
    found = find_model(model)
    if not isinstance(found, VlmModel):
        raise UsageError(f"{model}: is no vision-language model of the Hub")
    if found.folder is None:
        raise UsageError(
            f"{found.card.name}: not downloaded yet; run: {download_command(found.card)}"
        )
    if found.card.chat.tasks:
        raise UsageError(
            f"{found.card.name} takes fixed tasks instead of questions and cannot be trained here; "
            "choose another model: regionqa models list"
        )
    return found.configured(RuntimeOptions(way=way))


def builder_of(model: str) -> ConversationBuilder:
    """Make the builder of a model that is named, to check records with it."""
    base = find_checkpoint(None, model)
    assert base.folder is not None
    return conversation_builder(base, VlmProcessor(base.folder, base.card))


def conversation_builder(base: VlmModel, processor: VlmProcessor) -> ConversationBuilder:
    """Make the builder of a checkpoint's conversations; its weights are not read."""
    assert base.folder is not None
    config = AutoConfig.from_pretrained(base.folder, local_files_only=True).get_text_config()
    context = getattr(config, "max_position_embeddings", None)
    return ConversationBuilder(base, processor, stop_id(base.folder, processor, config), context)


def stop_id(folder: Path, processor: VlmProcessor, config: Any) -> int:
    """Return the token that ends an answer: the chat template's, or the checkpoint's own."""
    if processor.answer_end is not None:
        return processor.answer_end
    try:
        found = GenerationConfig.from_pretrained(folder, local_files_only=True).eos_token_id
    except OSError:  # it has none
        found = None
    if found is None:
        found = config.eos_token_id
    return int(min(found) if isinstance(found, list) else found)
