import copy
from dataclasses import replace

import matplotlib

matplotlib.use("Agg")

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import tiny
import torch
from matplotlib.text import Text
from torch import nn

from patholib.base import files
from patholib.base.errors import PathoError
from patholib.data import checking, decoding, demo, readers
from patholib.data.imagesets import ImageSet
from patholib.judge import gradcam, heatchecks, trust
from patholib.model import augment, building
from patholib.report.figures import heatmaps

CLASSES = ("none", "red")
SIDE, CELL, COUNT = 64, 8, 20


class Red(nn.Module):
    """Knows one thing: how much of a cell is red and neither green nor blue. One of its four channels says so."""

    classes, image_size = CLASSES, SIDE

    def __init__(self):
        super().__init__()
        self.conv, self.relu, self.head = nn.Conv2d(3, 4, CELL, CELL), nn.ReLU(), nn.Linear(4, 2)
        self.register_buffer("mean", torch.zeros(1))
        rng = torch.Generator().manual_seed(0)
        with torch.no_grad():
            self.conv.weight.copy_(torch.randn(self.conv.weight.shape, generator=rng) / CELL**2)
            self.conv.weight[0] = torch.tensor([1.0, -1, -1])[:, None, None] / CELL**2
            self.conv.bias.zero_()
            self.head.weight.copy_(torch.tensor([[0.0, 0, 0, 0], [400, 0, 0, 0]]))
            self.head.bias.copy_(torch.tensor([2.0, 0]))

    @property
    def blocks(self):
        return {"stem": (self.conv, self.relu)}

    @property
    def block_names(self):
        return tuple(self.blocks)

    def features(self, images, until=None):
        return self.relu(self.conv(images))

    def classify(self, maps, after=None, images=None):
        return self.head(maps.mean(dim=(2, 3)))

    def forward(self, images):
        return self.classify(self.features(images))


def drawn(rng, red=True):
    """Noise with a green and a blue square, and a red one or not, in different places; and the mask of the red one."""
    picture, mask = rng.integers(60, 120, (SIDE, SIDE, 3), dtype=np.uint8), np.zeros((SIDE, SIDE), bool)
    for channel, place in zip((1, 2, 0)[: 2 + red], rng.choice((SIDE // CELL) ** 2, 3, replace=False), strict=False):
        y, x = (CELL * int(k) for k in divmod(place, SIDE // CELL))
        picture[y : y + CELL, x : x + CELL] = 0
        picture[y : y + CELL, x : x + CELL, channel] = 255
        mask[y : y + CELL, x : x + CELL] = channel == 0
    return picture, mask


@pytest.fixture(scope="module")
def squares():
    """Images with a red square, each of another patient, and their masks."""
    pixels, masks = zip(*(drawn(np.random.default_rng(i)) for i in range(COUNT)), strict=True)
    table = pd.DataFrame(
        {
            "path": [f"{i}.png" for i in range(COUNT)],
            "label": "red",
            "group": [f"p{i}" for i in range(COUNT)],
            "row": np.arange(COUNT),
        }
    )
    return ImageSet(np.stack(pixels), table, CLASSES), dict(zip(table["path"], masks, strict=True))


@pytest.fixture(scope="module")
def small():
    """A small real network, untrained, and the same after it has learnt to tell whether there is a red square."""
    with tiny.network(), torch.random.fork_rng():
        torch.manual_seed(0)
        untrained = building.build(replace(tiny.TINY, image_size=SIDE, classes=CLASSES, positive="red"))
        model, rng = copy.deepcopy(untrained).train(), np.random.default_rng(99)
        optimizer = torch.optim.Adam(model.parameters(), 3e-3)
        for _ in range(150):
            labels = rng.integers(0, 2, 32)
            pixels = np.stack([drawn(rng, bool(label))[0] for label in labels])
            loss = nn.functional.cross_entropy(model(augment.plain_views(pixels, SIDE)), torch.from_numpy(labels))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        assert loss < 0.1
        yield untrained.eval(), model.eval()


def predicted(tiles, p=0.9):
    return tiles.table.drop(columns="row").assign(p_none=1 - p, p_red=p)


def examined(squares, model=None, **options):
    tiles, masks = squares
    return trust.examine(model or Red().eval(), tiles, predicted(tiles), masks=masks, positive="red", **options)


def failed(found):
    return {name for name, check in found.facts["checks"].items() if not check["passed"]}


# --- the verdict ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", gradcam.METHODS)
def test_maps_of_a_network_whose_evidence_is_known_pass(squares, method):
    found = examined(squares, method=method)
    assert found.trusted, found
    assert (found.facts["images"], found.facts["groups"], found.facts["of"]) == (16, 16, "red")
    where = found.facts["localisation"]
    assert where["images"] == COUNT and where["mask_share"] == pytest.approx((CELL / SIDE) ** 2)
    if method == "occlusion":  # its square is four times as large, and at the border cells share the squares they see
        assert where["map"]["energy"]["value"] > 10 * where["mask_share"]
    else:
        assert where["map"]["pointing"]["value"] == 1 and where["map"]["energy"]["value"] > 0.6


def test_averaged_maps_are_asked_the_same(squares):
    found = examined(squares, average=True, count=12)
    assert found.trusted, found
    assert found.facts["method"] == "gradcam, mean of eight views"


def test_maps_of_an_untrained_network_fail_with_the_reasons(squares, small):
    found = examined(squares, small[0])
    assert not found.trusted and "do not trust" in found.verdict.lower()
    assert {"over_random", "over_blob_on_masks"} <= failed(found)
    assert len(found.reasons) == len(failed(found))


def test_maps_of_the_same_network_lie_on_the_cue_when_it_has_learnt_it(squares, small):
    found = examined(squares, small[1])
    assert found.trusted, found
    before = examined(squares, small[0]).facts["localisation"]["map"]["energy"]["value"]
    assert found.facts["localisation"]["map"]["energy"]["value"] > before


def test_a_map_that_ignores_the_weights_is_caught(squares, monkeypatch):
    def edges(model, views, classes, block):
        maps = torch.from_numpy(np.stack([heatchecks.edges(view) for view in views]))
        return gradcam.Heat(maps, torch.as_tensor(classes), torch.full((len(maps), 2), 0.5), maps.amax((1, 2)) == 0)

    monkeypatch.setitem(gradcam.METHODS, "edges", edges)
    found = examined(squares, method="edges")
    assert {"cascade", "alone"} <= failed(found)
    assert all(part["rank_correlation"] == pytest.approx(1) for part in found.facts["randomisation"]["cascade"])


def test_a_network_without_evidence_has_blank_maps_and_is_not_trusted(squares):
    silent = Red().eval()
    with torch.no_grad():
        silent.head.weight.zero_()
    found = examined(squares, silent)
    assert failed(found) == {"evidence"} and found.facts["checks"]["evidence"]["number"]["value"] == 1
    assert heatmaps.trust(found.facts).axes


def test_without_masks_it_is_said_that_the_place_was_not_asked(squares):
    tiles, _ = squares
    found = trust.examine(Red().eval(), tiles, predicted(tiles), positive="red", count=8)
    assert "localisation" not in found.facts and found.facts["groups"] == 8
    assert len(found.verdict) > len(examined(squares).verdict)  # it says both


def test_only_images_predicted_positive_are_checked_and_without_any_it_is_said(squares):
    tiles, masks = squares
    table = predicted(tiles)
    table.loc[:15, ["p_none", "p_red"]] = [0.9, 0.1]
    found = trust.examine(Red().eval(), tiles, table, masks=masks, positive="red")
    assert found.facts["images"] == found.facts["localisation"]["images"] == COUNT - 16
    none = trust.examine(Red().eval(), tiles, predicted(tiles, 0.1), masks=masks, positive="red")
    assert not none.trusted and len(none.reasons) == 1 and none.facts["checks"] == {}
    assert none.table.empty and heatmaps.trust(none.facts).axes == []
    whole = trust.examine(
        Red().eval(), tiles, predicted(tiles, 0.1), masks=masks, positive="red", threshold=0.05, count=4
    )
    assert whole.facts["images"] == 4  # by the threshold all are predicted red


def test_the_network_and_the_random_numbers_are_left_as_they_were(squares):
    model = Red().train()
    before, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    examined(squares, model, count=4)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(module.training for module in model.modules()) and torch.equal(torch.get_rng_state(), random)


def test_it_is_kept_in_the_run_folder_and_read_back_and_twice_the_same(squares, tmp_path):
    class Run:
        dir = tmp_path

    found = examined(squares, run=Run)
    assert trust.read(tmp_path).facts == files.read_json(tmp_path / "trust.json") == found.facts
    assert examined(squares).facts == found.facts
    assert list(found.table.columns) == ["check", "value", "limit", "result"]
    assert set(found.table["result"]) == {"passed"}


def test_images_and_predictions_in_another_order_are_refused(squares):
    tiles, masks = squares
    with pytest.raises(PathoError, match="bad_order"):
        trust.examine(Red().eval(), tiles, predicted(tiles).iloc[::-1])
    with pytest.raises(PathoError, match="no_masks"):
        trust.examine(Red().eval(), tiles, predicted(tiles), masks={"other.png": masks["0.png"]})


# --- its parts --------------------------------------------------------------------------------------------------------


def test_rank_correlation_is_spearmans_with_ties():
    rng = np.random.default_rng(1)
    a, b = rng.integers(0, 4, (3, 5, 5)).astype(float), rng.random((3, 5, 5))
    truth = [scipy.stats.spearmanr(x.ravel(), y.ravel()).statistic for x, y in zip(a, b, strict=True)]
    assert heatchecks.rank_correlation(a, b) == pytest.approx(truth)
    assert heatchecks.rank_correlation(np.zeros((1, 4, 4)), rng.random((1, 4, 4))).tolist() == [0]


def test_structural_similarity_is_its_formula_over_all_windows():
    rng = np.random.default_rng(2)
    a, b = rng.random((2, 7, 7)), rng.random((2, 7, 7))
    found = heatchecks.structural_similarity(a, b)
    for k in range(2):
        x, y, values = a[k] / a[k].max(), b[k] / b[k].max(), []
        for i in range(3):
            for j in range(3):
                u, v = x[i : i + 5, j : j + 5], y[i : i + 5, j : j + 5]
                cov = ((u - u.mean()) * (v - v.mean())).mean()
                values.append(
                    (2 * u.mean() * v.mean() + 1e-4)
                    * (2 * cov + 9e-4)
                    / ((u.mean() ** 2 + v.mean() ** 2 + 1e-4) * (u.var() + v.var() + 9e-4))
                )
        assert found[k] == pytest.approx(np.mean(values))
    assert heatchecks.structural_similarity(a, 3 * a) == pytest.approx([1, 1])  # of their own peaks


def test_localisation_worked_by_hand():
    heat = np.array([[[3.0, 1], [0, 0]], [[0, 0], [0, 2]], [[0, 0], [0, 0]]])
    masks = np.array([[[1, 0], [1, 0]]] * 3, bool)
    found = heatchecks.located(heat, masks)
    assert found["energy"].tolist() == [0.75, 0, 0]
    assert found["pointing"].tolist() == [1, 0, 0]
    assert found["iou"][0] == pytest.approx(1 / 3)  # the two hottest and the mask share one pixel of three
    assert found["iou"][2] == 0 and found["iou"][1] in (0, pytest.approx(1 / 3))  # its second pixel is drawn by lot


def test_a_mask_as_large_as_the_heat_and_in_its_place_is_matched_whole():
    heat = np.random.default_rng(3).random((4, 16, 16))
    masks = np.stack([h >= np.sort(h.ravel())[-37] for h in heat])  # 37 pixels each
    assert heatchecks.located(heat, masks)["iou"].tolist() == [1] * 4


def test_ranks_are_a_permutation_hottest_first():
    maps = np.array([[[0.5, 0.0], [0.9, 0.0]]])
    places = heatchecks.ranks(maps)[0]
    assert places[1, 0] == 0 and places[0, 0] == 0.25 and sorted(places.ravel()) == [0, 0.25, 0.5, 0.75]


def test_areas_of_known_curves():
    shares = np.array([0.0, *heatchecks.SHARES, 1.0])
    assert heatchecks.area(np.stack([np.full(len(shares), 0.3), 1 - shares])) == pytest.approx([0.3, 0.5])


def test_deleting_by_a_perfect_map_falls_faster_than_by_chance_and_inserting_rises_faster(squares):
    found = examined(squares).facts["perturbation"]
    areas = {name: {what: number["value"] for what, number in of.items()} for name, of in found["areas"].items()}
    assert areas["map"]["deletion"] < areas["random"]["deletion"]
    assert areas["map"]["insertion"] > areas["random"]["insertion"]
    assert all(found[f"over_{other}"]["gain"]["low"] > 0 for other in ("random", "blob"))
    for curve in found["curves"].values():
        assert curve["deletion"][0] == curve["insertion"][-1] > 0.9 and curve["deletion"][-1] < 0.2
    assert found["curves"]["map"]["deletion"][1] < 0.2  # the square is 1.6 % of the image: gone with the first share


def test_a_map_that_moves_with_the_picture_is_stable(squares, monkeypatch):
    def brightness(model, views, classes, block):
        maps = views.mean(dim=1)
        return gradcam.Heat(maps, torch.as_tensor(classes), torch.full((len(maps), 2), 0.5), maps.amax((1, 2)) == 0)

    def fixed(model, views, classes, block):
        return replace(brightness(model, views, classes, block), maps=still[: len(views)])

    monkeypatch.setitem(gradcam.METHODS, "brightness", brightness)
    found = examined(squares, method="brightness").facts["stability"]
    assert found["shift"]["value"] == pytest.approx(1) and 0 < found["jpeg"]["value"] < 1
    still = torch.rand(COUNT, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    monkeypatch.setitem(gradcam.METHODS, "fixed", fixed)
    assert abs(examined(squares, method="fixed").facts["stability"]["shift"]["value"]) < 0.1  # stays while all moves


def test_images_come_from_as_many_groups_and_classes_as_there_are():
    table = pd.DataFrame(
        {"path": list("abcdefgh"), "group": list("11112234"), "predicted": ["x"] * 4 + ["x", "x", "y", "y"]}
    )
    assert list(trust._spread(table, 4)["path"]) == ["a", "g", "e", "h"]
    assert len(trust._spread(table, 99)) == 8


def test_all_weights_are_drawn_anew_and_keep_their_size(small):
    model = small[1]
    other, rng = copy.deepcopy(model), torch.Generator().manual_seed(0)
    for _, find in heatchecks._parts(other):
        heatchecks._randomise(find(other), rng)
    for (name, a), b in zip(model.named_parameters(), other.parameters(), strict=True):
        size = float(a.detach().square().mean().sqrt())
        assert torch.equal(a, b) == (size == 0), name  # what is zero stays so
        if a.numel() > 500:
            assert float(b.detach().square().mean().sqrt()) == pytest.approx(size, rel=0.2)


# --- masks and pictures -----------------------------------------------------------------------------------------------


def test_the_planted_masks_lie_on_the_nest_in_the_frame_of_the_cache(tmp_path):
    folder = demo.write(tmp_path / "demo", groups=8, images_per_group=1, size=(96, 64), patient_effect=0)
    source = readers.load("breakhis", folder)
    checked = checking.check(source, 64, "crop", cache_dir=tmp_path / "cache", progress=False)
    masks = trust.planted(source, checked.images)
    assert set(masks) == set(source.table["path"])
    truth = demo.truth(folder).set_index("path")
    for path, row in zip(checked.images.table["path"], checked.images.table["row"], strict=True):
        whole = np.asarray(decoding.read(folder / truth.loc[path, "mask"]))[..., 0] > 127
        assert np.array_equal(masks[path], whole[:, 16:80])  # the central square, at the same size
        picture = checked.images.pixels[row].astype(int)
        assert picture[masks[path]].mean() < picture[~masks[path]].mean()  # cells are darker than the stroma around
    assert trust.planted(replace(source, demo=False), checked.images) is None


def test_the_figure_shows_what_was_found(squares):
    found = examined(squares)
    texts = [text.get_text() for text in heatmaps.trust(found.facts, note="Demo images").findobj(Text)]
    areas = found.facts["perturbation"]["areas"]
    assert "Demo images" in texts
    for name in ("map", "random", "blob"):  # each curve has its area in the legend
        assert any(text.endswith(f"area {areas[name]['deletion']['value']:.3f}") for text in texts)
    unasked = {key: value for key, value in found.facts.items() if key != "localisation"}
    assert any("no masks" in text.get_text() for text in heatmaps.trust(unasked).findobj(Text))
