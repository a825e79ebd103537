"""Calibration: temperature scaling, reliability diagrams and the expected calibration error.

A network is overconfident if it is right for 80 of 100 images to which it gives 95 %. Dividing its logits by one
number, fitted on the validation images, corrects most of that and keeps the order of the classes (Guo et al. 2017).
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from patholib.base.errors import PathoError, nearest

BINS = 15  # as in Guo et al. 2017
FEWEST_IMAGES = 20  # with fewer a temperature fits noise
COLDEST, HOTTEST = 0.05, 20.0  # the range in which the temperature is sought


def apply(probs: np.ndarray, temperature: float) -> np.ndarray:
    """softmax(log(probs) / temperature), (N, C) float64: less confident above 1, more below 1, unchanged at 1.

    The same as the softmax of logits over the temperature: logits and log probabilities differ by a constant in each
    row. The order of the classes of an image stays. Errors: bad_temperature.
    """
    if not (np.isfinite(temperature) and temperature > 0):
        raise PathoError("bad_temperature", f"temperature={temperature}", "is no number above 0", "Fit it again")
    probs = np.ascontiguousarray(probs, dtype=np.float64)  # a table's columns would be summed in another order
    if temperature == 1:
        return probs
    scaled = (_logs(probs) - _logs(probs.max(axis=1, keepdims=True))) / temperature  # the largest is 0
    shares = np.exp(scaled)
    return shares / shares.sum(axis=1, keepdims=True)


def fit(labels: np.ndarray, probs: np.ndarray) -> float:
    """The temperature with the highest likelihood of the labels, between 0.05 and 20.

    labels: (N,) class indices; probs: (N, C). The mean negative log-likelihood is convex in 1 / temperature, so its
    slope has one zero, which is found by bisection. Errors: too_few, single_class; always_right: where no image is
    predicted wrongly the best temperature would be 0.
    """
    labels, probs = _checked(labels, probs)
    if len(labels) < FEWEST_IMAGES:
        raise PathoError(
            "too_few",
            "temperature",
            f"cannot be fitted on {len(labels)} images (at least {FEWEST_IMAGES})",
            "Give the validation part more images (fractions)",
        )
    if len(np.unique(labels)) < 2:
        raise PathoError("single_class", "temperature", "cannot be fitted on images of one class", "Split again")
    logs = np.maximum(_logs(probs), np.log(np.finfo(float).tiny))  # a certain mistake must not cost infinity
    logs -= logs.max(axis=1, keepdims=True)
    own = logs[np.arange(len(labels)), labels]
    if not own.any():
        raise PathoError(
            "always_right",
            "temperature",
            "cannot be fitted where every image is predicted rightly",
            "Give the validation part more images (fractions)",
        )

    def slope(inverse: float) -> float:
        shares = np.exp(inverse * logs)
        return float(((shares * logs).sum(axis=1) / shares.sum(axis=1) - own).mean())

    low, high = -np.log(HOTTEST), -np.log(COLDEST)  # of log(1 / temperature); the slope rises from low to high
    for _ in range(60):  # 6.0 / 2^60 is below what a float64 can tell apart
        middle = (low + high) / 2
        low, high = (middle, high) if slope(np.exp(middle)) < 0 else (low, middle)
    return float(np.exp(-(low + high) / 2))


def reliability(
    labels: np.ndarray, probs: np.ndarray, bins: int = BINS, by: str = "mass", of: int | None = None
) -> pd.DataFrame:
    """One row per bin that is not empty: mean `confidence`, `accuracy` (the share that is true) and `n` images.

    labels: (N,) class indices; probs: (N, C). of: index of the class whose probability counts; None: the predicted
    class of each image. by: "mass" for bins of as many images each, equal values together (Nixon et al. 2019), "width"
    for bins of equal width (Naeini et al. 2015). Errors: bad_parameter.
    """
    labels, probs = _checked(labels, probs)
    confidence, true = confident(labels, probs, of)
    place = binned(confidence, bins, by)
    n = np.bincount(place, minlength=bins)
    kept = n > 0
    sums = (np.bincount(place, values, minlength=bins)[kept] for values in (confidence, true))
    return pd.DataFrame(dict(zip(("confidence", "accuracy"), (s / n[kept] for s in sums), strict=True), n=n[kept]))


def ece(labels: np.ndarray, probs: np.ndarray, bins: int = BINS, by: str = "mass", of: int | None = None) -> float:
    """The expected calibration error: the mean distance of confidence and accuracy over the bins of `reliability`.

    Compare it with `ece_by_chance`, as few images have an error even if they are perfectly calibrated.
    """
    table = reliability(labels, probs, bins, by, of)
    return float((table["n"] * (table["accuracy"] - table["confidence"]).abs()).sum() / table["n"].sum())


def ece_by_chance(
    probs: np.ndarray, bins: int = BINS, by: str = "mass", of: int | None = None, draws: int = 100, seed: int = 0
) -> float:
    """The mean calibration error that these probabilities have if the labels are drawn from them.

    A distance is never negative, so few images give an error even then. As images of a patient are correlated, the true
    value is larger.
    """
    probs = np.asarray(probs, dtype=np.float64)
    confidence, _ = confident(np.zeros(len(probs), int), probs, of)
    place = binned(confidence, bins, by)
    drawn = np.random.default_rng(seed).random((draws, len(probs))) < confidence  # (D, N)
    away = (drawn - confidence) @ np.eye(bins)[place]  # (D, bins)
    return float(np.abs(away).sum(axis=1).mean() / len(probs))


def confident(labels: np.ndarray, probs: np.ndarray, of: int | None) -> tuple[np.ndarray, np.ndarray]:
    """The confidence (N,) in class `of`, or in each predicted class, and whether that is the true one (N,)."""
    predicted = probs.argmax(axis=1) if of is None else np.full(len(probs), of)
    return probs[np.arange(len(probs)), predicted], labels == predicted


def binned(confidence: np.ndarray, bins: int, by: str) -> np.ndarray:
    """(N,) the bin of each value, from 0: by rank ("mass") or by value ("width"). Errors: bad_parameter."""
    if by not in ("mass", "width"):
        raise PathoError("bad_parameter", "by", f"is {by!r}", nearest(by, ("mass", "width")))
    if by == "width":  # (lower, upper], as scikit-learn's calibration_curve
        return np.searchsorted(np.linspace(0, 1, bins + 1)[1:-1], confidence)
    rank = np.searchsorted(np.sort(confidence), confidence)  # a value that is a quantile belongs below it, as there
    return np.maximum((rank * bins - 1) // max(len(confidence) - 1, 1), 0)


def _logs(probs: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):  # log(0) is -inf on purpose: what is impossible stays impossible
        return np.log(probs)


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
