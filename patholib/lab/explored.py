"""What the explorer shows: a run or an export, its images, and their order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath

import numpy as np
import pandas as pd

from patholib.base import files
from patholib.base.errors import PathoError
from patholib.data import csvfiles
from patholib.deploy import exportformat
from patholib.judge import predicting, rules
from patholib.train import runs

ALL = ""  # a filter that lets everything pass: no class, patient or outcome can have this name
YOURS = "yours"
OUTCOMES = (ALL, "correct", "wrong", YOURS)
ORDERS = ("as listed", "least certain first", "most certain first")
COLOURS = ("jet", "turbo", "viridis", "inferno", "cividis")  # the last three can also be told apart in grey
MARKS = {"correct": "✓", "wrong": "✗", YOURS: "•"}
NOTES = "explored.csv"  # in the run folder: the images viewed, with notes
COLUMNS = ("image", "label", "predicted", "p", "heatmap_for", "block", "method", "blank", "note")
BEFORE = {"called": "predicted", "evidence_for": "heatmap_for"}  # names of these columns in version 0.1.0


def find_run(
    run: str | Path = "latest",
    data: str = "auto",
    output: Path | str | None = None,
    make: Callable[[Path], Path] | None = None,
) -> Path:
    """The folder to explore, which is printed: a run, an exported model, or for "latest" the newest finished run.

    run: a path, or the name of a folder in `output`. data "demo" looks for runs on demo images only. make: makes a run
    in `output` where "latest" finds none, such as `Study.demo_run`. Errors: missing_run.
    """
    output = runs.output_folder(output)
    if run == "latest":
        found = runs.newest(output, demo=data == "demo")
        if found is None and make is not None:
            print("There is no finished run yet: a small model is trained on demo images first, for about a minute")
            return make(output)
        if found is None:
            raise PathoError(
                "missing_run", str(output), "holds no finished run", "Train one: patholib train quickstart"
            )
        print(f"The newest finished run: {found.name}")
        return found
    places = (files.given(run), output / run)
    found = next((place for place in places if files.is_there(place / exportformat.MANIFEST)), None)
    if found is None:
        raise PathoError(
            "missing_run",
            str(run),
            f"holds no {exportformat.MANIFEST}, so there is no model to explore",
            'Name the folder of a finished run or of an exported model, or "latest"',
        )
    return found


def listed(
    predictions: pd.DataFrame, classes: Sequence[str], positive: str | None, threshold: float | rules.Shares
) -> pd.DataFrame:
    """One row per image, by its path: label, patient, predicted, p (of that class), outcome, margin, p_<class>.

    label "" is unknown. margin: see `rules.margin`.
    """
    probs = predictions[[f"p_{c}" for c in classes]].to_numpy(float)  # (N, C)
    predicted = rules.predicted(probs, classes, positive, threshold)
    names, labels = np.array(classes, dtype=object)[predicted], predictions["label"].to_numpy()
    outcome = np.where(labels == "", YOURS, np.where(labels == names, "correct", "wrong"))
    known = {"case", "lesion", "given_group", "group"} & set(predictions)
    patient = predictions[predicting.patient_column(predictions)].to_numpy() if known else ""
    columns = {
        "label": labels,
        "patient": patient,
        "predicted": names,
        "outcome": outcome,
        "margin": rules.margin(probs, classes, positive, threshold),
        "p": probs[np.arange(len(probs)), predicted],
    }
    table = pd.DataFrame(columns, index=pd.Index(predictions["path"], name="path"))
    return table.join(pd.DataFrame(probs, index=table.index, columns=[f"p_{c}" for c in classes]))


def left_by(
    table: pd.DataFrame, outcome: str = ALL, label: str = ALL, patient: str = ALL, order: str = ORDERS[0]
) -> pd.DataFrame:
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


def notes(run: Path) -> list[dict]:
    """The rows of the notes file of a run or exported model, none where there is no file."""
    path = Path(run) / NOTES
    if not path.exists():
        return []
    table = csvfiles.read_csv(path, ("image", "note")).rename(columns=BEFORE)
    return table.reindex(columns=list(COLUMNS), fill_value="").to_dict("records")
