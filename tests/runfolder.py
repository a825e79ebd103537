"""A run folder without a training: the files that report and cards are written from, with numbers that one knows."""

from __future__ import annotations

from html.parser import HTMLParser

import numpy as np
import pandas as pd

from patholib.base import files
from patholib.model import recipes

RECIPE = recipes.BREAKHIS
PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de0000000c49444154789c63f8ffff3f"
    "0005fe02fe0def46b80000000049454e44ae426082"
)


def number(value, low=None, high=None):
    return {"value": value, "low": value - 0.02 if low is None else low, "high": value + 0.02 if high is None else high}


def summary(auc=0.95, sensitivity=0.95, support=(100, 200), classes=RECIPE.classes, width=0.02):
    def near(value):
        return number(value, value - width, value + width)

    names = ["accuracy", "balanced_accuracy", "auc", "sensitivity", "specificity", "precision", "f1", "brier"]
    metrics = {n: near(0.9) for n in names} | {"auc": near(auc), "sensitivity": near(sensitivity)}
    per_class = {
        c: {
            "support": n,
            "groups": 9,
            **{m: near(0.9) for m in ("sensitivity", "specificity", "precision", "f1", "auc")},
        }
        for c, n in zip(classes, support, strict=True)
    }
    per_class[classes[-1]]["sensitivity"] = near(sensitivity)
    return {
        "images": sum(support),
        "groups": 21,
        "classes": list(classes),
        "positive": RECIPE.positive,
        "threshold": 0.5,
        "decision": "p_malignant >= 0.5",
        "metrics": metrics,
        "per_class": per_class,
        "confusion": [[90, 10], [12, 188]],
        "notes": [],
        "subgroups": [
            {
                "column": "magnification",
                "value": "40",
                "images": 70,
                "groups": 8,
                "few": True,
                "accuracy": 0.871,
                "accuracy_low": 0.8,
                "accuracy_high": 0.9,
                "auc": None,
            }
        ],
        "alert": {
            "positive": RECIPE.positive,
            "threshold": 0.3125,
            "flagged": 0.74,
            "images": 300,
            "groups": 21,
            "positives": 200,
            "positive_groups": 14,
            **{n: near(0.83) for n in ("sensitivity", "specificity", "ppv", "npv")},
        },
        "abstention": {
            "coverage": [0.5, 1.0],
            "risk": [0.012, 0.099],
            "aurc": 0.034,
            "aurc_best": 0.005,
            "aurc_random": 0.099,
        },
        "patients": {
            "column": "case",
            "patients": 21,
            "two_labels": {"patients": 1, "names": ["14-13412"]},
            "recognition_rate": number(0.876),
            "summary": None,
        },
    }


def locked(recipe):
    """What metrics.json has of calibration, and the decision, which has a file of its own."""
    reached = {
        n: number(v)
        for n, v in zip(("sensitivity", "specificity", "ppv", "npv"), (0.97, 0.71, 0.88, 0.91), strict=True)
    }
    errors = {
        "temperature": 1.0,
        "ece_mass": 0.113,
        "intercept": 0.21,
        "slope": 0.84,
        "ece_chance": 0.02,
        "brier": 0.1,
        "log_loss": 0.4,
        "bins": [],
        "counts": [],
    }
    return {
        "decision": {
            "format": 1,
            "temperature": 1.37,
            "positive": recipe.positive,
            "threshold": 0.3125,
            "rule": "sensitivity >= 0.95 on validation",
            "target": {"sensitivity": 0.95},
            "validation": reached,
            "notes": ["only 7 groups"],
            "locked": "2026-11-22T10:00:00Z",
            "predictions_val_sha256": "ef" * 32,
        },
        "calibration": {"test": {"before": errors, "after": errors | {"temperature": 1.37, "ece_mass": 0.041}}},
        "tta_gain": {"auc": number(0.006, -0.001, 0.013)},
        "gain_over": {"baseline": {"auc": number(0.139, 0.089, 0.181), "sensitivity": number(-0.03)}},
    }


def history(epochs=20, **columns):
    epoch = np.arange(1, epochs + 1)
    table = pd.DataFrame(
        {
            "epoch": epoch,
            "lr": 1e-3,
            "frozen": 13,
            "trainable_share": 0.7,
            "train_loss": 1 / (1 + epoch),
            "train_accuracy": 0.9,
            "val_loss": 1 / (1 + epoch),
            "val_accuracy": 0.88,
            "val_balanced_accuracy": 0.87,
            "val_auc": 0.9,
            "seconds": 3.0,
        }
    )
    table["val_auc"] += 0.002 * np.minimum(epoch, epochs - 3)  # the best is neither early nor last
    return table.assign(**columns)


def record(**changes):
    return {
        "name": "a run",
        "created": "2026-11-22",
        "status": "finished",
        "recipe": RECIPE.to_json(),
        "published": False,
        "demo": False,
        "data": {"images": 300, "images_sha256": "ab" * 32},
        "split": {"path": "split.csv"},
        "versions": {"python": "3.12.3", "torch": "2.15.0"},
        "code": {"version": "0.1.0", "commit": "3dfe567"},
        "machine": {"system": "Linux"},
        "seed": 0,
        "weights": {"kind": "imagenet", "sha256": "cd" * 32},
    } | changes


def full_run(folder, recipe=RECIPE, **changes):
    split = pd.DataFrame(
        {
            "path": [f"{i}.png" for i in range(30)],
            "group": [f"g{i}" for i in range(30)],
            "label": [recipe.classes[i % len(recipe.classes)] for i in range(30)],
            "split": ["train", "val", "test"] * 10,
        }
    )
    files.write_table(folder / "split.csv", split)
    values = {"recipe": recipe.to_json(), "split": {"sha256": files.sha256(folder / "split.csv")}} | changes
    files.write_json(folder / "run.json", record(**values))
    classes = recipe.classes[:2]
    aucs = {"val": 0.96, "test": 0.951, "test_tta": 0.957, "baseline": 0.812}
    files.write_json(
        folder / "metrics.json", {k: summary(auc=auc, classes=classes) for k, auc in aucs.items()} | locked(recipe)
    )
    files.write_json(folder / "decision.json", locked(recipe)["decision"])
    files.write_json(
        folder / "data_report.json",
        {
            "counts": {"files": 301, "kept": 300, "by_code": {"corrupt": 1}},
            "warnings": [],
            "excluded": [{"path": "benign/x.png", "code": "corrupt", "reason": "ends in the middle"}],
        },
    )
    files.write_table(folder / "history.csv", history())
    for name in ("figures/roc curve.png", "training_metrics.png", "heatmaps/a.png"):
        files.write_bytes(folder / name, PNG)
    for name in ("predictions_val.csv", "predictions_test.csv"):
        files.write_text(folder / name, "path\n")
    return folder


# What a page of text and tables may hold; neither a script nor a form.
TAGS = set(
    """
    html head meta title style body main div h1 h2 h3 p strong code table thead tbody tr th td ul li
    blockquote a
    """.split()
)


class Elements(HTMLParser):
    """The tags, addresses and text of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.links, self.text = [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.links += [value for key, value in attributes if key in ("src", "href", "srcset", "style")]
        assert not any(key.startswith("on") for key, _ in attributes)

    def handle_data(self, data):
        self.text += data


EVIL = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "[x](javascript:alert(1))",
    "`a`|b",
    "$x$ \\(y\\)",
    "a\n\n<b>b</b>",
    "**bold** _it_",
    "![p](http://outside.example/p.png)",
    "1. # - > &lt;",
    "{body}{title}",
    "\\",
]
