"""The metrics by name: what people call them, the order they are shown in, and for which of them lower is better."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple


class Measure(NamedTuple):
    """How one metric is shown."""

    words: str
    lower: bool = False  # whether a lower value is better
    headline: bool = True  # False: shown in a table of its own only, such as that of the calibration


MEASURES = {
    "accuracy": Measure("accuracy"),
    "balanced_accuracy": Measure("balanced accuracy"),
    "auc": Measure("AUC"),
    "sensitivity": Measure("sensitivity"),
    "specificity": Measure("specificity"),
    "precision": Measure("precision"),
    "f1": Measure("F1"),
    "macro_precision": Measure("macro precision"),
    "macro_sensitivity": Measure("macro sensitivity", headline=False),  # equals the balanced accuracy
    "macro_specificity": Measure("macro specificity"),
    "macro_f1": Measure("macro F1"),
    "log_loss": Measure("log loss", lower=True),
    "brier": Measure("Brier score", lower=True),
    "ece": Measure("calibration error", lower=True),
    "ece_mass": Measure("calibration error, bins of equal mass", lower=True, headline=False),
    "ece_width": Measure("calibration error, bins of equal width", lower=True, headline=False),
    "ece_chance": Measure("calibration error expected by chance", lower=True, headline=False),
    "ppv": Measure("positive predictive value", headline=False),
    "npv": Measure("negative predictive value", headline=False),
    "recognition_rate": Measure("recognition rate", headline=False),
}


def words(name: str) -> str:
    """What people call a metric; an unknown one is shown under its own name."""
    return MEASURES[name].words if name in MEASURES else name.replace("_", " ")


def ordered(names: Iterable[str], two_classes: bool = False) -> list[str]:
    """The metrics to show, in the order of the table; those that are not in the table come last, so that none is lost.

    two_classes: leaves out macro averages, which repeat the numbers of the positive class.
    """
    names = list(dict.fromkeys(names))
    found = [name for name, measure in MEASURES.items() if name in names and measure.headline]
    found += [name for name in names if name not in MEASURES]
    return [name for name in found if not (two_classes and name.startswith("macro"))]


def lower_is_better(name: str) -> bool:
    """Whether a lower value of the metric is better; of an unknown metric a higher one is assumed to be."""
    return name in MEASURES and MEASURES[name].lower
