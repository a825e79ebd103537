"""Figures that compare several runs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from patholib.report.figures import performance, style

MOST = 12  # classes that have a plot each


def _looks(i: int) -> dict:
    """The line of the i-th of several runs: no two of the first 32 are alike."""
    return {"color": style.COLOURS[i % 8], "linestyle": style.DASHES[(i + i // 8) % 4]}


def _named_below(figure, handles: Mapping[str, plt.Line2D], columns: int = 2, width: int = 44) -> None:
    """A legend of runs; matplotlib by itself leaves out names that begin with an underscore."""
    legend = figure.legend(
        [*handles.values()], ["x"] * len(handles), loc="outside lower center", ncols=min(columns, len(handles))
    )
    for text, name in zip(legend.get_texts(), handles, strict=True):
        text.set_text(style.plain(name, width))


@style.styled
def histories(
    runs: Mapping[str, pd.DataFrame], monitor: str = "auc", note: str = "", kept: Mapping[str, int | None] | None = None
) -> Figure:
    """Validation loss and the validation `monitor` of several runs by epoch; a dot marks the epoch that was kept.

    kept: its number, by run.
    """
    tables = {name: style.frame(history) for name, history in runs.items()}
    figure = style.open(9.5, 3.4 + 0.22 * math.ceil(len(runs) / 2), "Training of each run", note)
    left, right = figure.subplots(1, 2)
    lines = {}
    for i, (name, table) in enumerate(tables.items()):
        best = (kept or {}).get(name)
        for axes, column in ((left, "val_loss"), (right, f"val_{monitor}")):
            if column not in table:
                continue
            values = table[column].replace([np.inf, -np.inf], np.nan)
            marker = "o" if len(table) < 3 else None
            (lines[name],) = axes.plot(table["epoch"], values, marker=marker, **_looks(i))
            if best is not None:
                axes.plot(best, values[table["epoch"] == best].iloc[0], "o", color=style.COLOURS[i % 8], markersize=6)
    every = np.concatenate([table["epoch"].to_numpy() for table in tables.values()])
    for axes, label in ((left, "loss"), (right, monitor.replace("_", " ").replace("auc", "AUC"))):
        style.by_epoch(axes, every)
        axes.set_ylabel(f"validation {label}")
    _named_below(figure, lines)
    return figure


@style.styled
def roc_overlay(
    runs: Mapping[str, tuple], classes: Sequence[str], positive: str | None = None, note: str = ""
) -> Figure:
    """The ROC curves of several runs in one plot: of `positive` alone, or one plot for each class against the rest.

    runs: {name: (labels (N,), probs (N, C))}; the number of images may differ.
    """
    ranked = {name: performance.by_class(labels, probs, classes, positive) for name, (labels, probs) in runs.items()}
    first = next(iter(ranked.values()))
    largest = sorted(range(len(first)), key=lambda k: -first[k][1].sum())[:MOST]
    title = "ROC curves of each run"
    if len(first) > MOST:
        title = f"{title}: the {MOST} classes with most images, of {len(first)}"
    drawn = sorted(largest)
    columns = min(len(drawn), 4)
    rows = math.ceil(len(drawn) / columns)
    side = 4.2 if columns == 1 else 3.1
    figure = style.open(max(side * columns, 5.2), side * rows + 0.22 * math.ceil(len(runs) / 2), title, note)
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for k, axes in zip(drawn, grid, strict=False):
        of_runs = enumerate((name if columns == 1 else "", *curves[k][1:]) for name, curves in ranked.items())
        performance.draw_roc(axes, [performance.Ranked(*run, _looks(i)) for i, run in of_runs])
        axes.set_title(style.plain(first[k][0], 28))
    for axes in grid[len(drawn) :]:
        axes.set_axis_off()
    if columns > 1:
        _named_below(figure, {name: plt.Line2D([], [], **_looks(i)) for i, name in enumerate(runs)})
    return figure


@style.styled
def differences(table: pd.DataFrame, title: str = "Differences with 95 % intervals", note: str = "") -> Figure:
    """Differences between runs, each a dot with its interval, grouped by metric; on the line there is no difference.

    table: columns number (the metric), run (which difference), value, low, high; None or NaN where there is none.
    """
    numbers, runs = list(dict.fromkeys(table["number"])), list(dict.fromkeys(table["run"]))
    height = 0.9 + 0.24 * len(table) + 0.16 * len(numbers) + 0.22 * math.ceil(len(runs) / 2)
    figure = style.open(8.2, height, title, note)
    axes = figure.subplots()
    axes.axvline(0, color=style.INK, linewidth=1)
    place, ticks, dots = 0.0, [], {}
    for number in numbers:
        rows = table[table["number"] == number]
        ticks.append((place + (len(rows) - 1) / 2, number))
        for _, row in rows.iterrows():
            dots[row["run"]] = performance.draw_estimate(axes, row, place, runs.index(row["run"]), "+")
            place += 1
        place += 0.7
    axes.set(ylim=(place - 1, -0.8), xlabel="difference and 95 % interval")
    reach = max(1e-3, *(abs(edge) for edge in axes.get_xlim()))
    axes.set_xlim(-reach, reach)
    axes.set_yticks([at for at, _ in ticks], [style.plain(name, 40) for _, name in ticks])
    axes.tick_params(axis="y", length=0)
    axes.grid(False, axis="y")
    _named_below(figure, dots, 1 if max(len(str(run)) for run in runs) > 40 else 2, 90)
    return figure
