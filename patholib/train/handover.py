"""What several processes are to train: from the parameters of a terminal, or handed over by a running notebook.

`train` hands a training over to processes that it starts, in a folder that vanishes with them. `asked` reads what a
process was started with: such a folder, or RUN.json, which holds the parameters of the training notebooks.
"""

from __future__ import annotations

import dataclasses
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from patholib.base import cpu, files, locks
from patholib.base.errors import PathoError, nearest_setting
from patholib.base.progress import say
from patholib.data import checking, readers
from patholib.data.imagesets import ImageSet
from patholib.model import building, fields, profiles, recipes
from patholib.model.networks import Classifier
from patholib.model.recipes import Recipe
from patholib.train import checkpoints, launching, runs
from patholib.train.launching import Team
from patholib.train.runs import Run

PROGRAM = ("-m", "patholib.train.training")  # what each process runs
LATER = ("target_sensitivity", "probe")  # parameters of what the notebook does, beside and after the training


@dataclass(frozen=True)
class Training:
    """All that `training.fit` needs."""

    model: Classifier
    images: ImageSet
    run: Run
    device: str
    workers: int
    max_hours: float | None


# ------------------------------------------------------------------------------------------------------ from a notebook


def train(model: Classifier, own: ImageSet, run: Run, device: str, workers: int, max_hours: float | None,
          count: int) -> None:
    """Has `count` processes of this machine train the run; what they print is said here.

    The folder stays locked for them by this process, and by what has started them where this process dies.
    Errors: those of `training.fit` in any of the processes; process_lost.
    """
    deadline = None if max_hours is None else time.monotonic() + 3600 * max_hours
    with tempfile.TemporaryDirectory(prefix="patholib-") as folder:
        _hand_over(Path(folder), model, own, run, {"device": device, "workers": workers})
        hours = None if deadline is None else max(0.0, deadline - time.monotonic()) / 3600
        files.write_json(Path(folder, "hours.json"), hours)
        keep = [run.lock.fileno()] if run.lock else []
        said = launching.launch(count, [*PROGRAM, folder], say, max(1, cpu.cores() // count), keep)
        if said:
            error = launching.refusal(Path(folder), said)
            if error.code == "process_lost":  # nobody could say more, so all that torchrun has seen is kept
                run.log("process_lost", error=str(error), processes=count, traceback=said)
            raise error


def _hand_over(folder: Path, model: Classifier, own: ImageSet, run: Run, options: dict) -> None:
    """Writes what the processes need: they map the same cache, and get the weights as they are now."""
    learnt = own.table[own.table["split"].isin(["train", "val"])]
    files.write_table(folder / "images.csv", learnt)
    files.write_bytes(folder / "model.pt", checkpoints.packed(model.state_dict()))
    files.write_json(folder / "job.json", options | {
        "run": str(run.dir.resolve()), "fingerprint": run.fingerprint, "demo": run.demo, "leaks": run.leaks,
        "held_by": locks.holder(run.dir / "run.lock") if run.lock else None, "recipe": run.recipe.to_json(),
        "classes": list(own.classes), "weights_source": model.weights_source, "pixels": str(_cache(own, folder))})


def _cache(own: ImageSet, folder: Path) -> Path:
    """The file that holds the pixels: the cache that is mapped here, or a copy of pixels that lie in memory."""
    base = own.pixels
    while base is not None and not isinstance(base, np.memmap):
        base = getattr(base, "base", None)
    if base is not None and base.shape == own.pixels.shape:
        return Path(base.filename)
    np.save(folder / "pixels.npy", own.pixels)
    return folder / "pixels.npy"


@dataclass(frozen=True)
class HandedOver:
    """A training in the folder of a process that has started this one."""

    folder: Path
    facts: dict  # of job.json

    @property
    def device(self) -> str:
        """Where to compute."""
        return self.facts["device"]

    @property
    def count(self) -> int:
        """How many processes are to be started: none, they run."""
        return 1

    def opened(self, team: Team) -> Training:
        """The training, from the folder alone; it needs no lock where the one that has started it holds it."""
        facts, recipe = self.facts, recipes.from_json(self.facts["recipe"])
        model = building.build(dataclasses.replace(recipe, weights="none"))
        model.load_state_dict(checkpoints.unpacked(files.read_bytes(self.folder / "model.pt")))
        model.weights_source = facts["weights_source"]
        table = pd.read_csv(self.folder / "images.csv", dtype=str, keep_default_na=False)
        pixels = np.load(facts["pixels"], mmap_mode="r").view(np.ndarray)
        own = ImageSet(pixels, table.assign(row=table["row"].astype(np.int64)), tuple(facts["classes"]))
        run = Run(Path(facts["run"]), recipe, facts["demo"], facts["fingerprint"], leaks=facts["leaks"],
                  writes=team.first)
        run.lock = self._lock(run) if team.first else None
        return Training(model, own, run, facts["device"], facts["workers"],
                        files.read_json(self.folder / "hours.json"))

    def _lock(self, run: Run) -> locks.Lock | None:
        """The run's lock where it is free; None where whoever has started this process holds it for it."""
        path = run.dir / "run.lock"
        lock = locks.take(path)
        if lock is None and locks.holder(path) != self.facts["held_by"]:
            raise PathoError("run_locked", run.dir.name, f"is in use by {locks.holder(path)}",
                             "Wait until it ends, or end it")
        return lock


# ------------------------------------------------------------------------------------------------------ from a terminal


@dataclass(frozen=True)
class Parameters:
    """What RUN.json may hold: `recipe`, and the parameters of the training notebooks, with their defaults."""

    recipe: str
    data: str = "auto"
    missing: str = "error"
    positive: str | None = None
    on_bad: str = "error"
    published: bool = False
    weights: str | None = None
    image_size: int | None = None
    epochs: int | None = None
    batch_size: int | None = None
    micro_batches: str | None = None
    lr: float | None = None
    seed: int = 0
    device: str = "auto"
    precision: str | None = None
    workers: int = 2
    processes: int = 1
    folds: int = 0
    repeats: int = 1
    fold: int | None = None
    allow_leakage: bool = False
    max_hours: float | None = None
    output: str | None = None
    resume: str = "auto"

    @property
    def count(self) -> int:
        """How many processes are to be started; those that something else has started start none."""
        return 1 if launching.started_together() else self.processes

    def opened(self, team: Team) -> Training:
        """The training, checked and split as the notebook does it, in a run folder that it will find.

        The first process checks the images and writes the cache, then one of every other machine, and the rest read it.
        """
        recipe, checked, split, model = team.in_turn(lambda: self._prepared(team))
        run = None

        def started() -> dict:
            nonlocal run
            run = runs.start(recipe, checked, split, self.output, self.resume, allow_leakage=self.allow_leakage)
            return {"folder": str(run.dir), "fingerprint": run.fingerprint}

        facts = team.shared(started)
        if run is None:
            run = Run(Path(facts["folder"]), recipe, checked.manifest.demo, runs.fingerprint(recipe, checked, split),
                      writes=False)
        if run.fingerprint != facts["fingerprint"]:
            raise PathoError("data_differ", f"process {team.rank}", "sees other images, or another recipe, than the "
                             "first one", "Give all machines the same files and the same version of patholib")
        return Training(model, checked.images.with_split(split), run, self.device, self.workers, self.max_hours)

    def _prepared(self, team: Team) -> tuple[Recipe, checking.Checked, pd.DataFrame, Classifier]:
        source = readers.load(self.recipe, self.data, missing=self.missing, positive=self.positive)
        recipe = profiles.recipe_for(self.recipe, source, published=self.published, weights=self.weights,
                                 image_size=self.image_size, epochs=self.epochs, batch_size=self.batch_size,
                                 micro_batches=self.micro_batches, lr=self.lr, seed=self.seed,
                                 precision=self.precision)
        with tempfile.TemporaryDirectory(prefix="patholib-") as folder:  # the report of the first one is enough
            checked = checking.check(source, recipe.cache_size, recipe.fit, on_bad=self.on_bad, workers=self.workers,
                                   progress=team.first, report_dir=None if team.first else Path(folder))
        split = runs.split(recipe, checked, self.folds, self.repeats, self.fold)
        return recipe, checked, split, building.build(recipe)


def asked(path: Path) -> HandedOver | Parameters:
    """What is to be trained. Errors: missing_file, bad_json, unknown_parameter, bad_parameter."""
    if path.is_dir():
        return HandedOver(path, files.read_json(path / "job.json"))
    return parameters(files.read_json(path), path.name)


def parameters(given, name: str = "RUN.json") -> Parameters:
    """The parameters in an object of JSON; all that is wrong with them is told at once."""
    fields = {field.name: field.type for field in dataclasses.fields(Parameters)}
    if not isinstance(given, dict):
        raise PathoError("bad_parameter", name, "is no object of parameters", 'Write {"recipe": "breakhis", ...}')
    unknown = [key for key in given if key not in fields and key not in LATER]
    problems = [f"{key} is no parameter ({nearest_setting(key, [*fields, *LATER])})" for key in unknown]
    bad = [key for key, value in given.items() if key in fields and not _fits(value, fields[key])]
    problems += [f"{key}={given[key]!r} is not {fields.WORDS[fields[key].partition(' ')[0]]}" for key in bad]
    if "recipe" not in given:
        bad, problems = [*bad, "recipe"], [*problems, "recipe is missing"]
    if problems:
        raise PathoError("unknown_parameter" if unknown else "bad_parameter", ", ".join(unknown + bad),
                         "; ".join(problems), f"The parameters are {', '.join([*fields, *LATER])}")
    if (left := [key for key in LATER if key in given]) and launching.myself().first:
        say(f"left to the notebook, which goes on where this ends: {', '.join(left)}")
    return Parameters(**{key: value for key, value in given.items() if key in fields})


def _fits(value, kind: str) -> bool:
    kind, _, optional = kind.partition(" | ")
    return (value is None and bool(optional)) or fields.TESTS[kind](value)
