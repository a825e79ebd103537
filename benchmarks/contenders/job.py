"""What the scripts of all contenders share: the job they are given, its images, their clock and the files they leave.

A script is called with one JSON file. It leaves `val.csv` and `test.csv` (path, label, group and p_<class> per image),
`curve.csv` (what the validation images said after so many seconds of training) and, last, `facts.json`.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # also without an installation

import numpy as np
import pandas as pd
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from patholib.base import files
from patholib.model import architectures, recipes

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, as every rival with random weights normalises
NETWORK = "tf_efficientnet_lite0"  # what timm calls the network that has the pretrained weights


@dataclass(frozen=True)
class Job:
    """One training: which images of a fold to learn from, choose by and be judged on, for how long."""

    dataset: str
    kind: str  # what `datasets.load` calls it
    data: str  # what `datasets.load` is given
    positive: str | None
    root: str  # of the paths in the folds
    folds: str  # the CSV with a column for each split
    column: str  # the split of this job: train, val or test for every image
    classes: tuple[str, ...]
    seed: int
    seconds: float  # of training
    threads: int
    size: int  # pixels, side of the square a network sees
    out: str
    options: dict = field(default_factory=dict)  # of this contender alone

    @property
    def table(self) -> pd.DataFrame:
        """path, label, group and split of every image."""
        table = pd.read_csv(self.folds, dtype=str, keep_default_na=False)
        return table[["path", "label", "group"]].assign(split=table[self.column])

    def part(self, split: str) -> pd.DataFrame:
        """The images of one split: path, label, group, `file` (the whole path) and `place` (of the label)."""
        table = self.table
        table = table[table["split"] == split].reset_index(drop=True)
        place = {name: k for k, name in enumerate(self.classes)}
        return table.assign(
            file=[str(Path(self.root, path)) for path in table["path"]], place=table["label"].map(place).astype(int)
        )

    @property
    def shares(self) -> list[float]:
        """The share of each class among the training images."""
        counts = np.bincount(self.part("train")["place"], minlength=len(self.classes))
        return (counts / counts.sum()).tolist()


def pretrained(folder: Path | str) -> dict:
    """What `timm.create_model(NETWORK, ...)` is given to begin with the weights of ours, kept by timm's names.

    They are in `folder`, written where they are missing. Input is normalised as ours does it for these weights.
    """
    entry, path = architectures.NETWORKS[recipes.FIRST_LOOK], Path(folder) / f"{NETWORK}.safetensors"
    if not path.exists():
        convert(path)
    return {"pretrained": True, "pretrained_cfg_overlay": {"file": str(path), "mean": entry.mean, "std": entry.std}}


def convert(path: Path) -> None:
    """Writes the packaged weights with timm's names, whose tensors come in the same order."""
    import timm
    import torch
    from safetensors.torch import save

    from patholib.model import weights

    packaged = torch.load(weights.find_or_fetch(recipes.FIRST_LOOK)[0], map_location="cpu", weights_only=True)
    named = dict(zip(timm.create_model(NETWORK).state_dict(), packaged.values(), strict=True))
    files.write_bytes(path, save({name: tensor.contiguous() for name, tensor in named.items()}))


class Clock:
    """Adds up the seconds between `start` and `stop`: those of training alone."""

    def __init__(self):
        self.seconds, self.started = 0.0, None

    def start(self, *_) -> None:
        self.started = time.perf_counter()

    def stop(self, *_) -> None:
        self.seconds += time.perf_counter() - self.started
        self.started = None


def read(path: str) -> Job:
    values = files.read_json(Path(path))
    return Job(**values | {"classes": tuple(values["classes"])})


def epochs_within(seconds: float, of_one: float) -> int:
    """How many whole epochs the time allows, one at least."""
    return max(1, int(seconds / of_one))


def point(job: Job, epoch: int, seconds: float, probs: np.ndarray) -> dict:
    """One row of the curve, from the probabilities (N, C) of the validation images."""
    place = job.part("val")["place"].to_numpy()
    return {
        "epoch": epoch,
        "seconds": round(seconds, 2),
        "val_auc": roc_auc_score(place, probs if probs.shape[1] > 2 else probs[:, 1], multi_class="ovr"),
        "val_balanced_accuracy": balanced_accuracy_score(place, probs.argmax(axis=1)),
    }


def predictions(job: Job, split: str, probs: np.ndarray) -> pd.DataFrame:
    """The table of predictions of a split whose probabilities are probs (N, C)."""
    table = job.part(split)[["path", "label", "group"]]
    probs = np.asarray(probs, dtype=float)
    return table.assign(**{f"p_{name}": probs[:, k] / probs.sum(axis=1) for k, name in enumerate(job.classes)})


def leave(
    job: Job, tables: dict[str, pd.DataFrame], curve: list[dict], packages: tuple[str, ...] = (), **facts
) -> None:
    """Writes the tables and the curve, then what is to be known of the training."""
    out = Path(job.out)
    for name, table in tables.items():
        files.write_table(out / f"{name}.csv", table)
    files.write_table(
        out / "curve.csv", pd.DataFrame(curve, columns=["epoch", "seconds", "val_auc", "val_balanced_accuracy"])
    )
    versions = {name: metadata.version(name) for name in packages}
    files.write_json(out / "facts.json", {"prior": job.shares, "versions": versions} | facts)


def run(main: Callable[[Job], None]) -> None:
    """Does the job that the command line names."""
    main(read(sys.argv[1]))
