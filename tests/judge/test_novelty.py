"""A strange picture is named and one of the training's kind is not; measured beside the numbers it was chosen over."""

from __future__ import annotations

import json
import os
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter
from tiny import image_set

from patholib.base.errors import PathoError
from patholib.data import checking, decoding, demo, readers, splitting
from patholib.judge import novelty, rivals

pytestmark = pytest.mark.heavy

SIDE = 74
REAL = os.environ.get("PATHOLIB_REAL_DATA")
real = pytest.mark.skipif(not REAL, reason="PATHOLIB_REAL_DATA names no folder of real images")


def test_the_numbers_of_a_picture_are_those_worked_by_hand():
    picture = np.zeros((16, 16, 3), np.uint8)
    picture[:, 8:] = (100, 50, 200)
    found = dict(zip(novelty.NAMES, novelty.features(picture), strict=True))
    assert [found[name] for name in ("red", "green", "blue")] == [50, 25, 100]
    spreads = [f"contrast in {name}" for name in ("red", "green", "blue")]
    spreads += [f"variety of {pair}" for pair in ("red against green", "green against blue", "red against blue")]
    assert np.allclose([found[name] for name in spreads], np.log1p([50, 25, 100, 25, 75, 50]), rtol=1e-12)
    assert found["brightness of the centre against the border"] == 0
    grey = (77 * 100 + 150 * 50 + 29 * 200) / 256  # one edge, crossed by `step` of 16 - step differences in a row
    for step in novelty.STEPS:
        name = f"sharpness over {step} pixel{'s' * (step > 1)}"
        assert found[name] == pytest.approx(np.log(grey * step / (16 - step) / 2 + 0.05), rel=1e-12)


def test_a_bright_centre_is_seen_and_a_blank_picture_has_numbers():
    picture = np.full((32, 32, 3), 10, np.uint8)
    picture[8:24, 8:24] = 210
    named = dict(zip(novelty.NAMES, novelty.features(picture), strict=True))
    assert named["brightness of the centre against the border"] == 200
    assert np.isfinite(novelty.features(np.zeros((32, 32, 3), np.uint8))).all()


def test_the_numbers_do_not_depend_on_how_the_pixels_lie_in_memory():
    pixels = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)
    for picture in pixels:
        for same in (np.asfortranarray(picture), picture[::-1][::-1], picture.copy()):
            assert (novelty.features(same) == novelty.features(picture)).all()


@pytest.mark.parametrize(("change", "without"), [(0, True), (2, True), (3, False)])
def test_a_picture_is_colourless_up_to_what_jpeg_adds(change, without):
    picture = np.random.default_rng(0).integers(0, 250, (64, 64, 1), np.uint8).repeat(3, axis=2)
    picture[5, 7, 1] += change  # a single pixel, between those that are looked at first
    assert novelty.colourless(picture) == without


@pytest.mark.alone
def test_it_takes_less_than_two_milliseconds_a_picture():
    familiar = novelty.learn(image_set(train=40, val=20))
    picture = np.random.default_rng(0).integers(0, 256, (256, 256, 3), np.uint8)
    took = []
    for _ in range(30):
        start = time.thread_time()
        familiar.reasons(picture)
        took.append(time.thread_time() - start)
    assert min(took) < 0.002


def test_what_was_learnt_survives_the_way_through_json():
    own = image_set(train=60, val=30)
    learnt = novelty.learn(own)
    again = novelty.from_json(json.loads(json.dumps(learnt.to_json())))
    assert [again.distance(picture) for picture in own.pictures] == [learnt.distance(p) for p in own.pictures]
    assert again.to_json() == learnt.to_json()
    assert (learnt.trained, learnt.validated, learnt.colourless) == (60, 30, 0)


def test_the_limit_lets_pass_what_it_says():
    own = image_set(train=300, val=300)
    learnt = novelty.learn(own)
    distances = np.array([learnt.distance(picture) for picture in own.part("val").pictures])
    beyond = [(distances[own.part("val").labels == k] > 1).sum() for k in range(2)]
    assert max(beyond) == 14 and distances[np.abs(distances - 1).argmin()] == pytest.approx(1)  # 15 / 151 < 10 %
    assert learnt.kept == novelty.KEPT and "at most 10 % of groups" in learnt.words


def test_the_limit_counts_patients_and_few_of_them_promise_less():
    own = image_set(train=60, val=300)
    few = own.table.assign(group=[f"case{i % 4}" for i in range(360)])
    learnt = novelty.learn(replace(own, table=few), "patients")
    assert learnt.kept == pytest.approx(0.9 * 2 / 3) and "at most 40 % of patients" in learnt.words  # two of each


def test_a_set_that_is_not_split_is_refused():
    own = image_set()
    with pytest.raises(PathoError, match="no_split"):
        novelty.learn(replace(own, table=own.table.drop(columns="split")))


def test_a_model_of_grey_pictures_does_not_wonder_at_one():
    own = image_set(train=60, val=30)
    grey = replace(own, pixels=own.pixels[..., :1].repeat(3, axis=3))
    colour, without = novelty.learn(own), novelty.learn(grey)
    assert any(text.startswith("greyscale") for text in colour.reasons(grey.pixels[70]))
    assert not any(text.startswith("greyscale") for text in without.reasons(grey.pixels[70]))


# ----------------------------------------------------------------------------------------------- the experiment


def distances(measure, train, others):
    """Mahalanobis distances by any numbers of a picture, as `novelty.learn` takes them, of each set of pictures."""
    found = np.stack([measure(picture) for picture in train])
    mean, scale = found.mean(axis=0), np.maximum(found.std(axis=0), 1e-3)
    precision = novelty.inverse_correlation((found - mean) / scale)
    return {
        name: novelty._distances((np.stack([measure(p) for p in pictures]) - mean) / scale, precision)
        for name, pictures in others.items()
    }


def caught(measure, train, val, test, strange):
    """The share of strange pictures beyond the limit that lets pass 99 % of validation and test images together."""
    found = distances(measure, train, {"own": [*val, *test]} | strange)
    limit = np.quantile(found.pop("own"), novelty.KEPT)
    return {name: float((values > limit).mean()) for name, values in found.items()}


def damaged(pictures, rng):
    """What goes wrong with pictures of the right kind, and what is none."""
    own = [Image.fromarray(picture) for picture in pictures]
    noise = [np.clip(np.int16(p) + rng.normal(0, 25, np.shape(p)), 0, 255).astype(np.uint8) for p in own]
    return {
        "noise alone": [rng.integers(0, 256, (SIDE, SIDE, 3), np.uint8) for _ in range(10)],
        "blank": [np.full((SIDE, SIDE, 3), colour, np.uint8) for colour in ((255,) * 3, (0,) * 3, (120, 200, 90))],
        "noise added": noise,
        "inverted": [255 - np.asarray(picture) for picture in own],
        "too dark": [np.asarray(picture) // 4 for picture in own],
        "red for blue": [np.asarray(picture)[..., ::-1].copy() for picture in own],
        "without colour": [np.asarray(picture.convert("L").convert("RGB")) for picture in own],
        "out of focus": [np.asarray(picture.filter(ImageFilter.GaussianBlur(3))) for picture in own],
    }


def demo_images(root, layout, seed=0):
    where = demo.write(root / layout, layout, size=(96, 96), groups=50, images_per_group=3)
    source = readers.load(layout, where)
    checked = checking.check(source, SIDE, cache_dir=root / "cache", progress=False)
    split = splitting.split(checked.manifest, (0.6, 0.2, 0.2), seed, source.group_by)
    return checked.images.with_split(split)


def test_on_demo_images_it_catches_more_than_colours_alone_at_the_same_false_alarms(tmp_path):
    own, other = demo_images(tmp_path, "breakhis"), demo_images(tmp_path, "isic2019")
    train, val, test = (list(own.part(name).pictures) for name in ("train", "val", "test"))
    strange = damaged(test[:30], np.random.default_rng(0)) | {"skin": list(other.part("test").pictures)}
    ours = caught(novelty.features, train, val, test, strange)
    theirs = caught(rivals.colours, train, val, test, strange)
    print(ours, theirs)
    assert all(ours[name] == 1 for name in ("noise alone", "blank", "skin", "inverted", "too dark"))
    assert np.mean(list(ours.values())) >= np.mean(list(theirs.values()))
    assert all(novelty.learn(own).distance(picture) > 1 for picture in strange["skin"])


def test_false_alarms_on_demo_images_are_rare(tmp_path):
    alarms = []
    for seed in range(5):  # ten patients are tested in each split
        own = demo_images(tmp_path, "breakhis", seed)
        learnt = novelty.learn(own)
        alarms += [learnt.distance(picture) > 1 for picture in own.part("test").pictures]
    assert np.mean(alarms) <= 0.07


@real
def test_on_real_images_it_catches_more_than_colours_alone_at_the_same_false_alarms():
    """Skin: 200 images to learn from, 200 for the limit, 100 to count false alarms; then what is no such image."""
    root, rng = Path(REAL), np.random.default_rng(0)

    def squares(paths):
        found = []
        for path in paths:
            try:
                found.append(decoding.to_square(decoding.read(path), SIDE))
            except PathoError:  # some of the files are there to be refused
                continue
        return found

    paths = sorted((root / "isic2019" / "ISIC_2019_Training_Input").glob("*.jpg"))
    skin = squares([paths[i] for i in rng.permutation(len(paths))[:500]])
    strange = damaged(skin[-40:], rng) | {
        "tissue": squares(sorted((root / "idc" / "images").glob("*.png"))[:100]),
        "tiles": squares(sorted((root / "breakhis").rglob("*.png"))),
        "photos and test pictures": squares(sorted((root / "bad_images").iterdir())),
    }
    ours, theirs = (
        caught(measure, skin[:200], skin[200:400], skin[400:], strange)
        for measure in (novelty.features, rivals.colours)
    )
    print(ours, theirs)
    assert ours["noise alone"] == ours["blank"] == ours["without colour"] == 1
    assert np.mean(list(ours.values())) > np.mean(list(theirs.values()))
