"""patholib as its training notebook uses it: check and cache, train, lock, judge; a recipe that is in the job.

Its clock begins with the check of the files, which decodes them all into the cache: whoever decodes as it trains pays
for it then.
"""

from __future__ import annotations

import shutil
import time
from dataclasses import replace
from pathlib import Path

import job as jobs
import numpy as np
import torch
from job import Job

from patholib import datasets, evaluation, files, images, losses, recipes, validation
from patholib.recipes import Recipe, Stage


def main(job: Job) -> None:
    torch.set_num_threads(job.threads)
    out, recipe = Path(job.out), replace(recipes.from_json(job.options["recipe"]), seed=job.seed)
    source = datasets.load(job.kind, job.data, missing="skip", positive=job.positive)
    started = time.perf_counter()
    checked = images.check(source, recipe.cache_size, recipe.fit, out / "cache", on_bad="skip", workers=job.threads,
                           progress=False, report_dir=out / "check")
    checking = time.perf_counter() - started
    place = job.table.set_index("path").loc[checked.manifest.table["path"]]
    split = checked.manifest.table.assign(group=place["group"].to_numpy(), split=place["split"].to_numpy())
    cost = {frozen: trial(recipe, frozen, checked, split, job)
            for frozen in sorted({stage.frozen for stage in recipe.stages})}
    recipe = replace(recipe, epochs=affordable(recipe, cost, job.seconds - checking))
    trained = validation.train(recipe, checked, split, out / "runs", workers=job.threads, resume="never",
                               allow_leakage=True, name="run")
    folder = trained.run.dir
    evaluation.lock(trained.model, trained.images, folder, recipe)
    evaluation.judge(trained.model, trained.images, folder, recipe)
    trained.run.finish()
    history, facts = files.read_json(folder / "history.json"), files.read_json(folder / "run.json")["training"]
    seconds = checking + np.cumsum([row["seconds"] for row in history])
    curve = [{"epoch": row["epoch"], "seconds": round(float(at), 2), "val_auc": row["val_auc"],
              "val_balanced_accuracy": row["val_balanced_accuracy"]}
             for row, at in zip(history, seconds, strict=True)]
    tables = {name: in_order(job, name, evaluation.calibrated(folder, name)) for name in ("val", "test")}
    if recipe.tta_views > 1:
        tables["test_tta"] = in_order(job, "test", evaluation.calibrated(folder, "test_tta"))
    counts = job.part("train")["label"].value_counts().reindex(job.classes).to_numpy()
    jobs.leave(job, tables, curve, epochs=len(history), best_epoch=facts["best_epoch"], seconds=float(seconds[-1]),
               planned=sum(spent(recipe, cost)) + checking, precision=facts["precision"],
               prior=losses.effective_prior(recipe, counts).tolist())
    for name in ("runs", "trial", "cache", "check"):  # weights and pictures: of these only numbers are kept
        shutil.rmtree(out / name, ignore_errors=True)


def trial(recipe: Recipe, frozen: int, checked: images.Checked, split, job: Job) -> float:
    """The seconds of an epoch with so many blocks frozen, from one that is thrown away."""
    short = replace(recipe, epochs=1, stages=(Stage(0, frozen, 1.0),))
    done = validation.train(short, checked, split, Path(job.out, "trial"), workers=job.threads, resume="never",
                            allow_leakage=True, name=f"frozen-{frozen}")
    done.run.close()
    return files.read_json(done.run.dir / "history.json")[0]["seconds"]


def spent(recipe: Recipe, cost: dict[int, float]) -> list[float]:
    """The seconds of every epoch, by what its stage costs."""
    return [cost[recipe.stage_at(epoch).frozen] for epoch in range(recipe.epochs)]


def affordable(recipe: Recipe, cost: dict[int, float], seconds: float) -> int:
    """The most epochs that the time allows, one at least; stages and schedule end with them."""
    epochs = 1
    while sum(spent(replace(recipe, epochs=epochs + 1), cost)) <= seconds:
        epochs += 1
    return epochs


def in_order(job: Job, split: str, table):
    """The predictions in the order of the job's own table."""
    found = table.set_index("path").loc[job.part(split)["path"]]
    return jobs.predictions(job, split, found[[f"p_{name}" for name in job.classes]].to_numpy())


if __name__ == "__main__":
    jobs.run(main)
