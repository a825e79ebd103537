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
from captum.attr import LayerGradCam
from matplotlib.text import Text

from patholib import evaluation, figures, models, recipes
from patholib.errors import PathoError
from patholib.gradcam import default_block, explain, gradcam, normalise, pick, upsample
from patholib.images import ImageSet
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


# --- which images, which block ----------------------------------------------------------------------------------------

@pytest.mark.parametrize(("arch", "size", "block"), [
    ("resnet50", 224, "layer4[2]"), ("resnet18", 224, "layer4[1]"), ("efficientnet_b0", 224, "features[8]"),
    ("resnet50", 64, "layer2[3]"), ("efficientnet_b0", 64, "features[3]"), ("resnet18", 32, "layer1[1]"),
    ("efficientnet_b0", 32, "features[2]"),
])
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
    later = model.block_names[model.block_names.index(block) + 1:]
    assert sides[block] >= 6 and all(sides[name] < 6 for name in later)


CLASSES = ("benign", "malignant")


def predictions(p_malignant, labels):
    return pd.DataFrame({"path": [f"{i}.png" for i in range(len(labels))], "label": labels,
                         "group": [f"p{i}" for i in range(len(labels))],
                         "p_benign": [1 - p for p in p_malignant], "p_malignant": p_malignant})


def test_the_surest_the_wrong_and_the_least_certain_are_picked_and_each_image_once():
    labels = ["malignant"] * 4 + ["benign", "benign", "malignant"]
    table = predictions([0.99, 0.95, 0.9, 0.52, 0.04, 0.97, 0.45], labels)
    chosen = pick(table, CLASSES, "malignant", each=2)
    assert list(chosen.index) == [0, 4, 5, 3, 6]  # by hand: right, right, the one sure mistake, the doubtful
    assert list(chosen["outcome"]) == ["right"] * 2 + ["wrong"] + ["uncertain"] * 2
    assert list(chosen["decision"]) == ["malignant", "benign", "malignant", "malignant", "benign"]
    assert chosen["p"].tolist() == pytest.approx([0.99, 0.96, 0.97, 0.52, 0.55])


def test_a_handful_of_images_is_picked_without_repetition():
    chosen = pick(predictions([0.9, 0.2], ["malignant", "malignant"]), CLASSES, "malignant", each=4)
    assert sorted(chosen.index) == [0, 1]


def test_the_threshold_decides_what_an_image_is_called():
    table = predictions([0.3], ["malignant"])
    assert pick(table, CLASSES, "malignant", threshold=0.25)["decision"].tolist() == ["malignant"]
    assert pick(table, CLASSES, "malignant", threshold=0.25)["p"].tolist() == [0.3]


@pytest.fixture
def tiles():
    """Twelve pictures that lie in the cache backwards."""
    rng = np.random.default_rng(3)
    table = pd.DataFrame({"path": [f"{i}.png" for i in range(12)], "label": [CLASSES[i % 2] for i in range(12)],
                          "group": [f"p{i}" for i in range(12)], "row": np.arange(12)[::-1]})
    return ImageSet(rng.integers(0, 256, (12, 64, 64, 3), dtype=np.uint8), table, CLASSES)


def test_an_explanation_is_of_the_picture_the_class_and_the_block_it_names(resnet18, tiles):
    table = evaluation.predict(resnet18, tiles, RECIPES["resnet18"], progress=False)
    threshold = float(table["p_malignant"].median())  # so that half of the images are called what is less probable
    found = explain(resnet18, tiles, table, "malignant", threshold, each=3)
    assert set(found.table["decision"]) == set(CLASSES)
    assert found.table["path"].is_unique and len(found.table) == len(found.heat) == len(found.pictures)
    assert found.block == default_block(resnet18) == "layer2[1]"
    for i, row in found.table.iterrows():
        place = int(row["path"].removesuffix(".png"))
        assert np.array_equal(found.pictures[i], tiles.pixels[11 - place])
        views = torch.from_numpy(tiles.pixels[11 - place]).permute(2, 0, 1)[None] / 255
        alone = gradcam(resnet18, views, [CLASSES.index(row["decision"])], found.block)
        expected = upsample(alone.maps, 64)[0].numpy()
        assert np.allclose(found.heat[i], expected, atol=1e-5 * max(expected.max(), 1))
        assert row["p"] == pytest.approx(table.loc[place, f"p_{row['decision']}"])
        assert found.captions[i] == f"{row['outcome']}: is {row['label']}, called {row['decision']} ({row['p']:.0%})"


def test_predictions_in_another_order_are_refused(resnet18, tiles):
    table = evaluation.predict(resnet18, tiles, RECIPES["resnet18"], progress=False)
    for other in (table.iloc[::-1], table.iloc[:-1], table.assign(path=table["path"].to_numpy()[::-1])):
        with pytest.raises(PathoError, match="bad_order"):
            explain(resnet18, tiles, other, "malignant")


def test_a_chosen_block_is_used_and_an_unknown_one_refused(resnet18, tiles):
    table = evaluation.predict(resnet18, tiles, RECIPES["resnet18"], progress=False)
    assert explain(resnet18, tiles, table, each=1, block="layer4[1]").block == "layer4[1]"
    with pytest.raises(PathoError, match="unknown_block"):
        explain(resnet18, tiles, table, each=1, block="layer9")


def test_an_image_without_evidence_is_explained_by_a_blank_map(resnet18, tiles):
    silent = copy.deepcopy(resnet18)
    with torch.no_grad():
        silent.head[-1].weight.zero_()  # no map argues for any class
    found = explain(silent, tiles, evaluation.predict(silent, tiles, RECIPES["resnet18"], progress=False), each=1)
    assert (found.heat == 0).all()
    texts = [text.get_text() for text in figures.explained(found).findobj(Text)]
    assert texts.count("blank map") == len(found.table)


def test_the_figure_names_the_block_and_every_heatmap_is_saved(resnet18, tiles, tmp_path):
    table = evaluation.predict(resnet18, tiles, RECIPES["resnet18"], progress=False)
    found = explain(resnet18, tiles, table, each=1)
    gallery = figures.save_heatmaps(found, tmp_path, note="Demo images: not a result")
    texts = [text.get_text() for text in gallery.findobj(Text)]
    assert any("layer2[1]" in text for text in texts) and "Demo images: not a result" in texts
    names = {path.name for path in tmp_path.glob("*.png")}
    assert names == {"gallery.png"} | {f"{i + 1:02}-{row.outcome}-{row.path[:-4]}.png"
                                       for i, row in enumerate(found.table.itertuples())}
    assert list(pd.read_csv(tmp_path / "heatmaps.csv")["path"]) == list(found.table["path"])
