"""A view is drawn from where its image stands, warped once, recoloured once; each against a reference."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as reference

from patholib.base.errors import PathoError
from patholib.base.team import ALONE
from patholib.data.decoding import read, to_square
from patholib.data.imagesets import ImageSet
from patholib.model import augment, recolour
from patholib.model.recipes import BREAKHIS, ISIC2019, Augmentation, as_published
from patholib.train import feeding

SIZE, SIDE = 56, 64
ROWS = np.arange(6)


def scene(x, y):
    """Smooth colours at any point, in grey levels; x and y in pixels from the centre of a 64-pixel image."""
    waves = [127 + 60 * np.sin(0.21 * x + 0.13 * y + k) + 50 * np.cos(0.17 * y - 0.11 * x * (k - 1)) for k in range(3)]
    return np.stack(waves, axis=-1)


def pictures(side=SIDE, count=6):
    """(count, side, side, 3) uint8 samples of the scene; all alike."""
    at = np.arange(side) - (side - 1) / 2
    x, y = np.meshgrid(at, at)
    return np.repeat(scene(x, y).round().astype(np.uint8)[None], count, axis=0)


def noise_pictures(side=SIDE, count=6):
    return np.random.default_rng(0).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def views_of(images, augmentation, size=SIZE, seed=1, epoch=2, positions=None, rows=None):
    rows = np.arange(len(images)) if rows is None else rows
    positions = rows if positions is None else positions
    return augment.training_views(images, size, augmentation, seed, epoch, positions, rows)


def psnr(a, b):
    return 10 * np.log10(255**2 / np.mean((np.asarray(a, float) - np.asarray(b, float)) ** 2))


def levels(views):
    """(B, 3, H, W) in [0, 1] to (B, H, W, 3) in grey levels."""
    return views.permute(0, 2, 3, 1).numpy() * 255


# ------------------------------------------------------------------------------------------------------- drawing


def test_the_mixing_function_is_splitmix64():
    state, seen = np.array([1234567], np.uint64), []
    for _ in range(3):
        seen.append(int(augment.splitmix64(state)[0]))
        state = state + np.uint64(0x9E3779B97F4A7C15)
    # The first outputs for seed 1234567, as published with many implementations of the generator.
    assert seen == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_draws_are_even_and_unrelated():
    draws = augment.uniform(0, 0, np.arange(20_000), np.arange(20_000))
    values = np.stack(list(draws.values()))
    assert values.min() >= 0 and values.max() < 1
    assert np.abs(values.mean(axis=1) - 0.5).max() < 0.01
    assert np.abs(values.var(axis=1) - 1 / 12).max() < 0.003
    apart = np.corrcoef(values) - np.eye(len(values))
    assert np.abs(apart).max() < 0.035
    assert np.abs(np.corrcoef(values[:, 1:].ravel(), values[:, :-1].ravel())[0, 1]) < 0.01


@pytest.mark.parametrize("changed", ["seed", "epoch", "position", "row"])
def test_each_key_changes_every_draw(changed):
    keys = {"seed": 3, "epoch": 4, "position": 5, "row": 6}
    first = augment.uniform(keys["seed"], keys["epoch"], [keys["position"]], [keys["row"]])
    keys[changed] += 1
    second = augment.uniform(keys["seed"], keys["epoch"], [keys["position"]], [keys["row"]])
    assert all(first[name] != second[name] for name in augment.DRAWS)


def test_a_view_is_the_same_in_any_batch():
    images, a = noise_pictures(), replace(BREAKHIS.augmentation, noise=0.05)
    together = views_of(images, a)
    for size in (1, 4):
        apart = [views_of(images[i : i + size], a, rows=ROWS[i : i + size]) for i in range(0, len(images), size)]
        assert torch.equal(together, torch.cat(apart))


def test_the_same_row_at_another_position_looks_different():
    images = noise_pictures(count=1).repeat(2, axis=0)
    views = views_of(images, BREAKHIS.augmentation, positions=np.array([0, 1]), rows=np.array([7, 7]))
    assert not torch.equal(views[0], views[1])


def test_turning_one_augmentation_off_leaves_the_others_alone():
    images, full = noise_pictures(), Augmentation(flip_horizontal=0.5, flip_vertical=0.5, brightness=0.3)
    without = replace(full, flip_horizontal=0.0)
    across = augment.uniform(1, 2, ROWS, ROWS)["flip_horizontal"] < 0.5
    a, b = views_of(images, full), views_of(images, without)
    same = np.array([torch.equal(x, y) for x, y in zip(a, b, strict=True)])
    assert (same == ~across).all() and across.any() and not across.all()


# ------------------------------------------------------------------------------------------------------ geometry


def test_no_augmentation_is_the_plain_view_exactly():
    images = noise_pictures()
    plain = augment.plain_views(images, SIZE)
    assert torch.equal(views_of(images, Augmentation()), plain)
    assert plain.shape == (6, 3, SIZE, SIZE) and plain.dtype == torch.float32
    assert np.array_equal(levels(plain).round().astype(np.uint8), images[:, 4:60, 4:60])


@pytest.mark.parametrize("side", [63, 64])
def test_an_identity_warp_is_the_plain_view_exactly(side):
    """The smallest of rotations that is drawn as none still goes through the warp: half a pixel off would show."""
    images = noise_pictures(side)
    warped = augment.warp_with_opencv(images, augment.sampling(np.eye(3)[None], side, SIZE), SIZE)
    margin = (side - SIZE) // 2
    assert np.array_equal(warped, images[:, margin : margin + SIZE, margin : margin + SIZE])


@pytest.mark.parametrize("warps", ["one", "each"])
@pytest.mark.parametrize(("field", "axis"), [("flip_horizontal", 3), ("flip_vertical", 2)])
def test_a_certain_flip_is_a_mirror(warps, field, axis):
    images = noise_pictures()
    views = views_of(images, Augmentation(**{field: 1.0}, warps=warps))
    assert torch.equal(views, augment.plain_views(images, SIZE).flip(axis))


def ideal(forward, size=SIZE):
    """What the scene itself looks like through a forward matrix, without any interpolation."""
    at = np.arange(size) - (size - 1) / 2
    x, y = np.meshgrid(at, at)
    source = np.stack([x, y, np.ones_like(x)], axis=-1) @ np.linalg.inv(forward).T
    return scene(source[..., 0] / source[..., 2], source[..., 1] / source[..., 2])


@pytest.mark.parametrize(
    "a",
    [
        Augmentation(rotation=20),
        Augmentation(affine_degrees=15, shear=5),
        Augmentation(shift=0.05),
        Augmentation(zoom=(0.9, 1.15)),
        Augmentation(perspective=0.2, perspective_p=1.0),
        Augmentation(crop_scale=(0.6, 1.0)),
        Augmentation(
            affine_degrees=8, rotation=8, zoom=(1.0, 1.2), flip_horizontal=0.5, perspective=0.1, perspective_p=0.5
        ),
    ],
    ids=["rotation", "affine", "shift", "zoom", "perspective", "crop", "all"],
)
def test_a_warp_shows_the_scene_through_its_matrix(a):
    size = 40  # of 64 pixels: no border is touched
    draws = augment.uniform(1, 2, ROWS, ROWS)
    forward = np.eye(3)
    for _, step in augment.geometry(draws, a, size):
        forward = step @ forward
    views = levels(views_of(pictures(), a, size))
    for view, matrix in zip(views, np.broadcast_to(forward, (6, 3, 3)), strict=True):
        assert psnr(view, ideal(matrix, size)) > 45


def in_torchvision(image, function, **values):
    """(H, W, 3) float through a torchvision function on float images."""
    made = function(torch.from_numpy(image).permute(2, 0, 1)[None].float(), **values)
    return made[0].permute(1, 2, 0).numpy()


def test_angles_shifts_and_shear_mean_what_torchvision_means():
    """The same numbers give the same picture, sign by sign, in the part that no border reaches."""
    a, image = Augmentation(affine_degrees=15, shift=0.1, zoom=(0.85, 1.15), shear=5), pictures()[0].astype(np.float32)
    draws = augment.uniform(1, 2, ROWS, ROWS)
    ((_, forward),) = augment.geometry(draws, a, SIDE)
    span = {name: 2 * draws[name] - 1 for name in ("affine_degrees", "shift_x", "shift_y", "shear")}
    for i in range(6):
        theirs = in_torchvision(
            image,
            reference.affine,
            angle=15 * span["affine_degrees"][i],
            translate=[0.1 * SIDE * span["shift_x"][i], 0.1 * SIDE * span["shift_y"][i]],
            scale=0.85 + 0.3 * draws["zoom"][i],
            shear=[5 * span["shear"][i], 0.0],
            interpolation=InterpolationMode.BILINEAR,
        )
        assert psnr(theirs[20:44, 20:44], ideal(forward[i], SIDE)[20:44, 20:44]) > 42


def test_the_second_rotation_turns_as_torchvision_does():
    image = pictures()[0].astype(np.float32)
    draws = augment.uniform(1, 2, ROWS, ROWS)
    ((_, forward),) = augment.geometry(draws, Augmentation(rotation=30), SIDE)
    for i in range(6):
        theirs = in_torchvision(
            image, reference.rotate, angle=30 * (2 * draws["rotation"][i] - 1), interpolation=InterpolationMode.BILINEAR
        )
        assert psnr(theirs[20:44, 20:44], ideal(forward[i], SIDE)[20:44, 20:44]) > 42


def test_perspective_takes_corners_where_torchvision_takes_them():
    start = [[0, 0], [SIDE - 1, 0], [SIDE - 1, SIDE - 1], [0, SIDE - 1]]
    end = [[4, 2], [60, 6], [57, 61], [3, 58]]
    centre = (SIDE - 1) / 2
    forward = augment.homography(np.array(start) - centre, np.array([end]) - centre)[0]
    theirs = in_torchvision(
        pictures()[0].astype(np.float32),
        reference.perspective,
        startpoints=start,
        endpoints=end,
        interpolation=InterpolationMode.BILINEAR,
    )
    assert psnr(theirs[10:50, 10:50], ideal(forward, SIDE)[10:50, 10:50]) > 42
    moved = np.array([*(np.array(start[0]) - centre), 1]) @ forward.T
    assert np.allclose(moved[:2] / moved[2] + centre, end[0])


def test_corners_only_move_inwards_and_not_too_far():
    a = Augmentation(perspective=0.2, perspective_p=1.0)
    rows = np.arange(500)
    ((_, forward),) = augment.geometry(augment.uniform(0, 0, rows, rows), a, SIZE)
    corner = (SIZE - 1) / 2
    for start in ((-1, -1), (1, -1), (1, 1), (-1, 1)):
        point = forward @ np.array([start[0] * corner, start[1] * corner, 1])
        inwards = corner - np.sign(start) * (point[:, :2] / point[:, 2:])
        assert inwards.min() > -1e-9 and inwards.max() <= 0.2 * SIZE / 2 + 1e-9


def test_zoom_above_one_enlarges():
    dot = np.zeros((1, SIDE, SIDE, 3), np.uint8)
    dot[:, 22:42, 22:42] = 255
    large = views_of(dot, Augmentation(zoom=(1.5, 1.5))).mean().item()
    assert large == pytest.approx(1.5**2 * augment.plain_views(dot, SIZE).mean().item(), rel=0.02)


def test_a_crop_keeps_its_share_of_the_area_and_stays_inside():
    rows = np.arange(2000)
    a = Augmentation(crop_scale=(0.5, 1.0))
    ((_, forward),) = augment.geometry(augment.uniform(0, 0, rows, rows), a, SIZE)
    area, aspect = 1 / np.linalg.det(forward), forward[:, 1, 1] / forward[:, 0, 0]
    assert area.min() >= 0.5 and area.max() <= 1 and abs(area.mean() - 0.75) < 0.02
    assert aspect.min() >= 3 / 4 - 1e-9 and aspect.max() <= 4 / 3 + 1e-9
    edges = np.linalg.inv(forward) @ np.array([[-1, 1], [-1, 1], [2 / SIZE, 2 / SIZE]]) * SIZE / 2
    assert np.abs(edges[:, :2]).max() <= SIZE / 2 + 1e-9


def chain_quality(a, side=SIDE, size=48):
    """PSNR of each view to the ideal one, over the pixels whose source lies inside the plain window."""
    rows = np.arange(24)
    draws = augment.uniform(5, 0, rows, rows)
    forward = np.eye(3)
    for _, step in augment.geometry(draws, a, size):
        forward = step @ forward
    views = levels(views_of(pictures(side, 24), a, size, seed=5, epoch=0))
    return np.mean(
        [psnr(view[12:36, 12:36], ideal(f, size)[12:36, 12:36]) for view, f in zip(views, forward, strict=True)]
    )


def test_one_warp_is_far_nearer_to_the_ideal_than_the_published_chain():
    a = replace(BREAKHIS.augmentation, brightness=0.0, contrast=0.0, saturation=0.0, hue=0.0)
    once = chain_quality(a)
    published = chain_quality(replace(a, warps="each", border="black", interpolation="nearest"))
    bilinear = chain_quality(replace(a, warps="each"))
    assert once > 42 and once > bilinear + 3 and once > published + 15, (once, bilinear, published)


def test_reflection_leaves_nothing_black_and_the_published_chain_does():
    white = np.full((64, SIDE, SIDE, 3), 255, np.uint8)
    a = replace(BREAKHIS.augmentation, brightness=0.0, contrast=0.0, saturation=0.0, hue=0.0)
    published = replace(as_published("breakhis").augmentation, brightness=0.0, contrast=0.0, saturation=0.0, hue=0.0)
    assert (views_of(white, a) > 0.99).all()
    black = (views_of(white, published, size=SIDE) < 0.01).float().mean().item()
    assert 0.12 < black < 0.30  # the published chain loses about a fifth of the picture


@pytest.mark.parametrize("border", ["reflect", "black"])
@pytest.mark.parametrize("interpolation", ["bilinear", "nearest"])
def test_the_device_warp_equals_the_opencv_warp(border, interpolation):
    """Within rounding: half a grey level, and 1/32 pixel where OpenCV is older than 5."""
    images = pictures()
    draws = augment.uniform(1, 2, ROWS, ROWS)
    forward = np.eye(3)
    for _, step in augment.geometry(draws, BREAKHIS.augmentation, SIZE):
        forward = step @ forward
    matrices = augment.sampling(forward, SIDE, SIZE)
    ours = augment.warp_with_opencv(images, matrices, SIZE, border, interpolation).astype(float)
    device = augment.warp_on_device(torch.from_numpy(images), matrices, SIZE, border, interpolation).numpy()
    difference = np.abs(ours - device)
    if interpolation == "bilinear":
        assert difference.mean() < 0.5 and np.quantile(difference, 0.99) < 2
    else:  # a pixel that falls between two may be either of them
        assert (difference > 0.5).mean() < 0.04


@pytest.mark.parametrize(
    "a",
    [BREAKHIS.augmentation, ISIC2019.augmentation, as_published("isic2019").augmentation],
    ids=["breakhis", "isic2019", "isic2019 as published"],
)
def test_a_tensor_gets_the_same_view_as_an_array(a):
    images = pictures()
    ours, device = views_of(images, a), views_of(torch.from_numpy(images), a)
    assert device.shape == ours.shape and device.dtype == ours.dtype
    assert (ours - device).abs().mean() < 0.6 / 255


# -------------------------------------------------------------------------------------------------------- colour


def by_torchvision(images, a, rows):
    """ColorJitter's four steps in our order with our factors, in float and without a cut before the end of each."""
    draws = augment.uniform(1, 2, rows, rows)
    plain = augment.plain_views(images, SIZE)

    def factor(name, i):
        width = getattr(a, name)
        return 1 - width + 2 * width * draws[name][i]

    made = []
    for i, view in enumerate(plain):
        view = reference.adjust_brightness(view, factor("brightness", i))
        view = reference.adjust_contrast(view, factor("contrast", i))
        view = reference.adjust_saturation(view, factor("saturation", i))
        made.append(reference.adjust_hue(view, a.hue * (2 * draws["hue"][i] - 1)) if a.hue else view)
    return torch.stack(made)


def tissue(count=12):
    """Soft pink and violet patches, 60 to 215 grey levels: nothing is cut off at black or white."""
    rng = np.random.default_rng(3)
    stain = np.array([[185, 120, 170], [120, 80, 150], [205, 180, 200]], float)
    weights = rng.dirichlet([1, 1, 1], (count, 16, 16))
    coarse = torch.from_numpy(weights @ stain).permute(0, 3, 1, 2)
    smooth = torch.nn.functional.interpolate(coarse, size=SIDE, mode="bicubic")
    return smooth.permute(0, 2, 3, 1).clamp(0, 255).round().numpy().astype(np.uint8)


@pytest.mark.parametrize(
    "names", [("brightness",), ("contrast",), ("saturation",), ("brightness", "contrast", "saturation")], ids="-".join
)
def test_brightness_contrast_and_saturation_are_torchvisions_exactly(names):
    images, a = tissue(), Augmentation(**dict.fromkeys(names, 0.1))
    ours, theirs = views_of(images, a), by_torchvision(images, a, np.arange(12))
    assert (ours - theirs).abs().max() < 0.02 / 255
    assert (ours - augment.plain_views(images, SIZE)).abs().max() > 3 / 255


def test_the_one_colour_map_stays_within_a_grey_level_of_torchvisions_four_steps():
    images = tissue()  # rougher than tissue is: on real images the difference is half as large, see below
    a = Augmentation(brightness=0.1, contrast=0.1, saturation=0.15, hue=0.05)
    ours, theirs = views_of(images, a), by_torchvision(images, a, np.arange(12))
    assert (ours - theirs).abs().mean() < 1 / 255
    assert (ours - theirs).abs().mean() < 0.1 * (ours - augment.plain_views(images, SIZE)).abs().mean()


@pytest.mark.parametrize(
    ("pattern", "a"),
    [("breakhis/**/*.png", BREAKHIS.augmentation), ("isic2019/**/*.jpg", ISIC2019.augmentation)],
    ids=["breakhis", "isic"],
)
def test_on_real_images_the_colour_map_is_half_a_grey_level_from_torchvision(pattern, a):
    root = os.environ.get("PATHOLIB_REAL_DATA")
    if not root:
        pytest.skip("PATHOLIB_REAL_DATA names no folder of real images")
    found = sorted(Path(root).glob(pattern))[:30]
    images = np.stack([to_square(read(path), SIDE) for path in found])
    a = Augmentation(brightness=a.brightness, contrast=a.contrast, saturation=a.saturation, hue=a.hue)
    difference = views_of(images, a) - by_torchvision(images, a, np.arange(len(images)))
    assert difference.abs().mean() < 0.65 / 255


def test_the_hue_of_single_pixels_turns_as_torchvisions():
    pixels = torch.rand(1, 500, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    pixels[0, :5] = torch.tensor([[0, 0, 0], [1, 1, 1], [0.5, 0.5, 0.5], [1, 0, 0], [0, 1, 1]])
    for turn in (-0.5, -0.05, 0.0, 0.05, 0.3):
        theirs = reference.adjust_hue(pixels.permute(0, 2, 1)[..., None], turn)[..., 0].permute(0, 2, 1)
        assert torch.allclose(recolour.turn_hue(pixels, torch.tensor([[turn]])), theirs, atol=1e-6)


def test_a_picture_of_one_colour_keeps_to_its_turned_hue():
    images = np.tile(np.array([200, 120, 160], np.uint8), (6, SIDE, SIDE, 1))
    a = Augmentation(hue=0.05)
    ours, theirs = views_of(images, a), by_torchvision(images, a, ROWS)
    assert (ours - theirs).abs().max() < 1 / 255


def test_grey_pictures_stay_grey_and_views_stay_in_range():
    grey = np.repeat(np.random.default_rng(0).integers(0, 256, (6, SIDE, SIDE, 1), dtype=np.uint8), 3, axis=3)
    views = views_of(grey, replace(BREAKHIS.augmentation, noise=0.0))
    assert (views.amax(dim=1) - views.amin(dim=1)).max() < 1 / 255
    strong = views_of(noise_pictures(), Augmentation(brightness=0.9, contrast=0.9, saturation=0.9, hue=0.5, noise=0.3))
    assert strong.min() >= 0 and strong.max() <= 1


# --------------------------------------------------------------------------------------------------------- noise


def test_noise_has_the_deviation_it_is_asked_for_in_each_unit():
    grey = np.full((40, SIDE, SIDE, 3), 128, np.uint8)
    in_grey = views_of(grey, Augmentation(noise=0.02)) - 128 / 255
    assert in_grey.std().item() == pytest.approx(0.02, rel=0.02) and abs(in_grey.mean()) < 0.001
    published = views_of(grey, Augmentation(noise=0.02, noise_unit="normalised")) - 128 / 255
    for channel, deviation in enumerate((0.229, 0.224, 0.225)):
        assert published[:, channel].std().item() == pytest.approx(0.02 * deviation, rel=0.03)


def test_two_images_of_a_batch_get_different_noise():
    views = views_of(np.full((2, SIDE, SIDE, 3), 128, np.uint8), Augmentation(noise=0.02)) - 128 / 255
    assert abs(np.corrcoef(views[0].flatten(), views[1].flatten())[0, 1]) < 0.05


# ----------------------------------------------------------------------------------------------------- test time


def test_the_eight_symmetries_are_different_and_start_with_the_plain_view():
    images = noise_pictures(count=2)
    views = augment.tta_views(images, SIZE, "dihedral", 8, 0, [0, 1], Augmentation())
    assert views.shape == (8, 2, 3, SIZE, SIZE)
    assert torch.equal(views[0], augment.plain_views(images, SIZE))
    assert len({view.numpy().tobytes() for view in views}) == 8
    assert torch.equal(views.sum(dim=(2, 3, 4)).round(), views[:1].sum(dim=(2, 3, 4)).round().expand(8, 2))
    five = augment.tta_views(images, SIZE, "dihedral", 5, 0, [0, 1], Augmentation())
    assert torch.equal(five, views[:5])


def test_the_symmetries_come_in_the_documented_order():
    images = noise_pictures(count=1)
    views = augment.tta_views(images, SIZE, "dihedral", 8, 0, [0], Augmentation())[:, 0]
    plain = views[0].permute(1, 2, 0).numpy()
    expected = [
        plain,
        np.fliplr(plain),
        np.flipud(plain),
        np.rot90(plain, 2),
        np.rot90(plain),
        np.rot90(plain, -1),
        plain.transpose(1, 0, 2),
        np.rot90(plain, 2).transpose(1, 0, 2),
    ]
    for view, other in zip(views, expected, strict=True):
        assert np.array_equal(view.permute(1, 2, 0).numpy(), other)


def test_random_test_views_are_repeatable_and_belong_to_the_image_not_the_batch():
    images, a = noise_pictures(), BREAKHIS.augmentation
    views = augment.tta_views(images, SIZE, "random", 3, 4, ROWS, a)
    assert torch.equal(views[0], augment.plain_views(images, SIZE))
    assert not torch.equal(views[1], views[2])
    alone = augment.tta_views(images[3:4], SIZE, "random", 3, 4, ROWS[3:4], a)
    assert torch.equal(alone[:, 0], views[:, 3])


def test_half_strength_is_half_of_every_range():
    light = augment.half_strength(BREAKHIS.augmentation)
    assert light.rotation == 10 and light.zoom == (0.925, 1.075) and light.flip_horizontal == 0.5
    assert augment.half_strength(ISIC2019.augmentation).crop_scale == (0.96, 1.0)


@pytest.mark.parametrize("recipe", [BREAKHIS, ISIC2019])
def test_strength_0_shows_the_image_itself_and_strength_1_changes_no_bit(recipe):
    images, a = noise_pictures(), recipe.augmentation

    def views(some):
        return augment.training_views(images, SIZE, some, 3, 1, np.arange(len(images)), ROWS)

    assert torch.equal(views(augment.scaled(a, 0)), augment.plain_views(images, SIZE))
    assert augment.scaled(a, 1) is a
    weak, own, strong = (
        (views(augment.scaled(a, s)) - augment.plain_views(images, SIZE)).abs().mean() for s in (0.25, 1, 2)
    )
    assert weak < own < strong


def test_strength_2_is_twice_every_range_and_no_more_than_a_field_may_be():
    a = augment.scaled(BREAKHIS.augmentation, 2)
    assert (a.rotation, a.shift, a.brightness, a.perspective) == (40, 0.2, 0.4, 0.4)
    assert a.zoom == pytest.approx((0.7, 1.3)) and a.flip_horizontal == 0.5 and a.perspective_p == 0.3
    half = augment.scaled(BREAKHIS.augmentation, 0.5)
    assert half.rotation == 10 and half.flip_horizontal == 0.25 and half.zoom == (0.925, 1.075)
    widest = augment.scaled(replace(BREAKHIS.augmentation, rotation=180, shear=70, hue=0.4, zoom=(0.2, 8)), 2)
    assert (widest.rotation, widest.shear, widest.hue, widest.zoom) == (180, 80, 0.5, (0.1, 10.0))
    assert augment.scaled(ISIC2019.augmentation, 2).crop_scale == pytest.approx((0.84, 1.0))


def test_training_sees_views_of_the_strength_of_the_recipe():
    images = noise_pictures()
    for strength in (0.0, 0.5):
        recipe = replace(BREAKHIS, image_size=SIZE, augmentation_strength=strength)
        feed = feeding.Feed(None, recipe, torch.device("cpu"), workers=1, team=ALONE)
        made = feed._augmented(images, ROWS, ROWS, 2)
        scaled = augment.scaled(recipe.augmentation, strength)
        assert torch.equal(made, augment.training_views(images, SIZE, scaled, recipe.seed, 2, ROWS, ROWS))


# ------------------------------------------------------------------------------------------------------- refusal


@pytest.mark.parametrize("call", [lambda: augment.plain_views(noise_pictures(), SIDE + 1)])
def test_what_cannot_be_done_is_refused(call):
    with pytest.raises(PathoError) as caught:
        call()
    assert caught.value.code == "bad_parameter"


def test_a_preview_shows_train_images_and_the_very_views_training_draws():
    rng = np.random.default_rng(4)
    table = pd.DataFrame(
        {
            "path": [f"{i:02}.png" for i in range(12)],
            "label": list(BREAKHIS.classes) * 6,
            "group": [f"p{i // 2}" for i in range(12)],
            "split": ["test", "val"] * 2 + ["train"] * 8,
            "row": np.arange(12),
        }
    )
    tiles = ImageSet(rng.integers(0, 256, (12, 37, 37, 3), dtype=np.uint8), table, BREAKHIS.classes)
    recipe = replace(BREAKHIS, image_size=32)
    pictures, views = augment.preview(tiles, recipe, count=3, views=4)
    assert pictures.shape == (3, 37, 37, 3) and views.shape == (4, 3, 3, 32, 32)
    assert np.array_equal(pictures, tiles.pixels[[4, 6, 5]])  # two benign patients, one malignant; none of val or test
    again = augment.training_views(pictures, 32, recipe.augmentation, recipe.seed, 2, np.arange(3), np.arange(3))
    assert torch.equal(views[2], again)
    assert not torch.equal(views[0], views[1])
