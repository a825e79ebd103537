"""Recipes say what the published descriptions say, corrected by default and literal on request."""

import dataclasses
import json
import math
from dataclasses import FrozenInstanceError, replace

import pytest

from patholib.base.errors import PathoError
from patholib.model import fields, recipes
from patholib.model.recipes import BREAKHIS, ISIC2019, Augmentation, Stage


def test_breakhis_is_the_published_setting():
    r = BREAKHIS
    assert (r.arch, r.image_size, r.batch_size, r.epochs) == ("resnet50", 224, 32, 35)
    assert (r.optimizer, r.lr, r.weight_decay, r.clip_norm, r.label_smoothing) == ("adam", 1e-3, 1e-5, 1.0, 0.1)
    assert (r.schedule, r.t_0, r.t_mult, r.eta_min) == ("sgdr", 5, 2, 1e-6)
    assert (r.head_dropout, r.head_width, r.head_order) == ((0.5, 0.3), 512, "batchnorm_relu")
    assert (r.monitor, r.patience, r.min_delta, r.fractions) == ("auc", 8, 0.002, (0.70, 0.15, 0.15))
    a = r.augmentation
    assert (a.affine_degrees, a.rotation, a.shift, a.zoom, a.shear) == (15, 20, 0.1, (0.85, 1.15), 5)
    assert (a.flip_horizontal, a.flip_vertical, a.perspective, a.perspective_p) == (0.5, 0.5, 0.2, 0.3)
    assert (a.brightness, a.contrast, a.saturation, a.hue, a.noise) == (0.2, 0.2, 0.15, 0.05, 0)
    assert (r.tta_views, r.positive, r.group_by) == (5, "malignant", "case")


def test_isic_is_the_published_setting_without_its_class_weights():
    r = ISIC2019
    assert (r.arch, r.image_size, r.epochs, r.optimizer, r.lr, r.weight_decay) == (
        "efficientnet_b0",
        224,
        100,
        "adamw",
        5e-5,
        1e-5,
    )
    assert (r.head_width, r.head_order, r.head_dropout) == (256, "relu_batchnorm", (0.5, 0.5))
    assert (r.loss, r.focal_gamma, r.balance, r.monitor) == ("focal", 2.0, "none", "balanced_accuracy")
    assert (r.schedule, r.plateau_factor, r.plateau_patience, r.eta_min) == ("plateau", 0.5, 5, 1e-6)
    stages = [(s.first_epoch(r.epochs), s.frozen, s.lr_scale) for s in r.stages]
    assert stages == [(0, 7, 1.0), (20, 5, 0.5), (40, 3, 0.2), (60, 1, 0.1), (80, 0, 0.05)]
    a = r.augmentation
    assert (a.flip_horizontal, a.rotation, a.crop_scale, a.hue, a.noise) == (0.3, 3, (0.92, 1.0), 0.05, 0.02)


def test_stages_scale_with_a_shorter_run_and_whole_epochs_do_not():
    short = replace(ISIC2019, epochs=10)
    assert [short.stage_at(e).frozen for e in range(10)] == [7, 7, 5, 5, 3, 3, 1, 1, 0, 0]
    literal = replace(recipes.as_published("isic2019"), epochs=10)
    assert {literal.stage_at(e).frozen for e in range(10)} == {7}


def test_the_literal_form_differs_only_where_the_source_is_mistaken():
    breakhis = recipes.diff(BREAKHIS, recipes.as_published("breakhis"))
    assert breakhis["balance"] == ("none", "sampler_and_weights")
    assert breakhis["stop"] == ("cycle_end", "any_epoch")
    assert breakhis["augmentation.warps"] == ("one", "each")
    assert {"group_by", "fit", "tta"} < set(breakhis)
    assert not {"epochs", "lr", "arch", "label_smoothing", "augmentation.rotation"} & set(breakhis)
    isic = recipes.diff(ISIC2019, recipes.as_published("isic2019"))
    assert isic["loss"] == ("focal", "focal_weighted_pt")
    assert isic["batchnorm"] == ("frozen", "drift") and isic["balance"] == ("none", "weights")
    assert isic["monitor"] == ("balanced_accuracy", "accuracy")
    assert isic["augmentation.noise_unit"] == ("grey", "normalised")


@pytest.mark.parametrize(
    "recipe",
    [
        BREAKHIS,
        ISIC2019,
        recipes.as_published("breakhis"),
        recipes.as_published("isic2019"),
        recipes.for_demo(ISIC2019),
    ],
)
def test_json_gives_back_an_equal_recipe(recipe):
    assert recipes.from_json(json.loads(json.dumps(recipe.to_json()))) == recipe


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("positive", "malign"),
        ("balance", "sampler_and_weights"),
        ("loss", "focal_weighted_pt"),
        ("label_smoothing", 1.0),
        ("clip_norm", 0.0),
        ("clip_norm", float("inf")),
        ("stages", ()),
        ("classes", ("a",)),
        ("classes", ("a", "a")),
        ("classes", ("a", "b\x1b")),
        ("classes", ("a", "")),
        ("head_dropout", (1.0, 0.1)),
        ("head_dropout", 0.5),
        ("plateau_factor", 1.0),
        ("name", "../there"),
        ("eta_min", 0.5),
        ("stages", (Stage(0, 18, 1.0),)),
        ("stages", (Stage(3, 0, 1.0),)),
        ("stages", (Stage(0, 5, 1.0), Stage(0, 3, 1.0))),
    ],
)
def test_a_wrong_value_is_refused_by_name(field, value):
    with pytest.raises(PathoError, match=field.replace("_", ".")):
        replace(BREAKHIS, **{field: value})


def test_all_contradictions_are_named_at_once():
    with pytest.raises(PathoError) as stopped:
        replace(BREAKHIS, epochs=0, balance="sampler_and_weights", fractions=(0.5, 0.5, 0.5))
    for name in ("epochs", "balance", "fractions"):
        assert name in stopped.value.reason


@pytest.mark.parametrize(
    "values",
    [
        {"hue": 0.6},
        {"flip_vertical": 1.2},
        {"zoom": (1.1, 0.9)},
        {"border": "mirror"},
        {"crop_scale": (0.9, 1.1)},
        {"crop_scale": (0.0, 1.0)},
        {"noise": -0.1},
        {"rotaton": 3},
        {"zoom": 1.2},
        {"shear": 90},
        {"brightness": float("nan")},
    ],
)
def test_a_wrong_augmentation_is_refused(values):
    with pytest.raises(PathoError):
        Augmentation(**values)


def test_a_recipe_cannot_be_changed_in_place():
    with pytest.raises(FrozenInstanceError):
        BREAKHIS.epochs = 3


def test_from_scratch_freezes_nothing():
    for recipe in recipes.RECIPES.values():
        scratch = recipes.from_scratch(recipe)
        assert scratch.weights == "none" and [s.frozen for s in scratch.stages] == [0] and scratch.lr >= 1e-3


def test_from_scratch_leaves_a_published_recipe_and_demo_images_alone():
    for name, recipe in recipes.RECIPES.items():
        literal = recipes.as_published(name)
        assert recipes.from_scratch(literal) == recipes.unfrozen(literal)
        for other in (recipe, literal, recipes.for_demo(recipe)):  # their bits are those of before
            assert (other.colour, other.ema, other.warm_up, other.adjustment) == (0, 0.0, 0, 1.0)


def test_what_random_weights_want_is_named_by_recipe():
    assert recipes.SCRATCH.keys() <= recipes.RECIPES.keys()
    for name, recipe in recipes.RECIPES.items():
        changed = recipes.diff(recipes.unfrozen(recipe), recipes.from_scratch(recipe))
        assert {field.partition(".")[0] for field in changed} <= recipes.SCRATCH.get(name, {}).keys()


def test_every_number_of_a_recipe_has_a_range_that_the_shipped_recipes_keep():
    for cls in (recipes.Recipe, Augmentation, Stage):
        numbers = {f.name for f in dataclasses.fields(cls) if f.type in ("int", "float", "float | None")}
        assert numbers <= set(fields.RANGES), cls
    for interval, inside, outside in (
        ("(0, 1]", (1e-9, 1), (0, 1.1)),
        ("[0, 1)", (0, 0.9), (-1e-9, 1)),
        ("(0, inf)", (10**400,), (math.inf, math.nan)),
    ):
        assert all(fields._inside(value, interval) for value in inside)
        assert not any(fields._inside(value, interval) for value in outside)


@pytest.mark.parametrize("start", [-1, 1.5, float("nan"), "0", None])
def test_a_stage_starts_at_an_epoch_or_a_share_of_the_run(start):
    with pytest.raises(PathoError, match="start"):
        Stage(start, 0, 1.0)


def test_a_recipe_that_lacks_fields_names_them():
    with pytest.raises(PathoError, match=r"classes is missing; positive is missing"):
        recipes.Recipe(name="mine")
