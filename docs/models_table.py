"""The generated parts of docs/guide/models.md: its tables and commands, from the models' cards.

    python docs/models_table.py        # write the page anew: `make guide`

A part stands between `<!-- NAME -->` and `<!-- end of NAME -->`.
"""

import re
from collections import defaultdict
from pathlib import Path

from regionqa.backends.chooser import ModelChoice, vlm_choice
from regionqa.bundles.hub import readable
from regionqa.regions import Box
from regionqa.runtime.devices import Device
from regionqa.runtime.memory import default_setting, gigabytes
from regionqa.vlm.card import VlmCard
from regionqa.vlm.cards import shipped_vlm_cards
from regionqa.vlm.coordinates import Size, write_box
from regionqa.vlm.memory import needs_of_card

PAGE = Path(__file__).parent / "guide" / "models.md"
EXAMPLE, EXAMPLE_SIZE = Box(100, 100, 500, 400), (1000, 500)
"""A box and the size of its image, as they are written for each model."""
ROOM = 10**15
"""Bytes of a machine on which everything fits."""


def parts() -> dict[str, str]:
    """Return the generated parts by name."""
    cards = sorted(
        (card for card in shipped_vlm_cards().values() if card.source),
        key=lambda card: (card.source.size if card.source else 0, card.name),
    )
    return {
        "models": models_table(cards),
        "commands": commands(cards),
        "conventions": conventions_table(cards),
    }


def models_table(cards: list[VlmCard]) -> str:
    """Return a row per model: what it is good at, what it needs, its licence and ways."""
    rows = [
        "| model | good at | weights | download | memory: CPU | GPU | licence | ways | measured |",
        "|---|---|--:|--:|--:|--:|---|---|---|",
    ]
    for card in cards:
        choice = vlm_choice(card, {Device.cpu: ROOM, Device.cuda: None})
        default, *others = choice.ways
        ways = ", ".join([f"**{default}**", *others])
        cells = [
            f"`{choice.name}`", choice.good_at, weights(choice), readable(choice.download),
            memory(card, Device.cpu), memory(card, Device.cuda), choice.licence, ways,
            choice.measured or "no",
        ]  # fmt: skip
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def weights(choice: ModelChoice) -> str:
    """Return the number of weights, and of those used per token where they differ."""
    whole = f"{choice.parameters:g} B"
    return whole if choice.active == choice.parameters else f"{whole}, {choice.active:g} B active"


def memory(card: VlmCard, device: Device) -> str:
    """Return the estimate for a device, without options."""
    needs = needs_of_card(card)
    if needs is None:
        return "unknown"
    there = {Device.cpu: ROOM, Device.cuda: ROOM if device is Device.cuda else None}
    return gigabytes(default_setting(needs, there).total)


def commands(cards: list[VlmCard]) -> str:
    """Return a line per model that downloads and asks it."""
    width = max(len(card.name) for card in cards)
    lines = [
        f"regionqa download {name} && regionqa ask photo.jpg --model {name} "
        '--box 10,20,200,300 "what is this?"'
        for name in (card.name.ljust(width) for card in cards)
    ]
    return "\n".join(["```bash", *lines, "```"])


def conventions_table(cards: list[VlmCard]) -> str:
    """Return a row per convention: how a box is written in the prompt, for which models."""
    models: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    for card in cards:
        way = card.regions.coordinates
        if way is None or "coordinates" not in card.regions.ways:
            models["none", "", ""].append(card.name)
            continue
        box = write_box(way, EXAMPLE, EXAMPLE_SIZE, whole_patches)
        text = way.text.region.format(number=1, box=box, color="")
        models[unit(card), str(way.order), f"`{text}`"].append(card.name)
    rows = [
        "| unit | order | `--box 100,100,500,400` of 1000 x 500 pixels | models |",
        "|---|---|---|---|",
    ]
    for (name, order, text), names in models.items():
        rows.append(f"| {name} | {order} | {text} | {', '.join(names)} |")
    return "\n".join(rows)


def unit(card: VlmCard) -> str:
    """Return the unit of a card's coordinates, with the number of bins."""
    way = card.regions.coordinates
    assert way is not None
    return f"{way.bins} bins" if way.unit == "bins" else str(way.unit)


def whole_patches(size: Size) -> Size:
    """Return the size that Qwen2.5-VL sees of an image of moderate size: multiples of 28."""
    width, height = size
    return round(width / 28) * 28, round(height / 28) * 28


def written(page: str) -> str:
    """Return the page with its parts replaced."""
    for name, text in parts().items():
        begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
        pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
        before, *others = pattern.split(page)
        if len(others) != 1:
            raise SystemExit(f"{PAGE}: has {len(others)} parts {name!r}, not 1")
        page = f"{before}{begin}\n{text}\n{end}{others[0]}"
    return page


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
