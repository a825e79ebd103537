"""A small fixed table of predictions and every number that the library gives for it, kept in stored_example.json.

`python tests/stored_example.py` writes the file anew: only where a metric was added or a number changed on purpose.
"""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd

from patholib.judge import decisions, groupwise, metrics

FILE = Path(__file__).with_suffix(".json")
BINARY, THREE = ("benign", "malignant"), ("MEL", "NV", "BCC")


def table(classes, seed: int, rows: int = 60, groups: int = 15) -> pd.DataFrame:
    """Predictions by whole-number arithmetic, so that they are the same with every version of every library."""
    state, draws = seed, []
    for _ in range(rows * (len(classes) + 1)):
        state = (1103515245 * state + 12345) % 2**31
        draws.append(state >> 16)
    width, made = len(classes) + 1, []
    for i in range(rows):
        first, *weights = draws[i * width : (i + 1) * width]
        label = first % len(classes)
        weights = [1 + weight % 100 + 60 * (k == label) for k, weight in enumerate(weights)]
        made.append(
            {
                "path": f"{i:03}.png",
                "group": f"g{i % groups:02}",
                "case": f"c{i % groups // 2}",
                "site": ("arm", "leg")[i % 2],
                "label": classes[label],
                **{f"p_{name}": weight / sum(weights) for name, weight in zip(classes, weights, strict=True)},
            }
        )
    return pd.DataFrame(made)


def numbers() -> dict:
    """What metrics.json is made of, by what was asked."""
    two, other, three = table(BINARY, 1), table(BINARY, 1), table(THREE, 3)
    other[["p_benign", "p_malignant"]] = table(BINARY, 2)[["p_benign", "p_malignant"]].to_numpy()
    without = three[three["label"] != "BCC"].reset_index(drop=True)
    one = two[two["label"] == "malignant"].reset_index(drop=True)
    never = two.assign(p_benign=0.9, p_malignant=0.1)
    shares = {"MEL": 0.2, "NV": 0.5, "BCC": 0.3}
    cases = two.assign(label=[BINARY[int(name[1:]) % 2] for name in two["case"]])
    by_site = groupwise.by_subgroup(two, BINARY, "malignant", ["site"], 0.4)
    return {
        "two classes": metrics.summary(two, BINARY, "malignant", 0.4),
        "no positive class": metrics.summary(two, BINARY),
        "three classes": metrics.summary(three, THREE, "MEL"),
        "shares": metrics.summary(three, THREE, "MEL", shares),
        "absent class": metrics.summary(without, THREE),
        "one class": metrics.summary(one, BINARY, "malignant"),
        "never predicted": metrics.summary(never, BINARY, "malignant"),
        "paired": metrics.paired(two, other, BINARY, "malignant", (0.4, 0.5)),
        "paired, three classes": metrics.paired(three, three, THREE, "MEL", (shares, 0.5)),
        "alert": metrics.alert(three, THREE, "MEL", 0.4),
        "alert that is never raised": metrics.alert(three, THREE, "MEL", 1.0),
        "subgroups": by_site.astype(object).where(by_site.notna(), None).to_dict("records"),
        "patients": groupwise.patient_summary(cases, BINARY, "malignant", "case", 0.4),
        "calibration": decisions.calibration_of(three, THREE, "MEL", {"temperature": 1.3}),
        "choice": decisions.choose(two, BINARY, "malignant", 0.9),
        "classification report": metrics.classification_report(two, BINARY, "malignant", 0.4).to_dict("index"),
    }


if __name__ == "__main__":
    FILE.write_text(json.dumps(numbers(), indent=None, separators=(",", ":")) + "\n", encoding="utf-8")
    print(f"{FILE.stat().st_size:,} bytes")
