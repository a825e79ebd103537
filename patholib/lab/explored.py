"""What the explorer shows: a run or an export, its images, and their order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath

import numpy as np
import pandas as pd

from patholib.base.errors import PathoError
from patholib.deploy import exportformat
from patholib.judge import predicting, rules
from patholib.train import runs

ALL, YOURS = "all", "yours"
OUTCOMES = (ALL, "right", "wrong", YOURS)
ORDERS = ("as listed", "least certain first", "surest first")
COLOURS = ("jet", "turbo", "viridis", "inferno", "cividis")  # the last three also read in grey
MARKS = {"right": "✓", "wrong": "✗", YOURS: "•"}
NOTES = "explored.csv"  # in the run folder: what was looked at, with notes
COLUMNS = ("image", "label", "called", "p", "evidence_for", "block", "method", "blank", "note")




def find_run(run: str | Path = "latest", data: str = "auto", output: Path | str | None = None,
             make: Callable[[Path], Path] | None = None) -> Path:
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
            raise PathoError("missing_run", str(output), "holds no finished run",
                             "Train one: patholib train quickstart")
        print(f"The newest finished run: {found.name}")
        return found
    places = (Path(run).expanduser(), output / run)
    found = next((place for place in places if (place / exportformat.MANIFEST).exists()), None)
    if found is None:
        raise PathoError("missing_run", str(run), f"holds no {exportformat.MANIFEST}, so there is no model to explore",
                         'Name the folder of a finished run or of an exported model, or "latest"')
    return found


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
