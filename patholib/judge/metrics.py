"""Metrics of a table of predictions, each with its interval or the reason why it has none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from patholib.base.errors import PathoError
from patholib.judge import intervals, resampled, rules

if TYPE_CHECKING:
    from patholib.judge.resampled import Judged
    from patholib.judge.rules import Shares

ALERT = ("sensitivity", "specificity", "ppv", "npv")
MEANS = ("balanced_accuracy", "macro_precision", "macro_sensitivity", "macro_specificity", "macro_f1", "auc")
ONE_CLASS = "only one class among the labels"
WHY = {  # what leaves a number of one class without a value
    "precision": "no image is predicted as this class",
    "sensitivity": "no image is of this class",
    "specificity": "every image is of this class",
    "f1": "no image is of this class or predicted as it",
    "auc": "needs images of this class and of another",
}


def summary(predictions: pd.DataFrame, classes: Sequence[str], positive: str | None = None,
            threshold: float | Shares = 0.5, resamples: int = 1000, seed: int = 0, interval: str = "bca") -> dict:
    """All numbers of a table of predictions as JSON values, each `{"value", "low", "high"}` with a 95 % interval.

    Two classes and a `positive` one: an image is called positive where p_positive >= threshold. Otherwise the largest
    probability decides and the threshold is not used. Shares of the classes in its place: it is called the class whose
    probability is largest over its share (see `called`). A number without a value is None beside `"undefined"`, the
    reason; one without an interval has `"no_interval"`; a mean that leaves classes out says so in `"note"`.
    Intervals: bootstrap over groups; `resamples=0` gives none. "bca" moves the ends by bias and skewness (Efron 1987)
    and widens them for few groups; "percentile" takes 2.5 and 97.5 % of the resamples as they are. The first is the
    default because it holds the truth about as often as it says. In 1000 simulated sets of 20, 40 and 120 patients it
    did in 91 to 95, 93 to 95 and 94 to 96 %, by metric, percentiles in 84 to 91, 89 to 92 and 93 to 95 %; drawing
    images instead of patients, in 52 to 65 % of 400 (`python tests/intervals.py`).
    """
    judged = resampled.judge(predictions, classes, positive, threshold)
    overall, of_classes = resampled.values(judged, np.ones((1, judged.groups)))
    drawn_overall, drawn_of_classes = intervals.resample(judged, resamples, seed)
    left_overall, left_of_classes = resampled.values(judged, intervals.left_out(judged.groups, interval if resamples else "percentile"))
    support = judged.confusion.sum(axis=1)
    absent = [name for name, n in zip(judged.classes, support, strict=True) if n == 0]

    metrics = {name: intervals.number(values[0], drawn_overall[name], ONE_CLASS, left_overall[name], judged.groups)
               for name, values in overall.items()}
    metrics["ece"] = intervals.without_interval(judged.ece)
    for name in MEANS:
        if absent and metrics[name]["value"] is not None:
            metrics[name]["note"] = f"mean over the classes that occur; absent: {', '.join(absent)}"
    per_class = {}
    for k, name in enumerate(judged.classes):
        groups = {"sensitivity": judged.groups_with[k], "specificity": judged.groups_without[k]}
        numbers = {m: intervals.number(v[0, k], drawn_of_classes[m][:, k], WHY[m], left_of_classes[m][:, k],
                              groups.get(m, judged.groups)) for m, v in of_classes.items()}
        per_class[name] = {"support": int(support[k]), "groups": int(judged.groups_with[k]), **numbers}
    if judged.by_threshold:
        metrics |= {m: per_class[positive][m] for m in ("sensitivity", "specificity", "precision", "f1")}

    notes = []
    if judged.groups < intervals.FEWEST_GROUPS:
        notes.append(f"only {judged.groups} groups: intervals from fewer than {intervals.FEWEST_GROUPS} are too narrow")
    return {
        "images": len(predictions),
        "groups": judged.groups,
        "classes": list(judged.classes),
        "positive": positive,
        "threshold": float(threshold) if judged.by_threshold else None,
        "decision": f"p_{positive} >= {threshold:g}" if judged.by_threshold else rules.RULES[
            "even" if isinstance(threshold, Mapping) else "likeliest"],
        "level": intervals.LEVEL,
        "resamples": resamples,
        "seed": seed,
        "interval": interval,
        "prior": {c: float(n / len(predictions)) for c, n in zip(judged.classes, support, strict=True)},
        "metrics": metrics,
        "per_class": per_class,
        "confusion": judged.confusion.tolist(),  # rows: true class, columns: predicted, in class order
        "notes": notes,
    }


def readable(number: Mapping | None, digits: int = 3, sign: str = "") -> str:
    """`0.912 (0.880 to 0.940)`; "undefined", "(no interval)" and "absent" where there is none of it.

    sign: "+" for a difference, which then has its sign also where it is positive.
    """
    if not number:
        return "absent"
    if number.get("value") is None:
        return "undefined"
    value, low, high = (number.get(name) for name in ("value", "low", "high"))
    form = f"{sign}.{digits}f"
    interval = "no interval" if low is None or high is None else f"{low:{form}} to {high:{form}}"
    return f"{value:{form}} ({interval})"


def classification_report(predictions: pd.DataFrame, classes: Sequence[str], positive: str | None = None,
                          threshold: float | Shares = 0.5) -> pd.DataFrame:
    """Precision, sensitivity (recall), F1 and support per class, with scikit-learn's numbers and row names.

    As there, 0/0 counts as 0; `summary` tells an undefined number from a zero.
    """
    judged = resampled.judge(predictions, classes, positive, threshold)
    overall, of_classes = resampled.values(judged, np.ones((1, judged.groups)))
    columns = ["precision", "sensitivity", "f1"]
    table = pd.DataFrame({name: np.nan_to_num(of_classes[name][0]) for name in columns}, index=list(judged.classes))
    support = judged.confusion.sum(axis=1)
    below = pd.DataFrame(
        [[overall["accuracy"][0]] * 3, table.mean().tolist(), np.average(table, axis=0, weights=support).tolist()],
        columns=columns, index=["accuracy", "macro avg", "weighted avg"])
    table = pd.concat([table, below])
    table["support"] = [*support, *[support.sum()] * 3]
    return table


def two_labels(predictions: pd.DataFrame, column: str = "case") -> list[str]:
    """The patients whose images do not all have the same label, sorted."""
    labels = predictions.groupby(patients(predictions, column))["label"].nunique()
    return [str(name) for name in labels.index[labels > 1]]


def paired(a: pd.DataFrame, b: pd.DataFrame, classes: Sequence[str], positive: str | None = None,
           threshold: float | Shares | tuple = 0.5, resamples: int = 1000, seed: int = 0) -> dict:
    """Every number of `a` minus that of `b`, `{"value", "low", "high"}`: two models that saw the same images.

    a, b: tables of the same images in the same order. Each resample draws the same groups for both, so what makes an
    image hard for both cancels: two intervals that overlap may still be a difference that does not hold zero.
    threshold: of both, or a pair, one of each. Errors: not_paired; those of `summary`.
    """
    columns = ["label", "group", *(["path"] if "path" in a and "path" in b else [])]
    for table in (a, b):
        resampled.need(table, columns)
    if len(a) != len(b) or (a[columns].to_numpy() != b[columns].to_numpy()).any():
        raise PathoError("not_paired", "predictions", "are not of the same images in the same order, with the same "
                         "labels and groups", "Predict the same images with both models, or sort both tables by path")
    thresholds = threshold if isinstance(threshold, tuple) else (threshold, threshold)
    pair = [resampled.judge(table, classes, positive, t) for table, t in zip((a, b), thresholds, strict=True)]
    none = np.empty((0, pair[0].groups))
    chunks = [[_headline(judged, counts) for judged in pair]
              for counts in (none, *intervals.draws(pair[0].groups, resamples, seed))]
    ours, theirs = (_headline(judged, np.ones((1, judged.groups))) for judged in pair)
    drawn = {name: np.concatenate([x[name] - y[name] for x, y in chunks]) for name in ours}
    left = [_headline(judged, intervals.left_out(judged.groups, "bca" if resamples else "percentile")) for judged in pair]
    found = {name: intervals.number(ours[name][0] - theirs[name][0], drawn[name], ONE_CLASS, left[0][name] - left[1][name],
                           pair[0].groups) for name in ours}
    return found | {"ece": intervals.without_interval(pair[0].ece - pair[1].ece)}


def _headline(judged: Judged, counts: np.ndarray) -> dict[str, np.ndarray]:
    """The overall numbers of `_values` and, where a threshold decides, those of the positive class."""
    overall, of_classes = resampled.values(judged, counts)
    if judged.by_threshold:
        overall |= {m: of_classes[m][:, judged.positive] for m in ("sensitivity", "specificity", "precision", "f1")}
    return overall


def alert(predictions: pd.DataFrame, classes: Sequence[str], positive: str, threshold: float, resamples: int = 1000,
          seed: int = 0) -> dict:
    """`positive` against all else, called where its probability reaches the threshold, with intervals.

    ppv: the share of the calls that are right; npv: the share of the others that are. flagged: the share called.
    """
    resampled.need(predictions, ["label", f"p_{positive}"])
    other = "not " + positive
    score = predictions[f"p_{positive}"].to_numpy(dtype=float)
    two = predictions[["group"]].assign(**{
        "label": np.where(predictions["label"] == positive, positive, other), f"p_{positive}": score,
        f"p_{other}": 1 - score})
    found = summary(two, (other, positive), positive, threshold, resamples, seed)
    ours, others = found["per_class"][positive], found["per_class"][other]
    return {"positive": positive, "threshold": float(threshold), "images": found["images"], "groups": found["groups"],
            "positives": ours["support"], "positive_groups": ours["groups"],
            "flagged": float((score >= threshold).mean()),
            **dict(zip(ALERT, (ours["sensitivity"], ours["specificity"], ours["precision"], others["precision"]),
                       strict=True))}


def patients(predictions: pd.DataFrame, column: str) -> pd.Series:
    """The patient of each image, text; an image whose patient is not known stands for itself, by its group."""
    resampled.need(predictions, [column, "group", "label"])
    known = predictions[column].astype(str)
    return known.where(known != "", predictions["group"].astype(str))
