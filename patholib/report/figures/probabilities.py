"""Figures of probabilities: calibration, threshold, net benefit, selective prediction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from sklearn.metrics import roc_curve

from patholib.report.figures import performance, style

NO_POSITIVE = "no positive class is set: the class with the largest probability is predicted"


@style.styled
def reliability(found: Mapping, note: str = "") -> Figure:
    """Reliability diagrams before and after calibration, and how many images have which probability.

    found: of `decisions.calibration_of`. On the dotted line probabilities are right. The dots stand for bins of as many
    images each, unless equal values had to stay together: larger dots for more.
    """
    figure = style.open(9, 4.9, "Calibration: observed share against predicted probability", note)
    panels = figure.subplots(2, 2, sharex=True, height_ratios=(3.6, 1))
    for column, (when, colour) in zip(panels.T, (("before", style.ORANGE), ("after", style.BLUE)), strict=True):
        axes, counts = column
        bins = pd.DataFrame(found[when]["bins"])
        axes.plot([0, 1], [0, 1], **performance.CHANCE)
        axes.vlines(bins["confidence"], bins["confidence"], bins["accuracy"], color=colour, alpha=0.35, linewidth=3)
        axes.scatter(
            bins["confidence"],
            bins["accuracy"],
            s=10 + 40 * bins["n"] / bins["n"].max(),
            color=colour,
            zorder=3,
            clip_on=False,
        )
        axes.set(ylim=(-0.02, 1.02), xlim=(-0.02, 1.02))
        scaled = f" (temperature {found[when]['temperature']:.2f})" if when == "after" else ""
        axes.set_title(
            f"{when} calibration{scaled}\ncalibration error (ECE) {found[when]['ece_mass']:.3f}, "
            f"expected by chance {found[when]['ece_chance']:.3f}",
            fontsize=9,
            weight="normal",
        )
        number = found[when]["counts"]
        counts.bar((np.arange(len(number)) + 0.5) / len(number), number, width=0.9 / len(number), color=colour)
        counts.set(xlabel="predicted probability", ylim=(0, 1.15 * max(number)))
        counts.yaxis.set_major_locator(MaxNLocator(nbins=2, integer=True))
    panels[0][0].set_ylabel("observed share")
    panels[1][0].set_ylabel("images")
    return figure


@style.styled
def thresholds(
    labels,
    probs,
    classes: Sequence[str],
    positive: str | None,
    threshold: float | None,
    target: float | None = None,
    note: str = "",
) -> Figure:
    """Sensitivity and specificity of `positive` against the threshold, the locked one marked.

    labels: (N,) class indices; probs: (N, C) of the images it was chosen on. target: the sensitivity asked for.
    """
    figure = style.open(6.5, 3.6, "Sensitivity and specificity by threshold (validation images)", note)
    axes = figure.subplots()
    if positive is None:
        style.words(axes, NO_POSITIVE)
        return figure
    name, truth, score = next(
        row for row in performance.by_class(labels, probs, classes, positive) if row[0] == positive
    )
    if truth.all() or not truth.any():
        axes.text(0.5, 0.5, f"undefined: no image is {'negative' if truth.all() else style.plain(name)}", ha="center")
    else:
        alarm, sensitivity, at = roc_curve(truth, score, drop_intermediate=False)  # thresholds fall from infinity
        at, sensitivity = np.r_[0, at[:0:-1], 1], np.r_[1, sensitivity[::-1]]
        specificity = np.r_[0, 1 - alarm[::-1]]
        axes.step(at, sensitivity, where="pre", label="sensitivity", color=style.BLUE)
        axes.step(at, specificity, where="pre", label="specificity", color=style.ORANGE, linestyle=style.DASHES[1])
    if target is not None:
        axes.axhline(
            target, color=style.FAINT, linewidth=1, linestyle=(0, (1, 2)), label=f"target sensitivity {target:g}"
        )
    style.mark_threshold(axes, threshold)
    axes.set(
        xlabel=f"threshold on the probability of {style.plain(name, 28)}",
        xlim=(-0.01, 1.01),
        ylim=(-0.02, 1.03),
        ylabel="sensitivity, specificity",
    )
    axes.legend(loc="best")
    return figure


@style.styled
def decision_curve(found: Mapping | None, threshold: float | None = None, note: str = "") -> Figure:
    """Net benefit of acting on the model, on all and on none, against the threshold (Vickers & Elkin 2006).

    found: of `ranking.decision_curve`; None without a positive class. threshold: the locked one.
    """
    figure = style.open(6.5, 3.6, "Decision curve: net benefit", note)
    axes = figure.subplots()
    if found is None:
        style.words(axes, NO_POSITIVE)
        return figure
    at, model, everybody = (np.array(found[name]) for name in ("threshold", "model", "everybody"))
    axes.axhline(0, color=style.FAINT, linewidth=1.2, label="act on none")
    axes.plot(at, everybody, color=style.ORANGE, linestyle=style.DASHES[1], label="act on all")
    axes.plot(at, model, color=style.BLUE, label="act on what the model predicts")
    style.mark_threshold(axes, threshold)
    top = max(model.max(), everybody.max(), 0.05)
    axes.set(
        xlabel="threshold probability",
        xlim=(-0.01, 1.01),
        ylabel="net benefit per image",
        ylim=(-0.35 * top, 1.1 * top),
    )
    axes.legend(loc="best")
    return figure


@style.styled
def abstention(found: Mapping, note: str = "") -> Figure:
    """The share of wrong predictions against the share of images that are predicted, most certain first.

    found: of `ranking.abstention`.
    """
    coverage, risk = np.array(found["coverage"]), np.array(found["risk"])
    figure = style.open(6.5, 3.4, "Error rate when the least certain images are left to a person", note)
    axes = figure.subplots()
    axes.plot(
        100 * coverage,
        100 * risk,
        color=style.BLUE,
        label=f"least certain left out: {100 * found['aurc']:.1f} % on average",
    )
    axes.axhline(
        100 * found["aurc_random"],
        color=style.FAINT,
        linewidth=1.2,
        linestyle=(0, (3, 2)),
        label=f"left out at random: {100 * found['aurc_random']:.1f} %",
    )
    axes.set(
        xlabel="images predicted (%), most certain first",
        ylabel="wrong predictions (%)",
        xlim=(-1, 101),
        ylim=(-0.02 * 100 * max(risk.max(), 0.01), 110 * max(risk.max(), 0.01)),
    )
    axes.legend(loc="best")
    return figure
