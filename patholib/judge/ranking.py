"""Curves over all thresholds: ROC, precision-recall, net benefit, abstention."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from patholib.base.errors import PathoError
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


def roc_curve(labels: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(1 - specificity, sensitivity, thresholds), thresholds falling, the first of them infinite.

    labels (N,): True where positive. One point per distinct score, so ties are one straight step. Errors: one_class,
    bad_scores.
    """
    true, false, thresholds = _above(labels, scores)
    if true[-1] == 0 or false[-1] == 0:
        raise PathoError("one_class", "ROC curve", "needs positive and negative labels", "Leave this curve out")
    start = np.zeros(1)
    return (
        np.concatenate([start, false / false[-1]]),
        np.concatenate([start, true / true[-1]]),
        np.concatenate([[np.inf], thresholds]),
    )


def pr_curve(labels: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(precision, sensitivity, thresholds), thresholds rising; a last point (1, 0) has no threshold.

    labels (N,): True where positive. Errors: one_class, bad_scores.
    """
    true, false, thresholds = _above(labels, scores)
    _need_positive(true, "precision curve")
    precision, sensitivity = true / (true + false), true / true[-1]
    return np.append(precision[::-1], 1.0), np.append(sensitivity[::-1], 0.0), thresholds[::-1]


def auc(labels: np.ndarray, scores: np.ndarray) -> float | None:
    """The area under the ROC curve; None if only one class occurs.

    labels (N,): class indices. scores: of class 1 (N,), or probabilities (N, C). Ties count half. Of more than two
    classes the mean of each class against the rest, over the classes that occur.
    """
    labels, scores = np.asarray(labels), np.asarray(scores, dtype=float)
    of_class = dict(enumerate(scores.T if scores.ndim == 2 else np.stack([-scores, scores])))
    if len(of_class) == 2:
        of_class = {1: of_class[1]}  # class 0 against the rest is the same number
    one_group = np.zeros(len(labels), int)
    aucs = [resampled.aucs(labels == k, column, one_group)[0] for k, column in of_class.items() if (labels == k).any()]
    return float(np.mean(aucs)) if len(np.unique(labels)) > 1 else None


def balanced_accuracy(labels: np.ndarray, predicted: np.ndarray) -> float | None:
    """The mean sensitivity of the classes that occur, from class indices (N,); None if only one occurs."""
    labels, predicted = np.asarray(labels), np.asarray(predicted)
    sensitivities = [(predicted[labels == k] == k).mean() for k in np.unique(labels)]
    return float(np.mean(sensitivities)) if len(sensitivities) > 1 else None


def operating_points(labels: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(sensitivity, specificity, thresholds), thresholds rising, one per distinct score; labels (N,): True if positive.

    Predicted positive is what reaches the threshold. Errors: one_class, bad_scores.
    """
    alarm, sensitivity, thresholds = roc_curve(labels, scores)
    return sensitivity[:0:-1], 1 - alarm[:0:-1], thresholds[:0:-1]


def _need_positive(true: np.ndarray, subject: str) -> None:
    if true[-1] == 0:
        raise PathoError("one_class", subject, "needs a positive label", "Split again, or name another positive class")


def _above(labels, scores) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Positives and negatives at or above each distinct score, highest score first."""
    labels, scores = np.asarray(labels, dtype=bool), np.asarray(scores, dtype=float)
    if not len(scores) or len(labels) != len(scores) or not np.isfinite(scores).all():
        raise PathoError(
            "bad_scores",
            "curve",
            "needs as many finite scores as labels, and at least one",
            "Pass one label and one score per image",
        )
    order = np.argsort(-scores, kind="stable")
    last = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)  # of each run of equal scores
    true = np.cumsum(labels[order])[last].astype(float)
    return true, last + 1 - true, scores[order][last]
