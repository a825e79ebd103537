"""One optimisation step: the same lines for every device and precision, for one process and several."""

from __future__ import annotations

import math

import numpy as np
import torch

from patholib.base.errors import PathoError
from patholib.base.progress import say
from patholib.data.batching import Batch
from patholib.model.networks import autocast
from patholib.train.state import State

DROPOUT = 2  # the purpose of this draw, so that it shares no stream with another (see feeding.ORDER)


def step(state: State, batch: Batch) -> None:
    """Forward, backward, clip, update; in smaller parts where GPU memory does not suffice for one process alone.

    Errors: nonfinite_loss (before any weight is changed), out_of_memory.
    """
    progress, recipe, scaler = state.progress, state.recipe, state.scaler
    own = [state.team.rank] if state.team.rank else []  # dropout differs between processes; the first is as one alone
    while True:
        torch.manual_seed(_seed(recipe.seed, DROPOUT, progress.epoch, progress.step, *own))
        error = ""
        try:
            sums = gradients(state, batch)
        except torch.OutOfMemoryError as lacking:
            error = str(lacking)
        if not error:
            break
        _use_less_memory(state, len(batch.labels), error)  # out here the failed pass no longer holds memory
    _add_up(state, sums)
    scaler.unscale_(state.optimizer)  # clipping is about the true gradient
    norm = torch.nn.utils.clip_grad_norm_(state.model.parameters(), recipe.clip_norm or math.inf)
    loss, weight, right, norm = torch.stack([*sums, norm]).tolist()  # the one wait for the device in a step
    skipped = scaler.is_enabled() and not math.isfinite(norm)  # an overflow, which the scaler handles
    if not math.isfinite(loss) or not (skipped or math.isfinite(norm)):
        raise _nonfinite(state, batch, "gradient" if math.isfinite(loss) else "loss")
    scaler.step(state.optimizer)
    scaler.update()
    for name, value in {"loss": loss, "weight": weight, "right": right, "images": len(batch.whole)}.items():
        progress.sums[name] += value
    progress.step += 1
    _update_average(state)


def gradients(state: State, batch: Batch) -> list[torch.Tensor]:
    """Sets the gradients of the batch's loss; returns [sum of the loss, its weight, number of right predictions].

    Computed in `progress.parts` parts. Each part's loss is divided by the weight of the whole batch, so that the
    gradients of all parts, and of all processes, add up to the gradient of the whole batch.
    """
    state.optimizer.zero_grad(set_to_none=True)
    views = state.feed.views(batch)  # (n, 3, H, W)
    labels = batch.labels.to(state.device, non_blocking=True)  # (n,)
    weight = state.loss.weight(batch.whole.to(state.device, non_blocking=True))  # (), of the whole batch
    total, right = torch.zeros((), device=state.device), torch.zeros((), device=state.device)
    largest = state.team.largest_share(len(batch.whole))
    parts = max(1, min(state.progress.parts, largest // 2))  # a short last batch has fewer
    for images, answers in zip(views.tensor_split(parts), labels.tensor_split(parts), strict=True):
        images = images.contiguous(memory_format=torch.channels_last)
        with autocast(state.device, state.precision):
            logits = state.model(images)  # (n / parts, C)
        part_total, _ = state.loss.total(logits.float(), answers)
        state.scaler.scale(part_total / weight).backward()
        total += part_total.detach()
        right += (logits.argmax(1) == answers).sum()
    return [total, weight, right]


def _add_up(state: State, sums: list[torch.Tensor]) -> None:
    """Adds up gradients, sums and requests to stop over all processes."""
    if state.team.count == 1:
        return
    total, _, right = sums
    flags = torch.tensor(state.stop.requests(), device=state.device)
    of_weights = [p.grad for p in state.model.parameters() if p.grad is not None]
    state.team.add_up([*of_weights, total, right, flags])
    state.stop.agreed = flags.tolist()


def _use_less_memory(state: State, images: int, reason: str) -> None:
    """Doubles the parts of a batch.

    Errors: out_of_memory, where parts are too small or statistics have to be exact, and for one of several processes,
    as the others wait for its share of this batch.
    """
    progress = state.progress
    learning = any(isinstance(m, torch.nn.modules.batchnorm._BatchNorm) and m.training for m in state.model.modules())
    fewest = 2 if learning else 1  # BatchNorm needs two images for a deviation
    several = state.team.count > 1
    refused = learning and state.recipe.micro_batches == "exact" and not several
    if refused or several or images // (2 * progress.parts) < fewest:
        raise PathoError(
            "out_of_memory",
            f"batch of {images} images",
            "does not fit into the GPU's memory"
            + (", and in parts BatchNorm would compute other statistics" if refused else ""),
            "Lower batch_size or image_size" + (', or allow parts with micro_batches="always"' if refused else ""),
        )
    progress.parts *= 2
    state.optimizer.zero_grad(set_to_none=True)
    _empty_cache(state)
    state.run.log(
        "out_of_memory", parts=progress.parts, epoch=progress.epoch + 1, step=progress.step + 1, reason=reason
    )
    say(
        f"out of memory: from here on each batch is computed in {progress.parts} parts"
        + (", and BatchNorm uses the statistics of a part" if learning else "")
    )


def _empty_cache(state: State) -> None:
    if state.device.type == "cuda":
        torch.cuda.empty_cache()


def _nonfinite(state: State, batch: Batch, what: str) -> PathoError:
    names = ", ".join(state.feed.images.table["path"].iloc[batch.rows[:8]])
    lr = state.optimizer.param_groups[0]["lr"]
    return PathoError(
        "nonfinite_loss",
        f"epoch {state.progress.epoch + 1}, step {state.progress.step + 1}",
        f"the {what} is NaN or infinite at learning rate {lr:.3g}; the batch begins with {names}",
        "Lower lr, set clip_norm, or look at these images; the last checkpoint is intact",
    )


def _update_average(state: State) -> None:
    """Moves the averaged weights towards the present ones, faster in the first steps, whose weights were random."""
    if not state.recipe.ema:
        return
    done = state.steps_done
    share = 1 - min(state.recipe.ema, (1 + done) / (10 + done))
    with torch.no_grad():
        pairs = list(zip(state.averaged.state_dict().values(), state.model.state_dict().values(), strict=True))
        floats = [pair for pair in pairs if pair[0].is_floating_point()]
        torch._foreach_lerp_([old for old, _ in floats], [new for _, new in floats], share)
        for old, new in pairs:
            if not old.is_floating_point():  # how many batches a BatchNorm has seen
                old.copy_(new)


def _seed(*parts: int) -> int:
    """One 63-bit seed from several whole numbers."""
    return int(
        np.random.SeedSequence(parts).generate_state(2, np.uint32).astype(np.uint64)
        @ np.array([1, 1 << 31], dtype=np.uint64)
    ) & (2**63 - 1)
