"""Learning rate, early stop and best epoch as pure functions of the epoch and the history; there is no other state.

Epochs count from 0. scores: the monitored validation metric of every completed epoch, higher is better; an undefined
one (None or NaN) is never an improvement.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

from patholib.base.errors import PathoError


def sgdr(epoch: int, t_0: float, t_mult: int, lr: float, eta_min: float) -> float:
    """The rate of cosine annealing with warm restarts (Loshchilov & Hutter 2017, equation 5), stepped by epochs.

    t_0: epochs of the first cycle, 1 or more; each later one is t_mult times longer, and each begins with the nearest
    whole epoch. Errors: bad_parameter.
    """
    start, end = next(cycle for cycle in _cycles(t_0, t_mult) if epoch < cycle[1])
    return eta_min + (lr - eta_min) * (1 + math.cos(math.pi * (epoch - start) / (end - start))) / 2


def cycle_ends(epochs: int, t_0: float, t_mult: int) -> list[int]:
    """The last epoch of every whole cycle in a run of `epochs`; t_0=0 is one cycle over all of it."""
    whole = itertools.takewhile(lambda cycle: cycle[1] <= epochs, _cycles(t_0 or epochs, t_mult))
    return [end - 1 for _, end in whole]


def whole_cycles(epochs: int, t_0: float, t_mult: int) -> float:
    """The t_0 nearest to the given one, as a ratio, with which the last cycle ends with the last of `epochs`."""
    sums = itertools.accumulate(t_mult**k for k in range(epochs))  # of k cycles in units of the first
    fitting = [epochs / total for total in itertools.takewhile(lambda total: total <= epochs, sums)]
    return min(fitting, key=lambda length: abs(math.log(length / t_0)))


def cut_off(recipe) -> str:
    """A warning where the run ends in the middle of a cycle, at a high rate; "" where it does not."""
    if recipe.schedule != "sgdr" or recipe.epochs - 1 in cycle_ends(recipe.epochs, recipe.t_0, recipe.t_mult):
        return ""
    last = sgdr(recipe.epochs - 1, recipe.t_0, recipe.t_mult, recipe.lr, recipe.eta_min)
    return (
        f"With epochs={recipe.epochs}, t_0={recipe.t_0:g} and t_mult={recipe.t_mult} the run ends in the middle of a "
        f"cycle, at a learning rate of {last:.2g}, which is {last / recipe.lr:.0%} of the highest"
    )


def _cycles(t_0: float, t_mult: int) -> Iterator[tuple[int, int]]:
    """The first epoch of every cycle and of the one after it, without end. Errors: bad_parameter."""
    if t_0 < 1 or t_mult < 1:
        raise PathoError("bad_parameter", "t_0, t_mult", f"are {t_0} and {t_mult}", "Give numbers from 1 on")
    start, total, length = 0, 0.0, t_0
    while True:
        total, length = total + length, length * t_mult
        end = round(total)
        yield start, end
        start = end


def plateau(scores, lr: float, factor: float, patience: int, eta_min: float) -> float:
    """The rate after these scores: times `factor` whenever more than `patience` epochs in a row brought no new best.

    Equals torch's ReduceLROnPlateau(mode="max", min_lr=eta_min) with its default threshold: a new best must exceed
    the old by a share of 1e-4, and a step below 1e-8 is not made.
    """
    best, waited = -math.inf, 0
    for score in _defined(scores):
        best, waited = (score, 0) if score > best * (1 + 1e-4) else (best, waited + 1)
        if waited > patience:
            lower, waited = max(lr * factor, eta_min), 0
            lr = lower if lr - lower > 1e-8 else lr
    return lr


def rate(recipe, epoch: int, scores=()) -> float:
    """The learning rate of `epoch`: the base rule, warmed up, times the stage's factor; eta_min is the base's floor.

    Only plateau looks at `scores`, of which those before `epoch` count.
    """
    return _base(recipe, epoch, scores[:epoch]) * recipe.stage_at(epoch).lr_scale


def _base(recipe, epoch: int, scores) -> float:
    lr = recipe.lr
    if recipe.schedule == "sgdr":
        lr = sgdr(epoch, recipe.t_0 or recipe.epochs, recipe.t_mult, lr, recipe.eta_min)
    if recipe.schedule == "plateau":
        lr = plateau(scores, lr, recipe.plateau_factor, recipe.plateau_patience, recipe.eta_min)
    return lr * min(1.0, (epoch + 1) / (recipe.warm_up + 1))


def table(recipe) -> list[dict]:
    """What is planned, one dict per epoch: epoch (from 1, as in the history), stage (from 1), frozen, lr, rule.

    How often a plateau lowers the rate nobody knows beforehand; lr is then its upper bound, and `rule` says so.
    """
    rule = "plateau: lr before any reduction" if recipe.schedule == "plateau" else recipe.schedule
    rows = []
    for epoch in range(recipe.epochs):
        stage = recipe.stage_at(epoch)
        lr = _base(recipe, epoch, ()) * stage.lr_scale
        rows.append(
            {
                "epoch": epoch + 1,
                "stage": recipe.stages.index(stage) + 1,
                "frozen": stage.frozen,
                "lr": lr,
                "rule": rule,
            }
        )
    return rows


def best_epoch(recipe, scores) -> int:
    """The epoch whose weights are kept: the first with the highest score, or with keep="last" the last one.

    With stop="any_epoch", as published: the last that exceeded the best before it by more than min_delta, from 0 on;
    where none did, as at an accuracy of 0, the first with the highest score. Errors: undefined_metric where no score
    is defined.
    """
    if recipe.keep == "last" and len(scores):
        return len(scores) - 1
    best = _improvements(scores, recipe.min_delta, 0.0) if recipe.stop == "any_epoch" else []
    best = best or _improvements(scores, 0.0, -math.inf)
    if not best:
        raise PathoError(
            "undefined_metric",
            f"val_{recipe.monitor}",
            f"picks no epoch out of {len(scores)}",
            "Look at the validation split, or monitor another metric",
        )
    return best[-1]


def kept(recipe, history) -> int | None:
    """The number of the epoch, from 1, that `best_epoch` keeps of a history (a table); None where none can be.

    Where a head was fitted: of the fit with the lowest validation loss.
    """
    if recipe.train == "head":
        return int(history["epoch"][history["val_loss"].idxmin()])
    try:
        return int(history["epoch"].iloc[best_epoch(recipe, history[f"val_{recipe.monitor}"].tolist())])
    except PathoError:
        return None


def should_stop(recipe, scores) -> bool:
    """Whether to stop after the last of `scores`: `patience` epochs since one exceeded the best by min_delta.

    With stop="cycle_end" and sgdr only where a cycle ends, at its lowest rate; otherwise after any epoch.
    """
    epoch = len(scores) - 1
    if not recipe.patience or epoch < 0:
        return False
    if recipe.stop == "cycle_end" and recipe.schedule == "sgdr":
        if epoch not in cycle_ends(recipe.epochs, recipe.t_0, recipe.t_mult):
            return False
    better = _improvements(scores, recipe.min_delta, 0.0 if recipe.stop == "any_epoch" else -math.inf)
    waited = epoch - better[-1] if better else epoch + 1
    return waited >= recipe.patience


def deadline(max_hours: float | None, now: float) -> float:
    """The second at which the time is up that begins at second `now`; max_hours None: never.

    Errors: bad_parameter.
    """
    if max_hours is not None and not max_hours >= 0:  # so that NaN, of which every comparison is false, is refused
        raise PathoError("bad_parameter", "max_hours", f"is {max_hours}", "Give hours from 0 on, or None for no limit")
    return math.inf if max_hours is None else now + max_hours * 3600


def _improvements(scores, min_delta: float, start: float) -> list[int]:
    """The epochs that exceeded the reference by more than min_delta; each becomes the reference."""
    found, reference = [], start
    for epoch, score in enumerate(_defined(scores)):
        if score > reference + min_delta:
            found.append(epoch)
            reference = score
    return found


def _defined(scores) -> list[float]:
    return [math.nan if score is None else float(score) for score in scores]  # NaN exceeds nothing
