"""Tables about a network: its blocks, their parameters, and which of them are trained in each stage."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import pandas as pd
import torch

from patholib.model import building, networks
from patholib.model.recipes import Recipe

if TYPE_CHECKING:
    from patholib.model.networks import Classifier


def block_maps(model: Classifier) -> Iterator[tuple[str, torch.Tensor]]:
    """Each block's name and its maps (1, K, h, w) of one black image of model.image_size, tokens on their grid.

    The model stays as it is.
    """
    still = networks.evaluating(model)
    maps = still.mean.new_zeros(1, 3, model.image_size, model.image_size)
    for name, block in still.blocks.items():
        with torch.no_grad():
            for module in block:
                maps = module(maps)
        yield name, networks.on_grid(still, maps)


def describe(model: Classifier) -> pd.DataFrame:
    """One row per block, then backbone, head, colour (if any) and model: parameters, trainable, share, output.

    output is the shape for one image of model.image_size, as "256 x 14 x 14". The model is left as it is.
    """
    rows = []

    def add(name: str, parameters, output: torch.Tensor) -> None:
        trainable, total = networks.count(parameters)
        rows.append(
            {
                "block": name,
                "parameters": total,
                "trainable": trainable,
                "share": trainable / max(total, 1),  # a block that pools may have none
                "output": " x ".join(map(str, output.shape[1:])),
            }
        )

    still = networks.evaluating(model)
    for name, maps in block_maps(still):
        add(name, itertools.chain(*(module.parameters() for module in still.blocks[name])), maps)
    with torch.no_grad():
        logits = still.classify(maps, name)
    add("backbone", [p for k, p in still.net.named_parameters() if not k.startswith(still.added)], maps)
    add("head", still.head.parameters(), logits)
    if still.sees_colour:
        add("colour", still.net.get_submodule("colour").parameters(), logits)
    add("model", still.parameters(), logits)
    return pd.DataFrame(rows)


def describe_stages(recipe: Recipe) -> pd.DataFrame:
    """One row per stage of unfreezing: first epoch (from 1), frozen blocks, first block that learns, lr factor, shares.

    The shares are of the weights that learn, in the backbone and in the whole model, head included.
    """
    model = building.build(replace(recipe, weights="none"))
    rows = []
    for stage in recipe.stages:
        model.freeze(stage.frozen, recipe.batchnorm)
        shares = describe(model).set_index("block")["share"]
        rows.append(
            {
                "from epoch": stage.first_epoch(recipe.epochs) + 1,
                "frozen": stage.frozen,
                "learns from": (*model.block_names, "head")[stage.frozen],
                "lr factor": stage.lr_scale,
                "backbone share": shares["backbone"],
                "model share": shares["model"],
            }
        )
    return pd.DataFrame(rows)
