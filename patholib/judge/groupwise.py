"""Metrics for subgroups of the images, and for patients instead of images."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import pandas as pd

from patholib.judge import intervals, metric_table, metrics, resampled, rules

if TYPE_CHECKING:
    from patholib.judge.rules import Shares

UNITS = {
    "case": "patients",
    "patient": "patients",
    "subject": "patients",
    "lesion": "lesions",
    "slide": "slides",
    "specimen": "specimens",
    "image": "images",
}


def units(column: str) -> str:
    """What the values of an id column are, in the plural; of a column that is not known, groups."""
    return UNITS.get(column, "groups")


def of_subgroup(row: Mapping, name: str) -> dict:
    """One number of a row of `by_subgroup` as `Estimate.to_json` gives it."""
    return {"value": row[name], "low": row.get(f"{name}_low"), "high": row.get(f"{name}_high")}


def by_subgroup(
    predictions: pd.DataFrame,
    classes: Sequence[str],
    positive: str | None,
    columns: Iterable[str],
    threshold: float | Shares = 0.5,
) -> pd.DataFrame:
    """The headline metrics of every subgroup: one row per value of each column, with `column`, `value` and `note`.

    `few` marks the rows in which a class that occurs has fewer than 10 groups. An undefined number is NaN, and `note`
    says why.
    """
    names = metric_table.headline(rules.uses_threshold(classes, positive, threshold))
    rows = []
    for column in columns:
        resampled.need(predictions, [column])
        for value, part in predictions.groupby(column, sort=True):
            found = metrics.summary(part, classes, positive, threshold)
            row = {
                "column": column,
                "value": str(value) or "(not stated)",
                "images": found["images"],
                "groups": found["groups"],
                "few": bool(found["notes"]),
            }
            notes = []
            for name in names:
                number = found["metrics"][name]
                row |= {name: number["value"], f"{name}_low": number["low"], f"{name}_high": number["high"]}
                notes += [f"{name}: {number[k]}" for k in ("undefined", "no_interval", "note") if k in number]
            rows.append({**row, "note": "; ".join(found["notes"] + notes)})
    numbers = [f"{name}{end}" for name in names for end in ("", "_low", "_high")]
    table = pd.DataFrame(rows, columns=["column", "value", "images", "groups", "few", *numbers, "note"])
    return table.astype(dict.fromkeys(numbers, float))


def patient_of_each(predictions: pd.DataFrame, column: str) -> pd.Series:
    """The patient of each image, (N,) text; where it is unknown, the group. Errors: missing_column."""
    resampled.need(predictions, [column, "group", "label"])
    known = predictions[column].astype(str)
    return known.where(known != "", predictions["group"].astype(str))


def with_two_labels(predictions: pd.DataFrame, column: str = "case") -> list[str]:
    """The patients whose images do not all have the same label, sorted."""
    labels = predictions.groupby(patient_of_each(predictions, column))["label"].nunique()
    return [str(name) for name in labels.index[labels > 1]]


def by_patient(
    predictions: pd.DataFrame,
    classes: Sequence[str],
    positive: str | None = None,
    column: str = "case",
    threshold: float | Shares = 0.5,
    of_patients: float | Shares | None = None,
) -> pd.DataFrame:
    """One row per patient, sorted: images, true label, patient score, mean probabilities and their predicted class.

    threshold: of images; of_patients: of the mean probability (None: that of images, which fits it badly, as means are
    less extreme). `score` is the share of the patient's images that are right (Spanhol et al. 2016: N_rec / N_P).
    Patients with two labels (`with_two_labels`) have no true label and are left out. The table has `label`, `group` and
    the `p_` columns, so it is itself a table of predictions, with patients for images.
    """
    columns = [f"p_{c}" for c in classes]
    right = resampled.decide(predictions, classes, positive, threshold) == predictions["label"].to_numpy()
    table = predictions.assign(patient=patient_of_each(predictions, column), right=right)
    parts = table[~table["patient"].isin(with_two_labels(predictions, column))].groupby("patient", sort=True)
    patients = parts.agg(
        group=("group", "first"),
        groups=("group", "nunique"),
        label=("label", "first"),
        images=("label", "size"),
        right=("right", "sum"),
    ).reset_index()
    # A slide stays in its case; where the split was by image, the images of a patient are still drawn as one.
    patients["group"] = patients["group"].astype(str).where(patients.pop("groups") == 1, patients["patient"])
    patients["score"] = patients["right"] / patients["images"]
    patients[columns] = parts[columns].mean().to_numpy()
    at = threshold if of_patients is None else of_patients
    patients["decision"] = resampled.decide(patients, classes, positive, at) if len(patients) else ""
    return patients


def patient_summary(
    predictions: pd.DataFrame,
    classes: Sequence[str],
    positive: str | None = None,
    column: str = "case",
    threshold: float | Shares = 0.5,
    of_patients: float | Shares | None = None,
) -> dict:
    """`metrics.summary` with patients for images, decided by mean probability, and the patient recognition rate.

    threshold: of images, for the rate; of_patients: of the mean probability, see `by_patient`.
    The rate is the mean of the patient scores (Spanhol et al. 2016): every patient counts once, however many images
    there are. Patients with two labels are counted and left out.
    """
    both = with_two_labels(predictions, column)
    at = threshold if of_patients is None else of_patients
    patients = by_patient(predictions, classes, positive, column, threshold, at)
    found = {"column": column, "patients": len(patients), "two_labels": {"patients": len(both), "names": both}}
    if not len(patients):
        rate = intervals.Estimate(None, missing="every patient has two labels")
        return {**found, "recognition_rate": rate.to_json(), "summary": None}
    rate = intervals.mean_of(patients["score"], patients["group"], "share")
    return {**found, "recognition_rate": rate.to_json(), "summary": metrics.summary(patients, classes, positive, at)}
