"""Curves over all thresholds that metrics.json keeps: net benefit, abstention."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from patholib.judge import resampled, rules

if TYPE_CHECKING:
    from patholib.judge.rules import Shares

POINTS = 50  # of a curve that is kept in metrics.json


def decision_curve(predictions: pd.DataFrame, positive: str) -> dict:
    """The net benefit of treating by the model at each threshold, and of treating everybody (Vickers & Elkin 2006).

    Benefit per image: true positives minus false positives weighted by the odds of the threshold. Treating nobody has
    benefit 0. Lists `threshold`, `model`, `everybody`, 49 values each. Errors: missing_column.
    """
    resampled.need(predictions, ["label", f"p_{positive}"])
    at = np.linspace(0, 1, POINTS + 1)[1:-1]
    true, score = (predictions["label"] == positive).to_numpy(), predictions[f"p_{positive}"].to_numpy(dtype=float)
    predicted = score >= at[:, None]  # (T, N)
    odds = at / (1 - at)
    benefit = (predicted & true).mean(axis=1) - odds * (predicted & ~true).mean(axis=1)
    return {
        "threshold": at.round(4).tolist(),
        "model": benefit.round(6).tolist(),
        "everybody": (true.mean() - odds * (1 - true.mean())).round(6).tolist(),
    }


def abstention(
    predictions: pd.DataFrame, classes: Sequence[str], positive: str | None = None, threshold: float | Shares = 0.5
) -> dict:
    """The share of wrong predictions (risk) if the least certain images are left to a person (Geifman & El-Yaniv 2017).

    Certainty is the largest probability (prior-corrected where shares decide) or, where a threshold decides, the
    distance to it in log odds. Lists `coverage` and `risk`, at most 50 long; `aurc`, the mean risk over all coverages,
    beside `aurc_best`, that of leaving out the wrong ones first, and `aurc_random`, that of leaving out by chance.
    """
    counted = resampled.tally(predictions, classes, positive, threshold)
    probs = predictions[[f"p_{c}" for c in classes]].to_numpy(dtype=float)
    certainty = rules.prior_corrected(probs, counted.classes, threshold).max(axis=1)
    if counted.by_threshold:
        certainty = np.abs(_log_odds(probs[:, counted.positive]) - _log_odds(threshold))
    wrong = np.array(counted.classes, dtype=object)[counted.predicted] != predictions["label"].to_numpy()
    _, runs = np.unique(-certainty, return_inverse=True)  # most certain first; equal ones share their errors
    wrong, n = (np.bincount(runs, wrong) / np.bincount(runs))[np.sort(runs)], len(wrong)
    risk = np.cumsum(wrong) / np.arange(1, n + 1)
    errors = round(wrong.sum())
    best = np.maximum(np.arange(1, n + 1) - (n - errors), 0) / np.arange(1, n + 1)
    kept = np.unique(np.ceil(np.linspace(1 / POINTS, 1, POINTS) * n).astype(int))
    return {
        "coverage": (kept / n).round(6).tolist(),
        "risk": risk[kept - 1].round(6).tolist(),
        "aurc": float(risk.mean()),
        "aurc_best": float(best.mean()),
        "aurc_random": errors / n,
    }


def _log_odds(p):
    p = np.clip(p, np.finfo(float).eps, 1 - np.finfo(float).eps)
    return np.log(p) - np.log1p(-p)
