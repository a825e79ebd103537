"""The catalogue of faults during training, T01 to T24: what was done is kept, and what is said helps."""

import errno
import json
import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from tiny import TINY, image_set, open_run, pictures, prepare, same_bits, train, without_time

from patholib.base import files, locks
from patholib.base.errors import PathoError
from patholib.base.team import Team
from patholib.data import batching
from patholib.model import architectures, augment, losses, networks, recipes
from patholib.model.building import build
from patholib.model.recipes import BREAKHIS
from patholib.train import checkpoints, feeding, loop, optimising, resuming, runs, saving, training
from patholib.train.state import State

pytestmark = [pytest.mark.heavy, pytest.mark.usefixtures("small_network")]


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """An uninterrupted run: its model and history."""
    return train(tmp_path_factory.mktemp("straight"))


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setattr(saving.Path, "home", lambda: tmp_path / "home")
    return tmp_path / "home"


class Killed(Exception):
    """Stands for a process that is killed."""


def at_step(monkeypatch, number, what, before=False):
    """Lets `what(state)` happen once, at the given step of the process (from 1), after or before it."""
    original, seen = optimising.step, []

    def watched(state, batch):
        seen.append(state.progress.epoch)
        if len(seen) == number and before:
            what(state)
        original(state, batch)
        if len(seen) == number and not before:
            what(state)

    monkeypatch.setattr(optimising, "step", watched)


def die(*_):
    raise Killed


def refusal(call, *args, **options):
    with pytest.raises(PathoError) as stopped:
        call(*args, **options)
    return stopped.value


def events(folder):
    return [json.loads(line) for line in (folder / "run.jsonl").read_text().splitlines()]


# --- T01, T02: NaN and infinite numbers ---


def poison(state):
    """Makes a weight of the network NaN."""
    with torch.no_grad():
        next(state.model.parameters())[0, 0, 0, 0] = torch.nan


def test_T01_a_nan_loss_stops_at_its_step(tmp_path, monkeypatch, catalogue, straight):
    monkeypatch.setattr(saving, "SAVE_SECONDS", 0.0)
    with monkeypatch.context() as patch:
        at_step(patch, 6, poison, before=True)
        error = refusal(train, tmp_path)
    assert error.code == "nonfinite_loss" and error.subject == "epoch 2, step 2"
    assert "image0" in error.reason and "5e-03" not in error.subject and "learning rate 0.0" in error.reason
    catalogue("T01", "the loss is not finite", error)
    assert checkpoints.load(tmp_path / "checkpoints", "last")["progress"]["step"] == 1  # the one before it is intact
    assert same_bits(train(tmp_path)[0], straight[0])


def test_T01_an_infinite_gradient_never_reaches_the_weights(tmp_path, monkeypatch, catalogue):
    original = optimising.gradients

    def broken(state, batch):
        found = original(state, batch)
        next(state.model.parameters()).grad[0, 0, 0, 0] = torch.inf
        return found

    monkeypatch.setattr(optimising, "gradients", broken)
    error = refusal(train, tmp_path)
    assert error.code == "nonfinite_loss" and "the gradient is" in error.reason
    catalogue("T01", "the loss is finite, a gradient is not", error)


def test_T01_steps_that_the_fp16_scaler_skips_are_no_fault(tmp_path, monkeypatch, catalogue):
    scaler = torch.amp.GradScaler
    monkeypatch.setattr(torch.amp, "GradScaler", lambda device, enabled: scaler(device, 2.0**40, enabled=enabled))
    _, history = train(tmp_path, replace(TINY, precision="fp16", epochs=4))
    state = checkpoints.load(tmp_path / "checkpoints", "last")["scaler"]
    assert state["scale"] < 2.0**40 and history["train_loss"].notna().all()
    catalogue("T01", "a gradient overflows in fp16", "the scaler skips the step, and training continues")


@pytest.mark.parametrize("faults", [1, 4])
def test_T01_rollback_halves_the_rate_three_times_at_most(tmp_path, monkeypatch, catalogue, faults):
    monkeypatch.setattr(saving, "SAVE_SECONDS", 0.0)
    original, left = optimising.step, [faults]

    def poisoned(state, batch):
        if state.progress.epoch == 1 and state.progress.step == 2 and left[0]:
            left[0] -= 1
            poison(state)
        original(state, batch)

    monkeypatch.setattr(optimising, "step", poisoned)
    recipe = replace(TINY, on_nonfinite="rollback", schedule="constant")
    if faults == 4:
        assert refusal(train, tmp_path, recipe).code == "nonfinite_loss"
        catalogue("T01", 'on_nonfinite="rollback", four times', "stopped after the third")
    else:
        _, history = train(tmp_path, recipe)
        assert list(history["lr"]) == [recipe.lr, recipe.lr / 2]
        catalogue("T01", 'on_nonfinite="rollback"', "back to the last checkpoint, with half the rate, logged")
    logged = [event for event in events(tmp_path) if event["event"] == "rollback"]
    assert [event["number"] for event in logged] == list(range(1, min(faults, 3) + 1))
    assert checkpoints.load(tmp_path / "checkpoints", "last")["progress"]["rollbacks"] == min(faults, 3)


def test_T02_a_nan_weight_is_found_in_the_first_batch(tmp_path, catalogue):
    model = build(TINY)
    with torch.no_grad():
        model.head[1].weight[0, 0] = torch.nan
    error = refusal(training.fit, model, image_set(), open_run(tmp_path), device="cpu")
    assert error.code == "nonfinite_loss" and error.subject == "epoch 1, step 1"
    catalogue("T02", "a weight is NaN before training", error)


# --- T03: too little memory -------------------------------------------------------------------------------------------


def gradients(folder, parts, kind="cross_entropy"):
    """Gradients of one batch of unbalanced classes, computed in `parts`, with BatchNorm at rest."""
    recipe = replace(TINY, loss=kind, label_smoothing=0.0, batch_size=24)
    state = State(build(recipe), image_set(), open_run(folder, recipe), torch.device("cpu"))
    state.model.eval()
    state.loss = losses.Loss(kind, torch.tensor([0.3, 1.7]))
    state.progress.parts = parts
    pixels = torch.rand(24, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    labels = torch.tensor([0] * 19 + [1] * 5)
    sums = optimising.gradients(state, batching.Batch(pixels, labels, np.arange(24), np.arange(24)))
    return torch.cat([p.grad.flatten() for p in state.model.parameters()]), torch.stack(sums)


@pytest.mark.parametrize("kind", ["cross_entropy", "focal"])
@pytest.mark.parametrize("parts", [2, 3, 8])
def test_T03_a_batch_in_parts_has_the_gradient_of_the_whole(tmp_path, parts, kind, catalogue):
    (whole, sums), (split, split_sums) = gradients(tmp_path, 1, kind), gradients(tmp_path, parts, kind)
    assert torch.linalg.norm(whole - split) <= 1e-6 * torch.linalg.norm(whole)
    assert torch.allclose(sums, split_sums, rtol=1e-6)
    catalogue("T03", "a batch in parts, class weights, BatchNorm at rest", "the gradient of the whole batch")


def lacking_memory(monkeypatch, images_at_once):
    forward = networks.Classifier.forward

    def limited(self, batch):
        if torch.is_grad_enabled() and len(batch) > images_at_once:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return forward(self, batch)

    monkeypatch.setattr(networks.Classifier, "forward", limited)


def test_T03_where_batchnorm_learns_parts_must_be_allowed(tmp_path, monkeypatch, catalogue):
    lacking_memory(monkeypatch, 3)
    error = refusal(train, tmp_path)
    assert error.code == "out_of_memory" and "BatchNorm" in error.reason
    catalogue("T03", "out of GPU memory, BatchNorm learns", error)


def test_T03_parts_are_halved_until_they_fit_and_recorded(tmp_path, monkeypatch, catalogue):
    with monkeypatch.context() as patch:
        lacking_memory(patch, 3)
        at_step(patch, 6, die)
        patch.setattr(saving, "SAVE_SECONDS", 0.0)
        recipe = replace(TINY, micro_batches="always")
        with pytest.raises(Killed):
            train(tmp_path, recipe)
    _, history = train(tmp_path, recipe)  # now there is memory enough, but the run goes on as it began
    assert list(history["micro_batch"]) == [2, 2]
    assert [(e["event"], e.get("parts")) for e in events(tmp_path)][:2] == [("out_of_memory", 2), ("out_of_memory", 4)]
    catalogue("T03", 'out of GPU memory, micro_batches="always"', "the batch in parts, in the history and in run.jsonl")


def test_T03_a_batch_that_cannot_be_made_smaller_stops(tmp_path, monkeypatch, catalogue):
    lacking_memory(monkeypatch, 0)
    error = refusal(train, tmp_path, replace(TINY, micro_batches="always"))
    assert error.code == "out_of_memory"
    catalogue("T03", "not even two images fit", error)


def test_T03_where_one_of_several_processes_lacks_memory_the_run_ends(monkeypatch, catalogue):
    state = SimpleNamespace(model=build(TINY), recipe=replace(TINY, micro_batches="always"), team=Team(count=2))
    state.progress, state.scaler = SimpleNamespace(epoch=0, step=0, parts=1), None

    def lacking(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(optimising, "gradients", lacking)
    error = refusal(optimising.step, state, SimpleNamespace(labels=torch.zeros(16)))
    assert error.code == "out_of_memory" and "batch_size" in error.remedy
    catalogue("T03", "out of GPU memory in one of several processes", error)


# --- T05, T21: asked to stop ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "error"), [(signal.SIGTERM, SystemExit), (signal.SIGINT, KeyboardInterrupt)])
@pytest.mark.parametrize("where", ["step", "validation"])
def test_T05_a_signal_finishes_the_step_and_saves(tmp_path, monkeypatch, catalogue, straight, number, error, where):
    handler = signal.getsignal(number)

    def ask(*_):
        os.kill(os.getpid(), number)

    with monkeypatch.context() as patch:
        if where == "step":
            at_step(patch, 3, ask)
        else:
            validate = loop.validate
            patch.setattr(loop, "validate", lambda *given: (ask(), validate(*given))[1])
        with pytest.raises(error) as stopped:
            train(tmp_path)
    assert number != signal.SIGTERM or stopped.value.code == 143
    assert signal.getsignal(number) is handler
    progress = checkpoints.load(tmp_path / "checkpoints", "last")["progress"]
    assert (progress["epoch"], progress["step"]) == (0, 3 if where == "step" else 4)
    model, history = train(tmp_path)
    assert same_bits(model, straight[0])
    pd.testing.assert_frame_equal(without_time(history), without_time(straight[1]))
    said = "exit code 143" if number == signal.SIGTERM else "KeyboardInterrupt"
    catalogue(
        "T05",
        f"{number.name} during {'a step' if where == 'step' else 'validation'}",
        f"saved, left with {said}, resumed to the same bits",
    )


def test_T21_a_second_interrupt_leaves_at_once(tmp_path, monkeypatch, catalogue, straight):
    def twice(_state):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(saving, "SAVE_SECONDS", 0.0)
    with monkeypatch.context() as patch:
        at_step(patch, 3, twice, before=True)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path)
    assert checkpoints.load(tmp_path / "checkpoints", "last")["progress"]["step"] == 2  # the third was not finished
    assert same_bits(train(tmp_path)[0], straight[0])
    catalogue("T21", "KeyboardInterrupt twice", "left at once; the next start resumes from the last checkpoint")


# --- T07 to T10: disks ------------------------------------------------------------------------------------------------


def test_T07_what_a_killed_write_left_is_removed(tmp_path, catalogue):
    (tmp_path / "checkpoints").mkdir()
    left = tmp_path / "checkpoints" / ".last-000000004-0123456789abcdef.pt.x.part"
    table = tmp_path / ".history.csv.x.part"
    for part in (left, table):
        part.write_bytes(b"half")
    train(tmp_path)
    assert not left.exists() and not table.exists()
    catalogue("T07", "half a checkpoint of a killed process", "removed at the next start; the one before it is whole")


def test_T08_a_full_disk_is_told_and_tried_again(tmp_path, monkeypatch, catalogue, straight, home):
    monkeypatch.setattr(saving, "SAVE_SECONDS", 0.0)
    sync, calls = os.fsync, []

    def full(handle):
        calls.append(handle)
        if len(calls) in (2, 3):
            raise OSError(28, "No space left on device")
        sync(handle)

    monkeypatch.setattr(files.os, "fsync", full)
    model, _ = train(tmp_path)
    assert same_bits(model, straight[0]) and not home.exists()
    failed = [event for event in events(tmp_path) if event["event"] == "checkpoint_failed"]
    assert failed and "no_space" in failed[0]["why"] and str(tmp_path / "checkpoints") in failed[0]["why"]
    catalogue(
        "T08", "the disk is full for a moment", "the checkpoint before is kept, training continues and tries again"
    )


def vanished(folder):
    """Puts a file where the folder was, as a drive that went away and left its mount point."""
    shutil.rmtree(folder)
    folder.write_text("")


def test_T09_a_vanished_folder_ends_in_a_copy_in_the_home_folder(tmp_path, monkeypatch, catalogue, straight, home):
    monkeypatch.setattr(saving, "SAVE_SECONDS", 0.0)
    with monkeypatch.context() as patch:
        at_step(patch, 5, lambda state: vanished(state.folder))
        error = refusal(train, tmp_path / "run")
    rescue = home / ".patholib" / "rescue" / "run" / "checkpoints"
    assert error.code == "output_unwritable" and str(rescue) in error.remedy
    catalogue("T09", "the output folder vanishes during training", error)
    (tmp_path / "run" / "checkpoints").unlink()
    rescue.rename(tmp_path / "run" / "checkpoints")
    assert same_bits(train(tmp_path / "run")[0], straight[0])


def test_T09_where_the_home_folder_cannot_be_written_either_the_error_is_the_first(
    tmp_path, monkeypatch, catalogue, home
):
    home.write_text("")
    monkeypatch.setattr(saving, "SAVE_SECONDS", 0.0)
    at_step(monkeypatch, 2, lambda state: vanished(state.folder))
    error = refusal(train, tmp_path / "run")
    assert error.code == "output_unwritable" and "saved in" not in error.remedy
    catalogue("T09", "and the home folder cannot be written", error)


# --- T11 to T18, T22: resuming ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def own_data(tmp_path_factory):
    return pictures(tmp_path_factory.mktemp("set") / "pictures")


OWN = replace(TINY, group_by="group", batch_size=4)


def unfinished(folder, output, recipe=OWN):
    """A run that was started and closed; its name."""
    run = runs.start(recipe, *prepare(folder), output=output)
    run.close()
    return run.dir.name


def test_T11_a_changed_recipe_is_refused_with_its_changes(own_data, tmp_path, catalogue):
    name = unfinished(own_data, tmp_path)
    changed = replace(OWN, lr=5e-3, patience=3, augmentation=replace(OWN.augmentation, noise=0.1))
    error = refusal(runs.start, changed, *prepare(own_data), output=tmp_path, resume="must")
    assert error.code == "resume_changed" and error.subject == name
    assert "lr 0.01 -> 0.005" in error.reason and "augmentation.noise 0.0 -> 0.1" in error.reason
    assert "patience" not in error.reason  # which may change
    catalogue("T11", "another learning rate, resume=must", error)


def test_T11_with_auto_a_new_run_says_why_it_is_new(own_data, tmp_path, capsys, catalogue):
    name = unfinished(own_data, tmp_path)
    run = runs.start(replace(OWN, lr=5e-3), *prepare(own_data), output=tmp_path)
    said = capsys.readouterr().out
    assert run.dir.name != name and name in said and "lr 0.01 -> 0.005" in said
    catalogue("T11", "another learning rate, resume=auto", "a new run, and one line that says what is changed")


def test_T11_epochs_may_grow_and_may_not_shrink(own_data, tmp_path, catalogue):
    name = unfinished(own_data, tmp_path)
    run = runs.start(
        replace(OWN, epochs=5, patience=2, precision="bf16"), *prepare(own_data), output=tmp_path, resume="must"
    )
    assert run.dir.name == name
    run.close()
    error = refusal(runs.start, replace(OWN, epochs=1), *prepare(own_data), output=tmp_path, resume="must")
    assert "epochs 5 -> 1" in error.reason
    catalogue("T11", "more epochs, another patience or precision", "accepted")
    catalogue("T11", "fewer epochs", error)


def test_T12_changed_images_or_another_split_are_refused_by_name(own_data, tmp_path, catalogue):
    own = tmp_path / "own"
    shutil.copytree(own_data, own)
    name = unfinished(own, tmp_path / "out")
    checked, split = prepare(own)
    patient = split.loc[split["split"] == "train", "group"].iloc[0]
    moved = split.assign(split=split["split"].where(split["group"] != patient, "test"))
    error = refusal(runs.start, OWN, checked, moved, output=tmp_path / "out", resume="must")
    assert error.code == "resume_changed" and "images in another part of the split (such as " in error.reason
    catalogue("T12", "an image in another part of the split", error)
    Image.new("RGB", (40, 40), "red").save(own / "05.png")
    error = refusal(runs.start, OWN, *prepare(own), output=tmp_path / "out", resume="must")
    assert error.subject == name and "1 images changed (such as 05.png)" in error.reason
    catalogue("T12", "an image with other bytes", error)


def test_T12_a_checkpoint_of_another_run_is_refused(tmp_path, catalogue):
    train(tmp_path)
    run = replace(open_run(tmp_path), fingerprint="other")
    error = refusal(training.fit, build(TINY), image_set(), run, device="cpu")
    assert error.code == "resume_changed"
    catalogue("T12", "a checkpoint of another recipe, data set or split in the run folder", error)


def rewritten(folder, **changes):
    """The newest checkpoint with other entries, under a right name."""
    path = checkpoints.list_of(folder / "checkpoints", "last")[0]
    state = checkpoints.read(path) | changes
    checkpoints.save(folder / "checkpoints", "last", 10**6, state)


def test_T13_another_machine_resumes_and_says_what_differs(tmp_path, monkeypatch, capsys, catalogue):
    with monkeypatch.context() as patch:
        at_step(patch, 3, lambda state: (saving.Saving(state).write(), die(state)))
        with pytest.raises(Killed):
            train(tmp_path)
    rewritten(
        tmp_path,
        circumstances={"device": "cuda", "precision": "fp16", "threads": 64, "torch": "2.0.0", "fast": False},
        scaler={"scale": 1024.0, "growth_factor": 2.0},
    )
    capsys.readouterr()
    _, history = train(tmp_path)
    assert len(history) == 2 and "device cuda -> cpu" in capsys.readouterr().out
    assert events(tmp_path)[-1]["changed"]["torch"][0] == "2.0.0"
    catalogue("T13", "another device, precision, number of threads or torch", "resumes, and says what differs")


def test_T14_processes_that_share_a_batch_by_position_see_what_one_process_sees(catalogue):
    own = image_set()
    order = feeding.image_order(own.part("train").labels, replace(TINY, balance="sampler"), epoch=3)[:8]
    pixels = own.part("train").pictures[order]

    def views(rank, world):
        mine = slice(rank, None, world)
        return augment.training_views(pixels[mine], 32, BREAKHIS.augmentation, 0, 3, np.arange(8)[mine], order[mine])

    whole = views(0, 1)
    for world in (2, 3, 4):
        for rank in range(world):
            assert torch.equal(views(rank, world), whole[rank::world])
    catalogue("T14", "another number of processes", "positions r::n of the same global batch, the same views")


def test_T15_a_finished_run_is_opened_and_trains_nothing(own_data, tmp_path, monkeypatch, catalogue):
    checked, split = prepare(own_data)
    first = runs.start(OWN, checked, split, output=tmp_path)
    model, own = build(OWN), checked.images.with_split(split)
    history = training.fit(model, own, first, device="cpu")
    first.finish()
    monkeypatch.setattr(optimising, "step", lambda *_: pytest.fail("trained again"))
    again = runs.start(OWN, checked, split, output=tmp_path, resume="must")
    assert again.dir == first.dir
    other = build(OWN)
    pd.testing.assert_frame_equal(training.fit(other, own, again, device="cpu"), history)
    assert same_bits(model, other)
    catalogue("T15", "a finished run, resume=must", "nothing is trained; the same weights and history")


def hold(path, ready, leave):
    lock = locks.take(path)
    ready.set()
    leave.wait(60)
    del lock
    os._exit(0)


@pytest.mark.parametrize("system", ["lock", "marker"])
def test_T16_a_second_process_is_refused_by_name(tmp_path, monkeypatch, catalogue, system):
    if system != "lock":
        without_locks(monkeypatch)
    first = locks.take(tmp_path / "run.lock")
    assert locks.take(tmp_path / "run.lock") is None
    assert locks.holder(tmp_path / "run.lock") == f"process {os.getpid()} on {socket.gethostname()}"
    first.close()
    again = locks.take(tmp_path / "run.lock")
    assert again is not None
    again.close()
    where = "" if system == "lock" else ", on a drive without locks"
    catalogue("T16", f"two runs in one folder{where}", "the second is refused; it names the process and machine")


def without_locks(monkeypatch):
    """As on a network drive that has no locks."""
    import fcntl

    def flock(_handle, _operation):
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", flock)


def test_T16_a_drive_without_locks_notices_a_dead_process(tmp_path, monkeypatch, catalogue):
    code = (
        "import sys, time; from pathlib import Path; from patholib.base import locks\n"
        "import pytest, test_catalogue_training as t; t.without_locks(pytest.MonkeyPatch())\n"
        "held = locks.take(Path(sys.argv[1])); print(held is not None, flush=True); time.sleep(60)"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, tmp_path / "run.lock"],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parent,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert other.stdout.readline().strip() == "True"
    without_locks(monkeypatch)
    assert locks.take(tmp_path / "run.lock") is None
    other.kill()
    other.communicate()
    second = locks.take(tmp_path / "run.lock")
    assert second is not None
    second.close()
    catalogue("T16", "the first was killed, on a drive without locks", "the folder is free at once on the same machine")


def test_T16_a_holder_on_another_machine_is_named_with_what_to_delete(tmp_path):
    held = locks.take(tmp_path / "run.lock")
    (tmp_path / "run.holder.lock").write_text("process 1 on elsewhere")
    assert locks.holder(tmp_path / "run.lock") == "process 1 on elsewhere (if that has ended, delete run.*lock)"
    held.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_T16_a_lock_vanishes_with_a_killed_process(tmp_path, catalogue):
    context = multiprocessing.get_context("spawn")
    ready, leave = context.Event(), context.Event()
    process = context.Process(target=hold, args=(tmp_path / "run.lock", ready, leave), daemon=True)
    process.start()
    assert ready.wait(60) and locks.take(tmp_path / "run.lock") is None
    assert f"process {process.pid} " in locks.holder(tmp_path / "run.lock")
    process.kill()
    process.join()
    lock = locks.take(tmp_path / "run.lock")
    assert lock is not None
    lock.close()
    catalogue("T16", "the first was killed", "the folder is free at once")


def test_T16_a_busy_run_is_left_alone(own_data, tmp_path, capsys, catalogue):
    first = runs.start(OWN, *prepare(own_data), output=tmp_path)
    error = refusal(runs.start, OWN, *prepare(own_data), output=tmp_path, resume="must")
    assert error.code == "run_locked" and f"process {os.getpid()} on" in error.reason
    catalogue("T16", "a run that another process trains, resume=must", error)
    second = runs.start(OWN, *prepare(own_data), output=tmp_path)
    assert second.dir != first.dir and "is in use by process" in capsys.readouterr().out


@pytest.mark.parametrize("moment", ["in validation", "between step and checkpoint"])
def test_T17_a_kill_where_nothing_is_saved_repeats_what_was_lost(tmp_path, monkeypatch, catalogue, straight, moment):
    monkeypatch.setattr(saving, "SAVE_SECONDS", 0.0)
    with monkeypatch.context() as patch:
        if moment == "in validation":
            patch.setattr(loop, "validate", die)
        else:
            at_step(patch, 3, die)
        with pytest.raises(Killed):
            train(tmp_path)
    model, history = train(tmp_path)
    assert same_bits(model, straight[0])
    pd.testing.assert_frame_equal(without_time(history), without_time(straight[1]))
    catalogue("T17", f"killed {moment}", "repeated from the checkpoint, the same bits")


def test_T18_order_and_names_do_not_depend_on_the_clock(own_data, tmp_path, monkeypatch, catalogue):
    for step in (1, 2):
        path = checkpoints.save(tmp_path / "checkpoints", "last", step, {"step": step})
        os.utime(path, (10**9 - step * 10**6,) * 2)  # the clock was set back between the two
    assert checkpoints.load(tmp_path / "checkpoints", "last") == {"step": 2}

    class Stopped(runs.datetime):
        @classmethod
        def now(cls, tz=None):
            return runs.datetime(2026, 1, 1, tzinfo=tz)

    monkeypatch.setattr(runs, "datetime", Stopped)
    names = {runs.start(OWN, *prepare(own_data), output=tmp_path / "out", resume="never").dir.name for _ in range(3)}
    assert len(names) == 3
    catalogue("T18", "the clock jumps back, two runs in one second", "the newest is known by its step; two folders")


def test_T20_with_every_block_frozen_the_head_still_learns(tmp_path, catalogue):
    frozen = replace(TINY, stages=(recipes.Stage(0, len(architectures.NETWORKS["resnet18"].blocks), 1.0),))
    before = build(frozen)
    model, history = train(tmp_path, frozen)
    changed = {k for k, v in model.state_dict().items() if not torch.equal(v, before.state_dict()[k])}
    assert changed and all(k.startswith("net.fc.") for k in changed) and (history["trainable_share"] > 0).all()
    catalogue("T20", "every block of the backbone frozen", "accepted: the head learns, and the history says what share")


def test_T22_a_checkpoint_of_a_newer_version_or_another_network_is_refused(tmp_path, catalogue):
    train(tmp_path)
    rewritten(tmp_path, version=99)
    error = refusal(train, tmp_path)
    assert error.code == "checkpoint_version" and "99" in error.reason
    catalogue("T22", "a checkpoint of a newer version", error)
    rewritten(tmp_path, version=resuming.VERSION)
    error = refusal(train, tmp_path, replace(TINY, head_width=24))
    assert error.code == "resume_changed" and "net.fc.1.weight (16, 32) -> (24, 32)" in error.reason
    catalogue("T22", "a checkpoint of another network", error)


def test_T24_a_table_that_cannot_be_written_is_told_and_training_goes_on(
    tmp_path, monkeypatch, capsys, catalogue, straight
):
    def fails(*_):
        raise PathoError("no_space", "history.csv", "cannot be written", "Free some space")

    monkeypatch.setattr(files, "write_table", fails)
    model, _ = train(tmp_path)
    assert same_bits(model, straight[0]) and "history not written" in capsys.readouterr().out
    catalogue("T24", "the history cannot be written", "reported, and training continues")
