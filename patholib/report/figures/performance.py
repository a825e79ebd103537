"""Figures of test results: confusion matrix, ROC and precision-recall curves, estimates with intervals, patients."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score, roc_curve

from patholib.judge import metric_table
from patholib.report.figures import style

NUMBERED = 20  # most classes whose confusion matrix has numbers in its cells
LEAST = 5.5  # points of the smallest class names beside it
CURVES, WORST = 10, 5  # most curves that all have a name; of more, how many have one
DOTS = 60  # most patients that have a dot each
CHANCE: dict[str, Any] = {"color": style.FAINT, "linewidth": 1, "linestyle": (0, (3, 2))}


@style.styled
def confusion(matrix, classes: Sequence[str], note: str = "") -> Figure:
    """Counts of true (rows) against predicted (columns) classes, coloured by the share of the true class.

    Of more than 20 classes the cells have no numbers, and the figure stops growing at 12 inches.
    """
    matrix = np.asarray(matrix)
    number = len(matrix)
    side = min(max(0.1 * number, 8), 12) if number > NUMBERED else number * (0.78 if number <= 8 else 0.6)
    figure = style.open(max(side + 2.9, 4.6), max(side + 1.4, 3), "Confusion matrix", note)
    draw_confusion(figure.subplots(), matrix, classes, side)
    return figure


def draw_confusion(axes, matrix, classes, side: float) -> None:
    """The matrix in about `side` inches."""
    import seaborn

    classes = [str(c) for c in classes]
    total = matrix.sum(axis=1, keepdims=True)
    share = np.divide(matrix, total, out=np.zeros(matrix.shape), where=total > 0)
    cell = side / len(classes)
    numbered = len(classes) <= NUMBERED and cell > 0.33
    texts = (
        [
            [f"{int(n):,}\n{100 * s:.0f} %" if t[0] else "–" for n, s in zip(ns, ss, strict=True)]
            for ns, ss, t in zip(matrix, share, total, strict=True)
        ]
        if numbered
        else None
    )
    seaborn.heatmap(
        share,
        annot=texts and np.array(texts),
        fmt="",
        vmin=0,
        vmax=1,
        cmap="Blues",
        square=True,
        linewidths=1.5 if cell > 0.2 else 0,
        linecolor=style.PAPER,
        ax=axes,
        xticklabels=False,
        yticklabels=False,
        annot_kws={"fontsize": 8.5 if cell > 0.55 else 6.5},
        cbar_kws={"label": "share of the true class", "shrink": 0.8, "fraction": 0.046, "pad": 0.03},
    )
    axes.grid(False)
    axes.set(xlabel="predicted class", ylabel="true class")
    _name_classes(axes, classes, cell)


def _name_classes(axes, classes: list[str], cell: float) -> None:
    """Names the rows and columns; where they lie too close, every second, third ... of them."""
    step, longest = math.ceil(LEAST / (60 * cell)), max(len(c) for c in classes)
    shown = classes[::step]
    places = np.arange(len(classes))[::step] + 0.5
    axes.set_xticks(places)
    axes.set_yticks(places)
    size = min(8.5, 60 * cell * step)
    if len(classes) > NUMBERED:
        axes.set_xticklabels([style.plain(name, 24) for name in shown], rotation=90)
        axes.set_yticklabels([style.plain(name, 24) for name in shown])
    else:
        style.class_ticks(axes.xaxis, shown, 18, rotate=longest > 9 or (len(classes) > 4 and longest > 5))
        style.class_ticks(axes.yaxis, shown, 18)
    axes.tick_params(length=0, labelsize=size)


class Ranked(NamedTuple):
    """The scores of one class, and what is drawn from them."""

    name: str
    truth: np.ndarray  # (N,) bool
    score: np.ndarray  # (N,)
    look: dict  # of its line
    named: bool = True

    @property
    def defined(self) -> bool:
        """Whether there are images of the class and images of others."""
        return bool(self.truth.any()) and not self.truth.all()

    def label(self, number: str, value: float | None) -> str:
        """Its line in a legend; one that begins with "_" is left out by matplotlib."""
        if not self.named:
            return "_"
        return (
            f"{number} {value:.3f}  {style.plain(self.name, 28)}"
            if value is not None
            else f"undefined  {style.plain(self.name, 28)}"
        )


@style.styled
def roc_pr(
    labels, probs, classes: Sequence[str], positive: str | None = None, threshold: float | None = None, note: str = ""
) -> Figure:
    """ROC and precision-recall curves: of `positive` alone or, of more than two classes, of each against the rest.

    labels: (N,) class indices; probs: (N, C). threshold: of two classes, marks that point on the curves.
    """
    threshold = threshold if len(classes) == 2 else None
    ranked = ranked_classes(labels, probs, classes, positive)
    figure = style.open(9.2 if len(ranked) < 3 else 11.5, 4.3, "ROC and precision-recall curves", note)
    left, right = figure.subplots(1, 2)
    draw_roc(left, ranked, threshold)
    _draw_pr(right, ranked, threshold)
    return figure


def by_class(labels, probs, classes, positive) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """(class, truth (N,) bool, score (N,)): of two classes `positive` or the second, of more each against the rest."""
    labels, probs = np.asarray(labels), np.asarray(probs, float)
    classes = [str(c) for c in classes]
    drawn = classes if len(classes) > 2 else [positive] if positive is not None else classes[1:]
    return [(name, labels == classes.index(name), probs[:, classes.index(name)]) for name in drawn]


def ranked_classes(labels, probs, classes, positive) -> list[Ranked]:
    """The same, to be drawn; of many only those with the lowest AUC have a name and a colour, and lie on top."""
    columns = by_class(labels, probs, classes, positive)
    looks = [{"color": style.COLOURS[i % 8], "linestyle": style.DASHES[i % 4]} for i in range(len(columns))]
    if len(columns) <= CURVES:
        return [Ranked(*column, look) for column, look in zip(columns, looks, strict=True)]
    grey = {"color": style.FAINT, "linewidth": 0.6, "alpha": 0.6}
    every = sorted((Ranked(*column, grey, named=False) for column in columns), key=_auc)
    worst = zip(every[:WORST], looks, strict=False)
    return [*every[WORST:], *(one._replace(look=look, named=True) for one, look in worst)]


def _auc(one: Ranked) -> float:
    """Infinite where it is undefined."""
    return roc_auc_score(one.truth, one.score) if one.defined else math.inf


def draw_roc(axes, ranked: Sequence[Ranked], threshold: float | None = None) -> None:
    """The ROC curve of each class with its AUC."""
    axes.plot([0, 1], [0, 1], **CHANCE)
    for one in ranked:
        if not one.defined:
            axes.plot([], [], label=one.label("AUC", None), **one.look)
            continue
        alarm, sensitivity, scores = roc_curve(one.truth, one.score, drop_intermediate=False)
        axes.plot(alarm, sensitivity, label=one.label("AUC", roc_auc_score(one.truth, one.score)), **one.look)
        if threshold is not None:
            at = np.searchsorted(-scores, -threshold, side="right") - 1  # the last that reaches it
            _mark(axes, alarm[at], sensitivity[at], threshold)
    _tell_the_rest(axes, ranked)
    axes.set(xlabel="1 - specificity", ylabel="sensitivity", xlim=(-0.01, 1.01), ylim=(-0.01, 1.02), title="ROC")
    axes.set_box_aspect(1)
    axes.legend(loc="lower right", fontsize=7.5)


def _draw_pr(axes, ranked: Sequence[Ranked], threshold: float | None = None) -> None:
    for one in ranked:
        if not one.truth.any():
            axes.plot([], [], label=one.label("AP", None), **one.look)
            continue
        precision, recall, scores = precision_recall_curve(one.truth, one.score)  # recall falls to 0
        average = average_precision_score(one.truth, one.score)  # step-wise, no interpolation
        axes.step(
            recall, np.append(precision[:-1], precision[-2]), where="post", label=one.label("AP", average), **one.look
        )
        if one.named:
            axes.axhline(one.truth.mean(), color=one.look["color"], linewidth=0.8, linestyle=(0, (1, 3)))
        if threshold is not None and (one.score >= threshold).any():
            at = np.searchsorted(scores, threshold)  # the first that reaches it
            _mark(axes, recall[at], precision[at], threshold)
    _tell_the_rest(axes, ranked)
    axes.plot([], [], color=style.FAINT, linewidth=0.8, linestyle=(0, (1, 3)), label="chance: share of the class")
    axes.set(
        xlabel="recall (sensitivity)",
        ylabel="precision",
        xlim=(-0.01, 1.01),
        ylim=(-0.01, 1.02),
        title="Precision-recall",
    )
    axes.set_box_aspect(1)
    if len(ranked) < 3:
        axes.legend(loc="lower left", fontsize=7.5)
    else:  # the curves of many classes fill the plot
        axes.legend(loc="center left", bbox_to_anchor=(1.02, 0.5), fontsize=7.5)


def _mark(axes, x: float, y: float, threshold: float) -> None:
    axes.plot(x, y, "o", color=style.INK, markersize=6, label=f"threshold {threshold:.3g}")


def _tell_the_rest(axes, ranked: Sequence[Ranked]) -> None:
    rest = [one for one in ranked if not one.named]
    if rest:
        axes.plot([], [], label=f"the other {len(rest)} classes, which rank better", **rest[0].look)


@style.styled
def forest(
    table: pd.DataFrame,
    reference: float | None = None,
    reference_label: str = "",
    xlabel: str = "AUC and 95 % interval",
    title: str = "Estimates with 95 % intervals",
    note: str = "",
) -> Figure:
    """Estimates of one number under each other, each a dot with its interval and its value as text.

    table: columns name, value, low, high (None: no interval), and perhaps kind, whose values have colours of their own.
    reference: a value to compare with, as a dashed line.
    """
    kinds = list(dict.fromkeys(table["kind"])) if "kind" in table else [""]
    figure = style.open(8.5, 0.95 + 0.36 * len(table), title, note)
    axes = figure.subplots()
    for i, row in enumerate(table.to_dict("records")):
        draw_estimate(axes, row, i, kinds.index(row.get("kind", "")))
    if reference is not None:
        style.mark(axes, reference, f"{reference_label} {reference:.3f}".strip())
    axes.margins(x=0.06)
    axes.set_xlabel(xlabel)
    style.rows(axes, [style.plain(name, 46) for name in table["name"]])
    if "kind" in table:
        for i, kind in enumerate(kinds):
            axes.plot([], [], style.MARKERS[i % 8], color=style.COLOURS[i % 8], label=style.plain(kind, 28))
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower right", ncols=min(len(kinds), 3))
    return figure


def draw_estimate(axes, row: Mapping, place: float, kind: int, sign: str = "", told: bool = True):
    """A dot, a bar and the value as text, with its interval where that is to be told; returns the dot."""
    value, low, high = (math.nan if pd.isna(row[key]) else float(row[key]) for key in ("value", "low", "high"))
    colour, known = style.COLOURS[kind % 8], math.isfinite(low) and math.isfinite(high)
    if known:
        axes.plot([low, high], [place, place], color=colour, linewidth=3, alpha=0.4, solid_capstyle="butt")
    (dot,) = axes.plot(value, place, style.MARKERS[kind % 8], color=colour, markersize=6)
    text = "undefined" if math.isnan(value) else f"{value:{sign}.3f}"
    if told and not math.isnan(value):
        text += f" ({low:{sign}.3f} to {high:{sign}.3f})" if known else " (no interval)"
    axes.annotate(text, (1.02, place), va="center", fontsize=8.5, xycoords=axes.get_yaxis_transform())
    return dot


def headline(summary) -> list[tuple[str, Mapping]]:
    """(words, estimate) of the metrics of which higher is better."""
    names = (k for k in metric_table.order(len(summary.get("classes", ()))) if k not in metric_table.LOWER_IS_BETTER)
    return [(metric_table.words(name), summary["metrics"][name]) for name in names if summary["metrics"].get(name)]


def draw_intervals(axes, numbers) -> None:
    """The numbers of `headline`, each a dot with its interval."""
    for i, (_, found) in enumerate(numbers):
        draw_estimate(axes, found, i, 0, told=False)
    axes.set(xlim=(-0.01, 1.02), xlabel="value and 95 % interval")
    style.rows(axes, [style.plain(name, 30) for name, _ in numbers])


@style.styled
def patients(
    table: pd.DataFrame, classes: Sequence[str] | None = None, group_name: str = "patient", note: str = ""
) -> Figure:
    """Scores of the patients in [0, 1] by class, worst first, larger dots for more images; over 60 are counted instead.

    table: as of `groupwise.by_patient`: columns label, score, patient (else group), and images if known.
    classes: their order, which also decides the colours. group_name: what a dot is ("lesion").
    """
    who = "patient" if "patient" in table else "group"
    every = list(classes) if classes is not None else sorted(set(table["label"]))
    table = table.sort_values(
        ["label", "score", who],
        kind="stable",
        ignore_index=True,
        key=lambda column: column.map(every.index) if column.name == "label" else column,
    )
    present = [c for c in every if c in set(table["label"])]
    colours = {name: i % 8 for i, name in enumerate(every)}
    many = len(table) > DOTS
    if many:
        title = f"Results of {len(table):,} {group_name}s"
        figure = style.open(8, 0.8 + (0.62 if len(present) <= NUMBERED else 0.25) * len(present), title, note)
        axes = figure.subplots()
        _draw_counts(axes, table, present, colours)
    else:
        title = f"Results by {group_name}"
        figure = style.open(7, 0.9 + 0.185 * len(table) + 0.15 * len(present), title, note)
        axes = figure.subplots()
        _draw_dots(axes, table.assign(who=table[who]), {name: colours[name] for name in present}, group_name)
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower right", ncols=2)
    label = "share of images predicted correctly"
    axes.set_xlabel(f"{label} (number of {group_name}s below each dot)" if many else label)
    axes.tick_params(axis="y", length=0)
    axes.grid(False, axis="y")
    return figure


def _draw_dots(axes, table, colours: Mapping[str, int], group_name: str) -> None:
    """A line per patient, column `who`."""
    classes = list(colours)
    places = np.arange(len(table)) + 1.2 * table["label"].map(classes.index).to_numpy(float)
    images = table["images"].to_numpy(float) if "images" in table else np.ones(len(table))
    sizes = 18 + 70 * images / max(images.max(initial=1), 1)
    for name, i in colours.items():
        here = (table["label"] == name).to_numpy()
        axes.hlines(places[here], 0, table["score"][here], color="#dfe4e8", linewidth=1, zorder=1)
        axes.scatter(
            table["score"][here],
            places[here],
            s=sizes[here],
            color=style.COLOURS[i],
            zorder=2,
            linewidth=0,
            label=f"{style.plain(name, 28)}: {style.counted(here.sum(), group_name)}",
            marker=style.MARKERS[i],
            clip_on=False,
        )
    axes.set(xlim=(-0.02, 1.03), ylim=(places[-1] + 0.8, -0.8))
    axes.set_yticks(places, [style.plain(name, 24) for name in table["who"]])
    axes.tick_params(axis="y", labelsize=7.5)


def _draw_counts(axes, table, classes: Sequence[str], colours: Mapping[str, int]) -> None:
    """A row per class; for each score, in steps of 0.05, a disc with the share of the class as area, and the count."""
    roomy = len(classes) <= NUMBERED
    for row, name in enumerate(classes):
        scores, counts = np.unique((table.loc[table["label"] == name, "score"] * 20).round() / 20, return_counts=True)
        axes.scatter(
            scores,
            np.full(len(scores), row),
            s=(900 if roomy else 150) * counts / counts.sum(),
            alpha=0.75,
            linewidth=0,
            color=style.COLOURS[colours[name]],
            zorder=2,
            clip_on=False,
        )
        for at, count in zip(scores, counts, strict=True) if roomy else ():
            axes.text(at, row + 0.46, f"{count:,}", ha="center", va="center", fontsize=7.5)
    axes.set(xlim=(-0.05, 1.05), ylim=(len(classes) - 0.3, -0.7))
    sizes = table["label"].value_counts()
    axes.set_yticks(range(len(classes)), [f"{style.plain(c, 24)}: {sizes[c]:,}" for c in classes])
