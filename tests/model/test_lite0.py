"""EfficientNet-Lite0, whose weights come as a Python package, against its author's own network and numbers."""

import functools
import json
import sys
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import torch

from patholib.base import files
from patholib.base.errors import PathoError
from patholib.deploy import export, inference, onnx_export
from patholib.model import adapted, architectures, building, downloading, recipes, weights
from patholib.model.recipes import Stage

pytestmark = pytest.mark.heavy

ENTRY = architectures.NETWORKS["efficientnet_lite0"]
RECIPE = replace(recipes.ISIC2019, arch="efficientnet_lite0", image_size=64, stages=(Stage(0, 0, 1.0),))
PACKAGE = ENTRY.packaged.partition("/")[0]
REFERENCE = json.loads((Path(__file__).parents[1] / "fixtures" / "efficientnet_lite0.json").read_text("utf-8"))


def _is_installed():
    try:
        return bool(metadata.distribution(PACKAGE))
    except metadata.PackageNotFoundError:
        return False


installed = pytest.mark.skipif(not _is_installed(), reason='needs pip install "patholib[weights]"')


def pictures():
    """Twenty of waves and ever more noise, 224 and 100 pixels wide by turns: at 100 some maps have odd sides."""
    rng = np.random.default_rng(0)
    for number in range(20):
        side = (224, 100)[number % 2]
        y, x = np.mgrid[:side, :side] / side
        waves = [np.sin(2 * np.pi * (rng.uniform(-6, 6) * x + rng.uniform(-6, 6) * y)) for _ in range(3)]
        noise = rng.normal(0, 1, (side, side, 3))
        yield np.clip(128 + 80 * np.stack(waves, -1) + number * 2 * noise, 0, 255).round().astype(np.uint8)


@pytest.fixture
def alone(tmp_path, monkeypatch):
    """A project and a torch.hub folder without weights, where nothing is attached; the installed package is there."""
    monkeypatch.setattr(files, "project_root", lambda: tmp_path / "project")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    for name in ("PATHOLIB_WEIGHTS", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATHOLIB_MOUNTS", "")
    return tmp_path


@pytest.fixture
def not_installed(alone, monkeypatch):
    def distribution(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", distribution)
    return alone


@functools.cache
def _pretrained():
    return building.build(replace(RECIPE, weights="imagenet")).eval()


@installed
def test_the_weights_are_found_in_the_package_which_is_not_imported(alone):
    model = building.build(replace(RECIPE, weights="imagenet"))
    assert model.weights_source == {"kind": "imagenet", "file": ENTRY.weights_file, "sha256": ENTRY.sha256}
    assert PACKAGE not in sys.modules
    values = sum(v.numel() for name, v in model.net.state_dict().items() if not name.startswith(model.added))
    assert values == 4_694_073 - 1000 * 1281  # all that the file holds, but for its head


@installed
def test_features_and_logits_are_those_of_the_authors_network(alone):
    state = torch.load(weights.find_or_fetch(RECIPE.arch)[0], weights_only=True)
    head = torch.nn.Linear(1280, 1000).double()
    head.load_state_dict({"weight": state["_fc.weight"], "bias": state["_fc.bias"]})
    model = _pretrained()
    exact = functools.partial(torch.testing.assert_close, rtol=0, atol=1e-5)
    double = building.build(replace(RECIPE, weights="imagenet")).double().eval()
    for number, (picture, known) in enumerate(zip(pictures(), REFERENCE["pictures"], strict=True)):
        image = torch.from_numpy(picture).permute(2, 0, 1)[None] / 255
        with torch.no_grad():
            single, features = (net.features(image).mean((2, 3))[0].double() for net in (model, double))
            logits = head(features)
        exact(features[::80], torch.tensor(known["features"], dtype=torch.float64))
        exact(logits[::125], torch.tensor(known["logits"], dtype=torch.float64))
        assert abs(float(features.sum()) - known["feature_sum"]) < 1e-3, number
        assert logits.topk(3).indices.tolist() == known["top"]
        torch.testing.assert_close(single, features, rtol=0, atol=5e-5)


@installed
@pytest.mark.slow  # test_inference writes the same network as ONNX, which refuses where an answer differs
def test_the_exported_model_answers_the_same_with_onnx_runtime(alone, tmp_path):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model = _pretrained()
    export.save_model(tmp_path, model.state_dict(), RECIPE)
    onnx_export.to_onnx(tmp_path)
    shown = np.stack([picture[:64, :64] for picture in pictures()])
    with torch.inference_mode():
        expected = model(torch.from_numpy(shown).permute(0, 3, 1, 2) / 255).softmax(1).numpy()
    for engine in ("onnx", "torch"):
        assert np.abs(inference.Predictor(tmp_path, engine).probabilities(shown) - expected).max() < 1e-4


@pytest.mark.parametrize(("kernel", "stride"), [(3, 2), (5, 2)])
@pytest.mark.parametrize("side", range(5, 13))
def test_the_padding_is_tensorflows(kernel, stride, side):
    """TensorFlow's documentation of "SAME": ceil(side / stride) places, the odd zero at the end."""
    places = -(-side // stride)
    zeros = max((places - 1) * stride + kernel - side, 0)
    padded = adapted.SamePadding(kernel)(torch.ones(1, 1, side, side))[0, 0]
    before, after = zeros // 2, zeros - zeros // 2
    expected = torch.zeros(side + zeros, side + zeros)
    expected[before : side + zeros - after, before : side + zeros - after] = 1
    assert torch.equal(padded, expected)


@installed
def test_a_file_of_ones_own_comes_before_the_package_and_has_to_be_the_same(alone):
    path = files.write_bytes(alone / "project" / "data" / "weights" / ENTRY.weights_file, b"other")
    assert weights.find_or_fetch(RECIPE.arch) == (path, ENTRY.sha256)
    with pytest.raises(PathoError, match=ENTRY.sha256) as refusal:
        building.build(replace(RECIPE, weights="imagenet"))
    assert refusal.value.code == "weights_damaged"


def test_without_the_package_it_is_said_how_to_install_it(not_installed):
    for ask in (weights.find_or_fetch, downloading.fetch_weights):
        with pytest.raises(PathoError, match=r'pip install "patholib\[weights\]"'):
            ask(RECIPE.arch)


def test_weights_by_the_networks_own_names_are_taken_too(tmp_path):
    state = architectures.construct(RECIPE.arch).state_dict()
    torch.save(state, tmp_path / "mine.pth")
    model = building.build(replace(RECIPE, weights=str(tmp_path / "mine.pth")))
    assert torch.equal(model.net.features[8][0].weight, state["features.8.0.weight"])
