from dataclasses import replace

import pytest
import torch
from torch import nn
from torchvision import models as zoo

from patholib.base import files
from patholib.base.errors import PathoError
from patholib.deploy import export, exportformat, loading, published
from patholib.model import recipes

pytestmark = pytest.mark.heavy

RECIPE = replace(recipes.for_demo(recipes.BREAKHIS), arch="resnet18", head_width=8)


def small_state(classes=2):
    generator = torch.Generator().manual_seed(0)
    state = {
        "net.conv1.weight": torch.randn(4, 3, 7, 7, generator=generator),
        "net.bn1.num_batches_tracked": torch.tensor(3),
        "net.bn1.running_mean": torch.zeros(4),
        "net.fc.1.weight": torch.randn(8, 4, generator=generator),
        "net.fc.1.bias": torch.zeros(8),
        "net.fc.5.weight": torch.randn(classes, 8, generator=generator),
        "net.fc.5.bias": torch.zeros(classes),
    }
    return state


@pytest.fixture
def exported(tmp_path):
    export.save_model(
        tmp_path, small_state(), RECIPE, run="a run", data_sha256="0" * 64, demo=True, epoch=3, threshold=0.4
    )
    return tmp_path


def test_an_exported_model_comes_back_bit_by_bit_under_torchvisions_names(exported):
    for given in (exported, exported / exportformat.WEIGHTS, exported / exportformat.MANIFEST):
        state, manifest = loading.load_model(given)
        assert set(state) == {name.removeprefix("net.") for name in small_state()}
        assert all(torch.equal(state[name.removeprefix("net.")], tensor) for name, tensor in small_state().items())
    assert manifest["classes"] == ["benign", "malignant"] and manifest["threshold"] == 0.4
    assert recipes.from_json(manifest["recipe"]) == RECIPE
    assert manifest["demo"] and "demo images" in manifest["notice"] and "research use only" in manifest["notice"]


def test_weights_of_another_run_are_refused(exported, tmp_path):
    export.save_model(tmp_path / "other", {k: v + 1 for k, v in small_state().items()}, RECIPE)
    (tmp_path / "other" / exportformat.WEIGHTS).replace(exported / exportformat.WEIGHTS)
    with pytest.raises(PathoError, match="weights_damaged"):
        loading.load_model(exported)


@pytest.mark.parametrize("start", [b"\x80\x04", b"PK"])
def test_a_header_whose_length_looks_like_a_pickle_or_an_archive_is_read(tmp_path, start):
    def save(name):
        export.save_model(tmp_path, small_state() | {"net." + name: torch.zeros(0)}, RECIPE)
        return int.from_bytes((tmp_path / exportformat.WEIGHTS).read_bytes()[:8], "little")

    assert save("x" * (1 + int.from_bytes(start, "little") - save("x"))) == int.from_bytes(start, "little")
    assert len(loading.load_model(tmp_path)[0]) == len(small_state()) + 1


def test_the_same_model_has_one_digest(tmp_path):
    for name in map(str, range(20)):
        export.save_model(tmp_path / name, small_state(), RECIPE)
    assert len({files.sha256(path) for path in tmp_path.glob(f"*/{exportformat.WEIGHTS}")}) == 1


def test_a_run_without_its_best_weights_is_not_exported(tmp_path):
    files.write_json(tmp_path / "run.json", {"training": {"best_epoch": 3}, "recipe": RECIPE.to_json()})
    with pytest.raises(PathoError, match=r"missing_file.*epoch \(3\)"):
        export.write(tmp_path)


def test_the_folder_of_the_first_weights_is_not_exported(tmp_path):
    recipe = replace(RECIPE, weights="private/folder/backbone.pth")
    assert "private" not in export.save_model(tmp_path, small_state(), recipe).read_text()


def test_the_published_layout_loads_in_plain_torchvision_without_running_code(tmp_path):
    def network():
        net = zoo.resnet18(weights=None)
        net.fc = nn.Sequential(
            nn.Dropout(0.5), nn.Linear(512, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 2)
        )
        return net

    model = nn.Module()
    model.net = network()
    optimizer = torch.optim.Adam(model.parameters())
    path = published.write(
        tmp_path / "model.pt",
        model.state_dict(),
        RECIPE,
        epoch=7,
        best_auc=0.95,
        optimizer_state=optimizer.state_dict(),
        validation={"auc": 0.95},
        frozen_blocks=4,
    )
    found = torch.load(path, weights_only=True)
    assert found["class_names"] == {0: "benign", 1: "malignant"}
    assert (found["epoch"], found["best_auc"], found["image_size"]) == (7, 0.95, RECIPE.image_size)
    assert found["normalization"] == {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    assert recipes.from_json(found["recipe"]) == RECIPE and found["frozen_blocks"] == 4
    again = network()
    again.load_state_dict(found["model_state"])
    torch.optim.Adam(again.parameters()).load_state_dict(found["optimizer_state"])
    images = torch.rand(1, 3, 32, 32)
    assert torch.equal(again.eval()(images), model.net.eval()(images))


def test_a_published_checkpoint_of_more_than_plain_values_is_refused(tmp_path):
    with pytest.raises(PathoError, match="not_plain"):
        published.write(tmp_path / "m.pt", small_state(), RECIPE, epoch=1, best_auc=None, validation={"x": tmp_path})
    assert not (tmp_path / "m.pt").exists()
