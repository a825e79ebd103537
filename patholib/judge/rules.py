"""Decision rules: from probabilities to the predicted class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from patholib.base.errors import PathoError

Shares = Mapping[str, float]  # of all images, by class
RULES = {"likeliest": "largest probability",  # how `called` decides where no threshold does, for people
         "even": "largest probability over the share of the class"}


def called(probs: np.ndarray, classes: Sequence[str], positive: str | None = None,
           threshold: float | Shares = 0.5) -> np.ndarray:
    """The place of the class that each row of probs (N, C) is called, (N,); of equal ones the class named first.

    threshold: a number, which tells two classes apart where one is `positive` (p >= threshold), while the largest
    probability decides otherwise; or the share of every class, above 0, by name: then the largest p / share decides,
    which is the likeliest class if all were equally common. Where the probabilities are right and the shares are those
    they were learnt from, no rule has a higher balanced accuracy (Menon et al. 2021). Errors: bad_threshold.
    """
    classes = tuple(classes)
    if isinstance(threshold, Mapping):
        return evened(probs, classes, threshold).argmax(axis=1)
    if not 0 <= threshold <= 1:
        raise PathoError("bad_threshold", f"threshold={threshold}", "is outside [0, 1]", "Give a probability")
    if divides(classes, positive, threshold):
        k = classes.index(positive)
        return np.where(probs[:, k] >= threshold, k, 1 - k)
    return probs.argmax(axis=1)


def divides(classes: Sequence[str], positive: str | None, threshold: float | Shares) -> bool:
    """Whether a threshold tells two classes apart, one of them `positive`."""
    return positive is not None and len(classes) == 2 and not isinstance(threshold, Mapping)


def evened(probs: np.ndarray, classes: Sequence[str], threshold: float | Shares) -> np.ndarray:
    """What `called` compares: probs (N, C) over the shares, scaled to sum 1; as they are without shares.

    Errors: bad_threshold.
    """
    if not isinstance(threshold, Mapping):
        return probs
    if threshold.keys() != set(classes) or not all(0 < share < np.inf for share in threshold.values()):
        raise PathoError("bad_threshold", f"shares={dict(threshold)}", "are no number above 0 for each of "
                         f"{', '.join(classes)}", "Give the share of every class")
    found = probs / [threshold[name] for name in classes]
    return found / found.sum(axis=1, keepdims=True)


def margin(probs: np.ndarray, classes: Sequence[str], positive: str | None = None,
           threshold: float | Shares = 0.5) -> np.ndarray:
    """How far what `called` says is from turning, (N,): the distance to the threshold, or between the two largest."""
    if divides(classes, positive, threshold):
        return np.abs(probs[:, list(classes).index(positive)] - threshold)
    ranked = np.sort(evened(probs, classes, threshold), axis=1)
    return ranked[:, -1] - ranked[:, -2]
