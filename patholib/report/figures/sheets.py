"""Figures of images: contact sheets, class counts, augmented views."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from patholib.base.errors import PathoError
from patholib.report.figures import style

STACKED = 20  # classes; of more, the splits of a class share one bar


@style.styled
def contact_sheet(images, captions: Sequence[str], columns: int = 6, title: str = "Images", note: str = "") -> Figure:
    """Images in rows of `columns`, each with its caption; sizes may differ."""
    if len(images) == 0 or len(images) != len(captions):
        raise PathoError(
            "shape_mismatch",
            "contact sheet",
            f"has {len(images)} images and {len(captions)} captions",
            "Give at least one image and one caption each",
        )
    columns = min(columns, len(images))
    rows = math.ceil(len(images) / columns)
    side = min(1.75, 10.5 / columns)
    figure = style.open(max(side * columns, 3.5), (side + 0.35) * rows, title, note)
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, image, caption in zip(grid, images, captions, strict=False):
        style.show(axes, style.picture(image), caption, width=int(side * 13))
    for axes in grid[len(images) :]:
        axes.set_axis_off()
    return figure


@style.styled
def class_counts(
    table: pd.DataFrame, classes: Sequence[str] | None = None, group_name: str = "group", note: str = ""
) -> Figure:
    """Images and groups of each class in each split, from a split table (columns label, split, group).

    Of more than 20 classes the splits of a class share one bar.
    """
    classes = list(classes) if classes is not None else sorted(table["label"].unique())
    splits = [s for s in style.SPLITS if s in set(table["split"])]
    counts = {"image": table.groupby(["label", "split"]).size()}
    if "group" in table:
        counts[group_name] = table.groupby(["label", "split"])["group"].nunique()
    lanes = 1 if len(classes) > STACKED else len(splits)
    places = np.arange(len(classes)) * (lanes + (1.0 if lanes > 1 else 0.3))
    title = " and ".join(f"{what}s" for what in counts).capitalize() + " of each class"
    figure = style.open(4.6 * len(counts) + 0.8, 0.75 + 0.17 * (places[-1] + lanes + 1), title, note)
    panels = figure.subplots(1, len(counts), sharey=True, squeeze=False)[0]
    for axes, (what, count) in zip(panels, counts.items(), strict=True):
        values = {s: np.array([count.get((c, s), 0) for c in classes], int) for s in splits}
        _draw_bars(axes, places, values, lanes)
        axes.set_xlabel(f"number of {what}s")
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
        axes.grid(False, axis="y")
        axes.tick_params(axis="y", length=0)
    panels[0].set_yticks(places + (lanes - 1) / 2)
    style.class_ticks(panels[0].yaxis, classes, 26 if lanes > 1 else 60)
    panels[0].set_ylim(places[-1] + lanes, -1)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower right", ncols=3)
    return figure


def _draw_bars(axes, places: np.ndarray, values: dict[str, np.ndarray], lanes: int) -> None:
    """The counts of each split: in a lane of its own, or behind each other in one lane, with the sum."""
    ends = np.zeros(len(places), int)
    total = np.sum(list(values.values()), axis=0)
    largest = max((total if lanes == 1 else np.array(list(values.values()))).max(), 1)
    for i, (name, numbers) in enumerate(values.items()):
        at, left = (places, ends) if lanes == 1 else (places + i, 0)
        look = {"height": 0.86, "color": style.SPLITS[name], "label": style.SPLIT_NAMES[name]}
        bars = axes.barh(at, numbers, left=left, **look)
        ends = ends + numbers
        if lanes > 1 or i == len(values) - 1:
            told = total if lanes == 1 else numbers
            texts = axes.bar_label(bars, [f"{n:,}" for n in told], fontsize=7.5, padding=2)
            for text, number in zip(texts, told, strict=True):
                text.set_color(style.INK if number else style.WARNING)
    axes.set_xlim(0, 1.16 * largest)


@style.styled
def augmented(
    images, views, captions: Sequence[str] = (), title: str = "Training images after augmentation", note: str = ""
) -> Figure:
    """Each image beside its views, one image per row.

    images: N pictures; views: (V, N, ...) as `augment.tta_views` gives them, or a list of V batches of N.
    """
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
