"""Every entry of the table of networks, held against the network it describes: a new entry is tested by being there."""

import copy
import re
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional
from torchvision import models as torchvision_models
from torchvision.models import densenet
from torchvision.transforms.functional import normalize

from patholib.base.errors import PathoError
from patholib.deploy import export, loading
from patholib.judge import gradcam
from patholib.model import architectures, building, describing, downloading, fields, folding, recipes
from patholib.model.recipes import Stage

pytestmark = pytest.mark.heavy

PUBLISHED = set(torchvision_models.list_models())
RECIPE = replace(recipes.BREAKHIS, weights="none", image_size=64, head_width=8, stages=(Stage(0, 0, 1.0),))


# ResNet34 is built of the blocks of ResNet18.
@pytest.fixture(
    scope="module",
    params=[pytest.param(n, marks=pytest.mark.slow if n == "resnet34" else ()) for n in architectures.NETWORKS],
)
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
    entry = architectures.NETWORKS[arch]
    plain = torchvision_models.get_model(arch, weights=None) if arch in PUBLISHED else architectures.construct(arch)
    plain.set_submodule(entry.head, copy.deepcopy(trained.head))
    assert list(trained.state_dict()) == [f"net.{name}" for name in plain.state_dict()]
    plain.load_state_dict({name.removeprefix("net."): value for name, value in trained.state_dict().items()})
    ours, theirs = trained(images), plain.eval()(normalize(images, entry.mean, entry.std))
    if arch == "convnext_tiny":  # its last norm is applied before the average instead of after it
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    else:
        assert torch.equal(ours, theirs)
    assert trained.features(images).shape[1] == entry.channels


def test_every_weight_belongs_to_one_block_or_to_the_head(trained):
    backbone = [id(p) for block in trained.blocks.values() for module in block for p in module.parameters()]
    head = [id(p) for p in trained.head.parameters()]
    assert sorted(backbone + head) == sorted(map(id, trained.parameters()))


def test_features_and_classify_meet_at_any_block(trained, images):
    logits = trained(images)
    for name in trained.block_names:
        assert torch.equal(trained.classify(trained.features(images, name), name), logits), name


def test_every_network_is_torchvisions_or_has_a_test_of_its_own():
    assert set(architectures.NETWORKS) - PUBLISHED == {"efficientnet_lite0"}  # test_lite0.py


@pytest.mark.parametrize("arch", sorted(PUBLISHED & set(architectures.NETWORKS)))
def test_torchvision_publishes_these_weights_for_images_normalised_so(arch):
    entry = architectures.NETWORKS[arch]
    known = {weights.url: weights.transforms() for weights in torchvision_models.get_model_weights(arch)}
    assert entry.weights in known, f"the address of {arch} is none of {', '.join(known)}"
    assert known[entry.weights].mean == list(entry.mean) and known[entry.weights].std == list(entry.std)


def test_the_weights_are_known_to_downloads_and_recipes(arch):
    assert downloading.imagenet_file(arch).sha256 and f"weights-{arch}" in downloading.WEIGHTS
    assert arch in fields.CHOICES["arch"]


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


def _norms(model):
    return sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())


def test_folding_removes_every_batchnorm_behind_a_convolution_and_changes_nothing(arch, trained, images):
    had = _norms(trained)
    with torch.inference_mode():
        expected, folded = trained(images), folding.folded(trained)
        assert torch.allclose(folded(images), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    # In DenseNet most norms come before their convolution: one in each of 58 layers and 3 transitions, and the last.
    assert _norms(folded) == (62 if arch == "densenet121" else 0) and _norms(trained) == had


def test_what_is_frozen_gets_no_gradient_and_all_the_rest_does(trained, images):
    frozen = len(trained.block_names) // 2
    model = copy.deepcopy(trained).freeze(frozen, "frozen").train()
    functional.cross_entropy(model(images), torch.tensor([0, 1, 0])).backward()
    still = {id(p) for module in model.frozen_modules() for p in module.parameters()}
    assert 0 < len(still) < len(list(model.parameters()))
    for name, parameter in model.named_parameters():
        assert (parameter.grad is None) == (id(parameter) in still), name
        assert parameter.grad is None or torch.isfinite(parameter.grad).all(), name
    assert torch.equal(
        model.features(images, model.block_names[frozen - 1]),
        model.eval().features(images, model.block_names[frozen - 1]),
    )


@pytest.mark.parametrize("method", ["gradcam", "hirescam"])
def test_heatmaps_are_finite_of_the_size_of_the_maps_and_show_evidence_for_one_of_two_opposite_classes(
    trained, images, method
):
    model, weight = copy.deepcopy(trained), torch.randn(1, trained.architecture.channels)
    opposite = nn.Linear(weight.shape[1], 2, bias=False)  # one logit is the other one's negative
    opposite.weight = nn.Parameter(torch.cat([weight, -weight]))
    model.net.set_submodule(model.architecture.head, opposite)
    sizes = {name: maps.shape[2:] for name, maps in describing.block_maps(model)}
    for block in (model.block_names[-1], gradcam.default_block(model)):
        of_class = [gradcam.heat(model, images, [c] * len(images), block, method) for c in (0, 1)]
        for heat in of_class:
            assert heat.maps.shape == (len(images), *sizes[block]) and torch.isfinite(heat.maps).all()
            assert gradcam.upsample(heat.maps, 64).shape == (len(images), 64, 64)
        assert not (of_class[0].blank & of_class[1].blank).any()
        assert not (of_class[0].maps * of_class[1].maps).any()  # no place speaks for both


def test_a_covered_corner_moves_the_maps_of_that_corner_most(trained):
    """Channels and places are not mixed up: what changes in the image changes there in the maps of every block."""
    model, images = copy.deepcopy(trained), torch.full((1, 3, 128, 128), 0.5)
    changed = images.clone()
    changed[:, :, :32, 96:] = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    for name in model.block_names[: len(model.block_names) // 2 + 1]:
        with torch.no_grad():
            moved = (model.features(changed, name) - model.features(images, name)).abs().mean(1)[0]
        height, width = moved.shape
        row, column = divmod(int(moved.argmax()), width)
        assert row < height / 2 and column >= width / 2, name


def test_an_export_is_rebuilt_with_the_same_answers(arch, trained, images, tmp_path):
    export.save_model(tmp_path, trained.state_dict(), replace(RECIPE, arch=arch))
    again, manifest = loading.classifier(tmp_path)
    assert torch.equal(again(images), trained(images))
    assert manifest["normalization"] == architectures.NETWORKS[arch].normalization
    assert manifest["classes"] == list(again.classes) and not again.training


def test_recipes_and_the_table_of_networks_need_no_torch():
    code = (
        "import sys; from patholib.model import recipes, downloading; "
        "print(len(recipes.BREAKHIS.stages), 'torch' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert re.fullmatch(r"1 False\s*", out)


def _resnet18(**changed):
    return replace(architectures.NETWORKS["resnet18"], **changed)


BLOCKS = dict(architectures.NETWORKS["resnet18"].blocks)


@pytest.mark.parametrize(
    ("entry", "field"),
    [
        (_resnet18(blocks=BLOCKS | {"layer4[2]": ("layer4.2",)}), "blocks"),
        (_resnet18(blocks={name: paths for name, paths in BLOCKS.items() if name != "layer2[0]"}), "blocks and head"),
        (_resnet18(blocks=BLOCKS | {"layer4[1]": ("layer4.0",)}), "blocks and head"),
        (_resnet18(blocks=dict(sorted(BLOCKS.items(), reverse=True))), "blocks and head"),
        (_resnet18(head="classifier"), "head"),
        (_resnet18(head="layer4"), "blocks and head"),
        (_resnet18(channels=256), "channels"),
    ],
)
def test_a_wrong_entry_is_refused_with_the_name_of_the_field(monkeypatch, entry, field):
    monkeypatch.setitem(architectures.NETWORKS, "resnet18", entry)
    with pytest.raises(PathoError) as refusal:
        building.build(replace(RECIPE, arch="resnet18"))
    assert refusal.value.code == "bad_network" and refusal.value.subject.startswith(f"{field} of 'resnet18'")


def test_torchvisions_file_of_densenet_with_names_of_an_older_version_is_read(tmp_path):
    """Held against torchvision's own reading of it."""
    state = torchvision_models.densenet121().state_dict()
    old = {
        re.sub(r"(denselayer\d+\.(?:norm|conv))([12])\.", r"\1.\2.", name): value
        for name, value in state.items()
        if not name.endswith("num_batches_tracked")
    }
    torch.save(old, tmp_path / "densenet.pth")
    model = building.build(replace(RECIPE, arch="densenet121", weights=str(tmp_path / "densenet.pth")))
    theirs = torchvision_models.densenet121()
    densenet._load_state_dict(theirs, SimpleNamespace(get_state_dict=lambda **_: dict(old)), False)
    ours = model.net.state_dict()
    assert all(torch.equal(ours[name], value) for name, value in theirs.features.state_dict(prefix="features.").items())
