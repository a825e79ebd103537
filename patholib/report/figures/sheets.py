"""Figures of images: contact sheets, class counts, augmented views."""

from __future__ import annotations

import math
from collections.abc import Sequence

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image, ImageDraw

from patholib.base.errors import PathoError
from patholib.report.figures import heatmaps, style


@style.styled
def contact_sheet(images, captions: Sequence[str], columns: int = 6, title: str = "Images", note: str = "") -> Figure:
    """Images in rows of `columns`, each with its caption; sizes may differ."""
    if len(images) == 0 or len(images) != len(captions):
        raise PathoError("shape_mismatch", "contact sheet", f"has {len(images)} images and {len(captions)} captions",
                         "Give at least one image and one caption each")
    columns = min(columns, len(images))
    rows = math.ceil(len(images) / columns)
    side = min(1.75, 10.5 / columns)
    figure = style.open(max(side * columns, 3.5), (side + 0.35) * rows, title, note)
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, image, caption in zip(grid, images, captions, strict=False):
        style.show(axes, style.picture(image), caption, width=int(side * 13))
    for axes in grid[len(images):]:
        axes.set_axis_off()
    return figure


@style.styled
def class_counts(table: pd.DataFrame, classes: Sequence[str] | None = None, group_name: str = "group",
                 title: str = "Images and groups per class", note: str = "") -> Figure:
    """Images and groups of each class in each split, from a split table (columns label, split, group)."""
    classes = list(classes) if classes is not None else sorted(table["label"].unique())
    splits = [s for s in style.SPLITS if s in set(table["split"])]
    counts = [("images", table.groupby(["label", "split"]).size())]
    if "group" in table:
        counts.append((f"{group_name}s", table.groupby(["label", "split"])["group"].nunique()))
    figure = style.open(4.6 * len(counts) + 0.8, 0.75 + 0.17 * (len(splits) + 1) * len(classes), title, note)
    panels = figure.subplots(1, len(counts), sharey=True, squeeze=False)[0]
    places = np.arange(len(classes)) * (len(splits) + 1.0)
    for axes, (what, count) in zip(panels, counts, strict=True):
        largest = max(count.max(), 1)
        for i, name in enumerate(splits):
            values = [int(count.get((c, name), 0)) for c in classes]
            axes.barh(places + i, values, height=0.86, color=style.SPLITS[name], label=name)
            for place, value in zip(places + i, values, strict=True):
                axes.text(value + 0.012 * largest, place, f"{value:,}", va="center", fontsize=7.5,
                          color=style.INK if value else style.WARNING)
        axes.set(xlabel=f"number of {what}", xlim=(0, 1.16 * largest))
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
        axes.grid(False, axis="y")
        axes.tick_params(axis="y", length=0)
    panels[0].set_yticks(places + (len(splits) - 1) / 2)
    style.class_ticks(panels[0].yaxis, classes, 26)
    panels[0].set_ylim(places[-1] + len(splits), -1)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower right", ncols=3)
    return figure


@style.styled
def augmented(images, views, captions: Sequence[str] = (), title: str = "What the model sees in training",
              note: str = "") -> Figure:
    """Each image beside its views, one image per row.

    images: N pictures; views: (V, N, ...) as `augment.tta_views` gives them, or a list of V batches of N.
    """
    if not len(images) or not len(views) or any(len(batch) != len(images) for batch in views):
        raise PathoError("shape_mismatch", "views", f"do not match {len(images)} images",
                         "Give a list of batches, each with one view per image")
    columns = 1 + len(views)
    side = min(1.7, 11 / columns)
    figure = style.open(max(side * columns, 4), (side + 0.1) * len(images) + 0.25, title, note)
    grid = figure.subplots(len(images), columns, squeeze=False)
    for i, row in enumerate(grid):
        style.show(row[0], style.picture(images[i]))
        for axes, batch in zip(row[1:], views, strict=True):
            style.show(axes, style.picture(batch[i]))
        if captions:
            row[0].set_ylabel(style.wrapped(captions[i], int(side * 11)), fontsize=8)
    grid[0][0].set_title("original", fontsize=9)
    grid[0][1].set_title("views" if len(views) > 1 else "view", fontsize=9)
    return figure


def panels(picture, heat, target: str, opacity: float = 0.45, cmap: str = "jet") -> bytes:
    """As `explored` without its bars, as PNG: for a screen that waits, where a Figure would take ten times as long.

    Every pixel is enlarged by the same whole factor, so that its edges stay sharp.
    """
    picture, raw = style.picture(picture), np.asarray(heat, float)
    top, blank = raw.max(), not raw.any()
    share = raw if blank else raw / top
    coloured = np.full_like(picture, 240) if blank else heatmaps.overlay(picture, share, 1, cmap)
    factor = math.ceil(style.PANEL / len(picture))
    side, gap, head, bar = len(picture) * factor, 14, 44, 26
    sheet = Image.new("RGB", (3 * side + 3 * gap + bar + 118, head + side + 4), style.PAPER)
    draw, font = ImageDraw.Draw(sheet), style.font(25)
    shown_names = ("original", f"evidence for {style.plain(target, 24)}", "overlay")
    for i, (part, name) in enumerate(zip((picture, coloured, heatmaps.overlay(picture, share, opacity, cmap)), shown_names,
                                         strict=True)):
        large = part.repeat(factor, axis=0).repeat(factor, axis=1)
        sheet.paste(Image.fromarray(large), (i * (side + gap), head))
        draw.text((i * (side + gap) + side / 2, head / 2 - 2), name, style.INK, font, anchor="mm")
    if blank:
        draw.text((side + gap + side / 2, head + side / 2), "blank map", style.WARNING, font, anchor="mm")
        return style.encoded(sheet)
    left = 3 * (side + gap)
    ramp = matplotlib.colormaps[cmap](np.linspace(1, 0, side))[:, None, :3] * 255  # (side, 1, 3)
    sheet.paste(Image.fromarray(ramp.repeat(bar, axis=1).astype(np.uint8)), (left, head))
    for part in (0, 0.25, 0.5, 0.75, 1):
        at = head + (1 - part) * (side - 20) + 10  # the outer numbers stay within the bar's height
        draw.text((left + bar + 8, at), f"{part * top:.2g}", style.INK, font, anchor="lm")
    return style.encoded(sheet)
