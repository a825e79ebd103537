"""What one session leaves is one zip, and the next takes up what is attached, from wherever it lies."""

from __future__ import annotations

import os
import shutil
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from tiny import TINY, pictures, prepare

from patholib.base import files
from patholib.base.errors import PathoError
from patholib.lab import notebook, sessions
from patholib.model import building
from patholib.study import Study
from patholib.train import runs, training

RECIPE = replace(TINY, group_by="group", epochs=3, batch_size=4)
NEW, OLD = "/kaggle/input/notebooks/somebody/breakhis", "/kaggle/input/breakhis"


pytestmark = [pytest.mark.heavy, pytest.mark.usefixtures("small_network")]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    return prepare(pictures(tmp_path_factory.mktemp("set") / "pictures"))


@pytest.fixture
def kaggle(tmp_path, monkeypatch):
    """The folder that holds kaggle/input and kaggle/working; it is the place of a session there."""
    for name in ("kaggle/input", "kaggle/working"):
        (tmp_path / name).mkdir(parents=True)
    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Batch")
    monkeypatch.setenv("PATHOLIB_MOUNTS", str(tmp_path / "kaggle/input"))
    monkeypatch.delenv("PATHOLIB_OUTPUTS", raising=False)
    monkeypatch.chdir(tmp_path / "kaggle/working")
    return tmp_path


def trained(prepared, output=None, hours=None, recipe=RECIPE, **options):
    """The run of a session: finished, or stopped after so many hours, and the error that stopped it."""
    checked, split = prepared
    run, error = runs.start(recipe, checked, split, output=output, bring=sessions.take_up, **options), None
    try:
        training.fit(
            building.build(recipe), checked.images.with_split(split), run, device="cpu", workers=1, max_hours=hours
        )
    except PathoError as stopped:
        error = stopped
    run.close()
    return run, error


@pytest.fixture
def earlier(prepared, kaggle):
    """The folder of a run that an earlier session left after one step, not in this session's outputs."""
    run, error = trained(prepared, kaggle / "earlier", hours=0.0, name="breakhis-earlier")
    assert error.code == "time_is_up"
    return run.dir


def zipped(run_dir: Path, place: Path) -> Path:
    place.mkdir(parents=True, exist_ok=True)
    return sessions.pack([run_dir], place / f"patholib-{run_dir.name}.zip")


# --- what is taken up ---


@pytest.mark.parametrize("form", ["folder", "zip"])
@pytest.mark.parametrize("place", [NEW, f"{NEW}/outputs", OLD, f"{OLD}/outputs"])
def test_an_attached_unfinished_run_is_copied_and_goes_on_at_the_step_where_it_stood(
    prepared, kaggle, earlier, form, place, capsys
):
    place = kaggle / place.lstrip("/")
    if form == "zip":
        zipped(earlier, place)
    else:
        shutil.copytree(earlier, place / earlier.name)
        for path in place.rglob("*"):  # as what is attached is
            path.chmod(0o555 if path.is_dir() else 0o444)
    before = sorted((path, path.stat().st_mtime_ns) for path in place.rglob("*"))
    run, error = trained(prepared)
    said = capsys.readouterr().out
    assert error is None and run.dir == kaggle / "kaggle/working/outputs" / earlier.name
    assert f"{earlier.name} is attached as" in said and "resumed after epoch 0, step 1" in said
    assert sorted((path, path.stat().st_mtime_ns) for path in place.rglob("*")) == before
    assert [path.name for path in run.dir.parent.iterdir()] == [run.dir.name], "something was left lying about"


def test_a_run_that_was_taken_up_ends_with_the_bits_of_an_unbroken_one(prepared, kaggle, earlier):
    zipped(earlier, kaggle / "kaggle/input/x")
    (broken, _), (whole, _) = trained(prepared), trained(prepared, kaggle / "straight")
    columns = ["epoch", "train_loss", "val_loss", "val_auc"]
    tables = [files.read_json(run.dir / "history.json") for run in (broken, whole)]
    assert [[row[c] for c in columns] for row in tables[0]] == [[row[c] for c in columns] for row in tables[1]]


def test_the_furthest_of_two_copies_is_taken(prepared, kaggle, earlier):
    zipped(earlier, kaggle / "kaggle/input/a")
    run, error = trained(prepared, earlier.parent, hours=0.0)
    assert error.code == "time_is_up" and run.dir == earlier
    zipped(earlier, kaggle / "kaggle/input/b")
    first, second = sessions.attached()
    assert (first.place.parent.name, first.step, second.step) == ("b", 2, 1)


@pytest.mark.parametrize("why", ["finished", "another recipe", "fewer epochs", "never"])
def test_a_run_that_cannot_be_gone_on_with_is_left_where_it_is(prepared, kaggle, earlier, why):
    place = shutil.copytree(earlier, kaggle / "kaggle/input/x" / earlier.name)
    facts = files.read_json(place / "run.json")
    changes = {
        "finished": {"status": "finished"},
        "another recipe": {"fingerprint": "0" * 64},
        "fewer epochs": {"recipe": facts["recipe"] | {"epochs": 4}},
    }
    files.write_json(place / "run.json", facts | changes.get(why, {}))
    run = runs.start(RECIPE, *prepared, resume="never" if why == "never" else "auto", bring=sessions.take_up)
    assert run.dir.name != earlier.name and not (run.dir / "checkpoints").exists()


def test_of_a_drive_only_the_top_is_searched(prepared, kaggle, earlier, monkeypatch):
    drive = kaggle / "content" / "drive" / "MyDrive"
    monkeypatch.setenv("PATHOLIB_MOUNTS", os.pathsep.join(map(str, (drive.parents[1], drive))))
    path = zipped(earlier, drive / "a" / "b")
    zipped(earlier, drive / "a" / "b" / "c")
    assert [run.place for run in sessions.attached()] == [path]


def test_a_run_of_this_session_comes_before_an_attached_one(prepared, kaggle, earlier, capsys):
    run, _ = trained(prepared, hours=0.0, resume="never")
    zipped(earlier, kaggle / "kaggle/input/x")
    assert trained(prepared)[0].dir == run.dir and "is attached" not in capsys.readouterr().out


@pytest.mark.parametrize("checkpoints", [True, False])
def test_a_finished_run_is_brought_back_only_where_it_must_be_and_holds_what_it_learnt(prepared, kaggle, checkpoints):
    run, _ = trained(prepared, kaggle / "earlier", name="breakhis-earlier")
    runs.open_run(run.dir).finish()
    (kaggle / "kaggle/input/x").mkdir()
    sessions.pack([run.dir], kaggle / "kaggle/input/x/patholib-run.zip", checkpoints)
    assert runs.start(RECIPE, *prepared, output=kaggle / "auto", bring=sessions.take_up).dir.name != run.dir.name
    if checkpoints:
        assert runs.start(RECIPE, *prepared, resume="must", bring=sessions.take_up).dir.name == run.dir.name
    else:
        with pytest.raises(PathoError, match="nothing_to_resume"):
            runs.start(RECIPE, *prepared, resume="must", bring=sessions.take_up)


def test_what_is_no_run_is_passed_over(prepared, kaggle):
    place = kaggle / "kaggle/input/x"
    for name, content in (("a", b"{"), ("b", b"[]"), ("c", b'{"recipe": 1}'), ("d", b"\xff"), ("e", b'{"x": 2}')):
        files.write_bytes(place / name / "run.json", content)
    (place / "f" / "run.json").mkdir(parents=True)
    files.write_bytes(place / "patholib-text.zip", b"no zip")
    for name, member in (
        ("none", "a/b.txt"),
        ("deep", "a/b/run.json"),
        ("up", "../run.json"),
        ("bare", "run.json"),
        ("bad", "a/run.json"),
    ):
        with zipfile.ZipFile(place / f"patholib-{name}.zip", "w") as archive:
            archive.writestr(member, "{")
    cut = zipfile.Path(place / "patholib-bad.zip").root.filename
    Path(place / "patholib-cut.zip").write_bytes(Path(cut).read_bytes()[:40])
    assert sessions.attached() == []
    assert runs.start(RECIPE, *prepared).dir.parent == kaggle / "kaggle/working/outputs"


def test_a_zip_that_would_write_elsewhere_is_refused_and_nothing_is_left(prepared, kaggle, earlier):
    path = zipped(earlier, kaggle / "kaggle/input/x")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("../escaped.txt", "out")
    with pytest.raises(PathoError, match="unsafe_archive"):
        trained(prepared)
    assert not list((kaggle / "kaggle/working").rglob("*.*"))
    assert not list(kaggle.rglob("escaped.txt"))


@pytest.mark.skipif(os.name == "nt", reason="Windows makes links for administrators only")
def test_links_in_what_is_attached_are_not_followed(prepared, kaggle, earlier):
    place = shutil.copytree(earlier, kaggle / "kaggle/input/x" / earlier.name)
    (kaggle / "secret.txt").write_text("not for copying")
    (place / "figures").mkdir(exist_ok=True)
    (place / "figures" / "link.txt").symlink_to(kaggle / "secret.txt")
    run, _ = trained(prepared)
    assert run.dir.name == earlier.name and not (run.dir / "figures" / "link.txt").exists()


@pytest.mark.parametrize("form", ["folder", "zip"])
def test_a_cross_validation_of_an_earlier_session_goes_on_too(prepared, kaggle, form, monkeypatch, capsys):
    def crossed(output=None, hours=None):
        return Study(
            prepared[0],
            recipe=RECIPE,
            folds=2,
            output=output and str(output),
            device="cpu",
            workers=1,
            max_hours=hours,
            quiet=True,
        ).cross_validate()

    with pytest.raises(PathoError, match="time_is_up"):
        crossed(kaggle / "earlier", hours=0.0)
    (begun,) = (kaggle / "earlier").iterdir()
    if form == "zip":
        zipped(begun, kaggle / "kaggle/input/x")
    else:
        shutil.copytree(begun, kaggle / "kaggle/input/x" / begun.name)
    found = crossed()
    said = capsys.readouterr().out
    assert begun.name in said and "resumed after epoch 0, step 1" in said
    assert found.folder == kaggle / "kaggle/working/outputs" / begun.name


# --- what is left ---


def test_the_zip_of_an_unfinished_run_holds_what_goes_on_and_that_of_a_finished_one_no_checkpoint(prepared, kaggle):
    run, _ = trained(prepared, hours=0.0)
    trained(prepared, hours=0.0)
    run.log("error", traceback=str(kaggle))
    assert len(list((run.dir / "checkpoints").glob("last-*.pt"))) == 2
    said = sessions.leave(run.dir)
    (path,) = (kaggle / "kaggle/working").glob("*.zip")
    assert path.name == f"patholib-{run.dir.name}.zip" and str(path) in said
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        content = b"".join(archive.read(name) for name in names)
    inside = {name.removeprefix(f"{run.dir.name}/") for name in names}
    assert {"run.json", "images.csv", "split.csv", "split.csv.sha256", "data_report.html"} <= inside
    assert not {"run.lock", "run.jsonl"} & inside and all(name.startswith(f"{run.dir.name}/") for name in names)
    assert [name[:26] for name in inside if "last" in name] == ["checkpoints/last-000000002"]
    assert str(kaggle).encode() not in content
    trained(prepared)
    runs.open_run(run.dir).finish()
    sessions.leave(run.dir)
    with zipfile.ZipFile(path) as archive:
        assert not [name for name in archive.namelist() if "checkpoints" in name] and archive.testzip() is None


def test_a_disk_that_is_full_leaves_the_old_zip_or_none(prepared, kaggle, monkeypatch):
    run, _ = trained(prepared, hours=0.0)
    path = sessions.pack([run.dir], kaggle / "old.zip")
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    for target in (path, kaggle / "new.zip"):
        with pytest.raises(PathoError, match="no_space"):
            sessions.pack([run.dir], target)
    assert path.read_bytes() == before and not (kaggle / "new.zip").exists()
    assert not list(kaggle.glob(".*.part"))


def test_runs_in_a_folder_of_ones_own_leave_their_zip_there(prepared, kaggle):
    run, _ = trained(prepared, kaggle / "mine", hours=0.0)
    sessions.leave(run.dir)
    assert [path.name for path in (kaggle / "mine").glob("*.zip")] == [f"patholib-{run.dir.name}.zip"]


def test_a_cross_validation_after_the_run_goes_into_its_zip_and_one_before_does_not(prepared, kaggle):
    output = kaggle / "kaggle/working/outputs"
    for name in ("breakhis-cv-before", "breakhis-cv-after"):
        files.write_text(output / name / "cross_validation.lock", "")
        files.write_text(output / name / "cross_validation.json", "{}")
    os.utime(output / "breakhis-cv-before" / "cross_validation.lock", (1, 1))
    run, _ = trained(prepared, hours=0.0)
    os.utime(output / "breakhis-cv-after" / "cross_validation.lock")
    sessions.leave(run.dir)
    with zipfile.ZipFile(next((kaggle / "kaggle/working").glob("*.zip"))) as archive:
        names = archive.namelist()
    assert "breakhis-cv-after/cross_validation.json" in names and not [name for name in names if "before" in name]


def test_at_home_nothing_is_zipped(prepared, tmp_path, monkeypatch):
    monkeypatch.delenv("KAGGLE_KERNEL_RUN_TYPE", raising=False)
    run, _ = trained(prepared, tmp_path / "outputs", hours=0.0)
    assert run.dir.name in sessions.leave(run.dir) and str(tmp_path) not in sessions.leave(run.dir)
    assert not list(tmp_path.rglob("*.zip"))


# --- what a session begins with ---


def test_a_package_that_is_missing_is_named_and_one_that_is_old_is_told(monkeypatch, capsys):
    needs = [
        "torch>=2.10",
        "not-there>=1",
        "opencv-python-headless>=4.10",
        "numpy>=99",
        "onnx>=1; extra == 'onnx'",
        "neither",
    ]
    monkeypatch.setattr(sessions.importlib.metadata, "requires", lambda _: needs)
    assert sessions.lacking()[0] == ["not-there", "neither"]
    with pytest.raises(PathoError, match="missing_module") as refused:
        sessions.ready()
    assert "not-there neither" in refused.value.remedy
    needs[:] = ["numpy>=99", "torch>=2.10"]
    sessions.ready()
    said = capsys.readouterr().out
    assert "numpy" in said and "99" in said and "torch" not in said


@pytest.mark.parametrize(("there", "wanted", "old"), [("2.9.1", "2.10", True), ("2.10.0+cu128", "2.10", False)])
def test_versions_are_compared_as_numbers(monkeypatch, there, wanted, old):
    monkeypatch.setattr(sessions.importlib.metadata, "requires", lambda _: [f"torch>={wanted}"])
    monkeypatch.setattr(sessions.importlib.metadata, "version", lambda _: there)
    assert bool(sessions.lacking()[1]) is old


def test_at_home_the_first_cell_says_nothing_and_on_kaggle_where_and_how_long(prepared, kaggle, monkeypatch, capsys):
    monkeypatch.setattr(sessions, "STARTED", time.monotonic())  # other tests may have run for minutes in this process
    sessions.ready()
    said = capsys.readouterr().out
    assert str(kaggle / "kaggle/working/outputs") in said and "11.0 hours" in said
    monkeypatch.delenv("KAGGLE_KERNEL_RUN_TYPE")
    sessions.ready()
    assert capsys.readouterr().out == ""


def test_time_that_is_up_ends_a_notebook_without_an_error_and_with_its_zip(prepared, kaggle, monkeypatch):
    run, error = trained(prepared, hours=0.0)
    monkeypatch.setattr(notebook, "_run_dir", run.dir)
    shown = []

    class Shell:
        def showtraceback(self, what, tb_offset=None):
            shown.append(what)

    notebook._end_well(Shell(), PathoError, error, None)
    other = PathoError("no_luck", "dice", "fell", "Try again")
    notebook._end_well(Shell(), PathoError, other, None)
    (kind, ended, _), (_, same, _) = shown
    assert (kind.__name__, str(ended), same) == ("SystemExit", "0", other)
    lines = "\n".join(ended._render_traceback_())
    assert run.dir.name in lines and "must" not in lines
    assert len(list((kaggle / "kaggle/working").glob("*.zip"))) == 1
    trained(prepared)
    runs.open_run(run.dir).finish()
    files.write_text(run.dir.parent / "breakhis-cv-2x1" / "cross_validation.lock", "")
    notebook._end_well(Shell(), PathoError, error, None)
    assert 'and resume="must"' in "\n".join(shown[-1][1].lines)
    with zipfile.ZipFile(next((kaggle / "kaggle/working").glob("*.zip"))) as archive:
        assert [name for name in archive.namelist() if "checkpoints/last" in name], "must could not go on without"
