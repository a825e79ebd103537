"""Simulations: trainings that shift the prior are brought back to the images as they are.

A linear model learns classes of Gaussian features with the library's own losses, at the priors of BreakHis and of ISIC
2019; labels of 30,000 new images say how far the calibrated probabilities are from the truth. The same fitted without
any balance is what they could be at best.
"""

import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.spatial.distance import pdist
from torch import nn

from patholib.judge import calibration, decisions, predicting, rules
from patholib.judge.calibration import Calibration
from patholib.model import losses, recipes

PRIORS = {
    "breakhis": (0.31, 0.69),
    "isic2019": (
        0.1785,
        0.5083,
        0.1312,
        0.0342,
        0.1036,
        0.0094,
        0.0100,
        0.0248,
    ),  # in the order of the recipe's classes
}
BALANCES = {
    "weights": {"balance": "weights"},
    "sampler": {"balance": "sampler"},
    "logit adjustment": {"balance": "logit_adjustment"},
    "focal": {"balance": "none", "loss": "focal"},
    "weighted focal": {"balance": "weights", "loss": "focal"},
}
TRAIN, VAL, TEST, DISTANCE = 5000, 1500, 30_000, 2.5


def drawn(prior, n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels (n,) and features (n, 6) of classes whose means lie DISTANCE standard deviations apart on average."""
    means = np.random.default_rng(8).normal(size=(len(prior), 6))
    means *= DISTANCE / pdist(means).mean()
    rng = np.random.default_rng(seed)
    labels = rng.choice(len(prior), n, p=np.array(prior) / sum(prior))
    return labels, means[labels] + rng.normal(size=(n, 6))


def recipe_of(name: str, **changes) -> recipes.Recipe:
    plain = {"balance": "none", "loss": "cross_entropy", "label_smoothing": 0.0}
    return dataclasses.replace(recipes.get(name), **plain | changes)


def learned(recipe, prior, seed: int) -> tuple[nn.Module, np.ndarray]:
    """A linear model that has learnt by the recipe's loss, and the training images of each class."""
    labels, features = drawn(prior, TRAIN, seed)
    counts = np.bincount(labels, minlength=len(prior))
    if recipe.balance == "sampler":  # as many images as there are, each class equally often
        rows = np.random.default_rng(seed).choice(TRAIN, TRAIN, p=(1 / counts)[labels] / len(prior))
        labels, features = labels[rows], features[rows]
    torch.manual_seed(0)
    model, loss = nn.Linear(6, len(prior)).double(), losses.build(recipe, counts)
    x, y = torch.tensor(features), torch.tensor(labels)
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        value = loss(model(x), y)
        value.backward()
        return value

    optimizer.step(closure)
    return model, counts


def predicted(model: nn.Module, recipe, prior, n: int, seed: int) -> pd.DataFrame:
    """The table of predictions of new images, each its own group."""
    labels, features = drawn(prior, n, seed)
    with torch.no_grad():
        probs = predicting.probabilities_of(model(torch.tensor(features)))
    table = pd.DataFrame({"label": np.array(recipe.classes)[labels], "group": np.arange(n).astype(str)})
    return predicting.with_probs(table, recipe.classes, probs)


def judged(name: str, seed: int = 0, **changes) -> dict[str, float]:
    """Class-wise calibration error and log loss on new images, by what was done to the probabilities."""
    recipe, prior = recipe_of(name, **changes), PRIORS[name]
    model, counts = learned(recipe, prior, seed)
    val, test = (predicted(model, recipe, prior, n, seed + k) for n, k in ((VAL, 100), (TEST, 200)))
    classes, labels = recipe.classes, predicting.true_labels(test, recipe.classes)
    correction = losses.prior_correction(recipe, counts)
    locked, _ = decisions.fitted(val, classes, correction)
    temperature = calibration.fit(predicting.true_labels(val, classes), predicting.probs_of(val, classes)).temperature
    found = {}
    for what, one in (
        ("as it comes", Calibration()),
        ("temperature", Calibration(temperature)),
        ("prior", Calibration(correction=tuple(correction))),
        ("locked", locked),
    ):
        probs = calibration.apply(predicting.probs_of(test, classes), one)
        found[f"error, {what}"] = calibration.classwise_ece(labels, probs)
        found[f"log loss, {what}"] = float(-np.log(probs[np.arange(TEST), labels]).mean())
    return found


@pytest.fixture(scope="module")
def unbalanced() -> dict[str, dict[str, float]]:
    """What a training without any balance reaches, by recipe."""
    return {name: judged(name) for name in PRIORS}


@pytest.mark.parametrize("balance", BALANCES)
@pytest.mark.parametrize("name", PRIORS)
def test_after_the_lock_a_balanced_training_is_as_calibrated_as_one_without(unbalanced, name, balance):
    found = judged(name, **BALANCES[balance])
    assert found["error, locked"] < 0.015
    assert found["log loss, locked"] < 1.02 * unbalanced[name]["log loss, as it comes"]


@pytest.mark.parametrize("balance", ["weights", "sampler", "logit adjustment"])
@pytest.mark.parametrize("name", PRIORS)
def test_a_temperature_cannot_bring_the_prior_back(unbalanced, name, balance):
    found = judged(name, **BALANCES[balance])
    assert found["error, temperature"] > 0.03
    assert found["log loss, temperature"] > 1.05 * unbalanced[name]["log loss, as it comes"]


def test_the_prior_corrected_decision_is_what_it_was_before_the_probabilities_were_corrected():
    recipe, prior = recipe_of("isic2019", balance="weights", decide="even"), PRIORS["isic2019"]
    model, counts = learned(recipe, prior, 0)
    test = predicted(model, recipe, prior, 2000, 1)
    raw = predicting.probs_of(test, recipe.classes)
    corrected = calibration.apply(raw, Calibration(correction=tuple(losses.prior_correction(recipe, counts))))
    before = rules.predicted(raw, recipe.classes, None, losses.shares(recipe, counts))
    shares = dict(zip(recipe.classes, counts / counts.sum(), strict=True))
    assert (rules.predicted(corrected, recipe.classes, None, shares) == before).all()
    assert (raw.argmax(axis=1) == before).all()  # class weights alone had evened the classes
