"""Calibration: planted temperatures, biases and priors are found; the errors by hand and by scikit-learn."""

import numpy as np
import pytest
from sklearn.calibration import calibration_curve
from sklearn.linear_model import LogisticRegression

from patholib.base.errors import PathoError
from patholib.judge import calibration
from patholib.judge.calibration import Calibration


def softmax(logits):
    return np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)


def drawn(n=20_000, classes=3, seed=0, sharp=1.0, bias=0.0):
    """Labels drawn from probabilities, whose logits are then shifted by `bias` and multiplied by `sharp`."""
    logits = np.random.default_rng(seed).normal(0, 1.5, (n, classes))
    u = np.random.default_rng(seed + 1).random(n)
    labels = (u[:, None] > softmax(logits).cumsum(axis=1)).sum(axis=1)
    return labels, softmax((logits - bias) * sharp)


@pytest.mark.parametrize("classes", [2, 8])
@pytest.mark.parametrize("planted", [0.5, 1.0, 1.7, 3.0])
def test_a_planted_temperature_is_found(planted, classes):
    labels, probs = drawn(classes=classes, sharp=planted)
    found = calibration.fit(labels, probs)
    assert found.temperature == pytest.approx(planted, rel=0.04)
    assert np.abs(found.bias).max() < 0.07


def test_planted_biases_are_found_and_sum_to_zero():
    bias = np.array([1.0, -0.25, -0.75])
    labels, probs = drawn(bias=bias, sharp=2.0)
    found = calibration.fit(labels, probs)
    np.testing.assert_allclose(found.bias, bias, atol=0.06)
    assert found.temperature == pytest.approx(2, rel=0.04) and sum(found.bias) == pytest.approx(0, abs=1e-12)


def test_a_prior_correction_gives_back_the_probabilities_of_the_images_as_they_are():
    """Bayes: posteriors of even classes, times the prior over the even one, are those of the prior."""
    prior = np.array([0.7, 0.2, 0.1])
    likelihoods = np.random.default_rng(0).random((100, 3))
    even, own = (shares / shares.sum(axis=1, keepdims=True) for shares in (likelihoods, likelihoods * prior))
    np.testing.assert_allclose(calibration.apply(even, Calibration(correction=tuple(1 / 3 / prior))), own, rtol=1e-12)


def test_without_groups_enough_the_fit_stays_near_no_change():
    labels, probs = drawn(400, classes=2, bias=np.array([0.5, -0.5]), sharp=2.0)
    many, few = (calibration.fit(labels, probs, np.arange(400) % groups) for groups in (400, 4))
    assert 1 < few.temperature < many.temperature and 0 < few.bias[0] < many.bias[0]
    assert calibration.fit(labels, probs) == many


def test_the_fitted_temperature_and_biases_have_the_lowest_penalised_loss_of_all():
    labels, probs = drawn(400, sharp=2.0, bias=np.array([0.5, 0, -0.5]))
    found = calibration.fit(labels, probs)

    def loss(temperature, bias):
        own = calibration.apply(probs, Calibration(temperature, tuple(bias)))[np.arange(400), labels]
        widths = calibration.BIAS_SD, calibration.LOG_TEMPERATURE_SD
        return -np.log(own).sum() + ((bias / widths[0]) ** 2).sum() / 2 + (np.log(temperature) / widths[1]) ** 2 / 2

    bias = np.array(found.bias)
    lowest = loss(found.temperature, bias)
    assert all(lowest < loss(found.temperature * factor, bias) for factor in (0.9, 0.999, 1.001, 1.1))
    assert all(lowest < loss(found.temperature, bias + move) for move in np.vstack([np.eye(3), -np.eye(3)]) * 1e-3)


def test_applying_is_the_softmax_of_the_logits_and_the_default_changes_no_bit():
    logits = np.random.default_rng(0).normal(0, 3, (50, 4))
    probs, bias, ratios = softmax(logits), np.array([0.5, -0.1, 0, -0.4]), np.array([0.2, 1, 2, 3])
    expected = softmax((logits - np.log(ratios)) / 1.7 + bias)
    np.testing.assert_allclose(
        calibration.apply(probs, Calibration(1.7, tuple(bias), tuple(ratios))), expected, rtol=1e-12
    )
    assert calibration.apply(probs, Calibration()) is probs
    back = calibration.apply(calibration.apply(probs, Calibration(1.7)), Calibration(1 / 1.7))
    np.testing.assert_allclose(back, probs, rtol=1e-9)


@pytest.mark.parametrize("temperature", [0.4, 0.7, 5.0])
def test_no_temperature_changes_the_order_within_an_image_nor_a_calibration_that_between_two_of_two_classes(
    temperature,
):
    _, probs = drawn(500, classes=4)
    calibrated = calibration.apply(probs, Calibration(temperature))
    np.testing.assert_array_equal(calibrated.argsort(axis=1), probs.argsort(axis=1))
    _, two = drawn(500, classes=2)
    calibrated = calibration.apply(two, Calibration(temperature, (0.5, -0.5), (2.0, 0.7)))
    np.testing.assert_array_equal(calibrated[:, 1].argsort(), two[:, 1].argsort())


def test_certain_probabilities_stay_what_they_are_and_rows_sum_to_one():
    probs = np.array([[1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [1e-300, 1 - 1e-16, 1e-16]])
    for temperature in (0.05, 2.0, 20.0):
        found = calibration.apply(probs, Calibration(temperature))
        np.testing.assert_array_equal(found[:2], probs[:2])
        np.testing.assert_allclose(found.sum(axis=1), 1)
        assert np.isfinite(found).all()
        shifted = calibration.apply(probs, Calibration(temperature, (1.0, 2.0, -3.0), (1.0, 2.0, 3.0)))
        np.testing.assert_array_equal(shifted[0], probs[0])
        assert np.isfinite(shifted).all() and shifted[1, 2] == 0
    found = calibration.fit(np.array([0, 1] * 20), np.array([[1.0, 0.0], [0.9, 0.1]] * 20))
    assert np.isfinite(found.bias).all() and np.isfinite(found.temperature)


def test_worse_than_chance_gets_hot_and_always_right_cold_within_reason():
    """Without a prior of the temperature both would have no end."""
    _, probs = drawn(200, classes=2)
    assert 3 < calibration.fit(1 - probs.argmax(axis=1), probs).temperature < 100
    assert 0.05 < calibration.fit(probs.argmax(axis=1), probs).temperature < 0.5


@pytest.mark.parametrize(
    ("labels", "probs", "code"),
    [
        ([1] * 40, [[0.4, 0.6], [0.6, 0.4]] * 20, "single_class"),
        ([0, 1] * 20, [0.6, 0.2] * 20, "bad_scores"),
        ([0, 1] * 19, [[0.6, 0.4], [0.2, 0.8]] * 20, "bad_scores"),
    ],
)
def test_what_no_calibration_can_be_fitted_on_is_refused(labels, probs, code):
    with pytest.raises(PathoError) as refusal:
        calibration.fit(np.array(labels), np.array(probs))
    assert refusal.value.code == code


@pytest.mark.parametrize(
    "values",
    [
        *({"temperature": value} for value in (0, -1, np.nan, np.inf)),
        {"bias": (0.0, np.nan)},
        {"correction": (0.0, 1.0)},
        {"correction": (1.0, np.inf)},
    ],
)
def test_a_calibration_out_of_range_is_refused(values):
    with pytest.raises(PathoError, match="bad_calibration"):
        Calibration(**values)


def test_a_calibration_is_read_back_and_an_older_decision_has_a_temperature_alone():
    classes = ("a", "b")
    for one in (Calibration(), Calibration(1.3), Calibration(1.3, (0.1, -0.1), (2.0, 0.5))):
        assert Calibration.of(one.to_json(classes), classes) == one
    assert Calibration.of({"temperature": 1.3}, classes) == Calibration(1.3)
    assert Calibration.of(None, classes) == Calibration.of({"temperature": None}, classes) == Calibration()
    reversed_classes = Calibration.of({"temperature": 1, "bias": {"b": -0.1, "a": 0.1}}, classes)
    assert reversed_classes.bias == (0.1, -0.1)
    with pytest.raises(PathoError, match="bad_calibration"):
        Calibration.of({"temperature": 1, "bias": {"a": 0.1}}, classes)


# ---- the error ------------------------------------------------------------------------------------------------------


def test_the_calibration_error_worked_by_hand():
    # p of class 1: 0.1 0.2 | 0.6 0.9, labels 0 1 | 0 1: bins of two: |0.15 - 0.5| = 0.35, |0.75 - 0.5| = 0.25.
    probs = np.array([[0.9, 0.1], [0.8, 0.2], [0.4, 0.6], [0.1, 0.9]])
    labels = np.array([0, 1, 0, 1])
    table = calibration.reliability(labels, probs, bins=2, of=1)
    assert table["confidence"].tolist() == pytest.approx([0.15, 0.75])
    assert table["accuracy"].tolist() == [0.5, 0.5] and table["n"].tolist() == [2, 2]
    assert calibration.ece(labels, probs, bins=2, of=1) == pytest.approx((0.35 + 0.25) / 2)
    # The likeliest class: confidences 0.9 0.8 0.6 0.9, right 1 0 0 1; by rank 0.6 0.8 | 0.9 0.9: |0.7 - 0|, |0.9 - 1|.
    assert calibration.ece(labels, probs, bins=2) == pytest.approx((0.7 + 0.1) / 2)


def test_the_diagram_is_scikit_learns():
    labels, probs = drawn(997, classes=2, sharp=2.0)
    ours = calibration.reliability(labels, probs, 10, of=1)
    accuracy, confidence = calibration_curve(labels, probs[:, 1], n_bins=10, strategy="quantile")
    np.testing.assert_allclose(ours["accuracy"], accuracy)
    np.testing.assert_allclose(ours["confidence"], confidence)
    assert ours["n"].sum() == 997


def test_equal_probabilities_share_a_bin_and_the_order_of_the_images_is_nothing_to_it():
    labels, probs = drawn(300, classes=3)
    probs = probs.round(1)
    order = np.random.default_rng(1).permutation(300)
    a, b = (calibration.reliability(labels[o], probs[o], 15) for o in (np.arange(300), order))
    np.testing.assert_allclose(a, b, rtol=1e-12)
    same = calibration.reliability(labels, np.full((300, 3), 1 / 3), 15)
    assert same["n"].tolist() == [300]


def test_calibrated_probabilities_have_the_error_of_chance_and_sharpened_ones_more():
    labels, probs = drawn(1000, classes=2)
    chance = calibration.ece_by_chance(probs, of=1)
    assert 0.5 * chance < calibration.ece(labels, probs, of=1) < 1.6 * chance
    labels, sharp = drawn(1000, classes=2, sharp=3.0)
    assert calibration.ece(labels, sharp, of=1) > 4 * calibration.ece_by_chance(sharp, of=1)
    mended = calibration.apply(sharp, calibration.fit(labels, sharp))
    assert calibration.ece(labels, mended, of=1) < 1.6 * calibration.ece_by_chance(mended, of=1)


def test_the_class_wise_error_sees_a_wrong_prior_that_the_largest_probability_hides():
    """By hand: three images in four are of class 0, and every image gets probability one half for either class."""
    labels, probs = np.array([0, 0, 0, 1] * 10), np.full((40, 2), 0.5)
    assert calibration.classwise_ece(labels, probs) == pytest.approx(0.25)
    rng = np.random.default_rng(0)
    true = rng.dirichlet(np.ones(3), 20_000)
    labels = (rng.random(20_000)[:, None] > true.cumsum(axis=1)).sum(axis=1)
    assert calibration.classwise_ece(labels, true) < 0.01
    # the second and the third class confused in what is left to them: the predicted class has its probability
    swapped, k = true.copy(), np.arange(20_000)
    ranked = true.argsort(axis=1)
    swapped[k, ranked[:, 0]], swapped[k, ranked[:, 1]] = true[k, ranked[:, 1]], true[k, ranked[:, 0]]
    assert calibration.ece(labels, swapped) < 0.01 < 0.03 < calibration.classwise_ece(labels, swapped)


def test_intercept_and_slope_are_those_of_a_logistic_regression_and_zero_and_one_if_calibrated():
    labels, probs = drawn(20_000, classes=2)
    assert calibration.intercept(labels, probs, 1) == pytest.approx(0, abs=0.04)
    assert calibration.slope(labels, probs, 1) == pytest.approx(1, abs=0.04)
    labels, probs = drawn(2000, classes=2, sharp=2.0, bias=np.array([0.0, 0.3]))
    odds = np.log(probs[:, 1] / probs[:, 0])
    theirs = LogisticRegression(C=1e12, tol=1e-12, max_iter=1000).fit(odds[:, None], labels)
    assert calibration.slope(labels, probs, 1) == pytest.approx(theirs.coef_[0, 0], rel=1e-4)
    a = calibration.intercept(labels, probs, 1)  # with it the probabilities have the mean that is observed
    assert (1 / (1 + np.exp(-odds - a))).mean() == pytest.approx(labels.mean(), abs=1e-10) and a > 0.2


def test_intercept_and_slope_are_undefined_where_there_is_nothing_to_compare_or_no_error():
    probs = np.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.2, 0.8]])
    for labels in ([0, 0, 0, 0], [1, 1, 1, 1]):
        assert np.isnan(calibration.intercept(labels, probs, 1)) and np.isnan(calibration.slope(labels, probs, 1))
    assert np.isnan(calibration.slope([0, 0, 1, 1], probs, 1)) and np.isnan(calibration.slope([1, 1, 0, 0], probs, 1))
    assert np.isfinite(calibration.intercept([0, 0, 1, 1], probs, 1))
