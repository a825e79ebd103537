"""Training views: every random number drawn from where the image stands, all geometry in one warp, colour in one map.

A view depends on (seed, epoch, position in the epoch, row) and on nothing else: not on the batch, the number of
workers or what was drawn before. So an interrupted run resumes exactly, and an image drawn twice looks different twice.

Coordinates: a homography acts on (x, y) in pixels, y down, measured from the centre of the view; a forward matrix says
where image content goes. Images are uint8 (B, S, S, 3): numpy arrays are warped by OpenCV, one after another; torch
tensors, on whatever device they lie, by one batched `grid_sample` with the same matrices.
"""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import torch
from torch.nn import functional as F

from patholib.base.errors import PathoError
from patholib.model import fields, recolour
from patholib.model.recipes import Augmentation

# One uniform number each, always in this place: turning one augmentation off leaves the draws of all others alone.
DRAWS = (
    "affine_degrees",
    "shift_x",
    "shift_y",
    "zoom",
    "shear",
    "rotation",
    "flip_horizontal",
    "flip_vertical",
    "perspective_p",
    "corner_0x",
    "corner_0y",
    "corner_1x",
    "corner_1y",
    "corner_2x",
    "corner_2y",
    "corner_3x",
    "corner_3y",
    "crop_area",
    "crop_aspect",
    "crop_x",
    "crop_y",
    "brightness",
    "contrast",
    "saturation",
    "hue",
    "noise",
)
WIDTHS = (  # the ranges of an Augmentation around 0
    *("affine_degrees", "rotation", "shift", "shear", "perspective"),
    *("brightness", "contrast", "saturation", "hue", "noise"),
)
CHANCES = ("flip_horizontal", "flip_vertical", "perspective_p")  # its probabilities
TTA_EPOCH = -1  # an epoch that training never reaches: test-time draws are no training draws
# The eight ways to lay a square on itself, for tensors (B, K, S, S). Each undoes itself, the quarter turns each other.
SYMMETRIES = (
    lambda x: x,
    lambda x: x.flip(3),
    lambda x: x.flip(2),
    lambda x: x.flip(2, 3),
    lambda x: x.rot90(1, (2, 3)),
    lambda x: x.rot90(-1, (2, 3)),
    lambda x: x.transpose(2, 3),
    lambda x: x.transpose(2, 3).flip(2, 3),
)
UNDO = tuple(SYMMETRIES[i] for i in (0, 1, 2, 3, 5, 4, 6, 7))


def plain_views(images, size: int) -> torch.Tensor:
    """The central window of each image, unchanged: (B, S, S, 3) uint8 to (B, 3, size, size) float32 in [0, 1]."""
    window = _window(images, size)
    if isinstance(window, np.ndarray):
        window = torch.from_numpy(np.ascontiguousarray(window))
    return window.permute(0, 3, 1, 2).to(torch.float32).div_(255)  # (B, 3, size, size), stored channels last


def training_views(
    images, size: int, augmentation: Augmentation, seed: int, epoch: int, positions, rows
) -> torch.Tensor:
    """One random view of each image, (B, S, S, 3) uint8 to (B, 3, size, size) float32 in [0, 1].

    positions (B,): places in the epoch; rows (B,): which images. S >= size: what lies around the central window is
    drawn in by rotation and shift before any border is. As published, noise in units of the normalised image may
    leave [0, 1], because nothing cuts it off after the normalisation.
    """
    draws = uniform(seed, epoch, positions, rows)
    steps = geometry(draws, augmentation, size)
    views = _warped(images, steps, size, augmentation)  # (B, size, size, 3), grey levels 0 to 255
    views = recolour.recoloured(views, draws, augmentation)
    if augmentation.noise:
        recolour.add_noise(views, draws["noise"], augmentation)
    return views.permute(0, 3, 1, 2)


def tta_views(images, size: int, kind: str, views: int, seed: int, rows, augmentation: Augmentation) -> torch.Tensor:
    """Several views of each image to average over, (views, B, 3, size, size) float32; view 0 is the plain one.

    kind "dihedral": the first of: plain, mirrored left-right, mirrored up-down, turned by 180, 90, -90 degrees (counter
    clockwise), mirrored at the main diagonal, mirrored at the other. They move pixels and change none.
    kind "random": the recipe's augmentation at half strength and without noise, drawn from (seed, view, row).
    """
    plain = plain_views(images, size)  # (B, 3, size, size)
    if kind == "dihedral":
        return torch.stack([symmetry(plain) for symmetry in SYMMETRIES[:views]])
    light = half_strength(augmentation)
    others = [
        training_views(images, size, light, seed, TTA_EPOCH, np.full(len(rows), view), rows) for view in range(1, views)
    ]
    return torch.stack([plain, *others])


def views_to_judge(images, recipe, tta: bool, rows) -> torch.Tensor:
    """What a trained model is shown of each image: (views, B, 3, size, size), the plain view first and, without `tta`,
    alone."""
    if not tta:
        return plain_views(images, recipe.image_size)[None]
    return tta_views(images, recipe.image_size, recipe.tta, recipe.tta_views, recipe.seed, rows, recipe.augmentation)


def preview(images, recipe, count: int = 3, views: int = 6) -> tuple[np.ndarray, torch.Tensor]:
    """`count` images of the train part as they are and as training shows them in its first epochs.

    Returns (count, H, W, 3) uint8 and (views, count, 3, H, W).
    """
    part = images.part("train").examples(-(-count // len(images.classes)), "group")
    pixels, rows = part.pictures[:count], np.arange(count)
    varied = scaled(recipe.augmentation, recipe.augmentation_strength)
    shown = [
        training_views(pixels, recipe.image_size, varied, recipe.seed, epoch, rows, rows) for epoch in range(views)
    ]
    return pixels, torch.stack(shown)


def half_strength(a: Augmentation) -> Augmentation:
    """The same augmentation with every range halved, probabilities kept, and no noise."""
    kept = {name: getattr(a, name) for name in CHANCES}
    return replace(scaled(a, 0.5), **kept, noise=0.0)


def scaled(a: Augmentation, strength: float) -> Augmentation:
    """The same augmentation with every range so many times as wide: 0 leaves an image as it is, 1 is this one.

    Factors (zoom, crop) go away from 1; probabilities become smaller below 1 and no larger above. No range leaves what
    its field may be.
    """
    if strength == 1:
        return a
    most = {name: float(fields.RANGES[name][1:-1].partition(", ")[2]) for name in WIDTHS} | {"shear": 80.0}
    wider = {name: min(strength * getattr(a, name), top) for name, top in most.items()}
    likely = {name: min(strength, 1) * getattr(a, name) for name in CHANCES}
    factors: dict[str, Any] = {
        name: tuple(min(max(least, 1 - strength + strength * end), top) for end in pair)
        for name, pair, least, top in (("zoom", a.zoom, 0.1, 10.0), ("crop_scale", a.crop_scale, 0.01, 1.0))
        if pair is not None
    }
    if not strength:
        factors["crop_scale"] = None
    return replace(a, **wider, **likely, **factors)


def uniform(seed: int, epoch: int, positions, rows) -> dict[str, np.ndarray]:
    """For each name in DRAWS a (B,) array in [0, 1), a pure function of the four keys.

    The keys are folded one after another through the mixing function of SplitMix64 (Steele, Lea & Flood 2014), whose
    generator then runs from each sample's own state: a few integer operations, vectorised over the batch, the same on
    every system.
    """
    state = np.zeros(len(rows), np.uint64)
    for key in (seed, epoch, positions, rows):
        state = splitmix64(state ^ np.asarray(key).astype(np.int64).astype(np.uint64))
    steps = np.arange(len(DRAWS), dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    bits = splitmix64(state[:, None] + steps)  # (B, DRAWS)
    values = (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return dict(zip(DRAWS, values.T, strict=True))


def splitmix64(state: np.ndarray) -> np.ndarray:
    """The output that follows each 64-bit state; the next state is this one plus the golden ratio."""
    mixed = np.asarray(state, np.uint64) + np.uint64(0x9E3779B97F4A7C15)  # arrays wrap around, as is meant
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def geometry(draws: dict, a: Augmentation, size: int) -> list[tuple[str, np.ndarray]]:
    """The steps in the published order, each (name, (B, 3, 3) forward matrix); steps that are off are left out."""
    steps = []
    if a.affine_degrees or a.shift or a.shear or tuple(a.zoom) != (1.0, 1.0):
        steps.append(("affine", _affine(draws, a, size)))
    if a.rotation:
        angle = np.radians(recolour.between(draws["rotation"], -a.rotation, a.rotation))
        steps.append(("rotation", _linear(np.cos(angle), np.sin(angle), -np.sin(angle), np.cos(angle))))
    if a.flip_horizontal or a.flip_vertical:
        across = np.where(draws["flip_horizontal"] < a.flip_horizontal, -1.0, 1.0)
        down = np.where(draws["flip_vertical"] < a.flip_vertical, -1.0, 1.0)
        steps.append(("flip", _linear(across, 0, 0, down)))
    if a.perspective and a.perspective_p:
        steps.append(("perspective", _perspective(draws, a, size)))
    if a.crop_scale:
        steps.append(("crop", _crop(draws, a, size)))
    return steps


def _linear(xx, xy, yx, yy, dx=0.0, dy=0.0) -> np.ndarray:
    """(B, 3, 3) from the entries of the matrix and the shift, each (B,) or a number."""
    entries = np.broadcast_arrays(xx, xy, dx, yx, yy, dy, 0.0, 0.0, 1.0)
    return np.stack(entries, axis=-1).astype(np.float64).reshape(-1, 3, 3)


def _affine(draws: dict, a: Augmentation, size: int) -> np.ndarray:
    """Shear along x, then rotation (clockwise as seen), zoom and shift, as torchvision's RandomAffine defines them."""
    angle = np.radians(recolour.between(draws["affine_degrees"], -a.affine_degrees, a.affine_degrees))
    slope = np.tan(np.radians(recolour.between(draws["shear"], -a.shear, a.shear)))
    zoom = recolour.between(draws["zoom"], *a.zoom)
    cos, sin = zoom * np.cos(angle), zoom * np.sin(angle)
    dx, dy = (recolour.between(draws[name], -a.shift, a.shift) * size for name in ("shift_x", "shift_y"))
    return _linear(cos, -cos * slope - sin, sin, -sin * slope + cos, dx, dy)


def _perspective(draws: dict, a: Augmentation, size: int) -> np.ndarray:
    """Each corner moves inwards by up to `perspective` of half the side, as in torchvision's RandomPerspective."""
    corner = (size - 1) / 2
    start = corner * np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]])  # clockwise from the top left
    moves = np.stack([draws[f"corner_{i}{axis}"] for i in range(4) for axis in "xy"], axis=1).reshape(-1, 4, 2)
    end = start - np.sign(start) * moves * a.perspective * size / 2  # (B, 4, 2)
    matrices = homography(start / corner, end / corner)  # solved on the unit square, where it is well conditioned
    scale = np.diag([corner, corner, 1.0])
    matrices = scale @ matrices @ np.linalg.inv(scale)
    return np.where((draws["perspective_p"] < a.perspective_p)[:, None, None], matrices, np.eye(3))


def homography(start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """The (B, 3, 3) homographies that take the four points `start` (4, 2) to `end` (B, 4, 2); entry [2, 2] is 1."""
    x, y = start[:, 0], start[:, 1]
    one, zero = np.ones(4), np.zeros(4)
    system = np.empty((len(end), 8, 8))
    for axis, block in ((0, (x, y, one, zero, zero, zero)), (1, (zero, zero, zero, x, y, one))):
        target = end[:, :, axis]  # (B, 4)
        rows = system[:, axis::2]  # (B, 4, 8)
        rows[:, :, :6] = np.stack(block, axis=-1)
        rows[:, :, 6], rows[:, :, 7] = -x * target, -y * target
    solved = np.linalg.solve(system, end.reshape(len(end), 8, 1))[:, :, 0]
    return np.concatenate([solved, np.ones((len(end), 1))], axis=1).reshape(-1, 3, 3)


def _crop(draws: dict, a: Augmentation, size: int) -> np.ndarray:
    """A rectangle of `crop_scale` of the area and aspect 3/4 to 4/3 inside the view, stretched to the whole view.

    torchvision's RandomResizedCrop draws until a rectangle fits and gives up after ten times; here the aspect is drawn,
    evenly in its logarithm, only among those that fit, so that the area stays evenly distributed.
    """
    assert a.crop_scale is not None, "without it nothing is cropped"
    area = recolour.between(draws["crop_area"], *a.crop_scale)
    narrowest, widest = np.log(np.maximum(3 / 4, area)), np.log(np.minimum(4 / 3, 1 / area))
    aspect = np.exp(recolour.between(draws["crop_aspect"], narrowest, widest))
    width, height = np.sqrt(area * aspect), np.sqrt(area / aspect)  # shares of the side
    centre_x = (draws["crop_x"] - 0.5) * (1 - width) * size
    centre_y = (draws["crop_y"] - 0.5) * (1 - height) * size
    return _linear(1 / width, 0, 0, 1 / height, -centre_x / width, -centre_y / height)


def _warped(images, steps: list[tuple[str, np.ndarray]], size: int, a: Augmentation):
    """All steps applied: in one interpolation out of the whole image, or as published one after the other."""
    warp = warp_with_opencv if isinstance(images, np.ndarray) else warp_on_device
    side = images.shape[1]
    if a.warps == "one":
        forward = functools.reduce(lambda before, step: step[1] @ before, steps, np.eye(3)[None])
        if not steps:
            return _window(images, size)
        return warp(images, sampling(forward, side, size), size, a.border, a.interpolation)
    views = _window(images, size)
    for name, forward in steps:
        kind = "bilinear" if name == "crop" else a.interpolation  # torchvision's default for a crop and for no other
        views = warp(views, sampling(forward, size, size), size, a.border, kind)
    return views


def sampling(forward: np.ndarray, side: int, size: int) -> np.ndarray:
    """(B, 3, 3) from a pixel (x, y) of the view to the point of the image it is taken from; both wide as given."""
    margin, centre = _margin(side, size), (size - 1) / 2
    into, back = np.eye(3), np.eye(3)
    into[:2, 2], back[:2, 2] = -centre, centre + margin
    return back @ np.linalg.inv(forward) @ into


def _margin(side: int, size: int) -> int:
    if side < size:
        raise PathoError(
            "bad_parameter",
            f"size={size}",
            f"is larger than the images, {side} pixels wide",
            "Check the images again with the recipe's cache_size",
        )
    return (side - size) // 2


def _window(images, size: int):
    margin = _margin(images.shape[1], size)
    return images[:, margin : margin + size, margin : margin + size]


def warp_with_opencv(
    images: np.ndarray, matrices: np.ndarray, size: int, border: str = "reflect", interpolation: str = "bilinear"
) -> np.ndarray:
    """Each image (S, S, 3) uint8 sampled at matrix @ (x, y, 1) of every view pixel; (B, size, size, 3) uint8."""
    cv2.setNumThreads(1)  # the threads are ours: one per batch, none inside an image
    flags = cv2.WARP_INVERSE_MAP | {"bilinear": cv2.INTER_LINEAR, "nearest": cv2.INTER_NEAREST}[interpolation]
    mode = {"reflect": cv2.BORDER_REFLECT_101, "black": cv2.BORDER_CONSTANT}[border]
    views = np.empty((len(images), size, size, 3), np.uint8)
    for image, matrix, view in zip(images, np.broadcast_to(matrices, (len(images), 3, 3)), views, strict=True):
        four = cv2.cvtColor(image, cv2.COLOR_RGB2RGBA)  # the same pixels twice as fast: one load fetches a whole pixel
        four = cv2.warpPerspective(four, matrix, (size, size), flags=flags, borderMode=mode)
        cv2.cvtColor(four, cv2.COLOR_RGBA2RGB, dst=view)
    return views


def warp_on_device(
    images: torch.Tensor, matrices: np.ndarray, size: int, border: str = "reflect", interpolation: str = "bilinear"
) -> torch.Tensor:
    """The same for a tensor (B, S, S, 3) on any device, as one batch; (B, size, size, 3) float32, not rounded.

    Differs from `warp_with_opencv` by its rounding to whole grey levels and, before OpenCV 5, to 1/32 pixel.
    """
    side, device = images.shape[1], images.device
    moves = torch.as_tensor(matrices, device=device).expand(len(images), 3, 3)
    axis = torch.arange(size, device=device, dtype=torch.float64)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    points = torch.stack([x, y, torch.ones_like(x)], dim=-1).reshape(-1, 3)  # (size * size, 3)
    points = points @ moves.transpose(1, 2)  # (B, size * size, 3), float64: float32 would blur the identity
    grid = points[..., :2] / points[..., 2:] * (2 / (side - 1)) - 1  # -1 and 1: centres of the outermost pixels
    views = F.grid_sample(
        images.permute(0, 3, 1, 2).to(torch.float32),
        grid.to(torch.float32).reshape(-1, size, size, 2),
        mode=interpolation,
        padding_mode={"reflect": "reflection", "black": "zeros"}[border],
        align_corners=True,
    )
    return views.permute(0, 2, 3, 1)
