"""Labels are doubted by how little the predictions out of fold believe them, image by image and patient by patient."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from patholib.judge import doubts

CLASSES = ("a", "b", "c")


def table(rows) -> pd.DataFrame:
    """(path, patient, label, p_a, p_b, p_c) by image."""
    return pd.DataFrame(rows, columns=["path", "group", "label", "p_a", "p_b", "p_c"])


def test_the_label_of_the_lowest_probability_comes_first_and_the_likeliest_other_class_is_named():
    rows = [("x", "1", "a", 0.90, 0.06, 0.04), ("y", "1", "b", 0.50, 0.10, 0.40), ("z", "2", "c", 0.30, 0.45, 0.25)]
    found = doubts.ranked(table(rows), CLASSES)
    assert found["path"].tolist() == ["y", "z", "x"] and found["rank"].tolist() == [1, 2, 3]
    assert found["suggested"].tolist() == ["a", "b", "b"]  # never the label itself
    assert found["p_label"].tolist() == [0.10, 0.25, 0.90] and found["p_suggested"].tolist() == [0.50, 0.45, 0.06]
    assert found["patient"].tolist() == ["1", "2", "1"] and found["label"].tolist() == ["b", "c", "a"]


def test_an_image_that_was_tested_in_several_repeats_is_one_row_with_their_mean_in_any_order():
    rows = [("x", "1", "a", 0.2, 0.8, 0.0), ("y", "2", "a", 0.3, 0.7, 0.0), ("x", "1", "a", 0.6, 0.4, 0.0)]
    for order in (rows, rows[::-1]):
        found = doubts.ranked(table(order), CLASSES)
        assert found["path"].tolist() == ["y", "x"] and found["p_label"].tolist() == pytest.approx([0.3, 0.4])


def test_patients_are_listed_by_their_images_in_the_first_tenth():
    p = np.linspace(0.01, 0.99, 40)  # the first four are the tenth
    patients = ["1", "2", "2", "3"] + ["2"] * 6 + ["4"] * 30
    found = doubts.ranked(
        table([(f"{i:02}", who, "a", p[i], 1 - p[i], 0.0) for i, who in enumerate(patients)]), CLASSES
    )
    listed = doubts.by_patient(found)
    assert listed.to_numpy().tolist() == [["2", 8, 2, 2], ["1", 1, 1, 1], ["3", 1, 1, 4]]


def test_turned_labels_are_found_where_the_predictions_are_calibrated():
    rng = np.random.default_rng(0)
    probs = rng.dirichlet([0.15, 0.15, 0.15], 600)
    labels = np.array([rng.choice(3, p=p) for p in probs])
    turned = rng.choice(600, 30, replace=False)
    labels[turned] = (labels[turned] + rng.integers(1, 3, 30)) % 3
    found = doubts.ranked(table([(f"{i:03}", str(i // 2), CLASSES[labels[i]], *probs[i]) for i in range(600)]), CLASSES)
    first = set(found.head(60)["path"])
    assert len({f"{i:03}" for i in turned} & first) >= 15 and len(first) == 60
