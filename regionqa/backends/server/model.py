"""Models that a server has: which one, and the card by which it is told regions.

A server resizes images itself, so that pixels of the resized image are not known here. The cards of
models that read those, or fractions of a padded image, lose the way `coordinates`.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regionqa.backends.base import Model, ModelInfo, card_kind
from regionqa.backends.server.client import ChatClient, ServerAddress, only_model, read_address
from regionqa.bundles.hub import looks_like_repo
from regionqa.bundles.prompt_rules import RegionInput
from regionqa.bundles.store import CARD, VLM, Bundle
from regionqa.errors import BundleError, UsageError
from regionqa.files import is_folder, with_home
from regionqa.options import RegionWay, RuntimeOptions
from regionqa.vlm.card import (
    CoordinateUnit,
    CropWay,
    DrawnWay,
    RegionText,
    VlmCard,
    WaysCard,
)
from regionqa.vlm.cards import (
    card_of_repo,
    read_vlm_card,
    shipped_vlm_card,
    shipped_vlm_names,
)
from regionqa.vlm.messages import check_way
from regionqa.vlm.store import vlm_in_folder

if TYPE_CHECKING:
    from regionqa.backends.server.backend import ServerBackend

DEFAULT_MODEL = RuntimeOptions().model
"""Value of --model where it is not given; it ships as a bundle, which no server has."""
UNKNOWN = (CoordinateUnit.resized_pixels, CoordinateUnit.square_fraction)
"""Units that depend on how a server resizes and pads an image."""
GENERIC = VlmCard(
    name="generic",
    family="",
    summary="any vision-language model on a server",
    regions=WaysCard(
        default=RegionWay.crop,
        ways=(RegionWay.crop, RegionWay.crop_only, RegionWay.drawn),
        crop=CropWay(
            RegionText("region {number}", introduction="About {regions}: ", separator=" and "),
            "Region {number} of the image, enlarged:",
        ),
        drawn=DrawnWay(
            RegionText(
                "the object in the {color} rectangle",
                introduction="About {regions}: ",
                separator=" and ",
            )
        ),
    ),
)
"""The card where --model names none: ways for any model that reads images."""


@dataclass(frozen=True)
class ServerModel:
    """A model of a server, and how it is told regions."""

    card: VlmCard
    """The card as a server can follow it."""
    address: ServerAddress
    """Where the server is."""
    served: str
    """The server's name of the model."""
    way: RegionWay | None = None
    """How regions are told; None: the card chooses."""

    @cached_property
    def info(self) -> ModelInfo:
        """The model's properties, from its card."""
        card = self.card
        way = [self.way] if self.way else []
        return ModelInfo(
            name=card.name,
            revision="-".join([card.identity, f"server:{self.served}", *way]),
            max_regions=card.max_regions,
            max_new_tokens=card.answers.max_new_tokens,
            image_question=card.chat.image_question,
            region_question=card.chat.region_question,
            temperature=card.answers.temperature,
            top_k=card.answers.top_k,
            region_input=RegionInput.coordinates,
            structured=True,
            ways=card.regions.ways,
            multi_turn=card.chat.multi_turn,
            note=self._no_card if card.family == GENERIC.family else "",
        )

    @property
    def _no_card(self) -> str:
        """The remark on a model whose card is not named."""
        return (
            f"{self.served}: --model names no card, so regions are told by {self.way or 'crop'}; "
            "name the card of the server's model for its own way (regionqa models list)"
        )

    def configured(self, options: RuntimeOptions) -> "ServerModel":
        """See `Model.configured`."""
        if options.way is not None:
            check_way(self.card, options.way)
        return replace(self, way=options.way)

    def load(self, options: RuntimeOptions) -> "ServerBackend":
        """Open the client; nothing is asked before the first question."""
        from regionqa.backends.server.backend import ServerBackend

        concurrency = min(options.server_concurrency, options.batch_size)
        client = ChatClient(self.address, options.server_timeout, concurrency)
        return ServerBackend(self, client)


def find_server_model(model: str | Path | Bundle | Model, options: RuntimeOptions) -> ServerModel:
    """Find the card of a server's model, and the server's name of it.

    Args:
        model: Names the card: a shipped vision-language model, a folder with a card or a
            checkpoint's config, or the repository of a shipped card. The default model stands for
            `GENERIC`. A server's model that is already open is passed through.
        options: `server` is given.

    Raises:
        BundleError: There is no such card, or it is not one of a vision-language model.
        ServerError: The server is asked for its models and cannot be reached, or has none.
        UsageError: The address is malformed, the server has several models, the way is not one of
            the card's, or the client is not installed.
    """
    if isinstance(model, ServerModel):
        return model.configured(options)
    address = read_address(str(options.server))
    card = GENERIC if str(model) == DEFAULT_MODEL else find_card(model)
    if options.way is not None:
        check_way(card, options.way)
    card = served_card(card)
    if options.way is not None and options.way not in card.regions.ways:
        raise UsageError(
            f"--way {options.way}: the model {card.name} reads boxes that depend on how an image "
            "is resized, and a server does that itself; use --way "
            f"{' or '.join(card.regions.ways)}"
        )
    if find_spec("openai") is None:
        raise UsageError(
            "--server needs openai, which is not installed: pip install 'regionqa[server]'"
        )
    served = options.server_model
    if served is None:
        served = only_model(address, options.server_timeout)
    if card is GENERIC:
        card = replace(card, name=served)
    return ServerModel(card, address, served, options.way)


def find_card(model: Any) -> VlmCard:
    """Find the card of a vision-language model; its weights are not needed.

    Raises:
        BundleError: There is none.
    """
    if not isinstance(model, (str, Path)):
        raise BundleError(
            "the model is open on this machine; with --server, give the name of its card"
        )
    if str(model) in shipped_vlm_names():
        return shipped_vlm_card(str(model))
    folder = with_home(Path(model))
    if is_folder(folder):
        if (kind := card_kind(folder)) != VLM:
            raise BundleError(
                f"{folder}: a model of the kind {kind!r}, which no server has; with --server, "
                f"--model names {cards()}"
            )
        if (folder / CARD).is_file():
            return read_vlm_card(folder / CARD)
        return vlm_in_folder(folder).card
    found = card_of_repo(str(model)) if looks_like_repo(str(model)) else None
    if found is None:
        raise BundleError(f"{model}: no card of a server's model; with --server, --model names "
                          f"{cards()}")  # fmt: skip
    return found


def cards() -> str:
    """What --model may name beside --server."""
    return (
        f"a vision-language model, such as {shipped_vlm_names()[-1]}, or a folder with a "
        "card.toml; without it, regions are shown as crops"
    )


def served_card(card: VlmCard) -> VlmCard:
    """Return a card as a server can follow it.

    Raises:
        BundleError: The model is not asked by chat messages.
    """
    if card.chat.tasks or card.chat.plain is not None:
        raise BundleError(
            f"{card.name}: is asked by fixed prompts, not by the chat messages that servers take; "
            "run it without --server, or choose another model"
        )
    regions = card.regions
    coordinates = regions.coordinates
    if coordinates is None or coordinates.unit not in UNKNOWN:
        return card
    ways = tuple(way for way in regions.ways if way is not RegionWay.coordinates)
    if not ways:
        raise BundleError(
            f"{card.name}: reads boxes that depend on how an image is resized, and a server does "
            "that itself; run it without --server, or add the way crop or drawn to its card"
        )
    default, measured = regions.default, regions.measured
    if default is RegionWay.coordinates:
        default = next((way for way in (RegionWay.crop, RegionWay.drawn) if way in ways), ways[0])
        measured = (
            "in place of coordinates, which depend on how the server resizes and pads the image"
        )
    small = regions.small
    if small is not None and small.way is RegionWay.coordinates:
        small = None
    served = replace(regions, default=default, ways=ways, measured=measured, small=small)
    return replace(card, regions=served)
