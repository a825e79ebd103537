"""Simulation: averaged views are as well calibrated and decided as single ones, with a lock of their own."""

import numpy as np
import pandas as pd
import pytest

from patholib.judge import calibration, decisions, predicting, resampled

CLASSES, VIEWS, VAL, TEST = ("benign", "malignant"), 8, 2000, 20_000


def views(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels (n,) and probabilities (views, n, 2) of an overconfident network whose views of an image differ."""
    rng = np.random.default_rng(seed)
    labels = (rng.random(n) < 0.69).astype(int)
    image = 2 * labels - 1 + rng.normal(size=n)
    logit = 3 * (image + rng.normal(0, 1.5, (VIEWS, n)))
    p = 1 / (1 + np.exp(-logit))
    return labels, np.stack([1 - p, p], axis=2)


def table(labels: np.ndarray, probs: np.ndarray) -> pd.DataFrame:
    rows = pd.DataFrame({"label": np.array(CLASSES)[labels], "group": np.arange(len(labels)).astype(str)})
    return predicting.with_probs(rows, CLASSES, probs)


@pytest.fixture(scope="module")
def found() -> dict[str, dict[str, float]]:
    """Calibration error, sensitivity and specificity on new images, by views and by the lock that judges them."""
    (labels, val), (true, test) = views(VAL, 0), views(TEST, 1)
    plain, own = (decisions.choose(table(labels, p), CLASSES, "malignant") for p in (val[0], val.mean(axis=0)))
    result = {}
    for name, probs, decision in (
        ("plain", test[0], plain),
        ("averaged, plain lock", test.mean(axis=0), plain),
        ("averaged, own lock", test.mean(axis=0), own),
    ):
        scores = predicting.probs_of(decisions.with_calibration(table(true, probs), CLASSES, decision), CLASSES)
        alarms = scores[:, 1] >= decision["threshold"]
        result[name] = {
            "error": calibration.ece(true, scores, of=1),
            "sensitivity": alarms[true == 1].mean(),
            "specificity": (~alarms[true == 0]).mean(),
            "auc": resampled.aucs(true == 1, scores[:, 1], np.zeros(len(true), int))[0],
        }
    return result


def test_averaged_views_have_the_calibration_error_of_plain_ones_after_their_own_lock(found):
    assert found["plain"]["error"] < 0.03 and found["averaged, own lock"]["error"] < 0.03
    assert found["averaged, plain lock"]["error"] > 0.1


def test_averaged_views_keep_the_sensitivity_and_gain_the_specificity_that_averaging_promises(found):
    assert found["averaged, own lock"]["auc"] > found["plain"]["auc"] + 0.03
    assert found["averaged, own lock"]["sensitivity"] == pytest.approx(0.95, abs=0.015)
    assert found["averaged, own lock"]["specificity"] > found["plain"]["specificity"]
    assert found["averaged, plain lock"]["specificity"] < 0.1
