"""Is a picture of the kind the model was trained on? Its colours and its sharpness, held against the training images.

`learn` measures the training images and sets the limit on the validation images; the numbers travel in the export's
manifest, and `Familiar.warning` speaks where a picture lies beyond the limit. It knows nothing of what a picture shows:
a strange tissue in the usual stain passes. It catches what a model is given by mistake: another stain, another camera,
a photo, a screenshot, noise, a picture out of focus.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from patholib.errors import PathoError, shown

if TYPE_CHECKING:
    from patholib.images import ImageSet

KEPT = 0.99  # the share of the validation images that the limit lets pass
STEPS = (1, 2, 4, 8)  # pixels between the grey values whose difference is sharpness
GREY = 2  # grey levels that the channels of a picture without colour may differ by, as JPEG lets them
NAMES = ("red", "green", "blue", "contrast in red", "contrast in green", "contrast in blue",
         "variety of red against green", "variety of green against blue", "brightness of the centre against the border",
         *(f"sharpness over {step} pixel{'s' * (step > 1)}" for step in STEPS))


def features(pixels: np.ndarray) -> np.ndarray:
    """The len(NAMES) numbers of one picture (S, S, 3) uint8; about half a millisecond for 256 pixels.

    Sums of whole numbers, so that no processor and no number of threads adds them up otherwise.
    """
    flat = np.ascontiguousarray(pixels[::2, ::2].reshape(-1, 3)).astype(np.int64)  # a quarter tells as much
    count = len(flat)
    mean = flat.sum(axis=0) / count  # (3,)
    pairs = np.array([[int((flat[:, i] * flat[:, j]).sum()) for j in range(3)] for i in range(3)])
    covariance = pairs / count - np.outer(mean, mean)
    red, green, blue = np.diag(covariance)
    apart = [red + green - 2 * covariance[0, 1], green + blue - 2 * covariance[1, 2]]  # variances of differences
    deviations = np.sqrt(np.maximum([red, green, blue, *apart], 0))
    grey = pixels @ np.array([77, 150, 29], np.int32)  # (S, S), 256 times the grey value
    quarter = len(grey) // 4
    centre = grey[quarter:len(grey) - quarter, quarter:len(grey) - quarter]
    inside, whole = int(centre.sum(dtype=np.int64)), int(grey.sum(dtype=np.int64))
    border = (whole - inside) / (grey.size - centre.size)
    return np.array([*mean, *deviations, (inside / centre.size - border) / 256, *_sharpness(grey)])


def _sharpness(grey: np.ndarray) -> list[float]:
    """The logarithm of the mean difference between grey values so many pixels apart; a blank picture has -3."""
    found = []
    for step in STEPS:
        across, down = np.abs(grey[:, step:] - grey[:, :-step]), np.abs(grey[step:] - grey[:-step])
        mean = (int(across.sum(dtype=np.int64)) + int(down.sum(dtype=np.int64))) / (2 * across.size * 256)
        found.append(math.log(mean + 0.05))
    return found


def colourless(pixels: np.ndarray) -> bool:
    """Whether the three channels of a picture are the same everywhere, but for what JPEG adds."""
    def flat(part: np.ndarray) -> bool:
        return int(np.ptp(part, axis=2).max()) <= GREY

    return flat(pixels[::8, ::8]) and flat(pixels)  # the sample spares most pictures the full pass


@dataclass(frozen=True)
class Familiar:
    """What the training images look like: mean, scale and inverse correlation of `features`, and a limit."""

    mean: np.ndarray  # (F,)
    scale: np.ndarray  # (F,) > 0
    precision: np.ndarray  # (F, F), of the scaled features
    limit: float  # the distance within which KEPT of the validation images lie
    colourless: float  # share of the training images without colour
    trained: int  # images measured
    validated: int  # images the limit was set on

    def distance(self, pixels: np.ndarray) -> float:
        """Mahalanobis distance of a picture (S, S, 3) uint8 from the training images, in limits: strange above 1."""
        return float(_distances(self._away(pixels)[None], self.precision)[0] / self.limit)

    def warnings(self, pixels: np.ndarray) -> list[str]:
        """What is strange about a picture, each as "code: text"; nothing for most."""
        found = []
        if self.colourless < 1 - KEPT and colourless(pixels):
            found.append("greyscale: has no colour, and the model was trained on colour pictures")
        away = self._away(pixels)
        distance = float(_distances(away[None], self.precision)[0] / self.limit)
        if distance > 1:
            most = NAMES[int(np.abs(away).argmax())]
            found.append(f"unfamiliar: is unlike the training images, {distance:.1f} times as far from them as "
                         f"{KEPT:.0%} of the validation images are; most in its {most}")
        return found

    def to_json(self) -> dict:
        """Plain values; numbers rounded to nine digits, with which `from_json` gives an equal one."""
        return {"features": list(NAMES), "mean": _rounded(self.mean), "scale": _rounded(self.scale),
                "precision": [_rounded(row) for row in self.precision], "limit": _rounded([self.limit])[0],
                "kept": KEPT, "colourless": self.colourless, "trained": self.trained, "validated": self.validated}

    def _away(self, pixels: np.ndarray) -> np.ndarray:
        return (features(pixels) - self.mean) / self.scale  # (F,)


def learn(images: ImageSet) -> Familiar:
    """Measures the train rows of a set with `split`; the limit is set on its val rows.

    The covariance is shrunk (Ledoit & Wolf 2004): there may be few images, and the features go together. With fewer
    than 100 validation images the limit is the farthest of them. Errors: no_split, unknown_split.
    """
    from sklearn.covariance import LedoitWolf

    train, val = images.part("train"), images.part("val")
    found = _measured(train)  # (N, F)
    mean, scale = found.mean(axis=0), np.maximum(found.std(axis=0), 1e-3)  # what never varies is not divided by 0
    model = LedoitWolf(assume_centered=True).fit((found - mean) / scale)
    grey = np.mean([colourless(train.pixels[row]) for row in train.table["row"]])
    limit = np.quantile(_distances((_measured(val) - mean) / scale, model.precision_), KEPT, method="higher")
    learnt = Familiar(mean, scale, model.precision_, float(limit), round(float(grey), 6), len(train), len(val))
    return from_json(learnt.to_json())  # with the rounded numbers that the export will hold


def from_json(values: dict) -> Familiar:
    """What `Familiar.to_json` gave, checked. Errors: bad_novelty."""
    try:
        mean, scale, precision = (np.array(values[key], dtype=float) for key in ("mean", "scale", "precision"))
        facts = Familiar(mean, scale, precision, values["limit"], values["colourless"], values["trained"],
                         values["validated"])
        size = len(NAMES)
        sound = (values["features"] == list(NAMES) and values["kept"] == KEPT and mean.shape == scale.shape == (size,)
                 and precision.shape == (size, size) and np.isfinite([*mean, *scale, *precision.ravel()]).all()
                 and scale.min() > 0 and np.array_equal(precision, precision.T) and _positive(precision)
                 and all(_number(value) for value in (facts.limit, facts.colourless))
                 and 0 < facts.limit < math.inf and 0 <= facts.colourless <= 1
                 and all(type(count) is int and count > 0 for count in (facts.trained, facts.validated)))
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise _bad(f"cannot be read ({shown(repr(error))})") from error
    if not sound:
        raise _bad("holds numbers that cannot be")
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
    """(N,) from scaled deviations (N, F)."""
    return np.sqrt(np.maximum(((away @ precision) * away).sum(axis=1), 0))


def _rounded(values) -> list[float]:
    return [float(f"{value:.9g}") for value in values]
