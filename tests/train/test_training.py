"""Training learns what is there, does not learn what is not, and an interruption changes nothing."""

import contextlib
import json
import shutil
from copy import deepcopy
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from tiny import TINY, image_set, open_run, same_bits, train, without_time

from patholib.base.errors import PathoError
from patholib.model.building import build
from patholib.model.recipes import Stage
from patholib.train import checkpoints, devices, feeding, loop, optimising, resuming, saving
from patholib.train.state import State

pytestmark = [pytest.mark.heavy, pytest.mark.usefixtures("small_network")]


def test_a_planted_cue_is_learnt_and_the_history_is_kept(tmp_path):
    _, history = train(tmp_path, replace(TINY, epochs=6))
    assert history["val_auc"].iloc[-1] > 0.95
    assert list(history["epoch"]) == [1, 2, 3, 4, 5, 6]
    stored = pd.read_csv(tmp_path / "history.csv", dtype=str)
    assert [float(text) for text in stored["val_loss"]] == list(history["val_loss"])
    assert json.loads((tmp_path / "history.json").read_text())[5]["train_loss"] == history["train_loss"].iloc[5]
    assert {
        "lr",
        "frozen",
        "trainable_share",
        "train_accuracy",
        "val_balanced_accuracy",
        "gap",
        "seconds",
        "images_per_second",
        "gpu_memory_mb",
    } < set(history)


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


def test_the_weights_of_the_last_epoch_are_returned_where_the_recipe_keeps_them(tmp_path):
    model, history = train(tmp_path, replace(TINY, epochs=3, lr=0.05, keep="last"))
    kept = checkpoints.load(tmp_path / "checkpoints", "best", 3)["model"]
    assert all(torch.equal(v, kept[k]) for k, v in model.state_dict().items())
    assert history["val_auc"].to_numpy().argmax() < 2  # the best was another one


class Killed(Exception):
    """Stands for a process that is killed."""


@pytest.fixture(scope="module")
def straight_run(tmp_path_factory):
    """An uninterrupted run of 2 epochs, 4 steps each."""
    return train(tmp_path_factory.mktemp("straight"))


RICH = replace(
    TINY,
    epochs=4,
    stages=(Stage(0, 5, 1.0), Stage(0.5, 0, 0.5)),
    schedule="plateau",
    plateau_patience=0,
    balance="sampler",
    optimizer="adamw",
    batchnorm="adapt",
    clip_norm=0.5,
    head_dropout=(0.5, 0.3),
)
RECIPES = {
    "plain": TINY,
    "stages, plateau, sampler, adapting BatchNorm, clipping, dropout": RICH,
    "early stopping, focal loss, all batches": replace(
        TINY,
        epochs=6,
        patience=1,
        stop="any_epoch",
        loss="focal",
        label_smoothing=0.0,
        schedule="constant",
        drop_last=False,
        batch_size=12,
    ),
    "fp16 with skipped steps": replace(TINY, precision="fp16", epochs=3),
    "averaged weights, warm-up, colours, logit adjustment": replace(
        TINY, epochs=3, ema=0.9, warm_up=2, colour=4, balance="logit_adjustment"
    ),
}


def large_scale(patch):
    """Lets the fp16 scaler begin so high that the first steps overflow and are skipped."""
    scaler = torch.amp.GradScaler
    patch.setattr(torch.amp, "GradScaler", lambda device, enabled: scaler(device, 2.0**20, enabled=enabled))


@pytest.mark.parametrize("name", RECIPES)
def test_resuming_after_any_step_changes_nothing(tmp_path, monkeypatch, name):
    """Every step's checkpoint is kept aside; a run that resumes from it must end with the same bits."""
    recipe = RECIPES[name]
    large_scale(monkeypatch)
    straight, expected = train(tmp_path / "straight", recipe)
    assert "stopping" not in name or len(expected) < recipe.epochs
    write = saving.Saving.write
    copies = []

    def kept(self, must=True):
        write(self, must)
        copies.append(tmp_path / f"broken{len(copies)}")
        shutil.copytree(self.state.run.dir, copies[-1])

    with monkeypatch.context() as patch:
        patch.setattr(saving, "SAVE_SECONDS", 0.0)
        patch.setattr(saving.Saving, "write", kept)
        watched, _ = train(tmp_path / "watched", recipe)
    assert same_bits(straight, watched)
    steps = sum(checkpoints.load(copy / "checkpoints", "last")["progress"]["step"] > 0 for copy in copies)
    assert steps == len(expected) * (32 // recipe.batch_size + (0 if recipe.drop_last else 1))
    skipped = [checkpoints.load(copy / "checkpoints", "last")["scaler"].get("scale", 0) for copy in copies]
    assert "fp16" not in name or 2 < len(set(skipped)) < steps
    for number, copy in enumerate(copies):
        resumed, history = train(copy, recipe, workers=1 + number % 3)
        assert same_bits(straight, resumed), copy.name
        pd.testing.assert_frame_equal(without_time(expected), without_time(history))


MUTATED = replace(
    RICH, stages=(Stage(0, 0, 1.0),), precision="fp16", micro_batches="always", on_nonfinite="rollback", ema=0.9
)
PARTS = ("model", "average", "optimizer", "scaler", "epoch", "step", "sums", "history", "parts", "rollbacks")


@pytest.fixture(scope="module")
def broken_run(tmp_path_factory):
    """An uninterrupted run with all that can happen on the way, and the folder of one that died in its third epoch."""

    def eventful(folder, dies):
        optimise, gradients = optimising.step, optimising.gradients
        faults, seen = {"memory", "loss"}, []

        def short_of_memory(state, batch):
            if "memory" in faults:
                faults.remove("memory")
                raise torch.OutOfMemoryError("out of memory")
            found = gradients(state, batch)
            if "loss" in faults and state.progress.epoch == 1:
                faults.remove("loss")
                found[0] = found[0] * float("nan")
            return found

        def dying(state, batch):
            seen.append(state.progress.epoch)
            optimise(state, batch)
            if dies and seen.count(2) == 2:
                saving.Saving(state).write()
                raise Killed

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(saving, "SAVE_SECONDS", 0.0)
            large_scale(patch)
            patch.setattr(optimising, "step", dying)
            patch.setattr(optimising, "gradients", short_of_memory)
            with pytest.raises(Killed) if dies else contextlib.nullcontext():
                return train(folder, MUTATED)

    folder = tmp_path_factory.mktemp("broken")
    eventful(folder, dies=True)
    return eventful(tmp_path_factory.mktemp("straight"), dies=False), folder


@pytest.mark.parametrize("part", ["nothing", *PARTS])
def test_every_part_of_a_checkpoint_is_needed(tmp_path, monkeypatch, broken_run, part):
    """Forgetting any one part when resuming must change the result, or the tests above would prove nothing."""
    (straight, expected), folder = broken_run
    shutil.copytree(folder, tmp_path / "broken")
    large_scale(monkeypatch)
    fresh = resuming.content(
        State(build(replace(MUTATED, seed=9)), image_set(), open_run(tmp_path / "fresh", MUTATED), torch.device("cpu"))
    )
    load = checkpoints.load

    def forgetful(folder, kind, step=None, holds=()):
        state = load(folder, kind, step)
        if kind == "last" and part in ("model", "average", "optimizer", "scaler"):
            state[part] = fresh[part]
        elif kind == "last" and part != "nothing":
            state["progress"][part] = fresh["progress"][part]
        return state

    monkeypatch.setattr(checkpoints, "load", forgetful)
    try:
        resumed, history = train(tmp_path / "broken", MUTATED)
    except (PathoError, KeyError):  # refused, which is as good as noticed
        assert part != "nothing"
        return
    same = without_time(expected).equals(without_time(history)) and same_bits(straight, resumed)
    assert same == (part == "nothing")


def test_the_mutations_cover_all_that_a_checkpoint_holds(broken_run):
    state = checkpoints.load(broken_run[1] / "checkpoints", "last")
    told = {"version", "fingerprint", "circumstances", "reason", "saving"}  # T22, T12, T13, T15, a figure in run.json
    assert set(PARTS) | told == (set(state) | set(state["progress"])) - {"progress"}


def test_the_weights_that_are_judged_are_the_mean_of_those_of_every_step(tmp_path, monkeypatch):
    """Recomputed from every step's weights; and training itself goes where it goes without the mean."""
    recipe = replace(TINY, epochs=1, ema=0.9)
    optimise, seen = optimising.step, []

    def watched(state, batch):
        if not seen:
            seen.append(deepcopy(state.model.state_dict()))
        optimise(state, batch)
        seen.append(deepcopy(state.model.state_dict()))

    monkeypatch.setattr(optimising, "step", watched)
    kept, _ = train(tmp_path / "averaged", recipe)
    expected = {k: v.double() for k, v in seen[0].items()}
    for number, state in enumerate(seen[1:], 1):
        share = min(0.9, (1 + number) / (10 + number))
        expected = {k: share * v + (1 - share) * state[k].double() for k, v in expected.items()}
    for name, value in kept.state_dict().items():
        truth = expected[name] if value.is_floating_point() else seen[-1][name]
        torch.testing.assert_close(value, truth.to(value.dtype), rtol=1e-4, atol=1e-6)
    last = seen[-1]
    seen.clear()
    train(tmp_path / "plain", TINY, max_hours=None)
    assert all(torch.equal(v, last[k]) for k, v in seen[4].items())  # after the same four steps


def test_more_epochs_resume_where_a_finished_run_ended(tmp_path):
    recipe = replace(TINY, schedule="constant")
    train(tmp_path, replace(recipe, epochs=1))
    longer, history = train(tmp_path, replace(recipe, epochs=2))
    straight, expected = train(tmp_path / "straight", replace(recipe, epochs=2))
    assert same_bits(longer, straight)
    pd.testing.assert_frame_equal(without_time(expected), without_time(history))


def test_the_time_limit_saves_and_says_how_to_resume(tmp_path, straight_run):
    with pytest.raises(PathoError, match="resume") as stopped:
        train(tmp_path, max_hours=0.0)
    assert stopped.value.code == "time_is_up"
    resumed, _ = train(tmp_path)
    assert same_bits(resumed, straight_run[0])


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

    finish = loop.finish_epoch

    def improving(state, writer):
        finish(state, writer)
        loop.keep_best(state)
        state.progress.history[-1]["val_auc"] = state.progress.epoch / 100  # every epoch is the best so far
        if state.progress.epoch == 4:
            raise Killed
        with contextlib.suppress(PathoError):
            writer.write()
        writer.failures = 0

    monkeypatch.setattr(checkpoints, "save", full)
    monkeypatch.setattr(loop, "finish_epoch", improving)
    monkeypatch.setattr(saving.Saving, "due", lambda *_, **__: None)
    monkeypatch.setattr(saving.Path, "home", lambda: tmp_path / "home")
    with pytest.raises(Killed):
        train(tmp_path, recipe)
    assert seen.count("best") == 3 and seen.count("last") == 3
    state = State(build(recipe), image_set(), open_run(tmp_path, recipe), torch.device("cpu"))
    resuming.resume(state)
    assert state.progress.epoch == 1 and state.best["row"]["epoch"] == 1


def test_the_callers_generators_and_switches_are_left_alone(tmp_path):
    torch.manual_seed(5)
    state, before = torch.get_rng_state(), switches()
    train(tmp_path, replace(TINY, epochs=1))
    assert torch.equal(state, torch.get_rng_state()) and switches() == before


def switches():
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.utils.deterministic.fill_uninitialized_memory,
        torch.get_float32_matmul_precision(),
        torch.backends.cudnn.benchmark,
        torch.backends.cudnn.allow_tf32,
    )


@pytest.mark.parametrize("fast", [False, True])
def test_single_precision_is_rounded_to_tf32_only_where_speed_is_asked_for(fast):
    before = switches()
    with devices.backend(fast):
        assert switches() == (not fast, True, False, "high" if fast else "highest", fast, fast)
    assert switches() == before


def test_the_order_is_a_function_of_seed_and_epoch_alone():
    labels = np.array([0] * 90 + [1] * 10)
    a = feeding.image_order(labels, TINY, 3)
    assert (a == feeding.image_order(labels, TINY, 3)).all() and sorted(a) == list(range(100))
    assert (a != feeding.image_order(labels, TINY, 4)).any()
    assert (a != feeding.image_order(labels, replace(TINY, seed=1), 3)).any()


def test_a_sampler_draws_every_class_equally_often():
    labels = np.array([0] * 900 + [1] * 100)
    drawn = labels[feeding.image_order(labels, replace(TINY, balance="sampler"), 0)]
    assert len(drawn) == 1000 and abs(drawn.mean() - 0.5) < 0.05  # three standard errors


@pytest.mark.parametrize(("computes", "chosen"), [(True, "bf16"), (False, "fp32")])
def test_a_cpu_takes_bf16_only_where_it_is_real(monkeypatch, computes, chosen):
    monkeypatch.setattr(devices, "cpu_computes_bf16", lambda: computes)
    assert devices.choose_precision("auto", torch.device("cpu"))[0] == chosen
    assert devices.choose_precision("fp16", torch.device("cpu"))[0] == "fp16"


def test_a_resumed_run_keeps_the_precision_it_began_with_on_another_machine(tmp_path, monkeypatch):
    recipe = replace(TINY, precision="auto")
    monkeypatch.setattr(devices, "choose_precision", lambda *_: ("bf16", "as this machine says"))
    straight, _ = train(tmp_path / "straight", recipe)
    with pytest.raises(PathoError, match="time_is_up"):
        train(tmp_path / "broken", recipe, max_hours=1e-9)
    monkeypatch.setattr(devices, "choose_precision", lambda *_: ("fp32", "as that machine says"))
    resumed, _ = train(tmp_path / "broken", recipe)
    assert same_bits(straight, resumed)


@pytest.mark.parametrize("cost", [0.05, 0.6, 2.9])  # seconds for a checkpoint; 0.6 is a ResNet50 on a plain disk
@pytest.mark.parametrize("steps_per_epoch", [10, 60, 2000])
def test_checkpoints_take_one_percent_of_the_time_and_a_kill_at_most_five_minutes(
    monkeypatch, tmp_path, cost, steps_per_epoch
):
    """Ten hours of steps of a second by a clock that only work moves."""
    clock, saved, lost, spent = [0.0], [0.0], [], []
    monkeypatch.setattr(saving.time, "monotonic", lambda: clock[0])

    def written(_folder):
        lost.append(clock[0] - saved[0])
        clock[0] += cost
        spent.append(cost)
        saved[0] = clock[0]

    state = State(build(TINY), image_set(), open_run(tmp_path), torch.device("cpu"))
    writer = saving.Saving(state)
    monkeypatch.setattr(writer, "write_to", written)
    while clock[0] < 36_000:
        clock[0] += 1
        state.progress.step = (state.progress.step + 1) % steps_per_epoch
        writer.due()
    assert sum(spent) <= 0.01 * clock[0] and state.progress.saving == pytest.approx(sum(spent))
    assert max(lost) <= saving.SAVE_SECONDS + 1
