"""What training minimises: cross-entropy with label smoothing, or focal loss, each with one corrector of imbalance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.nn import functional

from patholib.base.errors import PathoError

WEIGHTED = ("weights", "sampler_and_weights")  # kinds of balance with class weights in the loss


def class_weights(counts) -> torch.Tensor:
    """Weights (C,) in inverse proportion to the images of each class, summing to C. Errors: empty_class."""
    inverse = 1 / _counted(counts)
    return (inverse * len(inverse) / inverse.sum()).float()


def log_prior(counts) -> torch.Tensor:
    """The log share of each class among the training images, (C,). Errors: empty_class."""
    counts = _counted(counts)
    return (counts / counts.sum()).log().float()


def _counted(counts) -> torch.Tensor:
    counts = torch.as_tensor([float(n) for n in counts], dtype=torch.float64)
    if not (counts > 0).all():
        raise PathoError(
            "empty_class",
            f"class number {int((counts > 0).int().argmin())}",
            "has no training image, so neither its weight nor the logarithm of its share is finite",
            "Split again, drop the class, or balance by nothing",
        )
    return counts


def effective_prior(recipe, counts) -> pd.Series:
    """The shares of the classes that the training behaves as if it had seen, in the recipe's order.

    counts: training images of each class. Drawing evenly divides a class's share by its size, and so does weighting:
    one of them gives every class the same, both together turn the imbalance round. Logit adjustment leaves images and
    weights as they are and has the network learn the logits of even classes (Menon et al. 2021, equation 10), or, with
    an adjustment below 1, of shares that are so much nearer to even ones. Errors: empty_class.
    """
    shares = log_prior(counts).double().exp()
    if recipe.balance == "logit_adjustment":
        shares = shares ** (1 - recipe.adjustment)
    if recipe.balance.startswith("sampler"):
        shares = torch.ones_like(shares)
    if recipe.balance in WEIGHTED:
        shares = shares * class_weights(counts)
    return pd.Series((shares / shares.sum()).numpy(), index=list(recipe.classes), name="effective prior")


def shares(recipe, counts) -> dict[str, float] | None:
    """What each class's probability is divided by before the largest decides (`rules.predicted`); None: by nothing.

    Of the probabilities as the network gives them, as between epochs. With `decide="even"` these are the shares that
    the training behaves as if it had seen, which makes the predicted class the likeliest one if all were equally
    common. Where a threshold decides, between two classes of which one is positive, they are not needed.
    counts: training images of each class. Errors: empty_class.
    """
    if recipe.decide != "even" or (len(recipe.classes) == 2 and recipe.positive is not None):
        return None
    return effective_prior(recipe, counts).to_dict()


def prior_correction(recipe, counts) -> np.ndarray:
    """What the training did to the prior, (C,): the effective one over that of the training images.

    Probabilities divided by it, and scaled to sum 1, are those of a network that had learnt from the images as they are
    (Saerens et al. 2002, equation 2.4). counts: training images of each class. Errors: empty_class.
    """
    if recipe.balance == "none":  # also where a class has no image
        return np.ones(len(recipe.classes))
    return effective_prior(recipe, counts).to_numpy() / log_prior(counts).double().exp().numpy()


class Loss(nn.Module):
    """Logits (N, C) and labels (N,) to the mean loss.

    cross_entropy: as torch.nn.CrossEntropyLoss, the mean divides by the sum of the labels' weights.
    focal: weight (1 - pt)^gamma CE, pt the probability of the label (Lin et al. 2017, equation 5), mean over images.
    focal_weighted_pt: as published, pt = exp(-weight CE), which is no probability once the weight is not 1.
    shift (C,): added to the logits here and nowhere else; predictions are made of the plain ones.
    Half precision is promoted to single.
    """

    weights: torch.Tensor  # (C,)
    shift: torch.Tensor

    def __init__(
        self,
        kind: str,
        weights: torch.Tensor,
        label_smoothing: float = 0.0,
        gamma: float = 2.0,
        shift: torch.Tensor | None = None,
    ):
        super().__init__()
        self.kind, self.label_smoothing, self.gamma = kind, label_smoothing, gamma
        self.register_buffer("weights", weights, persistent=False)
        self.register_buffer("shift", shift if shift is not None else torch.zeros_like(weights), persistent=False)

    def forward(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        total, weight = self.total(logits, labels)
        return total / weight

    def total(self, logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(sum, weight): over any parts of a batch, the sums over the weights are the loss of the whole batch."""
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        weights = self.weights.to(logits.dtype)
        logits = logits + self.shift.to(logits.dtype)
        if self.kind == "cross_entropy":
            total = functional.cross_entropy(
                logits, labels, weights, reduction="sum", label_smoothing=self.label_smoothing
            )
            return total, self.weight(labels, logits.dtype)
        entropy = functional.cross_entropy(logits, labels, reduction="none")  # (N,) = -log pt
        total = focal(entropy, weights[labels], self.gamma, self.kind == "focal_weighted_pt").sum()
        return total, self.weight(labels, logits.dtype)

    def weight(self, labels: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """What the sum over these images is divided by: known before any part of their batch is computed."""
        if self.kind == "cross_entropy":
            return self.weights.to(dtype)[labels].sum()
        return self.weights.new_tensor(float(len(labels)), dtype=dtype)


def focal(entropy: torch.Tensor, weights: torch.Tensor, gamma: float, weighted_pt: bool) -> torch.Tensor:
    """The focal loss of each image from its cross-entropy -log pt and its class's weight, shapes that broadcast."""
    weighted = weights * entropy
    miss = -torch.expm1(-(weighted if weighted_pt else entropy))  # 1 - pt
    # Away from 0, where a power below 1 has an infinite slope.
    return miss.clamp_min(torch.finfo(miss.dtype).tiny) ** gamma * weighted


def build(recipe, counts) -> Loss:
    """The recipe's loss; counts: training images of each class, in the recipe's order. Errors: empty_class."""
    if len(counts) != len(recipe.classes):
        raise PathoError(
            "bad_counts",
            "counts",
            f"are {len(counts)} for {len(recipe.classes)} classes",
            "Give one count per class of the recipe",
        )
    weights = class_weights(counts) if recipe.balance in WEIGHTED else torch.ones(len(counts))
    shift = recipe.adjustment * log_prior(counts) if recipe.balance == "logit_adjustment" else None
    return Loss(recipe.loss, weights, recipe.label_smoothing, recipe.focal_gamma, shift)


def focal_table(
    counts: Mapping[str, int], gamma: float = 2.0, probs: Sequence[float] = (0.1, 0.5, 0.9)
) -> pd.DataFrame:
    """The two focal losses of an image of the rarest and of the commonest class, at the same probability of its label.

    counts: training images by class. Rows: probs. With pt from the probability, the ratio of the two losses is that of
    the class weights at every probability; with pt from the weighted entropy, as published, it is another at each.
    """
    counts = dict(counts)
    rare, common = min(counts, key=counts.__getitem__), max(counts, key=counts.__getitem__)
    by_class = dict(zip(counts, class_weights(counts.values()).double(), strict=True))
    weights = torch.stack([by_class[rare], by_class[common]])  # (2,)
    entropy = -torch.tensor(probs, dtype=torch.float64).log()[:, None]  # (P, 1)
    table = pd.DataFrame(index=pd.Index(probs, name="p of the label"))
    for title, weighted_pt in (("focal", False), ("published", True)):
        table[[f"{title}: {rare}", f"{title}: {common}"]] = focal(entropy, weights, gamma, weighted_pt).numpy()
        table[f"{title}: ratio"] = table[f"{title}: {rare}"] / table[f"{title}: {common}"]
    return table
