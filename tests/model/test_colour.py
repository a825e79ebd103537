"""Colour statistics beside the network: what they are, what they do not depend on, and that they change no map."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from patholib.deploy import export, loading, onnx_export
from patholib.judge import gradcam
from patholib.model import building, colour, describing, folding, recipes
from patholib.model.augment import SYMMETRIES

pytestmark = pytest.mark.heavy

RECIPE = replace(recipes.from_scratch(recipes.ISIC2019), arch="resnet18", image_size=64, head_width=8)


@pytest.fixture(scope="module")
def model():
    """With statistics of some images in its BatchNorms, so that nothing is standardised by 0 and 1."""
    found = building.build(RECIPE).train()
    with torch.no_grad():
        for seed in range(3):
            found(torch.rand(8, 3, 64, 64, generator=torch.Generator().manual_seed(seed)))
    return found.eval()


@pytest.fixture(scope="module")
def images():
    drawn = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(9))
    return drawn * torch.linspace(0.2, 1, 64)  # darker to one side, so that a turn would show


@pytest.mark.parametrize("side", [32, 48, 64, 110, 224])
def test_statistics_are_finite_numbers_of_any_size_even_of_one_colour(side):
    for images in (torch.zeros(2, 3, side, side), torch.ones(2, 3, side, side), torch.rand(2, 3, side, side)):
        found = colour.statistics(images)
        assert found.shape == (2, colour.NUMBERS) and found.isfinite().all()


def test_flips_and_quarter_turns_change_no_statistic(images):
    truth = colour.statistics(images)
    for symmetry in SYMMETRIES:
        torch.testing.assert_close(colour.statistics(symmetry(images)), truth, rtol=1e-4, atol=1e-5)


def test_statistics_of_a_picture_worked_by_hand():
    image = torch.zeros(1, 3, 32, 32)
    image[:, 0, 8:24, 8:24] = 1  # a red square over a quarter of the picture
    found = colour.statistics(image)[0]
    assert found[:3].tolist() == [0.25, 0, 0]  # means
    assert found[9].item() == pytest.approx((0.25 * 0.75) ** 0.5, abs=1e-4)  # deviation of red
    first, *_, last = found[27:32].tolist()  # the rings of red: the square holds the first and does not reach the last
    assert (first, last) == pytest.approx((0.75, -0.25), abs=1e-5)
    grain = colour.grain(image)[0]
    assert grain[:3].tolist() == pytest.approx([2 * 2 * 16 / (32 * 31), 0, 0])  # its four sides, 16 pixels each
    assert grain[3:7].tolist() == pytest.approx([0, 0, 1e-4, 0])  # its sides lie where the halved pixels meet


def test_rings_are_means_over_all_pixels():
    shares = colour.rings(33)
    torch.testing.assert_close(shares.sum(dim=0), torch.ones(colour.RINGS))
    assert ((shares > 0).sum(dim=1) == 1).all()


def test_the_images_get_no_gradient_through_their_colours(model, images):
    asked = images.clone().requires_grad_()
    model.net.colour(asked).sum().backward()
    assert asked.grad is None
    model.zero_grad(set_to_none=True)


def test_logits_are_those_of_the_maps_and_those_of_the_colours(model, images):
    with torch.no_grad():
        shapes, colours = model.classify(model.features(images)), model.net.colour(images)
        assert colours.abs().max() > 1e-3
        torch.testing.assert_close(model(images), shapes + colours)


def test_without_it_a_network_is_what_it_was():
    plain = building.build(replace(RECIPE, colour=0))
    beside = building.build(RECIPE)
    state = beside.state_dict()
    assert not plain.sees_colour and beside.sees_colour
    assert all(torch.equal(tensor, state[name]) for name, tensor in plain.state_dict().items())
    assert state.keys() - plain.state_dict().keys() == {n for n in state if n.startswith("net.colour.")}


@pytest.mark.parametrize("method", ["gradcam", "hirescam"])
def test_heat_is_that_of_the_maps_and_probabilities_are_those_of_both(model, images, method):
    plain = building.build(replace(RECIPE, colour=0)).eval()
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("net.colour.")})
    classes = torch.tensor([0, 1, 5, 7])
    found, without = (gradcam.heat(m, images, classes, method=method) for m in (model, plain))
    torch.testing.assert_close(found.maps, without.maps, rtol=1e-5, atol=1e-9)
    with torch.no_grad():
        torch.testing.assert_close(found.probs, model(images).softmax(1))


def test_a_table_of_the_parts_counts_the_colours(model):
    rows = describing.describe(model).set_index("block")["parameters"]
    assert rows["colour"] > 0
    assert rows["backbone"] + rows["head"] + rows["colour"] == rows["model"]


def test_an_exported_model_keeps_its_colours(model, images, tmp_path):
    export.save_model(tmp_path, model.state_dict(), RECIPE)
    again, manifest = loading.classifier(tmp_path)
    assert manifest["recipe"]["colour"] == RECIPE.colour
    with torch.no_grad():
        assert torch.equal(again(images), model(images))
        torch.testing.assert_close(folding.for_prediction(again)(images[:1]), model(images[:1]), rtol=1e-4, atol=1e-5)


def test_onnx_gives_the_same_probabilities(model, images, tmp_path):
    pytest.importorskip("onnxscript")
    export.save_model(tmp_path, model.state_dict(), RECIPE)
    onnx_export.to_onnx(tmp_path, images)  # refuses where they differ
    facts = json.loads((tmp_path / onnx_export.ONNX_FACTS).read_text(encoding="utf-8"))
    assert facts


def test_a_pretrained_backbone_needs_no_colours(tmp_path):
    path = tmp_path / "backbone.pth"
    torch.save(building.build(replace(RECIPE, colour=0)).net.state_dict(), path)
    found = building.build(replace(RECIPE, weights=str(path)))
    assert found.sees_colour and found.weights_source["kind"] == "file"
