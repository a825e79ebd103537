"""Colour statistics of an image and a small network on them, whose logits are added to those of the classifier.

Colour is evidence in skin and in stained tissue. A network trained from random weights on a few thousand images needs
most of them to learn that; given the statistics, its convolutions can learn shapes.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

SIDE = 32  # colours are counted on about so many pixels across, whose noise is averaged away; grain on all of them
RINGS = 5  # around the centre, a quarter of the way to a side apart; the last one is what lies in the corners
SCALES = 4  # full size, a half, a quarter, an eighth: an image of 32 pixels has no more
NUMBERS = 3 * 9 + 2 * 9 * RINGS + 3 + SCALES * (3 + 4)
FAR = 5.0  # standard deviations from the mean at which a statistic is clipped


class ColourHead(nn.Module):
    """Images (N, 3, H, W) in [0, 1] to the colour part of the logits, (N, C).

    Statistics, standardised by a BatchNorm, through two hidden layers of `width`. No gradient reaches the images.
    """

    def __init__(self, width: int, classes: int, dropout: float = 0.2):
        super().__init__()
        self.standardise = nn.BatchNorm1d(NUMBERS, momentum=0.02)  # statistics of many batches: tails are heavy
        layers: list[nn.Module] = [nn.Dropout(dropout)]
        for before in (NUMBERS, width):
            layers += [nn.Linear(before, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(dropout)]
        self.layers = nn.Sequential(*layers, nn.Linear(width, classes))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
            known = self.standardise.running_mean
            assert known is not None, "it keeps statistics"
            found = statistics(images.to(known.dtype))
        return self.layers(self.standardise(found).clamp(-FAR, FAR))


def statistics(images: torch.Tensor) -> torch.Tensor:
    """(N, NUMBERS) of square images (N, 3, S, S) in [0, 1]; flips and quarter turns change none of them.

    Of the nine `channels`: mean, deviation and skewness, and how mean and deviation in each of RINGS around the centre
    differ from those of the whole; the correlations of red, green and blue; and the `grain`.
    """
    small = functional.avg_pool2d(images, max(1, images.shape[-1] // SIDE))
    pixels = channels(small).flatten(2)  # (N, 9, P)
    mean = pixels.mean(dim=2)
    away = pixels - mean[:, :, None]
    deviation = (away.square().mean(dim=2) + 1e-6).sqrt()
    skewness = (away**3).mean(dim=2) / (deviation + 0.02) ** 3  # below five grey levels there is no shape

    shares = rings(small.shape[-1]).to(small)  # (P, RINGS)
    ring_mean = away @ shares  # (N, 9, RINGS), from here on less the mean of the whole
    ring_deviation = ((away.square() @ shares - ring_mean.square()).clamp_min(0) + 1e-6).sqrt() - deviation[:, :, None]

    covariance = away[:, :3] @ away[:, :3].transpose(1, 2) / pixels.shape[2]  # (N, 3, 3)
    scale = deviation[:, :3] + 0.02
    correlations = (covariance / (scale[:, :, None] * scale[:, None, :])).flatten(1)[:, [1, 2, 5]]
    return torch.cat(
        [mean, deviation, skewness, ring_mean.flatten(1), ring_deviation.flatten(1), correlations, grain(images)], dim=1
    )


def channels(images: torch.Tensor) -> torch.Tensor:
    """Red, green, blue; their shares of the brightness; saturation; red less green, yellow less blue: (N, 9, H, W)."""
    red, green, blue = images.unbind(1)
    total, most, least = images.sum(dim=1) + 0.05, images.amax(dim=1), images.amin(dim=1)
    return torch.stack(
        [
            red,
            green,
            blue,
            red / total,
            green / total,
            blue / total,
            (most - least) / (most + 0.05),
            red - green,
            (red + green) / 2 - blue,
        ],
        dim=1,
    )


def rings(side: int) -> torch.Tensor:
    """(side * side, RINGS): the weight of each pixel in the mean over a ring, 0 outside of it."""
    place = (torch.arange(side) + 0.5) / side * 2 - 1  # -1 to 1
    ring = ((place[:, None] ** 2 + place**2).sqrt() * (RINGS - 1)).long().clamp_max(RINGS - 1).flatten()
    inside = functional.one_hot(ring, RINGS).float()
    return inside / inside.sum(dim=0)


def grain(images: torch.Tensor) -> torch.Tensor:
    """Sharpness and texture, (N, SCALES * 7), at full size, half, a quarter and an eighth.

    The mean difference of neighbours across and down, of each colour; and of the grey detail that halving the size
    would lose: its mean size in all of the picture and in the middle, its root mean square, and its skewness.
    """
    found, images = [], _even(images)
    for _ in range(SCALES):
        across = (images[:, :, :, 1:] - images[:, :, :, :-1]).abs().mean(dim=(2, 3))
        down = (images[:, :, 1:] - images[:, :, :-1]).abs().mean(dim=(2, 3))
        half = functional.avg_pool2d(images, 2)
        detail = (images - half.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)).mean(dim=1)  # (N, S, S)
        quarter = detail.shape[-1] // 4
        middle = detail[:, quarter : detail.shape[-1] - quarter, quarter : detail.shape[-1] - quarter]
        power = detail.square().mean(dim=(1, 2))
        skewness = (detail**3).mean(dim=(1, 2)) / (power.sqrt() + 0.003) ** 3
        found += [
            across + down,
            torch.stack(
                [detail.abs().mean(dim=(1, 2)), middle.abs().mean(dim=(1, 2)), (power + 1e-8).sqrt(), skewness], dim=1
            ),
        ]
        images = half
    return torch.cat(found, dim=1)


def _even(images: torch.Tensor) -> torch.Tensor:
    """The middle of the images, whose side can be halved SCALES times."""
    spare = images.shape[-1] % 2**SCALES
    before, after = spare // 2, images.shape[-1] - (spare - spare // 2)
    return images[:, :, before:after, before:after]
