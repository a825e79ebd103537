"""Colour changes of training views: brightness, contrast, saturation, hue and noise."""

from __future__ import annotations

import functools

import cv2
import numpy as np
import torch

from patholib.model import architectures
from patholib.model.recipes import Augmentation

GREY = (0.2989, 0.587, 0.114)  # grey value of RGB (ITU-R BT.601), as torchvision weights it
PROBES = 8  # hue is fitted on PROBES x PROBES pixels of each view


def between(draw: np.ndarray, low, high) -> np.ndarray:
    return low + (high - low) * draw


def recoloured(views, draws: dict, a: Augmentation) -> torch.Tensor:
    """Brightness, contrast, saturation and hue as one map of each view; (B, size, size, 3) float32 in [0, 1]."""
    size = views.shape[1]
    places = (2 * np.arange(PROBES) + 1) * size // (2 * PROBES)
    matrices = None
    if a.brightness or a.contrast or a.saturation or a.hue:
        probes = torch.as_tensor(views[:, places][:, :, places]).reshape(len(views), -1, 3).double() / 255
        if isinstance(views, np.ndarray):
            means = torch.tensor([cv2.mean(view)[:3] for view in views], dtype=torch.float64) / 255
        else:
            means = views.mean(dim=(1, 2), dtype=torch.float64) / 255
        matrices = colour_matrices(draws, a, means, probes)  # (B, 3, 4), for values in [0, 1]
    if isinstance(views, torch.Tensor):
        views = views.to(torch.float32) / 255
        if matrices is not None:
            linear, shift = matrices[..., :3].float(), matrices[..., 3].float()
            views = torch.baddbmm(shift[:, None], views.reshape(len(views), -1, 3), linear.transpose(1, 2))
            views = views.clamp_(0, 1).reshape(-1, size, size, 3)
        return views
    out = np.empty(views.shape, np.float32)
    scale = None if matrices is None else matrices.numpy() / np.array([255, 255, 255, 1])  # from grey levels 0 to 255
    for i, view in enumerate(views):
        if scale is None:
            np.divide(view, np.float32(255), out=out[i])
        else:
            cv2.transform(view.astype(np.float32), scale[i], dst=out[i])
            np.clip(out[i], 0, 1, out=out[i])
    return torch.from_numpy(out)


def colour_matrices(draws: dict, a: Augmentation, means: torch.Tensor, probes: torch.Tensor) -> torch.Tensor:
    """(B, 3, 4): one affine map of RGB in [0, 1] for each view, as torchvision's ColorJitter defines its four steps.

    means (B, 3): average colour; probes (B, P, 3): some of its pixels. The order is always brightness, contrast,
    saturation, hue (ColorJitter shuffles it), and values are cut to [0, 1] once, at the end. The first three are
    exactly affine; a turn of the hue is not, so the affine map nearest to it on the probes takes its place.
    """

    def factor(name):
        width = getattr(a, name)
        values = between(draws[name], max(0.0, 1 - width), 1 + width)
        return torch.as_tensor(values, device=means.device)[:, None, None]  # (B, 1, 1)

    grey = torch.tensor(GREY, dtype=means.dtype, device=means.device)
    one = torch.eye(3, dtype=means.dtype, device=means.device)
    bright, contrast, saturation = factor("brightness"), factor("contrast"), factor("saturation")
    shift = (1 - contrast) * bright * (means @ grey)[:, None, None]  # (B, 1, 1): pulls towards the mean grey
    desaturated = saturation * one + (1 - saturation) * grey  # (B, 3, 3): each row mixes in the pixel's grey
    linear = desaturated * (bright * contrast)
    offset = desaturated.sum(dim=2, keepdim=True) * shift  # (B, 3, 1)
    matrices = torch.cat([linear, offset], dim=2)  # (B, 3, 4)
    if not a.hue:
        return matrices
    seen = (probes @ linear.transpose(1, 2) + offset.transpose(1, 2)).clamp(0, 1)  # (B, P, 3)
    turn = torch.as_tensor(between(draws["hue"], -a.hue, a.hue), device=means.device)[:, None]
    hue = _nearest_map(seen, turn_hue(seen, turn))  # (B, 3, 4)
    last = torch.tensor([[[0.0, 0.0, 0.0, 1.0]]], dtype=means.dtype, device=means.device).expand(len(means), 1, 4)
    return hue @ torch.cat([matrices, last], dim=1)


def _nearest_map(before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    """The affine map (B, 3, 4) that takes `before` nearest to `after`, both (B, P, 3), with a pull to the identity."""
    design = torch.cat([before, torch.ones_like(before[..., :1])], dim=2)  # (B, P, 4)
    pull = 1e-5 * before.shape[1] * torch.eye(4, dtype=before.dtype, device=before.device)
    gram = design.transpose(1, 2) @ design + pull
    # The pull leaves no matrix singular: solve_ex does not look for one, for which a GPU would have to be waited for.
    change = torch.linalg.solve_ex(gram, design.transpose(1, 2) @ (after - before)).result  # (B, 4, 3)
    return change.transpose(1, 2) + torch.eye(3, 4, dtype=before.dtype, device=before.device)


def turn_hue(pixels: torch.Tensor, turn: torch.Tensor) -> torch.Tensor:
    """RGB in [0, 1] with the HSV hue turned by `turn` of the circle; saturation and value stay (Smith 1978)."""
    value, least = pixels.amax(dim=-1), pixels.amin(dim=-1)
    chroma = value - least
    red, green, blue = pixels.unbind(-1)
    safe = torch.where(chroma > 0, chroma, torch.ones_like(chroma))
    sector = torch.where(
        value == red,
        (green - blue) / safe,
        torch.where(value == green, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    )  # in sixths of the circle
    sector = sector + 6 * turn
    # Each channel is a trapezoid of the hue: f(n) = value - chroma * max(0, min(k, 4 - k, 1)), k = (n + hue) mod 6
    phase = torch.stack([(n + sector) % 6 for n in (5, 3, 1)], dim=-1)
    dip = torch.minimum(torch.minimum(phase, 4 - phase), torch.ones_like(phase)).clamp(min=0)
    return value[..., None] - chroma[..., None] * dip


def add_noise(views: torch.Tensor, draw: np.ndarray, a: Augmentation) -> None:
    """Adds Gaussian noise in place to (B, size, size, 3) in [0, 1].

    "grey": `noise` is the standard deviation as share of the grey range, and a sensor cuts off at black and white.
    "normalised", as published: it is added after normalisation, so one unit is the channel's ImageNet deviation.
    Each view takes its own stretch of one long row of numbers: drawing afresh would take longer than all else together.
    """
    stock = _normals(str(views.device))
    count = views[0].numel()
    unit = torch.ones(3) if a.noise_unit == "grey" else torch.tensor(architectures.IMAGENET_STD)
    row = (a.noise * unit).to(views).repeat(views.shape[2])  # for a row of pixels: three numbers at a time are slow
    for view, start in zip(views, (draw * (len(stock) - count)).astype(np.int64), strict=True):
        view += (stock[start : start + count].view(len(view), -1) * row).view(view.shape)
        if a.noise_unit == "grey":
            view.clamp_(0, 1)


@functools.cache
def _normals(device: str) -> torch.Tensor:
    """Four million independent standard normal numbers, the same in every process."""
    generator = np.random.Generator(np.random.Philox(key=0))
    return torch.from_numpy(generator.standard_normal(2**22, dtype=np.float32)).to(device)
