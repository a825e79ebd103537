"""Data of the patient beside the image: what it adds, what it must not know, and what happens without it."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import special

from patholib.base.errors import PathoError
from patholib.judge import patients, predicting

CLASSES = ("benign", "malignant")


def table(n: int, effect: float, seed: int = 0) -> pd.DataFrame:
    """Predictions calibrated for the image alone; `effect`: log odds that sex, independent of the image, adds."""
    rng = np.random.default_rng(seed)
    odds, sex = rng.normal(size=n), rng.integers(0, 3, n)
    true = rng.random(n) < special.expit(odds + effect * np.array([1, -1, 0])[sex])
    values = {"sex": np.array(["female", "male", ""])[sex], "label": np.take(CLASSES, true.astype(int))}
    rows = pd.DataFrame({**values, "group": [f"p{i // 2}" for i in range(n)]})
    p = special.expit(odds)
    return predicting.with_probs(rows, CLASSES, np.stack([1 - p, p], axis=1))


def log_loss(of: pd.DataFrame) -> float:
    probs = predicting.probs_of(of, CLASSES)
    return -np.log(probs[np.arange(len(of)), predicting.true_labels(of, CLASSES)]).mean()


def test_what_a_column_says_beside_the_image_is_learnt_and_lowers_the_loss_on_new_patients():
    val, new = table(2000, 1.0), table(5000, 1.0, seed=1)
    weights = patients.fit(val, CLASSES, ["sex"])
    odds = {value: of["malignant"] - of["benign"] for value, of in weights["sex"].items()}
    assert odds["female"] == pytest.approx(1, abs=0.25) and odds["male"] == pytest.approx(-1, abs=0.25)
    assert abs(odds[""]) < 0.25  # a missing value is a value of its own
    probs = patients.apply(predicting.probs_of(new, CLASSES), new, CLASSES, weights)
    assert np.allclose(probs.sum(axis=1), 1)
    assert log_loss(predicting.with_probs(new, CLASSES, probs)) < log_loss(new) - 0.05


def test_cross_fitting_shows_no_gain_where_there_is_none():
    val = table(120, 0.0)
    seen = patients.apply(predicting.probs_of(val, CLASSES), val, CLASSES, patients.fit(val, CLASSES, ["sex"]))
    assert log_loss(predicting.with_probs(val, CLASSES, seen)) < log_loss(val)  # on the images of the fit
    assert log_loss(patients.cross_fitted(val, CLASSES, ["sex"], 0)) > log_loss(val) - 0.002


def test_a_value_that_the_fit_did_not_see_changes_nothing_and_a_missing_column_is_named():
    weights = {"sex": {"female": {"benign": 0.0, "malignant": 2.0}}}
    probs = np.array([[0.5, 0.5], [0.5, 0.5]])
    found = patients.apply(probs, {"sex": ["female", "other"]}, CLASSES, weights)
    assert found[0, 1] == pytest.approx(special.expit(2)) and found[1].tolist() == [0.5, 0.5]
    with pytest.raises(PathoError, match="missing_column"):
        patients.apply(probs, {"age": [1, 2]}, CLASSES, weights)


@pytest.mark.parametrize(
    ("column", "values", "words"),
    [
        ("dx_type", "xy", "made from the diagnosis"),
        ("method", "ab", "proxy"),  # equal to the label
        ("id", [str(i) for i in range(60)], "more than 20"),
    ],
)
def test_columns_that_know_the_label_are_refused(column, values, words):
    rows = pd.DataFrame({"label": list(CLASSES) * 30, column: values if len(values) == 60 else list(values) * 30})
    with pytest.raises(PathoError, match=words):
        patients.check(rows, [column])
    patients.check(rows.assign(sex=["f", "f", "m"] * 20), ["sex"])
