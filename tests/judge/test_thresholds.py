"""The choice of a threshold, worked by hand."""

from __future__ import annotations

import numpy as np
import pytest

from patholib.base.errors import PathoError
from patholib.judge import thresholds

SCORES = np.array([0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2])
ALONE = np.arange(8)  # every image a group of its own


def test_the_mean_loss_that_a_promise_allows_worked_by_hand():
    """8 groups: (8 R + 1) / 9 <= 1 - promise. Of 2/9 one may be missed, of 1/9 none, of 0.5 three (0.43)."""
    assert thresholds.for_sensitivity(SCORES, ALONE, 8 / 9) == 0.2
    assert thresholds.for_sensitivity(SCORES, ALONE, 7 / 9) == 0.3
    assert thresholds.for_sensitivity(SCORES, ALONE, 7 / 9 + 1e-6) == 0.2
    assert thresholds.for_sensitivity(SCORES, ALONE, 0.5) == 0.5


def test_every_group_counts_once_however_many_images_it_has():
    """Three groups, one of six images: half of it missed is a mean loss of 1/6; (3/6 + 1) / 4 = 0.375."""
    groups = np.array([0, 1, 2, 2, 2, 2, 2, 2])
    assert thresholds.for_sensitivity(SCORES, groups, 1 - 0.375) == 0.5
    assert thresholds.for_sensitivity(SCORES, groups, 1 - 0.374) == 0.4


def test_equal_scores_are_found_or_missed_together():
    scores = np.array([0.5, 0.5, 0.5, 0.9])
    assert thresholds.for_sensitivity(scores, np.arange(4), 0.4) == 0.5  # of 0.9 the mean loss would be 3/4


def test_what_is_promised_with_few_groups_is_less_than_the_target():
    assert thresholds.promised(19, 0.95) == thresholds.promised(500, 0.95) == 0.95
    assert thresholds.promised(18, 0.95) == pytest.approx(0.95 * 18 / 19)
    assert thresholds.promised(8, 0.95) == pytest.approx(0.95 * 8 / 9)
    assert thresholds.promised(8, 0.88) == 0.88
    # The threshold is then the one that reaches the target on the validation groups: 1 of 4 missed is 0.75.
    for target, at in ((0.95, 0.6), (0.9, 0.6)):
        assert thresholds.for_sensitivity(SCORES[:4], ALONE[:4], thresholds.promised(4, target)) == at
    groups = np.repeat([0, 1], 4)
    assert thresholds.for_sensitivity(SCORES, groups, thresholds.promised(2, 0.875)) == 0.3


def test_the_promise_is_printed_rounded_down_and_few_groups_are_told_what_they_can_promise():
    few = thresholds.choose(np.ones(8), SCORES, ALONE, "malignant", 0.95)
    assert few.promise["sensitivity"] == pytest.approx(0.95 * 8 / 9) and few.promise["at_most"] == 8 / 9
    assert "at least 0.844 of the malignant images of a new group" in few.promise["words"]
    assert few.rule == "sensitivity >= 0.95 on the validation groups"
    (note,) = few.notes
    for words in (": 8.", "only a threshold of 0", "promises 0.844", "of 0.888 could", "0.95 takes 19 groups"):
        assert words in note
    many = thresholds.choose(np.ones(40), np.tile(SCORES, 5), np.arange(40), "malignant", 0.95, unit="patient")
    assert many.notes == () and many.promise["sensitivity"] == 0.95
    assert "at least 0.95 of the new malignant patients" in many.promise["words"]
    assert many.rule == "sensitivity >= 0.95 for new groups"


def test_the_sensitivity_over_groups_stands_beside_the_promise():
    groups = np.array([0, 1, 2, 2, 2, 2, 2, 2])
    chosen = thresholds.choose(np.ones(8), SCORES, groups, "malignant", 0.8)  # promises 0.75 of 0.8
    assert chosen.promise["sensitivity"] == pytest.approx(0.6)
    assert chosen.threshold == 0.5 and chosen.promise["validation"]["value"] == pytest.approx((1 + 1 + 3 / 6) / 3)


def test_the_lowest_cost_is_that_of_trying_every_threshold():
    labels, scores = np.array([1, 0, 1, 0, 0, 1, 0]), np.array([0.9, 0.8, 0.8, 0.6, 0.5, 0.4, 0.1])
    for ratio in (0.1, 0.4, 1, 2, 10):
        costs = {t: ratio * (labels[scores < t]).sum() + (1 - labels[scores >= t]).sum() for t in np.unique(scores)}
        lowest = min(t for t, cost in costs.items() if cost == min(costs.values()))
        by_cost = thresholds.choose(labels, scores, np.arange(7), "malignant", 0.95, ratio)
        assert (by_cost.threshold, by_cost.promise, by_cost.notes) == (lowest, {}, ())


def cheapest(labels, scores, _groups):
    """The lowest threshold at which as few images as possible are decided wrongly."""
    at = np.unique(scores)
    wrong = (labels & (scores < at[:, None])).sum(axis=1) + (~labels & (scores >= at[:, None])).sum(axis=1)
    return at[wrong.argmin()]


def test_the_interval_is_what_resampling_whole_groups_within_their_class_gives():
    rng = np.random.default_rng(3)
    groups = np.repeat(np.arange(40), 5)
    labels = groups < 25
    scores = rng.normal(size=40)[groups] + 2 * labels + rng.normal(size=200)
    positive, negative = np.arange(25), np.arange(25, 40)

    def again(choose):
        found = []
        for _ in range(1500):
            drawn = np.concatenate([rng.choice(positive, 25), rng.choice(negative, 15)])
            rows = np.concatenate([np.flatnonzero(groups == g) for g in drawn])
            names = np.repeat(np.arange(40), 5)  # a group drawn twice counts twice
            found.append(choose(labels[rows], scores[rows], names))
        return np.quantile(found, [0.025, 0.975])

    for ratio, rule in ((None, lambda y, s, g: thresholds.for_sensitivity(s[y], g[y], 0.9)), (1, cheapest)):
        interval = thresholds.choose(labels, scores, groups, "malignant", 0.9, ratio).interval
        assert [interval.low, interval.high] == pytest.approx(again(rule), abs=0.08)
        assert interval.low < interval.value < interval.high


def test_neither_order_nor_names_of_the_groups_change_anything_but_the_draws():
    rng = np.random.default_rng(0)
    order = rng.permutation(8)
    groups = np.array([0, 0, 1, 2, 2, 3, 3, 3])
    assert thresholds.for_sensitivity(SCORES, groups, 0.7) == thresholds.for_sensitivity(
        SCORES[order], np.array(list("dcba"))[groups][order], 0.7
    )


def test_without_a_positive_label_or_with_scores_that_are_none_there_is_no_threshold():
    with pytest.raises(PathoError, match="one_class"):
        thresholds.choose(np.zeros(3), SCORES[:3], ALONE[:3], "malignant", 0.9)
    for wrong in (np.array([0.1, np.nan, 0.2]), SCORES[:2]):
        with pytest.raises(PathoError, match="bad_scores"):
            thresholds.choose(np.ones(3), wrong, ALONE[:3], "malignant", 0.9)
