"""Prediction sets: of one image the classes that it may be of, with a promise for new patients.

A class is in the set where its calibrated probability reaches the threshold of that class (least ambiguous sets of
Sadinle, Lei & Wasserman 2019), which is chosen on the validation images of that class alone (class-conditional
conformal prediction, Vovk 2012). Images of a patient are alike, so that patients and not images are exchangeable: the
rule is `thresholds.for_sensitivity`, conformal risk control over groups, as for the threshold of the decision.

- The promise is a mean, over studies and over the new patients of each class, of the share of a patient's images.
- It takes 9 validation groups of a class. A class with fewer is in every set, and a note says so.
- The predicted class is always in the set. So no set is empty, and coverage can only be higher.

The simulation is tests/judge/coverage/test_prediction_sets.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from patholib.judge import intervals, predicting, rules, thresholds

COVERAGE = 0.9
NEEDED = math.ceil(COVERAGE / (1 - COVERAGE) - thresholds.CLOSE)  # groups of a class


def chosen(val: pd.DataFrame, classes: Sequence[str], units: str = "groups") -> dict:
    """The part of decision.json about sets, from calibrated validation predictions; threshold 0: in every set.

    units: what the groups are, in the plural.
    """
    at, groups = {}, {}
    for name in classes:
        own = val[val["label"] == name]
        groups[name] = int(own["group"].nunique())
        enough = groups[name] >= NEEDED
        scores, whose = own[f"p_{name}"].to_numpy(), own["group"].to_numpy()
        at[name] = thresholds.for_sensitivity(scores, whose, COVERAGE) if enough else 0.0
    share = f"{100 * COVERAGE:.0f} % of {units}"
    words = f"the set holds the true class in at least {share} like those of the validation set"
    return {"coverage": COVERAGE, "words": words, "thresholds": at, "groups": groups}


def in_words(decision: Mapping) -> dict[str, str]:
    """The sets in decision.json for people, by name; empty where none were locked."""
    if "sets" not in decision:
        return {}
    at, groups = decision["sets"]["thresholds"], decision["sets"]["groups"]
    found = {"prediction set": decision["sets"]["words"]}
    found["in the set from"] = ", ".join(f"p_{name} >= {value:.3g}" for name, value in at.items() if value > 0)
    few = [f"{name} ({n})" for name, n in groups.items() if n < NEEDED]
    found["in every set"] = f"{', '.join(few)}: the promise takes {NEEDED} validation groups of a class"
    return {name: text for name, text in found.items() if text and (few or name != "in every set")}


def members(
    probs: np.ndarray, classes: Sequence[str], decision: Mapping, threshold: float | rules.Shares
) -> np.ndarray:
    """Which classes are in the set of each image, (N, C) bool; probs (N, C): calibrated.

    decision: with `sets`, as `chosen` gives them. threshold: as `rules.predicted` takes it.
    """
    inside = probs >= np.array([decision["sets"]["thresholds"][name] for name in classes])
    inside[np.arange(len(probs)), rules.predicted(probs, classes, decision.get("positive"), threshold)] = True
    return inside


def judged(table: pd.DataFrame, classes: Sequence[str], inside: np.ndarray) -> dict:
    """How often the sets hold the true class, of each class, and how large they are; inside: as `members` gives it.

    coverage: the mean over groups of the share of their images, as it is promised, with its interval over groups.
    """
    labels = predicting.true_labels(table, classes)
    held, size = inside[np.arange(len(table)), labels], inside.sum(axis=1)
    coverage = {}
    for k, name in enumerate(classes):
        shares = pd.Series(held[labels == k]).groupby(table["group"].to_numpy()[labels == k]).mean().to_numpy(float)
        found = (
            intervals.mean_of(shares, np.arange(len(shares)), "share")
            if len(shares)
            else intervals.Estimate(None, missing="no image is of this class")
        )
        coverage[name] = {"groups": len(shares), **found.to_json()}
    return {
        "coverage": coverage,
        "size": intervals.mean_of(size, table["group"], "positive").to_json(),
        "single": intervals.mean_of(size == 1, table["group"], "share").to_json(),
    }
