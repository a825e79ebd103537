"""A recipe with other values than its own; of a head that is fitted, what that makes of the recipe."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from patholib.base.errors import PathoError
from patholib.model import architectures
from patholib.model.recipes import Augmentation, Recipe, Stage

# What means something where a head is fitted, beside `fitted_head`; all other fields are about learning in steps.
OF_HEAD = (
    *("name", "classes", "positive", "group_by", "fractions", "seed", "image_size", "fit", "arch", "weights"),
    *("monitor", "decide", "tta", "tta_views"),
)


def fitted_head(arch: str) -> dict[str, Any]:
    """The fields of a recipe whose head is fitted: no block learns, no image is varied, no imbalance is corrected."""
    return {
        "train": "head",
        "head_width": 0,
        "stages": (Stage(0, len(architectures.of(arch).blocks), 1.0),),
        "batchnorm": "frozen",
        "colour": 0,
        "augmentation": Augmentation(),
        "ema": 0.0,
        "loss": "cross_entropy",
        "label_smoothing": 0.0,
        "balance": "none",
        "keep": "best",
        "precision": "fp32",
    }


def overridden(recipe: Recipe, frozen: int | None = None, **given) -> Recipe:
    """The recipe with other values of its fields; frozen: one stage with so many frozen blocks instead of its stages.

    Another network freezes the same share of its blocks. A loss other than cross_entropy drops the label smoothing.
    train="head" brings `fitted_head`.
    Errors: bad_recipe; bad_parameter where a value would do nothing, or where random weights would be frozen.
    """
    arch, head = given.get("arch", recipe.arch), given.get("train", recipe.train) == "head"
    if frozen is not None:
        given["stages"] = (Stage(0, frozen, 1.0),)
    elif arch != recipe.arch and architectures.is_known(arch) and not head:  # one that is unknown is refused below
        given.setdefault("stages", _same_share(recipe, arch))
    if given.get("loss", "cross_entropy") != "cross_entropy":
        given.setdefault("label_smoothing", 0.0)
    if head:
        fitted = fitted_head(arch)
        _refuse_idle([name for name, value in given.items() if name not in OF_HEAD and fitted.get(name) != value])
        given |= fitted
    recipe = replace(recipe, **given)
    architectures.check(recipe.arch, recipe.weights, recipe.image_size)
    if head and recipe.published:
        raise PathoError("bad_parameter", "train", "is 'head', which is not in the published descriptions", REMEDY)
    if recipe.weights == "none" and (head or frozen):
        raise PathoError(
            "bad_parameter",
            "weights",
            "are random, and a frozen random network knows nothing",
            f"Give weights='imagenet' or a file of pretrained weights; or {REMEDY[0].lower()}{REMEDY[1:]}, frozen=0",
        )
    return recipe


def _same_share(recipe: Recipe, arch: str) -> tuple[Stage, ...]:
    """The stages of the recipe for another network, with the nearest number of its blocks."""
    here, there = (len(architectures.of(name).blocks) for name in (recipe.arch, arch))
    return tuple(replace(stage, frozen=round(stage.frozen * there / here)) for stage in recipe.stages)


REMEDY = "Use train='fine_tuning'"


def _refuse_idle(names: list[str]) -> None:
    if names:
        raise PathoError(
            "bad_parameter",
            ", ".join("frozen" if name == "stages" else name for name in names),
            "would do nothing: with train='head' no block learns, and the head is fitted in one step",
            f"Leave it out. {REMEDY} to have it",
        )
