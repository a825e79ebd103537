"""How often a 95 % interval holds the truth, over many sets of patients whose truth is known.

  python tests/intervals.py                       the table for both kinds of interval and three sizes: six minutes
  python tests/intervals.py --simulations 200     quicker, and less sure

Each set has patients of either class by the throw of a coin, each with 1 to 9 images. The score of an image is +-0.8
for its class, plus what its patient adds, plus a little of its own, so that its images are alike. The truth of every
number follows from the normal distribution, or is measured on two million images. Beside each share stands the error
that so many simulations leave in it, two binomial standard errors.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path
from statistics import NormalDist

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).parents[1]))

from patholib.judge import metrics

CLASSES, BIAS, SPREAD, WITHIN = ("benign", "malignant"), 0.8, 1.0, 0.3
NAMES = ("auc", "accuracy", "balanced_accuracy", "sensitivity", "specificity", "precision", "log_loss", "brier")


def patients(seed: int, number: int) -> pd.DataFrame:
    """Predictions of so many patients."""
    rng = np.random.default_rng(seed)
    group = np.repeat(np.arange(number), rng.integers(1, 10, number))
    label = rng.integers(0, 2, number)[group]
    logit = BIAS * (2 * label - 1) + rng.normal(0, SPREAD, number)[group] + rng.normal(0, WITHIN, len(group))
    p = 1 / (1 + np.exp(-logit))
    return pd.DataFrame(
        {
            "path": np.arange(len(group)).astype(str),
            "group": group.astype(str),
            "label": np.array(CLASSES)[label],
            "p_benign": 1 - p,
            "p_malignant": p,
        }
    )


def truth() -> dict[str, float]:
    """The value of every number over all such patients."""
    deviation = math.hypot(SPREAD, WITHIN)
    right = NormalDist().cdf(BIAS / deviation)  # of either class, so that also the precision is this
    logit = np.random.default_rng(0).normal(BIAS, deviation, 2_000_000)
    miss = 1 / (1 + np.exp(logit))  # 1 - p of the label
    return {
        "auc": NormalDist().cdf(math.sqrt(2) * BIAS / deviation),
        "log_loss": float(-np.log1p(-miss).mean()),
        "brier": float((miss**2).mean()),
        **dict.fromkeys(("accuracy", "balanced_accuracy", "sensitivity", "specificity", "precision"), right),
    }


def coverage(
    number: int,
    simulations: int,
    interval: str = "percentile",
    rows: bool = False,
    resamples: int = 1000,
    names: tuple[str, ...] = NAMES,
) -> dict[str, float]:
    """The share of intervals that hold the truth, by name; an interval that is not given counts as not holding it.

    number: of patients. rows: draw the images one by one instead of the patients.
    """
    known, held = truth(), dict.fromkeys(names, 0)
    for seed in range(simulations):
        table = patients(seed, number)
        found = metrics.summary(
            table.assign(group=table["path"]) if rows else table,
            CLASSES,
            "malignant",
            resamples=resamples,
            seed=seed,
            interval=interval,
        )["metrics"]
        for name in names:
            low, high = found[name]["low"], found[name]["high"]
            held[name] += low is not None and low <= known[name] <= high
    return {name: count / simulations for name, count in held.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--simulations", type=int, default=1000)
    simulations = parser.parse_args().simulations
    columns = {}
    for number in (20, 40, 120):
        for title, options in (("percentile", {}), ("bca", {"interval": "bca"}), ("of rows", {"rows": True})):
            columns[f"{title}, {number}"] = coverage(number, simulations, **options)
    error = 200 * math.sqrt(0.95 * 0.05 / simulations)
    print(f"{simulations} simulations, 95 % nominal, +- {error:.1f} points; intervals that hold the truth, in %:")
    print((100 * pd.DataFrame(columns)).round(1).T.to_string())


if __name__ == "__main__":
    main()
