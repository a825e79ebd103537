"""Calibration: prior correction, bias-corrected temperature scaling, reliability diagrams and calibration errors.

A network is overconfident if it is right for 80 of 100 images to which it gives 95 %. Dividing its logits by one
number, fitted on the validation images, corrects most of that (Guo et al. 2017). It cannot correct a prior: training
with class weights, a sampler or adjusted logits gives the probabilities of another mix of classes, which is divided out
before (Saerens et al. 2002). What is left is one bias per class (Alexandari et al. 2020).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from patholib.base.errors import PathoError
from patholib.judge import intervals
from patholib.judge.intervals import Estimate

BINS = 15  # as in Guo et al. 2017
# Normal priors around no change; the likelihood counts groups and not images, as images of a patient are alike. In a
# simulation (`tests/judge/coverage/test_calibration_priors.py`) of five networks that were wrong in different ways, the
# mean excess of log loss was 0.025 with 3 + 7 validation patients, 0.021 with 5 + 11 and 0.002 with 90 + 200. Of a
# temperature alone it was 0.037, 0.032 and 0.019, of a free temperature and free biases 0.044, 0.028 and 0.002.
BIAS_SD, LOG_TEMPERATURE_SD = 0.5, 1.0
PRECISION = 1e-12  # of the fit, in its parameters


@dataclass(frozen=True)
class Calibration:
    """What turns a network's probabilities into calibrated ones (`apply`); the default changes nothing.

    Errors: bad_calibration.
    """

    temperature: float = 1.0
    bias: tuple[float, ...] = ()  # (C,), added to the log probabilities after the temperature; (): zeros
    correction: tuple[float, ...] = ()  # (C,) prior the network learnt over the images' own, divided out; (): ones

    def __post_init__(self):
        wrong = [f"temperature={self.temperature}"] if not 0 < self.temperature < np.inf else []
        wrong += [f"bias={self.bias}"] if not np.isfinite(self.bias).all() else []
        ratios = np.asarray(self.correction, dtype=float)
        wrong += [f"correction={self.correction}"] if not ((ratios > 0) & (ratios < np.inf)).all() else []
        if wrong:
            raise PathoError("bad_calibration", ", ".join(wrong), "is outside its range", "Lock the decision again")

    @classmethod
    def of(cls, decision: Mapping | None, classes: Sequence[str]) -> Calibration:
        """The calibration in decision.json; what it does not say changes nothing. Errors: bad_calibration."""
        found = decision or {}
        values = {name: found.get(name) or {} for name in ("bias", "correction")}
        for name, by_class in values.items():
            if by_class and by_class.keys() != set(classes):
                raise PathoError("bad_calibration", name, f"is not of the classes {', '.join(classes)}", "Lock again")
        temperature = found.get("temperature")
        return cls(
            1.0 if temperature is None else temperature,
            **{name: tuple(by_class[c] for c in classes if by_class) for name, by_class in values.items()},
        )

    def to_json(self, classes: Sequence[str]) -> dict:
        """`of` gives it back; without the parts that change nothing."""
        found: dict = {"temperature": self.temperature}
        for name in ("bias", "correction"):
            if getattr(self, name):
                found[name] = dict(zip(classes, getattr(self, name), strict=True))
        return found


def readable(decision: Mapping) -> dict[str, str]:
    """The calibration in decision.json for people, by name."""
    found = {"temperature": f"{decision.get('temperature') or 1:.4g}"}
    for name, words in (("correction", "prior correction, divided by"), ("bias", "bias")):
        if decision.get(name):
            found[words] = ", ".join(f"{c} {value:.3g}" for c, value in decision[name].items())
    return found


def apply(probs: np.ndarray, calibration: Calibration) -> np.ndarray:
    """softmax(log(probs / correction) / temperature + bias), (N, C) float64.

    The same as from logits: they differ from log probabilities by a constant in each row. The temperature keeps the
    order of the classes of an image; prior correction and biases shift each class alike in all images, so that of two
    classes the order of the images stays.
    """
    probs = np.ascontiguousarray(probs, dtype=np.float64)  # a table's columns would be summed in another order
    if calibration == Calibration():
        return probs
    logs = _corrected(probs, calibration.correction)
    scaled = (logs - logs.max(axis=1, keepdims=True)) / calibration.temperature  # the largest is 0
    if calibration.bias:
        scaled += calibration.bias
        scaled -= scaled.max(axis=1, keepdims=True)
    shares = np.exp(scaled)
    return shares / shares.sum(axis=1, keepdims=True)


def fit(
    labels: np.ndarray, probs: np.ndarray, groups: Sequence | None = None, correction: Sequence[float] = ()
) -> Calibration:
    """The most probable temperature and biases after a prior correction, see BIAS_SD.

    labels: (N,) class indices; probs: (N, C); groups: (N,), whose images are alike; None: each image its own.
    correction: see `Calibration`. Newton's method on the logarithm of the inverse temperature and the biases, which sum
    to 0. Errors: single_class, bad_scores, bad_calibration.
    """
    labels, probs = _checked(labels, probs)
    n, n_classes = probs.shape
    if len(np.unique(labels)) < 2:
        raise PathoError("single_class", "calibration", "cannot be fitted on images of one class", "Split again")
    start = Calibration(correction=tuple(correction))
    logs = _corrected(np.maximum(probs, np.finfo(float).tiny), start.correction)  # a certain mistake must not cost inf
    logs -= logs.max(axis=1, keepdims=True)
    each = (len(set(groups)) if groups is not None else n) / n  # the weight of an image
    truth, held = np.eye(n_classes)[labels], 1 / np.array([LOG_TEMPERATURE_SD, *[BIAS_SD] * n_classes]) ** 2

    def loss(found: np.ndarray) -> tuple[float, np.ndarray]:
        scaled = np.exp(found[0]) * logs + found[1:]
        scaled -= scaled.max(axis=1, keepdims=True)
        total = np.exp(scaled).sum(axis=1, keepdims=True)
        own = (scaled * truth).sum(axis=1) - np.log(total[:, 0])
        return -each * own.sum() + (held * found**2).sum() / 2, np.exp(scaled) / total

    found = np.zeros(1 + n_classes)  # log(1 / temperature), biases
    lowest, shares = loss(found)
    for _ in range(100):
        step = _newton_step(found, logs, truth, shares, each, held)
        for _ in range(40):  # halved until the loss falls
            lower, moved = loss(found - step)
            if lower <= lowest:
                break
            step = step / 2
        else:
            break
        found, lowest, shares = found - step, lower, moved
        if np.abs(step).max() < PRECISION:
            break
    bias = found[1:] - found[1:].mean()
    return Calibration(float(np.exp(-found[0])), tuple(bias.tolist()), start.correction)


def _newton_step(found, logs, truth, shares, each, held) -> np.ndarray:
    """Gradient over curvature of the loss in `fit`, (1 + C,); the curvature is that of Gauss and Newton, above 0."""
    scale = np.exp(found[0])
    slopes = np.concatenate([[((shares - truth) * logs).sum() * scale], (shares - truth).sum(axis=0)])
    mean = (shares * logs).sum(axis=1, keepdims=True)
    away = shares * (logs - mean)  # (N, C)
    curvature = np.zeros((len(found), len(found)))
    curvature[0, 0] = (away * logs).sum() * scale**2
    curvature[0, 1:] = curvature[1:, 0] = away.sum(axis=0) * scale
    curvature[1:, 1:] = np.diag(shares.sum(axis=0)) - shares.T @ shares
    step = np.linalg.solve(each * curvature + np.diag(held), each * slopes + held * found)
    return step / max(1.0, abs(step[0]))  # a longer one could overflow


def _corrected(probs: np.ndarray, correction: Sequence[float]) -> np.ndarray:
    """log(probs / correction), (N, C)."""
    with np.errstate(divide="ignore"):  # log(0) is -inf on purpose: what is impossible stays impossible
        logs = np.log(probs)
    return logs - np.log(correction) if len(correction) else logs


def reliability(labels: np.ndarray, probs: np.ndarray, bins: int = BINS, of: int | None = None) -> pd.DataFrame:
    """One row per bin that is not empty: mean `confidence`, `accuracy` (the share that is true) and `n` images.

    labels: (N,) class indices; probs: (N, C). of: index of the class whose probability counts; None: the predicted
    class of each image. Bins hold as many images each, equal values together (Nixon et al. 2019).
    """
    labels, probs = _checked(labels, probs)
    confidence, true = confident(labels, probs, of)
    place = _binned(confidence, bins)
    n = np.bincount(place, minlength=bins)
    kept = n > 0
    sums = (np.bincount(place, values, minlength=bins)[kept] for values in (confidence, true))
    return pd.DataFrame(dict(zip(("confidence", "accuracy"), (s / n[kept] for s in sums), strict=True), n=n[kept]))


def ece(labels: np.ndarray, probs: np.ndarray, bins: int = BINS, of: int | None = None) -> float:
    """The expected calibration error: the mean distance of confidence and accuracy over the bins of `reliability`.

    Compare it with `ece_by_chance`, as few images have an error even if they are perfectly calibrated.
    """
    table = reliability(labels, probs, bins, of)
    return float((table["n"] * (table["accuracy"] - table["confidence"]).abs()).sum() / table["n"].sum())


def classwise_ece(labels: np.ndarray, probs: np.ndarray, bins: int = BINS) -> float:
    """The mean over the classes of the calibration error of each one's probability (Kull et al. 2019, section 2).

    It sees a wrong prior, which the error of the largest probability (`ece`) does not.
    """
    return float(np.mean([ece(labels, probs, bins, of=k) for k in range(probs.shape[1])]))


def ece_by_chance(probs: np.ndarray, bins: int = BINS, of: int | None = None, draws: int = 100, seed: int = 0) -> float:
    """The mean calibration error that these probabilities have if the labels are drawn from them.

    A distance is never negative, so few images give an error even then. As images of a patient are correlated, the true
    value is larger.
    """
    probs = np.asarray(probs, dtype=np.float64)
    confidence = np.sort(confident(np.zeros(len(probs), int), probs, of)[0])  # so that row order changes nothing
    place = _binned(confidence, bins)
    drawn = np.random.default_rng(seed).random((draws, len(probs))) < confidence  # (D, N)
    away = (drawn - confidence) @ np.eye(bins)[place]  # (D, bins)
    return float(np.abs(away).sum(axis=1).mean() / len(probs))


def intercept(labels: np.ndarray, probs: np.ndarray, of: int) -> float:
    """Calibration in the large of class `of` against the rest: what its log odds lack, 0 if calibrated.

    a of logit P(true) = a + logit p (Cox 1958; Van Calster et al. 2019). Above 0 the class is more frequent than its
    probabilities say. NaN where no or every image is of it.
    """
    true, odds = _against_rest(labels, probs, of)
    return _logistic(np.ones((len(true), 1)), true, odds)[0] if true.any() and not true.all() else np.nan


def slope(labels: np.ndarray, probs: np.ndarray, of: int) -> float:
    """Calibration slope of class `of` against the rest: b of logit P(true) = a + b logit p, 1 if calibrated (Cox 1958).

    Below 1 the probabilities are too extreme, above 1 too moderate. NaN where no or every image is of the class, or
    where one probability separates the class from the rest: the slope is then infinite.
    """
    true, odds = _against_rest(labels, probs, of)
    if not true.any() or true.all() or odds[true].min() >= odds[~true].max() or odds[true].max() <= odds[~true].min():
        return np.nan
    return _logistic(np.column_stack([np.ones(len(true)), odds]), true, np.zeros(len(true)))[1]


def in_the_large(labels: np.ndarray, probs: np.ndarray, of: int, groups: Sequence) -> dict[str, Estimate]:
    """`intercept` and `slope` of class `of`, each with its interval over groups (N,): {"intercept", "slope"}.

    What a number is without a group comes from one step of Newton's method from that of all groups.
    """
    true, odds = _against_rest(labels, probs, of)
    group = pd.factorize(np.asarray(groups, dtype=object), sort=True)[0]
    strata = np.stack([np.bincount(group, true), np.bincount(group, ~true)])  # (2, G)
    ones, none = np.ones((len(true), 1)), np.zeros(len(true))
    found = {}
    for name, value, columns, offset in (
        ("intercept", intercept(labels, probs, of), ones, odds),
        ("slope", slope(labels, probs, of), np.column_stack([ones, odds]), none),
    ):
        left = np.zeros(strata.shape[1]) if np.isnan(value) else _without_each(columns, true, offset, group)
        found[name] = intervals.estimate(value, left, strata, "difference", "needs overlapping probabilities of both")
    return found


def _without_each(columns: np.ndarray, true: np.ndarray, offset: np.ndarray, group: np.ndarray) -> np.ndarray:
    """The last weight of `_logistic` without each group, (G,)."""
    weights = np.array(_logistic(columns, true, offset))
    p = 1 / (1 + np.exp(-(columns @ weights + offset)))
    slopes = np.zeros((group.max() + 1, len(weights)))
    curvature = np.zeros((*slopes.shape, len(weights)))
    np.add.at(slopes, group, columns * (true - p)[:, None])
    np.add.at(curvature, group, columns[:, :, None] * columns[:, None] * (p * (1 - p))[:, None, None])
    rest = curvature.sum(axis=0) - curvature + 1e-9 * np.eye(len(weights))
    return weights[-1] - np.linalg.solve(rest, slopes[..., None])[:, -1, 0]


def _against_rest(labels: np.ndarray, probs: np.ndarray, of: int) -> tuple[np.ndarray, np.ndarray]:
    """Whether each image is of the class, and its log odds, (N,) each."""
    labels, probs = _checked(labels, probs)
    p = np.clip(probs[:, of], np.finfo(float).eps, 1 - np.finfo(float).eps)
    return labels == of, np.log(p / (1 - p))


def _logistic(columns: np.ndarray, true: np.ndarray, offset: np.ndarray) -> list[float]:
    """The weights of a logistic regression of `true` (N,) on columns (N, K) beside an offset, by Newton's method."""
    found = np.zeros(columns.shape[1])
    for _ in range(50):
        p = 1 / (1 + np.exp(-(columns @ found + offset)))
        slopes, curvature = columns.T @ (true - p), (columns * (p * (1 - p))[:, None]).T @ columns
        step = np.linalg.solve(curvature + 1e-12 * np.eye(len(found)), slopes)
        found = found + step / max(1.0, np.abs(step).max())
        if np.abs(step).max() < PRECISION:
            break
    return found.tolist()


def confident(labels: np.ndarray, probs: np.ndarray, of: int | None) -> tuple[np.ndarray, np.ndarray]:
    """The confidence (N,) in class `of`, or in each predicted class, and whether that is the true one (N,)."""
    predicted = probs.argmax(axis=1) if of is None else np.full(len(probs), of)
    return probs[np.arange(len(probs)), predicted], labels == predicted


def _binned(confidence: np.ndarray, bins: int) -> np.ndarray:
    """(N,) the bin of each value, from 0, by rank; as scikit-learn's `calibration_curve(strategy="quantile")`."""
    rank = np.searchsorted(np.sort(confidence), confidence)  # a value that is a quantile belongs below it, as there
    return np.maximum((rank * bins - 1) // max(len(confidence) - 1, 1), 0)


def _checked(labels, probs) -> tuple[np.ndarray, np.ndarray]:
    labels, probs = np.asarray(labels), np.asarray(probs, dtype=np.float64)
    if probs.ndim != 2 or len(labels) != len(probs) or not len(labels):
        raise PathoError(
            "bad_scores",
            "calibration",
            f"has {len(labels)} labels for probabilities of shape {probs.shape}",
            "Pass one label and one row of probabilities per image",
        )
    return labels, probs
