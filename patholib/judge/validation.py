"""How much one split says: the results of the same recipe on several splits, put together.

`pooled` takes the finished folds of a cross-validation; `estimates` puts the results of several trainings side by side.
"""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from patholib.base import files, pages
from patholib.judge import decisions, metric_table, metrics, predicting, resampled, rules, thresholds
from patholib.judge.calibration import Calibration
from patholib.model import recipes
from patholib.model.recipes import Recipe

FORMAT = 1
RESULT, PREDICTIONS, PICTURE = "cross_validation.json", "oof_predictions.csv", "cross_validation.png"
OF_PROBABILITIES = ("auc", "log_loss", "brier", "ece")  # all other numbers are of decisions
NOTE = (
    "Calibration and decision of every fold were chosen on the test predictions of the other folds: no image chose "
    "its own threshold, but the networks of the other folds were trained on it. The interval of the pooled "
    "predictions treats a group as one. It belongs to the recipe, on average over trainings like these, and not to "
    "one network. The folds share most of their training images: their spread is no standard error of the mean, for "
    "which no unbiased estimate exists (Bengio & Grandvalet 2004), and the interval may be too narrow (Bates, Hastie "
    "& Tibshirani 2023). A difference of two recipes holds for one training of each per fold: other seeds give "
    "another one. A pooled AUC also ranks images of one network against those of another: where it is far below the "
    "mean of the folds, their probabilities are on different scales."
)
ONE_MODEL = (
    "The folds as one model answer with the mean of their probabilities. The numbers of the cross-validation are an "
    "estimate for a single one of them: every image has trained the others, so none is left to judge their mean. The "
    "log loss of a mean is at most the mean of the members' log losses (Lakshminarayanan et al. 2017); other numbers "
    "are not promised. Calibration and threshold come from predictions of single members, and their mean is less "
    "extreme: its probabilities may be too cautious (Rahaman & Thiery 2021), and no sensitivity is promised. Judge it "
    "on images of other patients"
)
NOT_ASKED = (
    "Not asked for. With folds=5 the recipe is trained on five splits, each testing on other groups, which "
    "takes five times as long."
)


def estimates(predictions: Mapping[tuple[str, str], pd.DataFrame], recipe: Recipe, number: str = "auc") -> pd.DataFrame:
    """One number of several tables of predictions, {(kind, name): table}, as `performance.forest` draws it.

    Columns kind, name, value, low, high, images, patients. What an interval draws as one is the patient, case or
    lesion, also where the split took every image for a group of its own.
    """
    rows = []
    for (kind, name), table in predictions.items():
        table = table.assign(group=table[predicting.patient_column(table)])
        found = metrics.summary(table, recipe.classes, recipe.positive)["metrics"][number]
        rows.append(
            {
                "kind": kind,
                "name": name,
                **{key: found[key] for key in ("value", "low", "high")},
                "images": len(table),
                "patients": table["group"].nunique(),
            }
        )
    return pd.DataFrame(rows)


# --------------------------------------------------------------------------------------------- cross-validation


@dataclass(frozen=True, repr=False)
class CrossValidated:
    """What a cross-validation found; empty where none was asked for."""

    folder: Path | None = None
    facts: dict = field(default_factory=dict)  # of cross_validation.json
    predictions: pd.DataFrame = field(default_factory=pd.DataFrame)  # out of fold: a row per image and repeat
    said: str = NOT_ASKED  # why it is empty, where it is

    def headline(self, units: str = "groups") -> tuple[str, str]:
        """The pooled number, and how many groups of the rarest class it rests on; units: what groups are called."""
        pooled, name, folds = self.facts["pooled"], self.facts["monitor"], self.facts["folds"]
        groups = {c: row["groups"] for c, row in pooled["per_class"].items()}
        rarest = min(groups, key=lambda c: groups[c])
        return (
            f"{metric_table.words(name)} {metrics.readable(pooled['metrics'][name])}, pooled over {folds} folds: "
            f"{self.facts['images']:,} images of {pooled['groups']:,} {units}, each predicted by a network that has "
            f"not seen its {units.removesuffix('s')}.",
            f"The {'rarer' if len(groups) == 2 else 'rarest'} class, {rarest}, has {groups[rarest]:,} {units}.",
        )

    @property
    def first(self) -> Path:
        """The run folder of the first fold; all have the same recipe and images."""
        return Path(self.folder or "", self.facts["runs"][0]["run"])

    @property
    def note(self) -> str:
        """What stands above its table and figure."""
        return self.facts.get("note", "")

    @property
    def table(self) -> pd.DataFrame:
        """The headline numbers: mean and spread over the folds, and of the pooled predictions with their interval."""
        if not self.facts:
            return pd.DataFrame()
        spread, pooled = self.facts["over_folds"], self.facts["pooled"]["metrics"]
        rows = {
            metric_table.words(name): {
                "pooled (95 % interval)": metrics.readable(pooled[name]),
                "mean of folds": found["mean"],
                "standard deviation": found["sd"],
                "lowest": found["lowest"],
                "highest": found["highest"],
            }
            for name, found in spread.items()
        }
        return pd.DataFrame(rows).T

    @property
    def folds(self) -> pd.DataFrame:
        """The monitored number of every fold with its interval, then of all: as `performance.forest` draws it."""
        name, rows = self.facts["monitor"], []
        for run in self.facts["runs"]:
            title = f"fold {run['fold']}" + (f", repeat {run['repeat']}" if self.facts["repeats"] > 1 else "")
            found = run["metrics"][name]
            rows.append(
                {
                    "name": f"{title} ({run['groups']} groups)",
                    "kind": "one split",
                    **{key: found[key] for key in ("value", "low", "high")},
                }
            )
        pooled = self.facts["pooled"]["metrics"][name]
        rows.append(
            {
                "name": "pooled predictions",
                "kind": "all folds",
                **{key: pooled[key] for key in ("value", "low", "high")},
            }
        )
        return pd.DataFrame(rows)

    def __repr__(self) -> str:
        if not self.facts:
            return self.said
        return "\n".join(
            filter(None, [self.note, *self.headline(), self.table.to_string(float_format="{:.3f}".format), NOTE])
        )

    def _repr_html_(self) -> str:
        if not self.facts:
            return f"<p>{html.escape(self.said)}</p>"
        picture = pages.data_url(Path(self.folder or "", PICTURE).read_bytes(), "png")
        return (
            "".join(f"<p><b>{html.escape(line)}</b></p>" for line in (self.note, *self.headline()) if line)
            + self.table.to_html(float_format="{:.3f}".format)
            + f"<p>{html.escape(NOTE)}</p>"
            + f'<img alt="The folds" style="max-width:100%" src="{picture}">'
        )


def read(folder: Path | str) -> CrossValidated:
    """What a cross-validation wrote into its folder, without the predictions; empty where there is none."""
    path = Path(folder, RESULT)
    return CrossValidated(Path(folder), files.read_json(path)) if path.exists() else CrossValidated()


def pooled(folder: Path, runs: list[tuple[int, int, Path]], **facts) -> CrossValidated:
    """Pools finished folds and writes oof_predictions.csv into `folder`; the facts are for cross_validation.json.

    runs: (repeat, fold, run folder), both from 1. facts: of all folds together, to be kept with the result. Its
    "decision" is chosen on all folds together: what to use for the networks of the folds on other images.
    """
    recipe, rows, tables = decisions.recipe_of(runs[0][2]), [], []
    for number in sorted({repeat for repeat, _, _ in runs}):
        those = [(fold, run_dir) for repeat, fold, run_dir in runs if repeat == number]
        judged = decided_by_others([run_dir for _, run_dir in those])
        for (fold, run_dir), (table, decision) in zip(those, judged, strict=True):
            threshold = decisions.deciding(decision, recipe.classes)
            found = metrics.summary(table, recipe.classes, recipe.positive, threshold)
            tables.append(table.assign(repeat=number, fold=fold))
            rows.append(
                {
                    "repeat": number,
                    "fold": fold,
                    "run": run_dir.name,
                    "split_sha256": files.read_json(run_dir / "run.json")["split"]["sha256"],
                    "images": found["images"],
                    "groups": found["groups"],
                    "threshold": found["threshold"],
                    "temperature": decision["temperature"],
                    "metrics": found["metrics"],
                }
            )
    predictions = pd.concat(tables, ignore_index=True)
    files.write_table(folder / PREDICTIONS, predictions)
    found = {
        "format": FORMAT,
        "name": folder.name,
        **facts,
        "seed": recipe.seed,
        "group_by": recipe.group_by,
        "monitor": recipe.monitor,
        "recipe": recipes.without_folders(recipe).to_json(),
        "runs": rows,
        "over_folds": _over_folds(rows),
        "pooled": pooled_summary(predictions, recipe),
        "decision": _of_all([run_dir for _, _, run_dir in runs], recipe),
        "remark": NOTE,
        "predictions_sha256": files.sha256(folder / PREDICTIONS),
    }
    return CrossValidated(folder, json.loads(json.dumps(found)), predictions)  # as it will be read


def _over_folds(rows: list[dict]) -> dict[str, dict]:
    """Mean, standard deviation, lowest and highest of every headline number over the folds that have it."""
    found = {}
    for name in rows[0]["metrics"]:
        values = [v for row in rows if (v := row["metrics"][name]["value"]) is not None]
        if values:
            found[name] = {
                "mean": float(np.mean(values)),
                "sd": float(np.std(values, ddof=1)) if values[1:] else None,
                "lowest": min(values),
                "highest": max(values),
                "folds": len(values),
            }
    return found


def decided_by_others(folders: Sequence[Path]) -> list[tuple[pd.DataFrame, dict]]:
    """Of each of two or more folds: its test predictions, calibrated and decided, and the decision.

    The test predictions of the other folds choose calibration and threshold, by the rule of `decisions.choose`. They
    are many more than the validation images of one fold, and none of them shares a group with the images that are
    judged; but their networks were trained on these, so the independence is not complete. To calibrate on predictions
    out of fold is cross-conformal prediction (Vovk 2015) and CV+ (Barber et al. 2021); those of the same fold are left
    out because a threshold must not know the labels on which it is judged.
    """
    recipe = decisions.recipe_of(folders[0])
    tables, found = [_raw(folder, recipe) for folder in folders], []
    for folder, table in zip(folders, tables, strict=True):
        decision = _chosen([other for other in tables if other is not table], recipe, decisions.locked(folder))
        calibrated = decisions.with_calibration(table, recipe.classes, decision)
        found.append((decided(calibrated, recipe, decisions.deciding(decision, recipe.classes)), decision))
    return found


def _of_all(folders: Sequence[Path], recipe: Recipe) -> dict:
    """The decision from the test predictions of all folds, as decision.json has it: for the folds as one model."""
    own = decisions.locked(folders[0])
    found = _chosen([_raw(folder, recipe) for folder in folders], recipe, own)
    if "averaged" in own:
        found["averaged"] = _chosen([_raw(folder, recipe, "test_tta") for folder in folders], recipe, own["averaged"])
    return found | {"notes": [*found["notes"], ONE_MODEL]}


def _raw(folder: Path, recipe: Recipe, name: str = "test") -> pd.DataFrame:
    """The test predictions of a run as its network gives them."""
    return predicting.read_predictions(Path(folder) / f"predictions_{name}.csv", recipe.classes)


def _chosen(tables: list[pd.DataFrame], recipe: Recipe, own: Mapping) -> dict:
    """The decision from these predictions, for target, shares, prior correction and data of the patient of a run's own.

    Its thresholds promise nothing, and no rule or note says so: the scores are those of several networks.
    """
    target, patient = own["target"].get("sensitivity", decisions.TARGET), list(own.get("patient") or ())
    found = decisions.choose(
        pd.concat(tables, ignore_index=True),
        recipe.classes,
        recipe.positive,
        target,
        own["target"].get("cost_ratio"),
        recipe.seed,
        own.get("shares"),
        Calibration.of(own, recipe.classes).correction,
        patient,
    )
    for part in (found, found.get("patients") or {}):
        if part.pop("promise", None):
            part["rule"] = f"sensitivity >= {target:g} on predictions out of fold"
    found["notes"] = [note for note in found["notes"] if not note.startswith(thresholds.FEW)]
    if patient:
        found[decisions.ALONE] = _chosen(tables, recipe, {**own, "patient": None})
    return found


def decided(table: pd.DataFrame, recipe: Recipe, threshold: float | rules.Shares) -> pd.DataFrame:
    """Calibrated predictions with what each image is called (`decisions.deciding`); see `predicting.own_apart`."""
    table = predicting.own_apart(table, ("threshold", "decision"))
    decision = resampled.decide(table, recipe.classes, recipe.positive, threshold)
    return table.assign(threshold=None if isinstance(threshold, Mapping) else threshold, decision=decision)


def pooled_summary(table: pd.DataFrame, recipe: Recipe) -> dict:
    """`metrics.summary` of all folds together, as `decided` gives them; a group is drawn with all repeats.

    Each fold is decided by its own threshold or shares: decisions are counted as they are, ranks and errors on the
    probabilities.
    """
    classes, positive = recipe.classes, recipe.positive
    found = metrics.summary(table, classes, positive)
    certain = table.assign(**{f"p_{name}": (table["decision"] == name).astype(float) for name in classes})
    decided = metrics.summary(certain, classes, positive)
    ranked = {name: found["metrics"][name] for name in OF_PROBABILITIES}
    per_class = {name: {**row, "auc": found["per_class"][name]["auc"]} for name, row in decided["per_class"].items()}
    two = positive is not None and len(classes) == 2
    return {
        **decided,
        "metrics": {**decided["metrics"], **ranked},
        "per_class": per_class,
        "threshold": None,
        "decision": f"p_{positive} >= the threshold from the other folds" if two else rules.RULES[recipe.decide],
    }
