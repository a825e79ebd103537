"""The single checks of heatmaps: how much more each map does than a map that cannot be right (its null)."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import cv2
import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.nn import functional

from patholib.data import imagesets
from patholib.judge import gradcam
from patholib.model import augment, folding
from patholib.model.networks import Classifier, evaluating

SHARES = (0.25, 0.5)  # of the pixels that are deleted or inserted; a network recognises little in less
OTHERS = 2  # maps of other patients whose gain is measured on every image; each costs as much as the map itself
NETWORKS = 19  # with shuffled weights: one more of them is the best of all in 1 of 20 cases
SHIFTS = ((1, 2), (-2, 1))  # pixels down and to the right; both are less than a cell of the map
EDGE = 2  # pixels at the border that a shift may have replaced
QUALITY = 75  # of the JPEG
CELLS = 32  # on a side, at which maps are compared: as fine as any map that a block gives at 224 pixels


@dataclass(frozen=True)
class Asked:
    """N images with their heatmaps, and what every check needs of them: each is computed once."""

    model: Classifier  # in eval mode
    ask: Callable[..., gradcam.Heat]  # of model, views and classes
    seed: int
    paths: np.ndarray  # (N,)
    views: torch.Tensor  # (N, 3, S, S) on the model's device
    groups: np.ndarray  # (N,)
    classes: torch.Tensor  # (N,) whose heat it is
    maps: np.ndarray  # (N, S, S), the heat in the size of the images
    blank: np.ndarray  # (N,) bool
    gains: np.ndarray  # (N,) by the own map of each image
    changed: np.ndarray  # (N, K, S, S), the maps after K small changes of the image

    @classmethod
    def of(
        cls, model: Classifier, pictures: imagesets.ImageSet, table: pd.DataFrame, ask: Callable, seed: int
    ) -> Asked:
        """table: rows of the pictures' table with the column `predicted`, the class that is explained."""
        size, still = model.image_size, evaluating(model)
        views = augment.plain_views(pictures.pixels[table["row"].to_numpy()], size).to(model.mean.device)
        classes = torch.tensor([model.classes.index(name) for name in table["predicted"]])
        heat = gradcam.in_batches(ask, still, views, classes)
        maps = _large(heat, size)
        return cls(
            model=still,
            ask=ask,
            seed=seed,
            paths=table["path"].to_numpy(),
            views=views,
            groups=table["group"].to_numpy(),
            classes=classes,
            maps=maps,
            blank=heat.blank.numpy(),
            gains=gain(still, views, maps, classes),
            changed=_changed(lambda moved: _large(gradcam.in_batches(ask, still, moved, classes), size), views),
        )

    def first(self, count: int) -> Asked:
        """The same of the first images alone."""
        return replace(self, **{name: values[:count] for name, values in self._of_images.items()})

    def and_also(self, more: Asked) -> Asked:
        """The same with further images."""
        return replace(self, **{name: _joined(mine, getattr(more, name)) for name, mine in self._of_images.items()})

    @property
    def _of_images(self) -> dict[str, Any]:
        """All but model, ask and seed."""
        return {one.name: getattr(self, one.name) for one in fields(self)[3:]}


def _joined(a, b):
    return np.concatenate([a, b]) if isinstance(a, np.ndarray) else torch.cat([a, b])


def _large(heat: gradcam.Heat, size: int) -> np.ndarray:
    return gradcam.upsample(heat.maps, size).numpy()


# ---------------------------------------------------------------------------------- the null: maps of other patients


def own_and_others(values: np.ndarray, groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What the own map of each image reaches, and what those of other groups reach on it on average, (N,) each.

    values (N, N): of map i on image j, NaN where it was not measured. NaN for an image without others.
    """
    others = np.where(groups[:, None] != groups, values, np.nan)
    known = ~np.isnan(others)
    total = np.nansum(others, axis=0)
    mean = np.divide(total, known.sum(axis=0), out=np.full(len(total), np.nan), where=known.any(axis=0))
    return np.diag(values), mean


def specific(asked: Asked) -> tuple[np.ndarray, np.ndarray]:
    """The gain by the own map of each image and by maps of two other groups: do the marked pixels matter here?"""
    rng, count = np.random.default_rng(asked.seed), len(asked.paths)
    order = np.argsort([str(group) for group in asked.groups], kind="stable")
    values = np.full((count, count), np.nan)
    values[np.diag_indices(count)] = asked.gains
    # Moved on by at least the largest group, in the order of the groups, every map meets an image of another one.
    largest = int(np.unique(asked.groups.astype(str), return_counts=True)[1].max())
    steps = np.arange(largest, count - largest + 1)
    for step in rng.permutation(steps)[:OTHERS]:
        images, maps = order, np.roll(order, step)
        found = gain(asked.model, asked.views[images], asked.maps[maps], asked.classes[images])
        values[maps, images] = found
    return own_and_others(values, asked.groups)


def stable(asked: Asked) -> tuple[np.ndarray, np.ndarray]:
    """The likeness of each map to that of its image after a small change, and of other groups' maps to it."""
    return own_and_others(_likeness_to_changed(asked), asked.groups)


def _likeness_to_changed(asked: Asked) -> np.ndarray:
    """Of map i to map j after a small change of its image, (N, N)."""
    return np.mean([likeness(asked.maps, asked.changed[:, k]) for k in range(asked.changed.shape[1])], axis=0)


def located(asked: Asked, masks: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """The share of the heat on the mask of each image, of its own map and of those of other groups.

    masks: bool (S, S) by path. Images whose mask is empty or covers all have NaN.
    """
    size = asked.maps.shape[1]
    inside = np.stack([masks[path] for path in asked.paths])
    margin = (inside.shape[1] - size) // 2
    inside = inside[:, margin : margin + size, margin : margin + size].reshape(len(inside), -1)
    use = inside.any(axis=1) & ~inside.all(axis=1)
    values = energy(asked.maps, inside)
    return own_and_others(np.where(use, values, np.nan), asked.groups)


def energy(maps: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """The share of the heat of each map (N, S, S) >= 0 on each mask (M, S * S), (N, M); 0 for a blank map."""
    flat = maps.reshape(len(maps), -1).astype(float)
    total = flat.sum(axis=1, keepdims=True)
    return np.divide(flat @ masks.T.astype(float), total, out=np.zeros((len(flat), len(masks))), where=total > 0)


def likeness(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Spearman's correlation of each map of a (N, h, w) with each of b (M, h, w), (N, M); 0 where one is constant."""

    def ranked(maps):
        ranks = pd.DataFrame(maps.reshape(len(maps), -1)).rank(axis=1).to_numpy()  # ties at their mean rank
        ranks = ranks - ranks.mean(axis=1, keepdims=True)
        size = np.sqrt((ranks**2).sum(axis=1, keepdims=True))
        return np.divide(ranks, size, out=np.zeros_like(ranks), where=size > 0)

    return ranked(_coarse(a)) @ ranked(_coarse(b)).T


def _coarse(maps: np.ndarray) -> np.ndarray:
    """Maps (N, S, S) without their border, of at most 32 x 32 cells."""
    inside = torch.from_numpy(np.ascontiguousarray(maps[:, EDGE:-EDGE, EDGE:-EDGE]))
    return functional.adaptive_avg_pool2d(inside, min(CELLS, inside.shape[1])).numpy()


def _changed(maps_of: Callable[[torch.Tensor], np.ndarray], views: torch.Tensor) -> np.ndarray:
    """The maps (N, K, S, S) of the images after shifts, moved back, and after JPEG compression."""
    found = []
    for down, right in SHIFTS:
        wide = functional.pad(views, (EDGE,) * 4, mode="replicate")
        moved = wide.roll((down, right), dims=(2, 3))[..., EDGE:-EDGE, EDGE:-EDGE]
        found.append(np.roll(maps_of(moved), (-down, -right), axis=(1, 2)))
    return np.stack([*found, maps_of(torch.stack([_jpeg(view) for view in views]))], axis=1)


def _jpeg(view: torch.Tensor) -> torch.Tensor:
    picture = (view.permute(1, 2, 0).cpu().numpy()[..., ::-1] * 255).round().astype(np.uint8)
    content = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1]
    stored = cv2.imdecode(content, cv2.IMREAD_COLOR)
    assert stored is not None, "OpenCV has just written it"
    again = np.ascontiguousarray(stored[..., ::-1])
    return torch.from_numpy(again).permute(2, 0, 1).to(view) / 255


# ------------------------------------------------------------------------------ the null: networks of shuffled weights


def shuffled(model: Classifier, views: torch.Tensor, seed: int) -> Classifier:
    """A copy whose weights are shuffled within each tensor and whose normalisation is fitted to the views anew.

    So it has learnt nothing, and an untrained network of independent weights is one more of its kind. Rows and columns
    of the entries, laid out as a square or nearly so, are shuffled: five times as fast as one by one.
    """
    other, rng = copy.deepcopy(model), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in other.parameters():
            count = weight.numel()
            rows = next(k for k in range(math.isqrt(count), 0, -1) if count % k == 0)
            down, right = (torch.randperm(k, generator=rng).to(weight.device) for k in (rows, count // rows))
            weight.copy_(weight.reshape(rows, -1)[down][:, right].reshape(weight.shape))
        for module in other.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.train().momentum = 1.0  # takes the statistics of this one batch
        other(views)
    return other.eval()


def learnt(asked: Asked) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """What 19 networks of shuffled weights reach on these images: "faithful" and "sensitive", (N,) each.

    "faithful": the gain by each map, and what `beyond` makes of those of the networks, which explain their own
    predictions.
    "sensitive": the likeness of each map to that after a small change of the image, and to that of the networks.
    """
    gains: list[np.ndarray] = []
    alike = []
    for k in range(NETWORKS):
        other = shuffled(asked.model, asked.views, asked.seed * NETWORKS + k)
        heat = gradcam.in_batches(asked.ask, other, asked.views, asked.classes)
        maps = _large(heat, asked.maps.shape[1])
        alike.append(np.diag(likeness(asked.maps, maps)))
        if gains and beyond(asked.gains, np.stack(gains)) is asked.gains:
            continue  # further gains leave it there
        called = heat.probs.argmax(dim=1)
        if (turned := called != asked.classes).any():
            there = turned.to(asked.views.device)
            heat = gradcam.in_batches(asked.ask, other, asked.views[there], called[turned])
            maps[turned.numpy()] = _large(heat, asked.maps.shape[1])
        gains.append(gain(other, asked.views, maps, called))
    return {
        "faithful": (asked.gains, beyond(asked.gains, np.stack(gains))),
        "sensitive": (np.diag(_likeness_to_changed(asked)), np.mean(alike, axis=0)),
    }


def beyond(own: np.ndarray, gains: np.ndarray) -> np.ndarray:
    """Of the gains of networks (K, N) those that `own` (N,) has to differ from: the best, or the worst if it is worse.

    `own` itself, so that there is no difference, if its mean lies between them. So one more network of their kind is
    beyond either end in 1 of K + 1 cases, whatever the gains: a permutation test.
    """
    means = gains.mean(axis=1)
    if own.mean() > means.max():
        return gains[means.argmax()]
    return gains[means.argmin()] if own.mean() < means.min() else own


# ------------------------------------------------------------------------------------------- deletion and insertion


def gain(model: Classifier, views: torch.Tensor, maps: np.ndarray, classes: torch.Tensor) -> np.ndarray:
    """How much more probable the class is when the hottest pixels are inserted than when they are deleted, (N,).

    The mean over two shares of the pixels of the two curves of Petsiuk et al. 2018, from -1 to 1. Deleted pixels take
    the mean colour of the image, those not yet inserted come from a blurred copy.
    """
    grey = views.mean(dim=(2, 3), keepdim=True).expand_as(views)
    blurred = torch.stack([_blurred(view) for view in views])
    ranked = torch.from_numpy(ranks(maps)).to(views.device)[:, None]  # (N, 1, S, S)
    found, quick = np.zeros(len(views)), folding.for_prediction(model)
    for share in SHARES:
        hottest = ranked < share
        found += _probability(quick, torch.where(hottest, views, blurred), classes)
        found -= _probability(quick, torch.where(hottest, grey, views), classes)
    return found / len(SHARES)


def ranks(maps: np.ndarray) -> np.ndarray:
    """The rank of every pixel in each map (N, S, S), from 0, the hottest, to below 1; the order of equals is random."""
    flat = maps.reshape(len(maps), -1)
    lots = np.random.default_rng(0).permutation(flat.shape[1])
    order = lots[np.argsort(-flat[:, lots], axis=1, kind="stable")]
    places = np.empty(flat.shape)
    np.put_along_axis(places, order, np.arange(flat.shape[1]) / flat.shape[1], axis=1)
    return places.reshape(maps.shape)


def _blurred(view: torch.Tensor) -> torch.Tensor:
    """A view (3, S, S) blurred so that nothing smaller than a sixth of the image can be seen."""
    picture = view.permute(1, 2, 0).cpu().numpy()
    soft = cv2.GaussianBlur(picture, (0, 0), picture.shape[0] / 12, borderType=cv2.BORDER_REFLECT_101)
    return torch.from_numpy(soft).permute(2, 0, 1).to(view)


def _probability(model: torch.nn.Module, views: torch.Tensor, classes: torch.Tensor) -> np.ndarray:
    views = views.contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        logits = torch.cat([model(part) for part in views.split(gradcam.BATCH)])
    return logits.double().softmax(dim=1).cpu().gather(1, classes[:, None])[:, 0].numpy()
