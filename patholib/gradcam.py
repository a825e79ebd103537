"""Where a classifier looks: class activation maps from its gradients, without hooks and without touching the model.

A method is a small function of (maps, gradient), both (N, K, h, w), that gives the heat (N, h, w); `_heat` does the
rest for all of them. Maps are raw evidence: relative to one image, not comparable between classes as probabilities.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch.nn import functional

from patholib import augment, metrics, models
from patholib.errors import PathoError
from patholib.images import ImageSet
from patholib.models import Classifier, evaluating

CELLS = 6  # fewest cells on a side of a map that is shown as a place
Method = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Heat:
    """What was asked of N images and what came out; tensors on the CPU, without a graph."""

    maps: torch.Tensor  # (N, h, w) float32, >= 0, in the resolution of the block
    classes: torch.Tensor  # (N,) int64, the class each map argues for
    probs: torch.Tensor  # (N, C) float32
    blank: torch.Tensor  # (N,) bool: nothing in the image argues for the class, the map is 0 everywhere


def gradcam(model: Classifier, images: torch.Tensor, classes=None, block: str | None = None) -> Heat:
    """Grad-CAM of each image (Selvaraju et al. 2017, equations 1 and 2) at the output of `block`.

    images (N, 3, H, W) in [0, 1]; classes (N,), by default the most probable; block: one of model.block_names, by
    default the last. Errors: bad_images, unknown_block, bad_classes, model_output (values that are not finite).
    """
    return _heat(model, images, classes, block, _mean_gradient)


def _mean_gradient(maps: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    weight = gradient.mean(dim=(2, 3), keepdim=True)  # (N, K, 1, 1), equation 1
    return (weight * maps).sum(dim=1).relu()  # (N, h, w), equation 2


def _heat(model: Classifier, images: torch.Tensor, classes, block: str | None, method: Method) -> Heat:
    still = evaluating(model)
    # The caller may have switched gradients off; here the graph reaches from the maps to the logits and no further.
    with torch.inference_mode(False), torch.enable_grad():
        with torch.no_grad():
            maps = still.features(images, block)  # (N, K, h, w)
        maps.requires_grad_()
        logits = still.classify(maps, block)  # (N, C)
        classes = _classes(classes, logits)
        chosen = logits.gather(1, classes[:, None]).sum()  # no image's logit depends on another's maps in eval mode
        gradient, = torch.autograd.grad(chosen, maps)  # (N, K, h, w)
    heat = method(maps.detach().float(), gradient.float())
    probs = logits.detach().float().softmax(dim=1)
    if not (torch.isfinite(heat).all() and torch.isfinite(probs).all()):
        raise PathoError("model_output", "heatmap", "holds values that are not finite",
                         "Check the weights and the images for NaN")
    heat = heat.cpu()
    return Heat(heat, classes.cpu(), probs.cpu(), heat.amax(dim=(1, 2)) == 0)


def _classes(classes, logits: torch.Tensor) -> torch.Tensor:
    if classes is None:
        return logits.argmax(dim=1)
    asked = torch.as_tensor(classes, device=logits.device)
    count, width = logits.shape
    if asked.shape != (count,) or asked.is_floating_point() or ((asked < 0) | (asked >= width)).any():
        raise PathoError("bad_classes", "classes", f"are {asked.tolist()}",
                         f"Give {count} whole numbers from 0 to {width - 1}, one per image")
    return asked.long()


def upsample(maps: torch.Tensor, size: int) -> torch.Tensor:
    """Maps (N, h, w) at the size of the image, (N, size, size).

    Bilinear: it never leaves the range of the map, where a bicubic one would fall below 0 beside a peak.
    """
    return functional.interpolate(maps[:, None], size=(size, size), mode="bilinear", align_corners=False)[:, 0]


def normalise(maps: torch.Tensor, scale: str = "image") -> torch.Tensor:
    """Maps (N, h, w) in [0, 1]: divided by their own peak ("image") or by the highest of all ("gallery").

    Zero stays zero, since it means "no evidence"; a blank map stays blank. Errors: bad_parameter.
    """
    if scale not in ("image", "gallery"):
        raise PathoError("bad_parameter", "scale", f"is {scale!r}", 'Use "image" or "gallery"')
    peak = maps.amax(dim=(1, 2), keepdim=True) if scale == "image" else maps.amax()
    return maps / torch.where(peak > 0, peak, torch.ones_like(peak))


def default_block(model: Classifier) -> str:
    """The last block whose maps have at least 6 x 6 cells: the deepest that can still tell where.

    At 224 pixels that is the last block, as usual; at 64 its maps would be 2 x 2.
    """
    # Never empty: first blocks leave 8 cells of 32 pixels, the smallest images there are.
    return [name for name, maps in models.block_maps(model) if min(maps.shape[2:]) >= CELLS][-1]


@dataclass(frozen=True)
class Explained:
    """Chosen images with their heat; `table` has one row per image: outcome, path, label, decision, p."""

    pictures: np.ndarray  # (N, H, W, 3) uint8, what the model saw
    heat: np.ndarray  # (N, H, W) float32 >= 0, raw
    table: pd.DataFrame
    block: str

    @property
    def captions(self) -> list[str]:
        """Outcome, true and predicted class and probability, for under each picture."""
        return [f"{row.outcome}: is {row.label}, called {row.decision} ({row.p:.0%})"
                for row in self.table.itertuples()]


def pick(predictions: pd.DataFrame, classes: Sequence[str], positive: str | None = None, threshold: float = 0.5,
         each: int = 4) -> pd.DataFrame:
    """The images worth a look: `each` surest right and wrong ones and least certain ones, every image once.

    Returns the rows with `outcome` ("right", "wrong", "uncertain"), `decision` and `p`, the decision's probability.
    """
    decision = metrics.decide(predictions, classes, positive, threshold)
    probs = predictions[[f"p_{c}" for c in classes]].to_numpy()
    place = {name: i for i, name in enumerate(classes)}
    p = probs[np.arange(len(probs)), [place[name] for name in decision]]
    table = predictions.assign(decision=decision, p=p, outcome="uncertain").sort_values("p", kind="stable")
    right = (table["decision"] == table["label"]).to_numpy()
    doubt = table.head(each)
    rest = ~table.index.isin(doubt.index)
    parts = [table[right & rest].tail(each).iloc[::-1].assign(outcome="right"),
             table[~right & rest].tail(each).iloc[::-1].assign(outcome="wrong"), doubt]
    return pd.concat(parts)


def explain(model: Classifier, images: ImageSet, predictions: pd.DataFrame, positive: str | None = None,
            threshold: float = 0.5, each: int = 4, block: str | None = None) -> Explained:
    """Grad-CAM of what `pick` chooses, for the class each image was called.

    images and predictions: the same images in the same order, as `evaluation.predict` gives them. block: None takes
    `default_block`. Errors: bad_order, unknown_block.
    """
    if list(images.table["path"]) != list(predictions["path"]):
        raise PathoError("bad_order", "predictions", "are not of these images in this order", "Predict these images")
    chosen = pick(predictions.reset_index(drop=True), model.classes, positive, threshold, each)
    pictures = images.pixels[images.table["row"].to_numpy()[chosen.index]]
    views = augment.plain_views(pictures, model.image_size)  # (N, 3, H, W)
    targets = [model.classes.index(name) for name in chosen["decision"]]
    block = block or default_block(model)
    found = gradcam(model, views.to(model.mean.device), targets, block)
    seen = views.permute(0, 2, 3, 1).mul(255).round().to(torch.uint8).numpy()
    return Explained(seen, upsample(found.maps, model.image_size).numpy(), chosen.reset_index(drop=True), block)
