"""The single checks of heatmaps: randomised weights, deletion and insertion, shift and JPEG, known regions."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.nn import functional

from patholib.data import imagesets
from patholib.judge import gradcam, intervals
from patholib.model import augment, recolour
from patholib.model.networks import Classifier, evaluating

PARTS = 4  # of the backbone, besides the head, that are randomised in turn
SHARES = (0.05, 0.1, 0.2, 0.35, 0.6)  # of the pixels that are deleted or inserted, besides none and all
SHIFTS = ((0, 1), (1, 0), (2, 2), (-2, 1))  # pixels down and to the right
QUALITY = 75  # of the JPEG
BASELINES = {"blob": "a blob in the centre", "edges": "the edges of the grey image"}


@dataclass(frozen=True)
class Asked:
    """N images with their heatmaps, as every check needs them."""

    model: Classifier  # in eval mode
    paths: list[str]
    views: torch.Tensor  # (N, 3, S, S) on the model's device
    groups: np.ndarray  # (N,)
    heat: gradcam.Heat
    maps: np.ndarray  # (N, S, S), the heat in the size of the images
    ask: Callable[..., gradcam.Heat]  # of model, views and classes
    seed: int

    @classmethod
    def of(
        cls, model: Classifier, pictures: imagesets.ImageSet, table: pd.DataFrame, ask: Callable, seed: int
    ) -> Asked:
        size = model.image_size
        views = augment.plain_views(pictures.pixels[table["row"].to_numpy()], size).to(model.mean.device)
        heat = ask(model, views, [model.classes.index(name) for name in table["predicted"]])
        return cls(
            evaluating(model),
            list(table["path"]),
            views,
            table["group"].to_numpy(),
            heat,
            _large(heat, size),
            ask,
            seed,
        )

    def of_other(self, model: Classifier, views: torch.Tensor) -> gradcam.Heat:
        """The heat of these images for the same classes, from another model or another form of them."""
        return self.ask(model, views, self.heat.classes.numpy())

    def mean(self, values: np.ndarray) -> dict:
        """The mean of one number per image (N,), with its interval over groups, as `Estimate.to_json` gives it."""
        return intervals.mean_of(values, self.groups, seed=self.seed).to_json()


def _large(heat: gradcam.Heat, size: int) -> np.ndarray:
    return gradcam.upsample(heat.maps, size).numpy()


def rank_correlation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Spearman's correlation (N,) of pairs of maps (N, h, w); ties at their mean rank, 0 where a map is constant."""
    a, b = (pd.DataFrame(maps.reshape(len(maps), -1)).rank(axis=1).to_numpy() for maps in (a, b))
    a, b = (ranks - ranks.mean(axis=1, keepdims=True) for ranks in (a, b))
    scale = np.sqrt((a**2).sum(axis=1) * (b**2).sum(axis=1))
    return np.divide((a * b).sum(axis=1), scale, out=np.zeros(len(a)), where=scale > 0)


def structural_similarity(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The mean structural similarity (Wang et al. 2004, equation 13) of each pair of maps (N, h, w), (N,).

    Each map is divided by its peak. Windows of 5 x 5 cells, evenly weighted, all inside the map.
    """
    x, y = (gradcam.normalise(torch.as_tensor(maps).double()) for maps in (a, b))

    def mean(maps):
        return functional.avg_pool2d(maps[:, None], min(5, *maps.shape[1:]), stride=1)[:, 0]

    mean_x, mean_y = mean(x), mean(y)
    spread_x, spread_y, both = mean(x * x) - mean_x**2, mean(y * y) - mean_y**2, mean(x * y) - mean_x * mean_y
    first, second = 0.01**2, 0.03**2
    index = (
        (2 * mean_x * mean_y + first)
        * (2 * both + second)
        / ((mean_x**2 + mean_y**2 + first) * (spread_x + spread_y + second))
    )
    return index.mean(dim=(1, 2)).numpy()


def randomisation(asked: Asked) -> dict:
    """How similar the maps stay when weights are randomised (Adebayo et al. 2018): "cascade" and "alone".

    "cascade": from the head down to the first blocks, one part more at each step; "alone": one part at a time. Every
    entry: the part, the mean rank correlation and structural similarity over the images whose map was not blank; a map
    that becomes blank has changed.
    """
    parts, rng = list(_parts(asked.model)), torch.Generator().manual_seed(asked.seed)
    fallen, cascade, alone = copy.deepcopy(asked.model), [], []
    for name, find in parts:
        _randomise(find(fallen), rng)
        cascade.append(_similarity(asked, name, fallen))
        one = copy.deepcopy(asked.model)
        _randomise(find(one), rng)
        alone.append(_similarity(asked, name, one))
    return {"cascade": cascade, "alone": alone}


def _parts(model: Classifier) -> Iterator[tuple]:
    """From the logits to the image: a name, and a function that finds the modules of the part in a copy."""
    yield "head", lambda other: [other.head]
    for names in np.array_split(model.block_names[::-1], min(PARTS, len(model.block_names))):
        title = names[0] if len(names) == 1 else f"{names[-1]} to {names[0]}"
        yield str(title), lambda other, names=names: [module for name in names for module in other.blocks[name]]


def _randomise(modules: Sequence[nn.Module], rng: torch.Generator) -> None:
    """Draws all weights from a normal distribution, with the mean square of each tensor as before."""
    with torch.no_grad():
        for module in modules:
            for weight in module.parameters():
                drawn = torch.randn(weight.shape, generator=rng).to(weight)
                weight.copy_(drawn * weight.square().mean().sqrt())


def _similarity(asked: Asked, name: str, model: Classifier) -> dict:
    known = ~asked.heat.blank.numpy()
    if not known.any():
        return {"part": name, "rank_correlation": 0.0, "similarity": 0.0}
    before, after = asked.heat.maps.numpy()[known], asked.of_other(model, asked.views).maps.numpy()[known]
    return {
        "part": name,
        "rank_correlation": float(rank_correlation(before, after).mean()),
        "similarity": float(structural_similarity(before, after).mean()),
    }


def perturbation(asked: Asked) -> dict:
    """Deletion and insertion (Petsiuk et al. 2018) in the order of the map, of random maps and of a blob.

    "curves": mean probability of the class over the share of the pixels ("shares"). Deleted pixels take the mean colour
    of the image, those not yet inserted come from a blurred copy. "areas": the mean area under the curves, deletion
    small and insertion large for a good map; `gain` is insertion minus deletion. "over_random", "over_blob": how much
    better the map is in each.
    """
    orders = {
        "map": asked.maps,
        "random": _chance(asked),
        "blob": np.broadcast_to(blob(asked.maps.shape[1]), asked.maps.shape),
    }
    curves, areas = {}, {}
    for name, maps in orders.items():
        deletion, insertion = _curves(asked, ranks(maps, asked.seed))
        curves[name] = {"deletion": deletion.mean(axis=0).tolist(), "insertion": insertion.mean(axis=0).tolist()}
        areas[name] = {"deletion": area(deletion), "insertion": area(insertion)}
        areas[name]["gain"] = areas[name]["insertion"] - areas[name]["deletion"]
    over = {
        f"over_{other}": {
            what: asked.mean(sign * (areas["map"][what] - areas[other][what]))
            for what, sign in (("deletion", -1), ("insertion", 1), ("gain", 1))
        }
        for other in ("random", "blob")
    }
    return {
        "shares": [0.0, *SHARES, 1.0],
        "curves": curves,
        **over,
        "areas": {name: {what: asked.mean(values) for what, values in of.items()} for name, of in areas.items()},
    }


def _chance(asked: Asked) -> np.ndarray:
    """Maps of uniform random numbers, as coarse as those of the block and enlarged like them."""
    rng = np.random.default_rng(asked.seed)
    cells = torch.from_numpy(rng.random(asked.heat.maps.shape, dtype=np.float32))
    return gradcam.upsample(cells, asked.maps.shape[1]).numpy()


def blob(size: int) -> np.ndarray:
    """(size, size) float32: a Gaussian in the centre whose standard deviation is a quarter of the side."""
    away = (np.arange(size, dtype=np.float32) - (size - 1) / 2) / (size / 4)
    return np.exp(-(away[:, None] ** 2 + away**2) / 2)


def ranks(maps: np.ndarray, seed: int = 0) -> np.ndarray:
    """The rank of every pixel in each map (N, S, S), from 0, the hottest, to below 1; the order of equals is random."""
    flat = maps.reshape(len(maps), -1)
    lots = np.random.default_rng(seed).random(flat.shape[1])
    places = np.empty(flat.shape)
    for row, values in zip(places, flat, strict=True):
        row[np.lexsort((lots, -values))] = np.arange(len(values)) / len(values)
    return places.reshape(maps.shape)


def _curves(asked: Asked, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The probability of the class while pixels are deleted, and while they are inserted, (N, shares) each."""
    views = asked.views
    grey = views.mean(dim=(2, 3), keepdim=True).expand_as(views)
    blurred = torch.stack([_blurred(view) for view in views])
    ranked = torch.from_numpy(places).to(views.device)[:, None]  # (N, 1, S, S)
    ends = [_probability(asked, shown) for shown in (views, grey, blurred)]
    inner = [ranked < share for share in SHARES]
    deletion = [_probability(asked, torch.where(first, grey, views)) for first in inner]
    insertion = [_probability(asked, torch.where(first, views, blurred)) for first in inner]
    return np.stack([ends[0], *deletion, ends[1]], axis=1), np.stack([ends[2], *insertion, ends[0]], axis=1)


def _blurred(view: torch.Tensor) -> torch.Tensor:
    """A view (3, S, S) blurred so that nothing smaller than a sixth of the image can be seen."""
    picture = view.permute(1, 2, 0).cpu().numpy()
    soft = cv2.GaussianBlur(picture, (0, 0), picture.shape[0] / 12, borderType=cv2.BORDER_REFLECT_101)
    return torch.from_numpy(soft).permute(2, 0, 1).to(view)


def _probability(asked: Asked, views: torch.Tensor) -> np.ndarray:
    with torch.inference_mode():
        logits = asked.model(views)
    return logits.double().softmax(dim=1).cpu().gather(1, asked.heat.classes[:, None])[:, 0].numpy()


def area(curves: np.ndarray) -> np.ndarray:
    """The area under each curve (N, shares) over the share of the pixels, (N,)."""
    return np.trapezoid(curves, [0.0, *SHARES, 1.0], axis=1)


def stability(asked: Asked) -> dict:
    """Mean rank correlation of the maps with those after a shift of one or two pixels, and after JPEG compression."""
    known = ~asked.heat.blank.numpy()
    moved = np.mean([_after_shift(asked, down, right) for down, right in SHIFTS], axis=0)
    stored = torch.stack([_jpeg(view) for view in asked.views])
    after = _large(asked.of_other(asked.model, stored), asked.maps.shape[1])
    found = {"shift": moved, "jpeg": rank_correlation(asked.maps, after)}
    groups = asked.groups[known]
    return {
        name: intervals.mean_of(values[known], groups, seed=asked.seed).to_json()
        if known.any()
        else {"value": 0.0, "low": None, "high": None}
        for name, values in found.items()
    }


def _after_shift(asked: Asked, down: int, right: int) -> np.ndarray:
    """The rank correlation (N,) of the maps before and after a shift, where both show the same."""
    size, edge = asked.maps.shape[1], max(abs(down), abs(right))
    wide = functional.pad(asked.views, (edge,) * 4, mode="replicate")
    moved = wide[..., edge - down : edge - down + size, edge - right : edge - right + size]
    after = _large(asked.of_other(asked.model, moved), size)
    inside = slice(edge, size - edge)
    there = slice(edge + down, size - edge + down), slice(edge + right, size - edge + right)
    return rank_correlation(asked.maps[:, inside, inside], after[:, there[0], there[1]])


def _jpeg(view: torch.Tensor) -> torch.Tensor:
    picture = (view.permute(1, 2, 0).cpu().numpy()[..., ::-1] * 255).round().astype(np.uint8)
    content = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1]
    stored = cv2.imdecode(content, cv2.IMREAD_COLOR)
    assert stored is not None, "OpenCV has just written it"
    again = np.ascontiguousarray(stored[..., ::-1])
    return torch.from_numpy(again).permute(2, 0, 1).to(view) / 255


def localisation(asked: Asked, masks: Mapping[str, np.ndarray]) -> dict:
    """How much of the heat lies on the masks, beside that of a blob in the centre and of the edges of the image.

    masks: bool (S, S) by path. For each map: energy (share of the heat inside the mask), pointing (share of
    images whose hottest pixel is inside; Zhang et al. 2018), iou (of the mask and as many hottest pixels). Images whose
    mask is empty or covers all are left out.
    """
    size = asked.maps.shape[1]
    inside = np.stack([masks[path] for path in asked.paths])
    margin = (inside.shape[1] - size) // 2
    inside = inside[:, margin : margin + size, margin : margin + size]
    share = inside.mean(axis=(1, 2))
    use = (share > 0) & (share < 1)
    if not use.any():
        return {"images": 0, "groups": 0}
    inside, groups = inside[use], asked.groups[use]
    heats = {
        "map": asked.maps[use],
        "blob": np.broadcast_to(blob(size), inside.shape),
        "edges": np.stack([edges(view) for view in asked.views[torch.from_numpy(use)]]),
    }
    scores = {name: located(heat, inside, asked.seed) for name, heat in heats.items()}

    def mean(values):
        return intervals.mean_of(values, groups, seed=asked.seed).to_json()

    found: dict[str, Any] = {"images": int(use.sum()), "groups": len(set(groups))}
    found |= {"mask_share": float(share[use].mean())}
    found |= {name: {what: mean(values) for what, values in of.items()} for name, of in scores.items()}
    return found | {
        f"over_{name}": {what: mean(values - scores[name][what]) for what, values in scores["map"].items()}
        for name in BASELINES
    }


def located(heat: np.ndarray, masks: np.ndarray, seed: int = 0) -> dict[str, np.ndarray]:
    """Energy, pointing and IoU at matched area of maps (N, S, S) >= 0 and their masks, (N,) each; a blank map has 0."""
    total = heat.sum(axis=(1, 2))
    energy = np.divide((heat * masks).sum(axis=(1, 2)), total, out=np.zeros(len(heat)), where=total > 0)
    places = ranks(heat, seed)
    first = places == 0
    hot = places < masks.mean(axis=(1, 2), keepdims=True) - 1e-9  # as many pixels as the mask has
    iou = (hot & masks).sum(axis=(1, 2)) / (hot | masks).sum(axis=(1, 2))
    seen = total > 0
    return {
        "energy": energy,
        "pointing": ((first & masks).any(axis=(1, 2)) & seen).astype(float),
        "iou": np.where(seen, iou, 0.0),
    }


def edges(view: torch.Tensor) -> np.ndarray:
    """The gradient magnitude (S, S) of the grey image of a view (3, S, S), which knows nothing of the model."""
    grey = np.tensordot(np.array(recolour.GREY, np.float32), view.cpu().numpy(), axes=1)
    down, right = np.gradient(grey)
    return np.hypot(down, right)
