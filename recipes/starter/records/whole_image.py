"""Questions about the whole image: what is there, how many, where, and a caption."""

import numpy as np

from recipes.starter.records.scenes import Belief, DrawnQuestion, Maker, area_of, place_of
from recipes.starter.records.words import Rng, SceneError, ask, number_word, pick

THIRDS = ("on the left", "in the middle", "on the right")


def absent(belief: Belief, rng: Rng) -> int:
    """Draw a class that the image is not believed to show."""
    return belief.rivals(belief.scene.presence, belief.present, 1, rng)[0]


def presence(belief: Belief, rng: Rng) -> DrawnQuestion:
    """Whether the image shows a thing; half of the answers are yes."""
    shown = rng.random() < 0.5
    there = np.flatnonzero(belief.present).tolist()
    label = pick(there, rng) if shown else absent(belief, rng)
    text = ask("presence", rng, **belief.slots(label, rng))
    return DrawnQuestion(text, "yes." if shown else "no.")


def counting(least: int, most: int) -> Maker:
    """Make a maker of questions whose answer is a number from `least` to `most`.

    As makers of their own, numbers are asked as often as a mixture says; in photos most are one.
    """

    def maker(belief: Belief, rng: Rng) -> DrawnQuestion:
        counts = np.rint(belief.scene.counts)
        fits = np.flatnonzero((counts >= least) & (counts <= most))
        if most == 0:
            fits = np.array([absent(belief, rng)])
            fits = fits[counts[fits] == 0]
        label = int(pick(fits.tolist(), rng))
        text = ask("counting", rng, **belief.slots(label, rng))
        return DrawnQuestion(text, f"{number_word(belief.count(label))}.")

    return maker


def finding(belief: Belief, rng: Rng) -> DrawnQuestion:
    """Where the image shows a thing, where it shows one of it or none."""
    if rng.random() < 0.75:
        labels, counts = np.unique(belief.labels, return_counts=True)
        label = int(pick(labels[counts == 1].tolist(), rng))
        answer = place_of(belief.boxes[int(np.flatnonzero(belief.labels == label)[0])])
    else:
        label = absent(belief, rng)
        answer = f"i see no {belief.scene.names[label]}"
    return DrawnQuestion(ask("finding", rng, **belief.slots(label, rng)), f"{answer}.")


def biggest(belief: Belief, rng: Rng) -> DrawnQuestion:
    """What the largest thing in the image is, or the largest of one third of it."""
    thirds = (belief.boxes[:, [0, 2]].mean(axis=1) * 3).astype(int).clip(0, 2)  # (N,)
    third = int(rng.integers(3))
    rows, text = np.flatnonzero(thirds == third), ask("side", rng, side=THIRDS[third])
    if rng.random() < 0.5:
        rows, text = np.arange(len(thirds)), ask("biggest", rng)
    if not len(rows):
        raise SceneError
    row = max(rows.tolist(), key=lambda row: area_of(belief.boxes[row]))
    return DrawnQuestion(text, f"{belief.thing(row)}.")


def captioning(belief: Belief, rng: Rng) -> DrawnQuestion:
    """What the image shows, in the words of one of its captions."""
    caption = pick(belief.scene.captions, rng).strip().rstrip(".").lower()
    return DrawnQuestion(ask("captioning", rng), f"{caption}.")
