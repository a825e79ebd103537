"""Every figure of the project: plain data in, one closed matplotlib Figure out, the same calm style throughout.

A figure is closed so that a notebook cell that ends in it shows it once. Colours are Okabe and Ito's, which people with
colour-blindness tell apart; where several lines share a plot the dash pattern differs too. `note` stands above the
title of every figure; demo runs say there that they are no result.
"""

from __future__ import annotations

import functools
import io
import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from PIL import Image, ImageDraw, ImageFont

from patholib import files, metrics
from patholib.errors import PathoError, shown

INK, FAINT, PAPER, WARNING = "#2b3440", "#8a94a0", "#ffffff", "#a83a00"
BLUE, ORANGE, GREEN, PINK = "#0072b2", "#d55e00", "#009e73", "#cc79a7"
COLOURS = (BLUE, ORANGE, GREEN, PINK, "#56b4e9", "#e69f00", "#4d4d4d", "#7a5195")  # Okabe & Ito, yellow left out
MARKERS = "osD^v<>P"
DASHES = ("-", (0, (5, 1.5)), (0, (1.2, 1.2)), (0, (6, 1.5, 1.2, 1.5)))
SPLITS = {"train": BLUE, "val": ORANGE, "test": GREEN}
SCREEN_DPI, FILE_DPI = 100, 160
PANEL = 420  # fewest pixels on a side of a picture that `panels` draws: about twice what a page shows

STYLE = {
    "figure.dpi": SCREEN_DPI, "figure.facecolor": PAPER, "savefig.facecolor": PAPER,
    "font.family": "DejaVu Sans", "font.size": 9.5, "text.color": INK,
    "text.parse_math": False,  # a class may be called "$x_1$"
    "axes.titlesize": 10, "axes.titleweight": "bold", "axes.titlelocation": "left", "axes.titlecolor": INK,
    "axes.labelsize": 9.5, "axes.labelcolor": INK, "axes.edgecolor": FAINT, "axes.linewidth": 0.8,
    "axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True,
    "axes.grid": True, "grid.color": "#e8ebee", "grid.linewidth": 0.8,
    "xtick.color": FAINT, "ytick.color": FAINT, "xtick.labelcolor": INK, "ytick.labelcolor": INK,
    "xtick.labelsize": 8.5, "ytick.labelsize": 8.5, "xtick.major.size": 3, "ytick.major.size": 3,
    "legend.framealpha": 0.8, "legend.edgecolor": "none", "legend.fontsize": 8.5,
    "lines.linewidth": 1.8, "lines.markersize": 4,
}


def _styled(draw):
    """Draws with the project's style and leaves the caller's settings as they were."""

    @functools.wraps(draw)
    def figure(*args, **kwargs) -> Figure:
        with matplotlib.rc_context(STYLE):
            return draw(*args, **kwargs)

    return figure


def _open(width: float, height: float, title: str, note: str) -> Figure:
    """An empty closed figure, `height` inches below the title and the note, which stand in a strip of their own."""
    letters = int(width * 13)  # of the title's size in one line
    lines = textwrap.wrap(_plain(title, 400), letters) if title else []
    notes = textwrap.wrap(_plain(note, 400), int(letters * 1.15)) if note else []
    strip = 0.10 + 0.20 * len(lines) + 0.19 * len(notes) if lines or notes else 0
    height += strip
    figure = plt.figure(figsize=(width, height), layout="constrained")
    plt.close(figure)
    figure.get_layout_engine().set(rect=(0, 0, 1, 1 - strip / height), w_pad=0.06, h_pad=0.06)
    top = 1 - 0.05 / height
    for text, step, look in [(t, 0.19, {"size": 8.5, "color": WARNING, "weight": "bold"}) for t in notes] + \
                            [(t, 0.20, {"size": 11, "weight": "bold"}) for t in lines]:
        figure.text(0.08 / width, top, text, va="top", ha="left", **look)
        top -= step / height
    return figure


def _plain(text, width: int = 60) -> str:
    """`text` on one line with control characters made visible, cut in the middle to `width` characters."""
    text = shown(text)
    return text if len(text) <= width else f"{text[:width - width // 3 - 1]}…{text[-(width // 3):]}"


def _wrapped(text, width: int, lines: int = 2) -> str:
    """`text` in at most `lines` lines of `width` characters."""
    text = _plain(text, max(int(width * lines * 0.85), 6))  # lines break before they are full
    return "\n".join(textwrap.wrap(text, max(width, 4), max_lines=lines, placeholder="…"))


def _frame(history) -> pd.DataFrame:
    """A history, given as DataFrame or as list of dicts, with numbers for columns (text becomes NaN)."""
    table = pd.DataFrame(history)
    if table.empty or "epoch" not in table:
        raise PathoError("empty_history", "history", "has no epoch to draw", "Train at least one epoch first")
    return table.apply(pd.to_numeric, errors="coerce")


def _picture(image) -> np.ndarray:
    """(H, W, 3) uint8 from uint8 (H, W, 3) or float in [0, 1], with the channels first or last."""
    image = np.asarray(image)
    if image.ndim == 3 and image.shape[0] == 3 and image.shape[2] != 3:
        image = image.transpose(1, 2, 0)
    if image.ndim != 3 or image.shape[2] != 3:
        raise PathoError("not_a_picture", "image", f"has shape {image.shape}", "Give (H, W, 3) or (3, H, W)")
    return image if image.dtype == np.uint8 else np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)


def _show(axes, image, caption: str = "", width: int = 24, **look) -> None:
    """One picture without ticks, its caption below in at most two lines."""
    axes.imshow(image, interpolation="nearest", **look)
    axes.set(xticks=[], yticks=[])
    axes.grid(False)
    axes.spines[:].set_visible(False)
    if caption:
        axes.set_xlabel(_wrapped(caption, width), fontsize=8, labelpad=3)


def _by_epoch(axes, epochs) -> None:
    """An x axis of whole epochs, with room for a single one."""
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, min_n_ticks=1))
    low, high = float(np.min(epochs)), float(np.max(epochs))
    margin = 0.03 * (high - low) or 0.5
    axes.set_xlim(low - margin, high + margin)


def _class_ticks(axis, classes, width: int = 22, rotate: bool = False) -> None:
    names = [_wrapped(name, width) for name in classes]
    if rotate:
        axis.set_ticks(axis.get_ticklocs(), names, rotation=40, ha="right", rotation_mode="anchor")
    else:
        axis.set_ticks(axis.get_ticklocs(), names)


def _checked_classes(classes, size: int, subject: str) -> list[str]:
    if len(classes) != size:
        raise PathoError("shape_mismatch", subject, f"has {size} classes, but {len(classes)} names are given",
                         "Give one name per class, in the order of the model's outputs")
    return [str(c) for c in classes]


# ----------------------------------------------------------------------------------------------------------- the data


@_styled
def contact_sheet(images, captions: Sequence[str], columns: int = 6, title: str = "Images", note: str = "") -> Figure:
    """Images in rows of `columns`, each with its caption; sizes may differ."""
    if len(images) == 0 or len(images) != len(captions):
        raise PathoError("shape_mismatch", "contact sheet", f"has {len(images)} images and {len(captions)} captions",
                         "Give at least one image and one caption each")
    columns = min(columns, len(images))
    rows = math.ceil(len(images) / columns)
    side = min(1.75, 10.5 / columns)
    figure = _open(max(side * columns, 3.5), (side + 0.35) * rows, title, note)
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, image, caption in zip(grid, images, captions, strict=False):
        _show(axes, _picture(image), caption, width=int(side * 13))
    for axes in grid[len(images):]:
        axes.set_axis_off()
    return figure


@_styled
def class_counts(table: pd.DataFrame, classes: Sequence[str] | None = None, group_name: str = "group",
                 title: str = "Images and groups per class", note: str = "") -> Figure:
    """Images and groups of each class in each split, from a split table (columns label, split, group)."""
    classes = list(classes) if classes is not None else sorted(table["label"].unique())
    splits = [s for s in SPLITS if s in set(table["split"])]
    counts = [("images", table.groupby(["label", "split"]).size())]
    if "group" in table:
        counts.append((f"{group_name}s", table.groupby(["label", "split"])["group"].nunique()))
    figure = _open(4.6 * len(counts) + 0.8, 0.75 + 0.17 * (len(splits) + 1) * len(classes), title, note)
    panels = figure.subplots(1, len(counts), sharey=True, squeeze=False)[0]
    places = np.arange(len(classes)) * (len(splits) + 1.0)
    for axes, (what, count) in zip(panels, counts, strict=True):
        largest = max(count.max(), 1)
        for i, name in enumerate(splits):
            values = [int(count.get((c, name), 0)) for c in classes]
            axes.barh(places + i, values, height=0.86, color=SPLITS[name], label=name)
            for place, value in zip(places + i, values, strict=True):
                axes.text(value + 0.012 * largest, place, f"{value:,}", va="center", fontsize=7.5,
                          color=INK if value else WARNING)
        axes.set(xlabel=f"number of {what}", xlim=(0, 1.16 * largest))
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
        axes.grid(False, axis="y")
        axes.tick_params(axis="y", length=0)
    panels[0].set_yticks(places + (len(splits) - 1) / 2)
    _class_ticks(panels[0].yaxis, classes, 26)
    panels[0].set_ylim(places[-1] + len(splits), -1)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower right", ncols=3)
    return figure


@_styled
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
    figure = _open(max(side * columns, 4), (side + 0.1) * len(images) + 0.25, title, note)
    grid = figure.subplots(len(images), columns, squeeze=False)
    for i, row in enumerate(grid):
        _show(row[0], _picture(images[i]))
        for axes, batch in zip(row[1:], views, strict=True):
            _show(axes, _picture(batch[i]))
        if captions:
            row[0].set_ylabel(_wrapped(captions[i], int(side * 11)), fontsize=8)
    grid[0][0].set_title("original", fontsize=9)
    grid[0][1].set_title("views" if len(views) > 1 else "view", fontsize=9)
    return figure


# ------------------------------------------------------------------------------------------------------- the training


@_styled
def schedule(table, blocks: int | None = None, title: str = "The plan: learning rate and frozen blocks",
             note: str = "") -> Figure:
    """Learning rate and frozen blocks by epoch, from a table with columns epoch, lr, frozen (and trainable_share)."""
    table = _frame(table)
    figure = _open(8, 4.2, title, note)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    _draw_rate(upper, table)
    upper.set_xlabel("")
    _draw_frozen(lower, table, blocks)
    return figure


@_styled
def learning_rate(history, title: str = "Learning rate", note: str = "") -> Figure:
    """The learning rate of each epoch on a logarithmic axis."""
    figure = _open(7, 2.8, title, note)
    _draw_rate(figure.subplots(), _frame(history))
    return figure


@_styled
def unfreezing(history, blocks: int | None = None, title: str = "What was allowed to learn", note: str = "") -> Figure:
    """Frozen blocks and the share of the weights that learn, as steps over the epochs."""
    table = _frame(history)
    figure = _open(8, 2.9, title, note)
    left, right = figure.subplots(1, 2)
    _draw_frozen(left, table, blocks)
    right.step(*_stairs(table["epoch"], 100 * table["trainable_share"]), where="post", color=GREEN)
    right.set(ylabel="weights that learn (%)", ylim=(-3, 108))
    _by_epoch(right, _edges(table["epoch"]))
    return figure


@_styled
def curves(history, kept: int | None = None, monitor: str = "auc", title: str = "Training", note: str = "") -> Figure:
    """Loss and metrics of training and validation by epoch, the epoch whose weights are kept marked.

    kept: its number, from 1 (`schedules.kept`); otherwise the first epoch with the highest validation `monitor`.
    """
    table = _frame(history)
    figure = _open(9.5, 3.5, title, note)
    left, right = figure.subplots(1, 2)
    kept = _kept(table, monitor, kept)
    _draw_losses(left, table, kept)
    _draw_scores(right, table, kept, monitor)
    return figure


def _kept(table: pd.DataFrame, monitor: str, kept: int | None) -> tuple[int, str] | None:
    """The number of the epoch that is marked, and the words beside it."""
    best = _best_epoch(table, monitor)
    kept = best if kept is None else kept
    return None if kept is None else (kept, f"{'best' if kept == best else 'kept'}: epoch {kept}")


def _best_epoch(table: pd.DataFrame, monitor: str) -> int | None:
    scores = table.get(f"val_{monitor}")
    return None if scores is None or not scores.notna().any() else int(table["epoch"][scores.idxmax()])


def _edges(epochs) -> np.ndarray:
    """Epoch n lasts from n - 0.5 to n + 0.5 in a plot of steps."""
    return np.append(np.asarray(epochs, float) - 0.5, float(np.max(epochs)) + 0.5)


def _stairs(epochs, values) -> tuple[np.ndarray, np.ndarray]:
    return _edges(epochs), np.append(values, np.asarray(values)[-1])


def _draw_rate(axes, table) -> None:
    marker = "o" if len(table) < 3 else None
    axes.plot(table["epoch"], table["lr"].where(table["lr"] > 0), color=BLUE, marker=marker)
    axes.set_yscale("log")
    low, high = table["lr"].where(table["lr"] > 0).min(), table["lr"].max()
    if high / low < 10:
        axes.set_ylim(low / 3, high * 3)
    if high / low < 100:  # decades alone would label one tick
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_ylabel("learning rate (log)")
    _by_epoch(axes, table["epoch"])


def _draw_frozen(axes, table, blocks: int | None) -> None:
    frozen = table["frozen"].to_numpy(float)
    edges, values = _stairs(table["epoch"], frozen)
    axes.fill_between(edges, values, step="post", color=BLUE, alpha=0.15, linewidth=0)
    axes.step(edges, values, where="post", color=BLUE)
    highest = max(blocks or 0, np.nanmax(frozen), 1)
    axes.set(ylim=(0, highest * 1.12), ylabel=f"frozen blocks (of {blocks})" if blocks else "frozen blocks")
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    _by_epoch(axes, edges)


def _mark_kept(axes, kept: tuple[int, str] | None) -> None:
    if kept is not None:
        epoch, words = kept
        axes.axvline(epoch, color=FAINT, linewidth=1, linestyle=(0, (3, 2)), zorder=1)
        axes.text(epoch, 1.01, words, transform=axes.get_xaxis_transform(), ha="center", va="bottom",
                  fontsize=8, color=INK)


def _draw_lines(axes, table, lines, kept) -> None:
    """lines: (column, label, colour, dash); a column that is absent or empty is not drawn."""
    marker = "o" if len(table) < 3 else None
    for column, label, colour, dash in lines:
        if column in table and table[column].notna().any():
            values = table[column].replace([np.inf, -np.inf], np.nan)
            axes.plot(table["epoch"], values, label=label, color=colour, linestyle=dash, marker=marker)
    _mark_kept(axes, kept)
    _by_epoch(axes, table["epoch"])


def _draw_losses(axes, table, kept) -> None:
    _draw_lines(axes, table, [("train_loss", "training", BLUE, "-"), ("val_loss", "validation", ORANGE, "-")], kept)
    axes.set_ylabel("loss")
    axes.set_ylim(min(0, axes.get_ylim()[0]), axes.get_ylim()[1] * 1.03)
    axes.legend(loc="best")
    broken = table[~np.isfinite(table[["train_loss", "val_loss"]]).all(axis=1)]["epoch"]
    if len(broken):
        axes.text(0.5, 0.5, f"not finite from epoch {int(broken.iloc[0])}", transform=axes.transAxes, ha="center",
                  color=WARNING, fontsize=9, weight="bold")


def _draw_scores(axes, table, kept, monitor: str) -> None:
    names = [("train_accuracy", "training accuracy", BLUE, DASHES[1]),
             ("val_accuracy", "validation accuracy", ORANGE, DASHES[1]),
             ("val_balanced_accuracy", "validation balanced accuracy", GREEN, DASHES[3]),
             ("val_auc", "validation AUC", PINK, "-")]
    lines = [(c, f"{label} (monitored)" if c == f"val_{monitor}" else label, *look) for c, label, *look in names]
    _draw_lines(axes, table, lines, kept)
    axes.set_ylabel("share (0 to 1)")
    low = table[[c for c, *_ in names if c in table]].min().min()
    axes.set_ylim(0.4 if low > 0.45 else 0, 1.02)
    axes.legend(loc="best", fontsize=8)


# -------------------------------------------------------------------------------------------------------- the judging


@_styled
def confusion(matrix, classes: Sequence[str], title: str = "Confusion matrix", note: str = "") -> Figure:
    """Counts of true (rows) against predicted (columns) classes, coloured by the share of the row."""
    matrix = _square(matrix)
    size = 1.4 + 0.78 * len(matrix)
    figure = _open(max(size + 1.5, 4.6), max(size, 3), title, note)
    _draw_confusion(figure.subplots(), matrix, classes)
    return figure


def _square(matrix) -> np.ndarray:
    matrix = np.asarray(matrix)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or matrix.size == 0:
        raise PathoError("shape_mismatch", "confusion matrix", f"has shape {matrix.shape}", "Give one row per class")
    return matrix


def _draw_confusion(axes, matrix, classes, small: bool = False) -> None:
    import seaborn

    classes = _checked_classes(classes, len(matrix), "confusion matrix")
    total = matrix.sum(axis=1, keepdims=True)
    share = np.divide(matrix, total, out=np.zeros(matrix.shape), where=total > 0)
    texts = [[f"{int(n):,}\n{100 * s:.0f} %" if t[0] else "–" for n, s in zip(ns, ss, strict=True)]
             for ns, ss, t in zip(matrix, share, total, strict=True)]
    seaborn.heatmap(share, annot=np.array(texts), fmt="", vmin=0, vmax=1, cmap="Blues", square=True, linewidths=1.5,
                    linecolor=PAPER, ax=axes, annot_kws={"fontsize": 7 if small and len(classes) > 4 else 8.5},
                    cbar_kws={"label": "share of the true class", "shrink": 0.8, "ticks": [0, 0.25, 0.5, 0.75, 1]})
    axes.grid(False)
    axes.tick_params(length=0)
    longest = max(len(c) for c in classes)
    _class_ticks(axes.xaxis, classes, 18, rotate=longest > 9 or (len(classes) > 4 and longest > 5))
    _class_ticks(axes.yaxis, classes, 18)
    axes.tick_params(axis="y", rotation=0)
    axes.set(xlabel="predicted", ylabel="true")


@_styled
def roc_pr(labels, probs, classes: Sequence[str], positive: str | None = None, threshold: float | None = None,
           title: str = "How well the classes are ranked", note: str = "") -> Figure:
    """ROC and precision-recall curves: of `positive` alone or, of more than two classes, of each against the rest.

    labels: (N,) class indices; probs: (N, C). threshold: marks that working point of `positive`.
    """
    threshold = threshold if len(classes) == 2 else None
    ranked = _ranked(labels, probs, classes, positive)
    figure = _open(9.2 if len(ranked) < 3 else 11.5, 4.3, title, note)
    left, right = figure.subplots(1, 2)
    _draw_roc(left, ranked, threshold)
    _draw_pr(right, ranked, threshold)
    return figure


def _ranked(labels, probs, classes, positive) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """(class, truth (N,) bool, score (N,)) of every class to draw."""
    labels, probs = np.asarray(labels), np.asarray(probs, float)
    classes = _checked_classes(classes, probs.shape[1], "probabilities")
    drawn = classes if len(classes) > 2 else [positive] if positive is not None else classes[1:]
    return [(c, labels == classes.index(c), probs[:, classes.index(c)]) for c in drawn]


def _draw_roc(axes, ranked, threshold=None) -> None:
    axes.plot([0, 1], [0, 1], color=FAINT, linewidth=1, linestyle=(0, (3, 2)))
    for i, (name, truth, score) in enumerate(ranked):
        label, look = _plain(name, 28), {"color": COLOURS[i % 8], "linestyle": DASHES[i % 4]}
        if truth.all() or not truth.any():
            axes.plot([], [], label=f"undefined  {label}", **look)
            continue
        alarm, sensitivity, scores = metrics.roc_curve(truth, score)
        axes.plot(alarm, sensitivity, label=f"AUC {np.trapezoid(sensitivity, alarm):.3f}  {label}", **look)
        if threshold is not None:
            at = np.searchsorted(-scores, -threshold, side="right") - 1  # the last that reaches it
            axes.plot(alarm[at], sensitivity[at], "o", color=INK, markersize=6, label=f"threshold {threshold:.3g}")
    axes.set(xlabel="1 - specificity", ylabel="sensitivity", xlim=(-0.01, 1.01), ylim=(-0.01, 1.02), title="ROC")
    axes.set_box_aspect(1)
    axes.legend(loc="lower right", fontsize=7.5)


def _draw_pr(axes, ranked, threshold=None) -> None:
    for i, (name, truth, score) in enumerate(ranked):
        label, look = _plain(name, 28), {"color": COLOURS[i % 8], "linestyle": DASHES[i % 4]}
        if not truth.any():
            axes.plot([], [], label=f"undefined  {label}", **look)
            continue
        precision, recall, scores = metrics.pr_curve(truth, score)  # recall falls to 0
        average = -np.sum(np.diff(recall) * precision[:-1])  # step-wise, no interpolation
        axes.step(recall, np.append(precision[:-1], precision[-2]), where="post",
                  label=f"AP {average:.3f}  {label}", **look)
        axes.axhline(truth.mean(), color=look["color"], linewidth=0.8, linestyle=(0, (1, 3)))
        if threshold is not None and (score >= threshold).any():
            at = np.searchsorted(scores, threshold)  # the first that reaches it
            axes.plot(recall[at], precision[at], "o", color=INK, markersize=6, label=f"threshold {threshold:.3g}")
    axes.plot([], [], color=FAINT, linewidth=0.8, linestyle=(0, (1, 3)), label="share of the class: chance")
    axes.set(xlabel="sensitivity (recall)", ylabel="precision", xlim=(-0.01, 1.01), ylim=(-0.01, 1.02),
             title="Precision and recall")
    axes.set_box_aspect(1)
    if len(ranked) < 3:
        axes.legend(loc="lower left", fontsize=7.5)
    else:  # the curves of many classes fill the plot
        axes.legend(loc="center left", bbox_to_anchor=(1.02, 0.5), fontsize=7.5)


@_styled
def intervals(summary: Mapping, title: str = "Results with 95 % intervals", note: str = "") -> Figure:
    """Each headline number of a `metrics.summary` as a dot with its interval."""
    numbers = _headline(summary)
    figure = _open(6.5, 0.8 + 0.3 * max(len(numbers), 1), title, note)
    _draw_intervals(figure.subplots(), numbers)
    return figure


@_styled
def forest(table: pd.DataFrame, reference: float | None = None, reference_label: str = "",
           xlabel: str = "AUC and 95 % interval", title: str = "Estimates side by side", note: str = "") -> Figure:
    """Estimates of one number under each other, each a dot with its interval and its value as text.

    table: columns name, value, low, high (None: no interval), and perhaps kind, whose values have colours of their own.
    reference: a value to compare with, as a dashed line.
    """
    if not len(table):
        raise PathoError("no_estimates", "forest plot", "has no row to draw", "Give at least one estimate")
    kinds = list(dict.fromkeys(table["kind"])) if "kind" in table else [""]
    figure = _open(8.5, 0.95 + 0.36 * len(table), title, note)
    axes = figure.subplots()
    for i, row in enumerate(table.to_dict("records")):
        number = {key: None if pd.isna(row[key]) else float(row[key]) for key in ("value", "low", "high")}
        which = kinds.index(row.get("kind", "")) % 8
        if number["low"] is not None and number["high"] is not None:
            axes.plot([number["low"], number["high"]], [i, i], color=COLOURS[which], linewidth=3, alpha=0.4,
                      solid_capstyle="butt")
        if number["value"] is not None:
            axes.plot(number["value"], i, MARKERS[which], color=COLOURS[which], markersize=6)
        axes.annotate(_estimate(number), (1.02, i), va="center", fontsize=8.5, xycoords=axes.get_yaxis_transform())
    if reference is not None:
        axes.axvline(reference, color=INK, linewidth=1, linestyle=(0, (3, 2)), zorder=1)
        axes.text(reference, 1.01, f"{reference_label} {reference:.3f}".strip(), ha="center", va="bottom", fontsize=8,
                  transform=axes.get_xaxis_transform())
    for i, kind in enumerate(kinds) if "kind" in table else ():
        axes.plot([], [], MARKERS[i % 8], color=COLOURS[i % 8], label=_plain(kind, 28))
    known = [v for v in (*table[["value", "low", "high"]].to_numpy(float).ravel(), reference or np.nan)
             if np.isfinite(v)]
    low, high = min(known, default=0), max(known, default=1)
    margin = max(0.06 * (high - low), 0.01)
    axes.set(xlim=(low - margin, high + margin), ylim=(len(table) - 0.4, -0.6), xlabel=xlabel)
    axes.set_yticks(range(len(table)), [_plain(name, 46) for name in table["name"]])
    axes.tick_params(axis="y", length=0)
    axes.grid(False, axis="y")
    if "kind" in table:
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower right", ncols=min(len(kinds), 3))
    return figure


def _estimate(number: Mapping) -> str:
    if number["value"] is None:
        return "undefined"
    interval = "no interval" if number["low"] is None else f"{number['low']:.3f} to {number['high']:.3f}"
    return f"{number['value']:.3f} ({interval})"


def _headline(summary) -> list[tuple[str, float | None, float | None, float | None]]:
    """(name, value, low, high) of the numbers that a person asks for first, larger is better."""
    names = ["accuracy", "balanced_accuracy", "auc", "sensitivity", "specificity", "precision", "f1", "macro_f1"]
    return [(k.replace("_", " ").replace("auc", "AUC").replace("f1", "F1"), v["value"], v["low"], v["high"])
            for k in names if (v := summary["metrics"].get(k))]


def _draw_intervals(axes, numbers) -> None:
    for i, (_, value, low, high) in enumerate(numbers):
        if low is not None and high is not None:
            axes.plot([low, high], [i, i], color=BLUE, linewidth=3, alpha=0.35, solid_capstyle="round")
        if value is not None:
            axes.plot(value, i, "o", color=BLUE, markersize=6)
        axes.annotate("undefined" if value is None else f"{value:.3f}", (1.02, i), va="center", fontsize=8.5,
                      xycoords=axes.get_yaxis_transform())
    axes.set(xlim=(-0.01, 1.02), ylim=(len(numbers) - 0.5, -0.5), xlabel="value (0 to 1) and 95 % interval")
    axes.set_yticks(range(len(numbers)), [_plain(name, 30) for name, *_ in numbers])
    axes.tick_params(axis="y", length=0)
    axes.grid(False, axis="y")


@_styled
def patients(table: pd.DataFrame, score: str = "score", score_label: str = "share of images recognised",
             threshold: float | None = None, classes: Sequence[str] | None = None, group_name: str = "patient",
             title: str = "", note: str = "") -> Figure:
    """Scores of the patients in [0, 1] by class, worst first, larger dots for more images; over 60 are counted instead.

    table: as of `metrics.by_patient`: columns label, `score`, patient (else group), and images if known.
    classes: their order, which also decides the colours. group_name: what a dot is ("lesion").
    """
    who = "patient" if "patient" in table else "group"
    title = title or f"One dot per {group_name}"
    every = list(classes) if classes is not None else sorted(set(table["label"]))
    classes = [c for c in every if c in set(table["label"])]
    table = table.sort_values(["label", score, who], kind="stable", ignore_index=True,
                              key=lambda column: column.map(classes.index) if column.name == "label" else column)
    if len(table) > 60:
        return _many_patients(table, score, score_label, threshold, classes, every, group_name, title, note)
    figure = _open(7, 0.9 + 0.185 * len(table) + 0.15 * len(classes), title, note)
    axes = figure.subplots()
    gaps = {c: i for i, c in enumerate(classes)}
    places = np.arange(len(table)) + 1.2 * table["label"].map(gaps).to_numpy(float)
    images = table["images"].to_numpy(float) if "images" in table else np.ones(len(table))
    sizes = 18 + 70 * images / max(images.max(initial=1), 1)
    for name in classes:
        i, here = every.index(name), (table["label"] == name).to_numpy()
        axes.hlines(places[here], 0, table[score][here], color="#dfe4e8", linewidth=1, zorder=1)
        axes.scatter(table[score][here], places[here], s=sizes[here], color=COLOURS[i % 8], zorder=2, linewidth=0,
                     label=f"{here.sum()} {group_name}s: {_plain(name, 28)}", marker=MARKERS[i % 8], clip_on=False)
    _mark_threshold(axes, threshold)
    axes.set(xlim=(-0.02, 1.03), ylim=(places[-1] + 0.8, -0.8), xlabel=score_label)
    axes.set_yticks(places, [_plain(name, 24) for name in table[who]])
    axes.tick_params(axis="y", labelsize=7.5, length=0)
    axes.grid(False, axis="y")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower right", ncols=2)
    return figure


def _many_patients(table, score, score_label, threshold, classes, every, group_name, title, note) -> Figure:
    """Too many for a dot each: a row per class, a disc per score whose area is the share of the class, with its count.

    Scores are gathered in steps of 0.05.
    """
    title = title if title != f"One dot per {group_name}" else f"Scores of {len(table):,} {group_name}s"
    figure = _open(8, 0.8 + 0.62 * len(classes), title, note)
    axes = figure.subplots()
    for row, name in enumerate(classes):
        scores, counts = np.unique((table.loc[table["label"] == name, score] * 20).round() / 20, return_counts=True)
        axes.scatter(scores, np.full(len(scores), row), s=900 * counts / counts.sum(), alpha=0.75, linewidth=0,
                     color=COLOURS[every.index(name) % 8], zorder=2, clip_on=False)
        for at, count in zip(scores, counts, strict=True):
            axes.text(at, row + 0.46, f"{count:,}", ha="center", va="center", fontsize=7.5)
    _mark_threshold(axes, threshold)
    axes.set(xlim=(-0.05, 1.05), ylim=(len(classes) - 0.3, -0.7), xlabel=score_label)
    sizes = table["label"].value_counts()
    axes.set_yticks(range(len(classes)), [f"{_plain(c, 24)}: {sizes[c]:,}" for c in classes])
    axes.tick_params(axis="y", length=0)
    axes.grid(False, axis="y")
    return figure


def _mark_threshold(axes, threshold: float | None) -> None:
    if threshold is not None:
        axes.axvline(threshold, color=INK, linewidth=1, linestyle=(0, (3, 2)))
        axes.text(threshold, 1.01, f"threshold {threshold:.3g}", transform=axes.get_xaxis_transform(), ha="center",
                  va="bottom", fontsize=8)


@_styled
def reliability(found: Mapping, title: str = "What the probabilities are worth", note: str = "") -> Figure:
    """Accuracy against confidence before and after calibration, and how many images have which confidence.

    found: of `evaluation.calibration_of`. On the dotted line a probability means what it says. The dots stand for
    bins of as many images each, unless equal values had to stay together: larger dots for more.
    """
    figure = _open(9, 4.9, title, note)
    panels = figure.subplots(2, 2, sharex=True, height_ratios=(3.6, 1))
    for column, (when, colour) in zip(panels.T, (("before", ORANGE), ("after", BLUE)), strict=True):
        bins, axes, counts = pd.DataFrame(found[when]["bins"]), *column
        axes.plot([0, 1], [0, 1], color=FAINT, linewidth=1, linestyle=(0, (3, 2)))
        axes.vlines(bins["confidence"], bins["confidence"], bins["accuracy"], color=colour, alpha=0.35, linewidth=3)
        axes.scatter(bins["confidence"], bins["accuracy"], s=10 + 40 * bins["n"] / bins["n"].max(), color=colour,
                     zorder=3, clip_on=False)
        axes.set(ylim=(-0.02, 1.02), xlim=(-0.02, 1.02))
        axes.set_title(f"{when}: temperature {found[when]['temperature']:.2f}, ECE {found[when]['ece_mass']:.3f} "
                       f"(chance {found[when]['ece_chance']:.3f})", fontsize=9)
        number = found[when]["counts"]
        counts.bar((np.arange(len(number)) + 0.5) / len(number), number, width=0.9 / len(number), color=colour)
        counts.set(xlabel="confidence", ylim=(0, 1.15 * max(number)))
        counts.yaxis.set_major_locator(MaxNLocator(nbins=2, integer=True))
    panels[0][0].set_ylabel("share that is true")
    panels[1][0].set_ylabel("images")
    return figure


@_styled
def thresholds(labels, probs, classes: Sequence[str], positive: str | None, threshold: float | None,
               target: float | None = None, title: str = "What a threshold buys and costs", note: str = "") -> Figure:
    """Sensitivity and specificity of `positive` against the threshold, the locked one marked.

    labels: (N,) class indices; probs: (N, C) of the images it was chosen on. target: the sensitivity asked for.
    """
    figure = _open(6.5, 3.6, title, note)
    axes = figure.subplots()
    if positive is None:
        return _unwatched(figure, axes)
    name, truth, score = next(row for row in _ranked(labels, probs, classes, positive) if row[0] == positive)
    if truth.all() or not truth.any():
        axes.text(0.5, 0.5, f"undefined: no image is {'negative' if truth.all() else _plain(name)}", ha="center")
    else:
        sensitivity, specificity, at = metrics.operating_points(truth, score)
        for values, label, look in ((sensitivity, "sensitivity", {"color": BLUE}),
                                    (specificity, "specificity", {"color": ORANGE, "linestyle": DASHES[1]})):
            edge = 1.0 if label == "sensitivity" else 0.0  # what a threshold of 0 gives, above all scores the opposite
            axes.step(np.concatenate([[0], at, [1]]), np.concatenate([[edge], values, [1 - edge]]), where="pre",
                      label=label, **look)
    if target is not None:
        axes.axhline(target, color=FAINT, linewidth=1, linestyle=(0, (1, 2)), label=f"target {target:g}")
    _mark_threshold(axes, threshold)
    axes.set(xlabel=f"threshold on the probability of {_plain(name, 28)}", xlim=(-0.01, 1.01), ylim=(-0.02, 1.03),
             ylabel="share of the images")
    axes.legend(loc="best")
    return figure


def _unwatched(figure: Figure, axes) -> Figure:
    axes.set_axis_off()
    axes.text(0.5, 0.5, "no class is singled out: the largest probability decides", ha="center", va="center",
              color=FAINT)
    return figure


@_styled
def decision_curve(found: Mapping | None, threshold: float | None = None, title: str = "Is acting on it worth it?",
                   note: str = "") -> Figure:
    """Net benefit of acting on the model, on everybody and on nobody, against the threshold (Vickers & Elkin 2006).

    found: of `metrics.decision_curve`; None where no class is singled out. threshold: the locked one.
    """
    figure = _open(6.5, 3.6, title, note)
    axes = figure.subplots()
    if found is None:
        return _unwatched(figure, axes)
    at, model, everybody = (np.array(found[name]) for name in ("threshold", "model", "everybody"))
    axes.axhline(0, color=FAINT, linewidth=1.2, label="act on nobody")
    axes.plot(at, everybody, color=ORANGE, linestyle=DASHES[1], label="act on everybody")
    axes.plot(at, model, color=BLUE, label="act on the model")
    _mark_threshold(axes, threshold)
    top = max(model.max(), everybody.max(), 0.05)
    axes.set(xlabel="threshold: the probability from which on one would act", xlim=(-0.01, 1.01),
             ylabel="net benefit per image", ylim=(-0.35 * top, 1.1 * top))
    axes.legend(loc="best")
    return figure


@_styled
def abstention(found: Mapping, title: str = "If the least sure images go to a person", note: str = "") -> Figure:
    """The share of wrong answers against the share of images that are answered, surest first.

    found: of `metrics.abstention`.
    """
    coverage, risk = np.array(found["coverage"]), np.array(found["risk"])
    figure = _open(6.5, 3.4, title, note)
    axes = figure.subplots()
    axes.plot(100 * coverage, 100 * risk, color=BLUE, label=f"this model: mean {100 * found['aurc']:.1f} %")
    axes.axhline(100 * found["aurc_random"], color=FAINT, linewidth=1.2, linestyle=(0, (3, 2)),
                 label=f"leaving out by chance: {100 * found['aurc_random']:.1f} %")
    axes.set(xlabel="images answered (%), surest first", ylabel="of these wrong (%)", xlim=(-1, 101),
             ylim=(-0.02 * 100 * max(risk.max(), 0.01), 110 * max(risk.max(), 0.01)))
    axes.legend(loc="best")
    return figure


@_styled
def training_metrics(history, summary: Mapping, matrix, classes: Sequence[str], labels=None, probs=None,
                     positive: str | None = None, kept: int | None = None, monitor: str = "auc",
                     title: str = "Training and results", note: str = "") -> Figure:
    """The whole run on one page: losses, metrics, rate and freezing; intervals, confusion matrix, ROC curves.

    summary: of `metrics.summary`. kept: see `curves`. labels (N,), probs (N, C): of the images the matrix counts;
    without them the page has no ROC curve.
    """
    table, matrix = _frame(history), _square(matrix)
    kept = _kept(table, monitor, kept)
    grow = 0.34 * max(len(matrix) - 4, 0)
    figure = _open(15, 8.2 + grow, title, note)
    upper, lower = figure.subfigures(2, 1, height_ratios=(3.4, 4.4 + grow))
    losses, scores, middle = upper.subplots(1, 3)
    _draw_losses(losses, table, kept)
    _draw_scores(scores, table, kept, monitor)
    _draw_rate(middle, table)
    if table["frozen"].min() < table["frozen"].max():
        other = middle.twinx()
        other.step(*_stairs(table["epoch"], table["frozen"]), where="post", color=ORANGE, linewidth=1.2)
        other.set_ylabel("frozen blocks", color=ORANGE)
        other.set_ylim(0, table["frozen"].max() * 1.12)
        other.yaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
        other.grid(False)
        middle.yaxis.label.set_color(BLUE)
    bars, heat, roc = lower.subplots(1, 3, width_ratios=(1, 1.25, 1.05))
    _draw_intervals(bars, _headline(summary))
    _draw_confusion(heat, matrix, classes, small=True)
    if labels is None:
        roc.set_axis_off()
        roc.text(0.5, 0.5, "no predictions given: no ROC curve", ha="center", color=FAINT)
    else:
        _draw_roc(roc, _ranked(labels, probs, classes, positive))
    for axes, text in ((losses, "Loss"), (scores, "Metrics"), (middle, "Learning rate"), (bars, "Results"),
                       (heat, "Confusion matrix"), (roc, "ROC")):
        axes.set_title(text, pad=16 if axes in (losses, scores, middle) else 8)
    return figure


# ------------------------------------------------------------------------------------------------------- the heatmaps


def overlay(image: np.ndarray, heat: np.ndarray, opacity: float = 0.45, cmap: str = "jet") -> np.ndarray:
    """The picture seen through its heat: uint8 (H, W, 3) from uint8 (H, W, 3) and heat in [0, 1] (H, W).

    A blank map (zero everywhere) leaves the picture as it is: a tint would look like an explanation.
    """
    image, heat = _picture(image), np.asarray(heat, float)
    if heat.shape != image.shape[:2]:
        raise PathoError("shape_mismatch", "heat", f"is {heat.shape} on a picture of {image.shape[:2]}",
                         "Bring the map to the size of the picture first (gradcam.upsample)")
    if not np.isfinite(heat).all() or heat.min() < 0 or heat.max() > 1:
        raise PathoError("bad_heat", "heat", "has values outside [0, 1] or not finite", "Divide by the scale first")
    if not heat.any():
        return image.copy()
    colour = matplotlib.colormaps[cmap](heat)[..., :3] * 255  # (H, W, 3)
    return np.rint((1 - opacity) * image + opacity * colour).astype(np.uint8)


@_styled
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
    figure = _open(3 * side * columns + 0.9, (side + 0.36) * rows + 0.25, title, note)
    width_ratios = ([1, 1, 1, 0.1] * columns)[:-1]  # a narrow gap after each three
    cells = figure.subplots(rows, len(width_ratios), width_ratios=width_ratios, squeeze=False)
    for axes in cells.ravel():
        axes.set_axis_off()
    for i, (image, raw, caption) in enumerate(zip(images, heat, captions, strict=True)):
        row = cells[i // columns][4 * (i % columns):][:3]
        _draw_explained(row, _picture(image), np.asarray(raw, float), caption, vmax, opacity, side)
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
    _show(row[0], image)
    _show(row[1], share, cmap=cmap, vmin=0, vmax=1) if not blank else _show(row[1], np.full_like(image, 240))
    _show(row[2], overlay(image, share, opacity, cmap))
    row[1].set_xlabel(_wrapped(caption, int(3 * side * 12)), fontsize=8, labelpad=3)
    if blank:
        row[1].text(0.5, 0.5, "blank map", transform=row[1].transAxes, ha="center", va="center", fontsize=9,
                    color=WARNING)


@_styled
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
    wide, high, head = 2.7, 1.35 + 0.36, 0.34  # inches of a tile with its caption, and of a heading
    lines = [math.ceil(len(rows) / columns) for _, rows in places]
    title = title or f"Where the evidence lies ({found.method} after {found.block})"
    figure = _open(max(wide * columns, 5.4) + 1.1, head * len(places) + high * sum(lines), title, note)
    figure.set_layout_engine("none")  # hundreds of axes would take it seconds; here every place is known
    width, height = figure.get_size_inches()
    top = head * len(places) + high * sum(lines)
    names = [Path(path).name for path in found.table["path"]]
    peak = float(found.heat.max()) if one_scale else None
    for (section, rows), count in zip(places, lines, strict=True):
        figure.text(0.1 / width, (top - 0.22) / height, _plain(section), size=10, weight="bold")
        top -= head
        for k, row in enumerate(rows):
            left, bottom = wide * (k % columns) + 0.1, top - high * (k // columns) - 1.3
            axes = figure.add_axes((left / width, bottom / height, (wide - 0.15) / width, 1.28 / height))
            _draw_tile(axes, found.pictures[row], found.heat[row], peak, opacity)
            axes.set_xlabel(f"{_plain(names[row], 38)}\n{_plain(found.captions[row], 44)}", fontsize=7, labelpad=2)
        top -= high * count
    space = figure.add_axes(((width - 0.95) / width, (height - 2.6) / height, 0.12 / width, 1.5 / height))
    _heat_bar(figure, peak, found.method, cax=space)
    return figure


def _draw_tile(axes, picture, raw, peak: float | None, opacity: float) -> None:
    """A picture and its overlay side by side."""
    picture, blank = _picture(picture), not raw.any()
    share = raw if blank else np.clip(raw / (peak or raw.max()), 0, 1)
    gap = np.full((len(picture), max(1, len(picture) // 50), 3), 255, np.uint8)
    _show(axes, np.hstack([picture, gap, overlay(picture, share, opacity)]))
    if blank:
        axes.text(0.75, 0.5, "blank map", transform=axes.transAxes, ha="center", va="center", fontsize=8,
                  color=WARNING, bbox={"color": PAPER, "alpha": 0.8, "pad": 1.5})


def _heat_bar(figure, peak: float | None, method: str, **where) -> None:
    scale = matplotlib.cm.ScalarMappable(matplotlib.colors.Normalize(0, peak or 1), "jet")
    bar = figure.colorbar(scale, **where)
    bar.set_label("share of the map's\nown maximum" if peak is None else f"raw {method},\none scale for all")
    bar.outline.set_visible(False)


@_styled
def trust(facts: Mapping, title: str = "", note: str = "") -> Figure:
    """What `trust.examine` found: likeness to maps without what was learnt, deletion, insertion, and localisation."""
    failed, total = len(facts["reasons"]), len(facts["checks"])
    if not total:
        return _open(8, 0.1, title or facts["verdict"], note)
    title = title or (f"Not to be trusted: {failed} of {total} checks of the heatmaps failed" if failed else
                      f"All {total} checks of the heatmaps passed") + f" ({facts['method']} after {facts['block']})"
    figure = _open(10.5, 5.4, title, note)
    (drawn, place), (deletion, insertion) = figure.subplots(2, 2)
    _draw_randomisation(drawn, facts)
    _draw_perturbation(deletion, facts, "deletion", "pixels deleted, hottest first (%)")
    _draw_perturbation(insertion, facts, "insertion", "pixels shown, hottest first (%)")
    _draw_localisation(place, facts)
    return figure


def _draw_randomisation(axes, facts) -> None:
    cascade, alone = facts["randomisation"]["cascade"], facts["randomisation"]["alone"]
    at = np.arange(len(cascade))
    axes.plot(at, [part["rank_correlation"] for part in cascade], "o-", color=BLUE, label="this part and all above")
    axes.plot(at, [part["rank_correlation"] for part in alone], "s", color=ORANGE, label="this part alone",
              linestyle=DASHES[1])
    axes.axhspan(facts["limits"]["changed"], 1.02, color=WARNING, alpha=0.08, linewidth=0)
    axes.text(at[-1], 0.98, "too alike", va="top", ha="right", fontsize=8, color=WARNING)
    axes.set(ylim=(-1.02 if _lowest(cascade + alone) < -0.2 else -0.3, 1.02), ylabel="rank correlation",
             title="Weights drawn anew: do the maps change?")
    axes.set_xticks(at, [_wrapped(part["part"], 13) for part in cascade], fontsize=7)
    axes.legend(loc="best", fontsize=7.5)


def _lowest(parts) -> float:
    return min(part["rank_correlation"] for part in parts)


def _draw_perturbation(axes, facts, what: str, label: str) -> None:
    found = facts["perturbation"]
    for name, colour, dash in (("map", BLUE, "-"), ("random", FAINT, DASHES[1]), ("blob", GREEN, DASHES[2])):
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
        axes.text(0.5, 0.5, "no masks: not asked", ha="center", color=FAINT, transform=axes.transAxes)
        return
    kinds, top = ("energy", "iou", "pointing"), found["mask_share"]
    for i, (name, colour) in enumerate((("map", BLUE), ("blob", GREEN), ("edges", FAINT))):
        numbers = [found[name][kind] for kind in kinds]
        values = np.array([number["value"] for number in numbers])
        ends = np.array([[n["value"] if n[end] is None else n[end] for n in numbers] for end in ("low", "high")])
        at = np.arange(len(kinds)) + 0.26 * (i - 1)
        axes.bar(at, values, width=0.24, color=colour, label=name, yerr=np.abs(ends - values), ecolor=INK,
                 error_kw={"linewidth": 1})
        top = max(top, ends.max(), values.max())
    axes.axhline(found["mask_share"], color=WARNING, linewidth=1, linestyle=DASHES[1])
    axes.text(2.5, found["mask_share"], "share of the mask", fontsize=7.5, color=WARNING, ha="right", va="bottom")
    axes.set(ylim=(0, min(1.02, 1.25 * top)), ylabel="value (0 to 1)")
    axes.set_xticks(range(3), ["heat on the mask", "IoU, same area", "peak on the mask"])
    axes.legend(loc="best", fontsize=7.5)


@_styled
def explored(picture, heat, target: str, probs: Mapping[str, float] | None = None,
             threshold: tuple[str, float] | None = None, opacity: float = 0.45, cmap: str = "jet", title: str = "",
             note: str = "") -> Figure:
    """One image as the explorer shows it: original, evidence for `target`, overlay, and bars of the probabilities.

    heat: (H, W) >= 0, raw, in the size of the picture; the colour bar has its values. probs: of each class in their
    order; None: no bars. threshold: (class, value), marked on the bar of that class.
    """
    picture, raw, side = _picture(picture), np.asarray(heat, float), 2.9
    bars = () if probs is None else (0.12, 0.95)  # a gap, for the numbers of the colour bar, and the bars
    figure = _open(side * (3.2 + sum(bars)) + 0.9, side + 0.3, title, note)
    cells = figure.subplots(1, 4 + len(bars), width_ratios=(1, 1, 1, 0.05, *bars))
    top = raw.max() if raw.any() else 1.0
    _draw_explained(cells[:3], picture, raw, "", top, opacity, side, cmap)
    for axes, text in zip(cells, ("original", f"evidence for {_plain(target, 28)}", "overlay"), strict=False):
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
    axes.barh(places, list(probs.values()), height=0.6, color=BLUE)
    for place, value in zip(places, probs.values(), strict=True):
        axes.text(max(value, 0) + 0.02, place, f"{value:.1%}", va="center", fontsize=8.5)
    if threshold is not None:
        at = list(probs).index(threshold[0])
        axes.plot([threshold[1]] * 2, [at - 0.45, at + 0.45], color=INK, linewidth=1.6)
        axes.set_xlabel(f"line: threshold {threshold[1]:.3g}")
    axes.set(xlim=(0, 1.2), ylim=(len(probs) - 0.4, -0.6), xticks=[0, 0.5, 1])
    axes.set_yticks(places, [_wrapped(name, 16) for name in probs])
    axes.set_title("probability", fontsize=9.5, weight="normal", loc="center")
    axes.tick_params(axis="y", length=0)
    axes.grid(False, axis="y")


def panels(picture, heat, target: str, opacity: float = 0.45, cmap: str = "jet") -> bytes:
    """As `explored` without its bars, as PNG: for a screen that waits, where a Figure would take ten times as long.

    Every pixel is enlarged by the same whole factor, so that its edges stay sharp.
    """
    picture, raw = _picture(picture), np.asarray(heat, float)
    top, blank = raw.max(), not raw.any()
    share = raw if blank else raw / top
    coloured = np.full_like(picture, 240) if blank else overlay(picture, share, 1, cmap)
    factor = math.ceil(PANEL / len(picture))
    side, gap, head, bar = len(picture) * factor, 14, 44, 26
    sheet = Image.new("RGB", (3 * side + 3 * gap + bar + 118, head + side + 4), PAPER)
    draw, font = ImageDraw.Draw(sheet), _font(25)
    shown_names = ("original", f"evidence for {_plain(target, 24)}", "overlay")
    for i, (part, name) in enumerate(zip((picture, coloured, overlay(picture, share, opacity, cmap)), shown_names,
                                         strict=True)):
        large = part.repeat(factor, axis=0).repeat(factor, axis=1)
        sheet.paste(Image.fromarray(large), (i * (side + gap), head))
        draw.text((i * (side + gap) + side / 2, head / 2 - 2), name, INK, font, anchor="mm")
    if blank:
        draw.text((side + gap + side / 2, head + side / 2), "blank map", WARNING, font, anchor="mm")
        return _encoded(sheet)
    left = 3 * (side + gap)
    ramp = matplotlib.colormaps[cmap](np.linspace(1, 0, side))[:, None, :3] * 255  # (side, 1, 3)
    sheet.paste(Image.fromarray(ramp.repeat(bar, axis=1).astype(np.uint8)), (left, head))
    for part in (0, 0.25, 0.5, 0.75, 1):
        at = head + (1 - part) * (side - 20) + 10  # the outer numbers stay within the bar's height
        draw.text((left + bar + 8, at), f"{part * top:.2g}", INK, font, anchor="lm")
    return _encoded(sheet)


@functools.cache
def _font(size: int):
    """The typeface of the figures, for Pillow."""
    return ImageFont.truetype(matplotlib.font_manager.findfont(STYLE["font.family"]), size)


def _encoded(sheet: Image.Image) -> bytes:
    content = io.BytesIO()
    sheet.save(content, "PNG", compress_level=2)
    return content.getvalue()


# ----------------------------------------------------------------------------------------------------- the comparison


def _looks(i: int) -> dict:
    """The line of the i-th of several runs: no two of the first 32 are alike."""
    return {"color": COLOURS[i % 8], "linestyle": DASHES[(i + i // 8) % 4]}


def _some_runs(runs: Mapping, what: str) -> None:
    if not runs:
        raise PathoError("shape_mismatch", what, "has no run to draw", "Give at least one run by its name")


def _named_below(figure, handles: Mapping[str, plt.Line2D], columns: int = 2, width: int = 44) -> None:
    """A legend of runs; matplotlib by itself leaves out names that begin with an underscore."""
    legend = figure.legend([*handles.values()], ["x"] * len(handles), loc="outside lower center",
                           ncols=min(columns, len(handles)))
    for text, name in zip(legend.get_texts(), handles, strict=True):
        text.set_text(_plain(name, width))


@_styled
def histories(runs: Mapping[str, pd.DataFrame], monitor: str = "auc", title: str = "Training, run by run",
              note: str = "", kept: Mapping[str, int | None] | None = None) -> Figure:
    """Validation loss and the validation `monitor` of several runs by epoch; the dot is the epoch that each run kept.

    kept: its number, by run; otherwise the first epoch with the highest `monitor`.
    """
    _some_runs(runs, "histories")
    tables = {name: _frame(history) for name, history in runs.items()}
    figure = _open(9.5, 3.4 + 0.22 * math.ceil(len(runs) / 2), title, note)
    left, right = figure.subplots(1, 2)
    lines = {}
    for i, (name, table) in enumerate(tables.items()):
        best = (kept or {}).get(name) or _best_epoch(table, monitor)
        for axes, column in ((left, "val_loss"), (right, f"val_{monitor}")):
            if column not in table:
                continue
            values = table[column].replace([np.inf, -np.inf], np.nan)
            (lines[name],) = axes.plot(table["epoch"], values, marker="o" * (len(table) < 3), **_looks(i))
            if best is not None:
                axes.plot(best, values[table["epoch"] == best].iloc[0], "o", color=COLOURS[i % 8], markersize=6)
    every = np.concatenate([table["epoch"].to_numpy() for table in tables.values()])
    for axes, label in ((left, "loss"), (right, monitor.replace("_", " ").replace("auc", "AUC"))):
        _by_epoch(axes, every)
        axes.set_ylabel(f"validation {label}")
    _named_below(figure, lines)
    return figure


@_styled
def roc_overlay(runs: Mapping[str, tuple], classes: Sequence[str], positive: str | None = None,
                title: str = "ROC, run by run", note: str = "") -> Figure:
    """The ROC curves of several runs in one plot: of `positive` alone, or one plot for each class against the rest.

    runs: {name: (labels (N,), probs (N, C))}; the number of images may differ.
    """
    _some_runs(runs, "ROC curves")
    ranked = {name: _ranked(labels, probs, classes, positive) for name, (labels, probs) in runs.items()}
    drawn = [name for name, _, _ in next(iter(ranked.values()))]
    columns = min(len(drawn), 4)
    rows = math.ceil(len(drawn) / columns)
    side = 4.2 if columns == 1 else 3.1
    figure = _open(max(side * columns, 5.2), side * rows + 0.22 * math.ceil(len(runs) / 2), title, note)
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for k, axes in enumerate(grid[:len(drawn)]):
        _draw_roc_of_runs(axes, {name: curves[k][1:] for name, curves in ranked.items()}, drawn[k], columns == 1)
    for axes in grid[len(drawn):]:
        axes.set_axis_off()
    if columns > 1:
        _named_below(figure, {name: plt.Line2D([], [], **_looks(i)) for i, name in enumerate(runs)})
    return figure


def _draw_roc_of_runs(axes, curves: Mapping[str, tuple], title: str, named: bool) -> None:
    axes.plot([0, 1], [0, 1], color=FAINT, linewidth=1, linestyle=(0, (3, 2)))
    for i, (name, (truth, score)) in enumerate(curves.items()):
        if truth.all() or not truth.any():
            axes.plot([], [], label="undefined" + f"  {_plain(name, 30)}" * named, **_looks(i))
            continue
        alarm, sensitivity, _ = metrics.roc_curve(truth, score)
        area = np.trapezoid(sensitivity, alarm)
        axes.plot(alarm, sensitivity, label=f"AUC {area:.3f}" + f"  {_plain(name, 30)}" * named, **_looks(i))
    axes.set(xlabel="1 - specificity", ylabel="sensitivity", xlim=(-0.01, 1.01), ylim=(-0.01, 1.02))
    axes.set_title(_plain(title, 28))
    axes.set_box_aspect(1)
    axes.legend(loc="lower right", fontsize=7.5)


@_styled
def reliability_overlay(runs: Mapping[str, pd.DataFrame], of: str = "the called class",
                        title: str = "Are the probabilities chances?", note: str = "") -> Figure:
    """What share came true of the images that got about the same probability, run by run; on the diagonal is honest.

    runs: {name: table of `calibration.reliability`}, columns confidence, accuracy, n. of: the class that is looked at.
    """
    _some_runs(runs, "reliability")
    figure = _open(5.6, 4.6 + 0.22 * math.ceil(len(runs) / 2), title, note)
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color=FAINT, linewidth=1, linestyle=(0, (3, 2)))
    lines = {}
    for i, (name, table) in enumerate(runs.items()):
        (lines[name],) = axes.plot(table["confidence"], table["accuracy"], marker="o", **_looks(i))
    axes.set(xlabel=f"probability of {_plain(of, 28)}", ylabel="share that came true", xlim=(-0.02, 1.02),
             ylim=(-0.02, 1.02))
    axes.set_box_aspect(1)
    _named_below(figure, lines)
    return figure


@_styled
def differences(table: pd.DataFrame, title: str = "Differences with 95 % intervals", note: str = "") -> Figure:
    """Differences between runs, a dot with its interval each, in blocks of one number; on the line there is none.

    table: columns number (what is compared), run (which difference), value, low, high; None or NaN where there is none.
    """
    if not len(table):
        raise PathoError("shape_mismatch", "plot of differences", "has no difference to draw", "Give at least one row")
    numbers, runs = list(dict.fromkeys(table["number"])), list(dict.fromkeys(table["run"]))
    figure = _open(8.2, 0.9 + 0.24 * len(table) + 0.16 * len(numbers) + 0.22 * math.ceil(len(runs) / 2), title, note)
    axes = figure.subplots()
    axes.axvline(0, color=INK, linewidth=1)
    place, ticks, dots = 0.0, [], {}
    for number in numbers:
        rows = table[table["number"] == number]
        ticks.append((place + (len(rows) - 1) / 2, number))
        for _, row in rows.iterrows():
            dots[row["run"]] = _draw_difference(axes, row, place, runs.index(row["run"]))
            place += 1
        place += 0.7
    axes.set(ylim=(place - 1, -0.8), xlabel="difference and 95 % interval")
    reach = max(1e-3, *(abs(edge) for edge in axes.get_xlim()))
    axes.set_xlim(-reach, reach)
    axes.set_yticks([at for at, _ in ticks], [_plain(name, 40) for _, name in ticks])
    axes.tick_params(axis="y", length=0)
    axes.grid(False, axis="y")
    _named_below(figure, dots, 1 if max(len(str(run)) for run in runs) > 40 else 2, 90)
    return figure


def _draw_difference(axes, row, place: float, i: int) -> plt.Line2D:
    """One row of it; returns the dot."""
    colour = COLOURS[i % 8]
    value, low, high = (math.nan if row[name] is None else float(row[name]) for name in ("value", "low", "high"))
    if math.isfinite(low) and math.isfinite(high):
        axes.plot([low, high], [place, place], color=colour, linewidth=3, alpha=0.4, solid_capstyle="round")
    (dot,) = axes.plot(value, place, "osD^v<>P"[i % 8], color=colour, markersize=6)
    text = "undefined" if math.isnan(value) else f"{value:+.3f}" + " (no interval)" * math.isnan(low)
    axes.annotate(text, (1.02, place), va="center", fontsize=8.5, xycoords=axes.get_yaxis_transform())
    return dot


def save(figure: Figure, path: Path) -> Figure:
    """Writes the figure as PNG, the same bytes for the same figure, and returns it, so that a cell can end with it."""
    content = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(content, format="png", dpi=FILE_DPI, metadata={"Software": None})
    files.write_bytes(path, content.getvalue())
    return figure
