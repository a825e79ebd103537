"""The metrics of a table of predictions, each with its interval or the reason why it has none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from patholib.base.errors import PathoError
from patholib.judge import intervals, metric_table, resampled, rules
from patholib.judge.intervals import Estimate

if TYPE_CHECKING:
    from patholib.judge.intervals import Scale
    from patholib.judge.metric_table import Metric
    from patholib.judge.resampled import Tally
    from patholib.judge.rules import Shares

ALERT = tuple(metric.name for metric in metric_table.of_classes("alert"))


@dataclass(frozen=True)
class Numbers:
    """The metrics of a table of predictions, of all groups and without each (`resampled.values`)."""

    counted: Tally
    of_summary: dict[str, np.ndarray]  # (1 + G,)
    of_classes: dict[str, np.ndarray]  # (1 + G, C)

    @classmethod
    def of(cls, counted: Tally) -> Numbers:
        return cls(counted, *resampled.values(counted))

    def overall(self, metric: Metric) -> Estimate:
        """A metric of a summary."""
        if metric.kind == "once":
            chance = metric.by_chance and resampled.once(self.counted, metric.by_chance)
            value = resampled.once(self.counted, metric.formula)
            return Estimate(value, missing=metric.no_interval, chance=chance)
        if metric.kind == "class":  # of the positive class
            assert self.counted.positive is not None, "without it no such metric is in the summary"
            return self.of_class(metric, self.counted.positive)
        values = self.of_summary[metric.name]
        scale: Scale = "positive" if metric.kind == "image" else "share"
        strata = _strata(self.counted, metric)
        found = intervals.estimate(values[0], values[1:], strata, scale, metric.undefined, _independent(metric, strata))
        absent = [name for name, n in zip(self.counted.classes, self.counted.support, strict=True) if n == 0]
        if metric.kind == "mean" and absent and found.value is not None:
            return replace(found, note=f"mean over the classes that occur; absent: {', '.join(absent)}")
        return found

    def of_class(self, metric: Metric, k: int) -> Estimate:
        """A metric of the class with index k."""
        values, strata = self.of_classes[metric.name][:, k], _strata(self.counted, metric, k)
        among = int(np.count_nonzero(self.counted.images_with[metric.among][k])) if metric.among else None
        return intervals.estimate(values[0], values[1:], strata, "share", metric.undefined, among=among)


def _strata(counted: Tally, metric: Metric, k: int | None = None) -> np.ndarray:
    """(S, G) images that a metric rests on: all, those of each class that occurs, or those of class k and the rest."""
    if metric.kind in ("overall", "image"):
        return counted.confusion.sum(axis=(1, 2))[None]
    if metric.kind == "mean":
        return counted.images_with["class"][counted.support > 0]
    return np.stack([counted.images_with[whose][k] for whose in metric.rests_on])


def _independent(metric: Metric, strata: np.ndarray) -> int:
    """How many numbers of classes, of which a metric is the mean, can be right by chance without the others."""
    if metric.kind != "mean":
        return 1
    tied = len(metric.rests_on) > 1  # such as AUCs: of two classes both have the same
    return max(len(strata) - tied, 1)


def summary(
    predictions: pd.DataFrame, classes: Sequence[str], positive: str | None = None, threshold: float | Shares = 0.5
) -> dict:
    """All metrics of a table of predictions as JSON values, each as `Estimate.to_json` gives it.

    Two classes and a `positive` one: an image is predicted positive where p_positive >= threshold. Otherwise the
    largest probability decides and the threshold is not used. With shares of the classes instead of a threshold the
    largest probability over its share decides (see `rules.predicted`).
    Intervals: of 95 %, over groups, as `intervals.estimate` says; the numbers of a table depend on nothing but it.
    Errors: those of `resampled.tally`.
    """
    counted = resampled.tally(predictions, classes, positive, threshold)
    found, support = Numbers.of(counted), counted.support
    groups = np.count_nonzero(counted.images_with["class"], axis=1)
    per_class = {
        name: {
            "support": int(support[k]),
            "groups": int(groups[k]),
            **{metric.name: found.of_class(metric, k).to_json() for metric in metric_table.of_classes("classes")},
        }
        for k, name in enumerate(counted.classes)
    }
    return {
        "images": len(predictions),
        "groups": counted.groups,
        "classes": list(counted.classes),
        "positive": positive,
        "threshold": float(threshold) if counted.by_threshold and not isinstance(threshold, Mapping) else None,
        "decision": rules.in_words(classes, positive, threshold),
        "level": intervals.LEVEL,
        "prior": {c: float(n / len(predictions)) for c, n in zip(counted.classes, support, strict=True)},
        "metrics": {
            metric.name: found.overall(metric).to_json() for metric in metric_table.of_summary(counted.by_threshold)
        },
        "per_class": per_class,
        "confusion": counted.confusion.sum(axis=0).tolist(),  # rows: true class, columns: predicted, in class order
        "notes": few_groups({name: int(n) for name, n in zip(counted.classes, groups, strict=True)}),
    }


def few_groups(groups: Mapping[str, int]) -> list[str]:
    """A sentence where a class that occurs has fewer than 10 groups; groups: of each class."""
    few = [f"{n} groups of {name}" for name, n in groups.items() if 0 < n < intervals.FEWEST_GROUPS]
    reason = f"with fewer than {intervals.FEWEST_GROUPS} of a class, its intervals are rough"
    return [f"only {', '.join(few)}: {reason}"] if few else []


def readable(number: Mapping | None, digits: int = 3, sign: str = "") -> str:
    """A number of metrics.json as `Estimate.text` writes it; "absent" for None."""
    return Estimate.from_json(number).text(digits, sign) if number else "absent"


def classification_report(
    predictions: pd.DataFrame, classes: Sequence[str], positive: str | None = None, threshold: float | Shares = 0.5
) -> pd.DataFrame:
    """Sensitivity (recall), precision, F1 and support per class, with scikit-learn's numbers and row names.

    As there, 0/0 counts as 0; `summary` distinguishes an undefined number from a zero.
    """
    counted = resampled.tally(predictions, classes, positive, threshold)
    overall, of_classes = resampled.values(counted)
    columns = [metric.name for metric in metric_table.of_classes("report")]
    table = pd.DataFrame({name: np.nan_to_num(of_classes[name][0]) for name in columns}, index=list(counted.classes))
    support = counted.support
    below = pd.DataFrame(
        [
            [overall["accuracy"][0]] * len(columns),
            table.mean().tolist(),
            np.average(table, axis=0, weights=support).tolist(),
        ],
        columns=columns,
        index=["accuracy", "macro avg", "weighted avg"],
    )
    table = pd.concat([table, below])
    table["support"] = [*support, *[support.sum()] * len(below)]
    return table


def paired(
    a: pd.DataFrame,
    b: pd.DataFrame,
    classes: Sequence[str],
    positive: str | None = None,
    threshold: float | Shares | tuple = 0.5,
) -> dict:
    """Every metric of `a` minus that of `b`, as `Estimate.to_json` gives it: two models that saw the same images.

    a, b: tables of the same images in the same order. Each group is left out of both, so what makes an image hard for
    both cancels: where two intervals overlap, the interval of the difference may still exclude zero.
    threshold: of both, or a pair, one of each. Errors: not_paired; those of `summary`.
    """
    columns = ["label", "group", *(["path"] if "path" in a and "path" in b else [])]
    for table in (a, b):
        resampled.need(table, columns)
    if len(a) != len(b) or (a[columns].to_numpy() != b[columns].to_numpy()).any():
        raise PathoError(
            "not_paired",
            "predictions",
            "are not of the same images in the same order, with the same labels and groups",
            "Predict the same images with both models, or sort both tables by path",
        )
    thresholds = threshold if isinstance(threshold, tuple) else (threshold, threshold)
    ours, theirs = (
        Numbers.of(resampled.tally(table, classes, positive, t)) for table, t in zip((a, b), thresholds, strict=True)
    )
    return {
        metric.name: difference(metric, ours, theirs).to_json()
        for metric in metric_table.of_summary(ours.counted.by_threshold and theirs.counted.by_threshold)
    }


def difference(metric: Metric, ours: Numbers, theirs: Numbers) -> Estimate:
    """A metric of one model minus that of another on the same images."""
    if metric.kind == "once":
        a, b = (resampled.once(one.counted, metric.formula) for one in (ours, theirs))
        return Estimate(a - b, missing=metric.no_interval)
    values = ours.of_summary[metric.name] - theirs.of_summary[metric.name]
    strata = _strata(ours.counted, metric, ours.counted.positive)
    return intervals.estimate(values[0], values[1:], strata, "difference", metric.undefined)


def alert(predictions: pd.DataFrame, classes: Sequence[str], positive: str, threshold: float) -> dict:
    """The metrics of an alert for `positive` against all other classes, raised where p_positive >= threshold.

    flagged: the share of the images that raise it. Errors: those of `resampled.tally`.
    """
    resampled.need(predictions, ["label", f"p_{positive}"])
    other = "not " + positive
    score = predictions[f"p_{positive}"].to_numpy(dtype=float)
    two = predictions[["group"]].assign(
        **{
            "label": np.where(predictions["label"] == positive, positive, other),
            f"p_{positive}": score,
            f"p_{other}": 1 - score,
        }
    )
    counted = resampled.tally(two, (other, positive), positive, threshold)
    found = Numbers.of(counted)
    return {
        "positive": positive,
        "threshold": float(threshold),
        "images": len(two),
        "groups": counted.groups,
        "positives": int(counted.support[1]),
        "positive_groups": int(np.count_nonzero(counted.images_with["class"][1])),
        "flagged": float((score >= threshold).mean()),
        **{metric.name: found.of_class(metric, 1).to_json() for metric in metric_table.of_classes("alert")},
    }
