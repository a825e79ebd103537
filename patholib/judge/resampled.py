"""Values of all metrics on many resamples at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from patholib.base.errors import PathoError, nearest
from patholib.judge import calibration, rules

if TYPE_CHECKING:
    from patholib.judge.rules import Shares

def decide(predictions: pd.DataFrame, classes: Sequence[str], positive: str | None = None,
           threshold: float | Shares = 0.5) -> np.ndarray:
    """The class each image is called, (N,) text: see `called`."""
    judged = judge(predictions, classes, positive, threshold)
    return np.array(judged.classes, dtype=object)[judged.decisions]


@dataclass(frozen=True)
class Judged:
    """A table of predictions, checked and reduced to what every resample needs."""

    classes: tuple[str, ...]
    by_threshold: bool
    positive: int | None  # its place in the classes
    decisions: np.ndarray  # (N,) index of the predicted class
    confusion: np.ndarray  # (C, C) images by true and predicted class
    groups: int  # G
    groups_with: np.ndarray  # (C,) groups that have an image of each class
    groups_without: np.ndarray  # (C,) groups that have an image of another class
    sums: np.ndarray  # (G, C * C + 2) per group: images by true and predicted class, sum of log loss, of Brier score
    ece: float  # of the positive class where a threshold decides, else of the likeliest one
    rankings: list  # of each class; for two classes one of the positive, as the other has the same AUC


def judge(predictions: pd.DataFrame, classes: Sequence[str], positive: str | None,
           threshold: float | Shares) -> Judged:
    classes = tuple(classes)
    columns = [f"p_{c}" for c in classes]
    need(predictions, ["label", "group", *columns])
    if positive is not None and positive not in classes:
        raise PathoError("unknown_class", str(positive), "is no class", nearest(positive, classes))
    if not len(predictions):
        raise PathoError("no_predictions", "predictions", "the table has no rows", "Choose a split that has images")
    labels = pd.Index(classes).get_indexer(predictions["label"])
    if (labels < 0).any():
        name = predictions["label"].to_numpy()[labels < 0][0]
        raise PathoError("unknown_class", str(name), "is a label but no class", nearest(name, classes))
    probs = predictions[columns].to_numpy(dtype=float)  # (N, C)
    wrong = np.flatnonzero(~(np.abs(probs.sum(axis=1) - 1) < 1e-6) | (probs < 0).any(axis=1))  # not <: NaN is wrong
    if len(wrong):
        raise PathoError("bad_probabilities", f"row {wrong[0]} of the predictions",
                         f"has {probs[wrong[0]].tolist()}, no probabilities that sum to 1 ({len(wrong)} such rows)",
                         "Predict again")

    k = classes.index(positive) if positive is not None else None
    by_threshold = rules.divides(classes, positive, threshold)
    decisions = rules.called(probs, classes, positive, threshold)
    groups, names = pd.factorize(predictions["group"].astype(str), sort=True)  # sorted: row order changes no draw
    n, n_classes = len(labels), len(classes)
    own = probs[np.arange(n), labels]
    log_loss = -np.log(np.maximum(own, np.finfo(float).eps))  # one rounding error from 0 must not cost infinity
    squares = ((probs - np.eye(n_classes)[labels]) ** 2).sum(axis=1)
    brier = squares / 2 if n_classes == 2 else squares  # two classes: (p - y)^2 of one of them; more: Brier 1950
    sums = np.zeros((len(names), n_classes**2 + 2))
    np.add.at(sums, (groups, labels * n_classes + decisions), 1)
    sums[:, -2], sums[:, -1] = np.bincount(groups, log_loss), np.bincount(groups, brier)
    ranked = [k if by_threshold else 1] if n_classes == 2 else range(n_classes)
    return Judged(
        classes=classes, by_threshold=by_threshold, positive=k, decisions=decisions, groups=len(names),
        confusion=sums[:, :-2].sum(axis=0).astype(int).reshape(n_classes, n_classes),
        groups_with=np.array([len(np.unique(groups[labels == k])) for k in range(n_classes)]),
        groups_without=np.array([len(np.unique(groups[labels != k])) for k in range(n_classes)]), sums=sums,
        ece=calibration.ece(labels, probs, of=k if by_threshold else None),
        rankings=[ranking(labels == k, probs[:, k], groups) for k in ranked])


def need(table: pd.DataFrame, columns: list[str]) -> None:
    for column in columns:
        if column not in table:
            raise PathoError("missing_column", str(column), "is no column of the predictions",
                             nearest(column, table.columns))


def values(judged: Judged, counts: np.ndarray) -> tuple[dict, dict]:
    """Every number if group g is there counts[r, g] times: overall (R,) and of the classes (R, C).

    counts (R, G). NaN where a number is undefined.
    """
    n_classes = len(judged.classes)
    sums = counts @ judged.sums  # (R, C * C + 2)
    confusion = sums[:, :-2].reshape(-1, n_classes, n_classes)  # (R, true, predicted)
    right = confusion.diagonal(axis1=1, axis2=2)  # (R, C)
    support, predicted = confusion.sum(axis=2), confusion.sum(axis=1)
    images = support.sum(axis=1, keepdims=True)
    aucs = [auc_of(counts, ranking) for ranking in judged.rankings]
    with np.errstate(invalid="ignore", divide="ignore"):  # 0/0 is NaN on purpose: undefined
        of_classes = {
            "precision": right / predicted,
            "sensitivity": right / support,
            "specificity": (images - support - predicted + right) / (images - support),
            "f1": 2 * right / (support + predicted),
            "auc": np.stack(aucs * 2 if n_classes == 2 else aucs, axis=1),
        }
    present = judged.confusion.sum(axis=1) > 0

    def mean(values):  # undefined where a resample lost a class: a mean over fewer would be another quantity
        values = np.where(support > 0, values, np.nan)[:, present]
        return values.mean(axis=1) if present.sum() > 1 else np.full(len(values), np.nan)

    overall = {
        "accuracy": right.sum(axis=1) / images[:, 0],
        "balanced_accuracy": mean(of_classes["sensitivity"]),
        # A class that is never predicted has no precision; in the mean it counts 0, else to ignore it would pay.
        "macro_precision": mean(np.where(predicted > 0, of_classes["precision"], 0.0)),
        "macro_sensitivity": mean(of_classes["sensitivity"]),
        "macro_specificity": mean(of_classes["specificity"]),
        "macro_f1": mean(of_classes["f1"]),
        "auc": mean(of_classes["auc"]),
        "log_loss": sums[:, -2] / images[:, 0],
        "brier": sums[:, -1] / images[:, 0],
    }
    return overall, of_classes


def ranking(positive: np.ndarray, scores: np.ndarray, groups: np.ndarray) -> tuple:
    """What AUC needs of one class: groups of the negatives by rising score, of the positives, and where these rank."""
    order = np.argsort(scores[~positive], kind="stable")
    negatives = scores[~positive][order]
    below, upto = (np.searchsorted(negatives, scores[positive], side) for side in ("left", "right"))
    return groups[~positive][order], groups[positive], below, upto


def auc_of(counts: np.ndarray, ranking: tuple) -> np.ndarray:
    """(R,) AUC with each group counted counts[r, g] times: the Mann-Whitney statistic over sorted, weighted counts."""
    negatives, positives, below, upto = ranking
    counts = counts.astype(np.float32)  # half the memory to walk through; whole numbers, exact up to 16 million images
    beaten = np.zeros((len(counts), len(negatives) + 1), np.float32)
    np.cumsum(counts.take(negatives, axis=1), axis=1, out=beaten[:, 1:])
    weights = counts.take(positives, axis=1)
    twice = beaten.take(below, axis=1)  # a tie counts half
    twice += beaten.take(upto, axis=1)
    won = np.einsum("rp,rp->r", weights, twice, dtype=np.float64) / 2
    with np.errstate(invalid="ignore"):
        return won / (weights.sum(axis=1, dtype=np.float64) * beaten[:, -1])
