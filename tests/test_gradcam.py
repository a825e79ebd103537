import copy
import functools
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from captum.attr import LayerGradCam

from patholib import models, recipes
from patholib.errors import PathoError
from patholib.gradcam import gradcam, normalise, upsample
from patholib.recipes import Stage

SCRATCH = replace(recipes.BREAKHIS, weights="none", image_size=64, stages=(Stage(0, 0, 1.0),))
EFFICIENTNET = replace(recipes.ISIC2019, weights="none", image_size=64, stages=(Stage(0, 0, 1.0),))
RECIPES = {"resnet18": replace(SCRATCH, arch="resnet18"), "resnet50": SCRATCH, "efficientnet_b0": EFFICIENTNET}


@pytest.fixture(scope="module")
def images():
    return torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(7))


@functools.cache
def _model(arch):
    """Random weights, and statistics that fit them, so that maps and gradients have a natural size."""
    model = models.build(RECIPES[arch]).train()
    generator = torch.Generator().manual_seed(8)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        for module in model.modules():
            if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
                module.momentum = None  # a plain average
        for _ in range(2):
            model(torch.rand(8, 3, 64, 64, generator=generator))
    return model.eval()


@pytest.fixture
def resnet18():
    return _model("resnet18")


@pytest.fixture
def efficientnet():
    return _model("efficientnet_b0")


@pytest.mark.parametrize(("arch", "block", "layer"), [
    ("resnet18", "stem", "maxpool"), ("resnet18", "layer2[0]", "layer2.0"), ("resnet18", "layer4[1]", "layer4.1"),
    ("efficientnet_b0", "features[2]", "features.2"), ("efficientnet_b0", "features[6]", "features.6"),
    ("efficientnet_b0", None, "features.8"), ("resnet50", "layer3[5]", "layer3.5"), ("resnet50", None, "layer4.2"),
])
def test_the_maps_are_captums(images, arch, block, layer):
    model = _model(arch)
    heat = gradcam(model, images[:2], classes=[1, 0], block=block)
    truth = LayerGradCam(model, model.net.get_submodule(layer)).attribute(
        images[:2], target=torch.tensor([1, 0]), relu_attributions=True)[:, 0].detach()
    assert heat.maps.shape == truth.shape and truth.max() > 0
    torch.testing.assert_close(heat.maps, truth, rtol=1e-5, atol=1e-7 * float(truth.max()))


def test_a_map_worked_by_hand():
    # Two channels and a linear head: the gradient of the logit is weight / (h w) everywhere.
    class Sum(torch.nn.Module):
        def features(self, images, until):
            return images[:, :2]

        def classify(self, maps, after):
            return maps.mean(dim=(2, 3)) @ torch.tensor([[1.0, -1.0], [-2.0, 2.0]])

    image = torch.zeros(1, 3, 2, 2)
    image[0, 0], image[0, 1] = torch.tensor([[1.0, 0], [3, 0]]), torch.tensor([[0.0, 1], [1, 0]])
    heat = gradcam(Sum().eval(), image, classes=[0])
    assert heat.maps[0].tolist() == [[0.25, 0], [0.25, 0]]  # relu(1 * first - 2 * second) / 4
    assert gradcam(Sum().eval(), image, classes=[1]).maps[0].tolist() == [[0, 0.5], [0, 0]]


@pytest.mark.parametrize("block", [None, "features[4]"])
def test_a_batch_is_the_images_one_by_one(efficientnet, images, block):
    efficientnet, images = copy.deepcopy(efficientnet).double(), images.double()  # so that a difference is no rounding
    whole = gradcam(efficientnet, images, block=block)
    for i in range(len(images)):
        alone = gradcam(efficientnet, images[i: i + 1], block=block)
        torch.testing.assert_close(alone.maps[0], whole.maps[i], rtol=1e-6, atol=1e-7 * float(whole.maps.max()))
        assert alone.classes[0] == whole.classes[i]


def test_it_asks_about_the_most_probable_class_unless_told(resnet18, images):
    heat = gradcam(resnet18, images)
    with torch.no_grad():
        probs = resnet18(images).softmax(1)
    torch.testing.assert_close(heat.probs, probs)
    assert torch.equal(heat.classes, probs.argmax(1))
    other = gradcam(resnet18, images, 1 - heat.classes)
    assert torch.equal(other.classes, 1 - heat.classes) and not torch.allclose(other.maps, heat.maps)


@pytest.mark.parametrize("classes", [[0, 1], [0, 1, 0, 2], [-1, 0, 0, 0], [0.0, 1.0, 0.0, 1.0], 1])
def test_classes_that_do_not_fit_are_refused(resnet18, images, classes):
    with pytest.raises(PathoError) as refusal:
        gradcam(resnet18, images, classes)
    assert refusal.value.code == "bad_classes"


@pytest.mark.parametrize("batchnorm", recipes.CHOICES["batchnorm"])
def test_a_wholly_frozen_model_has_the_same_maps(resnet18, images, batchnorm):
    frozen = copy.deepcopy(resnet18).freeze(9, batchnorm).requires_grad_(False)
    assert torch.equal(gradcam(frozen, images).maps, gradcam(resnet18, images).maps)


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_as_it_was(efficientnet, images, training):
    model = copy.deepcopy(efficientnet).freeze(3, "frozen").train(training)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    state = copy.deepcopy(model.state_dict())
    learns, modes = [p.requires_grad for p in model.parameters()], [m.training for m in model.modules()]
    random = torch.get_rng_state()
    heat = gradcam(model, images)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all((parameter.grad == 1).all() for parameter in model.parameters())
    assert [p.requires_grad for p in model.parameters()] == learns
    assert [m.training for m in model.modules()] == modes
    assert not any(m._forward_hooks or m._backward_hooks for m in model.modules())
    assert torch.equal(heat.maps, gradcam(efficientnet, images).maps)  # in eval mode, whatever mode the model is in
    assert not (heat.maps.requires_grad or heat.probs.requires_grad or images.requires_grad)


@pytest.mark.parametrize("switch", [torch.no_grad, torch.inference_mode])
def test_it_works_where_gradients_are_switched_off(resnet18, images, switch):
    with switch():
        maps = gradcam(resnet18, images * 1).maps
    assert torch.equal(maps, gradcam(resnet18, images).maps)


def test_threads_do_not_disturb_each_other(resnet18, images):
    model = copy.deepcopy(resnet18).train()
    truth = [gradcam(resnet18, images[i % 4: i % 4 + 1]).maps for i in range(6)]
    with ThreadPoolExecutor(4) as pool:
        maps = list(pool.map(lambda i: gradcam(model, images[i % 4: i % 4 + 1]).maps, range(6)))
    assert all(torch.equal(a, b) for a, b in zip(maps, truth, strict=True))
    assert all(module.training for module in model.modules())


def test_a_map_without_evidence_is_flagged_and_never_nan(resnet18, images):
    model = copy.deepcopy(resnet18)
    with torch.no_grad():
        for parameter in model.head.parameters():
            parameter.zero_()  # no logit depends on the image
    heat = gradcam(model, images)
    assert heat.blank.all() and (heat.maps == 0).all()
    for scale in ("image", "gallery"):
        assert (normalise(upsample(heat.maps, 64), scale) == 0).all()
    assert not gradcam(resnet18, images).blank.all()


def test_weights_that_are_not_finite_are_told(resnet18, images):
    model = copy.deepcopy(resnet18)
    with torch.no_grad():
        model.head[1].weight[0, 0] = torch.nan
    with pytest.raises(PathoError) as refusal:
        gradcam(model, images)
    assert refusal.value.code == "model_output"


def test_half_precision_gives_single_precision_maps(efficientnet, images):
    with torch.autocast("cpu", torch.bfloat16):
        heat = gradcam(efficientnet, images)
    assert heat.maps.dtype == heat.probs.dtype == torch.float32 and torch.isfinite(heat.maps).all()


def test_upsampling_stays_in_the_range_of_the_map():
    maps = torch.rand(3, 7, 7, generator=torch.Generator().manual_seed(0)) ** 4
    big = upsample(maps, 64)
    assert big.shape == (3, 64, 64)
    assert (big.amin((1, 2)) >= maps.amin((1, 2))).all() and (big.amax((1, 2)) <= maps.amax((1, 2)) + 1e-6).all()
    torch.testing.assert_close(upsample(torch.full((1, 7, 7), 0.3), 64), torch.full((1, 64, 64), 0.3))
    step = torch.tensor([[[0.0, 1.0], [0.0, 1.0]]])
    assert upsample(step, 8)[0, 0].tolist() == [0, 0, 0.125, 0.375, 0.625, 0.875, 1, 1]  # smooth, and not moved


def test_a_gallery_is_scaled_by_its_highest_peak():
    maps = torch.tensor([[[0.0, 2]], [[1, 4]], [[0, 0]]])
    assert normalise(maps).tolist() == [[[0, 1]], [[0.25, 1]], [[0, 0]]]
    assert normalise(maps, "gallery").tolist() == [[[0, 0.5]], [[0.25, 1]], [[0, 0]]]
    assert normalise(maps * 1e-38)[0].tolist() == [[0, 1]]
    with pytest.raises(PathoError):
        normalise(maps, "batch")
