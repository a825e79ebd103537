"""What a training works with: its images, its network and optimiser, and how far it is."""

from __future__ import annotations

import copy
import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from patholib.base.team import ALONE, Team
from patholib.data.imagesets import ImageSet
from patholib.model import losses, schedules
from patholib.model.batchnorms import share_batchnorm
from patholib.model.networks import Classifier
from patholib.train import devices, feeding
from patholib.train.runs import Run
from patholib.train.stopping import Stop

OPTIMIZERS = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
NO_SUMS = {"loss": 0.0, "weight": 0.0, "right": 0.0, "images": 0.0, "seconds": 0.0}


@dataclass
class Progress:
    """How far a training is: everything in a checkpoint but the tensors."""

    epoch: int  # epochs completed
    step: int  # steps done in the epoch after them
    sums: dict[str, float]  # of the epoch in progress: loss, weight, right, images, seconds
    history: list[dict]  # one row per completed epoch
    reason: str = ""  # why training ended: "all epochs", "no improvement"; empty before that
    parts: int = 1  # a batch is computed in so many parts, because GPU memory does not suffice for all of it
    rollbacks: int = 0  # each one has halved the learning rate
    saving: float = 0.0  # seconds spent on checkpoints

    def scores(self, monitor: str) -> list[float]:
        """The monitored validation metric of every completed epoch."""
        return [row[f"val_{monitor}"] for row in self.history]


class State:
    """A training; its rules are in `loop` and `optimising`, its checkpoints in `resuming` and `saving`."""

    def __init__(
        self,
        model: Classifier,
        images: ImageSet,
        run: Run,
        device: torch.device,
        workers: int = 1,
        team: Team = ALONE,
        stop: Stop | None = None,
    ):
        recipe = run.recipe
        self.run, self.recipe, self.device, self.team, self.stop = run, recipe, device, team, stop or Stop(None)
        self.feed, self.val = feeding.Feed(images.part("train"), recipe, device, workers, team), images.part("val")
        feeding.check(self.feed, self.val)
        self.model = model.to(device).to(memory_format=torch.channels_last)
        # What is validated and kept: the mean of the weights over the last steps, or the weights themselves.
        self.averaged = copy.deepcopy(self.model) if recipe.ema else self.model
        share_batchnorm(model, team)
        self.counts = np.bincount(self.feed.images.labels, minlength=len(images.classes))  # (C,)
        self.loss = losses.build(recipe, self.counts).to(device)
        # Every parameter is in the optimiser from the start; a frozen one has no gradient and is skipped.
        self.optimizer = OPTIMIZERS[recipe.optimizer](
            model.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay, fused=True
        )  # one pass over the weights instead of a dozen
        self.progress = Progress(0, 0, dict(NO_SUMS), [])
        self.best: dict = {}  # of the best epoch: model, optimizer, row of history
        self.best_is_new = False  # it is in no checkpoint yet

    @functools.cached_property
    def arithmetic(self) -> tuple[str, str]:
        """The precision and why it is used; chosen at the first use, because a resumed run keeps its own."""
        return tuple(self.team.shared(lambda: devices.choose_precision(self.recipe.precision, self.device)))

    @property
    def precision(self) -> str:
        """fp32, bf16 or fp16."""
        return self.arithmetic[0]

    @functools.cached_property
    def scaler(self) -> torch.amp.GradScaler:
        """Scales the loss so that fp16 gradients do not vanish; does nothing in other precisions."""
        return torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")

    @property
    def folder(self) -> Path:
        """Where its checkpoints are."""
        return self.run.dir / "checkpoints"

    @property
    def steps_done(self) -> int:
        """Steps since the training began."""
        return self.progress.epoch * self.feed.steps + self.progress.step

    @property
    def best_epoch(self) -> int:
        """The epoch whose weights are kept, from 0. Errors: undefined_metric."""
        return schedules.best_epoch(self.recipe, self.progress.scores(self.recipe.monitor))
