"""Confidence intervals that treat the images of a group as one: a jackknife over groups, with Student's distribution.

The error is what leaving out each group tells (delete-one jackknife of clusters; Wolter 2007, 4.5). The degrees of
freedom are those of groups of every class concerned, so that few groups of one class count as few, and likewise groups
of which one has many of the images (`effective`). Shares from 0 to 1 have their interval on the logit scale. How often
these intervals hold the truth stands in docs/promises.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from scipy import special

LEVEL = 0.95  # of every interval
FEWEST_GROUPS = 10  # of a class; with fewer an interval is rough, and that is said
SAME = "the same without any one group, which says nothing about its spread"

Scale = Literal["share", "positive", "difference"]  # from 0 to 1; from 0 up; any number


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval, in the number's own unit; None where there is no value or no interval."""

    value: float | None
    low: float | None = None
    high: float | None = None
    missing: str = ""  # why there is no value or no interval
    note: str = ""  # what else a reader has to know
    chance: float | None = None  # what the value would be by chance alone, where that is not 0

    def to_json(self) -> dict:
        """`{"value", "low", "high"}`, with "undefined" or "no_interval" (the reason) and "note" where there is one."""
        reason = {"undefined" if self.value is None else "no_interval": self.missing} if self.missing else {}
        return {
            "value": self.value,
            "low": self.low,
            "high": self.high,
            **reason,
            **({"note": self.note} if self.note else {}),
            **({} if self.chance is None else {"chance": self.chance}),
        }

    @classmethod
    def from_json(cls, number: Mapping) -> Estimate:
        """What `to_json` gave."""
        return cls(
            number.get("value"),
            number.get("low"),
            number.get("high"),
            note=number.get("note", ""),
            missing=number.get("undefined", number.get("no_interval", "")),
            chance=number.get("chance"),
        )

    def text(self, digits: int = 3, sign: str = "") -> str:
        """`0.912 (0.880 to 0.940)`, "0.051 (0.038 by chance)", "0.912 (no interval)" or "undefined".

        sign="+" shows that of positive numbers.
        """
        if self.value is None:
            return "undefined"
        form = f"{sign}.{digits}f"
        found = "no interval" if self.chance is None else f"{self.chance:.{digits}f} by chance"
        if self.low is not None and self.high is not None:
            found = f"{self.low:{form}} to {self.high:{form}}"
        return f"{self.value:{form}} ({found})"

    def __str__(self) -> str:
        return self.text()


def estimate(
    value: float,
    left: np.ndarray,
    strata: np.ndarray,
    scale: Scale,
    undefined: str = "",
    of: int = 1,
    among: int | None = None,
    level: float = LEVEL,
) -> Estimate:
    """A value with its interval, or with the reason why there is none.

    value: NaN where it is undefined, for the reason `undefined`. left (G,): its values with each group left out.
    strata (S, G): how many images of each group it rests on, such as benign and malignant ones. of: how many
    independent shares it is the mean of. among: how many groups can be right or wrong at all; None: all.

    Shares: the hull of two intervals on the logit scale, around the value and around the value with half a group right
    and half a group wrong added (the empirical logit, Anscombe 1956), as errors of less than one group are not known
    from one sample. If all are right or all wrong, a one-sided bound over groups (Hanley & Lippman-Hand 1983).
    """
    if np.isnan(value):
        return Estimate(None, missing=undefined)
    assert scale != "share" or -1e-9 < value < 1 + 1e-9, f"a share lies between 0 and 1, and this is {value}"
    value, groups, counted = float(value), np.count_nonzero(strata, axis=1), len(left)
    if groups.min() < 2:
        return Estimate(value, missing="too few groups: fewer than two of a class say nothing about the spread")
    if np.isnan(left).any():
        return Estimate(value, missing="undefined without one of the groups: too few groups")
    weights = ((strata > 0) * (1 - 1 / groups)[:, None]).max(axis=0)
    error = float(np.sqrt((weights * (left - value) ** 2).sum()))
    if error < 1e-12:
        if scale != "share" or min(value, 1 - value) > 1e-12:
            return Estimate(value, missing=SAME)
        return _bound(value, of * min(int(groups.min()), among or counted))
    alike = effective(strata)
    half = student(alike, np.minimum(alike, groups - 1), level) * error
    if scale == "difference":
        return Estimate(value, value - half, value + half)
    if scale == "positive":
        return Estimate(value, float(value * np.exp(-half / value)), float(value * np.exp(half / value)))
    worth = of * len(alike) / (1 / alike).sum()  # as many groups would be as sure
    at = np.array([value, (worth * value + 0.5) / (worth + 1)])
    at = at[(at > 0) & (at < 1)]  # 0 and 1 have no logit
    middle, half_logit = special.logit(at), half / (at * (1 - at))
    low, high = special.expit((middle - half_logit).min()), special.expit((middle + half_logit).max())
    return Estimate(value, float(min(low, value)), float(max(high, value)))


def apart(a: Estimate, b: Estimate) -> Estimate:
    """a minus b, of two independent sets of groups, with an interval from the intervals of both.

    The distances of the ends from the two values are squared and added (Newcombe 1998; Zou & Donner 2008), so that near
    0 and 1 the interval is as lopsided as theirs.
    """
    if a.value is None or b.value is None:
        return Estimate(None, missing=a.missing if a.value is None else b.missing)
    value = a.value - b.value
    if a.low is None or a.high is None or b.low is None or b.high is None:
        return Estimate(value, missing=b.missing if a.low is not None else a.missing)
    down, up = np.hypot(a.value - a.low, b.high - b.value), np.hypot(a.high - a.value, b.value - b.low)
    return Estimate(value, float(value - down), float(value + up))


def effective(images: np.ndarray) -> np.ndarray:
    """How many groups of equal size are as sure as groups of so many images, (S, G) -> (S,); Kish 1965.

    The effective number of clusters of Carter, Schnepel & Steigerwald (2017) where images are independent. 16 groups
    are 12 if one of them has a fifth of the images and the others have as many each.
    """
    return images.sum(axis=1) ** 2 / (images**2).sum(axis=1)


def student(groups: np.ndarray, freedom: np.ndarray, level: float = LEVEL) -> float:
    """The quantile of Student's distribution for strata (S,) of so many groups, whose spread has so many degrees.

    Degrees of freedom by Satterthwaite (1946) for strata whose groups scatter alike, so that their errors are as
    1 / groups: 7 of a stratum of 8; 3.6 of 3 and 8; 18 of 10 and 10.
    """
    errors = 1 / groups
    combined = errors.sum() ** 2 / (errors**2 / freedom).sum()
    return float(special.stdtrit(combined, (1 + level) / 2))


def _bound(value: float, groups: int) -> Estimate:
    """Where so many groups are all right or all wrong: the share that would give this once in twenty times."""
    end = (1 - LEVEL) ** (1 / groups)
    low, high = (end, 1.0) if value > 0.5 else (0.0, 1 - end)
    return Estimate(value, low, high, note="all groups agree: a one-sided bound")


def mean_of(
    values: Sequence[float] | np.ndarray,
    groups: Sequence[str] | np.ndarray,
    scale: Scale = "difference",
    level: float = LEVEL,
) -> Estimate:
    """The mean of one number per image (N,), with its interval over groups (N,).

    Of paired differences of images: whether one thing is larger than another.
    """
    codes, _ = pd.factorize(np.asarray(groups, dtype=object), sort=True)
    sums = np.stack([np.bincount(codes, np.asarray(values, dtype=float)), np.bincount(codes)], axis=1)  # (G, 2)
    rest = sums.sum(axis=0) - sums
    with np.errstate(invalid="ignore"):  # without the only group nothing is left
        left = rest[:, 0] / rest[:, 1]
    return estimate(float(np.mean(values)), left, sums[None, :, 1], scale, "no images", level=level)
