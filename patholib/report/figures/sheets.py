"""Figures of images: contact sheets and augmented views."""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.figure import Figure

from patholib.report.figures import style


@style.styled
def contact_sheet(images, captions: Sequence[str], columns: int = 6, title: str = "Images", note: str = "") -> Figure:
    """Images in rows of `columns`, each with its caption; sizes may differ."""
    columns = min(columns, len(images))
    rows = math.ceil(len(images) / columns)
    side = min(1.75, 10.5 / columns)
    figure = style.open(max(side * columns, 3.5), (side + 0.35) * rows, title, note)
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, (image, caption) in zip(grid, zip(images, captions, strict=True), strict=False):
        style.show(axes, style.picture(image), caption, width=int(side * 13))
    for axes in grid[len(images) :]:
        axes.set_axis_off()
    return figure


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
