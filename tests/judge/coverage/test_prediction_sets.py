"""Prediction sets hold the true class as often as promised, over simulated studies with clustered patients.

The truth of a study is known from many new patients. Evidence is normal around the class, part of it the patient's own;
the probabilities are those of an overconfident model with another prior.

  python tests/judge/coverage/test_prediction_sets.py      mean coverage of 1,000 studies of each kind
"""

from __future__ import annotations

import sys

import numpy as np
import pandas as pd
import pytest
from scipy import special

from patholib.judge import calibration, predicting, sets

CLASSES, COUNTS = ("A", "B", "C"), (40, 20, 9)  # validation patients; 9 are the fewest that can promise it
CENTRES = np.array([[0.0, 0], [2, 0], [1, 2]])


def study(rng, counts, alike: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels, groups (N,) and probabilities (N, C); some of the patients have more images, and these are harder."""
    effect = rng.normal(size=(sum(counts), 2))
    of = np.repeat(np.arange(sum(counts)), rng.integers(1, 7, sum(counts)) + 6 * (effect[:, 0] > 1))
    labels = np.repeat(np.arange(3), counts)[of]
    seen = CENTRES[labels] + alike**0.5 * effect[of] + (1 - alike) ** 0.5 * rng.normal(size=(len(of), 2))
    return labels, of, special.softmax(-2 * ((seen[:, None] - CENTRES) ** 2).sum(axis=2) + [1, 0, 0], axis=1)


def as_table(labels, groups, probs) -> pd.DataFrame:
    return predicting.with_probs(pd.DataFrame({"label": np.take(CLASSES, labels), "group": groups}), CLASSES, probs)


def thresholds(labels, groups, probs) -> np.ndarray:
    return np.array(list(sets.chosen(as_table(labels, groups, probs), CLASSES)["thresholds"].values()))


def of_images(labels, _groups, probs) -> np.ndarray:
    """What most conformal code does: every image as if it were another patient."""
    scores = [np.sort(probs[labels == k, k]) for k in range(3)]
    return np.array([one[int((len(one) + 1) * (1 - sets.COVERAGE)) - 1] for one in scores])


def coverage(rule, counts, alike: float, studies: int, fitted: bool = False) -> np.ndarray:
    """(S, C) how often the set of a new patient's image holds the true class, each patient counting once."""
    rng, held = np.random.default_rng(0), []
    new, whose, evidence = study(rng, (400,) * 3, alike)
    weights = (1 / np.bincount(whose))[whose] / 400
    for _ in range(studies):
        labels, groups, probs = study(rng, counts, alike)
        those = evidence
        if fitted:  # on the same patients, as `lock` does
            own = calibration.fit(labels, probs, groups)
            probs, those = calibration.apply(probs, own), calibration.apply(those, own)
        inside = those[np.arange(len(new)), new] >= rule(labels, groups, probs)[new]
        held.append(np.bincount(new, weights * inside))
    return np.array(held)


@pytest.mark.parametrize(("alike", "studies"), [(0.6, 250), (1.0, 250)])
def test_over_many_studies_every_class_is_held_as_often_as_promised(alike, studies):
    held = coverage(thresholds, COUNTS, alike, studies)
    error = held.std(axis=0) / studies**0.5 + 0.003  # the new patients are a sample too
    assert (held.mean(axis=0) >= sets.COVERAGE - 2 * error).all()
    if alike == 1:  # held or missed as a whole: no smaller set could promise as much
        assert (held.mean(axis=0) <= sets.COVERAGE + 1 / (np.array(COUNTS) + 1) + 2 * error).all()


@pytest.mark.slow
@pytest.mark.parametrize("fitted", [False, True])
def test_over_a_thousand_studies_also_where_the_same_patients_fitted_the_calibration(fitted):
    held = coverage(thresholds, COUNTS, 0.6, 1000, fitted)
    assert (held.mean(axis=0) >= sets.COVERAGE - 2 * held.std(axis=0) / 1000**0.5 - 0.006).all()


def test_a_class_of_too_few_patients_is_in_every_set():
    held = coverage(thresholds, (40, 20, 8), 0.6, 10)
    assert (held[:, 2] > 1 - 1e-9).all() and held[:, 0].min() < 1


def test_the_quantile_of_the_images_does_not_keep_it():
    assert coverage(of_images, COUNTS, 1.0, 250).mean(axis=0)[2] < sets.COVERAGE - 0.02


def test_a_set_always_has_the_predicted_class_and_every_class_at_its_threshold():
    decision = {"positive": None, "sets": {"thresholds": {"A": 0.5, "B": 0.3, "C": 0.0}}}
    probs = np.array([[0.5, 0.3, 0.2], [0.45, 0.25, 0.3], [0.1, 0.2, 0.7]])
    assert sets.members(probs, CLASSES, decision, 0.5).tolist() == [
        [True, True, True],
        [True, False, True],  # predicted A, below its threshold
        [False, False, True],
    ]


def test_coverage_counts_each_patient_once():
    table = as_table([0, 0, 0, 0, 1], list("aaabc"), np.array([[0.9, 0.1, 0]] * 3 + [[0.1, 0.9, 0]] * 2))
    found = sets.judged(table, CLASSES, predicting.probs_of(table, CLASSES) >= 0.5)
    assert found["coverage"]["A"]["value"] == 0.5 and found["coverage"]["A"]["groups"] == 2
    assert found["coverage"]["B"]["value"] == 1 and found["coverage"]["C"]["value"] is None
    assert found["size"]["value"] == 1 and found["single"]["value"] == 1


def main() -> None:
    for counts in (COUNTS, (40, 20, 8), (200, 100, 50)):
        for alike in (0.0, 0.6, 1.0):
            for name, rule, fitted in (("patients", thresholds, True), ("images", of_images, True)):
                held = coverage(rule, counts, alike, 1000, fitted).mean(axis=0)
                print(f"{counts} patients, alike {alike:g}, quantile of {name:8}: {' '.join(f'{x:.3f}' for x in held)}")


if __name__ == "__main__":
    sys.exit(main())
