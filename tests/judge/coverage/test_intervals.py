"""Intervals hold the truth about as often as they say, and equal what is known from statistics.

The whole table of coverage is in docs/promises.md; `python tests/intervals.py` writes it.
"""

from dataclasses import replace

import numpy as np
import pytest
from intervals import ALIKE, GROUPS, LEAST, MOST, NUMBERS, UNEQUAL, World, coverage, difference, eight, table
from intervals import CLASSES as BINARY
from prediction_tables import binary
from scipy import stats
from sklearn.metrics import roc_auc_score

from patholib.judge import intervals, metrics

QUICK = 150


def least(share: float, simulations: int) -> float:
    """What a share that is as promised stays above, but for one time in a thousand."""
    return share - 3 * np.sqrt(share * (1 - share) / simulations)


def width(number):
    return number["high"] - number["low"]


# ---- coverage by simulation ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("groups", GROUPS)
def test_an_interval_holds_the_truth_also_with_few_groups_of_one_class(groups):
    found = coverage(ALIKE, groups, QUICK)
    assert (found["held"] >= least(LEAST, QUICK)).all(), found
    assert (found["none"] < 0.02).all(), found


@pytest.mark.parametrize("groups", UNEQUAL)
def test_it_also_does_where_one_patient_has_a_fifth_of_the_images(groups):
    """As of 16 benign cases of BreakHis; most are all right, which is the hardest."""
    for world in (ALIKE, World(skill=1.6, between=1.0, within=0.3)):
        found = coverage(replace(world, unequal=True), groups, 4 * QUICK)
        assert (found["held"] >= least(LEAST, 4 * QUICK)).all(), found


def test_images_taken_one_by_one_are_found_out():
    """The same test on intervals that are wrong: every image counts as a group of its own."""
    found = coverage(ALIKE, (10, 10), QUICK, rows=True)
    assert (found["held"] < least(LEAST, QUICK)).all(), found


def test_the_interval_of_a_difference_holds_the_truth():
    for groups in ((3, 8), (16, 54)):
        assert (difference(World(), groups, 100)["held"] >= least(LEAST, 100)).all()


@pytest.mark.slow
@pytest.mark.parametrize("groups", GROUPS)
def test_coverage_is_neither_too_low_nor_too_high(groups):
    found = coverage(World(), groups, 2000)["held"]
    assert ((found >= LEAST) & (found <= MOST)).all(), found


@pytest.mark.slow
def test_eight_classes_one_of_them_rare():
    found = eight({"NV": 305, "MEL": 107, "BCC": 79, "BKL": 62, "AK": 20, "SCC": 15, "VASC": 6, "DF": 6}, 500)["held"]
    assert (found[["auc", "balanced_accuracy", "accuracy"]] >= least(LEAST, 500)).all(), found


# ---- against what is known -------------------------------------------------------------------------------------------


def test_of_one_image_per_patient_the_error_of_an_auc_is_that_of_delong():
    """DeLong et al. 1988: from the structural components, whose variances are of n - 1."""
    labels, scores, _ = World().draw(1, (30, 50))
    one = np.unique(labels * 1000 + np.arange(len(labels)) % 40, return_index=True)[1]
    labels, scores = labels[one], scores[one]
    won = scores[labels == 1][:, None] > scores[labels == 0]
    error = np.sqrt(
        won.mean(axis=1).var(ddof=1) / (labels == 1).sum() + won.mean(axis=0).var(ddof=1) / (labels == 0).sum()
    )
    both = np.stack([labels == 0, labels == 1])
    without = [roc_auc_score(np.delete(labels, i), np.delete(scores, i)) for i in range(len(labels))]
    found = intervals.estimate(won.mean(), np.array(without), both, "difference")
    assert found.high - found.value == pytest.approx(error * intervals.student(both.sum(axis=1), both.sum(axis=1) - 1))


def test_a_mean_over_groups_of_one_image_has_the_interval_of_students_t():
    values = np.random.default_rng(0).normal(size=12)
    found = intervals.mean_of(values, np.arange(12))
    theirs = stats.t.interval(0.95, 11, values.mean(), stats.sem(values))
    assert (found.low, found.high) == pytest.approx(theirs)


def test_the_copies_of_an_image_add_nothing():
    """Five equal images of a patient are one."""
    values = np.random.default_rng(0).normal(size=20)
    one, five = (
        intervals.mean_of(values, np.arange(20)),
        intervals.mean_of(np.repeat(values, 5), np.repeat(range(20), 5)),
    )
    assert (one.low, one.high) == pytest.approx((five.low, five.high))
    labels, scores, group = World().draw(3, (12, 15))
    every = np.repeat(np.arange(len(labels)), 3)
    once, thrice = (
        metrics.summary(table(labels[rows], scores[rows], group[rows]), BINARY, "malignant")["metrics"]
        for rows in (slice(None), every)
    )
    for name in NUMBERS:
        assert once[name] == pytest.approx(thrice[name]), name


@pytest.mark.parametrize("name", ["auc", "accuracy", "log_loss"])
def test_images_of_a_patient_that_are_alike_make_it_wider(name):
    predictions = table(*ALIKE.draw(0, (40, 40)))
    rows = predictions.assign(group=[str(i) for i in range(len(predictions))])
    clustered, single = (metrics.summary(t, BINARY, "malignant")["metrics"][name] for t in (predictions, rows))
    assert width(clustered) > 1.7 * width(single)


def test_where_every_image_is_its_own_group_the_width_is_the_textbook_one():
    predictions = binary(np.ones(400, dtype=int), np.where(np.random.default_rng(0).random(400) < 0.8, 0.9, 0.1))
    number = metrics.summary(predictions, BINARY, "malignant")["metrics"]["accuracy"]
    p = number["value"]
    assert width(number) == pytest.approx(2 * 1.96 * np.sqrt(p * (1 - p) / 400), rel=0.03)


def test_degrees_of_freedom_are_those_of_the_rarer_class():
    def t(*groups):
        return intervals.student(np.array(groups), np.array(groups) - 1)

    assert t(8) == pytest.approx(stats.t.ppf(0.975, 7)) and t(10, 10) == pytest.approx(stats.t.ppf(0.975, 18))
    # Satterthwaite by hand, 3 and 8 groups: (1/3 + 1/8)^2 / ((1/3)^2 / 2 + (1/8)^2 / 7) = 3.635.
    assert t(3, 8) == pytest.approx(stats.t.ppf(0.975, 3.635), rel=1e-4)
    assert t(3, 8) > t(4, 8) > t(8, 8) and t(3, 1000) == pytest.approx(t(3), rel=0.01)


def test_groups_of_unequal_size_count_as_the_equal_ones_that_are_as_sure():
    """By hand: (20 + 15 * 16 / 3)^2 / (20^2 + 15 * (16 / 3)^2) = 12.1 for one group with a fifth of the images."""
    unequal, equal = np.array([[20.0, *[16 / 3] * 15], [5.0] * 16])
    assert intervals.effective(np.stack([unequal, equal])) == pytest.approx([12.097, 16], rel=1e-4)
    right = np.arange(16) % 2 == 0
    share = right @ unequal / unequal.sum()
    without = np.array([right @ (unequal * k) / (unequal * k).sum() for k in 1 - np.eye(16)])
    found = intervals.estimate(share, without, unequal[None], "difference")
    error = np.sqrt(15 / 16 * ((without - share) ** 2).sum())
    assert found.high - share == pytest.approx(stats.t.ppf(0.975, 12.097) * error, rel=1e-4)
    same = intervals.estimate(share, without, equal[None], "difference")  # never more than of so many equal groups
    assert same.high - share == pytest.approx(stats.t.ppf(0.975, 15) * error)


# ---- the ends of the scale -------------------------------------------------------------------------------------------


def test_all_right_is_bounded_over_patients_by_hand():
    """Of 20 patients all are right once in 20 times if the share of right ones is 0.05^(1/20) = 0.861."""
    found = metrics.summary(binary([0, 1] * 20, [0.1, 0.9] * 20, groups=np.arange(40) // 2 % 20), BINARY, "malignant")
    for name in ("accuracy", "sensitivity", "specificity", "auc"):
        number = found["metrics"][name]
        assert (number["value"], number["high"]) == (1.0, 1.0) and number["low"] == pytest.approx(0.05 ** (1 / 20))
        assert number["note"] == "all groups agree: a one-sided bound"
    assert found["metrics"]["balanced_accuracy"]["low"] == pytest.approx(0.05 ** (1 / 40))  # 20 of either class
    wrong = metrics.summary(binary([0, 1] * 20, [0.9, 0.1] * 20), BINARY, "malignant")["metrics"]["sensitivity"]
    assert (wrong["value"], wrong["low"]) == (0, 0) and wrong["high"] == pytest.approx(1 - 0.05 ** (1 / 20))


def test_the_bound_of_a_precision_is_over_the_groups_that_have_one():
    """One patient of ten is predicted, and rightly: nine say nothing about the precision."""
    scores = [0.9, 0.9] + [0.1] * 18 + [0.2] * 20
    found = metrics.summary(binary([1] * 20 + [0] * 20, scores), BINARY, "malignant")["metrics"]["precision"]
    assert found["value"] == 1 and found["low"] == pytest.approx(0.05 ** (1 / 2))


def test_no_end_leaves_the_scale_of_its_number():
    for seed in range(20):
        found = metrics.summary(table(*World(skill=2).draw(seed, (3, 4))), BINARY, "malignant")["metrics"]
        for name, number in found.items():
            if number["low"] is not None:
                assert 0 <= number["low"] <= number["value"] <= number["high"], name
                assert number["high"] <= 1 or name == "log_loss", name


def test_what_has_no_spread_has_no_interval_and_says_why():
    for values, groups in ((np.ones(20), np.arange(20) // 4), (np.arange(5.0), np.zeros(5))):
        found = intervals.mean_of(values, groups)
        assert found.low is None and found.missing
    both = metrics.summary(table(*World().draw(0, (1, 9))), BINARY, "malignant")["metrics"]
    assert "fewer than two of a class" in both["auc"]["no_interval"] and both["sensitivity"]["low"] is not None
