"""A table of predictions counted by group, and the values of all metrics without each group at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from patholib.base.errors import PathoError, nearest
from patholib.judge import metric_table, rules

if TYPE_CHECKING:
    from patholib.judge.rules import Shares


@dataclass(frozen=True)
class Tally:
    """A table of N predictions, checked and counted by group: all that the metrics and their intervals need."""

    classes: tuple[str, ...]
    by_threshold: bool  # whether a threshold decides between two classes
    positive: int | None  # index of the positive class
    labels: np.ndarray  # (N,) index of the true class
    probs: np.ndarray  # (N, C)
    predicted: np.ndarray  # (N,) index of the predicted class
    group: np.ndarray  # (N,) index of the group
    confusion: np.ndarray  # (G, C, C) images by group, true and predicted class
    scores: np.ndarray  # (G, I) sums of the I scores of images, by group

    @property
    def groups(self) -> int:
        """How many groups there are."""
        return len(self.confusion)

    @property
    def support(self) -> np.ndarray:
        """(C,) images of each class."""
        return self.confusion.sum(axis=(0, 2))

    @cached_property
    def images_with(self) -> dict[str, np.ndarray]:
        """(C, G) images of each group: those of each class, of the rest, predicted as the class, or not ("passed")."""
        images = self.confusion.sum(axis=(1, 2))
        of_class, predicted = self.confusion.sum(axis=2).T, self.confusion.sum(axis=1).T
        return {"class": of_class, "rest": images - of_class, "predicted": predicted, "passed": images - predicted}


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
    group = pd.factorize(predictions["group"].astype(str), sort=True)[0]  # sorted: row order changes no number
    return count(classes, k, by_threshold, labels, probs, predicted, group)


def count(
    classes: tuple[str, ...],
    positive: int | None,
    by_threshold: bool,
    labels: np.ndarray,
    probs: np.ndarray,
    predicted: np.ndarray,
    group: np.ndarray,
) -> Tally:
    """The tally of arrays that need no check, as they stand in it."""
    confusion = np.zeros((int(group.max()) + 1, len(classes), len(classes)), int)
    np.add.at(confusion, (group, labels, predicted), 1)
    scores = [np.bincount(group, m.formula(labels, probs)) for m in metric_table.of_kind("image")]
    return Tally(classes, by_threshold, positive, labels, probs, predicted, group, confusion, np.stack(scores, axis=1))


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


def values(counted: Tally) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Every metric of all images and then without each group: of a summary (1 + G,) and of the classes (1 + G, C).

    NaN where a metric is undefined. Metrics of kind "once" are left out: see `once`.
    """
    confusion, scores = (_with_and_without(of_groups) for of_groups in (counted.confusion, counted.scores))
    n = metric_table.Counts(confusion=confusion, aucs=_aucs_of_classes(counted), occurs=counted.support > 0)
    sums = dict(zip((m.name for m in metric_table.of_kind("image")), scores.T, strict=True))
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
                overall[m.name] = sums[m.name] / n.images
    return overall, of_classes


def once(counted: Tally, formula: Callable) -> float:
    """A formula of labels, probabilities and positive class: the latter where a threshold decides, else None."""
    return float(formula(counted.labels, counted.probs, counted.positive if counted.by_threshold else None))


def aucs(positive: np.ndarray, scores: np.ndarray, group: np.ndarray) -> np.ndarray:
    """(1 + G,) the AUC of all images and then without each group, ties counting half; NaN where one kind is missing.

    positive (N,): bool, of the class; group (N,): index of the group. A group loses the pairs that its images of the
    class win, and those that its other images lose, less the pairs within it, which are in both (the structural
    components of DeLong et al. 1988, summed by group as by Obuchowski 1997).
    """
    groups, kind = int(group.max()) + 1, positive.astype(int)
    below = _ranks(scores, 0 * kind) - _ranks(scores, kind)  # (N,) images of the other kind that score lower
    within = _ranks(scores, group) - _ranks(scores, 2 * group + kind)  # (N,) those of the same group
    p, n = (np.bincount(group[of], minlength=groups) for of in (positive, ~positive))

    def by_group(of: np.ndarray, weights: np.ndarray) -> np.ndarray:
        return np.bincount(group[of], weights[of], minlength=groups)

    won = by_group(positive, below)
    gone = won + by_group(~positive, p.sum() - below) - by_group(positive, within)
    with np.errstate(invalid="ignore"):
        return (won.sum() - np.append(0, gone)) / ((p.sum() - np.append(0, p)) * (n.sum() - np.append(0, n)))


def _ranks(scores: np.ndarray, strata: np.ndarray) -> np.ndarray:
    """(N,) the rank of each score in its stratum, from 1; equal ones have their mean rank."""
    order = np.lexsort((scores, strata))
    score, stratum = scores[order], strata[order]
    new = np.append(True, (score[1:] != score[:-1]) | (stratum[1:] != stratum[:-1]))
    start = np.flatnonzero(new)
    size = np.diff(np.append(start, len(order)))
    ranks = np.empty(len(order))
    ranks[order] = np.repeat(start - np.searchsorted(stratum, stratum[start]) + (size + 1) / 2, size)
    return ranks


def _aucs_of_classes(counted: Tally) -> np.ndarray:
    """(1 + G, C) the AUC of each class against the rest; of two classes both have the same."""
    two, k = len(counted.classes) == 2, counted.positive if counted.by_threshold else 1
    ranked = [k, k] if two else range(len(counted.classes))
    found = {c: aucs(counted.labels == c, counted.probs[:, c], counted.group) for c in set(ranked)}
    return np.stack([found[c] for c in ranked], axis=1)


def _with_and_without(of_groups: np.ndarray) -> np.ndarray:
    """(1 + G, ...) the sum over all groups (G, ...), and the sums over all but each."""
    whole = of_groups.sum(axis=0, keepdims=True)
    return np.concatenate([whole, whole - of_groups])


def _mean_of_classes(values_of_classes: np.ndarray, n: metric_table.Counts) -> np.ndarray:
    """The mean (R,) over the classes that occur; NaN without all images of one of them, or where only one occurs."""
    known = np.where(n.support > 0, values_of_classes, np.nan)[:, n.occurs]  # of fewer it would be another quantity
    return known.mean(axis=1) if n.occurs.sum() > 1 else np.full(len(known), np.nan)
