"""Figures of probabilities: calibration, thresholds, net benefit, abstention."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from patholib.judge import ranking
from patholib.report.figures import performance, style


@style.styled
def reliability(found: Mapping, title: str = "What the probabilities are worth", note: str = "") -> Figure:
    """Accuracy against confidence before and after calibration, and how many images have which confidence.

    found: of `evaluation.calibration_of`. On the dotted line a probability means what it says. The dots stand for
    bins of as many images each, unless equal values had to stay together: larger dots for more.
    """
    figure = style.open(9, 4.9, title, note)
    panels = figure.subplots(2, 2, sharex=True, height_ratios=(3.6, 1))
    for column, (when, colour) in zip(panels.T, (("before", style.ORANGE), ("after", style.BLUE)), strict=True):
        bins, axes, counts = pd.DataFrame(found[when]["bins"]), *column
        axes.plot([0, 1], [0, 1], color=style.FAINT, linewidth=1, linestyle=(0, (3, 2)))
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


@style.styled
def thresholds(labels, probs, classes: Sequence[str], positive: str | None, threshold: float | None,
               target: float | None = None, title: str = "What a threshold buys and costs", note: str = "") -> Figure:
    """Sensitivity and specificity of `positive` against the threshold, the locked one marked.

    labels: (N,) class indices; probs: (N, C) of the images it was chosen on. target: the sensitivity asked for.
    """
    figure = style.open(6.5, 3.6, title, note)
    axes = figure.subplots()
    if positive is None:
        return _unwatched(figure, axes)
    name, truth, score = next(row for row in performance.by_score(labels, probs, classes, positive) if row[0] == positive)
    if truth.all() or not truth.any():
        axes.text(0.5, 0.5, f"undefined: no image is {'negative' if truth.all() else style.plain(name)}", ha="center")
    else:
        sensitivity, specificity, at = ranking.operating_points(truth, score)
        for values, label, look in ((sensitivity, "sensitivity", {"color": style.BLUE}),
                                    (specificity, "specificity", {"color": style.ORANGE, "linestyle": style.DASHES[1]})):
            edge = 1.0 if label == "sensitivity" else 0.0  # what a threshold of 0 gives, above all scores the opposite
            axes.step(np.concatenate([[0], at, [1]]), np.concatenate([[edge], values, [1 - edge]]), where="pre",
                      label=label, **look)
    if target is not None:
        axes.axhline(target, color=style.FAINT, linewidth=1, linestyle=(0, (1, 2)), label=f"target {target:g}")
    style.mark_threshold(axes, threshold)
    axes.set(xlabel=f"threshold on the probability of {style.plain(name, 28)}", xlim=(-0.01, 1.01), ylim=(-0.02, 1.03),
             ylabel="share of the images")
    axes.legend(loc="best")
    return figure


def _unwatched(figure: Figure, axes) -> Figure:
    axes.set_axis_off()
    axes.text(0.5, 0.5, "no class is singled out: the largest probability decides", ha="center", va="center",
              color=style.FAINT)
    return figure


@style.styled
def decision_curve(found: Mapping | None, threshold: float | None = None, title: str = "Is acting on it worth it?",
                   note: str = "") -> Figure:
    """Net benefit of acting on the model, on everybody and on nobody, against the threshold (Vickers & Elkin 2006).

    found: of `metrics.decision_curve`; None where no class is singled out. threshold: the locked one.
    """
    figure = style.open(6.5, 3.6, title, note)
    axes = figure.subplots()
    if found is None:
        return _unwatched(figure, axes)
    at, model, everybody = (np.array(found[name]) for name in ("threshold", "model", "everybody"))
    axes.axhline(0, color=style.FAINT, linewidth=1.2, label="act on nobody")
    axes.plot(at, everybody, color=style.ORANGE, linestyle=style.DASHES[1], label="act on everybody")
    axes.plot(at, model, color=style.BLUE, label="act on the model")
    style.mark_threshold(axes, threshold)
    top = max(model.max(), everybody.max(), 0.05)
    axes.set(xlabel="threshold: the probability from which on one would act", xlim=(-0.01, 1.01),
             ylabel="net benefit per image", ylim=(-0.35 * top, 1.1 * top))
    axes.legend(loc="best")
    return figure


@style.styled
def abstention(found: Mapping, title: str = "If the least sure images go to a person", note: str = "") -> Figure:
    """The share of wrong answers against the share of images that are answered, surest first.

    found: of `metrics.abstention`.
    """
    coverage, risk = np.array(found["coverage"]), np.array(found["risk"])
    figure = style.open(6.5, 3.4, title, note)
    axes = figure.subplots()
    axes.plot(100 * coverage, 100 * risk, color=style.BLUE, label=f"this model: mean {100 * found['aurc']:.1f} %")
    axes.axhline(100 * found["aurc_random"], color=style.FAINT, linewidth=1.2, linestyle=(0, (3, 2)),
                 label=f"leaving out by chance: {100 * found['aurc_random']:.1f} %")
    axes.set(xlabel="images answered (%), surest first", ylabel="of these wrong (%)", xlim=(-1, 101),
             ylim=(-0.02 * 100 * max(risk.max(), 0.01), 110 * max(risk.max(), 0.01)))
    axes.legend(loc="best")
    return figure
