"""Finding the data and reading them: BreakHis, ISIC 2019 and tables of one's own."""

import json
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from samples import BENIGN, ISIC_ROWS, MALIGNANT, breakhis_tree, isic, own, put

from patholib.base import files
from patholib.base.errors import PathoError
from patholib.data import demo, readers
from patholib.data.readers import breakhis, folders, isic2019, table
from patholib.judge import ceilings
from patholib.lab import reference


def real(part: str) -> Path:
    folder = os.environ.get("PATHOLIB_REAL_DATA")
    if not folder:
        pytest.skip("PATHOLIB_REAL_DATA is unset: no real data to read")
    return Path(folder) / part


def refusal(code, call, *args, **kwargs):
    with pytest.raises(PathoError) as caught:
        call(*args, **kwargs)
    assert caught.value.code == code, caught.value
    return caught.value


@pytest.fixture
def tree(tmp_path):
    return breakhis_tree(tmp_path)


# --- BreakHis ---------------------------------------------------------------------------------------------------------


def test_a_name_is_read_by_hand():
    assert breakhis.parse("SOB_B_TA-14-16184CD-40-021.png") == (
        "benign",
        "tubular_adenoma",
        "14-16184CD",
        "14-16184",
        "40",
        "021",
    )
    assert breakhis.parse("SOB_M_PC-15-190EF-400-003") == (
        "malignant",
        "papillary_carcinoma",
        "15-190EF",
        "15-190",
        "400",
        "003",
    )


def test_all_names_of_the_real_40x_set_are_read():
    names = pd.read_csv(real("breakhis/names_40x.csv"))
    data = breakhis.from_names(names["image"])
    assert len(data.table) == 1995
    assert data.table["label"].value_counts().to_dict() == {"malignant": 1370, "benign": 625}
    assert (data.found["slides"], data.found["cases"]) == (81, 70)
    assert data.found["slides_in_two_subtypes"] == {"count": 1, "first": ["14-13412"]}
    assert data.found["cases_in_two_classes"]["count"] == 0
    truth = names.set_index("image")["label"].map({0: "benign", 1: "malignant"})
    assert (data.table.set_index("path")["label"] == truth.sort_index()).all()
    assert (data.group_by, data.levels, data.positive) == ("case", ("slide", "case"), "malignant")


@pytest.mark.parametrize(
    "level", ["", "BreaKHis_v1", "BreaKHis_v1/histology_slides", "BreaKHis_v1/histology_slides/breast"]
)
def test_the_tree_is_read_the_same_from_any_level_above_the_classes(tree, level):
    data = breakhis.read(tree / level)
    assert data.table["path"].tolist() == [BENIGN, MALIGNANT]
    assert data.root == tree / "BreaKHis_v1/histology_slides/breast"
    assert data.table["magnification"].tolist() == ["40", "100"]
    assert all((data.root / path).is_file() for path in data.table["path"])


def test_the_real_tree_is_read():
    data = breakhis.read(real("breakhis"))
    assert data.found["images"] == 10 and data.classes == ("benign", "malignant") and not data.demo


@pytest.mark.parametrize(
    "doubled", ["BreaKHis_v1/BreaKHis_v1/histology_slides/breast", "breakhis/BreaKHis_v1/histology_slides/breast"]
)
def test_kaggles_doubled_folder_is_read(tmp_path, doubled):
    put(tmp_path, f"{doubled}/{BENIGN}", f"{doubled}/{MALIGNANT}")
    assert breakhis.read(tmp_path).table["path"].tolist() == [BENIGN, MALIGNANT]


def test_given_train_and_test_folders_are_counted_but_not_used(tmp_path):
    name = "SOB_B_A-14-22549AB-40-00{}.png"
    put(
        tmp_path,
        "BreaKHis 400X/train/benign/" + name.format(1),
        "BreaKHis 400X/test/benign/" + name.format(2),
        "BreaKHis 400X/train/malignant/SOB_M_DC-14-2523-40-001.png",
        "BreaKHis 400X/test/malignant/SOB_M_DC-14-2773-40-001.png",
    )
    data = breakhis.read(tmp_path)
    assert data.found["given_split"] == {"test": 2, "train": 2, "cases_in_two": 1}
    assert set(data.table["given_split"]) == {"train", "test"} and "split" not in data.table


def test_two_trees_side_by_side_are_refused(tmp_path):
    for copy in "ab":
        put(tmp_path / copy, BENIGN, MALIGNANT)
    assert "side by side" in refusal("data_root", breakhis.read, tmp_path).reason


def test_demo_images_are_known_by_their_mark_and_count_paths_from_it(tree):
    put(tree, "DEMO.json")
    data = breakhis.read(tree / "BreaKHis_v1")
    assert data.demo and data.root == tree
    assert data.table["path"].tolist()[0] == f"BreaKHis_v1/histology_slides/breast/{BENIGN}"


# --- ISIC 2019 --------------------------------------------------------------------------------------------------------


def test_the_clinics_of_an_isic_image_are_read_off_its_lesion(tmp_path):
    folder = isic(tmp_path)
    table = folder / isic2019.METADATA
    table.write_text(table.read_text().replace("L1", "MSK4_0011169").replace("L2", "BCN_0000001"))
    found = isic2019.read(folder).table.set_index("lesion")["collection"].to_dict()
    assert found == {"MSK4_0011169": "MSK", "BCN_0000001": "BCN", "L3": "", "ISIC_4": "", "ISIC_5": ""}


def test_isic_rows_are_read_by_hand(tmp_path):
    data = isic2019.read(isic(tmp_path, ending=".JPG"))
    rows = data.table.set_index("path").rename(lambda path: Path(path).stem)
    assert data.classes == ("MEL", "NV")
    assert rows.loc["ISIC_1"].tolist() == ["NV", "L1", "head/neck", "55", "male", "50-59", ""]
    assert rows["lesion"].to_dict() == {
        "ISIC_1": "L1",
        "ISIC_2": "L2",
        "ISIC_2_downsampled": "L2",
        "ISIC_3": "L3",
        "ISIC_4": "ISIC_4",
        "ISIC_5_downsampled": "ISIC_5",
    }  # D31, D36
    assert rows["age_band"].to_dict() == {
        "ISIC_1": "50-59",
        "ISIC_2": "<30",
        "ISIC_2_downsampled": "",
        "ISIC_3": "80+",
        "ISIC_4": "<30",
        "ISIC_5_downsampled": "<30",
    }
    assert data.positive == "MEL"  # of eight classes the one that an alert watches
    assert data.found["rows_without_lesion"] == 3 and data.found["downsampled"] == 2
    json.dumps(data.found, allow_nan=False)


def test_the_complete_official_tables_are_read():
    rows = isic2019.list_rows(real("isic2019"))
    assert len(rows) == 25_331
    assert rows.loc[rows["lesion_known"], "lesion"].nunique() == 11_847
    assert (~rows["lesion_known"]).sum() == 2_084
    assert rows["image"].str.endswith("_downsampled").sum() == 2_074
    assert rows["label"].value_counts().to_dict() == {
        "NV": 12_875,
        "MEL": 4_522,
        "BCC": 3_323,
        "BKL": 2_624,
        "AK": 867,
        "SCC": 628,
        "VASC": 253,
        "DF": 239,
    }


def test_d32_rows_without_files_stop_unless_they_are_to_be_skipped():
    root = real("isic2019")
    error = refusal("rows_without_files", isic2019.read, root)
    assert "22387 rows" in error.reason and 'missing="skip"' in error.remedy
    data = isic2019.read(root, missing="skip")
    assert len(data.table) == 2_944 and data.classes == isic2019.CLASSES
    assert data.found["rows_without_file"]["count"] == 22_387
    assert data.found["rows_without_file"]["first"][0] == "ISIC_0000000"


@pytest.mark.parametrize("place", [".", "ISIC_2019_Training_Input/ISIC_2019_Training_Input", "MEL"])
def test_images_are_found_in_subfolders_and_beside_the_table(tmp_path, place):
    isic(tmp_path, files=["ISIC_1"])
    (tmp_path / isic2019.INPUT / "ISIC_1.jpg").unlink()
    (tmp_path / isic2019.INPUT).rmdir()
    put(tmp_path, *(f"{place}/{row[0]}.jpg" for row in ISIC_ROWS))
    data = isic2019.read(tmp_path)
    assert len(data.table) == 6 and all((tmp_path / path).is_file() for path in data.table["path"])


def test_one_image_in_two_folders_is_refused(tmp_path):
    isic(tmp_path)
    put(tmp_path, f"{isic2019.INPUT}/copy/ISIC_1.jpg")
    refusal("name_collision", isic2019.read, tmp_path)


def test_metadata_are_needed_because_they_hold_the_lesions(tmp_path):
    (isic(tmp_path) / isic2019.METADATA).unlink()
    refusal("missing_file", isic2019.read, tmp_path)


# --- your own table ---------------------------------------------------------------------------------------------------


def test_the_idc_patches_are_read():
    data = table.read(real("idc/labels.csv"))
    assert len(data.table) == 616 and data.found["groups"] == 150 and data.found["groups_in_two_classes"]["count"] == 73
    assert data.classes == ("idc", "normal") and data.positive is None
    assert data.found["columns"] == {"file": "path", "patient": "group"}


def test_labels_and_ids_survive_as_text(tmp_path):
    data = table.read(own(tmp_path, "path,label,group,site\na.png,NA,0012,null\nb.png,0012,13,\nc/d.png,NA,,x\n"))
    assert data.table.to_numpy().tolist() == [
        ["a.png", "NA", "0012", "null"],
        ["b.png", "0012", "13", ""],
        ["c/d.png", "NA", "c/d.png", "x"],
    ]  # no group: one of its own
    assert data.classes == ("0012", "NA") and data.positive is None and data.found["rows_without_group"] == 1
    assert data.subgroups == ("site",)


def test_paths_may_have_backslashes_and_be_absolute(tmp_path):
    far = put(tmp_path / "far", "x.png") / "x.png"
    text = f"image,label,lesion\nc\\d.png,a,1\n{tmp_path}/own/a.png,b,2\n{far},b,3\n./c/../b.png,a,4\n"
    data = table.read(own(tmp_path / "own", text))
    assert set(data.table["path"]) == {"c/d.png", "a.png", far.as_posix(), "b.png"}
    assert all((data.root / path).is_file() for path in data.table["path"])


@pytest.mark.parametrize("path", ["../a.png", "c/../../a.png", "C:\\images\\a.png"])
def test_paths_that_leave_the_folder_are_refused(tmp_path, path):
    error = refusal("path_outside_root", table.read, own(tmp_path, f"path,label,group\n{path},a,1\nb.png,b,2\n"))
    assert "line 2" in error.subject


def test_a_given_split_is_kept_counted_and_not_used(tmp_path):
    data = table.read(own(tmp_path, "path,label,patient,split\na.png,a,1,train\nb.png,b,1,test\nc/d.png,a,2,test\n"))
    assert data.found["given_split"] == {"test": 2, "train": 1, "groups_in_two": 1}
    assert data.table["given_split"].tolist() == ["train", "test", "test"] and "split" not in data.table
    assert data.subgroups == ()


# --- finding and reading ----------------------------------------------------------------------------------------------


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project folder that is the current one from a subfolder, and no PATHOLIB_DATA."""
    folder = tmp_path / "project"
    (folder / "notebooks").mkdir(parents=True)
    (folder / "pyproject.toml").write_text('[project]\nname = "patholib"\n')
    monkeypatch.chdir(folder / "notebooks")
    monkeypatch.delenv("PATHOLIB_DATA", raising=False)
    return folder


def test_the_project_is_found_from_a_subfolder(project):
    assert files.project_root() == project


@pytest.mark.parametrize("place", ["data/breakhis", "data", "data/breakhis/archive"])
def test_breakhis_is_found_in_the_projects_data_folder(project, place):
    put(project / place / "BreaKHis_v1/histology_slides/breast", BENIGN, MALIGNANT)
    found = readers.find("breakhis", mounts=())
    assert not found.demo and breakhis.read(found.path).found["images"] == 2
    assert readers.read("breakhis").found["images"] == 2


@pytest.mark.parametrize("mount", ["breakhis-set", "datasets/somebody/breakhis-set"])
@pytest.mark.parametrize("kind", ["breakhis", "isic2019"])
def test_both_forms_of_kaggles_mount_are_searched(project, tmp_path, mount, kind):
    kaggle = tmp_path / "input"
    put(kaggle / "cats", "train/benign/cat.png", "test/malignant/dog.png")  # like it, but not called BreakHis
    put(kaggle / mount / "BreaKHis_v1/BreaKHis_v1/histology_slides/breast", BENIGN, MALIGNANT)
    isic(kaggle / mount)
    found = readers.find(kind, mounts=(tmp_path / "none", kaggle))
    assert found.path.is_relative_to(kaggle / mount) and found.tried[-1] == str(kaggle)
    reader = {"breakhis": breakhis, "isic2019": isic2019}[kind]
    assert len(reader.read(found.path).table) == {"breakhis": 2, "isic2019": 6}[kind]


@pytest.mark.parametrize("kind", ["breakhis", "isic2019"])
def test_of_a_drive_so_many_folders_are_listed_and_no_more_and_the_remedy_is_said(
    project, tmp_path, kind, monkeypatch, small_demo, capsys
):
    """Sixty thousand folders, each asked for over the network in truth; one is called like the data set."""
    drive, listed = tmp_path / "drive" / "MyDrive", []
    (drive / "breakhis-and-isic").mkdir(parents=True)
    on_disk = folders.entries

    def entries(folder):
        listed.append(folder)
        names = ["breakhis-and-isic", *"bcdefghi"] if Path(folder) == drive else "abcdefghi"
        for name in names if Path(folder).is_relative_to(drive) else ():
            yield SimpleNamespace(name=name, path=str(Path(folder, name)), is_dir=lambda **_: True)
        yield from on_disk(folder) if not Path(folder).is_relative_to(drive) else ()

    monkeypatch.setattr(folders, "entries", entries)
    monkeypatch.setenv("PATHOLIB_MOUNTS", os.pathsep.join(map(str, (drive.parents[1] / "none", drive))))
    found = readers.find(kind)
    assert found.demo and len(listed) < 3 * readers.MOST
    assert found.tried[-1] == f"{drive} (its 500 nearest folders alone: name any other with the parameter data)"
    assert readers.load(kind).demo and found.tried[-1] in capsys.readouterr().out


def test_nothing_found_says_demo_and_every_place_tried(project, tmp_path):
    found = readers.find("isic2019", mounts=(tmp_path / "a", tmp_path / "b"))
    assert found == readers.Location(
        None, True, tuple(map(str, (project / "data/isic2019", project / "data", tmp_path / "a", tmp_path / "b")))
    )


def test_demo_images_lying_about_are_never_found_as_data(project):
    put(project / "data/demo/breakhis", "DEMO.json", f"BreaKHis_v1/{BENIGN}", f"BreaKHis_v1/{MALIGNANT}")
    assert readers.find("breakhis", mounts=()).demo
    assert not readers.find("breakhis", project / "data/demo/breakhis").demo  # but used where they are named


def test_a_path_rules_over_the_variable_and_the_variable_over_the_search(project, tmp_path, monkeypatch):
    for place in ("named", "variable", "project/data/breakhis"):
        put(tmp_path / place / "BreaKHis_v1", BENIGN, MALIGNANT)
    assert readers.find("breakhis", mounts=()).path == project / "data/breakhis"
    monkeypatch.setenv("PATHOLIB_DATA", str(tmp_path / "variable"))
    assert readers.find("breakhis", mounts=()).path == tmp_path / "variable"
    assert readers.find("breakhis", tmp_path / "named").path == tmp_path / "named"
    assert readers.find("breakhis", "data/breakhis").path == project / "data/breakhis"  # from the project
    monkeypatch.setenv("PATHOLIB_DATA", "demo")
    assert readers.find("breakhis", mounts=()).demo and readers.find("breakhis", "demo").demo


def test_a_named_path_without_data_is_an_error_even_if_data_lie_elsewhere(project, tmp_path, monkeypatch):
    put(project / "data/breakhis", BENIGN, MALIGNANT)
    isic(tmp_path / "set")
    refusal("data_root", readers.find, "breakhis", tmp_path / "nowhere")
    monkeypatch.setenv("PATHOLIB_DATA", str(tmp_path / "set" / isic2019.INPUT))
    error = refusal("data_root", readers.find, "isic2019")
    assert error.subject.startswith("PATHOLIB_DATA=") and str(tmp_path / "set") in error.remedy
    error = refusal("data_root", readers.find, "isic2019", "no/such")
    assert str(project / "no/such") in error.reason and str(project / "notebooks/no/such") in error.reason
    assert "did you mean 'breakhis'?" in refusal("unknown_source", readers.find, "breakhs").remedy


def test_the_reader_is_chosen_by_what_lies_there(tmp_path, tree):
    assert readers.read(tree / "BreaKHis_v1").source == "breakhis"
    assert readers.read(isic(tmp_path / "isic")).source == "isic2019"
    assert readers.read(tmp_path / "isic" / isic2019.TRUTH).source == "isic2019"
    path = own(tmp_path / "own", "path,label,group\na.png,a,1\nb.png,b,2\n")
    assert readers.read(path).source == "table"
    assert str(path) in refusal("data_root", readers.read, path.parent).remedy


def test_two_data_sets_in_one_folder_are_told_apart_by_kind(project):
    isic(put(project / "data", f"breakhis/{BENIGN}", f"breakhis/{MALIGNANT}"))
    assert readers.read("breakhis").source == "breakhis" and readers.read("isic2019").source == "isic2019"


def test_no_table_holds_anything_but_text(tmp_path, tree):
    for data in (breakhis.read(tree), isic2019.read(isic(tmp_path / "isic"))):
        assert all(isinstance(value, str) for value in np.ravel(data.table.to_numpy(object)))
        assert set(data.subgroups) | set(data.levels) <= set(data.table.columns)


# --- loading, and what demo images know of themselves -----------------------------------------------------------------


@pytest.fixture
def small_demo(monkeypatch):
    """Demo sets of a few small images, wherever they are written."""
    write = demo.write
    monkeypatch.setattr(
        demo, "write", lambda folder, layout: write(folder, layout, groups=24, images_per_group=1, size=(64, 64))
    )


@pytest.mark.parametrize("kind", ["breakhis", "isic2019"])
def test_demo_images_are_written_into_the_project_once_and_loaded(project, small_demo, kind, capsys, monkeypatch):
    source = readers.load(kind, "demo")
    assert source.demo and source.source == kind and source.note and capsys.readouterr().out == ""
    where = project / "data" / "demo" / kind
    before = {path: path.stat().st_mtime_ns for path in where.rglob("*")}
    assert readers.load(kind, "demo").table.equals(source.table)
    assert {path: path.stat().st_mtime_ns for path in where.rglob("*")} == before


def test_demo_images_drawn_otherwise_have_a_folder_of_their_own(project):
    few = {"groups": 9, "images_per_group": 1, "size": (64, 64)}
    folders = {readers.load("breakhis", "demo", **few, patient_effect=effect).root for effect in (1.0, 2.0, 1.0)}
    assert len(folders) == 2 and all(folder.is_relative_to(project / "data" / "demo") for folder in folders)


def test_demo_images_in_place_of_absent_data_are_announced(project, small_demo, monkeypatch, capsys):
    monkeypatch.setattr(readers, "find", lambda kind, data: readers.Location(None, True, ("here", "there")))
    assert readers.load("breakhis").demo
    assert capsys.readouterr().out == (
        "No breakhis images were found in here, there: demo images are used instead "
        "(`patholib download breakhis` fetches the real ones)\n"
    )


def test_a_path_or_a_csv_is_loaded_as_what_it_is(project, tmp_path, tree):
    assert readers.load("breakhis", tree).source == "breakhis"
    path = own(tmp_path / "own", "path,label,group\na.png,a,1\nb.png,b,2\n")
    source = readers.load("breakhis", path)
    assert source.source == "table" and not source.demo and source.positive is None
    assert readers.load("breakhis", path, positive="b").positive == "b"  # the class that must not be missed
    refusal("unknown_class", readers.load, "breakhis", path, positive="c")
    refusal("data_root", readers.load, "breakhis", tmp_path / "nowhere")


@pytest.mark.parametrize("kind", ["breakhis", "isic2019"])
def test_the_best_possible_predictions_are_the_planted_posteriors(project, small_demo, kind, capsys, monkeypatch):
    source = readers.load(kind, "demo")
    truth = demo.truth(project / "data" / "demo" / kind).set_index("path")
    table = source.table.sample(frac=1, random_state=1).assign(group=source.table[source.group_by])
    guess = table.assign(**{f"p_{c}": 1 / len(source.classes) for c in source.classes})
    best = ceilings.best_possible(source, guess)
    assert list(best["path"]) == list(guess["path"])
    for c in source.classes:
        assert best[f"p_{c}"].tolist() == truth.loc[best["path"], f"best_p_{c}"].tolist()
    assert best[[f"p_{c}" for c in source.classes]].sum(axis=1).to_numpy() == pytest.approx(1)

    monkeypatch.setenv(reference.STRICT, "1")
    reference.check_against_best(source, best, tol=0)
    line = capsys.readouterr().out
    ours, theirs = (float(word.strip(",")) for word in line.split() if word[0].isdigit())
    assert ours == theirs > 0.6
    assert "best possible" in refusal("short_of_best", reference.check_against_best, source, guess).reason
    reference.check_against_best(source, guess, tol=0.5)


def test_of_real_images_no_best_possible_is_claimed(tree, capsys):
    source = breakhis.read(tree)
    reference.check_against_best(source, pd.DataFrame())
    assert "not known" in capsys.readouterr().out
    refusal("no_truth", ceilings.best_possible, source, pd.DataFrame())
