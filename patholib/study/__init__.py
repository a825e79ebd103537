"""A study: one run from images to report. Notebooks, command line, folds, sweeps and demo runs all go through it.

    study = Study("my_images.csv", recipe="breakhis", epochs=35)  # read, check and cache the images, split by group
    study.train()
    study.lock(sensitivity=0.95)  # temperature and threshold, from validation images
    print(study.judge())  # test images are seen here for the first time
    study.report()  # report.html

It owns the run folder, recipe, images and model, so no step can be given those of another run.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from patholib.base import files
from patholib.base.errors import PathoError
from patholib.base.progress import say
from patholib.base.team import ALONE, Team
from patholib.data import checking, homes, readers, splitting
from patholib.data.checking import Checked
from patholib.data.imagesets import ImageSet
from patholib.data.manifest import Manifest
from patholib.deploy import export, exportformat, loading
from patholib.judge import decisions, judging, patients, predicting, rivals, trust
from patholib.judge.external import External
from patholib.lab import notebook, sessions
from patholib.model import building, overriding, profiles, recipes
from patholib.model.networks import Classifier
from patholib.model.recipes import Augmentation, Recipe
from patholib.options import OF_RECIPE, Options
from patholib.report import report
from patholib.study import crossvalidation, evaluating, explaining
from patholib.study.pictures import Figures
from patholib.train import checkpoints, devices, originals, resumable, runs, training
from patholib.train.runs import Run


class Study:
    """One run from images to report.

    data: a folder, a CSV, "demo" or "auto"; or a Manifest, or a Checked, that is already at hand.
    recipe: a name, or a Recipe of your own, which is taken as it is but for classes and grouping.
    split: a table with the columns path, label, group, split; or as the option says: "given", "group" or a path.
    options: checked Options to begin with. name: of the run folder. quiet: do not print what was found.
    remember: note the run in outputs/latest.json. team: the processes that this one trains with.
    given: every other field of Options. Errors: those of `Options`, `readers.load`, `checking.check`, `runs.split`.
    """

    def __init__(
        self,
        data: str | Path | Manifest | Checked | None = None,
        *,
        recipe: str | Recipe | None = None,
        split: pd.DataFrame | str | Path | None = None,
        options: Options | None = None,
        name: str | None = None,
        quiet: bool = False,
        remember: bool = True,
        team: Team = ALONE,
        **given,
    ):
        if isinstance(data, (str, Path)):
            given["data"] = str(data)
        if isinstance(recipe, str):
            given["recipe"] = recipe
        if isinstance(split, (str, Path)):
            given["split"], split = str(split), None
        if isinstance(recipe, Recipe):
            given = {"seed": recipe.seed} | given
        self.options = options if options and not given else Options(**((options.to_json() if options else {}) | given))
        self._team, self._name, self._remember, self.opened = team, name, remember, False
        self._named = not isinstance(recipe, Recipe)  # whether the options alone give the recipe
        team.in_turn(lambda: self._prepare(data, recipe, split, given))
        if not quiet:
            say(repr(self))

    def _prepare(self, data, recipe, split, given: dict) -> None:
        """Reads, checks and splits; of several processes each does so, the first of a machine before the others."""
        options = self.options
        if isinstance(data, Checked):
            self.source = data.manifest
        elif isinstance(data, Manifest):
            self.source = data.chosen(options.label, options.only, options.group)
        else:
            how = {"missing": options.missing, "positive": options.positive, **options.of_images}
            self.source = readers.load(options.recipe, options.data, **how)
        if isinstance(recipe, Recipe):
            self.recipe = self._adapted(recipe, given)
        else:
            form = {name: getattr(options, name) for name in ("published", "weights", "small", "frozen")}
            self.recipe = profiles.recipe_for(options.recipe, self.source, **form, **options.of_recipe)
        self.checked = data if isinstance(data, Checked) else self._check()
        self.split, self._origin = split, "" if options.folds else "as a table given in Python says"
        if split is None:
            home, self._origin = homes.find(self.source, options.split, options.hold_out)
            self.split = runs.split(self.recipe, self.checked, options.folds, options.repeats, options.fold, home)
        if not isinstance(recipe, Recipe):
            self.recipe = profiles.for_split(self.recipe, self.split)
        self.images = self.checked.images.with_split(self.split)
        patients.check(self.split[self.split["split"] != "test"], options.patient_columns)  # not after the training

    def _check(self) -> Checked:
        """Checks and caches the images; of several processes the report of the first is enough."""
        with tempfile.TemporaryDirectory(prefix="patholib-") as spare:
            return checking.check(
                self.source,
                self.recipe.cache_size,
                self.recipe.fit,
                on_bad=self.options.on_bad,
                workers=self.options.workers,
                progress=self._team.first,
                report_dir=None if self._team.first else Path(spare),
            )

    def _adapted(self, recipe: Recipe, given: dict) -> Recipe:
        """A recipe of one's own, for the classes and groups of these images."""
        known = recipe.group_by == "image" or recipe.group_by in self.source.table
        return overriding.overridden(
            recipe,
            given.get("frozen"),
            classes=self.source.classes,
            positive=self.source.positive,
            group_by=recipe.group_by if known else self.source.group_by,
            fractions=self.options.of_recipe["fractions"] if given.keys() & {"val", "test"} else recipe.fractions,
            **{name: value for name, value in given.items() if name in OF_RECIPE and value is not None},
        )

    @classmethod
    def open(cls, folder: Path | str, data: str | Path = "auto") -> Study:
        """A run folder again: its model, predictions, numbers and figures; nothing is computed before it is asked for.

        data: where the images are, for what needs them; see `originals.source_of`. Errors: those of `runs.open_run`.
        """
        study = cls.__new__(cls)
        study.run = run = runs.open_run(Path(folder))
        study.recipe = run.recipe
        name = run.recipe.name if run.recipe.name in recipes.RECIPES else "breakhis"
        study.options = Options(recipe=name, data=str(data), seed=run.recipe.seed, output=str(run.dir.parent))
        study._team, study._name, study._remember, study.opened = ALONE, run.dir.name, False, True
        return study

    # ----------------------------------------------------------------------------------------------- what it owns

    recipe: Recipe
    options: Options
    whole: Path | None = None  # the cross-validation of which this is a fold, if `evaluate` judges the model of all

    @cached_property
    def source(self) -> Manifest:
        """The manifest of the images."""
        return originals.source_of(self.dir, self.options.data)

    @cached_property
    def checked(self) -> Checked:
        """What the check of the images found and cached."""
        return originals.checked_again(self.dir, self.options.data)

    @cached_property
    def split(self) -> pd.DataFrame:
        """One row per image: path, label, group, split ("train", "val", "test"), and the columns of the manifest."""
        return splitting.read_split(self.dir / "split.csv", leaks=bool(self.run.leaks))

    @cached_property
    def images(self) -> ImageSet:
        """The cached images under the split."""
        return originals.images_of(self.dir, self.options.data)

    @cached_property
    def model(self) -> Classifier:
        """The network: as it begins, after `train` with the weights of the epoch that was kept."""
        return self._kept() if self.opened else building.build(self.recipe)

    @cached_property
    def run(self) -> Run:
        """The run folder, which is started, or taken up, when it is first needed. Errors: those of `runs.start`."""
        options = self.options
        run = runs.start_together(
            self._team,
            self.recipe,
            self.checked,
            self.split,
            output=Path(options.output) if options.output else None,
            resume=options.resume,
            name=self._name,
            allow_leakage=options.allow_leakage,
            bring=sessions.take_up,
            origin=self._origin,
            options={name: value for name, value in options.of_study.items() if self._named or name != "recipe"},
        )
        if self._remember and self._team.first:
            notebook.remember_run(run.dir)
        return run

    @property
    def dir(self) -> Path:
        """The run folder."""
        return self.run.dir

    @property
    def demo(self) -> bool:
        """Whether the images are generated demo images."""
        return self.run.demo if self.opened else self.source.demo

    @property
    def note(self) -> str:
        """The warning above every figure: demo images, a leaking split; "" where there is nothing to warn of."""
        return self.run.note

    @property
    def history(self) -> pd.DataFrame:
        """One row per epoch of the training, or per strength of a fitted head. Errors: missing_file before it."""
        return pd.DataFrame(files.read_json(self.dir / "history.json"))

    @property
    def figures(self) -> Figures:
        """The figures of the run, a method for each: `study.figures.curves()`."""
        return Figures(self)

    @cached_property
    def locked(self) -> decisions.Locked:
        """What `lock` has chosen. Errors: not_locked."""
        return decisions.read_locked(self.dir)

    @cached_property
    def judged(self) -> judging.Judged:
        """What `judge` has found. Errors: missing_file before it."""
        return judging.read_judged(self.dir)

    def __repr__(self) -> str:
        if self.opened:
            return repr(self.run)
        counts, recipe = self.split["split"].value_counts(), self.recipe
        parts = ", ".join(
            f"{counts.get(part, 0):,} {name}"
            for part, name in (("train", "training"), ("val", "validation"), ("test", "test"))
        )
        length = "a fitted head" if recipe.train == "head" else f"{recipe.epochs} epochs"
        by = f"split {self._origin or f'by {recipe.group_by}'}"
        return (
            f"{self.source!r}\nrecipe {recipe.name}: {recipe.arch}, weights {recipes.without_folders(recipe).weights}, "
            f"{recipe.image_size} pixels, {length}\n{by}: {parts} images"
        )

    # --------------------------------------------------------------------------------------------------- the steps

    def train(self) -> pd.DataFrame:
        """Trains, or resumes; returns the history. A finished training is not repeated.

        Errors: those of `runs.start` and `training.fit`; the run folder is then unlocked, and `train` again resumes.
        """
        if self.opened:
            if "training" not in files.read_json(self.dir / "run.json"):
                remedy = 'Resume it: Study(..., resume="must") with the same parameters'
                raise PathoError("unfinished_run", self.dir.name, "was opened to be read, and is not trained", remedy)
            return self.history
        options, run = self.options, self.run
        if files.read_json(run.dir / "run.json").get("checkpoints") == resumable.DELETED:
            self.model = self._kept()
            return self.history
        hours = sessions.hours_left() if options.max_hours is None else options.max_hours
        try:
            training.check_processes(max(options.processes, self._team.count), options.device, self.recipe)
            count = options.processes if self._team.count == 1 else 1
            history = training.fit(
                self.model,
                self.images,
                run,
                device=options.device,
                workers=options.workers,
                max_hours=hours,
                processes=count,
                team=self._team,
            )
        except BaseException:
            self.close()
            if options.resume != "never":
                del self.run
            raise
        for name in ("locked", "judged"):
            self.__dict__.pop(name, None)
        return history

    def lock(
        self, sensitivity: float | None = None, cost_ratio: float | None = None, *, patient: Sequence[str] | None = None
    ) -> decisions.Locked:
        """Chooses temperature and threshold on the validation images; returns what `decisions.lock` does.

        patient: columns of the images, such as age_band, sex and site, that join the probabilities of the network
        (`judge.patients`). None takes target_sensitivity and patient of the options. Errors: those of `decisions.lock`.
        """
        if not self.opened:
            target = self.options.target_sensitivity if sensitivity is None else sensitivity
            columns = self.options.patient_columns if patient is None else patient
            self.locked = decisions.lock(self.model, self.images, self.dir, target, cost_ratio, columns)
        return self.locked

    def judge(self, baselines: bool = True) -> judging.Judged:
        """Judges the test images with the locked decision, and the baselines by the same rules; writes metrics.json.

        baselines: a regression on colour statistics, and with the option `probe` one on the network before training.
        Errors: not_locked, and others of `judging.judge`.
        """
        if not self.opened:
            decisions.locked(self.dir)  # before anything is computed
            colour = rivals.colour_baseline(self.images) if baselines else None
            probed = None
            if baselines and self.options.probe:
                device = devices.choose_device(self.options.device)
                probed = rivals.probe(building.build(self.recipe), self.images, device=device)
            self.judged = judging.judge(self.model, self.images, self.dir, colour, self.source.subgroups, probed)
        return self.judged

    def evaluate(
        self,
        data: str | Path | Manifest,
        *,
        name: str | None = None,
        classes: Mapping[str, str | None] | None = None,
        allow_leakage: bool = False,
        missing: str = "error",
        on_bad: str = "error",
        columns: str | None = None,
        label: str | None = None,
        group: str | None = None,
        only: str | None = None,
    ) -> External:
        """External validation: the locked model on a second labelled set; nothing of the run is changed.

        data: as `readers.read` takes it, or a Manifest. name: of the folder in <run>/external; None: as the data are
        called. classes: {theirs: ours} where labels differ; None leaves images out. allow_leakage: go on where images
        are not new to the run, which every page then says. missing, on_bad: "skip" leaves out rows without a file, and
        images that cannot be used. columns, label, group, only: of this set, as `readers.load` takes them. The same
        call again reads what was found. Errors: not_locked, not_judged, unknown_class, bad_parameter, single_class,
        external_leak, output_exists; those of `readers.read` and `checking.check`.
        """
        given = {"columns": columns, "label": label, "group": group, "only": only}
        chosen = {option: value for option, value in given.items() if value}
        return evaluating.evaluate(self, data, name, classes, allow_leakage, missing, on_bad, chosen)

    def predict(self, others: Checked | None = None) -> pd.DataFrame:
        """Predictions of the test images as the network gives them, not calibrated; or of other checked images."""
        if others is None:
            return predicting.predict(self.model, self.images.part("test"), self.recipe)
        table = predicting.predict(self.model, others.images, self.recipe)
        return table.assign(group=table[others.manifest.group_by])

    def explain(self, each: int = 4) -> explaining.Explained:
        """Asks whether heatmaps of this model can be believed, then writes galleries that carry the answer.

        each: pictures in a section of the gallery. Errors: those of `trust.examine`, `gradcam.gallery`.
        """
        return explaining.explain(self, each)

    def export(self, onnx: bool = False, optimizer: bool = False) -> list[Path]:
        """Writes the model for others: model.safetensors, model.json, published.pt; returns them.

        optimizer: published.pt also holds the state of the optimizer, twice as large as the weights.
        """
        return export.write(self.dir, None if self.opened else self.images, onnx=onnx, optimizer=optimizer)

    def report(self) -> Path:
        """Writes what is missing (heatmaps, export, figures) and every page, and finishes the run; returns report.html.

        The checkpoints are then deleted, unless the option keep_checkpoints is set. Errors: not_judged.
        """
        if not (self.dir / "metrics.json").exists():
            raise PathoError("not_judged", self.dir.name, "has no numbers to report", "Call lock and judge first")
        if not self.opened and not (self.dir / trust.FILE).exists():
            self.explain()
        if not (self.dir / exportformat.MANIFEST).exists():
            self.export()
        self.figures.complete()
        page = report.write(self.dir)
        if not self.opened:
            self.run.finish(self.options.keep_checkpoints)
        return page

    def close(self) -> None:
        """Unlocks the run folder, if it was started, for another process."""
        if "run" in self.__dict__:
            self.run.close()

    def cross_validate(self) -> crossvalidation.CrossValidated:
        """Trains and judges the recipe on every fold that the options ask for; see `crossvalidation.cross_validate`."""
        return crossvalidation.cross_validate(self)

    def _kept(self) -> Classifier:
        """The network with the weights of the epoch that was kept, from the export or the checkpoints."""
        if (self.dir / exportformat.MANIFEST).exists():
            return loading.classifier(self.dir)[0]
        best = files.read_json(self.dir / "run.json").get("training", {}).get("best_epoch")
        state = checkpoints.load(self.dir / "checkpoints", "best", best, holds=("model",)) if best else None
        if state is None:
            raise PathoError("nothing_trained", self.dir.name, "has no finished training", "Train first")
        model = building.build(replace(self.recipe, weights="none"))
        model.load_state_dict(state["model"])
        return model

    # ----------------------------------------------------------------------------------------------- demo studies

    @classmethod
    def demo_run(cls, output: Path | str | None = None, data: str | Manifest = "demo", **given) -> Path:
        """The folder of a finished run on demo images, made now: a head fitted to a small network, about a minute."""
        first: dict[str, Any] = {} if "recipe" in given else {"small": True, "train": "head"}
        place = {"device": "cpu", "output": str(output) if output else None}
        study = cls(data, quiet=True, remember=False, **(first | place | given))
        study.train()
        study.lock()
        study.judge()
        study.report()
        return study.dir

    @classmethod
    def demo_locked(cls, output: Path | str | None = None) -> Study:
        """A study on demo images that is locked and judged but has no report, in half a minute."""
        study = cls(
            "demo", small=True, train="head", image_size=96, device="cpu", output=output, quiet=True, remember=False
        )
        study.train()
        study.lock()
        study.judge(baselines=False)
        return study

    @classmethod
    def demo_pair(cls, output: Path | str | None = None) -> list[Path]:
        """The folders of two finished runs on demo images that differ in the augmentation alone."""
        recipe = profiles.recipe_for("breakhis", readers.load("breakhis", "demo"), image_size=96, epochs=3)
        pair = {"compare-plain": replace(recipe, augmentation=Augmentation()), "compare-augmented": recipe}
        return [cls.demo_run(output, recipe=one, name=name) for name, one in pair.items()]


def evaluate(run: Path | str, data: str | Path | Manifest, *, images: str | Path = "auto", **how) -> External:
    """External validation of the locked model in a run folder on a second labelled data set.

    run: may be the folder of a cross-validation, whose model is that of all folds. images: where those of the run are,
    so that pictures can be compared; see `Study.open`. how: name, classes, columns and what else `Study.evaluate`
    takes, which has the errors too.
    """
    study = Study.open(evaluating.run_at(run), images)
    study.whole = Path(run) if study.dir != Path(run) else None
    return study.evaluate(data, **how)
