"""The manifest, and splits that no group crosses."""

import itertools
import json
import os
import re
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from patholib.base.errors import PathoError
from patholib.data import csvfiles, manifest, splitting
from patholib.data.readers import breakhis, isic2019

FRACTIONS = np.array([0.70, 0.15, 0.15])


def real(part: str) -> Path:
    folder = os.environ.get("PATHOLIB_REAL_DATA")
    if not folder:
        pytest.skip("PATHOLIB_REAL_DATA is unset: no real data to read")
    return Path(folder) / part


def make(labels, groups, classes=None, **columns):
    paths = columns.pop("paths", [f"{i:05d}.png" for i in range(len(labels))])
    table = pd.DataFrame({"path": paths, "label": labels, "group": groups, **columns}, dtype=str)
    return manifest.Manifest(
        table=table,
        root=Path("data"),
        classes=classes or tuple(sorted(set(labels))),
        positive=None,
        group_by="group",
        levels=("group",),
        subgroups=(),
        source="table",
        demo=False,
        found={},
    )


def shares(table):
    """Share of each class's images (rows, `all` last) in train, val and test."""
    images = splitting.split_counts(table)[[f"{s} images" for s in splitting.SPLITS]]
    return images.div(images.sum(axis=1), axis=0)


def refusal(code, call, *args, **kwargs):
    with pytest.raises(PathoError) as caught:
        call(*args, **kwargs)
    assert caught.value.code == code, caught.value
    return caught.value


# --- split: what holds for every manifest -----------------------------------------------------------------------------


@st.composite
def manifests(draw):
    """Up to 5 classes, groups of one class and of several, one image or many."""
    classes = "ABCDE"[: draw(st.integers(2, 5))]
    groups = draw(st.lists(st.lists(st.sampled_from(classes), min_size=1, max_size=6), min_size=6, max_size=40))
    rows = [(label, f"g{i}") for i, labels in enumerate(groups) for label in labels]
    assume(len({label for label, _ in rows}) > 1)
    return make([label for label, _ in rows], [group for _, group in rows])


@settings(max_examples=60)
@given(manifests(), st.integers(0, 99), st.randoms(use_true_random=False))
def test_no_group_is_in_two_splits_and_every_class_is_in_each(data, seed, random):
    try:
        table = splitting.split(data, seed=seed)
    except PathoError as error:
        assert error.code == "split_infeasible"
        return
    assert table["path"].tolist() == data.table["path"].tolist()  # every row exactly once
    assert manifest.in_several(table, "group", "split") == []
    assert set(table["split"]) == set(splitting.SPLITS)
    assert (table.groupby("label")["split"].nunique() == 3).all()
    assert (splitting.split_counts(table)[[f"{s} groups" for s in splitting.SPLITS]] > 0).all(axis=None)
    shuffled = data.table.sample(frac=1, random_state=random.randrange(2**31))
    again = splitting.split(
        make(shuffled["label"].tolist(), shuffled["group"].tolist(), paths=shuffled["path"].tolist()), seed=seed
    )
    pd.testing.assert_frame_equal(table, again)


@settings(max_examples=100)
@given(st.lists(st.sets(st.sampled_from("ABC"), min_size=1), min_size=3, max_size=7), st.integers(0, 9))
def test_a_split_is_refused_exactly_if_none_exists(groups, seed):
    rows = [(label, f"g{i}") for i, labels in enumerate(groups) for label in sorted(labels)]
    classes = sorted({label for label, _ in rows})
    assume(len(classes) > 1)

    def complete(places):
        return all({s for s, labels in zip(places, groups, strict=True) if c in labels} == {0, 1, 2} for c in classes)

    exists = any(complete(places) for places in itertools.product(range(3), repeat=len(groups)))
    data = make([label for label, _ in rows], [group for _, group in rows])
    if exists:
        assert (splitting.split(data, seed=seed).groupby("label")["split"].nunique() == 3).all()
    else:
        refusal("split_infeasible", splitting.split, data, seed=seed)


def test_another_seed_gives_another_split():
    data = make(["a", "b"] * 60, [f"g{i // 2}" for i in range(120)])
    splits = {tuple(splitting.split(data, seed=seed)["split"]) for seed in range(10)}
    assert len(splits) == 10


def test_the_split_is_the_same_on_every_machine():
    data = make(["a", "a", "b", "b", "b", "a"] * 6, [f"g{i // 3}" for i in range(36)])
    table = splitting.split(data, seed=3).drop_duplicates("group")
    test = table.loc[table["split"] == "test", "group"].tolist()
    assert test == ["g10", "g11"]  # recorded once: another answer would change everybody's splits


def test_by_image_the_classes_are_stratified_and_groups_are_torn():
    data = make(["a"] * 100 + ["b"] * 20, [f"g{i // 5}" for i in range(120)])
    table = splitting.split(data, group_by="image")
    assert splitting.split_counts(table).loc["a"].tolist()[:3] == [70, 15, 15]
    assert splitting.split_counts(table).loc["b"].tolist()[:3] == [14, 3, 3]
    assert (table["group"] == table["path"]).all()
    assert table.groupby("given_group")["split"].nunique().max() > 1
    assert splitting.leaked_share(table, "group") > 0.9 and splitting.leaked_share(splitting.split(data), "group") == 0


def test_fractions_are_met_whatever_they_are():
    data = make(["a", "b"] * 200, [f"g{i}" for i in range(400)])
    assert np.abs(shares(splitting.split(data, (0.5, 0.2, 0.3))) - [0.5, 0.2, 0.3]).max(axis=None) < 0.01


def test_a_patient_in_two_classes_stays_together():
    data = make(["a", "b"] + ["a", "a", "b", "b"] * 10, ["both", "both"] + [f"g{i // 2}" for i in range(40)])
    table = splitting.split(data)
    assert len(set(table.loc[table["group"] == "both", "split"])) == 1


@pytest.mark.parametrize("group_by", ["label", "grup"])
def test_an_unknown_group_is_named(group_by):
    refusal("unknown_group", splitting.split, make(list("abab" * 5), list("abcdefghijklmnopqrst")), group_by=group_by)


# --- split: the real data ---------------------------------------------------------------------------------------------


def test_breakhis_is_split_by_case_and_two_benign_cases_at_least_are_tested():
    data = breakhis.from_names(pd.read_csv(real("breakhis/names_40x.csv"))["image"])
    for seed in range(20):
        table = splitting.split(data, FRACTIONS, seed)
        off = (shares(table) - FRACTIONS).abs().max(axis=1)
        assert off["benign"] <= 126 / 625 and off["malignant"] <= 82 / 1370  # the largest case of each
        groups = splitting.split_counts(table).loc["benign", ["val groups", "test groups"]]
        assert groups.min() >= 2  # one patient would not be enough to test a class on
        assert manifest.in_several(table, "case", "split") == []
        assert manifest.in_several(table, "slide", "split") == []


def test_the_leaked_share_worked_by_hand():
    table = pd.DataFrame(
        {"case": ["a", "a", "b", "b", "c", "d"], "split": ["train", "test", "test", "val", "test", "train"]}
    )
    assert splitting.leaked_share(table, "case") == pytest.approx(1 / 3)  # a leaks; b was only validated on, c is new
    assert splitting.leaked_share(table[table["case"] != "a"], "case") == 0


@pytest.mark.parametrize("group_by", ["lesion", "image"])
def test_isic_is_split_close_to_the_fractions_within_five_seconds(group_by):
    rows = isic2019.list_rows(real("isic2019"))
    table = pd.DataFrame({"path": rows["image"], "label": rows["label"], "lesion": rows["lesion"]})
    data = manifest.Manifest(
        table=table,
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
    start = time.process_time()
    table = splitting.split(data, FRACTIONS, 0, group_by)
    assert time.process_time() - start < 5
    off = np.abs(shares(table) - FRACTIONS)
    assert off.loc["all"].max() < 0.005
    largest = table.groupby(["label", group_by if group_by == "lesion" else "path"]).size().groupby("label").max()
    step = (largest / table["label"].value_counts()).clip(lower=0.005)
    assert (off.drop("all").max(axis=1) <= step).all()
    assert bool(manifest.in_several(table, "lesion", "split")) == (group_by == "image")


# --- keeping a split --------------------------------------------------------------------------------------------------


@pytest.fixture
def data():
    odd = ["NA", "0012", 'häßlich, "quoted".png', "line\nbreak.png", "-dash.png"]
    paths = odd + [f"{i}.png" for i in range(55)]
    return make(["NA", "b"] * 30, [f"0{i // 2}" for i in range(60)], paths=paths, site=[""] * 60)


def rewrite(path, table):
    """What somebody does who edits the file and its digest."""
    splitting.write_split(table, path)


def test_a_split_is_read_as_it_was_written(tmp_path, data):
    table = splitting.split(data)
    path = splitting.write_split(table, tmp_path / "run" / "split.csv")
    pd.testing.assert_frame_equal(splitting.read_split(path), table, check_dtype=False)
    assert all(isinstance(value, str) for value in splitting.read_split(path).to_numpy().ravel())


def test_the_digest_is_in_the_form_of_sha256sum(tmp_path, data):
    path = splitting.write_split(splitting.split(data), tmp_path / "split.csv")
    assert re.fullmatch(r"[0-9a-f]{64}  split\.csv\n", (tmp_path / "split.csv.sha256").read_text())
    assert path == tmp_path / "split.csv"


def test_a_changed_split_is_refused(tmp_path, data):
    path = splitting.write_split(splitting.split(data), tmp_path / "split.csv")
    path.write_bytes(path.read_bytes().replace(b",train", b",test", 1))
    refusal("split_changed", splitting.read_split, path)
    path.with_name("split.csv.sha256").unlink()
    refusal("split_changed", splitting.read_split, path)
    path.unlink()
    refusal("missing_file", splitting.read_split, path)


def test_a_leaky_split_is_refused_though_its_digest_is_right(tmp_path, data):
    table = splitting.split(data)
    table.loc[0, "split"] = "test" if table.loc[0, "split"] != "test" else "train"
    rewrite(tmp_path / "split.csv", table)
    error = refusal("split_leakage", splitting.read_split, tmp_path / "split.csv")
    assert table.loc[0, "group"] in error.subject


def test_unknown_split_names_and_doubled_rows_are_refused(tmp_path, data):
    table = splitting.split(data)
    rewrite(tmp_path / "a.csv", table.assign(split="valid"))
    assert "'valid'" in refusal("csv_format", splitting.read_split, tmp_path / "a.csv").reason
    rewrite(tmp_path / "b.csv", pd.concat([table, table[:1]]))
    assert "twice" in refusal("csv_format", splitting.read_split, tmp_path / "b.csv").reason


def test_split_counts_are_counted_by_hand():
    table = pd.DataFrame(
        {"label": list("aaabb"), "group": list("xxyyz"), "split": ["train", "train", "val", "val", "test"]}
    )
    counts = splitting.split_counts(table)
    assert counts.loc["a"].tolist() == [2, 1, 0, 1, 1, 0]
    assert counts.loc["b"].tolist() == [0, 1, 1, 0, 1, 1]
    assert counts.loc["all"].tolist() == [2, 2, 1, 1, 1, 1]
    assert list(counts.columns) == [
        "train images",
        "val images",
        "test images",
        "train groups",
        "val groups",
        "test groups",
    ]


@pytest.mark.parametrize("name", ["all", "ALL", "All together"])
def test_C05_a_class_called_all_is_counted_apart_from_the_total(name, catalogue):
    table = pd.DataFrame({"label": [name, name, "b"], "group": list("xxy"), "split": ["train", "train", "test"]})
    counts = splitting.split_counts(table)
    assert counts.index.is_unique and len(counts) == 3
    assert counts.loc[name].tolist() == [2, 0, 0, 1, 0, 0] and counts.loc["b"].tolist() == [0, 0, 1, 0, 0, 1]
    assert counts.iloc[-1].tolist() == [2, 0, 1, 1, 0, 1] and counts.index[-1] not in (name, "b")
    catalogue("C05", f"class called {name}", "counted apart from the total, which then has another name")


# --- the manifest itself ----------------------------------------------------------------------------------------------


def test_a_manifest_is_sorted_by_path():
    assert make(list("ab"), list("xy"), paths=["2.png", "1.png"]).table["path"].tolist() == ["1.png", "2.png"]


def test_names_no_csv_could_hold_are_refused():
    refusal("unwritable_name", make, list("ab"), list("xy"), paths=["a\r.png", "b.png"])
    refusal("unwritable_name", manifest.refuse_unwritable, "path", ["a\udcff.png", "b.png"])
    refusal("unwritable_name", breakhis.from_names, ["caf\udce9/SOB_M_DC-14-2523-40-010.png"])


def test_a_manifest_never_holds_nan_an_unknown_class_or_an_empty_id():
    refusal("bad_manifest", make, list("ab"), ["x", ""])
    refusal("bad_manifest", make, list("ab"), list("xy"), classes=("a", "c"))
    table = pd.DataFrame({"path": ["1", "2"], "label": ["a", "b"], "group": ["x", "y"], "age": [1.0, np.nan]})
    refusal(
        "bad_manifest", manifest.Manifest, table, Path(), ("a", "b"), None, "group", ("group",), (), "table", False, {}
    )
    refusal(
        "bad_manifest",
        manifest.Manifest,
        table[["path", "label", "group"]],
        Path(),
        ("a", "b"),
        None,
        "case",
        ("group",),
        (),
        "table",
        False,
        {},
    )


def test_a_part_of_a_manifest_is_chosen_by_its_columns():
    data = make(list("abab"), list("wxyz"), scanner=["s1", "s1", "s2", "s2"])
    assert data.chosen(only="scanner=s2").table["group"].tolist() == ["y", "z"]
    assert data.chosen(only="scanner=s2").found["images"] == 2
    refusal("csv_format", data.chosen, only="scaner=s2")
    refusal("unknown_value", data.chosen, only="scanner=s3")


def test_all_problems_are_reported_at_once_and_do_not_break_the_line():
    problems = [("a", f"x{i}\n.png", "is bad") for i in range(25)]
    error = refusal("a", csvfiles.stop_on, problems, "Mend it")
    assert "x0\\n.png" in error.reason and "and 5 more" in error.reason and "25 a" in error.reason
    csvfiles.stop_on([], "nothing to mend")


# --- CSV --------------------------------------------------------------------------------------------------------------


def test_a_table_is_indexed_by_the_lines_of_its_file(tmp_path):
    (tmp_path / "t.csv").write_bytes(b"\xef\xbb\xbfpath,label,group\r\n0012,NA,\r\n\r\nnull,None,1e3\r\n")
    table = csvfiles.read_csv(tmp_path / "t.csv", ("path", "label", "group"))
    assert table.to_numpy().tolist() == [["0012", "NA", ""], ["null", "None", "1e3"]]
    assert table.index.tolist() == [2, 4]  # lines of the file


def test_found_is_json():
    assert json.loads(json.dumps(manifest.first(["a\nb"] * 8, limit=2))) == {"count": 8, "first": ["a\\nb", "a\\nb"]}


# --- folds ------------------------------------------------------------------------------------------------------------


def many(groups=24, each=4):
    return make(
        [label for g in range(groups) for label in ["ab"[g % 3 == 0]] * each],
        [f"g{g}" for g in range(groups) for _ in range(each)],
    )


@settings(max_examples=40)
@given(manifests(), st.integers(2, 5), st.integers(1, 2), st.integers(0, 99), st.randoms(use_true_random=False))
def test_folds_test_every_image_once_and_tear_no_group(data, folds, repeats, seed, random):
    try:
        tables = splitting.folds(data, folds, repeats, seed)
    except PathoError as error:
        assert error.code == "split_infeasible"
        return
    assert len(tables) == folds * repeats
    for table in tables:
        assert table["path"].tolist() == data.table["path"].tolist()
        assert manifest.in_several(table, "group", "split") == []
        assert (table.groupby("label")["split"].nunique() == 3).all()  # every class in train, val and test
    for repeat in range(repeats):
        tested = [p for t in tables[repeat * folds : (repeat + 1) * folds] for p in t.loc[t["split"] == "test", "path"]]
        assert sorted(tested) == sorted(data.table["path"])
    shuffled = data.table.sample(frac=1, random_state=random.randrange(2**31))
    again = make(shuffled["label"].tolist(), shuffled["group"].tolist(), paths=shuffled["path"].tolist())
    again = splitting.folds(again, folds, repeats, seed)
    for table, other in zip(tables, again, strict=True):
        pd.testing.assert_frame_equal(table, other)


def test_folds_are_stratified_and_of_one_size():
    for table in splitting.folds(many(60), 5, seed=1):
        counts = splitting.split_counts(table)
        assert counts.loc["all", "test groups"] == 12 and counts.loc["b", "test groups"] == 4
        assert counts.loc["all", "val images"] == pytest.approx(0.15 * 240, abs=4)


def test_another_repeat_or_seed_gives_other_folds():
    def tested(tables):
        return {tuple(table["split"] == "test") for table in tables}

    first = tested(splitting.folds(many(), 3, repeats=3))
    assert len(first) == 9 and not first & tested(splitting.folds(many(), 3, seed=1))


def test_there_may_be_as_many_folds_as_groups_of_a_class():
    assert len(splitting.folds(many(12), 4)) == 4
    for arguments in ({"folds": True}, {"val": 0.9}, {"val": 0.0}):
        refusal("bad_parameter", splitting.folds, many(), **arguments)


def test_patients_set_apart_are_in_neither_part_of_the_study():
    study, apart = splitting.set_apart(many(60), 0.4)
    assert not set(study.table["group"]) & set(apart.table["group"])
    assert len(study.table) + len(apart.table) == 240 and len(apart.table) == pytest.approx(96, abs=4)
    for part in (study, apart):
        assert set(part.table["label"]) == {"a", "b"} and part.found["images"] == len(part.table)
    assert apart.table["path"].tolist() != splitting.set_apart(many(60), 0.4, seed=1)[1].table["path"].tolist()
