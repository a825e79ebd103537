"""When and where the state of a training is saved, also when a disk fails."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from patholib.base import files
from patholib.base.errors import PathoError
from patholib.base.progress import say
from patholib.model import schedules
from patholib.train import checkpoints
from patholib.train.runs import Run

if TYPE_CHECKING:
    from patholib.train.training import Learner

SAVE_SECONDS = 300.0  # a killed process loses at most this much work
SAVE_SHARE = 0.01  # and saving costs at most this share of the time
FAILED_WRITES = 3  # after so many checkpoints in a row that could not be written, training stops


class Saving:
    """When a checkpoint is written: often enough to lose little, seldom enough to cost little."""

    def __init__(self, run: Run, writes: bool = True):
        self.run, self.folder, self.best_is_new = run, run.dir / "checkpoints", False
        self.writes = writes  # the first of several processes alone does
        self.started = self.last = time.monotonic()
        self.cost, self.spent, self.failures = 0.0, 0.0, 0  # seconds: of the last checkpoint, of all; in a row

    def due(self, learner: Learner, must: bool = False) -> None:
        """Saves where it must, after SAVE_SECONDS, and at an epoch's end while all of it costs at most SAVE_SHARE."""
        now = time.monotonic()
        affordable = self.spent + self.cost <= SAVE_SHARE * (now - self.started)  # what the first costs nobody knows
        if must or (learner.progress.step == 0 and affordable) or now - self.last >= SAVE_SECONDS:
            self.write(learner, must)

    def write(self, learner: Learner, must: bool = True) -> None:
        """Writes the best weights if they are new, then the state that refers to them.

        A failure is only told, until it is one too many: then the state goes to the home folder, and training stops.
        """
        if not self.writes:
            return
        started = time.monotonic()
        try:
            self._write_to(self.folder, learner)
            self.failures = 0
        except PathoError as error:
            self.failures += 1
            if must or self.failures == FAILED_WRITES:
                raise self._rescued(learner, error) from error
            self.run.log("checkpoint_failed", why=str(error), number=self.failures)
            say(f"checkpoint not written, training goes on: {error}")
        self.last = time.monotonic()
        self.cost = self.last - started
        self.spent += self.cost
        learner.progress.saving += self.cost

    def _write_to(self, folder, learner: Learner) -> None:
        progress = learner.progress
        if self.best_is_new:
            best = schedules.best_epoch(learner.recipe, progress.scores(learner.recipe.monitor)) + 1
            checkpoints.save(folder, "best", best, learner.best, prune=False)
            self.best_is_new = False
        steps = progress.epoch * learner.steps_per_epoch() + progress.step
        checkpoints.save(folder, "last", steps, learner.state())
        checkpoints.prune_old(folder, "best")  # only now: the state before this one referred to an older best

    def _rescued(self, learner: Learner, error: PathoError) -> PathoError:
        """The error, with the place in the home folder where the state was saved instead, if it could be."""
        rescue = Path.home() / ".patholib" / "rescue" / self.run.dir.name / "checkpoints"
        try:
            self.best_is_new = bool(learner.best)
            self._write_to(rescue, learner)
        except PathoError:
            return error
        return PathoError(error.code, error.subject, error.reason, f"{error.remedy}. The state was saved in {rescue}: "
                          f"move these files to {self.folder} and go on with resume=\"auto\"")

    def tables(self, history: list[dict]) -> None:
        """Writes history.csv and history.json; they are made from the state, so a failure here costs nothing."""
        if not self.writes:
            return
        try:
            files.write_table(self.run.dir / "history.csv", pd.DataFrame(history))
            files.write_json(self.run.dir / "history.json", history)
        except PathoError as error:
            say(f"history not written, training goes on: {error}")
