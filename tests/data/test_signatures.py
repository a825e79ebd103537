"""A picture is recognised after it was turned, scaled, brightened and encoded again, and no other is taken for it."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from samples import copied, textured

from patholib.base.errors import PathoError
from patholib.data import decoding, signatures

pytestmark = pytest.mark.heavy


def framed(image: Image.Image, radius: float) -> Image.Image:
    """What a lens shows: black outside of a circle."""
    side = image.width
    away = np.hypot(*(np.mgrid[:side, :side] / side - 0.5))
    return Image.fromarray((np.asarray(image) / (1 + np.exp((away - radius) / 0.006))[..., None]).astype(np.uint8))


def signed(pictures) -> np.ndarray:
    return np.array([signatures.of(picture) for picture in pictures])


def all_pairs(signs: np.ndarray) -> np.ndarray:
    """The similarity of every pair, by brute force."""
    i, j = np.triu_indices(len(signs), 1)
    return signatures.similarity(signs[i], signs[j])


@pytest.mark.parametrize("turn", Image.Transpose)
def test_a_turned_picture_has_the_turned_signature(turn):
    picture = textured(0)
    own, other = signed([picture, picture.transpose(turn)])
    odd = (-1.0) ** np.arange(16)
    ways = [
        (sign * own.T if swapped else sign * own)
        for swapped in (False, True)
        for sign in (1, odd, odd[:, None], odd * odd[:, None])
    ]
    assert min(np.abs(way - other).max() for way in ways) < 0.01
    assert signatures.similarity(own[None], other[None])[0] > 0.999


def test_every_copy_is_recognised_and_no_other_picture_is():
    """240 copies of 60 pictures, of which the least similar is far above the most similar stranger."""
    pictures = [textured(seed) for seed in range(60)]
    signs = signed(pictures)
    copies = np.array(
        [
            [signatures.of(copied(picture, np.random.default_rng([seed, n]))) for n in range(4)]
            for seed, picture in enumerate(pictures)
        ]
    )  # (60, 4, 16, 16)
    found = signatures.similarity(np.repeat(signs, 4, axis=0), copies.reshape(-1, 16, 16))
    assert np.quantile(found, 0.01) > 0.95 and found.min() > signatures.SAME  # all 240
    assert all_pairs(signs).max() < 0.7  # 1,770 pairs


def test_a_picture_of_64_pixels_is_mostly_recognised():
    pictures = [textured(seed, 64) for seed in range(60)]
    found = signatures.similarity(
        signed(pictures), signed(copied(p, np.random.default_rng(s)) for s, p in enumerate(pictures))
    )
    assert np.mean(found >= signatures.SAME) > 0.9


def test_a_recoloured_copy_is_recognised():
    picture = textured(3)
    grey = picture.convert("L").convert("RGB")
    restained = Image.fromarray(np.asarray(picture)[..., [2, 0, 1]])
    assert (signatures.similarity(signed([picture, picture]), signed([grey, restained])) > 0.99).all()


def test_two_pictures_in_the_same_frame_are_two_pictures():
    pictures = [framed(textured(seed), 0.45) for seed in range(45)]
    signs = signed(pictures)
    assert all_pairs(signs).max() < 0.8
    copies = signed(copied(p, np.random.default_rng(s)) for s, p in enumerate(pictures))
    assert (signatures.similarity(signs, copies) > signatures.SAME).all()


def test_a_bar_beside_the_picture_does_not_count():
    bars = [np.pad(np.asarray(textured(seed)), ((0, 0), (40, 40), (0, 0))) for seed in range(2)]
    assert all_pairs(signed(map(Image.fromarray, bars)))[0] < 0.7


@pytest.mark.parametrize("noise", [0, 2, 5])
def test_a_plain_picture_has_no_signature(noise):
    plain = 220 + np.random.default_rng(0).normal(0, noise, (200, 200, 1)) * np.ones(3)
    assert not signatures.of(Image.fromarray(plain.clip(0, 255).astype(np.uint8))).any()


def test_no_pair_is_missed():
    """The shortcut finds exactly what comparing all pairs in all eight ways finds."""
    rng = np.random.default_rng(0)
    base = rng.standard_normal((60, 16, 16)) * signatures._kept()
    odd = (-1.0) ** np.arange(16)
    near = [
        (b.T if n % 2 else b) * (odd if n % 3 else 1) + rng.standard_normal((16, 16)) * signatures._kept() * width
        for n, b in enumerate(base)
        for width in (0.3, 0.5, 0.7)
    ]
    signs = np.concatenate([base, near]).astype(np.float32)
    signs /= np.linalg.norm(signs, axis=(1, 2), keepdims=True)
    value = all_pairs(signs)
    i, j = np.triu_indices(len(signs), 1)
    for least in (0.8, 0.88, 0.95):
        expected = {(a, b) for a, b, v in zip(i, j, value, strict=True) if v >= least}
        assert 20 < len(expected) < 300
        found = signatures.similar(signs, least)
        assert set(zip(*found[:2], strict=True)) == expected
        np.testing.assert_allclose(found[2], signatures.similarity(signs[found[0]], signs[found[1]]), rtol=1e-5)


def test_the_size_of_a_block_changes_nothing_and_pairs_can_be_left_out(monkeypatch):
    signs = signed(textured(seed % 20) for seed in range(50))
    pairs = set(zip(*signatures.similar(signs)[:2], strict=True))
    assert pairs == {(i, j) for i in range(50) for j in range(i + 1, 50) if i % 20 == j % 20}
    monkeypatch.setattr(signatures, "BLOCK", 7)
    assert set(zip(*signatures.similar(signs)[:2], strict=True)) == pairs
    wanted = set(zip(*signatures.similar(signs, wanted=lambda i, j: (i < 20) & (j > 30))[:2], strict=True))
    assert wanted == {(i, j) for i, j in pairs if i < 20 and j > 30}


def test_nothing_is_similar_to_nothing():
    assert [len(part) for part in signatures.similar(np.zeros((0, 16, 16), np.float32))] == [0, 0, 0]
    assert [len(part) for part in signatures.similar(np.zeros((9, 16, 16), np.float32))] == [0, 0, 0]


def test_real_pictures_are_recognised_and_not_confused():
    """Copies of lesions all are; of 50-pixel patches, whose copies are down to 32 pixels, at least 95 in 100."""
    folder = os.environ.get("PATHOLIB_REAL_DATA")
    if not folder:
        pytest.skip("PATHOLIB_REAL_DATA is unset: no real data to read")
    for pattern, least, stranger in (("idc/images/*.png", 0.95, 0.6), ("isic_masks/*.jpg", 1, 0.7)):
        pictures = []
        for path in sorted(Path(folder).glob(pattern)):
            try:
                pictures.append(decoding.read(path))
            except PathoError:
                continue  # one patch was cut off at the slide's edge
        signs = signed(pictures)
        copies = signed(copied(picture, np.random.default_rng(n)) for n, picture in enumerate(pictures[:120]))
        assert np.mean(signatures.similarity(signs[: len(copies)], copies) > signatures.SAME) >= least, pattern
        assert len(signatures.similar(signs, stranger)[0]) == 0, pattern  # of 188,805 and 4,950 pairs


@pytest.mark.slow
def test_a_hundred_thousand_signatures_are_compared_in_a_minute_and_little_memory():
    resource = pytest.importorskip("resource")  # memory is not counted on Windows
    rng = np.random.default_rng(0)
    signs = rng.standard_normal((100_000, 16, 16), dtype=np.float32) * signatures._kept()
    signs /= np.linalg.norm(signs, axis=(1, 2), keepdims=True)
    signs[99_999] = signs[5].T
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.process_time()
    i, j, value = signatures.similar(signs)
    seconds = time.process_time() - start
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024  # MiB on Linux
    print(f"{seconds:.1f} s, {grown:.0f} MiB")
    assert (i.tolist(), j.tolist()) == ([5], [99_999]) and value[0] == pytest.approx(1, abs=1e-5)
    assert seconds < 60 and grown < 400
