"""The overview figure of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from patholib.report.figures import learning, performance, style


@style.styled
def training_metrics(
    history,
    summary: Mapping,
    matrix,
    classes: Sequence[str],
    labels=None,
    probs=None,
    positive: str | None = None,
    kept: int | None = None,
    monitor: str = "auc",
    note: str = "",
) -> Figure:
    """A run on one page: losses, metrics, learning rate, frozen blocks; results, confusion matrix, ROC curves.

    summary: of `metrics.summary`. kept: see `learning.curves`. labels (N,), probs (N, C): of the images that are
    counted in the matrix; without them the page has no ROC curve.
    """
    table, matrix = style.frame(history), np.asarray(matrix)
    marked = learning.kept_epoch(table, kept)
    grow = min(0.34 * max(len(matrix) - 4, 0), 3)
    figure = style.open(15, 8.2 + grow, "Training and results", note)
    upper, lower = cast(
        np.ndarray, figure.subfigures(2, 1, height_ratios=(3.4, 4.4 + grow))
    )  # the stubs know one alone
    losses, scores, middle = upper.subplots(1, 3)
    learning.draw_losses(losses, table, marked)
    learning.draw_scores(scores, table, marked, monitor)
    learning.draw_rate(middle, table)
    if table["frozen"].min() < table["frozen"].max():
        _add_frozen(middle, table)
    bars, heat, roc = lower.subplots(1, 3, width_ratios=(1, 1.25, 1.05))
    performance.draw_intervals(bars, performance.headline(summary))
    performance.draw_confusion(heat, matrix, classes, side=4)
    if labels is None:
        style.words(roc, "no predictions, so no ROC curve")
    else:
        performance.draw_roc(roc, performance.ranked_classes(labels, probs, classes, positive))
    for axes, text in zip((losses, scores, middle), ("Loss", "Metrics", "Learning rate"), strict=True):
        axes.set_title(text, pad=16)
    for axes, text in zip((bars, heat, roc), ("Results", "Confusion matrix", "ROC"), strict=True):
        axes.set_title(text, pad=8)
    return figure


def _add_frozen(axes, table) -> None:
    """Frozen blocks in the plot of the learning rate, with an axis on the right."""
    other = axes.twinx()
    other.step(*style.stairs(table["epoch"], table["frozen"]), where="post", color=style.ORANGE, linewidth=1.2)
    other.set_ylabel("frozen blocks", color=style.ORANGE)
    other.set_ylim(0, table["frozen"].max() * 1.12)
    other.yaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    other.grid(False)
    axes.yaxis.label.set_color(style.BLUE)
