"""A recipe and the history of its training in words: settings, what differs from the shipped recipe, epochs."""

from __future__ import annotations

import dataclasses

import numpy as np
from markupsafe import Markup

from patholib.judge.metric_table import words
from patholib.model import architectures, overriding, recipes
from patholib.model.recipes import Augmentation, Recipe, Stage
from patholib.report.markdown import short, spoken, table
from patholib.report.records import Record

VALUES = {
    **{name: network.words for name, network in architectures.NETWORKS.items()},
    "adam": "Adam",
    "adamw": "AdamW",
    "sgdr": "cosine with warm restarts",
    "plateau": "reduced on a plateau",
    "cross_entropy": "cross entropy",
    "focal": "focal loss",
    "focal_weighted_pt": "focal loss as published",
    "weights": "class weights",
    "sampler": "balanced sampler",
    "logit_adjustment": "logit adjustment",
    "sampler_and_weights": "balanced sampler and class weights",
    "imagenet": "ImageNet",
    "dihedral": "flips and quarter turns",
}
HISTORY = {
    "epoch": "epoch",
    "strength": "strength C",
    "lr": "learning rate",
    "frozen": "frozen blocks",
    "trainable_share": "trainable share",
    "train_loss": "training loss",
    "val_loss": "validation loss",
    "train_accuracy": "training accuracy",
    "val_accuracy": "validation accuracy",
    "val_balanced_accuracy": "validation balanced accuracy",
    "val_auc": "validation AUC",
    "gap": "training minus validation accuracy",
    "seconds": "seconds",
    "images_per_second": "images per second",
    "gpu_memory_mb": "GPU memory (MB)",
    "val_seconds": "seconds in validation",
}


def stages(recipe: Recipe, which: tuple[Stage, ...] | None = None) -> str:
    """The unfreezing in words: `13 of 17 blocks frozen`, of several stages with their first epochs."""
    blocks, which = len(architectures.of(recipe.arch).blocks), recipe.stages if which is None else which
    parts = []
    for stage in which:
        frozen = f"{stage.frozen} of {blocks} blocks frozen" if stage.frozen else "no block frozen"
        start = f"from epoch {stage.first_epoch(recipe.epochs) + 1}: " if len(which) > 1 else ""
        rate = f" (learning rate x {stage.lr_scale:g})" if stage.lr_scale != 1 else ""
        parts.append(f"{start}{frozen}{rate}")
    return "; ".join(parts)


def in_words(recipe: Recipe, field: str, value) -> str:
    """The value of one field of a recipe as people say it."""
    if field == "stages":
        return stages(recipe, value)
    if field == "arch":
        return VALUES.get(value, value)
    if field == "fractions":
        return ", ".join(f"{100 * share:g} %" for share in value)
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, str) and field not in ("name", "positive", "group_by"):
        return words(value) if field == "monitor" else VALUES.get(value, value.replace("_", " "))
    return spoken(value)


def every(recipe: Recipe) -> Markup:
    """All fields of a recipe as a table; where a head is fitted, those that mean something."""
    fields, rows = dataclasses.fields(recipe), []
    if recipe.train == "head":
        known = (*overriding.OF_HEAD, *overriding.fitted_head(recipe.arch))
        fields = tuple(field for field in fields if field.name in known)
    for field in fields:
        value = getattr(recipe, field.name)
        inner = (
            {f"{field.name}.{f.name}": getattr(value, f.name) for f in dataclasses.fields(value)}
            if isinstance(value, Augmentation)
            else {field.name: value}
        )
        rows += [(Markup(f"`{key}`"), short(in_words(recipe, key, one))) for key, one in inner.items()]
    return table(("field", "value"), rows)


def changed(recipe: Recipe) -> Markup | None:
    """What differs from the recipe as shipped, as a table; empty if nothing does, None if no such recipe ships."""
    if recipe.name not in recipes.RECIPES:
        return None
    shipped = recipes.get(recipe.name)
    rows = [
        (Markup(f"`{field}`"), short(in_words(shipped, field, a), 120), short(in_words(recipe, field, b), 120))
        for field, (a, b) in recipes.diff(shipped, recipe).items()
    ]
    return table(("field", "shipped", "this run"), rows) if rows else Markup("")


def kept(recipe: Recipe) -> str:
    """Which epoch is judged, or which strength of a fitted head."""
    if recipe.train == "head":
        return "the one with the lowest validation loss"
    return "the last" if recipe.keep == "last" else f"the one with the best validation {words(recipe.monitor)}"


def loss(recipe: Recipe) -> str:
    """The loss, with what changes it."""
    smoothing = f", label smoothing {recipe.label_smoothing:g}" if recipe.label_smoothing else ""
    return VALUES.get(recipe.loss, recipe.loss) + smoothing


def best_row(run: Record):
    """The index of the best epoch in the history; of the last where none can be called best; of a head's best fit."""
    if run.recipe.train == "head":
        return run.history["val_loss"].idxmin()
    monitor = f"val_{run.recipe.monitor}"
    known = monitor in run.history and run.history[monitor].notna().any()
    return run.history[monitor].idxmax() if known else run.history.index[-1]


def epochs(run: Record) -> Markup:
    """The first, the best and the last epoch side by side; further metrics of the history under their own names."""
    history = run.history.drop(columns="epoch") if run.recipe.train == "head" else run.history
    columns = [*HISTORY, *(name for name in history if name not in HISTORY and name.startswith(("val_", "train_")))]
    columns = [name for name in columns if name in history and history[name].notna().any()]
    chosen = {"first": history.index[0], "best": best_row(run), "last": history.index[-1]}
    return table(
        ("", *chosen),
        [(HISTORY.get(name, words(name)), *(_cell(history[name][i]) for i in chosen.values())) for name in columns],
    )


def _cell(value) -> str:
    if not np.isfinite(value):
        return "not finite"
    return f"{int(value):,}" if float(value).is_integer() else f"{value:.4g}"


def network(recipe: Recipe) -> str:
    """The network and the size of its images, a phrase."""
    colour = ", and a small one on colour and grain statistics" if recipe.colour else ""
    return f"{VALUES.get(recipe.arch, recipe.arch)}, images of {recipe.image_size} pixels{colour}"


def optimiser(recipe: Recipe) -> str:
    """Optimizer, learning rate and schedule, a phrase; or that a head was fitted."""
    if recipe.train == "head":
        return "Linear head by logistic regression (L2) on standardised features of the frozen network"
    return (
        f"{VALUES.get(recipe.optimizer, recipe.optimizer)}, learning rate {recipe.lr:g}, "
        f"{VALUES.get(recipe.schedule, recipe.schedule)}"
    )
