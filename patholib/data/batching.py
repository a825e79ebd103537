"""Batches of cached images, in an order that depends on nothing but the seed and the epoch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from patholib.base import cpu

if TYPE_CHECKING:
    from patholib.data.imagesets import ImageSet


@dataclass(frozen=True)
class Batch:
    """Images in training order with what belongs to each; of several processes, one's share of them."""

    images: Any  # (B, S, S, 3) uint8, or what `transform` returned for them
    labels: Any  # (B,) int64 tensor
    rows: np.ndarray  # (B,) index into the ImageSet
    positions: np.ndarray  # (B,) place in `order`: tells two draws of the same image apart
    every_label: Any = None  # those of all processes' images, where it is a share

    @property
    def whole(self) -> Any:
        """The labels of the whole batch, of which these images may be a share."""
        return self.labels if self.every_label is None else self.every_label


def batches(
    images: ImageSet,
    order: np.ndarray,
    size: int,
    transform: Callable | None = None,
    workers: int = 1,
    drop_last: bool = False,
    start: int = 0,
    share: tuple[int, int] = (0, 1),
) -> Iterator[Batch]:
    """Batches of `size` images in the given order, prepared ahead of use by `workers` threads.

    order: (N,) indices into `images`, repeats allowed. transform(images (B, S, S, 3) uint8, rows, positions).
    start: the position to begin at, a multiple of `size`: what a resumed epoch has already seen is not prepared again.
    share: (r, n) gives the r-th of n nearly equal shares of each batch, where images keep their positions; it may be
    empty.
    The batches are the same for any number of workers. An error in a thread is raised here; leaving the loop early
    ends the threads. At most `workers` + 1 batches wait in memory.
    """
    import torch  # only here: a server that decodes images needs no torch

    order = np.asarray(order, dtype=np.int64)
    labels, rows = torch.tensor(images.labels), images.table["row"].to_numpy()
    stop = len(order) - len(order) % size if drop_last else len(order)

    def prepare(first: int) -> Batch:
        every = np.arange(first, min(first + size, stop))
        positions = np.array_split(every, share[1])[share[0]]  # (B,)
        chosen = order[positions]
        gathered = images.pixels[rows[chosen]]  # (B, S, S, 3) uint8, a copy
        made = gathered if transform is None else transform(gathered, chosen, positions)
        return Batch(made, labels[torch.from_numpy(chosen)], chosen, positions, labels[torch.from_numpy(order[every])])

    def named(first: int) -> str:
        paths = images.table["path"].iloc[order[first : min(first + size, stop)]].tolist()
        return f"batch of {', '.join(paths[:3])}{' ...' if len(paths) > 3 else ''}"

    return cpu.in_order(prepare, range(start, stop, size), max(1, workers), max(1, workers) + 1, named)
