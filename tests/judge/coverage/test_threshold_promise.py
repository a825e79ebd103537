"""What a threshold promises is kept, over simulated studies whose truth is known.

A study has n validation groups with positive images. The score of an image is normal with variance 1, of which `alike`
is its group's. Sensitivity for new groups, each counting once, is then known for every threshold.

  python tests/judge/coverage/test_threshold_promise.py      the figures in the docstring of judge/thresholds.py
"""

from __future__ import annotations

import sys
from statistics import NormalDist

import numpy as np
import pytest

from patholib.judge import thresholds

STUDIES, TARGET = 2_000, 0.95
NORMAL = NormalDist()
APART = 2**0.5 * NORMAL.inv_cdf(0.95)  # of the means of positive and negative scores: AUC 0.95


def study(rng, n: int, alike: float, harder: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Scores and groups (P,) of the positive images; harder: how much larger a group is whose images score low."""
    effect = rng.normal(size=n)
    sizes = np.maximum(1, (rng.integers(5, 46, n) * np.exp(-harder * effect)).astype(int))
    groups = np.repeat(np.arange(n), sizes)
    return APART + alike**0.5 * effect[groups] + (1 - alike) ** 0.5 * rng.normal(size=len(groups)), groups


def sensitivities(rule, n: int, alike: float, harder: float = 0.0, seed: int = 0) -> np.ndarray:
    """(S,) of the thresholds that a rule chooses in many studies."""
    rng = np.random.default_rng(seed)
    return np.array([1 - NORMAL.cdf(rule(*study(rng, n, alike, harder)) - APART) for _ in range(STUDIES)])


def promising(n: int):
    return lambda scores, groups: thresholds.for_sensitivity(scores, groups, thresholds.promised(n, TARGET))


def of_images(scores: np.ndarray, groups: np.ndarray) -> float:
    """The rule that promises nothing: the target is reached among the validation images."""
    return float(np.sort(scores)[int((1 - TARGET) * len(scores) + 1e-9)])


@pytest.mark.parametrize("alike", [0.2, 0.8, 1.0])
@pytest.mark.parametrize("n", [8, 20, 60])
def test_the_mean_sensitivity_of_many_studies_is_at_least_what_is_promised(n, alike):
    found = sensitivities(promising(n), n, alike)
    error = found.std() / STUDIES**0.5
    assert found.mean() >= thresholds.promised(n, TARGET) - 2 * error
    if alike == 1:  # groups that are missed or found as a whole: no larger threshold could promise as much
        assert found.mean() <= thresholds.promised(n, TARGET) + 1 / (n + 1) + 2 * error


def test_it_is_kept_where_the_hard_groups_have_more_images():
    found = sensitivities(promising(60), 60, alike=0.8, harder=0.7)
    assert found.mean() >= 0.95 - 2 * found.std() / STUDIES**0.5


@pytest.mark.parametrize("n", [8, 20])
def test_the_quantile_of_the_images_does_not_keep_its_target(n):
    found = sensitivities(of_images, n, alike=0.8)
    assert found.mean() < 0.94 and (found < TARGET).mean() > 0.5


def main() -> None:
    print(f"{STUDIES} studies, target {TARGET:g}, half of the variance between groups")
    for n in (8, 20, 60):
        rules = {
            "quantile of the images": of_images,
            f"chosen, {thresholds.promised(n, TARGET):.3f} promised": promising(n),
            f"all found, {n / (n + 1):.3f} promised": lambda scores, _: scores.min(),
        }
        for name, rule in rules.items():
            found = sensitivities(rule, n, alike=0.5)
            specificity = np.mean([NORMAL.cdf(APART + NORMAL.inv_cdf(1 - x)) if x < 1 else 0 for x in found])
            said = f"mean {found.mean():.3f}  below the target {(found < TARGET).mean():.2f}"
            print(f"{n:3} groups, {name:26} {said}  specificity {specificity:.3f}")


if __name__ == "__main__":
    sys.exit(main())
