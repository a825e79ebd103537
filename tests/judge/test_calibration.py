"""One temperature: planted ones are found, rankings stay; the error of calibration by hand and by scikit-learn."""

import numpy as np
import pytest
from sklearn.calibration import calibration_curve

from patholib.base.errors import PathoError
from patholib.judge import calibration


def drawn(n=20_000, classes=3, seed=0, sharp=1.0):
    """Labels drawn from probabilities, which are then sharpened by dividing their logits by 1 / `sharp`."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 1.5, (n, classes))
    true = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    labels = (rng.random(n)[:, None] > true.cumsum(axis=1)).sum(axis=1)
    said = np.exp(logits * sharp)
    return labels, said / said.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("classes", [2, 8])
@pytest.mark.parametrize("planted", [0.5, 1.0, 1.7, 3.0])
def test_a_planted_temperature_is_found(planted, classes):
    labels, probs = drawn(classes=classes, sharp=planted)
    assert calibration.fit(labels, probs) == pytest.approx(planted, rel=0.04)


def test_the_fitted_temperature_has_the_lowest_loss_of_all():
    labels, probs = drawn(400, sharp=2.0)
    found = calibration.fit(labels, probs)

    def loss(temperature):
        return -np.log(calibration.apply(probs, temperature)[np.arange(400), labels]).mean()

    assert all(loss(found) < loss(found * factor) for factor in (0.9, 0.99, 0.999, 1.001, 1.01, 1.1))
    assert calibration.fit(labels, calibration.apply(probs, found)) == pytest.approx(1, abs=1e-9)


def test_applying_is_the_softmax_of_the_divided_logits_and_one_changes_no_bit():
    logits = np.random.default_rng(0).normal(0, 3, (50, 4))
    probs = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    colder = np.exp(logits / 1.7) / np.exp(logits / 1.7).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(calibration.apply(probs, 1.7), colder, rtol=1e-12)
    assert calibration.apply(probs, 1) is probs
    np.testing.assert_allclose(calibration.apply(calibration.apply(probs, 1.7), 1 / 1.7), probs, rtol=1e-9)


@pytest.mark.parametrize("temperature", [0.4, 0.7, 5.0])
def test_no_temperature_changes_the_order_within_an_image_nor_between_two_of_two_classes(temperature):
    _, probs = drawn(500, classes=4)
    np.testing.assert_array_equal(calibration.apply(probs, temperature).argsort(axis=1), probs.argsort(axis=1))
    _, two = drawn(500, classes=2)
    np.testing.assert_array_equal(calibration.apply(two, temperature)[:, 1].argsort(), two[:, 1].argsort())


def test_certain_probabilities_stay_what_they_are_and_rows_sum_to_one():
    probs = np.array([[1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [1e-300, 1 - 1e-16, 1e-16]])
    for temperature in (0.05, 2.0, 20.0):
        found = calibration.apply(probs, temperature)
        np.testing.assert_array_equal(found[:2], probs[:2])
        np.testing.assert_allclose(found.sum(axis=1), 1)
        assert np.isfinite(found).all()
    assert np.isfinite(calibration.fit(np.array([0, 1] * 20), np.array([[1.0, 0.0], [0.9, 0.1]] * 20)))


def test_worse_than_chance_ends_at_the_hottest_and_sure_almost_always_right_at_the_coldest():
    labels, probs = drawn(200, classes=2)
    assert calibration.fit(1 - probs.argmax(axis=1), probs) == pytest.approx(calibration.HOTTEST)
    timid = np.array([[0.501, 0.499], [0.499, 0.501]] * 100)
    labels = np.array([0, 1] * 100)
    labels[0] = 1
    assert calibration.fit(labels, timid) == pytest.approx(calibration.COLDEST)


@pytest.mark.parametrize(
    ("labels", "probs", "code"),
    [
        ([0, 1] * 5, [[0.4, 0.6], [0.2, 0.8]] * 5, "too_few"),
        ([1] * 40, [[0.4, 0.6], [0.6, 0.4]] * 20, "single_class"),
        ([0, 1] * 20, [[0.6, 0.4], [0.2, 0.8]] * 20, "always_right"),
        ([0, 1] * 20, [0.6, 0.2] * 20, "bad_scores"),
        ([0, 1] * 19, [[0.6, 0.4], [0.2, 0.8]] * 20, "bad_scores"),
    ],
)
def test_what_no_temperature_can_be_fitted_on_is_refused(labels, probs, code):
    with pytest.raises(PathoError) as refusal:
        calibration.fit(np.array(labels), np.array(probs))
    assert refusal.value.code == code


@pytest.mark.parametrize("temperature", [0, -1, np.nan, np.inf])
def test_no_temperature_is_no_number_above_zero(temperature):
    with pytest.raises(PathoError, match="bad_temperature"):
        calibration.apply(np.array([[0.5, 0.5]]), temperature)


# ---- the error ------------------------------------------------------------------------------------------------------


def test_the_calibration_error_worked_by_hand():
    # p of class 1: 0.1 0.2 | 0.6 0.9, labels 0 1 | 0 1: bins of two: |0.15 - 0.5| = 0.35, |0.75 - 0.5| = 0.25.
    probs = np.array([[0.9, 0.1], [0.8, 0.2], [0.4, 0.6], [0.1, 0.9]])
    labels = np.array([0, 1, 0, 1])
    table = calibration.reliability(labels, probs, bins=2, of=1)
    assert table["confidence"].tolist() == pytest.approx([0.15, 0.75])
    assert table["accuracy"].tolist() == [0.5, 0.5] and table["n"].tolist() == [2, 2]
    assert calibration.ece(labels, probs, bins=2, of=1) == pytest.approx((0.35 + 0.25) / 2)
    # The likeliest class: confidences 0.9 0.8 0.6 0.9, right 1 0 0 1; width: (0.5, 1] holds all: |0.8 - 0.5|.
    assert calibration.ece(labels, probs, bins=2, by="width") == pytest.approx(0.3)
    # Mass, by rank 0.6 0.8 | 0.9 0.9: |0.7 - 0|, |0.9 - 1|.
    assert calibration.ece(labels, probs, bins=2) == pytest.approx((0.7 + 0.1) / 2)


@pytest.mark.parametrize(("by", "strategy"), [("mass", "quantile"), ("width", "uniform")])
def test_the_diagram_is_scikit_learns(by, strategy):
    labels, probs = drawn(997, classes=2, sharp=2.0)
    ours = calibration.reliability(labels, probs, 10, by, of=1)
    accuracy, confidence = calibration_curve(labels, probs[:, 1], n_bins=10, strategy=strategy)
    np.testing.assert_allclose(ours["accuracy"], accuracy)
    np.testing.assert_allclose(ours["confidence"], confidence)
    assert ours["n"].sum() == 997


def test_equal_probabilities_share_a_bin_and_the_order_of_the_images_is_nothing_to_it():
    labels, probs = drawn(300, classes=3)
    probs = probs.round(1)
    order = np.random.default_rng(1).permutation(300)
    for by in ("mass", "width"):
        a, b = (calibration.reliability(labels[o], probs[o], 15, by) for o in (np.arange(300), order))
        np.testing.assert_allclose(a, b, rtol=1e-12)
    same = calibration.reliability(labels, np.full((300, 3), 1 / 3), 15)
    assert same["n"].tolist() == [300]
    with pytest.raises(PathoError, match="did you mean 'mass'"):
        calibration.reliability(labels, probs, 15, "masss")


def test_calibrated_probabilities_have_the_error_of_chance_and_sharpened_ones_more():
    labels, probs = drawn(1000, classes=2)
    chance = calibration.ece_by_chance(probs, of=1)
    assert 0.5 * chance < calibration.ece(labels, probs, of=1) < 1.6 * chance
    labels, sharp = drawn(1000, classes=2, sharp=3.0)
    assert calibration.ece(labels, sharp, of=1) > 4 * calibration.ece_by_chance(sharp, of=1)
    mended = calibration.apply(sharp, calibration.fit(labels, sharp))
    assert calibration.ece(labels, mended, of=1) < 1.6 * calibration.ece_by_chance(mended, of=1)
