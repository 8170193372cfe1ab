"""Photos with labelled boxes, read from COCO's annotations; shared by the starter's benchmarks."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from regionqa.boxes.formats.coco import CocoAnnotation, CocoDocument

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class LabelledPhoto:
    """One photo, with its boxes and their classes."""

    name: str
    """File name of the image."""
    width: int
    """In pixels."""
    height: int
    """In pixels."""
    boxes: Floats
    """xyxy in pixels (N, 4)."""
    labels: Ints
    """Indices of classes (N,)."""

    @property
    def fractions(self) -> Floats:
        """The boxes as fractions of the photo's width and height (N, 4)."""
        scale = np.array([self.width, self.height] * 2, np.float32)
        return np.asarray(self.boxes / scale, np.float32)

    @property
    def sides(self) -> Floats:
        """The shorter side of each box in pixels (N,)."""
        return np.asarray((self.boxes[:, 2:] - self.boxes[:, :2]).min(axis=1), np.float32)

    def written(self, rows: Collection[int]) -> list[list[float]]:
        """Return boxes as they are written to a file of questions."""
        chosen = self.boxes[list(rows)].tolist()
        return [[round(value, 2) for value in box] for box in chosen]


@dataclass(frozen=True)
class LabelledPhotos:
    """Photos, and the classes that their labels index."""

    photos: tuple[LabelledPhoto, ...]
    names: tuple[str, ...]

    def only(self, names: Collection[str]) -> "LabelledPhotos":
        """Return the photos of these file names."""
        return replace(self, photos=tuple(each for each in self.photos if each.name in names))


@dataclass(frozen=True)
class PhotoQuestion:
    """A question about boxes of a photo, by their rows, with its answer."""

    rows: tuple[int, ...]
    question: str
    answer: str


@dataclass(frozen=True)
class PhotoScene:
    """A photo as the makers see it."""

    boxes: Floats
    """As fractions (N, 4)."""
    labels: Ints
    """Indices of classes (N,)."""
    names: Sequence[str]
    weights: Floats
    """How often each box is asked about, relative to the others (N,)."""

    @classmethod
    def of(cls, photo: LabelledPhoto, names: Sequence[str], min_side: float) -> "PhotoScene":
        """Return all of a photo; smaller boxes count, but are not picked where there are others."""
        weights = (photo.sides >= min_side).astype(np.float32) + np.float32(1e-6)
        return cls(photo.fractions, photo.labels, names, weights)

    def name(self, row: int) -> str:
        """Return the class of a box."""
        return self.names[int(self.labels[row])]

    def pick_box(self, rng: np.random.Generator) -> int:
        """Pick a box by weight."""
        return int(rng.choice(len(self.labels), p=self.weights / self.weights.sum()))


def read_labelled_photos(file: Path) -> LabelledPhotos:
    """Read COCO's annotations; photos and boxes keep their order in the file."""
    coco = CocoDocument.load(file)
    categories = sorted(coco.categories, key=int)
    index_of = {category: index for index, category in enumerate(categories)}
    by_image: dict[str, list[CocoAnnotation]] = {}
    for annotation in coco.annotations():
        by_image.setdefault(annotation.image.id, []).append(annotation)
    photos = []
    for image in coco.images.values():
        annotations = by_image.get(image.id, [])
        width, height = image.size
        xywh = np.array([each.bbox for each in annotations], np.float32).reshape(-1, 4)
        photos.append(
            LabelledPhoto(
                name=image.name,
                width=width,
                height=height,
                boxes=np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1),  # (N, 4)
                labels=np.array([index_of[each.category_id or ""] for each in annotations], int),
            )
        )
    return LabelledPhotos(tuple(photos), tuple(coco.categories[key] for key in categories))
