"""By what a picture is recognised after it was turned, scaled, brightened or encoded again.

`of` is a picture's signature, `similarity` compares two, `similar` finds all pairs among a hundred thousand.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image

GRID, KEPT = 64, 16  # a picture is seen in 64 x 64 points, and of them the 16 lowest frequencies each way
SHAPE = (KEPT, KEPT)
REACH = 3.0  # points: each is compared with its surroundings so far (standard deviation of a Gaussian)
FAINT = 3.0  # grey levels: surroundings that vary less are mostly noise of the encoding, and are not amplified
FRAME = (0.15, 0.35)  # of the median grey: what is darker, from the border on, is the frame of a lens or a bar
FLAT = 0.02  # variance of the compared points below which a picture is too plain to be recognised
SAME = 0.88  # least similarity of two encodings of one picture; see `similarity`
NONE = (np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32))
BLOCK = 1024  # signatures compared at a time, so that the products stay in the processor's cache


def of(image: Image.Image) -> np.ndarray:
    """What stays of a picture when it is scaled, stretched, brightened or encoded again: SHAPE float32 of norm 1.

    The lowest cosine frequencies of its grey values, each taken relative to the mean and the spread of its
    surroundings: what two lesions have in common, a spot in the middle of a shaded field, weighs no more than the
    pattern in which they differ, and a dark frame weighs nothing. All zero: too plain to be recognised.
    """
    grey = np.asarray(image.convert("L").resize((GRID, GRID), Image.Resampling.HAMMING), np.float64)
    inside = _inside(grey)
    near = _blurred(inside) + 1e-3  # how much of the surroundings is inside
    detail = inside * (grey - _blurred(inside * grey) / near)
    detail /= np.sqrt(_blurred(detail**2) / near + FAINT**2)
    found = _cosines() @ detail @ _cosines().T / GRID * _kept()  # (16, 16); the sum of squares is the variance kept
    strength = np.linalg.norm(found)
    return (found / strength if strength**2 >= FLAT else np.zeros(SHAPE)).astype(np.float32)


def _inside(grey: np.ndarray) -> np.ndarray:
    """0 in a dark frame and close to it, 1 elsewhere, (64, 64)."""
    brightest = np.maximum.accumulate  # from the border to a point: low as long as the way leads through the frame
    way = np.min(
        [
            brightest(grey, axis=0),
            brightest(grey[::-1], axis=0)[::-1],
            brightest(grey, axis=1),
            brightest(grey[:, ::-1], axis=1)[:, ::-1],
        ],
        axis=0,
    )
    low, high = FRAME
    inside = np.clip((way / max(np.median(grey), 1) - low) / (high - low), 0, 1)
    return inside * np.clip(4 * _blurred(inside) - 3, 0, 1)  # the edge of a frame is as strong as all details together


def similarity(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The largest correlation of signatures over the eight flips and quarter turns; a, b (N, 16, 16), result (N,).

    Different pictures seldom exceed 0.7, two encodings of one seldom fall below 0.95; SAME lies between.
    """
    straight, turned = ((a * other).reshape(len(a), -1) @ _signs() for other in (b, b.swapaxes(1, 2)))  # (N, 4)
    return np.maximum(straight.max(axis=1), turned.max(axis=1))


def similar(signatures: np.ndarray, least: float = SAME, wanted: Callable | None = None) -> tuple[np.ndarray, ...]:
    """All pairs i < j with `similarity` of at least `least`: (P,) i, (P,) j, (P,) similarity; none is missed.

    signatures: (N, 16, 16). wanted(i, j) -> (P,) bool leaves pairs out before they are looked at closely.
    A flip changes signs of coefficients and a quarter turn also swaps (u, v) with (v, u). So the length of each such
    couple stays, and the product of two pictures' lengths is never below that of their best aligned signatures
    (Cauchy-Schwarz): one matrix product of 112 lengths finds the few pairs that are worth eight comparisons.
    """
    upper = np.triu_indices(KEPT)
    lengths = np.where(
        upper[0] == upper[1],
        np.abs(signatures[:, *upper]),
        np.hypot(signatures[:, *upper], signatures.swapaxes(1, 2)[:, *upper]),
    )
    lengths = np.ascontiguousarray(lengths[:, _kept()[upper]])  # (N, 112)
    found: list[tuple] = []
    for start in range(0, len(lengths), BLOCK):
        for across in range(start, len(lengths), BLOCK):
            product = lengths[start : start + BLOCK] @ lengths[across : across + BLOCK].T
            if product.max() < least - 1e-4:  # the margin is for rounding
                continue
            i, j = np.nonzero(product >= least - 1e-4)
            i, j = i + start, j + across
            keep = (i < j) & (wanted(i, j) if wanted else True)
            found += _closely(signatures, i[keep], j[keep], least)
    return tuple(np.concatenate(part) for part in zip(NONE, *found, strict=True))


def _closely(signatures: np.ndarray, i: np.ndarray, j: np.ndarray, least: float) -> Iterator[tuple]:
    """The pairs that are similar, in portions that fit into memory."""
    for start in range(0, len(i), 16 * BLOCK):
        some = slice(start, start + 16 * BLOCK)
        value = similarity(signatures[i[some]], signatures[j[some]])
        alike = value >= least
        yield i[some][alike], j[some][alike], value[alike]


@functools.cache
def _cosines() -> np.ndarray:
    """The lowest rows of the orthonormal discrete cosine transform, (16, 64)."""
    rows = np.cos(np.pi / GRID * np.arange(KEPT)[:, None] * (np.arange(GRID) + 0.5)) * (2 / GRID) ** 0.5
    rows[0] /= 2**0.5
    return rows


@functools.cache
def _kept() -> np.ndarray:
    """Which frequencies count: all but the mean, up to the 16th in every direction; (16, 16) bool."""
    radius = np.hypot(*np.mgrid[:KEPT, :KEPT])
    return (radius >= 1) & (radius < KEPT)


def _blurred(values: np.ndarray) -> np.ndarray:
    """The Gaussian mean around every point, (64, 64)."""
    return _gaussian() @ values @ _gaussian().T


@functools.cache
def _gaussian() -> np.ndarray:
    """The weights of the mean around every point of a line, (64, 64); behind a border the line is reflected."""
    here = np.arange(GRID)
    mirrored = (here, -1 - here, 2 * GRID - 1 - here)
    weights = sum((np.exp(-((here[:, None] - x) ** 2) / (2 * REACH**2)) for x in mirrored), np.zeros((GRID, GRID)))
    return weights / weights.sum(axis=1, keepdims=True)


@functools.cache
def _signs() -> np.ndarray:
    """What no flip, a flip across, one down and both do to the coefficients, (256, 4)."""
    odd = (-1.0) ** np.arange(KEPT)
    ones = np.ones(KEPT)
    return np.stack([np.outer(down, across).ravel() for down in (ones, odd) for across in (ones, odd)], axis=1).astype(
        np.float32
    )
