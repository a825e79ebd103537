"""How much one split says: the same recipe trained on several splits, and what its results differ by.

`cross_validate` tests every image once, in folds that tear no group apart, and is taken up where it stopped. `train`
is one training on one split; `estimates` puts the results of several side by side.
"""

from __future__ import annotations

import html
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from patholib.base import files, locks, pages
from patholib.base.errors import PathoError
from patholib.data.checking import Checked
from patholib.data.imagesets import ImageSet
from patholib.judge import decisions, judging, metrics, predicting, resampled, rules
from patholib.lab import sessions
from patholib.model import building, networks, recipes, schedules
from patholib.model.recipes import Recipe
from patholib.report.figures import performance, style
from patholib.train import checkpoints, runs, training

FORMAT = 1
RESULT, PREDICTIONS, PICTURE, LOCK = ("cross_validation.json", "oof_predictions.csv", "cross_validation.png",
                                      "cross_validation.lock")
OF_PROBABILITIES = ("auc", "log_loss", "brier", "ece")  # all other numbers are of decisions
NOTE = ("The folds learn from mostly the same images, so their results are not independent: the spread over folds is "
        "no standard error of their mean, and no unbiased estimate of one exists (Bengio & Grandvalet 2004). The "
        "interval of the pooled predictions resamples whole groups. A pooled AUC also ranks images of one fold's model "
        "against those of another's: where it is far below the mean of the folds, their probabilities are on different "
        "scales.")
NOT_ASKED = ("Not asked for. With folds=5 the recipe is trained on five splits, each testing on other groups, which "
             "takes five times as long.")


@dataclass(frozen=True)
class Trained:
    """A run, its model with the best epoch's weights, and its images, split."""

    run: runs.Run
    model: networks.Classifier
    images: ImageSet

    def test(self) -> pd.DataFrame:
        """Predictions of the test images of its own split."""
        return predicting.predict(self.model, self.images.part("test"), self.run.recipe)

    def others(self, checked: Checked) -> pd.DataFrame:
        """Predictions of images that are in no part of its split."""
        table = predicting.predict(self.model, checked.images, self.run.recipe)
        return table.assign(group=table[checked.manifest.group_by])


def train(recipe: Recipe, checked: Checked, split: pd.DataFrame, output: Path | None = None, device: str = "auto",
          workers: int = 2, max_hours: float | None = None, processes: int = 1, **options) -> Trained:
    """Trains the recipe on one split, in a run folder of its own that stays open; options: of `runs.start`.

    Errors: those of `runs.start`, `ImageSet.with_split` and `training.fit`; the folder is then given free.
    """
    run = runs.start(recipe, checked, split, output, **options)
    try:
        images, model = checked.images.with_split(split), building.build(recipe)
        training.fit(model, images, run, device, workers, max_hours, processes)
    except BaseException:
        run.close()
        raise
    return Trained(run, model, images)


def estimates(predictions: Mapping[tuple[str, str], pd.DataFrame], recipe: Recipe, number: str = "auc"
              ) -> pd.DataFrame:
    """One number of several tables of predictions, {(kind, name): table}, as `figures.forest` draws it.

    Columns kind, name, value, low, high, images, patients. What an interval draws as one is the patient, case or
    lesion, also where the split took every image for a group of its own.
    """
    rows = []
    for (kind, name), table in predictions.items():
        table = table.assign(group=table[predicting.patient_column(table)])
        found = metrics.summary(table, recipe.classes, recipe.positive, seed=recipe.seed)["metrics"][number]
        rows.append({"kind": kind, "name": name, **{key: found[key] for key in ("value", "low", "high")},
                     "images": len(table), "patients": table["group"].nunique()})
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
        rows = {name.replace("_", " "): {
            "mean of folds": found["mean"], "standard deviation": found["sd"], "lowest": found["lowest"],
            "highest": found["highest"], "pooled (95 % interval)": metrics.readable(pooled[name]),
        } for name, found in spread.items()}
        return pd.DataFrame(rows).T

    @property
    def folds(self) -> pd.DataFrame:
        """The monitored number of every fold with its interval, then of all: as `figures.forest` draws it."""
        name, rows = self.facts["monitor"], []
        for run in self.facts["runs"]:
            title = f"fold {run['fold']}" + f", repeat {run['repeat']}" * (self.facts["repeats"] > 1)
            found = run["metrics"][name]
            rows.append({"name": f"{title} ({run['groups']} groups)", "kind": "one split",
                         **{key: found[key] for key in ("value", "low", "high")}})
        pooled = self.facts["pooled"]["metrics"][name]
        rows.append({"name": "pooled predictions", "kind": "all folds",
                     **{key: pooled[key] for key in ("value", "low", "high")}})
        return pd.DataFrame(rows)

    @property
    def figure(self):
        """The folds under each other, and all of them pooled."""
        name = self.facts["monitor"]
        word = {"auc": "AUC"}.get(name, name.replace("_", " "))
        return performance.forest(self.folds, self.facts["over_folds"][name]["mean"], "mean of folds",
                              xlabel=f"test {word} and 95 % interval", title="How much does one split say?",
                              note=self.note)

    def __repr__(self) -> str:
        if not self.facts:
            return self.said
        return "\n".join(filter(None, [self.note, self.table.to_string(float_format="{:.3f}".format), NOTE]))

    def _repr_html_(self) -> str:
        if not self.facts:
            return f"<p>{html.escape(self.said)}</p>"
        picture = pages.data_url((self.folder / PICTURE).read_bytes(), "png")
        return (f"<p><b>{html.escape(self.note)}</b></p>" * bool(self.note)
                + self.table.to_html(float_format="{:.3f}".format) + f"<p>{html.escape(NOTE)}</p>"
                + f'<img alt="The folds" style="max-width:100%" src="{picture}">')


def cross_validate(recipe: Recipe, checked: Checked, folds: int = 5, repeats: int = 1, output: Path | None = None,
                   device: str = "auto", workers: int = 2, max_hours: float | None = None,
                   allow_leakage: bool = False, target_sensitivity: float = decisions.TARGET,
                   processes: int = 1, fold: int | None = None) -> CrossValidated:
    """Trains the recipe once for each fold of each repeat, and pools what every model says of its own test images.

    The folder is named after recipe, images and folds, and holds a run folder for each training. Called again after an
    interruption, it repeats no finished fold and goes on in the unfinished one at the step where it stood. Every fold
    chooses its best epoch, temperature and threshold on its own validation images; a finished one keeps its best
    weights alone. folds=0: nothing is trained, as nobody asked; neither where this run itself is one `fold`.
    max_hours: for all folds together. allow_leakage: see `runs.start`; target_sensitivity: see `evaluation.lock`.
    Errors: split_infeasible, bad_parameter, run_locked, time_is_up and others of `train`.
    """
    tables = runs.fold_splits(recipe, checked, folds, repeats)
    if not tables:
        return CrossValidated()
    if fold is not None:
        return CrossValidated(said=f"This run is fold {fold}, counted from 0, of {len(tables)}: the others are runs of "
                              "their own, and notebooks/compare.ipynb pools them.")
    deadline = schedules.deadline(max_hours, time.monotonic())
    folder = _folder(recipe, checked, folds, repeats, output, target_sensitivity)
    lock = locks.take(folder / LOCK)
    if lock is None:
        raise PathoError("run_locked", folder.name, f"is in use by {locks.holder(folder / LOCK)}",
                         "Wait until it ends, or end it")
    try:
        done = []
        for number, split in enumerate(tables):
            repeat, fold = divmod(number, folds)
            print(f"Cross-validation: fold {fold + 1} of {folds}, repeat {repeat + 1} of {repeats}")
            hours = None if max_hours is None else max(deadline - time.monotonic(), 0) / 3600
            run = _fold(recipe, checked, split, folder, device, workers, hours, processes, allow_leakage=allow_leakage,
                        target_sensitivity=target_sensitivity, name=f"repeat-{repeat + 1}-fold-{fold + 1}")
            done.append((repeat + 1, fold + 1, run))
        return _written(folder, recipe, checked, done, folds, repeats)
    finally:
        lock.close()


def _folder(recipe: Recipe, checked: Checked, folds: int, repeats: int, output: Path | None,
            target_sensitivity: float = decisions.TARGET) -> Path:
    """The folder of this cross-validation, made; another for anything that would give other numbers."""
    whole = recipes.without_folders(recipe).to_json()
    mark = files.digest([whole, runs.images_sha256(checked), checked.manifest.table["path"].tolist(), folds, repeats,
                         target_sensitivity])
    folder = runs.output_folder(output) / (f"{recipe.name}{'-demo' * checked.manifest.demo}-cv-{folds}x{repeats}-"
                                           f"{mark[:12]}")
    if not folder.exists():
        sessions.take_up_named(folder)  # of an earlier session
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise files.unwritable(folder, error) from error
    return folder


def _fold(recipe: Recipe, checked: Checked, split: pd.DataFrame, folder: Path, *how, target_sensitivity: float,
          **options) -> runs.Run:
    """The finished run of one fold: found, taken up or made."""
    done = runs.finished_like(folder, runs.fingerprint(recipe, checked, split))
    if done is not None:
        return done
    found = train(recipe, checked, split, folder, *how, **options)
    try:
        decisions.lock(found.model, found.images, found.run.dir, recipe, target_sensitivity)
        judging.judge(found.model, found.images, found.run.dir, recipe)
        found.run.finish()
    finally:
        found.run.close()
    for path in checkpoints.list_of(found.run.dir / "checkpoints", "last"):  # what only an unfinished run needs
        path.unlink()
    return found.run


def _written(folder: Path, recipe: Recipe, checked: Checked, done: list, folds: int, repeats: int) -> CrossValidated:
    """Pools the folds and writes the predictions, the result and its picture."""
    tables, rows = [], []
    for repeat, fold, run in done:
        facts, found = files.read_json(run.dir / "run.json"), files.read_json(run.dir / "metrics.json")["test"]
        table = decisions.calibrated(run.dir, "test").assign(repeat=repeat, fold=fold)
        decision = decisions.locked(run.dir)
        tables.append(decided(table, recipe, decisions.deciding(decision, recipe.classes)))
        rows.append({"repeat": repeat, "fold": fold, "run": run.dir.name, "split_sha256": facts["split"]["sha256"],
                     "images": found["images"], "groups": found["groups"], "threshold": found["threshold"],
                     "temperature": decision["temperature"], "metrics": found["metrics"]})
    pooled = pd.concat(tables, ignore_index=True)
    files.write_table(folder / PREDICTIONS, pooled)
    note = done[0][2].note
    facts = {
        "format": FORMAT, "name": folder.name, "demo": checked.manifest.demo, "note": note, "folds": folds,
        "repeats": repeats, "seed": recipe.seed, "group_by": recipe.group_by, "monitor": recipe.monitor,
        "images": len(checked.images), "images_sha256": runs.images_sha256(checked),
        "recipe": recipes.without_folders(recipe).to_json(), "runs": rows, "over_folds": _over_folds(rows),
        "pooled": pooled_summary(pooled, recipe), "remark": NOTE,
        "predictions_sha256": files.sha256(folder / PREDICTIONS),
    }
    found = CrossValidated(folder, json.loads(json.dumps(facts)), pooled)  # as it will be read
    style.save(found.figure, folder / PICTURE)
    files.write_json(folder / RESULT, facts)  # last: where it stands, all is there
    return found


def _over_folds(rows: list[dict]) -> dict[str, dict]:
    """Mean, standard deviation, lowest and highest of every headline number over the folds that have it."""
    found = {}
    for name in rows[0]["metrics"]:
        values = [v for row in rows if (v := row["metrics"][name]["value"]) is not None]
        if values:
            found[name] = {"mean": float(np.mean(values)), "sd": float(np.std(values, ddof=1)) if values[1:] else None,
                           "lowest": min(values), "highest": max(values), "folds": len(values)}
    return found


def decided(table: pd.DataFrame, recipe: Recipe, threshold: float | rules.Shares) -> pd.DataFrame:
    """Calibrated predictions with what each image is called by its run (`evaluation.deciding`)."""
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
    return {**decided, "metrics": {**decided["metrics"], **ranked}, "per_class": per_class, "threshold": None,
            "decision": f"p_{positive} >= the threshold of the fold" if two else rules.RULES[recipe.decide]}
