"""Confidence intervals from resampling whole groups."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import pandas as pd

from patholib.base.errors import PathoError, nearest

LEVEL = 0.95  # of every interval
FEWEST_GROUPS = 10  # with fewer, a bootstrap over groups gives intervals that are too narrow, and that is said
LOST = 0.05  # share of resamples that may lack a class before an interval is given up: e^-3, three groups of a class
CHUNK = 100  # resamples worked on at once; larger ones leave the processor's cache and are slower
BLOCKS = 200  # groups are left out in at most so many blocks, for the acceleration of BCa

INTERVALS = ("percentile", "bca")


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval, in the number's own unit; None where there is no value or no interval."""

    value: float | None
    low: float | None = None
    high: float | None = None
    method: str = ""  # of the interval: "bca" or "percentile"; not part of the JSON
    missing: str = ""  # why there is no value or no interval
    note: str = ""  # what else a reader has to know

    def to_json(self) -> dict:
        """`{"value", "low", "high"}`, with "undefined" or "no_interval" (the reason) and "note" where there is one."""
        reason = {"undefined" if self.value is None else "no_interval": self.missing} if self.missing else {}
        return {
            "value": self.value,
            "low": self.low,
            "high": self.high,
            **reason,
            **({"note": self.note} if self.note else {}),
        }

    @classmethod
    def from_json(cls, number: Mapping) -> Estimate:
        """What `to_json` gave, without the method."""
        return cls(
            number.get("value"),
            number.get("low"),
            number.get("high"),
            note=number.get("note", ""),
            missing=number.get("undefined", number.get("no_interval", "")),
        )

    def text(self, digits: int = 3, sign: str = "") -> str:
        """`0.912 (0.880 to 0.940)`, "0.912 (no interval)" or "undefined"; sign="+" shows that of positive numbers."""
        if self.value is None:
            return "undefined"
        form = f"{sign}.{digits}f"
        ends = "no interval" if self.low is None or self.high is None else f"{self.low:{form}} to {self.high:{form}}"
        return f"{self.value:{form}} ({ends})"

    def __str__(self) -> str:
        return self.text()


def draws(groups: int, resamples: int, seed: int) -> Iterable[np.ndarray]:
    """How often each group is drawn: chunks (up to 100, G) of as many draws with replacement as there are groups."""
    rng = np.random.default_rng(seed)
    for start in range(0, resamples, CHUNK):
        rows = min(CHUNK, resamples - start)
        drawn = rng.integers(0, groups, (rows, groups)) + groups * np.arange(rows)[:, None]
        yield np.bincount(drawn.ravel(), minlength=rows * groups).reshape(rows, groups).astype(float)


def left_out(groups: int, interval: str) -> np.ndarray:
    """Counts (J, G) for `resampled.values`, in each row without one group or one of 200 blocks; J = 0 without BCa."""
    if interval not in INTERVALS:
        raise PathoError("bad_parameter", "interval", f"is {interval!r}", nearest(interval, INTERVALS))
    blocks = min(groups, BLOCKS) if interval == "bca" and groups > 1 else 0
    return 1.0 - (np.arange(groups) % max(blocks, 1) == np.arange(blocks)[:, None])


def estimate(
    value: float, drawn: np.ndarray, undefined: str = "", left: Sequence[float] | np.ndarray = (), groups: int = 0
) -> Estimate:
    """A value with its interval from resamples, or with the reason why there is none.

    value: NaN where it is undefined, for the reason `undefined`. drawn: (R,) its values in the resamples. left: its
    values with each group left out; where there are some the interval is BCa, else it is of percentiles. groups: how
    many the number rests on.
    """
    if np.isnan(value):
        return Estimate(None, missing=undefined)
    value, known = float(value), drawn[~np.isnan(drawn)]
    lost = len(drawn) - len(known)
    if not len(drawn):
        return Estimate(value, missing="no resamples were asked for")
    if lost > LOST * len(drawn):
        return Estimate(value, missing=f"undefined in {lost} of {len(drawn)} resamples: too few groups")
    if np.ptp(known) < 1e-12:  # all right, all wrong or one group: a width of zero would read as certainty
        return Estimate(value, missing="every resample gives the same value, which says nothing about its spread")
    shares = np.array([(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    if len(left):
        below = ((known < value).mean() + (known <= value).mean()) / 2
        if not 0 < below < 1:
            return Estimate(value, missing="every resample lies on the same side of the value")
        shares = _bca_shares(below, np.asarray(left), groups)
    low, high = np.quantile(known, shares)
    return Estimate(value, float(low), float(high), method="bca" if len(left) else "percentile")


def mean_of(
    values: Sequence[float] | np.ndarray, groups: Sequence[str] | np.ndarray, resamples: int = 1000, seed: int = 0
) -> Estimate:
    """The mean of one number per image (N,), with its interval over groups (N,).

    Of paired differences of images: whether one thing is larger than another.
    """
    codes, names = pd.factorize(np.asarray(groups, dtype=object), sort=True)  # sorted: row order changes no draw
    sums = np.stack([np.bincount(codes, np.asarray(values, dtype=float)), np.bincount(codes)], axis=1)  # (G, 2)
    parts = [counts @ sums for counts in draws(len(names), resamples, seed)]
    drawn = np.concatenate([part[:, 0] / part[:, 1] for part in parts]) if parts else np.empty(0)
    rest = sums.sum(axis=0) - sums
    left = rest[:, 0] / rest[:, 1] if len(sums) > 1 else ()
    return estimate(float(np.mean(values)), drawn, "no images", left, len(names))


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
