"""Demo images of breast tissue."""

from __future__ import annotations

import cv2
import numpy as np

from patholib.data.demo import drawing


def tissue(rng: np.random.Generator, size: tuple[int, int], z: float) -> tuple[np.ndarray, np.ndarray]:
    """Haematoxylin and eosin (height, width, 2) float32, and the mask of the nest that shows z, uint8 0 / 255."""
    width, height = size
    unit = height / 230  # the length that is one pixel at 350 x 230 and 40X
    x, y = drawing.grid(size)
    # The nest lies anywhere inside the centre square.
    radius = height * rng.uniform(0.22, 0.30)
    outline = drawing.curve((0, 0), radius * drawing.outline(rng, 0.16))
    room = np.maximum(height / 2 - np.abs(outline).max(0) - 2, 0)
    nest = np.array([width / 2, height / 2]) + rng.uniform(-1, 1, 2) * room
    outline = outline + nest

    stroma, empty, turn, slope = _stroma(rng, x, y, unit)
    nuclei, cells, lumina = _surroundings(rng, size, unit, turn, slope, (*nest, 1.15 * radius))
    cleft = np.zeros((height, width), np.uint8)  # the tissue shrinks away from the nest here and there
    drawing.fill_curve(cleft, (outline - nest) * 1.09 + nest, 255)
    cleft = cleft.astype(np.float32) / 255 * drawing.soft(drawing.field(rng, x, y, 30 * unit), -0.3, 0.5)
    mask = np.zeros((height, width), np.uint8)
    cv2.fillPoly(mask, [np.rint(outline).astype(np.int32)], 255)
    nest_nuclei = np.zeros_like(nuclei)
    _nest(rng.spawn(1)[0], nest_nuclei, outline, nest, radius, unit, z)  # own stream: z changes nothing else

    inside = cv2.GaussianBlur(mask, (0, 0), 1.2 * unit).astype(np.float32) / 255
    epithelium = np.maximum(cells.astype(np.float32) / 255, inside)
    hole = lumina.astype(np.float32) / 255 * (1 - inside)
    keep = (1 - np.maximum(empty, 0.8 * cleft) * (1 - epithelium)) * (1 - hole)
    chromatin, grain = 1 + 0.18 * drawing.field(rng, x, y, 1.6 * unit), drawing.field(rng, x, y, 2.5 * unit)
    dots = np.where(mask > 0, nest_nuclei, nuclei).astype(np.float32) / 100 * chromatin
    dots *= np.where(epithelium > 0.3, 1 - hole, 1 - drawing.soft(empty, 0.5, 0.9))
    return _dyed(rng, stroma, epithelium, keep, grain, dots), mask


def _stroma(rng, x, y, unit) -> tuple:
    """Wavy collagen: its dyes (haematoxylin, eosin), where it is empty, its direction, and the slope of its waves."""
    turn = rng.uniform(0, np.pi)
    bend = [
        drawing.field(rng, x, y, 75 * unit) * 26 * unit + drawing.field(rng, x, y, 22 * unit) * 3 * unit
        for _ in range(2)
    ]
    along = x * np.cos(turn) + y * np.sin(turn) + bend[0]
    across = y * np.cos(turn) - x * np.sin(turn) + bend[1]
    coarse = drawing.field(rng, along, across, 55 * unit, 6 * unit)
    fine = drawing.field(rng, along, across, 22 * unit, 2.2 * unit)
    bands = drawing.field(rng, along, across, 120 * unit, 45 * unit)
    eosin = 0.46 + 0.13 * coarse + 0.10 * fine + 0.30 * drawing.soft(bands, -0.1, 0.8)
    haematoxylin = 0.15 + 0.05 * coarse + 0.04 * fine
    clefts = drawing.soft(drawing.field(rng, along, across, 45 * unit, 5 * unit), 0.35, 0.75)
    clefts = clefts * (1 - drawing.soft(bands, -0.4, 0.3))
    empty = drawing.soft(drawing.field(rng, x, y, rng.uniform(75, 110) * unit), rng.uniform(0.3, 0.9), 1.0)
    empty = np.maximum(drawing.soft(empty, 0.25, 0.45), 0.85 * clefts)
    slope = (bend[1][1:, 1:] - bend[1][:-1, :-1]).astype(np.float64)
    return (haematoxylin, eosin), empty, turn, slope


def _surroundings(rng, size, unit, turn, slope, nest) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What lies around the nest (x, y, radius): nuclei in hundredths of haematoxylin, epithelium, and its holes."""
    width, height = size
    nuclei, cells, lumina = (np.zeros((height, width), np.uint8) for _ in range(3))
    for _ in range(int(rng.integers(70, 190) * width / height / 1.52)):
        at = rng.uniform((0, 0), (width - 2, height - 2))
        lean = turn + 0.5 * slope[int(at[1]), int(at[0])] + rng.normal(0, 0.25)
        axes = rng.uniform([2, 0.7], [3.6, 1.1]) * unit
        drawing.ellipse(nuclei, at, axes, lean, int(rng.integers(60, 105)))
    taken = [nest]
    for _ in range(rng.integers(0, 4)):
        _lymphocytes(rng, nuclei, size, unit, taken)
    for _ in range(rng.integers(0, 7)):
        _lobule(rng, (nuclei, cells, lumina), size, unit, taken)
    return nuclei, cells, lumina


def _dyed(rng, stroma, epithelium, keep, grain, dots) -> np.ndarray:
    """Both dyes of the whole picture, (height, width, 2) float32."""
    haematoxylin, eosin = stroma
    eosin = (eosin * (1 - epithelium) + (0.40 + 0.06 * grain) * epithelium) * keep
    haematoxylin = (haematoxylin * (1 - epithelium) + (0.30 + 0.05 * grain) * epithelium) * keep
    haematoxylin = np.maximum(haematoxylin, dots)
    eosin = eosin * (1 - 0.35 * np.minimum(dots, 1))
    dye = np.stack([haematoxylin, eosin], -1)
    dye += rng.integers(-24, 25, dye.shape, dtype=np.int8).astype(np.float32) / 800
    return np.maximum(dye, 0)


def _nest(rng, canvas, outline, centre, radius, unit, z) -> None:
    """The cue: from a few large, uneven nuclei (z = -4) to crowded small round ones (4), of one area and colour."""
    z = float(np.clip(z, -4, 4))
    dark, covered = rng.uniform(75, 135), rng.uniform(0.30, 0.50)
    step = 11 * np.exp(-0.10 * z) * unit  # between neighbours
    count = int(1.6 * radius / step) + 2
    column, row = np.meshgrid(np.arange(-count, count + 1), np.arange(-count, count + 1))
    points = np.stack([(column + 0.5 * (row % 2)) * step, row * step * 0.866], -1).reshape(-1, 2)
    points = points + centre + rng.normal(0, 0.13 * step, points.shape)
    uneven = 0.04 * (5 - z)  # 0.04 to 0.36
    areas = np.exp(rng.normal(0, uneven, len(points)))
    areas *= covered * 0.866 * step**2 / areas.mean()
    for at, area in zip(points, areas, strict=True):
        if cv2.pointPolygonTest(outline.astype(np.float32), (float(at[0]), float(at[1])), True) < -0.3 * step:
            continue
        longer = np.exp(0.08 * (4 - z) * rng.uniform(0.5, 1))
        size = np.sqrt(area / np.pi) * np.array([longer, 1 / longer])
        drawing.ellipse(canvas, at, size, rng.uniform(0, np.pi), int(np.clip(dark + rng.normal(0, 6), 40, 160)))


def _lymphocytes(rng, canvas, size, unit, taken) -> None:
    """A loose swarm of small round dark nuclei, clear of the nest."""
    reach = rng.uniform(14, 30) * unit
    at = _free(rng, size, reach, taken)
    if at is None:
        return
    for point in rng.normal(at, reach / 2, (int(rng.integers(30, 90)), 2)):
        if np.hypot(*(point - taken[0][:2])) > taken[0][2]:
            drawing.ellipse(canvas, point, np.full(2, rng.uniform(1.2, 1.7)) * unit, 0, int(rng.integers(95, 135)))


def _lobule(rng, layers, size, unit, taken) -> None:
    """A group of ducts: each a ring of nuclei around an open lumen."""
    reach = rng.uniform(20, 46) * unit
    centre = _free(rng, size, 0.6 * reach, taken)
    if centre is None:
        return
    ducts: list[tuple] = []
    for _ in range(30):
        radius = rng.uniform(8, 18) * unit
        at = centre + rng.normal(0, reach / 1.6, 2)
        clear = all(np.hypot(at[0] - x, at[1] - y) > radius + r for x, y, r in [*ducts, taken[0]])
        if clear:
            ducts.append((*at, radius * 1.1))
            _duct(rng, layers, at, radius, unit)
    taken.append((*centre, reach))


def _duct(rng, layers, at, radius, unit) -> None:
    nuclei, cells, lumina = layers
    shape = drawing.outline(rng, 0.10)
    stretch, turn = (rng.uniform(1, 1.3), rng.uniform(0.75, 1)), rng.uniform(0, np.pi)
    wall = min(rng.uniform(4.5, 6.5) * unit, 0.75 * radius)
    drawing.fill_curve(cells, drawing.curve(at, radius * shape, stretch, turn), 255)
    drawing.fill_curve(lumina, drawing.curve(at, (radius - wall) * shape, stretch, turn), 245)
    dark = int(rng.integers(85, 115))
    ring = drawing.curve(at, (radius - 0.5 * wall) * shape, stretch, turn)
    steps = np.r_[0, np.hypot(*np.diff(ring, axis=0, append=ring[:1]).T).cumsum()]
    places = np.arange(0, steps[-1] - 1.5 * unit, 3.4 * unit)
    for place in places:
        point = ring[np.searchsorted(steps, place, "right") - 1] + rng.normal(0, 0.35 * unit, 2)
        outward = np.arctan2(*(point - at)[::-1])
        drawing.ellipse(
            nuclei,
            point,
            np.array([rng.uniform(1.7, 2.3), rng.uniform(1.2, 1.6)]) * unit,
            outward,
            dark + int(rng.integers(-12, 13)),
        )


def _free(rng, size, reach, taken) -> np.ndarray | None:
    """A random place whose disc touches none of `taken`, or None after twenty tries."""
    for _ in range(20):
        at = rng.uniform((0, 0), size)
        if all(np.hypot(at[0] - x, at[1] - y) > reach + r for x, y, r in taken):
            return at
    return None
