"""Demo images of skin lesions: structure tells the class, colour does not."""

from __future__ import annotations

import cv2
import numpy as np

from patholib.data.demo import drawing

# Dark, middle and pale tones of lesions (RGB, 0 to 1): brown, red and blue-grey; brown, pink and tan; cream and rose.
TONES = (
    ((0.20, 0.12, 0.09), (0.38, 0.12, 0.14), (0.26, 0.25, 0.31)),
    ((0.54, 0.35, 0.26), (0.70, 0.43, 0.38), (0.64, 0.46, 0.34)),
    ((0.95, 0.86, 0.70), (0.92, 0.74, 0.68)),
)


def skin(
    form: np.random.Generator, view: np.random.Generator, size: tuple[int, int], cue: str, patient_effect: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """A dermoscopy picture (height, width, 3) uint8 of lesion `form` in one `view`, and its mask, uint8 0 / 255."""
    width, height = size
    irregular, structures = CUES[cue]
    x, y = drawing.grid(size)
    u, v, radius = _placed(form, view, size, x, y)
    depth = _depth(form, u, v, irregular)
    picture, cast = _bare_skin(form, u, v, patient_effect)
    border = form.uniform(0.08, 0.35)
    relief = 0.25 * drawing.field(form, u, v, 0.5) + 0.12 * drawing.field(form, u, v, 0.15)
    relief += form.normal(0, 0.3) * (2 * np.hypot(u, v) - 1)  # the middle darker or paler, in all classes alike
    for structure in structures:
        relief = structure(form, relief, u, v)
    lesion = _coloured(form, relief, depth > 0, 1.8 * height / 225)
    picture = drawing.blend(picture, lesion, 0.95 * drawing.soft(depth, -border / 2, border / 2))

    # Nothing in skin is straight: one smooth displacement bends skin, lesion and structures together. On bytes,
    # because OpenCV bends and blurs them the same to the bit on every processor.
    bent = [c + np.float32(0.07 * radius) * drawing.field(form, u, v, 0.4) for c in (x, y)]
    layers = np.dstack([_bytes(picture), _bytes(depth > 0)])
    layers = cv2.remap(layers, bent[0], bent[1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)
    shown = cv2.GaussianBlur(layers[..., :3], (0, 0), 0.6 * height / 225) * np.float32(1 / 255)
    corner = np.hypot((x - width / 2) / width, (y - height / 2) / height)
    shown *= (1 - form.uniform(0.1, 0.5) * drawing.soft(corner, 0.35, 0.75))[..., None]
    shown *= (cast * np.exp(view.normal(0, 0.03))).astype(np.float32)
    shown += view.integers(-24, 25, shown.shape, dtype=np.int8).astype(np.float32) / 1800
    return _bytes(shown), _bytes(layers[..., 3] > 127)


def _bytes(share: np.ndarray) -> np.ndarray:
    """0 to 1 as 0 to 255, uint8."""
    return np.rint(np.clip(share, 0, 1) * np.float32(255)).astype(np.uint8)


def _coloured(form, relief, inside, blur) -> np.ndarray:
    """RGB of a relief, dark to pale: every lesion holds the same share of every tone, its tones are drawn for it."""
    grey = cv2.GaussianBlur(_bytes(0.3 * relief + 0.5), (0, 0), blur)
    share = np.bincount(grey[inside], minlength=256) / inside.sum()
    rank = 2 * np.cumsum(share) - share - 1  # -1 darkest to 1 palest
    tones = np.transpose([form.dirichlet(np.ones(len(tones))) @ tones for tones in TONES])
    table = [np.interp(np.sign(rank) * np.abs(rank) ** 2, [-1, 0, 1], channel) for channel in tones]  # mostly middle
    return np.stack(table, 1).astype(np.float32)[grey]


def _placed(form, view, size, x, y) -> tuple[np.ndarray, np.ndarray, float]:
    """Where this view puts the lesion: its own coordinates u, v, 1 at the mean radius, and that radius in pixels."""
    width, height = size
    radius = height * form.uniform(0.26, 0.36) * view.uniform(0.93, 1.07)
    turn = form.uniform(0, 2 * np.pi) + view.normal(0, 0.25)
    stretch = np.exp(form.normal(0, 0.10))
    room = max(height / 2 - radius, 0)
    centre = np.array([width / 2, height / 2]) + (0.6 * form.uniform(-1, 1, 2) + 0.4 * view.uniform(-1, 1, 2)) * room
    u = (((x - centre[0]) * np.cos(turn) + (y - centre[1]) * np.sin(turn)) / (radius * stretch)).astype(np.float32)
    v = (((y - centre[1]) * np.cos(turn) - (x - centre[0]) * np.sin(turn)) / radius * stretch).astype(np.float32)
    return u, v, radius


def _depth(form, u, v, irregular) -> np.ndarray:
    """0 at the lesion's outline, up to 1 inside, below 0 outside."""
    outline = drawing.outline(form, irregular, 1024).astype(np.float32)
    outline /= np.sqrt((outline**2).mean())  # the same area, however irregular
    angle = np.rint(np.arctan2(v, u) * (1024 / (2 * np.pi))).astype(int) % 1024
    return outline[angle] - np.hypot(u, v) + 0.04 * drawing.field(form, u, v, 0.2)


def _bare_skin(form, u, v, patient_effect) -> tuple[np.ndarray, np.ndarray]:
    """The skin without the lesion, whose tone belongs to the patient, and the cast of the light (3,)."""
    tone = np.array([0.87, 0.69, 0.64]) * np.exp(patient_effect * form.normal(0, 0.09))
    redness, warmth = patient_effect * form.uniform([-0.03, -0.14], [0.13, 0.14])
    cast = np.exp([0.2 * redness, -redness, -0.4 * redness - warmth])
    picture = np.ones((*u.shape, 3), np.float32) * tone.astype(np.float32)
    picture *= (1 + 0.05 * drawing.field(form, u, v, 0.9) + 0.025 * drawing.field(form, u, v, 0.25))[..., None]
    pink = drawing.soft(drawing.field(form, u, v, 0.5), 0.1, 1.0)
    picture = drawing.blend(picture, (0.85, 0.52, 0.50), 0.30 * pink)
    creases = _cells(form, u, v, 0.11, reach=5.5)
    picture *= (1 - 0.05 * drawing.soft(creases, 0.5, 0.8))[..., None]
    return picture, cast


def _cells(rng: np.random.Generator, u: np.ndarray, v: np.ndarray, step: float, reach: float = 2.2) -> np.ndarray:
    """Distance to the nearest point of a jittered lattice, in steps: 0 on it, about 0.6 on the walls of its cell."""
    count = int(reach / step)
    column, row = np.meshgrid(np.arange(-count, count + 1), np.arange(-count, count + 1))
    points = np.stack([column + 0.5 * (row % 2), row * 0.866], -1).reshape(-1, 2).astype(np.float64)
    points = (points + rng.normal(0, 0.2, points.shape)) * step
    at = np.rint(_to_pixels(points, u, v)).astype(int)
    height, width = u.shape
    at = at[(at[:, 0] >= 0) & (at[:, 0] < width) & (at[:, 1] >= 0) & (at[:, 1] < height)]
    canvas = np.full(u.shape, 255, np.uint8)
    canvas[at[:, 1], at[:, 0]] = 0
    return cv2.distanceTransform(canvas, cv2.DIST_L2, cv2.DIST_MASK_PRECISE) / (step * _pixels_per_unit(u, v))


def _pixels_per_unit(u: np.ndarray, v: np.ndarray) -> float:
    """Length in pixels of one unit of the lesion's coordinates."""
    return float(1 / np.hypot(u[0, 1] - u[0, 0], v[0, 1] - v[0, 0]))


def _to_pixels(points: np.ndarray, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Lesion coordinates (n, 2) as pixel positions (n, 2) x, y: u and v are affine in x and y."""
    matrix = np.array([[u[0, -1] - u[0, 0], u[-1, 0] - u[0, 0]], [v[0, -1] - v[0, 0], v[-1, 0] - v[0, 0]]], np.float64)
    matrix /= [u.shape[1] - 1, u.shape[0] - 1]
    return np.linalg.solve(matrix, (np.asarray(points) - [u[0, 0], v[0, 0]]).T).T


def _spots(rng, u, v, least: int, most: int, low: float, high: float) -> np.ndarray:
    """Opacity of `least` to `most` roundish spots of radius `low` to `high` units."""
    layer = np.zeros(u.shape, np.uint8)
    count = rng.integers(least, most + 1)
    angle, distance = rng.uniform(0, 2 * np.pi, count), 0.95 * np.sqrt(rng.uniform(0, 1, count))
    for at in _to_pixels(np.stack([distance * np.cos(angle), distance * np.sin(angle)], 1), u, v):
        axes = rng.uniform(low, high) * _pixels_per_unit(u, v) * np.exp(rng.normal(0, 0.15, 2))
        drawing.ellipse(layer, at, axes, rng.uniform(0, np.pi), 255)
    return layer.astype(np.float32) / 255


def _laid(relief: np.ndarray, height: float, alpha: np.ndarray) -> np.ndarray:
    """`height`, -1 dark to 1 pale, laid over the relief with opacity `alpha`; a quarter of what was there stays."""
    return relief + (height - 0.75 * relief) * alpha


def _off_centre(rng, u, v):
    """Distance to a point near the centre, unevenly."""
    a, b = rng.uniform(-0.3, 0.3, 2)
    return np.hypot(u - a, v - b) + 0.2 * drawing.field(rng, u, v, 0.25)


def _network(rng, relief, u, v):
    """Pigment network: a dark mesh."""
    return _laid(relief, -0.8, drawing.soft(_cells(rng, u, v, 0.2), 0.2, 0.55))


def _blotches(rng, relief, u, v):
    """Off-centre dark areas."""
    side = rng.uniform(0, 2 * np.pi)
    lean = u * np.cos(side) + v * np.sin(side)
    return _laid(relief, -1.2, drawing.soft(drawing.field(rng, u, v, 0.5) + 0.9 * lean, 0.05, 0.3))


def _nests(rng, relief, u, v):
    """Dark ovoid nests."""
    return _laid(relief, -1.0, _spots(rng, u, v, 6, 10, 0.12, 0.2))


def _strawberry(rng, relief, u, v):
    """Pale follicles with a plug, in a dark mesh."""
    cells = _cells(rng, u, v, 0.36)
    relief = _laid(relief, 1.0, 1 - drawing.soft(cells, 0.28, 0.4))
    return _laid(relief, -0.3, 1 - drawing.soft(cells, 0.08, 0.16))


def _milia(rng, relief, u, v):
    """Pale milia-like cysts and dark comedo-like openings."""
    relief = _laid(relief, 1.0, _spots(rng, u, v, 14, 21, 0.05, 0.09))
    return _laid(relief, -1.0, _spots(rng, u, v, 14, 21, 0.05, 0.09))


def _scar(rng, relief, u, v):
    """A pale, scar-like centre."""
    return _laid(relief, 1.0, 1 - drawing.soft(_off_centre(rng, u, v), 0.3, 0.5))


def _lacunae(rng, relief, u, v):
    """Dark lagoons, sharply bounded by pale walls."""
    walls = _cells(rng, u, v, rng.uniform(0.4, 0.55)) + 0.12 * drawing.field(rng, u, v, 0.2)
    return _laid(relief, -1.0, 1 - drawing.soft(walls, 0.36, 0.46))


def _crust(rng, relief, u, v):
    """A pale keratin mass near the middle, with blood spots."""
    mass = 1 - drawing.soft(_off_centre(rng, u, v), 0.4, 0.5)
    relief = _laid(relief, 1.0, mass)
    return _laid(relief, -1.0, _spots(rng, u, v, 20, 29, 0.04, 0.08) * mass)


# Class: how irregular the outline is, and the structures in order. All else, so every colour, is drawn alike for all.
CUES = {
    "MEL": (0.20, (_network, _blotches)),
    "NV": (0.05, (_network,)),
    "BCC": (0.12, (_nests,)),
    "AK": (0.12, (_strawberry,)),
    "BKL": (0.10, (_milia,)),
    "DF": (0.05, (_network, _scar)),
    "VASC": (0.08, (_lacunae,)),
    "SCC": (0.14, (_crust,)),
}
