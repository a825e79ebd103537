"""The benchmarks of training, judging and the GPU run in miniature, and what they time is the same on both sides."""

from __future__ import annotations

import importlib.util
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from tiny import TINY, network

from patholib.model import building, recipes

pytestmark = pytest.mark.heavy

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def benchmark():
    """Loads a file of benchmarks/ as a module."""

    def load(name: str):
        spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
        return module

    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        yield load
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))


@pytest.fixture(scope="module")
def literal(benchmark):
    return benchmark("literal")


@pytest.fixture(scope="module")
def train(benchmark, literal):
    return benchmark("speed_train")


@pytest.fixture
def small_network():
    with network():
        yield


@pytest.mark.parametrize(("name", "published"), [("breakhis", "resnet50"), ("isic2019", "efficientnet_b0")])
def test_the_published_network_has_the_weights_of_the_recipe_and_lets_the_same_learn(literal, name, published):
    recipe = replace(recipes.get(name), weights="none")
    theirs, ours = getattr(literal, published)(), building.build(recipe).net
    assert {k: v.shape for k, v in theirs.state_dict().items()} == {k: v.shape for k, v in ours.state_dict().items()}
    learns = [{k for k, p in net.named_parameters() if p.requires_grad} for net in (theirs, ours)]
    assert learns[0] == learns[1]


def test_a_published_step_of_either_document_lowers_its_loss(literal):
    torch.manual_seed(0)
    labels = torch.tensor([0, 1] * 4)
    views = torch.rand(8, 3, 64, 64) * 0.2 + 0.6 * labels[:, None, None, None]  # dark, bright
    for model, do in ((literal.resnet50(), literal.breakhis_step), (literal.efficientnet_b0(), literal.isic_step)):
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        step = do(model)
        losses = [step(views, labels) for _ in range(8)]
        assert min(losses[4:]) < losses[0], losses


def test_training_is_timed_against_the_published_step(train, monkeypatch):
    monkeypatch.setattr(train, "precisions", lambda: ("fp32",))
    scale = replace(train.QUICK, side=32)
    tables = train.steps(scale)
    tables[train.EPOCH] = tables[train.RESNET]
    memory = dict.fromkeys([train.PUBLISHED, *train.best_cases()], 100.0)
    judged = train.marks(tables, memory)
    assert [mark.bound for mark, _ in judged] == [1.15, 1.8, 2.0, 0.35]
    assert all(f"### {title}" in train.report(tables, memory, ["said"], scale) for title in tables)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux tells the most memory ever held")
def test_the_memory_of_a_step_is_above_that_of_its_gradients(train, capsys):
    train.main(["--quick", "--memory", train.EFFICIENT, f"{train.WHOLE}, fp32"])
    assert float(capsys.readouterr().out) > 5  # MB; 2.4 million weights learn


def test_an_epoch_of_both_sides_has_the_same_steps(train, small_network, monkeypatch):
    monkeypatch.setattr(train, "step", lambda *_: lambda: None)  # nothing to warm up here
    monkeypatch.setattr(train.recipes, "BREAKHIS", TINY)
    table, said = train.epoch(replace(train.QUICK, side=32, images=40, epoch_batch=8))
    assert list(table.index) == [train.PUBLISHED, "patholib"] and (table["median"] > 0).all()
    assert re.search(r"[23] steps of 8 at 32 pixels", said[0])


def test_predictions_heatmaps_and_intervals_are_timed_where_all_sides_agree(
    benchmark, literal, small_network, monkeypatch
):
    judge = benchmark("speed_judge")
    monkeypatch.setattr(judge, "NETWORKS", {"EfficientNet-B0": TINY, "ResNet50": TINY})
    monkeypatch.setattr(judge.onnx_export, "to_onnx", lambda _: None)  # test_inference makes one
    scale = replace(judge.QUICK, side=32, gallery=(3, 3), rows=300, loop=20)
    tables, seconds = judge.measured(scale)
    assert {mark.bound for mark, _ in judge.marks(tables, seconds)} >= {1.9, 1.35, 2.0, 3.5, 30.0}
    assert all(f"### {title}" in judge.report(tables, seconds) for title in tables)


def test_a_wrong_heatmap_is_no_rival(benchmark, literal, monkeypatch):
    judge = benchmark("speed_judge")
    monkeypatch.setattr(literal.GradCAM, "generate", lambda self, image, _: torch.rand(1, 1))
    with pytest.raises(AssertionError):
        judge.gallery(judge.settled(TINY), 3, replace(judge.QUICK, side=32))


@pytest.mark.parametrize("few", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["two modes", "every mode"])
def test_the_gpu_benchmark_runs_in_miniature_on_a_cpu(benchmark, literal, small_network, monkeypatch, capsys, few):
    gpu = benchmark("gpu")
    other = replace(TINY, name="other", augmentation=recipes.ISIC2019.augmentation)
    monkeypatch.setattr(gpu.recipes, "BREAKHIS", TINY)
    monkeypatch.setattr(gpu.recipes, "ISIC2019", other)
    everything = gpu.modes(torch.device("cpu"))
    assert set(everything) == {
        "bf16",
        "fp32",
        "tf32, autotuned",
        "fp16",
        "bf16, autotuned",
        "bf16, autotuned, compiled",
    }
    if few:
        everything = {title: everything[title] for title in ("bf16", "bf16, autotuned, compiled")}
        monkeypatch.setattr(gpu, "modes", lambda _: everything)
    assert gpu.main(["--device", "cpu", "--miniature"]) == 0
    out = capsys.readouterr().out
    assert all(out.count(f"| {title} |") == 2 for title in everything)


def test_a_timing_on_the_gpu_sees_every_image_of_the_epoch_once_from_a_cache_on_disk(benchmark, literal, tmp_path):
    gpu = benchmark("gpu")
    own = gpu.generated(TINY, gpu.MINIATURE, tmp_path)
    assert isinstance(own.pixels, np.memmap) and len(own.part("train")) == gpu.MINIATURE.steps * gpu.MINIATURE.batch
    assert own.table["row"].max() < len(own.pixels)


def test_what_was_measured_of_processes_is_judged_and_told(benchmark):
    speed = benchmark("speed_processes")
    rates = {speed.ONE: [100.0, 110.0, 90.0], speed.BOTH: [90.0, 88.0, 85.5]}
    found = {("breakhis", speed.SMALL): dict.fromkeys(rates, rates[speed.ONE]), ("breakhis", speed.OWN): rates}
    ((mark, reached),) = speed.marks(found)  # small images are told of, and promise nothing
    assert reached == 0.9 and mark.met(reached) and mark.bound == 0.8
    assert "x 0.90 | 0.80 to 0.95" in "\n".join(speed.report(found, speed.QUICK))


@pytest.mark.slow
def test_the_benchmark_of_processes_runs_in_miniature(benchmark):
    assert benchmark("speed_processes").main(["--quick"]) == 0


# --- serving ---


def test_what_was_measured_of_servers_is_judged_and_told(benchmark):
    speed = benchmark("speed_serve")
    names = (speed.PUBLISHED, speed.OURS, speed.ALONE)
    tables = {}
    for callers in speed.CALLERS:
        rates = {name: [rate, rate * 1.1] for name, rate in zip(names, (10.0, 27.0, 30.0), strict=True)}
        tables[callers] = pd.DataFrame(
            {
                "median": [10.5, 28.4, 31.5],
                "low": [10, 27, 30],
                "high": [11, 29.7, 33],
                "ratio": [1, 2.7, 3],
                "ratio_low": [1, 2.7, 3],
                "ratio_high": [1, 2.7, 3],
            },
            index=pd.Index(names, name="case"),
        )
        tables[callers].attrs["rates"] = rates
    found = speed.Found(
        tables,
        {(name, callers): [0.1 * (1 + (name == speed.PUBLISHED))] for name in names[:2] for callers in speed.CALLERS},
        {speed.PUBLISHED: 1.3, speed.OURS: 0.002},
    )
    judged = [(mark, reached(found)) for mark, reached in speed.MARKS]
    assert [round(reached, 6) for _, reached in judged] == [2.7, 0.9, 0.5, 2.0]
    assert all(mark.met(reached) for mark, reached in judged)
    assert "| 100 | 100 |" in "\n".join(speed.report(found))


@pytest.mark.slow
def test_the_serving_benchmark_runs_in_miniature(benchmark):
    assert benchmark("speed_serve").main(["--quick"]) == 0
