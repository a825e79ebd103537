"""Whatever path a person gives is answered with one true sentence; every table reads back exactly."""

from __future__ import annotations

import contextlib
import csv
import io
import os
import sys
import tempfile

import hypothesis
import numpy as np
import pandas as pd
import pytest
from hypothesis import strategies as st
from samples import encoded, own, own_set, picture, sound
from tiny import TINY

import patholib
from patholib import cli
from patholib.base import files
from patholib.base.errors import PathoError
from patholib.data import checking, csvfiles, decoding, homes, leakage, readers
from patholib.data.readers import table
from patholib.deploy import export, predictions
from patholib.deploy.inference import Predictor
from patholib.lab import explored
from patholib.model import building, weights
from patholib.options import Options

pytestmark = [pytest.mark.heavy, pytest.mark.usefixtures("small_network")]
posix = pytest.mark.skipif(os.name != "posix", reason="this system has no such files or names")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    export.save_model(folder, building.build(TINY).state_dict(), TINY, run="a run")
    return folder


@pytest.fixture
def answered(model, tmp_path):
    """Rows of answers and of bad files, {path: row} each."""
    predictor = Predictor(model, "torch")

    def ask(*places):
        out = tmp_path / f"answers{len(list(tmp_path.glob('answers*')))}.csv"
        written = predictions.write(predictor, [str(place) for place in places], out, progress=False)
        return [
            {row["path"]: row for row in csvfiles.read_csv(path).to_dict("records")} if path.exists() else {}
            for path in (written.path, written.bad_path)
        ]

    return ask


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "scans"
    place.mkdir()
    (place / "good.png").write_bytes(encoded(picture(1)))
    return place


def refused(call, *arguments, **options):
    with pytest.raises(PathoError) as caught:
        call(*arguments, **options)
    return caught.value


@posix
@pytest.mark.parametrize("name", ["cr\rhere.png", "=1+1.png", "@SUM(A1).png", '"a",b.png', "new\nline.png", "-x.png"])
def test_c30_c56_names_of_files_read_back_exactly(folder, answered, catalogue, name):
    (folder / name).write_bytes(encoded(picture(2)))
    good, bad = answered(folder)
    assert set(good) == {str(folder / "good.png"), str(folder / name)} and not bad
    catalogue(
        "C30" if name < " " or "\r" in name else "C56",
        f"predict: file name {name!r}",
        "as it is, and read back exactly",
    )


def test_c30_every_table_reads_back_exactly(tmp_path):
    texts = ["a\rb", "c\r\nd", "e\nf", 'g"h', "=1", ",", "", " i "]
    written = pd.DataFrame({"x": texts, "y": np.linspace(0, 1, len(texts)) / 3})
    for path in (
        files.write_table(tmp_path / "a.csv", written),
        files.write_rows(tmp_path / "b.csv", [["x", "y"], *written.to_numpy().tolist()]),
    ):
        again = pd.read_csv(path, keep_default_na=False)
        assert again["x"].tolist() == texts and np.array_equal(again["y"], written["y"])
        assert list(csv.reader(io.StringIO(path.read_bytes().decode(), newline="")))[1][0] == texts[0]
        assert path.read_bytes().count(b"\r") == 2


ANY = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=12)


@hypothesis.given(st.lists(ANY, min_size=1, max_size=4))
def test_c30_any_text_reads_back_from_every_table(texts):
    with tempfile.TemporaryDirectory() as folder:
        for path in (
            files.write_table(files.Path(folder, "a.csv"), pd.DataFrame({"x": texts, "y": "end"})),
            files.write_rows(files.Path(folder, "b.csv"), [["x", "y"], *([text, "end"] for text in texts)]),
        ):
            assert csvfiles.read_csv(path)["x"].tolist() == texts
            with path.open(encoding="utf-8", newline="") as stream:
                assert [row["x"] for row in csv.DictReader(stream)] == texts


@hypothesis.given(st.text(max_size=400).filter(lambda text: set(text) - set("./~")))
def test_c61_whatever_is_given_as_a_path_there_is_no_error_of_the_system(text):
    for call in (files.given, files.is_there, csvfiles.read_csv, decoding.read, explored.find_run):
        with contextlib.suppress(PathoError):
            call(text)


@pytest.mark.parametrize("name", ["=cmd()", "+cmd|'/C calc'!A0", "@SUM(A1)", "-2+3", "=1"])
def test_c56_a_class_that_a_spreadsheet_takes_for_a_formula_is_refused(tmp_path, catalogue, name):
    text = f'path,label,group\na.png,"{name}",1\nb.png,b,2\nc/d.png,b,3\n'
    error = refused(table.read, own(tmp_path, text))
    assert (error.code, error.subject) == ("bad_classes", name)
    catalogue("C56", f"class called {name}", error)


@pytest.mark.parametrize("name", ["+", "-", "-1", "+2.5", "1=2", "a@b"])
def test_c56_a_class_that_no_spreadsheet_computes_is_accepted(tmp_path, name):
    text = f"path,label,group\na.png,{name},1\nb.png,b,2\nc/d.png,b,3\n"
    assert name in table.read(own(tmp_path, text)).classes


# --------------------------------------------------------------------------------------------------- C31, C37, C39


def impossible(folder):
    """What a person may name that is no picture, by what it is."""
    (folder / "loop.png").symlink_to(folder / "loop.png")
    (folder / "lost.png").symlink_to(folder / "nowhere.png")
    return {
        "link to itself": folder / "loop.png",
        "link that leads nowhere": folder / "lost.png",
        "name of 300 letters": folder / ("n" * 300 + ".png"),
        "text of a table": "path,label,group\n" + "a/b.png,benign,1\n" * 400,
    }


@posix
def test_c31_what_cannot_be_a_picture_is_listed_and_the_rest_is_answered(folder, answered, catalogue):
    asked = impossible(folder)
    good, bad = answered(folder, *asked.values())
    assert set(good) == {str(folder / "good.png")}
    for what, place in asked.items():
        assert bad[str(place)]["code"] in ("broken_link", "missing_file"), what
        catalogue("C31", f"predict: {what}", f"listed as `{bad[str(place)]['code']}`; the rest is answered")


@posix
def test_c31_load_audit_and_explorer_say_the_same(folder, catalogue):
    for what, place in impossible(folder).items():
        for call in (
            lambda place=place: Options(data=str(place)),
            lambda place=place: leakage.audit(place),
            lambda place=place: leakage.audit({"train": place, "test": folder}),
            lambda place=place: Predictor(place),
            lambda place=place: explored.find_run(str(place), output=folder),
        ):
            assert refused(call).code in ("broken_link", "missing_file", "missing_run", "bad_parameter"), what


@posix
def test_c31_a_link_into_a_forbidden_folder_is_unreadable(folder, answered, monkeypatch, catalogue):
    (folder / "there.png").symlink_to(folder / "closed" / "a.png")
    system = os.stat

    def stat(path, **options):
        if str(path).endswith("there.png"):
            raise PermissionError(13, "Permission denied")
        return system(path, **options)

    monkeypatch.setattr(files.os, "stat", stat)  # not by its permissions: the superuser may look everywhere
    good, bad = answered(folder)
    assert len(good) == 1 and bad[str(folder / "there.png")]["code"] == "unreadable"
    catalogue("C31", "predict: link into a folder without permission", "listed as `unreadable`; the rest is answered")


@posix
def test_c32_a_name_that_is_not_utf_8_is_audited(tmp_path, capsys, catalogue):
    for part in ("train", "test"):
        (tmp_path / part / "a").mkdir(parents=True)
        name = os.fsdecode(os.fsencode(tmp_path / part / "a") + b"/\xff.png")
        with open(name, "wb") as stream:  # noqa: PTH123 - bytes that are no text
            stream.write(encoded(picture(3)))
    assert cli.main(["audit", str(tmp_path), "--out", str(tmp_path / "report")]) == cli.FOUND
    (pair, *_) = files.read_json(tmp_path / "report" / "audit.json")["pairs"]
    assert os.fsencode(pair["path"]).endswith(b"\xff.png")
    catalogue("C32", "audit of a folder with a name that is not UTF-8", "audited; its bytes are shown as codes")


def test_c37_a_folder_that_is_named_twice_counts_once(folder, answered, monkeypatch, catalogue):
    monkeypatch.chdir(folder.parent)
    link = folder.parent / "link"
    link.symlink_to(folder)
    good, _ = answered(folder, "scans", "./scans/../scans", link, folder / "good.png", "scans/good.png")
    assert list(good) == [str(folder / "good.png")]
    catalogue("C37", "predict: one folder named twice, relative, absolute or by a link", "every picture once")


@pytest.fixture
def closed(monkeypatch):
    """A folder called closed cannot be listed: not by its permissions, as the superuser may look everywhere."""
    system = os.scandir

    def scandir(path):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied")
        return system(path)

    monkeypatch.setattr(os, "scandir", scandir)


@posix
def test_c39_a_folder_that_cannot_be_listed_is_named_and_the_rest_is_answered(folder, answered, closed, catalogue):
    for name in ("a/x", "closed", "z"):
        (folder / name).mkdir(parents=True)
        (folder / name / "p.png").write_bytes(encoded(picture(4)))
    good, bad = answered(folder)
    assert {path[len(str(folder)) :] for path in good} == {"/a/x/p.png", "/good.png", "/z/p.png"}
    assert [(os.path.normpath(path), row["code"]) for path, row in bad.items()] == [
        (str(folder / "closed"), "unreadable")
    ]
    catalogue("C39", "predict: a folder within that cannot be listed", "listed as `unreadable`; the rest is answered")


def parts_of(folder, *names):
    """A folder for an audit, with one picture in each of these folders; the first and the last are the same picture."""
    for i, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        (folder / name / f"{i}.png").write_bytes(encoded(picture(i % (len(names) - 1))))
    return folder


@posix
def test_c39_audit_names_a_folder_that_cannot_be_listed_and_compares_the_others(tmp_path, closed, catalogue):
    found = leakage.audit(parts_of(tmp_path, "train/a", "train/closed", "train/z", "test/closed", "test/z"))
    assert not found.ok and found.counts == {"train": 2, "test": 1}  # what lies behind the closed one is looked at
    said = [text for text in found.unchecked if "closed" in text]
    assert [text.split(":")[0] for text in said] == ["images in train/closed", "images in test/closed"]
    assert all("Permission denied" in text for text in said)
    catalogue("C39", "audit: a folder within that cannot be listed", "named with the reason; the rest is compared")


@posix
def test_c39_where_nothing_of_a_part_can_be_listed_that_is_the_reason(tmp_path, closed):
    error = refused(leakage.audit, parts_of(tmp_path, "train/a", "test/closed"))
    assert (error.code, error.subject) == ("unreadable", str(tmp_path / "test" / "closed"))
    error = refused(leakage.audit, {"train": tmp_path / "train", "test": tmp_path / "test" / "closed"})
    assert (error.code, error.subject) == ("unreadable", str(tmp_path / "test" / "closed"))


@posix
def test_c39_files_are_found_by_their_names_beside_a_folder_that_cannot_be_listed(tmp_path, closed):
    (tmp_path / "closed").mkdir()
    own(tmp_path, "", names=("deep/a.png", "b.png", "c/d.png"))
    source = table.read(own(tmp_path, "path,label,group\na,a,1\nb,b,2\nd,b,3\n", names=()))
    assert set(source.table["path"]) == {"deep/a.png", "b.png", "c/d.png"}


# ------------------------------------------------------------------------------------------------------------ C38


def test_c38_a_dash_is_standard_output(model, folder, capsys, monkeypatch, tmp_path, catalogue):
    monkeypatch.chdir(tmp_path)
    (folder / "bad.png").write_bytes(b"")
    assert cli.main(["predict", str(model), str(folder), "--out", "-", "--engine", "torch"]) == cli.FOUND
    out, err = capsys.readouterr()
    assert [row["path"] for row in csv.DictReader(io.StringIO(out))] == [str(folder / "good.png")]
    assert "bad.png,empty," in err and not (tmp_path / "-").exists()
    catalogue("C38", "predict --out -", "the table on standard output, bad files on standard error")


@posix
@pytest.mark.parametrize(
    "out, what", [("new/", "a name that ends in /"), ("scans", "a folder"), ("n" * 300 + ".csv", "300 letters")]
)
def test_c38_a_table_that_cannot_be_there_is_refused_with_the_true_reason(
    model, folder, monkeypatch, catalogue, out, what
):
    monkeypatch.chdir(folder.parent)
    error = refused(predictions.write, Predictor(model, "torch"), [str(folder)], out, progress=False)
    assert error.code == "output_unwritable" and "space" not in error.remedy.lower()
    assert not (folder.parent / "new").exists()
    catalogue("C38", f"predict --out: {what}", error)


def test_c38_where_writing_is_forbidden_nobody_is_told_to_free_space():
    assert "permissions" in files.unwritable(files.Path("/a/b"), PermissionError(13, "Permission denied")).remedy
    assert "Free some space" in files.unwritable(files.Path("/a/b"), OSError(28, "No space left on device")).remedy


# ------------------------------------------------------------------------------------------------- C61, C62, C64


@posix
@pytest.mark.parametrize(
    "data, what",
    [
        ("x" * 10_000, "10,000 characters"),
        ("a\0b", "a NUL"),
        ("http://example.org/set.zip", "an address"),
        ("https://a.b/c.csv", "an address of a table"),
        ("s3://bucket/a.csv", "an address of a bucket"),
        ("/dev/zero", "a device"),
    ],
)
def test_c61_data_that_is_no_path_is_one_true_sentence(tmp_path, catalogue, data, what):
    error = refused(Options, data=data)
    assert error.code == "bad_parameter" and len(str(error)) < 2500 and "\0" not in str(error)
    assert refused(Options, output=data).code == "bad_parameter"
    catalogue("C61", f"data: {what}", error)
    source = own_set(tmp_path / "set", sound())
    for call in (
        lambda: patholib.audit(data),
        lambda: patholib.load("breakhis", data),
        lambda: readers.read(data),
        lambda: readers.find("isic2019", data),
        lambda: homes.find(source, data),
        lambda: csvfiles.read_csv(data),
        lambda: weights.given_file(data),
    ):
        error = refused(call)
        assert error.code in ("missing_file", "unreadable") and len(str(error)) < 2500 and "\0" not in str(error)


@posix
@pytest.mark.parametrize("data", ["~nobody-of-that-name/set.csv", "~nobody-of-that-name"])
def test_c61_the_home_of_nobody_does_not_exist(data):
    assert refused(readers.read, data).code == "data_root" and refused(csvfiles.read_csv, data).code == "missing_file"


def test_c61_nothing_is_no_path():
    assert refused(readers.read, "").code == "missing_file"


@posix
@pytest.mark.parametrize("cell", ["n" * 300 + "/a00.png", "n" * 300, "a\x01b.png", "http://x/a00.png", "~x/q.png"])
def test_c61_a_row_of_a_table_that_is_no_path_has_no_file(tmp_path, cell):
    text = f'path,label,group\n"{cell}",a,1\nb.png,b,2\nc/d.png,b,3\n'
    assert refused(table.read, own(tmp_path, text)).code == "rows_without_files"


@posix
def test_c62_a_device_or_pipe_in_a_table_is_refused_before_it_is_opened(tmp_path, catalogue):
    source = own_set(tmp_path / "set", sound())
    (source.root / "a00.png").unlink()
    os.mkfifo(source.root / "a00.png")
    error = refused(checking.check, source, 48, cache_dir=tmp_path / "cache", report_dir=tmp_path, progress=False)
    assert [problem["code"] for problem in error.report["problems"]] == ["unreadable"]
    (source.root / "a00.png").unlink()
    (source.root / "a00.png").symlink_to("/dev/zero")
    error = refused(checking.check, source, 48, cache_dir=tmp_path / "cache", report_dir=tmp_path, progress=False)
    assert error.report["problems"][0]["code"] in ("unreadable", "link_outside_root")
    os.mkfifo(tmp_path / "pipe.csv")
    for call in (
        lambda: leakage.audit(tmp_path / "pipe.csv"),
        lambda: leakage.audit(source.root / "my.csv", metadata=tmp_path / "pipe.csv"),
        lambda: Options(data=str(tmp_path / "pipe.csv")),
        lambda: Options.read("breakhis", tmp_path / "pipe.csv"),
    ):
        assert refused(call).code in ("unreadable", "bad_parameter")
    catalogue("C62", "device or pipe, named or in a table", "refused before it is opened: `unreadable`")


def test_c64_a_manifest_of_300_mb_is_not_read(model, tmp_path, catalogue):
    for path in model.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    with (tmp_path / "model.json").open("ab") as stream:
        stream.truncate(300_000_000)  # sparse: it takes no room
    error = refused(Predictor, tmp_path)
    assert error.code == "too_many_bytes"
    catalogue("C64", "model.json of 300 MB", error)
    assert sys.getsizeof(error.reason) < 1000
