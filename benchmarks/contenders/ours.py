"""patholib as its training notebook uses it: check and cache, train, lock, judge; a recipe that is in the job.

Its clock begins with the check of the files, which decodes them all into the cache: whoever decodes as it trains pays
for it then. What the library lacks and may be worth having is tried here (`Tried`), by changing its images or views.
"""

from __future__ import annotations

import math
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from unittest import mock

import job as jobs
import numpy as np
import torch
from job import Job
from torch.nn import functional as F

from patholib.base import files
from patholib.data import checking, readers
from patholib.data.imagesets import ImageSet
from patholib.judge import decisions
from patholib.model import augment, profiles, recipes
from patholib.model.recipes import Recipe, Stage
from patholib.study import Study

# Optical density in red, green and blue of one unit of haematoxylin, eosin and DAB (Ruifrok & Johnston 2001).
STAINS = torch.tensor([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
DARKEST = 1e-6  # of a pixel, whose density would else be infinite
OTHER_DRAWS = 2**32  # added to the seed: more than a recipe's can be, so that no draw of a view is used twice


@dataclass(frozen=True)
class Tried:
    """What the job's options change beyond its recipe; as it stands: nothing."""

    first_half: float = 1.0  # share of the side at which the first half of the epochs sees its views
    grey_norm: int = 0  # Minkowski norm over the pixels that is made equal in the channels of all images; 0: left alone
    stains: float = 0.0  # how far those of a training view are changed

    def side(self, recipe: Recipe, epoch: int) -> int:
        """Of an epoch's views: that of the recipe, or the multiple of 8 nearest to its share."""
        if self.first_half == 1 or epoch >= recipe.epochs // 2:
            return recipe.image_size
        return 8 * math.floor(self.first_half * recipe.image_size / 8 + 0.5)


def main(job: Job) -> None:
    torch.set_num_threads(job.threads)
    os.environ["PATHOLIB_CACHE"] = str(Path(job.out) / "cache")  # no other training has computed its features already
    out, recipe = Path(job.out), replace(recipes.from_json(job.options["recipe"]), seed=job.seed)
    tried = Tried(**{name: value for name, value in job.options.items() if name != "recipe"})
    source = readers.load(job.kind, job.data, missing="skip", positive=job.positive)
    started = time.perf_counter()
    checked = checking.check(
        source,
        recipe.cache_size,
        recipe.fit,
        out / "cache",
        on_bad="skip",
        workers=job.threads,
        progress=False,
        report_dir=out / "check",
    )
    if tried.grey_norm:
        checked = replace(checked, images=in_grey_light(checked.images, tried.grey_norm))
    checked_in = time.perf_counter() - started
    place = job.table.set_index("path").loc[checked.manifest.table["path"]]
    split = checked.manifest.table.assign(group=place["group"].to_numpy(), split=place["split"].to_numpy())
    head = recipe.train == "head"
    sides = {tried.side(replace(recipe, epochs=2), epoch): None for epoch in (1, 0)}  # of either half, the last first
    cost = {
        (frozen, side): trial(recipe, frozen, side, tried, checked, split, job)
        for frozen in sorted({stage.frozen for stage in recipe.stages})
        for side in sides
        if not head
    }
    if not head:
        epochs = affordable(recipe, cost, job.seconds - checked_in, tried)
        recipe = profiles.in_whole_cycles(replace(recipe, epochs=epochs))
    with mock.patch.object(augment, "training_views", training_views(tried, lambda epoch: tried.side(recipe, epoch))):
        study = of(recipe, checked, split, job, out / "runs", "run")
        study.train()
    folder = study.dir
    study.lock()
    study.judge(baselines=False)
    study.run.finish()
    history, facts = files.read_json(folder / "history.json"), files.read_json(folder / "run.json")["training"]
    seconds = checked_in + np.cumsum([row["seconds"] for row in history])
    curve = [
        {
            "epoch": row["epoch"],
            "seconds": round(float(at), 2),
            "val_auc": row["val_auc"],
            "val_balanced_accuracy": row["val_balanced_accuracy"],
        }
        for row, at in zip(history, seconds, strict=True)
    ]
    tables = {name: in_order(job, name, decisions.calibrated(folder, name)) for name in ("val", "test")}
    if recipe.tta_views > 1:
        tables["test_tta"] = in_order(job, "test", decisions.calibrated(folder, "test_tta"))
    counts = job.part("train")["label"].value_counts().reindex(job.classes).to_numpy()
    jobs.leave(
        job,
        tables,
        curve,
        epochs=0 if head else len(history),
        best_epoch=0 if head else facts["best_epoch"],
        seconds=float(seconds[-1]),
        planned=job.seconds if head else sum(spent(recipe, cost, tried)) + checked_in,
        **({"chosen": f"C={facts['strength']:g}"} if head else {}),
        precision=facts["precision"],
        prior=(counts / counts.sum()).tolist(),  # the locked probabilities are corrected to it
        shares=decisions.locked(folder).get("shares"),
    )
    for name in ("runs", "trial", "cache", "check"):  # weights and pictures: of these only numbers are kept
        shutil.rmtree(out / name, ignore_errors=True)


def of(recipe: Recipe, checked: checking.Checked, split, job: Job, output: Path, name: str) -> Study:
    """A run of its own on these images, which nothing else takes for the newest."""
    return Study(
        checked,
        recipe=recipe,
        split=split,
        output=str(output),
        name=name,
        workers=job.threads,
        resume="never",
        allow_leakage=True,
        quiet=True,
        remember=False,
    )


def trial(recipe: Recipe, frozen: int, side: int, tried: Tried, checked: checking.Checked, split, job: Job) -> float:
    """The seconds of an epoch with so many blocks frozen and views so large, from one that is thrown away."""
    short = replace(recipe, epochs=1, stages=(Stage(0, frozen, 1.0),))
    with mock.patch.object(augment, "training_views", training_views(tried, lambda epoch: side)):
        done = of(short, checked, split, job, Path(job.out, "trial"), f"frozen-{frozen}-side-{side}")
        done.train()
    done.close()
    return float(done.history["seconds"].iloc[0])


def spent(recipe: Recipe, cost: dict[tuple[int, int], float], tried: Tried) -> list[float]:
    """The seconds of every epoch, by what its stage and the side of its views cost."""
    return [cost[recipe.stage_at(epoch).frozen, tried.side(recipe, epoch)] for epoch in range(recipe.epochs)]


def affordable(recipe: Recipe, cost: dict[tuple[int, int], float], seconds: float, tried: Tried) -> int:
    """The most epochs that the time allows, one at least; stages and schedule end with them."""
    epochs = 1
    while sum(spent(replace(recipe, epochs=epochs + 1), cost, tried)) <= seconds:
        epochs += 1
    return epochs


def training_views(tried: Tried, side: Callable[[int], int]) -> Callable:
    """`augment.training_views`, whose views then get other stains and another side, as what is tried says.

    side(epoch): in pixels. Smaller views show as much as large ones: they are scaled down, not cut.
    """
    make = augment.training_views

    def made(images, size, augmentation, seed, epoch, positions, rows) -> torch.Tensor:
        views = make(images, size, augmentation, seed, epoch, positions, rows)  # (B, 3, size, size)
        if tried.stains:
            views = restained(views, tried.stains, seed, epoch, positions, rows)
        if side(epoch) != size:
            views = F.interpolate(views, (side(epoch), side(epoch)), mode="bilinear", antialias=True)
        return views

    return made


def restained(views: torch.Tensor, width: float, seed: int, epoch: int, positions, rows) -> torch.Tensor:
    """Every stain of each view (B, 3, H, W) times 1 +- width, plus +- width (Tellez et al. 2018), back in [0, 1].

    Six numbers for each view, drawn from (seed, epoch, position, row) as all others are.
    """
    draws = list(augment.uniform(seed + OTHER_DRAWS, epoch, positions, rows).values())[:6]
    changes = width * (2 * torch.tensor(np.array(draws)) - 1)  # (6, B)
    times, plus = changes.to(views).T.reshape(-1, 2, 1, 1, 3).unbind(1)  # (B, 1, 1, 3) each
    return composed(deconvolved(views.permute(0, 2, 3, 1)) * (1 + times) + plus).clamp(0, 1).permute(0, 3, 1, 2)


def deconvolved(pixels: torch.Tensor) -> torch.Tensor:
    """How much haematoxylin, eosin and DAB is in each pixel, (..., 3) RGB in [0, 1].

    One unit lets a tenth of the light pass, in the direction of its row of STAINS. Less than none is in a colour that
    the three cannot mix.
    """
    return -pixels.clamp(min=DARKEST).log10() @ STAINS.inverse().to(pixels)


def composed(stains: torch.Tensor) -> torch.Tensor:
    """The colour (..., 3) of so much of each stain, above 1 where there is less than none; `deconvolved` undoes it."""
    return 10 ** -(stains @ STAINS.to(stains))


def in_grey_light(images: ImageSet, norm: int) -> ImageSet:
    """The same images, all of them as if their light had been grey; in memory."""
    return replace(images, pixels=np.stack([shades_of_grey(picture, norm) for picture in images.pixels]))


def shades_of_grey(picture: np.ndarray, norm: int) -> np.ndarray:
    """The picture (S, S, 3) uint8 with a factor for each channel, so that all have the same Minkowski norm.

    Finlayson & Trezzi 2004 take that norm for the colour of the light. The mean grey level stays, but for what is cut
    off at white.
    """
    light = ((np.arange(256) / 255) ** norm)[picture].mean(axis=(0, 1)) ** (1 / norm)  # (3,)
    light, means = np.maximum(light, 1e-9), picture.mean(axis=(0, 1))  # a channel may be black
    gains = means.sum() / max((means / light).sum(), 1e-9) / light
    return np.clip(np.rint(picture * gains), 0, 255).astype(np.uint8)


def in_order(job: Job, split: str, table):
    """The predictions in the order of the job's own table."""
    found = table.set_index("path").loc[job.part(split)["path"]]
    return jobs.predictions(job, split, found[[f"p_{name}" for name in job.classes]].to_numpy())


if __name__ == "__main__":
    jobs.run(main)
