"""How good predictions are and how sure that is: every number comes with an interval that resamples whole groups.

A table of predictions has one row per image: `label` (text), `group` (the patient, case or lesion that is drawn as one)
and one column `p_<class>` per class. The images of a patient are alike, so drawing them one by one gives intervals
several times too narrow; here a resample draws groups, with all their images.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import pandas as pd

from patholib import calibration
from patholib.errors import PathoError, nearest

LEVEL = 0.95  # of every interval
FEWEST_GROUPS = 10  # below this a percentile bootstrap over groups is too narrow to lean on, and that is said
LOST = 0.05  # share of resamples that may lack a class before an interval is given up: e^-3, three groups of a class
CHUNK = 100  # resamples worked on at once; larger ones leave the processor's cache and are slower
BLOCKS = 200  # groups are left out in at most so many blocks, for the acceleration of BCa
ONE_BY_ONE = 500  # patients up to which each is left out once; of more, one hardly moves a number
POINTS = 50  # of a curve that is kept in metrics.json

Shares = Mapping[str, float]  # of all images, by class
RULES = {"likeliest": "largest probability",  # how `called` decides where no threshold does, for people
         "even": "largest probability over the share of the class"}

INTERVALS = ("percentile", "bca")
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
    judged = _judge(predictions, classes, positive, threshold)
    overall, of_classes = _values(judged, np.ones((1, judged.groups)))
    drawn_overall, drawn_of_classes = _resample(judged, resamples, seed)
    left_overall, left_of_classes = _values(judged, _left_out(judged.groups, interval if resamples else "percentile"))
    support = judged.confusion.sum(axis=1)
    absent = [name for name, n in zip(judged.classes, support, strict=True) if n == 0]

    metrics = {name: _number(values[0], drawn_overall[name], ONE_CLASS, left_overall[name], judged.groups)
               for name, values in overall.items()}
    metrics["ece"] = _without_interval(judged.ece)
    for name in MEANS:
        if absent and metrics[name]["value"] is not None:
            metrics[name]["note"] = f"mean over the classes that occur; absent: {', '.join(absent)}"
    per_class = {}
    for k, name in enumerate(judged.classes):
        groups = {"sensitivity": judged.groups_with[k], "specificity": judged.groups_without[k]}
        numbers = {m: _number(v[0, k], drawn_of_classes[m][:, k], WHY[m], left_of_classes[m][:, k],
                              groups.get(m, judged.groups)) for m, v in of_classes.items()}
        per_class[name] = {"support": int(support[k]), "groups": int(judged.groups_with[k]), **numbers}
    if judged.by_threshold:
        metrics |= {m: per_class[positive][m] for m in ("sensitivity", "specificity", "precision", "f1")}

    notes = []
    if judged.groups < FEWEST_GROUPS:
        notes.append(f"only {judged.groups} groups: intervals from fewer than {FEWEST_GROUPS} are too narrow")
    return {
        "images": len(predictions),
        "groups": judged.groups,
        "classes": list(judged.classes),
        "positive": positive,
        "threshold": float(threshold) if judged.by_threshold else None,
        "decision": f"p_{positive} >= {threshold:g}" if judged.by_threshold else RULES[
            "even" if isinstance(threshold, Mapping) else "likeliest"],
        "level": LEVEL,
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


def of_subgroup(row: Mapping, name: str) -> dict:
    """One number of a row of `by_subgroup` in the form `summary` gives it."""
    return {"value": row[name], "low": row.get(f"{name}_low"), "high": row.get(f"{name}_high")}


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
    if _divides(classes, positive, threshold):
        k = classes.index(positive)
        return np.where(probs[:, k] >= threshold, k, 1 - k)
    return probs.argmax(axis=1)


def _divides(classes: Sequence[str], positive: str | None, threshold: float | Shares) -> bool:
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
    if _divides(classes, positive, threshold):
        return np.abs(probs[:, list(classes).index(positive)] - threshold)
    ranked = np.sort(evened(probs, classes, threshold), axis=1)
    return ranked[:, -1] - ranked[:, -2]


def decide(predictions: pd.DataFrame, classes: Sequence[str], positive: str | None = None,
           threshold: float | Shares = 0.5) -> np.ndarray:
    """The class each image is called, (N,) text: see `called`."""
    judged = _judge(predictions, classes, positive, threshold)
    return np.array(judged.classes, dtype=object)[judged.decisions]


def classification_report(predictions: pd.DataFrame, classes: Sequence[str], positive: str | None = None,
                          threshold: float | Shares = 0.5) -> pd.DataFrame:
    """Precision, sensitivity (recall), F1 and support per class, with scikit-learn's numbers and row names.

    As there, 0/0 counts as 0; `summary` tells an undefined number from a zero.
    """
    judged = _judge(predictions, classes, positive, threshold)
    overall, of_classes = _values(judged, np.ones((1, judged.groups)))
    columns = ["precision", "sensitivity", "f1"]
    table = pd.DataFrame({name: np.nan_to_num(of_classes[name][0]) for name in columns}, index=list(judged.classes))
    support = judged.confusion.sum(axis=1)
    below = pd.DataFrame(
        [[overall["accuracy"][0]] * 3, table.mean().tolist(), np.average(table, axis=0, weights=support).tolist()],
        columns=columns, index=["accuracy", "macro avg", "weighted avg"])
    table = pd.concat([table, below])
    table["support"] = [*support, *[support.sum()] * 3]
    return table


def by_subgroup(predictions: pd.DataFrame, classes: Sequence[str], positive: str | None, columns: Iterable[str],
                threshold: float | Shares = 0.5, resamples: int = 1000, seed: int = 0) -> pd.DataFrame:
    """The headline numbers in every value of every column: one row per `column`, `value`.

    `few` marks the rows with fewer than 10 groups. An undefined number is NaN, and `note` says why.
    """
    classes = tuple(classes)
    names = ["accuracy", "balanced_accuracy", "auc"]
    if positive is not None and len(classes) == 2:
        names += ["sensitivity", "specificity"]
    rows = []
    for column in columns:
        _need(predictions, [column])
        for value, part in predictions.groupby(column, sort=True):
            found = summary(part, classes, positive, threshold, resamples, seed)
            row = {"column": column, "value": str(value) or "(not stated)", "images": found["images"],
                   "groups": found["groups"], "few": found["groups"] < FEWEST_GROUPS}
            notes = []
            for name in names:
                number = found["metrics"][name]
                row |= {name: number["value"], f"{name}_low": number["low"], f"{name}_high": number["high"]}
                notes += [f"{name}: {number[k]}" for k in ("undefined", "no_interval", "note") if k in number]
            rows.append({**row, "note": "; ".join(found["notes"] + notes)})
    numbers = [f"{name}{end}" for name in names for end in ("", "_low", "_high")]
    table = pd.DataFrame(rows, columns=["column", "value", "images", "groups", "few", *numbers, "note"])
    return table.astype(dict.fromkeys(numbers, float))


def two_labels(predictions: pd.DataFrame, column: str = "case") -> list[str]:
    """The patients whose images do not all have the same label, sorted."""
    labels = predictions.groupby(_patients(predictions, column))["label"].nunique()
    return [str(name) for name in labels.index[labels > 1]]


def by_patient(predictions: pd.DataFrame, classes: Sequence[str], positive: str | None = None, column: str = "case",
               threshold: float | Shares = 0.5) -> pd.DataFrame:
    """One row per patient, sorted: images, true label, patient score, mean probabilities and what these decide.

    `score` is the share of the patient's images that are right (Spanhol et al. 2016: N_rec / N_P). Patients with two
    labels (`two_labels`) have no true label and are left out. The table has `label`, `group` and the `p_` columns, so
    it is itself a table of predictions, with patients for images.
    """
    columns = [f"p_{c}" for c in classes]
    right = decide(predictions, classes, positive, threshold) == predictions["label"].to_numpy()
    table = predictions.assign(patient=_patients(predictions, column), right=right)
    parts = table[~table["patient"].isin(two_labels(predictions, column))].groupby("patient", sort=True)
    patients = parts.agg(group=("group", "first"), groups=("group", "nunique"), label=("label", "first"),
                         images=("label", "size"), right=("right", "sum")).reset_index()
    # A slide stays in its case; where the split was by image, the images of a patient are still drawn as one.
    patients["group"] = patients["group"].astype(str).where(patients.pop("groups") == 1, patients["patient"])
    patients["score"] = patients["right"] / patients["images"]
    patients[columns] = parts[columns].mean().to_numpy()
    patients["decision"] = decide(patients, classes, positive, threshold) if len(patients) else ""
    return patients


def patient_recognition_rate(predictions: pd.DataFrame, classes: Sequence[str], positive: str | None = None,
                             column: str = "case", threshold: float | Shares = 0.5) -> float | None:
    """The mean of the patient scores (Spanhol et al. 2016): every patient counts once, however many images there are.

    None where no patient has a single label.
    """
    patients = by_patient(predictions, classes, positive, column, threshold)
    return float(patients["score"].mean()) if len(patients) else None


def patient_summary(predictions: pd.DataFrame, classes: Sequence[str], positive: str | None = None,
                    column: str = "case", threshold: float | Shares = 0.5, resamples: int = 1000,
                    seed: int = 0) -> dict:
    """`summary` with patients for images, decided by mean probability, and the patient recognition rate."""
    both = two_labels(predictions, column)
    patients = by_patient(predictions, classes, positive, column, threshold)
    found = {"column": column, "patients": len(patients), "two_labels": {"patients": len(both), "names": both}}
    if not len(patients):
        undefined = {"value": None, "low": None, "high": None, "undefined": "every patient has two labels"}
        return {**found, "recognition_rate": undefined, "summary": None}
    return {**found, "recognition_rate": mean_of(patients["score"], patients["group"], resamples, seed),
            "summary": summary(patients, classes, positive, threshold, resamples, seed),
            "one_patient": _without_one(predictions, patients, classes, positive, column, threshold)}


def _without_one(predictions, patients, classes, positive, column, threshold) -> dict:
    """How far one patient moves the numbers: `share` of the recognition rate that is one patient's, and between what
    (`low`, `high`) the rate and the headline numbers lie when each is left out once; of too many patients the share."""
    found = {"share": 1 / len(patients)}
    if not 2 < len(patients) <= ONE_BY_ONE:
        return found
    scores = patients["score"].to_numpy()
    ranges = {"recognition_rate": (scores.sum() - scores) / (len(scores) - 1)}
    judged = _judge(predictions.assign(group=_patients(predictions, column)), classes, positive, threshold)
    ranges |= {name: values for name, values in _values(judged, 1 - np.eye(judged.groups))[0].items()
               if name in ("auc", "balanced_accuracy", "accuracy")}
    return found | {name: {"low": float(np.nanmin(values)), "high": float(np.nanmax(values))}
                    for name, values in ranges.items() if not np.isnan(values).all()}


def paired(a: pd.DataFrame, b: pd.DataFrame, classes: Sequence[str], positive: str | None = None,
           threshold: float | Shares | tuple = 0.5, resamples: int = 1000, seed: int = 0) -> dict:
    """Every number of `a` minus that of `b`, `{"value", "low", "high"}`: two models that saw the same images.

    a, b: tables of the same images in the same order. Each resample draws the same groups for both, so what makes an
    image hard for both cancels: two intervals that overlap may still be a difference that does not hold zero.
    threshold: of both, or a pair, one of each. Errors: not_paired; those of `summary`.
    """
    columns = ["label", "group", *(["path"] if "path" in a and "path" in b else [])]
    for table in (a, b):
        _need(table, columns)
    if len(a) != len(b) or (a[columns].to_numpy() != b[columns].to_numpy()).any():
        raise PathoError("not_paired", "predictions", "are not of the same images in the same order, with the same "
                         "labels and groups", "Predict the same images with both models, or sort both tables by path")
    thresholds = threshold if isinstance(threshold, tuple) else (threshold, threshold)
    pair = [_judge(table, classes, positive, t) for table, t in zip((a, b), thresholds, strict=True)]
    none = np.empty((0, pair[0].groups))
    chunks = [[_headline(judged, counts) for judged in pair]
              for counts in (none, *_draws(pair[0].groups, resamples, seed))]
    ours, theirs = (_headline(judged, np.ones((1, judged.groups))) for judged in pair)
    drawn = {name: np.concatenate([x[name] - y[name] for x, y in chunks]) for name in ours}
    left = [_headline(judged, _left_out(judged.groups, "bca" if resamples else "percentile")) for judged in pair]
    found = {name: _number(ours[name][0] - theirs[name][0], drawn[name], ONE_CLASS, left[0][name] - left[1][name],
                           pair[0].groups) for name in ours}
    return found | {"ece": _without_interval(pair[0].ece - pair[1].ece)}


def _headline(judged: _Judged, counts: np.ndarray) -> dict[str, np.ndarray]:
    """The overall numbers of `_values` and, where a threshold decides, those of the positive class."""
    overall, of_classes = _values(judged, counts)
    if judged.by_threshold:
        overall |= {m: of_classes[m][:, judged.positive] for m in ("sensitivity", "specificity", "precision", "f1")}
    return overall


def threshold_for(labels: np.ndarray, scores: np.ndarray, sensitivity: float) -> float:
    """The largest threshold under which at least that share of the positives is called positive (score >= threshold).

    labels (N,): True where positive. It is the score of a positive, so a rounding error below it would change nothing.
    """
    true, _, thresholds = _above(labels, scores)
    _need_positive(true, "threshold")
    return float(thresholds[(true >= sensitivity * true[-1] - 1e-9).argmax()])


def cheapest_threshold(labels: np.ndarray, scores: np.ndarray, cost_ratio: float) -> float:
    """The score from which on calling positive costs least; of equally good ones the lowest, which misses fewer.

    labels (N,): True where positive. cost_ratio: what a missed positive costs, a false alarm costing 1.
    """
    true, false, thresholds = _above(labels, scores)
    _need_positive(true, "threshold")
    cost = cost_ratio * (true[-1] - true) + false
    return float(thresholds[np.flatnonzero(cost <= cost.min() + 1e-9)[-1]])


def alert(predictions: pd.DataFrame, classes: Sequence[str], positive: str, threshold: float, resamples: int = 1000,
          seed: int = 0) -> dict:
    """`positive` against all else, called where its probability reaches the threshold, with intervals.

    ppv: the share of the calls that are right; npv: the share of the others that are. flagged: the share called.
    """
    _need(predictions, ["label", f"p_{positive}"])
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


def decision_curve(predictions: pd.DataFrame, positive: str) -> dict:
    """Net benefit of acting on the model at each threshold, and of acting on everybody (Vickers & Elkin 2006).

    Benefit per image: true positives minus false positives, each weighed by the odds of the threshold. Acting on nobody
    has benefit 0. Lists `threshold`, `model`, `everybody`, at most 50 long.
    """
    _need(predictions, ["label", f"p_{positive}"])
    at = np.linspace(0, 1, POINTS + 1)[1:-1]
    true, score = (predictions["label"] == positive).to_numpy(), predictions[f"p_{positive}"].to_numpy(dtype=float)
    called = score >= at[:, None]  # (T, N)
    odds = at / (1 - at)
    benefit = (called & true).mean(axis=1) - odds * (called & ~true).mean(axis=1)
    return {"threshold": at.round(4).tolist(), "model": benefit.round(6).tolist(),
            "everybody": (true.mean() - odds * (1 - true.mean())).round(6).tolist()}


def abstention(predictions: pd.DataFrame, classes: Sequence[str], positive: str | None = None,
               threshold: float | Shares = 0.5) -> dict:
    """The share of wrong answers among those given, if the least sure images are left to a person.

    Sureness is the largest probability (`evened` by shares) or, where a threshold decides, the distance to it in log
    odds (Geifman & El-Yaniv 2017). Lists `coverage` and `risk`, at most 50 long; `aurc`, the mean risk over all
    coverages, beside `aurc_best`, that of leaving out the wrong ones first, and `aurc_random`, that of leaving out by
    chance.
    """
    judged = _judge(predictions, classes, positive, threshold)
    probs = predictions[[f"p_{c}" for c in classes]].to_numpy(dtype=float)
    sure = evened(probs, judged.classes, threshold).max(axis=1)
    if judged.by_threshold:
        sure = np.abs(_log_odds(probs[:, judged.positive]) - _log_odds(threshold))
    wrong = np.array(judged.classes, dtype=object)[judged.decisions] != predictions["label"].to_numpy()
    _, runs = np.unique(-sure, return_inverse=True)  # surest first; equally sure ones share their errors
    wrong, n = (np.bincount(runs, wrong) / np.bincount(runs))[np.sort(runs)], len(wrong)
    risk = np.cumsum(wrong) / np.arange(1, n + 1)
    errors = round(wrong.sum())
    best = np.maximum(np.arange(1, n + 1) - (n - errors), 0) / np.arange(1, n + 1)
    kept = np.unique(np.ceil(np.linspace(1 / POINTS, 1, POINTS) * n).astype(int))
    return {"coverage": (kept / n).round(6).tolist(), "risk": risk[kept - 1].round(6).tolist(),
            "aurc": float(risk.mean()), "aurc_best": float(best.mean()), "aurc_random": errors / n}


def _log_odds(p):
    p = np.clip(p, np.finfo(float).eps, 1 - np.finfo(float).eps)
    return np.log(p) - np.log1p(-p)


def mean_of(values: Sequence[float], groups: Sequence[str], resamples: int = 1000, seed: int = 0) -> dict:
    """The mean of one number per image (N,), as `{"value", "low", "high"}` with its interval over groups (N,).

    Of paired differences of images: whether one thing is larger than another.
    """
    codes, names = pd.factorize(np.asarray(groups, dtype=object), sort=True)  # sorted: row order changes no draw
    sums = np.stack([np.bincount(codes, np.asarray(values, dtype=float)), np.bincount(codes)], axis=1)  # (G, 2)
    drawn = [counts @ sums for counts in _draws(len(names), resamples, seed)]
    drawn = np.concatenate([s[:, 0] / s[:, 1] for s in drawn]) if drawn else np.empty(0)
    left = (sums.sum(axis=0) - sums)[:, 0] / (sums.sum(axis=0) - sums)[:, 1] if len(sums) > 1 else ()
    return _number(np.mean(values), drawn, "no images", left, len(names))


def roc_curve(labels: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(1 - specificity, sensitivity, thresholds) from the highest threshold, which nothing reaches, down.

    labels (N,): True where positive. One point per distinct score, so ties are one straight step.
    """
    true, false, thresholds = _above(labels, scores)
    if true[-1] == 0 or false[-1] == 0:
        raise PathoError("one_class", "ROC curve", "needs positive and negative labels", "Leave this curve out")
    start = np.zeros(1)
    return (np.concatenate([start, false / false[-1]]), np.concatenate([start, true / true[-1]]),
            np.concatenate([[np.inf], thresholds]))


def pr_curve(labels: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(precision, sensitivity, thresholds) from the lowest threshold up; a last point (1, 0) has no threshold.

    labels (N,): True where positive.
    """
    true, false, thresholds = _above(labels, scores)
    _need_positive(true, "precision curve")
    precision, sensitivity = true / (true + false), true / true[-1]
    return np.append(precision[::-1], 1.0), np.append(sensitivity[::-1], 0.0), thresholds[::-1]


def auc(labels: np.ndarray, scores: np.ndarray) -> float | None:
    """The chance that a positive scores above a negative, ties counting half; None with one class only.

    labels (N,): class indices. scores: of class 1 (N,), or probabilities (N, C); of more than two classes the mean of
    one class against the rest, over the classes that occur.
    """
    labels, scores = np.asarray(labels), np.asarray(scores, dtype=float)
    of_class = dict(enumerate(scores.T if scores.ndim == 2 else np.stack([-scores, scores])))
    if len(of_class) == 2:
        of_class = {1: of_class[1]}  # class 0 against the rest is the same number
    found = [_auc(np.ones((1, len(labels))), _ranking(labels == k, column, np.arange(len(labels))))[0]
             for k, column in of_class.items() if (labels == k).any()]
    return float(np.mean(found)) if len(np.unique(labels)) > 1 else None


def balanced_accuracy(labels: np.ndarray, decisions: np.ndarray) -> float | None:
    """The mean sensitivity of the classes that occur, from class indices (N,); None with one class only."""
    labels, decisions = np.asarray(labels), np.asarray(decisions)
    found = [(decisions[labels == k] == k).mean() for k in np.unique(labels)]
    return float(np.mean(found)) if len(found) > 1 else None


def operating_points(labels: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(sensitivity, specificity, thresholds), thresholds rising, one per distinct score; labels (N,): True if positive.

    Called positive is what reaches the threshold. Errors: one_class.
    """
    alarm, sensitivity, thresholds = roc_curve(labels, scores)
    return sensitivity[:0:-1], 1 - alarm[:0:-1], thresholds[:0:-1]


def _need_positive(true: np.ndarray, subject: str) -> None:
    if true[-1] == 0:
        raise PathoError("one_class", subject, "needs a positive label", "Split again, or name another positive class")


def _above(labels, scores) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Positives and negatives at or above each distinct score, highest score first."""
    labels, scores = np.asarray(labels, dtype=bool), np.asarray(scores, dtype=float)
    if not len(scores) or len(labels) != len(scores) or not np.isfinite(scores).all():
        raise PathoError("bad_scores", "curve", "needs as many finite scores as labels, and at least one",
                         "Pass one label and one score per image")
    order = np.argsort(-scores, kind="stable")
    last = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)  # of each run of equal scores
    true = np.cumsum(labels[order])[last].astype(float)
    return true, last + 1 - true, scores[order][last]


@dataclass(frozen=True)
class _Judged:
    """A table of predictions, checked and reduced to what every resample needs."""

    classes: tuple[str, ...]
    by_threshold: bool
    positive: int | None  # its place in the classes
    decisions: np.ndarray  # (N,) index of the predicted class
    confusion: np.ndarray  # (C, C) images by true and predicted class
    groups: int  # G
    groups_with: np.ndarray  # (C,) groups that have an image of each class
    groups_without: np.ndarray  # (C,) groups that have an image of another class
    sums: np.ndarray  # (G, C * C + 2) per group: images by true and predicted class, sum of log loss, of Brier score
    ece: float  # of the positive class where a threshold decides, else of the likeliest one
    rankings: list  # of each class; for two classes one of the positive, as the other has the same AUC


def _judge(predictions: pd.DataFrame, classes: Sequence[str], positive: str | None,
           threshold: float | Shares) -> _Judged:
    classes = tuple(classes)
    columns = [f"p_{c}" for c in classes]
    _need(predictions, ["label", "group", *columns])
    if positive is not None and positive not in classes:
        raise PathoError("unknown_class", str(positive), "is no class", nearest(positive, classes))
    if not len(predictions):
        raise PathoError("no_predictions", "predictions", "the table has no rows", "Choose a split that has images")
    labels = pd.Index(classes).get_indexer(predictions["label"])
    if (labels < 0).any():
        name = predictions["label"].to_numpy()[labels < 0][0]
        raise PathoError("unknown_class", str(name), "is a label but no class", nearest(name, classes))
    probs = predictions[columns].to_numpy(dtype=float)  # (N, C)
    wrong = np.flatnonzero(~(np.abs(probs.sum(axis=1) - 1) < 1e-6) | (probs < 0).any(axis=1))  # not <: NaN is wrong
    if len(wrong):
        raise PathoError("bad_probabilities", f"row {wrong[0]} of the predictions",
                         f"has {probs[wrong[0]].tolist()}, no probabilities that sum to 1 ({len(wrong)} such rows)",
                         "Predict again")

    k = classes.index(positive) if positive is not None else None
    by_threshold = _divides(classes, positive, threshold)
    decisions = called(probs, classes, positive, threshold)
    groups, names = pd.factorize(predictions["group"].astype(str), sort=True)  # sorted: row order changes no draw
    n, n_classes = len(labels), len(classes)
    own = probs[np.arange(n), labels]
    log_loss = -np.log(np.maximum(own, np.finfo(float).eps))  # one rounding error from 0 must not cost infinity
    squares = ((probs - np.eye(n_classes)[labels]) ** 2).sum(axis=1)
    brier = squares / 2 if n_classes == 2 else squares  # two classes: (p - y)^2 of one of them; more: Brier 1950
    sums = np.zeros((len(names), n_classes**2 + 2))
    np.add.at(sums, (groups, labels * n_classes + decisions), 1)
    sums[:, -2], sums[:, -1] = np.bincount(groups, log_loss), np.bincount(groups, brier)
    ranked = [k if by_threshold else 1] if n_classes == 2 else range(n_classes)
    return _Judged(
        classes=classes, by_threshold=by_threshold, positive=k, decisions=decisions, groups=len(names),
        confusion=sums[:, :-2].sum(axis=0).astype(int).reshape(n_classes, n_classes),
        groups_with=np.array([len(np.unique(groups[labels == k])) for k in range(n_classes)]),
        groups_without=np.array([len(np.unique(groups[labels != k])) for k in range(n_classes)]), sums=sums,
        ece=calibration.ece(labels, probs, of=k if by_threshold else None),
        rankings=[_ranking(labels == k, probs[:, k], groups) for k in ranked])


def _need(table: pd.DataFrame, columns: list[str]) -> None:
    for column in columns:
        if column not in table:
            raise PathoError("missing_column", str(column), "is no column of the predictions",
                             nearest(column, table.columns))


def _patients(predictions: pd.DataFrame, column: str) -> pd.Series:
    """The patient of each image, text; an image whose patient is not known stands for itself, by its group."""
    _need(predictions, [column, "group", "label"])
    known = predictions[column].astype(str)
    return known.where(known != "", predictions["group"].astype(str))


def _draws(groups: int, resamples: int, seed: int) -> Iterable[np.ndarray]:
    """How often each group is drawn: chunks (up to 100, G) of as many draws with replacement as there are groups."""
    rng = np.random.default_rng(seed)
    for start in range(0, resamples, CHUNK):
        rows = min(CHUNK, resamples - start)
        drawn = rng.integers(0, groups, (rows, groups)) + groups * np.arange(rows)[:, None]
        yield np.bincount(drawn.ravel(), minlength=rows * groups).reshape(rows, groups).astype(float)


def _left_out(groups: int, interval: str) -> np.ndarray:
    """Counts (J, G) for `_values` with each group left out once or, of many, each of 200 blocks; (0, G) without BCa."""
    if interval not in INTERVALS:
        raise PathoError("bad_parameter", "interval", f"is {interval!r}", nearest(interval, INTERVALS))
    blocks = min(groups, BLOCKS) if interval == "bca" and groups > 1 else 0
    return 1.0 - (np.arange(groups) % max(blocks, 1) == np.arange(blocks)[:, None])


def _resample(judged: _Judged, resamples: int, seed: int) -> tuple[dict, dict]:
    """`_values` in every resample."""
    none = np.empty((0, judged.groups))
    chunks = [_values(judged, counts) for counts in (none, *_draws(judged.groups, resamples, seed))]
    return tuple({name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
                 for parts in zip(*chunks, strict=True))


def _values(judged: _Judged, counts: np.ndarray) -> tuple[dict, dict]:
    """Every number if group g is there counts[r, g] times: overall (R,) and of the classes (R, C).

    counts (R, G). NaN where a number is undefined.
    """
    n_classes = len(judged.classes)
    sums = counts @ judged.sums  # (R, C * C + 2)
    confusion = sums[:, :-2].reshape(-1, n_classes, n_classes)  # (R, true, predicted)
    right = confusion.diagonal(axis1=1, axis2=2)  # (R, C)
    support, predicted = confusion.sum(axis=2), confusion.sum(axis=1)
    images = support.sum(axis=1, keepdims=True)
    aucs = [_auc(counts, ranking) for ranking in judged.rankings]
    with np.errstate(invalid="ignore", divide="ignore"):  # 0/0 is NaN on purpose: undefined
        of_classes = {
            "precision": right / predicted,
            "sensitivity": right / support,
            "specificity": (images - support - predicted + right) / (images - support),
            "f1": 2 * right / (support + predicted),
            "auc": np.stack(aucs * 2 if n_classes == 2 else aucs, axis=1),
        }
    present = judged.confusion.sum(axis=1) > 0

    def mean(values):  # undefined where a resample lost a class: a mean over fewer would be another quantity
        values = np.where(support > 0, values, np.nan)[:, present]
        return values.mean(axis=1) if present.sum() > 1 else np.full(len(values), np.nan)

    overall = {
        "accuracy": right.sum(axis=1) / images[:, 0],
        "balanced_accuracy": mean(of_classes["sensitivity"]),
        # A class that is never predicted has no precision; in the mean it counts 0, else to ignore it would pay.
        "macro_precision": mean(np.where(predicted > 0, of_classes["precision"], 0.0)),
        "macro_sensitivity": mean(of_classes["sensitivity"]),
        "macro_specificity": mean(of_classes["specificity"]),
        "macro_f1": mean(of_classes["f1"]),
        "auc": mean(of_classes["auc"]),
        "log_loss": sums[:, -2] / images[:, 0],
        "brier": sums[:, -1] / images[:, 0],
    }
    return overall, of_classes


def _ranking(positive: np.ndarray, scores: np.ndarray, groups: np.ndarray) -> tuple:
    """What AUC needs of one class: groups of the negatives by rising score, of the positives, and where these rank."""
    order = np.argsort(scores[~positive], kind="stable")
    negatives = scores[~positive][order]
    below, upto = (np.searchsorted(negatives, scores[positive], side) for side in ("left", "right"))
    return groups[~positive][order], groups[positive], below, upto


def _auc(counts: np.ndarray, ranking: tuple) -> np.ndarray:
    """(R,) AUC with each group counted counts[r, g] times: the Mann-Whitney statistic over sorted, weighted counts."""
    negatives, positives, below, upto = ranking
    counts = counts.astype(np.float32)  # half the memory to walk through; whole numbers, exact up to 16 million images
    beaten = np.zeros((len(counts), len(negatives) + 1), np.float32)
    np.cumsum(counts.take(negatives, axis=1), axis=1, out=beaten[:, 1:])
    weights = counts.take(positives, axis=1)
    twice = beaten.take(below, axis=1)  # a tie counts half
    twice += beaten.take(upto, axis=1)
    won = np.einsum("rp,rp->r", weights, twice, dtype=np.float64) / 2
    with np.errstate(invalid="ignore"):
        return won / (weights.sum(axis=1, dtype=np.float64) * beaten[:, -1])


def _number(value: float, drawn: np.ndarray, reason: str, left: Sequence[float] = (), groups: int = 0) -> dict:
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


def _without_interval(ece: float) -> dict:
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
