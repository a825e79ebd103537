"""Decision rules: from probabilities to the predicted class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from patholib.base.errors import PathoError

Shares = Mapping[str, float]  # of all images, by class: the prior that the probabilities were learnt with
RULES = {
    "likeliest": "largest probability",  # by the value of the recipe's field `decide`
    "even": "largest probability over the share of the class",
}


def predicted(
    probs: np.ndarray, classes: Sequence[str], positive: str | None = None, threshold: float | Shares = 0.5
) -> np.ndarray:
    """The index of the predicted class for each row of probs (N, C), (N,); of equal ones the class named first.

    threshold: a number decides between two classes where one is `positive` (p >= threshold); in all other cases the
    largest probability decides. Or the share of every class, above 0, by name: then the largest p / share decides,
    which is the likeliest class if all were equally common. Where the probabilities are right and the shares are those
    they were learnt from, no rule has a higher balanced accuracy (Menon et al. 2021). Errors: bad_threshold.
    """
    classes = tuple(classes)
    if isinstance(threshold, Mapping):
        return prior_corrected(probs, classes, threshold).argmax(axis=1)
    if not 0 <= threshold <= 1:
        raise PathoError("bad_threshold", f"threshold={threshold}", "is outside [0, 1]", "Give a probability")
    if uses_threshold(classes, positive, threshold):
        k = classes.index(positive)
        return np.where(probs[:, k] >= threshold, k, 1 - k)
    return probs.argmax(axis=1)


def uses_threshold(classes: Sequence[str], positive: str | None, threshold: float | Shares) -> bool:
    """Whether a threshold decides: between two classes, one of them `positive`."""
    return positive is not None and len(classes) == 2 and not isinstance(threshold, Mapping)


def in_words(classes: Sequence[str], positive: str | None, threshold: float | Shares) -> str:
    """The rule of `predicted` for people."""
    if uses_threshold(classes, positive, threshold):
        return f"p_{positive} >= {threshold:g}"
    return RULES["even" if isinstance(threshold, Mapping) else "likeliest"]


def prior_corrected(probs: np.ndarray, classes: Sequence[str], threshold: float | Shares) -> np.ndarray:
    """The probabilities (N, C) if all classes were equally common: over their shares, scaled to sum 1.

    Without shares (threshold is a number) they are returned as they are. Errors: bad_threshold.
    """
    if not isinstance(threshold, Mapping):
        return probs
    if threshold.keys() != set(classes) or not all(0 < share < np.inf for share in threshold.values()):
        raise PathoError(
            "bad_threshold",
            f"shares={dict(threshold)}",
            f"are no number above 0 for each of {', '.join(classes)}",
            "Give the share of every class",
        )
    ratios = probs / [threshold[name] for name in classes]
    return ratios / ratios.sum(axis=1, keepdims=True)


def margin(
    probs: np.ndarray, classes: Sequence[str], positive: str | None = None, threshold: float | Shares = 0.5
) -> np.ndarray:
    """How far each prediction is from another class, (N,): distance to the threshold, or between the two largest."""
    if uses_threshold(classes, positive, threshold):
        k = tuple(classes).index(positive)
        return np.abs(probs[:, k] - threshold)
    ranked = np.sort(prior_corrected(probs, classes, threshold), axis=1)
    return ranked[:, -1] - ranked[:, -2]
