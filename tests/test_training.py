"""Training learns what is there, does not learn what is not, and an interruption changes nothing."""

import contextlib
import json
import os
import shutil
import signal
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from tiny import TINY, image_set, network, open_run, same_bits, train, without_time

from patholib import checkpoints, training
from patholib.errors import PathoError
from patholib.models import build
from patholib.recipes import Stage


@pytest.fixture(scope="module", autouse=True)
def small_network():
    with network():
        yield


def test_a_planted_cue_is_learnt_and_the_history_is_kept(tmp_path):
    _, history = train(tmp_path, replace(TINY, epochs=4))
    assert history["val_auc"].iloc[-1] > 0.95
    assert list(history["epoch"]) == [1, 2, 3, 4]
    stored = pd.read_csv(tmp_path / "history.csv")
    assert np.allclose(stored["val_loss"], history["val_loss"], rtol=0, atol=0)
    assert json.loads((tmp_path / "history.json").read_text())[3]["train_loss"] == history["train_loss"].iloc[3]
    assert {"lr", "frozen", "trainable_share", "train_accuracy", "val_balanced_accuracy", "gap", "seconds",
            "images_per_second", "gpu_memory_mb"} < set(history)


def test_shuffled_labels_are_not_learnt(tmp_path):
    images = image_set(train=64, val=64, cue=60)
    rng = np.random.default_rng(1)
    table = images.table.assign(label=rng.permutation(images.table["label"].to_numpy()))
    _, history = train(tmp_path, replace(TINY, epochs=3), replace(images, table=table))
    assert history["val_auc"].between(0.3, 0.7).all()  # three standard errors of an AUC of 0.5 at 32 against 32


def test_the_weights_of_the_best_epoch_are_returned(tmp_path):
    recipe = replace(TINY, epochs=4)
    model, history = train(tmp_path, recipe)
    best = int(history["val_auc"].to_numpy().argmax()) + 1
    kept = checkpoints.load(tmp_path / "checkpoints", "best", best)["model"]
    assert all(torch.equal(v, kept[k]) for k, v in model.state_dict().items())


class Killed(Exception):
    """Stands for a process that ends without a word."""


@pytest.fixture(scope="module")
def straight_run(tmp_path_factory):
    """An uninterrupted run of 2 epochs, 4 steps each."""
    return train(tmp_path_factory.mktemp("straight"))


@pytest.mark.parametrize("step", [1, 3, 4, 5, 7])
def test_resuming_after_any_step_changes_nothing(tmp_path, monkeypatch, straight_run, step):
    straight, expected = straight_run
    monkeypatch.setattr(training, "SAVE_SECONDS", 0.0)  # a checkpoint after every step
    original = training.Learner.step
    seen = []

    def dying(self, batch, epoch):
        if len(seen) == step:
            raise Killed
        seen.append(epoch)
        original(self, batch, epoch)

    monkeypatch.setattr(training.Learner, "step", dying)
    with pytest.raises(Killed):
        train(tmp_path / "broken")
    monkeypatch.setattr(training.Learner, "step", original)
    resumed, history = train(tmp_path / "broken", workers=1 + step % 3)
    assert same_bits(straight, resumed)
    pd.testing.assert_frame_equal(without_time(expected), without_time(history))


def test_resuming_through_stages_plateau_and_best_changes_nothing(tmp_path, monkeypatch):
    recipe = replace(TINY, epochs=4, stages=(Stage(0, 5, 1.0), Stage(0.5, 0, 0.5)), schedule="plateau",
                     plateau_patience=0, balance="sampler", optimizer="adamw", batchnorm="adapt", clip_norm=0.5)
    straight, expected = train(tmp_path / "straight", recipe)
    original = training.Learner._finish_epoch
    for epochs in (1, 3):
        def dying(self, *args, epochs=epochs):
            original(self, *args)
            if self.progress.epoch == epochs:
                self.saving.write(self)
                raise Killed

        monkeypatch.setattr(training.Learner, "_finish_epoch", dying)
        with pytest.raises(Killed):
            train(tmp_path / "broken", recipe)
    monkeypatch.setattr(training.Learner, "_finish_epoch", original)
    resumed, history = train(tmp_path / "broken", recipe)
    assert same_bits(straight, resumed)
    pd.testing.assert_frame_equal(without_time(expected), without_time(history))
    assert list(history["frozen"]) == [5, 5, 0, 0]


PLATEAU = replace(TINY, schedule="plateau", plateau_patience=0)


@pytest.fixture(scope="module")
def broken_run(tmp_path_factory):
    """An uninterrupted run, and the folder of one that died in its second epoch."""
    folder, original, seen = tmp_path_factory.mktemp("broken"), training.Learner.step, []

    def dying(self, batch, epoch):
        if len(seen) == 6:
            raise Killed
        seen.append(epoch)
        original(self, batch, epoch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "SAVE_SECONDS", 0.0)
        patch.setattr(training.Learner, "step", dying)
        with pytest.raises(Killed):
            train(folder, PLATEAU)
    return train(tmp_path_factory.mktemp("straight"), PLATEAU), folder


@pytest.mark.parametrize("part", ["nothing", "model", "optimizer", "step", "sums", "history", "epoch"])
def test_every_part_of_a_checkpoint_is_needed(tmp_path, monkeypatch, broken_run, part):
    """Forgetting any one part when resuming must change the result, or the tests above would prove nothing."""
    (straight, expected), folder = broken_run
    shutil.copytree(folder, tmp_path / "broken")
    recipe, load = PLATEAU, checkpoints.load
    blank = {"model": build(replace(recipe, seed=9)).state_dict(), "step": 0, "sums": dict(training.NO_SUMS),
             "epoch": 0, "history": []}
    blank["optimizer"] = torch.optim.Adam(build(recipe).parameters(), lr=recipe.lr,
                                          weight_decay=recipe.weight_decay).state_dict()

    def forgetful(folder, kind, step=None):
        state = load(folder, kind, step)
        if kind == "last" and part in state:
            return state | {part: blank[part]}
        if kind == "last" and part in blank:
            return state | {"progress": state["progress"] | {part: blank[part]}}
        return state

    monkeypatch.setattr(checkpoints, "load", forgetful)
    try:
        resumed, history = train(tmp_path / "broken", recipe)
    except (PathoError, KeyError):  # refused, which is as good as noticed
        assert part != "nothing"
        return
    same = without_time(expected).equals(without_time(history)) and same_bits(straight, resumed)
    assert same == (part == "nothing")


def test_a_finished_run_is_not_trained_again(tmp_path, monkeypatch):
    model, history = train(tmp_path)
    monkeypatch.setattr(training.Learner, "step", lambda *_: pytest.fail("trained again"))
    again, same = train(tmp_path)
    assert same_bits(model, again)
    pd.testing.assert_frame_equal(history, same)


def test_more_epochs_go_on_where_a_finished_run_ended(tmp_path):
    recipe = replace(TINY, schedule="constant")
    train(tmp_path, replace(recipe, epochs=1))
    longer, history = train(tmp_path, replace(recipe, epochs=2))
    straight, expected = train(tmp_path / "straight", replace(recipe, epochs=2))
    assert same_bits(longer, straight)
    pd.testing.assert_frame_equal(without_time(expected), without_time(history))


def test_another_recipe_does_not_take_up_the_checkpoint(tmp_path):
    train(tmp_path)
    run = replace(open_run(tmp_path), fingerprint="other")
    with pytest.raises(PathoError) as stopped:
        training.fit(build(TINY), image_set(), run, "cpu")
    assert stopped.value.code == "resume_changed"


def test_the_time_limit_saves_and_says_how_to_go_on(tmp_path, straight_run):
    with pytest.raises(PathoError, match="resume") as stopped:
        train(tmp_path, max_hours=0.0)
    assert stopped.value.code == "time_is_up"
    resumed, _ = train(tmp_path)
    assert same_bits(resumed, straight_run[0])


@pytest.mark.parametrize(("number", "error"), [(signal.SIGTERM, SystemExit), (signal.SIGINT, KeyboardInterrupt)])
def test_a_signal_finishes_the_step_and_saves(tmp_path, monkeypatch, straight_run, number, error):
    original, seen = training.Learner.step, []

    def signalled(self, batch, epoch):
        seen.append(epoch)
        if len(seen) == 3:
            os.kill(os.getpid(), number)
        original(self, batch, epoch)

    handler = signal.getsignal(number)
    monkeypatch.setattr(training.Learner, "step", signalled)
    with pytest.raises(error):
        train(tmp_path)
    assert signal.getsignal(number) is handler
    assert checkpoints.load(tmp_path / "checkpoints", "last")["progress"]["step"] == 3
    monkeypatch.setattr(training.Learner, "step", original)
    resumed, _ = train(tmp_path)
    assert same_bits(resumed, straight_run[0])


def test_a_loss_that_is_not_finite_stops_with_the_files_of_the_batch(tmp_path, monkeypatch):
    monkeypatch.setattr(training.losses, "build", lambda *_: NotFinite())
    with pytest.raises(PathoError, match=r"image\d{3}\.png") as stopped:
        train(tmp_path)
    assert stopped.value.code == "nonfinite_loss" and "epoch 1, step 1" in stopped.value.subject


class NotFinite(torch.nn.Module):
    def total(self, logits, labels):
        return logits.sum() * float("nan"), self.weight(labels)

    def weight(self, labels):
        return torch.tensor(1.0)


def test_a_failed_checkpoint_does_not_end_the_training(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "SAVE_SECONDS", 0.0)
    original, calls = checkpoints.save, []

    def full(*args, **options):
        calls.append(args)
        if len(calls) in (2, 5):
            raise PathoError("no_space", "checkpoints", "the disk is full", "Free some")
        return original(*args, **options)

    monkeypatch.setattr(checkpoints, "save", full)
    _, history = train(tmp_path)
    assert len(history) == 2


def test_the_best_weights_that_the_last_state_refers_to_outlive_writes_that_fail(tmp_path, monkeypatch):
    """The disk holds the best weights of every epoch, but after the first not the state that would refer to them."""
    original, seen = checkpoints.save, []
    recipe = replace(TINY, epochs=4, schedule="constant")

    def full(folder, kind, step, state, **options):
        if tmp_path / "home" in folder.parents:
            raise PathoError("no_space", "home", "the disk is full", "Free some")
        seen.append(kind)
        if kind == "last" and seen.count("last") > 1:
            raise PathoError("no_space", "checkpoints", "the disk is full", "Free some")
        return original(folder, kind, step, state, **options)

    finish = training.Learner._finish_epoch

    def improving(self, *args):
        finish(self, *args)
        self.best, self.saving.best_is_new = self._weights(self.progress.history[-1]), True
        self.progress.history[-1]["val_auc"] = self.progress.epoch / 100  # every epoch is the best so far
        if self.progress.epoch < 4:
            with contextlib.suppress(PathoError):
                self.saving.write(self)
            self.saving.failures = 0
            return
        raise Killed

    monkeypatch.setattr(checkpoints, "save", full)
    monkeypatch.setattr(training.Learner, "_finish_epoch", improving)
    monkeypatch.setattr(training.Saving, "due", lambda *_, **__: None)
    monkeypatch.setattr(training.Path, "home", lambda: tmp_path / "home")
    with pytest.raises(Killed):
        train(tmp_path, recipe)
    assert seen.count("best") == 3 and seen.count("last") == 3
    learner = training.Learner(build(recipe), image_set(), open_run(tmp_path, recipe), torch.device("cpu"), 1)
    learner.resume()
    assert learner.progress.epoch == 1 and learner.best["row"]["epoch"] == 1


def test_the_callers_generators_and_switches_are_left_alone(tmp_path):
    torch.manual_seed(5)
    before = torch.get_rng_state(), torch.are_deterministic_algorithms_enabled()
    train(tmp_path, replace(TINY, epochs=1))
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == torch.are_deterministic_algorithms_enabled()


def test_the_order_is_a_function_of_seed_and_epoch_alone():
    labels = np.array([0] * 90 + [1] * 10)
    a = training.image_order(labels, TINY, 3)
    assert (a == training.image_order(labels, TINY, 3)).all() and sorted(a) == list(range(100))
    assert (a != training.image_order(labels, TINY, 4)).any()
    assert (a != training.image_order(labels, replace(TINY, seed=1), 3)).any()


def test_a_sampler_draws_every_class_equally_often():
    labels = np.array([0] * 900 + [1] * 100)
    drawn = labels[training.image_order(labels, replace(TINY, balance="sampler"), 0)]
    assert len(drawn) == 1000 and abs(drawn.mean() - 0.5) < 0.05  # three standard errors


