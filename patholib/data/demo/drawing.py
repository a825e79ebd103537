"""Shapes, textures and stains that the demo images are drawn with."""

from __future__ import annotations

import cv2
import numpy as np

# The purposes of random draws: the first key after the seed, so that no two draws share a stream.
CASE, LATENT, _STAIN, TISSUE, LESION, FORM, VIEW = 0, 1, 2, 3, 4, 6, 7


def stain(seed: int, case: str, patient_effect: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """A patient's stain: optical density (RGB) per unit of each dye (2, 3), and of the empty slide (3,)."""
    rng = generator(seed, _STAIN, *case.encode())
    # Directions after Ruifrok & Johnston (2001), haematoxylin a little bluer as BreakHis shows it.
    vectors = np.array([[0.63, 0.71, 0.32], [0.17, 0.86, 0.46]])
    vectors = vectors + patient_effect * rng.normal(0, [[0.06, 0.05, 0.06], [0.05, 0.05, 0.09]])
    strength = np.exp(patient_effect * rng.normal(0, [0.27, 0.28])) * [1.0, 0.68]
    vectors = np.clip(vectors, 0.02, None)
    vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True) * strength[:, None]
    empty = 0.08 + patient_effect * np.abs(rng.normal(0, 0.045)) + patient_effect * rng.normal(0, 0.022, 3)
    return vectors, np.clip(empty, 0.01, None)


# --- drawing: what both pictures are made of --------------------------------------------------------------------------


def generator(*key: int) -> np.random.Generator:
    return np.random.default_rng(key)


def grid(size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """x and y of every pixel centre, each (height, width) float32."""
    width, height = size
    return np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))


def field(
    rng: np.random.Generator, x: np.ndarray, y: np.ndarray, long: float, short: float | None = None
) -> np.ndarray:
    """Smooth noise in [-1, 1] over coordinates x and y, with features `long` by `short` (default: the same) units."""
    lattice = rng.integers(0, 256, (40, 40), dtype=np.uint8)
    # Eight times finer, so that a linear look-up is smooth; two points of margin, so that it wraps without a seam.
    smooth = cv2.resize(np.pad(lattice, 2, "wrap"), None, fx=8, fy=8, interpolation=cv2.INTER_CUBIC)[16:-16, 16:-16]
    at = (x * np.float32(8 / long)).astype(np.float32), (y * np.float32(8 / (short or long))).astype(np.float32)
    return cv2.remap(smooth, *at, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP).astype(np.float32) / 127.5 - 1


def outline(rng: np.random.Generator, irregular: float, points: int = 64) -> np.ndarray:
    """Radius of an irregular closed curve at `points` equal angles, mean 1."""
    angle = np.linspace(0, 2 * np.pi, points, endpoint=False)
    waves = np.arange(2, 7)
    size, phase = irregular * rng.normal(size=5) / waves**0.7, rng.uniform(0, 2 * np.pi, 5)
    return np.clip(1 + (size[:, None] * np.cos(waves[:, None] * angle + phase[:, None])).sum(0), 0.55, 1.45)


def curve(centre, radii: np.ndarray, stretch=(1.0, 1.0), turn: float = 0.0) -> np.ndarray:
    """The (points, 2) polygon of a closed curve around `centre`."""
    angle = np.linspace(0, 2 * np.pi, len(radii), endpoint=False)
    local = np.stack([radii * np.cos(angle) * stretch[0], radii * np.sin(angle) * stretch[1]], 1)
    rotation = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    return local @ rotation + np.asarray(centre)


def fixed(value) -> np.ndarray:
    """Coordinates in sixteenths of a pixel, as OpenCV draws with shift=4."""
    return np.rint(np.asarray(value) * 16).astype(int)


def fill_curve(canvas: np.ndarray, polygon: np.ndarray, value: int) -> None:
    cv2.fillPoly(canvas, [fixed(polygon).astype(np.int32)], value, cv2.LINE_AA, shift=4)


def ellipse(canvas: np.ndarray, centre, axes, turn: float, value: int) -> None:
    """Fills an ellipse; axes in pixels, turn in radians."""
    (x, y), (a, b) = fixed(centre).tolist(), fixed(axes).tolist()
    cv2.ellipse(canvas, (x, y), (max(a, 4), max(b, 4)), float(np.degrees(turn)), 0, 360, value, -1, cv2.LINE_AA, 4)


def soft(value: np.ndarray, low: float, high: float) -> np.ndarray:
    """0 below `low`, 1 above `high`, smooth between."""
    t = np.clip((value - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def develop(dye: np.ndarray, vectors: np.ndarray, empty: np.ndarray) -> np.ndarray:
    """The RGB picture of dye amounts by Beer-Lambert's law, intensity = 255 exp(-(dye @ vectors + empty)), uint8."""
    density = dye[..., :1] * vectors[0] + dye[..., 1:] * vectors[1] + empty  # (height, width, 3)
    picture = np.rint(255 * np.exp(-density)).astype(np.uint8)
    # Blurred as bytes, as a lens does it to light: OpenCV's blur of uint8 is the same to the bit on every processor.
    return cv2.GaussianBlur(picture, (0, 0), 0.55 * len(picture) / 230)


def blend(picture: np.ndarray, colour, alpha: np.ndarray) -> np.ndarray:
    """`colour` laid over `picture` with opacity `alpha` (height, width)."""
    return picture + (np.asarray(colour, np.float32) - picture) * alpha[..., None].astype(np.float32)
