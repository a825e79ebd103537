import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torchvision import models as networks

from patholib import export, files, recipes
from patholib.errors import PathoError

RECIPE = replace(recipes.for_demo(recipes.BREAKHIS), arch="resnet18", head_width=8)


def small_state(classes=2):
    generator = torch.Generator().manual_seed(0)
    state = {"net.conv1.weight": torch.randn(4, 3, 7, 7, generator=generator),
             "net.bn1.num_batches_tracked": torch.tensor(3), "net.bn1.running_mean": torch.zeros(4),
             "net.fc.1.weight": torch.randn(8, 4, generator=generator), "net.fc.1.bias": torch.zeros(8),
             "net.fc.5.weight": torch.randn(classes, 8, generator=generator), "net.fc.5.bias": torch.zeros(classes)}
    return state


@pytest.fixture
def exported(tmp_path):
    export.save_model(tmp_path, small_state(), RECIPE, run="a run", data_sha256="0" * 64, demo=True, epoch=3,
                      threshold=0.4)
    return tmp_path


def refusal(folder):
    with pytest.raises(PathoError) as error:
        export.load_model(folder)
    return error.value.code


def rewrite(folder, **changes):
    """Changes the manifest as somebody would who also renews its digest."""
    path = folder / export.MANIFEST
    manifest = {k: v for k, v in json.loads(path.read_text()).items() if k != "manifest_sha256"} | changes
    files.write_json(path, {**manifest, "manifest_sha256": files.digest(manifest)})


def test_an_exported_model_comes_back_bit_by_bit_under_torchvisions_names(exported):
    for given in (exported, exported / export.WEIGHTS, exported / export.MANIFEST):
        state, manifest = export.load_model(given)
        assert set(state) == {name.removeprefix("net.") for name in small_state()}
        assert all(torch.equal(state[name.removeprefix("net.")], tensor) for name, tensor in small_state().items())
    assert manifest["classes"] == ["benign", "malignant"] and manifest["threshold"] == 0.4
    assert recipes.from_json(manifest["recipe"]) == RECIPE
    assert manifest["demo"] and "demo images" in manifest["notice"] and "research use only" in manifest["notice"]


def test_every_flipped_bit_in_either_file_is_refused(exported):
    rng = np.random.default_rng(0)
    for name in (export.WEIGHTS, export.MANIFEST):
        whole = (exported / name).read_bytes()
        for place in rng.integers(0, len(whole), 60):
            broken = bytearray(whole)
            broken[place] ^= 1 << rng.integers(0, 8)
            (exported / name).write_bytes(broken)
            with pytest.raises(PathoError):
                export.load_model(exported)
        (exported / name).write_bytes(whole)
    export.load_model(exported)


def test_swapped_class_names_are_found(exported):
    path = exported / export.MANIFEST
    path.write_text(path.read_text().replace('"benign"', '"x"').replace('"malignant"', '"benign"'))
    assert refusal(exported) == "manifest_changed"


def test_weights_of_another_run_are_refused(exported, tmp_path):
    export.save_model(tmp_path / "other", {k: v + 1 for k, v in small_state().items()}, RECIPE)
    (tmp_path / "other" / export.WEIGHTS).replace(exported / export.WEIGHTS)
    assert refusal(exported) == "weights_damaged"


@pytest.mark.parametrize(("content", "code"), [
    (None, "missing_file"), (b"", "not_safetensors"), (b"PK\x03\x04 a torch file", "not_safetensors"),
    (b"\x80\x02 a pickle", "not_safetensors"), (b"\xff" * 8 + b"{}", "weights_damaged"),
    (b"<html>not found</html>", "not_safetensors")])
def test_other_files_in_place_of_the_weights_are_refused(exported, content, code):
    (exported / export.WEIGHTS).unlink()
    if content is not None:
        (exported / export.WEIGHTS).write_bytes(content)
    assert refusal(exported) == code


def test_a_cut_off_file_is_refused(exported):
    path = exported / export.WEIGHTS
    path.write_bytes(path.read_bytes()[:-1])
    assert refusal(exported) == "weights_damaged"
    (exported / export.MANIFEST).write_bytes((exported / export.MANIFEST).read_bytes()[:100])
    assert refusal(exported) == "bad_json"


@pytest.mark.parametrize(("changes", "code"), [
    ({"format": 2}, "model_format"), ({"arch": "vgg16"}, "unknown_arch"), ({"image_size": 10**9}, "bad_manifest"),
    ({"classes": ["malignant", "benign"]}, "bad_manifest"), ({"threshold": 1.5}, "bad_manifest"),
    ({"temperature": -1}, "bad_manifest"), ({"normalization": {"mean": [0] * 3, "std": [0] * 3}}, "bad_manifest")])
def test_a_manifest_that_asks_for_the_impossible_is_refused_even_with_a_right_digest(exported, changes, code):
    rewrite(exported, **changes)
    assert refusal(exported) == code


def test_a_wrong_number_of_classes_and_broken_weights_cannot_be_exported(tmp_path):
    for state, code in ((small_state(3), "class_mismatch"), ({}, "class_mismatch"),
                        (small_state() | {"net.fc.1.bias": torch.full((8,), torch.nan)}, "nonfinite_weights")):
        with pytest.raises(PathoError) as error:
            export.save_model(tmp_path / "out", state, RECIPE)
        assert error.value.code == code
    with pytest.raises(PathoError, match="control characters"):
        export.save_model(tmp_path / "out", small_state(), replace(RECIPE, classes=("a\x1b", "b"), positive=None))
    assert not (tmp_path / "out").exists()


def test_the_folder_of_the_first_weights_is_not_exported(tmp_path):
    recipe = replace(RECIPE, weights="private/folder/backbone.pth")
    assert "private" not in export.save_model(tmp_path, small_state(), recipe).read_text()


def test_the_published_layout_loads_in_plain_torchvision_without_running_code(tmp_path):
    def network():
        net = networks.resnet18(weights=None)
        net.fc = nn.Sequential(nn.Dropout(0.5), nn.Linear(512, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3),
                               nn.Linear(8, 2))
        return net

    model = nn.Module()
    model.net = network()
    optimizer = torch.optim.Adam(model.parameters())
    path = export.published(tmp_path / "model.pt", model.state_dict(), 7, 0.95, RECIPE.classes, 224,
                            optimizer_state=optimizer.state_dict(), validation={"auc": 0.95}, frozen_blocks=4,
                            recipe=RECIPE)
    found = torch.load(path, weights_only=True)
    assert found["class_names"] == {0: "benign", 1: "malignant"}
    assert (found["epoch"], found["best_auc"], found["image_size"]) == (7, 0.95, 224)
    assert found["normalization"] == {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    assert recipes.from_json(found["recipe"]) == RECIPE and found["frozen_blocks"] == 4
    again = network()
    again.load_state_dict(found["model_state"])
    torch.optim.Adam(again.parameters()).load_state_dict(found["optimizer_state"])
    images = torch.rand(1, 3, 32, 32)
    assert torch.equal(again.eval()(images), model.net.eval()(images))


def test_a_published_checkpoint_of_more_than_plain_values_is_refused(tmp_path):
    with pytest.raises(PathoError, match="not_plain"):
        export.published(tmp_path / "m.pt", small_state(), 1, None, ("a", "b"), 64, validation={"x": tmp_path})
    assert not (tmp_path / "m.pt").exists()


def test_a_classifier_is_rebuilt_with_the_same_answers(tmp_path):
    models = pytest.importorskip("patholib.models", reason="needs patholib.models")
    model = models.build(RECIPE).eval()
    export.save_model(tmp_path, model.state_dict(), RECIPE)
    again, manifest = export.classifier(tmp_path)
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(again(images), model(images))
    assert manifest["classes"] == list(again.classes) and not again.training
