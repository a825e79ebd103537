"""Predictions: what the model says of every image, in order, untouched by how it was asked; and the colour baseline."""

import copy
import html
import json
import shutil
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn import metrics as sklearn_metrics
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from patholib.base import files
from patholib.base.errors import PathoError
from patholib.data.imagesets import ImageSet
from patholib.judge import (
    calibration,
    decisions,
    judging,
    metrics,
    novelty,
    predicting,
    ranking,
    rivals,
    sets,
    thresholds,
)
from patholib.model import augment, building, networks, recipes
from patholib.model.recipes import BREAKHIS

CLASSES = ("benign", "malignant")
RECIPE = replace(BREAKHIS, image_size=32)


@dataclass(frozen=True)
class Images:
    """The part of images.ImageSet that the colour baseline reads."""

    pixels: np.ndarray
    table: pd.DataFrame
    classes: tuple[str, ...]

    @property
    def labels(self):
        return np.array([self.classes.index(name) for name in self.table["label"]])

    def __len__(self):
        return len(self.table)


def image_set(n=13, size=36, seed=0, kind=Images):
    """Noise, but reddish where malignant; the rows lie in the cache backwards."""
    rng = np.random.default_rng(seed)
    malignant = rng.integers(0, 2, n)
    pixels = rng.integers(0, 200, (n, size, size, 3), dtype=np.uint8)
    pixels[..., 0] += (malignant * 40).astype(np.uint8)[:, None, None]
    split = np.array(["train"] * 6 + ["val", "test"] * 2)[np.arange(n) % 10]
    table = pd.DataFrame(
        {
            "path": [f"images/{i:03}.png" for i in range(n)],
            "label": [CLASSES[k] for k in malignant],
            "case": [f"{i // 2:04}" for i in range(n)],
            "group": [f"{i // 2:04}" for i in range(n)],
            "split": split,
            "row": np.arange(n)[::-1],
        }
    )
    return kind(pixels[::-1].copy(), table, CLASSES)


class Lopsided(nn.Module):
    """Not invariant to flips, with dropout and BatchNorm, so that modes and views matter."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(
            nn.Conv2d(3, 4, 5, stride=3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.5), nn.Linear(400, 2)
        )

    def forward(self, images):
        return self.net(images)


@pytest.fixture
def images():
    return image_set(kind=pytest.importorskip("patholib.data.imagesets").ImageSet)


def by_hand(model, images, views):
    """One image and one view after another, softmax in numpy."""
    model = model.eval()
    rows = []
    for row in images.table["row"]:
        pixels = images.pixels[row][2:34, 2:34].astype(np.float32) / 255  # the central 32 of 36
        found = []
        for view in views:
            with torch.no_grad():
                logits = model(torch.tensor(view(pixels).copy()).permute(2, 0, 1)[None]).numpy().astype(float)[0]
            found.append(np.exp(logits) / np.exp(logits).sum())
        rows.append(np.mean(found, axis=0))
    return np.stack(rows)


SYMMETRIES = (lambda x: x, lambda x: x[:, ::-1], lambda x: x[::-1], lambda x: x[::-1, ::-1], lambda x: np.rot90(x, 1))


# ---- predict --------------------------------------------------------------------------------------------------------


def test_a_prediction_is_the_softmax_of_the_plain_view_in_the_order_of_the_set(images):
    found = predicting.predict(Lopsided(), images, RECIPE, batch_size=4, progress=False)
    assert found.columns.tolist() == ["path", "label", "case", "group", "split", "p_benign", "p_malignant"]
    pd.testing.assert_frame_equal(found[found.columns[:5]], images.table.drop(columns="row"))
    probs = found[["p_benign", "p_malignant"]].to_numpy()
    np.testing.assert_allclose(probs, by_hand(Lopsided(), images, SYMMETRIES[:1]), atol=1e-6)
    np.testing.assert_allclose(probs.sum(axis=1), 1, atol=1e-15)
    assert metrics.summary(found, CLASSES, "malignant")["images"] == 13


def test_tta_is_the_mean_probability_of_the_symmetries(images):
    found = predicting.predict(Lopsided(), images, RECIPE, tta=True, progress=False)
    np.testing.assert_allclose(found[["p_benign", "p_malignant"]], by_hand(Lopsided(), images, SYMMETRIES), atol=1e-6)


@pytest.mark.parametrize("tta", ["dihedral", "random"])
def test_the_batch_size_changes_no_prediction(images, tta):
    recipe = replace(RECIPE, tta=tta)
    a, b = (
        predicting.predict(Lopsided(), images, recipe, tta=True, batch_size=size, progress=False) for size in (1, 64)
    )
    assert (a["p_malignant"] == b["p_malignant"]).all()  # each view is computed alone


def test_predicting_twice_gives_the_same_bits(images):
    a, b = (
        predicting.predict(Lopsided(), images, replace(RECIPE, tta="random"), tta=True, progress=False)
        for _ in range(2)
    )
    pd.testing.assert_frame_equal(a, b, check_exact=True)


def test_the_modes_of_every_module_are_put_back(images):
    model = Lopsided().train()
    model.net[1].eval()  # a frozen BatchNorm inside a model that trains
    before = [module.training for module in model.modules()]
    statistics = model.net[1].running_mean.clone()
    predicting.predict(model, images, RECIPE, progress=False)
    assert [module.training for module in model.modules()] == before
    assert torch.equal(model.net[1].running_mean, statistics)
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()


def test_the_caller_may_differentiate_after_predicting(images):
    model = Lopsided()
    predicting.logits(model, images, RECIPE)
    model(torch.rand(2, 3, 32, 32)).sum().backward()
    assert model.net[0].weight.grad is not None


def test_a_temperature_can_be_fitted_on_the_logits(images):
    temperature = torch.ones((), requires_grad=True)
    nn.functional.cross_entropy(
        predicting.logits(Lopsided(), images, RECIPE) * temperature, torch.tensor(images.labels)
    ).backward()
    assert temperature.grad is not None


def test_logits_are_those_behind_the_predictions(images):
    logits = predicting.logits(Lopsided(), images, RECIPE, batch_size=5)
    assert logits.shape == (13, 2)
    assert logits.dtype == torch.float32
    found = predicting.predict(Lopsided(), images, RECIPE, batch_size=5, progress=False)
    # Predictions are computed with BatchNorm folded away and one by one, as by the exported model.
    np.testing.assert_allclose(torch.softmax(logits.double(), 1), found[["p_benign", "p_malignant"]], atol=1e-6)


def test_bf16_stays_close_to_fp32(images):
    a, b = (predicting.predict(Lopsided(), images, RECIPE, precision=p, progress=False) for p in ("fp32", "bf16"))
    assert not a.equals(b)
    np.testing.assert_allclose(a["p_malignant"], b["p_malignant"], atol=0.02)


def test_an_output_that_is_not_finite_names_its_image_and_the_modes_come_back(images):
    class OneBad(Lopsided):
        def forward(self, pixels):
            logits = super().forward(pixels)
            logits[pixels.mean(dim=(1, 2, 3)) == means[5]] = float("nan")
            return logits

    from patholib.model import augment

    means = augment.plain_views(images.pixels[images.table["row"]], 32).mean(dim=(1, 2, 3))
    model = OneBad().train()
    with pytest.raises(PathoError, match=r"images/005\.png") as refusal:
        predicting.predict(model, images, RECIPE, batch_size=4, progress=False)
    assert refusal.value.code == "model_output"
    assert model.training


def test_an_empty_set_is_refused(images):
    with pytest.raises(PathoError) as refusal:
        predicting.predict(Lopsided(), replace(images, table=images.table[:0]), RECIPE, progress=False)
    assert refusal.value.code == "no_images"


# ---- files ----------------------------------------------------------------------------------------------------------


def some_predictions(n=20):
    rng = np.random.default_rng(0)
    p = rng.random(n) ** 20  # tiny ones, too
    return pd.DataFrame(
        {
            "path": [f"a, b/{i}\n.png" for i in range(n)],
            "label": [CLASSES[i % 2] for i in range(n)],
            "group": [f"{i:04}" for i in range(n)],
            "sex": ["", "NA", "None", "1e3"] * (n // 4),
            "p_benign": 1 - p,
            "p_malignant": p,
        }
    )


def test_predictions_read_back_to_the_last_bit(tmp_path):
    table = some_predictions()
    path = predicting.write_predictions(table, tmp_path / "predictions_test.csv")
    pd.testing.assert_frame_equal(predicting.read_predictions(path, CLASSES), table, check_exact=True)


@pytest.mark.parametrize(
    ("before", "after", "code"),
    [
        ("label", "lable", "csv_format"),
        ("p_benign", "p_bengin", "csv_format"),
        (",sex,", ",p_other,", "unknown_class"),
        ("0.9999", "0.4999", "bad_probabilities"),
        ("0.9999", "nan0.9", "csv_format"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path, before, after, code):
    path = predicting.write_predictions(some_predictions(), tmp_path / "predictions_test.csv")
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after))
    with pytest.raises(PathoError) as refusal:
        predicting.read_predictions(path, CLASSES)
    assert refusal.value.code == code


@pytest.mark.parametrize(
    ("content", "code"),
    [(None, "missing_file"), (b"", "csv_format"), (b"\xff\xfe", "csv_format"), (b'label,group,"p_', "csv_format")],
)
def test_what_is_no_table_is_refused(tmp_path, content, code):
    path = tmp_path / "predictions_test.csv"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(PathoError) as refusal:
        predicting.read_predictions(path, CLASSES)
    assert refusal.value.code == code


# ---- colour ---------------------------------------------------------------------------------------------------------


def test_colours_are_the_plain_statistics():
    from scipy import stats

    pixels = np.random.default_rng(0).gamma(2, 30, (40, 40, 3)).clip(0, 255).astype(np.uint8)
    pixels[..., 1] //= 2
    found = rivals.colours(pixels)
    flat = pixels.reshape(-1, 3).astype(float)
    assert found.shape == (57,)
    np.testing.assert_allclose(found[:3], flat.mean(axis=0))
    np.testing.assert_allclose(found[6:9], flat.std(axis=0))
    np.testing.assert_allclose(found[12:15], stats.skew(flat))
    np.testing.assert_array_equal(
        found[18:48].reshape(6, 5)[:3], np.quantile(flat, rivals.PERCENTILES, axis=0, method="inverted_cdf").T
    )
    border = np.ones((40, 40), dtype=bool)
    border[10:30, 10:30] = False
    np.testing.assert_allclose(found[48:51], pixels[~border].mean(axis=0) - pixels[border].mean(axis=0))
    np.testing.assert_allclose(found[54:], np.corrcoef(flat.T)[np.triu_indices(3, 1)], rtol=1e-4)


def test_colours_do_not_see_mirrors_and_turns():
    pixels = np.random.default_rng(1).integers(0, 256, (36, 36, 3), dtype=np.uint8)
    for view in SYMMETRIES:
        np.testing.assert_allclose(rivals.colours(view(pixels)), rivals.colours(pixels), rtol=1e-4, atol=1e-5)


def test_colours_of_a_blank_image_are_finite():
    assert np.isfinite(rivals.colours(np.full((8, 8, 3), 255, dtype=np.uint8))).all()


def test_two_reds_on_either_side_of_the_hue_seam_are_alike():
    orange, crimson = (np.full((8, 8, 3), c, dtype=np.uint8) for c in ((255, 8, 0), (255, 0, 8)))
    assert abs(rivals.colours(orange)[3] - rivals.colours(crimson)[3]) < 5


def test_never_looking_has_the_accuracy_of_the_commonest_training_class():
    images = replace(image_set(n=60), classes=("benign", "absent", "malignant"))
    train = images.table["split"] == "train"
    table = images.table.assign(label=images.table["label"].mask(train & (images.table.index > 9), "malignant"))
    found = rivals.constant_baseline(replace(images, table=table))
    assert found["path"].tolist() == images.table.loc[~train, "path"].tolist() and "row" not in found
    assert (found["p_malignant"] == 1).all() and (found[["p_benign", "p_absent"]] == 0).all(axis=None)
    numbers = metrics.summary(found, images.classes)["metrics"]
    assert numbers["accuracy"]["value"] == (found["label"] == "malignant").mean()
    assert numbers["balanced_accuracy"]["value"] == 0.5  # of the two classes that occur
    assert numbers["auc"]["value"] == 0.5
    with pytest.raises(PathoError) as refusal:
        rivals.constant_baseline(replace(images, table=images.table.drop(columns="split")))
    assert refusal.value.code == "no_split"


def test_the_colour_baseline_learns_colour_and_predicts_what_is_not_train():
    images = image_set(n=200)
    found = rivals.colour_baseline(images)
    chosen = images.table["split"] != "train"
    assert found.columns.tolist() == ["path", "label", "case", "group", "split", "p_benign", "p_malignant"]
    assert found["path"].tolist() == images.table.loc[chosen, "path"].tolist()
    assert metrics.summary(found, CLASSES, "malignant")["metrics"]["auc"]["value"] > 0.99


def test_the_colour_baseline_is_at_chance_on_shuffled_labels():
    images = image_set(n=600)
    table = images.table.assign(label=np.random.default_rng(3).permutation(images.table["label"]))
    found = metrics.summary(rivals.colour_baseline(replace(images, table=table)), CLASSES, "malignant")
    assert found["metrics"]["auc"]["low"] < 0.5 < found["metrics"]["auc"]["high"]


def test_the_colour_baseline_learns_nothing_from_test_labels():
    images = image_set(n=100)
    swapped = images.table.assign(
        label=images.table["label"].where(
            images.table["split"] != "test", images.table["label"].map(dict(zip(CLASSES, CLASSES[::-1], strict=True)))
        )
    )
    a, b = (rivals.colour_baseline(replace(images, table=t)) for t in (images.table, swapped))
    np.testing.assert_array_equal(a["p_malignant"], b["p_malignant"])


def test_the_penalty_of_the_colour_baseline_is_the_best_on_validation_images():
    images = image_set(n=200, size=8)
    noise = np.random.default_rng(0).normal(size=(200, 40))
    weak = noise + 0.4 * images.labels[:, None] * (np.arange(40) < 5)
    found = rivals._linear(weak, images)
    train, val = ((images.table["split"] == part).to_numpy() for part in ("train", "val"))
    by_strength = {}
    for strength in rivals.STRENGTHS:
        model = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=2000))
        probs = model.fit(weak[train], images.labels[train]).predict_proba(weak[val])
        by_strength[strength] = sklearn_metrics.log_loss(images.labels[val], probs)
    kept = found[found["split"] == "val"]
    least = sklearn_metrics.log_loss(kept["label"] == "malignant", kept["p_malignant"])
    assert least == pytest.approx(min(by_strength.values()))
    assert min(by_strength, key=by_strength.get) not in (1e-4, 1.0)  # and there was something to choose


def test_a_baseline_of_images_that_say_nothing_gives_the_share_of_the_class():
    images = image_set(n=1000, size=8)
    labels = np.where(np.random.default_rng(1).random(1000) < 0.1, "benign", "malignant")
    found = rivals.colour_baseline(replace(images, table=images.table.assign(label=labels)))
    assert found["p_malignant"].mean() == pytest.approx(0.9, abs=0.03)


def test_a_class_without_train_rows_gets_no_probability():
    images = replace(image_set(n=60), classes=("benign", "absent", "malignant"))
    found = rivals.colour_baseline(images)
    assert (found["p_absent"] == 0).all()
    np.testing.assert_allclose(found[["p_benign", "p_malignant"]].sum(axis=1), 1)


@pytest.fixture(scope="module")
def backbone():
    """An untrained network, whose random maps still tell bright from dark."""
    return building.build(replace(recipes.unfrozen(BREAKHIS), arch="resnet18", image_size=32)).train()


def test_a_probe_judges_the_rows_of_the_colour_baseline_and_leaves_the_network_as_it_was(backbone):
    images, before = image_set(n=120, kind=ImageSet), copy.deepcopy(backbone.state_dict())
    found = rivals.probe(backbone, images)
    pd.testing.assert_frame_equal(found.iloc[:, :5], rivals.colour_baseline(images).iloc[:, :5])
    assert metrics.summary(found, CLASSES, "malignant")["metrics"]["auc"]["value"] > 0.9
    assert backbone.training and all(torch.equal(v, before[k]) for k, v in backbone.state_dict().items())


def test_pooled_features_are_what_the_head_is_given(backbone):
    images, seen = image_set(n=5, kind=ImageSet), []
    hook = backbone.head.register_forward_pre_hook(lambda head, given: seen.append(given[0]))
    with torch.no_grad():
        networks.evaluating(backbone)(augment.plain_views(images.pictures, backbone.image_size))
    hook.remove()
    np.testing.assert_allclose(predicting.pooled(backbone, images, batch_size=2), seen[0].numpy(), rtol=1e-4, atol=1e-6)


def test_a_baseline_that_cannot_be_fitted_is_refused():
    images = image_set(n=40)
    for table, code in (
        (images.table.drop(columns="split"), "no_split"),
        (images.table.assign(split="train"), "single_class"),
        (images.table.assign(split=images.table["split"].replace("val", "test")), "single_class"),
        (images.table.assign(label="benign"), "single_class"),
    ):
        with pytest.raises(PathoError) as refusal:
            rivals.colour_baseline(replace(images, table=table))
        assert refusal.value.code == code


# --- judging ----------------------------------------------------------------------------------------------------------


def in_run(folder, recipe):
    """A run folder of this recipe, which is all that `lock` and `judge` go by."""
    files.write_json(folder / "run.json", {"recipe": recipe.to_json()})
    return folder


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    """A judged set of 240 images of 120 patients, at three sites of which the last has one patient and one class."""
    from patholib.data.imagesets import ImageSet

    images = image_set(n=240, kind=ImageSet)
    site = np.where(np.arange(240) % 3 == 0, "north", "south")
    last = images.table.index[images.table["split"] == "test"][-1]
    site[last] = "islet"
    images = replace(images, table=images.table.assign(site=site))
    folder = tmp_path_factory.mktemp("judged")
    recipe = replace(RECIPE, tta_views=3, balance="weights")
    files.write_json(folder / "run.json", {"recipe": recipe.to_json()})
    decisions.lock(Lopsided(), images, folder)
    found = judging.judge(Lopsided(), images, folder, rivals.colour_baseline(images), ("site",))
    return folder, images, found


def test_judging_writes_every_table_and_all_numbers_of_it(judged):
    folder, images, found = judged
    assert {path.name for path in folder.iterdir()} == {
        "metrics.json",
        "decision.json",
        "run.json",
        *(f"predictions_{name}.csv" for name in ("val", "val_tta", "test", "test_tta", "baseline")),
    }
    stored = files.read_json(folder / "metrics.json")
    assert stored == json.loads(json.dumps(found.metrics)) and set(stored) == {
        "val",
        "test",
        "test_tta",
        "baseline",
        "calibration",
        "decision",
        "tta_gain",
        "gain_over",
    }
    decision = files.read_json(folder / "decision.json")
    assert decision.pop("locked").endswith("Z")
    assert novelty.from_json(decision.pop("novelty")).trained == len(images.part("train"))  # in no second file
    assert stored["decision"] == decision
    for name, part in (("val", "val"), ("test", "test"), ("test_tta", "test"), ("baseline", "test")):
        table = decisions.calibrated(folder, name)
        assert list(table["path"]) == list(images.part(part).table["path"])
        numbers = metrics.summary(table, CLASSES, "malignant", stored[name]["threshold"])
        assert {key: stored[name][key] for key in numbers} == json.loads(json.dumps(numbers))
        assert (stored[name]["threshold"] == stored["decision"]["threshold"]) is (name in ("val", "test"))
    assert stored["test_tta"]["threshold"] == stored["decision"]["averaged"]["threshold"]


def test_the_files_hold_what_the_model_said_and_calibration_is_one_function_of_it(judged):
    folder, images, found = judged
    raw = predicting.read_predictions(folder / "predictions_test.csv", CLASSES)
    plain = predicting.predict(Lopsided(), images.part("test"), RECIPE, progress=False)
    np.testing.assert_allclose(raw["p_malignant"], plain["p_malignant"], atol=1e-6)
    columns = ["p_benign", "p_malignant"]
    decision = files.read_json(folder / "decision.json")
    warm = calibration.apply(raw[columns].to_numpy(), calibration.Calibration.of(decision, CLASSES))
    np.testing.assert_array_equal(found.probs, warm)
    np.testing.assert_array_equal(decisions.calibrated(folder, "test")[columns], warm)
    assert (raw[columns].to_numpy() != warm).any()


def test_the_decision_comes_from_validation_images_alone(judged, tmp_path):
    _, images, _ = judged
    other = images.table["label"].map(dict(zip(CLASSES, CLASSES[::-1], strict=True)))
    changed = replace(
        images, table=images.table.assign(label=images.table["label"].where(images.table["split"] != "test", other))
    )
    a, b = (
        decisions.lock(Lopsided(), those, in_run(tmp_path / name, RECIPE)).decision
        for those, name in ((images, "a"), (changed, "b"))
    )
    assert {k: v for k, v in a.items() if k != "locked"} == {k: v for k, v in b.items() if k != "locked"}


def test_the_threshold_is_the_largest_that_promises_the_target_or_reaches_it_on_the_groups(judged):
    folder, _, _ = judged
    decision, val = files.read_json(folder / "decision.json"), decisions.calibrated(folder, "val")
    ill = val[val["label"] == "malignant"]
    n = ill["group"].nunique()

    def loss(threshold):
        return (ill["p_malignant"] < threshold).groupby(ill["group"]).mean().mean()

    assert n >= 19 and decision["rule"] == "sensitivity >= 0.95 for new groups" and decision["notes"] == []
    at, above = decision["threshold"], np.nextafter(decision["threshold"], 1)
    assert (n * loss(at) + 1) / (n + 1) <= 0.05 + 1e-9 < (n * loss(above) + 1) / (n + 1)
    assert decision["promise"]["sensitivity"] == 0.95 and decision["target"] == {"sensitivity": 0.95}
    assert decision["promise"]["validation"]["value"] == pytest.approx(1 - loss(at))
    assert decision["validation"]["sensitivity"]["value"] == (ill["p_malignant"] >= at).mean()
    assert decision["threshold_interval"]["low"] <= at <= decision["threshold_interval"]["high"]
    assert decision["predictions_val_sha256"] == files.sha256(folder / "predictions_val.csv")


def test_with_few_groups_less_is_promised_and_the_note_says_what(judged):
    folder, _, _ = judged
    val = decisions.calibrated(folder, "val")
    few = decisions.choose(val[val["group"] < "0060"], CLASSES, "malignant")
    n = few["promise"]["groups"]
    assert n < 19 and few["promise"]["sensitivity"] == pytest.approx(0.95 * n / (n + 1))
    assert few["rule"] == "sensitivity >= 0.95 on the validation groups"
    assert f"images: {n}. So few cannot promise a sensitivity of 0.95" in few["notes"][0]


def test_a_locked_decision_fits_a_terminal_and_its_notes_stand_below_the_table(judged):
    folder, _, _ = judged
    val = decisions.calibrated(folder, "val")
    few = decisions.choose(val[val["group"] < "0060"], CLASSES, "malignant")
    found = decisions.Locked(few, val, RECIPE)
    lines = repr(found).splitlines()
    assert few["notes"] and max(map(len, lines)) <= 100 and lines[0].startswith("temperature ")
    table, _, below = found._repr_html_().partition("</table>")
    for note in few["notes"]:
        assert f"Note: {note}." in " ".join(lines).replace("  ", " ") and note in html.unescape(below)
        assert note not in html.unescape(table)


def test_patients_get_a_threshold_of_their_own_on_their_mean_probability(tmp_path):
    """The same rule, with a patient for an image. The test patients are decided by it, and an older run as it was."""
    images = image_set(n=400, kind=ImageSet)
    rank = images.table.groupby(["split", "label"]).cumcount()
    case = images.table["split"] + images.table["label"] + (rank // 4).astype(str)  # patients of four images
    images = replace(images, table=images.table.assign(case=case, group=case))
    decision = decisions.lock(Lopsided(), images, in_run(tmp_path, RECIPE)).decision
    found = judging.judge(Lopsided(), images, tmp_path)
    own, val = decision["patients"], decisions.calibrated(tmp_path, "val")
    assert own["column"] == "case" and own["threshold"] != decision["threshold"]
    ill = val[val["label"] == "malignant"].groupby("case")["p_malignant"].mean()
    chosen = thresholds.choose(np.ones(len(ill)), ill, ill.index, "malignant", 0.95, unit="patient", seed=RECIPE.seed)
    assert own["threshold"] == pytest.approx(chosen.threshold) and own["promise"]["groups"] == len(ill)
    assert own["validation"]["sensitivity"]["value"] == pytest.approx((ill >= chosen.threshold).mean())
    summary = found.summary["patients"]["summary"]
    assert summary["threshold"] == own["threshold"] and found.summary["threshold"] == decision["threshold"]
    patients = found.patients
    assert ((patients["decision"] == "malignant") == (patients["p_malignant"] >= own["threshold"])).all()
    older = {key: value for key, value in found.metrics["decision"].items() if key != "patients"}
    before = replace(found, metrics=found.metrics | {"decision": older}).patients
    assert ((before["decision"] == "malignant") == (before["p_malignant"] >= decision["threshold"])).all()
    assert (before["decision"] != patients["decision"]).any()
    pd.testing.assert_series_equal(before["score"], patients["score"])  # of images, at their own threshold
    rows = decisions.read_locked(tmp_path).table.table["locked"]
    assert rows["patient threshold"].startswith(f"p_malignant >= {own['threshold']:.4g}")
    assert rows["patient promise"] == own["promise"]["words"]


def test_no_test_image_is_looked_at_before_the_decision_is_locked(judged, tmp_path):
    _, images, _ = judged
    seen = []

    class Watching(Lopsided):
        def forward(self, pixels):
            seen.append(len(pixels))
            return super().forward(pixels)

    with pytest.raises(PathoError, match="not_locked"):
        judging.judge(Watching(), images, in_run(tmp_path, RECIPE))
    assert not seen and [path.name for path in tmp_path.iterdir()] == ["run.json"]


def test_once_test_images_were_judged_the_decision_stays(judged, tmp_path):
    folder, images, _ = judged
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    again = decisions.lock(Lopsided(), images, tmp_path)  # a finished notebook that is run again
    judging.judge(Lopsided(), images, tmp_path, rivals.colour_baseline(images), ("site",))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert again.decision == files.read_json(tmp_path / "decision.json")
    assert again.table.table.loc["threshold", "locked"].startswith(f"p_malignant >= {again.threshold:.4g} (")
    assert again.decision["rule"].replace(">", "&gt;") in again.table._repr_html_()
    other = Lopsided()
    with torch.no_grad():
        other.net[-1].bias[1] += 0.5
    for model, asked in ((Lopsided(), {"target_sensitivity": 0.9}), (Lopsided(), {"cost_ratio": 5}), (other, {})):
        with pytest.raises(PathoError, match="test_seen"):
            decisions.lock(model, images, tmp_path, **asked)
    (tmp_path / "decision.json").unlink()
    with pytest.raises(PathoError, match="test_seen"):
        decisions.lock(Lopsided(), images, tmp_path)
    assert (tmp_path / "predictions_val.csv").read_bytes() == before["predictions_val.csv"]


def test_before_test_images_are_judged_another_decision_may_be_locked(judged, tmp_path):
    _, images, _ = judged
    first = decisions.lock(Lopsided(), images, in_run(tmp_path, RECIPE)).decision
    second = decisions.lock(Lopsided(), images, tmp_path, target_sensitivity=0.5).decision
    assert second["threshold"] > first["threshold"] and decisions.locked(tmp_path) == second
    by_cost = decisions.lock(Lopsided(), images, tmp_path, cost_ratio=1000).decision
    assert by_cost["validation"]["sensitivity"]["value"] == 1 and by_cost["target"] == {"cost_ratio": 1000}
    assert by_cost["rule"] == "lowest cost on validation, a missed malignant counting 1000 false alarms"


def test_validation_predictions_that_were_changed_after_the_lock_are_noticed(judged, tmp_path):
    folder, images, _ = judged
    for name in ("decision.json", "predictions_val.csv", "run.json"):
        shutil.copy(folder / name, tmp_path)
    text = (tmp_path / "predictions_val.csv").read_text()
    files.write_text(tmp_path / "predictions_val.csv", text + text.splitlines()[-1] + "\n")
    for call in (
        lambda: judging.judge(Lopsided(), images, tmp_path),
        lambda: decisions.locked(tmp_path),
        lambda: decisions.calibrated(tmp_path, "val"),
    ):
        with pytest.raises(PathoError, match="val_changed"):
            call()
    files.write_json(tmp_path / "decision.json", [])
    with pytest.raises(PathoError, match="bad_decision"):
        decisions.locked(tmp_path)


def test_a_run_without_a_decision_has_the_temperature_one(judged, tmp_path):
    folder, _, _ = judged
    for name in ("predictions_test.csv", "run.json"):
        shutil.copy(folder / name, tmp_path)
    pd.testing.assert_frame_equal(
        decisions.calibrated(tmp_path, "test"), predicting.read_predictions(tmp_path / "predictions_test.csv", CLASSES)
    )


EIGHT = ("MEL", "NV", "BCC", "AK", "BKL", "DF", "VASC", "SCC")


def eight_classes(n=400, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.choice(8, n, p=[0.2, 0.5, *[0.05] * 6])
    logits = rng.normal(size=(n, 8)) + 2 * np.eye(8)[labels]
    probs = np.exp(4 * logits) / np.exp(4 * logits).sum(axis=1, keepdims=True)  # twice as sure as it may be
    table = pd.DataFrame(
        {
            "path": [f"{i}.jpg" for i in range(n)],
            "label": np.array(EIGHT)[labels],
            "group": [f"l{i // 2}" for i in range(n)],
        }
    )
    return predicting.with_probs(table, EIGHT, probs)


def test_of_more_classes_the_threshold_is_an_alert_and_the_largest_probability_decides():
    table = eight_classes()
    found = decisions.choose(table, EIGHT, "MEL")
    warm = decisions.with_calibration(table, EIGHT, found)
    reached = warm.loc[warm["label"] == "MEL", "p_MEL"] >= found["threshold"]
    assert reached.mean() >= 0.95 and found["threshold"] < 0.5 and found["temperature"] > 1.2
    alert = metrics.alert(warm, EIGHT, "MEL", found["threshold"])
    assert alert["sensitivity"]["value"] == found["validation"]["sensitivity"]["value"] == reached.mean()
    assert alert["positives"] == (table["label"] == "MEL").sum()
    by_largest = metrics.summary(warm, EIGHT, "MEL", found["threshold"])
    assert by_largest["decision"] == "largest probability" and by_largest["threshold"] is None


def test_shares_are_locked_beside_the_alert_and_decide_the_test(tmp_path, images):
    """The classes of the images are named MEL, NV, BCC; with three of them no threshold divides."""
    classes = ("BCC", "MEL", "NV")
    names = np.array(classes)[np.resize([0, 1, 2, 2], len(images))]
    images = replace(images, table=images.table.assign(label=names), classes=classes)
    recipe = replace(RECIPE, classes=classes, positive="MEL", balance="none", decide="even", tta_views=1)
    model = Lopsided()
    model.net[-1] = nn.Linear(400, 3)
    files.write_json(tmp_path / "run.json", {"recipe": recipe.to_json()})
    locked = decisions.lock(model, images, tmp_path)
    counts = images.part("train").table["label"].value_counts()
    assert locked.decision["shares"] == pytest.approx({name: counts[name] / counts.sum() for name in classes})
    assert locked.table.table.loc["predicted", "locked"] == "largest probability over the share of the class"
    judged = judging.judge(model, images, tmp_path, rivals.colour_baseline(images))
    shares = locked.decision["shares"]
    assert judged.threshold == files.read_json(tmp_path / "decision.json")["shares"] == shares
    baseline = decisions.calibrated(tmp_path, "baseline")  # which learnt the same shares, and decides by them too
    assert judged.metrics["gain_over"]["baseline"] == metrics.paired(judged.test, baseline, classes, "MEL", shares)
    even = judged.probs / [locked.decision["shares"][name] for name in classes]
    right = (even.argmax(axis=1) == judged.labels).mean()
    assert judged.summary["metrics"]["accuracy"]["value"] == pytest.approx(right)
    assert judged.summary["alert"]["threshold"] == locked.threshold
    again = decisions.lock(model, images, tmp_path)  # from the file, and equal
    assert again.decision == locked.decision
    with pytest.raises(PathoError, match="test_seen"):
        decisions.lock(model, images, in_run(tmp_path, replace(recipe, decide="likeliest")))


def test_an_older_decision_without_shares_goes_on_as_it_was():
    assert decisions.deciding({"threshold": 0.3}, CLASSES) == 0.3
    assert decisions.deciding({"threshold": 0.3}, EIGHT) == decisions.deciding(None, EIGHT) == 0.5
    assert decisions.deciding({"threshold": None, "shares": {"a": 1}}, EIGHT) == {"a": 1}


def test_without_a_class_to_watch_there_is_a_temperature_and_no_threshold():
    found = decisions.choose(eight_classes(), EIGHT, None)
    assert found["threshold"] is None and found["positive"] is None and found["rule"] == "largest probability"
    assert found["temperature"] > 1.2 and found["target"] == {} and found["validation"] == {}


def test_what_validation_images_cannot_tell_is_noted_and_left_alone():
    found = decisions.choose(some_predictions().assign(label="benign"), CLASSES, "malignant", correction=(2.0, 0.5))
    assert found["temperature"] == 1 and "bias" not in found  # the prior is known without them
    assert found["correction"] == {"benign": 2.0, "malignant": 0.5} and found["threshold"] == 0.5
    words = "cannot be fitted on images of one class", "no validation image is malignant"
    assert all(text in note for text, note in zip(words, found["notes"], strict=True))


def test_averaged_views_have_a_lock_of_their_own_fitted_on_averaged_validation_views(judged):
    folder, images, _ = judged
    decision, raw = files.read_json(folder / "decision.json"), predicting.read_predictions
    recipe = decisions.recipe_of(folder)
    mean = predicting.predict(Lopsided(), images.part("val"), recipe, tta=True, progress=False)
    val, ratios = raw(folder / "predictions_val_tta.csv", CLASSES), tuple(decision["correction"].values())
    np.testing.assert_allclose(val["p_benign"], mean["p_benign"], atol=1e-6)
    own = decisions.choose(val, CLASSES, "malignant", seed=recipe.seed, correction=ratios)
    at = decision["averaged"].pop("sets")["thresholds"]
    assert decision["averaged"] == json.loads(json.dumps(own))
    assert at == sets.chosen(decisions.with_calibration(val, CLASSES, own), CLASSES)["thresholds"]
    assert decision["averaged"]["temperature"] != decision["temperature"]
    test = raw(folder / "predictions_test_tta.csv", CLASSES)
    pd.testing.assert_frame_equal(
        decisions.calibrated(folder, "test_tta"), decisions.with_calibration(test, CLASSES, decision["averaged"])
    )
    stored = files.read_json(folder / "metrics.json")
    assert stored["calibration"]["test_tta"]["after"]["temperature"] == decision["averaged"]["temperature"]


def test_an_older_decision_without_averaged_views_goes_on_as_it_was_and_says_so(judged, tmp_path):
    folder, images, _ = judged
    for name in ("predictions_val.csv", "run.json"):
        shutil.copy(folder / name, tmp_path)
    decision = files.read_json(folder / "decision.json")
    older = {
        key: decision[key] for key in ("positive", "target", "validation", "rule", "notes", "predictions_val_sha256")
    }
    older |= {"format": 1, "temperature": 1.5, "threshold": 0.4}
    files.write_json(tmp_path / "decision.json", older)
    found = judging.judge(Lopsided(), images, tmp_path)
    raw = predicting.read_predictions(tmp_path / "predictions_test_tta.csv", CLASSES)
    warm = decisions.with_calibration(raw, CLASSES, {"temperature": 1.5})
    pd.testing.assert_frame_equal(decisions.calibrated(tmp_path, "test_tta"), warm)
    assert found.metrics["test_tta"]["threshold"] == 0.4
    assert decisions.PLAIN_LOCK in found.metrics["test_tta"]["notes"] and not found.metrics["test"]["notes"]


def test_data_of_the_patient_are_locked_and_judged_beside_the_image_alone(judged, tmp_path):
    folder, images, _ = judged
    recipe = decisions.recipe_of(folder)
    (tmp_path / "other").mkdir()
    with pytest.raises(PathoError, match="missing_column"):
        decisions.lock(Lopsided(), images, in_run(tmp_path / "other", recipe), patient=["age"])
    locked = decisions.lock(Lopsided(), images, in_run(tmp_path, recipe), patient=["site"]).decision
    before = files.read_json(folder / "decision.json")
    assert set(locked["patient"]["site"]) == {"north", "south"}  # of the validation images
    for name in ("temperature", "threshold", "sets", "patients"):
        assert locked["image_alone"][name] == before[name]
        assert locked["averaged"]["image_alone"][name] == before["averaged"][name]
    found = judging.judge(Lopsided(), images, tmp_path)
    assert found.metrics["image_alone"]["metrics"] == files.read_json(folder / "metrics.json")["test"]["metrics"]
    gain = found.metrics["gain_over"]["image_alone"]["log_loss"]["value"]
    both = [found.metrics[name]["metrics"]["log_loss"]["value"] for name in ("test", "image_alone")]
    assert gain == pytest.approx(both[0] - both[1]) and gain != 0
    assert not (tmp_path / "predictions_image_alone.csv").exists()
    with pytest.raises(PathoError, match="test_seen"):
        decisions.lock(Lopsided(), images, tmp_path)


def test_what_the_training_did_to_the_prior_is_locked_and_divided_out(images, tmp_path):
    for balance, divided in (("none", False), ("weights", True), ("sampler", True), ("logit_adjustment", True)):
        recipe = replace(RECIPE, balance=balance, tta_views=1)
        decision = decisions.lock(Lopsided(), images, in_run(tmp_path / balance, recipe)).decision
        assert ("correction" in decision) is divided, balance
        counts = images.part("train").table["label"].value_counts()
        if divided:
            own = {name: 0.5 / (counts[name] / counts.sum()) for name in CLASSES}
            assert decision["correction"] == pytest.approx(own)


@pytest.mark.parametrize(
    "asked",
    [
        {"target_sensitivity": 0},
        {"target_sensitivity": 1},
        {"target_sensitivity": 95},
        {"cost_ratio": 0},
        {"cost_ratio": float("inf")},
    ],
)
def test_a_target_that_nothing_can_show_is_refused(asked):
    with pytest.raises(PathoError, match="bad_parameter"):
        decisions.choose(some_predictions(), CLASSES, "malignant", **asked)


def test_the_baseline_gets_its_threshold_from_its_own_validation_images(judged):
    folder, images, found = judged
    baseline = rivals.colour_baseline(images)
    own = decisions.choose(baseline[baseline["split"] == "val"], CLASSES, "malignant", seed=RECIPE.seed)
    assert found.metrics["baseline"]["threshold"] == own["threshold"] != found.threshold
    kept = predicting.read_predictions(folder / "predictions_baseline.csv", CLASSES)
    test = baseline[baseline["split"] == "test"].reset_index(drop=True)
    np.testing.assert_array_equal(kept["p_malignant"], decisions.with_calibration(test, CLASSES, own)["p_malignant"])


def test_a_probe_is_judged_as_the_baseline_is_and_stands_beside_it(judged, backbone, tmp_path):
    before, images, found = judged
    shutil.copytree(before, tmp_path, dirs_exist_ok=True)
    probed = rivals.probe(backbone, images, device="cpu")
    again = judging.judge(Lopsided(), images, tmp_path, rivals.colour_baseline(images), ("site",), probed)
    own = decisions.choose(probed[probed["split"] == "val"], CLASSES, "malignant", seed=RECIPE.seed)
    assert again.metrics["probe"]["threshold"] == own["threshold"] != again.threshold
    test = probed[probed["split"] == "test"].reset_index(drop=True)
    kept = decisions.calibrated(tmp_path, "probe")  # its own temperature is in the file already
    np.testing.assert_array_equal(kept["p_malignant"], decisions.with_calibration(test, CLASSES, own)["p_malignant"])
    assert list(kept["path"]) == list(decisions.calibrated(tmp_path, "test")["path"])
    assert again.table.loc["AUC", "linear probe"] == metrics.readable(again.metrics["probe"]["metrics"]["auc"])
    gains = again.metrics["gain_over"]
    assert gains["probe"] == metrics.paired(
        decisions.calibrated(tmp_path, "test"), kept, CLASSES, "malignant", (again.threshold, own["threshold"])
    )
    less = {key: value for key, value in again.metrics.items() if key != "probe"}
    assert less | {"gain_over": {"baseline": gains["baseline"]}} == found.metrics  # and no more


def test_what_is_kept_beside_the_numbers_is_what_the_functions_give(judged):
    folder, _, found = judged
    test, tta = (decisions.calibrated(folder, name) for name in ("test", "test_tta"))
    stored = files.read_json(folder / "metrics.json")
    at = stored["decision"]["threshold"]
    assert stored["test"]["alert"] == metrics.alert(test, CLASSES, "malignant", at)
    assert stored["test"]["abstention"] == ranking.abstention(test, CLASSES, "malignant", at)
    assert stored["test"]["decision_curve"] == ranking.decision_curve(test, "malignant")
    both = stored["decision"]["averaged"]["threshold"], at
    assert stored["tta_gain"] == metrics.paired(tta, test, CLASSES, "malignant", both)
    assert set(stored["calibration"]) == {"val", "test", "test_tta"}
    before, after = (stored["calibration"]["val"][when] for when in ("before", "after"))
    assert after["log_loss"] <= before["log_loss"] and before["temperature"] == 1
    assert sum(row["n"] for row in after["bins"]) == stored["val"]["images"]
    assert found.calibration.loc[("val", "after"), "log loss"] == after["log_loss"]
    assert found.alert.iloc[0, 0] == metrics.readable(stored["test"]["alert"]["sensitivity"])
    assert found.gains.loc["AUC"].tolist() == [
        metrics.readable(gain["auc"], sign="+") for gain in (stored["tta_gain"], stored["gain_over"]["baseline"])
    ]
    assert list(found.gains) == ["averaged views minus one view", "this model minus colour statistics"]


def test_what_a_notebook_shows_of_it_are_the_numbers_of_the_file(judged):
    _, images, found = judged
    assert found.auc == found.summary["metrics"]["auc"]["value"]
    assert list(found.table) == ["validation", "test", "test, TTA", "colour baseline"]
    assert found.table.loc["AUC", "test"] == metrics.readable(found.summary["metrics"]["auc"])
    assert found.labels.tolist() == images.part("test").labels.tolist()
    assert found.probs.shape == (len(found.test), 2) and found.report.loc["malignant", "support"] == found.labels.sum()
    assert found.patients["images"].sum() <= len(found.test) and set(found.patients["patient"]) <= set(
        images.part("test").table["case"]
    )


def test_subgroups_are_text_with_intervals_that_says_what_is_too_small_or_undefined(judged):
    _, _, found = judged
    table = found.subgroups.set_index("value")
    assert list(table) == [
        "column",
        "images",
        "groups",
        "accuracy",
        "balanced_accuracy",
        "auc",
        "sensitivity",
        "specificity",
        "note",
    ]
    numbers = {row["value"]: row for row in found.summary["subgroups"]}
    assert isinstance(numbers["north"]["accuracy"], float) and numbers["islet"]["few"]
    part = found.test[found.test[numbers["north"]["column"]] == "north"]
    fewest = part.groupby("label")["group"].nunique().min()  # groups of the rarer class
    assert numbers["north"]["few"] == (fewest < 10)
    row = numbers["north"]
    assert table.loc["north", "accuracy"] == (
        f"{row['accuracy']:.2f} ({row['accuracy_low']:.2f} to {row['accuracy_high']:.2f})"
    )
    assert table.loc["islet", "auc"] == "undefined" and table.loc["islet", "accuracy"].endswith("(no interval)")
    assert "only 1 groups" in table.loc["islet", "note"] and "auc: only one class" in table.loc["islet", "note"]
    page, grey = found.shown_subgroups._repr_html_(), ' style="color: #76828f"'
    rows = [row.partition("</tr>")[0] for row in page.split(grey)[1:]]
    assert len(rows) == sum(row["few"] for row in numbers.values()) and any("<td>islet</td>" in row for row in rows)
    assert "..." not in page  # notes are long, and none is cut off
    assert "note" not in found.shown_subgroups.table  # each reason stands once, below
    assert page.replace(grey, "").count("<td>") == found.subgroups.drop(columns="note").size
    assert page.count("only one class among the labels") == 1  # of balanced accuracy and AUC


def test_without_subgroups_baseline_and_views_there_is_less_and_nothing_breaks(tmp_path):
    from patholib.data.imagesets import ImageSet

    recipe = replace(RECIPE, tta_views=1)
    decisions.lock(Lopsided(), image_set(n=60, kind=ImageSet), in_run(tmp_path, recipe))
    found = judging.judge(Lopsided(), image_set(n=60, kind=ImageSet), tmp_path)
    assert set(found.metrics) == {"val", "test", "calibration", "decision", "gain_over"} and found.gains.empty
    assert found.metrics["gain_over"] == {}
    assert list(found.table) == ["validation", "test"]
    assert found.subgroups.empty and found.summary["subgroups"] == []
