"""Heatmaps of the evidence for a class (Grad-CAM and others), without hooks and without changing the model.

Values are raw evidence: they compare places of one image, but neither classes, as probabilities do, nor methods.
`trust.examine` checks whether the maps of a network can be believed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import partial

import numpy as np
import pandas as pd
import torch
from torch.nn import functional

from patholib.base.errors import PathoError, nearest
from patholib.data.imagesets import ImageSet
from patholib.judge import predicting, resampled, rules
from patholib.model import augment, describing
from patholib.model.networks import Classifier, evaluating, on_grid

CELLS = 6  # fewest cells on a side of a map that is shown as a place
BATCH = 8  # images at once: larger batches leave the processor's cache
OURS = ("section", "decision", "p", "loss")  # columns that a gallery adds to the predictions
STEPS = 8  # of the occluding square on its way along a side of the image
Method = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Heat:
    """The heatmaps of N images; tensors on the CPU, without a graph."""

    maps: torch.Tensor  # (N, h, w) float32, >= 0, in the resolution of the block (occlusion: 8 x 8)
    classes: torch.Tensor  # (N,) int64, the class whose evidence each map shows
    probs: torch.Tensor  # (N, C) float32
    blank: torch.Tensor  # (N,) bool: the image holds no evidence for the class, the map is 0 everywhere


def heat(
    model: Classifier, images: torch.Tensor, classes=None, block: str | None = None, method: str = "gradcam"
) -> Heat:
    """The heatmap of each image by one of METHODS.

    images (N, 3, H, W) in [0, 1]; classes (N,), by default the most probable; block: one of model.block_names, by
    default the last that gives maps. Errors: unknown_method, bad_images, unknown_block, bad_classes, model_output
    (values that are not finite).
    """
    if method not in METHODS:
        raise PathoError("unknown_method", str(method), "is no method for heatmaps", nearest(method, METHODS))
    return METHODS[method](model, images, classes, block)


def in_batches(ask: Callable[..., Heat], model: Classifier, images: torch.Tensor, classes) -> Heat:
    """The heatmaps that `ask`, such as `heat`, gives of the images (N, 3, H, W) for the classes (N,)."""
    parts = [slice(start, start + BATCH) for start in range(0, len(images), BATCH)]
    found = [ask(model, images[part].to(model.mean.device), classes[part]) for part in parts]
    return Heat(*(torch.cat([getattr(one, f.name) for one in found]) for f in fields(Heat)))


def gradcam(model: Classifier, images: torch.Tensor, classes=None, block: str | None = None) -> Heat:
    """Grad-CAM (Selvaraju et al. 2017, equations 1 and 2) at the output of `block`; arguments as of `heat`."""
    return _heat(model, images, classes, block, _mean_gradient)


def gradcam_plus_plus(model: Classifier, images: torch.Tensor, classes=None, block: str | None = None) -> Heat:
    """Grad-CAM++ (Chattopadhay et al. 2018, equations 5, 7 and 19) at the output of `block`; arguments as of `heat`.

    The score is exp(logit), as there; the factor exp(logit), constant over a map, is left out because it overflows.
    """
    return _heat(model, images, classes, block, _weighted_rise)


def hirescam(model: Classifier, images: torch.Tensor, classes=None, block: str | None = None) -> Heat:
    """HiResCAM (Draelos & Carin 2020, equation 3), what is above 0, at the output of `block`; arguments as of `heat`.

    At the last block, which an average and a linear layer follow, it is the share of each place in the logit.
    """
    return _heat(model, images, classes, block, _own_gradient)


def occlusion(model: Classifier, images: torch.Tensor, classes=None, block: str | None = None) -> Heat:
    """How much the logit falls when a square of the image is covered (Zeiler & Fergus 2014, section 4.2).

    The square, a quarter of the image wide and of its mean colour, moves in steps of an eighth; a cell (of 8 x 8) holds
    the mean fall over the squares that cover it, and 0 where that is a rise. No gradient is needed; block is checked
    but not used, as it is the image itself that is covered. Arguments as of `heat`.
    """
    still = evaluating(model)
    with torch.no_grad():
        logits = still.classify(still.features(images, block), block, images)  # (N, C)
        classes = _classes(classes, logits)
        height, width = ([round(i * side / STEPS) for i in range(STEPS + 1)] for side in images.shape[2:])
        before = logits.gather(1, classes[:, None])[:, 0].float()
        grey = images.mean(dim=(2, 3), keepdim=True)  # (N, 3, 1, 1)
        fall = before.new_zeros(len(images), STEPS, STEPS)
        covered = before.new_zeros(STEPS, STEPS)
        for i in range(STEPS - 1):
            for j in range(STEPS - 1):
                hidden = images.clone()
                hidden[:, :, height[i] : height[i + 2], width[j] : width[j + 2]] = grey
                after = still(hidden).gather(1, classes[:, None])[:, 0].float()
                fall[:, i : i + 2, j : j + 2] += (before - after)[:, None, None]
                covered[i : i + 2, j : j + 2] += 1
    return _result((fall / covered).relu(), classes, logits)


METHODS = {"gradcam": gradcam, "gradcam++": gradcam_plus_plus, "hirescam": hirescam, "occlusion": occlusion}


def averaged(
    model: Classifier, images: torch.Tensor, classes=None, block: str | None = None, method: str = "gradcam"
) -> Heat:
    """The mean of the heatmaps of the eight flips and quarter turns of each square image, each map turned back.

    classes: by default those of the highest mean probability; a blank map counts as 0. Other arguments as of `heat`.
    """
    if classes is None:
        still = evaluating(model)
        with torch.no_grad():
            views = [still(view(images)).float().softmax(dim=1) for view in augment.SYMMETRIES]
        classes = torch.stack(views).mean(dim=0).argmax(dim=1)
    found = [heat(model, view(images), classes, block, method) for view in augment.SYMMETRIES]
    maps = torch.stack([back(one.maps[:, None])[:, 0] for back, one in zip(augment.UNDO, found, strict=True)])
    maps, probs = maps.mean(dim=0), torch.stack([one.probs for one in found]).mean(dim=0)
    return Heat(maps, found[0].classes, probs, maps.amax(dim=(1, 2)) == 0)


def method_title(method: str, average: bool) -> str:
    """The name of a method in a title."""
    return f"{method}, mean of eight views" if average else method


# From the maps (N, K, h, w) of a block and the gradient of a logit with respect to them to the heat (N, h, w).


def _mean_gradient(maps: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    weight = gradient.mean(dim=(2, 3), keepdim=True)  # (N, K, 1, 1), equation 1
    return (weight * maps).sum(dim=1).relu()  # (N, h, w), equation 2


def _weighted_rise(maps: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    # Equation 19, g^2 / (2 g^2 + sum(A) g^3), is 1 / (2 + sum(A) g); equation 5 needs it only where g > 0. Maps are
    # after a ReLU there. Those of a linear bottleneck may sum to less than 0, which would let it change its sign.
    rise = gradient.relu()
    total = maps.sum(dim=(2, 3), keepdim=True).relu()  # (N, K, 1, 1)
    weight = (rise / (2 + total * rise)).sum(dim=(2, 3), keepdim=True)  # (N, K, 1, 1), equation 5
    return (weight * maps).sum(dim=1).relu()  # (N, h, w), equation 7


def _own_gradient(maps: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    return (gradient * maps).sum(dim=1).relu()  # (N, h, w): the gradient is not averaged over places


def _heat(model: Classifier, images: torch.Tensor, classes, block: str | None, method: Method) -> Heat:
    still = evaluating(model)
    # The caller may have switched gradients off; here the graph reaches from the maps to the logits and no further.
    with torch.inference_mode(False), torch.enable_grad():
        with torch.no_grad():
            maps = still.features(images, block).detach()  # (N, K, h, w) or tokens; never the images themselves
        maps.requires_grad_()
        logits = still.classify(maps, block, images)  # (N, C)
        classes = _classes(classes, logits)
        chosen = logits.gather(1, classes[:, None]).sum()  # no image's logit depends on another's maps in eval mode
        (gradient,) = torch.autograd.grad(chosen, maps)  # as the maps
    maps, gradient = (on_grid(still, tensor.detach().float()) for tensor in (maps, gradient))  # (N, K, h, w)
    return _result(method(maps, gradient), classes, logits)


def _result(maps: torch.Tensor, classes: torch.Tensor, logits: torch.Tensor) -> Heat:
    """The maps as they are returned, on the CPU. Errors: model_output."""
    probs = logits.detach().float().softmax(dim=1)
    if not (torch.isfinite(maps).all() and torch.isfinite(probs).all()):
        raise PathoError(
            "model_output", "heatmap", "holds values that are not finite", "Check the weights and the images for NaN"
        )
    maps = maps.cpu()
    return Heat(maps, classes.cpu(), probs.cpu(), maps.amax(dim=(1, 2)) == 0)


def _classes(classes, logits: torch.Tensor) -> torch.Tensor:
    if classes is None:
        return logits.argmax(dim=1)
    asked = torch.as_tensor(classes, device=logits.device)
    count, width = logits.shape
    if asked.shape != (count,) or asked.is_floating_point() or ((asked < 0) | (asked >= width)).any():
        raise PathoError(
            "bad_classes",
            "classes",
            f"are {asked.tolist()}",
            f"Give {count} whole numbers from 0 to {width - 1}, one per image",
        )
    return asked.long()


def upsample(maps: torch.Tensor, size: int) -> torch.Tensor:
    """Maps (N, h, w) enlarged to the size of the image, (N, size, size).

    Bilinear, because it stays within the range of the map; bicubic values would fall below 0 beside a peak.
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

    At 224 pixels that is the last block, as usual; at 64 its maps would be 2 x 2. Where no block has so many, as with
    the patches of a small image, it is the last of those with the most.
    """
    sides = {name: min(maps.shape[2:]) for name, maps in describing.block_maps(model)}
    enough = min(CELLS, max(sides.values()))
    return [name for name, side in sides.items() if side >= enough][-1]


def caption(label: str, decision: str, p: float, positive: str | None = None, threshold: float | None = None) -> str:
    """`true: benign, predicted: malignant (0.42, threshold 0.37)`; label "" is unknown; p: of the predicted class."""
    start = f"true: {label}, predicted: {decision}" if label else f"predicted: {decision}"
    if threshold is None or positive is None:
        return f"{start} ({p:.2f})"
    digits = 2 if 0.01 <= threshold <= 0.99 else 4  # else it would read 0.00, and on which side p lies be lost
    value = f"{p:.{digits}f}" if decision == positive else f"{positive} {1 - p:.{digits}f}"
    return f"{start} ({value}, threshold {threshold:.{digits}f})"


@dataclass(frozen=True)
class Gallery:
    """Chosen images with their heatmaps; `table` has one row per image, as `pick` gives it."""

    pictures: np.ndarray  # (N, H, W, 3) uint8, as the model sees them
    heat: np.ndarray  # (N, H, W) float32 >= 0, raw
    table: pd.DataFrame
    block: str
    method: str
    positive: str | None = None
    threshold: float | None = None  # of the probability of `positive`; None: the largest probability decided

    @property
    def captions(self) -> list[str]:
        """True and predicted class and probability, for under each picture."""
        return [
            caption(row.label, row.decision, row.p, self.positive, self.threshold) for row in self.table.itertuples()
        ]

    @property
    def sections(self) -> dict[str, np.ndarray]:
        """The rows of every section, in order."""
        return {name: np.flatnonzero(self.table["section"] == name) for name in self.table["section"].unique()}


def pick(
    predictions: pd.DataFrame,
    classes: Sequence[str],
    positive: str | None = None,
    threshold: float | rules.Shares | None = None,
    each: int = 4,
    by: str = "outcome",
) -> pd.DataFrame:
    """Chooses images worth a look, in sections of at most `each`: rows of the predictions with further columns.

    They are `section`, `decision` (the predicted class), its probability `p`, and `loss`.
    by "outcome": the most certain of the true and false positives and negatives (of more than two classes, or without a
    positive one: right and wrong), the least certain, and those of the highest loss; an image may be in two sections.
    by a column, such as "label" or a subgroup: for each value images evenly spread from the lowest loss to the highest.
    threshold: as of `rules.predicted`; None is 0.5. Columns of the data that have one of these four names are kept as
    `own_section` and so on. Errors: unknown_column.
    """
    threshold = 0.5 if threshold is None else threshold
    decision = resampled.decide(predictions, classes, positive, threshold)
    probs, rows = predictions[[f"p_{c}" for c in classes]].to_numpy(), np.arange(len(predictions))
    predicted, true = (pd.Index(classes).get_indexer(names) for names in (decision, predictions["label"]))
    own = probs[rows, true]
    kept = predicting.own_apart(predictions, OURS)
    table = kept.assign(decision=decision, p=probs[rows, predicted], loss=-np.log(np.maximum(own, 1e-12)))
    if by != "outcome":
        if by not in predictions:
            raise PathoError("unknown_column", by, "is no column of the predictions", nearest(by, predictions.columns))
        return _by_column(table, by, kept.columns[list(predictions.columns).index(by)], each)
    two = positive is not None and len(classes) == 2
    margin = rules.margin(probs, classes, positive, threshold)
    names = _outcomes(decision, table["label"].to_numpy(), positive if two else None)
    surest = table.assign(section=names).iloc[np.argsort(-margin, kind="stable")]
    order = ("true positive", "false positive", "false negative", "true negative") if two else ("right", "wrong")
    parts = [surest[surest["section"] == name].head(each) for name in order]
    parts += [
        surest.iloc[::-1].head(each).assign(section="least certain"),
        surest.sort_values("loss", ascending=False, kind="stable").head(each).assign(section="highest loss"),
    ]
    return pd.concat(parts)


def _outcomes(decision: np.ndarray, label: np.ndarray, positive: str | None) -> np.ndarray:
    """The outcome of each image, (N,) text: right or wrong, or true or false positive or negative."""
    if positive is None:
        return np.where(decision == label, "right", "wrong")
    return np.char.add(
        np.where(decision == label, "true ", "false "), np.where(decision == positive, "positive", "negative")
    )


def _by_column(table: pd.DataFrame, name: str, column: str, each: int) -> pd.DataFrame:
    """Sections by the values of `column`, which the data call `name`."""
    parts = []
    for value, rows in table.sort_values("loss", kind="stable").groupby(column):
        spread = np.unique(np.linspace(0, len(rows) - 1, min(each, len(rows))).round().astype(int))
        parts.append(rows.iloc[spread].assign(section=f"{name}: {value}"))
    return pd.concat(parts)


def gallery(
    model: Classifier,
    images: ImageSet,
    predictions: pd.DataFrame,
    positive: str | None = None,
    threshold: float | rules.Shares | None = None,
    each: int = 4,
    by: str = "outcome",
    block: str | None = None,
    method: str = "gradcam",
    average: bool = False,
) -> Gallery:
    """The heatmaps of the images that `pick` chooses, for their predicted class; average: those of `averaged`.

    images and predictions: the same images in the same order; the probabilities are shown as they are given, so give
    calibrated ones. block: None takes `default_block`. Errors: as `heat` and `pick`, bad_order.
    """
    if list(images.table["path"]) != list(predictions["path"]):
        raise PathoError("bad_order", "predictions", "are not of these images in this order", "Predict these images")
    chosen = pick(predictions.reset_index(drop=True), model.classes, positive, threshold, each, by)
    block, once = block or default_block(model), chosen[~chosen.index.duplicated()]
    pictures = images.pixels[images.table["row"].to_numpy()[once.index]]
    views = augment.plain_views(pictures, model.image_size)  # (N, 3, H, W)
    targets = [model.classes.index(name) for name in once["decision"]]
    ask = partial(averaged if average else heat, block=block, method=method)
    maps = in_batches(ask, model, views, targets).maps
    seen = views.permute(0, 2, 3, 1).mul(255).round().to(torch.uint8).numpy()
    place = once.index.get_indexer(chosen.index)
    two = positive is not None and len(model.classes) == 2
    return Gallery(
        seen[place],
        upsample(maps, model.image_size).numpy()[place],
        chosen.reset_index(drop=True),
        block,
        method_title(method, average),
        positive,
        threshold if two and isinstance(threshold, float) else None,
    )
