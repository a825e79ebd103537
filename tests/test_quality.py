"""Every contender learns from the same images; what is there is compared on what both saw, and what lacks is named."""

from __future__ import annotations

import argparse
import ast
import importlib.util
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from patholib import files, recipes
from patholib.errors import PathoError
from patholib.recipes import Stage

ROOT = Path(__file__).parents[1]
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
    return {path.stem: module(path) for path in sorted(SCRIPTS, key=lambda path: path.stem != "job")
            if not path.stem.startswith("with_")}


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
    return argparse.Namespace(what="contenders", data=tmp_path, datasets=("idc",), contenders=None, folds=None, seeds=1,
                              seconds=5.0, threads=1, size=32, work=tmp_path / "work", resamples=50,
                              results=tmp_path / "RESULTS.md", write=False)


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
        files.write_table(out / "curve.csv", pd.DataFrame([{"epoch": 1, "seconds": 5, "val_auc": 0.7,
                                                            "val_balanced_accuracy": 0.6}]))
        files.write_json(out / "facts.json", {"epochs": 1, "best_epoch": 1, "seconds": 5.0, "planned": 5.0,
                                              "prior": [0.5, 0.5], "versions": {}})
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(quality.subprocess, "run", run)
    monkeypatch.setattr(quality.harness, "rivals_python", lambda: Path("python"))
    monkeypatch.setattr(quality.runs, "code", lambda: {"version": "1", "commit": "abc"})
    return done


def test_in_miniature_it_trains_and_judges_and_writes_nothing():
    def state():
        return [(path, path.read_bytes()) for path in sorted((ROOT / "benchmarks").glob("*.[mp][dn]*"))]

    before = state()
    command = [sys.executable, ROOT / "benchmarks" / "quality.py", "--quick"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    for row in ("| ours |", "| ours with averaged views |", "| colour regression |"):
        assert len(re.findall(re.escape(row), done.stdout)) >= 2, done.stdout
    assert "Demo images: nothing here is a result" in done.stdout and state() == before


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_asks_a_job_only_for_what_it_holds(script, scripts):
    tree = ast.parse(script.read_text(encoding="utf-8"))
    asked = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)
             and isinstance(node.value, ast.Name) and node.value.id == "job"}
    known = set(scripts["job"].Job.__dataclass_fields__) | {"table", "part", "shares"}
    assert asked <= known
    assert script.stem == "job" or "jobs.run(main)" in script.read_text(encoding="utf-8")


def test_every_contender_has_its_script(quality):
    assert {one.script for one in quality.CONTENDERS.values()} == {path.name for path in SCRIPTS} - {"job.py"}


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
    assert "Missing: 18 of 24 trainings" in text and "fastai, fold 1, 2, 3;" in text and "ours, fold" not in text
    assert "| timm | 3 |" in text and "failed with exit code 1" in capsys.readouterr().out
    assert str(options.data) not in text


@pytest.mark.parametrize(("ours", "rival", "verdict"), [(0.9, 0.1, "met"), (0.1, 0.9, "**missed**")])
def test_ours_may_not_be_below_a_rival(quality, options, trainings, ours, rival, verdict):
    options.contenders, trainings.skill = ("ours", "timm"), {"ours": ours, "timm": rival}
    assert quality.measure(options) == int(ours < rival)
    lines = options.results.read_text(encoding="utf-8").splitlines()
    mark = next(line for line in lines if line.startswith("| ours minus timm: AUC"))
    assert mark.endswith(f"| {verdict} |")
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
    assert set(every) == set(quality.NUMBERS) and all(one["low"] <= one["high"] for one in every.values())


def test_sensitivity_at_a_specificity_is_that_of_the_best_threshold(quality):
    labels = np.array([1, 1, 1, 1, *[0] * 10], bool)
    scores = np.array([0.9, 0.8, 0.7, 0.2, 0.75, 0.6, 0.5, *[0.1] * 7])
    assert quality.sensitivity_at(labels, scores, 0.9) == 0.75  # at 0.7 one of ten negatives is called
    assert quality.sensitivity_at(labels, scores, 1.0) == 0.5
    assert np.isnan(quality.sensitivity_at(labels[:4], scores[:4]))


@pytest.mark.parametrize("kind", ["isic2019", "breakhis"])
def test_every_ablation_is_a_recipe_with_something_changed(quality, kind):
    reference = replace(recipes.from_scratch(recipes.get(kind)), image_size=64)
    differ = {}
    for name, one in quality.ablations(kind, 64, True, False).items():
        changes = dict(one.overrides)
        augmentation = reference.to_json()["augmentation"] | changes.pop("augmentation", {})
        changed = recipes.from_json(json.loads(json.dumps(reference.to_json() | changes
                                                          | {"augmentation": augmentation})))
        differ[name] = recipes.diff(reference, changed) or one.of or one.split != "group"
    same = {name for name, found in differ.items() if not found}
    assert len(same) == 3, same  # its own loss, its own corrector, its own way to squares: left out when it is planned


def test_an_ablation_takes_one_fold_and_the_leaky_split_all(quality, options, trainings):
    options.what = "ablations"
    options.contenders = ("ours", "imbalance: sampler", "split by image: patients leak")
    assert quality.measure(options) == 0
    assert sorted(trainings) == ["imbalance--sampler group_1", *(f"ours group_{k}" for k in (1, 2, 3)),
                                 *(f"split-by-image--patients-leak image_{k}" for k in (1, 2, 3))]
    text = options.results.read_text(encoding="utf-8")
    assert "quality ablations: begin" in text and "| split by image: patients leak |" in text


def test_a_part_of_the_leaky_folds_is_not_compared_because_it_tests_other_images(quality, options, trainings):
    options.what, options.contenders = "ablations", ("ours", "split by image: patients leak")
    quality.measure(options)
    ready = quality.prepared("idc", quality.DATASETS["idc"], options)
    ours, leaky = (quality.outcomes(ready, options)[name] for name in options.contenders)
    assert quality.common(leaky, ours) == [(1, 0), (2, 1), (3, 2)]
    del leaky[3, 2]
    assert quality.common(leaky, ours) == []


def test_stages_that_cost_more_leave_fewer_epochs(scripts):
    recipe = replace(recipes.from_scratch(recipes.ISIC2019), epochs=1)
    assert scripts["ours"].affordable(recipe, {0: 10.0}, 95) == 9
    assert scripts["ours"].affordable(recipe, {0: 10.0}, 3) == 1
    half = replace(recipe, stages=(Stage(0, 7, 1.0), Stage(0.5, 0, 1.0)))
    assert scripts["ours"].affordable(half, {7: 5.0, 0: 10.0}, 75) == 10


def test_colour_statistics_do_not_know_shapes(scripts):
    picture = np.random.default_rng(0).integers(0, 256, (128, 128, 3), dtype=np.uint8)
    turned, statistics = np.ascontiguousarray(picture[::-1, ::-1]), scripts["colour_statistics"].statistics
    assert np.allclose(statistics(picture), statistics(turned))
    assert np.isfinite(statistics(np.zeros((128, 128, 3), np.uint8))).all()
    assert not np.allclose(statistics(picture), statistics(255 - picture))
