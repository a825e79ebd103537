"""A run folder says what made it, can be resumed, and belongs to one process at a time."""

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from tiny import pictures, prepare

from patholib.base import files
from patholib.base.errors import PathoError
from patholib.data import splitting
from patholib.model import recipes
from patholib.model.recipes import BREAKHIS, Stage
from patholib.train import origin, resumable, runs

pytestmark = pytest.mark.heavy

RECIPE = replace(recipes.for_demo(BREAKHIS), arch="resnet18", image_size=32, group_by="group")
KEYS = {
    "name",
    "created",
    "status",
    "demo",
    "fingerprint",
    "seed",
    "published",
    "recipe",
    "data",
    "split",
    "versions",
    "code",
    "machine",
    "leaks",
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return pictures(tmp_path_factory.mktemp("set") / "pictures")


@pytest.fixture(scope="module")
def prepared(data):
    return prepare(data)


def start(prepared, output, recipe=RECIPE, **options):
    return runs.start(recipe, *prepared, output=output, **options)


def refusal(*args, **options):
    with pytest.raises(PathoError) as error:
        start(*args, **options)
    return error.value


def test_a_new_folder_says_what_made_it(prepared, tmp_path):
    run = start(prepared, tmp_path)
    facts = files.read_json(run.dir / "run.json")
    assert {path.name for path in run.dir.iterdir()} == {
        "run.json",
        "run.lock",
        "run.holder.lock",
        "data_report.json",
        "data_report.html",
        "excluded.csv",
        "images.csv",
        "split.csv",
        "split.csv.sha256",
    }
    assert set(facts) == KEYS and facts["status"] == "started" and facts["name"] == run.dir.name
    assert recipes.from_json(facts["recipe"]) == RECIPE and facts["seed"] == 0 and facts["demo"] is False
    assert facts["data"]["images"] == 16 and facts["data"]["groups"] == 8 and facts["data"]["root_name"] == "pictures"
    assert facts["data"]["images_sha256"] == resumable.images_sha256(prepared[0])
    assert {split: sum(counts.values()) for split, counts in facts["split"]["counts"].items()} == prepared[1][
        "split"
    ].value_counts().to_dict()
    assert facts["versions"]["torch"].startswith("2.") and len(facts["versions"]) == 1 + len(origin.LIBRARIES)
    pd.testing.assert_frame_equal(splitting.read_split(run.dir / "split.csv"), prepared[1])
    assert files.read_json(run.dir / "data_report.json") == prepared[0].report


def test_no_file_of_a_new_run_holds_a_path_of_the_machine(prepared, data, tmp_path):
    run = start(prepared, tmp_path / "out", replace(RECIPE, weights=str(tmp_path / "private" / "backbone.pth")))
    for path in run.dir.iterdir():
        for place in (tmp_path, data, data.parent, Path.home(), files.project_root()):
            assert str(place).encode() not in path.read_bytes(), path.name
    assert runs.open_run(run.dir).recipe.weights == "backbone.pth"
    run.close()
    again = start(prepared, tmp_path / "out", replace(RECIPE, weights=str(tmp_path / "private" / "backbone.pth")))
    assert again.dir == run.dir
    assert str(tmp_path).encode() not in (run.dir / "run.json").read_bytes()


@pytest.mark.parametrize(
    "change",
    [
        {"lr": 5e-4},
        {"seed": 1},
        {"image_size": 40},
        {"weights": "imagenet"},
        {"stages": (Stage(0, 1, 1.0),)},
        {"augmentation": replace(RECIPE.augmentation, noise=0.1)},
    ],
)
def test_what_decides_the_learning_changes_the_fingerprint(prepared, change):
    assert resumable.fingerprint(replace(RECIPE, **change), *prepared) != resumable.fingerprint(RECIPE, *prepared)


@pytest.mark.parametrize("change", [{"epochs": 99}, {"patience": 3}, {"precision": "fp32"}, {"fast": True}])
def test_what_only_prolongs_or_hastens_the_learning_does_not(prepared, change):
    assert resumable.fingerprint(replace(RECIPE, **change), *prepared) == resumable.fingerprint(RECIPE, *prepared)


def test_one_changed_byte_and_one_moved_image_change_the_fingerprint(prepared):
    checked, split = prepared
    facts = checked.facts.copy()
    facts.loc[3, "sha256"] = facts.loc[3, "sha256"][::-1]
    moved = split.copy()
    moved.loc[0, "split"] = "val" if moved.loc[0, "split"] != "val" else "test"
    marks = {
        resumable.fingerprint(RECIPE, checked, split),
        resumable.fingerprint(RECIPE, replace(checked, facts=facts), split),
        resumable.fingerprint(RECIPE, checked, moved),
    }
    assert len(marks) == 3


def test_an_unfinished_run_is_resumed_and_a_finished_one_is_not(prepared, tmp_path):
    first = start(prepared, tmp_path)
    first.update(status="trained")
    first.close()
    again = start(prepared, tmp_path, replace(RECIPE, epochs=30), resume="must")
    assert again.dir == first.dir and runs.open_run(again.dir).recipe.epochs == 30
    again.finish()
    assert files.read_json(again.dir / "run.json")["status"] == "finished"
    assert start(prepared, tmp_path).dir != first.dir


def test_the_newest_unfinished_run_is_resumed(prepared, tmp_path):
    older, newer = start(prepared, tmp_path), start(prepared, tmp_path, resume="never")
    assert older.dir != newer.dir
    older.close()
    newer.close()
    assert start(prepared, tmp_path).dir == newer.dir


def test_a_run_of_an_earlier_version_is_refused_with_its_file_the_fields_it_lacks_and_who_can_go_on(
    prepared, tmp_path, capsys
):
    run = start(prepared, tmp_path)
    run.close()
    earlier = RECIPE.to_json()
    del earlier["ema"], earlier["augmentation"]["noise"]
    run.update(recipe=earlier, fingerprint="of fewer fields", code={"version": "0.0.9", "commit": "123456789abc+"})
    for wanted in (RECIPE, replace(RECIPE, ema=0.9)):
        error = refusal(prepared, tmp_path, wanted, resume="must")
        assert (error.code, error.subject) == ("resume_changed", run.dir.name)
        assert "lacks ema, augmentation.noise" in error.reason and "patholib 0.0.9 (commit 1234567)" in error.reason
    assert runs.open_run(run.dir).recipe == RECIPE, "to look at it, what is absent has its default"
    assert start(prepared, tmp_path).dir != run.dir
    assert "lacks ema, augmentation.noise" in capsys.readouterr().out


def test_a_folder_whose_name_merely_begins_as_the_datas_may_hold_runs(prepared, data):
    start(prepared, data.parent / "pictures-runs").finish()


def test_a_run_folder_that_cannot_be_written_is_refused_with_its_name(prepared, tmp_path):
    run = start(prepared, tmp_path)
    run.close()
    (run.dir / "run.lock").unlink()
    (run.dir / "run.lock").mkdir()  # stands for a folder that may only be read
    assert refusal(prepared, tmp_path).code == "output_unwritable"


def test_the_environment_says_where_runs_lie(prepared, tmp_path, monkeypatch):
    monkeypatch.setenv("PATHOLIB_OUTPUTS", str(tmp_path / "there"))
    assert start(prepared, None, name="mine").dir == tmp_path / "there" / "mine"


def test_a_split_by_image_is_noted_on_every_figure(prepared, tmp_path):
    leaky = replace(RECIPE, group_by="image", published=True)
    assert start(prepared, tmp_path, leaky).note == "Split by image: patients may leak"
    assert start(prepared, tmp_path).note == ""


# --- splits that leak -------------------------------------------------------------------------------------------------


@pytest.fixture
def leaky(prepared):
    """Of a patient in training one picture is tested on; the table takes every image for a group of its own."""
    checked, split = prepared
    moved = split.index[split["split"] == "train"][0]
    return checked, split[["path", "label"]].assign(
        group=split["path"], split=split["split"].where(split.index != moved, "test")
    )


def test_a_run_on_a_split_that_leaks_is_refused_with_level_and_counts(leaky, tmp_path, catalogue):
    error = refusal(leaky, tmp_path / "out")
    assert error.code == "split_leakage" and "1 of 5 test images have their group in train (p" in error.reason
    assert not (tmp_path / "out").exists()
    catalogue("D25", "training on a split made elsewhere that has a patient in two of its parts", error)


def test_a_leak_that_was_allowed_is_told_wherever_the_run_is_seen(leaky, prepared, tmp_path, capsys):
    run = start(leaky, tmp_path, allow_leakage=True)
    assert "LEAKS: 20.0% of the test images have their group in train" in capsys.readouterr().out
    (row,) = files.read_json(run.dir / "run.json")["leaks"]["group"]
    assert (row["seen_in"], row["found_in"], row["images"], row["of"]) == ("train", "test", 1, 5)
    assert run.note == runs.open_run(run.dir).note == "Leaking split: 1 of 5 test images have their group in train"
    run.close()
    assert refusal(leaky, tmp_path, resume="must").code == "split_leakage"  # each call has to say it
    again = start(leaky, tmp_path, resume="must", allow_leakage=True)
    assert (again.dir, again.note) == (run.dir, run.note)
    assert files.read_json(start(prepared, tmp_path).dir / "run.json")["leaks"] == {}


def test_the_published_recipe_may_leak_and_says_how_much(leaky, tmp_path):
    run = start(leaky, tmp_path, replace(RECIPE, group_by="image", published=True))
    assert run.note == "Leaking split: 1 of 5 test images have their group in train"


def test_a_split_without_groups_is_refused_as_no_split(leaky, tmp_path):
    checked, names = leaky
    error = refusal((checked, names.drop(columns=["group", "label"])), tmp_path)
    assert error.code == "csv_format" and "split column label" in error.reason and "split column group" in error.reason


def test_an_id_that_only_the_table_of_the_split_knows_is_looked_at_too(prepared, tmp_path):
    checked, split = prepared
    error = refusal((checked, split.assign(patient_id="the same")), tmp_path)
    assert "have their patient_id in train" in error.reason
