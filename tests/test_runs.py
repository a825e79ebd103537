"""The recipe for given data: what the data decide, what is asked for, and nothing else."""

from pathlib import Path

import pandas as pd
import pytest

from patholib import recipes, runs
from patholib.errors import PathoError
from patholib.manifest import Manifest


def source(demo=False, classes=("calm", "inflamed", "other")):
    table = pd.DataFrame({"path": [f"{i}.png" for i in range(3)], "label": list(classes), "group": ["a", "b", "c"]})
    return Manifest(table, Path(), classes, None, "group", ("group",), (), "table", demo, {})


def test_the_data_decide_classes_and_grouping():
    recipe = runs.recipe_for("breakhis", source())
    assert (recipe.classes, recipe.positive, recipe.group_by) == (("calm", "inflamed", "other"), None, "group")
    assert recipe.weights == "imagenet" and recipe.stages == recipes.BREAKHIS.stages
    assert runs.recipe_for("breakhis", source(), published=True).group_by == "image"


def test_real_images_are_cut_down_only_where_that_is_asked():
    demo = runs.recipe_for("breakhis", source(demo=True))
    assert runs.recipe_for("breakhis", source(), small=True) == demo != runs.recipe_for("breakhis", source())
    assert runs.recipe_for("breakhis", source(), small=True, arch="resnet18").arch == "resnet18"
    assert runs.recipe_for("breakhis", source(), weights="none").image_size == 224


def test_an_override_of_none_leaves_the_field():
    assert runs.recipe_for("breakhis", source(), epochs=None, lr=0.01).epochs == recipes.BREAKHIS.epochs
    with pytest.raises(PathoError, match="epochs"):
        runs.recipe_for("breakhis", source(), epoch=3)
