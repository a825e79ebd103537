"""Confidence intervals from resampling whole groups."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import NormalDist
from typing import TYPE_CHECKING

import numpy as np

from patholib.base.errors import PathoError, nearest
from patholib.judge import resampled

if TYPE_CHECKING:
    from patholib.judge.resampled import Judged

LEVEL = 0.95  # of every interval
FEWEST_GROUPS = 10  # below this a percentile bootstrap over groups is too narrow to lean on, and that is said
LOST = 0.05  # share of resamples that may lack a class before an interval is given up: e^-3, three groups of a class
CHUNK = 100  # resamples worked on at once; larger ones leave the processor's cache and are slower
BLOCKS = 200  # groups are left out in at most so many blocks, for the acceleration of BCa

INTERVALS = ("percentile", "bca")


def draws(groups: int, resamples: int, seed: int) -> Iterable[np.ndarray]:
    """How often each group is drawn: chunks (up to 100, G) of as many draws with replacement as there are groups."""
    rng = np.random.default_rng(seed)
    for start in range(0, resamples, CHUNK):
        rows = min(CHUNK, resamples - start)
        drawn = rng.integers(0, groups, (rows, groups)) + groups * np.arange(rows)[:, None]
        yield np.bincount(drawn.ravel(), minlength=rows * groups).reshape(rows, groups).astype(float)


def left_out(groups: int, interval: str) -> np.ndarray:
    """Counts (J, G) for `_values` with each group left out once or, of many, each of 200 blocks; (0, G) without BCa."""
    if interval not in INTERVALS:
        raise PathoError("bad_parameter", "interval", f"is {interval!r}", nearest(interval, INTERVALS))
    blocks = min(groups, BLOCKS) if interval == "bca" and groups > 1 else 0
    return 1.0 - (np.arange(groups) % max(blocks, 1) == np.arange(blocks)[:, None])


def resample(judged: Judged, resamples: int, seed: int) -> tuple[dict, dict]:
    """`_values` in every resample."""
    none = np.empty((0, judged.groups))
    chunks = [resampled.values(judged, counts) for counts in (none, *draws(judged.groups, resamples, seed))]
    return tuple({name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
                 for parts in zip(*chunks, strict=True))


def number(value: float, drawn: np.ndarray, reason: str, left: Sequence[float] = (), groups: int = 0) -> dict:
    """`{"value", "low", "high"}`; None with the reason beside it where there is none to give.

    left: the values with a group left out each; where there are some the interval is BCa, else of percentiles.
    groups: how many the number rests on.
    """
    number = {"value": None, "low": None, "high": None}
    if np.isnan(value):
        return {**number, "undefined": reason}
    number["value"] = float(value)
    known = drawn[~np.isnan(drawn)]
    lost = len(drawn) - len(known)
    if not len(drawn):
        return {**number, "no_interval": "no resamples were asked for"}
    if lost > LOST * len(drawn):
        return {**number, "no_interval": f"undefined in {lost} of {len(drawn)} resamples: too few groups"}
    if np.ptp(known) < 1e-12:  # all right, all wrong or one group: a width of zero would read as certainty
        return {**number, "no_interval": "every resample gives the same value, which says nothing about its spread"}
    shares = np.array([(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    if len(left):
        below = ((known < value).mean() + (known <= value).mean()) / 2
        if not 0 < below < 1:
            return {**number, "no_interval": "every resample lies on the same side of the value"}
        shares = _bca_shares(below, np.asarray(left), groups)
    low, high = np.quantile(known, shares)
    return {**number, "low": float(low), "high": float(high)}


def without_interval(ece: float) -> dict:
    """The expected calibration error, of which a resample is always larger than it should be."""
    return {"value": float(ece), "low": None, "high": None,
            "no_interval": "a mean of distances is never negative, and resampling adds to it"}


def _bca_shares(below: float, left: np.ndarray, groups: int) -> np.ndarray:
    """Which quantiles of the resamples end a BCa interval (Efron 1987): moved by bias and by acceleration.

    below: the share of the resamples below the value; left: the values with each group left out. Few groups scatter
    too little in their resamples: the ends lie where Student's distribution has them (Hesterberg 2015).
    """
    normal, left = NormalDist(), left[~np.isnan(left)]
    away = left.mean() - left if len(left) else left
    spread = (away**2).sum()
    acceleration = (away**3).sum() / (6 * spread**1.5) if spread > 0 else 0.0
    bias, z, freedom = normal.inv_cdf(below), normal.inv_cdf((1 + LEVEL) / 2), max(groups - 1, 1)
    # Student's quantile by Cornish and Fisher: within 1 % from 6 groups on.
    t = z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
    ends = bias + np.array([-1, 1]) * t * np.sqrt((freedom + 1) / freedom)
    return np.array([normal.cdf(end) for end in bias + ends / (1 - acceleration * ends)])
