"""What a training sees: the order of the images, batch by batch, and the augmented views made of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from patholib.base.errors import PathoError
from patholib.base.team import Team
from patholib.data import csvfiles
from patholib.data.batching import Batch, batches
from patholib.data.imagesets import ImageSet
from patholib.model import augment
from patholib.model.recipes import Recipe

ORDER = 1  # the purpose of this draw, so that it shares no stream with another (see optimising.DROPOUT)


def image_order(labels: np.ndarray, recipe: Recipe, epoch: int) -> np.ndarray:
    """The order of the training images in an epoch, (N,), a function of (seed, epoch) alone.

    A permutation; with a sampler, N draws with replacement in which every class is equally likely.
    """
    rng = np.random.default_rng([recipe.seed, ORDER, epoch])
    if recipe.balance.startswith("sampler"):
        share = 1.0 / np.bincount(labels)[labels]
        return rng.choice(len(labels), len(labels), p=share / share.sum())
    return rng.permutation(len(labels))


class Feed:
    """The training images as batches of augmented views; of several processes, this one's share of each batch."""

    def __init__(self, images: ImageSet, recipe: Recipe, device: torch.device, workers: int, team: Team):
        self.images, self.recipe, self.device, self.workers, self.team = images, recipe, device, workers, team
        self.augmentation = augment.scaled(recipe.augmentation, recipe.augmentation_strength)
        self.side: Any = None
        if device.type == "cuda":
            # Where the views are made: small kernels that must not queue behind a step, or the next one would wait.
            self.side = torch.cuda.Stream(device, priority=-1)
            # torch loads its solver at the first use, and fails where that is made in two threads at once.
            torch.linalg.solve(torch.eye(1, device=device), torch.eye(1, device=device))

    @property
    def steps(self) -> int:
        """Batches per epoch, without the incomplete last one where the recipe drops it."""
        number, size = len(self.images), self.recipe.batch_size
        return number // size if self.recipe.drop_last else -(-number // size)

    def batches(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        """The epoch's batches from step `first` on, their views made ahead of use in threads."""
        recipe = self.recipe
        order = image_order(self.images.labels, recipe, epoch)  # (N,)

        def views(pixels: np.ndarray, rows: np.ndarray, positions: np.ndarray):
            """pixels (n, S, S, 3) uint8 -> (n, 3, H, W); on a GPU with the event after which they may be read."""
            if self.device.type == "cpu":
                return self._augmented(pixels, rows, positions, epoch)
            with torch.cuda.stream(self.side):  # they cross the bus as uint8, a twelfth of float views
                return self._augmented(pixels, rows, positions, epoch), self.side.record_event()

        return batches(
            self.images,
            order,
            recipe.batch_size,
            views,
            self.workers,
            drop_last=recipe.drop_last,
            start=first * recipe.batch_size,
            share=(self.team.rank, self.team.count),
        )

    def _augmented(self, pixels: np.ndarray, rows: np.ndarray, positions: np.ndarray, epoch: int) -> torch.Tensor:
        size = self.recipe.image_size
        if not len(rows):  # a share may be empty
            return torch.empty(0, 3, size, size, device=self.device)
        images: Any = pixels
        if self.device.type != "cpu":
            images = torch.from_numpy(pixels).pin_memory().to(self.device, non_blocking=True)
        return augment.training_views(images, size, self.augmentation, self.recipe.seed, epoch, positions, rows)

    def views(self, batch: Batch) -> torch.Tensor:
        """The batch's views (n, 3, H, W) on the device, once they are made."""
        if self.device.type == "cpu":
            return batch.images
        made, ready = batch.images
        here = torch.cuda.current_stream(self.device)
        here.wait_event(ready)
        made.record_stream(here)  # or its memory would be given away while this stream still reads it
        return made


def check_classes(train: ImageSet, val: ImageSet) -> None:
    """Refuses images that nothing can be learnt from. Errors: empty_class, single_class."""
    counts = np.bincount(train.labels, minlength=len(train.classes))
    problems = [
        ("empty_class", "training split", f"has no image of {name}")
        for name, count in zip(train.classes, counts, strict=True)
        if not count
    ]
    if len(np.unique(val.labels)) < 2:
        problems.append(
            (
                "single_class",
                "validation split",
                "holds fewer than two classes, so a network that always gives the same answer would be the best",
            )
        )
    csvfiles.stop_on(problems, "Split again, with every class in every part, or drop the class")


def check(feed: Feed, val: ImageSet) -> None:
    """Refuses images and batches that nothing can be learnt from. Errors: those of `check_classes`, bad_parameter."""
    check_classes(feed.images, val)
    recipe, number = feed.recipe, len(feed.images)
    if feed.steps == 0:
        raise PathoError(
            "bad_parameter",
            "batch_size",
            f"{recipe.batch_size} is more than the {number} training images, and drop_last would leave none",
            "Use a smaller one",
        )
    if number - (feed.steps - 1) * recipe.batch_size == 1 and not recipe.drop_last:
        raise PathoError(
            "bad_parameter",
            "batch_size",
            "leaves one image for the last batch, which BatchNorm cannot normalise",
            "Change batch_size, or set drop_last",
        )
