"""The folds as one model answer with the mean of their probabilities, and say how far they are apart."""

from __future__ import annotations

import importlib
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from tiny import TINY, image_set

from patholib.base import files
from patholib.base.errors import PathoError
from patholib.deploy import export, exportformat, inference, loading, onnx_export, predictions
from patholib.judge import calibration, gradcam, predicting
from patholib.model import building, ensembles

RECIPE = replace(TINY, tta_views=4)
DECISION = {"temperature": 1.7, "bias": {"benign": 0.2, "malignant": -0.2}, "threshold": 0.4, "positive": "malignant"}
PICTURES = image_set(train=0, val=3).pictures
onnx = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("onnxruntime", "onnxscript")),
    reason="the extra onnx is not installed",
)
pytestmark = [pytest.mark.heavy, pytest.mark.usefixtures("small_network")]


@pytest.fixture(scope="module")
def models():
    """Three networks that disagree: their heads are drawn with a spread of 3."""
    found = [building.build(replace(RECIPE, seed=seed)).eval() for seed in range(3)]
    for seed, model in enumerate(found):
        model.head[-1].weight.data.normal_(0, 3, generator=torch.Generator().manual_seed(seed))
    return found


@pytest.fixture(scope="module")
def exported(models, tmp_path_factory):
    """The folder of the three as one model."""
    folder = tmp_path_factory.mktemp("folds")
    export.save_model(folder, [model.state_dict() for model in models], RECIPE, run="folds", decision=DECISION)
    return folder


def averaged(models, tta=False) -> np.ndarray:
    """The probabilities (N, members, C) of every member alone."""
    own = image_set(train=0, val=3)
    tables = [predicting.predict(model, own, RECIPE, tta=tta, progress=False) for model in models]
    return np.stack([predicting.probs_of(table, RECIPE.classes) for table in tables], axis=1)


def test_the_logits_are_those_of_the_mean_probability_and_of_equal_members_their_own():
    odds = torch.tensor([[[0.8, 0.2], [0.4, 0.6]]]).log()
    assert torch.allclose(ensembles.together(odds).softmax(1), torch.tensor([[0.6, 0.4]]))
    shifted = odds + torch.tensor([5.0, -3.0]).view(1, 2, 1)  # another constant in each member changes nothing
    assert torch.allclose(ensembles.together(shifted).softmax(1), torch.tensor([[0.6, 0.4]]))
    own = torch.tensor([[1.0, -2.0, 40.0]], requires_grad=True)
    both = ensembles.together(torch.stack([own, own], dim=1))
    assert torch.allclose(both, own)
    (gradient,) = torch.autograd.grad(both[0, 2], own)  # a member is sure, and its evidence does not vanish
    assert torch.allclose(gradient, torch.tensor([[0.0, 0.0, 1.0]]), atol=1e-6)


@pytest.mark.parametrize("tta", [False, True])
def test_the_export_gives_the_mean_of_its_members_then_calibrated(models, exported, tta):
    predictor, each = inference.Predictor(exported, "torch"), averaged(models, tta)
    how = calibration.Calibration.of(DECISION, RECIPE.classes)
    expected = calibration.apply(each.mean(axis=1), how)
    assert predictor.members == 3 and np.abs(predictor.probabilities(PICTURES, tta) - expected).max() < 1e-12
    apart = np.stack([calibration.apply(each[:, k], how) for k in range(3)]).std(axis=0)
    for answer, p, spread in zip(predictor.answers(PICTURES, tta), expected, apart, strict=True):
        assert answer.decision == ("malignant" if p[1] >= 0.4 else "benign")
        assert answer.spread == pytest.approx(spread[RECIPE.classes.index(answer.decision)], abs=1e-12)
        assert 0.01 < answer.spread <= 0.5 and answer.to_json()["spread"] == answer.spread
    network, _ = loading.classifier(exported)
    table = predicting.predict(network, image_set(train=0, val=3), RECIPE, tta=tta, progress=False)
    raw = predicting.probs_of(table, RECIPE.classes)
    assert np.abs(raw - each.mean(axis=1)).max() < 1e-6  # as logits of one network, in float32


def test_the_spread_of_two_certain_members_that_contradict_each_other_is_a_half(models, exported):
    predictor = inference.Predictor(exported, "torch")
    predictor.members = 2
    predictor._logits = lambda views: np.float32([[[60, 0], [0, 60]]] * len(views))
    assert predictor.answer(PICTURES[0]).spread == pytest.approx(0.5)


@onnx
def test_one_onnx_file_holds_the_members_and_averages_them(models, exported):
    import onnxruntime

    from patholib.model import augment

    graph = onnx_export.to_onnx(exported)
    session = onnxruntime.InferenceSession(graph.read_bytes(), providers=["CPUExecutionProvider"])
    views = augment.plain_views(PICTURES, RECIPE.image_size).contiguous()
    logits, each = session.run(["logits", "members"], {onnx_export.ONNX_INPUT: views.numpy()})
    expected = averaged(models)
    assert each.shape == (3, 3, 2) and logits.shape == (3, 2)
    assert np.abs(torch.from_numpy(logits).softmax(1).numpy() - expected.mean(axis=1)).max() < 1e-4
    assert np.abs(torch.from_numpy(each).softmax(2).numpy() - expected).max() < 1e-4
    theirs, ours = (inference.Predictor(exported, engine).answers(PICTURES) for engine in ("onnx", "torch"))
    for one, other in zip(theirs, ours, strict=True):
        assert one.decision == other.decision and abs(one.spread - other.spread) < 1e-4
        assert abs(one.probs["malignant"] - other.probs["malignant"]) < 1e-4


def test_the_heatmap_of_equal_members_is_that_of_one_and_of_others_adds_up_their_evidence(models, exported):
    views = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    for method in gradcam.METHODS:
        alone = gradcam.heat(models[0], views, [0, 1], "layer1[1]", method)
        twins = gradcam.heat(ensembles.Ensemble([models[0], models[0]]).eval(), views, [0, 1], "layer1[1]", method)
        # Of equal members each map has half the gradient, which Grad-CAM++ weights otherwise.
        if method != "gradcam++":
            assert torch.allclose(alone.maps, twins.maps, rtol=1e-3, atol=1e-6)
        assert torch.allclose(alone.probs, twins.probs, atol=1e-6)
    predictor = inference.Predictor(exported)
    seen, heat = predictor.heatmap(PICTURES[0], "malignant")
    assert seen.shape == (32, 32, 3) and heat.shape == (32, 32) and 0 <= heat.min() and heat.max() <= 1
    both = ensembles.Ensemble(models[1:]).eval()
    assert torch.allclose(both.classify(both.features(views)), both(views), atol=1e-5)


def test_table_and_server_hold_the_spread(exported, tmp_path):
    pytest.importorskip("fastapi")
    from patholib.deploy.server import webservice
    from patholib.deploy.server.sandbox import Picture

    for number, picture in enumerate(PICTURES):
        Image.fromarray(picture).save(tmp_path / f"{number}.png")
    predictor = inference.Predictor(exported, "torch")
    predictions.write(predictor, [str(tmp_path)], tmp_path / "answers.csv", progress=False)
    table = pd.read_csv(tmp_path / "answers.csv")
    assert list(table.columns)[-2:] == ["model", "spread"]
    assert table["spread"].tolist() == [predictor(tmp_path / f"{number}.png").spread for number in range(3)]
    service = webservice.Service(predictor, webservice.Settings())
    reply = service._answer(Picture(PICTURES[0], (37, 37), ()), False, False)
    assert reply["spread"] == predictor.answer(PICTURES[0]).spread


def test_the_explorer_says_how_far_the_members_are_apart(exported):
    from patholib.lab import explorer, explorer_state

    state = explorer_state.State(exported, image_set(train=0, val=3).part("val"), split="val")
    assert state.spread == pytest.approx(inference.Predictor(exported).answer(PICTURES[0]).spread, abs=1e-4)
    assert f"spread over the 3 networks: {state.spread:.2f}" in explorer.probability_bars(state)
    state.predictor.answer = None
    assert state.spread > 0  # it is not computed again


def test_an_export_of_other_members_than_it_says_is_refused(models, tmp_path):
    state = {f"{k}.{name}": value for k in (0, 2) for name, value in models[k].net.state_dict().items()}
    for wrong in ({"members": 2}, {"members": 3}, {"members": 10**12}):
        with pytest.raises(PathoError) as error:
            loading.check_weights(state, exportformat.of_recipe(RECIPE) | wrong, tmp_path)
        assert error.value.code == "wrong_weights"
    export.save_model(tmp_path, [models[0].state_dict()] * 2, RECIPE)
    manifest = files.read_json(tmp_path / "model.json")
    for wrong in (1, True, "2", -5):
        changed = {key: value for key, value in manifest.items() if key != "manifest_sha256"} | {"members": wrong}
        with pytest.raises(PathoError) as error:
            exportformat.check_manifest(changed | {"manifest_sha256": files.digest(changed)}, tmp_path)
        assert error.value.code == "bad_manifest" and "members" in str(error.value)
