"""Which epoch to keep where few validation patients pick it: real patches, the schedule of BreakHis, a small network.

  python benchmarks/epochs.py --data FOLDER [--seeds 1] [--work FOLDER]

FOLDER (or PATHOLIB_REAL_DATA) holds idc/labels.csv. Each seed trains on 60 patients from random weights, and predicts
all others after every epoch. Then, many times, k of the others are drawn as validation patients: they pick the epoch
with the best AUC, or the last one is taken, and fit a temperature; the rest judge. Prints a row for each k.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
from harness import markdown
from sklearn.metrics import roc_auc_score

from patholib.base.errors import PathoError
from patholib.data import checking, readers
from patholib.judge import calibration
from patholib.model import profiles, recipes, schedules
from patholib.study import Study
from patholib.train import loop

TRAINED, DRAWS, SIZES = 60, 100, (3, 5, 10, 20, 40)  # patients to learn from, draws of each k, and the k
COLUMNS = ("validation patients", "AUC, best epoch", "AUC, last epoch", "last where it stopped early",
           "log loss, best", "log loss, last", "best is below last")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("PATHOLIB_REAL_DATA"))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "patholib-epochs")
    options = parser.parse_args()
    source = readers.load("breakhis", Path(options.data, "idc/labels.csv"), missing="skip", positive="idc")
    recipe = profiles.recipe_for("breakhis", source, weights="none", image_size=48, arch="resnet18")
    own = recipes.get("breakhis")
    recipe = replace(recipe, t_0=own.t_0, epochs=own.epochs, warm_up=0, ema=0.0, patience=0, keep="last")
    checked = checking.check(
        source,
        recipe.cache_size,
        recipe.fit,
        options.work / "cache",
        on_bad="skip",
        progress=False,
        report_dir=options.work / "check",
    )
    curves = [curve(replace(recipe, seed=seed), checked, options.work) for seed in range(options.seeds)]
    rows = [[k, *np.mean([judged(one, k) for one in curves], axis=0).round(3)] for k in SIZES]
    print("\n".join(markdown(COLUMNS, rows)))


def curve(recipe: recipes.Recipe, checked: checking.Checked, work: Path) -> dict:
    """Labels (N,) and groups (N,) of the patients that were not learnt from, and p of every epoch (E, N)."""
    path = work / f"seed-{recipe.seed}.npz"
    if not path.exists():
        groups = checked.manifest.table[recipe.group_by]
        names = np.random.default_rng(recipe.seed).permutation(np.unique(groups))
        part = {name: "train" if k < TRAINED else "test" if k < TRAINED + 2 else "val" for k, name in enumerate(names)}
        split = checked.manifest.table.assign(group=groups, split=groups.map(part))
        kept, original = [], loop._scores

        def scores(state, logits):
            kept.append(logits.double().softmax(1)[:, 1].numpy())
            return original(state, logits)

        with mock.patch.object(loop, "_scores", scores):
            study = Study(checked, recipe=recipe, split=split, output=str(work), resume="never", remember=False)
            study.train()
        study.close()
        val = study.images.part("val")
        np.savez(path, probs=np.array(kept), labels=val.labels, groups=val.table["group"].to_numpy(dtype=str))
    return dict(np.load(path))


def judged(one: dict, k: int) -> np.ndarray:
    """The numbers of a row, means over draws of k validation patients."""
    labels, groups, probs = one["labels"], one["groups"], one["probs"]
    rng, names, rows = np.random.default_rng(k), np.unique(one["groups"]), []
    while len(rows) < DRAWS:
        val = np.isin(groups, rng.choice(names, k, replace=False))
        if labels[val].all() or not labels[val].any():
            continue
        scores = [roc_auc_score(labels[val], p[val]) for p in probs]
        best, last = schedules.best_epoch(recipes.BREAKHIS, scores), len(scores) - 1
        ends = [n for n in range(last + 1) if schedules.should_stop(recipes.BREAKHIS, scores[: n + 1])]
        aucs = [roc_auc_score(labels[~val], probs[epoch][~val]) for epoch in (best, last, (*ends, last)[0])]
        losses = [log_loss(probs[epoch], labels, val) for epoch in (best, last)]
        rows.append([*aucs, *losses, aucs[0] < aucs[1]])
    return np.mean(rows, axis=0)


def log_loss(p: np.ndarray, labels: np.ndarray, val: np.ndarray) -> float:
    """Of all but the validation images, with the temperature that these fit."""
    probs = np.stack([1 - p, p], axis=1)
    try:
        probs = calibration.apply(probs, calibration.fit(labels[val], probs[val]))
    except PathoError:  # too few images, or all are right: as they are
        pass
    return float(-np.log(probs[~val, labels[~val]]).mean())


if __name__ == "__main__":
    main()
