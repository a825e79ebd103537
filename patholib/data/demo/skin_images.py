"""Demo images of skin lesions."""

from __future__ import annotations

import cv2
import numpy as np

from patholib.data.demo import drawing

# Class: two ends of the lesion's colour (RGB, 0 to 1), irregular outline, width of the border, structures in order.
# The colours overlap on purpose: the structures are what tells the classes apart.
CUES = {
    "MEL": ((0.52, 0.33, 0.25), (0.30, 0.19, 0.16), 0.20, 0.16, ("network", "blotches")),
    "NV": ((0.66, 0.43, 0.31), (0.42, 0.26, 0.19), 0.05, 0.30, ("network",)),
    "BCC": ((0.82, 0.58, 0.53), (0.66, 0.45, 0.40), 0.12, 0.35, ("nests",)),
    "AK": ((0.82, 0.54, 0.48), (0.68, 0.42, 0.36), 0.12, 0.60, ("strawberry",)),
    "BKL": ((0.70, 0.52, 0.38), (0.44, 0.29, 0.22), 0.14, 0.07, ("milia",)),
    "DF": ((0.72, 0.51, 0.44), (0.52, 0.34, 0.28), 0.06, 0.45, ("network", "scar")),
    "VASC": ((0.72, 0.36, 0.36), (0.48, 0.22, 0.26), 0.09, 0.15, ("lacunae",)),
    "SCC": ((0.80, 0.54, 0.46), (0.62, 0.40, 0.33), 0.14, 0.30, ("crust",)),
}


def skin(
    form: np.random.Generator, view: np.random.Generator, size: tuple[int, int], cue: str, patient_effect: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """A dermoscopy picture (height, width, 3) uint8 of lesion `form` in one `view`, and its mask, uint8 0 / 255."""
    width, height = size
    light, dark, irregular, border, structures = CUES[cue]
    x, y = drawing.grid(size)
    u, v, radius = _placed(form, view, size, x, y)
    depth = _depth(form, u, v, irregular, border)
    inside = drawing.soft(depth, -border / 2, border / 2)
    picture, cast = _bare_skin(form, u, v, patient_effect)

    share = form.uniform()
    colour = np.array(light) * (1 - share) + np.array(dark) * share
    uneven = 0.5 + 0.5 * drawing.field(form, u, v, 0.55) + 0.25 * drawing.field(form, u, v, 0.2)
    opaque = inside * np.clip(0.78 + 0.2 * uneven, 0, 1) * (0.75 if border > 0.4 else 0.95)
    picture = drawing.blend(picture, colour, opaque)
    picture *= (1 - 0.22 * inside * uneven)[..., None]
    for structure in structures:
        picture = _STRUCTURES[structure](form, picture, u, v, depth, inside, np.array(colour))

    # Nothing in skin is straight: one smooth displacement bends skin, lesion and structures together.
    bent = [
        c + radius * (0.07 * drawing.field(form, u, v, 0.45) + 0.02 * drawing.field(form, u, v, 0.13)) for c in (x, y)
    ]
    picture, depth = (
        cv2.remap(a.astype(np.float32), bent[0], bent[1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)
        for a in (picture, depth)
    )
    shown: np.ndarray = cv2.GaussianBlur(picture, (0, 0), 0.8 * height / 225)
    corner = np.hypot((x - width / 2) / width, (y - height / 2) / height)
    shown *= (1 - form.uniform(0.1, 0.5) * drawing.soft(corner, 0.35, 0.75))[..., None]
    shown *= (cast * np.exp(view.normal(0, 0.03))).astype(np.float32)
    shown += view.integers(-24, 25, shown.shape, dtype=np.int8).astype(np.float32) / 1800
    mask = np.where(depth > 0, 255, 0).astype(np.uint8)
    return np.rint(np.clip(shown, 0, 1) * 255).astype(np.uint8), mask


def _placed(form, view, size, x, y) -> tuple[np.ndarray, np.ndarray, float]:
    """Where this view puts the lesion: its own coordinates u, v, 1 at the mean radius, and that radius in pixels."""
    width, height = size
    radius = height * form.uniform(0.23, 0.32) * view.uniform(0.93, 1.07)
    turn = form.uniform(0, 2 * np.pi) + view.normal(0, 0.25)
    stretch = np.exp(form.normal(0, 0.10))
    room = max(height / 2 - 1.2 * radius, 0)
    centre = np.array([width / 2, height / 2]) + (0.6 * form.uniform(-1, 1, 2) + 0.4 * view.uniform(-1, 1, 2)) * room
    u = (((x - centre[0]) * np.cos(turn) + (y - centre[1]) * np.sin(turn)) / (radius * stretch)).astype(np.float32)
    v = (((y - centre[1]) * np.cos(turn) - (x - centre[0]) * np.sin(turn)) / radius * stretch).astype(np.float32)
    return u, v, radius


def _depth(form, u, v, irregular, border) -> np.ndarray:
    """0 at the lesion's outline, up to 1 inside, below 0 outside."""
    outline = drawing.outline(form, irregular)
    angle = (np.arctan2(v, u).astype(np.float64) / (2 * np.pi) * 64) % 64
    edge = np.interp(angle, np.arange(65), np.r_[outline, outline[0]]).astype(np.float32)
    ragged = 0.05 * drawing.field(form, u, v, 0.16) if border < 0.2 else 0.03 * drawing.field(form, u, v, 0.4)
    return edge - np.hypot(u, v) + ragged


def _bare_skin(form, u, v, patient_effect) -> tuple[np.ndarray, np.ndarray]:
    """The skin without the lesion, and the cast of the light (3,).

    Tone and light belong to the lesion (its patient and camera), mottling and creases to the place.
    """
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


def _spots(rng, u, v, count: int, reach: float, low: float, high: float) -> np.ndarray:
    """Opacity of `count` round spots of radius `low` to `high` units within `reach` of the centre."""
    layer = np.zeros(u.shape, np.uint8)
    unit = _pixels_per_unit(u, v)
    angle, distance = rng.uniform(0, 2 * np.pi, count), reach * np.sqrt(rng.uniform(0, 1, count))
    places = _to_pixels(np.stack([distance * np.cos(angle), distance * np.sin(angle)], 1), u, v)
    for at in places:
        axes = rng.uniform(low, high) * unit * np.exp(rng.normal(0, 0.15, 2))
        drawing.ellipse(layer, at, axes, rng.uniform(0, np.pi), 255)
    return layer.astype(np.float32) / 255


def _network(rng, picture, u, v, depth, inside, colour):
    """Pigment network: a brown mesh, thinning out towards the border."""
    mesh = drawing.soft(_cells(rng, u, v, 0.19), 0.30, 0.52)
    return drawing.blend(picture, 0.5 * colour, 0.5 * mesh * drawing.soft(depth, 0.0, 0.25))


def _blotches(rng, picture, u, v, depth, inside, colour):
    """Off-centre black-brown areas."""
    side = rng.uniform(0, 2 * np.pi)
    lean = u * np.cos(side) + v * np.sin(side)
    area = drawing.soft(drawing.field(rng, u, v, 0.5) + 0.9 * lean, 0.05, 0.45)
    return drawing.blend(picture, (0.16, 0.10, 0.09), 0.75 * area * inside)


def _nests(rng, picture, u, v, depth, inside, colour):
    """Blue-grey ovoid nests."""
    spots = cv2.GaussianBlur(_spots(rng, u, v, int(rng.integers(4, 9)), 0.75, 0.08, 0.17), (0, 0), 1.2)
    return drawing.blend(picture, (0.42, 0.37, 0.42), 0.65 * spots * inside)


def _strawberry(rng, picture, u, v, depth, inside, colour):
    """Pale follicles in a red mesh, and whitish scale."""
    cells = _cells(rng, u, v, 0.24)
    picture = drawing.blend(picture, (0.78, 0.34, 0.32), 0.55 * drawing.soft(cells, 0.25, 0.5) * inside)
    picture = drawing.blend(picture, (0.95, 0.86, 0.72), 0.85 * (1 - drawing.soft(cells, 0.14, 0.30)) * inside)
    scale = drawing.soft(drawing.field(rng, u, v, 0.35, 0.12), 0.35, 0.7)
    return drawing.blend(picture, (0.95, 0.90, 0.85), 0.55 * scale * inside)


def _milia(rng, picture, u, v, depth, inside, colour):
    """Bright milia-like cysts and dark comedo-like openings."""
    cysts = _spots(rng, u, v, int(rng.integers(9, 17)), 0.8, 0.04, 0.085)
    openings = _spots(rng, u, v, int(rng.integers(5, 10)), 0.8, 0.035, 0.075)
    picture = drawing.blend(picture, (0.97, 0.92, 0.80), 0.9 * cysts * inside)
    return drawing.blend(picture, (0.20, 0.12, 0.08), 0.85 * openings * inside)


def _scar(rng, picture, u, v, depth, inside, colour):
    """A white scar-like centre."""
    near = np.hypot(u, v) + 0.18 * drawing.field(rng, u, v, 0.3)
    return drawing.blend(picture, (0.95, 0.88, 0.84), 0.9 * (1 - drawing.soft(near, 0.22, 0.55)))


def _lacunae(rng, picture, u, v, depth, inside, colour):
    """Sharply bounded red to purple lagoons."""
    hue = np.array([0.62, 0.10, 0.18]) * (1 - (t := rng.uniform())) + np.array([0.36, 0.08, 0.26]) * t
    walls = _cells(rng, u, v, rng.uniform(0.32, 0.5)) + 0.12 * drawing.field(rng, u, v, 0.2)
    lagoons = 1 - drawing.soft(walls, 0.36, 0.5)
    return drawing.blend(picture, hue, 0.8 * lagoons * drawing.soft(depth, 0.0, 0.12))


def _crust(rng, picture, u, v, depth, inside, colour):
    """A yellow keratin mass in the middle, with blood spots."""
    near = np.hypot(u, v) + 0.22 * drawing.field(rng, u, v, 0.22)
    mass = 1 - drawing.soft(near, 0.38, 0.50)
    picture = drawing.blend(picture, (0.84, 0.70, 0.50), 0.85 * mass)
    grain = drawing.soft(drawing.field(rng, u, v, 0.14), 0.1, 0.5)
    picture = drawing.blend(picture, (0.97, 0.92, 0.78), 0.8 * mass * grain)
    return drawing.blend(picture, (0.36, 0.08, 0.06), 0.9 * _spots(rng, u, v, int(rng.integers(4, 9)), 0.4, 0.04, 0.09))


_STRUCTURES = {
    "network": _network,
    "blotches": _blotches,
    "nests": _nests,
    "strawberry": _strawberry,
    "milia": _milia,
    "scar": _scar,
    "lacunae": _lacunae,
    "crust": _crust,
}
