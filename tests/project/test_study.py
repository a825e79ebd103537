"""One object is the whole pipeline: from images to report in five lines, resumed, opened again, and never mixed up."""

from __future__ import annotations

import inspect
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import matplotlib.figure
import pandas as pd
import pytest
import tiny
from tiny import SMALL

import patholib
from patholib.base import files
from patholib.base.errors import PathoError
from patholib.data import splitting
from patholib.deploy import export
from patholib.judge import decisions, judging, trust
from patholib.model import recipes
from patholib.options import Options
from patholib.report import cards
from patholib.report.figures import style
from patholib.report.records import Record
from patholib.study import Study
from patholib.train import runs

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.heavy, pytest.mark.usefixtures("small_network")]


def refused(call, *args, **given) -> PathoError:
    with pytest.raises(PathoError) as error:
        call(*args, **given)
    return error.value


@pytest.fixture(scope="module")
def table(tmp_path_factory) -> Path:
    """A table of one's own: sixteen patients, two pictures each."""
    return tiny.pictures(tmp_path_factory.mktemp("own") / "set", patients=16) / "mine.csv"


@pytest.fixture(scope="module")
def finished(table, tmp_path_factory) -> Study:
    study = patholib.Study(
        table, recipe="breakhis", positive="malignant", **SMALL, output=str(tmp_path_factory.mktemp("runs"))
    )
    study.train()
    study.lock(sensitivity=0.9)
    print(study.judge())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(style, "FILE_DPI", 40)  # what the figures show is not looked at here
        study.report()
    return study


def test_five_lines_end_with_a_whole_report(finished):
    names = {path.name for path in finished.dir.iterdir()}
    assert {
        "report.html",
        "model_card.html",
        "metrics.json",
        "decision.json",
        "trust.json",
        "model.safetensors",
        "training_metrics.png",
        "predictions_baseline.csv",
    } <= names
    record = files.read_json(finished.dir / "run.json")
    assert record["status"] == "finished"
    again = Options(**record["options"] | {"data": finished.options.data})
    assert again.of_study == finished.options.of_study == record["options"]
    assert {"curves.png", "threshold.png", "roc_pr.png", "trust.png", "augmented.png"} <= {
        path.name for path in (finished.dir / "figures").iterdir()
    }
    assert (finished.dir / "heatmaps" / "gallery.png").exists()


def test_data_of_the_patient_are_an_option_and_what_knows_the_label_is_refused_before_the_training(
    table, tmp_path, monkeypatch
):
    rows = pd.read_csv(table)
    rows = rows.assign(site=["arm", "leg"] * (len(rows) // 2), sex="", dx_type="histology")
    files.write_table(table.parent / "sites.csv", rows)
    given = {"recipe": "breakhis", "positive": "malignant", "quiet": True, **SMALL, "output": str(tmp_path)}
    codes = [
        refused(patholib.Study, table.parent / "sites.csv", patient=wrong, **given).code for wrong in ("age", "dx_type")
    ]
    assert codes == ["missing_column", "bad_parameter"] and not list(tmp_path.iterdir())
    study = patholib.Study(table.parent / "sites.csv", patient="site,sex ", **given)
    monkeypatch.setattr(decisions, "lock", lambda *of: of[-1])
    assert study.lock() == ["site", "sex"] and study.lock(patient=["sex"]) == ["sex"]
    assert study.options.of_study["patient"] == "site,sex "
    study.close()


def test_what_judge_returns_is_readable(finished):
    text = repr(finished.judged)
    assert "AUC" in text and "colour baseline" in text and len(text.splitlines()) < 40
    assert "threshold" in repr(finished.locked)


def test_an_opened_run_gives_the_same_numbers_and_the_same_model(finished):
    opened = Study.open(finished.dir)
    assert opened.judge().metrics == finished.judged.metrics
    pd.testing.assert_frame_equal(opened.judge().test, finished.judged.test)
    assert opened.lock().decision == finished.locked.decision
    assert tiny.same_bits(opened.model, finished.model)
    pd.testing.assert_frame_equal(opened.train(), finished.history)
    assert (opened.demo, opened.note, opened.recipe.arch) == (False, "", "resnet18")


def test_an_opened_run_draws_its_figures_again_and_finds_its_images_where_they_are_named(finished, table):
    opened = Study.open(finished.dir, data=table)
    (finished.dir / "figures" / "curves.png").unlink()
    assert isinstance(opened.figures.roc_pr(), matplotlib.figure.Figure)
    assert opened.report() == finished.dir / "report.html"
    assert (finished.dir / "figures" / "curves.png").exists()
    assert len(opened.images.part("test")) == len(finished.images.part("test"))


def test_every_figure_is_a_method_without_arguments(finished):
    for name, method in inspect.getmembers(finished.figures, inspect.ismethod):
        if not name.startswith("_"):
            assert not inspect.signature(method).parameters, name
            if name != "complete":
                assert isinstance(method(), matplotlib.figure.Figure)


def test_heatmaps_come_after_their_verdict_and_carry_it(finished):
    found = finished.explain(each=1)
    assert repr(found) == repr(trust.read(finished.dir)) and found.sheet and found.classes
    page = (finished.dir / "heatmaps" / "gallery.html").read_text(encoding="utf-8")
    assert found.trust.verdict[:20] in page


def test_the_steps_are_refused_out_of_order(table, tmp_path):
    study = Study(table, **SMALL, output=str(tmp_path))
    assert refused(study.report).code == "not_judged"
    study.train()
    assert refused(study.judge).code == "not_locked"
    assert not (study.dir / "predictions_test.csv").exists()
    study.close()
    assert refused(Study.open(study.dir).judge).code == "missing_file"


def test_a_decision_cannot_be_changed_once_test_images_were_judged(finished):
    before = (finished.dir / "decision.json").read_bytes()
    assert refused(finished.lock, sensitivity=0.5).code == "test_seen"
    assert (finished.dir / "decision.json").read_bytes() == before


def test_no_step_takes_a_recipe_or_a_folder_of_another_run():
    for step in (
        Study.train,
        Study.lock,
        Study.judge,
        Study.explain,
        Study.export,
        Study.report,
        Study.cross_validate,
        decisions.lock,
        judging.judge,
    ):
        assert "recipe" not in inspect.signature(step).parameters
    for step in (Study.train, Study.lock, Study.judge, Study.explain, Study.export, Study.report, Study.cross_validate):
        assert not {"run_dir", "folder", "model", "images"} & set(inspect.signature(step).parameters)


def test_what_is_wrong_is_refused_before_an_image_is_read(tmp_path):
    error = refused(Study, "nowhere.csv", epoch=3, folds=1)
    assert error.code == "unknown_parameter" and error.subject == "epoch, folds"
    assert refused(Study, str(tmp_path / "nowhere.csv")).code in ("data_root", "missing_file")


def test_an_interrupted_training_is_resumed_to_the_same_bits(table, tmp_path):
    whole = Study(table, **SMALL | {"epochs": 2}, output=str(tmp_path / "whole"))
    whole.train()
    study = Study(table, **SMALL | {"epochs": 2}, output=str(tmp_path / "parts"), max_hours=0)
    assert refused(study.train).code == "time_is_up"
    resumed = Study(table, **SMALL | {"epochs": 2}, output=str(tmp_path / "parts"))
    history = resumed.train()
    assert len(list((tmp_path / "parts").iterdir())) == 1 and tiny.same_bits(whole.model, resumed.model)
    pd.testing.assert_frame_equal(tiny.without_time(history), tiny.without_time(whole.history))


def test_a_recipe_of_ones_own_and_a_given_split_are_taken(table, tmp_path):
    recipe = replace(
        recipes.unfrozen(recipes.BREAKHIS), name="mine", arch="resnet18", image_size=32, batch_size=8, epochs=1, seed=3
    )
    study = Study(table, recipe=recipe, output=str(tmp_path), workers=1, quiet=True)
    assert (study.recipe.name, study.recipe.seed, study.recipe.group_by) == ("mine", 3, "group")
    leaky = splitting.split(study.checked.manifest, seed=1, group_by="image")
    again = Study(study.checked, recipe=recipe, split=leaky, output=str(tmp_path), quiet=True, device="cpu")
    assert refused(again.train).code == "split_leakage"
    assert list(tmp_path.iterdir()) == []


def test_the_newest_run_is_remembered_unless_told_otherwise(table, tmp_path, monkeypatch):
    monkeypatch.setenv("PATHOLIB_OUTPUTS", str(tmp_path))
    quiet = Study(table, **SMALL, remember=False)
    assert quiet.dir.parent == tmp_path and not (tmp_path / "latest.json").exists()
    quiet.close()
    study = Study(table, **SMALL | {"seed": 1})
    assert str(study.dir) == files.read_json(tmp_path / "latest.json")["run_dir"]
    study.close()


def test_importing_patholib_is_quick_and_unknown_names_are_told():
    code = "import patholib, sys; print({'torch', 'pandas', 'numpy'} & set(sys.modules), sorted(patholib.__all__))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split("[")[0].strip() == "set()"
    assert patholib.Study is Study and set(patholib.__all__) <= set(dir(patholib))
    with pytest.raises(AttributeError, match="public are"):
        patholib.Studdy  # noqa: B018


def test_a_recipe_by_name_is_fitted_to_images_and_epochs_and_one_of_your_own_is_not(
    table, tmp_path, capsys, monkeypatch
):
    study = Study(table, positive="malignant", epochs=20, workers=1, output=str(tmp_path), quiet=True)
    assert (study.recipe.keep, study.recipe.epochs) == ("last", 20) and [s.frozen for s in study.recipe.stages] == [9]
    assert "Profile for few images" in capsys.readouterr().out
    monkeypatch.setattr(recipes, "FEW_IMAGES", 0)
    study = Study(table, positive="malignant", epochs=20, workers=1, output=str(tmp_path), quiet=True)
    assert (study.recipe.keep, study.recipe.patience) == ("last", 0) and study.recipe.t_0 == pytest.approx(20 / 3)
    assert "The last epoch is kept" in capsys.readouterr().out
    own = Study(study.checked, recipe=recipes.BREAKHIS, split=study.split, output=str(tmp_path), quiet=True)
    assert (own.recipe.keep, own.recipe.t_0) == ("best", 5) and not capsys.readouterr().out


def test_C65_a_finished_run_holds_its_weights_once_and_is_opened_exported_and_resumed_as_before(
    finished, tmp_path, catalogue
):
    weights = (finished.dir / "model.safetensors").stat().st_size
    held = [path for path in finished.dir.rglob("*") if path.suffix in (".pt", ".safetensors", ".bad")]
    assert sum(path.stat().st_size for path in held) <= 2.5 * weights
    assert not (finished.dir / "checkpoints").exists()
    given = finished.options.to_json() | {"resume": "must"}
    again = Study(finished.source, options=Options(**given), quiet=True)
    pd.testing.assert_frame_equal(again.train(), finished.history)
    assert again.dir == finished.dir and tiny.same_bits(again.model, finished.model)
    again.close()
    error = refused(lambda: Study(finished.source, options=Options(**given | {"epochs": 2}), quiet=True).train())
    assert error.code == "resume_changed" and "epochs 1 -> 2, and its checkpoints were deleted" in error.reason
    copy = shutil.copytree(finished.dir, tmp_path / "copy")
    export.write(copy)
    for name in ("model.safetensors", "model.json", "published.pt"):
        assert (copy / name).read_bytes() == (finished.dir / name).read_bytes(), name
    catalogue("C65", "a finished run", "its weights in two layouts, no checkpoint; `resume=must` opens it")
    content = (copy / "published.pt").read_bytes()
    half = len(content) // 2
    for damaged in (content[:half] + bytes([content[half] ^ 1]) + content[half + 1 :], content[:half], b""):
        (copy / "published.pt").write_bytes(damaged)
        assert refused(export.write, copy).code == "checkpoint_damaged"


def test_C65_what_is_deleted_is_said_and_can_be_kept(finished, tmp_path, capsys, catalogue):
    copy = shutil.copytree(finished.dir, tmp_path / "copy")
    (copy / "checkpoints").mkdir()
    for name in ("last-000000001-0123456789abcdef.pt", "best-000000001-0123456789abcdef.pt.bad"):
        (copy / "checkpoints" / name).write_bytes(bytes(3_000_000))
    runs.open_run(copy).finish(keep_checkpoints=True)
    assert len(list((copy / "checkpoints").iterdir())) == 2 and "deleted" not in capsys.readouterr().out
    runs.open_run(copy).finish(keep_checkpoints=False)
    assert not (copy / "checkpoints").exists() and "were deleted (6 MB)" in capsys.readouterr().out
    catalogue("C65", "checkpoints of a finished run", "deleted, which is said; `keep_checkpoints` keeps them")


def with_split(table: Path, folder: Path, words=("train", "val", "test")) -> Path:
    """The table of one's own with a column split: by patient, every class in every part."""
    rows = pd.read_csv(table, dtype=str)
    part = [words[int(group[1:]) // 2 % 3] for group in rows["group"]]
    rows["path"] = [str(table.parent / path) for path in rows["path"]]
    rows["scanner"] = ["AB"[int(group[1:]) // 2 % 2] for group in rows["group"]]
    folder.mkdir()
    return files.write_table(folder / "own.csv", rows.assign(split=part))


def test_C14_a_given_split_is_trained_on_named_and_opened_again(table, tmp_path, capsys):
    own = with_split(table, tmp_path / "data")
    study = Study(own, **SMALL, output=str(tmp_path / "runs"), positive="malignant")
    expected = dict(pd.read_csv(own, dtype=str)[["path", "split"]].to_numpy())
    assert dict(study.split[["path", "split"]].to_numpy()) == expected
    study.train()
    study.lock()
    study.judge(baselines=False)
    facts = files.read_json(study.dir / "run.json")
    assert facts["split"]["origin"] == "as its column says" and "split as its column says" in capsys.readouterr().out
    pages = cards.texts(Record(study.dir))
    assert "as its column says" in pages["data_card"][1] and "as its column says" in pages["model_card"][1]
    study.run.finish()
    again = Study.open(study.dir, own)
    assert len(again.images) == len(expected)
    paper = Study(own, split=study.dir / "split.csv", **SMALL, output=str(tmp_path / "runs"), quiet=True)
    assert dict(paper.split[["path", "split"]].to_numpy()) == expected  # the remedy of the report can be followed


def test_C14_a_split_that_shares_patients_is_refused_unless_it_is_allowed(table, tmp_path, catalogue):
    own = with_split(table, tmp_path / "data")
    rows = pd.read_csv(own, dtype=str)
    rows.loc[0, "split"] = "test"
    files.write_table(own, rows)
    study = Study(own, **SMALL, output=str(tmp_path / "runs"), quiet=True)
    assert refused(study.train).code == "split_leakage"
    allowed = Study(own, **SMALL, output=str(tmp_path / "runs"), quiet=True, allow_leakage=True)
    assert "Leaking split" in allowed.note
    allowed.close()
    assert len(Study.open(allowed.dir, own).images) == len(rows)
    catalogue("C14", "column split that shares patients", "refused: `split_leakage`")


def test_folds_do_not_train_on_a_test_set_that_is_given(table, tmp_path):
    own = with_split(table, tmp_path / "data")
    error = refused(Study, own, **SMALL, output=str(tmp_path / "runs"), quiet=True, folds=3)
    assert error.code == "bad_parameter" and 'split="group"' in error.remedy
    held = Study(own, **SMALL, output=str(tmp_path / "runs"), quiet=True, hold_out="scanner=B", val=0.3)
    assert set(held.split.loc[held.split["scanner"] == "B", "split"]) == {"test"}


def test_C13_where_no_patient_is_known_the_run_says_so(table, tmp_path, catalogue):
    own = files.write_table(
        tmp_path / "own.csv",
        pd.read_csv(table, dtype=str)
        .drop(columns="group")
        .assign(path=lambda rows: [str(table.parent / path) for path in rows["path"]]),
    )
    assert refused(Study, own, **SMALL, quiet=True).code == "no_groups"
    study = Study(own, **SMALL, output=str(tmp_path / "runs"), quiet=True, group="image")
    assert study.recipe.group_by == "image" and "patients may leak" in study.note
    study.close()
    assert len(Study.open(study.dir, own).images) == len(study.split)  # read again as it was
    catalogue("C13", "table without patients, group=image", "every page says that patients may leak")


def test_C19_a_run_is_named_by_its_data_and_others_runs_are_not_announced(table, tmp_path, capsys, catalogue):
    first = Study(table, **SMALL, output=str(tmp_path / "runs"), quiet=True)
    assert first.dir.name.startswith("table-")
    first.close()
    own = with_split(table, tmp_path / "data")
    capsys.readouterr()
    other = Study(own, **SMALL, output=str(tmp_path / "runs"), quiet=True)
    assert other.dir != first.dir and "unfinished" not in capsys.readouterr().out
    other.close()
    catalogue("C19", "own table through a notebook of another data set", "run and report are named by the data")
