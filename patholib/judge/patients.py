"""Data of the patient beside the image, such as age band, sex and site: a bias for each value and class.

log p(class | image, patient) is log p(class | image), calibrated, plus the biases of the patient's values. They are a
logistic regression whose offset is the network, fitted on the validation images with the normal prior of the biases of
`calibration`; the likelihood counts groups. A missing value is a value of its own; one that validation did not have
changes nothing. What it adds is judged on the test images, against the image alone. On 2,944 images of ISIC 2019 it
adds more than it costs (`benchmarks/answers.py patient`); on few images, or at another hospital, it may not.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd
from scipy import optimize, special

from patholib.base.errors import PathoError, nearest
from patholib.judge import calibration, predicting

MOST = 20  # values of a column
PROXY = re.compile("dx|diagnos|label|class|confirm|histo|biops|malign|benign|mel_|outcome|grade|stage|target", re.I)
DETERMINED = 0.98  # share of the images of a column's value that has one label, from which the column is refused
FOLDS = 5
Weights = Mapping[str, Mapping[str, Mapping[str, float]]]  # bias by column, value and class


def check(table: pd.DataFrame, columns: Sequence[str]) -> None:
    """Refuses columns that cannot be used, or that know the label; table: with `label`. Errors: see there."""
    for name in columns:
        if name not in table or name.startswith("p_"):
            raise PathoError("missing_column", name, "is no column of the images", nearest(name, list(table)))
        values = table[name].astype(str)
        counts = pd.crosstab(values, table["label"].to_numpy())
        sure = counts.max(axis=1).sum() / len(table) >= DETERMINED > counts.sum().max() / len(table)
        reason = (
            f"has {len(counts)} values, more than {MOST}"
            if len(counts) > MOST
            else "is made from the diagnosis by its name, so a new patient has no such value"
            if PROXY.search(name)
            else f"determines the label of {DETERMINED:.0%} of the images: it is a proxy of it"
            if sure
            else ""
        )
        if reason:
            raise PathoError("bad_parameter", f"patient, {name}", reason, "Name columns that are known beforehand")


def fit(table: pd.DataFrame, classes: Sequence[str], columns: Sequence[str]) -> dict:
    """The biases from calibrated predictions of the image alone, see Weights."""
    values = {name: sorted(set(table[name].astype(str))) for name in columns}
    known = np.column_stack([_one_hot(table[name], values[name]) for name in columns])  # (N, V)
    with np.errstate(divide="ignore"):
        logs = np.maximum(np.log(predicting.probs_of(table, classes)), -700)
    truth = np.eye(len(classes))[predicting.true_labels(table, classes)]
    each = table["group"].nunique() / len(table)

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        biases = flat.reshape(known.shape[1], -1)
        shares = special.log_softmax(logs + known @ biases, axis=1)
        slopes = each * known.T @ (np.exp(shares) - truth) + biases / calibration.BIAS_SD**2
        return -each * (shares * truth).sum() + (flat**2).sum() / (2 * calibration.BIAS_SD**2), slopes.ravel()

    found = optimize.minimize(loss, np.zeros(known.shape[1] * len(classes)), jac=True, method="L-BFGS-B").x
    rows = iter(found.reshape(known.shape[1], -1).tolist())
    return {name: {value: dict(zip(classes, next(rows), strict=True)) for value in values[name]} for name in columns}


def apply(probs: np.ndarray, values: Mapping[str, Iterable], classes: Sequence[str], weights: Weights) -> np.ndarray:
    """Calibrated probabilities (N, C) of the images with those of the patients; values: of each column, (N,).

    Errors: missing_column.
    """
    added = np.zeros(probs.shape)
    for name, of_values in weights.items():
        if name not in values:
            remedy = "Add it, empty where it is unknown; the lock was made with it"
            raise PathoError("missing_column", name, "is no column of these images", remedy)
        biases = {value: [row[c] for c in classes] for value, row in of_values.items()}
        added += [biases.get(str(value), [0.0] * len(classes)) for value in values[name]]
    with np.errstate(divide="ignore"):  # what is impossible stays impossible
        return special.softmax(np.log(probs) + added, axis=1)


def cross_fitted(table: pd.DataFrame, classes: Sequence[str], columns: Sequence[str], seed: int) -> pd.DataFrame:
    """The table with the probabilities that `apply` gives, each group by the biases that the other groups fitted."""
    codes = pd.factorize(table["group"], sort=True)[0]
    fold = np.random.default_rng(seed).permutation(codes.max() + 1)[codes] % FOLDS
    probs = predicting.probs_of(table, classes)
    for k in set(fold):
        if (fold != k).any():
            weights, part = fit(table[fold != k], classes, columns), table[fold == k]
            probs[fold == k] = apply(probs[fold == k], part, classes, weights)
    return predicting.with_probs(table, classes, probs)


def _one_hot(values: pd.Series, known: Sequence[str]) -> np.ndarray:
    return values.astype(str).to_numpy()[:, None] == np.array(known, dtype=object)  # (N, V)
