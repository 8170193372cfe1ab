"""Questions about the whole image: what is there, how many, where, and a caption."""

import numpy as np

from recipes.starter.records.scenes import DrawnQuestion, Maker, Scene, area_of, place_of
from recipes.starter.records.words import Rng, SceneError, ask, number_word, pick

THIRDS = ("on the left", "in the middle", "on the right")


def absent(scene: Scene, rng: Rng) -> int:
    """Draw a class that the image does not show."""
    return scene.others(scene.present, 1, rng)[0]


def presence(scene: Scene, rng: Rng) -> DrawnQuestion:
    """Whether the image shows a thing; half of the answers are yes."""
    shown = rng.random() < 0.5
    there = np.flatnonzero(scene.present).tolist()
    label = pick(there, rng) if shown else absent(scene, rng)
    text = ask("presence", rng, **scene.slots(label, rng))
    return DrawnQuestion(text, "yes." if shown else "no.")


def counting(least: int, most: int) -> Maker:
    """Make a maker of questions whose answer is a number from `least` to `most`.

    As makers of their own, numbers are asked as often as a mixture says; in photos most are one.
    """

    def maker(scene: Scene, rng: Rng) -> DrawnQuestion:
        fits = np.flatnonzero((scene.counts >= least) & (scene.counts <= most))
        label = int(pick(fits.tolist(), rng)) if most else absent(scene, rng)
        text = ask("counting", rng, **scene.slots(label, rng))
        return DrawnQuestion(text, f"{number_word(scene.count(label))}.")

    return maker


def finding(scene: Scene, rng: Rng) -> DrawnQuestion:
    """Where the image shows a thing, where it shows one of it or none."""
    if rng.random() < 0.75:
        labels, counts = np.unique(scene.labels, return_counts=True)
        label = int(pick(labels[counts == 1].tolist(), rng))
        answer = place_of(scene.fractions[int(np.flatnonzero(scene.labels == label)[0])])
    else:
        label = absent(scene, rng)
        answer = f"i see no {scene.names[label]}"
    return DrawnQuestion(ask("finding", rng, **scene.slots(label, rng)), f"{answer}.")


def biggest(scene: Scene, rng: Rng) -> DrawnQuestion:
    """What the largest thing in the image is, or the largest of one third of it."""
    thirds = (scene.fractions[:, [0, 2]].mean(axis=1) * 3).astype(int).clip(0, 2)  # (N,)
    third = int(rng.integers(3))
    rows, text = np.flatnonzero(thirds == third), ask("side", rng, side=THIRDS[third])
    if rng.random() < 0.5:
        rows, text = np.arange(len(thirds)), ask("biggest", rng)
    if not len(rows):
        raise SceneError
    row = max(rows.tolist(), key=lambda row: area_of(scene.fractions[row]))
    return DrawnQuestion(text, f"{scene.thing(row)}.")


def captioning(scene: Scene, rng: Rng) -> DrawnQuestion:
    """What the image shows, in the words of one of its captions."""
    caption = pick(scene.captions, rng).strip().rstrip(".").lower()
    return DrawnQuestion(ask("captioning", rng), f"{caption}.")
