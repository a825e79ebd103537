"""Whether the model beats the simpler ones that were judged on the same test images, from metrics.json."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from patholib.judge.metric_table import words
from patholib.judge.metrics import readable

RIVALS = {
    "baseline": "colour statistics",
    "probe": "a linear probe of the untrained network",
    "image_alone": "the same network without data of the patient",
}
BETTER, NOT_SHOWN, NOT_BETTER = "better", "not shown to be better", "not better"


class Against(NamedTuple):
    """The model beside one simpler model, by one metric of the test images; each number as in metrics.json."""

    outcome: str  # BETTER, NOT_SHOWN or NOT_BETTER
    ours: Mapping
    theirs: Mapping
    difference: Mapping | None  # ours minus theirs on the same groups; None: not computed


def against(metrics: Mapping, key: str, name: str) -> Against | None:
    """The model beside `key` of RIVALS by the metric `name`; None where one of the two numbers is absent."""
    ours, theirs = (((metrics.get(of) or {}).get("metrics") or {}).get(name) or {} for of in ("test", key))
    if ours.get("value") is None or theirs.get("value") is None:
        return None
    difference = metrics.get("gain_over", {}).get(key, {}).get(name)
    low, high = ((difference or {}).get(end) for end in ("low", "high"))
    outcome = BETTER if low is not None and low > 0 else NOT_BETTER if high is not None and high <= 0 else NOT_SHOWN
    return Against(outcome, ours, theirs, difference)


def not_beaten(metrics: Mapping, key: str, name: str) -> str:
    """A sentence where the test images do not show that the model beats `key` of RIVALS by this metric, or ""."""
    found = against(metrics, key, name)
    if found is None or found.outcome == BETTER:
        return ""
    both = f"{words(name)} {found.ours['value']:.3f} against {found.theirs['value']:.3f}"
    said = f"The model is {found.outcome} than {RIVALS[key]}: {both}"
    if found.outcome == NOT_BETTER:
        return f"{said}."
    if found.difference is None:
        return f"{said}, and their difference was not computed."
    if found.difference.get("low") is None:
        return f"{said}, and their difference has no interval."
    return f"{said}; the difference on the same groups, {readable(found.difference, sign='+')}, may be zero."


def gains(metrics: Mapping) -> dict[str, Mapping]:
    """Every paired difference on the test images, by what was subtracted from what."""
    over = {f"this model minus {RIVALS[key]}": gain for key, gain in metrics.get("gain_over", {}).items()}
    every = {"averaged views minus one view": metrics.get("tta_gain"), **over}
    return {what: gain for what, gain in every.items() if gain}
