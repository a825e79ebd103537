"""Several trained networks as one, which answers with the mean of their probabilities: the folds of a cross-validation.

The mean of probabilities is the prediction of a mixture that weighs its members alike (Lakshminarayanan et al. 2017,
section 2.4). Its log loss is never above the mean of the members' own, because the logarithm is concave. It is taken
before the calibration: one calibration is then left to fit, and the other order gave the same log loss
(benchmarks/folds.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

from patholib.model.networks import Block, Classifier


class Ensemble(nn.Module):
    """Networks of one recipe side by side: images (N, 3, H, W) in [0, 1] to logits (N, C), see `together`.

    It has what prediction and heatmaps ask of a `Classifier`. Its maps are those of all members, one behind the other:
    a heatmap adds up what the members see, and where they give a class the same probability it is their mean.
    """

    def __init__(self, members: Sequence[Classifier]):
        super().__init__()
        self.members: Sequence[Classifier] = nn.ModuleList(members)  # type: ignore[assignment]  # and so it behaves
        first = members[0]
        self.arch, self.classes, self.image_size = first.arch, first.classes, first.image_size
        self.block_names, self.architecture = first.block_names, first.architecture

    @property
    def mean(self) -> torch.Tensor:
        """Of the first member, as of all."""
        return self.members[0].mean

    @property
    def blocks(self) -> dict[str, Block]:
        """Those of the first member; the maps of all others have the same size."""
        return self.members[0].blocks

    def each(self, images: torch.Tensor) -> torch.Tensor:
        """The logits of every member, (N, members, C)."""
        return torch.stack([member(images) for member in self.members], dim=1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return together(self.each(images))

    def features(self, images: torch.Tensor, until: str | None = None) -> torch.Tensor:
        """The maps (N, members K, h, w) of all members after block `until`. Errors: bad_images, unknown_block."""
        return torch.cat([member.features(images, until) for member in self.members], dim=1)

    def classify(
        self, maps: torch.Tensor, after: str | None = None, images: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Logits (N, C) from the maps of all members; arguments as of `Classifier.classify`. Errors: unknown_block."""
        own = maps.chunk(len(self.members), dim=1)
        each = [member.classify(some, after, images) for member, some in zip(self.members, own, strict=True)]
        return together(torch.stack(each, dim=1))


def together(logits: torch.Tensor) -> torch.Tensor:
    """Logits (N, C) whose softmax is the mean of the members' probabilities, from their logits (N, members, C).

    The log of the mean probability, plus the mean of the members' log normalisers, which is the same for every class:
    so members that agree give their own logits back, and the gradient does not vanish where all of them are sure.
    """
    mean = logits.log_softmax(dim=2).logsumexp(dim=1) - math.log(logits.shape[1])
    return mean + logits.logsumexp(dim=2).mean(dim=1, keepdim=True)
