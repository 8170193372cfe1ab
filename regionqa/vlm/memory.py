"""Sizes of vision-language models that determine their memory: from files, or from a card."""

from pathlib import Path

from regionqa.bundles.model_config import TextSizes, text_sizes
from regionqa.bundles.weights import stored
from regionqa.errors import BundleError, message_of
from regionqa.runtime.graph_sizes import GraphSizes
from regionqa.runtime.memory import CHANNELS_PER_LAYER, MemoryNeeds
from regionqa.vlm.card import VlmCard

CONTEXT = 4096
"""Tokens of a long prompt: an image within the card's budget, a crop, and a question."""
VISION_NAMES = ("vision", "visual", "projector", "connector")
"""Parts of names of the vision encoder's weights; the families' modules are named so."""
VISION_VALUES = 200_000_000
"""Activations of a vision encoder at one time, as numbers: about twelve of Qwen3-VL's widest
(4096 channels) for an image of one megapixel, 4096 patches."""
VISION_SHARE, LARGEST_VISION = 0.2, 450_000_000
"""Weights of the vision encoder before the download: this share of all, and at most so many, as in
the families with cards."""
VOCABULARY = 150_000
"""Rows of the embeddings before the download."""
LARGEST_EMBEDDINGS = 0.4
"""Largest share of the language model's weights that embeddings are taken to have."""


def needs_of_checkpoint(folder: Path) -> MemoryNeeds:
    """Return the sizes of a checkpoint from its config and the headers of its weights.

    Raises:
        BundleError: They cannot be read.
    """
    from safetensors import SafetensorError
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        ).get_text_config()
        # where layers differ in width (Gemma 4), the config's own value is that of most
        config.allow_global_per_layer_attribute_access = True
        text = text_sizes(config)
        tensors = stored(folder)
    except (OSError, ValueError, KeyError, AttributeError, SafetensorError) as error:
        reason = message_of(error)
        raise BundleError(f"{folder}: its size cannot be read: {reason}") from error
    vision = sum(each.count for each in tensors if is_vision(each.name))
    language = [each for each in tensors if not is_vision(each.name)]
    matrices = sum(
        each.count
        for each in language
        if len(each.shape) == 2 and text.vocabulary not in each.shape
    )
    return MemoryNeeds(
        matrices,
        sum(each.count for each in language) - matrices,
        text,
        min(CONTEXT, text.context),
        GraphSizes(vision, VISION_VALUES),
        transformers=True,
    )


def is_vision(name: str) -> bool:
    """Return whether a weight is the vision encoder's, by its name."""
    return any(part in name for part in VISION_NAMES)


def needs_of_card(card: VlmCard) -> MemoryNeeds | None:
    """Return the sizes of a model before its download, from its number of weights.

    Layers and widths are those of LLaMA's proportions, keys and values half as wide.

    Returns:
        None if the card does not say how many weights it has.
    """
    if card.source is None or not card.source.parameters:
        return None
    count = int(card.source.parameters * 1e9)
    vision = int(min(VISION_SHARE * count, LARGEST_VISION))
    language = count - vision
    layers = max(1, round((language / (12 * CHANNELS_PER_LAYER**2)) ** (1 / 3)))
    width = CHANNELS_PER_LAYER * layers
    embeddings = int(min(VOCABULARY * width, LARGEST_EMBEDDINGS * language))
    text = TextSizes(width, VOCABULARY, layers, CONTEXT, int(2.7 * width), width // 2)
    return MemoryNeeds(
        language - embeddings, embeddings, text, CONTEXT,
        GraphSizes(vision, VISION_VALUES), transformers=True,
    )  # fmt: skip


def needs_of_vlm(card: VlmCard, folder: Path | None) -> MemoryNeeds | None:
    """Return the sizes of a model from its files if they are here, else from its card."""
    return needs_of_checkpoint(folder) if folder else needs_of_card(card)
