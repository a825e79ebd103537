"""An audit finds what two splits share, says what it could not look at, and calls nothing a leak that is none."""

from __future__ import annotations

import json
import os
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from samples import copied, textured

from patholib.base import files
from patholib.base.errors import PathoError
from patholib.data import checking, leakage, manifest, splitting
from patholib.data.readers import breakhis, isic2019, table
from patholib.model import recipes
from patholib.train import runs

pytestmark = pytest.mark.heavy


def real(part: str) -> Path:
    folder = os.environ.get("PATHOLIB_REAL_DATA")
    if not folder:
        pytest.skip("PATHOLIB_REAL_DATA is unset: no real data to read")
    return Path(folder) / part


def quiet(*args, **kwargs) -> leakage.Audit:
    return leakage.audit(*args, progress=False, **kwargs)


def row(audit: leakage.Audit, level: str, seen_in: str = "train", found_in: str = "test") -> dict:
    (found,) = audit.table[
        (audit.table["level"] == level) & (audit.table["seen in"] == seen_in) & (audit.table["found in"] == found_in)
    ].to_dict("records")
    return found


def refusal(code: str, *args, **kwargs) -> PathoError:
    with pytest.raises(PathoError) as caught:
        quiet(*args, **kwargs)
    assert caught.value.code == code, caught.value
    return caught.value


def rows_of(text: str) -> pd.DataFrame:
    """A table in short: "a.png NV p1 train; ..." with the columns path, label, patient, split; - is nothing."""
    cells = [[cell.replace("-", "") for cell in line.split()] for line in text.split(";")]
    return pd.DataFrame(cells, columns=["path", "label", "patient", "split"])


SMALL = (
    "a.png MEL p1 train; b.png NV p2 train; c.png NV - train; d.png NV p4 val; e.png MEL p1 val; "
    "f.png MEL p1 test; g.png NV p4 test; h.png NV - test; i.png NV p9 test"
)


@pytest.fixture
def planted(tmp_path) -> Path:
    """Folders in which test holds a file, the pixels and a turned copy of training images, and one of its own."""
    for split, names in {"train": range(6), "Validation": range(6, 9), "test": range(9, 12)}.items():
        for n in names:
            folder = tmp_path / split / ("NV" if n % 2 else "MEL")
            folder.mkdir(parents=True, exist_ok=True)
            textured(n, 96).save(folder / f"{n}.png")
    test = tmp_path / "test"
    (test / "NV" / "file.png").write_bytes((tmp_path / "train/NV/1.png").read_bytes())
    Image.open(tmp_path / "train/NV/3.png").save(test / "NV" / "pixels.bmp")
    copied(textured(5, 96), np.random.default_rng(0)).save(test / "NV" / "turned.jpg", quality=60)
    return tmp_path


# --- ids --------------------------------------------------------------------------------------------------------------


def test_shared_ids_are_counted_by_way_and_class_worked_by_hand():
    audit = quiet(rows_of(SMALL))
    found = row(audit, "patient")
    assert (found["images"], found["of"], found["share"]) == (1, 4, 0.25)  # f; h's patient is unknown, not shared
    assert (found["MEL share"], found["NV share"], found["examples"]) == (1, 0, "p1")
    assert row(audit, "patient", "train", "val")["images"] == 1 and row(audit, "patient", "val")["images"] == 2
    assert not audit.ok and audit.verdict.startswith("LEAKS: 25.0% of the test images have their patient in train")
    assert audit.counts == {"train": 3, "val": 2, "test": 4}
    assert "patient: unknown for 2 of 9 images" in audit.unchecked
    assert any(text.startswith("pictures: none of the 9 files is at hand") for text in audit.unchecked)


def test_a_patient_in_two_classes_is_said_but_is_no_leak():
    audit = quiet(rows_of("a.png MEL p1 train; b.png NV p1 train; c.png NV p2 test; d.png - p2 test"))
    assert audit.ok and audit.in_two_classes == {"patient": {"count": 1, "first": ["p1"]}}
    assert "1 patient ids have images of two classes (p1)" in repr(audit)


def test_the_order_of_rows_changes_nothing():
    ordered = rows_of(SMALL)
    shuffled = ordered.sample(frac=1, random_state=1).reset_index(drop=True)
    assert quiet(shuffled).summary == quiet(ordered).summary


def test_every_level_is_looked_at():
    rows = rows_of(SMALL).assign(slide_id=list("abcdefgag"), lesion=list("123456789"), age="50", study="0")
    assert set(quiet(rows).table["level"]) == {"patient", "slide_id", "lesion", "any"}
    assert row(quiet(rows, ids=["study"]), "study")["share"] == 1
    assert refusal("csv_format", rows, ids=["studdy"]).reason.endswith("did you mean 'study'?")


def test_a_path_in_two_splits_is_a_leak():
    audit = quiet(rows_of("a.png NV p1 train; a.png NV p2 test; b.png NV p3 test"))
    assert row(audit, "path")["images"] == 1 and "are listed in train too" in audit.verdict


def test_foreign_columns_and_words_are_understood(tmp_path):
    ours = rows_of(SMALL)
    foreign = ours.rename(columns={"path": "file_name", "label": "dx", "split": "fold", "patient": "who"})
    foreign["fold"] = foreign["fold"].map({"train": "Training", "val": " dev", "test": "TEST"})
    files.write_table(tmp_path / "foreign.csv", foreign)
    audit = quiet(tmp_path / "foreign.csv", ids=["who"], columns={"path": "file_name", "label": "dx", "split": "fold"})
    assert row(audit, "who")["share"] == row(quiet(ours), "patient")["share"]
    assert row(audit, "who")["MEL share"] == 1


@pytest.mark.parametrize(
    ("change", "code", "says"),
    [
        ({"columns": {"path": "file_name"}}, "csv_format", "column file_name: is missing"),
        ({"columns": {"paht": "path"}}, "bad_parameter", "did you mean 'path'?"),
        ({"rename": {"split": "fold"}, "fold": "1"}, "csv_format", "column split: is missing"),
        ({"split": "holdout"}, "csv_format", "is in split 'holdout'"),
        ({"split": "train"}, "no_split", "does not hold images of two of the splits"),
        ({"path": ""}, "csv_format", "has no path"),
        ({"drop": "patient"}, "nothing_to_check", "has no column of ids"),
    ],
)
def test_what_cannot_be_audited_is_refused(change, code, says):
    rows = rows_of(SMALL).rename(columns=change.get("rename", {})).drop(columns=change.get("drop", []))
    rows = rows.assign(**{name: change[name] for name in ("path", "split", "fold") if name in change})
    assert says in str(refusal(code, rows, columns=change.get("columns")))


def test_folders_that_are_no_splits_are_refused(tmp_path):
    (tmp_path / "images").mkdir()
    assert "--train FOLDER" in refusal("no_split", tmp_path).remedy
    refusal("unknown_split", {"holdout": tmp_path})
    refusal("missing_file", {"train": tmp_path / "images", "test": tmp_path / "gone"})
    refusal("missing_file", tmp_path / "gone.csv")


def test_our_own_splits_leak_as_the_manifest_says(tmp_path):
    data = breakhis.from_names(
        f"SOB_{b}_{s}-14-{i // 8:05d}{'AB'[i % 2]}-40-{i:03d}.png"
        for i in range(240)
        for b, s in [("B", "A") if i // 8 % 2 else ("M", "DC")]
    )
    safe, leaky = splitting.split(data), splitting.split(data, group_by="image")
    for split in (safe, leaky):
        audit = quiet(files.write_table(tmp_path / "split.csv", split))
        for level in ("slide", "case"):
            assert row(audit, level)["share"] == pytest.approx(splitting.leaked_share(split, level))
        assert audit.ok == (split is safe)
    bare = quiet(leaky[["path", "label", "split"]])  # slides and cases are read from the names
    assert row(bare, "case")["share"] == row(audit, "case")["share"] > 0.9
    assert set(audit.table["level"]) == {"slide", "case", "any"}  # `group` repeats the path, or the case
    given = quiet(leaky[["path", "label", "split"]].assign(slide=leaky["path"] + "!"))
    assert row(given, "slide")["images"] == 0 and row(given, "case")["images"] > 0  # what is given rules over names


def test_lesions_come_from_the_metadata_and_a_smaller_copy_is_of_its_picture(tmp_path):
    rows = pd.DataFrame(
        {
            "image": ["ISIC_0000001", "ISIC_0000001_downsampled", "ISIC_0000002", "ISIC_0000003"],
            "label": "NV",
            "split": ["train", "test", "test", "test"],
        }
    )
    files.write_table(tmp_path / "split.csv", rows)
    alone = quiet(tmp_path / "split.csv")
    assert row(alone, "picture")["images"] == 1  # the names say so much
    assert any(text.startswith("lesions: ") and "--metadata" in text for text in alone.unchecked)
    metadata = pd.DataFrame({"image": rows["image"], "lesion_id": ["L1", "", "L1", "L2"], "sex": "female"})
    audit = quiet(tmp_path / "split.csv", metadata=files.write_table(tmp_path / "meta.csv", metadata))
    assert row(audit, "lesion_id")["images"] == 1 and row(audit, "any")["images"] == 2
    assert "lesion_id: unknown for 1 of 4 images" in audit.unchecked
    files.write_table(tmp_path / "meta.csv", pd.concat([metadata, metadata.tail(1)]))
    assert (
        "lists 'ISIC_0000003' twice"
        in refusal("csv_format", tmp_path / "split.csv", metadata=tmp_path / "meta.csv").reason
    )


# --- pictures ---------------------------------------------------------------------------------------------------------


def test_equal_and_turned_pictures_are_found_each_at_its_level(planted):
    audit = quiet(planted)
    assert audit.counts == {"train": 6, "val": 3, "test": 6}
    assert {k: row(audit, k)["images"] for k in (*leakage.KINDS, "any")} == {
        "same file": 1,
        "same pixels": 1,
        "near-duplicate": 1,
        "any": 3,
    }
    assert not audit.table[audit.table["found in"] == "val"]["images"].any()
    assert not audit.table[audit.table["seen in"] == "val"]["images"].any()
    found = {(pair["path"], pair["other path"]): pair["kind"] for pair in audit.pairs.to_dict("records")}
    assert found == {
        ("test/NV/file.png", "train/NV/1.png"): "same file",
        ("test/NV/pixels.bmp", "train/NV/3.png"): "same pixels",
        ("test/NV/turned.jpg", "train/NV/5.png"): "near-duplicate",
    }
    assert row(audit, "any")["NV share"] == 3 / 5 and row(audit, "any")["MEL share"] == 0


def test_folders_can_be_named_one_by_one_and_ids_alone_be_compared(planted):
    audit = quiet({"train": planted / "train", "test": planted / "test"})
    assert audit.counts == {"train": 6, "test": 6} and row(audit, "any")["images"] == 3
    refusal("nothing_to_check", planted, pixels=False)


def test_a_csv_finds_its_images_from_its_folder_from_root_and_without_endings(planted, tmp_path_factory):
    rows = pd.DataFrame(
        {
            "path": ["train\\NV\\1", "train/NV/3.png", "test/NV/file", "test/NV/gone.png"],
            "split": ["train", "train", "test", "test"],
        }
    )
    inside = quiet(files.write_table(planted / "split.csv", rows))
    outside = quiet(files.write_table(tmp_path_factory.mktemp("elsewhere") / "split.csv", rows), root=planted)
    assert inside.summary == outside.summary
    assert row(inside, "same file")["images"] == 1
    assert inside.unchecked[-2:] == (
        "pictures: 1 of 4 are not at hand (missing_file), as test/NV/gone.png",
        "labels: none are given",
    )


def test_files_that_are_no_pictures_are_counted_and_a_pipe_is_not_opened(planted):
    (planted / "test" / "NV" / "empty.png").write_bytes(b"")
    textured(1).resize((30, 30)).save(planted / "test" / "NV" / "small.png")
    (planted / "train" / "NV" / "small.png").write_bytes((planted / "test" / "NV" / "small.png").read_bytes())
    Image.new("RGB", (64, 64), "white").save(planted / "test" / "NV" / "white.png")
    if hasattr(os, "mkfifo"):
        os.mkfifo(planted / "test" / "NV" / "pipe.png")
    audit = quiet(planted)
    assert row(audit, "same file")["images"] == 2  # a picture too small to be read still has bytes
    texts = "\n".join(audit.unchecked)
    assert f"pictures: 2 of {sum(audit.counts.values())} cannot be read (too_small)" in texts
    assert "cannot be read (empty), as test/NV/empty.png" in texts
    assert "are too plain for near-duplicates to be recognised (flat), as test/NV/white.png" in texts


def test_one_picture_with_two_labels_is_listed_in_whatever_splits(planted):
    train = planted / "train"
    (train / "MEL" / "other.png").write_bytes((train / "NV" / "1.png").read_bytes())
    copied(textured(8, 96), np.random.default_rng(1)).save(planted / "Validation" / "NV" / "copy.jpg")
    audit = quiet({"train": train, "val": planted / "Validation"})
    assert audit.ok  # the copies stand in one split each
    found = {
        (c["path"], c["other path"]): (c["kind"], c["label"], c["other label"])
        for c in audit.conflicts.to_dict("records")
    }
    assert found == {
        ("train/MEL/other.png", "train/NV/1.png"): ("same file", "MEL", "NV"),
        ("val/MEL/8.png", "val/NV/copy.jpg"): ("near-duplicate", "MEL", "NV"),
    }
    assert "2 pairs of equal or nearly equal pictures have two labels" in repr(audit)


# --- what is done with it ---------------------------------------------------------------------------------------------


def test_the_page_holds_its_pictures_and_obeys_no_text_of_others(planted):
    rows = pd.DataFrame(
        {
            "path": ["train/NV/5.png", "test/NV/turned.jpg", "train/NV/1.png", "test/NV/11.png"],
            "label": ["<script>alert(1)</script>", "<i>", "a", "<script>alert(1)</script>"],
            "case": ["1", "2", "<u>", "<u>"],
            "split": ["train", "test"] * 2,
        }
    )
    audit = quiet(files.write_table(planted / "split.csv", rows))
    text = audit.write(planted / "out").read_text(encoding="utf-8")
    assert text.count("data:image/jpeg;base64,") == 4  # a pair in two splits, which also has two labels
    for page in (text, audit._repr_html_()):
        assert re.findall(r"<(?:script|i|u)>", page) == [] and "&lt;script&gt;alert(1)" in page
    assert text.count("&lt;u&gt;") and text.count("&lt;i&gt;") >= 4  # tables and captions
    assert re.findall(r'(?:src|href)="(?!data:)', text) == [] and "default-src 'none'" in text
    assert json.loads((planted / "out" / "audit.json").read_text(encoding="utf-8")) == audit.summary
    assert str(planted) not in text and str(planted) not in json.dumps(audit.summary)


def test_a_gone_file_costs_its_thumbnail_and_no_more(planted):
    audit = quiet(planted)
    (planted / "train/NV/5.png").unlink()
    assert "data:image" not in audit.write(planted / "out").read_text(encoding="utf-8")


def test_demo_images_are_said_to_be_demo_images_first(planted):
    assert "Demo images" not in repr(quiet(planted))
    (planted / "DEMO.json").write_text("{}")
    audit = quiet(planted)
    assert repr(audit).startswith("Demo images: not a result") and audit.summary["demo"]
    page = audit.write(planted / "out").read_text(encoding="utf-8")
    assert page.index("DEMO IMAGES: NOT A RESULT") < page.index("LEAKS")


@pytest.mark.parametrize("given", [pytest.param("turned.jpg", id="D25-near-duplicate")])
def test_a_leak_is_refused_with_its_first_pairs(planted, catalogue, given):
    for name in ("file.png", "pixels.bmp"):
        (planted / "test" / "NV" / name).unlink()
    with pytest.raises(PathoError) as caught:
        leakage.refuse(quiet(planted))
    assert caught.value.code == "split_leakage"
    assert caught.value.reason == (
        "1 of 4 test images nearly equal an image of train (test/NV/turned.jpg = train/NV/5.png)"
    )
    catalogue(
        "D25", "a split in whose test part lies a turned, rescaled JPEG copy of a training image (audit)", caught.value
    )
    (planted / "test" / "NV" / given).unlink()
    leakage.refuse(quiet(planted))


# --- of images that were checked: before a training -------------------------------------------------------------------


def test_training_with_a_turned_and_rescaled_copy_in_another_part_is_refused(tmp_path, catalogue):
    recipe = replace(recipes.for_demo(recipes.BREAKHIS), group_by="group")
    folder = tmp_path / "set"
    folder.mkdir()
    pictures = {f"{i:02}.png": textured(i, 96) for i in range(12)}
    pictures["twin.jpg"] = textured(0, 96).transpose(Image.Transpose.ROTATE_90).resize((70, 70))
    for name, picture in pictures.items():
        picture.save(folder / name, quality=60)
    names = list(pictures)
    files.write_table(
        folder / "mine.csv",
        pd.DataFrame(
            {
                "path": names,
                "label": [recipe.classes[i % 2] for i in range(12)] + [recipe.classes[0]],
                "group": [f"p{i}" for i in range(13)],
            }
        ),
    )
    checked = checking.check(table.read(folder / "mine.csv"), 74, cache_dir=tmp_path / "cache", progress=False)
    split = checked.manifest.table.assign(split=["train"] * 8 + ["val"] * 2 + ["test"] * 3)
    with pytest.raises(PathoError) as caught:
        runs.start(recipe, checked, split, output=tmp_path / "out")
    error = caught.value
    assert error.reason == "1 of 3 test images nearly equal an image of train (twin.jpg = 00.png)"
    catalogue(
        "D25", "training on a split in whose test part lies a turned, rescaled JPEG copy of a training image", error
    )
    together = split.assign(split=split["split"].where(split["path"] != "00.png", "test"))
    assert runs.start(recipe, checked, together, output=tmp_path / "out").leaks == {}


# --- real names and pictures ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_a_stratified_split_of_breakhis_shows_nearly_every_slide(seed, tmp_path):
    names = pd.read_csv(real("breakhis/names_40x.csv"))["image"]
    split = splitting.split(breakhis.from_names(names), seed=seed, group_by="image")[["path", "label", "split"]]
    audit = quiet(files.write_table(tmp_path / "split.csv", split))
    assert row(audit, "slide")["share"] >= 0.995 and row(audit, "case")["share"] >= 0.995
    assert sum(audit.counts.values()) == 1995
    assert audit.in_two_classes["case"]["count"] == 0


@pytest.fixture(scope="module")
def isic_rows() -> manifest.Manifest:
    """All 25,331 rows of ISIC 2019, without images."""
    rows = isic2019.list_rows(real("isic2019")).rename(columns={"image": "path"})[["path", "label", "lesion"]]
    return manifest.Manifest(
        table=rows,
        root=Path(),
        classes=isic2019.CLASSES,
        positive=None,
        group_by="lesion",
        levels=("lesion",),
        subgroups=(),
        source="isic2019",
        demo=False,
        found={},
    )


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)])
def test_a_stratified_split_of_isic_shows_most_lesions_and_melanomas_above_all(isic_rows, seed):
    split = splitting.split(isic_rows, seed=seed, group_by="image")[["path", "label", "split"]]
    audit = quiet(split, metadata=real("isic2019") / isic2019.METADATA)
    found = row(audit, "lesion_id")
    assert found["share"] == pytest.approx(0.57, abs=0.015) and found["MEL share"] == pytest.approx(0.76, abs=0.025)
    assert "lesion_id: unknown for 2,084 of 25,331 images" in audit.unchecked


def assert_no_picture_twice(source: manifest.Manifest, unread: list[str]) -> None:
    audit = quiet(splitting.split(source), root=source.root)
    assert audit.ok and audit.pairs.empty and audit.conflicts.empty
    assert [re.search(r"\((\w+)\)", text)[1] for text in audit.unchecked] == unread
    assert set(leakage.KINDS) < set(audit.table["level"])


def test_real_patches_split_by_patient_show_no_picture_twice():
    assert_no_picture_twice(table.read(real("idc/labels.csv")), ["too_small"])


@pytest.mark.slow
def test_real_lesions_split_by_lesion_show_no_picture_twice():
    """None of 4.3 million pairs is called a near-duplicate; a look at the nearest showed that none is one."""
    assert_no_picture_twice(isic2019.read(real("isic2019"), missing="skip"), [])
