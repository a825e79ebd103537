"""Metrics for subgroups of the images, and for patients instead of images."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from patholib.judge import intervals, metrics, ranking, resampled

if TYPE_CHECKING:
    from patholib.judge.rules import Shares

ONE_BY_ONE = 500  # patients up to which each is left out once; of more, one hardly moves a number


def of_subgroup(row: Mapping, name: str) -> dict:
    """One number of a row of `by_subgroup` in the form `summary` gives it."""
    return {"value": row[name], "low": row.get(f"{name}_low"), "high": row.get(f"{name}_high")}


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
        resampled.need(predictions, [column])
        for value, part in predictions.groupby(column, sort=True):
            found = metrics.summary(part, classes, positive, threshold, resamples, seed)
            row = {"column": column, "value": str(value) or "(not stated)", "images": found["images"],
                   "groups": found["groups"], "few": found["groups"] < intervals.FEWEST_GROUPS}
            notes = []
            for name in names:
                number = found["metrics"][name]
                row |= {name: number["value"], f"{name}_low": number["low"], f"{name}_high": number["high"]}
                notes += [f"{name}: {number[k]}" for k in ("undefined", "no_interval", "note") if k in number]
            rows.append({**row, "note": "; ".join(found["notes"] + notes)})
    numbers = [f"{name}{end}" for name in names for end in ("", "_low", "_high")]
    table = pd.DataFrame(rows, columns=["column", "value", "images", "groups", "few", *numbers, "note"])
    return table.astype(dict.fromkeys(numbers, float))


def by_patient(predictions: pd.DataFrame, classes: Sequence[str], positive: str | None = None, column: str = "case",
               threshold: float | Shares = 0.5) -> pd.DataFrame:
    """One row per patient, sorted: images, true label, patient score, mean probabilities and what these decide.

    `score` is the share of the patient's images that are right (Spanhol et al. 2016: N_rec / N_P). Patients with two
    labels (`two_labels`) have no true label and are left out. The table has `label`, `group` and the `p_` columns, so
    it is itself a table of predictions, with patients for images.
    """
    columns = [f"p_{c}" for c in classes]
    right = resampled.decide(predictions, classes, positive, threshold) == predictions["label"].to_numpy()
    table = predictions.assign(patient=metrics.patients(predictions, column), right=right)
    parts = table[~table["patient"].isin(metrics.two_labels(predictions, column))].groupby("patient", sort=True)
    patients = parts.agg(group=("group", "first"), groups=("group", "nunique"), label=("label", "first"),
                         images=("label", "size"), right=("right", "sum")).reset_index()
    # A slide stays in its case; where the split was by image, the images of a patient are still drawn as one.
    patients["group"] = patients["group"].astype(str).where(patients.pop("groups") == 1, patients["patient"])
    patients["score"] = patients["right"] / patients["images"]
    patients[columns] = parts[columns].mean().to_numpy()
    patients["decision"] = resampled.decide(patients, classes, positive, threshold) if len(patients) else ""
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
    both = metrics.two_labels(predictions, column)
    patients = by_patient(predictions, classes, positive, column, threshold)
    found = {"column": column, "patients": len(patients), "two_labels": {"patients": len(both), "names": both}}
    if not len(patients):
        undefined = {"value": None, "low": None, "high": None, "undefined": "every patient has two labels"}
        return {**found, "recognition_rate": undefined, "summary": None}
    return {**found, "recognition_rate": ranking.mean_of(patients["score"], patients["group"], resamples, seed),
            "summary": metrics.summary(patients, classes, positive, threshold, resamples, seed),
            "one_patient": _without_one(predictions, patients, classes, positive, column, threshold)}


def _without_one(predictions, patients, classes, positive, column, threshold) -> dict:
    """How far one patient moves the numbers: `share` of the recognition rate that is one patient's, and between what
    (`low`, `high`) the rate and the headline numbers lie when each is left out once; of too many patients the share."""
    found = {"share": 1 / len(patients)}
    if not 2 < len(patients) <= ONE_BY_ONE:
        return found
    scores = patients["score"].to_numpy()
    ranges = {"recognition_rate": (scores.sum() - scores) / (len(scores) - 1)}
    judged = resampled.judge(predictions.assign(group=metrics.patients(predictions, column)), classes, positive, threshold)
    ranges |= {name: values for name, values in resampled.values(judged, 1 - np.eye(judged.groups))[0].items()
               if name in ("auc", "balanced_accuracy", "accuracy")}
    return found | {name: {"low": float(np.nanmin(values)), "high": float(np.nanmax(values))}
                    for name, values in ranges.items() if not np.isnan(values).all()}
