"""A run folder that version 0.1.0 wrote still opens: its numbers, its report, its model.

fixtures/run-0.1.0 is the run folder of a training on demo images with the network of tests/tiny.py, at commit 4936014,
without what is large or can be written again (checkpoints, pages, figures).
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch

from patholib.base import files
from patholib.deploy import loading
from patholib.judge import decisions, metrics
from patholib.report import report
from patholib.train import runs

OLD = Path(__file__).parents[1] / "fixtures" / "run-0.1.0"


@pytest.fixture
def folder(tmp_path):
    return shutil.copytree(OLD, tmp_path / "run")


def values(numbers: dict) -> dict:
    """Every metric of version 0.1.0, to nine digits. Its intervals were others: too narrow where groups are few."""
    known = files.read_json(OLD / "metrics.json")["test"]["metrics"]
    return {
        name: None if number["value"] is None else float(f"{number['value']:.9g}")
        for name, number in numbers.items()
        if name in known
    }


def test_it_opens_with_its_recipe_and_says_that_its_images_are_demo_images(folder):
    run = runs.open_run(folder)
    assert run.demo and run.note and run.recipe.arch == "resnet18" and run.recipe.epochs == 3


@pytest.mark.parametrize("name", ["val", "test", "test_tta", "baseline"])
def test_its_predictions_give_the_numbers_that_it_stored(folder, name):
    recipe, stored = runs.open_run(folder).recipe, files.read_json(folder / "metrics.json")
    threshold = stored[name]["threshold"]
    assert name == "baseline" or threshold == decisions.deciding(decisions.locked(folder), recipe.classes)
    found = metrics.summary(decisions.calibrated(folder, name), recipe.classes, recipe.positive, threshold)
    found = json.loads(json.dumps(found))
    differ = {
        key: (value, found.get(key))
        for key, value in stored[name].items()
        if key in ("images", "groups", "classes", "confusion", "threshold") and found[key] != value
    }
    assert differ == {}
    assert values(found["metrics"]) == values(stored[name]["metrics"])


def test_what_the_network_has_over_colour_statistics_is_what_it_stored(folder):
    recipe, stored = runs.open_run(folder).recipe, files.read_json(folder / "metrics.json")
    found = metrics.paired(
        *(decisions.calibrated(folder, name) for name in ("test", "baseline")),
        recipe.classes,
        recipe.positive,
        tuple(stored[name]["threshold"] for name in ("test", "baseline")),
    )
    assert values(found) == values(stored["gain_over"]["baseline"])


def test_its_report_is_written_again(folder):
    page = report.write(folder)
    assert page.exists() and (folder / "report.html").exists()
    assert f"{files.read_json(folder / 'metrics.json')['test']['metrics']['auc']['value']:.3f}" in (
        folder / "report.html"
    ).read_text(encoding="utf-8")


def test_its_export_is_loaded_and_gives_probabilities(folder):
    with tiny.network():
        model, manifest = loading.classifier(folder)
    with torch.no_grad():
        probs = model(torch.rand(2, 3, 32, 32)).softmax(dim=1)
    assert manifest["classes"] == ["benign", "malignant"] and np.allclose(probs.sum(dim=1), 1)
