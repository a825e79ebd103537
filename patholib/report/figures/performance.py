"""Figures of test results: confusion, ROC and precision-recall, intervals, patients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from patholib.base.errors import PathoError
from patholib.judge import ranking
from patholib.report.figures import style


@style.styled
def confusion(matrix, classes: Sequence[str], title: str = "Confusion matrix", note: str = "") -> Figure:
    """Counts of true (rows) against predicted (columns) classes, coloured by the share of the row."""
    matrix = style.square(matrix)
    size = 1.4 + 0.78 * len(matrix)
    figure = style.open(max(size + 1.5, 4.6), max(size, 3), title, note)
    draw_confusion(figure.subplots(), matrix, classes)
    return figure


def draw_confusion(axes, matrix, classes, small: bool = False) -> None:
    import seaborn

    classes = style.checked_classes(classes, len(matrix), "confusion matrix")
    total = matrix.sum(axis=1, keepdims=True)
    share = np.divide(matrix, total, out=np.zeros(matrix.shape), where=total > 0)
    texts = [[f"{int(n):,}\n{100 * s:.0f} %" if t[0] else "–" for n, s in zip(ns, ss, strict=True)]
             for ns, ss, t in zip(matrix, share, total, strict=True)]
    seaborn.heatmap(share, annot=np.array(texts), fmt="", vmin=0, vmax=1, cmap="Blues", square=True, linewidths=1.5,
                    linecolor=style.PAPER, ax=axes, annot_kws={"fontsize": 7 if small and len(classes) > 4 else 8.5},
                    cbar_kws={"label": "share of the true class", "shrink": 0.8, "ticks": [0, 0.25, 0.5, 0.75, 1]})
    axes.grid(False)
    axes.tick_params(length=0)
    longest = max(len(c) for c in classes)
    style.class_ticks(axes.xaxis, classes, 18, rotate=longest > 9 or (len(classes) > 4 and longest > 5))
    style.class_ticks(axes.yaxis, classes, 18)
    axes.tick_params(axis="y", rotation=0)
    axes.set(xlabel="predicted", ylabel="true")


@style.styled
def roc_pr(labels, probs, classes: Sequence[str], positive: str | None = None, threshold: float | None = None,
           title: str = "How well the classes are ranked", note: str = "") -> Figure:
    """ROC and precision-recall curves: of `positive` alone or, of more than two classes, of each against the rest.

    labels: (N,) class indices; probs: (N, C). threshold: marks that working point of `positive`.
    """
    threshold = threshold if len(classes) == 2 else None
    ranked = by_score(labels, probs, classes, positive)
    figure = style.open(9.2 if len(ranked) < 3 else 11.5, 4.3, title, note)
    left, right = figure.subplots(1, 2)
    draw_roc(left, ranked, threshold)
    _draw_pr(right, ranked, threshold)
    return figure


def by_score(labels, probs, classes, positive) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """(class, truth (N,) bool, score (N,)) of every class to draw."""
    labels, probs = np.asarray(labels), np.asarray(probs, float)
    classes = style.checked_classes(classes, probs.shape[1], "probabilities")
    drawn = classes if len(classes) > 2 else [positive] if positive is not None else classes[1:]
    return [(c, labels == classes.index(c), probs[:, classes.index(c)]) for c in drawn]


def draw_roc(axes, ranked, threshold=None) -> None:
    axes.plot([0, 1], [0, 1], color=style.FAINT, linewidth=1, linestyle=(0, (3, 2)))
    for i, (name, truth, score) in enumerate(ranked):
        label, look = style.plain(name, 28), {"color": style.COLOURS[i % 8], "linestyle": style.DASHES[i % 4]}
        if truth.all() or not truth.any():
            axes.plot([], [], label=f"undefined  {label}", **look)
            continue
        alarm, sensitivity, scores = ranking.roc_curve(truth, score)
        axes.plot(alarm, sensitivity, label=f"AUC {np.trapezoid(sensitivity, alarm):.3f}  {label}", **look)
        if threshold is not None:
            at = np.searchsorted(-scores, -threshold, side="right") - 1  # the last that reaches it
            axes.plot(alarm[at], sensitivity[at], "o", color=style.INK, markersize=6, label=f"threshold {threshold:.3g}")
    axes.set(xlabel="1 - specificity", ylabel="sensitivity", xlim=(-0.01, 1.01), ylim=(-0.01, 1.02), title="ROC")
    axes.set_box_aspect(1)
    axes.legend(loc="lower right", fontsize=7.5)


def _draw_pr(axes, ranked, threshold=None) -> None:
    for i, (name, truth, score) in enumerate(ranked):
        label, look = style.plain(name, 28), {"color": style.COLOURS[i % 8], "linestyle": style.DASHES[i % 4]}
        if not truth.any():
            axes.plot([], [], label=f"undefined  {label}", **look)
            continue
        precision, recall, scores = ranking.pr_curve(truth, score)  # recall falls to 0
        average = -np.sum(np.diff(recall) * precision[:-1])  # step-wise, no interpolation
        axes.step(recall, np.append(precision[:-1], precision[-2]), where="post",
                  label=f"AP {average:.3f}  {label}", **look)
        axes.axhline(truth.mean(), color=look["color"], linewidth=0.8, linestyle=(0, (1, 3)))
        if threshold is not None and (score >= threshold).any():
            at = np.searchsorted(scores, threshold)  # the first that reaches it
            axes.plot(recall[at], precision[at], "o", color=style.INK, markersize=6, label=f"threshold {threshold:.3g}")
    axes.plot([], [], color=style.FAINT, linewidth=0.8, linestyle=(0, (1, 3)), label="share of the class: chance")
    axes.set(xlabel="sensitivity (recall)", ylabel="precision", xlim=(-0.01, 1.01), ylim=(-0.01, 1.02),
             title="Precision and recall")
    axes.set_box_aspect(1)
    if len(ranked) < 3:
        axes.legend(loc="lower left", fontsize=7.5)
    else:  # the curves of many classes fill the plot
        axes.legend(loc="center left", bbox_to_anchor=(1.02, 0.5), fontsize=7.5)


@style.styled
def intervals(summary: Mapping, title: str = "Results with 95 % intervals", note: str = "") -> Figure:
    """Each headline number of a `metrics.summary` as a dot with its interval."""
    numbers = headline(summary)
    figure = style.open(6.5, 0.8 + 0.3 * max(len(numbers), 1), title, note)
    draw_intervals(figure.subplots(), numbers)
    return figure


@style.styled
def forest(table: pd.DataFrame, reference: float | None = None, reference_label: str = "",
           xlabel: str = "AUC and 95 % interval", title: str = "Estimates side by side", note: str = "") -> Figure:
    """Estimates of one number under each other, each a dot with its interval and its value as text.

    table: columns name, value, low, high (None: no interval), and perhaps kind, whose values have colours of their own.
    reference: a value to compare with, as a dashed line.
    """
    if not len(table):
        raise PathoError("no_estimates", "forest plot", "has no row to draw", "Give at least one estimate")
    kinds = list(dict.fromkeys(table["kind"])) if "kind" in table else [""]
    figure = style.open(8.5, 0.95 + 0.36 * len(table), title, note)
    axes = figure.subplots()
    for i, row in enumerate(table.to_dict("records")):
        number = {key: None if pd.isna(row[key]) else float(row[key]) for key in ("value", "low", "high")}
        which = kinds.index(row.get("kind", "")) % 8
        if number["low"] is not None and number["high"] is not None:
            axes.plot([number["low"], number["high"]], [i, i], color=style.COLOURS[which], linewidth=3, alpha=0.4,
                      solid_capstyle="butt")
        if number["value"] is not None:
            axes.plot(number["value"], i, style.MARKERS[which], color=style.COLOURS[which], markersize=6)
        axes.annotate(_estimate(number), (1.02, i), va="center", fontsize=8.5, xycoords=axes.get_yaxis_transform())
    if reference is not None:
        axes.axvline(reference, color=style.INK, linewidth=1, linestyle=(0, (3, 2)), zorder=1)
        axes.text(reference, 1.01, f"{reference_label} {reference:.3f}".strip(), ha="center", va="bottom", fontsize=8,
                  transform=axes.get_xaxis_transform())
    for i, kind in enumerate(kinds) if "kind" in table else ():
        axes.plot([], [], style.MARKERS[i % 8], color=style.COLOURS[i % 8], label=style.plain(kind, 28))
    known = [v for v in (*table[["value", "low", "high"]].to_numpy(float).ravel(), reference or np.nan)
             if np.isfinite(v)]
    low, high = min(known, default=0), max(known, default=1)
    margin = max(0.06 * (high - low), 0.01)
    axes.set(xlim=(low - margin, high + margin), ylim=(len(table) - 0.4, -0.6), xlabel=xlabel)
    axes.set_yticks(range(len(table)), [style.plain(name, 46) for name in table["name"]])
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


def headline(summary) -> list[tuple[str, float | None, float | None, float | None]]:
    """(name, value, low, high) of the numbers that a person asks for first, larger is better."""
    names = ["accuracy", "balanced_accuracy", "auc", "sensitivity", "specificity", "precision", "f1", "macro_f1"]
    return [(k.replace("_", " ").replace("auc", "AUC").replace("f1", "F1"), v["value"], v["low"], v["high"])
            for k in names if (v := summary["metrics"].get(k))]


def draw_intervals(axes, numbers) -> None:
    for i, (_, value, low, high) in enumerate(numbers):
        if low is not None and high is not None:
            axes.plot([low, high], [i, i], color=style.BLUE, linewidth=3, alpha=0.35, solid_capstyle="round")
        if value is not None:
            axes.plot(value, i, "o", color=style.BLUE, markersize=6)
        axes.annotate("undefined" if value is None else f"{value:.3f}", (1.02, i), va="center", fontsize=8.5,
                      xycoords=axes.get_yaxis_transform())
    axes.set(xlim=(-0.01, 1.02), ylim=(len(numbers) - 0.5, -0.5), xlabel="value (0 to 1) and 95 % interval")
    axes.set_yticks(range(len(numbers)), [style.plain(name, 30) for name, *_ in numbers])
    axes.tick_params(axis="y", length=0)
    axes.grid(False, axis="y")


@style.styled
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
    figure = style.open(7, 0.9 + 0.185 * len(table) + 0.15 * len(classes), title, note)
    axes = figure.subplots()
    gaps = {c: i for i, c in enumerate(classes)}
    places = np.arange(len(table)) + 1.2 * table["label"].map(gaps).to_numpy(float)
    images = table["images"].to_numpy(float) if "images" in table else np.ones(len(table))
    sizes = 18 + 70 * images / max(images.max(initial=1), 1)
    for name in classes:
        i, here = every.index(name), (table["label"] == name).to_numpy()
        axes.hlines(places[here], 0, table[score][here], color="#dfe4e8", linewidth=1, zorder=1)
        axes.scatter(table[score][here], places[here], s=sizes[here], color=style.COLOURS[i % 8], zorder=2, linewidth=0,
                     label=f"{here.sum()} {group_name}s: {style.plain(name, 28)}", marker=style.MARKERS[i % 8], clip_on=False)
    style.mark_threshold(axes, threshold)
    axes.set(xlim=(-0.02, 1.03), ylim=(places[-1] + 0.8, -0.8), xlabel=score_label)
    axes.set_yticks(places, [style.plain(name, 24) for name in table[who]])
    axes.tick_params(axis="y", labelsize=7.5, length=0)
    axes.grid(False, axis="y")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower right", ncols=2)
    return figure


def _many_patients(table, score, score_label, threshold, classes, every, group_name, title, note) -> Figure:
    """Too many for a dot each: a row per class, a disc per score whose area is the share of the class, with its count.

    Scores are gathered in steps of 0.05.
    """
    title = title if title != f"One dot per {group_name}" else f"Scores of {len(table):,} {group_name}s"
    figure = style.open(8, 0.8 + 0.62 * len(classes), title, note)
    axes = figure.subplots()
    for row, name in enumerate(classes):
        scores, counts = np.unique((table.loc[table["label"] == name, score] * 20).round() / 20, return_counts=True)
        axes.scatter(scores, np.full(len(scores), row), s=900 * counts / counts.sum(), alpha=0.75, linewidth=0,
                     color=style.COLOURS[every.index(name) % 8], zorder=2, clip_on=False)
        for at, count in zip(scores, counts, strict=True):
            axes.text(at, row + 0.46, f"{count:,}", ha="center", va="center", fontsize=7.5)
    style.mark_threshold(axes, threshold)
    axes.set(xlim=(-0.05, 1.05), ylim=(len(classes) - 0.3, -0.7), xlabel=score_label)
    sizes = table["label"].value_counts()
    axes.set_yticks(range(len(classes)), [f"{style.plain(c, 24)}: {sizes[c]:,}" for c in classes])
    axes.tick_params(axis="y", length=0)
    axes.grid(False, axis="y")
    return figure
