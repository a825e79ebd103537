"""The epochs of a training: steps, validation, one row of history, checkpoints; and what happens when it must stop."""

from __future__ import annotations

import copy
import math
import time

import numpy as np
import torch

from patholib.base import files
from patholib.base.errors import PathoError
from patholib.base.progress import bar, say
from patholib.data.imagesets import ImageSet
from patholib.judge import metrics, predicting
from patholib.model import losses, schedules
from patholib.model.recipes import Recipe
from patholib.train import checkpoints, devices, optimising, resuming
from patholib.train.saving import Saving
from patholib.train.state import NO_SUMS, State

ROLLBACKS = 3  # how often training may go back to a checkpoint and halve its rate
MONITORED = ("accuracy", "balanced_accuracy", "auc")  # metrics of every validation


def run(state: State) -> None:
    """Trains until the recipe's end, an early stop or a request to stop; the model then has the best weights."""
    steps, saving, ended = state.feed.steps, Saving(state), state.progress.reason
    if not ended:
        say(f"training on {state.device} in {state.precision}: {state.arithmetic[1]}{_processes(state)}")
        if schedules.cut_off(state.recipe):
            say(schedules.cut_off(state.recipe))
    with bar(total=state.recipe.epochs * steps, initial=state.steps_done, unit="step", desc="training") as meter:
        while not state.progress.reason:
            try:
                began = begin_epoch(state)
                for batch in state.feed.batches(state.progress.epoch, state.progress.step):
                    optimising.step(state, batch)
                    state.progress.sums["seconds"] = time.perf_counter() - began
                    meter.update()
                    leave_if_requested(state, saving)
                    saving.due()
                finish_epoch(state, saving)
                saving.due(must=bool(state.progress.reason))
            except PathoError as error:
                roll_back(state, saving, error)
                meter.n = state.steps_done
    saving.tables()  # once more, where the disk was full after the last epoch
    state.model.load_state_dict(state.best["model"])
    if not (ended and "training" in files.read_json(state.run.dir / "run.json")):  # an ended one has its facts
        state.run.update(status="trained", training=facts(state), weights=state.model.weights_source)


def begin_epoch(state: State) -> float:
    """Sets the learning rate and what is frozen; returns the moment at which this epoch would have begun in one go."""
    recipe, progress = state.recipe, state.progress
    rate = schedules.rate(recipe, progress.epoch, progress.scores(recipe.monitor))
    state.optimizer.param_groups[0]["lr"] = rate * 0.5**progress.rollbacks
    state.model.freeze(recipe.stage_at(progress.epoch).frozen, recipe.batchnorm)
    state.model.train()
    return time.perf_counter() - progress.sums["seconds"]  # what was done before an interruption counts


def finish_epoch(state: State, saving: Saving) -> None:
    """Validates, adds the row of history, keeps the weights if they are the best, and decides whether to stop."""
    progress, recipe, sums = state.progress, state.recipe, state.progress.sums
    started = time.perf_counter()
    val = validate(state, saving)
    accuracy = sums["right"] / sums["images"]
    row = {
        "epoch": progress.epoch + 1,
        "lr": state.optimizer.param_groups[0]["lr"],
        "frozen": recipe.stage_at(progress.epoch).frozen,
        "trainable_share": state.model.trainable_share(),
        "train_loss": sums["loss"] / sums["weight"],
        "train_accuracy": accuracy,
        **val,
        "gap": accuracy - val["val_accuracy"],
        "seconds": sums["seconds"],
        "val_seconds": time.perf_counter() - started,
        "images_per_second": sums["images"] / sums["seconds"],
        "micro_batch": math.ceil(state.team.largest_share(recipe.batch_size) / progress.parts),
        "gpu_memory_mb": devices.gpu_memory_mb(state.device),
        "processes": state.team.count,
    }
    progress.history.append(row)
    improved = state.best_epoch == progress.epoch
    if improved:
        keep_best(state)
    progress.epoch, progress.step, progress.sums = progress.epoch + 1, 0, dict(NO_SUMS)
    saving.tables()
    say(line(row, recipe, improved))
    if progress.epoch >= recipe.epochs:
        progress.reason = "all epochs"
    elif schedules.should_stop(recipe, progress.scores(recipe.monitor)):
        progress.reason = "no improvement"


def keep_best(state: State) -> None:
    """Copies the weights of the epoch whose row of history is the last."""
    weights = {k: v.detach().cpu().clone() for k, v in state.averaged.state_dict().items()}
    state.best = {
        "model": weights,
        "optimizer": copy.deepcopy(state.optimizer.state_dict()),
        "row": dict(state.progress.history[-1]),
    }
    state.best_is_new = True


def validate(state: State, saving: Saving) -> dict[str, float]:
    """Loss and metrics on the validation images without augmentation; an undefined metric is None."""

    def between_batches() -> None:
        if state.team.count > 1:  # here are no gradients that a request to stop could travel with
            requests = torch.tensor(state.stop.requests(), device=state.device)
            state.team.add_up([requests])
            state.stop.agreed = requests.tolist()
        leave_if_requested(state, saving)

    logits = predicting.logits(
        state.averaged,
        state.val,
        state.recipe,
        state.device,
        state.precision,
        after_batch=between_batches,
        team=state.team,
    )  # (N, C)
    return state.team.shared(  # by one process, so that all decide alike
        lambda: scores(logits, state.val, state.recipe, state.counts)
    )


def scores(logits: torch.Tensor, val: ImageSet, recipe: Recipe, counts: np.ndarray) -> dict[str, float]:
    """Loss and metrics of the logits (N, C) of all validation images; counts (C,): training images of each class."""
    loss = losses.build(recipe, counts)(logits, torch.tensor(val.labels))
    table = predicting.as_predictions(val, torch.softmax(logits.double(), 1).numpy())
    shares = losses.shares(recipe, counts)  # None for two classes
    numbers = metrics.summary(table, recipe.classes, recipe.positive, shares or 0.5)["metrics"]
    return {"val_loss": float(loss)} | {f"val_{name}": numbers[name]["value"] for name in MONITORED}


def leave_if_requested(state: State, saving: Saving) -> None:
    """Saves and leaves after a signal or at the end of the allowed time: between two steps, or in validation."""
    if state.stop.requested:
        saving.write()
        error = state.stop.error(state.run.dir.name)
        state.run.log("stopped", why=str(error), epoch=state.progress.epoch + 1, step=state.progress.step)
        state.team.wait()  # where one process leaves, the others may be ended: not before all is saved
        raise error


def roll_back(state: State, saving: Saving, error: PathoError) -> None:
    """After a NaN loss or gradient: back to the last checkpoint with half the rate; raises the error if not allowed."""
    done = state.progress.rollbacks
    allowed = error.code == "nonfinite_loss" and state.recipe.on_nonfinite == "rollback" and done < ROLLBACKS
    if not allowed or not state.team.shared(lambda: bool(checkpoints.list_of(state.folder, "last"))):
        raise error
    resuming.resume(state)
    progress = state.progress
    progress.rollbacks = done + 1
    state.run.log("rollback", why=str(error), number=done + 1, epoch=progress.epoch + 1, step=progress.step)
    say(
        f"{error}\nback to epoch {progress.epoch + 1}, step {progress.step}, with half the learning rate "
        f"({done + 1} of {ROLLBACKS})"
    )
    saving.write()


def facts(state: State) -> dict:
    """What run.json keeps of a training."""
    progress, last, best = state.progress, state.progress.history[-1], state.best_epoch
    monitored = f"val_{state.recipe.monitor}"
    return {
        "ended": progress.reason,
        "epochs": progress.epoch,
        "best_epoch": best + 1,
        f"best_{monitored}": progress.history[best][monitored],
        "device": str(state.device),
        "precision": state.precision,
        "precision_reason": state.arithmetic[1],
        "micro_batch": last["micro_batch"],
        "rollbacks": progress.rollbacks,
        "batch": state.recipe.batch_size,
        "processes": last.get("processes", 1),
        "effective_prior": losses.effective_prior(state.recipe, state.counts).to_dict(),
        "seconds": sum(row["seconds"] + row["val_seconds"] for row in progress.history),
        "saving_seconds": progress.saving,
    }


def line(row: dict, recipe: Recipe, improved: bool) -> str:
    """One plain line per epoch, for logs; an asterisk marks the best so far."""
    score = row[f"val_{recipe.monitor}"]
    shown = "undefined" if score is None else f"{score:.4f}"
    return (
        f"epoch {row['epoch']:>3}/{recipe.epochs}  lr {row['lr']:.2e}  train loss {row['train_loss']:.4f}  "
        f"val loss {row['val_loss']:.4f}  val {recipe.monitor.replace('_', ' ')} {shown}"
        f"{' *' if improved else ''}  {row['images_per_second']:.0f} images/s"
    )


def _processes(state: State) -> str:
    """How several processes share a batch, for a line of output: "; 2 processes, batch 32 = 2 x 16"."""
    size, count = state.recipe.batch_size, state.team.count
    if count == 1:
        return ""
    largest = state.team.largest_share(size)
    shares = f"{count} x {largest}" if size % count == 0 else f"{count} shares of at most {largest}"
    return f"; {count} processes, batch {size} = {shares}"
