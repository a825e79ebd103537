"""The recipe for the data: the named one, cut down where that is asked for, and announced where it is another."""

import re
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from tiny import pictures

from patholib.base import files
from patholib.base.errors import PathoError
from patholib.data import demo, readers
from patholib.data.readers import table
from patholib.model import profiles, recipes, schedules
from patholib.model.overriding import overridden
from patholib.model.recipes import BREAKHIS, ISIC2019, Stage


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    data = pictures(tmp_path_factory.mktemp("set") / "pictures")
    small = demo.write(tmp_path_factory.mktemp("demo"), size=(64, 64), groups=8, images_per_group=1)
    return {"real": table.read(data / "mine.csv"), "demo": readers.read(small)}


@pytest.fixture
def many(monkeypatch):
    """Any number of images is enough for a recipe as it ships."""
    monkeypatch.setattr(recipes, "FEW_IMAGES", 0)


def test_real_data_get_the_recipe_with_their_own_classes_and_groups(sources, many):
    recipe = profiles.recipe_for("isic2019", sources["real"])
    assert recipe == replace(
        recipes.ISIC2019, classes=("benign", "malignant"), positive=sources["real"].positive, group_by="group"
    )


def test_demo_images_get_it_cut_down_unless_weights_are_named(sources):
    assert profiles.recipe_for("breakhis", sources["demo"]) == recipes.first_look(BREAKHIS)
    random = profiles.recipe_for("breakhis", sources["demo"], weights="none")
    assert random == recipes.for_demo(BREAKHIS)
    whole = profiles.recipe_for("breakhis", sources["demo"], weights="imagenet")
    assert whole == BREAKHIS


def test_a_first_look_without_the_installed_weights_begins_with_random_ones_and_says_so(sources, capsys, monkeypatch):
    monkeypatch.setattr(profiles.starting, "at_hand", lambda arch: False)
    assert profiles.recipe_for("breakhis", sources["demo"]) == recipes.for_demo(BREAKHIS)
    assert "weights of efficientnet_lite0 are not installed" in capsys.readouterr().out
    assert profiles.recipe_for("breakhis", sources["demo"], train="head").weights == "imagenet"  # refused when built
    with pytest.raises(PathoError, match="a first look does not use"):
        profiles.recipe_for("breakhis", sources["real"], small=True, weights="my.pth")


def test_a_first_look_of_another_network_does_not_take_random_weights_for_those_of_imagenet(sources):
    for source in sources.values():
        with pytest.raises(PathoError, match="begins with random ones") as error:
            profiles.recipe_for("breakhis", source, small=True, weights="imagenet", arch="resnet18")
        assert error.value.code == "bad_parameter" and "Leave out" in error.value.remedy
        first = profiles.recipe_for("breakhis", source, small=True, weights="imagenet", arch=recipes.FIRST_LOOK)
        assert first.weights == "imagenet"
    assert profiles.recipe_for("breakhis", sources["demo"], weights="imagenet", arch="resnet18").weights == "imagenet"


def test_the_strength_of_augmentation_is_a_field_that_a_fitted_head_refuses(sources, many):
    recipe = profiles.recipe_for("breakhis", sources["real"], augmentation_strength=0.5)
    assert recipes.diff(BREAKHIS, recipe)["augmentation_strength"] == (1.0, 0.5)
    with pytest.raises(PathoError, match="augmentation_strength"):
        profiles.recipe_for("breakhis", sources["real"], augmentation_strength=0.5, train="head")
    with pytest.raises(PathoError, match=r"augmentation_strength=2.5 is outside \[0, 2\]"):
        replace(BREAKHIS, augmentation_strength=2.5)


@pytest.mark.parametrize("arch, frozen", [("resnet50", 9), ("efficientnet_b0", 5), ("efficientnet_lite0", 5)])
@pytest.mark.parametrize("name", ["breakhis", "isic2019"])
def test_few_real_images_get_a_recipe_for_few_whatever_the_network(sources, capsys, name, arch, frozen):
    recipe = profiles.recipe_for(name, sources["real"], arch=arch)
    assert recipe == overridden(recipes.for_few_images(recipes.get(name)), arch=arch, **of_data(recipe))
    assert [stage.frozen for stage in recipe.stages] == [frozen]
    assert capsys.readouterr().out == profiles.profile(recipe) + "\n"
    assert "Profile for few images" in profiles.profile(recipe) and profiles.profile(recipes.get(name)) == ""
    assert profiles.recipe_for(name, sources["real"], lr=0.5, epochs=2, frozen=1) == replace(
        profiles.recipe_for(name, sources["real"]), lr=0.5, epochs=2, stages=(Stage(0, 1, 1.0),)
    )
    capsys.readouterr()
    for given in ({"train": "head"}, {"published": True}):
        assert profiles.profile(profiles.recipe_for(name, sources["real"], **given)) == capsys.readouterr().out == ""


def of_data(recipe):
    """The fields that the images decide."""
    return {name: getattr(recipe, name) for name in profiles.OF_DATA}


def test_another_network_freezes_the_same_share_of_its_blocks(sources, many):
    for arch, frozen in (("efficientnet_lite0", 7), ("resnet50", 13), ("resnet18", 7)):  # of 9, 17 and 9 blocks
        assert [s.frozen for s in profiles.recipe_for("breakhis", sources["real"], arch=arch).stages] == [frozen]
    isic = profiles.recipe_for("isic2019", sources["real"], arch="resnet50")
    assert [stage.frozen for stage in isic.stages] == [13, 9, 6, 2, 0]


def test_without_weights_nothing_is_frozen(sources, many):
    recipe = profiles.recipe_for("breakhis", sources["real"], weights="none")
    assert [stage.frozen for stage in recipe.stages] == [0] and recipe.weights == "none" and recipe.image_size == 224
    assert profiles.recipe_for("breakhis", sources["real"], weights="my.pth").stages == BREAKHIS.stages


@pytest.mark.parametrize("published", [False, True])
@pytest.mark.parametrize("name", ["breakhis", "isic2019"])
def test_random_weights_are_announced_with_every_field_that_differs(sources, capsys, name, published):
    recipe = profiles.recipe_for(name, sources["real"], published, weights="none", image_size=64)
    said = capsys.readouterr().out
    base = recipes.as_published(name) if published else recipes.get(name)
    assert said == profiles.profile(recipe) + "\n"
    fields = said.rpartition(": ")[2].strip(".\n").split(", ")
    assert fields == [field for field in recipes.diff(base, recipe) if field not in ("classes", "positive", "group_by")]
    assert {"weights", "stages", "image_size"} <= set(fields)


def test_random_weights_are_never_used_in_silence(sources, capsys, monkeypatch):
    for given in ({"small": True, "arch": "resnet18"}, {"weights": "none"}):
        profiles.recipe_for("breakhis", sources["real"], **given)
        assert "Profile for random weights" in capsys.readouterr().out
    profiles.recipe_for("breakhis", sources["demo"], weights="none")
    assert "Profile for random weights" in capsys.readouterr().out
    monkeypatch.setattr(recipes, "FEW_IMAGES", 0)
    for source, given in (("real", {}), ("real", {"weights": "my.pth"}), ("demo", {})):  # demo images have a banner
        profiles.recipe_for("breakhis", sources[source], **given)
        assert capsys.readouterr().out == ""
    monkeypatch.setenv("RANK", "1")  # of several processes the first has said it
    profiles.recipe_for("breakhis", sources["real"], weights="none")
    assert capsys.readouterr().out == ""


def test_nothing_in_the_library_makes_a_recipe_for_random_weights_but_what_announces_it():
    quiet = re.compile(r"recipes\.(unfrozen|from_scratch|for_demo)\(")
    modules = sorted((Path(__file__).parents[2] / "patholib").rglob("*.py"))
    modules = [path for path in modules if path.parent.name != "report"]  # which compares with them, and trains nothing
    assert [path.name for path in modules if quiet.search(path.read_text(encoding="utf-8"))] == ["profiles.py"]


@pytest.mark.parametrize("name", ["breakhis", "isic2019"])
def test_the_published_form_is_the_literal_one_on_these_data(sources, name):
    recipe = profiles.recipe_for(name, sources["real"], published=True)
    assert recipe == replace(
        recipes.as_published(name), classes=("benign", "malignant"), positive=sources["real"].positive
    )
    assert recipe.group_by == "image" and recipe.published


def test_overrides_of_none_leave_the_recipe_and_others_change_it(sources):
    plain = profiles.recipe_for("breakhis", sources["demo"])
    assert profiles.recipe_for("breakhis", sources["demo"], epochs=None, lr=None, seed=None) == plain
    assert profiles.recipe_for("breakhis", sources["demo"], epochs=3, seed=0) == replace(plain, epochs=3)
    with pytest.raises(PathoError, match="did you mean 'epochs'"):
        profiles.recipe_for("breakhis", sources["demo"], epoch=3)


def test_differences_are_shown_field_by_field(sources):
    shown = profiles.differences(BREAKHIS, profiles.recipe_for("breakhis", sources["demo"], lr=5e-4)).set_index("field")
    assert tuple(shown.loc["lr"]) == ("0.001", "0.0005")
    assert tuple(shown.loc["stages"]) == ("from 0: 13 frozen, x1", "from 0: 8 frozen, x1")
    assert profiles.differences(BREAKHIS, BREAKHIS).empty


def test_real_images_are_cut_down_only_where_that_is_asked(sources):
    real = sources["real"]
    demo_images = replace(real, demo=True)
    assert profiles.recipe_for("breakhis", real, small=True) == profiles.recipe_for("breakhis", demo_images)
    assert profiles.recipe_for("breakhis", real, small=True, arch="resnet18").arch == "resnet18"
    assert profiles.recipe_for("breakhis", real, weights="none").image_size == 224


def test_another_number_of_epochs_keeps_its_cycles_whole_but_not_as_published(sources, many):
    def made(**given):
        return profiles.recipe_for("breakhis", sources["real"], **given)

    assert recipes.diff(made(), made(epochs=20)).keys() == {"epochs", "t_0"}
    assert schedules.cut_off(made(epochs=20)) == schedules.cut_off(made(epochs=50)) == ""
    assert made(epochs=35).t_0 == made(epochs=20, published=True).t_0 == made(epochs=20, t_0=5).t_0 == 5
    assert files.digest(made(epochs=35).to_json()) == files.digest(made().to_json())  # and 5 stays a whole number
    assert schedules.cut_off(made(epochs=20, published=True))


def validation(benign, malignant, images=3):
    """The validation part of a split with so many groups of each class."""
    rows = [("benign", f"b{k}") for k in range(benign)] + [("malignant", f"m{k}") for k in range(malignant)]
    table = pd.DataFrame(rows * images, columns=["label", "group"]).assign(split="val")
    return pd.concat([table, table.assign(split="train", group=table["group"] + "t")])


def test_few_validation_groups_of_the_rarer_class_pick_no_epoch(capsys):
    changed = profiles.for_split(BREAKHIS, validation(9, 40))
    assert recipes.diff(BREAKHIS, changed) == {"keep": ("best", "last"), "patience": (8, 0)}
    said = capsys.readouterr().out
    assert said.count("\n") == 1 and "9 validation groups of benign" in said
    assert profiles.for_split(BREAKHIS, validation(0, 40)).keep == "last"
    capsys.readouterr()
    for same, split in (
        (BREAKHIS, validation(10, 40)),
        (recipes.as_published("breakhis"), validation(2, 8)),
        (recipes.from_scratch(BREAKHIS), validation(2, 8)),  # has the last already
        (ISIC2019, validation(2, 8)),  # a mean over eight classes
    ):
        assert profiles.for_split(same, split) == same
    assert not capsys.readouterr().out
