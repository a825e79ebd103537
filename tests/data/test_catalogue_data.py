"""The catalogue of bad input, part D: image files, tables and data sets; and two faults of the loader (T04, T19)."""

from __future__ import annotations

import contextlib
import csv
import errno
import hashlib
import json
import os
import socket
import threading
import time
import tracemalloc
import unicodedata
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import PIL
import pytest
import samples
from PIL import Image, ImageFile
from samples import BENIGN, BREAST, ISIC_ROWS, MALIGNANT, encoded, isic, one_hot, own, own_set, picture, put, sound

from patholib.base import cpu, files
from patholib.base.errors import PathoError
from patholib.data import batching, checking, decoding, imagesets, splitting
from patholib.data.readers import breakhis, isic2019, read, table
from patholib.data.readers.folders import walk
from patholib.model import building, profiles
from patholib.train import resumable, runs, training

pytestmark = pytest.mark.heavy

posix = pytest.mark.skipif(os.name != "posix", reason="this system has no such files or names")


def refusal(code, call, *args, **options):
    with pytest.raises(PathoError) as caught:
        call(*args, **options)
    assert caught.value.code == code, caught.value
    return caught.value


def cases(rows):
    """Parameters (id of the catalogue, *row) from {id of the test: row}."""
    return [pytest.param(name[:3], *row, id=name) for name, row in rows.items()]


def checked(source, **options):
    places = {name: source.root.parent / name for name in ("cache_dir", "report_dir")}
    return checking.check(source, **{"size": 48, "progress": False} | places | options)


def problems(source, **options):
    """The problems for which a check stops, by path, each as the error it would be alone."""
    return told(refusal("bad_images", checked, source, **options).report)


def told(report):
    return {p["path"]: PathoError(p["code"], p["path"], p["reason"], p["remedy"]) for p in report["problems"]}


@pytest.fixture
def tree(tmp_path):
    return samples.breakhis_tree(tmp_path / "tree")


# ------------------------------------------------------------------------------------------------- D01-D18: one file


@pytest.mark.parametrize(("case", "given", "name", "content", "code"), cases(samples.REFUSED))
def test_a_bad_file_is_refused(case, given, name, content, code, catalogue):
    error = refusal(code, decoding.read, content, name)
    assert error.subject == name
    catalogue(case, given, error)


@pytest.mark.parametrize(
    ("what", "told"),
    [
        ("html", "a web page"),
        ("lfs", "a git-LFS pointer"),
        ("svg", "an SVG drawing"),
        ("pdf", "a PDF"),
        ("eps", "a PostScript"),
        ("zip", "a ZIP archive"),
        ("pickle", "a Python pickle"),
        ("dicom", "a DICOM file"),
        ("text", "a text"),
        ("zeros", "zero bytes"),
        ("xml", "an XML"),
        ("jpeg2000", "JPEG 2000"),
        ("heic", "HEIF"),
        ("gif", "a GIF"),
    ],
)
def test_d02_a_file_that_is_something_else_is_called_by_its_name(what, told):
    _, name, content, code = samples.REFUSED[f"D02-{what}"]
    assert told in refusal(code, decoding.read, content, name).reason


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")  # Pillow's own limit, above ours
@pytest.mark.parametrize(("case", "given", "name", "content", "code"), cases(samples.BOMBS))
def test_what_announces_too_much_is_refused_at_once_from_its_header(
    case, given, name, content, code, catalogue, monkeypatch
):
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda image: pytest.fail("a pixel was decoded"))
    seconds = []
    for _ in range(3):  # the best of three: another process may have the processor
        start = time.perf_counter()
        error = refusal(code, decoding.read, content, name)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.125
    catalogue(case, given, error)


@pytest.mark.parametrize(("case", "given", "name", "content", "notes"), cases(samples.ACCEPTED))
def test_an_odd_file_is_accepted_and_what_is_odd_is_noted(case, given, name, content, notes, catalogue):
    if given == "YCbCr TIFF" and int(PIL.__version__.split(".")[0]) < 13:
        pytest.skip("Pillow before 13 cannot read the YCbCr TIFF that it writes: it is refused as corrupt")
    image = decoding.read(content, name)
    assert image.mode == "RGB" and [note.code for note in image.warnings] == notes
    assert all(note.reason for note in image.warnings)
    shown = " and ".join(f"`{code}`" for code in notes)
    catalogue(case, given, f"accepted, with the note {shown}" if notes else "accepted")


@pytest.mark.parametrize(
    ("case", "given", "content"),
    [
        pytest.param("D03", "PNG", samples.PNG, id="D03-anywhere"),
        pytest.param("D04", "JPEG", samples.JPEG, id="D04-anywhere"),
    ],
)
def test_a_cut_anywhere_is_noticed(case, given, content, catalogue):
    for at in np.linspace(0, len(content) - 1, 60).astype(int):
        with pytest.raises(PathoError) as caught:
            decoding.read(content[:at])
        assert caught.value.code in ("empty", "not_an_image", "corrupt")
    catalogue(case, f"{given} cut off at any of 60 places", "refused each time: `empty`, `not_an_image` or `corrupt`")


def test_D05_every_flipped_bit_of_a_png_is_noticed(catalogue):
    content = encoded(picture(width=40, height=40))
    rng = np.random.default_rng(0)
    for at in rng.integers(8, len(content), 150):
        with pytest.raises(PathoError):
            decoding.read(content[:at] + bytes([content[at] ^ (1 << rng.integers(8))]) + content[at + 1 :])
    catalogue("D05", "PNG with any one of 150 bits flipped", "refused each time; the process goes on")


def test_D08_a_file_without_a_known_ending_is_listed_and_not_passed_over_in_silence(tree, catalogue):
    put(tree / BREAST, "benign/SOB_B_A-14-22549AB-40-009", "benign/SOB_B_A-14-22549AB-40-010.png.", "benign/notes.txt")
    found = breakhis.read(tree).found
    assert found["images"] == 2 and found["unknown_extension"]["count"] == 3
    assert "benign/SOB_B_A-14-22549AB-40-009" in found["unknown_extension"]["first"]
    catalogue(
        "D08",
        "file without an ending, with a dot at its end, or .txt, in a folder of images",
        "not read, and listed as `unknown_extension`",
    )


def test_D09_transparency_is_laid_on_white(catalogue):
    half = np.zeros((40, 40, 4), np.uint8)
    half[:, :20] = (200, 30, 60, 255)
    image = decoding.read(encoded(Image.fromarray(half)))
    assert np.array_equal(np.asarray(image)[:, :20], half[:, :20, :3]) and (np.asarray(image)[:, 20:] == 255).all()
    assert [note.code for note in image.warnings] == ["alpha"]
    opaque = decoding.read(encoded(picture().convert("RGBA")))
    assert opaque.warnings == [] and np.array_equal(opaque, picture())
    catalogue("D09", "PNG with transparent parts", "accepted, laid on white, with the note `alpha`")


def test_D09_grey_pictures_among_coloured_ones_are_counted(tmp_path, catalogue):
    report = checked(own_set(tmp_path / "set", sound() | {"a90.png": encoded(picture(9, mode="L"))})).report
    assert report["modes"] == {"RGB": 8, "L": 1} and report["counts"]["warnings"] == {"greyscale": 1}
    catalogue("D09", "grey picture in a set of coloured ones", "accepted, counted and listed as `greyscale`")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", [pytest.param(n, id=f"D13-{n}") for n in range(1, 9)])
def test_every_orientation_shows_the_same_upright_scene(kind, orientation, catalogue):
    """The quadrant colours of a scene, stored as each of the eight orientations says (EXIF 2.3)."""
    scene = np.zeros((64, 96, 3), np.uint8)
    scene[:32, :48], scene[:32, 48:], scene[32:, :48] = (220, 0, 0), (0, 220, 0), (0, 0, 220)
    stored = {
        1: scene,
        2: scene[:, ::-1],
        3: scene[::-1, ::-1],
        4: scene[::-1],
        5: scene.transpose(1, 0, 2),
        6: np.rot90(scene),
        7: np.rot90(scene, 2).transpose(1, 0, 2),
        8: np.rot90(scene, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if kind == "WEBP" else {"quality": 95} if kind == "JPEG" else {}
    image = decoding.read(encoded(Image.fromarray(np.ascontiguousarray(stored)), kind, exif=exif, **options))
    shown = np.asarray(image)
    assert shown.shape == scene.shape
    for y, x in ((16, 24), (16, 72), (48, 24), (48, 72)):
        assert np.abs(shown[y, x].astype(int) - scene[y, x]).max() < 12
    if kind != "TIFF":  # Pillow has turned it already
        assert [note.code for note in image.warnings] == ["exif_orientation"] * (orientation > 1)
    catalogue("D13", f"EXIF orientation {orientation}", f"accepted{', turned upright' if orientation > 1 else ''}")


def test_D14_a_phone_picture_counts_as_its_first_frame():
    content = samples.ACCEPTED["D14-mpo"][2]
    assert np.array_equal(decoding.read(content), Image.open(samples.io.BytesIO(content)).convert("RGB"))


def test_D18_one_blank_picture_is_a_remark_and_many_are_a_problem(tmp_path, catalogue):
    blanks = {f"a9{i}.png": encoded(Image.new("RGB", (40 + i, 40), (i * 20, 0, 0))) for i in range(3)}
    one = own_set(tmp_path / "one", sound() | {"a90.png": blanks["a90.png"]})
    assert [w["code"] for w in checked(one).report["warnings"]] == ["blank"]
    found = problems(own_set(tmp_path / "many", sound() | blanks))
    assert {path: error.code for path, error in found.items()} == dict.fromkeys(blanks, "blank")
    catalogue("D18", "more than 1 % of a class are of one colour", found["a90.png"])


# --------------------------------------------------------------------------------------- D19-D22: names and folders


def test_D19_litter_is_ignored_and_counted_and_is_no_class(tree, catalogue):
    litter = [
        "benign/Thumbs.db",
        "benign/desktop.ini",
        "benign/._SOB_B_A-14-22549AB-40-002.png",
        ".DS_Store",
        "__MACOSX/a.png",
        "malignant/.ipynb_checkpoints/a.png",
        ".hidden/a.png",
    ]
    put(tree / BREAST, *litter)
    data = breakhis.read(tree)
    assert data.found["images"] == 2 and data.found["ignored"]["count"] == len(litter)
    assert data.classes == ("benign", "malignant")
    catalogue(
        "D19",
        "Thumbs.db, desktop.ini, .DS_Store, ._x.png, __MACOSX, .ipynb_checkpoints and hidden folders",
        "ignored, counted and listed as `ignored`; never a class",
    )


NAMES = {
    "unicode": "aumläut 日本.png",
    "space": "a space.png",
    "emoji": "a🙂.png",
    "newline": "a\nb\x1b[31m.png",
    "dash": "-a.png",
    "long": f"a{'x' * 195}.png",
    "html": "a<b onclick=x>&amp;.png",
}


@pytest.mark.parametrize("what", [pytest.param(name, id=f"D20-{name}") for name in NAMES])
def test_an_odd_name_is_read_and_never_obeyed(tmp_path, what, catalogue):
    name = NAMES[what]
    if os.name == "nt" and what in ("newline", "html"):
        pytest.skip("Windows has no such names")
    made = checked(own_set(tmp_path / "good", sound() | {name: encoded(picture(9))}))
    assert name in set(made.images.table["path"]) and json.loads(json.dumps(made.report))["counts"]["kept"] == 9
    error = refusal("bad_images", checked, own_set(tmp_path / "bad", sound() | {name: b""}))
    assert error.report["problems"][0]["path"] == name
    assert "\n" not in str(error) and "\x1b" not in str(error)
    page = (tmp_path / "report_dir" / "data_report.html").read_text(encoding="utf-8")
    assert "<b onclick" not in page and "\x1b" not in page
    given = {
        "newline": "a line break and a terminal code",
        "html": "HTML",
        "dash": "a dash at its start",
        "long": "200 characters",
    }.get(what, what)
    catalogue("D20", f"file name with {given}", "accepted; shown escaped in errors and on pages")


@pytest.mark.parametrize(
    ("given", "twins"),
    [
        pytest.param(
            "two names that differ in how Unicode writes an accent (NFC, NFD)",
            ["a\u00e9.png", "ae\u0301.png"],
            id="D20-twins",
        ),
        pytest.param("two names that differ in upper and lower case", ["aA.png", "aa.PNG"], id="D20-case"),
    ],
)
def test_names_that_are_one_file_on_some_system_are_refused(tmp_path, given, twins, catalogue):
    assert twins[0] != twins[1] and len({unicodedata.normalize("NFC", name).casefold() for name in twins}) == 1
    catalogue(
        "D20", given, refusal("name_collision", own_set, tmp_path / "set", {"b.png": b""} | dict.fromkeys(twins, b""))
    )


def test_D20_one_file_under_two_spellings_of_its_path_is_refused(tmp_path, catalogue):
    path = own(tmp_path / "own", "path,label,group\na.png,a,1\n./a.png,b,2\n")
    catalogue("D20", "one file listed under two spellings of its path", refusal("label_conflict", table.read, path))


def replaced(path, what):
    """Puts something that is no file in place of one."""
    path.unlink()
    if what == "folder":
        path.mkdir()
    elif what == "pipe":
        os.mkfifo(path)  # opening it would wait for ever
    else:
        with socket.socket(socket.AF_UNIX) as bound, contextlib.chdir(path.parent):  # the path of a socket is short
            bound.bind(path.name)  # its name stays


@posix
@pytest.mark.parametrize(
    ("what", "given"),
    [
        pytest.param("folder", "folder named x.png", id="D21-folder"),
        pytest.param("pipe", "pipe (FIFO) named x.png", id="D21-pipe"),
        pytest.param("socket", "socket named x.png", id="D21-socket"),
    ],
)
def test_what_is_no_file_is_never_opened(tmp_path, what, given, catalogue):
    source = own_set(tmp_path / "set", sound())
    replaced(source.root / "a00.png", what)
    ((path, error),) = problems(source).items()
    assert (path, error.code) == ("a00.png", "unreadable")
    catalogue("D21", given, error)


def failing(monkeypatch, name, number):
    """Makes every opening of a file called `name` end with that error of the system."""
    opened = Path.open

    def fails(path, *args, **options):
        if path.name == name:
            raise OSError(number, os.strerror(number))
        return opened(path, *args, **options)

    monkeypatch.setattr(Path, "open", fails)


def test_D21_a_file_that_may_not_be_opened_is_named(tmp_path, monkeypatch, catalogue):
    source = own_set(tmp_path / "set", sound())
    failing(monkeypatch, "a00.png", errno.EACCES)  # not by its permissions: the superuser may open everything
    ((path, error),) = problems(source).items()
    assert (path, error.code) == ("a00.png", "unreadable")
    catalogue("D21", "file without permission to read it", error)


@posix
@pytest.mark.parametrize(
    ("given", "target", "code"),
    [
        pytest.param("link to a file that is gone", "gone.png", "broken_link", id="D22-broken"),
        pytest.param("link to itself", "a00.png", "broken_link", id="D22-loop"),
        pytest.param(
            "link to a file outside of the data folder", "../outside.png", "link_outside_root", id="D22-outside"
        ),
        pytest.param("link to a file in the data folder", "b01.png", "label_conflict", id="D22-inside"),
    ],
)
def test_a_link_is_followed_only_within_the_data_folder(tmp_path, given, target, code, catalogue):
    source = own_set(tmp_path / "set", sound())
    (tmp_path / "outside.png").write_bytes(encoded(picture(99)))
    (source.root / "a00.png").unlink()
    (source.root / "a00.png").symlink_to(target)
    error = problems(source)["a00.png"]
    assert error.code == code
    catalogue("D22", given, "read as its target" if code == "label_conflict" else error)


@posix
def test_D22_links_to_folders_are_listed_and_not_followed(tree, catalogue):
    (tree / BREAST / "benign/again").symlink_to(tree / BREAST / "benign", target_is_directory=True)
    data = breakhis.read(tree)
    assert data.found["images"] == 2 and data.found["links_not_followed"]["first"] == ["benign/again"]
    catalogue("D22", "link to a folder", "not followed, and listed as `links_not_followed`")


# -------------------------------------------------------------------------------- D23-D27: copies, labels and groups


def test_D23_a_copy_under_the_same_label_is_left_out_and_listed(tmp_path, catalogue):
    again = encoded(picture(0), compress_level=1)  # other bytes, the same pixels
    source = own_set(tmp_path / "set", sound() | {"a98.png": again, "a99.png": encoded(picture(0))})
    source = replace(source, table=source.table.assign(group="one"))
    made = checked(source)
    assert made.report["duplicates"] == [{"kept": "a00.png", "dropped": ["a98.png", "a99.png"], "differ": {}}]
    assert [(e["path"], e["code"]) for e in made.report["excluded"]] == [
        ("a98.png", "duplicate"),
        ("a99.png", "duplicate"),
    ]
    assert len(made.images) == 8 and made.report["groups_sharing_pixels"] == []
    catalogue(
        "D23", "the same pixels twice in one class and group", "one copy is used, the others are listed as `duplicate`"
    )


def test_D24_copies_under_different_labels_are_a_conflict_and_none_is_used(tmp_path, catalogue):
    source = own_set(tmp_path / "set", sound() | {"b99.png": encoded(picture(0))})
    found = problems(source)
    assert [(path, error.code) for path, error in found.items()] == [
        ("a00.png", "label_conflict"),
        ("b99.png", "label_conflict"),
    ]
    made = checked(source, on_bad="skip")
    assert made.report["label_conflicts"] == [{"paths": ["a00.png", "b99.png"], "labels": ["class a", "class b"]}]
    assert not {"a00.png", "b99.png"} & set(made.images.table["path"]) and len(made.images) == 7
    catalogue("D24", "the same pixels under two labels", found["a00.png"])
    catalogue(
        "D24", "the same pixels under two labels, on_bad='skip'", "neither is used, both are listed as `label_conflict`"
    )


def test_D24_one_slide_under_two_subtypes_is_no_conflict_where_the_task_has_one_label(tmp_path, catalogue):
    """Slide 14-13412 of BreakHis stands among the ductal and the lobular carcinomas."""
    for i, name in enumerate(
        (
            "malignant/SOB_M_DC-14-13412-40-001.png",
            "malignant/SOB_M_LC-14-13412-40-001.png",
            "benign/SOB_B_A-14-22549AB-40-001.png",
        )
    ):
        put(tmp_path / "set", name)
        (tmp_path / "set" / name).write_bytes(encoded(picture(i // 2)))
    made = checked(breakhis.read(tmp_path / "set"))
    (found,) = made.report["duplicates"]
    assert found["differ"] == {"subtype": ["ductal_carcinoma", "lobular_carcinoma"]} and len(made.images) == 2
    catalogue(
        "D24",
        "the same pixels under two subtypes of one label (BreakHis 14-13412)",
        "one copy is used; the others are listed as `duplicate`, with the subtypes",
    )


def test_D25_a_picture_in_two_splits_is_refused(tmp_path, catalogue):
    copies = {f"{'ab'[i % 2]}5{i}.png": encoded(picture(i)) for i in range(6)}
    source = own_set(tmp_path / "set", sound(20) | copies)
    made = checked(source)
    split = splitting.split(made.manifest)
    digests = made.facts.set_index("path")["sha256"][split["path"]]
    assert digests.is_unique and len(split) == 20  # of a picture that stands once, no copy is in another split
    catalogue(
        "D25", "the same pixels in two groups", "one copy is used; the groups are listed in `groups_sharing_pixels`"
    )
    assert len(made.report["groups_sharing_pixels"]) == 6
    elsewhere = source.table.assign(split=np.where(source.table["path"].isin(copies), "test", "train"))
    error = refusal("split_leakage", made.images.with_split, elsewhere)
    assert error.subject == "6 problems"
    assert "a50.png: is in test, and a00.png with the same pixels in train" in error.reason
    catalogue("D25", "split made elsewhere, with a picture in one part and its copy in another", error)


def three_each(*extra):
    """Names of three patients of each class, and others."""
    return [
        *(f"SOB_B_A-14-{i}-40-001.png" for i in (1, 2, 3, 4)),
        *(f"SOB_M_DC-14-{i}-40-001.png" for i in (11, 12, 13, 14)),
        *extra,
    ]


def test_D26_a_patient_in_two_classes_is_counted_and_kept_together(catalogue):
    data = breakhis.from_names(three_each("SOB_B_A-14-2523AB-40-001.png", "SOB_M_DC-14-2523-40-001.png"))
    assert data.found["cases_in_two_classes"] == {"count": 1, "first": ["14-2523"]}
    for seed in range(5):
        split = splitting.split(data, seed=seed)
        assert len(set(split.loc[split["case"] == "14-2523", "split"])) == 1
    catalogue("D26", "patient in two classes", "accepted, counted, and never in two splits")


def test_D27_letters_behind_a_number_name_slides_of_one_patient(catalogue):
    data = breakhis.from_names(
        three_each(*(f"SOB_M_DC-14-{slide}-40-001.png" for slide in ("29960AB", "29960CD", "15570", "15570C")))
    )
    assert data.group_by == "case" and {"14-29960", "14-15570"} < set(data.table["case"])
    assert data.table["case"].nunique() == 10 and data.table["slide"].nunique() == 12
    by_slide = splitting.split(data, group_by="slide")
    assert set(by_slide["group"]) == set(data.table["slide"])
    catalogue(
        "D27", "slides 29960AB and 29960CD, 15570 and 15570C", "one patient each; group_by='slide' tells them apart"
    )


# ---------------------------------------------------------------------------- D28-D31, D41: the layouts of data sets


@pytest.mark.parametrize(
    ("given", "name"),
    [
        pytest.param("other class than its subtype's", "SOB_B_DC-14-2523-40-001.png", id="D28-class"),
        pytest.param("unknown magnification", "SOB_B_A-14-22549AB-50-001.png", id="D28-magnification"),
        pytest.param("letters of the slide in lower case", "SOB_B_A-14-22549ab-40-001.png", id="D28-lower-case"),
        pytest.param(
            "a number in brackets, as of a second download", "SOB_B_A-14-22549AB-40-001 (1).png", id="D28-copy"
        ),
        pytest.param("two endings", "SOB_B_A-14-22549AB-40-001.png.png", id="D28-ending"),
        pytest.param("digits of another script", "SOB_B_A-١٤-22549AB-40-001.png", id="D28-digits"),
        pytest.param("any other name", "photo.png", id="D28-other"),
    ],
)
def test_a_name_of_another_pattern_is_refused_with_the_pattern(tree, given, name, catalogue):
    put(tree / BREAST, f"benign/SOB/adenosis/{name}")
    error = refusal("name_pattern", breakhis.read, tree)
    assert name in error.subject and "SOB_<B|M>_" in error.reason and breakhis.parse(name) is None
    catalogue("D28", f"BreakHis file name with {given}", error)


@pytest.mark.parametrize(
    ("given", "path", "told"),
    [
        pytest.param(
            "magnification",
            BENIGN.replace("/40X/", "/200X/"),
            "lies in 200X, its name says 40X",
            id="D29-magnification",
        ),
        pytest.param(
            "class",
            "malignant/SOB_B_A-14-22549AB-40-002.png",
            "lies in malignant, its name says benign",
            id="D29-class",
        ),
        pytest.param(
            "subtype",
            MALIGNANT.replace("ductal", "lobular"),
            "lies in lobular_carcinoma, its name says ductal",
            id="D29-subtype",
        ),
        pytest.param("slide", MALIGNANT.replace("14-2523/", "14-2524/"), "its name says slide 14-2523", id="D29-slide"),
    ],
)
def test_a_folder_that_contradicts_the_name_is_refused(tree, given, path, told, catalogue):
    put(tree / BREAST, path)
    error = refusal("label_mismatch", breakhis.read, tree)
    assert told in error.reason
    catalogue("D29", f"BreakHis folder of another {given} than the file's name says", error)


def test_D29_every_bad_name_and_folder_is_told_at_once(tree, catalogue):
    put(tree / BREAST, "benign/photo.png", "malignant/SOB_B_A-14-22549AB-40-002.png", BENIGN.replace("/40X/", "/200X/"))
    error = refusal("label_mismatch", breakhis.read, tree)
    assert "2 label_mismatch, 1 name_pattern" in error.reason
    catalogue("D29", "several of these at once", error)


def test_D30_classes_that_are_empty_absent_or_unknown(tree, tmp_path, catalogue):
    put(tree, f"{BREAST}/bening/SOB_B_A-14-22549AB-40-002.png")
    error = refusal("unknown_class", breakhis.read, tree)
    assert error.subject == "bening" and "did you mean 'benign'?" in error.reason
    catalogue("D30", "images in a folder that is no class", error)
    put(tmp_path / "half", BENIGN)
    error = refusal("single_class", breakhis.read, tmp_path / "half")
    assert error.subject == "malignant"
    catalogue("D30", "folder of one class only", error)
    (tmp_path / "half" / "malignant/SOB").mkdir(parents=True)
    error = refusal("empty_class", breakhis.read, tmp_path / "half")
    assert error.subject == "malignant"
    catalogue("D30", "class folder without an image", error)
    catalogue(
        "D30",
        "table of one class only",
        refusal("single_class", table.read, own(tmp_path / "own", "path,label,group\na.png,a,1\nb.png,a,2\n")),
    )


def test_D31_a_picture_and_its_smaller_copy_are_one_lesion(tmp_path, catalogue):
    data = isic2019.read(isic(tmp_path / "set"))
    lesions = data.table.set_index("path")["lesion"].rename(lambda path: Path(path).stem)
    assert lesions["ISIC_2"] == lesions["ISIC_2_downsampled"] == "L2" and data.found["downsampled"] == 2
    catalogue("D31", "ISIC_x and ISIC_x_downsampled", "accepted as one lesion, so never in two splits")
    rows = [*ISIC_ROWS, ("ISIC_1_downsampled", "NV", "", "", "L7", "")]
    catalogue(
        "D31",
        "ISIC_x and ISIC_x_downsampled of two lesions",
        refusal("label_conflict", isic2019.read, isic(tmp_path / "two", rows)),
    )


@pytest.mark.parametrize(
    ("kind", "given"),
    [
        pytest.param("missing", "does not exist", id="D41-missing"),
        pytest.param("empty", "is empty", id="D41-empty"),
        pytest.param("file", "is a file", id="D41-file"),
        pytest.param("other", "holds something else", id="D41-other"),
    ],
)
def test_a_root_without_data_is_refused(tmp_path, kind, given, catalogue):
    put(tmp_path, "file", "other/cat.png")
    (tmp_path / "empty").mkdir()
    for reader in (breakhis.read, isic2019.read, read):
        if not (kind == "file" and reader is read):  # there a file is a table
            catalogue("D41", f"data folder that {given}", refusal("data_root", reader, tmp_path / kind))


def test_D41_a_level_too_high_is_found_and_one_too_low_names_the_right_path(tree, tmp_path, catalogue):
    assert breakhis.read(tree.parent).root == tree / BREAST
    catalogue("D41", "BreakHis, some levels too high", "accepted")
    error = refusal("data_root", breakhis.read, tree / BREAST / "benign/SOB")
    assert str(tree / BREAST) in error.remedy
    catalogue("D41", "BreakHis, some levels too low", error)
    isic(tmp_path / "isic")
    for wrong, level in ((tmp_path, "high"), (tmp_path / "isic" / isic2019.INPUT, "low")):
        error = refusal("data_root", isic2019.read, wrong)
        assert str(tmp_path / "isic") in error.remedy
        catalogue("D41", f"ISIC 2019, one level too {level}", error)


# --------------------------------------------------------------------------------------------- D32-D37: tables


def test_D32_rows_without_files_and_files_without_rows_are_both_listed(tmp_path, catalogue):
    both = isic(tmp_path / "both", files=["ISIC_1", "ISIC_3", "ISIC_99"])
    error = refusal("rows_without_files", isic2019.read, both)
    assert "4 rows" in error.reason and "1 image files are in no row (ISIC_99)" in error.reason
    catalogue("D32", "table rows without an image, and images in no row", error)
    found = isic2019.read(both, missing="skip").found
    assert found["rows_without_file"]["count"] == 4 and found["files_without_row"] == {"count": 1, "first": ["ISIC_99"]}
    catalogue("D32", "the same, missing='skip'", "accepted without them; both lists are counted in the report")
    more = isic(tmp_path / "more", files=[row[0] for row in ISIC_ROWS] + ["ISIC_99"])
    catalogue("D32", "images in no row", refusal("files_without_rows", isic2019.read, more))
    path = own(tmp_path / "own", "path,label,group\nno.png,a,1\nb.png,a,2\na.png,b,3\n")
    catalogue("D32", "rows of a CSV of one's own without an image", refusal("rows_without_files", table.read, path))
    assert table.read(path, missing="skip").found["rows_without_file"] == {"count": 1, "first": ["no.png"]}


# What is wrong with a CSV: (input, content, what the error says).
CSV = {
    "D33-empty": ("empty CSV", b"", "is empty"),
    "D33-sheet": ("spreadsheet", b"PK\x03\x04" + bytes(30), "spreadsheet"),
    "D33-nul": ("CSV with a NUL byte", b"path,label,group\na.png,b,c\nd,\0,f\n", "line 3"),
    "D33-cp1252": ("CSV in cp1252", "path,label,group\nä.png,b,c\n".encode("cp1252"), "line 2: is not UTF-8"),
    "D33-utf16": ("CSV in UTF-16", "path,label,group\n".encode("utf-16"), "UTF-16"),
    "D33-short": ("row with too few fields", b"path,label,group\na.png,b,c\na.png,b\n", "line 3"),
    "D33-long": (
        "row with too many fields, which pandas would shift",
        b"path,label,group\na.png,0,9,1\n",
        "has 4 fields",
    ),
    "D33-twice": ("column twice", b"path,label,group,label\na.png,b,c,d\n", "twice"),
    "D33-nameless": ("column without a name", b"path,label,group,\na.png,b,c,d\n", "no name"),
    "D33-misspelt": ("misspelt column", b"path,lable,group\na.png,b,c\n", "did you mean 'lable'?"),
    "D33-quote": ("double quotes that never end", b'path,label,group\n"a.png,b,c\n', "is not CSV"),
    "D33-ours": (
        "column with a name kept for results",
        b"path,label,group,p_a\na.png,a,1,0\nb.png,b,2,0\n",
        "kept for",
    ),
    "D33-no-path": ("row without a path", b"path,label,group\n,a,1\nb.png,b,2\n", "line 2: has no path"),
}


@pytest.mark.parametrize(("case", "given", "content", "told"), cases(CSV))
def test_a_malformed_csv_is_named(tmp_path, case, given, content, told, catalogue):
    error = refusal("csv_format", table.read, own(tmp_path / "set", content))
    assert told in str(error)
    catalogue(case, given, error)


@pytest.mark.parametrize(
    ("given", "old", "new", "told"),
    [
        pytest.param("misspelt class column", "MEL,", "MLE,", "did you mean 'MLE'?", id="D33-isic-misspelt"),
        pytest.param("no column image", "image,", "name,", "column image", id="D33-isic-image"),
        pytest.param("class column twice", "NV,", "MEL,", "twice", id="D33-isic-column-twice"),
        pytest.param("image listed twice", "ISIC_3,", "ISIC_1,", "second time", id="D33-isic-twice"),
    ],
)
def test_a_bad_ground_truth_is_named(tmp_path, given, old, new, told, catalogue):
    truth = samples.ISIC_HEAD + "".join(one_hot(row[0], row[1]) for row in ISIC_ROWS)
    error = refusal("csv_format", isic2019.read, isic(tmp_path / "set", truth=truth.replace(old, new, 1)))
    assert told in str(error)
    catalogue("D33", f"ISIC ground truth, {given}", error)


def test_D33_text_stays_as_it_is_written(tmp_path, catalogue):
    data = table.read(
        own(
            tmp_path / "set",
            b"\xef\xbb\xbfpath,label,group,note\r\na.png,NA,0012,null\r\n\r\n"
            b"b.png,None,1e3,\r\nc/d.png,null,13.0,nan\r\n",
        )
    )
    assert data.table.to_numpy().tolist() == [
        ["a.png", "NA", "0012", "null"],
        ["b.png", "None", "1e3", ""],
        ["c/d.png", "null", "13.0", "nan"],
    ]
    assert data.classes == ("NA", "None", "null")
    catalogue(
        "D33",
        "classes NA, None and null, ids 0012 and 1e3, a byte order mark, blank lines",
        "accepted, every text as it is written",
    )


@pytest.mark.parametrize(
    ("given", "cells", "told"),
    [
        pytest.param("two classes are 1", "1,1,0,0,0,0,0,0,0", "is 1 for MEL and NV", id="D34-two"),
        pytest.param("no class is 1", "0,0,0,0,0,0,0,0,0", "is 1 for no class", id="D34-none"),
        pytest.param("0.7 and 0.3", "0.7,0.3,0,0,0,0,0,0,0", "holds MEL='0.7', NV='0.3'", id="D34-share"),
        pytest.param("NaN", "nan,1,0,0,0,0,0,0,0", "MEL='nan'", id="D34-nan"),
        pytest.param("an empty cell", ",1,0,0,0,0,0,0,0", "MEL=''", id="D34-blank"),
    ],
)
def test_a_row_that_is_not_one_hot_is_told(tmp_path, given, cells, told, catalogue):
    truth = samples.ISIC_HEAD + one_hot("ISIC_1", "NV") + f"ISIC_2,{cells}\n"
    error = refusal("bad_label", isic2019.read, isic(tmp_path / "set", truth=truth))
    assert told in error.reason and error.subject.endswith("line 3")
    catalogue("D34", f"ISIC row in which {given}" if "class" in given else f"ISIC row with {given}", error)


def test_D34_every_such_row_is_told_at_once_and_an_empty_label_too(tmp_path, catalogue):
    truth = samples.ISIC_HEAD + "ISIC_1,1,1,0,0,0,0,0,0,0\nISIC_2,0,0,0,0,0,0,0,0,0\n"
    assert "2 bad_label" in refusal("bad_label", isic2019.read, isic(tmp_path / "set", truth=truth)).reason
    error = refusal("bad_label", table.read, own(tmp_path / "own", "path,label,group\na.png,,1\nb.png,b,2\n"))
    assert "line 2" in error.subject
    catalogue("D34", "row of a CSV without a label", error)


def test_D35_class_unk_is_refused_and_a_class_without_images_is_left_out(tmp_path, catalogue):
    unknown = isic(tmp_path / "unk", [*ISIC_ROWS, ("ISIC_9", "UNK", *[""] * 4)])
    error = refusal("unknown_class_in_training", isic2019.read, unknown)
    assert "line 8" in error.subject
    catalogue("D35", "ISIC row of class UNK", error)
    data = isic2019.read(isic(tmp_path / "few"))
    assert data.classes == ("MEL", "NV") and len(data.found["classes_without_images"]) == 6
    catalogue(
        "D35", "ISIC class without an image", "accepted; the class is left out and counted in `classes_without_images`"
    )


def test_D36_what_is_not_known_of_an_image_is_an_empty_text(tmp_path, catalogue):
    data = isic2019.read(isic(tmp_path / "set"))
    assert data.found["unknown"] == {"site": 4, "age": 1, "sex": 1}
    assert all(isinstance(value, str) for value in data.table.to_numpy(object).ravel())
    catalogue("D36", "age, sex or site missing", "accepted as unknown, and counted")
    alone = data.table.loc[data.table["path"].str.contains("ISIC_4|ISIC_5"), "lesion"]
    assert sorted(alone) == ["ISIC_4", "ISIC_5"] and data.found["rows_without_lesion"] == 3
    catalogue("D36", "lesion_id missing", "accepted; the image is a lesion of its own, and counted")
    mine = table.read(own(tmp_path / "own", "path,label,group\na.png,a,\nb.png,b,\nc/d.png,b,1\n"))
    assert mine.table["group"].tolist() == ["a.png", "b.png", "1"] and mine.found["rows_without_group"] == 2
    catalogue("D36", "row of a CSV without a group", "accepted; the image is a group of its own, and counted")
    rows = [*ISIC_ROWS, ("ISIC_9", "NV", "old", "", "", "")]
    error = refusal("csv_format", isic2019.read, isic(tmp_path / "old", rows))
    assert "'old'" in error.reason
    catalogue("D36", "age that is no number", error)


def test_D37_a_lesion_of_two_classes_is_refused(tmp_path, catalogue):
    rows = [*ISIC_ROWS, ("ISIC_9", "MEL", "", "", "L1", "")]
    error = refusal("label_conflict", isic2019.read, isic(tmp_path / "set", rows))
    assert error.subject == "lesion L1"
    catalogue("D37", "ISIC lesion in two classes", error)
    data = table.read(own(tmp_path / "own", "path,label,group\na.png,a,1\nb.png,b,1\nc/d.png,b,2\n"))
    assert data.found["groups_in_two_classes"] == {"count": 1, "first": ["1"]}
    catalogue("D37", "group (patient) of a CSV in two classes", "accepted, counted, and never in two splits")


# ------------------------------------------------------------------------ D38, D40, D42: change, size, vanishing disks


def test_D38_a_file_that_changes_while_it_is_read_is_named(tmp_path, monkeypatch, catalogue):
    source, first_facts = own_set(tmp_path / "set", sound()), checking._first_facts

    def earlier(root, name):
        return first_facts(root, name) | ({"stamp": [1, 1, 1, 1]} if name == "a00.png" else {})

    monkeypatch.setattr(checking, "_first_facts", earlier)
    ((path, error),) = problems(source).items()
    assert (path, error.code) == ("a00.png", "changed_file")
    catalogue("D38", "file that changes during the check", error)


def test_D38_a_file_of_another_digest_than_the_table_lists_is_named(tmp_path, catalogue):
    contents = sound()
    digests = [hashlib.sha256(content).hexdigest().upper() for content in contents.values()]
    assert len(checked(own_set(tmp_path / "good", contents, sha256=digests)).images) == 8
    contents |= {"a00.png": encoded(picture(77)), "b01.png": encoded(picture(78))}
    digests[1] = ""  # of this file none is known
    ((path, error),) = problems(own_set(tmp_path / "bad", contents, sha256=digests)).items()
    assert (path, error.code) == ("a00.png", "changed_file")
    catalogue("D38", "file whose SHA-256 is not the one in the table's column sha256", error)


def test_D38_a_file_changed_after_the_check_makes_another_run(tmp_path, catalogue):
    source = own_set(tmp_path / "set", sound(20))
    before = checked(source)
    path = source.root / "a00.png"
    path.write_bytes(encoded(picture(77)))
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1_000_000_000))  # some file systems count whole seconds
    after = checked(source)
    assert not after.report["cache"]["reused"]
    assert resumable.images_sha256(after) != resumable.images_sha256(before)
    catalogue(
        "D38",
        "file changed after the check",
        "checked and cached anew at the next call; the digest of the data, and so the run, is another",
    )


def test_D40_a_scan_needs_less_than_200_bytes_a_file(tmp_path, catalogue):
    names = [f"SOB_B_A-14-22549AB-40-{i:05}.png" for i in range(5000)]
    put(tmp_path, *(f"benign/SOB/adenosis/SOB_B_A_14-22549AB/40X/{name}" for name in names))
    walk(tmp_path)
    tracemalloc.start()
    found, _ = walk(tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(found) == len(names) and peak / len(names) < 200  # a list of paths of 77 characters, and nothing else
    catalogue(
        "D40",
        "very many files in one folder",
        "scanned one by one; measured on 5,000 files, the list of their paths takes less than 200 bytes each",
    )


def test_D42_a_disk_that_vanishes_is_reported_for_each_file_and_the_rest_is_kept(tmp_path, monkeypatch, catalogue):
    source = own_set(tmp_path / "set", sound())
    with monkeypatch.context() as patch:
        failing(patch, "a02.png", errno.EIO)
        error = refusal("bad_images", checked, source)
    ((path, problem),) = told(error.report).items()
    assert (path, problem.code) == ("a02.png", "io_error") and error.report["counts"]["kept"] == 7
    assert "a02.png" in (tmp_path / "report_dir" / "excluded.csv").read_text()
    catalogue("D42", "file that cannot be read (EIO)", problem)
    assert checked(source).report["problems"] == []  # not remembered: the disk may be back


def test_D42_a_folder_that_cannot_be_listed_is_named(tree, monkeypatch, catalogue):
    scandir = os.scandir

    def fails(folder):
        if Path(folder).name == "40X":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", fails)
    error = refusal("io_error", breakhis.read, tree)
    assert error.subject.endswith("40X")
    catalogue("D42", "folder that cannot be listed (EIO)", error)


# ----------------------------------------------------------------------------------------------- T04, T19: the loader


def small_set():
    """23 images of noise."""
    pixels = np.random.default_rng(0).integers(0, 256, (23, 40, 40, 3), dtype=np.uint8)
    rows = pd.DataFrame(
        {
            "path": [f"{i:02}.png" for i in range(23)],
            "row": np.arange(23),
            "label": np.where(np.arange(23) % 3 == 0, "malignant", "benign"),
        }
    )
    return imagesets.ImageSet(pixels, rows, ("benign", "malignant"))


@pytest.mark.parametrize(
    "lack",
    [
        pytest.param(MemoryError(), id="T04-python"),
        pytest.param(
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"), id="T04-torch"
        ),
    ],
)
def test_a_thread_without_memory_says_what_to_lower(lack, tmp_path, monkeypatch, catalogue):
    def starved(pixels, rows, positions):
        if positions[0] == 8:
            raise lack
        return pixels

    before = threading.active_count()
    error = refusal("out_of_memory", list, batching.batches(small_set(), np.arange(23), 4, starved, workers=2))
    assert error.subject == "batch of 08.png, 09.png, 10.png ..." and threading.active_count() == before
    catalogue("T04", "no memory left while a batch is prepared", error)

    decode = decoding.decode

    def hungry(content, name, max_pixels):
        if name == "a02.png":
            raise lack
        return decode(content, name, max_pixels)

    monkeypatch.setattr(decoding, "decode", hungry)
    error = refusal("out_of_memory", checked, own_set(tmp_path / "set", sound()))
    assert error.subject == "a02.png" and not list((tmp_path / "cache_dir").glob("*.npy"))
    catalogue("T04", "no memory left while an image is decoded", error)


@pytest.fixture
def hang(monkeypatch):
    """A wait that ends with the test, and little patience with it."""
    monkeypatch.setattr(cpu, "PATIENCE", 0.3)
    released = threading.Event()
    yield lambda: released.wait(60)
    released.set()


def test_T19_a_hung_batch_is_named_and_left_behind(hang, catalogue):
    def stuck(pixels, rows, positions):
        if positions[0] == 8:
            hang()
        return pixels

    start, before = time.perf_counter(), set(threading.enumerate())
    error = refusal("loader_timeout", list, batching.batches(small_set(), np.arange(23), 4, stuck, workers=2))
    assert time.perf_counter() - start < 10 and error.subject == "batch of 08.png, 09.png, 10.png ..."
    left = set(threading.enumerate()) - before
    assert left and all(thread.daemon for thread in left)  # they do not keep the process from ending
    catalogue("T19", "loader that hangs while a batch is prepared", error)


def test_T19_a_file_that_never_comes_is_named(hang, tmp_path, monkeypatch, catalogue):
    content = decoding.content

    def stuck(path, facts, name, limit):
        if name in ("a02.png", "b03.png"):
            hang()
        return content(path, facts, name, limit)

    monkeypatch.setattr(decoding, "content", stuck)
    error = refusal("loader_timeout", checked, own_set(tmp_path / "set", sound()), workers=2)
    assert error.subject == "a02.png; b03.png"
    catalogue("T19", "file of a dead network drive, during the check", error)


# --------------------------------------------------------------------- real bad files, by a check and by a training


def bad_files():
    """{name: (content, what the list of the files calls it)} of the real bad and odd ones."""
    folder = os.environ.get("PATHOLIB_REAL_DATA")
    if not folder:
        pytest.skip("PATHOLIB_REAL_DATA is unset: no real bad files")
    with (Path(folder) / "bad_images" / "manifest.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    return {row["file"]: ((Path(folder) / "bad_images" / row["file"]).read_bytes(), row) for row in rows}


def refused(content, name):
    try:
        decoding.read(content, name)
    except PathoError:
        return True
    return False


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_real_bad_files_are_refused_and_odd_ones_explained():
    found = bad_files()
    assert len(found) > 70
    for name, (content, row) in found.items():
        try:
            image = decoding.read(content, name)
        except PathoError as error:
            assert error.code and error.reason and error.remedy and "0x" not in error.reason
            continue
        assert row["kind"] == "odd", f"{name} was accepted"
        # Files listed only because they carry camera data are sound.
        assert image.warnings or "exif" in row["detail"], f"{name} was accepted without a word"


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_a_training_on_real_bad_files_stops_with_all_of_them_or_goes_on_without(tmp_path):
    real = {name: content for name, (content, _) in bad_files().items()}
    bad = sorted(name for name in real if refused(real[name], name))
    odd = sorted(real.keys() - set(bad))
    # One file may be bad in a class, however small it is: so each has a class of its own, with three sound ones.
    rows, contents = [], dict(real)
    for i, name in enumerate(bad):
        rows += [(name, f"class {i:02}", f"patient {i}")]
        for j in range(3):
            contents[f"good {i:02} {j}.png"] = encoded(picture(10 * i + j, 40, 40))
            rows.append((f"good {i:02} {j}.png", f"class {i:02}", f"patient {i} {j}"))
    rows += [(name, f"class {i:02}", f"patient {name}") for i, name in enumerate(odd)]
    source = own_set(tmp_path / "set", contents)
    files.write_table(tmp_path / "set" / "my.csv", pd.DataFrame(rows, columns=["path", "label", "group"]))
    source = table.read(tmp_path / "set" / "my.csv")

    error = refusal("bad_images", checked, source)
    reasons = {problem["path"]: problem["reason"] for problem in error.report["problems"]}
    assert set(bad) <= set(reasons) and all(reasons.values())
    page = (tmp_path / "report_dir" / "data_report.html").read_text(encoding="utf-8")
    assert all(name in page for name in bad) and "report_dir" in error.remedy
    two = replace(
        source,
        table=source.table.assign(label=np.where(np.arange(len(source.table)) % 2, "a", "b")),
        classes=("a", "b"),
    )
    assert "1 %" in refusal("too_many_bad", checked, two, on_bad="skip").reason

    recipe = profiles.recipe_for(
        "breakhis", source, small=True, arch="resnet18", image_size=32, epochs=1, batch_size=16, head_width=16
    )
    made = checked(source, size=recipe.cache_size, on_bad="skip")
    split = splitting.split(made.manifest, recipe.fractions, recipe.seed, recipe.group_by)
    run = runs.start(recipe, made, split, output=tmp_path / "runs")
    history = training.fit(building.build(recipe), made.images.with_split(split), run, device="cpu", workers=1)
    assert len(history) == 1 and np.isfinite(history["train_loss"].iloc[0])
    left = pd.read_csv(run.dir / "excluded.csv", keep_default_na=False).set_index("path")
    assert set(bad) <= set(left.index) and left["reason"].str.len().min() > 0
    used = set(made.images.table["path"])
    assert used.isdisjoint(bad) and all(name in used or name in left.index for name in odd)
    assert (run.dir / "data_report.html").is_file()
    run.close()
