"""Runs are subtracted where they saw the same images, and nowhere else; what differs is what their files say."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import tiny

from patholib.base import files, places
from patholib.base.errors import PathoError
from patholib.judge import decisions, metrics, validation
from patholib.model import recipes
from patholib.report import comparison
from patholib.study import Study
from patholib.train import runs

RECIPE = recipes.BREAKHIS
N, GROUPS = 60, 15


def write_run(
    folder,
    seed=0,
    recipe=RECIPE,
    created="2026-11-25T10:00:00+00:00",
    temperature=1.0,
    threshold=0.5,
    status="finished",
    demo=False,
):
    """A finished run on the same 60 test images, whose predictions the seed decides."""
    rng, classes = np.random.default_rng(seed), recipe.classes
    labels = np.arange(N) % len(classes)
    scores = rng.normal(size=(N, len(classes)))
    scores[np.arange(N), labels] += 1.5
    probs = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    table = pd.DataFrame(
        {
            "path": [f"test/{i}.png" for i in range(N)],
            "label": np.array(classes)[labels],
            "group": [f"case{i % GROUPS}" for i in range(N)],
            "split": "test",
            **{f"p_{c}": probs[:, k] for k, c in enumerate(classes)},
        }
    )
    files.write_table(folder / "predictions_val.csv", table)
    files.write_table(folder / "predictions_test.csv", table)
    files.write_table(
        folder / "images.csv", pd.DataFrame({"path": table["path"], "sha256": [f"sha{i:03}" for i in range(N)]})
    )
    files.write_table(folder / "split.csv", table[["path", "label", "group", "split"]])
    files.write_table(
        folder / "history.csv",
        pd.DataFrame({"epoch": [1, 2], "lr": 1e-3, "val_loss": [0.7, 0.5], "val_auc": [0.8, 0.9]}),
    )
    files.write_json(
        folder / "decision.json",
        {
            "format": 1,
            "temperature": temperature,
            "positive": recipe.positive,
            "threshold": threshold,
            "rule": "",
            "target": {},
            "validation": {},
            "predictions_val_sha256": files.sha256(folder / "predictions_val.csv"),
        },
    )
    files.write_json(
        folder / "run.json",
        {
            "name": folder.name,
            "created": created,
            "status": status,
            "demo": demo,
            "fingerprint": "f",
            "recipe": recipe.to_json(),
            "data": {"images_sha256": "ab" * 32},
            "split": {"sha256": files.sha256(folder / "split.csv")},
        },
    )
    found = metrics.summary(decisions.calibrated(folder, "test"), classes, recipe.positive, threshold)
    files.write_json(folder / "metrics.json", {"test": found})
    return folder


@pytest.fixture
def pair(tmp_path):
    return write_run(tmp_path / "a", 0), write_run(tmp_path / "b", 1)


def compared(*folders):
    return comparison.read(",".join(map(str, folders)))


def change(folder, name, edit):
    files.write_table(folder / name, edit(pd.read_csv(folder / name, dtype=str, keep_default_na=False)))


def test_a_difference_is_one_run_minus_the_other(pair):
    found = compared(*pair)
    values = found.differences.set_index("number")["value"]
    ours, theirs = (run.record.metrics["test"]["metrics"] for run in reversed(found.runs))
    for number in ("AUC", "sensitivity", "balanced accuracy"):
        name = {"AUC": "auc"}.get(number, number.replace(" ", "_"))
        assert values[number] == pytest.approx(ours[name]["value"] - theirs[name]["value"], abs=1e-12)
    assert set(found.differences["run"]) == {"b - a"} and "b is compared with a" in found.said
    row = found.differences.set_index("number").loc["AUC"]
    assert row["low"] < row["value"] < row["high"] and row["difference"].startswith(f"{row['value']:+.3f} (")
    assert "log loss (lower is better)" in values and not any("macro" in name for name in values.index)


def test_a_run_does_not_differ_from_its_copy(pair):
    shutil.copytree(pair[0], pair[0].parent / "copy")
    found = compared(pair[0], pair[0].parent / "copy").differences
    assert (found["value"] == 0).all() and found["low"].isna().all()  # no interval: no resample differs


@pytest.mark.parametrize(
    "edit",
    [
        ("images.csv", lambda t: t.assign(sha256=t["sha256"].replace("sha007", "sha007, edited"))),
        ("predictions_test.csv", lambda t: t[:-1]),
        ("predictions_test.csv", lambda t: t.assign(group=t["group"].replace("case3", "case4"))),
        ("predictions_test.csv", lambda t: t.assign(label=["malignant", *t["label"][1:]])),
    ],
    ids=["other bytes", "one image fewer", "another group", "another label"],
)
def test_runs_on_other_test_images_are_shown_and_never_subtracted(pair, edit):
    change(pair[1], *edit)
    found = compared(*pair)
    assert len(found.differences) == 0 and list(found.numbers) == ["a", "b"]
    assert all(f"{name} has other test images" in found.said for name in "ab")
    assert list(found.overview["test images"]) == ["A", "B"] and list(found.overview["all images"]) == ["A", "A"]
    assert list(found.drawn) == ["a (test images A)", "b (test images B)"]


def test_images_are_known_by_their_bytes_whatever_they_are_called(pair):
    before = compared(*pair).differences
    moved = {f"test/{i}.png": f"elsewhere/{(i * 7) % N:02}.png" for i in range(N)}
    for name in ("images.csv", "predictions_test.csv", "split.csv"):
        change(pair[1], name, lambda table: table.assign(path=table["path"].map(moved)).sort_values("path"))
    pd.testing.assert_frame_equal(compared(*pair).differences, before)


def test_every_run_is_judged_at_its_own_threshold_and_temperature(tmp_path):
    write_run(tmp_path / "a", 0)
    write_run(tmp_path / "b", 0, temperature=2.0, threshold=0.9)
    found = compared(tmp_path / "a", tmp_path / "b").differences.set_index("number")
    assert found["value"]["sensitivity"] < 0 < found["value"]["specificity"]  # the same ranking, another threshold
    assert found["value"]["AUC"] == pytest.approx(0, abs=1e-12)
    assert found["value"]["log loss (lower is better)"] != 0


def test_several_runs_are_measured_against_the_first_of_their_images(tmp_path):
    folders = [write_run(tmp_path / name, seed) for seed, name in enumerate("abcd")]
    for name in ("c", "d"):
        change(tmp_path / name, "images.csv", lambda table: table.assign(sha256="x" + table["sha256"]))
    found = compared(*folders)
    assert set(found.differences["run"]) == {"b - a", "d - c"}
    number, known = len(found.differences), int(found.differences["low"].notna().sum())
    assert f"{number} differences, {known} of them" in found.said and f"about {0.05 * known:.1f} of them" in found.said


def test_the_recipes_are_shown_where_any_of_them_differs(tmp_path):
    write_run(tmp_path / "a")
    write_run(tmp_path / "b", recipe=replace(RECIPE, lr=5e-4))
    write_run(tmp_path / "c", recipe=replace(RECIPE, lr=5e-4, epochs=7))
    table = compared(tmp_path / "a", tmp_path / "b", tmp_path / "c").recipes
    assert table.loc["lr"].tolist() == ["0.001", "0.0005", "0.0005"]
    assert table.loc["epochs"].tolist() == ["35", "35", "7"] and len(table) == 2
    assert compared(tmp_path / "a").recipes.empty


def test_runs_of_other_classes_are_not_drawn_into_one_plot(tmp_path):
    write_run(tmp_path / "a")
    write_run(tmp_path / "b", recipe=replace(RECIPE, classes=("x", "y", "z"), positive=None))
    found = compared(tmp_path / "a", tmp_path / "b")
    assert list(found.drawn) == ["a (test images A)"]
    assert list(found.histories) == ["a", "b"] and len(found.differences) == 0


def test_one_run_alone_is_shown(tmp_path):
    found = compared(write_run(tmp_path / "a"))
    assert "only one run" in found.said and len(found.numbers.columns) == 1 and found.differences.empty


def test_without_names_the_newest_finished_runs_are_taken_the_oldest_of_them_first(tmp_path):
    for day, name in enumerate("badcef"):
        write_run(tmp_path / name, created=f"2026-11-2{day}T10:00:00+00:00")
    write_run(tmp_path / "unfinished", created="2026-11-29T10:00:00+00:00", status="trained")
    assert [run.name for run in comparison.read(output=tmp_path).runs] == ["d", "c", "e", "f"]
    assert [folder.name for folder in runs.finished(tmp_path)] == ["f", "e", "c", "d", "a", "b"]


def test_names_are_taken_in_their_order_and_once(tmp_path):
    for name in "ab":
        write_run(tmp_path / name)
        write_run(tmp_path / "other" / name)
    found = comparison.read("b, a ,b", tmp_path)
    assert [run.name for run in found.runs] == ["b", "a"] and not found.made and found.note == ""
    found = comparison.read(f"a,{tmp_path / 'other' / 'a'}", tmp_path)
    assert [run.name for run in found.runs] == [f"{tmp_path.name}/a", "other/a"]


def test_what_is_no_finished_run_is_refused(tmp_path):
    write_run(tmp_path / "breakhis-1")
    write_run(tmp_path / "half", status="trained")
    with pytest.raises(PathoError, match=r"\[unknown_run\] breakhis-2.*did you mean 'breakhis-1'"):
        comparison.read("breakhis-2", tmp_path)
    with pytest.raises(PathoError, match=r"\[unfinished_run\] half"):
        comparison.read("half", tmp_path)


def test_letters_go_on_after_z():
    letters = comparison._letters([*range(28), 0, 27])
    assert letters[:2] == ["A", "B"] and letters[25:28] == ["Z", "AA", "AB"] and letters[28:] == ["A", "AB"]


@pytest.mark.slow  # half a minute; compare.ipynb does the same with the whole network
def test_two_demo_runs_are_trained_where_there_is_nothing_to_compare(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)  # no project here: the demo images are written below it
    with tiny.network():
        found = comparison.read(output=tmp_path / "outputs", make=Study.demo_pair)
    assert found.made and [run.name for run in found.runs] == ["compare-plain", "compare-augmented"]
    assert "two small ones are trained" in capsys.readouterr().out and "not a result" in found.note
    assert set(found.recipes.index.str.partition(".").get_level_values(0)) == {"augmentation"}
    assert len(found.differences) > 5 and list(found.overview["test images"]) == ["A", "A"]
    assert [run.record.run["status"] for run in found.runs] == ["finished"] * 2
    again = comparison.read(output=tmp_path / "outputs")
    assert not again.made and [run.name for run in again.runs] == ["compare-plain", "compare-augmented"]


# ------------------------------------------------------------------------------------------------------------- folds


def folds(output, parts=3, **options):
    """Runs that share the 60 images out for testing, each in a folder of its own, as a sweep leaves them."""
    found = []
    for fold in range(parts):
        folder = write_run(output / f"fold-{fold}" / "run", **options)
        files.write_json(folder.parent / places.OUTCOME, {})
        for name in ("predictions_test.csv", "split.csv"):
            change(folder, name, lambda table, k=fold: table[[int(path[5:-4]) % parts == k for path in table["path"]]])
        found.append(f"fold-{fold}/run")
    return ",".join(found)


def test_folds_are_called_after_their_folders_and_pooled_as_in_a_cross_validation(tmp_path):
    found = comparison.read(folds(tmp_path), tmp_path)
    assert [run.name for run in found.runs] == ["fold-0", "fold-1", "fold-2"]
    (column,) = found.pooled
    assert column == "fold-0 + fold-1 + fold-2" and found.pooled[column]["images tested"] == "60 of 60"
    judged = validation.decided_by_others([tmp_path / f"fold-{k}" / "run" for k in range(3)])
    expected = validation.pooled_summary(pd.concat([table for table, _ in judged], ignore_index=True), RECIPE)
    assert found.pooled[column]["AUC"] == metrics.readable(expected["metrics"]["auc"])
    assert found.pooled[column]["sensitivity"] == metrics.readable(expected["metrics"]["sensitivity"])


def test_what_are_no_folds_of_one_experiment_is_not_pooled(tmp_path):
    write_run(tmp_path / "a")
    write_run(tmp_path / "b", 1)
    assert comparison.read("a,b", tmp_path).pooled.empty  # the same images, twice
    named = folds(tmp_path / "sweep", 2)
    record = files.read_json(tmp_path / "sweep" / "fold-1" / "run" / "run.json")
    record["recipe"] = replace(RECIPE, lr=0.5).to_json()
    files.write_json(tmp_path / "sweep" / "fold-1" / "run" / "run.json", record)
    assert comparison.read(named, tmp_path / "sweep").pooled.empty  # another recipe
