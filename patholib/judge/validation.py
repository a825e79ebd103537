"""How much one split says: the results of the same recipe on several splits, put together.

`pooled` takes the finished folds of a cross-validation; `estimates` puts the results of several trainings side by side.
"""

from __future__ import annotations

import html
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from patholib.base import files, pages
from patholib.judge import decisions, metrics, predicting, resampled, rules
from patholib.model import recipes
from patholib.model.recipes import Recipe

FORMAT = 1
RESULT, PREDICTIONS, PICTURE = "cross_validation.json", "oof_predictions.csv", "cross_validation.png"
OF_PROBABILITIES = ("auc", "log_loss", "brier", "ece")  # all other numbers are of decisions
NOTE = (
    "The folds learn from mostly the same images, so their results are not independent: the spread over folds is "
    "no standard error of their mean, and no unbiased estimate of one exists (Bengio & Grandvalet 2004). The "
    "interval of the pooled predictions resamples whole groups. A pooled AUC also ranks images of one fold's model "
    "against those of another's: where it is far below the mean of the folds, their probabilities are on different "
    "scales."
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
        found = metrics.summary(table, recipe.classes, recipe.positive, seed=recipe.seed)["metrics"][number]
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
            name.replace("_", " "): {
                "mean of folds": found["mean"],
                "standard deviation": found["sd"],
                "lowest": found["lowest"],
                "highest": found["highest"],
                "pooled (95 % interval)": metrics.readable(pooled[name]),
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
        return "\n".join(filter(None, [self.note, self.table.to_string(float_format="{:.3f}".format), NOTE]))

    def _repr_html_(self) -> str:
        if not self.facts:
            return f"<p>{html.escape(self.said)}</p>"
        picture = pages.data_url(Path(self.folder or "", PICTURE).read_bytes(), "png")
        return (
            (f"<p><b>{html.escape(self.note)}</b></p>" if self.note else "")
            + self.table.to_html(float_format="{:.3f}".format)
            + f"<p>{html.escape(NOTE)}</p>"
            + f'<img alt="The folds" style="max-width:100%" src="{picture}">'
        )


def pooled(folder: Path, runs: list[tuple[int, int, Path]], **facts) -> CrossValidated:
    """Pools finished folds and writes oof_predictions.csv into `folder`; the facts are for cross_validation.json.

    runs: (repeat, fold, run folder), both from 1. facts: of all folds together, to be kept with the result.
    """
    tables, rows, recipe = [], [], decisions.recipe_of(runs[0][2])
    for repeat, fold, run_dir in runs:
        split, found = files.read_json(run_dir / "run.json")["split"], files.read_json(run_dir / "metrics.json")["test"]
        table = decisions.calibrated(run_dir, "test").assign(repeat=repeat, fold=fold)
        decision = decisions.locked(run_dir)
        tables.append(decided(table, recipe, decisions.deciding(decision, recipe.classes)))
        rows.append(
            {
                "repeat": repeat,
                "fold": fold,
                "run": run_dir.name,
                "split_sha256": split["sha256"],
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


def decided(table: pd.DataFrame, recipe: Recipe, threshold: float | rules.Shares) -> pd.DataFrame:
    """Calibrated predictions with what each image is called by its run (`decisions.deciding`)."""
    decision = resampled.decide(table, recipe.classes, recipe.positive, threshold)
    return table.assign(threshold=None if isinstance(threshold, Mapping) else threshold, decision=decision)


def pooled_summary(table: pd.DataFrame, recipe: Recipe) -> dict:
    """`metrics.summary` of all folds together, as `decided` gives them; a group is drawn with all repeats.

    Each fold is decided by its own threshold or shares: decisions are counted as they are, ranks and errors on the
    probabilities.
    """
    classes, positive = recipe.classes, recipe.positive
    found = metrics.summary(table, classes, positive, seed=recipe.seed)
    certain = table.assign(**{f"p_{name}": (table["decision"] == name).astype(float) for name in classes})
    decided = metrics.summary(certain, classes, positive, seed=recipe.seed)
    ranked = {name: found["metrics"][name] for name in OF_PROBABILITIES}
    per_class = {name: {**row, "auc": found["per_class"][name]["auc"]} for name, row in decided["per_class"].items()}
    two = positive is not None and len(classes) == 2
    return {
        **decided,
        "metrics": {**decided["metrics"], **ranked},
        "per_class": per_class,
        "threshold": None,
        "decision": f"p_{positive} >= the threshold of the fold" if two else rules.RULES[recipe.decide],
    }
