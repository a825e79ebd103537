import copy
import os
from dataclasses import replace
from pathlib import Path

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

pytestmark = pytest.mark.heavy

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
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # what so small a network learns to look at hangs on the last digits
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
        torch.set_num_threads(threads)
        assert loss < 0.1
        yield untrained.eval(), model.eval()


def predicted(tiles, p=0.9):
    return tiles.table.drop(columns="row").assign(p_none=1 - p, p_red=p)


def examined(squares, model=None, **options):
    tiles, masks = squares
    return trust.examine(model or Red().eval(), tiles, predicted(tiles), masks=masks, positive="red", **options)


def states(found):
    return {name: check["state"] for name, check in found.facts["checks"].items()}


@pytest.fixture
def edges(monkeypatch):
    """A method that knows the image and not the model."""

    def drawn_edges(model, views, classes, block):
        maps = torch.stack([torch.hypot(*torch.gradient(view.mean(0))) for view in views])
        return gradcam.Heat(maps, torch.as_tensor(classes), torch.full((len(maps), 2), 0.5), maps.amax((1, 2)) == 0)

    monkeypatch.setitem(gradcam.METHODS, "edges", drawn_edges)


# --- the verdict ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", gradcam.METHODS)
def test_maps_of_a_network_whose_evidence_is_known_are_supported(squares, method):
    found = examined(squares, method=method)
    assert found.trusted and found.state == "supported" and not found.reasons, found
    assert (found.facts["images"], found.facts["groups"], found.facts["of"]) == (COUNT, COUNT, "red")
    assert list(states(found)) == list(trust.CLAIMS)
    assert all(check["number"]["low"] > 0 for check in found.facts["checks"].values())


def test_averaged_maps_are_checked_the_same(squares):
    found = examined(squares, average=True, count=12)
    assert found.trusted, found
    assert found.facts["method"] == "gradcam, mean of eight views"


def test_maps_of_a_network_are_supported_once_it_has_learnt_the_cue_and_not_before(squares, small):
    untrained, trained = (examined(squares, model) for model in small)
    assert untrained.state != "supported" and trained.state == "supported", (untrained, trained)
    assert states(untrained)["faithful"] != "supported" != states(untrained)["located"]
    assert "+0.000 (" not in untrained.facts["checks"]["faithful"]["found"]  # a rank has no interval of width 0
    assert len(untrained.reasons) == len([state for state in states(untrained).values() if state != "supported"])


def test_a_map_that_ignores_the_weights_is_refuted(squares, edges, small):
    for model in (Red().eval(), small[1]):
        found = examined(squares, model, method="edges")
        assert found.state == "refuted" == states(found)["sensitive"], found


def test_maps_of_other_images_are_not_supported(squares, monkeypatch):
    def moved(*arguments):
        heat = gradcam.gradcam(*arguments)
        return replace(heat, maps=heat.maps.roll(1, 0))  # every image gets the map of its neighbour in the batch

    monkeypatch.setitem(gradcam.METHODS, "moved", moved)
    found = states(examined(squares, method="moved"))
    assert found["specific"] != "supported" != found["located"]


def test_a_wrong_mask_is_refuted_and_the_right_one_supported(squares):
    tiles, masks = squares
    wrong = {path: np.roll(mask, (3 * CELL, 2 * CELL), (0, 1)) for path, mask in masks.items()}
    found = examined((tiles, wrong))
    assert found.state == "refuted" == states(found)["located"]
    assert set(states(found).values()) == {"supported", "refuted"} and len(found.reasons) == 1


def test_a_network_without_evidence_has_blank_maps_that_show_nothing(squares):
    silent = Red().eval()
    with torch.no_grad():
        silent.head.weight.zero_()
    found = examined(squares, silent)
    assert set(states(found).values()) == {"not shown"} and found.facts["blank"] == COUNT
    assert "20 of the 20 maps are blank" in found.verdict and heatmaps.trust(found.facts).axes


def test_too_few_patients_show_nothing(squares):
    tiles, masks = squares
    groups = [f"p{i % (trust.FEWEST - 1)}" for i in range(COUNT)]
    few = replace(tiles, table=tiles.table.assign(group=groups))
    found = examined((few, masks))
    assert found.state == "not shown" and not found.facts["checks"] and f"{trust.FEWEST} groups" in found.verdict


def test_more_images_are_looked_at_only_where_the_first_decide_nothing(squares, monkeypatch):
    monkeypatch.setattr(trust, "FIRST", 8)
    sure = examined(squares)
    assert sure.trusted and sure.facts["images"] == 8
    assert {name: c["level"] for name, c in sure.facts["checks"].items() if name == "stable"} == {"stable": 0.975}
    silent = Red().eval()
    with torch.no_grad():
        silent.head.weight.zero_()
    assert examined(squares, silent).facts["images"] == COUNT


def test_no_map_is_computed_twice_and_a_second_look_gives_what_one_look_would(squares, small, monkeypatch):
    def looked(first):
        counted = []

        def method(model, views, *rest):
            counted.append(len(views))
            return gradcam.gradcam(model, views, *rest)

        monkeypatch.setitem(gradcam.METHODS, "counted", method)
        monkeypatch.setattr(trust, "FIRST", first)
        monkeypatch.setattr(heatchecks, "NETWORKS", 2)
        return examined(squares, small[0], method="counted").facts["checks"], sum(counted)

    (once, maps), (twice, maps_again) = looked(COUNT), looked(8)
    assert {check["level"] for check in twice.values()} == {0.975, 0.95} != {check["level"] for check in once.values()}
    assert maps_again == maps and maps >= COUNT * 4 + 2 * trust.FEW  # as they are, thrice changed, and of two networks
    for name, check in once.items():
        assert check["number"]["value"] == pytest.approx(twice[name]["number"]["value"], abs=1e-6), name


def test_networks_are_asked_no_more_once_the_rank_is_known(squares, small, monkeypatch):
    """A gain between those of two networks is at neither end, whatever others have."""
    asked = []
    of = heatchecks.gain
    monkeypatch.setattr(heatchecks, "gain", lambda model, *rest: asked.append(model) or of(model, *rest))
    for model, state in zip(small, (False, True), strict=True):
        asked.clear()
        found = examined(squares, model)
        assert (len({id(one) for one in asked}) == heatchecks.NETWORKS + 1) == state
        assert (states(found)["faithful"] == "supported") == state


def test_without_masks_it_is_said_that_the_place_was_not_checked(squares):
    tiles, _ = squares
    found = trust.examine(Red().eval(), tiles, predicted(tiles), positive="red", count=8)
    assert "located" not in found.facts["checks"] and found.facts["groups"] == 8
    assert "Without masks" in found.verdict and "Without masks" not in examined(squares).verdict


def test_only_images_predicted_positive_are_checked_and_without_any_it_is_said(squares):
    tiles, masks = squares
    table = predicted(tiles)
    table.loc[:15, ["p_none", "p_red"]] = [0.9, 0.1]
    found = trust.examine(Red().eval(), tiles, table, masks=masks, positive="red")
    assert found.facts["images"] == COUNT - 16 and found.state == "not shown"
    none = trust.examine(Red().eval(), tiles, predicted(tiles, 0.1), masks=masks, positive="red")
    assert none.state == "not shown" and none.facts["checks"] == {} and "no image is predicted as red" in none.verdict
    assert none.table.empty and heatmaps.trust(none.facts).axes == []
    whole = trust.examine(
        Red().eval(), tiles, predicted(tiles, 0.1), masks=masks, positive="red", threshold=0.05, count=8
    )
    assert whole.facts["images"] == 8  # by the threshold all are predicted red


def test_the_network_and_the_random_numbers_are_left_as_they_were(squares):
    model = Red().train()
    before, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    examined(squares, model, count=8)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(module.training for module in model.modules()) and torch.equal(torch.get_rng_state(), random)


def test_it_is_kept_in_the_run_folder_and_read_back_and_twice_the_same(squares, tmp_path):
    class Run:
        dir = tmp_path

    found = examined(squares, run=Run)
    assert trust.read(tmp_path).facts == files.read_json(tmp_path / "trust.json") == found.facts
    assert examined(squares).facts == found.facts
    assert list(found.table.columns) == ["check", "images", "value", "required", "result"]
    assert list(found.table["images"]) == ["20", "12", "20", "12", "20"]
    assert set(found.table["result"]) == {"supported"}


def test_the_verdict_of_an_old_run_is_read_as_it_was_written():
    old = trust.read(Path(__file__).parents[1] / "fixtures" / "run-0.1.0")
    assert old.verdict.startswith("Do NOT trust") and old.state == "not shown" and not old.trusted
    assert list(old.table["result"]) == ["failed"] and heatmaps.trust(old.facts).axes == []
    assert trust.Trust({"verdict": "All passed", "reasons": [], "checks": {}}).state == "supported"


def test_the_verdict_is_only_of_maps_that_were_made_alike(squares):
    facts = examined(squares).facts
    assert trust.about(facts, "red", "red", "stem") == facts["verdict"]
    assert trust.covering(facts, "stem", "gradcam") is facts and trust.covering(facts, "stem", "hirescam") is None
    for other in (("red", "none", "stem"), ("none", "none", "stem"), ("red", "red", "head")):
        assert trust.about(facts, *other).startswith("Not checked for this heatmap")
    assert trust.about(None, "red", "red", "stem") == trust.NOT_CHECKED


def test_images_and_predictions_in_another_order_are_refused(squares):
    tiles, masks = squares
    with pytest.raises(PathoError, match="bad_order"):
        trust.examine(Red().eval(), tiles, predicted(tiles).iloc[::-1])
    with pytest.raises(PathoError, match="no_masks"):
        trust.examine(Red().eval(), tiles, predicted(tiles), masks={"other.png": masks["0.png"]})


# --- its parts --------------------------------------------------------------------------------------------------------


def test_likeness_is_spearmans_correlation_with_ties():
    rng = np.random.default_rng(1)
    a, b = rng.integers(0, 4, (3, 12, 12)).astype(float), rng.random((2, 12, 12))
    inside = slice(heatchecks.EDGE, -heatchecks.EDGE)
    x, y = (maps[:, inside, inside].reshape(len(maps), -1) for maps in (a, b))
    truth = [[scipy.stats.spearmanr(one, two).statistic for two in y] for one in x]
    assert heatchecks.likeness(a, b) == pytest.approx(np.array(truth))
    assert heatchecks.likeness(np.zeros((1, 12, 12)), b).tolist() == [[0, 0]]


def test_the_share_of_the_heat_on_a_mask_worked_by_hand():
    heat = np.array([[[3.0, 1], [0, 0]], [[0, 0], [0, 2]], [[0, 0], [0, 0]]])
    masks = np.array([[1, 0, 1, 0], [0, 1, 0, 1]], bool)
    assert heatchecks.energy(heat, masks).tolist() == [[0.75, 0.25], [0, 1], [0, 0]]


def test_a_map_is_compared_with_those_of_other_groups_alone():
    values = np.array([[5.0, 1, 2], [9, 6, np.nan], [3, 4, 7]])
    own, others = heatchecks.own_and_others(values, np.array(["a", "a", "b"]))
    assert own.tolist() == [5, 6, 7] and others.tolist() == [3, 4, 2]
    assert np.isnan(heatchecks.own_and_others(values, np.array(["a"] * 3))[1]).all()


def test_the_mean_over_groups_has_students_interval():
    differences, groups = np.array([1.0, 3, 4, 4, 5, 6, 7, np.nan]), list("aabcdefg")
    found, means = trust.over_groups(differences, groups), [2, 4, 4, 5, 6, 7]
    truth = scipy.stats.ttest_1samp(means, 0).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((truth.low, truth.high)) and found.value == np.mean(means)
    assert trust.decided(found) == "supported" and trust.decided(trust.over_groups(-differences, groups)) == "refuted"
    assert trust.decided(trust.over_groups(differences[:4], groups[:4])) == "not shown"  # three groups
    wide = trust.over_groups(differences, groups, 0.99)
    assert wide.low == pytest.approx(scipy.stats.ttest_1samp(means, 0).confidence_interval(0.99).low)


def test_where_all_patients_agree_to_the_last_digit_their_side_decides():
    """As of six or more, all on one side, which is no chance."""
    for difference, state in ((0.0, "not shown"), (0.3, "supported"), (-0.3, "refuted")):
        found = trust.over_groups(np.full(8, difference), list("aabcdefg"))
        assert found.low == found.high == found.value and trust.decided(found) == state


# --- how often a check without truth in it is supported -------------------------------------------------------------


@pytest.mark.parametrize("patients", [6, 8, 20])
def test_maps_that_know_nothing_of_their_image_are_supported_in_at_most_5_of_100_studies(patients):
    """Maps and masks are blobs at random places, alike within a patient; some maps are blank, masks differ in size."""
    rng, grid = np.random.default_rng(patients), np.arange(16)
    groups = np.repeat(np.arange(patients).astype(str), rng.integers(1, 4, patients))

    def blobs(width):
        place = rng.integers(0, 16, (patients, 2))[np.unique(groups, return_inverse=True)[1]]
        y, x = (place + rng.normal(0, 2, (len(groups), 2))).T[:, :, None]
        away = ((grid - y)[:, :, None] ** 2 + (grid - x)[:, None, :] ** 2) / width[:, None, None] ** 2
        return np.exp(-away / 2)

    results = []
    for _ in range(500):
        maps = blobs(rng.uniform(1, 5, len(groups))) * (rng.random(len(groups)) > 0.1)[:, None, None]
        masks = (blobs(rng.uniform(1, 5, len(groups))) > 0.5).reshape(len(groups), -1)
        own, others = heatchecks.own_and_others(heatchecks.energy(maps, masks), groups)
        results.append(trust.decided(trust.over_groups(own - others, groups)))
    assert results.count("supported") <= 25, results.count("supported")


def test_a_network_that_learnt_nothing_is_supported_in_at_most_5_of_100_studies():
    """Its gain and those of 19 others, which differ as much, on 12 images that differ little: the worst case."""
    rng, results = np.random.default_rng(0), []
    for _ in range(1000):
        gains = rng.standard_t(2, (heatchecks.NETWORKS + 1, 1)) + 0.01 * rng.normal(size=(heatchecks.NETWORKS + 1, 12))
        null = heatchecks.beyond(gains[0], gains[1:])
        results.append(trust.decided(trust.over_groups(gains[0] - null, np.arange(12))))
    assert 30 <= results.count("supported") <= 65 and 30 <= results.count("refuted") <= 65


def test_two_looks_share_the_error_of_one(squares):
    """Differences of 128 patients around 0, looked at after 32 and at the end."""
    rng, supported = np.random.default_rng(0), 0
    for _ in range(1000):
        values = rng.normal(size=trust.MOST)
        looks = [trust.over_groups(values[:n], np.arange(n), 0.975) for n in (trust.FIRST, trust.MOST)]
        supported += any(trust.decided(look) == "supported" for look in looks)
    assert supported <= 40


def test_ranks_are_a_permutation_hottest_first():
    maps = np.array([[[0.5, 0.0], [0.9, 0.0]]])
    places = heatchecks.ranks(maps)[0]
    assert places[1, 0] == 0 and places[0, 0] == 0.25 and sorted(places.ravel()) == [0, 0.25, 0.5, 0.75]


def test_the_gain_of_known_curves(squares):
    """The square is 1.6 % of the image: gone with the first share, there with the first share."""
    tiles, masks = squares
    views, inside = augment.plain_views(tiles.pixels, SIDE), np.stack(list(masks.values())).astype(float)
    classes = torch.ones(COUNT, dtype=torch.long)
    best, worst = (heatchecks.gain(Red().eval(), views, maps, classes) for maps in (inside, 1 - inside))
    assert best.min() > 0.7 and worst.max() < 0  # the blurred copy of the square is still a little red
    assert heatchecks.gain(Red().eval(), views, np.zeros_like(inside), 1 - classes).shape == (COUNT,)


def test_a_map_that_moves_with_the_picture_is_stable_and_one_that_stays_is_not(squares, monkeypatch):
    def brightness(model, views, classes, block):
        maps = views.mean(dim=1)
        return gradcam.Heat(maps, torch.as_tensor(classes), torch.full((len(maps), 2), 0.5), maps.amax((1, 2)) == 0)

    def fixed(model, views, classes, block):
        return replace(brightness(model, views, classes, block), maps=still.expand(len(views), SIDE, SIDE))

    still = torch.rand(SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    monkeypatch.setitem(gradcam.METHODS, "brightness", brightness)
    monkeypatch.setitem(gradcam.METHODS, "fixed", fixed)
    assert states(examined(squares, method="brightness"))["stable"] == "supported"
    assert set(states(examined(squares, method="fixed")).values()) <= {"not shown", "refuted"}


def test_images_come_from_as_many_groups_and_classes_as_there_are():
    table = pd.DataFrame(
        {"path": list("abcdefgh"), "group": list("11112234"), "predicted": ["x"] * 4 + ["x", "x", "y", "y"]}
    )
    assert list(trust._spread(table, 4)["path"]) == ["a", "g", "e", "h"]
    assert len(trust._spread(table, 99)) == 8


def test_shuffled_weights_are_the_same_numbers_in_other_places_and_the_outputs_stay_alive(squares, small):
    views = augment.plain_views(squares[0].pixels, SIDE)
    before = copy.deepcopy(small[1].state_dict())
    other = heatchecks.shuffled(small[1], views, seed=0)
    for (name, a), b in zip(small[1].named_parameters(), other.parameters(), strict=True):
        assert torch.equal(a.flatten().sort().values, b.flatten().sort().values), name
        assert a.numel() < 20 or not torch.equal(a, b), name
    assert all(torch.equal(value, before[name]) for name, value in small[1].state_dict().items())
    assert not any(module.training for module in other.modules())
    with torch.no_grad():
        assert other(views).std(dim=0).min() > 1e-3  # the images still make a difference


def test_on_real_lesions_the_maps_of_a_network_of_darkness_lie_on_their_outline_and_not_on_that_of_another():
    """Lesions are darker than the skin around them, and the logit of this network grows with every dark cell."""
    folder = os.environ.get("PATHOLIB_REAL_DATA")
    if not folder:
        pytest.skip("PATHOLIB_REAL_DATA is unset: no real lesions")
    outlines = sorted((Path(folder) / "isic_masks").glob("*_segmentation.png"))[:40]
    names = [path.name.removesuffix("_segmentation.png") for path in outlines]
    pixels = np.stack([decoding.to_square(decoding.read(outlines[0].parent / f"{n}.jpg"), SIDE, "crop") for n in names])
    masks = trust.squares(dict(zip(names, outlines, strict=True)), SIDE)
    table = pd.DataFrame({"path": names, "label": "red", "group": names, "row": np.arange(len(names))})
    dark = Red().eval()
    with torch.no_grad():
        dark.conv.weight[0], dark.conv.bias[0] = -1 / (3 * CELL**2), 0.6
    right = examined((ImageSet(pixels, table, CLASSES), masks), dark)
    assert states(right)["located"] == states(right)["stable"] == states(right)["sensitive"] == "supported", right
    others = dict(zip(names, [*list(masks.values())[1:], masks[names[0]]], strict=True))
    assert states(examined((ImageSet(pixels, table, CLASSES), others), dark))["located"] != "supported"


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


def test_the_figure_shows_every_check_with_its_state(squares):
    found = examined(squares)
    texts = [text.get_text() for text in heatmaps.trust(found.facts, note="Demo images").findobj(Text)]
    assert "Demo images" in texts and any("5 of 5 checks hold" in text for text in texts)
    for check in found.facts["checks"].values():
        assert f"{check['asked']}: supported" in texts
