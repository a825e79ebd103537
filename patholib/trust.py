"""Whether the heatmaps of a network can be believed: what they depend on, and whether the network depends on them.

Four questions, each with its number. Do the maps change when what was learnt is taken away (Adebayo et al. 2018)? Does
the probability fall when what they mark is deleted, and rise when it alone is shown (Petsiuk et al. 2018)? Do they stay
where they are when the picture hardly changes? And where it is known what counts: do they lie on it? Maps that fail one
of them are not to be shown as a reason.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.nn import functional

from patholib import augment, files, gradcam, images, manifest, metrics
from patholib.datasets import demo
from patholib.datasets.folders import demo_folder
from patholib.errors import PathoError
from patholib.models import Classifier, evaluating

FILE = "trust.json"  # in the run folder
CHANGED = 0.5  # highest mean rank correlation with the maps of a network whose weights are drawn anew
STEADY = 0.7  # least mean rank correlation with the maps of a picture that hardly differs
BLANK = 0.25  # highest share of maps without any evidence
PARTS = 4  # of the backbone, besides the head, that lose their weights in turn
SHARES = (0.05, 0.1, 0.2, 0.35, 0.6)  # of the pixels that are deleted or inserted, besides none and all
SHIFTS = ((0, 1), (1, 0), (2, 2), (-2, 1))  # pixels down and to the right
QUALITY = 75  # of the JPEG
LOCATED = 64  # maps held against masks, which costs one look each
BASELINES = {"blob": "a blob in the middle", "edges": "the plain edges of the grey picture"}


@dataclass(frozen=True)
class Trust:
    """What `examine` found: `facts` as they are kept in trust.json, and the words for them."""

    facts: dict

    @property
    def trusted(self) -> bool:
        """Whether no check failed."""
        return not self.reasons

    @property
    def reasons(self) -> list[str]:
        """Why the maps are not to be trusted, a sentence with its number for every check that failed."""
        return self.facts["reasons"]

    @property
    def verdict(self) -> str:
        """The outcome in words."""
        return self.facts["verdict"]

    @property
    def table(self) -> pd.DataFrame:
        """One row per check: what was asked, the number, what is demanded, whether it passed."""
        rows = [{"check": check["asked"], "found": check["found"], "demanded": check["demanded"],
                 "": "passed" if check["passed"] else "FAILED"} for check in self.facts["checks"].values()]
        return pd.DataFrame(rows)

    def __repr__(self) -> str:
        return "\n".join([self.verdict, *(f"  - {reason}" for reason in self.reasons)])


def examine(model: Classifier, pictures: images.ImageSet, predictions: pd.DataFrame, run=None,
            masks: Mapping[str, np.ndarray] | None = None, positive: str | None = None,
            threshold: float | metrics.Shares | None = None, count: int = 16, block: str | None = None,
            method: str = "gradcam", average: bool = False, seed: int = 0) -> Trust:
    """Examines the maps of up to `count` images, for the class each was called; writes <run>/trust.json.

    Of two classes with a positive one only images called positive are taken: what argues for the other is that
    something is absent, which lies nowhere; the verdict says so. pictures and predictions: the same images in the same
    order. masks: by path, where it is known what counts, bool (S, S) in the frame of the pixels, as `squares` and
    `planted` give them; they are held against up to 64 maps. run: an open run, or None to write nothing. block: None
    takes `gradcam.default_block`. average: ask about the maps of `gradcam.averaged`, which takes several times as long.
    Errors: as `gradcam.heat`, bad_order, no_masks.
    """
    table, of = _candidates(model, pictures, predictions, masks, positive, threshold)
    facts = {"format": 1, "method": gradcam.named(method, average),
             "block": block or gradcam.default_block(model), "of": of, "seed": seed,
             "images": 0, "groups": 0, "limits": {"changed": CHANGED, "steady": STEADY, "blank": BLANK}, "checks": {},
             "reasons": [f"No image is called {of}, so there is no map to examine"]}
    if len(table):
        ask = partial(gradcam.averaged if average else gradcam.heat, block=facts["block"], method=method)
        asked = _Asked.of(model, pictures, _spread(table, count), ask, seed)
        facts |= {"images": len(asked.views), "groups": len(set(asked.groups)), "blank": int(asked.heat.blank.sum()),
                  "randomisation": randomisation(asked), "perturbation": perturbation(asked),
                  "stability": stability(asked)}
        if masks is not None:
            facts["localisation"] = localisation(_Asked.of(model, pictures, _spread(table, LOCATED), ask, seed), masks)
        facts["checks"] = checks(facts)
        facts["reasons"] = [check["reason"] for check in facts["checks"].values() if not check["passed"]]
    facts["verdict"] = _verdict(facts)
    if run is not None:
        files.write_json(Path(run.dir) / FILE, facts)
    return Trust(facts)


def read(run_dir: Path) -> Trust:
    """What `examine` wrote. Errors: missing_file, bad_json."""
    return Trust(files.read_json(Path(run_dir) / FILE))


def squares(masks: Mapping[str, Path], size: int, fit: str = "crop") -> dict[str, np.ndarray]:
    """Mask files (white where something lies) as bool (size, size) in the frame of cached images, by the same keys."""
    return {name: images.to_square(images.read(path), size, fit)[..., 0] > 127 for name, path in masks.items()}


def planted(source: manifest.Manifest, pictures: images.ImageSet, fit: str = "crop") -> dict[str, np.ndarray] | None:
    """Where the cue was drawn into each of these demo images, by path; None for real images."""
    if not source.demo:
        return None
    folder = demo_folder(source.root)
    known = demo.truth(folder).set_index("path")["mask"]
    return squares({path: folder / known[path] for path in pictures.table["path"]}, pictures.pixels.shape[1], fit)


def _candidates(model, pictures, predictions, masks, positive, threshold) -> tuple[pd.DataFrame, str | None]:
    """The rows of `pictures` that may be asked about, with `called`, and the class they are limited to."""
    if list(pictures.table["path"]) != list(predictions["path"]):
        raise PathoError("bad_order", "predictions", "are not of these images in this order", "Predict these images")
    called = metrics.decide(predictions, model.classes, positive, 0.5 if threshold is None else threshold)
    table = pictures.table.assign(called=called).reset_index(drop=True)
    if masks is not None:
        table = table[table["path"].isin(masks.keys())]
        if table.empty:
            raise PathoError("no_masks", "masks", "are of none of these images", "Name them by the images' paths")
    of = positive if len(model.classes) == 2 else None
    return table if of is None else table[table["called"] == of], of


@dataclass(frozen=True)
class _Asked:
    """The images that are looked at, as every check needs them."""

    model: Classifier  # in eval mode
    paths: list[str]
    views: torch.Tensor  # (N, 3, S, S) on the model's device
    groups: np.ndarray  # (N,)
    heat: gradcam.Heat
    maps: np.ndarray  # (N, S, S), the heat in the size of the images
    ask: Callable[..., gradcam.Heat]  # of model, views and classes
    seed: int

    @classmethod
    def of(cls, model: Classifier, pictures: images.ImageSet, table: pd.DataFrame, ask: Callable, seed: int) -> _Asked:
        size = model.image_size
        views = augment.plain_views(pictures.pixels[table["row"].to_numpy()], size).to(model.mean.device)
        heat = ask(model, views, [model.classes.index(name) for name in table["called"]])
        return cls(evaluating(model), list(table["path"]), views, table["group"].to_numpy(), heat, _large(heat, size),
                   ask, seed)

    def of_other(self, model: Classifier, views: torch.Tensor) -> gradcam.Heat:
        """The heat of these images for the same classes, from another model or another form of them."""
        return self.ask(model, views, self.heat.classes.numpy())

    def mean(self, values: np.ndarray) -> dict:
        """The mean of a number of every image, with the interval over groups."""
        return metrics.mean_of(values, self.groups, seed=self.seed)


def _spread(table: pd.DataFrame, count: int) -> pd.DataFrame:
    """`count` rows that come from as many groups as there are, and from the classes they were called in turn."""
    turn = table.groupby(["called", "group"]).cumcount()
    place = table.assign(turn=turn).sort_values("turn", kind="stable").groupby("called").cumcount()
    return table.assign(place=place).sort_values(["place", "path"], kind="stable").head(count)


def _large(heat: gradcam.Heat, size: int) -> np.ndarray:
    return gradcam.upsample(heat.maps, size).numpy()


# --------------------------------------------------------------------------------------------------------- likeness


def rank_correlation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Spearman's correlation of each pair of maps (N, h, w), ties at their mean rank; 0 where a map is all the same."""
    a, b = (pd.DataFrame(maps.reshape(len(maps), -1)).rank(axis=1).to_numpy() for maps in (a, b))
    a, b = (ranks - ranks.mean(axis=1, keepdims=True) for ranks in (a, b))
    scale = np.sqrt((a**2).sum(axis=1) * (b**2).sum(axis=1))
    return np.divide((a * b).sum(axis=1), scale, out=np.zeros(len(a)), where=scale > 0)


def structural_similarity(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The mean structural similarity (Wang et al. 2004, equation 13) of each pair of maps (N, h, w), by their own peak.

    Windows of 5 x 5 cells, evenly weighted, all inside the map.
    """
    a, b = (gradcam.normalise(torch.as_tensor(maps).double()[:, None].flatten(0, 1)) for maps in (a, b))

    def mean(maps):
        return functional.avg_pool2d(maps[:, None], min(5, *maps.shape[1:]), stride=1)[:, 0]

    mean_a, mean_b = mean(a), mean(b)
    spread_a, spread_b, both = mean(a * a) - mean_a**2, mean(b * b) - mean_b**2, mean(a * b) - mean_a * mean_b
    first, second = 0.01**2, 0.03**2
    index = ((2 * mean_a * mean_b + first) * (2 * both + second)
             / ((mean_a**2 + mean_b**2 + first) * (spread_a + spread_b + second)))
    return index.mean(dim=(1, 2)).numpy()


# ---------------------------------------------------------------------------------------------------- randomisation


def randomisation(asked: _Asked) -> dict:
    """How like the maps stay when weights are drawn anew: from the head down to the first blocks, and part by part.

    Every entry: the part, the mean rank correlation and structural similarity over the images whose map was not blank;
    a map that becomes blank has changed.
    """
    parts, rng = list(_parts(asked.model)), torch.Generator().manual_seed(asked.seed)
    fallen, cascade, alone = copy.deepcopy(asked.model), [], []
    for name, find in parts:
        _redraw(find(fallen), rng)
        cascade.append(_likeness(asked, name, fallen))
        one = copy.deepcopy(asked.model)
        _redraw(find(one), rng)
        alone.append(_likeness(asked, name, one))
    return {"cascade": cascade, "alone": alone}


def _parts(model: Classifier) -> Iterator[tuple]:
    """From the logits to the image: a name, and what finds the modules of that part in a copy of the model."""
    yield "head", lambda other: [other.head]
    for names in np.array_split(model.block_names[::-1], min(PARTS, len(model.block_names))):
        title = names[0] if len(names) == 1 else f"{names[-1]} to {names[0]}"
        yield str(title), lambda other, names=names: [module for name in names for module in other.blocks[name]]


def _redraw(modules: Sequence[nn.Module], rng: torch.Generator) -> None:
    """Draws all weights anew, normal with the mean square of their tensor, so that maps keep about their size."""
    with torch.no_grad():
        for module in modules:
            for weight in module.parameters():
                drawn = torch.randn(weight.shape, generator=rng).to(weight)
                weight.copy_(drawn * weight.square().mean().sqrt())


def _likeness(asked: _Asked, name: str, model: Classifier) -> dict:
    known = ~asked.heat.blank.numpy()
    if not known.any():
        return {"part": name, "rank_correlation": 0.0, "similarity": 0.0}
    before, after = asked.heat.maps.numpy()[known], asked.of_other(model, asked.views).maps.numpy()[known]
    return {"part": name, "rank_correlation": float(rank_correlation(before, after).mean()),
            "similarity": float(structural_similarity(before, after).mean())}


# ---------------------------------------------------------------------------------------- deletion and insertion


def perturbation(asked: _Asked) -> dict:
    """Mean probability of the class along deletion and insertion in the order of the map, of chance and of a blob.

    Deleted pixels take the mean colour of the image, those not yet inserted come from a blurred copy. The area under
    the curve of one image, deletion small and insertion large, is its score; `gain` is insertion minus deletion.
    """
    orders = {"map": asked.maps, "random": _chance(asked), "blob": np.broadcast_to(blob(asked.maps.shape[1]),
                                                                                 asked.maps.shape)}
    curves, areas = {}, {}
    for name, maps in orders.items():
        deletion, insertion = _curves(asked, ranks(maps, asked.seed))
        curves[name] = {"deletion": deletion.mean(axis=0).tolist(), "insertion": insertion.mean(axis=0).tolist()}
        areas[name] = {"deletion": area(deletion), "insertion": area(insertion)}
        areas[name]["gain"] = areas[name]["insertion"] - areas[name]["deletion"]
    found = {"shares": [0.0, *SHARES, 1.0], "curves": curves,
             "areas": {name: {what: asked.mean(values) for what, values in of.items()} for name, of in areas.items()}}
    for other in ("random", "blob"):
        found[f"over_{other}"] = {what: asked.mean((-1 if what == "deletion" else 1) * (areas["map"][what]
                                                                                        - areas[other][what]))
                                  for what in ("deletion", "insertion", "gain")}
    return found


def _chance(asked: _Asked) -> np.ndarray:
    """Maps of even random numbers with as many cells as those of the block, as smooth as these."""
    rng = np.random.default_rng(asked.seed)
    cells = torch.from_numpy(rng.random(asked.heat.maps.shape, dtype=np.float32))
    return gradcam.upsample(cells, asked.maps.shape[1]).numpy()


def blob(size: int) -> np.ndarray:
    """(size, size) float32: a round bell in the middle, whose deviation is a quarter of the side."""
    away = (np.arange(size, dtype=np.float32) - (size - 1) / 2) / (size / 4)
    return np.exp(-(away[:, None] ** 2 + away**2) / 2)


def ranks(maps: np.ndarray, seed: int = 0) -> np.ndarray:
    """The place of every pixel from 0, the hottest, to below 1, in each map (N, S, S); lots are drawn among equals."""
    flat = maps.reshape(len(maps), -1)
    lots = np.random.default_rng(seed).random(flat.shape[1])
    places = np.empty(flat.shape)
    for row, values in zip(places, flat, strict=True):
        row[np.lexsort((lots, -values))] = np.arange(len(values)) / len(values)
    return places.reshape(maps.shape)


def _curves(asked: _Asked, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The probability of the class, (N, shares) each, while pixels are deleted, and while they are inserted."""
    views = asked.views
    grey = views.mean(dim=(2, 3), keepdim=True).expand_as(views)
    blurred = torch.stack([_blurred(view) for view in views])
    places = torch.from_numpy(places).to(views.device)[:, None]  # (N, 1, S, S)
    ends = [_probability(asked, shown) for shown in (views, grey, blurred)]
    inner = [places < share for share in SHARES]
    deletion = [_probability(asked, torch.where(first, grey, views)) for first in inner]
    insertion = [_probability(asked, torch.where(first, views, blurred)) for first in inner]
    return np.stack([ends[0], *deletion, ends[1]], axis=1), np.stack([ends[2], *insertion, ends[0]], axis=1)


def _blurred(view: torch.Tensor) -> torch.Tensor:
    """A view (3, S, S) out of which nothing smaller than a sixth of the picture can be seen."""
    picture = view.permute(1, 2, 0).cpu().numpy()
    soft = cv2.GaussianBlur(picture, (0, 0), picture.shape[0] / 12, borderType=cv2.BORDER_REFLECT_101)
    return torch.from_numpy(soft).permute(2, 0, 1).to(view)


def _probability(asked: _Asked, views: torch.Tensor) -> np.ndarray:
    with torch.inference_mode():
        logits = asked.model(views)
    return logits.double().softmax(dim=1).cpu().gather(1, asked.heat.classes[:, None])[:, 0].numpy()


def area(curves: np.ndarray) -> np.ndarray:
    """The area under each curve (N, shares) over the share of the pixels, (N,)."""
    return np.trapezoid(curves, [0.0, *SHARES, 1.0], axis=1)


# --------------------------------------------------------------------------------------------------------- stability


def stability(asked: _Asked) -> dict:
    """Mean rank correlation of each map with that of the picture moved by a pixel or two, and stored as JPEG."""
    known = ~asked.heat.blank.numpy()
    moved = np.mean([_after_shift(asked, down, right) for down, right in SHIFTS], axis=0)
    stored = torch.stack([_jpeg(view) for view in asked.views])
    after = _large(asked.of_other(asked.model, stored), asked.maps.shape[1])
    found = {"shift": moved, "jpeg": rank_correlation(asked.maps, after)}
    groups = asked.groups[known]
    return {name: metrics.mean_of(values[known], groups, seed=asked.seed) if known.any() else
            {"value": 0.0, "low": None, "high": None} for name, values in found.items()}


def _after_shift(asked: _Asked, down: int, right: int) -> np.ndarray:
    """The likeness of the maps before and after a move, where both show the same; the border is continued."""
    size, edge = asked.maps.shape[1], max(abs(down), abs(right))
    wide = functional.pad(asked.views, (edge,) * 4, mode="replicate")
    moved = wide[..., edge - down:edge - down + size, edge - right:edge - right + size]
    after = _large(asked.of_other(asked.model, moved), size)
    inside = slice(edge, size - edge)
    there = slice(edge + down, size - edge + down), slice(edge + right, size - edge + right)
    return rank_correlation(asked.maps[:, inside, inside], after[:, there[0], there[1]])


def _jpeg(view: torch.Tensor) -> torch.Tensor:
    picture = (view.permute(1, 2, 0).cpu().numpy()[..., ::-1] * 255).round().astype(np.uint8)
    content = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1]
    again = np.ascontiguousarray(cv2.imdecode(content, cv2.IMREAD_COLOR)[..., ::-1])
    return torch.from_numpy(again).permute(2, 0, 1).to(view) / 255


# ------------------------------------------------------------------------------------------------------ localisation


def localisation(asked: _Asked, masks: Mapping[str, np.ndarray]) -> dict:
    """How much of the heat lies where it should, beside a blob in the middle and the plain edges of the picture.

    Of each: energy (share of the heat inside the mask), pointing (share of images whose hottest pixel is inside; Zhang
    et al. 2018), iou (of the mask and as many hottest pixels). Images whose mask is empty or covers all are left out.
    """
    size = asked.maps.shape[1]
    inside = np.stack([masks[path] for path in asked.paths])
    margin = (inside.shape[1] - size) // 2
    inside = inside[:, margin:margin + size, margin:margin + size]
    share = inside.mean(axis=(1, 2))
    use = (share > 0) & (share < 1)
    if not use.any():
        return {"images": 0, "groups": 0}
    inside, groups = inside[use], asked.groups[use]
    heats = {"map": asked.maps[use], "blob": np.broadcast_to(blob(size), inside.shape),
             "edges": np.stack([edges(view) for view in asked.views[torch.from_numpy(use)]])}
    scores = {name: located(heat, inside, asked.seed) for name, heat in heats.items()}
    found = {"images": int(use.sum()), "groups": len(set(groups)), "mask_share": float(share[use].mean())}
    for name, of in scores.items():
        found[name] = {what: metrics.mean_of(values, groups, seed=asked.seed) for what, values in of.items()}
    for name in BASELINES:
        found[f"over_{name}"] = {what: metrics.mean_of(values - scores[name][what], groups, seed=asked.seed)
                                 for what, values in scores["map"].items()}
    return found


def located(heat: np.ndarray, masks: np.ndarray, seed: int = 0) -> dict[str, np.ndarray]:
    """Energy, pointing and IoU at matched area of maps (N, S, S) >= 0 and their masks, (N,) each; a blank map has 0."""
    total = heat.sum(axis=(1, 2))
    energy = np.divide((heat * masks).sum(axis=(1, 2)), total, out=np.zeros(len(heat)), where=total > 0)
    places = ranks(heat, seed)
    first = places == 0
    hot = places < masks.mean(axis=(1, 2), keepdims=True) - 1e-9  # as many pixels as the mask has
    iou = (hot & masks).sum(axis=(1, 2)) / (hot | masks).sum(axis=(1, 2))
    seen = total > 0
    return {"energy": energy, "pointing": ((first & masks).any(axis=(1, 2)) & seen).astype(float),
            "iou": np.where(seen, iou, 0.0)}


def edges(view: torch.Tensor) -> np.ndarray:
    """The size of the gradient of the grey picture (S, S) of a view (3, S, S): evidence of nothing."""
    grey = np.tensordot(np.array(augment.GREY, np.float32), view.cpu().numpy(), axes=1)
    down, right = np.gradient(grey)
    return np.hypot(down, right)


# -------------------------------------------------------------------------------------------------------- the verdict


def checks(facts: Mapping) -> dict[str, dict]:
    """Every check by name: what was asked, the number, what is demanded, whether it passed, and the reason if not."""
    drawn, over, steady = facts["randomisation"], facts["perturbation"], facts["stability"]
    alone = float(np.mean([part["rank_correlation"] for part in drawn["alone"]]))
    blank = facts["blank"] / facts["images"]
    evidence = _most("maps without any evidence", blank, BLANK,
                     "{number:.0%} of the maps are blank: nothing argues for the class the image was called")
    if blank == 1:
        return {"evidence": evidence}  # of maps that are not there nothing else can be asked
    found = {
        "evidence": evidence,
        "cascade": _most("likeness when all weights are drawn anew", drawn["cascade"][-1]["rank_correlation"], CHANGED,
                         "The maps stay alike when all weights are drawn anew (rank correlation {number:.3f}, at most "
                         f"{CHANGED} is allowed): they show the picture, not what was learnt"),
        "alone": _most("likeness when one part is drawn anew", alone, CHANGED,
                       "The maps stay alike when a part of the network is drawn anew (mean rank correlation "
                       f"{{number:.3f}}, at most {CHANGED} is allowed): they do not depend on all that was learnt"),
        "over_random": _above("gain over random maps", over["over_random"]["gain"],
                              "Deleting and inserting what the maps mark moves the probability no more than random "
                              "regions do"),
        "over_blob": _above("gain over a blob in the middle", over["over_blob"]["gain"],
                            "Deleting and inserting what the maps mark moves the probability no more than the middle "
                            "of the picture does"),
        "shift": _least("likeness after a shift of a pixel or two", steady["shift"],
                        "The maps change when the picture moves by a pixel or two"),
        "jpeg": _least("likeness after storing as JPEG", steady["jpeg"], "The maps change when the picture is stored "
                       "as JPEG"),
    }
    for name, words in BASELINES.items() if facts.get("localisation", {}).get("images") else ():
        found[f"over_{name}_on_masks"] = _above(
            f"energy on the masks over {words}", facts["localisation"][f"over_{name}"]["energy"],
            f"The maps put no more of their heat where it should lie than {words} would")
    return found


def _most(asked: str, value: float, bound: float, reason: str) -> dict:
    return {"asked": asked, "number": {"value": value, "low": None, "high": None}, "found": f"{value:.3f}",
            "demanded": f"at most {bound:g}", "passed": bool(value <= bound), "reason": reason.format(number=value)}


def _least(asked: str, number: dict, reason: str) -> dict:
    return {"asked": asked, "number": number, "found": metrics.readable(number), "demanded": f"at least {STEADY:g}",
            "passed": bool(number["value"] >= STEADY),
            "reason": f"{reason} (rank correlation {number['value']:.3f}, at least {STEADY:g} is demanded)"}


def _above(asked: str, number: dict, reason: str) -> dict:
    """Passed where the whole interval lies above 0; without one, where it has none because all images agree."""
    low = number["value"] if number["low"] is None else number["low"]
    return {"asked": asked, "number": number, "found": metrics.readable(number), "demanded": "interval above 0",
            "passed": bool(low > 0), "reason": f"{reason} (difference {metrics.readable(number)})"}


def _verdict(facts: Mapping) -> str:
    """A few sentences for a person."""
    failed, total = len(facts["reasons"]), len(facts["checks"])
    if not total:
        return f"There are no heatmaps to trust: no image is called {facts['of']}."
    called = f" called {facts['of']}" if facts["of"] else ""
    of = f"{facts['images']} images{called} of {facts['groups']} groups ({facts['method']} after {facts['block']})"
    words = [f"Do NOT trust these heatmaps: {failed} of {total} checks failed on {of}." if failed else
             f"Nothing speaks against these heatmaps: all {total} checks passed on {of}. That the evidence is "
             "medically sound is not among them."]
    words += ["So few groups prove little either way."] * (facts["groups"] < metrics.FEWEST_GROUPS)
    words += ["Whether they lie on what counts was not asked: there are no masks."] * ("localisation" not in facts)
    words += ["Maps of the other images were not examined: that something is absent has no place."] * bool(called)
    return " ".join(words)
