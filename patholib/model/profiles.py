"""The recipe for given data: its classes and grouping, the overrides, and what differs from the shipped recipe."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd

from patholib.base.errors import PathoError
from patholib.base.team import myself
from patholib.data import manifest
from patholib.model import downloading, overriding, recipes, schedules
from patholib.model import weights as starting
from patholib.model.recipes import Recipe

OF_DATA = ("classes", "positive", "group_by")  # fields of a recipe that the images decide
FEWEST_GROUPS = 10  # of the rarer class in validation: with fewer, the epoch with the best score is one of the luckiest


def recipe_for(
    name: str,
    source: manifest.Manifest,
    published: bool = False,
    weights: str | None = None,
    small: bool = False,
    frozen: int | None = None,
    **overrides,
) -> Recipe:
    """The recipe `name` for these data: their classes and grouping, then the overrides.

    published: the literal form. weights: "imagenet", "none" (which also unfreezes, see `recipes.from_scratch`) or a
    file; None: what the recipe says. Demo images without other weights get the recipe cut down, and so do others with
    `small` (`recipes.first_look`, `recipes.for_demo`). frozen, overrides: as `overriding.overridden` takes them, or
    None. Cycles of the learning rate are fitted to the epochs (`schedules.whole_cycles`), unless published or with t_0
    overridden. Few real images get `recipes.for_few_images`, if blocks learn. That, and random weights that were
    asked for or are trained on real images, is announced (`profile`).
    Errors: bad_parameter, those of `overriding.overridden`.
    """
    recipe = recipes.as_published(name) if published else recipes.get(name)
    recipe = replace(
        recipe, classes=source.classes, positive=source.positive, group_by="image" if published else source.group_by
    )
    if small or (source.demo and weights in (None, "none")):
        recipe = _cut_down(recipe, weights, overrides.get("arch"), overrides.get("train"))
    elif weights == "none":
        recipe = recipes.from_scratch(recipe)
    else:
        recipe = replace(recipe, weights=weights or recipe.weights)
        few = len(source.table) < recipes.FEW_IMAGES and not source.demo
        if few and not published and overrides.get("train") != "head":
            recipe = recipes.for_few_images(recipe)
    given = {field: value for field, value in overrides.items() if value is not None}
    recipe = overriding.overridden(recipe, frozen, **given)
    if not published and "t_0" not in given:
        recipe = in_whole_cycles(recipe)
    if (note := profile(recipe)) and (weights == "none" or not source.demo) and myself().first:
        print(note)  # of several processes one says it
    return recipe


def _cut_down(recipe: Recipe, weights: str | None, arch: str | None, train: str | None) -> Recipe:
    """The recipe for demo images or a first look, with the weights of `recipes.FIRST_LOOK` where they are at hand."""
    if weights not in (None, "none", "imagenet"):
        raise PathoError(
            "bad_parameter", "weights", f"is {weights!r}, which a first look does not use", "Leave out small"
        )
    if weights == "imagenet" and arch not in (None, recipes.FIRST_LOOK):
        raise PathoError(
            "bad_parameter",
            "weights",
            f"are 'imagenet', but a first look begins with random ones unless it is of {recipes.FIRST_LOOK}",
            "Leave out small, arch or weights",
        )
    if weights == "none" or arch not in (None, recipes.FIRST_LOOK):
        return recipes.for_demo(recipe)
    if train == "head" or starting.at_hand(recipes.FIRST_LOOK):
        return recipes.first_look(recipe)
    if myself().first:
        print(
            f"The weights of {recipes.FIRST_LOOK} are not installed: it begins with random ones. {downloading.INSTALL}."
        )
    return recipes.for_demo(recipe)


def in_whole_cycles(recipe: Recipe) -> Recipe:
    """The recipe with the last cycle of its learning rate ending with its last epoch."""
    if recipe.schedule != "sgdr" or not recipe.t_0:
        return recipe
    return replace(recipe, t_0=schedules.whole_cycles(recipe.epochs, recipe.t_0, recipe.t_mult))


def for_split(recipe: Recipe, split: pd.DataFrame) -> Recipe:
    """The recipe for these validation images: between two classes all epochs and the last of them, where they are few.

    Few patients pick a lucky epoch, not a good one, and then fit temperature and threshold to its luck. On real patches
    and the schedule of BreakHis, the epoch that 3 validation patients picked had AUC 0.913 and log loss 0.520 on the
    others, the last one 0.955 and 0.298; 10 patients, 0.940 and 0.461 against 0.955 and 0.326, means of two trainings
    from random weights (`python benchmarks/epochs.py --seeds 2`). Of more classes the
    score is a mean over all, and what was measured on skin speaks for the best epoch. As published the recipe stays as
    it is. split: path, label, group, split of every image. A change is announced.
    """
    val = split[split["split"] == "val"]
    groups = val.groupby("label")["group"].nunique().reindex(recipe.classes, fill_value=0)
    few = len(recipe.classes) == 2 and groups.min() < FEWEST_GROUPS
    if not few or recipe.keep == "last" or recipe.published or recipe.train == "head":
        return recipe
    if myself().first:
        print(
            f"The last epoch is kept: {groups.min()} validation groups of {groups.idxmin()}, fewer than "
            f"{FEWEST_GROUPS}, are too few to pick the best one or to stop early."
        )
    return replace(recipe, keep="last", patience=0)


def profile(recipe: Recipe) -> str:
    """The note on a recipe for random weights or few images: why, and what differs; "" for the recipe as it ships."""
    if recipe.weights == "none":
        why = (
            "Profile for random weights: no pretrained weights are loaded, so this is not the recipe as it ships, and "
            f"its numbers are not those of the recipe. {recipes.WHY_UNFROZEN}."
        )
        if recipe.name in recipes.RECIPES and recipe.colour:
            why += f" {recipes.WHY_SCRATCH}."
    elif recipe.augmentation == recipes.OF_FEW and not recipe.published:
        why = f"Profile for few images: {recipes.WHY_FEW}."
    else:
        return ""
    if recipe.name not in recipes.RECIPES:
        return why
    base = recipes.as_published(recipe.name) if recipe.published else recipes.get(recipe.name)
    changed = [field for field in recipes.diff(base, recipe) if field not in OF_DATA]
    name = f"{recipe.name} as published" if recipe.published else recipe.name
    return f"{why} Changed against the recipe {name}: {', '.join(changed)}."


def differences(a: Recipe, b: Recipe, names: tuple[str, str] = ("the recipe", "here")) -> pd.DataFrame:
    """The fields in which two recipes differ, one row each; names: what to call the two."""
    rows = recipes.diff(a, b)
    return pd.DataFrame(
        [(field, readable(x), readable(y)) for field, (x, y) in rows.items()], columns=["field", *names]
    )


def readable(value) -> str:
    if isinstance(value, tuple) and value and isinstance(value[0], recipes.Stage):
        return "; ".join(f"from {s.start:g}: {s.frozen} frozen, x{s.lr_scale:g}" for s in value)
    return str(value)
