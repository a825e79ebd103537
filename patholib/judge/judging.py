"""The test images are predicted once, with the locked decision; their metrics go to metrics.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from patholib.base import files
from patholib.judge import (
    decisions,
    gains,
    groupwise,
    intervals,
    metric_table,
    metrics,
    novelty,
    predicting,
    ranking,
    rules,
    sets,
)
from patholib.judge.decisions import Shown
from patholib.model.recipes import Recipe

if TYPE_CHECKING:
    import torch

    from patholib.data.imagesets import ImageSet


def read_judged(run_dir: Path) -> Judged:
    """What `judge` wrote into a run folder. Errors: missing_file where nothing was judged."""
    found = files.read_json(Path(run_dir) / "metrics.json")
    return Judged(found, decisions.calibrated(run_dir, "test"), decisions.recipe_of(run_dir))


LEVELS = ("slide", "case", "lesion")  # by which images are grouped, where a data set knows it


@dataclass(frozen=True, repr=False)
class Judged:
    """The results that `judge` wrote into the run folder, and tables of them; printed, it is `table`."""

    metrics: dict  # of metrics.json
    test: pd.DataFrame  # predictions of the plain test views, calibrated
    recipe: Recipe

    def __repr__(self) -> str:
        return (
            f"{self.summary['images']:,} test images of {self.summary['groups']:,} groups; decision: "
            f"{self.summary['decision']}\n{self.table.to_string()}"
        )

    def _repr_html_(self) -> str:
        return self.table.to_html()

    @property
    def threshold(self) -> float | rules.Shares:
        """The threshold, or the shares, that decide: see `decisions.deciding`."""
        return decisions.deciding(self.metrics["decision"], self.recipe.classes)

    @property
    def summary(self) -> dict:
        """`metrics.summary` of the plain test views."""
        return self.metrics["test"]

    @property
    def auc(self) -> float:
        """AUC on the plain test views; macro one-vs-rest for more than two classes."""
        return self.summary["metrics"]["auc"]["value"]

    @property
    def table(self) -> pd.DataFrame:
        """The metrics of every set side by side, each with its 95 % interval over groups."""
        shown = {
            "validation": "val",
            "test": "test",
            "test, TTA": "test_tta",
            "colour baseline": "baseline",
            "linear probe": "probe",
            "image alone": decisions.ALONE,
        }
        columns = {title: self.metrics[key]["metrics"] for title, key in shown.items() if key in self.metrics}
        return self._readable(columns)

    @property
    def report(self) -> pd.DataFrame:
        """Sensitivity (recall), precision, F1 and support of every class on the test images."""
        return metrics.classification_report(self.test, self.recipe.classes, self.recipe.positive, self.threshold)

    @property
    def subgroups(self) -> pd.DataFrame:
        """The headline metrics of every subgroup of the test images, as text with their 95 % intervals.

        `note` says which rows have too few groups, and why a number is undefined.
        """
        rows = self.summary["subgroups"]
        table = pd.DataFrame(rows)
        ends = [name for name in table if name.endswith(("_low", "_high"))]
        names = dict.fromkeys(name.rsplit("_", 1)[0] for name in ends)
        text = {name: [metrics.readable(groupwise.of_subgroup(row, name), digits=2) for row in rows] for name in names}
        return table.assign(**text).drop(columns=["few", *ends], errors="ignore")

    @property
    def shown_subgroups(self) -> Shown:
        """`subgroups` for a notebook: rows with too few groups in grey, every reason once below the table."""
        rows = self.summary["subgroups"]
        reasons: dict[str, tuple[dict, set]] = {}
        for number, row in enumerate(rows):
            for note in row["note"].split("; "):
                name, _, reason = note.partition(": ")
                if reason and name != "absent" and not name.startswith("only "):  # of which classes, each row knows
                    of, where = reasons.setdefault(reason, ({}, set()))
                    of[metric_table.words(name)] = None
                    where.add(number)
        below = [
            f"{', '.join(of)}: {reason} ({len(where)} of {len(rows)} rows)" for reason, (of, where) in reasons.items()
        ]
        grey = tuple(row["few"] for row in rows)
        if any(grey):
            below.insert(0, f"grey: fewer than {intervals.FEWEST_GROUPS} groups of a class, so the intervals are rough")
        table = self.subgroups.drop(columns="note", errors="ignore")
        return Shown(table.rename(columns=metric_table.words), grey, tuple(below))

    @property
    def alert(self) -> pd.DataFrame:
        """The metrics of `positive` against the rest at the locked threshold; empty without a positive class."""
        found = self.summary.get("alert")
        if found is None:
            return pd.DataFrame()
        return pd.DataFrame(
            {
                f"p_{found['positive']} >= {found['threshold']:.4g}": {
                    metric_table.words(name): metrics.readable(found.get(name)) for name in metrics.ALERT
                }
            }
        )

    @property
    def calibration(self) -> pd.DataFrame:
        """`metric_table.CALIBRATION` before and after calibration, for each set."""
        shown = ("temperature", *metric_table.of_calibration(len(self.recipe.classes)))
        rows = {
            (name, when): {key: numbers.get(key) for key in shown}
            for name, both in self.metrics["calibration"].items()
            for when, numbers in both.items()
        }
        return pd.DataFrame(rows).T.rename(columns=metric_table.words)

    @property
    def gains(self) -> pd.DataFrame:
        """Differences with 95 % intervals: of averaged views to plain ones, and of the network to its rivals."""
        return self._readable(gains.gains(self.metrics), sign="+")

    @property
    def patients(self) -> pd.DataFrame:
        """One row per patient (case, lesion or group) of the test images."""
        return groupwise.by_patient(
            self.test,
            self.recipe.classes,
            self.recipe.positive,
            predicting.patient_column(self.test),
            self.threshold,
            decisions.deciding_patients(self.metrics["decision"], self.recipe.classes),
        )

    @property
    def labels(self) -> np.ndarray:
        """(N,) the index of each true class."""
        return predicting.true_labels(self.test, self.recipe.classes)

    @property
    def probs(self) -> np.ndarray:
        """(N, C) probabilities of the test images, calibrated."""
        return predicting.probs_of(self.test, self.recipe.classes)

    def _readable(self, columns: Mapping[str, Mapping], sign: str = "") -> pd.DataFrame:
        """Metrics as text, a row for each metric and a column for each set of them."""
        names = [
            name
            for name in metric_table.order(len(self.recipe.classes))
            if any(name in numbers for numbers in columns.values())
        ]
        return pd.DataFrame(
            {
                title: {metric_table.words(name): metrics.readable(numbers.get(name), sign=sign) for name in names}
                for title, numbers in columns.items()
            }
        )


def judge(
    model: torch.nn.Module,
    images: ImageSet,
    run_dir: Path,
    baseline: pd.DataFrame | None = None,
    subgroups: Sequence[str] = (),
    probed: pd.DataFrame | None = None,
) -> Judged:
    """Applies the model and the locked decision to the test images; writes predictions_*.csv and metrics.json.

    The recipe is that of run.json. Test images are predicted plainly and, if it has more than one view, with test-time
    augmentation, whose mean has a calibration and a threshold of its own. All numbers are of calibrated probabilities,
    at the locked threshold, with intervals over groups.
    baseline, probed: predictions of `colour_baseline` and of `probe`, each of which gets calibration and threshold from
    its own validation rows; `gain_over` is the model minus them. subgroups: columns to
    report apart, of the test images, as are the patients.
    Errors: those of `locked`.
    """
    run_dir, test, recipe = Path(run_dir), images.part("test"), decisions.recipe_of(run_dir)
    decision = decisions.locked(run_dir)  # before a test image is touched
    raw = {"val": predicting.read_predictions(run_dir / "predictions_val.csv", recipe.classes)}
    raw |= predicted(model, test, recipe)
    beside = {
        name: rival for name, rival in zip(decisions.RIVALS, (baseline, probed), strict=True) if rival is not None
    }
    found, tables = numbers(raw, recipe, decision, subgroups, beside)
    if decisions.NOVELTY in decision:
        found["test"][decisions.NOVELTY] = novelty.judged(novelty.from_json(decision[decisions.NOVELTY]), test)[1]
    for name, table in (tables | raw).items():
        if name not in ("val", decisions.ALONE):
            predicting.write_predictions(table, run_dir / f"predictions_{name}.csv")
    files.write_json(run_dir / "metrics.json", found)
    return Judged(found, tables["test"], recipe)


def predicted(model: torch.nn.Module, images: ImageSet, recipe: Recipe) -> dict[str, pd.DataFrame]:
    """Predictions as the network gives them: "test" of the plain views, "test_tta" averaged if the recipe has several.

    Errors: those of `predicting.forward`.
    """
    views = predicting.probabilities_of(
        predicting.forward(model, images, recipe, recipe.tta_views > 1)
    )  # (views, N, C), the plain view first
    found = {"test": predicting.as_predictions(images, views[0])}
    if recipe.tta_views > 1:
        found["test_tta"] = predicting.as_predictions(images, views.mean(axis=0))
    return found


def numbers(
    raw: Mapping[str, pd.DataFrame],
    recipe: Recipe,
    decision: Mapping,
    subgroups: Sequence[str] = (),
    beside: Mapping[str, pd.DataFrame] | None = None,
) -> tuple[dict, dict[str, pd.DataFrame]]:
    """The content of metrics.json, and the calibrated tables, of raw predictions under a locked decision.

    raw: "test", and where there are such "val" and "test_tta". subgroups, beside: see `judge`, of RIVALS by name.
    """
    classes, positive = recipe.classes, recipe.positive
    decided = {name: decisions.for_views(decision, name == "test_tta") for name in raw}
    tables = {name: decisions.with_calibration(table, classes, decided[name]) for name, table in raw.items()}
    thresholds = {name: decisions.deciding(decided[name], classes) for name in raw}
    for name, rival in (beside or {}).items():
        tables[name], thresholds[name] = _of_its_own(rival, recipe, decision)
    if decisions.ALONE in decision:
        tables[decisions.ALONE] = decisions.with_calibration(raw["test"], classes, decision[decisions.ALONE])
        thresholds[decisions.ALONE] = decisions.deciding(decision[decisions.ALONE], classes)
    found: dict = {name: metrics.summary(table, classes, positive, thresholds[name]) for name, table in tables.items()}
    found["test"] |= _details(tables["test"], recipe, decision, subgroups)
    found["calibration"] = {
        name: decisions.calibration_of(table, classes, positive, decided[name]) for name, table in raw.items()
    }
    if "test_tta" in tables:
        found["tta_gain"] = metrics.paired(
            tables["test_tta"], tables["test"], classes, positive, (thresholds["test_tta"], thresholds["test"])
        )
        if "averaged" not in decision:
            found["test_tta"]["notes"].append(decisions.PLAIN_LOCK)
    found["gain_over"] = {
        name: metrics.paired(tables["test"], tables[name], classes, positive, (thresholds["test"], thresholds[name]))
        for name in (*(beside or {}), decisions.ALONE)
        if name in tables
    }
    # Without the time, so that the same training gives the same bytes.
    found["decision"] = {key: value for key, value in decision.items() if key not in ("locked", decisions.NOVELTY)}
    return found, tables


def _of_its_own(rival: pd.DataFrame, recipe: Recipe, decision: Mapping) -> tuple[pd.DataFrame, float | rules.Shares]:
    """The test rows of a rival, calibrated, and its threshold: by the same rule, from its own validation rows.

    A rival has learnt the shares of the training images. Where the network divides by them, it does too.
    """
    parts = {name: rival[rival["split"] == name].reset_index(drop=True) for name in ("val", "test")}
    target = decision["target"]
    own = decisions.choose(
        parts["val"],
        recipe.classes,
        recipe.positive,
        target.get("sensitivity", decisions.TARGET),
        target.get("cost_ratio"),
        recipe.seed,
        decision.get("shares"),
    )
    return decisions.with_calibration(parts["test"], recipe.classes, own), decisions.deciding(own, recipe.classes)


def _details(test: pd.DataFrame, recipe: Recipe, decision: Mapping, subgroups: Sequence[str]) -> dict:
    """The part of metrics.json for the test images alone: subgroups, patients, alert, sets and more."""
    classes, positive, threshold = recipe.classes, recipe.positive, decisions.deciding(decision, recipe.classes)
    of_patients = decisions.deciding_patients(decision, classes)
    apart = groupwise.by_subgroup(test, classes, positive, subgroups, threshold)
    found = {
        "subgroups": apart.astype(object).where(apart.notna(), None).to_dict("records"),
        "patients": groupwise.patient_summary(
            test, classes, positive, predicting.patient_column(test), threshold, of_patients
        ),
        "levels": {  # at the threshold of patients, as these have none of their own
            level: groupwise.patient_summary(test, classes, positive, level, threshold, of_patients)
            for level in LEVELS
            if level in test and level != predicting.patient_column(test)
        },
        "abstention": ranking.abstention(test, classes, positive, threshold),
    }
    if "sets" in decision:
        inside = sets.members(predicting.probs_of(test, classes), classes, decision, threshold)
        found["sets"] = sets.judged(test, classes, inside)
    if positive is not None and decision["threshold"] is not None:
        found["alert"] = metrics.alert(test, classes, positive, decision["threshold"])
        found["decision_curve"] = ranking.decision_curve(test, positive)
    return found
