"""Training: one path for CPU, GPUs and mixed precision, with randomness that depends only on seed, epoch and position."""

from __future__ import annotations

import copy
import functools
import math
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from patholib.base import files
from patholib.base.cpu import threads
from patholib.base.errors import PathoError
from patholib.base.progress import bar, say
from patholib.base.team import ALONE, Team, check_count, check_gpus, joined, myself
from patholib.data import csvfiles
from patholib.data.batching import Batch, batches
from patholib.data.imagesets import ImageSet
from patholib.judge import metrics, predicting
from patholib.model import augment, losses, schedules
from patholib.model.batchnorms import share_batchnorm
from patholib.model.networks import Classifier, autocast
from patholib.model.recipes import Recipe
from patholib.train import checkpoints, devices, handover, launching
from patholib.train.runs import Run
from patholib.train.saving import Saving
from patholib.train.stopping import Stop

ORDER, DROPOUT = 1, 2  # purposes of a draw, so that two of them never share a stream
ROLLBACKS = 3  # how often training may go back and halve its rate
VERSION = 1  # of the state in a checkpoint


@dataclass
class Progress:
    """Where a run stands; everything but the tensors that a checkpoint holds."""

    epoch: int  # epochs completed
    step: int  # steps done in the epoch after them
    sums: dict[str, float]  # of the epoch in progress: loss, weight, right, images, seconds
    history: list[dict]  # one row per completed epoch
    reason: str = ""  # why training ended: "all epochs", "no improvement"; empty while it goes on
    parts: int = 1  # a batch is computed in so many, because the GPU has not memory for all of it at once
    rollbacks: int = 0  # each one has halved the learning rate
    saving: float = 0.0  # seconds spent on checkpoints

    def scores(self, monitor: str) -> list[float]:
        """The monitored validation metric of every completed epoch."""
        return [row[f"val_{monitor}"] for row in self.history]


NO_SUMS = {"loss": 0.0, "weight": 0.0, "right": 0.0, "images": 0.0, "seconds": 0.0}


def fit(model: Classifier, images: ImageSet, run: Run, device: str = "auto", workers: int = 2,
        max_hours: float | None = None, processes: int = 1, team: Team = ALONE) -> pd.DataFrame:
    """Trains `model` on the train part of `images` and leaves the best epoch's weights in it.

    Goes on where the run folder's newest checkpoint stands, whole or in the middle of an epoch; a finished training
    is not repeated. Writes `checkpoints/`, `history.csv`, `history.json` and what happened on the way to `run.jsonl`.
    Returns the history, one row per epoch. max_hours: stop cleanly after that time, saved. processes: so many of this
    machine share each batch, on a GPU each where there are some; they are started here. team: the processes, already
    started, that this one trains with.
    Errors: nonfinite_loss (with the files of the batch), time_is_up, out_of_memory, single_class,
    resume_changed, checkpoint_damaged, checkpoint_version, no_space and output_unwritable (after three checkpoints that
    could not be written, and with the state kept in the home folder), process_lost; SystemExit(143) on SIGTERM,
    KeyboardInterrupt on SIGINT.
    """
    if check_processes(processes, device, run.recipe) > 1 and not has_ended(run):
        handover.train(model, images, run, device, workers, max_hours, processes)  # what they leave is then taken up here
    gpus = range(torch.cuda.device_count())  # named, as fork_rng warns where it has to find several by itself
    with torch.random.fork_rng(gpus), devices.backend(run.recipe.fast):  # the caller's generators and switches stay
        learner = Learner(model, images, run, devices.own_device(device, team), threads(workers, say), team)
        learner.resume()
        try:
            with Stop(max_hours) as stop:
                learner.run_epochs(stop)
        except torch.OutOfMemoryError as error:  # not the batch, which is then computed in parts
            raise PathoError("out_of_memory", "model and optimizer", "do not fit into the GPU's memory",
                             "Close what else runs on it, or take a smaller network") from error
    return pd.DataFrame(learner.progress.history)


class Learner:
    """The state of a training and its one step."""

    def __init__(self, model: Classifier, images: ImageSet, run: Run, device: torch.device, workers: int,
                 team: Team = ALONE):
        self.run, self.recipe, self.device, self.workers, self.team = run, run.recipe, device, workers, team
        self.train, self.val = images.part("train"), images.part("val")
        self.model = model.to(device, memory_format=torch.channels_last)
        # What is validated and kept: the mean of the weights over the last steps, or the weights themselves.
        self.averaged = copy.deepcopy(self.model) if self.recipe.ema else self.model
        share_batchnorm(model, team)
        counts = np.bincount(self.train.labels, minlength=len(images.classes))
        self._refuse_what_cannot_be_learnt(counts)
        self.loss = losses.build(self.recipe, counts).to(device)
        self.effective_prior = losses.effective_prior(self.recipe, counts).to_dict()
        self.shares = losses.shares(self.recipe, counts)
        optimizer = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[self.recipe.optimizer]
        # Every parameter is in the optimizer from the start; what is frozen has no gradient and is passed over.
        self.optimizer = optimizer(model.parameters(), lr=self.recipe.lr, weight_decay=self.recipe.weight_decay,
                                   fused=True)  # one pass over the weights instead of a dozen
        self.side = None
        if device.type == "cuda":
            # Where the views are made: small kernels that must not queue behind a step, or the next one would wait.
            self.side = torch.cuda.Stream(device, priority=-1)
            # torch loads its solver at the first use, and fails where that is made in two threads at once.
            torch.linalg.solve(torch.eye(1, device=device), torch.eye(1, device=device))
        self.progress = Progress(0, 0, dict(NO_SUMS), [])
        self.best = {}  # of the best epoch: model, optimizer, row of history
        self.saving, self.stop = Saving(run, team.first), Stop(None)

    def _refuse_what_cannot_be_learnt(self, counts: np.ndarray) -> None:
        problems = [("empty_class", "training split", f"has no image of {name}")
                    for name, number in zip(self.recipe.classes, counts, strict=True) if not number]
        if len(np.unique(self.val.labels)) < 2:
            problems.append(("single_class", "validation split", "holds fewer than two classes, so a network that "
                             "always gives the same answer would be the best"))
        csvfiles.stop_on(problems, "Split again, with every class in every part, or drop the class")
        steps = self.steps_per_epoch()
        if steps == 0:
            raise PathoError("bad_parameter", "batch_size", f"{self.recipe.batch_size} is more than the "
                             f"{len(self.train)} training images, and drop_last would leave none", "Use a smaller one")
        last = len(self.train) - (steps - 1) * self.recipe.batch_size
        if last == 1 and not self.recipe.drop_last:
            raise PathoError("bad_parameter", "batch_size", "leaves one image for the last batch, which BatchNorm "
                             "cannot normalise", "Change batch_size, or set drop_last")

    @functools.cached_property
    def arithmetic(self) -> tuple[str, str]:
        """The precision and why it is taken; not before it is needed, because a resumed run knows its own."""
        chosen = devices.choose_precision(self.recipe.precision, self.device, self.model, self.recipe.batch_size)
        return tuple(self.team.shared(lambda: chosen))  # each has tried, as a trial may exchange something too

    @property
    def precision(self) -> str:
        return self.arithmetic[0]

    @functools.cached_property
    def scaler(self) -> torch.amp.GradScaler:
        return torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")

    def steps_per_epoch(self) -> int:
        """Batches in one pass, without the incomplete last one where the recipe drops it."""
        share = len(self.train) / self.recipe.batch_size
        return math.floor(share) if self.recipe.drop_last else math.ceil(share)

    def run_epochs(self, stop: Stop) -> None:
        """Trains until the recipe's end, an early stop or a request to stop."""
        self.stop, ended = stop, self.progress.reason
        if not ended:
            say(f"training on {self.device} in {self.precision}: {self.arithmetic[1]}{self._shares()}")
        total = self.steps_per_epoch()
        with bar(total=self.recipe.epochs * total, initial=self.progress.epoch * total + self.progress.step,
                 unit="step", desc="training") as meter:
            while not self.progress.reason:
                try:
                    self.run_epoch(meter, stop)
                except PathoError as error:
                    self._roll_back(error)
                    meter.n = self.progress.epoch * total + self.progress.step
                    continue
                self.progress.reason = self._end_reason()
                self.saving.due(self, must=bool(self.progress.reason))
        self.saving.tables(self.progress.history)  # once more, where the disk was full after the last epoch
        self.model.load_state_dict(self.best["model"])
        if not (ended and "training" in files.read_json(self.run.dir / "run.json")):  # its facts are of whoever trained
            self.run.update(status="trained", training=self.facts(), weights=self.model.weights_source)

    def _shares(self) -> str:
        """How several processes share a batch, for a line of output: "; batch 32 = 2 x 16"."""
        size, count = self.recipe.batch_size, self.team.count
        largest = self.team.largest_share(size)
        shares = f"{count} x {largest}" if size % count == 0 else f"{count} shares of at most {largest}"
        return f"; {count} processes, batch {size} = {shares}" if count > 1 else ""

    def _end_reason(self) -> str:
        if self.progress.epoch >= self.recipe.epochs:
            return "all epochs"
        scores = self.progress.scores(self.recipe.monitor)
        return "no improvement" if schedules.should_stop(self.recipe, scores) else ""

    def run_epoch(self, meter, stop: Stop) -> None:
        """One pass over the training images from where it stands, one validation, one row of history."""
        recipe, progress, epoch = self.recipe, self.progress, self.progress.epoch
        stage = recipe.stage_at(epoch)
        lr = schedules.rate(recipe, epoch, progress.scores(recipe.monitor)) * 0.5 ** progress.rollbacks
        self.optimizer.param_groups[0]["lr"] = lr
        self.model.freeze(stage.frozen, recipe.batchnorm)
        self.model.train()
        started = time.perf_counter()
        before = progress.sums["seconds"]
        for batch in self.batches(epoch):
            self.step(batch, epoch)
            progress.sums["seconds"] = before + time.perf_counter() - started
            meter.update()
            self._leave_if_asked(stop)
            self.saving.due(self)
        self._finish_epoch(stage, lr, meter, stop)

    def batches(self, epoch: int) -> Iterator[Batch]:
        """The epoch's batches from where training stands, their views made ahead of use."""
        recipe = self.recipe
        order = image_order(self.train.labels, recipe, epoch)
        return batches(self.train, order, recipe.batch_size, self._views(epoch), self.workers,
                       drop_last=recipe.drop_last, start=self.progress.step * recipe.batch_size,
                       share=(self.team.rank, self.team.count))

    def _leave_if_asked(self, stop: Stop) -> None:
        """Saves and leaves where a signal or the end of the allowed time asks for it: between steps, in validation."""
        if stop.requested:
            self.saving.write(self)
            error = stop.error(self.run.dir)
            self.run.log("stopped", why=str(error), epoch=self.progress.epoch + 1, step=self.progress.step)
            self.team.wait()  # where one leaves, the others may be ended: not before all is saved
            raise error

    def _views(self, epoch: int):
        """What makes a batch's pixels (N, S, S, 3) uint8 into its views, in a thread that works ahead of the training.

        On a GPU they cross the bus as uint8 and are warped there, beside the step in progress.
        """
        recipe, device = self.recipe, self.device

        def views(images, rows, positions):
            if not len(rows):  # a share may be empty
                none = torch.empty(0, 3, recipe.image_size, recipe.image_size, device=device)
                return none if device.type == "cpu" else (none, self.side.record_event())
            if device.type == "cpu":
                return augment.training_views(images, recipe.image_size, recipe.augmentation, recipe.seed, epoch,
                                              positions, rows)
            with torch.cuda.stream(self.side):
                images = torch.from_numpy(images).pin_memory().to(device, non_blocking=True)
                made = augment.training_views(images, recipe.image_size, recipe.augmentation, recipe.seed, epoch,
                                              positions, rows)
                return made, self.side.record_event()

        return views

    def _received(self, batch) -> torch.Tensor:
        """The batch's views (N, 3, H, W) on the device, once they are made."""
        if self.device.type == "cpu":
            return batch.images
        made, ready = batch.images
        here = torch.cuda.current_stream(self.device)
        here.wait_event(ready)
        made.record_stream(here)  # or its memory would be given away while this stream still reads it
        return made

    def step(self, batch, epoch: int) -> None:
        """Forward, backward, clip, update: the same lines for every precision and device."""
        own = (self.team.rank,) if self.team.rank else ()  # no two processes drop out the same, the first as one alone
        while True:
            torch.manual_seed(_seed(self.recipe.seed, DROPOUT, epoch, self.progress.step, *own))
            reason = ""
            try:
                sums = self._gradients(batch)
            except torch.OutOfMemoryError as error:
                reason = str(error)
            if reason:
                sums = self._keep_company(batch)  # out here the failed pass no longer holds memory
            if not self._settled(sums, reason):
                break
            self._use_less_memory(reason or "in another process", self.team.largest_share(len(batch.whole)))
        self.scaler.unscale_(self.optimizer)  # clipping is about the true gradient
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip_norm or math.inf)
        *sums, norm = torch.stack([*sums, norm]).tolist()  # the one wait for the device in a step
        skipped = self.scaler.is_enabled() and not math.isfinite(norm)  # the scaler passes over such a step
        if not math.isfinite(sums[0]) or not (skipped or math.isfinite(norm)):
            raise self._nonfinite(batch, epoch, "gradient" if math.isfinite(sums[0]) else "loss")
        self.scaler.step(self.optimizer)
        self.scaler.update()
        for name, value in zip(("loss", "weight", "right", "images"), (*sums, len(batch.whole)), strict=True):
            self.progress.sums[name] += value
        self.progress.step += 1
        self._average(epoch)

    def _average(self, epoch: int) -> None:
        """Moves averaged weights and statistics towards the present ones, quickly at first: those were noise."""
        if not self.recipe.ema:
            return
        done = epoch * self.steps_per_epoch() + self.progress.step
        share = 1 - min(self.recipe.ema, (1 + done) / (10 + done))
        with torch.no_grad():
            pairs = list(zip(self.averaged.state_dict().values(), self.model.state_dict().values(), strict=True))
            floats = [pair for pair in pairs if pair[0].is_floating_point()]
            torch._foreach_lerp_([old for old, _ in floats], [new for _, new in floats], share)
            for old, new in pairs:
                if not old.is_floating_point():  # how many batches a BatchNorm has seen
                    old.copy_(new)

    def _gradients(self, batch, skipped: int = 0) -> list[torch.Tensor]:
        """Sets the gradients of the batch's loss; [that loss's sum, its weight, how many are right].

        In parts where memory asks for it: each is divided by the weight of the whole batch, which makes their
        gradients add up to its own (a mean of means would not, where classes have weights). So do those of several
        processes.
        """
        self.team.begin_pass(skipped)
        self.optimizer.zero_grad(set_to_none=True)
        views, labels = self._received(batch), batch.labels.to(self.device, non_blocking=True)  # (N, 3, H, W), (N,)
        weight = self.loss.weight(batch.whole.to(self.device, non_blocking=True))
        total, right = torch.zeros((), device=self.device), torch.zeros((), device=self.device)
        largest = self.team.largest_share(len(batch.whole))
        parts = max(1, min(self.progress.parts, largest // 2))  # a short last batch has fewer
        for images, answers in zip(views.tensor_split(parts), labels.tensor_split(parts), strict=True):
            images = images.contiguous(memory_format=torch.channels_last)
            with autocast(self.device, self.precision):
                logits = self.model(images)  # (n, C)
            part_total, _ = self.loss.total(logits.float(), answers)
            self.scaler.scale(part_total / weight).backward()
            total += part_total.detach()
            right += (logits.argmax(1) == answers).sum()
        return [total, weight, right]

    def _keep_company(self, batch) -> list[torch.Tensor]:
        """After a pass that memory did not suffice for: the exchanges it still owes the others, with no image."""
        zero = torch.zeros((), device=self.device)
        if self.team.count == 1:
            return [zero, zero, zero]
        self.optimizer.zero_grad(set_to_none=True)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        none = self._received(batch)[:0]
        none = none if self.device.type == "cpu" else (none, torch.cuda.current_stream(self.device).record_event())
        empty = replace(batch, images=none, labels=batch.labels[:0], every_label=batch.whole)
        return self._gradients(empty, skipped=self.team.passed)

    def _settled(self, sums: list[torch.Tensor], reason: str) -> bool:
        """Adds up over the processes what the pass has given, and what they are asked; True: one lacked memory.

        One exchange for all of it. A flat sum of gradients is exact, since each is divided by the weight of the whole
        batch; it needs no wrapper, which would have to know what is frozen, and names no parameter anew.
        """
        if self.team.count == 1:
            return bool(reason)
        total, _, right = sums
        told = torch.tensor([float(bool(reason)), *self.stop.wishes()], device=self.device)
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        self.team.add_up([*gradients, total, right, told])
        lacking, *self.stop.heard = told.tolist()
        return lacking > 0

    def _use_less_memory(self, reason: str, images: int) -> None:
        """Halves what is computed at once, or stops where that cannot be or would not be the same."""
        progress = self.progress
        learning = any(isinstance(m, torch.nn.modules.batchnorm._BatchNorm) and m.training
                       for m in self.model.modules())
        fewest = 2 if learning else 1  # BatchNorm needs two images for a deviation
        forbidden = learning and self.recipe.micro_batches == "exact"
        if forbidden or images // (2 * progress.parts) < fewest:
            raise PathoError(
                "out_of_memory", f"batch of {images} images", "does not fit into the GPU's memory"
                + (", and in parts BatchNorm would compute other statistics" if forbidden else ""),
                "Lower batch_size or image_size" + ', or allow parts with micro_batches="always"' * forbidden)
        progress.parts *= 2
        self.optimizer.zero_grad(set_to_none=True)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        self.run.log("out_of_memory", parts=progress.parts, epoch=progress.epoch + 1, step=progress.step + 1,
                     reason=reason)
        say(f"out of memory: each batch is computed in {progress.parts} parts from here on"
                   + (", whose BatchNorm statistics differ from the whole batch's" if learning else ""))

    def _nonfinite(self, batch, epoch: int, what: str) -> PathoError:
        names = ", ".join(self.train.table["path"].iloc[batch.rows[:8]])
        lr = self.optimizer.param_groups[0]["lr"]
        return PathoError("nonfinite_loss", f"epoch {epoch + 1}, step {self.progress.step + 1}",
                          f"the {what} is not finite at learning rate {lr:.3g}; the batch begins with {names}",
                          "Lower lr, set clip_norm, or look at these images; the last checkpoint is intact")

    def _roll_back(self, error: PathoError) -> None:
        """After a loss that is no number: back to the last checkpoint with half the rate, where the recipe says so."""
        done = self.progress.rollbacks
        allowed = error.code == "nonfinite_loss" and self.recipe.on_nonfinite == "rollback" and done < ROLLBACKS
        if not allowed or not self.team.shared(lambda: bool(checkpoints.list_of(self.saving.folder, "last"))):
            raise error
        self.resume()
        self.progress.rollbacks = done + 1
        self.run.log("rollback", why=str(error), number=done + 1, epoch=self.progress.epoch + 1,
                     step=self.progress.step)
        say(f"{error}\nback to epoch {self.progress.epoch + 1}, step {self.progress.step}, with half the rate "
                   f"({done + 1} of {ROLLBACKS})")
        self.saving.write(self)

    def _finish_epoch(self, stage, lr: float, meter, stop: Stop) -> None:
        progress, sums = self.progress, self.progress.sums
        started = time.perf_counter()
        val = self.validate(stop)
        row = {
            "epoch": progress.epoch + 1, "lr": lr, "frozen": stage.frozen,
            "trainable_share": self.model.trainable_share(), "train_loss": sums["loss"] / sums["weight"],
            "train_accuracy": sums["right"] / sums["images"], **val,
            "gap": sums["right"] / sums["images"] - val["val_accuracy"], "seconds": sums["seconds"],
            "val_seconds": time.perf_counter() - started, "images_per_second": sums["images"] / sums["seconds"],
            "micro_batch": math.ceil(self.team.largest_share(self.recipe.batch_size) / progress.parts),
            "gpu_memory_mb": devices.gpu_memory_mb(self.device), "processes": self.team.count,
        }
        progress.history.append(row)
        scores = progress.scores(self.recipe.monitor)
        improved = schedules.best_epoch(self.recipe, scores) == progress.epoch
        if improved:
            self.best = self._weights(row)
            self.saving.best_is_new = True
        progress.epoch, progress.step, progress.sums = progress.epoch + 1, 0, dict(NO_SUMS)
        self.saving.tables(progress.history)
        meter.write(line(row, self.recipe, improved))

    def _weights(self, row: dict) -> dict:
        """A copy of what the best epoch learnt, apart from what goes on learning."""
        model = {k: v.detach().cpu().clone() for k, v in self.averaged.state_dict().items()}
        return {"model": model, "optimizer": copy.deepcopy(self.optimizer.state_dict()), "row": dict(row)}

    def validate(self, stop: Stop) -> dict[str, float]:
        """Loss and metrics on the validation images as they are; an undefined metric is None."""
        logits = predicting.logits(self.averaged, self.val, self.recipe, self.device, self.precision,
                                   after_batch=lambda: self._after_batch(stop), team=self.team)  # (N, C)
        return self.team.shared(lambda: self._judged(logits))  # by one, so that all go on alike

    def _after_batch(self, stop: Stop) -> None:
        """Between two batches of validation, where there are no gradients that a request could travel with."""
        if self.team.count > 1:
            told = torch.tensor(stop.wishes(), device=self.device)
            self.team.add_up([told])
            stop.heard = told.tolist()
        self._leave_if_asked(stop)

    def _judged(self, logits: torch.Tensor) -> dict[str, float]:
        """What `validate` says of these logits (N, C) of all validation images."""
        total, weight = self.loss.total(logits.to(self.device), torch.tensor(self.val.labels, device=self.device))
        found = predicting.as_predictions(self.val, torch.softmax(logits.double(), 1).numpy())
        numbers = metrics.summary(found, self.recipe.classes, self.recipe.positive, self.shares or 0.5,
                                  resamples=0)["metrics"]
        monitored = ("accuracy", "balanced_accuracy", "auc")
        return {"val_loss": float(total / weight)} | {f"val_{name}": numbers[name]["value"] for name in monitored}

    def state(self) -> dict:
        """All that a later process needs to go on, in values that weights_only loading admits."""
        return {"version": VERSION, "fingerprint": self.run.fingerprint, "circumstances": self._circumstances(),
                "model": self.model.state_dict(), "average": self.averaged.state_dict() if self.recipe.ema else {},
                "optimizer": self.optimizer.state_dict(),
                "scaler": self.scaler.state_dict(), "progress": copy.deepcopy(vars(self.progress))}

    def _circumstances(self) -> dict[str, str | int]:
        """What may change between two processes, at the price of the last digits."""
        return {"device": self.device.type, "precision": self.precision, "threads": torch.get_num_threads(),
                "torch": torch.__version__.partition("+")[0], "fast": self.recipe.fast,
                "processes": self.team.count}

    def resume(self) -> None:
        """Takes up the newest whole checkpoint of the run folder, if there is one."""
        found = self.team.shared(self._saved, checkpoints.packed, checkpoints.unpacked)
        if not found["last"]:
            self._begin_alike()
            return
        state, before = found["last"], found["last"]["circumstances"]
        if self.recipe.precision == "auto" and before["device"] == self.device.type:
            self.arithmetic = before["precision"], "as the run began"
        self.model.load_state_dict(state["model"])
        if self.recipe.ema:
            self.averaged.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        vars(self).pop("scaler", None)  # one that was left in the middle of a step cannot be used again
        if state["scaler"] and self.scaler.is_enabled():  # both are so unless the precision is another one
            self.scaler.load_state_dict(state["scaler"])
        self.progress = Progress(**state["progress"])
        if self.progress.reason == "all epochs" and self.progress.epoch < self.recipe.epochs:
            self.progress.reason = ""
        self.best, self.saving.best_is_new = found["best"], False
        if self.progress.reason:
            say(f"trained already ({self.progress.reason}, {self.progress.epoch} epochs): the best weights are taken")
            return
        now = self._circumstances()
        other = {key: (old, now[key]) for key, old in before.items() if old != now[key]}
        self.run.log("resumed", epoch=self.progress.epoch + 1, step=self.progress.step, changed=other)
        say(f"resumed after epoch {self.progress.epoch}, step {self.progress.step} of {self.steps_per_epoch()}"
                   + "".join(f"; {key} {a} -> {b}" for key, (a, b) in other.items())
                   + (": not equal to the last bit from here on" if other else ""))

    def _saved(self) -> dict:
        """The newest whole checkpoint, "last", and the weights it refers to, "best"; both empty where there is none."""
        for folder in (self.run.dir, self.saving.folder):
            checkpoints.remove_leftovers(folder)
        state = checkpoints.load(self.saving.folder, "last", holds=("version", "fingerprint"))
        if state is None:
            return {"last": {}, "best": {}}
        self._refuse_what_is_of_another_run(state)
        progress, kept = Progress(**state["progress"]), {}
        if progress.history:
            best = schedules.best_epoch(self.recipe, progress.scores(self.recipe.monitor)) + 1
            kept = checkpoints.load(self.saving.folder, "best", best, holds=("model", "optimizer", "row"))
            if kept is None:
                raise PathoError("checkpoint_damaged", str(self.saving.folder),
                                 f"lacks the best epoch's weights ({best})",
                                 "Restore the folder from a copy, or start a new run")
        return {"last": state, "best": kept}

    def _begin_alike(self) -> None:
        """Gives every process the first one's weights: drawn by another processor, their last bits may be others."""
        if self.team.count > 1:
            self.model.load_state_dict(self.team.shared(self.model.state_dict, checkpoints.packed,
                                                        checkpoints.unpacked))
            self.averaged.load_state_dict(self.model.state_dict())

    def _refuse_what_is_of_another_run(self, state: dict) -> None:
        if state.get("version") != VERSION:
            raise PathoError("checkpoint_version", str(self.saving.folder), f"was written in form "
                             f"{state.get('version')}, this patholib reads {VERSION}",
                             'Use the version of patholib that wrote it, or start a new run with resume="never"')
        shapes = [{k: tuple(v.shape) for k, v in part.items()} for part in (state["model"], self.model.state_dict())]
        odd = [k for k in shapes[0].keys() | shapes[1].keys() if shapes[0].get(k) != shapes[1].get(k)]
        first = ", ".join(f"{k} {shapes[0].get(k)} -> {shapes[1].get(k)}" for k in sorted(odd)[:3])
        if odd or state["fingerprint"] != self.run.fingerprint:
            what = f"was written by another network: {len(odd)} tensors differ ({first})" if odd else \
                "was written by another recipe, data or split"
            raise PathoError("resume_changed", str(self.saving.folder), what, 'Start a new run with resume="never"')

    def facts(self) -> dict:
        """What run.json keeps of a training."""
        progress = self.progress
        scores = progress.scores(self.recipe.monitor)
        best = schedules.best_epoch(self.recipe, scores)
        seconds = sum(row["seconds"] + row["val_seconds"] for row in progress.history)
        return {"ended": progress.reason, "epochs": progress.epoch, "best_epoch": best + 1,
                f"best_val_{self.recipe.monitor}": scores[best], "device": str(self.device),
                "precision": self.precision, "precision_reason": self.arithmetic[1],
                "micro_batch": progress.history[-1]["micro_batch"], "rollbacks": progress.rollbacks,
                "batch": self.recipe.batch_size, "processes": progress.history[-1].get("processes", 1),
                "effective_prior": self.effective_prior, "seconds": seconds, "saving_seconds": progress.saving}


def image_order(labels: np.ndarray, recipe: Recipe, epoch: int) -> np.ndarray:
    """The order of the training images in an epoch, a function of (seed, epoch) alone.

    A permutation, or, with a sampler, as many draws with replacement with every class equally likely.
    """
    rng = np.random.default_rng([recipe.seed, ORDER, epoch])
    if recipe.balance.startswith("sampler"):
        share = 1.0 / np.bincount(labels)[labels]
        return rng.choice(len(labels), len(labels), p=share / share.sum())
    return rng.permutation(len(labels))


def check_processes(count: int, device: str, recipe: Recipe) -> int:
    """The number of processes, if this machine and recipe have work for so many. Errors: bad_parameter."""
    if check_count(count) == 1:
        return 1
    chosen = devices.choose_device(device)
    if chosen.index is not None:
        raise PathoError("bad_parameter", "device", f"is {device!r}, one GPU, for {count} processes",
                         'Use device="cuda", and each takes a GPU of its own')
    check_gpus(count, chosen.type == "cuda")
    if count > recipe.batch_size:
        raise PathoError("bad_parameter", "processes", f"are {count}, more than the {recipe.batch_size} images of a "
                         "batch", "Use fewer processes, or a larger batch_size")
    return count


def has_ended(run: Run) -> bool:
    """Whether the run's training needs no more steps."""
    state = checkpoints.load(run.dir / "checkpoints", "last") or {}
    progress = state.get("progress", {})
    return bool(progress.get("reason")) and (progress["reason"] != "all epochs"
                                             or progress["epoch"] >= run.recipe.epochs)


def line(row: dict, recipe: Recipe, improved: bool) -> str:
    """One plain line per epoch, for logs."""
    score = row[f"val_{recipe.monitor}"]
    shown = "undefined" if score is None else f"{score:.4f}"
    return (f"epoch {row['epoch']:>3}/{recipe.epochs}  lr {row['lr']:.2e}  train loss {row['train_loss']:.4f}  "
            f"val loss {row['val_loss']:.4f}  val {recipe.monitor.replace('_', ' ')} {shown}{' *' * improved}  "
            f"{row['images_per_second']:.0f} images/s")


def _seed(*parts: int) -> int:
    """One 63-bit seed from several whole numbers."""
    return int(np.random.SeedSequence(parts).generate_state(2, np.uint32).astype(np.uint64) @ np.array(
        [1, 1 << 31], dtype=np.uint64)) & (2**63 - 1)


def main(arguments: Sequence[str] | None = None) -> int:
    """`python -m patholib.train.training FOLDER`: trains what `jobs.train` has handed over in FOLDER; the exit code.

    torchrun starts it in as many processes as share each batch. 0: trained; 2: refused; 130, 143: asked to stop, saved.
    """
    given = sys.argv[1:] if arguments is None else list(arguments)
    if len(given) != 1 or given[0].startswith("-"):
        print(main.__doc__, file=sys.stderr)
        return launching.REFUSED
    path, team = Path(given[0]), myself()
    launching.hold_lifeline()
    try:
        given = handover.HandedOver.read(path)
        with joined(devices.choose_device(given.facts["device"]).type == "cuda") as team:
            work = given.opened(team)
            check_processes(team.count, work.device, work.run.recipe)
            fit(work.model, work.images, work.run, work.device, work.workers, work.max_hours, team=team)
            work.run.close()
    except (PathoError, KeyboardInterrupt, SystemExit) as error:
        return launching.leave(team, error, path if path.is_dir() else None)
    return 0


if __name__ == "__main__":

    sys.exit(main())
