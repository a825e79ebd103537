"""What a table of images means is decided in one place: every case is a table that somebody has had."""

from __future__ import annotations

import gzip
import re
import unicodedata
from pathlib import Path

import hypothesis
import pandas as pd
import pytest
from hypothesis import strategies as st
from samples import ISIC_ROWS, encoded, isic, picture, put

from patholib import options
from patholib.base.errors import PathoError
from patholib.data import columns, homes, leakage, readers, splitting
from patholib.data.readers import breakhis, isic2019, table
from patholib.deploy import predictions
from patholib.options import Options

SHARES = (0.7, 0.15, 0.15)
FILES = tuple(f"{i:02}.png" for i in range(24))


def refusal(code, call, *args, **kwargs) -> PathoError:
    with pytest.raises(PathoError) as caught:
        call(*args, **kwargs)
    assert caught.value.code == code, caught.value
    return caught.value


def rows(folder, head, *lines, files=FILES, name="my.csv", separator=","):
    """A table and empty files; each line is text with {i} for its number."""
    put(folder, *files).mkdir(parents=True, exist_ok=True)
    text = "\n".join([head, *lines]).replace(",", separator) + "\n"
    (folder / name).write_text(text)
    return folder / name


def many(pattern, count=24):
    return [eval(f"f'''{pattern}'''", {"i": i}) for i in range(count)]


def audited(path, **kwargs):
    return leakage.audit(path, pixels=False, progress=False, **kwargs)


def split_and_audit(source, folder):
    """The training's own split of a table, audited as a file."""
    written = splitting.write_split(splitting.split(source), folder / "split.csv")
    return audited(written)


# --- ids and labels ---------------------------------------------------------------------------------------------------


def test_C01_the_coarsest_id_groups_whatever_its_number_of_values(tmp_path, catalogue):
    path = rows(tmp_path, "path,label,group,patient", *many("{i:02}.png,{'ab'[i // 4 % 2]},s{i // 2},P{i // 4}"))
    source = table.read(path)
    assert source.found["grouped_by"] == "patient" and source.table["group"].nunique() == 6
    assert split_and_audit(source, tmp_path).ok  # training and audit agree
    by_slide = table.read(path, group="group")
    assert by_slide.table["group"].nunique() == 12 and by_slide.table["patient"].nunique() == 6
    torn = splitting.placed(by_slide, pd.Series(["train", "train", "test"] * 8, by_slide.table["path"]), SHARES)
    assert not audited(torn.drop(columns="group")).ok
    catalogue(
        "C01",
        "table with slides and patients, 6 patients of 2 slides each",
        "grouped by patient; the audit of its own split finds no leak",
    )


def test_C01_columns_of_which_neither_lies_within_the_other_are_both_named(tmp_path, catalogue):
    path = rows(tmp_path, "path,label,group,patient", *many("{i:02}.png,{'ab'[i // 2 % 2]},g{i % 3},P{i // 4}"))
    error = refusal("bad_id", table.read, path)
    assert "group and patient" in error.subject and 'group="patient"' in error.remedy
    assert split_and_audit(table.read(path, group="patient"), tmp_path).ok
    catalogue("C01", "two columns of ids, neither of which lies within the other", "refused: `bad_id`")


def test_C01_slides_numbered_anew_for_every_patient_are_no_leak(tmp_path, catalogue):
    path = rows(tmp_path, "path,label,patient,slide", *many("{i:02}.png,{'ab'[i // 4 % 2]},P{i // 4},{i // 2 % 2}"))
    assert split_and_audit(table.read(path), tmp_path).ok
    frame = pd.read_csv(path, dtype=str).assign(split=["train", "test"] * 12)
    assert not audited(frame).ok  # the patients do leak
    frame["split"] = ["train" if p in ("P0", "P1", "P2") else "test" for p in frame["patient"]]
    assert audited(frame).ok
    catalogue("C01", "slides that are numbered anew for every patient", "no leak")


def test_C01_an_id_of_two_patients_is_named_with_its_lines(tmp_path, catalogue):
    lines = [*many("{i:02}.png,{'ab'[i // 4 % 2]},P{i // 4},L{i // 2}", 23), "23.png,b,P5,L0"]
    error = refusal("bad_id", table.read, rows(tmp_path, "path,label,patient,lesion", *lines))
    assert "'L0'" in error.reason and "line 2)" in error.reason and "line 25)" in error.reason
    catalogue("C01", "lesion of two patients", "refused: `bad_id`")


def test_C01_a_patient_missing_in_one_row_is_known_from_the_slide(tmp_path, catalogue):
    lines = [
        line.replace("P1", "") if i == 4 else line for i, line in enumerate(many("{i:02}.png,a,P{i // 4},s{i // 2}"))
    ]
    source = table.read(rows(tmp_path, "path,label,patient,slide", *lines[:-1], "23.png,b,,"))
    assert source.table["group"].tolist()[4] == "P1" and source.table["group"].tolist()[23] == "23.png"
    catalogue("C01", "patient missing in one row of a slide", "known from the other rows of the slide")


SPELLINGS = [
    ("P01", "p01"),
    ("01", "0001"),
    ("100", "100.0"),
    ("P1", "P1 "),
    ("Zoé", unicodedata.normalize("NFD", "Zoé")),
]


@pytest.mark.parametrize("ways", SPELLINGS)
def test_C02_one_patient_in_two_spellings_is_refused_and_is_one_in_the_audit(tmp_path, ways, catalogue):
    lines = (f"00.png,a,{ways[0]},train", f"01.png,b,{ways[1]},test", "02.png,b,Q,train", "03.png,a,R,test")
    path = rows(tmp_path, "path,label,patient,split", *lines)
    error = refusal("two_spellings", table.read, path)
    assert "line 2" in error.reason and "line 3" in error.reason and "patient" in error.subject
    found = audited(path)
    assert not found.ok and any("line 2" in note and "line 3" in note for note in found.notes())
    catalogue(
        "C02",
        f"patient written as {ways[0]!r} and {ways[1]!a}",
        "training: refused with both lines, `two_spellings`; audit: one patient",
    )


@hypothesis.given(st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=8), st.data())
def test_C02_whatever_normalises_alike_is_one_id(text, data):
    ways = [text, f" {text} ", text.upper(), text.lower(), "0" + text, unicodedata.normalize("NFD", text)]
    other = data.draw(st.sampled_from(ways))
    if columns.normal(text) != columns.normal(other):
        return  # "ß".upper() is SS, and so is its case-fold; a letter without one keeps its own
    merged, said = columns.one_spelling(pd.Series([text, other, "another"]))
    assert merged[0] == merged[1]
    if text != other and text.strip() and other.strip() and not columns.is_placeholder(text):
        assert said and columns.spellings(pd.Series([text, other]))


@hypothesis.given(st.text("abcXYZ019 .", min_size=1, max_size=6))
def test_C02_the_normal_form_is_stable_and_blind_to_blanks_case_and_zeros(text):
    plain = columns.normal(text)
    assert columns.normal(f"\t{text.upper()} ") == columns.normal(text.lower()) == plain
    if text.strip().isdigit():
        assert columns.normal("00" + text.strip() + ".0") == plain


@pytest.mark.parametrize("labels", [("benign", "benign "), ("benign", "Benign"), ("True", "TRUE"), ("1", "1.0")])
def test_C03_one_label_in_two_spellings_is_refused(tmp_path, labels, catalogue):
    path = rows(tmp_path, "path,label,group", f"00.png,{labels[0]},1", f"01.png,{labels[1]},2", "02.png,other,3")
    error = refusal("two_spellings", table.read, path)
    assert all(repr(label) in error.reason for label in labels) and "label" in error.subject
    catalogue("C03", f"labels {labels[0]!r} and {labels[1]!r}", "refused: `two_spellings`")


@pytest.mark.parametrize("word", ["unknown", "nan", "N/A", "-", "none", "NULL", "?", "Not available"])
def test_C04_an_id_that_says_it_is_unknown_is_refused(tmp_path, word, catalogue):
    lines = [f"00.png,a,{word},train", f"01.png,b,{word},test", "02.png,a,P1,train", "03.png,b,P2,test"]
    path = rows(tmp_path, "path,label,patient,split", *lines)
    error = refusal("bad_id", table.read, path)
    assert repr(word) in error.reason and "2 rows" in error.reason and "empty" in error.remedy
    found = audited(path)
    assert found.ok and any("unknown" in text for text in found.unchecked)  # no leak of one giant patient
    catalogue("C04", f"patient {word}", "training: refused, `bad_id`; audit: unknown, not one patient")


def test_C04_a_column_of_ids_without_any_is_none(tmp_path, catalogue):
    error = refusal("no_groups", table.read, rows(tmp_path, "path,label,patient", "00.png,a,", "01.png,b,"))
    assert 'group="image"' in error.remedy
    catalogue("C04", "column patient without an entry", "refused: `no_groups`")


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", [".jfif", ".jpe", ".dib", ".apng", ".JPG"])
def test_C08_every_ending_that_is_decoded_is_walked(tmp_path, ending, catalogue):
    put(tmp_path, f"a{ending}")
    assert len(predictions.gather([str(tmp_path)])[0]) == 1
    catalogue("C08", f"predict: a picture that ends in {ending}", "answered")


def test_C08_what_begins_like_a_picture_is_answered_or_named(tmp_path, catalogue):
    (tmp_path / "scan.001").write_bytes(encoded(picture()))
    (tmp_path / "photo.gif").write_bytes(encoded(picture(), "GIF"))
    (tmp_path / "notes.txt").write_text("a text")
    found, left = predictions.gather([str(tmp_path)])
    assert {Path(path).name for path in found} == {"scan.001", "photo.gif"} and left["unknown_extension"] == 1
    catalogue("C08", "predict: a picture with another ending, a GIF", "answered, or listed with the reason")


@pytest.mark.parametrize("ending", [".png", ".jpeg", ".JPG"])
def test_C09_isic_images_may_have_any_ending(tmp_path, ending, catalogue):
    isic(tmp_path)
    for path in tmp_path.rglob("*.jpg"):
        path.rename(path.with_suffix(ending))
    assert len(isic2019.read(tmp_path).table) == len(ISIC_ROWS)
    catalogue("C09", f"table of ISIC with {ending} files", "found")


def test_C09_masks_beside_the_images_of_isic_are_no_images(tmp_path):
    isic(tmp_path)
    first = next(tmp_path.rglob("*.jpg"))
    first.with_name(f"{first.stem}_segmentation.png").touch()
    assert isic2019.read(tmp_path).found["files_without_row"]["count"] == 0


@pytest.mark.parametrize(
    ("written", "file"),
    [
        ("ISIC_1", "part_1/ISIC_1.jpg"),
        ("isic_1.jpg", "ISIC_1.JPG"),
        ("ISIC_1.jpg", "ISIC_1.png"),
        ("wrong/ISIC_1.jpg", "part_2/ISIC_1.jpg"),
        ("ISIC_1.jpg ", "ISIC_1.jpg"),
        ("PAT_1_2_3.png", "imgs_part_1/imgs_part_1/PAT_1_2_3.png"),
    ],
)
def test_C10_files_are_found_by_their_names_and_it_is_said(tmp_path, written, file, catalogue):
    path = rows(tmp_path, "image_id,dx,lesion_id", f"{written},a,1", "b,b,2", files=(file, "b.png"))
    source = table.read(path)
    assert file in set(source.table["path"])
    assert f"{written} as {file}" in source.found["found_as"]["first"]
    found = audited(pd.read_csv(path, dtype=str).assign(split=["train", "test"]), root=tmp_path)
    assert file.rpartition("/")[2] in {place.name for place in found.places.values()}  # the audit finds the same
    catalogue(
        "C10", f"table writes {written!r}, the file is {file!r}", "found by its name, in training and audit, and said"
    )


def test_C10_no_other_file_is_taken_for_one_that_is_missing(tmp_path, catalogue):
    files = ("a/1.png", "b/2.png")
    path = rows(tmp_path, "path,label,group", "a/1.png,a,1", "b/1.png,b,2", "b/2.png,b,3", files=files)
    refusal("rows_without_files", table.read, path)  # b is there, and 1.png of it is not
    path = rows(tmp_path / "two", "path,label,group", "x,a,1", "y,b,2", files=("m/x.png", "n/x.jpg", "y.png"))
    error = refusal("name_collision", table.read, path)
    assert "m/x.png" in error.reason and "n/x.jpg" in error.reason
    catalogue("C10", "two files that may be meant by one row", "refused: `name_collision`")


def test_C18_a_wrong_base_folder_is_named(tmp_path, catalogue):
    path = rows(
        tmp_path,
        "path,label,group",
        "images/a.png,a,1",
        "images/b.png,b,2",
        files=("data/images/a.png", "data/images/b.png"),
    )
    assert table.read(path).found["found_as"]["count"] == 2
    (tmp_path / "images").mkdir()
    error = refusal("rows_without_files", table.read, path)
    assert str(tmp_path / "data" / "images" / "a.png") in error.remedy
    catalogue("C18", "table in the wrong folder", "the error names where a file of that name is")


def test_C15_one_file_in_two_rows_is_told_with_both_lines(tmp_path, catalogue):
    head, more = "path,label,patient", ("01.png,a,3", "02.png,b,4")
    same = refusal("listed_twice", table.read, rows(tmp_path / "a", head, "00.png,a,1", "00.png,a,1", *more))
    assert "lines 2 and 3" in same.subject
    label = refusal("label_conflict", table.read, rows(tmp_path / "b", head, "00.png,a,1", "./00.png,b,1", *more))
    assert "as a and as b" in label.reason
    patient = refusal("listed_twice", table.read, rows(tmp_path / "c", head, "00.png,a,1", "00.png,a,2", *more))
    assert "of 1 and of 2" in patient.reason
    by_name = rows(tmp_path / "d", head, "00.png,a,1", "00,a,1", *more)
    assert refusal("rows_without_files", table.read, by_name).code  # a file that is listed is not found a second time
    catalogue(
        "C15",
        "one file in two rows: the same, another label, another patient",
        "refused with both lines: `listed_twice`, `label_conflict`, `listed_twice`",
    )


# --- columns ----------------------------------------------------------------------------------------------------------

HEADERS = {
    "HAM10000": (
        "lesion_id,image_id,dx,dx_type,age,sex,localization",
        many("HAM_{i // 2},ISIC_{i},{'nv mel'.split()[i // 2 % 2]},histo,{i}.0,male,back"),
        "lesion_id",
    ),
    "PAD-UFES-20": (
        "patient_id,lesion_id,smoke,diagnostic,itch,img_id,biopsed",
        many("PAT_{i // 4},{i // 2},False,{'ACK BCC'.split()[i // 4 % 2]},True,ISIC_{i}.png,{bool(i % 2)}"),
        "patient_id",
    ),
    "ISIC 2020": (
        "image_name,patient_id,sex,age_approx,anatom_site_general_challenge,diagnosis,benign_malignant,target",
        many("ISIC_{i},IP_{i // 2},male,45.0,head/neck,unknown,{'benign malignant'.split()[i // 2 % 2]},{i // 2 % 2}"),
        "patient_id",
    ),
    "MILK10k, its Metadata joined": (
        "lesion_id,image_type,isic_id,MEL,NV,BCC",
        many("IL_{i // 2},dermoscopic,ISIC_{i},{i // 2 % 2}.0,{1 - i // 2 % 2}.0,0.0"),
        "lesion_id",
    ),
    "DermaMNIST-C": (
        "lesion_id,image_id,dx,dx_type,age,sex,localization,dataset,split",
        many("HAM_{i // 2},ISIC_{i},{'nv mel'.split()[i // 2 % 2]},histo,{i},m,b,x,{'train val test'.split()[i // 8]}"),
        "lesion_id",
    ),
    "tiles": (
        "Image Path,Class,Slide ID,Patient ID",
        many("ISIC_{i},{'ab'[i // 4 % 2]},s{i // 2},p{i // 4}"),
        "Patient ID",
    ),
}


@pytest.mark.parametrize("name", HEADERS)
def test_C11_known_tables_are_read_by_training_and_audit_alike(tmp_path, name, catalogue):
    head, lines, group = HEADERS[name]
    files = tuple(f"images_part_{1 + i % 2}/ISIC_{i}.png" for i in range(24))
    path = rows(tmp_path, head, *lines, files=files)
    source = table.read(path)
    assert source.found["grouped_by"] == group and len(source.table) == 24 and len(source.classes) == 2
    found = split_and_audit(source, tmp_path)
    assert found.ok and set(found.counts) == set(splitting.SPLITS)
    if "split" not in head:
        listed = pd.read_csv(path, dtype=str).assign(split=[["train", "test"][i % 2] for i in range(24)])
        assert not audited(listed).ok  # the audit knows the ids, too
    catalogue("C11", f"table with the columns of {name}", "read by training and audit, grouped by its coarsest id")


def test_C11_isic_2018_finds_its_lesions_beside_it_and_its_images_above(tmp_path, catalogue):
    name = "ISIC2018_Task3_Training_"
    truth = rows(
        tmp_path / f"{name}GroundTruth",
        "image,MEL,NV,BCC,AKIEC,BKL,DF,VASC",
        *many("ISIC_{i},{i // 2 % 2}.0,{1 - i // 2 % 2}.0,0.0,0.0,0.0,0.0,0.0"),
        files=(),
        name=f"{name}GroundTruth.csv",
    )
    files = tuple(f"{name}Input/ISIC_{i}.jpg" for i in range(24))
    rows(
        tmp_path,
        "image,lesion_id,diagnosis_confirm_type",
        *many("ISIC_{i},HAM_{i // 2},histo"),
        files=files,
        name=f"{name}LesionGroupings.csv",
    )
    source = table.read(truth)
    assert source.classes == ("MEL", "NV") and source.found["grouped_by"] == "lesion_id" and source.root == tmp_path
    assert "image = path, lesion_id = group" in repr(source)  # what was taken for what is said first
    catalogue("C11", "tables of ISIC 2018", "lesions and images found beside them")


def test_C11_milk10k_labels_lesions_and_lists_images_elsewhere(tmp_path, catalogue):
    truth = rows(
        tmp_path,
        "lesion_id,AKIEC,BCC,MEL",
        *many("IL_{i},{i % 2},{1 - i % 2},0", 12),
        files=(),
        name="MILK10k_Training_GroundTruth.csv",
    )
    files = tuple(f"MILK10k_Training_Input/IL_{i // 2}/ISIC_{i}.jpg" for i in range(24))
    rows(
        tmp_path,
        "lesion_id,image_type,isic_id,sex",
        *many("IL_{i // 2},{'clinical dermoscopic'.split()[i % 2]},ISIC_{i},male"),
        files=files,
        name="MILK10k_Training_Metadata.csv",
    )
    source = table.read(truth, only="image_type=dermoscopic")
    assert len(source.table) == 12 and source.classes == ("AKIEC", "BCC") and source.found["grouped_by"] == "lesion_id"
    catalogue("C11", "tables of MILK10k", "read together")


def test_C11_the_official_test_of_isic_2019_has_no_patients_and_says_so(tmp_path, catalogue):
    head = "image,MEL,NV,BCC,AK,BKL,DF,VASC,SCC,UNK,score_weight,validation_weight"
    lines = many("ISIC_{i},{i % 2}.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0,{1 - i % 2}.0,1.0,0.0")
    path = rows(
        tmp_path, head, *lines, files=tuple(f"ISIC_{i}.jpg" for i in range(24)), name="ISIC_2019_Test_GroundTruth.csv"
    )
    refusal("no_groups", table.read, path)
    assert table.read(path, group="image").classes == ("MEL", "UNK")
    catalogue("C11", "table of the official test of ISIC 2019", "refused: `no_groups`")


def test_C11_fitzpatrick17k_has_no_patients_and_its_label_is_its_label(tmp_path, catalogue):
    head = "md5hash,fitzpatrick_scale,fitzpatrick_centaur,label,nine_partition_label,three_partition_label,qc,url"
    path = rows(
        tmp_path,
        head,
        *many("{i:032x},1,2,{'psoriasis vitiligo'.split()[i % 2]},x,{'benign malignant'.split()[i % 2]},,u"),
        files=tuple(f"images/{i:032x}.jpg" for i in range(24)),
    )
    refusal("no_groups", table.read, path)
    assert table.read(path, group="image").classes == ("psoriasis", "vitiligo")
    assert table.read(path, group="image", label="three_partition_label").classes == ("benign", "malignant")
    catalogue("C11", "table of Fitzpatrick17k", "refused: `no_groups`")


def test_C11_what_cannot_be_known_is_asked_and_no_name_is_guessed(tmp_path, catalogue):
    path = rows(tmp_path / "a", "path,age,itch,patient", *many("{i:02}.png,{i},{i + 7},{i // 2}"))
    error = refusal("csv_format", table.read, path)
    assert "column label" in error.subject and "did you mean" not in error.reason and "label=" in error.remedy
    path = rows(tmp_path / "b", "path,diagnosis,class,patient", *many("{i:02}.png,{i % 3},{i % 2},{i // 2}"))
    error = refusal("csv_format", table.read, path)
    assert "diagnosis (3 values)" in error.subject and 'label="diagnosis"' in error.remedy
    assert len(table.read(path, label="class").classes) == 2
    odd = rows(tmp_path / "c", "bild,befund,patient", *many("{i:02}.png,{'ab'[i % 2]},{i // 2}"))
    assert len(table.read(odd, label="befund", names="path=bild").table) == 24
    catalogue(
        "C11", "table without a column that is known, or with two", "refused: `csv_format`, and no name is guessed"
    )


FOLDS = ("SOB_B_A-14-22549AB-40-{:03}.png", "SOB_M_DC-14-2523-40-{:03}.png")


def folds_csv(folder):
    names = [FOLDS[i % 2].format(i) for i in range(12)]
    lines = [
        f"{fold},40,{'test' if i % 3 == fold % 3 else 'train'},{name}"
        for fold in range(1, 6)
        for i, name in enumerate(names)
    ]
    return rows(folder, "fold,mag,grp,filename", *lines, files=tuple(names), name="Folds.csv")


def test_C16_a_table_of_several_folds_names_the_column_that_tells_them_apart(tmp_path, catalogue):
    path = folds_csv(tmp_path)
    for read in (table.read, audited):
        error = refusal("listed_twice", read, path)
        assert "fold" in error.subject and "--where fold=1" in error.remedy and 'only="fold=1"' in error.remedy
    source = table.read(path, only="fold=1, mag=40")
    assert len(source.table) == 12 and source.classes == ("benign", "malignant") and "given_split" in source.table
    assert audited(path, where="fold=1").counts == {"train": 8, "test": 4}
    catalogue(
        "C16",
        "table of several folds below each other",
        "refused: `listed_twice`, which names the column and how to choose one",
    )


@pytest.mark.parametrize("column", ["row", "given_group", "given_image", "p_a", "given_label"])
def test_C06_a_column_with_a_name_that_is_kept_for_results_is_refused(tmp_path, column, catalogue):
    path = rows(tmp_path, f"path,dx,label,patient,{column}", *many("{i:02}.png,{'ab'[i % 2]},x,{i // 2},y"))
    error = refusal("csv_format", table.read, path, label="dx")
    assert error.subject.endswith(f"column {column}")
    catalogue("C06", f"own column {column} in a table", error)


# --- places and forms -------------------------------------------------------------------------------------------------


@pytest.fixture
def project(tmp_path, monkeypatch):
    folder = tmp_path / "project"
    (folder / "notebooks").mkdir(parents=True)
    (folder / "pyproject.toml").write_text('[project]\nname = "patholib"\n')
    monkeypatch.chdir(folder / "notebooks")
    monkeypatch.setenv("PATHOLIB_MOUNTS", str(tmp_path / "none"))
    monkeypatch.delenv("PATHOLIB_DATA", raising=False)
    monkeypatch.setenv("PATHOLIB_OUTPUTS", str(tmp_path / "outputs"))
    return folder


def test_C12_a_table_is_found_from_the_project_and_by_the_variable(project, monkeypatch, catalogue):
    rows(project / "data", "path,label,group", "00.png,a,1", "01.png,b,2")
    assert len(readers.load("breakhis", "data/my.csv").table) == 2
    monkeypatch.setenv("PATHOLIB_DATA", "data/my.csv")
    assert readers.load("isic2019").source == "table"
    catalogue(
        "C12",
        "relative path of a table, and PATHOLIB_DATA that names one",
        "found from the current folder, then from the project",
    )


@pytest.mark.parametrize(
    ("name", "separator", "pack"),
    [("t.tsv", "\t", bytes), ("t.txt", ";", bytes), ("t.csv.gz", ",", gzip.compress), ("table", "|", bytes)],
)
def test_C12_separators_and_compression_are_read(tmp_path, name, separator, pack, catalogue):
    path = rows(tmp_path, "path,label,group,note", "00.png,a,1,x", "01.png,b,2,y", name=name, separator=separator)
    path.write_bytes(pack(path.read_bytes()))
    assert readers.read(path).table["label"].tolist() == ["a", "b"]
    catalogue("C12", f"table called {name} with the separator {separator!r}", "read")


def test_C12_a_packed_table_that_grows_without_end_is_refused(tmp_path, monkeypatch, catalogue):
    monkeypatch.setattr("patholib.data.csvfiles.MOST_BYTES", 1000)
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress(bytes(5000)))
    refusal("too_many_bytes", table.read, tmp_path / "t.csv.gz")
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress(b"path,label\n" * 500)[:-20])
    refusal("csv_format", table.read, tmp_path / "t.csv.gz")
    catalogue("C12", "packed table that grows without end", "refused: `too_many_bytes`")


@pytest.mark.parametrize("folder", ["", "adenosis/", "a/b/"])
def test_C13_breakhis_is_read_without_its_folders(project, tmp_path, folder, catalogue):
    names = (FOLDS[0].format(1), FOLDS[1].format(2))
    place = folder if "a/b" in folder else ""
    put(
        tmp_path / "flat",
        *(f"{folder if i == 0 or place else 'ductal_carcinoma/' if folder else ''}{n}" for i, n in enumerate(names)),
    )
    source = readers.load("breakhis", tmp_path / "flat")
    assert source.source == "breakhis" and source.table["case"].tolist() == ["14-22549", "14-2523"]
    (tmp_path / "one" / names[0]).parent.mkdir()
    (tmp_path / "one" / names[0]).touch()
    refusal("single_class", breakhis.read, tmp_path / "one")
    catalogue("C13", "pictures of BreakHis without its folders", "read")


@pytest.mark.parametrize("parts", [("",), ("train/", "test/")])
def test_C13_class_folders_are_read_where_the_user_says_that_patients_are_unknown(
    project, tmp_path, parts, capsys, catalogue
):
    put(tmp_path / "set", *(f"{part}{label}/{i}.png" for part in parts for label in ("cat", "dog") for i in range(4)))
    error = refusal("no_groups", readers.load, "breakhis", tmp_path / "set")
    assert 'group="image"' in error.remedy
    source = readers.load("breakhis", tmp_path / "set", group="image")
    assert source.classes == ("cat", "dog") and source.group_by == "image" and "WARNING" in capsys.readouterr().out
    assert ("given_split" in source.table) == (len(parts) > 1)
    catalogue(
        "C13",
        "a folder for every class",
        'refused with a table to fill in, `no_groups`; read with group="image" and a warning',
    )


# --- splits -----------------------------------------------------------------------------------------------------------


def own_split(folder, words=("Training", "dev", " TEST")):
    lines = many("{i:02}.png,{'ab'[i // 2 % 2]},{i // 2},{'AB'[i // 12]},")
    lines = [line + words[i // 4 % 3] for i, line in enumerate(lines)]
    return table.read(rows(folder, "path,label,patient,scanner,split", *lines))


def test_C14_a_given_split_is_used_row_for_row(tmp_path, catalogue):
    source = own_split(tmp_path)
    home, said = homes.find(source)
    placed = splitting.placed(source, home, SHARES)
    wanted = [("train", "val", "test")[i // 4 % 3] for i in range(24)]
    assert placed["split"].tolist() == wanted and "column" in said and "split" not in source.subgroups
    catalogue("C14", "column split of one's own", "used row for row")


def test_C14_a_given_split_is_ignored_aloud(tmp_path, capsys, catalogue):
    home, said = homes.find(own_split(tmp_path), "group")
    assert home is None and not said and "is not used" in capsys.readouterr().out
    catalogue("C14", "column split of one's own, and split=group", "not used, which is said")


def test_C14_validation_is_drawn_from_training_by_group(tmp_path):
    source = own_split(tmp_path, ("train", "train", "test"))
    home, _ = homes.find(source)
    placed = splitting.placed(source, home, SHARES)
    assert (placed["split"] == "test").tolist() == [i // 4 % 3 == 2 for i in range(24)]
    drawn = placed[placed["split"] == "val"]
    assert set(drawn["label"]) == {"a", "b"} and not set(drawn["group"]) & set(
        placed.loc[placed["split"] == "train", "group"]
    )


def test_C14_a_split_of_another_table_is_matched_by_name(tmp_path):
    source = own_split(tmp_path)
    paper = tmp_path / "paper.csv"
    paper.write_text("image,fold\n" + "".join(f"other/{i:02}.jpg,{'test' if i > 15 else 'train'}\n" for i in range(24)))
    home, said = homes.find(source, str(paper))
    assert home.tolist() == ["train"] * 16 + ["test"] * 8 and "paper.csv" in said
    paper.write_text("image,fold\n00,train\n01,test\n")
    refusal("split_mismatch", homes.find, source, str(paper))


def test_C14_odd_words_and_missing_parts_are_refused(tmp_path, catalogue):
    source = own_split(tmp_path, ("train", "val", "holdout"))
    error = refusal("csv_format", homes.find, source)
    assert "'holdout'" in str(error) and 'split="group"' in error.remedy
    source = own_split(tmp_path / "b", ("train", "val", "val"))
    home, _ = homes.find(source)
    refusal("no_split", splitting.placed, source, home, SHARES)
    catalogue("C14", "column split with another word", "refused: `csv_format`")


def test_C14_a_column_of_split_words_is_the_split_whatever_its_name(tmp_path):
    lines = many("{i:02}.png,{'ab'[i // 2 % 2]},{i // 2},{'train test'.split()[i // 12]}")
    assert "given_split" in table.read(rows(tmp_path / "a", "path,label,patient,cohort", *lines)).table
    twice = [line + ",test" if i % 2 else line + ",train" for i, line in enumerate(lines)]
    error = refusal("csv_format", table.read, rows(tmp_path / "b", "path,label,patient,set1,set2", *twice))
    assert "set1" in error.subject and "set2" in error.subject


def test_a_source_is_held_out_and_the_rest_is_split_by_group(tmp_path):
    source = own_split(tmp_path)
    home, said = homes.find(source, "given", "scanner=B")
    placed = splitting.placed(source, home, SHARES)
    assert set(placed.loc[placed["scanner"] == "B", "split"]) == {"test"} and said == "held out: scanner=B"
    assert set(placed.loc[placed["scanner"] == "A", "split"]) == {"train", "val"}
    assert "unknown_value" == refusal("unknown_value", homes.find, source, "given", "scanner=C").code


def test_a_part_of_the_images_has_another_label(tmp_path):
    names = [f"SOB_B_{c}-14-{n}-{m}-00{n}.png" for c in ("A", "F") for n in (1, 2, 3) for m in ("40", "100")]
    source = breakhis.from_names(names)
    part = source.chosen(label="subtype", only="magnification=40")
    assert len(part.table) == 6 and part.classes == ("adenosis", "fibroadenoma") and part.positive is None
    assert "subtype" not in part.subgroups and "magnification" not in part.subgroups
    assert "did you mean" in str(refusal("csv_format", source.chosen, label="subtyp"))


def test_too_few_groups_are_told_class_by_class_with_what_to_do(tmp_path):
    lines = [*many("{i:02}.png,{'ab'[i // 2 % 2]},{i // 2}", 20), "20.png,c,20", "21.png,c,21"]
    path = rows(tmp_path, "path,dx,patient", *lines)
    error = refusal("split_infeasible", splitting.split, table.read(path))
    assert "c: 2 groups, 2 images: too few" in error.reason and 'only="label=a|b"' in error.remedy
    assert table.read(path, only="label=a|b").classes == ("a", "b")  # as the remedy says


# --- words ------------------------------------------------------------------------------------------------------------


def test_C17_every_parameter_that_a_remedy_names_exists(catalogue):
    known = {p.name for p in options.parameters()} | {"magnification"}  # a column, as an example
    known |= {"resume", "data", "allow_leakage", "on_bad", "fit", "start", "prefix", "folds", "positive"}
    told = re.compile(r"""(?<![\w{.])([a-z_]+)=\\?["'](?=[\w{.])""")
    for module in ("columns", "splitting", "readers/table", "readers/classfolders", "manifest", "checking"):
        text = Path(columns.__file__).with_name("x").parent.joinpath(f"{module}.py").read_text()
        remedies = re.findall(r"""["'][^"'\n]*(?:[Ss]et|[Ss]ay|only|Choose|drop|by)[^\n]*""", text)
        names = {name for line in remedies for name in told.findall(line)}
        assert names <= known | {"name", "axis", "how", "on"}, names - known
    assert Options(val=0.2, test=0.3).of_recipe["fractions"] == pytest.approx((0.5, 0.2, 0.3))
    assert Options().of_recipe["fractions"] is None
    refusal("bad_parameter", Options, val=0.6, test=0.5)
    refusal("bad_parameter", Options, only="fold")
    catalogue("C17", "parameters that remedies name", "exist")
