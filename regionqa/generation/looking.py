"""A vision model that looks at the regions of an image, and what it says as facts.

PVIT's language model writes from annotations alone. Here it is also told what a model of
`models list` says about each region, as facts that say who told them.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

from regionqa.data.english import counted
from regionqa.data.records import one_line
from regionqa.engine import Engine
from regionqa.errors import ImageError, ItemError
from regionqa.generation.annotations import MOST_FACTS, AnnotatedImage
from regionqa.generation.sources import ReplyJournal, TextReply
from regionqa.images.reading import InputImage, open_image
from regionqa.regions import Region
from regionqa.requests import Request

MOST_LOOKED = 12
"""Regions of an image that are looked at: the first ones."""
SEEN = "A vision model, which may be wrong, says of {region}: {text}"
LOOKED = "looked"
"""Why a kept answer ended, which tells it from a language model's reply."""


@dataclass
class RegionLooker:
    """Adds what a vision model says about regions to the facts of images."""

    engine: Engine
    journal: ReplyJournal
    """Keeps its answers, so that a continued run does not look again."""
    looked: int = 0
    """Regions that the model described in this run."""
    kept: int = 0
    """Regions whose description was kept from an earlier run."""
    unsure: int = 0
    """Regions of which the model was not sure."""
    beyond: int = 0
    """Regions beyond the first of an image, and facts that a prompt had no room for."""
    failed: int = 0
    """Regions that could not be looked at."""
    first: str = ""
    """Why the first of them could not."""
    _info: tuple[str, str, str] = field(init=False)

    def __post_init__(self) -> None:
        info = self.engine.info
        self._info = (info.name, info.revision, info.region_question)

    def look(self, images: Iterable[AnnotatedImage]) -> Iterator[AnnotatedImage]:
        """Iterate over images with further facts, an image at a time."""
        for image in images:
            texts = self._texts(image)
            facts = [
                SEEN.format(region=f"<region{number}>", text=one_line(text))
                for number, text in texts.items()
            ]
            room = max(0, MOST_FACTS - len(image.facts))
            self.beyond += max(0, len(image.objects) - MOST_LOOKED) + max(0, len(facts) - room)
            yield replace(image, facts=(*image.facts, *facts[:room]))

    def remarks(self) -> Iterator[str]:
        """What was done and left out, a line each."""
        kept = f", {self.kept:,} from before" if self.kept else ""
        yield f"{self._info[0]} described {counted(self.looked, 'region')}{kept}"
        if self.unsure:
            yield f"{counted(self.unsure, 'region')} of which it was not sure left out"
        if self.beyond:
            yield (
                f"{counted(self.beyond, 'region')} not told of, beyond the first {MOST_LOOKED} of "
                f"an image or {MOST_FACTS} facts"
            )
        if self.failed:
            yield f"{counted(self.failed, 'region')} not looked at, the first: {self.first}"

    def _texts(self, image: AnnotatedImage) -> dict[int, str]:
        """What the model says, by number of the object."""
        texts: dict[int, str] = {}
        missing: list[tuple[int, str]] = []
        for number, region in enumerate(image.objects[:MOST_LOOKED], 1):
            key = self._key(image, region)
            reply = self.journal.find(key)
            if reply is None:
                missing.append((number, key))
            else:
                self.kept += 1
                texts[number] = reply.text
        if missing:
            texts |= self._asked(image, missing)
        unsure = self.engine.info.confidence.unsure
        told = {number: text for number, text in texts.items() if text and text != unsure}
        self.unsure += len(texts) - len(told)
        return dict(sorted(told.items()))

    def _asked(self, image: AnnotatedImage, missing: list[tuple[int, str]]) -> dict[int, str]:
        """Ask about regions, and keep the answers."""
        try:
            source = open_image(image.path)
        except ImageError as error:
            self._fail(len(missing), error)
            return {}
        requests = [self._request(image, source, number) for number, _ in missing]
        texts = {}
        answers = self.engine.answer(requests)
        for (number, key), answer in zip(missing, answers, strict=True):
            if answer.error is not None:
                self._fail(1, answer.error)
                continue
            self.looked += 1
            texts[number] = answer.text
            self.journal.add(key, TextReply(answer.text, LOOKED, 0, answer.tokens))
        return texts

    def _request(self, image: AnnotatedImage, source: InputImage, number: int) -> Request:
        region = Region(image.objects[number - 1].box)
        return Request(str(image.path), self._info[2], (region,), source)

    def _fail(self, regions: int, error: ItemError | ImageError) -> None:
        self.first = self.first or str(error)
        self.failed += regions

    def _key(self, image: AnnotatedImage, region: Region) -> str:
        content = [LOOKED, *self._info, image.name, image.width, image.height, region.box.xyxy]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:32]
