"""A training that is handed over to several processes of this machine, in a folder that vanishes with them."""

from __future__ import annotations

import dataclasses
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from patholib.base import cpu, files, locks
from patholib.base.errors import PathoError
from patholib.base.progress import say
from patholib.base.team import Team
from patholib.data.imagesets import ImageSet
from patholib.model import building, recipes
from patholib.model.networks import Classifier
from patholib.train import checkpoints, launching, runs
from patholib.train.runs import Run

PROGRAM = ("-m", "patholib.train.training")  # what each process runs


def train(
    model: Classifier, own: ImageSet, run: Run, device: str, workers: int, max_hours: float | None, count: int
) -> None:
    """Has `count` processes of this machine train the run; what they print is said here.

    The folder stays locked by this process, and by the first of them where this process dies.
    Errors: those of `training.fit` in any of the processes; process_lost.
    """
    deadline = None if max_hours is None else time.monotonic() + 3600 * max_hours
    with tempfile.TemporaryDirectory(prefix="patholib-") as folder:
        _hand_over(Path(folder), model, own, run, {"device": device, "workers": workers})
        hours = None if deadline is None else max(0.0, deadline - time.monotonic()) / 3600
        files.write_json(Path(folder, "hours.json"), hours)
        said = launching.launch(count, [*PROGRAM, folder], say, max(1, cpu.cores() // count))
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
    files.write_json(
        folder / "job.json",
        options
        | {
            "run": str(run.dir.resolve()),
            "fingerprint": run.fingerprint,
            "demo": run.demo,
            "leaks": run.leaks,
            "recipe": run.recipe.to_json(),
            "classes": list(own.classes),
            "weights_source": model.weights_source,
            "pixels": str(_cache(own, folder)),
        },
    )


def _cache(own: ImageSet, folder: Path) -> Path:
    """The file that holds the pixels: the cache that is mapped here, or a copy of pixels that lie in memory."""
    base: Any = own.pixels
    while base is not None and not isinstance(base, np.memmap):
        base = getattr(base, "base", None)
    if base is not None and base.shape == own.pixels.shape:
        return Path(str(base.filename))
    np.save(folder / "pixels.npy", own.pixels)
    return folder / "pixels.npy"


def opened(folder: Path, facts: dict, team: Team) -> tuple[Classifier, ImageSet, Run, dict]:
    """What `training.fit` needs, from the folder of the process that has started this one.

    facts: of its job.json. Errors: run_locked.
    """
    recipe = recipes.from_json(facts["recipe"])
    model = building.build(dataclasses.replace(recipe, weights="none"))
    model.load_state_dict(checkpoints.unpacked(files.read_bytes(folder / "model.pt")))
    model.weights_source = facts["weights_source"]
    table = pd.read_csv(folder / "images.csv", dtype=str, keep_default_na=False)
    pixels = np.load(facts["pixels"], mmap_mode="r").view(np.ndarray)
    own = ImageSet(pixels, table.assign(row=table["row"].astype(np.int64)), tuple(facts["classes"]))
    run = Run(Path(facts["run"]), recipe, facts["demo"], facts["fingerprint"], leaks=facts["leaks"], writes=team.first)
    if team.first:  # run.lock stays with the process that has started this one
        run.lock = locks.take(run.dir / runs.TRAINING)
        if run.lock is None:
            held = f"is in use by {locks.holder(run.dir / runs.TRAINING)}"
            raise PathoError("run_locked", run.dir.name, held, "Wait until it ends, or end it")
    hours = files.read_json(folder / "hours.json")
    return model, own, run, {"device": facts["device"], "workers": facts["workers"], "max_hours": hours}
