"""Labels that the predictions out of fold doubt, ranked for a person to look at; nothing is edited.

The order is by self-confidence, the probability of the label that is given (Northcutt, Jiang & Chuang 2021). Of labels
that were turned on purpose its first tenth held more on skin lesions than that of margins or of confident learning; on
breast tissue the ways to rank cannot be told apart (benchmarks/folds.py).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from patholib.judge import predicting

FILE, PICTURE = "label_doubts.csv", "label_doubts.png"
SHOWN = 24  # pictures on the page, and patients in its table
FIRST = 0.1  # of the images: those that a person would look at first
NOTE = (
    "Every image was predicted by a network that has not seen its patient. These are the images to whose label it "
    "gives the lowest probability (self-confidence; Northcutt, Jiang & Chuang 2021). A hard image with a right label "
    "is doubted too, and an error that all networks have learnt is not. No label was changed: look at them."
)


def ranked(predictions: pd.DataFrame, classes: Sequence[str]) -> pd.DataFrame:
    """One row per image, that with the most doubtful label first, from predictions out of fold.

    Columns rank (from 1), path, label, p_label (its probability, the mean over repeats), suggested (the likeliest
    other class), p_suggested, patient. Of equal probabilities the first path comes first.
    """
    column = predicting.patient_column(predictions)
    named = [f"p_{name}" for name in classes]
    table = predictions.groupby("path", as_index=False).agg(
        {"label": "first", column: "first"} | dict.fromkeys(named, "mean")
    )
    probs, rows, own = (
        predicting.probs_of(table, classes),
        np.arange(len(table)),
        predicting.true_labels(table, classes),
    )
    p_label = probs[rows, own]
    probs[rows, own] = -1
    other = probs.argmax(axis=1)
    found = pd.DataFrame(
        {
            "path": table["path"],
            "label": table["label"],
            "p_label": p_label,
            "suggested": np.array(classes, dtype=object)[other],
            "p_suggested": probs[rows, other],
            "patient": table[column],
        }
    ).sort_values(["p_label", "path"], ignore_index=True)
    found.insert(0, "rank", found.index + 1)
    return found


def by_patient(found: pd.DataFrame) -> pd.DataFrame:
    """One row per patient with an image in the first tenth of `ranked`: patient, images, in first tenth, first rank.

    Those with the most such images first: where all images of a patient are doubted, the patient's label may be wrong.
    """
    first = found["rank"] <= np.ceil(FIRST * len(found))
    table = found.assign(doubted=first).groupby("patient", as_index=False)
    table = table.agg(images=("path", "size"), doubted=("doubted", "sum"), first=("rank", "min"))
    return table[table["doubted"] > 0].sort_values(["doubted", "first"], ascending=[False, True], ignore_index=True)
