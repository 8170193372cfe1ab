"""Training of the starter's language model on what the frozen encoders see.

The encoders run once over several views of every photo; from then on only small arrays are read:
averaged image features, region vectors, boxes. What trains is the image projector, the layer that
carries region vectors into the language model, and the language model itself. Prompts come from
the same renderer as in asking.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from regionqa.finetune.pictures import Canvas, PhotoSet, mirrored, photo_view, whole_photo
from regionqa.finetune.pretrain import (
    Log,
    Recogniser,
    batch_of,
    learning_rate,
    parameter_groups,
    save_atomically,
)
from regionqa.finetune.questions import Scene, draw_sample
from regionqa.promptids import tokenize
from regionqa.prompts import PromptRules, render
from regionqa.tokenizer import BundleTokenizer

IGNORED = -100
"""Label of positions that are not learned (the loss of transformers skips it)."""


@dataclass(frozen=True)
class LanguageSettings:
    """How the language stage runs."""

    steps: int = 2000
    """Optimizer steps."""
    batch: int = 64
    """Questions per step."""
    learning_rate: float = 1.5e-3
    """Peak of AdamW's learning rate; warm-up over 300 steps, then a cosine to zero."""
    weight_decay: float = 0.1
    """AdamW's decay, on matrices only."""
    random_views: int = 3
    """Random crops of every photo that are encoded, beside the photo and its mirror image."""
    noise: float = 0.02
    """Standard deviation added to the features, as a share of theirs."""
    balance: float = 0.3
    """A box is asked about in proportion to (count of its class) ** -balance."""
    vocabulary: int = 1600
    """Ids of the tokenizer."""
    seed: int = 2
    """Seed of every random choice of the stage."""


LANGUAGE = LanguageSettings()


@dataclass(frozen=True)
class View:
    """One encoded view: image features (T, C), region vectors (N, D), and what is in it."""

    image: Tensor
    regions: Tensor
    scene: Scene


class Connector(nn.Module):
    """The two linear layers that carry features into the language model."""

    def __init__(self, recogniser: Recogniser) -> None:
        super().__init__()
        self.projector = recogniser.vision.projector
        self.updims = recogniser.region.roi_align.updims


def new_language_model(
    vocabulary: int, hidden_size: int, context: int, stop: int
) -> LlamaForCausalLM:
    """A small untrained decoder: 4 layers, 4 heads, tied embeddings."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=hidden_size,
            intermediate_size=512,
            num_hidden_layers=4,
            num_attention_heads=4,
            max_position_embeddings=context,
            tie_word_embeddings=True,
            bos_token_id=0,
            eos_token_id=stop,
            pad_token_id=stop,
        )
    )


def train_tokenizer(texts: Iterator[str], size: int, special: Sequence[str], path: Path) -> None:
    """Byte-level BPE in lower case; any text can be encoded. Written to `path`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(special),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    path.parent.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(path))


def scene_of(
    canvas: Canvas, captions: tuple[str, ...], photos: PhotoSet, weights: Tensor, complete: bool
) -> Scene:
    """What is known of a view."""
    return Scene(
        boxes=canvas.boxes,
        labels=canvas.labels,
        captions=captions,
        names=photos.names,
        complete=complete,
        box_weights=weights.numpy()[canvas.labels],
    )


@torch.no_grad()
def encode_views(
    recogniser: Recogniser, photos: PhotoSet, settings: LanguageSettings, log: Log
) -> list[View]:
    """Every photo, its mirror image and some random crops through the frozen encoders."""
    recogniser.eval()
    rng = np.random.default_rng(settings.seed)
    size = recogniser.vision.config.input_size
    counts = np.bincount(
        np.concatenate([photo.labels for photo in photos.photos]), minlength=len(photos.names)
    )
    weights = torch.tensor(np.maximum(counts, 1.0) ** -settings.balance, dtype=torch.float32)
    views = []
    for number, photo in enumerate(photos.photos):
        whole = whole_photo(photo, size)
        canvases = [(whole, True), (mirrored(whole), True)]
        canvases += [(photo_view(photo, size, rng), False) for _ in range(settings.random_views)]
        canvases = [(canvas, complete) for canvas, complete in canvases if len(canvas.labels)]
        if not canvases:
            continue
        pixel_values, boxes, index, _ = batch_of([canvas for canvas, _ in canvases])
        images, levels = recogniser.vision.features(pixel_values)  # (B, T, C)
        regions = recogniser.region.region_vectors(levels, boxes, index)  # (N, D)
        for row, (canvas, complete) in enumerate(canvases):
            scene = scene_of(canvas, photo.captions, photos, weights, complete)
            views.append(View(images[row].clone(), regions[index == row], scene))
        if (number + 1) % 500 == 0:
            log(f"encoded {number + 1} of {len(photos.photos)} photos")
    return views


@dataclass(frozen=True)
class Splicer:
    """Turns a sample about a view into embeddings and labels."""

    rules: PromptRules
    tokenizer: BundleTokenizer
    image_tokens: int
    stop: int
    noise: float

    def rows(
        self, view: View, connector: Connector, embeddings: nn.Module, rng: np.random.Generator
    ) -> tuple[Tensor, Tensor]:
        """Embeddings (L, H) and labels (L,) of one drawn question with its answer."""
        sample = draw_sample(view.scene, rng)
        boxes = [tuple(view.scene.boxes[row].tolist()) for row in sample.regions]
        pieces = render(self.rules, sample.question, boxes, self.tokenizer.special_tokens)
        prompt = tokenize(pieces, self.tokenizer, self.image_tokens, 1)
        answer = [*self.tokenizer.encode(sample.answer), self.stop]
        rows = embeddings(torch.tensor([*prompt.input_ids, *answer])).clone()  # (L, H)
        rows[prompt.image_start : prompt.image_start + self.image_tokens] = connector.projector(
            self.noisy(view.image)
        )
        if prompt.region_starts:
            positions = torch.tensor([start for start, _ in prompt.region_starts])
            regions = view.regions[[sample.regions[index] for _, index in prompt.region_starts]]
            rows[positions] = connector.updims(self.noisy(regions))
        labels = torch.tensor([IGNORED] * len(prompt.input_ids) + answer)
        return rows, labels

    def noisy(self, features: Tensor) -> Tensor:
        """Features with a little noise, so that single training photos are not learned by heart."""
        return features + self.noise * features.std() * torch.randn_like(features)


def train_language(
    model: LlamaForCausalLM,
    connector: Connector,
    views: Sequence[View],
    splicer: Splicer,
    settings: LanguageSettings,
    checkpoint: Path,
    log: Log,
) -> None:
    """One flat loop; model and connector train in place. Resumes from `checkpoint`."""
    rng = np.random.default_rng(settings.seed)
    torch.manual_seed(settings.seed)
    parameters = [*model.parameters(), *connector.parameters()]
    optimizer = torch.optim.AdamW(
        parameter_groups(parameters, settings.weight_decay), betas=(0.9, 0.98)
    )
    first = 0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        connector.load_state_dict(state["connector"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]
        log(f"resumed at step {first} of {settings.steps}")
    model.train()
    losses, started = [], time.monotonic()
    for step in range(first, settings.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, settings.steps, settings.learning_rate)
        drawn = [
            splicer.rows(views[int(index)], connector, model.get_input_embeddings(), rng)
            for index in rng.integers(0, len(views), settings.batch)
        ]
        embeds = nn.utils.rnn.pad_sequence([rows for rows, _ in drawn], batch_first=True)
        labels = nn.utils.rnn.pad_sequence(
            [answer for _, answer in drawn], batch_first=True, padding_value=IGNORED
        )
        lengths = torch.tensor([len(rows) for rows, _ in drawn])
        mask = (torch.arange(embeds.shape[1]) < lengths.unsqueeze(1)).long()  # (Q, L)
        loss = model(inputs_embeds=embeds, attention_mask=mask, labels=labels, use_cache=False).loss
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        losses.append(loss.item())
        if (step + 1) % 100 == 0 or step + 1 == settings.steps:
            pace = (time.monotonic() - started) / (step + 1 - first)
            mean = sum(losses) / len(losses)
            log(f"step {step + 1}/{settings.steps} loss {mean:.3f} {pace:.2f} s/step")
            losses.clear()
        if (step + 1) % 500 == 0 or step + 1 == settings.steps:
            save_atomically(
                {
                    "model": model.state_dict(),
                    "connector": connector.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "step": step + 1,
                },
                checkpoint,
            )
    model.eval()
