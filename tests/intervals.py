"""How often a 95 % interval holds the truth, over many test sets whose truth is known.

  python tests/intervals.py                       writes the tables of docs/promises.md: ten minutes
  python tests/intervals.py --simulations 100     prints them: quicker, and less sure

A test set has so many groups (patients) of each class, each with 1 to 9 images or with as many as a case of BreakHis:
one of 16 benign cases has a fifth of the images. The score of an image is +-`skill` for
its class, plus what its group adds, plus a little of its own, so that the images of a group are alike. The truth
follows from the normal distribution, or is measured on many images.
"""

from __future__ import annotations

import argparse
import functools
import math
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import NormalDist

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).parents[1]))

from splits import BENIGN, MALIGNANT

from patholib.base import files
from patholib.judge import intervals, metric_table, metrics, resampled
from patholib.judge.intervals import Estimate
from patholib.train import origin

PAGE = Path(__file__).parents[1] / "docs" / "promises.md"
CLASSES = ("benign", "malignant")
GROUPS = ((3, 8), (4, 9), (5, 25), (10, 10), (16, 54), (40, 40))
UNEQUAL = ((3, 8), (16, 54))  # with as many images as cases of BreakHis
NUMBERS = ("auc", "sensitivity", "specificity", "balanced_accuracy", "accuracy")
OTHERS = ("precision", "f1", "log_loss", "brier")
LEAST, MOST = 0.92, 0.99  # what the coverage of a nominal 95 % should be
ISIC = {"NV": 305, "MEL": 107, "BCC": 79, "BKL": 62, "AK": 20, "SCC": 15, "VASC": 6, "DF": 6}  # of 600 lesions


@dataclass(frozen=True)
class World:
    """Where test sets come from: the deviations of the score between groups, and between the images of one."""

    skill: float = 0.8
    between: float = 0.7
    within: float = 0.7
    unequal: bool = False  # whether groups are as large as cases of BreakHis, or have 1 to 9 images

    @property
    def words(self) -> str:
        """The correlation of two images of a group, and the AUC."""
        alike = self.between**2 / (self.between**2 + self.within**2)
        return f"correlation {alike:.2f}, AUC {self.truth()['auc']:.2f}"

    def noise(self, rng: np.random.Generator, group: np.ndarray) -> np.ndarray:
        """(N,) what makes images hard, for the groups (N,)."""
        return rng.normal(0, self.between, group[-1] + 1)[group] + rng.normal(0, self.within, len(group))

    def draw(self, seed: int, groups: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Classes, scores and groups (N,) of a test set of so many groups of each class.

        Of one number of groups only, chance gives each its class.
        """
        rng = np.random.default_rng(seed)
        label = np.repeat((0, 1), groups) if groups[1:] else rng.integers(0, 2, groups[0])
        images = rng.integers(1, 10, sum(groups))
        if self.unequal:
            cases = zip((BENIGN, MALIGNANT), groups, strict=True)
            images = np.concatenate([rng.choice(sizes, n, replace=False) for sizes, n in cases])
        group = np.repeat(np.arange(sum(groups)), images)
        return label[group], self.skill * (2 * label[group] - 1) + self.noise(rng, group), group

    @functools.cache  # noqa: B019
    def truth(self, groups: tuple[int, ...] = (1,)) -> dict[str, float]:
        """The value of every number over all images, where the classes are as frequent as in such test sets."""
        deviation, prior = math.hypot(self.between, self.within), groups[-1] / sum(groups) if groups[1:] else 0.5
        right = NormalDist().cdf(self.skill / deviation)  # of either class
        precision = right * prior / (right * prior + (1 - right) * (1 - prior))
        miss = 1 / (1 + np.exp(np.random.default_rng(0).normal(self.skill, deviation, 1_000_000)))  # 1 - p of the label
        return {
            "auc": NormalDist().cdf(math.sqrt(2) * self.skill / deviation),
            "precision": precision,
            "f1": 2 * precision * right / (precision + right),
            "log_loss": float(-np.log1p(-miss).mean()),
            "brier": float((miss**2).mean()),
            **dict.fromkeys(("accuracy", "balanced_accuracy", "sensitivity", "specificity"), right),
        }


ALIKE = World(between=1.0, within=0.3)
WORLDS = (World(), ALIKE, World(between=0.3, within=1.0), World(skill=1.6, between=1.0, within=0.3))

Found = Mapping[str, Estimate]


def numbers(labels: np.ndarray, scores: np.ndarray, group: np.ndarray) -> metrics.Numbers:
    """What `metrics.summary` makes of such predictions, without the time that checking a table takes."""
    p = 1 / (1 + np.exp(-scores))
    probs, predicted = np.stack([1 - p, p], axis=1), (p >= 0.5).astype(int)
    return metrics.Numbers.of(resampled.count(CLASSES, 1, True, labels, probs, predicted, group))


def estimates(found: metrics.Numbers, names: Iterable[str]) -> Found:
    return {m.name: found.overall(m) for m in wanted(names, found.counted.by_threshold)}


def wanted(names: Iterable[str], by_threshold: bool = True) -> list[metric_table.Metric]:
    return [metric for metric in metric_table.of_summary(by_threshold) if metric.name in names]


def table(labels: np.ndarray, scores: np.ndarray, group: np.ndarray) -> pd.DataFrame:
    """The same as a table of predictions."""
    p = 1 / (1 + np.exp(-scores))
    return pd.DataFrame(
        {"group": group.astype(str), "label": np.array(CLASSES)[labels], "p_benign": 1 - p, "p_malignant": p}
    )


def shares(found: Callable[[int], Found], truth: Mapping[str, float], simulations: int) -> pd.DataFrame:
    """By number (rows): how often an interval held its truth, of those that were given, and how often none was given.

    found: the estimates of a seed.
    """
    counted: dict[str, Counter] = {name: Counter() for name in truth}
    for seed in range(simulations):
        for name, number in found(seed).items():
            if name in truth:
                given = number.low is not None and number.high is not None
                counted[name]["held"] += given and number.low <= truth[name] <= number.high
                counted[name]["none"] += not given
    rows = {
        name: {"held": of["held"] / max(simulations - of["none"], 1), "none": of["none"] / simulations}
        for name, of in counted.items()
    }
    return pd.DataFrame(rows).T


def coverage(
    world: World, groups: tuple[int, ...], simulations: int, names: Iterable[str] = NUMBERS, rows: bool = False
) -> pd.DataFrame:
    """`shares` of these numbers; rows: takes every image for a group of its own, which is wrong."""

    def found(seed: int) -> Found:
        labels, scores, group = world.draw(seed, groups)
        return estimates(numbers(labels, scores, np.arange(len(group)) if rows else group), names)

    return shares(found, {name: world.truth(groups)[name] for name in names}, simulations)


# ---- other numbers ---------------------------------------------------------------------------------------------------


def difference(world: World, groups: tuple[int, int], simulations: int) -> pd.DataFrame:
    """Of two models on the same images, the other one with three quarters of the skill.

    Half of what makes an image or a group hard is common to both.
    """
    other = World(0.75 * world.skill, world.between, world.within)
    names = ("auc", "balanced_accuracy", "accuracy", "log_loss")

    def found(seed: int) -> Found:
        rng = np.random.default_rng(seed + 10**6)
        labels, scores, group = world.draw(seed, groups)
        sign = 2 * labels - 1
        common = scores - world.skill * sign
        ours, theirs = (
            numbers(labels, model.skill * sign + (common + world.noise(rng, group)) / math.sqrt(2), group)
            for model in (world, other)
        )
        return {m.name: metrics.difference(m, ours, theirs) for m in wanted(names)}

    return shares(found, {name: world.truth()[name] - other.truth()[name] for name in names}, simulations)


def two_sets(
    world: World, other: World, groups: tuple, simulations: int, names: Iterable[str] = NUMBERS
) -> pd.DataFrame:
    """Of one model on two independent sets, whose images are drawn from two worlds; groups: of each set."""

    def found(seed: int) -> Found:
        drawn = (one.draw(seed + k * 10**6, groups[k]) for k, one in enumerate((world, other)))
        ours, theirs = (estimates(numbers(*each), NUMBERS) for each in drawn)
        return {name: intervals.apart(ours[name], theirs[name]) for name in NUMBERS}

    truth = {name: world.truth(groups[0])[name] - other.truth(groups[1])[name] for name in NUMBERS}
    return shares(found, truth, simulations)


def both_classes(world: World, groups: int, simulations: int) -> pd.DataFrame:
    """Groups that each have images of both classes, as patients with healthy and diseased tissue."""

    def found(seed: int) -> Found:
        rng = np.random.default_rng(seed)
        group = np.repeat(np.arange(groups), rng.integers(2, 20, groups))
        labels = rng.integers(0, 2, len(group))
        scores = world.skill * (2 * labels - 1) + world.noise(rng, group)
        return estimates(numbers(labels, scores, group), NUMBERS)

    # An image wins against those of its own group more often than against others; the truth is that of many groups.
    return shares(found, {name: world.truth()[name] for name in NUMBERS}, simulations)


def eight(lesions: Mapping[str, int], simulations: int) -> pd.DataFrame:
    """Eight classes as frequent as in ISIC 2019: one logit per class, alike in the 1 to 3 images of a lesion."""
    numbers = np.array(list(lesions.values()))

    def found(seed: int) -> Found:
        rng = np.random.default_rng(seed)
        label = np.repeat(np.arange(len(numbers)), numbers)
        group = np.repeat(np.arange(len(label)), rng.integers(1, 4, len(label)))
        labels, probs = label[group], _eight_probs(rng, label[group], group)
        counted = resampled.count(tuple(lesions), None, False, labels, probs, probs.argmax(axis=1), group)
        return estimates(metrics.Numbers.of(counted), ("auc", "balanced_accuracy", "accuracy", "macro_f1"))

    return shares(found, _eight_truth(tuple(numbers / numbers.sum())), simulations)


def _eight_probs(rng: np.random.Generator, labels: np.ndarray, group: np.ndarray) -> np.ndarray:
    logits = 1.6 * np.eye(8)[labels] + 0.8 * rng.normal(size=(group[-1] + 1, 8))[group]
    logits += 0.6 * rng.normal(size=logits.shape)
    return np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)


@functools.cache
def _eight_truth(prior: tuple[float, ...], each: int = 40_000) -> dict[str, float]:
    """Measured on so many images of each class."""
    weights, labels = np.array(prior), np.repeat(np.arange(8), each)
    probs = _eight_probs(np.random.default_rng(1), labels, np.arange(len(labels)))
    rates = np.zeros((8, 8))  # of each class, how many are predicted as each
    np.add.at(rates, (labels, probs.argmax(axis=1)), 1 / each)
    right = rates.diagonal()
    aucs = []
    for k in range(8):
        score = np.sort(probs[labels == k, k])
        beats = [1 - np.searchsorted(score, probs[labels == c, k]).mean() / each for c in range(8)]
        others = np.arange(8) != k
        aucs.append(np.average(np.array(beats)[others], weights=weights[others]))
    f1 = 2 * right * weights / (weights + weights @ rates)
    values = {"auc": np.mean(aucs), "balanced_accuracy": right.mean(), "accuracy": right @ weights}
    return {name: float(value) for name, value in {**values, "macro_f1": f1.mean()}.items()}


def mean(groups: int, simulations: int) -> pd.DataFrame:
    """The mean of one number per image, and the recognition rate of patients."""

    def found(seed: int) -> Found:
        rng = np.random.default_rng(seed)
        group = np.repeat(np.arange(groups), rng.integers(1, 10, groups))
        values = ALIKE.noise(rng, group)
        right = pd.Series(values > -0.8).groupby(group).mean()
        return {
            "mean": intervals.mean_of(values, group),
            "recognition rate": intervals.mean_of(right, right.index, "share"),
        }

    rate = NormalDist().cdf(0.8 / math.hypot(ALIKE.between, ALIKE.within))
    return shares(found, {"mean": 0.0, "recognition rate": rate}, simulations)


# ---- the tables ------------------------------------------------------------------------------------------------------


def percent(row: pd.Series) -> str:
    """The coverage, and how often there was no interval if that is more than one time in a hundred."""
    if row["none"] > 0.5:
        return "no interval"
    return f"{100 * row['held']:.1f}" + (f" (none in {100 * row['none']:.0f})" if row["none"] > 0.01 else "")


def by_groups(simulations: int) -> Iterator[dict[str, str]]:
    names = NUMBERS + OTHERS
    for world in WORLDS:
        sets = [(world, groups) for groups in (*GROUPS, (20,), (80,))]
        for drawn, groups in sets + [(replace(world, unequal=True), groups) for groups in UNEQUAL]:
            found = coverage(drawn, groups, simulations, names)
            title = " + ".join(map(str, groups)) if groups[1:] else f"{groups[0]}, class by chance"
            title += ", unequal" if drawn.unequal else ""
            yield {"images of a group": world.words, "groups": title} | {
                metric_table.words(name): percent(found.loc[name]) for name in names
            }


def others(simulations: int) -> Iterator[dict[str, str]]:
    twice = {name: 2 * n for name, n in ISIC.items()}
    parts = [
        *((f"difference of two models, {a} + {b} groups", difference(World(), (a, b), simulations)) for a, b in GROUPS),
        *((f"both classes in each of {n} groups", both_classes(World(), n, simulations)) for n in (5, 10, 40)),
        *((f"8 classes, {sum(n.values())} lesions, rarest {n['DF']}", eight(n, simulations)) for n in (ISIC, twice)),
        *((f"means over {n} groups", mean(n, simulations)) for n in (5, 10, 40)),
    ]
    for what, found in parts:
        cells = (f"{metric_table.words(str(name))} {percent(row)}" for name, row in found.iterrows())
        yield {"what": what, "intervals that hold the truth, %": ", ".join(cells)}


def markdown(rows: Iterable[dict[str, str]]) -> list[str]:
    rows = list(rows)
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(list(row.values()) for row in rows)]
    return [f"| {' | '.join(line)} |" for line in lines]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--simulations", type=int, default=1000)
    simulations = parser.parse_args().simulations
    machine, error = origin.machine(), 200 * math.sqrt(0.95 * 0.05 / simulations)
    lines = [
        f"Written by `python tests/intervals.py`: {simulations:,} test sets per cell, nominal 95 %, chance in a cell "
        f"+- {error:.1f} points (two standard errors). {machine['processor']}, {machine['cores']} cores.",
        "",
        *markdown(by_groups(simulations)),
        "",
        *markdown(others(simulations)),
    ]
    print("\n".join(lines))
    if simulations >= 1000:
        begin, end = "<!-- coverage: begin -->", "<!-- coverage: end -->"
        before, rest = PAGE.read_text(encoding="utf-8").split(begin)
        text = "\n".join([begin, *lines, end])
        files.write_text(PAGE, before + text + rest.split(end)[1])


if __name__ == "__main__":
    main()
