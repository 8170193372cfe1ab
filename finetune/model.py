"""The model that trains, which of its weights a stage trains, and their optimizers.

Projector, region encoder and language model run over the features of a frozen vision encoder.
Image and region tokens are spliced into the embedded ids as for asking.
"""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from regionqa.errors import UsageError
from regionqa.export.modules.base import RegionModule, VisionModule
from regionqa.finetune.batches.collate import Batch, LabelledBatch
from regionqa.finetune.config import FinetuneSettings, RegionPart, StageSettings
from regionqa.finetune.distributed import decoder_layers
from regionqa.language.packing import longest_packed_prompt
from regionqa.language.splicing import splice_tokens

if TYPE_CHECKING:
    from peft import PeftModel


HEAD_EXTRAS = ("final_logit_softcapping", "logit_scale", "logits_scaling")
"""Config keys of models whose logits are more than `lm_head` of the last layer."""


@dataclass(frozen=True)
class BatchMetrics:
    """Sums over one or more batches, which add up over processes.

    Scalar tensors: loss, answer tokens, right tokens, answers, answers whose every token is right.
    """

    loss: Tensor
    tokens: Tensor
    right: Tensor
    answers: Tensor
    right_answers: Tensor

    def detached(self) -> Tensor:
        """Stack the five sums as a float64 tensor (5,) without gradient."""
        values = (self.loss, self.tokens, self.right, self.answers, self.right_answers)
        return torch.stack([value.detach().double() for value in values])


class AnswerModel(nn.Module):
    """A model that learns answers: the loss over a batch, from the logits of its kind."""

    @property
    def decoder(self) -> PreTrainedModel:
        """The language model, which is in training mode while a step is taken."""
        raise NotImplementedError

    def logits(self, batch: Any) -> Tensor:
        """Logits (A, V) of the positions before a learned token."""
        raise NotImplementedError

    def unfreeze(self, stage: StageSettings) -> None:
        """Make the weights that a stage trains require gradients; all others do not."""
        raise NotImplementedError

    def unused(self, batch: Any) -> Tensor | float:
        """Return 0, as a function of trained weights that a batch does not use."""
        return 0.0

    def forward(self, batch: LabelledBatch, teacher: Tensor | None = None) -> BatchMetrics:
        """Compute the loss of a batch's answers, summed over their tokens.

        teacher: logits (A, V) whose distribution is the target in the rows of `batch.distilled`,
            in place of the answer's tokens.
        """
        targets, learned = batch.labels[:, 1:], batch.learned  # (Q, L - 1) both
        logits = self.logits(batch)  # (A, V)
        wanted = targets[learned]  # (A,)
        right = torch.zeros_like(learned)
        right[learned] = logits.argmax(-1) == wanted
        losses = F.cross_entropy(logits.float(), wanted, reduction="none")  # (A,)
        if teacher is not None:
            soft = F.cross_entropy(logits.float(), teacher.float().softmax(-1), reduction="none")
            distilled = batch.distilled.unsqueeze(1).expand_as(learned)[learned]  # (A,)
            losses = torch.where(distilled, soft, losses)
        return BatchMetrics(
            # DDP needs a gradient of every trained weight in every process
            loss=losses.sum() + self.unused(batch),
            tokens=learned.sum(),
            right=right.sum(),
            answers=torch.tensor(len(targets), device=targets.device),
            right_answers=(right | ~learned).all(dim=1).sum(),
        )


class RegionLanguageModel(AnswerModel):
    """Everything of a bundle that may train: projector, region encoder and language model."""

    def __init__(
        self, vision: VisionModule, region: RegionModule | None, language: PreTrainedModel
    ) -> None:
        super().__init__()
        self.projector = vision.projector
        self.region = region
        self.language = language
        extras = any(getattr(language.config, key, None) for key in HEAD_EXTRAS)
        self._plain_head = language.get_output_embeddings() is not None and not extras
        self._longest_packed = longest_packed_prompt(language)

    @property
    def decoder(self) -> PreTrainedModel:
        """See `AnswerModel.decoder`."""
        return self.language

    def unfreeze(self, stage: StageSettings) -> None:
        """See `AnswerModel.unfreeze`; LoRA adapters train in place of the language model."""
        self.requires_grad_(False)
        if self.region is not None:
            train_region(self.region, stage.region)
        if stage.projector:
            self.projector.requires_grad_(True)
        if stage.language:
            unfreeze_language(self.language)

    def unused(self, batch: Batch) -> Tensor | float:
        """See `AnswerModel.unused`: the region encoder's, where no question has a region."""
        if self.region is None or len(batch.region_slots):
            return 0.0
        zero: Tensor | float = 0 * sum(p.sum() for p in self.region.parameters() if p.requires_grad)
        return zero

    def logits(self, batch: Batch) -> Tensor:
        """Logits (A, V) of the positions before a learned token."""
        embeds = self.embed(batch)  # (Q, L, H)
        before = F.pad(batch.learned, (0, 1))  # (Q, L)
        packed = batch.packed
        if packed is None or embeds.shape[1] > self._longest_packed:
            inputs = {"inputs_embeds": embeds, "attention_mask": batch.mask}
            return self._logits(inputs, lambda hidden: hidden[before])
        inputs = packed.inputs(embeds, self.language.config._attn_implementation)
        return self._logits(inputs, lambda hidden: packed.unpack(hidden, before))

    def embed(self, batch: Batch) -> Tensor:
        """Embed a batch (Q, L, H), with image and region tokens in their slots."""
        embeds = self.language.get_input_embeddings()(batch.input_ids)  # (Q, L, H)
        image = self.projector(batch.features)  # (B, T, H)
        question, start, box = batch.region_slots.unbind(1)  # (M,) each
        if self.region is not None and len(batch.region_slots):
            regions = self._regions(batch)[box]  # (M, K, H)
        else:
            regions = image.new_zeros(0, 0, image.shape[2])
        return splice_tokens(
            embeds, image[batch.image_rows], batch.image_starts, regions, question, start
        )

    def _regions(self, batch: Batch) -> Tensor:
        """Region tokens (N, K, H) of all boxes."""
        assert self.region is not None
        if batch.vectors is not None:
            return self.region.project(batch.vectors, batch.boxes)
        parts, members = [], []
        for group, sources in enumerate(batch.sources):
            own = (batch.places[:, 0] == group).nonzero().flatten()  # (n,)
            if len(own):
                index = batch.places[own, 1]
                parts.append(self.region(sources, batch.boxes[own], index))
                members.append(own)
        order = torch.cat(members).argsort()
        return torch.cat(parts)[order]

    def _logits(self, inputs: dict[str, Tensor], select: Callable[[Tensor], Tensor]) -> Tensor:
        """Logits (A, V) of the positions that `select` takes from the model's rows."""
        if not self._plain_head:
            return select(self.language(**inputs, use_cache=False).logits)
        # the head reads learned positions only: most are none
        hidden = self.language.base_model(**inputs, use_cache=False).last_hidden_state
        logits: Tensor = self.language.get_output_embeddings()(select(hidden))
        return logits


def select_trainable(model: AnswerModel, stage: StageSettings) -> list[tuple[str, nn.Parameter]]:
    """Freeze all weights but those that a stage trains, and return these with their names.

    Raises:
        UsageError: The stage trains nothing.
    """
    model.unfreeze(stage)
    chosen = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    if not chosen:
        raise UsageError("the stage trains nothing: no region encoder, projector or language model")
    return chosen


def unfreeze_language(language: nn.Module) -> None:
    """Make a language model's LoRA adapters require gradients; all its weights without them."""
    named = list(language.named_parameters())
    adapters = [parameter for name, parameter in named if "lora_" in name]
    for parameter in adapters or [parameter for _, parameter in named]:
        parameter.requires_grad_(True)


def train_region(region: RegionModule, part: RegionPart) -> None:
    """Unfreeze a region encoder, or only the projection of its vectors."""
    if part is RegionPart.all:
        region.requires_grad_(True)
        return
    for name in region.projector_parts:
        region.get_submodule(name).requires_grad_(True)


def add_lora(
    language: PreTrainedModel, settings: FinetuneSettings, layers: str = "all-linear"
) -> "PeftModel | None":
    """Add LoRA adapters to all linear layers of the language model but the head, in place.

    Args:
        language: The language model, or a model that holds it.
        settings: Rank, scale and dropout.
        layers: Pattern of the full names of the layers that get one, where these are not all.

    Returns:
        The wrapper that can merge or save the adapters; None, and an unchanged model, where the
        settings ask for no LoRA or no stage trains the language model. `language` itself is called
        as before.
    """
    trains = any(getattr(settings.stages, name).language for name in settings.run)
    if not settings.lora_rank or not trains:
        return None
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=settings.lora_rank,
        lora_alpha=settings.lora_alpha,
        lora_dropout=settings.lora_dropout,
        target_modules=layers,
        task_type="CAUSAL_LM",
    )
    with warnings.catch_warnings():  # peft calls what newer transformers have renamed
        warnings.filterwarnings("ignore", ".*gradient_checkpointing", FutureWarning)
        return get_peft_model(language, config)


def make_optimizers(model: AnswerModel, settings: StageSettings) -> list[torch.optim.Optimizer]:
    """Make AdamW, and Muon for the language model's matrices where `orthogonal_rate` is above 0.

    Weight decay applies to matrices and kernels, not to biases and norms. A parameter group's
    "share" is its learning rate as a share of the stage's.
    """
    layers = decoder_layers(model.decoder) if settings.orthogonal_rate else nn.ModuleList()
    turned = {id(p) for p in layers.parameters() if p.requires_grad and p.ndim == 2}
    rates = {"region": settings.region_rate, "projector": settings.projector_rate}
    matrices: list[nn.Parameter] = []
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if id(parameter) in turned:
            matrices.append(parameter)
        elif parameter.requires_grad:
            share = rates.get(name.split(".")[0], 1.0)
            decay = settings.weight_decay if parameter.ndim > 1 else 0.0
            groups.setdefault((share, decay), []).append(parameter)
    optimizers: list[torch.optim.Optimizer] = []
    if groups:
        optimizers.append(
            torch.optim.AdamW(
                [
                    {"params": parameters, "share": share, "weight_decay": decay}
                    for (share, decay), parameters in groups.items()
                ],
                lr=settings.learning_rate,
            )
        )
    if matrices:
        group = {"params": matrices, "share": settings.orthogonal_rate}
        rate, decay = settings.learning_rate, settings.weight_decay
        muon = SinglePrecisionMuon if lacks_bf16(matrices[0].device) else torch.optim.Muon
        optimizers.append(muon([group], lr=rate, weight_decay=decay))
    return optimizers


def lacks_bf16(device: torch.device) -> bool:
    """Return whether bf16 products are emulated, which takes some 20 times as long as float32."""
    return device.type == "cpu" and not torch.cpu._is_avx512_bf16_supported()


class SinglePrecisionMuon(torch.optim.Muon):
    """torch's Muon, whose Newton-Schulz iteration runs in the gradient's precision, not in bf16.

    The state is the same, so that either continues from a checkpoint of the other.
    """

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Take a step; no closure is called."""
        assert closure is None
        for group in self.param_groups:
            rate, momentum = group["lr"], group["momentum"]
            weights: list[Tensor] = []
            gradients: list[Tensor] = []
            moments: list[Tensor] = []
            self._init_group(group, weights, gradients, moments)
            for weight, gradient, moment in zip(weights, gradients, moments, strict=True):
                moment.lerp_(gradient, 1 - momentum)
                update = gradient.lerp(moment, momentum) if group["nesterov"] else moment
                update = orthogonalized(
                    update, group["ns_coefficients"], group["ns_steps"], group["eps"]
                )
                rows, columns = weight.shape
                weight.mul_(1 - rate * group["weight_decay"])
                weight.add_(update, alpha=-rate * math.sqrt(max(1, rows / columns)))


def orthogonalized(
    matrix: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float
) -> Tensor:
    """Move the singular values of a matrix towards 1, by Newton-Schulz iterations in its dtype."""
    a, b, c = coefficients
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / x.norm().clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x


def parameters_of(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    """Return all parameters of an optimizer."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def learning_rate(settings: StageSettings, step: int, steps: int) -> float:
    """Return the learning rate of a step: linear warm-up, then the schedule; step counts from 0."""
    warm_up = settings.warm_up_steps
    if warm_up is None:
        warm_up = math.ceil(settings.warm_up * steps)
    if step < warm_up:
        return settings.learning_rate * (step + 1) / warm_up
    if settings.schedule == "constant":
        return settings.learning_rate
    share = (step - warm_up) / max(1, steps - warm_up)
    return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * share))
