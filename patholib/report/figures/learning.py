"""Figures of a training: schedule, learning rate, unfreezing, curves."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from patholib.report.figures import style


@style.styled
def schedule(
    table, blocks: int | None = None, title: str = "Planned learning rate and frozen blocks", note: str = ""
) -> Figure:
    """Learning rate and frozen blocks by epoch, from a table with columns epoch, lr, frozen (and trainable_share)."""
    table = style.frame(table)
    figure = style.open(8, 4.2, title, note)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    draw_rate(upper, table)
    upper.set_xlabel("")
    _draw_frozen(lower, table, blocks)
    return figure


@style.styled
def no_epochs(note: str = "") -> Figure:
    """What stands for a figure of epochs where a head is fitted."""
    figure = style.open(8, 1, "", note)
    say_fitted(figure.subplots())
    return figure


def say_fitted(axes) -> None:
    """Words in place of a plot by epoch."""
    style.words(axes, "All blocks are frozen and the head is fitted:\nthere are no epochs and no learning rate.")


@style.styled
def unfreezing(history, blocks: int | None = None, note: str = "") -> Figure:
    """Frozen blocks and the share of trainable weights, as steps over the epochs."""
    table = style.frame(history)
    figure = style.open(8, 2.9, "Frozen blocks and trainable weights", note)
    left, right = figure.subplots(1, 2)
    _draw_frozen(left, table, blocks)
    right.step(*style.stairs(table["epoch"], 100 * table["trainable_share"]), where="post", color=style.GREEN)
    right.set(ylabel="trainable weights (%)", ylim=(-3, 108))
    style.by_epoch(right, style.edges(table["epoch"]))
    return figure


@style.styled
def curves(history, kept: int | None = None, monitor: str = "auc", note: str = "") -> Figure:
    """Loss and metrics by epoch, or by strength of a fitted head; the one whose weights are kept is marked.

    kept: its number, from 1 (`schedules.kept`).
    """
    table = style.frame(history)
    figure = style.open(9.5, 3.5, "Training and validation", note)
    left, right = figure.subplots(1, 2)
    marked = kept_epoch(table, kept)
    draw_losses(left, table, marked)
    draw_scores(right, table, marked, monitor)
    return figure


def kept_epoch(table: pd.DataFrame, kept: int | None) -> tuple[int, str] | None:
    """The number of the epoch that is marked, and the words beside it."""
    if kept is not None and "strength" in table:
        return kept, f"kept: C = {table.set_index('epoch')['strength'][kept]:g}"
    return None if kept is None else (kept, f"kept: epoch {kept}")


def draw_rate(axes, table) -> None:
    """The learning rate by epoch; words in its place where a head was fitted."""
    if not table["lr"].notna().any():
        return say_fitted(axes)
    marker = "o" if len(table) < 3 else None
    axes.plot(table["epoch"], table["lr"].where(table["lr"] > 0), color=style.BLUE, marker=marker)
    axes.set_yscale("log")
    low, high = table["lr"].where(table["lr"] > 0).min(), table["lr"].max()
    if high / low < 10:
        axes.set_ylim(low / 3, high * 3)
    if high / low < 100:  # decades alone would label one tick
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_ylabel("learning rate (log scale)")
    style.by_epoch(axes, table["epoch"])


def _draw_frozen(axes, table, blocks: int | None) -> None:
    frozen = table["frozen"].to_numpy(float)
    edges, values = style.stairs(table["epoch"], frozen)
    axes.fill_between(edges, values, step="post", color=style.BLUE, alpha=0.15, linewidth=0)
    axes.step(edges, values, where="post", color=style.BLUE)
    highest = max(blocks or 0, np.nanmax(frozen), 1)
    axes.set(ylim=(0, highest * 1.12), ylabel=f"frozen blocks\n(of {blocks})" if blocks else "frozen blocks")
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    style.by_epoch(axes, edges)


def _draw_lines(axes, table, lines, kept) -> None:
    """lines: (column, label, colour, dash); a column that is absent or empty is not drawn."""
    marker = "o" if len(table) < 3 else None
    for column, label, colour, dash in lines:
        if column in table and table[column].notna().any():
            values = table[column].replace([np.inf, -np.inf], np.nan)
            axes.plot(table["epoch"], values, label=label, color=colour, linestyle=dash, marker=marker)
    if kept is not None:
        epoch, words = kept
        style.mark(axes, epoch, words, style.FAINT)
    style.by_epoch(axes, table["epoch"])
    if "strength" in table:
        axes.set_xticks(table["epoch"], [f"{c:g}" for c in table["strength"]])
        axes.set_xlabel("strength C of the head: the smaller, the more it is held back")


def draw_losses(axes, table, kept) -> None:
    """Training and validation loss by epoch."""
    lines = [("train_loss", "training", style.BLUE, "-"), ("val_loss", "validation", style.ORANGE, "-")]
    _draw_lines(axes, table, lines, kept)
    axes.set_ylabel("loss")
    axes.set_ylim(min(0, axes.get_ylim()[0]), axes.get_ylim()[1] * 1.03)
    axes.legend(loc="best")
    broken = table[~np.isfinite(table[["train_loss", "val_loss"]]).all(axis=1)]["epoch"]
    if len(broken):
        said = f"loss is NaN or infinite from epoch {int(broken.iloc[0])}"
        axes.text(0.5, 0.5, said, transform=axes.transAxes, ha="center", color=style.WARNING, weight="bold")


def draw_scores(axes, table, kept, monitor: str) -> None:
    """Metrics of training and validation by epoch."""
    chooses = "" if "strength" in table else f"val_{monitor}"
    names = [
        ("train_accuracy", "training accuracy", style.BLUE, style.DASHES[1]),
        ("val_accuracy", "validation accuracy", style.ORANGE, style.DASHES[1]),
        ("val_balanced_accuracy", "validation balanced accuracy", style.GREEN, style.DASHES[3]),
        ("val_auc", "validation AUC", style.PINK, "-"),
    ]
    lines = [(c, f"{label} (chooses the best epoch)" if c == chooses else label, *look) for c, label, *look in names]
    _draw_lines(axes, table, lines, kept)
    axes.set_ylabel("metric (0 to 1)")
    low = table[[c for c, *_ in names if c in table]].min().min()
    axes.set_ylim(0.4 if low > 0.45 else 0, 1.02)
    axes.legend(loc="best", fontsize=8)
