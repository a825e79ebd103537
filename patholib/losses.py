"""What training minimises: cross-entropy with label smoothing, or focal loss, each with optional class weights."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from patholib.errors import PathoError


def class_weights(counts) -> torch.Tensor:
    """Weights (C,) in inverse proportion to the images of each class, summing to C. Errors: empty_class."""
    counts = torch.as_tensor([float(n) for n in counts], dtype=torch.float64)
    if not (counts > 0).all():
        empty = [i for i, n in enumerate(counts.tolist()) if not n > 0]
        raise PathoError("empty_class", f"class number {empty[0]}", "has no training image, so its weight is infinite",
                         "Split again, drop the class, or balance by nothing")
    inverse = 1 / counts
    return (inverse * len(counts) / inverse.sum()).float()


class Loss(nn.Module):
    """Logits (N, C) and labels (N,) to the mean loss.

    cross_entropy: as torch.nn.CrossEntropyLoss, the mean divides by the sum of the labels' weights.
    focal: weight (1 - pt)^gamma CE, pt the probability of the label (Lin et al. 2017, equation 5), mean over images.
    focal_weighted_pt: as published, pt = exp(-weight CE), which is no probability once the weight is not 1.
    Half precision is promoted to single.
    """

    def __init__(self, kind: str, weights: torch.Tensor, label_smoothing: float = 0.0, gamma: float = 2.0):
        super().__init__()
        self.kind, self.label_smoothing, self.gamma = kind, label_smoothing, gamma
        self.register_buffer("weights", weights, persistent=False)

    def forward(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        total, weight = self.total(logits, labels)
        return total / weight

    def total(self, logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(sum, weight): over any parts of a batch, the sums over the weights are the loss of the whole batch."""
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        weights = self.weights.to(logits.dtype)
        if self.kind == "cross_entropy":
            total = functional.cross_entropy(logits, labels, weights, reduction="sum",
                                             label_smoothing=self.label_smoothing)
            return total, weights[labels].sum()
        entropy = functional.cross_entropy(logits, labels, reduction="none")  # (N,) = -log pt
        weighted = weights[labels] * entropy  # (N,)
        miss = -torch.expm1(-(weighted if self.kind == "focal_weighted_pt" else entropy))  # 1 - pt
        # Away from 0, where a power below 1 has an infinite slope.
        focus = miss.clamp_min(torch.finfo(miss.dtype).tiny) ** self.gamma
        return (focus * weighted).sum(), logits.new_tensor(float(len(labels)))


def build(recipe, counts) -> Loss:
    """The recipe's loss; counts: training images of each class, in the recipe's order. Errors: empty_class."""
    if len(counts) != len(recipe.classes):
        raise PathoError("bad_counts", "counts", f"are {len(counts)} for {len(recipe.classes)} classes",
                         "Give one count per class of the recipe")
    corrected = recipe.balance in ("weights", "sampler_and_weights")
    weights = class_weights(counts) if corrected else torch.ones(len(counts))
    return Loss(recipe.loss, weights, recipe.label_smoothing, recipe.focal_gamma)
