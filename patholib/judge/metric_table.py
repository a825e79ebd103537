"""The table of metrics: numbers, order, words and directions everywhere in the library are taken from it.

To add a metric, add one entry to METRICS and one line to REFERENCES in tests/judge/test_metric_table.py. It then
appears, with its interval, in metrics.json, the tables of the notebooks, the report, the model card and the comparison.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from patholib.judge import calibration

ONE_CLASS = "only one class among the labels"


@dataclass(frozen=True)
class Counts:
    """What a formula may use: images counted in R tables (all groups, then without each), for C classes."""

    confusion: np.ndarray  # (R, C, C) images by true and predicted class
    aucs: np.ndarray  # (R, C) AUC of each class against the rest
    occurs: np.ndarray  # (C,) bool: whether the class has images in the first table

    @cached_property
    def right(self) -> np.ndarray:
        """(R, C) images of each class that are predicted as it."""
        return self.confusion.diagonal(axis1=1, axis2=2)

    @cached_property
    def support(self) -> np.ndarray:
        """(R, C) images of each class."""
        return self.confusion.sum(axis=2)

    @cached_property
    def predicted(self) -> np.ndarray:
        """(R, C) images predicted as each class."""
        return self.confusion.sum(axis=1)

    @cached_property
    def images(self) -> np.ndarray:
        """(R,) all images."""
        return self.support.sum(axis=1)


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One metric: how it is computed, where it is shown and how it is called.

    kind says what `formula` takes and gives; NaN where it is undefined, for the reason `undefined`:
    "overall": Counts -> (R,), one number of all images;
    "mean": Counts -> (R, C), of which the mean over the classes that occur is the metric;
    "class": Counts -> (R, C), one number of each class against the rest;
    "image": labels (N,), probabilities (N, C) -> (N,), of which the mean over all images is the metric;
    "once": labels (N,), probabilities (N, C), index of the positive class or None -> float, without interval.
    The first three are shares, from 0 to 1: their intervals stay within.
    """

    name: str  # the key in metrics.json
    words: str  # what people call it
    meaning: str  # one phrase for the documentation
    kind: Literal["overall", "mean", "class", "image", "once"]
    formula: Callable
    better: Literal["higher", "lower"] = "higher"
    undefined: str = ""  # the reason where there is no value; empty: there always is one
    no_interval: str = ""  # the reason why there is no interval, of kind "once"
    by_chance: Callable | None = None  # what it is by chance alone, of kind "once"; takes what `formula` does
    places: tuple[str, ...] = ("classes", "positive")  # of kind "class": where it is shown, see PLACES
    rests_on: tuple[str, ...] = ("class", "rest")  # of kinds "class" and "mean": whose groups give its interval
    among: Literal["", "predicted", "passed"] = ""  # only images predicted (or not) as the class count
    from_probabilities: bool = False  # whether it is of the probabilities, not of the predicted classes
    headline: bool = False  # whether it is one of the few numbers of every subgroup
    same_as: str = ""  # the metric that always has the same value: this one is in metrics.json but in no table


PLACES = {  # in words
    "classes": "per class",
    "positive": "positive class of two, at the threshold",
    "alert": "alert",
    "report": "classification report",
}


def _precision(n: Counts) -> np.ndarray:
    return n.right / n.predicted


def _sensitivity(n: Counts) -> np.ndarray:
    return n.right / n.support


def _specificity(n: Counts) -> np.ndarray:
    others = n.images[:, None] - n.support
    return (others - n.predicted + n.right) / others


def _negative_predictive_value(n: Counts) -> np.ndarray:
    others = n.images[:, None] - n.predicted
    return (others - n.support + n.right) / others


def _f1(n: Counts) -> np.ndarray:
    return 2 * n.right / (n.support + n.predicted)


def _precision_or_zero(n: Counts) -> np.ndarray:
    """A class that is never predicted has no precision; in the mean it counts 0, else to ignore a class would pay."""
    return np.where(n.predicted > 0, _precision(n), 0.0)


def _log_loss(labels: np.ndarray, probs: np.ndarray) -> np.ndarray:
    own = probs[np.arange(len(labels)), labels]
    return -np.log(np.maximum(own, np.finfo(float).eps))  # one rounding error from 0 must not cost infinity


def _brier(labels: np.ndarray, probs: np.ndarray) -> np.ndarray:
    """Two classes: (p - y)^2 of one of them; more: the sum over the classes (Brier 1950)."""
    n_classes = probs.shape[1]
    squares = ((probs - np.eye(n_classes)[labels]) ** 2).sum(axis=1)
    return squares / 2 if n_classes == 2 else squares


METRICS = (  # in the order in which people read them
    Metric(
        name="accuracy",
        words="accuracy",
        meaning="share of the images whose predicted class is the true one",
        kind="overall",
        formula=lambda n: n.right.sum(axis=1) / n.images,
        headline=True,
    ),
    Metric(
        name="balanced_accuracy",
        words="balanced accuracy",
        meaning="mean of the sensitivities of all classes",
        kind="mean",
        formula=_sensitivity,
        undefined=ONE_CLASS,
        rests_on=("class",),
        headline=True,
    ),
    Metric(
        name="auc",
        words="AUC",
        meaning="mean over the classes of the area under the ROC curve against the rest",
        kind="mean",
        formula=lambda n: n.aucs,
        undefined=ONE_CLASS,
        from_probabilities=True,
        headline=True,
    ),
    Metric(
        name="auc",
        words="AUC",
        meaning="chance that an image of the class has a higher probability for it than "
        "another image, ties counting half",
        kind="class",
        formula=lambda n: n.aucs,
        from_probabilities=True,
        undefined="needs images of this class and of another",
        places=("classes",),
    ),
    Metric(
        name="sensitivity",
        words="sensitivity",
        meaning="share of the images of the class that are predicted as it (recall)",
        kind="class",
        formula=_sensitivity,
        undefined="no image is of this class",
        rests_on=("class",),
        headline=True,
        places=("classes", "positive", "alert", "report"),
    ),
    Metric(
        name="specificity",
        words="specificity",
        meaning="share of the other images that are not predicted as it",
        kind="class",
        formula=_specificity,
        undefined="every image is of this class",
        rests_on=("rest",),
        headline=True,
        places=("classes", "positive", "alert"),
    ),
    Metric(
        name="precision",
        words="precision",
        meaning="share of the images predicted as the class that are of it",
        kind="class",
        formula=_precision,
        undefined="no image is predicted as this class",
        among="predicted",
        places=("classes", "positive", "report"),
    ),
    Metric(
        name="f1",
        words="F1",
        meaning="harmonic mean of precision and sensitivity",
        kind="class",
        formula=_f1,
        undefined="no image is of this class or predicted as it",
        places=("classes", "positive", "report"),
    ),
    Metric(
        name="macro_precision",
        words="macro precision",
        meaning="mean of the precisions of all classes, 0 for a class that is never predicted",
        kind="mean",
        formula=_precision_or_zero,
        undefined=ONE_CLASS,
    ),
    Metric(
        name="macro_sensitivity",
        words="macro sensitivity",
        meaning="mean of the sensitivities of all classes",
        kind="mean",
        formula=_sensitivity,
        undefined=ONE_CLASS,
        rests_on=("class",),
        same_as="balanced_accuracy",
    ),
    Metric(
        name="macro_specificity",
        words="macro specificity",
        meaning="mean of the specificities of all classes",
        kind="mean",
        formula=_specificity,
        undefined=ONE_CLASS,
        rests_on=("rest",),
    ),
    Metric(
        name="macro_f1",
        words="macro F1",
        meaning="mean of the F1 scores of all classes",
        kind="mean",
        formula=_f1,
        undefined=ONE_CLASS,
    ),
    Metric(
        name="log_loss",
        words="log loss",
        meaning="mean of minus the logarithm of the probability of the true class",
        kind="image",
        formula=_log_loss,
        better="lower",
        from_probabilities=True,
    ),
    Metric(
        name="brier",
        words="Brier score",
        meaning="mean squared distance of the probabilities from the truth",
        kind="image",
        formula=_brier,
        better="lower",
        from_probabilities=True,
    ),
    Metric(
        name="ece",
        words="calibration error",
        meaning=f"mean distance of confidence and accuracy over {calibration.BINS} bins of equally many images",
        kind="once",
        better="lower",
        from_probabilities=True,
        formula=lambda labels, probs, positive: calibration.ece(labels, probs, of=positive),
        no_interval="a mean of distances is never negative: chance alone makes it larger than the truth",
        by_chance=lambda labels, probs, positive: calibration.ece_by_chance(probs, of=positive),
    ),
    Metric(
        name="ppv",
        words="positive predictive value",
        meaning="share of the images that raise the alert that are of the class",
        kind="class",
        formula=_precision,
        undefined="no image raises the alert",
        among="predicted",
        places=("alert",),
    ),
    Metric(
        name="npv",
        words="negative predictive value",
        meaning="share of the images that raise no alert that are not of the class",
        kind="class",
        formula=_negative_predictive_value,
        undefined="every image raises the alert",
        among="passed",
        places=("alert",),
    ),
)


@dataclass(frozen=True)
class OfCalibration:
    """One number beside the metrics, given before and after calibration, without an interval.

    formula: labels (N,), probabilities (N, C), index of the class whose probabilities the diagram shows (None: those of
    the predicted classes), index of the positive class or None -> float, NaN where it is undefined.
    """

    name: str
    words: str
    meaning: str
    formula: Callable


CALIBRATION = (
    OfCalibration(
        "ece_mass",
        "calibration error",
        "as `ece`, which the diagram shows",
        lambda labels, probs, of, positive: calibration.ece(labels, probs, of=of),
    ),
    OfCalibration(
        "ece_chance",
        "calibration error by chance",
        "what it would be on average if the labels were drawn from the probabilities",
        lambda labels, probs, of, positive: calibration.ece_by_chance(probs, of=of),
    ),
    OfCalibration(
        "classwise_ece",
        "class-wise calibration error",
        "mean over the classes of the calibration error of each one's probability",
        lambda labels, probs, of, positive: calibration.classwise_ece(labels, probs),
    ),
    OfCalibration(
        "intercept",
        "calibration intercept",
        "what the log odds of the positive class lack on average; 0 if calibrated, above 0 if they are too low",
        lambda labels, probs, of, positive: (
            np.nan if positive is None else calibration.intercept(labels, probs, positive)
        ),
    ),
    OfCalibration(
        "slope",
        "calibration slope",
        "factor of the log odds of the positive class; 1 if calibrated, below 1 if they are too extreme",
        lambda labels, probs, of, positive: np.nan if positive is None else calibration.slope(labels, probs, positive),
    ),
    *(
        OfCalibration(
            m.name, m.words, m.meaning, lambda labels, probs, of, positive, m=m: m.formula(labels, probs).mean()
        )
        for m in METRICS
        if m.kind == "image"
    ),
)


def of_calibration(classes: int) -> tuple[str, ...]:
    """The names of CALIBRATION that a table shows; of two classes the class-wise error repeats that of the diagram."""
    return tuple(one.name for one in CALIBRATION if classes > 2 or one.name != "classwise_ece")


WORDS = {one.name: one.words for one in CALIBRATION} | {metric.name: metric.words for metric in METRICS}
LOWER_IS_BETTER = tuple(metric.name for metric in METRICS if metric.better == "lower")


def words(name: str) -> str:
    """What people call a number of metrics.json; of an unknown one its name with spaces."""
    return WORDS.get(name, name.replace("_", " "))


def ordered(names: Iterable[str], two_classes: bool = False) -> list[str]:
    """The names in the order of the table; those that are not in it come last, so that none is lost.

    two_classes: leaves out the means over both classes that repeat the numbers of the positive class.
    """
    names = list(dict.fromkeys(names))
    return [name for name in order(2 if two_classes else None) if name in names] + [
        name for name in names if name not in WORDS
    ]


def lower_is_better(name: str) -> bool:
    """Whether a lower value is better; of an unknown number a higher one is assumed to be."""
    return name in LOWER_IS_BETTER


def of_kind(*kinds: str) -> tuple[Metric, ...]:
    """The metrics of these kinds, in order."""
    return tuple(metric for metric in METRICS if metric.kind in kinds)


def of_classes(place: str) -> tuple[Metric, ...]:
    """The metrics of single classes that are shown in one of PLACES, in order."""
    return tuple(metric for metric in of_kind("class") if place in metric.places)


def of_summary(by_threshold: bool) -> tuple[Metric, ...]:
    """The metrics in "metrics" of a summary; by_threshold: whether a threshold decides between two classes."""
    return tuple(m for m in METRICS if m.kind != "class" or (by_threshold and "positive" in m.places))


def order(classes: int | None = None) -> tuple[str, ...]:
    """The names of a summary's metrics that a table shows, in its order.

    classes: how many there are. Of two, means over both are left out except the headline ones: they say again what the
    numbers of the positive class say. None leaves out none of them.
    """
    return tuple(
        m.name
        for m in of_summary(by_threshold=True)
        if not m.same_as and (classes != 2 or m.kind != "mean" or m.headline)
    )


def headline(by_threshold: bool = True) -> tuple[str, ...]:
    """The names of the numbers that every subgroup has."""
    return tuple(m.name for m in of_summary(by_threshold) if m.headline)


def from_probabilities() -> tuple[str, ...]:
    """The names of a summary's metrics that no threshold changes."""
    return tuple(m.name for m in of_summary(by_threshold=True) if m.from_probabilities)
