"""Pictures that a decoder would fill with grey or noise, and files that would keep it busy, are noticed."""

from __future__ import annotations

import io
import os
import random
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from samples import LOST, encoded, many_chunks, many_scans, picture, scan_of, textured

from patholib.base.errors import PathoError
from patholib.data import decoding, endings, jpegscans

REAL = os.environ.get("PATHOLIB_REAL_DATA")
WRITTEN = {  # ways in which programs write a JPEG
    "plain": {},
    "optimised": {"optimize": True, "subsampling": 0},
    "progressive": {"progressive": True},
    "restarting at every row": {"restart_marker_rows": 1},
    "restarting at every block": {"restart_marker_blocks": 1},
}


def found(content: bytes) -> str:
    """The code of the refusal or of a note on picture data, "" where there is neither."""
    try:
        notes = [note.code for note in decoding.read(content).warnings]
    except PathoError as error:
        return error.code
    return next((note for note in ("picture_data_left", "details_missing") if note in notes), "")


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("written", WRITTEN)
@pytest.mark.parametrize("lost", LOST)
def test_c52_jpeg_that_lost_half_its_scan_is_refused(catalogue, lost, written, mode):
    whole = encoded(textured(3).convert(mode), "JPEG", quality=90, **WRITTEN[written])
    said = found(LOST[lost](whole, *scan_of(whole)))
    if written == "progressive":  # each of its scans lies in one place: what is lost may end in too much as well
        assert said in ("corrupt", "picture_data_left", "details_missing")
        return
    assert said == "corrupt"
    if mode == "RGB":
        catalogue("C52", f"JPEG ({written}) with an end marker that lost {lost}", "refused: `corrupt`")


def test_c52_jpeg_with_a_part_twice_is_noted(catalogue):
    whole = encoded(textured(3), "JPEG", quality=90)
    a, e = scan_of(whole)
    said = found(whole[: (a + e) // 2] + whole[(a + e) // 2 - 700 :])
    assert said == "picture_data_left"
    catalogue("C52", "JPEG with a part of its picture data twice", f"accepted, with the note `{said}`")


@pytest.mark.parametrize("lossless", [False, True])
@pytest.mark.parametrize("lost", LOST)
def test_c52_webp_that_lost_data_is_refused_or_noted(catalogue, lost, lossless):
    whole = encoded(textured(3), "WEBP", quality=90, lossless=lossless)
    less = LOST[lost](whole, 300, len(whole))
    less += bytes(len(less) % 2)
    content = b"RIFF" + (len(less) - 8).to_bytes(4, "little") + less[8:16] + (len(less) - 20).to_bytes(4, "little")
    assert found(content + less[20:]) in ("corrupt", "not_an_image", "picture_data_left")
    if not lossless:
        catalogue(
            "C52",
            f"WebP of the right length that lost {lost}",
            "refused, or accepted with the note `picture_data_left`",
        )


@pytest.mark.parametrize("written", WRITTEN)
@pytest.mark.parametrize("seed", range(6))
def test_c52_sound_pictures_are_accepted_without_a_note(seed, written):
    plain = Image.new("RGB", (500, 40), "white")
    plain.paste((255, 254, 255), (200, 10, 300, 30))
    for image in (textured(seed), picture(seed, 33 + seed, 47), plain, textured(seed).resize((32, 900))):
        for mode in ("RGB", "L"):
            content = encoded(image.convert(mode), "JPEG", quality=30 + 13 * seed, **WRITTEN[written])
            read = decoding.read(content)
            assert not {"picture_data_left", "details_missing"} & {note.code for note in read.warnings}
            assert np.array_equal(read, Image.open(io.BytesIO(content)).convert("RGB"))
    assert not found(encoded(textured(seed), "WEBP", quality=50 + 10 * seed))
    assert not found(encoded(textured(seed), "WEBP", lossless=True))


@pytest.mark.skipif(not REAL, reason="needs real images in PATHOLIB_REAL_DATA")
def test_c52_of_200_damaged_real_jpegs_all_are_noticed():
    paths = sorted(Path(REAL, "isic2019", "ISIC_2019_Training_Input").glob("*.jpg"))
    rng, seen = random.Random(52), 0
    for path in rng.sample(paths, 50):
        whole = path.read_bytes()
        assert not found(whole)
        for lost in LOST.values():
            a, e = scan_of(whole)
            if len(damaged := lost(whole, rng.randrange(a, e - 1500), e)) and damaged != whole:
                seen += 1
                assert found(damaged), path
    assert seen == 200


@pytest.mark.skipif(not REAL, reason="needs real images in PATHOLIB_REAL_DATA")
def test_c52_of_200_damaged_real_progressive_jpegs_all_that_can_be_seen_are_noticed():
    """Not noticed is a hole in a scan that ends in a long run of empty blocks, which hides how many were lost.

    It is the last scan then, which adds one bit to the details.
    """
    paths = sorted(Path(REAL, "isic2019", "ISIC_2019_Training_Input").glob("*.jpg"))
    missed = []
    for path in random.Random(52).sample(paths, 50):
        with Image.open(path) as image:
            whole = encoded(image, "JPEG", quality=90, progressive=True)
        assert not found(whole)
        pixels = np.asarray(decoding.read(whole), int)
        for what, lost in LOST.items():
            if not found(damaged := lost(whole, *scan_of(whole))):
                missed.append((path.name, what, abs(np.asarray(decoding.read(damaged)) - pixels).mean()))
    assert len(missed) <= 6 and all(difference < 2 for *_, difference in missed), missed


def test_c52_zeros_in_any_scan_of_details_are_noticed(catalogue):
    whole = encoded(textured(3).resize((768, 768)), "JPEG", quality=90, progressive=True)
    scans = [scan.intervals[0] for scan in jpegscans.outline(whole)[1] if scan.zeros]
    for start, stop in [places for places in scans if places[1] - places[0] > 800]:
        for at in (start + 50, (start + stop) // 2 - 256, stop - 600):
            assert found(whole[:at] + bytes(512) + whole[at + 512 :])
    catalogue("C52", "progressive JPEG with 512 zeros in a scan of details", "refused, or accepted with a note")


def test_c52_a_progressive_jpeg_that_ends_between_two_scans_is_noticed(catalogue):
    whole = encoded(textured(3), "JPEG", quality=90, progressive=True)
    scans = jpegscans.outline(whole)[1]
    said = [found(whole[: scan.intervals[-1][1]] + b"\xff\xd9") for scan in scans]
    assert set(said[:-1]) == {"details_missing"} and not said[-1]
    heads = [whole.rfind(b"\xff\xda", 0, scan.intervals[0][0]) for scan in scans]
    for scan, head in zip(scans[:-1], heads, strict=False):  # without one scan; its tables stay
        assert found(whole[:head] + whole[scan.intervals[-1][1] :]) in (
            "corrupt",
            "details_missing",
            "picture_data_left",
        )
    assert found(whole[: heads[0]] + whole[scans[0].intervals[-1][1] :]) == "corrupt"  # the means of all blocks
    catalogue("C52", "progressive JPEG that ends between two scans", "accepted, with the note `details_missing`")


@pytest.mark.parametrize("wave", [(0, 1), (1, 0), (3, 3), (7, 0), (4, 6)])
def test_c52_a_picture_of_one_wave_holds_long_runs_of_zero_bits_and_is_accepted(wave):
    """All its values are alike, and so are the bits that later scans add to them."""
    y, x = (np.cos((2 * np.arange(512) % 16 + 1) * n * np.pi / 16) for n in wave)
    for height in (8, 16, 60, 120):
        pixels = (128 + height * y[:, None] * x).clip(0, 255).astype(np.uint8)
        for quality in (50, 75, 95):
            assert not found(encoded(Image.fromarray(pixels), "JPEG", quality=quality, progressive=True))


@pytest.mark.parametrize(
    "what, content",
    [
        ("progressive JPEG whose last scan stands there 1,000 times", many_scans(1000)),
        ("JPEG of 100,000 empty segments", encoded(picture(), "JPEG")[:2] + b"\xff\xe9\0\2" * 100_000),
        ("PNG of 600,000 empty chunks", many_chunks(600_000)),
    ],
)
def test_c53_a_file_of_endless_parts_is_refused_before_it_is_decoded(catalogue, what, content):
    began = time.process_time()
    code = found(content)
    assert time.process_time() - began < 1
    assert code == "unsupported_format"
    catalogue("C53", what, f"refused before it is decoded: `{code}`")


def test_c53_as_many_parts_as_programs_write_are_accepted():
    assert not found(many_scans(1))
    assert decoding.read(many_chunks(2000)).size == (40, 40)
    assert endings.of("PNG", many_chunks(5)).end == len(many_chunks(5))
