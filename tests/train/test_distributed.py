"""Several processes train what one would: the same batches, the same weights, one who writes, and nobody who hangs.

On processors, connected by Gloo. What needs torchrun, and so seconds to start, is at the end, most of it `slow`:
`python3 run.py test -m slow tests/test_distributed.py`.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import several
import tiny
import torch
from several import alone, furthest, same, team
from tiny import TINY
from torch import nn

from patholib import cli
from patholib.base import files, locks
from patholib.base.errors import PathoError
from patholib.base.team import ALONE, Team, check_gpus
from patholib.judge import predicting
from patholib.model import batchnorms, colour, recipes
from patholib.model.recipes import Stage
from patholib.train import checkpoints, handover, launching, optimising, runs, saving, training
from patholib.train.state import State

pytestmark = [pytest.mark.heavy, pytest.mark.skipif(not hasattr(os, "fork"), reason="teams of tests are forked")]
ROOT = Path(__file__).parents[2]
STILL = replace(TINY, head_dropout=(0.0, 0.0))  # without dropout, which every process draws for itself
RECIPES = {  # recipe, (training, validation) images
    "batches that divide": (STILL, (32, 16)),
    "shares of 3, 2 and 2, a last batch of 2, class weights, clipping": (
        replace(STILL, batch_size=7, drop_last=False, balance="weights", clip_norm=0.5),
        (37, 11),
    ),
    "stages, sampler, adapting BatchNorm, focal loss": (
        replace(
            STILL,
            epochs=3,
            stages=(Stage(0, 5, 1.0), Stage(0.5, 0, 0.5)),
            balance="sampler",
            optimizer="adamw",
            batchnorm="adapt",
            loss="focal",
            label_smoothing=0.0,
        ),
        (32, 16),
    ),
    "averaged weights, warm-up, logit adjustment": (
        replace(STILL, ema=0.9, warm_up=1, balance="logit_adjustment", adjustment=0.5),
        (32, 16),
    ),
}


@pytest.fixture(autouse=True)
def one_thread():
    """Two threads add in another order than one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# --- what is learnt ---


@pytest.mark.parametrize(
    ("name", "count"),
    [(name, 2) for name in RECIPES]
    + [pytest.param(name, 3, marks=() if "shares of 3" in name else pytest.mark.slow) for name in RECIPES],
)
def test_several_processes_learn_what_one_does(tmp_path, name, count):
    """In double precision, where what is not equal shows: Adam makes much of the last bits of a gradient."""
    recipe, images = RECIPES[name]
    given = (recipe, images, None, torch.float64)
    one = alone(tmp_path / "one", *given)
    found = team(count, tmp_path / "results", several.train, tmp_path / "run", *given)
    assert all(same(found[0], other) for other in found[1:])
    assert furthest(one, found[0]) < 1e-9
    for column, values in one["history"].items():
        if column not in ("micro_batch", "processes"):
            theirs = np.array(found[0]["history"][column], float)
            assert np.allclose(np.array(values, float), theirs, rtol=1e-6, equal_nan=True), column
    assert found[0]["history"]["processes"] == [count] * len(one["history"]["epoch"])


def test_in_single_precision_hardly_a_weight_is_off_by_a_millionth(tmp_path):
    """Eight steps with BatchNorm that learns; a few, whose gradient is next to nothing, follow its rounding."""
    recipe = replace(STILL, lr=recipes.BREAKHIS.lr)
    one = alone(tmp_path / "one", recipe)
    found = team(2, tmp_path / "results", several.train, tmp_path / "run", recipe)
    off = torch.cat([(one["model"][key] - value).abs().flatten() for key, value in found[0]["model"].items()])
    assert one["history"]["epoch"] == [1, 2] and (off < 1e-6).double().mean() > 0.999 and off.max() < recipe.lr / 10


def norms(own, maps, slopes, shares):
    """What a BatchNorm gives for its share of the maps (N, K, h, w), and its gradients, added up."""
    norm = nn.Sequential(nn.BatchNorm2d(maps.shape[1]))
    with torch.no_grad():
        norm[0].weight.copy_(torch.linspace(0.5, 2, maps.shape[1]))
    batchnorms.share_batchnorm(norm, own)
    rows = np.array_split(np.arange(len(maps)), np.cumsum(shares)[:-1])[own.rank]
    mine = maps[rows].clone().requires_grad_()
    given = norm(mine)
    (given * slopes[rows]).sum().backward()
    gradients = [p.grad for p in norm.parameters()]
    own.add_up(gradients)
    return {"maps": given.detach(), "slope": mine.grad, "gradients": gradients, "state": dict(norm.state_dict())}


def coloured(own, images):
    """Logits that colours add, of this process's share of the images, in train mode without dropout."""
    beside = colour.ColourHead(4, 2, dropout=0.0).double()
    with torch.no_grad():
        for number, weight in enumerate(beside.parameters()):
            weight.copy_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(number)))
    batchnorms.share_batchnorm(beside, own)
    found = beside(images[np.array_split(np.arange(len(images)), own.count)[own.rank]])
    found.square().sum().backward()
    gradients = [p.grad for p in beside.parameters()]
    own.add_up(gradients)
    return {"logits": found.detach(), "gradients": gradients}


def test_what_colours_add_is_that_of_the_whole_batch(tmp_path):
    images = torch.rand(5, 3, 32, 32, generator=torch.Generator().manual_seed(0)).double()
    whole = coloured(ALONE, images)
    found = team(2, tmp_path / "results", coloured, images)
    torch.testing.assert_close(torch.cat([part["logits"] for part in found]), whole["logits"])
    for ours, theirs in zip(whole["gradients"], found[0]["gradients"], strict=True):
        torch.testing.assert_close(theirs, ours, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("shares", [(3, 3), (5, 1), (4, 2, 0)])
def test_a_shared_batchnorm_is_that_of_the_whole_batch(tmp_path, shares):
    draw = torch.Generator().manual_seed(0)
    maps = torch.randn(6, 4, 3, 5, generator=draw) * 3 + 100  # far from 0, where squares would cancel
    slopes = torch.randn(6, 4, 3, 5, generator=draw)
    whole = norms(ALONE, maps, slopes, (6,))
    found = team(len(shares), tmp_path / "results", norms, maps, slopes, shares)
    assert torch.allclose(torch.cat([part["maps"] for part in found]), whole["maps"], rtol=0, atol=2e-5)
    assert torch.allclose(torch.cat([part["slope"] for part in found]), whole["slope"], rtol=0, atol=2e-5)
    for part in found:
        assert all(torch.allclose(a, b, rtol=1e-4) for a, b in zip(part["gradients"], whole["gradients"], strict=True))
        assert all(
            torch.allclose(part["state"][key].float(), value.float(), rtol=1e-5)
            for key, value in whole["state"].items()
        )
        assert all(torch.equal(part["state"][key], value) for key, value in found[0]["state"].items())


def test_a_batchnorm_at_rest_exchanges_nothing_and_one_process_changes_nothing():
    norm = nn.Sequential(nn.BatchNorm2d(2), nn.BatchNorm1d(2))
    before = list(norm)
    batchnorms.share_batchnorm(norm, ALONE)
    assert list(norm) == before
    batchnorms.share_batchnorm(norm, Team(0, 2))  # not connected: an exchange would fail
    assert list(norm.state_dict()) == list(nn.Sequential(*before).state_dict()) and list(norm) != before
    norm.eval()
    maps = torch.randn(3, 2, 4, 4)
    assert torch.equal(norm[0](maps), before[0].eval()(maps))


def seeds(own, folder):
    """The seed before every forward pass, which dropout draws from."""
    seen = []

    def watch(patch, _team):
        gradients = optimising.gradients

        def noted(state, batch):
            seen.append(torch.initial_seed())
            return gradients(state, batch)

        patch.setattr(optimising, "gradients", noted)

    several.train(own, folder, TINY, prepare=watch)
    return seen


def test_no_two_processes_drop_out_the_same_and_the_first_does_as_one(tmp_path):
    with tiny.network():
        one = seeds(ALONE, tmp_path / "one")
    first, second = team(2, tmp_path / "results", seeds, tmp_path / "run")
    assert first == one and len(set(first + second)) == 2 * len(one) == 16


# --- what is judged ---


def judged(own, tta):
    """Predictions of 203 images, as text."""
    images = tiny.image_set(8, 203).part("val")
    table = predicting.predict(tiny.build(TINY), images, TINY, tta=tta, batch_size=16, progress=False, team=own)
    return {"table": table.to_csv(index=False)}


@pytest.mark.parametrize(("count", "tta"), [(2, False), (3, True)])
def test_every_image_is_judged_once_in_order_with_the_bits_of_one_process(tmp_path, count, tta):
    with tiny.network():
        one = judged(ALONE, tta)
    assert len(one["table"].splitlines()) == 1 + 203
    assert team(count, tmp_path / "results", judged, tta) == [one] * count


# --- going on ---


def drawing(own, folder, recipe, steps=None):
    """Trains, keeps what was drawn at which place, and is asked to stop after so many steps."""
    seen = []

    def watch(patch, _team):
        optimise = optimising.step

        def noted(state, batch):
            seen.extend(
                [state.progress.epoch, int(p), int(r), float(v.double().sum())]
                for p, r, v in zip(batch.positions, batch.rows, batch.images, strict=True)
            )
            optimise(state, batch)
            if state.steps_done == steps and own.rank == own.count - 1:
                os.kill(os.getpid(), signal.SIGTERM)  # one of them is asked; the step after it, all leave

        patch.setattr(optimising, "step", noted)

    try:
        found = several.train(own, folder, recipe, (32, 16), watch, torch.float64)
    except SystemExit as left:
        return {"seen": seen, "code": left.code}
    return found | {"seen": seen}


def test_a_run_goes_on_with_another_number_of_processes(tmp_path):
    """1, then 2, then 1 again: what is drawn is the same to the bit, and what is learnt to the rounding."""
    recipe = replace(STILL, epochs=3, balance="sampler")
    with tiny.network():
        expected = drawing(ALONE, tmp_path / "one", recipe)
        parts = [drawing(ALONE, tmp_path / "run", recipe, steps=3)]
    parts += team(2, tmp_path / "results", drawing, tmp_path / "run", recipe, 6)
    state = checkpoints.load(tmp_path / "run" / "checkpoints", "last")
    assert state["progress"]["epoch"] == 1 and state["progress"]["step"] == 3  # one step after it was asked
    with tiny.network():
        last = drawing(ALONE, tmp_path / "run", recipe)
    assert [part["code"] for part in parts] == [143] * 3
    seen = [tuple(one) for part in [*parts, last] for one in part["seen"]]
    assert sorted(seen) == sorted(tuple(one) for one in expected["seen"]) and len(seen) == 3 * 32
    assert furthest(last, expected) < 1e-9
    resumed = [json.loads(line) for line in (tmp_path / "run" / "run.jsonl").read_text().splitlines()]
    assert [event["changed"].get("processes") for event in resumed if event["event"] == "resumed"] == [[1, 2], [2, 1]]


# --- what goes wrong in one of them ---


class Poison:
    """Makes the views of the last process NaN, at one step of the second epoch."""

    def __call__(self, patch, own):
        gradients, left = optimising.gradients, [1]

        def poisoned(state, batch):
            if own.rank == own.count - 1 and state.progress.epoch == 1 and state.progress.step == 2 and left[0]:
                left[0] = 0
                batch.images[:] = torch.nan
            return gradients(state, batch)

        patch.setattr(optimising, "gradients", poisoned)


@pytest.mark.parametrize("how", ["stop", "rollback"])
def test_a_nan_loss_in_one_process_is_one_in_all(tmp_path, how):
    recipe = replace(STILL, on_nonfinite=how, schedule="constant")
    found = team(2, tmp_path / "results", several.train, tmp_path / "run", recipe, (32, 16), Poison())
    if how == "stop":
        assert [one["error"] for one in found] == ["nonfinite_loss"] * 2 and "epoch 2, step 3" in found[0]["said"]
    else:
        assert same(*found) and found[0]["history"]["lr"] == [recipe.lr, recipe.lr / 2]


def test_what_the_fp16_scaler_passes_over_it_passes_over_everywhere(tmp_path):
    recipe = replace(STILL, precision="fp16", epochs=4)
    found = team(2, tmp_path / "results", several.train, tmp_path / "run", recipe, (32, 16), Overflowing())
    scale = checkpoints.load(tmp_path / "run" / "checkpoints", "last")["scaler"]["scale"]
    assert same(*found) and scale < 2.0**40


class Overflowing:
    """Lets the fp16 scaler begin so high that the first steps overflow."""

    def __call__(self, patch, own):
        scaler = torch.amp.GradScaler
        patch.setattr(torch.amp, "GradScaler", lambda device, enabled: scaler(device, 2.0**40, enabled=enabled))


class Dying:
    """Kills one process with SIGKILL after its fifth step."""

    def __init__(self, rank):
        self.rank = rank

    def __call__(self, patch, own):
        optimise, doomed = optimising.step, own.rank == self.rank
        patch.setattr(saving, "SAVE_SECONDS", 0.0)

        def dying(state, batch):
            optimise(state, batch)
            if state.steps_done == 5 and doomed:
                os.kill(os.getpid(), signal.SIGKILL)

        patch.setattr(optimising, "step", dying)


@pytest.mark.parametrize("rank", [0, 1])
def test_where_one_is_killed_the_others_stop_and_a_new_start_ends_with_the_same_bits(tmp_path, rank):
    straight = team(2, tmp_path / "a", several.train, tmp_path / "straight")
    started = time.monotonic()
    found = team(2, tmp_path / "b", several.train, tmp_path / "run", TINY, (32, 16), Dying(rank), lost=(rank,))
    assert found[1 - rank]["error"] == "process_lost"
    assert time.monotonic() - started < 120  # with the start of two processes; a hang would last ten minutes
    for path in (tmp_path / "run" / "checkpoints").glob("[lb]*"):
        checkpoints.read(path)
    again = team(2, tmp_path / "c", several.train, tmp_path / "run")
    assert same(again[0], straight[0])


# --- who writes, and who is refused ---


def told(own, folder):
    """What the processes agree on, and what is refused to one of them."""

    def refuse():
        raise PathoError("no_space", "disk", "is full", "Free some")

    found = {"shared": own.shared(lambda: [own.rank, 0.1 + 0.2, None])}
    try:
        own.shared(refuse)
    except PathoError as error:
        found["refused"] = str(error)
    order = own.in_turn(lambda: [*folder.glob("*"), (folder / str(own.rank)).touch()])
    print("heard")
    return found | {"seen": len(order) - 1, "writes": own.first}


def test_the_first_tells_the_others_and_goes_first(tmp_path, capfd):
    (tmp_path / "turns").mkdir()
    first, *others = team(3, tmp_path / "results", told, tmp_path / "turns")
    assert all(other["shared"] == first["shared"] == [0, 0.1 + 0.2, None] for other in others)
    assert {one["refused"] for one in (first, *others)} == {"[no_space] disk: is full. Free some"}
    assert first["seen"] == 0 and all(other["seen"] >= 1 for other in others)


def test_only_the_first_writes(tmp_path):
    run = replace(tiny.open_run(tmp_path), writes=False)
    with tiny.network():
        state = State(tiny.build(TINY), tiny.image_set(), run, torch.device("cpu"), team=Team(1, 2))
    run.log("seen")
    run.update(status="trained")
    state.progress.history.append({"epoch": 1})
    saving.Saving(state).write()
    saving.Saving(state).tables()
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"] and files.read_json(tmp_path / "run.json") == {}


def test_more_processes_than_gpus_or_images_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(PathoError, match="are 4, but this machine has 2 GPUs") as error:
        check_gpus(4, on_gpu=True)
    assert "processes=2" in error.value.remedy
    with pytest.raises(PathoError, match="more than the 8 images of a batch"):
        training.check_processes(9, "cpu", TINY)
    for wrong in (0, -1, 1.0, True, "2"):
        with pytest.raises(PathoError, match="processes"):
            training.check_processes(wrong, "cpu", TINY)


def test_a_misspelt_parameter_ends_the_command_with_one_line(tmp_path, capsys):
    files.write_json(tmp_path / "RUN.json", {"recipe": "breakhis", "learning_rate": 1e-3, "gpus": 3})
    assert cli.main(["train", str(tmp_path / "RUN.json")]) == 2
    said = capsys.readouterr().err
    assert "did you mean 'lr'?" in said and "did you mean 'processes'?" in said and said.count("\n") == 1
    assert training.main([]) == 2 and "FOLDER" in capsys.readouterr().err


def test_the_lock_of_whoever_has_started_it_is_no_hindrance_and_that_of_another_is(tmp_path):
    run = tiny.open_run(tmp_path / "run")
    run.lock = runs._lock(run.dir)
    with tiny.network():
        handover._hand_over(tmp_path, tiny.build(TINY), tiny.image_set(), run, {"device": "cpu", "workers": 1})
        files.write_json(tmp_path / "hours.json", None)
        facts = files.read_json(tmp_path / "job.json")
        _, images, found, _ = handover.opened(tmp_path, facts, ALONE)
        with pytest.raises(PathoError, match="is in use by process"):
            handover.opened(tmp_path, facts, ALONE)
        run.close()
        assert runs._lock(run.dir) is None  # whoever had started it may be gone; it still trains
        found.close()
        assert runs._lock(run.dir) is not None
        own = tiny.image_set()
        assert np.array_equal(images.part("val").pictures, own.part("val").pictures)
        assert set(images.table["split"]) == {"train", "val"}


def test_a_cache_that_is_mapped_is_not_copied(tmp_path):
    own = tiny.image_set()
    np.save(tmp_path / "cache.npy", own.pixels)
    mapped = np.load(tmp_path / "cache.npy", mmap_mode="r").view(np.ndarray)
    assert handover._cache(replace(own, pixels=mapped), tmp_path / "job") == tmp_path / "cache.npy"
    assert handover._cache(own, tmp_path) == tmp_path / "pixels.npy"


# --- started by torchrun ---


@pytest.fixture
def small_program(monkeypatch):
    """What is started knows the small network of these tests too."""
    monkeypatch.setattr(handover, "PROGRAM", [str(Path(several.__file__))])
    with tiny.network():
        yield


def notebook(folder, recipe=TINY, **options):
    """What a cell with `processes` does: model, history and run of a folder that stays locked meanwhile."""
    run = tiny.open_run(folder, recipe)
    run.lock = runs._lock(folder)
    assert run.lock is not None
    model = tiny.build(recipe)
    try:
        return model, training.fit(model, tiny.image_set(), run, device="cpu", processes=2, **options), run
    finally:
        run.close()


def paths_of_this_machine(folder):
    return [
        path.name
        for path in folder.rglob("*")
        if path.is_file() and path.suffix in (".json", ".csv", ".jsonl")
        if str(folder.parent) in path.read_text() or "patholib-" in path.read_text()
    ]


def test_a_notebook_trains_in_two_processes_as_in_one(tmp_path, small_program, capsys):
    """The weights of the best epoch are in its model, the folder was locked all the time, and none is started twice."""
    taken = []
    watch = threading.Timer(0.5, lambda: taken.append(locks.take(tmp_path / "run" / "run.lock")))
    watch.start()
    model, history, run = notebook(tmp_path / "run", STILL)
    expected = alone(tmp_path / "one", STILL)
    assert taken == [None] and run.lock is None
    assert "2 processes, batch 8 = 2 x 4" in capsys.readouterr().out
    assert history["processes"].tolist() == [2, 2] and paths_of_this_machine(run.dir) == []
    assert furthest({"model": model.state_dict()}, expected) < 1e-3  # Adam makes much of the last bits
    facts = files.read_json(run.dir / "run.json")
    assert (facts["status"], facts["training"]["processes"], facts["training"]["batch"]) == ("trained", 2, 8)
    handover.PROGRAM[:] = ["nothing that could be started"]
    again, same_history, _ = notebook(tmp_path / "run", STILL)
    assert tiny.same_bits(model, again) and same_history.equals(history)


@pytest.mark.slow
def test_errors_and_ends_of_time_reach_the_notebook(tmp_path, small_program):
    with pytest.raises(PathoError) as stopped:
        notebook(tmp_path / "run", max_hours=0.0)
    assert stopped.value.code == "time_is_up" and checkpoints.list_of(tmp_path / "run" / "checkpoints", "last")
    model, _, _ = notebook(tmp_path / "run")
    straight, _, _ = notebook(tmp_path / "straight")
    assert tiny.same_bits(model, straight)


def workers(folder):
    """{rank: process id} of the processes that torchrun has started on a file or folder in this one."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = (entry / "cmdline").read_bytes()
            if str(folder).encode() in words and b"torch.distributed.run" not in words:
                rank = re.search(rb"(?:^|\0)RANK=(\d+)", (entry / "environ").read_bytes())
                found |= {int(rank[1]): int(entry.name)} if rank else {}
        except OSError:  # it has ended meanwhile
            continue
    return found


DEMO = {"recipe": "breakhis", "data": "demo", "epochs": 2, "image_size": 32}
LONG = DEMO | {"epochs": 1000}


def started(folder, parameters, launchers=1, each=2):
    """torchrun, as many launchers as machines, on a file of parameters."""
    path = files.write_json(folder / "RUN.json", parameters | {"output": str(folder / "out")})
    env = os.environ | {
        "OMP_NUM_THREADS": "1",
        "TQDM_DISABLE": "1",
        "PYTHONPATH": str(ROOT),
        "PATHOLIB_CACHE": str(folder / "cache"),
        **launching._loopback(),
    }
    command = torchrun(launchers, each, "test", f"localhost:{several.free_port()}", path, [several.__file__, "train"])
    return [
        subprocess.Popen(
            [sys.executable, "-m", "torch.distributed.run", *command[1:]],
            cwd=ROOT,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(launchers)
    ]


def torchrun(nodes, each, name, endpoint, run, program=("-m", "patholib", "train")):
    """The command of deploy/slurm.sh."""
    return [
        "torchrun",
        "--nnodes",
        str(nodes),
        "--nproc_per_node",
        str(each),
        "--rdzv_id",
        name,
        "--rdzv_backend",
        "c10d",
        "--rdzv_endpoint",
        endpoint,
        *program,
        str(run),
    ]


def test_the_slurm_script_is_sound_and_starts_what_is_tested_here():
    script = ROOT / "deploy" / "slurm.sh"
    subprocess.run(["bash", "-n", script], check=True)
    text = re.sub(r"\\\n\s*", "", script.read_text(encoding="utf-8"))
    (line,) = [line for line in text.splitlines() if line.startswith("srun ")]
    srun, *options = shlex.split(line)[:2]
    assert [srun, *options] == ["srun", "--kill-on-bad-exit=1"]
    assert shlex.split(line)[2:] == torchrun("$nodes", "$processes", "$SLURM_JOB_ID", "$endpoint", "$run")
    assert {"--nodes=2", "--ntasks-per-node=1"} <= set(re.findall(r"^#SBATCH (\S+)", text, re.M))


@pytest.mark.slow
def test_two_machines_train_together_and_the_first_process_judges_and_reports(tmp_path):
    launchers = started(tmp_path, DEMO, launchers=2, each=1)
    said = [process.communicate(timeout=240) for process in launchers]
    assert [process.returncode for process in launchers] == [0, 0], said
    assert sum("2 processes, batch 8 = 2 x 4" in out for out, _ in said) == 1
    assert sum("Report: " in out for out, _ in said) == 1
    assert len(list((tmp_path / "cache").glob("*.npy"))) == 1
    (run_dir,) = (tmp_path / "out").glob("breakhis*")
    facts = files.read_json(run_dir / "run.json")
    assert (facts["status"], facts["training"]["processes"]) == ("finished", 2) and (run_dir / "report.html").exists()


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="only Linux tells who was started with what")
@pytest.mark.parametrize("what", ["a killed process", "SIGTERM to torchrun"])
def test_torchrun_ends_soon_and_leaves_a_whole_folder(tmp_path, what):
    (launcher,) = started(tmp_path, LONG)
    saved = []
    end = time.monotonic() + 180
    while not saved and time.monotonic() < end:
        assert launcher.poll() is None, launcher.communicate()
        saved = list((tmp_path / "out").glob("*/checkpoints/last-*.pt"))
        time.sleep(0.2)
    asked = time.monotonic()
    if what.startswith("SIGTERM"):
        launcher.send_signal(signal.SIGTERM)
    else:
        os.kill(workers(tmp_path)[1], signal.SIGKILL)
    out, error = launcher.communicate(timeout=60)
    assert launcher.returncode != 0 and time.monotonic() - asked < 45
    folder = saved[0].parent
    assert "no whole checkpoint" not in error and checkpoints.load(folder, "last")["progress"]["epoch"] >= 1
    events = (
        [json.loads(line)["event"] for line in (folder.parent / "run.jsonl").read_text().splitlines()]
        if (folder.parent / "run.jsonl").exists()
        else []
    )
    assert ("stopped" in events) == what.startswith("SIGTERM"), (out, error)
    assert locks.take(folder.parent / "run.lock") is not None


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="only Linux tells who was started with what")
def test_where_the_notebook_is_killed_its_processes_save_and_leave(tmp_path):
    code = (
        "import sys; sys.path[:0] = [sys.argv[2]]\nimport several, tiny\nfrom dataclasses import replace\n"
        "from pathlib import Path\nfrom patholib.train import handover, runs, training\n"
        "handover.PROGRAM = [several.__file__]\nrecipe = replace(tiny.TINY, epochs=2000)\n"
        "with tiny.network():\n    run = tiny.open_run(Path(sys.argv[1], 'run'), recipe)\n"
        "    run.lock = runs._lock(run.dir)\n"
        "    training.fit(tiny.build(recipe), tiny.image_set(), run, device='cpu', processes=2)\n"
    )
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)}
    notebook = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path), str(Path(__file__).parents[1])],
        env=env,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    end = time.monotonic() + 300
    while not list(tmp_path.glob("run/checkpoints/last-*.pt")) and time.monotonic() < end:
        time.sleep(0.2)
    assert locks.take(tmp_path / "run" / "run.lock") is None
    notebook.kill()
    notebook.wait()
    end = time.monotonic() + 40
    while workers(tmp_path) and time.monotonic() < end:
        time.sleep(0.2)
    assert workers(tmp_path) == {}
    events = [json.loads(line)["event"] for line in (tmp_path / "run" / "run.jsonl").read_text().splitlines()]
    assert events == ["stopped"]
    for _ in range(100):
        lock = runs._lock(tmp_path / "run")
        if lock is not None:
            break
        time.sleep(0.2)
    assert lock is not None
