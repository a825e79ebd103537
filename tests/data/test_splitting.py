"""Splits are drawn freely: every group has its chance of being tested, within the tolerance of the shares."""

import os
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import splits

from patholib.data import assigning, splitting
from patholib.data.readers import breakhis, isic2019

pytestmark = pytest.mark.heavy

FRACTIONS = np.array([0.70, 0.15, 0.15])
SEEDS = 200


def real(part: str) -> Path:
    folder = os.environ.get("PATHOLIB_REAL_DATA")
    if not folder:
        pytest.skip("PATHOLIB_REAL_DATA is unset: no real data to read")
    return Path(folder) / part


@pytest.fixture(params=["sizes", "names"])
def source(request):
    """The names of BreakHis at 40X, or made-up ones of as many cases with as many images."""
    if request.param == "sizes":
        return splits.like_breakhis()
    return breakhis.from_names(pd.read_csv(real("breakhis/names_40x.csv"))["image"])


def drawn(counts, seeds, fractions=FRACTIONS):
    """The part of every group, for each seed (seeds, G)."""
    groups = np.array([f"g{g}" for g in range(len(counts))], object)
    return np.array([assigning.assign(counts, fractions, groups, str(seed)) for seed in range(seeds)])


def one_class_each(*sizes):
    """Images per group and class (G, C), from the sizes of the groups of each class."""
    rows = [(size, c) for c, mine in enumerate(sizes) for size in mine]
    counts = np.zeros((len(rows), len(sizes)), np.int64)
    counts[np.arange(len(rows)), [c for _, c in rows]] = [size for size, _ in rows]
    return counts


def images(counts, place, parts=3):
    """The share (P, C) of the images of each class in each part."""
    return np.stack([counts[place == s].sum(axis=0) for s in range(parts)]) / counts.sum(axis=0)


def test_every_case_of_breakhis_is_tested_half_to_twice_as_often_as_its_share_says(source):
    for label in source.classes:
        found = splits.places(source, label, SEEDS)
        for part in ("val", "test"):
            often = (found == part).mean(axis=1)
            assert often.min() >= 0.075 and often.max() <= 0.30, (label, part, often)
        assert len((found == "test").T.drop_duplicates()) >= 100


def test_every_lesion_of_isic_has_the_same_chance_of_being_tested():
    rows = isic2019.list_rows(real("isic2019"))
    groups, member = np.unique(rows["lesion"].to_numpy(object), return_inverse=True)
    labels = pd.Categorical(rows["label"])
    counts = np.zeros((len(groups), len(labels.categories)), np.int64)
    np.add.at(counts, (member, labels.codes), 1)
    seeds = 40
    tested = sum((assigned(counts, groups, seed) == 2).astype(int) for seed in range(seeds))
    size, label = counts.sum(axis=1), counts.argmax(axis=1)
    for c in range(counts.shape[1]):
        mine = tested[label == c] / seeds
        assert mine.mean() == pytest.approx(0.15, abs=0.005)
        for low, high in ((1, 1), (2, 2), (3, 4), (5, 8), (9, 99)):
            stratum = mine[(size[label == c] >= low) & (size[label == c] <= high)]
            if len(stratum) >= 5:
                assert 0.075 <= stratum.mean() <= 0.30, (labels.categories[c], low, stratum.mean())
        spread = mine.var() / (0.15 * 0.85 / seeds)  # 1 if every lesion has the same chance
        assert spread == pytest.approx(1, abs=4 * np.sqrt(2 / len(mine))), labels.categories[c]


def assigned(counts, groups, seed):
    return assigning.assign(counts, FRACTIONS, groups, str(seed))


def test_the_shares_are_within_the_tolerance():
    counts = one_class_each(splits.BENIGN, splits.MALIGNANT)
    step = counts.max(axis=0) / counts.sum(axis=0)  # the largest group of each class
    low = np.maximum(FRACTIONS[:, None] - step, FRACTIONS[:, None] / 2)
    high = np.minimum(FRACTIONS[:, None] + step, FRACTIONS[:, None] * 2)
    wanted = FRACTIONS[:, None] * (counts > 0).sum(axis=0)
    for place in drawn(counts, SEEDS):
        share = images(counts, place)
        assert (low - 1e-9 <= share).all() and (share <= high + 1e-9).all()
        number = np.stack([(counts[place == s] > 0).sum(axis=0) for s in range(3)])
        assert (np.floor(wanted) <= number).all() and (number <= np.ceil(wanted)).all()


def test_many_groups_come_as_near_as_makes_no_difference():
    rng = np.random.default_rng(0)
    counts = one_class_each(*(rng.integers(1, 9, 2000) for _ in range(4)))
    for place in drawn(counts, 5):
        assert np.abs(images(counts, place) - FRACTIONS[:, None]).max() <= 0.005


def test_patients_with_images_of_both_classes_are_balanced_in_both():
    rng = np.random.default_rng(0)
    counts = rng.integers(0, 8, (150, 2)) + np.eye(2, dtype=np.int64)[rng.integers(0, 2, 150)]
    found = drawn(counts, 50)
    assert max(np.abs(images(counts, place) - FRACTIONS[:, None]).max() for place in found) < 0.015
    assert len({tuple(place) for place in found}) == 50


def test_a_group_of_most_images_is_trained_on_and_the_others_are_still_drawn():
    counts = one_class_each([600, *[20] * 20], [20] * 20)
    found = drawn(counts, 100)
    assert (found[:, 0] == 0).all()
    often = (found[:, 1:21] == 2).mean(axis=0)
    assert often.min() > 0.03 and often.max() < 0.4


@pytest.mark.parametrize("groups", [3, 4, 5, 6, 7, 10])
def test_of_few_groups_each_may_be_the_one_that_is_tested(groups):
    found = drawn(one_class_each([9] * groups, [9] * 30), SEEDS)[:, :groups]
    assert set(found.ravel()) == {0, 1, 2}
    often, nominal = (found == 2).mean(axis=0), max(0.15, 1 / groups)
    assert often.min() >= nominal / 2 and often.max() <= nominal * 2


def test_classes_that_share_their_patients_are_all_in_every_part():
    """Three patients or four for each part would do, if chance found them; it seldom does."""
    rng = np.random.default_rng(1)
    for _ in range(5):
        counts = np.zeros((12, 10), np.int64)
        for first in (0, 4, 8):  # four patients who have all classes between them
            for row, mine in zip(range(first, first + 4), np.array_split(rng.permutation(10), 4), strict=True):
                counts[row, mine] = rng.integers(1, 5, len(mine))
        for place in drawn(counts, 2):
            assert (images(counts, place) > 0).all()


def test_25000_groups_of_10_classes_take_a_few_seconds():
    rng = np.random.default_rng(0)
    counts = np.where(rng.random((25_000, 10)) < 0.3, rng.integers(1, 5, (25_000, 10)), 0)
    start = time.process_time()
    place = drawn(counts, 1)[0]
    assert time.process_time() - start < 5
    assert np.abs(images(counts, place) - FRACTIONS[:, None]).max() <= 0.0051


def test_folds_are_drawn_freely():
    source = splits.like_breakhis()
    rows = source.table["label"] == "benign"
    together, partitions = 0, set()
    for seed in range(60):
        fold = np.zeros(len(source.table), int)
        for number, table in enumerate(splitting.folds(source, 4, seed=seed)):
            fold[table["split"] == "test"] = number
        fold = pd.Series(fold)[rows].groupby(source.table.loc[rows, "case"]).first().to_numpy()
        same = fold[:, None] == fold
        together = together + same
        partitions.add(same.tobytes())
        assert np.bincount(fold).tolist() == [4] * 4  # cases in every fold
    assert len(partitions) == 60
    pairs = together[np.triu_indices(16, 1)] / 60  # 0.2 for each pair, if any four cases may be a fold
    assert pairs.mean() == pytest.approx(0.2) and pairs.max() < 0.5
    assert (pairs == 0).sum() <= 3  # the largest cases cannot be together


def test_patients_are_set_apart_as_freely():
    source = splits.like_breakhis()
    cases = source.table.loc[source.table["label"] == "benign", "case"].unique()
    often = pd.Series(0, index=cases)
    for seed in range(100):
        often[list(set(splitting.set_apart(source, 0.3, seed)[1].table["case"]) & set(cases))] += 1
    assert often.min() >= 15 and often.max() <= 60
