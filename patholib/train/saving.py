"""When and where the state of a training is saved, also when a disk fails."""

from __future__ import annotations

import time
from pathlib import Path

import pandas as pd

from patholib.base import files
from patholib.base.errors import PathoError
from patholib.base.progress import say
from patholib.train import checkpoints, resuming
from patholib.train.state import State

SAVE_SECONDS = 300.0  # a killed process loses at most this much work
SAVE_SHARE = 0.01  # and saving costs at most this share of the time
FAILED_WRITES = 3  # after so many checkpoints in a row that could not be written, training stops


class Saving:
    """Writes the checkpoints of a training, in the first of its processes alone."""

    def __init__(self, state: State):
        self.state = state
        self.started = self.last = time.monotonic()
        self.cost, self.spent, self.failures = 0.0, 0.0, 0  # seconds: of the last checkpoint, of all; in a row

    def due(self, must: bool = False) -> None:
        """Saves if it must, after SAVE_SECONDS, and at an epoch's end while saving costs at most SAVE_SHARE."""
        now = time.monotonic()
        affordable = self.spent + self.cost <= SAVE_SHARE * (now - self.started)  # the first one's cost is unknown
        epoch_ends = self.state.progress.step == 0
        if must or (epoch_ends and affordable) or now - self.last >= SAVE_SECONDS:
            self.write(must)

    def write(self, must: bool = True) -> None:
        """Writes the best weights if they are new, then the state that refers to them.

        must: a failure ends the training; otherwise only the third in a row does. The state is then written to the
        home folder. Errors: no_space, output_unwritable.
        """
        if not self.state.team.first:
            return
        self._stop_if_gone()
        started = time.monotonic()
        try:
            self.write_to(self.state.folder)
            self.failures = 0
        except PathoError as error:
            self.failures += 1
            if must or self.failures == FAILED_WRITES:
                raise self._rescued(error) from error
            self.state.run.log("checkpoint_failed", why=str(error), number=self.failures)
            say(f"checkpoint not written, training continues: {error}")
        self.last = time.monotonic()
        self.cost = self.last - started
        self.spent += self.cost
        self.state.progress.saving += self.cost

    def write_to(self, folder: Path) -> None:
        """Writes a checkpoint to the folder. Errors: no_space, output_unwritable."""
        state = self.state
        if state.best_is_new:
            checkpoints.save(folder, "best", state.best_epoch + 1, state.best, prune=False)
            state.best_is_new = False
        checkpoints.save(folder, "last", state.steps_done, resuming.content(state))
        checkpoints.prune_old(folder, "best")  # only now: the state before this one referred to an older best

    def _stop_if_gone(self) -> None:
        """Stops where the run folder was removed or moved: files written there now would be no run. Saves the state."""
        folder = self.state.run.dir
        if not (folder / "run.json").exists():
            gone = "Run again: a new run begins. To continue this one instead, stop that one after its first checkpoint"
            error = PathoError("output_unwritable", str(folder), "was removed or moved while training", gone)
            raise self._rescued(error)

    def _rescued(self, error: PathoError) -> PathoError:
        """The error, with the place in the home folder where the state was saved instead, if it could be."""
        rescue = Path.home() / ".patholib" / "rescue" / self.state.run.dir.name / "checkpoints"
        try:
            self.state.best_is_new = bool(self.state.best)
            self.write_to(rescue)
        except PathoError:
            return error
        return PathoError(
            error.code,
            error.subject,
            error.reason,
            f"{error.remedy}. The state was saved in {rescue}: "
            f'move these files to the folder {self.state.folder.name} of the run, and run again with resume="auto"',
        )

    def tables(self) -> None:
        """Writes history.csv and history.json; they are made from the state, so a failure here loses nothing."""
        if not self.state.team.first:
            return
        self._stop_if_gone()
        history, folder = self.state.progress.history, self.state.run.dir
        try:
            files.write_table(folder / "history.csv", pd.DataFrame(history))
            files.write_json(folder / "history.json", history)
        except PathoError as error:
            say(f"history not written, training continues: {error}")
