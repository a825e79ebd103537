"""A model at work gives the probabilities of its training, whatever computes them."""

import dataclasses
import importlib
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from samples import encoded, picture
from tiny import TINY, image_set

import patholib
from patholib.base import files
from patholib.base.errors import PathoError
from patholib.deploy import export, inference, onnx_export
from patholib.judge import calibration, gradcam, novelty, predicting, resampled, trust
from patholib.model import architectures, augment, building, folding

onnx = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("onnxruntime", "onnxscript")),
    reason="the extra onnx is not installed",
)


pytestmark = [pytest.mark.heavy, pytest.mark.usefixtures("small_network")]


def trained(recipe=TINY):
    """A model with statistics as after a training."""
    model, generator = building.build(recipe), torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_(0, 0.1, generator=generator)
            module.running_var.uniform_(0.5, 2.0, generator=generator)
            module.weight.data.uniform_(0.5, 1.5, generator=generator)
    return model


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A model exported, with its ONNX form where that can be made."""
    folder, model = tmp_path_factory.mktemp("exported"), trained()
    export.save_model(folder, model.state_dict(), TINY, run="tiny")
    if importlib.util.find_spec("onnxruntime") and importlib.util.find_spec("onnxscript"):
        onnx_export.to_onnx(folder, augment.plain_views(image_set().pictures[:4], TINY.image_size))
    return folder, model.eval()


@pytest.mark.parametrize("engine", ["torch", pytest.param("onnx", marks=onnx)])
@pytest.mark.parametrize("tta", [False, True])
@pytest.mark.parametrize("count", [1, 7])
def test_every_engine_gives_the_probabilities_of_evaluation(exported, engine, tta, count):
    folder, model = exported
    predictor = inference.Predictor(folder, engine)
    own = image_set(train=0, val=count)
    expected = predicting.predict(model, own, TINY, tta=tta, progress=False)[[f"p_{c}" for c in TINY.classes]]
    found = predictor.probabilities(own.pictures, tta)
    assert predictor.engine == engine and found.shape == (count, 2) and found.dtype == np.float64
    assert np.abs(found - expected.to_numpy()).max() <= (1e-4 if engine == "onnx" else 0)
    assert np.allclose(found.sum(axis=1), 1, atol=1e-12)


@pytest.mark.parametrize("tta", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 1.73])
@pytest.mark.parametrize("classes", [("benign", "malignant"), tuple(f"{i}" for i in range(8))])
def test_the_notebooks_answer_is_this_answer_to_the_last_bit(tmp_path, tta, temperature, classes):
    """`evaluation.predict` and `calibration.apply`, as in the notebook with the trained model, against the export."""
    recipe = replace(TINY, classes=classes, positive=classes[1])
    model, own = trained(recipe), replace(image_set(train=0, val=9), classes=classes)
    own = replace(own, table=own.table.assign(label=classes[0]))
    export.save_model(tmp_path, model.state_dict(), recipe, temperature=temperature)
    table = predicting.predict(model, own, recipe, tta=tta, batch_size=4, progress=False)
    raw = table[[f"p_{c}" for c in classes]].to_numpy()
    predictor = inference.Predictor(tmp_path, "torch")
    found = predictor.probabilities(own.pictures, tta)
    assert (found == calibration.apply(raw, calibration.Calibration(temperature))).all()
    assert (found == raw).all() == (temperature == 1)
    assert [list(answer.probs.values()) for answer in predictor.answers(own.pictures, tta)] == found.tolist()


LARGE = set(architectures.NETWORKS) - {"resnet18", "efficientnet_b0", "efficientnet_lite0"}  # long to write as ONNX


@pytest.mark.parametrize("engine", ["torch", pytest.param("onnx", marks=onnx)])
@pytest.mark.parametrize(
    "arch", [pytest.param(arch, marks=pytest.mark.slow if arch in LARGE else ()) for arch in architectures.NETWORKS]
)
def test_an_answer_depends_on_no_other_picture_in_the_batch(tmp_path, engine, arch):
    recipe = replace(TINY, arch=arch)
    export.save_model(tmp_path, trained(recipe).state_dict(), recipe, temperature=1.3)
    if engine == "onnx":
        onnx_export.to_onnx(tmp_path)
    predictor, pictures = inference.Predictor(tmp_path, engine), image_set(train=0, val=8).pictures
    for tta in (False, True):
        together = predictor.probabilities(pictures, tta)
        assert (together[::-1] == predictor.probabilities(pictures[::-1], tta)).all()
        assert (together == np.concatenate([predictor.probabilities(p[None], tta) for p in pictures])).all()


def test_many_threads_ask_one_predictor_and_get_what_each_would_get_alone(exported):
    predictor, pictures = inference.Predictor(exported[0], "torch"), image_set(train=0, val=24).pictures
    expected, maps = predictor.probabilities(pictures), predictor.heat(pictures).maps
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda p: (predictor.probabilities(p[None]), predictor.heat(p[None]).maps), pictures))
    assert (np.concatenate([probs for probs, _ in found]) == expected).all()
    assert np.abs(np.concatenate([heat for _, heat in found]) - maps.numpy()).max() < 1e-6
    assert all(parameter.grad is None for parameter in predictor.model.parameters())


@onnx
def test_heat_is_pytorchs_whatever_computes_the_probabilities(exported):
    pictures = image_set(train=0, val=3).pictures
    maps = [inference.Predictor(exported[0], engine).heat(pictures, [0, 1, 0]).maps for engine in ("onnx", "torch")]
    assert torch.equal(*maps) and maps[0].shape[0] == 3


# ------------------------------------------------------------------------------------------------------- decisions


def predictor_of(folder, recipe=TINY, probs=None, **facts):
    """A predictor whose model says `probs` of every picture, whatever it sees."""
    export.save_model(folder, trained(recipe).state_dict(), recipe, **facts)
    predictor = inference.Predictor(folder, "torch")
    if probs is not None:
        predictor._logits = lambda views: np.log(np.tile(np.float32(probs), (len(views), 1)))
    return predictor


PICTURE = image_set(train=0, val=1).pictures[0]


@pytest.mark.parametrize(
    ("threshold", "malignant", "decision"),
    [
        (None, 0.5, "malignant"),
        (None, 0.49, "benign"),
        (0.3, 0.31, "malignant"),
        (0.3, 0.29, "benign"),
        (0.9, 0.89, "benign"),
        (0.0, 0.0001, "malignant"),
    ],
)
def test_two_classes_are_told_apart_at_the_locked_threshold(tmp_path, threshold, malignant, decision):
    predictor = predictor_of(tmp_path, probs=[1 - malignant, malignant], threshold=threshold)
    answer = predictor.answer(PICTURE)
    assert (answer.decision, answer.threshold, answer.alert) == (decision, threshold, None)
    table = pd.DataFrame([{"label": "benign", "group": "1"} | {f"p_{c}": p for c, p in answer.probs.items()}])
    assert resampled.decide(table, TINY.classes, "malignant", 0.5 if threshold is None else threshold) == [decision]


def test_of_more_classes_the_largest_probability_decides_and_the_threshold_alerts(tmp_path):
    recipe = replace(TINY, classes=("MEL", "NV", "BCC"), positive="MEL")
    for i, (mel, alert) in enumerate(((0.05, False), (0.15, True))):
        predictor = predictor_of(tmp_path / str(i), recipe, [mel, 0.6, 0.4 - mel], threshold=0.1)
        answer = predictor.answer(PICTURE)
        assert (answer.decision, answer.alert) == ("NV", alert)
    without = predictor_of(tmp_path / "none", replace(recipe, positive=None), [0.2, 0.5, 0.3])
    assert (without.answer(PICTURE).decision, without.answer(PICTURE).alert) == ("NV", None)


def test_with_locked_shares_the_probability_over_the_share_decides(tmp_path):
    recipe = replace(TINY, classes=("MEL", "NV", "BCC"), positive="MEL")
    decision = {"temperature": 1.0, "threshold": 0.5, "positive": "MEL", "shares": {"MEL": 0.1, "NV": 0.7, "BCC": 0.2}}
    predictor = predictor_of(tmp_path, recipe, [0.15, 0.55, 0.3], decision=decision)
    answer = predictor.answer(PICTURE)  # over the shares 1.5, 0.79, 1.5: of equal ones, but for rounding, one of them
    assert answer.decision in ("MEL", "BCC") and answer.alert is False
    assert predictor_of(tmp_path, recipe, [0.2, 0.6, 0.2], decision=decision).answer(PICTURE).decision == "MEL"
    del decision["shares"]
    assert predictor_of(tmp_path, recipe, [0.2, 0.6, 0.2], decision=decision).answer(PICTURE).decision == "NV"


def test_the_threshold_is_compared_with_the_calibrated_probability(tmp_path):
    predictor = predictor_of(tmp_path, probs=[0.8, 0.2], temperature=2.0, threshold=0.3)
    answer = predictor.answer(PICTURE)
    assert answer.probs["malignant"] == pytest.approx(1 / 3, abs=1e-6) and answer.decision == "malignant"


def test_prior_correction_and_biases_of_the_decision_are_applied(tmp_path):
    decision = {"temperature": 2.0, "threshold": 0.5, "positive": "malignant"}
    decision |= {"correction": {"benign": 2.0, "malignant": 0.5}, "bias": {"benign": -0.1, "malignant": 0.1}}
    answer = predictor_of(tmp_path, probs=[0.8, 0.2], decision=decision).answer(PICTURE)
    odds = np.log(0.2 / 0.5 / (0.8 / 2.0)) / 2 + 0.2  # by hand
    assert answer.probs["malignant"] == pytest.approx(1 / (1 + np.exp(-odds)), abs=1e-6)


def test_averaged_views_are_answered_by_their_own_lock_or_a_warning_says_that_there_is_none(tmp_path):
    decision = {"temperature": 1.0, "threshold": 0.5, "positive": "malignant"}
    averaged = {"temperature": 0.5, "threshold": 0.01, "positive": "malignant"}
    predictor = predictor_of(tmp_path / "new", probs=[0.8, 0.2], decision=decision | {"averaged": averaged})
    one, many = (predictor.answer(PICTURE, tta) for tta in (False, True))
    assert (one.decision, one.threshold, many.decision, many.threshold) == ("benign", 0.5, "malignant", 0.01)
    assert many.probs["malignant"] == pytest.approx(0.2**2 / (0.2**2 + 0.8**2), abs=1e-6)
    assert one.warnings == many.warnings
    older = predictor_of(tmp_path / "old", probs=[0.8, 0.2], decision=decision)
    assert older.answer(PICTURE, True).probs == older.answer(PICTURE).probs
    said = set(older.answer(PICTURE, True).warnings) - set(older.answer(PICTURE).warnings)
    assert len(said) == 1 and said.pop().startswith("plain_lock: ")


def test_an_answer_has_the_set_that_was_locked_and_what_is_promised_of_it(tmp_path):
    at = {"thresholds": {"benign": 0.9, "malignant": 0.19}, "words": "the set holds"}
    decision = {"temperature": 1.0, "threshold": 0.5, "positive": "malignant", "promise": {"words": "found"}}
    predictor = predictor_of(tmp_path, probs=[0.8, 0.2], decision=decision | {"sets": at})
    answer = predictor.answer(PICTURE)
    assert answer.decision == "benign" and answer.prediction_set == ("benign", "malignant")  # the decision is in it
    assert answer.promises == ("the set holds", "found")


def test_data_of_the_patient_join_the_answer_and_without_them_the_image_alone_decides(tmp_path):
    alone = {"temperature": 1.0, "threshold": 0.5, "positive": "malignant"}
    biases = {"sex": {"female": {"benign": 0.0, "malignant": 2.0}, "": {"benign": 0.0, "malignant": 0.0}}}
    decision = alone | {"threshold": 0.6, "patient": biases, "image_alone": alone}
    predictor = predictor_of(tmp_path, probs=[0.8, 0.2], decision=decision)
    one, other, none = (predictor.answer(PICTURE, patient=of) for of in ({"sex": "female"}, {"sex": "x"}, None))
    assert one.probs["malignant"] == pytest.approx(1 / (1 + 4 * np.exp(-2))) and one.decision == "malignant"
    assert other.probs == pytest.approx(none.probs) and (other.threshold, none.threshold) == (0.6, 0.5)
    assert [any(w.startswith("image_alone: ") for w in answer.warnings) for answer in (one, none)] == [False, True]
    for wrong in ({}, {"sex": "female", "age": "50"}):
        with pytest.raises(PathoError, match="bad_parameter"):
            predictor.answer(PICTURE, patient=wrong)


def test_an_answer_is_plain_json(tmp_path):
    answer = predictor_of(tmp_path, temperature=1.5, threshold=0.4).answer(PICTURE, tta=True, warnings=["cmyk: is"])
    found = json.loads(json.dumps(answer.to_json()))
    assert list(found) == [field.name for field in dataclasses.fields(inference.Answer)]
    assert found["prediction_set"] is None and found["promises"] == []
    assert found["spread"] is None
    assert found["warnings"][0] == "cmyk: is" and found["tta"] is True and found["threshold"] == 0.4
    assert list(found["probs"]) == list(TINY.classes) and sum(found["probs"].values()) == pytest.approx(1)


# -------------------------------------------------------------------------------------------------------- warnings


def written(path, pixels, **options):
    Image.fromarray(pixels).save(path, **options)
    return path


def test_what_is_odd_about_a_file_is_said_with_its_answer(tmp_path):
    rng = np.random.default_rng(0)
    predictor = predictor_of(tmp_path / "model")
    colour = rng.integers(0, 256, (64, 64, 3), np.uint8)

    def said(path):
        seen = predictor.look(path)
        return [warning.partition(":")[0] for warning in predictor.answer(seen.pixels, warnings=seen.warnings).warnings]

    assert said(written(tmp_path / "colour.png", colour)) == []
    assert said(written(tmp_path / "grey.png", colour[..., 0])) == ["greyscale"]
    assert said(written(tmp_path / "grey in three channels.png", colour[..., :1].repeat(3, axis=2))) == ["greyscale"]
    assert said(written(tmp_path / "png.jpg", colour, format="PNG")) == ["extension_mismatch"]
    assert said(written(tmp_path / "alpha.png", np.dstack([colour, colour[..., 0]]))) == ["alpha"]
    assert said(written(tmp_path / "long.png", colour.repeat(5, axis=1))) == ["extreme_aspect"]


def test_a_picture_smaller_than_the_model_sees_is_named_unless_it_was_trained_on_such(tmp_path):
    recipe = replace(TINY, image_size=64)
    small = written(tmp_path / "small.png", np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8))
    (warning,) = predictor_of(tmp_path / "a", recipe).look(small).warnings
    assert warning.startswith("small: is 50 x 40 pixels")
    assert predictor_of(tmp_path / "b", recipe, smallest_side=40).look(small).warnings == ()
    assert len(predictor_of(tmp_path / "c", recipe, smallest_side=41).look(small).warnings) == 1


def test_a_strange_picture_is_named_and_one_of_training_is_not(tmp_path):
    own = image_set(train=200, val=100)
    predictor = predictor_of(tmp_path, familiar=novelty.learn(own).to_json())
    strange = np.full((37, 37, 3), (20, 200, 90), np.uint8)
    warnings = [answer.warnings for answer in predictor.answers(np.stack([own.pictures[0], strange]))]
    assert warnings[0] == () and len(warnings[1]) == 1 and warnings[1][0].startswith("unfamiliar: is unlike")


def test_a_file_has_the_pixels_it_had_in_training(exported, tmp_path):
    from patholib.data import decoding

    predictor = inference.Predictor(exported[0], "torch")
    rng = np.random.default_rng(1)
    Image.fromarray(rng.integers(0, 256, (60, 90, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    square = predictor.read(tmp_path / "a.png")
    assert (square == decoding.to_square(decoding.read(tmp_path / "a.png"), TINY.cache_size, TINY.fit)).all()
    assert (square == predictor.read((tmp_path / "a.png").read_bytes())).all()
    assert predictor.predict([tmp_path / "a.png"]).shape == (1, 2) and predictor.predict([]).shape == (0, 2)


@onnx
def test_the_onnx_file_says_how_near_it_is_and_auto_prefers_it(exported):
    facts = files.read_json(exported[0] / onnx_export.ONNX_FACTS)
    assert facts["max_difference"] < onnx_export.ALIKE and facts["compared"] == 7
    assert inference.Predictor(exported[0]).engine == "onnx"


@onnx
def test_a_damaged_onnx_file_or_that_of_another_model_is_refused(exported, tmp_path):
    folder = tmp_path / "copy"
    folder.mkdir()
    for path in exported[0].iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    content = bytearray((folder / onnx_export.ONNX).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / onnx_export.ONNX).write_bytes(content)
    with pytest.raises(PathoError, match="onnx_damaged"):
        inference.Predictor(folder)
    (folder / onnx_export.ONNX).write_bytes((exported[0] / onnx_export.ONNX).read_bytes())
    export.save_model(folder, building.build(replace(TINY, seed=5)).state_dict(), TINY)
    with pytest.raises(PathoError, match="onnx_damaged"):
        inference.Predictor(folder)


@onnx
def test_an_onnx_file_that_computes_something_else_is_not_kept(exported, tmp_path, monkeypatch):
    folder = tmp_path / "other"
    export.save_model(folder, exported[1].state_dict(), TINY)
    monkeypatch.setattr(folding, "folded", lambda model: building.build(replace(TINY, seed=7)).eval())
    with pytest.raises(PathoError, match="onnx_differs"):
        onnx_export.to_onnx(folder)
    assert not (folder / onnx_export.ONNX).exists()


def test_without_its_engine_onnx_is_refused_and_auto_takes_torch(exported, tmp_path, monkeypatch):
    monkeypatch.setattr(inference.util, "find_spec", lambda name: None)
    assert inference.Predictor(exported[0]).engine == "torch"
    with pytest.raises(PathoError, match="onnxruntime is not installed"):
        inference.Predictor(exported[0], "onnx")
    with pytest.raises(PathoError, match="did you mean 'onnx'"):
        inference.Predictor(exported[0], "onxx")


def test_logits_that_are_not_finite_are_refused(exported):
    predictor = inference.Predictor(exported[0], "torch")
    predictor._logits = lambda views: np.full((len(views), 2), np.nan, np.float32)
    with pytest.raises(PathoError, match="model_output"):
        predictor.probabilities(image_set(train=0, val=1).pictures)


def test_one_call_answers_for_one_file_and_another_explains_it(exported, tmp_path):
    folder, _ = exported
    predictor, path = patholib.Predictor(folder), tmp_path / "one.png"
    path.write_bytes(encoded(picture()))
    answer, look = predictor(path), predictor.look(path)
    assert answer.probabilities == predictor.answer(look.pixels).probs and answer.notice == predictor.manifest["notice"]
    why = predictor.explain(path)
    size = TINY.image_size
    assert why.predicted == answer.decision and why.map.shape == (size, size) and why.overlay.shape == (size, size, 3)
    assert 0 <= why.map.min() and why.map.max() <= 1 and why.overlay.dtype == np.uint8
    assert why.verdict == trust.NOT_CHECKED  # an export has no checks of its heatmaps beside it
    checked = {"verdict": "Refuted", "checks": {"a": {}}, "block": gradcam.default_block(predictor.model)}
    files.write_json(folder / trust.FILE, checked | {"method": "gradcam", "of": None})
    try:
        assert patholib.Predictor(folder).explain(path).verdict == "Refuted"
    finally:
        (folder / trust.FILE).unlink()
