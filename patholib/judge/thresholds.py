"""The choice of a threshold from validation groups: what it promises, and how far other groups would move it.

A target sensitivity is meant for new patients. The quantile of the validation images misses it: with 8 positive groups
the mean of 2,000 simulated studies is 0.93 for a target of 0.95, and 60 % of them are below it. So the default is
conformal risk control (Angelopoulos et al. 2022): the loss of a group is the share of its positive images below the
threshold, and where n groups have mean loss R, the largest threshold with (n R + 1) / (n + 1) <= 1 - target is taken.
If a new group is exchangeable with the n, its expected loss is at most 1 - target, whatever the model.

- The promise is a mean, over studies and over groups, each group counting once. One study can be below it.
- It costs specificity, less with more groups: in the same simulation 0.76 -> 0.38 with 20 groups, 0.75 -> 0.69 with 60.
  The user asked for a sensitivity, and a missed positive is the dearer error.
- n groups promise at most n / (n + 1): for 0.95 it takes 19, and with fewer only a threshold of 0 promises it. Then the
  largest threshold with R <= 1 - target is taken, which by the same theorem promises n / (n + 1) of the target. Finding
  every validation image would promise hardly more (8 groups: 0.889 for 0.844) and cost far more (specificity 0.44 for
  0.76).
- Groups on which the best epoch was chosen are not quite exchangeable with new ones.

The simulation is tests/judge/coverage/test_threshold_promise.py: AUC 0.95, half of the variance between groups.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from patholib.base.errors import PathoError
from patholib.judge import groupwise, intervals, metric_table, metrics, predicting
from patholib.judge.intervals import Estimate

RESAMPLES = 1000  # of the groups, for the interval of the threshold
ALERT_OF_PATIENTS = ("sensitivity", "specificity")  # kept of the validation patients
FEW = "validation groups with"  # how the note on a promise of few groups begins
CLOSE = 1e-9  # rounding of sums of shares


@dataclass(frozen=True)
class Chosen:
    """A threshold and what can be said of it; predicted positive is what reaches it (score >= threshold)."""

    threshold: float
    rule: str  # in words
    interval: Estimate  # of the threshold, over resamples of the groups
    promise: dict  # sensitivity, words, groups, at_most, validation (of the mean over groups); {} without a target
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict:
        """The part of decision.json that one threshold has; the notes are kept apart."""
        return {
            "threshold": self.threshold,
            "rule": self.rule,
            "threshold_interval": self.interval.to_json(),
            **({"promise": self.promise} if self.promise else {}),
        }


def decided(
    val: pd.DataFrame,
    classes: Sequence[str],
    positive: str,
    target: float,
    cost_ratio: float | None = None,
    seed: int = 0,
    even: bool = False,
) -> dict:
    """The part of decision.json about thresholds, from calibrated validation predictions: of images and of patients.

    `validation` has the metrics of the alert at the threshold. `patients` is the same for the mean probability of each
    patient; where no threshold decides (more than two classes, or `even`) there is none. 0.5 without a positive image.
    """
    images = _of_table(val, classes, positive, target, cost_ratio, "image", seed)
    if images is None:
        note = f"no validation image is {positive}: the threshold stays 0.5"
        return {"threshold": 0.5, "rule": "0.5, the default", "notes": [note]}
    if even or len(classes) > 2:
        return images
    column = predicting.patient_column(val)
    means = groupwise.by_patient(val, classes, positive, column, images["threshold"])
    patients = _of_table(means, classes, positive, target, cost_ratio, "patient", seed)
    if patients is None:
        note = f"no validation patient is {positive} in all images: patients are decided at the threshold of images"
        return images | {"notes": [*images["notes"], note]}
    notes = [*images["notes"], *patients.pop("notes")]
    return images | {"patients": {"column": column, "positive": positive, **patients}, "notes": notes}


def _of_table(table, classes, positive, target, cost_ratio, unit, seed) -> dict | None:
    """What is chosen from a table of images or of patients; None if none of them is positive."""
    true = (table["label"] == positive).to_numpy()
    if not true.any():
        return None
    found = choose(true, table[f"p_{positive}"], table["group"], positive, target, cost_ratio, unit, seed)
    numbers = metrics.alert(table, classes, positive, found.threshold)
    return {
        **found.to_json(),
        "validation": {name: numbers[name] for name in (metrics.ALERT if unit == "image" else ALERT_OF_PATIENTS)},
        "notes": list(found.notes),
    }


def in_words(decision: Mapping, alert: bool = False) -> dict[str, str]:
    """The thresholds in decision.json for people, by name; empty without one. Of older runs what they have.

    alert: the threshold of images decides no class.
    """
    if decision.get("threshold") is None:
        return {}
    name = "threshold of the alert" if alert else "threshold"
    found = _part_in_words(decision, name, "")
    if "averaged" in decision:  # of it the threshold alone: the promise is the same
        found[f"{name}, averaged views"] = _part_in_words(decision["averaged"], name, "")[name]
    if "patients" in decision:
        found |= _part_in_words(decision["patients"], "patient threshold", "patient ")
    return found


def _part_in_words(part: Mapping, name: str, of: str) -> dict[str, str]:
    found = {name: f"p_{part.get('positive')} >= {part['threshold']:.4g}"}
    interval = Estimate.from_json(part.get("threshold_interval") or {})
    if interval.low is not None:
        found[name] += f" ({interval.low:.4g} to {interval.high:.4g} in 95 % of resamples of the groups"
        found[name] += f"; {interval.note})" if interval.note else ")"
    if part.get("promise"):
        found[f"{of}promise"] = part["promise"]["words"]
        found[f"validation {of}sensitivity, mean over groups"] = metrics.readable(part["promise"]["validation"])
    numbers = part.get("validation") or {}
    return found | {f"validation {of}{metric_table.words(key)}": metrics.readable(numbers[key]) for key in numbers}


def check_target(target_sensitivity: float, cost_ratio: float | None = None) -> None:
    """Refuses a target for which no threshold can be chosen. Errors: bad_parameter."""
    if not 0 < target_sensitivity < 1:
        raise PathoError(
            "bad_parameter",
            "target_sensitivity",
            f"is {target_sensitivity}, not between 0 and 1",
            "Give a share below 1, such as 0.95",
        )
    if cost_ratio is not None and not 0 < cost_ratio < np.inf:
        raise PathoError(
            "bad_parameter",
            "cost_ratio",
            f"is {cost_ratio}, no number above 0",
            "Say how many false alarms one missed positive is worth",
        )


def choose(
    labels: np.ndarray,
    scores: np.ndarray,
    groups: np.ndarray,
    positive: str,
    target: float,
    cost_ratio: float | None = None,
    unit: str = "image",
    seed: int = 0,
) -> Chosen:
    """The threshold for a sensitivity of `target`; with a `cost_ratio` the one of the lowest cost, promising nothing.

    labels (N,): True where positive; groups (N,): whatever is drawn as one. unit: what a score is of, "image" or
    "patient". Errors: one_class, bad_scores.
    """
    labels, scores, codes = _checked(labels, scores, groups)
    if cost_ratio is not None:
        has_positive = np.bincount(codes, labels) > 0
        found, interval = _with_interval(_cheapest(labels, scores, codes, cost_ratio), has_positive, seed)
        rule = f"lowest cost on validation, a missed {positive} counting {cost_ratio:g} false alarms"
        return Chosen(found, rule, interval, {})
    scores, codes = scores[labels], pd.factorize(codes[labels])[0]
    n = int(codes.max()) + 1
    promise = promised(n, target)
    found, interval = _with_interval(_sensitive(scores, codes, promise), np.ones(n, dtype=bool), seed)
    kept = promise >= target
    of_new = f"{positive} images of a new group" if unit == "image" else f"new {positive} patients"
    if interval.low == found == scores.min():
        interval = replace(interval, note="no resample can undercut the lowest score: the lower end is too high")
    facts = {
        "sensitivity": promise,
        "words": f"on average over such studies, at least {_floor(promise)} of the {of_new} are found",
        "groups": n,
        "at_most": n / (n + 1),
        "validation": _over_groups(scores >= found, codes).to_json(),
    }
    needed = math.ceil(target / (1 - target) - CLOSE)
    note = (
        f"{FEW} {positive} {unit}s: {n}. So few cannot promise a sensitivity of {target:g} for new "
        f"groups, only a threshold of 0 could. The chosen one reaches it on the validation groups, and promises "
        f"{_floor(promise)}. A target of {_floor(n / (n + 1))} could be promised; {target:g} takes {needed} groups"
    )
    rule = f"sensitivity >= {target:g} {'for new groups' if kept else 'on the validation groups'}"
    return Chosen(found, rule, interval, facts, () if kept else (note,))


def promised(groups: int, target: float) -> float:
    """The sensitivity that the rule promises with so many groups: the target, or n / (n + 1) of it with too few."""
    at_most = groups / (groups + 1)
    return target if target <= at_most + CLOSE else target * at_most


def for_sensitivity(scores: np.ndarray, groups: np.ndarray, promise: float) -> float:
    """The largest threshold that promises this sensitivity (module docstring), a score of one of the images.

    scores, groups (P,): of the positive images alone. promise: at most n / (n + 1) for n groups. Errors: one_class,
    bad_scores.
    """
    _, scores, codes = _checked(np.ones(len(scores), dtype=bool), scores, groups)
    return float(_sensitive(scores, codes, promise)(np.ones((1, codes.max() + 1)))[0])


Rule = Callable[[np.ndarray], np.ndarray]  # the thresholds (R,) if group g is drawn counts[r, g] times, counts (R, G)


def _sensitive(scores: np.ndarray, codes: np.ndarray, promise: float) -> Rule:
    order = np.argsort(scores, kind="stable")
    share = 1 / np.bincount(codes)  # (n,) of one image among the positive ones of its group
    n, ranked, codes = len(share), scores[order], codes[order]
    allowed = 1 - promise * (n + 1) / n + CLOSE  # mean loss of the n groups: (n R + 1) / (n + 1) <= 1 - promise

    def rule(counts: np.ndarray) -> np.ndarray:
        missed = (counts * share / n)[:, codes]  # (R, P)
        below = np.cumsum(missed, axis=1) - missed  # mean loss at each score; of equal scores the first one counts
        return ranked[(below <= allowed).sum(axis=1) - 1]

    return rule


def _cheapest(labels: np.ndarray, scores: np.ndarray, codes: np.ndarray, cost_ratio: float) -> Rule:
    order = np.argsort(scores, kind="stable")
    ranked, positive, codes = scores[order], labels[order].astype(float), codes[order]
    start = np.flatnonzero(np.append(True, np.diff(ranked) > 0))  # of each run of equal scores

    def rule(counts: np.ndarray) -> np.ndarray:
        drawn = counts[:, codes]
        all_, true = (np.add.reduceat(weight, start, axis=1) for weight in (drawn, drawn * positive))
        missed = np.cumsum(true, axis=1) - true
        alarms = np.cumsum((all_ - true)[:, ::-1], axis=1)[:, ::-1]
        cost = np.where(all_ > 0, cost_ratio * missed + alarms, np.inf)
        return ranked[start][(cost <= cost.min(axis=1, keepdims=True) + CLOSE).argmax(axis=1)]

    return rule


def _with_interval(rule: Rule, has_positive: np.ndarray, seed: int) -> tuple[float, Estimate]:
    """The threshold and where 95 % of resamples of the groups put it; drawn apart are those with a positive image."""
    found = float(rule(np.ones((1, len(has_positive))))[0])
    drawn = np.concatenate([rule(part) for part in np.array_split(_draws(has_positive, seed), 10)])  # 10: memory
    if np.ptp(drawn) < CLOSE:
        return found, Estimate(found, missing="every resample of the groups gives the same threshold")
    low, high = np.quantile(drawn, ((1 - intervals.LEVEL) / 2, (1 + intervals.LEVEL) / 2))
    return found, Estimate(found, float(low), float(high))


def _draws(has_positive: np.ndarray, seed: int) -> np.ndarray:
    """(R, G) how often each group is drawn with replacement: those with a positive image and the others apart."""
    counts = np.zeros((RESAMPLES, len(has_positive)))
    for i, side in enumerate((True, False)):
        part = np.flatnonzero(has_positive == side)
        if len(part):
            drawn = np.random.default_rng(seed + i).choice(part, (RESAMPLES, len(part)))
            np.add.at(counts, (np.arange(RESAMPLES)[:, None], drawn), 1)
    return counts


def _over_groups(found: np.ndarray, codes: np.ndarray) -> Estimate:
    """The mean over groups of the share of the positive images that are found."""
    shares = np.bincount(codes, found) / np.bincount(codes)
    return intervals.mean_of(shares, np.arange(len(shares)), "share")


def _floor(share: float) -> str:
    """Three digits, rounded down: a promise is not rounded up."""
    return f"{math.floor(share * 1000 + 1e-6) / 1000:g}"


def _checked(labels, scores, groups) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    labels, scores = np.asarray(labels, dtype=bool), np.asarray(scores, dtype=float)
    if len(labels) != len(scores) or len(groups) != len(scores) or not np.isfinite(scores).all():
        raise PathoError(
            "bad_scores",
            "threshold",
            "needs one finite score and one group per label",
            "Pass one label, one score and one group per image",
        )
    if not labels.any():
        raise PathoError(
            "one_class", "threshold", "needs a positive label", "Split again, or name another positive class"
        )
    return labels, scores, pd.factorize(np.asarray(groups))[0]
