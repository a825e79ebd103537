import copy
import functools
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import matplotlib

matplotlib.use("Agg")

import numpy as np
import pandas as pd
import pytest
import torch
from captum.attr import LayerGradCam, LayerGradientXActivation, Occlusion

from patholib.base.errors import PathoError
from patholib.data.imagesets import ImageSet
from patholib.judge import predicting, validation
from patholib.judge.gradcam import (
    METHODS,
    averaged,
    caption,
    default_block,
    gallery,
    gradcam,
    heat,
    normalise,
    pick,
    upsample,
)
from patholib.model import augment, building, fields, recipes
from patholib.model.recipes import Stage

pytestmark = pytest.mark.heavy

SCRATCH = replace(recipes.BREAKHIS, weights="none", image_size=64, stages=(Stage(0, 0, 1.0),))
EFFICIENTNET = replace(recipes.ISIC2019, weights="none", image_size=64, stages=(Stage(0, 0, 1.0),))
RECIPES = {"resnet18": replace(SCRATCH, arch="resnet18"), "resnet50": SCRATCH, "efficientnet_b0": EFFICIENTNET}


@pytest.fixture(scope="module")
def images():
    return torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(7))


@functools.cache
def _model(arch):
    """Random weights, and statistics that fit them, so that maps and gradients have a natural size."""
    model = building.build(RECIPES[arch]).train()
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


@pytest.mark.parametrize(
    ("arch", "block", "layer"),
    [
        ("resnet18", "stem", "maxpool"),
        ("resnet18", "layer2[0]", "layer2.0"),
        ("resnet18", "layer4[1]", "layer4.1"),
        ("efficientnet_b0", "features[2]", "features.2"),
        ("efficientnet_b0", "features[6]", "features.6"),
        ("efficientnet_b0", None, "features.8"),
        ("resnet50", "layer3[5]", "layer3.5"),
        ("resnet50", None, "layer4.2"),
    ],
)
def test_the_maps_are_captums(images, arch, block, layer):
    model = _model(arch)
    heat = gradcam(model, images[:2], classes=[1, 0], block=block)
    truth = (
        LayerGradCam(model, model.net.get_submodule(layer))
        .attribute(images[:2], target=torch.tensor([1, 0]), relu_attributions=True)[:, 0]
        .detach()
    )
    assert heat.maps.shape == truth.shape and truth.max() > 0
    torch.testing.assert_close(heat.maps, truth, rtol=1e-5, atol=1e-7 * float(truth.max()))


def test_a_map_worked_by_hand():
    # Two channels and a linear head: the gradient of the logit is weight / (h w) everywhere.
    class Sum(torch.nn.Module):
        def features(self, images, until):
            return images[:, :2]

        def classify(self, maps, after, images):
            return maps.mean(dim=(2, 3)) @ torch.tensor([[1.0, -1.0], [-2.0, 2.0]])

    image = torch.zeros(1, 3, 2, 2)
    image[0, 0], image[0, 1] = torch.tensor([[1.0, 0], [3, 0]]), torch.tensor([[0.0, 1], [1, 0]])
    heat = gradcam(Sum().eval(), image, classes=[0])
    assert heat.maps[0].tolist() == [[0.25, 0], [0.25, 0]]  # relu(1 * first - 2 * second) / 4
    assert gradcam(Sum().eval(), image, classes=[1]).maps[0].tolist() == [[0, 0.5], [0, 0]]


class Weighed(torch.nn.Module):
    """Maps that are the channels of the image, and a linear head on them with a weight of its own for every place."""

    def __init__(self, weights):
        super().__init__()
        self.weights = torch.nn.Parameter(weights)  # (C, 3, H, W)

    def features(self, images, until=None):
        return images

    def classify(self, maps, after=None, images=None):
        return maps.flatten(1) @ self.weights.flatten(1).T

    def forward(self, images):
        return self.classify(images)


def _weighed(seed=4):
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randn(2, 3, 4, 4, generator=generator, dtype=torch.float64)
    return Weighed(weights).eval(), torch.rand(2, 3, 4, 4, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize(
    ("arch", "block", "layer"),
    [
        ("resnet18", "layer2[0]", "layer2.0"),
        ("efficientnet_b0", "features[4]", "features.4"),
        ("resnet50", None, "layer4.2"),
    ],
)
def test_hirescam_is_captums_gradient_times_activation(images, arch, block, layer):
    model = _model(arch)
    maps = heat(model, images[:2], [1, 0], block, "hirescam").maps
    truth = (
        LayerGradientXActivation(model, model.net.get_submodule(layer))
        .attribute(images[:2], target=torch.tensor([1, 0]))
        .sum(dim=1)
        .relu()
        .detach()
    )
    assert truth.max() > 0
    torch.testing.assert_close(maps, truth, rtol=1e-5, atol=1e-6 * float(truth.max()))
    summed = (
        LayerGradCam(model, model.net.get_submodule(layer))
        .attribute(images[:2], target=torch.tensor([1, 0]), attr_dim_summation=False)
        .sum(dim=1)
        .relu()
        .detach()
    )
    torch.testing.assert_close(
        gradcam(model, images[:2], [1, 0], block).maps, summed, rtol=1e-5, atol=1e-6 * float(summed.max())
    )  # that option is not HiResCAM, whatever it looks like


def test_hirescam_says_what_each_place_adds_to_the_logit():
    model, images = _weighed()
    maps = heat(model, images, [0, 1], method="hirescam").maps
    for i in range(2):
        added = (images[i] * model.weights[i]).sum(dim=0)
        torch.testing.assert_close(maps[i], added.relu().float().detach())


def test_gradcam_plus_plus_is_its_general_formula_by_finite_differences():
    # Equation 10 with the second and third derivatives of exp(logit) by central differences; the weights of every
    # place differ, so a mean over places where the sum belongs, or g for g^2, would show.
    model, images = _weighed()
    maps = heat(model, images, [0, 1], method="gradcam++").maps
    step = 1e-2
    for i in range(2):
        at = images[i].flatten()
        moves = torch.eye(len(at), dtype=at.dtype) * step

        def score(shift, at=at, moves=moves, i=i):
            with torch.no_grad():
                return model.classify((at + shift * moves).view(-1, 3, 4, 4))[:, i].exp()

        first = (score(1) - score(-1)) / (2 * step)
        second = (score(1) - 2 * score(0) + score(-1)) / step**2
        third = (score(2) - 2 * score(1) + 2 * score(-1) - score(-2)) / (2 * step**3)
        total = images[i].sum(dim=(1, 2), keepdim=True).expand(3, 4, 4).flatten()
        alpha = second / (2 * second + total * third)
        weight = (alpha * first.relu()).view(3, -1).sum(dim=1)
        truth = (weight[:, None, None] * images[i]).sum(dim=0).relu() / score(0)[0]  # exp(logit) is left out
        torch.testing.assert_close(maps[i].double(), truth, rtol=1e-2, atol=0)


def test_gradcam_plus_plus_worked_by_hand():
    # One channel with sum 6, gradients 2 and -1 at two places: the falling one counts nothing, weight 2 / (2 + 6 * 2).
    model = Weighed(torch.zeros(1, 3, 1, 2)).eval()
    model.weights.data[0, 0, 0] = torch.tensor([2.0, -1.0])
    image = torch.zeros(1, 3, 1, 2)
    image[0, 0, 0] = torch.tensor([2.0, 4.0])
    assert heat(model, image, method="gradcam++").maps[0, 0].tolist() == pytest.approx([2 / 7, 4 / 7])
    image[0, 0, 0] = torch.tensor([4.0, -6.0])  # a sum below 0 counts as 0: weight 2 / 2
    assert heat(model, image, method="gradcam++").maps[0, 0].tolist() == pytest.approx([4, 0])


def test_gradcam_plus_plus_stays_finite_and_positive_where_maps_are_negative(efficientnet, images):
    for block in efficientnet.block_names:
        found = heat(efficientnet, images, block=block, method="gradcam++").maps
        assert torch.isfinite(found).all() and (found >= 0).all()


@pytest.mark.parametrize("arch", ["resnet18", "efficientnet_b0"])
def test_occlusion_is_captums(images, arch):
    model, views = _model(arch), images[:2]
    found = heat(model, views, [1, 0], method="occlusion")
    grey = views.mean(dim=(2, 3), keepdim=True).expand_as(views)
    truth = Occlusion(model).attribute(
        views, target=torch.tensor([1, 0]), sliding_window_shapes=(3, 16, 16), strides=(3, 8, 8), baselines=grey
    )
    assert found.maps.shape == (2, 8, 8) and truth.max() > 0
    cells = truth[:, 0, 4::8, 4::8].relu()
    torch.testing.assert_close(found.maps, cells, rtol=1e-4, atol=1e-5 * float(truth.abs().max()))


def test_occlusion_finds_the_only_place_that_counts():
    weights, image = torch.zeros(1, 3, 36, 36), torch.zeros(1, 3, 36, 36)  # no multiple of eight: cells of 4 and 5
    weights[0, :, 14:18, 18:22] = image[0, :, 14:18, 18:22] = 1
    maps = heat(Weighed(weights).eval(), image, method="occlusion").maps[0]
    assert divmod(int(maps.argmax()), 8) == (3, 4)
    assert maps[3, 4] == 2 * maps[2, 4] == 2 * maps[3, 5] == 4 * maps[4, 3]  # half and a quarter of the squares hit it
    assert (maps > 0).sum() == 9


@pytest.mark.parametrize("method", METHODS)
def test_every_method_keeps_the_promises_of_heat(efficientnet, images, method):
    model = copy.deepcopy(efficientnet).freeze(3, "frozen").train()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    before = copy.deepcopy(model.state_dict())
    learns, modes = [p.requires_grad for p in model.parameters()], [m.training for m in model.modules()]
    views = images[:2]
    found = heat(model, views, block="features[4]", method=method)
    assert torch.equal(found.classes, found.probs.argmax(dim=1))
    assert torch.equal(heat(model, views, found.classes.numpy(), "features[4]", method).maps, found.maps)
    for i in range(2):
        alone = heat(model, views[i : i + 1], block="features[4]", method=method).maps[0]
        torch.testing.assert_close(alone, found.maps[i], rtol=1e-3, atol=1e-4 * float(found.maps.max()))
    with torch.inference_mode():
        assert torch.equal(heat(model, views * 1, block="features[4]", method=method).maps, found.maps)
    frozen = copy.deepcopy(efficientnet).freeze(9, "frozen").requires_grad_(False)
    assert torch.equal(heat(frozen, views, block="features[4]", method=method).maps, found.maps)
    with ThreadPoolExecutor(2) as pool:
        both = list(pool.map(lambda _: heat(model, views, block="features[4]", method=method).maps, range(2)))
    assert all(torch.equal(maps, found.maps) for maps in both)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all((parameter.grad == 1).all() for parameter in model.parameters())
    assert [p.requires_grad for p in model.parameters()] == learns
    assert [m.training for m in model.modules()] == modes
    assert (found.maps >= 0).all() and not found.maps.requires_grad and not found.blank.any()


@pytest.mark.parametrize("method", METHODS)
def test_every_method_says_that_a_map_is_blank_and_refuses_what_is_no_class_or_block(resnet18, images, method):
    silent = copy.deepcopy(resnet18)
    with torch.no_grad():
        silent.head[-1].weight.zero_()
    found = heat(silent, images[:2], method=method)
    assert found.blank.all() and (found.maps == 0).all()
    for classes, block, code in (([0, 2], None, "bad_classes"), (None, "layer9", "unknown_block")):
        with pytest.raises(PathoError) as refusal:
            heat(resnet18, images[:2], classes, block, method)
        assert refusal.value.code == code
    with pytest.raises(PathoError) as refusal:
        heat(resnet18, images[0], method=method)
    assert refusal.value.code == "bad_images"


def test_an_unknown_method_is_refused_with_the_nearest(resnet18, images):
    with pytest.raises(PathoError, match="gradcam"):
        heat(resnet18, images, method="grad-cam")


def test_every_symmetry_is_undone():
    square = torch.rand(2, 1, 5, 5, generator=torch.Generator().manual_seed(1))
    seen = [view(square) for view in augment.SYMMETRIES]
    assert all(torch.equal(back(view), square) for back, view in zip(augment.UNDO, seen, strict=True))
    assert not any(torch.equal(a, b) for i, a in enumerate(seen) for b in seen[:i])


def test_the_average_over_the_eight_views_turns_with_the_image(resnet18, images):
    model, pictures = copy.deepcopy(resnet18).double(), images[:1].double()
    found = averaged(model, pictures, block="layer3[1]")
    for view in augment.SYMMETRIES[3:5]:  # a half turn, and a quarter turn, which does not undo itself
        turned = averaged(model, view(pictures), found.classes, "layer3[1]")
        torch.testing.assert_close(turned.maps, view(found.maps[:, None])[:, 0], rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(found.probs.sum(dim=1), torch.ones(1))
    assert torch.equal(found.classes, found.probs.argmax(dim=1))


@pytest.mark.parametrize("block", [None, "features[4]"])
def test_a_batch_is_the_images_one_by_one(efficientnet, images, block):
    efficientnet, images = copy.deepcopy(efficientnet).double(), images.double()  # so that a difference is no rounding
    whole = gradcam(efficientnet, images, block=block)
    for i in range(len(images)):
        alone = gradcam(efficientnet, images[i : i + 1], block=block)
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


@pytest.mark.parametrize("batchnorm", fields.CHOICES["batchnorm"])
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
    truth = [gradcam(resnet18, images[i % 4 : i % 4 + 1]).maps for i in range(6)]
    with ThreadPoolExecutor(4) as pool:
        maps = list(pool.map(lambda i: gradcam(model, images[i % 4 : i % 4 + 1]).maps, range(6)))
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


# --- which images, which block ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arch", "size", "block"),
    [
        ("resnet50", 224, "layer4[2]"),
        ("resnet18", 224, "layer4[1]"),
        ("efficientnet_b0", 224, "features[8]"),
        ("resnet50", 64, "layer2[3]"),
        ("efficientnet_b0", 64, "features[3]"),
        ("resnet18", 32, "layer1[1]"),
        ("efficientnet_b0", 32, "features[2]"),
    ],
)
def test_the_default_block_is_the_last_one_that_can_tell_a_place(arch, size, block):
    model = copy.copy(_model(arch))
    model.image_size = size
    assert default_block(model) == block
    maps, sides = torch.zeros(1, 3, size, size), {}
    with torch.no_grad():
        for name, modules in model.blocks.items():
            for module in modules:
                maps = module(maps)
            sides[name] = maps.shape[-1]
    later = model.block_names[model.block_names.index(block) + 1 :]
    assert sides[block] >= 6 and all(sides[name] < 6 for name in later)


CLASSES = ("benign", "malignant")


def predictions(p_malignant, labels):
    return pd.DataFrame(
        {
            "path": [f"{i}.png" for i in range(len(labels))],
            "label": labels,
            "group": [f"p{i}" for i in range(len(labels))],
            "p_benign": [1 - p for p in p_malignant],
            "p_malignant": p_malignant,
        }
    )


def test_every_outcome_has_its_section_worked_by_hand():
    labels = ["malignant"] * 4 + ["benign", "benign", "malignant", "benign"]
    table = predictions([0.99, 0.95, 0.9, 0.52, 0.04, 0.97, 0.45, 0.1], labels)
    chosen = pick(table, CLASSES, "malignant", each=2)
    found = {name: list(rows.index) for name, rows in chosen.groupby("section", sort=False)}
    assert found == {
        "true positive": [0, 1],
        "false positive": [5],
        "false negative": [6],
        "true negative": [4, 7],
        "least certain": [3, 6],
        "highest loss": [5, 6],
    }
    assert chosen.loc[5, "p"].tolist() == pytest.approx([0.97] * 2)  # of its predicted class, in both sections
    assert chosen.loc[4, "decision"] == "benign" and chosen.loc[4, "p"] == pytest.approx(0.96)
    assert chosen.loc[6, "loss"].iloc[0] == pytest.approx(-np.log(0.45))


def test_without_a_positive_class_images_are_right_or_wrong():
    chosen = pick(predictions([0.9, 0.2], ["malignant", "malignant"]), CLASSES, each=4)
    assert list(chosen["section"].unique()) == ["right", "wrong", "least certain", "highest loss"]
    assert chosen[chosen["section"] == "wrong"].index.tolist() == [1]


def test_the_threshold_decides_the_predicted_class_and_what_is_uncertain():
    table = predictions([0.3, 0.5, 0.05], ["malignant", "malignant", "benign"])
    chosen = pick(table, CLASSES, "malignant", threshold=0.25, each=1)
    assert set(chosen.loc[[0], "decision"]) == {"malignant"} and set(chosen.loc[[0], "p"]) == {0.3}
    assert chosen[chosen["section"] == "least certain"].index.tolist() == [0]  # 0.05 away; 0.5 is a quarter away


def test_sections_of_a_column_go_from_the_best_recognised_to_the_worst():
    table = predictions([0.9, 0.1, 0.5, 0.7, 0.2], ["malignant"] * 4 + ["benign"]).assign(site=list("aaaab"))
    chosen = pick(table, CLASSES, "malignant", each=3, by="label")
    assert list(chosen["section"]) == ["label: benign"] + ["label: malignant"] * 3
    assert list(chosen.index) == [4, 0, 2, 1]
    assert list(pick(table, CLASSES, "malignant", by="site")["section"].unique()) == ["site: a", "site: b"]
    with pytest.raises(PathoError, match="site"):
        pick(table, CLASSES, by="sites")


def test_C06_own_columns_with_the_names_of_ours_are_kept_apart(catalogue):
    own = {"section": "a", "loss": "b", "decision": "c", "p": "d", "margin": "e", "own_p": "f"}
    table = predictions([0.9, 0.2], ["malignant", "malignant"]).assign(**own)
    chosen = pick(table, CLASSES, "malignant", each=1).iloc[0]
    assert [
        chosen[name] for name in ("own_section", "own_loss", "own_decision", "own_own_p", "margin", "own_p")
    ] == list("abcdef")
    assert chosen["section"] == "true positive" and chosen["p"] == 0.9
    assert list(pick(table, CLASSES, "malignant", each=1, by="loss")["section"]) == ["loss: b"]
    catalogue("C06", "own columns section, loss, decision, p", "kept with own_ before their names")


def test_C06_own_columns_are_kept_beside_those_that_deciding_adds(catalogue):
    own = {"threshold": "a", "decision": "b", "own_decision": "c"}
    table = predictions([0.9, 0.2], ["malignant", "malignant"]).assign(**own)
    found = validation.decided(table, recipes.BREAKHIS, 0.5)
    assert found.columns.is_unique and list(found["decision"]) == ["malignant", "benign"]
    assert [found[name][0] for name in ("own_threshold", "own_own_decision", "own_decision")] == list("abc")
    catalogue("C06", "own columns threshold, decision, novelty, of folds and other hospitals", "kept with own_ before")


def test_a_caption_names_true_and_predicted_class_probability_and_threshold():
    assert (
        caption("benign", "malignant", 0.42, "malignant", 0.37)
        == "true: benign, predicted: malignant (0.42, threshold 0.37)"
    )
    assert caption("x", "y", 0.42) == "true: x, predicted: y (0.42)"
    assert "malignant 0.31, threshold 0.37" in caption("malignant", "benign", 0.69, "malignant", 0.37)


@pytest.fixture
def tiles():
    """Twelve pictures that lie in the cache backwards."""
    rng = np.random.default_rng(3)
    table = pd.DataFrame(
        {
            "path": [f"{i}.png" for i in range(12)],
            "label": [CLASSES[i % 2] for i in range(12)],
            "group": [f"p{i}" for i in range(12)],
            "row": np.arange(12)[::-1],
        }
    )
    return ImageSet(rng.integers(0, 256, (12, 64, 64, 3), dtype=np.uint8), table, CLASSES)


def test_a_gallery_shows_the_picture_the_class_and_the_block_it_names(resnet18, tiles):
    table = predicting.predict(resnet18, tiles, RECIPES["resnet18"], progress=False)
    threshold = float(table["p_malignant"].median())  # so that for half of them the less probable class is predicted
    found = gallery(resnet18, tiles, table, "malignant", threshold, each=3, method="hirescam")
    assert set(found.table["decision"]) == set(CLASSES)
    assert len(found.table) == len(found.heat) == len(found.pictures) == sum(map(len, found.sections.values()))
    assert found.block == default_block(resnet18) == "layer2[1]"
    for i, row in found.table.iterrows():
        place = int(row["path"].removesuffix(".png"))
        assert np.array_equal(found.pictures[i], tiles.pixels[11 - place])
        views = torch.from_numpy(tiles.pixels[11 - place]).permute(2, 0, 1)[None] / 255
        alone = heat(resnet18, views, [CLASSES.index(row["decision"])], found.block, "hirescam")
        expected = upsample(alone.maps, 64)[0].numpy()
        assert np.allclose(found.heat[i], expected, atol=1e-5 * max(expected.max(), 1))
        assert row["p"] == pytest.approx(table.loc[place, f"p_{row['decision']}"])
        assert row["label"] in found.captions[i] and f"threshold {threshold:.2f}" in found.captions[i]


def test_predictions_in_another_order_are_refused(resnet18, tiles):
    table = predicting.predict(resnet18, tiles, RECIPES["resnet18"], progress=False)
    for other in (table.iloc[::-1], table.iloc[:-1], table.assign(path=table["path"].to_numpy()[::-1])):
        with pytest.raises(PathoError, match="bad_order"):
            gallery(resnet18, tiles, other, "malignant")


def test_a_chosen_block_is_used_and_an_unknown_one_refused(resnet18, tiles):
    table = predicting.predict(resnet18, tiles, RECIPES["resnet18"], progress=False)
    assert gallery(resnet18, tiles, table, each=1, block="layer4[1]").block == "layer4[1]"
    with pytest.raises(PathoError, match="unknown_block"):
        gallery(resnet18, tiles, table, each=1, block="layer9")
