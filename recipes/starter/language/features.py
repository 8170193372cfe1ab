"""Photos through frozen encoders, once, in several views; then questions about them from memory.

A view is the whole photo, its mirror image, or a random crop with changed colours. What the
encoders see of it is kept, so that training reads small arrays only.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from recipes.starter.questions.colours import colour_of
from recipes.starter.questions.mixture import MIXTURE, Mixture, draw_sample
from recipes.starter.questions.scenes import QuestionSample, Scene
from recipes.starter.saving import Log, save_atomically
from recipes.starter.vision.photos import (
    Photo,
    PhotoSet,
    TrainingImage,
    UInt8,
    batch_of,
    mirrored,
    normalise,
    photo_view,
    whole_photo,
)
from regionqa.data.records import Record, Turn
from regionqa.export.modules.base import RegionModule, VisionModule
from regionqa.finetune.collate import FrozenFeatures
from regionqa.finetune.sampler import DrawnRecord
from regionqa.regions import Box, Region

SIDED = frozenset({"left", "right"})
"""Words that a mirror image makes wrong."""


@dataclass(frozen=True)
class FeatureSettings:
    """Which views there are, and how often each of their boxes is asked about."""

    random_views: int = 2
    """Random crops of every photo, beside the photo and its mirror image."""
    balance: float = 0.3
    """A box is asked about in proportion to (count of its class) ** -balance."""
    sharp: float = 32.0
    """Boxes with a shorter side of less than this many pixels are asked about less."""
    seed: int = 2
    """Seed of every random choice."""


@dataclass(frozen=True)
class FeatureNoise:
    """How much is added to what is learned from: standard deviations, as shares of the features'.

    The encoders have learned from the same photos and know them better than others.
    """

    image: float = 0.0
    """Of the cells of pictures."""
    region: float = 0.0
    """Of region vectors."""


@dataclass(frozen=True)
class ImageView:
    """What frozen encoders see of a view, and what is in it.

    image: (T, C). vectors: (N, D), one for each of the scene's boxes.
    """

    name: Path
    image: Tensor
    vectors: Tensor
    scene: Scene

    def record(self, sample: QuestionSample) -> Record:
        """A question about the view, its boxes as fractions of the view."""
        regions = tuple(Region(box_of(self.scene, row)) for row in sample.regions)
        return Record(self.name, regions, (Turn(sample.question, sample.answer),), str(self.name))


def box_of(scene: Scene, row: int) -> Box:
    """A box of a scene, in fractions."""
    x0, y0, x1, y1 = scene.boxes[row].tolist()
    return Box(x0, y0, x1, y1)


def canvases_of(
    photo: Photo, size: int, settings: FeatureSettings, rng: np.random.Generator
) -> Iterator[tuple[TrainingImage, tuple[str, ...], bool]]:
    """Views of a photo that show a box, with their captions and whether they are complete."""
    whole = whole_photo(photo, size)
    plain = tuple(text for text in photo.captions if not SIDED & set(text.lower().split()))
    views = [(whole, photo.captions, True), (mirrored(whole), plain, True)]
    views += [(photo_view(photo, size, rng), (), False) for _ in range(settings.random_views)]
    yield from (view for view in views if len(view[0].labels))


def resized(canvas: TrainingImage, size: int) -> UInt8:
    """The canvas's pixels as (size, size, 3)."""
    if canvas.pixels.shape[0] == size:
        return canvas.pixels
    image = Image.fromarray(canvas.pixels)
    return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC))


@torch.no_grad()
def encode_views(
    vision: VisionModule,
    region: RegionModule,
    photos: PhotoSet,
    settings: FeatureSettings,
    log: Log,
    *,
    rough: bool = False,
) -> list[ImageView]:
    """All views of all photos through the encoders, which see them in evaluation mode.

    rough: in bfloat16, in half the time; what is learned from has noise added anyway.
    """
    vision.eval()
    region.eval()
    rng = np.random.default_rng(settings.seed)
    counts = np.bincount(
        np.concatenate([photo.labels for photo in photos.photos]), minlength=len(photos.names)
    )
    weights = np.maximum(counts, 1.0) ** -settings.balance
    views: list[ImageView] = []
    size = (region.source_shapes[0][1] if region.reads_pixels else None) or vision.input_size
    for number, photo in enumerate(photos.photos, start=1):
        made = list(canvases_of(photo, size, settings, rng))
        if not made:
            continue
        pixel_values, boxes, index, _ = batch_of([canvas for canvas, _, _ in made])
        small = [resized(canvas, vision.input_size) for canvas, _, _ in made]
        with torch.autocast("cpu", torch.bfloat16, enabled=rough):
            images, levels = vision.features(normalise(np.stack(small)))  # (B, T, C)
            sources = [pixel_values] if region.reads_pixels else levels
            vectors = region.region_vectors(sources, boxes, index)  # (N, D)
        longer = max(photo.width, photo.height)
        for row, (canvas, captions, complete) in enumerate(made):
            sides = (canvas.boxes[:, 2:] - canvas.boxes[:, :2]).min(axis=1) * longer  # (N,)
            scene = Scene(
                boxes=canvas.boxes,
                labels=canvas.labels,
                captions=captions,
                names=photos.names,
                complete=complete,
                box_weights=weights[canvas.labels] * (sides / settings.sharp).clip(0.1, 1),
                colours=tuple(colour_of(canvas.pixels, box) for box in canvas.boxes),
            )
            name = photo.path.with_suffix(f".{row}")
            views.append(ImageView(name, images[row].half(), vectors[index == row].half(), scene))
        if number % 500 == 0:
            log(f"encoded {number} of {len(photos.photos)} photos")
    return views


def save_views(views: Sequence[ImageView], path: Path) -> None:
    """Keep views on disk, as tensors and plain values."""
    save_atomically(
        {
            "image": torch.stack([view.image for view in views]),  # (V, T, C)
            "vectors": torch.cat([view.vectors for view in views]),  # (N, D) of all views
            "boxes": torch.cat([torch.from_numpy(view.scene.boxes) for view in views]),
            "labels": torch.cat([torch.from_numpy(view.scene.labels) for view in views]),
            "weights": torch.cat([torch.from_numpy(view.scene.box_weights) for view in views]),
            "counts": [len(view.vectors) for view in views],
            "names": [str(view.name) for view in views],
            "captions": [list(view.scene.captions) for view in views],
            "complete": [view.scene.complete for view in views],
            "colours": [list(view.scene.colours) for view in views],
        },
        path,
    )


def load_views(path: Path, names: Sequence[str]) -> list[ImageView]:
    """What `save_views` has kept; names: of the classes."""
    kept = torch.load(path, weights_only=True)
    parts = (kept[key].split(kept["counts"]) for key in ("vectors", "boxes", "labels", "weights"))
    return [
        ImageView(
            Path(kept["names"][row]),
            kept["image"][row],
            vectors,
            Scene(
                boxes=boxes.numpy(),
                labels=labels.numpy(),
                captions=tuple(kept["captions"][row]),
                names=names,
                complete=kept["complete"][row],
                box_weights=weights.numpy(),
                colours=tuple(kept["colours"][row]),
            ),
        )
        for row, (vectors, boxes, labels, weights) in enumerate(zip(*parts, strict=True))
    ]


class CachedFeatures:
    """Frozen encoders that have seen all views before: `batches.Encoders` from memory."""

    takes_regions = True

    def __init__(
        self,
        views: Sequence[ImageView],
        noise: FeatureNoise | None = None,
        exact: int = 0,
        clear: Sequence[ImageView] = (),
    ) -> None:
        """noise: on the views, so that single photos are not memorised.

        exact: to so many numbers at the end of a region vector, its place and colours, none is
        added. clear: further views, without noise: what is measured on.
        """
        self._noise, self._exact = noise or FeatureNoise(), exact
        self._clear = {view.name for view in clear}
        self._views = {view.name: view for view in (*views, *clear)}
        self._rows = {
            name: {box_of(view.scene, row): row for row in range(len(view.vectors))}
            for name, view in self._views.items()
        }

    def image(self, path: Path) -> FrozenFeatures:
        """What was seen of a view; it is 1 wide and high, as its boxes are fractions."""
        cells = self._views[path].image.float()  # (T, C)
        share = 0.0 if path in self._clear else self._noise.image
        return FrozenFeatures(1, 1, with_noise(cells, share), ())

    def fitted(
        self, image: FrozenFeatures, boxes: Sequence[Box]
    ) -> list[tuple[float, float, float, float]]:
        """The boxes: they are fractions of the view already."""
        return [box.xyxy for box in boxes]

    def vectors(self, path: Path, image: FrozenFeatures, boxes: Sequence[Box]) -> list[Tensor]:
        """Region vectors (D,) of boxes of a view."""
        rows = [self._rows[path][box] for box in boxes]
        found = self._views[path].vectors[rows].float()  # (N, D)
        vague, known = found.tensor_split([found.shape[1] - self._exact], dim=1)
        share = 0.0 if path in self._clear else self._noise.region
        return list(torch.cat([with_noise(vague, share), known], dim=1))


def with_noise(features: Tensor, share: float) -> Tensor:
    """Features with normal noise of so many times their standard deviation over all numbers."""
    if not share or not features.numel():
        return features
    return features + share * features.std() * torch.randn_like(features)


@dataclass(frozen=True)
class QuestionSampler:
    """What every step asks: newly drawn questions, as a function of the seed and the step."""

    views: Sequence[ImageView]
    effective_batch: int
    """Questions of one step."""
    seed: int
    mixture: Mixture = MIXTURE
    """What is asked how often."""

    def steps(self, epochs: float) -> int:
        """Steps in which every view is asked about so many times on average."""
        return max(1, round(epochs * len(self.views) / self.effective_batch))

    def samples(self, step: int) -> list[tuple[int, QuestionSample]]:
        """The questions of one step, each with the number of its view."""
        rng = np.random.default_rng([self.seed, step])
        rows = rng.integers(0, len(self.views), self.effective_batch).tolist()
        return [(row, draw_sample(self.views[row].scene, rng, self.mixture)) for row in rows]

    def step(self, step: int) -> list[DrawnRecord]:
        """The questions of one step, short ones first, so that little of a batch is padding."""
        records = [self.views[row].record(sample) for row, sample in self.samples(step)]
        records.sort(key=lambda record: len(record.turns[0].question + record.turns[0].answer))
        return [
            DrawnRecord(record, (self.seed, step, row), False) for row, record in enumerate(records)
        ]
