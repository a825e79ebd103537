"""Every file is decoded once by one decoder: refused with a code, or accepted; cached exactly; batched in order."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
import threading
import time
from collections import namedtuple
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from samples import JPEG, PNG, encoded, picture

from patholib.base import cpu
from patholib.base.errors import PathoError
from patholib.data import batching, checking, decoding, imagesets
from patholib.model import augment
from patholib.model.recipes import BREAKHIS


@dataclass(frozen=True)
class Manifest:
    """What `check` asks of a manifest."""

    table: pd.DataFrame
    root: Path
    classes: tuple[str, ...] = ("benign", "malignant")
    positive: str | None = "malignant"
    group_by: str = "case"
    levels: tuple[str, ...] = ("slide", "case")
    subgroups: tuple[str, ...] = ()
    source: str = "table"
    demo: bool = False
    found: dict = field(default_factory=dict)


def code(source, **options):
    with pytest.raises(PathoError) as caught:
        decoding.read(source, **options)
    return caught.value.code


def notes(source, **options):
    return [note.code for note in decoding.read(source, **options).warnings]


# ------------------------------------------------------------------------------------------------------- refused


def test_an_absent_file_is_named(tmp_path):
    assert code(tmp_path / "absent.png") == "missing_file"


def test_a_long_strip_is_accepted_with_a_note():
    assert notes(encoded(picture(width=400, height=40))) == ["extreme_aspect"]


def test_the_cap_is_a_parameter():
    assert code(PNG, max_pixels=70 * 46 - 1) == "too_many_pixels"
    assert decoding.read(PNG, max_pixels=70 * 46).size == (70, 46)
    assert code(PNG + bytes(2**20 + 8 * 4000), max_pixels=4000) == "too_many_bytes"


def test_control_characters_in_a_name_are_shown_and_not_obeyed():
    with pytest.raises(PathoError) as caught:
        decoding.read(b"", "a\n\x1b[31mred.png")
    assert str(caught.value).count("\n") == 0 and "\x1b" not in str(caught.value)


# ------------------------------------------------------------------------------------------------------ accepted


def test_paths_bytes_and_open_files_give_the_same_picture(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(PNG)
    with path.open("rb") as stream:
        pictures = [decoding.read(path), decoding.read(PNG), decoding.read(stream)]
    assert all(np.array_equal(image, picture()) for image in pictures)
    assert all(image.mode == "RGB" and image.warnings == [] for image in pictures)


def test_a_jpeg_marker_may_be_filled_up_with_any_number_of_bytes():
    content = encoded(picture(), "JPEG")
    assert decoding.read(content[:-2] + b"\xff\xff\xff\xd9").warnings == []  # ITU-T T.81, B.1.1.2
    assert [note.code for note in decoding.read(content + b"\xff\xd9").warnings] == ["trailing_data"]


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_broken_camera_data_does_not_cost_the_picture():
    content = encoded(picture(), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert np.asarray(decoding.read(content)).shape == (46, 70, 3)


REAL = os.environ.get("PATHOLIB_REAL_DATA")
real = pytest.mark.skipif(not REAL, reason="PATHOLIB_REAL_DATA names no folder of real images")


@real
def test_sound_real_images_are_all_accepted():
    paths = [p for name in ("breakhis", "isic_masks") for p in sorted((Path(REAL) / name).rglob("*.*g"))][:120]
    assert {note.code for path in paths for note in decoding.read(path).warnings} <= {"greyscale"}  # the masks are grey


# ------------------------------------------------------------------------------------------------------- squares


def test_crop_keeps_the_middle_pad_keeps_all_and_squeeze_stretches():
    image = Image.fromarray(np.repeat(np.repeat(np.uint8([[[250, 0, 0], [0, 250, 0], [0, 0, 250]]]), 40, 0), 40, 1))
    crop, pad, squeeze = (decoding.to_square(image, 40, fit) for fit in ("crop", "pad", "squeeze"))
    assert crop.shape == pad.shape == squeeze.shape == (40, 40, 3) and crop.dtype == np.uint8
    assert (crop == (0, 250, 0)).all()
    assert (pad[:13] == 0).all() and (pad[-13:] == 0).all() and (pad[20, [5, 20, 35]].max(axis=1) == 250).all()
    assert (squeeze[[0, 39]][:, [5, 20, 35]].argmax(axis=2) == [0, 1, 2]).all()


def test_a_square_of_the_right_size_is_not_touched():
    image = picture(width=70, height=41)  # an odd margin must not shift by half a pixel
    assert np.array_equal(decoding.to_square(image, 41), np.asarray(image)[:, 14:55])


def test_shrinking_averages_instead_of_skipping_pixels():
    stripes = np.zeros((256, 256, 3), np.uint8)
    stripes[:, ::2] = 255
    assert np.abs(decoding.to_square(Image.fromarray(stripes), 64).astype(int) - 128).max() <= 8  # 6 at the very edge


def test_an_unknown_fit_is_refused():
    with pytest.raises(PathoError) as caught:
        decoding.to_square(picture(), 32, "corp")
    assert caught.value.code == "bad_parameter" and "crop" in caught.value.remedy


def folder_of(root, files, **columns):
    """A manifest of {path: bytes}, written below root; label from the first letter, own slide and case for each."""
    for path, content in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content)
    paths = sorted(files)
    table = pd.DataFrame(
        {
            "path": paths,
            "label": ["benign" if p.startswith("b") else "malignant" for p in paths],
            "slide": paths,
            "case": paths,
        }
        | columns
    )
    return Manifest(table, root)


def sound(count=8, first=0):
    """Pictures b00.png, m01.png ..., all different."""
    return {f"{'bm'[i % 2]}{i:02}.png": encoded(picture(i)) for i in range(first, first + count)}


@pytest.fixture
def data(tmp_path):
    return tmp_path / "data"


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


def checked(manifest, cache, **options):
    return checking.check(manifest, **{"size": 48, "cache_dir": cache, "progress": False} | options)


def report_of(manifest, cache, **options):
    with pytest.raises(PathoError) as caught:
        checked(manifest, cache, **options)
    return caught.value.code, caught.value.report


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("fit", ["crop", "pad", "squeeze"])
def test_the_cache_holds_exactly_what_read_and_to_square_give(data, cache, workers, fit):
    manifest = folder_of(data, sound(7) | {"b99.jpg": JPEG})
    made = checked(manifest, cache, fit=fit, workers=workers)
    assert made.images.pixels.shape == (8, 48, 48, 3) and not made.images.pixels.flags.writeable
    for path, row in zip(made.images.table["path"], made.images.table["row"], strict=True):
        assert np.array_equal(made.images.pixels[row], decoding.to_square(decoding.read(data / path), 48, fit))
    assert list(made.manifest.table["path"]) == list(manifest.table["path"]) and "row" not in made.manifest.table
    assert np.array_equal(np.load(cache / made.report["cache"]["file"]), made.images.pixels)  # a plain .npy


def test_the_facts_hold_digest_and_size_of_every_file(data, cache):
    manifest = folder_of(data, sound(3) | {"b99.jpg": JPEG})
    made = checked(manifest, cache)
    for fact in made.facts.to_dict("records"):
        content = (data / fact["path"]).read_bytes()
        assert fact["sha256"] == hashlib.sha256(content).hexdigest() and fact["bytes"] == len(content)
        assert (fact["width"], fact["height"]) == Image.open(data / fact["path"]).size
    assert made.report["sizes"] == {"70x46": 3, "200x150": 1} and made.report["kinds"] == {"PNG": 3, "JPEG": 1}
    json.dumps(made.report, allow_nan=False)


def test_a_second_check_decodes_nothing(data, cache, monkeypatch):
    manifest = folder_of(data, sound())
    first = checked(manifest, cache)
    monkeypatch.setattr(decoding, "decode", None)
    second = checked(manifest, cache)
    assert not first.report["cache"]["reused"] and second.report["cache"]["reused"]
    assert np.array_equal(first.images.pixels, second.images.pixels) and first.facts.equals(second.facts)
    same = ("counts", "problems", "excluded", "warnings", "sizes", "modes")
    assert all(first.report[name] == second.report[name] for name in same)


@pytest.mark.parametrize("kind", ["PNG", "BMP"])
def test_a_changed_file_builds_the_cache_anew(data, cache, kind):
    manifest = folder_of(data, {f"b{i}.bmp": encoded(picture(i), "BMP") for i in range(4)})
    checked(manifest, cache)
    path = data / manifest.table["path"][3]
    earlier = path.stat()
    path.write_bytes(encoded(picture(77), kind))
    os.utime(path, ns=(0, earlier.st_mtime_ns + 1_000_000_000))
    assert (path.stat().st_size == earlier.st_size) == (kind == "BMP")  # then the time alone tells
    made = checked(manifest, cache)
    assert not made.report["cache"]["reused"]
    assert np.array_equal(made.images.pixels[3], decoding.to_square(picture(77), 48))


def test_another_size_or_fit_has_a_cache_of_its_own(data, cache):
    manifest = folder_of(data, sound())
    found = {
        checked(manifest, cache, size=size, fit=fit).report["cache"]["file"]
        for size in (32, 48)
        for fit in ("crop", "pad")
    }
    assert len(found) == 4


@pytest.mark.parametrize("damage", ["facts cut", "facts gone", "pixels cut"])
def test_a_damaged_cache_is_built_anew(data, cache, damage):
    manifest = folder_of(data, sound())
    first = checked(manifest, cache)
    pixels, file = np.array(first.images.pixels), cache / first.report["cache"]["file"]
    if damage == "facts cut":
        file.with_suffix(".json").write_text('{"files": [')
    elif damage == "facts gone":
        file.with_suffix(".json").unlink()
    else:
        file.write_bytes(file.read_bytes()[:-1000])
    again = checked(manifest, cache)
    assert not again.report["cache"]["reused"] and np.array_equal(again.images.pixels, pixels)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_build_is_gone_on_with_and_gives_what_an_unbroken_one_gives(
    data, cache, monkeypatch, tmp_path, error
):
    manifest, decode, seen = folder_of(data, sound(12)), decoding.decode, []
    whole = checked(manifest, tmp_path / "other")

    def stops(content, name, max_pixels):
        if name == "m07.png" and error is not None:
            raise error
        seen.append(name)
        return decode(content, name, max_pixels)

    monkeypatch.setattr(decoding, "decode", stops)
    before = threading.active_count()
    with pytest.raises(error):
        checked(manifest, cache, workers=1)
    assert threading.active_count() == before and not list(cache.glob("*.npy"))
    first, seen[:], error = list(seen), [], None
    again = checked(manifest, cache, workers=3)
    assert {"b00.png", "b06.png"} <= set(first) and not {"b00.png", "b06.png"} & set(seen) and "m07.png" in seen
    assert (np.asarray(again.images.pixels) == np.asarray(whole.images.pixels)).all()
    pd.testing.assert_frame_equal(again.facts, whole.facts)
    assert {path.suffix for path in cache.iterdir()} == {".npy", ".json"}


def test_a_journal_that_was_cut_off_counts_up_to_there(data, cache, monkeypatch):
    manifest = folder_of(data, sound(6))
    monkeypatch.setattr(cpu, "in_order", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        checked(manifest, cache)
    monkeypatch.undo()
    journal = next(cache.glob(".*.jsonl"))
    journal.write_text('[0, {"path": "m00.p')
    whole = checked(manifest, cache)
    assert whole.report["counts"]["kept"] == 6 and (np.asarray(whole.images.pixels).std(axis=(1, 2, 3)) > 0).all()


def test_what_a_killed_build_left_is_removed_a_day_later(data, cache):
    cache.mkdir()
    old, young = cache / ".aaa.1.part", cache / ".bbb.2.part"
    for part in (old, young):
        part.write_bytes(b"half")
    os.utime(old, (0, 0))
    checked(folder_of(data, sound(2)), cache)
    assert young.exists() and not old.exists()


def test_the_data_folder_is_only_read(data, cache):
    manifest = folder_of(data, sound(4))
    before = sorted((p.name, p.stat().st_mtime_ns) for p in data.iterdir())
    mode = data.stat().st_mode
    data.chmod(stat.S_IRUSR | stat.S_IXUSR)
    try:
        checked(manifest, cache)
    finally:
        data.chmod(mode)
    assert sorted((p.name, p.stat().st_mtime_ns) for p in data.iterdir()) == before


def test_a_cache_that_does_not_fit_is_refused_before_a_byte_is_written(data, cache, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(10**9, 10**9 - 50_000, 50_000))
    with pytest.raises(PathoError) as caught:
        checked(folder_of(data, sound(8)), cache)
    assert caught.value.code == "no_space" and list(cache.iterdir()) == []


def test_a_cache_folder_that_cannot_be_made_is_named(data, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(PathoError) as caught:
        checked(folder_of(data, sound(2)), tmp_path / "file" / "cache")
    assert caught.value.code == "output_unwritable"


def test_the_cache_stands_where_the_environment_says(data, cache, monkeypatch):
    monkeypatch.setenv("PATHOLIB_CACHE", str(cache))
    made = checking.check(folder_of(data, sound(2)), 48, progress=False)
    assert [path.name for path in cache.glob("*.npy")] == [made.report["cache"]["file"]]  # a name, no path of a machine


def test_a_person_is_told_the_size_beforehand_and_the_result_afterwards(data, cache, capsys):
    checked(folder_of(data, sound(4)), cache, progress=True)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and "4 images of 48 x 48" in lines[0] and "free" in lines[0]
    assert lines[1].startswith("4 of 4 images are sound and distinct")
    checked(folder_of(data, sound(4)), cache, progress=False)
    assert capsys.readouterr().out == ""


# -------------------------------------------------------------------------------------------- problems and doubles


def many(count=150):
    """A class large enough to bear one bad file."""
    return {f"b{i:03}.png": encoded(picture(i, 40, 40)) for i in range(count)} | sound(4, first=1000)


def test_all_problems_are_reported_at_once(data, cache):
    bad = {"b50.png": b"", "b51.png": JPEG[:300], "m52.png": b"<html>", "m53.png": PNG + b"behind"}
    manifest = folder_of(data, sound() | bad)
    (data / "b00.png").unlink()
    error_code, report = report_of(manifest, cache)
    assert error_code == "bad_images"
    found = {p["path"]: p["code"] for p in report["problems"]}
    assert found == {
        "b00.png": "missing_file",
        "b50.png": "empty",
        "b51.png": "not_an_image",
        "m52.png": "not_an_image",
    }
    assert all(p["reason"] and p["remedy"] for p in report["problems"])
    assert [(w["path"], w["code"]) for w in report["warnings"]] == [("m53.png", "trailing_data")]
    assert report["counts"]["files"] == 12 and report["counts"]["problems"] == 4


def test_skipping_lists_what_it_leaves_out(data, cache):
    manifest = folder_of(data, many() | {"b999.png": PNG[:-20]})
    made = checked(manifest, cache, on_bad="skip")
    digest = hashlib.sha256(PNG[:-20]).hexdigest()
    (left_out,) = made.report["excluded"]
    assert (left_out["path"], left_out["sha256"], left_out["code"]) == ("b999.png", digest, "corrupt")
    assert "b999.png" not in set(made.manifest.table["path"]) and len(made.images) == 154
    for path, row in zip(made.images.table["path"], made.images.table["row"], strict=True):
        assert np.array_equal(made.images.pixels[row], decoding.to_square(decoding.read(data / path), 48))


def test_skipping_stops_where_a_class_would_lose_more_than_one_percent(data, cache):
    manifest = folder_of(data, many() | {"b998.png": b"", "b999.png": b"x"})
    error_code, report = report_of(manifest, cache, on_bad="skip")
    assert error_code == "too_many_bad" and len(report["problems"]) == 2


def test_the_last_image_of_a_class_is_never_skipped(data, cache):
    error_code, _ = report_of(folder_of(data, sound(1) | {"m99.png": b""}), cache, on_bad="skip")
    assert error_code == "too_many_bad"


def test_a_problem_that_may_pass_is_looked_at_again(data, cache):
    manifest = folder_of(data, sound())
    (data / "b00.png").rename(data / "away")
    assert report_of(manifest, cache)[1]["problems"][0]["code"] == "missing_file"
    (data / "away").rename(data / "b00.png")
    assert checked(manifest, cache).report["problems"] == []


def test_groups_that_share_a_picture_are_reported(data, cache):
    manifest = folder_of(data, sound() | {"b99.png": encoded(picture(0))})
    shared = checked(manifest, cache).report["groups_sharing_pixels"]
    assert {"paths": ["b00.png", "b99.png"], "column": "case", "values": ["b00.png", "b99.png"]} in shared
    manifest.table.loc[manifest.table["path"] == "b99.png", ["slide", "case"]] = "b00.png"
    assert checked(manifest, cache).report["groups_sharing_pixels"] == []


def test_wrong_parameters_and_an_empty_manifest_are_refused(data, cache):
    manifest = folder_of(data, sound(2))
    for options in ({"on_bad": "skipp"}, {"fit": "corp"}):
        with pytest.raises(PathoError) as caught:
            checked(manifest, cache, **options)
        assert caught.value.code == "bad_parameter"
    with pytest.raises(PathoError) as caught:
        checked(Manifest(manifest.table[:0], data), cache)
    assert caught.value.code == "no_images"


# -------------------------------------------------------------------------------------------- sets and batches


def some_images(count=23, side=40):
    pixels = np.random.default_rng(0).integers(0, 256, (count + 5, side, side, 3), dtype=np.uint8)
    table = pd.DataFrame(
        {
            "path": [f"{i:02}.png" for i in range(count)],
            "row": np.arange(count)[::-1] + 5,
            "label": np.where(np.arange(count) % 3 == 0, "malignant", "benign"),
        }
    )
    return imagesets.ImageSet(pixels, table, ("benign", "malignant"))


def test_labels_follow_the_order_of_the_classes():
    assert list(some_images(4).labels) == [1, 0, 0, 1] and some_images(4).labels.dtype == np.int64
    with pytest.raises(PathoError) as caught:
        _ = imagesets.ImageSet(some_images().pixels, some_images().table, ("benign", "normal")).labels
    assert caught.value.code == "unknown_class"


def test_a_part_holds_exactly_its_split():
    whole = some_images(6)
    split = whole.table[["path", "label"]].assign(group="g", split=["train", "val"] * 3)[::-1]
    parted = whole.with_split(split)
    train = parted.part("train")
    assert sorted(train.table["path"]) == ["00.png", "02.png", "04.png"] and len(train) == 3
    rows = dict(zip(whole.table["path"], whole.table["row"], strict=True))
    assert all(rows[path] == row for path, row in zip(train.table["path"], train.table["row"], strict=True))
    with pytest.raises(PathoError) as caught:
        parted.part("tset")
    assert caught.value.code == "unknown_split"
    with pytest.raises(PathoError) as caught:
        whole.part("train")
    assert caught.value.code == "no_split"


@pytest.mark.parametrize("change", ["missing", "extra"])
def test_a_split_of_other_images_is_refused(change):
    whole = some_images(6)
    split = whole.table[["path", "label"]].assign(split="train")
    split = split[:-1] if change == "missing" else pd.concat([split, split[:1].assign(path="zz.png")])
    with pytest.raises(PathoError) as caught:
        whole.with_split(split)
    assert caught.value.code == "split_mismatch"


def test_batches_follow_the_order_and_lose_nothing():
    whole, order = some_images(), np.random.default_rng(1).integers(0, 23, 50)
    made = list(batching.batches(whole, order, 8))
    assert [len(batch.rows) for batch in made] == [8] * 6 + [2]
    assert np.array_equal(np.concatenate([b.rows for b in made]), order)
    assert np.array_equal(np.concatenate([b.positions for b in made]), np.arange(50))
    assert np.array_equal(np.concatenate([b.images for b in made]), whole.pixels[whole.table["row"].to_numpy()[order]])
    labels = torch.cat([b.labels for b in made])
    assert labels.dtype == torch.int64 and labels.tolist() == whole.labels[order].tolist()
    assert [len(b.rows) for b in batching.batches(whole, order, 8, drop_last=True)] == [8] * 6
    assert list(batching.batches(whole, order[:0], 8)) == []


def test_any_number_of_workers_gives_the_same_views():
    whole, order = some_images(), np.random.default_rng(1).integers(0, 23, 50)

    def view(pixels, rows, positions):
        time.sleep(0.003 * (positions[0] % 3))  # threads finish out of order
        return augment.training_views(pixels, 32, BREAKHIS.augmentation, 7, 3, positions, rows)

    runs = [
        torch.cat([b.images for b in batching.batches(whole, order, size, view, workers)])
        for workers, size in ((1, 8), (2, 8), (5, 8), (3, 5))
    ]
    assert all(torch.equal(runs[0], run) for run in runs[1:])


def test_an_error_in_a_thread_reaches_the_caller_and_ends_the_threads():
    def fails(pixels, rows, positions):
        if positions[0] >= 8:
            raise ValueError("in a thread")
        return pixels

    before = threading.active_count()
    with pytest.raises(ValueError, match="in a thread"):
        list(batching.batches(some_images(), np.arange(23), 4, fails, workers=2))
    assert threading.active_count() == before


def test_leaving_early_ends_the_threads_and_little_is_prepared_in_vain():
    prepared, before = [], threading.active_count()

    def note(pixels, rows, positions):
        prepared.append(positions[0])
        return pixels

    stream = batching.batches(some_images(), np.zeros(400, int), 4, note, workers=2)
    next(stream)
    del stream
    assert threading.active_count() == before and len(prepared) <= 1 + 2 + 2
    batching.batches(some_images(), np.zeros(400, int), 4)  # never started: no thread at all
    assert threading.active_count() == before


def test_reading_needs_no_torch():
    import subprocess
    import sys

    script = "import sys; import patholib.data.checking; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def examples_set():
    """Class b: patients x (3 images), y (1); class m: patient z (2). Sorted by path as a manifest is."""
    table = pd.DataFrame(
        {
            "path": ["b0", "b1", "b2", "b3", "m0", "m1"],
            "label": ["b"] * 4 + ["m"] * 2,
            "case": ["x", "x", "x", "y", "z", "z"],
            "row": [5, 4, 3, 2, 1, 0],
        }
    )
    return imagesets.ImageSet(np.arange(6, dtype=np.uint8)[:, None, None, None], table, ("m", "b"))


@pytest.mark.parametrize(
    ("each", "expected"), [(1, ["m0", "b0"]), (2, ["m0", "m1", "b0", "b3"]), (3, ["m0", "m1", "b0", "b3", "b1"])]
)
def test_examples_come_from_as_many_patients_as_there_are_in_class_order(each, expected):
    found = examples_set().examples(each, "case")
    assert list(found.table["path"]) == expected
    place = ["b0", "b1", "b2", "b3", "m0", "m1"]
    assert found.pictures.ravel().tolist() == [5 - place.index(path) for path in expected]
    assert set(found.table) == {"path", "label", "case", "row"}
