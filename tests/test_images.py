"""Every file is decoded once by one decoder: refused with a code, or accepted; cached exactly; batched in order."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import shutil
import stat
import struct
import threading
import time
import zlib
from collections import namedtuple
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from patholib import augment, images
from patholib.errors import PathoError
from patholib.recipes import BREAKHIS


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


def picture(seed=0, width=70, height=46, mode="RGB"):
    """A smooth random picture."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).convert(mode)


def encoded(image, kind="PNG", **options):
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


PNG, JPEG = encoded(picture()), encoded(picture(width=200, height=150), "JPEG", quality=95)


def chunk(name, content):
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(width, height, depth=8, colour=2, rows=b"", extra=b""):
    """A PNG with any header, whatever stands behind it."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + extra + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def flipped(content, at):
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1:]


def code(source, **options):
    with pytest.raises(PathoError) as caught:
        images.read(source, **options)
    return caught.value.code


def notes(source, **options):
    return [note.code for note in images.read(source, **options).warnings]


# ------------------------------------------------------------------------------------------------------- refused


REFUSED = {
    "D01 empty": (b"", "empty"),
    "D02 one byte": (b"x", "not_an_image"),
    "D02 zeros": (bytes(500), "not_an_image"),
    "D02 noise": (bytes(range(128, 256)), "not_an_image"),
    "D02 jpeg 2000": (b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(99), "unsupported_format"),
    "D02 still gif": (encoded(picture(), "GIF"), "unsupported_format"),
    "D03 png cut at 20 bytes": (PNG[:20], "not_an_image"),
    "D03 png cut in the middle": (PNG[:len(PNG) // 2], "corrupt"),
    "D03 png cut at 99 %": (PNG[:len(PNG) * 99 // 100], "corrupt"),
    "D03 png without its last chunk": (PNG[:-12], "corrupt"),
    "D04 jpeg cut in the middle": (JPEG[:len(JPEG) // 2], "corrupt"),
    "D04 jpeg cut at 99 %": (JPEG[:len(JPEG) * 99 // 100], "corrupt"),
    "D04 jpeg without end marker": (JPEG[:-2], "corrupt"),
    "D04 jpeg with a tail of zeros": (JPEG[:-500] + bytes(500), "corrupt"),
    "D05 header check sum": (flipped(PNG, 30), "not_an_image"),
    "D05 check sum of the pixels": (flipped(PNG, len(PNG) - 14), "corrupt"),
    "D11 16-bit grey": (encoded(Image.fromarray(np.full((40, 40), 999, np.uint16))), "unsupported_mode"),
    "D11 float": (encoded(Image.fromarray(np.ones((40, 40), np.float32)), "TIFF"), "unsupported_mode"),
    "D11 lab": (encoded(Image.new("LAB", (40, 40)), "TIFF"),
                "unsupported_mode"),
    "D14 animated gif": (encoded(picture(), "GIF", save_all=True, append_images=[picture(1)]), "multi_frame"),
    "D14 animated webp": (encoded(picture(), "WEBP", save_all=True, append_images=[picture(1)]), "multi_frame"),
    "D14 animated png": (encoded(picture(), save_all=True, append_images=[picture(1)]), "multi_frame"),
    "D14 tiff pages": (encoded(picture(), "TIFF", save_all=True, append_images=[picture(1)]), "multi_frame"),
    "D15 one pixel": (encoded(Image.new("RGB", (1, 1))), "too_small"),
    "D15 a line": (encoded(Image.new("RGB", (1, 5000))), "too_small"),
    "D15 nothing": (png(0, 0), "not_an_image"),
    "D16 bomb": (png(50_000, 50_000), "too_many_pixels"),
    "D16 above the cap": (png(6000, 4001), "too_many_pixels"),
    "D16 jpeg header": (JPEG[:JPEG.index(b"\xff\xc0") + 5] + b"\xff\xdc\xff\xdc"
                        + JPEG[JPEG.index(b"\xff\xc0") + 9:], "too_many_pixels"),
    "D17 text bomb": (png(40, 40, extra=chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(30_000_000)))), "not_an_image"),
    "webp cut": (encoded(picture(), "WEBP")[:-40], "not_an_image"),
    "bmp cut": (encoded(picture(), "BMP")[:-400], "corrupt"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_bad_file_is_refused_with_its_code(case):
    content, expected = REFUSED[case]
    assert code(content) == expected


STRANGERS = {
    "git-LFS": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n", "git lfs pull"),
    "web page": (b"\n<!DOCTYPE html><html><title>404</title></html>", "Download"),
    "SVG": (b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>', "PNG"),
    "XML": (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "Download"),
    "DICOM": (bytes(128) + b"DICM" + bytes(50), "PNG"),
    "PDF": (b"%PDF-1.7\n", "PNG"),
    "PostScript": (b"%!PS-Adobe-3.0 EPSF-3.0\n", "PNG"),
    "ZIP": (b"PK\x03\x04" + bytes(30), "Unpack"),
    "pickle": (b"\x80\x04\x95" + bytes(30), "PNG"),
    "text": (b"image not available", "Download"),
}


@pytest.mark.parametrize("what", STRANGERS)
def test_a_file_that_is_something_else_is_called_by_its_name(what):
    content, remedy = STRANGERS[what]
    with pytest.raises(PathoError) as caught:
        images.read(content, "scan.png")
    error = caught.value
    assert error.code == "not_an_image" and what.lower() in error.reason.lower() and remedy in error.remedy
    assert error.subject == "scan.png"


def test_every_flipped_bit_of_a_png_is_noticed():
    content = encoded(picture(width=40, height=40))
    rng = np.random.default_rng(0)
    for at in rng.integers(8, len(content), 150):
        with pytest.raises(PathoError):
            images.read(content[:at] + bytes([content[at] ^ (1 << rng.integers(8))]) + content[at + 1:])


def test_any_cut_of_a_png_or_jpeg_is_noticed():
    for content in (PNG, JPEG):
        for at in np.linspace(0, len(content) - 1, 60).astype(int):
            assert code(content[:at]) in ("empty", "not_an_image", "corrupt")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")  # Pillow's own limit, above ours
def test_a_bomb_is_refused_from_its_header_in_no_time():
    start = time.perf_counter()
    assert code(png(12_000, 12_000, rows=bytes(5_000_000))) == "too_many_pixels"
    assert time.perf_counter() - start < 0.125


def test_the_cap_is_a_parameter():
    assert code(PNG, max_pixels=70 * 46 - 1) == "too_many_pixels"
    assert images.read(PNG, max_pixels=70 * 46).size == (70, 46)
    assert code(PNG + bytes(2**20 + 8 * 4000), max_pixels=4000) == "too_many_bytes"


def test_what_is_no_file_is_never_opened(tmp_path):
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "dangling.png").symlink_to(tmp_path / "gone")
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    assert code(tmp_path / "folder.png") == "unreadable"
    assert code(tmp_path / "dangling.png") == "broken_link"
    assert code(tmp_path / "loop.png") == "broken_link"
    assert code(tmp_path / "absent.png") == "missing_file"
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.png")  # opening it would wait for ever
        assert code(tmp_path / "pipe.png") == "unreadable"


def test_control_characters_in_a_name_are_shown_and_not_obeyed():
    with pytest.raises(PathoError) as caught:
        images.read(b"", "a\n\x1b[31mred.png")
    assert str(caught.value).count("\n") == 0 and "\x1b" not in str(caught.value)


# ------------------------------------------------------------------------------------------------------ accepted


def test_paths_bytes_and_open_files_give_the_same_picture(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(PNG)
    with path.open("rb") as stream:
        pictures = [images.read(path), images.read(PNG), images.read(stream)]
    assert all(np.array_equal(image, picture()) for image in pictures)
    assert all(image.mode == "RGB" and image.warnings == [] for image in pictures)


ODD = {
    "D06 trailing": (PNG + b"PK\x03\x04 and an archive", "trailing_data"),
    "D06 trailing jpeg": (JPEG + bytes(10), "trailing_data"),
    "D09 grey": (encoded(picture(mode="L")), "greyscale"),
    "D09 black and white": (encoded(picture(mode="1")), "greyscale"),
    "D09 palette": (encoded(picture(mode="P")), "palette"),
    "D10 cmyk": (encoded(picture(mode="CMYK"), "JPEG"), "cmyk"),
    "D12 48 bit": (png(40, 40, 16, 2, rows=(b"\0" + bytes(range(240))) * 40), "depth_reduced"),
    "D14 mpo": (encoded(picture(), "MPO", save_all=True, append_images=[picture(1)]), "multi_frame"),
    "D18 black": (encoded(Image.new("RGB", (40, 40))), "blank"),
    "extreme": (encoded(picture(width=400, height=40)), "extreme_aspect"),
}


@pytest.mark.parametrize("case", ODD)
def test_an_odd_file_is_accepted_with_a_warning(case):
    content, expected = ODD[case]
    image = images.read(content)
    assert expected in [note.code for note in image.warnings] and image.mode == "RGB"
    assert all(note.reason for note in image.warnings)


def test_a_wrong_ending_is_noticed_and_a_right_one_in_any_case_is_not():
    assert notes(PNG, name="a.jpg") == ["extension_mismatch"]
    assert notes(JPEG, name="a.PNG") == ["extension_mismatch"]
    for name in ("a.JPG", "a.png.jpeg", "a.JPE"):
        assert notes(JPEG, name=name) == []


def test_a_phone_picture_counts_as_its_first_frame():
    content = encoded(picture(3), "MPO", save_all=True, append_images=[picture(1)])
    first = Image.open(io.BytesIO(content)).convert("RGB")
    assert np.array_equal(images.read(content), first)


def test_transparency_is_laid_on_white():
    half = np.zeros((40, 40, 4), np.uint8)
    half[:, :20] = (200, 30, 60, 255)
    image = images.read(encoded(Image.fromarray(half)))
    assert np.array_equal(np.asarray(image)[:, :20], half[:, :20, :3]) and (np.asarray(image)[:, 20:] == 255).all()
    assert [note.code for note in image.warnings] == ["alpha"]
    opaque = picture().convert("RGBA")
    assert notes(encoded(opaque)) == [] and np.array_equal(images.read(encoded(opaque)), picture())
    assert notes(encoded(Image.new("RGBA", (40, 40), (9, 9, 9, 0)))) == ["alpha", "blank"]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_shows_the_same_upright_scene(kind, orientation):
    """The quadrant colours of a scene, stored as each of the eight orientations says (EXIF 2.3)."""
    scene = np.zeros((64, 96, 3), np.uint8)
    scene[:32, :48], scene[:32, 48:], scene[32:, :48] = (220, 0, 0), (0, 220, 0), (0, 0, 220)
    stored = {1: scene, 2: scene[:, ::-1], 3: scene[::-1, ::-1], 4: scene[::-1], 5: scene.transpose(1, 0, 2),
              6: np.rot90(scene), 7: np.rot90(scene, 2).transpose(1, 0, 2), 8: np.rot90(scene, -1)}[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if kind == "WEBP" else {"quality": 95} if kind == "JPEG" else {}
    shown = np.asarray(images.read(encoded(Image.fromarray(np.ascontiguousarray(stored)), kind, exif=exif, **options)))
    assert shown.shape == scene.shape
    for y, x in ((16, 24), (16, 72), (48, 24), (48, 72)):
        assert np.abs(shown[y, x].astype(int) - scene[y, x]).max() < 12


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_broken_camera_data_does_not_cost_the_picture():
    content = encoded(picture(), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert np.asarray(images.read(content)).shape == (46, 70, 3)


REAL = os.environ.get("PATHOLIB_REAL_DATA")
real = pytest.mark.skipif(not REAL, reason="PATHOLIB_REAL_DATA names no folder of real images")


@real
@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_real_bad_files_are_refused_and_odd_ones_explained():
    folder = Path(REAL) / "bad_images"
    with (folder / "manifest.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) > 70
    for row in rows:
        try:
            image = images.read(folder / row["file"], row["file"])
        except PathoError as error:
            assert error.code and error.reason and error.remedy and "0x" not in error.reason
            continue
        assert row["kind"] == "odd", f"{row['file']} was accepted"
        # Files listed only because they carry camera data are sound.
        assert image.warnings or "exif" in row["detail"], f"{row['file']} was accepted without a word"


@real
def test_sound_real_images_are_all_accepted():
    paths = [p for name in ("breakhis", "isic_masks") for p in sorted((Path(REAL) / name).rglob("*.*g"))][:120]
    assert {note.code for path in paths for note in images.read(path).warnings} <= {"greyscale"}  # the masks are grey


# ------------------------------------------------------------------------------------------------------- squares


def test_crop_keeps_the_middle_pad_keeps_all_and_squeeze_stretches():
    image = Image.fromarray(np.repeat(np.repeat(np.uint8([[[250, 0, 0], [0, 250, 0], [0, 0, 250]]]), 40, 0), 40, 1))
    crop, pad, squeeze = (images.to_square(image, 40, fit) for fit in ("crop", "pad", "squeeze"))
    assert crop.shape == pad.shape == squeeze.shape == (40, 40, 3) and crop.dtype == np.uint8
    assert (crop == (0, 250, 0)).all()
    assert (pad[:13] == 0).all() and (pad[-13:] == 0).all() and (pad[20, [5, 20, 35]].max(axis=1) == 250).all()
    assert (squeeze[[0, 39]][:, [5, 20, 35]].argmax(axis=2) == [0, 1, 2]).all()


def test_a_square_of_the_right_size_is_not_touched():
    image = picture(width=70, height=41)  # an odd margin must not shift by half a pixel
    assert np.array_equal(images.to_square(image, 41), np.asarray(image)[:, 14:55])


def test_shrinking_averages_instead_of_skipping_pixels():
    stripes = np.zeros((256, 256, 3), np.uint8)
    stripes[:, ::2] = 255
    assert np.abs(images.to_square(Image.fromarray(stripes), 64).astype(int) - 128).max() <= 8  # 6 at the very edge


def test_an_unknown_fit_is_refused():
    with pytest.raises(PathoError) as caught:
        images.to_square(picture(), 32, "corp")
    assert caught.value.code == "bad_parameter" and "crop" in caught.value.remedy


def test_the_perceptual_hash_survives_reencoding_and_tells_pictures_apart():
    def distance(a, b):
        return (int(a, 16) ^ int(b, 16)).bit_count()

    hashes = [images.perceptual_hash(images.to_square(picture(seed, 300, 300), 128)) for seed in range(12)]
    assert all(len(h) == 16 for h in hashes)
    for seed, own in enumerate(hashes):
        again = images.read(encoded(picture(seed, 300, 300).resize((240, 240)), "JPEG", quality=60))
        assert distance(own, images.perceptual_hash(images.to_square(again, 128))) <= 4
        assert all(distance(own, other) >= 12 for i, other in enumerate(hashes) if i != seed)


# --------------------------------------------------------------------------------------------- check and cache


def folder_of(root, files, **columns):
    """A manifest of {path: bytes}, written below root; label from the first letter, own slide and case for each."""
    for path, content in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content)
    paths = sorted(files)
    table = pd.DataFrame({"path": paths, "label": ["benign" if p.startswith("b") else "malignant" for p in paths],
                          "slide": paths, "case": paths} | columns)
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
    return images.check(manifest, **{"size": 48, "cache_dir": cache, "progress": False} | options)


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
        assert np.array_equal(made.images.pixels[row], images.to_square(images.read(data / path), 48, fit))
    assert list(made.manifest.table["path"]) == list(manifest.table["path"]) and "row" not in made.manifest.table
    assert np.array_equal(np.load(cache / made.report["cache"]["file"]), made.images.pixels)  # a plain .npy


def test_the_facts_hold_digest_and_size_of_every_file(data, cache):
    manifest = folder_of(data, sound(3) | {"b99.jpg": JPEG})
    made = checked(manifest, cache)
    for fact in made.facts.to_dict("records"):
        content = (data / fact["path"]).read_bytes()
        assert fact["sha256"] == hashlib.sha256(content).hexdigest() and fact["bytes"] == len(content)
        assert (fact["width"], fact["height"]) == Image.open(data / fact["path"]).size and len(fact["phash"]) == 16
    assert made.report["sizes"] == {"70x46": 3, "200x150": 1} and made.report["kinds"] == {"PNG": 3, "JPEG": 1}
    json.dumps(made.report, allow_nan=False)


def test_a_second_check_decodes_nothing(data, cache, monkeypatch):
    manifest = folder_of(data, sound())
    first = checked(manifest, cache)
    monkeypatch.setattr(images, "_decode", None)
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
    assert np.array_equal(made.images.pixels[3], images.to_square(picture(77), 48))


def test_another_size_or_fit_has_a_cache_of_its_own(data, cache):
    manifest = folder_of(data, sound())
    found = {checked(manifest, cache, size=size, fit=fit).report["cache"]["file"]
             for size in (32, 48) for fit in ("crop", "pad")}
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
def test_an_interrupted_build_leaves_nothing(data, cache, monkeypatch, error):
    manifest, decode = folder_of(data, sound(12)), images._decode

    def stops(content, name, max_pixels):
        if name == "m07.png":
            raise error
        return decode(content, name, max_pixels)

    monkeypatch.setattr(images, "_decode", stops)
    before = threading.active_count()
    with pytest.raises(error):
        checked(manifest, cache, workers=2)
    assert list(cache.iterdir()) == [] and threading.active_count() == before


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
    made = images.check(folder_of(data, sound(2)), 48, progress=False)
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
    assert found == {"b00.png": "missing_file", "b50.png": "empty", "b51.png": "not_an_image",
                     "m52.png": "not_an_image"}
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
        assert np.array_equal(made.images.pixels[row], images.to_square(images.read(data / path), 48))


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


def test_a_file_that_changes_while_it_is_read_is_a_problem(data, cache, monkeypatch):
    manifest, first_facts = folder_of(data, sound()), images._first_facts

    def earlier(path, name):
        return first_facts(path, name) | ({"mtime_ns": 1} if name == "b00.png" else {})

    monkeypatch.setattr(images, "_first_facts", earlier)
    assert [p["code"] for p in report_of(manifest, cache)[1]["problems"]] == ["changed_file"]


def test_a_disk_that_disappears_is_reported_for_each_file(data, cache, monkeypatch):
    manifest, content = folder_of(data, sound()), images._content

    def fails(path, facts, name, limit):
        if name == "m03.png":
            raise images._unread(name, OSError(5, "Input/output error"))
        return content(path, facts, name, limit)

    monkeypatch.setattr(images, "_content", fails)
    assert [(p["path"], p["code"]) for p in report_of(manifest, cache)[1]["problems"]] == [("m03.png", "io_error")]
    monkeypatch.setattr(images, "_content", content)
    assert checked(manifest, cache).report["problems"] == []  # not remembered


def test_equal_pictures_of_one_label_are_kept_once_and_listed(data, cache):
    twice = encoded(picture(0), compress_level=1)  # other bytes, same pixels
    manifest = folder_of(data, sound() | {"b98.png": twice, "b99.png": encoded(picture(0))})
    made = checked(manifest, cache)
    assert made.report["duplicates"] == [{"kept": "b00.png", "dropped": ["b98.png", "b99.png"]}]
    assert {e["path"]: e["code"] for e in made.report["excluded"]} == {"b98.png": "duplicate", "b99.png": "duplicate"}
    assert len(made.images) == 8 and made.report["counts"]["duplicates"] == 2


def test_groups_that_share_a_picture_are_reported(data, cache):
    manifest = folder_of(data, sound() | {"b99.png": encoded(picture(0))})
    shared = checked(manifest, cache).report["groups_sharing_pixels"]
    assert {"paths": ["b00.png", "b99.png"], "column": "case", "values": ["b00.png", "b99.png"]} in shared
    manifest.table.loc[manifest.table["path"] == "b99.png", ["slide", "case"]] = "b00.png"
    assert checked(manifest, cache).report["groups_sharing_pixels"] == []


def test_equal_pictures_of_different_labels_are_a_conflict_and_none_stays(data, cache):
    manifest = folder_of(data, sound() | {"m99.png": encoded(picture(0))})
    error_code, report = report_of(manifest, cache)
    assert error_code == "bad_images" and {p["code"] for p in report["problems"]} == {"label_conflict"}
    assert report["label_conflicts"] == [{"paths": ["b00.png", "m99.png"], "labels": ["benign", "malignant"]}]
    made = checked(manifest, cache, on_bad="skip")
    assert not {"b00.png", "m99.png"} & set(made.manifest.table["path"]) and len(made.images) == 7


def test_one_blank_picture_is_a_warning_and_many_are_a_problem(data, cache):
    blanks = {f"b9{i}.png": encoded(Image.new("RGB", (40 + i, 40), (i * 20, 0, 0))) for i in range(3)}
    one = folder_of(data, sound() | {"b90.png": blanks["b90.png"]})
    assert [w["code"] for w in checked(one, cache).report["warnings"]] == ["blank"]
    _, report = report_of(folder_of(data, sound() | blanks), cache)
    assert [p["code"] for p in report["problems"]] == ["blank"] * 3


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
    table = pd.DataFrame({"path": [f"{i:02}.png" for i in range(count)], "row": np.arange(count)[::-1] + 5,
                          "label": np.where(np.arange(count) % 3 == 0, "malignant", "benign")})
    return images.ImageSet(pixels, table, ("benign", "malignant"))


def test_labels_follow_the_order_of_the_classes():
    assert list(some_images(4).labels) == [1, 0, 0, 1] and some_images(4).labels.dtype == np.int64
    with pytest.raises(PathoError) as caught:
        _ = images.ImageSet(some_images().pixels, some_images().table, ("benign", "normal")).labels
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
    made = list(images.batches(whole, order, 8))
    assert [len(batch.rows) for batch in made] == [8] * 6 + [2]
    assert np.array_equal(np.concatenate([b.rows for b in made]), order)
    assert np.array_equal(np.concatenate([b.positions for b in made]), np.arange(50))
    assert np.array_equal(np.concatenate([b.images for b in made]), whole.pixels[whole.table["row"].to_numpy()[order]])
    labels = torch.cat([b.labels for b in made])
    assert labels.dtype == torch.int64 and labels.tolist() == whole.labels[order].tolist()
    assert [len(b.rows) for b in images.batches(whole, order, 8, drop_last=True)] == [8] * 6
    assert list(images.batches(whole, order[:0], 8)) == []


def test_any_number_of_workers_gives_the_same_views():
    whole, order = some_images(), np.random.default_rng(1).integers(0, 23, 50)

    def view(pixels, rows, positions):
        time.sleep(0.003 * (positions[0] % 3))  # threads finish out of order
        return augment.training_views(pixels, 32, BREAKHIS.augmentation, 7, 3, positions, rows)

    runs = [torch.cat([b.images for b in images.batches(whole, order, size, view, workers)])
            for workers, size in ((1, 8), (2, 8), (5, 8), (3, 5))]
    assert all(torch.equal(runs[0], run) for run in runs[1:])


def test_an_error_in_a_thread_reaches_the_caller_and_ends_the_threads():
    def fails(pixels, rows, positions):
        if positions[0] >= 8:
            raise ValueError("in a thread")
        return pixels

    before = threading.active_count()
    with pytest.raises(ValueError, match="in a thread"):
        list(images.batches(some_images(), np.arange(23), 4, fails, workers=2))
    assert threading.active_count() == before


def test_leaving_early_ends_the_threads_and_little_is_prepared_in_vain():
    prepared, before = [], threading.active_count()

    def note(pixels, rows, positions):
        prepared.append(positions[0])
        return pixels

    stream = images.batches(some_images(), np.zeros(400, int), 4, note, workers=2)
    next(stream)
    del stream
    assert threading.active_count() == before and len(prepared) <= 1 + 2 + 2
    images.batches(some_images(), np.zeros(400, int), 4)  # never started: no thread at all
    assert threading.active_count() == before


def test_an_order_for_another_set_is_refused():
    with pytest.raises(PathoError) as caught:
        list(images.batches(some_images(), np.array([3, 23]), 2))
    assert caught.value.code == "bad_order"


def test_reading_needs_no_torch():
    import subprocess
    import sys
    script = "import sys; import patholib.images; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0




def examples_set():
    """Class b: patients x (3 images), y (1); class m: patient z (2). Sorted by path as a manifest is."""
    table = pd.DataFrame({"path": ["b0", "b1", "b2", "b3", "m0", "m1"], "label": ["b"] * 4 + ["m"] * 2,
                          "case": ["x", "x", "x", "y", "z", "z"], "row": [5, 4, 3, 2, 1, 0]})
    return images.ImageSet(np.arange(6, dtype=np.uint8)[:, None, None, None], table, ("m", "b"))


@pytest.mark.parametrize(("each", "expected"), [
    (1, ["m0", "b0"]), (2, ["m0", "m1", "b0", "b3"]), (3, ["m0", "m1", "b0", "b3", "b1"]),
])
def test_examples_come_from_as_many_patients_as_there_are_in_class_order(each, expected):
    found = examples_set().examples(each, "case")
    assert list(found.table["path"]) == expected
    place = ["b0", "b1", "b2", "b3", "m0", "m1"]
    assert found.pictures.ravel().tolist() == [5 - place.index(path) for path in expected]
    assert set(found.table) == {"path", "label", "case", "row"}
