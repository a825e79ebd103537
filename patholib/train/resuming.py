"""The content of a checkpoint, and how a training resumes from one."""

from __future__ import annotations

import copy

import torch

from patholib.base import files
from patholib.base.errors import PathoError
from patholib.base.progress import say
from patholib.model import schedules
from patholib.train import checkpoints
from patholib.train.runs import Run
from patholib.train.state import Progress, State

VERSION = 1  # of the content of a checkpoint
NEW_RUN = 'Start a new run with resume="never"'


def content(state: State) -> dict:
    """All that a later process needs to resume, in values that weights_only loading admits."""
    return {
        "version": VERSION,
        "fingerprint": state.run.fingerprint,
        "circumstances": _circumstances(state),
        "model": state.model.state_dict(),
        "average": state.averaged.state_dict() if state.recipe.ema else {},
        "optimizer": state.optimizer.state_dict(),
        "scaler": state.scaler.state_dict(),
        "progress": copy.deepcopy(vars(state.progress)),
    }


def _circumstances(state: State) -> dict[str, str | int | bool]:
    """What may differ when a training resumes; its results then differ in the last digits."""
    return {
        "device": state.device.type,
        "precision": state.precision,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__.partition("+")[0],
        "fast": state.recipe.fast,
        "processes": state.team.count,
    }


def has_ended(run: Run) -> bool:
    """Whether the run's training needs no more steps."""
    state = checkpoints.load(run.dir / "checkpoints", "last") or {}
    return bool(_reason(state.get("progress", {"reason": ""}), run))


def _reason(progress: dict, run: Run) -> str:
    """Why training has ended; empty where it has not, or the recipe now asks for more epochs."""
    more = progress["reason"] == "all epochs" and progress["epoch"] < run.recipe.epochs
    return "" if more else progress["reason"]


def resume(state: State) -> None:
    """Loads the newest whole checkpoint of the run folder, if there is one.

    Errors: resume_changed, checkpoint_damaged, checkpoint_version.
    """
    saved = state.team.shared(lambda: _saved(state), checkpoints.packed, checkpoints.unpacked)
    last = saved["last"]
    if not last:
        _share_weights(state)
        return
    _load(state, last)
    state.best, state.best_is_new = saved["best"], False
    if state.progress.reason:
        say(
            f"training is complete ({state.progress.reason}, {state.progress.epoch} epochs); its best weights are "
            "loaded"
        )
        return
    before, now = last["circumstances"], _circumstances(state)
    changed = {key: (old, now[key]) for key, old in before.items() if old != now[key]}
    state.run.log("resumed", epoch=state.progress.epoch + 1, step=state.progress.step, changed=changed)
    differ = ", ".join(f"{key} {old} -> {new}" for key, (old, new) in changed.items())
    say(
        f"resumed after epoch {state.progress.epoch}, step {state.progress.step} of {state.feed.steps}"
        + (f"; results may differ in the last digits, because of {differ}" if differ else "")
    )


def _load(state: State, last: dict) -> None:
    before = last["circumstances"]
    if state.recipe.precision == "auto" and before["device"] == state.device.type:
        state.arithmetic = before["precision"], "as the run began"
    state.model.load_state_dict(last["model"])
    if state.recipe.ema:
        state.averaged.load_state_dict(last["average"])
    state.optimizer.load_state_dict(last["optimizer"])
    vars(state).pop("scaler", None)  # one that was left in the middle of a step cannot be used again
    if last["scaler"] and state.scaler.is_enabled():  # both are so unless the precision is another one
        state.scaler.load_state_dict(last["scaler"])
    state.progress = Progress(**last["progress"])
    state.progress.reason = _reason(last["progress"], state.run)


def _saved(state: State) -> dict:
    """The newest whole checkpoint, "last", and the weights it refers to, "best"; both empty where there is none."""
    folder = state.folder
    files.remove_parts(state.run.dir)
    last = checkpoints.load(folder, "last", holds=("version", "fingerprint"))
    if last is None:
        return {"last": {}, "best": {}}
    _refuse_other_run(state, last)
    progress = Progress(**last["progress"])
    if not progress.history:
        return {"last": last, "best": {}}
    epoch = schedules.best_epoch(state.recipe, progress.scores(state.recipe.monitor)) + 1
    best = checkpoints.load(folder, "best", epoch, holds=("model", "optimizer", "row"))
    if best is None:
        raise PathoError(
            "checkpoint_damaged",
            str(folder),
            f"lacks the best epoch's weights ({epoch})",
            "Restore the folder from a copy, or start a new run",
        )
    return {"last": last, "best": best}


def _share_weights(state: State) -> None:
    """Gives every process the first one's weights: another processor may have drawn other last bits."""
    if state.team.count > 1:
        state.model.load_state_dict(state.team.shared(state.model.state_dict, checkpoints.packed, checkpoints.unpacked))
        state.averaged.load_state_dict(state.model.state_dict())


def _refuse_other_run(state: State, last: dict) -> None:
    """Errors: checkpoint_version; resume_changed where another network, recipe, data or split wrote it."""
    folder = str(state.folder)
    if last.get("version") != VERSION:
        raise PathoError(
            "checkpoint_version",
            folder,
            f"has checkpoint version {last.get('version')}, this patholib reads {VERSION}",
            'Use the version of patholib that wrote it, or start a new run with resume="never"',
        )
    was, now = ({k: tuple(v.shape) for k, v in part.items()} for part in (last["model"], state.model.state_dict()))
    odd = sorted(k for k in was.keys() | now.keys() if was.get(k) != now.get(k))
    if odd:
        first = ", ".join(f"{k} {was.get(k)} -> {now.get(k)}" for k in odd[:3])
        raise PathoError(
            "resume_changed", folder, f"was written by another network: {len(odd)} tensors differ ({first})", NEW_RUN
        )
    if last["fingerprint"] != state.run.fingerprint:
        raise PathoError("resume_changed", folder, "was written by another recipe, data or split", NEW_RUN)
