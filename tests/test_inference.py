"""A model at work gives the probabilities of its training, whatever computes them."""

import importlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import TINY, image_set, network

from patholib import augment, evaluation, export, files, inference, models
from patholib.errors import PathoError

onnx = pytest.mark.skipif(any(importlib.util.find_spec(name) is None for name in ("onnxruntime", "onnxscript")),
                          reason="the extra onnx is not installed")


@pytest.fixture(scope="module", autouse=True)
def small_network():
    with network():
        yield


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A model with statistics as after a training, exported, with its ONNX form where that can be made."""
    folder, model = tmp_path_factory.mktemp("exported"), models.build(TINY)
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_(0, 0.1, generator=generator)
            module.running_var.uniform_(0.5, 2.0, generator=generator)
            module.weight.data.uniform_(0.5, 1.5, generator=generator)
    export.save_model(folder, model.state_dict(), TINY, run="tiny")
    if importlib.util.find_spec("onnxruntime") and importlib.util.find_spec("onnxscript"):
        export.to_onnx(folder, augment.plain_views(image_set().pictures[:4], TINY.image_size))
    return folder, model.eval()


@pytest.mark.parametrize("engine", ["torch", pytest.param("onnx", marks=onnx)])
@pytest.mark.parametrize("tta", [False, True])
@pytest.mark.parametrize("count", [1, 7])
def test_every_engine_gives_the_probabilities_of_evaluation(exported, engine, tta, count):
    folder, model = exported
    predictor = inference.Predictor(folder, engine)
    own = image_set(train=0, val=count)
    expected = evaluation.predict(model, own, TINY, tta=tta, progress=False)[[f"p_{c}" for c in TINY.classes]]
    found = predictor.probabilities(own.pictures, tta)
    assert predictor.engine == engine and found.shape == (count, 2) and found.dtype == np.float64
    assert np.abs(found - expected.to_numpy()).max() < 1e-4
    assert np.allclose(found.sum(axis=1), 1, atol=1e-12)


def test_a_file_has_the_pixels_it_had_in_training(exported, tmp_path):
    from patholib import images

    predictor = inference.Predictor(exported[0], "torch")
    rng = np.random.default_rng(1)
    Image.fromarray(rng.integers(0, 256, (60, 90, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    square = predictor.read(tmp_path / "a.png")
    assert (square == images.to_square(images.read(tmp_path / "a.png"), TINY.cache_size, TINY.fit)).all()
    assert (square == predictor.read((tmp_path / "a.png").read_bytes())).all()
    assert predictor.predict([tmp_path / "a.png"]).shape == (1, 2) and predictor.predict([]).shape == (0, 2)


@onnx
def test_the_onnx_file_says_how_near_it_is_and_auto_prefers_it(exported):
    facts = files.read_json(exported[0] / export.ONNX_FACTS)
    assert facts["max_difference"] < export.ALIKE and facts["compared"] == 7
    assert inference.Predictor(exported[0]).engine == "onnx"


@onnx
def test_a_damaged_onnx_file_or_that_of_another_model_is_refused(exported, tmp_path):
    folder = tmp_path / "copy"
    folder.mkdir()
    for path in exported[0].iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    content = bytearray((folder / export.ONNX).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / export.ONNX).write_bytes(content)
    with pytest.raises(PathoError, match="onnx_damaged"):
        inference.Predictor(folder)
    (folder / export.ONNX).write_bytes((exported[0] / export.ONNX).read_bytes())
    export.save_model(folder, models.build(replace(TINY, seed=5)).state_dict(), TINY)
    with pytest.raises(PathoError, match="onnx_damaged"):
        inference.Predictor(folder)


@onnx
def test_an_onnx_file_that_computes_something_else_is_not_kept(exported, tmp_path, monkeypatch):
    folder = tmp_path / "other"
    export.save_model(folder, exported[1].state_dict(), TINY)
    monkeypatch.setattr(models, "folded", lambda model: models.build(replace(TINY, seed=7)).eval())
    with pytest.raises(PathoError, match="onnx_differs"):
        export.to_onnx(folder)
    assert not (folder / export.ONNX).exists()


def test_without_its_engine_onnx_is_refused_and_auto_takes_torch(exported, tmp_path, monkeypatch):
    monkeypatch.setattr(inference.util, "find_spec", lambda name: None)
    assert inference.Predictor(exported[0]).engine == "torch"
    with pytest.raises(PathoError, match="onnxruntime is not installed"):
        inference.Predictor(exported[0], "onnx")
    with pytest.raises(PathoError, match="did you mean 'onnx'"):
        inference.Predictor(exported[0], "onxx")


def test_logits_that_are_not_finite_are_refused(exported):
    predictor = inference.Predictor(exported[0], "torch")
    predictor._logits = lambda views: np.full((len(views), 2), np.nan, np.float32)
    with pytest.raises(PathoError, match="model_output"):
        predictor.probabilities(image_set(train=0, val=1).pictures)
