"""How often a 95 % interval holds the truth, over many test sets whose truth is known.

  python tests/intervals.py                       writes the tables into docs/promises.md: ten minutes
  python tests/intervals.py --simulations 200     prints them: quicker, and less sure

A test set has so many groups (patients) of either class, each with 1 to 9 images. The score of an image is +-`skill`
for its class, plus what its group adds, plus a little of its own, so that images of a group are alike. The truth of
most numbers follows from the normal distribution; of the others it is measured on two million images.
"""

from __future__ import annotations

import argparse
import functools
import math
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist

import numpy as np
import pandas as pd

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parent)]

import origin

from patholib.base import files
from patholib.judge import metrics

CLASSES = ("benign", "malignant")
GROUPS = ((3, 8), (4, 9), (5, 25), (10, 10), (16, 54), (40, 40))
NUMBERS = ("auc", "sensitivity", "specificity", "balanced_accuracy", "accuracy")
OTHERS = ("precision", "f1", "log_loss", "brier")
LEAST, MOST = 0.92, 0.99  # what the coverage of a nominal 95 % has to be


@dataclass(frozen=True)
class World:
    """Where test sets come from: deviations of the score between groups and between images of one."""

    skill: float = 0.8
    between: float = 0.7
    within: float = 0.7

    @property
    def alike(self) -> float:
        """The correlation of two images of a group."""
        return self.between**2 / (self.between**2 + self.within**2)

    def draw(self, seed: int, groups: tuple[int, int], other: float | None = None) -> list[pd.DataFrame]:
        """Predictions of so many groups of either class; with `other` also of a second model on the same images.

        other: the skill of the second model; half of what makes an image or a group hard is common to both.
        """
        rng = np.random.default_rng(seed)
        number, label = sum(groups), np.repeat((0, 1), groups)
        group = np.repeat(np.arange(number), rng.integers(1, 10, number))

        def noise() -> np.ndarray:
            return rng.normal(0, self.between, number)[group] + rng.normal(0, self.within, len(group))

        common, sign = noise(), 2 * label[group] - 1
        if other is None:
            return [table(label[group], self.skill * sign + common, group)]
        return [table(label[group], skill * sign + (common + noise()) / math.sqrt(2), group) for skill in (self.skill, other)]

    @functools.cached_property
    def truth(self) -> dict[str, float]:
        """The value of every number over all such images, both classes being as frequent."""
        deviation = math.hypot(self.between, self.within)
        right = NormalDist().cdf(self.skill / deviation)  # of either class, so that also the precision is this
        miss = 1 / (1 + np.exp(np.random.default_rng(0).normal(self.skill, deviation, 2_000_000)))  # 1 - p of the label
        return {
            "auc": NormalDist().cdf(math.sqrt(2) * self.skill / deviation),
            "log_loss": float(-np.log1p(-miss).mean()),
            "brier": float((miss**2).mean()),
            **dict.fromkeys(("accuracy", "balanced_accuracy", "sensitivity", "specificity", "precision", "f1"), right),
        }


def table(labels: np.ndarray, logits: np.ndarray, group: np.ndarray) -> pd.DataFrame:
    p = 1 / (1 + np.exp(-logits))
    columns = {"group": group.astype(str), "label": np.array(CLASSES)[labels], "p_benign": 1 - p, "p_malignant": p}
    return pd.DataFrame({"path": np.arange(len(group)).astype(str), **columns})


def coverage(world: World, groups: tuple[int, int], simulations: int, names: Iterable[str] = NUMBERS, rows: bool = False) -> pd.DataFrame:
    """By number: the shares of intervals that hold the truth, of truths below and above, and of sets without interval.

    rows: takes every image for a group of its own, which is wrong.
    """
    counted = {name: Counter() for name in names}
    for seed in range(simulations):
        (drawn,) = world.draw(seed, groups)
        found = metrics.summary(drawn.assign(group=drawn["path"]) if rows else drawn, CLASSES, "malignant")["metrics"]
        for name in names:
            counted[name][where(found[name], world.truth[name])] += 1
    return pd.DataFrame(counted, index=["held", "below", "above", "none"]).fillna(0).T / simulations


def where(number: dict, truth: float) -> str:
    if number["low"] is None:
        return "none"
    return "below" if truth < number["low"] else "above" if truth > number["high"] else "held"
