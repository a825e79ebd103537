"""Times training, averaged views and heatmaps on a GPU, and whether the cache can feed it.

  python benchmarks/gpu.py                              on a CUDA GPU; writes the section speed gpu of RESULTS.md
  python benchmarks/gpu.py --device cpu --miniature     the same code on any computer in seconds; writes nothing

Training is `optimising.step` as it is: pixels from a memory-mapped cache, views made on the GPU beside the step. It is
measured against the same steps on batches that lie on the device already, in turn, at the first stage of both recipes.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import harness
import literal
import numpy as np
import pandas as pd
import torch
from harness import Mark

from patholib.data import imagesets
from patholib.judge import gradcam, predicting
from patholib.model import augment, building, networks, recipes
from patholib.train import devices, optimising
from patholib.train.state import State

FED, RESIDENT, VIEWS = "from the cache", "on the device", "views alone"
SHARE = 0.95  # of the rate on resident batches that training from the cache has to reach
PUBLISHED, OURS = "one by one", "patholib"


@dataclass(frozen=True)
class Scale:
    """How large and how often."""

    side: int = 224
    batch: int = 32
    cached: int = 1024  # pictures in the cache, 200 MB
    steps: int = 150  # in one timing: the first batch is waited for as at the begin of an epoch
    gallery: int = 64
    rounds: int = 3


MINIATURE = Scale(side=32, batch=4, cached=16, steps=2, gallery=3, rounds=1)


@dataclass(frozen=True)
class Mode:
    """How a step is computed."""

    precision: str
    fast: bool = False  # autotuned kernels, and TF32 where fp32 is asked for
    compiled: bool = False


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--miniature", action="store_true")
    options = parser.parse_args(arguments)
    device, scale = devices.choose_device(options.device), MINIATURE if options.miniature else Scale()
    text, judged = measured(device, scale)
    if device.type == "cpu" or options.miniature:
        print("\n".join([*text, *harness.verdicts(judged)]))
        return 0
    return harness.section("gpu", "On a GPU", "python benchmarks/gpu.py", "\n".join(text), judged, ["torchvision"])


def measured(device: torch.device, scale: Scale) -> tuple[list[str], list[tuple[Mark, float]]]:
    """The lines of the section, and the marks with what was reached."""
    lines, judged = (
        [
            f"Batches of {scale.batch} images of {scale.side} pixels; two threads prepare them. "
            f"Peak memory is what torch had allocated at most."
        ],
        [],
    )
    with tempfile.TemporaryDirectory(prefix="patholib-") as folder:
        for recipe in (recipes.BREAKHIS, recipes.ISIC2019):
            recipe = replace(recipe, weights="none", batch_size=scale.batch, image_size=scale.side)
            own = generated(recipe, scale, Path(folder))
            rows = []
            for title, mode in modes(device).items():
                rates, memory = trained(recipe, own, device, mode, scale)
                share = harness.ratio(rates, FED, RESIDENT)
                rows.append(
                    [
                        title,
                        *(f"{rates.loc[name, 'median']:,.4g}" for name in (RESIDENT, FED, VIEWS)),
                        f"{share[0]:.3f} ({share[1]:.3f} to {share[2]:.3f})",
                        memory,
                    ]
                )
                if title == next(iter(modes(device))):
                    judged += [
                        (
                            Mark(f"{recipe.name}, {title}: share of the rate on resident batches", SHARE, unit=""),
                            share[0],
                        )
                    ]
            lines += [
                "",
                f"### {recipe.name}, {recipe.arch}, images/s",
                "",
                *harness.markdown(["", RESIDENT, FED, VIEWS, "share", "peak memory, MB"], rows),
            ]
            model = building.build(recipe).to(device, memory_format=torch.channels_last).eval()
            for title, table in {
                "averaged views": averaged(model, own, recipe, device, scale),
                f"{scale.gallery} heatmaps": gallery(model, own, device, scale),
            }.items():
                lines += ["", f"### {recipe.name}, {recipe.arch}, {title}", "", *harness.rate_table(table)]
    return lines, judged


def modes(device: torch.device) -> dict[str, Mode]:
    """By title, first the one that a recipe takes by itself; bf16 only where it is not emulated."""
    real = device.type == "cpu" or torch.cuda.is_bf16_supported(including_emulation=False)
    half = "bf16" if real else "fp16"
    rest = {"fp32": Mode("fp32"), "tf32, autotuned": Mode("fp32", fast=True)} | ({"fp16": Mode("fp16")} if real else {})
    return {
        half: Mode(half),
        **rest,
        f"{half}, autotuned": Mode(half, fast=True),
        f"{half}, autotuned, compiled": Mode(half, fast=True, compiled=True),
    }


def generated(recipe: recipes.Recipe, scale: Scale, folder: Path) -> imagesets.ImageSet:
    """Pictures of noise in a memory-mapped cache, listed as often as an epoch of one timing needs."""
    shape = (scale.cached, recipe.cache_size, recipe.cache_size, 3)
    pixels = np.lib.format.open_memmap(folder / f"{recipe.name}.npy", "w+", np.uint8, shape)
    rng = np.random.default_rng(0)
    for row in range(scale.cached):
        pixels[row] = rng.integers(0, 256, shape[1:], dtype=np.uint8)
    pixels.flush()
    count = scale.steps * scale.batch + 2 * len(recipe.classes)
    table = pd.DataFrame(
        {
            "path": [f"{i}.png" for i in range(count)],
            "row": np.arange(count) % scale.cached,
            "label": np.resize(recipe.classes, count),
            "group": np.arange(count).astype(str),
        }
    )
    table["split"] = np.where(table.index < scale.steps * scale.batch, "train", "val")
    return imagesets.ImageSet(np.load(folder / f"{recipe.name}.npy", mmap_mode="r"), table, recipe.classes)


# --- training ---


def trained(
    recipe: recipes.Recipe, own: imagesets.ImageSet, device: torch.device, mode: Mode, scale: Scale
) -> tuple[pd.DataFrame, str]:
    """Rates of `compare` fed from the cache, on resident batches and of the views alone; peak memory."""
    recipe = replace(recipe, precision=mode.precision, fast=mode.fast)
    run = SimpleNamespace(recipe=recipe, dir=Path("nowhere"), log=lambda *_, **__: None)
    empty(device)
    with torch.random.fork_rng(range(torch.cuda.device_count())), devices.backend(mode.fast):
        state = State(building.build(recipe), own, run, device, 2)
        if mode.compiled:
            torch.compiler.reset()  # of the recipe before
            state.model.compile(backend="inductor" if device.type == "cuda" else "eager")
        kept = list(itertools.islice(state.feed.batches(0), 4))

        def fed() -> int:
            return stepped(state.feed.batches(0))

        def resident() -> int:
            return stepped(itertools.islice(itertools.cycle(kept), state.feed.steps))

        def stepped(batches) -> int:
            done = 0
            for batch in batches:
                optimising.step(state, batch)
                done += len(batch.labels)
            finish(device)
            return done

        def views() -> int:
            done = sum(len(batch.labels) for batch in state.feed.batches(0))
            finish(device)
            return done

        rates = harness.compare({RESIDENT: resident, FED: fed, VIEWS: views}, scale.rounds)
        if state.progress.parts > 1:
            raise SystemExit(f"A batch of {recipe.batch_size} does not fit in {mode}: close what else runs on the GPU")
    memory = devices.gpu_memory_mb(device)
    return rates, "-" if memory is None else f"{memory:,.0f}"


def finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def empty(device: torch.device) -> None:
    """Lets go of what the mode before has held."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


# --- averaged views and heatmaps ---


def averaged(
    model: networks.Classifier, own: imagesets.ImageSet, recipe: recipes.Recipe, device: torch.device, scale: Scale
) -> pd.DataFrame:
    """The recipe's views of each picture of the gallery: a pass each, one picture after another, or all in batches."""
    chosen = replace(own, table=own.table.head(scale.gallery))
    net = literal.twin(model)

    def published() -> int:
        for number, picture in enumerate(chosen.pictures):
            views = augment.tta_views(
                picture[None],
                recipe.image_size,
                recipe.tta,
                recipe.tta_views,
                recipe.seed,
                np.array([number]),
                recipe.augmentation,
            )
            literal.tta(net, [literal.NORMALISE(view.contiguous().to(device)) for view in views]).tolist()
        return len(chosen)

    def ours() -> int:
        return len(predicting.predict(model, chosen, recipe, tta=True, progress=False))

    return harness.compare({PUBLISHED: published, OURS: ours}, scale.rounds)


def gallery(model: networks.Classifier, own: imagesets.ImageSet, device: torch.device, scale: Scale) -> pd.DataFrame:
    """Heatmaps one by one with hooks and a full backward pass, or all at once."""
    views = augment.plain_views(own.pixels[: scale.gallery], model.image_size).to(device)
    normal, targets = literal.NORMALISE(views.contiguous()), [0] * len(views)
    net = literal.twin(model)
    hooked = literal.GradCAM(net, net.layer4[-1] if hasattr(net, "layer4") else net.features[-1])

    def published() -> int:
        return len([hooked.generate(image[None], 0).cpu() for image in normal])

    def ours() -> int:
        return len(gradcam.gradcam(model, views, targets).maps)

    return harness.compare({PUBLISHED: published, OURS: ours}, scale.rounds)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
