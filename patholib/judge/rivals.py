"""Rivals of the network: the commonest class, colour statistics, and a linear probe."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy import special

from patholib.base.errors import PathoError
from patholib.judge import predicting

if TYPE_CHECKING:
    import torch

    from patholib.data.imagesets import ImageSet
    from patholib.model.networks import Classifier

PERCENTILES = (0.05, 0.25, 0.50, 0.75, 0.95)
STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # C of a regression, from strongly to weakly held back


def constant_baseline(images: ImageSet) -> pd.DataFrame:
    """Predictions that ignore the images: the commonest class of the train rows for every val and test image.

    Their accuracy is the share of that class, their balanced accuracy 1 / C, their AUC 0.5. Errors: no_split.
    """
    _refuse_unsplit(images)
    train = images.table["split"] == "train"
    commonest = np.bincount(images.labels[train], minlength=len(images.classes)).argmax()
    others = images.table[~train]
    probs = np.eye(len(images.classes))[[commonest] * len(others)]
    return predicting.as_predictions(replace(images, table=others), probs)


def colour_baseline(images: ImageSet) -> pd.DataFrame:
    """Predictions from colour alone, for the val and test rows: a logistic regression on `colours`.

    Fitted on the train rows of a set with `split`, without class weights: they would cost it AUC and log loss, and what
    is subtracted from a network must be as good as it can be. Its penalty is chosen on the val rows, by the log loss. A
    network that is not better is not shown to need shapes. A class without train rows gets probability 0.
    Errors: no_split, single_class.
    """
    _refuse_unsplit(images)
    features = np.stack([colours(images.pixels[row]) for row in images.table["row"]])  # (N, F)
    return _linear(features, images)


def probe(model: Classifier, images: ImageSet, device: str | torch.device | None = None) -> pd.DataFrame:
    """A linear probe: as `colour_baseline`, on the mean of each map of the network's last block.

    Before the training it shows what the weights at the start are worth, and so what the training adds.
    device: where to compute; None leaves the model where it is. Errors: no_split, single_class.
    """
    _refuse_unsplit(images)
    return _linear(predicting.pooled(model, images, device=device), images)


def _refuse_unsplit(images: ImageSet) -> None:
    if "split" not in images.table:
        raise PathoError("no_split", "images", "are not split yet", "Call with_split with the table of the split")


def _linear(features: np.ndarray, images: ImageSet) -> pd.DataFrame:
    """Predictions for the val and test rows, by a logistic regression fitted on the train rows of features (N, F).

    Of `regressions` the one with the lowest log loss on the val rows predicts.
    """
    learn = (images.table["split"] == "train").to_numpy()
    judge = images.table["split"].isin(["val", "test"]).to_numpy()
    val = (images.table["split"] == "val").to_numpy()[judge]
    if len(np.unique(images.labels[learn])) < 2 or not val.any():
        raise PathoError(
            "single_class", "training split", "needs two classes, and validation images beside it", "Split again"
        )
    least, best = np.inf, np.empty(0)
    for _, weights, bias in regressions(features[learn], images.labels[learn], len(images.classes)):
        probs = special.softmax(features[judge] @ weights.T + bias, axis=1)  # (N, C)
        of_true = probs[val, images.labels[judge][val]]
        loss = -np.log(np.maximum(of_true, np.finfo(float).tiny)).mean()
        if loss < least:
            least, best = loss, probs
    return predicting.as_predictions(replace(images, table=images.table[judge]), best)


def regressions(
    features: np.ndarray, labels: np.ndarray, classes: int, views: int = 1
) -> Iterator[tuple[float, np.ndarray, np.ndarray]]:
    """(strength, weights (C, K), bias (C,)) of a logistic regression with each of STRENGTHS.

    Logits are features @ weights.T + bias: features (N, K) are standardised for the fit, which is then undone in the
    weights. labels (N,). classes: C; one without images has the bias minus infinity. views: how many rows each image
    has; they count as one, so that a strength means the same. Errors: ValueError for labels of fewer than two classes.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(features)
    known, standard = np.unique(labels), scaler.transform(features)
    for strength in STRENGTHS:
        model = LogisticRegression(C=strength / views, max_iter=2000).fit(standard, labels)
        weights, bias = np.zeros((classes, features.shape[1])), np.full(classes, -np.inf)
        both = len(known) == 2  # then it has one logit z for two classes: -z / 2 and z / 2, each with a gradient
        weights[known] = (np.outer((-0.5, 0.5), model.coef_) if both else model.coef_) / scaler.scale_
        bias[known] = np.outer((-0.5, 0.5), model.intercept_)[:, 0] if both else model.intercept_
        yield strength, weights, bias - weights @ scaler.mean_


def colours(pixels: np.ndarray) -> np.ndarray:
    """57 colour statistics of one image (S, S, 3) uint8, which know nothing of shapes.

    Of red, green, blue, hue, saturation and value: mean, deviation, skewness, five percentiles, and centre minus
    border; then the three correlations of the RGB channels. Hue is rotated by half a circle, because the hues of skin
    and of stained tissue lie around red, where its scale begins and ends.
    """
    import cv2

    hsv = cv2.cvtColor(np.ascontiguousarray(pixels), cv2.COLOR_RGB2HSV)  # hue 0 to 179
    hsv[..., 0] = (hsv[..., 0].astype(np.uint16) + 90) % 180
    channels = np.concatenate([pixels, hsv], axis=2)  # (S, S, 6)
    shares = np.stack([np.bincount(channels[..., k].ravel(), minlength=256) for k in range(6)]) / pixels[..., 0].size
    grey = np.arange(256)
    mean = shares @ grey  # (6,)
    away = grey - mean[:, None]  # (6, 256)
    deviation = np.sqrt((shares * away**2).sum(axis=1))
    skewness = (shares * away**3).sum(axis=1) / np.maximum(deviation, 1) ** 3  # below 1 grey level there is no shape
    percentiles = np.array([np.searchsorted(np.cumsum(share), np.array(PERCENTILES) - 1e-9) for share in shares])
    quarter = len(pixels) // 4
    centre = channels[quarter : len(pixels) - quarter, quarter : len(pixels) - quarter]
    inside = centre.mean(axis=(0, 1))
    border = (mean * pixels[..., 0].size - inside * centre[..., 0].size) / (pixels[..., 0].size - centre[..., 0].size)
    rgb = pixels.reshape(-1, 3).astype(np.float32)
    rgb -= mean[:3].astype(np.float32)
    covariance = (rgb.T @ rgb / len(rgb)).astype(float)  # (3, 3)
    scale = np.maximum(deviation[:3], 1)
    correlations = (covariance / np.outer(scale, scale))[np.triu_indices(3, 1)]
    return np.concatenate([mean, deviation, skewness, percentiles.ravel(), inside - border, correlations])
