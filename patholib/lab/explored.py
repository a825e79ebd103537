"""What the explorer shows: a run or an export, its images, and their order."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

import numpy as np
import pandas as pd

from patholib.base import files
from patholib.base.errors import PathoError
from patholib.data import csvfiles, manifest, readers, splitting
from patholib.data.checking import check
from patholib.data.imagesets import ImageSet
from patholib.deploy import export, exportformat
from patholib.judge import decisions, judging, predicting, rules
from patholib.model import building, profiles, recipes
from patholib.report import report
from patholib.train import runs, training

ALL, YOURS = "all", "yours"
OUTCOMES = (ALL, "right", "wrong", YOURS)
ORDERS = ("as listed", "least certain first", "surest first")
COLOURS = ("jet", "turbo", "viridis", "inferno", "cividis")  # the last three also read in grey
MARKS = {"right": "✓", "wrong": "✗", YOURS: "•"}
NOTES = "explored.csv"  # in the run folder: what was looked at, with notes
COLUMNS = ("image", "label", "called", "p", "evidence_for", "block", "method", "blank", "note")




def find_run(run: str | Path = "latest", data: str = "auto", output: Path | None = None) -> Path:
    """The folder to explore, which is printed: a run, an exported model, or for "latest" the newest finished run.

    run: a path, or the name of a folder in `output`. data "demo" looks for runs on demo images only. Where "latest"
    finds none, a small model is trained on demo images first. Errors: missing_run.
    """
    output = runs.output_folder(output)
    if run == "latest":
        found = runs.newest(output, demo=data == "demo")
        if found is None:
            print("There is no finished run yet: a small model is trained on demo images first, for a minute or less")
            return demo_run(output)
        print(f"The newest finished run: {found.name}")
        return found
    places = (Path(run).expanduser(), output / run)
    found = next((place for place in places if (place / exportformat.MANIFEST).exists()), None)
    if found is None:
        raise PathoError("missing_run", str(run), f"holds no {exportformat.MANIFEST}, so there is no model to explore",
                         'Name the folder of a finished run or of an exported model, or "latest"')
    return found


def demo_run(output: Path | None = None, epochs: int = 6) -> Path:
    """The folder of a run that is made now: a small network and few epochs on demo images, judged and exported."""
    source = readers.load("breakhis", "demo")
    recipe = profiles.recipe_for("breakhis", source, small=True, arch="resnet18", epochs=epochs)
    checked = check(source, recipe.cache_size, recipe.fit)
    split = splitting.split(checked.manifest, recipe.fractions, recipe.seed, recipe.group_by)
    run = runs.start(recipe, checked, split, output=output)
    tissue, model = checked.images.with_split(split), building.build(recipe)
    training.fit(model, tissue, run, "cpu")
    decisions.lock(model, tissue, run.dir, recipe)
    judging.judge(model, tissue, run.dir, recipe, subgroups=source.subgroups)
    export.write(run.dir)
    report.write(run.dir)
    run.finish()
    return run.dir


def images_of(run_dir: Path, data: str | Path = "auto", split: str = "test") -> ImageSet:
    """The images of one split of a run, read again from where they lie, and held against the bytes it was made of.

    data: as for `datasets.load`, because a run folder does not say where its images are. Those that are not there any
    more are left out. Errors: data_root, other_images, changed_file, and what reading and checking raise.
    """
    facts = files.read_json(Path(run_dir) / "run.json")
    recipe, source = recipes.from_json(facts["recipe"]), _source(facts, data)
    checked = check(source, recipe.cache_size, recipe.fit, on_bad="skip", progress=False)
    made_of = csvfiles.read_csv(Path(run_dir) / "images.csv", ("path", "sha256"))
    before, now = (dict(zip(t["path"], t["sha256"], strict=True)) for t in (made_of, checked.facts))
    changed = sorted(path for path in before.keys() & now.keys() if before[path] != now[path])
    if changed:
        raise PathoError("changed_file", changed[0], f"is not the file the run was made of ({len(changed)} such files)",
                         "Give the folder with the images of this run as data")
    parts = splitting.read_split(Path(run_dir) / "split.csv")
    wanted = parts.loc[parts["split"] == split, "path"]
    here = checked.images.table["path"].isin(wanted)
    if not here.any():
        raise PathoError("other_images", str(source.root.name), f"holds none of the run's {len(wanted)} {split} images",
                         "Give the folder or table of this run's images as data")
    return replace(checked.images, table=checked.images.table[here].reset_index(drop=True))


def _source(facts: dict, data: str | Path) -> manifest.Manifest:
    """The manifest of the images a run was made of."""
    kind, auto = facts["data"]["source"], str(data) == "auto"
    remedy = 'Give the images as data, or data="none" to look at files of your own only'
    if auto and facts["demo"] and not os.environ.get("PATHOLIB_DATA"):
        data = "demo"
    elif auto and kind not in readers.KINDS:
        raise PathoError("data_root", facts["name"], "was made from a table of one's own, and does not say where it is",
                         remedy)
    elif auto and not facts["demo"] and (found := readers.find(kind)).demo:
        raise PathoError("data_root", kind, f"is not in {', '.join(found.tried) or 'the place given'}", remedy)
    return readers.load(kind if kind in readers.KINDS else facts["recipe"]["name"], data, missing="skip")


def listed(predictions: pd.DataFrame, classes: Sequence[str], positive: str | None,
           threshold: float | rules.Shares) -> pd.DataFrame:
    """What the lists need of each image, by its path: label, patient, called, p (of that), outcome, margin, p_<class>.

    label "" is unknown. margin: see `metrics.margin`.
    """
    probs = predictions[[f"p_{c}" for c in classes]].to_numpy(float)  # (N, C)
    called = rules.called(probs, classes, positive, threshold)
    margin = rules.margin(probs, classes, positive, threshold)
    names, labels = np.array(classes, dtype=object)[called], predictions["label"].to_numpy()
    outcome = np.where(labels == "", YOURS, np.where(labels == names, "right", "wrong"))
    known = {"case", "lesion", "given_group", "group"} & set(predictions)
    patient = predictions[predicting.patient_column(predictions)].to_numpy() if known else ""
    table = pd.DataFrame({"label": labels, "patient": patient, "called": names, "outcome": outcome, "margin": margin,
                          "p": probs[np.arange(len(probs)), called]}, index=pd.Index(predictions["path"], name="path"))
    return table.join(pd.DataFrame(probs, index=table.index, columns=[f"p_{c}" for c in classes]))


def left_by(table: pd.DataFrame, outcome: str = ALL, label: str = ALL, patient: str = ALL,
            order: str = ORDERS[0]) -> pd.DataFrame:
    """The rows of `listed` that pass these filters, in this order."""
    for column, value in (("outcome", outcome), ("label", label), ("patient", patient)):
        if value != ALL:
            table = table[table[column] == value]
    if order == ORDERS[0]:
        return table
    return table.sort_values("margin", ascending=order == ORDERS[1], kind="stable")


def short(path: str) -> str:
    """The name of an image without its folders."""
    return PurePosixPath(path).name.removeprefix(f"{YOURS}: ")
