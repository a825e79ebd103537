"""Cross-validation tests every patient once, goes on where it stopped, and says what it does not know."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from tiny import TINY

from patholib.base import files, locks
from patholib.base.errors import PathoError
from patholib.data import checking, readers, splitting
from patholib.deploy import export, inference
from patholib.judge import calibration, decisions, doubts, metric_table, metrics, predicting, validation
from patholib.model.recipes import BREAKHIS
from patholib.report.figures import style
from patholib.report.records import Record
from patholib.study import Study, crossvalidation, evaluate
from patholib.train import optimising, runs, saving, training

RECIPE = replace(TINY, group_by="group", epochs=1, tta_views=1)


pytestmark = [pytest.mark.heavy, pytest.mark.usefixtures("small_network")]


@pytest.fixture(scope="module")
def checked(tmp_path_factory) -> checking.Checked:
    """Fifteen patients, three pictures of noise each, those of the second class brighter."""
    folder = tmp_path_factory.mktemp("set")
    rng, rows = np.random.default_rng(0), []
    for i in range(45):
        label = i // 3 % 2
        pixels = rng.integers(0, 120, (40, 40, 3)) + 60 * label
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i:02}.png")
        rows.append({"path": f"{i:02}.png", "label": BREAKHIS.classes[label], "group": f"p{i // 3:02}"})
    files.write_table(folder / "mine.csv", pd.DataFrame(rows))
    return checking.check(
        readers.load("breakhis", folder / "mine.csv", positive="malignant"),
        37,
        progress=False,
        cache_dir=tmp_path_factory.mktemp("cache"),
        report_dir=folder / "report",
    )


def study(checked, output, recipe=RECIPE, folds=3, **options) -> Study:
    return Study(
        checked,
        recipe=recipe,
        folds=folds,
        output=str(output),
        device="cpu",
        workers=1,
        quiet=True,
        remember=False,
        **options,
    )


def cross(*args, **options) -> validation.CrossValidated:
    return study(*args, **options).cross_validate()


def refusal(*args, **options) -> PathoError:
    with pytest.raises(PathoError) as error:
        cross(*args, **options)
    return error.value


@pytest.fixture(scope="module")
def whole(checked, tmp_path_factory) -> validation.CrossValidated:
    return cross(checked, tmp_path_factory.mktemp("runs"), repeats=2)


def test_every_image_is_tested_once_a_repeat_by_a_model_that_never_saw_its_patient(whole, checked):
    for _, part in whole.predictions.groupby("repeat"):
        assert sorted(part["path"]) == sorted(checked.manifest.table["path"])
    for run in whole.facts["runs"]:
        split = splitting.read_split(whole.folder / run["run"] / "split.csv")  # refuses shared groups
        mine = whole.predictions[
            (whole.predictions["repeat"] == run["repeat"]) & (whole.predictions["fold"] == run["fold"])
        ]
        assert set(mine["path"]) == set(split.loc[split["split"] == "test", "path"])
        assert run["split_sha256"] == files.sha256(whole.folder / run["run"] / "split.csv")


def test_what_is_written_is_what_is_returned_and_the_means_are_those_of_the_folds(whole):
    assert files.read_json(whole.folder / validation.RESULT) == whole.facts
    assert whole.facts["predictions_sha256"] == files.sha256(whole.folder / validation.PREDICTIONS)
    assert {"cross_validation.json", "oof_predictions.csv", "cross_validation.png", "report.md", "report.html"} < {
        path.name for path in whole.folder.iterdir()
    }
    values = [
        files.read_json(whole.folder / run["run"] / "metrics.json")["test"]["metrics"]["auc"]["value"]
        for run in whole.facts["runs"]
    ]
    found = whole.facts["over_folds"]["auc"]
    assert found["mean"] == pytest.approx(np.mean(values)) and found["sd"] == pytest.approx(np.std(values, ddof=1))
    assert (found["lowest"], found["highest"], found["folds"]) == (min(values), max(values), 6)
    assert len(whole.folds) == 7 and whole.folds["value"].tolist()[:6] == values
    assert (
        "no standard error" in repr(whole)
        and "Bengio" in whole._repr_html_()
        and "data:image/png" in whole._repr_html_()
    )


def test_the_report_begins_with_the_pooled_number_and_the_patients_of_the_rarer_class(whole):
    text = (whole.folder / "report.md").read_text()
    first, rarer = whole.headline()
    pooled = metrics.readable(whole.facts["pooled"]["metrics"]["auc"])
    assert pooled in first and "15 groups" in first and rarer == "The rarer class, malignant, has 7 groups."
    assert text.index("# Cross-validation") < text.index(pooled) < text.index("has 7 groups") < text.index("## ")
    assert "Bates" in text and repr(whole).startswith(first)
    page = (whole.folder / "report.html").read_text()
    assert "data:image/png" in page and "<script" not in page


def test_the_folds_are_one_model_that_averages_them_with_the_pooled_decision(whole, checked):
    predictor, decision = inference.Predictor(whole.folder), whole.facts["decision"]
    assert predictor.members == len(whole.facts["runs"]) == 6
    assert (predictor.temperature, predictor.threshold) == (decision["temperature"], decision["threshold"])
    raw = [
        predicting.probs_of(Study.open(whole.folder / run["run"]).predict(checked), RECIPE.classes)
        for run in whole.facts["runs"]
    ]
    expected = calibration.apply(np.mean(raw, axis=0), calibration.Calibration.of(decision, RECIPE.classes))
    assert np.abs(predictor.probabilities(checked.images.pictures) - expected).max() < 1e-9
    tested = pd.concat(
        [
            predicting.read_predictions(whole.folder / run["run"] / "predictions_test.csv", RECIPE.classes)
            for run in whole.facts["runs"]
        ]
    )
    own = decisions.choose(tested, RECIPE.classes, RECIPE.positive, seed=RECIPE.seed)
    assert own["threshold"] == decision["threshold"] and own["temperature"] == decision["temperature"]
    text = (whole.folder / "report.md").read_text()
    assert "estimate for a single one of them" in text and "The folds as one model" in text
    assert validation.ONE_MODEL in predictor.manifest["decision"]["notes"]


def test_the_pooled_decision_promises_nothing_and_keeps_data_of_the_patient(whole):
    decision = whole.facts["decision"]
    said = [decision["rule"], decision["patients"]["rule"], *decision["notes"]]
    assert "promise" not in decision and [text for text in said if "promise" in text] == [validation.ONE_MODEL]
    assert not any("new groups" in text for text in said)
    table = whole.predictions.assign(side=np.where(whole.predictions["label"] == "benign", "left", "right"))
    own = {"target": {"sensitivity": 0.9}, "patient": {"side": {}}}
    found = validation._chosen([table], RECIPE, own)
    assert found["patient"]["side"]["right"]["malignant"] > 0.1
    assert found["image_alone"] == validation._chosen([table], RECIPE, {**own, "patient": None})


def test_the_folds_as_one_model_are_judged_on_other_images_and_their_card_says_so(
    whole, checked, tmp_path, monkeypatch
):
    monkeypatch.setattr(style, "FILE_DPI", 40)
    folder = tmp_path / whole.folder.name
    shutil.copytree(whole.folder, folder)
    card = (folder / "model_card.md").read_text()
    assert "| networks | 6 |" in card and "never judged" in card and "no sensitivity is promised" in card
    with pytest.raises(PathoError, match="external_leak"):
        evaluate(folder, checked.manifest, name="same")
    leaks = evaluate(folder, checked.manifest, name="same", allow_leakage=True).facts["leaks"]
    assert {link["seen_in"] for link in leaks["links"]} == {"train"}  # every image has trained some network
    rows = checked.manifest.table.assign(group=lambda table: "h" + table["group"])
    root = tmp_path / "hospital"
    root.mkdir()
    for path in rows["path"]:
        pixels = np.array(Image.open(checked.manifest.root / path))
        Image.fromarray(np.roll(pixels, 1, axis=0)[::-1]).save(root / f"h{path}")
    files.write_table(root / "set.csv", rows.assign(path="h" + rows["path"])[["path", "label", "group"]])
    found = evaluate(folder, root / "set.csv", name="there")
    assert found.folder == folder / "external" / "there" and found.internal == whole.facts["pooled"]
    predictor = inference.Predictor(folder)
    expected = [list(predictor(root / path).probs.values()) for path in found.judged.test["path"]]
    assert np.abs(found.judged.probs - expected).max() < 1e-6
    assert (
        "there" in (folder / "model_card.md").read_text()
        and "one network alone" in (found.folder / "external.md").read_text()
    )
    assert (folder / "report.md").read_bytes() == (whole.folder / "report.md").read_bytes()
    export.copy(folder, tmp_path / "alone")
    assert (tmp_path / "alone" / "model_card.html").exists()
    with pytest.raises(PathoError, match="not_judged"):
        evaluate(tmp_path / "alone", root / "set.csv")


def test_a_model_of_which_a_fold_is_missing_is_refused_and_the_remedy_makes_it(whole, checked, tmp_path):
    folder = tmp_path / whole.folder.name
    shutil.copytree(whole.folder, folder)
    lost = folder / whole.facts["runs"][2]["run"]
    for gone in (lost / "checkpoints", lost):
        shutil.rmtree(gone)
        with pytest.raises(PathoError) as error:
            export.write_folds(folder, whole.facts, checked.images)
        assert error.value.code == "missing_file" and f"delete {lost.name}" in error.value.remedy
    assert cross(checked, tmp_path, repeats=2).folder == folder and lost.is_dir()
    assert (folder / "model.json").read_bytes() == (whole.folder / "model.json").read_bytes()


def test_the_report_shows_the_labels_that_are_doubted_with_their_patients(whole):
    found = pd.read_csv(whole.folder / doubts.FILE)
    assert sorted(found["path"]) == sorted(set(whole.predictions["path"])) and found["p_label"].is_monotonic_increasing
    text = (whole.folder / "report.md").read_text()
    assert "Labels to look at" in text and f"({doubts.PICTURE})" in text
    assert f"| 1 | {found['path'][0]} |" in text and "No label was changed" in text


def test_a_group_is_drawn_with_the_images_of_all_repeats(whole):
    assert whole.facts["pooled"]["groups"] == 15 and whole.facts["pooled"]["images"] == 90


def test_a_fold_keeps_its_best_weights_and_not_what_only_an_unfinished_run_needs(whole):
    for run in whole.facts["runs"]:
        kept = [path.name[:4] for path in (whole.folder / run["run"] / "checkpoints").iterdir()]
        assert set(kept) == {"best"}


def test_called_again_nothing_is_trained_again(whole, checked, monkeypatch):
    monkeypatch.setattr(training, "fit", None)
    again = cross(checked, whole.folder.parent, repeats=2)
    assert again.facts == whole.facts and again.folder == whole.folder


def test_interrupted_at_any_step_it_ends_with_the_same_predictions(checked, tmp_path, monkeypatch):
    one = cross(checked, tmp_path / "one")
    step, count = optimising.step, 0

    def failing(*given):
        nonlocal count
        count += 1
        if count % 5 == 0:
            raise KeyboardInterrupt
        step(*given)

    monkeypatch.setattr(saving, "SAVE_SECONDS", 0.0)  # a checkpoint after every step
    monkeypatch.setattr(optimising, "step", failing)
    interruptions = 0
    while interruptions < 20:
        try:
            many = cross(checked, tmp_path / "many")
            break
        except KeyboardInterrupt:
            interruptions += 1
    assert interruptions >= 2
    pd.testing.assert_frame_equal(many.predictions, one.predictions)
    assert [path.read_bytes() for path in (many.folder / validation.RESULT, many.folder / validation.PREDICTIONS)] == [
        path.read_bytes() for path in (one.folder / validation.RESULT, one.folder / validation.PREDICTIONS)
    ]
    assert len([path for path in many.folder.iterdir() if path.is_dir()]) == 3  # no fold was begun anew


def test_the_time_allowed_is_for_all_folds_together(checked, tmp_path):
    assert refusal(checked, tmp_path, max_hours=0).code == "time_is_up"
    assert len(cross(checked, tmp_path).facts["runs"]) == 3


def test_too_few_patients_and_a_folder_in_use_are_refused(checked, tmp_path):
    error = refusal(checked, tmp_path, folds=9)
    assert error.code == "split_infeasible" and "malignant: 7 groups" in error.reason
    folder = crossvalidation.folder_of(study(checked, tmp_path))
    folder.mkdir()
    held = locks.take(folder / crossvalidation.LOCK)
    assert refusal(checked, tmp_path).code == "run_locked"
    held.close()


def test_another_recipe_has_a_folder_of_its_own(checked, tmp_path):
    folders = {
        crossvalidation.folder_of(study(checked, tmp_path, recipe, folds))
        for folds in (3, 4)
        for recipe in (RECIPE, replace(RECIPE, epochs=2), replace(RECIPE, seed=1))
    }
    assert len(folders) == 6


def test_no_folds_mean_that_nobody_asked(checked, tmp_path):
    none = cross(checked, tmp_path, folds=0)
    assert repr(none) == validation.NOT_ASKED and validation.NOT_ASKED in none._repr_html_()
    assert none.table.empty and none.folder is None and list(tmp_path.iterdir()) == []


# --- one fold as a run of its own ---


def test_the_folds_of_single_runs_are_those_of_the_cross_validation(whole, checked):
    tested = []
    for number, run in enumerate(whole.facts["runs"]):
        split = runs.split(RECIPE, checked, 3, 2, number)
        kept = splitting.read_split(whole.folder / run["run"] / "split.csv")
        assert split[["path", "split"]].to_numpy().tolist() == kept[["path", "split"]].to_numpy().tolist()
        tested.append(set(split.loc[split["split"] == "test", "path"]))
        assert Record(whole.folder / run["run"]).fold == f"fold {run['fold']} of 3, repeat {run['repeat']} of 2"
    everything = set(checked.manifest.table["path"])
    for repeat in (tested[:3], tested[3:]):
        assert set.union(*repeat) == everything and sum(map(len, repeat)) == len(everything)


def test_without_a_fold_the_one_split_is_as_before_and_folds_that_cannot_be_are_refused(checked):
    one = splitting.split(checked.manifest, RECIPE.fractions, RECIPE.seed, RECIPE.group_by)
    pd.testing.assert_frame_equal(runs.split(RECIPE, checked, 3), one)
    for folds, fold, code in (
        (0, 0, "bad_parameter"),
        (3, 3, "bad_parameter"),
        (3, -1, "bad_parameter"),
        (40, None, "split_infeasible"),
    ):
        with pytest.raises(PathoError) as error:
            runs.split(RECIPE, checked, folds, 1, fold)
        assert error.value.code == code


def test_a_run_that_is_a_fold_trains_no_other_one(checked, tmp_path):
    none = cross(checked, tmp_path, fold=1)
    assert none.table.empty and list(tmp_path.iterdir()) == []
    assert "This run is fold 1, counted from 0, of 3" in repr(none) and "fold 1" in none._repr_html_()


# --- pooling ----------------------------------------------------------------------------------------------------------


def test_every_fold_decides_by_its_own_threshold_and_ranks_stay():
    rng = np.random.default_rng(0)
    p = rng.uniform(size=400)
    labels = np.where(rng.uniform(size=400) < p, "malignant", "benign")
    predictions = pd.DataFrame(
        {"label": labels, "group": [f"g{i % 40}" for i in range(400)], "p_malignant": p, "p_benign": 1 - p}
    )
    thresholds = (0.0, 0.2, 0.7, 1.0)
    predictions = pd.concat(
        [
            validation.decided(predictions[i * 100 : (i + 1) * 100], RECIPE, threshold)
            for i, threshold in enumerate(thresholds)
        ]
    )
    assert predictions["threshold"].tolist() == np.repeat(thresholds, 100).tolist()
    pooled = validation.pooled_summary(predictions, RECIPE)
    called, ill = p >= predictions["threshold"], predictions["label"] == "malignant"
    assert pooled["confusion"] == [
        [int((~called & ~ill).sum()), int((called & ~ill).sum())],
        [int((~called & ill).sum()), int((called & ill).sum())],
    ]
    plain = metrics.summary(predictions, RECIPE.classes, RECIPE.positive)["metrics"]
    assert {name: pooled["metrics"][name] for name in metric_table.from_probabilities()} == {
        name: plain[name] for name in metric_table.from_probabilities()
    }


def written(folder: Path, n: int, seed: int, flipped=()) -> Path:
    """A judged run of one fold: predictions that are overconfident, and the decision of its own validation images."""
    rng = np.random.default_rng(seed)
    p = rng.uniform(0.02, 0.98, n)
    labels = np.where(rng.uniform(size=n) < 1 / (1 + (1 / p - 1) ** 0.5), "malignant", "benign")
    labels[list(flipped)] = "benign"
    table = pd.DataFrame(
        {
            "path": [f"{seed}-{k}" for k in range(n)],
            "label": labels,
            "group": [f"{seed}-{k // 3}" for k in range(n)],
            "p_benign": 1 - p,
            "p_malignant": p,
        }
    )
    files.write_table(folder / "predictions_test.csv", table)
    mark = files.sha256(files.write_table(folder / "predictions_val.csv", table[:30]))
    own = {"format": decisions.FORMAT, "target": {"sensitivity": 0.9}, "threshold": 0.99}
    files.write_json(folder / "decision.json", own | {"predictions_val_sha256": mark})
    files.write_json(folder / "run.json", {"recipe": RECIPE.to_json()})
    return folder


def test_a_fold_is_decided_by_the_others_and_not_by_its_own_labels(tmp_path):
    folders = [written(tmp_path / f"{k}", 600, k) for k in range(4)]
    found = validation.decided_by_others(folders)
    assert all(decision["temperature"] == pytest.approx(2, abs=0.4) for _, decision in found)
    table = pd.concat([table for table, _ in found])
    ill = table["label"] == "malignant"
    assert ((table["decision"] == "malignant") & ill).sum() / ill.sum() == pytest.approx(0.9, abs=0.03)
    written(folders[0], 600, 0, flipped=range(300))  # other labels of the first fold
    again = validation.decided_by_others(folders)
    pd.testing.assert_frame_equal(again[0][0].drop(columns="label"), found[0][0].drop(columns="label"))
    assert again[1][1]["threshold"] != found[1][1]["threshold"]


def test_every_fold_decides_by_its_own_shares():
    recipe = replace(RECIPE, classes=("a", "b", "c"), positive="a", decide="even")
    table = pd.DataFrame(
        {
            "label": ["a", "b", "a", "b"],
            "group": ["1", "2", "3", "4"],
            "p_a": [0.2, 0.2, 0.4, 0.4],
            "p_b": [0.5, 0.5, 0.5, 0.5],
            "p_c": [0.3, 0.3, 0.1, 0.1],
        }
    )
    shares = ({"a": 0.1, "b": 0.5, "c": 0.4}, {"a": 0.5, "b": 0.4, "c": 0.1})  # called a; then b
    table = pd.concat(
        [validation.decided(table[:2], recipe, shares[0]), validation.decided(table[2:], recipe, shares[1])]
    )
    assert table["decision"].tolist() == ["a", "a", "b", "b"]
    pooled = validation.pooled_summary(table, recipe)
    assert pooled["confusion"] == [[1, 1, 0], [1, 1, 0], [0, 0, 0]]
    assert pooled["decision"] == "largest probability over the share of the class"
    plain = metrics.summary(table, recipe.classes, "a")["metrics"]
    assert {n: pooled["metrics"][n] for n in metric_table.from_probabilities()} == {
        n: plain[n] for n in metric_table.from_probabilities()
    }


def test_estimates_draw_patients_whatever_the_split_took_for_groups():
    predictions = pd.DataFrame(
        {
            "label": ["benign", "malignant"] * 20,
            "group": range(40),
            "case": [f"c{i // 2}" for i in range(40)],
            "p_malignant": np.linspace(0.1, 0.9, 40),
            "p_benign": 1 - np.linspace(0.1, 0.9, 40),
        }
    )
    found = validation.estimates({("leaky", "its own test images"): predictions}, RECIPE).iloc[0]
    assert (found["kind"], found["images"], found["patients"]) == ("leaky", 40, 20)
    expected = metrics.summary(predictions.assign(group=predictions["case"]), RECIPE.classes, RECIPE.positive)
    assert all(found[key] == expected["metrics"]["auc"][key] for key in ("value", "low", "high"))


def test_a_refused_training_leaves_no_folder_behind(checked, tmp_path):
    split = splitting.split(checked.manifest, group_by="image")
    with pytest.raises(PathoError, match="split_leakage"):
        study(checked, tmp_path, folds=0, split=split).train()
    assert list(Path(tmp_path).iterdir()) == []
    found = study(checked, tmp_path, folds=0, split=split, allow_leakage=True)
    found.train()
    found.close()
    assert "have their group in train" in found.note and len(found.predict()) == (split["split"] == "test").sum()
