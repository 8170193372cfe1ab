"""A scripted model that reads regions exactly, in a convention of its own.

It is given what a real one would be given: the messages that a card makes of a request. What it
looks at it knows from the layout of the probe's images.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from regionqa.backends.base import Completion, ModelInfo, OnProgress
from regionqa.errors import ItemError
from regionqa.evaluation.probe.images import ROTATED, ProbeLayout, probe_layouts
from regionqa.images.reading import InputImage
from regionqa.language.answer_schemas import AnswerSchema
from regionqa.requests import Request, Sampling
from regionqa.vlm.card import CoordinateOrder, CoordinateUnit, VlmCard
from regionqa.vlm.coordinates import Size, read_numbers
from regionqa.vlm.messages import Told, tell
from regionqa.vlm.region_images import CroppedImage, DrawnImage

NUMBER = re.compile(r"\d+(?:\.\d+)?")


def shrunk(size: Size) -> Size:
    """Resizing to at most 640 pixels a side."""
    scale = min(1.0, 640 / max(size))
    return round(size[0] * scale), round(size[1] * scale)


@dataclass
class ReadingBackend:
    """Looks at the middle of each region as it understands it, and names what is there."""

    card: VlmCard
    unit: CoordinateUnit
    order: CoordinateOrder = CoordinateOrder.xyxy
    turns_images: bool = True
    """Whether it sees images turned by their EXIF orientation."""
    layouts: dict[str, ProbeLayout] = field(
        default_factory=lambda: {layout.name: layout for layout in probe_layouts()}
    )
    device: str = "cpu"
    precision: str = "none"

    @property
    def info(self) -> ModelInfo:
        return ModelInfo(
            "reader", "1", 8, 8, "what is it?", "what is <region1>?", ways=self.card.regions.ways
        )

    def resized(self, size: Size) -> Size:
        return shrunk(size)

    def render(self, request: Request, max_new_tokens: int) -> tuple[str, Told]:
        return request.image, tell(self.card, request, None, self.resized)

    def encode(
        self, image: InputImage, prompts: Sequence[tuple[str, Told]]
    ) -> Sequence[tuple[str, Told]]:
        return prompts

    def generate(
        self,
        prompts: Sequence[tuple[str, Told]],
        max_new_tokens: int,
        sampling: Sampling,
        seeds: Sequence[int],
        on_progress: OnProgress | None = None,
        schema: AnswerSchema | None = None,
    ) -> list[Completion | ItemError]:
        return [Completion(self.answer(*prompt), 1) for prompt in prompts]

    def describe(self, request: Request, prompt: tuple[str, Told]) -> list[str]:
        return []

    def score(self, prompt: tuple[str, Told], choices: Sequence[str]) -> list[float]:
        raise ItemError("no scores")

    def answer(self, name: str, told: Told) -> str:
        layout = self.layouts[name]
        width, height = layout.size
        x, y = self.look(layout, told)
        if layout.kind == ROTATED and not self.turns_images:
            x, y = width * (1 - y / height), height * (x / width)
        thing = layout.thing_at(x, y)
        return f"It is {thing}." if thing else "I see nothing there."

    def look(self, layout: ProbeLayout, told: Told) -> tuple[float, float]:
        """The middle of the region in the last message."""
        (image, *further), text = told.images, told.messages[-1].parts[-1]
        assert isinstance(text, str)
        crop = further[0] if further else image
        if isinstance(crop, CroppedImage):
            x0, y0, x1, y1 = map(float, crop.edges)
        elif isinstance(image, DrawnImage):
            x0, y0, x1, y1 = image.boxes[0].xyxy
        else:
            written = [float(number) for number in NUMBER.findall(text.split("[")[1])]
            a, b, c, d = written[:4]
            swapped = self.order is CoordinateOrder.yxyx
            values = (b, a, d, c) if swapped else (a, b, c, d)
            x0, y0, x1, y1 = read_numbers(self.unit, values, layout.size, self.resized)
        return (x0 + x1) / 2, (y0 + y1) / 2
