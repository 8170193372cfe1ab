"""Models that are known by name: what they need, whether they fit this machine, and which to take.

Sizes are the cards', so that downloaded and other models are compared by the same numbers. Nothing
is loaded, and the network is not used.
"""

import ctypes
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum

from regionqa.bundles.card import ModelCard
from regionqa.bundles.hub import hub_cache
from regionqa.bundles.store import (
    CARD,
    open_bundle,
    published_cards,
    published_folder,
    shipped_bundles,
)
from regionqa.runtime.devices import Device
from regionqa.runtime.memory import (
    BASELINE,
    OVERHEAD,
    MemoryNeeds,
    best_setting,
    default_setting,
    fits,
    memory,
    memory_estimates,
    needs_of_published,
    setting_text,
)
from regionqa.vlm.card import VlmCard
from regionqa.vlm.cards import shipped_vlm_cards
from regionqa.vlm.checkpoints import find_checkpoint
from regionqa.vlm.memory import needs_of_card

Memories = dict[Device, int | None]
"""Bytes of memory by device; None: there is no such device, or it is unknown."""
LARGEST_ON_CPU = 3.0
"""Weights used per token, in billions, of the largest model that is recommended for a CPU, which
reads and multiplies all of them for every token."""
LONG_LICENCE = 40
"""Characters of a licence that a table shows as it is."""
FALLBACK = "starter"
"""The model that is recommended where no other fits; it ships and runs on any machine."""


class ModelState(StrEnum):
    """Where a model's files are."""

    shipped = "ships"
    downloaded = "downloaded"
    absent = "not downloaded"


@dataclass(frozen=True)
class MemoryFit:
    """Memory that a model takes on this machine."""

    bytes: int
    """Of the setting that runs without options."""
    setting: str
    """That setting, as options."""
    fits: bool | None
    """Whether it fits; None: this machine's memory is unknown."""
    instead: str = ""
    """Options with which the model fits where it does not without; empty: there are none."""

    @property
    def text(self) -> str:
        """Whether it fits, in words."""
        if self.fits is None:
            return "unknown"
        if self.fits:
            return "fits"
        return f"fits with {self.instead}" if self.instead else "too large"


@dataclass(frozen=True)
class ModelChoice:
    """One model in the chooser."""

    name: str
    """Name on the command line."""
    summary: str
    """Its card's description."""
    good_at: str
    """What it is chosen for."""
    download: int
    """Bytes to fetch in all; of a model that ships, its size."""
    memory: MemoryFit | None
    """Memory on this machine; None: unknown."""
    licence: str
    """Licence of the weights."""
    ways: tuple[str, ...]
    """How regions can be told; the default is first."""
    measured: str
    """What was measured on its weights; empty: nothing."""
    state: ModelState
    """Where its files are."""
    parameters: float | None = None
    """Number of weights, in billions."""
    active: float | None = None
    """Weights used per token, in billions."""
    recommended: str = ""
    """Why it may be recommended; empty: it is not."""

    @property
    def short_licence(self) -> str:
        """The licence in a few words: whole, or the part before a semicolon."""
        if "research" in self.licence and len(self.licence) > LONG_LICENCE:
            return "research only"
        weights = self.licence.partition(";")[0]
        return weights if len(weights) <= LONG_LICENCE else "see models show"


def this_machine() -> Memories:
    """Return the memory of this machine's devices.

    torch, whose import takes seconds, is asked only beside an NVIDIA driver.
    """
    return {
        Device.cpu: memory(Device.cpu),
        Device.cuda: memory(Device.cuda) if has_nvidia_driver() else None,
    }


def has_nvidia_driver() -> bool:
    """Return whether NVIDIA's driver can be loaded."""
    for name in ("libcuda.so.1", "nvcuda.dll"):
        try:
            ctypes.CDLL(name)
        except OSError:
            continue
        return True
    return False


def known_models(here: Memories) -> list[ModelChoice]:
    """List the models that ship, then those that can be downloaded, the smallest first.

    Args:
        here: Memory of the devices to fit.
    """
    further = [*vision_language_models(here), *published_models(here)]
    return [*shipped_models(here), *sorted(further, key=lambda each: (each.download, each.name))]


def shipped_models(here: Memories) -> Iterator[ModelChoice]:
    """Yield the bundles in the package."""
    for folder in shipped_bundles().values():
        bundle = open_bundle(folder)
        card = bundle.card
        # its float16 files are float32 in memory; reading its config would take seconds
        needed = BASELINE[Device.cpu] + OVERHEAD + 2 * bundle.size
        room = here[Device.cpu]
        memory = MemoryFit(needed, "--device cpu", None if room is None else needed < room)
        yield bundle_choice(card, bundle.size, memory, ModelState.shipped)


def published_models(here: Memories) -> Iterator[ModelChoice]:
    """Yield the published models, which are converted when they are downloaded."""
    for name, card in published_cards().items():
        if card.sources is None:
            continue
        there = (published_folder(name) / CARD).is_file()
        state = ModelState.downloaded if there else ModelState.absent
        memory = fit(needs_of_published(card), here)
        yield bundle_choice(card, card.sources.size, memory, state)


def bundle_choice(card: ModelCard, size: int, memory: MemoryFit, state: ModelState) -> ModelChoice:
    """Make the choice of a bundle, which reads regions in the one way of its training."""
    provenance = card.provenance
    return ModelChoice(
        name=card.name,
        summary=card.summary,
        good_at=card.summary,
        download=size,
        memory=memory,
        licence=str(provenance.get("licence", "")),
        ways=(str(card.prompt.region_input),),
        measured=str(provenance.get("measured", "")),
        state=state,
    )


def vision_language_models(here: Memories) -> Iterator[ModelChoice]:
    """Yield the vision-language models with cards in the package."""
    for card in shipped_vlm_cards().values():
        if card.source is not None:
            yield vlm_choice(card, here)


def vlm_choice(card: VlmCard, here: Memories) -> ModelChoice:
    """Make the choice of a vision-language model."""
    source, regions = card.source, card.regions
    assert source is not None
    needs = needs_of_card(card)
    others = [str(way) for way in regions.ways if way is not regions.default]
    licence = f"{source.licence}, terms to accept first" if source.gated else source.licence
    return ModelChoice(
        name=card.name,
        summary=card.summary,
        good_at=card.good_at,
        download=source.size,
        memory=fit(needs, here) if needs else None,
        licence=licence,
        ways=(str(regions.default), *others),
        measured=regions.measured,
        state=ModelState.downloaded if is_cached(card) else ModelState.absent,
        parameters=source.parameters or None,
        active=source.active or source.parameters or None,
        recommended=card.recommended,
    )


def is_cached(card: VlmCard) -> bool:
    """Return whether a card's checkpoint is in the Hub's cache, whole."""
    assert card.source is not None
    folder = hub_cache() / f"models--{card.source.repo.replace('/', '--')}"
    return folder.is_dir() and find_checkpoint(card.source) is not None


def fit(needs: MemoryNeeds, here: Memories) -> MemoryFit:
    """Compare a model's needs with the memory of this machine."""
    chosen = default_setting(needs, here)
    if here[chosen.device] is None:
        return MemoryFit(chosen.total, setting_text(chosen), None)
    if fits(chosen, here):
        return MemoryFit(chosen.total, setting_text(chosen), fits=True)
    best = best_setting(needs, memory_estimates(needs), here)
    instead = setting_text(best) if best else ""
    return MemoryFit(chosen.total, setting_text(chosen), fits=False, instead=instead)


def recommend(choices: Iterable[ModelChoice], here: Memories) -> ModelChoice:
    """Choose one model for a machine: the largest of the recommended ones that fits.

    Models count whose card says why they are recommended, and that fit without options; without a
    GPU, of at most `LARGEST_ON_CPU` billion weights per token. If there is none, `FALLBACK`.

    Args:
        choices: The models, compared with `here`.
        here: Memory of the devices.
    """
    known = list(choices)
    most = float("inf") if here[Device.cuda] is not None else LARGEST_ON_CPU
    candidates = [
        each
        for each in known
        if each.recommended and each.memory and each.memory.fits and (each.active or 0) <= most
    ]
    if candidates:
        return max(candidates, key=lambda each: (each.parameters or 0, each.name))
    return next(each for each in known if each.name == FALLBACK)
