"""Novelty: whether the colours and the sharpness of an image are like those of the training images.

`learn` measures the training images and sets the limit on the validation images, so that of new patients of each class
at most 10 % are beyond it (conformal, as `thresholds`). One limit for all patients would call most of a rare class that
looks different none of the classes, although it was trained on. It is locked with the decision and part of the export.
An image beyond the limit is of none of the classes, or given by mistake: `Familiar.reasons` says why. It catches a
photo, another kind of image, one that is too dark, too noisy or without colour, and of unknown diseases those that look
different: of ISIC 2019, vascular lesions that were left out of training. It does not see one with the looks of a
trained class. No other score, and no join with one, was better where it was chosen. On other classes the confidence of
the network ranks better, but at such a limit nothing finds more than a few of them (`benchmarks/answers.py unknown`).

Why these features: at equal rates of false alarms, on dermoscopy, tissue and demo images, they catch more of such
images than the 57 of `rivals.colours`, in a fifth of the time (tests/judge/test_novelty.py). The logarithms make
spreads nearly normal; without them a few training images with strong contrast hide all dark and flat ones.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from patholib.base.errors import PathoError, shown
from patholib.judge import intervals, thresholds

if TYPE_CHECKING:
    import pandas as pd

    from patholib.data.imagesets import ImageSet

KEPT = 0.9  # share of new patients within the limit, of each class
ALWAYS_COLOUR = 0.01  # largest share of training images without colour where one is reported
STEPS = (1, 2, 4, 8)  # pixels between the grey values whose difference is sharpness
NOISE = 0.001  # added to each variance, as a share of it
GREY = 2  # grey levels by which JPEG lets the channels of an image without colour differ
NAMES = (
    "red",
    "green",
    "blue",
    "contrast in red",
    "contrast in green",
    "contrast in blue",
    "variety of red against green",
    "variety of green against blue",
    "variety of red against blue",
    "brightness of the centre against the border",
    *(f"sharpness over {step} pixel{'s' if step > 1 else ''}" for step in STEPS),
)


def features(pixels: np.ndarray) -> np.ndarray:
    """The features (F,) of one image (S, S, 3) uint8, in the order of NAMES; half a millisecond for 256 pixels.

    Computed from sums of whole numbers, so that every processor and number of threads gives the same bits.
    """
    channels = pixels.transpose(2, 0, 1).astype(np.int32, order="C")  # (3, S, S)
    flat = channels[:, ::2, ::2].reshape(3, -1).astype(np.int64)  # (3, N); a quarter of the pixels is enough
    count = flat.shape[1]
    mean = flat.sum(axis=1) / count  # (3,)
    pairs = np.array([[int(np.dot(one, other)) for other in flat] for one in flat])
    covariance = pairs / count - np.outer(mean, mean)
    red, green, blue = np.diag(covariance)
    apart = [red + green - 2 * covariance[0, 1], green + blue - 2 * covariance[1, 2], red + blue - 2 * covariance[0, 2]]
    spreads = np.log1p(np.sqrt(np.maximum([red, green, blue, *apart], 0)))  # of the channels and of their differences
    grey = 77 * channels[0] + 150 * channels[1] + 29 * channels[2]  # (S, S), 256 times the grey value
    quarter = len(grey) // 4
    centre = grey[quarter : len(grey) - quarter, quarter : len(grey) - quarter]
    inside, whole = int(centre.sum(dtype=np.int64)), int(grey.sum(dtype=np.int64))
    border = (whole - inside) / (grey.size - centre.size)
    return np.array([*mean, *spreads, (inside / centre.size - border) / 256, *_sharpness(grey)])


def _sharpness(grey: np.ndarray) -> list[float]:
    """The logarithm of the mean difference of grey values at each of STEPS; -3 for a blank image."""
    found = []
    for step in STEPS:
        across, down = grey[:, step:] - grey[:, :-step], grey[step:] - grey[:-step]
        mean = (_total(across) + _total(down)) / (2 * across.size * 256)
        found.append(math.log(mean + 0.05))
    return found


def _total(apart: np.ndarray) -> int:
    """The sum of absolute differences (H, W) int32; of a column it fits into 32 bits, which is twice as fast."""
    return int(np.abs(apart, out=apart).sum(axis=0, dtype=np.int32).sum(dtype=np.int64))


def colourless(pixels: np.ndarray) -> bool:
    """Whether the three channels of an image (S, S, 3) uint8 are equal, apart from JPEG artefacts."""

    def flat(part: np.ndarray) -> bool:
        return int(np.ptp(part, axis=2).max()) <= GREY

    return flat(pixels[::8, ::8]) and flat(pixels)  # for most images the sample is enough


@dataclass(frozen=True)
class Familiar:
    """The distribution of `features` over the training images, and the limit of what is familiar."""

    mean: np.ndarray  # (F,)
    scale: np.ndarray  # (F,) > 0
    precision: np.ndarray  # (F, F), of the scaled features
    limit: float  # the largest distance that is familiar
    colourless: float  # share of the training images without colour
    trained: int  # images measured
    validated: int  # images the limit was set on
    kept: float = KEPT  # share of new patients that is promised to lie within the limit, of each class
    words: str = ""  # what is promised; older exports promise nothing

    def distance(self, pixels: np.ndarray) -> float:
        """Mahalanobis distance of an image (S, S, 3) uint8 from the training images, as a multiple of the limit."""
        return self._distance(self._away(pixels))

    def reasons(self, pixels: np.ndarray) -> list[str]:
        """Why an image (S, S, 3) uint8 may be none of the classes, each as "code: text"; none for a familiar one."""
        found = []
        if self.colourless < ALWAYS_COLOUR and colourless(pixels):
            found.append("greyscale: has no colour, and the model was trained on colour pictures")
        away = self._away(pixels)
        distance = self._distance(away)
        if distance > 1:
            most = NAMES[int(np.abs(away).argmax())]
            found.append(
                f"unfamiliar: is unlike the training images, so it may be of none of the classes: {distance:.2f} times "
                f"as far from them as what is familiar; most in its {most}"
            )
        return found

    def to_json(self) -> dict:
        """JSON values, which `from_json` reads back."""
        return {
            "features": list(NAMES),
            "mean": self.mean.tolist(),
            "scale": self.scale.tolist(),
            "precision": self.precision.tolist(),
            "limit": self.limit,
            "kept": self.kept,
            "words": self.words,
            "colourless": self.colourless,
            "trained": self.trained,
            "validated": self.validated,
        }

    def _distance(self, away: np.ndarray) -> float:
        return float(_distances(away[None], self.precision)[0] / self.limit)

    def _away(self, pixels: np.ndarray) -> np.ndarray:
        return (features(pixels) - self.mean) / self.scale  # (F,)


def learn(images: ImageSet, units: str = "groups") -> Familiar:
    """Measures the train rows of a set with `split`, and sets the limit on its val rows: the largest one of any class.

    With fewer than 9 groups n of a class n / (n + 1) of KEPT is promised (`thresholds.promised`). units: what the
    groups are, in the plural. Errors: no_split, unknown_split.
    """
    train, val = images.part("train"), images.part("val")
    found = _measured(train)  # (N, F)
    mean, scale = found.mean(axis=0), np.maximum(found.std(axis=0), 1e-3)  # what never varies is not divided by 0
    # Rounded first: the limit has to hold with the rounded numbers of the export.
    mean, scale, precision = map(_rounded, (mean, scale, inverse_correlation((found - mean) / scale)))
    limit, kept = limit_of(_distances((_measured(val) - mean) / scale, precision), val.table)
    limit = float(_rounded(max(limit, 1e-6) * (1 + 1e-8)))  # rounded up: the image that sets it lies within
    grey = np.mean([colourless(train.pixels[row]) for row in train.table["row"]])
    beyond = f"{100 * (1 - kept):.3g} % of {units}"
    words = f"of each class, at most {beyond} like those of the validation set are found to be none of these classes"
    return Familiar(mean, scale, precision, limit, float(_rounded(grey)), len(train), len(val), kept, words)


def limit_of(away: np.ndarray, val: pd.DataFrame) -> tuple[float, float]:
    """The largest of the distances (N,) that are familiar, of any class, and the share that it promises to keep."""
    kept, limit = KEPT, -math.inf
    for rows in val.reset_index(drop=True).groupby("label").indices.values():
        groups = val["group"].to_numpy()[rows]
        own = thresholds.promised(len(set(groups)), KEPT)
        kept, limit = min(kept, own), max(limit, -thresholds.for_sensitivity(-away[rows], groups, own))
    return limit, kept


def judged(familiar: Familiar, images: ImageSet) -> tuple[np.ndarray, dict]:
    """The distance (N,) of every image, see `Familiar.distance`, and the share beyond the limit with its interval."""
    away = np.array([familiar.distance(images.pixels[row]) for row in images.table["row"]])
    share = intervals.mean_of(away > 1, images.table["group"], "share").to_json()
    return away, {"share": share, "expected": 1 - familiar.kept}


def inverse_correlation(away: np.ndarray) -> np.ndarray:
    """The inverse correlation matrix (F, F) of scaled deviations (N, F) of the training images.

    With shrinkage (Ledoit & Wolf 2004), because there may be few images, and with some noise in every feature, because
    between perfectly correlated features the smallest difference would give an enormous distance.
    """
    from sklearn.covariance import LedoitWolf

    shrunk = LedoitWolf(assume_centered=True).fit(away).covariance_ + NOISE * np.eye(away.shape[1])
    inverse = np.linalg.inv(shrunk)
    return (inverse + inverse.T) / 2


def from_json(values: dict) -> Familiar:
    """Reads and checks what `Familiar.to_json` gave. Errors: bad_novelty."""
    try:
        mean, scale, precision = (np.array(values[key], dtype=float) for key in ("mean", "scale", "precision"))
        facts = Familiar(
            *(mean, scale, precision, values["limit"], values["colourless"], values["trained"], values["validated"]),
            *(values["kept"], values.get("words", "")),
        )
        size = len(NAMES)
        sound = (
            values["features"] == list(NAMES)
            and _number(facts.kept)
            and 0 < facts.kept < 1
            and isinstance(facts.words, str)
            and facts.words.isprintable()
            and mean.shape == scale.shape == (size,)
            and precision.shape == (size, size)
            and np.isfinite([*mean, *scale, *precision.ravel()]).all()
            and scale.min() > 0
            and np.array_equal(precision, precision.T)
            and _positive(precision)
            and all(_number(value) for value in (facts.limit, facts.colourless))
            and 0 < facts.limit < math.inf
            and 0 <= facts.colourless <= 1
            and all(type(count) is int and count > 0 for count in (facts.trained, facts.validated))
        )
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise _bad(f"cannot be read ({shown(repr(error))})") from error
    if not sound:
        raise _bad("holds impossible numbers")
    return facts


def _bad(reason: str) -> PathoError:
    return PathoError("bad_novelty", "novelty", reason, "Export once more from the run")


def _number(value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _positive(matrix: np.ndarray) -> bool:
    return bool(np.linalg.eigvalsh(matrix).min() > 0)


def _measured(images: ImageSet) -> np.ndarray:
    return np.stack([features(images.pixels[row]) for row in images.table["row"]])  # (N, F)


def _distances(away: np.ndarray, precision: np.ndarray) -> np.ndarray:
    """Mahalanobis distances (N,) of scaled deviations (N, F)."""
    return np.sqrt(np.maximum(((away @ precision) * away).sum(axis=1), 0))


def _rounded(values) -> np.ndarray:
    """Values with nine digits, enough for every distance and shorter in a manifest."""
    return np.vectorize(lambda value: float(f"{value:.9g}"), otypes=[float])(values)
