"""The vision-language model that trains: which of its weights do, and its logits."""

import inspect
import re
from collections.abc import Mapping
from typing import Any, cast

from torch import Tensor, nn
from transformers import PreTrainedModel

from regionqa.backends.vlm.features import join, place
from regionqa.finetune.config import StageSettings
from regionqa.finetune.model import AnswerModel, unfreeze_language
from regionqa.finetune.vlm.batches import ConversationBatch


class VisionLanguageModel(AnswerModel):
    """A checkpoint that learns answers, with LoRA adapters or all of its weights."""

    def __init__(self, model: Any, type_name: str | None) -> None:
        """Wrap a model.

        Args:
            model: A `...ForConditionalGeneration`, in evaluation mode.
            type_name: Name of its argument with the types of tokens; None: it has none.
        """
        super().__init__()
        self.model = model
        self._type_name = type_name

    @property
    def decoder(self) -> PreTrainedModel:
        """See `AnswerModel.decoder`."""
        return cast(PreTrainedModel, self.model.get_decoder())

    @property
    def trains_vision(self) -> bool:
        """Whether weights train that are not the language model's."""
        own = {id(each) for each in self.decoder.parameters()}
        own |= {id(each) for each in self.model.get_output_embeddings().parameters()}
        return any(each.requires_grad and id(each) not in own for each in self.parameters())

    def unfreeze(self, stage: StageSettings) -> None:
        """See `AnswerModel.unfreeze`.

        LoRA adapters train in place of everything else. Without them all weights train; with
        `projector = false`, those of the vision encoder and the projector do not.
        """
        self.requires_grad_(False)
        if not stage.language:
            return
        if has_adapters(self.model) or stage.projector:
            unfreeze_language(self.model)
        else:
            self.decoder.requires_grad_(True)
            self.model.get_output_embeddings().requires_grad_(True)

    def logits(self, batch: ConversationBatch) -> Tensor:
        """See `AnswerModel.logits`; the head reads only positions that are learned in some row."""
        learned = batch.learned  # (Q, L - 1)
        kept = learned.any(dim=0).nonzero().flatten()  # (P,)
        arguments: dict[str, Any] = {}
        if batch.images:
            features = join([self._features(image) for image in batch.images])
            arguments["mm_encoder_outputs"] = {"image": features}
        if self._type_name is not None and batch.types is not None:
            arguments[self._type_name] = batch.types
        output = self.model(
            input_ids=batch.input_ids,
            attention_mask=batch.mask,
            position_ids=batch.positions,
            use_cache=False,
            logits_to_keep=kept,
            **arguments,
        )
        logits: Tensor = output.logits[learned[:, kept]]
        return logits

    def _features(self, image: Any) -> Any:
        """The features of an image, of which a batch may hold the vision encoder's inputs."""
        if hasattr(image, "pooler_output"):
            return image
        assert isinstance(image, Mapping)
        encode = self.model.base_model.get_image_features
        known = inspect.signature(encode).parameters
        device, dtype = self.model.device, self.model.dtype
        inputs = {name: place(each, device, dtype) for name, each in image.items() if name in known}
        return encode(**inputs, return_dict=True)


def has_adapters(model: nn.Module) -> bool:
    """Return whether a model has LoRA adapters."""
    return any("lora_" in name for name, _ in model.named_parameters())


def language_layers(model: Any) -> str:
    """Return a pattern of the full names of all linear layers of a checkpoint's language model."""
    decoder = model.get_decoder()
    prefix = next(name for name, module in model.named_modules() if module is decoder)
    inner = {name for name, module in decoder.named_modules() if isinstance(module, nn.Linear)}
    last = "|".join(sorted({re.escape(name.rpartition(".")[2]) for name in inner}))
    return rf"{re.escape(prefix)}\.(?:.*\.)?(?:{last})"
