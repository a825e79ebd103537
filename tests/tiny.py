"""A training small enough to be done a thousand times: a network of 20,000 weights, images of noise with a cue."""

from __future__ import annotations

import contextlib
import itertools
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import nn

from patholib.base import files
from patholib.data import checking, splitting
from patholib.data.imagesets import ImageSet
from patholib.data.readers import table
from patholib.model import architectures, recipes
from patholib.model.building import build
from patholib.model.recipes import BREAKHIS
from patholib.train import training
from patholib.train.runs import Run

TINY = replace(
    recipes.unfrozen(BREAKHIS),
    arch="resnet18",
    image_size=32,
    batch_size=8,
    epochs=2,
    head_width=16,
    lr=1e-2,
    patience=0,
    precision="fp32",
)  # auto is decided by the clock
# The same for a study, whose options the recipe is made from.
SMALL = {
    "arch": "resnet18",
    "weights": "none",
    "image_size": 32,
    "epochs": 1,
    "batch_size": 8,
    "device": "cpu",
    "workers": 1,
    "precision": "fp32",
}
TIMES = ["seconds", "val_seconds", "images_per_second"]  # columns of a history that no two runs share


class Network(nn.Module):
    """The blocks of a ResNet by torchvision's names, by default ResNet18's, each a convolution of 4 to 32 channels."""

    def __init__(self, weights=None, counts=(2, 2, 2, 2)):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 4, 7, 2, 3, bias=False), nn.BatchNorm2d(4)
        self.relu, self.maxpool = nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)
        for number, ((narrow, wide), count) in enumerate(
            zip(itertools.pairwise((4, 4, 8, 16, 32)), counts, strict=True), 1
        ):
            setattr(
                self,
                f"layer{number}",
                nn.Sequential(block(narrow, wide, wide // narrow), *(block(wide, wide) for _ in range(count - 1))),
            )
        self.fc = nn.Identity()  # the head is put in its place; without weights, to draw none

    def forward(self, images):
        maps = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            maps = layer(maps)
        return self.fc(maps.mean((2, 3)))


def deep(weights=None):
    """The same with the blocks of ResNet50."""
    return Network(counts=(3, 4, 6, 3))


def block(before, after, stride=1):
    """One convolution to `after` channels."""
    return nn.Sequential(nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU())


@contextlib.contextmanager
def network():
    """Lets resnet18 be that network, whose checkpoint takes milliseconds instead of half a second."""
    with in_place_of("resnet18"):
        yield


@contextlib.contextmanager
def in_place_of(arch):
    """Lets resnet18 or resnet50 be this network."""
    before = architectures.NETWORKS[arch]
    constructor = {"resnet18": "tiny:Network", "resnet50": "tiny:deep"}[arch]
    architectures.NETWORKS[arch] = replace(before, constructor=constructor, channels=32, last_norm="")
    try:
        yield
    finally:
        architectures.NETWORKS[arch] = before


def image_set(train=32, val=16, seed=0, cue=60):
    """Images of noise whose first class is darker; cue=0 leaves nothing to learn."""
    rng = np.random.default_rng(seed)
    labels = np.arange(train + val) % 2
    pixels = rng.integers(0, 120, (train + val, 37, 37, 3)) + cue * labels[:, None, None, None]
    table = pd.DataFrame(
        {
            "path": [f"image{i:03}.png" for i in range(train + val)],
            "label": np.array(BREAKHIS.classes)[labels],
            "case": [f"case{i}" for i in range(train + val)],
            "group": [f"case{i}" for i in range(train + val)],
            "row": np.arange(train + val),
            "split": ["train"] * train + ["val"] * val,
        }
    )
    return ImageSet(pixels.astype(np.uint8), table, BREAKHIS.classes)


def pictures(folder, patients=8):
    """Patients of two classes, two small pictures each, and their table mine.csv in a new folder."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    rows = []
    for i in range(2 * patients):
        Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(folder / f"{i:02}.png")
        rows.append({"path": f"{i:02}.png", "label": BREAKHIS.classes[i % 4 // 2], "group": f"p{i // 2}"})
    files.write_table(folder / "mine.csv", pd.DataFrame(rows))
    return folder


def prepare(folder, seed=0):
    """(checked, split) of such a folder: the same in any process."""
    checked = checking.check(
        table.read(folder / "mine.csv"), TINY.cache_size, cache_dir=folder.parent / "cache", progress=False
    )
    return checked, splitting.split(checked.manifest, seed=seed)


def open_run(folder, recipe=TINY):
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "run.json").exists():
        files.write_json(folder / "run.json", {})
    return Run(folder, recipe, demo=False, fingerprint="same")


def train(folder, recipe=TINY, images=None, **options):
    model = build(recipe)
    history = training.fit(
        model, images if images is not None else image_set(), open_run(folder, recipe), device="cpu", **options
    )
    return model, history


def same_bits(a, b):
    a, b = a.state_dict(), b.state_dict()
    return all(torch.equal(a[k], b[k]) for k in a)


def without_time(history):
    return history.drop(columns=TIMES)
