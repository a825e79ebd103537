"""Every entry of the table of networks, held against the network it describes: a new entry is tested by being there."""

import copy
import re
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from torch import nn
from torchvision import models as torchvision_models
from torchvision.transforms.functional import normalize

from patholib.deploy import export, loading
from patholib.model import architectures, building, downloading, fields, folding, recipes
from patholib.model.recipes import Stage

RECIPE = replace(recipes.BREAKHIS, weights="none", image_size=64, head_width=8, stages=(Stage(0, 0, 1.0),))


@pytest.fixture(scope="module", params=architectures.NETWORKS)
def arch(request):
    return request.param


@pytest.fixture(scope="module")
def trained(arch):
    """A model with statistics and factors as after a training, in eval mode."""
    model = building.build(replace(RECIPE, arch=arch))
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2.0)
            nn.init.uniform_(module.weight, 0.5, 1.5)
    return model.eval()


@pytest.fixture(scope="module")
def images():
    return torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(3))


def test_the_blocks_run_in_turn_are_the_whole_network(arch, trained, images):
    entry, plain = architectures.NETWORKS[arch], architectures.construct(arch)
    setattr(plain, entry.head, copy.deepcopy(trained.head))
    assert list(trained.state_dict()) == [f"net.{name}" for name in plain.state_dict()]
    plain.load_state_dict({name.removeprefix("net."): value for name, value in trained.state_dict().items()})
    assert torch.equal(trained(images), plain.eval()(normalize(images, entry.mean, entry.std)))
    assert trained.features(images).shape[1] == entry.channels


def test_every_weight_belongs_to_one_block_or_to_the_head(trained):
    backbone = [id(p) for block in trained.blocks.values() for module in block for p in module.parameters()]
    head = [id(p) for p in trained.head.parameters()]
    assert sorted(backbone + head) == sorted(map(id, trained.parameters()))


def test_features_and_classify_meet_at_any_block(trained, images):
    logits = trained(images)
    for name in trained.block_names:
        assert torch.equal(trained.classify(trained.features(images, name), name), logits), name


def test_torchvision_publishes_these_weights_for_images_normalised_so(arch):
    entry = architectures.NETWORKS[arch]
    known = {weights.url: weights.transforms() for weights in torchvision_models.get_model_weights(arch)}
    assert entry.weights in known, f"the address of {arch} is none of {', '.join(known)}"
    assert known[entry.weights].mean == list(entry.mean) and known[entry.weights].std == list(entry.std)


def test_the_weights_are_known_to_downloads_and_recipes(arch):
    assert downloading.imagenet_file(arch).sha256 and f"weights-{arch}" in downloading.WEIGHTS
    assert arch in fields.CHOICES["arch"]
    assert f"| `{arch}` | {len(architectures.NETWORKS[arch].blocks)} |" in architectures.as_markdown()


def test_a_recipe_cannot_freeze_more_blocks_than_there_are(arch):
    blocks = len(architectures.NETWORKS[arch].blocks)
    assert replace(RECIPE, arch=arch, stages=(Stage(0, blocks, 1.0),)).stages[0].frozen == blocks
    with pytest.raises(Exception, match=f"freeze {blocks + 1} blocks, but {arch} has {blocks}"):
        replace(RECIPE, arch=arch, stages=(Stage(0, blocks + 1, 1.0),))


def test_random_residual_blocks_begin_as_the_identity_where_the_entry_names_their_last_norm(arch):
    last = architectures.NETWORKS[arch].last_norm
    model = building.build(replace(RECIPE, arch=arch))
    ends = [getattr(module, last).weight for module in model.modules() if last and hasattr(module, last)]
    assert bool(ends) == bool(last) and all(not weight.any() for weight in ends)


def test_folding_removes_every_batchnorm_behind_a_convolution_and_changes_nothing(trained, images):
    with torch.inference_mode():
        expected, folded = trained(images), folding.folded(trained)
        assert torch.allclose(folded(images), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    assert any(isinstance(module, nn.BatchNorm2d) for module in trained.modules())


def test_packed_weights_compute_the_same_bits_or_are_not_used(arch, images, monkeypatch):
    model = building.build(replace(recipes.from_scratch(recipes.BREAKHIS), arch=arch, image_size=64)).eval()
    images = images.contiguous(memory_format=torch.channels_last)
    packed = folding.for_prediction(model)
    monkeypatch.setattr(folding.Packed, "possible", lambda network: False)
    plain = folding.for_prediction(model)
    assert not any(isinstance(layer, folding.Packed) for layer in plain.modules())
    with torch.inference_mode():
        for image in images.split(1):
            assert torch.equal(packed(image), plain(image))
            assert torch.allclose(plain(image), model(image), atol=1e-5)


def test_an_export_is_rebuilt_with_the_same_answers(arch, trained, images, tmp_path):
    export.save_model(tmp_path, trained.state_dict(), replace(RECIPE, arch=arch))
    again, manifest = loading.classifier(tmp_path)
    assert torch.equal(again(images), trained(images))
    assert manifest["normalization"] == architectures.NETWORKS[arch].normalization


def test_recipes_and_the_table_of_networks_need_no_torch():
    code = (
        "import sys; from patholib.model import recipes, downloading; "
        "print(len(recipes.BREAKHIS.stages), 'torch' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert re.fullmatch(r"1 False\s*", out)
