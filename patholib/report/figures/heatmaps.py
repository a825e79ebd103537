"""Figures of heatmaps and of their checks."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from PIL import Image, ImageDraw

from patholib.base.errors import PathoError
from patholib.judge.trust import NOT_SHOWN, REFUTED, SUPPORTED, covering, summary
from patholib.report.figures import style

LINES = 20  # most lines of pictures on one sheet
BARS = 8  # most classes whose probabilities stand beside an explored image
STATES = {SUPPORTED: style.GREEN, NOT_SHOWN: style.FAINT, REFUTED: style.WARNING}


def overlay(image: np.ndarray, heat: np.ndarray, opacity: float = 0.45, cmap: str = "jet") -> np.ndarray:
    """The picture seen through its heat: uint8 (H, W, 3) from uint8 (H, W, 3) and heat in [0, 1] (H, W).

    A blank map (zero everywhere) leaves the picture as it is: a tint would look like an explanation.
    """
    image, heat = style.picture(image), np.asarray(heat, float)
    if not np.isfinite(heat).all() or heat.min() < 0 or heat.max() > 1:
        raise PathoError("bad_heat", "heat", "has values outside [0, 1] or not finite", "Divide by the scale first")
    if not heat.any():
        return image.copy()
    colour = matplotlib.colormaps[cmap](heat)[..., :3] * 255  # (H, W, 3)
    return np.rint((1 - opacity) * image + opacity * colour).astype(np.uint8)


# -------------------------------------------------------------------------------------------------------- galleries


@style.styled
def heat_sheet(found, one_scale: bool = False, note: str = "", facts: Mapping | None = None) -> Figure:
    """The sections of a `gradcam.gallery`: each picture beside its overlay, with its name, classes and probability.

    one_scale: red is the highest value of the whole sheet, so that faint maps look faint; else of each map. A map that
    is zero everywhere says "blank map". Sections beyond 20 lines of pictures are left out, and the title says so.
    facts: of trust.json; the verdict, or that there was no check, stands at the top.
    """
    columns = min(4, max(len(rows) for rows in found.sections.values()))
    lines = {name: math.ceil(len(rows) / columns) for name, rows in found.sections.items()}
    below = np.cumsum(list(lines.values()))
    places = [place for place, line in zip(found.sections.items(), below, strict=True) if line <= max(LINES, below[0])]
    title = f"{style.method_name(found.method)} for the predicted class, after {found.block}"
    if len(places) < len(lines):
        title += f" (the first {len(places)} of {len(lines)} sections)"
    wide, high, head = 2.7, 1.35 + 0.48, 0.34  # inches of a tile with its caption, and of a heading
    top = head * len(places) + high * sum(lines[name] for name, _ in places)
    note = " - ".join(filter(None, [note, summary(covering(facts, found.block, found.method))]))
    figure = style.open(max(wide * columns, 5.4) + 1.1, top, title, note)
    figure.set_layout_engine("none")  # hundreds of axes would take it seconds; here every place is known
    width, height = figure.get_size_inches()
    peak = float(found.heat.max()) if one_scale else None
    for section, rows in places:
        figure.text(0.1 / width, (top - 0.22) / height, style.plain(section), size=10, weight="bold")
        top -= head
        for k, row in enumerate(rows):
            left, bottom = wide * (k % columns) + 0.1, top - high * (k // columns) - 1.3
            axes = figure.add_axes((left / width, bottom / height, (wide - 0.15) / width, 1.28 / height))
            _draw_tile(axes, found, row, peak)
        top -= high * lines[section]
    space = figure.add_axes(((width - 0.95) / width, (height - 2.6) / height, 0.12 / width, 1.5 / height))
    scale = matplotlib.cm.ScalarMappable(matplotlib.colors.Normalize(0, peak or 1), "jet")
    bar = figure.colorbar(scale, cax=space)
    bar.set_label("share of the map's\nown maximum" if peak is None else "raw values,\none scale for all")
    bar.outline.set_visible(False)
    return figure


def _draw_tile(axes, found, row: int, peak: float | None) -> None:
    """A picture and its overlay side by side, with the caption."""
    picture, raw = style.picture(found.pictures[row]), found.heat[row]
    blank = not raw.any()
    share = raw if blank else np.clip(raw / (peak or raw.max()), 0, 1)
    gap = np.full((len(picture), max(1, len(picture) // 50), 3), 255, np.uint8)
    style.show(axes, np.hstack([picture, gap, overlay(picture, share)]))
    name = style.plain(Path(found.table["path"].iloc[row]).name, 38)
    axes.set_xlabel(f"{name}\n{style.wrapped(found.captions[row], 42)}", fontsize=7, labelpad=2)
    if blank:
        axes.text(
            0.75,
            0.5,
            "blank map",
            transform=axes.transAxes,
            ha="center",
            va="center",
            fontsize=8,
            color=style.WARNING,
            bbox={"color": style.PAPER, "alpha": 0.8, "pad": 1.5},
        )


# ----------------------------------------------------------------------------------------------- checks of heatmaps


@style.styled
def trust(facts: Mapping, note: str = "") -> Figure:
    """What `trust.examine` found: how far every check is from its null, with the interval, on a scale of its own.

    Checks of version 0.1, which had limits and no nulls, are not drawn; the title is their verdict.
    """
    checks = facts["checks"] if "state" in facts else {}
    if not checks:
        return style.open(8, 0.1, facts["verdict"], note)
    title = f"{summary(facts)} ({style.method_name(facts['method'])} after {facts['block']})"
    figure = style.open(8, 0.85 * len(checks) + 0.2, title, note)
    for axes, check in zip(figure.subplots(len(checks), 1, squeeze=False)[:, 0], checks.values(), strict=True):
        _draw_check(axes, check)
    axes.set_xlabel("heatmaps minus null; the interval is over groups")
    return figure


def _draw_check(axes, check: Mapping) -> None:
    number, colour = check["number"], STATES[check["state"]]
    ends = [number[end] for end in ("low", "value", "high") if number[end] is not None]
    axes.plot(ends, [0] * len(ends), color=colour, linewidth=2.5)
    if number["value"] is not None:
        axes.plot(number["value"], 0, "o", color=colour)
    axes.axvline(0, color=style.INK, linewidth=1)
    axes.set(xlim=(min([*ends, 0]) - 0.02, max([*ends, 0]) + 0.02), yticks=[])
    axes.set_title(f"{check['asked']}: {check['state']}", loc="left", fontsize=8.5, color=colour)


# --------------------------------------------------------------------------------------- one image, for the explorer


@style.styled
def explored(
    picture,
    heat,
    target: str,
    probs: Mapping[str, float],
    threshold: tuple[str, float] | None = None,
    opacity: float = 0.45,
    cmap: str = "jet",
    title: str = "",
    note: str = "",
    method: str = "gradcam",
    verdict: str = "not checked",
) -> Figure:
    """One image as the explorer shows it: the sheet of `panels`, and bars of the probabilities.

    probs: of each class in their order, of which the 8 largest are drawn. threshold: (class, value), marked on the bar
    of that class. verdict: of the heatmap checks, below the pictures.
    """
    sheet = _sheet(picture, heat, target, opacity, cmap, method)
    high, bars = 2.9, 3.2  # inches
    wide = high * sheet.width / sheet.height
    said = style.wrapped(f"Heatmap checks: {verdict}", int(15 * (wide + bars)), 4)
    figure = style.open(wide + bars, high + 0.5 + 0.16 * (said.count("\n") + 1), title, note)
    figure.supxlabel(said, x=0.08 / (wide + bars), ha="left", fontsize=8.5)
    left, right = figure.subplots(1, 2, width_ratios=(wide, bars))
    style.show(left, sheet, "colours: raw values, scale of this map alone", 60)
    _draw_probs(right, probs, threshold)
    return figure


def three(picture: np.ndarray, raw: np.ndarray, peak: float, opacity: float, cmap: str) -> tuple[np.ndarray, ...]:
    """Picture, heat alone (grey where it is zero everywhere) and overlay, each (H, W, 3) uint8; peak: what is red."""
    share = np.clip(raw / peak, 0, 1) if peak > 0 else raw
    alone = overlay(np.full_like(picture, 240), share, 1, cmap)
    return picture, alone, overlay(picture, share, opacity, cmap)


def _draw_probs(axes, probs: Mapping[str, float], threshold: tuple[str, float] | None) -> None:
    title = "predicted probability"
    if len(probs) > BARS:
        largest = sorted(probs, key=lambda name: -probs[name])[:BARS]
        title = f"{title}\n({BARS} largest of {len(probs)})"
        probs = {name: p for name, p in probs.items() if name in largest}
    axes.barh(range(len(probs)), list(probs.values()), height=0.6, color=style.BLUE)
    for place, value in enumerate(probs.values()):
        axes.text(max(value, 0) + 0.02, place, f"{value:.2f}", va="center", fontsize=8.5)
    if threshold is not None and threshold[0] in probs:
        at = list(probs).index(threshold[0])
        axes.plot([threshold[1]] * 2, [at - 0.45, at + 0.45], color=style.INK, linewidth=1.6)
        axes.set_xlabel(f"line: threshold {threshold[1]:.3g}")
    axes.set(xlim=(0, 1.2), xticks=[0, 0.5, 1])
    style.rows(axes, [style.wrapped(name, 16) for name in probs])
    axes.set_title(title, fontsize=9.5, weight="normal", loc="center")


def panels(picture, heat, target: str, opacity: float = 0.45, cmap: str = "jet", method: str = "gradcam") -> bytes:
    """Original, heatmap for `target` and overlay with the colours' values as PNG, in a tenth of the time of a Figure.

    heat: (H, W) >= 0, raw, in the size of the picture. Every pixel is enlarged by the same whole factor, so that its
    edges stay sharp.
    """
    content = io.BytesIO()
    _sheet(picture, heat, target, opacity, cmap, method).save(content, "PNG", compress_level=2)
    return content.getvalue()


def _sheet(picture, heat, target: str, opacity: float, cmap: str, method: str) -> Image.Image:
    picture, raw = style.picture(picture), np.asarray(heat, float)
    factor = math.ceil(style.PANEL / len(picture))
    side, gap, head, bar = len(picture) * factor, 14, 44, 26
    sheet = Image.new("RGB", (3 * side + 3 * gap + bar + 118, head + side + 4), style.PAPER)
    draw, font = ImageDraw.Draw(sheet), style.font(25)
    names = ("original", f"{style.method_name(method)} for {style.plain(target, 24)}", "overlay")
    for i, (part, name) in enumerate(zip(three(picture, raw, raw.max(), opacity, cmap), names, strict=True)):
        large = part.repeat(factor, axis=0).repeat(factor, axis=1)
        sheet.paste(Image.fromarray(large), (i * (side + gap), head))
        draw.text((i * (side + gap) + side / 2, head / 2 - 2), name, style.INK, font, anchor="mm")
    if not raw.any():
        draw.text((side + gap + side / 2, head + side / 2), "blank map", style.WARNING, font, anchor="mm")
        return sheet
    left = 3 * (side + gap)
    ramp = matplotlib.colormaps[cmap](np.linspace(1, 0, side))[:, None, :3] * 255  # (side, 1, 3)
    sheet.paste(Image.fromarray(ramp.repeat(bar, axis=1).astype(np.uint8)), (left, head))
    for share in (0, 0.25, 0.5, 0.75, 1):
        at = head + (1 - share) * (side - 20) + 10  # the outer numbers stay within the bar's height
        draw.text((left + bar + 8, at), f"{share * raw.max():.2g}", style.INK, font, anchor="lm")
    return sheet
