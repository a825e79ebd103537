"""Small tables of predictions for tests."""

from __future__ import annotations

import numpy as np
import pandas as pd

BINARY = ("benign", "malignant")
THREE = ("MEL", "NV", "BCC")


def table(labels, probs, classes, groups=None, **columns):
    labels, probs = list(labels), np.asarray(probs, dtype=float)
    groups = range(len(labels)) if groups is None else groups
    made = pd.DataFrame(
        {
            "path": [f"{i:05}.png" for i in range(len(labels))],
            "group": [f"g{g}" for g in groups],
            "label": labels,
            **columns,
        }
    )
    made[[f"p_{c}" for c in classes]] = probs
    return made


def binary(labels, scores, **columns):
    """labels: 1 is malignant; scores: p_malignant."""
    scores = np.asarray(scores, dtype=float)
    return table([BINARY[k] for k in labels], np.stack([1 - scores, scores], axis=1), BINARY, **columns)


def random_table(seed, n=300, classes=THREE, n_groups=40, decimals=None, skill=1.0):
    """Random predictions with some skill; `decimals` rounds the scores, which makes ties."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, len(classes), n)
    logits = rng.normal(size=(n, len(classes)))
    logits[np.arange(n), labels] += skill
    probs = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    if decimals is not None:
        probs = np.round(probs, decimals)
        probs[:, -1] = 1 - probs[:, :-1].sum(axis=1)
    return table([classes[k] for k in labels], np.abs(probs), classes, rng.integers(0, n_groups, n))
