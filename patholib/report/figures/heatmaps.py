"""Figures of heatmaps and of their checks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from patholib.base.errors import PathoError
from patholib.report.figures import style


def overlay(image: np.ndarray, heat: np.ndarray, opacity: float = 0.45, cmap: str = "jet") -> np.ndarray:
    """The picture seen through its heat: uint8 (H, W, 3) from uint8 (H, W, 3) and heat in [0, 1] (H, W).

    A blank map (zero everywhere) leaves the picture as it is: a tint would look like an explanation.
    """
    image, heat = style.picture(image), np.asarray(heat, float)
    if heat.shape != image.shape[:2]:
        raise PathoError("shape_mismatch", "heat", f"is {heat.shape} on a picture of {image.shape[:2]}",
                         "Bring the map to the size of the picture first (gradcam.upsample)")
    if not np.isfinite(heat).all() or heat.min() < 0 or heat.max() > 1:
        raise PathoError("bad_heat", "heat", "has values outside [0, 1] or not finite", "Divide by the scale first")
    if not heat.any():
        return image.copy()
    colour = matplotlib.colormaps[cmap](heat)[..., :3] * 255  # (H, W, 3)
    return np.rint((1 - opacity) * image + opacity * colour).astype(np.uint8)


@style.styled
def gallery(images, heat, captions: Sequence[str], vmax: float | None = None, columns: int = 2,
            opacity: float = 0.45, title: str = "Where the evidence lies (Grad-CAM)", note: str = "") -> Figure:
    """Original, heat and overlay of each image, all on one scale with one colour bar.

    heat: (N, H, W) >= 0 in the size of the images. vmax: the value shown red; None: each map's own maximum, which hides
    that some maps are faint. A map that is zero everywhere says "blank map" and leaves its picture plain.
    """
    if len(images) == 0 or not len(images) == len(heat) == len(captions):
        raise PathoError("shape_mismatch", "gallery",
                         f"has {len(images)} images, {len(heat)} maps and {len(captions)} captions",
                         "Give one map and one caption per image")
    columns = min(columns, len(images))
    rows = math.ceil(len(images) / columns)
    side = 1.6
    figure = style.open(3 * side * columns + 0.9, (side + 0.36) * rows + 0.25, title, note)
    width_ratios = ([1, 1, 1, 0.1] * columns)[:-1]  # a narrow gap after each three
    cells = figure.subplots(rows, len(width_ratios), width_ratios=width_ratios, squeeze=False)
    for axes in cells.ravel():
        axes.set_axis_off()
    for i, (image, raw, caption) in enumerate(zip(images, heat, captions, strict=True)):
        row = cells[i // columns][4 * (i % columns):][:3]
        _draw_explained(row, style.picture(image), np.asarray(raw, float), caption, vmax, opacity, side)
        if i < columns:
            for axes, text in zip(row, ("original", "heat", "overlay"), strict=True):
                axes.set_title(text, fontsize=9, weight="normal", loc="center")
    _heat_bar(figure, vmax, "heat", ax=list(cells.ravel()), shrink=max(0.3, 0.9 / rows), aspect=18, pad=0.015)
    return figure


def _draw_explained(row, image, raw, caption: str, vmax, opacity: float, side: float, cmap: str = "jet") -> None:
    top = vmax if vmax is not None else raw.max()
    blank = not raw.any()
    share = raw if blank else np.clip(raw / top, 0, 1)
    for axes in row:
        axes.set_axis_on()
    style.show(row[0], image)
    style.show(row[1], share, cmap=cmap, vmin=0, vmax=1) if not blank else style.show(row[1], np.full_like(image, 240))
    style.show(row[2], overlay(image, share, opacity, cmap))
    row[1].set_xlabel(style.wrapped(caption, int(3 * side * 12)), fontsize=8, labelpad=3)
    if blank:
        row[1].text(0.5, 0.5, "blank map", transform=row[1].transAxes, ha="center", va="center", fontsize=9,
                    color=style.WARNING)


@style.styled
def heat_sheet(found, one_scale: bool = False, columns: int = 4, opacity: float = 0.45, title: str = "",
               note: str = "") -> Figure:
    """The sections of a `gradcam.gallery`: each picture beside its overlay, with its name, classes and probability.

    one_scale: red is the highest value of the whole sheet, so that faint maps look faint; else of each map. A map that
    is zero everywhere says "blank map".
    """
    if not len(found.table):
        raise PathoError("shape_mismatch", "gallery", "holds no picture", "Choose images first")
    places = list(found.sections.items())
    columns = min(columns, max(len(rows) for _, rows in places))
    wide, high, head = 2.7, 1.35 + 0.48, 0.34  # inches of a tile with its caption, and of a heading
    lines = [math.ceil(len(rows) / columns) for _, rows in places]
    title = title or f"Where the evidence lies ({found.method} after {found.block})"
    figure = style.open(max(wide * columns, 5.4) + 1.1, head * len(places) + high * sum(lines), title, note)
    figure.set_layout_engine("none")  # hundreds of axes would take it seconds; here every place is known
    width, height = figure.get_size_inches()
    top = head * len(places) + high * sum(lines)
    names = [Path(path).name for path in found.table["path"]]
    peak = float(found.heat.max()) if one_scale else None
    for (section, rows), count in zip(places, lines, strict=True):
        figure.text(0.1 / width, (top - 0.22) / height, style.plain(section), size=10, weight="bold")
        top -= head
        for k, row in enumerate(rows):
            left, bottom = wide * (k % columns) + 0.1, top - high * (k // columns) - 1.3
            axes = figure.add_axes((left / width, bottom / height, (wide - 0.15) / width, 1.28 / height))
            _draw_tile(axes, found.pictures[row], found.heat[row], peak, opacity)
            axes.set_xlabel(f"{style.plain(names[row], 38)}\n{style.wrapped(found.captions[row], 42)}", fontsize=7, labelpad=2)
        top -= high * count
    space = figure.add_axes(((width - 0.95) / width, (height - 2.6) / height, 0.12 / width, 1.5 / height))
    _heat_bar(figure, peak, found.method, cax=space)
    return figure


def _draw_tile(axes, picture, raw, peak: float | None, opacity: float) -> None:
    """A picture and its overlay side by side."""
    picture, blank = style.picture(picture), not raw.any()
    share = raw if blank else np.clip(raw / (peak or raw.max()), 0, 1)
    gap = np.full((len(picture), max(1, len(picture) // 50), 3), 255, np.uint8)
    style.show(axes, np.hstack([picture, gap, overlay(picture, share, opacity)]))
    if blank:
        axes.text(0.75, 0.5, "blank map", transform=axes.transAxes, ha="center", va="center", fontsize=8,
                  color=style.WARNING, bbox={"color": style.PAPER, "alpha": 0.8, "pad": 1.5})


def _heat_bar(figure, peak: float | None, method: str, **where) -> None:
    scale = matplotlib.cm.ScalarMappable(matplotlib.colors.Normalize(0, peak or 1), "jet")
    bar = figure.colorbar(scale, **where)
    bar.set_label("share of the map's\nown maximum" if peak is None else f"raw {method},\none scale for all")
    bar.outline.set_visible(False)


@style.styled
def trust(facts: Mapping, title: str = "", note: str = "") -> Figure:
    """What `trust.examine` found: likeness to maps without what was learnt, deletion, insertion, and localisation."""
    failed, total = len(facts["reasons"]), len(facts["checks"])
    if not total:
        return style.open(8, 0.1, title or facts["verdict"], note)
    title = title or (f"Not to be trusted: {failed} of {total} checks of the heatmaps failed" if failed else
                      f"All {total} checks of the heatmaps passed") + f" ({facts['method']} after {facts['block']})"
    figure = style.open(10.5, 5.4, title, note)
    (drawn, place), (deletion, insertion) = figure.subplots(2, 2)
    _draw_randomisation(drawn, facts)
    _draw_perturbation(deletion, facts, "deletion", "pixels deleted, hottest first (%)")
    _draw_perturbation(insertion, facts, "insertion", "pixels shown, hottest first (%)")
    _draw_localisation(place, facts)
    return figure


def _draw_randomisation(axes, facts) -> None:
    cascade, alone = facts["randomisation"]["cascade"], facts["randomisation"]["alone"]
    at = np.arange(len(cascade))
    axes.plot(at, [part["rank_correlation"] for part in cascade], "o-", color=style.BLUE, label="this part and all above")
    axes.plot(at, [part["rank_correlation"] for part in alone], "s", color=style.ORANGE, label="this part alone",
              linestyle=style.DASHES[1])
    axes.axhspan(facts["limits"]["changed"], 1.02, color=style.WARNING, alpha=0.08, linewidth=0)
    axes.text(at[-1], 0.98, "too alike", va="top", ha="right", fontsize=8, color=style.WARNING)
    axes.set(ylim=(-1.02 if _lowest(cascade + alone) < -0.2 else -0.3, 1.02), ylabel="rank correlation",
             title="Weights drawn anew: do the maps change?")
    axes.set_xticks(at, [style.wrapped(part["part"], 13) for part in cascade], fontsize=7)
    axes.legend(loc="best", fontsize=7.5)


def _lowest(parts) -> float:
    return min(part["rank_correlation"] for part in parts)


def _draw_perturbation(axes, facts, what: str, label: str) -> None:
    found = facts["perturbation"]
    for name, colour, dash in (("map", style.BLUE, "-"), ("random", style.FAINT, style.DASHES[1]), ("blob", style.GREEN, style.DASHES[2])):
        axes.plot(100 * np.array(found["shares"]), found["curves"][name][what], color=colour, linestyle=dash,
                  label=f"{name}: area {found['areas'][name][what]['value']:.3f}")
    axes.set(xlabel=label, ylabel="probability of the class", xlim=(0, 100), ylim=(0, 1.02),
             title=f"{what.capitalize()}: " + ("lower is better" if what == "deletion" else "higher is better"))
    axes.legend(loc="best", fontsize=7.5)


def _draw_localisation(axes, facts) -> None:
    found = facts.get("localisation") or {}
    axes.set_title("Do they lie where they should?")
    if not found.get("images"):
        axes.set_axis_off()
        axes.text(0.5, 0.5, "no masks: not asked", ha="center", color=style.FAINT, transform=axes.transAxes)
        return
    kinds, top = ("energy", "iou", "pointing"), found["mask_share"]
    for i, (name, colour) in enumerate((("map", style.BLUE), ("blob", style.GREEN), ("edges", style.FAINT))):
        numbers = [found[name][kind] for kind in kinds]
        values = np.array([number["value"] for number in numbers])
        ends = np.array([[n["value"] if n[end] is None else n[end] for n in numbers] for end in ("low", "high")])
        at = np.arange(len(kinds)) + 0.26 * (i - 1)
        axes.bar(at, values, width=0.24, color=colour, label=name, yerr=np.abs(ends - values), ecolor=style.INK,
                 error_kw={"linewidth": 1})
        top = max(top, ends.max(), values.max())
    axes.axhline(found["mask_share"], color=style.WARNING, linewidth=1, linestyle=style.DASHES[1])
    axes.text(2.5, found["mask_share"], "share of the mask", fontsize=7.5, color=style.WARNING, ha="right", va="bottom")
    axes.set(ylim=(0, min(1.02, 1.25 * top)), ylabel="value (0 to 1)")
    axes.set_xticks(range(3), ["heat on the mask", "IoU, same area", "peak on the mask"])
    axes.legend(loc="best", fontsize=7.5)


@style.styled
def explored(picture, heat, target: str, probs: Mapping[str, float] | None = None,
             threshold: tuple[str, float] | None = None, opacity: float = 0.45, cmap: str = "jet", title: str = "",
             note: str = "") -> Figure:
    """One image as the explorer shows it: original, evidence for `target`, overlay, and bars of the probabilities.

    heat: (H, W) >= 0, raw, in the size of the picture; the colour bar has its values. probs: of each class in their
    order; None: no bars. threshold: (class, value), marked on the bar of that class.
    """
    picture, raw, side = style.picture(picture), np.asarray(heat, float), 2.9
    bars = () if probs is None else (0.12, 0.95)  # a gap, for the numbers of the colour bar, and the bars
    figure = style.open(side * (3.2 + sum(bars)) + 0.9, side + 0.3, title, note)
    cells = figure.subplots(1, 4 + len(bars), width_ratios=(1, 1, 1, 0.05, *bars))
    top = raw.max() if raw.any() else 1.0
    _draw_explained(cells[:3], picture, raw, "", top, opacity, side, cmap)
    for axes, text in zip(cells, ("original", f"evidence for {style.plain(target, 28)}", "overlay"), strict=False):
        axes.set_title(text, fontsize=9.5, weight="normal", loc="center")
    scale = matplotlib.cm.ScalarMappable(matplotlib.colors.Normalize(0, top), cmap)
    cells[3].set_anchor("W")
    bar = figure.colorbar(scale, cax=cells[3])
    bar.set_label("raw evidence, this map's own scale")
    bar.outline.set_visible(False)
    if bars:
        cells[4].set_axis_off()
        _draw_probs(cells[5], probs, threshold)
    return figure


def _draw_probs(axes, probs: Mapping[str, float], threshold: tuple[str, float] | None) -> None:
    places = range(len(probs))
    axes.barh(places, list(probs.values()), height=0.6, color=style.BLUE)
    for place, value in zip(places, probs.values(), strict=True):
        axes.text(max(value, 0) + 0.02, place, f"{value:.1%}", va="center", fontsize=8.5)
    if threshold is not None:
        at = list(probs).index(threshold[0])
        axes.plot([threshold[1]] * 2, [at - 0.45, at + 0.45], color=style.INK, linewidth=1.6)
        axes.set_xlabel(f"line: threshold {threshold[1]:.3g}")
    axes.set(xlim=(0, 1.2), ylim=(len(probs) - 0.4, -0.6), xticks=[0, 0.5, 1])
    axes.set_yticks(places, [style.wrapped(name, 16) for name in probs])
    axes.set_title("probability", fontsize=9.5, weight="normal", loc="center")
    axes.tick_params(axis="y", length=0)
    axes.grid(False, axis="y")
