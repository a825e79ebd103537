"""A table of predictions counted by group, and the values of all metrics in many resamples at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd

from patholib.base.errors import PathoError, nearest
from patholib.judge import metric_table, rules

if TYPE_CHECKING:
    from patholib.judge.rules import Shares


class Ordered(NamedTuple):
    """The scores of one class in the order that its AUC needs, for P images of the class and M others."""

    negatives: np.ndarray  # (M,) group of each other image, by rising score
    positives: np.ndarray  # (P,) group of each image of the class
    below: np.ndarray  # (P,) how many others score lower
    upto: np.ndarray  # (P,) how many others score lower or the same


@dataclass(frozen=True)
class Tally:
    """A table of N predictions, checked and counted by group: all that a resample needs."""

    classes: tuple[str, ...]
    by_threshold: bool  # whether a threshold decides between two classes
    positive: int | None  # index of the positive class
    labels: np.ndarray  # (N,) index of the true class
    probs: np.ndarray  # (N, C)
    predicted: np.ndarray  # (N,) index of the predicted class
    confusion: np.ndarray  # (C, C) images by true and predicted class
    groups: int  # G
    groups_of_class: np.ndarray  # (C,) groups that have an image of each class
    groups_of_rest: np.ndarray  # (C,) groups that have an image of another class
    sums: np.ndarray  # (G, C * C + I) by group: images by true and predicted class, sums of the I scores of images
    ordered: list[Ordered]  # of each class; of two classes one alone, as both have the same AUC


def decide(
    predictions: pd.DataFrame, classes: Sequence[str], positive: str | None = None, threshold: float | Shares = 0.5
) -> np.ndarray:
    """The predicted class of each image, (N,) text; threshold and errors as of `rules.predicted` and `tally`."""
    counted = tally(predictions, classes, positive, threshold)
    return np.array(counted.classes, dtype=object)[counted.predicted]


def tally(predictions: pd.DataFrame, classes: Sequence[str], positive: str | None, threshold: float | Shares) -> Tally:
    """Checks a table of predictions and counts it by group.

    Errors: missing_column, unknown_class, no_predictions, bad_probabilities, bad_threshold.
    """
    classes = tuple(classes)
    labels, probs = _checked(predictions, classes, positive)
    k = classes.index(positive) if positive is not None else None
    by_threshold = rules.uses_threshold(classes, positive, threshold)
    predicted = rules.predicted(probs, classes, positive, threshold)
    groups, names = pd.factorize(predictions["group"].astype(str), sort=True)  # sorted: row order changes no draw
    n_classes = len(classes)
    confusion = np.zeros((len(names), n_classes**2))
    np.add.at(confusion, (groups, labels * n_classes + predicted), 1)
    scores = [np.bincount(groups, m.formula(labels, probs)) for m in metric_table.of_kind("image")]
    ranked = [k if by_threshold else 1] if n_classes == 2 else range(n_classes)
    return Tally(
        classes=classes,
        by_threshold=by_threshold,
        positive=k,
        labels=labels,
        probs=probs,
        predicted=predicted,
        confusion=confusion.sum(axis=0).astype(int).reshape(n_classes, n_classes),
        groups=len(names),
        groups_of_class=np.array([len(np.unique(groups[labels == c])) for c in range(n_classes)]),
        groups_of_rest=np.array([len(np.unique(groups[labels != c])) for c in range(n_classes)]),
        sums=np.column_stack([confusion, *scores]),
        ordered=[order_scores(labels == c, probs[:, c], groups) for c in ranked],
    )


def _checked(
    predictions: pd.DataFrame, classes: tuple[str, ...], positive: str | None
) -> tuple[np.ndarray, np.ndarray]:
    """The index of each true class (N,) and the probabilities (N, C) of a table that can be judged."""
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
    probs = predictions[columns].to_numpy(dtype=float)
    wrong = np.flatnonzero(~(np.abs(probs.sum(axis=1) - 1) < 1e-6) | (probs < 0).any(axis=1))  # not <: NaN is wrong
    if len(wrong):
        raise PathoError(
            "bad_probabilities",
            f"row {wrong[0]} of the predictions",
            f"has {probs[wrong[0]].tolist()}, no probabilities that sum to 1 ({len(wrong)} such rows)",
            "Predict again",
        )
    return labels, probs


def need(table: pd.DataFrame, columns: list[str]) -> None:
    """Refuses a table of predictions without one of these columns. Errors: missing_column."""
    for column in columns:
        if column not in table:
            raise PathoError(
                "missing_column", str(column), "is no column of the predictions", nearest(column, table.columns)
            )


def values(counted: Tally, counts: np.ndarray) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Every metric if group g is drawn counts[r, g] times, counts (R, G): of a summary (R,) and of the classes (R, C).

    NaN where a metric is undefined. Metrics of kind "once" are left out: see `once`.
    """
    n_classes = len(counted.classes)
    sums = counts @ counted.sums  # (R, C * C + I)
    aucs = [weighted_auc(counts, ordered) for ordered in counted.ordered]
    n = metric_table.Counts(
        confusion=sums[:, : n_classes**2].reshape(-1, n_classes, n_classes),
        aucs=np.stack(aucs * 2 if n_classes == 2 else aucs, axis=1),
        occurs=counted.confusion.sum(axis=1) > 0,
    )
    scores = dict(zip((m.name for m in metric_table.of_kind("image")), sums.T[n_classes**2 :], strict=True))
    with np.errstate(invalid="ignore", divide="ignore"):  # 0/0 is NaN on purpose: undefined
        of_classes = {m.name: m.formula(n) for m in metric_table.of_kind("class")}
        overall = {}
        for m in metric_table.of_summary(counted.by_threshold):
            if m.kind == "overall":
                overall[m.name] = m.formula(n)
            elif m.kind == "mean":
                overall[m.name] = _mean_of_classes(m.formula(n), n)
            elif m.kind == "class":
                overall[m.name] = of_classes[m.name][:, counted.positive]
            elif m.kind == "image":
                overall[m.name] = scores[m.name] / n.images
    return overall, of_classes


def once(counted: Tally) -> dict[str, float]:
    """The metrics that are not resampled: where a threshold decides those of the positive class."""
    positive = counted.positive if counted.by_threshold else None
    return {m.name: m.formula(counted.labels, counted.probs, positive) for m in metric_table.of_kind("once")}


def _mean_of_classes(values_of_classes: np.ndarray, n: metric_table.Counts) -> np.ndarray:
    """The mean (R,) over the classes that occur; NaN where a resample lost one of them, or where only one occurs."""
    known = np.where(n.support > 0, values_of_classes, np.nan)[:, n.occurs]  # of fewer it would be another quantity
    return known.mean(axis=1) if n.occurs.sum() > 1 else np.full(len(known), np.nan)


def order_scores(positive: np.ndarray, scores: np.ndarray, groups: np.ndarray) -> Ordered:
    """The order that `weighted_auc` needs. positive (N,): bool, of the class; groups (N,): index of the group."""
    order = np.argsort(scores[~positive], kind="stable")
    negatives = scores[~positive][order]
    below, upto = (np.searchsorted(negatives, scores[positive], side) for side in ("left", "right"))
    return Ordered(groups[~positive][order], groups[positive], below, upto)


def weighted_auc(counts: np.ndarray, ordered: Ordered) -> np.ndarray:
    """(R,) AUC if group g is drawn counts[r, g] times: the Mann-Whitney statistic over sorted, weighted counts."""
    counts = counts.astype(np.float32)  # half the memory to walk through; whole numbers, exact up to 16 million images
    beaten = np.zeros((len(counts), len(ordered.negatives) + 1), np.float32)
    np.cumsum(counts.take(ordered.negatives, axis=1), axis=1, out=beaten[:, 1:])
    weights = counts.take(ordered.positives, axis=1)
    twice = beaten.take(ordered.below, axis=1)  # a tie counts half
    twice += beaten.take(ordered.upto, axis=1)
    won = np.einsum("rp,rp->r", weights, twice, dtype=np.float64) / 2
    with np.errstate(invalid="ignore"):
        return won / (weights.sum(axis=1, dtype=np.float64) * beaten[:, -1])
