"""How far colour alone gets: statistics of the pixels' colours, and a regression, gradient boosting or trees on them.

The statistics are taken of red, green and blue, of hue, saturation and value, and of CIE L, a and b: in the whole
picture, in its centre (half the side) and in the border around it, each channel's mean, deviation, skewness, kurtosis,
nine percentiles and a histogram of 16 bins; then centre minus border of the means, and the correlations of channels.
They know nothing of shape, texture or place beyond that. How strongly a model is held back (C of the regression; leaves
of the boosting; images in a leaf of the trees) is chosen by the log loss on the validation images. No class weights:
they cost AUC and log loss. The class with the largest probability over its share of the training images is called.
"""

from __future__ import annotations

import time

import cv2
import job as jobs
import numpy as np
from job import Job
from sklearn.ensemble import ExtraTreesClassifier, HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from patholib.data import decoding

SIDE = 128  # of the squares that are looked at
PERCENTILES = (1, 5, 10, 25, 50, 75, 90, 95, 99)
BINS = 16


def main(job: Job) -> None:
    started = time.perf_counter()
    features = {
        split: np.stack([statistics(pixels(file)) for file in job.part(split)["file"]])
        for split in ("train", "val", "test")
    }
    labels = {split: job.part(split)["place"].to_numpy() for split in features}
    best, curve = (np.inf, "", None), []
    for name, model in candidates(job).items():
        model.fit(features["train"], labels["train"])
        probs = model.predict_proba(features["val"])
        curve.append(jobs.point(job, len(curve) + 1, time.perf_counter() - started, probs))
        of_true = probs[np.arange(len(probs)), labels["val"]]
        loss = -np.log(np.maximum(of_true, np.finfo(float).tiny)).mean()
        if loss < best[0]:
            best = loss, name, model
    tables = {split: jobs.predictions(job, split, best[2].predict_proba(features[split])) for split in ("val", "test")}
    jobs.leave(
        job,
        tables,
        curve,
        ("scikit-learn",),
        epochs=0,
        best_epoch=0,
        seconds=time.perf_counter() - started,
        planned=job.seconds,
        chosen=best[1],
        features=features["train"].shape[1],
        shares=dict(zip(job.classes, job.shares, strict=True)),
    )


def candidates(job: Job) -> dict:
    """The models to choose from, from strongly to weakly held back."""
    if job.options["model"] == "logistic":
        return {
            f"C={c:g}": make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=3000))
            for c in (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1)
        }
    if job.options["model"] == "boosting":
        return {
            f"max_leaf_nodes={leaves}": HistGradientBoostingClassifier(
                learning_rate=0.05,
                max_leaf_nodes=leaves,
                max_iter=100,
                l2_regularization=1.0,
                early_stopping=False,
                random_state=job.seed,
            )
            for leaves in (4, 8, 16)
        }
    return {
        f"min_samples_leaf={least}": ExtraTreesClassifier(
            500, min_samples_leaf=least, n_jobs=job.threads, random_state=job.seed
        )
        for least in (2, 5, 10, 20)
    }


def pixels(file: str) -> np.ndarray:
    """The picture as a square of colours (S, S, 3) uint8."""
    return decoding.to_square(decoding.read(file), SIDE)


def statistics(square: np.ndarray) -> np.ndarray:
    """The numbers of one picture (S, S, 3) uint8."""
    lab = cv2.cvtColor(square, cv2.COLOR_RGB2LAB)
    hsv = cv2.cvtColor(square, cv2.COLOR_RGB2HSV_FULL)
    hsv[..., 0] += 128  # skin and stained tissue lie around the seam of the circle at red; 8 bits wrap round
    channels = np.concatenate([square, hsv, lab], axis=2)  # (S, S, 9)
    quarter = len(square) // 4
    inside = np.zeros(square.shape[:2], bool)
    inside[quarter:-quarter, quarter:-quarter] = True
    parts = [channels.reshape(-1, 9), channels[inside], channels[~inside]]
    found = [of_part(part) for part in parts]
    between = parts[1].mean(axis=0) - parts[2].mean(axis=0)
    scale = np.maximum(parts[0].std(axis=0), 1)  # a channel without deviation goes with no other
    related = (np.cov(parts[0].T) / np.outer(scale, scale))[np.triu_indices(9, 1)]
    return np.concatenate([*found, between, related])


def of_part(part: np.ndarray) -> np.ndarray:
    """Moments, percentiles and histogram of each of 9 channels of pixels (N, 9) uint8."""
    shares = np.stack([np.bincount(part[:, k], minlength=256) for k in range(9)]) / len(part)  # (9, 256)
    grey = np.arange(256)
    mean = shares @ grey
    away = grey - mean[:, None]
    deviation = np.sqrt((shares * away**2).sum(axis=1))
    scale = np.maximum(deviation, 1)  # below one grey level there is no shape
    moments = [(shares * away**power).sum(axis=1) / scale**power for power in (3, 4)]
    percentiles = [np.searchsorted(np.cumsum(share), np.array(PERCENTILES) / 100 - 1e-9) for share in shares]
    histogram = np.sqrt(shares.reshape(9, BINS, -1).sum(axis=2))  # the root steadies the rare bins
    return np.concatenate([mean, deviation, *moments, np.ravel(percentiles), histogram.ravel()])


if __name__ == "__main__":
    jobs.run(main)
