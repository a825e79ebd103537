"""External validation: the locked model of a run on a second labelled data set; nothing of the run is changed.

`numbers` gives what metrics.json of a run has, by the same function, with the differences from the run's own test
images. What a recalibration would change is estimated apart, by cross-fitting, and is no result of this model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from markupsafe import escape

from patholib.base import files, pages
from patholib.judge import (
    calibration,
    decisions,
    intervals,
    judging,
    metric_table,
    metrics,
    novelty,
    predicting,
    validation,
)
from patholib.judge.calibration import Calibration
from patholib.judge.intervals import Estimate
from patholib.judge.judging import Judged
from patholib.model.recipes import Recipe

if TYPE_CHECKING:
    import torch

    from patholib.data.imagesets import ImageSet

FOLDER, FACTS, FORMAT = "external", "external.json", 1
OF_A_CLASS = ("sensitivity", "specificity", "auc")  # whose differences are given
RECALIBRATED = "If recalibrated on these images; not a result of this model"
HOW = (
    "calibration and threshold were chosen again, by the rule of the run, on the groups of the other folds; so no "
    "image chose its own threshold"
)
FOLDS = 5
WORSE, BETTER, NOT_SHOWN = "Worse", "Better", "Not shown to differ"


@dataclass(frozen=True, repr=False)
class External:
    """What external validation found; `judged` has the tables that a run has of its own test images."""

    folder: Path
    facts: dict  # of external.json: data, classes, what was left out, leaks, versions
    judged: Judged
    internal: dict  # `metrics.summary` of the run's own test images
    monitor: str  # the metric of the headline

    @property
    def name(self) -> str:
        """The name of the second set."""
        return self.facts["name"]

    @property
    def minus(self) -> dict:
        """Internal minus external: {"metrics", "per_class", "alert"}."""
        return self.judged.metrics["internal_minus_external"]

    @property
    def table(self) -> pd.DataFrame:
        """Every metric on the run's own test images, on these, and the difference, with 95 % intervals over groups."""
        ours, theirs, gap = self.internal["metrics"], self.judged.summary["metrics"], self.minus["metrics"]
        return pd.DataFrame(
            {
                metric_table.words(name): {
                    "internal": metrics.readable(ours[name]),
                    "external": metrics.readable(theirs[name]),
                    "internal minus external": metrics.readable(gap[name], sign="+"),
                }
                for name in metric_table.ordered(gap, len(self.judged.recipe.classes) == 2)
            }
        ).T

    @property
    def outcome(self) -> str:
        """`outcome_of` the metric of the headline."""
        return self.outcome_of(self.monitor)

    def outcome_of(self, name: str) -> str:
        """WORSE or BETTER than on the run's own test images if the interval of this metric's difference excludes 0."""
        gap = self.minus["metrics"][name]
        if gap["low"] is None or gap["low"] <= 0 <= gap["high"]:
            return NOT_SHOWN
        return WORSE if (gap["low"] > 0) != metric_table.lower_is_better(name) else BETTER

    @property
    def headline(self) -> str:
        """The outcome, with the numbers behind it, in a sentence."""
        name, summary = self.monitor, self.judged.summary
        than = "from its own test images" if self.outcome == NOT_SHOWN else "than on its own test images"
        gap = self.minus["metrics"][name]
        return (
            f"{self.outcome} {than}: {metric_table.words(name)} "
            f"{metrics.readable(self.internal['metrics'][name])} there, "
            f"{metrics.readable(summary['metrics'][name])} on {summary['images']:,} external images of "
            f"{summary['groups']:,} groups; internal minus external {metrics.readable(gap, sign='+')}"
        )

    @property
    def others(self) -> str:
        """Which other metrics are shown to be worse or better, in a sentence; "" where none is."""
        names = [
            name
            for name in metric_table.ordered(self.minus["metrics"], len(self.judged.recipe.classes) == 2)
            if name != self.monitor
        ]
        shown = {
            outcome: [metric_table.words(name) for name in names if self.outcome_of(name) == outcome]
            for outcome in (WORSE, BETTER)
        }
        listed = "; ".join(f"{outcome.lower()} {', '.join(some)}" for outcome, some in shown.items() if some)
        return f"Other metrics, each by its own interval: {listed}" if listed else ""

    @property
    def calibrated(self) -> str:
        """Whether the probabilities fit these images, in a sentence; "" without a positive class."""
        found = self.judged.metrics["in_the_large"]
        if not found:
            return ""
        off = [
            name
            for name, right in (("intercept", 0), ("slope", 1))
            if (number := found[name])["low"] is not None and not number["low"] <= right <= number["high"]
        ]
        numbers = (
            f"intercept {metrics.readable(found['intercept'], sign='+')}, slope {metrics.readable(found['slope'])}"
        )
        said = "do not fit these images" if off else "are not shown to be wrong on these images"
        return f"The probabilities of {found['of']} {said}: calibration {numbers}; right would be 0 and 1"

    @property
    def familiar(self) -> str:
        """How many images are unlike the training images, in a sentence."""
        found = self.judged.metrics["novelty"]
        if "share" not in found:
            return f"Not compared with the training images: {found['missing']}"
        return (
            f"{100 * found['share']['value']:.1f} % of the images are unlike the training images in colour or "
            f"sharpness; at most about {100 * found.get('expected', 0.01):.0f} % would be, if they were taken alike"
        )

    @property
    def sentences(self) -> list[str]:
        """What was found, in sentences."""
        said = (self.headline, self.facts.get("internal"), self.others, self.calibrated, self.familiar)
        return [one for one in said if one]

    @property
    def recalibrated(self) -> pd.DataFrame:
        """The metrics with the locked decision and with a new one; see RECALIBRATED. Empty where it was not done."""
        found = self.judged.metrics["if_recalibrated"]
        if "metrics" not in found:
            return pd.DataFrame()
        both = {"as locked": self.judged.summary["metrics"], "if recalibrated": found["metrics"]}
        names = metric_table.ordered(found["metrics"], len(self.judged.recipe.classes) == 2)
        rows = {
            metric_table.words(name): {title: metrics.readable(one[name]) for title, one in both.items()}
            for name in names
            if name != "auc"
        }
        sides = {"as locked": self.judged.metrics["in_the_large"], "if recalibrated": found["in_the_large"]}
        for name in ("intercept", "slope") if found["in_the_large"] else ():
            rows[f"calibration {name}"] = {title: metrics.readable(one[name]) for title, one in sides.items()}
        return pd.DataFrame(rows).T

    @property
    def leaks(self) -> str:
        """What these images share with the run, in a sentence; "" where nothing was found."""
        found = self.facts["leaks"]
        kinds = ", ".join(f"{n:,} by {kind}" for kind, n in found["by_kind"].items())
        return f"{found['images']:,} of these images are not new to the run ({kinds})" if found["images"] else ""

    def __repr__(self) -> str:
        lines = [self.facts["note"], f"External validation on {self.name}", *self.sentences, self.table.to_string()]
        return "\n".join(filter(None, lines))

    def _repr_html_(self) -> str:
        lines = [self.facts["note"], *self.sentences]
        rows = [(name, *row) for name, row in zip(self.table.index, self.table.to_numpy(), strict=True)]
        said = "".join(f"<p>{escape(line)}</p>" for line in filter(None, lines))
        return said + pages.table(("", *self.table.columns), rows)


def read(folder: Path) -> External:
    """What external validation wrote into a folder of <run>/external. Errors: missing_file."""
    folder = Path(folder)
    recipe, internal = _known(folder.parent.parent)
    table = predicting.read_predictions(folder / "predictions.csv", recipe.classes)
    judged = Judged(files.read_json(folder / "metrics.json"), table, recipe)
    return External(folder, files.read_json(folder / FACTS), judged, internal, recipe.monitor)


def _known(home: Path) -> tuple[Recipe, dict]:
    """Recipe and `metrics.summary` of the test images of a run; of the folds as one model, the pooled numbers."""
    folds = validation.read(home)
    if folds.facts:
        return decisions.recipe_of(folds.first), folds.facts["pooled"]
    return decisions.recipe_of(home), files.read_json(home / "metrics.json")["test"]


def of_run(run_dir: Path) -> list[External]:
    """Every external validation of a run, by name."""
    found = sorted((Path(run_dir) / FOLDER).glob(f"*/{FACTS}"))
    return [read(path.parent) for path in found if not path.parent.name.startswith(".")]  # one that is being written


def judge(
    model: torch.nn.Module,
    images: ImageSet,
    home: Path,
    decision: Mapping,
    familiar: novelty.Familiar | str,
    subgroups: Sequence[str] = (),
) -> tuple[dict, dict[str, pd.DataFrame]]:
    """The content of metrics.json and the calibrated predictions of a second set, {"test", "test_tta"}.

    images: with the column group. home: a run folder, or that of a cross-validation. decision: what was locked there.
    familiar: the training images, or why they are not known. Errors: those of `predicting.forward`.
    """
    recipe, internal = _known(home)
    raw = judging.predicted(model, images, recipe)
    found, tables = numbers(raw, recipe, decision, internal, subgroups)
    if isinstance(familiar, str):
        found["novelty"] = {"missing": familiar}
    else:
        away, found["novelty"] = novelty.judged(familiar, images)
        tables = {name: predicting.own_apart(table, ["novelty"]).assign(novelty=away) for name, table in tables.items()}
    return found, tables


def numbers(
    raw: Mapping[str, pd.DataFrame], recipe: Recipe, decision: Mapping, internal: Mapping, subgroups: Sequence[str] = ()
) -> tuple[dict, dict[str, pd.DataFrame]]:
    """`judging.numbers` of a second set's raw predictions, and what only such a set has.

    internal: `metrics.summary` of the run's own test images, with its alert.
    """
    found, tables = judging.numbers(raw, recipe, decision, subgroups)
    for name, table in tables.items():
        decided = decisions.deciding(decisions.for_views(decision, name == "test_tta"), recipe.classes)
        tables[name] = validation.decided(table, recipe, decided)
    found["internal_minus_external"] = minus(internal, found["test"])
    found["in_the_large"] = _in_the_large(tables["test"], recipe)
    found["if_recalibrated"] = recalibrated(raw["test"], recipe, decision)
    return found, tables


def minus(internal: Mapping, external: Mapping) -> dict:
    """Every metric of one `metrics.summary` minus that of another, of independent images: see `intervals.apart`.

    A mean over classes has no difference where the sets do not have the same classes.
    """
    rows = internal["per_class"], external["per_class"]
    apart = [name for name in rows[0] if bool(rows[0][name]["support"]) != bool(rows[1][name]["support"])]
    reason = f"means over other classes: one of the sets has no {', '.join(apart)}"
    means = {metric.name for metric in metric_table.of_kind("mean")} if apart else set()
    gaps = _apart(internal["metrics"], external["metrics"])
    return {
        "metrics": gaps | {name: Estimate(None, missing=reason).to_json() for name in gaps if name in means},
        "per_class": {name: _apart(row, rows[1][name], OF_A_CLASS) for name, row in rows[0].items()},
        "alert": _apart(internal.get("alert", {}), external.get("alert", {}), metrics.ALERT),
    }


def _apart(ours: Mapping, theirs: Mapping, names: Sequence[str] | None = None) -> dict:
    """The differences of the numbers that both have."""
    return {
        name: intervals.apart(Estimate.from_json(ours[name]), Estimate.from_json(theirs[name])).to_json()
        for name in (names or ours)
        if name in ours and name in theirs
    }


def _in_the_large(table: pd.DataFrame, recipe: Recipe) -> dict:
    """`calibration.in_the_large` of the positive class, as JSON values; {} without one."""
    if recipe.positive is None:
        return {}
    labels, probs = predicting.true_labels(table, recipe.classes), predicting.probs_of(table, recipe.classes)
    found = calibration.in_the_large(labels, probs, recipe.classes.index(recipe.positive), table["group"])
    return {"of": recipe.positive, **{name: number.to_json() for name, number in found.items()}}


def recalibrated(raw: pd.DataFrame, recipe: Recipe, decision: Mapping) -> dict:
    """What a new calibration and threshold, by the rule of the run, would give on images that did not choose them.

    Cross-fitted: the groups are dealt to FOLDS folds, class by class, and each fold is judged by what the others chose.
    """
    found = {"what": RECALIBRATED, "how": HOW}
    per_class = raw.groupby("label")["group"].nunique()
    if per_class.min() < 2:
        return {**found, "not_done": f"only one group of {per_class.idxmin()}"}
    fold, parts, chosen = _folds(raw, recipe.seed), [], []
    for k in range(FOLDS):
        part, others = raw[fold == k], raw[fold != k]
        if len(part):
            chosen.append(_chosen(others, recipe, decision))
            calibrated = decisions.with_calibration(part, recipe.classes, chosen[-1])
            parts.append(validation.decided(calibrated, recipe, decisions.deciding(chosen[-1], recipe.classes)))
    table = pd.concat(parts).sort_index()
    return {
        **found,
        "folds": len(parts),
        "temperatures": [one["temperature"] for one in chosen],
        "thresholds": [one["threshold"] for one in chosen],
        "metrics": validation.pooled_summary(table, recipe)["metrics"],
        "in_the_large": _in_the_large(table, recipe),
    }


def _chosen(table: pd.DataFrame, recipe: Recipe, decision: Mapping) -> dict:
    """Calibration and threshold from these images, for the target and the prior correction of the run."""
    counts = np.bincount(predicting.true_labels(table, recipe.classes), minlength=len(recipe.classes)) + 0.5  # never 0
    shares = dict(zip(recipe.classes, (counts / counts.sum()).tolist(), strict=True))
    target = decision["target"]
    return decisions.choose(
        table,
        recipe.classes,
        recipe.positive,
        target.get("sensitivity", decisions.TARGET),
        target.get("cost_ratio"),
        recipe.seed,
        shares if decision.get("shares") else None,
        Calibration.of(decision, recipe.classes).correction,
        list(decision.get("patient") or ()),
    )


def _folds(table: pd.DataFrame, seed: int) -> np.ndarray:
    """(N,) the fold of each image: groups in random order, dealt out class by class."""
    first = table.sort_values(["group", "label"]).drop_duplicates("group")[["group", "label"]]
    mixed = first.iloc[np.random.default_rng(seed).permutation(len(first))].sort_values("label", kind="stable")
    dealt = pd.Series(np.arange(len(mixed)) % FOLDS, mixed["group"])
    return table["group"].map(dealt).to_numpy()


def write(folder: Path, found: dict, tables: Mapping[str, pd.DataFrame], facts: dict) -> None:
    """Writes predictions, metrics.json and external.json; the last says that the others are whole."""
    for name, table in tables.items():
        predicting.write_predictions(table, folder / f"predictions{name.removeprefix('test')}.csv")
    files.write_json(folder / "metrics.json", found)
    files.write_json(folder / FACTS, {"format": FORMAT} | facts)
